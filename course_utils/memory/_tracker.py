"""Track training on meta tensors and pass its memory requests to the simulated allocator.

Each new storage of an operation is a request, and its end a release. Integers are also computed
for real, as control flow may depend on them (is this mask all ones?). Introduced in notebook 04.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from course_utils.errors import CourseError
from course_utils.memory._allocator import Allocator

# Larger integer tensors, in bytes, are not tracked; a mask of 8,192 by 8,192 is.
MOST_INTEGERS = 2**27
MOST_REALS = 2**16  # floating-point numbers: masks of adapters, and what is only logged
PHASES = ("loading", "weights", "forward", "backward", "optimizer", "evaluation")


class DataDependent(CourseError):
    """The model's code needs a number that only real weights could provide."""


class Tracker(TorchDispatchMode):
    """Context in which operations on meta tensors are recorded with an allocator.

    Args:
        allocator: receives every request and release.
        scratch: takes an operation, its arguments and its result; returns the sizes in bytes of
            what its CUDA kernel allocates for itself while it runs.
        device: whose tensors are recorded; "cpu" tracks real training, for comparison.

    Attributes:
        phase: the current phase, one of `PHASES`; set from outside.
        peaks: the peak of allocated bytes in each phase.
        peak_op: the operation at the overall peak.
        log: a list of (phase, key, size) for each request and (phase, key, -size) for each
            release; a key stands for one piece of memory.
        stream: the current CUDA stream, from whose blocks requests are served.
        recording: whether operations are recorded; off for work that is done elsewhere.
        sharded: where several GPUs are predicted, types of tensors that are made of others, which
            do the work and are recorded.
    """

    def __init__(
        self,
        allocator: Allocator,
        scratch: Callable[..., Iterable[int]] = lambda *_: (),
        device: str = "meta",
    ):
        super().__init__()
        self.allocator = allocator
        self.scratch = scratch
        self.device = device
        self.phase = "weights"
        self.peaks = dict.fromkeys(PHASES, 0)
        self.peak_op = ""
        self.log: list[tuple[str, int, int]] = []
        self.stream = 0
        self.sharded: tuple[type, ...] = ()
        self.recording = True
        self._keys = WeakIdKeyDictionary()  # storage -> key
        self._releases = WeakIdKeyDictionary()  # storage -> what its end calls
        self._integers = WeakIdKeyDictionary()  # meta tensor -> its values on the CPU
        self._next_key = 0
        self._peak = 0

    def hold(self, tensor: torch.Tensor, values: torch.Tensor | None = None) -> int:
        """Record a tensor that no operation created; return its key.

        Args:
            tensor: on meta.
            values: the integers that it stands for.
        """
        if values is not None:
            self._integers[tensor] = values
        storage = tensor.untyped_storage()
        if storage not in self._keys:
            self._book(storage, "hold")
        return self._keys[storage]

    def know(self, tensor: torch.Tensor) -> None:
        """Let code read a number that is only displayed, as ones."""
        self._integers.setdefault(tensor, torch.ones(tensor.shape, dtype=tensor.dtype))

    def key(self, tensor: torch.Tensor) -> int | None:
        """Return the key of a tensor's memory in the log."""
        key = self._keys.get(tensor.untyped_storage())
        return None if key == _ON_HOST else key

    def on_host(self, tensor: torch.Tensor) -> None:
        """Note that a tensor stands for one in the CPU's memory, which is not recorded."""
        self._keys[tensor.untyped_storage()] = _ON_HOST

    def emptied(self, tensor: torch.Tensor) -> None:
        """Record that a tensor's memory was given back, while the tensor lives on."""
        storage = tensor.untyped_storage()
        if storage in self._keys:
            self._releases.pop(storage)()
            del self._keys[storage]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose operations are not recorded."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    def take(self, size: int, name: str) -> Callable[[], None]:
        """Record memory that is not a tensor's; return a function that releases it."""
        block = self.allocator.malloc(size, self.stream)
        key = self._log_request(block.size, name)

        def release() -> None:
            self.allocator.free(block)
            self.log.append((self.phase, key, -size_taken))

        size_taken = block.size
        return release

    def _log_request(self, size: int, name: str) -> int:
        key = self._next_key
        self._next_key += 1
        self.log.append((self.phase, key, size))
        now = self.allocator.allocated
        self.peaks[self.phase] = max(self.peaks[self.phase], now)
        if now > self._peak:
            self._peak, self.peak_op = now, name
        return key

    def _book(self, storage: torch.UntypedStorage, name: str) -> None:
        release = self.take(storage.nbytes(), name)
        self._keys[storage] = self._next_key - 1
        self._releases[storage] = end = weakref.finalize(storage, release)
        end.atexit = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            return func(*args, **kwargs)
        if self.sharded and any(issubclass(kind, self.sharded) for kind in types):
            return NotImplemented
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._read(args[0])
        if func is _aten.copy_.default and self.sharded:
            target, source = args[:2]
            if source.is_meta and not target.is_meta:
                return target.copy_(self._values(func, source))
            if target.is_meta and not source.is_meta and source.numel() <= MOST_REALS:
                self._integers[target] = source.to(target.dtype, copy=True).expand(target.shape)
                return target
        if func in _SIZED_BY_VALUES and args[0].device.type == "meta":
            return self._sized_by_values(func, args, kwargs)
        if func in _INDEXED and args[0].device.type == "meta":
            args = self._with_places(args)
        out = self._run(func, args, kwargs)
        name = str(func)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.device:
                storage = tensor.untyped_storage()
                if storage not in self._keys:
                    self._book(storage, name)
        for release in [self.take(size, name) for size in self.scratch(func, args, kwargs, out)]:
            release()
        if self.device == "meta":
            self._follow_integers(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Return an operation's result, from a cache if it was seen with these shapes before.

        PyTorch derives most shapes in Python, a hundred times slower than a lookup.
        """
        key = self._key_of(func, args, kwargs) if self.device == "meta" else None
        if key is None:
            return func(*args, **kwargs)
        if key in _SEEN:
            kind, specs = _SEEN[key]
            made = [
                spec and torch.empty_strided(*spec[:2], dtype=spec[2], device="meta")
                for spec in specs
            ]
            return made[0] if kind is None else kind(made)
        out = func(*args, **kwargs)
        kind = type(out) if isinstance(out, (tuple, list)) else None
        flat = [out] if kind is None else list(out)
        inputs = {
            value.untyped_storage()._cdata
            for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor)
        }
        if any(isinstance(t, torch.Tensor) and t.untyped_storage()._cdata in inputs for t in flat):
            _PURE[func] = False  # a view not declared in its schema, such as _unsafe_view
        elif all(t is None or _is_dense(t) for t in flat):
            if len(_SEEN) >= _MOST_SEEN:
                _SEEN.clear()
            _SEEN[key] = (kind, [t if t is None else (t.shape, t.stride(), t.dtype) for t in flat])
        return out

    @staticmethod
    def _key_of(func: Any, args: tuple, kwargs: dict) -> tuple | None:
        """Return what determines an operation's result; None if it returns or changes an input."""
        pure = _PURE.get(func)
        if pure is None:
            schema = func._schema
            pure = _PURE[func] = not schema.is_mutable and not any(
                given.alias_info for given in schema.returns
            )
        if not pure:
            return None
        parts: list[Any] = [func]
        for value in (*args, *kwargs.items()):
            if isinstance(value, torch.Tensor):
                if value.device.type != "meta":
                    return None
                parts.append((value.shape, value.stride(), value.dtype))
            elif isinstance(value, (list, tuple)) and any(
                isinstance(entry, torch.Tensor) for entry in value
            ):
                return None
            else:
                parts.append((type(value), repr(value)))
        return tuple(parts)

    def _read(self, tensor: torch.Tensor) -> Any:
        values = self._integers.get(tensor) if tensor.device.type == "meta" else tensor
        if values is None:
            raise DataDependent(
                "The model's code reads a number that depends on its weights; without them its way "
                "cannot be told."
            )
        return torch.ops.aten._local_scalar_dense.default(values)

    def _sized_by_values(self, func: Any, args: tuple, kwargs: dict) -> torch.Tensor:
        """Handle operations like nonzero, whose output size depends on the input's values."""
        if func is _aten.masked_select.default:
            shape = (int(self._values(func, args[1]).expand(args[0].shape).sum()),)
            out = torch.empty(shape, dtype=args[0].dtype, device="meta")
            self.hold(out)
            return out
        found = func(self._values(func, args[0]), *args[1:], **kwargs)
        out = torch.empty(found.shape, dtype=found.dtype, device="meta")
        self.hold(out, found)
        return out

    def _values(self, func: Any, tensor: torch.Tensor) -> torch.Tensor:
        values = self._integers.get(tensor)
        if values is None:
            raise DataDependent(f"{func} needs values that only real weights could give.")
        return values

    def _with_places(self, args: tuple) -> tuple:
        """Replace masks among an indexing operation's indices by positions, as CUDA does.

        Source: `aten/src/ATen/native/IndexingUtils.h`, `expandTensors`.
        """
        places: list[torch.Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            found = self._values(_aten.nonzero.default, index).nonzero().t().contiguous()
            out = torch.empty(found.shape, dtype=found.dtype, device="meta")
            self.hold(out, found)
            for row, values in zip(out.unbind(0), found.unbind(0), strict=True):
                self._integers[row] = values
                places.append(row)
        return (args[0], places, *args[2:])

    def _follow_integers(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Compute an operation's integers and booleans on the CPU, if its inputs are known."""
        wanted = [
            tensor
            for tensor in tree_flatten(out)[0]
            if isinstance(tensor, torch.Tensor)
            and tensor.device.type == "meta"
            and (tensor.numel() <= MOST_REALS or not tensor.is_floating_point())
            and not tensor.is_complex()
            and tensor.numel() * tensor.element_size() <= MOST_INTEGERS
        ]
        if not wanted:
            return

        def real(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                return self._integers[value]
            return torch.device("cpu") if isinstance(value, torch.device) else value

        try:
            real_args, real_kwargs = tree_map(real, (args, kwargs))
        except KeyError:
            return
        if func in _UNDEFINED:
            return
        if func is _aten.sum.default and real_args[0].dtype == torch.bool and not real_kwargs:
            func = _aten.count_nonzero.default  # the same; a sum would convert all to integers
        found = tree_flatten(func(*real_args, **real_kwargs))[0]
        for tensor, values in zip(tree_flatten(out)[0], found, strict=True):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._integers[tensor] = values


_ON_HOST = -1  # in place of a key
_PURE: dict[Any, bool] = {}  # by operation, whether its result is new memory
_SEEN: dict[tuple, tuple] = {}  # by operation and shapes: the type of result, and its shapes
_MOST_SEEN = 50_000


def _is_dense(value: Any) -> bool:
    """Return whether a meta tensor starts at the beginning of its memory and fills it exactly."""
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "meta"
        and value.storage_offset() == 0
        and value.untyped_storage().nbytes() == value.numel() * value.element_size()
        and value.layout == torch.strided
    )


_aten = torch.ops.aten
_SIZED_BY_VALUES = {_aten.nonzero.default, _aten.masked_select.default}
_INDEXED = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
    _aten._unsafe_index_put.default,
}
# Operations that allocate memory without setting values.
_UNDEFINED = {_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default}
