# %% [markdown]
# # 03.1 · Fine-tuning Pig Latin
#
# **You will learn** to run a whole fine-tuning, and why it has each part: a baseline, data in a
# form that the model can use, the arguments that matter, a check before the training, and a fair
# test on new words. Also: what to do when a model forgets or overfits, when memory is short, or
# when a training is interrupted.
#
# **You need** notebooks 02 (LoRA) and 03 (collators and masks).
#
# **It takes** about 35 minutes of reading and trying. The cells themselves run in about eleven
# minutes on two CPU cores, mostly for the one big training; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Tomas wants to fine-tune a model that rewrites emails in his shop's style. But he has never run a
# training, and no program can tell whether an email is right. So he practises on Pig Latin, where
# a short program can check every reply. The steps of the training are the same.

# %%
import logging
import os
import tempfile
import warnings
from pathlib import Path

import datasets
import pandas as pd
import torch

from course_utils import describe
from course_utils.data import load_data
from course_utils.display import text_table

# Inside the libraries, of no concern here: an argument's old name, notes on the tokenizer and the
# vocabulary.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
warnings.filterwarnings("ignore", message="Could not find a config file")
logging.getLogger("transformers").setLevel(logging.ERROR)
datasets.disable_progress_bars()

print(describe())

# %% [markdown]
# ## 1. Where do we start from?
#
# The task, as in notebook 03: a word that begins with a vowel gets *way* (*eat* → *eatway*). In
# any other word, all consonants before the first vowel move to the end, and *ay* follows (*string*
# → *ingstray*). The letters *qu* move together.
#
# First we measure a **baseline**: the score without training. There are two sets of held-out
# sentences. `test` has new sentences, but almost no new words. `unseen` has **unseen words**: none
# of its nouns, main verbs and adjectives is in the training data. Only a model that has learned the
# rule can do well on `unseen`.
#
# We use four scores:
#
# - **chrF** (0 to 100) counts runs of letters that two texts share.
# - **Word accuracy** is the share of words that are right, in their place.
# - **New words** is the word accuracy on words that occur in no training sentence. (Word accuracy
#   also counts *the* and *my*.)
# - **Exact match** is the share of sentences without any mistake.
#
# The next cell defines the score for new words, and scores a reply with one wrong word.

# %%
from course_utils.scoring import reference_scores

pig_latin = load_data("pig_latin")


def bare(word):
    """A word in small letters, without its comma or full stop."""
    return word.lower().strip(".,")


known = {bare(word) for text in pig_latin["train"]["sentence"] for word in text.split()}


def scores(replies, rows):
    """Score replies to rows of the dataset."""
    right = []  # of each new word: is it right?
    for reply, english, wanted in zip(replies, rows["sentence"], rows["pig_latin"], strict=True):
        words, given = english.split(), [*reply.split(), *[""] * 20]
        for word, target, got in zip(words, wanted.split(), given, strict=False):
            if bare(word) not in known:
                right.append(got == target)
    found = reference_scores(replies, rows["pig_latin"])
    return found | {"new words": sum(right) / len(right) if right else None}


rows = {"sentence": ["The dolphin is red."], "pig_latin": ["Ethay olphinday isway edray."]}
pd.Series(scores(["Ethay olphindray isway edray."], rows)).round(2)

# %% tags=["claim"]
assert "dolphin" not in known
assert scores(rows["pig_latin"], rows) == {
    "exact match": 1.0,
    "word accuracy": 1.0,
    "chrF": 100.0,
    "new words": 1.0,
}
assert scores(["Ethay olphindray isway edray."], rows)["new words"] == 0

# %% [markdown]
# Three of the four words are right, but the only new word, *dolphin*, is wrong.
#
# Now the untrained chat model gets 24 sentences of each set, with two examples in the prompt.
# "Nothing done" is untouched English.

# %% tags=["value:held-out"]
from course_utils import runner

EXAMPLES = 24
held_out = {name: pig_latin[name].select(range(EXAMPLES)) for name in ("test", "unseen")}
chat = runner("chat")
# From here on, all that is needed is here; peft, for one, would ask the hub at each checkpoint.
os.environ["HF_HUB_OFFLINE"] = "1"
request = (
    "Translate into Pig Latin. For example, 'The string is red.' becomes "
    "'Ethay ingstray isway edray.', and 'I eat a pear.' becomes 'Iway eatway away earpay.'\n\n"
)
results = {}
for name, rows in held_out.items():
    replies = chat([request + sentence for sentence in rows["sentence"]], max_new_tokens=32)
    results["asked with examples", name] = scores(replies, rows)
    results["nothing done", name] = scores(rows["sentence"], rows)
pd.DataFrame(results).T.round(2)

# %% tags=["claim"]
baseline = max(results["asked with examples", name]["word accuracy"] for name in held_out)
assert baseline < 0.2
assert [
    sum(bare(word) not in known for text in held_out[name]["sentence"] for word in text.split())
    for name in ("unseen", "test")
] == [106, 1]

# %% [markdown]
# Only 1% of the words are right (SmolLM2-135M-Instruct, 24 sentences a set, one prompt). This is
# our baseline. By chrF (18 and 16), the replies are further from Pig Latin than untouched English
# (35). None of the new words is right (106 in `unseen`, and only one in `test`).
#
# ## 2. What the model sees
#
# Pig Latin is a rule about letters, but a model reads tokens. Here are the tokens of four words
# and their translations (␣ is a leading space):

