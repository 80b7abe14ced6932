"""Argument checks, so that an invalid argument is reported before it is used.

Each check takes the parameter's name and the value, and returns the value:
`steps = whole("steps", steps, least=1)`. It raises a `BadValue`, which is both a `CourseError` and
a `ValueError`: "steps is 0. It has to be a whole number, 1 or more." An unknown name raises an
`UnknownName`, with near matches.
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
_LONGEST = 80  # characters of a value in an error message


def refuse(name: str, value: object, possible: str) -> BadValue:
    """Create the error for a bad value.

    Args:
        name: the parameter's name, or what it stands for.
        value: the value that was passed.
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
    """Check for an integer; True and 2.0 are refused.

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
    """Check for a finite number; True and NaN are refused.

    Raises:
        BadValue: another type, not finite, or out of range: `least` and `most` are inclusive
            bounds, `above` and `below` exclusive ones.
    """
    good = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        good = good and math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        good = False
    if not (good and _within(value, least, most, above, below)):
        raise refuse(name, value, _range("a finite number", least, most, above, below))
    return value


def flag(name: str, value: Any) -> bool:
    """Check for True or False; 1, "no" and None are refused.

    Raises:
        BadValue: anything else.
    """
    kind = type(value)
    if kind is not bool and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise refuse(name, value, "True or False")
    return bool(value)


def text(name: str, value: Any, *, empty: bool = True) -> str:
    """Check for a string.

    Args:
        empty: whether it may be empty.

    Raises:
        BadValue: not a string, an empty one, or one with a lone surrogate, which neither a file nor
            a tokenizer accepts.
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
    """Convert an iterable to a list; a string or a dictionary is refused.

    Args:
        kind: what it contains, in the plural.
        empty: whether it may be empty.

    Raises:
        BadValue: it is not iterable, is a string or a dictionary, or is empty.
    """
    possible = f"a list of {kind}"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise refuse(name, values, possible)
    found = list(values)
    if not found and not empty:
        raise refuse(name, values, f"{possible}, with one at least")
    return found


def texts(name: str, values: Any, *, empty: bool = True) -> list[str]:
    """Check for a list of strings; a single string is refused.

    Raises:
        BadValue: not a list, or an item is not a string; the message gives its index.
    """
    found = items(name, values, "texts", empty=empty)
    return [text(f"{name}[{place}]", value) for place, value in enumerate(found)]


def one_of(name: str, value: Any, known: Iterable[str], why: str = "") -> str:
    """Check for one of the known names.

    Raises:
        UnknownName: another value; the message gives near matches or all known names.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise unknown(name, value, known, why)
    return value


def a(name: str, value: Any, kind: type[T] | tuple[type, ...], possible: str) -> T:
    """Check for an instance of a class.

    Args:
        possible: what it has to be, such as "a Setup".

    Raises:
        BadValue: an instance of another class.
    """
    if not isinstance(value, kind):
        raise refuse(name, value, possible)
    return value


def function(name: str, value: Any) -> Callable[..., Any]:
    """Check for a callable.

    Raises:
        BadValue: not callable.
    """
    if not callable(value):
        raise refuse(name, value, "a function")
    return value


def path(name: str, value: Any, *, folder: bool | None = None) -> Path:
    """Check for a path, with `~` for the home folder; it need not exist.

    Args:
        folder: whether the path, if it exists, has to be a folder (True) or a file (False).

    Raises:
        BadValue: not a path, an empty one, one that no file system accepts, a folder instead of a
            file, or the other way round.
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
    """Check for the path of a writable file; its folder is created, the file itself is not.

    Raises:
        BadValue: not the path of a file, or not writable; the message gives the reason.
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
    """Turn errors in reading one of the course's own files into a clear message.

    Raises:
        DamagedFile: the file is missing or cannot be read.
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
