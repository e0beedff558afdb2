"""A GPU that isn't there: the engine's GPU path, run and judged on a CPU.

`device` is the machine, `scenarios` runs the engine on it. Both change PyTorch for the
whole process, so tests start them in a process of their own; `judge` does that.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """Why this machine can't pretend to have a GPU; None if it can."""
    import torch

    if platform.system() != "Linux":
        return "a pretended GPU was made for Linux"
    if torch.version.cuda is not None:
        return "a pretended GPU needs a PyTorch that was built without CUDA"
    if shutil.which("g++") is None:
        return "a pretended GPU needs g++"
    return None


def judge(module: str, *arguments: str) -> dict:
    """Run `python -m tests.pretended_gpu.MODULE ARGUMENTS`; the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.pretended_gpu.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
