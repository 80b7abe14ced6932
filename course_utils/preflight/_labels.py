"""Check the labels: what is trained on, what is masked, where answers end."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from trl import SFTTrainer

from course_utils._core.documents import IGNORED
from course_utils.preflight import _kinds as kinds
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import Sample, TrainerSnapshot, plural, shorten
from course_utils.preflight._text import dense, no_samples

_TRUNCATED_SHARE = 0.05
# A row this many times as long as nearly all others, and rarer than 1 in 50, is an outlier.
_STRAY, _STRAY_SHARE = 20, 0.02
_IMAGE = re.compile(r"(?i)image|video|audio|vision|patch")


def _placeholders(ev: TrainerSnapshot) -> set[int]:
    """Return the placeholder tokens for images, audio and video."""
    found: set[int] = set()
    config = getattr(ev.base, "config", None)
    for name in ("image_token_id", "image_token_index", "video_token_id", "audio_token_id"):
        for holder in (config, ev.trainer.processing_class):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                found.add(value)
    if ev.tokenizer:
        for place, token in ev.tokenizer.added_tokens_decoder.items():
            text = str(token)
            if text[:1] in "<[" and _IMAGE.search(text):
                found.add(place)
    return found


def _shift(ev: TrainerSnapshot) -> int | None:
    """Return the offset between labels and input ids: 0 is right, 1 is shifted, None is neither."""
    hits = {0: 0, 1: 0, -1: 0}
    total = 0
    for batch in ev.labelled:
        ids, labels = batch["input_ids"], batch["labels"]
        if not isinstance(labels, torch.Tensor) or labels.shape != ids.shape:
            return 0
        counted = labels >= 0
        total += int(counted.sum())
        for by in hits:
            there = torch.roll(ids, -by, dims=1)
            hits[by] += int(((labels == there) & counted).sum())
    if not total or hits[0] >= 0.9 * total:
        return 0
    best = max((1, -1), key=hits.__getitem__)
    return best if hits[best] >= 0.8 * total else None


def _replaced(ev: TrainerSnapshot) -> int:
    """Count the examples whose own labels or masks did not make it into the batch."""
    changed = 0
    for sample in ev.samples:
        own = sample.source.get("labels")
        if own is None or ev.packing or isinstance(own, int):
            continue
        own = [int(label) for label in own]
        if len(own) != len(sample.labels):
            continue
        # Padding in the dataset is left to another check.
        changed += any(
            mine == IGNORED and theirs != IGNORED
            for mine, theirs in zip(own[1:], sample.labels[1:], strict=True)
        )
    return changed


def _half_answered(ev: TrainerSnapshot) -> int:
    """Count the texts whose completions, or answers, are not supervised from beginning to end."""
    if ev.packing or not ev.tokenizer:
        return 0
    found = 0
    for sample in ev.samples:
        source = sample.source
        answers = source.get("completion")
        if answers is None and getattr(ev.args, "assistant_only_loss", False):
            answers = [m for m in source.get("messages") or [] if m.get("role") == "assistant"]
        if isinstance(answers, list):
            if any(not isinstance(m, Mapping) or m.get("tool_calls") for m in answers):
                continue
            answers = [m.get("content") for m in answers if m.get("role") == "assistant"]
        else:
            answers = [answers]
        if ev.truncated(sample):
            continue
        learned = dense(ev.decode(sample.supervised))
        read = dense(ev.decode(sample.ids))
        for answer in answers:
            # An opening <think> may belong to the prompt; what the template leaves out or rewrites
            # is left to another check.
            pieces = re.split(r"</?think>", answer) if isinstance(answer, str) else []
            wanted = [piece for piece in map(dense, pieces) if piece and piece in read]
            if any(piece not in learned for piece in wanted):
                found += 1
                break
    return found


def supervised(ev: TrainerSnapshot) -> Finding:
    """Check that each text has something to learn, and that the labels are its own tokens."""
    if missing := no_samples(ev):
        return missing
    counts = [len(sample.supervised) for sample in ev.samples]
    share = sum(counts) / max(1, sum(len(sample.ids) for sample in ev.samples))
    if empty := counts.count(0):
        return Finding(
            FAIL,
            f"{empty} of {len(counts)} examples have no supervised token: nothing is learned from "
            "them",
            "Look at the labels (-100 is left out): a template without {% generation %}, or a "
            "prompt that fills max_length, masks everything.",
        )
    if ev.rows is not None and ev.rows.supervised is not None:
        none = int((ev.rows.supervised == 0).sum())
        if none:
            return Finding(
                WARN,
                f"{none} of {len(ev.rows):,} rows have no supervised token, such as row "
                f"{int(np.argmin(ev.rows.supervised)):,}",
                "Leave such rows out with filter: nothing is learned from them.",
            )
    if changed := _replaced(ev):
        return Finding(
            FAIL,
            f"{changed} of {len(ev.samples)} examples have labels of their own that leave tokens "
            "out, and the collator trains on those tokens all the same",
            "Take a collator that keeps labels, such as DataCollatorForSeq2Seq(tokenizer).",
        )
    if part := _half_answered(ev):
        return Finding(
            WARN,
            f"in {part} of {len(ev.samples)} examples some of the assistant's answers are not "
            "trained on, or only in part",
            "Look at masks.show: the template's {% generation %} has to stand around each answer.",
        )
    # A loss that does not shift needs labels that are already shifted: `plain loss` checks that.
    if _shift(ev) is None:
        return Finding(
            FAIL,
            "most labels are neither the token at their own place nor the next one",
            "Labels of a causal model are its input ids, with -100 for what is left out: look for "
            "another column, or an offset, in the collator.",
        )
    marks = _placeholders(ev)
    held = sum(bool(marks & set(sample.supervised)) for sample in ev.samples)
    if held:
        token = next(label for s in ev.samples for label in s.supervised if label in marks)
        return Finding(
            FAIL,
            f"in {held} of {len(ev.samples)} examples {ev.decode([token])} is trained on: it only "
            "stands for an image, a film or a sound",
            "Set labels to -100 where input_ids is such a token.",
        )
    first = shorten(ev.decode(ev.samples[0].supervised))
    return Finding(
        PASS,
        f"{share:.0%} of the tokens, {min(counts):,} to {max(counts):,} an example; the first is "
        f"trained on {first}",
    )


def _users_turns(ev: TrainerSnapshot) -> int:
    """Count the texts that begin masked but contain the mark of a user turn where supervised."""
    mark = dense(ev.template.asking)
    if not mark or ev.packing:
        return 0
    return sum(
        bool(sample.supervised)
        and IGNORED in sample.labels[1 : 1 + len(sample.labels) // 8 + 1]
        and mark in dense(ev.decode(sample.supervised))
        for sample in ev.samples
    )


def prompt(ev: TrainerSnapshot) -> Finding:
    """Check that the prompt is not trained on, if the dataset says what the prompt is."""
    if missing := no_samples(ev):
        return missing
    judged = wrong = 0
    for sample in ev.samples:
        places = ev.prompt(sample)
        if places is None:
            continue
        judged += 1
        wrong += any(sample.labels[place] != IGNORED for place in places if place)
    source = ev.samples[0].source
    if not wrong and (turns := _users_turns(ev)):
        return Finding(
            WARN,
            f"in {turns} of {len(ev.samples)} examples the first prompt is masked, and a later "
            "turn of the user's is trained on",
            "Set labels to -100 for every turn but the assistant's.",
        )
    if not judged:
        if getattr(ev.args, "completion_only_loss", None) and not ev.packing:
            everything = all(IGNORED not in sample.labels[1:] for sample in ev.samples)
            if everything:
                has = ", ".join(map(str, source)) or "tokens only"
                return Finding(
                    WARN,
                    f"completion_only_loss=True masks nothing: the data has {has}, and no prompt "
                    "and completion",
                    "Give the data the columns 'prompt' and 'completion', or leave the option out.",
                )
        why = "the data has one text"
        if ev.packing:
            why = "packed rows do not say what a prompt is"
        elif any(name in source for name in ("prompt", "messages")):
            why = "the prompt's tokens are not at the beginning of the examples"
        return Finding(PASS, f"cannot tell: {why}")
    if not wrong:
        return Finding(PASS, f"none in the {plural(judged, 'example')} that name a prompt")
    option = "completion_only_loss"
    if "messages" in source and "prompt" not in source:
        option = "assistant_only_loss"
    fix = f"Set {option}=True in SFTConfig"
    if getattr(ev.args, option, None):
        fix = f"{option}=True is set, and has no effect on these labels: look at who makes them"
    elif not isinstance(ev.trainer, SFTTrainer):
        fix = "Set labels to -100 for the prompt's tokens"
    return Finding(
        WARN,
        f"in {wrong} of {plural(judged, 'example')} the prompt is trained on too",
        f"{fix}, unless the model is to learn to write the prompts as well.",
    )


def _hidden_by_padding(ev: TrainerSnapshot) -> int:
    """Count the texts whose EOS token is masked because it is also the padding token."""
    tok = ev.tokenizer
    if not tok or tok.pad_token_id is None or tok.pad_token_id not in ev.template.ends:
        return 0
    hidden = 0
    for sample in ev.samples:
        own = sample.source.get("labels")
        if own is not None and tok.pad_token_id not in list(own):
            continue  # masked in the dataset already, so not by the collator
        learned = tok.pad_token_id in sample.supervised
        ids = sample.source.get("input_ids")
        ids = sample.ids if ids is None else list(ids)
        ends = tok.pad_token_id in ids if ev.blocks else ev.last(ids) == tok.pad_token_id
        hidden += ends and not learned
    return hidden


def _turns(ev: TrainerSnapshot, sample: Sample) -> list[int]:
    """Return the last token of each supervised span, ignoring white space."""
    found, run = [], []
    for token, label in zip(sample.ids, sample.labels, strict=True):
        if label != IGNORED:
            run.append(token)
        elif run:
            found.append(run)
            run = []
    if run:
        found.append(run)
    return [last for run in found if (last := ev.last(run)) is not None]


def _inner_ends(ev: TrainerSnapshot) -> int:
    """Count the texts in which the last answer's end is supervised and an earlier one's is not."""
    special = set(ev.tokenizer.all_special_ids) | {
        place
        for place, token in ev.tokenizer.added_tokens_decoder.items()
        if getattr(token, "special", False)
    }
    return sum(
        turns[-1] in ev.template.ends and any(end not in special for end in turns[:-1])
        for sample in ev.samples
        if len(turns := _turns(ev, sample)) > 1
    )


def eos(ev: TrainerSnapshot) -> Finding:
    """Check that answers end, and with a token at which generation stops."""
    if missing := no_samples(ev):
        return missing
    ends = ev.template.ends
    if not ends:
        return Finding(PASS, "cannot tell: neither model nor tokenizer names an EOS token")
    if _hidden_by_padding(ev) or _padding_as_text(ev):
        return not_judged("see pad vs eos")
    names = ", ".join(sorted(ev.decode([each]) for each in ends))
    learned = sum(bool(ends & set(sample.supervised)) for sample in ev.samples)
    if ev.blocks:
        if learned:
            return Finding(PASS, f"{names} in {learned} of {len(ev.samples)} blocks of text")
        return Finding(
            WARN,
            f"{names} in none of {len(ev.samples)} blocks of text",
            "Put the tokenizer's eos_token after each text before joining and cutting them.",
        )
    whole = [s for s in ev.samples if s.supervised and not ev.truncated(s)]
    missing_end = [s for s in whole if ev.last(s.supervised) not in ends]
    if missing_end:
        last = shorten(ev.decode(missing_end[0].supervised[-5:]))
        return Finding(
            FAIL if len(missing_end) > len(whole) / 2 else WARN,
            f"{len(missing_end)} of {len(whole)} examples are not trained to end with {names}; the "
            f"first ends {last}",
            "End each completion with tokenizer.eos_token, or put the template's end-of-turn token "
            "inside {% generation %}; otherwise the model learns never to stop.",
        )
    known = ev.template.known_ends
    strange = [t for s in whole if (t := ev.last(s.supervised)) is not None and t not in known]
    if strange and known:
        end = ev.decode(strange[:1])
        stops = ", ".join(sorted(ev.decode([each]) for each in known))
        return Finding(
            FAIL if len(strange) > len(whole) / 2 else WARN,
            f"{len(strange)} of {len(whole)} examples end with {end}, and generation stops at "
            f"{stops}: the model would go on writing",
            f"Set tokenizer.eos_token = {end!r} and model.generation_config.eos_token_id to its id "
            "before training, and save both with the model.",
        )
    if ev.tokenizer and (inner := _inner_ends(ev)):
        return Finding(
            WARN,
            f"in {inner} of {len(ev.samples)} examples only the last answer's end is trained, not "
            "those of the answers before it",
            "Supervise each answer together with the end-of-turn token that follows it.",
        )
    return Finding(PASS, f"{names} is the last supervised token of {len(whole)} examples")


def _padding_as_text(ev: TrainerSnapshot) -> int:
    """Count the texts with a run of padding tokens at one end that the loss counts."""
    tok = ev.tokenizer
    if not tok or tok.pad_token_id is None or ev.blocks:
        return 0
    pad, found = tok.pad_token_id, 0
    least = 3 if pad in ev.template.ends else 2
    for sample in ev.samples:
        for ids, labels in (
            (sample.ids, sample.labels),
            (sample.ids[::-1], sample.labels[::-1]),
        ):
            run = 0
            while run < len(ids) and ids[-1 - run] == pad and labels[-1 - run] != IGNORED:
                run += 1
            if least <= run:
                found += 1
                break
    return found


def pad(ev: TrainerSnapshot) -> Finding:
    """Check that padding is not trained on, and does not hide the end of an answer."""
    if missing := no_samples(ev):
        return missing
    tok = ev.tokenizer
    padded = sum(
        ((batch["labels"] != IGNORED) & (batch["attention_mask"] == 0)).sum().item()
        for batch in ev.labelled
        if isinstance(batch.get("attention_mask"), torch.Tensor)
        and batch["attention_mask"].shape == batch["labels"].shape
    )
    if padded:
        return Finding(
            FAIL,
            f"{plural(padded, 'padding token')} are trained on",
            "Set labels to -100 where attention_mask is 0 in the collator.",
        )
    if not tok or tok.pad_token_id is None:
        return Finding(PASS, "the tokenizer has no padding token, and the batches need none")
    name = ev.decode([tok.pad_token_id])
    if read := _padding_as_text(ev):
        return Finding(
            FAIL,
            f"{read} of {len(ev.samples)} examples were padded before the collator got them, and "
            f"no mask says so: {name} is read as text and trained on",
            "Leave padding to the collator, or keep the attention_mask and set labels to -100 "
            "where it is 0.",
        )
    if hidden := _hidden_by_padding(ev):
        return Finding(
            FAIL,
            f"both are {name}, and the collator masks it: {hidden} of {len(ev.samples)} examples "
            "never learn to end",
            "Take a collator that masks by position, as TRL's does, or give the tokenizer another "
            "pad_token that never occurs in texts.",
        )
    if tok.pad_token_id in ev.template.ends:
        return Finding(PASS, f"both are {name}; the collator masks only what pads")
    used = sum(tok.pad_token_id in sample.ids for sample in ev.samples)
    lost = sum(
        tok.pad_token_id in sample.ids and tok.pad_token_id not in sample.labels
        for sample in ev.samples
    )
    if used and used == lost:
        return Finding(
            WARN,
            f"{name} is in the text of {used} of {len(ev.samples)} examples, and is never learned "
            "there",
            "Give the tokenizer another pad_token that never occurs in texts.",
        )
    return Finding(PASS, f"{name} only pads")


def _stray(ev: TrainerSnapshot) -> Finding | None:
    """Warn about a few rows that are far longer than all others."""
    if ev.rows is None or len(ev.rows) < 50 or ev.packing:
        return None
    lengths = np.sort(ev.rows.lengths)
    usual = max(1, int(lengths[int(len(lengths) * (1 - _STRAY_SHARE))]))
    longest = int(lengths[-1])
    if longest < 500 or longest < _STRAY * usual:
        return None
    return Finding(
        WARN,
        f"row {int(np.argmax(ev.rows.lengths)):,} has {longest:,} tokens, and 98% of the rows at "
        f"most {usual:,}: it decides the memory and the time of its batch",
        "Look at that row; leave it out, or set max_length.",
    )


def truncated(ev: TrainerSnapshot) -> Finding:
    """Check how much is truncated, and whether the model's context is long enough."""
    if missing := no_samples(ev):
        return missing
    longest = max(len(sample.ids) for sample in ev.samples)
    if ev.rows is not None and not ev.packing:
        longest = max(longest, int(ev.rows.lengths.max()))
    context = getattr(ev.base.config, "max_position_embeddings", None) or math.inf
    if longest > context:
        return Finding(
            WARN,
            f"an example has {longest:,} tokens; the model was made for {context:,}",
            f"Set max_length={context} in SFTConfig, or leave longer examples out.",
        )
    if stray := _stray(ev):
        return stray
    if ev.packing in ("wrapped", "bfd_split"):
        return Finding(PASS, f"texts are cut between rows of {ev.max_length}, not cut off")
    if ev.own_cut is not None:
        cut = sum(map(ev.truncated, ev.samples))
        return Finding(
            WARN,
            f"{cut} of {len(ev.samples)} examples have {ev.own_cut:,} tokens and do not end: they "
            "were cut off before the trainer got them",
            "Raise max_length where the texts are tokenized (truncation=True), or leave longer "
            "texts out: what is cut off is never learned, least of all the end.",
        )
    if ev.max_length is None:
        return Finding(PASS, f"the trainer cuts nothing off; the longest has {longest:,} tokens")
    cut = sum(map(ev.truncated, ev.samples))
    dropped = _dropped(ev)
    share = max(cut / len(ev.samples), dropped / (dropped + (ev.total or 1)))
    found = f"{cut} of {len(ev.samples)} examples are cut off at {ev.max_length:,} tokens"
    if dropped:
        found += f"; {dropped} more were dropped, as nothing but prompt was left"
    if share <= _TRUNCATED_SHARE:
        return Finding(PASS, found)
    return Finding(
        WARN,
        found,
        "Raise max_length in SFTConfig, or shorten the examples: what is cut off is never learned, "
        "least of all the end.",
    )


