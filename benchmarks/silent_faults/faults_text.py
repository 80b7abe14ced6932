"""Faults of the text: what is lost or doubled on the way from the messages to the tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from benchmarks.silent_faults.common import (
    WORDS,
    Fault,
    add,
    base_tokenizer,
    chat_tokenizer,
    lora,
    pairs,
    plain,
    sft,
    tiny,
    tokenizer_with,
)

KIND = "Text that is lost or doubled"
Rows = list[dict[str, Any]]


def batches(trainer: Trainer) -> Iterator[Mapping[str, Any]]:
    """All batches of the trainer's own loader."""
    torch.manual_seed(0)
    yield from trainer.get_train_dataloader()


def read(trainer: Trainer) -> list[str]:
    """What the model reads, a text for each row of each batch, without what the mask hides."""
    texts = []
    for batch in batches(trainer):
        hidden = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for ids, mask in zip(batch["input_ids"], hidden, strict=True):
            texts.append(trainer.processing_class.decode(ids[mask.bool()]))
    return texts


def learned(trainer: Trainer) -> list[str]:
    """What the loss counts, a text for each row of each batch."""
    return [
        trainer.processing_class.decode(labels[labels >= 0])
        for batch in batches(trainer)
        for labels in batch["labels"]
    ]


def tuned(rows: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> SFTTrainer:
    """LoRA of a tiny Llama with TRL."""
    return sft(rows, tiny(tokenizer), tokenizer, peft_config=lora(), **options)


def with_labels(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, model: Any = None, **options: Any
) -> Trainer:
    """All weights of a tiny Llama with a plain Trainer and a collator that pads given labels."""
    options.setdefault("data_collator", DataCollatorForSeq2Seq(tokenizer))
    return plain(rows, model or tiny(tokenizer), tokenizer, **options)


def nothing_of(found: int, of: int, what: str) -> str:
    """A sentence on what no row has; raises where some row has it."""
    assert of
    assert not found, f"{found} of {of} rows have {what}"
    return f"None of the {of} rows has {what}."


# Reasoning


def thought(word: str, turn: str = "only") -> str:
    """An answer with the reasoning before it."""
    return f"<think>\nThe {turn} thought is about a {word}.\n</think>\n\n{word} {word}"


def reasoned(split: bool = False) -> Rows:
    """Conversations of two answers with reasoning; split: a row for each answer."""
    rows: Rows = []
    for word in WORDS:
        messages = [
            {"role": "user", "content": f"Say {word} twice"},
            {"role": "assistant", "content": thought(word, "first")},
            {"role": "user", "content": "Again, please"},
            {"role": "assistant", "content": thought(word, "second")},
        ]
        if split:
            for end in (2, 4):
                rows.append({"prompt": messages[: end - 1], "completion": messages[end - 1 : end]})
        else:
            rows.append({"messages": messages})
    return rows


def earlier_reasoning(trainer: Trainer) -> str:
    texts = learned(trainer)
    first, second = (sum(f"The {turn} thought" in x for x in texts) for turn in ("first", "second"))
    assert second, "nobody reasons"
    assert not first, f"{first} first thoughts are trained on"
    return (
        f"Of {len(texts)} conversations, {second} train on the second answer's reasoning and "
        f"{first} on the first's."
    )


add(
    Fault(
        name="earlier-reasoning-dropped",
        kind=KIND,
        issues=("modelscope/ms-swift#4939", "axon-rl/gem#44"),
        story="Conversations with reasoning in each answer are rendered with Qwen3's template. It "
        "removes the reasoning of all turns but the last, so most answers are trained without it.",
        make=lambda: tuned(reasoned(), tokenizer_with("qwen3")),
        mended=lambda: tuned(reasoned(split=True), tokenizer_with("qwen3")),
        rows=("text and template",),
        proof=earlier_reasoning,
    )
)


def distilled(keep: bool) -> SFTTrainer:
    """Single answers with reasoning; keep: under the template variant made for training."""
    tokenizer = tokenizer_with("deepseek_r1_distill")
    if keep:
        cut = "{% set content = content.split('</think>')[-1] %}"
        assert cut in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(cut, "")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Say {word} twice"}],
            "completion": [{"role": "assistant", "content": thought(word)}],
        }
        for word in WORDS
    ]
    return tuned(rows, tokenizer)


