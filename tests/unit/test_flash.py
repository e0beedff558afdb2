"""What kernels promise beside their numbers: threads, halves, NaN, a GPU's types."""

import importlib.util
import math
import multiprocessing
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from folovllm_lite import flash
from folovllm_lite.attention import attention
from folovllm_lite.checks.contexts_suite import Step
from folovllm_lite.flash import FlashContext, Partial, Team, merge

TEAM_THREADS = 3


def test_a_team_does_every_piece_once():
    team = Team(TEAM_THREADS - 1)
    for pieces in (1, 2, 50):
        done = []
        team.run(done.append, pieces)
        assert sorted(done) == list(range(pieces))


def test_a_team_waits_for_pieces_and_never_for_a_thread():
    """A helper that gets no core is what a busy machine is made of."""
    team = Team(1)
    gate = threading.Event()
    team._calls.put(gate.wait)  # the helper begins with something else
    team._start = lambda: None
    done = []
    team.run(done.append, 5)
    assert done == [0, 1, 2, 3, 4]
    gate.set()


def test_a_team_waits_for_a_piece_that_a_helper_took():
    team, slow = Team(1), threading.Event()
    done = []

    def work(piece):
        if threading.current_thread() is threading.main_thread():
            slow.wait(10)  # until the helper has one
        else:
            slow.set()
            time.sleep(0.05)
        done.append(piece)

    team.run(work, 2)
    assert sorted(done) == [0, 1]


def test_a_team_raises_what_a_piece_raised():
    def work(piece):
        if piece == 3:
            raise ValueError("piece 3")

    team = Team(TEAM_THREADS - 1)
    with pytest.raises(ValueError, match="piece 3"):
        team.run(work, 8)
    done = []
    team.run(done.append, 2)  # and goes on
    assert sorted(done) == [0, 1]


