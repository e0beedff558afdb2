"""What has to be true of sequences and requests (notebook 04)."""

import time
from collections.abc import Iterator
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

from folovllm_lite import request as package
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.sampling_params import SamplingParams

_SUITE = request = Suite(
    package,
    """Judge the classes of `folovllm_lite.request`, or some of them.

    `checks.request(Sequence=Mine)` judges one class, `checks.request(module)` all of a
    module. The exercises of notebook 04 are judged by their functions' names.
    """,
)

# The arrows once more, by hand: a slip in the package's table has to show.
_ARROWS = {
    "WAITING": {"RUNNING", "FINISHED_ABORTED", "FINISHED_IGNORED"},
    "RUNNING": {
        "WAITING",
        "SWAPPED",
        "FINISHED_STOPPED",
        "FINISHED_LENGTH_CAPPED",
        "FINISHED_ABORTED",
    },
    "SWAPPED": {"RUNNING", "FINISHED_ABORTED"},
}
_STATUSES = (
    *_ARROWS,
    "FINISHED_STOPPED",
    "FINISHED_LENGTH_CAPPED",
    "FINISHED_ABORTED",
    "FINISHED_IGNORED",
)


def _sequence(p: SimpleNamespace, prompt=(7, 8), output=(), blocks=()) -> Any:
    """A sequence "r-0" of request "r"; its pieces may come from different people."""
    data = p.SequenceData(list(prompt), list(output))
    return p.Sequence("r-0", "r", data, SamplingParams(), block_ids=list(blocks))


def _set(sequence: Any, name: str) -> None:
    """Assign a status by name, from the enum that the sequence itself uses."""
    sequence.status = type(sequence.status)[name]


def _used(p: SimpleNamespace, status: str) -> Any:
    """A sequence in that status, with no field left as it began."""
    sequence = _sequence(p, (8, 7, 8), (9, 5, 9), (6, 3))
    sequence.sampling_params = SamplingParams(n=3, seed=7, max_tokens=9)
    sequence.num_computed, sequence.order, sequence.width = 5, (1, 4, 0), 2
    sequence.cache_salt = b"salt"
    _set(sequence, status)
    return sequence


def _facts(sequence: Any) -> dict[str, Any]:
    """All that a sequence says of itself, in lists that no sequence holds."""
    names = ("seq_id", "request_id", "num_computed", "order", "width", "cache_salt")
    asked = vars(sequence.sampling_params).items()
    return {
        "prompt": list(sequence.data.prompt_token_ids),
        "output": list(sequence.data.output_token_ids),
        "status": sequence.status.name,
        "block_ids": list(sequence.block_ids),
        **{name: getattr(sequence, name) for name in names},
        **{f"sampling_params.{name}": value for name, value in asked},
    }


def _expect_facts(given: str, sequence: Any, wanted: dict[str, Any]) -> None:
    for name, value in _facts(sequence).items():
        expect(f"{given}: {name}", value, wanted[name])


def _request(p: SimpleNamespace, *statuses: str, prompt=(7, 8)) -> Any:
    """A request "r" of as many sequences as statuses are given, in those."""
    params = SamplingParams(n=len(statuses) or 1)
    made = p.Request("r", None, list(prompt), params)
    for sequence, name in zip(made.get_seqs(), statuses, strict=False):
        _set(sequence, name)
    return made


# ----- statuses and tokens


@_SUITE.property(
    "SequenceStatus",
    "RequestStatus",
    hint="what do the values of the finished ones have in common?",
)
def _finished(p: SimpleNamespace) -> None:
    """A status is finished exactly if its name begins so, and each list is complete."""
    for enum, names in (
        (p.SequenceStatus, _STATUSES),
        (p.RequestStatus, _STATUSES[:-1]),
    ):
        given = enum.__name__
        expect(f"the names of {given}", sorted(s.name for s in enum), sorted(names))
        for status in enum:
            wanted = status.name.startswith("FINISHED")
            given = f"{enum.__name__}.{status.name}.is_finished()"
            expect(given, status.is_finished(), wanted)


