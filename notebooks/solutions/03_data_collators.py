# %% [markdown]
# # 03 · Pig Latin and data collators
#
# **You will learn** how texts become a batch, and what decides which tokens a model is trained on.
# You will also see three small mistakes that spoil a fine-tuning without an error: a prompt that
# is trained on, an EOS token that is not, and a mask that is all zeros.
#
# **You need** notebook 01, and an idea of what LoRA is (notebook 02).
#
# **It takes** about 40 minutes of reading and trying. The cells themselves run in about two
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Amina fine-tunes a chat model to write one line about each book in her shop. The loss falls, but
# the tuned model writes line after line and never stops, because it was not trained on the token
# that ends a text. You will make her mistake, and learn to see it before a training starts.
#
# All results in the text are from SmolLM2-135M.

# %%
from course_utils import describe

print(describe())

# %% [markdown]
# ## 1. The task
#
# In Pig Latin, the consonants at the beginning of a word move to its end, and *ay* follows. A word
# that begins with a vowel gets *way* instead. (*qu* moves as one.)
#
# The split `unseen` of the course's sentences shares no content word with the other splits, so a
# model that does well on it has learned the rule, and not a list of words.

# %%
import logging

import datasets
import pandas as pd

from course_utils.data import load_data
from course_utils.display import text_table

datasets.disable_progress_bars()
pig_latin = load_data("pig_latin")
text_table(pig_latin["train"].select(range(4)).to_pandas())

# %% [markdown]
# Can the chat model do it without any tuning? We show it two examples in the prompt.

# %% tags=["value:untuned"]
from course_utils import runner
from course_utils.scoring import word_accuracy

chat = runner("chat")
request = (
    "Translate into Pig Latin. For example, 'The string is red.' becomes "
    "'Ethay ingstray isway edray.', and 'I eat a pear.' becomes 'Iway eatway away earpay.'\n\n"
)
held_out = pig_latin["unseen"].select(range(8))
before = chat([request + sentence for sentence in held_out["sentence"]], max_new_tokens=40)

accuracy = word_accuracy(before, held_out["pig_latin"])
print(f"words right: {accuracy:.0%}")
text_table(pd.DataFrame({"wanted": held_out["pig_latin"], "got": before}).head(3))

# %% tags=["claim"]
assert accuracy < 0.2

# %% [markdown]
# It cannot: no word of eight sentences is right. The model repeats pieces of the examples.
# Notebook 03.1 tunes the model for this task.
#
# ## 2. What a collator does
#
# Examples differ in length, but a tensor needs rows of one length. The **data collator** takes a
# list of examples and makes a **batch**: the examples that are computed together in one step.
#
# First, the *tokenizer* cuts each text into tokens and numbers them. Here are three sentences,
# without a collator:

# %%
import torch

model, tokenizer = chat.model, chat.tokenizer
tokenizer.padding_side = "right"  # for training; the runner had it on the left, for generating


def as_text(row):
    """A plain format: what to translate, then the translation, then the EOS token."""
    return f"English: {row['sentence']}\nPig Latin: {row['pig_latin']}{tokenizer.eos_token}"


examples = [tokenizer(as_text(row)) for row in pig_latin["train"].select([4, 1, 2])]
lengths = [len(example["input_ids"]) for example in examples]
print("tokens:", lengths)
try:
    torch.tensor([example["input_ids"] for example in examples])
except ValueError as error:
    print("Without a collator:", error)

# %% tags=["claim"]
assert len(set(lengths)) > 1

# %% [markdown]
# PyTorch refuses rows of 22, 31 and 37 tokens. The shorter rows need **padding**: tokens without
# meaning that make all rows equally long.
#
# `DataCollatorForLanguageModeling` pads the rows, and adds the **labels**: for each token, what
# the model should have said there. With `mlm=False` (no *masked* language modelling), the labels
# are a copy of the inputs, except that padding gets -100. The loss ignores tokens with the label
# -100.
#
# For now, the padding token is one that does not occur in our texts. For each tensor, the cell
# prints the shape and the end of the first row.

# %%
from transformers import DataCollatorForLanguageModeling

