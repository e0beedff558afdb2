"""The suite for outputs passes on the package and rejects mistakes."""

import copy
import dataclasses
import itertools
from dataclasses import dataclass

import pytest

from folovllm_lite import checks
from folovllm_lite import outputs as module
from folovllm_lite.outputs import (
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
)


def test_the_package_passes(capsys):
    checks.outputs(module)
    out = capsys.readouterr().out
    assert "✗" not in out and "properties hold." in out


# ----- mutants


@dataclass
class LogprobWithoutSlots:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class RankBeginsAtOne:
    logprob: float
    rank: int | None = 1
    decoded_token: str | None = None


@dataclass(slots=True)
class TimesBeginAtZero:
    arrival_time: float
    first_token_time: float = 0.0
    finished_time: float = 0.0


@dataclass(slots=True)
class FinishedOnlyByStop(CompletionOutput):
    def finished(self):
        return self.finish_reason == "stop"


@dataclass(slots=True)
class FinishedNeedsAStopReason(CompletionOutput):
    def finished(self):
        return self.stop_reason is not None


@dataclass(slots=True)
class TokenIdsBeforeText:
    index: int
    token_ids: list[int]
    text: str
    cumulative_logprob: float | None = None
    logprobs: list | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def finished(self):
        return self.finish_reason is not None


@dataclass(slots=True)
class CumulativeBeginsAtZero(CompletionOutput):
    cumulative_logprob: float | None = 0.0


def _made_from(change):
    """A RequestOutput whose __post_init__ is another."""

    @dataclass(slots=True, repr=False)
    class Changed(RequestOutput):
        def __post_init__(self):
            change(self)

        def __repr__(self):  # the package's, which super() in a slots class can't see
            return RequestOutput.__repr__(self)

    Changed.__name__ = change.__name__
    return Changed


def _copied(output):
    logprobs = None if output.logprobs is None else list(output.logprobs)
    return dataclasses.replace(
        output, token_ids=list(output.token_ids), logprobs=logprobs
    )


def nothing_is_copied(self):
    pass


def only_the_outer_lists(self):
    self.prompt_token_ids = list(self.prompt_token_ids)
    self.outputs = list(self.outputs)
    self.metrics = self.metrics and dataclasses.replace(self.metrics)
    self.prompt_logprobs = self.prompt_logprobs and list(self.prompt_logprobs)


def completions_are_shallow(self):
    only_the_outer_lists(self)
    self.outputs = [dataclasses.replace(output) for output in self.outputs]


def logprobs_are_forgotten(self):
    only_the_outer_lists(self)
    self.outputs = [
        dataclasses.replace(output, token_ids=list(output.token_ids))
        for output in self.outputs
    ]


def logprobs_are_dropped(self):
    RequestOutput.__post_init__(self)
    self.outputs = [dataclasses.replace(each, logprobs=None) for each in self.outputs]


def metrics_are_shared(self):
    self.prompt_token_ids = list(self.prompt_token_ids)
    self.outputs = [_copied(output) for output in self.outputs]
    self.prompt_logprobs = self.prompt_logprobs and list(self.prompt_logprobs)


def the_prompt_is_shared(self):
    self.outputs = [_copied(output) for output in self.outputs]
    self.metrics = self.metrics and dataclasses.replace(self.metrics)
    self.prompt_logprobs = self.prompt_logprobs and list(self.prompt_logprobs)


def none_becomes_a_list(self):
    RequestOutput.__post_init__(self)
    self.prompt_logprobs = list(self.prompt_logprobs or [])


def empty_becomes_none(self):
    RequestOutput.__post_init__(self)
    self.prompt_logprobs = self.prompt_logprobs or None


def the_engines_is_emptied(self):
    live = [output.token_ids for output in self.outputs]
    RequestOutput.__post_init__(self)
    for tokens in live:
        tokens.clear()


def only_the_first_is_copied(self):
    outputs = list(self.outputs)
    RequestOutput.__post_init__(self)
    self.outputs[1:] = outputs[1:]


def the_engine_gets_the_copy(self):
    live = list(self.outputs)
    self.outputs = [dataclasses.replace(each) for each in live]
    for each in live:
        each.token_ids = list(each.token_ids)
        each.logprobs = each.logprobs and list(each.logprobs)


def empty_lists_are_shared(self):
    live, scores = list(self.outputs), self.prompt_logprobs
    RequestOutput.__post_init__(self)
    self.prompt_logprobs = self.prompt_logprobs or scores
    for mine, theirs in zip(self.outputs, live, strict=True):
        mine.token_ids = mine.token_ids or theirs.token_ids


class CutsAtForty(RequestOutput):
    __slots__ = ()

    def __repr__(self):
        prompt = self.prompt
        if prompt is not None and len(prompt) > 40:
            prompt = prompt[:40] + "…"
        return f"RequestOutput(prompt={prompt!r}, …)"


class CutsTheFiftiethToo(RequestOutput):
    __slots__ = ()

    def __repr__(self):
        prompt = self.prompt
        if prompt is not None and len(prompt) >= 50:
            prompt = prompt[:50] + "…"
        return f"RequestOutput(prompt={prompt!r}, …)"


