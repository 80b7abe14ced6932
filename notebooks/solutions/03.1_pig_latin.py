# %% [markdown]
# # 03.1 · Fine-tuning Pig Latin
#
# **You will learn** to run a whole fine-tuning: a baseline first, data in the form that the model
# can use, the arguments that matter, a pre-flight, live curves, and an honest table of before and
# after, on words that the model has never been trained on. And what to do when it overfits, or
# when somebody pulls the plug.
#
# **You need** notebooks 02 (LoRA) and 03 (collators and masks).
#
# **It takes** about an hour of reading and trying. The cells themselves run in about ten minutes
# on two CPU cores, most of them the one big training; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand

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
# The task, as in notebook 03: a word that begins with a vowel gets *way* (*eat* → *eatway*); of any
# other word, all consonants before its first vowel go to the end, and *ay* follows (*string* →
# *ingstray*). *qu* moves as one.
#
# No training without a baseline. Three measures, from loose to strict:
#
# - **chrF** counts runs of letters that two texts share, 0 to 100. It rewards what is nearly right.
# - **Word accuracy** is the share of words that are right, in their place.
# - **Exact match** is the share of sentences without any mistake.

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
# Note the third line: English that nobody has translated at all gets some chrF. A score says little
# without the score of doing nothing.
#
# Two sets of held-out sentences: `test` has words that also occur in the training data, in other
# sentences. In `unseen`, no content word does: no noun, verb, adjective or adverb. (*The* and *my*
# are everywhere.)

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
# Hardly a word is right; in our run, not one. By chrF, what it wrote was even further from Pig Latin
# than a sentence that is left alone. That is our baseline.
#
# ## 2. What the model sees
#
# Pig Latin is a rule about letters. Here is what the model gets to see of it:

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
# *smile* is one number, and nothing about that number says that it begins with *sm*. To move the
# *sm*, the model first has to know by heart how each of its tokens is spelled. A large model has
# picked that up in pre-training, more or less. A small one has not.
#
# We can take that burden from it: **spell the words**, in what it gets and in what it shall answer.

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
# Now each letter is a token. A short system prompt names the task; the sentence stands in the
# user's turn; the answer is the completion, which alone is trained on (notebook 03). White space
# joins the letters again afterwards, so that what is scored is Pig Latin as anybody writes it.

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
# `SFTConfig` has more than a hundred. These decide how a training goes, each with what it is if you
# do not say anything. You need not know them all: run through the first column, and look up names
# when you need them. (−1 and `None` mean that something else decides.)

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
# Of these, the ones that we are going to set:
#
# - A training goes on for `num_train_epochs`, passes over all examples; or, if `max_steps` is given,
#   for so many **steps**. Each step takes one **batch** and changes the weights once. (With
#   `gradient_accumulation_steps` it takes several batches for one change.)
# - `learning_rate` says how far a step goes, at its peak. It rises to that in the first
#   `warmup_steps`, and then falls, here on a straight line, to zero: `lr_scheduler_type`.
# - Every `logging_steps` the training loss is noted, every `eval_steps` the loss on the validation
#   sentences; every `save_steps` all is saved.
#
# Most of them are those of transformers' `TrainingArguments`. TRL has changed some defaults. **Guess
# first**: which, and why?

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
# A learning rate for *all* weights of a model that knows much already: small. LoRA takes ten times
# as much and more; a short training of a small model, like ours, a hundred times and more. And 16-bit
# arithmetic (`bf16=None` means yes, unless `fp16` is set) and gradient checkpointing (notebook 04) to
# save a GPU's memory; on a CPU neither is wanted. And a loss noted more often, to have a curve.
#
# If an older recipe stops with `unexpected keyword argument`, it may be one of these:

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
# What depends on the machine (how many steps, how large a batch) is looked up; the rest stands here
# to be read, and changed. It is a function, because section 8 will train once more.

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
# Two of these lines are the course's own. `watch` draws the losses while you wait. `faster_on_cpu`
# computes the same loss in a way that suits a CPU; it does nothing elsewhere.
#
# Before it costs minutes: the checks.

