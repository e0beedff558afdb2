"""The suite of the transformer passes on the package and rejects plausible mistakes.

Most mutants have been shipped by somebody: pairs that are neighbours instead of halves,
positions that start again behind a cache, a norm after the rotation, gate and up the
other way round. The suite judges by a reference of its own, and that is compared with
`transformers` here.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from folovllm_lite import checks, model_loader
from folovllm_lite import qwen3 as package
from folovllm_lite.checks import qwen3_suite as suite
from tests.helpers import make_hf_model


def test_the_package_passes(capsys):
    checks.qwen3(package)
    out = capsys.readouterr()
    assert "✗" not in out.out and "All 44 properties hold." in out.out
    assert out.err == ""


def test_the_random_numbers_of_others_stay_the_same():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    checks.qwen3(MLP=package.MLP)
    assert torch.equal(torch.get_rng_state(), before)


# ----- the suite's own numbers are right


@torch.no_grad()
@pytest.mark.parametrize(
    "family, changes",
    [
        ("qwen3", {}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {}),
        ("llama", {"mlp_bias": True, "num_key_value_heads": 4}),
    ],
)
def test_the_reference_equals_transformers(family, changes):
    theirs = make_hf_model(family, **changes)
    hf = theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}
    config = package.Qwen3Config.from_hf(hf)
    ids = torch.arange(30) * 7 % 300
    want = theirs.model(ids[None]).last_hidden_state[0]
    got = suite._hidden(theirs.state_dict(), config, ids)
    torch.testing.assert_close(got.float(), want, atol=1e-4, rtol=0)
    tensors = theirs.state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    assert suite._shapes(config) == shapes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "rope, D, theta, wanted",
    [
        (suite._LLAMA3, 8, 1e8, [1, 1.25e-3, 1.25e-5, 1.25e-7]),
        (suite._LLAMA3, 8, 100.0, [1, 0.244385, 0.0130423, 0.00395285]),
        (suite._YARN, 16, 1e4, [1, 0.237171, 0.05, 0.00790569]),
        (
            {**suite._YARN, "beta_fast": 8.0, "beta_slow": 0.05},
            16,
            1e4,
            [1, 0.268794, 0.07, 0.0173925, 0.004],
        ),
        ({**suite._YARN, "truncate": False}, 16, 1e4, [1, 0.198584, 0.0255952]),
        (
            {**suite._YARN, suite._TRAINED: 4096},
            16,
            1e4,
            [1, 0.316228, 0.1, 0.0256935, 0.00625, 0.0013835],
        ),
        (
            {**suite._YARN, suite._TRAINED: 4096, "truncate": False},
            16,
            1e4,
            [1, 0.316228, 0.1, 0.0286136, 0.00655697, 0.00128563],
        ),
        (
            {**suite._YARN, "beta_slow": 1e-9},
            16,
            1e4,
            [1, 0.300416, 0.09, 0.0268794, 0.008, 0.00237171, 0.0007, 0.000205548],
        ),
    ],
)
def test_the_frequencies_are_those_of_transformers(rope, D, theta, wanted):
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = Qwen3Config(head_dim=D, rope_parameters={**rope, "rope_theta": theta})
    got, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    for a, b in zip(got.tolist(), wanted, strict=False):
        assert a == pytest.approx(b, rel=1e-4)


# ----- other right answers: none may be judged wrong


def by_halves(x, cos, sin):
    """The halves swapped by cat; the sign stands in sin."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((second, first), -1) * sin


def by_complex(x, cos, sin):
    half = x.shape[-1] // 2
    pairs = torch.complex(*x.float().chunk(2, -1))
    turn = torch.complex(cos[..., :half].float(), sin[..., half:].float())
    turned = pairs * turn
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


class OwnNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self, n, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def measure(self, x):
        return x.square().mean(-1, keepdim=True)

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(self.measure(wide) + self.eps)
        return wide.to(x.dtype) * self.weight


