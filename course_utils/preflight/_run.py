"""Check the run: batches, learning rate, steps, memory, duration."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from course_utils.errors import CourseError
from course_utils.preflight import _kinds as kinds
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import TrainerSnapshot, figure, plural, shorten

# Warn if less than this share of a GPU's memory remains free.
_CLOSE = 0.1
# Usual rates for Adam: LoRA 1e-4 to 2e-3, all weights 1e-6 to 1e-4; for preferences a tenth.
_LORA_RATES = {"texts": (3e-5, 1e-2), "preferences": (5e-7, 1e-3)}
_FULL_RATES = {"texts": 1e-3, "preferences": 1e-4}
# A rate below this share of `learning_rate` counts as zero.
_NO_RATE = 0.01
_RATE_SAMPLES = 200
# Warn if weight decay removes more than this share of the weights over the run.
_DECAYED = 0.1
# More padding than this in the batches is wasted time.
_MOSTLY = 0.6


# Warn if a single text makes up more than this share of the examples.
_REPEATED, _LEAST_REPEATED = 0.3, 10


class _Noted(dict):
    """An example that records which of the dropped columns a collator asks for."""

    def __init__(self, values: Mapping[str, Any], dropped: set[str], asked: set[str]):
        super().__init__(values)
        self._dropped, self._asked = dropped, asked

    def _note(self, name: Any) -> None:
        if name in self._dropped:
            self._asked.add(name)

    def get(self, name: Any, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)

    def pop(self, name: Any, *default: Any) -> Any:
        self._note(name)
        return super().pop(name, *default)

    def __contains__(self, name: Any) -> bool:
        self._note(name)
        return super().__contains__(name)

    def __missing__(self, name: Any) -> Any:
        self._note(name)
        raise KeyError(name)


def _asked_in_vain(ev: TrainerSnapshot) -> list[str]:
    """Return the columns that the trainer drops but the collator asks for."""
    trainer = ev.trainer
    if not ev.args.remove_unused_columns or not ev.examples or ev.kind == kinds.ONLINE:
        return []
    first = ev.trainer.train_dataset[0] if ev.total else None
    if not isinstance(first, Mapping):
        return []
    trainer._set_signature_columns_if_needed()
    kept = set(trainer._signature_columns or ())
    dropped = set(first) - kept
    if not dropped:
        return []
    asked: set[str] = set()
    count = min(2, ev.total or 0)
    examples = [
        _Noted({n: v for n, v in trainer.train_dataset[i].items() if n in kept}, dropped, asked)
        for i in range(count)
    ]
    with contextlib.suppress(Exception):  # only the requests matter
        trainer.data_collator(examples)
    # The libraries' collators check for labels to pad or masks to use.
    return sorted(asked - {"label", "label_ids"})


def batches(ev: TrainerSnapshot) -> Finding:
    """Check that the collator makes batches with everything the loss needs."""
    try:
        lost = _asked_in_vain(ev)
    except Exception:  # a dataset may not support indexing
        lost = []
    if lost:
        return Finding(
            FAIL,
            f"the collator asks for {', '.join(lost)}, which the trainer drops from the rows "
            "before it",
            "Set remove_unused_columns=False: the Trainer keeps only what the model's forward "
            "takes.",
        )
    if ev.error:
        return Finding(
            FAIL,
            f"no batch could be made: {shorten(ev.error, 200)}",
            "Look at one example of trainer.train_dataset and give it to trainer.data_collator.",
        )
    if not ev.looked_at:
        return Finding(
            FAIL,
            "the training set is empty",
            "Look at what a filter has left; with truncation_mode='keep_start', TRL drops examples "
            "whose prompt alone fills max_length.",
        )
    if ev.kind in (kinds.CAUSAL, kinds.MASKED, kinds.SEQ2SEQ) and not ev.labelled:
        has = ", ".join(map(str, ev.batches[0])) if isinstance(ev.batches[0], Mapping) else ""
        if "labels" not in (ev.batches[0] if isinstance(ev.batches[0], Mapping) else ()):
            fix = "Let the collator make labels: DataCollatorForLanguageModeling(tokenizer, "
            fix += "mlm=False)."
            return Finding(FAIL, f"the batches have {has or 'no columns'}, but no labels", fix)
    if repeated := _repeated(ev):
        return repeated
    total = "" if ev.total is None else f" of {ev.total:,}"
    found = f"{ev.looked_at}{total} examples looked at"
    lengths = sorted(len(sample.ids) for sample in ev.samples)
    if lengths:
        found += f", {lengths[0]:,} to {lengths[-1]:,} tokens"
    if ev.rows is not None and len(ev.rows) > ev.looked_at:
        found += (
            f"; of {len(ev.rows):,} rows the ids, with {int(ev.rows.lengths.min()):,} to "
            f"{int(ev.rows.lengths.max()):,} tokens"
        )
    return Finding(PASS, found)


def _repeated(ev: TrainerSnapshot) -> Finding | None:
    """Warn if a single text makes up much of the training set."""
    if len(ev.samples) < _LEAST_REPEATED:
        return None
    (_, most), *_ = Counter(tuple(sample.ids) for sample in ev.samples).most_common(1)
    if most <= _REPEATED * len(ev.samples):
        return None
    return Finding(
        WARN,
        f"{most} of {len(ev.samples)} examples looked at are the same text",
        "Drop duplicates before training: the model would learn that one text by heart.",
    )


def _asked_rate(ev: TrainerSnapshot) -> float:
    """Return the base learning rate: the optimizer's if it exists already."""
    optimizer = ev.trainer.optimizer
    if optimizer is None:
        return ev.args.learning_rate
    return max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)


