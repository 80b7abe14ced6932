"""Predictions from trainers that are built: against their setup, and against real trainings."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from datasets import Dataset
from test_memory_predict import LLAMA, booked, placed
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from course_utils.errors import BadValue, ImpossibleSetup, NotPredictable
from course_utils.memory import Setup, _from_trainer, _meta_patches, _step, _trainers, predict
from course_utils.memory._gpus import DEFAULT
from course_utils.memory._predict import Simulation

pytestmark = pytest.mark.usefixtures("somewhere_else")


@pytest.fixture
def somewhere_else(tmp_path, monkeypatch) -> None:
    """Trainers write into the folder that they are in."""
    monkeypatch.chdir(tmp_path)


LENGTHS = (40, 90, 7, 60, 90, 33, 80, 12)


def lora(**options) -> peft.LoraConfig:
    """On all linear layers."""
    usual = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**usual, **options})


def rows(lengths=LENGTHS) -> Dataset:
    """Examples whose first fourth is a prompt."""
    made = []
    for length in lengths:
        ids = list(range(1, length + 1))
        made.append({"input_ids": ids, "labels": [-100] * (length // 4) + ids[length // 4 :]})
    return Dataset.from_list(made)


def tiny(quantization: str | None = None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A small Llama, quantized by bitsandbytes where it is to be."""
    torch.manual_seed(0)
    if quantization is None:
        # Eager, because PyTorch's fused attention is another one on a CPU than on a GPU.
        config = LlamaConfig(**LLAMA)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    from course_utils.memory import _build

    setup = Setup(LLAMA, quantization=quantization, lora=True, dtype="float32", seq_len=16)
    return _build.model(setup, "cpu")


def sft(adapter=None, model=None, dataset=None, **options) -> SFTTrainer:
    """TRL's, on rows that are tokenized."""
    usual = {
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "max_length": 256,
    }
    args = SFTConfig("out", **{**usual, **options})
    data = rows() if dataset is None else dataset
    tokenizer = _trainers.tokenizer()
    model = model or tiny()
    return SFTTrainer(
        model, args, train_dataset=data, processing_class=tokenizer, peft_config=adapter
    )


ADAPTERS = {
    "none": None,
    "LoRA": lora(),
    "rsLoRA": lora(use_rslora=True, r=4),
    "DoRA": lora(use_dora=True),
    "PiSSA": lora(init_lora_weights="pissa"),
    "modules_to_save": lora(modules_to_save=["embed_tokens"]),
    "trainable tokens": lora(trainable_token_indices=[1, 2]),
    "bias": lora(bias="all"),
    "IA3": peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "LoHa": peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "OFT": peft.OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], oft_block_size=8),
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_trainer_and_its_setup_need_the_same(name: str) -> None:
    """Whatever the adapter: once with the trainer's own model, once built anew from the setup."""
    trainer = sft(ADAPTERS[name], dataset=rows([90] * 8))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    found = predict(trainer, "t4")
    setup = Setup.from_trainer(trainer)
    again = predict(setup, "t4")
    assert found.setup == setup
    assert found.peak_allocated_mb == pytest.approx(again.peak_allocated_mb, rel=1e-3)
    assert (setup.seq_len, setup.batch_size, setup.trainer) == (90, 2, "sft")
    # The trainer is as it was, and can be trained.
    after = trainer.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert trainer.optimizer is None
    assert {p.device.type for p in trainer.model.parameters()} == {"cpu"}
    assert "backward" not in vars(trainer.accelerator)


@pytest.mark.parametrize("quantization", ["8bit", "nf4", "nf4-double"])
def test_a_quantized_model(quantization: str) -> None:
    """Which quantization it is, bitsandbytes' own layers say."""
    trainer = sft(lora(), tiny(quantization), rows([90] * 8))
    found = predict(trainer, "t4")
    assert found.setup.quantization == quantization
    again = predict(Setup.from_trainer(trainer), "t4")
    assert found.peak_allocated_mb == pytest.approx(again.peak_allocated_mb, rel=1e-3)
    # TRL casts the adapters of a quantized model; peft would leave them in float32.
    assert found.setup.trained_dtype == "bfloat16"
    assert found.setup.adapter_dtype is None