# %%
from course_utils import preflight

report = preflight(trainer)
print(report)

# %% tags=["claim"]
assert report.ok

# %% [markdown]
# Read the lines *batch and steps* and *expected minutes*: how much of the data will be seen, and how
# long you will wait. Then decide whether it is worth that.
#
# If you run a cell with `train()` a second time, it trains the same adapter further. To start over,
# first run the cell that makes its trainer.
#
# **Guess first.** What share of the words will be right at the end: of those it has trained on
# (`test`), and of those it has not (`unseen`)? Write 0.5 for a half.

# %%
my_guess_right = {"test": 0.5, "unseen": 0.1}

# %% tags=["figure:03_1_losses"]
_ = trainer.train()

# %% [markdown]
# If the curve has spikes: the learning rate is at the upper end, and now and then a step goes too
# far. As the rate falls, they end.
#
# ## 5. Before and after

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
# The mistakes that remain, among words it has never been trained on. Look for the place in each: is it
# the rule that fails, or has a letter been lost or doubled in the copying?

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
# ## 6. What has it learned?
#
# A rule, or a habit that mostly agrees with it? Ask for words that nobody has ever used, so that
# there is nothing to remember. We take six of each kind, put each into a short sentence, and look at
# that one word of the reply:
#
# - words that begin with a vowel, with one, two or three consonants, with *qu*, or with *y*;
# - very long words; words in capitals, which stay in capitals; words with an apostrophe, which is
#   kept (*don't* → *on'tday*); and numbers, which stay as they are.
#
# **Guess first:** which kind is the hardest? (The table shows two words of each kind, the picture all
# six.)

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
# For words built as those it was trained on, it has learned the rule, and no list: these it cannot
# have met. Twice the length is no obstacle either. But capitals, apostrophes and numbers, for which
# the rule book has an answer too, never occur in the data, and there it has nothing to go by: what
# is not shown is not learned. (Adding a few of each would be the cure.)
#
# ### Sampling or greedy?
#
# There is one right answer, so we took the likeliest token each time. With a temperature, unlikely
# tokens get their chance, and one wrong letter spoils a word:

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
# Sampling is for tasks with many good answers.
#
# ## 7. What else was tried
#
# The spelling did not fall from the sky. Each row below is a training of its own, shorter than ours;
# all have seen the same number of tokens, padding included, which is nearly the same time.
# `benchmarks/pig_latin.py` runs them again.
#
# The names: *plain* is neither side spelled, *spelled prompt* and *spelled answer* are one side only,
# *both spelled* is ours. *Word lists* has single words in place of sentences, and *curriculum* begins
# with single words and goes on to sentences. What a name does not say is as above. The last three
# columns are the shares of words, and of whole sentences, that are right.

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
# Plain words are learned too, up to a point: with the short, frequent ones the model gets far. What
# it lacks shows in whole sentences. Spelled, a sentence costs two or three times the tokens, so that
# the same computation sees fewer of them, and still it pays. But only if *both* sides are spelled:
# with one alone, the model has to know the letters of its tokens after all. Lists of words instead of
# sentences teach little of sentences.
#
# Of the knobs, each was near its best: the learning rate (half or double of it is worse), the rank
# (so are 4 and 64), a small batch, which buys more steps. Packing, and a random order in place of
# like lengths, change little. The curriculum was worth less than the sentences whose tokens it took.
# One seed each: differences of a few hundredths mean nothing.
#
# ## 8. Too much of a good thing
#
# Few examples, seen again and again: the training loss goes to zero, and what of new sentences?
# Here are 16 plain sentences (unspelled, to be quick), with a validation after every second step.
#
# **Guess first:** the lowest validation loss comes after how many of 40 steps?

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
# While the training loss goes on falling, the other rises: from there on, the model learns these
# sixteen sentences, and no more Pig Latin. `EarlyStoppingCallback` ends the training when the
# validation loss has not improved three times in a row, and `load_best_model_at_end` goes back to
# the best checkpoint.
#
# Did it learn any Pig Latin at all? Its score on new sentences, beside that of the big training:

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
# ## 9. Keep it
#
# The adapter is all that has to be saved. Does it work in a process that knows nothing of this one?
# (`keep_adapter` saves it where notebook 03.2 finds it; it is `save_pretrained` into the course's
# cache.)

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
# ### When the power goes
#
# A long training saves checkpoints: adapter, optimizer, schedule, random states, and where in the
# data it is. We start a small one in a process of its own, and kill it (really: signal 9) as soon
# as its second checkpoint is there.

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
# `trainer.train(resume_from_checkpoint=True)` takes the last one. **Guess first:** is the result the
# same as that of a training that nobody has disturbed?

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
# As if nothing had happened. That holds only because *everything* is in the checkpoint, the random
# states and the place in the data included: somebody who saves the adapter alone and starts anew
# gets another schedule and the same sentences once more.

