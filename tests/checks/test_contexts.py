"""The suite of contexts passes on all there are, and rejects kernels with one mistake.

A mutant of a kernel is the module's text with one line changed, as a module of its own:
it is compiled, by Numba or for Triton's interpreter, like the real one. (None reads
outside its arrays: that would end the process, and tell nothing about the suite.)
"""

import contextlib
import importlib.util
import inspect
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from folovllm_lite import checks, flash
from folovllm_lite.attention import attention
from folovllm_lite.checks.contexts_suite import _SUITE
from folovllm_lite.flash import FlashContext
from folovllm_lite.kv_cache import ContiguousKVCache
from folovllm_lite.paged import PagedContext
from tests.helpers import interpreted, run_interpreted


class WrittenOut(PagedContext):
    """`attention` over gathered blocks."""

    def attend(self, layer, q, k, v):
        self._cache.store(layer, self._slots, k, v)
        out = []
        for each in self._segments:
            rows = slice(each.first, each.last)
            ks, vs = self._cache.gather(layer, torch.tensor(each.blocks), each.end)
            ks, vs = ks.transpose(0, 1), vs.transpose(0, 1)
            out.append(attention(q[rows], ks, vs, self.positions[rows]))
        return torch.cat(out)


class Contiguous(PagedContext):
    """A contiguous cache for each sequence, filled from its blocks: notebook 07's."""

    def attend(self, layer, q, k, v):
        self._cache.store(layer, self._slots, k, v)
        out, (_, L, Hkv, *_, D) = [], self._cache.pool.shape
        config = SimpleNamespace(num_layers=L, num_kv_heads=Hkv, head_dim=D)
        for each in self._segments:
            rows = slice(each.first, each.last)
            past = each.end - (each.last - each.first)
            cache = ContiguousKVCache(config, each.end, k.dtype)
            ks, vs = self._cache.gather(layer, torch.tensor(each.blocks), each.end)
            cache.keys[layer, :, :past] = ks[:, :past]
            cache.values[layer, :, :past] = vs[:, :past]
            cache.length = past
            step = cache.step(each.last - each.first)
            out.append(step.attend(layer, q[rows], k[rows], v[rows]))
        return torch.cat(out)


@pytest.mark.parametrize(
    "context",
    [FlashContext, PagedContext, WrittenOut, Contiguous],
    ids=lambda x: x.__name__,
)
def test_the_contexts_pass(context, capsys):
    checks.contexts(context)
    assert "✗" not in capsys.readouterr().out


def with_triton(splits: int, module=flash):
    kernels = partial(module.TritonKernels, splits=splits)
    return partial(module.FlashContext, kernels=kernels)


def test_triton_in_a_process_of_its_own():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton isn't installed: python -m pip install triton==3.7.1")
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_triton_passes_interpreted(splits, capsys):
    checks.contexts(with_triton(splits))
    assert "✗" not in capsys.readouterr().out


# ----- mutants