def _rates(ev: TrainerSnapshot, steps: int) -> list[float] | None:
    """Return the learning rate at some of the run's updates, including the first two.

    None if a user-defined scheduler cannot be evaluated.
    """
    base, trainer = _asked_rate(ev), ev.trainer
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        scheduler = trainer.lr_scheduler
    else:
        trainer.lr_scheduler = None
        some = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
        scheduler = trainer.create_scheduler(steps, optimizer=some)
    places = sorted({0, min(1, steps - 1), *np.linspace(0, steps - 1, _RATE_SAMPLES).astype(int)})
    if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return [base * scheduler.lr_lambdas[0](int(place)) for place in places]
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return [base] * len(places)
    return None


def rate(ev: TrainerSnapshot) -> Finding:
    """Check that the learning rate is not zero, and usual for this kind of training."""
    asked = _asked_rate(ev)
    if not isinstance(asked, (int, float)):
        return Finding(
            FAIL,
            f"learning_rate is {asked!r}, a text and no number",
            "Write it as a number: YAML reads 1e-4 as text and 1.0e-4 as a number.",
        )
    if not math.isfinite(asked) or asked <= 0:
        return Finding(
            FAIL,
            f"learning_rate is {asked:g}: nothing would change",
            "Set learning_rate: about 2e-4 to 1e-3 for LoRA, 1e-5 to 5e-5 for all weights.",
        )
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return not_judged("there are no steps")
    steps = ev.planned[0]
    try:
        rates = _rates(ev, steps)
    except (KeyError, TypeError, ValueError) as error:
        return Finding(
            FAIL,
            f"the scheduler cannot be made: {error}",
            "Give lr_scheduler_kwargs what this lr_scheduler_type asks for, or take another.",
        )
    if rates is None:
        return Finding(PASS, f"{asked:g}; cannot tell what this scheduler makes of it")
    peak, warmup = max(rates), ev.args.get_warmup_steps(steps)
    idle = sum(each < _NO_RATE * asked for each in rates) / len(rates)
    if warmup >= steps and peak < 0.99 * asked:
        return Finding(
            FAIL if peak < 0.1 * asked else WARN,
            f"{plural(warmup, 'warm-up step')}, but the run has {steps}: the rate only reaches "
            f"{peak:.1e} of {asked:g}",
            "Set warmup_steps to less than the run, for example 0.05 for a twentieth of it.",
        )
    if max(rates[:2]) <= 0 or idle > 0.5:
        return Finding(
            FAIL,
            f"the schedule is at about 0 for {idle:.0%} of the run",
            "Take another lr_scheduler_type, such as 'cosine' or 'linear', or look at the "
            "scheduler's own settings.",
        )
    kind = getattr(ev.args.lr_scheduler_type, "value", ev.args.lr_scheduler_type)
    found = f"{peak:.1e} at its highest, {rates[-1]:.1e} at the end ({kind}, warm-up {warmup})"
    return _unusual(ev, asked, found) or _decay(ev, rates, steps) or Finding(PASS, found)


