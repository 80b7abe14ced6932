"""The folder of the course's datasets, and the vocabulary of its sentences."""

from __future__ import annotations

import functools
from pathlib import Path

from course_utils._core import checks
from course_utils.data._sentences import Lexicon, read_lexicon
from course_utils.errors import CourseError


def folder() -> Path:
    """Find the course's `datasets/`: next to the package in a clone, inside it if installed.

    Raises:
        CourseError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "datasets", package / "datasets")
    for place in places:
        if (place / "sentences").is_dir():
            return place
    raise CourseError(
        f"The course's datasets are neither at {places[0]} nor at {places[1]}. Install the package "
        "again, or use it from a clone of the course."
    )


@functools.cache
def lexicon() -> Lexicon:
    """Return the vocabulary of the course's sentences."""
    path = folder() / "sentences" / "lexicon.toml"
    with checks.course_file(path):
        return read_lexicon(path)
