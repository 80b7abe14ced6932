"""Well-known benchmarks: what they ask, and what that costs. Introduced in notebook 08."""

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
    """What the file says of each benchmark, by its name."""
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
    """The rough cost of a benchmark.

    Attributes:
        benchmark: its name.
        items: how many are asked.
        tokens: that go through the model.
        flops: floating-point operations.
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
    """What it takes to ask a model the questions of a benchmark, roughly.

    2 floating-point operations for each parameter and token. Source: Kaplan and others, "Scaling
    laws for neural language models" (arXiv 2001.08361), section 2.1, where the parameters are those
    without the embeddings, and the part of attention is left out, which is small for short texts.
    Tokens are counted once each, as a cache of keys and values allows.

    Args:
        benchmark: a name in `benchmarks_table()`, or its task's name in lm-eval.
        parameters: of the model: 7e9 for seven billion.
        items: how many are asked; by default all.

    Raises:
        UnknownName: another benchmark.
        BadValue: no parameters or items.
        ValueError: a benchmark whose items have not been counted.
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
    """The well-known benchmarks: what they measure, and what they cost.

    Args:
        parameters: of a model, to see what each costs; see `benchmark_cost`.
        flops_per_second: of a device, to see how long each takes; needs `parameters`. It is often a
            third of what the data sheet says, or less.

    Returns:
        A row for each benchmark, with `measures`, `items`, `form`, `requests` (per item), `task`
        (in lm-eval), `paper` and `note`; with parameters also `tokens (rough)` and `FLOPs (rough)`,
        with a device `hours (rough)`. NaN where the items have not been counted.

    Raises:
        BadValue: figures that are not above 0.
        ValueError: a device without parameters.
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