class ReprNeedsAText(RequestOutput):
    __slots__ = ()

    def __repr__(self):
        prompt = self.prompt[:50] + ("…" if len(self.prompt) > 50 else "")
        return f"RequestOutput(prompt={prompt!r}, …)"


class ReprCutsThePrompt(RequestOutput):
    __slots__ = ()

    def __repr__(self):
        if self.prompt is not None and len(self.prompt) > 50:
            self.prompt = self.prompt[:50] + "…"
        return f"RequestOutput(prompt={self.prompt!r}, …)"


MUTANTS = {
    "Logprob": [LogprobWithoutSlots, RankBeginsAtOne],
    "RequestMetrics": [TimesBeginAtZero],
    "CompletionOutput": [
        FinishedOnlyByStop, FinishedNeedsAStopReason, TokenIdsBeforeText,
        CumulativeBeginsAtZero,
    ],
    "RequestOutput": [
        *map(
            _made_from,
            [
                nothing_is_copied, only_the_outer_lists, completions_are_shallow,
                logprobs_are_forgotten, logprobs_are_dropped, metrics_are_shared,
                the_prompt_is_shared, none_becomes_a_list, empty_becomes_none,
                the_engines_is_emptied, only_the_first_is_copied,
                the_engine_gets_the_copy, empty_lists_are_shared,
            ],
        ),
        CutsAtForty, CutsTheFiftiethToo, ReprNeedsAText, ReprCutsThePrompt,
    ],
}  # fmt: skip


# ----- the exercise: its solution, and plausible mistakes


def deltas(stream):
    seen = {}
    for output in stream:
        news = []
        for completion in output.outputs:
            chars, tokens = seen.get(completion.index, (0, 0))
            seen[completion.index] = (len(completion.text), len(completion.token_ids))
            logprobs = completion.logprobs
            news.append(
                dataclasses.replace(
                    completion,
                    text=completion.text[chars:],
                    token_ids=completion.token_ids[tokens:],
                    logprobs=None if logprobs is None else logprobs[tokens:],
                )
            )
        yield dataclasses.replace(output, outputs=news)


def whole_outputs(stream):
    yield from stream


def the_last_token(stream):
    text = ""
    for output in stream:
        news = []
        for completion in output.outputs:
            new = completion.text[len(text) :]
            text = completion.text
            news.append(
                dataclasses.replace(
                    completion, text=new, token_ids=completion.token_ids[-1:]
                )
            )
        yield dataclasses.replace(output, outputs=news)


def one_length_for_all(stream):
    chars = tokens = 0
    for output in stream:
        news = []
        for completion in output.outputs:
            news.append(
                dataclasses.replace(
                    completion,
                    text=completion.text[chars:],
                    token_ids=completion.token_ids[tokens:],
                    logprobs=completion.logprobs and completion.logprobs[tokens:],
                )
            )
        chars = max(len(completion.text) for completion in output.outputs)
        tokens = max(len(completion.token_ids) for completion in output.outputs)
        yield dataclasses.replace(output, outputs=news)


def cut_in_place(stream):
    seen = {}
    for output in stream:
        for completion in output.outputs:
            chars, tokens = seen.get(completion.index, (0, 0))
            seen[completion.index] = (
                chars + len(completion.text[chars:]),
                tokens + len(completion.token_ids[tokens:]),
            )
            completion.text = completion.text[chars:]
            completion.token_ids = completion.token_ids[tokens:]
            if completion.logprobs is not None:
                completion.logprobs = completion.logprobs[tokens:]
        yield output


def all_logprobs(stream):
    seen = {}
    for output in stream:
        news = []
        for completion in output.outputs:
            chars, tokens = seen.get(completion.index, (0, 0))
            seen[completion.index] = (len(completion.text), len(completion.token_ids))
            news.append(
                dataclasses.replace(
                    completion,
                    text=completion.text[chars:],
                    token_ids=completion.token_ids[tokens:],
                )
            )
        yield dataclasses.replace(output, outputs=news)


def waits_for_the_end(stream):
    return iter(list(deltas(stream)))


_everywhere: dict = {}


def remembers_between_streams(stream):
    for output in stream:
        news = []
        for completion in output.outputs:
            key = output.request_id, completion.index
            chars, tokens = _everywhere.get(key, (0, 0))
            _everywhere[key] = (len(completion.text), len(completion.token_ids))
            logprobs = completion.logprobs
            news.append(
                dataclasses.replace(
                    completion,
                    text=completion.text[chars:],
                    token_ids=completion.token_ids[tokens:],
                    logprobs=None if logprobs is None else logprobs[tokens:],
                )
            )
        yield dataclasses.replace(output, outputs=news)


