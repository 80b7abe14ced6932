"""`predict`: predict the GPU memory of training, without a GPU and without weights.

The model is created on PyTorch's meta device, where tensors have shapes but no values, and trained
there for two steps with the installed libraries' own code. Every tensor's allocation and release
goes to a simulated CUDA allocator. Introduced in notebook 04.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from course_utils._core import checks
from course_utils.errors import CourseError, NotTrainable
from course_utils.memory import _build as build
from course_utils.memory import _cuda as cuda
from course_utils.memory import _loading, _meta_patches, _ranks, _step, _trainers
from course_utils.memory import _optimizers as optimizers
from course_utils.memory._allocator import Allocator, OutOfMemory, rounded
from course_utils.memory._gpus import DEFAULT, Gpu, this_gpu
from course_utils.memory._gpus import gpu as gpu_by_name
from course_utils.memory._setup import Setup
from course_utils.memory._tracker import PHASES, Tracker

if TYPE_CHECKING:
    import pandas as pd
    from transformers import Trainer

MB, MIB = 1e6, 2**20
KINDS = ("weights", "optimizer", "gradients", "activations", "workspaces")
LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Prediction:
    """The predicted memory of a training run. Sizes are in MB = 10^6 bytes.

    Attributes:
        setup: the setup that was predicted.
        gpu: the GPU it was predicted for.
        peak_allocated_mb, peak_reserved_mb: what `torch.cuda.max_memory_allocated` and
            `max_memory_reserved` will report; the CUDA context, some hundred MB outside the
            allocator, comes on top.
        phases: the peak in each phase of training; with quantized weights, including "loading".
        at_peak: what occupies the memory at the peak, by kind.
        peak_op: the operation at the peak.
        warnings: advice that an expert would give about this setup.
        assumptions: what was assumed.
        versions: the library versions that the prediction is valid for.
        seconds: how long the prediction took.
    """

    setup: Setup
    gpu: Gpu
    peak_allocated_mb: float
    peak_reserved_mb: float
    phases: dict[str, float]
    at_peak: dict[str, float]
    peak_op: str
    warnings: list[str]
    assumptions: list[str]
    versions: dict[str, str]
    seconds: float
    log: list[tuple[str, int, int]] = field(repr=False, default_factory=list)
    kinds: dict[int, str] = field(repr=False, default_factory=dict)

    @property
    def process_mb(self) -> float:
        """The process's GPU memory: reserved memory plus the CUDA context."""
        return self.peak_reserved_mb + self.gpu.context_mib * MIB / MB

    @property
    def fits(self) -> bool:
        """Whether a process can have that much memory on the GPU."""
        return self.process_mb <= self.gpu.process_mib * MIB / MB

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the log, for JSON."""
        return {
            "setup": self.setup.to_dict(),
            "gpu": self.gpu.name,
            "peak_allocated_mb": round(self.peak_allocated_mb, 1),
            "peak_reserved_mb": round(self.peak_reserved_mb, 1),
            "process_mb": round(self.process_mb, 1),
            "fits": self.fits,
            "phases": {name: round(size, 1) for name, size in self.phases.items()},
            "at_peak": {name: round(size, 1) for name, size in self.at_peak.items()},
            "peak_op": self.peak_op,
            "warnings": self.warnings,
            "assumptions": self.assumptions,
            "versions": self.versions,
            "seconds": round(self.seconds, 2),
        }

    def timeline(self) -> pd.DataFrame:
        """Return allocated MB after each request and release: a column per kind, and the phase."""
        import pandas as pd

        now = dict.fromkeys(KINDS, 0.0)
        rows = []
        for phase, key, size in self.log:
            now[self.kinds[key]] += size / MB
            rows.append({**now, "phase": phase})
        return pd.DataFrame(rows)


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that affect memory."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def predict(
    training: Setup | Trainer, gpu: Gpu | str | None = None, capacity: int | None = None
) -> Prediction:
    """Predict the memory of a training run.

    Args:
        training: a setup, or a trainer: a `Trainer`, `SFTTrainer` or `DPOTrainer` with a causal
            language model, on this machine, predicted for its longest batch.
        gpu: a GPU, or its name in `GPUS`; None for this machine's own, else an RTX 4090. It
            determines kernels and workspaces, not what fits.
        capacity: the most bytes that the allocator may reserve; None for no limit.

    Raises:
        UnknownName: the GPU is not in `GPUS`.
        OutOfMemory: more than `capacity` would be needed.
        DataDependent: the model's control flow depends on its weights.
        NotTrainable: the installed libraries cannot run this training, even on a GPU.
        ImpossibleSetup: the micro-batch has too many padded or packed tokens to predict.
        NotPredictable: an unsupported trainer, model or argument; or several GPUs in a process that
            belongs to a group of real ones.
        ValueError: neither a setup nor a trainer, or a capacity below 1.
    """
    if capacity is not None:
        checks.whole("capacity", capacity, 1)
    if isinstance(training, Setup):
        return predict_with(build.Backend(), training, gpu, capacity)
    from transformers import Trainer

    from course_utils.memory._from_trainer import predict_trainer

    checks.a("training", training, Trainer, "a Setup, or a Trainer of transformers or TRL")
    return predict_trainer(training, gpu, capacity)


def predict_with(
    backend: build.Backend,
    setup: Setup,
    gpu: Gpu | str | None = None,
    capacity: int | None = None,
) -> Prediction:
    """Run `predict` for a setup, with the library versions of `backend`."""
    gpu = (this_gpu() or DEFAULT) if gpu is None else gpu_by_name(gpu)
    start = time.perf_counter()
    simulation = Simulation(gpu, _ranks.autocast(setup), capacity)
    by_hand = setup.trainer == "loop"
    short = setup.shortened()
    with simulation.patched(), _refusing(setup), contextlib.ExitStack() as others:
        made = build.model(setup, "meta", backend=backend)
        if by_hand:
            made = build.prepared_by_hand(setup, made, "meta")
            optimizer = _trainers.optimizer_by_hand(setup, made)
        else:
            trainer = _trainers.make(setup, made, "meta")
            made, optimizer = trainer.model, trainer.optimizer
        wrapped, simulation.offloads = made, setup.offload is not None
        if setup.strategy is not None:
            ranks = _ranks.wrapped(setup, made, simulation.tracker, simulation.kinds)
            wrapped = others.enter_context(ranks)
            if by_hand:
                optimizer = _trainers.optimizer_by_hand(setup, made)
            else:
                optimizer = _trainers.new_optimizer(trainer)
        if build.too_large_to_look_at(setup):
            example: dict[str, Any] = build.outline(setup)
        elif by_hand:
            example = build.batch(setup, setup.vocabulary)
        else:
            example = _trainers.batch(setup, trainer)
        loaded = setup.strategy is None and simulation.load(made, setup)
        simulation.hold(made, optimizer)
        with simulation.running():
            if by_hand:
                _step.by_hand(
                    short,
                    wrapped,
                    optimizer,
                    lambda: simulation.put(example),
                    simulation.phase,
                    simulation.autocasting,
                )
            else:
                simulation.prepare(trainer)
                trainer.model_wrapped = wrapped
                simulation.wait(example, setup.accumulation - short.accumulation)
                _step.with_trainer(
                    trainer,
                    lambda: simulation.put(example),
                    simulation.phase,
                    short.runs,
                    short.accumulation,
                )
    simulation.label(optimizer=optimizer)
    return simulation.prediction(setup, _assumptions(setup, gpu, loaded), start)


class Simulation:
    """A simulated GPU: what it holds during training on meta tensors.

    Args:
        gpu: the GPU to simulate.
        autocast: the dtype of mixed precision, or None.
        capacity: the most bytes that the allocator may reserve; None for no limit.
    """

    def __init__(self, gpu: Gpu, autocast: str | None, capacity: int | None):
        self.gpu = gpu
        self.allocator = Allocator(capacity)
        self.tracker = Tracker(self.allocator, cuda.scratch)
        self.autocast = autocast
        self.on_gpu = cuda.OnGpu(gpu, build.DTYPES[autocast] if autocast else None)
        self.kinds: dict[int, str] = {}
        self.workspaces: dict[str, Any] = {}
        self.parameters: list[nn.Parameter] = []
        self.offloads = False  # whether the optimizer and what it needs are on the CPU
        self.whole_share = 0.0  # share of the frozen weights' bytes that is not quantized

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Context for creating and running models and trainers."""
        with (
            _trainers.undisturbed(),
            _meta_patches.as_on_gpu(self.on_gpu),
            _meta_patches.devices_on_meta(),
            optimizers.without_kernels(),
        ):
            yield

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Context in which memory requests are recorded."""
        with self.tracker:
            yield

    def load(self, made: nn.Module, setup: Setup) -> bool:
        """Record `from_pretrained` for a quantized model; return whether the model is one."""
        self.tracker.phase = "loading"
        booked = _loading.book(made, setup, self.tracker, self.gpu)
        self.tracker.phase = "weights"
        for _, key, _ in self.tracker.log:
            self.kinds[key] = "weights"
        return booked

    def hold(self, made: nn.Module, optimizer: Any) -> None:
        """Record a model's tensors, and states that an optimizer has from the beginning."""
        self.parameters = build.trained(made)
        frozen = [p for p in made.parameters() if not p.requires_grad]
        whole = [p for p in frozen if p.is_floating_point()]
        if frozen:
            values = {True: sum(p.numel() for p in whole)}
            values[False] = sum(p.numel() for p in frozen) - values[True]
            codes = 2 if any(p.dtype == torch.uint8 for p in frozen) else 1  # two per byte
            self.whole_share = values[True] / (values[True] + codes * values[False])
        for tensor in _all_tensors(made):
            self._hold(_shard(tensor), "weights")
        for tensor in _on_meta(list(optimizer.state.values())):
            self._hold(_shard(tensor), "optimizer")

    def _hold(self, tensor: torch.Tensor, kind: str) -> None:
        self.tracker.hold(tensor)
        if (key := self.tracker.key(tensor)) is not None:
            self.kinds[key] = kind

    def put(self, example: dict[str, Any]) -> dict[str, Any]:
        """Put a batch on the GPU; anything but tensors is left as it is."""

        def on_gpu(values: Any) -> Any:
            if not isinstance(values, torch.Tensor):
                return values
            made = torch.empty_like(values, device="meta", memory_format=torch.contiguous_format)
            self.tracker.hold(made, None if values.device.type == "meta" else values)
            return made

        return {name: on_gpu(values) for name, values in example.items()}

    def wait(self, example: dict[str, Any], count: int) -> None:
        """Record micro-batches that are not run: a step fetches all of its own before the first."""
        size = sum(
            rounded(values.numel() * values.element_size())
            for values in example.values()
            if isinstance(values, torch.Tensor)
        )
        if count:
            self.tracker.take(count * size, "micro-batches that wait")

    def phase(self, name: str) -> None:
        """Begin one of the tracker's phases."""
        self.tracker.phase = name
        if name == "optimizer":
            self.label(gradients=self.parameters)
        if self.offloads:
            self.tracker.recording = name != "optimizer"  # the CPU does that step
        if name in ("forward", "backward") and name not in self.workspaces:
            # Each of the two threads has a cuBLAS handle with its own workspace.
            self.workspaces[name] = self.tracker.take(self.gpu.workspace, "cuBLAS workspace")
            self.kinds[self.tracker.log[-1][1]] = "workspaces"

    @contextlib.contextmanager
    def autocasting(self) -> Iterator[None]:
        """Context for the forward pass: functions act as on the GPU, including mixed precision."""
        with self.on_gpu.active(), self.on_gpu.casting():
            yield

    def prepare(self, trainer: Any, as_on_gpu: bool = True) -> None:
        """Do what accelerate does to a trainer's model, and to numbers that are only logged.

        Args:
            trainer: whose steps will be run.
            as_on_gpu: whether the model's functions act as on a GPU, or as on meta.
        """
        from accelerate.utils.operations import convert_to_fp32

        model = trainer.model
        forward = model.forward

        @functools.wraps(forward)
        def prepared(*args: Any, **kwargs: Any) -> Any:
            with self.autocasting():
                outputs = forward(*args, **kwargs)
            return convert_to_fp32(outputs) if self.autocast else outputs

        def known(value: Any) -> Any:
            for tensor in _on_meta(value):
                self.tracker.know(tensor)
            return value

        if as_on_gpu:
            model.forward = prepared
        trainer.model_wrapped = model
        for name in ("gather", "gather_for_metrics"):
            setattr(trainer.accelerator, name, known)

    def label(self, gradients: list[nn.Parameter] | None = None, optimizer: Any = None) -> None:
        """Mark the memory of gradients and optimizer states, which requests do not reveal."""
        for parameter in gradients or []:
            if parameter.grad is not None:
                key = self.tracker.key(_shard(parameter.grad))
                if key is not None:
                    self.kinds[key] = "gradients"
        states = [] if optimizer is None else optimizer.state.values()
        for value in _on_meta(list(states)):
            key = self.tracker.key(_shard(value))
            if key is not None:
                self.kinds[key] = "optimizer"

    def prediction(self, setup: Setup, assumptions: list[str], start: float) -> Prediction:
        """Return the result."""
        log = list(self.tracker.log)  # what is released later belongs to no step
        for _, key, _ in log:
            self.kinds.setdefault(key, "activations")
        peaks = self.tracker.peaks
        return Prediction(
            setup,
            self.gpu,
            self.allocator.peak_allocated / MB,
            self.allocator.peak_reserved / MB,
            {n: peaks[n] / MB for n in PHASES if peaks[n] or n not in ("loading", "evaluation")},
            _at_peak(log, self.kinds),
            self.tracker.peak_op,
            _warnings(setup, self),
            assumptions,
            versions(),
            time.perf_counter() - start,
            log,
            self.kinds,
        )


