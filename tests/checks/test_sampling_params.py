"""The suite of notebook 02 passes on the package and rejects plausible mistakes.

A mutant of SamplingParams is the package's source with one edit that somebody could
have made; mutants of the exercises are wrong answers that look right.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args, get_origin

import pytest
import torch

from folovllm_lite import checks
from folovllm_lite import sampling_params as module
from folovllm_lite.checks.sampling_params_suite import _DEFAULTS, _ENDINGS
from folovllm_lite.processor import OutputBuilder, TokenTexts
from folovllm_lite.sampler import SamplingRow, sample
from folovllm_lite.sampling_params import SamplingParams


def test_the_package_passes(capsys):
    checks.sampling_params(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "properties hold." in out


def test_the_suite_knows_every_field():
    assert list(_DEFAULTS) == list(SamplingParams.__dataclass_fields__)


# ----- SamplingParams: name of the mistake to (what stands there, what stands instead)

MUTANTS = {
    "n_may_be_zero": ("self.n < 1", "self.n < 0"),
    "best_of_must_be_more_than_n": ("self.best_of < self.n", "self.best_of <= self.n"),
    "best_of_stays_none": (
        "self.best_of = self.n if self.best_of is None else self.best_of",
        "pass",
    ),
    "best_of_zero_counts_as_none": (
        "self.n if self.best_of is None else self.best_of",
        "self.best_of or self.n",
    ),
    "best_of_is_raised_to_n": (
        "self.n if self.best_of is None else self.best_of",
        "max(self.n, self.best_of or 0)",
    ),
    "best_of_forgets_the_numbers": (
        'f"best_of ({self.best_of}) must be >= n ({self.n})"',
        '"best_of must be >= n"',
    ),
    "temperature_zero_is_refused": ("self.temperature < 0", "self.temperature <= 0"),
    "temperature_is_clamped": (
        "        self._check_values()\n\n",
        "        self.temperature = max(0, self.temperature)\n"
        "        self._check_values()\n\n",
    ),
    "small_temperatures_are_raised": (
        "        self._check_values()\n\n",
        "        if 0 < self.temperature < 0.01:\n"
        "            self.temperature = 0.01\n"
        "        self._check_values()\n\n",
    ),
    "tiny_temperatures_pass": ("0 < self.temperature < 1e-5", "False"),
    "tiny_temperatures_are_greedy": (
        "        self._check_values()\n\n",
        "        if 0 < self.temperature < 1e-5:\n"
        "            self.temperature = 0.0\n"
        "        self._check_values()\n\n",
    ),
    "tiny_temperatures_are_raised": (
        "        self._check_values()\n\n",
        "        if 0 < self.temperature < 1e-5:\n"
        "            self.temperature = 1e-5\n"
        "        self._check_values()\n\n",
    ),
    "the_smallest_temperature_is_refused": (
        "0 < self.temperature < 1e-5",
        "0 < self.temperature <= 1e-5",
    ),
    "greedy_counts_as_tiny": (
        "0 < self.temperature < 1e-5",
        "0 <= self.temperature < 1e-5",
    ),
    "only_what_overflows_is_tiny": (
        "0 < self.temperature < 1e-5",
        "0 < self.temperature < 1e-38",
    ),
    "the_smallest_temperature_becomes_zero": (
        "        self._check_values()\n\n",
        "        self._check_values()\n"
        "        self.temperature = round(self.temperature, 4)\n\n",
    ),
    "top_p_may_be_zero": ("not 0 < self.top_p <= 1", "not 0 <= self.top_p <= 1"),
    "top_p_must_be_below_one": ("not 0 < self.top_p <= 1", "not 0 < self.top_p < 1"),
    "top_k_zero_is_off": ("self.top_k < -1 or self.top_k == 0", "self.top_k < -1"),
    "any_negative_top_k_is_off": (
        "self.top_k < -1 or self.top_k == 0",
        "self.top_k == 0",
    ),
    "min_p_zero_is_refused": ("not 0 <= self.min_p <= 1", "not 0 < self.min_p <= 1"),
    "min_p_has_no_upper_end": ("not 0 <= self.min_p <= 1", "self.min_p < 0"),
    "penalties_end_before_two": (
        "not -2 <= getattr(self, name) <= 2",
        "not -2 < getattr(self, name) < 2",
    ),
    "only_presence_is_checked": (
        '("presence_penalty", "frequency_penalty")',
        '("presence_penalty",)',
    ),
    "repetition_may_be_next_to_zero": (
        "not 1e-5 <= self.repetition_penalty <= 1e5",
        "not 0 < self.repetition_penalty <= 1e5",
    ),
    "repetition_may_be_zero": (
        "not 1e-5 <= self.repetition_penalty <= 1e5",
        "not 0 <= self.repetition_penalty <= 1e5",
    ),
    "repetition_like_the_others": (
        "not 1e-5 <= self.repetition_penalty <= 1e5",
        "not -2 <= self.repetition_penalty <= 2",
    ),
    "a_lone_string_is_listed_by_letters": (
        "[self.stop] if isinstance(self.stop, str) else list(self.stop or [])",
        "list(self.stop or [])",
    ),
    "stop_is_the_callers_list": ("list(self.stop or [])", "self.stop or []"),
    "ids_are_the_callers_list": (
        "list(dict.fromkeys(self.stop_token_ids or []))",
        "self.stop_token_ids or []",
    ),
    "no_ids_stay_none": (
        "list(dict.fromkeys(self.stop_token_ids or []))",
        "self.stop_token_ids and list(self.stop_token_ids)",
    ),
    "defaults_are_shared": (
        "list(dict.fromkeys(self.stop_token_ids or []))",
        "self.stop_token_ids or _NOTHING",
    ),
    "empty_stop_strings_pass": ('if "" in self.stop:', "if False:"),
    "token_zero_can_not_stop": (
        "not 0 <= token_id < 2**63",
        "not 1 <= token_id < 2**63",
    ),
    "max_tokens_zero_counts_as_none": (
        "self.max_tokens is not None and self.max_tokens < 1",
        "self.max_tokens and self.max_tokens < 1",
    ),
    "max_tokens_must_be_given": (
        "max_tokens: int | None = 16",
        "max_tokens: int = 16",
    ),
    "min_tokens_may_be_negative": ("self.min_tokens < 0", "False"),
    "min_must_be_below_max": (
        "self.min_tokens > self.max_tokens",
        "self.min_tokens >= self.max_tokens",
    ),
    "min_and_max_are_not_compared": (
        "self.max_tokens is not None and self.min_tokens > self.max_tokens",
        "False",
    ),
    "logprobs_zero_is_refused": (
        "value is not None and value < 0",
        "value is not None and value < 1",
    ),
    "prompt_logprobs_are_not_checked": (
        '("logprobs", "prompt_logprobs")',
        '("logprobs",)',
    ),
    "seed_zero_counts_as_none": (
        "        self._check_values()\n\n",
        "        self.seed = self.seed or None\n        self._check_values()\n\n",
    ),
    "ints_have_no_upper_end": (
        "isinstance(value, int) and not -(2**63)",
        "False and not -(2**63)",
    ),
    "nan_slips_through": (
        "wanted is float and not abs(value) <= _LARGEST",
        "wanted is float and abs(value) > _LARGEST",
    ),
    "infinity_slips_through": ("not abs(value) <= _LARGEST", "value != value"),
    "true_is_an_int": ("if isinstance(value, bool):", "if annotation is bool:"),
    "one_is_a_flag": ("return annotation is bool", "return annotation in (bool, int)"),
    "ints_are_no_floats": ("int | float if annotation is float else annotation",
                           "annotation"),
    "types_are_not_checked": ("self._check_types()", "pass"),
    "types_are_converted": (
        "self._check_types()",
        "self.n, self.temperature = int(self.n), float(self.temperature)\n"
        "        self._check_types()",
    ),
    "error_hides_the_value": (", got {value!r}", ""),
    "error_hides_the_field": ("{field.name} must be {wanted}", "that must be {wanted}"),
    "items_are_not_looked_at": (
        "listed and all(_fits(item, kinds[0]) for item in value)",
        "listed",
    ),
    "a_tuple_is_no_list": (
        "isinstance(value, list | tuple)",
        "isinstance(value, list)",
    ),
    "beam_search_is_ignored": ("if self.use_beam_search:", "if False:"),
    "length_penalty_is_ignored": (
        "self.length_penalty != 1.0 or self.early_stopping",
        "self.early_stopping",
    ),
    "greedy_below_a_threshold": (
        "if self.temperature == 0",
        "if self.temperature < 0.001",
    ),
    "any_keyword_is_taken": (
        "    def __post_init__(self)",
        "    def __init__(self, **given):\n"
        "        for field in fields(self):\n"
        "            setattr(self, field.name, given.get(field.name, field.default))\n"
        "        self.__post_init__()\n\n"
        "    def __post_init__(self)",
    ),
    "kind_is_stored": (
        "        self._check_values()\n\n    @property\n    def sampling_type(self)",
        "        self._check_values()\n"
        "        if not hasattr(SamplingParams, 'first'):\n"
        "            SamplingParams.first = self._kind()\n\n"
        "    @property\n    def sampling_type(self):\n"
        "        return SamplingParams.first\n\n    def _kind(self)",
    ),
    "another_default_for_max_tokens": (
        "max_tokens: int | None = 16",
        "max_tokens: int | None = None",
    ),
}  # fmt: skip


def mutant(old: str, new: str) -> type:
    """The package's class after one edit of its source."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} stands there {source.count(old)} times"
    names = {"__name__": "mutant", "_NOTHING": []}
    exec(compile(source.replace(old, new), "mutant.py", "exec"), names)
    return names["SamplingParams"]


