"""What has to be true of the engine, whatever scheduler and runner it is made of."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch

from folovllm_lite import engine as package
from folovllm_lite.block_manager import BlockManager
from folovllm_lite.checks.generation_suite import _model
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.checks.tiny import Letters
from folovllm_lite.config import SchedulerConfig
from folovllm_lite.generation import generate
from folovllm_lite.outputs import RequestOutput
from folovllm_lite.prefix_cache import PrefixCache
from folovllm_lite.request import Sequence
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.scheduler import (
    Scheduler,
    Step,
    as_they_came,
    chunk,
    decodes_first,
    whole,
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Requests that fail on purpose are no news."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


_SUITE = engine = Suite(
    package,
    """Judge LLMEngine of `folovllm_lite.engine`.

    `checks.engine(LLMEngine=Mine)` judges a class, `checks.engine(module)` that of a
    module. It is made of the package's scheduler and runner, over rows and over blocks,
    with a tiny random model; its tokens are compared with `generation.generate`.
    """,
    inside=_quiet,
)
_LENGTH = 24  # tokens that the judge's model was built for
_PROMPTS = {"a": [5, 9, 3], "b": [4, 4, 8, 2, 7], "c": [6], "d": [5, 9, 3, 11]}


class _Rows:
    """The least of all memories: one row of the full length for each sequence."""

    def __init__(self, count: int, length: int):
        self.count, self.capacity = count, length
        self.clear()

    def clear(self) -> None:
        self.free, self.moves = list(range(self.count)), []

    def found(self, seq: Sequence) -> int:
        return 0

    def place(self, seq: Sequence, end: int) -> bool:
        if not self.free:
            return False
        seq.block_ids, seq.num_computed = [self.free.pop(0)], 0
        return True

    def grow(self, seq: Sequence, end: int) -> bool:
        return end <= self.capacity

    def release(self, seq: Sequence) -> None:
        self.free += seq.block_ids
        seq.block_ids = []

    def swap_out(self, seq: Sequence) -> bool:
        return False

    def fork(self, parent: Sequence, child: Sequence) -> None:
        child.block_ids = [self.free.pop(0)]
        self.moves.append(("copy", parent.block_ids[0], child.block_ids[0]))

    def offer(self, seq: Sequence, end: int) -> None: ...

    def withdraw(self, seq: Sequence) -> None: ...

    def stats(self) -> dict[str, float]:
        return {"rows": self.count, "rows_held": self.count - len(self.free)}


class _Runner:
    """Runs steps over a pool, and does to one what a property wants done."""

    def __init__(self, *shape: int, num_swap_blocks: int):
        # Here, because the import takes a second, and this is one suite of many.
        from folovllm_lite.paged import PagedKVCache
        from folovllm_lite.runner import Runner

        model = _model()
        self.cache = PagedKVCache(model.config, *shape, num_swap_blocks=num_swap_blocks)
        self.cache.pool.fill_(math.nan)  # what was never written must not be read
        self.cache.swap.fill_(0)  # nor what never arrived there, unseen: it is a number
        self.runner = Runner(model, self.cache)
        self.before: Any = None  # called with a step, once, before it is run
        self.spoilt = ""  # the request, or its sequence, whose hidden states are NaN

    def run(self, step: Step) -> torch.Tensor:
        if self.before is not None:
            before, self.before = self.before, None
            before(step)
        hidden = self.runner.run(step).clone()
        first = 0
        for work in step.work.values():
            if self.spoilt in (work.seq.request_id, work.seq.seq_id):
                hidden[first : first + work.count] = math.nan
            first += work.count
        return hidden


_KINDS = {
    "rows": {"rows": True},
    "blocks": {},
    "few blocks": {"blocks": 12},
    "few blocks, swapping": {"blocks": 12, "swap": 12},
    "prefix caching": {"caching": True},
    "chunks": {"budget": 3, "chunked": True},
    "chunks, few blocks": {"budget": 4, "chunked": True, "blocks": 12},
    "2 tokens of each": {"share": lambda missing, budget: min(missing, budget, 2)},
    "chunks, caching, few blocks": {
        "budget": 4, "chunked": True, "caching": True, "blocks": 13, "swap": 4,
    },
}  # fmt: skip


def _made(
    p: SimpleNamespace,
    rows: bool = False,
    budget: int = 64,
    seqs: int = 4,
    chunked: bool = False,
    blocks: int = 48,
    caching: bool = False,
    swap: int = 0,
    eos: tuple[int, ...] = (),
    seed: int = 0,
    share: Any = None,
) -> Any:
    """An engine over rows of 24 tokens, or over blocks of 2."""
    model, config = _model(), SchedulerConfig(budget, seqs)
    model.since()  # or it would run out of passes
    if rows:
        memory, shape = _Rows(seqs, _LENGTH), (seqs, _LENGTH)
    else:
        free = PrefixCache(blocks, 2) if caching else None
        memory, shape = BlockManager(blocks, 2, free, swap), (blocks, 2)
    runner = _Runner(*shape, num_swap_blocks=swap)
    turns = decodes_first if chunked else as_they_came
    share = share or (chunk if chunked else whole)
    scheduler = Scheduler(config, memory, share=share, turns=turns)
    return p.LLMEngine(
        model, Letters(), scheduler, runner, eos_token_ids=eos, seed=seed
    )


def _asked(**params: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 5, **params})


@cache
def _oracle(prompt: tuple[int, ...], eos: tuple[int, ...], **params: Any) -> Any:
    model = _model()
    model.since()
    return generate(model, Letters(), list(prompt), _asked(**params), eos_token_ids=eos)


def _wanted(prompt: list[int], eos: tuple[int, ...] = (), **params: Any) -> list:
    """(tokens, reason) of each completion by the plain loop."""
    return _told(_oracle(tuple(prompt), eos, **params))


def _told(output: RequestOutput) -> list:
    return [(list(each.token_ids), each.finish_reason) for each in output.outputs]


def _add(made: Any, name: str, prompt: list[int] | None = None, **params: Any) -> None:
    prompt = _PROMPTS[name] if prompt is None else prompt
    made.add_request(name, {"prompt_token_ids": prompt}, _asked(**params))


def _finish(made: Any, steps: int = 120) -> dict[str, RequestOutput]:
    """Step to the end; the last output of each request."""
    outputs: dict[str, RequestOutput] = {}
    for _ in range(steps):
        if not made.has_unfinished_requests():
            return outputs
        for output in made.step():
            outputs[output.request_id] = output
    fail(f"{steps} steps", "requests are still unfinished", "an end")


def _empty(made: Any, given: str) -> None:
    """Fail unless everybody has given back what he held."""
    memory = made.scheduler.memory
    count = memory.count if isinstance(memory, _Rows) else memory.num_blocks
    expect(
        f"{given}, at the end: rows or blocks that are free", len(memory.free), count
    )
    queues = (len(made.scheduler.running), len(made.scheduler.waiting))
    expect(f"{given}, at the end: running, waiting", queues, (0, 0))
    _whole(made, given)


def _whole(made: Any, given: str) -> None:
    """Fail unless the books of blocks are right."""
    if isinstance(made.scheduler.memory, BlockManager):
        try:
            made.scheduler.memory.check_integrity()
        except AssertionError as error:
            fail(f"{given}: check_integrity()", f"AssertionError: {error}", "no error")


def _same(made: Any, given: str, wanted: dict[str, list]) -> None:
    """Step to the end, and compare all that is told with `wanted`."""
    outputs = _finish(made)
    for name, each in wanted.items():
        got = _told(outputs[name]) if name in outputs else "nothing"
        expect(f"{given}: tokens and reasons of {name}", got, each)
    for name in outputs.keys() - wanted.keys():  # they were dropped on the way
        reasons = {reason for _, reason in _told(outputs[name])}
        expect(f"{given}: {name} ended by itself", reasons <= {None, "abort"}, True)
    _empty(made, given)


# ----- one after another


@_SUITE.property("LLMEngine", hint="which row of the step is the last of a prompt?")
def _one(p: SimpleNamespace) -> None:
    """A request that is alone gets the plain loop's tokens, one for each step."""
    for kind in ("rows", "blocks"):
        for name in ("c", "a"):
            made, given = _made(p, **_KINDS[kind]), f"{kind}, prompt {_PROMPTS[name]}"
            expect(
                "before: has_unfinished_requests", made.has_unfinished_requests(), False
            )
            _add(made, name)
            tokens, reason = _wanted(_PROMPTS[name])[0]
            for count in range(1, 6):
                expect(f"{given}: unfinished", made.has_unfinished_requests(), True)
                (output,) = made.step()
                got = _told(output)
                told = (tokens[:count], reason if count == 5 else None)
                expect(f"{given}, step {count}: tokens and reason", got, [told])
                expect(f"{given}, step {count}: finished", output.finished, count == 5)
            expect(f"{given}: unfinished", made.has_unfinished_requests(), False)
            _empty(made, given)