end_token = tokenizer.eos_token
tokenizer.pad_token = "<|endoftext|>" if end_token != "<|endoftext|>" else tokenizer.unk_token
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
batch = collate([dict(example) for example in examples])
for name, tensor in batch.items():
    print(f"{name:<15} {tuple(tensor.shape)}  …{tensor[0, -6:].tolist()}")

# %% [markdown]
# The first row is the shortest, so its end is all padding. A **mask** says which tokens count:
# `attention_mask` says which are read, and the labels say which are trained on. A wrong mask
# raises no error, so draw it. Blue tokens are trained on, grey tokens are only read, and
# struck-through tokens are padding. A dashed frame marks special tokens, such as the EOS token,
# and ↵ is a line break.

# %% tags=["mask", "value:mask-texts"]
from course_utils import masks

masks.show(batch, tokenizer)

# %% [markdown]
# **Guess first.** The model learns to write everything that is blue, even the prompt, from
# `English:` to `Pig Latin:`. Which share of the blue tokens is prompt?

# %%
my_guess = 0.5

# %% tags=["value:prompt-share"]
prompt_tokens = trained_tokens = 0
for row in pig_latin["train"].select(range(200)):
    prompt = f"English: {row['sentence']}\nPig Latin:"
    prompt_tokens += len(tokenizer(prompt)["input_ids"])
    trained_tokens += len(tokenizer(as_text(row))["input_ids"])
share = prompt_tokens / trained_tokens
print(f"{share:.0%} of what is trained on is prompt; you said {my_guess}")

# %% tags=["claim"]
assert share > 0.25

# %% [markdown]
# The answer is 42% (200 examples). Many people guess more than a half, because the prompt looks
# longer. But the strange words of Pig Latin are cut into more tokens.
#
# ## 3. Train on completions only
#
# **TRL** is a library with trainers for language models; its `SFTTrainer` is the one for
# supervised fine-tuning. Give it data with two columns: the `prompt`, and the **completion**, the
# part that the model should learn to write. Then it trains on the completions only. Both columns
# can hold plain texts or, for a chat model, messages:

# %% tags=["value:mask-completions"]
import tempfile
import warnings

from trl import SFTConfig, SFTTrainer

# Inside the libraries, of no concern here: an argument's old name, notes on the tokenizer.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
logging.getLogger("transformers").setLevel(logging.ERROR)


def make_trainer(rows, model=model, **options):
    """An SFTTrainer on some rows, made for its batches."""
    on_cpu = {"use_cpu": True, "bf16": False} if model.device.type == "cpu" else {}
    common = {"per_device_train_batch_size": 3, "max_length": 256, **on_cpu}
    folder = tempfile.mkdtemp()  # nothing is kept
    config = SFTConfig(output_dir=folder, report_to="none", **{**common, **options})
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def first_batch(trainer):
    """The first batch as the model will get it."""
    return next(iter(trainer.get_train_dataloader()))


some = pig_latin["train"].select(range(40))
as_messages = some.map(
    lambda row: {
        "prompt": [{"role": "user", "content": f"Translate into Pig Latin: {row['sentence']}"}],
        "completion": [{"role": "assistant", "content": row["pig_latin"]}],
    },
    remove_columns=some.column_names,
)
trainer = make_trainer(as_messages)
masks.show(first_batch(trainer), tokenizer)

# %% [markdown]
# The prompt is grey, with the system prompt that SmolLM2's template adds. The answer is blue, and
# so is the EOS token `<|im_end|>`, from which the model learns to stop. (The blue line break after
# it does no harm, because generation stops before it.)
#
# ### Longer conversations
#
# With several turns, every turn of the assistant should be trained on. For this, TRL takes a
# column `messages` and `assistant_only_loss=True`. The chat template has to mark the assistant's
# words, with `{% generation %}` before them and `{% endgeneration %}` after them. Most models'
# *stock templates*, the ones that come with them, have no marks, says TRL's documentation. What
# happens then?

# %% tags=["value:stock-template"]
conversation = [
    {"role": "system", "content": "Pig Latin only."},
    {"role": "user", "content": "Say eat."},
    {"role": "assistant", "content": "eatway"},
    {"role": "user", "content": "Say string."},
    {"role": "assistant", "content": "ingstray"},
]
encoded = tokenizer.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
print("assistant tokens according to the stock template:", sum(encoded["assistant_masks"]))