def cuts_logprobs_like_letters(stream):
    read = {}
    for output in stream:
        news = []
        for completion in output.outputs:
            chars, tokens = read.get(completion.index, (0, 0))
            read[completion.index] = len(completion.text), len(completion.token_ids)
            more = {
                "text": completion.text[chars:],
                "token_ids": completion.token_ids[tokens:],
                "logprobs": completion.logprobs and completion.logprobs[chars:],
            }
            news.append(dataclasses.replace(completion, **more))
        yield dataclasses.replace(output, outputs=news)


def drops_the_finished(stream):
    for before in deltas(stream):
        news = [each for each in before.outputs if each.token_ids]
        yield dataclasses.replace(before, outputs=news)


def forgets_the_stop_reason(stream):
    for each in deltas(stream):
        news = [dataclasses.replace(c, stop_reason=None) for c in each.outputs]
        yield dataclasses.replace(each, outputs=news)


def forgets_the_metrics(stream):
    for each in deltas(stream):
        yield dataclasses.replace(each, metrics=None)


def skips_what_shows_nothing(stream):
    for each in deltas(stream):
        if any(completion.text for completion in each.outputs):
            yield each


def _cut_by(text, tokens):
    """`deltas` that finds what is new by the texts and tokens of before."""

    def cut(stream):
        seen = {}
        for output in stream:
            news = []
            for each in output.outputs:
                chars, ids = seen.get(each.index, ("", []))
                seen[each.index] = each.text, list(each.token_ids)
                more = {"text": text(each.text, chars)}
                more["token_ids"] = tokens(each.token_ids, ids)
                if each.logprobs is not None:
                    more["logprobs"] = each.logprobs[len(ids) :]
                news.append(dataclasses.replace(each, **more))
            yield dataclasses.replace(output, outputs=news)

    return cut


def _rest(now, before):
    return now[len(before) :]


by_prefix = _cut_by(lambda now, before: now.removeprefix(before), _rest)
strips_letters = _cut_by(lambda now, before: now.lstrip(before or None), _rest)
replaces_the_text = _cut_by(
    lambda now, before: now.replace(before, "") if before else now, _rest
)
trims_the_news = _cut_by(lambda now, before: _rest(now, before).strip(), _rest)
takes_unseen_tokens = _cut_by(
    _rest, lambda now, before: [each for each in now if each not in before]
)


def needs_a_first_output(stream):
    stream = iter(stream)
    first = next(stream)
    yield from deltas(itertools.chain([first], stream))


def tells_the_rest_at_the_end(stream):
    for each in deltas(stream):
        rest = {} if each.finished else {"metrics": None, "prompt_logprobs": None}
        yield dataclasses.replace(each, **rest)


def finished_when_one_is(stream):
    for each in deltas(stream):
        ended = any(completion.finished() for completion in each.outputs)
        yield dataclasses.replace(each, finished=ended)


def one_logprob_a_delta(stream):
    for each in deltas(stream):
        news = [
            dataclasses.replace(one, logprobs=one.logprobs and one.logprobs[-1:])
            for one in each.outputs
        ]
        yield dataclasses.replace(each, outputs=news)


EXERCISE_MUTANTS = [
    whole_outputs, the_last_token, one_length_for_all, cut_in_place, all_logprobs,
    waits_for_the_end, remembers_between_streams, drops_the_finished,
    skips_what_shows_nothing, forgets_the_stop_reason, forgets_the_metrics,
    cuts_logprobs_like_letters, strips_letters, replaces_the_text, trims_the_news,
    takes_unseen_tokens, needs_a_first_output, tells_the_rest_at_the_end,
    finished_when_one_is, one_logprob_a_delta,
]  # fmt: skip


@pytest.mark.parametrize(
    "name, mutant",
    [
        (name, mutant)
        for name, mutants in (*MUTANTS.items(), ("deltas", EXERCISE_MUTANTS))
        for mutant in mutants
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_suite_rejects(name, mutant, capsys):
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.outputs(**{name: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


def test_the_mutants_are_what_they_seem(capsys):
    """The helper that makes them keeps everything right but what it is given."""
    fine = _made_from(lambda self: RequestOutput.__post_init__(self))
    checks.outputs(RequestOutput=fine)
    assert "✗" not in capsys.readouterr().out


@pytest.mark.parametrize("solution", [deltas, by_prefix])
def test_the_solution_passes(solution, capsys):
    checks.outputs(deltas=solution)
    assert "properties hold." in capsys.readouterr().out


def deep(self):
    for name in ("prompt_token_ids", "outputs", "metrics", "prompt_logprobs"):
        setattr(self, name, copy.deepcopy(getattr(self, name)))


def test_a_deep_copy_passes_too(capsys):
    checks.outputs(RequestOutput=_made_from(deep))
    assert "✗" not in capsys.readouterr().out


def test_growing_outputs_keep_their_metrics_apart():
    """All outputs of a stream shared one RequestMetrics once: the first of them said
    that the request had finished.
    """
    metrics = RequestMetrics(1.0)
    first = RequestOutput("r", None, [1], [], False, metrics)
    metrics.finished_time = 2.0
    assert first.metrics == RequestMetrics(1.0)
    assert Logprob(-0.5) == Logprob(-0.5)
