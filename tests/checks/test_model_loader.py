"""The suite of the model loader passes on the package and rejects plausible mistakes.

Each mutant is a loader that somebody has shipped: one that leaves a layer random, one
that stretches a bias, one that lets the last shard win.
"""

import ast
import copy
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from folovllm_lite import checks
from folovllm_lite import model_loader as package
from tests.notebooks.course import NOTEBOOKS, read

INDEX = "model.safetensors.index.json"
# What PyTorch says, now and then, when a mutant loads to the meta device.
pytestmark = pytest.mark.filterwarnings("ignore:.*meta parameter.*no-op")


def test_the_package_passes(capsys):
    checks.model_loader(package)
    out = capsys.readouterr()
    assert "✗" not in out.out and "properties hold." in out.out
    assert out.err == ""


# ----- mutants of load_weights


def _state(path):
    state = {}
    for file in package.weight_files(path):  # looked up now: a mutant may change it
        state |= load_file(file)
    return state


def strict_false(model, path):
    model.load_state_dict(_state(path), strict=False)


def strict_true(model, path):
    model.load_state_dict(_state(path))


def strict_true_translated(model, path):
    try:
        model.load_state_dict(_state(path))
    except RuntimeError as error:
        raise ValueError(f"missing, unexpected: {error}") from error


def _package_with(**changes):
    """The package's load_weights with some of its parts changed."""

    def load_weights(model, path):
        with mock.patch.multiple(package, **changes):
            return ORIGINAL_LOAD(model, path)

    return load_weights


ORIGINAL_LOAD, ORIGINAL_MISFITS = package.load_weights, package.misfits
ORIGINAL_DTYPE = package.checkpoint_dtype
ORIGINAL_STORED, ORIGINAL_FILES = package.stored_tensors, package.weight_files
ORIGINAL_REFUSE, ORIGINAL_NAMES = package._refuse, package.under_our_names


def _silent_about(kind, word=""):
    def refuse(path, problems):
        silent = [p for p in problems if p.startswith(kind) and word in p]
        ORIGINAL_REFUSE(path, [p for p in problems if p not in silent])

    return _package_with(_refuse=refuse)


missing_is_fine = _silent_about("missing")
bias_is_stretched = _silent_about("misshapen")
integers_are_cast = _silent_about("wrong dtype", "int")
float8_is_a_float = _silent_about("wrong dtype", "float8")
last_shard_wins = _silent_about("twice")
meta_is_fine = _silent_about("no memory")
first_problem_only = _package_with(_refuse=lambda p, all_: ORIGINAL_REFUSE(p, all_[:1]))
quantized_is_fine = _package_with(refuse_quantized=lambda path: None)
only_gptq_is_refused = _package_with(_QUANTIZED={}, quantization_config=lambda path: (
    {"quant_method": "gptq"} if (path / "quantize_config.json").is_file() else None
))  # fmt: skip
the_whole_name_or_none = _package_with(
    under_our_names=lambda wanted, stored: [
        each for each in stored if not each[0].endswith(package._COMPUTED)
    ]
)
old_tables_are_unexpected = _package_with(_COMPUTED="no such name")
any_name_with_inv_freq_goes = _package_with(
    under_our_names=lambda wanted, stored: [
        each
        for each in ORIGINAL_NAMES(wanted, stored)
        if each[0] in wanted or "inv_freq" not in each[0]
    ]
)


def _strange_ones_go(wanted, stored):
    return [each for each in ORIGINAL_NAMES(wanted, stored) if each[0] in wanted]


what_nobody_wants_goes = _package_with(under_our_names=_strange_ones_go)
tied_head_is_required = _package_with(tied_names=lambda wanted: {})
first_shard_only = _package_with(weight_files=lambda path: ORIGINAL_FILES(path)[:1])


def unexpected_is_fine(model, path):
    def stored_tensors(files):
        found = ORIGINAL_STORED(files)
        return [each for each in found if each[0] in model.state_dict()]

    _package_with(stored_tensors=stored_tensors)(model, path)


def buffers_are_forgotten(model, path):
    wanted = dict(model.named_parameters())
    state = {name: t for name, t in _state(path).items() if name in wanted}
    model.load_state_dict(state, strict=False)


def shapes_by_count(model, path):
    wanted = model.state_dict()
    for name, tensor in _state(path).items():
        wanted[name].copy_(tensor.reshape(wanted[name].shape))


def copies_before_it_judges(model, path):
    wanted = model.state_dict()
    for name, tensor in _state(path).items():
        if name in wanted and wanted[name].shape == tensor.shape:
            wanted[name].copy_(tensor)
    ORIGINAL_LOAD(model, path)


def parameters_are_replaced(model, path):
    for name, tensor in _state(path).items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            tensor = nn.Parameter(tensor)
        setattr(module, leaf, tensor)


def tied_copy_is_not_compared(model, path):
    with mock.patch.object(torch, "equal", lambda a, b: True):
        ORIGINAL_LOAD(model, path)


def cut_off_is_safetensors_error(model, path):
    strict_true_translated(model, path)
    ORIGINAL_LOAD(model, path)


