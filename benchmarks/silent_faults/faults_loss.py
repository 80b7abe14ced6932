"""Faults of the loss: one that is not the loss meant, and accumulation that changes the gradient.

Nearly all train the course's own base model, because a model that knows something shows by its
loss what is wrong: the facts below cost it about 1.2 a token, and a guess costs 7.6.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
)

from benchmarks.silent_faults.common import (
    Fault,
    add,
    first_batch,
    plain,
    saved,
    tiny,
)
from course_utils._core.undisturbed import quiet_libraries
from course_utils.models import load_model, load_tokenizer

NOT_THE_LOSS = "A loss that is not the one you think"
ACCUMULATION = "Accumulation that changes the gradient"
CAPITALS = {
    "France": "Paris",
    "Norway": "Oslo",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Italy": "Rome",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Kenya": "Nairobi",
    "Poland": "Warsaw",
}
SHORT = "The capital of {} is {}."
LONG = SHORT + " {} is governed from its capital, {}. Those who come to {} mostly begin in {}."

LossFunction = Callable[..., torch.Tensor]


@cache
def _base() -> PreTrainedModel:
    return load_model("base", quiet=True, dtype=torch.float32)


def own_base(cls: type[PreTrainedModel] = GPTNeoXForCausalLM) -> PreTrainedModel:
    """The course's base model in float32, a copy of its own each time, under any class."""
    model = cls(_base().config)
    model.load_state_dict(_base().state_dict())
    return model


def texts(count: int = 12) -> list[str]:
    """Facts that the base model knows, short and long in turn."""
    facts = list(CAPITALS.items()) * (count // 12 + 1)
    return [(SHORT, LONG)[row % 2].format(*fact * 3) for row, fact in enumerate(facts[:count])]


def rows_of(tokenizer: PreTrainedTokenizerBase, count: int = 12) -> list[dict[str, Any]]:
    """The facts, tokenized, each with its EOS token."""
    return [dict(tokenizer(text + tokenizer.eos_token)) for text in texts(count)]


def facts(model: PreTrainedModel | None = None, **options: Any) -> Trainer:
    """A Trainer on the facts; short and long ones meet in its batches."""
    options = {"per_device_train_batch_size": 4} | options
    tokenizer = options.pop("tokenizer", None) or load_tokenizer("base")
    rows = options.pop("rows", None) or rows_of(tokenizer)
    return plain(rows, model or own_base(), tokenizer, **options)


def trained_loss(trainer: Trainer, batch: Mapping[str, Any]) -> float:
    """What the trainer would train on in this batch, were it a step of its own."""
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.model.train()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).item()


