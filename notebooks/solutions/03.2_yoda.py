# %% [markdown] tags=["exercise-notebook"]
# # 03.2 · Yoda, on your own
#
# **You will learn** to run a fine-tuning on your own, from an empty cell: you write the data form,
# the baseline, the trainer and the evaluation.
#
# **You need** notebooks 00 and 03.1, to look things up in.
#
# **It takes** about an hour: 20 minutes of reading, and 40 minutes of writing the four functions.
# The solved cells run in about four minutes on two CPU cores, mostly for the training; on GPUs, not
# yet measured.
#
# The outputs come from a solved copy. Cells that build on an exercise run once it is solved.

# %% [markdown]
# ## The machine at hand
#
# Amira writes captions for people who are learning English. In one film, a small green teacher
# turns his sentences around: *"Two bones the dog found. Yes, hrrmmm."* Her readers cannot follow
# him, so her captions should say *"The dog found two bones."* There are thousands of lines, and she
# has a small chat model on her laptop. Asked nicely, the model fails, as you will see. So Amira has
# to fine-tune it. Take her place.
#
# Notebook 00 taught a model to turn plain English into Yoda's speech. Now train the reverse, and
# write the code. After each empty cell comes a check. It says what is wrong and gives one more hint
# each time.

# %%
import logging
import warnings

# Hide what the libraries print while they are loaded and at work.
logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import tempfile

import datasets
import pandas as pd
import torch
import transformers
from IPython.display import display
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from course_utils import describe, load_data, preflight
from course_utils.display import text_table
from course_utils.exercises import check, done
from course_utils.hardware import pick_dtype, tier
from course_utils.models import recipe, resolve
from course_utils.training import faster_on_cpu, watch

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

print(describe())

# %% [markdown]
# ## 1. The task
#
# Each row of the data holds a plain `sentence` and the same sentence as Yoda says it, in two
# columns. In `yoda`, only the order of the words differs. In `yoda_extra`, some lines also end in
# *Yes, hrrmmm.*, as they do in the film. So `yoda_extra` is what the model will have to read.
#
# Yoda moves the words after the verb to the front: *I see a red house* becomes *A red house I see*.
# After a word such as *have*, *can* or *will*, the main verb moves too: *You have become powerful*
# becomes *Become powerful you have*. To go back, the model has to find the end of the part that was
# moved. In *Many gloomy bays beside every corridor our lazy messenger reached*, this part ends
# after *corridor*.
#
# There are 3,000 rows to train on. We measure on 50 rows of the split `unseen`: none of their
# nouns, verbs and adjectives is in the training data.

# %%
yoda = load_data("yoda")
held_out = yoda["unseen"].select(range(50))
text_table(yoda["train"].select(range(4)).to_pandas())

# %% [markdown]
# ## 2. The data form
#
# Write `as_chat(row)`. It gets a row of the data and returns a dictionary with the columns `prompt`
# and `completion`, which are lists of messages. The system says `SYSTEM`, the user says Yoda's line
# (`yoda_extra`), and the assistant answers with the plain sentence.

# %%
SYSTEM = "Say it in plain English."


# %% tags=["exercise"]
def as_chat(row):
    """Turn a row of the dataset into a conversation."""
    ### BEGIN SOLUTION
    system = {"role": "system", "content": "Say it in plain English."}
    user = {"role": "user", "content": row["yoda_extra"]}
    return {
        "prompt": [system, user],
        "completion": [{"role": "assistant", "content": row["sentence"]}],
    }
    ### END SOLUTION


# %%
check("yoda.format", as_chat)

# %% [markdown]
# ## 3. The baseline
#
# The next cell loads the model with `from_pretrained`, as notebook 00 does (`resolve` finds its
# folder), and defines `ask`, which returns the model's replies to a list of conversations.

# %%
folder = resolve("chat").folder
dtype = pick_dtype().value if torch.cuda.is_available() else torch.float32


def load():
    """A fresh copy of the chat model."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="auto")


def ask(model, conversations):
    """The model's replies to a list of conversations."""
    replies = []
    for start in range(0, len(conversations), 50):
        inputs = tokenizer.apply_chat_template(
            conversations[start : start + 50],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        ).to(model.device)
        outputs = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        replies += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return replies


tokenizer = AutoTokenizer.from_pretrained(folder)
tokenizer.padding_side = "left"
model = load()

