"""What holds the repository together: installs, commands, names, and the order."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.notebooks.course import COURSE, ENVIRONMENT, NBVAL, PACKAGE, ROOT
from tests.notebooks.drift import modules
from tests.run import STEPS

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INSTALL = "-r requirements.txt"

TOP_LEVEL = {
    "notebooks", "folovllm_lite", "tests", "docs", "environment.yml", "README.md",
    "pyproject.toml", "requirements.txt", "Makefile", "LICENSE", ".github", ".ci",
    ".gitignore", "CONTRIBUTING.md", ".devcontainer",
    ".binder",
}  # fmt: skip

# The order in which the package is taught; a module imports only from those before it.
ORDER = (
    "utils", "config", "sampling_params", "sampler", "request", "outputs",
    "model_loader", "attention", "qwen3", "kv_cache", "processor",
    "generation", "scheduler", "engine", "block_manager", "paged", "runner", "flash",
    "prefix_cache", "gptq", "fast", "gpu", "llm",
    "viz", "widgets", "checks", "notebook", "tiny", "lab", "mine", "doctor", "bench",
    "__main__",
)  # fmt: skip


def pins() -> dict[str, Requirement]:
    """Each package of requirements.txt by its normal name."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(Requirement(x).name): Requirement(x) for x in wanted}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^(\w+):", MAKEFILE, re.M))


def test_pins_are_exact():
    for name, pin in pins().items():
        (version,) = pin.specifier
        assert version.operator == "==" and "*" not in version.version, name
    assert str(pins()["torch"].specifier) == "==2.13.0"


def test_the_pins_install_the_package_itself_last():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert lines[-2:] == ["-e .", ""]


def test_what_runs_here_is_what_the_pins_name():
    """A test that passes on other versions says nothing about these."""
    strangers = []
    for name, pin in pins().items():
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        found = metadata.version(name)
        if not pin.specifier.contains(found):
            strangers.append(f"{name} is {found}, not {pin.specifier}")
    if strangers:
        pytest.skip("not the pinned versions: " + "; ".join(strangers))


def test_every_import_is_pinned():
    top = {name.split(".")[0] for name in sys.stdlib_module_names}
    owners = metadata.packages_distributions()
    pinned = set(pins())
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    for file in files:
        for module in imports(file.read_text(encoding="utf-8")):
            name = module.split(".")[0]
            if name in top | {"folovllm_lite", "tests", "__future__"}:
                continue
            owner = {canonicalize_name(item) for item in owners.get(name, [name])}
            assert owner & pinned, f"{file.name} imports {name}, which has no pin"


def test_the_packages_own_dependencies_are_pinned():
    """And the pinned version is within what they allow."""
    for text in PYPROJECT["project"]["dependencies"]:
        wanted = Requirement(text)
        (pin,) = pins()[canonicalize_name(wanted.name)].specifier
        assert wanted.specifier and wanted.specifier.contains(pin.version), text


def test_what_the_package_imports_it_declares():
    declared = {
        canonicalize_name(Requirement(text).name)
        for text in PYPROJECT["project"]["dependencies"]
    }
    owners, ours = metadata.packages_distributions(), {"folovllm_lite", "__future__"}
    # Where these are missing, `lab` and `bench` say so, and another kernel stands in.
    optional = {"jupyterlab", "nbformat", "triton", "ctranslate2"}
    for file in PACKAGE.rglob("*.py"):
        found = {m.split(".")[0] for m in imports(file.read_text(encoding="utf-8"))}
        for name in found - set(sys.stdlib_module_names) - ours - optional:
            owner = {canonicalize_name(item) for item in owners.get(name, [name])}
            assert owner & declared, f"{file.name} imports {name}"


def test_conda_installs_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *plain, pip = environment["dependencies"]
    assert [re.split("[=<>]", item)[0] for item in plain] == ["python", "pip"]
    assert pip == {"pip": [INSTALL]}
    assert f"conda activate {environment['name']}" in README


def test_make_and_the_readme_install_the_same_pins():
    assert MAKEFILE.count(INSTALL) == 1
    assert f"pip install {INSTALL}" in README


def test_the_readme_names_commands_that_exist():
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"lab", "test"} <= named <= makefile_targets()
    for command in re.findall(r"python -m ([\w.]+)", README):
        assert command in ("pip", "jupyterlab", "tests.run", "folovllm_lite", "venv")
    from folovllm_lite.__main__ import main

    for command in set(re.findall(r"-m folovllm_lite (\w+)", README)):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command


def test_the_makefile_describes_what_it_has():
    """`make help` prints its head; the steps that it names are those of tests.run."""
    head = MAKEFILE.partition(".DEFAULT_GOAL")[0]
    assert set(re.findall(r"^# +make (\w+)", head, re.M)) <= makefile_targets()
    (steps,) = re.findall(r'STEPS="([\w ]+)"', head)
    assert set(steps.split()) <= set(STEPS)


