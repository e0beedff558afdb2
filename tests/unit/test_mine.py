"""`mine` and `workbook`: an engine of what a learner wrote, and the course to write."""

from __future__ import annotations

import ast
import json
import random
import re

import pytest

import folovllm_lite
from folovllm_lite import lab, mine
from folovllm_lite.__main__ import main
from folovllm_lite.mine import exercises, judge, report
from folovllm_lite.mine.assembly import NAME, module_source, unknown_names
from folovllm_lite.mine.notebooks import MineError, find, parts, source_of
from folovllm_lite.mine.pieces import (
    adds_to,
    blanks_of,
    final_cells,
    joined,
    pieces,
)
from folovllm_lite.mine.workbook import blanked, writing_form
from tests.notebooks.course import NOTEBOOKS, read
from tests.notebooks.made_up import code, markdown, notebook

TAUGHT = sorted(find(NOTEBOOKS).pieces)


def save(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return path


def lesson(folder, *cells, name="03_sampler.ipynb"):
    """A notebook of these cells, and what is found in its folder."""
    save(folder / name, notebook(list(cells)))
    return find(folder)


SAMPLER = "pkg:folovllm_lite.sampler"
TOP_K = '''def apply_top_k(logits, top_k):
    """Keep exactly k."""
    V = logits.shape[-1]
    k = top_k.where(top_k > 0, V).clamp(max=V).long()
    ranks = logits.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return logits.masked_fill(ranks >= k, -math.inf)
'''


# ----- the committed notebooks


@pytest.mark.parametrize("module", TAUGHT)
def test_the_committed_notebooks_assemble_into_the_package(module):
    """Not word for word: comments may differ. What it says is the same."""
    made = module_source(module, find(NOTEBOOKS), even_equal=True)
    assert pieces(made) == pieces(source_of(module))


def test_nothing_of_the_committed_notebooks_is_yours():
    found = find(NOTEBOOKS)
    assert set(found.counts.values()) == {0}
    assert report.differences(found) == ""


def test_the_assembled_engine_gives_the_same_tokens(tmp_path):
    """50 prompts, sampled and with every dial turned."""
    mine.assemble(find(NOTEBOOKS), tmp_path, even_equal=True)
    made, rng = judge.engine(tmp_path), random.Random(0)
    assert made.__name__ == NAME and tmp_path.name in made.__file__
    prompts = [[rng.randrange(2, 1536) for _ in range(1 + i % 9)] for i in range(50)]
    found = []
    for each in (made, folovllm_lite):
        params = [
            each.SamplingParams(
                temperature=i % 3, top_k=20, top_p=0.9, seed=i, max_tokens=1 + i % 11
            )
            for i in range(50)
        ]
        outputs = each.LLM(device="cpu").generate(prompts, params, use_tqdm=False)
        found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def test_its_modules_import_each_other_and_not_the_packages(tmp_path):
    mine.assemble(find(NOTEBOOKS), tmp_path)
    for file in (tmp_path / NAME).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                top, _, rest = node.module.partition(".")
                assert top != "folovllm_lite" or rest.split(".")[0] not in parts()


# ----- whose is what


def test_a_definition_of_ones_own_is_put_in(tmp_path):
    found = lesson(tmp_path, code("import math\n"), code(TOP_K, SAMPLER))
    assert list(found.yours("sampler")) == ["apply_top_k"]
    made = module_source("sampler", found)
    assert '"""Keep exactly k."""' in made
    other = {k: v for k, v in pieces(made).items() if k != "apply_top_k"}
    assert other.items() <= pieces(source_of("sampler")).items()
    assert judge.judge("sampler", made, tmp_path / "sampler.py").red == 0
    assert "+    ranks = logits.argsort(dim=-1" in report.differences(found)


def test_blanks_and_what_is_missing_come_from_the_package(tmp_path):
    blanks = (
        "def apply_top_k(logits, top_k):\n    raise NotImplementedError('write it')\n"
    )
    more = "def apply_top_p(logits, top_p): ...\n"
    found = lesson(tmp_path, code(blanks + more, SAMPLER))
    assert not found.yours("sampler")
    assert all(module_source(each, found) == source_of(each) for each in parts())


SCHEDULER = "pkg:folovllm_lite.scheduler"


def test_a_class_in_parts_keeps_the_packages_other_methods(tmp_path):
    method = (
        "@adds_to(Scheduler)\ndef advance(self, step):\n"
        '    """Mine."""\n    # why\n    text = """two\n  lines"""\n'
        "    self._more(text)"
    )
    extra = "@adds_to(Scheduler)\ndef _more(self, text):\n    pass\n    return text"
    found = lesson(tmp_path, code(method, SCHEDULER), code(extra, SCHEDULER))
    assert set(found.yours("scheduler")) == {"Scheduler.advance", "Scheduler._more"}
    made = module_source("scheduler", found)
    ours, theirs = pieces(made), pieces(source_of("scheduler"))
    assert {n for n in ours if ours[n] != theirs.get(n)} == set(
        found.yours("scheduler")
    )
    assert "    # why\n" in made and '"""two\n  lines"""' in made


def test_written_twice_the_later_counts(tmp_path):
    later = TOP_K.replace("Keep exactly k.", "The later.")
    found = lesson(tmp_path, code(TOP_K, SAMPLER), code(later, SAMPLER))
    assert "The later." in module_source("sampler", found)


def test_what_a_piece_uses_of_other_cells_comes_along(tmp_path):
    used = "import heapq as h\nBIG = 9\ndef largest(x):\n    return h.nlargest(BIG, x)"
    cell = "def apply_min_p(logits, min_p):\n    return largest(logits)"
    found = lesson(tmp_path, code(used), code(cell, SAMPLER))
    made = module_source("sampler", found)
    assert unknown_names(made) == set()
    names = {}
    exec(compile(made, "sampler.py", "exec"), names)
    assert names["apply_min_p"]([1, 3, 2], None) == [3, 2, 1]


def test_what_nobody_defines_is_named_with_its_place(tmp_path):
    cell = "def apply_min_p(logits, min_p):\n    return rows[logits]"
    found = lesson(tmp_path, code("rows = list(range(9))"), code(cell, SAMPLER))
    with pytest.raises(MineError, match="ipynb, cell 2: apply_min_p uses rows, which"):
        module_source("sampler", found)


# ----- notebooks as they come


def test_jupyterlabs_metadata_and_another_order_change_nothing(tmp_path):
    made = json.loads((NOTEBOOKS / "08_text_in_text_out.ipynb").read_text("utf-8"))
    rng = random.Random(3)
    rng.shuffle(made["cells"])
    for cell in made["cells"]:
        cell["metadata"] |= {"scrolled": True, "editable": True, "jupyter": {}}
        cell["source"] = joined(cell["source"])
    made["metadata"] = {"language_info": {"version": "3.12"}, "toc": {}}
    save(tmp_path / "08_text_in_text_out.ipynb", made)
    found = find(tmp_path)
    assert pieces(module_source("processor", found, True)) == pieces(
        source_of("processor")
    )


def test_a_lost_tag_is_made_up_for_by_the_first_line(tmp_path):
    found = lesson(tmp_path, code(f"# final: folovllm_lite.sampler\n{TOP_K}"))
    assert list(found.yours("sampler")) == ["apply_top_k"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def apply_top_k(:\n", "cell 2: line 1: .*: def apply_top_k"),
        ("x = 1\nif x\n    y", "cell 2: line 2"),
        ("%%bash\nls", "cell 2: %%bash can't be a part of an engine"),
        ("def f():\n    %time g()", "line 2: %time can't be a part"),
        ("def f():\n    !ls", "line 2: !ls can't be a part"),
    ],
)
def test_what_does_not_parse_is_named_and_nothing_is_written(tmp_path, source, said):
    folder = tmp_path / "my"
    with pytest.raises(MineError, match=said):
        lesson(folder, markdown("x"), code(source, SAMPLER))
    with pytest.raises(MineError, match=said):
        mine.run(folder, tmp_path)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("magic", ["%%time\n", "%timeit 3\n", "!ls\n", "list?\n"])
def test_magics_that_only_watch_are_left_out(tmp_path, magic):
    found = lesson(tmp_path, code("import math"), code(magic + TOP_K, SAMPLER))
    assert list(found.yours("sampler")) == ["apply_top_k"]
    assert "ls" not in module_source("sampler", found).split()


def test_every_problem_is_told_at_once(tmp_path):
    save(tmp_path / "04_x.ipynb", {"cells": 3})
    (tmp_path / "05_x.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(MineError) as told:
        lesson(
            tmp_path, code("def (", SAMPLER), code("x = 1", "pkg:folovllm_lite.smapler")
        )
    lines = str(told.value).splitlines()
    assert "03_sampler.ipynb, cell 1" in lines[0]
    assert "cell 2: there is no module smapler" in lines[1]
    assert lines[2:] == [
        f"0{i}_x.ipynb is no notebook that can be read" for i in (4, 5)
    ]


def test_no_notebooks_and_another_ones_folder_are_refused(tmp_path):
    with pytest.raises(MineError, match="no notebooks of the course"):
        find(tmp_path / "gone")
    (tmp_path / "03_old-old-1.ipynb").write_text("{}", encoding="utf-8")
    with pytest.raises(MineError, match="no notebooks of the course"):
        find(tmp_path)
    (tmp_path / NAME).mkdir()
    with pytest.raises(MineError, match="not made by this command"):
        mine.assemble(find(NOTEBOOKS), tmp_path)


def test_a_missing_notebook_is_the_packages(tmp_path):
    found = lesson(tmp_path, code("x = 1"))
    assert all(module_source(each, found) == source_of(each) for each in parts())


# ----- broken pieces

# notebook -> module, what stands in one of its final cells, what stands instead
BROKEN = [
    ("01", "config", "self.model_config.max_model_len", "self.model_config.seed"),
    ("01", "utils", "random.seed(seed)", "random.seed(0)"),
    ("02", "sampling_params", "SamplingType.GREEDY", "SamplingType.RANDOM"),
    ("03", "sampler", "descending=True", "descending=False"),
    ("04", "request", "self.status = status", "pass"),
    ("04", "outputs", "self.finish_reason is not None", "False"),
    ("06", "attention", "math.sqrt(D)", "D"),
    ("07", "kv_cache", "self.length += tokens", "self.length = tokens"),
    ("08", "processor", "final=True", "final=False"),
    ("09", "generation", "(seed + index)", "(seed)"),
]


def broken(tmp_path, number, module, old, new):
    """A folder with the one notebook, one of its final cells changed."""
    (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    made = read(path)
    for index, name, source in final_cells(made):
        if name == module and old in source:
            made["cells"][index]["source"] = source.replace(old, new, 1)
            save(tmp_path / path.name, made)
            return find(tmp_path)
    raise AssertionError(f"{old!r} stands in no final cell of {path.name}")


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case[1])
def test_a_broken_piece_turns_its_own_suite_red_and_is_named(tmp_path, case):
    number, module, *_ = case
    found = broken(tmp_path, *case)
    sources = mine.assemble(found, tmp_path)
    verdicts = judge.judge_all(found, sources, tmp_path)
    assert {name for name, each in verdicts.items() if each.red} == {module}
    assert list(verdicts) == [module], "the others are the package's"
    verdict = verdicts[module]
    assert verdict.first[0].startswith("✗ ")
    assert any(line.strip().startswith("hint:") for line in verdict.first)
    (_, row, *_), *_ = report.table(found, verdicts), None
    assert row.startswith(module) and f"✗ {verdict.red} red" in row and number in row


def test_a_red_piece_ends_with_1_and_says_what_is_wrong(tmp_path, capsys):
    broken(tmp_path, *BROKEN[3])
    assert main(["mine", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "sampler: " in out and "hint:" in out and "No story before" in out


def test_what_can_not_be_imported_is_red(tmp_path):
    found = lesson(tmp_path, code("WORDS = 1 / 0", SAMPLER))
    verdict = judge.judge("sampler", module_source("sampler", found), tmp_path / "x.py")
    assert verdict.red == 1 and "ZeroDivisionError" in verdict.first[0]


def test_what_was_green_is_not_judged_again(tmp_path, monkeypatch):
    found = lesson(tmp_path, code("import math"), code(TOP_K, SAMPLER))
    sources = mine.assemble(found, tmp_path)
    assert judge.judge_all(found, sources, tmp_path)["sampler"].red == 0
    before = (tmp_path / NAME / "engine.py").stat().st_mtime_ns
    monkeypatch.setattr(judge, "judge", lambda *_: judge.Verdict(99, ("again",)))
    sources = mine.assemble(found, tmp_path)
    assert judge.judge_all(found, sources, tmp_path)["sampler"].red == 0
    assert (tmp_path / NAME / "engine.py").stat().st_mtime_ns == before
    changed = {**sources, "sampler": sources["sampler"] + "# more\n"}
    assert judge.judge_all(found, changed, tmp_path)["sampler"].red == 99


# ----- the whole command, and exercises


def solved(tmp_path):
    """A folder with the solutions of some lessons in them, and a piece of 03."""
    for lesson_number in {each.lesson for each in exercises.EXERCISES.values()}:
        (path,) = NOTEBOOKS.glob(f"{lesson_number:02}_*.ipynb")
        name = path.name
        made = read(NOTEBOOKS / name)
        made["cells"] += [
            cell
            for cell in read(NOTEBOOKS / "solutions" / name)["cells"]
            if cell["cell_type"] == "code"
        ]
        save(tmp_path / name, made)
    return lesson(tmp_path, code("import math"), code(TOP_K, SAMPLER))


def test_the_command_from_notebooks_to_stories(tmp_path, capsys):
    solved(tmp_path)
    plugged = [part for name in exercises.EXERCISES for part in ("--with", name)]
    assert main(["mine", str(tmp_path), *plugged]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("sampler"))
    assert re.fullmatch(r"sampler +03 +1 of \d+ +\d +✓", row)
    assert out.count("the same tokens as the package's") == 2 and "Once upon" in out
    assert re.search(r"Speed: \d+\.\d\d of the package's", out)
    assert "four texts in 96 passes; with yours in 24, the same tokens" in out
    assert "0, 24, 48, 72; with yours 0, 1, 2, 3" in out
    (count,) = re.findall(r"48 tokens in 48 passes; with yours in (\d+), the same", out)
    assert int(count) < 24
    crowd = re.search(r"after (\S+) steps on average; with yours (\S+)", out)
    assert float(crowd[2]) < float(crowd[1]) / 2
    assert "OTHER" not in out


def test_an_exercise_that_is_not_written_is_refused(tmp_path, capsys):
    save(
        tmp_path / "09_generation_loop.ipynb",
        read(NOTEBOOKS / "09_generation_loop.ipynb"),
    )
    with pytest.raises(MineError, match="serve isn't written yet in 09_gen"):
        exercises.written(exercises.named("09#serve"), find(tmp_path))
    assert main(["mine", str(tmp_path), "--with", "09#speculate"]) == 2
    assert "speculate isn't written yet" in capsys.readouterr().err
    with pytest.raises(
        MineError, match="no exercise '09#nap' to plug in; there are 07#P"
    ):
        exercises.named("09#nap")
    with pytest.raises(MineError, match="there is no notebook 07"):
        exercises.written(exercises.named("PackedContext"), find(tmp_path))


# ----- the writing form


def lessons():
    return sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def test_the_course_asks_for_many_pieces():
    asked = [
        blank
        for path in lessons()
        for c in read(path)["cells"]
        for blank in blanks_of(c)
    ]
    assert len(asked) >= 30
    written = [
        path.name for path in lessons() if any(map(blanks_of, read(path)["cells"]))
    ]
    assert len(written) >= 9, "every notebook but the tour has a heart"


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_the_writing_form_has_blanks_and_a_judge_below_each(path):
    made = writing_form(read(path))
    asked = set()
    for cell in made["cells"]:
        assert not cell.get("outputs")
        asked |= {name.partition(".")[0] for name in blanks_of(cell)}
    judged = " ".join(c["source"] for c in made["cells"] if c["id"].endswith("-checks"))
    # Protocols, what Numba fills in and `pass` are blank by nature.
    assert asked == blanks_in(made) - (blanks_in(read(path)) - asked)
    assert not asked or judged
    for name in asked - set(re.findall(r"\w+", judged)):
        assert name in JUDGED_THROUGH, f"nobody judges {name}"


# What uses them is judged, by a suite or by the stories, and so are they.
JUDGED_THROUGH = {"ContiguousContext", "attend_tile_cpu"}


def find_in(made):
    """Pieces of a notebook that is only in memory: module -> pieces."""
    from folovllm_lite.mine.notebooks import _pieces

    found = {}
    for index, module, source in final_cells(made):
        asked = blanks_of(made["cells"][index])
        found.setdefault(module, []).extend(_pieces(module, source, "x", index, asked))
    return found


def blanks_in(made):
    """Functions and classes with a stub in them."""
    found = find_in(made).values()
    return {p.name.partition(".")[0] for each in found for p in each if p.blank}


def lines(text):
    """Lines without spaces and comments; short ones say nothing."""
    bare = [re.sub(r"\s+", "", re.sub(r"#.*", "", line)) for line in text.splitlines()]
    return [line for line in bare if len(line) >= 8]


def readable_above(made, whole):
    """Blanks of which most lines stand in one cell above: (name, share, cell)."""
    sources = {cell["id"]: joined(cell["source"]) for cell in whole["cells"]}
    for index, cell in enumerate(made["cells"]):
        for name in blanks_of(cell):
            body = lines(body_of(sources[cell["id"]], name))
            for above in made["cells"][:index]:
                seen = re.sub(
                    r"<details>.*?</details>", "", above["source"], flags=re.S
                )
                share = sum(line in lines(seen) for line in body) / max(len(body), 1)
                if share > 0.5:
                    yield name, share, above["id"]


def body_of(source, name):
    owner, _, last = name.rpartition(".")
    for node in ast.parse(source).body:
        inside = (
            node.body if isinstance(node, ast.ClassDef) and node.name == owner else []
        )
        if not owner or adds_to(node) == owner:
            inside = [node]
        for item in inside:
            if isinstance(item, ast.FunctionDef) and item.name == last:
                body = item.body[ast.get_docstring(item) is not None :]
                text = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
                return "\n".join(text)
    raise AssertionError(name)


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_no_blanks_body_can_be_read_above_it(path):
    whole = read(path)
    assert list(readable_above(writing_form(whole), whole)) == []


def test_the_search_above_finds_what_stands_there():
    """So that the test before this one can fail."""
    tag = f"yours:{'apply_top_k'}"
    body = "\n".join(TOP_K.splitlines()[2:])
    for cell in (
        code(f"def naive(logits, top_k):\n{body}"),
        markdown(f"```\n{body}\n```"),
    ):
        whole = notebook([cell, code(TOP_K, SAMPLER, tag)])
        assert len(list(readable_above(writing_form(whole), whole))) == 1
        whole["cells"][0]["metadata"] = {"tags": ["answer"]}
        assert list(readable_above(writing_form(whole), whole)) == []


def test_a_blank_keeps_signature_and_docstring():
    made = blanked(TOP_K, ["apply_top_k"])
    assert made.splitlines() == [
        "def apply_top_k(logits, top_k):",
        '    """Keep exactly k."""',
        '    raise NotImplementedError("write apply_top_k")',
    ]
    source = (
        "class A:\n    x: int = 1\n\n    @property\n    def f(self):\n"
        "        # a hint\n        return self.x\n\n    def g(self): ...\n"
    )
    made = blanked(source, ["A.f"])
    assert '    def f(self):\n        raise NotImplementedError("write f")\n' in made
    assert "hint" not in made and "def g(self): ..." in made
    with pytest.raises(ValueError, match="no function A.h in this cell"):
        blanked(source, ["A.h"])


def test_answers_are_folded_or_left_out():
    cells = [markdown("So."), markdown("Thus."), code("x = 1"), code("x = 2")]
    for cell in (cells[1], cells[3]):
        cell["metadata"] = {"tags": ["answer"]}
    made = writing_form(notebook(cells))
    assert [cell["source"].partition("\n")[0] for cell in made["cells"]] == [
        "So.", "<details><summary>How it is done</summary>", "x = 1",
    ]  # fmt: skip


def test_what_is_for_the_reading_form_is_left_out():
    cells = [markdown("So."), markdown("Thus."), code("x = 1"), code("x = 2")]
    for cell in cells[1:3]:
        cell["metadata"] = {"tags": ["reading"]}
    made = writing_form(notebook(cells))
    assert [cell["source"] for cell in made["cells"]] == ["So.", "x = 2"]


def test_an_untouched_workbook_is_the_packages_engine(tmp_path):
    written, kept = mine.write(tmp_path)
    assert len(written) == len(lessons()) and not kept
    found = find(tmp_path)
    assert found.writing == set(written) and set(found.counts.values()) == {0}
    assert all(module_source(each, found) == source_of(each) for each in parts())


def test_a_workbook_filled_from_the_course_is_all_yours_and_green(tmp_path):
    """The learner's words happen to be the package's: they are theirs all the same."""
    mine.write(tmp_path)
    asked = {}
    for path in lessons():
        made, whole = read(tmp_path / path.name), read(path)
        sources = {cell["id"]: cell["source"] for cell in whole["cells"]}
        for cell in made["cells"]:
            if blanks_of(cell):
                cell["source"] = sources[cell["id"]]
        for index, module, _ in final_cells(made):
            names = blanks_of(made["cells"][index])
            asked.setdefault(module, set()).update(names)
        save(tmp_path / path.name, made)
    found = find(tmp_path)
    assert {m: set(found.yours(m)) for m in asked} == asked
    assert all(module_source(each, found) == source_of(each) for each in parts())
    # Their suites run on the package's own modules elsewhere; here on one of them.
    only = {"sampler": module_source("sampler", found, even_equal=True)}
    assert judge.judge("sampler", only["sampler"], tmp_path / "sampler.py").red == 0


def test_what_a_learner_changed_is_not_written_over(tmp_path, capsys):
    lab.update(copies=tmp_path)
    mine.write(tmp_path)
    assert find(tmp_path).writing, "copies that nobody changed made room"
    path = tmp_path / "03_sampler.ipynb"
    made = read(path)
    made["cells"][5]["source"] = "my own words"
    save(path, made)
    before = path.read_bytes()
    assert main(["workbook", "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == before
    out = capsys.readouterr().out
    assert "03_sampler.ipynb holds work of yours: it stays" in out
    # And the other way round: `make lab` keeps what is written.
    assert lab.update(copies=tmp_path).renewed == []
    assert path.read_bytes() == before


def test_newer_blanks_are_told_as_what_they_are(tmp_path, capsys):
    """`make lab` once said of every blank that nobody had filled: you changed yours."""
    course, copies = tmp_path / "notebooks", tmp_path / "my"
    made = read(lessons()[3])
    save(course / "03_sampler.ipynb", made)
    mine.write(copies, course)
    assert lab.update(course, copies) == lab.Update([], [], [])
    made["cells"].append(made["cells"][0] | {"id": "new", "source": "Newer."})
    save(course / "03_sampler.ipynb", made)
    done = lab.update(course, copies)
    assert done == lab.Update([], [], [], ["03_sampler.ipynb"])
    (line,) = lab.report(done, copies)
    assert f"newer blanks of 03_sampler: make workbook COPIES={copies}" in line
    mine.write(copies, course)
    assert lab.update(course, copies) == lab.Update([], [], [])
    # To begin again puts nothing aside where nothing was written.
    assert lab.begin_again("03", course, copies) is None
    assert mine.write(copies, course) == (["03_sampler.ipynb"], [])


def test_a_file_that_is_no_notebook_is_kept(tmp_path):
    path = tmp_path / "03_sampler.ipynb"
    path.write_text("{cut off", encoding="utf-8")
    _, kept = mine.write(tmp_path)
    assert kept == [path.name] and path.read_text(encoding="utf-8") == "{cut off"


def test_no_course_to_write(tmp_path):
    with pytest.raises(lab.LabError, match="there are no notebooks"):
        mine.write(tmp_path, course=tmp_path)
