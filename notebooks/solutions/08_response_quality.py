# %% [markdown]
# # 08 · Response quality
#
# **You will learn** why a falling loss does not mean better answers, what the usual scores measure
# and what they miss, and how to tell a better model from a lucky one. You will also let people and
# models judge answers, find test items that leaked into the training, and run benchmarks.
#
# **You need** notebooks 02 (LoRA) and 06 (instruction tuning).
#
# **It takes** about 45 minutes of reading and trying. The cells themselves run in about
# six minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Nadia has tuned a model that answers travellers' questions. The loss has fallen. Her manager asks:
# "Is it better than the old one?" The loss cannot answer that. Here you learn what can.
#
# All figures in the text are from the saved run. The tuned models have 2.6 million parameters and
# one seed each. The chat model is SmolLM2-135M-Instruct.

# %%
import copy
import functools
import logging
import os
import random
import re
import tempfile
import warnings
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import transformers

from course_utils import describe
from course_utils.display import BLUE, GREEN, GREY, RED, text_table, use_style

# Inside the libraries, of no concern here: an argument's old name, and notes on saving.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
warnings.filterwarnings("ignore", message="Could not find a config file")
for name in ("transformers", "lm_eval"):
    logging.getLogger(name).setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
use_style()

print(describe())

# %% [markdown]
# ## 1. Loss is not quality
#
# We train a model to answer questions about countries in whole sentences. Each reply has a *form*,
# the sentence, and a *fact*. The loss mixes the two, so we will watch both.

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
# is right if it contains the answer. It is well-formed if it is one of our sentences about the
# right country, whatever fact it gives.

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
        found = {"loss": metrics["eval_loss"], "well-formed": np.mean(formed)}
        found["right"] = np.mean(marks_of(replies, rows))
        self.rows.append({"step": state.global_step, **found})
        model.train()


# %%
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import preflight
from course_utils.training import faster_on_cpu, watch


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
        "use_cpu": base.device.type == "cpu",
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

# %% tags=["claim"]
assert report.ok

# %% tags=["figure:08_losses"]
_ = trainer.train()
tuned = trainer.model.eval()

# %% [markdown]
# The loss falls steeply, then slowly. **Guess first:** at step 20 the steep part is over. What
# share of the validation questions does the model answer correctly at step 20, and at step 40?

# %%
my_guess = None  # e.g. {20: 0.5, 40: 0.6}

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
# the loss has already fallen most of its way. But the steep part taught the *form*: from step 10
# on, every reply is a sentence of ours. The facts come between steps 30 and 40, where the loss
# falls by only 0.05.
#
# ### A higher loss, and better answers
#
# Can a model with a *higher* loss answer more? We train on only twenty pairs, at three times the
# learning rate, so that the model overfits.

# %% tags=["figure:08_twenty_pairs"]
asking = AskToo()
twenty = countries["train"].shuffle(seed=3).select(range(20))
trainer = make_trainer(
    twenty, seed=3, callbacks=[asking], max_steps=60, learning_rate=1e-2, run_name="20 pairs"
)
preflight(trainer, strict=True)  # raises where a check fails
trainer.train()
overfitted, few = trainer.model.eval(), pd.DataFrame(asking.rows).set_index("step")

# %% tags=["figure:08_loss_and_right"]
figure, axis = plt.subplots(figsize=(7.5, 4))
for name, rows, colour, marker in (("400 pairs", curve, BLUE, "o"), ("20 pairs", few, RED, "s")):
    axis.plot(rows["loss"], rows["right"], marker=marker, color=colour, label=name, linewidth=1)
    axis.annotate(f"  step {rows.index[-1]}", rows[["loss", "right"]].iloc[-1])
axis.set_xlabel("validation loss")
axis.set_ylabel("validation questions answered correctly")
axis.set_ylim(-0.03, 1.08)
axis.set_title("A higher loss, and more right answers")
axis.legend()
axis.grid()
plt.show()

# %%
lowest = few["loss"].idxmin()
end, early = few.iloc[-1], few.loc[lowest]
for name, point in (
    ("20 pairs, at the end", end),
    ("20 pairs, at the lowest loss", early),
    (f"400 pairs, step {step - 10}", before),
):
    print(f"{name:30} loss {point['loss']:.2f}, right {point['right']:.0%}")

# %% tags=["claim"]
assert end["loss"] > before["loss"] + 0.05
assert end["right"] > before["right"] + 0.2
assert end["right"] > early["right"] + 0.2

# %% [markdown]
# In this plot, a falling loss moves a point to the *left*. If you had stopped the training on
# twenty pairs at its lowest validation loss, you would have kept a model that answers 24% of the
# questions instead of 71%. Another draw of twenty pairs need not show the same.
#
# ### Where in a sentence the loss sits
#
# The loss is a mean over *all* tokens of the reference, and only a few of them carry the fact. A
# token costs minus the logarithm of its probability, in *nats*; a sure one costs almost nothing.
#
# To see this, we tune the *control* of notebook 06 on the same 400 pairs. Its pre-training texts
# say nothing about 25 of the held-out countries.

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
    {"tuned": costs(tuned, example[0]), "control, tuned": costs(tuned_control, example[0])}
)
print(example["question"][0], "→", answers_of(tuned_control, example)[0])
print(f"the control's mean: {where['control, tuned'].mean():.2f} nats a token")
where.round(2)

# %% tags=["claim"]
expensive = where["control, tuned"] > 1
assert expensive.sum() == 4
assert len(where) == 10
assert not tells(answers_of(tuned_control, example)[0], example["answer"][0])

