"""`Setup`: one way to train a model, as far as it decides about memory. Introduced in notebook 05.

A combination that cannot be trained is refused when it is made, with the reason.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import catalog, checks
from course_utils.errors import BadValue, ImpossibleSetup, UnknownName

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST = 10**6  # of anything that is counted: more is a slip, and shapes would overflow
_MOST_LAYERS = 10_000
_OR_FOLDER = "Or name a folder with its config.json."
WEIGHTS = ("32-bit", "16-bit", "8-bit", "nf4", "nf4-double", "fp4", "fp4-double")
DTYPES = ("bfloat16", "float16")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
OPTIMIZERS = {
    "adam": "AdamW as torch runs it on a GPU by default, all tensors at once (foreach)",
    "adam_loop": "AdamW one tensor at a time",
    "adam_fused": "AdamW in one kernel; the Trainer's default",
    "adam_8bit": "bitsandbytes' AdamW with 8-bit states",
    "adam_8bit_paged": "the same with its states in memory that moves to the CPU when need be",
    "sgd": "stochastic gradient descent without momentum",
    "adafactor": "Adafactor, as the Trainer sets it up",
}
CHECKPOINTING = ("none", "non-reentrant", "reentrant")
SEQUENCES = {
    "full": "every example fills the whole length",
    "padded": "examples of different lengths, padded to the longest",
    "packed": "several examples in a row, told apart by their positions",
}
LOOPS = {
    "trainer": "as transformers' Trainer: outputs are gone before the backward pass, no KV cache",
    "handwritten": "as one writes it by hand: outputs live until the step's end, KV cache as set",
}


@dataclass(frozen=True)
class Setup:
    """How a model is trained, one field for each thing that decides about memory.

    Attributes:
        model: a model's id, a folder with its `config.json`, or a configuration (which is kept as
            a dictionary).
        weights: one of `WEIGHTS`. Quantized ones are frozen and need LoRA.
        dtype: of 16-bit weights, of what is not quantized, and of autocast: one of `DTYPES`.
        attention: one of `ATTENTIONS`, in transformers' words.
        lora: train an adapter instead of the weights.
        lora_rank, lora_dropout: of the adapter.
        lora_targets: "default" (what peft takes for this architecture), "all-linear", or the
            modules' names with commas between them.
        optimizer: one of `OPTIMIZERS`.
        checkpointing: gradient checkpointing, one of `CHECKPOINTING`.
        accumulation: micro-batches between two optimizer steps.
        mixed_precision: autocast to `dtype`, as the Trainer's `bf16=True` or `fp16=True`.
        batch_size: examples a micro-batch.
        seq_len: tokens an example, the longest one's if they differ.
        sequences: one of `SEQUENCES`.
        prompt_masked: whether the loss leaves out the first half of each example.
        loop: one of `LOOPS`.
        micro_batches: how many are run; None for two optimizer steps, since only the second one's
            forward pass has the optimizer's states beside it.

    Raises:
        UnknownName: a value that its field does not have, with those that it has.
        ImpossibleSetup: values that exclude each other, or numbers that make no sense.
    """

    model: str | dict[str, Any]
    weights: str = "16-bit"
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    lora: bool = False
    lora_rank: int = 16
    lora_dropout: float = 0.05
    lora_targets: str = "default"
    optimizer: str = "adam_fused"
    checkpointing: str = "none"
    accumulation: int = 1
    mixed_precision: bool = False
    batch_size: int = 1
    seq_len: int = 512
    sequences: str = "full"
    prompt_masked: bool = False
    loop: str = "trainer"
    micro_batches: int | None = None

    def __post_init__(self) -> None:
        if hasattr(self.model, "to_diff_dict") and not isinstance(self.model, type):
            as_dict = {**self.model.to_diff_dict(), "model_type": self.model.model_type}
            object.__setattr__(self, "model", as_dict)
        if not isinstance(self.model, str | dict):
            raise UnknownName(
                f"model is {checks.shown(self.model)}. It has to be a model's id, a folder with "
                "its config.json, or a configuration of transformers."
            )
        for name, known in (
            ("weights", WEIGHTS),
            ("dtype", DTYPES),
            ("attention", ATTENTIONS),
            ("optimizer", tuple(OPTIMIZERS)),
            ("checkpointing", CHECKPOINTING),
            ("sequences", tuple(SEQUENCES)),
            ("loop", tuple(LOOPS)),
        ):
            checks.one_of(name, getattr(self, name), known)
        try:
            for name in ("lora", "mixed_precision", "prompt_masked"):
                checks.flag(name, getattr(self, name))
            for name in ("lora_rank", "accumulation", "batch_size", "seq_len", "micro_batches"):
                if name != "micro_batches" or self.micro_batches is not None:
                    # What is kept goes into JSON: numpy's numbers do not.
                    count = checks.whole(name, getattr(self, name), 1, MOST)
                    object.__setattr__(self, name, count)
            checks.number("lora_dropout", self.lora_dropout, least=0, below=1)
            checks.text("lora_targets", self.lora_targets)
            if not all(name.strip() for name in self.lora_targets.split(",")):
                raise checks.refuse(
                    "lora_targets",
                    self.lora_targets,
                    '"default", "all-linear", or names of modules with commas between them',
                )
        except BadValue as error:
            raise ImpossibleSetup(str(error)) from None
        if self.quantized and not self.lora:
            raise ImpossibleSetup(
                f"Quantized weights ({self.weights}) cannot be trained themselves: set lora=True, "
                'or take weights="16-bit".'
            )
        computes_in_32 = self.weights == "32-bit" and not self.mixed_precision
        if self.attention == "flash_attention_2" and computes_in_32:
            raise ImpossibleSetup(
                "FlashAttention 2 computes in 16 bits: with 32-bit weights set "
                'mixed_precision=True, or take attention="sdpa".'
            )
        trained_in_16 = self.weights == "16-bit" and not self.lora
        if self.mixed_precision and self.dtype == "float16" and trained_in_16:
            raise ImpossibleSetup(
                "The gradient scaler of mixed precision in float16 refuses float16 gradients: "
                'take weights="32-bit", dtype="bfloat16", or LoRA.'
            )
        if self.sequences == "packed" and self.seq_len < 2:
            raise ImpossibleSetup("Packing needs two tokens or more.")
        self._check_length()

    def _check_length(self) -> None:
        longest = getattr(self.config(), "max_position_embeddings", None)
        if isinstance(longest, int) and self.seq_len > longest:
            raise ImpossibleSetup(
                f"seq_len is {self.seq_len}, but {self.name} has {longest} positions."
            )

    @property
    def name(self) -> str:
        """The model's id or folder, or the type of its configuration."""
        return self.model if isinstance(self.model, str) else f"a {self.model['model_type']}"

    @property
    def quantized(self) -> bool:
        """Whether the weights are in 8 or 4 bits."""
        return self.weights not in ("32-bit", "16-bit")

    @property
    def weight_dtype(self) -> str:
        """The dtype of weights that are not quantized."""
        return "float32" if self.weights == "32-bit" else self.dtype

    @property
    def runs(self) -> int:
        """How many micro-batches are run."""
        return 2 * self.accumulation if self.micro_batches is None else self.micro_batches

    def config(self) -> PretrainedConfig:
        """The model's architecture: from the catalogue, a folder, or the hub if it is in reach.

        Raises:
            UnknownName: no such model is at hand, with near matches.
        """
        return config_of(self.model)

    def but(self, **changes: Any) -> Setup:
        """The same with some fields changed.

        Raises:
            UnknownName: there is no such field; and what `Setup` raises.
        """
        known_fields(changes)
        return replace(self, **changes)

    def shortened(self) -> Setup:
        """Fewer micro-batches with the same peaks: after two of a step, and after two steps, no
        others need more."""
        steps, rest = divmod(self.runs, self.accumulation)
        if not steps:
            rest = min(rest, 2)
            return self.but(accumulation=rest + 1, micro_batches=rest)
        accumulation = min(self.accumulation, 2)
        return self.but(
            accumulation=accumulation,
            micro_batches=accumulation * min(steps, 2) + min(rest, 2),
        )

    def to_dict(self) -> dict[str, Any]:
        """Its fields; `Setup(**that)` is the same setup."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        """The model and what differs from the defaults."""
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "model" and getattr(self, field.name) != field.default
        ]
        return ", ".join([self.name, *changed])


def known_fields(given: dict[str, Any]) -> None:
    """Refuse names that are no arguments of `Setup`.

    Raises:
        UnknownName: there is no such field; near matches are named.
    """
    for name in given:
        checks.one_of("field of Setup", name, Setup.__dataclass_fields__)


def config_of(model: str | dict[str, Any]) -> PretrainedConfig:
    """A model's configuration; see `Setup.config`."""
    if isinstance(model, dict):
        return _configuration(model, "The configuration")
    known = catalog.catalog().models
    if not isinstance(model, str):
        raise checks.unknown("model", model, known, _OR_FOLDER)
    if model in known:
        return known[model].config()
    if model in catalog.catalog().own:
        folder = catalog.catalog().own[model].path
    elif _has_config(model):
        folder = Path(model)
    else:
        folder = _from_hub(model, list(known))
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImpossibleSetup(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}: {error}). The file "
            "is damaged: download or save the model again."
        ) from None
    return _configuration(data, str(folder))


