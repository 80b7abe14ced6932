"""What makes a small model learn Pig Latin? Formats and settings, each with as much computation.

    python -m benchmarks.pig_latin                         every row that is not measured yet
    python -m benchmarks.pig_latin --tokens 20000 "plain"  one of them

A row is one training of the chat model with SFTTrainer on the course's sentences, stopped after
`--tokens` tokens, padding included: that is nearly the same time for all, and unlike time it does
not depend on what else the machine does. The learning rate falls to zero on the way. Scores are
those of greedy replies on held-out sentences. Rows go to results/pig_latin.jsonl as they come; a
row that is there is not measured again. Shown in notebook 03.1.
"""

from __future__ import annotations

import argparse
import logging
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.data._spelling import spell, unspell
from course_utils.hardware import detect
from course_utils.models._running import Runner
from course_utils.results import append_row, whole_rows
from course_utils.scoring import exact_match, word_accuracy
from course_utils.training import faster_on_cpu

RESULTS = Path(__file__).parent / "results" / "pig_latin.jsonl"
SYSTEM = "Translate into Pig Latin."


def same(text: str) -> str:
    """A text as it is."""
    return text


def both(text: str) -> str:
    """A text, then its spelling."""
    return f"{text}\n{spell(text)}"


Format = tuple[Callable[[str], str], Callable[[str], str], Callable[[str], str]]
# How a sentence is asked, how the answer is written, and how a reply is read.
FORMATS: dict[str, Format] = {
    "plain": (same, same, same),
    "word lists": (same, same, same),
    "spelled prompt": (spell, same, same),
    "spelled answer": (same, spell, unspell),
    "both spelled": (spell, spell, unspell),
}
USUAL = {
    "r": 16,
    "learning_rate": 4e-3,
    "batch": 4,
    "packing": False,
    "sampling": "group_by_length",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain, lr 2e-3": {"learning_rate": 2e-3},
    "word lists": {},
    "spelled prompt": {},
    "spelled answer": {},
    "both spelled": {},
    "both spelled, packed": {"packing": True},
    "both spelled, random order": {"sampling": "random"},
    "both spelled, curriculum": {"sampling": "sequential"},
    "both spelled, r=4": {"r": 4},
    "both spelled, r=64": {"r": 64},
    "both spelled, lr 1e-3": {"learning_rate": 1e-3},
    "both spelled, lr 2e-3": {"learning_rate": 2e-3},
    "both spelled, lr 8e-3": {"learning_rate": 8e-3},
    "both spelled, batch 2": {"batch": 2},
    "both spelled, batch 8": {"batch": 8},
}


class Budget(TrainerCallback):
    """Ends a training after so many tokens, its learning rate falling linearly to zero."""

    def __init__(self, tokens: int, rate: float, warm_up: int = 5):
        self.tokens, self.rate, self.warm_up = tokens, rate, warm_up

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        spent = state.num_input_tokens_seen / self.tokens
        factor = min(1.0, (state.global_step + 1) / self.warm_up) * max(0.0, 1 - spent)
        for group in optimizer.param_groups:
            group["lr"] = self.rate * factor

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.num_input_tokens_seen >= self.tokens:
            control.should_training_stop = True


def pairs(rows: Any, name: str) -> list[tuple[str, str]]:
    """What a variant trains on: sentences with their translations, or words out of them.

    "word lists" has lists of six words, "curriculum" 60 lists each of one, two, three and four
    words and then the sentences, the short ones first.
    """
    pairs = list(zip(rows["sentence"], rows["pig_latin"], strict=True))
    words: dict[str, str] = {}
    for english, translated in pairs:
        words |= {
            a.strip(".,!?"): b.strip(".,!?")
            for a, b in zip(english.split(), translated.split(), strict=True)
        }
    rng, known = random.Random(0), list(words)

    def lists(length: int, count: int) -> list[tuple[str, str]]:
        drawn = (rng.sample(known, length) for _ in range(count))
        return [(" ".join(some), " ".join(words[word] for word in some)) for some in drawn]

    if name.startswith("word lists"):
        return lists(6, 4000)
    if name.endswith("curriculum"):
        rng.shuffle(pairs)
        start = [pair for length in (1, 2, 3, 4) for pair in lists(length, 60)]
        return start + sorted(pairs[:640], key=lambda pair: len(pair[0]))
    return pairs


def measure(name: str, tokens: int, examples: int) -> dict[str, Any]:
    """Train one variant and score it."""
    kind = name.split(",")[0]
    settings = {**USUAL, **VARIANTS[name]}
    ask, write, read = FORMATS[kind]
    set_seed(0)
    tokenizer = load_tokenizer("chat", quiet=True)
    model = load_model("chat", quiet=True)
    data = load_data("pig_latin")
    rows = [
        {
            "prompt": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": ask(english)},
            ],
            "completion": [{"role": "assistant", "content": write(translated)}],
        }
        for english, translated in pairs(data["train"], name)
    ]
    on_cpu = model.device.type == "cpu"
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10,
        max_steps=100_000,  # the budget ends it
        include_num_input_tokens_seen="all",
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        per_device_train_batch_size=settings["batch"],
        packing=settings["packing"],
        train_sampling_strategy=settings["sampling"],
        max_length=192 if settings["packing"] else 512,
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
    )
    adapter = LoraConfig(r=settings["r"], lora_alpha=2 * settings["r"], target_modules="all-linear")
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Budget(tokens, settings["learning_rate"])],
    )
    faster_on_cpu(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    ask_model = Runner(trainer.model.eval(), tokenizer)
    row: dict[str, Any] = {"variant": name, **settings, "tokens": tokens}
    row |= {"steps": trainer.state.global_step, "train_seconds": round(seconds, 1)}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    row["train_loss"] = round(losses[-1], 4) if losses else None
    for split in ("test", "unseen"):
        held_out = data[split].select(range(examples))
        replies = ask_model(
            [ask(text) for text in held_out["sentence"]], system=SYSTEM, max_new_tokens=160
        )
        replies = [read(reply) for reply in replies]
        row[f"{split}_exact"] = round(exact_match(replies, held_out["pig_latin"]), 4)
        row[f"{split}_words"] = round(word_accuracy(replies, held_out["pig_latin"]), 4)
        row[f"{split}_first"] = replies[0]
    machine = detect()
    row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
    row |= {"examples": examples, "torch": torch.__version__, "python": platform.python_version()}
    return row


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of: {'; '.join(VARIANTS)}")
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--examples", type=int, default=30, help="held-out sentences per split")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if wrong := [name for name in args.variants if name not in VARIANTS]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {'; '.join(VARIANTS)}")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    done = {(row["variant"], row["tokens"]) for row in whole_rows(args.results)}
    for name in args.variants or VARIANTS:
        if (name, args.tokens) in done:
            continue
        row = measure(name, args.tokens, args.examples)
        append_row(args.results, row)
        print({key: row[key] for key in ("variant", "steps", "test_words", "unseen_words")})


if __name__ == "__main__":
    main()
