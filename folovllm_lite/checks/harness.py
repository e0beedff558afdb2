"""How a suite runs: a line for each property, the smallest input that breaks it.

A property is a function of the pieces it judges. Its docstring is the sentence that is
printed, and it says what it saw through `expect`, with inputs that go from small to
large, so that the first failure is the smallest. Whatever the judged code raises is
shown with the calls that led to it and the line of that code where it happened, never
as a traceback through this package. What isn't written yet gets a line without a hint:
hints belong to attempts.
"""

import inspect
import linecache
import re
import reprlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, NoReturn

import torch

_PACKAGE = Path(__file__).parents[1]
_LIBRARY = Path(sysconfig.get_path("stdlib"))
_CALLS = 4  # of those that led to an exception, shown at most


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

    To judge, call it: `checks.sampler(apply_top_k=mine)` judges one function,
    `checks.sampler(module)` all of a module, and so does a dict of names.

    Args:
        module: where a piece comes from that isn't given; a namespace where the package
            has several of its kind.
        about: what is judged, and by which contract; becomes its docstring.
        inside: makes the context in which every property runs.
        methods: a function that can be judged alone, and what it stands for: a method
            of the package's class, {"admit": "Scheduler._admit"}, or a function that
            another one calls, {"quantize_columns": "gptq._quantize_columns"}.
    """

    def __init__(
        self,
        module: ModuleType | SimpleNamespace,
        about: str = "",
        inside: Callable[[], AbstractContextManager] = nullcontext,
        methods: Mapping[str, str] | None = None,
    ):
        self.module = module
        self.inside = inside
        self.methods = methods or {}
        self.properties: list[Property] = []
        self.__doc__ = inspect.cleandoc(about) or None

    def __call__(self, pieces: Any = None, /, **named: Any) -> None:
        """Judge as `run` does."""
        self.run(pieces, **named)

    def property(self, *needs: str, hint: str) -> Callable:
        """Register a function as a property of the pieces called `needs`."""

        def register(function: Callable[[SimpleNamespace], None]) -> Callable:
            if function.__name__ in {each.holds.__name__ for each in self.properties}:
                raise ValueError(f"two properties are named {function.__name__}")
            sentence = " ".join(inspect.getdoc(function).split())
            self.properties.append(Property(sentence, needs, hint, function))
            return function

        return register

    def run(self, pieces: Any = None, /, **named: Any) -> None:
        """Judge pieces by every property that is about them, and print a line for each.

        Args:
            pieces: a module or a mapping that holds pieces under the package's names;
                or the piece itself, where all properties are about one.
            named: single pieces by those names. What is given neither way is the
                package's own.

        Raises:
            CheckFailed: after the last line, if any property doesn't hold.
            TypeError: if there is nothing to judge, or a name that no property is
                about.
        """
        given = {**self._pieces(pieces), **self._in_classes(named)}
        known = self.judges()
        strange = sorted(named.keys() - known - self.methods.keys())
        if strange or not given.keys() & known:
            what = (
                f"no property is about {', '.join(strange)}"
                if strange
                else "nothing given"
            )
            raise TypeError(
                f"{what}; there are properties of {', '.join(sorted(known))}"
            )
        for name, piece in {**given, **named}.items():
            if name in known | self.methods.keys() and not callable(piece):
                raise TypeError(f"{name} must be something to call, got {piece!r}")
        together = SimpleNamespace(**{**vars(self.module), **given})
        chosen = [each for each in self.properties if given.keys() & set(each.needs)]
        alone = [piece for name, piece in named.items() if name in self.methods]
        with self.inside(), self._lent(alone):
            failed = sum(not _report(each, together) for each in chosen)
        if failed:
            raise CheckFailed(
                f"{failed} of {len(chosen)} properties don't hold yet, see above"
            )
        print(f"All {len(chosen)} properties hold.")

    def _in_classes(self, named: dict[str, Any]) -> dict[str, Any]:
        """The pieces, with what is given alone in the package's class or function."""
        made = dict(named)
        for name in named.keys() & self.methods.keys():
            owner, _, part = self.methods[name].partition(".")
            base = made.get(owner, getattr(self.module, owner))
            own = {part: made.pop(name)}
            if isinstance(base, type):
                made[owner] = type("Yours", (base,), own)
            else:
                names = {**base.__globals__, **own}
                made[owner] = FunctionType(
                    base.__code__, names, owner, base.__defaults__
                )
        return made

    @contextmanager
    def _lent(self, methods: list[Any]) -> Iterator[None]:
        """Where a method was written, the package's names mean the package's pieces.

        Its class is the package's, too, and a dataclass from a notebook equals none of
        the package's, whatever it holds.
        """
        home = getattr(self.module, "__name__", None)
        theirs = {
            name: piece
            for name, piece in vars(self.module).items()
            if getattr(piece, "__module__", None) == home
        }
        borrowers = [getattr(method, "__globals__", {}) for method in methods]
        # A module may go by a piece's name (`from folovllm_lite import gptq`).
        before = [
            {
                name: names[name]
                for name in theirs.keys() & names
                if not isinstance(names[name], ModuleType)
            }
            for names in borrowers
        ]
        try:
            for names, old in zip(borrowers, before, strict=True):
                names.update({name: theirs[name] for name in old})
            yield
        finally:
            for names, old in zip(borrowers, before, strict=True):
                names.update(old)

    def judges(self) -> set[str]:
        """The names of all pieces that a property is about."""
        return {name for each in self.properties for name in each.needs}

    def _pieces(self, pieces: Any) -> dict[str, Any]:
        if pieces is None:
            return {}
        if isinstance(pieces, Mapping):
            return dict(pieces)
        known = self.judges()
        if callable(pieces) and len(known) == 1:
            return dict.fromkeys(known, pieces)
        return {name: getattr(pieces, name) for name in known if hasattr(pieces, name)}


