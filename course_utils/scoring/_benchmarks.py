"""Well-known benchmarks: what they measure and what they cost. Introduced in notebook 08."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from course_utils._core import checks
from course_utils.errors import unknown

_PATH = Path(__file__).parent / "benchmarks.toml"
_MOST = 10**18  # parameters of a model, or items of a benchmark


def _facts() -> dict[str, dict[str, Any]]:
    """Read the facts about each benchmark, by its name."""
    with checks.course_file(_PATH):
        facts = tomllib.loads(_PATH.read_text(encoding="utf-8"))
        if not facts:
            raise ValueError("no benchmark is in it")
        usual = {"items": None, "written": 0, "note": ""}
        return {
            name: {**usual, "passes": entry["requests"], **entry} for name, entry in facts.items()
        }


@dataclass(frozen=True)
class BenchmarkCost:
    """The approximate cost of a benchmark.

    Attributes:
        benchmark: its name.
        items: the number of items asked.
        tokens: the number of tokens that the model processes.
        flops: the number of floating-point operations.
    """

    benchmark: str
    items: int
    tokens: int
    flops: float

    def __str__(self) -> str:
        return (
            f"{self.benchmark}: {self.items:,} items, about {self.tokens:.1e} tokens and "
            f"{self.flops:.1e} floating-point operations"
        )


def benchmark_cost(benchmark: str, parameters: float, items: int | None = None) -> BenchmarkCost:
    """Estimate what it costs to evaluate a model on a benchmark.

    The estimate is 2 floating-point operations per parameter and token. Source: Kaplan et al.,
    "Scaling laws for neural language models" (arXiv 2001.08361), section 2.1, which excludes the
    embedding parameters and neglects attention, whose share is small for short texts. Each token is
    counted once, as with a KV cache.

    Args:
        benchmark: a name in `benchmarks_table()`, or the name of its task in lm-eval.
        parameters: the model's number of parameters, such as 7e9 for seven billion.
        items: the number of items asked; by default all.

    Raises:
        UnknownName: the benchmark is unknown.
        BadValue: `parameters` or `items` is not a valid number.
        ValueError: the items of this benchmark have not been counted.
    """
    facts = _facts()
    names = {**{entry["task"]: name for name, entry in facts.items()}, **{n: n for n in facts}}
    if not isinstance(benchmark, str) or benchmark not in names:
        raise unknown("benchmark", benchmark, list(facts))
    name = names[benchmark]
    entry = facts[name]
    checks.number("parameters", parameters, above=0, most=_MOST)
    if items is not None:
        checks.whole("items", items, 1, _MOST)
    asked = entry["items"] if items is None else items
    if asked is None:
        raise ValueError(f"The items of {name} have not been counted; give items=….")
    tokens = round(asked * (entry["passes"] * entry["tokens"] + entry["written"]))
    return BenchmarkCost(name, asked, tokens, 2.0 * parameters * tokens)


def benchmarks_table(
    parameters: float | None = None, flops_per_second: float | None = None
) -> pd.DataFrame:
    """List the well-known benchmarks: what they measure and what they cost.

    Args:
        parameters: a model's number of parameters, to add the costs; see `benchmark_cost`.
        flops_per_second: a device's speed, to add the time; requires `parameters`. In practice it
            is often a third of the figure on the data sheet, or less.

    Returns:
        One row per benchmark, with `measures`, `items`, `form`, `requests` (per item), `task` (in
        lm-eval), `paper` and `note`; with `parameters` also `tokens (rough)` and `FLOPs (rough)`,
        with `flops_per_second` also `hours (rough)`. NaN where items have not been counted.

    Raises:
        BadValue: an argument is not above 0.
        ValueError: `flops_per_second` is given without `parameters`.
    """
    if flops_per_second is not None and parameters is None:
        raise ValueError("flops_per_second needs the parameters of a model too.")
    if parameters is not None:
        checks.number("parameters", parameters, above=0, most=_MOST)
    if flops_per_second is not None:
        checks.number("flops_per_second", flops_per_second, above=0)
    shown = ["measures", "items", "form", "requests", "task", "paper", "note"]
    facts = _facts()
    table = pd.DataFrame.from_dict(facts, orient="index")[shown].rename_axis("benchmark")
    table["items"] = table["items"].astype("Int64")
    if parameters is not None:
        counted = [name for name, entry in facts.items() if entry["items"] is not None]
        costs = [benchmark_cost(name, parameters) for name in counted]
        table["tokens (rough)"] = pd.Series([float(cost.tokens) for cost in costs], counted)
        table["FLOPs (rough)"] = pd.Series([cost.flops for cost in costs], counted)
        if flops_per_second is not None:
            table["hours (rough)"] = table["FLOPs (rough)"] / flops_per_second / 3600
    return table
