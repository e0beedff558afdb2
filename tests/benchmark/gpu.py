"""All figures of a GPU by one command, in some ten minutes on a large one.

    python tests/benchmark/gpu.py --out gpu.json
    python tests/benchmark/gpu.py --vllm path/to/bin/python
    python tests/benchmark/gpu.py --trial      # on any machine: does it run?

On Qwen3-0.6B's shape, with random weights in bfloat16:

    many      nano-vllm's bench: 256 sequences, 100 to 1,024 tokens in, and as many out,
              at temperature 0.6
    one       one request of 64 tokens, 256 new
    prefill   16 prompts of 4,096 tokens, one new token each

by this engine with CUDA graphs, without (`enforce_eager=True`) and in four bits, by
`transformers` (one, prefill) and with --vllm by the vLLM of that Python. And apart from
any engine: the attention of a decoding step over blocks, by the Triton kernel and by
gathering, next to what a copy of as many bytes takes.

Each engine is a process of its own, and has the GPU to itself.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmark.run import FOUR_BITS, OURS, Engine, four_bits, make_big  # noqa: E402

EAGER = "folovllm_lite, eager"


def jobs(trial: bool) -> dict[str, tuple[float, list[tuple[int, int]]]]:
    """Name -> temperature, and tokens in and out of each request."""
    rng = random.Random(0)
    if trial:
        return {"many": (0.6, [(9, 5), (12, 3)]), "one": (0, [(8, 6)])}
    many = [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(256)]
    return {
        "many": (0.6, many),
        "one": (0, [(64, 256)]),
        "prefill": (0, [(4096, 1)] * 16),
    }


def serve(
    name: str, python: str, models: dict[str, str], trial: bool, repeats: int
) -> dict[str, list[float]]:
    """Tokens per second of one engine: new ones, for `prefill` those of the prompts."""
    engine, found = Engine(name, python, models), {}
    model = "embedded" if trial else "0.6B"
    try:
        for job, (temperature, sizes) in jobs(trial).items():
            if name == "transformers" and job == "many":
                continue  # it can't serve them together
            count = sum(size[0 if job == "prefill" else 1] for size in sizes)
            engine.do("serve", model, temperature, sizes[:2])  # what is paid once
            seconds = [
                engine.do("serve", model, temperature, sizes)[0] for _ in range(repeats)
            ]
            found[job] = [round(count / each, 1) for each in seconds]
            print(f"  {name}, {job}: {found[job]} tokens/s", flush=True)
    except RuntimeError as error:
        found["failed"] = str(error)
        print(f"  {name}: {error}", flush=True)
    finally:
        engine.close()
    return found


def timed(call: Callable[[], Any], device: str) -> float:
    """Microseconds that the device needs for a call, median of 20 after a warm-up."""
    found = []
    for _ in range(23):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(1000 * begin.elapsed_time(end))
        else:
            began = time.perf_counter()
            call()
            found.append(1e6 * (time.perf_counter() - began))
    return statistics.median(found[3:])


@torch.inference_mode()
def attention(device: str, trial: bool) -> dict[str, dict[str, float]]:
    """Microseconds of a layer's attention in a decoding step, by what reads it."""
    sizes = [(2, 64)] if trial else [(1, 1024), (1, 8192), (64, 1024), (256, 1024)]
    found = {}
    for rows, past in sizes:
        line = found[f"{rows} rows, {past} tokens"] = attend(rows, past, device)
        print(f"  attention, {rows} rows, {past} tokens: {line}", flush=True)
    return found


def attend(rows: int, past: int, device: str) -> dict[str, float]:
    """One line of `attention`."""
    from folovllm_lite.flash import FlashContext
    from folovllm_lite.paged import PagedContext, PagedKVCache, Segment

    Hq, Hkv, D, S, dtype = 16, 8, 128, 16, torch.bfloat16
    # All that a pool has to know of a model.
    config = SimpleNamespace(num_layers=1, num_kv_heads=Hkv, head_dim=D)
    blocks = -(-past // S)
    cache = PagedKVCache(config, rows * blocks, S, dtype, device)
    cache.pool.normal_()
    tables = torch.randperm(rows * blocks).view(rows, blocks).tolist()
    segments = [Segment(i, i + 1, past, each) for i, each in enumerate(tables)]
    positions = torch.full((rows,), past - 1, device=device)
    last = [table[-1] * S + (past - 1) % S for table in tables]
    given = cache, positions, torch.tensor(last, device=device), segments
    q = torch.randn(rows, Hq, D, dtype=dtype, device=device)
    k, v = torch.randn(2, rows, Hkv, D, dtype=dtype, device=device)
    kernel, gather = FlashContext(*given), PagedContext(*given)
    into = torch.empty_like(cache.pool)
    return {
        "kernel": timed(lambda: kernel.attend(0, q, k, v), device),
        "gather": timed(lambda: gather.attend(0, q, k, v), device),
        # It reads and writes, they only read.
        "copy": timed(lambda: into.copy_(cache.pool), device) / 2,
        "MB read": cache.pool.nbytes / 1e6,
    }


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--trial", action="store_true", help="tiny, on any machine")
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args()
    if not (args.trial or torch.cuda.is_available()):
        parser.error("there is no GPU; --trial runs everything, tiny, on any machine")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
    found["attention, microseconds"] = attention(device, args.trial)
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": str(ROOT / "folovllm_lite" / "tiny" / "model")}
        engines = {OURS: sys.executable, EAGER: sys.executable}
        if not args.trial:
            models["0.6B"] = f"{folder}/plain"
            make_big(Path(models["0.6B"]))
            four_bits(Path(models["0.6B"]), Path(folder, "four"))
            engines[FOUR_BITS] = sys.executable
        engines["transformers"] = sys.executable
        if args.vllm:
            engines["vllm"] = args.vllm
        for name, python in engines.items():
            own = models | ({"0.6B": f"{folder}/four"} if name == FOUR_BITS else {})
            found[name] = serve(name, python, own, args.trial, args.repeats)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