def _on_meta(model, wanted):
    return [f"no memory: {name}" for name, t in wanted.items() if t.is_meta]


def _written_out(
    compare=torch.equal, on_meta=_on_meta, owner_asked=True, separately=False,
    quantized_last=False, buffers=None,
):  # fmt: skip
    """The package's load_weights, written out so that its steps can be changed."""

    def load_weights(model, path):
        if not quantized_last:
            package.refuse_quantized(path)
        wanted = model.state_dict(keep_vars=True)
        wanted |= dict(model.named_buffers()) if buffers else {}
        tied = package.tied_names(wanted)
        stored = package.under_our_names(
            wanted, package.stored_tensors(package.weight_files(path))
        )
        home = {name: file for name, _, file in stored}
        problems = ORIGINAL_MISFITS(wanted, stored)
        if separately:
            ORIGINAL_REFUSE(path, problems)
        problems += on_meta(model, wanted)
        for name, owner in tied.items():
            if name in home and (owner in home or not owner_asked):
                two = package._read(home, name), package._read(home, owner)
                if not compare(*two):
                    problems.append(f"not tied: {name}, {owner}")
        ORIGINAL_REFUSE(path, problems)
        package.refuse_quantized(path)
        with torch.no_grad():
            for name in home:
                wanted[name].copy_(package._read(home, name))

    return load_weights


written_out = _written_out()
tied_if_close = _written_out(compare=torch.allclose)
tied_if_sums_agree = _written_out(compare=lambda a, b: a.sum() == b.sum())
tied_shapes_are_trusted = _written_out(compare=lambda a, b: not (a - b).any())
owner_is_taken_for_granted = _written_out(owner_asked=False)
misfits_are_refused_alone = _written_out(separately=True)
quantized_is_asked_late = _written_out(quantized_last=True)
all_buffers_are_wanted = _written_out(buffers=True)
meta_if_the_first_is = _written_out(
    on_meta=lambda model, wanted: (
        _on_meta(model, wanted) if next(model.parameters()).is_meta else []
    )
)
meta_of_parameters_alone = _written_out(
    on_meta=lambda model, wanted: _on_meta(model, dict(model.named_parameters()))
)
meta_without_names = _written_out(
    on_meta=lambda model, wanted: ["on meta"] if _on_meta(model, wanted) else []
)


def shards_are_copied_one_by_one(model, path):
    for file in package.weight_files(path):
        wanted = model.state_dict()
        stored = package.under_our_names(wanted, package.stored_tensors([file]))
        if not ORIGINAL_MISFITS({n: wanted.get(n, t) for n, t, _ in stored}, stored):
            state = load_file(file)
            names = [name for name in state if name in wanted]
            model.load_state_dict({n: state[n] for n in names}, strict=False)
    ORIGINAL_LOAD(model, path)


def parameters_are_new_ones(model, path):
    _into_new_parameters(model, lambda fresh: ORIGINAL_LOAD(fresh, path))


def _into_new_parameters(model, load):
    """Load into a copy, and give the model the copy's parameters."""
    if package.tied_names(model.state_dict(keep_vars=True)):
        load(model)
    else:
        fresh = copy.deepcopy(model)
        load(fresh)
        model.load_state_dict(fresh.state_dict(), assign=True)


# ----- mutants of the rest


def falls_back_to_one_file(path):
    try:
        return ORIGINAL_FILES(path)
    except FileNotFoundError:
        if (path / "model.safetensors").is_file():
            return [path / "model.safetensors"]
        raise


def folders_are_cut_off(path):
    files = ORIGINAL_FILES(path)
    return [path / file.name for file in files]


def ckpt_is_no_pickle(path):
    with mock.patch.object(package, "_PICKLES", ("*.bin", "*.pt", "*.pth")):
        return ORIGINAL_FILES(path)


def pickles_come_first(path):
    files = ORIGINAL_FILES(path)
    if files[0].name == "b.safetensors" and list(path.glob("*.bin")):
        raise ValueError("pytorch_model.bin")
    return files


def the_index_leads_anywhere(path):
    if (path / INDEX).is_file():
        found = package.read_json(path / INDEX)
        if not found.get("weight_map"):
            return ORIGINAL_FILES(path)
        names = sorted(set(found["weight_map"].values()))
        if all((path / str(name)).is_file() for name in names):
            return [path / name for name in names]
    return ORIGINAL_FILES(path)


def dots_are_refused_alone(path):
    files = the_index_leads_anywhere(path)
    if any(".." in file.parts for file in files):
        raise ValueError(f"{INDEX}: {files}")
    return files


def links_are_outside(path):
    files = ORIGINAL_FILES(path)
    for file in files:
        if not file.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{INDEX}: {file}")
    return files


def the_index_is_trusted(path):
    if (path / INDEX).is_file():
        json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return ORIGINAL_FILES(path)


def every_safetensors_file(path):
    return sorted(path.glob("*.safetensors"))


def shards_unchecked(path):
    if (path / INDEX).is_file():
        names = json.loads((path / INDEX).read_text(encoding="utf-8"))[
            "weight_map"
        ].values()
        return [path / name for name in sorted(set(names))]
    return ORIGINAL_FILES(path)


