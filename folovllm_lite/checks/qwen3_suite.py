"""What has to be true of the transformer (notebook 06)."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from folovllm_lite import qwen3 as package
from folovllm_lite.checks.attention_suite import expect_close
from folovllm_lite.checks.harness import Suite, expect, expect_error, fail
from folovllm_lite.checks.tiny import tiny_config


@contextmanager
def _untouched() -> Iterator[None]:
    """Without gradients, and with the caller's random numbers left alone."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


_SUITE = qwen3 = Suite(
    package,
    """Judge the transformer, or some of its pieces: Qwen3Config, rope_frequencies,
    rotate, RMSNorm, Attention, MLP, Layer, Qwen3.

    `checks.qwen3(MLP=Mine)` judges one class, `checks.qwen3(module)` all of a module.
    Modules are made as the package makes them (RMSNorm(n, eps), Attention(config,
    layer), MLP(config), Layer(config, layer), Qwen3(config)) and named as in Hugging
    Face's checkpoints. What rotate, Attention and
    Layer get as cos and sin is [T, 1, D] for all D dimensions: the two halves of cos
    are alike, and the first half of sin is negative. What a Qwen3 hands to layers of
    its own is its own business.
    """,
    inside=_untouched,
)


# ----- a reference that shares nothing with the package, in float64

# Every size differs from every other, and eps is large enough to be seen.
_CONFIG = tiny_config(
    vocab_size=11,
    hidden_size=6,
    intermediate_size=10,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    rms_norm_eps=0.05,
    rope_theta=100.0,
    max_position_embeddings=2048,
)
_QWEN2 = replace(_CONFIG, qk_norm=False, qkv_bias=True)
_LLAMA = replace(_CONFIG, qk_norm=False)
_BIASED = replace(_CONFIG, qkv_bias=True, o_bias=True, mlp_bias=True)
_FAMILIES = (("llama", _LLAMA), ("qwen2", _QWEN2), ("qwen3", _CONFIG))
_HF = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 6,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "rms_norm_eps": 0.05,
    "rope_theta": 100.0,
    "max_position_embeddings": 2048,
    "dtype": "float32",
}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _shapes(c: package.Qwen3Config) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of this config holds: name -> shape."""
    E, inside, D = c.hidden_size, c.intermediate_size, c.head_dim
    q, kv = c.num_heads * D, c.num_kv_heads * D
    found = {"model.embed_tokens.weight": (c.vocab_size, E), "model.norm.weight": (E,)}
    for layer in range(c.num_layers):
        for name, rows, columns, bias in (
            ("self_attn.q_proj", q, E, c.qkv_bias),
            ("self_attn.k_proj", kv, E, c.qkv_bias),
            ("self_attn.v_proj", kv, E, c.qkv_bias),
            ("self_attn.o_proj", E, q, c.o_bias),
            ("mlp.gate_proj", inside, E, c.mlp_bias),
            ("mlp.up_proj", inside, E, c.mlp_bias),
            ("mlp.down_proj", E, inside, c.mlp_bias),
        ):
            found[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
            if bias:
                found[f"model.layers.{layer}.{name}.bias"] = (rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{name}.weight"] = (E,)
        if c.qk_norm:
            for name in ("q_norm", "k_norm"):
                found[f"model.layers.{layer}.self_attn.{name}.weight"] = (D,)
    if not c.tie_word_embeddings:
        found["lm_head.weight"] = (c.vocab_size, E)
    return found


def _tensors(c: package.Qwen3Config) -> dict[str, Tensor]:
    """Random numbers for it: no norm is all ones, no bias zero."""
    made = {}
    for seed, (name, shape) in enumerate(_shapes(c).items()):
        size = 0.4 if len(shape) == 1 else 1 if "embed" in name else 0.6
        made[name] = size * _numbers(*shape, seed=seed) + ("norm" in name)
    return made


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _load(module: nn.Module, tensors: dict[str, Tensor], what: str) -> nn.Module:
    """Give the module these numbers, or fail with the names that don't fit."""
    shapes = {name: list(t.shape) for name, t in module.state_dict().items()}
    for name, tensor in tensors.items():
        if name not in shapes:
            have = ", ".join(sorted(shapes)) or "none"
            fail(f"{what}: parameters", have, f"one called {name}")
        expect(f"{what}: shape of {name}", shapes[name], list(tensor.shape))
    extra = sorted(shapes.keys() - tensors.keys() - {"lm_head.weight"})
    if extra:
        fail(f"{what}: parameters", f"{', '.join(extra)} too", "only a checkpoint's")
    module.load_state_dict(tensors, strict=False)
    return module.eval()


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs as complex numbers: x [T, H, D], angles [T, D / 2]."""
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.exp(1j * angles)[:, None]
    return torch.cat((turned.real, turned.imag), -1)


def _angles(c: package.Qwen3Config, positions: Tensor) -> Tensor:
    pairs = range(c.head_dim // 2)
    each = [c.rope_theta ** (-2 * i / c.head_dim) for i in pairs]
    return positions[:, None].double() * torch.tensor(each, dtype=torch.float64)


def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cos and sin [T, 1, D] in the contract's form, of angles [T, D / 2]."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((cos, cos), -1).float(), torch.cat((-sin, sin), -1).float()


def _qkv(
    w: dict[str, Tensor], c: package.Qwen3Config, x: Tensor, angles: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What attention hands to its context."""
    q, k, v = (
        _linear(w, f"{name}_proj", x).unflatten(-1, (-1, c.head_dim)) for name in "qkv"
    )
    if c.qk_norm:
        q = _norm(q, w["q_norm.weight"], c.rms_norm_eps)
        k = _norm(k, w["k_norm.weight"], c.rms_norm_eps)
    return _turn(q, angles), _turn(k, angles), v


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _mlp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    gate = _linear(w, "gate_proj", x)
    gated = gate * gate.sigmoid() * _linear(w, "up_proj", x)
    return _linear(w, "down_proj", gated)


def _layer(
    w: dict[str, Tensor],
    c: package.Qwen3Config,
    x: Tensor,
    angles: Tensor,
    seen: Tensor,
) -> Tensor:
    heads = _part(w, "self_attn.")
    normed = _norm(x, w["input_layernorm.weight"], c.rms_norm_eps)
    out = _attend(*_qkv(heads, c, normed, angles), seen)
    x = x + _linear(heads, "o_proj", out.flatten(1))
    normed = _norm(x, w["post_attention_layernorm.weight"], c.rms_norm_eps)
    return x + _mlp(_part(w, "mlp."), normed)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, seen).transpose(0, 1)