# %% tags=["claim"]
assert "{% generation %}" in tokenizer.chat_template or sum(encoded["assistant_masks"]) == 0

# %% [markdown]
# The mask is all zeros, so a training with it would have no labels. transformers raises no error.
# It only logs a warning, which this notebook hides.
#
# TRL 1.16 does more. If the marks are missing, its `SFTTrainer` compares the template with the
# stock templates that it knows. If one is the same in every character, the trainer uses a
# *training template* with marks instead. TRL has training templates for Cohere, DeepSeek-V3 and R1
# distills, Gemma 1 to 3, DiffusionGemma, GLM-4-MoE, GPT-OSS, Idefics3, LFM2, Llama 3, LLaVA-Next,
# Muse Glimmer, Nemotron 3 and 3.5, Phi-3 and 3.5, Qwen2.5, Qwen3 to 3.8, Qwen's VL models and
# SmolVLM.
#
# SmolLM2, Llama 3.1 and 3.2, and Gemma 4 are not among them. For such a model, or an edited
# template, the trainer stops with a `ValueError`. Then put the marks in yourself, and set
# `tokenizer.chat_template` first. Here is ChatML, the format of SmolLM2, with marks. (A template's
# commands stand in `{% %}`.) The marks enclose `<|im_end|>` too, so that the model learns to stop:

# %% tags=["value:chatml"]
chatml = """\
{% for message in messages %}\
<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}\
{% else %}\
{{ message['content'] }}<|im_end|>
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

encoded = tokenizer.apply_chat_template(
    conversation, chat_template=chatml, return_dict=True, return_assistant_tokens_mask=True
)
ids = torch.tensor([encoded["input_ids"]])
labels = ids.masked_fill(torch.tensor([encoded["assistant_masks"]]) == 0, -100)
masks.show({"input_ids": ids, "labels": labels}, tokenizer)

# %%
drawn = masks.examples({"input_ids": ids, "labels": labels}, tokenizer)[0]
if "<|im_end|>" in tokenizer.get_vocab():
    assert drawn.trained_text() == "eatway<|im_end|>ingstray<|im_end|>"
    stock, marked = (
        tokenizer.apply_chat_template(conversation, tokenize=False, chat_template=template)
        for template in (None, chatml)
    )
    assert marked == stock  # the mark changes what is trained on, and not the text

# %% [markdown]
# Both answers are blue, each with its `<|im_end|>`, and for this conversation the text is that of
# the stock template.
#
# ## 4. A collator of your own
#
# A collator needs only a few lines. The recipe:
#
# 1. Pad all examples to the longest one.
# 2. Put -100 on the prompt.
# 3. Put -100 on the padding after the EOS token, but not on the EOS token itself.
# 4. **Shift by one.** At each token the model predicts the *next* one, so the inputs lose their
#    last token and the labels their first.

# %%


def own_collator(examples, pad_id):
    """Examples with `input_ids` and `prompt_length` to inputs and shifted targets.

    Both have the shape (examples, longest - 1).
    """
    longest = max(len(example["input_ids"]) for example in examples)
    inputs, targets = [], []
    for example in examples:
        ids = example["input_ids"]
        padded = ids + [pad_id] * (longest - len(ids))
        labels = list(padded)
        labels[: example["prompt_length"]] = [-100] * example["prompt_length"]
        labels[len(ids) :] = [-100] * (longest - len(ids))  # the EOS token itself stays
        inputs.append(padded[:-1])
        targets.append(labels[1:])
    return torch.tensor(inputs), torch.tensor(targets)


# %% [markdown]
# Is it the same as TRL's? We compare all labels, and then the loss, on six examples. (TRL does not
# shift its labels, because the model does.)

# %%
plain = some.map(
    lambda row: {
        "prompt": f"English: {row['sentence']}\nPig Latin:",
        "completion": f" {row['pig_latin']}",
    },
    remove_columns=some.column_names,
)
trainer = make_trainer(plain)
rows = [trainer.train_dataset[i] for i in range(6)]
theirs = trainer.data_collator([dict(row) for row in rows])

mine = [
    {"input_ids": row["input_ids"], "prompt_length": len(tokenizer(row["prompt"])["input_ids"])}
    for row in rows
]
inputs, targets = own_collator(mine, tokenizer.pad_token_id)

assert torch.equal(inputs, theirs["input_ids"][:, :-1])
assert torch.equal(targets, theirs["labels"][:, 1:])
print(f"{targets.numel()} labels, all equal; {(targets != -100).sum()} of them are trained on")

# %%
with torch.inference_mode():
    logits = model(inputs.to(model.device)).logits.float().cpu()
    own_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    on_device = {name: tensor.to(model.device) for name, tensor in theirs.items()}
    their_loss = model(**on_device).loss.float().cpu()
print(f"own loss {own_loss:.4f}, TRL's batch {their_loss:.4f}")

# %% tags=["claim"]
assert abs(own_loss - their_loss) < 0.02 * their_loss

# %% [markdown]
# All labels are equal, and so are the losses. (They are high: the model has not learned Pig
# Latin.)
#
# ## 5. A model that never stops
#
# Many tokenizers come without a padding token, and a common recipe says
# `tokenizer.pad_token = tokenizer.eos_token` (*eos*: end of sequence). But
# `DataCollatorForLanguageModeling` puts -100 on every token with the padding token's id. Draw what
# happens:

# %%
tokenizer.pad_token = tokenizer.eos_token
careless = collate([dict(example) for example in examples])
masks.show(careless, tokenizer)

# %%
end_id = tokenizer.eos_token_id
print("EOS tokens trained on, pad = eos:", (careless["labels"] == end_id).sum().item())
print("EOS tokens trained on, pad ≠ eos:", (batch["labels"] == end_id).sum().item())

# %% tags=["claim"]
assert (careless["labels"] == end_id).sum() == 0
assert (batch["labels"] == end_id).sum() == len(examples)

# %% [markdown]
# The EOS tokens are grey, so the model cannot learn from them. Next we train two adapters for 20
# steps: one with `pad = eos`, and one with another padding token. The task is Yoda's word order.
#
# **Guess first.** After each training, how many of 12 replies will stop at an EOS token?

# %%
my_guess_ended = {"pad = eos": 4, "pad ≠ eos": 12}

# %%
from peft import LoraConfig, get_peft_model

from course_utils import load_model
from course_utils.models import Runner

STEPS, BATCH = 20, 8
yoda = load_data("yoda")


def train_briefly(pad_token):
    """A few steps of LoRA on plain texts; returns the model and its losses."""
    torch.manual_seed(0)
    tokenizer.pad_token = pad_token
    # A new copy: the trainers above have switched on checkpointing in theirs.
    fresh = load_model("chat", quiet=True)
    tuned = get_peft_model(fresh, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    texts = [
        tokenizer(f"English: {row['sentence']}\nYoda: {row['yoda']}{end_token}")
        for row in yoda["train"].select(range(STEPS * BATCH))
    ]
    losses = []
    tuned.train()
    for step in range(STEPS):
        part = collate([dict(texts[step * BATCH + i]) for i in range(BATCH)]).to(model.device)
        loss = tuned(**part).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return tuned.eval(), losses


# %% [markdown]
# Both trainings have the same seed and examples. The 12 sentences are new to both models, and the
# untrained model replies too. A reply that has not ended is cut after 60 tokens. *Ended* counts
# the replies that stopped at an EOS token.

# %% tags=["value:stops"]
prompts = [f"English: {s}\nYoda:" for s in yoda["validation"].select(range(12))["sentence"]]


def judged(name, model):
    """How many of a model's replies end by themselves."""
    replies = Runner(model, tokenizer, template=False)(prompts, max_new_tokens=60)
    return {
        "collator": name,
        "your guess": my_guess_ended.get(name, ""),
        "ended of 12": sum(reply.finished for reply in replies),
        "mean tokens": round(sum(reply.tokens for reply in replies) / 12, 1),
        "a reply": replies[0],
    }


