"""Notebook 09's recorded decode step, on the CPU: the same test as on a GPU."""

import pytest

from tests.gpu import test_generation_cuda as gpu


def test_a_decode_step_over_all_slots_equals_generation(monkeypatch):
    gpu.decode_graph("cpu", monkeypatch)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("cache.keys[:, :, cache.length :] = 0", "pass"),  # NaN in free slots
        ("self.slots <= self.positions", "self.slots < self.positions"),
        ("self.slots <= self.positions", "self.slots >= 0"),
        ("self.context.positions.fill_(self._free_slot())", "self._free_slot()"),
        ("self.cache.advance(1)", "pass"),
        ("self.token_ids.fill_(token_id)", "pass"),
    ],
)
def test_it_rejects_mistakes(right, wrong, monkeypatch):
    source = gpu.graph_cell()
    assert right in source
    mistaken = source.replace(right, wrong)
    monkeypatch.setattr(gpu, "graph_cell", lambda: mistaken)
    with pytest.raises((AssertionError, ValueError)):
        gpu.decode_graph("cpu", monkeypatch)
