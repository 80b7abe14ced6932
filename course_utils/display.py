"""How the course's plots and tables look. Introduced in notebook 01."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from cycler import cycler
from pandas.io.formats.style import Styler

# Okabe and Ito's palette, which people with colour-blindness can tell apart
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


def use_style() -> None:
    """Set matplotlib's defaults: the palette, a light grid, text large enough to project."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, RED]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.axisbelow": True,
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "font.size": 11,
            "grid.alpha": 0.3,
            "legend.frameon": False,
        }
    )


def text_table(frame: pd.DataFrame) -> Styler:
    """A table whose cells are texts: left-aligned, line breaks kept, no row numbers."""
    style = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
    heads = [{"selector": "th", "props": [("text-align", "left")]}]
    # One id for all, so that a notebook's saved output is the same each time.
    styler = frame.style.set_properties(**style).set_table_styles(heads).hide(axis="index")
    return styler.set_uuid("texts")