def no_reasoning(trainer: Trainer) -> str:
    texts = read(trainer)
    return nothing_of(
        sum("The only thought" in text for text in texts), len(texts), "the answer's reasoning"
    )


add(
    Fault(
        name="all-reasoning-cut",
        kind=KIND,
        issues=("huggingface/trl#6766", "huggingface/open-r1#349"),
        story="A distilled DeepSeek-R1 is tuned on answers with reasoning. Its template keeps only "
        "what follows </think>, and the model is trained to answer at once.",
        make=lambda: distilled(keep=False),
        mended=lambda: distilled(keep=True),
        rows=("text and template",),
        proof=no_reasoning,
    )
)


# Tools


def tool(name: str, parameter: str) -> dict[str, Any]:
    """The description of a function of one parameter."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Ask for the {name}.",
            "parameters": {"type": "object", "properties": {parameter: {"type": "string"}}},
        },
    }


def call(name: str, **arguments: str) -> dict[str, Any]:
    """An answer that calls a function."""
    function = {"name": name, "arguments": arguments}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }


def calls(mixed: bool) -> Rows:
    """Questions answered by calls; mixed: of two functions with different parameters."""
    rows = []
    for row, word in enumerate(WORDS):
        odd = mixed and row % 2
        answer = call("price", item=word) if odd else call("weather", city=word)
        question = {"role": "user", "content": f"What about {word}?"}
        tools = [tool("price", "item") if odd else tool("weather", "city")]
        rows.append({"prompt": [question], "completion": [answer], "tools": tools})
    return rows


def no_calls(trainer: Trainer) -> str:
    texts = learned(trainer)
    return nothing_of(sum("weather" in text for text in texts), len(texts), "its call in the loss")


add(
    Fault(
        name="tool-calls-not-rendered",
        kind=KIND,
        issues=("huggingface/trl#5517",),
        story="Answers that call a function are trained with Llama 3's first template, which reads "
        "only the content: the model learns to answer with nothing.",
        make=lambda: tuned(calls(mixed=False), tokenizer_with("llama3")),
        mended=lambda: tuned(calls(mixed=False), tokenizer_with("qwen2_5")),
        rows=("text and template",),
        proof=no_calls,
    )
)


def no_tools(trainer: Trainer) -> str:
    texts = read(trainer)
    assert all("tool_call" in text for text in texts)
    return nothing_of(
        sum("Ask for the weather" in text for text in texts),
        len(texts),
        "the description of the functions that its answer calls",
    )


def under_another_name(name: str) -> Rows:
    """Rows whose functions stand in a column of that name, as text."""
    return [
        {"prompt": row["prompt"], "completion": row["completion"], name: row["tools"]}
        for row in calls(mixed=False)
    ]


add(
    Fault(
        name="tools-in-a-column-of-another-name",
        kind=KIND,
        issues=("huggingface/trl#2455",),
        story="The functions stand in a column `functions`, and the trainer asks for `tools`: "
        "calls are trained whose functions the prompt never mentions.",
        make=lambda: tuned(under_another_name("functions"), tokenizer_with("qwen2_5")),
        mended=lambda: tuned(under_another_name("tools"), tokenizer_with("qwen2_5")),
        rows=("text and template",),
        proof=no_tools,
    )
)


def null_arguments(trainer: Trainer) -> str:
    texts = learned(trainer)
    filled = sum('"item": null' in text or '"city": null' in text for text in texts)
    assert filled, "no call has an argument null"
    return f"{filled} of {len(texts)} trained calls have an argument null that the data never had."


add(
    Fault(
        name="tool-arguments-filled-with-null",
        kind=KIND,
        issues=("huggingface/datasets#7617", "modelscope/ms-swift#10125"),
        story="Calls of different functions are put into one table, which gives every call the "
        "arguments of all; the template writes them out as null, and the model learns to.",
        make=lambda: tuned(calls(mixed=True), tokenizer_with("qwen2_5")),
        mended=lambda: tuned(
            Dataset.from_list(calls(mixed=True), on_mixed_types="use_json"),
            tokenizer_with("qwen2_5"),
        ),
        rows=("text and template",),
        proof=null_arguments,
    )
)


# Roles and contents


def instructed(role: str) -> Rows:
    """An instruction of some role before each question."""
    rows = pairs()
    for row in rows:
        row["prompt"].insert(0, {"role": role, "content": "Answer in capital letters."})
        row["completion"][0]["content"] = row["completion"][0]["content"].upper()
    return rows


def no_instruction(trainer: Trainer) -> str:
    texts = read(trainer)
    found = sum("capital letters" in text for text in texts)
    return nothing_of(found, len(texts), "the instruction in its prompt")


add(
    Fault(
        name="developer-messages-dropped",
        kind=KIND,
        issues=("sgl-project/sglang#40082",),
        story="The instruction is a message of the role `developer`, which the template does not "
        "know and leaves out: the answers follow a rule that no prompt states.",
        make=lambda: tuned(instructed("developer"), tokenizer_with("qwen2_5")),
        mended=lambda: tuned(instructed("system"), tokenizer_with("qwen2_5")),
        rows=("text and template",),
        proof=no_instruction,
    )
)


def shared(user: str, assistant: str) -> Rows:
    """Conversations with `from` and `value`, as ShareGPT has them."""
    return [
        {
            "conversations": [
                {"from": user, "value": row["prompt"][0]["content"]},
                {"from": assistant, "value": row["completion"][0]["content"]},
            ]
        }
        for row in pairs()
    ]


def no_conversation(trainer: Trainer) -> str:
    texts = read(trainer)
    sample = min(texts, key=len)
    found = sum("Say " in text for text in texts)
    return f"{nothing_of(found, len(texts), 'its messages')} All that is left: {sample!r}."


add(
    Fault(
        name="sharegpt-roles-dropped",
        kind=KIND,
        issues=("huggingface/trl#2083",),
        story="ShareGPT's roles `human` and `gpt` are kept as they are, and the template renders "
        "`user` and `assistant` only: of every conversation the system prompt is left.",
        make=lambda: tuned(shared("human", "gpt"), tokenizer_with("qwen2_5")),
        mended=lambda: tuned(
            [{"messages": row["prompt"] + row["completion"]} for row in pairs()],
            tokenizer_with("qwen2_5"),
            assistant_only_loss=True,
        ),
        rows=("text and template", "supervised tokens"),
        proof=no_conversation,
    )
)


def in_parts(joined: bool) -> Rows:
    """Contents as lists of parts, or as the text of those."""
    rows = pairs()
    for row in rows:
        for message in row["prompt"] + row["completion"]:
            if not joined:
                message["content"] = [{"type": "text", "text": message["content"]}]
    return rows


def written_by_repr(trainer: Trainer) -> str:
    texts = read(trainer)
    found = sum("'type': 'text'" in text for text in texts)
    assert found, "no row has a list of parts in it"
    return f"{found} of {len(texts)} rows have a list of Python in them: {texts[0][-60:]!r}."


def llama_with_parts(joined: bool) -> SFTTrainer:
    """The first ChatML template that came with many models: it writes content as it is."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tuned(in_parts(joined), tokenizer)


