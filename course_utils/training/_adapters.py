"""Find checkpoints, and save and find adapters. Introduced in notebook 03.1."""

from __future__ import annotations

import hashlib
from pathlib import Path

import transformers
from peft import PeftModel

from course_utils._core import checks
from course_utils._core.cache import cache_dir
from course_utils._core.files import new_folder, parse_json, recover_folder, saying_why
from course_utils.data import NAMES as DATA_NAMES
from course_utils.data import folder as data_folder


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


def _adapter_folder(task: str, base: str) -> Path:
    checks.one_of("task", task, DATA_NAMES)
    digest = hashlib.sha256(base.encode())
    for file in sorted((data_folder() / task).glob("*.jsonl")):
        digest.update(file.read_bytes())
    return cache_dir() / "adapters" / f"{task}-{digest.hexdigest()[:12]}"


def keep_adapter(model: PeftModel, task: str) -> Path:
    """Save an adapter in the course's cache, where later notebooks look for it.

    The folder's name contains a hash of the base model's name and the data; an older adapter for
    the same base and data is replaced atomically.

    Args:
        model: a fine-tuned model; its active adapter is saved.
        task: the dataset it was fine-tuned on, such as `"pig_latin"`.

    Returns:
        The folder of the adapter.

    Raises:
        BadValue: `model` has no adapter.
        UnknownName: `task` is not a dataset of the course.
        CannotWrite: the cache is not writable; set `COURSE_CACHE` to use another folder.
        NotEnoughDisk: the disk is full; an older adapter is left unchanged.
    """
    checks.a("model", model, PeftModel, "a model with an adapter of peft")
    target = _adapter_folder(task, model.get_base_model().name_or_path)
    with new_folder(target) as scratch, saying_why("The adapter", target):
        saved = scratch / "saved"
        # The embeddings are the base model's; otherwise peft would ask the hub whether they are.
        model.save_pretrained(
            saved, selected_adapters=[model.active_adapter], save_embedding_layers=False
        )
        if model.active_adapter != "default":  # peft puts any other name into a subfolder
            saved = saved / model.active_adapter
        saved.replace(scratch / "new")
    return target


def kept_adapter(model: transformers.PreTrainedModel, task: str) -> Path | None:
    """Find the adapter that `keep_adapter` saved for this base model and dataset, or None."""
    checks.a("model", model, transformers.PreTrainedModel, "a model, as load_model gives it")
    folder = _adapter_folder(task, model.name_or_path)
    recover_folder(folder)
    return folder if (folder / "adapter_model.safetensors").exists() else None
