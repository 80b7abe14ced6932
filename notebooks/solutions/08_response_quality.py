# %% [markdown]
# # 08 · Response quality
#
# **You will learn** why a falling loss does not mean better answers, what the usual scores see and
# what they miss, when "better" is more than luck, how people and models judge side by side and how
# far either can be trusted, how to notice that a test has leaked into the training, and what the
# standard benchmarks ask.
#
# **You need** notebooks 02 (LoRA) and 06 (instruction tuning).
#
# **It takes** about an hour and a half of reading and trying. The cells themselves run in about
# three minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand

# %%
import copy
import logging
import random
import re
import tempfile
import warnings
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers

from course_utils import describe
from course_utils.display import BLUE, GREEN, GREY, ORANGE, RED, text_table, use_style

# Inside the libraries, of no concern here: an argument's old name, and notes on saving.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
warnings.filterwarnings("ignore", message="Could not find a config file")
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
use_style()

print(describe())

# %% [markdown]
# ## 1. Loss is not quality
#
# Whoever trains a classifier may trust its loss a good deal: a lower one mostly means more right
# classes. A model that writes is another matter. We look at one that learns to answer questions
# about countries, as in notebook 06, but in whole sentences. So there is a *form* to get right, and
# a *fact*, and the two can part company.

# %%
from course_utils import load_model, load_tokenizer
from course_utils.data import load_data

OWN = "course/pythia-3m"
QA = "Question: {prompt}\nAnswer:"
base = load_model(OWN, dtype=torch.float32)
tokenizer = load_tokenizer(OWN)
countries = load_data("countries")
held_out = countries["held_out"]


def sentence(row):
    """The reference: a whole sentence that answers a row of `countries`."""
    return f"{row['cue']} {row['answer']}."


def pairs(rows):
    """Rows of `countries` as SFTTrainer wants them."""
    return rows.map(
        lambda row: {
            "prompt": QA.replace("{prompt}", row["question"]),
            "completion": f" {sentence(row)}",
        },
        remove_columns=rows.column_names,
    )


pairs(countries["train"])[0]

# %% [markdown]
# Each time the validation loss is computed, we also *ask* the same validation questions. A reply
# counts as right if the answer stands in it, whatever stands around it.

# %%
from transformers import TrainerCallback

from course_utils.running import Runner


def tells(reply, answer):
    """Whether a reply has the answer in it, as a whole word."""
    return bool(re.search(rf"\b{re.escape(answer)}\b", reply, re.IGNORECASE))


def answers_of(model, rows):
    """What a model trained here replies to rows' questions."""
    ask = Runner(model, tokenizer, template=QA, max_new_tokens=24)
    return [reply.strip() for reply in ask(rows["question"])]


def marks_of(replies, rows):
    """A 0 or 1 for each reply: wrong or right."""
    return [
        int(tells(reply, answer)) for reply, answer in zip(replies, rows["answer"], strict=True)
    ]


def share(values):
    """The mean of a list of numbers."""
    return sum(values) / len(values)


class AskToo(TrainerCallback):
    """Asks the validation questions whenever their loss is computed."""

    def __init__(self):
        self.rows = []

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        """Ask, and leave the model as it was."""
        model.eval()
        marks = marks_of(answers_of(model, countries["validation"]), countries["validation"])
        loss = metrics["eval_loss"]
        self.rows.append({"step": state.global_step, "loss": loss, "right": share(marks)})
        model.train()


# %%
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import preflight
from course_utils.training import faster_on_cpu, watch

on_cpu = base.device.type == "cpu"


def make_trainer(rows, model=None, watched=True, seed=0, callbacks=(), **options):
    """LoRA on a copy of a small model, as in notebook 06; options go to SFTConfig."""
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "max_steps": 80,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_steps": 10,
        "logging_steps": 5,
        "eval_strategy": "steps" if watched else "no",
        "eval_steps": 10,
        "per_device_eval_batch_size": 70,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": False,
        "seed": seed,
    }
    set_seed(seed)
    trainer = SFTTrainer(
        model=copy.deepcopy(base if model is None else model),
        args=SFTConfig(**{**usual, **options}),
        train_dataset=pairs(rows),
        eval_dataset=pairs(countries["validation"]) if watched else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        callbacks=list(callbacks),
    )
    return faster_on_cpu(watch(trainer))


