"""How good replies are: against references, by a judge's or people's votes, on benchmarks.

Introduced in notebooks 03, 07 and 08. Each name is imported when it is first used, from the module
that `__init__.pyi` lists.
"""

from course_utils._core.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
