"""A pretended GPU on a machine without one, for `tools.rehearse`: `start("16gb")` in a kernel.

Every tensor stays on the CPU. Those that a program puts on the GPU are marked, and the mark goes
from operands to results. So `tensor.device` says `cuda:0`, an operation on a marked and an unmarked
tensor fails as on a GPU, and so does `.numpy()`. Mixed precision and the gradient scaler are
PyTorch's own, for the CPU. Not pretended: CUDA's kernels, their speed, and memory.

Trainings and replies are cut short. What happened is written to a file after each cell.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import gc
import json
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import checkpoint

MOST_STEPS, MOST_TOKENS = 2, 4
LARGE, HIGH_RATE = 1e9, 5e-4  # parameters, learning rate


class Gpu(NamedTuple):
    """What programs ask about a GPU."""

    name: str
    bytes: int
    capability: tuple[int, int]


# Totals as CUDA reports them: measured on a T4 (benchmarks/measured), else 3% below nvidia-smi's.
GPUS = {
    "16gb": Gpu("Tesla T4", 14912 * 2**20, (7, 5)),
    "24gb": Gpu("NVIDIA L4", 22343 * 2**20, (8, 9)),
    "40gb": Gpu("NVIDIA A100-SXM4-40GB", 39731 * 2**20, (8, 0)),
}
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
_MARK = "_on_pretended_gpu"


class _State:
    """What is going on in this kernel."""

    def __init__(self) -> None:
        self.off = 0  # above 0, PyTorch is as it is
        self.gpu = GPUS["16gb"]
        self.backward = 0  # how many backward passes are going on
        self.scaled = False  # a gradient scaler has scaled a loss since the last step
        self.half = False  # a linear layer has run in float16 since the last step
        self.rules: list[str] = []  # known rules that were broken
        self.notes: list[str] = []
        self.trainings: list[dict[str, Any]] = []

    def say(self, where: list[str], text: str) -> None:
        if text not in where:
            where.append(text)


state = _State()


@contextlib.contextmanager
def unpretended() -> Iterator[None]:
    """Context in which PyTorch is as it is."""
    state.off += 1
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        state.off -= 1


def marked(value: Any) -> bool:
    """Whether a tensor is on the pretended GPU."""
    return getattr(value, "__dict__", {}).get(_MARK, False)


def mark(value: Any, on: bool = True) -> Any:
    """Mark every tensor in a result."""
    if isinstance(value, torch.Tensor):
        value.__dict__[_MARK] = on
    elif isinstance(value, (tuple, list)):
        for entry in value:
            mark(entry, on)
    elif isinstance(value, dict):
        for entry in value.values():
            mark(entry, on)
    return value


def _tensors(values: Any, depth: int = 3) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif depth and isinstance(value, (tuple, list)):
            yield from _tensors(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _tensors(value.values(), depth - 1)


def _target(value: Any, loose: bool = False) -> str | None:
    """The type of device that an argument names, if it names one."""
    if isinstance(value, torch.device):
        return value.type
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu", "meta"):
        return value.split(":")[0]
    if loose and isinstance(value, int) and not isinstance(value, bool):
        return "cuda"
    return None


_T = torch.Tensor
_MOVES = {_T.to, _T.cuda, _T.cpu}
# Each access to a property's getter makes another object, equal to the last.
_DEVICE, _IS_CUDA, _SET_DATA = _T.device.__get__, _T.is_cuda.__get__, _T.data.__set__
_IS_WHERE = {_IS_CUDA, _T.is_cpu.__get__}
# May take operands on different devices, or are about one of them only.
_ANY_DEVICE = {
    *(_T.to, _T.cuda, _T.cpu, _T.copy_, _T.set_, _T.data.__set__, _T.grad.__set__),
    torch._has_compatible_shallow_copy_type,
    *(_T.__getitem__, _T.__setitem__, _T.type_as, _T.is_set_to, _T.__repr__, torch.is_same_size),
    *(_T.backward, torch.autograd.backward, torch.autograd.grad, _T.index_put_, _T.__deepcopy__),
}
_NUMPY = {_T.numpy, _T.__array__}


class Pretend(TorchFunctionMode):
    """Context in which PyTorch seems to have a GPU."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if state.off or torch._C._len_torch_dispatch_stack() or func is torch._C._nn._parse_to:
            return func(*args, **kwargs)
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if func == _DEVICE:
            return CUDA if marked(own) else func(*args)
        if func in _IS_WHERE:
            return marked(own) == (func == _IS_CUDA)
        if func is _T.get_device:
            return 0 if marked(own) else -1
        if func in _NUMPY and marked(own):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if func in (_T.pin_memory, _T.record_stream):
            return own
        target, args, kwargs = self._redirected(func, args, kwargs)
        on = off = False
        for tensor in _tensors((args, kwargs)):
            if marked(tensor):
                on = True
            elif tensor.dim():
                off = True
        # In a backward pass, PyTorch itself hands over tensors, which have no mark.
        checked = not state.backward and func not in _ANY_DEVICE
        if on and off and not target and checked:
            name = getattr(func, "__name__", str(func))
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"cuda:0 and cpu! (when checking arguments of {name})"
            )
        if func is _T.__getitem__ and off and on and not marked(own):
            raise RuntimeError("indices should be either on cpu or on the same device (cpu)")
        if func is _T.__deepcopy__:
            on = marked(own)
        if "out_dtype" in kwargs:  # CUDA alone multiplies into another dtype
            kwargs = dict(kwargs)
            dtype = kwargs.pop("out_dtype")
            args = tuple(v.to(dtype) if isinstance(v, torch.Tensor) else v for v in args)
        out = func(*args, **kwargs)
        if func == _SET_DATA:
            mark(own, marked(args[1]))
            return None
        if target:
            on = target == "cuda"
        if func in _MOVES:
            on = on if target else marked(own)
            if out is own and on != marked(own):
                out = own.clone()
        elif func in _ANY_DEVICE:
            on = marked(own) if own is not None else on
        if func is torch.nn.functional.linear and out.dtype == torch.float16 and out.requires_grad:
            state.half = True
        if out is not None and (on or target):
            mark(out, on)
        return out

    @staticmethod
    def _redirected(func: Callable, args: tuple, kwargs: dict) -> tuple[str | None, tuple, dict]:
        """The device that a call names, and its arguments with the CPU in its place."""
        if func is _T.cpu:
            return "cpu", args, kwargs
        if func is _T.cuda:
            return "cuda", args[:1], {}
        target = None
        if kwargs.get("device") is not None:
            target = _target(kwargs["device"], loose=True)
            if target == "cuda":
                kwargs = {**kwargs, "device": CPU}
        elif func is _T.to:
            other = args[1] if len(args) > 1 else kwargs.get("other")
            if isinstance(other, torch.Tensor):
                return "cuda" if marked(other) else "cpu", args, kwargs
            target = _target(other, loose=True)
            if target == "cuda":
                args = (args[0], CPU, *args[2:])
        else:
            for place, value in enumerate(args):
                if isinstance(value, torch.device):
                    target = value.type
                    if target == "cuda":
                        args = (*args[:place], CPU, *args[place + 1 :])
                    break
        return target, args, kwargs