@_SUITE.property(
    "SequenceData", hint="the output starts empty, and for every sequence anew"
)
def _lengths(p: SimpleNamespace) -> None:
    """SequenceData counts prompt and output apart and together."""
    for prompt, output in (([7], []), ([7, 8], [9]), ([7], [9, 9, 9, 5, 9])):
        data = p.SequenceData(list(prompt))
        # A row of the sampler holds this list, and has to see what is added.
        held = data.output_token_ids
        for count, token in enumerate(output, 1):
            data.add_token_id(token)
            got = (len(held), data.get_output_len(), len(data.get_token_ids()))
            given = f"prompt {prompt}, {output[:count]} added: length of "
            given += "output_token_ids as it was held before, get_output_len, all"
            expect(given, got, (count, count, len(prompt) + count))
        given = f"prompt {prompt}, {output} added"
        got = (data.get_prompt_len(), data.get_output_len(), data.get_len())
        expect(
            f"{given}: get_prompt_len, get_output_len, get_len",
            got,
            (len(prompt), len(output), len(prompt) + len(output)),
        )
        expect(f"{given}: get_token_ids()", data.get_token_ids(), prompt + output)
        expect(f"{given}: prompt_token_ids", data.prompt_token_ids, prompt)
        second = p.SequenceData([7]).get_token_ids()
        expect(f"{given}: a second one, prompt [7]", second, [7])
        held.clear()
        got = (data.get_output_len(), data.get_len(), data.get_last_token_id())
        given += ", output_token_ids cleared: get_output_len, get_len, last token"
        expect(given, got, (0, len(prompt), prompt[-1]))


@_SUITE.property("SequenceData", hint="which list is empty before the first step?")
def _last(p: SimpleNamespace) -> None:
    """The last token is the newest; before the first step, the prompt's last."""
    data = p.SequenceData([7, 8])
    expect("prompt [7, 8], no output", data.get_last_token_id(), 8)
    data.add_token_id(0)
    expect("prompt [7, 8], output [0]", data.get_last_token_id(), 0)
    data.add_token_id(5)
    expect("prompt [7, 8], output [0, 5]", data.get_last_token_id(), 5)


@_SUITE.property("SequenceData", hint="does extending one of the lists make a new one?")
def _new_list(p: SimpleNamespace) -> None:
    """get_token_ids gives a new list: who changes it changes no sequence."""
    for output in ([], [9]):
        data = p.SequenceData([7, 8], list(output))
        data.get_token_ids().append(5)
        given = f"prompt [7, 8], output {output}, 5 appended to get_token_ids()"
        expect(given, data.get_token_ids(), [7, 8, *output])


@_SUITE.property(
    "SequenceData", hint="a slice can lie before the prompt's end, after it, or across"
)
def _slices(p: SimpleNamespace) -> None:
    """get_slice(start, end) gives what get_token_ids()[start:end] would."""
    everything = [7, 8, 9, 5, 6]
    for start, end in ((0, 2), (2, 5), (1, 3), *product(range(7), repeat=2)):
        if start <= end:
            got = p.SequenceData([7, 8], [9, 5, 6]).get_slice(start, end)
            given = f"prompt [7, 8], output [9, 5, 6]: get_slice({start}, {end})"
            expect(given, got, everything[start:end])


# ----- one sequence


@_SUITE.property(
    "SequenceData", hint="a list that is handed out as it is can be written to"
)
def _slices_are_new(p: SimpleNamespace) -> None:
    """A slice is a new list too, also where it is all of the prompt or the output."""
    for start, end in ((0, 2), (2, 4), (0, 4)):
        data = p.SequenceData([7, 8], [9, 5])
        data.get_slice(start, end).append(6)
        given = f"prompt [7, 8], output [9, 5], 6 appended to get_slice({start}, {end})"
        expect(f"{given}: tokens", data.get_token_ids(), [7, 8, 9, 5])


