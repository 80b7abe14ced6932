# %% [markdown]
# # 08 · Response quality
#
# **You will learn** why a falling loss does not mean better answers, what the usual scores measure
# and what they miss, and how to tell a better model from a lucky one. You will also let people and
# models judge answers, find test items that leaked into the training, and see what the standard
# benchmarks ask.
#
# **You need** notebooks 02 (LoRA) and 06 (instruction tuning).
#
# **It takes** about an hour of reading and trying. The cells themselves run in about
# three minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Nadia has tuned a model that answers travellers' questions. Its loss has fallen, and her manager
# asks: "Is it better than the old one?" The loss cannot tell. Here you learn what can.
#
# Figures in the text are from the saved run: tuned models of 2.6 million parameters, one seed each,
# and SmolLM2-135M-Instruct in 4 bits as chat model.

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
# For a classifier, a lower loss mostly means more right classes. For a model that writes, this is
# less certain. To see why, we train a model that answers questions about countries in whole
# sentences. Each reply has a *form*, the sentence, and a *fact*. The model can get one right
# without the other.

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
# Whenever the trainer computes the validation loss, we also *ask* the validation questions. A reply
# counts as right if it contains the answer, whatever else it says. It counts as well-formed if it
# is one of our sentences about the right country, whatever it says about it.

# %%
from transformers import TrainerCallback

from course_utils.models import Runner


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


def well_formed(reply, row):
    """Whether a reply is a sentence in the references' form about a row's country."""
    return bool(re.fullmatch(rf"The [^.]+ {re.escape(row['country'])} is .+\.", reply))


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
        rows = countries["validation"]
        replies = answers_of(model, rows)
        formed = [well_formed(reply, row) for reply, row in zip(replies, rows, strict=True)]
        self.rows.append(
            {
                "step": state.global_step,
                "loss": metrics["eval_loss"],
                "well-formed": share(formed),
                "right": share(marks_of(replies, rows)),
            }
        )
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
report = preflight(make_trainer(some))
print(report)

# %% tags=["claim"]
assert report.ok

# %% tags=["figure:08_losses"]
asking = AskToo()
trainer = make_trainer(some, callbacks=[asking])
_ = trainer.train()
tuned = trainer.model.eval()

# %% [markdown]
# The loss falls steeply, then slowly. **Guess first.** At step 20 the steep part is over. What
# share of the validation questions does the model answer correctly at step 20, and at step 40?

# %%
my_guess = {20: 0.7, 40: 0.8}

# %%
curve = pd.DataFrame(asking.rows).set_index("step")
print("You said:", my_guess)
curve.round(2)

# %% tags=["value:loss-and-answers"]
step = curve["right"].diff().idxmax()
before, after = curve.loc[step - 10], curve.loc[step]
print(
    f"From step {step - 10} to step {step} the loss falls by {before['loss'] - after['loss']:.2f}, "
    f"and the right answers rise from {before['right']:.0%} to {after['right']:.0%}."
)

# %% tags=["claim"]
assert curve["loss"].iloc[0] - before["loss"] > before["loss"] - after["loss"]
assert before["well-formed"] > 0.8
assert after["right"] > before["right"] + 0.4

# %% [markdown]
# The model answers 20% at step 20, and 94% at step 40. Most people guess more for step 20, because
# the loss has already fallen from 1.03 (printed by the checks) to 0.19. But the steep part taught
# mainly the *form*: from step 10 on, every reply is a sentence of ours about the right country. The
# facts come mainly between steps 30 and 40, where the loss falls by only 0.05.
#
# ### A higher loss, and better answers
#
# Can the opposite happen? We train on only twenty pairs, at about three times the learning rate, so
# that the model overfits. We try two draws.

# %% tags=["figure:08_twenty_pairs"]
draws = {}
few = {"max_steps": 60, "learning_rate": 1e-2}
for draw, name in ((3, "20 pairs"), (4, "20 others")):
    asking = AskToo()
    twenty = countries["train"].shuffle(seed=draw).select(range(20))
    trainer = make_trainer(twenty, seed=draw, callbacks=[asking], run_name=name, **few)
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
# Each line is one training, with a point every ten steps and a label at the last. A falling loss
# moves to the *left*. At a loss of about 0.18, one model answers 20% of the questions, another more
# than 70%.

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

# %% tags=["claim"]
assert end["loss"] > before["loss"] + 0.05
assert end["right"] > before["right"] + 0.2
assert end["right"] > early["right"] + 0.2

# %% [markdown]
# Had you stopped the first training on twenty pairs at its lowest validation loss, you would have
# kept a model that answers 24% instead of 71%. In the second, the loss does not rise.
#
# In both draws, models trained on few pairs answer more than the 400-pair model does at the same
# loss. A likely reason: they are very sure, so each error costs much, while other answers are
# right.
#
# ### Where in a sentence the loss sits
#
# The validation loss never looks at a reply. It shows the model the *reference*, and asks after
# each token for the next one. The *cost* of a token is minus the logarithm of its probability, in
# *nats* if the logarithm is the natural one. A token that the model is sure of costs nothing; a
# probability of 0.37 costs one nat.
#
# Beside the tuned model we take the *control* of notebook 06, tuned on the same 400 pairs. Its
# pre-training texts say nothing about 25 of the held-out countries.

# %%
control = load_model(f"{OWN}-control", dtype=torch.float32, quiet=True)
trainer = make_trainer(some, model=control, watched=False)
preflight(trainer, strict=True)
_ = trainer.train()
tuned_control = trainer.model.eval()

# %%
from course_utils.scoring import next_token_log_probs

hidden = held_out.filter(lambda row: not row["known_to_control"])


def costs(model, row):
    """What each token of a row's reference costs a model, in nats, the EOS token too."""
    prompt = QA.replace("{prompt}", row["question"])
    reply = f" {sentence(row)}{tokenizer.eos_token}"
    found = next_token_log_probs(model, tokenizer, [prompt], [reply])[0]
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
# The control answers about Mali. Four of the ten tokens are expensive: the country's name and the
# pieces of *Tirana*. The loss is the *mean* of all the costs. Suppose the same answer stood in a
# text of two hundred tokens, the others as easy as the easy ones here:

# %%
whole = where["control, tuned"]
easy = whole[whole < 1].mean()
diluted = (whole.sum() + (200 - len(whole)) * easy) / 200
print(f"in one sentence:      {whole.mean():.2f} nats a token")
print(f"in two hundred tokens: {diluted:.2f}")

# %% tags=["claim"]
assert whole.mean() > 5 * diluted

# %% [markdown]
# The mean falls from 3.77 to 0.19 nats, and the answer is still wrong. In a long text, the loss
# hardly shows one wrong fact. So look at replies.
#
# ## 2. Read first
#
# Before any score, **read** replies. We have four systems:
#
# - **tuned**: the base model, tuned on 400 pairs;
# - **20 pairs**: the first of the overfitted models;
# - **control**: tuned like the first, without having read about half of the held-out countries;
# - **chat**: the embedded chat model (or your tier's), unchanged. It has never seen a reference.
#
# All get the same 80 questions, about countries that appear in no training pair.

