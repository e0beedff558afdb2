"""What has to be true of SamplingParams, and of the exercises on it (notebook 02)."""

import math
from copy import deepcopy
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

from folovllm_lite import sampling_params as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = sampling_params = Suite(
    package,
    """Judge SamplingParams and SamplingType, or the answer to an exercise.

    `checks.sampling_params(SamplingParams=Mine)` judges one class,
    `checks.sampling_params(module)` all of a module.
    """,
)

_DEFAULTS = {
    "n": 1,
    "best_of": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "stop": [],
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "seed": None,
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
}
_FLOATS = [name for name, value in _DEFAULTS.items() if isinstance(value, float)]
_FLAGS = [name for name, value in _DEFAULTS.items() if isinstance(value, bool)]
_COUNTS = ["n", "best_of", "top_k", "max_tokens", "min_tokens", "logprobs",
           "prompt_logprobs", "seed"]  # fmt: skip


def _call(given: dict[str, Any]) -> str:
    """How the call looks in a notebook."""
    inside = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"SamplingParams({inside})"


def _make(piece: Any, call: str, given: dict[str, Any]) -> Any:
    """The object of a good request; if it is refused, the input is shown with it."""
    try:
        return piece(**given)
    except ValueError as error:
        fail(call, f"{type(error).__name__}: {error}", "no error")


