"""One engine in a process of its own, doing the work that `run.py` sends it.

folovllm_lite and vLLM run the same lines: only the module that LLM and SamplingParams
come from differs. This file imports nothing of the project but that module, so that it
runs in vLLM's environment too.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import tempfile
import time
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

# name -> (model, requests, fewest and most prompt tokens, new tokens of each)
WORK = {
    "a": ("embedded", 64, 16, 128, 128),
    "b": ("0.6B", 32, 32, 256, 64),
    "c": ("embedded", 1, 64, 64, 128),
    "c, 0.6B": ("0.6B", 1, 64, 64, 64),
}
DTYPES = {"embedded": "float32", "0.6B": "bfloat16"}
MAX_LEN = 512
LONG = 4352
TEXTS = [
    *(f"{name} went to the {place}" for name in ("Lily", "Zorbo", "Ben", "Mia", "Uvial")
      for place in ("park", "lake", "farm", "school", "market")),
    *(f"{name}去{place}" for name in ("小红", "小明", "阿竹", "小刚", "甜甜")
      for place in ("公园", "河边", "农场", "学校", "海边")),
]  # fmt: skip


def prompts(work: str) -> list[list[int]]:
    """Random token ids, the same on every run and for every engine."""
    rng = random.Random(0)
    _, count, fewest, most, _ = WORK[work]
    return [
        [rng.randrange(10, 1500) for _ in range(rng.randint(fewest, most))]
        for _ in range(count)
    ]


def random_ids(sizes: list[tuple[int, int]]) -> list[list[int]]:
    """Prompts of so many tokens, other ones at each call: none may be cached."""
    return [[random.randrange(10, 1500) for _ in range(count)] for count, _ in sizes]


class VLLM:
    """vLLM, or an engine with its interface.

    Args:
        module: that has LLM and SamplingParams.
        models: name -> directory.
        options: of LLM.
    """

    def __init__(self, module: str, models: dict[str, str], **options: Any):
        self.module = importlib.import_module(module)
        self.models, self.options = models, options
        self.loaded: dict[str, Any] = {}

    def llm(self, model: str, longest: int = MAX_LEN) -> Any:
        """The engine for a model, made the first time."""
        if model not in self.loaded:
            self.loaded[model] = self.module.LLM(
                model=self.models[model],
                dtype=DTYPES[model],
                max_model_len=longest,
                **self.options,
            )
        return self.loaded[model]

    def generate(self, work: str, tokens: int) -> list[list[int]]:
        """Serve a workload greedily; the new tokens of each request."""
        params = self.module.SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts(work)]
        found = self.llm(WORK[work][0]).generate(asked, params, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in found]

    def serve(
        self, model: str, temperature: float, sizes: list[tuple[int, int]]
    ) -> None:
        """Serve requests of so many random tokens in, and so many out."""
        make = self.module.SamplingParams
        params = [
            make(temperature=temperature, max_tokens=count, ignore_eos=True)
            for _, count in sizes
        ]
        asked = [{"prompt_token_ids": ids} for ids in random_ids(sizes)]
        longest = MAX_LEN if model == "embedded" else LONG
        made = self.llm(model, longest).generate(asked, params, use_tqdm=False)
        counts = [len(each.outputs[0].token_ids) for each in made]
        assert counts == [count for _, count in sizes], counts

    def texts(self) -> dict[str, Any]:
        """50 prompts in two languages, cut at stop strings, and three answers each."""
        make, llm = self.module.SamplingParams, self.llm("embedded")
        stopped = llm.generate(
            TEXTS,
            make(
                temperature=0,
                max_tokens=60,
                min_tokens=5,
                logprobs=3,
                stop=["! ", "！", "。"],
            ),
            use_tqdm=False,
        )
        # vLLM refuses three answers at temperature 0; with top_k = 1 all are equal.
        three = llm.generate(
            TEXTS, make(n=3, temperature=1, top_k=1, max_tokens=20), use_tqdm=False
        )
        return {
            "texts": [each.outputs[0].text for each in stopped],
            "reasons": [
                (each.outputs[0].finish_reason, each.outputs[0].stop_reason)
                for each in stopped
            ],
            "logprobs": [
                [
                    {token_id: each.logprob for token_id, each in place.items()}
                    for place in each.outputs[0].logprobs
                ]
                for each in stopped
            ],
            "three": [[one.text for one in each.outputs] for each in three],
        }


class Transformers:
    """`transformers`, by `generate` with padding on the left or by its own batching."""

    def __init__(self, models: dict[str, str], continuous: bool):
        import torch
        import transformers

        self.torch, self.transformers = torch, transformers
        self.models, self.continuous = models, continuous
        self.loaded: dict[str, Any] = {}

    def model(self, name: str) -> Any:
        """The model, loaded the first time."""
        if name not in self.loaded:
            made = self.transformers.AutoModelForCausalLM.from_pretrained(
                self.models[name], dtype=getattr(self.torch, DTYPES[name])
            )
            self.loaded[name] = made.eval()
        return self.loaded[name]

    def serve(
        self, model: str, temperature: float, sizes: list[tuple[int, int]]
    ) -> None:
        """As `VLLM.serve`, on a GPU if there is one, for sizes that are all alike."""
        (out,) = {count for _, count in sizes}
        config = self.transformers.GenerationConfig(
            do_sample=bool(temperature), max_new_tokens=out, eos_token_id=10**6,
            pad_token_id=0,
        )  # fmt: skip
        device = "cuda" if self.torch.cuda.is_available() else "cpu"
        ids = self.torch.tensor(random_ids(sizes), device=device)
        with self.torch.inference_mode():
            made = (
                self.model(model)
                .to(device)
                .generate(
                    ids,
                    attention_mask=self.torch.ones_like(ids),
                    generation_config=config,
                )
            )
        assert made.shape == (len(sizes), ids.shape[1] + out)

    def generate(self, work: str, tokens: int) -> list[list[int]]:
        """As `VLLM.generate`."""
        asked, model = prompts(work), self.model(WORK[work][0])
        # The model's own end tokens would be filled in for None; this one never comes.
        config = self.transformers.GenerationConfig(
            do_sample=False, max_new_tokens=tokens, eos_token_id=10**6, pad_token_id=0
        )
        if self.continuous:
            # By itself it takes most of the memory, and the machine's life.
            room = self.transformers.ContinuousBatchingConfig(max_memory_percent=0.1)
            found = model.generate_batch(
                asked, generation_config=config, continuous_batching_config=room
            )
            # Ids end in the number of the request: req_0, req_1, ...
            order = sorted(found, key=lambda name: int(name.rsplit("_", 1)[-1]))
            return [list(found[name].generated_tokens) for name in order]
        with self.torch.inference_mode():
            longest = max(map(len, asked))
            out = model.generate(
                self.torch.tensor([[0] * (longest - len(ids)) + ids for ids in asked]),
                attention_mask=self.torch.tensor(
                    [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked]
                ),
                generation_config=config,
            )
        return out[:, longest:].tolist()


class CTranslate2:
    """CTranslate2 with as many threads as cores, all requests as one static batch.

    On a CPU it has no bfloat16: a model in that is computed with weights in int8.
    """

    def __init__(self, models: dict[str, str]):
        import ctranslate2
        import transformers

        self.ctranslate2, self.transformers = ctranslate2, transformers
        self.models = models
        self.folder = tempfile.TemporaryDirectory()
        self.loaded: dict[str, tuple[Any, list[str]]] = {}

    def generator(self, name: str) -> tuple[Any, list[str]]:
        """The model, converted and loaded the first time, and its tokens' names."""
        if name not in self.loaded:
            out, source = Path(self.folder.name, name), self.models[name]
            convert = self.ctranslate2.converters.TransformersConverter(source)
            convert.convert(str(out))
            names = self.transformers.AutoTokenizer.from_pretrained(source)
            self.loaded[name] = (
                self.ctranslate2.Generator(
                    str(out),
                    compute_type={"bfloat16": "int8"}.get(DTYPES[name], DTYPES[name]),
                    intra_threads=os.cpu_count(),
                ),
                names.convert_ids_to_tokens(range(len(names))),
            )
        return self.loaded[name]

    def generate(self, work: str, tokens: int) -> list[list[int]]:
        """As `VLLM.generate`."""
        generator, names = self.generator(WORK[work][0])
        found = generator.generate_batch(
            [[names[i] for i in ids] for ids in prompts(work)],
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
        )
        return [list(each.sequences_ids[0]) for each in found]


