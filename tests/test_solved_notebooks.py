"""Notebooks that are an exercise as a whole, run with their solutions."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from tools import notebooks

SOURCES = sorted((ROOT / "notebooks" / "solutions").glob("*.py"))


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if notebooks.is_exercise(s)], ids=lambda path: path.stem
)
def test_an_exercise_as_a_whole_holds_what_it_says(source: Path) -> None:
    """Solved, it runs, and its asserts hold. (Unsolved it runs among the other notebooks.)"""
    _, outcome = notebooks.executed(source)
    assert outcome == "ok"
