"""Predicts all cells of the published Mixin'Matching tables with the libraries of their time.

`make replicate-memory` sets those up in an environment of their own and runs this in it. Nothing is
fitted to the published figures. What is written, `results/published_tables.csv`, has a row a cell:
the settings, the published peak, the predicted one, the error in percent, and a remark where the
figure is no peak of a training step. MB = 10^6 bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

if __name__ == "__main__":
    import libraries_of_2024  # noqa: F401  must come before the others

from course_utils.memory import grid
from course_utils.memory.gpus import GPUS
from course_utils.memory.predict import predict

RESULTS = Path(__file__).parent / "results" / "published_tables.csv"
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
                known[setup] = predict(setup, GPU)
                print(f"{known[setup].peak_allocated_mb:8,.0f} MB  {setup}", flush=True)
            row["predicted_mb"] = round(known[setup].peak_allocated_mb, 1)
            row["peak_op"] = known[setup].peak_op
            if row["published_mb"].isdigit():
                error = 100 * (row["predicted_mb"] / float(row["published_mb"]) - 1)
                row["error_percent"] = round(error, 2)
            row["remark"] = remark(cell)
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
        model, weights = grid.NAMED[name]
        errors = [
            abs(row["error_percent"])
            for row in rows
            if (row["model"], row["weights"]) == (model, weights) and "error_percent" in row
        ]
        plain = [
            abs(row["error_percent"])
            for row in rows
            if (row["model"], row["weights"]) == (model, weights)
            and "error_percent" in row
            and not row["remark"]
        ]
        print(
            f"{name}: {len(errors)} figures, mean error {sum(errors) / len(errors):.2f}%, worst "
            f"{max(errors):.2f}%; {len(plain)} without a remark, worst {max(plain):.2f}%",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