rows, curves = [judged("(untrained)", load_model("chat", quiet=True))], {}
other = "<|endoftext|>" if end_token != "<|endoftext|>" else tokenizer.unk_token
for name, pad_token in {"pad = eos": end_token, "pad ≠ eos": other}.items():
    tuned, curves[name] = train_briefly(pad_token)
    assert curves[name][-1] < 0.6 * curves[name][0]  # it did train
    rows.append(judged(name, tuned))
stops = pd.DataFrame(rows)
text_table(stops)

# %%
ended = stops.set_index("collator")["ended of 12"]

# %% tags=["claim"]
assert ended["pad = eos"] <= 3
assert ended["pad ≠ eos"] >= 9

# %% [markdown]
# With `pad = eos` none of 12 replies ends, and with the other padding token all 12 do
# (SmolLM2-135M, one seed). Many people guess more than none, because a chat model has already
# learned to stop. But it learned this in its own template: after these plain prompts, the
# untrained model does not stop either.
#
# Both tuned models begin with the same sentence in Yoda's word order. Does the loss tell them
# apart?

# %% tags=["figure:03_loss_does_not_tell"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, ORANGE, use_style

use_style()
figure, axis = plt.subplots(figsize=(6, 2.8))
for (name, losses), colour, style in zip(curves.items(), (ORANGE, BLUE), ("--", "-"), strict=True):
    axis.plot(
        range(1, STEPS + 1), losses, style, color=colour, label=f"{name}: {ended[name]} of 12 end"
    )
axis.set_xlabel("step")
axis.set_ylabel("training loss")
axis.set_title("Two trainings; one model never stops")
axis.grid(axis="y")
axis.legend()
plt.show()

# %% [markdown]
# No: both curves fall from about 5 to about 2. They rise at the same steps, because the batches
# are the same. The dashed curve is slightly higher. We expect the reason to be the EOS token, an
# easy label that only the other training has.
#
# There are two fixes: a separate padding token, or a collator that finds padding by its position,
# as TRL's does. With TRL's collator, pad = eos does no harm. In the drawing, the EOS token after
# an answer should be blue, and those that fill up the row should not.

# %%
tokenizer.pad_token = end_token
careful = first_batch(make_trainer(as_messages))
masks.show(careful, tokenizer)

# %% tags=["claim"]
assert (careful["labels"] == end_id).sum() == len(careful["labels"])

# %% [markdown]
# ## 6. Padding is waste
#
# Padding costs time and memory, and teaches nothing. **Packing** puts several examples into one
# row instead. A **padding-free** batch lays all its examples end to end. Both need `position_ids`:
# the place of each token in its own example, counted from 0.
#
# Here is the first batch of eight rows in each layout. *Tokens* counts all places of the batch,
# and *trained on* those with a label.

# %%
tokenizer.pad_token = end_token
kinds = {
    "padded": {},
    "packed": {"packing": True},
    "padding-free": {"padding_free": True, "max_length": None},
}
rows = []
for kind, options in kinds.items():
    part = first_batch(make_trainer(as_messages, per_device_train_batch_size=8, **options))
    attended = part.get("attention_mask", torch.ones_like(part["input_ids"]))
    rows.append(
        {
            "batch": kind,
            "shape": str(tuple(part["input_ids"].shape)),
            "tokens": part["input_ids"].numel(),
            "padding": (attended == 0).sum().item(),
            "trained on": (part["labels"] != -100).sum().item(),
        }
    )
layouts = pd.DataFrame(rows).set_index("batch")
layouts

# %% tags=["claim"]
assert layouts.loc["padded", "padding"] > 0
assert layouts.loc["packed", "padding"] == 0
assert layouts.loc["padding-free", "padding"] == 0

# %% [markdown]
# The padded batch has 52 tokens of padding among 600, and the others have none. (Each of the eight
# packed rows holds several examples, so there are more tokens. TRL lays these rows end to end
# too.)
#
# In one row, an example must not look back into the one before it. Does the default attention keep
# them apart? Then six examples should have the same loss padded and padding-free, but for
# rounding.

# %%
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TRLCollator

