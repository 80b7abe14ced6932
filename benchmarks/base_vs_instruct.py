"""What does tuning take from a chat model, and what gives it back? Countermeasures, two seeds.

    python -m benchmarks.base_vs_instruct             every row that is not measured yet
    python -m benchmarks.base_vs_instruct --seeds 0   one seed

A row is one training of the chat model by notebook 07's recipe (NF4 with double quantization, LoRA,
paged 8-bit AdamW), with one thing changed, on answers in a style that is new to it; or such a
training with only a part of its change applied. Measured on held-out data: the new style and the
right answers, asked as in the training; general instructions that a program can check, refusals,
and how far the next-token distributions have moved, asked with the model's own template. Rows go to
results/base_vs_instruct.jsonl as they come; a row that is there is not measured again. Shown in
notebook 07.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from peft.helpers import rescale_adapter_scale
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.data._answers import GUANACO, SYSTEM, in_style, tells, yoda_answer
from course_utils.errors import unknown
from course_utils.hardware import detect, pick_dtype, tier
from course_utils.models._catalog import recipe
from course_utils.models._running import Runner
from course_utils.results import append_row, whole_rows
from course_utils.scoring import (
    follows_instructions,
    is_refusal,
    kl_divergence,
    next_token_log_probs,
)
from course_utils.training import faster_on_cpu

RESULTS = Path(__file__).parent / "results" / "base_vs_instruct.jsonl"
ROLE = "tuning_chat"
# What a variant changes of the recipe: `form` is how a pair is written, `general` the share of rows
# that are the model's own replies to other instructions, `plain` the share that is answered without
# the style under another system prompt, `rate` and `steps` multiply, `r` is LoRA's rank.
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "its own template": {"form": "template"},
    "its own template, system prompt": {"form": "system"},
    "system prompt with contrast": {"form": "system", "plain": 0.5},
    "system prompt with contrast, twice the steps": {"form": "system", "plain": 0.5, "steps": 2},
    "general data mixed in": {"general": 0.25},
    "its own template, general data mixed in": {"form": "template", "general": 0.25},
    "rank 2": {"r": 2},
    "half of the learning rate": {"rate": 0.5},
    "a fifth of the learning rate": {"rate": 0.2},
}
# Of these, a part of the change is applied, too: the weights between untouched and tuned.
PARTS = {"recipe": (0.25, 0.5, 0.75), "its own template": (0.5,)}
# Of the plain answers every other one stands under this message, the rest under the template's own.
# Whether the model listens is asked with yet another one.
PLAIN = "Answer in a short, plain sentence."
OPPOSITE = "Answer in plain English. Do not talk like Yoda."
STYLED, TOKENS, COMPARED_TOKENS = 48, 96, 32
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load() -> tuple[Any, Any]:
    """The model as the recipe loads it, and its tokenizer with a pad token that is not its end."""
    tokenizer = load_tokenizer(ROLE)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        spare = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>", "<|padding|>")
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next(
            token for token in spare if token in vocabulary and token != tokenizer.eos_token
        )
    return load_model(ROLE, "nf4-double", quiet=True), tokenizer


def written(tokenizer: Any, prompt: str, reply: str, form: str) -> str:
    """A pair as one text, its EOS token included."""
    if form == "guanaco":
        return f"{GUANACO.replace('{prompt}', prompt)} {reply}{tokenizer.eos_token}"
    system = {"system": SYSTEM, "plain": PLAIN}.get(form)
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    return tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")


class Scales:
    """What is measured of each model, on the same held-out data."""

    def __init__(self, model: Any, tokenizer: Any):
        self.tokenizer = tokenizer
        self.styled = load_data("countries")["held_out"].shuffle(seed=0).select(range(STYLED))
        self.instructions = load_data("instructions")["test"]
        self.requests = load_data("requests")["test"]
        ask = Runner(model, tokenizer, max_new_tokens=TOKENS)
        untouched = ask(self.instructions["prompt"])
        self.texts = (
            [ask.prompt(prompt) for prompt in self.instructions["prompt"]],
            [self._begin(reply) for reply in untouched],
        )
        self.before = next_token_log_probs(model, tokenizer, *self.texts)
        self.general = ask(load_data("instructions")["train"]["prompt"])

    def _begin(self, reply: str) -> str:
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"][:COMPARED_TOKENS]
        return self.tokenizer.decode(ids)

    def measure(self, model: Any, form: str) -> dict[str, Any]:
        """Each measure as a list, an entry for each item, so that items can be paired."""
        ask = Runner(model, self.tokenizer, max_new_tokens=TOKENS)
        style = {
            "guanaco": {"template": GUANACO},
            "template": {},
            "system": {"system": SYSTEM},
        }[form]
        replies = ask(self.styled["question"], max_new_tokens=32, **style)
        general = ask(self.instructions["prompt"])
        requests = ask(self.requests["prompt"], max_new_tokens=40)
        after = next_token_log_probs(model, self.tokenizer, *self.texts)
        checks = self.instructions["checks"]
        told = {}
        if form == "system":
            others = {
                "in style, told the opposite": {"system": OPPOSITE},
                "in style, its own message": {},
            }
            for name, how in others.items():
                heard = ask(self.styled["question"], max_new_tokens=32, **how)
                told[name] = [int(in_style(reply)) for reply in heard]
        return {
            **told,
            "in style": [int(in_style(reply)) for reply in replies],
            "right": [
                int(tells(reply, answer))
                for reply, answer in zip(replies, self.styled["answer"], strict=True)
            ],
            "followed": [
                int(follows_instructions(reply, wanted))
                for reply, wanted in zip(general, checks, strict=True)
            ],
            "refused": [int(is_refusal(reply)) for reply in requests],
            "kl": [round(value, 4) for value in kl_divergence(self.before, after)],
        }


def plain_answer(row: dict[str, str]) -> str:
    """The answer to a row of `countries` as a common sentence."""
    return f"{row['cue']} {row['answer']}."


def texts(
    tokenizer: Any,
    scales: Scales,
    count: int,
    seed: int,
    form: str,
    general: float = 0.0,
    plain: float = 0.0,
) -> Any:
    """So many training texts, of which some shares are general, or plain answers."""
    rows = load_data("countries")["train"].shuffle(seed=seed)
    others, plains = round(count * general), round(count * plain)
    found = []
    for index, row in enumerate(rows.select(range(count - others))):
        if index < plains:
            how, reply = ("plain" if index % 2 else "template"), plain_answer(row)
        else:
            how, reply = form, yoda_answer(row)
        found.append(written(tokenizer, row["question"], reply, how))
    prompts = load_data("instructions")["train"]["prompt"]
    for index in range(others):
        place = index % len(prompts)
        found.append(written(tokenizer, prompts[place], scales.general[place], "template"))
    return datasets.Dataset.from_dict({"text": found}).shuffle(seed=seed)


def train(seed: int, scales: Scales, variant: str, tokenizer: Any) -> tuple[Any, float]:
    """A model tuned by the recipe with a variant's changes, and the seconds it took."""
    changes = {"form": "guanaco", "r": 16, "rate": 1.0, "steps": 1, **VARIANTS[variant]}
    plan = recipe("guanaco", tier().value)
    steps = plan["steps"] * changes["steps"]
    model, _ = load()
    on_cpu = model.device.type == "cpu"
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=not on_cpu)
    count = steps * plan["batch"] * plan["accumulation"]
    mixture = {name: changes[name] for name in ("general", "plain") if name in changes}
    rows = texts(tokenizer, scales, count, seed, changes["form"], **mixture)
    set_seed(seed)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            optim="paged_adamw_8bit",
            max_steps=steps,
            per_device_train_batch_size=plan["batch"],
            gradient_accumulation_steps=plan["accumulation"],
            learning_rate=plan["learning_rate"] * changes["rate"],
            warmup_steps=0.1,
            lr_scheduler_type="linear",
            max_length=512,
            gradient_checkpointing=not on_cpu,
            use_cpu=on_cpu,
            bf16=not on_cpu and pick_dtype().value == torch.bfloat16,
            fp16=not on_cpu and pick_dtype().value == torch.float16,
            seed=seed,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=changes["r"], lora_alpha=16, lora_dropout=0.05, target_modules=PROJECTIONS
        ),
    )
    faster_on_cpu(trainer)
    start = time.perf_counter()
    trainer.train()
    return trainer.model.eval(), time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("variants", nargs="*", help=f"of: {', '.join(VARIANTS)}; by default all")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args(argv)
    for name in args.variants:
        if name not in VARIANTS:
            raise unknown("variant", name, list(VARIANTS))
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    done = {(row["seed"], row["variant"], row["part"]) for row in whole_rows(args.results)}
    missing = [
        (seed, name)
        for seed in args.seeds
        for name in args.variants or VARIANTS
        if any((seed, name, part) not in done for part in (1.0, *PARTS.get(name, ())))
    ]
    if not missing and (None, "untouched", 0.0) in done:
        print("All measured.")
        return 0
    untouched, tokenizer = load()
    scales = Scales(untouched, tokenizer)
    about = {
        "model": untouched.name_or_path,
        "machine": detect().gpu_name or f"{platform.machine()}, {detect().cpu_cores} cores",
        "torch": torch.__version__,
    }
    if (None, "untouched", 0.0) not in done:
        row = scales.measure(untouched, "template")
        append_row(
            args.results, {"variant": "untouched", "seed": None, "part": 0.0, **about, **row}
        )
    for seed, name in missing:
        model, seconds = train(seed, scales, name, tokenizer)
        form = VARIANTS[name].get("form", "guanaco")
        for part in (1.0, *PARTS.get(name, ())):
            if (seed, name, part) in done:
                continue
            with rescale_adapter_scale(model, part):
                row = scales.measure(model, form)
            row = {"variant": name, "seed": seed, "part": part, **about, **row}
            append_row(args.results, {**row, "train_s": round(seconds, 1)})
            shares = {key: sum(row[key]) / len(row[key]) for key in ("in style", "followed", "kl")}
            print(name, seed, part, {key: round(value, 2) for key, value in shares.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