# %% [markdown]
# Before you train, find out what you have to beat. Write `baseline(reply, rows)`. It gets:
#
# - `reply`: a function. Call it with a list of conversations, and it returns the untuned model's
#   replies, one for each conversation.
# - `rows`: rows of the dataset.
#
# It returns a dictionary with two shares between 0 and 1:
#
# - `"untuned"`: the share of replies that equal the column `sentence`. Ask fairly. The model has
#   never seen the task, so tell it what to do, show it two examples from the training data, and end
#   with the line from `yoda_extra`.
# - `"nothing done"`: the share of lines in `yoda_extra` that equal `sentence` as they are.


# %% tags=["exercise"]
def baseline(reply, rows):
    """The shares of right sentences before any training."""
    ### BEGIN SOLUTION
    request = (
        "Yoda puts his words in a strange order. Say it in plain English. For example, 'Three tugs "
        "my daughter halted.' becomes 'My daughter halted three tugs.', and 'Sly you are. Yes, "
        "hrrmmm.' becomes 'You are sly.'\n\n"
    )
    prompts = [[{"role": "user", "content": request + row["yoda_extra"]}] for row in rows]
    replies = reply(prompts)
    wanted = [row["sentence"] for row in rows]
    lines = [row["yoda_extra"] for row in rows]
    return {
        "untuned": sum(a == b for a, b in zip(replies, wanted, strict=True)) / len(wanted),
        "nothing done": sum(a == b for a, b in zip(lines, wanted, strict=True)) / len(wanted),
    }
    ### END SOLUTION


# %%
check("yoda.baseline", baseline)

# %% tags=["value:untuned"]
if done("yoda.baseline"):
    scores = baseline(lambda prompts: ask(model, prompts), held_out)
    print({name: f"{share:.0%}" for name, share in scores.items()})

# %% tags=["claim"]
if done("yoda.baseline"):
    assert scores["untuned"] <= 0.1
    assert scores["nothing done"] == 0

# %% [markdown]
# The untuned model gets 1 of 50 sentences right, although it was told what to do and was shown two
# examples (SmolLM2-135M-Instruct, one prompt). Doing nothing scores 0%, because Yoda reorders every
# one of these lines. So nearly all that the tuned model gets right comes from the training.
#
# ## 4. The trainer
#
# Now the main part. Write `make_trainer(model, tokenizer, rows, steps, batch, machine)`. It returns
# an `SFTTrainer`, before any training. It gets:
#
# - `model` and `tokenizer`, as loaded above,
# - `rows`: training rows with the columns `prompt` and `completion`,
# - `steps` and `batch`: how many steps to train, and how many sentences each step takes,
# - `machine`: a dictionary of settings for `SFTConfig` that depend on the machine only, such as
#   `bf16` and `output_dir`. Hand it on as `**machine`.
#
# You choose the adapter (a `LoraConfig` by the rules of notebook 02, on all linear layers), the
# learning rate, and its schedule. Log the loss every 5 steps or more often.
#
# Which rate? The usual rates for LoRA, 1e-4 to 2e-4, belong to trainings of many hundreds of steps.
# The next cell shows how many steps you have, and a rate that goes with them.

# %% tags=["value:plan"]
plan = recipe("yoda", tier().value)
steps, batch = plan["steps"], plan["batch"]
print(f"{steps} steps of {batch} sentences: {plan['why']}")
print(f"a learning rate that goes with them: {plan['learning_rate']}")

machine = {
    "output_dir": tempfile.mkdtemp(),
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "use_cpu": model.device.type == "cpu",
    "bf16": dtype == torch.bfloat16,
    "fp16": dtype == torch.float16,
}


# %% tags=["exercise"]
def make_trainer(model, tokenizer, rows, steps, batch, machine):
    """An SFTTrainer with a new adapter on a model."""
    ### BEGIN SOLUTION
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    settings = SFTConfig(
        **machine,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=2e-3 if steps < 100 else 2e-4,  # few steps need a high rate
        lr_scheduler_type="linear",
        warmup_steps=3,
        logging_steps=2,
        seed=0,
    )
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    ### END SOLUTION


# %%
check("yoda.trainer", make_trainer)

# %% [markdown]
# ## 5. Train
#
# The next cell makes your trainer and runs the pre-flight of notebook 03 on its real batches. The
# cell after it trains for a few minutes. `watch` draws the loss while you wait, and `faster_on_cpu`
# computes the same loss faster on a CPU. To start over, run both cells again: `load()` gives a
# fresh model.

