"""`PreflightCallback`: run preflight when training begins."""

from __future__ import annotations

import sys
import types
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from course_utils._core import checks


class PreflightCallback(TrainerCallback):
    """Runs preflight when `train` is called, prints the report, and stops if a check fails.

    Use `SFTTrainer(..., callbacks=[PreflightCallback()])`, or `trainer.add_callback(...)`.

    Args:
        strict: raise `PreflightFailed` if a check fails; otherwise, only print the report.
        examples: how many examples to inspect closely; 64 by default.

    Raises:
        ValueError: `examples` is below 1.
    """

    def __init__(self, *, strict: bool = True, examples: int | None = None):
        self.strict = checks.flag("strict", strict)
        self.examples = None if examples is None else checks.whole("examples", examples, 1)
        self.report: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the training run that has just begun, on the main process only."""
        from course_utils.preflight import PreflightFailed, preflight

        trainer = _caller()
        if trainer is None or not state.is_world_process_zero:
            return
        self.report = preflight(trainer, examples=self.examples)
        print(self.report)
        if self.strict and not self.report.ok:
            raise PreflightFailed(self.report)


def _caller() -> Trainer | None:
    """Return the calling trainer, which transformers does not pass to callbacks."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back
    return None
