"""Notebook 01: the suites for configs and helpers reject plausible mistakes, by name.

The mutants of the four configs themselves stand in test_suites.py; here are those of
the wrong types, of the helpers, and of the three exercises. `solutions` are the
exercises as notebooks/solutions/01_configs.ipynb has them.
"""

import copy
import dataclasses
import json
import math
import random
import uuid

import numpy
import pytest
import torch

from folovllm_lite import checks, utils
from folovllm_lite import config as config_module
from folovllm_lite.config import CacheConfig, EngineConfig, SchedulerConfig
from tests.notebooks.course import NOTEBOOKS


def rejected(suite, name, mutant, capsys):
    """The suite fails with what a learner needs: an input, a result, a hint."""
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        suite(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out
    return out


def by_name(mutants):
    """(name of the piece, mutant) for each, with readable test ids."""
    pairs = [(name, each) for name, group in mutants.items() for each in group]
    return pytest.mark.parametrize(
        "name, mutant", pairs, ids=lambda value: getattr(value, "__name__", value)
    )


def test_the_package_passes(capsys):
    checks.config(config_module)
    checks.utils(utils)
    assert "✗" not in capsys.readouterr().out


# ----- wrong types


def _cache(check):
    @dataclasses.dataclass
    class Mutant(CacheConfig):
        __post_init__ = check

    Mutant.__name__ = check.__name__
    return Mutant


def _ranges(self):
    if not self.block_size >= 1:
        raise ValueError(f"block_size must be positive, got {self.block_size}")
    if not 0 < self.gpu_memory_utilization <= 1:
        raise ValueError(
            "gpu_memory_utilization must be in (0, 1], "
            f"got {self.gpu_memory_utilization}"
        )
    if not self.swap_space >= 0:
        raise ValueError(f"swap_space must be non-negative, got {self.swap_space}")


@_cache
def only_ranges_are_checked(self):
    _ranges(self)


@_cache
def strings_are_converted(self):
    self.block_size, self.swap_space = int(self.block_size), float(self.swap_space)
    _ranges(self)


@_cache
def true_is_an_int(self):
    for name, kind in (("block_size", int), ("enable_prefix_caching", bool)):
        if not isinstance(getattr(self, name), kind):
            raise TypeError(f"{name} is {getattr(self, name)!r}")
    if not isinstance(self.swap_space, int | float):
        raise TypeError(f"swap_space is {self.swap_space!r}")
    _ranges(self)


@_cache
def truthy_flags_are_fine(self):
    if type(self.block_size) is not int:
        raise TypeError(f"block_size is {self.block_size!r}")
    if not isinstance(self.swap_space, int | float):
        raise TypeError(f"swap_space is {self.swap_space!r}")
    _ranges(self)


@pytest.mark.parametrize(
    "mutant",
    [
        only_ranges_are_checked,
        strings_are_converted,
        true_is_an_int,
        truthy_flags_are_fine,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_wrong_types_are_noticed(mutant, capsys):
    out = rejected(checks.config, "CacheConfig", mutant, capsys)
    assert "✗ A value of the wrong type" in out


# ----- the later fields


@_cache
def zero_blocks_count_as_not_given(self):
    fields = dataclasses.asdict(self)
    blocks = fields.pop("num_gpu_blocks_override")
    CacheConfig(**fields, num_gpu_blocks_override=blocks or None)


def _scheduler(check):
    @dataclasses.dataclass
    class Mutant(SchedulerConfig):
        __post_init__ = check

    Mutant.__name__ = check.__name__
    return Mutant


@_scheduler
def any_mode_is_fine(self):
    fields = dataclasses.asdict(self)
    SchedulerConfig(**{**fields, "preemption_mode": None})


@_scheduler
def an_empty_mode_is_none(self):
    fields = dataclasses.asdict(self)
    SchedulerConfig(**{**fields, "preemption_mode": self.preemption_mode or None})


@_scheduler
def modes_are_lowered(self):
    self.preemption_mode = self.preemption_mode and self.preemption_mode.lower()
    SchedulerConfig.__post_init__(self)


@pytest.mark.parametrize(
    "name, mutant",
    [
        ("CacheConfig", zero_blocks_count_as_not_given),
        ("SchedulerConfig", any_mode_is_fine),
        ("SchedulerConfig", an_empty_mode_is_none),
        ("SchedulerConfig", modes_are_lowered),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_later_fields_are_judged_too(name, mutant, capsys):
    assert rejected(checks.config, name, mutant, capsys).count("✗") == 1


# ----- the parts of an engine


def _engine(check):
    @dataclasses.dataclass
    class Mutant(EngineConfig):
        __post_init__ = check

    Mutant.__name__ = check.__name__
    return Mutant


@_engine
def any_part_is_fine(self):
    model_len = self.model_config and getattr(self.model_config, "max_model_len", None)
    given = self.scheduler_config
    scheduler_len = getattr(given, "max_model_len", None)
    if isinstance(given, SchedulerConfig) and scheduler_len is None:
        self.scheduler_config = dataclasses.replace(given, max_model_len=model_len)
    elif model_len is not None and scheduler_len is not None:
        if scheduler_len > model_len:
            raise ValueError(f"{scheduler_len} is more than {model_len}")


@_engine
def the_cache_is_not_looked_at(self):
    cache, self.cache_config = self.cache_config, CacheConfig()
    EngineConfig.__post_init__(self)
    self.cache_config = cache


@_engine
def a_dict_is_taken_for_its_config(self):
    if isinstance(self.cache_config, dict):
        self.cache_config = CacheConfig(**self.cache_config)
    EngineConfig.__post_init__(self)


@_engine
def no_scheduler_is_the_default(self):
    self.scheduler_config = self.scheduler_config or SchedulerConfig()
    EngineConfig.__post_init__(self)


@_engine
def the_part_fails_when_it_is_read(self):
    try:
        EngineConfig.__post_init__(self)
    except TypeError:
        self.model_config.max_model_len = self.scheduler_config.max_model_len  # as was


@pytest.mark.parametrize(
    "mutant",
    [
        any_part_is_fine,
        the_cache_is_not_looked_at,
        a_dict_is_taken_for_its_config,
        no_scheduler_is_the_default,
        the_part_fails_when_it_is_read,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_a_part_that_is_no_config_is_noticed(mutant, capsys):
    out = rejected(checks.config, "EngineConfig", mutant, capsys)
    assert "✗ A part that is no such config" in out and out.count("✗") == 1


@dataclasses.dataclass
class OtherModel(config_module.ModelConfig):
    """As a notebook defines it: of the package's name, and another class."""


@dataclasses.dataclass
class OtherEngine(EngineConfig):
    model_config: OtherModel

    def __post_init__(self):
        if not isinstance(self.model_config, OtherModel):
            raise TypeError(
                f"model_config must be a ModelConfig, got {self.model_config!r}"
            )
        EngineConfig.__post_init__(self)


class OtherStrict(OtherEngine):
    def __post_init__(self):
        super().__post_init__()
        strict_right.__post_init__(self)


def test_an_engine_is_made_of_the_classes_that_it_was_written_for(capsys):
    checks.config(EngineConfig=OtherEngine, StrictEngineConfig=OtherStrict)
    assert "✗" not in capsys.readouterr().out


# ----- the helpers


def seeds_only_torch(seed):
    torch.manual_seed(seed)


def seeds_no_numpy(seed):
    random.seed(seed)
    torch.manual_seed(seed)


def seeds_always_the_same(seed):
    utils.set_random_seed(0)


def seeds_of_32_bits(seed):
    numpy.random.seed(seed)
    utils.set_random_seed(seed)


def id_from_the_seeded_generator():
    return str(random.getrandbits(64))


def id_is_no_string():
    return uuid.uuid4()


def id_is_a_constant():
    return "request-0"


def never_a_gpu():
    return False


def device_is_a_string(device=None):
    return str(utils.get_device(device))


def device_always_cpu(device=None):
    return torch.device(device or "cpu")


def device_unchecked(device=None):
    return utils.get_device() if device is None else torch.device(device)


def device_falls_back(device=None):
    try:
        return utils.get_device(device)
    except ValueError:
        return torch.device("cpu")


def move_copies(tensors, device):
    return [tensor.to(device, copy=True) for tensor in tensors]


def move_in_place(tensors, device):
    tensors[:] = [tensor.to(device) for tensor in tensors]
    return tensors


def move_backwards(tensors, device):
    return [tensor.to(device) for tensor in reversed(tensors)]


def memory_in_gb(device=0):
    found = utils.get_gpu_memory_info(device)
    return {name: round(value * 1.024**3, 2) for name, value in found.items()}


def memory_of_the_first_gpu(device=0):
    return utils.get_gpu_memory_info(0)


def memory_without_a_look(device=0):
    free, total = torch.cuda.mem_get_info(device)
    return {"free_gb": free / 2**30, "total_gb": total / 2**30}


def prints_nothing(device=0):
    pass


UTILS_MUTANTS = {
    "set_random_seed": [
        seeds_only_torch,
        seeds_no_numpy,
        seeds_always_the_same,
        seeds_of_32_bits,
    ],
    "generate_request_id": [
        id_from_the_seeded_generator,
        id_is_no_string,
        id_is_a_constant,
    ],
    "is_cuda_available": [never_a_gpu],
    "get_device": [
        device_is_a_string,
        device_always_cpu,
        device_unchecked,
        device_falls_back,
    ],
    "move_to_device": [move_copies, move_in_place, move_backwards],
    "get_gpu_memory_info": [
        memory_in_gb,
        memory_of_the_first_gpu,
        memory_without_a_look,
    ],
    "print_gpu_memory_info": [prints_nothing],
}


@by_name(UTILS_MUTANTS)
def test_the_utils_suite_rejects(name, mutant, capsys):
    rejected(checks.utils, name, mutant, capsys)


def test_the_utils_suite_leaves_the_generators_alone(capsys):
    utils.set_random_seed(3)
    wanted = random.random(), numpy.random.rand(), torch.rand(1).item()
    utils.set_random_seed(3)
    checks.utils(utils)
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == wanted


# ----- the exercises

RIGHT = {"a": 256, "b": None, "c": 64, "d": "refused", "e": 32, "f": "refused"}


def _predicting(**changed):
    def predicted_lengths():
        return {**RIGHT, **changed}

    predicted_lengths.__name__ = "_".join(f"{k}_{v}" for k, v in changed.items())
    return predicted_lengths


def predicts_nothing():
    return {}


def _strict(check):
    class Strict(EngineConfig):
        __post_init__ = check

    Strict.__name__ = check.__name__
    return Strict


def _budgets(self):
    given = self.scheduler_config
    return given.max_num_batched_tokens, given.max_num_seqs, given.max_model_len


def _refuse(small, large):
    raise ValueError(f"max_num_batched_tokens is {small}, and {large} are needed")


@_strict
def strict_right(self):
    EngineConfig.__post_init__(self)
    budget, seqs, length = _budgets(self)
    if budget is None:
        return
    if budget < seqs:
        _refuse(budget, seqs)
    if self.scheduler_config.enable_chunked_prefill or length is None:
        return
    if budget < length:
        _refuse(budget, length)


@_strict
def strict_forgets_the_sync(self):
    budget, seqs, length = _budgets(self)
    if budget is not None and budget < max(seqs, length or 0):
        _refuse(budget, max(seqs, length or 0))


@_strict
def strict_looks_before_the_sync(self):
    budget, seqs, length = _budgets(self)
    strict_right.__post_init__(self) if length else EngineConfig.__post_init__(self)
    if budget is not None and budget < seqs:
        _refuse(budget, seqs)


@_strict
def strict_refuses_no_budget(self):
    EngineConfig.__post_init__(self)
    budget, seqs, _ = _budgets(self)
    if not budget or budget < seqs:
        _refuse(budget, seqs)


@_strict
def strict_refuses_the_exact_budget(self):
    EngineConfig.__post_init__(self)
    budget, seqs, length = _budgets(self)
    if budget is not None and budget <= max(seqs, length or 0):
        _refuse(budget, max(seqs, length or 0))


@_strict
def strict_forgets_chunked_prefill(self):
    EngineConfig.__post_init__(self)
    budget, seqs, length = _budgets(self)
    if budget is not None and budget < max(seqs, length or 0):
        _refuse(budget, max(seqs, length or 0))


@_strict
def strict_chunked_allows_everything(self):
    EngineConfig.__post_init__(self)
    if not self.scheduler_config.enable_chunked_prefill:
        strict_right.__post_init__(self)


@_strict
def strict_raises_the_budget(self):
    EngineConfig.__post_init__(self)
    budget, seqs, length = _budgets(self)
    if budget is not None:
        self.scheduler_config = dataclasses.replace(
            self.scheduler_config, max_num_batched_tokens=max(budget, seqs, length or 0)
        )


@_strict
def strict_compares_with_the_models_length(self):
    EngineConfig.__post_init__(self)
    budget, seqs, _ = _budgets(self)
    length = self.model_config.max_model_len
    chunked = self.scheduler_config.enable_chunked_prefill
    if budget is not None and budget < max(seqs, 0 if chunked else length or 0):
        _refuse(budget, max(seqs, length or 0))


@_strict
def strict_settles_by_itself(self):
    model, scheduler = self.model_config.max_model_len, self.scheduler_config
    if scheduler.max_model_len is None:
        scheduler.max_model_len = model  # the caller's
    strict_right.__post_init__(self)


@_strict
def strict_takes_any_part(self):
    if isinstance(self.cache_config, CacheConfig):
        return strict_right.__post_init__(self)
    strict_right.__post_init__(dataclasses.replace(self, cache_config=CacheConfig()))


@_strict
def strict_needs_a_models_length(self):
    EngineConfig.__post_init__(self)
    budget, seqs, _ = _budgets(self)
    if budget is not None and budget < seqs:
        _refuse(budget, seqs)
    if self.model_config.max_model_len is not None:
        strict_right.__post_init__(self)


@_strict
def strict_needs_some_length(self):
    EngineConfig.__post_init__(self)
    if self.scheduler_config.max_model_len is not None:
        strict_right.__post_init__(self)


@_strict
def strict_names_the_models_length(self):
    EngineConfig.__post_init__(self)
    budget, seqs, length = _budgets(self)
    try:
        strict_right.__post_init__(self)
    except ValueError:
        _refuse(budget, seqs if budget < seqs else self.model_config.max_model_len)


@_strict
def strict_cuts_the_length(self):
    strict_right.__post_init__(self)
    budget, _, length = _budgets(self)
    if budget and length:
        self.scheduler_config = dataclasses.replace(
            self.scheduler_config, max_model_len=min(budget, length)
        )


@_strict
def strict_wants_a_budget_for_chunks(self):
    strict_right.__post_init__(self)
    given = self.scheduler_config
    if given.enable_chunked_prefill and given.max_num_batched_tokens is None:
        raise ValueError("max_num_batched_tokens is None")


def _limits(config, positions):
    given = config.scheduler_config.max_model_len
    return min(positions, given or positions)


def length_right(num_blocks, config, positions):
    seqs = config.scheduler_config.max_num_seqs
    if num_blocks < seqs:
        raise ValueError(f"{num_blocks} blocks are too few for {seqs} texts")
    fits = num_blocks // seqs * config.cache_config.block_size
    return min(fits, _limits(config, positions))


def length_divides_tokens(num_blocks, config, positions):
    length_right(num_blocks, config, positions)
    tokens = num_blocks * config.cache_config.block_size
    fits = tokens // config.scheduler_config.max_num_seqs
    return min(fits, _limits(config, positions))


def length_of_one_text(num_blocks, config, positions):
    length_right(num_blocks, config, positions)
    fits = num_blocks * config.cache_config.block_size
    return min(fits, _limits(config, positions))


def length_in_blocks(num_blocks, config, positions):
    return min(
        num_blocks // config.scheduler_config.max_num_seqs, _limits(config, positions)
    )


def length_of_one_token_too_few(num_blocks, config, positions):
    return length_right(num_blocks, config, positions) - 1


def length_beyond_the_positions(num_blocks, config, positions):
    return length_right(num_blocks, config, 10**9)


def length_beyond_the_config(num_blocks, config, positions):
    length_right(num_blocks, config, positions)
    seqs = config.scheduler_config.max_num_seqs
    return min(num_blocks // seqs * config.cache_config.block_size, positions)


def length_by_the_models_config(num_blocks, config, positions):
    given = config.model_config.max_model_len
    scheduler = dataclasses.replace(config.scheduler_config, max_model_len=given)
    changed = dataclasses.replace(config, scheduler_config=scheduler)
    return length_right(num_blocks, changed, positions)


def length_may_be_zero(num_blocks, config, positions):
    fits = num_blocks // config.scheduler_config.max_num_seqs
    return min(fits * config.cache_config.block_size, _limits(config, positions))


def length_is_a_float(num_blocks, config, positions):
    return float(length_right(num_blocks, config, positions))


def length_is_written_down(num_blocks, config, positions):
    found = length_right(num_blocks, config, positions)
    config.scheduler_config.max_model_len = found
    return found


def length_must_be_reached(num_blocks, config, positions):
    found = length_right(num_blocks, config, positions)
    if found < (config.scheduler_config.max_model_len or 0):
        raise ValueError(f"{num_blocks} blocks are too few")
    return found


def length_of_no_blocks(num_blocks, config, positions):
    return num_blocks and length_right(num_blocks, config, positions)


def length_within_the_budget(num_blocks, config, positions):
    found = length_right(num_blocks, config, positions)
    return min(found, config.scheduler_config.max_num_batched_tokens or found)


EXERCISE_MUTANTS = {
    "predicted_lengths": [
        predicts_nothing,
        _predicting(a=None),
        _predicting(b=256),  # the first engine would have written to `shared`
        _predicting(c=256),
        _predicting(d=32),  # clamped in silence
        _predicting(d=64),
        _predicting(e="refused"),
        _predicting(f=128),
        _predicting(f=256),
    ],
    "StrictEngineConfig": [
        strict_forgets_the_sync,
        strict_looks_before_the_sync,
        strict_refuses_no_budget,
        strict_refuses_the_exact_budget,
        strict_forgets_chunked_prefill,
        strict_chunked_allows_everything,
        strict_raises_the_budget,
        strict_compares_with_the_models_length,
        strict_settles_by_itself,
        strict_takes_any_part,
        strict_needs_a_models_length,
        strict_needs_some_length,
        strict_names_the_models_length,
        strict_cuts_the_length,
        strict_wants_a_budget_for_chunks,
    ],
    "longest_length": [
        length_divides_tokens,
        length_of_one_text,
        length_in_blocks,
        length_of_one_token_too_few,
        length_beyond_the_positions,
        length_beyond_the_config,
        length_by_the_models_config,
        length_may_be_zero,
        length_is_a_float,
        length_is_written_down,
        length_must_be_reached,
        length_of_no_blocks,
        length_within_the_budget,
    ],
}


@by_name(EXERCISE_MUTANTS)
def test_the_exercises_reject(name, mutant, capsys):
    rejected(checks.config, name, mutant, capsys)


def test_a_right_answer_passes(capsys):
    checks.config(
        predicted_lengths=_predicting(),
        StrictEngineConfig=strict_right,
        longest_length=length_right,
    )
    assert "All 11 properties hold." in capsys.readouterr().out


@dataclasses.dataclass
class StrictData(EngineConfig):
    def __post_init__(self):
        super().__post_init__()
        given = self.scheduler_config
        needed = {"max_num_seqs": given.max_num_seqs}
        if not given.enable_chunked_prefill and given.max_model_len is not None:
            needed["max_model_len"] = given.max_model_len
        for name, count in needed.items():
            if given.max_num_batched_tokens not in (None, *range(count, 10**6)):
                raise ValueError(f"{given.max_num_batched_tokens} < {name}={count}")


def length_by_trying(num_blocks, config, positions):
    given, size = config.scheduler_config, config.cache_config.block_size
    limit = min(positions, given.max_model_len or positions)
    for length in range(limit, 0, -1):
        if given.max_num_seqs * -(-length // size) <= num_blocks:
            return length
    raise ValueError(f"{given.max_num_seqs} texts can't share {num_blocks} blocks")


@_engine
def engine_copies_everything(self):
    for part in dataclasses.fields(self):
        value = getattr(self, part.name)
        if not isinstance(value, part.type):
            raise TypeError(f"{part.name}: {value} is no {part.type.__name__}")
        setattr(self, part.name, copy.deepcopy(value))
    model, scheduler = self.model_config, self.scheduler_config
    scheduler.max_model_len = scheduler.max_model_len or model.max_model_len
    if (scheduler.max_model_len or 0) > (model.max_model_len or math.inf):
        raise ValueError(f"{scheduler.max_model_len} is above {model.max_model_len}")


def test_other_right_answers_pass(capsys):
    checks.config(
        EngineConfig=engine_copies_everything,
        StrictEngineConfig=StrictData,
        longest_length=length_by_trying,
    )
    assert "✗" not in capsys.readouterr().out


def test_a_wrong_prediction_is_not_told_the_answer(capsys):
    out = rejected(checks.config, "predicted_lengths", _predicting(f=128), capsys)
    (line,) = [line for line in out.splitlines() if "expected:" in line]
    assert line.split() == ["expected:", "something", "else"]


def test_the_solutions_pass(capsys):
    """Their cells, run here without a kernel."""
    file = NOTEBOOKS / "solutions" / "01_configs.ipynb"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    out = capsys.readouterr().out
    assert "✗" not in out and out.count("properties hold.") == 3


@pytest.mark.parametrize("answer", ["None", 64.0, True, "32"])
def test_a_prediction_of_the_wrong_kind_is_told_the_kinds(answer, capsys):
    out = rejected(checks.config, "predicted_lengths", _predicting(e=answer), capsys)
    assert "expected: a number, None or 'refused'" in out


def test_a_prediction_that_is_no_dict_is_told_so(capsys):
    out = rejected(checks.config, "predicted_lengths", lambda: None, capsys)
    assert "expected: a dict" in out


def length_without_a_look_at_none(num_blocks, config, positions):
    return min(positions, config.scheduler_config.max_model_len)


@pytest.mark.parametrize(
    "name, mutant, given",
    [
        ("StrictEngineConfig", strict_refuses_the_exact_budget, "budget 64, length 64"),
        ("StrictEngineConfig", strict_refuses_no_budget, "no budget, length 512"),
        ("longest_length", length_without_a_look_at_none, "1 text, max_model_len None"),
    ],
)
def test_an_unexpected_error_is_shown_with_its_input(name, mutant, given, capsys):
    out = rejected(checks.config, name, mutant, capsys)
    (line,) = [line for line in out.splitlines() if given in line]
    assert line.strip().startswith("input:")