def test_the_readme_lists_the_course_as_it_is():
    """A notebook is called ready when it is there, and planned when it isn't."""
    rows = re.findall(r"^\| (\d\d) \| (.+?) \|.*\| (\w+) \|$", README, re.M)
    assert len(rows) == len(COURSE)
    for (number, name, status), lesson in zip(rows, COURSE, strict=True):
        assert int(number) == lesson.number and lesson.name in name
        there = (ROOT / "notebooks" / lesson.file).exists()
        assert status == ("ready" if there else "planned"), lesson.file
        assert (f"notebooks/{lesson.file}" in name) == there, lesson.file


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/README.md"])
def test_links_lead_to_files_that_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    for target in targets:
        assert ((ROOT / page).parent / target).exists(), target


def test_the_index_of_documents_names_all():
    page = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in page, name


def test_the_readme_adds_up_the_cards():
    """Its hours are those of the notebooks' title cards, to the next hour."""
    minutes = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        card = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        minutes.append(int(re.search(r"\*\*Time:\*\*\s+(\d+)", "".join(card))[1]))
    said = re.search(r"takes\s+about (\d+)\s+hours", README)
    assert abs(int(said[1]) - sum(minutes) / 60) <= 1, sum(minutes)


def test_templates_and_container_can_be_read():
    """And what the container runs is a target of the Makefile."""
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.name == "config.yml" or {"name", "description", "body"} <= set(form)
    container = (ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8")
    make, target, *_ = json.loads(container)["postCreateCommand"].split()
    assert make == "make" and target in makefile_targets()


def test_binder_installs_the_pins_with_the_python_of_conda():
    """Where .binder is, it reads nothing of environment.yml."""
    ours, binders = (
        yaml.safe_load((ROOT / folder / "environment.yml").read_text(encoding="utf-8"))
        for folder in (".", ".binder")
    )
    assert binders["dependencies"][0] == ours["dependencies"][0]
    script = ROOT / ".binder/postBuild"
    words = script.read_text(encoding="utf-8")
    assert words.startswith("#!/bin/bash\n") and INSTALL in words
    assert "--torch-backend=cpu" in words and "uv" in binders["dependencies"]


def test_nothing_stands_at_the_top_that_has_no_business_there():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here to say which files belong to the repository")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.splitlines()
    assert {line.split("/")[0] for line in listed} <= TOP_LEVEL


def test_version_is_the_packages_own():
    import folovllm_lite

    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert metadata.version("folovllm-lite") == folovllm_lite.__version__


def test_notebooks_run_strictly_and_in_one_environment():
    """What the notebooks' rules ask of nbval, so that no later edit softens it."""
    assert "--nbval-lax" not in NBVAL and "--nbval-current-env" in NBVAL
    assert "--nbval-cell-timeout=120" in NBVAL and "-pno:python" in NBVAL
    assert STEPS["notebooks"].environment is ENVIRONMENT
    sanitize = (ROOT / "tests/notebooks/sanitize.cfg").read_text(encoding="utf-8")
    assert sanitize.count("\nregex: ") == len(re.findall(r"\nreplace: \w", sanitize))


def imports(source: str) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            found |= {f"{node.module}.{item.name}" for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level)
    return found


def test_every_module_has_its_place_in_the_order():
    assert set(modules()) <= set(ORDER)


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_earlier_ones(module):
    """Learners meet the modules in this order; a later one would be a riddle."""
    file = PACKAGE / f"{module}.py"
    files = [file] if file.exists() else sorted((PACKAGE / module).rglob("*.py"))
    allowed = set(ORDER[: ORDER.index(module)]) | {module}
    for file in files:
        found = imports(file.read_text(encoding="utf-8"))
        assert not any(name.startswith(".") for name in found), "import absolutely"
        ours = {name for name in found if name.startswith("folovllm_lite.")}
        parts = {name.split(".")[1] for name in ours} & set(ORDER)
        assert parts <= allowed, f"{file.name} imports {sorted(parts - allowed)}"


CORE = sorted(
    {name for lesson in COURSE for name in lesson.teaches} | {"fast", "gpu", "llm"}
)


def longer_than(most: int, kind: type, module: str) -> list[str]:
    """The classes, or the functions, of a module with more source lines than that."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, kind)]
    return [x.name for x in found if x.end_lineno - x.lineno + 1 > most]


@pytest.mark.parametrize("module", CORE)
def test_nothing_is_too_long_to_be_taught(module):
    """A longer class has two jobs, and a longer function more than one idea."""
    assert not longer_than(300, ast.ClassDef, module)
    assert not longer_than(60, ast.FunctionDef, module)


def test_the_scheduler_stays_small():
    assert "Scheduler" not in longer_than(100, ast.ClassDef, "scheduler")