class OwnAttention(nn.Module):
    """Its steps are methods, so that a mutant can change one."""

    def __init__(self, c, layer):
        super().__init__()
        E, D = c.hidden_size, c.head_dim
        self.layer, self.D = layer, D
        self.q_proj = nn.Linear(E, c.num_heads * D, c.qkv_bias)
        self.k_proj = nn.Linear(E, c.num_kv_heads * D, c.qkv_bias)
        self.v_proj = nn.Linear(E, c.num_kv_heads * D, c.qkv_bias)
        self.o_proj = nn.Linear(c.num_heads * D, E, c.o_bias)
        if c.qk_norm:
            self.q_norm = OwnNorm(D, c.rms_norm_eps)
            self.k_norm = OwnNorm(D, c.rms_norm_eps)

    def heads(self, x):
        return x.view(len(x), -1, self.D)

    def normed(self, q, k, v):
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def turned(self, q, k, v, cos, sin):
        return by_halves(q, cos, sin), by_halves(k, cos, sin), v

    def merged(self, out):
        return out.reshape(len(out), -1)

    def forward(self, x, cos, sin, ctx):
        q, k, v = (self.heads(f(x)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = self.turned(*self.normed(q, k, v), cos, sin)
        return self.o_proj(self.merged(ctx.attend(self.layer, q, k, v)))


class OwnMLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        E, inside = c.hidden_size, c.intermediate_size
        self.gate_proj = nn.Linear(E, inside, c.mlp_bias)
        self.up_proj = nn.Linear(E, inside, c.mlp_bias)
        self.down_proj = nn.Linear(inside, E, c.mlp_bias)

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(gate * gate.sigmoid() * self.up_proj(x))


class OwnLayer(nn.Module):
    attention, mlp_of = OwnAttention, OwnMLP

    def __init__(self, c, layer):
        super().__init__()
        self.input_layernorm = OwnNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = self.attention(c, layer)
        self.post_attention_layernorm = OwnNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = self.mlp_of(c)

    def forward(self, x, cos, sin, ctx):
        attended = x + self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return attended + self.mlp(self.post_attention_layernorm(attended))


class UnsignedAttention(OwnAttention):
    """As transformers has it: the sign stands in the rotation, not in sin."""

    def turned(self, q, k, v, cos, sin):
        def turn(x):
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat((-second, first), -1) * sin

        return turn(q), turn(k), v


class UnsignedLayer(OwnLayer):
    attention = UnsignedAttention


class OwnQwen3(nn.Module):
    """With a convention of its own for sin, and a buffer of angles."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.layers = nn.ModuleList(
            UnsignedLayer(c, i) for i in range(c.num_layers)
        )
        self.model.norm = OwnNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        if c.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        each, self.scale = package.rope_frequencies(c)
        angles = torch.arange(c.max_position_embeddings)[:, None] * each
        angles = torch.cat((angles, angles), -1)
        self.table = {"cos": angles.cos(), "sin": angles.sin()}  # float32, unlike half

    def forward(self, token_ids, ctx):
        x = self.model.embed_tokens(token_ids)
        cos, sin = (
            (self.scale * self.table[name][ctx.positions])[:, None].to(x.dtype)
            for name in ("cos", "sin")
        )
        for layer in self.model.layers:
            x = layer(x, cos, sin, ctx)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.lm_head.weight)

    @classmethod
    def from_pretrained(cls, path, dtype=None, device=None):
        hf = model_loader.read_config(path)
        model = cls(package.Qwen3Config.from_hf(hf))
        model.to(dtype or model_loader.checkpoint_dtype(hf))
        model_loader.load_weights(model, path)
        return model.requires_grad_(False).eval()


def config_rewritten():
    """A from_hf that reads in another order and is no classmethod of a subclass."""

    class Config(package.Qwen3Config):
        @classmethod
        def from_hf(cls, hf):
            return package.Qwen3Config.from_hf({k: hf[k] for k in sorted(hf)})

    return Config


RIGHT = [
    ("rotate", by_halves),
    ("rotate", by_complex),
    ("RMSNorm", OwnNorm),
    ("Attention", OwnAttention),
    ("MLP", OwnMLP),
    ("Layer", OwnLayer),
    ("Qwen3", OwnQwen3),
    ("Qwen3Config", config_rewritten()),
]


@pytest.mark.parametrize("piece, right", RIGHT, ids=lambda x: getattr(x, "__name__", x))
def test_other_right_answers_pass(piece, right, capsys):
    checks.qwen3(**{piece: right})
    assert "✗" not in capsys.readouterr().out


# ----- mutants of the config


def _config(before=lambda hf: hf, after=lambda hf, made: {}):
    """from_hf with its input or its result changed."""

    class Changed(package.Qwen3Config):
        @classmethod
        def from_hf(cls, hf):
            made = package.Qwen3Config.from_hf(before(hf))
            return replace(made, **after(hf, made))

    return Changed


def _without(*names):
    return _config(before=lambda hf: {k: v for k, v in hf.items() if k not in names})


def _family(hf):
    return hf["architectures"][0][:5]


def _fixes_heads(hf):
    heads, kv = hf.get("num_attention_heads"), hf.get("num_key_value_heads")
    return {**hf, "num_key_value_heads": heads} if kv and heads % kv else hf


def _any_family(hf):
    known = (hf.get("architectures") or [""])[0] in package._FAMILIES
    return hf if known else {**hf, "architectures": ["LlamaForCausalLM"]}


def _scaling_of_old_files(hf):
    rope = hf.get("rope_scaling")
    if rope and rope.get("rope_type") not in (None, "linear"):
        return {k: v for k, v in hf.items() if k != "rope_scaling"}
    return hf


def _drops_unknown_settings(hf):
    """`.get` finds what it knows, and never looks at the rest."""
    rope = hf.get("rope_scaling")
    if not isinstance(rope, dict):
        return hf
    known = {"rope_type", "type"}.union(*sum(package._ROPE_TYPES.values(), ()))
    return {**hf, "rope_scaling": {k: v for k, v in rope.items() if k in known}}


class NamesTheFirst(package.Qwen3Config):
    @classmethod
    def from_hf(cls, hf):
        for name in package._REQUIRED:
            if hf.get("architectures") and name not in hf:
                raise ValueError(f"config.json lacks {name}")
        return package.Qwen3Config.from_hf(hf)


class RaisesKeyErrors(package.Qwen3Config):
    @classmethod
    def from_hf(cls, hf):
        for name in package._REQUIRED:
            hf[name]
        return package.Qwen3Config.from_hf(hf)


class TakesAnySize(package.Qwen3Config):
    @classmethod
    def from_hf(cls, hf):
        try:
            return package.Qwen3Config.from_hf(hf)
        except ValueError as error:
            if "positive" in str(error):
                return package.Qwen3Config.from_hf(suite._HF)
            raise


class TrustsNumbers(package.Qwen3Config):
    """float(), as one writes it first: NaN, negative numbers and '2' all pass."""

    @classmethod
    def from_hf(cls, hf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(package, "_number", lambda name, value: float(value))
            return package.Qwen3Config.from_hf(hf)


class NeverStretched(package.Qwen3Config):
    @property
    def max_model_len(self):
        return self.max_position_embeddings


class StretchesLlama3(package.Qwen3Config):
    @property
    def max_model_len(self):
        factor = (self.rope_scaling or {}).get("factor") or 1
        return int(self.max_position_embeddings * factor)


class StretchesYarn(package.Qwen3Config):
    @property
    def max_model_len(self):
        rope = self.rope_scaling or {}
        if rope.get("rope_type") != "yarn" or not rope.get("factor"):
            return super().max_model_len
        trained = rope.get("original_max_position_embeddings")
        return int((trained or self.max_position_embeddings) * rope["factor"])


def _of(kind):
    """A config whose max_model_len is that of `kind`."""

    class Changed(kind):
        @classmethod
        def from_hf(cls, hf):
            return kind(**vars(package.Qwen3Config.from_hf(hf)))

    return Changed


class PopsFromTheFile(package.Qwen3Config):
    @classmethod
    def from_hf(cls, hf):
        made = package.Qwen3Config.from_hf(hf)
        (hf.get("rope_parameters") or {}).pop("rope_theta", None)
        return made


CONFIGS = {
    "takes_the_newer_of_two_scalings": (
        _config(before=lambda hf: {
            k: v for k, v in hf.items()
            if k != "rope_scaling" or not hf.get("rope_parameters")}),
        "can't be meant"),
    "theta_may_be_one": (
        _config(before=lambda hf: {
            k: 2.0 if (k, v) == ("rope_theta", 1.0) else v for k, v in hf.items()}),
        "can't be meant"),
    "head_dim_is_always_a_share": (
        _config(after=lambda hf, c: {"head_dim": c.hidden_size // c.num_heads}),
        "read field by field"),
    "one_kv_head_by_default": (
        _config(before=lambda hf: {"num_key_value_heads": 1, **hf}),
        "read field by field|Absent keys"),
    "kv_heads_default_to_one": (
        _config(after=lambda hf, c: {
            "num_kv_heads": hf.get("num_key_value_heads") or 1}), "Absent keys"),
    "eps_of_llama_1": (
        _config(before=lambda hf: {"rms_norm_eps": 1e-5, **hf}), "Absent keys"),
    "theta_of_qwen": (
        _config(after=lambda hf, c: {} if "rope_theta" in str(hf) else {
            "rope_theta": 1e6}), "Absent keys"),
    "tied_by_default": (
        _config(before=lambda hf: {"tie_word_embeddings": True, **hf}),
        "read field by field"),
    "qwen2_without_bias": (
        _config(after=lambda hf, c: {"qkv_bias": c.o_bias}), "What a family does"),
    "qwen2_with_bias_on_o": (
        _config(after=lambda hf, c: {"o_bias": c.qkv_bias}), "What a family does"),
    "qwen2_asks_its_flag": (
        _config(after=lambda hf, c: {"qkv_bias": hf.get("attention_bias", c.qkv_bias)}),
        "What a family does"),
    "all_families_norm": (
        _config(after=lambda hf, c: {"qk_norm": True}), "What a family does"),
    "any_activation": (_without("hidden_act"), "refused by name"),
    "any_family": (_config(before=_any_family), "refused by name"),
    "windows_are_ignored": (
        _without("use_sliding_window", "layer_types"), "refused by name"),
    "layer_types_are_ignored": (_without("layer_types"), "refused by name"),
    "rotates_everything": (_without("partial_rotary_factor"), "refused by name"),
    "unknown_scaling_is_ignored": (
        _config(before=_scaling_of_old_files), "refused by name"),
    "heads_are_fixed": (_config(before=_fixes_heads), "share the key/value heads"),
    "old_files_only": (_without("rope_parameters"), "Theta and scaling"),
    "new_files_only": (_without("rope_theta", "rope_scaling"), "Theta and scaling"),
    "pops_from_the_file": (PopsFromTheFile, "Theta and scaling"),
    "names_the_first": (NamesTheFirst, "What is missing"),
    "key_errors": (RaisesKeyErrors, "What is missing"),
    "any_size": (TakesAnySize, "What is missing"),
    "trusts_numbers": (TrustsNumbers, "can't be meant"),
    "ignores_slips": (
        _config(before=_drops_unknown_settings), "can't be meant"),
    "positions_of_llama": (
        _config(before=lambda hf: {"max_position_embeddings": 2048, **hf}),
        "Absent keys"),
    "never_stretched": (_of(NeverStretched), "max_model_len is"),
    "stretches_llama3": (_of(StretchesLlama3), "max_model_len is"),
    "stretches_yarn": (_of(StretchesYarn), "max_model_len is"),
}  # fmt: skip


# ----- mutants of the rotation


def _frequencies(change):
    def rope_frequencies(config):
        each, scale = package.rope_frequencies(config)
        return change(config, each, scale)

    return rope_frequencies


def _rope_without(*names):
    def rope_frequencies(config):
        if config.rope_scaling:
            kept = {k: v for k, v in config.rope_scaling.items() if k not in names}
            config = replace(config, rope_scaling=kept)
        return package.rope_frequencies(config)

    return rope_frequencies


def half_the_exponents(config):
    D = config.head_dim
    each = config.rope_theta ** -(torch.arange(D // 2) / D)
    return each, package.rope_frequencies(config)[1]


def up_to_one(config):
    return config.rope_theta ** -torch.linspace(0, 1, config.head_dim // 2), 1.0


def scaling_is_ignored(config):
    return package.rope_frequencies(replace(config, rope_scaling=None))


def all_scaling_is_linear(config):
    if config.rope_scaling is None:
        return package.rope_frequencies(config)
    each, _ = package.rope_frequencies(replace(config, rope_scaling=None))
    return each / config.rope_scaling["factor"], package.rope_frequencies(config)[1]


def linear_speeds_up(config):
    each, scale = package.rope_frequencies(config)
    rope = config.rope_scaling or {}
    if rope.get("rope_type") == "linear":
        each = each * rope["factor"] ** 2
    return each, scale


def llama3_does_not_blend(config):
    each, scale = package.rope_frequencies(config)
    rope = config.rope_scaling or {}
    if rope.get("rope_type") == "llama3":
        plain, _ = package.rope_frequencies(replace(config, rope_scaling=None))
        turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
        slow = turns < rope["high_freq_factor"]
        each = torch.where(slow, plain / rope["factor"], plain)
    return each, scale


FREQUENCIES = {
    "half_the_exponents": (half_the_exponents, "Pair i of D / 2"),
    "up_to_one": (up_to_one, "Pair i of D / 2"),
    "one_for_each_dimension": (
        _frequencies(lambda c, f, s: (f.repeat(2), s)), "Pair i of D / 2"),
    "wavelengths": (
        _frequencies(lambda c, f, s: (1 / f, s)), "Pair i of D / 2"),
    "scaling_is_ignored": (scaling_is_ignored, "Linear scaling"),
    "linear_speeds_up": (linear_speeds_up, "Linear scaling"),
    "all_scaling_is_linear": (all_scaling_is_linear, "Scaling by llama3"),
    "llama3_does_not_blend": (llama3_does_not_blend, "Scaling by llama3"),
    "in_float64": (_frequencies(lambda c, f, s: (f.double(), s)), "Pair i of D / 2"),
    "yarn_ignores_mscale": (
        _rope_without("mscale", "mscale_all_dim"), "The scale of yarn"),
    "yarn_always_truncates": (_rope_without("truncate"), "Scaling by yarn"),
    "yarn_has_fixed_betas": (
        _rope_without("beta_fast", "beta_slow"), "Scaling by yarn"),
    "yarn_without_a_temperature": (
        _frequencies(lambda c, f, s: (f, 1.0)), "The scale of yarn"),
    "yarn_asks_no_attention_factor": (
        _rope_without("attention_factor"), "The scale of yarn"),
}  # fmt: skip


def the_sign_twice(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def the_other_way_round(x, cos, sin):
    return by_halves(x, cos, -sin)


def neighbours_are_pairs(x, cos, sin):
    half = x.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., half:]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def mirrored_pairs(x, cos, sin):
    return x * cos + x.flip(-1) * sin


def one_step_rolled(x, cos, sin):
    return x * cos + x.roll(1, -1) * sin


def heads_are_rolled(x, cos, sin):
    return x * cos + x.roll(x.shape[1] // 2, 1) * sin


def cos_only(x, cos, sin):
    return x * cos


def first_tokens_angles(x, cos, sin):
    return by_halves(x, cos[:1], sin[:1])


def cos_in_place(x, cos, sin):
    swapped = x.roll(x.shape[-1] // 2, -1)
    return x.mul_(cos).add_(swapped * sin)


def wide_comes_back(x, cos, sin):
    return by_halves(x.float(), cos.float(), sin.float())


ROTATIONS = {
    "the_sign_twice": (the_sign_twice, "turns counterclockwise"),
    "the_other_way_round": (the_other_way_round, "turns counterclockwise"),
    "cos_only": (cos_only, "turns counterclockwise"),
    "neighbours_are_pairs": (neighbours_are_pairs, "The partner of element i"),
    "mirrored_pairs": (mirrored_pairs, "The partner of element i"),
    "one_step_rolled": (one_step_rolled, "The partner of element i"),
    "heads_are_rolled": (heads_are_rolled, "turns counterclockwise"),
    "first_tokens_angles": (first_tokens_angles, "Lengths stay"),
    "cos_in_place": (cos_in_place, "stay as they were"),
    "wide_comes_back": (wide_comes_back, "has x's dtype"),
}


# ----- mutants of the norm


class TakesTheMeanOff(OwnNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class TakesTheLength(OwnNorm):
    def measure(self, x):
        return x.square().sum(-1, keepdim=True)


class OneSizeForAll(OwnNorm):
    def measure(self, x):
        return x.square().mean()


class AddsOneToTheWeight(OwnNorm):
    def forward(self, x):
        return super().forward(x) / self.weight * (1 + self.weight)


class WithoutTheWeight(OwnNorm):
    def forward(self, x):
        return super().forward(x) / self.weight


class EpsOutside(OwnNorm):
    def forward(self, x):
        size = self.measure(x.float()).sqrt() + self.eps
        return (x / size).to(x.dtype) * self.weight


class WithoutEps(OwnNorm):
    def __init__(self, n, eps):
        super().__init__(n, 0.0)


class EpsIsFixed(OwnNorm):
    def __init__(self, n, eps):
        super().__init__(n, 1e-6)


class InItsOwnDtype(OwnNorm):
    def forward(self, x):
        return x * torch.rsqrt(self.measure(x) + self.eps) * self.weight


class WideComesBack(OwnNorm):
    def forward(self, x):
        return super().forward(x.float())


class WritesIntoX(OwnNorm):
    """In float32 x.float() is x itself."""

    def forward(self, x):
        wide = x.float()
        wide *= torch.rsqrt(self.measure(wide) + self.eps)
        return wide.to(x.dtype) * self.weight


NORMS = {
    each.__name__: (each, words)
    for each, words in (
        (TakesTheMeanOff, "RMSNorm divides numbers"),
        (TakesTheLength, "RMSNorm divides numbers"),
        (AddsOneToTheWeight, "RMSNorm divides numbers"),
        (WithoutTheWeight, "RMSNorm divides numbers"),
        (EpsOutside, "RMSNorm adds eps"),
        (WithoutEps, "RMSNorm adds eps"),
        (EpsIsFixed, "RMSNorm adds eps"),
        (OneSizeForAll, "every row"),
        (WritesIntoX, "leaves x"),
        (InItsOwnDtype, "In half precision"),
        (WideComesBack, "In half precision"),
    )
}


# ----- mutants of attention, MLP and layer


class NormsAfterTheTurn(OwnAttention):
    def forward(self, x, cos, sin, ctx):
        q, k, v = (self.heads(f(x)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = self.normed(*self.turned(q, k, v, cos, sin))
        return self.o_proj(self.merged(ctx.attend(self.layer, q, k, v)))


class NormsSwapped(OwnAttention):
    def normed(self, q, k, v):
        if hasattr(self, "q_norm"):
            q, k = self.k_norm(q), self.q_norm(k)
        return q, k, v


class NormsNothing(OwnAttention):
    def normed(self, q, k, v):
        return q, k, v


class NormsValuesToo(OwnAttention):
    def normed(self, q, k, v):
        q, k, v = super().normed(q, k, v)
        return q, k, self.k_norm(v) if hasattr(self, "k_norm") else v


class TurnsValuesToo(OwnAttention):
    def turned(self, q, k, v, cos, sin):
        return *super().turned(q, k, v, cos, sin)[:2], by_halves(v, cos, sin)


class TurnsQueriesOnly(OwnAttention):
    def turned(self, q, k, v, cos, sin):
        return by_halves(q, cos, sin), k, v


class DimensionsBeforeHeads(OwnAttention):
    def heads(self, x):
        return x.view(len(x), self.D, -1).transpose(1, 2)


class MergesDimensionsFirst(OwnAttention):
    def merged(self, out):
        return out.transpose(1, 2).reshape(len(out), -1)


class SplitsBeforeTokens(OwnAttention):
    def heads(self, x):
        return x.view(-1, len(x), self.D).transpose(0, 1)


class KnowsTheHeads(OwnAttention):
    """The embedded model's 4 and 2 heads, written down."""

    def forward(self, x, cos, sin, ctx):
        q, k, v = (
            f(x).view(len(x), heads, -1)
            for f, heads in ((self.q_proj, 4), (self.k_proj, 2), (self.v_proj, 2))
        )
        q, k, v = self.turned(*self.normed(q, k, v), cos, sin)
        return self.o_proj(self.merged(ctx.attend(self.layer, q, k, v)))


class WantsContiguousAnswers(OwnAttention):
    def merged(self, out):
        return out.view(len(out), -1)


class AlwaysLayerZero(OwnAttention):
    def __init__(self, c, layer):
        super().__init__(c, 0)


class RepeatsKeyHeads(OwnAttention):
    def normed(self, q, k, v):
        q, k, v = super().normed(q, k, v)
        group = q.shape[1] // k.shape[1]
        return q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


class BiasEverywhere(OwnAttention):
    def __init__(self, c, layer):
        super().__init__(replace(c, o_bias=c.qkv_bias), layer)


class BiasIsNotAdded(OwnAttention):
    def forward(self, x, cos, sin, ctx):
        for each in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            each.bias = None
        return super().forward(x, cos, sin, ctx)


class ScalesQueries(OwnAttention):
    def turned(self, q, k, v, cos, sin):
        q, k, v = super().turned(q, k, v, cos, sin)
        return q * self.D**-0.5, k, v


ATTENTIONS = {
    each.__name__: (each, words)
    for each, words in (
        (DimensionsBeforeHeads, "Attention hands its context"),
        (SplitsBeforeTokens, "Attention hands its context"),
        (MergesDimensionsFirst, "Attention hands its context"),
        (AlwaysLayerZero, "Attention hands its context"),
        (KnowsTheHeads, "Attention hands its context"),
        (WantsContiguousAnswers, "Attention hands its context"),
        (RepeatsKeyHeads, "Attention hands its context"),
        (ScalesQueries, "Attention hands its context"),
        (TurnsValuesToo, "Both q and k are turned"),
        (TurnsQueriesOnly, "Both q and k are turned"),
        (NormsAfterTheTurn, "In Qwen3 every head"),
        (NormsSwapped, "In Qwen3 every head"),
        (NormsNothing, "In Qwen3 every head"),
        (NormsValuesToo, "In Qwen3 every head"),
        (BiasEverywhere, "a checkpoint's parameters"),
        (BiasIsNotAdded, "Attention adds biases"),
    )
}


class SwapsGateAndUp(OwnMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * F.silu(self.up_proj(x)))


class Gelu(OwnMLP):
    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


class Sigmoid(OwnMLP):
    def forward(self, x):
        return self.down_proj(self.gate_proj(x).sigmoid() * self.up_proj(x))


class SiluOfTheProduct(OwnMLP):
    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x) * self.up_proj(x)))


