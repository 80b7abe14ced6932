"""Check the evaluation: rows that were trained on, and a metric read the wrong way round."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from course_utils._core.documents import IGNORED
from course_utils.preflight import _kinds as kinds
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding
from course_utils.preflight._snapshot import TrainerSnapshot, plural

_MOST_ROWS, _SECONDS = 20_000, 3.0
# Short answers may coincide by chance, but not in more than this share of the rows.
_SHARE = 0.02
_MORE_IS_BETTER = re.compile(r"accuracy|f1|exact|bleu|rouge|chrf|reward|margin|precision|recall")


def _keys(ev: TrainerSnapshot, data: Any, until: float) -> Iterator[str]:
    """Yield each row's text without case, white space and punctuation."""
    rows = range(min(len(data), _MOST_ROWS)) if hasattr(data, "__len__") else itertools.count()
    for place in rows:
        if time.monotonic() > until:
            return
        row = data[place]
        if not isinstance(row, Mapping):
            return
        yield re.sub(r"[\W_]+", "", _text(ev, row)).casefold()


def _text(ev: TrainerSnapshot, row: Mapping[str, Any]) -> str:
    """Return a row's text, from its text columns if there are any, else from its tokens."""
    for columns in (("messages",), ("prompt", "completion"), ("prompt", "chosen"), ("text",)):
        if all(row.get(name) is not None for name in columns):
            return " ".join(_flat(row[name]) for name in columns)
    ids = row.get("input_ids")
    if ids is None:
        return ""
    tokens = [int(token) for token in ids if int(token) != IGNORED]
    return ev.decode(tokens)


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _flat(value.get("content") or value.get("text") or "")
    if isinstance(value, list):
        return " ".join(_flat(inner) for inner in value)
    return str(value)


def _backwards(ev: TrainerSnapshot) -> Finding | None:
    """Warn if the "best" model would be the worst."""
    args = ev.args
    name = str(args.metric_for_best_model or "")
    if not name or args.greater_is_better is None:
        return None
    if not (args.load_best_model_at_end or str(args.save_strategy).endswith("best")):
        return None
    less = "loss" in name or "perplexity" in name
    more = bool(_MORE_IS_BETTER.search(name))
    if (less and args.greater_is_better) or (more and not less and not args.greater_is_better):
        return Finding(
            FAIL,
            f"the best model is chosen by {name} with greater_is_better={args.greater_is_better}: "
            "the worst would be kept",
            f"Set greater_is_better={not args.greater_is_better}.",
        )
    return None


def _only_one(ev: TrainerSnapshot) -> Finding | None:
    """Warn if the best model is chosen from only one."""
    args = ev.args
    if not args.load_best_model_at_end or isinstance(ev.planned, str):
        return None
    by_steps = str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "steps"
    every = args.eval_steps or args.logging_steps
    if not by_steps or every < 1 or ev.planned[0] < 1 or every * 2 <= ev.planned[0]:
        return None
    return Finding(
        WARN,
        f"evaluation is due every {every:g} steps of a run of {ev.planned[0]:,}: the best model "
        "would be chosen among one or two",
        "Set eval_steps and save_steps to a fraction of the run, such as a tenth.",
    )


def evaluation(ev: TrainerSnapshot) -> Finding:
    """Check that no evaluation row was trained on, and that the best checkpoint is the best."""
    trainer = ev.trainer
    held_out = trainer.eval_dataset
    if ev.kind == kinds.ONLINE or held_out is None:
        return SILENT
    if found := _backwards(ev) or _only_one(ev):
        return found
    parts = held_out if isinstance(held_out, dict) else {"": held_out}
    if ev.total is None or not hasattr(trainer.train_dataset, "__getitem__") or ev.packing:
        return SILENT
    until = time.monotonic() + _SECONDS
    train = set(_keys(ev, trainer.train_dataset, until)) - {""}
    looked = same = 0
    until = time.monotonic() + _SECONDS
    for data in parts.values():
        if not hasattr(data, "__getitem__"):
            return SILENT
        for key in _keys(ev, data, until):
            looked += bool(key)
            same += key in train
    if not looked or not train:
        return SILENT
    if same / looked > _SHARE:
        return Finding(
            FAIL if same > looked / 2 else WARN,
            f"{same} of {plural(looked, 'evaluation row')} are training rows too, but for case, "
            "blanks and punctuation",
            "Split before training, by text: drop from the training set what is in the evaluation "
            "set.",
        )
    return Finding(PASS, f"{same} of {plural(looked, 'evaluation row')} are training rows")
