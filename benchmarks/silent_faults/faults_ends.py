"""Faults of the ends: answers whose end is not trained, or that generation does not know."""

from __future__ import annotations

from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from benchmarks.silent_faults.common import (
    WORDS,
    Fault,
    add,
    base_tokenizer,
    chat_tokenizer,
    chats,
    pairs,
    plain,
    tiny,
    tokenized,
)
from benchmarks.silent_faults.faults_text import (
    Rows,
    batches,
    learned,
    nothing_of,
    read,
    tuned,
    with_labels,
)

KIND = "Ends that generation does not know"


def ends_learned(trainer: Trainer) -> tuple[int, int]:
    """How many of the rows' losses count an EOS token, and the number of rows."""
    texts = learned(trainer)
    return sum(trainer.processing_class.eos_token in text for text in texts), len(texts)


def no_end_learned(trainer: Trainer) -> str:
    found, rows = ends_learned(trainer)
    return nothing_of(found, rows, "the EOS token in the loss")


def with_end(end: str) -> SFTTrainer:
    """Chats in ChatML; `end` is the tokenizer's, and through it generation's, EOS token."""
    tokenizer = chat_tokenizer()
    tokenizer.eos_token = end
    tokenizer.pad_token = "<empty_output>"
    return tuned(pairs(), tokenizer)


def end_unknown(trainer: Trainer) -> str:
    tokenizer = trainer.processing_class
    known = trainer.model.generation_config.eos_token_id
    known = tokenizer.convert_ids_to_tokens(known if isinstance(known, list) else [known])
    texts = [text.rstrip() for text in learned(trainer)]
    assert all(text.endswith("<|im_end|>") for text in texts)
    assert "<|im_end|>" not in known, "generation stops at the trained end"
    return f"All {len(texts)} answers end with <|im_end|>, and generation stops at {known[0]} only."


add(
    Fault(
        name="end-that-generation-ignores",
        kind=KIND,
        issues=(
            "QwenLM/Qwen3#927",
            "hiyouga/LlamaFactory#7454",
            "meta-llama/llama-cookbook#640",
        ),
        story="A base model is given a chat template. Answers end with <|im_end|>, and generation "
        "still waits for <|endoftext|>: the tuned model ends its turn and talks on.",
        make=lambda: with_end("<|endoftext|>"),
        mended=lambda: with_end("<|im_end|>"),
        rows=("EOS supervised",),
        proof=end_unknown,
    )
)


def own_text(end: bool) -> Trainer:
    """Texts tokenized by oneself, with or without an end."""
    tokenizer = base_tokenizer()
    rows = []
    for row in tokenized(tokenizer):
        ids = row["input_ids"] if end else row["input_ids"][:-1]
        rows.append({"input_ids": ids, "labels": ids})
    return with_labels(rows, tokenizer)


add(
    Fault(
        name="no-end-in-the-text",
        kind=KIND,
        issues=("tatsu-lab/stanford_alpaca#126", "huggingface/trl#734"),
        story="The texts are tokenized as they are; the tokenizer adds no end, as most do not, and "
        "the tuned model answers until it is cut off.",
        make=lambda: own_text(end=False),
        mended=lambda: own_text(end=True),
        rows=("EOS supervised",),
        proof=no_end_learned,
    )
)


def pads(pad: str) -> Trainer:
    """Texts with ends under the usual collator, and some padding token."""
    tokenizer = base_tokenizer()
    tokenizer.pad_token = pad
    return plain(tokenized(tokenizer), tiny(tokenizer), tokenizer)


def end_masked(trainer: Trainer) -> str:
    end = trainer.processing_class.eos_token_id
    there = sum(row.count(end) for row in trainer.train_dataset["input_ids"])
    assert there == len(trainer.train_dataset)
    return f"All rows end with the EOS token. {no_end_learned(trainer)}"


