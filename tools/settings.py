"""The course's own settings, from `course.toml`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "course.toml"
_ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")


def repository() -> str:
    """The repository's address, or an empty text while none is set.

    Raises:
        SystemExit: what is set is not the address of a repository on GitHub.
    """
    found = tomllib.loads(FILE.read_text(encoding="utf-8")).get("repository", "")
    address = str(found).rstrip("/").removesuffix(".git")
    if address and not _ADDRESS.fullmatch(address):
        raise SystemExit(
            f"{FILE.name}: repository = {found!r} is no address of a repository on GitHub, such as "
            "https://github.com/NAME/fine-tuning-course; leave it empty to have no badges."
        )
    return address
