"""Exercises and quizzes: what is wrong with an answer, a hint more each time, never the answer."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
