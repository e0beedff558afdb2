"""Tiny random checkpoints in Hugging Face layout, made in a second, for every test; and
a test file that starts itself once more, with Triton interpreted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 320
_TEXT = [
    "Once upon a time there was a little engine.",
    "从前有一个小女孩，她喜欢去公园玩。",
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)

_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Larger than usual: with 0.02 all logits are alike and every bug agrees.
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def make_tokenizer(directory: Path) -> None:
    """A byte-level BPE tokenizer with 320 entries: most Chinese characters are
    split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings), encoding="utf-8"
    )


def make_hf_model(family: str, seed: int = 0, **changes):
    """A random `transformers` model of the family qwen3, qwen2 or llama, in float32."""
    import transformers

    names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
    sizes = {**_SIZES, **({"head_dim": 16} if family == "qwen3" else {}), **changes}
    config = getattr(transformers, names[family] + "Config")(**sizes)
    torch.manual_seed(seed)
    model = getattr(transformers, names[family] + "ForCausalLM")(config)
    with torch.no_grad():  # zeros and ones would hide a bias or a norm that is left out
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.2)
            elif "norm" in name:
                weight.normal_(1, 0.2)
    return model.eval()


def make_checkpoint(directory: Path, family: str = "qwen3", **changes) -> Path:
    """Write such a model and a tokenizer to `directory`, and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    make_hf_model(family, **changes).save_pretrained(directory)
    make_tokenizer(directory)
    return directory


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | changes
    value = {key: item for key, item in value.items() if item is not None}
    path.write_text(json.dumps(value), encoding="utf-8")


# Triton interprets everything in a process, or nothing.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="runs in a process of its own, which another test starts"
)


def run_interpreted(file: str) -> None:
    """Run the tests of `file` that have "interpreted" in their names in a process in
    which Triton interprets.
    """
    if INTERPRETED:
        pytest.skip("this is that process")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", file, "-k", "interpreted"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "passed" in run.stdout
