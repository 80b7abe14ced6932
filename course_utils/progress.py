"""Which exercises and quiz questions are done. Introduced in notebook 01.

One JSON file on this machine, which nobody else is told of: `path()` says where. `show()` prints
the table, `reset()` begins anew; from the shell, `python -m course_utils progress`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import platformdirs
from filelock import FileLock

from course_utils.results import replace_file

VARIABLE = "COURSE_PROGRESS"


def path() -> Path:
    """The file: what the environment variable `COURSE_PROGRESS` says, else in the user's data.

    A Colab machine forgets it with everything else; there, set the variable to a file on a mounted
    Drive before the first import.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_data_dir("fine-tuning-course")) / "progress.json"


def read() -> dict[str, str]:
    """What is done and when (ISO 8601, local time), by name; a file that is unreadable is empty."""
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    done = content.get("done") if isinstance(content, dict) else None
    return done if isinstance(done, dict) else {}


def _write(done: dict[str, str]) -> None:
    replace_file(path(), json.dumps({"done": done}, indent=1) + "\n")


def add(names: Iterable[str]) -> None:
    """Note what is done; what is there already keeps its time.

    Two kernels may do so at once. Where the file cannot be written, a line says so, and nothing
    else happens: an exercise is solved all the same.
    """
    names = list(names)
    if not set(names) - set(read()):
        return
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path().with_suffix(".lock"), timeout=3):
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            _write(dict.fromkeys(names, now) | read())
    except OSError as error:
        print(f"Progress is not kept: {type(error).__name__} at {path().name}.")


def everything() -> list[str]:
    """The names of all exercises and quiz questions."""
    from course_utils import exercises
    from course_utils.exercises import quizzes

    return [*exercises.known(), *quizzes.names()]


def _notebook(name: str) -> str:
    """The notebook that a name belongs to: `01` of `01.2` and of `quiz 01.a`."""
    from course_utils import exercises

    if name.startswith("quiz "):
        return name.removeprefix("quiz ").rpartition(".")[0]
    return exercises.notebook_of(name)


def table() -> pd.DataFrame:
    """How far each notebook is done.

    Returns:
        A row for each notebook, with the columns `exercises` and `quiz` (texts such as `1 of 3`)
        and `open`, the names of what is still to do (`all` where nothing is done yet).
    """
    done = read()
    rows = []
    for notebook in sorted({_notebook(name) for name in everything()}):
        own = [name for name in everything() if _notebook(name) == notebook]
        parts = {
            "exercises": [name for name in own if not name.startswith("quiz ")],
            "quiz": [name for name in own if name.startswith("quiz ")],
        }
        told = {
            kind: f"{sum(name in done for name in names)} of {len(names)}" if names else "–"
            for kind, names in parts.items()
        }
        left = [name.removeprefix("quiz ") for name in own if name not in done]
        still = "all" if len(left) == len(own) else ", ".join(left) or "nothing"
        rows.append({"notebook": notebook, **told, "open": still})
    return pd.DataFrame(rows).set_index("notebook")


def show() -> None:
    """Print the table, and where it is kept."""
    print(table().to_string())
    print(f"Kept on this machine only; `progress.reset()` begins anew. {len(read())} done.")


def reset() -> None:
    """Forget everything that is done."""
    path().unlink(missing_ok=True)


def main(args: argparse.Namespace) -> int:
    """`python -m course_utils progress`: the table, or with `--reset` a new beginning."""
    if args.reset:
        reset()
    show()
    print(f"File: {path()}")
    return 0
