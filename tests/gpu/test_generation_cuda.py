"""Generation and the batched engine on a GPU, held against float32 on the CPU.

What a test does stands in a function of the device, so that tests/unit/test_gpu_bodies
can run the same on a machine without a GPU: it proves that the tests can be executed.
Without CUDA, tests/conftest.py skips this file and says so.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator

import pytest
import torch

from folovllm_lite import LLM, LLMEngine, SamplingParams, engine, generation
from folovllm_lite.attention import PlainContext
from folovllm_lite.generation import Generation, generate
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.model_loader import EMBEDDED_MODEL
from folovllm_lite.processor import TokenTexts
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.request import Request
from folovllm_lite.sampler import SamplingRow, gather_logprobs, sample
from tests.notebooks.course import NOTEBOOKS, read

DEVICE = "cuda"
NOTEBOOK = NOTEBOOKS / "09_generation_loop.ipynb"
PROMPTS = ("Once upon a time", "从前有一个小女孩", "What is 2 + 3?", "Lily")
STEPS = 12

# How far logits may be from those of float32 on the CPU, as a share of the largest
# logit: (root of the mean square, worst). A dtype with p bits rounds each number by up
# to 2**-p of it: 2**-8 in bfloat16, 2**-11 in float16, 2**-24 in float32. The residual
# stream is rounded twice in each of 4 layers, and what the matrices read is rounded as
# well: a few roundings, of which the mean comes to 0.6 * 2**-p. Measured on the CPU:
# bfloat16 (0.0025, 0.013), float16 (0.00015, 0.0007), float32 (1e-7, 6e-7). A GPU sums
# in another order, and bfloat16's partial sums may be rounded too: about 2.5 times is
# allowed, more where it costs nothing. A position off by one, a mask that hides one key
# or shows one too many is at (0.013, 0.07) or beyond: test_gpu_bodies shows that it is
# rejected even in bfloat16.
TOLERANCES = {
    torch.float32: (1e-5, 1e-4),
    torch.float16: (6e-4, 4e-3),
    torch.bfloat16: (6e-3, 3e-2),
}


@functools.cache
def reference() -> LLMEngine:
    """The embedded model in float32 on the CPU, with its tokenizer."""
    return LLM(device="cpu").llm_engine


@functools.cache
def model_on(device: str, dtype: torch.dtype = torch.float32) -> Qwen3:
    return Qwen3.from_pretrained(EMBEDDED_MODEL, dtype, device)


@functools.cache
def prompt_ids() -> list[list[int]]:
    return [list(reference().tokenizer.encode(prompt)) for prompt in PROMPTS]


@torch.inference_mode()
def plain_logits(ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of one pass without a cache, in float32 on the CPU."""
    model = model_on("cpu")
    context = PlainContext(torch.arange(len(ids)))
    return model.logits(model(torch.tensor(ids), context))


@functools.cache
def greedy(prompt: tuple[int, ...], steps: int = STEPS) -> tuple[int, ...]:
    """What float32 on the CPU generates, whatever would end it."""
    params = SamplingParams(temperature=0, max_tokens=steps)
    output = generate(model_on("cpu"), reference().tokenizer, list(prompt), params)
    return tuple(output.outputs[0].token_ids)


# ----- logits under teacher forcing


@contextlib.contextmanager
def forced(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[tuple[tuple[int, ...], int], torch.Tensor]]:
    """All loops choose what the CPU's greedy loop chose, and their logits are kept.

    A free run would part at the first near-tie, and nothing after it could be compared.
    """
    seen: dict[tuple[tuple[int, ...], int], torch.Tensor] = {}
    known = {tuple(ids): greedy(tuple(ids)) for ids in prompt_ids()}

    def choose(logits, rows, generator=None):
        chosen = []
        for row, line in zip(rows, logits.float().cpu(), strict=True):
            prompt, place = tuple(row.prompt_token_ids), len(row.output_token_ids)
            seen[prompt, place] = line
            chosen.append(known[prompt][place])
        tokens = torch.tensor(chosen, device=logits.device)
        return gather_logprobs(logits.float().log_softmax(-1), tokens, None)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "sample", choose)
        patch.setattr(engine, "sample", choose)
        yield seen


