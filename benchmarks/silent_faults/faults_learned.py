"""Faults of the weights: what is trained, how far it moves, and what is left in the checkpoint."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    get_linear_schedule_with_warmup,
)

from benchmarks.silent_faults.common import (
    base_tokenizer,
    chat_tokenizer,
    enter_fault,
    first_batch,
    folder,
    lora,
    pairs,
    plain,
    saved,
    sft,
    tiny,
    tokenized,
)
from course_utils._core.undisturbed import quiet_libraries

LEARNED = "What will be learned"
KEPT = "What will be kept"


enter = partial(enter_fault, kind=LEARNED)


def with_lora(*, model: PreTrainedModel | None = None, rows: Any = None, **options: Any) -> Trainer:
    """An SFTTrainer with LoRA; options of LoraConfig go by `adapter`."""
    tokenizer = options.pop("tokenizer", None) or chat_tokenizer()
    config = lora(**options.pop("adapter", {}))
    return sft(rows or pairs(), model or tiny(tokenizer), tokenizer, peft_config=config, **options)


def with_adapter(model: PeftModel, **options: Any) -> Trainer:
    """An SFTTrainer of a model that has its adapter already."""
    return sft(pairs(), model, chat_tokenizer(), **({"learning_rate": 1e-3} | options))


Weights = dict[str, torch.Tensor]


def _weights(trainer: Trainer) -> Weights:
    state = trainer.model.named_parameters()
    return {name: weight.detach().clone() for name, weight in state}


def run(trainer: Trainer) -> tuple[Weights, Weights]:
    """The weights before the run and after it; the trainer's model gets the old ones back."""
    before = _weights(trainer)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    after = _weights(trainer)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            weight.copy_(before[name])
    return before, after


def learning(trainer: Trainer) -> list[str]:
    """The names of the parameters that will be trained."""
    return [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]


def schedule(trainer: Trainer) -> list[float]:
    """The rates of the run's steps as its log has them."""
    run(trainer)
    return [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]


# Number formats


def in_format(dtype: torch.dtype, **options: Any) -> Trainer:
    """All weights of a small model trained in this format."""
    tokenizer = chat_tokenizer()
    model = tiny(tokenizer, hidden_size=64).to(dtype)
    return sft(pairs(), model, tokenizer, **options)


def rounded_away(trainer: Trainer) -> str:
    """Proof: most weights are after the run what they were."""
    before, after = run(trainer)
    names = [name for name in before if "proj" in name]
    still = sum((before[name] == after[name]).sum().item() for name in names)
    share = still / sum(before[name].numel() for name in names)
    assert share > 0.5, share
    steps = trainer.state.max_steps
    return f"{share:.0%} of the linear layers' weights did not change in {steps} steps"


enter(
    "bfloat16-weights-lose-updates",
    "meta-pytorch/torchtune#2254 pytorch/ao#1124",
    "All weights were trained in bfloat16, as the checkpoint has them, at a usual rate. A weight "
    "of 0.02 can change by 0.0001 or not at all, and a step of 0.00001 is rounded away.",
    make=lambda: in_format(torch.bfloat16, bf16=True, learning_rate=1e-5),
    mended=lambda: in_format(torch.float32, bf16=True, learning_rate=1e-5),
    proof=rounded_away,
    rows="dtype; learning rate",
)


def jumped(trainer: Trainer) -> str:
    """Proof: a weight moved much further than Adam moves any, or is no number."""
    before, after = run(trainer)
    far = max((after[name] - before[name]).abs().max().item() for name in before)
    usual = trainer.args.learning_rate * trainer.state.max_steps
    assert not far < 10 * usual, (far, usual)
    moved = "weights became NaN" if math.isnan(far) else f"a weight moved by {far:.2g}"
    return f"{moved}; {trainer.state.max_steps} steps at this rate move one by {usual:.1g} at most"


enter(
    "float16-weights-trained",
    "jzhang38/TinyLlama#32 Lightning-AI/litgpt#291 huggingface/smol-course#61",
    "To save memory, the weights were converted to float16 and trained so. Squares of gradients "
    "are 0 there, Adam divides by nearly nothing, and the weights jump.",
    make=lambda: in_format(torch.float16, learning_rate=1e-5),
    mended=lambda: in_format(torch.float32, learning_rate=1e-5),
    proof=jumped,
    rows="dtype; loss and gradients",
)


# What is trained


