"""EleutherAI's evaluation harness (lm-eval) for a model that is in memory already.

`evaluate(model, tokenizer, tasks)` gives a table. Two tasks of the course's own, on its questions
about countries, need no network; those of the hub go by their names in lm-eval. `BENCHMARKS` tells
of the well-known ones what they ask and what that costs. Introduced in notebook 08.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import math
import os
import random
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from course_utils._core import checks
from course_utils._core.undisturbed import quiet_libraries
from course_utils.errors import HubUnreachable, UnsafeTask
from course_utils.models import _hub as hub
from course_utils.models._catalog import near_matches, unknown

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel

_HERE = Path(__file__).parent
TASKS_FOLDER = _HERE / "tasks"
OWN_TASKS = ("course_countries_choice", "course_countries_generate")
# What `datasets` reads from files of this machine.
_FILE_FORMATS = ("arrow", "csv", "json", "parquet", "text")
# For metrics whose error has no formula. lm-eval's 100,000 take minutes.
_BOOTSTRAPS = 1000
_MOST_COUNTED = 10**18  # parameters of a model, or items of a benchmark
_MOST = 10**5  # sequences at a time, or examples before a question
_NUMBER = (int, float, np.number)


# ---------------------------------------------------------------------------------------- tasks


def _local_tasks(include_path: str | Path | None) -> TaskManager:
    """The course's tasks, and those of a folder of the learner's; read anew, as they may change."""
    from lm_eval.tasks import TaskManager

    folders = [TASKS_FOLDER]
    if include_path is not None:
        folder = checks.path("include_path", include_path)
        if not folder.is_dir():
            raise ValueError(f"include_path is {folder}; a folder with task files is possible.")
        folders.append(folder)
    return TaskManager(include_path=folders, include_defaults=False)


@functools.cache
def all_tasks() -> TaskManager:
    """lm-eval's list of its tasks, groups and tags, of which there are over ten thousand.

    Putting it together takes some seconds, so it is done once a process. Introduced in notebook 08.

    Returns:
        lm-eval's `TaskManager`; its `all_tasks`, `all_groups` and `all_tags` are lists of names.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _leaves(manager: TaskManager, spec: str | dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The settings of all tasks that a name stands for: a task, a group's or a tag's tasks."""
    if isinstance(spec, dict) and isinstance(spec.get("task"), list):
        name, settings = "", spec
    elif isinstance(spec, dict):
        name = spec.get("task") or spec.get("group") or ""
        entry = manager.task_index.get(name)
        settings = {**((entry and entry.cfg) or {}), **spec}
    else:
        name = spec
        entry = manager.task_index.get(name)
        settings = (entry and entry.cfg) or {}
    if name in manager.all_tags:
        children = sorted(manager.task_index[name].tags)
    elif isinstance(settings.get("task"), list):
        children = settings["task"]
    else:
        yield {"task": name, **settings}
        return
    for child in children:
        yield from _leaves(manager, child)


def _needs_hub(settings: dict[str, Any]) -> bool:
    """Whether a task of this machine has its data on the hub."""
    if "custom_dataset" in settings or "class" in settings:
        return False
    source = settings.get("dataset_path") or ""
    if source in _FILE_FORMATS:
        files = (settings.get("dataset_kwargs") or {}).get("data_files", "")
        return "://" in str(files)
    return not Path(source).exists()


def _may_ask_hub() -> bool:
    """Whether to go on with tasks of the hub; told to be offline, the libraries use their cache."""
    return bool(constants.HF_HUB_OFFLINE) or hub.reachable()


def _out_of_reach(names: Sequence[str], local: Sequence[str]) -> HubUnreachable:
    return HubUnreachable(
        f"{', '.join(names)}: to be had from the hub only, which is out of reach. These work "
        f"without it: {', '.join(local)}. With data that are in this machine's cache already, set "
        "HF_HUB_OFFLINE=1 before Python starts."
    )