@_SUITE.property("LLMEngine", hint="whose row is it?")
def _together(p: SimpleNamespace) -> None:
    """Served together, everybody gets the tokens that he would get alone."""
    for kind in ("rows", "blocks"):
        made = _made(p, **_KINDS[kind])
        for name in _PROMPTS:
            _add(made, name)
        given = f"{kind}, prompts of {[len(x) for x in _PROMPTS.values()]} tokens"
        _same(made, given, {name: _wanted(ids) for name, ids in _PROMPTS.items()})


@_SUITE.property("LLMEngine", hint="a step serves all who are there")
def _one_step_for_all(p: SimpleNamespace) -> None:
    """Requests share their steps: together they take no more of them than one."""
    made = _made(p)
    for name in _PROMPTS:
        _add(made, name)
    _finish(made)
    tokens = sum(len(ids) + 4 for ids in _PROMPTS.values())
    told = made.stats()
    given = "4 prompts, 5 tokens each"
    expect(f"{given}: stats()['steps']", told.get("steps"), 5)
    expect(f"{given}: stats()['tokens']", told.get("tokens"), tokens)


@_SUITE.property("LLMEngine", hint="who is where, when another has come or gone?")
def _come_and_go(p: SimpleNamespace) -> None:
    """Requests come and go between any two steps, and nobody else notices."""
    for kind in ("rows", "blocks"):
        made, wanted = _made(p, **_KINDS[kind]), {}
        for count, name in enumerate(_PROMPTS):
            most = (7, 2, 5, 3)[count]
            _add(made, name, max_tokens=most)
            wanted[name] = _wanted(_PROMPTS[name], max_tokens=most)
            early = {output.request_id: _told(output) for output in made.step()}
            for each, told in early.items():
                if told[0][1]:
                    expect(f"{kind}, {each} has ended", told, wanted.pop(each))
        given = f"{kind}, a new request before each step, 7, 2, 5 and 3 tokens"
        _same(made, given, wanted)


