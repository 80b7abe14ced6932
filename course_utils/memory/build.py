"""From a `Setup` to what is trained: model, adapter, optimizer, batch, on meta or on a GPU.

The same functions serve prediction and measurement, so that both do the same work. Introduced in
notebook 05.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from course_utils.errors import ImpossibleSetup
from course_utils.memory import stand_ins
from course_utils.memory.setup import Setup

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LEARNING_RATE = 1e-5
MOST_TOKENS = 2**23  # in a micro-batch whose values a prediction looks at
# What older transformers do otherwise; benchmarks/libraries_of_2024.py sets it.
DTYPE_KEYWORD = "dtype"  # of from_config


def model(setup: Setup, device: str, weights: str | None = None) -> nn.Module:
    """The model, ready to be trained as the setup says.

    Args:
        setup: which model, and how.
        device: "meta", "cuda" or "cpu".
        weights: a folder of a saved model, in safetensors; None for random weights.
    """
    from transformers import AutoModelForCausalLM

    config = setup.config()
    named = {
        "attn_implementation": setup.attention,
        DTYPE_KEYWORD: DTYPES[setup.weight_dtype],
    }
    if weights:
        made = _saved(setup, device, weights, named)
    else:
        flash = setup.attention == "flash_attention_2" and device == "meta"
        without_package = stand_ins.flash_attention_chosen() if flash else contextlib.nullcontext()
        with torch.device(device), quiet(), without_package:
            made = AutoModelForCausalLM.from_config(config, **named)
    if setup.loop == "trainer" or setup.checkpointing != "none":
        made.config.use_cache = False
    made.train()
    if setup.quantized and not weights:
        _quantize(made, setup, device)
    reentrant = {"use_reentrant": setup.checkpointing == "reentrant"}
    checkpointed = setup.checkpointing != "none"
    if setup.quantized:
        from peft import prepare_model_for_kbit_training

        with quiet():
            made = prepare_model_for_kbit_training(
                made,
                use_gradient_checkpointing=checkpointed,
                gradient_checkpointing_kwargs=reentrant if checkpointed else None,
            )
    elif checkpointed:
        with quiet():
            made.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
        if setup.lora and reentrant["use_reentrant"]:
            made.enable_input_require_grads()
    return _with_adapter(made, setup, device) if setup.lora else made


def _saved(setup: Setup, device: str, weights: str, named: dict[str, Any]) -> nn.Module:
    """A model with real weights, quantized by transformers where it is to be."""
    from transformers import AutoModelForCausalLM

    from course_utils.quantization import quantization_config

    if setup.quantized:
        name = "8bit" if setup.weights == "8-bit" else setup.weights
        named["quantization_config"] = quantization_config(name, DTYPES[setup.dtype])
    with quiet():
        return AutoModelForCausalLM.from_pretrained(
            weights,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            **named,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' remarks, which are about real trainings."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def kept_whole(made: nn.Module) -> list[str]:
    """The modules that transformers does not quantize: the output layer and what is tied to it."""
    from transformers.quantizers.base import get_keys_to_not_convert

    return get_keys_to_not_convert(made)


def _quantize(made: nn.Module, setup: Setup, device: str) -> None:
    """Replace linear layers by bitsandbytes' ones, or on meta by their stand-ins."""
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    from course_utils.memory import quantized_layers as stand_in

    kind, _, double = setup.weights.partition("-")
    eight_bits = setup.weights == "8-bit"
    dtype = DTYPES[setup.dtype]
    whole = kept_whole(made)
    for name, module in list(made.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if any(name == key or name.startswith(f"{key}.") for key in whole):
            continue
        if device == "meta":
            new = (
                stand_in.Linear8bit(module)
                if eight_bits
                else stand_in.Linear4bit(module, kind, bool(double), dtype)
            )
        else:
            weight = module.weight.data if isinstance(module, nn.Linear) else module.weight.data.T
            rows, columns = weight.shape
            if eight_bits:
                new = bnb.nn.Linear8bitLt(
                    columns, rows, has_fp16_weights=False, threshold=6.0, device="meta"
                )
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            else:
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
            new = new.to(device)
        made.set_submodule(name, new)
    # As from_pretrained leaves it; peft asks for these.
    made.is_loaded_in_8bit, made.is_loaded_in_4bit = eight_bits, not eight_bits
    made.is_quantized = made.config._is_quantized = True
    made.config._pre_quantization_dtype = dtype
    made.quantization_method = "bitsandbytes"


def _with_adapter(made: nn.Module, setup: Setup, device: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets: Any = setup.lora_targets
    if targets == "default":
        targets = None
    elif targets != "all-linear":
        targets = [name.strip() for name in targets.split(",")]
    config = LoraConfig(
        r=setup.lora_rank,
        lora_alpha=2 * setup.lora_rank,
        lora_dropout=setup.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.device(device), quiet():
        return get_peft_model(made, config)


def trained(made: nn.Module) -> list[nn.Parameter]:
    """The parameters that the optimizer gets."""
    return [parameter for parameter in made.parameters() if parameter.requires_grad]


def optimizer(setup: Setup, parameters: list[nn.Parameter], device: str) -> Any:
    """The optimizer, with the settings that transformers' Trainer gives it."""
    name = setup.optimizer
    if name in ("adam_8bit", "adam_8bit_paged"):
        paged = name.endswith("paged")
        if device == "meta":
            from course_utils.memory.optimizers import Adam8bit

            return Adam8bit(parameters, paged)
        import bitsandbytes as bnb

        return bnb.optim.AdamW(parameters, LEARNING_RATE, optim_bits=8, is_paged=paged)
    if name == "sgd":
        return torch.optim.SGD(parameters, LEARNING_RATE, foreach=True)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, LEARNING_RATE, scale_parameter=False, relative_step=False)
    return torch.optim.AdamW(
        parameters, LEARNING_RATE, foreach=name == "adam", fused=name == "adam_fused"
    )


def batch(setup: Setup, vocabulary: int) -> dict[str, torch.Tensor]:
    """A micro-batch of random tokens on the CPU, int64, each (batch size, length).

    Padded: the first example has the whole length, the others go down to half of it. Packed: four
    examples of about a quarter each in a row, whose positions begin anew, and no mask, as TRL's
    packing without padding gives it.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (setup.batch_size, setup.seq_len)
    tokens = torch.randint(min(vocabulary, 1000), shape, generator=generator)
    labels = tokens.clone()
    if setup.prompt_masked:
        labels[:, : setup.seq_len // 2] = -100
    given = {"input_ids": tokens, "labels": labels}
    if setup.sequences == "packed":
        each = max(1, -(-setup.seq_len // 4))
        positions = torch.arange(setup.seq_len) % each
        given["position_ids"] = positions.expand(shape).clone()
        labels[:, ::each] = -100  # an example's first token is not predicted from the one before
        return given
    mask = torch.ones(shape, dtype=torch.int64)
    if setup.sequences == "padded":
        steps = max(1, setup.batch_size - 1)
        used = setup.seq_len - torch.arange(setup.batch_size) * (setup.seq_len // 2) // steps
        if setup.batch_size == 1:
            used[0] = max(1, setup.seq_len // 2)
        mask[torch.arange(setup.seq_len) >= used[:, None]] = 0
        labels[mask == 0] = -100
    given["attention_mask"] = mask
    return given


def outline(setup: Setup, vocabulary: int) -> dict[str, torch.Tensor]:
    """`batch` for a prediction, which takes no memory to speak of.

    Above `MOST_TOKENS` only a mask of ones has values: no code goes by the values of the others.

    Raises:
        ImpossibleSetup: so many tokens, padded or packed; what code does depends on where.
    """
    if setup.batch_size * setup.seq_len <= MOST_TOKENS:
        return batch(setup, vocabulary)
    if setup.sequences != "full":
        raise ImpossibleSetup(
            f"batch_size is {setup.batch_size:,} and seq_len is {setup.seq_len:,}. With "
            f"{setup.sequences} sequences, a prediction takes up to {MOST_TOKENS:,} tokens in a "
            'micro-batch. Take a smaller batch, or sequences="full".'
        )
    shape = (setup.batch_size, setup.seq_len)
    tokens = torch.empty(shape, dtype=torch.int64, device="meta")
    mask = torch.ones((), dtype=torch.int64).expand(shape)
    return {"input_ids": tokens, "labels": tokens, "attention_mask": mask}
