"""Check the weights: which are trained, in which dtype, and whether they will be saved."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from course_utils._core.undisturbed import quiet_libraries
from course_utils.hardware import detect, pick_dtype
from course_utils.preflight import _kinds as kinds
from course_utils.preflight._checkpoint import not_loaded
from course_utils.preflight._report import FAIL, PASS, SILENT, WARN, Finding, not_judged
from course_utils.preflight._snapshot import TrainerSnapshot, plural

# Models up to this size are saved and reloaded for comparison, in some seconds at most.
_SMALL = 60_000_000
# If a step changes less than this share of the weights, rounding loses most of the training.
_MOVED = 0.5
_SAMPLED = 100_000
# Optimizers that keep higher precision than the weights, or use stochastic rounding.
_EXACT = re.compile(r"anyprecision|torchao|stochastic|apollo|lomo|schedule_free")


def _numbers(ev: TrainerSnapshot) -> dict[str, int]:
    # 4-bit weights hold two parameters per byte.
    return {
        name: parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        for name, parameter in ev.model.named_parameters()
    }


def _nested(ev: TrainerSnapshot) -> Finding | None:
    """Detect an adapter around an adapter: the loaded one is reinitialised or frozen."""
    found = [module for module in ev.model.modules() if isinstance(module, PeftModel)]
    if len(found) < 2:
        return None
    return Finding(
        FAIL,
        f"{len(found)} adapters were put around each other: a loaded one is replaced by fresh "
        "weights, and the checkpoint holds the outer one only",
        "To train a loaded adapter on, give PeftModel.from_pretrained(..., is_trainable=True) to "
        "the trainer; to start anew, merge it first (merge_and_unload).",
    )


def _unmatched(ev: TrainerSnapshot) -> Finding | None:
    """Detect names in a LoRA configuration that match no module."""
    configs = getattr(ev.model, "peft_config", None)
    if not isinstance(configs, dict):
        return None
    names = [name for name, _ in ev.base.named_modules()]
    adapted = [n for n, m in ev.base.named_modules() if isinstance(m, BaseTunerLayer)]
    saved = [n for n, m in ev.base.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for config in configs.values():
        for option, there in (("target_modules", adapted), ("modules_to_save", saved)):
            wanted = getattr(config, option, None)
            if wanted is None or isinstance(wanted, str):
                continue
            lost = sorted(
                str(name)
                for name in wanted
                if not any(n == name or n.endswith(f".{name}") for n in there)
                # Names of parameters, as for fused experts.
                and not any(str(name) in n for n in there)
            )
            heads = {"classifier", "score"} if option == "modules_to_save" else set()
            lost = [name for name in lost if name not in heads]
            if lost:
                exist = sorted({n.rsplit(".", 1)[-1] for n in names if n} - {"0", "1"})
                near = [n for n in exist if n.endswith(("proj", "head", "tokens")) or "emb" in n]
                return Finding(
                    WARN,
                    f"{option} names {', '.join(lost)}, which no module of this model is called",
                    f"Take names that it has, such as {', '.join(near[:6]) or 'all-linear'}, or "
                    "target_modules='all-linear'.",
                )
        of_all = getattr(config, "layers_to_transform", None) is None
        if of_all and (found := _few_layers(ev, adapted)):
            return found
    return None


def _few_layers(ev: TrainerSnapshot, adapted: list[str]) -> Finding | None:
    """Detect layers without an adapter, in models with several kinds of layer."""
    pattern = re.compile(r"(?:layers|h|blocks?|layer)\.(\d+)\.")
    layers = {m.group(1) for n, _ in ev.base.named_modules() if (m := pattern.search(f"{n}."))}
    with_adapter = {m.group(1) for n in adapted if (m := pattern.search(f"{n}."))}
    if not with_adapter or not layers - with_adapter:
        return None
    if len(with_adapter) > len(layers) / 2:
        return None
    return Finding(
        WARN,
        f"only {len(with_adapter)} of {len(layers)} layers have an adapter: the names in "
        "target_modules are those of one kind of layer",
        "Set target_modules='all-linear', or name the modules of the other layers too.",
    )


def _new_tokens(ev: TrainerSnapshot) -> Finding | None:
    """Detect new tokens whose embeddings were added by resizing and are not trained."""
    if not ev.tokenizer or ev.kind != kinds.CAUSAL:
        return None
    embedding = ev.model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    if weight is None or weight.requires_grad or not weight.is_floating_point():
        return None
    if any(p.requires_grad for p in embedding.parameters()):
        return None  # trainable_token_indices or modules_to_save
    if any("token_adapter" in n or "trainable_tokens" in n for n in ev.trainable):
        return None
    used = {token for sample in ev.samples for token in sample.ids}
    added = {place for place in ev.tokenizer.added_tokens_decoder if place < len(weight)}
    # The padding token has a row of zeros, and needs no other.
    candidates = sorted((used & added) - {getattr(embedding, "padding_idx", None)})
    if not candidates or len(weight) < 100:
        return None
    rows = weight.detach().float()
    mean = rows.mean(0)
    usual = (rows[:: max(1, len(rows) // 2000)] - mean).norm(dim=1).median()
    # transformers initialises new rows to the mean of the old ones, with hardly any spread.
    fresh = [t for t in candidates if (rows[t] - mean).norm() < 0.05 * usual]
    if not fresh:
        return None
    shown = ", ".join(ev.decode([token]) for token in fresh[:3])
    return Finding(
        WARN,
        f"{plural(len(fresh), 'new token')} of the texts ({shown}) have embeddings that were made "
        "by resizing and are not trained",
        "Set trainable_token_indices in the LoraConfig to their ids, or "
        "modules_to_save=['embed_tokens', 'lm_head'].",
    )


def _inactive(ev: TrainerSnapshot) -> Finding | None:
    """Detect an adapter that is loaded and trainable while another one is active."""
    active = getattr(ev.model, "active_adapters", None)
    try:
        active = active() if callable(active) else active
    except ValueError:
        return None
    if not hasattr(ev.model, "peft_config") or not active:
        return None
    trained = {
        part for name in ev.trainable for part in name.split(".") if part in ev.model.peft_config
    }
    fresh = [name for name in ev.model.peft_config if _is_fresh(ev, name)]
    if trained and fresh and not trained & set(fresh):
        return Finding(
            WARN,
            f"the adapter {', '.join(fresh)} is new and not trained, and "
            f"{', '.join(sorted(trained))}, which was trained before, is",
            f"Call model.set_adapter({fresh[0]!r}) before training.",
        )
    if trained and not trained & set(active):
        return Finding(
            FAIL,
            f"the adapter {', '.join(sorted(trained))} is trainable, and {', '.join(active)} is "
            "the active one",
            f"Call model.set_adapter({sorted(trained)[0]!r}) before training.",
        )
    return None


def _is_fresh(ev: TrainerSnapshot, adapter: str) -> bool:
    """Return whether a LoRA adapter is still as initialised: B is zero."""
    parts = [p for n, p in ev.model.named_parameters() if f"lora_B.{adapter}." in n]
    return bool(parts) and not any(bool(part.detach().any()) for part in parts)


def trainable(ev: TrainerSnapshot) -> Finding:
    """Check that something is trained, and that it is what was intended."""
    numbers = _numbers(ev)
    total = sum(numbers.values())
    if not ev.trainable:
        peft = hasattr(ev.model, "peft_config")
        return Finding(
            FAIL,
            f"none of {total:,} parameters",
            "Load the adapter with PeftModel.from_pretrained(..., is_trainable=True), and do not "
            "disable it."
            if peft
            else "Give the trainer a peft_config, or thaw weights with requires_grad_(True).",
        )
    if ev.trainer.optimizer is not None:
        held = {id(p) for group in ev.trainer.optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in ev.trainable.items() if id(p) not in held]
        if lost:
            return Finding(
                FAIL,
                f"the optimizer does not hold {len(lost)} of {len(ev.trainable)} trainable "
                f"tensors, such as {lost[0]}",
                "Make the optimizer after the adapters, from the trainer's own model, or let the "
                "trainer make it.",
            )
    for look in (_nested, _inactive, _unmatched, _new_tokens):
        if found := look(ev):
            return found
    count = sum(numbers[name] for name in ev.trainable)
    places: Counter[str] = Counter()
    for name in ev.trainable:
        parts = [part for part in name.split(".") if part not in ("weight", "default", "bias")]
        lora = next((i for i, part in enumerate(parts) if part.startswith("lora_")), None)
        places[f"LoRA in {parts[lora - 1]}" if lora else parts[-1]] += numbers[name]
    shown = [name for name, _ in places.most_common(5)]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    where = ", ".join(shown).replace(", LoRA in ", ", ") + more
    return Finding(PASS, f"{count:,} of {total:,} parameters ({count / total:.2%}): {where}")


def _rate(ev: TrainerSnapshot) -> float:
    try:
        return float(ev.args.learning_rate)
    except (TypeError, ValueError):
        return 0.0


def _moved(ev: TrainerSnapshot) -> float | None:
    """Return the share of 16-bit weights that one step of Adam changes at the peak learning rate.

    In its first step, Adam moves each weight by the learning rate, whatever the gradient's size;
    later steps are of about the same size or smaller. None for weights of higher precision.
    """
    optimizer = str(getattr(ev.args.optim, "value", ev.args.optim)).lower()
    rate = _rate(ev)
    if "adam" not in optimizer or _EXACT.search(optimizer) or rate <= 0:
        return None
    moved = total = 0.0
    generator = torch.Generator().manual_seed(0)
    for parameter in ev.trainable.values():
        if parameter.dtype not in (torch.bfloat16, torch.float16) or parameter.dim() < 2:
            continue
        flat = parameter.detach().flatten()
        part = flat[:: max(1, flat.numel() // _SAMPLED)].cpu()
        sign = torch.randint(0, 2, part.shape, generator=generator) * 2 - 1
        after = (part.float() + rate * sign).to(part.dtype)
        moved += (after != part).float().mean().item() * flat.numel()
        total += flat.numel()
    return moved / total if total else None


def dtype(ev: TrainerSnapshot) -> Finding:
    """Check that the hardware supports the dtypes, and that they are suitable for training."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in ev.model.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    weights = sizes.most_common(1)[0][0]
    trained = {parameter.dtype for parameter in ev.trainable.values()}
    if torch.float16 in trained:
        return Finding(
            FAIL,
            "trained parameters are in float16: their gradients overflow, and small updates vanish",
            "Load the model with dtype=torch.float32 (and fp16=True in the arguments), or in "
            "bfloat16 where the hardware has it.",
        )
    if ev.args.fp16 and torch.bfloat16 in trained:
        return Finding(
            FAIL,
            "fp16=True, and trained parameters are in bfloat16: its gradient scaler cannot take "
            "their gradients, and raises at the first step",
            "After building the trainer, set parameter.data = parameter.data.float() for each "
            "parameter that is trained (TRL casts the adapters of quantized models to bfloat16). "
            "Or set bf16=True, where the hardware has it.",
        )
    share = _moved(ev)
    if share is not None and share < _MOVED:
        return Finding(
            WARN,
            f"trained weights are in bfloat16, and a step of {_rate(ev):g} moves {share:.0%} of "
            "them: the others' updates are lost to rounding",
            "Load the model with dtype=torch.float32 and keep bf16=True, which computes in "
            "bfloat16 and keeps the weights' digits; or train adapters.",
        )
    hardware = detect()
    on_gpu = ev.args.device.type == "cuda"
    if not on_gpu:
        hardware = replace(hardware, gpu_name=None, gpu_capability=None)
    choice = pick_dtype(hardware)
    plain = str(weights).removeprefix("torch.")
    mixed = "bfloat16" if ev.args.bf16 else "float16" if ev.args.fp16 else plain
    found = f"weights in {plain}, computing in {mixed}; {choice.reason}"
    if "bfloat16" in (plain, mixed) and choice.value is not torch.bfloat16:
        set_off = "Set bf16=False and load" if ev.args.bf16 else "Load"
        return Finding(
            FAIL if on_gpu and ev.args.bf16 else WARN,
            found,
            f"{set_off} the model with dtype={choice.value}: bfloat16 is emulated here, slowly.",
        )
    if "float16" in (plain, mixed) and not on_gpu:
        set_off = "Set fp16=False and load" if ev.args.fp16 else "Load"
        return Finding(WARN, found, f"{set_off} the model with dtype={choice.value}.")
    return Finding(PASS, found)