def with_thoughts(**adapter: Any) -> Trainer:
    """Answers with two tokens that are new, and an adapter."""
    tokenizer = chat_tokenizer()
    model = tiny(tokenizer)
    tokenizer.add_tokens(["<thought>", "</thought>"])
    torch.manual_seed(0)
    with quiet_libraries():
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = pairs()
    for row in rows:
        row["completion"][0]["content"] = (
            f"<thought>Two.</thought>{row['completion'][0]['content']}"
        )
    rate = 2e-4 if adapter else 1e-3
    return with_lora(
        model=model, rows=rows, tokenizer=tokenizer, adapter=adapter, learning_rate=rate
    )


def new_rows_frozen(trainer: Trainer) -> str:
    """Proof: tokens of the data without a row of the embeddings or the head that is trained."""
    old = len(chat_tokenizer())
    used = {token for row in trainer.train_dataset["input_ids"] for token in row if token >= old}
    names = [name for name in learning(trainer) if "embed" in name or "lm_head" in name]
    assert used
    assert not names, names
    return (
        f"{len(used)} new tokens are in the data; their rows are random, and no part of the "
        "embeddings or of the head is trained"
    )


enter(
    "new-tokens-stay-random",
    "huggingface/peft#334 huggingface/peft#1300 huggingface/peft#1689",
    "Tokens were added to the tokenizer, the embeddings were resized, and LoRA trained the "
    "attention only. The new rows stayed the random numbers that they began as.",
    make=with_thoughts,
    mended=lambda: with_thoughts(modules_to_save=["embed_tokens", "lm_head"]),
    proof=new_rows_frozen,
    rows="trainable parameters",
)


def names_without_modules(trainer: Trainer) -> str:
    """Proof: names in the adapter's configuration that no module bears."""
    config = trainer.model.peft_config["default"]
    asked = [*config.target_modules, *(config.modules_to_save or [])]
    modules = {name.rsplit(".", 1)[-1] for name, _ in trainer.model.named_modules()}
    missing = sorted(name for name in asked if name not in modules)
    assert missing
    return f"{len(missing)} of {len(asked)} names match no module: {', '.join(missing)}"


def target(*names: str) -> Callable[[], Trainer]:
    """Makes a trainer with LoRA on modules of these names."""
    return lambda: with_lora(adapter={"target_modules": list(names)})


enter(
    "target-names-that-match-nothing",
    "huggingface/peft#3554 huggingface/peft#1959 huggingface/trl#6773",
    "target_modules came from a recipe for another architecture. PEFT complains only where no name "
    "matches at all; one of four did.",
    make=target("q_proj", "query_key_value", "c_attn", "w1"),
    mended=target("q_proj", "k_proj", "v_proj", "gate_proj"),
    proof=names_without_modules,
    rows="trainable parameters",
)
enter(
    "saved-modules-that-match-nothing",
    "huggingface/peft#1070 huggingface/peft#3693",
    "The embeddings were to be trained in full beside LoRA, and modules_to_save had another "
    "model's name for them. They stayed frozen.",
    make=lambda: with_lora(adapter={"modules_to_save": ["embed_in"]}, learning_rate=2e-4),
    mended=lambda: with_lora(adapter={"modules_to_save": ["embed_tokens"]}, learning_rate=2e-4),
    proof=names_without_modules,
    rows="trainable parameters",
)


def trained_adapter(*, trainable: bool) -> PeftModel:
    """A model with an adapter that was trained before, loaded from a folder."""
    tokenizer = chat_tokenizer()
    where = folder()
    get_peft_model(tiny(tokenizer), lora(init_lora_weights=False)).save_pretrained(where)
    return PeftModel.from_pretrained(tiny(tokenizer), where, is_trainable=trainable)


def wrapped(again: bool) -> Trainer:
    """A loaded adapter trained further, wrapped once more or not."""
    model = trained_adapter(trainable=True)
    if again:
        model = get_peft_model(model, lora())
    tokenizer = base_tokenizer()
    return plain(tokenized(tokenizer), model, tokenizer, learning_rate=1e-3)


def begins_at_zero(trainer: Trainer) -> str:
    """Proof: a model in a model in a model, and its adapter as new."""
    largest = max(
        weight.abs().max().item()
        for name, weight in trainer.model.named_parameters()
        if "lora_B" in name
    )
    inner = trainer.model.base_model.model
    assert isinstance(inner, PeftModel), type(inner)
    assert largest == 0, largest
    return f"{type(inner).__name__} is wrapped in another, and the largest weight of lora_B is 0"


