"""Measured rows in JSON lines: appended as they come, whole again after a kill.

Used by the programs in `benchmarks/`. Introduced in notebook 06.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, none if there is no file; what a kill left of a last line is cut.

    Args:
        path: a file of JSON objects, one a line.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        partial = path.with_suffix(".partial")
        partial.write_text(whole, encoding="utf-8")
        partial.replace(path)
    return [json.loads(line) for line in whole.splitlines()]


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Write a row at the end of a results file, which is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
