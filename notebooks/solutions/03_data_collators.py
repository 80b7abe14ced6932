# %% [markdown]
# # 03 · Pig Latin and data collators
#
# **You will learn** how texts become a batch, and what decides which tokens a model is trained on.
# You will also see three small mistakes that ruin a fine-tuning without an error: a prompt that is
# trained on, an EOS token that is not, and a mask that is all zeros.
#
# **You need** notebook 01, and an idea of what LoRA is (notebook 02).
#
# **It takes** about 40 minutes of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand

# %%
from course_utils import describe

print(describe())

# %% [markdown]
# ## 1. The task
#
# Pig Latin: a word that begins with consonants sends them to its end, followed by *ay*; a word that
# begins with a vowel gets *way*.
#
# The course brings its own sentences, over a wide vocabulary. The split `unseen` shares no content
# word with the others: it tells a model that learned the rule from one that learned words.

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
# Can the chat model do it without any tuning? Ask it nicely, with two examples.

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
# It cannot. So there is something to tune for; notebook 03.1 does it. This one prepares the data,
# which is where most fine-tunings go wrong.
#
# ## 2. What a collator does
#
# A dataset gives examples one by one, each of its own length. A model takes tensors. The *data
# collator* stands between: it takes a list of examples and makes a batch of them. Three sentences:

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
# `DataCollatorForLanguageModeling` pads them to one length. With `mlm=False` (no *masked* language
# modelling, as BERT does it) the **labels**, which say what the loss is computed on, are the inputs
# themselves; -100 marks tokens that the loss ignores.
#
# The tokenizer needs a padding token. For now, one that the model never meets in text. Of each
# tensor of the batch, this prints the shape and the end of its first row. (`attention_mask` is 1
# where a token is to be read, and 0 on padding.)

# %%
from transformers import DataCollatorForLanguageModeling

end_token = tokenizer.eos_token
tokenizer.pad_token = "<|endoftext|>" if end_token != "<|endoftext|>" else tokenizer.unk_token
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
batch = collate([dict(example) for example in examples])
for name, tensor in batch.items():
    print(f"{name:<15} {tuple(tensor.shape)}  …{tensor[0, -6:].tolist()}")

# %% [markdown]
# Numbers are hard to check by eye, and a mask that is wrong raises no error. So draw it. Blue is
# what the model is trained on, grey what it only reads, and struck through is padding. A dashed
# frame marks special tokens, such as the EOS token, and ↵ stands for a line break.

# %% tags=["mask", "value:mask-texts"]
from course_utils import masks

masks.show(batch, tokenizer)

# %% [markdown]
# **Guess first.** The blue part is what the model learns to produce. How much of it is the
# translation, and how much the English sentence that nobody wants from it?

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
# ## 3. Train on completions only
#
# TRL is the library with trainers for language models; its `SFTTrainer` is the one for supervised
# fine-tuning. It trains on completions only if the data has two columns, `prompt` and `completion`
# (`completion_only_loss` is then on by itself). Give it texts, or, for a chat model, messages:

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
# The template is read, the answer is learned, and so is the EOS token behind it: that is how a
# model learns to stop. (A line break of the template's may follow. It is learned too, and does no
# harm: nobody asks the model for anything behind its EOS token.)
#
# ### Longer conversations
#
# With several turns, each of the assistant's counts: a column `messages`, and
# `assistant_only_loss=True`. The trainer must know where the assistant speaks; the chat template
# has to say it, with `{% generation %}` around its words. (A template is a small program in the
# language Jinja, where commands stand in `{% %}`.) Most published templates do not have the mark.
# What happens then?

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
# None, and transformers does not mind. A training on that mask learns *nothing*, in silence. (TRL
# refuses such a template today.) Here is ChatML with the mark put in:

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
# ## 4. A collator of one's own
#
# Nothing in it is magic. The recipe:
#
# 1. Pad all examples to the longest one.
# 2. Put -100 on the prompt.
# 3. Put -100 on all padding behind the example's EOS token, but not on that one.
# 4. **Shift by one**, since what is to be predicted at a token is the next one: the inputs lose
#    their last token, the labels their first.

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
# Is it the same as TRL's? Compare label by label, on plain prompt and completion, and compare the
# loss. (TRL's labels are not shifted: the model does that inside.)

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
# ## 5. A model that never stops
#
# Many tokenizers come without a padding token, and a common recipe says
# `tokenizer.pad_token = tokenizer.eos_token`. (*eos*, end of sequence, is what transformers calls
# the EOS token.) Then comes `DataCollatorForLanguageModeling`, which
# puts -100 on every *padding token*, by its id. Draw what that does:

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
# Not one EOS token is left to learn from. **Guess first:** after a short training, how many of 12
# replies will end by themselves, with each of the two collators? (The task here is Yoda's word
# order, which a model picks up in fewer steps than Pig Latin.)

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
# Now train with each of the two, and let the untrained model, too, reply to 12 sentences that were
# not trained on. A reply that has not ended is cut after 60 tokens. In the table, *ended* are the
# replies that stopped by an EOS token of their own.

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
# The loss says nothing of it: both curves fall alike.

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
# Two fixes: a padding token of its own, or a collator that goes by position and not by id, as TRL's
# does. With that one pad = eos, which the chat model of this course comes with, is fine. Draw it to
# be sure: the EOS token behind an answer is blue, and those that fill up the row are not.