def quantized(ev: TrainerSnapshot) -> Finding:
    """Check that 4-bit layers on a CPU keep the layout that can be trained."""
    layers = ev.four_bit
    if not layers:
        return Finding(PASS, "no 4-bit layers")
    if ev.repacked:
        return Finding(
            FAIL,
            f"{ev.repacked} of {len(layers)} 4-bit layers have been repacked for inference: what "
            "is trained gets wrong gradients or none, without any error",
            "Load the model again, and call course_utils.models.keep_weights_trainable("
            "model) before its first forward.",
        )
    on_cpu = [layer for layer in layers if layer.weight.device.type == "cpu"]
    open_to = sum(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in on_cpu)
    if open_to:
        return Finding(
            WARN,
            f"{open_to} of {len(layers)} 4-bit layers would be repacked at the first evaluation or "
            "generation, and train on wrong gradients from then on",
            "Call course_utils.models.keep_weights_trainable(model) before training.",
        )
    return Finding(PASS, f"{len(layers)} 4-bit layers, none of which will be repacked")


@contextlib.contextmanager
def _quietly_offline() -> Iterator[None]:
    """Disable progress bars, warnings and requests to the hub for a base model's vocabulary."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with quiet_libraries():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _adapters_kept(ev: TrainerSnapshot) -> list[str]:
    """Return the trained parameters that are missing from an adapter's checkpoint."""
    kept: set[int] = set()
    names: set[str] = set()
    for adapter in ev.model.peft_config:
        with _quietly_offline():
            state = get_peft_model_state_dict(ev.model, adapter_name=adapter)
        kept |= {tensor.data_ptr() for tensor in state.values()}
        names |= {name.replace(f".{adapter}", "") for name in state}
    lost = []
    for name, parameter in ev.trainable.items():
        if parameter.data_ptr() in kept:
            continue
        plain = name
        for adapter in ev.model.peft_config:
            plain = plain.replace(f".{adapter}", "")
        plain = plain.replace("modules_to_save.", "").replace("original_module.", "")
        if plain in names or "prompt_encoder" in name or "token_adapter" in name:
            continue
        lost.append(name)
    return lost


