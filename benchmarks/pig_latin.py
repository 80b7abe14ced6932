"""Does a small model learn Pig Latin better if its words are spelled? Four formats, tuned alike.

    python -m benchmarks.pig_latin                         every row that is not measured yet
    python -m benchmarks.pig_latin --tokens 20000 "plain"  one format

A row is one training of the chat model with SFTTrainer on the course's sentences, stopped after
`--tokens` tokens, padding included: that is nearly the same time for all, and unlike time it does
not depend on what else the machine does. The learning rate falls to zero on the way.

First each format is trained at each learning rate with seed 0, and the loss on 64 validation
sentences is noted; where the best rate lies at the grid's edge, the grid goes on. Then each format
is trained with three other seeds at its best rate, and its greedy replies to sentences of unseen
words are scored. So the seeds that are scored had no part in choosing the rate. Rows go to
results/pig_latin.jsonl as they come; a row that is there is not measured again. Shown in notebook
03.1.
"""

from __future__ import annotations

import argparse
import logging
import platform
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
RATES = (2e-3, 4e-3, 8e-3)
BEYOND = (2.5e-4, 5e-4, 1e-3, 1.6e-2, 3.2e-2)  # only where the best rate lies at the grid's edge
SCORED_SEEDS = (1, 2, 3)
WATCHED = 64  # validation sentences


def same(text: str) -> str:
    """A text as it is."""
    return text


Format = tuple[Callable[[str], str], Callable[[str], str], Callable[[str], str]]
# How a sentence is asked, how the answer is written, and how a reply is read.
FORMATS: dict[str, Format] = {
    "plain": (same, same, same),
    "spelled prompt": (spell, same, same),
    "spelled answer": (same, spell, unspell),
    "both spelled": (spell, spell, unspell),
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


def new_word_accuracy(replies: list[str], rows: Any, known: set[str]) -> float:
    """The share of words right among those whose English is not in the training data, 0 to 1."""
    right = total = 0
    for reply, english, wanted in zip(replies, rows["sentence"], rows["pig_latin"], strict=True):
        given = [*reply.split(), *[""] * len(wanted.split())]
        for word, target, found in zip(english.split(), wanted.split(), given, strict=False):
            if word.lower().strip(".,!?") not in known:
                total += 1
                right += found == target
    return right / total


def measure(name: str, rate: float, seed: int, tokens: int, examples: int) -> dict[str, Any]:
    """Train one format; note its validation loss and, where there are examples, its scores."""
    ask, write, read = FORMATS[name]
    set_seed(seed)
    tokenizer = load_tokenizer("chat", quiet=True)
    model = load_model("chat", quiet=True)
    data = load_data("pig_latin")

    def as_messages(rows: Any) -> datasets.Dataset:
        """Rows of the dataset as prompts and completions of this format."""
        return datasets.Dataset.from_list(
            [
                {
                    "prompt": [
                        {"role": "system", "content": SYSTEM},
                        {"role": "user", "content": ask(english)},
                    ],
                    "completion": [{"role": "assistant", "content": write(translated)}],
                }
                for english, translated in zip(rows["sentence"], rows["pig_latin"], strict=True)
            ]
        )

    on_cpu = model.device.type == "cpu"
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
        max_steps=100_000,  # the budget ends it
        include_num_input_tokens_seen="all",
        learning_rate=rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        per_device_eval_batch_size=16,
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=as_messages(data["train"]),
        eval_dataset=as_messages(data["validation"].select(range(WATCHED))),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[Budget(tokens, rate)],
    )
    faster_on_cpu(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {"variant": name, "learning_rate": rate, "seed": seed, "tokens": tokens}
    row |= {"steps": trainer.state.global_step, "train_seconds": round(seconds, 1)}
    row["validation_loss"] = round(trainer.evaluate()["eval_loss"], 4)
    row["examples"] = examples
    if examples:
        held_out = data["unseen"].select(range(examples))
        ask_model = Runner(trainer.model.eval(), tokenizer)
        replies = ask_model(
            [ask(text) for text in held_out["sentence"]], system=SYSTEM, max_new_tokens=160
        )
        replies = [read(reply) for reply in replies]
        known = {
            word.lower().strip(".,!?")
            for sentence in data["train"]["sentence"]
            for word in sentence.split()
        }
        row["exact"] = round(exact_match(replies, held_out["pig_latin"]), 4)
        row["words"] = round(word_accuracy(replies, held_out["pig_latin"]), 4)
        row["new_words"] = round(new_word_accuracy(replies, held_out, known), 4)
        row["first"] = replies[0]
    machine = detect()
    row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
    return row | {"torch": torch.__version__, "python": platform.python_version()}


def losses(rows: list[dict[str, Any]], name: str, tokens: int) -> dict[float, float]:
    """A format's validation losses with seed 0, by learning rate."""
    found = {
        row["learning_rate"]: row["validation_loss"]
        for row in rows
        if (row["variant"], row["seed"], row["tokens"]) == (name, 0, tokens)
    }
    return dict(sorted(found.items()))


def best_rate(measured: dict[float, float]) -> float:
    """The learning rate with the lowest loss."""
    return min(measured, key=lambda rate: measured[rate])


def at_the_edge(measured: dict[float, float]) -> float | None:
    """The next rate beyond the grid if the best one lies at its edge, or None."""
    best, grid = best_rate(measured), sorted({*RATES, *BEYOND})
    if best == min(measured) and best > grid[0]:
        return grid[grid.index(best) - 1]
    if best == max(measured) and best < grid[-1]:
        return grid[grid.index(best) + 1]
    return None


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="*", help=f"of: {'; '.join(FORMATS)}")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--examples", type=int, default=200, help="sentences of unseen words")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SCORED_SEEDS, help="to be scored")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if wrong := [name for name in args.variants if name not in FORMATS]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {'; '.join(FORMATS)}")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()

    def fill(name: str, rate: float, seed: int, examples: int) -> None:
        done = {
            (row["variant"], row["learning_rate"], row["seed"], row["tokens"])
            for row in whole_rows(args.results)
        }
        if (name, rate, seed, args.tokens) in done:
            return
        row = measure(name, rate, seed, args.tokens, examples)
        append_row(args.results, row)
        shown = ("variant", "learning_rate", "seed", "validation_loss", "new_words")
        print({key: row[key] for key in shown if key in row}, flush=True)

    chosen = args.variants or list(FORMATS)
    for name in chosen:
        for rate in args.rates:
            fill(name, rate, 0, 0)
        if tuple(args.rates) == RATES:
            while further := at_the_edge(losses(whole_rows(args.results), name, args.tokens)):
                fill(name, further, 0, 0)
    for seed in args.seeds:
        for name in chosen:
            rate = best_rate(losses(whole_rows(args.results), name, args.tokens))
            fill(name, rate, seed, args.examples)


if __name__ == "__main__":
    main()