enter(
    "loaded-adapter-wrapped-again",
    "huggingface/lerobot#3459 huggingface/peft#2115",
    "A trained adapter was loaded to be trained further, and the script called get_peft_model as "
    "in the first run. The loaded weights were replaced by fresh ones.",
    make=lambda: wrapped(again=True),
    mended=lambda: wrapped(again=False),
    proof=begins_at_zero,
    rows="trainable parameters",
)


def nothing_moves(trainer: Trainer) -> str:
    """Proof: no parameter is trained, and a run changes none."""
    names = learning(trainer)
    before, after = run(trainer)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert not names, names[:2]
    assert not moved, moved[:2]
    return f"0 of {len(before)} parameters are trained; the run ended, and none had changed"


enter(
    "adapter-loaded-frozen",
    "huggingface/peft#282 huggingface/trl#6700",
    "PeftModel.from_pretrained loads an adapter for inference unless told otherwise. With gradient "
    "checkpointing the run goes through to its end, and changes nothing.",
    make=lambda: with_adapter(trained_adapter(trainable=False), gradient_checkpointing=True),
    mended=lambda: with_adapter(trained_adapter(trainable=True), gradient_checkpointing=True),
    proof=nothing_moves,
    rows="trainable parameters",
)


def two_adapters(active: str) -> Trainer:
    """A model with a loaded adapter and one added for the new task."""
    model = trained_adapter(trainable=True)
    model.add_adapter("task", lora())
    model.set_adapter(active)
    return with_adapter(model)


def old_adapter_trained(trainer: Trainer) -> str:
    """Proof: an adapter was added, and it is not the one that is trained."""
    names = learning(trainer)
    new = [name for name in names if ".task." in name]
    assert not new, new[:2]
    adapters = ", ".join(trainer.model.peft_config)
    return f"of the adapters {adapters}, {trainer.model.active_adapter!r} is trained ({len(names)})"


enter(
    "second-adapter-not-active",
    "huggingface/peft#3580 huggingface/peft#2759 adapter-hub/adapters#318",
    "A new adapter was added to a model that had one, and never made the active one. The run "
    "overwrote the old adapter, and saved the new one as it was.",
    make=lambda: two_adapters("default"),
    mended=lambda: two_adapters("task"),
    proof=old_adapter_trained,
    rows="trainable parameters; saved and loaded",
)


def no_effect(trainer: Trainer) -> str:
    """Proof: what the adapter adds is multiplied by 0."""
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    scales = [layer.scaling["default"] for layer in layers]
    assert scales
    assert not any(scales), scales
    return f"what LoRA adds is multiplied by 0 in all {len(scales)} layers; no gradient arrives"


enter(
    "adapter-scaled-by-zero",
    "invergent-ai/surogate#173",
    "lora_alpha was missing in a configuration and its default was 0. LoRA's part is multiplied "
    "by alpha / r: the adapter is there, is trained, is saved, and does nothing.",
    make=lambda: with_lora(adapter={"lora_alpha": 0}),
    mended=lambda: with_lora(adapter={"lora_alpha": 8}),
    proof=no_effect,
    rows="trainable parameters; loss and gradients",
)


# How far it moves


def hardly_moved(trainer: Trainer) -> str:
    """Proof: after the run, what the adapter adds is next to nothing beside what it adds to."""
    _, after = run(trainer)
    most = 0.0
    for name, b in after.items():
        if "lora_B" in name:
            a = after[name.replace("lora_B", "lora_A")]
            layer = name.split(".lora_B")[0]
            weight = after[f"{layer}.base_layer.weight"]
            scale = trainer.model.get_submodule(layer).scaling["default"]
            most = max(most, (scale * (b @ a).norm() / weight.norm()).item())
    assert most < 5e-3, most
    return f"after {trainer.state.max_steps} steps the adapter changes no layer by over {most:.1e}"


enter(
    "full-tuning-rate-for-lora",
    "QwenLM/Qwen3-VL#127 huggingface/trl#4207",
    "The learning rate of full fine-tuning, 0.000005, was kept when LoRA took its place. LoRA "
    "begins at zero and needs ten to a hundred times as much; the model answered as before.",
    make=lambda: with_lora(learning_rate=5e-6, max_steps=20),
    mended=lambda: with_lora(learning_rate=5e-4, max_steps=20),
    proof=hardly_moved,
    rows="learning rate",
)
enter(
    "clipped-to-nothing",
    "strands-labs/robots#2028 wandb/senpai#978",
    "max_grad_norm was set to a tiny number to turn clipping off. It is the length to which "
    "gradients are cut: all went below the 1e-8 that Adam adds to its divisor.",
    make=lambda: with_lora(max_grad_norm=1e-10),
    mended=lambda: with_lora(max_grad_norm=1.0),
    proof=hardly_moved,
    rows="learning rate; loss and gradients; batch and steps",
)


