"""Arguments are checked here, so that a bad one is named before anything is done with it.

Each check takes the parameter's name and the value, and gives the value back:
`steps = whole("steps", steps, least=1)`. What fails is a `BadValue`, which is both a `CourseError`
and a `ValueError`: "steps is 0. It has to be a whole number, 1 or more." A name that is not among
the known ones is an `UnknownName`, with near matches.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from course_utils.errors import BadValue, CourseError, DamagedFile, shown, unknown

T = TypeVar("T")
_LONGEST = 80  # characters of a value in an error


def refuse(name: str, value: object, possible: str) -> BadValue:
    """The error for a bad value, to be raised.

    Args:
        name: the parameter's, or what it stands for.
        value: what was given.
        possible: what it has to be, such as "a whole number, 1 or more".
    """
    return BadValue(f"{name} is {shown(value)}. It has to be {possible}.")


def _within(value: Any, least: Any, most: Any, above: Any, below: Any) -> bool:
    return not (
        (least is not None and value < least)
        or (most is not None and value > most)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    )


def _range(kind: str, least: Any, most: Any, above: Any, below: Any) -> str:
    def written(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"

    if least is not None and most is not None:
        return f"{kind} from {written(least)} to {written(most)}"
    parts = [kind]
    if least is not None:
        parts.append(f"{written(least)} or more")
    if above is not None:
        parts.append(f"above {written(above)}")
    if most is not None:
        parts.append(f"{written(most)} at most")
    if below is not None:
        parts.append(f"below {written(below)}")
    return ", ".join(parts)


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number; True and 2.0 are none.

    Raises:
        BadValue: another type, below `least` or above `most`.
    """
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (good and _within(value, least, most, None, None)):
        raise refuse(name, value, _range("a whole number", least, most, None, None))
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A finite number, as it was given; True is none, nor is NaN.

    Raises:
        BadValue: another type, not finite, or out of the range: `least` and `most` are possible
            themselves, `above` and `below` are not.
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        good = good and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        good = False
    if not (good and _within(value, least, most, above, below)):
        raise refuse(name, value, _range("a finite number", least, most, above, below))
    return value


def flag(name: str, value: Any) -> bool:
    """True or False; 1, "no" and None are neither.

    Raises:
        BadValue: anything else.
    """
    kind = type(value)
    if kind is not bool and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise refuse(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any, *, empty: bool = True) -> str:
    """A text.

    Args:
        empty: whether an empty one is possible.

    Raises:
        BadValue: no text, an empty one, or one with half a character (a lone surrogate), which
            neither a file nor a tokenizer can take.
    """
    if not isinstance(value, str):
        raise refuse(name, value, "a text")
    if not empty and not value.strip():
        raise refuse(name, value, "a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadValue(
            f"{name} is {shown(value)}. Character {error.start + 1} is a lone surrogate, half of a "
            "character: read the text anew, with the encoding that it has."
        ) from None
    return value


def items(name: str, values: Any, kind: str = "values", *, empty: bool = True) -> list[Any]:
    """A list, tuple or anything else to go through, as a list; a text or a dictionary is none.

    Args:
        kind: what it holds, in the plural.
        empty: whether it may be empty.

    Raises:
        BadValue: it cannot be gone through, is a text or a dictionary, or is empty.
    """
    possible = f"a list of {kind}"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise refuse(name, values, possible)
    found = list(values)
    if not found and not empty:
        raise refuse(name, values, f"{possible}, with one at least")
    return found


def texts(name: str, values: Any, *, empty: bool = True) -> list[str]:
    """A list of texts; a single text is none.

    Raises:
        BadValue: no list, or something in it that is no text, with its place.
    """
    found = items(name, values, "texts", empty=empty)
    return [text(f"{name}[{place}]", value) for place, value in enumerate(found)]


def one_of(name: str, value: Any, known: Iterable[str], why: str = "") -> str:
    """A name among the known ones.

    Raises:
        UnknownName: another value, with near matches or all that there are.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise unknown(name, value, known, why)
    return value


def a(name: str, value: Any, kind: type[T] | tuple[type, ...], possible: str) -> T:
    """A value of a class.

    Args:
        possible: what it has to be, such as "a Setup".

    Raises:
        BadValue: of another class.
    """
    if not isinstance(value, kind):
        raise refuse(name, value, possible)
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """Something that can be called.

    Raises:
        BadValue: it cannot.
    """
    if not callable(value):
        raise refuse(name, value, "a function")
    return value


def path(name: str, value: Any, *, folder: bool | None = None) -> Path:
    """A path, with `~` for the home folder; nothing needs to be there.

    Args:
        folder: whether what is there, if anything, has to be a folder (True) or a file (False).

    Raises:
        BadValue: no path, an empty one, one that no file system takes, a folder for a file, or
            the other way round.
    """
    if not isinstance(value, str | os.PathLike) or value == "":
        raise refuse(name, value, "a path, as text or pathlib.Path")
    try:
        os.fsencode(value)
        found = Path(value).expanduser()
        is_folder, is_there = found.is_dir(), found.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error).split("\n")[0].rstrip(".")
        raise BadValue(f"{name} is {shown(value)}, which is no path: {said[:200]}.") from None
    if "\0" in str(found):
        raise refuse(name, value, "a path without a null character")
    if folder is False and is_folder:
        raise refuse(name, value, "a file, and a folder is there")
    if folder and is_there and not is_folder:
        raise refuse(name, value, "a folder, and a file is there")
    return found


def writable(name: str, value: Any) -> Path:
    """A path of a file that can be written; its folder is made, the file itself is not.

    Raises:
        BadValue: no path of a file, or the file cannot be written there, with the reason.
    """
    found = path(name, value, folder=False)
    try:
        there = found.exists()
        found.parent.mkdir(parents=True, exist_ok=True)
        found.open("a").close()
        if not there:
            found.unlink()
    except OSError as error:
        raise BadValue(
            f"{name} is {shown(value)}, which cannot be written: {error.strerror}. Name a file in "
            "a folder of yours."
        ) from None
    return found


@contextlib.contextmanager
def course_file(where: Path) -> Iterator[None]:
    """While a file that the course brings along is read: what is wrong with it is said plainly.

    Raises:
        DamagedFile: it is missing, or what is in it cannot be read.
    """
    try:
        yield
    except CourseError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = str(error).split("\n")[0][:200]
        raise DamagedFile(
            f"{where} cannot be read ({type(error).__name__}: {said}). The file belongs to the "
            f'course and is missing or damaged. Get it back with: git checkout -- "{where}"; or '
            "download the course again."
        ) from error