def test_a_quantized_model_whose_adapter_is_cast_back() -> None:
    """As fp16 mixed precision needs it: the same from the trainer and from its setup, and two
    bytes more for each of its weights and gradients."""
    trainer = sft(lora(), tiny("nf4"), rows([90] * 8))
    before = predict(trainer, "t4")
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    found = predict(trainer, "t4")
    assert (found.setup.adapter_dtype, found.setup.trained_dtype) == ("float32", "float32")
    again = predict(Setup.from_trainer(trainer), "t4")
    assert found.peak_allocated_mb == pytest.approx(again.peak_allocated_mb, rel=1e-3)
    more = sum(p.numel() for p in trained) * 2 / 1e6
    assert found.at_peak["weights"] - before.at_peak["weights"] == pytest.approx(more, rel=0.05)
    # Mixed precision in float16 has become possible.
    assert found.setup.replace(mixed_precision="fp16").autocast == "float16"
    with pytest.raises(ImpossibleSetup, match="adapter_dtype"):
        found.setup.replace(mixed_precision="fp16", adapter_dtype=None)
    with pytest.raises(ImpossibleSetup, match="without an adapter"):
        Setup(LLAMA, adapter_dtype="float32")


@pytest.mark.parametrize("trainer", ["sft", "trainer", "dpo", "loop"])
def test_an_adapter_in_half_precision_has_states_half_as_large(trainer: str) -> None:
    """Whoever trains, the adapter's dtype is the one asked for: AdamW keeps its states in it."""
    options = {"dtype": "float32", "mixed_precision": "no", "seq_len": 64}
    setup = Setup("course/pythia-3m", lora=True, trainer=trainer, **options)
    single, half = (
        predict(setup.replace(adapter_dtype=dtype), "t4").at_peak["optimizer"]
        for dtype in ("float32", "bfloat16")
    )
    assert half == pytest.approx(single / 2, rel=0.1)


def test_the_arguments_count() -> None:
    """What is set in the arguments is what is predicted."""
    setup = Setup.from_trainer(
        sft(
            optim="paged_adamw_8bit",
            gradient_checkpointing=False,
            gradient_accumulation_steps=4,
            bf16=True,
            per_device_train_batch_size=4,
            packing=True,
            max_length=128,
        )
    )
    assert (setup.optimizer, setup.checkpointing) == ("paged_adamw_8bit", "none")
    assert (setup.accumulation, setup.batch_size, setup.autocast) == (4, 4, "bfloat16")
    assert setup.sequences == "packed"
    plain = predict(sft(gradient_checkpointing=False, per_device_train_batch_size=8))
    saved = predict(sft(per_device_train_batch_size=8))
    assert plain.phases["forward"] > saved.phases["forward"]
    padded = Setup.from_trainer(sft(pad_to_multiple_of=64, per_device_train_batch_size=3))
    assert padded.seq_len == 128
    assert padded.sequences == "padded"


def test_the_longest_batch() -> None:
    """The longest examples together, wherever they are in the dataset."""
    trainer = sft(per_device_train_batch_size=2)
    batch = _from_trainer.longest_batch(trainer)
    assert batch["input_ids"].shape == (2, 90)
    assert bool(batch["attention_mask"].all())
    assert _from_trainer.longest_batch(sft(padding_free=True, max_length=None))[
        "input_ids"
    ].shape == (1, 180)


def test_evaluation_is_told() -> None:
    """A peak of its own, where the trainer evaluates; larger batches need more."""
    found = predict(sft(), "t4")
    assert "evaluation" not in found.phases
    trainer = sft(per_device_eval_batch_size=64)
    trainer.args.eval_strategy, trainer.eval_dataset = "steps", rows([200] * 64)
    found = predict(trainer, "t4")
    assert found.phases["evaluation"] > found.phases["backward"]
    assert found.peak_allocated_mb == pytest.approx(found.phases["evaluation"])


def real_peak(trainer: Trainer) -> tuple[int, int]:
    """`train()` of two steps on the CPU with the longest batch, and how many tensors it trains."""
    example = _from_trainer.longest_batch(trainer)
    allocator, tracker = booked("cpu")
    for tensor in (*trainer.model.parameters(), *trainer.model.buffers()):
        tracker.hold(tensor)
    step, clip = trainer.training_step, trainer._clip_grad_norm

    def training_step(model, inputs, items):
        tracker.hold(trainer._tr_loss)
        inputs = placed(tracker, dict(example), "cpu")
        if isinstance(items, torch.Tensor):
            tracker.hold(items)
        with tracker:
            return step(model, inputs, items)

    def clipped(model):
        inner = trainer.optimizer.optimizer
        if "tracked" not in vars(inner):
            update, inner.tracked = inner.step, True

            def tracked(*args, **kwargs):
                with tracker:
                    return update(*args, **kwargs)

            inner.step = tracked
        with tracker:
            return clip(model)

    trainer.training_step, trainer._clip_grad_norm = training_step, clipped
    trainer.args.max_steps = 2
    trainer.train()
    return allocator.peak_allocated, sum(p.requires_grad for p in trainer.model.parameters())


