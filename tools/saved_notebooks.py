"""Read what saved notebooks printed, showed and are made of. Used by the slides and the README.

A cell is found by its tag `value:NAME`, a number in it by a pattern in what the cell printed, or by
row and column of the table that it ended with. What is not there is an error that names the
notebook and what was looked for.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TAG = "value:"


class NotFound(ValueError):
    """A value that its source does not have."""


class _Parser(HTMLParser):
    """The first table of an output: cells as (text, rows down, columns across), heads apart."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, list[list[tuple[str, int, int]]]] = {"thead": [], "tbody": []}
        self.tables = 0
        self._part = "tbody"
        self._cell: tuple[list[str], int, int] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tables += tag == "table"
        if self.tables != 1:
            return
        if tag in self.parts:
            self._part = tag
        elif tag == "tr":
            self.parts[self._part].append([])
        elif tag in ("td", "th"):
            given = dict(attrs)
            down, across = (int(given.get(name) or 1) for name in ("rowspan", "colspan"))
            self._cell = ([], down, across)

    def handle_data(self, data: str) -> None:
        if self._cell:
            self._cell[0].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell:
            text, down, across = self._cell
            self.parts[self._part][-1].append(("".join(text).strip(), down, across))
            self._cell = None


def _grid(rows: Sequence[Sequence[tuple[str, int, int]]]) -> list[list[str]]:
    """Rows with every span written out."""
    grid: list[list[str]] = []
    below: dict[int, tuple[str, int]] = {}  # column -> text from above, rows that it still takes
    for row in rows:
        line: list[str] = []
        for text, down, across in [*row, ("", 0, 0)]:  # the last one only lets spans go on
            while len(line) in below:
                place = len(line)
                above, left = below.pop(place)
                line.append(above)
                if left > 1:
                    below[place] = (above, left - 1)
            for _ in range(across):
                if down > 1:
                    below[len(line)] = (text, down - 1)
                line.append(text)
        grid.append(line)
    return grid


class Table:
    """A table that a cell ended with. A row is found by the texts of its first cells."""

    def __init__(self, markup: str, where: str) -> None:
        parser = _Parser()
        parser.feed(markup)
        if not parser.tables:
            raise NotFound(f"{where}: its output is no table")
        head, self.rows = _grid(parser.parts["thead"]), _grid(parser.parts["tbody"])
        self.where = where
        # pandas writes the names of the columns, below them those of the indices.
        self.columns = [
            next((line[place] for line in reversed(head) if line[place]), "")
            for place in range(len(head[0]))
        ]

    def place(self, column: str) -> int:
        """A column's place."""
        if column not in self.columns:
            raise NotFound(f"{self.where}: no column {column!r}; there are {self.columns}")
        return self.columns.index(column)

    def row(self, *index: str) -> list[str]:
        """The texts of a row."""
        found = [row for row in self.rows if tuple(row[: len(index)]) == index]
        if len(found) != 1:
            raise NotFound(f"{self.where}: {len(found)} rows begin with {index}")
        return found[0]

    def at(self, *keys: str) -> str:
        """The text at (beginning of a row, …, column)."""
        *index, column = keys
        return self.row(*index)[self.place(column)]


class Saved:
    """A notebook as it was saved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]

    def where(self, name: str) -> str:
        """The place, for messages."""
        return f"{self.path.name}, code cell with the tag {TAG + name!r}"

    def cell(self, name: str) -> dict[str, Any]:
        """The one code cell with a tag."""
        found = [
            cell
            for cell in self.cells
            if cell["cell_type"] == "code" and TAG + name in cell["metadata"].get("tags", [])
        ]
        if len(found) != 1:
            raise NotFound(f"{self.where(name)}: there are {len(found)}")
        return found[0]

    def said(self, name: str) -> str:
        """What a cell printed, and the plain text of what it ended with."""
        return "\n".join(
            "".join(output.get("text") or output["data"].get("text/plain", ""))
            for output in self.cell(name)["outputs"]
        )

    def find(self, name: str, pattern: str) -> str:
        """The first group of a pattern in what a cell said."""
        found = re.search(pattern, self.said(name), flags=re.M | re.S)
        if not found:
            raise NotFound(f"{self.where(name)}: it does not say {pattern!r}")
        return found[1]

    def find_code(self, name: str, pattern: str) -> str:
        """The first group of a pattern in a cell's code."""
        found = re.search(pattern, "".join(self.cell(name)["source"]))
        if not found:
            raise NotFound(f"{self.where(name)}: its code has no {pattern!r}")
        return found[1]

    def table(self, name: str) -> Table:
        """The table that a cell ended with; a training before it may have shown one, too."""
        for output in reversed(self.cell(name)["outputs"]):
            markup = "".join(output.get("data", {}).get("text/html", ""))
            if "<table" in markup:
                return Table(markup, self.where(name))
        raise NotFound(f"{self.where(name)}: its output is no table")

    def lines(self, name: str, first: str, last: str) -> str:
        """Code of a cell, from the line with `first` to the next one with `last`."""
        lines = "".join(self.cell(name)["source"]).splitlines()
        start = next((i for i, line in enumerate(lines) if first in line), None)
        if start is None:
            raise NotFound(f"{self.where(name)}: no line with {first!r}")
        end = next((i for i, line in enumerate(lines) if i >= start and last in line), None)
        if end is None:
            raise NotFound(f"{self.where(name)}: no line with {last!r} from there on")
        return _dedent(lines[start : end + 1])

    def definition(self, name: str) -> str:
        """The code of a function or class, without its docstring."""
        for cell in self.cells:
            code = "".join(cell["source"])
            if cell["cell_type"] != "code" or not re.search(rf"^(def|class) {name}\b", code, re.M):
                continue
            node = next(n for n in ast.parse(code).body if getattr(n, "name", "") == name)
            first, cut = node.body[0], range(0)
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                cut = range(first.lineno - 1, first.end_lineno)
            lines = code.splitlines()
            kept = [lines[i] for i in range(node.lineno - 1, node.end_lineno) if i not in cut]
            return re.sub(r":\n\n", ":\n", _dedent(kept))
        raise NotFound(f"{self.path.name}: it does not define {name}")


def _dedent(lines: Sequence[str]) -> str:
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:].rstrip() for line in lines).strip("\n")


@functools.cache
def notebook(number: str) -> Saved:
    """A saved notebook by its number, such as `03.1`.

    Raises:
        NotFound: there is none.
    """
    found = sorted(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    if len(found) != 1:
        raise NotFound(f"there is no notebook {number}")
    return Saved(found[0])
