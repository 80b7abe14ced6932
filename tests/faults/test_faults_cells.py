"""Cells run again: each code cell of each notebook twice in a row, from top to bottom, for real."""

from __future__ import annotations

import functools

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from twice import Ran, run_twice

from tools import notebooks

NUMBERS = [source.stem.split("_")[0] for source in notebooks.sources()]
# In less than half a minute on one core; `make test` leaves out what takes longer.
QUICK = {"03.2", "04a", "05a"}
# Here a tiny model is trained, and later cells need what it learns, or notes at some of its steps.
LONGER = {"07": {"steps": 40}, "08": {"steps": 100, "tokens": 24}}
each_notebook = pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=() if number in QUICK else pytest.mark.slow) for number in NUMBERS],
)


@functools.cache
def ran(number: str, whole: bool = False) -> Ran:
    """A notebook with its exercises solved, each cell run twice."""
    notebook = notebooks.build(notebooks.find(number), solved=True, claims=True)
    return run_twice(notebook, whole=whole, **LONGER.get(number, {}))


def told(found: Ran) -> str:
    """The cells that failed, in lines."""
    failed = [*found.first, *found.again]
    return f"{len(failed)} cells fail:\n" + "\n".join(failed) if failed else ""


@each_notebook
def test_each_cell_runs_twice_in_a_row(number: str) -> None:
    """A learner runs a cell again all the time; no cell fails then, and none after it."""
    assert not told(ran(number))


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_runs_again_from_the_top(number: str) -> None:
    """All cells, and then all once more, in a kernel that holds what the first pass has left."""
    assert not told(ran(number, whole=True))


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_what_holds_still_holds_when_cells_run_twice(number: str) -> None:
    """What a cell asserts is true whether the cells before it were run once or twice."""
    broken = ran(number).unheld - ran(number, whole=True).unheld
    assert not broken, "\n".join(sorted(broken))


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("kept = [1]\n---\nkept.remove(1)", "cell 1, 'kept.remove(1)': ValueError"),
        ("kept = []\n---\nkept.append(1)\nassert len(kept) == 1", "not when run again"),
        ("kept = 1\n---\ndel kept", "NameError"),
        ("import os\n---\nos._exit(1)", "the kernel died"),
    ],
)
def test_a_cell_that_cannot_be_repeated_is_found(code: str, error: str) -> None:
    """The test above can fail, and names the cell."""
    cells = [new_code_cell(source) for source in code.split("\n---\n")]
    found = run_twice(new_notebook(cells=cells), shortened=False)
    assert [error in line for line in [*found.first, *found.again]] == [True]