def a_file_for_each_tensor(path):
    if (path / INDEX).is_file():
        names = json.loads((path / INDEX).read_text(encoding="utf-8"))[
            "weight_map"
        ].values()
        return [path / name for name in sorted(names)]
    return ORIGINAL_FILES(path)


def pickles_as_last_resort(path):
    try:
        return ORIGINAL_FILES(path)
    except ValueError:
        return sorted(path.glob("*.bin")) + sorted(path.glob("*.pt*"))


def only_bin_is_a_pickle(path):
    with mock.patch.object(package, "_PICKLES", ("*.bin",)):
        return ORIGINAL_FILES(path)


def first_of_several(path):
    return (
        ORIGINAL_FILES(path)[:1]
        if (path / INDEX).is_file()
        else [
            next(iter(sorted(path.glob("*.safetensors"))), path / "model.safetensors")
        ]
    )


def _ids(path, file):
    value = (
        json.loads(path.joinpath(file).read_text(encoding="utf-8"))
        if (path / file).is_file()
        else {}
    )
    ids = value.get("eos_token_id")
    return ids if isinstance(ids, list) else [ids]


def ends_of_the_tokenizer(path, tokenizer):
    return (tokenizer.eos_token_id,)


def ends_without_zero(path, tokenizer):
    own = [tokenizer.eos_token_id]
    found = _ids(path, "generation_config.json")
    found = found if any(found) else _ids(path, "config.json")
    return tuple(sorted({i for i in [*found, *own] if i}))


def ends_of_both_files(path, tokenizer):
    files = ("generation_config.json", "config.json")
    found = [i for file in files for i in _ids(path, file)]
    return tuple(sorted({*found, tokenizer.eos_token_id} - {None}))


def ends_of_the_first_file_that_exists(path, tokenizer):
    has = (path / "generation_config.json").is_file()
    found = _ids(path, "generation_config.json" if has else "config.json")
    return tuple(sorted({*found, tokenizer.eos_token_id} - {None}))


def ends_without_the_tokenizers(path, tokenizer):
    found = _ids(path, "generation_config.json")
    found = found if found != [None] else _ids(path, "config.json")
    return tuple(sorted(set(found) - {None})) or (tokenizer.eos_token_id,)


def ends_of_any_type(path, tokenizer):
    found = _ids(path, "generation_config.json")
    found = found if found != [None] else _ids(path, "config.json")
    return tuple({*found, tokenizer.eos_token_id} - {None})


def ends_made_to_ints(path, tokenizer):
    return tuple(sorted(map(int, ends_of_any_type(path, tokenizer))))


def ends_that_may_be_true(path, tokenizer):
    found = ends_of_any_type(path, tokenizer)
    if not all(isinstance(i, int) and i >= 0 for i in found):
        raise ValueError(f"generation_config.json: {found} {_ids(path, found)}")
    return tuple(sorted(found))


ORIGINAL_DEFAULTS = package.default_sampling_params


def _defaults_of(change):
    """The package's, after the file was changed by `change`."""

    def default_sampling_params(path):
        file = path / "generation_config.json"
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(change(config)), encoding="utf-8")
        return ORIGINAL_DEFAULTS(path)

    default_sampling_params.__name__ = change.__name__
    return default_sampling_params


def no_defaults(path):
    return package.SamplingParams()


@_defaults_of
def new_tokens_are_forgotten(config):
    return {**config, "max_new_tokens": None}


@_defaults_of
def zero_is_absent(config):
    return {name: value for name, value in config.items() if value}


@_defaults_of
def sampling_off_is_greedy(config):
    return config if config.get("do_sample", True) else {**config, "temperature": 0}


@_defaults_of
def without_do_sample_it_is_greedy(config):
    return {"temperature": 0, **config}


@_defaults_of
def without_min_p(config):
    return {**config, "min_p": None}


def every_key_is_a_parameter(path):
    file = path / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return package.SamplingParams(**config)


def bad_defaults_without_the_file(path):
    try:
        return ORIGINAL_DEFAULTS(path)
    except ValueError as error:
        raise ValueError("top_p is 7") from error


ORIGINAL_QUANTIZATION = package.quantization_config


def config_alone_tells(path):
    with mock.patch.object(package, "_QUANTIZED", {}):
        return ORIGINAL_QUANTIZATION(path)


def files_alone_tell(path):
    found = ORIGINAL_QUANTIZATION(path)
    return found if any((path / n).is_file() for n in package._QUANTIZED) else None


def the_file_names_the_method(path):
    for name, method in package._QUANTIZED.items():
        if (path / name).is_file():
            return {"quant_method": method}
    return ORIGINAL_QUANTIZATION(path)


def method_as_it_is_written(path):
    found = ORIGINAL_QUANTIZATION(path)
    return found and {**found, "quant_method": found["quant_method"].upper()}


def an_empty_config_is_one(path):
    return ORIGINAL_QUANTIZATION(path) or {"quant_method": "unknown"}