@_SUITE.property(
    "Sequence", hint="a default that is a list is shared by all: use field"
)
def _begins(p: SimpleNamespace) -> None:
    """A sequence begins waiting, without blocks, and with lists that are its own."""
    one, two = _sequence(p), _sequence(p)
    expect("a new sequence: status", one.status.name, "WAITING")
    expect("a new sequence: block_ids", one.block_ids, [])
    got = [one.num_computed, one.order, one.width, one.cache_salt]
    wanted = [0, (0, 0, 0), 1, b""]
    expect("a new sequence: num_computed, order, width, cache_salt", got, wanted)
    one = p.Sequence("r-0", "r", p.SequenceData([7]), SamplingParams())
    two = p.Sequence("r-1", "r", p.SequenceData([7]), SamplingParams())
    one.block_ids.append(3)
    expect("block 3 added to another sequence: block_ids", two.block_ids, [])


@_SUITE.property("Sequence", hint="hand each question on to data")
def _getters(p: SimpleNamespace) -> None:
    """A sequence answers for its data."""
    sequence = _sequence(p, output=[9])
    sequence.add_token_id(5)
    got = [
        sequence.get_prompt_len(),
        sequence.get_output_len(),
        sequence.get_len(),
        sequence.get_token_ids(),
        sequence.get_last_token_id(),
    ]
    given = "prompt [7, 8], output [9], 5 added: the getters in their order"
    expect(given, got, [2, 2, 4, [7, 8, 9, 5], 5])


@_SUITE.property("Sequence", hint="hand this question on too: who knows what is final?")
def _sequence_finished(p: SimpleNamespace) -> None:
    """A sequence is finished exactly if its status is."""
    for name in _STATUSES:
        sequence = _sequence(p)
        _set(sequence, name)
        wanted = name.startswith("FINISHED")
        expect(f"{name}: is_finished()", sequence.is_finished(), wanted)


@_SUITE.property("Sequence", hint="a difference of two counts, taken when it is asked")
def _missing(p: SimpleNamespace) -> None:
    """What is missing in the cache is every token that isn't computed: prompt and
    output.
    """
    for output, computed, wanted in (([], 0, 2), ([9], 2, 1), ([9], 0, 3), ([9], 3, 0)):
        sequence = _sequence(p, output=output)
        expect("a new sequence: num_computed", sequence.num_computed, 0)
        sequence.num_computed = computed
        given = f"prompt [7, 8], output {output}, num_computed {computed}"
        expect(f"{given}: num_missing", sequence.num_missing, wanted)
        sequence.add_token_id(5)
        expect(f"{given}, 5 added: num_missing", sequence.num_missing, wanted + 1)


@_SUITE.property("Sequence", hint="0 asks for something, None doesn't")
def _scores(p: SimpleNamespace) -> None:
    """A prompt is scored if prompt_logprobs is given, 0 included."""
    for count, wanted in ((None, False), (2, True), (0, True)):
        params = SamplingParams(prompt_logprobs=count)
        sequence = p.Sequence("r-0", "r", p.SequenceData([7]), params)
        expect(
            f"prompt_logprobs={count}: scores_prompt", sequence.scores_prompt, wanted
        )


@_SUITE.property("Sequence", hint="look the arrow up in the table, then assign")
def _allowed(p: SimpleNamespace) -> None:
    """move_to goes along every arrow of the table."""
    for start, ends in _ARROWS.items():
        for end in sorted(ends):
            sequence = _used(p, start)
            before = _facts(sequence)
            sequence.move_to(type(sequence.status)[end])
            expect(f"from {start} to {end}: status", sequence.status.name, end)
            # Who gave the blocks takes them back, and needs their numbers for it.
            given = f"from {start} to {end}, what isn't the status stays"
            _expect_facts(given, sequence, {**before, "status": end})


