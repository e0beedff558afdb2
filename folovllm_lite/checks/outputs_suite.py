"""What has to be true of outputs that are handed to users (notebook 04)."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from folovllm_lite import outputs as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail

_SUITE = outputs = Suite(
    package,
    """Judge Logprob, RequestMetrics, CompletionOutput, RequestOutput, or some of them.

    `checks.outputs(RequestOutput=Mine)` judges one class, `checks.outputs(module)` all
    of a module. The exercise of notebook 04 is judged as `deltas`.
    """,
)


def _output(p: SimpleNamespace, *completions: Any, **more: Any) -> Any:
    """An output of request "r" with the prompt [7, 8]."""
    finished = all(each.finished() for each in completions)
    return p.RequestOutput("r", "ab", [7, 8], list(completions), finished, **more)


@_SUITE.property(
    "Logprob", "RequestMetrics", hint="a default after the annotation: = None"
)
def _small_records(p: SimpleNamespace) -> None:
    """A Logprob needs only its number, RequestMetrics only the arrival; the rest is
    None.
    """
    made = p.Logprob(-0.5)
    expect("Logprob(-0.5).logprob", made.logprob, -0.5)
    expect("... rank, decoded_token", [made.rank, made.decoded_token], [None, None])
    made = p.Logprob(-0.5, 2, "go")
    expect("Logprob(-0.5, 2, 'go')", [made.rank, made.decoded_token], [2, "go"])
    made = p.RequestMetrics(arrival_time=5.0)
    got = [made.arrival_time, made.first_token_time, made.finished_time]
    given = "RequestMetrics(5.0): arrival_time, first_token_time, finished_time"
    expect(given, got, [5.0, None, None])


@_SUITE.property("CompletionOutput", hint="the order in which the fields are written")
def _order(p: SimpleNamespace) -> None:
    """CompletionOutput takes index, text and token_ids in this order; the rest may come
    later.
    """
    made = p.CompletionOutput(1, "go", [9])
    given = "CompletionOutput(1, 'go', [9])"
    expect(f"{given}: index, text, token_ids", [made.index, made.text], [1, "go"])
    expect(f"{given}: token_ids", made.token_ids, [9])
    rest = ("cumulative_logprob", "logprobs", "finish_reason", "stop_reason")
    for name in rest:
        expect(f"{given}: {name}", getattr(made, name), None)
    made = p.CompletionOutput(1, "go", [9], -0.5, None, "stop", 9)
    got = [made.cumulative_logprob, made.finish_reason, made.stop_reason]
    given = "CompletionOutput(1, 'go', [9], -0.5, None, 'stop', 9)"
    expect(f"{given}: {', '.join(rest[:1] + rest[2:])}", got, [-0.5, "stop", 9])


@_SUITE.property(
    "CompletionOutput", hint="how many reasons are there, and how many Nones?"
)
def _completion_finished(p: SimpleNamespace) -> None:
    """A completion is finished as soon as it has a finish_reason, whichever it is."""
    for reason in (None, "stop", "length", "abort"):
        made = p.CompletionOutput(0, "", [], finish_reason=reason)
        given = f"finish_reason={reason!r}: finished()"
        expect(given, made.finished(), reason is not None)
    made = p.CompletionOutput(0, "", [9], finish_reason="stop", stop_reason=None)
    expect("'stop' by the end token: finished()", made.finished(), True)


@_SUITE.property(
    "Logprob",
    "RequestMetrics",
    "CompletionOutput",
    "RequestOutput",
    hint="@dataclass(slots=True) knows which names there are",
)
def _no_new_names(p: SimpleNamespace) -> None:
    """A misspelt field can't be assigned: AttributeError, not a silent new one."""
    completion = p.CompletionOutput(0, "", [])
    for made, name in (
        (completion, "finish_reson"),
        (_output(p, completion), "fnished"),
        (p.Logprob(-0.5), "rang"),
        (p.RequestMetrics(5.0), "first_token_tme"),
    ):
        given = f"{type(made).__name__}: .{name} = 1"
        expect_error(given, lambda m=made, n=name: setattr(m, n, 1), AttributeError)


