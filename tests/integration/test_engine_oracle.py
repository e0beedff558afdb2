"""Whatever the engine does to be fast, its tokens are those of one plain loop.

Blocks hold 4 tokens, the pool begins full of NaN and is too small for everybody, and
the books are checked after every step. A random model with a small vocabulary makes
every mistake in position, mask or block visible in the very next token.
"""

import functools
import math

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from folovllm_lite import LLM, LLMEngine, SamplingParams, fast, flash
from folovllm_lite.generation import generate
from folovllm_lite.qwen3 import Qwen3

BLOCK = 4
BLOCKS = 14  # 56 tokens: two or three requests, not more
LONGEST = 40
_SHARED = [11, 12, 13, 14, 15, 16, 17, 18, 19]  # what some prompts begin with


def engine_of(checkpoint, **options) -> LLMEngine:
    """A small engine whose memory holds nothing but NaN."""
    llm = LLM(
        checkpoint,
        device="cpu",
        block_size=BLOCK,
        num_gpu_blocks_override=BLOCKS,
        max_model_len=LONGEST,
        **options,
    )
    forget(llm.llm_engine)
    return llm.llm_engine


def forget(engine: LLMEngine) -> None:
    """Let the engine begin anew: what an earlier run left would be right too often."""
    engine.clear("a new example begins")
    engine.runner.cache.pool.fill_(math.nan)
    engine.runner.cache.swap.fill_(math.nan)


@functools.cache
def plain_model(path: str) -> Qwen3:
    """The checkpoint as it is loaded: `LLM` has its layers replaced by faster ones."""
    return Qwen3.from_pretrained(path, torch.float32, "cpu")


def expected(engine, prompt, params):
    """What the plain loop says; its results are kept, many requests repeat."""
    key = (tuple(prompt), repr(params))
    if key not in _known:
        generator = torch.Generator().manual_seed(0)
        output = generate(
            plain_model(engine.tokenizer.name_or_path),
            engine.tokenizer,
            prompt,
            params,
            eos_token_ids=engine.eos_token_ids,
            generator=generator,
        )
        _known[key] = [
            (each.token_ids, each.text, each.finish_reason) for each in output.outputs
        ]
    return _known[key]


_known: dict = {}

prompts = st.one_of(
    st.lists(st.integers(2, 300), min_size=1, max_size=18),
    st.builds(
        lambda count, tail: _SHARED[:count] + tail,
        st.integers(1, 9),
        st.lists(st.integers(2, 5), max_size=6),
    ),
)


@st.composite
def params(draw):
    greedy = draw(st.booleans())
    n = draw(st.integers(1, 4)) if not greedy else 1
    return SamplingParams(
        n=n,
        best_of=draw(st.integers(n, 4)) if not greedy else None,
        temperature=0 if greedy else draw(st.sampled_from([0.7, 1.5])),
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.integers(1, 16)),
        top_k=draw(st.sampled_from([-1, 5])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
        min_tokens=draw(st.integers(0, 1)),
        stop=draw(st.sampled_from([[], ["e"]])),
    )


class Machine(RuleBasedStateMachine):
    """Requests come, are aborted, and steps happen, in any order."""

    checkpoint: str
    engines: dict = {}

    @initialize(
        budget=st.sampled_from([3, 5, 8, 64]),
        seqs=st.sampled_from([4, 6, 64]),
        caching=st.booleans(),
        mode=st.sampled_from(["recompute", "swap"]),
        chunked=st.booleans(),
        tokens=st.sampled_from([1, 2, 3, 512]),
    )
    def build(self, budget, seqs, caching, mode, chunked, tokens):
        budget = budget if chunked else LONGEST
        key = (budget, seqs, caching, mode, chunked)
        if key not in self.engines:  # loading is most of the time
            self.engines[key] = engine_of(
                self.checkpoint,
                max_num_batched_tokens=budget,
                max_num_seqs=seqs,
                enable_prefix_caching=caching,
                enable_chunked_prefill=chunked,
                preemption_mode=mode,
                swap_space=2e-4,
            )
        self.engine = self.engines[key]
        self.engine.runner.pass_tokens = tokens  # many passes, as only long steps have
        forget(self.engine)
        self.asked: dict = {}
        self.count = 0

    @rule(prompt=prompts, params=params(), priority=st.integers(0, 2))
    def add(self, prompt, params, priority):
        self.count += 1
        name = f"r{self.count}"
        self.engine.add_request(
            name, {"prompt_token_ids": prompt}, params, priority=priority
        )
        self.asked[name] = (prompt, params)

    @rule(count=st.integers(1, 9), params=params(), priority=st.integers(0, 2))
    def add_twins(self, count, params, priority):
        """The second finds in the first's blocks what is computed in this very step."""
        for _ in range(2):
            self.add(_SHARED[:count], params, priority)

    @rule(steps=st.integers(1, 12))
    def step(self, steps):
        for _ in range(steps):
            self.one_step()

    @rule(data=st.data())
    def abort(self, data):
        if self.asked:
            name = data.draw(st.sampled_from(sorted(self.asked)))
            self.engine.abort_request(name)
            del self.asked[name]

    def one_step(self):
        for output in self.engine.step():
            if output.finished:
                prompt, params = self.asked.pop(output.request_id)
                got = [
                    (each.token_ids, each.text, each.finish_reason)
                    for each in output.outputs
                ]
                assert got == expected(self.engine, prompt, params)
        self.engine.scheduler.memory.check_integrity()

    @invariant()
    def books_agree(self):
        if hasattr(self, "engine"):
            assert set(self.engine._states) == set(self.asked)

    def teardown(self):
        """Everybody finishes, within a bound, and nothing is left behind."""
        if not hasattr(self, "engine"):
            return
        # Each step computes at least one token of the first in order, who can't be
        # preempted; nobody needs more than LONGEST tokens twice over.
        bound = sum(2 * LONGEST * each.best_of for _, each in self.asked.values())
        for _ in range(bound):
            if not self.engine.has_unfinished_requests():
                break
            self.one_step()
        assert not self.engine.has_unfinished_requests(), f"no end after {bound} steps"
        assert len(self.engine.scheduler.memory.free) == BLOCKS
        assert not self.engine.scheduler.running and not self.engine.scheduler.waiting


def test_every_schedule_gives_the_tokens_of_the_plain_loop(checkpoint):
    run(checkpoint, 1000)


@pytest.mark.parametrize("few", [0, 8], ids=["oneDNN", "compiled"])
def test_so_does_every_schedule_that_threads_share(checkpoint, few, monkeypatch):
    """Small steps stay on one thread: here every one is shared."""
    monkeypatch.setattr(fast, "_FEW", few)
    for name in ("_ROWS_OF_STEP", "_ROWS_OF_LAYER"):
        monkeypatch.setattr(fast, name, 1)
    monkeypatch.setattr(flash, "_WORTH_SHARING", 0)
    monkeypatch.setattr(flash, "TEAM", flash.Team(2))
    run(checkpoint, 200)


def run(checkpoint, examples):
    Machine.checkpoint, Machine.engines = checkpoint, {}
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