add(
    Fault(
        name="pad-is-the-end",
        kind=KIND,
        issues=(
            "huggingface/trl#976",
            "huggingface/blog#1302",
            "mlabonne/llm-course#33",
            "unslothai/unsloth#416",
        ),
        story="tokenizer.pad_token = tokenizer.eos_token, as tutorials have it. The collator masks "
        "all padding tokens, and with them the end of every answer.",
        make=lambda: pads("<|im_end|>"),
        mended=lambda: pads("<empty_output>"),
        rows=("pad vs eos", "EOS supervised"),
        proof=end_masked,
    )
)


def exclaimed(pad: str) -> Trainer:
    """Texts with exclamation marks, and some padding token."""
    tokenizer = base_tokenizer()
    tokenizer.pad_token = pad
    texts = [f"Say {word} aloud: {word}!{tokenizer.eos_token}" for word in WORDS]
    rows = [dict(tokenizer(text)) for text in texts]
    return plain(rows, tiny(tokenizer), tokenizer)


def mark_masked(trainer: Trainer) -> str:
    texts = read(trainer)
    assert all("!" in text for text in texts)
    return nothing_of(
        sum("!" in text for text in learned(trainer)),
        len(texts),
        "the exclamation mark of its text in the loss",
    )


add(
    Fault(
        name="pad-used-in-the-text",
        kind=KIND,
        issues=("huggingface/trl#1191",),
        story="The first token of the vocabulary, `!`, was taken for padding. The collator masks "
        "it wherever it stands, and the tuned model no longer writes exclamation marks.",
        make=lambda: exclaimed("!"),
        mended=lambda: exclaimed("<empty_output>"),
        rows=("pad vs eos",),
        proof=mark_masked,
    )
)


def cut(length: int) -> Trainer:
    """Long answers tokenized by oneself, with truncation at some length."""
    tokenizer = base_tokenizer()
    rows = []
    for row, word in enumerate(WORDS * 2):
        text = f"Repeat {word}:" + f" {word}" * (70 + row) + tokenizer.eos_token
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        rows.append({"input_ids": ids, "labels": ids})
    return with_labels(rows, tokenizer)


def all_cut(trainer: Trainer) -> str:
    lengths = {len(ids) for ids in trainer.train_dataset["input_ids"]}
    assert len(lengths) == 1, "the rows have their own lengths"
    return f"All rows have {lengths.pop()} tokens. {no_end_learned(trainer)}"


add(
    Fault(
        name="own-truncation-takes-the-ends",
        kind=KIND,
        issues=("hiyouga/LlamaFactory#3945", "huggingface/trl#4698"),
        story="truncation=True, max_length=64 in one's own tokenizing cuts nearly all answers in "
        "the middle. The trainer sees rows of 64 tokens and knows of no longer ones.",
        make=lambda: cut(64),
        mended=lambda: cut(512),
        rows=("truncated", "EOS supervised"),
        proof=all_cut,
    )
)


def padded(mask: bool) -> Trainer:
    """Texts padded to one length before training; mask: padding is no label and not read."""
    tokenizer = base_tokenizer()
    rows = []
    for row in tokenized(tokenizer):
        padded_row = tokenizer.pad(row, padding="max_length", max_length=64)
        ids, seen = padded_row["input_ids"], padded_row["attention_mask"]
        if mask:
            labels = [i if one else -100 for i, one in zip(ids, seen, strict=True)]
            rows.append({"input_ids": ids, "attention_mask": seen, "labels": labels})
        else:
            rows.append({"input_ids": ids, "labels": ids})
    return with_labels(rows, tokenizer)


def padding_trained(trainer: Trainer) -> str:
    pad = trainer.processing_class.pad_token_id
    count = of = 0
    for batch in batches(trainer):
        count += int((batch["labels"] == pad).sum())
        of += int((batch["labels"] != -100).sum())
    assert count, "no padding is trained"
    return f"{count} of the {of} tokens that the loss counts are padding."


add(
    Fault(
        name="padding-trained",
        kind=KIND,
        issues=("huggingface/transformers#7135", "huggingface/transformers#2001"),
        story="Texts were padded to one length beforehand, and only ids and labels were kept. The "
        "loss looks fine, for most of it is padding that predicts padding.",
        make=lambda: padded(mask=False),
        mended=lambda: padded(mask=True),
        rows=("pad vs eos", "supervised tokens"),
        proof=padding_trained,
    )
)