add(
    Fault(
        name="contents-written-as-python-lists",
        kind=KIND,
        issues=("abetlen/llama-cpp-python#2324",),
        story="Contents are lists of parts, as for models with pictures; a template for text "
        "writes the lists out, and the model learns to answer in brackets and braces.",
        make=lambda: llama_with_parts(joined=False),
        mended=lambda: llama_with_parts(joined=True),
        rows=("text and template",),
        proof=written_by_repr,
    )
)


# Text that somebody made before


def twice(again: bool) -> SFTTrainer:
    """Chats whose prompts were rendered before; again: given as messages all the same."""
    tokenizer = chat_tokenizer()
    rows = pairs()
    for row in rows:
        text = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        answer = row["completion"][0]["content"] + tokenizer.eos_token
        if again:
            row["prompt"] = [{"role": "user", "content": text}]
            row["completion"] = [{"role": "assistant", "content": answer}]
        else:
            row.update(prompt=text, completion=answer)
    return tuned(rows, tokenizer)


def marks_in_turns(trainer: Trainer) -> str:
    texts = read(trainer)
    count = [text.count("<|im_start|>assistant") for text in texts]
    assert min(count) > 1, "no turn within a turn"
    return f"Each of the {len(texts)} rows opens the assistant's only turn {count[0]} times."


