"""Record which exercises and quiz questions are done. Introduced in notebook 01.

Progress is stored in a JSON file on this machine, see `path()`, and is not sent anywhere.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import platformdirs

from course_utils._core import checks
from course_utils._core.files import (
    check_regular,
    chosen_path,
    locked,
    make_folder,
    parse_json,
    replace_file,
)

VARIABLE = "COURSE_PROGRESS"


def path() -> Path:
    """The progress file: `COURSE_PROGRESS`, if set, else a file in the user's data folder.

    A Colab machine loses it with everything else; there, set this environment variable to a file on
    a mounted Drive before the first import.

    Raises:
        CannotWrite: the path begins with `~`, and no home folder is known.
    """
    folder = "fine-tuning-course"
    return chosen_path(VARIABLE, lambda: f"{platformdirs.user_data_dir(folder)}/progress.json")


def _parsed(text: bytes) -> dict[str, str]:
    """Parse the contents of a progress file.

    Raises:
        ValueError: the file is damaged.
    """
    content = parse_json(text)
    done = content.get("done") if isinstance(content, dict) else None
    if not isinstance(done, dict):
        raise ValueError("no progress")
    return done


def _read() -> tuple[dict[str, str], str]:
    """Return what is done, and why the file could not be read ("" if it could, or is missing)."""
    try:
        check_regular(path())
        return _parsed(path().read_bytes()), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, str(error)


def read() -> dict[str, str]:
    """Return what is done and when (ISO 8601, local time), by name.

    A damaged or unreadable file counts as empty here and is left unchanged.
    """
    return _read()[0]


def trouble() -> str:
    """Return why the file cannot be read; "" if it can, or is missing."""
    return _read()[1]


def _keep_aside(file: Path) -> None:
    """Rename a damaged file to an unused name, and print a message."""
    for number in itertools.count(1):
        aside = file.with_name(f"{file.name}.damaged-{number}")
        if not os.path.lexists(aside):
            break
    file.replace(aside)
    print(f"{file.name} was damaged. It is kept as {aside}; progress begins anew.")


def _change(change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Read the file, change its contents and write it, under a lock.

    Raises:
        OSError: it cannot be read or written; it is left unchanged.
    """
    file = Path(os.path.realpath(path()))
    check_regular(file)
    make_folder(file.parent)
    with locked(file, seconds=3):
        done: dict[str, str] = {}
        if file.exists():
            try:
                done = _parsed(file.read_bytes())
            except ValueError:
                _keep_aside(file)
        replace_file(file, json.dumps({"done": change(done)}, indent=1) + "\n")


def add(names: Iterable[str]) -> None:
    """Record what is done; earlier records keep their time.

    Two kernels may do this at the same time. A damaged file is renamed, and a message says to what.
    If the file cannot be written, only a message is printed: the exercise counts as solved
    nevertheless.

    Raises:
        BadValue: not a list of names.
    """
    names = checks.texts("names", names)
    try:
        if set(names) - set(read()):
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            _change(lambda done: dict.fromkeys(names, now) | done)
    except OSError as error:
        print(f"Progress is not kept. {error}")


def reset() -> None:
    """Clear all progress. A damaged file is renamed.

    Raises:
        OSError: the file cannot be written.
    """
    if os.path.lexists(path()):
        _change(lambda done: {})
