"""Mixin'Matching: tables of GPU memory over combinations of settings. Introduced in notebook 05.

`published.csv` holds the three tables of the November 2024 workshop: peak memory allocated by the
CUDA allocator, in MB = 10^6 bytes, batch size 1, on a GPU of about 24 GB.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.errors import CourseError, ImpossibleSetup
from course_utils.memory._allocator import OutOfMemory
from course_utils.memory._gpus import DEFAULT, Gpu, this_gpu
from course_utils.memory._setup import Setup, known_fields
from course_utils.results import append_row, whole_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_HERE = Path(__file__).parent
NAMED = {
    "opt-350m-16bit": ("facebook/opt-350m", "16-bit"),
    "opt-350m-8bit": ("facebook/opt-350m", "8-bit"),
    "falcon-7b-8bit": ("tiiuae/falcon-7b", "8-bit"),
}
READINGS = {
    "published": "what the published figures are of: one micro-batch, outputs and KV cache kept "
    "until the step's end, paged 8-bit states, and no step at all where gradients accumulate",
    "today": "what the settings say: two optimizer steps in the Trainer's loop, gradients "
    "accumulating over four micro-batches each",
}
AXES = ("seq_len", "grad_checkpointing", "lora", "optimizer", "grad_accumulation")
ACTIONS = ("predict", "measure")


def published(name: str) -> list[dict[str, str]]:
    """Return the cells of a published table, as in `published.csv`.

    Raises:
        UnknownName: there is no such table; the message lists those that exist.
    """
    checks.one_of("table", name, NAMED)
    source = _HERE / "published.csv"
    with checks.course_file(source), source.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        found = [row for row in rows if (row["model"], row["weights"]) == NAMED[name]]
        if not found or any(None in row.values() for row in found):
            raise ValueError(f"not all of the rows of {name} are there")
    return found


def as_setup(cell: dict[str, str], reading: str = "published") -> Setup:
    """Return the setup that a cell of a published table describes.

    Args:
        cell: one of those that `published` returns.
        reading: one of `READINGS`.

    Raises:
        UnknownName: `reading` is not one of `READINGS`.
        ValueError: there is no such cell.
    """
    checks.one_of("reading", reading, READINGS)
    settings = {*AXES, "model", "weights", "attention", "mixed_precision", "batch_size"}
    if not isinstance(cell, dict) or not settings <= cell.keys():
        raise checks.refuse("cell", cell, "a cell of a table, as published(name) gives them")
    eight_bits = cell["optimizer"] == "adam_8bit"
    accumulates = cell["grad_accumulation"] == "yes"
    common: dict[str, Any] = {
        "model": cell["model"],
        "quantization": "8bit" if cell["weights"] == "8-bit" else None,
        "dtype": "float16",
        "attention": cell["attention"],
        "lora": cell["lora"] == "yes",
        "mixed_precision": "fp16" if cell["mixed_precision"] == "yes" else "no",
        "seq_len": int(cell["seq_len"]),
        "batch_size": int(cell["batch_size"]),
    }
    if reading == "published":
        # In both kinds of row, PyTorch's allocator would see no optimizer states.
        stateless = eight_bits or accumulates
        return Setup(
            **common,
            checkpointing="reentrant" if cell["grad_checkpointing"] == "yes" else "none",
            optimizer="paged_adamw_8bit" if stateless and not common["lora"] else "adamw_torch",
            trainer="loop",
            micro_batches=1,
        )
    return Setup(
        **common,
        checkpointing="non-reentrant" if cell["grad_checkpointing"] == "yes" else "none",
        optimizer="adamw_bnb_8bit" if eight_bits else "adamw_torch",
        accumulation=4 if accumulates else 1,
        trainer="trainer",
    )


def product(model: str, **options: Any) -> list[dict[str, Any]]:
    """Return every combination of some options, as arguments of `Setup`; the last varies fastest.

    Args:
        model: as in `Setup`.
        options: fields of `Setup`, each with a value or a list of values.

    Raises:
        UnknownName: `Setup` has no such option.
    """
    known_fields(options)
    lists = [value if isinstance(value, (list, tuple)) else [value] for value in options.values()]
    return [
        {"model": model, **dict(zip(options, values, strict=True))}
        for values in itertools.product(*lists)
    ]


def _key(row: dict[str, Any]) -> str:
    """Return what identifies a row's measurement."""
    wanted = {name: row.get(name) for name in ("setup", "how", "gpu", "versions")}
    return json.dumps(wanted, sort_keys=True)


def _key_to_come(setup: dict[str, Any], how: str, gpu: str | None) -> str:
    from course_utils.memory._predict import versions

    word = "predicted" if how == "predict" else "measured"
    return _key({"setup": setup, "how": word, "gpu": gpu, "versions": versions()})


