"""A faster loss on CPU. Introduced in notebook 03.1."""

from __future__ import annotations

import types

import transformers
from peft.utils.other import TrainableTokensWrapper
from trl import SFTTrainer

from course_utils._core import checks


def faster_on_cpu(trainer: SFTTrainer) -> SFTTrainer:
    """Make an SFTTrainer on a CPU use the model's own loss; on other devices, change little.

    TRL computes the loss in chunks, so that the logits of a large vocabulary are never in memory
    all at once. That is right on a GPU; on a CPU the chunks, and the entropy that TRL logs, take
    about as long as everything else together. The model's own loss has the same value (a test
    checks this).

    The same is done on every device where rows of the output layer are trained
    (`trainable_token_indices`): TRL 1.16 computes its loss from the frozen weight, and fails.

    Returns:
        The same trainer.
    """
    checks.a("trainer", trainer, transformers.Trainer, "a Trainer of transformers or TRL")
    output_layer = getattr(trainer.model, "get_output_embeddings", lambda: None)()
    if trainer.args.device.type == "cpu" or isinstance(output_layer, TrainableTokensWrapper):
        trainer.compute_loss = types.MethodType(transformers.Trainer.compute_loss, trainer)
    return trainer