@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_rejects(name, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.sampling_params(SamplingParams=mutant(*MUTANTS[name]))
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


@pytest.mark.parametrize(
    "name",
    ["tiny_temperatures_pass", "tiny_temperatures_are_greedy",
     "tiny_temperatures_are_raised", "the_smallest_temperature_is_refused",
     "greedy_counts_as_tiny", "only_what_overflows_is_tiny",
     "the_smallest_temperature_becomes_zero"],
)  # fmt: skip
def test_tiny_temperatures_have_a_line_of_their_own(name, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(SamplingParams=mutant(*MUTANTS[name]))
    line = capsys.readouterr().out.partition("✗ Between 0 and 1e-5 ")[2]
    assert "input:    SamplingParams(temperature=" in line.splitlines()[1]


def test_the_kind_that_is_another_enum(capsys):
    class Kind:
        GREEDY, RANDOM = 1, 0

    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(SamplingType=Kind)
    assert "sampling_type" in capsys.readouterr().out


# ----- _fits


def _fits_with(item=None, listed=None, union=None):
    """The package's `_fits` with one part of it done in another way."""

    def _fits(value, annotation):
        kinds = get_args(annotation)
        if get_origin(annotation) is list:
            if listed:
                return listed(value, kinds[0], _fits)
            asked = item or _fits
            return isinstance(value, list | tuple) and all(
                asked(each, kinds[0]) for each in value
            )
        if kinds:
            asked = union or (lambda value, kinds: any(_fits(value, k) for k in kinds))
            return asked(value, kinds)
        return module._fits(value, annotation)

    return _fits


WRONG_FITS = {
    "items_by_isinstance": _fits_with(
        item=lambda x, kind: isinstance(x, kind) and not isinstance(x, bool)),
    "items_by_type": _fits_with(item=lambda x, kind: type(x) is kind),
    "the_last_item_only": _fits_with(
        listed=lambda x, kind, fits: isinstance(x, list | tuple)
        and (not x or fits(x[-1], kind))),
    "the_ends_only": _fits_with(
        listed=lambda x, kind, fits: isinstance(x, list | tuple)
        and (not x or fits(x[-1], kind) and fits(x[0], kind))),
    "any_sequence": _fits_with(
        listed=lambda x, kind, fits: isinstance(x, Sequence)
        and not isinstance(x, str) and all(fits(y, kind) for y in x)),
    "any_tuple": _fits_with(
        listed=lambda x, kind, fits: isinstance(x, tuple) or isinstance(x, list)
        and all(fits(y, kind) for y in x)),
    "none_fits_every_union": _fits_with(
        union=lambda x, kinds: x is None or any(module._fits(x, k) for k in kinds)),
    "no_bool_in_a_union": _fits_with(
        union=lambda x, kinds: not isinstance(x, bool)
        and any(module._fits(x, k) for k in kinds)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FITS)
def test_the_suite_rejects_wrong_fits(name, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(_fits=WRONG_FITS[name])
    out = capsys.readouterr().out
    assert "hint:" in out and out.count("✗") <= 2


def test_the_suite_accepts_exact_types(capsys):
    def _fits(value, annotation):
        match get_origin(annotation), get_args(annotation):
            case None, _:
                allowed = (int, float) if annotation is float else (annotation,)
                return type(value) in allowed
            case origin, (part,) if origin is list:
                listed = type(value) in (list, tuple)
                return listed and not [x for x in value if not _fits(x, part)]
            case _, parts:
                return True in [_fits(value, part) for part in parts]

    checks.sampling_params(_fits=_fits)


# ----- exercise 1


def test_the_answers_are_what_the_engine_does():
    """The toy of the notebook, with the engine's own sampler and output builder."""
    words = ["<end>", "the", "cat", "dog", "ran", "and"]
    table = torch.tensor(
        [
            [0.000, 0.750, 0.000, 0.000, 0.000, 0.250],
            [0.000, 0.000, 0.500, 0.375, 0.125, 0.000],
            [0.125, 0.000, 0.000, 0.000, 0.625, 0.250],
            [0.250, 0.000, 0.000, 0.000, 0.500, 0.250],
            [0.500, 0.125, 0.000, 0.000, 0.000, 0.375],
            [0.000, 0.625, 0.125, 0.250, 0.000, 0.000],
        ]
    )

    class Words:
        all_special_ids, eos_token_id = (), 0

        def decode(self, ids, **_):
            return " ".join(words[i] for i in ids)

    requests = {
        "A": {"max_tokens": 3, "ignore_eos": True},
        "B": {"max_tokens": 6, "min_tokens": 3},
        "C": {"stop": "an"},
        "D": {"stop": "ran", "min_tokens": 2},
        "E": {"ignore_eos": True, "stop_token_ids": [0], "min_tokens": 4},
        "F": {"max_tokens": 2, "stop": "cat ran"},
    }
    for letter, given in requests.items():
        params = SamplingParams(temperature=0, **given)
        texts = TokenTexts(Words())
        builder = OutputBuilder(texts, [1], params, (0,), params.max_tokens)
        row = SamplingRow(params, [1], builder.token_ids, builder.stop_token_ids)
        last = 1
        while builder.finish_reason is None:
            last = int(sample(table[[last]].log(), [row]).token_ids)
            builder.append(last, 0.0)
        got = (len(builder.token_ids), builder.finish_reason)
        assert got == _ENDINGS[letter], letter


@pytest.mark.parametrize("letter", _ENDINGS)
def test_a_wrong_prediction_gets_a_hint_and_no_answer(letter, capsys):
    count, reason = _ENDINGS[letter]
    checks.sampling_params(predict_endings=lambda: dict(_ENDINGS))
    for wrong in ((count + 1, reason), (count, {"stop": "length"}.get(reason, "stop"))):
        told = {**_ENDINGS, letter: wrong}
        with pytest.raises(checks.CheckFailed):
            checks.sampling_params(predict_endings=lambda told=told: told)
        out = capsys.readouterr().out
        assert f"request {letter}" in out and repr(_ENDINGS[letter]) not in out
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(predict_endings=lambda: None)


# ----- exercise 2


@dataclass
class Allowed(SamplingParams):
    allowed_token_ids: list[int] | None = None

    def __post_init__(self):
        super().__post_init__()
        ids = self.allowed_token_ids
        if ids is None:
            return
        self.allowed_token_ids = list(ids)
        if not ids or min(ids) < 0:
            raise ValueError(f"allowed_token_ids must be ids >= 0, got {ids}")
        if self.min_tokens > 0 and set(ids) <= set(self.stop_token_ids):
            raise ValueError("allowed_token_ids, stop_token_ids, min_tokens")


@dataclass
class EmptyIsNone(Allowed):
    def __post_init__(self):
        self.allowed_token_ids = self.allowed_token_ids or None
        super().__post_init__()


@dataclass
class NoneIsEmpty(Allowed):
    def __post_init__(self):
        super().__post_init__()
        self.allowed_token_ids = list(self.allowed_token_ids or [])


@dataclass
class Untyped(SamplingParams):
    allowed_token_ids: list = None

    __post_init__ = Allowed.__post_init__


@dataclass
class CallersList(Allowed):
    def __post_init__(self):
        ids = self.allowed_token_ids
        super().__post_init__()
        self.allowed_token_ids = ids


@dataclass
class WithoutSuper(Allowed):
    def __post_init__(self):
        self._check_types()
        self.stop_token_ids = self.stop_token_ids or []
        ids = self.allowed_token_ids
        self.allowed_token_ids = None if ids is None else list(ids)
        if ids is not None and (not ids or min(ids) < 0):
            raise ValueError(f"allowed_token_ids: {ids}")
        if ids and self.min_tokens > 0 and set(ids) <= set(self.stop_token_ids):
            raise ValueError("allowed_token_ids, min_tokens")


@dataclass
class NegativeIds(Allowed):
    def __post_init__(self):
        ids = self.allowed_token_ids
        self.allowed_token_ids = [abs(i) for i in ids] if type(ids) is list else ids
        super().__post_init__()


@dataclass
class AnyOverlap(Allowed):
    def __post_init__(self):
        super().__post_init__()
        if self.min_tokens and {*(self.allowed_token_ids or [])} & {
            *self.stop_token_ids
        }:
            raise ValueError("allowed_token_ids, min_tokens")


@dataclass
class NoContradiction(Allowed):
    def __post_init__(self):
        count, self.min_tokens = self.min_tokens, 0
        super().__post_init__()
        self.min_tokens = count


@dataclass
class AlwaysAContradiction(Allowed):
    def __post_init__(self):
        super().__post_init__()
        ids = self.allowed_token_ids
        if ids and set(ids) <= set(self.stop_token_ids):
            raise ValueError("allowed_token_ids, min_tokens")


@dataclass
class TwoNames(Allowed):
    def __post_init__(self):
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(str(error).replace("stop_token_ids", "")) from error


@dataclass
class LastIdOnly(Allowed):
    def __post_init__(self):
        ids = self.allowed_token_ids
        if type(ids) is list and ids and -1 in ids[:-1]:
            self.allowed_token_ids = [i for i in ids if i != -1]
        super().__post_init__()
        self.allowed_token_ids = ids and [*ids]


@dataclass
class NoStopsIsAContradiction(Allowed):
    def __post_init__(self):
        super().__post_init__()
        if self.allowed_token_ids and self.min_tokens and not self.stop_token_ids:
            raise ValueError("allowed_token_ids, stop_token_ids, min_tokens")


@dataclass
class OneTokenEarly(Allowed):
    def __post_init__(self):
        count = self.min_tokens
        self.min_tokens = count if count == 1 or type(count) is not int else 0
        super().__post_init__()
        self.min_tokens = count


@dataclass
class StopsAreTakenOut(Allowed):
    def __post_init__(self):
        super().__post_init__()
        if self.allowed_token_ids and self.min_tokens:
            stops = self.stop_token_ids
            self.allowed_token_ids = [
                i for i in self.allowed_token_ids if i not in stops
            ]


@dataclass
class StopsAreKeptTwice(Allowed):
    def __post_init__(self):
        ids = self.stop_token_ids
        super().__post_init__()
        self.stop_token_ids = list(ids or [])


@dataclass
class InCheckValues(SamplingParams):
    allowed_token_ids: list[int] | None = None

    def _check_values(self):
        super()._check_values()
        if self.allowed_token_ids is None:
            return
        self.allowed_token_ids = [*self.allowed_token_ids]
        for i in self.allowed_token_ids:
            if i < 0:
                raise ValueError(f"allowed_token_ids holds {i}")
        left = [i for i in self.allowed_token_ids if i not in self.stop_token_ids]
        if not self.allowed_token_ids or (self.min_tokens and not left):
            raise ValueError(f"nothing left: {self}")


@pytest.mark.parametrize("right", [Allowed, InCheckValues])
def test_the_suite_accepts_an_answer_to_exercise_2(right, capsys):
    checks.sampling_params(AllowedParams=right)


@pytest.mark.parametrize(
    "wrong",
    [EmptyIsNone, NoneIsEmpty, Untyped, CallersList, WithoutSuper, NegativeIds,
     AnyOverlap, NoContradiction, AlwaysAContradiction, TwoNames, LastIdOnly,
     NoStopsIsAContradiction, OneTokenEarly, StopsAreTakenOut, StopsAreKeptTwice],
)  # fmt: skip
def test_the_suite_rejects_wrong_answers_to_exercise_2(wrong, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(AllowedParams=wrong)
    assert "hint:" in capsys.readouterr().out


def test_a_good_request_that_is_refused_is_shown(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(AllowedParams=AlwaysAContradiction)
    out = capsys.readouterr().out
    given = "AllowedParams(allowed_token_ids=[1], stop_token_ids=[1])"
    assert f"input:    {given}\n    got:      ValueError: " in out


# ----- exercise 3


def split(params):
    seeds = [None] * params.best_of
    if params.seed is not None:
        seeds = [(params.seed + i) % 2**63 for i in range(params.best_of)]
    return [replace(params, n=1, best_of=1, seed=seed) for seed in seeds]


def keeps_best_of(params):
    return [replace(child, best_of=params.best_of) for child in split(params)]


def n_children(params):
    return split(params)[: params.n]


def shallow_copies(params):
    children = []
    for seed in [child.seed for child in split(params)]:
        child = copy.copy(params)
        child.n, child.best_of, child.seed = 1, 1, seed
        children.append(child)
    return children


def changes_the_parent(params):
    children = split(params)
    params.n = params.best_of = 1
    return children


def the_same_seed(params):
    return [replace(child, seed=params.seed) for child in split(params)]


def seeds_from_one(params):
    seed = None if params.seed is None else (params.seed + 1) % 2**63
    return split(replace(params, seed=seed))


def seed_zero_is_none(params):
    return split(replace(params, seed=params.seed or None))


def seeds_made_up(params):
    return split(replace(params, seed=params.seed or 0))


def seeds_run_over(params):
    seeds = [params.seed and params.seed + i for i in range(params.best_of)]
    return [replace(params, n=1, best_of=1, seed=seed) for seed in seeds]


def one_child_many_times(params):
    return [split(params)[0]] * params.best_of


def only_what_is_named(params):
    return [
        SamplingParams(temperature=params.temperature, seed=child.seed)
        for child in split(params)
    ]


def over_the_largest_comes_0(params):
    seeds = [child.seed for child in split(params)]
    if params.seed is not None:
        seeds = [
            params.seed + i if params.seed + i < 2**63 else 0 for i in range(len(seeds))
        ]
    return [replace(c, seed=s) for c, s in zip(split(params), seeds, strict=True)]


def max_tokens_filled_in(params):
    return [
        replace(child, max_tokens=child.max_tokens or 16) for child in split(params)
    ]


def logprobs_filled_in(params):
    return [replace(child, logprobs=child.logprobs or 0) for child in split(params)]


def greedy_children_share_a_seed(params):
    if params.temperature:
        return split(params)
    return [replace(child, seed=params.seed) for child in split(params)]


def the_parents_ids_for_an_only_child(params):
    children = split(params)
    if len(children) == 1:
        children[0].stop_token_ids = params.stop_token_ids
    return children


def the_third_shares_with_the_second(params):
    children = split(params)
    for child in children[2:]:
        child.stop = children[1].stop
    return children


def sorts_the_parents_ids(params):
    params.stop_token_ids.sort()
    return split(params)


KNOWN = {}


def splits_a_request_once(params):
    return KNOWN.setdefault(repr(params), split(params))


def deep_copies(params):
    children = [copy.deepcopy(params) for _ in range(params.best_of)]
    for i, child in enumerate(children):
        child.n = child.best_of = 1
        if child.seed is not None:
            child.seed = (child.seed + i) & (2**63 - 1)
    return children


@pytest.mark.parametrize("right", [split, deep_copies])
def test_the_suite_accepts_an_answer_to_exercise_3(right, capsys):
    checks.sampling_params(split=right)


@pytest.mark.parametrize(
    "wrong",
    [keeps_best_of, n_children, shallow_copies, changes_the_parent, the_same_seed,
     seeds_from_one, seed_zero_is_none, seeds_made_up, seeds_run_over,
     one_child_many_times, only_what_is_named, over_the_largest_comes_0,
     max_tokens_filled_in, logprobs_filled_in, greedy_children_share_a_seed,
     the_parents_ids_for_an_only_child, the_third_shares_with_the_second,
     sorts_the_parents_ids, splits_a_request_once],
)  # fmt: skip
def test_the_suite_rejects_wrong_answers_to_exercise_3(wrong, capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(split=wrong)
    assert "hint:" in capsys.readouterr().out


def test_too_few_children_are_counted_before_they_are_unpacked(capsys):
    with pytest.raises(checks.CheckFailed):
        checks.sampling_params(split=n_children)
    assert "unpack" not in capsys.readouterr().out
