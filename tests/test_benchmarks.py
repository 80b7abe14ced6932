"""The measuring programs run, append row by row, and go on where they were stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PROGRAM = ROOT / "benchmarks" / "pig_latin.py"


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The program with very little to do."""
    little = ["--tokens", "300", "--examples", "2", "--results", str(results)]
    command = [sys.executable, str(PROGRAM), *little, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_pig_latin_measures_what_is_missing(tmp_path: Path) -> None:
    """One row a variant; a row that is there is left alone, and a broken last line is redone."""
    results = tmp_path / "results.jsonl"
    assert run(results, "plain").returncode == 0
    (row,) = map(json.loads, results.read_text().splitlines())
    assert row["variant"] == "plain"
    assert row["steps"] >= 1
    assert 0 <= row["unseen_words"] <= 1
    before = results.read_text()
    with results.open("a") as file:
        file.write('{"variant": "both spel')  # killed while writing
    assert run(results, "plain").returncode == 0
    assert results.read_text() == before


def test_an_unknown_variant_names_the_known_ones(tmp_path: Path) -> None:
    """Before anything is loaded."""
    done = run(tmp_path / "none.jsonl", "plainly")
    assert done.returncode == 2
    assert "both spelled" in done.stderr


def test_committed_rows_are_of_one_kind() -> None:
    """The rows that notebook 03.1 shows: measured alike, each variant once."""
    lines = (PROGRAM.parent / "results" / "pig_latin.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["variant"] for row in rows}) == len(rows) >= 5
    assert len({(row["tokens"], row["machine"], row["examples"]) for row in rows}) == 1
