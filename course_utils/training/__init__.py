"""Helpers for the notebooks' training runs: live loss curves, a faster loss on CPU, checkpoints."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
