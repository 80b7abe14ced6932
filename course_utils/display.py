"""The style of the course's plots and tables. Introduced in notebook 01."""

from __future__ import annotations

import numbers
import os
from typing import Any

import matplotlib as mpl
import pandas as pd
from cycler import cycler

from course_utils._core import checks
from course_utils._core.printable import visible

# Okabe and Ito's palette, whose colours people with colour blindness can tell apart
# (https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#7F7F7F",
)


# What GPU memory is used for in training, in the order in which it is stacked.
MEMORY_COLOURS = {
    "weights": GREY,
    "optimizer": ORANGE,
    "gradients": SKY,
    "activations": BLUE,
    "workspaces": GREEN,
}


# Background and text colours, to suit JupyterLab's light and dark themes.
THEMES = {"light": ("white", "black"), "dark": ("#111111", "#E0E0E0")}


def use_style(theme: str | None = None) -> None:
    """Set matplotlib's defaults: the palette, a light grid, text large enough for a projector.

    Args:
        theme: `"light"` or `"dark"`; by default the value of the environment variable
            `COURSE_THEME`, or else light. The palette is the same in both.

    Raises:
        UnknownName: there is no such theme.
    """
    if theme is None:
        theme = os.environ.get("COURSE_THEME") or "light"
    checks.one_of("theme", theme, THEMES)
    ground, ink = THEMES[theme]
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    mpl.rcParams.update(
        {
            **dict.fromkeys(inked, ink),
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, RED]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.axisbelow": True,
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "axes.facecolor": ground,
            "figure.facecolor": ground,
            "savefig.facecolor": ground,
            "font.size": 11,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )


def _cell(value: Any) -> Any:
    """Return the content of a cell: a number unchanged, anything else as printable text."""
    return value if isinstance(value, numbers.Number) else visible(str(value))


class TextTable:
    """A table whose cells are texts: left-aligned, line breaks kept, no row numbers."""

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame.reset_index(drop=True).map(_cell)
        self.frame.columns = [visible(str(name)) for name in frame.columns]

    def __repr__(self) -> str:
        return visible(self.frame.to_string(index=False))

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        style = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
        heads = [{"selector": "th", "props": [("text-align", "left")]}]
        styler = self.frame.style.set_properties(**style).set_table_styles(heads)
        # What a model wrote is shown, never rendered.
        styler = styler.format(escape="html").format_index(escape="html", axis="columns")
        # One id for all, so that a notebook's saved output is the same each time.
        html = styler.hide(axis="index").set_uuid("texts").to_html()
        return {"text/html": html, "text/plain": repr(self)}


def text_table(frame: pd.DataFrame) -> TextTable:
    """Format a data frame of texts for display; invisible characters are shown.

    Raises:
        BadValue: not a data frame.
    """
    return TextTable(checks.a("frame", frame, pd.DataFrame, "a pandas DataFrame"))
