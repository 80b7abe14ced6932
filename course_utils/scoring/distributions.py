"""How probable texts are to a model, and how far two models' predictions are apart.

Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits (tokens of the reply, vocabulary) and the reply's token ids."""
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(reply, add_special_tokens=False)["input_ids"]
    if not start or not rest:
        raise ValueError("Neither the prompt nor the reply can be empty.")
    ids = torch.tensor([start + rest], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(rest) + 1).logits[0, :-1]
    return logits.float(), ids[0, -len(rest) :]


def log_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    replies: Sequence[str],
) -> list[float]:
    """The log-probability, in nats, that a model gives to each reply, summed over its tokens.

    Args:
        model, tokenizer: a causal language model; a PEFT model counts with its active adapter.
        prompts: as the model gets them, templates and all.
        replies: the continuations, one for each prompt.

    Raises:
        ValueError: an empty prompt or reply, or lists of unlike length.
    """
    found = []
    for prompt, reply in zip(prompts, replies, strict=True):
        logits, ids = _logits(model, tokenizer, prompt, reply)
        found.append(-F.cross_entropy(logits, ids, reduction="sum").item())
    return found


def next_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    replies: Sequence[str],
) -> list[torch.Tensor]:
    """A model's log-probabilities of every token of its vocabulary, along each reply.

    Args as in `log_probabilities`.

    Returns:
        For each reply a float32 tensor on the CPU, shape (tokens of the reply, vocabulary).
    """
    return [
        _logits(model, tokenizer, prompt, reply)[0].log_softmax(dim=-1).cpu()
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def kl_divergence(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> list[float]:
    """KL(before ‖ after) in nats per token, for each text: how much the predictions have moved.

    0 where nothing has changed. The mean over a text's tokens of Σ p·(log p - log q), p being the
    probabilities before and q after (Kullback and Leibler, 1951).

    Args:
        before, after: what `next_tokens` gives, on the same texts.

    Raises:
        ValueError: they are not of the same texts and vocabulary.
    """
    found = []
    for p, q in zip(before, after, strict=True):
        if p.shape != q.shape:
            raise ValueError(f"Shapes {tuple(p.shape)} and {tuple(q.shape)}: not the same text.")
        found.append(F.kl_div(q, p, reduction="sum", log_target=True).item() / len(p))
    return found
