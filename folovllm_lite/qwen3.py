"""The transformer, written out: Qwen3, Qwen2/2.5 and Llama from one set of flags.

Tokens of all sequences are packed along T, and the model never asks which token belongs
to which sequence: positions and attention come from the `AttentionContext`. Parameter
names are Hugging Face's, so that a checkpoint's tensors fit without a table of renames.
The module refuses to know where keys and values live, what a batch is, and how a token
is chosen.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from folovllm_lite.attention import AttentionContext
from folovllm_lite.model_loader import (
    checkpoint_dtype,
    load_weights,
    read_config,
    resolve_checkpoint,
    stored_tensors,
    weight_files,
)
from folovllm_lite.utils import get_device

# Architecture -> what its family does without saying so in config.json:
# (qk_norm, bias of q, k and v when "attention_bias" is absent, o_proj has that bias
# too, positions when "max_position_embeddings" is absent)
_FAMILIES = {
    "Qwen3ForCausalLM": (True, False, True, 32768),
    "Qwen2ForCausalLM": (False, True, False, 32768),
    "LlamaForCausalLM": (False, False, True, 2048),
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Rope type -> the settings that it can't do without, and those that it may have
_TRAINED = "original_max_position_embeddings"
_ROPE_TYPES = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), (_TRAINED,)),
    "yarn": (
        (),
        (
            "factor",
            _TRAINED,
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
            "finetuned",
        ),
    ),
}


def _number(name: str, value: object) -> float:
    """A positive setting as a float; JSON may hold NaN, null or a string instead."""
    if type(value) not in (int, float) or not 0 < value < 1e38:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _size(name: str, value: object) -> int:
    """A positive count."""
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


def _architecture(hf: dict) -> str:
    """The architecture of a config.json, if this model builds it with these layers."""
    architectures = hf.get("architectures") or ["none"]
    if not isinstance(architectures, list):
        raise ValueError(f"architectures must be a list, got {architectures!r}")
    architecture = architectures[0]
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise ValueError(
            f"architecture {architecture} is not supported; "
            f"this model serves {', '.join(_FAMILIES)}"
        )
    if hf.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"hidden_act {hf['hidden_act']!r} is not supported, only 'silu'"
        )
    layer_types = hf.get("layer_types") or []
    full = isinstance(layer_types, list) and set(map(str, layer_types)) <= {
        "full_attention"
    }
    if hf.get("use_sliding_window") or not full:
        raise ValueError(
            "sliding-window attention is not supported: use_sliding_window is "
            f"{hf.get('use_sliding_window')}, layer_types {layer_types}"
        )
    return architecture


def _check_sizes(hf: dict) -> None:
    """Raise a ValueError for a size or a flag that is missing or can't be meant."""
    missing = [name for name in _REQUIRED if hf.get(name) is None]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    sizes = ("num_key_value_heads", "head_dim", "max_position_embeddings")
    for name in (*_REQUIRED, *sizes):
        if hf.get(name) is not None:
            _size(name, hf[name])
    for name in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        if type(hf.get(name, False)) is not bool:
            raise ValueError(f"{name} must be true or false, got {hf[name]!r}")


