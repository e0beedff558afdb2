"""From a name or a directory to weights in memory, and nothing silently left out.

Two loaders live here. `ModelLoader` and `get_model_and_tokenizer` give Hugging Face's
own model, the peer that everything is measured against. `load_weights` fills our model
from safetensors files, strictly: every tensor of the file is used, every parameter is
set.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm.auto import tqdm

from folovllm_lite.config import ModelConfig
from folovllm_lite.utils import get_device

# The checkpoint that ships with the package.
EMBEDDED_MODEL = Path(__file__).parent / "tiny" / "model"

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
        files = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "*.model"]
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # the client's, httpx's and its own share no base
        cause = _hub_failure(error)
    raise FileNotFoundError(
        f"model {name!r} is not a directory here and could not be had from the "
        f"Hugging Face Hub ({cause}). On a machine with a network run\n"
        f"    hf download {name} --local-dir {name.split('/')[1]}\n"
        "copy that directory to this one and pass its path; or use the embedded model, "
        "LLM()"
    )


def _hub_failure(error: Exception) -> str:
    """The first sentence of what went wrong, without addresses."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return "HF_HUB_OFFLINE is set"
    return type(error).__name__


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory."""
    file = path / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is no checkpoint: it has no config.json"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None


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
    files = sorted(path.glob("*.safetensors"))
    if path / "model.safetensors" in files:
        return [path / "model.safetensors"]
    if len(files) > 1:
        raise ValueError(
            f"{path} holds {', '.join(file.name for file in files)}, but no index says "
            "which of them is the model: model.safetensors.index.json is missing"
        )
    if files:
        return files
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path} holds its weights as pickles only ({', '.join(pickles)}), which "
            "can run code when opened; convert them to safetensors"
        )
    raise FileNotFoundError(f"{path} holds no weights: no *.safetensors file")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill every parameter and buffer of `model` from the checkpoint in `path`.

    Tensors are read one at a time and cast to the parameter's dtype and device. A tied
    head may stand in the file a second time, if it holds the same numbers.

    Raises:
        FileNotFoundError: see `weight_files`.
        ValueError: one message that lists all tensors that are missing, unexpected,
            there twice or of another shape or kind; or a file that is cut off.
    """
    files = weight_files(path)
    wanted = model.state_dict(keep_vars=True)
    # Names that share one parameter: whichever comes first in the model has to be
    # there.
    owners: dict[int, str] = {}
    aliases = {
        name
        for name, tensor in wanted.items()
        if owners.setdefault(id(tensor), name) != name
    }
    problems, seen, copies = [], set(), {}
    total = sum(file.stat().st_size for file in files)
    bar = tqdm(
        total=total,
        desc="loading",
        unit="B",
        unit_scale=True,
        **({} if total >= _SHOW_PROGRESS else {"disable": True}),
    )
    with bar, torch.no_grad():
        for file in files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  not a dict
                        if name not in wanted:
                            problems.append(f"unexpected: {name}")
                            continue
                        if name in seen:
                            problems.append(f"twice: {name}")
                        seen.add(name)
                        tensor = tensors.get_tensor(name)
                        bar.update(tensor.nbytes)
                        problem = _misfit(name, tensor, wanted[name])
                        if problem:
                            problems.append(problem)
                        elif name in aliases:
                            copies[name] = tensor
                        else:
                            wanted[name].copy_(tensor)
            except SafetensorError as error:
                raise ValueError(
                    f"{file} can't be read, is it cut off? {error}"
                ) from None
    problems += [f"missing: {n}" for n in wanted if n not in seen and n not in aliases]
    for name, tensor in copies.items():
        if not torch.equal(tensor.to(wanted[name]), wanted[name]):
            owner = owners[id(wanted[name])]
            problems.append(
                f"not tied: {name} differs from {owner}, but the config ties them"
            )
    if problems:
        raise ValueError(
            f"the weights in {path} don't fit the model:\n  "
            + "\n  ".join(sorted(problems))
        )


def _misfit(name: str, found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    if found.shape != wanted.shape:
        return f"misshapen: {name} is {list(found.shape)}, not {list(wanted.shape)}"
    if not found.is_floating_point():
        return f"wrong dtype: {name} is {found.dtype}, not a float"
    return None


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
        """
        from transformers import AutoModelForCausalLM

        device = get_device(device)
        path = resolve_checkpoint(self.model_config.model)
        weight_files(path)  # says it better than transformers does
        hf_config = read_config(path)
        if self.max_model_len is None:
            self.max_model_len = hf_config.get("max_position_embeddings", 2048)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=self.model_config.torch_dtype or checkpoint_dtype(hf_config),
            trust_remote_code=self.model_config.trust_remote_code,
            use_safetensors=True,
        )
        return model.to(device).eval()

    def load_tokenizer(self) -> Any:
        """The tokenizer, padding on the left and with a pad token.

        On the left because generation goes on from the last position: with padding on
        the right a shorter prompt of a batch would go on from its padding.
        """
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            resolve_checkpoint(self.model_config.tokenizer),
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