some = countries["train"].shuffle(seed=0).select(range(400))
asking = AskToo()
trainer = make_trainer(some, callbacks=[asking])
report = preflight(trainer)
print(report)

assert report.ok

# %% tags=["figure:08_losses"]
_ = trainer.train()
tuned = trainer.model.eval()

# %% [markdown]
# A curve as one wishes it to be: steep at first, then slowly on. **Guess first.** At step 20 the
# steep part is over. What share of the validation questions is answered rightly there, and what share
# at step 40?

# %%
my_guess = {20: 0.7, 40: 0.8}

# %%
curve = pd.DataFrame(asking.rows).set_index("step")
print("You said:", my_guess)
curve.round(2)

# %%
step = curve["right"].diff().idxmax()
before, after = curve.loc[step - 10], curve.loc[step]
print(
    f"From step {step - 10} to step {step} the loss falls by {before['loss'] - after['loss']:.2f}, "
    f"and the right answers rise from {before['right']:.0%} to {after['right']:.0%}."
)

assert curve["loss"].iloc[0] - before["loss"] > before["loss"] - after["loss"]
assert after["right"] > before["right"] + 0.4

# %% [markdown]
# The steep part of the loss was the *form*: a sentence, about that country, then an end. The part
# where questions begin to be answered hardly shows.
#
# ### The other way round
#
# Now only twenty pairs, and a rate three times as high: that overfits. We do it twice, with two draws
# of twenty.

# %% tags=["figure:08_twenty_pairs"]
draws = {}
for draw in (3, 4):
    asking = AskToo()
    twenty = countries["train"].shuffle(seed=draw).select(range(20))
    trainer = make_trainer(
        twenty, seed=draw, callbacks=[asking], max_steps=60, learning_rate=1e-2
    )
    preflight(trainer, strict=True)  # raises where a check fails
    trainer.train()
    draws[draw] = trainer.model.eval(), pd.DataFrame(asking.rows).set_index("step")
overfitted = draws[3][0]

# %% tags=["figure:08_loss_and_right"]
figure, axis = plt.subplots(figsize=(7.5, 4.4))
lines = {
    "400 pairs": (curve, BLUE, "o"),
    "20 pairs": (draws[3][1], RED, "s"),
    "20 others": (draws[4][1], ORANGE, "^"),
}
for name, (rows, colour, marker) in lines.items():
    axis.plot(rows["loss"], rows["right"], marker=marker, color=colour, label=name, linewidth=1)
    axis.annotate(
        f"step {rows.index[-1]}",
        (rows["loss"].iloc[-1], rows["right"].iloc[-1]),
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=9,
    )
axis.set_xlabel("validation loss")
axis.set_ylabel("validation questions answered rightly")
axis.set_ylim(-0.03, 1.08)
axis.set_title("The same loss, quite different answers")
axis.legend()
axis.grid()
plt.show()

# %% [markdown]
# Draw a line upwards at a loss of 0.2, and see how many different models it meets.

# %%
end = draws[3][1].iloc[-1]
lowest = draws[3][1]["loss"].idxmin()
early = draws[3][1].loc[lowest]
told = {
    "20 pairs, at the end": end,
    "20 pairs, at the lowest loss": early,
    f"400 pairs, step {step - 10}": before,
}
for name, point in told.items():
    print(f"{name:30} loss {point['loss']:.2f}, right {point['right']:.0%}")

assert end["loss"] > before["loss"] + 0.05
assert end["right"] > before["right"] + 0.2
assert end["right"] > early["right"] + 0.2

# %% [markdown]
# Whoever had stopped the first of these trainings where its validation loss was lowest would have
# kept a far worse model. Whether the loss rises depends on the draw; change the two numbers and see.
# What stays is that the lines of the few pairs lie above that of the 400: a model that is *surely*
# wrong here and there has a high loss, and may answer more questions than one that is unsure of
# everything.
#
# ### Where in a sentence the loss sits
#
# The validation loss never hears the model speak. It shows the model the *right* sentence, up to each
# token, and asks for the next one. Let us see what each token of a reference costs. Beside the tuned
# model we take the *control* of notebook 06, tuned on the same 400 pairs: its corpus has told it
# nothing about 25 of the countries.

