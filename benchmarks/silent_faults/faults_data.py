"""Faults of the data side: those of the loss's mask here, the others in the modules imported.

Importing this enters all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from benchmarks.silent_faults import (  # noqa: F401
    faults_columns,
    faults_documents,
    faults_ends,
    faults_text,
)
from benchmarks.silent_faults.common import (
    WORDS,
    Fault,
    add,
    base_tokenizer,
    chat_tokenizer,
    chats,
)
from benchmarks.silent_faults.faults_text import Rows, batches, learned, tuned, with_labels

KIND = "Prompts that are trained on, and answers that are not"


def counted(found: int, of: int, what: str) -> str:
    """A sentence on what some rows have; raises where none has it."""
    assert found, f"none of {of} rows has {what}"
    return f"{found} of {of} rows have {what}."


# Masks of TRL


def questions(split: bool) -> Rows:
    """Questions with answers, as one text or as prompt and completion."""
    rows: Rows = []
    for word in WORDS:
        prompt, answer = f"### Question: say {word} twice\n### Answer:", f" {word} {word}"
        rows.append(
            {"prompt": prompt, "completion": answer} if split else {"text": prompt + answer}
        )
    return rows


def questions_trained(trainer: Trainer) -> str:
    texts = learned(trainer)
    assert trainer.args.completion_only_loss
    return counted(sum("Question" in x for x in texts), len(texts), "their question in the loss")


add(
    Fault(
        name="completion-only-without-prompts",
        kind=KIND,
        issues=("huggingface/trl#1507", "huggingface/open-r1#648"),
        story="completion_only_loss=True is set, and the data has one column of text: there is no "
        "prompt to leave out, nothing says so, and the loss counts everything.",
        make=lambda: tuned(questions(split=False), base_tokenizer(), completion_only_loss=True),
        mended=lambda: tuned(questions(split=True), base_tokenizer(), completion_only_loss=True),
        rows=("prompt not supervised", "supervised tokens"),
        proof=questions_trained,
    )
)


def marked_by_template(condition: str) -> SFTTrainer:
    """Conversations of two answers; the template marks for the loss those of the condition."""
    tokenizer = chat_tokenizer()
    answer = "{{ message['content'] }}<|im_end|>"
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        f"{{% if {condition} %}}{{% generation %}}{answer}{{% endgeneration %}}"
        f"{{% else %}}{answer}{{% endif %}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tuned(chats(), tokenizer, assistant_only_loss=True)


def one_answer_of_two(trainer: Trainer) -> str:
    texts = learned(trainer)
    counts = [text.count("<|im_end|>") for text in texts]
    assert max(counts) == 1, counts
    return f"Each of the {len(texts)} conversations has two answers, and the loss counts one."


add(
    Fault(
        name="template-marks-the-last-answer-only",
        kind=KIND,
        issues=("zai-org/GLM-4#803", "unslothai/notebooks#301"),
        story="assistant_only_loss=True is set with a template whose generation marks stand around "
        "the last turn only: of long conversations, one answer each is trained.",
        make=lambda: marked_by_template("message['role'] == 'assistant' and loop.last"),
        mended=lambda: marked_by_template("message['role'] == 'assistant'"),
        rows=("supervised tokens",),
        proof=one_answer_of_two,
    )
)


# Masks of one's own

Mask = Callable[[str, str, PreTrainedTokenizerBase], tuple[list[int], list[int]]]


def masked(mask: Mask, end: str = "") -> Trainer:
    """Questions with answers whose labels somebody made; `end` stands between the two."""
    tokenizer = base_tokenizer()
    rows = []
    for row, word in enumerate(WORDS):
        stop = "now " if row % 2 else "now"
        prompt = f"Say {word} twice, this is number {row} {stop}\n\n### Answer:{end}"
        answer = f"{'' if end else ' '}{word} {word}{tokenizer.eos_token}"
        ids, labels = mask(prompt, answer, tokenizer)
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return with_labels(rows, tokenizer)


def in_two_parts(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """A right mask: prompt and answer are tokenized one by one and joined."""
    before, after = (tokenizer(text)["input_ids"] for text in (prompt, answer))
    return before + after, [-100] * len(before) + after


def by_length(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """The whole is tokenized, and as many tokens masked as the prompt has alone."""
    ids = tokenizer(prompt + answer)["input_ids"]
    length = len(tokenizer(prompt)["input_ids"])
    return ids, [-100] * length + ids[length:]


def first_word_missing(trainer: Trainer) -> str:
    texts = learned(trainer)
    found = sum(len(text.split("<")[0].split()) == 1 for text in texts)
    return counted(found, len(texts), "one word of their two in the loss")


add(
    Fault(
        name="first-word-of-the-answer-masked",
        kind=KIND,
        issues=("tloen/alpaca-lora#306", "huggingface/trl#1920"),
        story="As many tokens are masked as the prompt has by itself. It ends in a blank, which "
        "joins the answer's first word in the whole text: that word is masked too.",
        make=lambda: masked(by_length, end=" "),
        mended=lambda: masked(by_length),
        rows=("supervised tokens", "prompt not supervised"),
        proof=first_word_missing,
    )
)


def by_marker(marker: str) -> Mask:
    """Masks all up to a marker's tokens, and the whole row where they are not found."""

    def mask(
        prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], list[int]]:
        ids = tokenizer(prompt + answer)["input_ids"]
        wanted = tokenizer(marker)["input_ids"]
        for start in range(len(ids)):
            if ids[start : start + len(wanted)] == wanted:
                after = start + len(wanted)
                return ids, [-100] * after + ids[after:]
        return ids, [-100] * len(ids)

    return mask