@_SUITE.property("LLMEngine", hint="each request has params and a generator of its own")
def _own_params(p: SimpleNamespace) -> None:
    """Each request is sampled by its own params and seed, whatever its neighbours."""
    params = {
        "a": {"temperature": 0},
        "b": {"temperature": 1.5, "seed": 3},
        "c": {"temperature": 1.0, "seed": 4, "top_k": 3, "max_tokens": 7},
        "d": {"temperature": 2.0, "seed": 3, "repetition_penalty": 1.5},
    }
    made = _made(p)
    for name, each in params.items():
        _add(made, name, **each)
    wanted = {name: _wanted(_PROMPTS[name], **each) for name, each in params.items()}
    _same(made, "4 requests with params of their own", wanted)


@_SUITE.property("LLMEngine", hint="which tokens end a text, and for whom?")
def _ends(p: SimpleNamespace) -> None:
    """A text ends at an end token, unless its request ignores them."""
    (free, _) = _wanted(_PROMPTS["a"], max_tokens=8)[0]
    eos = (free[3],)
    made = _made(p, eos=eos)
    _add(made, "a", max_tokens=8)
    _add(made, "d", _PROMPTS["a"], max_tokens=8, ignore_eos=True)
    wanted = {
        "a": _wanted(_PROMPTS["a"], eos, max_tokens=8),
        "d": _wanted(_PROMPTS["a"], eos, max_tokens=8, ignore_eos=True),
    }
    _same(made, f"eos_token_ids {eos}, with and without ignore_eos", wanted)


# ----- several completions


@_SUITE.property("LLMEngine", hint="the prompt once, then each goes on alone")
def _several(p: SimpleNamespace) -> None:
    """All n completions are the plain loop's, and their prompt is computed once."""
    for kind in ("rows", "blocks"):
        params = {"n": 3, "temperature": 1.5, "seed": 5}
        made = _made(p, **_KINDS[kind])
        _add(made, "b", **params)
        given = f"{kind}, a prompt of 5 tokens, n=3"
        _same(made, given, {"b": _wanted(_PROMPTS["b"], **params)})
        got = made.stats().get("tokens")
        expect(f"{given}, 5 tokens each: stats()['tokens']", got, 5 + 3 * 4)


@_SUITE.property("LLMEngine", hint="how many will it be in the next step?")
def _several_wait(p: SimpleNamespace) -> None:
    """With its n completions a request counts as n of max_num_seqs."""
    params = {"n": 3, "temperature": 1.5, "seed": 5}
    for kind in ("rows", "blocks"):
        made = _made(p, **_KINDS[kind])
        for name in ("a", "b"):
            _add(made, name, **params)
        given = f"{kind}, max_num_seqs 4, two requests with n=3"
        first = [output.request_id for output in made.step()]
        expect(f"{given}, the first step: of", first, ["a"])
        wanted = {name: _wanted(_PROMPTS[name], **params) for name in ("a", "b")}
        _same(made, given, wanted)


@_SUITE.property("LLMEngine", hint="best in what? a longer text has a smaller sum")
def _best_of(p: SimpleNamespace) -> None:
    """Of best_of completions the n of the highest cumulative logprob are told."""
    for seed in range(60):
        params = {"temperature": 1.5, "seed": seed, "max_tokens": 6}
        params["stop_token_ids"] = [2, 3, 4, 5, 6, 7]
        all_of_them = _oracle(tuple(_PROMPTS["a"]), (), n=3, **_frozen(params)).outputs
        sums = [each.cumulative_logprob for each in all_of_them]
        counts = [max(1, len(each.token_ids)) for each in all_of_them]
        best = max(range(3), key=lambda i: sums[i])
        if best == max(range(3), key=lambda i: sums[i] / counts[i]):
            continue  # here the mean would choose the same
        made = _made(p)
        _add(made, "a", n=1, best_of=3, **params)
        given = f"n=1, best_of=3, seed {seed}, logprobs {[round(x, 2) for x in sums]} "
        given += f"of {counts} tokens"
        wanted = [(list(all_of_them[best].token_ids), all_of_them[best].finish_reason)]
        _same(made, given, {"a": wanted})
        return
    raise AssertionError("no seed with a sum and a mean that disagree")


