"""Train the embedded model: `python -m folovllm_lite.tiny.train`.

One command makes the tokenizer, trains the transformer of `folovllm_lite.qwen3` on the
corpus and writes a checkpoint in Hugging Face layout. The run is a function of its seed
(on one machine and thread count), can be stopped with Ctrl-C, and goes on with
--resume.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from folovllm_lite.model_loader import EMBEDDED_MODEL, load_weights
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from folovllm_lite.tiny import corpus

VOCAB_SIZE = 1536
MAX_POSITIONS = 4096
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class Stage:
    """A part of the training with an optimizer and a schedule of its own.

    Args:
        name: what progress bar and files call it, and what it reads: `corpus.MIXES`.
        steps: optimizer steps.
        peak: the highest learning rate.
    """

    name: str
    steps: int
    peak: float


STAGES = (
    Stage("practice", 15000, 4e-3),
    Stage("polish", 6500, 2e-3),
    Stage("focus", 600, 2e-3),
    Stage("finish", 1800, 2e-3),
)

# Documents are drawn, sorted by length and cut into batches a chunk at a time. Sorting
# keeps the padding small: rows of one batch are about equally long.
_CHUNK = 4096
_STATE = "train_state.pt"


def model_config() -> dict:
    """config.json of the embedded model: Qwen3 with 2.8 million parameters."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def train_tokenizer(seed: int, documents: int = 20000) -> Tokenizer:
    """A byte-level BPE tokenizer with 1,536 entries, learned from the corpus.

    Byte-level means that any text can be encoded: a character that the corpus never
    showed is spelled out in the 256 byte tokens of its UTF-8 form.
    """
    rng = random.Random(f"{seed} tokenizer")
    tokenizer = Tokenizer(models.BPE())
    # Chinese has no spaces, so merges would run across words and glue a name to what
    # follows it; each character by itself stays the same token wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[corpus.END, corpus.TURN, corpus.TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=8,
        show_progress=False,
    )
    texts = (corpus.document(rng).text for _ in range(documents))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": corpus.TURN_END,
        "pad_token": corpus.END,
        "additional_special_tokens": [corpus.TURN],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    (directory / "chat_template.jinja").write_text(
        CHAT_TEMPLATE + "\n", encoding="utf-8"
    )


def save_model(
    model: Qwen3, directory: Path, config: dict, about: dict[str, str]
) -> None:
    """Write config.json, generation_config.json and model.safetensors.

    The weights are stored in float16, half the bytes, and computed with in float32, as
    "torch_dtype" says. The difference is measured by `evaluate` like everything else,
    since that loads these files. `about` goes into the header of the safetensors file.
    """
    _write_json(directory / "config.json", config)
    generation = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0}
    _write_json(directory / "generation_config.json", generation)
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    weights = directory / "model.safetensors"
    save_file(tensors, weights, {"format": "pt", **about})
    weights.chmod(0o644)  # save_file leaves it to its owner alone


