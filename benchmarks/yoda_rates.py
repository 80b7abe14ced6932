"""How many of Yoda's lines does the chat model turn back into plain English, by learning rate?

    python -m benchmarks.yoda_rates            every rate that is not measured yet
    python -m benchmarks.yoda_rates 2e-3       one of them

A row is notebook 03.2's training with one learning rate: LoRA on all linear layers, 60 steps of 8
sentences, linear decay without a warm-up, float32, seed 0. Its score is how many of the greedy
replies to 100 lines without a content word of the training data are right. Rows go to
results/yoda_rates.jsonl as they come; a rate that is there is not measured again. The range of
rates that the check of exercise yoda.trainer accepts rests on them.
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
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from course_utils import load_data, load_model, load_tokenizer
from course_utils.hardware import detect
from course_utils.models._running import Runner
from course_utils.results import append_row, whole_rows
from course_utils.training import faster_on_cpu

RESULTS = Path(__file__).parent / "results" / "yoda_rates.jsonl"
RATES = (2e-4, 1e-3, 2e-3, 4e-3)
SYSTEM = "Say it in plain English."


def as_chat(row: dict[str, str]) -> dict[str, Any]:
    """A row of the dataset as a conversation."""
    system, user = {"role": "system", "content": SYSTEM}, row["yoda_extra"]
    return {
        "prompt": [system, {"role": "user", "content": user}],
        "completion": [{"role": "assistant", "content": row["sentence"]}],
    }


def measure(rate: float, steps: int, examples: int) -> dict[str, Any]:
    """Train with one learning rate and score the replies."""
    data = load_data("yoda")
    model = load_model("chat", dtype=torch.float32, quiet=True)
    tokenizer = load_tokenizer("chat", quiet=True)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=rate,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=data["train"].map(as_chat, remove_columns=data["train"].column_names),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    faster_on_cpu(trainer)
    start = time.perf_counter()
    trainer.train()
    row: dict[str, Any] = {"learning_rate": rate, "steps": steps, "batch": 8, "seed": 0}
    row["train_seconds"] = round(time.perf_counter() - start, 1)
    unseen = data["unseen"].select(range(examples))
    ask = Runner(trainer.model.eval(), tokenizer)
    replies = ask(list(unseen["yoda_extra"]), system=SYSTEM, max_new_tokens=32)
    pairs = zip(replies, unseen["sentence"], strict=True)
    row |= {"right": sum(a == b for a, b in pairs), "examples": examples}
    machine = detect()
    row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
    return row | {"torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--examples", type=int, default=100, help="lines to be scored")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for rate in args.rates:
        done = {(row["learning_rate"], row["steps"]) for row in whole_rows(args.results)}
        if (rate, args.steps) not in done:
            row = measure(rate, args.steps, args.examples)
            append_row(args.results, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
