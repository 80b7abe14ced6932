"""Predicts the GPU memory of common trainings, for the site's page "What can I train on my GPU?".

    python -m benchmarks.atlas                # all, into results/atlas.jsonl
    python -m benchmarks.atlas --part 1/2     # every second model, so that two can run at once

A prediction holds for every GPU of one class, because it depends on the GPU only through the
kernels that PyTorch takes there. Whether a training fits is worked out afterwards, from the peak
and the memory of each GPU. The first line of the file has the versions of the libraries and says
what each method and class means; each other line is a prediction. Lines are appended as they come,
and a run that was stopped goes on. Sizes are in MB = 10^6 bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_utils.errors import ImpossibleSetup
from course_utils.memory import GPUS, METHODS, Gpu, Setup, predict, usable_bytes
from course_utils.memory._predict import versions
from course_utils.memory._setup import config_of
from course_utils.results import appending, whole_rows

RESULTS = Path(__file__).parent / "results" / "atlas.jsonl"
MB, MIB = 1e6, 2**20

# The models, and how many thousand million parameters their names speak of. What people train
# most comes first.
MODELS = {
    "Qwen/Qwen3-0.6B": 0.6,
    "meta-llama/Llama-3.2-1B": 1.2,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.5,
    "google/gemma-3-1b-it": 1.0,
    "meta-llama/Llama-3.2-3B": 3.2,
    "Qwen/Qwen3-4B": 4.0,
    "Qwen/Qwen3-8B": 8.2,
    "meta-llama/Llama-3.1-8B": 8.0,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.13,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 0.36,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.2,
    "Qwen/Qwen2.5-0.5B-Instruct": 0.5,
    "Qwen/Qwen2.5-7B-Instruct": 7.6,
    "google/gemma-3-4b-it": 3.9,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.7,
    "Qwen/Qwen3-14B": 14.8,
    "microsoft/Phi-4-mini-instruct": 3.8,
    "Qwen/Qwen3-1.7B": 1.7,
    "google/gemma-3-270m": 0.27,
    "Qwen/Qwen3-32B": 32.8,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1.1,
    "facebook/opt-350m": 0.33,
    "EleutherAI/pythia-410m": 0.41,
    "HuggingFaceTB/SmolLM3-3B": 3.1,
}

# The methods, from the one that changes the most to the one that needs the least memory, as
# arguments of `Setup`; and the fewest bytes that they need for each parameter that is trained.
FULL_32 = "all weights, 32-bit with mixed precision"
FULL_16 = "all weights, 16-bit"
FULL_16_ADAM_8 = "all weights, 16-bit, 8-bit Adam"
METHODS_HERE: dict[str, dict[str, Any]] = {
    "full-32": METHODS[FULL_32],
    "full-32-adam-8": {**METHODS[FULL_32], "optimizer": "adamw_bnb_8bit"},
    "full-16": METHODS[FULL_16],
    "full-16-adam-8": METHODS[FULL_16_ADAM_8],
    "lora": METHODS["LoRA on 16-bit"],
    "qlora": METHODS["QLoRA"],
}
BYTES = {"full-32": 16, "full-32-adam-8": 10, "full-16": 8, "full-16-adam-8": 6}

# Examples in a batch, and tokens in each example.
SHAPES = ((1, 512), (1, 2048), (4, 512), (4, 2048), (1, 4096))

# The classes: a GPU that stands for the others, and which methods make sense there. Below compute
# capability 8.0 there is no bfloat16, and weights in float16 are too coarse to be trained.
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "older": ("t4", ("lora", "qlora", "full-32", "full-32-adam-8")),
    "ampere": ("a100-80gb", ("lora", "qlora", "full-16", "full-16-adam-8", "full-32")),
    "ada": ("rtx4090", ("lora", "qlora", "full-16", "full-16-adam-8", "full-32")),
    "hopper": ("h100", ("lora", "qlora", "full-16", "full-16-adam-8", "full-32")),
}
# A Hopper GPU takes kernels that need as much as Ampere's, and larger workspaces. So the numbers of
# Ampere serve there too, but for trainings that come this near to a GPU's limit.
NEAR = 0.05
WIDE = 192  # wider attention heads have other kernels on GPUs of capability 8.6 to 8.9


def class_of(gpu: Gpu, model: str) -> str:
    """The class whose predictions hold for a GPU, for one model."""
    if not gpu.computes_bfloat16:
        return "older"
    if gpu.capability[0] == 9:
        return "hopper"
    return "ada" if (8, 6) <= gpu.capability <= (8, 9) and wide(model) else "ampere"


def wide(model: str) -> bool:
    """Whether the model's attention heads are wider than `WIDE`."""
    config = config_of(model).get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width > WIDE


def setup(model: str, kind: str, method: str, batch: int, length: int) -> Setup:
    """The training that a row is about.

    Args:
        model: its id.
        kind: one of `CLASSES`.
        method: one of `METHODS_HERE`.
        batch: examples in a batch.
        length: tokens in an example.

    Raises:
        ImpossibleSetup: the model has fewer positions.
    """
    dtype = "float16" if kind == "older" else "bfloat16"
    options = {"dtype": dtype, **METHODS_HERE[method]}
    if options["dtype"] == "float32":
        options["mixed_precision"] = "fp16" if kind == "older" else "bf16"
    return Setup(model, **options, batch_size=batch, seq_len=length)


def setup_of(row: dict[str, Any]) -> Setup:
    """The training of a row of the file."""
    return setup(row["model"], row["class"], row["method"], row["batch"], row["length"])


def fits(row: dict[str, Any], gpu: Gpu) -> bool:
    """Whether a row's training fits on a GPU of its class."""
    return row["reserved_mb"] * MB <= usable_bytes(gpu)


