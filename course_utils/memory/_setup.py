"""`Setup`: one way to train a model, as far as memory depends on it. Introduced in notebook 05.

A combination that cannot be trained is rejected on creation, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils.errors import BadValue, ImpossibleSetup, UnknownName, unknown
from course_utils.memory import _optimizers as optimizers
from course_utils.models import _catalog as catalog

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MOST = 10**6  # for any count: more is a typing error, and shapes would overflow
_MOST_LAYERS = 10_000
_OR_FOLDER = "Or name a folder with its config.json."
QUANTIZATIONS = ("8bit", "nf4", "nf4-double", "fp4", "fp4-double")
DTYPES = ("bfloat16", "float16", "float32")
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2")
CHECKPOINTING = ("none", "non-reentrant", "reentrant")
MIXED_PRECISION = ("no", "bf16", "fp16")
SEQUENCES = {
    "full": "every example fills the whole length",
    "padded": "examples of different lengths, padded to the longest",
    "packed": "several examples in a row, told apart by their positions",
}
TRAINERS = {
    "sft": "TRL's SFTTrainer, whose loss never holds all logits",
    "trainer": "transformers' Trainer",
    "dpo": "TRL's DPOTrainer: chosen and rejected responses in one batch",
    "loop": "a loop written by hand",
}

STRATEGIES = {
    "ddp": "PyTorch's DistributedDataParallel: each GPU has a whole copy",
    "fsdp2": "PyTorch's fully_shard, as accelerate applies it: weights, gradients, states sharded",
}
OFFLOADS = {"fsdp2": ("all",)}  # what each strategy can move to the CPU's memory


@dataclass(frozen=True)
class Setup:
    """How a model is trained, with one field for everything that affects memory.

    Attributes:
        model: a model's id, a folder with its `config.json`, or a configuration (stored as a
            dictionary).
        quantization: None, or one of `QUANTIZATIONS`, the names that `load_model` accepts.
            Quantized weights are frozen and need an adapter.
        dtype: of the weights, or of those that are not quantized: one of `DTYPES`.
        attention: one of `ATTENTIONS`, as named by transformers; "auto" is its default.
        lora: train a LoRA adapter instead of the weights.
        lora_rank, lora_dropout: of the adapter.
        lora_targets: "default" (peft's choice for this architecture), "all-linear", or the
            modules' names separated by commas.
        peft: any other adapter: a peft configuration, stored as a dictionary. It replaces `lora`
            and the fields that go with it.
        kbit_preparation: whether peft's `prepare_model_for_kbit_training` is called on a quantized
            model, which casts what is not quantized to float32; None for the usual choice: yes, but
            not with TRL's trainers.
        trainer: one of `TRAINERS`.
        optimizer: a value of `optim` in `TrainingArguments`, if the installed libraries have it.
        checkpointing: gradient checkpointing, one of `CHECKPOINTING`; None for the trainer's
            default, which is "non-reentrant" for TRL's and "none" for the others.
        accumulation: micro-batches per optimizer step.
        mixed_precision: autocast, one of `MIXED_PRECISION`; True for the one that goes with
            `dtype`; None for the trainer's default, which is "bf16" for TRL's and "no" for the
            others. With float16 weights, TRL's would be "fp16" if the trained weights are in
            float32, else "no", because a gradient scaler needs gradients in float32.
        batch_size: examples per micro-batch; for "dpo" pairs, so twice as many rows are run.
        seq_len: tokens per example; of the longest one if they differ.
        sequences: one of `SEQUENCES`.
        supervised_share: the share of each example's tokens, counted from its end, that the loss
            covers; above 0, at most 1.
        attention_mask: whether a hand-written loop passes one.
        keep_outputs: whether a hand-written loop keeps the outputs until the end of the step.
        micro_batches: how many are run; None for two optimizer steps, since only from the second
            one on do the optimizer's states exist during the forward pass.
        devices: the number of GPUs; the prediction is for the first of them. `batch_size` and
            `accumulation` are those of each GPU.
        strategy: how several GPUs share the training, one of `STRATEGIES`; None for one GPU.
        offload: what waits in the CPU's memory, one of the strategy's `OFFLOADS`: "all" for
            weights, gradients and optimizer states; None for nothing.
        adapter_dtype: of an adapter, one of `DTYPES`; None for what peft and the trainer choose,
            see `trained_dtype`.

    Raises:
        UnknownName: a value that its field does not have; the message lists those it has.
        ImpossibleSetup: values that exclude each other, or numbers that make no sense.
    """

    model: str | dict[str, Any]
    quantization: str | None = None
    dtype: str = "bfloat16"
    attention: str = "auto"
    lora: bool = False
    lora_rank: int = 16
    lora_dropout: float = 0.05
    lora_targets: str = "default"
    peft: dict[str, Any] | None = None
    kbit_preparation: bool | None = None
    trainer: str = "sft"
    optimizer: str = "adamw_torch_fused"
    checkpointing: str | None = None
    accumulation: int = 1
    mixed_precision: str | bool | None = None
    batch_size: int = 1
    seq_len: int = 512
    sequences: str = "full"
    supervised_share: float = 1.0
    attention_mask: bool = True
    keep_outputs: bool = True
    micro_batches: int | None = None
    devices: int = 1
    strategy: str | None = None
    offload: str | None = None
    adapter_dtype: str | None = None

    def __post_init__(self) -> None:
        self._keep_as_data()
        for name, known in (
            ("dtype", DTYPES),
            ("attention", ATTENTIONS),
            ("trainer", tuple(TRAINERS)),
            ("sequences", tuple(SEQUENCES)),
        ):
            checks.one_of(name, getattr(self, name), known)
        if self.quantization is not None:
            checks.one_of("quantization", self.quantization, QUANTIZATIONS, "Or None.")
        if self.checkpointing is not None:
            checks.one_of("checkpointing", self.checkpointing, CHECKPOINTING, "Or None.")
        if self.adapter_dtype is not None:
            checks.one_of("adapter_dtype", self.adapter_dtype, DTYPES, "Or None.")
        if not isinstance(self.mixed_precision, bool | None):
            checks.one_of(
                "mixed_precision", self.mixed_precision, MIXED_PRECISION, "Or True, False, None."
            )
        if self.strategy is not None:
            checks.one_of("strategy", self.strategy, tuple(STRATEGIES), "Or None.")
        optimizers.check(self.optimizer)
        try:
            self._check_numbers()
        except BadValue as error:
            raise ImpossibleSetup(str(error)) from None
        self._check_combinations()
        self._check_devices()
        self._check_length()

    def _keep_as_data(self) -> None:
        """Convert configurations to dictionaries, which can be saved and compared."""
        given: Any = self.model
        if hasattr(given, "to_diff_dict") and not isinstance(given, type):
            as_dict = {**given.to_diff_dict(), "model_type": given.model_type}
            object.__setattr__(self, "model", as_dict)
        if not isinstance(self.model, str | dict):
            raise UnknownName(
                f"model is {checks.shown(self.model)}. It has to be a model's id, a folder with "
                "its config.json, or a configuration of transformers."
            )
        if self.peft is not None:
            object.__setattr__(self, "peft", _peft_as_dict(self.peft))

    def _check_numbers(self) -> None:
        for name in ("lora", "attention_mask", "keep_outputs"):
            checks.flag(name, getattr(self, name))
        if self.kbit_preparation is not None:
            checks.flag("kbit_preparation", self.kbit_preparation)
        counts = ("lora_rank", "accumulation", "batch_size", "seq_len", "micro_batches", "devices")
        for name in counts:
            if name != "micro_batches" or self.micro_batches is not None:
                # Values must be JSON-serialisable: NumPy's numbers are not.
                count = checks.whole(name, getattr(self, name), 1, MOST)
                object.__setattr__(self, name, count)
        checks.number("lora_dropout", self.lora_dropout, least=0, below=1)
        checks.number("supervised_share", self.supervised_share, above=0, most=1)
        checks.text("lora_targets", self.lora_targets)
        if not all(name.strip() for name in self.lora_targets.split(",")):
            raise checks.refuse(
                "lora_targets",
                self.lora_targets,
                '"default", "all-linear", or names of modules with commas between them',
            )

    def _check_combinations(self) -> None:
        if self.lora and self.peft is not None:
            raise ImpossibleSetup("lora=True and peft are both given: take one of them.")
        if self.adapter_dtype and not self.adapter:
            raise ImpossibleSetup("adapter_dtype is given without an adapter: set lora=True.")
        if self.quantization and not self.adapter:
            raise ImpossibleSetup(
                f"Quantized weights ({self.quantization}) cannot be trained themselves: set "
                "lora=True, or take quantization=None."
            )
        if self.attention == "flash_attention_2" and self.compute_dtype == "float32":
            raise ImpossibleSetup(
                "FlashAttention 2 computes in 16 bits: with float32 weights set "
                'mixed_precision="bf16", or take attention="sdpa".'
            )
        if self.autocast == "float16" and self.trained_dtype != "float32":
            raise ImpossibleSetup(
                f"The gradient scaler of fp16 mixed precision needs gradients in float32, and the "
                f"trained weights are in {self.trained_dtype}: take "
                'mixed_precision="bf16" or "no", or train in float32: dtype="float32", or '
                'adapter_dtype="float32" for an adapter.'
            )
        if self.sequences == "packed" and self.seq_len < 2:
            raise ImpossibleSetup("Packing needs two tokens or more.")
        if self.trainer == "dpo" and self.sequences == "packed":
            raise ImpossibleSetup("TRL's DPOTrainer does not pack: take another `sequences`.")
        if self.trainer == "dpo" and not self.adapter:
            raise ImpossibleSetup(
                "Without an adapter, DPO holds a second model as its reference, which is not "
                "predicted: set lora=True."
            )
        if self.trainer != "loop" and not (self.attention_mask and self.keep_outputs):
            raise ImpossibleSetup(
                "attention_mask and keep_outputs describe a loop written by hand: take "
                'trainer="loop", or leave them True.'
            )

    def _check_devices(self) -> None:
        if self.strategy is None:
            if self.devices > 1:
                raise ImpossibleSetup(
                    f"{self.devices} devices need a strategy: one of {', '.join(STRATEGIES)}."
                )
            if self.offload is not None:
                raise ImpossibleSetup(
                    f"offload is {checks.shown(self.offload)} without a strategy that has it: "
                    f"take one of {', '.join(OFFLOADS)}, or leave offload=None."
                )
            return
        if self.strategy == "fsdp2" and self.quantization == "8bit":
            raise ImpossibleSetup(
                "FSDP2 does not shard weights in 8 bits, whose scales it would lose: take "
                'quantization="nf4", or strategy="ddp".'
            )
        if self.offload is not None:
            possible = OFFLOADS.get(self.strategy, ())
            if not possible:
                raise ImpossibleSetup(
                    f"{self.strategy} offloads nothing: take a strategy that does "
                    f"({', '.join(OFFLOADS)}), or leave offload=None."
                )
            checks.one_of(f"offload of {self.strategy}", self.offload, possible, "Or None.")

    def _check_length(self) -> None:
        longest = getattr(self.config(), "max_position_embeddings", None)
        if isinstance(longest, int) and 0 < longest < self.seq_len:
            raise ImpossibleSetup(
                f"seq_len is {self.seq_len}, but {self.name} has {longest} positions."
            )

    def _shown(self, name: str) -> Any:
        return self.peft["peft_type"] if name == "peft" and self.peft else getattr(self, name)

    @property
    def vocabulary(self) -> int:
        """The size of the model's vocabulary; of its text part if it is multimodal."""
        return self.config().get_text_config().vocab_size

    @property
    def adapter(self) -> bool:
        """Whether an adapter is trained instead of the weights."""
        return self.lora or self.peft is not None

    @property
    def prepares(self) -> bool:
        """`kbit_preparation`, with None replaced by the usual choice."""
        usual = not self.from_trl if self.kbit_preparation is None else self.kbit_preparation
        return usual and self.quantization is not None

    @property
    def from_trl(self) -> bool:
        """Whether the trainer is one of TRL's."""
        return self.trainer in ("sft", "dpo")

    @property
    def checkpoints(self) -> str:
        """`checkpointing`, with None replaced by the trainer's default."""
        if self.checkpointing is not None:
            return self.checkpointing
        return "non-reentrant" if self.from_trl else "none"

    @property
    def trained_dtype(self) -> str:
        """The dtype of the trained parameters and their gradients.

        peft keeps adapters in float32; TRL casts those of a quantized model to bfloat16, and
        `adapter_dtype` is what they are cast to after that.
        """
        if not self.adapter:
            return self.dtype
        if self.adapter_dtype is not None:
            return self.adapter_dtype
        return "bfloat16" if self.quantization and self.from_trl else "float32"

    @property
    def autocast(self) -> str | None:
        """The dtype of autocast, or None."""
        chosen = self.mixed_precision
        if chosen is None and self.from_trl:
            chosen = self.dtype != "float16" or self.trained_dtype == "float32"
        if chosen is True:
            chosen = "fp16" if self.dtype == "float16" else "bf16"
        return {"bf16": "bfloat16", "fp16": "float16"}.get(chosen or "no")

    @property
    def compute_dtype(self) -> str:
        """The dtype of matrix products."""
        return self.autocast or self.dtype

    @property
    def name(self) -> str:
        """The model's id or folder, or the model type of its configuration."""
        return self.model if isinstance(self.model, str) else f"a {self.model['model_type']}"

    @property
    def runs(self) -> int:
        """The number of micro-batches that are run."""
        return 2 * self.accumulation if self.micro_batches is None else self.micro_batches

    def config(self) -> PretrainedConfig:
        """Return the model's configuration: from the catalogue, a folder, or the hub if reachable.

        Raises:
            UnknownName: the model is not available; the message suggests similar names.
        """
        return config_of(self.model)

    @classmethod
    def from_trainer(cls, trainer: Any) -> Setup:
        """Create a setup from a trainer's model, adapter, arguments and longest batch.

        Args:
            trainer: a `Trainer`, `SFTTrainer` or `DPOTrainer` with a causal language model.

        Raises:
            NotPredictable: something that no setup can describe, which the message names.
            BadValue: not a trainer.
        """
        from course_utils.memory import _from_trainer

        return _from_trainer.setup_of(trainer)

    def replace(self, **changes: Any) -> Setup:
        """Return a copy with some fields changed.

        Raises:
            UnknownName: there is no such field; also any error that `Setup` raises.
        """
        known_fields(changes)
        return dataclasses.replace(self, **changes)

    def shortened(self) -> Setup:
        """Reduce the micro-batches without changing the peaks.

        After two micro-batches per step, and after two steps, no others need more.
        """
        steps, rest = divmod(self.runs, self.accumulation)
        if not steps:
            rest = min(rest, 2)
            return self.replace(accumulation=rest + 1, micro_batches=rest)
        accumulation = min(self.accumulation, 2)
        return self.replace(
            accumulation=accumulation,
            micro_batches=accumulation * min(steps, 2) + min(rest, 2),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; `Setup(**fields)` is the same setup.

        With one GPU, the fields about several are left out; so is `adapter_dtype` if it is None.
        """
        left_out = [] if self.strategy else ["devices", "strategy", "offload"]
        left_out += [] if self.adapter_dtype else ["adapter_dtype"]
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in left_out
        }

    def __str__(self) -> str:
        """Return the model and what differs from the defaults."""
        changed = [
            f"{field.name}={self._shown(field.name)}"
            for field in fields(self)
            if field.name != "model" and getattr(self, field.name) != field.default
        ]
        return ", ".join([self.name, *changed])


def _peft_as_dict(given: Any) -> dict[str, Any]:
    """Convert a peft configuration to plain data; sets become sorted lists.

    Raises:
        UnknownName: neither a peft configuration nor a dictionary of one.
    """
    import enum

    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    if hasattr(given, "peft_type") and hasattr(given, "to_dict"):
        given = given.to_dict()
    kinds = [str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
    kind = given.get("peft_type") if isinstance(given, dict) else None
    kind = kind.value if isinstance(kind, enum.Enum) else kind
    if kind not in kinds:
        raise unknown(
            "adapter", kind if isinstance(given, dict) else given, kinds, "As `peft_type`."
        )

    def plain(value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, set):
            return sorted(value)
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    return {name: plain(value) for name, value in given.items()}


def known_fields(given: dict[str, Any]) -> None:
    """Reject names that are not arguments of `Setup`.

    Raises:
        UnknownName: there is no such field; the message suggests similar ones.
    """
    for name in given:
        checks.one_of("field of Setup", name, Setup.__dataclass_fields__)


def config_of(model: str | dict[str, Any]) -> PretrainedConfig:
    """Return a model's configuration; see `Setup.config`."""
    if isinstance(model, dict):
        return _configuration(model, "The configuration")
    known = [*catalog.catalog().models, *architectures()]
    if not isinstance(model, str):
        raise unknown("model", model, known, _OR_FOLDER)
    if model in catalog.catalog().models:
        return catalog.catalog().models[model].config()
    if model in architectures():
        return _configuration(architectures()[model], model)
    if model in catalog.catalog().bundled:
        folder = catalog.catalog().bundled[model].path
    elif _has_config(model):
        folder = Path(model)
    else:
        folder = _from_hub(model, known)
    try:
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ImpossibleSetup(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}: {error}). The file "
            "is damaged: download or save the model again."
        ) from None
    return _configuration(data, str(folder))


@functools.cache
def architectures() -> dict[str, dict[str, Any]]:
    """Return configurations, by model id, of models that the course only predicts."""
    source = Path(__file__).parent / "models.json"
    with checks.course_file(source):
        data = json.loads(source.read_text(encoding="utf-8"))
        found = {name: entry["config"] for name, entry in data["models"].items()}
        of_the_course = catalog.catalog().models
        for name, other in data["same"].items():
            if name not in of_the_course:
                path = None if other in found else of_the_course[other].config_path
                found[name] = json.loads(path.read_text()) if path else found[other]
    return found


def _has_config(folder: str) -> bool:
    try:
        return (Path(folder) / "config.json").is_file()
    except (OSError, ValueError):  # not a path
        return False


def _from_hub(model: str, known: list[str]) -> Path:
    from course_utils.models import _hub as hub

    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", model, re.ASCII):
        raise unknown("model", model, known, _OR_FOLDER)
    folder = hub.cached(model, "main", weights=False)
    if folder is None:
        if not hub.reachable():
            why = f"{_OR_FOLDER} The hub is out of reach."
            raise unknown("model", model, known, why)
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
    except Exception as error:  # each architecture validates its values in its own way
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
