"""Derive a setup from a trainer, and simulate its training on meta tensors.

Introduced in notebook 05.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from course_utils._core import checks
from course_utils.errors import NotPredictable
from course_utils.memory import _build as build
from course_utils.memory import _quantized_layers, _step, _trainers
from course_utils.memory._gpus import DEFAULT, Gpu, this_gpu
from course_utils.memory._gpus import gpu as gpu_by_name
from course_utils.memory._setup import Setup

if TYPE_CHECKING:
    from course_utils.memory._predict import Prediction

_LOOKED_AT = 500  # batches of a dataset whose row lengths are unknown until collated
# Trainer arguments that change memory use in ways that are not modelled.
_REFUSED = {
    "torch_compile": "compiled code plans its memory by itself",
    "use_liger_kernel": "Liger's kernels need a GPU",
    "deepspeed": "DeepSpeed spreads a model over several GPUs",
    "activation_offloading": "activations move to the CPU and back while others are computed",
}


def kind_of(trainer: Any) -> str:
    """Return which of `TRAINERS` a trainer is.

    Raises:
        BadValue: not a trainer.
        NotPredictable: an unsupported trainer, model or argument, which the message names.
    """
    from transformers import AutoModelForCausalLM, Trainer

    checks.a("trainer", trainer, Trainer, "a Trainer of transformers or TRL")
    names = [kind.__name__ for kind in type(trainer).__mro__]
    known = {"SFTTrainer": "sft", "DPOTrainer": "dpo"}
    kind = next((kind for name, kind in known.items() if name in names), "trainer")
    from_trl = any(each.__module__.startswith("trl.") for each in type(trainer).__mro__)
    if kind == "trainer" and (from_trl or "Seq2SeqTrainer" in names):
        raise NotPredictable(
            f"{type(trainer).__name__} is not predicted. SFTTrainer, DPOTrainer and transformers' "
            "Trainer are."
        )
    model = _base(trainer.model)
    config = getattr(model, "config", None)
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping or not isinstance(model, mapping[type(config)]):
        raise NotPredictable(
            f"{type(model).__name__} is no causal language model of transformers; others are not "
            "predicted."
        )
    args = trainer.args
    for name, why in _REFUSED.items():
        if getattr(args, name, None):
            raise NotPredictable(f"{name} is set, which is not predicted: {why}.")
    data = trainer.train_dataset
    if data is None or (hasattr(data, "__len__") and len(data) == 0):
        raise NotPredictable("The trainer has no training examples, which decide about memory.")
    if getattr(trainer, "is_fsdp_enabled", False):
        raise NotPredictable("FSDP is on, which is not predicted: one GPU is.")
    if getattr(trainer, "ref_model", None) is not None:
        raise NotPredictable(
            "A reference model beside the trained one is not predicted; with an adapter, DPO needs "
            "none."
        )
    return kind


def _base(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "peft_config") else model


# ---- the longest batch


def _looking(trainer: Any) -> Any:
    """Return a copy of a trainer whose dataloaders leave no trace in its accelerator."""
    made = copy.copy(trainer)
    made.accelerator = copy.copy(trainer.accelerator)
    made.accelerator._dataloaders = []
    return made


def _longest_examples(trainer: Any, loader: Any) -> list[Any]:
    """Return a micro-batch of the longest examples; empty if lengths are unknown."""
    data, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    columns = getattr(data, "column_names", None) or []
    names = [name for name in ("prompt_ids", "chosen_ids", "rejected_ids") if name in columns]
    names = names or [name for name in ("input_ids",) if name in columns]
    if not names or not hasattr(data, "__len__"):
        return []
    lengths = [sum(map(len, row)) for row in zip(*(data[name] for name in names), strict=True)]
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [loader.dataset[place] for place in order[:size]]


def longest_batch(trainer: Any) -> dict[str, Any]:
    """Return the micro-batch with the most tokens: the longest examples, if lengths are known.

    Otherwise the largest of the first `_LOOKED_AT` batches.
    """
    loader = _looking(trainer).get_train_dataloader()
    if examples := _longest_examples(trainer, loader):
        return dict(loader.collate_fn(examples))
    batches: Iterable[Any] = itertools.islice(iter(loader), _LOOKED_AT)
    return dict(max(batches, key=lambda batch: batch["input_ids"].numel()))


# ---- the setup


def setup_of(trainer: Any) -> Setup:
    """See `Setup.from_trainer`."""
    kind = kind_of(trainer)
    args, model = trainer.args, _base(trainer.model)
    batch = longest_batch(trainer)
    length = batch["input_ids"].shape[1]
    packed = "position_ids" in batch and "attention_mask" not in batch
    if packed:  # all examples of the micro-batch in one row
        length = max(1, length // args.per_device_train_batch_size)
    padded = "attention_mask" in batch and not bool(batch["attention_mask"].all())
    labels = batch.get("labels")
    share = 1.0
    if kind == "dpo":
        share = float(batch["completion_mask"].float().mean())
    elif labels is not None:
        share = float((labels != -100).float().mean())
    config = model.config.to_diff_dict()
    quantization, dtype = _quantization(model), _dtype(model)
    found = Setup(
        {**config, "model_type": model.config.model_type},
        quantization=quantization,
        kbit_preparation=_prepared(model, dtype) if quantization else None,
        dtype=str(dtype).removeprefix("torch."),
        attention=_attention(model),
        **_adapter(trainer.model),
        trainer=kind,
        optimizer=getattr(args.optim, "value", args.optim),
        checkpointing=_checkpointing(trainer),
        accumulation=args.gradient_accumulation_steps,
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no",
        batch_size=args.per_device_train_batch_size,
        seq_len=length,
        sequences="packed" if packed else "padded" if padded else "full",
        supervised_share=min(1.0, max(share, 1 / length)),
        adapter_dtype=_trained_dtype(trainer.model),
    )
    # Where it is the trainer's own choice, the field says nothing.
    usual = found.replace(adapter_dtype=None, mixed_precision="no")
    if usual.trained_dtype == found.trained_dtype:
        found = found.replace(adapter_dtype=None)
    return found


def _quantization(model: nn.Module) -> str | None:
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            return "8bit"
        if isinstance(module, bnb.nn.Linear4bit):
            weight = module.weight
            state = getattr(weight, "quant_state", None)
            double = state.nested if state is not None else weight.compress_statistics
            return weight.quant_type + ("-double" if double else "")
    return None


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the weights' dtype; for a quantized model, the dtype of its matrix products."""
    import bitsandbytes as bnb

    found = getattr(model.config, "_pre_quantization_dtype", None)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit) and module.compute_dtype is not None:
            found = module.compute_dtype
    if found is None:
        sizes: dict[torch.dtype, int] = defaultdict(int)
        for parameter in _floating(model):
            sizes[parameter.dtype] += parameter.numel()
        found = max(sizes, key=sizes.__getitem__)
    if found not in build.DTYPES.values():
        raise NotPredictable(f"The model's weights are in {found}, which is not predicted.")
    return found