# %%
from course_utils import runner

test = held_out.shuffle(seed=0).select(range(80))
models = {"tuned": tuned, "20 pairs": overfitted, "control": tuned_control}
replies = {name: answers_of(model, test) for name, model in models.items()}
ask_chat = runner("chat", max_new_tokens=32)
replies["chat"] = [reply.strip() for reply in ask_chat(test["question"])]
systems = list(replies)
# What is claimed below of the embedded chat model need not hold for a larger one.
embedded = ask_chat.model.num_parameters() < 5e8

# %% [markdown]
# **Guess first**, and then read: which system answers best, and which worst?

# %%
my_guess = {"best": "...", "worst": "..."}

# %%
text_table(pd.DataFrame({"question": test["question"], **replies}).head(12))

# %% [markdown]
# *20 pairs* often answers another question than the one asked, or misspells a name (*Tirsk*). The
# control names other countries, and one of its sentences breaks apart. The chat model misreads some
# questions, and our limit of 32 tokens cuts some replies before an answer. No score tells you this.
# With your own models, read all replies to a small test, or a random hundred.
#
# Now count. A reply is right if it contains the answer.

# %%
marks = {name: marks_of(replies[name], test) for name in systems}
print("You said:", my_guess)
pd.Series({name: share(marks[name]) for name in systems}, name="right").map("{:.0%}".format)

# %% tags=["claim"]
assert share(marks["tuned"]) > 0.9
assert all(share(marks["tuned"]) > share(marks[name]) + 0.15 for name in ("20 pairs", "control"))

# %% [markdown]
# *tuned* is best (100%), *chat* last (36%). Many people rank *chat* higher, because it is the
# largest and sounds fluent. Is our rule fair? It counts these replies as right:

# %%
taken = [
    {"question": row["question"], "looked for": row["answer"], "chat": reply}
    for row, reply, mark in zip(test, replies["chat"], marks["chat"], strict=True)
    if mark
]
text_table(pd.DataFrame(sorted(taken, key=lambda row: -len(row["chat"]))[:6]))

# %% [markdown]
# Does each reply answer, or does the word merely occur? The one about Cambodia counts, although
# Cambodia is no island. In exercise 08.2 you write a stricter rule.
#
# ## 3. Scores against references
#
# A program can compare each reply with a reference. Three scores are common:
#
# - **exact match**: the reply equals the reference, letter by letter;
# - **word accuracy**: the share of the reference's words that stand in the same place;
# - **chrF**: the overlap in short pieces of up to six letters, 0 to 100; made for translations.
#
# **Guess first:** which of the three orders the four systems as the right answers do?

# %%
my_guess = "..."

# %%
from course_utils.scoring import chrf, reference_scores

references = [sentence(row) for row in test]
scored = pd.DataFrame(
    {
        name: {**reference_scores(replies[name], references), "right": share(marks[name])}
        for name in systems
    }
).T
print("You said:", my_guess)
scored.round(2)

# %% [markdown]
# Only exact match does. Many people guess chrF, because it tolerates other wordings. But chrF and
# word accuracy place the control above *20 pairs*. (The two are close; see section 4.) Now look at
# single replies:

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
# Here are the right replies with the lowest chrF, and the wrong ones with the highest:

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

# %% tags=["value:chrf"]
right_chat = single[(single["system"] == "chat") & is_right]["chrF"]
wrong_own = single[(single["system"] != "chat") & ~is_right]["chrF"]
fooled = (wrong_own.to_numpy()[:, None] > right_chat.to_numpy()).mean()
print("A wrong reply of our models and a right one of the chat model, drawn at random:")
print(f"chrF prefers the wrong one in {fooled:.0%} of all such pairs.")

# %% tags=["claim"]
assert not embedded or fooled > 0.2

# %% [markdown]
# Misspelled names differ by a few letters, so chrF is high. The chat model uses other words, so
# chrF is low. In 42% of the pairs, chrF prefers the wrong reply.
#
# *Exact match* asks whether the model has learned our form, *chrF* whether the reply looks like the
# reference. Both work where there is one good wording, as in notebook 03's Pig Latin. Neither asks
# whether the reply is **true**. Choose the score that asks your question.
#
# ## 4. Is that better, or luck?
#
# *20 pairs* answers 61% of our 80 questions, the control 59%. Would 80 other questions give the
# same order? An *interval* tells how far a share could be off, had other questions been drawn. The
# *bootstrap* finds it without a formula: draw 80 of the 80 answers, with repetitions, take the
# share, and repeat ten thousand times.
#
# **Guess first:** how wide is the 95% interval of a share of about a half, on 80 questions?

# %%
my_guess = 0.05

# %%
from course_utils.scoring import bootstrap_interval, items_needed, paired_test

intervals = {name: bootstrap_interval(marks[name]) for name in systems}
print("You said:", my_guess)
for name, interval in intervals.items():
    print(f"{name:9} {interval}")

# %%
width = intervals["control"].high - intervals["control"].low
print(f"the control's is {100 * width:.0f} points wide")

# %% tags=["claim"]
assert width > 0.15

# %% [markdown]
# It is 21 points wide. Most people guess less, because 80 questions feel like many. The brackets
# name the method. *BCa* is the bootstrap with a correction for lopsided results. Where all answers
# are right, every draw is the same, so an exact formula is used (Clopper and Pearson's).

# %% [markdown]
# The intervals of *20 pairs* and the control overlap, but that does not settle the comparison. Both
# answered the *same* questions, so we can compare question by question: a *paired* comparison. We
# swap the two replies at random, many times. How often is the difference as large as the measured
# one? This share is the *p-value*, or *p*. A *win* is a question that only the first system answers
# correctly.

# %% tags=["value:few-questions"]
one, other = sorted(("20 pairs", "control"), key=lambda name: -share(marks[name]))
paired = paired_test(marks[one], marks[other])
print(f"{one} against {other}:\n{paired}")

# %% [markdown]
# Here p is 0.87, so chance alone often gives such a difference. Usually a difference counts as real
# if p is below 0.05.
#
# How many questions would reveal a difference of five points? `items_needed` gets the difference,
# the lower share, and the share of questions on which the systems disagree. Less disagreement needs
# fewer questions.

# %%
disagree = (paired.wins + paired.losses) / paired.n
needed = items_needed(0.05, 0.6, disagreement=disagree)
print(needed)
print(items_needed(0.02, 0.74, disagreement=0.1))

# %% tags=["claim"]
assert needed.items > 5 * paired.n

# %% [markdown]
# The second line is a claim that you often read: "we went from 74 to 76%". At 10% disagreement it
# takes 1,960 questions. Compare that with the benchmarks in section 8.
#
# We have 170 more questions about held-out countries, so we ask all 250.