def _name(task: str | dict[str, Any]) -> str | None:
    """What a task is looked up by; None for settings that bring their own data."""
    if isinstance(task, str):
        return task
    alone = {"dataset_path", "custom_dataset", "class", "group"} & task.keys()
    return None if alone or not isinstance(task["task"], str) else task["task"]


def _load(manager: TaskManager, task: str | dict[str, Any]) -> list[Any]:
    """A task, a group's or a tag's tasks, or a task with changed settings.

    lm-eval takes settings on the outermost level for a whole task, and in a group for changes.
    """
    spec = {"group": "changed", "task": [task]} if isinstance(task, dict) else task
    loaded = manager.load(spec)
    groups = loaded.get("groups", {})
    if isinstance(task, str) and task in groups:
        return [groups[task]]
    return list(loaded["tasks"].values())


def _choose(
    tasks: Sequence[str | dict[str, Any]], include_path: str | Path | None, unsafe_confirmed: bool
) -> tuple[TaskManager, list[Any]]:
    """The list of tasks to go by, and what to hand to the harness.

    Raises:
        UnknownName, HubUnreachable, UnsafeTask, ValueError: see `run_tasks`.
    """
    names = [_name(task) for task in tasks]
    foreign = [name for name in names if name is not None and name not in OWN_TASKS]
    # Before lm-eval is imported, so that the answer does not keep anyone waiting.
    if foreign and include_path is None and not _may_ask_hub():
        for name in foreign:
            if near_matches(name, list(OWN_TASKS)):
                why = "All others need the hub, which is out of reach."
                raise unknown("task", name, list(OWN_TASKS), why)
        raise _out_of_reach(foreign, OWN_TASKS)

    local = _local_tasks(include_path)
    foreign = [name for name in foreign if name not in local.task_index]
    own = [
        leaf
        for task, name in zip(tasks, names, strict=True)
        if name not in foreign
        for leaf in _leaves(local, task)
    ]
    for leaf in own:
        if set(leaf) == {"task"}:
            why = "A group of your own can hold tasks of its folder and the course's."
            raise unknown("task", leaf["task"], local.all_tasks, why)
    online = [str(leaf["task"]) for leaf in own if _needs_hub(leaf)]
    if (foreign or online) and not _may_ask_hub():
        works = [name for name in local.all_tasks if name not in online]
        raise _out_of_reach([*foreign, *online], works)
    manager = all_tasks() if foreign else local
    known = sorted({*manager.all_tasks, *local.all_tasks}, key=lambda name: (len(name), name))
    for name in foreign:
        if name not in manager.task_index:
            # With nothing alike, the names of over ten thousand are no help.
            shown = known if near_matches(name, known) else [*local.all_tasks, *_well_known()]
            raise unknown("task", name, shown, "`all_tasks().all_tasks` has them all.")
    sources = [manager if name in foreign else local for name in names]
    for task, name, source in zip(tasks, names, sources, strict=True):
        several = {*source.all_groups, *source.all_tags}
        if isinstance(task, dict) and name in several:
            raise ValueError(
                f"{name} is more than one task, and settings change one: name those of its tasks "
                "that you mean."
            )
    if not unsafe_confirmed:
        for task, name, source in zip(tasks, names, sources, strict=True):
            # By the name as well: changed settings must not hide it.
            leaves = [*_leaves(source, task), *(_leaves(source, name) if name else [])]
            running = [str(leaf["task"]) for leaf in leaves if leaf.get("unsafe_code")]
            if running:
                raise UnsafeTask(
                    f"{', '.join(running[:3])} runs the code that the model writes on this "
                    "machine, with all your rights. Do so only where nothing can be lost, such as "
                    "in a container without a network, and say confirm_run_unsafe_code=True."
                )
    chosen: list[Any] = []
    for task, name, source in zip(tasks, names, sources, strict=True):
        if name is None or (source is manager and isinstance(task, str)):
            chosen.append(task)
        else:
            # What the list does not have as it is wanted, lm-eval gets made.
            chosen += _load(source, task)
    return manager, chosen