@_SUITE.property(
    "Sequence", hint="an f-string with both names; raise before anything is changed"
)
def _refused(p: SimpleNamespace) -> None:
    """Any other move is a ValueError that states both statuses and changes nothing."""
    pairs = [
        ("FINISHED_STOPPED", "RUNNING"),
        ("RUNNING", "RUNNING"),
        ("WAITING", "FINISHED_STOPPED"),
        *((start, end) for start in _STATUSES for end in _STATUSES),
    ]
    for start, end in pairs:
        if end in _ARROWS.get(start, ()):
            continue
        sequence = _used(p, start)
        before = _facts(sequence)
        to = type(sequence.status)[end]
        given = f"from {start} to {end}"
        expect_error(
            given, lambda s=sequence, e=to: s.move_to(e), ValueError, start, end
        )
        _expect_facts(f"{given}, refused", sequence, before)


@_SUITE.property("Sequence", hint="everything but the name is the same at that moment")
def _fork_past(p: SimpleNamespace) -> None:
    """A fork has a new id, and the tokens, blocks, status and parameters of before."""
    for status in ("RUNNING", *_STATUSES):
        parent = _used(p, status)
        before = _facts(parent)
        child = parent.fork("s-1")
        given = f"a sequence 'r-0' of request 'r' is {status}"
        _expect_facts(f"{given}: fork('s-1')", child, {**before, "seq_id": "s-1"})
        _expect_facts(f"{given}, after fork('s-1')", parent, before)


@_SUITE.property(
    "Sequence", hint="which object does each copy point to? A shallow one copies arrows"
)
def _fork_future(p: SimpleNamespace) -> None:
    """After a fork, what happens to one of the two doesn't happen to the other."""

    def change(sequence: Any) -> None:
        sequence.add_token_id(5)
        sequence.data.prompt_token_ids.append(6)
        sequence.block_ids.append(4)
        _set(sequence, "FINISHED_STOPPED")

    for output, blocks in (([9], [3]), ([], [])):
        for at, changed in enumerate(("first fork", "second fork", "parent")):
            parent = _sequence(p, output=output, blocks=blocks)
            each = [parent.fork("r-1"), parent.fork("r-2"), parent]
            change(each.pop(at))
            for other in each:
                given = f"output {output}, blocks {blocks}, two forks; the {changed} is"
                given += f" changed, {other.seq_id}'s"
                expect(f"{given} output", other.data.output_token_ids, output)
                expect(f"{given} block_ids", other.block_ids, blocks)
                expect(f"{given} prompt", other.data.prompt_token_ids, [7, 8])
                expect(f"{given} status", other.status.name, "WAITING")


# ----- a request


@_SUITE.property("Request", hint="count to best_of, from 0, the request's id in front")
def _children(p: SimpleNamespace) -> None:
    """A request makes best_of sequences, called {request_id}-{i}, all waiting."""
    for params, count in (({}, 1), ({"n": 2}, 2), ({"n": 1, "best_of": 3}, 3)):
        asked = SamplingParams(**params)
        made = p.Request("ab", "go", [7, 8], asked)
        expect("request 'ab', prompt 'go': prompt", made.prompt, "go")
        silent = p.Request("ab", None, [7, 8], asked)
        expect("request 'ab', prompt None: prompt", silent.prompt, None)
        wanted = [f"ab-{i}" for i in range(count)]
        seqs = made.get_seqs()
        expect(f"request 'ab', {params}: seq_ids", [s.seq_id for s in seqs], wanted)
        expect(f"request 'ab', {params}: keys", list(made.sequences), wanted)
        for each in seqs:
            expect(f"{each.seq_id}: request_id", each.request_id, "ab")
            expect(f"{each.seq_id}: tokens", each.get_token_ids(), [7, 8])
            expect(f"{each.seq_id}: status", each.status.name, "WAITING")
            same = each.sampling_params == asked
            expect(f"{each.seq_id}: sampling_params, those of the request", same, True)


