"""Helpers of the course: what would distract from the lesson in a notebook.

The names that notebooks use most are here; each is imported when it is first used, so that
`python -m course_utils catalog` does not wait for torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# On import, bitsandbytes asks for an optional package whose kernels would come from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "load_model": "loading",
    "load_tokenizer": "loading",
    "runner": "running",
    "describe": "hardware",
    "load_data": "data",
    "preflight": "preflight",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"course_utils.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
