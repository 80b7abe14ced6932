"""Faults of preference data and rewards, and of time and steps.

All but the reward model's train the course's own base model: it knows the capitals, and it ends its
texts, so that generating with it shows what a group of completions is like.
"""

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
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
)

from benchmarks.silent_faults.common import (
    SETTINGS,
    chat_tokenizer,
    enter_fault,
    first_batch,
    folder,
    lora,
    pairs,
    saved,
    tiny,
)
from benchmarks.silent_faults.faults_loss import CAPITALS, LONG, SHORT, facts, own_base, rows_of
from course_utils._core.undisturbed import quiet_libraries
from course_utils.models import load_model, load_tokenizer

PREFERENCES = "Preference data and rewards"
STEPS = "Time and steps"
QUIET = {**SETTINGS, "bf16": False, "gradient_checkpointing": False}

Rows = list[dict[str, Any]]


enter = partial(enter_fault, kind=PREFERENCES)


def from_folder(model: PreTrainedModel) -> PreTrainedModel:
    """A model saved and loaded, so that a reference can be loaded from the same folder."""
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(saved(model), dtype=torch.float32)


def run(trainer: Trainer, **options: Any) -> None:
    """Train in silence."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(**options)


# Pairs


def preferences() -> Rows:
    """Right capitals and wrong ones."""
    cities = list(CAPITALS.values())
    return [
        {"prompt": f"The capital of {land} is", "chosen": f" {city}.", "rejected": f" {other}."}
        for (land, city), other in zip(CAPITALS.items(), cities[1:] + cities[:1], strict=True)
    ]


def dpo(rows: Rows | None = None, model: PreTrainedModel | None = None, **options: Any) -> Trainer:
    """A DPOTrainer of all weights, at the rate that TRL has by default."""
    reference = options.pop("ref_model", None)
    return DPOTrainer(
        model=model or from_folder(own_base()),
        ref_model=reference,
        processing_class=load_tokenizer("base"),
        args=DPOConfig(output_dir=folder(), **(QUIET | options)),
        train_dataset=Dataset.from_list(rows or preferences()),
    )


def sides(trainer: Trainer) -> list[tuple[list[int], list[int]]]:
    """The completions of all rows, chosen and rejected, as the trainer's batches have them."""
    found = []
    for batch in trainer.get_train_dataloader():
        ids = batch["input_ids"]
        mask = batch.get("completion_mask", batch["attention_mask"]).bool()
        rows = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
        half = len(rows) // 2
        found += zip(rows[:half], rows[half:], strict=True)
    return found


def same_on_both_sides(trainer: Trainer) -> str:
    """Proof: pairs whose two sides are one text, of which nothing can be learned."""
    found = sides(trainer)
    same = sum(chosen == rejected for chosen, rejected in found)
    assert same > len(found) / 4, same
    return (
        f"in {same} of {len(found)} pairs of the batches, chosen and rejected are the same tokens"
    )


def half_the_same() -> Rows:
    """Pairs of which every other has one answer twice."""
    rows = preferences()
    return [row | {"rejected": row["chosen"]} if at % 2 else row for at, row in enumerate(rows)]


enter(
    "pairs-without-a-difference",
    "camel-ai/owl#592 CarperAI/trlx#395",
    "Two answers were sampled for each question and the better one chosen. Often both were the "
    "same: such a pair costs as much as any, and has no gradient.",
    make=lambda: dpo(half_the_same()),
    mended=dpo,
    proof=same_on_both_sides,
    rows="preference pairs",
)


def with_late_difference(keep: int | None) -> Trainer:
    """Pairs that differ in their last words only, cut at a length or not."""
    rows = [
        {
            "prompt": f"What do you know of {land}?",
            "chosen": f" {land} is a country. People like to go there, and {city} is its capital.",
            "rejected": f" {land} is a country. People like to go there, and Bern is its capital.",
        }
        for land, city in CAPITALS.items()
    ]
    return dpo(rows, max_length=keep)


