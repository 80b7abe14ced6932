"""Files of results: rows of JSON appended as they come, whole again after a kill.

Used by the programs in `benchmarks/`, by `memory.grid` and by `progress`. Introduced in
notebook 05.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any


def replace_file(path: Path, text: str) -> None:
    """Write a whole file (UTF-8) so that it is there whole or as it was."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file, none if there is no file; what cannot be read is set right.

    What a kill left of a last line is cut. A line in the middle that is no JSON object is moved to
    `<file>.bad` beside it, and a warning says so; the others are used.

    Args:
        path: a file of JSON objects, one a line.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows, good, bad = [], [], []
    # Not splitlines: it also parts a line at U+2028 or U+0085, which JSON leaves as they are.
    for line in whole.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
            good.append(line)
        elif line.strip():
            bad.append(line)
    if bad:
        aside = path.with_name(f"{path.name}.bad")
        with aside.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in bad)
        warnings.warn(
            f"{len(bad)} of {len(bad) + len(good)} lines of {path.name} are no rows; they are kept "
            f"in {aside.name}, the others are used.",
            stacklevel=2,
        )
    if bad or whole != text:
        replace_file(path, "".join(f"{line}\n" for line in good))
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Write a row at the end of a results file, which is made where it is missing.

    The row is on the disk when this returns. It is written at once, so that a kill leaves all of it
    or a half line at the end, which `whole_rows` cuts. Where such a half line is still there, the
    row begins on a line of its own.

    Args:
        path: a file of JSON objects, one a line; its folders are made too.
        row: what JSON can hold.
    """
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        while line:  # a nearly full disk may take a part of it, and then refuses with an error
            line = line[file.write(line) :]
        os.fsync(file.fileno())