six = [{"input_ids": row["input_ids"]} for row in trainer.train_dataset.select(range(6))]
losses = {}
with torch.inference_mode():
    for kind, free in (("padded", False), ("padding-free", True)):
        part = TRLCollator(pad_token_id=tokenizer.pad_token_id, padding_free=free)(six)
        part = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in part.items()}
        losses[kind] = model(**part).loss.item()
print({kind: round(loss, 3) for kind, loss in losses.items()})

# %% tags=["claim"]
assert abs(losses["padded"] - losses["padding-free"]) < 0.05 * losses["padded"]

# %% [markdown]
# The two losses differ by less than 0.1%. The code of transformers 5.23 agrees: without an
# attention mask, it tells examples apart by `position_ids`. But we have not measured how much a
# leak would change this loss. In your own setup, compare again: a leak raises no error.

# %% [markdown]
# ## 7. Check before you train
#
# You can see all of these mistakes before a training starts. `preflight` checks the trainer's own
# batches, and tries one step forward and back. First, a trainer without a mistake:

# %% tags=["value:preflight"]
from course_utils import preflight

tokenizer.pad_token = end_token
tuned = get_peft_model(
    load_model("chat", quiet=True), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
)
good = make_trainer(as_messages, model=tuned, learning_rate=1e-3)
report = preflight(good)
print(report)

# %% tags=["claim"]
assert report.ok

# %% [markdown]
# All checks pass. Now three trainings with one mistake each. They differ only in the collator, and
# none of them raises an error.

# %%
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

tokenized = [dict(tokenizer(as_text(row))) for row in some]
with_labels = [{**row, "labels": row["input_ids"]} for row in tokenized]


def collator_a(rows):
    return collate([{"input_ids": row["input_ids"]} for row in rows])


def collator_b(rows):
    batch = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in rows])
    batch["labels"] = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    return batch


def collator_c(rows):
    batch = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
    return {**batch, "labels": batch["input_ids"].clone()}


def plain_trainer(collator):
    return Trainer(
        model=tuned,
        args=TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
        ),
        train_dataset=with_labels,
        data_collator=collator,
        processing_class=tokenizer,
    )


trainers = {
    "A": plain_trainer(collator_a),
    "B": plain_trainer(collator_b),
    "C": plain_trainer(collator_c),
}

# %% [markdown]
# Look at one batch of each. Where the label is not the token that the model reads there,
# `masks.show` draws both, as `read→learned`.

# %%
from IPython.display import display

for name, each in trainers.items():
    print(name)
    display(masks.show(first_batch(each), tokenizer))

# %% [markdown]
# **Guess first.** What is wrong with each? Write `"end"` where no EOS token is learned,
# `"padding"` where padding is learned, and `"shift"` where each place learns the wrong token. (All
# three train on the prompt too; leave this mistake aside.)

# %%
my_guess_faults = {"A": "?", "B": "?", "C": "?"}

# %%
found = {name: preflight(each) for name, each in trainers.items()}
for name, report in found.items():
    for row in report.rows:
        if row.status == "fail":
            print(f"{name} ✗ {row.name}: {row.found}\n    → {row.fix}")

print("your guess:", my_guess_faults)

# %% [markdown]
# **A is `"end"`.** This collator masks every token that *is* the padding token, as in section 5.
# The mistake is easy to overlook, because only one token per example is wrong.
#
# **B is `"shift"`.** The collator shifts the labels, and the model shifts them again. So each
# place learns the token after the next. Many people think that B is right, because the drawing
# pairs each token with the next one.
#
# **C is `"padding"`.** The labels are a copy of the inputs, padding included. C looks tidy,
# because nothing is struck through.
#
# `preflight` found B by looking at which token the loss makes more likely at each place. That
# token should be the next one. The course's page "Silent faults" lists more such mistakes, from
# public reports.

# %% [markdown]
# Notebooks 03.1, 03.2, 06, 07 and 08 run `preflight` before they train.