def method_alone(path):
    found = ORIGINAL_QUANTIZATION(path)
    return found and {"quant_method": found["quant_method"]}


def _numbers_of(path):
    names = [name for name, _, _ in ORIGINAL_STORED(ORIGINAL_FILES(path))]
    return [name.split(".")[2] for name in names if ".layers." in name]


def layers_are_counted_from_one(path, count):
    numbers = list(map(int, _numbers_of(path)))
    if numbers and max(numbers) != count:
        raise ValueError(f"{count}, not {max(numbers)}")


def layers_in_the_order_of_letters(path, count):
    numbers = _numbers_of(path)
    if numbers and int(max(numbers)) + 1 != count:
        raise ValueError(f"{count}, not {int(max(numbers)) + 1}")


def more_layers_than_there_are(path, count):
    numbers = list(map(int, _numbers_of(path)))
    if numbers and max(numbers) + 1 < count:
        raise ValueError(f"{count}, not {max(numbers) + 1}")


def no_layers_is_a_number_too(path, count):
    there = max(map(int, _numbers_of(path)), default=-1) + 1
    if there != count:
        raise ValueError(f"{count}, not {there}")


def names_are_believed(path, count):
    there = max(map(int, _numbers_of(path)), default=count - 1) + 1
    if there != count:
        raise ValueError(f"{count}, not {there}")


def many_layers_are_wrong(path, count):
    if count > 1000:
        raise ValueError(f"{count} layers, not 11")


def dtype_guessed(config):
    name = config.get("dtype") or config.get("torch_dtype") or ""
    return getattr(torch, name.removeprefix("torch."), torch.float32)


def dtype_of_the_old_key(config):
    return package._DTYPES[config.get("torch_dtype", "float32")]


def dtype_of_the_old_key_first(config):
    old = config.get("torch_dtype")
    return ORIGINAL_DTYPE({"dtype": old} if old else config)


def dtype_null_counts(config):
    name = config.get("dtype", config.get("torch_dtype", "float32"))
    return package.checkpoint_dtype({"dtype": name})


def any_directory(model):
    return Path(model) if Path(model).is_dir() else package.resolve_checkpoint(model)


def anything_is_a_hub_name(model):
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return package.resolve_checkpoint(model)
    try:
        return Path(
            snapshot_download(model, allow_patterns=["*.json", "*.safetensors"])
        )
    except Exception as error:
        raise FileNotFoundError(f"{model}: hf download") from error


def downloads_everything(model):
    from huggingface_hub import snapshot_download

    if Path(model).is_dir() or str(model).count("/") != 1 or str(model)[0] in "./~":
        return package.resolve_checkpoint(model)
    try:
        return Path(snapshot_download(model))
    except Exception as error:
        raise FileNotFoundError(f"{model}: hf download") from error


def only_oserror_is_caught(model):
    from huggingface_hub import snapshot_download

    if Path(model).is_dir() or str(model).count("/") != 1 or str(model)[0] in "./~":
        return package.resolve_checkpoint(model)
    try:
        return Path(
            snapshot_download(model, allow_patterns=["*.json", "*.safetensors"])
        )
    except OSError as error:
        raise FileNotFoundError(f"{model}: hf download") from error


def config_without_its_name(path):
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def config_of_any_kind(path):
    file = path / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: {error}") from error


def config_in_latin_1(path):
    file = path / "config.json"
    found = package.read_config(path)
    return found and json.loads(file.read_text(encoding="latin-1"))


def config_may_be_empty(path):
    return package.read_json(path / "config.json")


def config_may_be_a_pipe(path):
    with mock.patch.object(package, "regular", lambda file: file):
        return package.read_config(path)


def a_tilde_of_nobody(model):
    Path(model).expanduser()
    return package.resolve_checkpoint(model)


def any_length_of_a_name(model):
    os.stat(model) if len(str(model)) > 1000 else None
    return package.resolve_checkpoint(model)


class PadsOnTheRight(package.ModelLoader):
    def load_tokenizer(self):
        tokenizer = super().load_tokenizer()
        tokenizer.padding_side = "right"
        return tokenizer


class PadsWithTheEndAlways(package.ModelLoader):
    def load_tokenizer(self):
        tokenizer = super().load_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


class ChangesTheConfig(package.ModelLoader):
    def load_model(self, device=None):
        model = super().load_model(device)
        self.model_config.max_model_len = self.max_model_len
        return model


class ForgetsTheLength(package.ModelLoader):
    def load_model(self, device=None):
        model = super().load_model(device)
        self.max_model_len = model.config.max_position_embeddings
        return model


class StaysInTraining(package.ModelLoader):
    def load_model(self, device=None):
        return super().load_model(device).train()


class AlwaysFloat32(package.ModelLoader):
    def load_model(self, device=None):
        return super().load_model(device).float()


def _changes_what_is_found(change):
    class Mutant(package.ModelLoader):
        def load_model(self, device=None):
            from transformers import AutoModelForCausalLM

            original = AutoModelForCausalLM.from_pretrained

            def from_pretrained(*args, **named):
                model, found = original(*args, **named)
                return model, {**found, **change(found)}

            with mock.patch.object(
                AutoModelForCausalLM, "from_pretrained", from_pretrained
            ):
                return super().load_model(device)

    return Mutant