def text_losses(trainer: Trainer, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    """The loss of each token after a text's first, for each text alone, without padding."""
    losses = []
    for row in batch["input_ids"]:
        ids = row[row != trainer.processing_class.pad_token_id][None]
        logits = trainer.model(input_ids=ids).logits[0, :-1].float()
        losses.append(F.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return losses


def next_token_loss(trainer: Trainer, batch: Mapping[str, Any]) -> float:
    """The mean loss of the next token in the texts of a batch, written out."""
    with torch.no_grad():
        return torch.cat(text_losses(trainer, batch)).mean().item()


def loss_differs(trainer: Trainer) -> str:
    """Proof: the loss of the first batch is not that of predicting its texts' next tokens."""
    batch = first_batch(trainer)
    got, right = trained_loss(trainer, batch), next_token_loss(trainer, batch)
    assert abs(got - right) > 0.05 * right, (got, right)
    return f"the first batch's loss is {got:.2f}; predicting the next token costs {right:.2f}"


def enter(name: str, issues: str, story: str, **parts: Any) -> None:
    """Enter a fault of the first kind; most are proven by `loss_differs`."""
    usual = {
        "kind": NOT_THE_LOSS,
        "mended": facts,
        "proof": loss_differs,
        "rows": ("plain loss", "loss and gradients"),
    }
    add(Fault(name, issues=tuple(issues.split()), story=story, **(usual | parts)))


# Shifted wrongly


class FactsForCausalLM(GPTNeoXForCausalLM):
    """A causal model under a name of one's own."""


def smoothing_unshifted(trainer: Trainer) -> str:
    """Proof: the smoothed loss is that of the token read, not of the next one."""
    batch = first_batch(trainer)
    got = trained_loss(trainer, batch)
    with torch.no_grad():
        outputs = {"logits": trainer.model(batch["input_ids"], batch["attention_mask"]).logits}
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    same, following = (
        trainer.label_smoother(outputs, batch["labels"], shift, count).item()
        for shift in (False, True)
    )
    assert abs(got - same) < 0.01 < abs(got - following), (got, same, following)
    return (
        f"the loss of {got:.2f} is that of the token being read ({same:.2f}); "
        f"that of the next token is {following:.2f}"
    )


enter(
    "label-smoothing-unshifted",
    "huggingface/transformers#27161 QwenLM/Qwen#834 huggingface/transformers#17960",
    "Label smoothing was turned on for a causal model whose class was the author's own. The "
    "Trainer shifts labels only for names that it knows, so the model learned to repeat the token "
    "it had just read.",
    make=lambda: facts(own_base(FactsForCausalLM), label_smoothing_factor=0.1),
    mended=lambda: facts(own_base(), label_smoothing_factor=0.1),
    proof=smoothing_unshifted,
)


def shifting_collator(tokenizer: PreTrainedTokenizerBase) -> Callable[..., dict[str, Any]]:
    """A collator whose labels are already the next tokens."""
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def shift(examples: list[Any]) -> dict[str, Any]:
        batch = dict(collate(examples))
        batch["labels"] = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        return batch

    return shift


enter(
    "labels-shifted-twice",
    "huggingface/transformers#32944 huggingface/transformers#44642",
    "The collator set each label to the next token, as textbooks have it, and the model shifted "
    "them again. It learned to predict the token after the next.",
    make=lambda: facts(data_collator=shifting_collator(load_tokenizer("base"))),
)


class ShiftsItselfForCausalLM(GPTNeoXForCausalLM):
    """Shifts by hand, then calls the library's loss, which shifts."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        """Logits, and the loss where there are labels."""
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            outputs.loss = self.loss_function(
                outputs.logits[:, :-1].reshape(-1, self.config.vocab_size),
                labels[:, 1:].reshape(-1),
                vocab_size=self.config.vocab_size,
                **kwargs,
            )
        return outputs


enter(
    "model-shifts-before-the-loss-does",
    "huggingface/transformers#37830 huggingface/transformers#47395",
    "A model's forward cut off the last logit and the first label and handed both to the "
    "library's loss function, which shifts by itself. Two models in the library were released so.",
    make=lambda: facts(own_base(ShiftsItselfForCausalLM)),
)


# A loss of one's own


def with_loss(function: LossFunction) -> Callable[[], Trainer]:
    """Makes a trainer with this `compute_loss_func`."""
    return lambda: facts(compute_loss_func=function)


def right(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The next token's loss, summed, and divided by the number of tokens of the step."""
    loss = F.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    return loss / num_items_in_batch


def unshifted(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The loss of the token that the model has just read."""
    loss = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / num_items_in_batch


enter(
    "own-loss-forgets-the-shift",
    "huggingface/transformers#3711 huggingface/transformers#35066",
    "Somebody wrote the loss anew and compared logits and labels at the same places. Each position "
    "was taught the token that it can already see.",
    make=with_loss(unshifted),
    mended=with_loss(right),
)


def over_padding(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None):
    """The mean over all places: those with the label -100 add nothing, and count."""
    logits, targets = outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:]
    return F.cross_entropy(logits, targets, reduction="none").mean()


enter(
    "mean-over-padding",
    "NovaSky-AI/SkyRL#462 IBM/pytorch-seq2seq#125",
    "A loss of one's own took the losses of all places and averaged them, padding included. The "
    "more padding a batch had, the smaller its loss and its gradient.",
    make=with_loss(over_padding),
    mended=with_loss(right),
)


def wrong_axis(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None):
    """`view` where it takes `transpose`: the shape is right, and the numbers are shuffled."""
    logits, targets = outputs.logits[:, :-1], labels[:, 1:]
    rows, length, words = logits.shape
    loss = F.cross_entropy(logits.reshape(rows, words, length), targets, reduction="sum")
    return loss / num_items_in_batch


enter(
    "logits-reshaped-not-transposed",
    "voiler/IMPALA#3",
    "To have the vocabulary where cross_entropy wants it, the logits were reshaped in place of "
    "being transposed. The shape was right, and each place got a mixture of other places' scores.",
    make=with_loss(wrong_axis),
    mended=with_loss(right),
)


def softmax_twice(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None):
    """Probabilities where cross_entropy takes logits."""
    scores = outputs.logits[:, :-1].softmax(-1)
    loss = F.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return loss / num_items_in_batch


enter(
    "softmax-before-cross-entropy",
    "ariecattan/SciCo#2 bowang-lab/Transformer-GCN-QA#32",
    "The logits went through softmax before cross_entropy, which does that itself. The loss hangs "
    "near the logarithm of the vocabulary's size, whatever the model says.",
    make=with_loss(softmax_twice),
    mended=with_loss(right),
)


# What the model is given


def padded_before(side: str, keep_mask: bool) -> Trainer:
    """Texts padded to one length in preprocessing, with or without their attention mask."""
    tokenizer = load_tokenizer("base")
    tokenizer.padding_side = side
    rows = []
    for text in texts():
        row = dict(tokenizer(text + tokenizer.eos_token, padding="max_length", max_length=64))
        pad = tokenizer.pad_token_id
        row["labels"] = [-100 if token == pad else token for token in row["input_ids"]]
        if not keep_mask:
            del row["attention_mask"]
        rows.append(row)
    return facts(tokenizer=tokenizer, rows=rows, data_collator=DataCollatorForSeq2Seq(tokenizer))


enter(
    "left-padding-without-mask",
    "NVIDIA-NeMo/Automodel#3704",
    "Texts were padded on the left in preprocessing and the attention mask was not kept. The loss "
    "skipped the padding, but the model read it before every text.",
    make=lambda: padded_before("left", keep_mask=False),
    mended=lambda: padded_before("right", keep_mask=True),
    rows=("plain loss", "loss and gradients", "pad vs eos", "batches"),
)


@cache
def _gpt2() -> PreTrainedModel:
    """A small GPT-2 that has learned the facts, padded on the right."""
    calm = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokenizer = load_tokenizer("base")
    model = tiny(tokenizer, GPT2LMHeadModel, GPT2Config, hidden_size=64, **calm)
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows_of(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def learned_positions(side: str) -> Trainer:
    """GPT-2, whose positions are learned, on padded texts."""
    model = copy.deepcopy(_gpt2())
    # Without it, the Trainer divides by the first tokens, too, which nothing predicts.
    model.loss_type = "ForCausalLM"
    tokenizer = load_tokenizer("base")
    tokenizer.padding_side = side
    return facts(model, tokenizer=tokenizer)


enter(
    "left-padding-without-positions",
    "huggingface/transformers#3167 huggingface/trl#469 huggingface/transformers#29583",
    "GPT-2 was trained with padding on the left and an attention mask, but no position_ids. A "
    "short text began at position 26, and was learned there.",
    make=lambda: learned_positions("left"),
    mended=lambda: learned_positions("right"),
    rows=("plain loss", "loss and gradients", "batches", "documents apart"),
)


def padding_supervised(tokenizer: PreTrainedTokenizerBase) -> Callable[..., dict[str, Any]]:
    """A collator that pads the labels with the padding token, too."""

    def collate(examples: list[Any]) -> dict[str, Any]:
        batch = dict(tokenizer.pad(examples, return_tensors="pt"))
        return {**batch, "labels": batch["input_ids"].clone()}

    return collate


def padding_is_learned(trainer: Trainer) -> str:
    """Proof: labels that are the padding token."""
    labels = first_batch(trainer)["labels"]
    share = (labels == trainer.processing_class.pad_token_id).sum() / (labels != -100).sum()
    assert share > 0, share
    return f"{share:.0%} of the tokens that the loss counts are padding"


enter(
    "padding-in-the-labels",
    "huggingface/transformers#2759 01-ai/Yi#110 FlagAI-Open/FlagAI#522",
    "A collator of one's own padded the texts and used the padded ids as labels. Writing padding "
    "after padding is easy, so the loss looked fine.",
    make=lambda: facts(data_collator=padding_supervised(load_tokenizer("base"))),
    proof=padding_is_learned,
    rows=("supervised tokens", "pad vs eos", "plain loss", "loss and gradients"),
)


def stranger() -> PreTrainedTokenizerBase:
    """A tokenizer with the base model's tokens under other numbers."""
    own = load_tokenizer("base")
    state = json.loads(own.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    special = set(own.all_special_ids)
    numbers = [number for number in words.values() if number not in special]
    other = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0)).tolist()
    move = {number: numbers[to] for number, to in zip(numbers, other, strict=True)}
    state["model"]["vocab"] = {word: move.get(number, number) for word, number in words.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=own.eos_token,
        pad_token=own.pad_token,
    )


def other_numbers(trainer: Trainer) -> str:
    """Proof: the texts cost far more than with the tokenizer that the model was made with."""
    batch, right = first_batch(trainer), load_tokenizer("base")
    tool = trainer.processing_class
    rows = [row[row != tool.pad_token_id] for row in batch["input_ids"]]
    known = [right(tool.decode(row), return_tensors="pt").input_ids[0] for row in rows]
    again = torch.nn.utils.rnn.pad_sequence(known, True, right.pad_token_id)
    got, own = next_token_loss(trainer, batch), next_token_loss(trainer, {"input_ids": again})
    assert got > own + 1, (got, own)
    return f"the texts cost {got:.1f} a token, and {own:.1f} with the model's own tokenizer"


enter(
    "tokenizer-of-another-model",
    "haotian-liu/LLaVA#375",
    "The tokenizer came from another version of the model: as many tokens, under other numbers. "
    "Nothing complained, and the model had to learn reading anew.",
    make=lambda: facts(tokenizer=stranger()),
    proof=other_numbers,
    rows=("plain loss", "loss and gradients", "text and template"),
)


# What was loaded


def checkpoint(rename: Callable[[str], str | None]) -> str:
    """A folder with the base model, its tensors renamed, or left out where there is no name."""
    where = saved(own_base())
    file = Path(where) / "model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    kept = {name: tensor for name, tensor in tensors.items() if name}
    save_file(kept, file, metadata={"format": "pt"})
    return where


def from_checkpoint(rename: Callable[[str], str | None]) -> Trainer:
    """A trainer of what `from_pretrained` makes of such a folder."""
    with quiet_libraries():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(checkpoint(rename), dtype=torch.float32)
    return facts(model)


def loaded_nothing(trainer: Trainer, part: str = "") -> str:
    """Proof: tensors of the model that are not the checkpoint's, and a loss like a guess's."""
    model = trainer.model
    known = _base().state_dict()
    own = {name: tensor for name, tensor in model.state_dict().items() if part in name}
    matrices = [name for name, tensor in own.items() if tensor.dim() > 1]
    other = [name for name in matrices if not torch.equal(own[name], known[name])]
    guess = torch.tensor(float(model.config.vocab_size)).log().item()
    loss = next_token_loss(trainer, first_batch(trainer))
    assert other, loss
    assert loss > guess - 1, (loss, guess)
    return (
        f"{len(other)} of {len(matrices)} matrices{f' named {part}' if part else ''} are random; "
        f"the loss is {loss:.1f}, and a guess costs {guess:.1f}"
    )


enter(
    "checkpoint-under-other-names",
    "FareedKhan-dev/train-llm-from-scratch#36 pytorch/pytorch#101107",
    "The weights had been saved from a compiled model under names with a prefix. from_pretrained "
    "found none that it knew, made random ones, and said so in a log that nobody read.",
    make=lambda: from_checkpoint(lambda name: f"network.{name}"),
    mended=lambda: from_checkpoint(lambda name: name),
    proof=loaded_nothing,
)
enter(
    "head-missing-from-the-checkpoint",
    "huggingface/transformers#43429 huggingface/transformers#11903",
    "The checkpoint had no output head, as those of models that share it with the embeddings, and "
    "the configuration said that nothing is shared. The head was random.",
    make=lambda: from_checkpoint(lambda name: None if "embed_out" in name else name),
    mended=lambda: from_checkpoint(lambda name: name),
    proof=partial(loaded_nothing, part="lm_head"),
)


# Accumulation


def accumulating(model: PreTrainedModel | None = None, **options: Any) -> Trainer:
    """A trainer that adds up four batches of one text, short and long ones, for each step."""
    tokenizer = load_tokenizer("base")
    settings = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "rows": rows_of(tokenizer, 24),
        "tokenizer": tokenizer,
    }
    return facts(model, **(settings | options))


def _flat_gradient(trainer: Trainer) -> torch.Tensor:
    parts = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    trainer.model.zero_grad()
    return torch.cat(parts)


def gradient_differs(trainer: Trainer) -> str:
    """Proof: the step's gradient is not that of the mean over all tokens of its batches."""
    loader = iter(trainer.get_train_dataloader())
    batches = [next(loader) for _ in range(trainer.args.gradient_accumulation_steps)]
    count = trainer._get_num_items_in_batch(batches, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.model.zero_grad()
    for batch in batches:
        trainer.training_step(trainer.model, dict(batch), count)
    got = _flat_gradient(trainer)
    losses = [loss for batch in batches for loss in text_losses(trainer, batch)]
    torch.cat(losses).mean().backward()
    right = _flat_gradient(trainer)
    ratio, angle = (got.norm() / right.norm()).item(), F.cosine_similarity(got, right, 0).item()
    assert (got - right).norm() > 0.1 * right.norm(), (ratio, angle)
    lengths = ", ".join(str(len(loss)) for loss in losses)
    return (
        f"over batches of {lengths} tokens the gradient is {ratio:.3g} times as long as that of "
        f"the mean over all tokens, and points {angle:.2f} (cosine) its way"
    )


def enter_accumulation(name: str, issues: str, story: str, **parts: Any) -> None:
    """Enter a fault of the second kind."""
    usual = {
        "kind": ACCUMULATION,
        "mended": lambda: accumulating(compute_loss_func=right),
        "proof": gradient_differs,
        "rows": ("gradient accumulation", "plain loss"),
    }
    add(Fault(name, issues=tuple(issues.split()), story=story, **(usual | parts)))


def mean_of_batch(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens of this one batch."""
    return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class OwnMean(Trainer):
    """A compute_loss from before the step's number of tokens was handed to it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean over the batch's tokens."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = mean_of_batch(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class OwnMeanDivided(OwnMean):
    """The same, and the Trainer is told to divide it by the number of batches."""

    loss_is_scaled_for_ga = False


enter_accumulation(
    "own-loss-ignores-accumulation",
    "huggingface/transformers#35207 huggingface/transformers#43651",
    "A compute_loss of one's own returned the mean of its batch. The Trainer took it as divided by "
    "the whole step's tokens and added four up: the gradient was some four times too large.",
    make=lambda: accumulating(cls=OwnMean),
)
enter_accumulation(
    "short-batches-weigh-as-much-as-long",
    "huggingface/trl#2175 huggingface/blog#2414 unslothai/unsloth#1134",
    "Each batch's loss was averaged over its own tokens, then the batches were averaged. A text of "
    "9 tokens moved the model as much as one of 35, which a larger batch would not do.",
    make=lambda: accumulating(cls=OwnMeanDivided),
)


class IgnoresCountForCausalLM(GPTNeoXForCausalLM):
    """Takes any argument, num_items_in_batch too, and lets it lie."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        """Logits, and the batch's mean loss where there are labels."""
        outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            outputs.loss = mean_of_batch(outputs, labels)
        return outputs


enter_accumulation(
    "model-swallows-the-token-count",
    "huggingface/transformers#40333 huggingface/transformers#37766",
    "A model's forward took **kwargs and ignored num_items_in_batch in it. The Trainer believed "
    "that the model divides by it, and divided no more.",
    make=lambda: accumulating(own_base(IgnoresCountForCausalLM)),
    mended=accumulating,
)


def summed(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The sum of the losses, divided by nothing."""
    return right(outputs, labels, 1)


enter_accumulation(
    "sum-divided-by-nothing",
    "paiml/aprender#2123 karpathy/nanoGPT#206",
    "The loss function summed over tokens, so that accumulation would come out right, and never "
    "divided. The gradient grew with the length of the texts; only clipping hid it.",
    make=lambda: accumulating(compute_loss_func=summed),
)


class DividesAgain(Trainer):
    """Divides by the number of batches what is already divided by the step's tokens."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The Trainer's loss, divided by the batches of a step."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss


enter_accumulation(
    "divided-twice",
    "unslothai/unsloth#3597",
    "An older script divided the loss by the number of accumulated batches. Since the Trainer "
    "divides by the step's tokens, that makes it twice, and the gradient is a quarter.",
    make=lambda: accumulating(cls=DividesAgain),
    mended=accumulating,
)


class CountsOnlyTheLast(Trainer):
    """Counts the tokens of a step by its last batch."""

    def _get_num_items_in_batch(self, batch_samples, device):
        return super()._get_num_items_in_batch(batch_samples[-1:], device)


enter_accumulation(
    "tokens-of-the-last-batch-only",
    "huggingface/transformers#35438",
    "The number of tokens by which a step's loss is divided was that of one batch, not of all that "
    "are added up. The gradient was as many times too large.",
    make=lambda: accumulating(cls=CountsOnlyTheLast),
    mended=accumulating,
)