def _hidden(
    tensors: dict[str, Tensor],
    c: package.Qwen3Config,
    ids: Tensor,
    positions: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """What a Qwen3 has to return: hidden states [T, E] of the tokens."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    positions = torch.arange(len(ids)) if positions is None else positions
    seen = _causal(len(ids)) if seen is None else seen
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(c.num_layers):
        part = _part(w, f"model.layers.{layer}.")
        x = _layer(part, c, x, _angles(c, positions), seen)
    return _norm(x, w["model.norm.weight"], c.rms_norm_eps)


def _causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


class _Context:
    """Attention over what it remembers of each layer and the new tokens.

    `calls` holds what the model handed over; `answer`, if given, is what it gets back.
    """

    def __init__(
        self,
        positions: Tensor,
        seen: Tensor | None = None,
        past: dict[int, tuple[Tensor, Tensor]] | None = None,
        answer: Tensor | None = None,
    ):
        self.positions = positions
        self.seen = _causal(len(positions)) if seen is None else seen
        self.past = {} if past is None else past
        self.answer = answer
        self.calls: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls.append((layer, q, k, v))
        if self.answer is not None:
            return self.answer
        for got, name in ((q, "q"), (k, "k"), (v, "v")):
            wanted = _CONFIG.num_heads if name == "q" else _CONFIG.num_kv_heads
            shape = [len(self.positions), wanted, _CONFIG.head_dim]
            expect(f"shape of the {name} given to ctx.attend", list(got.shape), shape)
        if layer in self.past:
            k, v = (torch.cat(x) for x in zip(self.past[layer], (k, v), strict=True))
        self.past[layer] = k, v
        q, k, v = (x.double() for x in (q, k, v))
        return _attend(q, k, v, self.seen).to(self.calls[-1][1].dtype)


# ----- the config


@_SUITE.property("Qwen3Config", hint="which key of config.json is which field?")
def _sizes(p: SimpleNamespace) -> None:
    """A complete config.json is read field by field."""
    made = p.Qwen3Config.from_hf(_HF)
    for name, wanted in vars(_CONFIG).items():
        expect(f"config.json of a small Qwen3: {name}", getattr(made, name), wanted)


@_SUITE.property(
    "Qwen3Config", hint="three families, three answers: a table says it best"
)
def _family_defaults(p: SimpleNamespace) -> None:
    """What a family does without saying so is known: Qwen3 normalises q and k, Qwen2
    always has a bias on q, k and v but none on o, Llama has neither.
    """
    for family, bias, wanted in (
        ("Qwen3", None, [True, False, False]),
        ("Qwen3", True, [True, True, True]),
        ("Qwen2", None, [False, True, False]),
        ("Qwen2", False, [False, True, False]),
        ("Llama", None, [False, False, False]),
        ("Llama", True, [False, True, True]),
    ):
        hf = {**_HF, "architectures": [f"{family}ForCausalLM"]}
        if bias is not None:
            hf["attention_bias"] = bias
        made = p.Qwen3Config.from_hf(hf)
        said = "" if bias is None else f", attention_bias {bias}"
        given = f"{family}{said}: qk_norm, qkv_bias, o_bias"
        expect(given, [made.qk_norm, made.qkv_bias, made.o_bias], wanted)


@_SUITE.property(
    "Qwen3Config", hint="a key may be there, absent, or null: all three occur"
)
def _absent(p: SimpleNamespace) -> None:
    """Absent keys have defaults: head_dim is hidden_size / heads, every query head has
    its own key/value head, and the rest is as transformers has it.
    """
    kept = ("architectures", *_REQUIRED)
    hf = {name: _HF[name] for name in kept} | {"hidden_size": 8}
    null = {"head_dim": None, "num_key_value_heads": None}
    for given, change in (("absent", {}), ("both null", null)):
        made = p.Qwen3Config.from_hf({**hf, **change})
        given = f"hidden_size 8, 4 heads, head_dim and key/value heads: {given}"
        expect(f"{given}: head_dim", made.head_dim, 2)
        expect(f"{given}: num_kv_heads", made.num_kv_heads, 4)
    for name, wanted in (
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10000.0),
        ("rope_scaling", None),
        ("tie_word_embeddings", False),
        ("mlp_bias", False),
    ):
        got = getattr(made, name)
        if got != wanted:  # expect would round 1e-6 to 0
            fail(f"only what is required: {name}", got, wanted)
    for name in ("tie_word_embeddings", "mlp_bias"):
        got = getattr(p.Qwen3Config.from_hf({**hf, name: True}), name)
        expect(f"{name} true", got, True)
    for family, wanted in (("Qwen3", 32768), ("Qwen2", 32768), ("Llama", 2048)):
        made = p.Qwen3Config.from_hf({**hf, "architectures": [f"{family}ForCausalLM"]})
        expect(
            f"{family}: max_position_embeddings", made.max_position_embeddings, wanted
        )


@_SUITE.property(
    "Qwen3Config", hint="look first, then build: which keys can't default?"
)
def _required(p: SimpleNamespace) -> None:
    """What is missing is a ValueError that names all of it, and so is a size that no
    model has.
    """
    read = p.Qwen3Config.from_hf
    without = {k: v for k, v in _HF.items() if k != "vocab_size"}
    expect_error("no vocab_size", lambda: read(without), ValueError, "vocab_size")
    without = {"architectures": _HF["architectures"]}
    expect_error(
        "nothing but architectures",
        lambda: read(without),
        ValueError,
        *_REQUIRED,
    )
    for name, value in (
        ("num_hidden_layers", 0),
        ("hidden_size", -6),
        ("vocab_size", "11"),
        ("intermediate_size", 2.5),
        ("num_key_value_heads", True),
        ("num_hidden_layers", 2**31),
    ):
        call = lambda n=name, v=value: read({**_HF, n: v})  # noqa: E731
        expect_error(f"{name} {value!r}", call, ValueError, name, repr(value))
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    made = read({**_HF, **dict.fromkeys(sizes, 1)})
    got = [made.num_layers, made.num_heads, made.num_kv_heads]
    expect(f"1 for {', '.join(sizes)}", got, [1, 1, 1])


@_SUITE.property(
    "Qwen3Config", hint="JSON may hold null, NaN, a string, or a key with a slip in it"
)
def _no_sense(p: SimpleNamespace) -> None:
    """A value that can't be meant is a ValueError that names it: an eps, theta or
    factor that is no positive number, a length in words, a setting that no rope type
    has.
    """
    for change, *words in (
        ({"rms_norm_eps": math.nan}, "rms_norm_eps", "nan"),
        ({"rms_norm_eps": None}, "rms_norm_eps", "None"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_theta": math.nan}, "rope_theta", "nan"),
        ({"rope_theta": -100.0}, "rope_theta", "-100.0"),
        ({"rope_theta": "100"}, "rope_theta", "'100'"),
        ({"rope_theta": 1.0}, "rope_theta", "1.0"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta", "None"),
        (
            {"rope_parameters": {"rope_theta": 9.0}, "rope_scaling": _LLAMA3},
            "rope_parameters",
            "rope_scaling",
        ),
        ({"max_position_embeddings": "lots"}, "max_position_embeddings", "'lots'"),
        ({"rope_scaling": "linear"}, "rope_scaling", "'linear'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor", "0"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor", "'2'"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "fator": 4}}, "fator"),
        ({"rope_scaling": {"type": "yarn", "factors": 2.0}}, "factors"),
        ({"rope_scaling": {"type": "yarn", "beta_fast": -1}}, "beta_fast", "-1"),
        ({"rope_scaling": {**_LLAMA3, "low_freq_factor": 4}}, "low_freq_factor"),
        ({"rope_scaling": {"type": "yarn", "truncate": "no"}}, "truncate", "'no'"),
        ({"rope_scaling": {**_LLAMA3, _TRAINED: 64.5}}, _TRAINED, "64.5"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings", "'no'"),
        ({"mlp_bias": None}, "mlp_bias", "None"),
        ({"architectures": "Qwen3ForCausalLM"}, "architectures"),
    ):
        call = lambda hf={**_HF, **change}: p.Qwen3Config.from_hf(hf)  # noqa: E731
        expect_error(str(change)[:80], call, ValueError, *words)


@_SUITE.property(
    "Qwen3Config", hint="was the model trained on it, or is it stretched to it?"
)
def _longest(p: SimpleNamespace) -> None:
    """max_model_len is what the model was trained for times the factor of linear
    scaling; max_position_embeddings of yarn and llama3 is stretched already.
    """
    linear = {"rope_type": "linear", "factor": 4.0}
    yarn = {"rope_type": "yarn", "factor": 2.5}
    trained = {"original_max_position_embeddings": 64}
    for positions, scaling, wanted in (
        (512, None, 512),
        (512, linear, 2048),
        (512, {**yarn, **trained}, 512),
        (512, yarn, 512),
        (512, {"rope_type": "yarn", **trained}, 512),
        (1024, {**_LLAMA3, **trained}, 1024),
    ):
        hf = {**_HF, "max_position_embeddings": positions, "rope_scaling": scaling}
        given = f"max_position_embeddings {positions}, rope_scaling {scaling}"
        expect(
            f"{given}: max_model_len", p.Qwen3Config.from_hf(hf).max_model_len, wanted
        )


@_SUITE.property(
    "Qwen3Config", hint="how many query heads would the last key/value head serve?"
)
def _divisible(p: SimpleNamespace) -> None:
    """Query heads that can't share the key/value heads evenly are a ValueError with
    both numbers.
    """
    for heads, kv_heads in ((4, 3), (3, 2), (2, 4)):
        hf = {**_HF, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        call = lambda hf=hf: p.Qwen3Config.from_hf(hf)  # noqa: E731
        given = f"{heads} query heads, {kv_heads} key/value heads"
        expect_error(given, call, ValueError, str(heads), str(kv_heads))


@_SUITE.property(
    "Qwen3Config", hint="a model that ignores one of these keys answers, but wrongly"
)
def _refusals(p: SimpleNamespace) -> None:
    """What this model doesn't build is refused by name: other architectures,
    activations, rope types, sliding windows.
    """
    for change, word in (
        ({"architectures": ["MistralForCausalLM"]}, "Mistral"),
        ({"architectures": None}, "architecture"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True}, "sliding"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ):
        call = lambda hf={**_HF, **change}: p.Qwen3Config.from_hf(hf)  # noqa: E731
        expect_error(str(change), call, ValueError, word)
    fine = {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "sliding_window": 4096,
        "layer_types": ["full_attention"] * 2,
        "partial_rotary_factor": 1.0,
    }
    made = p.Qwen3Config.from_hf({**_HF, **fine})
    expect("all of these at what is supported: hidden_size", made.hidden_size, 6)


@_SUITE.property(
    "Qwen3Config", hint="two layouts of config.json say the same: which keys has each?"
)
def _rope_layouts(p: SimpleNamespace) -> None:
    """Theta and scaling are read from rope_parameters (transformers 5) and from
    rope_theta and rope_scaling (older), and the file's dict stays as it was.
    """
    hf = {name: value for name, value in _HF.items() if name != "rope_theta"}
    scaled = {"rope_type": "linear", "factor": 2.0}
    for change, theta, scaling in (
        ({"rope_theta": 100.0}, 100.0, None),
        ({"rope_theta": 100.0, "rope_scaling": None}, 100.0, None),
        ({"rope_theta": 100.0, "rope_scaling": scaled}, 100.0, ["linear", 2.0]),
        (
            {"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            100.0,
            ["linear", 2.0],
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
            100.0,
            None,
        ),
        ({"rope_parameters": {**scaled, "rope_theta": 9}}, 9.0, ["linear", 2.0]),
        (
            {
                "rope_theta": 100.0,
                "rope_scaling": {**_YARN, "truncate": False, "attention_factor": None},
            },
            100.0,
            ["yarn", 4.0],
        ),
    ):
        before = json.dumps(change)
        made = p.Qwen3Config.from_hf({**hf, **change})
        expect(f"{before}: rope_theta", made.rope_theta, theta)
        got = made.rope_scaling and [
            made.rope_scaling.get("rope_type"),
            made.rope_scaling.get("factor"),
        ]
        expect(f"{before}: rope_scaling's rope_type, factor", got, scaling)
        expect(f"{before}: the dict itself, afterwards", json.dumps(change), before)


# ----- rope


def _expect_frequencies(
    p: SimpleNamespace, given: str, wanted: list[float], **changes: Any
) -> None:
    config = replace(_CONFIG, **changes)
    got, _ = p.rope_frequencies(config)
    expect(f"{given}: how many", list(got.shape), [len(wanted)])
    expect(f"{given}: dtype", got.dtype, torch.float32)
    if any(abs(a / b - 1) > 1e-4 for a, b in zip(got.tolist(), wanted, strict=True)):
        fail(given, *([float(f"{x:.4g}") for x in y] for y in (got.tolist(), wanted)))


def _scale(p: SimpleNamespace, **changes: Any) -> float:
    return float(p.rope_frequencies(replace(_CONFIG, **changes))[1])


@_SUITE.property(
    "rope_frequencies", hint="the exponents run from 0 up to, but not including, 1"
)
def _rope_default(p: SimpleNamespace) -> None:
    """Pair i of D / 2 turns by theta^(-2i/D) a position: the first by 1, each next one
    slower; the scale is 1.
    """
    _expect_frequencies(p, "D = 2", [1.0], head_dim=2)
    _expect_frequencies(p, "D = 4, theta 100", [1, 0.1], head_dim=4)
    wanted = [1, 0.1, 0.01, 0.001]
    _expect_frequencies(p, "D = 8, theta 1e4", wanted, head_dim=8, rope_theta=1e4)
    expect("the scale", _scale(p), 1.0)


@_SUITE.property(
    "rope_frequencies", hint="position 4 has to look like position 1 did in training"
)
def _rope_linear(p: SimpleNamespace) -> None:
    """Linear scaling slows every pair by the factor; the scale stays 1."""
    rope = {"rope_type": "linear", "factor": 4.0}
    _expect_frequencies(p, "theta 100, factor 4", [0.25, 0.025], rope_scaling=rope)
    expect("the scale", _scale(p, rope_scaling=rope), 1.0)


_TRAINED = "original_max_position_embeddings"
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Of D = 16 and theta 1e4
_YARN_16 = [1, 0.237171, 0.05, 0.00790569, 0.0025, 0.000790569, 0.00025, 0.0000790569]


@_SUITE.property(
    "rope_frequencies",
    hint="count how often each pair turns within the trained length, and compare that "
    "with low_freq_factor and high_freq_factor",
)
def _rope_llama3(p: SimpleNamespace) -> None:
    """Scaling by llama3 keeps pairs that turn often in the trained length, slows those
    that hardly turn by the factor, and blends between; the scale stays 1.
    """
    with_ = {"rope_scaling": _LLAMA3, "head_dim": 8}
    given = "D = 8, factor 8, trained on 64, turns between 1 and 4 are blended"
    _expect_frequencies(
        p,
        f"{given}, theta 1e8",
        [1, 1.25e-3, 1.25e-5, 1.25e-7],
        rope_theta=1e8,
        **with_,
    )
    _expect_frequencies(
        p,
        f"{given}, theta 100",
        [1, 0.244385, 0.0130423, 0.00395285],
        rope_theta=100.0,
        **with_,
    )
    expect("the scale", _scale(p, **with_), 1.0)


@_SUITE.property(
    "rope_frequencies",
    hint="the ramp runs over the number of the pair, between the pairs that turn "
    "beta_fast (32) and beta_slow (1) times in the trained length",
)
def _rope_yarn(p: SimpleNamespace) -> None:
    """Scaling by yarn keeps fast pairs, slows slow ones by the factor, and ramps
    linearly over the pairs between.
    """
    slow = _YARN_16[4:]
    with_ = {"rope_scaling": _YARN, "rope_theta": 1e4, "head_dim": 16}
    given = "D = 16, theta 1e4, factor 4, trained on 64"
    _expect_frequencies(p, given, _YARN_16, **with_)
    with_["rope_scaling"] = {**_YARN, "beta_fast": 8.0, "beta_slow": 0.05}
    given += ", beta_fast 8, beta_slow 0.05"
    _expect_frequencies(
        p, given, [1, 0.268794, 0.07, 0.0173925, 0.004, *slow[1:]], **with_
    )
    with_["rope_scaling"] = {**_YARN, "truncate": False}
    given = "D = 16, theta 1e4, factor 4, trained on 64, truncate false"
    _expect_frequencies(p, given, [1, 0.198584, 0.0255952, 0.00790569, *slow], **with_)
    with_["rope_scaling"] = {"rope_type": "yarn", _TRAINED: 64}
    given = "D = 16, theta 1e4, no factor, trained on 64, max_position_embeddings 256"
    _expect_frequencies(p, given, _YARN_16, **with_, max_position_embeddings=256)
    with_["rope_scaling"] = {**_YARN, _TRAINED: 4096}
    given = "D = 16, theta 1e4, factor 4, trained on 4096"
    wanted = [1, 0.316228, 0.1, 0.0256935, 0.00625, 0.0013835, *slow[2:]]
    _expect_frequencies(p, given, wanted, **with_)
    with_["rope_scaling"]["truncate"] = False
    wanted[3:6] = 0.0286136, 0.00655697, 0.00128563
    _expect_frequencies(p, f"{given}, truncate false", wanted, **with_)
    with_["rope_scaling"] = {**_YARN, "beta_slow": 1e-9}
    wanted = [1, 0.300416, 0.09, 0.0268794, 0.008, 0.00237171, 0.0007, 0.000205548]
    given = "D = 16, theta 1e4, factor 4, trained on 64, beta_slow 1e-9"
    _expect_frequencies(p, given, wanted, **with_)


@_SUITE.property("rope_frequencies", hint="yarn also has a temperature (its eq. 22)")
def _rope_yarn_scale(p: SimpleNamespace) -> None:
    """The scale of yarn is 0.1 ln(factor) + 1, unless attention_factor says another, or
    mscale and mscale_all_dim, weights of that logarithm: then it is a ratio.
    """
    expect("factor 4", _scale(p, rope_scaling=_YARN), 0.1 * math.log(4) + 1)
    for factor in (1.0, 0.5):
        rope = {**_YARN, "factor": factor}
        expect(f"factor {factor:g}", _scale(p, rope_scaling=rope), 1.0)
    with_ = {**_YARN, "attention_factor": 1.5}
    expect("attention_factor 1.5", _scale(p, rope_scaling=with_), 1.5)
    wanted = (0.07 * math.log(4) + 1) / (0.12 * math.log(4) + 1)
    with_ = {**_YARN, "mscale": 0.7, "mscale_all_dim": 1.2}
    expect("mscale 0.7, mscale_all_dim 1.2", _scale(p, rope_scaling=with_), wanted)
    got = _scale(p, rope_scaling={**_YARN, "mscale": 0.7})
    expect("mscale 0.7 alone", got, 0.1 * math.log(4) + 1)


# ----- rotate


@_SUITE.property(
    "rotate", hint="sin has its minus sign already: how many are left for you to write?"
)
def _rotate_sign(p: SimpleNamespace) -> None:
    """A pair turns counterclockwise: [1, 0] by a quarter becomes [0, 1], and [0, 1]
    becomes [-1, 0].
    """
    for turn, angle in (("no turn", 0), ("a quarter", math.pi / 2), ("0.6435", 0.6435)):
        cos, sin = _cos_sin(torch.tensor([[angle]]))
        for x in ([1.0, 0.0], [0.0, 1.0]):
            pair = complex(*x) * complex(math.cos(angle), math.sin(angle))
            given = (
                f"{x} by {turn}: sin [-{math.sin(angle):.4g}, {math.sin(angle):.4g}]"
            )
            wanted = torch.tensor([[[pair.real, pair.imag]]])
            expect_close(given, p.rotate(torch.tensor([[x]]), cos, sin), wanted)


@_SUITE.property(
    "rotate", hint="which element is the partner of element 0 when D is 4?"
)
def _rotate_pairs(p: SimpleNamespace) -> None:
    """The partner of element i is element i + D/2, not the next one."""
    quarter = math.pi / 2
    for angles, x, wanted in (
        ([quarter, 0], [1.0, 2.0, 3.0, 4.0], [-3.0, 2.0, 1.0, 4.0]),
        ([0, quarter], [1.0, 2.0, 3.0, 4.0], [1.0, -4.0, 3.0, 2.0]),
        (
            [0, 0, quarter],
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [1.0, 2.0, -6.0, 4.0, 5.0, 3.0],
        ),
    ):
        cos, sin = _cos_sin(torch.tensor([angles]))
        names = ", ".join("a quarter" if angle else "no turn" for angle in angles)
        got = p.rotate(torch.tensor([[x]]), cos, sin)
        expect_close(f"{x}, turns: {names}", got, torch.tensor([[wanted]]))


@_SUITE.property("rotate", hint="a rotation changes where a vector points, only that")
def _rotate_length(p: SimpleNamespace) -> None:
    """Lengths stay, every token turns by its own angles, and all its heads alike."""
    x = _numbers(3, 2, 4)
    angles = _angles(_CONFIG, torch.tensor([0, 1, 700]))
    got = p.rotate(x, *_cos_sin(angles))
    given = "3 tokens at 0, 1 and 700, 2 heads, D = 4"
    expect(f"{given}: shape", list(got.shape), [3, 2, 4])
    expect_close(f"{given}: lengths", got.norm(dim=-1), x.norm(dim=-1))
    expect_close(given, got, _turn(x.double(), angles))


@_SUITE.property("rotate", hint="turning q by a and k by b: what is left in q·k?")
def _rotate_distance(p: SimpleNamespace) -> None:
    """A score depends on the distance alone: q·k is the same at 2 and 0, 7 and 5, 900
    and 898.
    """
    q, k = _numbers(1, 1, 4), _numbers(1, 1, 4, seed=1)

    def score(at: int, key: int) -> float:
        turned = [
            p.rotate(x, *_cos_sin(_angles(_CONFIG, torch.tensor([position]))))
            for x, position in ((q, at), (k, key))
        ]
        return round(float((turned[0] * turned[1]).sum()), 3)

    for at, key in ((1, 1), (3, 1), (7, 5), (900, 898)):
        given = f"q at {at}, k at {key}, against q at {at - key}, k at 0"
        expect(given, score(at, key), score(at - key, 0))


@_SUITE.property(
    "rotate", hint="which of your operations writes, or makes a new dtype?"
)
def _rotate_inputs(p: SimpleNamespace) -> None:
    """The result has x's dtype, and x, cos and sin stay as they were."""
    angles = _angles(_CONFIG, torch.tensor([1, 2]))
    for dtype in (torch.float32, torch.bfloat16):
        given = [x.to(dtype) for x in (_numbers(2, 3, 4), *_cos_sin(angles))]
        before = [x.clone() for x in given]
        got = p.rotate(*given)
        expect(f"x, cos and sin are {dtype}: the result", got.dtype, dtype)
        for name, x, old in zip(("x", "cos", "sin"), given, before, strict=True):
            expect_close(f"{name}, afterwards", x, old)


# ----- RMSNorm


def _made_norm(p: SimpleNamespace, weight: list[float], eps: float) -> nn.Module:
    norm = p.RMSNorm(len(weight), eps)
    return _load(norm, {"weight": torch.tensor(weight)}, f"RMSNorm({len(weight)}, …)")


@_SUITE.property("RMSNorm", hint="root, mean, square: read the name from the right")
def _norm_by_hand(p: SimpleNamespace) -> None:
    """RMSNorm divides numbers by their root mean square, then multiplies by the weight;
    no mean is taken off. A new weight is all ones.
    """
    expect("RMSNorm(3, 1e-6).weight", p.RMSNorm(3, 1e-6).weight, [1.0, 1.0, 1.0])
    for x, weight, wanted in (
        ([5.0], [1.0], [1.0]),
        ([5.0, 5.0], [1.0, 1.0], [1.0, 1.0]),
        ([1.0, 7.0], [1.0, 1.0], [0.2, 1.4]),
        ([1.0, 7.0], [10.0, -1.0], [2.0, -1.4]),
        ([-2.0, 2.0, 2.0, -2.0], [1.0, 2.0, 3.0, 4.0], [-1.0, 2.0, 3.0, -4.0]),
    ):
        got = _made_norm(p, weight, 1e-6)(torch.tensor(x))
        expect_close(f"x = {x}, weight {weight}, eps 1e-6", got, torch.tensor(wanted))


@_SUITE.property("RMSNorm", hint="where does eps stand: below the root, or behind it?")
def _norm_eps(p: SimpleNamespace) -> None:
    """RMSNorm adds eps to the mean of the squares, inside the root; 0 stays 0."""
    for x, eps, wanted in (
        ([0.0, 0.0], 1e-6, [0.0, 0.0]),
        ([3.0, 3.0], 16.0, [0.6, 0.6]),
        ([0.003, 0.003], 16e-6, [0.6, 0.6]),
        ([1.0, 7.0], 24.0, [1 / 7, 1.0]),
    ):
        got = _made_norm(p, [1.0, 1.0], eps)(torch.tensor(x))
        expect_close(f"x = {x}, eps {eps:g}", got, torch.tensor(wanted))


@_SUITE.property("RMSNorm", hint="over which dimension is the mean?")
def _norm_rows(p: SimpleNamespace) -> None:
    """RMSNorm measures every row of the last dimension alone, of [T, n] and of
    [T, H, n], and leaves x as it was.
    """
    norm = _made_norm(p, [1.0, 0.5, -2.0], 0.05)
    for shape in ((2, 3), (2, 4, 3)):
        x = torch.arange(1, 1 + shape[0]).view(-1, *[1] * (len(shape) - 1)) * 3.0
        x = x * _numbers(*shape)
        wanted = _norm(x.double(), norm.weight.double(), 0.05)
        before = x.clone()
        expect_close(f"x {list(shape)}, random", norm(x), wanted)
        expect_close(f"x {list(shape)}, random: x afterwards", x, before)


@_SUITE.property("RMSNorm", hint="the largest float16 is 65504: what is 300 squared?")
def _norm_half(p: SimpleNamespace) -> None:
    """In half precision RMSNorm computes in float32 and returns the dtype of x."""
    for dtype in (torch.float16, torch.bfloat16):
        for size in (1.0, 300.0, 0.0001):
            norm = p.RMSNorm(2, 1e-8).to(dtype)
            x = torch.tensor([size, -size], dtype=dtype)
            given = f"{dtype}, x = [{size:g}, -{size:g}], eps 1e-8"
            wanted = _norm(x.double(), torch.ones(2), 1e-8)
            expect(f"{given}: dtype", norm(x).dtype, dtype)
            expect_close(given, norm(x), wanted, within=0.02)


# ----- attention, MLP, layer


def _attention_of(
    p: SimpleNamespace, c: package.Qwen3Config, layer: int = 0
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The module with its numbers, and the numbers in float64."""
    w = _part(_tensors(c), "model.layers.0.self_attn.")
    module = _load(p.Attention(c, layer), w, "Attention")
    return module, {name: tensor.double() for name, tensor in w.items()}


def _run_attention(
    p: SimpleNamespace,
    c: package.Qwen3Config,
    positions: list[int],
) -> tuple[_Context, Tensor, tuple[Tensor, ...], Tensor]:
    """The context after a call, what came out, and what should have been."""
    at = torch.tensor(positions)
    module, w = _attention_of(p, c, layer=1)
    x = _numbers(len(at), 6, seed=5)
    # Heads first in memory, as a cache's kernel gives it back
    answer = _numbers(c.num_heads, len(at), c.head_dim, seed=6).transpose(0, 1)
    context, angles = _Context(at, answer=answer), _angles(c, at)
    got = module(x, *_cos_sin(angles), context)
    out = _linear(w, "o_proj", answer.double().flatten(1))
    return context, got, _qkv(w, c, x.double(), angles), out


def _expect_attention(p: SimpleNamespace, given: str, *arguments: Any) -> None:
    context, got, handed, out = _run_attention(p, *arguments)
    expect(f"{given}: calls of ctx.attend", len(context.calls), 1)
    expect(f"{given}: its layer", context.calls[0][0], 1)
    for name, had, wanted in zip(
        "vkq", context.calls[0][:0:-1], handed[::-1], strict=True
    ):
        expect_close(f"{given}: {name} given to ctx.attend", had, wanted)
    expect_close(f"{given}: the result", got, out)


@_SUITE.property("Attention", hint="which family has which parameters?")
def _attention_names(p: SimpleNamespace) -> None:
    """Attention has a checkpoint's parameters: q_proj, k_proj, v_proj, o_proj, and
    q_norm and k_norm where the family has them, biases likewise.
    """
    for name, config in (*_FAMILIES, ("all biases", _BIASED)):
        w = _part(_tensors(config), "model.layers.0.self_attn.")
        _load(p.Attention(config, 0), w, f"Attention of {name}")


@_SUITE.property(
    "Attention",
    hint="[T, Hq * D] becomes heads, or heads become one row: in which order?",
)
def _attention_plain(p: SimpleNamespace) -> None:
    """Attention hands its context the projections, split into heads, with the layer's
    number; what comes back goes through o_proj, head after head.
    """
    _expect_attention(p, "no norm, no bias, 1 token at 0", _LLAMA, [0])
    _expect_attention(p, "no norm, no bias, 2 tokens at 0", _LLAMA, [0, 0])
    other = replace(_LLAMA, num_heads=6, num_kv_heads=3, head_dim=2)
    _expect_attention(p, "2 tokens, 6 and 3 heads of 2", other, [0, 0])


@_SUITE.property("Attention", hint="which of q, k and v have to know where they stand?")
def _attention_turned(p: SimpleNamespace) -> None:
    """Both q and k are turned by the token's angles, v is not."""
    _expect_attention(p, "no norm, 1 token at 3", _LLAMA, [3])
    _expect_attention(p, "no norm, 3 tokens at 5, 0, 9", _LLAMA, [5, 0, 9])


@_SUITE.property(
    "Attention", hint="a norm with D weights, one for q and one for k: before or after?"
)
def _attention_normed(p: SimpleNamespace) -> None:
    """In Qwen3 every head of q and k is normalised before it is turned; v is not."""
    _expect_attention(p, "q_norm and k_norm, 1 token at 0", _CONFIG, [0])
    _expect_attention(p, "q_norm and k_norm, 1 token at 3", _CONFIG, [3])
    _expect_attention(p, "q_norm and k_norm, 3 tokens at 5, 0, 9", _CONFIG, [5, 0, 9])


@_SUITE.property("Attention", hint="qkv_bias and o_bias are two flags")
def _attention_biased(p: SimpleNamespace) -> None:
    """Attention adds biases before the norm and the turn, and on o where the family has
    one.
    """
    _expect_attention(p, "bias on q, k, v; 2 tokens at 0, 3", _QWEN2, [0, 3])
    _expect_attention(p, "all biases and norms; 2 tokens at 0, 3", _BIASED, [0, 3])


@_SUITE.property(
    "MLP", hint="swap gate and up in your head: which number comes out then?"
)
def _mlp_by_hand(p: SimpleNamespace) -> None:
    """The MLP is down(silu(gate(x)) * up(x)): 1.46 for x = 1, gate 1, up 2, down 1."""
    one = replace(_CONFIG, hidden_size=1, intermediate_size=1)
    for gate, up, down, wanted in (
        (1.0, 2.0, 1.0, 1.4621),
        (2.0, 1.0, 1.0, 1.7616),
        (-1.0, 1.0, 10.0, -2.6894),
    ):
        w = {"gate_proj.weight": gate, "up_proj.weight": up, "down_proj.weight": down}
        w = {name: torch.tensor([[value]]) for name, value in w.items()}
        got = _load(p.MLP(one), w, "MLP")(torch.tensor([[1.0]]))
        given = f"x = 1, gate {gate:g}, up {up:g}, down {down:g}"
        expect_close(given, got, torch.tensor([[wanted]]))


def _expect_mlp(p: SimpleNamespace, given: str, c: package.Qwen3Config) -> None:
    w = _part(_tensors(c), "model.layers.0.mlp.")
    x = _numbers(3, 6)
    wanted = _mlp({name: t.double() for name, t in w.items()}, x.double())
    expect_close(given, _load(p.MLP(c), w, "MLP")(x), wanted)


@_SUITE.property("MLP", hint="mlp_bias is one flag for all three")
def _mlp_random(p: SimpleNamespace) -> None:
    """The MLP does the same for every token, with a bias where the config has it."""
    _expect_mlp(p, "3 tokens, no bias", _CONFIG)
    _expect_mlp(p, "3 tokens, biases", _BIASED)


def _layer_of(
    p: SimpleNamespace, c: package.Qwen3Config, **zeros: bool
) -> tuple[nn.Module, dict[str, Tensor]]:
    w = _part(_tensors(c), "model.layers.0.")
    for name in w:
        if name.split(".")[1] in zeros:
            w[name] = torch.zeros_like(w[name])
    layer = _load(p.Layer(c, 1), w, "Layer")
    return layer, {name: tensor.double() for name, tensor in w.items()}


def _expect_layer(
    p: SimpleNamespace, given: str, c: package.Qwen3Config, tokens: int, **zeros: bool
) -> None:
    layer, w = _layer_of(p, c, **zeros)
    x = 2 * _numbers(tokens, 6, seed=4)
    before = x.clone()
    context, angles = _Context(torch.arange(tokens)), _angles(c, torch.arange(tokens))
    got = layer(x, *_cos_sin(angles), context)
    expect_close(given, got, _layer(w, c, x.double(), angles, _causal(tokens)))
    expect_close(f"{given}: the x that came in, afterwards", x, before)
    expect(
        f"{given}: layers given to ctx.attend", [each[0] for each in context.calls], [1]
    )


@_SUITE.property("Layer", hint="what comes in goes on, whatever attention and MLP add")
def _layer_residual(p: SimpleNamespace) -> None:
    """A Layer whose attention and MLP add nothing gives x back as it came in."""
    _expect_layer(
        p, "o_proj and down_proj 0, 1 token", _CONFIG, 1, o_proj=True, down_proj=True
    )
    _expect_layer(p, "down_proj 0, 1 token", _CONFIG, 1, down_proj=True)
    _expect_layer(p, "o_proj 0, 1 token", _CONFIG, 1, o_proj=True)


@_SUITE.property(
    "Layer", hint="a norm stands before each of the two, on the branch; which is which?"
)
def _layer_whole(p: SimpleNamespace) -> None:
    """Attention and MLP each read the normalised stream and add to the raw one."""
    for tokens in (1, 3):
        for name, config in (*_FAMILIES, ("all biases", _BIASED)):
            _expect_layer(p, f"{name}, tokens at 0 to {tokens - 1}", config, tokens)


# ----- the model


_IDS = torch.tensor([3, 7, 1, 10, 0])


def _model(
    p: SimpleNamespace, c: package.Qwen3Config = _CONFIG
) -> tuple[nn.Module, dict[str, Tensor]]:
    tensors = _tensors(c)
    return _load(p.Qwen3(c), tensors, "Qwen3"), tensors


@_SUITE.property(
    "Qwen3", hint="print the names in the embedded model's safetensors file"
)
def _names(p: SimpleNamespace) -> None:
    """A Qwen3's parameters are called as in Hugging Face's checkpoints, from
    model.embed_tokens.weight to lm_head.weight.
    """
    for name, config in _FAMILIES:
        _load(p.Qwen3(config), _tensors(config), name)


@_SUITE.property("Qwen3", hint="embed, the layers in order, and one thing more")
def _forward(p: SimpleNamespace) -> None:
    """A forward pass gives the hidden states [T, E] after the last norm, in all three
    families.
    """
    for tokens in (1, 2, 5):
        for name, config in (*_FAMILIES, ("all biases", _BIASED)):
            model, tensors = _model(p, config)
            ids = _IDS[:tokens]
            context = _Context(torch.arange(tokens))
            got, given = model(ids, context), f"{name}, tokens {ids.tolist()}"
            expect_close(given, got, _hidden(tensors, config, ids))
            layers = [each[0] for each in context.calls]
            expect(f"{given}: layers given to ctx.attend", layers, [0, 1])


@_SUITE.property("Qwen3", hint="who knows where in its sequence a token stands?")
def _positions(p: SimpleNamespace) -> None:
    """Positions come from the context: a token at 4 is turned as one at 4, whatever its
    row.
    """
    model, tensors = _model(p)
    w = _part(tensors, "model.layers.0.")
    w = {name: tensor.double() for name, tensor in w.items()}
    x = tensors["model.embed_tokens.weight"][_IDS].double()
    x = _norm(x, w["input_layernorm.weight"], _CONFIG.rms_norm_eps)
    for positions in ([0], [4], [2, 3], [3, 0, 900]):
        at = torch.tensor(positions)
        context = _Context(at)
        model(_IDS[: len(at)], context)
        wanted = _qkv(
            _part(w, "self_attn."), _CONFIG, x[: len(at)], _angles(_CONFIG, at)
        )
        for name, got, want in zip(
            "qk", context.calls[0][1:3], wanted[:2], strict=True
        ):
            given = f"tokens at {positions}: {name} of layer 0"
            expect_close(given, got, want, within=1e-3)


@_SUITE.property(
    "Qwen3", hint="nothing in the model may depend on how many tokens came"
)
def _chunks(p: SimpleNamespace) -> None:
    """A chunk after a cached past gives what the whole would: 5 tokens, or 3 and 2, or
    one after the other.
    """
    model, tensors = _model(p)
    whole = _hidden(tensors, _CONFIG, _IDS)
    for sizes in ([4, 1], [3, 2], [1] * 5):
        past: dict[int, tuple[Tensor, Tensor]] = {}
        start = 0
        for size in sizes:
            end = start + size
            context = _Context(
                torch.arange(start, end), _causal(5)[start:end, :end], past
            )
            got = model(_IDS[start:end], context)
            given = f"5 tokens as {sizes}, those at {start} to {end - 1}"
            expect_close(given, got, whole[start:end])
            start = end


@_SUITE.property("Qwen3", hint="only the context knows which token is whose")
def _packed(p: SimpleNamespace) -> None:
    """Two sequences packed into one call give what each gives alone."""
    model, tensors = _model(p)
    for first, second in (([3], [7]), ([3, 7, 1], [10, 0])):
        ids = torch.tensor(first + second)
        at = torch.tensor([*range(len(first)), *range(len(second))])
        seen = torch.block_diag(_causal(len(first)), _causal(len(second))).bool()
        got = model(ids, _Context(at, seen))
        alone = [_hidden(tensors, _CONFIG, torch.tensor(x)) for x in (first, second)]
        expect_close(f"{first} and {second} packed", got, torch.cat(alone))


@_SUITE.property("Qwen3", hint="hidden [..., E], and one weight [V, E]")
def _logits(p: SimpleNamespace) -> None:
    """Logits of any rows are the head's product with them: of one row [E], or many."""
    model, tensors = _model(p)
    head = tensors["lm_head.weight"].double()
    hidden = _numbers(4, 6)
    for given, rows in (
        ("one row [E]", hidden[2]),
        ("the last row [1, E]", hidden[-1:]),
        ("rows 3 and 1", hidden[[3, 1]]),
        ("[2, 2, E]", hidden.view(2, 2, 6)),
    ):
        expect_close(given, model.logits(rows), rows.double() @ head.T)


@_SUITE.property("Qwen3", hint="one tensor with two names, not two that are equal")
def _tied(p: SimpleNamespace) -> None:
    """With tie_word_embeddings the head is the embedding, the same memory; without, it
    is its own.
    """
    for tie in (True, False):
        config = replace(_CONFIG, tie_word_embeddings=tie)
        model, tensors = _model(p, config)
        embed = dict(model.named_parameters(remove_duplicate=False))
        pointers = {
            embed[name].data_ptr()
            for name in ("model.embed_tokens.weight", "lm_head.weight")
            if name in embed
        }
        given = f"tie_word_embeddings {tie}"
        expect(f"{given}: head and embedding share memory", len(pointers) == 1, tie)
        name = "model.embed_tokens.weight" if tie else "lm_head.weight"
        x = _numbers(2, 6)
        expect_close(
            f"{given}: logits", model.logits(x), x.double() @ tensors[name].T.double()
        )


@_SUITE.property(
    "Qwen3", hint="rope_frequencies returns two things: what is the second one for?"
)
def _rope_scaled(p: SimpleNamespace) -> None:
    """The config's rope scaling reaches q and k: the frequencies and the scale."""
    for given, rope, slower, scale in (
        ("linear, factor 2", {"rope_type": "linear", "factor": 2.0}, 2, 1.0),
        (
            "yarn, factor 1, attention_factor 1.5",
            {**_YARN, "factor": 1.0, "attention_factor": 1.5},
            1,
            1.5,
        ),
    ):
        config = replace(_CONFIG, rope_scaling=rope)
        model, tensors = _model(p, config)
        w = {n: t.double() for n, t in _part(tensors, "model.layers.0.").items()}
        x = tensors["model.embed_tokens.weight"][_IDS[:2]].double()
        x = _norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        context = _Context(torch.tensor([0, 3]))
        model(_IDS[:2], context)
        angles = _angles(config, context.positions) / slower
        wanted = _qkv(_part(w, "self_attn."), config, x, angles)
        for index, name in enumerate("qk"):
            about = f"{given}, tokens at 0 and 3: {name} of layer 0"
            expect_close(about, context.calls[0][1 + index], wanted[index] * scale)


@_SUITE.property(
    "Qwen3", hint="bfloat16 can't tell 1000 from 1001: who computes angles?"
)
def _angles_precise(p: SimpleNamespace) -> None:
    """With weights in bfloat16 angles are still computed in float32: token 1001 isn't
    token 1000.
    """
    config = replace(_LLAMA, num_layers=1)
    model, tensors = _model(p, config)
    model.bfloat16()
    w = {n: t.bfloat16().double() for n, t in tensors.items()}
    part = _part(w, "model.layers.0.")
    x = w["model.embed_tokens.weight"][_IDS[:1]]
    x = _norm(x, part["input_layernorm.weight"], config.rms_norm_eps)
    for position in (1, 259, 1001):
        at = torch.tensor([position])
        context = _Context(at)
        model(_IDS[:1], context)
        _, wanted, _ = _qkv(_part(part, "self_attn."), config, x, _angles(config, at))
        given = f"bfloat16, one token at {position}: k of layer 0"
        expect_close(given, context.calls[0][2], wanted, within=0.05)


# ----- checkpoints


@contextmanager
def _checkpoint(
    without: str = "", extra: dict[str, Tensor] | None = None, **changes: Any
) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """A directory with config.json and weights, and the weights."""
    config = replace(_CONFIG, **changes)
    tensors = _tensors(config)
    stored = {name: t for name, t in tensors.items() if name != without}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(
            json.dumps({**_HF, **changes}), encoding="utf-8"
        )
        save_file({**stored, **(extra or {})}, folder / "model.safetensors")
        yield folder, tensors


@_SUITE.property("Qwen3", hint="what the file has no tensor for comes from elsewhere")
def _pretrained(p: SimpleNamespace) -> None:
    """from_pretrained gives the checkpoint's model, tied or not, ready for inference:
    in eval mode, without gradients.
    """
    for tie in (False, True):
        with _checkpoint(tie_word_embeddings=tie) as (folder, tensors):
            model = p.Qwen3.from_pretrained(folder, device="cpu")
        config = replace(_CONFIG, tie_word_embeddings=tie)
        given = f"a checkpoint, tie_word_embeddings {tie}"
        hidden = _hidden(tensors, config, _IDS)
        got = model(_IDS, _Context(torch.arange(5)))
        expect_close(f"{given}: hidden states of {_IDS.tolist()}", got, hidden)
        head = tensors["model.embed_tokens.weight" if tie else "lm_head.weight"]
        expect_close(f"{given}: logits", model.logits(got), hidden @ head.T.double())
        got = model(_IDS[:1], _Context(torch.arange(1)))
        expect_close(f"{given}: its first token alone", got, hidden[:1])
        expect(f"{given}: model.training", model.training, False)
        grads = {t.requires_grad for t in model.parameters()}
        expect(f"{given}: requires_grad", grads, {False})


@_SUITE.property("Qwen3", hint="load_weights knows what doesn't fit: is it asked?")
def _pretrained_strict(p: SimpleNamespace) -> None:
    """A missing or unexpected tensor is a ValueError that names it: nothing stays
    random.
    """
    norm, other = "model.norm.weight", "model.norm.scale"
    head, bias = "lm_head.weight", "model.layers.0.self_attn.q_proj.bias"
    for given, without, extra in (
        (norm, norm, {}),
        (head, head, {}),
        (other, "", {other: _numbers(6)}),
        (bias, "", {bias: _numbers(16)}),
    ):
        with _checkpoint(without, extra) as (folder, _):
            call = lambda f=folder: p.Qwen3.from_pretrained(f, device="cpu")  # noqa: E731
            what = f"no {given} in the file" if without else f"{given} in the file too"
            expect_error(what, lambda call=call: type(call()), ValueError, given)


@_SUITE.property("Qwen3", hint="None means the checkpoint's own: where does it say so?")
def _pretrained_dtype(p: SimpleNamespace) -> None:
    """The dtype is the one asked for, else the checkpoint's."""
    for stored, asked, wanted in (
        ("float32", None, torch.float32),
        ("bfloat16", None, torch.bfloat16),
        ("bfloat16", torch.float32, torch.float32),
        ("float32", torch.bfloat16, torch.bfloat16),
    ):
        with _checkpoint() as (folder, _):
            hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(
                json.dumps({**hf, "dtype": stored}), encoding="utf-8"
            )
            model = p.Qwen3.from_pretrained(folder, asked, "cpu")
        got = {t.dtype for t in model.parameters()}
        expect(f"config.json says {stored}, dtype={asked}: dtypes", got, {wanted})
