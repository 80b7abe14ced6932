"""`python -m course_utils preflight SCRIPT`: run a training script up to its first `train()`."""

from __future__ import annotations

import argparse
import runpy
import sys
from typing import Any

from course_utils._core import checks
from course_utils.errors import CourseError


class _Reached(BaseException):
    """The script has called `train`. Not an `Exception`, so that the script does not catch it."""

    def __init__(self, report: Any):
        self.report = report


def main(args: argparse.Namespace) -> int:
    """Print the report of the script's first training run; return 1 if a check failed, else 0.

    Raises:
        CourseError: there is no such script, or it ended without calling `train`.
    """
    limit = None if args.examples is None else checks.whole("--examples", args.examples, 1)
    gpu = None
    if args.gpu is not None:
        from course_utils.memory import gpu as gpu_by_name

        gpu = gpu_by_name(args.gpu)
    if not args.script.is_file():
        raise CourseError(f"There is no script {args.script}.")
    from transformers import Trainer

    from course_utils.preflight import EXAMPLES, _report_on

    own_train = Trainer.train
    own_arguments, own_path = sys.argv, list(sys.path)

    def train(trainer: Trainer, resume_from_checkpoint: Any = None, *_: Any, **__: Any) -> None:
        raise _Reached(_report_on(trainer, limit or EXAMPLES, gpu, resume_from_checkpoint))

    Trainer.train = train
    sys.argv = [str(args.script), *args.arguments]
    sys.path.insert(0, str(args.script.resolve().parent))
    try:
        runpy.run_path(str(args.script), run_name="__main__")
    except _Reached as reached:
        print(reached.report)
        return 0 if reached.report.ok else 1
    finally:
        Trainer.train = own_train
        sys.argv, sys.path[:] = own_arguments, own_path
    raise CourseError(f"{args.script} ended without calling train() of a Trainer.")
