"""Create the library's own trainer for a `Setup`, on meta tensors or on a device.

Predictions follow the trainer's own code: its constructor casts and patches the model, its
collator makes the batch, its `training_step` runs. Introduced in notebook 05.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from course_utils._core.undisturbed import quiet_libraries
from course_utils.memory import _build as build
from course_utils.memory import _optimizers as optimizers
from course_utils.memory._setup import Setup


def arguments(setup: Setup, device: str, folder: str) -> Any:
    """Return the trainer's arguments. On meta, the tracker does autocast, so it is off here."""
    on_cuda = device == "cuda"
    given = {
        "output_dir": folder,
        "per_device_train_batch_size": setup.batch_size,
        "gradient_accumulation_steps": setup.accumulation,
        "learning_rate": build.LEARNING_RATE,
        "max_steps": 2,
        "use_cpu": not on_cuda,
        "bf16": device != "meta" and setup.autocast == "bfloat16",
        "fp16": device != "meta" and setup.autocast == "float16",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        **optimizers.arguments(setup.optimizer),
        **_checkpointing(setup),
    }
    if setup.trainer in ("trainer", "loop"):
        from transformers import TrainingArguments

        return TrainingArguments(**given)
    if setup.trainer == "dpo":
        from trl import DPOConfig

        return DPOConfig(**given, max_length=setup.seq_len)
    from trl import SFTConfig

    return SFTConfig(
        **given,
        max_length=setup.seq_len,
        packing=setup.sequences == "packed",
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def _checkpointing(setup: Setup) -> dict[str, Any]:
    checkpoints = setup.checkpoints
    if setup.trainer == "loop" or (checkpoints == "none" and not setup.from_trl):
        return {}
    if checkpoints == "none":
        return {"gradient_checkpointing": False}
    return {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": checkpoints == "reentrant"},
    }


def tokenizer() -> Any:
    """Return the smallest tokenizer that a trainer accepts; it never sees any text that matters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<end>": 0, "word": 1}, unk_token="word"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<end>", eos_token="<end>", unk_token="word"
    )


@contextlib.contextmanager
def undisturbed(keep_state: bool = True) -> Iterator[None]:
    """Create and run a trainer without progress bars and telemetry.

    Args:
        keep_state: restore accelerate's state afterwards, for other trainers in this process.
    """
    with contextlib.ExitStack() as kept:
        if keep_state:
            kept.enter_context(build.shared_state_kept())
        with contextlib.suppress(ImportError):  # libraries of 2024 have neither
            import datasets  # noqa: F401  (so that its bars are off, too)
            from trl.trainer.base_trainer import _BaseTrainer

            kept.enter_context(mock.patch.object(_BaseTrainer, "_send_telemetry"))
        kept.enter_context(quiet_libraries())
        yield


def make(setup: Setup, made: nn.Module, device: str) -> Any:
    """Create the trainer that a setup names, around a model of `build.model`.

    The model has its adapter, the optimizer is created, checkpointing is on; accelerate has not
    prepared it: on a device, `prepare` does that.
    """
    from datasets import Dataset
    from peft import prepare_model_for_kbit_training

    if setup.from_trl and setup.prepares:
        made = prepare_model_for_kbit_training(made, use_gradient_checkpointing=False)
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        args = arguments(setup, device, folder)
        if setup.trainer in ("trainer", "loop"):
            from transformers import Trainer

            trainer = Trainer(
                build.prepared_by_hand(setup, made, device),
                args,
                processing_class=tokenizer(),
            )
        elif setup.trainer == "sft":
            from trl import SFTTrainer

            with torch.device(device):
                trainer = SFTTrainer(
                    made,
                    args,
                    train_dataset=Dataset.from_list([{"input_ids": [1, 1], "labels": [1, 1]}]),
                    processing_class=tokenizer(),
                    peft_config=build.adapter(setup),
                )
        else:
            from trl import DPOTrainer

            pair = {"prompt": "word", "chosen": " word", "rejected": " word"}
            with torch.device("cpu"):
                trainer = DPOTrainer(
                    made,
                    args=args,
                    train_dataset=Dataset.from_list([pair]),
                    processing_class=tokenizer(),
                    peft_config=build.adapter(setup),
                )
        if setup.from_trl:  # after TRL's own cast
            build.cast_adapter(setup, trainer.model)
        begin(trainer)
    return trainer


def optimizer_by_hand(setup: Setup, made: nn.Module) -> Any:
    """Create the optimizer, with the class and settings that the Trainer would use."""
    from transformers import Trainer

    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        args = arguments(setup, "meta", folder)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, made)
    return kind(build.trained(made), **options)


def begin(trainer: Any) -> None:
    """Do what `Trainer.train` does to model and optimizer before the first step."""
    args, model = trainer.args, trainer.model
    with quiet_libraries():
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=dict(args.gradient_checkpointing_kwargs or {}) or None
            )
        trainer.optimizer = None
        trainer.create_optimizer()


def new_optimizer(trainer: Any) -> Any:
    """Create a trainer's optimizer again, for parameters that have been replaced."""
    trainer.optimizer = None
    trainer.create_optimizer()
    return trainer.optimizer


def prepare(trainer: Any) -> None:
    """Do what accelerate does on a device: add autocast and the gradient scaler."""
    trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(
        trainer.model, trainer.optimizer
    )


def batch(setup: Setup, trainer: Any) -> dict[str, Any]:
    """Make a micro-batch of random tokens on the CPU, with the trainer's collator."""
    vocabulary = setup.vocabulary
    if setup.trainer == "trainer" or (setup.trainer == "sft" and setup.sequences == "full"):
        return build.batch(setup, vocabulary)  # the same, and fast even for a million examples
    return dict(trainer.data_collator(build.examples(setup, vocabulary)))
