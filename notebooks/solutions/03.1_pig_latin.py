# %% [markdown]
# # 03.1 · Fine-tuning Pig Latin
#
# **You will learn** to run a whole fine-tuning: a baseline, data in a form that the model can use,
# the arguments that matter, a check before the training, live curves, and a fair test on new
# words. And what to do when a model overfits, or a training is interrupted.
#
# **You need** notebooks 02 (LoRA) and 03 (collators and masks).
#
# **It takes** about an hour of reading and trying. The cells themselves run in about ten minutes
# on two CPU cores, mostly for the one big training; on GPUs, not yet measured.

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
# First we measure a **baseline**: the score without the training. There are three scores, from
# loose to strict:
#
# - **chrF** counts runs of letters that two texts share, from 0 to 100. It rewards what is nearly
#   right.
# - **Word accuracy** is the share of words that are right, in their place.
# - **Exact match** is the share of sentences without any mistake.
#
# Here are the scores of a perfect reply, one with a wrong word, and plain English:

# %%
from course_utils.scoring import reference_scores

wanted = ["Ethay ingstray isway edray."]
for reply in ("Ethay ingstray isway edray.", "Ethay ringstay isway edray.", "The string is red."):
    print(
        {name: round(value, 2) for name, value in reference_scores([reply], wanted).items()}, reply
    )

# %% tags=["claim"]
assert reference_scores(wanted, wanted) == {"exact match": 1.0, "word accuracy": 1.0, "chrF": 100.0}

# %% [markdown]
# Untranslated English gets a chrF of 16. So we also need the score of doing nothing.
#
# There are two sets of held-out sentences:
#
# - `test` has words that also occur in the training data, in other sentences.
# - `unseen` has **unseen words**: none of its nouns, main verbs and adjectives is in the training
#   data. (*The* and *my* are everywhere.)
#
# Only a model that has learned the rule can do well on `unseen`. Now the untrained chat model gets
# 40 sentences of each set, with two examples in the prompt. "Nothing done" is untouched English.

# %% tags=["value:held-out"]
from course_utils import runner

EXAMPLES = 40
pig_latin = load_data("pig_latin")
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
    replies = chat([request + sentence for sentence in rows["sentence"]], max_new_tokens=40)
    results["asked with examples", name] = reference_scores(replies, rows["pig_latin"])
    results["nothing done", name] = reference_scores(rows["sentence"], rows["pig_latin"])
pd.DataFrame(results).T.round(2)

# %% tags=["claim"]
baseline = max(results["asked with examples", name]["word accuracy"] for name in held_out)
assert baseline < 0.2

# %% [markdown]
# Not one word is right (SmolLM2-135M-Instruct, 40 sentences a set, one prompt). This is our
# baseline. By chrF (19 and 16), the replies are even further from Pig Latin than untouched English
# (35; the value depends on the sentences).
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


def translate(ask, sentences, **options):
    """Sentences to Pig Latin, by a tuned model."""
    replies = ask([spell(text) for text in sentences], system=SYSTEM, max_new_tokens=160, **options)
    return [unspell(reply) for reply in replies]


# %% [markdown]
# ## 3. The arguments, by what they are for
#
# `SFTConfig` has more than a hundred arguments. These decide how a training runs. Look up a name
# when you need it. (−1 and `None` mean that something else decides.)

# %% tags=["value:arguments"]
import dataclasses

from transformers import TrainingArguments
from trl import SFTConfig

purposes = {
    "how long, how much": "max_steps num_train_epochs per_device_train_batch_size "
    "gradient_accumulation_steps",
    "how fast it learns": "learning_rate lr_scheduler_type warmup_steps optim weight_decay "
    "max_grad_norm",
    "which tokens": "max_length completion_only_loss assistant_only_loss packing padding_free "
    "train_sampling_strategy",
    "memory and speed": "bf16 fp16 gradient_checkpointing use_cpu torch_compile",
    "watching": "logging_steps eval_strategy eval_steps per_device_eval_batch_size report_to "
    "disable_tqdm",
    "keeping": "output_dir save_strategy save_steps save_total_limit load_best_model_at_end "
    "metric_for_best_model",
    "the same again": "seed data_seed full_determinism",
}


