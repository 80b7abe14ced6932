"""Check the loss: what it optimises, where its gradient arrives, how it accumulates."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from course_utils._core.documents import IGNORED
from course_utils.preflight import _kinds as kinds
from course_utils.preflight import _trial
from course_utils.preflight._apart import token_losses
from course_utils.preflight._checkpoint import not_loaded
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import TrainerSnapshot, plural, shorten
from course_utils.preflight._weights import untouched

# Larger logits are not kept with a graph: 10^8 float32 numbers are 0.4 GB.
_MOST_LOGITS = 1e8
_SAME = 0.02
# A loss this many times that of a uniform guess points to a wrong tokenizer.
_WORSE_THAN_GUESSING = 1.5
# If its gradient's cosine with that of cross-entropy is below this, a loss teaches something else.
_ALONG = 0.3
_SLOW = 4.0
_MAY_REST = re.compile(r"expert|vision|visual|audio|image")


class _Pull(NamedTuple):
    """Where the loss pushes the logits.

    `offset` is the distance from a logit's position to that of the token it pushes up: 1 is the
    next token; None is neither this token nor the next two. `padding` and `ignored` count
    positions that should not take part, out of `places` that do. `cosine` and `size` compare the
    gradient with that of the mean cross-entropy.
    """

    offset: int | None
    padding: int
    ignored: int
    places: int
    cosine: float
    size: float


def _small(ev: TrainerSnapshot) -> Mapping[str, Any] | None:
    """Return a batch whose logits are small enough to keep, a single row if necessary."""
    for batch in ev.labelled:
        if not (batch["labels"] != IGNORED).any():
            continue
        if batch["input_ids"].numel() * ev.vocabulary <= _MOST_LOGITS:
            return batch
        shape = batch["input_ids"].shape
        if all(v.shape == shape for v in batch.values() if isinstance(v, torch.Tensor)):
            keep = max(8, int(_MOST_LOGITS // ev.vocabulary))
            row = int((batch["labels"] != IGNORED).sum(1).argmax())
            first = int((batch["labels"][row] != IGNORED).int().argmax())
            start = max(0, min(first - keep // 2, shape[1] - keep))
            return {n: v[row : row + 1, start : start + keep] for n, v in batch.items()}
    return None


@contextmanager
def _logits_kept(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the logits of each forward pass and let them keep their gradient."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if logits is None and isinstance(output, Mapping):
            logits = output.get("logits")
        if isinstance(logits, torch.Tensor) and logits.requires_grad:
            logits.retain_grad()
            kept.append(logits)

    handle = model.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _pull(ev: TrainerSnapshot, batch: Mapping[str, Any], logits: torch.Tensor) -> _Pull | None:
    """Analyse the logits' gradient; None if there is none."""
    gradient = logits.grad
    ids = batch["input_ids"].to(logits.device)
    if gradient is None or gradient.dim() != 3:
        return None
    gradient = gradient[:, -ids.shape[1] :].float()
    size = gradient.abs().amax(-1)
    counted = size > 1e-3 * size.max()
    if not counted.any():
        return None
    target = gradient.argmin(-1)
    labels = batch["labels"].to(logits.device)
    # A token that is already predicted may be pushed down, as by label smoothing.
    known = logits.detach()[:, -ids.shape[1] :].float().softmax(-1).amax(-1) > 0.8
    judged = counted & ~known if (counted & ~known).any() else counted
    shares = {}
    for offset in (0, 1, 2):
        there = torch.full_like(ids, -1)
        there[:, : ids.shape[1] - offset] = ids[:, offset:]
        shares[offset] = ((target == there) & judged).sum().item() / judged.sum().item()
    best = max(shares, key=shares.__getitem__)
    # If a text repeats its tokens, prefer the next one.
    offset = 1 if shares[1] >= 0.9 * shares[best] else best
    clear = shares[offset] > 0.5
    wanted = torch.zeros_like(counted)
    shift = offset if clear else 1
    wanted[:, : ids.shape[1] - shift] = labels[:, shift:] != IGNORED
    if shift != 1:
        wanted |= labels != IGNORED
    mask = batch.get("attention_mask")
    padding = torch.zeros_like(counted)
    if isinstance(mask, torch.Tensor) and mask.shape == ids.shape:
        read = mask.to(logits.device).bool()
        padding[:, :-1] = ~read[:, 1:]
        padding[:, -1] = ~read[:, -1]
    extra = counted & ~wanted
    extra[:, -1] = False
    cosine, size_of = _against_plain(logits.detach()[:, -ids.shape[1] :].float(), gradient, labels)
    return _Pull(
        offset if clear else None,
        int((extra & padding).sum()),
        int((extra & ~padding).sum()),
        int(counted.sum()),
        cosine,
        size_of,
    )