class Ours(VLLM):
    """folovllm_lite, with what only it is asked for."""

    def __init__(self, models: dict[str, str], **options: Any):
        super().__init__("folovllm_lite", models, **options)

    def engine(self, **options: Any) -> Any:
        """An LLMEngine of the embedded model."""
        made = self.module.LLM(self.models["embedded"], dtype="float32", **options)
        return made.llm_engine

    def params(self, tokens: int) -> Any:
        """Greedy, to the last of `tokens` tokens."""
        return self.module.SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True
        )

    def first_tokens(self, caching: bool, warm: bool) -> dict[str, Any]:
        """(d) 32 requests that share a 512-token prefix: times to first token.

        With `warm` a request with the same prefix was served before, as with the
        system prompt of a chat; without, all 32 are the first.
        """
        rng = random.Random(0)
        prefix = [rng.randrange(10, 1500) for _ in range(512)]
        tails = [
            [rng.randrange(10, 1500) for _ in range(rng.randint(8, 32))]
            for _ in range(33)
        ]
        engine = self.engine(enable_prefix_caching=caching)
        if warm:
            engine.add_request("0", prefix + tails[0], self.params(4))
            while engine.has_unfinished_requests():
                engine.step()
        began, seen = time.perf_counter(), {}
        for number, tail in enumerate(tails[1:], start=1):
            engine.add_request(str(number), prefix + tail, self.params(16))
        while engine.has_unfinished_requests():
            for output in engine.step():
                seen.setdefault(output.request_id, time.perf_counter() - began)
        return {
            "first tokens": sorted(seen.values()),
            "total": time.perf_counter() - began,
            "hit rate": engine.stats()["prefix_hit_rate"],
        }

    def gaps(self, chunk: int | None) -> dict[str, Any]:
        """(e) A 1,800-token prompt arrives among 16 running decodes."""
        rng = random.Random(0)
        chunks = {"enable_chunked_prefill": True, "max_num_batched_tokens": chunk}
        engine = self.engine(**(chunks if chunk else {}))
        for number in range(16):
            ids = [rng.randrange(10, 1500) for _ in range(32)]
            engine.add_request(str(number), ids, self.params(200))
        for _ in range(20):
            engine.step()
        engine.add_request(
            "long", [rng.randrange(10, 1500) for _ in range(1800)], self.params(8)
        )
        began = last = time.perf_counter()
        gaps, tokens, first = [], 0, None
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            tokens += len(outputs)
            ids = {output.request_id for output in outputs}
            if "long" in ids and first is None:
                first = now - began
            if ids - {"long"}:  # every running request gets a token in every step
                gaps.append(now - last)
                last = now
        total = time.perf_counter() - began
        return {
            "longest gap": max(gaps),
            "tokens/s": tokens / total,
            "first token of the long prompt": first,
        }

    def cost(self, count: int, block_size: int = 16) -> dict[str, Any]:
        """Where the time of a decoding step goes with `count` requests running."""
        module = importlib.import_module("folovllm_lite.engine")
        rng = random.Random(0)
        engine = self.engine(max_model_len=MAX_LEN, block_size=block_size)
        for number in range(count):
            ids = [rng.randrange(10, 1500) for _ in range(rng.randint(16, 128))]
            engine.add_request(str(number), ids, self.params(128))
        while engine.scheduler.waiting:
            engine.step()
        spent = {"forward": 0.0, "sample": 0.0}

        def timed(function: Any, name: str) -> Any:
            def wrapper(*args: Any) -> Any:
                began = time.perf_counter()
                try:
                    return function(*args)
                finally:
                    spent[name] += time.perf_counter() - began

            return wrapper

        model, sample = engine.model, module.sample
        model.forward = timed(model.forward, "forward")
        model.logits = timed(model.logits, "forward")
        module.sample = timed(sample, "sample")
        steps, held, began = 0, [], time.perf_counter()
        paused = 0.0
        while steps < 110:
            engine.compute()  # as `LLM.generate` does: outputs are made at the end
            steps += 1
            looked = time.perf_counter()
            stats = engine.stats()
            slots = stats["blocks_held"] * engine.scheduler.memory.block_size
            held.append(1 - stats["tokens_held"] / slots)
            paused += time.perf_counter() - looked
        total = time.perf_counter() - began - paused
        module.sample = sample
        del model.forward, model.logits
        rest = total - sum(spent.values())
        return {
            "step ms": 1000 * total / steps,
            "forward ms": 1000 * spent["forward"] / steps,
            "sample ms": 1000 * spent["sample"] / steps,
            "engine ms": 1000 * rest / steps,
            "engine share": rest / total,
            "waste in blocks": sum(held) / len(held),
        }


def make(name: str, models: dict[str, str]) -> Any:
    """The engine that a process is to be."""
    if name.startswith("folovllm_lite"):
        return Ours(models, **({"enforce_eager": True} if "eager" in name else {}))
    if name == "vllm":
        return VLLM(name, models)
    if name == "ctranslate2":
        return CTranslate2(models)
    return Transformers(models, continuous=name.endswith("batching"))


def main() -> None:
    """Answer jobs, (method, arguments), until there are no more."""
    name, port, key = sys.argv[1:]
    with Client(("localhost", int(port)), authkey=bytes.fromhex(key)) as connection:
        engine = make(name, connection.recv())
        connection.send("ready")
        while (job := connection.recv()) is not None:
            method, args = job
            began = time.perf_counter()
            try:
                found = getattr(engine, method)(*args)
            except Exception as error:  # the driver says it, and goes on
                connection.send(("failed", f"{type(error).__name__}: {error}"))
            else:
                connection.send((time.perf_counter() - began, found))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
