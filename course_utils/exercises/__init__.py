"""Exercises and quizzes, with hints that never give the answer away."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
