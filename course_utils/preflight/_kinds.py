"""Find out what a trainer trains: next tokens, classes, preferences or rewards."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

CAUSAL, SEQ2SEQ, MASKED, CLASSES = "causal", "seq2seq", "masked", "classes"
PAIRS, UNPAIRED, REWARD, ONLINE, OTHER = "pairs", "unpaired", "reward", "online", "other"

# TRL's trainers by name, so that nothing has to be imported that may not be installed.
_TRAINERS = {
    "GRPOTrainer": ONLINE,
    "RLOOTrainer": ONLINE,
    "DPOTrainer": PAIRS,
    "KTOTrainer": UNPAIRED,
    "RewardTrainer": REWARD,
    "SFTTrainer": CAUSAL,
}
_HEADS = {
    MASKED: r"For(Masked(LM|Lm)|PreTraining)$",
    CLASSES: r"For\w*(Classification|QuestionAnswering|MultipleChoice|Regression)$",
}
WHY = {
    SEQ2SEQ: "the labels are another text than the input",
    MASKED: "a masked language model learns the tokens at their own places",
    CLASSES: "the labels are classes",
    PAIRS: "preferences are learned, not next tokens",
    UNPAIRED: "preferences are learned, not next tokens",
    REWARD: "a reward is learned, not next tokens",
    ONLINE: "the model learns from its own completions",
    OTHER: "what this trainer's labels mean is not known",
}


def base_of(model: nn.Module) -> nn.Module:
    """Return the model without peft's wrappers."""
    while hasattr(model, "get_base_model"):
        inner = model.get_base_model()
        if inner is model:
            break
        model = inner
    return model


def kind_of(trainer: Any) -> str:
    """Return what a trainer trains, judging by its class and its model's class."""
    for cls in type(trainer).__mro__:
        if cls.__name__ in _TRAINERS:
            return _TRAINERS[cls.__name__]
    if any(cls.__module__.startswith("trl.") for cls in type(trainer).__mro__):
        return OTHER
    base = base_of(trainer.model)
    names = [cls.__name__ for cls in type(base).__mro__]
    for kind, pattern in _HEADS.items():
        if any(re.search(pattern, name) for name in names):
            return kind
    config = getattr(base, "config", None)
    if config is None:
        return OTHER
    if getattr(config, "is_encoder_decoder", False):
        return SEQ2SEQ
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return CAUSAL if head is not None else OTHER