def _unusual(ev: TrainerSnapshot, asked: float, found: str) -> Finding | None:
    """Warn if the learning rate is one for another kind of training."""
    if "adam" not in str(getattr(ev.args.optim, "value", ev.args.optim)):
        return None
    sort = "preferences" if ev.kind in (kinds.PAIRS, kinds.UNPAIRED, kinds.ONLINE) else "texts"
    least, most = _LORA_RATES[sort]
    if ev.is_lora and asked < least:
        return Finding(
            WARN,
            found,
            f"Raise learning_rate: LoRA usually takes {'1e-6 to 1e-4' if sort != 'texts' else ''}"
            f"{'1e-4 to 2e-3' if sort == 'texts' else ''}, and learns next to nothing with this.",
        )
    top = most if ev.is_lora else _FULL_RATES[sort]
    own_kind = hasattr(ev.model, "peft_config") and not ev.is_lora
    if asked > top and not own_kind:
        return Finding(
            WARN,
            found,
            f"Lower learning_rate: above {top:g} training usually destroys what the model knows.",
        )
    return None


def _decay(ev: TrainerSnapshot, rates: list[float], steps: int) -> Finding | None:
    """Warn if weight decay shrinks the weights too much."""
    decay = ev.args.weight_decay
    left = math.exp(-decay * float(np.mean(rates)) * steps)
    # Over a long run even the usual 0.1 adds up, and the gradient counteracts it.
    if decay < 1 or 1 - left <= _DECAYED or "adam" not in str(ev.args.optim).lower():
        return None
    return Finding(
        WARN,
        f"weight_decay={decay:g} takes {1 - left:.0%} of each trained weight away in the run",
        "Set weight_decay to 0.1 or less.",
    )


