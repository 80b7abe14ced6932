"""Faults of what the trainer does with the data: columns, rows, order, lengths, pictures."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
)
from trl import SFTTrainer

from benchmarks.silent_faults.common import (
    WORDS,
    Fault,
    add,
    base_tokenizer,
    chat_tokenizer,
    folder,
    pairs,
    plain,
    tiny,
    tokenized,
)
from benchmarks.silent_faults.faults_text import Rows, batches, learned, read, tuned, with_labels

KIND = "What the Trainer does with the data"

# Columns


class MasksPrompts:
    """Pads rows, and masks as many tokens of each as its column `prompt_length` says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        batch = self.tokenizer.pad(ids, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[batch["attention_mask"] == 0] = -100
        for label, row in zip(labels, rows, strict=True):
            label[: row.get("prompt_length", 0)] = -100
        return {**batch, "labels": labels}


def lengths_of_prompts(**options: Any) -> Trainer:
    """Rows with the length of their prompt, which the collator reads."""
    tokenizer = base_tokenizer()
    rows = []
    for row, word in enumerate(WORDS):
        prompt = tokenizer(f"Say {word} twice, number {row}:")["input_ids"]
        answer = tokenizer(f" {word} {word}{tokenizer.eos_token}")["input_ids"]
        rows.append({"input_ids": prompt + answer, "prompt_length": len(prompt)})
    return plain(rows, tiny(tokenizer), tokenizer, data_collator=MasksPrompts(tokenizer), **options)


def prompt_lengths_lost(trainer: Trainer) -> str:
    assert min(trainer.train_dataset["prompt_length"]) > 0
    texts = learned(trainer)
    found = sum(text.startswith("Say ") for text in texts)
    assert found, "no prompt is trained"
    return f"Each row has a prompt_length, and {found} of {len(texts)} prompts are in the loss."


add(
    Fault(
        name="column-dropped-before-the-collator",
        kind=KIND,
        issues=(
            "huggingface/transformers#25054",
            "huggingface/transformers#38091",
            "huggingface/trl#1186",
        ),
        story="A collator masks the prompt by a column that the model does not take. The trainer "
        "drops that column before, the collator falls back to 0, and prompts are trained.",
        make=lambda: lengths_of_prompts(),
        mended=lambda: lengths_of_prompts(remove_unused_columns=False),
        rows=("batches", "prompt not supervised"),
        proof=prompt_lengths_lost,
    )
)


def turned(swapped: bool) -> SFTTrainer:
    """Prompts and completions in their columns, or each in the other's."""
    rows = pairs()
    for row in rows if swapped else []:
        row["prompt"], row["completion"] = row["completion"], row["prompt"]
    return tuned(rows, chat_tokenizer())


def users_learned(trainer: Trainer) -> str:
    texts = learned(trainer)
    found = sum("Say " in text for text in texts)
    assert found, "no user's turn is trained"
    return f"{found} of {len(texts)} rows train on the user's turn, after the answer to it."


add(
    Fault(
        name="prompt-and-completion-swapped",
        kind=KIND,
        issues=("modelscope/ms-swift#1443",),
        story="Two columns got each other's name. The model learns to ask the question that an "
        "answer belongs to.",
        make=lambda: turned(swapped=True),
        mended=lambda: turned(swapped=False),
        rows=("prompt not supervised", "text and template", "supervised tokens"),
        proof=users_learned,
    )
)

# Evaluation


def evaluated(kind: str) -> SFTTrainer:
    """Chats with evaluation rows: the same, nearly the same, or others."""
    rows = pairs(24)
    train, held_out = rows[:18], rows[18:]
    if kind == "same":
        held_out = train[:6]
    if kind == "nearly":
        held_out = []
        for row in train[:6]:
            prompt, answer = row["prompt"][0]["content"], row["completion"][0]["content"]
            held_out.append(
                {
                    "prompt": [{"role": "user", "content": prompt.upper().replace(", ", ",  ")}],
                    "completion": [{"role": "assistant", "content": answer.capitalize()}],
                }
            )
    options = {"eval_dataset": Dataset.from_list(held_out)}
    return tuned(train, chat_tokenizer(), eval_strategy="steps", eval_steps=3, **options)


def plain_words(trainer: Trainer, name: str) -> list[str]:
    """The rows of a set as text, in small letters and with single blanks."""
    rows = getattr(trainer, name)["input_ids"]
    decode = trainer.processing_class.decode
    return [" ".join(decode(ids).lower().split()) for ids in rows]


def rows_in_both(trainer: Trainer) -> str:
    trained = set(plain_words(trainer, "train_dataset"))
    held_out = plain_words(trainer, "eval_dataset")
    found = sum(text in trained for text in held_out)
    assert found, "no evaluation row is trained on"
    exact = {tuple(ids) for ids in trainer.train_dataset["input_ids"]}
    same = sum(tuple(ids) in exact for ids in trainer.eval_dataset["input_ids"])
    return (
        f"{found} of {len(held_out)} evaluation rows are training rows, {same} token by token and "
        f"{found - same} but for capital letters and blanks."
    )


for name, kind, reports, story in (
    (
        "evaluation-rows-trained-on",
        "same",
        ("OpenRLHF/OpenRLHF#1089", "huggingface/datasets#4261"),
        "The evaluation set was taken from the rows that are trained on: its loss falls with the "
        "training's and tells nothing.",
    ),
    (
        "evaluation-rows-trained-on-in-other-letters",
        "nearly",
        ("TelecomsXChangeAPi/OpenTextShield#194", "embeddings-benchmark/mteb#1036"),
        "The split was made after some rows had been copied with other capital letters and "
        "blanks: rows of the evaluation are trained on, and a comparison of texts finds none.",
    ),
):
    add(
        Fault(
            name=name,
            kind=KIND,
            issues=reports,
            story=story,
            make=lambda kind=kind: evaluated(kind),
            mended=lambda: evaluated("others"),
            rows=("evaluation data",),
            proof=rows_in_both,
        )
    )

# Rare rows, lengths


def many(tokenizer: PreTrainedTokenizerBase, count: int = 2000) -> Rows:
    """Many short rows with labels."""
    short = [row["input_ids"] for row in tokenized(tokenizer)]
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * 3 + ids[3:]}
        for ids in (short[row % len(short)] for row in range(count))
    ]


