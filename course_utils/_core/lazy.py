"""Lazy imports of public names, on first use.

This does what `lazy_loader` does; it is reimplemented because the doctor has to run when packages
are missing.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attach_stub(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Create a package's `__getattr__`, `__dir__` and `__all__` from its `__init__.pyi`.

    Type checkers and editors read the same stub, so the names are in one place:
    `from ._judge import Judge as Judge`.

    Args:
        package, file: the package's `__name__` and `__file__`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes: dict[str, tuple[str, str]] = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            home = f"{package}.{node.module}" if node.module else package
            homes |= {alias.asname or alias.name: (home, alias.name) for alias in node.names}

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, original = homes[name]
        if home == package:
            return importlib.import_module(f"{home}.{original}")
        return getattr(importlib.import_module(home), original)

    def __dir__() -> list[str]:
        return sorted(homes)

    return __getattr__, __dir__, sorted(homes)
