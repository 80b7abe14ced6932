"""The course's tasks for EleutherAI's lm-eval, and a table of lm-eval's results.

The two tasks, in the folder `tasks`, ask the held-out questions about countries and do not need a
network. Introduced in notebook 08.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from course_utils._core import checks
from course_utils.scoring._intervals import bootstrap_interval

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

COURSE_TASKS = ("course_countries_choice", "course_countries_generate")


def course_task_manager() -> TaskManager:
    """Create an lm-eval `TaskManager` for the tasks in `COURSE_TASKS` and for your own tasks.

    It omits lm-eval's own tasks, of which there are over ten thousand: listing them takes some
    seconds. For tasks on the hub, call `simple_evaluate` without a task manager.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=Path(__file__).parent / "tasks", include_defaults=False)


def benchmark_results(results: dict[str, Any]) -> pd.DataFrame:
    """Convert lm-eval's results to a table, one row per task and metric.

    Args:
        results: the result of `lm_eval.simple_evaluate`.

    Returns:
        `task`, `metric`, `value` (in the metric's unit: shares from 0 to 1 for `acc`, `acc_norm`
        and `exact_match`), `low` and `high` (the ends of its 95% confidence interval; see
        `bootstrap_interval`) and `n` (items asked). The ends are NaN for a group and for a metric
        that is not a mean over the items.

    Raises:
        BadValue: not the results of lm-eval.
    """
    found = results.get("results") if isinstance(results, dict) else None
    if not isinstance(found, dict):
        raise checks.refuse("results", results, "what lm_eval.simple_evaluate(…) returns")
    rows = []
    for task, figures in found.items():
        for key, value in figures.items():
            metric, comma, way = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = results.get("samples", {}).get(task, [])
            scores = [each[metric] for each in samples if metric in each and each["filter"] == way]
            low = high = math.nan
            if scores and math.isclose(sum(map(float, scores)) / len(scores), value):
                interval = bootstrap_interval([float(score) for score in scores])
                low, high = interval.low, interval.high
            rows.append(
                {
                    "task": task,
                    # A task may filter the replies in several ways, with one value for each.
                    "metric": metric if way == "none" else f"{metric} ({way})",
                    "value": float(value),
                    "low": low,
                    "high": high,
                    "n": len(scores) or figures.get("sample_len", 0),
                }
            )
    return pd.DataFrame(rows, columns=["task", "metric", "value", "low", "high", "n"])
