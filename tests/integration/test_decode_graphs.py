"""CUDA graphs for decoding steps, and room for the largest step, without a GPU.

On tests/pretended_gpu, which runs again what was recorded: whatever a step reads from
the host, and not from the graph's inputs, is what it was when it was recorded.
"""

import functools

import pytest

from folovllm_lite.gpu import graph_sizes
from tests import pretended_gpu

GRAPHS = ["graphs", "graphs, drawn", "graphs, swap", "graphs, prefix"]
reason = pretended_gpu.why_not()
without_a_gpu = pytest.mark.skipif(reason is not None, reason=str(reason))


@functools.cache
def seen() -> dict:
    """What the machine saw, with mistakes put in and without."""
    plants = ("padding", "spare", "tables", "recorded")
    names = [*GRAPHS, *(f"graphs:{plant}" for plant in plants)]
    return pretended_gpu.judge("scenarios", *names, "step bytes", "step bytes, chunks")


@without_a_gpu
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_give_the_tokens_of_the_cpu(name):
    found = seen()[name]
    assert found["same"] and found["mismatches"] == [] and found["strays"] == []
    if name == "graphs, swap":
        assert found["preemptions"] > 0
    if name == "graphs, prefix":
        assert found["hits"] > 0


@without_a_gpu
def test_a_step_is_one_launch_and_its_sampling():
    """And nothing waits while it is recorded: a GPU would refuse."""
    found = seen()["graphs"]
    assert len(found["capture"]) == len(graph_sizes(8)) and found["decode"]
    assert all(waits == 0 and launches > 100 for waits, launches in found["capture"])
    assert all(launches < 20 for _, launches in found["decode"])


@without_a_gpu
def test_mistakes_in_the_graphs_are_noticed():
    """Rows that nobody is in any more write to blocks which others own by now."""
    assert seen()["graphs:padding"]["strays"]
    assert seen()["graphs:spare"]["strays"]
    assert not seen()["graphs:tables"]["same"]
    assert any(waits for waits, _ in seen()["graphs:recorded"]["capture"])


@without_a_gpu
@pytest.mark.parametrize("name", ["step bytes", "step bytes, chunks"])
def test_the_largest_step_has_room(name):
    """What `step_bytes` found before covers what a full engine then needed."""
    reserved, needed = seen()[name]["reserved"], seen()[name]["needed"]
    assert 0.5 * reserved < needed <= reserved


def test_sizes():
    assert graph_sizes(1) == [1]
    assert graph_sizes(8) == [1, 2, 4, 8]
    assert graph_sizes(40) == [1, 2, 4, 8, 16, 32, 40]
    assert graph_sizes(256)[-3:] == [224, 240, 256]
    assert graph_sizes(4000)[-1] == 512


@without_a_gpu
def test_what_tests_gpu_asks_of_graphs_can_be_executed():
    assert len(pretended_gpu.judge("bodies")) == 3
