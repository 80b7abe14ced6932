"""Shared parts of the widgets: a fallback text, tables, choices."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from course_utils._core import checks
from course_utils._core.printable import visible

if TYPE_CHECKING:
    import pandas as pd


class WithFallback(widgets.VBox):
    """A box with a helpful text where widgets are not displayed (GitHub, a printed page)."""

    def __init__(self, children: list[widgets.Widget], fallback: str):
        super().__init__(children)
        self._fallback = fallback

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle["text/plain"] = visible(self._fallback)
        bundle["text/html"] = f"<p><em>{html.escape(visible(self._fallback))}</em></p>"
        return bundle


def as_html(table: pd.DataFrame) -> str:
    """Render a table for a widget, with its own styles: spacing, right-aligned numbers."""
    cells = {"selector": "th, td", "props": [("padding", "2px 10px"), ("text-align", "left")]}
    styler = table.style.hide(axis="index").set_table_styles([cells])
    numbers = list(table.select_dtypes("number"))
    right = [{"selector": "th, td", "props": [("text-align", "right")]}]
    styler = styler.set_table_styles(dict.fromkeys(numbers, right), overwrite=False)
    return styler.format(precision=2, thousands=",", escape="html").to_html()


def choices(name: str, given: Any, kind: str, one: Callable[[Any], bool]) -> dict[str, Any]:
    """Check the choices for a drop-down list, by the name shown."""
    good = isinstance(given, Mapping) and given
    if not good or not all(isinstance(key, str) and one(value) for key, value in given.items()):
        raise checks.refuse(name, given, f"a dictionary of names and {kind}, with one at least")
    return dict(given)
