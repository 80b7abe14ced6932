"""Evaluate replies: against references, by votes of a judge or of people, on benchmarks.

Introduced in notebooks 03, 07 and 08. Each name is imported on first use, from the module that
`__init__.pyi` lists.
"""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