def _other_base(ev: TrainerSnapshot) -> Finding | None:
    """Detect an adapter on weights that no checkpoint has: it would be loaded onto others."""
    if not untouched(ev) or not (lost := not_loaded(ev.base)):
        return None
    return Finding(
        WARN,
        f"{lost[0]} of {plural(lost[1], 'matrix', 'matrices')} under the adapter are not those of "
        "the checkpoint that the model names: the adapter would be loaded over other weights",
        "Save the changed model first (after merge_and_unload), load it from there, and train the "
        "adapter over that.",
    )


def untouched(ev: TrainerSnapshot) -> bool:
    """Return whether the weights are unchanged since they were loaded."""
    configs = getattr(ev.model, "peft_config", None)
    configs = configs.values() if isinstance(configs, dict) else ()
    # For example PiSSA, which moves part of the weights into the adapter.
    moved = any(isinstance(getattr(config, "init_lora_weights", True), str) for config in configs)
    return not moved and not ev.trainer.state.global_step


def _reloaded(ev: TrainerSnapshot) -> list[str]:
    """Return the trained parameters that are missing or different after saving and loading."""
    with tempfile.TemporaryDirectory() as folder, _quietly_offline():
        ev.base.save_pretrained(folder)
        again = type(ev.base).from_pretrained(folder, dtype=next(ev.base.parameters()).dtype)
    there = dict(again.named_parameters(remove_duplicate=False))
    lost = []
    for name, parameter in ev.base.named_parameters():
        if not parameter.requires_grad:
            continue
        other = there.get(name)
        same = (
            other is not None
            and other.shape == parameter.shape
            and torch.equal(other.detach().float(), parameter.detach().cpu().float())
        )
        if not same:
            lost.append(name)
    return lost


