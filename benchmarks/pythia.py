"""Does instruction tuning reach what pre-training has put in? Base, tuned and control, three seeds.

    python -m benchmarks.pythia             what is not measured yet, of seeds 0, 1 and 2
    python -m benchmarks.pythia --seeds 0   one seed

A seed is a pre-training of the base and of its control, and the tunings of both. Seed 0 is the one
that travels with the course; the others are pre-trained here, eight minutes a model on two cores,
and kept in the course's cache. Each tuning learns to answer questions about some countries and is
asked, greedily, about others. Rows go to results/pythia.jsonl as they come; a row that is there is
not measured again. Shown in notebook 06.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from benchmarks.pretraining import train as pretraining
from benchmarks.pretraining.recall import right
from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.data._facts import domains, split_of_countries
from course_utils.hardware import detect
from course_utils.models._packaged import cache_dir
from course_utils.models._running import Runner
from course_utils.results import append_row, whole_rows
from course_utils.training import faster_on_cpu

RESULTS = Path(__file__).parent / "results" / "pythia.jsonl"
QA = "Question: {prompt}\nAnswer:"
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
STEPS, BATCH = 240, 16
# Random weights know nothing that could be brought out; they take longer to learn the pairs.
STEPS_FROM_NOTHING = 1000
# What is tuned, and how: model, adapter (None for all weights), learning rate, and which of the
# training questions.
TUNINGS: dict[str, tuple[str, dict[str, Any] | None, float, str]] = {
    "LoRA": ("base", LORA, 3e-3, "all"),
    "LoRA on attention": ("base", {**LORA, "target_modules": ["query_key_value"]}, 3e-3, "all"),
    "all weights": ("base", None, 5e-4, "all"),
    "random weights, all tuned": ("random", None, 5e-4, "all"),
    "LoRA, 19 countries": ("base", LORA, 3e-3, "19 countries"),
    "LoRA, no currency": ("base", LORA, 3e-3, "no currency"),
    "control, LoRA": ("control", LORA, 3e-3, "all"),
}


def folder(seed: int, name: str) -> Path:
    """Where a seed's base or control lies; pre-trained first where it is missing."""
    if seed == 0:
        return pretraining.MODELS / name
    made = cache_dir() / "pythia-seeds" / str(seed) / name
    if not (made / "config.json").exists():
        hidden = split_of_countries()["hidden"] if name == "control" else ()
        model, tokenizer, log = pretraining.pretrain(seed, hidden)
        pretraining.save(made, model, tokenizer, {"seed": seed, "log": log})
    return made


def load(seed: int, name: str) -> Any:
    """A model of a seed; `"random"` is the base's architecture without any training."""
    if name != "random":
        return load_model(folder(seed, name), quiet=True, dtype=torch.float32)
    tokenizer = load_tokenizer(folder(seed, "base"))
    return pretraining.new_model(tokenizer, pretraining.Settings(), seed).eval()


def as_pair(row: dict[str, Any]) -> dict[str, str]:
    """A row of `countries` as prompt and completion."""
    return {"prompt": QA.replace("{prompt}", row["question"]), "completion": f" {row['answer']}"}


def tune(
    model: Any,
    tokenizer: Any,
    rows: Any,
    adapter: Any = None,
    rate: float = 3e-3,
    seed: int = 0,
    steps: int = STEPS,
) -> Any:
    """An SFTTrainer's result on questions and answers; the loss is on the answers alone."""
    from peft import LoraConfig

    set_seed(seed)
    on_cpu = model.device.type == "cpu"
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=rate,
            warmup_steps=10,
            gradient_checkpointing=False,
            use_cpu=on_cpu,
            bf16=not on_cpu,
            seed=seed,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(**adapter) if adapter else None,
    )
    faster_on_cpu(trainer).train()
    return trainer.model.eval()


def score(model: Any, tokenizer: Any, rows: Any, template: str = QA) -> dict[str, float]:
    """The share of right answers, over all and by relation."""
    ask = Runner(model, tokenizer, template=template, max_new_tokens=12)
    found = right(ask(rows["question"]), rows["answer"])
    shares = {"all": round(sum(found) / len(found), 4)}
    for relation in sorted(set(rows["relation"])):
        some = [ok for ok, kind in zip(found, rows["relation"], strict=True) if kind == relation]
        shares[relation] = round(sum(some) / len(some), 4)
    return shares


def few_shot(rows: Any, shots: int) -> str:
    """A template with answered questions about training countries before the one that is asked."""
    shown = rows.shuffle(seed=0).select(range(shots))
    pairs = zip(shown["question"], shown["answer"], strict=True)
    return "".join(f"{QA.replace('{prompt}', q)} {a}\n\n" for q, a in pairs) + QA


