"""Models: the catalogue, and loading, quantizing and running the models in it."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