def never_there(trainer: Trainer) -> str:
    """Proof: the largest rate of the run is a small part of the rate asked for."""
    rates = schedule(trainer)
    assert max(rates) < 0.05 * trainer.args.learning_rate, rates
    return (
        f"the rate asked for is {trainer.args.learning_rate}; the run's largest is {max(rates):.2g}"
    )


enter(
    "warmup-longer-than-the-run",
    "Morizeyao/GPT2-Chinese#60 salesforce/LAVIS#72",
    "warmup_steps=1000 came from a recipe for a large dataset. This run has 6 steps, and ended "
    "while the rate was still next to nothing.",
    make=lambda: with_lora(warmup_steps=1000),
    mended=lambda: with_lora(warmup_steps=2),
    proof=never_there,
    rows="learning rate; batch and steps",
)


def own_schedule(divide: bool) -> Trainer:
    """Four epochs with a schedule of one's own, its steps divided once too often or not."""
    tokenizer = base_tokenizer()
    model = tiny(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    steps = 4 * 24 // 2 // 4
    rates = get_linear_schedule_with_warmup(optimizer, 0, steps // 4 if divide else steps)
    return plain(
        tokenized(tokenizer, 24),
        model,
        tokenizer,
        optimizers=(optimizer, rates),
        gradient_accumulation_steps=4,
        max_steps=-1,
        num_train_epochs=4,
    )


def rate_runs_out(trainer: Trainer) -> str:
    """Proof: in more than half of the steps the rate is 0."""
    rates = schedule(trainer)
    none = sum(rate == 0 for rate in rates)
    assert none > len(rates) / 2, rates
    return f"the rate is 0 in {none} of {len(rates)} steps"


enter(
    "schedule-runs-out",
    "starVLA/starVLA#210 h2oai/h2o-llmstudio#663",
    "A schedule of one's own was made for steps / accumulation, where the steps were divided "
    "already. After a quarter of the run the rate was 0, and the loss stayed where it was.",
    make=lambda: own_schedule(divide=True),
    mended=lambda: own_schedule(divide=False),
    proof=rate_runs_out,
    rows="learning rate; batch and steps",
)


def decaying(decay: float) -> Trainer:
    """All weights trained, with this much weight decay."""
    tokenizer = base_tokenizer()
    return plain(tokenized(tokenizer), tiny(tokenizer), tokenizer, weight_decay=decay)


def shrinks(trainer: Trainer) -> str:
    """Proof: the run takes a good part of the matrices' length away."""
    before, after = run(trainer)
    names = [name for name in before if "proj" in name]
    left = sum((after[name].norm() / before[name].norm()).item() for name in names) / len(names)
    assert left < 0.8, left
    return (
        f"after {trainer.state.max_steps} steps the linear layers' weights are {left:.0%} as long"
    )


enter(
    "weight-decay-eats-the-model",
    "fastai/fastai#1806",
    "weight_decay was set to 1000, and its effect was looked for in the overfitting. Times the "
    "learning rate, it takes a tenth of every weight away in each step.",
    make=lambda: decaying(1000.0),
    mended=lambda: decaying(0.01),
    proof=shrinks,
    rows="learning rate; trainable parameters; batch and steps",
)


def resized(before: bool) -> Trainer:
    """The embeddings resized before an optimizer of one's own is made, or after."""
    tokenizer = base_tokenizer()
    model = tiny(tokenizer)
    optimizer = None if before else torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokenizer.add_tokens(["<thought>"])
    with quiet_libraries():
        model.resize_token_embeddings(len(tokenizer))
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-4)
    return plain(tokenized(tokenizer), model, tokenizer, optimizers=(optimizer, None))


def not_in_optimizer(trainer: Trainer) -> str:
    """Proof: parameters that ask for a gradient and that the optimizer does not have."""
    held = {id(weight) for group in trainer.optimizer.param_groups for weight in group["params"]}
    names = [
        name
        for name, weight in trainer.model.named_parameters()
        if weight.requires_grad and id(weight) not in held
    ]
    assert names
    before, after = run(trainer)
    assert all(torch.equal(before[name], after[name]) for name in names)
    return f"the optimizer does not have {' and '.join(names)}; the run changed nothing there"


enter(
    "embeddings-resized-after-the-optimizer",
    "huggingface/transformers#3532",
    "The optimizer was made, then the embeddings were resized for new tokens, which makes a new "
    "output head. The optimizer went on with the old one, and the model's own was never trained.",
    make=lambda: resized(before=False),
    mended=lambda: resized(before=True),
    proof=not_in_optimizer,
    rows="trainable parameters; loss and gradients; learning rate",
)


# What is kept


def save(trainer: Trainer) -> str:
    """A folder with what the trainer saves at the end."""
    where = folder()
    trainer.save_model(where)
    return where


def names_in(where: str) -> set[str]:
    """The names of the tensors in a folder."""
    names: set[str] = set()
    for file in Path(where).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    return names


def thawed(*names: str, **adapter: Any) -> Trainer:
    """An adapter, and modules whose weights are set to be trained by hand beside it."""
    tokenizer = chat_tokenizer()
    model = get_peft_model(tiny(tokenizer), lora(**adapter))
    for name, weight in model.named_parameters():
        if any(part in name for part in names):
            weight.requires_grad_(True)
    return with_adapter(model, learning_rate=2e-4)


def trained_and_not_saved(trainer: Trainer) -> str:
    """Proof: parameters that are trained and have no tensor in what is saved."""
    kept = names_in(save(trainer))
    plain_names = [
        name.replace(".default", "").replace(".modules_to_save", "") for name in learning(trainer)
    ]
    lost = [name for name in plain_names if name not in kept]
    assert lost
    return f"{len(lost)} of {len(plain_names)} trained parameters are not saved, {lost[0]} first"


enter(
    "thawed-head-not-saved",
    "huggingface/peft#310 unslothai/unsloth#3317",
    "The head was thawed by hand to be trained beside LoRA. It was trained, evaluation was good, "
    "and PEFT saved the adapter only.",
    kind=KEPT,
    make=lambda: thawed("lm_head"),
    mended=lambda: thawed(modules_to_save=["lm_head"]),
    proof=trained_and_not_saved,
    rows="saved and loaded; trainable parameters",
)
enter(
    "thawed-norms-not-saved",
    "huggingface/peft#2738 pytorch/torchtitan#3438",
    "The norms stayed trainable beside the adapter. They moved with it, and only the adapter was "
    "saved: loaded again, it sits on norms for which it was not trained.",
    kind=KEPT,
    make=lambda: thawed("norm"),
    mended=lambda: thawed(modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"]),
    proof=trained_and_not_saved,
    rows="saved and loaded; trainable parameters",
)


class Wrapper(nn.Module):
    """A model as a part of a module of one's own, as for a loss or a head beside it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.network = model
        self.config = model.config

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        """What the model gives."""
        return self.network(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)


def own_module(wrap: Callable[[PreTrainedModel], nn.Module]) -> Trainer:
    """A Trainer whose model is what this makes of the model."""
    tokenizer = base_tokenizer()
    return plain(
        tokenized(tokenizer), wrap(tiny(tokenizer)), tokenizer, remove_unused_columns=False
    )


def other_names(trainer: Trainer) -> str:
    """Proof: the model's class finds few of its names in what is saved."""
    model = next(part for part in trainer.model.modules() if isinstance(part, PreTrainedModel))
    model = getattr(model, "_orig_mod", model)
    kept, known = names_in(save(trainer)), set(model.state_dict())
    found = known & kept
    assert len(found) < len(known), len(found)
    return (
        f"the checkpoint has {len(found)} of the model's {len(known)} names; the first of its "
        f"own is {min(kept)}"
    )


enter(
    "wrapped-model-saved-under-other-names",
    "huggingface/transformers#45055 choderalab/modelforge#102",
    "The model was put into a module of one's own for the Trainer. Each saved name begins with the "
    "attribute's, so that from_pretrained finds none and makes random weights.",
    kind=KEPT,
    make=lambda: own_module(Wrapper),
    mended=lambda: own_module(lambda model: model),
    proof=other_names,
    rows="saved and loaded",
)
enter(
    "compiled-model-saved-under-other-names",
    "pytorch/pytorch#101107 rasbt/LLMs-from-scratch#580 facebookresearch/fairseq#5096",
    "The model was given to torch.compile, then to the Trainer. All saved names begin with "
    "_orig_mod, and loading them finds nothing.",
    kind=KEPT,
    make=lambda: own_module(lambda model: torch.compile(model, backend="eager")),
    mended=lambda: own_module(lambda model: model),
    proof=other_names,
    rows="saved and loaded",
)


def on_merged(resave: bool) -> Trainer:
    """LoRA over a model with an earlier adapter merged into it, saved in between or not."""
    tokenizer = chat_tokenizer()
    base = AutoModelForCausalLM.from_pretrained(saved(tiny(tokenizer)), dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, lora(init_lora_weights=False)).merge_and_unload()
    if resave:
        model = AutoModelForCausalLM.from_pretrained(saved(model), dtype=torch.float32)
    return with_lora(model=model)


def other_after_loading(trainer: Trainer) -> str:
    """Proof: the saved adapter on the base that it names gives other logits than the trainer's."""
    where = save(trainer)
    name = trainer.model.peft_config["default"].base_model_name_or_path
    with quiet_libraries():
        base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    again = PeftModel.from_pretrained(base, where).eval()
    ids = first_batch(trainer)["input_ids"]
    model = trainer.model.eval()
    with torch.no_grad():
        own, loaded = model(input_ids=ids).logits, again(input_ids=ids).logits
    model.train()
    apart = ((own - loaded).norm() / own.norm()).item()
    assert apart > 0.01, apart
    return f"loaded again on the base that it names, its logits are {apart:.0%} off"


enter(
    "adapter-over-a-merged-one",
    "hiyouga/LlamaFactory#2588 huggingface/trl#1193",
    "An adapter was merged into the model in memory and a second one trained over it. What is "
    "saved names the original model, in which the first is not.",
    kind=KEPT,
    make=lambda: on_merged(resave=False),
    mended=lambda: on_merged(resave=True),
    proof=other_after_loading,
    rows="saved and loaded",
)


def perplexity(prediction: EvalPrediction) -> dict[str, float]:
    """The perplexity of the next tokens."""
    logits = torch.as_tensor(prediction.predictions)[:, :-1].flatten(0, 1).float()
    labels = torch.as_tensor(prediction.label_ids)[:, 1:].flatten()
    return {"perplexity": nn.functional.cross_entropy(logits, labels).exp().item()}


def best_of(*, every: int = 2, **options: Any) -> Trainer:
    """A run that keeps the best of its checkpoints."""
    tokenizer: PreTrainedTokenizerBase = base_tokenizer()
    rows = tokenized(tokenizer, 16)
    settings = {
        "eval_dataset": Dataset.from_list(rows[12:]),
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "load_best_model_at_end": True,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "max_steps": -1,
    }
    return plain(rows[:12], tiny(tokenizer), tokenizer, **(settings | options))


def worst_is_kept(trainer: Trainer) -> str:
    """Proof: what was kept as the best is the largest perplexity of the run."""
    run(trainer)
    seen = [line["eval_perplexity"] for line in trainer.state.log_history if "eval_loss" in line]
    best = trainer.state.best_metric
    assert best == max(seen) > min(seen), (best, seen)
    return (
        f"perplexity fell from {seen[0]:,.0f} to {seen[-1]:,.0f}; {best:,.0f} was kept as the best"
    )


enter(
    "worst-checkpoint-kept-as-best",
    "huggingface/transformers#31142",
    "The best model was to be chosen by perplexity. For a metric whose name does not end in loss, "
    "more counts as better, and the worst checkpoint was loaded at the end.",
    kind=KEPT,
    make=lambda: best_of(metric_for_best_model="perplexity", compute_metrics=perplexity),
    mended=lambda: best_of(
        metric_for_best_model="perplexity", compute_metrics=perplexity, greater_is_better=False
    ),
    proof=worst_is_kept,
    rows="evaluation data; batch and steps; saved and loaded",
)


def chosen_of_one(trainer: Trainer) -> str:
    """Proof: the best of the run was chosen among one evaluation."""
    run(trainer)
    count = sum("eval_loss" in line for line in trainer.state.log_history)
    assert count < 2, count
    return (
        f"evaluation is due every {trainer.args.eval_steps} steps of a run of "
        f"{trainer.state.max_steps}: the best was chosen of {count}"
    )


enter(
    "best-model-of-one-evaluation",
    "huggingface/transformers#28500 huggingface/transformers#11931",
    "load_best_model_at_end was on, with evaluation every 500 steps, in a run that has 12. There "
    "was one evaluation, at the end: the last model was the best of one.",
    kind=KEPT,
    make=lambda: best_of(every=500),
    mended=lambda: best_of(every=2),
    proof=chosen_of_one,
    rows="evaluation data; batch and steps",
)