class GateAlone(OwnMLP):
    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)))


class AddsTheResidual(OwnMLP):
    def forward(self, x):
        return x + super().forward(x)


class MLPWithoutBias(OwnMLP):
    def __init__(self, c):
        super().__init__(replace(c, mlp_bias=False))


MLPS = {
    each.__name__: (each, words)
    for each, words in (
        (SwapsGateAndUp, "The MLP is down"),
        (Gelu, "The MLP is down"),
        (Sigmoid, "The MLP is down"),
        (SiluOfTheProduct, "The MLP is down"),
        (GateAlone, "The MLP is down"),
        (AddsTheResidual, "The MLP is down"),
        (MLPWithoutBias, "The MLP does the same"),
    )
}


class NormsBehind(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = self.input_layernorm(x + self.self_attn(x, cos, sin, ctx))
        return self.post_attention_layernorm(x + self.mlp(x))


class NoResidualOfAttention(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return x + self.mlp(self.post_attention_layernorm(x))


class NoResidualOfMLP(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return self.mlp(self.post_attention_layernorm(x))


class ResidualIsNormed(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = self.input_layernorm(x)
        x = x + self.self_attn(x, cos, sin, ctx)
        return x + self.mlp(self.post_attention_layernorm(x))


class LayerNormsSwapped(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = x + self.self_attn(self.post_attention_layernorm(x), cos, sin, ctx)
        return x + self.mlp(self.input_layernorm(x))


class SideBySide(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        attended = self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return x + attended + self.mlp(self.post_attention_layernorm(x))


class NoSecondNorm(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        return x + self.mlp(x)


class AddsInPlace(OwnLayer):
    def forward(self, x, cos, sin, ctx):
        x += self.self_attn(self.input_layernorm(x), cos, sin, ctx)
        x += self.mlp(self.post_attention_layernorm(x))
        return x


class LayerZeroInside(OwnLayer):
    def __init__(self, c, layer):
        super().__init__(c, 0)


LAYERS = {
    each.__name__: (each, words)
    for each, words in (
        (NormsBehind, "A Layer whose"),
        (NoResidualOfAttention, "A Layer whose"),
        (NoResidualOfMLP, "A Layer whose"),
        (ResidualIsNormed, "A Layer whose"),
        (AddsInPlace, "Attention and MLP each"),
        (LayerNormsSwapped, "Attention and MLP each"),
        (SideBySide, "Attention and MLP each"),
        (NoSecondNorm, "Attention and MLP each"),
        (LayerZeroInside, "A Layer whose"),
    )
}


# ----- mutants of the model


class _At:
    """A context that says other positions."""

    def __init__(self, ctx, positions):
        self.attend, self.positions = ctx.attend, positions


class PositionsStartAgain(package.Qwen3):
    def forward(self, token_ids, ctx):
        return super().forward(token_ids, _At(ctx, torch.arange(len(token_ids))))


class PositionsFollowTheFirst(package.Qwen3):
    def forward(self, token_ids, ctx):
        at = ctx.positions[0] + torch.arange(len(token_ids))
        return super().forward(token_ids, _At(ctx, at))


class CountsItsTokens(package.Qwen3):
    seen = 0

    def forward(self, token_ids, ctx):
        at = torch.arange(self.seen, self.seen + len(token_ids))
        self.seen += len(token_ids)
        return super().forward(token_ids, _At(ctx, at))


class KeepsTheFirstAngles(package.Qwen3):
    kept = None

    def _rope(self, positions, dtype):
        if self.kept is None or self.kept[0].shape[0] != len(positions):
            self.kept = super()._rope(positions, dtype)
        return self.kept


class AnglesInHalf(package.Qwen3):
    def _rope(self, positions, dtype):
        return super()._rope(positions.to(dtype), dtype)


class ForgetsTheScale(package.Qwen3):
    def _rope(self, positions, dtype):
        cos, sin = super()._rope(positions, dtype)
        return cos / self._scale, sin / self._scale


class IgnoresScaling(package.Qwen3):
    def __init__(self, config):
        super().__init__(replace(config, rope_scaling=None))


class WithoutTheLastNorm(package.Qwen3):
    def forward(self, token_ids, ctx):
        x = self.model.embed_tokens(token_ids)
        cos, sin = self._rope(ctx.positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, ctx)
        return x


class ScalesEmbeddings(package.Qwen3):
    def forward(self, token_ids, ctx):
        x = self.model.embed_tokens(token_ids) * self.config.hidden_size**0.5
        cos, sin = self._rope(ctx.positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, cos, sin, ctx)
        return self.model.norm(x)


class LastRowOnly(package.Qwen3):
    def forward(self, token_ids, ctx):
        return super().forward(token_ids, ctx)[-1:]


class LayersBackwards(package.Qwen3):
    def forward(self, token_ids, ctx):
        layers, self.model.layers = self.model.layers, self.model.layers[::-1]
        try:
            return super().forward(token_ids, ctx)
        finally:
            self.model.layers = layers


class LogitsOfTheLast(package.Qwen3):
    def logits(self, hidden):
        return super().logits(hidden[-1:])


class NormsTwice(package.Qwen3):
    def logits(self, hidden):
        return super().logits(self.model.norm(hidden))


class AlwaysTied(package.Qwen3):
    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)


class TiedByCopy(package.Qwen3):
    def __init__(self, config):
        super().__init__(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = nn.Parameter(self.model.embed_tokens.weight.clone())


class OtherNames(package.Qwen3):
    def __init__(self, config):
        super().__init__(config)
        self.backbone = self.model
        del self.model


class AnglesInTheCheckpoint(package.Qwen3):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("inv_freq", package.rope_frequencies(config)[0])


class LoadsLoosely(package.Qwen3):
    @classmethod
    def from_pretrained(cls, path, dtype=None, device=None):
        hf = model_loader.read_config(path)
        model = cls(package.Qwen3Config.from_hf(hf))
        model.to(dtype or model_loader.checkpoint_dtype(hf))
        state = {}
        for file in model_loader.weight_files(path):
            state |= model_loader.load_file(file)
        model.load_state_dict(state, strict=False)
        return model.requires_grad_(False).eval()


def _loaded(change):
    class Changed(package.Qwen3):
        @classmethod
        def from_pretrained(cls, path, dtype=None, device=None):
            return change(package.Qwen3.from_pretrained, path, dtype, device)

    return Changed


def _unties(load, path, dtype, device):
    model = load(path, dtype, device)
    if model.config.tie_word_embeddings:
        weight = torch.zeros_like(model.lm_head.weight)
        model.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    return model


MODELS = {
    "PositionsStartAgain": (PositionsStartAgain, "Positions come from the context"),
    "PositionsFollowTheFirst": (
        PositionsFollowTheFirst, "Positions come from the context"),
    "CountsItsTokens": (CountsItsTokens, "Positions come from the context"),
    "KeepsTheFirstAngles": (KeepsTheFirstAngles, "Positions come from the context"),
    "AnglesInHalf": (AnglesInHalf, "With weights in bfloat16"),
    "ForgetsTheScale": (ForgetsTheScale, "rope scaling reaches"),
    "IgnoresScaling": (IgnoresScaling, "rope scaling reaches"),
    "WithoutTheLastNorm": (WithoutTheLastNorm, "A forward pass"),
    "ScalesEmbeddings": (ScalesEmbeddings, "A forward pass"),
    "LastRowOnly": (LastRowOnly, "A forward pass"),
    "LayersBackwards": (LayersBackwards, "A forward pass"),
    "LogitsOfTheLast": (LogitsOfTheLast, "Logits of any rows"),
    "NormsTwice": (NormsTwice, "Logits of any rows"),
    "AlwaysTied": (AlwaysTied, "Logits of any rows"),
    "TiedByCopy": (TiedByCopy, "With tie_word_embeddings"),
    "OtherNames": (OtherNames, "parameters are called"),
    "AnglesInTheCheckpoint": (AnglesInTheCheckpoint, "parameters are called"),
    "LoadsLoosely": (LoadsLoosely, "A missing or unexpected tensor"),
    "stays_in_training": (
        _loaded(lambda load, *a: load(*a).train()), "from_pretrained gives"),
    "wants_gradients": (
        _loaded(lambda load, *a: load(*a).requires_grad_()), "from_pretrained gives"),
    "forgets_to_tie": (_loaded(_unties), "from_pretrained gives"),
    "always_float32": (
        _loaded(lambda load, path, dtype, device: load(path, torch.float32, device)),
        "The dtype is the one asked for"),
    "asks_the_file_only": (
        _loaded(lambda load, path, dtype, device: load(path, None, device)),
        "The dtype is the one asked for"),
}  # fmt: skip

MUTANTS = {
    "Qwen3Config": CONFIGS,
    "rope_frequencies": FREQUENCIES,
    "rotate": ROTATIONS,
    "RMSNorm": NORMS,
    "Attention": ATTENTIONS,
    "MLP": MLPS,
    "Layer": LAYERS,
    "Qwen3": MODELS,
}


@pytest.mark.parametrize(
    "piece, name", [(piece, name) for piece, many in MUTANTS.items() for name in many]
)
def test_the_suite_rejects(piece, name, capsys):
    mutant, words = MUTANTS[piece][name]
    with pytest.raises(checks.CheckFailed, match="don't hold"):
        checks.qwen3(**{piece: mutant})
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out
    failed = [line for line in out.splitlines() if line.startswith("✗")]
    assert any(word in line for line in failed for word in words.split("|")), out


def test_the_mutants_are_what_they_seem(capsys):
    """The helpers that make them keep everything right but what they are given."""
    checks.qwen3(Qwen3Config=_config(), rope_frequencies=_frequencies(lambda c, *x: x))
    checks.qwen3(Qwen3=_loaded(lambda load, *given: load(*given)))
    assert "✗" not in capsys.readouterr().out
