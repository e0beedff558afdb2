"""How fast the engine is, and how fast a peer is at the same work in the same run.

A tokens-per-second figure alone says little: machines differ, and drift while they are
measured. So engine and peer take turns on the same prompts, medians are compared, and
the ratio is what to quote.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from folovllm_lite.doctor import BUSY, Neighbours
from folovllm_lite.llm import LLM
from folovllm_lite.model_loader import get_model_and_tokenizer, resolve_checkpoint
from folovllm_lite.sampling_params import SamplingParams


@dataclass
class Measured:
    """What one engine did in each repeat, in seconds."""

    name: str
    first_token: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


@dataclass
class Result:
    """A benchmark: the work, the machine, a `Measured` per engine, ours first.

    `others` is how many cores other processes kept busy meanwhile.
    """

    work: str
    machine: str
    tokens: int
    measured: list[Measured]
    others: float = 0.0


def _prompts(llm: LLM, count: int, tokens: int, new: int) -> list[list[int]]:
    """`count` different prompts of exactly `tokens` token ids.

    Raises:
        ValueError: with `new` tokens after them they are too long, or too many.
    """
    longest = llm.llm_engine.max_model_len
    if tokens + new > longest:
        raise ValueError(
            f"max_model_len is {longest}, but {tokens} prompt tokens and {new} new "
            f"ones are {tokens + new}"
        )
    if 64 * count * tokens > psutil.virtual_memory().available:  # as Python's ints
        raise ValueError(
            f"{count} prompts of {tokens} tokens don't fit into this machine's memory"
        )
    generator = torch.Generator().manual_seed(0)
    vocabulary = llm.model.config.vocab_size
    # Ids from 10 up: the first few are often special tokens.
    return torch.randint(10, vocabulary, (count, tokens), generator=generator).tolist()


def _wait(device: torch.device) -> None:
    """A GPU works on after the call has returned: wait, or only the launch is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ours(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    _wait(llm.device)
    began = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
    )
    _wait(llm.device)
    spent = time.perf_counter() - began
    for output in outputs:  # an aborted one was done at once: the best of figures
        (made,) = output.outputs
        if len(made.token_ids) != tokens:
            raise ValueError(
                f"a request generated {len(made.token_ids)} of {tokens} tokens: "
                f"{made.finish_reason}, {made.stop_reason}"
            )
    return spent


def _transformers(model: Any, prompts: list[list[int]], tokens: int) -> float:
    ids = torch.tensor(prompts, device=model.device)  # equally long: no padding
    _wait(model.device)
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
    _wait(model.device)
    spent = time.perf_counter() - began
    if out.shape[1] != ids.shape[1] + tokens:
        raise RuntimeError(f"the peer generated {out.shape[1] - ids.shape[1]} tokens")
    return spent


def _ctranslate2(llm: LLM, folder: str) -> Callable[[list[list[int]], int], float]:
    """CTranslate2 with the model of `llm`, converted into a folder.

    Raises:
        ValueError: if it isn't installed, or doesn't compute in the model's dtype.
    """
    if find_spec("ctranslate2") is None:
        raise ValueError(
            "the peer isn't installed: python -m pip install ctranslate2==4.8.5"
        )
    import ctranslate2

    source = str(resolve_checkpoint(llm.model_config.model))
    ctranslate2.converters.TransformersConverter(source).convert(folder, force=True)
    generator = ctranslate2.Generator(
        folder,
        llm.device.type,
        compute_type=_dtype(llm),
        intra_threads=torch.get_num_threads(),
    )
    tokenizer = llm.llm_engine.tokenizer

    def work(prompts: list[list[int]], tokens: int) -> float:
        named = [tokenizer.convert_ids_to_tokens(ids) for ids in prompts]
        began = time.perf_counter()
        found = generator.generate_batch(
            named,
            min_length=tokens,
            max_length=tokens,
            include_prompt_in_result=False,
        )
        spent = time.perf_counter() - began
        made = sum(len(each.sequences_ids[0]) for each in found)
        if made != len(prompts) * tokens:
            raise RuntimeError(f"the peer generated {made} tokens")
        return spent

    return work


def _dtype(llm: LLM) -> str:
    return str(llm.model.lm_head.weight.dtype).removeprefix("torch.")


def run(llm: LLM, args: argparse.Namespace) -> Result:
    """Measure `llm`, and `args.peer` if it names one, turn by turn.

    Args:
        llm: loaded.
        args: requests, prompt_tokens, max_tokens, repeats, peer.
    """
    with TemporaryDirectory() as folder:  # for a peer that reads no checkpoint
        return _run(llm, args, folder)


def _run(llm: LLM, args: argparse.Namespace, folder: str) -> Result:
    disable_progress_bar()  # of a peer's loading, which would stand among ours
    prompts = _prompts(llm, args.requests, args.prompt_tokens, args.max_tokens)
    engines = [(Measured("folovllm_lite"), lambda n: _ours(llm, prompts, n))]
    if args.peer == "transformers":
        peer, _ = get_model_and_tokenizer(llm.model_config, llm.device)
        engines.append(
            (Measured("transformers"), lambda n: _transformers(peer, prompts, n))
        )
    if args.peer == "ctranslate2":
        converted = _ctranslate2(llm, folder)
        engines.append((Measured("ctranslate2"), lambda n: converted(prompts, n)))
    for _, work in engines:
        work(min(4, args.max_tokens))  # the first call pays for what is made only once
    neighbours = Neighbours()
    for _ in tqdm(range(args.repeats), desc="bench"):
        for measured, work in engines:
            measured.first_token.append(work(1))
            measured.total.append(work(args.max_tokens))
    others = neighbours.cores()
    device = (
        torch.cuda.get_device_name(llm.device)
        if llm.device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return Result(
        work=f"{_count(args.requests, 'request')} of "
        f"{_count(args.prompt_tokens, 'token')}, "
        f"{_count(args.max_tokens, 'new token')} each, greedy, {_dtype(llm)}",
        machine=f"{device}, torch {torch.__version__}",
        tokens=args.requests * args.max_tokens,
        measured=[measured for measured, _ in engines],
        others=others,
    )


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def report(result: Result) -> str:
    """The medians as text, and with a peer the ratios (above 1: ours is better)."""
    lines = [result.work, result.machine, ""]
    lines.append(f"{'':16}{'first tokens':>14}{'tokens/s':>12}")
    medians = []
    for measured in result.measured:
        first = statistics.median(measured.first_token)
        speed = result.tokens / statistics.median(measured.total)
        medians.append((first, speed))
        lines.append(f"{measured.name:16}{first * 1000:>11.1f} ms{speed:>12.1f}")
    if len(medians) == 2:
        (first, speed), (peer_first, peer_speed) = medians
        lines.append(
            f"{'ratio':16}{peer_first / first:>13.2f}x{speed / peer_speed:>11.2f}x"
        )
    if result.others >= BUSY:
        lines += [
            "",
            f"Other programs kept {result.others:.1f} cores busy meanwhile: alone, "
            "this machine is faster, and the ratio may be another.",
        ]
    return "\n".join(lines)
