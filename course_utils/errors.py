"""The errors of the course: each says what was asked for and what is possible instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping

_LONGEST = 80  # characters of a value in an error


class CourseError(Exception):
    """Any error the course raises on purpose; its text is meant for the learner."""


class BadValue(CourseError, ValueError):
    """An argument that a function cannot take; the text names it and says what it has to be."""


class UnknownName(CourseError, LookupError):
    """A model, dataset, role or option that the course does not know."""


class GatedModel(CourseError):
    """A model whose licence has to be accepted on the hub first."""


class HubUnreachable(CourseError):
    """Something that only the hub has, while the hub cannot be reached."""


class ChecksumMismatch(CourseError):
    """A downloaded file that is not the one the catalogue describes."""


class DamagedFile(CourseError):
    """A file that is missing, cut short, or cannot be read as it was written."""


class NotEnoughDisk(CourseError, OSError):
    """What would not fit, or did not fit, on the disk."""


class NotEnoughMemory(CourseError):
    """A model that would not fit into memory."""


class UnsafeFormat(CourseError):
    """Weights that would have to be unpickled, or a model that brings code of its own."""


class ImpossibleSetup(CourseError, ValueError):
    """A combination of settings that no training can have; the text says what excludes what."""


class NotTrainable(CourseError, RuntimeError):
    """A training that the installed libraries cannot run; the text says where they stop."""


class NotPredictable(CourseError, ValueError):
    """A training whose memory cannot be told without running it; the text names what stops it."""


class EndpointError(CourseError):
    """A server of a model that cannot be asked, or gave no answer; the text says what to do."""


class CannotWrite(CourseError, OSError):
    """A place that cannot be written, or that holds what must not be overwritten."""


class NotRows(CourseError, ValueError):
    """A file that was taken for rows of results and holds something else."""


def shown(value: object) -> str:
    """A value as an error shows it: its `repr`, cut short where it is long."""
    if isinstance(value, str | bytes) and len(value) > _LONGEST:
        return f"{repr(value[:_LONGEST])[:_LONGEST]}… ({len(value):,} characters)"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write the longest
        return f"a number of about {value.bit_length() * math.log10(2):,.0f} digits"
    if isinstance(value, list | tuple | set | frozenset | Mapping) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value):,}"
    try:
        text = repr(value)
    except Exception:  # a repr of somebody else's may fail
        text = f"a {type(value).__name__}"
    return text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}…"


def near_matches(name: str, known: Collection[str]) -> list[str]:
    """Known names that resemble `name`, by the whole name or the part behind the slash."""
    lowered = {entry.lower(): entry for entry in known}
    by_tail = {entry.lower().split("/")[-1]: entry for entry in known}
    wanted = name[:200].lower()  # no name is longer, and comparing takes its time
    tail = wanted.split("/")[-1]
    found = [entry for entry in known if tail and tail in entry.lower()]
    for word, names in ((wanted, lowered), (tail, by_tail)):
        found += [names[match] for match in difflib.get_close_matches(word, names, 5, 0.6)]
    return list(dict.fromkeys(found))[:5]


def unknown(kind: str, name: object, known: Collection[str], why: str = "") -> UnknownName:
    """The error for a name that is not known: near matches first, else all that there is."""
    near = near_matches(name, known) if isinstance(name, str) else []
    hint = f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return UnknownName(" ".join(filter(None, (f"Unknown {kind} {shown(name)}.", hint, why))))