# ----------------------------------------------------------------------------------- evaluation


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable, for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """No notes, warnings and bars of the libraries; what they print would bury a notebook's cell.

    Args:
        progress: leave the bars, for what takes long.
    """
    import datasets

    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with contextlib.ExitStack() as stack:
            # Else some metrics fork this process, with its threads and its GPU.
            stack.enter_context(_environment("DISABLE_MULTIPROC", "1"))
            stack.enter_context(quiet_libraries())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if not progress:
                # lm-eval has no switch for its bars and for what it prints.
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        log.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Leave a model and the random state as they were; lm-eval sets seeds for all."""
    training = {module: module.training for module in model.modules()}
    state, numpy_state = random.getstate(), np.random.get_state()
    cuda = [model.device] if model.device.type == "cuda" else []
    # lm-eval ties a model's weights anew. Those of a loaded model are tied, and a second time
    # breaks on adapters with `modules_to_save` or `trainable_token_indices`.
    model.tie_weights = lambda *_, **__: None
    try:
        with torch.random.fork_rng(cuda):
            yield
    finally:
        del model.tie_weights
        random.setstate(state)
        np.random.set_state(numpy_state)
        for module, was in training.items():
            module.training = was


def _check(tasks: Any, limit: Any, num_fewshot: Any, batch_size: Any) -> list[Any]:
    if isinstance(tasks, str | dict):
        tasks = [tasks]
    tasks = checks.items("tasks", tasks, "names or settings of tasks")
    if not tasks:
        raise ValueError(f"tasks is empty; {', '.join(OWN_TASKS)} work everywhere.")
    for task in tasks:
        if not isinstance(task, str | dict):
            raise ValueError(
                f"tasks holds a {type(task).__name__}; names are possible, or dictionaries of "
                "settings as in a task file."
            )
        if isinstance(task, str):
            checks.text("tasks", task, empty=False)
        elif "task" not in task:
            raise ValueError(
                f"tasks holds settings without a name: {checks.shown(task)}. Say task=…."
            )
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1
    if not (limit is None or whole or (isinstance(limit, float) and 0 < limit < 1)):
        raise ValueError(
            f"limit is {checks.shown(limit)}; a number of items from 1, a share between 0 and 1, "
            "or None for all is possible."
        )
    if num_fewshot is not None:
        checks.whole("num_fewshot", num_fewshot, 0, _MOST)
    if not (isinstance(batch_size, str) and batch_size == "auto"):
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            possible = f'a whole number from 1 to {_MOST:,}, or "auto"'
            raise checks.refuse("batch_size", batch_size, possible)
        checks.whole("batch_size", batch_size, 1, _MOST)
    return tasks


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str = 8,
    *,
    chat_template: bool = False,
    system: str | None = None,
    include_path: str | Path | None = None,
    confirm_run_unsafe_code: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """What lm-eval finds out about a model: what its `simple_evaluate` does, quietly.

    Introduced in notebook 08; `summary` and `items` make tables of it. Seeds are lm-eval's own
    defaults, so that a run can be compared with others; model, tokenizer and the random state
    outside stay as they were, and nothing is written but what `datasets` keeps in its own cache.
    Nothing is ever loaded with `trust_remote_code`. Some tasks of the hub, SQuAD 2.0 among them,
    have a metric that the library `evaluate` fetches from the hub and runs; the course's have not.

    Args:
        model: a causal language model, with or without adapters of peft, where it is.
        tokenizer: of the model.
        tasks: names of tasks, groups or tags, such as "mmlu"; or settings as in a task file, in a
            dictionary. With its own data (`dataset_path`) it is a new task, without them it
            changes the one that its `task` names. The course's own are in `OWN_TASKS`.
        limit: ask only the first so many items of each task; a number between 0 and 1 is a share.
            For a first look: a benchmark's figure is that of all its items.
        num_fewshot: so many answered examples in front of each question; by default as many as the
            task says. A task that says 0 keeps to it.
        batch_size: sequences at a time, or "auto".
        chat_template: put each question into the tokenizer's chat template, for a chat model.
        system: a system prompt for that template.
        include_path: a folder with task files of your own.
        confirm_run_unsafe_code: allow tasks that run what the model writes, such as HumanEval.
        progress: show lm-eval's progress bars.

    Returns:
        lm-eval's own dictionary, with `results`, `samples`, `n-samples` and more.

    Raises:
        UnknownName: a task that is not known; near matches are named.
        HubUnreachable: a task of the hub, while it is out of reach; within 3 seconds.
        UnsafeTask: a task that runs code, without a confirmation.
        ValueError: a limit, number of examples or batch size that is not possible; changes to a
            group; a chat template that the tokenizer does not have; no model or tokenizer.
    """
    checks.a("model", model, torch.nn.Module, "a model, as load_model gives it")
    possible = "a tokenizer, as load_tokenizer gives it"
    checks.a("tokenizer", tokenizer, PreTrainedTokenizerBase, possible)
    for name, switch in (
        ("chat_template", chat_template),
        ("confirm_run_unsafe_code", confirm_run_unsafe_code),
        ("progress", progress),
    ):
        checks.flag(name, switch)
    if system is not None:
        checks.text("system", system)
    if include_path is not None:
        checks.path("include_path", include_path, folder=True)
    tasks = _check(tasks, limit, num_fewshot, batch_size)
    if chat_template and tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path} has no chat template, as those of base models "
            "often don't; chat_template=False is possible."
        )
    if system is not None and not chat_template:
        raise ValueError("A system prompt needs the chat template: chat_template=True.")
    with _quiet(progress):
        manager, chosen = _choose(tasks, include_path, confirm_run_unsafe_code)
        with _as_it_was(model):
            try:
                return _evaluate(
                    model,
                    # lm-eval sets the padding; so it gets a copy.
                    copy.deepcopy(tokenizer),
                    manager.load(chosen),
                    num_fewshot,
                    batch_size,
                    limit=limit,
                    apply_chat_template=chat_template,
                    system_instruction=system,
                    confirm_run_unsafe_code=confirm_run_unsafe_code,
                )
            except ConnectionError as error:
                names = [task if isinstance(task, str) else str(task.get("task")) for task in tasks]
                raise HubUnreachable(
                    f"{', '.join(names)}: not all data are in this machine's cache, and the hub is "
                    f"out of reach ({error}). These work without it: {', '.join(OWN_TASKS)}."
                ) from None


def _evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    loaded: Any,
    num_fewshot: int | None,
    batch_size: int | str,
    **options: Any,
) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` without its look at the machine.

    That takes a second each time, by a handful of other programs, and git among them complains in
    the notebook where a course's folder is no clone. A test holds the figures equal.
    """
    from lm_eval import evaluate as evaluate_loaded
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.models.huggingface import HFLM

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)
    for task in loaded["tasks"].values():
        said = task.get_config("num_fewshot")
        if said is None or (said != 0 and num_fewshot is not None):
            task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return evaluate_loaded(
        lm=HFLM(model, tokenizer=tokenizer, batch_size=batch_size),
        task_dict=loaded,
        bootstrap_iters=_BOOTSTRAPS,
        fewshot_as_multiturn=True,
        **options,
    )