def _report(each: Property, pieces: SimpleNamespace) -> bool:
    """Print the property's line, and below it what went wrong; whether it holds."""
    try:
        each.holds(pieces)
    except _Mismatch as mismatch:
        given, got, wanted = mismatch.args
        lines = [f"input:    {given}", f"got:      {got}", f"expected: {wanted}"]
    except Exception as error:  # noqa: BLE001  whatever a learner's code may raise
        calls = _calls(error)
        if isinstance(error, NotImplementedError) and calls and calls[-1].is_learners:
            print(f"✗ {each.sentence} (not written yet)")
            return False
        lines = [f"input:    {given}" for given in getattr(error, "__notes__", [])]
        lines += [f"{type(error).__name__}: {error}", *map(str, calls[-_CALLS:])]
    else:
        print(f"✓ {each.sentence}")
        return True
    print(f"✗ {each.sentence}")
    for line in [*lines, f"hint:     {each.hint}"]:
        if line:
            print(f"    {line}")
    return False


@dataclass(frozen=True)
class _Call:
    """A call on the way to an exception, and the line of it that was running."""

    function: str
    arguments: str
    file: Path
    number: int
    line: str

    @property
    def is_learners(self) -> bool:
        """Whether it is no code of this package."""
        return _PACKAGE not in self.file.parents

    def __str__(self) -> str:
        where = f"line {self.number}"
        if not self.is_learners:
            where += f" of folovllm_lite/{self.file.relative_to(_PACKAGE).as_posix()}"
        return f"in {self.function}({self.arguments}), {where}: {self.line}"


def _calls(error: Exception) -> list[_Call]:
    """The calls outside this folder and the libraries, the outermost first."""
    found = []
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        judge = file.parent == Path(__file__).parent
        library = "site-packages" in file.parts or _LIBRARY in file.parents
        if judge or library:
            continue
        text = linecache.getline(str(file), number).strip()
        if text:
            name, given = frame.f_code.co_name, _arguments(frame)
            found.append(_Call(name, given, file, number, text))
    return found