# %% [markdown]
# The control answers about Mali. Four of the ten tokens are expensive: the country's name and the
# pieces of *Tirana*. In a text of two hundred tokens, these four would raise the mean by only about
# 0.2 nats. So look at replies.
#
# ## 2. Read first
#
# Before any score, **read** replies. Four systems get the same 80 questions, about countries that
# appear in no training pair:
#
# - **tuned**: the base model, tuned on 400 pairs;
# - **20 pairs**: the overfitted model;
# - **control**: tuned like the first, but it never read about half of the held-out countries;
# - **chat**: the chat model, unchanged. It has never seen one of our references.

# %%
from course_utils import runner

test = held_out.shuffle(seed=0).select(range(80))
models = {"tuned": tuned, "20 pairs": overfitted, "control": tuned_control}
replies = {name: answers_of(model, test) for name, model in models.items()}
ask_chat = runner("chat", max_new_tokens=32)
said = ask_chat(test["question"])
replies["chat"] = [reply.strip() for reply in said]
systems = list(replies)

# %% [markdown]
# **Guess first**, and then read: which system answers best, and which worst?

# %%
my_guess = None  # e.g. {"best": "control", "worst": "20 pairs"}

# %%
text_table(pd.DataFrame({"question": test["question"], **replies}).head(8))

# %% [markdown]
# *20 pairs* often answers another question than the one asked. The control names other countries.
# The chat model writes freely, and our limit of 32 tokens cuts some of its replies. With your own
# models, read a random hundred. Then count. A reply is right if it contains the answer.

# %%
marks = {name: marks_of(replies[name], test) for name in systems}
print("You said:", my_guess)
pd.Series({name: np.mean(marks[name]) for name in systems}, name="right").map("{:.0%}".format)

# %% tags=["claim"]
# What is claimed below of the embedded chat model need not hold for a larger one.
embedded = ask_chat.model.num_parameters() < 5e8
right = {name: np.mean(marks[name]) for name in systems}
assert right["tuned"] > 0.9
assert all(right["tuned"] > right[name] + 0.15 for name in ("20 pairs", "control"))
assert not embedded or right["chat"] < right["tuned"] - 0.3

# %% [markdown]
# *tuned* is best (100%), *chat* last (39%). Many people rank *chat* higher, because it is the
# largest and sounds fluent. Our rule is loose: the right word only has to occur somewhere in the
# reply. In exercise 08.2 you write a stricter one.
#
# ## 3. Scores against references
#
# *Exact match* wants the reference, letter by letter. *Word accuracy* is the share of the
# reference's words that stand in the same place. *chrF* is the overlap in short pieces of up to six
# letters, from 0 to 100.
#
# **Guess first:** which of the three ranks the four systems as the right answers do?

# %%
my_guess = None  # e.g. "chrF"

# %%
from course_utils.scoring import chrf, reference_scores

references = [sentence(row) for row in test]
scored = {name: reference_scores(replies[name], references) for name in systems}
print("You said:", my_guess)
pd.DataFrame(scored).T.assign(right=[np.mean(marks[name]) for name in systems]).round(2)

# %% [markdown]
# Only exact match does. Many people guess chrF, because it tolerates other wordings. But chrF
# places the control above *20 pairs*. Now compare single replies. Which does chrF prefer: a right
# reply of the chat model, or a wrong one of our own?

# %% tags=["value:chrf"]
single = pd.DataFrame(
    [
        (name, reply, reference, bool(mark), chrf([reply], [reference]))
        for name in systems
        for reply, reference, mark in zip(replies[name], references, marks[name], strict=True)
    ],
    columns=["system", "reply", "reference", "right", "chrF"],
)
of_chat = single["system"] == "chat"
right_chat = single[of_chat & single["right"]].sort_values("chrF", kind="stable")
wrong_own = single[~of_chat & ~single["right"]].sort_values("chrF", kind="stable")
fooled = (wrong_own["chrF"].to_numpy()[:, None] > right_chat["chrF"].to_numpy()).mean()
print("A wrong reply of our models and a right one of the chat model, drawn at random:")
print(f"chrF prefers the wrong one in {fooled:.0%} of all such pairs.")
text_table(pd.concat([right_chat.head(2), wrong_own.tail(2)]).round(0))

# %% tags=["claim"]
assert not embedded or fooled > 0.2

# %% [markdown]
# Misspelled names differ by a few letters, so their chrF is high. The chat model uses other words,
# so its chrF is low. In 43% of the pairs, chrF prefers the wrong reply. No such score asks whether
# the reply is **true**.
#
# ## 4. Is that better, or luck?
#
# *20 pairs* answers 61% of our 80 questions, the control 59%. Would 80 other questions give the
# same order? An *interval* tells how far a share could be off. The *bootstrap* finds it without a
# formula: draw 80 of the 80 answers, with repetitions, take the share, and repeat ten thousand
# times. The middle 95% of the shares are the interval.
#
# **Guess first:** how wide is the 95% interval of a share of about a half, on 80 questions?

# %%
my_guess = None  # e.g. 0.1

# %%
from course_utils.scoring import bootstrap_interval, items_needed, paired_test

intervals = {name: bootstrap_interval(marks[name]) for name in systems}
print("You said:", my_guess)
for name, interval in intervals.items():
    print(f"{name:9} {interval}")
width = intervals["control"].high - intervals["control"].low
print(f"the control's is {100 * width:.0f} points wide")

# %% tags=["claim"]
assert 0.15 < width < 0.27

