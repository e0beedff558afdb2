"""Measure the embedded model: `python -m folovllm_lite.tiny.evaluate`.

Because a grammar wrote the corpus, quality is a count and not an opinion: how many
sampled stories the grammar accepts, how many held-out questions are answered right, and
how far the held-out perplexity lies above the grammar's own entropy. Everything runs
through `LLM`, the way a learner uses the model. `--write` puts the figures into the
model card; without it they are only printed.
"""

import argparse
import hashlib
import json
import math
import random
from pathlib import Path

import torch
from safetensors import safe_open

from folovllm_lite.attention import PlainContext
from folovllm_lite.llm import LLM
from folovllm_lite.model_loader import EMBEDDED_MODEL
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.tiny import corpus
from folovllm_lite.tiny.train import STAGES

PROMPTS = {
    "en": [
        "Once upon a time",
        "One day,",
        "{} went to the",
        "{} was a",
        "There was once",
    ],
    "zh": ["从前", "有一天，", "{}去", "{}是一个", "一天早上，"],
}
NAMES = {"en": "English", "zh": "Chinese"}


def prompts(language: str, count: int, seed: int) -> list[str]:
    """Beginnings of stories as a learner types them, one in seven names invented."""
    rng = random.Random(f"{seed} prompts")
    names = corpus.LANGUAGES[language].LEXICONS["child"]
    starts = PROMPTS[language]
    return [
        starts[i % len(starts)].format(names.sample(rng, [])[0].text)
        for i in range(count)
    ]


def stories(llm: LLM, starts: list[str], temperature: float, top_p: float) -> list[str]:
    """A story for each beginning; what does not end within 300 tokens stays open."""
    params = [
        SamplingParams(temperature=temperature, top_p=top_p, max_tokens=300, seed=seed)
        for seed in range(len(starts))
    ]
    outputs = [output.outputs[0] for output in llm.generate(starts, params)]
    return [
        start + output.text + (corpus.END if output.finish_reason == "stop" else "")
        for start, output in zip(starts, outputs, strict=True)
    ]


def accepted(language: str, texts: list[str]) -> float:
    """Share of the texts that the story grammar can have written."""
    grammar = corpus.GRAMMARS[language]["story"]
    return sum(grammar.accepts(text) for text in texts) / len(texts)


@torch.inference_mode()
def perplexity(
    llm: LLM, samples: list[corpus.Sample], grammar: corpus.Grammar, share: float
) -> dict:
    """Per-token perplexity of the model on `samples`, and the least possible one.

    The bound divides the generator's own -log p by the same number of tokens: that of
    the grammar, and that of choosing its language and kind of text in the first place
    (`share`), since the model is not told them either.
    """
    model: Qwen3 = llm.model
    tokenizer = llm.get_tokenizer()
    start = tokenizer.encode(corpus.END)
    nats, tokens = 0.0, 0
    for sample in samples:
        ids = torch.tensor(start + tokenizer.encode(sample.text), device=llm.device)
        positions = torch.arange(len(ids) - 1, device=llm.device)
        logits = model.logits(model(ids[:-1], PlainContext(positions))).float()
        nats += torch.nn.functional.cross_entropy(
            logits, ids[1:], reduction="sum"
        ).item()
        tokens += len(ids) - 1
    bound = (corpus.entropy(samples, grammar) - math.log(share)) * len(samples)
    return {
        "model": math.exp(nats / tokens),
        "bound": math.exp(bound / tokens),
        "ratio": math.exp((nats - bound) / tokens),
        "tokens": tokens,
    }


def questions(
    llm: LLM, language: str, count: int, seed: int
) -> tuple[float, list[str]]:
    """Share of held-out questions answered right, and the wrong answers.

    Right means: word for word what the grammar answers, and the turn ended by the
        model.
    """
    grammar = corpus.GRAMMARS[language]["chat"]
    rng = random.Random(f"{seed} questions")
    samples = [corpus.draw(grammar, rng, held=True) for _ in range(count)]
    params = SamplingParams(temperature=0, max_tokens=64)
    outputs = llm.generate([sample.prompt for sample in samples], params)
    wrong = []
    for sample, output in zip(samples, outputs, strict=True):
        answer = output.outputs[0]
        whole = sample.prompt + answer.text + f"{corpus.TURN_END}\n"
        if answer.finish_reason != "stop" or not grammar.accepts(whole):
            wrong.append(whole)
    return 1 - len(wrong) / count, wrong


