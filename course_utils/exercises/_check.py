"""Checks for the exercises: what is wrong, with one more hint each time, but never the answer.

`check("01.1", my_answer)` prints the verdict, `quiz("01", a="B")` that of a quiz. Introduced in
notebook 01. Each notebook's checks are in a module in this folder, which is found automatically.
"""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
import pkgutil
import re
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
    """Nothing has been answered yet; a message, if there is one, says why."""


@dataclass(frozen=True)
class _Exercise:
    test: Callable[..., str | None]
    hints: tuple[str, ...]


_exercises: dict[str, _Exercise] = {}
_attempts: Counter[str] = Counter()
_solved: set[str] = set()


_Test = Callable[..., str | None]


def exercise(name: str, *hints: str) -> Callable[[_Test], _Test]:
    """Register the check of an exercise, with hints that are shown one by one.

    The check raises `Wrong` or `Empty`. What it returns, if anything, is said of a right answer.
    """

    def register(test: _Test) -> _Test:
        _exercises[name] = _Exercise(test, hints)
        return test

    return register


def call(function: object, *args: Any) -> Any:
    """Call the learner's function; an exception counts as a wrong answer."""
    if not callable(function):
        raise Wrong(
            f"This should be a function, and is {type(function).__name__}: hand over its name, "
            "without brackets."
        )
    called = f"Called with ({', '.join(map(_short, args))}) it"  # before it can change them
    try:
        result = function(*args)
    except Exception as error:
        raise Wrong(f"{called} raised {type(error).__name__}: {error}") from error
    if result is ... or (result is None and _unwritten(function)):
        raise Empty
    if result is None:
        raise Empty(
            f"not yet. {called} gives back None. Is a `return` missing, or is what you return None?"
        )
    return result


def _short(arg: object) -> str:
    shown = " ".join(repr(arg).split())
    return shown if len(shown) <= 50 else "…"


_NOTHING = len((lambda: None).__code__.co_code)


def _unwritten(function: Any) -> bool:
    """Whether a function's body is empty, or still has the line with the `...`."""
    code = getattr(function, "__code__", None)
    if code is not None and len(code.co_code) <= _NOTHING:
        return True
    try:
        return bool(re.search(r"^\s*\.\.\.\s*(#.*)?$", inspect.getsource(function), re.M))
    except (OSError, TypeError):  # no source to be had
        return False


def plain(given: Any) -> Any:
    """Turn NumPy's and torch's numbers and arrays, and tuples, into Python's numbers and lists."""
    if hasattr(given, "tolist"):
        return given.tolist()
    return [plain(part) for part in given] if isinstance(given, list | tuple) else given


def number(given: Any, expected: str = "A number is expected", *, whole: bool = False) -> Any:
    """Return the int or float that an answer equals, whichever library's type it has."""
    value = plain(given)
    while isinstance(value, list) and len(value) == 1 and not isinstance(given, list | tuple):
        (value,) = value  # a tensor with one number in it
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if not whole:
            return value if isinstance(value, int) else float(value)
        if math.isfinite(value) and value == int(value):
            return int(value)
    raise Wrong(f"{expected}; this is {given!r:.80}.")


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
        remark = test(*answer)
    except Empty as empty:
        said = str(empty) or "nothing to check yet. Replace the ..., then run both cells."
        return Verdict(False, False, said)
    except Wrong as wrong:
        return Verdict(False, True, f"not yet. {wrong}")
    except CourseError:
        raise
    except Exception as error:  # an answer may be anything, and do anything
        said = " ".join(str(error).split())[:300]
        message = f"not yet. Your answer cannot be checked ({type(error).__name__}: {said})."
        return Verdict(False, True, f"{message} Does it give what the exercise asks for?")
    return Verdict(True, True, f"solved. {remark}" if remark else "solved.")


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
