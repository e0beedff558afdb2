"""From a name or a directory to weights in memory, and nothing silently left out.

Two loaders live here. `ModelLoader` and `get_model_and_tokenizer` give Hugging Face's
own model, the peer that everything is measured against. `load_weights` fills our model
from safetensors files, strictly: every tensor of the file is used, every parameter is
set, and what doesn't fit is known from the headers, before a weight is read.
"""

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from folovllm_lite.config import ModelConfig
from folovllm_lite.utils import get_device

# The checkpoint that ships with the package.
EMBEDDED_MODEL = Path(resources.files("folovllm_lite")) / "tiny" / "model"

# What is fetched from the Hub: never a pickle.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model"]
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Below this many bytes loading is over before a progress bar could be read.
_SHOW_PROGRESS = 200_000_000


def resolve_checkpoint(model: str | Path) -> Path:
    """The directory of a checkpoint: `model` itself, or a download from the Hub.

    Raises:
        FileNotFoundError: no such directory, or a Hub name that can't be downloaded.
            The message says what to do.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
        return path
    name = str(model)
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if path.exists() or not looks_like_hub:
        raise FileNotFoundError(
            f"model {name!r}: no such directory. Give the directory of a checkpoint "
            "(config.json, *.safetensors, tokenizer.json) or a Hub name like "
            "'Qwen/Qwen3-0.6B'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:  # of the hub, of httpx, of the disk: one cure for all
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        cause = "HF_HUB_OFFLINE is set" if offline else type(error).__name__
        raise FileNotFoundError(
            f"model {name!r} is not a directory here and could not be had from the "
            f"Hugging Face Hub ({cause}). On a machine with a network run\n"
            f"    hf download {name} --local-dir {name.split('/')[1]}\n"
            "copy that directory to this one and pass its path; or use the embedded "
            "model, LLM()"
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    file = path / "config.json"
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is no checkpoint: it has no config.json"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold an object, got {config!r}")
    return config


def checkpoint_dtype(hf_config: dict[str, Any]) -> torch.dtype:
    """What dtype "auto" means: what the checkpoint's config names, else float32."""
    name = str(hf_config.get("dtype") or hf_config.get("torch_dtype") or "float32")
    name = name.removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(
            f"dtype {name!r} of the checkpoint is not one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def eos_token_ids(path: Path, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a text.

    Those of generation_config.json, else of config.json, and the tokenizer's. Chat
    models often have two, one for the turn and one for the text.
    """
    found: set[int] = set()
    for file in ("generation_config.json", "config.json"):
        if (path / file).is_file():
            ids = json.loads((path / file).read_text()).get("eos_token_id")
            if ids is not None:
                found |= set(ids if isinstance(ids, list) else [ids])
                break
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted(found))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, from its index where it has one.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: only pickles, which can run code when they are opened; or several
            files and no index.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{path}: shards {', '.join(missing)} are missing")
        return [path / name for name in names]
    found = sorted(path.glob("*.safetensors"))
    if path / "model.safetensors" in found:
        return [path / "model.safetensors"]
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {', '.join(file.name for file in found)}, but no index says "
            "which of them is the model: model.safetensors.index.json is missing"
        )
    if found:
        return found
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path} holds its weights as pickles only ({', '.join(pickles)}), which "
            "can run code when opened; convert them to safetensors"
        )
    raise FileNotFoundError(f"{path} holds no weights: no *.safetensors file")


def tied_names(wanted: dict[str, Tensor]) -> dict[str, str]:
    """Names that share a parameter with an earlier name, each to that earlier one."""
    first: dict[int, str] = {}  # identity of the parameter -> its first name
    owners = {name: first.setdefault(id(t), name) for name, t in wanted.items()}
    return {name: owner for name, owner in owners.items() if owner != name}


def stored_tensors(paths: list[Path]) -> list[tuple[str, Tensor, Path]]:
    """Name, tensor and file of all that safetensors files hold, from their headers.

    The tensors have shape and dtype but no data (device "meta"): no weight is read.

    Raises:
        ValueError: a file that is cut off, or no safetensors file at all.
    """
    found = []
    for file in paths:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # no dict, but it has keys()
                    part = tensors.get_slice(name)
                    shape = part.get_shape()
                    # Safetensors can't slice a tensor without dimensions.
                    dtype = (part[:0] if shape else part[...]).dtype
                    meta = torch.empty(shape, dtype=dtype, device="meta")
                    found.append((name, meta, file))
        except SafetensorError as error:
            raise ValueError(f"{file} can't be read, is it cut off? {error}") from None
    return found


def misfits(
    wanted: dict[str, Tensor], stored: list[tuple[str, Tensor, Path]]
) -> list[str]:
    """A line for each tensor that can't go where its name says, or that isn't there.

    Args:
        wanted: parameters and buffers by name. Of several that are tied, the first has
            to be there; the others may be.
        stored: see `stored_tensors`.
    """
    problems, seen = [], set()
    for name, tensor, _ in stored:
        if name in seen:
            problems.append(f"twice: {name}")
        seen.add(name)
        if name not in wanted:
            problems.append(f"unexpected: {name}")
        elif tensor.shape != wanted[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(wanted[name].shape)}"
            problems.append(f"misshapen: {name} is {shapes}")
        elif not tensor.is_floating_point():
            problems.append(f"wrong dtype: {name} is {tensor.dtype}, not a float")
    needed = wanted.keys() - tied_names(wanted).keys()
    problems += [f"missing: {name}" for name in needed - seen]
    # Copying to the meta device does nothing, and says nothing.
    empty = [name for name, tensor in wanted.items() if tensor.is_meta]
    return problems + [f"no memory: {name} is on the meta device" for name in empty]


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill every parameter and buffer of `model` from the checkpoint in `path`.

    Tensors are read one at a time and cast to the parameter's dtype and device. A tied
    head may stand in the file a second time, if it holds the same numbers. A checkpoint
    that is refused leaves the model as it was.

    Raises:
        FileNotFoundError: see `weight_files`.
        ValueError: one message that lists all tensors that are missing, unexpected,
            there twice, of another shape or kind, or without memory to hold them; or a
            file that is cut off.
    """
    wanted = model.state_dict(keep_vars=True)
    tied = tied_names(wanted)
    stored = stored_tensors(weight_files(path))
    home = {name: file for name, _, file in stored}
    problems = misfits(wanted, stored)
    for name, owner in tied.items():
        if name in home and owner in home:
            dtype = wanted[name].dtype
            copy, original = _read(home, name).to(dtype), _read(home, owner).to(dtype)
            if not torch.equal(copy, original):
                problems.append(
                    f"not tied: {name} differs from {owner}, but the config ties them"
                )
    if problems:
        raise ValueError(
            f"the weights in {path} don't fit the model:\n  "
            + "\n  ".join(sorted(problems))
        )
    size = sum(tensor.nbytes for _, tensor, _ in stored)
    quiet = {"disable": True} if size < _SHOW_PROGRESS else {}
    bar = tqdm(total=size, desc="loading", unit="B", unit_scale=True, **quiet)
    with bar, torch.no_grad():
        for name, tensor, _ in stored:
            if name not in tied:
                wanted[name].copy_(_read(home, name))
            bar.update(tensor.nbytes)


def _read(home: dict[str, Path], name: str) -> Tensor:
    """The tensor called `name`, from the file that `home` says."""
    with safe_open(home[name], framework="pt") as tensors:
        return tensors.get_tensor(name)


class ModelLoader:
    """Loads Hugging Face's model and tokenizer for a `ModelConfig`.

    Args:
        model_config: left as it is; what the checkpoint decides is in `max_model_len`.

    After `load_model`, `max_model_len` is the config's, or the checkpoint's limit.
    """

    def __init__(self, model_config: ModelConfig):
        self.model_config = model_config
        self.max_model_len = model_config.max_model_len

    def load_model(self, device: str | torch.device | None = None) -> nn.Module:
        """A `transformers` language model in eval mode; None picks CUDA if it's there.

        The weights are read into memory once (transformers builds on the meta device).

        Raises:
            ValueError: a checkpoint that lacks a tensor of the model or has one too
                many. transformers by itself would only print a report and leave what
                is missing random.
        """
        from transformers import AutoModelForCausalLM

        device = get_device(device)
        path = resolve_checkpoint(self.model_config.model)
        weight_files(path)  # says it better than transformers does
        hf_config = read_config(path)
        if self.max_model_len is None:
            self.max_model_len = hf_config.get("max_position_embeddings", 2048)
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=self.model_config.torch_dtype or checkpoint_dtype(hf_config),
            trust_remote_code=self.model_config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
        problems = [f"missing: {name}" for name in found["missing_keys"]]
        problems += [f"unexpected: {name}" for name in found["unexpected_keys"]]
        if problems:
            lines = "\n  ".join(sorted(problems))
            raise ValueError(f"the weights in {path} don't fit the model:\n  {lines}")
        return model.to(device).eval()

    def load_tokenizer(self) -> Any:
        """The tokenizer, padding on the left and with a pad token.

        On the left because generation goes on from the last position: with padding on
        the right a shorter prompt of a batch would go on from its padding.
        """
        from transformers import AutoTokenizer

        path = resolve_checkpoint(self.model_config.tokenizer)
        known = ("tokenizer.json", "tokenizer.model", "vocab.json")
        if not any((path / file).is_file() for file in known):
            raise FileNotFoundError(
                f"{path} holds no tokenizer: none of {', '.join(known)}"
            )
        tokenizer = AutoTokenizer.from_pretrained(
            path,
            use_fast=self.model_config.tokenizer_mode == "auto",
            trust_remote_code=self.model_config.trust_remote_code,
            padding_side="left",
        )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is not None:
                tokenizer.pad_token = tokenizer.eos_token
            else:
                tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        return tokenizer

    def load_model_and_tokenizer(self, device: str | torch.device | None = None):
        """Both: (model, tokenizer)."""
        return self.load_model(device), self.load_tokenizer()

    @staticmethod
    def parameter_statistics(model: nn.Module) -> dict[str, Any]:
        """How large a model is: parameters, trainable, bytes, and bytes by dtype.

        Tied parameters count once.
        """
        parameters = list(model.parameters())
        by_dtype: dict[str, int] = {}
        for p in parameters:
            name = str(p.dtype).removeprefix("torch.")
            by_dtype[name] = by_dtype.get(name, 0) + p.nbytes
        return {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "bytes": sum(by_dtype.values()),
            "bytes_by_dtype": by_dtype,
        }


def get_model_and_tokenizer(
    model_config: ModelConfig, device: str | torch.device | None = None
):
    """Hugging Face's (model, tokenizer) for a config; None picks CUDA if it's there."""
    return ModelLoader(model_config).load_model_and_tokenizer(device)
