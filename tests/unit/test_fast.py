"""What `fast.prepare` makes of a model: the same numbers, and nothing that could be
changed without the faster layers knowing of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from folovllm_lite import fast, flash, qwen3
from folovllm_lite.attention import PlainContext
from folovllm_lite.config import ModelConfig
from folovllm_lite.flash import FlashContext, NumbaKernels, Team
from folovllm_lite.generation import generate
from folovllm_lite.model_loader import EMBEDDED_MODEL, ModelLoader
from folovllm_lite.paged import PagedContext, PagedKVCache, Segment
from folovllm_lite.qwen3 import Qwen3
from folovllm_lite.sampling_params import SamplingParams
from tests.helpers import make_checkpoint

FAMILIES = [
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
    ("qwen2", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
]


@pytest.fixture
def path(tmp_path):
    return make_checkpoint(tmp_path)


def load(path, dtype=torch.float32):
    return Qwen3.from_pretrained(path, dtype, "cpu")


def logits(model, ids):
    return model.logits(model(ids, PlainContext(torch.arange(len(ids)))))


def expect_alike(prepared, plain, atol=1e-4):
    for length in (1, 2, 8, 9, 40):
        ids = torch.arange(2, 2 + length)
        want = logits(plain, ids)
        torch.testing.assert_close(logits(prepared, ids), want, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("small", [0, 2**21], ids=["tiles", "compiled"])
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("family, changes", FAMILIES, ids=lambda value: str(value)[:40])
def test_a_prepared_model_gives_the_plain_ones_logits(
    family, changes, dtype, atol, small, tmp_path, monkeypatch
):
    monkeypatch.setattr(fast, "_SMALL_WEIGHT", small)
    path = make_checkpoint(tmp_path, family, **changes)
    expect_alike(fast.prepare(load(path, dtype)), load(path, dtype), atol)


@torch.no_grad()
@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_what_a_gpu_runs_gives_them_too(dtype, atol, path, monkeypatch):
    """There nothing is packed, and the norm is PyTorch's."""
    monkeypatch.setattr(fast, "_packs", lambda weight: False)
    monkeypatch.setattr(fast, "_SMALL_WEIGHT", 0)
    model = fast.prepare(load(path, dtype))
    for norm in (each for each in model.modules() if type(each) is fast.FastNorm):
        norm.on_cpu, n = False, norm.scale.shape[-1]
        norm.scale = (norm.scale / n**0.5).to(dtype)
    expect_alike(model, load(path, dtype), atol)


def test_the_embedded_model_says_the_same_tokens():
    """In float32 they are exactly the plain model's: it is the oracle."""
    plain, prepared = load(EMBEDDED_MODEL), fast.prepare(load(EMBEDDED_MODEL))
    tokenizer = ModelLoader(ModelConfig(str(EMBEDDED_MODEL))).load_tokenizer()
    params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    for prompt in ("Once upon a time", "Question: what is", "从前"):
        ids = tokenizer.encode(prompt)
        one, two = (
            generate(model, tokenizer, ids, params) for model in (plain, prepared)
        )
        assert one.outputs[0].token_ids == two.outputs[0].token_ids