def _floating(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are neither quantized nor part of an adapter."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if "lora_" not in name and parameter.is_floating_point()
    ]


def _prepared(model: nn.Module, dtype: torch.dtype) -> bool | None:
    """Return whether unquantized weights were cast to float32; None if that cannot be seen."""
    if dtype == torch.float32:
        return None
    return any(p.dtype == torch.float32 and not p.requires_grad for p in _floating(model))


def _trained_dtype(model: nn.Module) -> str | None:
    """Return the dtype of an adapter's weights."""
    if not hasattr(model, "peft_config"):
        return None
    dtypes = {parameter.dtype for parameter in build.trained(model)}
    return str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else None


def _attention(model: nn.Module) -> str:
    found = model.config._attn_implementation
    if found not in ("eager", "sdpa", "flash_attention_2"):
        raise NotPredictable(f"attn_implementation is {found!r}, which is not predicted.")
    return found


def _adapter(model: nn.Module) -> dict[str, Any]:
    """Return the fields of `Setup` for an adapter: those for LoRA if they suffice, else `peft`."""
    from peft import LoraConfig

    if not hasattr(model, "peft_config"):
        return {}
    config = model.peft_config[model.active_adapter]
    if type(config) is LoraConfig and isinstance(config.target_modules, set | list):
        targets = sorted(config.target_modules)
        plain = LoraConfig(r=config.r, lora_dropout=config.lora_dropout, target_modules=targets)
        told, usual = config.to_dict(), plain.to_dict()
        # Fields that affect no weight in memory, or only say where the adapter came from.
        silent = ["lora_alpha", "task_type", "base_model_name_or_path", "revision", "peft_version"]
        silent += ["target_modules", "inference_mode", "auto_mapping", "exclude_modules"]
        if all(told[name] == usual[name] for name in told if name not in silent):
            return {
                "lora": True,
                "lora_rank": config.r,
                "lora_dropout": config.lora_dropout,
                "lora_targets": ",".join(targets),
            }
    return {"peft": config.to_dict()}


def _checkpointing(trainer: Any) -> str:
    args = trainer.args
    on = args.gradient_checkpointing or getattr(
        _base(trainer.model), "is_gradient_checkpointing", 0
    )
    if not on:
        return "none"
    kwargs = args.gradient_checkpointing_kwargs or {}
    return "reentrant" if kwargs.get("use_reentrant") else "non-reentrant"