@_SUITE.property(
    "RequestOutput", hint="the list that the engine goes on writing is the same object"
)
def _completions_stay(p: SimpleNamespace) -> None:
    """An output that was handed out stays as it was while its completion grows."""
    for tokens in ([9], []):
        # Two completions, and the lists that the engine holds besides them.
        held = [list(tokens), list(tokens)]
        scores = [[{9: p.Logprob(-0.5)} for _ in tokens] for _ in held]
        live = [p.CompletionOutput(i, "go", held[i], -0.5, scores[i]) for i in range(2)]
        handed_out = _output(p, *live)
        for i, kept in enumerate(handed_out.outputs):
            held[i].append(5)
            scores[i].append({5: p.Logprob(-0.5)})
            live[i].text += " on"
            live[i].finish_reason = "length"
            given = f"token 5 and text ' on' come after output {tokens}, 'go' was "
            given += f"handed out: completion {i}'s"
            expect(f"{given} token_ids", kept.token_ids, tokens)
            expect(f"{given} text", kept.text, "go")
            expect(f"{given} finish_reason", kept.finish_reason, None)
            expect(f"{given} number of logprobs", len(kept.logprobs), len(tokens))
            grown = [*tokens, 5]
            given = f"token 5 comes after output {tokens}: the engine's completion {i}"
            expect(f"{given}, token_ids", live[i].token_ids, grown)
            expect(f"{given}, number of logprobs", len(live[i].logprobs), len(grown))


@_SUITE.property(
    "RequestOutput", hint="outputs isn't the only list in it that somebody else holds"
)
def _rest_stays(p: SimpleNamespace) -> None:
    """The same holds for the list of completions and the prompt's lists."""
    completions, prompt = [p.CompletionOutput(0, "", [])], [7, 8]
    for scores in ([None], []):
        kept = p.RequestOutput("r", None, prompt, completions, False, None, scores)
        before = list(scores)
        scores.append({})
        given = f"prompt_logprobs {before}, changed after the output was handed out"
        expect(f"{given}: prompt_logprobs", kept.prompt_logprobs, before)
    kept = p.RequestOutput("r", None, prompt, completions, False)
    completions.append(p.CompletionOutput(1, "", []))
    prompt.append(1)
    given = "changed after the output was handed out:"
    expect(f"{given} how many completions", len(kept.outputs), 1)
    expect(f"{given} prompt_token_ids", kept.prompt_token_ids, [7, 8])


@_SUITE.property(
    "RequestOutput",
    hint="the engine goes on writing times into the metrics it gave you",
)
def _metrics_stay(p: SimpleNamespace) -> None:
    """The metrics that were handed out stay as they were."""
    metrics = p.RequestMetrics(5.0)
    made = p.CompletionOutput(0, "", [])
    kept = p.RequestOutput("r", None, [7], [made], False, metrics)
    metrics.finished_time = 9.0
    given = "finished_time is set to 9 after the output was handed out: the output's"
    expect(f"{given} metrics.finished_time", kept.metrics.finished_time, None)


@_SUITE.property("RequestOutput", hint="a copy protects both sides, if it is one")
def _engine_stays(p: SimpleNamespace) -> None:
    """Nor can the user reach back: clearing an output leaves the engine's lists."""
    live, prompt = p.CompletionOutput(0, "go", [9]), [7, 8]
    made = p.RequestOutput("r", None, prompt, [live], False)
    made.outputs[0].token_ids.clear()
    made.prompt_token_ids.clear()
    expect("the user clears token_ids: the engine's", live.token_ids, [9])
    expect("the user clears prompt_token_ids: the engine's", prompt, [7, 8])


@_SUITE.property("RequestOutput", hint="None has nothing to copy; [] is not None")
def _optional(p: SimpleNamespace) -> None:
    """What isn't there stays None, and what was given stays what it was."""
    made = p.RequestOutput("r", None, [7], [p.CompletionOutput(0, "go", [9])], False)
    given = "without metrics, prompt_logprobs, logprobs"
    got = [made.prompt, made.metrics, made.prompt_logprobs, made.outputs[0].logprobs]
    expect(f"{given}: these three, after the prompt", got, [None] * 4)
    for reason in (9, "o"):
        completion = p.CompletionOutput(3, "go", [9], -0.5, [], "stop", reason)
        times = p.RequestMetrics(5.0)
        made = _output(p, completion, metrics=times, prompt_logprobs=[])
        given = f"the completion inside equals the one given, stop_reason {reason!r}"
        expect(given, made.outputs, [completion])
    expect("metrics.arrival_time=5.0", made.metrics.arrival_time, 5.0)
    expect("logprobs=[]", made.outputs[0].logprobs, [])
    expect("prompt_logprobs=[]", made.prompt_logprobs, [])
    expect("finish_reason 'stop': finished", made.finished, True)
    two = [
        p.CompletionOutput(i, "", [9], x, None, "stop") for i, x in ((1, -3), (0, -1))
    ]
    made = p.RequestOutput("r", None, [7], two, False)
    given = "completions 1 and 0, both ended, finished=False"
    expect(f"{given}: indices", [each.index for each in made.outputs], [1, 0])
    expect(f"{given}: finished", made.finished, False)


