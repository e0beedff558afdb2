"""Serve the same requests on the CPU and on the pretended GPU, and print what was seen.

    python -m tests.pretended_gpu.scenarios [name ...] [name:plant ...]

The last line is JSON: name -> {"same", "mismatches", "decode", "other", "places",
"preemptions", "hits"}, where "decode" and "other" hold [waits, launches] of each step
that did nothing but decode, and of the others (prompts, swapping). "places" says where
a decoding step waited, on average. A plant is a mistake put into the engine, to show
that it is noticed.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator

import torch

from folovllm_lite import LLM, SamplingParams, flash, gpu
from folovllm_lite.flash import TritonKernels
from folovllm_lite.generation import Generation, generate
from folovllm_lite.gpu import DecodeGraph, GraphRunner, step_bytes
from folovllm_lite.runner import Runner
from tests.pretended_gpu.device import Machine, Step, install
from tests.pretended_gpu.graphs import install_graphs

LONG = "Once upon a time there was a little girl who lived in a house by the sea. " * 3
MANY = ("Once upon a time", "What is 2 + 3?", LONG, "Lily")
GREEDY = {"temperature": 0}
# A pool for two of the four.
SMALL = {"num_gpu_blocks_override": 20, "block_size": 4, "max_model_len": 80}
PENALTIES = {
    "repetition_penalty": 1.3,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.2,
}
FILTERS = {"top_k": 9, "top_p": 0.9, "min_p": 0.01}
SCENARIOS: dict[str, tuple] = {  # name: (prompts, sampling parameters, options of LLM)
    "greedy": (MANY, GREEDY, {}),
    "one": (MANY[:1], GREEDY, {}),
    "two": (MANY[:1] * 2, GREEDY, {}),
    "sixteen": (MANY[:1] * 16, GREEDY, {}),
    "bfloat16": (MANY, GREEDY, {"dtype": "bfloat16"}),
    "drawn": (MANY, {}, {}),
    "seeded": (MANY, {"seed": 5}, {}),
    "filters": (MANY, {"seed": 5, **FILTERS}, {}),
    "penalties": (MANY, GREEDY | PENALTIES, {}),
    "min_tokens": (MANY, GREEDY | {"min_tokens": 9, "ignore_eos": False}, {}),
    "logprobs": (MANY, GREEDY | {"logprobs": 3}, {}),
    "n": (MANY, {"seed": 5, "n": 3}, {}),
    "prompt_logprobs": (MANY, GREEDY | {"prompt_logprobs": 2}, {}),
    "prefix": (
        [LONG + x for x in "ABA"],
        GREEDY,
        {"enable_prefix_caching": True, "block_size": 4},
    ),
    "swap": (MANY, {"seed": 5, "n": 2}, SMALL | {"preemption_mode": "swap"}),
    "recompute": (MANY, {"seed": 5, "n": 2}, SMALL | {"preemption_mode": "recompute"}),
    "chunks": (
        MANY,
        GREEDY,
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 7},
    ),
    "memory sizing": (
        MANY,
        GREEDY,
        {
            "num_gpu_blocks_override": None,
            "max_model_len": 96,
            "max_num_batched_tokens": 96,
            "max_num_seqs": 8,
        },
    ),
    "generate": (MANY, {"seed": 5, "n": 2, "logprobs": 1}, {}),
}
# With CUDA graphs. Requests end one after the other, so steps are padded.
LEAVING = [{"temperature": 0, "max_tokens": count} for count in (30, 4, 9, 17)]
GRAPHS = {"enforce_eager": False, "max_model_len": 96, "max_num_seqs": 8}
WITH_GRAPHS: dict[str, tuple] = {
    "graphs": (MANY, LEAVING, GRAPHS),
    "graphs, drawn": (MANY, {"seed": 5, "n": 2}, GRAPHS),
    "graphs, swap": (MANY, {"seed": 5, "n": 2}, GRAPHS | SMALL),
    "graphs, prefix": (
        [LONG + x for x in "ABA"],
        LEAVING[:3],
        GRAPHS | {"enable_prefix_caching": True, "block_size": 4},
    ),
    "graphs, bfloat16": (MANY, LEAVING, GRAPHS | {"dtype": "bfloat16"}),
}


def watch(machine: Machine) -> None:
    """Begin a step of the machine with each of the engine's, and of `generate`'s."""
    run, step = Runner.run, Generation.step

    def run_watched(self: Runner, work: object) -> object:
        decodes = all(
            each.count == 1 and each.end == each.seq.get_len()
            for each in work.work.values()
        )
        swaps = any(kind != "copy" for kind, _, _ in work.moves)
        machine.begin("decode" if decodes and not swaps else "other")
        return run(self, work)  # sampling, which follows, belongs to it

    def step_watched(self: Generation) -> None:
        machine.begin("decode" if self._caches else "other")
        step(self)

    replay = GraphRunner.run

    def replay_watched(self: GraphRunner, work: object) -> object:
        machine.begin("decode")
        hidden = replay(self, work)  # or passes it on to a Runner, which begins anew
        if all(each.count == 1 for each in work.work.values()):
            machine.strays |= strays(self, list(work.work.values()))
        return hidden

    Runner.run, Generation.step = run_watched, step_watched
    GraphRunner.run = replay_watched


def strays(runner: GraphRunner, work: list) -> set[int]:
    """Slots that the step's graph wrote, and that are neither its own nor spare."""
    size = runner.cache.block_size
    own = {each.seq.block_ids[each.start // size] * size + each.start % size
           for each in work}  # fmt: skip
    spare = (runner.cache.pool.shape[3] - 1) * size
    graph = runner.graphs[min(n for n in runner.graphs if n >= len(work))]
    return set(graph.inputs.held[2].tolist()) - own - {spare}


# ----- mistakes


def plant_wait() -> None:
    """The runner looks at a number of the device's."""
    run = Runner.run

    def wrong(self: Runner, work: object) -> object:
        hidden = run(self, work)
        assert hidden.sum().item() < math.inf
        return hidden

    Runner.run = wrong


def plant_mismatch() -> None:
    """The runner leaves the positions on the CPU."""
    prepare = Runner.prepare

    def wrong(self: Runner, work: object) -> tuple:
        token_ids, context = prepare(self, work)
        if token_ids.is_cuda:
            context.positions = torch.tensor(context.positions.tolist())
        return token_ids, context

    Runner.prepare = wrong


def plant_launches() -> None:
    """The runner launches something for each row."""
    run = Runner.run

    def wrong(self: Runner, work: object) -> object:
        return torch.stack([row + 0 for row in run(self, work)])

    Runner.run = wrong


def plant_padding() -> None:
    """Rows that a sequence has left go on writing to its blocks."""
    DecodeGraph._pad = lambda self, first: None if first else pad(self, first)


def plant_tables() -> None:
    """A row keeps the first block table that it got."""
    run = DecodeGraph.run

    def wrong(self: DecodeGraph, work: list) -> torch.Tensor:
        self._blocks[: len(work)] = [list(each.seq.block_ids) for each in work]
        return run(self, work)

    DecodeGraph.run = wrong


def plant_recorded() -> None:
    """The kernels look at the device's numbers while a graph is recorded."""
    attend = TritonKernels.attend

    def wrong(self: TritonKernels, layer: int, q: torch.Tensor, out: object) -> None:
        assert q.sum().item() < math.inf
        attend(self, layer, q, out)

    TritonKernels.attend = wrong


def plant_spare() -> None:
    """Rows that pad write to a block that a sequence owns."""
    begin = DecodeGraph.__init__

    def wrong(self: DecodeGraph, *args: object) -> None:
        begin(self, *args)
        self.spare = 0

    DecodeGraph.__init__ = wrong


def plant_no_triton() -> None:
    """No mistake: Triton is missing, as on Windows."""

    def on_gpu(kernel: object) -> None:
        raise ImportError("triton")

    gpu.can_record, flash.on_gpu = lambda: False, on_gpu


pad = DecodeGraph._pad
PLANTS = {
    "wait": plant_wait,
    "mismatch": plant_mismatch,
    "launches": plant_launches,
    "padding": plant_padding,
    "tables": plant_tables,
    "spare": plant_spare,
    "recorded": plant_recorded,
    "no triton": plant_no_triton,
}


@contextlib.contextmanager
def planted(plant: str) -> Iterator[None]:
    """Put a mistake in, and take it out again; "" is none."""
    before = Runner.run, Runner.prepare
    graph = DecodeGraph.__init__, DecodeGraph._pad, DecodeGraph.run
    attend, there = TritonKernels.attend, (gpu.can_record, flash.on_gpu)
    if plant:
        PLANTS[plant]()
    try:
        yield
    finally:
        Runner.run, Runner.prepare = before
        DecodeGraph.__init__, DecodeGraph._pad, DecodeGraph.run = graph
        TritonKernels.attend, (gpu.can_record, flash.on_gpu) = attend, there


# ----- serving


def serve(device: str, name: str) -> tuple[list[list[list[int]]], dict]:
    """The tokens of every completion, and the engine's counters."""
    prompts, asked, options = (SCENARIOS | WITH_GRAPHS)[name]
    usual = {"num_gpu_blocks_override": 64, "swap_space": 0.01, "enforce_eager": True}
    options = {**usual, **options}
    if device == "cpu":
        options["num_gpu_blocks_override"] = options["num_gpu_blocks_override"] or 64
    llm = LLM(device=device, **options)
    each = asked if isinstance(asked, list) else [asked] * len(prompts)
    usual = {"max_tokens": 10, "ignore_eos": True}
    params = [SamplingParams(**{**usual, **one}) for one in each]
    engine = llm.llm_engine
    if name == "generate":
        found = [
            generate(engine.model, engine.tokenizer, engine.tokenizer.encode(each), one)
            for each, one in zip(prompts, params, strict=True)
        ]
    else:
        found = llm.generate(list(prompts), params, use_tqdm=False)
    tokens = [[each.token_ids for each in output.outputs] for output in found]
    return tokens, engine.stats()


def report(name: str, machine: Machine) -> dict:
    """Serve a scenario twice, and say what the machine saw."""
    name, _, plant = name.partition(":")
    wanted, _ = serve("cpu", name)
    machine.clear()
    with machine, planted(plant):
        got, stats = serve("cuda", name)
    return {
        "same": got == wanted,
        "mismatches": [f"{where} {what}" for where, what in machine.mismatches],
        **{
            kind: [
                [sum(step.waits.values()), sum(step.launches.values())]
                for step in machine.steps
                if step.kind == kind
            ]
            for kind in ("decode", "other", "capture")
        },
        "places": places(machine.steps),
        "strays": sorted(machine.strays),
        "preemptions": stats["preemptions"],
        "hits": stats["prefix_hit_rate"],
    }


def room(name: str, machine: Machine) -> dict:
    """What `step_bytes` says, and what steps that are as large as may be then need."""
    chunks = name.endswith("chunks")
    tokens, rows, longest = 48 if chunks else 192, 6, 96
    with machine:
        llm = LLM(
            device="cuda", max_model_len=longest, max_num_batched_tokens=tokens,
            max_num_seqs=rows, enable_chunked_prefill=chunks, enforce_eager=True,
            num_gpu_blocks_override=64, swap_space=0.01,
        )  # fmt: skip
        reserved = step_bytes(llm.model, tokens, rows, longest)
        machine.memory.reset()
        before = machine.memory.now
        params = SamplingParams(max_tokens=6, logprobs=5, **FILTERS, **PENALTIES)
        prompts = [{"prompt_token_ids": [5] * 90}] * 2 + ["Lily"] * 4
        llm.generate(prompts, params, use_tqdm=False)
    return {"reserved": reserved, "needed": machine.memory.most - before}


def places(steps: list[Step]) -> dict[str, float]:
    """Where decoding steps waited: "place: what" -> how often a step."""
    decodes = [step for step in steps if step.kind == "decode"]
    counts = sum((step.waits for step in decodes), Counter())
    return {
        f"{where}: {what}": round(count / len(decodes), 2)
        for (where, what), count in sorted(counts.items())
    }


def main(names: list[str]) -> None:
    """Run the scenarios of these names, or all."""
    machine = install()
    install_graphs(machine)
    watch(machine)
    reports = {}
    for name in names or SCENARIOS:
        if name.startswith("step bytes"):
            reports[name] = room(name, machine)
            continue
        reports[name] = found = report(name, machine)
        waits = max((step[0] for step in found["decode"]), default=0)
        launches = max((step[1] for step in found["decode"]), default=0)
        print(
            f"{name}: {'same' if found['same'] else 'OTHER'} tokens, "
            f"{len(found['mismatches'])} mismatches; a decoding step waits at most "
            f"{waits} times and launches {launches}",
            *(
                f"\n    {each} a step: {where}"
                for where, each in found["places"].items()
            ),
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
