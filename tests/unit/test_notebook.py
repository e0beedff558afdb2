"""`adds_to`: a class that grows from cell to cell is the class written at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pytest
import torch

from folovllm_lite.notebook import adds_to

CELLS = '''
class Counter:
    """Counts."""

    def __init__(self):
        self.steps = 0

---
@adds_to(Counter)
def step(self):
    self.steps += 1
    return self.steps
---
@adds_to(Counter)
@property
def twice(self):
    return 2 * self.steps
---
@adds_to(Counter)
@staticmethod
def one():
    return 1
---
@adds_to(Counter)
@classmethod
def new(cls):
    return cls()
---
@adds_to(Counter)
@cached_property
def once(self):
    return self.step()
---
@adds_to(Counter)
@torch.inference_mode()
def guarded(self):
    return torch.is_inference_mode_enabled()
'''


def notebook(cells=CELLS, **names):
    """Run the cells in one namespace, as a kernel does."""
    names |= {"adds_to": adds_to, "cached_property": cached_property, "torch": torch}
    for cell in cells.split("---\n"):
        exec(cell, names)
    return names


def test_every_kind_of_method_works():
    counter = notebook()["Counter"].new()
    assert [counter.step(), counter.step()] == [1, 2]
    assert (counter.twice, counter.one(), counter.once, counter.once) == (4, 1, 3, 3)
    assert counter.guarded() and not torch.is_inference_mode_enabled()
    assert type(counter).step.__qualname__ == "Counter.step"


def test_a_method_hides_nothing_of_the_notebook():
    """A notebook's `output` was None after the cell with the method of that name."""
    names = notebook(step="kept", guarded="kept too")
    assert (names["step"], names["guarded"]) == ("kept", "kept too")
    names = notebook(CELLS + "---\n@adds_to(Counter)\ndef next(self): ...\n")
    assert names["next"] is next


def test_a_cell_can_be_run_again():
    names = notebook()
    counter = names["Counter"]()
    exec(CELLS.split("---\n")[1].replace("+= 1", "+= 5"), names)
    assert counter.step() == 5


def test_what_only_a_class_statement_can_do_is_refused():
    """Both would be accepted and then fail, or be ignored, far from their cell."""
    cells = "class A: ...\n---\n@adds_to(A)\ndef f(self):\n    super().f()\n"
    with pytest.raises(TypeError, match="super.*class A"):
        notebook(cells)

    @dataclass
    class B:
        x: int

    with pytest.raises(TypeError, match="__post_init__.*class B"):

        @adds_to(B)
        def __post_init__(self): ...