# %%
all_marks = {
    name: marks_of(answers_of(models[name], held_out), held_out) for name in ("20 pairs", "control")
}
larger = paired_test(all_marks[one], all_marks[other])
print(larger)

# %% tags=["claim"]
assert larger.difference.high - larger.difference.low < (
    paired.difference.high - paired.difference.low
)

# %% [markdown]
# Now the difference is 12 points, and p is 0.0046. The interval on 80 questions had included 12
# points. Is the matter settled?
#
# ### Five questions about one country
#
# There are 250 questions, but only 50 countries. The control has read everything about a country,
# or nothing, so its five answers tend to stand or fall together. A new test would draw new
# *countries*. So we resample 50 countries, each with its mean.


# %% tags=["value:by-country"]
def by_country(values):
    """The mean for each country of the held-out questions."""
    return pd.Series(values).groupby(list(held_out["country"])).mean()


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
for place, (_, interval, colour) in enumerate(reversed(shown)):
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

# %% tags=["claim"]
assert wide["countries"] > 1.5 * wide["questions"]

# %% [markdown]
# The answers are the same, but the control's interval is twice as wide, and p rises to 0.1. Each
# system wins 24 countries; *20 pairs* has the higher mean because its wins are larger.
#
# Expect wider intervals wherever items depend on each other, such as questions on one text or turns
# of one chat. To learn what another *seed* changes, you have to train again.

# %% [markdown]
# ## 5. Has it seen the test?
#
# Suppose a colleague tunes the control on pairs of their own, and reports progress on the very
# countries that it has never read about. We play the colleague:

# %%
hidden_test = hidden.shuffle(seed=0)
theirs = datasets.concatenate_datasets(
    [countries["train"].shuffle(seed=0).select(range(100)), hidden_test.select(range(60))]
).shuffle(seed=1)
trainer = make_trainer(theirs, model=control, watched=False, max_steps=100, learning_rate=1e-2)
preflight(trainer, strict=True)
_ = trainer.train()
improved = trainer.model.eval()

# %%
progress = {
    name: marks_of(answers_of(model, hidden_test), hidden_test)
    for name, model in {"control": tuned_control, "theirs": improved}.items()
}
print({name: f"{share(values):.0%}" for name, values in progress.items()})
print(paired_test(progress["theirs"], progress["control"]))

# %% tags=["claim"]
assert share(progress["theirs"]) > share(progress["control"]) + 0.15

# %% [markdown]
# The share rose from 4% to 38%, with p below 0.001. **Guess first:** what has happened? (Suppose
# you had not seen the cell.)

# %%
my_guess = "..."

# %% [markdown]
# Look for test items, or their answers, among the training texts: that is *contamination*.
# `contamination_report` cuts each test item into all runs of n words, the *n-grams*, and looks for
# them in the training. The authors of GPT-3, PaLM and Llama 2 did this, each with their own rule
# for a *dirty* item. The table counts items by each rule. *Covered* is the share of an item's words
# in a common run.

# %%
from course_utils.scoring import contamination_report, contamination_summary


def as_text(rows):
    """Rows of `countries` as texts: question and reference."""
    return [f"{row['question']} {sentence(row)}" for row in rows]


leaks = contamination_report(as_text(hidden_test), as_text(theirs), n=8)
contamination_summary(leaks)

# %%
found = leaks["exact"].to_numpy()
text_table(leaks[found][["longest", "run", "train_row"]].astype(str).head(3))

# %%
rows = {
    name: {
        "on what has leaked": share([m for m, leaked in zip(values, found, strict=True) if leaked]),
        "on the rest": share([m for m, leaked in zip(values, found, strict=True) if not leaked]),
    }
    for name, values in progress.items()
}
pd.DataFrame(rows).T.map("{:.0%}".format)

# %% tags=["claim"]
assert found.sum() == 60
assert rows["theirs"]["on what has leaked"] > rows["theirs"]["on the rest"] + 0.3
assert rows["theirs"]["on the rest"] < 0.25

# %% [markdown]
# 60 of the 125 test items were among the training pairs. On these the model now answers 72%; on the
# rest 8%, against the control's 6%. Many people guess better data, because a small p looks like
# proof. But p rules out chance, not leaks. Report figures with and without the dirty items. (Three
# more items share eight words, but are no copies.)
#
# ### And ours?
#
# Our 400 training pairs and 250 test questions follow the same patterns. **Guess first:** by the
# rule of GPT-3's authors (one common n-gram), what share of the test is dirty if n is 8, and if n
# is 3?

# %%
my_guess = {8: 0.1, 3: 0.2}

# %%
rules = {
    n: contamination_summary(contamination_report(as_text(held_out), as_text(some), n=n))["share"]
    for n in (3, 5, 8)
}
print("You said:", my_guess)
pd.DataFrame(rules).map("{:.0%}".format)

# %% tags=["claim"]
first_rule = "shares an n-gram (GPT-3)"
assert rules[3][first_rule] > 0.9
assert rules[8][first_rule] < 0.2
assert all(rules[n]["a training text is the same"] == 0 for n in rules)

# %% [markdown]
# The share is 6% at n = 8, and 100% at n = 3. Most people guess less for n = 3, because the two
# sets ask about different countries. But "what is the capital of" is in both, and gives no fact
# away. So look at the common runs before you throw items away.
#
# The method sees only words in a row. Here is the same leak, worded differently:

# %%
reworded = [
    f"{row['country']} has {row['answer']} for its {row['relation']}."
    for row in hidden_test.select(range(60))
]
hits = contamination_report(as_text(hidden_test), reworded, n=8)
print(f"{(hits['share'] > 0).sum()} of {len(hits)} items found")

# %% tags=["claim"]
assert not (hits["share"] > 0).any()

# %% [markdown]
# It finds none of the 60 leaks. Exercise 08.3 looks for them.
#
# The base was *meant* to read about these countries before it was tuned. Is that contamination,
# too? Here are 4,000 documents of its corpus, and of the control's:

# %%
from itertools import islice

from course_utils.data import Corpus

corpora = {"base": (), "control": sorted(set(hidden["country"]))}
read = {}
for name, without in corpora.items():
    documents = islice(Corpus(seed=1, without=without).documents(), 4000)
    table = contamination_report([sentence(row) for row in hidden], documents)
    read[name] = (table["share"] > 0).mean()
print({name: f"{value:.0%} of the references read" for name, value in read.items()})

# %% tags=["claim"]
assert read["base"] > 0.4
assert read["control"] == 0

# %% [markdown]
# The base's documents hold 55% of the references, the control's none. Our test asks whether a model
# can say what it has read. A test of *reasoning* loses its value if its answers were read. Most
# corpora are not public, so be careful with old benchmarks.
#
# ## 6. Side by side
#
# Most texts have no single right answer. There you ask people, who find it easier to choose between
# *two* replies than to give marks. To be fair, hide the names, draw the sides at random, and allow
# a tie.
#
# Voting on twelve pairs takes three minutes. Each click is stored in `build/votes/08.jsonl` of the
# course's folder.