def _dropped(ev: TrainerSnapshot) -> int:
    """Count the examples that TRL dropped because truncation left nothing to learn."""
    data = ev.trainer.train_dataset
    if not isinstance(ev.trainer, SFTTrainer) or ev.packing or ev.total is None:
        return 0
    if (ev.args.dataset_kwargs or {}).get("skip_prepare_dataset") or not hasattr(data, "data"):
        return 0
    # Filtering keeps the whole table, with a list of the rows that remain.
    return max(0, data.data.num_rows - len(data))


def in_range(ev: TrainerSnapshot) -> Finding:
    """Check that the model has an entry for each id and label."""
    if ev.error or not ev.batches:
        return not_judged("there are no batches")
    if ev.kind == kinds.CLASSES:
        return _classes(ev)
    if ev.kind == kinds.ONLINE or not any(
        isinstance(b, Mapping) and any(n.endswith("input_ids") for n in b) for b in ev.batches
    ):
        return SILENT
    if not ev.vocabulary:
        return SILENT
    if not ev.out_of_range and (strange := _unknown(ev)):
        return Finding(
            WARN,
            f"the tokenizer has {len(ev.tokenizer):,} tokens, and {strange[0]} rows have ids "
            f"beyond, such as {strange[1]:,}",
            "Tokenize with the tokenizer that the trainer gets: these ids are none of its tokens.",
        )
    if not ev.out_of_range:
        seen = ""
        if ev.rows is not None:
            seen = f" in all {len(ev.rows):,} rows"
            if len(ev.rows) < ev.rows.total:
                seen = f" in the first {len(ev.rows):,} of {ev.rows.total:,} rows"
        return Finding(PASS, f"all below the model's {ev.vocabulary:,}{seen}")
    shown = ", ".join(map(str, ev.out_of_range[:5]))
    where = ""
    if ev.rows is not None:
        bad = (ev.rows.least < 0) | (ev.rows.most >= ev.vocabulary)
        if bad.any():
            where = f" (row {int(np.argmax(bad)):,}, and {plural(int(bad.sum()), 'row')} in all)"
    return Finding(
        FAIL,
        f"the model has {ev.vocabulary:,} tokens, and the batches {shown}{where}",
        "After adding tokens call model.resize_token_embeddings(len(tokenizer)); a label that is "
        "not to count is -100, no other negative number.",
    )


def _unknown(ev: TrainerSnapshot) -> tuple[int, int] | None:
    """Find rows with ids that are in the model's embeddings but not in the tokenizer."""
    if ev.rows is None or not ev.tokenizer or ev.kind != kinds.CAUSAL:
        return None
    largest = ev.rows.most
    if ev.rows.labels is not None:
        largest = np.maximum(largest, ev.rows.labels[1])
    beyond = largest >= len(ev.tokenizer)
    return (int(beyond.sum()), int(largest.max())) if beyond.any() else None


def _classes(ev: TrainerSnapshot) -> Finding:
    """Check a classifier's labels against its classes."""
    count = getattr(ev.base.config, "num_labels", None)
    values: set[Any] = set()
    for batch in ev.batches:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, torch.Tensor) and not labels.is_floating_point():
            values |= set(labels[labels != IGNORED].unique().tolist())
    if count is None or count == 1 or not values:
        return SILENT
    bad = sorted(value for value in values if not 0 <= value < count)
    if bad:
        return Finding(
            FAIL,
            f"the model has {count} classes, and the batches the labels {bad[:5]}",
            "Load the model with num_labels, and number the classes from 0.",
        )
    return Finding(PASS, f"{len(values)} of the model's {count} classes are in the batches")