def _arguments(frame: FrameType) -> str:
    """What a function was called with, shortened."""
    names, star, stars, values = inspect.getargvalues(frame)
    given = [f"{name}={_short(values[name])}" for name in names if name != "self"]
    if star:
        given += map(_short, values[star])
    if stars:
        given += [f"{name}={_short(value)}" for name, value in values[stars].items()]
    return ", ".join(given)


class _Short(reprlib.Repr):
    """Values in a few words, without an address, which differs from run to run."""

    maxstring = maxother = 40

    def repr_instance(self, value: Any, level: int) -> str:
        """Whatever is no list, dict, string or int."""
        if isinstance(value, torch.Tensor):
            small = value.numel() <= 12
            return str(plain(value)) if small else f"a tensor {list(value.shape)}"
        if is_dataclass(value) and not isinstance(value, type):
            name = fields(value)[0].name  # of a Sequence its seq_id, and so on
            first = self.repr1(getattr(value, name, None), level)
            return f"{type(value).__name__}({first}, …)"
        if isinstance(value, float):
            return repr(plain(value))
        if isinstance(value, torch.nn.Module) or " at 0x" in repr(value):
            return f"<{getattr(value, '__name__', type(value).__name__)}>"
        return super().repr_instance(value, level)


def _short(value: Any) -> str:
    return _Short().repr(value)


@contextmanager
def on(given: str | Callable[[], str]) -> Iterator[None]:
    """Say for which input the judged code is run, should it raise.

    Args:
        given: the input; or what tells it, where it grows from call to call.
    """
    try:
        yield
    except _Mismatch:  # has its own
        raise
    except Exception as error:
        error.add_note(given if isinstance(given, str) else given())
        raise


def expect(given: str, got: Any, wanted: Any) -> None:
    """Fail unless `got` equals `wanted`; `given` says for which input.

    Tensors are compared as lists; numbers are rounded to four digits, and one more or
    less in the last of them is equal.
    """
    got, wanted = plain(got), plain(wanted)
    if not _equal(got, wanted):
        raise _Mismatch(given, got, wanted)


def _equal(got: Any, wanted: Any) -> bool:
    """Whether they are equal, but for a float's last digit: it may round either way."""
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(map(_equal, got, wanted))
    if isinstance(got, float) and isinstance(wanted, float):
        return got == wanted or abs(got - wanted) < 1.5e-4
    return got == wanted


def expect_error(
    given: str, call: Callable[[], Any], error: type, *named: str | tuple[str, ...]
) -> None:
    """Fail unless `call` raises `error` with a message that names all of `named`.

    Those are fields and values: what the message says of them is the author's to word.
    Of a tuple any will do.
    """
    groups = [(each,) if isinstance(each, str) else each for each in named]
    about = " and ".join(" or ".join(group) for group in groups)
    wanted = error.__name__ + (f" that names {about}" if named else "")
    try:
        got = call()
    except error as raised:
        said = str(raised)
        if all(any(_names(said, each) for each in group) for group in groups):
            return
        fail(given, f"{type(raised).__name__}: {raised}", wanted)
    except NotImplementedError:
        if error is not NotImplementedError:
            raise  # a stub that isn't written yet, and no wrong answer
    except Exception as raised:  # noqa: BLE001
        fail(given, f"{type(raised).__name__}: {raised}", wanted)
    fail(given, f"no error, but {got!r}", wanted)


def _names(message: str, value: str) -> bool:
    """Whether the message holds the value, and not only as a part of a number."""
    before = r"(?<!\d)(?<!\d\.)" if value[:1].isdigit() else ""
    after = r"(?!\d|\.\d)" if value[-1:].isdigit() else ""
    return re.search(before + re.escape(value) + after, message) is not None


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