enter(
    "pairs-cut-before-they-differ",
    "OpenRLHF/OpenRLHF#1311 natolambert/rlhf-book#503",
    "The answers differed near their ends, and max_length cut them before. What reached the model "
    "was the same text twice.",
    make=lambda: with_late_difference(20),
    mended=lambda: with_late_difference(128),
    proof=same_on_both_sides,
    rows="preference pairs; truncated",
)


def with_long_rejected(keep: int | None) -> Trainer:
    """Short answers chosen, long ones rejected, cut at a length or not."""
    rows = preferences()
    for row in rows:
        row["rejected"] += " People there pay with shells." * 6
    return dpo(rows, max_length=keep)


def ends_on_one_side(trainer: Trainer) -> str:
    """Proof: chosen answers have their EOS token, and rejected ones do not."""
    end = trainer.processing_class.eos_token_id
    chosen, rejected = (
        sum(end in side for side in column) for column in zip(*sides(trainer), strict=True)
    )
    assert rejected < chosen / 2, (chosen, rejected)
    return f"{chosen} of 12 chosen answers have their end in the batches, and {rejected} rejected"


enter(
    "rejected-side-loses-its-end",
    "huggingface/trl#4698 huggingface/trl#2209",
    "The rejected answers were the long ones, and max_length cut all of their ends. That an answer "
    "ends at all became the sign of a good one.",
    make=lambda: with_long_rejected(40),
    mended=lambda: with_long_rejected(None),
    proof=ends_on_one_side,
    rows="EOS supervised; truncated; preference pairs",
)


def prompt_in_both() -> Rows:
    """Pairs whose sides are whole texts, beside a prompt."""
    return [
        row | {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        for row in preferences()
    ]


def prompt_twice(trainer: Trainer) -> str:
    """Proof: the answers begin with the prompt that stands before them."""
    decode = trainer.processing_class.decode
    rows = [
        (decode(row["prompt_ids"]).strip(), decode(row["chosen_ids"]).strip())
        for row in trainer.train_dataset
    ]
    twice = sum(answer.startswith(prompt) for prompt, answer in rows)
    assert twice, rows[0]
    return f"in {twice} of {len(rows)} rows the prompt stands twice: {' '.join(rows[0])!r}"


enter(
    "prompt-inside-both-answers",
    "huggingface/trl#1541 allenai/reward-bench#140 OpenRLHF/OpenRLHF#909",
    "chosen and rejected were whole conversations, as many datasets have them, and there was a "
    "prompt column as well. The model read each question twice, and learned to repeat it.",
    make=lambda: dpo(prompt_in_both()),
    mended=dpo,
    proof=prompt_twice,
    rows="preference pairs; text and template; prompt not supervised",
)


def merged(resave: bool) -> Trainer:
    """A model with an adapter merged into it in memory, saved before DPO or not."""
    base = from_folder(own_base())
    torch.manual_seed(0)
    config = lora(target_modules=["query_key_value"], init_lora_weights=False, lora_alpha=32)
    model = get_peft_model(base, config).merge_and_unload().requires_grad_(True)
    return dpo(model=from_folder(model) if resave else model)


def begins_elsewhere(trainer: Trainer) -> str:
    """Proof: before the first step the loss is not that of a model that is its reference."""
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(first_batch(trainer))).item()
    assert abs(loss - math.log(2)) > 0.02, loss
    return f"the loss before the first step is {loss:.2f}; with the model as reference, it is 0.69"


enter(
    "reference-without-the-adapter",
    "huggingface/trl#1193 huggingface/trl#1340",
    "The adapter of supervised training was merged in memory and DPO begun. With no reference "
    "given, one is loaded from the folder that the model came from, where the adapter is not.",
    make=lambda: merged(resave=False),
    mended=lambda: merged(resave=True),
    proof=begins_elsewhere,
    rows="preference pairs; plain loss",
)
enter(
    "reference-of-another-model",
    "huggingface/trl#1236",
    "A smaller model of the family was given as the reference to save memory. DPO measures how far "
    "the model has gone from its reference, and it began far off.",
    make=lambda: dpo(
        ref_model=load_model("course/pythia-3m-control", quiet=True, dtype=torch.float32)
    ),
    mended=lambda: dpo(ref_model=from_folder(own_base())),
    proof=begins_elsewhere,
    rows="preference pairs; plain loss",
)


