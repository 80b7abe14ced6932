"""Check preferences and rewards: pairs that differ, answers that end, rewards that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from course_utils.preflight import _kinds as kinds
from course_utils.preflight import _trial
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import TrainerSnapshot, plural
from course_utils.preflight._text import dense

_SAME_SHARE, _OPEN_SHARE, _CUT_SHARE = 0.05, 0.5, 0.2
_LONG_ENOUGH = 12


def _rows(ev: TrainerSnapshot) -> list[Mapping[str, Any]]:
    return [row for row in ev.examples if isinstance(row, Mapping)]


def _answers(kind: str, row: Mapping[str, Any]) -> list[list[int]]:
    """Return the tokens of a row's answers."""
    names = ("completion_ids",) if kind == kinds.UNPAIRED else ("chosen_ids", "rejected_ids")
    return [list(row[name]) for name in names if row.get(name) is not None]


def _cut(ev: TrainerSnapshot, row: Mapping[str, Any]) -> list[bool]:
    """Return, for each answer of a row, whether the collator truncates it."""
    limit = ev.max_length or math.inf
    prompt = len(list(row.get("prompt_ids") or []))
    return [prompt + len(answer) > limit for answer in _answers(ev.kind, row)]


def _as_read(ev: TrainerSnapshot, row: Mapping[str, Any]) -> list[list[int]]:
    """Return a row's answers, truncated to `max_length`."""
    prompt = list(row.get("prompt_ids") or [])
    if ev.max_length is None or not ev.keeps_start:
        return _answers(ev.kind, row)
    return [(prompt + answer)[: ev.max_length] for answer in _answers(ev.kind, row)]


def _open(ev: TrainerSnapshot, rows: list[Mapping[str, Any]]) -> Finding | None:
    """Find answers without an EOS, on one side or both."""
    sides = ("completion",) if ev.kind == kinds.UNPAIRED else ("chosen", "rejected")
    for place, side in enumerate(sides):
        whole = [_cut(ev, row) for row in rows]
        short = sum(place < len(cut) and cut[place] for cut in whole)
        if short > _CUT_SHARE * len(rows):
            return Finding(
                WARN,
                f"{short} of {len(rows)} {side} answers are cut off at max_length={ev.max_length}, "
                "and lose their end",
                "Raise max_length, or leave longer answers out: that an answer ends at all would "
                "become the sign of a good one.",
            )
    for place, side in enumerate(sides):
        missing = judged = 0
        for row in rows:
            answers = _answers(ev.kind, row)
            if place >= len(answers) or not answers[place]:
                continue
            limit = ev.max_length or math.inf
            if len(list(row.get("prompt_ids") or [])) + len(answers[place]) >= limit:
                continue
            judged += 1
            missing += ev.last(answers[place]) not in ev.template.ends
        if judged and missing > _OPEN_SHARE * judged:
            return Finding(
                WARN,
                f"{missing} of {judged} {side} answers do not end with a token that ends an answer",
                "End every answer with tokenizer.eos_token, or give conversations: otherwise the "
                "model learns which answers were cut off.",
            )
    return None


def _reference(ev: TrainerSnapshot) -> Finding | None:
    """Check that DPO's loss starts at ln 2, as the policy starts as its own reference."""
    losses = getattr(ev.args, "loss_type", None)
    names = losses if isinstance(losses, list) else [losses]
    if names != ["sigmoid"] or getattr(ev.args, "label_smoothing", False) or ev.no_step:
        return None
    if getattr(ev.args, "use_weighting", False) or ev.step.error:
        return None
    with torch.no_grad(), _trial.without_dropout():
        loss = _trial.loss_of(ev.trainer, ev.batches[0]).item()
    if abs(loss - math.log(2)) <= 0.02:
        return None
    adapter = hasattr(ev.model, "peft_config")
    return Finding(
        WARN,
        f"before the first step the loss is {loss:.3g}; with a reference that equals the model it "
        f"is {math.log(2):.3g}: the reference is another state",
        "Merge the adapter of an earlier training first (merge_and_unload): the reference is the "
        "model without its adapter."
        if adapter
        else "Leave ref_model out: the trainer copies the model as it is.",
    )


