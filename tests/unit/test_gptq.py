"""GPTQ on whole checkpoints: what it writes, what it reads, and what it refuses."""

import json
import shutil
from unittest import mock

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from folovllm_lite import fast, gptq
from folovllm_lite.attention import PlainContext
from folovllm_lite.gptq import GPTQConfig
from folovllm_lite.llm import LLM
from folovllm_lite.model_loader import EMBEDDED_MODEL
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampling_params import SamplingParams
from folovllm_lite.tiny import corpus
from tests.helpers import edit_json

TEXTS = corpus.calibration(24)
CONFIGS = {
    "groups of 128": GPTQConfig(),
    "groups of 32, asymmetric": GPTQConfig(32, sym=False),
    "groups of 64, act order": GPTQConfig(64, desc_act=True),
    "rows, asymmetric, act order": GPTQConfig(-1, sym=False, desc_act=True),
    "v1 zeros, asymmetric": GPTQConfig(64, sym=False, checkpoint_format="gptq"),
    # No kernel has groups of 16.
    "groups of 16, act order": GPTQConfig(16, desc_act=True),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The embedded model in a layout, quantized once: name -> (directory, report)."""
    done = {}

    def make(name):
        if name not in done:
            out = tmp_path_factory.mktemp("gptq") / "model"
            done[name] = out, gptq.quantize(None, out, TEXTS, CONFIGS[name])
        return done[name]

    return make


def read_independently(folder):
    """Name -> weight [N, K] of every quantized layer, by nothing of the package."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))[
        "quantization_config"
    ]
    offset = 0 if config["checkpoint_format"] == "gptq_v2" else 1
    weights = {}
    for name in (n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")):
        words = tensors[f"{name}.qweight"].numpy().view("uint32")  # [K / 8, N]
        points = tensors[f"{name}.qzeros"].numpy().view("uint32")  # [G, N / 8]
        scales = tensors[f"{name}.scales"].float().numpy()
        groups = tensors[f"{name}.g_idx"].tolist()
        rows = []
        for k, g in enumerate(groups):
            level = words[k // 8] // 16 ** (k % 8) % 16
            n = numpy.arange(len(level))
            zero = points[g][n // 8] // 16 ** (n % 8) % 16 + offset
            rows.append((level.astype(float) - zero) * scales[g])
        weights[name] = torch.tensor(numpy.stack(rows, 1), dtype=torch.float32)
    return weights


def logprobs(model, ids):
    with torch.no_grad():
        hidden = model(ids, PlainContext(torch.arange(len(ids))))
        return model.logits(hidden).float().log_softmax(-1)


def dequantized(folder, into):
    """A plain checkpoint of what a quantized one stands for."""
    weights = read_independently(folder)
    tensors = load_file(EMBEDDED_MODEL / "model.safetensors")
    tensors = {n: t.float() for n, t in tensors.items()}
    for name, weight in weights.items():
        tensors[f"{name}.weight"] = weight.contiguous()
    shutil.copytree(EMBEDDED_MODEL, into)
    save_file(tensors, into / "model.safetensors")
    return into


# ----- what is written


@pytest.mark.parametrize("name", CONFIGS)
def test_an_independent_reader_gets_the_engines_logprobs(made, name, tmp_path):
    folder, _ = made(name)
    plain = Qwen3.from_pretrained(
        dequantized(folder, tmp_path / "plain"), torch.float32, "cpu"
    )
    tokenizer = LLM(EMBEDDED_MODEL, device="cpu").get_tokenizer()
    for text in corpus.calibration(3, seed=5):
        ids = torch.tensor(tokenizer.encode(text))
        wanted = logprobs(plain, ids)
        for dtype, within in ((torch.float32, 0.005), (torch.bfloat16, 1.0)):
            model = gptq.load(folder, dtype, "cpu")
            plainly, got = logprobs(model, ids), logprobs(fast.prepare(model), ids)
            assert (plainly - wanted).abs().max() < within
            assert (got - wanted).abs().max() < within
            mean = (got.exp() * (got - wanted)).sum(-1).mean()  # KL divergence
            assert mean < (1e-6 if dtype == torch.float32 else 0.02)


def test_the_engine_generates_what_the_plain_model_does(made, tmp_path):
    folder, _ = made("groups of 64, act order")
    plain = dequantized(folder, tmp_path / "plain")
    prompts = ["Once upon a time", "One day,", "从前"]
    params = SamplingParams(temperature=0, max_tokens=40)
    outputs = [
        LLM(str(path), device="cpu", dtype="float32").generate(prompts, params)
        for path in (folder, plain)
    ]
    texts = [[each.outputs[0].text for each in output] for output in outputs]
    assert texts[0] == texts[1]


def test_a_checkpoint_is_complete(made):
    folder, report = made("groups of 128")
    there = {file.name for file in folder.iterdir()}
    plain = {file.name for file in EMBEDDED_MODEL.iterdir()}
    assert there == plain | {"quantize_config.json"}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = json.loads((EMBEDDED_MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert {key: config[key] for key in kept} == kept
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "groups of 128, symmetric" in card and f"{report.bytes[1]:,} after" in card
    # 4 bits, and 16 + 4 for each group of 128, and where each input belongs.
    before, after = report.bytes
    assert 3.7 < before / after < 4
    assert list(folder.parent.iterdir()) == [folder]


def test_the_report_sets_rounding_beside_it(made):
    folder, report = made("groups of 128")
    assert len(report.layers) == 4 * 7
    ours = [error for error, _ in report.layers.values()]
    rounding = [error for _, error in report.layers.values()]
    assert sum(ours) < 0.7 * sum(rounding)
    assert set(report.perplexity) == {"full", "gptq", "rounding"}
    assert report.divergence["full"] == 0
    # Not which is less: on so few texts GPTQ learns what is true of them alone.
    assert min(report.divergence["gptq"], report.divergence["rounding"]) > 0
    # The same figure from the file: the kept texts are the first of eight.
    model = gptq.load(folder, torch.float32, "cpu")
    tokenizer = LLM(EMBEDDED_MODEL, device="cpu").get_tokenizer()
    nats = tokens = 0
    for text in TEXTS[: len(TEXTS) // 8]:
        ids = torch.tensor(tokenizer.encode(text))
        found = logprobs(model, ids)[:-1].gather(1, ids[1:, None])
        nats, tokens = nats - found.sum(), tokens + len(found)
    assert torch.exp(nats / tokens).item() == pytest.approx(
        report.perplexity["gptq"], rel=1e-4
    )


def test_the_same_arguments_give_the_same_file(made, tmp_path):
    folder, _ = made("groups of 64, act order")
    gptq.quantize(None, tmp_path / "again", TEXTS, CONFIGS["groups of 64, act order"])
    for file in ("model.safetensors", "config.json", "README.md"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_shards_hold_the_same(made, tmp_path, monkeypatch):
    folder, _ = made("groups of 128")
    monkeypatch.setattr(gptq, "_SHARD_BYTES", 500_000)
    gptq.quantize(None, tmp_path / "q", TEXTS, CONFIGS["groups of 128"])
    files = sorted((tmp_path / "q").glob("*.safetensors"))
    assert (
        len(files) > 2
        and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    )  # noqa: E501
    ids = torch.arange(3, 40)
    one, many = (
        logprobs(gptq.load(path, torch.float32, "cpu"), ids)
        for path in (folder, tmp_path / "q")
    )
    assert torch.equal(one, many)


def test_one_layer_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """Once all layers stood in memory, because a finished one was kept in a list."""
    seen = []
    original = gptq._Walk._quantize_layer

    def spy(self, layer, prefix, *rest):
        others = [m for m in self.layers if m is not layer]
        seen.append(all(p.is_meta for m in others for p in m.parameters()))
        return original(self, layer, prefix, *rest)

    monkeypatch.setattr(gptq._Walk, "_quantize_layer", spy)
    gptq.quantize(None, tmp_path / "q", TEXTS[:8])
    assert seen == [True] * 4


# ----- what is refused, and that nothing is lost by it


def test_out_is_never_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is there already"):
        gptq.quantize(None, tmp_path, TEXTS)
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "dear"


@pytest.mark.parametrize(
    "texts, config, words",
    [
        (TEXTS[:3], None, ["3 pieces", "at least 8"]),
        (TEXTS, GPTQConfig(96), ["q_proj", "96", "256", "32, 64, 128, -1 would"]),
    ],
)
def test_a_quantization_that_cant_be_leaves_nothing(tmp_path, texts, config, words):
    with pytest.raises(ValueError) as error:
        gptq.quantize(None, tmp_path / "q", texts, config)
    assert all(word in str(error.value) for word in words)
    assert not list(tmp_path.iterdir())


def test_out_in_nobodys_home_is_a_value_error():
    with pytest.raises(ValueError, match="out '~nosuchuser/x': .*home"):
        gptq.quantize(None, "~nosuchuser/x", TEXTS)


def test_an_interrupted_one_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gptq, "gptq", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gptq.quantize(None, tmp_path / "q", TEXTS[:8])
    assert not list(tmp_path.iterdir())


def test_a_hessian_that_fails_names_the_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(gptq, "_observe", lambda *args: -torch.eye(256))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj.*definite"):
        gptq.quantize(None, tmp_path / "q", TEXTS[:8])


def test_a_quantized_model_isnt_quantized_twice(made, tmp_path):
    folder, _ = made("groups of 128")
    with pytest.raises(ValueError, match="quantized already"):
        gptq.quantize(folder, tmp_path / "q", TEXTS)


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"bits": 2}, NotImplementedError, "bits must be 4, 2 are not"),
        ({"bits": 3}, NotImplementedError, "3 are not"),
        ({"bits": 8}, NotImplementedError, "8 are not"),
        ({"bits": 5}, ValueError, "got 5"),
        ({"bits": "4"}, TypeError, "'4'"),
        ({"quant_method": "awq"}, NotImplementedError, "'awq'"),
        ({"quant_method": "bitsandbytes"}, NotImplementedError, "'bitsandbytes'"),
        ({"group_size": 0}, ValueError, "got 0"),
        ({"group_size": None}, TypeError, "None"),
        ({"sym": 1}, TypeError, "sym"),
        ({"checkpoint_format": "marlin"}, NotImplementedError, "'marlin'"),
        ({"is_marlin_format": True}, NotImplementedError, "'marlin'"),
        ({"pack_dtype": "int64"}, NotImplementedError, "'int64'"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, NotImplementedError, "down"),
        ({"dynamic": [5]}, TypeError, "dynamic must be an object"),
    ],
)
def test_what_isnt_supported_is_refused_by_name(made, tmp_path, settings, error, words):
    folder, _ = made("groups of 128")
    copy = shutil.copytree(folder, tmp_path / "q")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] |= settings
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(error) as raised:
        LLM(str(copy), device="cpu")
    assert words in str(raised.value)


@pytest.mark.parametrize("count", [3000, 2**31 - 1])
def test_layers_that_nobody_has_are_refused_before_they_are_built(
    made, tmp_path, count
):
    """A slip of a few zeros once built layers for hours, where plain weights had an
    answer at once.
    """
    folder, _ = made("groups of 128")
    copy = shutil.copytree(folder, tmp_path / "q")
    plain = shutil.copytree(EMBEDDED_MODEL, tmp_path / "plain")
    for path in (copy, plain):
        edit_json(path / "config.json", num_hidden_layers=count)
    with mock.patch("folovllm_lite.qwen3.Layer", side_effect=AssertionError("built")):
        with pytest.raises(ValueError, match=f"num_hidden_layers.*{count}"):
            gptq.load(copy, device="cpu")
        with pytest.raises(ValueError, match=f"num_hidden_layers.*{count}"):
            gptq.quantize(plain, tmp_path / "out", TEXTS)
    assert not (tmp_path / "out").exists()


def test_the_older_file_is_enough(made, tmp_path):
    folder, _ = made("groups of 128")
    copy = shutil.copytree(folder, tmp_path / "q")
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    older = json.loads((copy / "quantize_config.json").read_text(encoding="utf-8"))
    # As AutoGPTQ wrote it: no method, no format.
    older = {k: older[k] for k in ("bits", "group_size", "sym", "desc_act")}
    (copy / "quantize_config.json").write_text(json.dumps(older), encoding="utf-8")
    ids = torch.arange(3, 40)
    one, other = (logprobs(gptq.load(p, device="cpu"), ids) for p in (folder, copy))
    assert torch.equal(one, other)


DAMAGES = {
    "a layer without g_idx": (lambda t, n: t.pop(n + "g_idx"), "missing.*g_idx"),
    "g_idx out of range": (lambda t, n: t[n + "g_idx"].fill_(9), "beyond 0 to 1"),
    "g_idx below 0": (lambda t, n: t[n + "g_idx"].fill_(-1), "beyond 0 to 1"),
    "another group size": (
        lambda t, n: t.update({n + "scales": t[n + "scales"][:1].contiguous()}),
        "misshapen.*scales",
    ),
    "int64 words": (
        lambda t, n: t.update({n + "qweight": t[n + "qweight"].long()}), "int64",
    ),
    "a tensor too many": (
        lambda t, n: t.update({n + "perm": torch.zeros(2)}), "unexpected.*perm",
    ),
    "no qweight": (lambda t, n: t.pop(n + "qweight"), "missing.*weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused(made, tmp_path, name):
    folder, _ = made("groups of 128")
    copy = shutil.copytree(folder, tmp_path / "q")
    damage, words = DAMAGES[name]
    tensors = load_file(copy / "model.safetensors")
    damage(tensors, "model.layers.1.self_attn.k_proj.")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        gptq.load(copy, device="cpu")


def test_a_bias_that_the_architecture_lacks_is_added(made, tmp_path):
    """Older writers stored a bias of zeros for every layer."""
    folder, _ = made("groups of 128")
    copy = shutil.copytree(folder, tmp_path / "q")
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.ones(512).half()
    save_file(tensors, copy / "model.safetensors")
    ids = torch.arange(3, 40)
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (logprobs(gptq.load(p, dtype, "cpu"), ids) for p in (folder, copy))
        assert not torch.allclose(one, other, atol=0.01)


# ----- layers


def layer_of(K, N, config, dtype=torch.float32, seed=0, bias=False, shuffled=True):
    """A quantized layer with random contents."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, *shape: torch.randint(high, shape, generator=generator)  # noqa: E731
    G = K // config.size(K)
    order = torch.randperm(K, generator=generator) if shuffled else torch.arange(K)
    quantized = gptq.Quantized(
        draw(16, N, K).to(torch.uint8),
        (torch.rand(N, G, generator=generator) * 0.02 + 0.001).half(),
        (draw(15, N, G) + 1).to(torch.uint8),
        order.int() // config.size(K),
    )
    layer = gptq.QuantizedLinear(K, N, bias, config, dtype)
    layer.load_state_dict(
        gptq.pack(quantized, config) | ({"bias": draw(3, N).float()} if bias else {})
    )
    return layer, quantized


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([16, 32, 64, 96, 128, 256, -1]),
    groups=st.integers(1, 3),
    N=st.sampled_from([8, 16, 24, 64, 200]),
    T=st.sampled_from([1, 2, 5, 191, 192]),
    shuffled=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_faster_layer_computes_the_same(
    dtype, size, groups, N, T, shuffled, bias, seed
):
    K = groups * (64 if size == -1 else size)
    layer, quantized = layer_of(K, N, GPTQConfig(size), dtype, seed, bias, shuffled)
    x = torch.randn(T, K, generator=torch.Generator().manual_seed(seed)).to(dtype)
    wanted = x.double() @ quantized.dequantize().double().T
    if bias:
        wanted = wanted + layer.bias.double()
    got = fast.linear(layer)(x)
    assert got.dtype == dtype and got.shape == (T, N)
    # Of a half-precision weight and scale, and of the result.
    exact = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}[dtype]
    room = exact * (x.double().abs() @ quantized.dequantize().double().abs().T + 1)
    assert ((got.double() - wanted).abs() <= room).all()


def test_half_precision_on_a_cpu_has_a_kernel():
    assert fast.four_bit_kernel(torch.bfloat16)
    layer, _ = layer_of(128, 64, GPTQConfig(32), torch.bfloat16)
    four_bits = fast.linear(layer)
    assert isinstance(four_bits, fast.CPUInt4Linear) and four_bits.readable
    assert four_bits.nbytes < 0.35 * 2 * 128 * 64
    layer, _ = layer_of(128, 16, GPTQConfig(32))
    assert isinstance(fast.linear(layer), fast.FastLinear)


def test_a_machine_without_the_kernel_computes_the_same(monkeypatch):
    monkeypatch.setattr(fast, "four_bit_kernel", lambda dtype: False)
    layer, quantized = layer_of(128, 16, GPTQConfig(32), torch.bfloat16)
    plain, x = fast.linear(layer), torch.randn(2, 128).bfloat16()
    assert isinstance(plain, fast.FastLinear)
    wanted = x.float() @ quantized.dequantize().T
    assert torch.allclose(plain(x).float(), wanted, atol=0.05)


def test_a_layout_that_cant_be_read_back_is_left_to_the_kernel(monkeypatch):
    """Another processor packs otherwise: many tokens are then the kernel's, too."""
    other = fast.CPUInt4Linear._levels
    monkeypatch.setattr(
        fast.CPUInt4Linear, "_levels", lambda self: other(self).flip(-1)
    )
    layer, quantized = layer_of(128, 64, GPTQConfig(32), torch.bfloat16)
    four_bits, x = fast.linear(layer), torch.randn(200, 128).bfloat16()
    assert not four_bits.readable
    wanted = x.float() @ quantized.dequantize().T
    assert torch.allclose(four_bits(x).float(), wanted, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_read_the_same_are_one(dtype):
    config = GPTQConfig(32, desc_act=True)
    parts = [layer_of(64, N, config, dtype, bias=N == 24) for N in (64, 24, 8)]
    whole, x = fast.linear(*(layer for layer, _ in parts)), torch.randn(3, 64).to(dtype)
    wanted = torch.cat([layer(x) for layer, _ in parts], 1)
    assert torch.allclose(
        whole(x), wanted, atol=1e-5 if dtype == torch.float32 else 0.05
    )


def test_layers_in_other_orders_stay_apart():
    config = GPTQConfig(32, desc_act=True)
    (one, _), (other, _) = (layer_of(64, 8, config, seed=seed) for seed in (0, 1))
    assert not fast._alike(one, other)
    assert fast._alike(one, one) and not fast._alike(one, nn.Linear(64, 8))


def test_groups_of_unlike_sizes_have_no_kernel():
    """`desc_act` files may name any group for any input."""
    layer, quantized = layer_of(128, 16, GPTQConfig(32), torch.bfloat16)
    layer.g_idx[:] = torch.arange(128) % 3  # group 3 has no input at all
    quantized.g_idx = layer.g_idx
    plain = fast.linear(layer)
    assert isinstance(plain, fast.FastLinear)
    x = torch.randn(2, 128).bfloat16()
    wanted = x.float() @ quantized.dequantize().T
    assert torch.allclose(plain(x).float(), wanted, atol=0.1)
