"""Find what fits on a GPU, and how to make training fit. Introduced in notebook 05."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.errors import ImpossibleSetup, NotTrainable
from course_utils.memory._gpus import MIB, Gpu
from course_utils.memory._gpus import gpu as gpu_by_name
from course_utils.memory._predict import Prediction, predict
from course_utils.memory._setup import MOST, Setup, config_of, known_fields

if TYPE_CHECKING:
    import pandas as pd

LARGEST_BATCH = 1024

# The usual ways to train, from the largest to the smallest.
METHODS: dict[str, dict[str, Any]] = {
    "all weights, 32-bit with mixed precision": {"dtype": "float32", "mixed_precision": True},
    "all weights, 16-bit": {},
    "all weights, 16-bit, 8-bit Adam": {"optimizer": "adamw_bnb_8bit"},
    "LoRA on 16-bit": {"lora": True, "lora_targets": "all-linear"},
    "LoRA on 8-bit": {"lora": True, "lora_targets": "all-linear", "quantization": "8bit"},
    "QLoRA": {
        "lora": True,
        "lora_targets": "all-linear",
        "quantization": "nf4-double",
        "optimizer": "paged_adamw_8bit",
    },
}

# Changes that save memory, cheapest first: what to change, and what it costs.
CHANGES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("attention", {"attention": "sdpa"}, "nothing: the same results, faster"),
    ("fused optimizer", {"optimizer": "adamw_torch_fused"}, "nothing: the same results, faster"),
    ("8-bit Adam", {"optimizer": "adamw_bnb_8bit"}, "a rounding of the optimizer's states"),
    ("smaller micro-batches", {"batch_size": "half"}, "more of them for the same step"),
    ("checkpointing", {"checkpointing": "non-reentrant"}, "about a third more computing"),
    ("LoRA", {"lora": True, "lora_targets": "all-linear"}, "fewer trained weights"),
    ("4-bit weights", {"quantization": "nf4-double"}, "rounded weights; needs LoRA"),
    ("half the length", {"seq_len": "half"}, "longer examples are cut"),
)


def usable_bytes(gpu: Gpu | str) -> int:
    """Return the bytes available to PyTorch's allocator: a process's share less its CUDA context.

    Raises:
        UnknownName: the GPU's name is not known.
    """
    gpu = gpu_by_name(gpu)
    return max(0, gpu.process_mib - gpu.context_mib) * MIB


def fits(setup: Setup, gpu: Gpu | str) -> Prediction | None:
    """Return the prediction for a setup if it fits on a GPU, else None.

    A setup does not count as fitting if PyTorch would have to free cached memory to continue:
    measured training runs that close to the limit of a T4 ran out of memory.

    Raises:
        UnknownName: the GPU's name is not known.
    """
    found = predict(setup, gpu_by_name(gpu))
    return found if found.fits else None


def largest_batch(setup: Setup, gpu: Gpu | str) -> int:
    """Return the largest batch size that fits; 0 if none does.

    Memory grows almost linearly with the batch size, so two predictions give a guess and a few
    more confirm it.

    Raises:
        UnknownName: the GPU's name is not known.
    """
    gpu = gpu_by_name(gpu)
    checks.a("setup", setup, Setup, "a Setup")
    first = fits(setup.replace(batch_size=1), gpu)
    if first is None:
        return 0
    good, bad = 1, LARGEST_BATCH + 1
    known = [(1, first.peak_reserved_mb)]
    guess = 2
    while bad - good > 1:
        found = fits(setup.replace(batch_size=guess), gpu)
        if found is None:
            bad = guess
        else:
            good = guess
            known = [*known[-1:], (guess, found.peak_reserved_mb)]
        guess = _next_guess(known, usable_bytes(gpu) / 1e6, good, bad)
    return good


def _next_guess(known: list[tuple[int, float]], limit: float, good: int, bad: int) -> int:
    guess = (good + bad) // 2
    if len(known) == 2 and known[1][1] > known[0][1]:
        (x0, y0), (x1, y1) = known
        guess = int(x1 + (limit - y1) * (x1 - x0) / (y1 - y0))
    return min(max(guess, good + 1), bad - 1)


def fit(
    model: str,
    gpu: Gpu | str,
    lengths: Iterable[int] = (512, 2048),
    methods: dict[str, dict[str, Any]] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Find the largest batch size for each way of training a model, by example length.

    Args:
        model: as in `Setup`.
        gpu: a GPU, or its name.
        lengths: tokens per example.
        methods: names and arguments of `Setup`; `METHODS` if None. Each is tried without and with
            gradient checkpointing.
        progress: show a progress bar.

    Returns:
        One row per method, one column per length; 0 if not even one example fits, "–" if the method
        is impossible, or fails with the installed libraries.

    Raises:
        UnknownName: the model or GPU is not known.
        ValueError: an invalid length, or invalid methods.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    gpu = gpu_by_name(gpu)
    dtype = "bfloat16" if gpu.computes_bfloat16 else "float16"
    lengths = [
        checks.whole("lengths", length, 1, MOST)
        for length in checks.items("lengths", lengths, "numbers of tokens", empty=False)
    ]
    checks.flag("progress", progress)
    methods = METHODS if methods is None else methods
    possible = "a dictionary of names and, for each, a dictionary of Setup's arguments"
    if not (
        isinstance(methods, dict)
        and methods
        and all(isinstance(method, dict) for method in methods.values())
    ):
        raise checks.refuse("methods", methods, possible)
    for method in methods.values():
        known_fields(method)
    config_of(model)  # an unknown model raises here, rather than in a cell of the table
    cases = list(itertools.product(methods.items(), ("none", "non-reentrant"), lengths))
    cells: dict[str, dict[int, int | str]] = {}
    for (name, options), checkpointing, length in tqdm(cases, disable=not progress, leave=False):
        label = name if checkpointing == "none" else f"{name}, checkpointing"
        try:
            setup = Setup(
                model, **{"dtype": dtype, **options}, checkpointing=checkpointing, seq_len=length
            )
            cell: int | str = largest_batch(setup, gpu)
        except (ImpossibleSetup, NotTrainable):
            cell = "–"
        cells.setdefault(label, {})[length] = cell
    table = pd.DataFrame(cells).T
    table.columns.name = "largest batch for examples of … tokens"
    return table


def _now(setup: Setup, name: str) -> Any:
    """Return a field's value, with None and "auto" resolved."""
    if name == "checkpointing":
        return setup.checkpoints
    value = getattr(setup, name)
    return "sdpa" if name == "attention" and value == "auto" else value


