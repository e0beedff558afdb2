"""Save what the embedded model gives every next token of a few contexts.

    python -m folovllm_lite.tiny.next_tokens

The notebook about sampling comes before those about the model, so it takes real logits
from a file, `next_tokens.json`. `widgets.load_contexts` reads it. Write it again
whenever the model has changed.
"""

import json
from pathlib import Path

import torch

from folovllm_lite.attention import PlainContext
from folovllm_lite.llm import LLM
from folovllm_lite.widgets import NEXT_TOKENS

COMMAND = "python -m folovllm_lite.tiny.next_tokens"

# A long tail of names, a choice between a few places, and a choice in Chinese.
PROMPTS = (
    ("English", "Once upon a time, there was a little girl named"),
    (
        "English",
        "Once upon a time, there was a girl named Lily. She loved to play in the",
    ),
    ("Chinese", "从前，有一个小女孩叫小红。她常常去"),
)


@torch.inference_mode()
def compute(llm: LLM | None = None) -> dict:
    """What the file holds: the vocabulary's texts, and [V] logits for each context."""
    llm = llm or LLM(device="cpu")
    tokenizer = llm.get_tokenizer()
    contexts = []
    for language, prompt in PROMPTS:
        ids = torch.tensor(tokenizer.encode(prompt))
        hidden = llm.model(ids, PlainContext(torch.arange(len(ids))))
        logits = llm.model.logits(hidden[-1]).float()
        rounded = [round(x, 3) for x in logits.tolist()]
        contexts.append({"language": language, "prompt": prompt, "logits": rounded})
    vocabulary = [tokenizer.decode([i]) for i in range(llm.model.config.vocab_size)]
    return {"vocabulary": vocabulary, "contexts": contexts}


def write(path: Path = NEXT_TOKENS) -> None:
    """Run the model and write the file."""
    text = json.dumps(compute(), ensure_ascii=False, separators=(",", ":"))
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
    print(f"wrote {NEXT_TOKENS}")
