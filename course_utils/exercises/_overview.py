"""The learner's progress, by notebook. Introduced in notebook 01.

From the shell: `python -m course_utils progress`.
"""

from __future__ import annotations

import argparse

import pandas as pd

from course_utils.exercises import _check, _progress, _quizzes


def everything() -> list[str]:
    """List the names of all exercises and quiz questions."""
    return [*_check.known(), *_quizzes.names()]


def _notebook(name: str) -> str:
    """Return the notebook that a name belongs to: `01` for `01.2` and for `quiz 01.a`."""
    if name.startswith("quiz "):
        return name.removeprefix("quiz ").rpartition(".")[0]
    return _check.notebook_of(name)


def progress_table() -> pd.DataFrame:
    """Tabulate the progress in each notebook.

    Returns:
        One row per notebook, with the columns `exercises` and `quiz` (strings such as `1 of 3`)
        and `open`, the names of what is still to do (`all` if nothing is done yet).
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
    """Print the progress table, and where progress is stored."""
    print(progress_table().to_string())
    if trouble := _progress.trouble():
        file = _progress.path()
        print(f"{file} cannot be read ({trouble}). It stays as it is, and counts as empty.")
    done = len(_progress.read())
    print(f"Kept on this machine only; `reset_progress()` begins anew. {done} done.")


def main(args: argparse.Namespace) -> int:
    """Run `python -m course_utils progress`: print the table, or with `--reset` start over."""
    if args.reset:
        _progress.reset()
    show_progress()
    print(f"File: {_progress.path()}")
    return 0
