"""Progress: one file, whole at any moment, of exercises and quiz questions, that can be reset."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import exercises
from course_utils.__main__ import main
from course_utils.exercises import _check, progress_table, reset_progress
from course_utils.exercises import _progress as progress
from course_utils.exercises import _quizzes as quizzes


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A learner's file of this test's own."""
    path = tmp_path / "somewhere" / "progress.json"
    monkeypatch.setenv(progress.VARIABLE, str(path))
    return path


def test_what_is_solved_is_kept(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By exercises and by quizzes, with the time; a second time changes nothing."""
    right = quizzes.read("01")["a"]["right"]
    exercises.quiz("01", a="?")
    assert not file.exists()
    exercises.quiz("01", a=right)
    progress.add(["01.2"])
    before = json.loads(file.read_text())
    assert set(before["done"]) == {"01.2", "quiz 01.a"}
    exercises.quiz("01", a=right)
    assert json.loads(file.read_text()) == before
    row = progress_table().loc["01"]
    assert row["exercises"] == "1 of 3"
    assert row["quiz"].startswith("1 of ")
    assert "01.1" in row["open"]
    assert "01.2" not in row["open"]
    assert {p.name for p in file.parent.iterdir()} <= {"progress.json", ".progress.json.lock"}


def test_what_is_done_keeps_its_time(file: Path) -> None:
    """Though it is noted again, beside something new."""
    then = "2020-02-02T20:20:20+00:00"
    file.parent.mkdir()
    file.write_text(json.dumps({"done": {"01.1": then}}))
    progress.add(["01.1", "01.2"])
    assert progress.read()["01.1"] == then
    assert progress.read()["01.2"] > then


def test_a_check_that_is_passed_counts_and_a_failed_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once done is done, whatever is tried afterwards."""
    verdicts = iter([(False, True), (True, True), (False, True)])
    monkeypatch.setattr(
        _check, "grade", lambda name, *answer: _check.Verdict(*next(verdicts), "said")
    )
    exercises.check("02.1", 1)
    assert not progress.read()
    exercises.check("02.1", 1)
    assert "02.1" in progress.read()
    exercises.check("02.1", 1)
    assert "02.1" in progress.read()


def test_every_exercise_belongs_to_its_notebook() -> None:
    """Also those whose names do not say so."""
    assert set(progress_table()["open"]) == {"all"}
    progress.add(["yoda.trainer", "03.1.2", "quiz 03.1.a"])
    table = progress_table()
    listed = sum(int(told.split(" of ")[1]) for told in table["exercises"])
    assert listed == len(exercises.known())
    assert "yoda.format" in table.loc["03.2", "open"]
    assert "03.1.1" in table.loc["03.1", "open"]
    assert "03.1.1" not in table.loc["03", "open"]


def test_reset(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From Python and from the shell; resetting nothing is no error."""
    progress.add(["01.1"])
    reset_progress()
    assert not progress.read()
    reset_progress()
    progress.add(["01.1"])
    assert main(["progress"]) == 0
    assert "1 done" in capsys.readouterr().out
    assert main(["progress", "--reset"]) == 0
    out = capsys.readouterr().out
    assert "0 done" in out
    assert str(file) in out


@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": 3}', "\x00\x00"])
def test_a_damaged_file_is_begun_anew(file: Path, content: str) -> None:
    """A learner is never stopped by it, and what was in it is kept."""
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert progress.read() == {}
    assert file.read_text() == content
    progress.add(["01.1"])
    assert list(progress.read()) == ["01.1"]
    assert file.with_name(f"{file.name}.damaged-1").read_text() == content


def test_where_it_cannot_be_written_the_learner_goes_on(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line says so."""
    file.parent.parent.mkdir(exist_ok=True)
    file.parent.write_text("a file where the folder should be")
    progress.add(["01.1"])
    assert "Progress is not kept" in capsys.readouterr().out


def test_several_kernels_at_once(file: Path) -> None:
    """Nothing of what four processes note at the same time gets lost."""
    program = (
        "import sys\nfrom course_utils.exercises import _progress as progress\n"
        "for n in range(25): progress.add([f'{sys.argv[1]}.{n}'])"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(k)], env=dict(os.environ))
        for k in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert len(progress.read()) == 100


def test_it_is_kept_in_the_users_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing else is said; not in the repository."""
    monkeypatch.delenv(progress.VARIABLE)
    assert progress.path().name == "progress.json"
    assert Path(__file__).parent.parent not in progress.path().parents