def _part(results: Any, name: str) -> dict[str, Any]:
    """What lm-eval found, by task."""
    found = results.get(name) if isinstance(results, dict) else None
    if not isinstance(found, dict):
        possible = f"what run_tasks(…) gives, a dictionary with {name!r}"
        raise checks.refuse("results", results, possible)
    return found


def summary(results: dict[str, Any]) -> pd.DataFrame:
    """What `run_tasks` found, a row for each task and metric.

    Introduced in notebook 08.

    Args:
        results: of `run_tasks`, or of lm-eval's `simple_evaluate`.

    Returns:
        `task`, `metric`, `value` (in the metric's unit: shares from 0 to 1 for `acc`, `acc_norm`
        and `exact_match`), `stderr` (its standard error; NaN where lm-eval has none), `n` (items
        asked).

    Raises:
        ValueError: what are no results of the harness.
    """
    rows = []
    for task, found in _part(results, "results").items():
        for key, value in found.items():
            metric, comma, way = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, _NUMBER):
                continue
            error = found.get(f"{metric}_stderr,{way}")
            counts = found.get("sample_count") or {}
            rows.append(
                {
                    "task": task,
                    # A task may cut the replies in several ways, and gives a figure for each.
                    "metric": metric if way == "none" else f"{metric} ({way})",
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, _NUMBER) else math.nan,
                    "n": int(counts.get(key, found.get("sample_len", 0))),
                }
            )
    return pd.DataFrame(rows, columns=["task", "metric", "value", "stderr", "n"])


