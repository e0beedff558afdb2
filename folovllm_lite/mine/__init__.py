"""The learner's own engine: written in notebooks, assembled, judged and run.

`python -m folovllm_lite workbook` writes the course with blanks to fill, and
`python -m folovllm_lite mine` makes the package `my_engine` of what was filled.

Names are imported when they are first used: reading notebooks needs no torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "Found": "notebooks",
    "MineError": "notebooks",
    "assemble": "assembly",
    "differences": "report",
    "find": "notebooks",
    "load": "judge",
    "run": "report",
    "write": "workbook",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  built from the table above


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