# The libraries' error messages, and how to avoid each.
_WAYS_OUT = (
    ("scaled_dot_product_attention", 'Take attention="auto": transformers has only eager here.'),
    ("activation checkpointing", 'This model has none: set checkpointing="none".'),
    ("lora_dropout", "peft has no dropout for fused experts: set lora_dropout=0.0."),
)


@contextlib.contextmanager
def _refusing(setup: Setup) -> Iterator[None]:
    """Turn the libraries' errors into a refusal of this setup."""
    try:
        yield
    except (CourseError, OutOfMemory):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).split('. ')[0]}"
        ways = "".join(f" {way}" for mark, way in _WAYS_OUT if mark in said)
        raise NotTrainable(
            f"{setup}: the installed libraries stop at this with {said.rstrip('.')}.{ways}"
        ) from error


def _all_tensors(made: nn.Module) -> Iterator[torch.Tensor]:
    yield from made.parameters()
    yield from made.buffers()
    for module in made.modules():
        if hasattr(module, "extra_tensors"):
            yield from module.extra_tensors()


def _shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return this GPU's part of a tensor that several share, or else the tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def _on_meta(values: Any) -> list[torch.Tensor]:
    """Return the meta tensors anywhere in nested lists and dictionaries."""
    flat = tree_flatten(values)[0]
    return [
        value for value in flat if isinstance(value, torch.Tensor) and value.device.type == "meta"
    ]


