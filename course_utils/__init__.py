"""Helpers for the course: code that would distract from the lesson in a notebook.

For any training run: `masks`, `preflight`, `memory`, `scoring`, `handoff`. For the course itself:
`models`, `data`, `training`, `exercises`, `widgets`, `display`, `hardware`.
"""

from __future__ import annotations

import logging

from course_utils._core.lazy import attach_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

# On import, bitsandbytes looks for an optional package that would fetch kernels from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
