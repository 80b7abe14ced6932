"""Predicts all cells of the published Mixin'Matching tables with the libraries of their time.

`make replicate-memory` sets those up in an environment of their own and runs this in it. Nothing is
fitted to the published figures. What is written, `results/published_tables.csv`, has a row a cell:
the settings, the published peak, the predicted one, the error in percent, a remark where the figure
is odd, and what three other ways to estimate say. MB = 10^6 bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

if __name__ == "__main__":
    from backend import BACKEND  # must come before the others

from course_utils.memory import Setup, formulas, grid
from course_utils.memory._gpus import GPUS, MIB
from course_utils.memory._predict import predict_with
from course_utils.models import _catalog as catalog

RESULTS = Path(__file__).parent.parent / "results" / "published_tables.csv"
GPU = GPUS["rtx4090"]  # about 24 GB and FlashAttention 2; which one it was is not published

# Where a cell cannot be, or is not, the peak of the training step that its settings describe, and
# what speaks for it.
SAME_AS_MIXED = (
    "equals the cell with mixed precision; predicted with it, see there: presumably the same run"
)
FLOOR = (
    "the same figure in all four cells whatever the attention and precision, and above every "
    "predicted step: a peak outside the step, such as at loading, would look like this"
)
NOT_FOUND = "cause not found; 192 MB are one and a half attention matrices in 16 bits"
HEAVIER = "math attention of that PyTorch keeps more than today's; not checked further"


def remark(cell: dict[str, str]) -> str:
    """What is odd about a cell's figure."""
    if not cell["peak_mb"].isdigit():
        return ""
    if cell["model"] == "tiiuae/falcon-7b" and cell["grad_checkpointing"] == "yes":
        if cell["seq_len"] == "500":
            return FLOOR
        if cell["mixed_precision"] == "no":
            return SAME_AS_MIXED
        if cell["attention"] == "sdpa":
            return HEAVIER
    odd = ("8-bit", "2000", "yes", "yes", "eager")
    names = ("weights", "seq_len", "grad_checkpointing", "mixed_precision", "attention")
    if cell["model"] == "facebook/opt-350m" and tuple(cell[name] for name in names) == odd:
        return NOT_FOUND
    return ""


def trained_parameters(setup: Setup, parameters: int) -> int:
    """How many are trained: all, or LoRA's on what peft takes by default for OPT and Falcon."""
    if not setup.lora:
        return parameters
    config = setup.config()
    width, rank = config.hidden_size, setup.lora_rank
    if config.model_type == "falcon":  # query_key_value: one key and one value head beside them
        out = width + 2 * width // config.num_attention_heads
        return config.num_hidden_layers * rank * (width + out)
    return config.num_hidden_layers * 2 * rank * 2 * width  # q_proj and v_proj


def by_formula(setup: Setup, parameters: int) -> float:
    """The textbook: states, and activations; with checkpointing one layer's and each one's input.

    Source of the latter: Korthikanti and others (2022), section 5: 2·s·b·h a layer.
    """
    shape = formulas.Shape.of(setup.config())
    trained = trained_parameters(setup, parameters)
    states = formulas.states_bytes(parameters, trained, 2)
    if setup.quantization == "8bit":
        states["weights"] = parameters
    attention = "eager" if setup.attention == "eager" else "flash_attention_2"
    kept = formulas.activation_bytes(shape, setup.batch_size, setup.seq_len, attention)
    if setup.checkpoints != "none":
        inputs = 2 * shape.layers * setup.seq_len * setup.batch_size * shape.hidden
        kept = kept / shape.layers + inputs
    return (sum(states.values()) + kept) / 1e6


def by_accelerate(setup: Setup, parameters: int) -> float:
    """`accelerate estimate-memory`: training with Adam, which knows no other settings."""
    from accelerate.commands.estimate import estimate_training_usage

    sizes = estimate_training_usage(4 * parameters, "float16")
    return max(sizes.values()) / 1e6


def by_fitcheck(setup: Setup, parameters: int) -> float:
    """fitcheck-llm, without what it adds for the CUDA context, since the figures are without."""
    from fitcheck.config_parser import ModelConfig
    from fitcheck.estimator import TrainingConfig, estimate
    from fitcheck.gpu_db import GPU_DB

    config, shape = setup.config(), formulas.Shape.of(setup.config())
    model = ModelConfig(
        name=setup.name,
        num_params=parameters,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_kv_heads=shape.key_value_heads,
        intermediate_size=getattr(config, "ffn_dim", None) or 4 * shape.hidden,
        vocab_size=config.vocab_size,
        head_dim=shape.head_width,
        tie_word_embeddings=True,
    )
    training = TrainingConfig(
        precision="fp16",
        quantization="int8" if setup.quantization == "8bit" else "none",
        optimizer="adam8bit" if setup.optimizer.endswith("8bit") else "adamw",
        optimizer_dtype="bf16",  # states in 16 bits, as their weights are
        batch_size=setup.batch_size,
        seq_len=setup.seq_len,
        lora_rank=setup.lora_rank if setup.lora else None,
        lora_targets=["q_proj", "v_proj"],
        grad_checkpoint=setup.checkpoints != "none",
        flash_attn=setup.attention != "eager",
    )
    found = estimate(model, training, GPU_DB["4090"])
    return (found.total_mib - found.overhead_mib) * MIB / 1e6


OTHERS = {
    "formula_mb": by_formula,
    "accelerate_mb": by_accelerate,
    "fitcheck_mb": by_fitcheck,
}


def summary(rows: list[dict[str, str]], name: str, column: str) -> str:
    """The mean and the worst error of a way to estimate on a table's figures."""
    errors = [
        abs(float(row[column]) / float(row["published_mb"]) - 1)
        for row in rows
        if (row["model"], row["weights"]) == grid.NAMED[name] and row["published_mb"].isdigit()
    ]
    return f"mean {sum(errors) / len(errors):7.2%}, worst {max(errors):7.2%}"


def main() -> None:
    """Predict, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows, known = [], {}
    for name in grid.NAMED:
        for cell in grid.published(name):
            row = dict(cell)
            row["published_mb"] = row.pop("peak_mb")
            setup = grid.as_setup(cell)
            if setup not in known:
                known[setup] = predict_with(BACKEND, setup, GPU)
                print(f"{known[setup].peak_allocated_mb:8,.0f} MB  {setup}", flush=True)
            row["predicted_mb"] = round(known[setup].peak_allocated_mb, 1)
            row["peak_op"] = known[setup].peak_op
            if row["published_mb"].isdigit():
                error = 100 * (row["predicted_mb"] / float(row["published_mb"]) - 1)
                row["error_percent"] = round(error, 2)
            row["remark"] = remark(cell)
            parameters = catalog.known_model(setup.name).parameters
            for column, way in OTHERS.items():
                row[column] = round(way(setup, parameters), 1)
            rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    partial = args.results.with_suffix(".partial")
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(args.results)
    for name in grid.NAMED:
        print(name)
        for column in ("predicted_mb", *OTHERS):
            print(f"  {column:<14} {summary(rows, name, column)}")
        plain = [row for row in rows if not row["remark"]]
        print(f"  without remark {summary(plain, name, 'predicted_mb')}")


if __name__ == "__main__":
    main()