@_SUITE.property("Request", hint="how many lists are there, and how many owners?")
def _own_prompts(p: SimpleNamespace) -> None:
    """The caller, the request and every sequence have a prompt of their own."""
    prompt = [7, 8]
    made = p.Request("r", None, prompt, SamplingParams(n=2))
    one, two = made.get_seqs()
    one.data.prompt_token_ids.append(1)
    given = "r-0 changes its prompt, that of"
    expect(f"{given} r-1", two.data.prompt_token_ids, [7, 8])
    expect(f"{given} the request", made.prompt_token_ids, [7, 8])
    expect(f"{given} the caller", prompt, [7, 8])
    prompt.append(2)
    given = "the caller's list changes, the prompt of"
    expect(f"{given} r-1", two.data.prompt_token_ids, [7, 8])
    expect(f"{given} the request", made.prompt_token_ids, [7, 8])
    two.add_token_id(9)
    expect("r-1 generates: output of r-0", one.data.output_token_ids, [])


@_SUITE.property("Request", hint="make sequences only where there are none")
def _given_sequences(p: SimpleNamespace) -> None:
    """Sequences that are handed in stay, and no others are made."""
    (one,) = p.Request("r", None, [7], SamplingParams()).get_seqs()
    one.add_token_id(9)
    params = SamplingParams(n=2)
    prompt = [7]
    made = p.Request("r", None, prompt, params, sequences={"r-0": one})
    given = "n=2, one sequence with prompt [7] and output [9] handed in"
    got = [seq.get_token_ids() for seq in made.get_seqs()]
    expect(f"{given}: tokens of its sequences", got, [[7, 9]])
    expect(f"{given}: is it the same one", made.get_seqs()[0] is one, True)
    prompt.append(8)
    given += ", 8 appended to the caller's prompt"
    expect(f"{given}: prompt of the request", made.prompt_token_ids, [7])


@_SUITE.property("Request", hint="None asks for all of them")
def _get_seqs(p: SimpleNamespace) -> None:
    """get_seqs and get_num_seqs give all sequences, or those in one status."""
    made = _request(p, "RUNNING", "FINISHED_STOPPED", "RUNNING")
    enum = type(made.get_seqs()[0].status)
    for name, wanted in (
        (None, ["r-0", "r-1", "r-2"]),
        ("RUNNING", ["r-0", "r-2"]),
        ("FINISHED_STOPPED", ["r-1"]),
        ("WAITING", []),
    ):
        status = enum[name] if name else None
        given = f"RUNNING, FINISHED_STOPPED, RUNNING: get_seqs({name})"
        expect(given, [s.seq_id for s in made.get_seqs(status)], wanted)
        given = f"RUNNING, FINISHED_STOPPED, RUNNING: get_num_seqs({name})"
        expect(given, made.get_num_seqs(status), len(wanted))
    _set(made.get_seqs()[0], "WAITING")
    got = [s.seq_id for s in made.get_seqs(enum["RUNNING"])]
    expect("the same, r-0 becomes WAITING: get_seqs(RUNNING)", got, ["r-2"])


@_SUITE.property(
    "Request", hint="a default in the class body is computed once: use field"
)
def _arrival(p: SimpleNamespace) -> None:
    """A request arrives when it is made, unless it is told otherwise."""
    before = time.time()
    made = _request(p)
    if not before <= made.arrival_time <= time.time():
        fail("arrival_time", "another time than now", "the time at which it is made")
    for told in (5.0, 0.0):
        made = p.Request("r", None, [7], SamplingParams(), arrival_time=told)
        expect(f"arrival_time={told}", made.arrival_time, told)


@_SUITE.property("Request", hint="None is no salt; is an empty one?")
def _salts(p: SimpleNamespace) -> None:
    """The sequences of a request have its salt; another one, or none, is different."""

    def salts(salt: str | None) -> list[bytes]:
        made = p.Request("r", None, [7], SamplingParams(n=2), cache_salt=salt)
        return [sequence.cache_salt for sequence in made.get_seqs()]

    given = (None, "a", "b", "", "A", " a", "customer-1", "customer-2", "\ud83d",
             "\udfff", "?")  # fmt: skip
    for salt in given:
        one, two = salts(salt)
        kind = type(one).__name__
        expect(f"cache_salt={salt!r}: type of r-0's cache_salt", kind, "bytes")
        expect(f"cache_salt={salt!r}: r-0 and r-1 have the same", one == two, True)
        expect(f"cache_salt={salt!r}, a second time: the same", salts(salt)[0], one)
    for one, two in combinations(given, 2):
        same = salts(one)[0] == salts(two)[0]
        expect(f"cache_salt={one!r} and cache_salt={two!r}: the same", same, False)