def _kept(piece: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What became of the fields that were given: of 23, these are worth a line."""
    made = piece(**given)
    return {name: getattr(made, name, "no such field") for name in given}


def _accepts(p: SimpleNamespace, name: str, *values: Any) -> None:
    """Every value is taken, and kept as it is."""
    for value in values:
        given = {name: value}
        made = _make(p.SamplingParams, _call(given), given)
        expect(f"{_call(given)}.{name}", getattr(made, name), value)


def _refuses(
    p: SimpleNamespace, error: type, given: dict[str, Any], *words: str
) -> None:
    expect_error(_call(given), lambda: _kept(p.SamplingParams, given), error, *words)


def _refuses_short(p: SimpleNamespace, name: str, value: float) -> None:
    """A ValueError that begins with the field, for a value too long to print."""
    shown = "10**400" if value == 10**400 else repr(value)
    call = f"SamplingParams({name}={shown})"
    expect_error(call, lambda: _kept(p.SamplingParams, {name: value}), ValueError, name)


# ----- what fits an annotation


def _expect_fits(p: SimpleNamespace, annotation: Any, values: tuple, fit: bool) -> None:
    shown = getattr(annotation, "__name__", "") if annotation in _PLAIN else annotation
    for value in values:
        got = p._fits(value, annotation)
        if not isinstance(got, bool):
            fail(f"_fits({value!r}, {shown})", repr(got), "True or False")
        expect(f"_fits({value!r}, {shown})", got, fit)


_PLAIN = (int, float, str, bool)


@_SUITE.property("_fits", hint="to Python a bool is an int; an int passes as a float")
def _fits_plain(p: SimpleNamespace) -> None:
    """A value fits a plain annotation by its type: True is no number, and 1 no flag."""
    for annotation, good, bad in (
        (int, (0, -1, 2**70), (1.0, "1", None, [1], True, False)),
        (float, (0.5, 1, math.nan), ("1", None, [1.0], True, 1j)),
        (str, ("", "end"), (1, None, ["end"], b"end")),
        (bool, (True, False), (0, 1, "yes", None)),
    ):
        _expect_fits(p, annotation, good, True)
        _expect_fits(p, annotation, bad, False)


@_SUITE.property("_fits", hint="get_args gives the parts of a union: one has to fit")
def _fits_union(p: SimpleNamespace) -> None:
    """Of a union one part has to fit."""
    for annotation, good, bad in (
        (int | None, (1, None), (1.0, "1", True)),
        (float | None, (1, 0.5, None), ("1", True)),
        (str | None, ("", None), (1, ["a"])),
        (bool | None, (True, None), (0, 1)),
        (int | str, (1, "a"), (None, 1.0, True)),
    ):
        _expect_fits(p, annotation, good, True)
        _expect_fits(p, annotation, bad, False)


@_SUITE.property("_fits", hint="ask every item, and the items of a list in a union too")
def _fits_list(p: SimpleNamespace) -> None:
    """A list or tuple fits a list's annotation if each of its items fits the part."""
    for annotation, good, bad in (
        (list[int], ([], (), [1], (1, 2)), ("12", 1, None, [1, "2"], [True], [1.0])),
        (list[int], (), (["1", 2], [1, "2", 3], ("1", 2), b"12", {1}, range(2))),
        (list[str], (["a"], ("a", "b")), ("ab", ["a", 1], [None], {"a": 1}, {"a"})),
        (list[float], ([0.5, 1],), ([0.5, True], ["1"])),
        (list[bool], ([True, False],), ([True, 1],)),
        (list[int] | None, (None, [1]), ([None], [1, None], 1, "12")),
        (str | list[str] | None, (None, "ab", ["a"]), (1, ["a", 1], [["a"]])),
        (str | list[str] | None, ((), ("a", "b")), (("a", 1), ("a", None))),
        (list[int | None], ([1, None], (None,)), (None, [1, "2"], [None, True])),
        (list[list[int]], ([], [[1], ()]), ([1], [[1], ["2"]])),
    ):
        _expect_fits(p, annotation, good, True)
        _expect_fits(p, annotation, bad, False)


# ----- what is asked for when nothing is said, and by which names


@_SUITE.property(
    "SamplingParams",
    hint="one default for each field in the class body; what is None there and isn't "
    "here can only be filled in when the object is made",
)
def _names_and_defaults(p: SimpleNamespace) -> None:
    """SamplingParams() has vLLM's names and defaults: one completion of at most 16
    tokens, drawn from all tokens at temperature 1.
    """
    made = p.SamplingParams()
    for name, value in _DEFAULTS.items():
        expect(f"SamplingParams().{name}", getattr(made, name, "no such field"), value)


@_SUITE.property("SamplingParams", hint="a dataclass does this by itself")
def _unknown_names(p: SimpleNamespace) -> None:
    """A name that doesn't exist is a TypeError: a typo is never taken for a default."""
    p.SamplingParams(temperature=0.5)
    _refuses(p, TypeError, {"temprature": 0.5}, "temprature")


@_SUITE.property(
    "SamplingParams",
    "SamplingType",
    hint="greedy means temperature 0 and nothing near it; compute the answer each time",
)
def _kinds(p: SimpleNamespace) -> None:
    """sampling_type is GREEDY at temperature 0 and RANDOM at every other."""
    for temperature, kind in (
        (0, "GREEDY"),
        (0.0, "GREEDY"),
        (1.0, "RANDOM"),
        (1.1e-5, "RANDOM"),
    ):
        given = {"temperature": temperature}
        made = _make(p.SamplingParams, _call(given), given)
        expect(f"{_call(given)}.sampling_type", made.sampling_type.name, kind)
        same = made.sampling_type == getattr(p.SamplingType, kind)
        expect(f"{_call(given)}.sampling_type == SamplingType.{kind}", same, True)
    changed = replace(p.SamplingParams(), temperature=0.0)
    given = "replace(SamplingParams(), temperature=0.0).sampling_type"
    expect(given, changed.sampling_type.name, "GREEDY")
    changed = p.SamplingParams()
    given = "made = SamplingParams(), made.sampling_type"
    expect(given, changed.sampling_type.name, "RANDOM")
    changed.temperature = 0.0
    given += ", made.temperature = 0.0: made.sampling_type"
    expect(given, changed.sampling_type.name, "GREEDY")


@_SUITE.property(
    "SamplingParams",
    "SamplingType",
    hint="what leaves one token to draw from, or always draws the same, still draws",
)
def _kinds_of_others(p: SimpleNamespace) -> None:
    """Nothing but the temperature makes it GREEDY: not top_k=1, and no seed."""
    for given in ({"top_k": 1}, {"seed": 0}, {"top_p": 1e-6}, {"min_p": 0.99}):
        made = _make(p.SamplingParams, _call(given), given)
        expect(f"{_call(given)}.sampling_type", made.sampling_type.name, "RANDOM")


# ----- how many completions


@_SUITE.property("SamplingParams", hint="0 completions are no request")
def _n(p: SimpleNamespace) -> None:
    """At least one completion is asked for: n is 1 or more."""
    _accepts(p, "n", 1, 2)
    for value in (0, -1):
        _refuses(p, ValueError, {"n": value}, "n", str(value))


@_SUITE.property(
    "SamplingParams", hint="settle what None means before you compare the two"
)
def _best_of(p: SimpleNamespace) -> None:
    """best_of is n unless it is given, and never less than n; the message has both."""
    for given, wanted in (
        ({"n": 1}, 1),
        ({"n": 3}, 3),
        ({"n": 3, "best_of": 3}, 3),
        ({"n": 3, "best_of": 5}, 5),
    ):
        expect(f"{_call(given)}.best_of", p.SamplingParams(**given).best_of, wanted)
    for n, best_of in ((1, 0), (3, 2)):
        given = {"n": n, "best_of": best_of}
        _refuses(p, ValueError, given, "best_of", str(best_of), str(n))


# ----- how to draw


@_SUITE.property("SamplingParams", hint="0 is a temperature too, and so is 0.001")
def _temperature(p: SimpleNamespace) -> None:
    """A temperature below 0 is refused; 0, 0.001 and 5 are kept as given."""
    _accepts(p, "temperature", 0, 0.0, 1, 0.7, 0.001, 5.0)
    for value in (-1, -0.1):
        _refuses(p, ValueError, {"temperature": value}, "temperature", str(value))


@_SUITE.property(
    "SamplingParams",
    hint="a logit divided by next to nothing is infinite in float32; both ends of the "
    "gap are fine, and nothing in it is moved to one of them",
)
def _tiny_temperature(p: SimpleNamespace) -> None:
    """Between 0 and 1e-5 a temperature is refused; 0 and 1e-5 themselves are kept."""
    for value in (0, 1e-5, 1.1e-5):
        given = {"temperature": value}
        made = _make(p.SamplingParams, _call(given), given)
        if made.temperature != value:  # `expect` would round both to 0
            fail(f"{_call(given)}.temperature", made.temperature, value)
    for value in (1e-6, 9.9e-6, 1e-40, 5e-324):
        _refuses(p, ValueError, {"temperature": value}, "temperature", str(value))


@_SUITE.property(
    "SamplingParams", hint="(0, 1]: the round bracket leaves 0 out, the square one 1 in"
)
def _top_p(p: SimpleNamespace) -> None:
    """top_p lies in (0, 1]."""
    _accepts(p, "top_p", 1.0, 1, 0.5, 1e-6)
    for value in (0.0, -0.1, 1.01, 95):
        _refuses(p, ValueError, {"top_p": value}, "top_p", str(value))


@_SUITE.property("SamplingParams", hint="of the numbers below 1, one has a meaning")
def _top_k(p: SimpleNamespace) -> None:
    """top_k is -1 (all tokens) or at least 1."""
    _accepts(p, "top_k", -1, 1, 50, 10**6)
    for value in (0, -2):
        _refuses(p, ValueError, {"top_k": value}, "top_k", str(value))


@_SUITE.property("SamplingParams", hint="both ends belong to the interval")
def _min_p(p: SimpleNamespace) -> None:
    """min_p lies in [0, 1]."""
    _accepts(p, "min_p", 0.0, 1.0, 0, 0.05)
    for value in (-0.1, 1.01):
        _refuses(p, ValueError, {"min_p": value}, "min_p", str(value))


@_SUITE.property(
    "SamplingParams",
    hint="0 adds nothing, and 1 multiplies by nothing: which is which? Each interval "
    "has two ends",
)
def _penalties(p: SimpleNamespace) -> None:
    """presence_penalty and frequency_penalty lie in [-2, 2]; repetition_penalty in
    [1e-5, 1e5].
    """
    for name in ("presence_penalty", "frequency_penalty"):
        _accepts(p, name, 0.0, 2, -2, 1.5)
        for value in (2.1, -2.1):
            _refuses(p, ValueError, {name: value}, name, str(value))
    _accepts(p, "repetition_penalty", 1.0, 0.5, 3, 1e-5, 1e5)
    for value in (0.0, -1.0, 1e-40, 9e-6, 1.1e5, 1e6):
        given = {"repetition_penalty": value}
        _refuses(p, ValueError, given, "repetition_penalty", str(value))


@_SUITE.property("SamplingParams", hint="0 is a seed, and `if seed` doesn't see it")
def _seed(p: SimpleNamespace) -> None:
    """A seed is None or lies in [0, 2**63): no sign, and it fits 64 bits."""
    _accepts(p, "seed", None, 0, 42, 2**63 - 1)
    for value in (-1, 2**63):
        _refuses(p, ValueError, {"seed": value}, "seed", str(value))


# ----- when to stop


@_SUITE.property(
    "SamplingParams", hint="None and 0 are both falsy, and only one is fine"
)
def _max_tokens(p: SimpleNamespace) -> None:
    """max_tokens is None (up to the engine) or at least 1."""
    _accepts(p, "max_tokens", None, 1, 100_000)
    for value in (0, -1):
        _refuses(p, ValueError, {"max_tokens": value}, "max_tokens", str(value))


@_SUITE.property(
    "SamplingParams",
    hint="equal is fine; compare with max_tokens only where there is one",
)
def _min_tokens(p: SimpleNamespace) -> None:
    """min_tokens is 0 or more and at most max_tokens; the message has both."""
    _accepts(p, "min_tokens", 0, 1, 16)
    given = {"max_tokens": None, "min_tokens": 100}
    expect(f"{_call(given)}.min_tokens", p.SamplingParams(**given).min_tokens, 100)
    _refuses(p, ValueError, {"min_tokens": -1}, "min_tokens", "-1")
    _refuses(p, ValueError, {"min_tokens": 17}, "min_tokens", "17", "max_tokens", "16")
    given = {"max_tokens": 2, "min_tokens": 3}
    _refuses(p, ValueError, given, "min_tokens", "3", "max_tokens", "2")


@_SUITE.property(
    "SamplingParams",
    hint="what does list('end') give, and what list(None)? An id that is named twice "
    "is kept once",
)
def _stop(p: SimpleNamespace) -> None:
    """Both stop and stop_token_ids are lists: of one for a lone string, empty for
    None.
    """
    for given, wanted in (
        ({"stop": None}, []),
        ({"stop": "end"}, ["end"]),
        ({"stop": ["end", "\n"]}, ["end", "\n"]),
        ({"stop": ("a", "b")}, ["a", "b"]),
        ({"stop_token_ids": None}, []),
        ({"stop_token_ids": [3, 7]}, [3, 7]),
        ({"stop_token_ids": (3,)}, [3]),
        ({"stop_token_ids": [3, 7, 3]}, [3, 7]),  # named twice; any order will do
    ):
        (name,) = given
        got = getattr(p.SamplingParams(**given), name)
        expect(f"{_call(given)}.{name}", (type(got).__name__, got), ("list", wanted))


@_SUITE.property(
    "SamplingParams", hint="every text ends in an empty string, and ids count from 0"
)
def _stop_items(p: SimpleNamespace) -> None:
    """An empty stop string and a negative token id are refused."""
    p.SamplingParams(stop=" ", stop_token_ids=[0])
    for stop in ("", ["end", ""]):
        _refuses(p, ValueError, {"stop": stop}, "stop")
    for ids in ([-1], [7, -1], [2**63]):
        _refuses(p, ValueError, {"stop_token_ids": ids}, "stop_token_ids", str(ids[-1]))


@_SUITE.property(
    "SamplingParams", hint="text can be encoded: `str.encode` says what can't"
)
def _stop_text(p: SimpleNamespace) -> None:
    """A stop string that is half a surrogate pair is refused: no text holds one."""
    _accepts(p, "stop", ["\U0001f600"])
    for stop in ("\ud83d", ["end", "a\ude00"]):
        _refuses(p, ValueError, {"stop": stop}, "stop")


@_SUITE.property("SamplingParams", hint="keep a list of your own")
def _aliases(p: SimpleNamespace) -> None:
    """A list that the caller changes later changes nothing, and no two objects share
    one.
    """
    stop, ids = ["end"], [7]
    made = p.SamplingParams(stop=stop, stop_token_ids=ids)
    stop.append("more")
    ids.append(8)
    expect("stop=['end'], then the caller appends to it", made.stop, ["end"])
    given = "stop_token_ids=[7], then the caller appends to it"
    expect(given, made.stop_token_ids, [7])
    p.SamplingParams().stop.append("x")
    p.SamplingParams().stop_token_ids.append(1)
    fresh = p.SamplingParams()
    expect("another object's stop was appended to", fresh.stop, [])
    expect("another object's ids were appended to", fresh.stop_token_ids, [])
    replace(made, n=1).stop.append("x")
    expect("a replace()d object's stop was appended to", made.stop, ["end"])


# ----- what to report


@_SUITE.property(
    "SamplingParams", hint="0 asks for the chosen token alone, None for nothing"
)
def _logprobs(p: SimpleNamespace) -> None:
    """Both logprobs and prompt_logprobs are None or at least 0, and 0 stays 0."""
    for name in ("logprobs", "prompt_logprobs"):
        _accepts(p, name, None, 0, 5)
        _refuses(p, ValueError, {name: -1}, name, "-1")


# ----- what holds for every field


@_SUITE.property(
    "SamplingParams",
    hint="every comparison with NaN is False, and infinity passes an interval that is "
    "open above: ask for a finite number first",
)
def _finite(p: SimpleNamespace) -> None:
    """NaN and infinity are refused in every float field, by its name."""
    p.SamplingParams(**{name: _DEFAULTS[name] for name in _FLOATS})
    for name in _FLOATS:
        for value in (math.nan, math.inf, -math.inf):
            _refuses(p, ValueError, {name: value}, name, str(value))


@_SUITE.property(
    "SamplingParams",
    hint="the logits are float32, which ends at 3.4e38; and an int such as 10**400 "
    "fits no float at all: math.isfinite fails on it",
)
def _float32(p: SimpleNamespace) -> None:
    """So is a number that float32 can't hold, int or not."""
    _accepts(p, "temperature", 1e38, 3.4e38)
    for name in _FLOATS:
        for value in (3.41e38, 1e39, -1e39, 10**400):
            _refuses_short(p, name, value)


@_SUITE.property(
    "SamplingParams", hint="Python's ints have no end, those of a tensor have 64 bits"
)
def _int64(p: SimpleNamespace) -> None:
    """An int beyond 64 bits is refused by its field's name."""
    for name in _COUNTS:
        _refuses_short(p, name, 2**63)
        _refuses_short(p, name, 10**400)


@_SUITE.property(
    "SamplingParams", hint="isinstance(True, int) is True: look for bool before int"
)
def _bools(p: SimpleNamespace) -> None:
    """True is no number, and 1 is no flag."""
    p.SamplingParams(ignore_eos=True)
    for name in [*_COUNTS, *_FLOATS]:
        _refuses(p, TypeError, {name: True}, name, "True")
    for name in _FLAGS:
        _refuses(p, TypeError, {name: 1}, name, "1")
    _refuses(p, TypeError, {"stop_token_ids": [True]}, "stop_token_ids")


@_SUITE.property(
    "SamplingParams",
    hint="check the type before the range, so that no comparison is left to fail on "
    "it; `repr` of the value shows what it is",
)
def _types(p: SimpleNamespace) -> None:
    """A value of the wrong type is a TypeError with the field's name and the value."""
    _accepts(p, "temperature", 1)
    for name in _COUNTS:
        for value in ("1", 1.0, [1]):
            _refuses(p, TypeError, {name: value}, name, repr(value))
    for name in _FLOATS:
        for value in ("1", None):
            _refuses(p, TypeError, {name: value}, name, repr(value))
    for name in ("n", "top_k", "min_tokens", *_FLAGS):
        _refuses(p, TypeError, {name: None}, name, "None")
    for name, value in (
        ("stop", 1),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop_token_ids", 1),
        ("stop_token_ids", "12"),
        ("stop_token_ids", ["1"]),
        ("stop_token_ids", [1.0]),
        ("stop", ["end", 1]),
        ("stop_token_ids", [7, "8"]),
        ("stop_token_ids", [7, 8, None]),
    ):
        _refuses(p, TypeError, {name: value}, name, repr(value))


@_SUITE.property(
    "SamplingParams",
    hint="whatever is filled in or made a list has to be fine when it comes in again",
)
def _again(p: SimpleNamespace) -> None:
    """The fields of a finished object make an equal one, and replace() checks again."""
    for given in ({}, {"n": 2, "stop": "end", "seed": 3, "max_tokens": None}):
        made = p.SamplingParams(**given)
        copy = p.SamplingParams(**{f.name: getattr(made, f.name) for f in fields(made)})
        expect(f"{_call(given)}, made again from its own fields", copy == made, True)
    expect_error(
        "replace(SamplingParams(), top_p=0.0)",
        lambda: replace(p.SamplingParams(), top_p=0.0),
        ValueError,
        "top_p",
    )


@_SUITE.property("SamplingParams", hint="an option that does nothing has to say so")
def _beam_search(p: SimpleNamespace) -> None:
    """Beam search and what belongs to it is refused: NotImplementedError."""
    for given in (
        {"use_beam_search": True},
        {"length_penalty": 0.5},
        {"early_stopping": True},
    ):
        _refuses(p, NotImplementedError, given)


# ----- exercise 1: which condition ends it

_ENDINGS = {
    "A": (3, "length"),
    "B": (6, "length"),
    "C": (2, "stop"),
    "D": (3, "stop"),
    "E": (7, "stop"),
    "F": (2, "stop"),
}
_ENDING_HINTS = {
    "A": "is <end> still one of the words that end it?",
    "B": "write the words down: at the third, <end> can't be chosen yet",
    "C": "a stop string is looked for in the text, which knows no words",
    "D": "when 'ran' comes, are there more than min_tokens words?",
    "E": "there are two ways to name <end>; which of them does ignore_eos switch off?",
    "F": "two conditions are met at the same word",
}


@_SUITE.property(
    "predict_endings",
    hint="write the words of the completion in a row and mark under each what is met "
    "there",
)
def _endings(p: SimpleNamespace) -> None:
    """Each of the six requests ends where you said, for the reason you said."""
    told = p.predict_endings()
    for letter, wanted in _ENDINGS.items():
        got = told.get(letter, "no answer") if isinstance(told, dict) else told
        if isinstance(got, list):
            got = tuple(got)
        if got != wanted:
            fail(f"request {letter}", got, f"something else: {_ENDING_HINTS[letter]}")


# ----- exercise 2: one more field


def _allowed(given: dict[str, Any]) -> str:
    return _call(given).replace("SamplingParams", "AllowedParams")


def _refuses_allowed(
    p: SimpleNamespace, error: type, given: dict[str, Any], *words: str
) -> None:
    expect_error(_allowed(given), lambda: _kept(p.AllowedParams, given), error, *words)


@_SUITE.property(
    "AllowedParams",
    hint="`ids or []` can't tell None from an empty list, and here they are opposites",
)
def _allowed_values(p: SimpleNamespace) -> None:
    """allowed_token_ids stays None where nothing was said, and an empty list is
    refused.
    """
    got = p.AllowedParams().allowed_token_ids
    expect("AllowedParams().allowed_token_ids", got, None)
    for ids in ([0], [3, 1]):
        given = {"allowed_token_ids": ids}
        got = _make(p.AllowedParams, _allowed(given), given).allowed_token_ids
        expect(f"{_allowed(given)}.allowed_token_ids", got, ids)
    given = {"allowed_token_ids": []}
    _refuses_allowed(p, ValueError, given, "allowed_token_ids")


@_SUITE.property(
    "AllowedParams",
    hint="who checks the types of the other fields, and does it know of this one?",
)
def _allowed_items(p: SimpleNamespace) -> None:
    """Its items are ids from 0 on: anything else is refused, by the field's name."""
    p.AllowedParams(allowed_token_ids=[5])
    for ids in ("12", 7, True, ["1"], ["1", 2], [1.0], [True], [7, None], {7}):
        given = {"allowed_token_ids": ids}
        _refuses_allowed(p, TypeError, given, "allowed_token_ids", repr(ids))
    for ids in ([3, -1], [-1, 3]):
        given = {"allowed_token_ids": ids}
        _refuses_allowed(p, ValueError, given, "allowed_token_ids", "-1")


@_SUITE.property("AllowedParams", hint="the caller still holds the list")
def _allowed_alias(p: SimpleNamespace) -> None:
    """It keeps a list of its own."""
    ids = [3]
    made = p.AllowedParams(allowed_token_ids=ids)
    ids.append(4)
    given = "allowed_token_ids=[3], then the caller appends to it"
    expect(given, made.allowed_token_ids, [3])
    got = p.AllowedParams(allowed_token_ids=(3, 4)).allowed_token_ids
    given = "allowed_token_ids=(3, 4)"
    expect(given, (type(got).__name__, got), ("list", [3, 4]))


@_SUITE.property("AllowedParams", hint="super() has work to do as well")
def _allowed_base(p: SimpleNamespace) -> None:
    """Everything that SamplingParams fills in and refuses is as before."""
    made = p.AllowedParams(n=2, stop="end", allowed_token_ids=[1])
    expect("n=2, stop='end': best_of and stop", (made.best_of, made.stop), (2, ["end"]))
    for more in ({}, {"allowed_token_ids": [1]}):
        _refuses_allowed(p, ValueError, {"top_p": 0.0, **more}, "top_p")
        _refuses_allowed(p, TypeError, {"n": True, **more}, "n")
    base = SimpleNamespace(**{**vars(p), "SamplingParams": p.AllowedParams})
    for each in _SUITE.properties:
        if each.needs[0] == "SamplingParams":
            each.holds(base)


@_SUITE.property(
    "AllowedParams",
    hint="until min_tokens are out, stop tokens can't be chosen: what is left of the "
    "allowed ones?",
)
def _allowed_contradiction(p: SimpleNamespace) -> None:
    """A request whose allowed tokens are all stop tokens is refused if min_tokens is
    above 0.
    """
    for given in (
        {"allowed_token_ids": [1], "stop_token_ids": [1]},
        {"allowed_token_ids": [1, 2], "stop_token_ids": [1], "min_tokens": 1},
        {"allowed_token_ids": [1], "stop_token_ids": [2, 3], "min_tokens": 1},
        {"allowed_token_ids": [1], "min_tokens": 1},
        {"allowed_token_ids": [1], "min_tokens": 1, "max_tokens": None, "top_k": 5},
        {"stop_token_ids": [1], "min_tokens": 1},
    ):
        made = _make(p.AllowedParams, _allowed(given), given)
        for name, value in given.items():
            expect(f"{_allowed(given)}.{name}", getattr(made, name), value)
    for allowed, stop, count in (
        ([1], [1], 1),
        ([1], [1], 5),
        ([2, 1], [1, 2, 3], 1),
        ([1, 1], [1], 1),
    ):
        given = {
            "allowed_token_ids": allowed,
            "stop_token_ids": stop,
            "min_tokens": count,
        }
        _refuses_allowed(p, ValueError, given, *given)


# ----- exercise 3: a request's children


@_SUITE.property("split", hint="which of the two fields says how many are generated?")
def _children(p: SimpleNamespace) -> None:
    """There is one child for each completion to generate, and it asks for exactly
    one.
    """
    for given, count in (({}, 1), ({"n": 3}, 3), ({"n": 2, "best_of": 4}, 4)):
        children = p.split(p.SamplingParams(**given))
        expect(f"len(split({_call(given)}))", len(children), count)
        asked = [(child.n, child.best_of) for child in children]
        given = f"n and best_of of the children of {_call(given)}"
        expect(given, asked, [(1, 1)] * count)


@_SUITE.property(
    "split", hint="0 is a seed, None is none, and a seed has a largest value"
)
def _seeds(p: SimpleNamespace) -> None:
    """Child i has the seed seed + i, round at 2**63; without a seed it has none."""
    for given, seeds in (
        ({"n": 2}, [None, None]),
        ({"n": 2, "seed": 7}, [7, 8]),
        ({"n": 3, "seed": 0}, [0, 1, 2]),
        ({"n": 1, "best_of": 2, "seed": 5}, [5, 6]),
        ({"n": 2, "seed": 2**63 - 1}, [2**63 - 1, 0]),
        ({"n": 3, "seed": 2**63 - 2}, [2**63 - 2, 2**63 - 1, 0]),
        ({"n": 3, "seed": 2**63 - 1}, [2**63 - 1, 0, 1]),
        ({"n": 2, "seed": 7, "temperature": 0}, [7, 8]),
    ):
        got = [child.seed for child in p.split(p.SamplingParams(**given))]
        expect(f"seeds of the children of {_call(given)}", got, seeds)


@_SUITE.property("split", hint="dataclasses.replace names only what changes")
def _inherited(p: SimpleNamespace) -> None:
    """Everything else is the parent's."""
    dialled = p.SamplingParams(
        n=2, temperature=0.3, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=0.5,
        frequency_penalty=-0.5, repetition_penalty=1.5, stop="end", stop_token_ids=[3],
        include_stop_str_in_output=True, ignore_eos=True, max_tokens=9, min_tokens=1,
        logprobs=0, prompt_logprobs=2, skip_special_tokens=False,
        spaces_between_special_tokens=False,
    )  # fmt: skip
    plain = p.SamplingParams(n=2, temperature=0, max_tokens=None)
    for parent in (dialled, plain):
        for i, child in enumerate(p.split(parent)):
            for field in fields(parent):
                if field.name not in ("n", "best_of", "seed"):
                    got, wanted = (getattr(x, field.name) for x in (child, parent))
                    expect(f"child {i}'s {field.name}", got, wanted)


@_SUITE.property("split", hint="the parent is the caller's, and so are its lists")
def _independent(p: SimpleNamespace) -> None:
    """The parent stays as it was, and nobody shares a list with anybody."""
    for given in (
        {"stop": ["z", "a"], "stop_token_ids": [7, 3]},
        {"n": 2, "best_of": 3, "seed": 1, "stop": ["z", "a"], "stop_token_ids": [7, 3]},
    ):
        parent = p.SamplingParams(**given)
        before, shown = deepcopy(parent), _call(given)
        children = p.split(parent)
        expect(f"len(split({shown}))", len(children), before.best_of)
        for field in fields(parent):
            got, wanted = (getattr(x, field.name) for x in (parent, before))
            expect(f"{field.name} of {shown}, afterwards", got, wanted)
        everybody = [parent, *p.split(parent), *children]
        for at, one in enumerate(everybody):
            for other in everybody[at + 1 :]:
                if one.stop is other.stop or one.stop_token_ids is other.stop_token_ids:
                    got = "two of parent and children hold the same list"
                    fail(f"split({shown})", got, "a list for each")