def plain_turns(each: bool) -> Trainer:
    """Conversations in a form of one's own; an end after each answer, or after the last."""
    tokenizer = base_tokenizer()
    rows = []
    for row in chats():
        ids: list[int] = []
        labels: list[int] = []
        for turn, message in enumerate(row["messages"]):
            if message["role"] == "user":
                part = tokenizer(f"User: {message['content']}\nAssistant:")["input_ids"]
                labels += [-100] * len(part)
            else:
                last = turn == len(row["messages"]) - 1
                end = tokenizer.eos_token if each or last else ""
                part = tokenizer(f" {message['content']}{end}")["input_ids"]
                labels += part
            ids += part
        rows.append({"input_ids": ids, "labels": labels})
    return with_labels(rows, tokenizer)


def half_the_ends(trainer: Trainer) -> str:
    answers = sum(text.count("Assistant:") for text in read(trainer))
    ends = sum(text.count(trainer.processing_class.eos_token) for text in learned(trainer))
    assert ends < answers, "each answer has its end"
    return f"Of {answers} answers, {ends} end with the EOS token; the others just stop."


add(
    Fault(
        name="only-the-last-answer-ends",
        kind=KIND,
        issues=("axolotl-ai-cloud/axolotl#1847", "lm-sys/FastChat#3063"),
        story="The EOS token is put after the whole conversation. Earlier answers have none, and "
        "the tuned model goes on to write the user's next question.",
        make=lambda: plain_turns(each=False),
        mended=lambda: plain_turns(each=True),
        rows=("EOS supervised",),
        proof=half_the_ends,
    )
)


def generation_marks(end_within: bool) -> SFTTrainer:
    """Chats whose template marks the answers for the loss, with or without their ends."""
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    end = "<|im_end|>"
    inside, outside = (end, "") if end_within else ("", end)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
        f"{inside}{{% endgeneration %}}{outside}"
        f"{{% else %}}{{{{ message['content'] }}}}{end}{{% endif %}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tuned(chats(), tokenizer, assistant_only_loss=True)


add(
    Fault(
        name="end-outside-the-generation-marks",
        kind=KIND,
        issues=("meta-pytorch/torchtune#2792", "axolotl-ai-cloud/axolotl#1847"),
        story="{% endgeneration %} was put before <|im_end|> in the chat template: all answers are "
        "trained, and none of their ends.",
        make=lambda: generation_marks(end_within=False),
        mended=lambda: generation_marks(end_within=True),
        rows=("EOS supervised",),
        proof=no_end_learned,
    )
)


def written_end(end: str) -> Trainer:
    """Texts that end with some letters, which may be the EOS token or not."""
    tokenizer: PreTrainedTokenizerBase = base_tokenizer()
    rows: Rows = [
        dict(tokenizer(f"Say {word} twice, number {row}: {word} {word}{end}"))
        for row, word in enumerate(WORDS)
    ]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return plain(rows, tiny(tokenizer), tokenizer, data_collator=collator)


def end_in_pieces(trainer: Trainer) -> str:
    texts = learned(trainer)
    assert all(text.endswith("</s>") for text in texts), "no row ends with </s>"
    pieces = len(trainer.processing_class("x</s>")["input_ids"]) - 1
    return f"</s> is {pieces} tokens here. {no_end_learned(trainer)}"


add(
    Fault(
        name="end-of-another-model-in-the-text",
        kind=KIND,
        issues=("huggingface/peft#1003", "allenai/open-instruct#113"),
        story="Texts end with </s>, copied from a recipe for Llama 2. To this tokenizer it is a "
        "few ordinary letters: the model writes them and goes on.",
        make=lambda: written_end("</s>"),
        mended=lambda: written_end("<|im_end|>"),
        rows=("EOS supervised",),
        proof=end_in_pieces,
    )
)