_GOING_ON = (
    (("WAITING",), "WAITING"),
    (("RUNNING",), "RUNNING"),
    (("SWAPPED",), "SWAPPED"),
    (("FINISHED_STOPPED", "RUNNING"), "RUNNING"),
    (("WAITING", "RUNNING"), "RUNNING"),
    (("FINISHED_STOPPED", "WAITING"), "WAITING"),
    (("FINISHED_ABORTED", "WAITING"), "WAITING"),
    (("SWAPPED", "WAITING"), "SWAPPED"),
    (("SWAPPED", "FINISHED_LENGTH_CAPPED"), "SWAPPED"),
    (("SWAPPED", "RUNNING", "WAITING"), "RUNNING"),
)
_ENDED = (
    (("FINISHED_STOPPED",), "FINISHED_STOPPED"),
    (("FINISHED_LENGTH_CAPPED",), "FINISHED_LENGTH_CAPPED"),
    (("FINISHED_ABORTED",), "FINISHED_ABORTED"),
    (("FINISHED_IGNORED",), "FINISHED_LENGTH_CAPPED"),
    (("FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED"), "FINISHED_LENGTH_CAPPED"),
    (("FINISHED_ABORTED", "FINISHED_STOPPED"), "FINISHED_ABORTED"),
    (("FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED"), "FINISHED_ABORTED"),
    (("FINISHED_STOPPED", "FINISHED_IGNORED"), "FINISHED_LENGTH_CAPPED"),
    (("FINISHED_IGNORED", "FINISHED_ABORTED"), "FINISHED_ABORTED"),
)


# The order of the rule once more, by hand.
_SPEAKS = {
    "RUNNING": "RUNNING",
    "SWAPPED": "SWAPPED",
    "WAITING": "WAITING",
    "FINISHED_ABORTED": "FINISHED_ABORTED",
    "FINISHED_IGNORED": "FINISHED_LENGTH_CAPPED",
    "FINISHED_LENGTH_CAPPED": "FINISHED_LENGTH_CAPPED",
    "FINISHED_STOPPED": "FINISHED_STOPPED",
}
_ALL = [
    (parts, next(whole for part, whole in _SPEAKS.items() if part in parts))
    for count in (1, 2, 3)
    for parts in product(_SPEAKS, repeat=count)
]
# A request of two: who moves, to which status, and what the whole is in then.
_LIFE = (
    (0, "RUNNING", "RUNNING"),
    (0, "SWAPPED", "SWAPPED"),
    (1, "RUNNING", "RUNNING"),
    (1, "FINISHED_STOPPED", "SWAPPED"),
    (0, "RUNNING", "RUNNING"),
    (0, "WAITING", "WAITING"),
    (0, "FINISHED_ABORTED", "FINISHED_ABORTED"),
)


@_SUITE.property(
    "Request", hint="compute it from the sequences each time somebody asks"
)
def _status_going_on(p: SimpleNamespace) -> None:
    """While a sequence goes on the request does too: running before swapped before
    waiting.
    """
    going_on = [each for each in _ALL if not each[1].startswith("FINISHED")]
    for statuses, wanted in (*_GOING_ON, *going_on):
        got = _request(p, *statuses).status.name
        expect(f"sequences {', '.join(statuses)}: status", got, wanted)
    made = _request(p, "WAITING", "WAITING")
    expect("sequences WAITING, WAITING: status", made.status.name, "WAITING")
    for number, name, wanted in _LIFE:
        _set(made.get_seqs()[number], name)
        now = ", ".join(seq.status.name for seq in made.get_seqs())
        given = f"the same request later, its sequences are {now}: status"
        expect(given, made.status.name, wanted)


