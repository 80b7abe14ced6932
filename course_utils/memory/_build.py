"""Build what a `Setup` describes: model, adapter, optimizer, batch, on meta or on a GPU.

Prediction and measurement use the same functions, so that both do the same work. Introduced in
notebook 05.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from course_utils._core.undisturbed import quiet_libraries
from course_utils.errors import ImpossibleSetup
from course_utils.memory import _meta_patches
from course_utils.memory._setup import Setup

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LEARNING_RATE = 1e-5
MOST_TOKENS = 2**23  # in a micro-batch whose values a prediction reads


class Backend:
    """What depends on the libraries' versions; this one is for those installed."""

    def from_config(self, config: Any, attention: str | None, dtype: torch.dtype) -> nn.Module:
        """Create a model without weights; `attention` None is transformers' own choice."""
        from transformers import AutoModelForCausalLM

        chosen = {} if attention is None else {"attn_implementation": attention}
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)

    def flash_attention(self) -> contextlib.AbstractContextManager:
        """Context in which models can use FlashAttention 2 without its package."""
        return _meta_patches.flash_attention_chosen()

    def kept_whole(self, made: nn.Module) -> list[str]:
        """Return the modules not to quantize: the output layer and those tied to it."""
        from transformers.quantizers.base import get_keys_to_not_convert

        return get_keys_to_not_convert(made)

    def quantized_layer(self, layer: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
        """Return the quantized layer that replaces a linear layer on meta."""
        from course_utils.memory import _quantized_layers

        return _quantized_layers.quantized(layer, name, dtype)


def model(
    setup: Setup, device: str, weights: str | None = None, backend: Backend | None = None
) -> nn.Module:
    """Create the model, quantized if required; the trainer adds adapter and checkpointing.

    Args:
        setup: which model, and how.
        device: "meta", "cuda" or "cpu".
        weights: a folder of a saved model, in safetensors; None for random weights.
        backend: creates the model on meta; None for the installed libraries.
    """
    backend = backend or Backend()
    attention = None if setup.attention == "auto" else setup.attention
    dtype = DTYPES[setup.dtype]
    if weights:
        made = _saved(setup, device, weights, attention)
    else:
        flash = attention == "flash_attention_2" and device == "meta"
        without_package = backend.flash_attention() if flash else contextlib.nullcontext()
        with torch.device(device), quiet_libraries(), without_package:
            made = backend.from_config(setup.config(), attention, dtype)
    if setup.trainer != "loop" or setup.checkpoints != "none":
        made.config.use_cache = False
    made.train()
    if setup.quantization and not weights:
        _quantize(made, setup, device, backend)
    return made


def _saved(setup: Setup, device: str, weights: str, attention: str | None) -> nn.Module:
    """Load a model with real weights, quantized by transformers if required."""
    from transformers import AutoModelForCausalLM

    from course_utils.models._quantization import quantization_config

    dtype = DTYPES[setup.dtype]
    given: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if setup.quantization:
        given["quantization_config"] = quantization_config(setup.quantization, dtype)
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(
            weights,
            device_map={"": device},
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **given,
        )


def _quantize(made: nn.Module, setup: Setup, device: str, backend: Backend) -> None:
    """Replace linear layers by those of bitsandbytes, or on meta by their stand-ins."""
    from transformers.pytorch_utils import Conv1D

    assert setup.quantization is not None
    dtype = DTYPES[setup.dtype]
    whole = backend.kept_whole(made)
    for name, module in list(made.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if any(name == key or name.startswith(f"{key}.") for key in whole):
            continue
        if device == "meta":
            new = backend.quantized_layer(module, setup.quantization, dtype)
        else:
            new = _quantized_here(module, setup.quantization, dtype).to(device)
        made.set_submodule(name, new)
    # As set by from_pretrained; peft and TRL check these.
    eight_bits = setup.quantization == "8bit"
    made.is_loaded_in_8bit, made.is_loaded_in_4bit = eight_bits, not eight_bits
    made.config._is_quantized = True
    made.config._pre_quantization_dtype = dtype
    made.quantization_method = "bitsandbytes"


def _quantized_here(module: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    """Return bitsandbytes' layer with a linear layer's weight, to be moved to its device."""
    import bitsandbytes as bnb

    weight = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T
    rows, columns = weight.shape
    if name == "8bit":
        new = bnb.nn.Linear8bitLt(
            columns, rows, has_fp16_weights=False, threshold=6.0, device="meta"
        )
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        kind, _, double = name.partition("-")
        new = bnb.nn.Linear4bit(
            columns,
            rows,
            compute_dtype=dtype,
            compress_statistics=bool(double),
            quant_type=kind,
            device="meta",
        )
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=bool(double), quant_type=kind
        )
    new.bias = module.bias
    return new


def adapter(setup: Setup) -> Any:
    """Return peft's configuration of the setup's adapter; None if the weights are trained."""
    import peft

    if setup.peft is not None:
        kind = setup.peft["peft_type"]
        made = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
        names = made.__dataclass_fields__
        config = made(**{name: value for name, value in setup.peft.items() if name in names})
        # Initialisations that read the weights (PiSSA, OLoRA, …) create tensors of the same sizes.
        if isinstance(getattr(config, "init_lora_weights", None), str):
            config.init_lora_weights = True
        return config
    if not setup.lora:
        return None
    targets: Any = setup.lora_targets
    if targets == "default":
        targets = None
    elif targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    return peft.LoraConfig(
        r=setup.lora_rank,
        lora_alpha=2 * setup.lora_rank,
        lora_dropout=setup.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def prepared_by_hand(setup: Setup, made: nn.Module, device: str) -> nn.Module:
    """Add adapter and checkpointing as in a hand-written loop; TRL does so in its own order."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    reentrant = {"use_reentrant": setup.checkpoints == "reentrant"}
    checkpointed = setup.checkpoints != "none"
    with quiet_libraries():
        if setup.prepares:
            made = prepare_model_for_kbit_training(
                made,
                use_gradient_checkpointing=checkpointed,
                gradient_checkpointing_kwargs=reentrant if checkpointed else None,
            )
        elif checkpointed:
            made.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
            if setup.adapter and reentrant["use_reentrant"]:
                made.enable_input_require_grads()
        if (config := adapter(setup)) is not None:
            with torch.device(device):
                made = get_peft_model(made, config)
            cast_adapter(setup, made)
    return made


def cast_adapter(setup: Setup, made: nn.Module) -> None:
    """Give what is trained the dtype that the setup asks for, if it asks for one."""
    if setup.adapter_dtype is not None:
        for parameter in trained(made):
            parameter.data = parameter.data.to(DTYPES[setup.adapter_dtype])


@contextlib.contextmanager
def shared_state_kept() -> Iterator[None]:
    """Restore accelerate's state afterwards: a new trainer's arguments reset it for all others."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (AcceleratorState, GradientState, PartialState)]
    saved = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, before in zip(states, saved, strict=True):
            state.clear()
            state.update(before)


def trained(made: nn.Module) -> list[nn.Parameter]:
    """Return the parameters for the optimizer."""
    return [parameter for parameter in made.parameters() if parameter.requires_grad]


def lengths(setup: Setup) -> list[int]:
    """Return each example's number of tokens: all equal, or from the full length down to half."""
    if setup.sequences != "padded" or setup.batch_size == 1:
        return [setup.seq_len] * setup.batch_size
    most, steps = setup.seq_len, setup.batch_size - 1
    return [most - number * (most // 2) // steps for number in range(setup.batch_size)]


def examples(setup: Setup, vocabulary: int) -> list[dict[str, Any]]:
    """Make a micro-batch of random tokens, uncollated; if packed, each is four texts in a row."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths(setup):
        tokens = torch.randint(min(vocabulary, 1000), (length,), generator=generator).tolist()
        prompt = length - max(1, round(length * setup.supervised_share))
        if setup.trainer == "dpo":
            answer = tokens[prompt:]
            rows.append(
                {"prompt_ids": tokens[:prompt], "chosen_ids": answer, "rejected_ids": answer}
            )
            continue
        row: dict[str, Any] = {"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:]}
        if setup.sequences == "packed":
            each = max(1, -(-length // 4))
            row["seq_lengths"] = [min(each, length - start) for start in range(0, length, each)]
        rows.append(row)
    return rows


def batch(setup: Setup, vocabulary: int) -> dict[str, torch.Tensor]:
    """Make a micro-batch on the CPU, int64, with tensors of shape (batch size, length).

    If packed, positions restart with each text, and there is no mask.
    """
    shape = (setup.batch_size, setup.seq_len)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(vocabulary, 1000), shape, generator=generator)
    used = torch.tensor(lengths(setup))[:, None]
    prompt = used - (used * setup.supervised_share).round().clamp(min=1).long()
    places = torch.arange(setup.seq_len)
    mask = (places < used).long()
    labels = ids.masked_fill((places < prompt) | (places >= used), -100)
    given = {"input_ids": ids * mask, "labels": labels}
    if setup.sequences == "packed":
        each = max(1, -(-setup.seq_len // 4))
        given["position_ids"] = (places % each).expand(shape).clone()
        labels[:, ::each] = -100  # an example's first token is not predicted from the one before
    elif setup.attention_mask:
        given["attention_mask"] = mask
    return given


def too_large_to_look_at(setup: Setup) -> bool:
    """Return whether a prediction uses the batch's shape alone, as it must if the batch is huge.

    Raises:
        ImpossibleSetup: the batch is huge, and code depends on where its labels or padding are.
    """
    if setup.batch_size * setup.seq_len <= MOST_TOKENS:
        return False
    if setup.sequences != "full" or setup.supervised_share < 1 or setup.from_trl:
        raise ImpossibleSetup(
            f"batch_size is {setup.batch_size:,} and seq_len is {setup.seq_len:,}. With TRL's "
            "trainers, and with examples that are not full or not wholly supervised, a prediction "
            f"takes up to {MOST_TOKENS:,} tokens in a micro-batch. Take a smaller batch."
        )
    return True


def outline(setup: Setup) -> dict[str, torch.Tensor]:
    """Return `batch` as shapes alone: no code reads the tokens' values; the mask is all ones."""
    shape = (setup.batch_size, setup.seq_len)
    tokens = torch.empty(shape, dtype=torch.int64, device="meta")
    given = {"input_ids": tokens, "labels": tokens}
    if setup.attention_mask:
        given["attention_mask"] = torch.ones((), dtype=torch.int64).expand(shape)
    return given
