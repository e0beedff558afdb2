"""Our transformer against Hugging Face's, on random checkpoints of all three
families."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from folovllm_lite import LLM, SamplingParams, attention, fast, qwen3
from folovllm_lite.attention import PlainContext
from folovllm_lite.generation import generate
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from tests.helpers import VOCAB_SIZE, make_checkpoint, make_hf_model

LENGTHS = [1, 2, 17, 300]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
CASES = [
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
    ("qwen3", {"head_dim": 32, "num_key_value_heads": 4}),
    ("qwen3", {"rope_parameters": YARN, "head_dim": 32}),
    ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 16}}),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_attention_heads": 6}),
    ("qwen2", {"rope_parameters": LINEAR}),
    ("qwen2", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    (
        "llama",
        {"num_attention_heads": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-3},
    ),
]


def both(family, changes):
    """The two models with the same weights."""
    theirs = make_hf_model(family, **changes)
    hf = theirs.config.to_dict() | {"architectures": [type(theirs).__name__]}
    ours = Qwen3(Qwen3Config.from_hf(hf))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs


def plain(model, ids):
    return model.logits(model(ids, PlainContext(torch.arange(len(ids)))))


def cached(model, ids, chunks):
    """Logits through a KV cache that is filled `chunks` tokens at a time."""
    cache = ContiguousKVCache(model.config, len(ids))
    rows = []
    for part in ids.split(chunks):
        rows.append(model.logits(model(part, cache.step(len(part)))))
        cache.advance(len(part))
    return torch.cat(rows)


@torch.no_grad()
@pytest.mark.parametrize("family, changes", CASES, ids=lambda value: str(value)[:60])
def test_logits_equal_transformers(family, changes):
    """Whole, chunk by chunk, and token by token behind a cache: the same logits."""
    ours, theirs = both(family, changes)
    generator = torch.Generator().manual_seed(1)
    for length in LENGTHS:
        ids = torch.randint(0, VOCAB_SIZE, (length,), generator=generator)
        want = theirs(ids[None]).logits[0]
        torch.testing.assert_close(plain(ours, ids), want, atol=1e-4, rtol=0)
        torch.testing.assert_close(cached(ours, ids, 300), want, atol=1e-4, rtol=0)
        torch.testing.assert_close(cached(ours, ids, 7), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(cached(ours, ids[:40], 1), want[:40], atol=1e-4, rtol=0)
    fast.prepare(ours)
    torch.testing.assert_close(plain(ours, ids), want, atol=1e-4, rtol=0)
    torch.testing.assert_close(cached(ours, ids[:40], 1), want[:40], atol=1e-4, rtol=0)


def _lose_the_sign(monkeypatch):
    """The sine's first half is negative for a reason: without, nothing is rotated."""
    rotate = qwen3.rotate

    def unsigned(x, cos, sin):
        half = sin.shape[-1] // 2
        return rotate(x, cos, torch.cat((sin[..., half:], sin[..., half:]), -1))

    monkeypatch.setattr(qwen3, "rotate", unsigned)


def _forget_qk_norm(monkeypatch):
    real = qwen3.RMSNorm.forward

    def norm_but_of_heads(self, x):
        return x if x.dim() == 3 else real(self, x)

    monkeypatch.setattr(qwen3.RMSNorm, "forward", norm_but_of_heads)


def _wrong_groups(monkeypatch):
    def repeat(self, layer, q, k, v):  # [0 1 0 1] where GQA means [0 0 1 1]
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat(1, times, 1), v.repeat(1, times, 1)
        return attention.attention(q, k, v, self.positions)

    monkeypatch.setattr(PlainContext, "attend", repeat)


def _no_scale(monkeypatch):
    real = qwen3.rope_frequencies
    monkeypatch.setattr(qwen3, "rope_frequencies", lambda c: (real(c)[0], 1.0))


def _not_causal(monkeypatch):
    def attend(self, layer, q, k, v):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(q, k, v, enable_gqa=True)[0].transpose(0, 1)

    monkeypatch.setattr(PlainContext, "attend", attend)


@torch.no_grad()
@pytest.mark.parametrize(
    "mutate, changes",
    [
        (_lose_the_sign, {}),
        (_forget_qk_norm, {}),
        (_wrong_groups, {}),
        (_not_causal, {}),
        (_no_scale, {"rope_parameters": YARN, "head_dim": 32}),
    ],
)
def test_the_comparison_bites(mutate, changes, monkeypatch):
    """Each of these has been shipped by somebody; none may pass for parity."""
    ids = torch.randint(
        0, VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(1)
    )
    ours, theirs = both("qwen3", changes)
    want = theirs(ids[None]).logits[0]
    assert (plain(ours, ids) - want).abs().max() < 1e-4
    mutate(monkeypatch)
    ours, _ = both("qwen3", changes)
    assert (plain(ours, ids) - want).abs().max() > 1e-2


def test_a_stretched_model_serves_texts_longer_than_its_training(tmp_path):
    """Position interpolation by 4 makes 256 positions of 64; vLLM says so too."""
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    path = make_checkpoint(tmp_path, max_position_embeddings=64, rope_parameters=rope)
    llm = LLM(str(path), device="cpu")
    assert llm.llm_engine.max_model_len == 256
    ids = [2 + i * 7 % 290 for i in range(180)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    (made,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    model = Qwen3.from_pretrained(path, device="cpu")
    alone = generate(model, llm.get_tokenizer(), ids, params)
    assert made.outputs[0].token_ids == alone.outputs[0].token_ids
    with torch.no_grad():
        text = torch.tensor(ids + made.outputs[0].token_ids)
        theirs = AutoModelForCausalLM.from_pretrained(path)(text[None]).logits[0]
        torch.testing.assert_close(plain(model, text), theirs, atol=1e-4, rtol=0)
    for call in (
        lambda: llm.generate([{"prompt_token_ids": ids + ids}], params, use_tqdm=False),
        lambda: generate(model, llm.get_tokenizer(), ids + ids, params),
        lambda: LLM(str(path), device="cpu", max_model_len=257),
    ):
        with pytest.raises(ValueError, match="256"):
            call()