def test_two_threads_use_one_team(monkeypatch):
    """Numba's own threads end the process when two Python threads enter."""
    monkeypatch.setattr(flash, "_WORTH_SHARING", 0)
    monkeypatch.setattr(flash, "TEAM", Team(TEAM_THREADS - 1))
    wrong = []

    def attend(seed):
        for _ in range(20):
            step = Step((600, 1), (40, 1), Hq=4, Hkv=2, seed=seed)
            if (step.attend(FlashContext) - step.wanted()).abs().max() > 1e-4:
                wrong.append(seed)

    threads = [threading.Thread(target=attend, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _in_a_child(team, queue):
    done = []
    team.run(done.append, 6)
    queue.put((sorted(done), all(thread.is_alive() for thread in team._threads)))


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork here"
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_team_survives_a_fork():
    """The threads stay behind; a child that waited for them would wait for ever."""
    team = Team(1)
    team.run(lambda piece: None, 4)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(team, queue))
    child.start()
    assert queue.get(timeout=30) == ([0, 1, 2, 3, 4, 5], True)
    child.join()


def test_shared_among_threads_it_is_the_same(monkeypatch):
    rows, chunks = ((2000, 1), (300, 1), (1, 1), (700, 3)), ((0, 300), (200, 150))
    step = Step(*rows, *chunks, Hq=4, Hkv=2, block_size=16)
    monkeypatch.setattr(flash, "TEAM", Team(0))
    alone = step.attend(FlashContext)
    monkeypatch.setattr(flash, "_WORTH_SHARING", 0)
    monkeypatch.setattr(flash, "TEAM", Team(TEAM_THREADS - 1))
    assert torch.equal(alone, step.attend(FlashContext))


def test_what_is_kept_is_dropped_when_this_module_has_changed(tmp_path, monkeypatch):
    """Other modules' kernels call these, and Numba looks at their own file alone."""
    (tmp_path / "others_kernels.py").write_text(
        "from folovllm_lite.flash import compiled, exp\n"
        "@compiled\ndef twice(x):\n    return 2 * exp(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    kernels = importlib.import_module("others_kernels")
    assert kernels.twice(np.float32(0)) == 2
    (kept,) = Path(kernels.twice.stats.cache_path).glob("*.nbi")
    flash.compiled(kernels.twice.py_func)
    assert kept.exists()
    os.utime(kept, (0, 0))  # older than flash.py
    flash.compiled(kernels.twice.py_func)
    assert not kept.exists()


@njit  # not `compiled`: what is kept of an earlier run doesn't notice another `widen`
def _widened(bits, out):
    for i in range(len(bits)):
        out[i] = flash.widen(bits[i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_is_widened_right(dtype):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    out = np.empty(2**16, np.float32)
    _widened(flash._plain(numbers), out)
    assert np.array_equal(out, numbers.float().numpy(), equal_nan=True)


def test_without_a_folder_to_write_to_it_is_compiled_all_the_same(monkeypatch):
    """A package in a read-only place, run by a user without a home."""

    def refuses(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(cache=cache, **options)

    monkeypatch.setattr(flash, "njit", refuses)
    double = flash.compiled(lambda x: 2 * x)
    assert double(21) == 42


def test_nan_stays_with_its_row():
    """A row that went wrong has to be seen, and must not spoil another's."""
    for bad in (math.nan, math.inf):
        step = Step((5, 1), (300, 1), (4, 1))
        step.q[1] = bad
        got = step.attend(FlashContext)
        assert got[1].isnan().all() and not got[[0, 2]].isnan().any()


@settings(deadline=None)
@given(
    scores=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_parts_merge_in_any_order(scores, order):
    """One part for each number, merged pair by pair as it comes: softmax."""
    values = torch.arange(len(scores), dtype=torch.float64)
    parts = [
        Partial(torch.tensor(float(x), dtype=torch.float64), torch.tensor(1.0), v[None])
        for x, v in zip(scores, values, strict=True)
    ]
    while len(parts) > 1:
        a, b = (parts.pop(order.randrange(len(parts))) for _ in range(2))
        parts.append(merge(a, b))
    (done,) = parts
    wanted = torch.tensor(scores, dtype=torch.float64).softmax(0) @ values
    assert torch.allclose(done.out / done.total, wanted, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_step_is_attention(data):
    heads = data.draw(st.sampled_from([1, 2]))
    group = data.draw(st.integers(1, 8))
    sequences = data.draw(
        st.lists(
            st.tuples(st.integers(0, 600), st.sampled_from([1, 1, 1, 2, 5, 17])),
            min_size=1,
            max_size=5,
        )
    )
    step = Step(
        *sequences,
        Hq=heads * group,
        Hkv=heads,
        D=data.draw(st.sampled_from([16, 32, 48, 64, 96, 128])),
        block_size=data.draw(st.integers(1, 256)),
        layer=data.draw(st.integers(0, 1)),
        seed=data.draw(st.integers(0, 99)),
    )
    step.judge(FlashContext)


def test_flash_attention_holds_no_more_scores_than_a_tile():
    """What is claimed of it: nothing it makes has more than T * Hq * tile scores."""
    q, k, v = torch.randn(64, 2, 4), torch.randn(512, 1, 4), torch.randn(512, 1, 4)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    with Sizes():
        got = flash.flash_attention(q, k, v, torch.arange(448, 512), tile=32)
    assert max(sizes) == 64 * 2 * 32 < 64 * 2 * 512
    assert torch.allclose(got, attention(q, k, v, torch.arange(448, 512)), atol=1e-5)


def test_pytorchs_kernel_stores_no_scores():
    """What notebook 12 says of it: nothing larger than the result, 64 MiB of scores."""
    q, k, v = torch.randn(2048, 4, 64), *torch.randn(2, 2, 2048, 64)
    profile = torch.autograd.profiler.profile(profile_memory=True)
    with flash.one_thread(), profile as profiler:  # each has room of its own
        out = flash._attend_chunk(q, k, v)
    largest = max(event.self_cpu_memory_usage for event in profiler.function_events)
    assert largest == out.nbytes == 2 * 2**20


def test_triton_compiles_for_hopper():
    """Its interpreter takes what the compiler refuses, like a type that changes."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton isn't installed: python -m pip install triton==3.7.1")
    import os

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets here")
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("cuda", 90, 32)
    for name in ("fp32", "fp16", "bf16"):
        for splits in (1, 4):
            for D, block_size in ((64, 16), (80, 5), (128, 256)):
                constants = {
                    "D": D, "S": block_size, "SPLITS": splits, "GROUP": 16,
                    "WIDTH": 1 << (D - 1).bit_length(), "TOKENS": 32, "WIDE": False,
                }  # fmt: skip
                out = name if splits == 1 else "fp32"
                types = {
                    "q_at": f"*{name}", "keys_at": f"*{name}", "values_at": f"*{name}",
                    "plan_at": "*i64", "out_at": f"*{out}", "lse_at": "*fp32",
                    "scale": "fp32", "head_stride": "i32", "Hq": "i32",
                    "group": "i32",
                }  # fmt: skip
                kernel = flash.on_gpu(flash.paged_decode)
                signature = types | dict.fromkeys(constants, "constexpr")
                source = ASTSource(kernel, signature, constants)
                assert triton_compile(source, target=target).asm["cubin"]
        constants = {"D": 80, "SPLITS": 4, "SHARES": 4, "WIDTH": 128}
        types = {
            "parts_at": "*fp32", "lse_at": "*fp32", "plan_at": "*i64",
            "out_at": f"*{name}", "Hq": "i32",
        }  # fmt: skip
        kernel = flash.on_gpu(flash.merge_splits)
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, signature, constants)
        assert triton_compile(source, target=target).asm["cubin"]


def test_shares_fill_a_gpu(monkeypatch):
    """Few rows are split among idle processors, many are not, and none into nothing."""
    chip = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: chip)

    def splits(rows, past):
        step = Step(*((past, 1) for _ in range(rows)), block_size=16, Hkv=1)
        return flash.TritonKernels(step.cache, step.slots, step.segments)._splits

    assert splits(1, 4000) == 64 and splits(1, 100) == 1
    assert splits(40, 1000) == 8 and splits(300, 1000) == 1
