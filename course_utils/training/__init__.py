"""What the notebooks' trainings share: live curves, a loss that is fast on a CPU, checkpoints."""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
