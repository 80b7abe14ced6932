"""Check a training run before it starts, on the trainer's own batches, and suggest fixes.

Call `print(preflight(trainer))` before `trainer.train()`. Introduced in notebook 03. To add a
check, add a function to `CHECKS`.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from course_utils._core import checks
from course_utils.preflight import (
    _apart,
    _evaluation,
    _labels,
    _loss,
    _preferences,
    _run,
    _text,
    _trial,
    _weights,
)
from course_utils.preflight._report import WARN, Check, Finding, PreflightFailed, Report
from course_utils.preflight._snapshot import EXAMPLES, TrainerSnapshot

if TYPE_CHECKING:
    from course_utils.memory import Gpu

__all__ = [
    "CHECKS",
    "Check",
    "Finding",
    "PreflightCallback",
    "PreflightFailed",
    "Report",
    "TrainerSnapshot",
    "preflight",
]

# In the order of the report.
CHECKS: dict[str, Callable[[TrainerSnapshot], Finding]] = {
    "batches": _run.batches,
    "text and template": _text.text_and_template,
    "supervised tokens": _labels.supervised,
    "prompt not supervised": _labels.prompt,
    "EOS supervised": _labels.eos,
    "pad vs eos": _labels.pad,
    "truncated": _labels.truncated,
    "labels in range": _labels.in_range,
    "preference pairs": _preferences.pairs,
    "documents apart": _apart.apart,
    "evaluation data": _evaluation.evaluation,
    "trainable parameters": _weights.trainable,
    "learning rate": _run.rate,
    "dtype": _weights.dtype,
    "4-bit weights on a CPU": _weights.quantized,
    "rewards": _preferences.rewards,
    "loss and gradients": _loss.step,
    "plain loss": _loss.plain_loss,
    "gradient accumulation": _loss.accumulation,
    "saved and loaded": _weights.saved,
    "batch and steps": _run.steps,
    "memory": _run.memory,
    "expected minutes": _run.minutes,
}


def preflight(
    trainer: Trainer,
    *,
    strict: bool = False,
    examples: int | None = None,
    gpu: Gpu | str | None = None,
) -> Report:
    """Check a training run before it starts, on its own batches, and change nothing.

    Up to `examples` examples, spread evenly over the training set, go through the trainer's
    collator; the ids, labels and lengths of all rows are scanned for at most 3 seconds; one batch
    goes through several forward and backward passes, the last of which are timed.

    Args:
        trainer: a transformers `Trainer` or one of TRL's, set up exactly as for `train`.
        strict: raise if a check fails.
        examples: how many examples to inspect closely; 64 by default.
        gpu: a GPU, or its name, to predict memory for; this machine's by default. Without a GPU,
            the report has no row on memory.

    Returns:
        The report, with a row for each check in `CHECKS` that applies to this kind of training:
        pass, warn or fail, and the fix. Checks that could not be carried out are listed below the
        table with the reason; a check that itself raises an error becomes a warning. Times are in
        minutes and seconds.

    Raises:
        PreflightFailed: a check failed and `strict` is set.
        UnknownName: the course does not know this GPU.
        ValueError: `examples` is below 1, or `trainer` is not a trainer.

    A training set that can be iterated over only once is used up.
    """
    checks.a("trainer", trainer, Trainer, "a Trainer of transformers or TRL")
    checks.flag("strict", strict)
    limit = EXAMPLES if examples is None else checks.whole("examples", examples, 1)
    if gpu is not None:
        from course_utils.memory import gpu as gpu_by_name

        gpu = gpu_by_name(gpu)
    report = _report_on(trainer, limit, gpu)
    if strict and not report.ok:
        raise PreflightFailed(report)
    return report


def _report_on(trainer: Trainer, limit: int, gpu: Any = None, resume: Any = None) -> Report:
    rows: list[Check] = []
    not_judged: dict[str, str] = {}
    with _trial.left_as_found(trainer):
        snapshot = TrainerSnapshot(trainer, limit, gpu, resume)
        for name, check in CHECKS.items():
            try:
                finding = check(snapshot)
            except Exception as error:  # a training may be unlike all that a check was made for
                finding = Finding(
                    WARN,
                    f"this check itself failed: {type(error).__name__}: {error}"[:300],
                    "Please report it with the training's set-up; the other rows hold.",
                )
            if finding.status:
                rows.append(Check(name, *finding))
            elif finding.found:
                not_judged[name] = finding.found
    return Report(rows, not_judged)


def __getattr__(name: str) -> Any:
    if name == "PreflightCallback":
        from course_utils.preflight._callback import PreflightCallback

        return PreflightCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _CallableModule(types.ModuleType):
    """Makes `course_utils.preflight(trainer)` work, as Python binds that name to this package."""

    def __call__(self, *args: Any, **options: Any) -> Report:
        return preflight(*args, **options)


_module: Any = sys.modules[__name__]
_module.__class__ = _CallableModule
_module.__signature__ = inspect.signature(preflight)
_module.__doc__ = preflight.__doc__