def _read_rope(hf: dict) -> tuple[float, dict | None]:
    """Theta and the scaling, None for no scaling, from either layout of config.json.

    transformers 5 writes rope_parameters; older files rope_theta and rope_scaling.

    Raises:
        ValueError: naming a rope type or a setting that this model doesn't know, that
            is missing, or that has no sensible value.
    """
    key = "rope_scaling" if hf.get("rope_parameters") is None else "rope_parameters"
    rope = {} if hf.get(key) is None else hf[key]
    if hf.get("rope_scaling") and hf["rope_scaling"] != rope:
        raise ValueError(
            f"rope_parameters {rope!r} and rope_scaling {hf['rope_scaling']!r} differ: "
            "leave one of them"
        )
    if not isinstance(rope, dict):
        raise ValueError(f"{key} must be an object, got {rope!r}")
    theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    theta = _number("rope_theta", theta)
    if theta <= 1:
        raise ValueError(f"rope_theta must be above 1, got {theta}")
    part = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    if part != 1.0:
        raise ValueError(f"partial_rotary_factor {part!r} is not supported, only 1.0")
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(rope_type, str) or rope_type not in _ROPE_TYPES:
        raise ValueError(
            f"rope type {rope_type!r} is not supported, only {', '.join(_ROPE_TYPES)}"
        )
    needed, optional = _ROPE_TYPES[rope_type]
    elsewhere = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    strange = sorted(rope.keys() - elsewhere - {*needed, *optional})
    if strange:
        raise ValueError(f"rope type {rope_type!r} has no {', '.join(strange)}")
    lacks = [name for name in needed if rope.get(name) is None]
    if lacks:
        raise ValueError(f"rope type {rope_type!r} lacks {', '.join(lacks)}")
    scaling = {"rope_type": rope_type}
    for name in rope.keys() & {*needed, *optional}:
        value = scaling[name] = rope[name]
        if name in ("truncate", "finetuned"):
            if type(value) is not bool:
                raise ValueError(f"{name} must be true or false, got {value!r}")
        elif value is not None:
            (_size if name == _TRAINED else _number)(name, value)
    if rope_type == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise ValueError(
            f"low_freq_factor {rope['low_freq_factor']} must be below "
            f"high_freq_factor {rope['high_freq_factor']}"
        )
    return theta, scaling if rope_type != "default" else None


@dataclass(frozen=True)
class Qwen3Config:
    """What distinguishes one checkpoint from another; sizes are counts of elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool

    @property
    def max_model_len(self) -> int:
        """Longest text in tokens: what the model was trained for, stretched by a linear
        rope scaling. With yarn and llama3 max_position_embeddings is stretched already.
        As in vLLM 0.32, `_get_and_verify_max_len` of vllm/config/model.py.
        """
        rope = self.rope_scaling or {}
        factor = rope["factor"] if rope.get("rope_type") == "linear" else 1
        return int(self.max_position_embeddings * factor)

    @classmethod
    def from_hf(cls, hf: dict) -> "Qwen3Config":
        """Read a config.json.

        Raises:
            ValueError: naming what this model doesn't build: another architecture, rope
                type, activation, or layers with a sliding window; and every value that
                can't be meant.
        """
        architecture = _architecture(hf)
        qk_norm, default_bias, o_bias, positions = _FAMILIES[architecture]
        theta, scaling = _read_rope(hf)
        _check_sizes(hf)
        heads = hf["num_attention_heads"]
        kv_heads = hf.get("num_key_value_heads") or heads
        if heads % kv_heads:
            raise ValueError(
                f"{heads} query heads can't share {kv_heads} key/value heads"
            )
        bias = hf.get("attention_bias", default_bias)
        if architecture == "Qwen2ForCausalLM":
            bias = True  # fixed by the family; there is no such flag in its config.json
        return cls(
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            intermediate_size=hf["intermediate_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
            rms_norm_eps=_number("rms_norm_eps", hf.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=hf.get("max_position_embeddings") or positions,
            tie_word_embeddings=hf.get("tie_word_embeddings", False),
            qkv_bias=bias,
            o_bias=bias and o_bias,
            mlp_bias=hf.get("mlp_bias", False),
            qk_norm=qk_norm,
        )


def rope_frequencies(config: Qwen3Config) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions, [D / 2] float32, and a scale.

    The scale multiplies cos and sin (1 but for yarn). Source: RoFormer (Su et al. 2021)
    """
    D, base = config.head_dim, config.rope_theta
    frequencies = base ** -(
        torch.arange(0, D, 2, dtype=torch.float32, device="cpu") / D
    )
    if config.rope_scaling is None:
        return frequencies, 1.0
    return _stretched(frequencies, config)