add(
    Fault(
        name="rendered-text-rendered-again",
        kind=KIND,
        issues=("areal-project/AReaL#127",),
        story="Prompts that had been rendered with the chat template were put into messages, and "
        "the trainer rendered those: the model learns to read templates within templates.",
        make=lambda: twice(again=True),
        mended=lambda: twice(again=False),
        rows=("text and template",),
        proof=marks_in_turns,
    )
)


def beginning() -> PreTrainedTokenizerBase:
    """A tokenizer that puts BOS before a text, with a template that does so too, as Llama 3's."""
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<empty_output>"
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    return tokenizer


def begun(row: Callable[[str, PreTrainedTokenizerBase], dict[str, Any]]) -> SFTTrainer:
    """Chats rendered by oneself; `row` makes a row of a text that begins with BOS."""
    tokenizer = beginning()
    texts = [
        tokenizer.apply_chat_template(x["prompt"] + x["completion"], tokenize=False)
        for x in pairs()
    ]
    return tuned([row(text.rstrip(), tokenizer) for text in texts], tokenizer)


def bos_count(trainer: Trainer) -> tuple[int, list[int]]:
    """The number of BOS that each row begins with, and that of all rows."""
    bos = trainer.processing_class.bos_token
    texts = read(trainer)
    return len(texts), [text[: 2 * len(bos)].count(bos) for text in texts]


def two_bos(trainer: Trainer) -> str:
    rows, counts = bos_count(trainer)
    assert min(counts) == 2, counts
    return f"All {rows} rows begin with two BOS tokens; a chat in use begins with one."


def no_bos(trainer: Trainer) -> str:
    rows, counts = bos_count(trainer)
    assert max(counts) == 0, counts
    tokenizer = trainer.processing_class
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert chat.startswith(tokenizer.bos_token)
    return f"None of the {rows} rows begins with BOS; each chat in use does."


def without_bos(text: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    text = text.removeprefix(tokenizer.bos_token)
    return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}


add(
    Fault(
        name="bos-twice",
        kind=KIND,
        issues=("huggingface/trl#1400", "OpenRLHF/OpenRLHF#393", "unslothai/unsloth#2648"),
        story="Texts were rendered with a template that writes BOS, and tokenized by a tokenizer "
        "that adds BOS: every row begins with two.",
        make=lambda: begun(lambda text, _: {"text": text}),
        mended=lambda: begun(lambda text, tok: {"text": text.removeprefix(tok.bos_token)}),
        rows=("text and template",),
        proof=two_bos,
    )
)
add(
    Fault(
        name="bos-never",
        kind=KIND,
        issues=("unslothai/notebooks#251", "EleutherAI/lm-evaluation-harness#1465"),
        story="Afraid of two BOS tokens, somebody cut it from the text and told the tokenizer to "
        "add none: a model that saw BOS before every text is tuned without.",
        make=lambda: begun(without_bos),
        mended=lambda: begun(
            lambda text, tok: {"input_ids": tok(text, add_special_tokens=False)["input_ids"]}
        ),
        rows=("text and template",),
        proof=no_bos,
    )
)