# %% [markdown]
# It is 21 points wide. Most people guess less, because 80 questions feel like many. (*BCa* is a
# corrected bootstrap. Where all answers are right, an exact formula is used.)
#
# Both systems answered the *same* questions, so we can compare question by question: a *paired*
# comparison. We swap the two replies at random, many times. The *p-value*, *p*, is how often the
# difference is as large as the measured one. A *win* is a question that only the first system
# answers correctly.

# %% tags=["value:few-questions"]
one, other = sorted(("20 pairs", "control"), key=lambda name: -np.mean(marks[name]))
paired = paired_test(marks[one], marks[other])
print(f"{one} against {other}:\n{paired}")
disagree = (paired.wins + paired.losses) / paired.n
print(items_needed(0.05, 0.6, disagreement=disagree))
print(items_needed(0.02, 0.74, disagreement=0.1))

# %% tags=["claim"]
assert paired.p_value > 0.3
assert items_needed(0.05, 0.6, disagreement=disagree).items > 5 * paired.n
assert items_needed(0.02, 0.74, disagreement=0.1).items == 1960

# %% [markdown]
# Here p is 0.87, so chance alone often gives such a difference. Usually a difference counts as real
# if p is below 0.05. The last two lines of the output tell how many questions would reveal a
# difference. The very last one is about a claim that you often read: "we went from 74 to 76%". If
# the systems disagree on 10% of the questions, it takes 1,960 of them. We have 250:

# %%
all_marks = {name: marks_of(answers_of(models[name], held_out), held_out) for name in models}
larger = paired_test(all_marks[one], all_marks[other])
print(larger)

# %% tags=["claim"]
assert larger.p_value < 0.05
assert larger.difference.high - larger.difference.low < (
    paired.difference.high - paired.difference.low
)

# %% [markdown]
# Now the difference is 12 points, and p is 0.0046. Is the matter settled?
#
# ### Five questions about one country
#
# The 250 questions are about only 50 countries. The control has read everything about a country or
# nothing, so its five answers tend to stand or fall together. A new test would draw new
# *countries*. So we resample countries, each with its mean.


# %% tags=["value:by-country"]
def by_country(values):
    """The mean for each country of the held-out questions."""
    return pd.Series(values).groupby(list(held_out["country"])).mean()


units = {
    (name, unit): bootstrap_interval(values)
    for name in (one, other)
    for unit, values in (
        ("questions", all_marks[name]),
        ("countries", by_country(all_marks[name])),
    )
}
clustered = paired_test(by_country(all_marks[one]), by_country(all_marks[other]))
print("by questions:", larger, "\nby countries:", clustered)