# %% [markdown]
# ## Take away
#
# - The collator makes the batch, and its labels decide what is learned (section 2).
# - Train on completions only: in TRL, give the columns `prompt` and `completion` (section 3).
# - `assistant_only_loss` needs a template with `{% generation %}`. Without it the mask is all
#   zeros (section 3).
# - The EOS token has to be a label. With pad = eos and masking by id it was not, and none of 12
#   replies ended (section 5; SmolLM2-135M, one seed).
# - None of these collators raised an error, and the loss did not show the mistake (section 5).
#   Draw the mask, and run `preflight` (section 7).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** A fine-tuned model gives the right answer, and then writes on and on. Where do you look
# first?
#
# - **A** At the learning rate: after too large a step, a model forgets how to stop.
# - **B** At the number of steps: stopping is learned last.
# - **C** At the labels: is there an EOS token among them?
# - **D** At the loss: its curve shows where things went wrong.
#
# **b.** The labels of the prompt's tokens are -100. What does this do?
#
# - **A** The model reads them, and is not trained to write them.
# - **B** The model cannot look at them while it is being trained.
# - **C** They are cut from the batch, which saves time and memory.
# - **D** The model is trained *not* to write them.
#
# **c.** Two examples share one row. What must you make sure of?
#
# - **A** That there is padding between them.
# - **B** That the first has no EOS token, so that the row goes on.
# - **C** That both have prompts of the same length.
# - **D** That the second does not look back into the first.
#
# **d.** The training loss falls from the first step on. What does this say about the mask?
#
# - **A** That it is right: a wrong one would keep the loss up.
# - **B** Nothing: the loss can fall with wrong labels too.
# - **C** That the prompt is masked: otherwise the loss would rise.
# - **D** That the EOS token is a label: otherwise the loss would not fall so far.

# %%
from course_utils.exercises import check, quiz

quiz("03", a="...", b="...", c="...", d="...")

# %% [markdown]
# **03.1 · Change one number.** Write `padding_share(lengths)`: which share of a padded batch is
# padding, if its examples have these lengths? Then change the 30 in the check's cell to 200, and
# run it again. Explain in a sentence what one long example does to a batch.


# %% tags=["exercise"]
def padding_share(lengths):
    """Lengths of a batch's examples to a number from 0 to 1."""
    ### BEGIN SOLUTION
    places = len(lengths) * max(lengths)
    return (places - sum(lengths)) / places
    ### END SOLUTION


# %%
print("padding:", padding_share([20, 22, 25, 30]))
check("03.1", padding_share)

# %% [markdown]
# **03.2 · Labels.** Write `labels_for(ids, prompt_length, end_id)`: the labels of one padded
# example, as a list. Put -100 on the prompt, and on everything after the first EOS token that
# follows the prompt. This EOS token itself is a label.


# %% tags=["exercise"]
def labels_for(ids, prompt_length, end_id):
    """Token ids of a padded example to labels, a list of the same length."""
    ### BEGIN SOLUTION
    labels = [-100] * prompt_length + list(ids[prompt_length:])
    if end_id in ids[prompt_length:]:
        behind = ids.index(end_id, prompt_length) + 1
        labels[behind:] = [-100] * (len(ids) - behind)
    return labels
    ### END SOLUTION


# %%
check("03.2", labels_for)

# %% [markdown]
# **03.3 · Packing, alone.** Write `pack(lengths, room)`: which examples go into which row, if a
# row has room for `room` tokens and no example may be cut? Return a list of rows, each a list of
# indices. Fewer rows are better: with the check's lengths, you should need at most one row more
# than the best possible.


# %% tags=["exercise"]
def pack(lengths, room):
    """Lengths of the examples and the room in a row to rows of indices."""
    ### BEGIN SOLUTION
    rows, free = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, left in enumerate(free):
            if lengths[index] <= left:
                rows[row].append(index)
                free[row] -= lengths[index]
                break
        else:
            rows.append([index])
            free.append(room - lengths[index])
    return rows
    ### END SOLUTION


# %%
check("03.3", pack)

# %% [markdown]
# Solutions: `notebooks/solutions/03_data_collators.py`.
#
# ## To read
#
# - The TRL guide to [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer): data formats, masks,
#   packing.
# - The transformers guide to [data
#   collators](https://huggingface.co/docs/transformers/main_classes/data_collator).
# - Krell et al., [Efficient sequence packing without
#   cross-contamination](https://arxiv.org/abs/2107.02027).
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
