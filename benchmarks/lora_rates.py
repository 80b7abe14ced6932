"""Which LoRA settings learn more in a few steps, each at its own learning rate?

    python -m benchmarks.lora_rates                      every row that is not measured yet
    python -m benchmarks.lora_rates --seeds 0 "r=3"      one variant with one seed

A row is one adapter on the chat model, trained for eight steps of four sentences on Yoda's word
order with one learning rate and one seed, which draws the sentences and the adapter's start. Its
score is the loss on 64 sentences without a content word of the training data. Every variant gets
the same sentences with the same seed, and the same grid of rates with the first seed; where its
best rate lies at the grid's edge, the grid goes on. The other seeds get the best rate of the first
and the rates beside it. Rows go to results/lora_rates.jsonl as they come; a row that is there is
not measured again. Shown in notebook 02.
"""

from __future__ import annotations

import argparse
import logging
import platform
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model

from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.hardware import detect
from course_utils.results import append_row, whole_rows

RESULTS = Path(__file__).parent / "results" / "lora_rates.jsonl"
STEPS, BATCH, HELD_OUT = 8, 4, 64
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
BEYOND = (1.25e-4, 2.5e-4, 1.6e-2, 3.2e-2)  # only where the best rate lies at the grid's edge
USUAL: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "r=3": {"r": 3, "lora_alpha": 6},
    "r=64": {"r": 64, "lora_alpha": 128},
    "q_proj, v_proj": {"target_modules": ["q_proj", "v_proj"]},
    "norms too": {"modules_to_save": NORMS},
    "alpha=16": {"lora_alpha": 16},
    "rsLoRA": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "PiSSA": {"init_lora_weights": "pissa_niter_4"},
    "DoRA": {"use_dora": True},
    "NF4 base": {},
    "LoftQ": {},
}
ON_NF4 = ("NF4 base", "LoftQ")


@torch.no_grad()
def start_from_loss(tuned: Any, originals: dict[str, torch.Tensor]) -> None:
    """LoftQ, one round: each adapter starts as what quantization took from its layer."""
    for name, layer in tuned.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        original = originals[f"{name.removeprefix('base_model.model.')}.weight"].float()
        rounded = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        r, factor = layer.r["default"], layer.scaling["default"]
        U, S, V = torch.svd_lowrank((original - rounded) / factor, q=r, niter=4)
        layer.lora_B["default"].weight.copy_(U * S.sqrt())
        layer.lora_A["default"].weight.copy_((V * S.sqrt()).T)


def batches(tokenizer: Any, pairs: list[tuple[str, str]], size: int) -> Iterator[dict[str, Any]]:
    """Pairs as padded tensors; the response and its EOS token are the targets."""
    for start in range(0, len(pairs), size):
        rows = []
        for sentence, response in pairs[start : start + size]:
            messages = [
                {"role": "system", "content": "Rewrite the sentence."},
                {"role": "user", "content": sentence},
            ]
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = tokenizer(response + tokenizer.eos_token, add_special_tokens=False)
            rows.append((prompt, answer["input_ids"]))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        made: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for prompt, answer in rows:
            free = width - len(prompt) - len(answer)
            made["input_ids"].append(prompt + answer + [tokenizer.eos_token_id] * free)
            made["labels"].append([-100] * len(prompt) + answer + [-100] * free)
            made["attention_mask"].append([1] * (width - free) + [0] * free)
        yield {name: torch.tensor(values) for name, values in made.items()}


@torch.no_grad()
def loss_on(model: Any, parts: list[dict[str, Any]]) -> float:
    """The mean loss over all targets."""
    model.eval()
    total = count = 0.0
    for part in parts:
        part = {name: tensor.to(model.device) for name, tensor in part.items()}
        targets = (part["labels"] != -100).sum().item()
        total += model(**part).loss.item() * targets
        count += targets
    return total / count