# %% tags=["figure:08_intervals"]
figure, axis = plt.subplots(figsize=(8, 3.4))
shown = [
    *((f"{name}, 80 questions", intervals[name], GREY) for name in systems),
    *(
        (f"{name}, 250 questions, by {unit}", interval, BLUE if unit == "questions" else GREEN)
        for (name, unit), interval in units.items()
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

# %% tags=["claim"]
wide = {unit: units["control", unit].high - units["control", unit].low for _, unit in units}
assert wide["countries"] > 1.5 * wide["questions"]
assert clustered.p_value > 0.05

# %% [markdown]
# The answers are the same, but the control's interval is twice as wide, and p rises to 0.1. So it
# is not settled. Expect this wherever items depend on each other, such as questions on one text. To
# learn what another *seed* changes, train again.

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
print({name: f"{np.mean(values):.0%}" for name, values in progress.items()})
print(paired_test(progress["theirs"], progress["control"]))

# %% tags=["claim"]
assert np.mean(progress["theirs"]) > np.mean(progress["control"]) + 0.15
assert paired_test(progress["theirs"], progress["control"]).p_value < 0.001

# %% [markdown]
# The share rose from 4% to 38%, with p below 0.001. But 60 of the 125 test items were among the
# training pairs. This is *contamination*. **Guess first:** what does the model answer on the rest?
#
# `contamination_report` finds the leaked items: it cuts each one into all runs of n words, the
# *n-grams*, and looks for them in the training texts.

# %%
my_guess = None  # e.g. 0.3

# %%
from course_utils.scoring import contamination_report


def as_text(rows):
    """Rows of `countries` as texts: question and reference."""
    return [f"{row['question']} {sentence(row)}" for row in rows]


leaks = contamination_report(as_text(hidden_test), as_text(theirs), n=8)
found = leaks["exact"].to_numpy()
print("You said:", my_guess)
pd.DataFrame(
    {
        name: {"leaked": np.mean(np.array(marks)[found]), "rest": np.mean(np.array(marks)[~found])}
        for name, marks in progress.items()
    }
).T.map("{:.0%}".format)

# %% tags=["claim"]
theirs_marks = np.array(progress["theirs"])
assert found.sum() == 60
assert theirs_marks[found].mean() > theirs_marks[~found].mean() + 0.3
assert theirs_marks[~found].mean() < 0.25

# %% [markdown]
# On the 60 leaked items the model answers 72%; on the rest 8%, against the control's 6%. Most
# people guess more, because a small p looks like proof. But p only rules out chance. Report figures
# with and without the leaked items.
#
# Does the search find the same leaks in other words?

# %%
reworded = [
    f"{row['country']} has {row['answer']} for its {row['relation']}."
    for row in hidden_test.select(range(60))
]
hits = contamination_report(as_text(hidden_test), reworded, n=8)
print(f"{(hits['share'] > 0).sum()} of the 60 leaks found")

# %% tags=["claim"]
assert not (hits["share"] > 0).any()

# %% [markdown]
# It finds none of the 60 leaks. Exercise 08.3 looks for them.
#
# ## 6. Side by side
#
# Most texts have no single right answer. There you ask people to choose between *two* replies. Hide
# the names, draw the sides at random, and allow a tie. Vote on twelve pairs; it takes three
# minutes. Your votes stay on your machine, in `build/votes/08.jsonl` of the course's folder.

# %%
from itertools import combinations

from course_utils.data import folder
from course_utils.scoring import Vote, Votes, answers_fingerprint, voter_agreement, win_rates
from course_utils.widgets import rating

pairings = list(combinations(systems, 2))
draw = random.Random(8)
to_judge = []
for first, second in pairings:
    differing = [
        place for place in range(len(test)) if replies[first][place] != replies[second][place]
    ]
    for place in draw.sample(differing, 2):
        both = {first: replies[first][place], second: replies[second][place]}
        to_judge.append((test["question"][place], both))
draw.shuffle(to_judge)

kept = Path(os.environ.get("COURSE_VOTES", folder().parent / "build" / "votes"))
votes = Votes(kept / "08.jsonl")
rating(to_judge, votes, seed=8)

# %% [markdown]
# Twelve votes say little, and the saved run has none. So a *reader* votes too, on all 80 questions
# and all six pairs of systems. It is a program that knows the right answers: the right reply wins;
# if both are right, or neither, it is a tie.

# %%
looked_for = dict(zip(held_out["question"], held_out["answer"], strict=True))


def reader(question, left_text, right_text):
    """What the reader says of two replies: "left", "right" or "tie"."""
    left, right = (tells(text, looked_for[question]) for text in (left_text, right_text))
    return "tie" if left == right else "left" if left else "right"


draw = random.Random(0)
reader_votes = []
for first, second in pairings:
    for place, question in enumerate(test["question"]):
        left, right = draw.sample((first, second), 2)
        texts = replies[left][place], replies[right][place]
        marked = answers_fingerprint(left, texts[0], right, texts[1])
        reader_votes.append(Vote(question, left, right, reader(question, *texts), "reader", marked))

present = {vote.key[1:] for vote in reader_votes}
mine = [vote for vote in votes.by("me") if vote.key[1:] in present]
if mine:
    together = voter_agreement(mine, reader_votes)
    print(f"You and the reader say the same of {together.equal:.0%} of your {len(mine)} pairs.")
else:
    print("No votes of yours on these replies yet: vote above, then run this cell again.")
win_rates(reader_votes).round(2)

# %% tags=["claim"]
table = win_rates(reader_votes).set_index(["system", "against"])
assert table.loc[("control", "tuned"), "wins"] == 0 or not embedded
assert len(reader_votes) == 480

# %% [markdown]
# In the **win rate** a tie counts half. `low` and `high` are the ends of a 95% interval. The
# control's win rate against *tuned* is 0.29, although it never wins: its 47 ties count half each.
#
# To put four systems into one order, give each a *strength* s, so that i beats j with probability
# $s_i / (s_i + s_j)$, and fit the strengths to the votes. This is the model of **Bradley-Terry**,
# which leaderboards use. **Elo**, made for chess, goes through the votes one by one, and each vote
# moves both ratings. The library `evalica` computes both.
#
# **Guess first:** we shuffle the votes. Does the Bradley-Terry strength change? Does Elo?

# %%
my_guess = None  # e.g. {"Bradley-Terry": "yes", "Elo": "yes"}

# %%
import evalica

CODES = {"left": evalica.Winner.X, "right": evalica.Winner.Y, "tie": evalica.Winner.Draw}


def columns(votes):
    """Votes as evalica takes them: the left system, the right one, who won."""
    return zip(*[(vote.left, vote.right, CODES[vote.winner]) for vote in votes], strict=True)


def strengths(votes, weights=None):
    """Bradley-Terry strengths, with a geometric mean of 1."""
    left, right, won = columns(votes)
    scores = evalica.bradley_terry(left, right, won, weights=weights, tolerance=1e-9, limit=10_000)
    return scores.scores / np.exp(np.log(scores.scores).mean())


def shuffled(seed):
    """The reader's votes in another order."""
    return random.Random(seed).sample(reader_votes, len(reader_votes))


# An interval: draw questions anew, each with all its votes.
places = [list(test["question"]).index(vote.question) for vote in reader_votes]
counts = np.random.default_rng(0).multinomial(80, [1 / 80] * 80, size=300)
drawn = pd.DataFrame([strengths(reader_votes, list(map(float, each[places]))) for each in counts])
table = pd.DataFrame(
    {
        "strength": strengths(reader_votes),
        "low": drawn.quantile(0.025),
        "high": drawn.quantile(0.975),
        "votes shuffled": strengths(shuffled(1)),
    }
)
elo = pd.DataFrame([evalica.elo(*columns(shuffled(seed)), k=32).scores for seed in range(20)])
table["Elo, lowest of 20 orders"], table["Elo, highest"] = elo.min(), elo.max()
print("You said:", my_guess)
table.sort_values("strength", ascending=False).round(2)

# %% tags=["claim"]
assert (table["votes shuffled"] - table["strength"]).abs().max() < 1e-3
assert ((elo.max() - elo.min()) > 20).all()
assert table["strength"].idxmax() == "tuned"
assert (table["low"] <= table["strength"]).all()
assert (table["strength"] <= table["high"]).all()

# %% [markdown]
# The Bradley-Terry strength does not change, but the Elo ratings move by 91 to 105 points. Many
# people expect no change, because the votes are the same. But each Elo step starts from the ratings
# that the votes before it have left, so the order matters.
#
# ## 7. A model as judge
#
# People are slow, so a language model says which of two replies is better. Such a model is a
# *judge*. Measure it first, on pairs whose better reply is **known**. We pair a true sentence with
# the same sentence that gives another country's fact.

# %%
of_relation = {relation: set() for relation in held_out["relation"]}
for row in held_out:
    of_relation[row["relation"]].add(row["answer"])

draw = random.Random(0)
asked = hidden.shuffle(seed=0).select(range(40))
questions = list(asked["question"])
goods = [sentence(row) for row in asked]
bads = [
    f"{row['cue']} {draw.choice(sorted(of_relation[row['relation']] - {row['answer']}))}."
    for row in asked
]
text_table(pd.DataFrame({"question": questions, "true": goods, "false": bads}).head(3))

# %% [markdown]
# ### Ask for likelihoods
#
# The simplest judge does not have to write. A model that knows the answer finds the true sentence
# *likelier* after the question. So compare the two log-probabilities. The sentences never meet in
# one prompt, so their order cannot matter.
#
# **Guess first:** in how many of the 40 pairs does the chat model find the true sentence likelier?

# %%
my_guess = None  # e.g. 25

# %% tags=["value:likelihoods"]
from course_utils.scoring import Verdict, judge_accuracy, sequence_log_probs

judge_model = runner("chat")


class LikelihoodJudge:
    """Prefers the reply that a model finds likelier as an answer to the question."""

    def __init__(self, ask):
        self.ask = ask
        self.once = functools.cache(self.log_prob)

    def log_prob(self, question, reply):
        """The log-probability of a reply, in nats."""
        prompt = self.ask.prompt(question)
        return sequence_log_probs(self.ask.model, self.ask.tokenizer, [prompt], [reply])[0]

    def compare(self, questions, firsts, seconds, references=None):
        """A verdict for each pair."""
        rows = zip(questions, firsts, seconds, strict=True)
        better = [self.once(question, a) > self.once(question, b) for question, a, b in rows]
        return [Verdict("first" if first else "second", "") for first in better]


likelihood = LikelihoodJudge(judge_model)
found = judge_accuracy(likelihood, questions, goods, bads)
print("You said:", my_guess)
print(f"hard pairs: {found.accuracy:.0%} right ({found.low:.0%} to {found.high:.0%}, n = 40)")

# %% tags=["claim"]
assert found.accuracy > 0.7
assert found.low > 0.55

# %% [markdown]
# The chat model finds the true sentence likelier in all 40 pairs. Many people guess little more
# than half, because in section 2 the same model answered only 39% of the questions. But recognising
# an answer is easier than saying it.
#
# ### Ask for a verdict: a warning
#
# The usual judge reads both replies in one prompt and *writes* a verdict. A large model can then
# weigh style and reasons. But it opens the door to biases.
#
# Judges usually sit behind a server that speaks OpenAI's protocol: `llama-server`, `vllm serve`,
# `ollama serve`, or a hosted model. Here `serve` puts our chat model behind such an address. For
# another judge, set `JUDGE_BASE_URL`, `JUDGE_MODEL` and, if needed, `OPENAI_API_KEY` before Jupyter
# starts. Your texts are then sent there, and a hosted model costs money.

# %%
from openai import OpenAI

from course_utils.models import serve
from course_utils.scoring import Judge, comparison_prompt

address = os.environ.get("JUDGE_BASE_URL") or serve(judge_model)
key = os.environ.get("OPENAI_API_KEY", "none") if "JUDGE_BASE_URL" in os.environ else "none"
client = OpenAI(base_url=address, api_key=key, timeout=120)


def ask_server(prompts):
    """The server's reply to each prompt."""
    return [
        client.chat.completions.create(
            model=os.environ.get("JUDGE_MODEL", "chat"),
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=32,
        )
        .choices[0]
        .message.content
        for prompt in prompts
    ]


print(comparison_prompt(questions[0], goods[0], bads[0]))
verdicts = Judge(ask_server).compare(questions[:4], goods[:4], bads[:4])
unreadable = sum(verdict.winner is None for verdict in verdicts)
print(f"\n{unreadable} of {len(verdicts)} verdicts cannot be read. The first is:\n")
print(verdicts[0].reply)

# %% tags=["claim"]
assert not embedded or unreadable >= len(verdicts) / 2

# %% [markdown]
# None of the four verdicts can be read, because the small model does not keep to the
# form. So we begin its reply with `Verdict: [[`, and it only has to add a letter.
#
# **Guess first:** the true sentence stands first. In what share of 24 pairs does this judge prefer
# it? And if the true sentence stands second?

# %%
my_guess = None  # e.g. {"true first": 0.6, "true second": 0.6}

# %% tags=["value:positions"]
from course_utils.scoring import with_prefill

prefilled, store = with_prefill(judge_model), {}


def remembered(prompts, **options):
    """The replies of the judge, which reads each prompt only once."""
    new = [prompt for prompt in prompts if prompt not in store]
    store.update(zip(new, prefilled(new, **options) if new else [], strict=True))
    return [store[prompt] for prompt in prompts]


in_words = Judge(remembered, max_new_tokens=2)
orders = {"good first": (goods, bads, "first"), "good second": (bads, goods, "second")}
preferred = {
    name: np.mean([v.winner == wanted for v in in_words.compare(questions[:24], a[:24], b[:24])])
    for name, (a, b, wanted) in orders.items()
}
print("You said:", my_guess)
print({name: f"{value:.0%}" for name, value in preferred.items()}, "of 24 pairs")

# %% tags=["claim"]
assert not embedded or preferred["good first"] > preferred["good second"] + 0.5

# %% [markdown]
# It is 100% and 0%: the judge takes the first reply, whatever it says. Most people expect errors,
# but not a judge that ignores the content. This is **position bias**, and large judges have it too
# (Zheng and others, in *To read*). So ask each pair in both orders, and count a win only if both
# verdicts agree.
#
# ### All judges in one table
#
# Two programs test our instruments: the *reader* of section 6, and a judge that prefers *length*.
# The last two columns measure **verbosity bias**: each true sentence stands against itself with
# empty phrases around it.

# %%
from course_utils.scoring import add_filler, position_bias, verbosity_bias


class ProgramJudge:
    """A function as a judge: it says "left", "right" or "tie"."""

    def __init__(self, function):
        self.function = function

    def compare(self, questions, firsts, seconds, references=None):
        """A verdict for each pair."""
        names = {"left": "first", "right": "second", "tie": "tie"}
        rows = zip(questions, firsts, seconds, strict=True)
        return [Verdict(names[self.function(*row)], "") for row in rows]


judges = {
    "reader": ProgramJudge(reader),
    "length": ProgramJudge(lambda q, a, b: "left" if len(a) > len(b) else "right"),
    "likelihood": likelihood,
    "in words": in_words,
}
instruments = {}
for name, judge in judges.items():
    some_pairs = questions[:24], goods[:24], bads[:24]
    right, position = judge_accuracy(judge, *some_pairs), position_bias(judge, *some_pairs)
    length = verbosity_bias(judge, questions[:8], goods[:8])
    instruments[name] = {
        "right in both orders": f"{right.accuracy:.0%} ({right.low:.0%} to {right.high:.0%})",
        "always the first": f"{position.prefers_first:.0%}",
        "longer wins": f"{length.longer:.0%}",
        "shorter wins": f"{length.shorter:.0%}",
    }
print(add_filler(goods[0]))
pd.DataFrame(instruments).T

# %% tags=["claim"]
assert position_bias(likelihood, questions, goods, bads).prefers_first == 0
assert int(instruments["likelihood"]["shorter wins"].strip("%")) > 50
if embedded:
    assert judge_accuracy(in_words, questions[:24], goods[:24], bads[:24]).accuracy < 0.3

# %% [markdown]
# The judge *in words* is worthless here. Its zeros for length tell nothing: position decides, so no
# reply wins in both orders. The likelihood judge has the same weights and gets most pairs right.
# But every further word lowers the likelihood, so the shorter reply won in all 8 pairs. Use it
# where replies are about equally long, as those of *tuned* and *control* are. Does it agree with
# the reader there?

# %% tags=["value:decided"]
from course_utils.scoring import votes_from_verdicts

decided, first_40 = {}, test["question"][:40]
for name in ("reader", "likelihood"):
    found = judges[name].compare(first_40, replies["tuned"][:40], replies["control"][:40])
    decided[name] = votes_from_verdicts(first_40, found, "tuned", "control", name)
clear = {vote.question for vote in decided["reader"] if vote.winner != "tie"}
same = voter_agreement(
    *([vote for vote in some_votes if vote.question in clear] for some_votes in decided.values())
)
print(f"the reader prefers one reply in {len(clear)} of 40 pairs")
print(f"the likelihood judge says the same of {same.equal:.0%} of them")

# %% tags=["claim"]
assert same.equal > 0.6

# %% [markdown]
# It agrees in all 22 pairs in which the reader prefers a reply. Test any judge with known pairs,
# then against *people* on your own kind of question. Beware if it judges its own replies: models
# have been found to favour them (see *To read*).
#
# ## 8. Standard benchmarks
#
# A *benchmark* is a list of questions that many models are asked in the same way. In *choice*, the
# answers are given, and the likeliest is the model's choice. In *generation*, the model writes. The
# minutes are computed, not measured: for a model with 8 billion parameters on a GPU that reaches
# 100 TFLOPS, 10¹⁴ operations a second. (BIG-bench has no figures: it has more than 200 tasks, of
# which people run different parts.)

# %%
from course_utils.scoring import benchmarks_table

table = benchmarks_table(parameters=8e9, flops_per_second=1e14).reset_index()
table["items"] = [f"{items:,}" if pd.notna(items) else "…" for items in table["items"]]
table["minutes"] = [
    f"{60 * hours:.1f}" if pd.notna(hours) else "…" for hours in table["hours (rough)"]
]
text_table(table[["benchmark", "measures", "form", "items", "minutes", "task"]])

# %% [markdown]
# EleutherAI's `lm-eval` runs them under the name in `task`. It also runs your own: a dictionary
# names the questions, the prompt and the rule. We write three: the held-out questions as *choice*
# and as *generation*, and 200 choice questions about animals, books, elements and inventions. This
# third one does for our model what MMLU, with questions from 57 subjects, does for a large one: it
# shows **what the tuning has broken elsewhere**. A fourth, `course_countries_generate`, wants the
# bare fact instead of a sentence.

# %%
from course_utils.data import domains

draw = random.Random(0)


def item(question, cue, answer, others):
    """A test item; each choice is scored by itself, so their order plays no part."""
    choices = [f"{cue} {each}." for each in (answer, *draw.sample(sorted(others - {answer}), 3))]
    return {"question": question, "choices": choices, "reference": choices[0][:-1], "place": 0}


items = {
    "countries": [
        item(row["question"], row["cue"], row["answer"], of_relation[row["relation"]])
        for row in held_out
    ]
}
elsewhere = [
    item(
        relation.questions[0].format(s=subject),
        relation.cue(subject),
        facts[relation.name],
        {other[relation.name] for other in domain.facts.values()},
    )
    for domain in domains().values()
    if domain.name != "countries"
    for relation in domain.relations.values()
    for subject, facts in domain.facts.items()
    if len({other[relation.name] for other in domain.facts.values()}) > 3
]
items["elsewhere"] = draw.sample(elsewhere, 200)
files = {name: Path(tempfile.mkdtemp()) / f"{name}.jsonl" for name in items}
for name, rows in items.items():
    datasets.Dataset.from_list(rows).to_json(files[name])


def task(name, data, **settings):
    """What all tasks share: where the questions are, and how they are asked."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(files[data])}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "target_delimiter": " ",
        **settings,
    }


choice = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "place"}
generation = {
    "output_type": "generate_until",
    "doc_to_target": "reference",
    "generation_kwargs": {"until": ["\n", "."], "do_sample": False, "max_gen_toks": 24},
    "filter_list": [
        {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
accuracy = {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}
tasks = [
    task("sentences_choice", "countries", **choice, **accuracy),
    task("sentences_generation", "countries", **generation),
    "course_countries_generate",
    task("elsewhere_choice", "elsewhere", **choice, **accuracy),
]

# %% [markdown]
# **Guess first:** the base has read the facts and never answered a question. What does it get in
# both tasks with sentences? And what does *tuned* get where the bare fact is wanted?

# %%
my_guess = None  # e.g. {"base, choice": 0.5, "base, generation": 0.5, "tuned, bare fact": 0.9}

# %%
import contextlib
import io

import lm_eval
from lm_eval.models.huggingface import HFLM

from course_utils.scoring import course_task_manager

ours = {"base": base, **models}
outcome = {}
for name, model in ours.items():
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        outcome[name] = lm_eval.simple_evaluate(
            model=HFLM(model, tokenizer=tokenizer, batch_size=32),
            tasks=tasks,
            task_manager=course_task_manager(),
            bootstrap_iters=0,
        )

METRICS = ("acc,none", "exact_match,none")
run = pd.DataFrame(
    {
        name: {
            asked: next(figures[metric] for metric in METRICS if metric in figures)
            for asked, figures in each["results"].items()
        }
        for name, each in outcome.items()
    }
)
print("You said:", my_guess)
run.map("{:.0%}".format)

# %% tags=["claim"]
assert run.loc["sentences_choice", "base"] > 0.8
assert run.loc["sentences_generation", "base"] < 0.1
assert run.loc["sentences_generation", "tuned"] > 0.9
assert run.loc["course_countries_generate", "tuned"] < 0.05
assert run.loc["sentences_generation", "control"] < 0.7

# %% [markdown]
# The base picks the right sentence every time, but writes no answer. The tuned model, right
# in whole sentences, gets **nothing** where the bare fact is wanted. Most people guess high figures
# there. A benchmark measures a model **and** a form, so read the items first.
#
# ### Before and after
#
# Now the last row: before (*base*) and after tuning. `samples` holds each item's result, so section
# 4's paired test applies:

# %% tags=["value:elsewhere"]
scores = {
    name: [sample["acc"] for sample in each["samples"]["elsewhere_choice"]]
    for name, each in outcome.items()
}
for name in ("tuned", "20 pairs"):
    print(f"{name} against base, elsewhere: {paired_test(scores[name], scores['base'])}")

# %% tags=["claim"]
assert len(scores["base"]) == 200
assert paired_test(scores["tuned"], scores["base"]).p_value > 0.05
assert paired_test(scores["20 pairs"], scores["base"]).difference.high < -0.1

# %% [markdown]
# *tuned* lost 2 of 200 items. This is no proof of a loss (p = 0.5). *20 pairs* lost 46: 23 points,
# with an interval from 18 to 30. One seed each. For a large model, MMLU asks this about knowledge,
# and IFEval about instructions that a program can check. (Notebook 07 counts 40 of these offline.)
# `lm-eval` fetches both from the hub by name. Put your adapter's folder into `ADAPTER`. A limit of
# 40 items gives a first look, not a figure to quote.

# %%
from importlib.util import find_spec

from peft import PeftModel

from course_utils.models import hub_reachable

BY_NAME, LIMIT, ADAPTER = ["mmlu_high_school_geography"], 40, None
# IFEval writes up to 1,280 tokens an item, which is for a GPU; it needs lm-eval[ifeval].
if torch.cuda.is_available() and find_spec("langdetect"):
    BY_NAME.append("ifeval")
if hub_reachable():
    model = judge_model.model
    for arm in ("before", "after")[: 2 if ADAPTER else 1]:
        if arm == "after":
            model = PeftModel.from_pretrained(model, ADAPTER).eval()
        with contextlib.redirect_stderr(io.StringIO()):
            from_hub = lm_eval.simple_evaluate(
                model=HFLM(model, tokenizer=judge_model.tokenizer, batch_size=8),
                tasks=BY_NAME,
                limit=LIMIT,
                apply_chat_template=True,
                bootstrap_iters=0,
            )
        print(arm, from_hub["results"])
else:
    print(f"Out of reach of the hub. It would ask {LIMIT} items of {', '.join(BY_NAME)}.")

# %% [markdown]
# On the command line: `lm_eval --model hf --model_args pretrained=…,peft=… --tasks mmlu,ifeval`.
# Four names remain that are more than a list of questions. **Chatbot Arena** lets everybody vote on
# two replies, as you did in section 6. **AlpacaEval** compares replies with a large model as judge,
# as in section 7. **HELM** also measures calibration and robustness. **OpenAI Evals** is, like
# `lm-eval`, a program and a collection: you can run its tests or add your own.
#
# ## 9. What to try in which order
#
# | | what | finds |
# |---|---|---|
# | 1 | read 50 replies (section 2) | wrong form, cut replies |
# | 2 | check held-out replies by program (2, 3) | wrong answers |
# | 3 | paired test, interval (4) | luck |
# | 4 | search for leaks (5) | a test that was trained on |
# | 5 | likelihood judge (7) | what the model's knowledge supports |
# | 6 | judge in words, tested first (7) | style and help |
# | 7 | people, blind (6) | what they prefer |
# | 8 | benchmark before and after (8) | what the tuning broke |
#
# Generation takes most of the computing. Put the hourly price of your machine into `HOURLY`:

# %%
HOURLY = 0.50  # dollars an hour

seconds = sum({reply.seconds for reply in said})  # the replies of one batch share their time
speed = sum(reply.tokens for reply in said) / seconds
hours = 1000 * 200 / speed / 3600
print(f"the chat model writes {speed:.0f} tokens a second, eight replies at a time")
print(f"1,000 replies of 200 tokens: {hours:.1f} hours, ${hours * HOURLY:.2f}")

# %% [markdown]
# ## Take away
#
# - The loss fell by 0.05 while right answers rose from 20% to 94% (section 1; 2.6 million
#   parameters, one seed).
# - chrF preferred the wrong reply in 43% of our pairs (section 3).
# - Give each difference an interval, and resample what a new test would draw (section 4).
# - n-grams find copied test items, but found none of 60 reworded leaks (section 5).
# - Compare without names. Bradley-Terry gives one order (section 6).
# - Test a judge on known pairs, in both orders. The same 135M model was right in all 40 pairs by
#   likelihood, and useless when asked for a verdict (section 7).
# - A benchmark measures a model in a form: by generation, the tuned model got 0% in one and 100% in
#   another (section 8).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** From one evaluation to the next, the validation loss hardly falls, while the right answers
# rise from few to most. How can that be?
#
# - **A** The loss is computed on other questions than the model is asked.
# - **B** The loss lags behind by some steps.
# - **C** The rule for right answers is too generous, so the rise is not real.
# - **D** The fact is a token or two of each sentence, and the loss is a mean over all tokens.
#
# **b.** You know of 24 pairs which reply is better. You show a judge the better one first, and it
# is right for 22. What do you know about the judge?
#
# - **A** It is right in about nine of ten such pairs.
# - **B** Little: a judge that takes the first reply whatever it says would do as well.
# - **C** It knows the facts: nobody guesses 22 of 24 by luck.
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
# - **A** Choice is easy to guess, so its figure says nothing.
# - **B** The generation task takes right answers for wrong ones.
# - **C** It has the facts, and has not learned to answer a question with them.
# - **D** The four sentences were in its corpus, so choice is contaminated.

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
# *Bissau-Guinean* if both are among the names. Below, your rule is compared with section 2's.


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
        name: np.mean(
            [
                right_fact(reply, row["answer"], of_relation[row["relation"]] - {row["answer"]})
                for row, reply in zip(test, replies[name], strict=True)
            ]
        )
        for name in systems
    }
    loose = {name: np.mean(marks[name]) for name in systems}
    print(pd.DataFrame({"the word occurs": loose, "your rule": strict}).map("{:.0%}".format))

# %% [markdown]
# **08.3 · Alone: leaks in other words.** Write `leak_scores(test, train)`. Both are lists of texts.
# Return one number for each test text: the higher, the more likely its content is in a training
# text, in any words. Texts that share only the pattern ("What is the capital of …?") are no leaks.
#
# The check has 150 test texts, 40 of them leaked in other words. In at least 90% of all pairs of a
# leaked and a clean text, the leaked one must score higher; a coin gets 50%. A score needs no
# threshold, so there is none to fit to the check.


# %% tags=["exercise"]
def leak_scores(test, train):
    """For each test text a number: how likely its content is in the training."""
    ### BEGIN SOLUTION
    import re
    from collections import Counter

    def words(text):
        return set(re.findall(r"\w+", text.lower()))

    tests, trains = [words(text) for text in test], [words(text) for text in train]
    count = Counter(word for text in [*tests, *trains] for word in text)

    def weight(some_words):
        return sum(1 / count[word] for word in some_words)

    return [max(weight(text & other) for other in trains) / weight(text) for text in tests]
    ### END SOLUTION


# %%
check("08.3", leak_scores)

# %%
if done("08.3"):
    scores = np.array(leak_scores(as_text(hidden_test), [*as_text(some), *reworded]))
    above = (scores[:60, None] > scores[60:]).mean()
    print(f"the 60 reworded leaks of section 5: {above:.0%} of all pairs are in the right order")

# %% [markdown]
# Solutions: `notebooks/solutions/08_response_quality.py`.
#
# ## To read
#
# - Zheng and others, [Judging LLM-as-a-judge with MT-Bench and Chatbot
#   Arena](https://arxiv.org/abs/2306.05685).
# - Panickssery and others, [LLM evaluators recognize and favor their own
#   generations](https://arxiv.org/abs/2404.13076).
# - Miller, [Adding error bars to evals](https://arxiv.org/abs/2411.00640).
# - Singh and others, [The leaderboard illusion](https://arxiv.org/abs/2504.20879).
# - `lm-eval`, [tasks of one's
#   own](https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/new_task_guide.md).
# - The course's words: [glossary](../docs/glossary.md).
