"""Predict how much GPU memory training takes, without a GPU. Introduced in notebook 04.

`predict` predicts it, `measure` measures it, `fit` finds what fits; `grid` makes the tables of
notebook 05, `formulas` has the textbook estimates.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from course_utils.memory import formulas, grid
    from course_utils.memory._fit import (
        METHODS,
        fit,
        fits,
        largest_batch,
        usable_bytes,
        ways_to_fit,
    )
    from course_utils.memory._gpus import GPUS, Gpu, gpu, this_gpu
    from course_utils.memory._measure import measure
    from course_utils.memory._predict import Prediction, predict
    from course_utils.memory._setup import Setup

# Imported on first use: predicting needs torch, choosing a GPU does not.
_FROM = {
    "Setup": "_setup",
    "predict": "_predict",
    "Prediction": "_predict",
    "measure": "_measure",
    "METHODS": "_fit",
    "fit": "_fit",
    "fits": "_fit",
    "largest_batch": "_fit",
    "usable_bytes": "_fit",
    "ways_to_fit": "_fit",
    "GPUS": "_gpus",
    "Gpu": "_gpus",
    "gpu": "_gpus",
    "this_gpu": "_gpus",
}
_MODULES = ("formulas", "grid")
__all__ = [
    "GPUS",
    "METHODS",
    "Gpu",
    "Prediction",
    "Setup",
    "fit",
    "fits",
    "formulas",
    "gpu",
    "grid",
    "largest_batch",
    "measure",
    "predict",
    "this_gpu",
    "usable_bytes",
    "ways_to_fit",
]


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