# %% tags=["value:pieces"]
tokenizer = chat.tokenizer
pairs = [("smile", "ilesmay"), ("string", "ingstray"), ("friends", "iendsfray"), ("eat", "eatway")]
pieces = pd.DataFrame(
    [
        {
            "English": english,
            "its tokens": " | ".join(tokenizer.tokenize(f" {english}")).replace("Ġ", "␣"),
            "Pig Latin": translated,
            "the tokens of that": " | ".join(tokenizer.tokenize(f" {translated}")).replace(
                "Ġ", "␣"
            ),
        }
        for english, translated in pairs
    ]
)
text_table(pieces)

# %% [markdown]
# For the model, *smile* is one number, and nothing about it says that the word begins with *sm*.
# To move the *sm*, the model has to know by heart how the token is spelled. So we **spell the
# words** for it, in the prompt and in the answer.

# %% tags=["value:spelled"]
from course_utils.data import spell, unspell

sentence, translated = held_out["unseen"][0]["sentence"], held_out["unseen"][0]["pig_latin"]
print(spell(sentence))
print(spell(translated))

letters = tokenizer.tokenize(spell("my smile"))
print(letters)

# %% tags=["claim"]
assert unspell(spell(translated)) == translated

# %% [markdown]
# Now each letter is a token. (The tokenizer writes a leading space as `Ġ`.)
#
# The system prompt names the task, the user's turn holds the sentence, and the completion is the
# answer. Only the completion is trained on (notebook 03). `translate` joins the letters again, so
# we score normal Pig Latin. On 32 other sentences we will compute the **validation loss**: does
# the model get better on sentences that it is not trained on?

# %% tags=["value:train-split"]
SYSTEM = "Translate into Pig Latin."


def as_messages(row):
    """A row of the dataset to `prompt` and `completion`, both spelled."""
    return {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": spell(row["sentence"])},
        ],
        "completion": [{"role": "assistant", "content": spell(row["pig_latin"])}],
    }


columns_of_data = pig_latin["train"].column_names
train = pig_latin["train"].map(as_messages, remove_columns=columns_of_data)
validation = (
    pig_latin["validation"].select(range(32)).map(as_messages, remove_columns=columns_of_data)
)
print(len(train), "sentences to train on,", len(validation), "to watch the loss on")


def translate(ask, sentences):
    """Sentences to Pig Latin, by a tuned model."""
    replies = ask([spell(text) for text in sentences], system=SYSTEM, max_new_tokens=120)
    return [unspell(reply) for reply in replies]


# %% [markdown]
# ## 3. The arguments, by what they are for
#
# `SFTConfig` has [more than a hundred
# arguments](https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig). Here are the sixteen that
# you will set most often. The last column says who chose the default: transformers'
# `TrainingArguments`, or TRL, which has added some arguments and changed others.

# %% tags=["value:arguments"]
import dataclasses

from transformers import TrainingArguments
from trl import SFTConfig

purposes = {
    "how long": {
        "num_train_epochs": "passes over all examples",
        "max_steps": "steps; above 0, it decides instead of num_train_epochs",
        "per_device_train_batch_size": "examples in a batch",
        "gradient_accumulation_steps": "batches that make one step (section 8)",
    },
    "how fast it learns": {
        "learning_rate": "how far a step changes the weights, at its peak",
        "lr_scheduler_type": "how the rate falls after the peak",
        "warmup_steps": "steps until the peak; below 1, their share of all steps",
    },
    "memory and speed": {
        "max_length": "a longer example is cut to so many tokens (notebook 03)",
        "bf16": "compute in 16 bits; None: yes, unless fp16 is set",
        "gradient_checkpointing": "less memory for more time (section 8)",
    },
    "watching": {
        "logging_steps": "note the training loss every so many steps",
        "eval_strategy": "when to compute the validation loss: no, steps, epoch",
        "report_to": "a tracking tool that gets the log, such as tensorboard",
    },
    "keeping": {
        "save_strategy": "when to save a checkpoint: no, steps, epoch, best",
        "load_best_model_at_end": "go back to the checkpoint with the lowest loss",
        "seed": "for the order of the examples and all else that is random",
    },
}


