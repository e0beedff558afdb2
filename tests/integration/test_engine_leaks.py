"""Nothing of a request outlives it: no block, no entry, no object.

A server runs for months. What each request leaves behind, be it one entry of a
dictionary, ends in a crash that no test of a single request shows.
"""

import gc
import random
from collections import deque

import psutil
import pytest
import torch

from folovllm_lite import LLM, SamplingParams
from folovllm_lite.attention import PlainContext
from folovllm_lite.engine import LLMEngine
from folovllm_lite.fast import padded
from folovllm_lite.generation import RequestState
from folovllm_lite.request import Request, Sequence
from tests.helpers import VOCAB_SIZE
from tests.integration.test_engine_oracle import BLOCKS, engine_of, expected


def sizes(engine: LLMEngine) -> dict[str, int]:
    """Length of every container that the engine and its parts hold."""
    parts = {
        "engine": engine,
        "scheduler": engine.scheduler,
        "memory": engine.scheduler.memory,
        "free": engine.scheduler.memory.free,
        "runner": engine.runner,
        "cache": engine.runner.cache,
        "processor": engine.processor,
        "texts": engine._texts,
    }
    return {
        f"{name}.{field}": len(value)
        for name, part in parts.items()
        for field, value in vars(part).items()
        if isinstance(value, dict | list | set | deque)
    }


def alive() -> dict[str, int]:
    """How many objects of a request there are, anywhere."""
    gc.collect()
    kinds = [type(each) for each in gc.get_objects()]
    return {
        kind.__name__: kinds.count(kind) for kind in (Request, Sequence, RequestState)
    }


def serve(engine: LLMEngine, count: int, seed: int, aborts: bool = False) -> None:
    """Serve requests that come while others run; abort some of them anywhere."""
    rng = random.Random(seed)
    there: list[str] = []
    for i in range(count):
        greedy = rng.random() < 0.7
        params = SamplingParams(
            n=1 if greedy else rng.randint(1, 3),
            temperature=0 if greedy else 1.0,
            seed=None if greedy else i,
            max_tokens=rng.randint(1, 9),
            logprobs=rng.choice([None, 1]),
            ignore_eos=True,
        )
        prompt = [rng.randint(2, 300) for _ in range(rng.randint(1, 12))]
        prompt = rng.choice([prompt, [11, 12, 13, 14, 15, *prompt]])
        engine.add_request(f"r{seed}-{i}", {"prompt_token_ids": prompt}, params)
        there.append(f"r{seed}-{i}")
        for _ in range(rng.randint(0, 2)):
            for output in engine.step():
                if output.finished:
                    there.remove(output.request_id)
        if aborts and there and rng.random() < 0.5:
            engine.abort_request(there.pop(rng.randrange(len(there))))
    if aborts:
        for request_id in there:
            engine.abort_request(request_id)
    while engine.has_unfinished_requests():
        engine.step()


@pytest.mark.parametrize("aborts", [False, True], ids=["finished", "aborted"])
@pytest.mark.parametrize(
    "options",
    [
        {"preemption_mode": "recompute"},
        {"enable_prefix_caching": True, "preemption_mode": "swap", "swap_space": 2e-3,
         "enable_chunked_prefill": True, "max_num_batched_tokens": 8},
    ],
    ids=["recompute", "everything_on"],
)  # fmt: skip
def test_nothing_outlives_its_request(checkpoint, options, aborts):
    engine = engine_of(checkpoint, **options)
    serve(engine, 100, seed=0, aborts=aborts)
    first, before = sizes(engine), alive()
    serve(engine, 200, seed=1, aborts=aborts)
    memory = engine.scheduler.memory
    assert engine.stats()["preemptions"] > 0, "nothing was short: the test is too easy"
    assert len(memory.free) == BLOCKS and not engine._states
    assert len(memory.free_swap) == memory.num_swap_blocks
    memory.check_integrity()
    after = sizes(engine)
    bounded = {f"free.{name}": BLOCKS for name in ("numbers", "kept", "names", "found")}
    bounded |= {"texts._bytes": VOCAB_SIZE}
    assert all(after.get(name, 0) <= limit for name, limit in bounded.items())
    grown = {
        name: (first.get(name), size)
        for name, size in after.items()
        if size != first.get(name) and name not in bounded
    }
    assert not grown
    # Other tests of this process may hold some of their own; it is no more than before.
    assert alive() == before


def test_a_step_that_fails_takes_its_swapped_out_with_it(checkpoint):
    """Memory ran out while blocks were moved to the CPU. The victim wasn't in the
    step's work, so it went on later, with whatever stood in CPU memory."""
    engine = engine_of(checkpoint, preemption_mode="swap", swap_space=2e-3)
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompts = {f"r{i}": [5 + i] * 14 for i in range(3)}
    for name, prompt in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt}, params)
    move = engine.runner.cache.move

    def short(moves):
        if any(kind == "out" for kind, _, _ in moves):
            engine.runner.cache.move = move
            raise torch.OutOfMemoryError("no room to gather the blocks")
        move(moves)

    engine.runner.cache.move = short
    ends = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            ends[output.request_id] = output.outputs[0]
    assert engine.runner.cache.move is move, "nothing was swapped"
    assert set(ends) == set(prompts)
    for name, end in ends.items():
        if end.finish_reason == "abort":
            assert end.stop_reason == "no room to gather the blocks"
        else:
            wanted = expected(engine, prompts[name], params)[0][0]
            assert end.token_ids == wanted, name
    memory = engine.scheduler.memory
    assert len(memory.free) == BLOCKS
    assert len(memory.free_swap) == memory.num_swap_blocks


def test_ten_thousand_requests_leave_memory_as_it_was():
    """The embedded model with everything on, 10,000 requests in waves of 500."""
    engine = LLM(
        device="cpu",
        num_gpu_blocks_override=400,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        max_num_batched_tokens=1024,
    ).llm_engine
    # oneDNN keeps a kernel for each number of rows: let it have all it will ever need.
    with torch.inference_mode():
        for T in {padded(T) for T in range(1, 513)}:
            context = PlainContext(torch.arange(T))
            engine.model.logits(engine.model(context.positions, context))
    process, rng, seen = psutil.Process(), random.Random(0), []
    system = [rng.randrange(10, 1500) for _ in range(20)]
    for wave in range(20):
        for i in range(500):
            prompt = system * rng.randint(0, 1)
            prompt = prompt + [
                rng.randrange(10, 1500) for _ in range(rng.randint(1, 9))
            ]
            params = SamplingParams(max_tokens=rng.randint(1, 4), ignore_eos=True)
            engine.add_request(f"{wave}-{i}", prompt, params)
        while engine.has_unfinished_requests():
            engine.compute()
        gc.collect()
        seen.append((process.memory_info().rss, len(gc.get_objects())))
    assert not engine.scheduler.memory.holders
    engine.scheduler.memory.check_integrity()
    # One object for each request would be 8,500 more.
    memory, objects = zip(*seen[2:], strict=True)
    assert max(objects) - objects[0] < 1000, objects
    # The allocator takes 15,000 requests to settle, 10 MB above its size after 1,500. A
    # request with its outputs is 7 KB: keeping them would be 60 MB.
    assert max(memory) - memory[0] < 20_000_000, [each // 1000 for each in memory]
