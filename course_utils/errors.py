"""The errors of the course: each says what was asked for and what is possible instead."""

from __future__ import annotations


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
