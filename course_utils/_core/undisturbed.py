"""Context managers for work without side effects: no output, random states restored."""

from __future__ import annotations

import contextlib
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars, messages and warnings of transformers and datasets."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    datasets = sys.modules.get("datasets")  # if it is not imported, it prints nothing
    bars_of_datasets = datasets is not None and datasets.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if bars_of_datasets:
        datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if bars_of_datasets:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def random_state_kept(devices: Sequence[Any] = ()) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch.

    Args:
        devices: the GPUs whose states are restored too.
    """
    import numpy as np
    import torch

    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