@_SUITE.property(
    "RequestOutput", hint="only a text of more than 50 has anything to hide"
)
def _repr(p: SimpleNamespace) -> None:
    """Printed, an output shows at most 50 characters of its prompt."""
    for length in (3, 50, 51, 999):
        made = p.RequestOutput("r", "x" * length, [7], [], True)
        shown = "x" * length if length <= 50 else "x" * 50 + "…"
        got = repr(made)
        if f"prompt={shown!r}," not in got:
            fail(f"a prompt of {length} times 'x': repr", got, f"prompt={shown!r}")
        expect("the prompt itself afterwards", made.prompt, "x" * length)
    got = repr(p.RequestOutput("r", None, [7], [], True))
    if "prompt=None" not in got:
        fail("a prompt that came as ids: repr", got, "prompt=None")


# ----- the exercise of notebook 04


def _stream(p: SimpleNamespace, *steps: Any) -> list[Any]:
    """Outputs of request "r"; a step is a tuple of (text, token_ids, finish_reason)."""
    return [
        _output(
            p,
            *(
                p.CompletionOutput(i, text, list(ids), -1.0 * len(ids), None, reason)
                for i, (text, ids, reason) in enumerate(step)
            ),
        )
        for step in steps
    ]


def _news(made: Any) -> list[Any]:
    """What an output says, as plain values."""
    return [(c.text, list(c.token_ids), c.finish_reason) for c in made.outputs]


@_SUITE.property("deltas", hint="what does the output before tell you about this one?")
def _deltas_one(p: SimpleNamespace) -> None:
    """Each delta holds only the text and tokens that its output adds."""
    stream = _stream(
        p,
        [("a", [1], None)],
        [("a", [1, 2], None)],  # half a character: no text yet
        [("abc", [1, 2, 3, 4], None)],  # two tokens in one step
        [("abc", [1, 2, 3, 4], "abort")],  # nothing new, but that it ended
    )
    again = _stream(
        p,
        [("go", [1, 2], None)],
        [("go go", [1, 2, 2, 1], None)],  # the same once more
        [("go go og \n", [1, 2, 2, 1, 1], "stop")],
    )
    wanted = (
        [("a", [1], None)],
        [("", [2], None)],
        [("bc", [3, 4], None)],
        [("", [], "abort")],
    )
    got = list(p.deltas(stream))
    given = "outputs 'a' [1], 'a' [1, 2], 'abc' [1, 2, 3, 4] twice, aborted at last"
    expect(f"{given}: how many deltas", len(got), 4)
    for number, (each, right) in enumerate(zip(got, wanted, strict=True), 1):
        expect(f"{given}: delta {number}", _news(each), right)
    ends = [each.finished for each in got]
    expect(f"{given}: finished", ends, [False, False, False, True])
    for number, (each, right) in enumerate(
        zip(
            p.deltas(again),
            (("go", [1, 2], None), (" go", [2, 1], None), (" og \n", [1], "stop")),
            strict=True,
        ),
        1,
    ):
        given = "outputs 'go' [1, 2], 'go go' [1, 2, 2, 1], 'go go og \\n'"
        expect(f"{given} [1, 2, 2, 1, 1]: delta {number}", _news(each), [right])
    expect("no outputs: how many deltas", len(list(p.deltas([]))), 0)


@_SUITE.property("deltas", hint="how long was *this* completion before?")
def _deltas_two(p: SimpleNamespace) -> None:
    """Completions are told apart, and one that has ended adds nothing more."""
    stream = _stream(
        p,
        [("ab", [1], None), ("", [4], None)],  # its text is held back
        [("abc", [1, 2], None), ("xyz", [4, 5], "length")],
        [("abc", [1, 2, 0], "stop"), ("xyz", [4, 5], "length")],
    )
    got = list(p.deltas(stream))
    given = "completion 0: 'ab', 'abc', end; completion 1: '', 'xyz' and end; delta"
    expect(f"{given} 1", _news(got[0]), [("ab", [1], None), ("", [4], None)])
    expect(f"{given} 2", _news(got[1]), [("c", [2], None), ("xyz", [5], "length")])
    expect(f"{given} 3", _news(got[2]), [("", [0], "stop"), ("", [], "length")])
    expect(f"{given} 3: indices", [c.index for c in got[2].outputs], [0, 1])
    ends = [each.finished for each in got]
    expect(f"{given} 1 to 3: finished", ends, [False, False, True])


