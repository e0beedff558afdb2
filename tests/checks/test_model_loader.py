"""The suite of the model loader passes on the package and rejects plausible mistakes.

Each mutant is a loader that somebody has shipped: one that leaves a layer random, one
that stretches a bias, one that lets the last shard win.
"""

import ast
import json
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
ORIGINAL_STORED, ORIGINAL_FILES = package.stored_tensors, package.weight_files


def _silent_about(*kinds):
    def misfits(wanted, stored):
        lines = ORIGINAL_MISFITS(wanted, stored)
        return [line for line in lines if not line.startswith(kinds)]

    return misfits


missing_is_fine = _package_with(misfits=_silent_about("missing"))
bias_is_stretched = _package_with(misfits=_silent_about("misshapen"))
integers_are_cast = _package_with(misfits=_silent_about("wrong dtype"))
last_shard_wins = _package_with(misfits=_silent_about("twice"))
meta_is_fine = _package_with(misfits=_silent_about("no memory"))
first_problem_only = _package_with(misfits=lambda w, s: ORIGINAL_MISFITS(w, s)[:1])
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


# ----- mutants of the rest


def every_safetensors_file(path):
    return sorted(path.glob("*.safetensors"))


def shards_unchecked(path):
    if (path / INDEX).is_file():
        names = json.loads((path / INDEX).read_text())["weight_map"].values()
        return [path / name for name in sorted(set(names))]
    return ORIGINAL_FILES(path)


def a_file_for_each_tensor(path):
    if (path / INDEX).is_file():
        names = json.loads((path / INDEX).read_text())["weight_map"].values()
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
        json.loads(path.joinpath(file).read_text()) if (path / file).is_file() else {}
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


def dtype_guessed(config):
    name = config.get("dtype") or config.get("torch_dtype") or ""
    return getattr(torch, name.removeprefix("torch."), torch.float32)


def dtype_of_the_old_key(config):
    return package._DTYPES[config.get("torch_dtype", "float32")]


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
    return json.loads((path / "config.json").read_text())


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
        cut_off_is_safetensors_error,
    ],
    "weight_files": [
        every_safetensors_file, shards_unchecked, a_file_for_each_tensor,
        pickles_as_last_resort, only_bin_is_a_pickle, first_of_several,
    ],
    "eos_token_ids": [
        ends_of_the_tokenizer, ends_without_zero, ends_of_both_files,
        ends_of_the_first_file_that_exists, ends_without_the_tokenizers,
    ],
    "checkpoint_dtype": [dtype_guessed, dtype_of_the_old_key, dtype_null_counts],
    "resolve_checkpoint": [
        any_directory, anything_is_a_hub_name, downloads_everything,
        only_oserror_is_caught,
    ],
    "read_config": [config_without_its_name],
    "ModelLoader": [
        PadsOnTheRight, PadsWithTheEndAlways, ChangesTheConfig, ForgetsTheLength,
        StaysInTraining, AlwaysFloat32, CountsTiedTwice, LeavesMissingRandom,
        DropsTheUnexpected, TellsOneKindOnly, TrustsTransformers,
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
    [LeavesMissingRandom, DropsTheUnexpected, TellsOneKindOnly, TrustsTransformers],
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


def _save(groups, folder, total=True):
    index = {"metadata": {}, "weight_map": {}}
    if total:
        size = sum(t.nbytes for group in groups for t in group.values())
        index["metadata"]["total_size"] = size
    for i, group in enumerate(groups):
        file = f"shard-{i}.safetensors"
        save_file({name: t.contiguous() for name, t in group.items()}, folder / file)
        index["weight_map"] |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps(index))


def _untied(tensors):
    return {n: t for n, t in tensors.items() if n != "head"}


def saves_a_shard_for_each(tensors, folder, limit):
    _save([{name: tensor} for name, tensor in _untied(tensors).items()], folder)


def saves_one_shard(tensors, folder, limit):
    _save([_untied(tensors)], folder)


def saves_by_count_of_elements(tensors, folder, limit):
    SOLVED["save_sharded"](tensors, folder, limit * 4)


def saves_tied_tensors_twice(tensors, folder, limit):
    SOLVED["save_sharded"]({n: t.clone() for n, t in tensors.items()}, folder, limit)


def saves_one_of_each_storage(tensors, folder, limit):
    first = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.untyped_storage().data_ptr(), name)
    kept = {name: tensors[name] for name in first.values()}
    SOLVED["save_sharded"](kept, folder, limit)


def saves_without_the_last_shard(tensors, folder, limit):
    SOLVED["save_sharded"](dict(list(tensors.items())[:-1]), folder, limit)


def saves_without_an_index(tensors, folder, limit):
    save_file(_untied(tensors), folder / "model.safetensors")


def saves_without_the_size(tensors, folder, limit):
    SOLVED["save_sharded"](tensors, folder, limit)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"]}))


EXERCISE_MUTANTS = {
    "predict_complaints": [
        predicts_the_tied_head, predicts_that_a_bias_stretches, predicts_nothing,
        predicts_without_what_a_buffer_is, predicts_with_the_details,
        predicts_one_string, forgets_to_return,
    ],
    "load_renamed": [
        renames_after_it_compared, renames_loosely, renames_and_the_last_wins,
        renames_none_to_none, renames_the_first_shard, renames_and_the_head_wins,
    ],
    "save_sharded": [
        saves_a_shard_for_each, saves_one_shard, saves_by_count_of_elements,
        saves_tied_tensors_twice, saves_without_the_last_shard, saves_without_an_index,
        saves_without_the_size, saves_one_of_each_storage,
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
