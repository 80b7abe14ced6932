"""One of several GPUs: the libraries' own wrappers, run on meta tensors in a pretended group.

The process group is PyTorch's fake one, which sends nothing. This process is its first rank, whose
shards are the largest. What the wrappers ask for is recorded as anything else: gathered weights,
buffers of collectives, gradients before and after they are reduced.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from course_utils.errors import NotPredictable
from course_utils.memory import _build as build
from course_utils.memory._setup import Setup
from course_utils.memory._tracker import Tracker

META = torch.device("meta")


def autocast(setup: Setup) -> str | None:
    """Return the dtype of autocast: with FSDP2, accelerate casts the gathered weights instead."""
    return None if setup.strategy == "fsdp2" else setup.autocast


@contextlib.contextmanager
def wrapped(
    setup: Setup, made: nn.Module, tracker: Tracker, kinds: dict[int, str]
) -> Iterator[nn.Module]:
    """Context with the module to call in place of a model that several GPUs train.

    Args:
        setup: how it is trained.
        made: the model with its adapter, on meta; FSDP replaces its parameters.
        tracker: records what the wrapper asks for.
        kinds: by the tracker's keys, the kind of memory; gathered weights are added.
    """
    with group(setup), sharded_tensors(tracker), contextlib.ExitStack() as entered:
        if setup.strategy == "ddp":
            entered.enter_context(ddp_on_meta())
            yield data_parallel(made, tracker, kinds)
        else:
            entered.enter_context(fsdp_on_meta(tracker, kinds))
            wrapper = sharded(setup, made)
            if setup.offload == "all":
                entered.enter_context(shards_on_host(wrapper, tracker))
            yield wrapper


@contextlib.contextmanager
def group(setup: Setup) -> Iterator[None]:
    """Context with a process group of `setup.devices` ranks, of which this process is the first.

    Raises:
        NotPredictable: this process belongs to a real group already.
    """
    from torch import distributed
    from torch.testing._internal.distributed import fake_pg

    if distributed.is_initialized():
        raise NotPredictable(
            "This process belongs to a group of processes already, and a prediction for several "
            "GPUs pretends one of its own: predict before the group is made, or in another process."
        )
    store = fake_pg.FakeStore()
    distributed.init_process_group("fake", store=store, rank=0, world_size=setup.devices)
    try:
        yield
    finally:
        distributed.destroy_process_group()


class CudaStream:
    """A CUDA stream of the simulated GPU; whatever is waited for is over at once."""

    def __init__(self, number: int):
        self.number = number

    def wait_stream(self, *_: Any) -> None:
        """Do nothing."""

    wait_event = synchronize = wait_stream

    def record_event(self, *_: Any) -> CudaEvent:
        """Return an event."""
        return CudaEvent()


class CudaEvent:
    """A CUDA event of the simulated GPU."""

    def record(self, *_: Any) -> None:
        """Do nothing."""

    wait = synchronize = record


class Streams:
    """What `torch.cuda` is to FSDP: its streams. Memory belongs to the one it was asked for in."""

    Event = CudaEvent

    def __init__(self, tracker: Tracker):
        self.tracker = tracker
        self.made = [CudaStream(0)]

    def Stream(self, *_: Any, **__: Any) -> CudaStream:
        """Return a new stream."""
        self.made.append(CudaStream(len(self.made)))
        return self.made[-1]

    def current_stream(self) -> CudaStream:
        """Return the stream that memory is asked for in now."""
        return self.made[self.tracker.stream]

    @contextlib.contextmanager
    def stream(self, stream: CudaStream) -> Iterator[None]:
        """Context in which another stream is the current one."""
        before, self.tracker.stream = self.tracker.stream, stream.number
        try:
            yield
        finally:
            self.tracker.stream = before


class Collective:
    """FSDP's all-gather or reduce-scatter: it makes its buffer and sends nothing."""

    def __init__(self, mark: Callable[[torch.Tensor, str], None], kind: str):
        self.mark, self.kind = mark, kind

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return the buffer."""
        made = torch.empty(*size, dtype=dtype, device=device)
        self.mark(made, self.kind)
        return made

    def __call__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""


@contextlib.contextmanager
def storages_recorded(
    tracker: Tracker, mark: Callable[[torch.Tensor, str], None] = lambda *_: None
) -> Iterator[None]:
    """Record FSDP's resizing of storages, by which gathered weights come and go."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    alloc, free = _fsdp_param.alloc_storage, _fsdp_param.free_storage

    def alloc_storage(tensor: torch.Tensor) -> None:
        alloc(tensor)
        tracker.hold(tensor)
        mark(tensor, "weights")

    def free_storage(tensor: torch.Tensor) -> None:
        free(tensor)
        tracker.emptied(tensor)

    with (
        mock.patch.object(_fsdp_param, "alloc_storage", alloc_storage),
        mock.patch.object(_fsdp_param, "free_storage", free_storage),
    ):
        yield


