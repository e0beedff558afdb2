"""The suites on a learner's modules, and their engine beside the package's.

A module is judged alone, among the package's others: a red line is about that piece.
"""

import contextlib
import hashlib
import importlib
import io
import re
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from folovllm_lite import checks
from folovllm_lite.checks.harness import Suite
from folovllm_lite.mine.assembly import NAME, assemble, read_record, write_record
from folovllm_lite.mine.notebooks import Found, parts
from folovllm_lite.mine.pieces import PACKAGE

# Attention contexts over the pool have one suite, whatever they are called.
CONTEXTS = {"paged": ("PagedContext",), "flash": ("FlashContext",)}


@dataclass(frozen=True)
class Verdict:
    """What the suites say of a module: how many properties are red, and the first."""

    red: int = 0
    first: tuple[str, ...] = ()
    judged: bool = True  # there is a suite for it


def judge(module: str, source: str, file: Path) -> Verdict:
    """Run the module's suites on it, among the package's other modules."""
    try:
        pieces = _loaded(module, source, file)
    except Exception as error:  # noqa: BLE001  whatever a learner's code may raise
        return Verdict(1, (f"✗ it can't be imported: {type(error).__name__}: {error}",))
    red, first, judged = 0, (), False
    for suite in _suites(module, pieces):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(checks.CheckFailed):
            suite()
        blocks = re.split(r"\n(?=[✓✗] )", out.getvalue().rstrip())
        failed = [block for block in blocks if block.startswith("✗")]
        red += len(failed)
        first = first or tuple(failed[0].splitlines() if failed else ())
        judged = True
    return Verdict(red, first, judged)


def _suites(module: str, pieces: dict) -> Iterator[Callable[[], None]]:
    """What judges a module's pieces."""
    home = importlib.import_module(f"folovllm_lite.{module}")
    for suite in vars(checks).values():
        if isinstance(suite, Suite) and suite.module is home:
            mine = {name: pieces[name] for name in suite.judges() if name in pieces}
            if mine:
                yield partial(suite, mine)
    for name in CONTEXTS.get(module, ()):
        if name in pieces:
            yield partial(checks.contexts, pieces[name])


def _loaded(module: str, source: str, file: Path) -> dict:
    """The names of a module that is run as if it were the package's."""
    name = f"folovllm_lite.{module}"
    made = types.ModuleType(name)
    made.__file__ = str(file)
    home = importlib.import_module(name)
    sys.modules[name] = made  # a dataclass looks for its module there
    try:
        exec(compile(source, str(file), "exec"), vars(made))
    finally:
        sys.modules[name] = home
    return vars(made)


def _digest(source: str) -> str:
    """What a verdict depends on: this source and the whole package."""
    found = hashlib.sha256(source.encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def judge_all(found: Found, sources: dict[str, str], out: Path) -> dict[str, Verdict]:
    """The verdicts on all modules that hold something of the learner's.

    A module that was green and hasn't changed since isn't judged again.
    """
    folder = out / NAME
    record, verdicts = read_record(folder), {}
    for module in parts():
        if not found.yours(module):
            continue
        digest = _digest(sources[module])
        if record.get(module) != digest:
            verdicts[module] = judge(module, sources[module], folder / f"{module}.py")
            if verdicts[module].red or not verdicts[module].judged:
                record.pop(module, None)
                continue
            record[module] = digest
        verdicts[module] = Verdict()
    write_record(folder, record)
    return verdicts


def calls(error: BaseException) -> list[str]:
    """The lines of the learner's engine on the way to an exception, outermost first."""
    return [
        f"in {frame.name}, line {frame.lineno} of {Path(frame.filename).name}: "
        f"{frame.line}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent.name == NAME
    ]


# ----- the whole engine beside the package's

STORIES = ("Once upon a time", "从前")
_TOKENS = 80  # of a story
_ROUNDS, _REQUESTS, _NEW = 3, 8, 32  # of the race


def engine(out: Path) -> types.ModuleType:
    """Import the `my_engine` that was just written into `out`."""
    for name in [n for n in sys.modules if n.partition(".")[0] == NAME]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(out.resolve()))
    try:
        made = importlib.import_module(NAME)
        importlib.import_module(f"{NAME}.llm")  # names are imported when first used
    finally:
        sys.path.pop(0)
    return made


def load(found: Found, out: Path) -> types.ModuleType:
    """Assemble `my_engine` in `out`, judge nothing, and import it.

    Raises:
        MineError: as `assemble`.
    """
    assemble(found, out)
    return engine(out)


@dataclass(frozen=True)
class Story:
    """A prompt, what the learner's engine made of it, and if the package's agrees."""

    prompt: str
    text: str
    same: bool


def tell(mine: types.ModuleType, theirs: types.ModuleType) -> tuple[list[Story], float]:
    """A story in each language from both engines; and how fast the first is.

    Returns:
        The stories; tokens per second as a share of the other's.
    """
    engines = [each.LLM(device="cpu", seed=0) for each in (mine, theirs)]
    params = [each.SamplingParams for each in (mine, theirs)]
    stories = []
    outputs = [
        llm.generate(list(STORIES), make(temperature=0, max_tokens=_TOKENS), False)
        for llm, make in zip(engines, params, strict=True)
    ]
    for ours, other in zip(*outputs, strict=True):
        (one,), (two,) = ours.outputs, other.outputs
        stories.append(Story(ours.prompt, one.text, one.token_ids == two.token_ids))
    seconds: list[list[float]] = [[], []]
    for _ in range(_ROUNDS):  # in turns: a busy moment meets both
        for llm, make, spent in zip(engines, params, seconds, strict=True):
            asked = make(temperature=0, max_tokens=_NEW, ignore_eos=True)
            began = time.perf_counter()
            llm.generate(list(STORIES) * (_REQUESTS // 2), asked, False)
            spent.append(time.perf_counter() - began)
    return stories, min(seconds[1]) / min(seconds[0])
