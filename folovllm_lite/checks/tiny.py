"""A model of a few numbers and a tokenizer of letters, for all suites."""

from string import ascii_lowercase
from typing import Any

from folovllm_lite.qwen3 import Qwen3Config


def tiny_config(**changes: Any) -> Qwen3Config:
    """One layer, one head of four numbers, 16 tokens; `changes` name other sizes."""
    sizes = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": True,
    }
    return Qwen3Config(**{**sizes, **changes})


class Letters:
    """A tokenizer of letters, which leaves out what it doesn't know.

    Args:
        letters: one token each.
        special: the tokens before them; `encode` puts the first in front.
        eos_token_id: its own end of a text.
    """

    chat_template = "<s>role:content;... assistant:"

    def __init__(
        self,
        letters: str = ascii_lowercase,
        special: tuple[str, ...] = ("<s>", "</s>"),
        eos_token_id: int | None = None,
    ):
        self.tokens = (*special, *letters)
        self.all_special_ids = list(range(len(special)))
        self.eos_token_id = eos_token_id

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; "<s>" in it is token 0, as a template writes it."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        marks = [[ids[c] for c in part if c in ids] for part in text.split("<s>")]
        joined = marks[0] + [i for part in marks[1:] for i in (0, *part)]
        return [0, *joined] if add_special_tokens else joined

    def convert_ids_to_tokens(self, token_id: int) -> str:
        """The text of a token."""
        return self.tokens[token_id]

    def decode(self, ids: Any, skip_special_tokens: bool = False, **others: Any) -> str:
        """The texts of tokens, one after another."""
        ids = [ids] if isinstance(ids, int) else ids
        special = self.all_special_ids if skip_special_tokens else []
        return "".join(self.tokens[i] for i in ids if i not in special)

    def apply_chat_template(
        self,
        messages: list,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **more: Any,
    ) -> Any:
        """A conversation as text, with all that it was given for the template."""
        if messages[0]["role"] == "nobody":
            raise RuntimeError("no such role")  # as raise_exception of a template does
        text = "<s>" + "".join(f"{m['role']}:{m['content']};" for m in messages)
        if continue_final_message:
            text = text.removesuffix(";")
        text += "assistant:" if add_generation_prompt else ""
        text += "".join(f" {name}={more[name]}" for name in sorted(more))
        calls = [call for m in messages for call in m.get("tool_calls") or ()]
        text += "".join(f" call {c['function']['arguments']}" for c in calls)
        return self.encode(text, add_special_tokens=False) if tokenize else text