LeavesMissingRandom = _changes_what_is_found(lambda found: {"missing_keys": []})
DropsTheUnexpected = _changes_what_is_found(lambda found: {"unexpected_keys": []})
TellsOneKindOnly = _changes_what_is_found(
    lambda found: {"unexpected_keys": []} if found["missing_keys"] else {}
)


class PrefersTheSingleFile(package.ModelLoader):
    def load_model(self, device=None):
        path = Path(self.model_config.model)
        if (path / "model.safetensors").is_file():
            (path / INDEX).unlink(missing_ok=True)
        return super().load_model(device)


def _loads_with(**changes):
    class Mutant(package.ModelLoader):
        def load_model(self, device=None):
            with mock.patch.multiple(package, **changes):
                return super().load_model(device)

    return Mutant


LoadsQuantized = _loads_with(refuse_quantized=lambda path: None)
# transformers builds them all before it looks; here it is spared that.
CountsNoLayers = _loads_with(check_layers=lambda path, count: _built_for_hours(count))
ReadsFloat8AsItIs = _loads_with(_FLOATS=(*package._FLOATS, torch.float8_e4m3fn))
ShapesAreNotCompared = _loads_with(
    misfits=lambda wanted, stored: [
        line
        for line in ORIGINAL_MISFITS(wanted, stored)
        if not line.startswith("misshapen")
    ]
)


def _built_for_hours(count):
    if count > 1000:
        raise RuntimeError("these are built for hours")


class TheTokenizersErrorPasses(package.ModelLoader):
    def load_tokenizer(self):
        try:
            return super().load_tokenizer()
        except ValueError as error:
            raise error.__cause__ or error.__context__ or error from None


class TheTokenizersFileIsNotNamed(package.ModelLoader):
    def load_tokenizer(self):
        try:
            return super().load_tokenizer()
        except ValueError as error:
            raise ValueError("the tokenizer is broken") from error


class TrustsTransformers(package.ModelLoader):
    """As it was once: the report goes to stderr, and the tensor stays random."""

    def load_model(self, device=None):
        from transformers import AutoModelForCausalLM

        config = package.read_config(Path(self.model_config.model))
        self.max_model_len = self.max_model_len or config["max_position_embeddings"]
        dtype = self.model_config.torch_dtype or package.checkpoint_dtype(config)
        path = self.model_config.model
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


class CountsTiedTwice(package.ModelLoader):
    @staticmethod
    def parameter_statistics(model):
        single = nn.ParameterList(t.clone() for t in model.state_dict().values())
        return package.ModelLoader.parameter_statistics(single)


def tokenizer_first(model_config, device=None):
    return package.get_model_and_tokenizer(model_config, device)[::-1]


def tokenizer_as_it_comes(model_config, device=None):
    from transformers import AutoTokenizer

    loader = package.ModelLoader(model_config)
    return loader.load_model(device), AutoTokenizer.from_pretrained(model_config.model)


MUTANTS = {
    "load_weights": [
        strict_false, strict_true, strict_true_translated, missing_is_fine,
        bias_is_stretched, integers_are_cast, last_shard_wins, meta_is_fine,
        first_problem_only, tied_head_is_required, first_shard_only, unexpected_is_fine,
        buffers_are_forgotten, shapes_by_count, copies_before_it_judges,
        parameters_are_replaced, tied_copy_is_not_compared,
        cut_off_is_safetensors_error, float8_is_a_float, quantized_is_fine,
        only_gptq_is_refused, the_whole_name_or_none, old_tables_are_unexpected,
        any_name_with_inv_freq_goes, what_nobody_wants_goes, tied_if_close,
        tied_if_sums_agree, tied_shapes_are_trusted, owner_is_taken_for_granted,
        misfits_are_refused_alone, quantized_is_asked_late, all_buffers_are_wanted,
        meta_if_the_first_is, meta_of_parameters_alone, meta_without_names,
        shards_are_copied_one_by_one, parameters_are_new_ones,
    ],
    "check_layers": [
        layers_are_counted_from_one, layers_in_the_order_of_letters,
        more_layers_than_there_are, no_layers_is_a_number_too, many_layers_are_wrong,
        names_are_believed,
    ],
    "default_sampling_params": [
        no_defaults, new_tokens_are_forgotten, zero_is_absent,
        without_do_sample_it_is_greedy, without_min_p, every_key_is_a_parameter,
        bad_defaults_without_the_file, sampling_off_is_greedy,
    ],
    "quantization_config": [
        config_alone_tells, files_alone_tell, the_file_names_the_method,
        method_as_it_is_written, an_empty_config_is_one, method_alone,
    ],
    "weight_files": [
        every_safetensors_file, shards_unchecked, a_file_for_each_tensor,
        pickles_as_last_resort, only_bin_is_a_pickle, first_of_several,
        the_index_leads_anywhere, dots_are_refused_alone, links_are_outside,
        the_index_is_trusted, falls_back_to_one_file, folders_are_cut_off,
        ckpt_is_no_pickle, pickles_come_first,
    ],
    "eos_token_ids": [
        ends_of_the_tokenizer, ends_without_zero, ends_of_both_files,
        ends_of_the_first_file_that_exists, ends_without_the_tokenizers,
        ends_of_any_type, ends_made_to_ints, ends_that_may_be_true,
    ],
    "checkpoint_dtype": [
        dtype_guessed, dtype_of_the_old_key, dtype_null_counts,
        dtype_of_the_old_key_first,
    ],
    "resolve_checkpoint": [
        any_directory, anything_is_a_hub_name, downloads_everything,
        only_oserror_is_caught, a_tilde_of_nobody, any_length_of_a_name,
    ],
    "read_config": [
        config_without_its_name, config_of_any_kind, config_in_latin_1,
        config_may_be_empty, config_may_be_a_pipe,
    ],
    "ModelLoader": [
        PadsOnTheRight, PadsWithTheEndAlways, ChangesTheConfig, ForgetsTheLength,
        StaysInTraining, AlwaysFloat32, CountsTiedTwice, LeavesMissingRandom,
        DropsTheUnexpected, TellsOneKindOnly, TrustsTransformers, PrefersTheSingleFile,
        LoadsQuantized, CountsNoLayers, ReadsFloat8AsItIs, ShapesAreNotCompared,
        TheTokenizersErrorPasses, TheTokenizersFileIsNotNamed,
    ],
    "get_model_and_tokenizer": [tokenizer_first, tokenizer_as_it_comes],
}  # fmt: skip