# ---- the same training on meta tensors


def on_meta(model: nn.Module) -> nn.Module:
    """Copy a model onto meta, with shapes and no values; the model itself is unchanged."""
    import bitsandbytes as bnb

    known: dict[int, Any] = {}

    def without_values(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known:
            made = torch.empty_like(tensor, device="meta")
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            known[id(tensor)] = made
        return known[id(tensor)]

    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            known[id(module)] = _quantized_on_meta(module, without_values)
            own = []
        for value in own:
            if isinstance(value, torch.Tensor):
                without_values(value)
    made = copy.deepcopy(model, known)
    for module in made.modules():
        if "_original_forward" in vars(module):  # wrapped by accelerate
            vars(module)["forward"] = vars(module).pop("_original_forward")
    _fused_head_anew(_base(made))
    return made


def _quantized_on_meta(module: nn.Module, without_values: Any) -> nn.Module:
    with torch.device("meta"):
        layer = nn.Linear(module.in_features, module.out_features, bias=False)
    layer.bias = None if module.bias is None else without_values(module.bias)
    dtype = getattr(module, "compute_dtype", None) or torch.float32
    wrapped = nn.Module()
    wrapped.layer = module
    quantization = _quantization(wrapped)
    assert quantization is not None
    made = _quantized_layers.quantized(layer, quantization, dtype)
    return made.train(module.training)


def _fused_head_anew(base: nn.Module) -> None:
    """Rebind TRL's fused LM head, which refers to the forward of the model it was added to."""
    forward = vars(base).get("forward")
    function = getattr(forward, "__func__", None)
    cells = dict(
        zip(
            getattr(getattr(function, "__code__", None), "co_freevars", ()),
            getattr(function, "__closure__", None) or (),
            strict=True,
        )
    )
    if "original_forward" not in cells:
        return
    from trl.trainer.utils import add_fused_lm_head

    del base.forward
    wanted = ("temperature", "cast_lm_head_to_fp32", "outputs")
    add_fused_lm_head(base, **{name: cells[name].cell_contents for name in wanted if name in cells})


def copied(trainer: Any) -> Any:
    """Return a trainer of the same class, arguments and collator, on meta tensors."""
    made = copy.copy(trainer)
    made.args, made.accelerator = copy.copy(trainer.args), copy.copy(trainer.accelerator)
    made.accelerator.scaler = None
    made.model = made.model_wrapped = on_meta(trainer.model)
    made.lr_scheduler = None
    made._mixed_mesh_grads = None
    if "_metrics" in vars(made):
        made._metrics = defaultdict(lambda: defaultdict(list))
    _trainers.begin(made)
    return made


def predict_trainer(trainer: Any, gpu: Gpu | str | None, capacity: int | None) -> Prediction:
    """Run `predict` for a trainer."""
    import time

    from course_utils.memory._predict import Simulation, _assumptions, _refusing

    gpu = (this_gpu() or DEFAULT) if gpu is None else gpu_by_name(gpu)
    start = time.perf_counter()
    setup = setup_of(trainer)
    short = setup.shortened()
    simulation = Simulation(gpu, setup.autocast, capacity)
    example = {
        name: values for name, values in longest_batch(trainer).items() if values is not None
    }
    with simulation.patched(), _refusing(setup):
        made = copied(trainer)
        loaded = simulation.load(made.model, setup)
        simulation.hold(made.model, made.optimizer)
        with simulation.running():
            simulation.prepare(made)
            put = functools.partial(simulation.put, example)
            simulation.wait(example, setup.accumulation - short.accumulation)
            _step.with_trainer(made, put, simulation.phase, short.runs, short.accumulation)
            _evaluate(trainer, made, simulation)
    simulation.label(optimizer=made.optimizer)
    assumptions = [*_assumptions(setup, gpu, loaded), "the longest examples meet in one batch"]
    return simulation.prediction(setup, assumptions, start)


def _evaluate(trainer: Any, made: Any, simulation: Any) -> None:
    """Run one evaluation batch, the dataloader's first, if there is an evaluation."""
    data = trainer.eval_dataset
    wanted = str(getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy)) != "no"
    if data is None or not wanted:
        return
    if isinstance(data, dict):
        data = next(iter(data.values()))
    loader = _looking(trainer).get_eval_dataloader(data)
    batches = itertools.islice(iter(loader), _LOOKED_AT)
    largest: Mapping[str, Any] = max(batches, key=lambda batch: batch["input_ids"].numel())
    simulation.phase("evaluation")
    made.model.eval()
    loss_only = trainer.args.prediction_loss_only or trainer.compute_metrics is None
    made.prediction_step(made.model_wrapped, simulation.put(dict(largest)), loss_only)