class BatchContext:
    """An attention context for training: B rows of T tokens, packed to B * T."""

    def __init__(self, rows: int, length: int):
        self.rows = rows
        self.positions = torch.arange(length).repeat(rows)  # [B * T]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each row; q [B * T, Hq, D] -> [B * T, Hq, D]."""
        # [B * T, H, D] -> [B, H, T, D]
        q, k, v = (x.unflatten(0, (self.rows, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


def batches(
    tokenizer: Tokenizer, seed: int | str, tokens: int, mix: str = "practice"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of about `tokens` tokens.

    Each is ids [B, T], padded on the right with -1, and [B, T] how much each token
    counts in the loss: 1, or `Mix.echo`, or 0 for padding.

    The n-th batch depends on the arguments alone.
    """
    for chunk in itertools.count():
        rng = random.Random(f"{seed} chunk {chunk}")
        documents = [corpus.document(rng, mix) for _ in range(_CHUNK)]
        encodings = tokenizer.encode_batch([document.text for document in documents])
        echo = corpus.MIXES[mix].echo
        rows = [
            (encoding.ids, _counts(encoding.offsets, document.echoes, echo))
            for document, encoding in zip(documents, encodings, strict=True)
        ]
        # Cut from the longest down, so that a batch's first row is its length.
        rows.sort(key=lambda row: len(row[0]), reverse=True)
        cut, at = [], 0
        while at < len(rows):
            size = max(1, tokens // len(rows[at][0]))
            cut.append(rows[at : at + size])
            at += size
        rng.shuffle(cut)
        for batch in cut:
            ids = torch.full((len(batch), len(batch[0][0])), -1)
            counts = torch.zeros(ids.shape)
            for i, (doc, weights) in enumerate(batch):
                ids[i, : len(doc)] = torch.tensor(doc)
                counts[i, : len(doc)] = torch.tensor(weights)
            yield ids, counts


def _counts(
    offsets: list[tuple[int, int]], echoes: list[tuple[int, int]], echo: float
) -> list[float]:
    """How much each token counts: `echo` if it lies in an echo, else 1."""
    counts, at = [1.0] * len(offsets), 0
    for start, end in echoes:  # both lists go from left to right
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        while at < len(offsets) and offsets[at][0] < end:
            counts[at] = echo
            at += 1
    return counts


def loss(model: Qwen3, ids: Tensor, counts: Tensor | None = None) -> Tensor:
    """Mean cross-entropy in nats of the next token over a padded batch [B, T].

    Args:
        model: in training.
        ids: [B, T], -1 where there is padding.
        counts: [B, T], the weight of each token in the mean; None is 1 for all.
    """
    inputs, targets = ids[:, :-1], ids[:, 1:]
    hidden = model(inputs.clamp(min=0).flatten(), BatchContext(*inputs.shape))
    keep = (targets != -1).flatten()  # the head is a fifth of the work
    logits, targets = model.logits(hidden[keep]), targets.flatten()[keep]
    if counts is None:
        return F.cross_entropy(logits, targets)
    counts = counts[:, 1:].flatten()[keep]
    nats = F.cross_entropy(logits, targets, reduction="none")
    return (nats * counts).sum() / counts.sum()


def initialize(model: Qwen3, seed: int) -> None:
    """Normal weights of 0.02, less for what writes into the residual stream."""
    generator = torch.Generator().manual_seed(seed)
    depth = 2 * model.config.num_layers
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() == 1:
                weight.fill_(1.0)
            else:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / math.sqrt(depth) if out else 0.02
                weight.normal_(0.0, std, generator=generator)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 2% of the steps, then a cosine down to a fiftieth."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    directory: Path,
    stage: Stage,
    *,
    seed: int = 0,
    batch_tokens: int = 1024,
    resume: bool = False,
    config: dict | None = None,
    save_every: int = 500,
) -> None:
    """Train through one stage and write the checkpoint to `directory`.

    The first stage makes the tokenizer and begins with random weights; any other begins
    with the checkpoint that `directory` holds.

    Args:
        directory: where the checkpoint and, while it runs, `train_state.pt` go.
        stage: what to do.
        seed: of the corpus, the tokenizer and the initial weights.
        batch_tokens: tokens of a batch, padding included.
        resume: continue from `train_state.pt` in `directory`.
        config: config.json to use instead of the embedded model's.
        save_every: steps between two saved states.

    Raises:
        FileNotFoundError, ValueError: nothing to resume, or another run's state.
    """
    state_file = directory / _STATE
    identity = {**asdict(stage), "seed": seed, "batch_tokens": batch_tokens}
    config = config or model_config()
    model = Qwen3(Qwen3Config.from_hf(config)).train()
    weights = list(model.parameters())
    matrices = [w for w in weights if w.dim() > 1]
    vectors = [w for w in weights if w.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": vectors, "weight_decay": 0},
        ],
        lr=stage.peak,
        betas=(0.9, 0.95),
        fused=True,
    )
    start, spent = 0, 0.0
    if resume:
        state = saved_state(directory)
        if state["run"] != identity:
            raise ValueError(
                f"the saved run is {state['run']}, but asked is {identity}"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["seconds"]
    elif stage.name == STAGES[0].name:
        save_tokenizer(train_tokenizer(seed), directory)
        initialize(model, seed)
    else:
        load_weights(model, directory)
        with safe_open(directory / "model.safetensors", "pt") as file:
            spent = float(file.metadata()["seconds"])
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    # The seed of the first stage's corpus is the bare number.
    first = stage.name == STAGES[0].name
    corpus_seed = seed if first else f"{seed} {stage.name}"

    def save(step: int) -> None:
        seconds = spent + time.perf_counter() - began
        state = {
            "run": identity,
            "step": step,
            "seconds": seconds,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        partial = state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(state_file)  # never half a file, whenever the power goes
        about = {**identity, "step": step, "seconds": round(seconds)}
        save_model(
            model, directory, config, {k: str(value) for k, value in about.items()}
        )

    began, step, average = time.perf_counter(), start, None
    data = batches(tokenizer, corpus_seed, batch_tokens, stage.name)
    for _ in range(start):
        next(data)
    bar = tqdm(
        total=stage.steps, initial=start, desc=stage.name, unit="step", mininterval=5
    )
    try:
        while step < stage.steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, stage.steps, stage.peak)
            value = loss(model, *next(data))
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            now = value.item()
            average = now if average is None else 0.98 * average + 0.02 * now
            bar.set_postfix(loss=f"{average:.4f}", refresh=False)
            bar.update()
            if step % save_every == 0:
                save(step)
    finally:
        bar.close()
        save(step)
    state_file.unlink()


def saved_state(directory: Path) -> dict:
    """What a stopped run left in `directory`; FileNotFoundError if there is none."""
    file = directory / _STATE
    if not file.exists():
        raise FileNotFoundError(f"nothing to resume: {file} does not exist")
    return torch.load(file, weights_only=True)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m folovllm_lite.tiny.train",
        description="Train the embedded model from nothing: an hour on two cores.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=EMBEDDED_MODEL, help="directory to write")
    add("--seed", type=int, default=0, help="of corpus and weights (0)")
    add(
        "--scale",
        type=float,
        default=1.0,
        help="share of the steps, for a quick try (1)",
    )
    add("--resume", action="store_true", help="go on where it stopped")
    args = parser.parse_args(argv)
    stages = [replace(s, steps=max(1, round(s.steps * args.scale))) for s in STAGES]
    try:
        if args.resume:
            name = saved_state(args.out)["run"]["name"]
            stages = stages[[stage.name for stage in stages].index(name) :]
        for i, stage in enumerate(stages):
            train(args.out, stage, seed=args.seed, resume=args.resume and i == 0)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; go on with --resume\n")


if __name__ == "__main__":
    main()
