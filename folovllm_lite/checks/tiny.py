"""A model of a few numbers, for every suite that needs one."""

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