def one_masked(rare: bool) -> Trainer:
    """Many rows; rare: one of them has no label."""
    tokenizer = base_tokenizer()
    rows = many(tokenizer)
    if rare:
        rows[1234]["labels"] = [-100] * len(rows[1234]["labels"])
    return with_labels(rows, tokenizer, per_device_train_batch_size=1)


def loss_of_nothing(trainer: Trainer) -> str:
    columns = trainer.train_dataset["labels"]
    empty = [row for row, labels in enumerate(columns) if max(labels) < 0]
    assert empty, "every row has labels"
    batch = trainer.data_collator([trainer.train_dataset[empty[0]]])
    loss = trainer.model(**batch).loss
    assert loss.isnan()
    return (
        f"{len(empty)} of {len(columns)} rows has no label; in a batch of "
        f"{trainer.args.per_device_train_batch_size} its loss is {loss.item()}."
    )


add(
    Fault(
        name="one-row-without-labels",
        kind=KIND,
        issues=(
            "huggingface/trl#6668",
            "huggingface/trl#6702",
            "huggingface/transformers#13619",
        ),
        story="One row in thousands is masked from end to end. Alone in its batch its loss is NaN, "
        "which the log leaves out, and from then on so are all weights.",
        make=lambda: one_masked(rare=True),
        mended=lambda: one_masked(rare=False),
        rows=("supervised tokens", "loss and gradients"),
        proof=loss_of_nothing,
    )
)


def one_long(rare: bool) -> Trainer:
    """Many rows; rare: one of them is longer than the model's positions."""
    tokenizer = base_tokenizer()
    rows = many(tokenizer)
    if rare:
        ids = rows[777]["input_ids"] * 300
        rows[777] = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}
    return with_labels(rows, tokenizer)


