"""How probable texts are to a model, and how far two models' predictions are apart.

Introduced in notebook 07.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils._core import checks


def _pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    replies: Sequence[str],
) -> list[tuple[str, str]]:
    """The prompts with their replies; refuses what is none, and what is no model."""
    checks.a("model", model, torch.nn.Module, "a model")
    checks.a("tokenizer", tokenizer, PreTrainedTokenizerBase, "a tokenizer of transformers")
    prompts, replies = checks.texts("prompts", prompts), checks.texts("replies", replies)
    if len(prompts) != len(replies):
        raise ValueError(
            f"There are {len(prompts)} prompts and {len(replies)} replies; it takes one of each."
        )
    return list(zip(prompts, replies, strict=True))


@torch.inference_mode()
def _logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 logits (tokens of the reply, vocabulary) and the reply's token ids."""
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rest = tokenizer(reply, add_special_tokens=False)["input_ids"]
    if not start or not rest:
        raise ValueError(
            f"The prompt is {checks.shown(prompt)} and the reply {checks.shown(reply)}; neither "
            "can be empty."
        )
    most = getattr(model.config, "max_position_embeddings", None)
    if most and len(start) + len(rest) > most:
        raise ValueError(
            f"Prompt and reply have {len(start):,} and {len(rest):,} tokens; the model reads "
            f"{most:,} at most."
        )
    ids = torch.tensor([start + rest], device=model.device)
    logits = model(input_ids=ids, logits_to_keep=len(rest) + 1).logits[0, :-1]
    return logits.float(), ids[0, -len(rest) :]


def sequence_log_probs(
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
        ValueError: no model or tokenizer, an empty prompt or reply, lists of unlike length, or more
            tokens than the model can read.
    """
    found = []
    for prompt, reply in _pairs(model, tokenizer, prompts, replies):
        logits, ids = _logits(model, tokenizer, prompt, reply)
        found.append(-F.cross_entropy(logits, ids, reduction="sum").item())
    return found


def next_token_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    replies: Sequence[str],
) -> list[torch.Tensor]:
    """A model's log-probabilities of every token of its vocabulary, along each reply.

    Args as in `sequence_log_probs`.

    Returns:
        For each reply a float32 tensor on the CPU, shape (tokens of the reply, vocabulary).
    """
    return [
        _logits(model, tokenizer, prompt, reply)[0].log_softmax(dim=-1).cpu()
        for prompt, reply in _pairs(model, tokenizer, prompts, replies)
    ]


def kl_divergence(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> list[float]:
    """KL(before ‖ after) in nats per token, for each text: how much the predictions have moved.

    0 where nothing has changed. The mean over a text's tokens of Σ p·(log p - log q), p being the
    probabilities before and q after (Kullback and Leibler, 1951).

    Args:
        before, after: what `next_token_log_probs` gives, on the same texts.

    Raises:
        ValueError: they are not of the same texts and vocabulary.
    """
    before, after = (
        checks.items("before", before, "tensors"),
        checks.items("after", after, "tensors"),
    )
    for name, given in (("before", before), ("after", after)):
        for tensor in given:
            checks.a(
                name, tensor, torch.Tensor, "a list of tensors, as next_token_log_probs gives it"
            )
    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} texts and after {len(after)}: not the same.")
    found = []
    for p, q in zip(before, after, strict=True):
        if p.ndim != 2 or not len(p):
            raise ValueError(
                f"before holds a tensor of shape {tuple(p.shape)}; (tokens, vocabulary) is needed."
            )
        if p.shape != q.shape:
            raise ValueError(f"Shapes {tuple(p.shape)} and {tuple(q.shape)}: not the same text.")
        found.append(F.kl_div(q, p, reduction="sum", log_target=True).item() / len(p))
    return found