@contextlib.contextmanager
def sharded_tensors(tracker: Tracker) -> Iterator[None]:
    """Record what is done to a DTensor's own shard, and not how PyTorch works out its shape."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    shapes = ShardingPropagator._propagate_tensor_meta_non_cached

    def unrecorded(*args: Any, **kwargs: Any) -> Any:
        with tracker.paused():
            return shapes(*args, **kwargs)

    tracker.sharded = (DTensor,)
    try:
        with mock.patch.object(ShardingPropagator, "_propagate_tensor_meta_non_cached", unrecorded):
            yield
    finally:
        tracker.sharded = ()


@contextlib.contextmanager
def fsdp_on_meta(tracker: Tracker, kinds: dict[int, str]) -> Iterator[None]:
    """Let FSDP shard and run a model on meta as on a GPU."""
    from torch.distributed.fsdp._fully_shard import (
        _fsdp_collectives,
        _fsdp_init,
        _fsdp_param_group,
        _fsdp_state,
        _fully_shard,
    )

    streams = Streams(tracker)

    def handle(_: str) -> Streams:
        return streams

    def device(_: Any) -> torch.device:
        return META

    def nothing(_: Any) -> None:
        return None

    def mark(tensor: torch.Tensor, kind: str) -> None:
        key = tracker.key(tensor)
        if key is not None:
            kinds[key] = kind

    gather = functools.partial(Collective, mark, "weights")
    scatter = functools.partial(Collective, mark, "gradients")
    groups = _fsdp_param_group.FSDPParamGroup
    with contextlib.ExitStack() as patched:
        for module in (_fsdp_collectives, _fsdp_init, _fsdp_param_group, _fsdp_state):
            patched.enter_context(mock.patch.object(module, "_get_device_handle", handle))
        for target, name, value in (
            (_fully_shard, "_get_device_from_mesh", device),
            (groups, "_validate_no_meta_params", nothing),
            (groups, "_validate_cpu_offload_params", nothing),
            (torch.accelerator, "current_stream", streams.current_stream),
            (_fsdp_param_group, "DefaultAllGather", gather),
            (_fsdp_param_group, "DefaultReduceScatter", scatter),
        ):
            patched.enter_context(mock.patch.object(target, name, value))
        patched.enter_context(storages_recorded(tracker, mark))
        yield


def sharded(setup: Setup, made: nn.Module) -> nn.Module:
    """Shard a model in place by accelerate's `fsdp2_prepare_model`, each decoder layer by itself.

    Weights in 4 bits are stored in the model's dtype (`bnb_4bit_quant_storage`), since accelerate
    leaves those stored in bytes on every GPU.
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.device_mesh import init_device_mesh

    precision = {"bfloat16": "bf16", "float16": "fp16", None: "no"}[setup.autocast]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        cpu_offload=False,  # `shards_on_host` does it: meta tensors cannot be moved
        cpu_ram_efficient_loading=False,
    )
    if precision != "no":
        plugin.set_mixed_precision(precision)
    mesh = init_device_mesh("cpu", (setup.devices,), mesh_dim_names=("dp_shard",))
    accelerator = types.SimpleNamespace(
        state=types.SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh={("dp_shard",): mesh},
        parallelism_config=types.SimpleNamespace(fsdp_dim_names=("dp_shard",)),
        mixed_precision=precision,
        is_main_process=False,
        device=META,
    )
    for module in made.modules():
        if hasattr(module, "store_as"):
            module.store_as(build.DTYPES[setup.dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fsdp2_prepare_model(accelerator, made)


@contextlib.contextmanager
def shards_on_host(made: nn.Module, tracker: Tracker) -> Iterator[None]:
    """Do what FSDP does with `CPUOffloadPolicy`: shards and their gradients wait on the CPU.

    Source: `torch/distributed/fsdp/_fully_shard`: `FSDPParam.all_gather_inputs` copies a shard to
    the GPU, `foreach_reduce` a reduced gradient to the CPU, where the optimizer works.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    for parameter in made.parameters():
        tracker.on_host(getattr(parameter, "_local_tensor", parameter))
    inputs, as_dtensor = FSDPParam.all_gather_inputs.fget, FSDPParam.to_sharded_dtensor

    def all_gather_inputs(self: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            return [shard.clone() for shard in inputs(self)]

    def to_sharded_dtensor(self: Any, tensor: torch.Tensor) -> torch.Tensor:
        with tracker.paused():
            copied = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META
            )
        tracker.on_host(copied)
        return as_dtensor(self, copied)

    with (
        mock.patch.object(FSDPParam, "all_gather_inputs", property(all_gather_inputs)),
        mock.patch.object(FSDPParam, "to_sharded_dtensor", to_sharded_dtensor),
    ):
        yield


@contextlib.contextmanager
def ddp_on_meta() -> Iterator[None]:
    """Let DistributedDataParallel wrap a model on meta, where nothing can be compared or sent."""
    from torch.nn.parallel import distributed

    def nothing(*_: Any, **__: Any) -> None:
        return None

    with (
        mock.patch.object(distributed, "_verify_param_shape_across_processes", nothing),
        mock.patch.object(distributed, "_sync_module_states", nothing),
        mock.patch.object(distributed.DistributedDataParallel, "_sync_buffers", nothing),
    ):
        yield


def data_parallel(made: nn.Module, tracker: Tracker, kinds: dict[int, str]) -> nn.Module:
    """Wrap a model in PyTorch's DistributedDataParallel, with buckets of its default size."""
    from torch.nn.parallel import DistributedDataParallel

    def sent(_: Any, bucket: Any) -> torch.futures.Future:
        """Stand in for the all-reduce, which works in place."""
        kinds[tracker.hold(bucket.buffer())] = "gradients"
        done: torch.futures.Future = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    sent.__annotations__.clear()  # DDP would compare them
    with tracker:
        wrapper = DistributedDataParallel(made)
    wrapper.register_comm_hook(None, sent)
    # PyTorch's logger would only say that it measures no time here.
    wrapper.logger = types.SimpleNamespace(set_runtime_stats_and_log=lambda: None)
    return wrapper