def _resumed(ev: TrainerSnapshot) -> tuple[str, int] | None:
    """Return the checkpoint that training would resume from, and its step."""
    asked = ev.resume if ev.resume is not None else ev.args.resume_from_checkpoint
    if not asked or str(asked).lower() == "false":
        return None
    where = Path(ev.args.output_dir)
    if asked is True or str(asked).lower() == "true":
        found = sorted(where.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[-1]))
        if not found:
            return None
        where = found[-1]
    else:
        where = Path(str(asked))
    try:
        state = json.loads((where / "trainer_state.json").read_text(encoding="utf-8"))
        return where.name, int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def steps(ev: TrainerSnapshot) -> Finding:
    """Report the number of updates, and how much of the dataset they cover."""
    if ev.error or not ev.batches:
        return not_judged("there are no batches")
    args = ev.args
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return Finding(
            FAIL,
            f"the run has no steps{f' ({ev.planned})' if isinstance(ev.planned, str) else ''}",
            "Set max_steps or num_train_epochs above 0; dataloader_drop_last leaves out a last "
            "batch that is not full.",
        )
    updates, size = ev.planned
    if (resumed := _resumed(ev)) and resumed[1] >= updates:
        return Finding(
            FAIL,
            f"{resumed[0]} has done {resumed[1]:,} steps, and the run has {updates:,}: nothing is "
            "left to train",
            "Raise max_steps or num_train_epochs beyond the checkpoint's, or start from its "
            "weights without resume_from_checkpoint.",
        )
    parts = [f"{args.per_device_train_batch_size}"]
    parts += [f"{args.gradient_accumulation_steps} accumulated"]
    devices = args.world_size * max(1, args.n_gpu)
    parts += [f"{devices} devices"] if devices > 1 else []
    found = f"{' × '.join(parts)} = {plural(size, 'example')} an update; {updates:,} updates"
    if ev.rows is not None and ev.kind == kinds.CAUSAL:
        found += f" of about {figure(size * float(ev.rows.lengths.mean()))} tokens"
    if ev.total is not None and ev.passes is not None and ev.kind != kinds.ONLINE:
        found += f", {ev.passes:.3g} × the {plural(ev.total, 'example')}"
        if ev.total < size:
            return Finding(
                WARN,
                found,
                "An update takes more examples than there are: lower the batch size or "
                "gradient_accumulation_steps.",
            )
    if ev.kind == kinds.CAUSAL and ev.padding > _MOSTLY:
        return Finding(
            WARN,
            f"{found}; {ev.padding:.0%} of the tokens in a batch are padding",
            "Set train_sampling_strategy='group_by_length', or packing=True in SFTConfig.",
        )
    return Finding(PASS, found)


def minutes(ev: TrainerSnapshot) -> Finding:
    """Estimate the duration of the run from timed batches and the lengths of all rows."""
    if ev.no_step or ev.step.error:
        return not_judged(ev.no_step or "the step did not run")
    if isinstance(ev.planned, str) or ev.planned[0] < 1:
        return not_judged("there are no steps")
    updates, accumulated = ev.planned[0], ev.args.gradient_accumulation_steps
    total = updates * accumulated * ev.seconds / 60
    return Finding(
        PASS,
        f"about {figure(total)} minutes: {updates:,} × {accumulated} × {figure(ev.seconds)} s, "
        "without evaluating and saving",
    )


def _phase(phases: Mapping[str, float]) -> str:
    """Name the phase in which memory peaks."""
    name = max(phases, key=phases.__getitem__)
    whole = {"optimizer": "optimizer's step", "evaluation": "evaluation", "loading": "loading"}
    return whole.get(name, f"{name} pass")


def memory(ev: TrainerSnapshot) -> Finding:
    """Compare the predicted peak with the GPU's memory, if there is a GPU."""
    gpu = ev.gpu
    if gpu is None and ev.args.device.type == "cuda":
        from course_utils.memory import this_gpu

        gpu = this_gpu()
    if gpu is None or ev.error or not ev.batches:
        return SILENT
    from course_utils.memory import predict, usable_bytes, ways_to_fit

    usable = usable_bytes(gpu)
    try:
        found = predict(ev.trainer, gpu)
    except CourseError as error:
        return not_judged(shorten(str(error), 200))
    need = found.peak_reserved_mb * 1e6
    told = (
        f"about {need / 1e6:,.0f} of the {usable / 1e6:,.0f} MB that a {gpu.name} has for it "
        f"(with the CUDA context {found.process_mb:,.0f} MB); {found.peak_allocated_mb:,.0f} MB of "
        f"them in tensors, at the peak in the {_phase(found.phases)}"
    )
    if need <= (1 - _CLOSE) * usable:
        return Finding(PASS, told)
    close = "Predictions can be off by a few percent: leave more room, or watch the first steps."
    if need <= usable:
        return Finding(WARN, told, close)
    answers = ways_to_fit(found.setup, gpu, wanted=1, together=2, progress=False)
    way = "No one or two of the usual changes are enough: take a smaller model."
    if not answers.empty:
        way = f"The cheapest change: {answers['change'][0]} (costs {answers['cost'][0]})."
    return Finding(FAIL, told, way)