def saved(ev: TrainerSnapshot) -> Finding:
    """Check that what is trained is in the checkpoint, and survives loading."""
    if not ev.trainable:
        return not_judged("no parameter is trainable")
    if ev.trainer.is_deepspeed_enabled or ev.trainer.is_fsdp_enabled:
        return SILENT
    try:
        if isinstance(ev.model, PeftModel):
            lost = _adapters_kept(ev)
            if lost:
                return Finding(
                    FAIL,
                    f"{plural(len(lost), 'trained tensor')} are not in the adapter's checkpoint, "
                    f"such as {lost[0]}",
                    "Name their modules in modules_to_save of the LoraConfig instead of thawing "
                    "them.",
                )
            if found := _other_base(ev):
                return found
            return Finding(
                PASS, f"all {plural(len(ev.trainable), 'trained tensor')} are in the checkpoint"
            )
        size = sum(p.numel() for p in ev.model.parameters())
        if not hasattr(ev.base, "save_pretrained"):
            return SILENT
        if size > _SMALL or ev.args.device.type != "cpu" or _is_quantized(ev.base):
            state = {t.data_ptr() for t in ev.base.state_dict().values()}
            lost = [n for n, p in ev.trainable.items() if p.data_ptr() not in state]
            told = "are in the model's state"
        else:
            lost = _reloaded(ev)
            told = "are the same after saving and loading"
    except Exception as error:  # some models cannot be saved
        return Finding(
            WARN,
            f"a trial of saving and loading raised {type(error).__name__}: {error}"[:300],
            "Save the model before training, and load it again, to see what stops it.",
        )
    if lost:
        return Finding(
            FAIL,
            f"{plural(len(lost), 'trained tensor')} do not come back when the model is saved and "
            f"loaded, such as {lost[0]}",
            f"Make them part of the model's class (here {type(ev.base).__name__}), so that "
            "from_pretrained finds a place for them.",
        )
    return Finding(PASS, f"all {plural(len(ev.trainable), 'trained tensor')} {told}")


def _is_quantized(model: Any) -> bool:
    return bool(getattr(model, "is_quantized", False)) or any(
        type(p).__name__ in ("Params4bit", "Int8Params") for p in nn.Module.parameters(model)
    )
