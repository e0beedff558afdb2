"""The suite for outputs passes on the package and rejects mistakes."""

import dataclasses
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
                the_engines_is_emptied,
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


EXERCISE_MUTANTS = [
    whole_outputs, the_last_token, one_length_for_all, cut_in_place, all_logprobs,
    waits_for_the_end, remembers_between_streams, drops_the_finished,
    skips_what_shows_nothing, forgets_the_stop_reason, forgets_the_metrics,
    cuts_logprobs_like_letters,
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


def test_the_solution_passes(capsys):
    checks.outputs(deltas=deltas)
    assert "properties hold." in capsys.readouterr().out


def test_growing_outputs_keep_their_metrics_apart():
    """All outputs of a stream shared one RequestMetrics once: the first of them said
    that the request had finished.
    """
    metrics = RequestMetrics(1.0)
    first = RequestOutput("r", None, [1], [], False, metrics)
    metrics.finished_time = 2.0
    assert first.metrics == RequestMetrics(1.0)
    assert Logprob(-0.5) == Logprob(-0.5)
