"""Measures trainings on a GPU and predicts each of them with the same machine's libraries.

    python -m benchmarks.memory                  # all, into results/memory_<gpu>.jsonl
    python -m benchmarks.memory --limit 40       # forty more; a run that was stopped goes on
    python -m benchmarks.memory --summary        # what the rows say

Half of the combinations were chosen, so that every setting and every model occurs; the other half
was drawn at random, with a fixed seed, when the predictor was finished. A row holds the setup, what
was measured (peaks by phase, reserved, the context's share, seconds a step), what was predicted,
GPU, driver and versions. Out of memory and crashes are rows too. Weights are random, made from the
models' configurations: for memory and time that is the same work.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError, ImpossibleSetup
from course_utils.memory import Setup, measure, predict, this_gpu
from course_utils.memory._allocator import OutOfMemory
from course_utils.memory._measure import NoGpu
from course_utils.results import append_row, whole_rows

FOLDER = Path(__file__).parent / "results"
# From small to large: the architectures that the course uses.
MODELS = (
    "facebook/opt-350m",
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-1b",
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-1.7B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B",
    "tiiuae/falcon-7b",
    "meta-llama/Llama-3.1-8B",
)
LARGE = ("tiiuae/falcon-7b", "meta-llama/Llama-3.1-8B")
RANDOM = 72
ON_ALL = {"lora": True, "lora_targets": "all-linear"}
# The recipe of notebook 07, which shows its row.
RECIPE = {
    "model": "meta-llama/Llama-3.1-8B",
    **ON_ALL,
    "quantization": "nf4-double",
    "kbit_preparation": True,
    "optimizer": "paged_adamw_8bit",
    "batch_size": 8,
    "accumulation": 4,
    "seq_len": 512,
}


def chosen() -> list[dict[str, Any]]:
    """Every setting on a few models, and the usual recipes on all of them."""
    combinations: list[dict[str, Any]] = []
    for model in MODELS:
        usual = {"model": model, "seq_len": 512, "batch_size": 2}
        combinations += [
            {**usual, **ON_ALL},
            {**usual, **ON_ALL, "quantization": "nf4-double", "optimizer": "paged_adamw_8bit"},
            {**usual, **ON_ALL, "quantization": "8bit", "checkpointing": "non-reentrant"},
        ]
        if model not in LARGE:
            combinations.append(usual)
    combinations.append({"model": MODELS[0], **ON_ALL, "quantization": "fp4-double"})
    combinations.append(RECIPE)
    settings: dict[str, list[Any]] = {
        "attention": ["eager"],
        "optimizer": ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd", "adafactor"],
        "checkpointing": ["none", "reentrant"],
        "sequences": ["padded", "packed"],
        "accumulation": [4],
        "mixed_precision": ["no"],
        "dtype": ["float16", "float32"],
        "trainer": ["trainer", "loop"],
        "supervised_share": [0.5],
        "seq_len": [128, 2000],
        "batch_size": [8],
    }
    for model in ("facebook/opt-350m", "Qwen/Qwen2.5-0.5B"):
        for field, values in settings.items():
            for value in values:
                usual = {"model": model, "seq_len": 512, "batch_size": 4}
                combinations.append({**usual, field: value})
    return combinations


def drawn(count: int = RANDOM, seed: int = 2026) -> list[dict[str, Any]]:
    """Combinations at random; those that cannot be are drawn again."""
    chance = random.Random(seed)
    combinations: list[dict[str, Any]] = []
    while len(combinations) < count:
        model = chance.choice(MODELS)
        lora = model in LARGE or chance.random() < 0.5
        quantization = [None, "8bit", "nf4", "nf4-double", "fp4"] if lora else [None]
        options = {
            "model": model,
            "trainer": chance.choice(["sft", "sft", "trainer", "loop", "dpo"]),
            "quantization": chance.choice(quantization),
            "dtype": chance.choice(["bfloat16", "bfloat16", "float16", "float32"]),
            "attention": chance.choice(["auto", "auto", "eager"]),
            "lora": lora,
            "lora_rank": chance.choice([4, 16, 64]),
            "lora_dropout": chance.choice([0.0, 0.05]),
            "lora_targets": chance.choice(["default", "all-linear"]),
            "optimizer": chance.choice(
                ["adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd"]
            ),
            "checkpointing": chance.choice([None, "none", "non-reentrant", "reentrant"]),
            "accumulation": chance.choice([1, 1, 3]),
            "mixed_precision": chance.choice([None, None, "no", "bf16"]),
            "batch_size": chance.choice([1, 2, 3, 8]),
            "seq_len": chance.choice([100, 256, 700, 1024, 2000]),
            "sequences": chance.choice(["full", "full", "padded", "packed"]),
        }
        try:
            Setup(**options)
        except ImpossibleSetup:
            continue
        combinations.append(options)
    return combinations


def combinations() -> list[Setup]:
    """All of them, chosen and drawn in turn, so that a run cut short has some of each."""
    both = [[Setup(**options) for options in some] for some in (chosen(), drawn())]
    if importlib.util.find_spec("flash_attn"):
        flash = [s.replace(attention="flash_attention_2") for s in both[0] if s.attention == "auto"]
        both[0] += [s for s in flash if s.compute_dtype != "float32"][:12]
    longest = max(map(len, both))
    mixed = [some[place] for place in range(longest) for some in both if place < len(some)]
    return list({str(setup.to_dict()): setup for setup in mixed}.values())


def predicted(setup: Setup) -> dict[str, Any]:
    """The prediction for this machine's GPU and libraries, or why there is none."""
    try:
        return predict(setup).to_dict()
    except (CourseError, OutOfMemory) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def error(row: dict[str, Any]) -> float | None:
    """How far the predicted peak is from the measured one, in percent; None without both."""
    # Measuring begins when the model is there: what loading held for a moment is left out.
    phases = row["predicted"].get("phases", {})
    told = max((size for name, size in phases.items() if name != "loading"), default=None)
    told = told or row["predicted"].get("peak_allocated_mb")
    if row.get("peak_allocated_mb") is None or told is None:
        return None
    return 100 * (told / row["peak_allocated_mb"] - 1)