def _stretched(frequencies: Tensor, config: Qwen3Config) -> tuple[Tensor, float]:
    """The same, slowed down for texts longer than those of the training.

    linear: position interpolation (Chen et al. 2023); llama3: the Llama 3.1 release;
    yarn: Peng et al. 2023, eq. 15 and 22.
    """
    rope, D, base = config.rope_scaling, config.head_dim, config.rope_theta
    factor = rope.get("factor")
    if rope["rope_type"] == "linear":
        return frequencies / factor, 1.0
    trained = rope.get(_TRAINED) or config.max_position_embeddings
    if rope["rope_type"] == "llama3":
        # How often a frequency turns within the trained length decides how far it is
        # slowed: not at all above high_freq_factor turns, fully below low_freq_factor.
        turns = trained * frequencies / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (keep + (1 - keep) / factor), 1.0
    factor = factor or config.max_position_embeddings / trained

    def dimension(turns: float) -> float:  # that turns so often in `trained` tokens
        return D * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = dimension(rope.get("beta_fast") or 32)
    last = dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, D - 1)
    ramp = (torch.arange(D // 2, device="cpu") - first) / max(last - first, 0.001)
    keep = 1 - ramp.clamp(0, 1)

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    scale = rope.get("attention_factor")
    if scale is None:
        mscale, mscale_all = rope.get("mscale"), rope.get("mscale_all_dim")
        pair = (mscale, mscale_all) if mscale and mscale_all else (1, 0)
        scale = temperature(pair[0]) / temperature(pair[1])
    return frequencies * (keep + (1 - keep) / factor), float(scale)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle; x [T, H, D], cos, sin [T, 1, D].

    Rolling by D/2 swaps the halves. The minus sign of the rotation stands in `sin`,
    whose first half is negative: one operation less per layer than negating x.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (Zhang and Sennrich 2019).

    rms is sqrt(mean of squares + eps), computed in float32.
    """

    def __init__(self, n: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., n] to a new tensor of the same shape and dtype."""
        wide = x.float()  # the square of 300 is more than float16 can hold
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with RoPE; RMSNorm on q and k where the family has it."""

    def __init__(self, config: Qwen3Config, layer: int):
        super().__init__()
        E, D = config.hidden_size, config.head_dim
        self.layer, self.D = layer, D
        self.q_proj = nn.Linear(E, config.num_heads * D, config.qkv_bias)
        self.k_proj = nn.Linear(E, config.num_kv_heads * D, config.qkv_bias)
        self.v_proj = nn.Linear(E, config.num_kv_heads * D, config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * D, E, config.o_bias)
        self.q_norm = RMSNorm(D, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """Map x [T, E] to [T, E]: what attention adds to the residual stream."""
        q = self.q_proj(x).unflatten(-1, (-1, self.D))  # [T, E] -> [T, Hq, D]
        k = self.k_proj(x).unflatten(-1, (-1, self.D))  # [T, E] -> [T, Hkv, D]
        v = self.v_proj(x).unflatten(-1, (-1, self.D))  # [T, E] -> [T, Hkv, D]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = ctx.attend(self.layer, q, k, v)  # [T, Hq, D]
        return self.o_proj(out.flatten(1))  # [T, Hq * D] -> [T, E]


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        E, M, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(E, M, bias)
        self.up_proj = nn.Linear(E, M, bias)
        self.down_proj = nn.Linear(M, E, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [T, E] to [T, E]: what the MLP adds to the residual stream."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One transformer block: attention and MLP, each added to what came in."""

    def __init__(self, config: Qwen3Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, ctx: AttentionContext
    ) -> Tensor:
        """Map x [T, E] to [T, E]: the residual stream after this block."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Everything between token ids and the head; called `model` in checkpoints."""

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3(nn.Module):
    """The language model.

    Args:
        config: of the checkpoint.

    A new model has PyTorch's random weights; `from_pretrained` loads a checkpoint.
    """

    def __init__(self, config: Qwen3Config):
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.num_parameters = sum(weight.numel() for weight in self.parameters())
        self._frequencies: Tensor | None = None

    def forward(self, token_ids: Tensor, ctx: AttentionContext) -> Tensor:
        """token_ids [T] int64 -> hidden states [T, E], ready for `logits`."""
        x = self.model.embed_tokens(token_ids)  # [T] -> [T, E]
        cos, sin = self._rope(ctx.positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, ctx)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden [..., E] -> [..., V]. The caller picks the rows it needs."""
        return self.lm_head(hidden)

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cos and sin [T, 1, D] of the positions [T], the sign of `rotate` included."""
        if self._frequencies is None or self._frequencies.device != positions.device:
            half, self._scale = rope_frequencies(self.config)
            # Both halves turn alike; a negative frequency has a negative sine.
            self._frequencies = torch.cat((-half, half)).to(positions.device)
        # In float32 whatever the weights are: bfloat16 can't count past 256.
        angles = positions[:, None, None] * self._frequencies  # [T, 1, D]
        cos, sin = angles.cos(), angles.sin()
        if self._scale != 1:
            cos, sin = cos * self._scale, sin * self._scale
        return cos.to(dtype), sin.to(dtype)

    @classmethod
    @torch.inference_mode(False)  # weights that may be trained later
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> "Qwen3":
        """Load a checkpoint directory, or a Hub name, without gradients.

        The module is built on the meta device, so memory holds the weights once.

        Args:
            path: see `model_loader.resolve_checkpoint`, which also says what is raised.
            dtype: of the weights; None is the checkpoint's own.
            device: None picks CUDA when there is one.

        Raises:
            ValueError: a config that this model doesn't build (see
                `Qwen3Config.from_hf`), or that asks for more than the checkpoint
                holds; weights that don't fit, the model (see
                `model_loader.load_weights`) or a CPU's memory.
        """
        import psutil

        path = resolve_checkpoint(path)
        hf_config = read_config(path)
        config = Qwen3Config.from_hf(hf_config)
        _expect_weights(config, path)
        with torch.device("meta"):
            model = cls(config)
        model.to(dtype or checkpoint_dtype(hf_config))
        device, memory = get_device(device), psutil.virtual_memory().total
        size = sum(weight.nbytes for weight in model.parameters())
        if device.type == "cpu" and size > memory:
            raise ValueError(
                f"the weights in {path} take {size:,} bytes in "
                f"{model.lm_head.weight.dtype}, but this machine has {memory:,}"
            )
        model.to_empty(device=device)
        if config.tie_word_embeddings:  # to_empty gave each its own storage
            model.lm_head.weight = model.model.embed_tokens.weight
        load_weights(model, path)
        return model.requires_grad_(False).eval()


def _expect_weights(config: Qwen3Config, path: Path) -> None:
    """Refuse sizes that the headers of the weights contradict, before a layer is built.

    2**31 layers would take for ever to build. What is wrong by less than half gets
    `load_weights`'s list of names.
    """
    c = config
    layer = 3 * c.intermediate_size + 2 * (c.num_heads + c.num_kv_heads) * c.head_dim
    wanted = c.hidden_size * (c.vocab_size + c.num_layers * layer)
    stored = sum(tensor.numel() for _, tensor, _ in stored_tensors(weight_files(path)))
    if wanted > 2 * stored:
        raise ValueError(
            f"config.json describes {c.num_layers} layers, vocab_size {c.vocab_size}, "
            f"hidden_size {c.hidden_size}, intermediate_size {c.intermediate_size}, "
            f"{c.num_heads} heads of {c.head_dim}: at least {wanted} parameters, but "
            f"the weights in {path} are {stored}"
        )