def items(results: dict[str, Any]) -> pd.DataFrame:
    """What `run_tasks` found, a row for each item: to read, and for a paired comparison.

    Introduced in notebook 08.

    Args:
        results: of `run_tasks`, or of lm-eval's `simple_evaluate`.

    Returns:
        `task`, `item` (its place in the test), `prompt`, `wanted`, `said` (the reply as it was
        scored, or the choice that was likeliest), and a column for each metric that has one number
        for each item.

    Raises:
        ValueError: what are no results of the harness, or such without samples.
    """
    rows = []
    for task, samples in _part(results, "samples").items():
        for sample in samples:
            requests = sample["arguments"]
            wanted, said = sample["target"], sample["filtered_resps"]
            scored = [answer[0] for answer in said if isinstance(answer, tuple)]
            if len(scored) == len(said) > 1:
                # Choices differ in their ends, or where these are the same, in their beginnings.
                choices = [request[1] for request in requests]
                if len(set(choices)) == 1:
                    choices = [request[0] for request in requests]
                said = choices[int(np.argmax(scored))].strip()
                if isinstance(wanted, int):
                    wanted = choices[wanted].strip()
            else:
                said = said[0]
            row = {"task": task, "item": sample["doc_id"], "prompt": requests[0][0]}
            if sample["filter"] != "none":
                row["filter"] = sample["filter"]
            row |= {"wanted": wanted, "said": said}
            for metric in sample["metrics"]:
                if isinstance(sample[metric], _NUMBER):
                    row[metric] = float(sample[metric])
            rows.append(row)
    return pd.DataFrame(rows)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | dict[str, Any] | Sequence[str | dict[str, Any]],
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    batch_size: int | str = 8,
    **options: Any,
) -> pd.DataFrame:
    """A model's figures on benchmarks: `summary` of `run_tasks`, whose arguments and errors it has.

    Introduced in notebook 08.

    Returns:
        `task`, `metric`, `value`, `stderr` and `n`; see `summary`.
    """
    return summary(run_tasks(model, tokenizer, tasks, limit, num_fewshot, batch_size, **options))


# ----------------------------------------------------------------------------------- benchmarks


@dataclass(frozen=True)
class Benchmark:
    """A well-known benchmark, as lm-eval asks it by default. Introduced in notebook 08.

    Attributes:
        name, task: what it is called, and its name in lm-eval.
        measures, parts, note: in words.
        form: "choice", "generation" or "both".
        items: questions that are asked; None where they have not been counted.
        requests: for one item, on average.
        passes: forward passes for one item, on average.
        tokens: of one pass, roughly.
        written: tokens that the model writes for an item, roughly.
        paper: where it was introduced.
    """

    name: str
    task: str
    measures: str
    form: str
    items: int | None
    requests: float
    passes: float
    tokens: int
    written: int
    paper: str
    parts: str = ""
    note: str = ""


def _read_benchmarks(path: Path = _HERE / "benchmarks.toml") -> dict[str, Benchmark]:
    usual = {"items": None, "written": 0}
    with checks.course_file(path):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        if not data:
            raise ValueError("no benchmark is in it")
        return {
            name: Benchmark(name=name, **{**usual, "passes": entry["requests"], **entry})
            for name, entry in data.items()
        }


BENCHMARKS = _read_benchmarks()


def _well_known() -> list[str]:
    return [benchmark.task for benchmark in BENCHMARKS.values()]