@_SUITE.property("Request", hint="which of two endings should the user hear of?")
def _status_ended(p: SimpleNamespace) -> None:
    """When all have ended: aborted before length-capped (or ignored) before stopped."""
    ended = [each for each in _ALL if each[1].startswith("FINISHED")]
    for statuses, wanted in (*_ENDED, *ended):
        got = _request(p, *statuses).status.name
        expect(f"sequences {', '.join(statuses)}: status", got, wanted)


@_SUITE.property("Request", hint="all, not any")
def _request_finished(p: SimpleNamespace) -> None:
    """A request is finished when all its sequences are; its status says the same."""
    for statuses, wanted in (*_GOING_ON, *_ENDED):
        made = _request(p, *statuses)
        finished = wanted.startswith("FINISHED")
        given = f"sequences {', '.join(statuses)}"
        expect(f"{given}: is_finished()", made.is_finished(), finished)
        expect(f"{given}: status.is_finished()", made.status.is_finished(), finished)
    made = _request(p, "WAITING", "WAITING")
    for number, name, wanted in _LIFE:
        _set(made.get_seqs()[number], name)
        given = f"the same request later, r-{number} becomes {name}: is_finished()"
        expect(given, made.is_finished(), wanted.startswith("FINISHED"))


# ----- the exercises of notebook 04

EVENTS = (
    ("r-0", "RUNNING"),
    ("r-0", "SWAPPED"),
    ("r-1", "RUNNING"),
    ("r-1", "FINISHED_STOPPED"),
    ("r-0", "WAITING"),
    ("r-1", "RUNNING"),
    ("r-0", "RUNNING"),
    ("r-0", "FINISHED_LENGTH_CAPPED"),
)


def _replayed() -> Iterator[str]:
    """What each of EVENTS leads to: the request's status, or "refused"."""
    made = package.Request("r", None, [7], SamplingParams(n=2))
    for seq_id, name in EVENTS:
        try:
            made.sequences[seq_id].move_to(package.SequenceStatus[name])
        except ValueError:
            yield "refused"
        else:
            yield made.status.name


@_SUITE.property(
    "predicted_statuses",
    hint="first: is there such an arrow? Then: which of the sequences speaks for all?",
)
def _prediction(p: SimpleNamespace) -> None:
    """The prediction says of every event what it leads to."""
    got = list(p.predicted_statuses())
    for number, (event, right) in enumerate(zip(EVENTS, _replayed(), strict=True), 1):
        seq_id, name = event
        if len(got) < number:
            fail("the list of answers", f"{len(got)} answers", f"{len(EVENTS)} of them")
        answer, given = got[number - 1], f"event {number}: {seq_id} to {name}"
        if answer not in ["refused", *package.RequestStatus.__members__]:
            wanted = "the name of a RequestStatus, such as 'WAITING', or 'refused'"
            fail(given, repr(answer), wanted)
        if answer != right:
            fail(given, answer, "something else")
    expect("the number of answers", len(got), len(EVENTS))


def _known_to_rewind(p: SimpleNamespace) -> SimpleNamespace:
    """The pieces, with the sequences of the place where `rewind` was written.

    A notebook defines a SequenceStatus of its own. To sequences with another enum its
    moves would be none, and the error would deny an arrow that the picture shows.
    """
    known = getattr(p.rewind, "__globals__", {})
    theirs = {n: known[n] for n in ("Sequence", "SequenceData") if n in known}
    return SimpleNamespace(**{**vars(p), **theirs})


@_SUITE.property("rewind", hint="a slice of the output, and all of the prompt")
def _rewind_tokens(p: SimpleNamespace) -> None:
    """A rewound sequence keeps the prompt and the first `keep` generated tokens."""
    p = _known_to_rewind(p)
    for output, keep in (([9, 5], 1), ([9, 5], 2), ([9, 5], 0), ([], 0),
                         ([9, 5, 9, 6], 3)):  # fmt: skip
        parent = _sequence(p, output=output)
        made = p.rewind(parent, "r-9", keep)
        given = f"prompt [7, 8], output {output}, keep {keep}"
        expect(f"{given}: prompt", made.data.prompt_token_ids, [7, 8])
        expect(f"{given}: output", made.data.output_token_ids, output[:keep])
        expect(f"{given}: seq_id", made.seq_id, "r-9")