def defaults(kind):
    """The arguments of a configuration class with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


ours, general = defaults(SFTConfig), defaults(TrainingArguments)
text_table(
    pd.DataFrame(
        [
            {
                "purpose": purpose,
                "argument": name,
                "what it does": told,
                "default": str(ours[name]),
                "chosen by": "transformers" if general.get(name, "") == ours[name] else "TRL",
            }
            for purpose, group in purposes.items()
            for name, told in group.items()
        ]
    )
)

# %% tags=["claim"]
assert ours["learning_rate"] != general["learning_rate"]
assert ours["gradient_checkpointing"] != general["gradient_checkpointing"]

# %% [markdown]
# An **epoch** is one pass over all examples. In a **step**, the optimizer takes one **batch** of
# examples (or several) and changes the weights once. The **learning rate** says how far. TRL's
# default is meant for training *all* weights; LoRA needs ten times as much or more.
#
# The rate follows a **schedule**. It rises during the **warm-up**, because the first gradients are
# the least reliable, and then falls, so that the weights can settle. Here are three schedules for
# 60 steps, a tenth of them warm-up:

# %% tags=["figure:03_1_schedules"]
import matplotlib.pyplot as plt
from transformers import get_scheduler

from course_utils.display import BLUE, GREY, ORANGE, use_style

use_style()
figure, axis = plt.subplots(figsize=(6.5, 2.6))
styles = {"linear": (BLUE, "-"), "cosine": (ORANGE, "--"), "constant_with_warmup": (GREY, ":")}
for name, (colour, line) in styles.items():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=6, num_training_steps=60)
    rates = []
    for _ in range(60):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    axis.plot(rates, line, color=colour, label=name)
axis.set_xlabel("step")
axis.set_ylabel("share of the peak")
axis.set_title("Three schedules")
axis.legend()
plt.show()

# %% [markdown]
# We take *linear*, the default, and have not compared it with the others.
#
# If an older recipe stops with `unexpected keyword argument`, look for the new name here:

# %% tags=["value:renamed"]
renamed = {
    "SFTTrainer(tokenizer=…)": "processing_class=",
    "max_seq_length": "max_length",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps (below 1, it is a share)",
    "group_by_length": 'train_sampling_strategy="group_by_length"',
    "no_cuda": "use_cpu",
    "DataCollatorForCompletionOnlyLM": "columns prompt and completion",
}
for old, new in renamed.items():
    print(f"{old:>33} → {new}")

# %% tags=["claim"]
assert not {"max_seq_length", "evaluation_strategy", "group_by_length", "no_cuda"} & set(ours)

# %% [markdown]
# ### Which trainer?
#
# `SFTTrainer` is transformers' `Trainer` with more work done for you: it applies the chat template,
# makes the tokens and masks the prompt. You can give it a loaded model, as we do below, or only a
# model's name. Its relatives:
#
# | trainer | library | for |
# |---|---|---|
# | `Trainer` | transformers | any model, with batches that you prepare (notebook 03, section 1) |
# | `Seq2SeqTrainer` | transformers | models with an encoder and a decoder, such as T5, for translation or summaries |
# | `SFTTrainer` | TRL | plain texts, prompts with responses, conversations |
# | `DPOTrainer` | TRL | pairs of a better and a worse response (notebook 01, section 5) |
#
# `Seq2SeqTrainer` takes its arguments from `Seq2SeqTrainingArguments`. With
# `predict_with_generate=True`, it lets the model write during an evaluation, so that you can score
# replies and not only the loss.
#
# `Trainer` also trains a PyTorch model that you wrote yourself, if its `forward` meets three
# conditions:
#
# 1. It returns a dictionary, a `ModelOutput` (transformers' own kind of dictionary) or a tuple.
# 2. If it gets labels, it also computes the loss, as `"loss"` in the dictionary or as the first of
#    the tuple.
# 3. Its argument for labels is not called `label`, because the collator renames that column to
#    `labels`. Several arguments are possible. `Trainer` finds those with *label* in their names;
#    name others in `label_names` of the `TrainingArguments`.
#
# Here is such a `forward`, of a model that predicts a class for each token:
#
# ```python
# def forward(self, input_ids, labels=None):
#     logits = self.layers(input_ids)  # (examples, tokens, classes)
#     if labels is None:
#         return {"logits": logits}
#     loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
#     return {"loss": loss, "logits": logits}
# ```
#
# Columns of the dataset that `forward` does not name are dropped, unless you set
# `remove_unused_columns=False`.
#
# ## 4. Train
#
# `recipe` looks up what depends on the machine. The cell also computes how many epochs our steps
# are.

# %% tags=["value:plan"]
from course_utils.hardware import pick_dtype, tier
from course_utils.models import recipe

machine = tier().value
plan = recipe("pig_latin", machine)
on_cpu = chat.model.device.type == "cpu"
print(f"{plan['steps']} steps of {plan['batch']} sentences: {plan['why']}")
print(f"learning rate at its peak: {plan['learning_rate']}")
per_epoch = len(train) / plan["batch"]
print(f"an epoch has {per_epoch:.0f} steps, so we train for {plan['steps'] / per_epoch:.2f} epochs")

# %% [markdown]
# All other settings are in the function `make_trainer`, which later sections use again.

# %%
from peft import LoraConfig
from transformers import set_seed
from trl import SFTTrainer

from course_utils import load_model
from course_utils.training import faster_on_cpu, watch


def make_trainer(train, validation=None, callbacks=(), **options):
    """An SFTTrainer with a fresh LoRA adapter; options go to SFTConfig."""
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": plan["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,
        "per_device_train_batch_size": plan["batch"],
        "logging_steps": 2,
        "eval_strategy": "no" if validation is None else "steps",
        "per_device_eval_batch_size": 16,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and pick_dtype().value == torch.bfloat16,
        "fp16": not on_cpu and pick_dtype().value == torch.float16,
        "seed": 0,
    }
    set_seed(0)  # the adapter's first weights are random, too
    trainer = SFTTrainer(
        model=load_model("chat", quiet=True),
        args=SFTConfig(**{**usual, **options}),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=list(callbacks),
    )
    return faster_on_cpu(trainer)


trainer = make_trainer(train, validation, max_steps=plan["steps"], eval_steps=plan["steps"] // 4)
trainer = watch(trainer)

# %% [markdown]
# Two lines are the course's own: `watch` draws the losses while you wait, and `faster_on_cpu`
# computes the same loss faster on a CPU.
#
# Why is the learning rate so high? For LoRA, 0.0001 to 0.0002 is usual, in trainings of hundreds
# or thousands of steps. The optimizer, AdamW, moves a weight by about the learning rate in each
# step, so sixty steps at 0.0001 would move it by 0.006 at most. A training as short as ours needs
# a higher rate. For eight steps of another task, notebook 02 finds 0.002 best; for this task,
# section 7 finds 0.004. On a GPU, our recipe takes more steps at 0.0002, which is not yet
# measured.
#
# The training takes minutes, so check it first:

# %%
from course_utils import preflight

report = preflight(trainer)
print(report)

# %% tags=["claim"]
assert report.ok

# %% [markdown]
# Read the lines *batch and steps* and *expected minutes*; notebook 03, section 9, explains how to
# read the others. The training will see 8% of the data. (In the saved run, one core was busy; the
# recipe counts on two idle ones.)
#
# A second `train()` trains the same adapter further. To start over, make a new trainer.
#
# **Guess first.** What share of the new words in `unseen` will be right at the end?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %% tags=["figure:03_1_losses"]
_ = trainer.train()

# %% [markdown]
# The training loss falls steeply for 15 steps, then slowly, with bumps. Around step 45 the
# validation loss rises a little too (from 0.20 to 0.23), then falls to 0.09. We expect that a few
# unusual sentences in a row cause this, because a step sees only four. We have not tested it.
#
# `trainer.state.log_history` holds the curve. Save it, to compare trainings. (NaN: not computed in
# that row.)

# %%
log = pd.DataFrame(trainer.state.log_history)
Path("models").mkdir(exist_ok=True)
log.to_csv("models/pig-latin-log.csv", index=False)
columns = ["step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss"]
log[columns].iloc[6:10]

# %% [markdown]
# A tracking tool draws the logs of many trainings side by side. After `pip install tensorboard`,
# set `report_to="tensorboard"`: the trainer writes these numbers into `output_dir/runs`, and
# `tensorboard --logdir` shows them in your browser, without an account. (`"trackio"` is another.)
#
# ## 5. Before and after
#
# The tuned model now translates the same sentences. It takes the likeliest token each time.
# (**Sampling** would also try others, but here one wrong letter spoils a word.)

# %% tags=["value:before-after"]
from course_utils.models import Runner

tuned = Runner(trainer.model.eval(), tokenizer)
after = {}
for name, rows in held_out.items():
    after[name] = translate(tuned, rows["sentence"])
    results["tuned", name] = scores(after[name], rows)
print(f"new words: {results['tuned', 'unseen']['new words']:.2f}; you guessed {my_guess}")
pd.DataFrame(results).T.sort_index().round(2)

# %% tags=["claim"]
assert results["tuned", "test"]["word accuracy"] >= 0.7
assert results["tuned", "unseen"]["word accuracy"] >= 0.6
assert results["tuned", "unseen"]["new words"] >= 0.5

# %% [markdown]
# In `unseen`, 79% of the new words are right (24 sentences, one seed). A model that memorises words
# would get far less. This one does no worse on `unseen` than on `test` (84% and 81% of all words).
# Exact match is lower, because one wrong word spoils a sentence.
#
# Here are mistakes in `unseen`. Is the rule wrong, or the copying?

# %%
rows = held_out["unseen"]
wrong = [
    {"English": english, "wanted": wanted, "got": got}
    for english, wanted, got in zip(
        rows["sentence"], rows["pig_latin"], after["unseen"], strict=True
    )
    if got != wanted
]
print(f"{len(wrong)} of {EXAMPLES} sentences have a mistake")
text_table(pd.DataFrame(wrong[:5]) if wrong else pd.DataFrame(rows)[:2])

# %% [markdown]
# Most of these are mistakes of copying: a letter doubled (*awkwardllyway*), a word lost (*ethay*)
# or said twice (*aintyday*), two words mixed (*ipposjay*). In the two longest sentences, the model
# loses its place.
#
# ## 6. What has it learned, and what has it forgotten?
#
# Has the model learned the rule, or a list of words? We test invented words, which it cannot
# remember, four of each kind, in short sentences, and plot the results:
#
# - words that begin with a vowel, with one, two or three consonants, with *qu*, or with *y*;
# - kinds that the training data lacks: very long words; capitals, which stay capitals; an
#   apostrophe, which is kept (*don't* → *on'tday*); and numbers, which stay as they are.
#
# **Guess first.** Which kind is the hardest?

# %%
my_guess = None  # a kind, such as "qu"

# %%
from course_utils.data import pig_latin as by_rule

kinds = {
    "vowel": "ulmer amvil eskond oplin",
    "one consonant": "bimmle dorvit zaffel gantor",
    "two": "plimmer drovick snaddle gribbet",
    "three": "strindle splommer scraddick threnter",
    "qu": "quindle quaffet squimmer quolder",
    "y in front": "yambler yonkit yeddle yurrup",
    "very long": "bimblefranterously plondermastification snaggleworthification "
    "quindlehoffermentary",
    "in capitals": "NASTO BRIMP SPLOG UNTEX",
    "apostrophe": "blom's strin't van'k o'dran",
    "a number": "42 7 1999 3rd",
}
rows = []
for kind, words in kinds.items():
    frames = [f"The {word} is happy." for word in words.split()]
    for frame, got in zip(frames, translate(tuned, frames), strict=True):
        wanted, given = by_rule(frame).split()[1], [*got.split(), "", ""][1]
        rows.append({"kind": kind, "wanted": wanted, "got": given, "right": given == wanted})
nonsense = pd.DataFrame(rows)
by_kind = nonsense.groupby("kind", sort=False)["right"].mean()
print(f"hardest: {by_kind.idxmin()}; you guessed {my_guess}")
text_table(nonsense.groupby("kind", sort=False).head(2))

# %% tags=["figure:03_1_nonsense"]
figure, axis = plt.subplots(figsize=(6.5, 3.4))
axis.barh(by_kind.index[::-1], by_kind.iloc[::-1], color=[ORANGE] * 4 + [BLUE] * 6)
axis.set_xlim(0, 1)
axis.set_xlabel("share of invented words that are right")
axis.set_title("Invented words; in orange, of kinds that the data lacks")
axis.grid(axis="x")
plt.show()

# %%
usual, odd = by_kind.iloc[:6].mean(), by_kind.iloc[6:].mean()
print(f"kinds that it was trained on: {usual:.0%}; kinds that it was not: {odd:.0%}")

# %% tags=["claim"]
assert usual > 0.6
assert usual > odd

# %% [markdown]
# The very long words look hard, but three of four are right, and 20 of 24 of the usual kinds. Of
# the twelve with capitals, an apostrophe or digits, none is right (one seed). So three kinds are
# equally hard, and the cell names the first of them. A long word needs only the rule in the data.
# Capitals, apostrophes and numbers need rules that no example shows. We expect that a few such
# examples would help.
#
# ### Forgetting
#
# Training on one task can harm others. We ask the tuned model sixteen questions of notebook 01,
# and then ask again with the adapter switched off (`disable_adapter`).

# %% tags=["value:forgetting"]
capitals = {
    "France": "Paris",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Mexico": "Mexico City",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Australia": "Canberra",
    "Cuba": "Havana",
    "Poland": "Warsaw",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Peru": "Lima",
    "India": "New Delhi",
}
questions = [f"What is the capital of {country}?" for country in capitals]
answers = {"before the training": chat(questions, max_new_tokens=24)}
answers["adapter on"] = tuned(questions, max_new_tokens=24)
with trainer.model.disable_adapter():
    answers["adapter off"] = tuned(questions, max_new_tokens=24)

for name, replies in answers.items():
    right = sum(city in reply for city, reply in zip(capitals.values(), replies, strict=True))
    print(f"{name}: {right} of 16 right, such as: {replies[0]!r}")
print("adapter off as before:", answers["adapter off"] == answers["before the training"])

# %% tags=["claim"]
assert answers["adapter off"] == answers["before the training"]

# %% [markdown]
# Before the training, the model answered 14 of the sixteen questions. (Notebook 01 counted 13 with
# the same model and the same questions. Its outputs were saved on another processor. Both compute
# in 16 bits, but they round some sums differently, and where two tokens are nearly equally likely,
# this decides which one is written.) Now it answers none: for France, it repeats the question. But
# LoRA has not changed the base model's weights, so with the adapter off, all replies are exactly as
# before. If you need both skills at once, mix general examples into the data. (We have not tested
# how many.)
#
# ## 7. Does it help to spell the words?
#
# To test this, `benchmarks/pig_latin.py` has trained the same model with two formats: *plain*
# spells nothing, *both spelled* spells prompt and answer. Spelled sentences have more tokens, so
# each training got the same number of tokens, padding included.
#
# A fair comparison gives each format its own best learning rate. So each format was first trained
# with seed 0 at several rates. Here are the validation losses. (Compare them within a row only: a
# letter is easier to predict than a piece of a word.)

# %% tags=["value:tried-rates"]
from course_utils.data import folder
from course_utils.results import whole_rows

tried = pd.DataFrame(whole_rows(folder().parent / "benchmarks" / "results" / "pig_latin.jsonl"))
budget = tried["tokens"].max()
print(f"{budget} tokens each, on {tried.loc[0, 'machine']}")
sweep = tried[tried["seed"] == 0].pivot(
    index="variant", columns="learning_rate", values="validation_loss"
)
sweep.round(2).fillna("–")

# %% [markdown]
# The best of the three rates is 0.004 for both formats (one seed, with which *plain* had 76 steps
# and *both spelled* 30).
#
# Then each format was trained with three *other* seeds at its best rate, and scored on 200
# sentences of `unseen`. We set the rule before we look: two formats differ if the ranges of their
# three seeds do not overlap.
#
# **Guess first.** What share of the new words is right with *plain*?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %% tags=["value:tried-scores"]
columns = ["variant", "learning_rate", "seed", "steps", "exact", "words", "new_words"]
scored = tried[tried["examples"] > 0].reindex(columns=columns)
print(f"you guessed {my_guess}")
table = scored.groupby("variant").agg(
    learning_rate=("learning_rate", "first"),
    seeds=("seed", "nunique"),
    steps=("steps", "median"),
    exact=("exact", "mean"),
    words=("words", "mean"),
    new_words=("new_words", "mean"),
    lowest=("new_words", "min"),
    highest=("new_words", "max"),
)
table.sort_values("new_words", ascending=False).round(3)

# %% tags=["claim"]
if {"plain", "both spelled"} <= set(table.index[table["seeds"] == 3]):
    assert table.loc["both spelled", "lowest"] > table.loc["plain", "highest"]

# %% tags=["figure:03_1_tried"]
names = list(table.sort_values("new_words").index)
figure, axis = plt.subplots(figsize=(6.5, 1.2 + 0.4 * len(names)))
for place, name in enumerate(names):
    shares = scored.loc[scored["variant"] == name, "new_words"]
    axis.plot(shares, [place] * len(shares), "o", color=BLUE, alpha=0.7)
axis.set_yticks(range(len(names)), names)
axis.margins(y=0.4)
axis.set_xlim(-0.02, 1)
axis.set_xlabel("share of new words that are right; a point for each seed")
axis.set_title(f"After {budget} tokens of training each")
axis.grid(axis="x")
plt.show()

# %% [markdown]
# The ranges are far apart: 8% to 9% of the new words are right with *plain*, and 60% to 72% with
# *both spelled*. So spelling helps (SmolLM2-135M-Instruct, 20,000 tokens, three seeds, 200
# sentences). The word accuracy of *plain*, 34%, sounds better, but that comes from words that the
# model has met. So we score the new words separately.
#
# ## 8. When memory is short
#
# A larger batch gives a steadier gradient, but it may not fit into memory. Two arguments help:
#
# - `gradient_accumulation_steps=4` adds up the gradients of four batches before the optimizer
#   takes a step. Batch size times accumulation is the **effective batch size**: four batches of
#   one sentence should give the same step as one batch of four.
# - `gradient_checkpointing=True` keeps few activations for the backward pass and computes the
#   others again. The result should be the same, for less memory and more time.
#
# To check both, we train for one step on the same four sentences, three times.

# %% tags=["value:one-step"]
from transformers.trainer_callback import PrinterCallback

four = train.select(range(4))
rows = []
for batch, accumulation, checkpointing in ((4, 1, False), (1, 4, False), (4, 1, True)):
    once = make_trainer(
        four,
        max_steps=1,
        logging_steps=1,
        disable_tqdm=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
    )
    once.remove_callback(PrinterCallback)  # the table below is enough
    once.train()
    first, last = once.state.log_history[0], once.state.log_history[-1]
    rows.append(
        {
            "batch": batch,
            "accumulation": accumulation,
            "checkpointing": checkpointing,
            "loss": float(first["loss"]),
            "gradient norm": float(first["grad_norm"]),
            "seconds": last["train_runtime"],
        }
    )
pd.DataFrame(rows).round({"loss": 5, "gradient norm": 4, "seconds": 1})

# %% tags=["claim"]
one_step = pd.DataFrame(rows)
for column in ("loss", "gradient norm"):
    assert (one_step[column] / one_step.loc[0, column] - 1).abs().max() < (0.01 if on_cpu else 0.1)

# %% [markdown]
# The losses and the gradient norms agree. (We expect that the small difference in the second row is
# rounding.) They agree because transformers divides by the number of target tokens in the whole
# step. A mean of the four batches' means would favour short sentences. Checkpointing took more
# time. Notebook 04 shows what it saves.
#
# ## 9. Overfitting, and when to stop
#
# What if a model sees few examples, again and again? Here are 16 plain sentences, with a
# validation after every second step.
#
# **Guess first.** After how many of 40 steps is the validation loss lowest?

# %%
my_guess = None  # a number of steps, such as 20

# %%
from transformers import EarlyStoppingCallback


def plainly(row):
    """As `as_messages`, but not spelled."""
    return {
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row["sentence"]},
        ],
        "completion": [{"role": "assistant", "content": row["pig_latin"]}],
    }


few = pig_latin["train"].select(range(16)).map(plainly, remove_columns=columns_of_data)
watched = pig_latin["validation"].select(range(16)).map(plainly, remove_columns=columns_of_data)
stopping = {
    "eval_steps": 2,
    "save_strategy": "steps",  # a checkpoint at each validation, so that we can go back
    "save_steps": 2,
    "save_total_limit": 1,  # besides the best one
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}
patience = EarlyStoppingCallback(early_stopping_patience=3)
overfit = watch(make_trainer(few, watched, [patience], max_steps=40, **stopping))

# %% tags=["claim"]
assert preflight(overfit).ok

# %% tags=["figure:03_1_overfitting"]
_ = overfit.train()

# %% tags=["value:early-stopping"]
from course_utils.training import curves

lines = curves(overfit.state.log_history)
steps, losses = lines["validation"]
best = steps[losses.index(min(losses))]
print(f"best validation loss {min(losses):.2f} at step {best}; you guessed {my_guess}")
print(f"stopped at step {overfit.state.global_step} with {losses[-1]:.2f}")
back = overfit.evaluate()["eval_loss"]
print(f"the model we are left with: {back:.2f}")

# %% tags=["claim"]
assert best < overfit.state.global_step < 40
assert lines["training"][1][-1] < losses[-1]
assert abs(back - min(losses)) < 0.05

# %% [markdown]
# It is lowest after step 12. More training sounds better, but after step 12 the validation loss
# rises, while the training loss keeps falling: the model learns these sixteen sentences by heart.
# This is called *overfitting*. (One seed. The losses start higher than in section 4, probably
# because letters are easier to predict.)
#
# `EarlyStoppingCallback` ends the training when the validation loss has not improved three times
# in a row, here at step 18. `load_best_model_at_end` goes back to the best checkpoint.
#
# Did the model learn any Pig Latin? Here is its score on new sentences, beside that of the big
# training:

# %% tags=["value:memorised"]
plain_model = Runner(overfit.model.eval(), tokenizer)
rows = held_out["unseen"].select(range(16))
replies = plain_model(list(rows["sentence"]), system=SYSTEM, max_new_tokens=40)
memorised = scores(replies, rows)
for what, found in (("16 sentences:", memorised), ("big training:", results["tuned", "unseen"])):
    print(what, {name: round(value, 2) for name, value in found.items()})

# %% tags=["claim"]
assert memorised["new words"] < results["tuned", "unseen"]["new words"]

# %% [markdown]
# Hardly: 2% of all words are right, and no new word (16 sentences, one seed). Early stopping
# cannot replace data.
#
# ## 10. Keep it
#
# Only the adapter has to be saved. Does it work in a new process, which knows nothing of this one?

# %%
import json
import subprocess
import sys

saved = Path("models/pig-latin-adapter").absolute()
trainer.model.save_pretrained(saved)
print({file.name: f"{file.stat().st_size / 1e6:.2f} MB" for file in sorted(saved.iterdir())})

sentence = held_out["unseen"][0]["sentence"]
here = translate(tuned, [sentence])[0]
script = f"""
from peft import PeftModel
from course_utils import load_model, load_tokenizer
from course_utils.data import spell, unspell
from course_utils.models import Runner
model = PeftModel.from_pretrained(load_model("chat", quiet=True), {str(saved)!r})
ask = Runner(model, load_tokenizer("chat", quiet=True))
print(unspell(ask(spell({sentence!r}), system={SYSTEM!r}, max_new_tokens=120)))
"""
elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
print("here:             ", here)
print("in a new process: ", elsewhere.stdout.strip())

# %% tags=["claim"]
assert elsewhere.stdout.strip() == here, elsewhere.stderr

# %% [markdown]
# It does: the two translations agree.
#
# ### If the training is interrupted
#
# To continue a training, you need a **checkpoint**: adapter, optimizer, schedule, random states,
# and the place in the data. We start a small training in a new process, and kill it after two
# checkpoints.

# %%
import time

work = Path(tempfile.mkdtemp())
(work / "rows.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in pig_latin["train"].select(range(16)).map(plainly))
)
training_script = """
import sys, warnings
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
from course_utils import load_model, load_tokenizer