def _has_config(folder: str) -> bool:
    try:
        return (Path(folder) / "config.json").is_file()
    except (OSError, ValueError):  # no path at all
        return False


def _from_hub(model: str, known: list[str]) -> Path:
    from course_utils import hub

    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", model, re.ASCII):
        raise checks.unknown("model", model, known, _OR_FOLDER)
    folder = hub.cached(model, "main", weights=False)
    if folder is None:
        if not hub.reachable():
            why = f"{_OR_FOLDER} The hub is out of reach."
            raise checks.unknown("model", model, known, why)
        folder = hub.download(model, "main", weights=False)
    return folder


def _configuration(data: dict[str, Any], where: str) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

    if not isinstance(data, dict):
        raise ImpossibleSetup(f"{where} holds {checks.shown(data)}, which is no configuration.")
    if "auto_map" in data:
        raise ImpossibleSetup(
            f"{where} brings code of its own (auto_map); only what transformers has is run."
        )
    # A checkpoint's quantization and dtype say how it was stored, not how it is trained here.
    stored = ("quantization_config", "torch_dtype", "dtype")
    data = {key: value for key, value in data.items() if key not in stored}
    if "model_type" not in data:
        raise ImpossibleSetup(f"{where} names no model_type.")
    kind = data["model_type"]
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ImpossibleSetup(
            f"{where} is of type {checks.shown(kind)}, which this transformers does not have."
        )
    try:
        config = AutoConfig.for_model(**data)
    except Exception as error:  # each architecture checks its own values in its own way
        said = " ".join(str(error).split())[:300]
        raise ImpossibleSetup(f"{where} is no configuration of a {kind} model: {said}") from None
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ImpossibleSetup(f"{where} is of type {data['model_type']!r}, which is no decoder.")
    layers = getattr(config, "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS:
        raise ImpossibleSetup(
            f"{where} has num_hidden_layers={checks.shown(layers)}; 1 to {_MOST_LAYERS:,} are "
            "possible."
        )
    return config
