"""Files of results: rows of JSON appended as they come, whole again after a kill.

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
    """A line's row, or None where it holds none."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _check_rows(path: Path, lines: Iterator[bytes]) -> None:
    """Refuse a file none of whose lines is a row, nor the beginning of one."""
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
    """The rows of a results file, each with the number of its line, counted from 1.

    Args and errors are those of `whole_rows`.
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
        # The last line has no end yet: a kill left it, or it is just being written.
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
    """The rows of a results file, none if there is no file. Reading never changes the file.

    A line that is no JSON object in UTF-8 is left where it is, and a warning says so. The last line
    counts where it is whole, even without a line break; what a kill left of one does not count.

    Args:
        path: a file of JSON objects, one a line.

    Raises:
        NotRows: no line of it is a row, as in a picture or a text that was named by mistake.
        CannotWrite: it is a folder, a device, a socket or a pipe.
        OSError: it cannot be read.
    """
    return [row for _, row in numbered_rows(path)]


def _line(row: dict[str, Any]) -> bytes:
    if not isinstance(row, dict):
        raise TypeError(f"A row is a dictionary; {type(row).__name__} was given.")
    try:
        text = json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, as a cut reply may have
        text = json.dumps(row).encode()
    return text + b"\n"


def _append(file: BinaryIO, line: bytes) -> None:
    """Write a line at the end, on a line of its own, so that it is on the disk or not at all."""
    size = file.seek(0, os.SEEK_END)
    if size:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":  # what a kill left of a line stays a line of its own
            line = b"\n" + line
    try:
        while line:  # a nearly full disk may take a part of it, and then refuses with an error
            line = line[file.write(line) :]
        os.fsync(file.fileno())
    except BaseException:
        file.truncate(size)
        raise


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Be the only one to write a results file, to read it and then append to it.

    Gives a function that appends a row, which is on the disk when it returns.

    Args and errors are those of `append_row`.
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
    """Write a row at the end of a results file, which is made where it is missing.

    The row is on the disk when this returns. Programs that append to the same file wait for each
    other. A kill leaves all of the row or a half line at the end, which does not count as a row;
    the next row begins on a line of its own.

    Args:
        path: a file of JSON objects, one a line; its folders are made too.
        row: what JSON can hold.

    Raises:
        NotRows: the file is there and holds something else than rows.
        CannotWrite: it is no regular file, or cannot be written.
        NotEnoughDisk: the disk is full; the file is as it was.
        TypeError: JSON cannot hold the row; nothing was written.
    """
    with appending(path) as append:
        append(row)
