"""Widgets for the notebooks; each comes with a plain cell that does the same."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