def measure(
    variant: str, rate: float, seed: int, before: float | None = None, held_out: int = HELD_OUT
) -> dict[str, Any]:
    """Train one adapter and score it; `before` is the untrained one's loss where it is known."""
    tokenizer = load_tokenizer("chat", quiet=True)
    data = load_data("yoda")
    pairs = list(zip(data["train"]["sentence"], data["train"]["yoda"], strict=True))
    pairs = random.Random(seed).sample(pairs, STEPS * BATCH)
    unseen = data["unseen"].select(range(held_out))
    parts = list(batches(tokenizer, list(zip(unseen["sentence"], unseen["yoda"], strict=True)), 16))
    model = load_model("chat", "nf4" if variant in ON_NF4 else None, quiet=True)
    torch.manual_seed(seed)
    tuned = get_peft_model(model, LoraConfig(**(USUAL | VARIANTS[variant])))
    if variant == "LoftQ":
        start_from_loss(tuned, load_model("chat", quiet=True).state_dict())
    row: dict[str, Any] = {"variant": variant, "learning_rate": rate, "seed": seed}
    row["trainable"] = tuned.get_nb_trainable_parameters()[0]
    row["before"] = round(loss_on(tuned, parts), 4) if before is None else before
    optimizer = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=rate)
    start = time.perf_counter()
    tuned.train()
    for part in batches(tokenizer, pairs, BATCH):
        tuned(**{name: tensor.to(model.device) for name, tensor in part.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    row["train_seconds"] = round(time.perf_counter() - start, 1)
    row["after"] = round(loss_on(tuned, parts), 4)
    machine = detect()
    row |= {"steps": STEPS, "batch": BATCH, "held_out": held_out, "dtype": str(model.dtype)}
    row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
    return row | {"torch": torch.__version__, "python": platform.python_version()}


def after(rows: list[dict[str, Any]], variant: str, seed: int) -> dict[float, float]:
    """A variant's losses with one seed, by learning rate."""
    found = {
        row["learning_rate"]: row["after"]
        for row in rows
        if (row["variant"], row["seed"]) == (variant, seed)
    }
    return dict(sorted(found.items()))


def at_the_edge(rows: list[dict[str, Any]], variant: str, seed: int) -> float | None:
    """The next rate beyond the grid if the best one lies at its edge, or None."""
    losses = after(rows, variant, seed)
    best = min(losses, key=lambda rate: losses[rate])
    grid = sorted({*RATES, *BEYOND})
    if best == min(losses) and best > grid[0]:
        return grid[grid.index(best) - 1]
    if best == max(losses) and best < grid[-1]:
        return grid[grid.index(best) + 1]
    return None


def around_the_best(rows: list[dict[str, Any]], variant: str, seed: int) -> list[float]:
    """The best rate with one seed, and the measured ones beside it."""
    losses = after(rows, variant, seed)
    rates = list(losses)
    place = rates.index(min(losses, key=lambda rate: losses[rate]))
    return rates[max(0, place - 1) : place + 2]


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of: {'; '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if wrong := [name for name in args.variants if name not in VARIANTS]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {'; '.join(VARIANTS)}")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    logging.getLogger("transformers").setLevel(logging.ERROR)

    def fill(variant: str, rate: float, seed: int) -> None:
        rows = whole_rows(args.results)
        if any(
            (r["variant"], r["learning_rate"], r["seed"]) == (variant, rate, seed) for r in rows
        ):
            return
        same = (r["before"] for r in rows if (r["variant"], r["seed"]) == (variant, seed))
        row = measure(variant, rate, seed, next(same, None))
        append_row(args.results, row)
        print({key: row[key] for key in ("variant", "learning_rate", "seed", "before", "after")})

    chosen = args.variants or list(VARIANTS)
    first, *others = args.seeds
    for variant in chosen:
        for rate in RATES:
            fill(variant, rate, first)
        while further := at_the_edge(whole_rows(args.results), variant, first):
            fill(variant, further, first)
    for seed in others:
        for variant in chosen:
            for rate in around_the_best(whole_rows(args.results), variant, first):
                fill(variant, rate, seed)


if __name__ == "__main__":
    main()
