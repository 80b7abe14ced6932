"""Find a training's checkpoints. Introduced in notebook 03.1."""

from __future__ import annotations

from pathlib import Path

from course_utils._core import checks
from course_utils._core.files import parse_json


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Find the last complete checkpoint, for `trainer.train(resume_from_checkpoint=…)`.

    A run killed while saving leaves a checkpoint without `trainer_state.json`, which is written
    last. transformers' `resume_from_checkpoint=True` would pick that checkpoint, and fail.

    Args:
        output_dir: the `output_dir` of the training run; it need not exist yet.

    Returns:
        The checkpoint's folder, or None if there is none, so that training starts from scratch.
    """
    found: dict[int, Path] = {}
    for folder in checks.path("output_dir", output_dir, folder=True).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        try:
            parse_json((folder / "trainer_state.json").read_bytes())
        except (OSError, ValueError):
            continue
        if step.isdecimal():
            found[int(step)] = folder
    return str(found[max(found)]) if found else None