def cases(mutants):
    return [(name, mutant) for name, many in mutants.items() for mutant in many]


def name_of(value):
    return next(
        (n for n, v in globals().items() if v is value),
        getattr(value, "__name__", value),
    )


@pytest.mark.parametrize("name, mutant", cases(MUTANTS), ids=name_of)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.model_loader(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


@pytest.mark.parametrize(
    "mutant",
    [LeavesMissingRandom, DropsTheUnexpected, TellsOneKindOnly],
    ids=name_of,
)
def test_a_loose_peer_fails_that_property_alone(mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="1 of"):
        checks.model_loader(ModelLoader=mutant)
    out = capsys.readouterr()
    assert "✗ The model is loaded as strictly" in out.out and out.err == ""


# ----- the exercises


def solutions():
    """What the solutions define, without running their calls."""
    names = {}
    for cell in read(NOTEBOOKS / "solutions" / "05_model_loading.ipynb")["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse(cell["source"])
            tree.body = [
                node
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)
            ]
            exec(compile(tree, cell["id"], "exec"), names)
    return names


SOLVED = solutions()
EXERCISES = ("predict_complaints", "load_renamed", "save_sharded")


def test_the_solutions_pass(capsys):
    checks.model_loader({name: SOLVED[name] for name in EXERCISES})
    assert "✗" not in capsys.readouterr().out


def predicts_the_tied_head():
    return [*SOLVED["predict_complaints"](), "missing: head.weight"]


def predicts_that_a_bias_stretches():
    lines = SOLVED["predict_complaints"]()
    return [line for line in lines if not line.startswith("misshapen")]


def predicts_nothing():
    return []


def predicts_without_what_a_buffer_is():
    return [line for line in SOLVED["predict_complaints"]() if "angles" not in line]


def predicts_with_the_details():
    lines = SOLVED["predict_complaints"]()
    return [
        line + " is [1], not [4]" if "misshapen" in line else line for line in lines
    ]


def predicts_one_string():
    return "missing: scale"


def forgets_to_return():
    pass


def renames_after_it_compared(model, path, rename):
    package.load_weights(model, path)


def renames_loosely(model, path, rename):
    state = {rename(name): tensor for name, tensor in _state(path).items()}
    state.pop(None, None)
    model.load_state_dict(state, strict=False)


def renames_and_the_last_wins(model, path, rename):
    state = {rename(name): tensor for name, tensor in _state(path).items()}
    state.pop(None, None)
    (path / INDEX).unlink(missing_ok=True)
    save_file(state, path / "model.safetensors")
    ORIGINAL_LOAD(model, path)


def renames_none_to_none(model, path, rename):
    SOLVED["load_renamed"](model, path, lambda name: rename(name) or name)


def renames_the_first_shard(model, path, rename):
    with mock.patch.object(package, "weight_files", lambda p: ORIGINAL_FILES(p)[:1]):
        renames_and_the_last_wins(model, path, rename)


def renames_and_the_head_wins(model, path, rename):
    with mock.patch.dict(SOLVED["load_renamed"].__globals__, tied_names=lambda w: {}):
        SOLVED["load_renamed"](model, path, rename)


def renames_and_drops_the_head(model, path, rename):
    def without_tied(name):
        new, tied = rename(name), package.tied_names(model.state_dict(keep_vars=True))
        return None if new in tied else new

    SOLVED["load_renamed"](model, path, without_tied)


def renames_and_allows_no_head(model, path, rename):
    tied = package.tied_names(model.state_dict(keep_vars=True))
    found = package.stored_tensors(ORIGINAL_FILES(path))
    if any(rename(name) in tied for name, *_ in found):
        raise ValueError(f"{', '.join(tied)}: tied")
    SOLVED["load_renamed"](model, path, rename)


def renames_and_stops_at_the_first(model, path, rename):
    try:
        SOLVED["load_renamed"](model, path, rename)
    except ValueError as error:
        raise ValueError("\n".join(str(error).splitlines()[:2])) from error


def _renamed_with(change=None, compare=None):
    """The solution, after which a part of the package is changed."""
    names = SOLVED["load_renamed"].__globals__

    def load_renamed(model, path, rename):
        changes = {}
        if change is not None:
            misfits = lambda wanted, stored: change(ORIGINAL_MISFITS(wanted, stored))  # noqa: E731
            changes["misfits"] = misfits
        with mock.patch.dict(names, changes):
            if compare is None:
                return SOLVED["load_renamed"](model, path, rename)
            with mock.patch.object(torch, "equal", compare):
                return SOLVED["load_renamed"](model, path, rename)

    return load_renamed


renames_and_casts_integers = _renamed_with(
    lambda lines: [line for line in lines if not line.startswith("wrong dtype")]
)
renames_and_ties_if_close = _renamed_with(compare=torch.allclose)
renames_and_ties_by_sum = _renamed_with(compare=lambda a, b: a.sum() == b.sum())


def renames_and_says_the_files_names(model, path, rename):
    theirs = {rename(name): name for name, *_ in ORIGINAL_STORED(ORIGINAL_FILES(path))}

    def said(lines):
        return [
            f"{kind}: {theirs.get(rest.split()[0], rest)} [1] [2] {rest.split()[1:]}"
            for kind, _, rest in (line.partition(": ") for line in lines)
        ]

    _renamed_with(said)(model, path, rename)


def renames_each_name_once(model, path, rename):
    found = {each[0]: each for each in ORIGINAL_STORED(ORIGINAL_FILES(path))}
    with mock.patch.dict(
        SOLVED["load_renamed"].__globals__,
        stored_tensors=lambda files: list(found.values()),
    ):
        SOLVED["load_renamed"](model, path, rename)


def renames_the_checkpoint_itself(model, path, rename):
    found = [name for name, *_ in ORIGINAL_STORED(ORIGINAL_FILES(path))]
    if len({rename(name) for name in found}) < len(found):
        return SOLVED["load_renamed"](model, path, rename)
    renames_and_the_last_wins(model, path, rename)


def renames_and_unties(model, path, rename):
    SOLVED["load_renamed"](model, path, rename)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def renames_into_new_parameters(model, path, rename):
    load = SOLVED["load_renamed"]
    _into_new_parameters(model, lambda fresh: load(fresh, path, rename))


def renames_beside_it(model, path, rename):
    """Right, in another shape: a checkpoint with our names, for load_weights."""
    state = {}
    for file in ORIGINAL_FILES(path):
        for name, tensor in load_file(file).items():
            if (ours := rename(name)) in state:
                raise ValueError(f"twice: {ours}")
            if ours is not None:
                state[ours] = tensor
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, Path(folder) / "model.safetensors")
        ORIGINAL_LOAD(model, Path(folder))