def _frozen(params: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples for lists: to be a key."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}


# ----- whatever the memory does


@_SUITE.property("LLMEngine", hint="a step may hold a part of a prompt, or less")
def _any_memory(p: SimpleNamespace) -> None:
    """Chunks, hits, preemption and swapping change no token."""
    for kind in _KINDS:
        made, wanted = _made(p, **_KINDS[kind]), {}
        for name, params in (
            ("a", {"max_tokens": 8}),
            ("b", {"max_tokens": 9, "n": 2, "temperature": 1.2, "seed": 1}),
            ("c", {"max_tokens": 10}),
            ("d", {"max_tokens": 3, "prompt_logprobs": 1}),
        ):
            _add(made, name, **params)
            wanted[name] = _wanted(_PROMPTS[name], **params)
        _same(made, kind, wanted)


@_SUITE.property("LLMEngine", hint="which row predicts which token of the prompt?")
def _prompt_logprobs(p: SimpleNamespace) -> None:
    """Logprobs of a prompt are the plain loop's, in one piece or in chunks."""
    for kind in ("rows", "few blocks", "chunks, few blocks", "2 tokens of each"):
        made = _made(p, **_KINDS[kind])
        _add(made, "c", max_tokens=9)
        _add(made, "d", max_tokens=9)
        _add(made, "b", prompt_logprobs=2, max_tokens=9)
        _add(made, "a")
        outputs = _finish(made)
        wanted = _oracle(tuple(_PROMPTS["b"]), (), prompt_logprobs=2).prompt_logprobs
        for at, (ours, theirs) in enumerate(
            zip(outputs["b"].prompt_logprobs, wanted, strict=False)
        ):
            given = f"{kind}, prompt_logprobs=2, token {at}: ids and logprobs"
            got = ours and [(i, round(x.logprob, 3)) for i, x in ours.items()]
            right = theirs and [(i, round(x.logprob, 3)) for i, x in theirs.items()]
            expect(given, got, right)
        got = len(outputs["b"].prompt_logprobs)
        expect(f"{kind}, prompt_logprobs=2: how many", got, len(wanted))


@_SUITE.property("LLMEngine", hint="whose turn comes first is a number of the request")
def _priorities(p: SimpleNamespace) -> None:
    """A lower priority is served first; equal ones in the order of arrival."""
    made = _made(p, seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        made.add_request(name, _PROMPTS[name], _asked(max_tokens=1), priority=priority)
    order = [output.request_id for _ in range(4) for output in made.step()]
    given = "max_num_seqs 1, priorities 1, 0, 1, -1 of a, b, c, d: order of outputs"
    expect(given, order, ["d", "b", "a", "c"])
    made = _made(p, seqs=1)
    for name, given in (("a", {"priority": 1}), ("b", {}), ("c", {"priority": 0})):
        made.add_request(name, _PROMPTS[name], _asked(max_tokens=1), **given)
    order = [output.request_id for _ in range(3) for output in made.step()]
    given = "max_num_seqs 1, priority 1 of a, none given of b, 0 of c: order of outputs"
    expect(given, order, ["b", "c", "a"])
    made = _made(p, seqs=1)
    for name in ("a", "b", "c"):
        _add(made, name, max_tokens=1)
    order = [output.request_id for _ in range(2) for output in made.step()]
    _add(made, "d", max_tokens=1)
    order += [output.request_id for _ in range(2) for output in made.step()]
    given = "max_num_seqs 1, d comes when a and b have ended: order of outputs"
    expect(given, order, ["a", "b", "c", "d"])


@_SUITE.property("LLMEngine", hint="params may be None")
def _defaults(p: SimpleNamespace) -> None:
    """A request without params has those of SamplingParams()."""
    made = _made(p)
    made.add_request("a", _PROMPTS["a"])
    (output,) = _finish(made)["a"].outputs
    given = "a prompt of 3 and no params: tokens, reason"
    got = (len(output.token_ids), output.finish_reason)
    expect(given, got, (SamplingParams().max_tokens, "length"))


@_SUITE.property("LLMEngine", hint="which ends first? the last token isn't stored")
def _no_limit(p: SimpleNamespace) -> None:
    """Without max_tokens a request goes on as far as model and memory allow."""
    for what, options, prompt, most in (
        ("24 positions, 48 blocks of 2", {}, _PROMPTS["a"], 21),
        ("24 positions, 6 blocks of 2", {"blocks": 6}, _PROMPTS["a"], 10),
        ("24 positions, 6 blocks of 2", {"blocks": 6}, [5] * 12, 1),
        ("24 positions, 6 tokens a step", {"budget": 6}, [5] * 4, 3),
    ):
        made = _made(p, **options)
        _add(made, "a", prompt, max_tokens=None)
        tokens, reason = _wanted(prompt, max_tokens=None)[0]
        given = f"{what}, a prompt of {len(prompt)}, max_tokens None"
        _same(made, given, {"a": [(tokens[:most], reason)]})


@_SUITE.property("LLMEngine", hint="the prompt's dict may say more than its tokens")
def _salted(p: SimpleNamespace) -> None:
    """Only requests with the same cache_salt share what is cached."""
    made, shares = _made(p, caching=True), []
    for number, salt in enumerate(("x", "y", "x", None)):
        prompt = {"prompt_token_ids": _PROMPTS["b"]}
        if salt:
            prompt["cache_salt"] = salt
        made.add_request(f"r{number}", prompt, _asked(max_tokens=1))
        before = made.stats().get("tokens")
        _finish(made)
        shares.append(made.stats().get("tokens") - before)
    given = "prefix caching, 5 tokens, cache_salt x, y, x, none: tokens computed"
    expect(given, shares, [5, 5, 1, 5])


# ----- refused


@_SUITE.property("LLMEngine", hint="what must be true before anything is queued?")
def _refused(p: SimpleNamespace) -> None:
    """What can't be served is refused with its numbers, and changes nothing."""
    for given, options, prompt, params, words in (
        ("6 blocks of 2, 10 + 4 tokens", {"blocks": 6}, [5] * 10, 4, ("12", "13")),
        ("2 blocks of 2, a prompt of 5", {"blocks": 2}, [5] * 5, 1, ("4", "5")),
        ("24 positions, a prompt of 30", {}, [5] * 30, 1, ("24", "30")),
        ("6 tokens a step, a prompt of 7", {"budget": 6}, [5] * 7, 1, ("6", "7")),
        # Preempted with 7 tokens, it would wait for a step that can hold them.
        ("6 tokens a step, 4 + 4 tokens", {"budget": 6}, [5] * 4, 4, ("6", "7")),
    ):
        made = _made(p, **options)
        expect_error(
            f"{given}: add_request",
            lambda m=made, x=prompt, n=params: _add(m, "x", x, max_tokens=n),
            ValueError,
            *words,
        )
        expect(f"{given}: unfinished", made.has_unfinished_requests(), False)
    made = _made(p)
    expect_error(
        "max_num_seqs 4, best_of 5: add_request",
        lambda: _add(made, "a", n=5, temperature=1),
        ValueError,
        "5",
        "4",
    )
    expect_error(
        "max_num_seqs 4, n 1, best_of 5: add_request",
        lambda: _add(made, "a", n=1, best_of=5, temperature=1),
        ValueError,
        "5",
        "4",
    )
    for name, priority, words in (
        (3, 0, ("request_id", "3")),
        ("", 0, ("request_id", "''")),
        ("a", True, ("priority", "True")),
        ("a", 0.5, ("priority", "0.5")),
    ):
        expect_error(
            f"add_request({name!r}, priority={priority!r})",
            lambda x=name, y=priority: made.add_request(x, [5], _asked(), y),
            TypeError,
            *words,
        )
    _add(made, "a")
    expect_error(
        "a runs already: add_request('a')", lambda: _add(made, "a"), ValueError, "a"
    )
    _same(made, "after all that was refused", {"a": _wanted(_PROMPTS["a"])})
    _add(made, "a")
    _same(made, "a has ended, and comes again", {"a": _wanted(_PROMPTS["a"])})
    made = _made(p, blocks=6)
    _add(made, "b", [5] * 10, max_tokens=3)  # the last token is never stored
    _finish(made)
    _empty(made, "6 blocks of 2, 10 + 3 tokens")


@_SUITE.property("LLMEngine", hint="the caller goes on using what is his")
def _own_copy(p: SimpleNamespace) -> None:
    """What the caller does with his params later changes nothing here."""
    made, params = _made(p), _asked()
    made.add_request("a", _PROMPTS["a"], params)
    params.max_tokens = 1
    params.temperature = 5.0
    given = "max_tokens and temperature are changed after add_request"
    _same(made, given, {"a": _wanted(_PROMPTS["a"])})


@_SUITE.property("LLMEngine", hint="the global generator belongs to the user")
def _unseeded(p: SimpleNamespace) -> None:
    """Without seeds a new engine repeats itself, and leaves the global generator."""
    told = []
    for seed in (1, 1, 2):
        state = torch.get_rng_state()
        made = _made(p, seed=seed)
        for name in ("a", "b"):
            _add(made, name, temperature=3.0, max_tokens=12)
        outputs = _finish(made)
        told.append([_told(outputs[name]) for name in ("a", "b")])
        same = torch.equal(torch.get_rng_state(), state)
        expect(f"temperature 3, seed {seed}: global generator untouched", same, True)
    expect("two engines with seed 1: the same tokens", told[0] == told[1], True)
    expect("engines with seeds 1 and 2: the same tokens", told[0] == told[2], False)


# ----- aborted


def _there(made: Any) -> int:
    """How many sequences run or wait."""
    told = made.stats()
    return told["running"] + told["waiting"]


@_SUITE.property("LLMEngine", hint="it waits, or it runs, or nobody knows it")
def _aborted(p: SimpleNamespace) -> None:
    """Who is aborted is gone and gives all back; the others go on as they were."""
    for kind in ("rows", "blocks", "few blocks, swapping"):
        for gone in ("a", "b", "d"):
            for steps in (0, 1, 3):
                made = _made(p, **_KINDS[kind])
                names = ("a", "b", "c", "d")
                for name in names:
                    n = 2 if name == "b" else 1
                    _add(made, name, max_tokens=6, n=n, seed=1)
                for _ in range(steps):
                    made.step()
                given = f"{kind}, {gone} is aborted after {steps} steps"
                before = _there(made)
                made.abort_request(gone)
                count = 2 if gone == "b" and steps else 1
                expect(f"{given}: sequences gone", before - _there(made), count)
                made.abort_request(["nobody", gone])
                wanted = {
                    name: _wanted(
                        _PROMPTS[name], max_tokens=6, n=2 if name == "b" else 1, seed=1
                    )
                    for name in names
                    if name != gone
                }
                _same(made, given, wanted)
    made = _made(p)
    for name, prompt in (("a", None), ("b", None), ("ab", _PROMPTS["c"])):
        _add(made, name, prompt)
    made.abort_request("ab")  # one id, and no list of letters
    wanted = {name: _wanted(_PROMPTS[name]) for name in ("a", "b")}
    _same(made, "the request 'ab' is aborted, beside 'a' and 'b'", wanted)


@_SUITE.property("LLMEngine", hint="a step counts on what it has begun with")
def _aborted_in_a_step(p: SimpleNamespace) -> None:
    """An abort during a step waits for its end, and harms nobody else."""
    made = _made(p)
    for name in ("a", "b"):
        _add(made, name)
    made.step()
    made.runner.before = lambda step: made.abort_request("a", "enough")
    made.step()
    given = "a is aborted while a step runs"
    told = [output.request_id for output in made.step()]
    expect(f"{given}, the next step: outputs of", told, ["b"])
    _same(made, given, {"b": _wanted(_PROMPTS["b"])})


@_SUITE.property("LLMEngine", hint="who else could be in the middle of a step?")
def _one_at_a_time(p: SimpleNamespace) -> None:
    """A step within a step is a RuntimeError, and the outer one goes on."""
    made = _made(p)
    _add(made, "a")
    seen = []

    def again(step: Step) -> None:
        try:
            made.step()
        except RuntimeError as error:
            seen.append(type(error).__name__)

    made.runner.before = again
    made.step()
    expect("step() while a step runs", seen, ["RuntimeError"])
    _same(made, "after a step within a step", {"a": _wanted(_PROMPTS["a"])})


# ----- what goes wrong


def _broken(error: BaseException) -> Any:
    def before(step: Step) -> None:
        raise error

    return before


@_SUITE.property("LLMEngine", hint="who was in it, and who waited?")
def _failing_step(p: SimpleNamespace) -> None:
    """A step that fails is raised and drops its requests; others lose nothing."""
    for kind in ("rows", "blocks"):
        # Out of memory, which isn't raised, is a RuntimeError too.
        for steps, error in ((0, OSError), (2, RuntimeError)):
            made = _made(p, seqs=2, **_KINDS[kind])
            for name in _PROMPTS:
                _add(made, name)
            for _ in range(steps):
                made.step()
            made.runner.before = _broken(error("broken"))
            given = f"{kind}, max_num_seqs 2, step {steps + 1} of a and b fails"
            expect_error(f"{given}: step()", made.step, error, "broken")
            wanted = {name: _wanted(_PROMPTS[name]) for name in ("c", "d")}
            _same(made, given, wanted)


@_SUITE.property("LLMEngine", hint="what did the step promise to others?")
def _failed_offers(p: SimpleNamespace) -> None:
    """What a failed step would have computed is found by nobody."""
    made = _made(p, caching=True)
    _add(made, "b")
    made.runner.before = _broken(OSError("broken"))
    expect_error("prefix caching, a step fails: step()", made.step, OSError)
    _add(made, "d", _PROMPTS["b"])
    given = "prefix caching, the first step of a prompt fails, the same again"
    _same(made, given, {"d": _wanted(_PROMPTS["b"])})


def _preempting_fails(p: SimpleNamespace, swap: int) -> tuple[Any, str]:
    """An engine whose step of b has failed, which took the memory of d."""
    made = _made(p, blocks=8, swap=swap)
    for name in ("b", "d"):
        _add(made, name, max_tokens=8)
    given = f"8 blocks of 2, {swap} of CPU memory, the step that preempts d fails"
    for _ in range(8):
        tell = made.stats().get("preemptions")
        made.runner.before = lambda step: _fail_if_preempting(step)
        try:
            made.step()
        except OSError:
            return made, given
    fail(given, f"{tell} preemptions", "one")


@_SUITE.property("LLMEngine", hint="what was on its way to CPU memory?")
def _failed_swap(p: SimpleNamespace) -> None:
    """Who was being swapped out by a step that fails is not served from there."""
    made, given = _preempting_fails(p, 8)
    _add(made, "a")
    _same(made, given, {"a": _wanted(_PROMPTS["a"])})


@_SUITE.property("LLMEngine", hint="nothing of it was in that step")
def _failed_preempting(p: SimpleNamespace) -> None:
    """Who waits again since a step that fails loses nothing by it."""
    made, given = _preempting_fails(p, 0)
    _same(made, given, {"d": _wanted(_PROMPTS["d"], max_tokens=8)})


def _fail_if_preempting(step: Step) -> None:
    if step.preempted:
        raise OSError("broken")


@_SUITE.property("LLMEngine", hint="memory comes back when others are gone")
def _out_of_memory(p: SimpleNamespace) -> None:
    """Without memory for a step its requests end as aborted, and nothing is raised."""
    made = _made(p, seqs=1)
    _add(made, "a")
    _add(made, "b")
    made.runner.before = _broken(torch.OutOfMemoryError("no memory"))
    outputs = made.step()
    given = "max_num_seqs 1, a step runs out of memory"
    got = [(each.request_id, each.finished, _told(each)) for each in outputs]
    expect(f"{given}: outputs", got, [("a", True, [([], "abort")])])
    reason = str(outputs[0].outputs[0].stop_reason)
    if "no memory" not in reason:
        fail(f"{given}, 'no memory': stop_reason", reason, "the cause")
    _same(made, given, {"b": _wanted(_PROMPTS["b"])})


@_SUITE.property("LLMEngine", hint="find the row, and whose it is")
def _bad_row(p: SimpleNamespace) -> None:
    """A row that can't be sampled ends its own request, and no other."""
    # Seeded neighbours have drawn nothing in the step that fails.
    drawn = {"temperature": 1.5, "seed": 3}
    for kind, params in (("rows", {}), ("blocks", {}), ("blocks", drawn)):
        wanted = {name: _wanted(_PROMPTS[name], **params) for name in ("a", "b", "c")}
        for bad in wanted:
            made = _made(p, **_KINDS[kind])
            for name in wanted:
                _add(made, name, **params)
            made.step()
            made.runner.spoilt = bad
            outputs = {output.request_id: output for output in made.step()}
            given = f"{kind}, three requests {params}, the numbers of {bad} are NaN"
            told = (list(wanted[bad][0][0][:1]), "abort")
            got = _told(outputs[bad]) if bad in outputs else "nothing"
            expect(f"{given}: {bad}", got, [told])
            _same(made, given, {name: wanted[name] for name in wanted if name != bad})
    made = _made(p)
    for name, count in (("a", 2), ("b", 1)):
        _add(made, name, n=count, seed=3)
    made.step()
    made.runner.spoilt = "a-0"
    outputs = {output.request_id: output for output in made.step()}
    given = "a has two completions, the numbers of its first are NaN"
    reasons = [reason for _, reason in _told(outputs["a"])] if "a" in outputs else []
    expect(f"{given}: finish_reason of both", reasons, ["abort", "abort"])
    _same(made, given, {"b": _wanted(_PROMPTS["b"], seed=3)})


@_SUITE.property("LLMEngine", hint="what may still be found of it?")
def _bad_blocks(p: SimpleNamespace) -> None:
    """Blocks of a request that could not be sampled are found by nobody."""
    made = _made(p, caching=True)
    _add(made, "b")

    def spoil(step: Step) -> None:
        made.runner.cache.pool.fill_(math.nan)
        made.runner.spoilt = "b"

    made.step()
    made.runner.before = spoil
    made.step()
    made.runner.spoilt = ""
    _add(made, "d", _PROMPTS["b"])
    given = "prefix caching, the numbers of a prompt are NaN, the same again"
    _same(made, given, {"d": _wanted(_PROMPTS["b"])})


def _is_cut(call: Any) -> bool:
    """Whether Ctrl-C comes out of a call, and no other error."""
    try:
        call()
    except (KeyboardInterrupt, OSError) as error:
        return isinstance(error, KeyboardInterrupt)
    return False


def _cut(owner: Any, *names: str, left: list[int] | None = None) -> None:
    """Let Ctrl-C come once instead of a call of these: when `left` is down to 0."""
    left = [1] if left is None else left

    def cut(name: str, *given: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return getattr(type(owner), name)(owner, *given)

    for name in names:
        setattr(owner, name, partial(cut, name))


def _cut_books(made: Any, number: int) -> list[int]:
    """The same in the number-th call that takes somebody out; how many are left."""
    left = [number]
    _cut(made.scheduler, "remove", "clear", left=left)
    _cut(made.scheduler.memory, "release", "withdraw", "clear", left=left)
    return left


def _two_run(p: SimpleNamespace) -> Any:
    """An engine where a, which ends first, and both of b go before c."""
    made = _made(p, seqs=3, caching=True)
    _add(made, "a", max_tokens=3)
    _add(made, "b", n=2, seed=1)
    _add(made, "c")
    return made


@_SUITE.property("LLMEngine", hint="what Ctrl-C cuts short must not stay half done")
def _interrupted(p: SimpleNamespace) -> None:
    """Ctrl-C in a step is raised and drops its requests; the next are served."""
    made = _made(p, seqs=1)
    for name in ("a", "b"):
        _add(made, name)
    made.step()
    made.runner.before = _broken(KeyboardInterrupt())
    given = "max_num_seqs 1, Ctrl-C while the model computes a"
    if not _is_cut(made.step):
        fail(given, "no error", "KeyboardInterrupt")
    _add(made, "d")
    wanted = {name: _wanted(_PROMPTS[name]) for name in ("b", "d")}
    _same(made, given, wanted)


@_SUITE.property("LLMEngine", hint="half a plan: who knows what the memory holds?")
def _cut_short(p: SimpleNamespace) -> None:
    """Ctrl-C while a step is planned or counted is raised, and all begin anew."""
    for part, steps in (("schedule", 2), ("advance", 2), ("fork", 1), ("remove", 3)):
        made = _two_run(p)
        for _ in range(steps - 1):
            made.step()
        _cut(made.scheduler, part)
        given = f"two run, one waits, Ctrl-C in the scheduler's {part}(), step {steps}"
        if not _is_cut(made.step):
            fail(given, "no error", "KeyboardInterrupt")
        expect(f"{given}: unfinished", made.has_unfinished_requests(), False)
        _empty(made, given)
        _add(made, "d")
        _same(made, f"{given}, another comes", {"d": _wanted(_PROMPTS["d"])})


def _begins_anew(
    p: SimpleNamespace, what: str, error: BaseException | None, number: int
) -> bool:
    """Fail unless what follows a torn step begins anew; whether it could be torn.

    It is torn by `error` (None: Ctrl-C in `advance`), and by Ctrl-C in the number-th
    call that takes somebody out. False: there are fewer of them.
    """
    calls = {
        "add_request": lambda made: _add(made, "d"),
        "step": lambda made: made.step(),
        "abort_request": lambda made: made.abort_request("nobody"),
        "has_unfinished_requests": lambda made: made.has_unfinished_requests(),
    }
    for name in calls if number == 1 else ("add_request",):
        made = _two_run(p)
        made.step()
        if error is None:
            _cut(made.scheduler, "advance")
        else:
            made.runner.before = _broken(error)
        left = _cut_books(made, number)
        is_cut = _is_cut(made.step)
        if left[0] > 0:
            return False
        given = (
            f"two run, one waits, {what}, then Ctrl-C in call {number} of remove, "
            f"release, withdraw and clear, then {name}()"
        )
        if not is_cut:
            fail(given, "no error", "KeyboardInterrupt")
        calls[name](made)
        if name != "add_request":
            expect(f"{given}: unfinished", made.has_unfinished_requests(), False)
            _empty(made, given)
            _add(made, "d")
        _same(made, given, {"d": _wanted(_PROMPTS["d"])})
    return True


@_SUITE.property("LLMEngine", hint="who notes that it has begun, and who looks?")
def _cut_short_twice(p: SimpleNamespace) -> None:
    """If Ctrl-C cuts short what follows an error too, the next call begins anew."""
    for what, error in (
        ("the model fails", OSError("broken")),
        ("Ctrl-C while the model computes", KeyboardInterrupt()),
        ("Ctrl-C in the scheduler's advance()", None),
    ):
        number = 1
        while number < 20 and _begins_anew(p, what, error, number):
            number += 1


def _half(memory: Any) -> None:
    """Let Ctrl-C come once in `release`, when one block's count is down already."""

    def half(seq: Any) -> None:
        del memory.release
        memory.refs[seq.block_ids[-1]] -= 1
        raise KeyboardInterrupt

    memory.release = half


@_SUITE.property("LLMEngine", hint="a release that is done again counts a block twice")
def _abort_cut_short(p: SimpleNamespace) -> None:
    """If Ctrl-C cuts an abort short, the next call makes up for it, or clears all."""
    for number in range(20):
        made = _two_run(p)
        made.step()
        if number:
            left = _cut_books(made, number)
            given = f"b is aborted, Ctrl-C in call {number} of remove and release"
        else:
            _half(made.scheduler.memory)
            given = "b is aborted, Ctrl-C when a block of b is counted down"
        is_cut = _is_cut(lambda made=made: made.abort_request("b"))
        if number and left[0] > 0:
            return
        if not is_cut:
            fail(given, "no error", "KeyboardInterrupt")
        made.has_unfinished_requests()
        _whole(made, f"{given}, then has_unfinished_requests()")
        _add(made, "b")
        given += ", another b comes"
        outputs = _finish(made)
        got = {name: _told(outputs[name]) for name in outputs}
        expect(f"{given}: tokens of b", got.get("b"), _wanted(_PROMPTS["b"]))
        others = {"a": {"max_tokens": 3}, "c": {}}
        for name, params in others.items():  # all that was asked for, or nothing
            wanted = _wanted(_PROMPTS[name], **params)
            expect(f"{given}: tokens of {name}", got.get(name, wanted), wanted)
        _empty(made, given)


@_SUITE.property("LLMEngine", hint="four counters, two queues, and the memory's own")
def _stats(p: SimpleNamespace) -> None:
    """stats() counts steps, tokens, preemptions and queues, beside the memory's own."""
    made = _made(p, seqs=2)
    names = ("steps", "tokens", "preemptions", "running", "waiting")
    for what in ("a new engine", "a new engine, step()"):
        told = [made.stats().get(name) for name in names]
        expect(f"{what}: {names}", told, [0, 0, 0, 0, 0])
        expect("a new engine: what step() returns", list(made.step()), [])
    for name in ("a", "b", "c"):
        _add(made, name)
    made.step()
    told = [made.stats().get(name) for name in names]
    expect(f"max_num_seqs 2, 3 requests, a step: {names}", told, [1, 8, 0, 2, 1])
    expect("... blocks_held", made.stats().get("blocks_held"), 2 + 3)
    made = _made(p, blocks=6)
    _add(made, "a", [5, 9, 3, 11, 4, 6])
    _add(made, "b", [4, 4], n=3, seed=1)
    made.step()
    made.step()  # both sequences that run out of blocks lose theirs
    given = "6 blocks of 2, prompts of 6 and of 2 with n=3, 2 steps: preemptions"
    expect(given, made.stats().get("preemptions"), 2)
