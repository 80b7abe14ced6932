"""How this Python is called from a shell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the course, where this is its clone


def interpreter() -> str:
    """This Python, as a shell takes it: from the course's folder, where it is in there."""
    path = Path(sys.executable or "python")
    if path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return shlex.quote(str(path))