def summarize(rows: list[dict[str, Any]]) -> str:
    """Errors in all and by model, phase and setting, worst rows first."""
    drawn_setups = [Setup(**options).to_dict() for options in drawn()]
    known = [(abs(error(row)), row) for row in rows if error(row) is not None]
    if not known:
        return f"{len(rows)} rows, none with a measured and a predicted peak."
    lines = [f"{len(rows)} rows; {len(known)} with a measured and a predicted peak"]

    def line(name: str, some: list[tuple[float, dict[str, Any]]]) -> None:
        if some:
            errors = [size for size, _ in some]
            mean = sum(errors) / len(errors)
            lines.append(f"{name:<34} {len(some):4}  mean {mean:6.2f}%  worst {max(errors):6.2f}%")

    line("all", known)
    line("chosen", [pair for pair in known if pair[1]["setup"] not in drawn_setups])
    line("drawn", [pair for pair in known if pair[1]["setup"] in drawn_setups])
    for field in (
        "model",
        "trainer",
        "quantization",
        "attention",
        "optimizer",
        "checkpointing",
        "lora",
    ):
        for value in dict.fromkeys(row["setup"][field] for _, row in known):
            line(f"{field} {value}", [p for p in known if p[1]["setup"][field] == value])
    for phase in ("weights", "forward", "backward", "optimizer"):
        pairs = [
            (abs(100 * (row["predicted"]["phases"][phase] / row["phases"][phase] - 1)), row)
            for _, row in known
            if row["phases"].get(phase)
        ]
        line(f"peak of phase {phase}", pairs)
    reserved = [
        (abs(100 * (row["predicted"]["peak_reserved_mb"] / row["peak_reserved_mb"] - 1)), row)
        for _, row in known
    ]
    line("reserved", reserved)
    lines.append("worst:")
    for size, row in sorted(known, key=lambda pair: -pair[0])[:8]:
        lines.append(f"  {size:6.2f}%  {Setup(**row['setup'])}")
    others = [row for row in rows if row["status"] != "ok"]
    lines += [f"  {row['status']}: {Setup(**row['setup'])}" for row in others]
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, predict it, write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    parser.add_argument("--limit", type=int, help="at most so many")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for each")
    parser.add_argument("--device", default="cuda", help="cpu: try the program, without memory")
    parser.add_argument("--summary", action="store_true", help="only tell what the rows say")
    args = parser.parse_args()
    gpu = this_gpu()
    name = (gpu.name if gpu else args.device).lower().replace(" ", "_")
    path = args.results or FOLDER / f"memory_{name}.jsonl"
    rows = whole_rows(path)
    if args.summary:
        print(summarize(rows))
        return
    if args.device == "cuda" and gpu is None:
        raise NoGpu(
            "This machine has no CUDA device to measure on; --device cpu tries the program."
        )
    done = [row["setup"] for row in rows]
    left = [setup for setup in combinations() if setup.to_dict() not in done]
    for number, setup in enumerate(left[: args.limit], 1):
        row = measure(setup, args.timeout, device=args.device)
        row["predicted"] = predicted(setup)
        append_row(path, row)
        off = error(row)
        told = f"{off:+.2f}%" if off is not None else row["status"]
        print(
            f"{number}/{len(left)} {told:>8}  {row.get('wall_seconds', 0)} s  {setup}", flush=True
        )
    print(summarize(whole_rows(path)))


if __name__ == "__main__":
    main()