def absurdly_long(trainer: Trainer) -> str:
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    longest, usual = max(lengths), statistics.median(lengths)
    positions = trainer.model.config.max_position_embeddings
    assert longest > positions, "all rows fit the model"
    return (
        f"One of {len(lengths)} rows has {longest:,} tokens, {longest / usual:.0f} times the usual "
        f"length and more than the model's {positions:,} positions."
    )


add(
    Fault(
        name="one-row-longer-than-the-model",
        kind=KIND,
        issues=(
            "foundation-model-stack/fms-hf-tuning#471",
            "huggingface/transformers#30998",
        ),
        story="One row in thousands is a whole book that nobody cut: one batch, some hours in, "
        "takes all the memory, and has positions that the model never saw.",
        make=lambda: one_long(rare=True),
        mended=lambda: one_long(rare=False),
        rows=("truncated", "batches", "batch and steps", "expected minutes"),
        proof=absurdly_long,
    )
)


def long_answers(**options: Any) -> SFTTrainer:
    """Answers of about 1,400 tokens, with a maximum length or TRL's."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Repeat {word}"}],
            "completion": [{"role": "assistant", "content": f"{word} " * (1400 + row)}],
        }
        for row, word in enumerate(WORDS)
    ]
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    return tuned(rows, tokenizer, per_device_train_batch_size=1, **options)


def cut_by_default(trainer: Trainer) -> str:
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    ends = sum("<|im_end|>" in text for text in learned(trainer))
    assert set(lengths) == {trainer.args.max_length}, "rows are shorter than the maximum"
    assert not ends
    return f"All {len(lengths)} rows are cut at {lengths[0]:,} tokens, and no answer has its end."


add(
    Fault(
        name="answers-cut-at-the-default-length",
        kind=KIND,
        issues=(
            "unslothai/unsloth#2904",
            "huggingface/trl#2400",
            "hiyouga/LlamaFactory#3995",
        ),
        story="Nobody set max_length, and the default of 1,024 tokens cuts every long answer: the "
        "model never sees one end.",
        make=lambda: long_answers(),
        mended=lambda: long_answers(max_length=2048),
        rows=("truncated", "EOS supervised"),
        proof=cut_by_default,
    )
)


def with_added_tokens(told: bool) -> Trainer:
    """Rows with tokens added to a tokenizer; told: it is the one that the trainer gets."""
    adding = base_tokenizer()
    adding.add_tokens(["<question>", "<answer>"], special_tokens=True)
    texts = [f"<question>Say {word} twice<answer>{word} {word}{adding.eos_token}" for word in WORDS]
    ids = [adding(text)["input_ids"] for text in texts]
    tokenizer = adding if told else base_tokenizer()
    model = tiny(tokenizer, vocab_size=len(adding) + 126)  # many a vocabulary is rounded up
    return with_labels([{"input_ids": x, "labels": x} for x in ids], tokenizer, model)


def unknown_ids(trainer: Trainer) -> str:
    known = len(trainer.processing_class)
    columns = trainer.train_dataset["labels"]
    found = sum(any(label >= known for label in labels) for labels in columns)
    assert found, "the tokenizer knows all labels"
    highest = max(map(max, columns))
    return (
        f"{found} of {len(columns)} rows have labels up to {highest:,}; the tokenizer that is "
        f"saved with the model knows {known:,} tokens."
    )


add(
    Fault(
        name="labels-that-the-tokenizer-does-not-know",
        kind=KIND,
        issues=("huggingface/transformers#912",),
        story="Tokens were added to the tokenizer for the data, and the trainer was given a fresh "
        "one. The embedding is rounded up and has room for them: no error, and no use after.",
        make=lambda: with_added_tokens(told=False),
        mended=lambda: with_added_tokens(told=True),
        rows=("labels in range", "text and template"),
        proof=unknown_ids,
    )
)

# Order and amount


def stream(shuffled: bool) -> Trainer:
    """A stream of rows that stand by kind: first all of one word, then all of the next."""
    tokenizer = base_tokenizer()
    texts = [f"Say {word} {row}{tokenizer.eos_token}" for word in WORDS for row in range(40)]
    data = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
    rows = data.to_iterable_dataset()
    if shuffled:
        rows = rows.shuffle(seed=0, buffer_size=1000)
    return plain(rows, tiny(tokenizer), tokenizer, per_device_train_batch_size=4)


def by_kind(trainer: Trainer) -> str:
    texts = read(trainer)
    size, steps = trainer.args.per_device_train_batch_size, trainer.args.max_steps
    seen = {text.split()[1] for text in texts[: size * steps]}
    kinds = {text.split()[1] for text in texts}
    assert len(seen) == 1, f"{len(seen)} kinds of rows in the first steps"
    return (
        f"All {size * steps} rows of the {steps} steps are of one of the data's {len(kinds)} kinds."
    )


add(
    Fault(
        name="stream-in-the-files-order",
        kind=KIND,
        issues=("pytorch/torchtitan#128", "jingyaogong/minimind#503"),
        story="The data is a stream, which no trainer shuffles, and its files hold one kind after "
        "the other: the model learns each and forgets the one before.",
        make=lambda: stream(shuffled=False),
        mended=lambda: stream(shuffled=True),
        rows=("batches",),
        proof=by_kind,
    )
)


def copied(copies: int) -> Trainer:
    """Different rows, the first of which stands there many times."""
    tokenizer = base_tokenizer()
    rows = tokenized(tokenizer)
    rows = [rows[0]] * copies + rows[1:]
    return plain(rows, tiny(tokenizer), tokenizer)


def mostly_one_row(trainer: Trainer) -> str:
    rows = [tuple(ids) for ids in trainer.train_dataset["input_ids"]]
    most = max(rows.count(row) for row in set(rows))
    assert most > len(rows) / 2, f"the commonest row stands {most} times"
    return f"{most} of {len(rows)} rows are one and the same; there are {len(set(rows))} different."


add(
    Fault(
        name="one-row-many-times",
        kind=KIND,
        issues=("instructlab/instructlab#1003", "LiberAI/NSpM#9"),
        story="A join of two tables copied one row a hundred times. Nine batches in ten show the "
        "model the same text, and the loss falls nicely.",
        make=lambda: copied(100),
        mended=lambda: copied(1),
        rows=("batches", "text and template"),
        proof=mostly_one_row,
    )
)


def resumed(max_steps: int) -> Trainer:
    """A training that goes on from a checkpoint of 6 steps."""
    tokenizer = base_tokenizer()
    model = tiny(tokenizer)
    where = folder()
    model.save_pretrained(where)
    done = {"global_step": 6, "max_steps": 6, "num_train_epochs": 1, "epoch": 1.0}
    usual = {"train_batch_size": 2, "logging_steps": 1, "save_steps": 500, "eval_steps": 500}
    TrainerState(**done, **usual).save_to_json(f"{where}/trainer_state.json")
    rows = tokenized(tokenizer)
    return plain(rows, model, tokenizer, max_steps=max_steps, resume_from_checkpoint=where)


def nothing_left(trainer: Trainer) -> str:
    where = trainer.args.resume_from_checkpoint
    done = TrainerState.load_from_json(f"{where}/trainer_state.json").global_step
    asked = trainer.args.max_steps
    assert done >= asked, f"{asked - done} steps are left"
    return f"The checkpoint that is resumed from has {done} steps, and max_steps is {asked}."


add(
    Fault(
        name="resumed-with-no-steps-left",
        kind=KIND,
        issues=("Lightning-AI/pytorch-lightning#1922", "AI-Hypercomputer/maxtext#4046"),
        story="A finished training is resumed with new data and the same max_steps: it ends at "
        "once, saves the old model as the new one, and reports no error.",
        make=lambda: resumed(6),
        mended=lambda: resumed(12),
        rows=("batch and steps",),
        proof=nothing_left,
    )
)

# Images

IMAGES = "Images"
IMAGE = "<|image|>"


class Pictures:
    """Makes batches of captions with pictures, as collators for models with pictures do."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_image: bool, by_pad: bool) -> None:
        self.tokenizer = tokenizer
        self.mask_image = mask_image
        self.by_pad = by_pad

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        batch = dict(self.tokenizer.pad(ids, return_tensors="pt"))
        labels = batch["input_ids"].clone()
        if self.by_pad:
            labels[labels == self.tokenizer.pad_token_id] = -100
        else:
            labels[batch["attention_mask"] == 0] = -100
        if self.mask_image:
            labels[labels == self.tokenizer.convert_tokens_to_ids(IMAGE)] = -100
        if "picture" in rows[0]:
            batch["pixel_values"] = torch.tensor([row["picture"] for row in rows])
        return {**batch, "labels": labels}