# %%
from itertools import combinations

from course_utils.data import folder
from course_utils.scoring import Vote, Votes, answers_fingerprint
from course_utils.widgets import rating

pairings = list(combinations(systems, 2))
draw = random.Random(8)
to_judge = []
for one, other in pairings:
    differing = [
        place for place in range(len(test)) if replies[one][place] != replies[other][place]
    ]
    for place in draw.sample(differing, 2):
        both = {one: replies[one][place], other: replies[other][place]}
        to_judge.append((test["question"][place], both))
draw.shuffle(to_judge)

votes = Votes(folder().parent / "build" / "votes" / "08.jsonl")
rating(to_judge, votes, seed=8)

# %%
# The same without a widget: choose a pair, set my_vote to "left", "right" or "tie", run again.
pair, my_vote = 0, None

question, both = to_judge[pair]
left, right = random.Random(pair).sample(sorted(both), 2)
print(f"{question}\n\nleft:   {both[left]}\nright:  {both[right]}")
texts = {"left_text": both[left], "right_text": both[right]}
if my_vote and not votes.voted(question, left, right, **texts):
    votes.add(question, left, right, my_vote, **texts)

# %% [markdown]
# Twelve votes say little, and the saved run has none. So a *reader* votes too, on all 80 questions
# and all six pairs of systems. The reader is a program that knows the right answers. The right
# reply wins; if both are right, or neither, it is a tie. The reader cannot judge style.

# %%
looked_for = dict(zip(held_out["question"], held_out["answer"], strict=True))


def reader(question, left_text, right_text):
    """What the reader says of two replies: "left", "right" or "tie"."""
    left, right = (tells(text, looked_for[question]) for text in (left_text, right_text))
    return "tie" if left == right else "left" if left else "right"


draw = random.Random(0)
reader_votes = []
for one, other in pairings:
    for place, question in enumerate(test["question"]):
        left, right = draw.sample((one, other), 2)
        texts = replies[left][place], replies[right][place]
        marked = answers_fingerprint(left, texts[0], right, texts[1])
        reader_votes.append(Vote(question, left, right, reader(question, *texts), "reader", marked))
example = reader_votes[0]
print(f"{len(reader_votes)} votes, for example: {example.question}")
print(f"left: {example.left}, right: {example.right}, better: {example.winner}")

# %% [markdown]
# The **win rate** tells how often the first of two systems wins. A tie counts half. `low` and
# `high` are the ends of a 95% interval, found as in section 4:

# %%
from course_utils.scoring import bradley_terry, elo, voter_agreement, win_rates

win_rates(reader_votes).round(2)

# %%
present = {vote.key[1:] for vote in reader_votes}
mine = [vote for vote in votes.by("me") if vote.key[1:] in present]
if mine:
    together = voter_agreement(mine, reader_votes)
    print(f"You and the reader say the same of {together.equal:.0%} of your {len(mine)} pairs.")
    print(win_rates(mine).round(2).to_string(index=False))
else:
    print("No votes of yours on these replies yet: vote above, then run this cell again.")

# %% [markdown]
# The control's win rate against *tuned* is 0.29, although it never wins: its 47 ties count half
# each.
#
# ### One order for all
#
# To put four systems into one order, give each a *strength* s, so that i beats j with probability
#
# $$\frac{s_i}{s_i + s_j}$$
#
# and choose the strengths that fit the votes best. This is the model of **Bradley-Terry**, which
# leaderboards use. **Elo** was made for chess players, whose strength changes. It goes through the
# votes one by one. Each vote moves both ratings, a surprising vote further.
#
# **Guess first:** we shuffle the votes. Does the Bradley-Terry strength change? Does Elo?

# %%
my_guess = {"Bradley-Terry": False, "Elo": False}

# %%
strengths = bradley_terry(reader_votes)
shuffled = random.Random(1).sample(reader_votes, len(reader_votes))
again = bradley_terry(shuffled, resamples=0)["strength"]
ratings = pd.DataFrame([elo(reader_votes, seed=seed, k=32) for seed in range(20)])
print("You said:", my_guess)
print(f"largest change of a strength: {(again - strengths['strength']).abs().max():.0e}")
strengths.round(2)

# %% tags=["figure:08_strengths"]
order = list(strengths.index)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for place, name in enumerate(reversed(order)):
    found = strengths.loc[name]
    axes[0].plot([found["low"], found["high"]], [place, place], color=BLUE, linewidth=2)
    axes[0].plot(found["strength"], place, "o", color=BLUE)
    axes[1].plot(ratings[name], [place] * len(ratings), "|", color=ORANGE, markersize=14)
axes[0].set_yticks(range(len(order)), reversed(order))
axes[0].set_xscale("log")
axes[0].minorticks_off()
axes[0].set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
axes[0].set_xlabel("strength, with 95% intervals")
axes[0].set_title("Bradley-Terry: any order of the votes")
axes[1].set_xlabel("rating")
axes[1].set_title("Elo: twenty orders of the same votes")
for axis in axes:
    axis.grid(axis="x")
plt.show()

# %%
spread = ratings.max() - ratings.min()
print("Elo, highest less lowest of twenty orders:", spread.round().astype(int).to_dict())

# %% tags=["claim"]
assert (again - strengths["strength"]).abs().max() < 1e-3
assert (spread > 20).all()
assert order[0] == "tuned"

# %% [markdown]
# The Bradley-Terry strength does not change; across twenty orders, Elo ratings vary by 81 to 137
# points. Many people expect no change, because the votes are the same. But each Elo step starts
# from the current ratings. Our systems do not change, so Bradley-Terry suits them better. Where
# intervals overlap widely, ask more questions.
#
# ## 7. A model as judge
#
# People are slow. So a language model gets the question and two replies, and says which is better.
# This is a *judge* (*LLM as judge*). Measure it first, on pairs whose better reply is **known**:
# the tuned model's right sentence beside the control's wrong one, on countries hidden from the
# control.

# %%
from course_utils.scoring import Judge, add_filler, comparison_prompt, with_prefill

candidates = list(
    zip(
        hidden["question"],
        answers_of(tuned, hidden),
        answers_of(tuned_control, hidden),
        strict=True,
    )
)
random.Random(0).shuffle(candidates)
known_pairs = [
    (question, good, bad)
    for question, good, bad in candidates
    if tells(good, looked_for[question]) and not tells(bad, looked_for[question])
][:24]
questions, goods, bads = (list(column) for column in zip(*known_pairs, strict=True))
text_table(
    pd.DataFrame(known_pairs[:4], columns=["question", "known to be good", "known to be bad"])
)

# %% [markdown]
# This is the prompt of the judge, and what the embedded model makes of it:

# %%
judge_model = runner("chat")
print(comparison_prompt(questions[0], goods[0], bads[0]))

