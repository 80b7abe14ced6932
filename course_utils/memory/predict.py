"""`predict`: the GPU memory of a training, without a GPU and without weights.

The model is made on PyTorch's meta device, where tensors have shapes and no values, and trained
there for two steps with the installed libraries' own code. Every tensor's beginning and end goes
to a simulated CUDA allocator. Introduced in notebook 04.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from course_utils import checks
from course_utils.errors import CourseError, NotTrainable
from course_utils.memory import build, cuda, stand_ins
from course_utils.memory.allocator import Allocator, OutOfMemory
from course_utils.memory.gpus import DEFAULT, Gpu, this_gpu
from course_utils.memory.gpus import gpu as gpu_by_name
from course_utils.memory.setup import Setup
from course_utils.memory.step import train
from course_utils.memory.tracker import PHASES, Tracker

if TYPE_CHECKING:
    import pandas as pd

MB = 1e6
KINDS = ("weights", "optimizer", "gradients", "activations", "workspaces")
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Prediction:
    """What a training will need. Sizes are in MB = 10^6 bytes.

    Attributes:
        setup: what was predicted.
        gpu: for which GPU.
        peak_allocated_mb, peak_reserved_mb: the largest values that `torch.cuda`'s
            `max_memory_allocated` and `max_memory_reserved` will give; the CUDA context, some
            hundred MB that belong to no allocator, comes on top of them.
        phases: the peak in each phase of the training.
        at_peak: what the memory was full of at the peak, by kind.
        peak_op: the operation at the peak.
        assumptions: what was taken for granted.
        versions: of the libraries it speaks for.
        seconds: how long the prediction took.
    """

    setup: Setup
    gpu: Gpu
    peak_allocated_mb: float
    peak_reserved_mb: float
    phases: dict[str, float]
    at_peak: dict[str, float]
    peak_op: str
    assumptions: list[str]
    versions: dict[str, str]
    seconds: float
    log: list[tuple[str, int, int]] = field(repr=False, default_factory=list)
    kinds: dict[int, str] = field(repr=False, default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the log."""
        return {
            "setup": self.setup.to_dict(),
            "gpu": self.gpu.name,
            "peak_allocated_mb": round(self.peak_allocated_mb, 1),
            "peak_reserved_mb": round(self.peak_reserved_mb, 1),
            "phases": {name: round(size, 1) for name, size in self.phases.items()},
            "at_peak": {name: round(size, 1) for name, size in self.at_peak.items()},
            "peak_op": self.peak_op,
            "assumptions": self.assumptions,
            "versions": self.versions,
            "seconds": round(self.seconds, 2),
        }

    def timeline(self) -> pd.DataFrame:
        """Allocated MB after each request and release: a column a kind, and the phase."""
        import pandas as pd

        now = dict.fromkeys(KINDS, 0.0)
        rows = []
        for phase, key, size in self.log:
            now[self.kinds[key]] += size / MB
            rows.append({**now, "phase": phase})
        return pd.DataFrame(rows)