def captions(
    mask_image: bool = True, by_pad: bool = False, pad: str = "<empty_output>", **options: Any
) -> Trainer:
    """A tiny LLaVA on captions of pictures, each of which takes four placeholders."""
    tokenizer = base_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.pad_token = pad
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**sizes, **heads, image_size=28, patch_size=14),
            text_config=LlamaConfig(
                **sizes,
                **heads,
                vocab_size=len(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            ),
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    rows = []
    for row, word in enumerate(WORDS):
        text = f"{IMAGE * 4}A {word}{' and more' * (row % 3)}{tokenizer.eos_token}"
        picture = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(row)).tolist()
        rows.append({"input_ids": tokenizer(text)["input_ids"], "picture": picture})
    settings = {"remove_unused_columns": False} | options
    collator = Pictures(tokenizer, mask_image, by_pad)
    return plain(rows, model, tokenizer, data_collator=collator, **settings)


def placeholders_trained(trainer: Trainer) -> str:
    texts = learned(trainer)
    found = sum(text.count(IMAGE) for text in texts)
    assert found, "no placeholder is trained"
    return f"The loss of {len(texts)} captions counts {found} placeholders of pictures."


def pictures_missing(trainer: Trainer) -> str:
    texts = read(trainer)
    assert all(IMAGE in text for text in texts)
    seen = sum("pixel_values" in batch for batch in batches(trainer))
    assert not seen, f"{seen} batches have their pictures"
    return f"All {len(texts)} rows have placeholders, and no batch has a picture."


