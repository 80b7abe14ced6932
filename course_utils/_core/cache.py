"""The course's cache: its location, and integrity checks of the large files in it.

Used by `embedded`, `hub` and `training`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from course_utils._core.files import chosen_path, locked, make_folder, parse_json, replace_file
from course_utils.errors import CourseError

_RECORD = "checked.json"
_ANNOUNCED = 2e9  # bytes: reading more takes so long that it is announced
# Files that were verified: path -> [size, modification time in ns, digest].
_checked: dict[str, list[object]] = {}


def cache_dir() -> Path:
    """The folder of models and adapters: `COURSE_CACHE`, or the system's cache folder.

    Raises:
        CannotWrite: the path begins with `~`, and no home folder is known.
    """
    return chosen_path("COURSE_CACHE", lambda: platformdirs.user_cache_dir("course_utils"))


def sha256(path: Path) -> str:
    """Compute a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_sha1(path: Path) -> str:
    """Compute git's hash of a file, which the hub uses for small files: SHA-1 with a header."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _remembered() -> dict[str, list[object]]:
    try:
        known = parse_json((cache_dir() / _RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember() -> None:
    """Store what was verified for the next process; another user's cache is not touched."""
    record = cache_dir() / _RECORD
    try:
        make_folder(record.parent)
        with locked(record, seconds=3):
            known = _remembered() | _checked
            there = {path: facts for path, facts in known.items() if Path(path).exists()}
            replace_file(record, json.dumps(there, indent=1) + "\n")
    except CourseError:
        pass


def damaged(digests: Mapping[Path, str]) -> list[Path]:
    """List the files that are missing or do not match their checksums.

    A file is read once, and again when its size or modification time has changed.

    Args:
        digests: the SHA-256 (64 hex digits) or git's SHA-1 (40) of each file.
    """
    _checked.update(_remembered() | _checked)
    found, to_read = [], {}
    for path, digest in digests.items():
        try:
            facts = path.stat()
        except OSError:
            found.append(path)
            continue
        key, state = os.path.realpath(path), [facts.st_size, facts.st_mtime_ns, digest]
        if _checked.get(key) != state:
            to_read[path] = key, state
    size = sum(int(state[0]) for _, state in to_read.values())
    if size > _ANNOUNCED:
        print(f"Checking {size / 1e9:.1f} GB against their checksums, once …", flush=True)
    for path, (key, state) in to_read.items():
        digest = str(state[2])
        if (sha256 if len(digest) == 64 else _git_sha1)(path) == digest:
            _checked[key] = state
        else:
            found.append(path)
    if to_read:
        _remember()
    return found
