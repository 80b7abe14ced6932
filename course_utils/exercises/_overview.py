"""How far the course is done, by notebook. Introduced in notebook 01.

From the shell, `python -m course_utils progress`.
"""

from __future__ import annotations

import argparse

import pandas as pd

from course_utils.exercises import _check, _progress, _quizzes


def everything() -> list[str]:
    """The names of all exercises and quiz questions."""
    return [*_check.known(), *_quizzes.names()]


def _notebook(name: str) -> str:
    """The notebook that a name belongs to: `01` of `01.2` and of `quiz 01.a`."""
    if name.startswith("quiz "):
        return name.removeprefix("quiz ").rpartition(".")[0]
    return _check.notebook_of(name)


def progress_table() -> pd.DataFrame:
    """How far each notebook is done.

    Returns:
        A row for each notebook, with the columns `exercises` and `quiz` (texts such as `1 of 3`)
        and `open`, the names of what is still to do (`all` where nothing is done yet).
    """
    done = _progress.read()
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


def show_progress() -> None:
    """Print the table, and where it is kept."""
    print(progress_table().to_string())
    if trouble := _progress.trouble():
        file = _progress.path()
        print(f"{file} cannot be read ({trouble}). It stays as it is, and counts as empty.")
    done = len(_progress.read())
    print(f"Kept on this machine only; `reset_progress()` begins anew. {done} done.")


def main(args: argparse.Namespace) -> int:
    """`python -m course_utils progress`: the table, or with `--reset` a new beginning."""
    if args.reset:
        _progress.reset()
    show_progress()
    print(f"File: {_progress.path()}")
    return 0