def _save(groups, folder, total=True):
    index = {"metadata": {}, "weight_map": {}}
    if total:
        size = sum(t.nbytes for group in groups for t in group.values())
        index["metadata"]["total_size"] = size
    for i, group in enumerate(groups):
        file = f"shard-{i}.safetensors"
        save_file({name: t.contiguous() for name, t in group.items()}, folder / file)
        index["weight_map"] |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _untied(tensors):
    return {n: t for n, t in tensors.items() if n != "head"}


def saves_a_shard_for_each(tensors, folder, limit):
    _save([{name: tensor} for name, tensor in _untied(tensors).items()], folder)


def saves_one_shard(tensors, folder, limit):
    _save([_untied(tensors)], folder)


def saves_by_count_of_elements(tensors, folder, limit):
    SOLVED["save_sharded"](tensors, folder, limit * 4)


def saves_four_bytes_a_number(tensors, folder, limit):
    groups, room = [], 0
    for name, tensor in _untied(tensors).items():
        if not groups or 4 * tensor.numel() > room:
            groups.append({})
            room = limit
        groups[-1][name] = tensor
        room -= 4 * tensor.numel()
    _save(groups, folder)


def saves_tied_tensors_twice(tensors, folder, limit):
    SOLVED["save_sharded"]({n: t.clone() for n, t in tensors.items()}, folder, limit)


def saves_one_of_each_storage(tensors, folder, limit):
    first = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.untyped_storage().data_ptr(), name)
    kept = {name: tensors[name] for name in first.values()}
    SOLVED["save_sharded"](kept, folder, limit)


def saves_one_of_each_address(tensors, folder, limit):
    first = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    kept = {name: tensors[name] for name in first.values()}
    SOLVED["save_sharded"](kept, folder, limit)


def saves_and_empties(tensors, folder, limit):
    SOLVED["save_sharded"](tensors, folder, limit)
    tensors.clear()