def defaults(kind):
    """The arguments of a configuration class with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind)}


known = defaults(SFTConfig)
text_table(
    pd.DataFrame(
        [
            {"purpose": purpose, "argument": name, "default": str(known[name])}
            for purpose, names in purposes.items()
            for name in names.split()
        ]
    )
)

# %% [markdown]
# We will set these:
#
# - `num_train_epochs`: how many **epochs** to train. An epoch is one pass over all examples. If
#   `max_steps` is given, it decides instead. In a **step**, the optimizer takes one **batch** and
#   changes the weights once. (With `gradient_accumulation_steps`, it takes several batches.)
# - `learning_rate`: the **learning rate** says how far a step changes the weights. You set its
#   peak. In our **schedule** (`lr_scheduler_type`), it rises in the first `warmup_steps`, the
#   **warm-up**, and then falls to zero on a straight line.
# - `logging_steps`, `eval_steps`, `save_steps`: how often to note the training loss, compute the
#   validation loss, and save.
#
# Most of these belong to transformers' `TrainingArguments`. TRL has changed some defaults. **Guess
# first:** which, and why?

# %%
my_guess = ["..."]

# %% tags=["value:changed-defaults"]
general = defaults(TrainingArguments)
changed = {
    name: {"transformers": general[name], "TRL": value}
    for name, value in known.items()
    if name in general and str(general[name]) != str(value)
}
print("You said:", ", ".join(my_guess))
pd.DataFrame(changed).T

# %% tags=["claim"]
assert "learning_rate" in changed
assert "gradient_checkpointing" in changed

# %% [markdown]
# Most people name the learning rate, and miss those about memory and display. The likely reasons:
#
# - `learning_rate`: to train *all* weights of a model that knows much, take small steps. LoRA
#   takes ten times as much and more.
# - `bf16` (`None` means yes, unless `fp16` is set) and `gradient_checkpointing` (notebook 04) save
#   a GPU's memory. On a CPU we switch both off.
# - `logging_steps`: a short training needs a curve, too.
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
assert not {"max_seq_length", "evaluation_strategy", "group_by_length", "no_cuda"} & set(known)

# %% [markdown]
# ## 4. Train
#
# `recipe` looks up what depends on the machine. Everything else stands in the function
# `make_trainer`, which section 8 will use again.

# %% tags=["value:plan"]
from course_utils.hardware import pick_dtype, tier
from course_utils.models import recipe

machine = tier().value
plan = recipe("pig_latin", machine)
on_cpu = chat.model.device.type == "cpu"
print(f"{plan['steps']} steps of {plan['batch']} sentences: {plan['why']}")
print(f"learning rate at its peak: {plan['learning_rate']}")

# %%
from peft import LoraConfig
from trl import SFTTrainer

from course_utils import load_model
from course_utils.training import faster_on_cpu, watch


def make_trainer(train, validation=None, callbacks=(), model=None, **options):
    """An SFTTrainer with a fresh LoRA adapter; options go to SFTConfig."""
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "learning_rate": plan["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 5,
        "per_device_train_batch_size": plan["batch"],
        "train_sampling_strategy": "group_by_length",  # sentences of like length: less padding
        "logging_steps": 2,
        "eval_strategy": "no" if validation is None else "steps",
        "per_device_eval_batch_size": 16,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and pick_dtype().value == torch.bfloat16,
        "fp16": not on_cpu and pick_dtype().value == torch.float16,
        "seed": 0,
    }
    trainer = SFTTrainer(
        model=model or load_model("chat", quiet=True),
        args=SFTConfig(**{**usual, **options}),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=list(callbacks),
    )
    return faster_on_cpu(watch(trainer))


trainer = make_trainer(train, validation, max_steps=plan["steps"], eval_steps=plan["steps"] // 5)

# %% [markdown]
# Two lines are the course's own: `watch` draws the losses while you wait, and `faster_on_cpu`
# computes the same loss faster on a CPU.
#
# Why is the learning rate so high? On a CPU it is 0.004, and 0.0001 to 0.0002 is usual for LoRA.
# Our training is short, so each step has to change more. Section 7 gives a hint of this: after 70
# steps, 87% of the words in `unseen` were right with 0.004, and 69% with 0.001 (n = 30, one seed).
# We also expect that a small model bears a higher rate.
#
# The training takes minutes, so check it first:

# %%
from course_utils import preflight

report = preflight(trainer)
print(report)

# %% tags=["claim"]
assert report.ok

# %% [markdown]
# Read the lines *batch and steps* and *expected minutes*: the training will see a fifth of the
# data, in about 11 minutes (on one core; the recipe's 6 are for two).
#
# A cell with `train()`, run again, trains the same adapter further. To start over, make a new
# trainer first.
#
# **Guess first.** What share of the words will be right at the end, in `test` and in `unseen`?
# Write 0.5 for a half.

# %%
my_guess_right = {"test": 0.5, "unseen": 0.1}

# %% tags=["figure:03_1_losses"]
_ = trainer.train()

# %% [markdown]
# Both losses end near zero, but our curve has spikes. Those at steps 52 and 102 probably come from
# the order of the sentences. `group_by_length` draws 50 batches, sorts them from long to short,
# and draws the next 50. So at steps 51 and 101, long sentences follow short ones. The high
# validation loss at step 96, after many short sentences, fits this. At step 16, a step at a high
# rate probably went too far. We have not tested these explanations.
#
# ## 5. Before and after
#
# The tuned model now translates the same sentences:

# %% tags=["value:before-after"]
from course_utils.models import Runner

tuned = Runner(trainer.model.eval(), tokenizer)
after = {}
for name, rows in held_out.items():
    after[name] = translate(tuned, rows["sentence"])
    results["tuned", name] = reference_scores(after[name], rows["pig_latin"])
table = pd.DataFrame(results).T.sort_index().round(2)
table["your guess"] = [my_guess_right[name] if how == "tuned" else "" for how, name in table.index]
table

# %% tags=["claim"]
known_words = results["tuned", "test"]["word accuracy"]
new_words = results["tuned", "unseen"]["word accuracy"]
assert known_words >= 0.9
assert new_words >= 0.6

# %% [markdown]
# Of the words, 97% in `test` and 96% in `unseen` are right (40 sentences a set, one seed). Many
# people guess far less for `unseen`, because they expect the model to memorise words. (Word
# accuracy also counts small words such as *the*.) Exact match is lower, because one wrong word
# spoils a sentence. The sets differ by two sentences, which means nothing.
#
# Here are mistakes in `unseen`. Does the rule fail, or is a letter lost or doubled in copying?

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
# Most of these are mistakes of copying: an extra letter (*olphindray*), two words in one
# (*etmanymay*), a word twice (*addlepay addleslay*). In *yakyay* the rule fails: the *y* also
# stays in front.
#
# ## 6. What has it learned?
#
# Has the model learned the rule, or a list of words? We ask for invented words, which it cannot
# remember: six of each kind, each in a short sentence.
#
# - words that begin with a vowel, with one, two or three consonants, with *qu*, or with *y*;
# - kinds that the training data lacks: very long words; capitals, which stay capitals; an
#   apostrophe, which is kept (*don't* → *on'tday*); and numbers, which stay as they are.
#
# **Guess first:** which kind is the hardest? (The table shows two words of each.)

# %%
my_guess = "..."

# %%
from course_utils.data import pig_latin as by_rule

kinds = {
    "vowel": "ulmer amvil eskond oplin ibrat ungel",
    "one consonant": "bimmle dorvit zaffel gantor lumper fodget",
    "two": "plimmer drovick snaddle gribbet flonter twiggle",
    "three": "strindle splommer scraddick threnter sprangle schlomper",
    "qu": "quindle quaffet squimmer quolder squandit quimper",
    "y in front": "yambler yonkit yeddle yurrup yofter yilling",
    "very long": "bimblefranterously plondermastification snaggleworthification "
    "quindlehoffermentary overdrantlementing grimpelstonderation",
    "in capitals": "NASTO BRIMP SPLOG UNTEX QUAB YOFF",
    "apostrophe": "blom's strin't van'k o'dran trev'l quib's",
    "a number": "42 7 1999 300 3rd 12th",
}
rows = []
for kind, words in kinds.items():
    frames = [f"The {word} is happy." for word in words.split()]
    for frame, got in zip(frames, translate(tuned, frames), strict=True):
        wanted, given = by_rule(frame).split()[1], [*got.split(), "", ""][1]
        rows.append({"kind": kind, "wanted": wanted, "got": given, "right": given == wanted})
nonsense = pd.DataFrame(rows)
by_kind = nonsense.groupby("kind", sort=False)["right"].mean()
print("You said:", my_guess)
text_table(nonsense.groupby("kind", sort=False).head(2))

# %% tags=["figure:03_1_nonsense"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREY, ORANGE, use_style

use_style()
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
assert usual > 0.7
assert usual > odd

# %% [markdown]
# Many people guess the very long words, but those are all right, as are the 36 words of usual
# kinds. Of the 18 with capitals, apostrophes or digits, none is right (one seed). Together with
# the very long words, that makes 25%.
#
# So the model has learned the rule for words like those in its data, and a long word needs the
# same rule. Capitals, apostrophes and numbers need rules that no example shows: *42* becomes
# *42way*. We expect that a few such examples would help.
#
# ### Sampling or greedy?
#
# So far we took the likeliest token each time. **Sampling**, with a temperature, gives unlikely
# tokens a chance, too, and one wrong letter spoils a word:

# %%
few = held_out["test"].select(range(12))
rows = []
for temperature in (0, 0.7, 1.5):
    replies = translate(tuned, few["sentence"], temperature=temperature, seed=0)
    rows.append({"temperature": temperature} | reference_scores(replies, few["pig_latin"]))
heat = pd.DataFrame(rows).set_index("temperature")
heat.round(2)

# %% tags=["claim"]
assert heat.loc[0, "word accuracy"] > heat.loc[1.5, "word accuracy"]

# %% [markdown]
# Greedy decoding gets 9 of the 12 sentences right, a temperature of 1.5 gets 4 (one seed). At 0.7
# it is 8: too close to tell. Use sampling for tasks with many good answers.
#
# ## 7. What else was tried
#
# Is it necessary to spell the words? Each row below is a shorter training, run by
# `benchmarks/pig_latin.py`. All saw the same number of tokens, padding included. The last three
# columns are the shares of words, and of whole sentences, that are right.
#
# - *plain* spells neither side, *spelled prompt* and *spelled answer* one, and *both spelled*
#   both.
# - *word lists* has words in place of sentences, and *curriculum* begins with words.
# - `lr` is the peak learning rate (otherwise 4e-3), `r` the rank (16), `batch` the batch size (4).
#   *random order* does not group by length.
#
# Each row has one seed and n = 30 sentences a set, so read only large differences.

# %%
from course_utils.data import folder
from course_utils.results import whole_rows

tried = pd.DataFrame(whole_rows(folder().parent / "benchmarks" / "results" / "pig_latin.jsonl"))
budget, minutes = tried.loc[0, "tokens"], tried["train_seconds"].median() / 60
print(f"{tried.loc[0, 'machine']}: {budget} tokens each, about {minutes:.1f} minutes of training")
columns = {
    "variant": "variant",
    "steps": "steps",
    "test_words": "test: words",
    "unseen_words": "unseen: words",
    "unseen_exact": "unseen: sentences",
}
shown = tried[list(columns)].rename(columns=columns).set_index("variant")
shown.sort_values("unseen: words", ascending=False).round(2)

# %% tags=["figure:03_1_tried"]
ordered = tried.sort_values("unseen_words")
places = range(len(ordered))
figure, axis = plt.subplots(figsize=(6.5, 0.8 + 0.32 * len(ordered)))
axis.hlines(places, ordered["unseen_words"], ordered["test_words"], color=GREY, linewidth=1)
axis.plot(ordered["test_words"], places, "o", color=ORANGE, label="test")
axis.plot(ordered["unseen_words"], places, "o", color=BLUE, label="unseen words")
axis.set_yticks(places, ordered["variant"])
axis.margins(y=0.12)
axis.set_xlim(-0.02, 1)
axis.set_xlabel("word accuracy")
axis.set_title(f"After {budget} tokens of training each")
axis.grid(axis="x")
axis.legend(loc="lower right")
plt.show()

# %%
result = tried.set_index("variant")[["unseen_words", "unseen_exact"]]
best, plain_text = result.loc["both spelled"], result.loc["plain"]
print(f"words: {plain_text.iloc[0]:.0%} → {best.iloc[0]:.0%} by spelling them")
print(f"whole sentences: {plain_text.iloc[1]:.0%} → {best.iloc[1]:.0%}")

# %% tags=["claim"]
unseen = result["unseen_words"]
assert best["unseen_words"] > plain_text["unseen_words"] + 0.2
assert max(unseen["spelled prompt"], unseen["spelled answer"], unseen["word lists"]) < 0.5
for change in ("lr 1e-3", "lr 2e-3", "lr 8e-3", "r=4", "r=64", "batch 8", "curriculum"):
    assert unseen[f"both spelled, {change}"] < best["unseen_words"], change

# %% [markdown]
# The large differences, for SmolLM2-135M-Instruct:
#
# - **Spelling both sides helps.** All eleven such rows are above the others: at least 66% of the
#   words in `unseen`, against at most 50%, and 27% of the sentences, against 3%. This holds
#   although *both spelled* had only 70 steps, and *plain* 176: spelled sentences have more tokens.
# - **Spelling one side did not help.** *spelled answer* is far below *plain*, and *spelled prompt*
#   too close to tell. We suppose that the model still had to know the letters of its tokens.
# - **Lists of words** taught little about sentences.
#
# Do not rank the *both spelled* rows. Lower rates, batch 8 and the curriculum have the low places,
# which is a hint at most. A ranking needs more seeds and sentences.
#
# ## 8. Overfitting, and when to stop
#
# What if a model sees few examples, again and again? Here are 16 plain sentences (unspelled, to be
# quick), with a validation after every second step.
#
# **Guess first:** after how many of 40 steps is the validation loss lowest?

# %%
my_guess = 40

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
overfit = make_trainer(
    few, watched, [EarlyStoppingCallback(early_stopping_patience=3)], max_steps=40, **stopping
)

# %% tags=["claim"]
assert preflight(overfit).ok

# %% tags=["figure:03_1_overfitting"]
_ = overfit.train()

# %% tags=["value:early-stopping"]
from course_utils.training import curves

lines = curves(overfit.state.log_history)
steps, losses = lines["validation"]
best = steps[losses.index(min(losses))]
print(f"best validation loss {min(losses):.2f} at step {best} (you said {my_guess})")
print(f"stopped at step {overfit.state.global_step} with {losses[-1]:.2f}")
back = overfit.evaluate()["eval_loss"]
print(f"the model we are left with: {back:.2f}")

# %% tags=["claim"]
assert best < overfit.state.global_step < 40
assert lines["training"][1][-1] < losses[-1]
assert abs(back - min(losses)) < 0.05

# %% [markdown]
# After step 12. Many people guess 40, because more training sounds better. But after step 12 the
# validation loss rises, while the training loss keeps falling: the model learns these sixteen
# sentences by heart. This is called *overfitting*. (One seed. The losses start higher than in
# section 4, probably because letters are easier to predict.)
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
memorised = reference_scores(replies, rows["pig_latin"])
for what, found in (("16 sentences:", memorised), ("big training:", results["tuned", "unseen"])):
    print(what, {name: round(value, 2) for name, value in found.items()})

# %% tags=["claim"]
assert memorised["word accuracy"] < new_words

# %% [markdown]
# Hardly: 1% of the words are right (16 sentences, one seed). Early stopping cannot replace data.
# (The big training also spelled its words, which may explain some of the gap.)
#
# ## 9. Keep it
#
# Only the adapter has to be saved. `keep_adapter` does so with `save_pretrained`, where notebook
# 03.2 finds it. Does the adapter work in a new process, which knows nothing of this one?

# %%
import json
import subprocess
import sys

from course_utils.training import keep_adapter

saved = keep_adapter(trainer.model, "pig_latin")
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
print(unspell(ask(spell({sentence!r}), system={SYSTEM!r}, max_new_tokens=160)))
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
    "".join(json.dumps(row) + "\n" for row in pig_latin["train"].select(range(24)).map(plainly))
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
    output_dir=sys.argv[1], max_steps=12, per_device_train_batch_size=2, learning_rate=5e-4,
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
# `trainer.train(resume_from_checkpoint=True)` continues from the last checkpoint. **Guess first:**
# will the losses be those of an undisturbed training?

# %%
my_guess = "..."

# %%
for arguments in (["interrupted", "resume"], ["undisturbed"]):
    if start(*arguments).wait() != 0:
        print(log.read_text())


def losses_of(name):
    """The training loss of each step, as saved."""
    state = json.loads((work / name / "trainer_state.json").read_text())
    return {row["step"]: float(row["loss"]) for row in state["log_history"] if "loss" in row}


twice = pd.DataFrame({name: losses_of(name) for name in ("undisturbed", "interrupted")})
print("You said:", my_guess)
twice.round(3)

# %% tags=["value:resumed"]
difference = (twice["undisturbed"] - twice["interrupted"]).abs().max()
print(f"largest difference: {difference:.4f}")

# %% tags=["claim"]
assert list(twice.index) == list(range(1, 13))
assert difference < 0.05

# %% [markdown]
# Yes, in all twelve steps. Many people expect a difference, because the data is shuffled. But the
# checkpoint holds the random states, too. With the adapter alone, you would get a new schedule and
# the same sentences again. (Losses jump because a step has two sentences.)

# %% [markdown]
# ## Take away
#
# - Measure a baseline, and the score of doing nothing (section 1).
# - Test what you claim: unseen and invented words show what the model has learned (sections 5 and
#   6).
# - Look at the tokens, and try the form of the data before other settings (sections 2 and 7; n =
#   30, one seed).
# - Run the pre-flight, then train, then compare with the untrained model (sections 4 and 5).
# - When the validation loss rises, stop and go back: `EarlyStoppingCallback`,
#   `load_best_model_at_end` (section 8).
# - Save the adapter. For long trainings save checkpoints, and try once whether resuming works
#   (section 9).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** Asked with examples, the model gets a chrF of 19. The English sentences, returned
# unchanged, get 35. What does the 19 tell you?
#
# - **A** The model is a fifth of the way to Pig Latin.
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
# our model has seen only a fifth of them. How can it still know the rule?


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
# step `warm_up`, then falls to 0 at step `total`. Then look at your curve of section 4: how high
# was the rate at the last spike?


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
# **03.1.3 · Alone: when to stop.** Write `stop_at(losses, patience, least)`. It gets the
# validation losses as a list, in order, and returns a pair: the index of the validation after
# which the training ends, and that of the best one. The training ends when `patience` validations
# in a row have not been better than the best so far by *more than* `least`. If that never happens,
# it ends with the last. The best so far is the lowest loss so far, even where it is lower by less
# than `least`. The `EarlyStoppingCallback` of transformers does the same.


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
# - The [glossary](../docs/glossary.md): the course's words.
