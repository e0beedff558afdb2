"""How a suite runs: a line for each property, the smallest input that breaks it.

A property is a function of the pieces it judges. Its docstring is the sentence that is
printed, and it says what it saw through `expect`, with inputs that go from small to
large, so that the first failure is the smallest. Whatever the judged code raises is
shown with the line of that code where it happened, never as a traceback through this
package.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch

_PACKAGE = Path(__file__).parents[1]


class CheckFailed(AssertionError):
    """Some properties don't hold; the lines printed before say which and why."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence alone."""
        return [f"CheckFailed: {self}"]


class _Mismatch(Exception):
    """Raised by `expect`: (input, got, wanted)."""


@dataclass(frozen=True)
class Property:
    """One sentence that has to be true of the pieces called `needs`."""

    sentence: str
    needs: tuple[str, ...]
    hint: str
    holds: Callable[[SimpleNamespace], None]


class Suite:
    """Properties of the pieces of one module of the package.

    Args:
        module: where a piece comes from that isn't given.
    """

    def __init__(self, module: ModuleType):
        self.module = module
        self.properties: list[Property] = []

    def property(self, *needs: str, hint: str) -> Callable:
        """Register a function as a property of the pieces called `needs`."""

        def register(function: Callable[[SimpleNamespace], None]) -> Callable:
            sentence = " ".join(inspect.getdoc(function).split())
            self.properties.append(Property(sentence, needs, hint, function))
            return function

        return register

    def run(self, pieces: Any = None, /, **named: Any) -> None:
        """Judge pieces by every property that is about them, and print a line for each.

        Args:
            pieces: a module or a mapping that holds pieces under the package's names.
            named: single pieces by those names. What is given neither way is the
                package's own.

        Raises:
            CheckFailed: after the last line, if any property doesn't hold.
            TypeError: if there is nothing to judge, or a name that no property is
                about.
        """
        given = {**self._pieces(pieces), **named}
        known = {name for each in self.properties for name in each.needs}
        strange = sorted(named.keys() - known)
        if strange or not given.keys() & known:
            what = (
                f"no property is about {', '.join(strange)}"
                if strange
                else "nothing given"
            )
            raise TypeError(
                f"{what}; there are properties of {', '.join(sorted(known))}"
            )
        for name, piece in given.items():
            if name in known and not callable(piece):
                raise TypeError(f"{name} must be something to call, got {piece!r}")
        together = SimpleNamespace(**{**vars(self.module), **given})
        chosen = [each for each in self.properties if given.keys() & set(each.needs)]
        failed = sum(not _report(each, together) for each in chosen)
        if failed:
            raise CheckFailed(
                f"{failed} of {len(chosen)} properties don't hold yet, see above"
            )
        print(f"All {len(chosen)} properties hold.")

    def _pieces(self, pieces: Any) -> dict[str, Any]:
        if pieces is None:
            return {}
        if isinstance(pieces, Mapping):
            return dict(pieces)
        known = {name for each in self.properties for name in each.needs}
        return {name: getattr(pieces, name) for name in known if hasattr(pieces, name)}


def _report(each: Property, pieces: SimpleNamespace) -> bool:
    """Print the property's line, and below it what went wrong; whether it holds."""
    try:
        each.holds(pieces)
    except _Mismatch as mismatch:
        given, got, wanted = mismatch.args
        lines = [f"input:    {given}", f"got:      {got}", f"expected: {wanted}"]
    except NotImplementedError as error:
        lines = [f"not written yet: {error or _place(error)}"]
    except Exception as error:  # noqa: BLE001  whatever a learner's code may raise
        lines = [f"{type(error).__name__}: {error}", _place(error)]
    else:
        print(f"✓ {each.sentence}")
        return True
    print(f"✗ {each.sentence}")
    for line in [*lines, f"hint:     {each.hint}"]:
        if line:
            print(f"    {line}")
    return False


def _place(error: Exception) -> str:
    """The last line outside this package and the libraries on the way to the error."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        ours = _PACKAGE in file.parents and "checks" in file.parts
        if not ours and "site-packages" not in file.parts and frame.line:
            return f"in {frame.name}, line {frame.lineno}: {frame.line.strip()}"
    return ""


def expect(given: str, got: Any, wanted: Any) -> None:
    """Fail unless `got` equals `wanted`; `given` says for which input.

    Tensors are compared as lists, rounded to four digits; numbers within 1e-4.
    """
    got, wanted = plain(got), plain(wanted)
    if got != wanted:
        raise _Mismatch(given, got, wanted)


def expect_error(given: str, call: Callable[[], Any], error: type, *words: str) -> None:
    """Fail unless `call` raises `error` with a message that holds all `words`."""
    about = f" that says {' and '.join(map(repr, words))}" if words else ""
    wanted = f"{error.__name__}{about}"
    try:
        got = call()
    except error as raised:
        if all(word in str(raised) for word in words):
            return
        fail(given, f"{type(raised).__name__}: {raised}", wanted)
    except NotImplementedError:
        if error is not NotImplementedError:
            raise  # a stub that isn't written yet, and no wrong answer
    except Exception as raised:  # noqa: BLE001
        fail(given, f"{type(raised).__name__}: {raised}", wanted)
    fail(given, f"no error, but {got!r}", wanted)


def fail(given: str, got: Any, wanted: Any) -> NoReturn:
    """Fail with the three things a learner needs to see."""
    raise _Mismatch(given, got, wanted)


def plain(value: Any) -> Any:
    """Tensors as lists, floats rounded, so that values compare and print alike."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return round(value, 4) + 0.0  # no -0.0
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
