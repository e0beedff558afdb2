"""The learner's own copies of the notebooks, and JupyterLab on them (`make lab`).

JupyterLab writes into what it opens, even if nobody types. So it opens copies, in a
folder that git ignores, and the course's own files stay what the tests hold them to. A
copy that the learner changed is never written over.
"""

import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
COURSE = ROOT / "notebooks"
# Beside notebooks/, so that links like ../docs lead to the same place.
COPIES = ROOT / "my"
RECORD = ".course.json"  # what each copy was made from
WORKBOOK = ".workbook.json"  # what each notebook with blanks was when it was written


class LabError(Exception):
    """What keeps the notebooks from opening, in words for the learner."""


def cells(data: bytes) -> str | None:
    """A digest of what the cells of a file say; None if it is no notebook.

    Outputs, counts and metadata don't count: they change when a notebook is only run.
    Nor do empty cells: running the last cell adds one.
    """
    try:
        found = json.loads(data)["cells"]
        said = [(each["cell_type"], "".join(each["source"])) for each in found]
    except (ValueError, KeyError, TypeError):
        return None
    said = [each for each in said if each[1].strip()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


@dataclass(frozen=True)
class Update:
    """What became of the copies: names of notebooks, like solutions/03_sampler.ipynb.

    Args:
        made: copied for the first time.
        renewed: the course has a newer version, and the learner hadn't changed theirs.
        behind: the course has a newer version, but the learner changed theirs.
        blank: likewise, but theirs is of the workbook, and as it was written.
    """

    made: list[str]
    renewed: list[str]
    behind: list[str]
    blank: list[str] = field(default_factory=list)


def folder(named: str | None) -> Path:
    """Where the copies are to be, as a learner names it; None is `COPIES`.

    Raises:
        LabError: no name, or where the course's own notebooks are.
    """
    if named is None:
        return COPIES
    if not named.strip():
        raise LabError("the folder of your copies has no name")
    try:
        path = Path(named).expanduser()  # not every shell does it in COPIES=~/my
    except RuntimeError as error:
        raise LabError(f"{named}: {error}") from error
    here = path.resolve()
    if COURSE in (here, *here.parents) or here == ROOT:
        raise LabError(f"{named} holds the course itself: name another folder")
    return path


def update(course: Path = COURSE, copies: Path = COPIES) -> Update:
    """Bring the copies up to date, except where the learner changed a cell.

    Raises:
        LabError: no notebooks to copy, or no folder to copy them to.
    """
    names = _names(course)
    if not names:
        raise LabError(
            f"there are no notebooks in {course}: they come with the repository, not "
            "with the package. Clone it and start there"
        )
    record, blanks = read_record(copies), read_record(copies, WORKBOOK)
    result = Update([], [], [])
    for name in names:
        data, copy = (course / name).read_bytes(), copies / name
        now, then = entry(data), record.get(name)
        if not copy.exists():
            write(copy, data)
            result.made.append(name)
        else:
            mine = cells(copy.read_bytes())
            if mine == now["cells"]:
                # Only run, if at all; the course's outputs come when they are new.
                if then and then["file"] != now["file"]:
                    write(copy, data)
            elif then and mine == then["cells"]:
                write(copy, data)
                result.renewed.append(name)
            elif then:
                # The record goes on telling what the learner's version came from.
                if then["cells"] != now["cells"]:
                    untouched = mine and mine == blanks.get(name, {}).get("cells")
                    (result.blank if untouched else result.behind).append(name)
                continue
        record[name] = now
    write_record(copies, record)
    return result


def begin_again(name: str, course: Path = COURSE, copies: Path = COPIES) -> Path | None:
    """Put the learner's copy aside and make a fresh one.

    Args:
        name: as `find` takes it.
        course: the notebooks to copy.
        copies: where the copies are.

    Returns:
        Where the old copy is now; None if there was nothing of the learner's in it.

    Raises:
        LabError: no such notebook.
    """
    found = find(name, course)
    data, copy, aside = (course / found).read_bytes(), copies / found, None
    record = read_record(copies)
    if copy.exists():
        known = {entry(data)["cells"], record.get(found, {}).get("cells")}
        known.add(read_record(copies, WORKBOOK).get(found, {}).get("cells"))
        known.discard(None)  # of no record, and of a copy that is no notebook
        if cells(copy.read_bytes()) not in known:
            count = 1
            while (aside := copy.with_name(f"{copy.stem}-old-{count}.ipynb")).exists():
                count += 1
            os.replace(copy, aside)
    write(copy, data)
    write_record(copies, record | {found: entry(data)})
    return aside


def find(name: str, folder: Path) -> str:
    """The notebook of a folder that is meant: 3, 03, 03_sampler, notebooks/03_….ipynb.

    Raises:
        LabError: none is, or several.
    """
    names = _names(folder)
    words = name.replace("\\", "/").removesuffix(".ipynb")
    words = re.sub(r"^(.*/)?(notebooks|my)/", "", words)
    wanted = [n for n in names if n == f"{words}.ipynb"]
    if not wanted:
        part, _, last = words.rpartition("/")
        last = f"{int(last):02}" if last.isdecimal() else last
        start = f"{part}/{last}" if part else last
        begins = [n for n in names if last and n.startswith(f"{start}_")]
        wanted = [n for n in begins if "-old-" not in n]
    if len(wanted) != 1:
        there = ", ".join(n.removesuffix(".ipynb") for n in names if "/" not in n)
        raise LabError(f"no notebook {name!r}; there are {there}")
    return wanted[0]


def trust(course: Path = COURSE, copies: Path = COPIES) -> None:
    """Let JupyterLab show the pictures of copies that are still the course's own.

    It shows none of a notebook that somebody else has run, until it is told that the
    author is trusted. A copy that differs was saved by the learner's own JupyterLab,
    which has signed it.
    """
    from nbformat import read
    from nbformat.sign import NotebookNotary

    notary = NotebookNotary()
    for name in _names(course):
        copy = copies / name
        if copy.exists() and copy.read_bytes() == (course / name).read_bytes():
            notary.sign(read(copy, as_version=4))


def arguments(
    notebook: str, copies: Path = COPIES, more: Iterable[str] = ()
) -> list[str]:
    """What JupyterLab is started with, so that it shows `notebook` of `copies`."""
    # The whole clone, so that links out of the notebooks lead somewhere.
    root = ROOT if ROOT in copies.resolve().parents else copies.resolve()
    page = (copies.resolve() / notebook).relative_to(root).as_posix()
    return [
        f"--ServerApp.root_dir={root}",
        # Not as a file to open: then the address that is printed wouldn't be its own.
        f"--LabApp.default_url=/lab/tree/{quote(page)}",
        "--ServerApp.answer_yes=True",  # one Ctrl-C ends it
        "--log-level=WARN",  # what is left of the log is the address
        "--LabApp.news_url=None",  # no question about news before the first cell
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        # As root (a container, say) it refuses to run unless told to.
        *(["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []),
        *more,
    ]


def start(
    notebook: str,
    copies: Path = COPIES,
    more: Iterable[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Bring the copies up to date and run JupyterLab until Ctrl-C.

    Raises:
        LabError: as `update` and `find`; JupyterLab isn't installed.
    """
    try:
        from jupyterlab.labapp import LabApp
    except ImportError as error:
        raise LabError(
            f"JupyterLab isn't installed ({error}): "
            "python -m pip install -r requirements.txt"
        ) from error
    done = update(copies=copies)
    for line in report(done, copies):
        say(line)
    trust(copies=copies)
    name = find(notebook, copies)
    say(f"Opening {_shown(copies)}/{name} in JupyterLab; Ctrl-C here ends it.")
    LabApp.launch_instance(arguments(name, copies, more))


def report(done: Update, copies: Path = COPIES) -> list[str]:
    """An update in words."""
    folder, lines = _shown(copies), []
    if done.made:
        solutions = sum("/" in name for name in done.made)
        new = [
            f"{count} {what}" if count == 1 else f"{count} {what}s"
            for what, count in (
                ("notebook", len(done.made) - solutions),
                ("solution", solutions),
            )
            if count
        ]
        lines.append(
            f"{folder}/ has your own copy of {' and '.join(new)}: run and change them "
            "as you like."
        )
    lines += [
        f"{folder}/{name} is now the course's newer version." for name in done.renewed
    ]
    if done.blank:
        stems = ", ".join(name.removesuffix(".ipynb") for name in done.blank)
        lines.append(
            f"The course has newer blanks of {stems}: {typed('workbook', copies)}"
        )
    for name in done.behind:
        stem = name.removesuffix(".ipynb")
        lines.append(
            f"The course has a newer {stem}; you changed yours, so it stays. To begin "
            f"it again (yours is put aside): {typed('again', copies, stem)}"
        )
    return lines


def typed(target: str, copies: Path = COPIES, notebook: str = "") -> str:
    """How a learner types `make workbook` or `make again` on this system."""
    there = "" if copies.resolve() == COPIES else str(copies)
    if sys.platform == "win32":  # there is no make
        command, option = {
            "workbook": ("workbook", "--out"),
            "again": ("lab --again", "--folder"),
        }[target]
        words = ["python -m folovllm_lite", command, notebook]
        words += [option, f'"{there}"'] if there else []
    else:
        words = ["make", target, notebook and f"NOTEBOOK={notebook}"]
        words += [f"COPIES={shlex.quote(there)}"] if there else []
    return " ".join(word for word in words if word)


def _names(folder: Path) -> list[str]:
    """Notebooks and solutions of a folder, as paths in it."""
    found = [*folder.glob("*.ipynb"), *folder.glob("solutions/*.ipynb")]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _shown(folder: Path) -> str:
    """A folder as a learner types it."""
    folder = folder.resolve()
    return (
        folder.relative_to(ROOT).as_posix() if ROOT in folder.parents else str(folder)
    )


def entry(data: bytes) -> dict[str, str | None]:
    """What the record keeps of a course's file."""
    return {"cells": cells(data), "file": hashlib.sha256(data).hexdigest()}


def read_record(copies: Path, name: str = RECORD) -> dict[str, dict[str, str | None]]:
    """The record; one that can't be read is as if it weren't there."""
    try:
        found = json.loads((copies / name).read_text(encoding="utf-8"))
        return {
            name: {"cells": each["cells"], "file": each["file"]}
            for name, each in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write_record(copies: Path, record: dict, name: str = RECORD) -> None:
    """Write the record."""
    write(copies / name, (json.dumps(record, indent=1) + "\n").encode())


def write(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f".{path.name}.new")
        half.write_bytes(data)
        os.replace(half, path)
    except OSError as error:
        raise LabError(f"can't write {path}: {error.strerror or error}") from error