def run(
    combinations: Iterable[dict[str, Any] | Setup],
    how: str = "predict",
    out: Path | None = None,
    gpu: Gpu | None = None,
    timeout: float = 600,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Predict or measure each combination; return one row for each, in the given order.

    With `out`, each row is appended to the file as soon as it is ready, and rows that the file
    already has for the same setup, GPU and versions are reused: an interrupted run continues.

    Args:
        combinations: setups, or arguments of `Setup`; impossible ones become rows with
            `status` "refused" and the reason.
        how: "predict" or "measure" (which needs a GPU).
        out: a file of JSON lines.
        gpu: for predictions, as in `predict`.
        timeout: for measurements, in seconds per combination.
        progress: show a progress bar.

    Raises:
        UnknownName: any other `how`, or an option that `Setup` does not have.
        ValueError: an invalid setup, output file, GPU or timeout.
        NoGpu: measuring without a GPU.
    """
    from tqdm.auto import tqdm

    from course_utils.memory._predict import versions

    checks.one_of("how", how, ACTIONS)
    combinations = checks.items("combinations", combinations, "setups")
    for given in combinations:
        possible = "a Setup, or a dictionary of its arguments, its model among them"
        if isinstance(given, dict) and "model" in given:
            known_fields(given)
        else:
            checks.a("combinations", given, Setup, possible)
    out = None if out is None else checks.writable("out", out)
    if gpu is not None:
        checks.a("gpu", gpu, Gpu, "a Gpu, such as gpus.gpu('t4')")
    checks.number("timeout", timeout, above=0)
    checks.flag("progress", progress)
    here = this_gpu()
    meant = (gpu or here or DEFAULT) if how == "predict" else here
    name = meant.name if meant else None
    done = {_key(row): row for row in (whole_rows(out) if out else [])}
    rows = []
    for given in tqdm(combinations, disable=not progress, leave=False, desc=how):
        try:
            setup = given if isinstance(given, Setup) else Setup(**given)
        except ImpossibleSetup as error:
            rows.append({"setup": given, "status": "refused", "error": str(error)})
            continue
        key = _key_to_come(setup.to_dict(), how, name)
        if key not in done:
            # A failed measurement states neither GPU nor versions, but must not be repeated either.
            row = {"gpu": name, "versions": versions(), **_row(setup, how, gpu, timeout)}
            done[key] = row
            if out:
                append_row(out, done[key])
        rows.append(done[key])
    return rows


def _row(setup: Setup, how: str, gpu: Gpu | None, timeout: float) -> dict[str, Any]:
    if how == "measure":
        from course_utils.memory import measure

        return measure(setup, timeout)
    from course_utils.memory._predict import predict

    try:
        prediction = predict(setup, gpu)
    except (CourseError, OutOfMemory) as error:
        return {
            "setup": setup.to_dict(),
            "how": "predicted",
            "status": "refused",
            "error": str(error),
        }
    return {"how": "predicted", "status": "ok", **prediction.to_dict()}


def _row_of(row: Any) -> dict[str, Any]:
    """Return a row unchanged, if it is one of `run`."""
    wanted = {"setup", "status"}
    if isinstance(row, dict) and row.get("status") == "ok":
        wanted.add("peak_allocated_mb")
    if not isinstance(row, dict) or not wanted <= row.keys():
        raise checks.refuse("row", row, "a row as run(…) gives them, with setup and status")
    return row


def peak(row: dict[str, Any]) -> float | str:
    """Return a row's peak in MB, or why there is none ("OOM", "refused", …).

    Raises:
        ValueError: not a row as returned by `run`.
    """
    _row_of(row)
    return row["peak_allocated_mb"] if row["status"] == "ok" else row["status"]


def compare(
    name: str,
    predicted: list[dict[str, Any]] | None = None,
    measured: list[dict[str, Any]] | None = None,
    reading: str = "published",
) -> pd.DataFrame:
    """Compare a published table with predictions and measurements, one row per cell.

    Columns: the axes of the table, `attention`, `published`, and, if given, `predicted` and
    `measured`, in MB (text such as "OOM" if there is no figure); `error (%)` is the deviation of
    predicted from measured, or from published if nothing was measured.

    Raises:
        UnknownName: there is no such table or reading.
        ValueError: not rows as returned by `run`.
    """
    import pandas as pd

    def by_setup(which: str, rows: list[dict[str, Any]] | None) -> dict[str, Any]:
        given = [] if rows is None else checks.items(which, rows, "rows, as run(…) gives them")
        return {json.dumps(row["setup"], sort_keys=True): peak(row) for row in map(_row_of, given)}

    checks.one_of("reading", reading, READINGS)
    found = {
        "predicted": by_setup("predicted", predicted),
        "measured": by_setup("measured", measured),
    }
    lines = []
    for cell in published(name):
        key = json.dumps(as_setup(cell, reading).to_dict(), sort_keys=True)
        line: dict[str, Any] = {
            axis: cell[axis] for axis in (*AXES, "mixed_precision", "attention")
        }
        line["seq_len"] = int(cell["seq_len"])
        line["published"] = _number(cell["peak_mb"])
        for column, peaks in found.items():
            if peaks:
                line[column] = peaks.get(key)
        against = line.get("measured", line["published"])
        if isinstance(line.get("predicted"), float) and isinstance(against, float):
            line["error (%)"] = 100 * (line["predicted"] / against - 1)
        lines.append(line)
    frame = pd.DataFrame(lines)
    empty = [axis for axis in (*AXES, "mixed_precision") if frame[axis].nunique() == 1]
    return frame.drop(columns=empty)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def layout(compared: pd.DataFrame, column: str = "predicted") -> pd.DataFrame:
    """Lay out one column of `compare` as in the sources: a column per attention implementation.

    Raises:
        UnknownName: there is no such column.
        ValueError: not a table as returned by `compare`.
    """
    import pandas as pd

    checks.a("compared", compared, pd.DataFrame, "a table as compare(…) gives it")
    checks.one_of("column", "attention", compared.columns)
    checks.one_of("column", column, compared.columns)
    kept = [name for name in compared.columns if name in (*AXES, "mixed_precision")]
    table = compared.set_index([*kept, "attention"])[column].unstack("attention", sort=False)
    return table.rename(columns={"eager": "Eager", "sdpa": "SDPA", "flash_attention_2": "FA2"})


def heat_map(
    table: pd.DataFrame,
    axis: Axes,
    limit_mb: float | None = None,
    scale: tuple[float, float] | None = None,
) -> AxesImage:
    """Draw a table of MB as a heat map with its figures; cells without a number stay grey.

    Args:
        table: as returned by `layout`.
        axis: the Matplotlib axes to draw on.
        limit_mb: a GPU's memory; figures above it are bold.
        scale: the MB at which the logarithmic colours begin and end, for several heat maps that are
            to be compared; by default the table's own smallest and largest figure.

    Returns:
        The image, for `figure.colorbar`.

    Raises:
        ValueError: not a table, no axes, a limit of 0 or less, or a scale that is no two rising
            numbers above 0.
    """
    import matplotlib
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

    checks.a("table", table, pd.DataFrame, "a table as layout(…) gives it")
    checks.a("axis", axis, Axes, "matplotlib's Axes, as plt.subplots() gives them")
    if limit_mb is not None:
        checks.number("limit_mb", limit_mb, above=0)
    if scale is not None:
        ends = checks.items("scale", scale, "MB")
        if len(ends) != 2:
            raise checks.refuse("scale", scale, "two numbers of MB, such as (1_000, 20_000)")
        low = checks.number("scale", ends[0], above=0)
        scale = (low, checks.number("scale", ends[1], above=low))
    numbers = table.apply(pd.to_numeric, errors="coerce")
    image = np.ma.masked_invalid(numbers.to_numpy(dtype=float))
    colours = matplotlib.colormaps["YlOrRd"].with_extremes(bad="0.85")
    norm = LogNorm(*(scale or (None, None)))
    drawn = axis.imshow(image, cmap=colours, norm=norm, aspect="auto")
    for row, column in itertools.product(*map(range, table.shape)):
        value = numbers.iat[row, column]
        text = str(table.iat[row, column]) if np.isnan(value) else f"{value:,.0f}"
        dark = not np.isnan(value) and norm(value) > 0.7
        heavy = limit_mb is not None and value > limit_mb
        axis.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
            fontweight="bold" if heavy else "normal",
        )
    axis.set_xticks(range(table.shape[1]), table.columns)
    names = table.index.names
    labels = [
        ", ".join(f"{name} {value}" for name, value in zip(names, _tuple(entry), strict=True))
        for entry in table.index
    ]
    axis.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axis.grid(False)
    axis.tick_params(length=0)
    return drawn


def _tuple(entry: Any) -> tuple:
    return entry if isinstance(entry, tuple) else (entry,)


def _short(label: str) -> str:
    for long, short in (
        ("grad_checkpointing yes", "checkpointing"),
        ("grad_checkpointing no", "–"),
        ("lora yes", "LoRA"),
        ("lora no", "–"),
        ("optimizer adam_8bit", "8-bit Adam"),
        ("optimizer adam", "Adam"),
        ("grad_accumulation yes", "accumulation"),
        ("grad_accumulation no", "–"),
        ("mixed_precision yes", "mixed"),
        ("mixed_precision no", "–"),
        ("seq_len ", ""),
    ):
        label = label.replace(long, short)
    return " · ".join(part for part in label.split(", ") if part != "–") or "plain"