def chosen_logps(trainer: Trainer) -> float:
    """The mean log-probability of the chosen answers."""
    total = 0.0
    for row in trainer.train_dataset:
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]])
        with torch.no_grad():
            logits = trainer.model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total -= losses[len(row["prompt_ids"]) - 1 :].sum().item()
    return total / len(trainer.train_dataset)


def forgets_the_chosen(trainer: Trainer) -> str:
    """Proof: after the run the chosen answers are far less likely than before."""
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    before = chosen_logps(trainer)
    run(trainer)
    after = chosen_logps(trainer)
    trainer.model.load_state_dict(state)
    assert after < before - 1.5, (before, after)
    return (
        f"in {trainer.state.max_steps} steps the chosen answers' log-probability fell from "
        f"{before:.1f} to {after:.1f}: they became {math.exp(before - after):.0f} times less likely"
    )


enter(
    "supervised-rate-for-dpo",
    "huggingface/trl#2382 huggingface/trl#1025 hiyouga/LlamaFactory#7734",
    "The learning rate of supervised training was kept for DPO of all weights, which takes about a "
    "hundredth of it. The margin grew, and the model wrote the same token over and over.",
    make=lambda: dpo(learning_rate=1e-3, max_steps=20),
    mended=lambda: dpo(learning_rate=1e-6, max_steps=20),
    proof=forgets_the_chosen,
    rows="learning rate",
)


def kto(good: Callable[[int], bool]) -> Trainer:
    """A KTOTrainer on right and wrong capitals, labelled by this."""
    rows = [
        {
            "prompt": row["prompt"],
            "completion": row["rejected" if at % 2 else "chosen"],
            "label": good(at),
        }
        for at, row in enumerate(preferences())
    ]
    return KTOTrainer(
        model=from_folder(own_base()),
        processing_class=load_tokenizer("base"),
        args=KTOConfig(output_dir=folder(), **QUIET),
        train_dataset=Dataset.from_list(rows),
    )


def all_good(trainer: Trainer) -> str:
    """Proof: every row is labelled as good."""
    labels = list(trainer.train_dataset["label"])
    assert all(labels), labels
    return f"{sum(labels)} of {len(labels)} rows are labelled as good, the wrong capitals too"


enter(
    "kto-labels-all-true",
    "hiyouga/LlamaFactory#3803",
    "The label was made by asking whether there is an answer, which there always is. All answers "
    "were desirable, the bad ones included, and KTO had nothing to push away.",
    make=lambda: kto(lambda at: True),
    mended=lambda: kto(lambda at: at % 2 == 0),
    proof=all_good,
    rows="preference pairs",
)


def reward_model(broken: bool) -> Trainer:
    """A RewardTrainer whose pairs hold the good answer on both sides, or do not."""
    tokenizer = chat_tokenizer()
    bad = [{"role": "assistant", "content": "No."}]
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": row["completion"] if broken else bad,
        }
        for row in pairs()
    ]
    return RewardTrainer(
        model=tiny(tokenizer, LlamaForSequenceClassification, num_labels=1),
        processing_class=tokenizer,
        args=RewardConfig(output_dir=folder(), **QUIET),
        train_dataset=Dataset.from_list(rows),
    )


enter(
    "reward-model-of-equal-texts",
    "CarperAI/trlx#395 OpenRLHF/OpenRLHF#1311",
    "A join of two tables put the good answer on both sides. The reward model's loss stayed at "
    "0.69, which is taken for a hard task.",
    make=lambda: reward_model(broken=True),
    mended=lambda: reward_model(broken=False),
    proof=same_on_both_sides,
    rows="preference pairs; loss and gradients",
)