CHUNKS = {
    "a_chunk_from_the_top_left": (
        "attn_mask=mask,\n        is_causal=mask is None", "is_causal=True"),
    "a_few_tokens_see_all_of_them": (
        "past + i + 1, each.blocks", "each.end, each.blocks"),
    "a_past_of_one_token_is_none": ("if count < each.end:", "if count + 1 < each.end:"),
    "the_first_row_of_all": ("ks, vs, out[rows])", "ks, vs, out[: len(q[rows])])"),
}  # fmt: skip
NUMBA = {
    "no_scale": ("scale = np.float32(1 / math.sqrt(D))", "scale = np.float32(1)"),
    "block_off_by_one": (
        "key = keys[blocks[t // S], t % S]",
        "key = keys[blocks[max(t // S - 1, 0)], t % S]"),
    "reads_past_the_end": (
        "min(start + TILE, row.end))",
        "min(start + TILE, len(row.blocks) * cache.block_size))"),
    "misses_the_last_token": ("(start + TILE, row.end)", "(start + TILE, row.end - 1)"),
    "values_of_head_0": ("pool[1, layer, h],", "pool[1, layer, 0],"),
    "heads_interleave": ("q[rows[n], heads],", "q[rows[n], h::Hkv],"),
    "layer_0_for_all": ("pool[0, layer, h],", "pool[0, 0, h],"),
    "no_maximum": ("most = max(most, scores[g, i])", "most = np.float32(0)"),
    "a_maximum_of_0_at_least": (
        "most, sum_ = np.float32(-np.inf)", "most, sum_ = np.float32(0)"),
    "places_from_the_tiles_start": (
        "value = values[blocks[t // S], t % S]",
        "value = values[blocks[t // S], (t - start) % S]"),
    "heads_of_8_16_24": (
        "for d in range(D):\n                out[g, d] +=",
        "for d in range(D // 8 * 8):\n                out[g, d] +="),
    "8_heads_share": (
        "for g in range(group):  # the key",
        "for g in range(min(8, group)):  # the key"),
    "sum_not_brought_down": ("sum_ += total[i, h] * down", "sum_ += total[i, h]"),
    "out_not_brought_down": (
        "row[d] += parts[i, h, d] * down", "row[d] += parts[i, h, d]"),
    "the_first_tile_alone": ("in range(first, m):", "in range(first, first + 1):"),
    "values_are_keys": ("block, offset, d] = v[", "block, offset, d] = k["),
    "table_of_the_first_row": ("tables[table:],", "tables,"),
    "brain_is_half": ("return brain if bits == types.uint16 else half", "return half"),
}  # fmt: skip
TRITON = {
    "no_scale": ('input_precision="ieee") * scale', 'input_precision="ieee")'),
    "block_off_by_one": ("(2 + at // S) * N", "(2 + tl.maximum(at // S - 1, 0)) * N"),
    "reads_past_the_end": (
        "there = at < stop",
        "there = at < tl.minimum(start + share, tl.cdiv(end, S) * S)"),
    "misses_the_last_token": (
        "tl.minimum(start + share, end)", "tl.minimum(start + share, end - 1)"),
    "head_0_for_all": ("place = head * head_stride", "place = 0 * head_stride"),
    "heads_interleave": (
        "heads = head * group + g", "heads = g * (Hq // group) + head"),
    "no_maximum": (
        "scores - higher[:, None]", "scores - 0.0 * higher[:, None]"),
    "maximum_of_the_tile_alone": (
        "higher = tl.maximum(best, tl.max(scores, 1))", "higher = tl.max(scores, 1)"),
    "sum_not_brought_down": ("total = total * down +", "total = total +"),
    "out_not_brought_down": ("acc = acc * down[:, None] + new", "acc = acc + new"),
    "shares_weighted_alike": (
        "weights = tl.exp(lse - tl.max(lse, 0))", "weights = tl.exp(0.0 * lse)"),
    "lse_without_the_maximum": ("best + tl.log(total)", "tl.log(total)"),
    "a_share_too_short": (
        "tl.cdiv(tl.cdiv(end, SPLITS), TOKENS)", "(end // SPLITS // TOKENS)"),
}  # fmt: skip


def mutated(change, tmp_path):
    """The module with one line changed."""
    text = inspect.getsource(flash)
    old, new = change
    assert text.count(old) == 1, (text.count(old), old)
    file = tmp_path / "mutant.py"
    file.write_text(text.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def rejected(capsys):
    with pytest.raises(checks.CheckFailed):
        yield
    out = capsys.readouterr().out
    assert "hint:" in out and "Traceback" not in out


@pytest.mark.parametrize("name", [*CHUNKS, *NUMBA])
def test_the_suite_rejects(name, tmp_path, capsys, monkeypatch):
    if (
        name != "brain_is_half"
    ):  # nothing to compile for the halves, which takes longest
        kept = [x for x in _SUITE.properties if x.holds.__name__ != "_dtypes"]
        monkeypatch.setattr(_SUITE, "properties", kept)
    module = mutated({**CHUNKS, **NUMBA}[name], tmp_path)
    with rejected(capsys):
        checks.contexts(module.FlashContext)


SLOW = {"_any_step", "_dtypes", "_head_sizes", "_mixed", "_prompts_and_chunks"}


@interpreted
@pytest.mark.parametrize("name", TRITON)
def test_the_suite_rejects_interpreted(name, tmp_path, capsys, monkeypatch):
    kept = [x for x in _SUITE.properties if x.holds.__name__ not in SLOW]
    monkeypatch.setattr(_SUITE, "properties", kept)
    module = mutated(TRITON[name], tmp_path)
    with rejected(capsys):
        checks.contexts(with_triton(4, module))
        checks.contexts(with_triton(1, module))