def most(kind: str, model: str) -> float:
    """MB that a training can have on the largest GPU of a class."""
    return max(usable_bytes(gpu) / MB for gpu in GPUS.values() if class_of(gpu, model) == kind)


def predicted(case: dict[str, Any]) -> dict[str, Any]:
    """The row of a case, which has the fields `KEY`."""
    gpu = GPUS[CLASSES[case["class"]][0]]
    found = predict(setup_of(case), gpu)
    return {
        **case,
        "allocated_mb": round(found.peak_allocated_mb, 1),
        "reserved_mb": round(found.peak_reserved_mb, 1),
        "at_peak": {name: round(size, 1) for name, size in found.at_peak.items()},
        "phase": max(found.phases, key=found.phases.__getitem__),
        "warnings": [said.replace(gpu.name, "{gpu}") for said in found.warnings],
    }


KEY = ("model", "class", "method", "batch", "length")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells rows apart."""
    return tuple(row[name] for name in KEY)


def hopeless(case: dict[str, Any], rows: dict[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether a training cannot fit on any GPU of its class, told without predicting it.

    Args:
        case: what would be predicted.
        rows: what has been, by `key`; a model's LoRA with the smallest batch comes first in a
            class, and a method's smallest batch before its others.
    """
    limit = most(case["class"], case["model"])
    smallest = dict(zip(("batch", "length"), SHAPES[0], strict=True))
    before = row_of({**case, **smallest}, rows)
    if before and before["reserved_mb"] > limit:
        return True
    lora = row_of({**case, **smallest, "method": "lora"}, rows)
    if case["method"] not in BYTES or not lora:
        return False
    return lora["at_peak"]["weights"] / 2 * BYTES[case["method"]] * 0.97 > limit


def larger_workspaces() -> float:
    """MB that a training takes on a Hopper GPU beyond what it takes on an A100.

    Each of two threads, for the forward and the backward pass, has a workspace of its own.
    """
    return 2 * (GPUS["h100"].workspace - GPUS["a100-80gb"].workspace) / MB


def row_of(
    case: dict[str, Any], rows: dict[tuple[Any, ...], dict[str, Any]]
) -> dict[str, Any] | None:
    """The row of a case, on Hopper that of Ampere with larger workspaces if there is no other.

    Args:
        case: the fields `KEY`.
        rows: what was predicted, by `key`.
    """
    row = rows.get(key(case))
    if row or case["class"] != "hopper":
        return row
    row = rows.get(key({**case, "class": "ampere"}))
    if not row:
        return None
    more = larger_workspaces()
    at_peak = {**row["at_peak"], "workspaces": round(row["at_peak"]["workspaces"] + more, 1)}
    sizes = {name: round(row[name] + more, 1) for name in ("allocated_mb", "reserved_mb")}
    return {**row, **sizes, "class": "hopper", "at_peak": at_peak}


def told_by_ampere(case: dict[str, Any], rows: dict[tuple[Any, ...], dict[str, Any]]) -> bool:
    """Whether a training on Hopper is not near any limit, so that Ampere's row is enough."""
    if case["class"] != "hopper" or not rows.get(key({**case, "class": "ampere"})):
        return False
    limits = (usable_bytes(gpu) / MB for gpu in GPUS.values() if gpu.capability[0] == 9)
    reserved = row_of(case, rows)["reserved_mb"]
    return all(abs(reserved / limit - 1) > NEAR for limit in limits)


def cases(models: list[str]) -> Iterator[dict[str, Any]]:
    """What is to be predicted, the most useful first."""
    for kind, (_, methods) in CLASSES.items():
        for model in models:
            if kind == "ada" and not wide(model):
                continue
            for method in methods:
                for batch, length in SHAPES:
                    try:
                        setup(model, kind, method, batch, length)
                    except ImpossibleSetup:  # longer than the model can read
                        continue
                    values = (model, kind, method, batch, length)
                    yield dict(zip(KEY, values, strict=True))


def header() -> dict[str, Any]:
    """The first line: for which libraries the file speaks, and what its words mean."""
    return {
        # Without what says how torch was built: `2.13.0+cpu` predicts as `2.13.0` does.
        "versions": {name: version.split("+")[0] for name, version in versions().items()},
        "methods": METHODS_HERE,
        "classes": {name: GPUS[gpu].name for name, (gpu, _) in CLASSES.items()},
    }


def read(path: Path = RESULTS) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the rows of a file; both empty where there is no file."""
    first, *rows = whole_rows(path) or [{}]
    return first, rows


def make(models: list[str], path: Path = RESULTS) -> int:
    """Predict what is missing; returns how many rows were added.

    Raises:
        SystemExit: the file is about other versions of the libraries.
    """
    with appending(path) as append:
        first, now = read(path)[0], header()
        if not first:
            append(now)
        elif first != now:
            raise SystemExit(
                f"{path} holds for {first.get('versions')}; installed are {now['versions']}. Or "
                "the methods have changed. Delete the file to predict everything again."
            )
    rows = {key(row): row for row in read(path)[1]}
    added = 0
    for case in cases(models):
        if key(case) in rows or told_by_ampere(case, rows) or hopeless(case, rows):
            continue
        row = rows[key(case)] = predicted(case)
        with appending(path) as append:
            append(row)
        added += 1
        print(*key(case), f"{row['reserved_mb']:,.0f} MB", flush=True)
    return added


def main() -> None:
    """Predict what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--part", default="1/1", help="which of how many parts of the models")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    added = make(list(MODELS)[part - 1 :: parts], args.results)
    print(f"{added} predictions added to {args.results}")


if __name__ == "__main__":
    main()