def predicted_peak(trainer: Trainer) -> int:
    """The same steps on meta tensors, as on the CPU: no GPU's kernels are put in place."""
    simulation = Simulation(DEFAULT, None, None)
    allocator, tracker = booked("meta")
    simulation.tracker = tracker
    example = _from_trainer.longest_batch(trainer)
    with _trainers.undisturbed(), _meta_patches.devices_on_meta():
        made = _from_trainer.copied(trainer)
        for tensor in (*made.model.parameters(), *made.model.buffers()):
            tracker.hold(tensor)
        simulation.prepare(made, as_on_gpu=False)
        with tracker:
            _step.with_trainer(
                made,
                lambda: placed(tracker, example, "meta"),
                lambda _: None,
                runs=2,
                accumulation=1,
            )
    return allocator.peak_allocated


class HalfTheLoss(Trainer):
    """A loss of one's own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss / 2 + outputs.logits.float().square().mean()
        return (loss, outputs) if return_outputs else loss


def with_trainer(kind: type, **options) -> Trainer:
    """transformers' Trainer, or a class of it."""
    args = TrainingArguments(
        "out",
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        **options,
    )
    from transformers import DataCollatorForSeq2Seq

    collator = DataCollatorForSeq2Seq(_trainers.tokenizer())
    return kind(tiny(), args, train_dataset=rows(), data_collator=collator)


def dpo() -> DPOTrainer:
    """Chosen and rejected responses."""
    args = DPOConfig(
        "out",
        optim="adamw_torch",
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        max_length=64,
    )
    words = [
        {"prompt": "word " * n, "chosen": "word " * n, "rejected": "word"} for n in range(2, 9)
    ]
    return DPOTrainer(
        tiny(),
        args=args,
        train_dataset=Dataset.from_list(words),
        processing_class=_trainers.tokenizer(),
        peft_config=lora(lora_dropout=0.0),
    )


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: sft(optim="adamw_torch"), id="sft"),
        pytest.param(lambda: sft(lora(), optim="adamw_torch"), id="sft, LoRA"),
        pytest.param(lambda: sft(ADAPTERS["IA3"], optim="sgd"), id="sft, IA3"),
        pytest.param(lambda: sft(label_smoothing_factor=0.1, optim="adamw_torch"), id="smoothed"),
        pytest.param(dpo, id="dpo"),
        pytest.param(lambda: with_trainer(Trainer, optim="adamw_torch"), id="trainer"),
        pytest.param(lambda: with_trainer(HalfTheLoss, optim="adamw_torch"), id="own loss"),
    ],
)
def test_a_copy_on_meta_asks_for_what_the_training_does(make) -> None:
    """To the byte, but for AdamW's counters, which lie on the CPU on a GPU machine too."""
    trainer = make()
    predicted = predicted_peak(trainer)
    real, count = real_peak(trainer)
    counters = 512 * count if "adamw" in trainer.args.optim.value else 0
    assert predicted == real - counters
    # And once more, of a trainer that has trained.
    assert predicted_peak_after(trainer) == predicted


def predicted_peak_after(trainer: Trainer) -> int:
    """Of the same trainer when it has been trained: accelerate has wrapped its model."""
    trainer = copy.copy(trainer)
    for name in ("training_step", "_clip_grad_norm"):
        vars(trainer).pop(name, None)
    return predicted_peak(trainer)


def test_what_is_not_predicted_is_named() -> None:
    """By the trainer's, the model's or the argument's name."""
    from transformers import BertConfig, BertForMaskedLM
    from trl import RewardConfig, RewardTrainer

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 100,
    }
    bert = with_trainer(Trainer)
    bert.model = BertForMaskedLM(BertConfig(**small))
    with pytest.raises(NotPredictable, match="BertForMaskedLM"):
        predict(bert)
    compiled = sft()
    compiled.args.torch_compile = True
    with pytest.raises(NotPredictable, match="torch_compile"):
        predict(compiled)
    with pytest.raises(NotPredictable, match="RewardTrainer"):
        predict(RewardTrainer.__new__(RewardTrainer))
    assert RewardConfig
    with pytest.raises(BadValue, match="Trainer"):
        predict("a trainer")
    empty = sft()
    empty.train_dataset = rows().select([])
    with pytest.raises(NotPredictable, match="no training examples"):
        predict(empty)
