"""What a notebook needs so that a class can grow from cell to cell."""

import builtins
import dataclasses
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any


def adds_to(owner: type) -> Callable[[Any], Any]:
    """Make what stands below it a method of a class that an earlier cell began.

        @adds_to(Scheduler)
        def step(self):
            ...

    It takes functions, properties and class or static methods. In the notebook the name
    goes on meaning what it meant before: a method `output` hides no variable `output`.
    d2l's `add_to_class` and fastcore's `patch_to` do the same.

    Raises:
        TypeError: what Python only does while it makes a class: `super()` without
            arguments, and a dataclass's `__post_init__`.
    """

    def add(piece: Any) -> Any:
        function = _function(piece)
        name = function.__name__
        if "super" in function.__code__.co_names:
            raise TypeError(
                f"{name} calls super(), which finds its class only where the class "
                f"begins: write {name} into the cell with `class {owner.__name__}`"
            )
        if name == "__post_init__" and dataclasses.is_dataclass(owner):
            raise TypeError(
                "a dataclass looks for __post_init__ when it is made: write it into "
                f"the cell with `class {owner.__name__}`"
            )
        function.__qualname__ = f"{owner.__qualname__}.{name}"
        setattr(owner, name, piece)
        if isinstance(piece, cached_property):
            piece.__set_name__(owner, name)
        here = inspect.currentframe().f_back.f_globals
        return here.get(name, getattr(builtins, name, None))

    return add


def _function(piece: Any) -> Callable:
    """The function inside a property, a class method or a wrapper."""
    for inner in ("fget", "__func__", "func"):
        piece = getattr(piece, inner, None) or piece
    return inspect.unwrap(piece)
