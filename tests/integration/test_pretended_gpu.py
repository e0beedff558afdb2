"""The engine on a GPU that isn't there: same tokens, one device, how often it waits.

See tests/pretended_gpu. Each test is a process of its own, in which PyTorch is changed.
"""

import pytest

from tests import pretended_gpu
from tests.pretended_gpu.snippets import FREE, MISMATCHES, WAITS

reason = pretended_gpu.why_not()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))


def test_the_machine_notes_what_it_should():
    wanted = {
        **dict.fromkeys(WAITS, [1, 0]),
        **dict.fromkeys(FREE, [0, 0]),
        **dict.fromkeys(MISMATCHES, [0, 1]),
    }
    assert pretended_gpu.judge("snippets") == wanted


def test_every_scenario():
    """The tokens are the CPU's, no operand is elsewhere, and the host rarely waits.

    In bfloat16 the two devices round at other places, and near-ties part.
    """
    seen = pretended_gpu.judge("scenarios")
    assert {name: found["mismatches"] for name, found in seen.items()} == {
        name: [] for name in seen
    }
    others = [name for name, found in seen.items() if not found["same"]]
    assert set(others) <= {"bfloat16"}
    # A pool that was never full, a prefix that was never found: nothing was tested.
    assert all(found["decode"] for found in seen.values())
    assert seen["swap"]["preemptions"] > 0 and seen["recompute"]["preemptions"] > 0
    assert seen["prefix"]["hits"] > 0
    # Once for the tokens; seeded rows are looked at before they are drawn.
    seeded = {"seeded", "filters", "n", "swap", "recompute", "generate"}
    for name, found in seen.items():
        most = 2 if name in seeded else 1
        assert max(waits for waits, _ in found["decode"]) <= most, found["places"]
    # A greedy step launches no more for more rows.
    two, sixteen = (
        {launches for _, launches in seen[name]["decode"]}
        for name in ("two", "sixteen")
    )
    assert len(two) == 1 and sixteen == two


def test_mistakes_in_the_engine_are_noticed():
    seen = pretended_gpu.judge(
        "scenarios",
        *("two", "two:wait", "two:mismatch", "sixteen:launches", "chunks:no triton"),
    )
    plain = seen["chunks:no triton"]
    assert plain["same"] and plain["mismatches"] == []
    assert all(waits <= 1 for waits, _ in plain["decode"])
    right = seen["two"]
    assert right["mismatches"] == [] and seen["two:mismatch"]["mismatches"]
    for (waits, launches), wrong in zip(
        right["decode"], seen["two:wait"]["decode"], strict=True
    ):
        assert wrong[0] == waits + 1
        assert seen["sixteen:launches"]["decode"][0][1] >= launches + 16
