"""Run every check that this machine can run, and say what it couldn't (make test).

    python -m tests.run [step ...]

The steps run one after another, a failing one doesn't stop the next, and the exit
status is 1 when any failed. At the end stand the totals, and what was skipped and why.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.notebooks.course import ENVIRONMENT, NBVAL, NOTEBOOK_SECONDS, ROOT

PYTEST_FOUND_NO_TESTS = 5
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # elsewhere than in tests/gpu, the CPU is meant


@dataclass(frozen=True)
class Step:
    """One part of the run: modules of this Python with their arguments."""

    about: str
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> list[str]:
        """What pytest is to look into; a folder that has no tests yet is no error."""
        return [word for word in self.commands[0] if word.startswith("tests/")]


STEPS = {
    "ruff": Step(
        "style of the code",
        (("ruff", "check", "."), ("ruff", "format", "--check", ".")),
    ),
    "lint": Step(
        "shape of the notebooks, and drift from the package",
        (("pytest", "tests/notebooks"),),
        NO_GPU,
    ),
    "unit": Step(
        "the package, piece by piece and against transformers",
        (
            (
                "pytest",
                "tests/unit",
                "tests/checks",
                "tests/viz",
                "tests/integration",
                "-n2",
            ),
        ),
        NO_GPU,
    ),
    "notebooks": Step(
        "every cell executed, every output compared",
        (("pytest", *NBVAL),),
        ENVIRONMENT,
    ),
    "browser": Step(
        "the tour in JupyterLab in a browser",
        (("pytest", "tests/browser"),),
        NO_GPU,
    ),
    "gpu": Step("what needs a GPU", (("pytest", "tests/gpu"),)),
    "benchmark": Step(
        "speed, as ratios within one run",
        (("pytest", "tests/benchmark"),),
        NO_GPU,
    ),
}


@dataclass
class Totals:
    """What the steps came to."""

    counts: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)  # (step, reason) -> how many
    failed: list[str] = field(default_factory=list)

    def add_report(self, name: str, report: Path) -> None:
        """Add pytest's JUnit report of one step."""
        seconds: Counter = Counter()
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            if "failure" in kinds or "error" in kinds:
                self.counts["failed"] += 1
            elif "skipped" in kinds:
                self.counts["skipped"] += 1
                reason = case.find("skipped").get("message", "")
                self.skipped[name, reason] += 1
            else:
                self.counts["passed"] += 1
            seconds[case.get("classname")] += float(case.get("time", 0))
        if name == "notebooks":
            # Beside a busy process all are slow, and who takes longest is no slower
            # than the others: a quarter of the whole is allowed then.
            most = max(NOTEBOOK_SECONDS, sum(seconds.values()) / 4)
            for notebook, spent in seconds.items():
                if spent > most:
                    self.failed.append(
                        f"{notebook} took {spent:.0f} s, at most {most:.0f} are allowed"
                    )

    def print(self, seconds: float) -> None:
        """The closing lines: skipped and why, what failed, the sums."""
        if self.skipped:
            print("\nSkipped, and why:")
        for (name, reason), count in self.skipped.items():
            print(f"  {name}: {reason} ({count})")
        for failure in self.failed:
            print(f"FAILED: {failure}")
        counts = ", ".join(
            f"{self.counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")
        )
        print(f"\nAll steps: {counts} in {seconds:.0f} s")


def run_step(name: str, step: Step, totals: Totals, folder: Path) -> None:
    """Run one step's commands and add what came of them to `totals`."""
    print(f"\n----- {name}: {step.about}", flush=True)
    if step.folders and not any((ROOT / path).exists() for path in step.folders):
        totals.skipped[name, "no tests yet"] += 1
        print("no tests yet")
        return
    environment = {**os.environ, **step.environment}
    for command in step.commands:
        report = folder / f"{name}.xml"
        words = [
            word
            for word in command
            if word not in step.folders or (ROOT / word).exists()
        ]
        if command[0] == "pytest":
            words.append(f"--junitxml={report}")
        status = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, check=False
        ).returncode
        if report.exists():
            totals.add_report(name, report)
        if status == PYTEST_FOUND_NO_TESTS and command[0] == "pytest":
            totals.skipped[name, "no tests yet"] += 1
        elif status:
            totals.failed.append(f"{name}: {' '.join(command[:2])} (exit {status})")


def main(arguments: list[str] | None = None) -> int:
    """Run the named steps, or all; 1 when any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.run",
        epilog="; ".join(f"{name}: {step.about}" for name, step in STEPS.items()),
    )
    parser.add_argument("steps", nargs="*", help="default: all", metavar="step")
    options = parser.parse_args(arguments)
    for name in options.steps:
        if name not in STEPS:
            parser.error(f"no step {name!r}; there are {', '.join(STEPS)}")
    totals = Totals()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.steps or STEPS:
            run_step(name, STEPS[name], totals, Path(folder))
    totals.print(time.perf_counter() - start)
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
