"""The course's datasets with their splits, and the rules that generate them."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