# %%
control = load_model(f"{OWN}-control", dtype=torch.float32, quiet=True)
trainer = make_trainer(some, model=control, watched=False)
preflight(trainer, strict=True)
_ = trainer.train()
tuned_control = trainer.model.eval()

# %%
from course_utils.scoring.distributions import next_tokens

hidden = held_out.filter(lambda row: not row["known_to_control"])


def costs(model, row):
    """What each token of a row's reference costs a model, in nats, the end token too."""
    prompt = QA.replace("{prompt}", row["question"])
    reply = f" {sentence(row)}{tokenizer.eos_token}"
    found = next_tokens(model, tokenizer, [prompt], [reply])[0]
    ids = tokenizer(reply)["input_ids"]
    return pd.Series(
        [-found[place, token].item() for place, token in enumerate(ids)],
        index=[tokenizer.decode(token) for token in ids],
    )


example = hidden.filter(lambda row: row["relation"] == "capital").select([0])
where = pd.DataFrame(
    {
        "tuned": costs(tuned, example[0]).round(2),
        "control, tuned": costs(tuned_control, example[0]).round(2),
    }
)
print(example["question"][0], "→", answers_of(tuned_control, example)[0])
where

# %% [markdown]
# All that the control lacks sits in a few tokens, and the loss is the *mean* over all. Suppose the
# same answer stood in a text of two hundred tokens that are as easy as the others here:

# %%
whole = where["control, tuned"]
easy = whole[whole < 1].mean()
diluted = (whole.sum() + (200 - len(whole)) * easy) / 200
print(f"in one sentence:      {whole.mean():.2f} nats a token")
print(f"in two hundred tokens: {diluted:.2f}")

assert whole.mean() > 5 * diluted

# %% [markdown]
# One wrong fact in a long, fluent answer is all but invisible to the loss, and may be all that
# matters. So the answers have to be looked at.
#
# ## 2. Read first
#
# Before any score: have the test questions answered, and **read**. We have four systems:
#
# - **tuned**: the base, tuned on 400 pairs;
# - **20 pairs**: the first of the overfitted ones;
# - **control**: tuned as the first, without having read about half of the test's countries;
# - **chat**: the embedded chat model (or your tier's), as it is. It was never told what a reference
#   looks like.
#
# All get the same 80 questions about countries that no tuning has seen.

# %%
from course_utils import runner

test = held_out.shuffle(seed=0).select(range(80))
models = {"tuned": tuned, "20 pairs": overfitted, "control": tuned_control}
replies = {name: answers_of(model, test) for name, model in models.items()}
ask_chat = runner("chat", max_new_tokens=32)
replies["chat"] = [reply.strip() for reply in ask_chat(test["question"])]
systems = list(replies)

# %% [markdown]
# **Guess first**, and then read: who answers best, who worst?

# %%
my_guess = {"best": "...", "worst": "..."}

# %%
text_table(pd.DataFrame({"question": test["question"], **replies}).head(12))

# %% [markdown]
# What did you see? Some of it no score will tell you: the *20 pairs* model often answers another
# question than the one that was asked, truly; the control makes towns up, or changes the country; the
# chat model is wordy, is cut off by our limit of tokens, and takes a question otherwise than it is
# meant.
#
# Now count. A reply is right if the answer is in it.

# %%
marks = {name: marks_of(replies[name], test) for name in systems}
print("You said:", my_guess)
pd.Series({name: share(marks[name]) for name in systems}, name="right").map("{:.0%}".format)

# %%
assert share(marks["tuned"]) > 0.9
assert all(share(marks["tuned"]) > share(marks[name]) + 0.15 for name in systems[1:])

# %% [markdown]
# Even this rule errs. Here are replies of the chat model that it takes for right:

