"""The benchmark of silent faults: its cases are whole, its results meet the aims and still hold."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.silent_faults import __main__ as program
from course_utils.preflight import CHECKS

ROOT = Path(__file__).parent.parent
FAULTS, HEALTHY = program.cases()
# Measured on two busy cores; the file is checked with room for a slower machine.
MOST_SECONDS = 10.0
ROOM = 3.0
SAMPLE = 24


@pytest.fixture(autouse=True)
def _one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models this small are faster on one thread; what trainings write goes away again."""
    monkeypatch.setenv("SILENT_FAULTS_TMP", str(tmp_path))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, str]]:
    """The committed results, by case."""
    return {row["name"]: row for row in program.read()}


# The cases


def test_enough_cases() -> None:
    """At least sixty faults and three hundred correct set-ups, under names of their own."""
    assert len(FAULTS) >= 60
    assert len(HEALTHY) >= 300
    assert FAULTS.keys() & HEALTHY.keys() == set()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_whole(name: str) -> None:
    """Its name, kind, public issues, story and rows are as the page needs them."""
    fault = FAULTS[name]
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", name)
    assert fault.kind
    assert fault.kind != program.HEALTHY_KIND
    assert re.fullmatch(r".{40,}[.\"]", fault.story, re.DOTALL)
    assert fault.issues
    for issue in fault.issues:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", issue)
    assert fault.rows
    assert set(fault.rows) <= CHECKS.keys()


# The results that are committed


def test_results_cover_every_case(recorded: dict[str, Any]) -> None:
    """A row for each case, one line each, and none of a case that is gone."""
    assert list(recorded) == [*FAULTS, *HEALTHY]
    text = program.RESULTS.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1 + len(recorded)
    assert text.splitlines()[0] == ",".join(program.COLUMNS)
    for name, row in recorded.items():
        kind = FAULTS[name].kind if name in FAULTS else program.HEALTHY_KIND
        assert row["kind"] == kind
        assert all(row[library] for library in program.LIBRARIES)


def test_results_meet_the_aims(recorded: dict[str, Any]) -> None:
    """Nine of ten faults are found, one of fifty correct set-ups is not left in peace at most."""
    faults = [row for name, row in recorded.items() if name in FAULTS]
    healthy = [row for name, row in recorded.items() if name in HEALTHY]
    found = sum(row["found"] == "yes" for row in faults)
    assert found >= 0.9 * len(faults), program.summary(faults)
    wrong = sum(row["found"] != "quiet" for row in healthy)
    assert wrong <= 0.02 * len(healthy), program.summary(healthy)
    assert all(row["fix"] for row in faults if row["found"] == "yes")
    assert all(row["proof"] for row in faults)
    slowest = max(float(row["seconds"]) for row in recorded.values() if row["seconds"])
    assert slowest <= ROOM * MOST_SECONDS


# A sample, tried anew


def _sample(names: list[str], count: int) -> list[str]:
    """Names that lie evenly over the list."""
    return names[:: max(1, len(names) // count)][:count]


def _one_of_each_check() -> list[str]:
    """A fault that was found, for each check that found one."""
    found: dict[str, str] = {}
    for row in program.read():
        if row["found"] == "yes":
            raised = row["raised"].split("; ")
            found |= {check: row["name"] for check in raised if check in FAULTS[row["name"]].rows}
    return sorted(set(found.values()))


@pytest.mark.parametrize("name", _one_of_each_check())
def test_a_fault_is_found_again(name: str) -> None:
    """It is found, and with the fix nothing is left to say."""
    row = program.try_fault(FAULTS[name])
    assert (row["found"], row["fix_works"]) == ("yes", "yes"), row


@pytest.mark.parametrize("name", _sample(list(HEALTHY), SAMPLE))
def test_a_correct_set_up_is_left_in_peace(name: str) -> None:
    """Nothing is said of it."""
    row = program.try_healthy(HEALTHY[name])
    assert row["found"] == "quiet", row


@pytest.mark.slow
def test_all_cases_anew(tmp_path: Path, recorded: dict[str, Any]) -> None:
    """The whole benchmark, as the program runs it."""
    path = tmp_path / "all.csv"
    program.run([*FAULTS, *HEALTHY], path)
    rows = {row["name"]: row for row in program.read(path)}
    assert rows.keys() == recorded.keys()
    differing = [name for name, row in rows.items() if row["found"] != recorded[name]["found"]]
    assert differing == []


# The program


class _Stand:
    """A case that does what a test wants."""

    def __init__(self, name: str, kind: str = "odd", rows: tuple[str, ...] = ()):
        self.name, self.kind, self.issues, self.rows = name, kind, ("a/b#1",), rows
        self.mended = None

    def make(self) -> Any:
        raise ValueError("no\nsuch model")

    def proof(self, trainer: Any) -> str:
        return "it is there"


def test_what_cannot_be_made_is_a_crash() -> None:
    """An error of one case is a row of its own, on one line."""
    for row in (program.try_fault(_Stand("one")), program.try_healthy(_Stand("one"))):
        assert row["found"] == "crash"
        assert row["text"] == "cannot be made: ValueError: no such model"


def test_results_can_be_continued(tmp_path: Path) -> None:
    """A later row of a case replaces the earlier; what a kill left of a line does not count."""
    path = tmp_path / "results.csv"
    for name, found in (("b", "no"), ("a", "yes"), ("b", "yes")):
        program.append(path, program._row(name, "odd", found=found, text='two\nlines, "and more"'))
    with path.open("a") as file:
        file.write("c,odd,half a li")
    assert [(row["name"], row["found"]) for row in program.read(path)] == [
        ("b", "yes"),
        ("a", "yes"),
    ]
    program.settle(path, ["a", "b", "c"])
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert [row["name"] for row in csv.DictReader(io.StringIO("\n".join(lines)))] == ["a", "b"]
    assert program.read(path)[0]["text"] == 'two lines, "and more"'


def test_summary_counts() -> None:
    """What is found elsewhere or crashes does not count as found."""
    told = [
        *(("one", "odd", "yes", "yes"), ("two", "odd", "elsewhere", "no: dtype")),
        *(("three", "even", "crash", ""), ("four", program.HEALTHY_KIND, "quiet", "")),
        ("five", program.HEALTHY_KIND, "false alarm", ""),
    ]
    rows = [
        program._row(name, kind, found=found, fix_works=fix, raised="dtype", seconds="1.5")
        for name, kind, found, fix in told
    ]
    text = program.summary(rows)
    assert "odd: 1 of 2 (50.0%)" in text
    assert "found: 1 of 3 (33.3%), 95% interval 0.8% to 90.6%" in text
    assert "two (elsewhere), three (crash)" in text
    assert "fixes that work: 1 of 2" in text
    assert "false alarms and crashes: 1 of 2" in text
    assert "1.5 s at most" in text


def test_a_hang_costs_one_case(tmp_path: Path) -> None:
    """A case over its time is written down, and the next one is tried."""
    names = list(FAULTS)[:2]
    path = tmp_path / "results.csv"
    program.run(names, path, seconds=0.001)
    rows = program.read(path)
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["found"] == "crash"
        assert row["text"].startswith("more than 0 s when ")


def test_help() -> None:
    """The command exists and says what it does."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.silent_faults", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--again" in done.stdout
