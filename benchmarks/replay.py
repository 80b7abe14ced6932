"""Predicts trainings whose memory others have measured on their GPUs.

    python -m benchmarks.replay                  # all sources, into results/replay.csv
    python -m benchmarks.replay fitcheck_t4      # one of them
    python -m benchmarks.replay fms_a100 --results benchmarks/results/replay_ranks.csv
    python -m benchmarks.replay --summary        # what the rows say

What was measured, by whom and with what libraries is told in `measured/README.md`. No number is
fitted to the T4's rows; the order of segments in `memory/_allocator.py` was chosen by them.
Rows are written as they come, and a run that was stopped goes on. Sizes are in MB = 10^6 bytes;
errors are predicted over measured, in percent.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch.nn.utils import clip_grad_norm_

from course_utils.errors import CourseError
from course_utils.memory import Setup, _step, predict
from course_utils.memory import gpu as gpu_by_name
from course_utils.memory._predict import versions
from course_utils.results import append_row, whole_rows

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "replay.csv"
MIB = 2**20
# What other estimators say, in `measured/estimates.csv`, and what tells its rows apart.
OTHERS = (
    *("fitcheck_allocated_mb", "fitcheck_process_mb"),
    *("accelerate_allocated_mb", "canifinetune_reserved_mb"),
)
ESTIMATED = ("model", "attention", "weights", "lora_rank", "batch_size", "seq_len")
COLUMNS = (
    *("source", "model", "settings", "measured_allocated_mb", "predicted_allocated_mb"),
    *("allocated_error_percent", "measured_reserved_mb", "predicted_reserved_mb"),
    *("reserved_error_percent", "measured_outcome", "predicted_outcome"),
    *OTHERS,
    "versions",
)
# In all rows of fitcheck: see measured/README.md.
FITCHECK = {
    "dtype": "float16",
    "lora": True,
    "lora_dropout": 0.0,
    "lora_targets": "q_proj,k_proj,v_proj,o_proj",
    "trainer": "loop",
    "attention_mask": False,
    "optimizer": "adamw_torch",
    "checkpointing": "non-reentrant",
    "mixed_precision": "no",
}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file in `measured/`."""
    if name == "own":
        return whole_rows(HERE / "measured" / "own.jsonl")
    with (HERE / "measured" / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if name == "peft_metamathqa_l40s":
        rows = [row for row in rows if row["result"] in adapters()]
    return rows


@functools.cache
def adapters() -> dict[str, dict[str, Any]]:
    """peft's configurations of the rows of `peft_metamathqa_l40s.csv` that are replayed."""
    return json.loads((HERE / "measured" / "peft_adapters.json").read_text())


def add(row: dict[str, Any], gpu: str) -> None:
    """Add a training that you have measured to `measured/own.jsonl`.

    Args:
        row: of `course_utils.memory.measure`.
        gpu: where, a key of `course_utils.memory.GPUS`.

    Raises:
        UnknownName: another GPU.
        ValueError: the training did not end.
    """
    gpu_by_name(gpu)
    if row["status"] != "ok":
        raise ValueError(f"Only trainings that ended are added; this one's status: {row['status']}")
    append_row(HERE / "measured" / "own.jsonl", {"file": gpu} | row)


@contextlib.contextmanager
def heads_expanded() -> Iterator[None]:
    """While it is entered, sdpa is given as many key and value heads as query heads."""
    from transformers.integrations import sdpa_attention

    with mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", lambda *_: False):  # noqa: PT008  a mock would keep the tensors
        yield


def on_t4(row: dict[str, str]) -> Setup:
    """The training of a row of `fitcheck_t4.csv`."""
    return Setup(
        row["model"],
        **FITCHECK,
        attention=row["attention"],
        quantization=None if row["weights"] == "none" else row["weights"],
        lora_rank=int(row["lora_rank"]),
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
    )


def near_the_limit(row: dict[str, str]) -> Setup:
    """The training of a row of `fitcheck_t4_boundary.csv`.

    The file does not say that the weights are nf4; their sizes leave nothing else.
    """
    return Setup(
        row["model"],
        **FITCHECK,
        attention="sdpa",
        quantization="nf4",
        lora_rank=32,
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
    )


def estimated(setup: Setup) -> tuple[str, ...]:
    """A training's key in `measured/estimates.csv`."""
    weights = setup.quantization or "none"
    numbers = (setup.lora_rank, setup.batch_size, setup.seq_len)
    return (setup.name, setup.attention, weights, *map(str, numbers))


def _error(predicted: float, measured: float) -> float:
    return round(100 * (predicted / measured - 1), 2)


def replay_t4(row: dict[str, str], setup: Setup) -> dict[str, Any]:
    """A row's peaks beside the predicted ones."""
    with heads_expanded():
        found = predict(setup, "t4")
    told: dict[str, Any] = {}
    for name, column in (("allocated", "peak_allocated_mib"), ("reserved", "peak_reserved_mib")):
        measured = float(row[column]) * MIB / 1e6
        predicted = getattr(found, f"peak_{name}_mb")
        told[f"measured_{name}_mb"] = round(measured, 1)
        told[f"predicted_{name}_mb"] = round(predicted, 1)
        told[f"{name}_error_percent"] = _error(predicted, measured)
    return told


def replay_boundary(row: dict[str, str], setup: Setup) -> dict[str, Any]:
    """Whether a training ended, and whether the prediction says that it would."""
    with heads_expanded():
        found = predict(setup, "t4")
    told: dict[str, Any] = {"measured_outcome": row["outcome"]}
    told["predicted_outcome"] = "completed" if found.fits else "oom"
    told["predicted_reserved_mb"] = round(found.peak_reserved_mb, 1)
    told["predicted_allocated_mb"] = round(found.peak_allocated_mb, 1)
    if row["process_mib"]:
        measured = (float(row["process_mib"]) - gpu_by_name("t4").context_mib) * MIB / 1e6
        told["measured_reserved_mb"] = round(measured, 1)
        told["reserved_error_percent"] = _error(found.peak_reserved_mb, measured)
    return told


def replay_own(row: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """A row of one's own: it was measured from when the model was there."""
    found = predict(setup, row["file"])
    steps = max(size for name, size in found.phases.items() if name != "loading")
    told: dict[str, Any] = {}
    for kind, predicted in (("allocated", steps), ("reserved", found.peak_reserved_mb)):
        measured = row[f"peak_{kind}_mb"]
        told[f"measured_{kind}_mb"] = measured
        told[f"predicted_{kind}_mb"] = round(predicted, 1)
        told[f"{kind}_error_percent"] = _error(predicted, measured)
    return told


# Tokens of the longest example of a batch, on average and at the 99th percentile: the lengths were
# not published. These two meet the row `lora--llama-3.2-3B-rank32`, and serve for all others.
PEFT_TOKENS = (220, 552)


def by_peft(row: dict[str, str]) -> Setup:
    """The training of a row of `peft_metamathqa_l40s.csv`, with the longer of the lengths."""
    return Setup(
        "meta-llama/Llama-3.2-3B",
        trainer="loop",
        dtype="bfloat16",
        mixed_precision="no",
        attention="sdpa",
        peft=adapters()[row["result"]],
        batch_size=4,
        seq_len=PEFT_TOKENS[1],
        sequences="padded",
        optimizer="adamw_torch",
        checkpointing="none",
    )


def after_a_step(setup: Setup) -> tuple[float, float]:
    """MB allocated and reserved at the end of the third step of peft's own loop."""
    told: list[float] = []

    def steps(
        setup: Any, model: Any, optimizer: Any, batch: Any, phase: Any, autocast: Any
    ) -> None:
        for _ in range(3):
            phase("forward")
            optimizer.zero_grad()
            with autocast():
                outputs = model(**batch())
            loss = outputs.loss
            phase("backward")
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            phase("optimizer")
            optimizer.step()
        allocator = phase.__self__.allocator
        told.extend((allocator.allocated / 1e6, allocator.reserved / 1e6))

    with mock.patch.object(_step, "by_hand", steps):
        predict(setup, "l40s")
    return told[0], told[1]


def replay_peft(row: dict[str, str], setup: Setup) -> dict[str, Any]:
    """Allocated right after a step of average length; reserved after a long one."""
    told: dict[str, Any] = {
        "measured_allocated_mb": float(row["alloc_avg"]),
        "measured_reserved_mb": float(row["reserved_99"]),
    }
    try:
        allocated, _ = after_a_step(setup.replace(seq_len=PEFT_TOKENS[0]))
        _, reserved = after_a_step(setup)
    except CourseError as error:
        return told | {"predicted_outcome": type(error).__name__}
    for kind, predicted in (("allocated", allocated), ("reserved", reserved)):
        told[f"predicted_{kind}_mb"] = round(predicted, 1)
        told[f"{kind}_error_percent"] = _error(predicted, told[f"measured_{kind}_mb"])
    return told


# Not read from the model's own config.json: a Granite of this shape has the parameters that the
# full rows' peaks speak of (five times as many bytes in 16 bits, within 0.03%).
POWERLM = {
    "model_type": "granite",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "num_key_value_heads": 36,
    "vocab_size": 49152,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}


def shifted_loss(
    logits: Any, labels: Any, vocab_size: int, num_items_in_batch: Any = None, **_: Any
) -> Any:
    """transformers 4.48's `ForCausalLMLoss`, which shifts the logits, and so copies them."""
    from transformers.loss.loss_utils import fixed_cross_entropy

    logits = logits.float()
    kept = logits[..., :-1, :].contiguous()
    return fixed_cross_entropy(
        kept.view(-1, vocab_size), labels[..., 1:].reshape(-1), num_items_in_batch
    )


def on_a100(row: dict[str, str]) -> Setup:
    """The training of a row of `fms_a100.csv`: two GPUs had FSDP1, and are predicted with FSDP2.

    That 4-bit weights were quantized twice follows from what is allocated at the end.
    """
    gpus, quantized = int(row["gpus"]), row["framework"] == "baseline-peft-bnb"
    return Setup(
        POWERLM if row["model"] == "ibm/PowerLM-3b" else row["model"],
        trainer="trainer",
        attention="flash_attention_2",
        checkpointing="non-reentrant",
        quantization="nf4-double" if quantized else None,
        kbit_preparation=False,
        lora=row["method"] == "lora",
        lora_dropout=0.1,
        lora_targets="q_proj,k_proj,v_proj,o_proj",
        mixed_precision="bf16" if quantized else "no",
        optimizer="adamw_torch",
        batch_size=int(row["batch_size_per_gpu"]),
        seq_len=4096,
        devices=gpus,
        strategy="fsdp2" if gpus > 1 else None,
    )


def replay_a100(row: dict[str, str], setup: Setup) -> dict[str, Any]:
    """A row's allocated peak beside the predicted one, with the loss of its libraries.

    Those of the granite rows cast logits inside the model; their peak is that of today's loss.
    """
    from transformers.loss import loss_utils

    of_its_time = {} if row["file"].endswith("granite.csv") else {"ForCausalLM": shifted_loss}
    with mock.patch.dict(loss_utils.LOSS_MAPPING, of_its_time):
        found = predict(setup, "a100-80gb")
    measured = float(row["peak_allocated_bytes"]) / 1e6
    return {
        "measured_allocated_mb": round(measured, 1),
        "predicted_allocated_mb": round(found.peak_allocated_mb, 1),
        "allocated_error_percent": _error(found.peak_allocated_mb, measured),
    }


Replay = Callable[[dict[str, str], Setup], dict[str, Any]]
SOURCES: dict[str, tuple[Callable[[dict[str, str]], Setup], Replay]] = {
    "fitcheck_t4": (on_t4, replay_t4),
    "fitcheck_t4_boundary": (near_the_limit, replay_boundary),
    "peft_metamathqa_l40s": (by_peft, replay_peft),
    "own": (lambda row: Setup(**row["setup"]), replay_own),
}
# Replayed where they are named only: they take long.
BY_NAME: dict[str, tuple[Callable[[dict[str, str]], Setup], Replay]] = {
    "fms_a100": (on_a100, replay_a100),
}


def settings(setup: Setup) -> str:
    """What a row's training is, beside its model, as JSON."""
    told = {name: value for name, value in setup.to_dict().items() if name != "model"}
    return json.dumps(told, sort_keys=True)


def read(path: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def replay(names: Iterable[str], path: Path = RESULTS, limit: int | None = None) -> list[dict]:
    """Predict the rows of some sources; those that are there for these versions stay.

    Args:
        names: of `SOURCES` or `BY_NAME`.
        path: a CSV file, which is continued.
        limit: how many trainings of each source; None for all.
    """
    now = json.dumps(versions(), sort_keys=True)
    done = {
        (row["source"], row["model"], row["settings"])
        for row in read(path)
        if row["versions"] == now
    }
    mend(path)
    others = {tuple(row[name] for name in ESTIMATED): row for row in rows_of("estimates")}
    rows = []
    for name in names:
        as_setup, work = (SOURCES | BY_NAME)[name]
        seen: set[str] = set()
        for row in rows_of(name):
            setup = as_setup(row)
            key = f"{row.get('file', '')}{setup.name}{settings(setup)}"
            # Some trainings were measured several times; the first of them is taken.
            if key in seen or (limit is not None and len(seen) >= limit):
                continue
            seen.add(key)
            source = f"{name} {row['file']}" if "file" in row else name
            if (source, setup.name, settings(setup)) in done:
                continue
            told = {"source": source, "model": setup.name, "settings": settings(setup)}
            told |= work(row, setup) | {"versions": now}
            told |= {name: others.get(estimated(setup), {}).get(name, "") for name in OTHERS}
            append(path, told)
            rows.append(told)
            shown = {name: value for name, value in told.items() if "error" in name}
            kind = setup.quantization or (setup.peft or {}).get("peft_type", "")
            print(setup.name, setup.attention, kind, shown, flush=True)
    return rows


def mend(path: Path) -> None:
    """Drop the half line that a kill left, and give a file of other columns today's."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text.endswith("\n") and text.startswith(",".join(COLUMNS) + "\n"):
        return
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(whole.splitlines()))
    path.unlink()
    for row in rows:
        append(path, {name: row.get(name, "") for name in COLUMNS})


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row; a new file begins with the columns' names."""
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def _other(source: str, rows: list[dict[str, str]], name: str) -> str:
    """How near another estimator is: it is held against what it speaks of."""
    tool, kind, _ = name.split("_")
    context = gpu_by_name("t4").context_mib * MIB / 1e6 if kind == "process" else 0.0
    measured = f"measured_{'reserved' if kind == 'process' else kind}_mb"
    errors = [
        abs(_error(float(row[name]), float(row[measured]) + context))
        for row in rows
        if row.get(name) and row[measured]
    ]
    if not errors:
        return ""
    told = f"mean {statistics.mean(errors):.2f}%, worst {max(errors):.2f}%"
    return f"  beside it, {tool}, {kind}: {told}"


def summary(rows: list[dict[str, str]]) -> str:
    """Errors by source: the mean, the worst, and how many are within 1% and 5%."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        own = [row for row in rows if row["source"] == source]
        for kind in ("allocated", "reserved"):
            errors = [
                abs(float(row[f"{kind}_error_percent"]))
                for row in own
                if row[f"{kind}_error_percent"] != ""
            ]
            if errors:
                within = {most: sum(e <= most for e in errors) / len(errors) for most in (1, 5)}
                told = f"mean {statistics.mean(errors):.2f}%, worst {max(errors):.2f}%; "
                told += f"{within[1]:.0%} within 1%, {within[5]:.0%} within 5%"
                lines.append(f"{source}, {kind}: {len(errors)} rows, {told}")
        lines += [line for name in OTHERS if (line := _other(source, own, name))]
        wrong = [row for row in own if row["predicted_outcome"] != row["measured_outcome"]]
        if own and own[0]["measured_outcome"]:
            lines.append(f"{source}: {len(own)} outcomes, {len(wrong)} of them predicted wrongly")
    return "\n".join(lines)


def main() -> None:
    """Predict, or say what the rows say."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*SOURCES, *BY_NAME]
    parser.add_argument("source", nargs="*", choices=[*known, []], help=", ".join(known))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="predict nothing")
    args = parser.parse_args()
    if not args.summary:
        replay(args.source or SOURCES, args.results)
    print(summary(read(args.results)))


if __name__ == "__main__":
    main()