@_SUITE.property("rewind", hint="which fields of a fork tell of what was computed?")
def _rewind_state(p: SimpleNamespace) -> None:
    """Nothing of it has been computed: it waits, holds no blocks, and counts from 0."""
    p = _known_to_rewind(p)
    for status in ("RUNNING", "FINISHED_STOPPED", "SWAPPED", *_STATUSES):
        parent = _sequence(p, output=[9, 5], blocks=[3])
        _set(parent, status)
        parent.num_computed = 3
        for made in (p.rewind(parent, "r-8", 1), p.rewind(parent, "r-9", 1)):
            given = f"rewind of a sequence that is {status}, block 3, 3 tokens computed"
            expect(f"{given}: status", made.status.name, "WAITING")
            expect(f"{given}: block_ids", made.block_ids, [])
            expect(f"{given}: num_computed", made.num_computed, 0)
            made.block_ids.append(4)  # the next one has a list of its own


@_SUITE.property(
    "rewind", hint="a sequence that is made anew has defaults in its fields"
)
def _rewind_request(p: SimpleNamespace) -> None:
    """What came with the request stays: its id, the parameters, the cache_salt, and
    its order.
    """
    p = _known_to_rewind(p)
    parent = _used(p, "RUNNING")
    made, kept = _facts(p.rewind(parent, "s-9", 1)), _facts(parent)
    given = "rewind of a sequence of request 'r', new_seq_id 's-9'"
    for name in ("request_id", "cache_salt", "order", *kept):
        if name in ("request_id", "cache_salt", "order") or "params" in name:
            expect(f"{given}: {name}", made[name], kept[name])


@_SUITE.property("rewind", hint="will the new one be forked into several?")
def _rewind_width(p: SimpleNamespace) -> None:
    """Its width is 1, whatever it was: it will not become several."""
    p = _known_to_rewind(p)
    parent = _sequence(p, output=[9])
    parent.width = 3
    expect("width 3: width", p.rewind(parent, "r-9", 1).width, 1)


@_SUITE.property("rewind", hint="change the copy; and does the copy share a list?")
def _rewind_parent(p: SimpleNamespace) -> None:
    """The sequence that is rewound stays as it was, then and later."""
    p = _known_to_rewind(p)
    parent = _sequence(p, output=[9, 5], blocks=[3])
    _set(parent, "FINISHED_STOPPED")
    parent.num_computed, parent.width = 3, 2
    before = _facts(parent)
    for keep in (1, 2):
        made = p.rewind(parent, "r-9", keep)
        made.add_token_id(6)
        made.data.prompt_token_ids.append(6)
        made.block_ids.append(4)
        given = f"output [9, 5], keep {keep}, then 6 is added to the new one; the old"
        _expect_facts(given, parent, before)


@_SUITE.property("rewind", hint="a slice never complains: [:-1] and [:99] both work")
def _rewind_refused(p: SimpleNamespace) -> None:
    """A keep below 0 or above what was generated is a ValueError with both numbers."""
    p = _known_to_rewind(p)
    p.rewind(_sequence(p, output=[9]), "r-9", 1)  # this one is fine
    for output, keep in (([9], 2), ([], 1), ([9, 5], -1), ([9, 5], -2), ([9, 5], 7)):
        sequence = _sequence(p, output=output, blocks=[3])
        _set(sequence, "RUNNING")
        before = _facts(sequence)
        expect_error(
            f"output {output}, keep {keep}",
            lambda s=sequence, k=keep: getattr(p.rewind(s, "r-9", k), "data", None),
            ValueError,
            str(keep),
            str(len(output)),
        )
        _expect_facts(f"output {output}, keep {keep}, refused", sequence, before)