# %%
taken = [
    {"question": row["question"], "looked for": row["answer"], "chat": reply}
    for row, reply, mark in zip(test, replies["chat"], marks["chat"], strict=True)
    if mark
]
text_table(pd.DataFrame(sorted(taken, key=lambda row: -len(row["chat"]))[:6]))

# %% [markdown]
# Read them sceptically: is that an answer, or does the word merely occur? Exercise 08.1 does better.
#
# ## 3. Scores against references
#
# With a reference for each question, a program can compare. Three usual ways:
#
# - **exact match**: the reply is the reference, to the letter;
# - **word accuracy**: the share of the reference's words that stand in their place;
# - **chrF**: the overlap in short pieces of up to six letters, 0 to 100; made for translations.
#
# **Guess first:** which of the three puts the four systems in the same order as the right answers do?

# %%
my_guess = "..."

# %%
from course_utils.scoring import chrf, scores

references = [sentence(row) for row in test]
scored = pd.DataFrame(
    {
        name: {**scores(replies[name], references), "right": share(marks[name])}
        for name in systems
    }
).T
print("You said:", my_guess)
scored.round(2)

# %% [markdown]
# A score for the whole test hides what it is made of. So, reply by reply:

# %%
single = pd.DataFrame(
    [
        {
            "system": name,
            "question": row["question"],
            "reply": reply,
            "reference": reference,
            "right": bool(mark),
            "chrF": chrf([reply], [reference]),
        }
        for name in systems
        for row, reply, reference, mark in zip(
            test, replies[name], references, marks[name], strict=True
        )
    ]
)

# %% tags=["figure:08_chrf"]
figure, axis = plt.subplots(figsize=(8, 3.6))
draw = random.Random(0)
for place, name in enumerate(reversed(systems)):
    for is_right, colour, marker in ((True, BLUE, "o"), (False, RED, "x")):
        values = single[(single["system"] == name) & (single["right"] == is_right)]["chrF"]
        heights = [place + (0.14 if is_right else -0.14) + draw.uniform(-0.1, 0.1) for _ in values]
        axis.scatter(
            values,
            heights,
            s=22,
            color=colour,
            marker=marker,
            alpha=0.7,
            linewidths=1,
            label=("right" if is_right else "wrong") if place == 0 else None,
        )
axis.set_yticks(range(len(systems)), reversed(systems))
axis.set_xlabel("chrF of the reply")
axis.set_title("Many a wrong reply is nearer to the reference than a right one")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
axis.grid(axis="x")
plt.show()

# %% [markdown]
# The two extremes in words: the right replies that score lowest, and the wrong ones that score
# highest.

# %%
is_right = single["right"]
right_ones = single[is_right & (single["chrF"] < 100)]
extremes = pd.concat(
    [
        right_ones.sort_values("chrF", kind="stable").head(3),
        single[~is_right].sort_values("chrF", kind="stable").tail(3),
    ]
)
text_table(
    extremes[["system", "reply", "reference", "right", "chrF"]].assign(
        chrF=extremes["chrF"].map("{:.0f}".format)
    )
)

# %%
right_chat = single[(single["system"] == "chat") & is_right]["chrF"]
wrong_own = single[(single["system"] != "chat") & ~is_right]["chrF"]
fooled = (wrong_own.to_numpy()[:, None] > right_chat.to_numpy()).mean()
print(f"A wrong reply of our models and a right one of the chat model, drawn at random:")
print(f"chrF prefers the wrong one in {fooled:.0%} of all such pairs.")

assert fooled > 0.2

# %% [markdown]
# So each score answers a question of its own. *Exact match*: has it learned our form, to the letter?
# *chrF*: does it sound like the reference? Both are right where there is one good way to say it, as
# in notebook 03's Pig Latin. Neither asks whether it is **true**. Take the score whose question is
# yours; where none fits, write one, and read what it accepts.
#
# ## 4. Is that better, or luck?
#
# The three weaker systems: one answers more of our 80 questions than the next. Would it with 80 other
# questions? An interval says how far the share could be off. The *bootstrap* finds it without a
# formula: draw 80 of the 80 answers, with repetitions; take the share; do that ten thousand times.
#
# **Guess first:** how wide is the 95% interval of a share of about a half, on 80 questions?

