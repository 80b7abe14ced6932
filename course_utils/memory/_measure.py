"""`measure`: measure the memory and time of training on a GPU by running real steps.

Each measurement runs in its own process, so that all start in the same clean state and any failure
becomes a row. Introduced in notebook 05.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

from course_utils._core import checks
from course_utils.errors import CourseError, ImpossibleSetup, UnknownName
from course_utils.memory._setup import Setup

MB = 1e6
_LONGEST = 10**6  # seconds; the operating system's waits allow no more than about twice as many


class NoGpu(CourseError):
    """Raised when a measurement needs a CUDA device and there is none."""


def measure(
    setup: Setup, timeout: float = 600, weights: str | None = None, device: str = "cuda"
) -> dict[str, Any]:
    """Train for the setup's steps on this machine's GPU, and report the memory and time taken.

    A script that calls it needs the usual `if __name__ == "__main__":`, since the new process
    imports it.

    Args:
        setup: what is trained, and how.
        timeout: seconds after which the process is ended.
        weights: a folder of a saved model, for real weights; None for random ones, which need the
            same memory and time.
        device: "cuda"; "cpu" is for trying out the program, and measures time but not memory.

    Returns:
        A row: `status` ("ok", "OOM", "crash" or "timeout"), `setup`, and on success
        `peak_allocated_mb`, `peak_reserved_mb` and `context_mb` (MB = 10^6 bytes), `phases` with
        the peak of each, `step_seconds` and `tokens_per_second` of steps after the first ones,
        `gpu`, `driver`, `versions`. If out of memory: `asked`, as reported by the allocator.
        Otherwise `error`, the last output of the process.

    Raises:
        NoGpu: there is no CUDA device; `predict` needs none.
        UnknownName: `weights` is not a folder of a saved model, or `device` is not known.
        ValueError: an invalid setup or timeout.
    """
    checks.a("setup", setup, Setup, "a Setup")
    if setup.strategy is not None:
        raise ImpossibleSetup(
            f"measure trains on one GPU, and this setup is for several ({setup.strategy}). "
            "predict(setup) tells the memory of one of them."
        )
    checks.number("timeout", timeout, above=0, most=_LONGEST)
    checks.one_of("device", device, ("cuda", "cpu"))
    if weights is not None:
        weights = str(checks.path("weights", weights))
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise NoGpu(
                "This machine has no CUDA device to measure on. predict(setup) tells the memory "
                "without one."
            )
    if weights is not None and not (Path(weights) / "config.json").is_file():
        raise UnknownName(f"{weights} is no folder of a saved model: no config.json is there.")
    row: dict[str, Any] = {"setup": setup.to_dict(), "how": "measured"}
    start = time.perf_counter()
    here, there = _processes().Pipe(duplex=False)
    process = _processes().Process(
        target=_answer, args=(there, setup, weights, device), daemon=True
    )
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(timeout) else {"status": "timeout"}
    except EOFError:  # the process died without a message
        process.join()
        answer = {"status": "crash", "error": f"the process ended with status {process.exitcode}"}
    if answer["status"] == "timeout":
        answer["error"] = f"not done after {timeout:g} s"
        process.kill()
    process.join()
    return {**row, "wall_seconds": round(time.perf_counter() - start, 1), **answer}


@functools.cache
def _processes() -> Any:
    """Return the context for new processes: on Linux a server that has the libraries imported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["course_utils.memory._trainers", "transformers", "peft", "trl"])
    return context


def _answer(pipe: Any, setup: Setup, weights: str | None, device: str) -> None:
    """Measure in the new process, and report the outcome."""
    try:
        pipe.send(measure_here(setup, weights, device))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()
        pipe.send({"status": "crash", "error": _without_paths(" ".join(said))})


def _without_paths(line: str) -> str:
    """Remove this machine's paths from an error message."""
    return re.sub(r"(/[\w.+-]+){2,}/", "…/", line.strip())[:300]


def measure_here(setup: Setup, weights: str | None, device: str) -> dict[str, Any]:
    """Do the work of `measure`, in its process."""
    import contextlib

    import torch

    from course_utils.memory import _build as build
    from course_utils.memory import _step, _trainers
    from course_utils.memory._predict import versions

    cuda = torch.cuda if device == "cuda" else None
    torch.manual_seed(0)
    peaks: dict[str, float] = {}
    reserved = [0.0]
    current = ["weights"]

    def phase(name: str) -> None:
        if cuda is not None:
            cuda.synchronize()
            peak = cuda.max_memory_allocated() / MB
            peaks[current[0]] = max(peak, peaks.get(current[0], 0.0))
            reserved[0] = max(reserved[0], cuda.max_memory_reserved() / MB)
            cuda.reset_peak_memory_stats()
        current[0] = name

    def batch() -> dict[str, Any]:
        return {
            name: values.to(device) if isinstance(values, torch.Tensor) else values
            for name, values in example.items()
        }

    made = build.model(setup, device, weights)
    if setup.trainer == "loop":
        made = build.prepared_by_hand(setup, made, device)
        optimizer = _trainers.optimizer_by_hand(setup, made)
        example: dict[str, Any] = build.batch(setup, setup.vocabulary)
        dtype = build.DTYPES[setup.autocast] if setup.autocast else None
        scaled = dtype == torch.float16 and cuda is not None
        scaler = torch.amp.GradScaler("cuda") if scaled else None

        def autocast() -> Any:
            return torch.autocast(device, dtype=dtype) if dtype else contextlib.nullcontext()

        def run(tell: Any) -> None:
            _step.by_hand(setup, made, optimizer, batch, tell, autocast, scaler)

    else:
        with _trainers.undisturbed(keep_state=False):
            trainer = _trainers.make(setup, made, device)
            _trainers.prepare(trainer)
        example = _trainers.batch(setup, trainer)

        def run(tell: Any) -> None:
            _step.with_trainer(trainer, batch, tell, setup.runs, setup.accumulation)

    if cuda is not None:
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
    try:
        run(phase)
        phase("done")
        timed = _time(run, cuda)
    except torch.OutOfMemoryError as error:
        return {
            "status": "OOM",
            "asked": str(error).splitlines()[0].split(" Of the allocated")[0],
            **_machine(cuda),
            "versions": versions(),
        }
    steps = max(1, setup.runs // setup.accumulation)
    tokens = setup.batch_size * setup.seq_len * setup.runs
    row = {
        "status": "ok",
        "step_seconds": round(timed / steps, 4),
        "tokens_per_second": round(tokens / timed, 1),
        **_machine(cuda),
        "versions": versions(),
    }
    if cuda is not None:
        free, total = cuda.mem_get_info()
        row |= {
            "peak_allocated_mb": round(max(peaks.values()), 1),
            "peak_reserved_mb": round(reserved[0], 1),
            "context_mb": round((total - free - cuda.memory_reserved()) / MB, 1),
            "phases": {name: round(size, 1) for name, size in peaks.items()},
        }
    return row


def _time(run: Any, cuda: Any) -> float:
    """Repeat the setup's steps after warm-up; return the seconds."""
    if cuda is not None:
        cuda.synchronize()
    start = time.perf_counter()
    run(lambda _: None)
    if cuda is not None:
        cuda.synchronize()
    return time.perf_counter() - start


def _machine(cuda: Any) -> dict[str, Any]:
    if cuda is None:
        import platform

        return {"gpu": None, "machine": platform.machine()}
    found: dict[str, Any] = {"gpu": cuda.get_device_name(0)}
    try:
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no NVML: leave it out of the row
        found["driver"] = None
    return found