def captions_without_end(trainer: Trainer) -> str:
    texts = learned(trainer)
    end = trainer.processing_class.eos_token
    assert all(end in text for text in read(trainer))
    found = sum(end in text for text in texts)
    assert not found, f"{found} captions train on their end"
    return f"All {len(texts)} captions have their end, and the loss counts none of these."


add(
    Fault(
        name="image-placeholders-trained",
        kind=IMAGES,
        issues=("NielsRogge/Transformers-Tutorials#511", "NielsRogge/Transformers-Tutorials#513"),
        story="Labels are a copy of the ids with the padding masked. The placeholders of the "
        "pictures are labels too, and most of the loss is about writing placeholders.",
        make=lambda: captions(mask_image=False),
        mended=lambda: captions(),
        rows=("supervised tokens", "prompt not supervised", "text and template"),
        proof=placeholders_trained,
    )
)
add(
    Fault(
        name="pictures-dropped-before-the-collator",
        kind=IMAGES,
        issues=("Blaizzy/mlx-vlm#979", "huggingface/trl#2563", "huggingface/transformers#38091"),
        story="The column of pictures is none of the model's arguments, and the trainer drops it "
        "before the collator. The model is trained to describe pictures that it never sees.",
        make=lambda: captions(remove_unused_columns=True),
        mended=lambda: captions(),
        rows=("batches",),
        proof=pictures_missing,
    )
)
add(
    Fault(
        name="ends-of-captions-masked",
        kind=IMAGES,
        issues=("NielsRogge/Transformers-Tutorials#456", "huggingface/trl#976"),
        story="The collator of many notebooks masks each label that is the padding token. Here "
        "that is the EOS token, and no caption learns to end.",
        make=lambda: captions(by_pad=True, pad="<|im_end|>"),
        mended=lambda: captions(by_pad=True),
        rows=("EOS supervised", "pad vs eos"),
        proof=captions_without_end,
    )
)