def compare(seen: dict, dtype: torch.dtype) -> None:
    """Logits that were kept against the plain pass over the same tokens."""
    assert len(seen) == len(PROMPTS) * STEPS
    for ids in prompt_ids():
        output = greedy(tuple(ids))
        wanted = plain_logits(ids + list(output))[len(ids) - 1 : -1]
        got = torch.stack([seen[tuple(ids), place] for place in range(STEPS)])
        error = (got - wanted) / wanted.abs().max()
        mean, worst = TOLERANCES[dtype]
        assert error.square().mean().sqrt() < mean
        assert error.abs().max() < worst


def forced_generation(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0, max_tokens=STEPS)
    model, tokenizer = model_on(device, dtype), reference().tokenizer
    with forced(monkeypatch) as seen:
        for ids in prompt_ids():
            output = generate(model, tokenizer, ids, params).outputs[0]
            assert tuple(output.token_ids) == greedy(tuple(ids))
    compare(seen, dtype)


def engine_on(device: str, dtype: torch.dtype, **options) -> LLMEngine:
    """A small engine whose memory holds nothing but NaN."""
    made = LLM(
        device=device, dtype=dtype, block_size=4, max_model_len=64, **options
    ).llm_engine
    made.runner.cache.pool.fill_(math.nan)
    made.runner.cache.swap.fill_(math.nan)
    return made


def drain(made: LLMEngine) -> dict:
    """Step to the end, the books checked after each step; outputs by request."""
    done = {}
    for _ in range(1000):
        if not made.has_unfinished_requests():
            break
        for output in made.step():
            if output.finished:
                done[output.request_id] = output
        made.scheduler.memory.check_integrity()
    assert not made.has_unfinished_requests()
    return done