# %%
ready = done("yoda.format", "yoda.trainer")
if ready:
    train = yoda["train"].map(as_chat, remove_columns=yoda["train"].column_names)
    model = load()
    trainer = make_trainer(model, tokenizer, train, steps, batch, machine)
    trainer = faster_on_cpu(watch(trainer))
    print(preflight(trainer))

# %% tags=["figure:03_2_losses"]
if ready:
    trainer.train()

# %% tags=["claim"]
import json

from course_utils.data import folder
from course_utils.scoring import bootstrap_interval

file = folder().parent / "benchmarks" / "results" / "yoda_rates.jsonl"
rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
right = {row["learning_rate"]: row["right"] for row in rows}
assert right == {2e-4: 76, 1e-3: 90, 2e-3: 89, 4e-3: 92}
assert {(row["examples"], row["steps"], row["seed"]) for row in rows} == {(100, 60, 0)}
for rate, ends in {2e-4: (67, 83), 1e-3: (83, 95), 2e-3: (82, 94), 4e-3: (85, 96)}.items():
    found = bootstrap_interval([1] * right[rate] + [0] * (100 - right[rate]))
    assert (round(100 * found.low), round(100 * found.high)) == ends

# %% [markdown]
# In the saved run, the loss falls steeply within the first ten steps, and then slowly, with ups and
# downs. Each point is the mean of 16 sentences only, and some sentences are harder than others.
#
# Which learning rate is right? `benchmarks/yoda_rates.py` ran this training with four of them
# (SmolLM2-135M-Instruct, alpha / r = 2, 60 steps of 8 sentences, one seed), and counted the right
# replies to 100 lines whose words are in no training line:
#
# | learning rate | right of 100 | 95% interval |
# |---|---|---|
# | 2e-4 | 76 | 67 to 83 |
# | 1e-3 | 90 | 83 to 95 |
# | 2e-3 | 89 | 82 to 94 |
# | 4e-3 | 92 | 85 to 96 |
#
# With 2e-4, a usual rate for LoRA, these 60 steps are too few. From 1e-3 to 4e-3 the rate makes no
# difference that we can show: the three intervals overlap widely. The check accepts any rate in
# this range, and warns you if yours is lower. On a GPU, the recipe trains 300 steps at 2e-4,
# because larger models are usually trained at such rates. We have not measured that.
#
# ## 6. The evaluation
#
# Write `evaluation(before, after, rows)`. `before` and `after` are two functions such as `reply`
# above: each takes a list of conversations and returns the replies, one from the untuned and the
# other from the tuned model. Ask both with the prompts on which you trained. Return a `DataFrame`
# with one row for each sentence and these columns:
#
# - `Yoda` (from `yoda_extra`) and `wanted` (from `sentence`),
# - `before` and `after`: the two replies,
# - `right before` and `right after`: whether the reply equals `wanted`, as True or False.


# %% tags=["exercise"]
def evaluation(before, after, rows):
    """A table of lines with the replies before and after the training."""
    ### BEGIN SOLUTION
    prompts = [as_chat(row)["prompt"] for row in rows]
    table = pd.DataFrame({"Yoda": list(rows["yoda_extra"]), "wanted": list(rows["sentence"])})
    table["before"] = before(prompts)
    table["after"] = after(prompts)
    table["right before"] = table["before"] == table["wanted"]
    table["right after"] = table["after"] == table["wanted"]
    return table
    ### END SOLUTION


# %%
check("yoda.evaluation", evaluation)

# %% [markdown]
# **Guess first.** What share of the 50 replies of the tuned model will be exactly right?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %% [markdown]
# The next cell asks your tuned model twice: first with the adapter switched off
# (`disable_adapter`), which is the untuned model again, and then with the adapter.

# %% tags=["value:tuned"]
trained = ready and done("yoda.evaluation")


def untuned(prompts):
    """Replies with the adapter switched off."""
    with tuned_model.disable_adapter():
        return ask(tuned_model, prompts)


def tuned(prompts):
    """Replies with the adapter."""
    return ask(tuned_model, prompts)


if trained:
    tuned_model = trainer.model.eval()
    table = evaluation(untuned, tuned, held_out)
    print(f"right before: {table['right before'].sum()} of {len(table)}")
    print(f"right after:  {table['right after'].sum()} of {len(table)}; you guessed {my_guess}")

