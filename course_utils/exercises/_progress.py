"""Which exercises and quiz questions are done. Introduced in notebook 01.

One JSON file on this machine, which nobody else is told of: `path()` says where.
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
    """The file: what the environment variable `COURSE_PROGRESS` says, else in the user's data.

    A Colab machine forgets it with everything else; there, set the variable to a file on a mounted
    Drive before the first import.

    Raises:
        CannotWrite: the place begins with `~`, and no home folder is known.
    """
    folder = "fine-tuning-course"
    return chosen_path(VARIABLE, lambda: f"{platformdirs.user_data_dir(folder)}/progress.json")


def _parsed(text: bytes) -> dict[str, str]:
    """What a file says is done.

    Raises:
        ValueError: it is damaged.
    """
    content = parse_json(text)
    done = content.get("done") if isinstance(content, dict) else None
    if not isinstance(done, dict):
        raise ValueError("no progress")
    return done


def _read() -> tuple[dict[str, str], str]:
    """What is done, and why the file could not be read; "" where it could, or is not there."""
    try:
        check_regular(path())
        return _parsed(path().read_bytes()), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, str(error)


def read() -> dict[str, str]:
    """What is done and when (ISO 8601, local time), by name.

    A file that is damaged, or cannot be read, counts as empty here and stays as it is.
    """
    return _read()[0]


def trouble() -> str:
    """Why the file cannot be read; "" where it can, or is not there."""
    return _read()[1]


def _keep_aside(file: Path) -> None:
    """Put a damaged file aside, under a name that nothing has yet, and say so."""
    for number in itertools.count(1):
        aside = file.with_name(f"{file.name}.damaged-{number}")
        if not os.path.lexists(aside):
            break
    file.replace(aside)
    print(f"{file.name} was damaged. It is kept as {aside}; progress begins anew.")


def _change(change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    """Read the file, change what it says and write it, while others wait.

    Raises:
        OSError: it cannot be read or written; then it is as it was.
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
    """Note what is done; what is there already keeps its time.

    Two kernels may do so at once. A damaged file is kept aside, and a line says where. Where the
    file cannot be written, a line says so, and nothing else happens: an exercise is solved all the
    same.

    Raises:
        BadValue: no list of names.
    """
    names = checks.texts("names", names)
    try:
        if set(names) - set(read()):
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            _change(lambda done: dict.fromkeys(names, now) | done)
    except OSError as error:
        print(f"Progress is not kept. {error}")


def reset() -> None:
    """Forget everything that is done. A damaged file is kept aside.

    Raises:
        OSError: the file cannot be written.
    """
    if os.path.lexists(path()):
        _change(lambda done: {})