# Rewards


def words(completions: list[str], **_: Any) -> list[float]:
    """A reward for texts of about eight words."""
    return [-abs(len(text.split()) - 8.0) for text in completions]


def grpo(
    reward: Callable[..., list[float]] = words,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Trainer:
    """A GRPOTrainer of four completions a prompt."""
    tokenizer = tokenizer or load_tokenizer("base")
    model = from_folder(own_base())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    settings = {
        "max_completion_length": 64,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
    }
    rows = [
        {"prompt": f"The capital of {land} is", "solution": city} for land, city in CAPITALS.items()
    ]
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=folder(), **(QUIET | settings | options)),
        train_dataset=Dataset.from_list(rows),
    )


def groups(trainer: Trainer, count: int = 2) -> list[dict[str, torch.Tensor]]:
    """What the trainer makes of some prompts: completions, and their advantages."""
    found = []
    loader = iter(trainer.get_train_dataloader())
    torch.manual_seed(0)
    for _ in range(count):
        found.append(trainer._generate_and_score_completions(next(loader)))
        for metrics in trainer._metrics.values():
            metrics.clear()
    return found


def no_advantage(trainer: Trainer) -> str:
    """Proof: no completion is better than another of its group."""
    advantages = torch.cat([group["advantages"] for group in groups(trainer)])
    assert not advantages.any(), advantages
    return f"the advantages of {len(advantages)} sampled completions are all 0: no gradient"


def by_column(name: str) -> Callable[..., list[float]]:
    """A reward for having the solution, read from the column of this name."""

    def right(completions: list[str], **columns: Any) -> list[float]:
        known = columns.get(name, [None] * len(completions))
        both = zip(completions, known, strict=True)
        # Longer texts are worth a little less, so that completions of a group differ.
        return [1.0 - len(text) / 1000 if city and city in text else 0.0 for text, city in both]

    return right


enter(
    "reward-reads-a-missing-column",
    "huggingface/open-r1#255 huggingface/trl#2644",
    "The reward function asked for the column answer, and the data call it solution. It got "
    "nothing, found nothing right, and gave 0 to all.",
    make=lambda: grpo(by_column("answer")),
    mended=lambda: grpo(by_column("solution")),
    proof=no_advantage,
    rows="rewards",
)


def by_length_in(text: str) -> Callable[..., list[float]]:
    """A reward for being near a length, for completions in which this text stands."""
    return lambda completions, **_: [
        1.0 / (1 + abs(len(completion) - 40)) if text in completion else 0.0
        for completion in completions
    ]


enter(
    "reward-for-a-format-never-written",
    "unslothai/unsloth#1761 huggingface/open-r1#239",
    "The reward was for answers in tags that the model never writes by itself, and its prompt did "
    "not ask for them. Where all completions get 0, none is better than another.",
    make=lambda: grpo(by_length_in("</answer>")),
    mended=lambda: grpo(by_length_in(".")),
    proof=no_advantage,
    rows="rewards",
)
enter(
    "completions-all-alike",
    "modelscope/ms-swift#4570 modelscope/ms-swift#4512",
    "Sampling was set to the likeliest token, as for an evaluation. All completions of a group "
    "were the same text with the same reward, and the loss was 0.",
    make=lambda: grpo(top_k=1),
    mended=grpo,
    proof=no_advantage,
    rows="rewards",
)


def never_ends(trainer: Trainer) -> str:
    """Proof: all completions were cut, and none has its end."""
    found = groups(trainer)
    lengths = torch.cat([group["completion_mask"].sum(1) for group in found])
    cut = int((lengths == trainer.args.max_completion_length).sum())
    assert cut == len(lengths), lengths
    return f"{cut} of {len(lengths)} completions were cut at {lengths.max()} tokens"