@_SUITE.property(
    "deltas", hint="what names a completion: its place in the list, or its index?"
)
def _deltas_moved(p: SimpleNamespace) -> None:
    """The last output may have the completions in another order, the best first."""
    stream = _stream(p, [("ab", [1], None), ("x", [4], None)])
    zero = p.CompletionOutput(0, "abc", [1, 2], -9.0, None, "stop")
    one = p.CompletionOutput(1, "xyz", [4, 5], -1.0, None, "stop")
    got = list(p.deltas([*stream, _output(p, one, zero)]))
    given = "completions 0 'ab' and 1 'x', then 1 'xyz' before 0 'abc': delta 2"
    expect(f"{given}: indices", [c.index for c in got[1].outputs], [1, 0])
    wanted = [("yz", [5], "stop"), ("c", [2], "stop")]
    expect(given, _news(got[1]), wanted)


@_SUITE.property(
    "deltas", hint="which other list grows with the tokens? `replace` keeps the rest"
)
def _deltas_logprobs(p: SimpleNamespace) -> None:
    """The logprobs are cut like the tokens; all other fields stay what they are."""
    first, second = {1: p.Logprob(-0.5)}, {2: p.Logprob(-1.5)}
    ended = p.CompletionOutput(0, "ab", [1, 2], -2.0, [first, second], "stop", 2)
    rest = {"metrics": p.RequestMetrics(5.0), "prompt_logprobs": [None]}
    stream = [
        _output(p, p.CompletionOutput(0, "a", [1], -0.5, [first]), **rest),
        _output(p, ended, **rest),
    ]
    both = list(p.deltas(stream))
    last = both[-1]
    given = "tokens 1 and 2 with logprobs -0.5 and -1.5, the last delta:"
    expect(f"{given} logprobs", last.outputs[0].logprobs, [second])
    got = list(p.deltas(stream[1:]))[0].outputs[0].logprobs
    expect("both tokens in one output: logprobs", got, [first, second])
    told = p.CompletionOutput(0, "abcd", [1, 2], -2.0, [first, second])
    silent = p.CompletionOutput(0, "", [1], -0.5, [first])  # half a character
    got = list(p.deltas([_output(p, silent), _output(p, told)]))[-1]
    same = "the same, the first without a text, the second with 4 letters: logprobs"
    expect(same, got.outputs[0].logprobs, [second])
    nothing = list(p.deltas(_stream(p, [("a", [1], None)], [("ab", [1, 2], None)])))
    got = [each.outputs[0].logprobs for each in nothing]
    expect("two outputs whose logprobs are None: logprobs", got, [None, None])
    for name, wanted in (("cumulative_logprob", -2.0), ("stop_reason", 2)):
        expect(f"{given} {name}", getattr(last.outputs[0], name), wanted)
    for number, each in enumerate(both, 1):
        given = f"tokens 1 and 2, delta {number}:"
        got = [each.request_id, each.prompt, each.prompt_token_ids]
        wanted = ["r", "ab", [7, 8]]
        expect(f"{given} request_id, prompt, prompt_token_ids", got, wanted)
        expect(f"{given} metrics", each.metrics, rest["metrics"])
        expect(f"{given} prompt_logprobs", each.prompt_logprobs, [None])


@_SUITE.property(
    "deltas", hint="build new outputs; somebody may keep those you were given"
)
def _deltas_leave(p: SimpleNamespace) -> None:
    """The outputs that came in stay as they were."""
    stream = _stream(p, [("a", [1], None)], [("ab", [1, 2], "stop")])
    list(p.deltas(stream))
    given = "outputs 'a' [1] and 'ab' [1, 2], afterwards"
    got = [_news(each) for each in stream]
    expect(given, got, [[("a", [1], None)], [("ab", [1, 2], "stop")]])
    scores = [{1: p.Logprob(-0.5)}, {2: p.Logprob(-1.5)}]
    made = [p.CompletionOutput(0, "ab"[:n], [1, 2][:n], 0, scores[:n]) for n in (1, 2)]
    stream = [_output(p, each) for each in made]
    list(p.deltas(stream))
    got = [len(each.outputs[0].logprobs) for each in stream]
    expect(f"{given}: numbers of logprobs", got, [1, 2])


@_SUITE.property("deltas", hint="yield inside the loop; a list would wait for the end")
def _deltas_lazy(p: SimpleNamespace) -> None:
    """A delta comes as soon as its output does, and two streams don't meet."""
    taken = []

    def source() -> Iterator[Any]:
        for number, each in enumerate(
            _stream(p, [("a", [1], None)], [("ab", [1, 2], None)])
        ):
            taken.append(number)
            yield each

    one, two = iter(p.deltas(source())), iter(p.deltas(source()))
    expect("the first delta", _news(next(one)), [("a", [1], None)])
    expect("outputs taken from the source by then", taken, [0])
    given = "the first delta of a second stream, begun in between"
    expect(given, _news(next(two)), [("a", [1], None)])
    expect("the second delta of the first", _news(next(one)), [("b", [2], None)])