def _at_peak(log: list[tuple[str, int, int]], kinds: dict[int, str]) -> dict[str, float]:
    now, most, found = dict.fromkeys(KINDS, 0), 0, {}
    total = 0
    for _, key, size in log:
        now[kinds[key]] += size
        total += size
        if total > most:
            most, found = total, dict(now)
    return {kind: size / MB for kind, size in found.items()}


def _warnings(setup: Setup, simulation: Simulation) -> list[str]:
    """Return an expert's warnings about a setup, each with a remedy."""
    said, gpu = [], simulation.gpu
    if "math" in simulation.on_gpu.kernels:
        grouped = simulation.on_gpu.kernels["math"]
        why = "query heads share key-value heads" if grouped else "no fused kernel takes its inputs"
        way = "PyTorch 2.14 or a GPU of capability 8.0 has one" if grouped else "see its dtype"
        said.append(
            f"sdpa runs PyTorch's math kernel on a {gpu.name}, which writes the attention matrices "
            f"down: {why}; {way}."
        )
    if "bfloat16" in (setup.dtype, setup.autocast) and not gpu.computes_bfloat16:
        said.append(
            f'A {gpu.name} only emulates bfloat16, which is slow: take dtype="float16" (and '
            "fp16=True in the trainer's arguments if what is trained is in float32)."
        )
    if setup.quantization and simulation.whole_share > 0.5:
        said.append(
            f"{simulation.whole_share:.0%} of the weights stay as they are: {setup.quantization} "
            "is for linear layers, and fused experts and embeddings are none."
        )
    return said