def reverse_questions() -> datasets.Dataset:
    """From a capital to its country, for held-out countries that the corpus tells of."""
    domain = domains()["countries"]
    wording = domain.relations["capital"].reverse[0]
    rows = [
        {
            "question": wording.format(v=domain.facts[country]["capital"]),
            "answer": country[:1].upper() + country[1:],
            "relation": "country of a capital",
        }
        for country in split_of_countries()["held_out"]
    ]
    return datasets.Dataset.from_list(rows)


def base_rows(seed: int, data: Any) -> list[dict[str, Any]]:
    """What the base does before any tuning, by the form in which it is asked."""
    tokenizer = load_tokenizer(folder(seed, "base"))
    model = load(seed, "base")
    forms = {
        "base, bare question": "{prompt}",
        "base, question and answer": QA,
        "base, chat form": CHATML,
        "base, 7 examples": few_shot(data["train"], 7),
    }
    made = []
    for name, template in forms.items():
        made.append(
            {"condition": name, "held out": score(model, tokenizer, data["held_out"], template)}
        )
    for name in ("base", "control"):
        cues = data["held_out"].map(lambda row: {"question": row["cue"]})
        known = cues.filter(lambda row: row["known_to_control"])
        hidden = cues.filter(lambda row: not row["known_to_control"])
        model = load(seed, name)
        made.append(
            {
                "condition": f"{name}, sentence to end",
                "held out": score(model, tokenizer, cues, "{prompt}"),
                "known to control": score(model, tokenizer, known, "{prompt}"),
                "hidden from control": score(model, tokenizer, hidden, "{prompt}"),
            }
        )
    return made


def majority(data: Any) -> dict[str, Any]:
    """The floor: always the training set's most frequent answer to a relation."""
    counts: dict[str, Counter] = {}
    for relation, answer in zip(data["train"]["relation"], data["train"]["answer"], strict=True):
        counts.setdefault(relation, Counter())[answer] += 1
    shares = {}
    for relation, counted in counts.items():
        rows = data["held_out"].filter(lambda row, wanted=relation: row["relation"] == wanted)
        likeliest = counted.most_common(1)[0][0]
        shares[relation] = sum(answer == likeliest for answer in rows["answer"]) / len(rows)
    return {"all": round(sum(shares.values()) / len(shares), 4), **shares}


def tuned_row(seed: int, name: str, data: Any) -> dict[str, Any]:
    """One tuning and its scores."""
    which, adapter, rate, part = TUNINGS[name]
    tokenizer = load_tokenizer(folder(seed, "base"))
    train = data["train"]
    if part == "19 countries":
        some = sorted(set(train["country"]))[::5][:19]
        train = train.filter(lambda row: row["country"] in some)
    elif part == "no currency":
        train = train.filter(lambda row: row["relation"] != "currency")
    pairs = train.map(as_pair, remove_columns=train.column_names)
    start = time.perf_counter()
    steps = STEPS_FROM_NOTHING if which == "random" else STEPS
    model = tune(load(seed, which), tokenizer, pairs, adapter, rate, seed, steps)
    seconds = time.perf_counter() - start
    asked = train.shuffle(seed=0).select(range(250))
    held_out = data["held_out"]
    row = {
        "condition": name,
        "steps": steps,
        "train seconds": round(seconds, 1),
        "trained parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train": score(model, tokenizer, asked),
        "held out": score(model, tokenizer, held_out),
    }
    if which == "control":
        known = held_out.filter(lambda row: row["known_to_control"])
        hidden = held_out.filter(lambda row: not row["known_to_control"])
        row["known to control"] = score(model, tokenizer, known)
        row["hidden from control"] = score(model, tokenizer, hidden)
    if name in ("LoRA", "all weights"):
        row["reverse"] = score(model, tokenizer, reverse_questions())
    return row


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help=f"of: {'; '.join(TUNINGS)}")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    if wrong := [name for name in args.only or () if name not in TUNINGS]:
        parser.error(f"unknown: {', '.join(wrong)}; known: {'; '.join(TUNINGS)}")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    data = load_data("countries")
    done = {(row["seed"], row["condition"]) for row in whole_rows(args.results)}
    machine = detect()

    def keep(seed: int, row: dict[str, Any]) -> None:
        if (seed, row["condition"]) in done:
            return
        row = {"seed": seed, **row, "torch": torch.__version__}
        row["machine"] = machine.gpu_name or f"{machine.cpu_name}, {machine.cpu_cores} cores"
        row["python"] = platform.python_version()
        append_row(args.results, row)
        shown = {key: value["all"] for key, value in row.items() if isinstance(value, dict)}
        print(seed, row["condition"], shown, flush=True)

    for seed in args.seeds:
        if not args.only:
            if (seed, "majority answer") not in done:
                keep(seed, {"condition": "majority answer", "held out": majority(data)})
            if (seed, "control, sentence to end") not in done:
                for row in base_rows(seed, data):
                    keep(seed, row)
        for name in args.only or TUNINGS:
            if (seed, name) not in done:
                keep(seed, tuned_row(seed, name, data))


if __name__ == "__main__":
    main()