# %%
in_words = Judge(judge_model, max_new_tokens=48)
verdicts = in_words.compare(questions[:8], goods[:8], bads[:8])
unreadable = sum(verdict.winner is None for verdict in verdicts)
print(f"{unreadable} of {len(verdicts)} verdicts cannot be read. The first two:")
for verdict in verdicts[:2]:
    print(f"\n{verdict.reply}\n→ {verdict.winner}")

# %% tags=["claim"]
assert not embedded or unreadable >= len(verdicts) / 2

# %% [markdown]
# None of the eight verdicts can be read, because the embedded model does not keep to the form. We
# help it: we begin its reply with `Verdict: [[`, so that it only adds a letter. We also store each
# verdict, to save time or money.


# %%
def remembered(ask):
    """The same, asking each prompt only once with the same options."""
    store = {}

    def asked(prompts, **options):
        key = repr(sorted(options.items()))
        new = [prompt for prompt in dict.fromkeys(prompts) if (key, prompt) not in store]
        if new:
            store.update(zip([(key, prompt) for prompt in new], ask(new, **options), strict=True))
        return [store[key, prompt] for prompt in prompts]

    return asked


judge = Judge(remembered(with_prefill(judge_model)), max_new_tokens=4)

# %% [markdown]
# **Guess first:** the good sentence stands first. In what share of the 24 pairs does the judge
# prefer it? And if the good sentence stands second?

# %%
my_guess = {"good first": 0.8, "good second": 0.7}

# %% tags=["value:positions"]
orders = {
    "good first": [v.winner for v in judge.compare(questions, goods, bads)],
    "good second": [v.winner for v in judge.compare(questions, bads, goods)],
}
wanted = {"good first": "first", "good second": "second"}
preferred = {
    name: share([found == wanted[name] for found in winners]) for name, winners in orders.items()
}
print("You said:", my_guess)
print({name: f"{value:.0%}" for name, value in preferred.items()})

# %% [markdown]
# 100% and 0%: the judge always takes the first reply. Most people expect errors, but not a judge
# that ignores the content. Asked in one order only, it could have looked perfect. This is
# **position bias**. Large judges have it too (Zheng and others, in *To read*). So ask each pair in
# both orders, and count a win only if both verdicts agree.
#
# ### Instruments for judges
#
# Test instruments on something known. Two programs serve as judges: the *reader*, and one that
# prefers *length*.

# %%
from course_utils.scoring import Verdict, judge_accuracy, position_bias, verbosity_bias


class ReaderJudge:
    """The reader of section 6, as a judge."""

    def compare(self, questions, firsts, seconds, references=None):
        """A verdict for each pair."""
        names = {"left": "first", "right": "second", "tie": "tie"}
        rows = zip(questions, firsts, seconds, strict=True)
        return [Verdict(names[reader(*row)], "") for row in rows]


class LengthJudge:
    """Prefers the longer reply."""

    def compare(self, questions, firsts, seconds, references=None):
        """A verdict for each pair."""
        rows = zip(firsts, seconds, strict=True)
        return [Verdict("first" if len(a) > len(b) else "second", "") for a, b in rows]


def measured(judge, pairs=24, padded=8):
    """What the instruments say of a judge, as a row."""
    some = questions[:pairs], goods[:pairs], bads[:pairs]
    right, position = judge_accuracy(judge, *some), position_bias(judge, *some)
    length = verbosity_bias(judge, questions[:padded], goods[:padded], wrong=bads[:padded])
    return {
        "right, both orders": f"{right.accuracy:.0%} ({right.low:.0%} to {right.high:.0%})",
        "right, each order": f"{right.each_order:.0%}",
        "always the first": f"{position.prefers_first:.0%}",
        "always the second": f"{position.prefers_second:.0%}",
        "longer wins": f"{length.longer:.0%}",
        "longer and wrong wins": f"{length.wrong_longer:.0%}",
    }


judges = {"reader": ReaderJudge(), "length": LengthJudge()}
instruments = {name: measured(each) for name, each in judges.items()}
pd.DataFrame(instruments).T

# %% [markdown]
# The first two columns ask each pair in both orders. *Both orders* counts a pair if the judge named
# the good reply twice. *Each order* counts every verdict separately. The next two give the share of
# pairs where the judge chose a *place*, whatever stood there. (At equal length, the length judge
# says "second": hence its 8%.)
#
# The last two measure **verbosity bias**, a liking for long replies. Each good sentence stands
# against itself with empty phrases around it, such as the following, and then against a *wrong*
# sentence with such phrases:

# %%
print(add_filler(goods[0]))

# %%
instruments["chat model"] = measured(judge)
pd.DataFrame(instruments).T

# %% tags=["claim"]
when_asked = judge_accuracy(judge, questions, goods, bads)
if embedded:
    assert when_asked.accuracy < 0.5
    assert position_bias(judge, questions, goods, bads).consistent < 0.5

# %% [markdown]
# The embedded judge chose the first reply in all 24 pairs, so its verdicts are worthless. Its zeros
# for length tell nothing: since position decides, no reply wins in both orders. No single verdict
# shows this.
#
# Does the judge agree with itself? We ask twice, in the same order, at a temperature of 0.7.
# *Alpha* is the agreement beyond chance: 1 if the two always agree, 0 if they agree as often as
# chance would.

# %%
from course_utils.scoring import self_agreement

own = self_agreement(judge, questions, goods, bads)
print(
    f"the same verdict: {own.equal:.0%}   alpha: {own.alpha:.2f}   unreadable: {own.unreadable:.0%}"
)

# %% tags=["claim"]
assert not embedded or not own.alpha > 0.5

# %% [markdown]
# 67% of the verdicts are the same, but alpha is about 0: random draws often match if one letter is
# likelier.
#
# ### The same model, asked for likelihoods
#
# Does the model lack the facts? We ask how *likely* it finds each sentence after the question. No
# sentence comes first.

# %%
from course_utils.scoring import sequence_log_probs


class LikelihoodJudge:
    """Prefers the reply that a model finds likelier as an answer to the question."""

    def __init__(self, ask):
        self.ask = ask
        self.known = {}

    def likelihood(self, question, reply):
        """The log-probability of a reply; computed once."""
        if (question, reply) not in self.known:
            prompt = [self.ask.prompt(question)]
            found = sequence_log_probs(self.ask.model, self.ask.tokenizer, prompt, [reply])
            self.known[question, reply] = found[0]
        return self.known[question, reply]

    def compare(self, questions, firsts, seconds, references=None):
        """A verdict for each pair."""
        verdicts = []
        for question, *two in zip(questions, firsts, seconds, strict=True):
            first, second = (self.likelihood(question, reply) for reply in two)
            verdicts.append(Verdict("first" if first > second else "second", ""))
        return verdicts


likelihood = LikelihoodJudge(judge_model)
instruments["likelihood"] = measured(likelihood)
pd.DataFrame(instruments).T

# %% [markdown]
# It is right on all 24 pairs. But these pairs are easy: many bad sentences are about another
# country. In harder pairs, only the fact differs.