def _against_plain(
    logits: torch.Tensor, gradient: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Compare a loss's gradient with that of mean cross-entropy: cosine, and ratio of norms."""
    plain = torch.zeros_like(logits)
    targets = labels[:, 1:]
    counted = targets != IGNORED
    places = counted.nonzero(as_tuple=True)
    if not len(places[0]):
        return math.nan, math.nan
    chances = logits[:, :-1][places].softmax(-1)
    chances[torch.arange(len(chances)), targets[places].clamp(min=0)] -= 1
    plain[:, :-1][places] = chances / len(chances)
    cosine = F.cosine_similarity(gradient.flatten(), plain.flatten(), dim=0).item()
    return cosine, (gradient.norm() / plain.norm().clamp(min=1e-12)).item()


def _judge(pull: _Pull) -> Finding | None:
    """Say what is wrong with where the loss pushes; None if nothing is."""
    if pull.offset != 1:
        learns = "something else than the next token"
        fix = "Hold what the loss takes as labels against the batch's input_ids."
        if pull.offset == 0:
            learns = "the token that it has just read"
            fix = "Shift by one where the loss is computed: logits[:, :-1] against labels[:, 1:]."
        elif pull.offset == 2:
            learns = "the token after the next"
            fix = "Shift once only: transformers' models shift the labels themselves."
        return Finding(FAIL, f"at each place the model learns {learns}", fix)
    if pull.padding > 0.02 * pull.places:
        return Finding(
            FAIL,
            f"{pull.padding} of {pull.places} places that the loss counts are padding",
            "Leave out places where labels are -100: cross_entropy(..., ignore_index=-100).",
        )
    if pull.ignored > 0.02 * pull.places:
        return Finding(
            FAIL,
            f"{pull.ignored} of {pull.places} places that the loss counts have the label -100: "
            "prompts, or other texts that were to be left out",
            "Leave out places where labels are -100: cross_entropy(..., ignore_index=-100).",
        )
    return None


def plain_loss(ev: TrainerSnapshot) -> Finding:
    """Compare the trainer's loss with the next-token cross-entropy of a plain forward pass."""
    if ev.kind != kinds.CAUSAL:
        return SILENT
    if ev.no_step or ev.step.error:
        return not_judged(ev.no_step or "the step did not run")
    batch = _small(ev)
    if batch is None:
        return not_judged("its logits would be too large to look at")
    trained = list(ev.trainable.values())
    ev.trainer.current_gradient_accumulation_steps = 1
    ev.model.train()
    try:
        losses = token_losses(ev, batch)
        _, items = ev.trainer.get_batch_samples(iter([batch]), 1, ev.args.device)
        with _logits_kept(ev.model) as kept, _trial.without_dropout():
            loss = _trial.loss_of(ev.trainer, batch, items)
            pulled = None
            if kept:
                loss.backward()
                pulled = _pull(ev, batch, kept[0])
    except Exception as error:  # some models do not support a plain forward pass
        return not_judged(f"{type(error).__name__}: {error}"[:200])
    finally:
        for parameter in trained:
            parameter.grad = None
    labels = batch["labels"][:, 1:].cpu()
    ids = batch["input_ids"][:, 1:].cpu()
    counted = (labels != IGNORED) & (labels == ids)
    own = loss.item()
    plain = losses[counted].mean().item() if counted.any() else math.nan
    if math.isnan(own):
        return not_judged("see loss and gradients")
    if pulled is not None and (found := _judge(pulled)):
        return found
    told = f"the trainer's {own:.4g}, a plain forward's {plain:.4g}"
    if pulled is None and not counted.any():
        return Finding(
            FAIL,
            f"the trainer's {own:.4g}, and no label is the token after its place",
            "Shift once only: transformers' models shift the labels themselves.",
        )
    if pulled is None and (found := _shifted(ev, batch)):
        return found
    if found := _surprised(ev, losses, batch):
        return found
    same = abs(own - plain) <= max(_SAME * abs(plain), 5e-3)
    if same:
        return Finding(PASS, told)
    places = batch["labels"].numel(), batch["labels"][:, 1:].numel()
    if _own_loss(ev) and (found := _scale(own, plain, int(counted.sum()), places, told)):
        return found
    if pulled is not None and not pulled.cosine > _ALONG:
        return Finding(
            WARN,
            f"{told}; its gradient has a cosine of {pulled.cosine:.2f} with that of cross-entropy",
            "Give cross_entropy the logits as they are: without softmax, and scaled by nothing.",
        )
    if pulled is not None and not 0.5 < pulled.size < 2:
        return Finding(
            WARN,
            f"{told}; its gradient is {pulled.size:.2g} times that of the mean cross-entropy",
            "Give cross_entropy the logits as they are, and divide by the number of labels that "
            "are not -100.",
        )
    why = "of its own making, and it pulls towards the next token"
    if pulled is None:
        why = "the rest is a term of its own"
    return Finding(PASS, f"{told}; {why}")


def _own_loss(ev: TrainerSnapshot) -> bool:
    """Return whether the loss is user-defined rather than the libraries' own."""
    trainer = ev.trainer
    module = type(trainer).compute_loss.__module__
    return trainer.compute_loss_func is not None or not module.startswith(("transformers.", "trl."))


def _scale(
    own: float, plain: float, count: int, places: tuple[int, ...], told: str
) -> Finding | None:
    """Detect a loss of the wrong scale: a sum, or a mean that includes ignored positions."""
    fix = "Divide by num_items_in_batch, or by the number of labels that are not -100."
    if not plain > 0 or count < 2:
        return None
    if abs(own / plain - count) <= _SAME * count:
        return Finding(WARN, f"{told}: it is the sum over {count} tokens, not their mean", fix)
    for all_places in places:
        if count < 0.98 * all_places and abs(own / plain * all_places / count - 1) <= 0.005:
            return Finding(
                WARN,
                f"{told}: the sum over {count} tokens was divided by all {all_places} places, "
                "padding and prompts among them",
                fix,
            )
    if own < 0.5 * plain:
        return Finding(WARN, f"{told}: divided by more than the tokens that count", fix)
    return None


def _shifted(ev: TrainerSnapshot, batch: Mapping[str, Any]) -> Finding | None:
    """Detect labels shifted by the collator although the model shifts them itself."""
    ids, labels = batch["input_ids"], batch["labels"]
    counted = labels != IGNORED
    early = torch.roll(ids, -1, 1)
    share = ((labels == early) & counted).sum() / counted.sum().clamp(min=1)
    right = ((labels == ids) & counted).sum() / counted.sum().clamp(min=1)
    if share > 0.8 and right < 0.5:
        return Finding(
            FAIL,
            "at each place the model learns the token after the next: the labels are shifted "
            "already, and the model shifts them again",
            "Shift once only: give labels at the places of their input_ids.",
        )
    return None


def _surprised(
    ev: TrainerSnapshot, losses: torch.Tensor, batch: Mapping[str, Any]
) -> Finding | None:
    """Detect a model that is confident and wrong, as with another model's tokenizer."""
    mask = batch.get("attention_mask")
    read = torch.ones_like(losses, dtype=torch.bool)
    if isinstance(mask, torch.Tensor) and mask.shape == batch["input_ids"].shape:
        read = mask[:, 1:].bool().cpu()
    of_all = losses[read].mean().item()
    uniform = math.log(ev.vocabulary)
    if of_all > uniform + _WORSE_THAN_GUESSING:
        return Finding(
            WARN,
            f"the texts themselves have a loss of {of_all:.3g}, a uniform guess {uniform:.3g}: "
            "worse than guessing",
            "Make sure that the tokenizer is this model's own, and that its weights were loaded.",
        )
    adapted = hasattr(ev.model, "peft_config")  # leave those to `saved and loaded`
    if (
        not adapted
        and abs(of_all - uniform) < 0.05 * uniform
        and untouched(ev)
        and (lost := not_loaded(ev.base))
    ):
        return Finding(
            FAIL,
            f"the texts have a loss of {of_all:.3g}, as of a uniform guess, and {lost[0]} of "
            f"{plural(lost[1], 'tensor')} are not in the checkpoint that the model was loaded from",
            "Look at what from_pretrained reports as missing, and load with the class that the "
            "checkpoint was saved with.",
        )
    return None


def step(ev: TrainerSnapshot) -> Finding:
    """Check that a step gives a finite loss, and a gradient for all trained parameters."""
    if ev.no_step:
        return not_judged(ev.no_step)
    tried = ev.step
    if tried.error:
        fix = "Training would end with this error: look at the batch and the loss function."
        if "out of memory" in tried.error.lower():
            fix = (
                "Lower per_device_train_batch_size and raise gradient_accumulation_steps by as "
                "much, shorten max_length, or set activation_checkpointing=True."
            )
        elif "does not require grad" in tried.error:
            fix = (
                "Nothing trainable takes part in the loss: call model.enable_input_require_grads() "
                "or set use_reentrant=False where activations are checkpointed."
            )
        return Finding(FAIL, shorten(tried.error, 300), fix)
    norms = [norm for norm in tried.norms.values() if not math.isnan(norm)]
    total = math.hypot(*norms)
    if not math.isfinite(tried.loss) or not math.isfinite(total):
        return Finding(
            FAIL,
            f"the loss is {tried.loss:g} and its gradient's norm {total:g}",
            "Look for NaN in the weights, for a dtype that overflows (float16), or for a batch "
            "without labels.",
        )
    if ev.kind == kinds.ONLINE and total == 0:
        return not_judged("see rewards")
    # An expert that received no tokens rightly has no gradient.
    # An image encoder's last layers are skipped by design, and a batch may have no images.
    idle = [n for n, norm in tried.norms.items() if not norm > 0 and not _MAY_REST.search(n)]
    reached = f"loss {tried.loss:.3g}"
    if ev.kind == kinds.CAUSAL:
        reached += f" (a uniform guess has {math.log(ev.vocabulary):.3g})"
    if idle and (total == 0 or any(name.endswith("]") for name in idle)):
        return Finding(
            FAIL,
            f"{reached}, but no gradient in {len(idle)} of {plural(len(tried.norms), 'part')}, "
            f"such as {idle[0]}",
            "Make sure that the adapter is active (model.set_adapter), takes part in the forward, "
            "and was not initialised with zeros throughout.",
        )
    if idle:
        return Finding(
            WARN,
            f"{reached}, but no gradient in {len(idle)} of {plural(len(tried.norms), 'tensor')}, "
            f"such as {idle[0]}",
            "Freeze what takes no part in the loss with requires_grad_(False).",
        )
    clip = getattr(ev.args, "max_grad_norm", None)
    if clip and total > clip and _swallowed(ev, clip):
        return Finding(
            WARN,
            f"{reached}; the gradient's norm is {total:.2g}, and max_grad_norm={clip:g} leaves "
            "next to nothing of it",
            "Set max_grad_norm to about 1.",
        )
    part = "adapter" if any(name.endswith("]") for name in tried.norms) else "tensor"
    return Finding(
        PASS, f"{reached}; gradient norm {total:.2g}, > 0 in {plural(len(tried.norms), part)}"
    )


def _swallowed(ev: TrainerSnapshot, clip: float) -> bool:
    """Return whether clipping leaves a gradient too small for the optimizer."""
    count = sum(parameter.numel() for parameter in ev.trainable.values())
    if "sgd" in str(ev.args.optim).lower():
        return clip < 1e-4
    # Adam divides by the gradient's size plus epsilon.
    return clip / math.sqrt(count) < 3 * getattr(ev.args, "adam_epsilon", 1e-8)


def accumulation(ev: TrainerSnapshot) -> Finding:
    """Check that accumulated batches give the same gradient as one large batch."""
    steps = ev.args.gradient_accumulation_steps
    if steps < 2 or ev.kind in (kinds.ONLINE, kinds.OTHER) or ev.loader is None:
        return SILENT
    if ev.no_step or ev.step.error:
        return not_judged(ev.no_step or "the step did not run")
    if ev.step.timed[0][1] > _SLOW:
        return not_judged("a step takes too long to try several")
    # Shortest and longest examples together, so that a mean of means differs from the overall mean.
    order = sorted(range(len(ev.examples)), key=lambda place: _weight(ev.examples[place]))
    if len(order) < 4:
        return SILENT
    size = max(1, min(ev.args.train_batch_size, len(order) // 2))
    parts = [[ev.examples[i] for i in order[:size]], [ev.examples[i] for i in order[-size:]]]
    trained = list(ev.trainable.values())
    collate = ev.loader.collate_fn
    try:
        with _trial.without_dropout():
            together = _flat(ev, [collate(parts[0] + parts[1])])
            apart = _flat(ev, [collate(part) for part in parts])
    except Exception as error:  # a collator or a loss may raise anything
        return not_judged(f"{type(error).__name__}: {error}"[:200])
    finally:
        for parameter in trained:
            parameter.grad = None
    if not together.norm() > 0:
        return SILENT
    ratio = (apart.norm() / together.norm()).item()
    cosine = F.cosine_similarity(apart, together, dim=0).item()
    told = (
        f"two batches accumulated give {ratio:.3g} times the gradient of one batch of both, "
        f"with cosine {cosine:.3f}"
    )
    loose = ev.has_experts or ev.kind in (kinds.UNPAIRED, kinds.PAIRS, kinds.REWARD)
    if not (0.8 if loose else 0.9) < ratio < (1.25 if loose else 1.11):
        return Finding(
            FAIL if ratio > 1.5 or ratio < 0.67 else WARN,
            f"{told}: the step's size depends on gradient_accumulation_steps",
            "In a loss of your own, divide the sum over tokens by num_items_in_batch; or set the "
            "trainer's loss_is_scaled_for_ga to say whether the loss does.",
        )
    if cosine < 0.98 and not loose:
        return Finding(
            WARN,
            f"{told}: short batches weigh as much as long ones",
            "In a loss of your own, divide the sum over tokens by num_items_in_batch.",
        )
    return Finding(PASS, told)


def _weight(example: Any) -> int:
    """Return how many labels of an example count."""
    if not isinstance(example, Mapping):
        return 0
    labels = example.get("labels", example.get("input_ids"))
    try:
        return sum(int(label) != IGNORED for label in labels)
    except TypeError:
        return len(str(example))


def _flat(ev: TrainerSnapshot, batches: list[Any]) -> torch.Tensor:
    """Return the gradient of an update as one vector, sampled if it is long."""
    trained = list(ev.trainable.values())
    _trial.accumulated(ev.trainer, batches, trained)
    parts = []
    for parameter in trained:
        if parameter.grad is not None:
            flat = parameter.grad.detach().flatten()
            parts.append(flat[:: max(1, flat.numel() // 200_000)].float().cpu())
            parameter.grad = None
        else:
            parts.append(torch.zeros(1))
    return torch.cat(parts)