def decoding(config, T, seed=0):
    """Ids, and the four things that make a context, of T sequences that decode.

    The pool holds their past, and NaN where nothing was written.
    """
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (T,), generator=dice).tolist()
    counts = [-(-length // 4) for length in lengths]
    cache = PagedKVCache(config, sum(counts), 4)
    torch.nn.init.normal_(cache.pool, generator=dice)
    ids = torch.randperm(sum(counts), generator=dice).tolist()
    slots, segments = [], []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        blocks, ids = ids[:count], ids[count:]
        last, offset = blocks[-1], (length - 1) % 4
        cache.pool[:, :, :, last, offset:] = torch.nan
        slots.append(last * 4 + offset)
        segments.append(Segment(row, row + 1, length, blocks))
    tokens = torch.randint(2, config.vocab_size, (T,), generator=dice)
    step = torch.tensor(lengths) - 1, torch.tensor(slots), segments
    return tokens, (cache, *step)


def copied(cache):
    made = copy.deepcopy(cache)
    made.slots = [[x.flatten(1, 2) for x in kind] for kind in made.pool]
    return made


def expect_alike_decoding(prepared, plain, rows=(1, 5, 8, 9, 16, 40)):
    """The same states and the same pool, though nothing but the numbers is shared."""
    for T in rows:
        tokens, (cache, *step) = decoding(plain.config, T)
        other = copied(cache)
        want = plain(tokens, PagedContext(other, *step))
        got = prepared(tokens, FlashContext(cache, *step))
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            cache.pool, other.pool, atol=1e-4, rtol=0, equal_nan=True
        )


@torch.no_grad()
@pytest.mark.parametrize("few", [0, 8], ids=["oneDNN", "compiled"])
@pytest.mark.parametrize("helpers", [0, 2])
@pytest.mark.parametrize("family, changes", FAMILIES, ids=lambda value: str(value)[:40])
def test_a_decoding_step_gives_the_plain_ones_states(
    family, changes, helpers, few, tmp_path, monkeypatch
):
    """In one call, or shared among threads that take whole rows."""
    monkeypatch.setattr(fast, "_FEW", few)
    monkeypatch.setattr(flash, "TEAM", Team(helpers))
    path = make_checkpoint(tmp_path, family, **changes)
    expect_alike_decoding(fast.prepare(load(path)), load(path))


def test_rows_that_read_what_others_store_keep_together(path):
    """A prefix that was found in the step that computes it, or a short chunk's rows."""
    _, (cache, _, slots, segments) = decoding(load(path).config, 20)
    assert NumbaKernels(cache, slots, segments).independent
    reads = segments[3]
    reads.blocks = [segments[7].blocks[-1], *reads.blocks]
    reads.end += 4
    assert not NumbaKernels(cache, slots, segments).independent


def test_a_small_models_step_keeps_to_one_thread(path):
    """All of it: OpenMP's threads would spin where the team's want to work."""
    small, other = fast.prepare(load(path)), fast.prepare(load(path, torch.bfloat16))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for model, count in ((small, 1), (other, 2), (load(path), 2)):
            with fast.for_a_step(model):
                assert torch.get_num_threads() == count
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_every_layer_is_replaced_and_holds_no_parameter(path):
    model = load(path)
    before = model.num_parameters
    assert fast.prepare(model) is model
    assert not list(model.parameters()) and not list(model.buffers())
    plain = (qwen3.Attention, qwen3.MLP, qwen3.RMSNorm, nn.Linear, nn.Embedding)
    assert not [type(each) for each in model.modules() if isinstance(each, plain)]
    assert model.num_parameters == before
    weight = model.lm_head.weight  # what others ask for dtype and device
    assert weight.dtype == torch.float32 and weight.device.type == "cpu"
    assert fast.prepare(model) is model, "once more changes nothing"
    expect_alike(model, load(path))


def test_what_it_makes_cannot_be_changed(path):
    """All of these went through once, and changed some layers and not the others, or
    saved a checkpoint without weights. The model goes on as it was."""
    model, plain = fast.prepare(load(path)), load(path)
    for forbidden in (
        model.train,
        model.state_dict,
        lambda: model.load_state_dict(plain.state_dict()),
        lambda: model.load_state_dict(plain.state_dict(), strict=False),
        lambda: model.to(torch.bfloat16),
        model.half,
        lambda: model.to("meta"),
        lambda: copy.copy(model.lm_head),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
    ):
        with pytest.raises(TypeError, match="is for inference alone"):
            forbidden()
    with pytest.raises(AttributeError, match="'FastAttention' .* 'q_proj'"):
        model.model.layers[0].layers[0].self_attn.q_proj.weight.mul_(2)
    assert not model.lm_head.weight.numel(), "there is nothing to edit"
    with torch.no_grad():
        expect_alike(model.eval(), plain)


class Quantized(nn.Linear):
    """A linear layer of another type, as GPTQ's is."""


@torch.no_grad()
def test_linear_layers_of_others_stay(path):
    """Where one of q, k, v is another's, the three can't be one product."""
    model, plain = load(path), load(path)
    for layer in (*model.model.layers[0].self_attn.children(), model.lm_head):
        if isinstance(layer, nn.Linear):
            layer.__class__ = Quantized
    model.model.layers[1].mlp.up_proj.__class__ = Quantized
    fast.prepare(model)
    first, second = model.model.layers
    assert type(first.self_attn) is qwen3.Attention
    assert type(first.self_attn.k_proj) is type(model.lm_head) is Quantized
    assert type(first.self_attn.q_norm) is fast.FastNorm
    assert type(first.mlp) is fast.FastMLP
    assert type(second.self_attn) is fast.FastAttention
    assert type(second.mlp) is qwen3.MLP
    assert isinstance(second.mlp.down_proj, fast.FastLinear)
    expect_alike(model, plain)


def test_small_work_keeps_to_one_thread():
    """And who calls has as many afterwards as before, whatever happens inside."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt), fast.threads_for(600_000, 64):
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
        for weights, tokens in ((600_000, 512), (16_000_000, 1)):
            with fast.threads_for(weights, tokens):
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_a_row_alone_and_among_others_is_the_same(path):
    """Compiled code for eight tokens, oneDNN for nine; a text of the last of them."""
    model = fast.prepare(load(path))
    embed, mlp = model.model.embed_tokens, model.model.layers[0].layers[0].mlp
    for T in (8, 9):
        ids = torch.arange(5, 5 + T)
        many = mlp(embed(ids))
        for t in range(T):
            alone = mlp(embed(ids[t : t + 1]))
            torch.testing.assert_close(alone[0], many[t], atol=1e-5, rtol=0)


def test_rows_are_padded_to_few_numbers():
    made = [fast.padded(rows) for rows in range(1, 2049)]
    assert all(0 <= more - rows <= rows / 4 for rows, more in enumerate(made, 1))
    assert made[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 10]
    assert len(set(made)) == 8 + 4 * 8


# ----- these tests bite


def heads_share_the_query_norm(self, plain):
    real(self, plain)
    if plain.q_norm is not None:
        n = len(self.qk_norm.scale)
        weights, eps = plain.q_norm.weight.expand(n, -1), plain.q_norm.eps
        self.qk_norm = fast.FastNorm(weights, eps)
        self.norm_of_heads = weights.numpy(), np.float32(eps)


def bias_is_lost(self, plain):
    real(self, plain)
    self.qkv_proj.bias = None


def keys_come_first(self, plain):
    plain.q_proj.weight.data = plain.q_proj.weight.flip(0)
    real(self, plain)


real = fast.FastAttention.__init__


@torch.no_grad()
@pytest.mark.parametrize(
    "mutant", [heads_share_the_query_norm, bias_is_lost, keys_come_first]
)
def test_a_mistake_in_merging_is_seen(mutant, tmp_path, monkeypatch):
    path = make_checkpoint(tmp_path, "qwen3", attention_bias=True)
    monkeypatch.setattr(fast.FastAttention, "__init__", mutant)
    with pytest.raises(AssertionError):
        expect_alike(fast.prepare(load(path)), load(path))


def turns_backwards(*given):
    before_attention(*given[:8], -given[8], *given[9:])


def every_token_turns_as_the_first(*given):
    first = [np.repeat(each[:1], len(each), 0) for each in given[7:9]]
    before_attention(*given[:7], *first, *given[9:])


def forgets_the_stream(*given):
    after_attention(given[0], given[1] * 0, *given[2:])


def forgets_the_bias_of_down(*given):
    after_attention(*given[:9], given[9][:0], given[10])


before_attention, after_attention = fast.before_attention, fast.after_attention
run_layers, only = fast.run_layers, NumbaKernels.only


def reads_the_first_table(*given):
    tiles = given[-1].copy()
    tiles[:, 1] = 0
    run_layers(*given[:-1], tiles)


def layers_stand_the_other_way_round(*given):
    x, *weights = given[:15]
    turned = [each[::-1].copy() if np.ndim(each) else each for each in weights]
    run_layers(x, *turned, *given[15:])


def all_turn_as_the_first(*given):
    turn = [np.repeat(each[:1], len(each), 0) for each in given[15:17]]
    run_layers(*given[:15], *turn, *given[17:])


def stores_all_in_one_slot(*given):
    run_layers(*given[:18], np.full_like(given[18], given[18][0]), *given[19:])


def a_part_has_the_first_rows_tiles(self, rows):
    made = only(self, rows)
    made._tiles = self._tiles[: len(made._tiles)]
    return made


def a_part_stores_where_the_first_does(self, rows):
    made = only(self, rows)
    made._slots = self._slots[: len(made._slots)]
    return made


@torch.no_grad()
@pytest.mark.parametrize(
    "name, mutant",
    [
        ("before_attention", turns_backwards),
        ("before_attention", every_token_turns_as_the_first),
        ("after_attention", forgets_the_stream),
        ("after_attention", forgets_the_bias_of_down),
    ],
)
def test_a_mistake_in_compiled_code_is_seen(name, mutant, tmp_path, monkeypatch):
    path = make_checkpoint(tmp_path, "llama", mlp_bias=True)
    monkeypatch.setattr(fast, name, mutant)
    with pytest.raises(AssertionError):
        expect_alike(fast.prepare(load(path)), load(path))


@torch.no_grad()
@pytest.mark.parametrize(
    "where, name, mutant",
    [
        (fast, "run_layers", reads_the_first_table),
        (fast, "run_layers", layers_stand_the_other_way_round),
        (fast, "run_layers", all_turn_as_the_first),
        (fast, "run_layers", stores_all_in_one_slot),
        (NumbaKernels, "only", a_part_has_the_first_rows_tiles),
        (NumbaKernels, "only", a_part_stores_where_the_first_does),
    ],
)
def test_a_mistake_in_a_step_is_seen(where, name, mutant, path, monkeypatch):
    monkeypatch.setattr(flash, "TEAM", Team(2))
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises(AssertionError):
        expect_alike_decoding(fast.prepare(load(path)), load(path))