mode = Pretend()


def _replaced(owner: Any, name: str, made: Callable) -> None:
    """Replace `owner.name` by what `made` makes of it; while unpretended it is as before."""
    before = getattr(owner, name, None)
    new = made(before)

    @functools.wraps(before if callable(before) else new)
    def instead(*args: Any, **kwargs: Any) -> Any:
        return (before if state.off and before else new)(*args, **kwargs)

    setattr(owner, name, instead)


def _answers() -> dict[str, Callable]:
    """What `torch.cuda` answers."""

    def properties(*_: Any) -> types.SimpleNamespace:
        gpu = state.gpu
        major, minor = gpu.capability
        return types.SimpleNamespace(
            name=gpu.name,
            total_memory=gpu.bytes,
            major=major,
            minor=minor,
            multi_processor_count=40,
            warp_size=32,
        )

    def none(*_: Any, **__: Any) -> None:
        return None

    def allocated(*_: Any) -> int:
        return 10**9

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: state.gpu.name,
        "get_device_capability": lambda *_: state.gpu.capability,
        "get_device_properties": properties,
        "get_arch_list": lambda: [],
        "mem_get_info": lambda *_: (state.gpu.bytes - 10**9, state.gpu.bytes),
        "memory_allocated": allocated,
        "max_memory_allocated": allocated,
        "memory_reserved": allocated,
        "max_memory_reserved": allocated,
        "memory_stats": lambda *_: {},
        "memory_summary": lambda *_, **__: "A pretended GPU has no summary.",
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or state.gpu.capability >= (8, 0)
        ),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        **dict.fromkeys(
            (
                *("set_device", "init", "_lazy_init", "empty_cache", "ipc_collect", "synchronize"),
                *("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"),
                *("reset_peak_memory_stats", "reset_accumulated_memory_stats", "seed_all"),
                *("reset_max_memory_allocated", "_sleep"),
            ),
            none,
        ),
    }


