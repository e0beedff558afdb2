"""The learner's own engine: written in notebooks, assembled, judged and run.

`python -m folovllm_lite workbook` writes the course with blanks to fill, and
`python -m folovllm_lite mine` makes the package `my_engine` of what was filled.
"""

from folovllm_lite.mine.assembly import assemble
from folovllm_lite.mine.judge import load
from folovllm_lite.mine.notebooks import Found, MineError, find
from folovllm_lite.mine.report import differences, run
from folovllm_lite.mine.workbook import write

__all__ = [
    "Found",
    "MineError",
    "assemble",
    "differences",
    "find",
    "load",
    "run",
    "write",
]
