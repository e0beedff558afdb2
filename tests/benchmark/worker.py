"""The same work on folovllm_lite, on vLLM and on transformers, each in its own process.

    python tests/benchmark/peers.py folovllm_lite --out ours.json
    python tests/benchmark/peers.py vllm --out theirs.json      (in vLLM's environment)
    python tests/benchmark/peers.py transformers --out peer.json
    python tests/benchmark/peers.py compare ours.json theirs.json

folovllm_lite and vLLM run the same lines: only the module that LLM and SamplingParams
come from differs. The work is 64 requests of 16 to 128 prompt tokens with 128 new
tokens each, the first of them alone, and 50 prompts in both languages whose texts and
logprobs are kept, to be compared. Greedy, float32, the embedded model.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import time
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[2] / "folovllm_lite" / "tiny" / "model"
NEW_TOKENS, REPEATS = 128, 3
TEXTS = [
    *(f"{name} went to the {place}" for name in ("Lily", "Zorbo", "Ben", "Mia", "Uvial")
      for place in ("park", "lake", "farm", "school", "market")),
    *(f"{name}去{place}" for name in ("小红", "小明", "阿竹", "小刚", "甜甜")
      for place in ("公园", "河边", "农场", "学校", "海边")),
]  # fmt: skip


def prompts() -> list[list[int]]:
    """64 prompts of 16 to 128 random token ids, the same on every run."""
    rng = random.Random(0)
    return [
        [rng.randrange(10, 1500) for _ in range(rng.randint(16, 128))]
        for _ in range(64)
    ]


def speeds(work: Any, count: int) -> list[float]:
    """Tokens per second of `count` requests, run several times after a warm-up."""
    work(count, 8)
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(count, NEW_TOKENS)
        found.append(round(count * NEW_TOKENS / (time.perf_counter() - start), 1))
    return found


def engine(name: str) -> dict[str, Any]:
    """Measure an engine with vLLM's interface."""
    module = importlib.import_module(name)
    llm = module.LLM(model=str(MODEL), dtype="float32", max_model_len=512)

    def params(**fields: Any) -> Any:
        return module.SamplingParams(temperature=0, **fields)

    def work(count: int, tokens: int) -> list:
        asked = [{"prompt_token_ids": ids} for ids in prompts()[:count]]
        chosen = params(max_tokens=tokens, ignore_eos=True)
        return llm.generate(asked, chosen, use_tqdm=False)

    told = llm.generate(TEXTS, params(max_tokens=60, logprobs=3, stop=["! ", "！"]))
    return {
        "64 requests": speeds(work, 64),
        "1 request": speeds(work, 1),
        "tokens": [list(each.outputs[0].token_ids) for each in work(64, NEW_TOKENS)],
        "texts": [each.outputs[0].text for each in told],
        "logprobs": [
            [
                {str(token_id): found.logprob for token_id, found in place.items()}
                for place in each.outputs[0].logprobs
            ]
            for each in told
        ],
    }


def transformers() -> dict[str, Any]:
    """Measure `transformers.generate`, the batch padded on the left."""
    import torch

    from folovllm_lite import ModelConfig, get_model_and_tokenizer

    model, _ = get_model_and_tokenizer(ModelConfig(str(MODEL), dtype="float32"), "cpu")

    @torch.inference_mode()
    def work(count: int, tokens: int) -> None:
        asked = prompts()[:count]
        longest = max(map(len, asked))
        model.generate(
            torch.tensor([[0] * (longest - len(ids)) + ids for ids in asked]),
            attention_mask=torch.tensor(
                [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked]
            ),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )

    return {"64 requests": speeds(work, 64), "1 request": speeds(work, 1)}


def compare(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Print how far two runs agree."""
    pairs = list(zip(first["tokens"], second["tokens"], strict=True))
    print(f"{sum(a == b for a, b in pairs)} of {len(pairs)} requests: the same tokens")
    texts = list(zip(first["texts"], second["texts"], strict=True))
    print(f"{sum(a == b for a, b in texts)} of {len(texts)} texts are the same")
    largest = max(
        abs(a[token_id] - b[token_id])
        for ours, theirs in zip(first["logprobs"], second["logprobs"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
        for token_id in a.keys() & b.keys()
    )
    print(f"largest difference of a logprob: {largest:.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", help="folovllm_lite, vllm, transformers, or compare")
    parser.add_argument("files", nargs="*", type=Path, help="two files to compare")
    parser.add_argument("--out", type=Path, help="where to write what was found")
    args = parser.parse_args()
    if args.what == "compare":
        compare(*(json.loads(file.read_text()) for file in args.files))
        return
    found = transformers() if args.what == "transformers" else engine(args.what)
    print({name: found[name] for name in ("64 requests", "1 request")})
    if args.out:
        args.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