# %% tags=["value:likelihoods"]
of_relation = {relation: set() for relation in held_out["relation"]}
for row in held_out:
    of_relation[row["relation"]].add(row["answer"])
by_question = {row["question"]: row for row in held_out}


def swapped(question):
    """The reference of a question, with another country's answer in it."""
    row = by_question[question]
    others = sorted(of_relation[row["relation"]] - {row["answer"]})
    return f"{row['cue']} {random.Random(question).choice(others)}."


harder = [swapped(question) for question in questions]
by_likelihood = {
    "easy pairs": judge_accuracy(likelihood, questions, goods, bads),
    "hard pairs": judge_accuracy(likelihood, questions, goods, harder),
}
for name, each in by_likelihood.items():
    print(f"{name}: {each.accuracy:.0%} ({each.low:.0%} to {each.high:.0%})")

# %% tags=["claim"]
assert not embedded or by_likelihood["easy pairs"].accuracy > when_asked.accuracy + 0.2
assert by_likelihood["hard pairs"].accuracy > 0.5
assert position_bias(likelihood, questions, goods, bads).consistent == 1

# %% [markdown]
# With the same weights, the true sentence is likelier in 92% of the 24 hard pairs. So the model has
# much of the knowledge, but does not use it to choose A or B. This judge has another bias: every
# further word lowers the likelihood, so short replies have an advantage:

# %%
long_goods = [add_filler(good) for good in goods[:8]]
against_length = judge_accuracy(likelihood, questions[:8], long_goods, harder[:8])
print(f"long and right against short and wrong: {against_length.accuracy:.0%} for the right one")

# %% tags=["claim"]
assert against_length.accuracy < 0.5

# %% [markdown]
# The right reply lost to a shorter wrong one in all 8 pairs. Know the bias of your judge, and build
# comparisons in which it cannot matter.
#
# What if the chat model had decided? We count its verdicts as votes, beside the reader's:

# %% tags=["value:decided"]
from course_utils.scoring import votes_from_verdicts

decided = {
    name: votes_from_verdicts(
        questions, position_bias(each, questions, goods, bads).verdicts, "tuned", "control", name
    )
    for name, each in {"chat model": judge, "reader": ReaderJudge()}.items()
}
for name, some_votes in decided.items():
    counted = win_rates(some_votes).iloc[0]
    print(
        f"{name}: {counted['losses']} for tuned, {counted['wins']} for control, "
        f"{counted['ties']} ties"
    )
print(f"They say the same of {voter_agreement(*decided.values()).equal:.0%} of the pairs.")

# %% [markdown]
# The chat model gives only ties, because its two verdicts on each pair contradict each other. The
# reader prefers *tuned* in all 24.
#
# ### A better judge
#
# Any server that speaks OpenAI's protocol can be the judge: one on your machine, such as
# `llama-server`, `vllm serve` or `ollama serve`, or a hosted one. Set its name, address and any key
# in the environment *before* Jupyter starts. The key is never shown or stored. Questions and
# replies are sent there, and a hosted one costs money.

# %%
from course_utils.errors import EndpointError
from course_utils.scoring import Endpoint

HOW = """No endpoint is set up. For a judge on this machine, for example one of:

    llama-server -m model.gguf --port 8080         JUDGE_BASE_URL=http://localhost:8080/v1
    vllm serve Qwen/Qwen2.5-7B-Instruct            JUDGE_BASE_URL=http://localhost:8000/v1
    ollama serve                                   JUDGE_BASE_URL=http://localhost:11434/v1

and JUDGE_MODEL for the model's name there. A hosted one also wants its key in OPENAI_API_KEY."""
if Endpoint.configured():
    try:
        outside = Judge(remembered(Endpoint()), max_new_tokens=512)
        # 12 pairs in both orders, and 8 of length in both: 40 requests.
        instruments["endpoint"] = measured(outside, pairs=12, padded=4)
    except EndpointError as error:
        print(error)
else:
    print(HOW)
pd.DataFrame(instruments).T

# %% [markdown]
# Test any judge with known pairs, both orders, length and itself, and then against *people* on your
# own kind of question. A good judge of chat may be bad at facts. Beware if it judges its own
# replies, or its family's: models have been found to favour them (see *To read*).
#
# ## 8. Standard benchmarks
#
# A *benchmark* is a list of questions that many models are asked in the same way. The table shows
# well-known ones, and the rough minutes for a model of 8 billion parameters on a GPU that really
# does 100 TFLOPS. (That is arithmetic alone; generating single texts takes several times as long.)
# `task` is the name to run it by, `mind` what to know before comparing.

# %%
from course_utils.scoring import benchmarks_table

table = benchmarks_table(parameters=8e9, flops_per_second=1e14).reset_index()
table["items"] = [f"{items:,}" if pd.notna(items) else "…" for items in table["items"]]
table["minutes"] = [
    f"{60 * hours:.1f}" if pd.notna(hours) else "…" for hours in table["hours (rough)"]
]
table = table.rename(columns={"note": "mind"})
text_table(table[["benchmark", "measures", "form", "items", "minutes", "task", "mind"]])

# %% [markdown]
# In *choice*, the answers are given, and the model writes nothing: the answer that it finds
# likeliest is its choice. In *generation*, it writes, and its text is compared or run.
#
# ### Really run
#
# EleutherAI's `lm-eval` runs these benchmarks, and tasks of your own: a file names the questions,
# the prompt and the rule for right answers. The course has two, on the 250 held-out questions, one
# in each form.
#
# `acc` is the share of right choices. `acc_norm` divides log-likelihoods by length, so that short
# answers have no advantage.
#
# **Guess first:** what does the base get, which has read all these facts and never answered? And
# the tuned model, which was right on all 80 questions of section 2?

# %%
my_guess = {"base": {"choice": 0.25, "generate": 0}, "tuned": {"choice": 1, "generate": 1}}

# %%
import contextlib
import io

import lm_eval
from lm_eval.models.huggingface import HFLM

from course_utils.scoring import COURSE_TASKS, benchmark_results, course_task_manager

logging.getLogger("lm_eval").setLevel(logging.ERROR)
manager = course_task_manager()


