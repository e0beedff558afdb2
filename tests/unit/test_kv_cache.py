"""The contiguous cache: any cut of a sequence into steps gives the same hidden
states."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from folovllm_lite.attention import PlainContext
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.qwen3 import Qwen3, Qwen3Config
from tests.helpers import make_hf_model

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    peer = make_hf_model("qwen3")
    hf = {**peer.config.to_dict(), "architectures": ["Qwen3ForCausalLM"]}
    model = Qwen3(Qwen3Config.from_hf(hf))
    model.load_state_dict(peer.state_dict())
    return model.eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 320, (LENGTH,), generator=torch.Generator().manual_seed(0))


@settings(max_examples=40)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)), spare=st.integers(0, 3))
def test_chunks_of_any_size_give_what_the_whole_gives(model, ids, cuts, spare):
    """Prefill, decode and everything between: the mask of a chunk behind a past is
    where an is_causal that starts at key 0 would go wrong."""
    with torch.inference_mode():
        whole = model(ids, PlainContext(torch.arange(LENGTH)))
        cache = ContiguousKVCache(model.config, LENGTH + spare)
        cache.keys.fill_(torch.nan)  # a slot that was never written must never be read
        cache.values.fill_(torch.nan)
        ends = [*sorted(cuts), LENGTH]
        parts = []
        for start, end in zip([0, *ends], ends, strict=False):
            parts.append(model(ids[start:end], cache.step(end - start)))
            cache.advance(end - start)
    assert cache.length == LENGTH
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_copy_has_its_own_future(model, ids):
    cache = ContiguousKVCache(model.config, 8)
    model(ids[:5], cache.step(5))
    cache.advance(5)
    twin = cache.copy()
    before = model(ids[5:6], cache.step(1))
    model(ids[9:10], twin.step(1))
    twin.advance(1)
    assert cache.length == 5 and twin.length == 6
    torch.testing.assert_close(model(ids[5:6], cache.step(1)), before)


@torch.inference_mode()
def test_a_step_that_fails_changes_nothing(model, ids, monkeypatch):
    cache = ContiguousKVCache(model.config, 8)
    model(ids[:3], cache.step(3))
    cache.advance(3)
    wanted = model(ids[3:5], cache.step(2))
    second = model.model.layers[1]
    monkeypatch.setattr(second, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids[6:8], cache.step(2))
    monkeypatch.undo()
    assert cache.length == 3
    torch.testing.assert_close(model(ids[3:5], cache.step(2)), wanted)


def test_what_does_not_fit_is_refused_with_the_numbers(model):
    cache = ContiguousKVCache(model.config, 4)
    cache.advance(3)
    with pytest.raises(ValueError, match="holds 3 of 4 tokens, 2 more don't fit"):
        cache.step(2)
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        cache.step(0)
    with pytest.raises(ValueError, match="can't advance by 2"):
        cache.advance(2)
    with pytest.raises(ValueError, match="max_len must be positive, got 0"):
        ContiguousKVCache(model.config, 0)


def test_memory_is_taken_whether_used_or_not(model):
    config = model.config
    cache = ContiguousKVCache(config, 100, torch.bfloat16)
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    assert cache.nbytes == 100 * per_token and cache.length == 0
