"""The command that calls this Python from a shell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the course's folder, in a clone


def interpreter() -> str:
    """Return this Python's path for a shell; relative if it is in the course's folder."""
    path = Path(sys.executable or "python")
    if path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return shlex.quote(str(path))