# %% [markdown]
# ## Take away
#
# - Baseline first; held-out data that tests what you claim; more than one measure.
# - Look at the tokens: what they hide is hard to learn. The format of the data is a setting too; try
#   it before the others.
# - Pre-flight, then train, then compare with the untrained model.
# - When the validation loss turns up, stop and go back: `EarlyStoppingCallback`,
#   `load_best_model_at_end`.
# - Save the adapter; for long trainings save checkpoints, and try once whether resuming works.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** Asked with examples, the model gets a chrF of 19. The English sentences, handed back
# untouched, get 35. What does the 19 say?
#
# - **A** The model is a fifth of the way to Pig Latin
# - **B** chrF cannot be used for a task about letters
# - **C** Nothing good: doing nothing would get more
# - **D** The model has met these English sentences before
#
# **b.** Why does it help to spell the words?
#
# - **A** The rule is about letters, and tokens hide them
# - **B** It makes more sentences of the same data
# - **C** The tokenizer does not know the words of Pig Latin
# - **D** Spelled texts are longer, so it is trained for longer
#
# **c.** Somebody's model gets 95% of the words right in `test` and 30% in `unseen`. What has it
# learned, most likely?
#
# - **A** The rule, but not yet for long sentences
# - **B** A list of the words that it was trained on
# - **C** The rule, but its replies were sampled
# - **D** Nothing: both numbers are luck
#
# **d.** The training loss falls and falls; the validation loss has been rising for a while. Which
# model do you take?
#
# - **A** The one of a later step: the training loss still has room
# - **B** The last one, trained on at a lower learning rate
# - **C** The last one: it has seen the data most often
# - **D** The one with the lowest validation loss

# %%
from course_utils.exercises import check, quiz

quiz("03.1", a="...", b="...", c="...", d="...")

# %% [markdown]
# **03.1.1 · Change one number.** Write `steps_for(passes, examples, batch, accumulation)`: the
# `max_steps` with which each of so many examples is taken that many times. (A last batch that is not
# full is a batch too.) Then let the pre-flight of section 4 say how long one pass over our 3,000
# sentences would take: `preflight(make_trainer(train, max_steps=...))`. On a CPU, ours has seen
# hardly more than a fifth of them. How can it know the rule all the same?


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
# **03.1.2 · The schedule.** Write `rate_at(step, peak, warm_up, total)`: the learning rate of the
# step with that number (the first is 0) for a linear schedule, as ours: it rises from 0 at step 0
# to `peak` at step `warm_up`, then falls to 0 at step `total`. Then look at the spikes in your curve
# of section 4: how high was the rate at the last of them?


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
# **03.1.3 · Alone: when to stop.** Write `stop_at(losses, patience, least)`, which gets the
# validation losses one after the other, as a list, and gives a pair: the index of the validation
# after which a training ends, and the index of the best one. It ends when `patience` validations in
# a row have not been better than the best so far by *more than* `least`. If that never happens, it
# ends with the last. The best so far is the lowest loss so far, even where it is lower by less than
# `least`. This is what the `EarlyStoppingCallback` of transformers does.


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
# - Itzhak and Levy, [Models in a Spelling Bee](https://arxiv.org/abs/2108.11193): how much language
#   models know of their tokens' letters.
# - The [glossary](../docs/glossary.md): the course's words.
