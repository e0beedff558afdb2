"""From a name or a directory to weights in memory, and nothing silently left out.

Two loaders live here. `ModelLoader` and `get_model_and_tokenizer` give Hugging Face's
own model, the peer that everything is measured against. `load_weights` fills our model
from safetensors files, strictly: every tensor of the file is used, every parameter is
set, and what doesn't fit is known from the headers, before a weight is read.
"""

import json
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from folovllm_lite.config import ModelConfig
from folovllm_lite.sampling_params import SamplingParams
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
# Float8 and the like are floats too, but they need scales that stand elsewhere.
_FLOATS = (torch.float64, *_DTYPES.values())
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX = "model.safetensors.index.json"
# Tables that old exports saved; the model computes them for itself.
_COMPUTED = tuple(
    f".rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached")
)
# No JSON file of a checkpoint, an index of thousands of tensors included, is larger.
_MOST_JSON = 100_000_000
# Where tools wrote what they did to the weights before config.json had a place for it.
_QUANTIZED = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
# Below this many bytes loading is over before a progress bar could be read.
_SHOW_PROGRESS = 200_000_000


def resolve_checkpoint(model: str | Path) -> Path:
    """The directory of a checkpoint: `model` itself, or a download from the Hub.

    Raises:
        FileNotFoundError: no such directory, or a Hub name that can't be downloaded.
            The message says what to do.
    """
    name = str(model)
    try:
        path = Path(name).expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or ~ of a nobody
        reason = getattr(error, "strerror", None) or error
        raise FileNotFoundError(
            f"model {name[:200]!r}: no such directory ({reason})"
        ) from None
    if is_folder:
        if not os.path.lexists(path / "config.json"):
            raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
        return path
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if exists or not looks_like_hub:
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
            f"model {name!r}: there is no directory {name} in the current one, and it "
            f"could not be had from the Hugging Face Hub ({cause}). On a machine with "
            f"a network run\n    hf download {name} --local-dir {name.split('/')[1]}\n"
            "copy that directory to this one and pass its path; or use the embedded "
            "model, LLM()"
        ) from None


def regular(file: Path) -> Path:
    """The same path, if it is a file that can be read to its end, or a link to one.

    Raises:
        FileNotFoundError: there is none, or a link leads nowhere.
        ValueError: a directory, or a pipe, which would keep its reader waiting.
    """
    if file.is_file():
        return file
    if not file.exists():
        link = ", but a link to nothing" if file.is_symlink() else ""
        raise FileNotFoundError(f"{file} is not there{link}")
    kind = "a directory" if file.is_dir() else "a pipe or a device"
    raise ValueError(f"{file} is {kind}, where a file belongs")


def looks_like(file: Path) -> str:
    """What a file that can't be understood may be, for the message about it."""
    with file.open("rb") as opened:
        start = opened.read(100).lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: the file itself is still to be downloaded"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page"
    if start.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "it begins with a byte order mark: save it as UTF-8 without one"
    return "is it cut off?"


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        FileNotFoundError: see `regular`.
        ValueError: no object, with the file's name and what it looks like.
    """
    size = regular(file).stat().st_size
    if size > _MOST_JSON:
        raise ValueError(f"{file} has {size:,} bytes, more than any JSON file needs")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(
            f"{file} is not valid JSON, {looks_like(file)} ({error})"
        ) from None
    except RecursionError:
        raise ValueError(f"{file} is not valid JSON: it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{file} must hold an object, got {type(value).__name__} {str(value)[:80]}"
        )
    return value


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory.

    Raises:
        FileNotFoundError, ValueError: see `read_json`; also if it holds nothing.
    """
    file = path / "config.json"
    if not os.path.lexists(file):
        raise FileNotFoundError(f"{path} is no checkpoint: it has no config.json")
    config = read_json(file)
    if not config:
        raise ValueError(f"{file} holds an empty object: it describes no model")
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

    Raises:
        ValueError: a file that names anything but token ids.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if os.path.lexists(path / name):
            ids = read_json(path / name).get("eos_token_id")
            if ids is not None:
                ids = ids if isinstance(ids, list) else [ids]
                if any(type(i) is not int or i < 0 for i in ids):
                    raise ValueError(
                        f"eos_token_id of {path / name} must be one token id or a "
                        f"list of them, got {ids!r}"
                    )
                found |= set(ids)
                break
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted(found))