def as_python(right: bool) -> SFTTrainer:
    """A column `text` made of messages with `str`, or with the chat template."""
    tokenizer = chat_tokenizer()
    rows = []
    for row in pairs():
        messages = row["prompt"] + row["completion"]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
        rows.append({"text": rendered if right else str(messages)})
    return tuned(rows, tokenizer)


def python_messages(trainer: Trainer) -> str:
    texts = read(trainer)
    found = sum("'role': 'assistant', 'content':" in text for text in texts)
    assert found, "no row is a list of Python"
    assert not any("<|im_start|>" in text for text in texts)
    return f"{found} of {len(texts)} rows are lists of Python, without one mark of a turn."


add(
    Fault(
        name="messages-as-python-text",
        kind=KIND,
        issues=("huggingface/trl#3140",),
        story="The column of text was made with str(messages): the chat model is trained to "
        "continue Python lists, and its chats hardly change.",
        make=lambda: as_python(right=False),
        mended=lambda: as_python(right=True),
        rows=("text and template",),
        proof=python_messages,
    )
)


def alpaca(right: bool) -> SFTTrainer:
    """Instructions in Alpaca's form, or as messages, for a chat model."""
    rows = copy.deepcopy(pairs())
    if not right:
        for row in rows:
            question = row["prompt"][0]["content"]
            row["prompt"] = f"### Instruction:\n{question}\n\n### Response:\n"
            row["completion"] = row["completion"][0]["content"]
    return tuned(rows, chat_tokenizer())


def another_format(trainer: Trainer) -> str:
    texts = read(trainer)
    found = sum("### Response:" in text and "<|im_start|>" not in text for text in texts)
    assert found, "no row is in Alpaca's form"
    assert trainer.processing_class.chat_template
    return (
        f"{found} of {len(texts)} rows are in Alpaca's form and have no mark of the chat template "
        "that the tokenizer has."
    )


add(
    Fault(
        name="alpaca-text-for-a-chat-model",
        kind=KIND,
        issues=("huggingface/trl#3468", "huggingface/trl#3140"),
        story="A chat model is tuned on Alpaca's form, with ### Response: before the answer. In "
        "its chats, rendered with its template, little of that is found.",
        make=lambda: alpaca(right=False),
        mended=lambda: alpaca(right=True),
        rows=("text and template",),
        proof=another_format,
    )
)


def foreign_ids(right: bool) -> Trainer:
    """Rows of ids that another tokenizer made: one whose entries stand at other places."""
    tokenizer = base_tokenizer()
    texts = [f"Say {word} twice: {word} {word}{tokenizer.eos_token}" for word in WORDS]
    rows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if not right:  # all but the special tokens are shifted
            ids = [i if i in tokenizer.all_special_ids else (i + 1000) % 49000 + 20 for i in ids]
        rows.append({"input_ids": ids, "labels": ids})
    return with_labels(rows, tokenizer)


def not_the_text(trainer: Trainer) -> str:
    texts = read(trainer)
    found = sum("twice" in text for text in texts)
    return f"{nothing_of(found, len(texts), 'its words')} One reads {texts[0][:40]!r}."


add(
    Fault(
        name="ids-of-another-tokenizer",
        kind=KIND,
        issues=("axolotl-ai-cloud/axolotl#1265", "huggingface/transformers#7632"),
        story="The rows on the disk had been tokenized for another model. Every id exists in this "
        "one's vocabulary too, and the model is trained on texts of no sense.",
        make=lambda: foreign_ids(right=False),
        mended=lambda: foreign_ids(right=True),
        rows=("text and template",),
        proof=not_the_text,
    )
)
