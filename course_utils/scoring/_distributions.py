"""Log-probabilities of texts under a model, and the divergence of two models' predictions.

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
    """Pair the prompts with their replies, after checking all arguments."""
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
    """Return float32 logits (tokens of the reply, vocabulary) and the reply's token ids."""
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
    """Compute the log-probability of each reply, in nats, summed over its tokens.

    Args:
        model, tokenizer: a causal language model; a PEFT model is used with its active adapter.
        prompts: the prompts as the model receives them, chat template included.
        replies: the continuations, one per prompt.

    Raises:
        ValueError: not a model or tokenizer, an empty prompt or reply, lists of different lengths,
            or more tokens than fit into the model's context.
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
    """Compute the log-probabilities of all tokens in the vocabulary at each position of a reply.

    The arguments are those of `sequence_log_probs`.

    Returns:
        For each reply, a float32 tensor on the CPU of shape (tokens of the reply, vocabulary).
    """
    return [
        _logits(model, tokenizer, prompt, reply)[0].log_softmax(dim=-1).cpu()
        for prompt, reply in _pairs(model, tokenizer, prompts, replies)
    ]


def kl_divergence(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> list[float]:
    """Compute KL(before ‖ after) in nats per token, for each text.

    It is the mean over a text's tokens of Σ p·(log p - log q), where p are the probabilities before
    and q those after (Kullback and Leibler, 1951); 0 if nothing has changed.

    Args:
        before, after: results of `next_token_log_probs` on the same texts.

    Raises:
        ValueError: they do not have the same texts and vocabulary.
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