def rows_without_loss(trainer: Trainer) -> str:
    texts = learned(trainer)
    return counted(sum(not text for text in texts), len(texts), "no token in the loss")


add(
    Fault(
        name="marker-of-the-answer-not-found",
        kind=KIND,
        issues=("huggingface/trl#598", "huggingface/trl#1820", "unslothai/unsloth#1290"),
        story="The answer is found by the tokens of the line that announces it. After a blank the "
        "line break is another token, the marker is not found, and half the rows count for "
        "nothing.",
        make=lambda: masked(by_marker("\n\n### Answer:")),
        mended=lambda: masked(by_marker(" Answer:")),
        rows=("supervised tokens",),
        proof=rows_without_loss,
    )
)


def inverted(
    prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """The mask of in_two_parts the wrong way round."""
    ids, labels = in_two_parts(prompt, answer, tokenizer)
    turned = zip(ids, labels, strict=True)
    return ids, [token if label == -100 else -100 for token, label in turned]


def prompts_only(trainer: Trainer) -> str:
    texts = learned(trainer)
    assert not any(text.endswith("<|im_end|>") for text in texts), "answers are trained"
    return counted(
        sum("this is number" in x for x in texts), len(texts), "only prompts in the loss"
    )


add(
    Fault(
        name="mask-the-wrong-way-round",
        kind=KIND,
        issues=("neuralmagic/sparseml#2192",),
        story="A mask of ones for the answer is used as if it told what to leave out: the model "
        "learns to write the questions.",
        make=lambda: masked(inverted),
        mended=lambda: masked(in_two_parts),
        rows=("prompt not supervised", "supervised tokens", "EOS supervised"),
        proof=prompts_only,
    )
)


def collated(overwrite: bool) -> Trainer:
    """Rows with labels, and a collator that uses them or makes its own."""
    trainer = masked(in_two_parts)
    if overwrite:
        trainer.data_collator = DataCollatorForLanguageModeling(trainer.processing_class, mlm=False)
        trainer.args.per_device_train_batch_size = 1
        trainer._train_batch_size = 1
    return trainer


def labels_overwritten(trainer: Trainer) -> str:
    given = sum(label != -100 for row in trainer.train_dataset["labels"] for label in row)
    used = sum(int((batch["labels"] != -100).sum()) for batch in batches(trainer))
    assert used > given, "the loss counts what the data says"
    return f"The data marks {given} tokens for the loss, and the batches count {used}."


add(
    Fault(
        name="collator-overwrites-the-labels",
        kind=KIND,
        issues=(
            "huggingface/transformers#26357",
            "huggingface/transformers#31493",
            "oobabooga/textgen#4031",
            "Facico/Chinese-Vicuna#99",
        ),
        story="The rows have labels with the prompts masked. DataCollatorForLanguageModeling makes "
        "labels of its own over them, and the prompts are trained.",
        make=lambda: collated(overwrite=True),
        mended=lambda: collated(overwrite=False),
        rows=("prompt not supervised", "supervised tokens"),
        proof=labels_overwritten,
    )
)


def conversations(all_turns: bool) -> Trainer:
    """Conversations of two answers; the loss counts all after the first question, or answers."""
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    rows = []
    for row in chats():
        ids: list[int] = []
        labels: list[int] = []
        for turn, message in enumerate(row["messages"]):
            head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
            body = tokenizer(message["content"] + "<|im_end|>\n")["input_ids"]
            ids += head + body
            if message["role"] == "assistant":
                labels += [-100] * len(head) + body
            elif all_turns and turn:
                labels += head + body
            else:
                labels += [-100] * len(head + body)
        rows.append({"input_ids": ids, "labels": labels})
    return with_labels(rows, tokenizer)


def later_questions(trainer: Trainer) -> str:
    texts = learned(trainer)
    found = sum("<|im_start|>user" in text for text in texts)
    return counted(found, len(texts), "the second question in the loss")


add(
    Fault(
        name="later-questions-trained",
        kind=KIND,
        issues=("oobabooga/textgen#3343", "huggingface/trl#542", "unslothai/notebooks#301"),
        story="All before the first answer is masked, and all after it counted: the model learns "
        "to write the user's next question too.",
        make=lambda: conversations(all_turns=True),
        mended=lambda: conversations(all_turns=False),
        rows=("prompt not supervised",),
        proof=later_questions,
    )
)


class PadsApart:
    """Pads the ids on one side and the labels on the right."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, left: bool) -> None:
        self.pad = tokenizer.pad_token_id
        self.left = left

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Any] = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            missing = longest - len(row["input_ids"])
            for name, value in (("input_ids", self.pad), ("attention_mask", 0)):
                padding = [value] * missing
                batch[name].append(padding + row[name] if self.left else row[name] + padding)
            batch["labels"].append(row["labels"] + [-100] * missing)
        return {name: torch.tensor(values) for name, values in batch.items()}


def padded_apart(left: bool) -> Trainer:
    """Questions with answers of uneven lengths under that collator."""
    trainer = masked(in_two_parts)
    rows = trainer.train_dataset.to_list()
    for index, row in enumerate(rows):  # the longer the later
        prefix = trainer.processing_class(" now" * index)["input_ids"] if index else []
        row["input_ids"] = prefix + row["input_ids"]
        row["attention_mask"] = [1] * len(row["input_ids"])
        row["labels"] = [-100] * len(prefix) + row["labels"]
    tokenizer = trainer.processing_class
    return with_labels(rows, tokenizer, data_collator=PadsApart(tokenizer, left))


def labels_beside(trainer: Trainer) -> str:
    wrong = of = 0
    for batch in batches(trainer):
        counted_ones = batch["labels"] != -100
        wrong += int((batch["labels"] != batch["input_ids"])[counted_ones].sum())
        of += int(counted_ones.sum())
    assert wrong, "all labels stand at their tokens"
    return f"{wrong} of {of} labels stand at a token that is another one."


add(
    Fault(
        name="labels-padded-on-the-other-side",
        kind=KIND,
        issues=("LAION-AI/Open-Assistant#3657", "hpcaitech/ColossalAI#4193"),
        story="A collator of one's own pads the ids on the left and the labels on the right: in "
        "every batch of uneven rows, the shorter rows' labels stand beside their tokens.",
        make=lambda: padded_apart(left=True),
        mended=lambda: padded_apart(left=False),
        rows=("supervised tokens", "prompt not supervised", "batches", "EOS supervised"),
        proof=labels_beside,
    )
)