def versions() -> dict[str, str]:
    """The installed versions that decide about memory."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def predict(setup: Setup, gpu: Gpu | str | None = None, capacity: int | None = None) -> Prediction:
    """Predict the memory of a training.

    Args:
        setup: what is trained, and how.
        gpu: on which GPU, or its name in `gpus.GPUS`; None for this machine's own, else an RTX
            4090. It decides about kernels and workspaces, not about what fits.
        capacity: bytes that the allocator may reserve; None for any number.

    Raises:
        UnknownName: a GPU that is not in `gpus.GPUS`.
        OutOfMemory: more than `capacity` would be needed.
        DataDependent: the model's code goes a way that depends on its weights.
        NotTrainable: the installed libraries cannot run this training, on a GPU neither.
        ImpossibleSetup: a micro-batch of so many padded or packed tokens cannot be predicted.
        ValueError: no setup, or a capacity below 1.
    """
    checks.a("setup", setup, Setup, "a Setup")
    gpu = (this_gpu() or DEFAULT) if gpu is None else gpu_by_name(gpu)
    if capacity is not None:
        checks.whole("capacity", capacity, 1)
    start = time.perf_counter()
    with _refusing(setup):
        made = build.model(setup, "meta")
    parameters = build.trained(made)
    with stand_ins.fused_on_meta():
        optimizer = build.optimizer(setup, parameters, "meta")
    example = build.outline(setup, setup.config().vocab_size)
    allocator = Allocator(capacity)
    tracker = Tracker(allocator, cuda.scratch)
    dtype = build.DTYPES[setup.dtype] if setup.mixed_precision else None
    on_gpu = cuda.OnGpu(gpu, dtype)
    stand_ins.enter_when_recomputed(made, on_gpu)
    kinds: dict[int, str] = {}

    for tensor in _all_tensors(made):
        kinds[tracker.hold(tensor)] = "weights"

    def batch() -> dict[str, torch.Tensor]:
        given = {}
        for name, values in example.items():
            given[name] = torch.empty_like(
                values, device="meta", memory_format=torch.contiguous_format
            )
            tracker.hold(given[name], None if values.device.type == "meta" else values)
        return given

    def phase(name: str) -> None:
        tracker.phase = name
        if name == "optimizer":
            _label(tracker, kinds, gradients=parameters)
        if name in ("forward", "backward") and name not in workspaces:
            # Each of the two threads has a cuBLAS handle with a workspace of its own.
            workspaces[name] = tracker.take(gpu.workspace, "cuBLAS workspace")
            kinds[tracker.log[-1][1]] = "workspaces"

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        with on_gpu.active(), on_gpu.casting():
            yield

    workspaces: dict[str, Any] = {}
    with build.quiet(), stand_ins.as_on_gpu(on_gpu), tracker, _refusing(setup):
        train(setup.shortened(), made, optimizer, parameters, batch, phase, autocast)
    _label(tracker, kinds, optimizer=optimizer)
    log = list(tracker.log)  # what is released later belongs to no step
    for _, key, _ in log:
        kinds.setdefault(key, "activations")
    return Prediction(
        setup,
        gpu,
        allocator.peak_allocated / MB,
        allocator.peak_reserved / MB,
        {name: tracker.peaks[name] / MB for name in PHASES},
        _at_peak(log, kinds),
        tracker.peak_op,
        _assumptions(setup, gpu),
        versions(),
        time.perf_counter() - start,
        log,
        kinds,
    )


@contextlib.contextmanager
def _refusing(setup: Setup) -> Iterator[None]:
    """What the libraries raise, said as a refusal of this setup."""
    try:
        yield
    except (CourseError, OutOfMemory):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).split('. ')[0]}"
        raise NotTrainable(f"{setup}: the installed libraries stop at this with {said}.") from error


def _all_tensors(made: nn.Module) -> Iterator[torch.Tensor]:
    yield from made.parameters()
    yield from made.buffers()
    for module in made.modules():
        if hasattr(module, "held"):
            yield from module.held()


def _label(
    tracker: Tracker,
    kinds: dict[int, str],
    gradients: list[nn.Parameter] | None = None,
    optimizer: Any = None,
) -> None:
    """Tell what pieces of memory are gradients or states, which their requests do not show."""
    if gradients is not None:
        for parameter in gradients:
            if parameter.grad is not None:
                kinds[tracker.key(parameter.grad)] = "gradients"
    if optimizer is not None:
        if hasattr(optimizer, "states"):
            states = optimizer.states()
        else:
            states = [value for state in optimizer.state.values() for value in state.values()]
        for value in states:
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                key = tracker.key(value)
                if key is not None:
                    kinds[key] = "optimizer"


def _at_peak(log: list[tuple[str, int, int]], kinds: dict[int, str]) -> dict[str, float]:
    now, most, found = dict.fromkeys(KINDS, 0), 0, {}
    total = 0
    for _, key, size in log:
        now[kinds[key]] += size
        total += size
        if total > most:
            most, found = total, dict(now)
    return {kind: size / MB for kind, size in found.items()}


def _assumptions(setup: Setup, gpu: Gpu) -> list[str]:
    made = [
        f"the kernels that PyTorch takes on a {gpu.name} (capability {gpu.capability[0]}."
        f"{gpu.capability[1]})",
        "two cuBLAS workspaces of their default size",
        "an allocator with its default settings, and no other program on the GPU",
        "weights are there already; what loading holds for a moment is not counted",
    ]
    if setup.runs // setup.accumulation >= 2:
        made.append("two optimizer steps, the second of which has the optimizer's states beside it")
    else:
        made.append(f"{setup.runs} micro-batches, {setup.runs // setup.accumulation} steps")
    if setup.weights == "8-bit":
        made.append("no outliers in the activations, which int8 layers would treat by themselves")
    if setup.optimizer == "adam_8bit_paged":
        made.append("paged states lie outside PyTorch's allocator and are not counted")
    return made
