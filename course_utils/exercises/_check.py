"""Checks for the exercises: what is wrong, with one more hint each time, but never the answer.

`check("01.1", my_answer)` prints the verdict, `quiz("01", a="B")` that of a quiz. Introduced in
notebook 01. Each notebook's checks are in a module in this folder, which is found automatically.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_utils._core.checks import one_of
from course_utils._core.printable import visible
from course_utils.errors import CourseError
from course_utils.exercises import _progress as progress


class Wrong(Exception):
    """An answer is wrong; the message tells the learner why."""


class Empty(Exception):
    """Nothing has been answered yet."""


@dataclass(frozen=True)
class _Exercise:
    test: Callable[..., None]
    hints: tuple[str, ...]


_exercises: dict[str, _Exercise] = {}
_attempts: Counter[str] = Counter()
_solved: set[str] = set()


def exercise(name: str, *hints: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the check of an exercise, with hints that are shown one by one."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        _exercises[name] = _Exercise(test, hints)
        return test

    return register


def call(function: object, *args: Any) -> Any:
    """Call the learner's function; an exception counts as a wrong answer."""
    if not callable(function):
        raise Wrong(f"This should be a function, and is {type(function).__name__}.")
    try:
        result = function(*args)
    except Exception as error:
        shown = ", ".join(repr(arg) if isinstance(arg, str | int | float) else "…" for arg in args)
        raise Wrong(f"Called with ({shown}) it raised {type(error).__name__}: {error}") from error
    if result is None or result is ...:
        raise Empty
    return result


@dataclass(frozen=True)
class Verdict:
    """The result of a check, with its message; `tried` tells a wrong answer from a missing one."""

    solved: bool
    tried: bool
    message: str


def known() -> list[str]:
    """List the numbers of all exercises."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("_notebook_"):
            importlib.import_module(f"course_utils.exercises.{module.name}")
    return sorted(_exercises)


def notebook_of(name: str) -> str:
    """Return the number of the notebook that an exercise belongs to.

    Raises:
        UnknownName: there is no such exercise.
    """
    one_of("exercise", name, known())
    module = _exercises[name].test.__module__.rpartition(".")[2]
    return module.removeprefix("_notebook_").replace("_", ".")


def grade(name: str, *answer: Any) -> Verdict:
    """Check an exercise without printing.

    Args:
        name: the exercise's number, such as `"01.1"`.
        answer: what the exercise asks for.

    Raises:
        UnknownName: there is no such exercise.
    """
    one_of("exercise", name, known())
    test = _exercises[name].test
    wanted = len(inspect.signature(test).parameters)
    if len(answer) != wanted and answer:
        takes = "one answer" if wanted == 1 else f"{wanted} answers"
        given = ", ".join(["…"] * wanted)
        said = f'it takes {takes}, check("{name}", {given}), and was given {len(answer)}.'
        return Verdict(False, False, said)
    try:
        if not answer or any(part is None or part is ... for part in answer):
            raise Empty
        test(*answer)
    except Empty:
        return Verdict(False, False, "nothing to check yet. Replace the ..., then run both cells.")
    except Wrong as wrong:
        return Verdict(False, True, f"not yet. {wrong}")
    except CourseError:
        raise
    except Exception as error:  # an answer may be anything, and do anything
        said = " ".join(str(error).split())[:300]
        message = f"not yet. Your answer cannot be checked ({type(error).__name__}: {said})."
        return Verdict(False, True, f"{message} Does it give what the exercise asks for?")
    return Verdict(True, True, "solved.")


def check(name: str, *answer: Any) -> None:
    """Check an exercise and print the result, with one more hint after each wrong try.

    Arguments and errors are those of `grade`.
    """
    verdict = grade(name, *answer)
    print(visible(f"Exercise {name}: {verdict.message}"))
    (_solved.add if verdict.solved else _solved.discard)(name)
    if verdict.solved:
        progress.add([name])
    if verdict.tried and not verdict.solved:
        _attempts[name] += 1
        for hint in _exercises[name].hints[: _attempts[name]]:
            print(f"  Hint: {hint}")


def done(*names: str) -> bool:
    """Whether exercises have been solved since the kernel started; prints which have not.

    For cells that need the result of an exercise.

    Raises:
        UnknownName: there is no such exercise.
    """
    for name in names:
        one_of("exercise", name, known())
    missing = [name for name in names if name not in _solved]
    if missing:
        print(f"This cell waits for {', '.join(missing)}.")
    return not missing
