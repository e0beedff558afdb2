"""The course as a table, and how its notebooks are run: shared by all that checks them.

`ENVIRONMENT` and `NBVAL` stand here once, so that the command which executes and
saves the notebooks (`build.py`) and the run that compares them (`tests/run.py`)
cannot come to differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PACKAGE = ROOT / "folovllm_lite"

CELL_SECONDS = 120
NOTEBOOK_SECONDS = 60

# What a notebook's kernel finds in its environment, wherever it runs: the same hash
# seed, no progress bars (they go to stderr), no network, one thread, no GPU.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

# A dead kernel is noticed only at the cell timeout, and nbval's own is 2000 s.
NBVAL = [
    "notebooks",
    "--nbval",
    "--nbval-current-env",
    "-pno:python",
    "--nbval-sanitize-with=tests/notebooks/sanitize.cfg",
    f"--nbval-cell-timeout={CELL_SECONDS}",
    "--nbval-kernel-startup-timeout=120",
    "-n2",
    "--dist=loadfile",
]

# A version in language_info would change with every machine that saves the notebook.
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Lesson:
    """One notebook: its number, name, milestone, and the modules that it finishes."""

    number: int
    name: str
    milestone: str = ""
    teaches: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.number:02}_{self.name}.ipynb"


COURSE = (
    Lesson(0, "tour"),
    Lesson(1, "configs", "M0", ("config", "utils")),
    Lesson(2, "sampling_params", "M0", ("sampling_params",)),
    Lesson(3, "sampler", "M1", ("sampler",)),
    Lesson(4, "requests_and_outputs", "M0", ("request", "outputs")),
    Lesson(5, "model_loading", "M0", ("model_loader",)),
    Lesson(6, "transformer", "M1", ("attention", "qwen3")),
    Lesson(7, "kv_cache", "M1", ("kv_cache",)),
    Lesson(8, "text_in_text_out", "M1", ("processor",)),
    Lesson(9, "generation_loop", "M1", ("generation",)),
    Lesson(10, "continuous_batching", "M2", ("scheduler", "engine", "llm")),
    Lesson(11, "paged_kv_cache", "M3", ("block_manager", "paged", "runner")),
    Lesson(12, "flash_attention", "M4", ("flash",)),
    Lesson(13, "chunked_prefill", "M5", ("scheduler",)),
    Lesson(14, "prefix_caching", "M6", ("prefix_cache",)),
    Lesson(15, "gptq_quantization", "M7", ("gptq",)),
)

# Notebooks may use these at any time and none teaches them: pictures, judges,
# `adds_to`, what PyTorch's layers become on this machine, the embedded model's texts.
HELPERS = ("viz", "widgets", "checks", "notebook", "fast", "gpu", "tiny")

# What the package has and no notebook teaches: a module, one name of it or one member
# of a class (`module.Class.method`), with the number of the notebook still to come, or
# the reason why there is none. What is still to come may not be written yet.
UNTAUGHT: dict[str, int | str] = {
    "llm": "options to parts, and the loop around the engine; 09 builds its first form",
    "gptq.quantize": "whole checkpoints: 15's steps over files, layer by layer",
    "gptq.load": "the same: what `LLM(path)` does with such a checkpoint",
    "gptq.read_quantization": "the same: finds the settings in a checkpoint's files",
    "gptq.Report": "the same: what `quantize` measured, as a table",
    "tiny": "the embedded model and its recipe, described in its model card",
    "bench": "measures what the notebooks teach; each shows its own costs",
    "doctor": "tells what this machine can run; 00 shows its table",
    "lab": "the learner's copies of the notebooks, and JupyterLab on them",
    "__main__": "the command line over what the notebooks teach",
}


# Lessons whose first reading isn't cut to the rules yet (the card's minutes, at most 60
# of them, marked final cells). It only gets shorter: a test wants an entry removed as
# soon as its lesson keeps the rules.
LONG: set[str] = set()


def cell_metadata(tags: list[str]) -> dict:
    """A cell's metadata: its tags, and collapsed code where they say `skim`."""
    if not tags:
        return {}
    hidden = {"jupyter": {"source_hidden": True}} if "skim" in tags else {}
    return {**hidden, "tags": tags}


def lesson_of(path: Path) -> Lesson | None:
    """The lesson that a notebook's (or solution's) file name stands for."""
    return next((lesson for lesson in COURSE if lesson.file == path.name), None)


def notebooks() -> list[Path]:
    """Every notebook of the repository, lessons first, then solutions."""
    return sorted(NOTEBOOKS.glob("*.ipynb")) + sorted(
        NOTEBOOKS.glob("solutions/*.ipynb")
    )


def read(path: Path) -> dict:
    """A notebook as plain JSON with each multi-line string joined.

    nbformat isn't used here: on reading it repairs what lint has to see.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook.get("cells", []):
        cell["source"] = joined(cell.get("source", ""))
    return notebook


def joined(text: str | list[str]) -> str:
    """The text of a notebook's field, which may be stored as a list of lines."""
    return text if isinstance(text, str) else "".join(text)