# %%
my_guess = 0.05

# %%
from course_utils.scoring.intervals import bootstrap_interval, items_needed, paired_test

intervals = {name: bootstrap_interval(marks[name]) for name in systems}
print(f"You said {my_guess:.0%}.")
for name, interval in intervals.items():
    print(f"{name:9} {interval}")

# %%
width = intervals["control"].high - intervals["control"].low
assert width > 0.15

# %% [markdown]
# Two overlapping intervals do not yet mean that nothing can be said: both systems were asked the
# *same* questions, so we can compare question by question. A *paired* test asks: if it did not matter
# which system a reply is from, how often would swapping them at random give a difference as large?

# %%
one, other = sorted(("20 pairs", "control"), key=lambda name: -share(marks[name]))
paired = paired_test(marks[one], marks[other])
print(f"{one} against {other}:\n{paired}")

# %% [markdown]
# The usual rule takes a difference for real if p is below 0.05. How many questions would that take?
# The fewer of them on which just one system is right, the fewer are needed.

# %%
disagree = (paired.wins + paired.losses) / paired.n
print(items_needed(paired.difference.value, share(marks[other]), disagreement=disagree))
print(items_needed(0.02, 0.74, disagreement=0.1))

# %% [markdown]
# The second line is a claim as one reads it: "we went from 74 to 76%". Look how many questions such a
# claim needs, and then how many your favourite benchmark has (section 8).
#
# We have 170 more questions about held-out countries, and our own models are quickly asked.

# %%
all_marks = {
    name: marks_of(answers_of(models[name], held_out), held_out) for name in ("20 pairs", "control")
}
larger = paired_test(all_marks[one], all_marks[other])
print(larger)

assert larger.difference.high - larger.difference.low < (
    paired.difference.high - paired.difference.low
)

# %% [markdown]
# ### Five questions about one country
#
# Are these 250 questions, or 50 countries? What the control knows of a country, it knows in all five
# relations; of the others, nothing. If the test were made anew, *countries* would be drawn anew. So
# countries are what to resample: their means, 50 of them.


# %%
def by_country(values):
    """The mean for each country of the held-out questions."""
    return pd.Series(values).groupby(held_out["country"]).mean()


rows = []
for name, values in all_marks.items():
    for unit, some_values in (("questions", values), ("countries", by_country(values))):
        interval = bootstrap_interval(some_values)
        rows.append({"system": name, "unit": unit, "n": interval.n, "interval": interval})
units = pd.DataFrame(rows)
clustered = paired_test(by_country(all_marks[one]), by_country(all_marks[other]))
print("by questions:", larger, "\nby countries:", clustered)

# %% tags=["figure:08_intervals"]
figure, axis = plt.subplots(figsize=(8, 3.4))
shown = [
    *((f"{name}, 80 questions", intervals[name], GREY) for name in systems),
    *(
        (f"{row.system}, 250 questions, by {row.unit}", row.interval, colour)
        for row, colour in zip(units.itertuples(), [BLUE, GREEN, BLUE, GREEN], strict=True)
    ),
]
for place, (name, interval, colour) in enumerate(reversed(shown)):
    axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2)
    axis.plot(interval.value, place, "o", color=colour)
axis.set_yticks(range(len(shown)), [name for name, *_ in reversed(shown)])
axis.set_xlim(0, 1.02)
axis.set_xlabel("right answers, with 95% intervals")
axis.set_title("The unit decides how sure one may be")
axis.grid(axis="x")
plt.show()

# %%
wide = {
    row.unit: row.interval.high - row.interval.low
    for row in units.itertuples()
    if row.system == "control"
}
print({unit: round(value, 2) for unit, value in wide.items()})

assert wide["countries"] > 1.5 * wide["questions"]
assert clustered.p_value > larger.p_value

# %% [markdown]
# The same answers, and for the control an interval nearly twice as wide. It happens wherever items
# hang together: questions on one text, turns of one chat, rows of one customer. And all of this says
# how it would be with other *questions*. With other seeds of the training it is another matter still;
# there the only help is to train again.
