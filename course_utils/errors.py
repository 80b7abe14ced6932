"""The course's exceptions: each message says what was asked for and what is possible instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping

_LONGEST = 80  # characters of a value in an error


class CourseError(Exception):
    """Base class of the errors that the course raises; the message is meant for the learner."""


class BadValue(CourseError, ValueError):
    """Raised for an invalid argument; the message names it and says what it has to be."""


class UnknownName(CourseError, LookupError):
    """Raised for a model, dataset, role or option that the course does not know."""


class GatedModel(CourseError):
    """Raised for a model whose licence has to be accepted on the hub first."""


class HubUnreachable(CourseError):
    """Raised when something is only on the hub, and the hub cannot be reached."""


class ChecksumMismatch(CourseError):
    """Raised when a downloaded file is not the one that the catalogue describes."""


class DamagedFile(CourseError):
    """Raised when a file is missing, truncated or corrupted."""


class NotEnoughDisk(CourseError, OSError):
    """Raised when something would not fit, or did not fit, on the disk."""


class NotEnoughMemory(CourseError):
    """Raised when a model would not fit into memory."""


class UnsafeFormat(CourseError):
    """Raised when weights would have to be unpickled, or a model comes with its own code."""


class ImpossibleSetup(CourseError, ValueError):
    """Raised for an impossible combination of settings; the message says which ones conflict."""


class NotTrainable(CourseError, RuntimeError):
    """Raised when the installed libraries cannot run a training; the message says where."""


class NotPredictable(CourseError, ValueError):
    """Raised when a training's memory cannot be predicted without running it, with the reason."""


class CannotWrite(CourseError, OSError):
    """Raised when a path is not writable, or must not be overwritten."""


class NotRows(CourseError, ValueError):
    """Raised when a file that should contain rows of results contains something else."""


def shown(value: object) -> str:
    """Return a value as error messages show it: its `repr`, truncated if it is long."""
    if isinstance(value, str | bytes) and len(value) > _LONGEST:
        return f"{repr(value[:_LONGEST])[:_LONGEST]}… ({len(value):,} characters)"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print huge ones
        return f"a number of about {value.bit_length() * math.log10(2):,.0f} digits"
    if isinstance(value, list | tuple | set | frozenset | Mapping) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value):,}"
    try:
        text = repr(value)
    except Exception:  # the repr of a foreign class may fail
        text = f"a {type(value).__name__}"
    return text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}…"


def near_matches(name: str, known: Collection[str]) -> list[str]:
    """Find known names that resemble `name`, by the whole name or the part after the slash."""
    lowered = {entry.lower(): entry for entry in known}
    by_tail = {entry.lower().split("/")[-1]: entry for entry in known}
    wanted = name[:200].lower()  # no name is longer, and comparing is slow
    tail = wanted.split("/")[-1]
    found = [entry for entry in known if tail and tail in entry.lower()]
    for word, names in ((wanted, lowered), (tail, by_tail)):
        found += [names[match] for match in difflib.get_close_matches(word, names, 5, 0.6)]
    return list(dict.fromkeys(found))[:5]


def unknown(kind: str, name: object, known: Collection[str], why: str = "") -> UnknownName:
    """Create the error for an unknown name, with near matches or else all known names."""
    near = near_matches(name, known) if isinstance(name, str) else []
    hint = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return UnknownName(" ".join(filter(None, (f"Unknown {kind} {shown(name)}.", hint, why))))