# %%
tokenizer.pad_token = end_token
careful = first_batch(make_trainer(as_messages))
masks.show(careful, tokenizer)

# %% tags=["claim"]
assert (careful["labels"] == end_id).sum() == len(careful["labels"])

# %% [markdown]
# ## 6. Padding is waste
#
# Padded tokens cost time and memory and teach nothing. **Packing** puts several examples into one
# row; a **padding-free** batch lays all of them end to end. Both tell the model where an example
# begins by `position_ids`, the numbers of the places in a text, which start anew.
#
# Here is the first batch of eight rows, each way. In the table, *tokens* are all places of the
# batch, *padding* those that teach nothing, and *trained on* those that are labels.

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
# The padding is gone. (TRL lays packed rows end to end as well: what looks like one long row are
# eight full ones, which hold many more than eight examples.)
#
# Nothing is free, though: in one row, an example must not look back into the one before it.
# FlashAttention takes the borders from the batch. Other attention has to be told; is it? The same
# six examples, padded and padding-free:

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
# The same but for rounding: this version of transformers keeps the examples apart with its default
# attention too. It is a thing to measure, not to believe: such a leak raises no error either.

# %% [markdown]
# ## 7. Check before you train
#
# All of these mistakes can be seen before a training starts: on the trainer's own batches, with one
# step forward and back. `preflight` looks, and says what to do. First a trainer that is in order:

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
# Now three trainings with one mistake each. All of them use transformers' own `Trainer`, and differ
# only in the collator. None of them would raise an error.

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
# Look at one batch of each. Where the label at a place is another token than the one that is read
# there, `masks.show` draws both, as `read→learned`.

# %%
from IPython.display import display

for name, each in trainers.items():
    print(name)
    display(masks.show(first_batch(each), tokenizer))

# %% [markdown]
# **Guess first:** what is wrong with each? Write `"end"` where no EOS token is learned, `"padding"`
# where padding is learned, and `"shift"` where each place learns the wrong token.

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
# **A is `"end"`.** It is the collator of section 5: it masks every token that *is* the padding token,
# and the EOS token is one.
#
# **B is `"shift"`.** It shifts the labels by one place, and the model shifts them again. So each
# place learns the token after the next.
#
# **C is `"padding"`.** It copies the input ids into the labels, padding included, so the model learns
# to write padding.
#
# `preflight` found B by comparing: it looked at which token the loss makes more likely at each
# place, and that token has to be the next one. The course's page "Silent faults" lists more such
# mistakes, each with the report of somebody who made it.

# %% [markdown]
# From here on, each training of this course is preceded by it.

# %% [markdown]
# ## Take away
#
# - The collator makes batches, and with the labels it decides what is learned.
# - Train on completions only; in TRL, by `prompt` and `completion` columns.
# - `assistant_only_loss` needs a template with `{% generation %}`; without it the mask is empty.
# - The EOS token has to be a label. With pad = eos and masking by id it never is.
# - None of these mistakes raises an error, and the loss falls all the same. Draw the mask, and run
#   `preflight`.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** A fine-tuned model gives the right answer, and then goes on and on. Where do you look
# first?
#
# - **A** At the learning rate: too large a step forgets how to stop.
# - **B** At the number of steps: stopping is learned last.
# - **C** At the labels: does an EOS token stand among them?
# - **D** At the loss: it will show from where on things went wrong.
#
# **b.** The labels of the prompt's tokens are -100. What does this do?
#
# - **A** The model reads them, and is not trained to write them.
# - **B** The model cannot look at them while it is being trained.
# - **C** They are cut from the batch, which saves time and memory.
# - **D** The model is trained *not* to write them.
#
# **c.** Two examples stand in one row. What has to be seen to?
#
# - **A** That there is padding between them.
# - **B** That the first has no EOS token, so that the row goes on.
# - **C** That both have prompts of the same length.
# - **D** That the second does not look back into the first.
#
# **d.** The training loss falls nicely from the first step on. What does it tell about the mask?
#
# - **A** That it is right: with a wrong one, the loss would stay where it is.
# - **B** Nothing: it falls, whatever the labels are.
# - **C** That the prompt is masked: with it, the loss would rise.
# - **D** That the EOS token is a label: else the loss could not fall so far.

# %%
from course_utils.exercises import check, quiz

quiz("03", a="...", b="...", c="...", d="...")

# %% [markdown]
# **03.1 · Change one number.** Write `padding_share(lengths)`: which share of a padded batch is
# padding, if its examples have these lengths? Then change the 30 into 200, and run the check's cell
# again: what does one long example do to a batch? Explain it in a sentence.


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
# example, as a list. -100 on the prompt, and on everything behind the first EOS token that comes
# after the prompt; that EOS token itself is a label.


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
# **03.3 · Packing, alone.** Write `pack(lengths, room)`: which examples go into which row, if a row
# has room for so many tokens and no example may be cut? A list of lists of indices. Fewer rows are
# better: with the lengths of the check you should need at most one row more than the best possible.


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