enter(
    "completions-cut-before-their-end",
    "huggingface/trl#5759 greyhaven-ai/autocontext#1067 modelscope/ms-swift#4950",
    "max_completion_length was below what an answer takes. Every completion was cut before the "
    "part that the reward looks at, and none ever showed the model how to end.",
    make=lambda: grpo(max_completion_length=4),
    mended=grpo,
    proof=never_ends,
    rows="rewards; truncated; EOS supervised",
)


def ending_with(end: str) -> PreTrainedTokenizerBase:
    """The base model's tokenizer with another token for the end."""
    tokenizer = load_tokenizer("base")
    tokenizer.eos_token = end
    return tokenizer


def over_its_end(trainer: Trainer) -> str:
    """Proof: completions go on after the token by which the model ends a text."""
    own = load_tokenizer("base").eos_token_id
    rows = [row.tolist() for group in groups(trainer) for row in group["completion_ids"]]
    most = trainer.args.max_completion_length
    over = sum(own in row[:-1] and len(row) == most and row[-1] != own for row in rows)
    pad = trainer.processing_class.pad_token_id
    stopped = sum(row[row.index(own) + 1 :].count(pad) > 0 for row in rows if own in row)
    assert over, rows[0]
    assert not stopped, stopped
    return (
        f"the model writes its end, {load_tokenizer('base').eos_token!r}, in {over} of "
        f"{len(rows)} completions and goes on to {most} tokens; generation waits for "
        f"{trainer.processing_class.eos_token!r}"
    )


enter(
    "generation-waits-for-another-end",
    "hiyouga/LlamaFactory#7454 QwenLM/Qwen3#927",
    "The tokenizer's EOS token was set to one that the model does not write. Completions went on "
    "over the model's own end to the limit, and the reward judged what came after.",
    make=lambda: grpo(tokenizer=ending_with("~")),
    mended=grpo,
    proof=over_its_end,
    rows="rewards; EOS supervised; truncated",
)


# Time and steps


def resumed(epochs: int) -> Trainer:
    """A run to be resumed from the checkpoint at the end of its first epoch."""
    where = folder()
    options = {"output_dir": where, "max_steps": -1, "save_strategy": "epoch"}
    run(facts(num_train_epochs=1, **options))
    checkpoint = max(map(str, Path(where).glob("checkpoint-*")))
    return facts(num_train_epochs=epochs, resume_from_checkpoint=checkpoint, **options)


