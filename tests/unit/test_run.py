"""`make test` adds up honestly: nothing that failed or was skipped goes unsaid."""

import pytest

from tests import run
from tests.run import Step, Totals

REPORT = """<testsuites><testsuite>
<testcase classname="{name}" name="one" time="0.5"/>
<testcase classname="{name}" name="two" time="{time}"/>
<testcase classname="gpu" name="three"><skipped message="no CUDA GPU"/></testcase>
<testcase classname="gpu" name="four"><failure message="wrong">why</failure></testcase>
<testcase classname="gpu" name="five"><error message="broken">why</error></testcase>
</testsuite></testsuites>"""


def report(tmp_path, **values):
    path = tmp_path / "report.xml"
    path.write_text(REPORT.format(**values), encoding="utf-8")
    return path


def test_totals_count_each_kind(tmp_path, capsys):
    totals = Totals()
    totals.add_report("unit", report(tmp_path, name="unit", time=99))
    totals.print(seconds=3)
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "All steps: 2 passed, 2 failed, 1 skipped in 3 s"
    assert "unit: no CUDA GPU (1)" in said
    assert totals.failed == [], "only notebooks have a limit of time"


def test_a_slow_notebook_fails(tmp_path):
    totals = Totals()
    totals.add_report("notebooks", report(tmp_path, name="notebooks.tour", time=60))
    (failure,) = totals.failed
    assert "notebooks.tour took 60 s" in failure


@pytest.mark.parametrize(("longest", "failed"), [(74, False), (120, True)])
def test_a_busy_machine_makes_no_notebook_fail(tmp_path, longest, failed):
    """Then all of them are slow, as these are: one of 74 s takes no more than it may.

    But one that takes far more than its share fails there too.
    """
    cases = [f'<testcase classname="nb{i}" name="a" time="40"/>' for i in range(7)]
    cases.append(f'<testcase classname="longest" name="a" time="{longest}"/>')
    path = tmp_path / "report.xml"
    path.write_text(f"<testsuite>{''.join(cases)}</testsuite>", encoding="utf-8")
    totals = Totals()
    totals.add_report("notebooks", path)
    assert bool(totals.failed) == failed, totals.failed


@pytest.mark.parametrize(
    ("command", "failed"),
    [
        (("pytest", "--version"), False),
        (("pytest", "--no-such-option"), True),
        (("pytest", "tests/unit/test_run.py", "-k", "no_such_test"), False),
        (("pytest", "tests/gone", "tests/unit/test_run.py", "--no-option"), True),
        (("this_module_is_nowhere",), True),
    ],
)
def test_a_step_fails_when_its_command_does(tmp_path, capfd, command, failed):
    totals = Totals()
    step = Step("made up", (command,))
    run.run_step("made up", step, totals, tmp_path)
    assert bool(totals.failed) == failed, capfd.readouterr()


def test_a_step_without_tests_is_skipped_and_says_so(tmp_path, capsys):
    totals = Totals()
    run.run_step(
        "later", Step("made up", (("pytest", "tests/gone"),)), totals, tmp_path
    )
    assert totals.skipped == {("later", "no tests yet"): 1}
    assert totals.failed == []


def test_an_unknown_step_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(["units"])
    assert stopped.value.code == 2
    assert "no step 'units'; there are ruff, lint" in capsys.readouterr().err