def default_sampling_params(path: Path) -> SamplingParams:
    """What a request means that brings no parameters of its own.

    As in vLLM: temperature, top_k, top_p, min_p, the three penalties and max_new_tokens
    of generation_config.json; the rest is that of `SamplingParams()`.

    Raises:
        ValueError: values that `SamplingParams` refuses, with the file's name.
    """
    file = path / "generation_config.json"
    if not os.path.lexists(file):
        return SamplingParams()
    config = read_json(file)
    names = ["temperature", "top_k", "top_p", "min_p"]
    names += [f"{kind}_penalty" for kind in ("repetition", "presence", "frequency")]
    given = {name: config[name] for name in names if config.get(name) is not None}
    if given.get("top_k") == 0:  # this file's way to say that it is off
        given["top_k"] = -1
    if config.get("max_new_tokens") is not None:
        given["max_tokens"] = config["max_new_tokens"]
    try:
        return SamplingParams(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def quantization_config(path: Path) -> dict[str, Any] | None:
    """How the weights of a checkpoint were quantized, or None if they weren't.

    From config.json, or from the file that older tools wrote beside it. The name of
    the method is always in "quant_method", in small letters.
    """
    settings = None
    if os.path.lexists(path / "config.json"):
        config = read_json(path / "config.json")
        # The last is MLX's name for it.
        names = ("quantization_config", "compression_config", "quantization")
        settings = next((config[name] for name in names if config.get(name)), None)
    if settings is None:
        for name, method in _QUANTIZED.items():
            if os.path.lexists(path / name):
                settings = {"quant_method": method, **read_json(path / name)}
                break
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise ValueError(
            f"quantization_config of {path} must be an object, got {settings!r}"
        )
    method = settings.get("quant_method") or "a method that it doesn't name"
    return {**settings, "quant_method": str(method).lower()}


def refuse_quantized(path: Path) -> None:
    """Raise a ValueError, with the method's name, if a checkpoint is quantized."""
    settings = quantization_config(path)
    if settings:
        raise ValueError(
            f"the weights in {path} are quantized ({settings['quant_method']}), and "
            f"only plain ones can be loaded: {', '.join(_DTYPES)}"
        )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, from its index where it has one.

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is missing.
        ValueError: only pickles, which can run code when they are opened; several files
            and no index; or an index that is none, or that names a file outside the
            checkpoint's directory.
    """
    if os.path.lexists(path / _INDEX):
        return _indexed_files(path)
    found = sorted(path.glob("*.safetensors"))
    if path / "model.safetensors" in found:
        return [regular(path / "model.safetensors")]
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {', '.join(file.name for file in found)}, but no index says "
            f"which of them is the model: {_INDEX} is missing"
        )
    if found:
        return [regular(found[0])]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path} holds its weights as pickles only ({', '.join(pickles)}), which "
            "can run code when opened; convert them to safetensors"
        )
    raise FileNotFoundError(f"{path} holds no weights: no *.safetensors file")


def _indexed_files(path: Path) -> list[Path]:
    """The files that the index in `path` names, each once, in order."""
    index = path / _INDEX
    named = read_json(index).get("weight_map")
    if (
        not isinstance(named, dict)
        or not named
        or not all(isinstance(name, str) for name in named.values())
    ):
        raise ValueError(
            f"{index} must hold a weight_map, from names of tensors to names of files, "
            f"got {str(named)[:80]}"
        )
    names = sorted(set(named.values()))
    # By the path as it is written: in the Hub's cache each file is a link to another
    # directory.
    inside = Path(os.path.abspath(path))
    for name in names:
        if not Path(os.path.abspath(path / name)).is_relative_to(inside):
            raise ValueError(f"{index} names {name!r}, which is outside {path}")
    missing = [name for name in names if not os.path.lexists(path / name)]
    if missing:
        raise FileNotFoundError(f"{path}: shards {', '.join(missing)} are missing")
    return [regular(path / name) for name in names]


def tied_names(wanted: dict[str, Tensor]) -> dict[str, str]:
    """Names that share a parameter with an earlier name, each to that earlier one."""
    first: dict[int, str] = {}  # identity of the parameter -> its first name
    owners = {name: first.setdefault(id(t), name) for name, t in wanted.items()}
    return {name: owner for name, owner in owners.items() if owner != name}


def stored_tensors(paths: list[Path]) -> list[tuple[str, Tensor, Path]]:
    """Name, tensor and file of all that safetensors files hold, from their headers.

    The tensors have shape and dtype but no data (device "meta"): no weight is read.

    Raises:
        ValueError: a file that is cut off, or no safetensors file at all, or a name
            with control characters.
    """
    found = []
    for file in paths:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # no dict, but it has keys()
                    if not name.isprintable():  # a terminal would obey it
                        raise ValueError(f"{file} names a tensor {name!r}")
                    part = tensors.get_slice(name)
                    shape = part.get_shape()
                    # Safetensors can't slice a tensor without dimensions.
                    dtype = (part[:0] if shape else part[...]).dtype
                    meta = torch.empty(shape, dtype=dtype, device="meta")
                    found.append((name, meta, file))
        except SafetensorError as error:
            raise ValueError(
                f"{file} is not valid safetensors, {looks_like(file)} ({error})"
            ) from None
        except (MemoryError, RuntimeError) as error:  # a terabyte, mostly of nothing
            raise ValueError(f"{file} can't be mapped into memory: {error}") from None
    return found


def under_our_names(
    wanted: dict[str, Tensor], stored: list[tuple[str, Tensor, Path]]
) -> list[tuple[str, Tensor, Path]]:
    """What `stored_tensors` gives, as the model calls it.

    A checkpoint of the backbone alone has no "model." in front of its names, and old
    ones hold tables of angles that the model computes for itself: those are left out.
    """
    renamed = []
    for name, tensor, file in stored:
        if name not in wanted and f"model.{name}" in wanted:
            name = f"model.{name}"
        if name in wanted or not name.endswith(_COMPUTED):
            renamed.append((name, tensor, file))
    return renamed


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
        elif tensor.dtype not in _FLOATS:
            problems.append(f"wrong dtype: {name} is {tensor.dtype}, no plain float")
    needed = wanted.keys() - tied_names(wanted).keys()
    return problems + [f"missing: {name}" for name in needed - seen]


def check_layers(path: Path, count: int) -> None:
    """Raise a ValueError unless the weights in `path` are those of `count` layers.

    From the names alone, so that a config with a slip of a few zeros is refused before
    anybody builds as many layers. Each has a tensor, whatever the names say.
    """
    names = [name for name, _, _ in stored_tensors(weight_files(path))]
    numbers = [
        int(found[1])
        for name in names
        if (found := re.search(r"(?:^|\.)layers\.(\d{1,9})\.", name))
    ]
    there = max(numbers, default=-1) + 1
    if numbers and there != count or count > len(names):
        raise ValueError(
            f"num_hidden_layers of {path / 'config.json'} is {count}, but its weights "
            f"are {len(names)} tensors, of {there} layers"
        )


def _refuse(path: Path, problems: list[str]) -> None:
    """Raise one ValueError that lists the problems, if there are any."""
    if problems:
        raise ValueError(
            f"the weights in {path} don't fit the model:\n  "
            + "\n  ".join(sorted(problems))
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill every parameter and buffer of `model` from the checkpoint in `path`.

    Tensors are read one at a time and cast to the parameter's dtype and device. A tied
    head may stand in the file a second time, if it holds the same numbers. A checkpoint
    that is refused leaves the model as it was.

    Raises:
        FileNotFoundError: see `weight_files`.
        ValueError: one message that lists all tensors that are missing, unexpected,
            there twice, of another shape or kind, or without memory to hold them; a
            file that is cut off; or weights that are quantized.
    """
    refuse_quantized(path)
    wanted = model.state_dict(keep_vars=True)
    tied = tied_names(wanted)
    stored = under_our_names(wanted, stored_tensors(weight_files(path)))
    home = {name: file for name, _, file in stored}
    problems = misfits(wanted, stored)
    # Copying to the meta device does nothing, and says nothing.
    empty = [name for name, tensor in wanted.items() if tensor.is_meta]
    problems += [f"no memory: {name} is on the meta device" for name in empty]
    for name, owner in tied.items():
        if name in home and owner in home:
            dtype = wanted[name].dtype
            copy, original = _read(home, name).to(dtype), _read(home, owner).to(dtype)
            if not torch.equal(copy, original):
                problems.append(
                    f"not tied: {name} differs from {owner}, but the config ties them"
                )
    _refuse(path, problems)
    size = sum(tensor.nbytes for _, tensor, _ in stored)
    quiet = {"disable": True} if size < _SHOW_PROGRESS else {}
    bar = tqdm(total=size, desc="loading", unit="B", unit_scale=True, **quiet)
    with bar, torch.no_grad():
        for name, tensor, _ in stored:
            if name not in tied:
                wanted[name].copy_(_read(home, name))
            bar.update(tensor.nbytes)


def _read(home: dict[str, Path], name: str) -> Tensor:
    """The tensor that the model calls `name`, from the file that `home` says."""
    with safe_open(home[name], framework="pt") as tensors:
        there = name if name in tensors.keys() else name.removeprefix("model.")
        return tensors.get_tensor(there)


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
            ValueError: what `load_weights` refuses. transformers by itself would print
                a report and leave what is missing random.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        device = get_device(device)
        path = resolve_checkpoint(self.model_config.model)
        hf_config = read_config(path)
        self._check(path, hf_config)
        trust = {"trust_remote_code": self.model_config.trust_remote_code}
        try:
            config = AutoConfig.from_pretrained(path, **trust)
            if self.max_model_len is None:  # where config.json has none, the family's
                self.max_model_len = getattr(config, "max_position_embeddings", 2048)
            with torch.device("meta"):
                ghost = AutoModelForCausalLM.from_config(config, **trust)
            wanted, files = ghost.state_dict(), weight_files(path)
            stored = under_our_names(wanted, stored_tensors(files))
            # The others wait: transformers knows more names of a tensor than we do.
            kinds = ("misshapen", "wrong dtype")
            _refuse(path, [p for p in misfits(wanted, stored) if p.startswith(kinds)])
            # By itself it prefers a single file to the index beside it.
            indexed = (path / _INDEX).is_file()
            config.transformers_weights = _INDEX if indexed else files[0].name
            model, found = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=self.model_config.torch_dtype or checkpoint_dtype(hf_config),
                use_safetensors=True,
                output_loading_info=True,
                **trust,
            )
        except (OSError, ValueError):
            raise
        except Exception as error:  # whatever the libraries raise for a broken file
            raise ValueError(
                f"transformers can't load {path}: {type(error).__name__}: {error}"
            ) from error
        problems = [f"missing: {name}" for name in found["missing_keys"]]
        problems += [
            f"unexpected: {name}"
            for name in found["unexpected_keys"]
            if not name.endswith(_COMPUTED)
        ]
        _refuse(path, problems)
        return model.to(device).eval()

    def _check(self, path: Path, hf_config: dict[str, Any]) -> None:
        """Refuse what can be refused without `transformers`."""
        refuse_quantized(path)
        if os.path.lexists(path / "generation_config.json"):
            read_json(path / "generation_config.json")
        layers = hf_config.get("num_hidden_layers")
        if isinstance(layers, int):
            check_layers(path, layers)

    def load_tokenizer(self) -> Any:
        """The tokenizer, padding on the left and with a pad token.

        On the left because generation goes on from the last position: with padding on
        the right a shorter prompt of a batch would go on from its padding.

        Raises:
            FileNotFoundError: there is none.
            ValueError: one that `transformers` can't load, and which file is to blame.
        """
        from transformers import AutoTokenizer

        path = resolve_checkpoint(self.model_config.tokenizer)
        known = ("tokenizer.json", "tokenizer.model", "vocab.json")
        if not any(os.path.lexists(path / file) for file in known):
            raise FileNotFoundError(
                f"{path} holds no tokenizer: none of {', '.join(known)}"
            )
        # transformers reads the model's config too, and makes a list of its layers.
        names = ("config.json", "*token*", "*.jinja", "vocab.json", "merges.txt")
        parts = [file for name in names for file in sorted(path.glob(name))]
        for file in parts:
            found = looks_like(regular(file))
            if file.suffix == ".jinja" and found.startswith("it is a "):
                raise ValueError(f"{file} is no chat template, {found}")
        config = read_json(parts[0]) if parts[0].name == "config.json" else {}
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int) and layers > 100_000:
            raise ValueError(
                f"num_hidden_layers of {parts[0]} is {layers}, more than any model has"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                path,
                use_fast=self.model_config.tokenizer_mode == "auto",
                trust_remote_code=self.model_config.trust_remote_code,
                padding_side="left",
            )
        except Exception as error:  # whatever the libraries raise for a broken file
            for file in parts:
                if file.suffix == ".json":
                    read_json(file)
            raise ValueError(
                f"the tokenizer in {path} ({', '.join(file.name for file in parts)}) "
                f"can't be loaded: {type(error).__name__}: {error}"
            ) from error
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