def evaluate(directory: Path, scale: float = 1.0, seed: int = 1) -> dict:
    """All figures, as a dict; `scale` < 1 measures on fewer samples."""
    llm = LLM(str(directory), seed=seed)
    last = corpus.MIXES[STAGES[-1].name]
    many = lambda count: max(5, round(count * scale))  # noqa: E731
    figures: dict = {}
    for language in corpus.LANGUAGES:
        grammars = corpus.GRAMMARS[language]
        rng = random.Random(f"{seed} held out")
        texts = stories(llm, prompts(language, many(500), seed), 0.8, 0.95)
        right, wrong = questions(llm, language, many(100), seed)
        start = PROMPTS[language][0]
        dial = {}
        for temperature in (0.2, 1.0, 3.0):
            drawn = stories(llm, [start] * many(50), temperature, 1.0)
            dial[str(temperature)] = {
                "distinct": len(set(drawn)) / len(drawn),
                "accepted": accepted(language, drawn),
            }
        figures[language] = {
            "stories": len(texts),
            "accepted": accepted(language, texts),
            "questions": many(100),
            "right": right,
            "wrong": wrong,
            "perplexity": {
                kind: perplexity(
                    llm,
                    [
                        corpus.draw(grammars[kind], rng, held=True)
                        for _ in range(many(500))
                    ],
                    grammars[kind],
                    last.kinds[kind] / len(last.languages),
                )
                for kind in ("story", "plain")
            },
            "dial": dial,
        }
    return figures


def card(directory: Path, figures: dict) -> str:
    """The model card, in Markdown."""
    weights = directory / "model.safetensors"
    with safe_open(weights, "pt") as file:
        about = file.metadata()
        parameters = sum(math.prod(file.get_slice(k).get_shape()) for k in file.keys())
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    megabytes = weights.stat().st_size / 1e6
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    lines = [
        "# Folo, the embedded model",
        "",
        "A Qwen3-architecture language model that fits into this repository. It tells",
        "short children's stories, answers easy questions and adds small numbers, in",
        "English and Chinese. It knows nothing else: its whole world is the grammar in",
        "`folovllm_lite/tiny/english.py` and `chinese.py`, which wrote its corpus.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {parameters:,} (tied embeddings) |",
        "| layers, hidden, heads, KV heads, head size | "
        f"{config['num_hidden_layers']}, {config['hidden_size']}, "
        f"{config['num_attention_heads']}, "
        f"{config['num_key_value_heads']}, {config['head_dim']} |",
        f"| vocabulary | {config['vocab_size']:,}, byte-level BPE |",
        f"| file | {megabytes:.1f} MB, float16 (computed in float32) |",
        f"| sha256 of model.safetensors | `{digest}` |",
        f"| made by | `python -m folovllm_lite.tiny.train --seed {about['seed']}`, "
        f"{int(about['seconds']) // 60} minutes on two cores |",
        "",
        "## Measured quality",
        "",
        "By `python -m folovllm_lite.tiny.evaluate`, on texts that training never saw",
        "(one text in 32 is held out by its hash) and on prompts that a learner types.",
        "",
        "| | English | Chinese |",
        "|---|---|---|",
    ]

    def row(label: str, cell) -> None:
        cells = " | ".join(cell(figures[language]) for language in NAMES)
        lines.append(f"| {label} | {cells} |")

    both = figures["en"]
    row(
        f"stories accepted by the grammar, of {both['stories']} "
        "(temperature 0.8, top_p 0.95)",
        lambda f: f"{f['accepted']:.1%}",
    )
    row(
        f"held-out questions answered right, of {both['questions']} "
        "(greedy, turn ended by the model)",
        lambda f: f"{f['right']:.0%}",
    )
    for kind, label in (("story", "stories"), ("plain", "plain questions")):
        row(
            f"held-out perplexity of {label} / the generator's bound",
            lambda f, kind=kind: "{model:.4f} / {bound:.4f} = {ratio:.3f}".format(
                **f["perplexity"][kind]
            ),
        )
    for temperature, word in (("0.2", "repeat"), ("1.0", "vary"), ("3.0", "break")):
        row(
            f"temperature {temperature}: stories {word} (distinct, accepted)",
            lambda f, t=temperature: "{distinct:.0%}, {accepted:.0%}".format(
                **f["dial"][t]
            ),
        )
    lines += [
        "",
        "## Limits",
        "",
        "Trained on texts of up to about 400 tokens. Names that it has never seen",
        "are copied well as long as they look like names; a word or a question from",
        "outside its grammar gets an answer from inside it.",
        "License: Apache-2.0, like the rest.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m folovllm_lite.tiny.evaluate",
        description="Measure the embedded model against its grammar (some minutes).",
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="directory")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the samples")
    parser.add_argument("--write", action="store_true", help="write the model card")
    args = parser.parse_args(argv)
    figures = evaluate(args.model, args.scale)
    text = card(args.model, figures)
    print(text)
    for language in NAMES:
        for wrong in figures[language]["wrong"]:
            print("answered wrong:", repr(wrong))
    if args.write:
        (args.model / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
