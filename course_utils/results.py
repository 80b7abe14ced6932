"""Result files: JSON rows that are appended as they come, and survive a killed program.

Used by the programs in `benchmarks/`, by `memory.grid` and by `scoring.Votes`. Introduced in
notebook 05.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from course_utils._core import checks
from course_utils._core.files import check_regular, locked, make_folder, parse_json, saying_why
from course_utils.errors import NotRows


def _row(line: bytes) -> dict[str, Any] | None:
    """Parse a line's row, or return None if it is not one."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _check_rows(path: Path, lines: Iterator[bytes]) -> None:
    """Refuse a file in which no line is a row or the beginning of one."""
    for line in lines:
        if _row(line) is not None:
            return
        if line.strip() and not line.startswith(b'{"'):
            break
    else:
        return
    if any(_row(line) is not None for line in lines):
        return
    raise NotRows(
        f"{path} is no file of results: none of its lines is a JSON object. It was left as it is. "
        "Name another file, or one that is not there yet."
    )


def numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a results file, each with its line number, counted from 1.

    Arguments and errors are those of `whole_rows`.
    """
    path = checks.path("path", path)
    check_regular(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    _check_rows(path, iter(lines))
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        row = _row(line)
        if row is not None:
            rows.append((number, row))
        # The last line is incomplete: the program was killed, or is just writing it.
        elif line.strip() and number < len(lines):
            bad.append(number)
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
        warnings.warn(
            f"{path.name}: {len(bad)} of {len(bad) + len(rows)} lines are no rows (line {shown}). "
            "They were left where they are; the others are used.",
            stacklevel=3,
        )
    return rows


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Read the complete rows of a results file; none if there is no file.

    Reading never changes the file. A line that is not a JSON object in UTF-8 is skipped with a
    warning. The last line counts if it is complete, even without a line break; a partial line left
    by a killed program does not.

    Args:
        path: a JSON Lines file.

    Raises:
        NotRows: no line is a row, as in an image or a text file that was given by mistake.
        CannotWrite: it is a folder, a device, a socket or a pipe.
        OSError: it cannot be read.
    """
    return [row for _, row in numbered_rows(path)]


def _line(row: dict[str, Any]) -> bytes:
    if not isinstance(row, dict):
        raise TypeError(f"A row is a dictionary; {type(row).__name__} was given.")
    try:
        text = json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, as in a truncated reply
        text = json.dumps(row).encode()
    return text + b"\n"


def _append(file: BinaryIO, line: bytes) -> None:
    """Append a line atomically, after a line break if the last line is incomplete."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # keep a partial line of a killed program separate
            line = b"\n" + line
    try:
        while line:  # a nearly full disk may write a part of it before it raises an error
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(size)
        raise


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Lock a results file, to read it and then append to it.

    Yields a function that appends a row; the row is on disk when the function returns.

    Arguments and errors are those of `append_row`.
    """
    path = Path(os.path.realpath(checks.path("path", path)))
    check_regular(path)
    make_folder(path.parent)
    with locked(path):
        if path.exists():
            with path.open("rb") as file:
                _check_rows(path, iter(file))

        def append(row: dict[str, Any]) -> None:
            line = _line(row)
            with saying_why("A row", path), path.open("ab+", buffering=0) as file:
                _append(file, line)

        yield append


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a results file, which is created if it does not exist.

    The row is on disk when this returns. Programs that append to the same file wait for each other.
    A killed program leaves the whole row or a partial line, which does not count as a row; the next
    row begins on a new line.

    Args:
        path: a JSON Lines file; its folders are created too.
        row: a row that can be serialized to JSON.

    Raises:
        NotRows: the file exists and contains something else than rows.
        CannotWrite: it is not a regular file, or not writable.
        NotEnoughDisk: the disk is full; the file is left unchanged.
        TypeError: the row cannot be serialized; nothing was written.
    """
    with appending(path) as append:
        append(row)