@dataclass(frozen=True)
class Cost:
    """What a benchmark takes, roughly. Introduced in notebook 08.

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

    def hours(self, flops_per_second: float) -> float:
        """How long it takes on a device, in hours.

        Args:
            flops_per_second: what the device does with such a model; often a third of what its
                data sheet says, or less.

        Raises:
            ValueError: 0 or less.
        """
        checks.number("flops_per_second", flops_per_second, above=0)
        return self.flops / flops_per_second / 3600

    def __str__(self) -> str:
        return (
            f"{self.benchmark}: {self.items:,} items, about {self.tokens:.1e} tokens and "
            f"{self.flops:.1e} floating-point operations"
        )


def cost(benchmark: str, parameters: float, items: int | None = None) -> Cost:
    """What it takes to ask a model all questions of a benchmark, roughly.

    2 floating-point operations for each parameter and token. Source: Kaplan and others, "Scaling
    laws for neural language models" (arXiv 2001.08361), section 2.1, where the parameters are those
    without the embeddings, and the part of attention is left out, which is small for short texts.
    Tokens are counted once each, as a cache of keys and values allows. Introduced in notebook 08.

    Args:
        benchmark: a name in `BENCHMARKS`, or a task's name there.
        parameters: of the model: 7e9 for seven billion.
        items: how many are asked; by default all.

    Raises:
        UnknownName: another benchmark.
        ValueError: no parameters or items; or a benchmark whose items have not been counted.
    """
    by_name = {**{entry.task: entry for entry in BENCHMARKS.values()}, **BENCHMARKS}
    if not isinstance(benchmark, str) or benchmark not in by_name:
        raise unknown("benchmark", benchmark, list(BENCHMARKS))
    entry = by_name[benchmark]
    checks.number("parameters", parameters, above=0, most=_MOST_COUNTED)
    if items is not None:
        checks.whole("items", items, 1, _MOST_COUNTED)
    asked = entry.items if items is None else items
    if asked is None:
        raise ValueError(f"The items of {entry.name} have not been counted; give items=….")
    tokens = round(asked * (entry.passes * entry.tokens + entry.written))
    return Cost(entry.name, asked, tokens, 2.0 * parameters * tokens)


def benchmarks_table(
    parameters: float | None = None, flops_per_second: float | None = None
) -> pd.DataFrame:
    """The well-known benchmarks: what they measure, and what they take.

    Introduced in notebook 08. Source of the costs: see `cost`.

    Args:
        parameters: of a model, to see what each costs.
        flops_per_second: of a device, to see how long each takes; needs `parameters`.

    Returns:
        A row for each benchmark, with `measures`, `items`, `form`, `requests` (for an item),
        `task` (in lm-eval) and `paper`; with parameters also `tokens (rough)` and `FLOPs (rough)`,
        with a device `hours (rough)`. NaN where the items have not been counted.

    Raises:
        ValueError: a device without parameters, or figures that are not above 0.
    """
    if flops_per_second is not None and parameters is None:
        raise ValueError("flops_per_second needs the parameters of a model too.")
    if parameters is not None:
        checks.number("parameters", parameters, above=0, most=_MOST_COUNTED)
    if flops_per_second is not None:
        checks.number("flops_per_second", flops_per_second, above=0)
    rows = []
    for entry in BENCHMARKS.values():
        row: dict[str, Any] = {
            "benchmark": entry.name,
            "measures": entry.measures,
            "items": entry.items,
            "form": entry.form,
            "requests": entry.requests,
            "task": entry.task,
            "paper": entry.paper,
        }
        if parameters is not None and entry.items is not None:
            found = cost(entry.name, parameters)
            row |= {"tokens (rough)": float(found.tokens), "FLOPs (rough)": found.flops}
            if flops_per_second is not None:
                row["hours (rough)"] = found.hours(flops_per_second)
        rows.append(row)
    table = pd.DataFrame(rows).set_index("benchmark")
    table["items"] = table["items"].astype("Int64")
    return table