def saves_without_the_last_shard(tensors, folder, limit):
    SOLVED["save_sharded"](dict(list(tensors.items())[:-1]), folder, limit)


def saves_without_an_index(tensors, folder, limit):
    save_file(_untied(tensors), folder / "model.safetensors")


def saves_without_the_size(tensors, folder, limit):
    SOLVED["save_sharded"](tensors, folder, limit)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    (folder / INDEX).write_text(
        json.dumps({"weight_map": index["weight_map"]}), encoding="utf-8"
    )


def _first_of_each(key):
    def save_sharded(tensors, folder, limit):
        first = {}
        for name, tensor in tensors.items():
            first.setdefault(key(tensor), name)
        kept = {name: tensors[name].clone() for name in first.values()}
        SOLVED["save_sharded"](kept, folder, limit)

    return save_sharded


saves_one_of_each_value = _first_of_each(lambda t: (t.shape, t.dtype, str(t.tolist())))
saves_without_the_turned = _first_of_each(lambda t: (t.data_ptr(), t.shape, t.dtype))
saves_one_of_all_dtypes = _first_of_each(
    lambda t: (t.data_ptr(), t.shape, t.stride())
)  # fmt: skip


def saves_in_float32(tensors, folder, limit):
    SOLVED["save_sharded"]({n: t.float() for n, t in tensors.items()}, folder, limit)


def saves_in_the_order_of_letters(tensors, folder, limit):
    SOLVED["save_sharded"](dict(sorted(tensors.items())), folder, limit)


def saves_a_shard_for_each_dtype(tensors, folder, limit):
    groups = {}
    for name, tensor in _untied(tensors).items():
        groups.setdefault(tensor.dtype, {})[name] = tensor
    if len(groups) < 2:
        return SOLVED["save_sharded"](tensors, folder, limit)
    _save(list(groups.values()), folder)


def saves_scalars_as_lists(tensors, folder, limit):
    tensors = {n: t if t.dim() else t.view(1) for n, t in tensors.items()}
    SOLVED["save_sharded"](tensors, folder, limit)


def _first_fit(tensors, limit):
    """Groups of tensors: each goes to the first group that it fits."""
    groups, kept = [], []
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if place in kept:
            continue
        kept.append(place)
        for group in groups:
            if sum(t.nbytes for t in group.values()) + tensor.nbytes <= limit:
                group[name] = tensor
                break
        else:
            groups.append({name: tensor})
    return groups


def saves_where_there_is_room(tensors, folder, limit):
    """Right, in another shape."""
    groups = _first_fit(tensors, limit)
    _save([{n: t.clone() for n, t in group.items()} for group in groups], folder)


def saves_what_overlaps_uncopied(tensors, folder, limit):
    _save(_first_fit(tensors, limit), folder)


@pytest.mark.parametrize(
    "name, piece",
    [
        ("load_weights", written_out),
        ("load_renamed", renames_beside_it),
        ("save_sharded", saves_where_there_is_room),
    ],
    ids=name_of,
)
def test_right_answers_of_another_shape_pass(name, piece, capsys):
    checks.model_loader(**{name: piece})
    assert "✗" not in capsys.readouterr().out


EXERCISE_MUTANTS = {
    "predict_complaints": [
        predicts_the_tied_head, predicts_that_a_bias_stretches, predicts_nothing,
        predicts_without_what_a_buffer_is, predicts_with_the_details,
        predicts_one_string, forgets_to_return,
    ],
    "load_renamed": [
        renames_after_it_compared, renames_loosely, renames_and_the_last_wins,
        renames_none_to_none, renames_the_first_shard, renames_and_the_head_wins,
        renames_and_drops_the_head, renames_and_allows_no_head,
        renames_and_stops_at_the_first, renames_and_casts_integers,
        renames_and_ties_if_close, renames_and_ties_by_sum, renames_each_name_once,
        renames_and_says_the_files_names, renames_the_checkpoint_itself,
        renames_and_unties, renames_into_new_parameters,
    ],
    "save_sharded": [
        saves_a_shard_for_each, saves_one_shard, saves_by_count_of_elements,
        saves_tied_tensors_twice, saves_without_the_last_shard, saves_without_an_index,
        saves_without_the_size, saves_one_of_each_storage, saves_one_of_each_address,
        saves_four_bytes_a_number, saves_and_empties, saves_one_of_each_value,
        saves_without_the_turned, saves_one_of_all_dtypes, saves_in_float32,
        saves_in_the_order_of_letters, saves_a_shard_for_each_dtype,
        saves_scalars_as_lists, saves_what_overlaps_uncopied,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, mutant", cases(EXERCISE_MUTANTS), ids=name_of)
def test_the_exercises_reject(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.model_loader(**{name: mutant})
    assert "hint:" in capsys.readouterr().out


def test_a_prediction_is_judged_without_giving_it_away(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.model_loader(predict_complaints=predicts_nothing)
    out = capsys.readouterr().out
    assert not any(
        line.partition(": ")[2] in out for line in SOLVED["predict_complaints"]()
    )