def _changed(setup: Setup, changes: dict[str, Any]) -> Setup | None:
    """Return the setup with changes applied; None if they have no effect or are impossible."""
    values = {}
    for name, value in changes.items():
        now = _now(setup, name)
        values[name] = now // 2 if value == "half" else value
        if value == "half" and now < 2:
            return None
    if all(_now(setup, name) == value for name, value in values.items()):
        return None
    if "batch_size" in values:
        values["accumulation"] = setup.accumulation * 2
    try:
        return setup.replace(**values)
    except ImpossibleSetup:
        return None


def ways_to_fit(
    setup: Setup,
    gpu: Gpu | str,
    wanted: int = 3,
    progress: bool = True,
    together: int = len(CHANGES),
) -> pd.DataFrame:
    """Find the cheapest changes that make a setup fit: single ones first, then combinations.

    Args:
        setup: the setup that does not fit.
        gpu: a GPU, or its name.
        wanted: how many solutions are enough.
        progress: show a progress bar.
        together: the largest number of changes to combine.

    Returns:
        One row per solution: what to change, what it costs, the peak of reserved memory in MB; the
        column `setup` has the changed `Setup`s. A single row "nothing" if it fits as it is; no rows
        if no combination of `CHANGES` is enough.

    Raises:
        UnknownName: the GPU's name is not known.
        ValueError: `wanted` or `together` is below 1.
    """
    import pandas as pd
    from tqdm.auto import tqdm

    gpu = gpu_by_name(gpu)
    checks.whole("wanted", wanted, 1)
    checks.whole("together", together, 1)
    checks.flag("progress", progress)
    found = fits(setup, gpu)
    if found is not None:
        return pd.DataFrame([_answer((), setup, found)])
    answers: list[dict[str, Any]] = []
    enough: list[frozenset[str]] = []
    combinations = [
        combination
        for size in range(1, min(together, len(CHANGES)) + 1)
        for combination in itertools.combinations(CHANGES, size)
    ]
    for combination in tqdm(combinations, disable=not progress, leave=False):
        names = frozenset(name for name, _, _ in combination)
        if any(less <= names for less in enough):  # fewer changes are enough
            continue
        merged: dict[str, Any] = {}
        for _, changes, _ in combination:
            merged |= changes
        changed = _changed(setup, merged)
        # A change without an effect makes a combination equivalent to a smaller one.
        if changed is None or any(_idle(setup, changes, merged) for _, changes, _ in combination):
            continue
        try:
            found = fits(changed, gpu)
        except NotTrainable:
            continue
        if found is not None:
            enough.append(names)
            answers.append(_answer(combination, changed, found))
            if len(answers) == wanted:
                break
    columns = ["change", "cost", "peak reserved (MB)", "setup"]
    return pd.DataFrame(answers, columns=columns)


def _idle(setup: Setup, changes: dict[str, Any], merged: dict[str, Any]) -> bool:
    """Return whether a change has no effect here, or is overruled by another one."""
    return any(merged[name] != value for name, value in changes.items()) or all(
        _now(setup, name) == value for name, value in changes.items()
    )


def _answer(combination: tuple, setup: Setup, found: Prediction) -> dict[str, Any]:
    return {
        "change": " + ".join(name for name, _, _ in combination) or "nothing",
        "cost": "; ".join(cost for _, _, cost in combination),
        "peak reserved (MB)": round(found.peak_reserved_mb),
        "setup": setup,
    }