def evaluate(model, tokenizer, tasks, task_manager=manager, **options):
    """What lm-eval finds out about a model, without its progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        return lm_eval.simple_evaluate(
            HFLM(model, tokenizer=tokenizer, batch_size=8),
            tasks=list(tasks),
            task_manager=task_manager,
            **options,
        )


ours = {"base": base, "tuned": tuned, "control": tuned_control}
found = {name: evaluate(model, tokenizer, COURSE_TASKS) for name, model in ours.items()}
found["chat, first 40"] = evaluate(
    judge_model.model, judge_model.tokenizer, COURSE_TASKS, limit=40, apply_chat_template=True
)


def as_columns(found):
    """The figures of several evaluations side by side."""
    tables = {name: benchmark_results(each) for name, each in found.items()}
    return pd.DataFrame(
        {name: each.set_index(["task", "metric"])["value"] for name, each in tables.items()}
    )


run = as_columns(found)
print("You said:", my_guess)
run.map("{:.0%}".format)

# %%
choice = run.loc[("course_countries_choice", "acc")]

# %% tags=["claim"]
written = run.loc[("course_countries_generate", "exact_match")]
assert choice["base"] > 0.33
assert (written < 0.05).all()
assert choice["tuned"] < 0.6

# %% [markdown]
# Most people guess high figures for the tuned model. It gets 40% by choice and **nothing** by
# generation. The control gets 45% by choice, the base 42%, although the control has never read
# about half of the countries. With `acc_norm`, all three are near the 25% of chance. So these
# figures hardly measure facts. What was compared?

# %%
results = evaluate(tuned, tokenizer, ["course_countries_generate"], limit=3)
compared = [
    {
        "prompt": sample["arguments"][0][0],
        "wanted": sample["target"],
        "said": sample["filtered_resps"][0],
        "exact_match": sample["exact_match"],
    }
    for sample in results["samples"]["course_countries_generate"]
]
text_table(pd.DataFrame(compared).astype(str))

# %% [markdown]
# The task wants the bare fact, and the model was tuned to say a sentence. The same holds for
# *choice*: it expects "The capital of", and none of the bare words is likely. (We expect the same
# of the chat model's 0%.) A benchmark measures a model **and** a form. So read the items before you
# believe a low figure, or a high one. The chat model chose the right word for 85% of 40 questions.
# Here are the same 40, asked plainly:

# %%
same = held_out.select(range(40))
picked, said = choice["chat, first 40"], share(marks_of(ask_chat(same["question"]), same))
print(f"right among four: {picked:.0%}; right in its own words: {said:.0%}")

# %% tags=["claim"]
assert not embedded or picked > said + 0.2

# %% [markdown]
# Choosing is easier than saying: 85% against 55% (SmolLM2-135M-Instruct, 40 questions). To be
# chosen, the right word has to be likelier than three others. To be said, it has to appear within
# 32 tokens of free text; in section 2, some replies were cut off or drifted away. Luck explains a
# part: whoever knows 55% and guesses the rest among four reaches 66%. Use the form in which your
# model will work.
#
# ### A task of one's own
#
# Now we ask for whole sentences. The questions are in a file, the settings in a dictionary.

# %%
draw = random.Random(0)
items = []
for row in held_out:
    others = draw.sample(sorted(of_relation[row["relation"]] - {row["answer"]}), 3)
    # The right one first: each is scored by itself, so that their order plays no part.
    choices = [f"{row['cue']} {answer}" for answer in (row["answer"], *others)]
    items.append(
        {"question": row["question"], "reference": choices[0], "choices": choices, "place": 0}
    )
test_file = Path(tempfile.mkdtemp()) / "held_out.jsonl"
datasets.Dataset.from_list(items).to_json(test_file)

shared = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(test_file)}},
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "target_delimiter": " ",
}
own_choice = {
    **shared,
    "task": "sentences_choice",
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "place",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
own_generate = {
    **shared,
    "task": "sentences_generate",
    "output_type": "generate_until",
    "doc_to_target": "reference",
    "generation_kwargs": {"until": ["\n", "."], "do_sample": False, "max_gen_toks": 24},
    "filter_list": [
        {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}

# %%
in_form = as_columns(
    {name: evaluate(model, tokenizer, [own_choice, own_generate]) for name, model in ours.items()}
)
in_form.map("{:.0%}".format)

# %% tags=["claim"]
choice = in_form.loc[("sentences_choice", "acc")]
written = in_form.loc[("sentences_generate", "exact_match")]
assert choice["base"] > 0.8
assert written["base"] < 0.1
assert written["tuned"] > 0.9
assert written["control"] < 0.7

# %% [markdown]
# The base picks the right sentence every time (choice) but writes no answer (generation). Tuning
# changed the second, not the first. The control writes 50% correctly; guessing the other half among
# four would give about 62% by choice, and it got 61%. So a base's figures on choice benchmarks say
# little about its answers.
#
# ### By name, from the hub
#
# `lm-eval` fetches published benchmarks by the names in the table. A limit of 40 items gives a
# first look, not a figure to quote.

# %%
from course_utils.models import hub_reachable
from course_utils.scoring import benchmark_cost

BY_NAME, LIMIT = "hellaswag", 40
if hub_reachable():
    # Without a task manager of ours, lm-eval lists all its own tasks, which takes some seconds.
    from_hub = evaluate(
        judge_model.model, judge_model.tokenizer, [BY_NAME], task_manager=None, limit=LIMIT
    )
    print(benchmark_results(from_hub).round(3).to_string(index=False))
else:
    cost = benchmark_cost(BY_NAME, judge_model.model.num_parameters(), items=LIMIT)
    print(f"Out of reach of the hub. It would run: evaluate(…, [{BY_NAME!r}], limit={LIMIT})")
    print(cost)

# %% [markdown]
# On the command line, for any model of the hub:
#
# ```
# lm_eval --model hf --model_args pretrained=HuggingFaceTB/SmolLM2-135M-Instruct \
#     --tasks hellaswag --limit 40 --batch_size 8 --apply_chat_template
# ```
#
# ### Beyond lists of questions
#
# Four common names are not in `lm-eval`:
#
# **HELM** (Stanford) also measures calibration, robustness to typos, bias and cost, and shows every
# prompt with its reply. It has been in maintenance mode since June 2026.
#
# ```
# pip install crfm-helm
# helm-run --run-entries mmlu:subject=philosophy,model=openai/gpt2 \
#     --suite my-suite --max-eval-instances 10
# helm-summarize --suite my-suite
# helm-server --suite my-suite
# ```
#
# **AlpacaEval** makes section 7 a benchmark: 805 instructions, and a large judge that compares a
# model's replies with a reference model's. It liked length so much that the win rate is now
# corrected for it: quote the *length-controlled* one, and the judge. Your replies go into a JSON
# list of objects with `instruction` and `output`. A run needs a key and costs up to ten dollars, by
# its authors' count.
#
# ```
# pip install alpaca-eval
# alpaca_eval --model_outputs replies.json
# ```
#
# **Chatbot Arena** (later LMArena, now Arena) is section 6 for everybody: people ask, see two
# replies without names, and vote. Bradley-Terry makes the leaderboard. [You can
# vote](https://lmarena.ai), and some votes are published (`lmarena-ai/arena-human-preference-55k`
# on the hub). It measures what people like, style included, and whoever can test many variants has
# an advantage (see *To read*).
#
# **OpenAI Evals** is a framework and a collection. An eval is a file of samples and a few lines of
# YAML; replies are compared literally or judged by a model. It asks hosted models, unless you write
# a small class for yours.
#
# ```
# git clone https://github.com/openai/evals && cd evals && git lfs pull
# pip install -e .
# oaieval gpt-3.5-turbo test-match
# ```

# %% [markdown]
# ## Take away
#
# - The loss does not tell whether answers are right: it fell by 0.05 while right answers rose from
#   20% to 94% (section 1; 2.6 million parameters, one seed).
# - Read replies before you score them, and what a score accepts (section 2).
# - Exact match and chrF compare with *one* wording. In 42% of our pairs, chrF preferred the wrong
#   reply (section 3).
# - Give each difference an interval. Compare on the same questions, and resample what a new test
#   would draw (section 4).
# - Look for the test in the training. n-grams find copies, but found none of 60 reworded leaks
#   (section 5).
# - Compare without names, on random sides. Bradley-Terry gives one order (section 6).
# - Test a judge on known pairs, in both orders. SmolLM2-135M-Instruct chose the first reply in all
#   24 pairs (section 7).
# - A benchmark measures a model in a form: by generation, the tuned model got 0% in one and 100% in
#   another (section 8).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** From one evaluation to the next, the validation loss hardly falls, while the right answers
# rise from few to most. How can that be?
#
# - **A** The loss is computed on other questions than those which the model is asked.
# - **B** The loss lags behind: some steps later it will have fallen as much.
# - **C** The rule for right answers is too generous, so that the rise is not a real one.
# - **D** The fact is a token or two of each sentence, and the loss is a mean over all tokens.
#
# **b.** You know of 24 pairs which reply is better. You show a judge the better one first, and it
# is right for 22. What do you know about the judge?
#
# - **A** It is right in about nine of ten such pairs, with the interval that 24 pairs allow.
# - **B** Little: a judge that takes the first reply whatever it says would do as well.
# - **C** It knows the facts in question, for nobody guesses 22 of 24 by luck.
# - **D** It likes the wording of your replies; another family's judge might not.
#
# **c.** A test has 250 questions, five on each of 50 countries. A model has read everything about a
# country or nothing. An interval made by resampling questions is …
#
# - **A** too narrow.
# - **B** as wide as it should be.
# - **C** too wide.
# - **D** too narrow for one model, right for a paired comparison.
#
# **d.** A base model nearly always picks the right one of four sentences. Asked in the same form,
# it writes hardly any right answer. What follows?
#
# - **A** Choice is easy to guess, so that its figure says nothing about the model.
# - **B** The generation task is badly made: its rule takes right answers for wrong ones.
# - **C** It has the facts, and has not learned to answer a question with them.
# - **D** The four sentences were in its corpus, so that the figure for choice is contaminated.

# %%
from course_utils.exercises import check, done, quiz

quiz("08", a="...", b="...", c="...", d="...")

# %% [markdown]
# **08.1 · Change one number.** Suppose you had `times` as many questions, with the same share
# right. Change `times` to 2, 4 and 16, and see how wide the interval is.

# %%
times = 1
more = bootstrap_interval(marks["control"] * times)
print(f"{more.n} questions: the interval is {more.high - more.low:.3f} wide")

# %% [markdown]
# Put the rule that you see into `questions_for(width, n, wanted)`. With `n` questions the interval
# is `width` wide. How many make it `wanted` wide? Return a whole number. Explain in a sentence why
# more certainty costs ever more questions.


# %% tags=["exercise"]
def questions_for(width, n, wanted):
    """How many questions make an interval of the wanted width."""
    ### BEGIN SOLUTION
    import math

    return math.ceil(n * (width / wanted) ** 2)
    ### END SOLUTION


# %%
check("08.1", questions_for)

# %% [markdown]
# **08.2 · The right fact, in any words.** Write `right_fact(reply, answer, others)`. It is true if
# the reply gives the answer, in any wording, and none of the wrong `others`. Ignore capital
# letters. A name inside a longer one does not count: neither *Oman* in *Romania*, nor *Guinean* in
# *Bissau-Guinean* if both are among the names. Below, your rule is compared with section 2's. If
# they agree, the loose rule was good enough here.


# %% tags=["exercise"]
def right_fact(reply, answer, others):
    """Whether a reply gives this answer and no other one."""
    ### BEGIN SOLUTION
    import re

    names = sorted({answer, *others}, key=len, reverse=True)  # the longer first
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    found = re.findall(pattern, reply, flags=re.IGNORECASE)
    return {name.lower() for name in found} == {answer.lower()}
    ### END SOLUTION


# %%
check("08.2", right_fact)

# %%
if done("08.2"):
    strict = {
        name: share(
            [
                right_fact(reply, row["answer"], of_relation[row["relation"]] - {row["answer"]})
                for row, reply in zip(test, replies[name], strict=True)
            ]
        )
        for name in systems
    }
    loose = {name: share(marks[name]) for name in systems}
    print(pd.DataFrame({"the word occurs": loose, "your rule": strict}).map("{:.0%}".format))

# %% [markdown]
# **08.3 · Alone: leaks in other words.** Write `leaked(test, train)`. Both are lists of texts.
# Return the places of the test texts whose content is in a training text, however worded. The check
# wants 80% of the leaks, and at most one false alarm for ten leaks. Texts that share only the
# pattern ("What is the capital of …?") are no leaks. Which words give a text away?


# %% tags=["exercise"]
def leaked(test, train):
    """The places of the test texts that are in the training, in whatever words."""
    ### BEGIN SOLUTION
    import re
    from collections import Counter

    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    tests, trains = [words(text) for text in test], [words(text) for text in train]
    common = Counter(word for text in [*tests, *trains] for word in text)
    limit = 0.04 * (len(tests) + len(trains))
    found = set()
    for place, text in enumerate(tests):
        rare = {word for word in text if common[word] <= limit}
        if rare and any(len(rare & other) >= 0.8 * len(rare) for other in trains):
            found.add(place)
    return found
    ### END SOLUTION


# %%
check("08.3", leaked)

# %%
if done("08.3"):
    found = leaked(as_text(hidden_test), [*as_text(some), *reworded])
    right_places = sum(place < 60 for place in found)
    print(
        f"{right_places} of the 60 reworded leaks found; {len(found) - right_places} false alarms"
    )

# %% [markdown]
# Solutions: `notebooks/solutions/08_response_quality.py`.
#
# ## To read
#
# - Zheng and others, [Judging LLM-as-a-judge with MT-Bench and Chatbot
#   Arena](https://arxiv.org/abs/2306.05685): position and verbosity bias of large judges.
# - Panickssery and others, [LLM evaluators recognize and favor their own
#   generations](https://arxiv.org/abs/2404.13076).
# - Miller, [Adding error bars to evals](https://arxiv.org/abs/2411.00640): intervals, pairs,
#   clusters.
# - Chiang and others, [Chatbot Arena](https://arxiv.org/abs/2403.04132), and Singh and others, [The
#   leaderboard illusion](https://arxiv.org/abs/2504.20879): how it is made, and how it is gamed.
# - The guide to [tasks of one's
#   own](https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/new_task_guide.md) in
#   `lm-eval`.
# - The course's words: [glossary](../docs/glossary.md).