# %% tags=["claim"]
if trained:
    assert table["right before"].mean() <= 0.1
    assert table["right after"].mean() >= 0.7

# %% tags=["value:replies"]
if trained:
    some = pd.concat([table[~table["right after"]].head(4), table[table["right after"]].head(4)])
    display(text_table(some[["Yoda", "before", "after", "wanted"]]))

# %% [markdown]
# In the saved run, 46 of 50 sentences are right, against none before (with the short prompt on
# which you trained). That is one seed of SmolLM2-135M-Instruct. With 50 sentences, the 95% interval
# goes from about 81% to 97%. The model cannot have learned these lines by heart, because all
# content words here are new to it.
#
# The table begins with the four mistakes. In the first, the model leaves the second half as Yoda
# said it. In the second, it misspells *clumsy*. In the third, it swaps the two halves and garbles
# one of them. In the fourth, it writes *have woke* for *have woken*. So the model has most of the
# rule. Two of the mistakes are in lines with two clauses, and two in a single word, but four prove
# little. The untuned model mostly comments on the words or repeats some of them, because nothing in
# the short prompt says what *plain* means here.
#
# ## 7. Play
#
# Type a line, or take a random one.

# %%
from course_utils import widgets


def to_english(line):
    """The tuned model's reply to one line."""
    return tuned([as_chat({"yoda_extra": line, "sentence": ""})["prompt"]])[0]


if trained:
    said = {"plain English, by the model": to_english}
    lines = list(held_out["yoda_extra"])
    display(widgets.translator(said, lines, label="Yoda", action="Say it plainly"))

# %%
if trained:
    mine = [
        "Much to learn you have.",
        "Angry, my cook is. Hmm.",
        "Where my lamp is, know you do not.",
        "I see a red house.",
    ]
    display(text_table(pd.DataFrame({"Yoda": mine, "the model": map(to_english, mine)})))

# %% [markdown]
# Three of these replies are right. *Hmm* is not in the training data, and no line there has a comma
# after its first word, but the model leaves out both. The third reply should be *You do not know
# where my lamp is*. The training data have no *not* and no *where*, and we expect that this is why.
# The last line was plain already, and the model left it alone, although all training lines had to
# be reordered. Four lines prove nothing; they show where to test more.
#
# ## Take away
#
# - A fine-tuning is four small functions: the data form, the baseline, the trainer and the
#   evaluation.
# - Measure the baseline first, and ask fairly: tell the untuned model what to do (section 3).
# - Choose steps and learning rate together. A usual rate such as 2e-4 needs more steps than a
#   two-minute training has (section 5).
# - Ask the tuned model in exactly the form in which you trained it (section 6).
# - A tuned model also answers what its training data do not cover, and may be wrong (section 7).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** Your baseline asks the untuned model with an instruction and two examples. Why not with the
# short prompt that you train on?
#
# - **A** Long prompts are always better than short ones.
# - **B** The examples prepare the model for the training.
# - **C** The short prompt alone does not explain the task.
# - **D** The score has to be above zero to be a baseline.
#
# **b.** You ask the tuned model without the system prompt, and its replies get worse. Why?
#
# - **A** It was trained on another prompt than this one.
# - **B** The system prompt is what switches the adapter on.
# - **C** The system prompt explains the rule to it.
# - **D** A longer prompt gives better replies.
#
# **c.** Why do you measure on the split `unseen`, and not on the rows of the training?
#
# - **A** The sentences of `unseen` are harder by design.
# - **B** Memorised rows would look like skill.
# - **C** The training rows take longer to answer.
# - **D** The prompts of the training rows have another form.

# %%
from course_utils.exercises import quiz

quiz("03.2", a="...", b="...", c="...")

# %% [markdown]
# You have done four exercises. Here are two more, without a check:
#
# - Train one model for both directions: two system prompts, and rows of both kinds. Does it keep
#   them apart?
# - Give `make_trainer` half of the steps. How many sentences are right then?
#
# Solutions: `notebooks/solutions/03.2_yoda.py`.

# %% [markdown]
# ## To read
#
# - The documentation of [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer): its data forms.
# - Zhou et al., [LIMA](https://arxiv.org/abs/2305.11206): how few examples are enough for a style.
# - The [glossary](../docs/glossary.md): the course's terms.