def _assumptions(setup: Setup, gpu: Gpu, loaded: bool = False) -> list[str]:
    made = [
        f"the kernels that PyTorch takes on a {gpu.name} (capability {gpu.capability[0]}."
        f"{gpu.capability[1]})",
        "two cuBLAS workspaces of their default size",
        "an allocator with its default settings, and no other program on the GPU",
        "weights that from_pretrained loads and quantizes on the GPU, one after another"
        if loaded
        else "weights are there already; what loading holds for a moment is not counted",
    ]
    if setup.strategy is not None:
        made.append(
            f"the first of {setup.devices} GPUs, whose shards are the largest; NCCL's own buffers "
            "lie outside PyTorch's allocator and are not counted"
        )
    if setup.offload is not None:
        made.append("optimizer steps on the CPU, which take nothing on the GPU")
    if setup.strategy == "fsdp2" and setup.quantization:
        made.append(
            "4-bit weights stored in the model's dtype (bnb_4bit_quant_storage), so sharded"
        )
    if setup.runs // setup.accumulation >= 2:
        made.append("two optimizer steps, the second of which has the optimizer's states beside it")
    else:
        made.append(f"{setup.runs} micro-batches, {setup.runs // setup.accumulation} steps")
    if setup.quantization == "8bit":
        made.append("no outliers in the activations, which int8 layers would treat by themselves")
    if optimizers.is_paged(setup.optimizer):
        made.append("paged states lie outside PyTorch's allocator and are not counted")
    return made