def forced_engine(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts in one batch, cut in chunks, so that steps are mixed."""
    made = engine_on(
        device,
        dtype,
        num_gpu_blocks_override=64,
        enable_chunked_prefill=True,
        max_num_batched_tokens=7,
    )
    params = SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True)
    with forced(monkeypatch) as seen:
        for i, ids in enumerate(prompt_ids()):
            made.add_request(str(i), {"prompt_token_ids": ids}, params)
        drain(made)
    compare(seen, dtype)


# ----- tokens in float32


def same_or_near_tie(ids: list[int], got: list[int], wanted: list[int]) -> None:
    """Equal, or apart first where the two best logits are closer than 1e-3."""
    for place, (one, two) in enumerate(zip(got, wanted, strict=True)):
        if one != two:
            logits = plain_logits(ids + wanted[:place])[-1]
            best, second = logits.topk(2).values.tolist()
            assert best - second < 1e-3, f"{one}, not {two}, at place {place}"
            assert one in logits.topk(2).indices.tolist()
            return


def greedy_tokens(device: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    made = engine_on(device, torch.float32, num_gpu_blocks_override=64)
    for i, ids in enumerate(prompt_ids()):
        made.add_request(str(i), {"prompt_token_ids": ids}, params)
    together = drain(made)
    for i, ids in enumerate(prompt_ids()):
        wanted = list(greedy(tuple(ids), 40))
        alone = generate(model_on(device), reference().tokenizer, ids, params)
        same_or_near_tie(ids, alone.outputs[0].token_ids, wanted)
        same_or_near_tie(ids, together[str(i)].outputs[0].token_ids, wanted)


# ----- swapping to the CPU's memory and back


def swapped(device: str) -> None:
    """A pool for two of four requests: the others wait in the CPU's memory."""
    made = engine_on(
        device,
        torch.float32,
        num_gpu_blocks_override=16,
        preemption_mode="swap",
        swap_space=0.01,
    )
    moved = {"out": 0, "in": 0}
    move = made.runner.cache.move

    def counting(moves):
        for kind in moved:
            moved[kind] += sum(each[0] == kind for each in moves)
        move(moves)

    made.runner.cache.move = counting
    assert made.runner.cache.pool.device.type == torch.device(device).type
    assert made.runner.cache.swap.device.type == "cpu"
    asked = [
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
        SamplingParams(seed=3, n=2, max_tokens=24, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=24, ignore_eos=True),
        SamplingParams(seed=4, max_tokens=24, ignore_eos=True, top_p=0.9),
    ]
    for i, (ids, params) in enumerate(zip(prompt_ids(), asked, strict=True)):
        made.add_request(str(i), {"prompt_token_ids": ids}, params)
    done = drain(made)
    assert moved["out"] > 0 and moved["in"] > 0, moved
    assert made.stats()["preemptions"] > 0
    assert len(made.scheduler.memory.free) == 16
    for i, (ids, params) in enumerate(zip(prompt_ids(), asked, strict=True)):
        alone = generate(made.model, made.tokenizer, ids, params)
        got = [each.token_ids for each in done[str(i)].outputs]
        for one, two in zip(got, alone.outputs, strict=True):
            if params.temperature == 0:
                same_or_near_tie(ids, one, two.token_ids)
            else:
                assert one == two.token_ids


# ----- the host doesn't wait


@contextlib.contextmanager
def no_waiting(device: str) -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error in here.

    PyTorch's mode sees `.item()`, `.tolist()`, `if tensor`, `nonzero`, `unique`,
    indexing with a mask or with a Python list, and every copy between host and device
    that is not both pinned and non-blocking. So inputs are made before it begins.
    """
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def waits_on(device: str) -> Iterator[list]:
    """A list that gets an entry for each wait in here; a CPU has none."""
    if device == "cpu":
        yield []
        return
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield seen
    finally:
        torch.cuda.set_sync_debug_mode(before)


@torch.inference_mode()
def forward_passes(device: str) -> None:
    """Prefill, decode, and a mixed paged step: inputs are there, nobody waits."""
    model = model_on(device)
    ids = torch.tensor(prompt_ids()[0], device=device)
    cache = ContiguousKVCache(model.config, 32, device=device)
    model(ids, cache.step(len(ids)))  # makes the table of RoPE frequencies, once
    with no_waiting(device):
        for tokens in (ids, ids[:1], ids[:3]):  # prompt, token, chunk behind a past
            hidden = model(tokens, cache.step(len(tokens)))
            cache.advance(len(tokens))
            model.logits(hidden[-1:])
    made = engine_on(
        device,
        torch.float32,
        num_gpu_blocks_override=64,
        enable_chunked_prefill=True,
        max_num_batched_tokens=16,
    )
    kept = []
    model = made.runner.model

    def watched(token_ids, context):
        if kept:
            with no_waiting(device):
                made.model.logits(forward(token_ids, context))
        kept.append(len(token_ids))
        return forward(token_ids, context)

    forward = model.forward
    made.runner.model = watched
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    for i, prompt in enumerate(prompt_ids()):
        made.add_request(str(i), {"prompt_token_ids": prompt}, params)
        made.step()
    drain(made)
    assert len(kept) > 5


SAMPLED = {
    "greedy": {"temperature": 0},
    "drawn": {},
    "seeded": {"seed": 1},
    "filtered": {"top_k": 5, "top_p": 0.9, "min_p": 0.01},
    "penalised": {"temperature": 0, "frequency_penalty": 1.0},
    "repetition": {"temperature": 0, "repetition_penalty": 1.5},
    "min_tokens": {"temperature": 0, "min_tokens": 9},
}


def sampled(device: str, kind: str) -> None:
    """`sample` waits once, and once more where seeded rows are looked at before."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 64, generator=generator)
    params = SamplingParams(max_tokens=9, logprobs=2, **SAMPLED[kind])

    def rows(place: str) -> list[SamplingRow]:
        own = None
        if params.seed is not None:
            own = torch.Generator(place).manual_seed(params.seed)
        return [SamplingRow(params, [1], [2, 2], (3,), own) for _ in range(2)]

    there = logits.to(device)
    sample(there, rows(device))  # whatever is set up at the first call
    with waits_on(device) as waits:
        chosen = sample(there, rows(device))
    most = 1 if params.seed is None else 2
    assert len(waits) <= most, [str(wait.message) for wait in waits]
    wanted = sample(logits, rows("cpu"))
    if params.temperature == 0:
        assert chosen.token_ids.tolist() == wanted.token_ids.tolist()
        assert chosen.ranks.tolist() == wanted.ranks.tolist()
    assert chosen.top_token_ids.tolist() == wanted.top_token_ids.tolist()
    torch.testing.assert_close(chosen.top_logprobs, wanted.top_logprobs)


def refused(device: str) -> None:
    """Rows that can't be sampled are refused by name, and cost no row its numbers."""
    for bad in (math.nan, math.inf):
        logits = torch.zeros(2, 64, device=device)
        logits[1, 5] = bad
        for seeded in (False, True):
            own = torch.Generator(device).manual_seed(1) if seeded else None
            before = own.get_state() if seeded else None
            row = SamplingRow(SamplingParams(), [], [], (), own)
            with pytest.raises(ValueError, match="row 1"):
                sample(logits, [row, row])
            assert not seeded or torch.equal(own.get_state(), before)
    with pytest.raises(ValueError, match="row 0"):
        sample(torch.full((1, 64), -math.inf, device=device), [row])


# ----- a recorded decode step


def graph_cell() -> str:
    """The source of the cells of notebook 09 that are tagged gpu."""
    if not NOTEBOOK.exists():
        pytest.skip(f"notebooks/{NOTEBOOK.name} is not written yet")
    cells = [
        cell["source"]
        for cell in read(NOTEBOOK)["cells"]
        if "gpu" in cell["metadata"].get("tags", [])
    ]
    assert cells, f"no cell of {NOTEBOOK.name} is tagged gpu"
    return "\n\n\n".join(cells)


def decode_graph(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's DecodeGraph gives Generation's logits and tokens, step by step."""
    names = {
        "torch": torch,
        "F": torch.nn.functional,
        "ContiguousKVCache": ContiguousKVCache,
        "Qwen3": Qwen3,
    }
    exec(compile(graph_cell(), NOTEBOOK.name, "exec"), names)
    model, ids, steps = model_on(device), prompt_ids()[0], 20
    kept = []

    def recorded(logits, rows, generator=None):
        kept.append(logits.float().cpu())
        return sample(logits, rows, generator)

    params = SamplingParams(temperature=0, max_tokens=steps + 1)
    job = Generation(
        model, TokenTexts(reference().tokenizer), Request("r", None, ids, params)
    )
    with monkeypatch.context() as patch:
        patch.setattr(generation, "sample", recorded)
        while not job.finished:
            job.step()
    tokens = job.output().outputs[0].token_ids

    cache = ContiguousKVCache(model.config, len(ids) + steps, device=device)
    cache.keys.fill_(math.nan)  # what memory may hold
    cache.values.fill_(math.nan)
    with torch.inference_mode():
        first = torch.tensor(ids, device=device)
        hidden = model(first, cache.step(len(ids)))
        cache.advance(len(ids))
        assert model.logits(hidden[-1:]).argmax().item() == tokens[0]
    graph = names["DecodeGraph"](model, cache)
    assert (graph.graph is not None) == (torch.device(device).type == "cuda")
    assert (graph.replays, cache.length) == (0, len(ids))
    outputs = []
    for place in range(steps):
        logits = graph.step(tokens[place])
        outputs.append(logits)
        assert logits.shape == (1, model.config.vocab_size)
        assert cache.length == len(ids) + place + 1
        # Other kernels sum all slots, the free ones at weight 0, in another order.
        wanted = kept[place + 1]
        torch.testing.assert_close(logits.float().cpu(), wanted, atol=1e-3, rtol=1e-3)
        best, second = wanted[0].topk(2).values.tolist()
        if best - second > 2e-3:
            assert logits.argmax().item() == tokens[place + 1]
    assert graph.replays == (steps if graph.graph is not None else 0)
    for place, logits in enumerate(outputs):  # a later replay wrote over none of them
        torch.testing.assert_close(
            logits.float().cpu(), kept[place + 1], atol=1e-3, rtol=1e-3
        )
    with pytest.raises(ValueError):  # no slot is free
        graph.step(tokens[-1])


# ----- the tests


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_generate_under_teacher_forcing(dtype, monkeypatch):
    forced_generation(DEVICE, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_engine_under_teacher_forcing(dtype, monkeypatch):
    forced_engine(DEVICE, dtype, monkeypatch)


def test_greedy_tokens_in_float32_are_the_cpus():
    greedy_tokens(DEVICE)


def test_swapping_to_the_cpus_memory_and_back():
    swapped(DEVICE)


def test_a_forward_pass_never_waits():
    forward_passes(DEVICE)


@pytest.mark.parametrize("kind", SAMPLED)
def test_sampling_waits_once_or_twice(kind):
    sampled(DEVICE, kind)


def test_rows_that_cant_be_sampled():
    refused(DEVICE)


def test_a_recorded_step_equals_generation(monkeypatch):
    decode_graph(DEVICE, monkeypatch)
