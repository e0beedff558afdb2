"""What has to be true of loading a checkpoint (notebook 05)."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from folovllm_lite import model_loader as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.config import ModelConfig

_SUITE = model_loader = Suite(
    package,
    """Judge the loader's functions and ModelLoader, or some of them.

    `checks.model_loader(weight_files=mine)` judges one function,
    `checks.model_loader(module)` all of a module.
    """,
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


# ----- checkpoints small enough to write in a moment


@contextmanager
def _folder(**texts: Any) -> Iterator[Path]:
    """A folder that is gone afterwards; `config={}` writes config.json."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for stem, value in texts.items():
            if not isinstance(value, str):
                value = json.dumps(value, ensure_ascii=False)
            (folder / f"{stem}.json").write_text(value, encoding="utf-8")
        yield folder


class _Model(nn.Module):
    """An embedding [3, 2], a linear layer [2, 2], a buffer [2]; a head, tied or not."""

    def __init__(self, tied: bool = False):
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.layer = nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(2))
        # No part of the state: no file holds it.
        self.register_buffer("ramp", torch.ones(2), persistent=False)
        self.head = nn.Linear(2, 3, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def _numbers(*shape: int, start: int = 1) -> Tensor:
    """Whole numbers that count up, so that each tensor is recognised: float32."""
    count = torch.Size(shape).numel()
    return torch.arange(start, start + count, dtype=torch.float32).view(shape)


def _tensors(tied: bool = False, **changes: Tensor | None) -> dict[str, Tensor]:
    """What fits `_Model`; `changes` have _ for the dot, and None takes one out."""
    tensors: dict[str, Tensor | None] = {
        "embed.weight": _numbers(3, 2, start=10),
        "layer.weight": _numbers(2, 2, start=20),
        "layer.bias": _numbers(2, start=30),
        "scale": _numbers(2, start=40),
        "head.weight": None if tied else _numbers(3, 2, start=50),
    }
    tensors |= {name.replace("_", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _write(folder: Path, tensors: dict[str, Tensor], file: str = _WEIGHTS) -> None:
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / file)


def _write_shards(folder: Path, **shards: dict[str, Tensor]) -> None:
    """One file a shard, and the index that names them."""
    index: dict[str, str] = {}
    for stem, tensors in shards.items():
        _write(folder, tensors, f"{stem}.safetensors")
        index |= dict.fromkeys(tensors, f"{stem}.safetensors")
    (folder / _INDEX).write_text(json.dumps({"weight_map": index}), encoding="utf-8")


def _expect_loaded(given: str, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = model.state_dict()
    for name, tensor in tensors.items():
        expect(f"{given}: {name}", state[name], tensor)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    """What a model holds now, but for what has no memory."""
    state = model.state_dict()
    return {name: t.clone() for name, t in state.items() if not t.is_meta}


def _expect_refused(
    p: SimpleNamespace,
    given: str,
    tensors: dict[str, Tensor],
    *words: str,
    **model: Any,
) -> None:
    """load_weights raises a ValueError that says `words`."""
    with _folder() as folder:
        _write(folder, tensors)
        made = _Model(**model)
        expect_error(given, lambda: p.load_weights(made, folder), ValueError, *words)


# ----- from a name to a directory


@_SUITE.property("resolve_checkpoint", hint="make a Path of it first, then ask is_dir")
def _directory(p: SimpleNamespace) -> None:
    """A directory with a config.json is a checkpoint, named by a str or a Path."""
    with _folder(config={}) as folder:
        for name in (folder, str(folder)):
            got = p.resolve_checkpoint(name)
            expect(f"resolve_checkpoint({type(name).__name__})", got, folder)


@_SUITE.property(
    "resolve_checkpoint",
    hint="an empty folder exists, but nothing can be loaded from it",
)
def _no_checkpoint(p: SimpleNamespace) -> None:
    """A directory without config.json is a FileNotFoundError that says so."""
    with _folder() as folder:
        expect_error(
            "an empty directory",
            lambda: p.resolve_checkpoint(folder),
            FileNotFoundError,
            "config.json",
        )


@_SUITE.property(
    "resolve_checkpoint",
    hint="a Hub name is owner/name: one slash, and no path's start",
)
def _nowhere(p: SimpleNamespace) -> None:
    """What is neither a directory nor a Hub name is refused without asking the Hub."""
    with mock.patch("huggingface_hub.snapshot_download") as download:
        for name in ("qwen", "./qwen", "/no/such/place", "a/b/c", "~/qwen",
                     "~nobody-of-that-name/x", "/" + "a" * 5000):  # fmt: skip
            expect_error(
                f"resolve_checkpoint({name[:30]!r})",
                lambda name=name: p.resolve_checkpoint(name),
                FileNotFoundError,
                name[:100],
            )
        expect("calls of snapshot_download", download.call_count, 0)


@_SUITE.property(
    "resolve_checkpoint",
    hint="snapshot_download takes allow_patterns: what do you need?",
)
def _download(p: SimpleNamespace) -> None:
    """A Hub name is downloaded, its safetensors and JSON files, and no pickle."""
    with (
        _folder(config={}) as folder,
        mock.patch(
            "huggingface_hub.snapshot_download", return_value=str(folder)
        ) as download,
    ):
        expect("the directory", p.resolve_checkpoint("owner/name"), folder)
        patterns = download.call_args.kwargs.get("allow_patterns") or ["*"]
        for file, wanted in (
            ("config.json", True),
            ("model-00001-of-00002.safetensors", True),
            ("tokenizer.json", True),
            ("pytorch_model.bin", False),
        ):
            got = any(fnmatch(file, pattern) for pattern in patterns)
            expect(f"is {file} downloaded", got, wanted)


@_SUITE.property(
    "resolve_checkpoint",
    hint="the hub, its HTTP client and the disk raise errors without a common base",
)
def _no_network(p: SimpleNamespace) -> None:
    """A download that fails, for any reason, is a FileNotFoundError with advice."""
    for error in (OSError("disk"), ValueError("name"), Exception("connection")):
        with mock.patch("huggingface_hub.snapshot_download", side_effect=error):
            expect_error(
                f"resolve_checkpoint('owner/name'), the Hub raises {error!r}",
                lambda: p.resolve_checkpoint("owner/name"),
                FileNotFoundError,
                "owner/name",
            )


# ----- what the JSON files say


@_SUITE.property("read_config", hint="json.loads, of a file that is there")
def _config(p: SimpleNamespace) -> None:
    """config.json comes back as a dict; a missing one is an error with its name."""
    with _folder(config={"hidden_size": 4, "name": "龙"}) as folder:
        wanted = {"hidden_size": 4, "name": "龙"}
        expect("{'hidden_size': 4, 'name': '龙'}", p.read_config(folder), wanted)
    with _folder() as folder:
        call = lambda: p.read_config(folder)  # noqa: E731
        expect_error("no config.json", call, FileNotFoundError, "config.json")


_BROKEN = (
    ("is cut off", '{"a": 1, "b"'),
    ("is empty", ""),
    ("holds a list", '["a"]'),
    ("is a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\nsize 7"),
    ("is a web page", "<!DOCTYPE html><html></html>"),
    ("is 100,000 brackets", "[" * 100_000),
)


@_SUITE.property(
    "read_config", hint="each library has errors of its own: which file was it?"
)
def _broken_config(p: SimpleNamespace) -> None:
    """Whatever else stands where an object belongs is a ValueError that names the
    file.
    """
    for what, text in (*_BROKEN, ("is {}", "{}")):
        with _folder(config=text) as folder:
            call = lambda folder=folder: p.read_config(folder)  # noqa: E731
            expect_error(f"config.json {what}", call, ValueError, "config.json")
    with _folder() as folder:
        (folder / "config.json").write_bytes(b'{"name": "\xe9"}')
        call = lambda: p.read_config(folder)  # noqa: E731
        expect_error("config.json is no UTF-8", call, ValueError, "config.json")
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        expect_error("config.json is a directory", call, ValueError, "config.json")


@_SUITE.property(
    "read_config", hint="a pipe has no end: ask what it is before you open"
)
def _pipe(p: SimpleNamespace) -> None:
    """A pipe in place of a file is refused, and nobody waits for it."""
    if not hasattr(os, "mkfifo"):  # Windows
        return
    with _folder() as folder:
        os.mkfifo(folder / "config.json")
        # Whoever opens it goes on, and finds nothing in it.
        writer = os.open(folder / "config.json", os.O_RDWR | os.O_NONBLOCK)
        os.set_blocking(writer, False)
        try:
            with (
                mock.patch("builtins.open", _no_pipe),
                mock.patch.object(Path, "open", _no_pipe),
            ):
                call = lambda: p.read_config(folder)  # noqa: E731
                expect_error("config.json is a pipe", call, ValueError, "config.json")
        finally:
            os.close(writer)


def _no_pipe(file: Any, *_: Any, **__: Any) -> Any:
    raise OSError(f"{file} was opened, and would have kept you waiting")


@_SUITE.property(
    "checkpoint_dtype", hint="`or` goes on where a key is absent and where it is null"
)
def _dtype(p: SimpleNamespace) -> None:
    """For "auto", the config's "dtype" or older "torch_dtype" counts, else float32."""
    for config, wanted in (
        ({}, torch.float32),
        ({"dtype": "float16"}, torch.float16),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": "torch.bfloat16"}, torch.bfloat16),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, torch.float16),
    ):
        expect(f"config {config}", p.checkpoint_dtype(config), wanted)


@_SUITE.property(
    "checkpoint_dtype", hint="a name that you don't know is no reason to guess float32"
)
def _unknown_dtype(p: SimpleNamespace) -> None:
    """Another dtype is a ValueError that names it."""
    for name in ("float8_e4m3fn", "int8", "float"):
        expect_error(
            f"config {{'dtype': {name!r}}}",
            lambda name=name: p.checkpoint_dtype({"dtype": name}),
            ValueError,
            name,
        )


@_SUITE.property("eos_token_ids", hint="an int, a list and None: three cases, one set")
def _ends(p: SimpleNamespace) -> None:
    """generation_config.json names one token or several; the tokenizer's is added."""
    for ids, own, wanted in (
        (7, None, (7,)),
        ([7, 3], None, (3, 7)),
        ([7, 3], 5, (3, 5, 7)),
        ([7, 3], 3, (3, 7)),
    ):
        with _folder(config={}, generation_config={"eos_token_id": ids}) as folder:
            got = p.eos_token_ids(folder, SimpleNamespace(eos_token_id=own))
            expect(f"generation_config {ids}, tokenizer {own}", got, wanted)


@_SUITE.property("eos_token_ids", hint="0 is a token like any other: ask `is not None`")
def _end_zero(p: SimpleNamespace) -> None:
    """Token 0 can end a text."""
    with _folder(config={}, generation_config={"eos_token_id": 0}) as folder:
        got = p.eos_token_ids(folder, SimpleNamespace(eos_token_id=None))
        expect("generation_config 0, tokenizer None", got, (0,))
    with _folder(config={}) as folder:
        got = p.eos_token_ids(folder, SimpleNamespace(eos_token_id=0))
        expect("no generation_config, tokenizer 0", got, (0,))


@_SUITE.property("eos_token_ids", hint="which types can a JSON file hold there?")
def _end_types(p: SimpleNamespace) -> None:
    """An end that is no token id is a ValueError that names the file and the value."""
    tokenizer = SimpleNamespace(eos_token_id=None)
    for ids in ("7", 7.0, [7, "x"], True, -1, {"a": 1}):
        with _folder(config={}, generation_config={"eos_token_id": ids}) as folder:
            call = lambda folder=folder: p.eos_token_ids(folder, tokenizer)  # noqa: E731
            given = f"eos_token_id of generation_config.json is {ids!r}"
            name = "generation_config.json"
            expect_error(given, call, ValueError, name, repr(ids))


@_SUITE.property(
    "eos_token_ids", hint="which file do you open first, and when the next?"
)
def _end_files(p: SimpleNamespace) -> None:
    """config.json counts only where generation_config.json names no end."""
    tokenizer = SimpleNamespace(eos_token_id=None)
    for generation, wanted in (({"eos_token_id": 7}, (7,)), ({}, (3,)), (None, (3,))):
        files = {} if generation is None else {"generation_config": generation}
        with _folder(config={"eos_token_id": 3}, **files) as folder:
            given = f"config 3, generation_config {generation}"
            expect(given, p.eos_token_ids(folder, tokenizer), wanted)


@_SUITE.property(
    "default_sampling_params", hint="eight names of that file count, and one is renamed"
)
def _defaults(p: SimpleNamespace) -> None:
    """generation_config.json says how to sample where nobody asks for anything."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty",
             "max_tokens", "n", "presence_penalty", "frequency_penalty")  # fmt: skip
    plain = [1.0, -1, 1.0, 0.0, 1.0, 16, 1, 0.0, 0.0]
    for given, wanted in (
        (None, plain),
        ({}, plain),
        ({"eos_token_id": 3, "do_sample": True}, plain),
        ({"do_sample": False}, plain),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1,
          "repetition_penalty": 1.1}, [0.6, 20, 0.95, 0.1, 1.1, 16, 1, 0.0, 0.0]),
        ({"presence_penalty": 1.5, "frequency_penalty": -0.5}, [*plain[:7], 1.5, -0.5]),
        ({"max_new_tokens": 5, "top_p": None}, [*plain[:5], 5, *plain[6:]]),
        ({"top_k": 0}, plain),
        ({"temperature": 0}, [0, *plain[1:]]),
    ):  # fmt: skip
        files = {} if given is None else {"generation_config": given}
        with _folder(config={}, **files) as folder:
            made = p.default_sampling_params(folder)
            got = [getattr(made, name) for name in names]
            expect(f"generation_config.json {given}: {', '.join(names)}", got, wanted)
    with _folder(generation_config={"top_p": 7}) as folder:
        call = lambda: p.default_sampling_params(folder)  # noqa: E731
        names = ("generation_config.json", "top_p", "7")
        expect_error("top_p of generation_config.json is 7", call, ValueError, *names)


@_SUITE.property(
    "quantization_config", hint="config.json has a place for it; older tools had files"
)
def _quantization(p: SimpleNamespace) -> None:
    """The method by which weights were quantized is found, or None."""
    for files, wanted in (
        ({"config": {}}, None),
        ({"config": {"quantization_config": None}}, None),
        ({"config": {"quantization_config": {"quant_method": "AWQ"}}}, "awq"),
        ({"config": {"compression_config": {"quant_method": "x"}}}, "x"),
        ({"config": {}, "quantize_config": {"bits": 4}}, "gptq"),
        ({"config": {}, "quant_config": {"w_bit": 4}}, "awq"),
        ({"quantize_config": {"bits": 4, "quant_method": "marlin"}}, "marlin"),
        (
            {
                "config": {"quantization_config": {"quant_method": "awq"}},
                "quantize_config": {"bits": 4},
            },
            "awq",
        ),
    ):
        with _folder(**files) as folder:
            found = p.quantization_config(folder)
            expect(f"{files}", found and found["quant_method"], wanted)
    files = {"config": {"quantization_config": {"bits": 4, "quant_method": "gptq"}}}
    with _folder(**files) as folder:
        expect(f"{files}: bits", p.quantization_config(folder)["bits"], 4)
    with _folder(config={"quantization_config": "awq"}) as folder:
        call = lambda: p.quantization_config(folder)  # noqa: E731
        given = "config.json: quantization_config is the text 'awq'"
        expect_error(given, call, ValueError, "awq")


# ----- which files hold the weights


def _names(paths: list[Path]) -> list[str]:
    return [Path(path).name for path in paths]


@_SUITE.property(
    "weight_files", hint="the map's values are files, and each stands there many times"
)
def _shards(p: SimpleNamespace) -> None:
    """With an index the files are those that it names, each once, in order."""
    with _folder() as folder:
        _write_shards(
            folder,
            b={"x": _numbers(1), "y": _numbers(1)},
            a={"z": _numbers(1)},
        )
        given = "index: x and y in b.safetensors, z in a.safetensors"
        wanted = ["a.safetensors", "b.safetensors"]
        expect(given, _names(p.weight_files(folder)), wanted)
        _write(folder, {"x": _numbers(1)}, "old.safetensors")
        given += "; old.safetensors lies there too"
        expect(given, _names(p.weight_files(folder)), wanted)
        _write(folder, {"x": _numbers(1)})
        given += ", and model.safetensors"
        expect(given, _names(p.weight_files(folder)), wanted)


@_SUITE.property(
    "weight_files", hint="look for every file that the index names before you return"
)
def _missing_shard(p: SimpleNamespace) -> None:
    """A shard that the index names and the folder lacks is a FileNotFoundError."""
    with _folder() as folder:
        _write_shards(folder, a={"x": _numbers(1)}, b={"y": _numbers(1)})
        (folder / "b.safetensors").unlink()
        given = "index: a and b.safetensors; b.safetensors is gone"
        call = lambda: p.weight_files(folder)  # noqa: E731
        expect_error(given, call, FileNotFoundError, "b.safetensors")
        _write(folder, {"x": _numbers(1), "y": _numbers(1)})
        given += f", and {_WEIGHTS} is there"
        expect_error(given, call, FileNotFoundError, "b.safetensors")


@_SUITE.property(
    "weight_files", hint="one file has the name of the model; the rest needs an index"
)
def _one_file(p: SimpleNamespace) -> None:
    """Without an index it is model.safetensors, or the only file, or a ValueError."""
    one = {"x": _numbers(1)}
    with _folder() as folder:
        _write(folder, one, "b.safetensors")
        expect("b.safetensors", _names(p.weight_files(folder)), ["b.safetensors"])
        _write(folder, one, "a.safetensors")
        expect_error(
            "a.safetensors, b.safetensors, no index",
            lambda: p.weight_files(folder),
            ValueError,
            "a.safetensors",
            "b.safetensors",
        )
        _write(folder, one)
        given = "a.safetensors, b.safetensors, model.safetensors, no index"
        expect(given, _names(p.weight_files(folder)), [_WEIGHTS])


@_SUITE.property(
    "weight_files", hint="the index is somebody's text: where do its names lead?"
)
def _outside(p: SimpleNamespace) -> None:
    """A file outside the folder is refused; a link in the folder is followed."""
    one = {"x": _numbers(1)}
    with _folder() as other, _folder() as folder:
        _write(other, one, "x.safetensors")
        _write(folder, one, "a.safetensors")
        for name in (f"../{other.name}/x.safetensors", str(other / "x.safetensors")):
            _index(folder, {"x": name})
            call = lambda: p.weight_files(folder)  # noqa: E731
            expect_error(f"index: x in {name}", call, ValueError, _INDEX, name)
        near = folder.parent / f"{folder.name}-secret"  # the same letters go on
        near.mkdir()
        try:
            _write(near, one, "x.safetensors")
            name = f"../{near.name}/x.safetensors"
            _index(folder, {"x": name})
            expect_error(f"index: x in {name}", call, ValueError, _INDEX, name)
        finally:
            shutil.rmtree(near)
        _index(folder, {"x": "b/../a.safetensors"})
        (folder / "b").mkdir()
        got = [file.is_file() for file in p.weight_files(folder)]
        expect("index: x in b/../a.safetensors, which is inside", got, [True])
        _write(folder / "b", one, "c.safetensors")
        _index(folder, {"x": "b/c.safetensors"})
        got = [file.is_file() for file in p.weight_files(folder)]
        expect("index: x in b/c.safetensors, which is inside", got, [True])
        try:
            (folder / "link.safetensors").symlink_to(other / "x.safetensors")
        except OSError:  # Windows lets few users make links
            return
        _index(folder, {"x": "link.safetensors"})
        given = "index: x in link.safetensors, a link as in the cache of the Hub"
        expect(given, _names(p.weight_files(folder)), ["link.safetensors"])


def _index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / _INDEX).write_text(text, encoding="utf-8")


@_SUITE.property(
    "weight_files", hint="an index is a JSON file like the config, and broken like it"
)
def _broken_index(p: SimpleNamespace) -> None:
    """An index that is broken, or maps to no files, is a ValueError that names it."""
    cases = [(what, text) for what, text in _BROKEN]
    cases += [
        (f"is {text}", text)
        for text in ("{}", '{"weight_map": []}', '{"weight_map": {"x": 1}}',
                     '{"weight_map": {}}', '{"weight_map": ["a"]}',
                     '{"weight_map": {"x": "model.safetensors", "y": 1}}')
    ]  # fmt: skip
    for what, text in cases:
        with _folder() as folder:
            _write(folder, {"x": _numbers(1)})
            (folder / _INDEX).write_text(text, encoding="utf-8")
            call = lambda folder=folder: p.weight_files(folder)  # noqa: E731
            expect_error(f"the index {what}", call, ValueError, _INDEX)


@_SUITE.property(
    "weight_files", hint="look for pickles only to explain what is missing"
)
def _pickles(p: SimpleNamespace) -> None:
    """Pickles are never returned; a folder with nothing else is a ValueError that names
    them.
    """
    with _folder() as folder:
        call = lambda: p.weight_files(folder)  # noqa: E731
        expect_error("an empty folder", call, FileNotFoundError)
        for name in ("pytorch_model.bin", "weights.pt", "weights.pth", "x.ckpt"):
            (folder / name).write_bytes(b"")
            expect_error(f"only {name}", call, ValueError, name)
        _write(folder, {"x": _numbers(1)}, "b.safetensors")
        got = _names(p.weight_files(folder))
        expect("b.safetensors next to pickles", got, ["b.safetensors"])
        _write(folder, {"x": _numbers(1)})
        given = f"{_WEIGHTS} next to pickles"
        expect(given, _names(p.weight_files(folder)), [_WEIGHTS])


# ----- strict loading


@_SUITE.property("load_weights", hint="state_dict holds parameters and buffers by name")
def _arrive(p: SimpleNamespace) -> None:
    """Every parameter and buffer gets the file's numbers."""
    with _folder() as folder:
        _write(folder, _tensors())
        model = _Model()
        held = dict(model.named_parameters())
        p.load_weights(model, folder)
        _expect_loaded("a checkpoint that fits", model, _tensors())
        for name, parameter in held.items():
            given = f"a checkpoint that fits: {name}, as somebody held it before"
            expect(given, parameter, _tensors()[name])
    with _folder() as folder:
        _write(folder, {"gain": torch.tensor(7.0)})
        model = nn.Module()
        model.register_buffer("gain", torch.tensor(1.0))
        p.load_weights(model, folder)
        expect("a buffer without dimensions, the file says 7", model.gain, 7.0)


@_SUITE.property("load_weights", hint="what the model wants, minus what you have seen")
def _missing(p: SimpleNamespace) -> None:
    """A tensor that the file lacks is an error: no layer is left random."""
    _expect_refused(p, "no layer.bias", _tensors(layer_bias=None), "layer.bias")
    _expect_refused(p, "no scale, a buffer", _tensors(scale=None), "scale")


@_SUITE.property(
    "load_weights", hint="look at each name of the file: who asked for it?"
)
def _unexpected(p: SimpleNamespace) -> None:
    """A tensor that the model lacks is an error: it was trained with it."""
    tensors = _tensors(layer_gate=_numbers(2))
    _expect_refused(p, "layer.gate", tensors, "layer.gate")


@_SUITE.property(
    "load_weights", hint="copy_ stretches [1] to [2] without a word: compare the shapes"
)
def _misshapen(p: SimpleNamespace) -> None:
    """A tensor of another shape is an error that gives both, even where it would
    stretch.
    """
    for shape in ([1], [3], [1, 2]):
        _expect_refused(
            p,
            f"layer.bias is {shape}, the model's is [2]",
            _tensors(layer_bias=_numbers(*shape)),
            "layer.bias",
            str(shape),
            "[2]",
        )
    _expect_refused(
        p,
        "embed.weight is [2, 3], the model's is [3, 2]",
        _tensors(embed_weight=_numbers(2, 3)),
        "embed.weight",
        "[2, 3]",
        "[3, 2]",
    )
    for shape in ([2, 2], [1, 2]):
        given = f"tied, head.weight is {shape}, the model's is [3, 2]"
        tensors = _tensors(head_weight=_numbers(*shape))
        words = ("head.weight", str(shape), "[3, 2]")
        _expect_refused(p, given, tensors, *words, tied=True)


@_SUITE.property("load_weights", hint="collect lines in a list; raise once, at the end")
def _one_message(p: SimpleNamespace) -> None:
    """All that doesn't fit stands in one message."""
    tensors = _tensors(
        layer_bias=None, scale=None, layer_gate=_numbers(2), embed_weight=_numbers(2, 3)
    )
    _expect_refused(
        p,
        "no layer.bias, no scale, layer.gate, embed.weight is [2, 3]",
        tensors,
        "layer.bias",
        "scale",
        "layer.gate",
        "embed.weight",
    )
    given = "tied, head.weight differs from embed.weight, no scale"
    tensors = _tensors(scale=None, head_weight=_numbers(3, 2))
    _expect_refused(p, given, tensors, "scale", "head.weight", tied=True)


@_SUITE.property(
    "load_weights",
    hint="the headers say all that you need to decide: compare, then copy",
)
def _all_or_nothing(p: SimpleNamespace) -> None:
    """A checkpoint that is refused leaves the model as it was."""
    whole = _numbers(2).to(torch.int64)
    for given, tied, changes in (
        ("no head.weight", False, {"head_weight": None}),
        ("scale is [3]", False, {"scale": _numbers(3)}),
        ("scale is in int64", False, {"scale": whole}),
        ("layer.gate too", False, {"layer_gate": _numbers(2)}),
        ("head.weight is tied, and differs", True, {"head_weight": _numbers(3, 2)}),
    ):
        with _folder() as folder:
            _write(folder, _tensors(tied, **changes))
            model = _Model(tied)
            before = _copy(model)
            call = lambda m=model, f=folder: p.load_weights(m, f)  # noqa: E731
            expect_error(given, call, ValueError)
            _expect_loaded(f"{given}, afterwards", model, before)
    first, second = _halves()
    with _folder() as folder:
        _write_shards(folder, a=first, b={**second, "layer.bias": _numbers(2)})
        model = _Model()
        before = _copy(model)
        call = lambda: p.load_weights(model, folder)  # noqa: E731
        given = "layer.bias in both shards"
        expect_error(given, call, ValueError)
        _expect_loaded(f"{given}, afterwards", model, before)
        _write_shards(folder, a=first, b=second)
        file = folder / "b.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        given = "two shards, the second is cut off"
        expect_error(given, call, ValueError, "b.safetensors")
        _expect_loaded(f"{given}, afterwards", model, before)


def _halves() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What fits `_Model`, for two shards."""
    first, second = _tensors(scale=None, head_weight=None), _tensors()
    return first, {name: second[name] for name in ("scale", "head.weight")}


@_SUITE.property(
    "load_weights",
    hint="the parameter keeps its dtype: copy_ into it, don't replace it",
)
def _cast(p: SimpleNamespace) -> None:
    """Floats are cast to the dtype of the parameter; integers are refused, and so is
    float8, whose scales stand elsewhere.
    """
    with _folder() as folder:
        for stored in (torch.float16, torch.float64):
            _write(folder, {name: t.to(stored) for name, t in _tensors().items()})
            for dtype in (torch.float32, torch.bfloat16):
                model = _Model().to(dtype)
                p.load_weights(model, folder)
                given = f"a file in {stored}, a model in {dtype}: layer.weight"
                expect(f"{given}.dtype", model.layer.weight.dtype, dtype)
                expect(given, model.layer.weight, _tensors()["layer.weight"])
    whole = _numbers(2).to(torch.int64)
    _expect_refused(
        p, "layer.bias in int64", _tensors(layer_bias=whole), "layer.bias", "int64"
    )
    small = _numbers(2).to(torch.float8_e4m3fn)
    _expect_refused(
        p, "layer.bias in float8", _tensors(layer_bias=small), "layer.bias", "float8"
    )


@_SUITE.property(
    "load_weights",
    hint="two names, one parameter: state_dict(keep_vars=True) gives the object itself",
)
def _tied(p: SimpleNamespace) -> None:
    """A tied head may be left out, and stays tied; a head of its own may not."""
    with _folder() as folder:
        _write(folder, _tensors(tied=True))
        model = _Model(tied=True)
        p.load_weights(model, folder)
        _expect_loaded("tied, no head.weight", model, _tensors(tied=True))
        same = model.head.weight is model.embed.weight
        expect("tied: is head.weight still embed.weight", same, True)
    given = "not tied, no head.weight"
    _expect_refused(p, given, _tensors(head_weight=None), "head.weight")
    given = "tied, head.weight and no embed.weight, which is the owner"
    tensors = _tensors(embed_weight=None)
    _expect_refused(p, given, tensors, "embed.weight", tied=True)


def _other_heads() -> Iterator[tuple[str, Tensor]]:
    """Heads that differ from the embedding of `_tensors`, and in what."""
    embedding = _tensors()["embed.weight"]
    yield "the head differs from the embedding", embedding + 1
    last = embedding + torch.tensor([[0.0], [0], [1]])
    yield "the last row of the head differs from the embedding's", last
    yield "the head has the embedding's rows in another order", embedding.flip(0)
    near = embedding.clone()
    near[-1, -1] += 2**-20
    yield "one number of the head differs from the embedding's by 1e-6", near


@_SUITE.property(
    "load_weights", hint="before you let one win, compare the two that are in the file"
)
def _tied_twice(p: SimpleNamespace) -> None:
    """A tied head may be in the file too, with the same numbers and no others."""
    embedding = _tensors()["embed.weight"]
    for dtype in (torch.float32, torch.float16):  # whole numbers: the same in both
        with _folder() as folder:
            head = embedding.clone().to(dtype)
            _write(folder, _tensors(head_weight=head))
            model = _Model(tied=True)
            p.load_weights(model, folder)
            given = f"tied, head.weight the same, in {dtype}"
            _expect_loaded(given, model, _tensors(tied=True))
    for given, head in _other_heads():
        changed = _tensors(head_weight=head)
        words = ("head.weight", "embed.weight")
        _expect_refused(p, f"tied, {given}", changed, *words, tied=True)


@_SUITE.property(
    "load_weights", hint="weight_files says which; read them all, then judge"
)
def _from_shards(p: SimpleNamespace) -> None:
    """Shards give what one file gives; a tensor that is in two of them is an error."""
    first, second = _halves()
    with _folder() as folder:
        _write_shards(folder, a=first, b=second)
        model = _Model()
        p.load_weights(model, folder)
        _expect_loaded("two shards", model, _tensors())
    with _folder() as folder:
        _write_shards(folder, a=first, b={**second, "layer.bias": _numbers(2)})
        expect_error(
            "layer.bias in both shards",
            lambda: p.load_weights(_Model(), folder),
            ValueError,
            "layer.bias",
        )


@_SUITE.property(
    "load_weights", hint="safetensors has an error of its own: translate it"
)
def _cut_off(p: SimpleNamespace) -> None:
    """A file that is cut off is a ValueError that names it."""
    for keep in (0, 7, 60, -1):
        with _folder() as folder:
            _write(folder, _tensors())
            whole = (folder / _WEIGHTS).read_bytes()
            (folder / _WEIGHTS).write_bytes(whole[:keep])
            given = f"the first {keep} bytes" if keep >= 0 else "all but the last byte"
            call = lambda f=folder: p.load_weights(_Model(), f)  # noqa: E731
            expect_error(given, call, ValueError, _WEIGHTS)


@_SUITE.property("load_weights", hint="what does copy_ do to a tensor without memory?")
def _still_meta(p: SimpleNamespace) -> None:
    """A model that is still on the meta device is refused: copies to it vanish."""
    names = list(_Model().state_dict())
    for given, ghosts, more in (
        ("a model on the meta device", names, {}),
        ("scale, a buffer, is on the meta device", ["scale"], {}),
        ("head.weight is on the meta device", ["head.weight"], {}),
        ("the same, and layer.gate", ["head.weight"], {"layer_gate": _numbers(2)}),
    ):
        model = _Model()
        for name in ghosts:
            owner, _, leaf = name.rpartition(".")
            tensor = model.state_dict()[name].to("meta")
            if name != "scale":
                tensor = nn.Parameter(tensor)
            setattr(model.get_submodule(owner), leaf, tensor)
        before = _copy(model)
        with _folder() as folder:
            _write(folder, _tensors(**more))
            call = lambda m=model, f=folder: p.load_weights(m, f)  # noqa: E731
            gate = ["layer.gate"] if more else []
            expect_error(given, call, ValueError, *ghosts, *gate)
            _expect_loaded(f"{given}, afterwards", model, before)


class _Wrapped(nn.Module):
    """A `_Model` called "model", as in a language model."""

    def __init__(self):
        super().__init__()
        self.model = _Model()


@_SUITE.property(
    "load_weights", hint="who saved only the backbone left out the name of the whole"
)
def _backbone(p: SimpleNamespace) -> None:
    """Names without the leading "model." load, and no tensor comes under both names."""
    for given, prefix in (("'model.'", "model."), ("nothing", "")):
        with _folder() as folder:
            _write(folder, {prefix + name: t for name, t in _tensors().items()})
            wrapped = _Wrapped()
            p.load_weights(wrapped, folder)
            _expect_loaded(f"{given} before the names", wrapped.model, _tensors())
    with _folder() as folder:
        _write(folder, {**_tensors(), "model.scale": _numbers(2)})
        call = lambda: p.load_weights(_Wrapped(), folder)  # noqa: E731
        expect_error("scale and model.scale", call, ValueError, "model.scale")


@_SUITE.property(
    "load_weights", hint="old exports hold tables that the model computes for itself"
)
def _old_tables(p: SimpleNamespace) -> None:
    """A table of angles, …rotary_emb.inv_freq, is left out; any other name isn't."""
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    with _folder() as folder:
        _write(folder, {**_tensors(), old: _numbers(4)})
        model = _Model()
        p.load_weights(model, folder)
        _expect_loaded(f"{old} too", model, _tensors())
    for other in ("inv_freq_scale", "rotary_emb.cos", "inv_freq"):
        tensors = {**_tensors(), other: _numbers(4)}
        _expect_refused(p, f"{other} too", tensors, other)


@_SUITE.property("load_weights", hint="read what config.json says of the weights first")
def _quantized(p: SimpleNamespace) -> None:
    """Quantized weights are refused by the method's name, even where they would fit."""
    settings = {"quantization_config": {"quant_method": "awq"}}
    with _folder(config=settings) as folder:
        _write(folder, _tensors())
        call = lambda: p.load_weights(_Model(), folder)  # noqa: E731
        expect_error("config.json says awq", call, ValueError, "awq")
        _write(folder, _tensors(layer_bias=None, layer_gate=_numbers(2)))
        given = "config.json says awq, and the names don't fit"
        expect_error(given, call, ValueError, "awq")


@_SUITE.property("check_layers", hint="the names of the tensors hold the numbers")
def _layers(p: SimpleNamespace) -> None:
    """The config's number of layers is held to the weights', by the names alone."""
    names = [f"model.layers.{i}.norm" for i in range(11)]
    with _folder(config={}) as folder:
        _write(folder, {name: _numbers(1) for name in [*names, "model.embed"]})
        p.check_layers(folder, 11)
        for count in (10, 12, 2**31 - 1):
            call = lambda count=count: p.check_layers(folder, count)  # noqa: E731
            given = f"weights of layers 0 to 10, {count} in the config"
            expect_error(given, call, ValueError, "11", str(count))
    with _folder(config={}) as folder:
        few = ("model.layers.0.norm", "model.layers.2.norm")
        _write(folder, {name: _numbers(1) for name in few})
        call = lambda: p.check_layers(folder, 2)  # noqa: E731
        given = "weights of layers 0 and 2, 2 in the config"
        expect_error(given, call, ValueError, "2")
    with _folder(config={}) as folder:
        _write(folder, {"layers.2.norm": _numbers(1)})
        call = lambda: p.check_layers(folder, 3)  # noqa: E731
        expect_error("one tensor, of layer 2, 3 in the config", call, ValueError, "3")
    with _folder(config={}) as folder:
        _write(folder, {f"embed{i}": _numbers(1) for i in range(6)})
        expect("6 tensors, no layers, 5", p.check_layers(folder, 5), None)
        call = lambda: p.check_layers(folder, 2**31 - 1)  # noqa: E731
        given = "6 tensors, no layers, 2147483647 in the config"
        expect_error(given, call, ValueError, "2147483647")


# ----- the peer


_SIZES = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 8,
    "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 4,
    "max_position_embeddings": 32, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip


def _hf_tensors() -> dict[str, Tensor]:
    """What a Qwen3 of `_SIZES` wants: one layer, a tied head."""
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (8, 4),
        "model.norm": (4,),
        **{
            f"{layer}self_attn.{name}": (4, 4)
            for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        },
        **{f"{layer}self_attn.{name}": (4,) for name in ("q_norm", "k_norm")},
        **{f"{layer}mlp.{n}": (4, 4) for n in ("gate_proj", "up_proj", "down_proj")},
        f"{layer}input_layernorm": (4,),
        f"{layer}post_attention_layernorm": (4,),
    }
    return {f"{name}.weight": _numbers(*shape) / 64 for name, shape in shapes.items()}


@contextmanager
def _hf_checkpoint(**tokens: str) -> Iterator[Path]:
    """A checkpoint that `transformers` reads: words a to e, [UNK], <end>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[UNK]", "<end>", *"abcde"])}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}
    with _folder(config=_SIZES, tokenizer_config=settings) as folder:
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        _write(folder, _hf_tensors())
        with _quiet():
            yield folder


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading these takes no time, and the lines of the checks stay together.

    `transformers`' report on what it didn't load stays away too.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@_SUITE.property(
    "ModelLoader", hint="generation goes on from the last position of a row"
)
def _padding(p: SimpleNamespace) -> None:
    """The tokenizer pads on the left, so that every row ends in its own last token."""
    with _hf_checkpoint(eos_token="<end>") as folder:
        tokenizer = p.ModelLoader(ModelConfig(str(folder))).load_tokenizer()
        got = tokenizer(["a", "b c d"], padding=True).input_ids
        expect("'a' and 'b c d', padded", got, [[1, 1, 2], [3, 4, 5]])


@_SUITE.property(
    "ModelLoader", hint="the end of a text pads best; without one, add a token"
)
def _pad_token(p: SimpleNamespace) -> None:
    """A tokenizer without a pad token gets one: its end of text, or a new one."""
    for tokens, wanted in (
        ({"eos_token": "<end>", "pad_token": "[UNK]"}, "[UNK]"),
        ({"eos_token": "<end>"}, "<end>"),
    ):
        with _hf_checkpoint(**tokens) as folder:
            tokenizer = p.ModelLoader(ModelConfig(str(folder))).load_tokenizer()
            expect(f"{tokens}: pad_token", tokenizer.pad_token, wanted)
    with _hf_checkpoint() as folder:
        tokenizer = p.ModelLoader(ModelConfig(str(folder))).load_tokenizer()
        if tokenizer.pad_token_id is None:
            fail("neither eos nor pad: pad_token_id", None, "an id")


@_SUITE.property(
    "ModelLoader", hint="dtype 'auto' is for you to resolve: read the config"
)
def _hf_model(p: SimpleNamespace) -> None:
    """The model has the checkpoint's numbers, the dtype that was asked for, and is in
    eval mode.
    """
    with _hf_checkpoint() as folder:
        for name, dtype in (("auto", torch.bfloat16), ("float32", torch.float32)):
            config = ModelConfig(str(folder), dtype=name)
            model = p.ModelLoader(config).load_model("cpu")
            given = f"dtype {name!r}, the checkpoint says bfloat16"
            expect(f"{given}: dtypes", {t.dtype for t in model.parameters()}, {dtype})
            expect(f"{given}: model.training", model.training, False)
            wanted = {n: t.to(dtype) for n, t in _hf_tensors().items()}
            _expect_loaded(given, model, wanted)


@_SUITE.property(
    "ModelLoader",
    hint="from_pretrained knows what it didn't load: which argument makes it tell you?",
)
def _hf_strict(p: SimpleNamespace) -> None:
    """The model is loaded as strictly: a missing, unexpected or misshapen tensor is a
    ValueError that names it.
    """
    norm, other = "model.norm.weight", "model.norm.scale"
    for given, without, extra, words in (
        (f"no {norm}", [norm], [], [norm]),
        (f"{other} too", [], [other], [other]),
        (f"{norm} is called {other}", [norm], [other], [norm, other]),
        (f"{norm} is [5]", [norm], [norm], [norm, "[5]", "[4]"]),
    ):
        with _hf_checkpoint() as folder:
            tensors = {n: t for n, t in _hf_tensors().items() if n not in without}
            more = {name: _numbers(5 if name == norm else 4) for name in extra}
            _write(folder, {**tensors, **more})
            loader = p.ModelLoader(ModelConfig(str(folder)))
            call = lambda loader=loader: type(loader.load_model("cpu"))  # noqa: E731
            expect_error(given, call, ValueError, *words)


@_SUITE.property("ModelLoader", hint="transformers has a rule of its own: tell it")
def _same_files(p: SimpleNamespace) -> None:
    """With an index and a single file side by side it loads what weight_files says."""
    with _hf_checkpoint() as folder:
        _write(folder, {n: t + 1 for n, t in _hf_tensors().items()}, "a.safetensors")
        _index(folder, dict.fromkeys(_hf_tensors(), "a.safetensors"))
        config = ModelConfig(str(folder), dtype="float32")
        model = p.ModelLoader(config).load_model("cpu")
        wanted = {n: t + 1 for n, t in _hf_tensors().items()}
        given = f"the index names a.safetensors, {_WEIGHTS} stands beside it"
        _expect_loaded(given, model, wanted)


@_SUITE.property(
    "ModelLoader", hint="what is refused for our model is refused here too"
)
def _hf_refuses(p: SimpleNamespace) -> None:
    """Quantized weights, float8 and a wrong number of layers are ValueErrors."""
    norm = "model.norm.weight"
    small = {norm: _hf_tensors()[norm].to(torch.float8_e4m3fn)}
    for given, changes, tensors, words in (
        ("awq", {"quantization_config": {"quant_method": "awq"}}, {}, ["awq"]),
        (f"{norm} in float8", {}, small, [norm]),
        ("2**31 - 1 layers", {"num_hidden_layers": 2**31 - 1}, {}, [str(2**31 - 1)]),
    ):
        with _hf_checkpoint() as folder:
            text = json.dumps({**_SIZES, **changes})
            (folder / "config.json").write_text(text, encoding="utf-8")
            _write(folder, {**_hf_tensors(), **tensors})
            loader = p.ModelLoader(ModelConfig(str(folder)))
            call = lambda loader=loader: type(loader.load_model("cpu"))  # noqa: E731
            expect_error(given, call, ValueError, *words)


@_SUITE.property(
    "ModelLoader", hint="a broken file of the tokenizer: which one was it?"
)
def _hf_tokenizer(p: SimpleNamespace) -> None:
    """A tokenizer that can't be read is a ValueError that names the file."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for what, text in _BROKEN:
            with _hf_checkpoint() as folder:
                (folder / name).write_text(text, encoding="utf-8")
                loader = p.ModelLoader(ModelConfig(str(folder)))
                call = lambda made=loader: type(made.load_tokenizer())  # noqa: E731
                expect_error(f"{name} {what}", call, ValueError, name)


@_SUITE.property("ModelLoader", hint="keep the answer on the loader, not on the config")
def _length(p: SimpleNamespace) -> None:
    """max_model_len comes from the checkpoint unless it is given, and the config stays
    as it was.
    """
    with _hf_checkpoint() as folder:
        for given, wanted in ((None, 32), (8, 8)):
            config = ModelConfig(str(folder), max_model_len=given)
            loader = p.ModelLoader(config)
            loader.load_model("cpu")
            said = f"the checkpoint says 32, max_model_len={given}"
            expect(f"{said}: loader.max_model_len", loader.max_model_len, wanted)
            expect(f"{said}: config.max_model_len", config.max_model_len, given)


@_SUITE.property("ModelLoader", hint="model.parameters() gives a shared parameter once")
def _statistics(p: SimpleNamespace) -> None:
    """parameter_statistics counts tied parameters once, and bytes by dtype."""
    model = _Model(tied=True)
    model.layer.half().requires_grad_(False)
    wanted = {
        "parameters": 12,
        "trainable": 6,
        "bytes": 36,
        "bytes_by_dtype": {"float32": 24, "float16": 12},
    }
    got = p.ModelLoader.parameter_statistics(model)
    given = "embed [3, 2] float32 tied to head; layer [2, 2] and [2] float16, frozen"
    expect(given, got, wanted)


@_SUITE.property("get_model_and_tokenizer", hint="hand the config to a ModelLoader")
def _both(p: SimpleNamespace) -> None:
    """get_model_and_tokenizer gives both, ready to use together."""
    with _hf_checkpoint(eos_token="<end>") as folder:
        model, tokenizer = p.get_model_and_tokenizer(ModelConfig(str(folder)), "cpu")
        batch = tokenizer(["a", "b c"], padding=True, return_tensors="pt")
        got = list(model(**batch).logits.shape)
        expect("shape of the logits of 'a' and 'b c'", got, [2, 2, 8])


# ----- the exercises


class _Puzzle(nn.Module):
    """The model of exercise 1."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("scale", torch.ones(4))
        self.register_buffer("angles", torch.ones(2), persistent=False)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def _puzzle() -> set[str]:
    """The lines that the package's loader writes about exercise 1, without details."""
    tensors = {
        "embed.weight": _numbers(6, 4),
        "mix.weight": _numbers(4, 4).half(),
        "mix.bias": _numbers(1),
        "norm.weight": _numbers(4),
        "norm.gamma": _numbers(4),
        "angles": _numbers(2),
    }
    with _folder() as folder:
        _write(folder, tensors)
        try:
            package.load_weights(_Puzzle(), folder)
        except ValueError as error:
            lines = str(error).splitlines()[1:]
    return {line.strip().split(" is ")[0] for line in lines}


_KINDS = ("missing", "unexpected", "misshapen", "wrong dtype", "twice", "not tied")


def _predicted(p: SimpleNamespace) -> list[str]:
    """What predict_complaints returns, if its lines have the form that was asked."""
    lines = p.predict_complaints()
    if not isinstance(lines, list | tuple | set):
        fail("predict_complaints()", repr(lines), "a list of strings")
    for line in lines:
        kind, _, name = str(line).partition(": ")
        if kind not in _KINDS or not name or " " in name:
            wanted = f"'kind: name' and no more; kinds are {', '.join(_KINDS)}"
            fail("the form of your lines", repr(line), wanted)
    return list(lines)


@_SUITE.property(
    "predict_complaints", hint="take each line of the file: who asked for this name?"
)
def _no_false_alarm(p: SimpleNamespace) -> None:
    """Every complaint that you predict is made."""
    for line in _predicted(p):
        if line not in _puzzle():
            fail(f"your line {line!r}", "load_weights doesn't say that", "no such line")


@_SUITE.property(
    "predict_complaints",
    hint="what does a state_dict hold besides weights, what does it leave out, and is "
    "a shape that copy_ would stretch a fit?",
)
def _no_silence(p: SimpleNamespace) -> None:
    """Every complaint that is made is predicted."""
    predicted, said = set(_predicted(p)), _puzzle()
    if said - predicted:
        kinds = sorted(line.split(":")[0] for line in said - predicted)
        fail(
            f"your {len(predicted)} lines",
            f"{len(kinds)} more of load_weights, of the kinds {', '.join(kinds)}",
            "none more",
        )


def _prefixed(**changes: Tensor | None) -> dict[str, Tensor]:
    return {f"module.{name}": t for name, t in _tensors(**changes).items()}


def _strip(name: str) -> str | None:
    """The rename of the checks: a prefix goes, and tables of angles are left out."""
    return None if "angles" in name else name.removeprefix("module.")


@_SUITE.property(
    "load_renamed", hint="a tensor has two names now: which one is in the file?"
)
def _renamed(p: SimpleNamespace) -> None:
    """Tensors arrive under the names that `rename` gives, from one file or shards."""
    halves = sorted(_prefixed().items())
    small = {name: t.half() for name, t in halves}
    for given, shards in (
        ("names with 'module.' in front", {"a": dict(halves)}),
        ("the same in two shards", {"a": dict(halves[:2]), "b": dict(halves[2:])}),
        ("the same in float16", {"a": small}),
    ):
        with _folder() as folder:
            _write_shards(folder, **shards)
            files = {file: file.read_bytes() for file in folder.iterdir()}
            model = _Model()
            held = dict(model.named_parameters())
            p.load_renamed(model, folder, _strip)
            _expect_loaded(given, model, _tensors())
            for name, parameter in held.items():
                said = f"{given}: {name}, as somebody held it before"
                expect(said, parameter, _tensors()[name])
                expect(f"{said}: dtype", parameter.dtype, torch.float32)
            kept = [f.is_file() and f.read_bytes() == b for f, b in files.items()]
            expect(f"{given}: are the files as they were", all(kept), True)
    with _folder() as folder:
        _write(folder, {_TABLE[name]: t for name, t in _tensors().items()})
        model = _Model()
        p.load_renamed(model, folder, _by_table)
        _expect_loaded(f"rename goes by a table, {_TABLE}", model, _tensors())


# Names of the model to names of a file that have no letters in common.
_TABLE = {name: f"t{i}" for i, name in enumerate([*_tensors(), "gate"])}


def _by_table(name: str) -> str | None:
    return next((ours for ours, theirs in _TABLE.items() if theirs == name), None)


def _expect_not_renamed(
    p: SimpleNamespace,
    given: str,
    shards: dict[str, dict[str, Tensor]],
    *words: str,
    rename: Any = _strip,
    tied: bool = False,
) -> None:
    """load_renamed raises a ValueError that says `words`, and changes nothing."""
    with _folder() as folder:
        _write_shards(folder, **shards)
        model = _Model(tied)
        before = _copy(model)
        call = lambda: p.load_renamed(model, folder, rename)  # noqa: E731
        expect_error(given, call, ValueError, *words)
        _expect_loaded(f"{given}, afterwards", model, before)


@_SUITE.property("load_renamed", hint="None is a decision of the caller: skip it early")
def _left_out(p: SimpleNamespace) -> None:
    """A tensor that `rename` maps to None is left out without complaint."""
    with _folder() as folder:
        _write(folder, {**_prefixed(), "module.angles": _numbers(9)})
        model = _Model()
        p.load_renamed(model, folder, _strip)
        _expect_loaded("module.angles, which rename maps to None", model, _tensors())


@_SUITE.property(
    "load_renamed",
    hint="rename before you compare, not after; and compare all before you copy any",
)
def _renamed_strictly(p: SimpleNamespace) -> None:
    """It is as strict as load_weights: missing, unexpected, misshapen, and nothing
    changed.
    """
    whole = _numbers(2).to(torch.int64)
    for given, changes, words in (
        ("no module.scale", {"scale": None}, ["scale"]),
        ("module.gate", {"gate": _numbers(2)}, ["gate"]),
        ("module.scale is [1]", {"scale": _numbers(1)}, ["scale", "[1]", "[2]"]),
        ("module.scale is in int64", {"scale": whole}, ["scale"]),
        (
            "no module.scale, module.gate",
            {"scale": None, "gate": _numbers(2)},
            ["scale", "gate"],
        ),
    ):
        _expect_not_renamed(p, given, {"a": _prefixed(**changes)}, *words)
    given, drop = "rename gives None for module.scale", {"module.scale": None}
    rename = lambda name: drop.get(name, _strip(name))  # noqa: E731
    _expect_not_renamed(p, given, {"a": _prefixed()}, "scale", rename=rename)
    tensors = _tensors(scale=None, layer_bias=_numbers(1), gate=_numbers(2))
    inside = {_TABLE[name]: tensor for name, tensor in tensors.items()}
    given = f"{_TABLE}: no scale, a gate, layer.bias is [1]"
    words = ("scale", "gate", "layer.bias", "[1]")
    _expect_not_renamed(p, given, {"a": inside}, *words, rename=_by_table)


@_SUITE.property(
    "load_renamed",
    hint="two names of the model, one memory: has the file both, compare their numbers",
)
def _renamed_tied(p: SimpleNamespace) -> None:
    """A tied head may stand in the file with the embedding's numbers; with others it is
    an error that names it, and nothing is changed.
    """
    embedding = _tensors()["embed.weight"]
    for given, head in (
        ("no module.head.weight", None),
        ("both the same", embedding.clone()),
        ("both the same, the head in float16", embedding.half()),
    ):
        with _folder() as folder:
            _write(folder, _prefixed(head_weight=head))
            model = _Model(tied=True)
            p.load_renamed(model, folder, _strip)
            given = f"the model ties the head to the embedding, {given}"
            _expect_loaded(given, model, _tensors(tied=True))
            same = model.head.weight is model.embed.weight
            expect(f"{given}: is head.weight still embed.weight", same, True)
    for given, head in _other_heads():
        inside = {"a": _prefixed(head_weight=head)}
        _expect_not_renamed(p, f"tied, {given}", inside, "head.weight", tied=True)
    given = "tied, module.head.weight and no module.embed.weight, which is the owner"
    inside = {"a": _prefixed(embed_weight=None)}
    _expect_not_renamed(p, given, inside, "embed.weight", tied=True)
    given = "tied, module.head.weight is [2, 2]"
    inside = {"a": _prefixed(head_weight=_numbers(2, 2))}
    _expect_not_renamed(p, given, inside, "head.weight", "[2, 2]", tied=True)


@_SUITE.property("load_renamed", hint="two of the file's names can become one: see it")
def _renamed_twice(p: SimpleNamespace) -> None:
    """Two tensors that get one name are an error, not a race."""
    scale = {"scale": _numbers(2)}
    inside = {"a": {**_prefixed(), **scale}}
    _expect_not_renamed(p, "module.scale and scale", inside, "scale")
    inside = {
        "a": _prefixed(),
        "b": {"module.scale": _numbers(2), "angles": scale["scale"]},
    }
    _expect_not_renamed(p, "module.scale in both of two shards", inside, "scale")


def _saved(p: SimpleNamespace, tensors: dict[str, Tensor], limit: int) -> Any:
    """What save_sharded wrote: the index, and each file's tensors."""
    with _folder() as folder:
        p.save_sharded(tensors, folder, limit)
        if not (folder / _INDEX).is_file():
            fail(f"{len(tensors)} tensors, limit {limit}", "no index", _INDEX)
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        files = {file.name: load_file(file) for file in package.weight_files(folder)}
    return index, files


def _ten() -> dict[str, Tensor]:
    return {f"t{i}": _numbers(2, start=i) for i in range(10)}


@_SUITE.property(
    "save_sharded", hint="the index maps a tensor's name to its file's name"
)
def _sharded_round_trip(p: SimpleNamespace) -> None:
    """What is written reads back: each tensor once, in the file of the index."""
    index, files = _saved(p, tensors := _ten(), 40)
    expect("10 tensors, limit 40: their names, afterwards", [*tensors], [*_ten()])
    found = {name: file for file, tensors in files.items() for name in tensors}
    stored = sum(len(tensors) for tensors in files.values())
    expect("10 tensors, limit 40: tensors in the files", stored, 10)
    expect("10 tensors, limit 40: weight_map", index["weight_map"], found)
    for name, tensor in _ten().items():
        expect(f"10 tensors, limit 40: {name}", files[found[name]][name], tensor)
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)
    for tensor in (*(_numbers(2).to(kind) for kind in kinds), torch.tensor(7.0)):
        index, files = _saved(p, {"x": tensor}, 40)
        read = files[index["weight_map"]["x"]]["x"]
        given = f"one tensor {list(tensor.shape)} in {tensor.dtype}: shape, dtype"
        expect(
            given, [list(read.shape), read.dtype], [list(tensor.shape), tensor.dtype]
        )
        expect(f"one tensor {tensor}", read, tensor)
    with _folder() as folder:
        one, two = _Model(tied=True), _Model(tied=True)
        p.save_sharded(one.state_dict(), folder, 24)
        package.load_weights(two, folder)
        given = "a model with a tied head, saved, then loaded with load_weights"
        _expect_loaded(given, two, one.state_dict())


@_SUITE.property("save_sharded", hint="close a shard before a tensor that won't fit")
def _sharded_limit(p: SimpleNamespace) -> None:
    """A shard holds at most `limit` bytes, unless one tensor alone is larger."""
    tensors = {"first": _numbers(2), "big": _numbers(25), **_ten()}
    _, files = _saved(p, tensors, 40)
    for inside in files.values():
        size = sum(tensor.nbytes for tensor in inside.values())
        if size > 40 and len(inside) > 1:
            given = "11 tensors of 8 bytes and one of 100, limit 40: a shard"
            fail(given, f"{len(inside)} tensors of {size} bytes", "at most 40 bytes")
    _, files = _saved(p, {name: t.double() for name, t in _ten().items()}, 40)
    for inside in files.values():
        size = sum(tensor.nbytes for tensor in inside.values())
        if size > 40:
            given = "10 tensors of two float64, limit 40: a shard"
            fail(given, f"{len(inside)} tensors of {size} bytes", "at most 40 bytes")


@_SUITE.property("save_sharded", hint="fill a shard before you open the next")
def _sharded_few(p: SimpleNamespace) -> None:
    """There are at most twice as many shards as the bytes need."""
    for limit, most in ((80, 2), (1000, 2), (40, 4), (16, 10)):
        _, files = _saved(p, _ten(), limit)
        if len(files) > most:
            given = f"10 tensors of 8 bytes, limit {limit}: shards"
            fail(given, len(files), f"at most {most}")
    kinds = (torch.float16, torch.float32, torch.float64, torch.int64)
    mixed = {f"t{i}": _numbers(2).to(kinds[i % 4]) for i in range(10)}
    _, files = _saved(p, mixed, 1000)
    if len(files) > 2:
        given = "10 tensors of four dtypes in turn, limit 1000: shards"
        fail(given, len(files), "at most 2")


@_SUITE.property(
    "save_sharded",
    hint="a state dict wraps one memory twice: what do both wraps share, and what "
    "else must be the same? (save_file wants tensors in one piece)",
)
def _sharded_tied(p: SimpleNamespace) -> None:
    """Tied tensors are written once, under the first name; two halves of one matrix
    are both written; a transposed one as it reads.
    """
    weight = _numbers(3, 2)
    index, files = _saved(p, {"embed": weight, "head": weight.detach()}, 40)
    given = "embed and head, one tensor: names in the files"
    expect(given, sorted(n for inside in files.values() for n in inside), ["embed"])
    expect("embed and head: weight_map", sorted(index["weight_map"]), ["embed"])
    for given, tensors, limit, wanted in (
        ("z, then a, one tensor", {"z": weight, "a": weight.detach()}, 40, ["z"]),
        (
            "embed, another, and head, the same as embed",
            {"embed": weight, "other": weight + 1, "head": weight.detach()},
            24,
            ["embed", "other"],
        ),
    ):
        _, files = _saved(p, tensors, limit)
        got = sorted(n for inside in files.values() for n in inside)
        expect(f"{given}, limit {limit}: names in the files", got, wanted)
    _, files = _saved(p, {"top": weight[:1], "rest": weight[1:]}, 40)
    given = "top and rest, rows of one matrix: names in the files"
    expect(
        given, sorted(n for inside in files.values() for n in inside), ["rest", "top"]
    )
    _, files = _saved(p, {"turned": weight.T}, 40)
    (inside,) = files.values()
    expect("a transposed tensor", inside["turned"], weight.T)
    for given, tensors in (
        ("a matrix and its first row", {"all": weight, "first": weight[:1]}),
        ("two empty tensors", {"a": torch.zeros(0, 2), "b": torch.zeros(3, 0)}),
        ("two tensors of zeros", {"a": torch.zeros(4), "b": torch.zeros(4)}),
        (
            "a square matrix, and turned",
            {"a": (square := _numbers(2, 2)), "b": square.T},
        ),
        ("the same bytes as int32", {"a": weight, "b": weight.view(torch.int32)}),
        ("a matrix, and flat", {"a": weight, "b": weight.view(-1)}),
    ):
        for limit in (24, 1000):  # most in files of their own, then all in one
            _, files = _saved(p, tensors, limit)
            read = {n: t.tolist() for file in files.values() for n, t in file.items()}
            asked = {n: t.tolist() for n, t in tensors.items()}
            expect(f"{given}, limit {limit}: tensors in the files", read, asked)


@_SUITE.property(
    "save_sharded", hint="bytes of the tensors that are written, each once"
)
def _sharded_size(p: SimpleNamespace) -> None:
    """The index says how many bytes of tensors there are: metadata.total_size."""
    weight = _numbers(3, 2)
    tensors = {"embed": weight, "head": weight.detach(), "half": weight.half()}
    index, _ = _saved(p, tensors, 1000)
    given = "embed [3, 2] float32, head tied to it, half [3, 2] float16"
    expect(f"{given}: metadata", index.get("metadata", {}).get("total_size"), 36)