def nothing_left(trainer: Trainer) -> str:
    """Proof: the checkpoint has done all the steps, and resuming does none."""
    checkpoint = trainer.args.resume_from_checkpoint
    done = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).global_step
    steps = len(trainer.get_train_dataloader()) * trainer.args.num_train_epochs
    assert done >= steps, (done, steps)
    run(trainer, resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == done, trainer.state.global_step
    loss = trainer.state.log_history[-1]["train_loss"]
    return (
        f"the checkpoint is of step {done} of {steps:g}; 0 steps were done, at a loss of {loss:g}"
    )


enter(
    "resumed-after-the-last-step",
    "bghira/SimpleTuner#1172 AI-Hypercomputer/maxtext#4022",
    "A finished run was resumed to train further, with the same number of epochs. They had all "
    "been done; it ended at once, and reported a loss of 0.",
    kind=STEPS,
    make=lambda: resumed(1),
    mended=lambda: resumed(3),
    proof=nothing_left,
    rows="batch and steps; expected minutes",
)


def many(**options: Any) -> Trainer:
    """A run over 120 texts."""
    tokenizer = load_tokenizer("base")
    return facts(tokenizer=tokenizer, rows=rows_of(tokenizer, 120), **options)


def few_rows_seen(trainer: Trainer) -> str:
    """Proof: the steps see less than the epochs asked for."""
    size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    seen, rows = trainer.args.max_steps * size, len(trainer.train_dataset)
    assert 0 < seen < rows, seen
    return (
        f"{trainer.args.num_train_epochs:g} epochs were asked for; {trainer.args.max_steps} steps "
        f"see {seen} of {rows} rows once"
    )


enter(
    "max-steps-overrides-epochs",
    "unslothai/unsloth#594 neulab/awesome-align#18 artidoro/qlora#87",
    "num_train_epochs was set to 3 in a script that had max_steps from a first try. max_steps "
    "wins, and most of the data were never seen.",
    kind=STEPS,
    make=lambda: many(max_steps=5, num_train_epochs=3),
    mended=lambda: many(max_steps=-1, num_train_epochs=1),
    proof=few_rows_seen,
    rows="batch and steps",
)


def one_step(trainer: Trainer) -> str:
    """Proof: a step would take more rows than there are."""
    size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    rows = len(trainer.train_dataset)
    assert size > rows, size
    run(trainer)
    return (
        f"a step takes {size} rows, and there are {rows}: {trainer.state.global_step} steps in "
        f"{trainer.args.num_train_epochs:g} epochs"
    )


enter(
    "batch-larger-than-the-data",
    "huggingface/transformers#2995 huggingface/transformers#14309 timoschick/pet#25",
    "Batch size and accumulation came from a recipe for a large dataset. The whole of this one is "
    "less than one step, so that an epoch is a single step.",
    kind=STEPS,
    make=lambda: facts(gradient_accumulation_steps=16, max_steps=-1, num_train_epochs=2),
    mended=lambda: facts(gradient_accumulation_steps=1, max_steps=-1, num_train_epochs=2),
    proof=one_step,
    rows="batch and steps",
)


def uneven(size: int, count: int = 256, **options: Any) -> Trainer:
    """One text in eight is ten times as long."""
    tokenizer = load_tokenizer("base")
    lands = list(CAPITALS.items())
    rows = [(LONG + " ") * 3 if row % 8 == 3 else SHORT for row in range(count)]
    texts = [text.replace("{}", lands[at % 12][at % 2]) for at, text in enumerate(rows)]
    data = [dict(tokenizer(text + tokenizer.eos_token)) for text in texts]
    return facts(
        tokenizer=tokenizer,
        rows=data,
        per_device_train_batch_size=size,
        max_steps=-1,
        num_train_epochs=1,
        **options,
    )


def mostly_padding(trainer: Trainer) -> str:
    """Proof: more of an epoch's tokens are padding than text."""
    masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
    text, all_of_it = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    share = 1 - text / all_of_it
    assert share > 0.6, share
    return f"{share:.0%} of the {all_of_it:,} tokens of an epoch's batches are padding"


enter(
    "batches-mostly-padding",
    "unslothai/unsloth#1155 Lightning-AI/lit-llama#396",
    "A larger batch made the training no faster. One long text in each batch has all others padded "
    "to its length; the machine computes padding most of the time.",
    kind=STEPS,
    make=lambda: uneven(8),
    mended=lambda: uneven(8, train_sampling_strategy="group_by_length"),
    proof=mostly_padding,
    rows="batch and steps; expected minutes; batches",
)


def one_batch_tells_nothing(trainer: Trainer) -> str:
    """Proof: batches whose numbers of tokens differ tenfold."""
    sizes = sorted(batch["input_ids"].numel() for batch in trainer.get_train_dataloader())
    usual, mean = sizes[len(sizes) // 2], sum(sizes) / len(sizes)
    assert sizes[-1] > 8 * usual, sizes
    return (
        f"a batch has {usual} tokens in the middle and {mean:.0f} in the mean: a time from one of "
        f"them is off by {mean / usual:.1f}, or from the largest by {sizes[-1] / mean:.1f} times"
    )


enter(
    "time-taken-from-one-batch",
    "huggingface/sentence-transformers#2940",
    "How long the run will take was reckoned from its first batch. One text in eight is ten times "
    "as long as the others, and the run took more than twice as long.",
    kind=STEPS,
    make=lambda: uneven(1),
    mended=None,
    proof=one_batch_tells_nothing,
    rows="expected minutes",
)