def _patch_torch() -> None:
    for name, answer in _answers().items():
        _replaced(torch.cuda, name, lambda _, answer=answer: answer)
        if hasattr(torch.cuda.random, name):
            setattr(torch.cuda.random, name, getattr(torch.cuda, name))
        if hasattr(torch.cuda.memory, name):
            setattr(torch.cuda.memory, name, getattr(torch.cuda, name))

    class Nowhere(contextlib.nullcontext):
        def __init__(self, *_: Any, **__: Any):
            super().__init__()

    torch.cuda.device = torch.cuda.device_of = torch.cuda.stream = Nowhere

    def with_cpu(before: Callable) -> Callable:
        """A function of a device's type."""

        def asked(device: Any = "cpu", *args: Any, **kwargs: Any) -> Any:
            return before("cpu" if _target(device) == "cuda" else device, *args, **kwargs)

        return asked

    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype"):
        _replaced(torch, name, with_cpu)
    _replaced(torch, "set_autocast_enabled", with_cpu)

    begin = torch.autocast.__init__

    def autocast(self: Any, device_type: str, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if not state.off and device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
        begin(self, device_type, dtype, *args, **kwargs)

    torch.autocast.__init__ = autocast

    scaler = torch.amp.GradScaler
    made, scale = scaler.__init__, scaler.scale

    def grad_scaler(self: Any, device: str = "cuda", *args: Any, **kwargs: Any) -> None:
        made(self, "cpu" if not state.off and device == "cuda" else device, *args, **kwargs)

    def scaling(self: Any, outputs: Any) -> Any:
        state.scaled = state.scaled or self.is_enabled()
        return scale(self, outputs)

    unscale = scaler.unscale_

    def unscaling(self: Any, optimizer: Any) -> None:
        trained = (p for group in optimizer.param_groups for p in group["params"])
        if self.is_enabled() and any(
            p.grad is not None and p.dtype == torch.bfloat16 for p in trained
        ):
            raise NotImplementedError(
                "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'"
            )
        unscale(self, optimizer)

    scaler.__init__, scaler.scale, scaler.unscale_ = grad_scaler, scaling, unscaling

    run = torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        # Modes are off inside a function of torch; what is run anew for checkpointing needs ours.
        again = not state.off and mode not in _get_current_function_mode_stack()
        state.backward += 1
        try:
            with mode if again else contextlib.nullcontext():
                return run(*args, **kwargs)
        finally:
            state.backward -= 1

    torch.autograd._engine_run_backward = backward

    # What is run anew is compared with the first run by shape and dtype; marks get lost in between.
    checkpoint._allowed_determinism_checks_to_fns["default"] = lambda tensor: {
        "shape": tensor.shape,
        "dtype": tensor.dtype,
    }

    subclass = torch.Tensor._make_subclass

    def make_subclass(cls: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        return mark(subclass(cls, data, *args, **kwargs), marked(data))

    torch.Tensor._make_subclass = staticmethod(make_subclass)

    def loading(before: Callable) -> Callable:
        def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
            with unpretended():
                on = _target(map_location) == "cuda"
                found = before(file, map_location=CPU if on else map_location, **kwargs)
                return mark(found) if on else found

        return load

    _replaced(torch, "load", loading)
    register_optimizer_step_pre_hook(_look_at_step)


def _look_at_step(optimizer: Any, *_: Any) -> None:
    """The rules of float16, which has no gradient below 6e-8."""
    if not state.off and not state.scaled:
        trained = {p.dtype for group in optimizer.param_groups for p in group["params"]}
        if torch.float16 in trained:
            state.say(state.rules, "float16 weights are trained, without loss scaling")
        elif state.half:
            state.say(state.rules, "a step after a float16 forward pass, without loss scaling")
    state.scaled = state.half = False


def _real_id(name: Any) -> str:
    """The catalogue's id of a stand-in, from its name or its place in the hub's cache."""
    from course_utils.models import catalog

    text = str(name).replace("--", "/")
    fits = [i for i in catalog().models if i == text or f"models/{i}/" in text.replace("\\", "/")]
    return max(fits, key=len, default="")


def _patch_loading() -> None:
    import safetensors.torch
    from transformers import PreTrainedModel

    from course_utils.models import catalog

    load = PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        if state.off:
            return load(cls, name, *args, **kwargs)
        where = kwargs.get("device_map")
        if isinstance(where, dict):
            on = any(_target(place, loose=True) == "cuda" for place in where.values())
        elif where is None:
            on = kwargs.get("quantization_config") is not None
        else:
            on = where == "auto" or _target(where, loose=True) == "cuda"
        if on:
            kwargs["device_map"] = {"": "cpu"}
        with unpretended():
            found = load(cls, name, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        if on:
            put_on_gpu(model)
        if real := _real_id(name):
            model.__dict__["_stands_for"] = real
        return found

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)

    count = PreTrainedModel.num_parameters

    def num_parameters(self: Any, *args: Any, **kwargs: Any) -> int:
        """A stand-in has as many parameters as the model that it stands for."""
        real = self.__dict__.get("_stands_for")
        trained = (args and args[0]) or kwargs.get("only_trainable")
        return catalog().models[real].parameters if real and not trained else count(self, *args)

    PreTrainedModel.num_parameters = num_parameters

    opened = safetensors.safe_open

    def safe_open(path: Any, framework: str = "pt", device: Any = "cpu", **kwargs: Any) -> Any:
        if state.off or _target(device, loose=True) != "cuda":
            return opened(path, framework=framework, device=device, **kwargs)
        return _Opened(opened(path, framework=framework, device="cpu", **kwargs))

    for module in [m for m in list(sys.modules.values()) if m is not None]:
        if getattr(module, "__dict__", {}).get("safe_open") is opened:
            module.safe_open = safe_open


class _Opened:
    """An open file of tensors that go to the pretended GPU."""

    def __init__(self, file: Any):
        self.file = file

    def __enter__(self) -> _Opened:
        self.file.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self.file.__exit__(*reason)

    def get_tensor(self, name: str) -> Any:
        return mark(self.file.get_tensor(name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def put_on_gpu(model: Any) -> None:
    """Mark whatever a model holds, as if it had been loaded onto the GPU."""
    with unpretended():
        for tensor in (*model.parameters(), *model.buffers()):
            mark(tensor)
            held = getattr(tensor, "quant_state", None)
            for part in (held, getattr(held, "state2", None)):
                for value in vars(part).values() if part is not None else ():
                    if isinstance(value, torch.Tensor):
                        mark(value)
            for name in ("CB", "SCB"):
                if isinstance(getattr(tensor, name, None), torch.Tensor):
                    mark(getattr(tensor, name))
        if hasattr(model, "hf_device_map"):
            model.hf_device_map = {"": 0}


def _patch_training() -> None:
    from transformers import GenerationMixin, Trainer, TrainingArguments

    set_up = TrainingArguments.__post_init__

    def shortened(self: Any) -> None:
        self.max_steps = min(self.max_steps, MOST_STEPS) if self.max_steps > 0 else MOST_STEPS
        for name in ("eval_steps", "save_steps", "logging_steps"):
            if (getattr(self, name, None) or 0) > 1:
                setattr(self, name, 1)
        set_up(self)

    TrainingArguments.__post_init__ = shortened

    train = Trainer.train

    def looked_at(self: Any, *args: Any, **kwargs: Any) -> Any:
        _look_at_training(self)
        return train(self, *args, **kwargs)

    Trainer.train = looked_at

    generate = GenerationMixin.generate

    def shorter(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
        for name in ("max_new_tokens", "min_new_tokens"):
            if kwargs.get(name):
                kwargs[name] = min(kwargs[name], MOST_TOKENS)
            elif config is not None and getattr(config, name, None):
                config = kwargs["generation_config"] = copy.deepcopy(config)
                setattr(config, name, min(getattr(config, name), MOST_TOKENS))
                args = args[:1] + args[2:]
            elif name == "max_new_tokens" and config is None and not kwargs.get("max_length"):
                kwargs[name] = MOST_TOKENS
        return generate(self, *args, **kwargs)

    GenerationMixin.generate = shorter

    # The predictor pretends a GPU of its own, and measuring needs a real one.
    from course_utils.memory import _from_trainer, _measure, _predict

    def as_it_is(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with unpretended():
                return function(*args, **kwargs)

        return called

    _predict.predict_with = as_it_is(_predict.predict_with)
    _from_trainer.predict_trainer = as_it_is(_from_trainer.predict_trainer)
    measure = _measure.measure

    def measured(*args: Any, **kwargs: Any) -> Any:
        with unpretended():
            return measure(*args, **{**kwargs, "device": "cpu"})

    _measure.measure = measured


def _weights_of(model: Any) -> dict[str, Any]:
    """What decides how much memory a loaded model's weights take."""
    quantized = getattr(model.config, "quantization_config", None)
    settings = quantized if isinstance(quantized, dict) else getattr(quantized, "__dict__", {})
    kind = None
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        kind = "8bit"
    elif settings:
        double = "-double" if settings.get("bnb_4bit_use_double_quant") else ""
        kind = f"{settings.get('bnb_4bit_quant_type', 'fp4')}{double}"
    named = model.__dict__.get("_stands_for") or str(getattr(model, "name_or_path", ""))
    embeddings = model.get_input_embeddings().weight.dtype
    return {
        "model": named,
        "quantization": kind,
        "dtype": str(embeddings).removeprefix("torch."),
        "compute": str(settings.get("bnb_4bit_compute_dtype") or "").removeprefix("torch."),
    }


def _adapter_of(model: Any) -> dict[str, Any]:
    """The adapter that is trained, if it is a LoRA adapter."""
    config = getattr(model, "peft_config", {}).get(getattr(model, "active_adapter", ""), None)
    if getattr(config, "r", None) is None:
        return {"lora": False}
    base = model.get_base_model()
    linear = {
        name.split(".")[-1]
        for name, module in base.named_modules()
        if hasattr(module, "base_layer") or isinstance(module, torch.nn.Linear)
    }
    targets = {name.split(".")[-1] for name in config.target_modules}
    everything = targets >= linear - {"lm_head", "embed_out", "default"}
    return {
        "lora": True,
        "lora_rank": config.r,
        "lora_targets": "all-linear" if everything else ",".join(sorted(targets)),
        "lora_dropout": config.lora_dropout,
    }


def _look_at_training(trainer: Any) -> None:
    """Note a training's settings, with its real model, and what a person would object to."""
    from transformers import PreTrainedModel

    args, model = trainer.args, trainer.model
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with unpretended():
        weights = _weights_of(base)
        beside = [
            _weights_of(other)
            for other in gc.get_objects()
            if isinstance(other, PreTrainedModel)
            and other is not base
            and "_stands_for" in other.__dict__
            and marked(next(other.parameters()))
        ]
        rows = trainer.train_dataset
        ids = rows["input_ids"] if "input_ids" in (getattr(rows, "column_names", 0) or ()) else ()
        reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        cast = bool(weights["quantization"]) and trained == {torch.float32}
        said = {
            **weights,
            **_adapter_of(model),
            "adapter_dtype": "float32" if cast else None,  # None: as TRL has it
            "parameters": base.num_parameters(),
            "trainer": "sft" if type(trainer).__name__ == "SFTTrainer" else "trainer",
            "batch_size": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "learning_rate": args.learning_rate,
            "mixed_precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "no",
            "checkpointing": (
                ("reentrant" if reentrant else "non-reentrant")
                if args.gradient_checkpointing
                else "none"
            ),
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "seq_len": max(map(len, ids), default=0) or getattr(args, "max_length", None) or 512,
            "on_gpu": marked(next(model.parameters())),
            "beside": beside,
        }
    state.trainings.append(said)
    where = f"{said['model']}"
    if args.bf16 and state.gpu.capability < (8, 0):
        state.say(state.notes, f"{where}: bf16=True on a {state.gpu.name}, which emulates it")
    if said["parameters"] >= LARGE and args.learning_rate > HIGH_RATE:
        state.say(
            state.rules,
            f"{where}, {said['parameters'] / 1e9:.1f} billion parameters, is trained at "
            f"{args.learning_rate:g}: more than {HIGH_RATE:g} is for small models",
        )
    if not said["on_gpu"]:
        state.say(state.notes, f"{where}: trained on the CPU, beside a GPU")


class _Lines(ast.NodeTransformer):
    """Puts a call before each statement, to see which lines run."""

    def __init__(self, seen: Callable[[], str]):
        self.seen = seen

    def visit(self, node: Any) -> Any:
        cell = self.seen()
        for block in ast.walk(node):
            for name in ("body", "orelse", "finalbody"):
                body = getattr(block, name, None)
                if isinstance(body, list) and body and isinstance(body[0], ast.stmt):
                    setattr(block, name, [new for old in body for new in self._with(cell, old)])
        return ast.fix_missing_locations(node)

    @staticmethod
    def _with(cell: str, statement: ast.stmt) -> list[ast.stmt]:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if docstring or (
            isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        ):
            return [statement]
        call = ast.Expr(
            ast.Call(
                ast.Name("__line_ran__", ast.Load()),
                [ast.Constant(cell), ast.Constant(statement.lineno)],
                [],
            )
        )
        ast.copy_location(call, statement)
        for part in ast.walk(call):
            ast.copy_location(part, statement)
        return [call, statement]


def _follow_lines(report: Path) -> None:
    """Count the lines of cells that run; write the report after each cell."""
    import builtins

    from IPython import get_ipython

    shell = get_ipython()
    ran: dict[str, set[int]] = {}
    current = [""]

    def line_ran(cell: str, line: int) -> None:
        ran.setdefault(cell, set()).add(line)

    def begin(info: Any) -> None:
        current[0] = info.raw_cell.strip("\n")
        ran.setdefault(current[0], set())

    def end(*_: Any) -> None:
        state.scaled = state.half = False
        written = {
            "ran": [[cell, sorted(lines)] for cell, lines in ran.items()],
            "rules": state.rules,
            "notes": state.notes,
            "trainings": state.trainings,
        }
        report.write_text(json.dumps(written), encoding="utf-8")

    builtins.__line_ran__ = line_ran  # type: ignore[attr-defined]
    shell.ast_transformers.append(_Lines(lambda: current[0]))
    shell.events.register("pre_run_cell", begin)
    shell.events.register("post_run_cell", end)


def start(tier: str, report: str | None = None) -> None:
    """Pretend the GPU of a tier in this process, from now on."""
    import logging

    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import accelerate
        import bitsandbytes  # noqa: F401  it looks for a GPU when it is imported
        import peft
        import transformers
        import trl

        from course_utils import hardware

        for name in ("SFTTrainer", "DPOTrainer"):
            getattr(trl, name)
        _ = transformers.AutoModelForCausalLM, peft.PeftModel
    logging.disable(logging.NOTSET)
    state.gpu = GPUS[tier]
    _patch_torch()
    _patch_loading()
    _patch_training()
    hardware._fixed_facts.cache_clear()
    for module in (transformers.utils.import_utils, accelerate.utils.imports, hardware):
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    if report:
        _follow_lines(Path(report))
    mode.__enter__()