def pairs(ev: TrainerSnapshot) -> Finding:
    """Check that pairs differ, share their prompt, and end; and that both kinds of label occur."""
    if ev.kind not in (kinds.PAIRS, kinds.UNPAIRED, kinds.REWARD):
        return SILENT
    rows = _rows(ev)
    if ev.error or not rows:
        return not_judged("there are no batches")
    of = len(rows)
    if ev.kind == kinds.UNPAIRED:
        labels = [bool(row["label"]) for row in rows if row.get("label") is not None]
        if labels and len(set(labels)) == 1:
            return Finding(
                FAIL,
                f"all {len(labels)} examples looked at have the label {labels[0]}",
                "Give answers that are wanted and answers that are not: the loss compares them.",
            )
    else:
        answers = [_as_read(ev, row) for row in rows]
        same = sum(len(pair) == 2 and pair[0] == pair[1] for pair in answers)
        if same > _SAME_SHARE * of:
            return Finding(
                FAIL if same > of / 2 else WARN,
                f"in {same} of {of} pairs both answers are the same, as far as max_length leaves "
                "them",
                "Leave such pairs out, or raise max_length: there is nothing to prefer.",
            )
    if ev.kind != kinds.REWARD:
        empty = sum(not list(row.get("prompt_ids") or []) for row in rows)
        if empty > of / 2:
            return Finding(
                WARN,
                f"{empty} of {of} examples have no prompt that both answers share",
                "Give the prompt in a column of its own, the same for both answers.",
            )
        doubled = 0
        for row in rows:
            asked = dense(ev.decode([int(t) for t in row.get("prompt_ids") or []]))
            words = _own_words(ev, row, asked)
            for answer in _answers(ev.kind, row)[:1]:
                doubled += bool(words) and dense(ev.decode(answer)).startswith(words)
        if doubled > of / 2:
            return Finding(
                WARN,
                f"in {doubled} of {of} examples the answer begins with the prompt",
                "Leave the prompt out of the answers: the trainer puts it before both.",
            )
    if found := _open(ev, rows):
        return found
    if ev.kind == kinds.PAIRS:
        try:
            if found := _reference(ev):
                return found
        except Exception:  # a user-defined loss may raise anything
            pass
    told = {kinds.UNPAIRED: "both labels are there"}.get(ev.kind, "all pairs differ")
    return Finding(PASS, f"{told}, and the answers end, in {plural(of, 'example')}")


def _own_words(ev: TrainerSnapshot, row: Mapping[str, Any], asked: str) -> str:
    """Return a prompt's last message, or the whole prompt if it is text."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], Mapping):
        prompt = prompt[-1].get("content")
    words = dense(prompt) if isinstance(prompt, str) else asked
    return words if len(words) >= _LONG_ENOUGH else ""


def _collected(ev: TrainerSnapshot, name: str) -> list[float]:
    return list(getattr(ev.trainer, "_metrics", {}).get("train", {}).get(name, []))


def rewards(ev: TrainerSnapshot) -> Finding:
    """Check that a prompt's sampled completions get different rewards, and that some end."""
    if ev.kind != kinds.ONLINE:
        return SILENT
    if ev.no_step or ev.step.error:
        return not_judged(ev.no_step or "the step did not run")
    flat = _collected(ev, "frac_reward_zero_std")
    mean, spread = _collected(ev, "reward"), _collected(ev, "reward_std")
    clipped = _collected(ev, "completions/clipped_ratio")
    if not mean:
        return not_judged("this trainer does not tell its rewards")
    told = f"a mean of {mean[-1]:.3g} and a spread of {spread[-1] if spread else math.nan:.3g}"
    if clipped:
        told += f"; {1 - clipped[-1]:.0%} of the sampled completions end by themselves"
    if not math.isfinite(mean[-1]):
        return Finding(
            FAIL,
            "no reward function gave a number for the sampled completions",
            "Call each reward function on a completion by hand: None and NaN do not count.",
        )
    if flat and flat[-1] >= 1:
        return Finding(
            WARN,
            f"all sampled completions of a prompt have the same reward ({mean[-1]:.3g}): no "
            "advantage, no gradient",
            "Call each reward function on two different completions by hand: look at the columns "
            "that it takes, and at what it returns when nothing matches.",
        )
    if clipped and clipped[-1] >= 1 and _knows_text(ev):
        return Finding(
            WARN,
            f"{told}: all of them are cut off at {ev.args.max_completion_length} tokens",
            "Raise max_completion_length, or make sure that generation stops at the EOS token that "
            "the model was trained with.",
        )
    return Finding(PASS, told)


def _knows_text(ev: TrainerSnapshot) -> bool:
    """Return whether the model is trained: a fresh one finds all tokens about equally likely."""
    prompts = ev.trainer._buffered_inputs or []
    if not prompts or not isinstance(prompts[0], Mapping) or "prompt_ids" not in prompts[0]:
        return False
    ids, mask = prompts[0]["prompt_ids"][:1], prompts[0]["prompt_mask"][:1]
    with torch.no_grad():
        logits = ev.model(input_ids=ids, attention_mask=mask).logits[0, -1].float()
    chances = logits.softmax(-1)
    entropy = -(chances * chances.clamp(min=1e-12).log()).sum().item()
    return entropy < 0.8 * math.log(ev.vocabulary)