warnings.filterwarnings("ignore")
rows = load_dataset("json", data_files="rows.jsonl", split="train")
model = load_model("chat", quiet=True)
on_cpu = model.device.type == "cpu"
config = SFTConfig(
    output_dir=sys.argv[1], max_steps=8, per_device_train_batch_size=2, learning_rate=5e-4,
    logging_steps=1, save_strategy="steps", save_steps=2, seed=0, report_to="none",
    gradient_checkpointing=False, use_cpu=on_cpu, bf16=False, disable_tqdm=True,
)
trainer = SFTTrainer(
    model=model, args=config, train_dataset=rows.select_columns(["prompt", "completion"]),
    processing_class=load_tokenizer("chat", quiet=True),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
)
trainer.train(resume_from_checkpoint=len(sys.argv) > 2)
trainer.save_state()
"""
(work / "train.py").write_text(training_script)
log = work / "log.txt"


def start(*arguments):
    """The script in a process of its own; what it says goes into the log."""
    command = [sys.executable, "train.py", *arguments]
    with log.open("w") as said:
        return subprocess.Popen(command, cwd=work, stdout=said, stderr=said)


process = start("interrupted")
checkpoint = work / "interrupted" / "checkpoint-4" / "trainer_state.json"  # written last
while not checkpoint.exists() and process.poll() is None:
    time.sleep(0.05)
process.kill()
print("exit status:", process.wait())

print("on the disk:", sorted(path.name for path in (work / "interrupted").iterdir()))

# %% tags=["claim"]
assert process.returncode == -9, log.read_text()

# %% [markdown]
# The exit status −9 means that signal 9 killed the process.
# `trainer.train(resume_from_checkpoint=True)` continues from the last checkpoint. **Guess first.**
# Will the losses be those of an undisturbed training?

# %%
my_guess = None  # "yes" or "no"

# %%
for arguments in (["interrupted", "resume"], ["undisturbed"]):
    if start(*arguments).wait() != 0:
        print(log.read_text())


def losses_of(name):
    """The training loss of each step, as saved."""
    state = json.loads((work / name / "trainer_state.json").read_text())
    return {row["step"]: float(row["loss"]) for row in state["log_history"] if "loss" in row}


twice = pd.DataFrame({name: losses_of(name) for name in ("undisturbed", "interrupted")})
print(f"you guessed {my_guess}")
twice.round(3)

# %% tags=["value:resumed"]
difference = (twice["undisturbed"] - twice["interrupted"]).abs().max()
print(f"largest difference: {difference:.4f}")

# %% tags=["claim"]
assert list(twice.index) == list(range(1, 9))
assert difference < 0.05

# %% [markdown]
# Yes, the losses agree in all eight steps. The data is shuffled, but in the same way: the
# checkpoint also holds the random states.

# %% [markdown]
# ## Take away
#
# - Measure a baseline, and the score of doing nothing (section 1).
# - Look at the tokens, and try the form of the data before other settings (sections 2 and 7).
# - A short training needs a higher learning rate than a long one (section 4).
# - Run the pre-flight, then train, then compare with the untrained model (sections 4 and 5).
# - Test what you claim: on new words, and on what the model could do before (sections 5 and 6).
# - Batch size times accumulation is the effective batch size (section 8).
# - When the validation loss rises, stop and go back to the best checkpoint (section 9).
# - Save the adapter. In long trainings save checkpoints, and try once whether resuming works
#   (section 10).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** Asked with examples, the model gets a chrF of 18. The English sentences, returned
# unchanged, get 35. What does the 19 tell you?
#
# - **A** The model is nearly a fifth of the way to Pig Latin.
# - **B** chrF cannot be used for a task about letters.
# - **C** Nothing good: doing nothing would get more.
# - **D** The model has met these English sentences before.
#
# **b.** Why does it help to spell the words?
#
# - **A** The rule is about letters, and tokens hide them.
# - **B** It makes more sentences of the same data.
# - **C** The tokenizer does not know the words of Pig Latin.
# - **D** Spelled texts are longer, so the model is trained for longer.
#
# **c.** A model gets 95% of the words right in `test` and 30% in `unseen`. What has it learned,
# most likely?
#
# - **A** The rule, but not yet for long sentences.
# - **B** A list of the words that it was trained on.
# - **C** The rule, but its replies were sampled.
# - **D** Nothing: both numbers are luck.
#
# **d.** The training loss keeps falling; the validation loss has been rising for a while. Which
# model do you take?
#
# - **A** The one of a later step: the training loss can still fall.
# - **B** The last one, trained further at a lower learning rate.
# - **C** The last one: it has seen the data most often.
# - **D** The one with the lowest validation loss.

# %%
from course_utils.exercises import check, quiz

quiz("03.1", a="...", b="...", c="...", d="...")

# %% [markdown]
# **03.1.1 · Change one number.** Write `steps_for(passes, examples, batch, accumulation)`: the
# `max_steps` with which each example is taken `passes` times. `accumulation` batches make one
# step. (A last batch that is not full is a batch too.) Then ask the pre-flight how long one pass
# over our 3,000 sentences would take: `preflight(make_trainer(train, max_steps=...))`. On a CPU,
# our model has seen only 8% of them. How can it still know the rule?


# %% tags=["exercise"]
def steps_for(passes, examples, batch, accumulation=1):
    """How many steps take each example so many times."""
    ### BEGIN SOLUTION
    batches = -(-examples // batch)  # rounded up
    return passes * -(-batches // accumulation)
    ### END SOLUTION


# %%
check("03.1.1", steps_for)

# %% [markdown]
# **03.1.2 · The schedule.** Write `rate_at(step, peak, warm_up, total)`: the learning rate of a
# step (the first is 0) in a linear schedule such as ours. It rises from 0 at step 0 to `peak` at
# step `warm_up`, then falls to 0 at step `total`. Then compute the rate of our training at step
# 30, and find that step in the log of section 4.


# %% tags=["exercise"]
def rate_at(step, peak, warm_up, total):
    """The learning rate of a step."""
    ### BEGIN SOLUTION
    if step < warm_up:
        return peak * step / warm_up
    return peak * max(0.0, (total - step) / max(1, total - warm_up))
    ### END SOLUTION


# %%
check("03.1.2", rate_at)

# %% [markdown]
# **03.1.3 · On your own: when to stop.** Write `stop_at(losses, patience, least)`. It gets the
# validation losses as a list, in order, and returns a pair: the index of the validation after which
# the training ends, and that of the best one. The training ends when `patience` validations in a
# row have not been better than the best so far by *more than* `least`. If that never happens, it
# ends with the last. The best loss is the lowest so far, even if it is lower by less than `least`.
# The `EarlyStoppingCallback` of transformers does the same.


# %% tags=["exercise"]
def stop_at(losses, patience, least=0.0):
    """Losses to (index of the last validation, index of the best)."""
    ### BEGIN SOLUTION
    best = waited = 0
    for index, loss in enumerate(losses):
        waited = 0 if index == 0 or loss < losses[best] - least else waited + 1
        if loss < losses[best]:
            best = index
        if waited == patience:
            return index, best
    return len(losses) - 1, best
    ### END SOLUTION


# %%
check("03.1.3", stop_at)

# %% [markdown]
# Solutions: `notebooks/solutions/03.1_pig_latin.py`.
#
# ## To read
#
# - The TRL guide to [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer), and the list of
#   [TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer).
# - Popović, [chrF](https://aclanthology.org/W15-3049/): the measure and why it works for many
#   languages.
# - Itzhak and Levy, [Models in a Spelling Bee](https://arxiv.org/abs/2108.11193): how much
#   language models know of their tokens' letters.
# - The [glossary](../docs/glossary.md): the course's terms.
