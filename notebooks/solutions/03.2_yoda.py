# %% [markdown] tags=["exercise-notebook"]
# # 03.2 · Yoda, on your own
#
# **You will learn** to fine-tune on your own: you write the format, the adapter, the settings and
# the first question to your tuned model. Each step has a check that says what is wrong.
#
# **You need** notebook 03.1, to look things up in.
#
# **It takes** about 45 minutes. The solved cells run in about five minutes on two CPU cores, three
# of them the training; on GPUs, not yet measured.
#
# The outputs come from a solved copy. Cells that need an exercise wait until you have solved it.

# %% [markdown]
# ## The machine at hand
#
# Amira builds a game for a science fair: children type a sentence, and a figure says it like Yoda.
# Asked nicely, her small chat model fails. So she has to fine-tune it, alone. Take her place.

# %%
import logging
import tempfile
import warnings

import datasets
import pandas as pd
import torch
from IPython.display import display

from course_utils import describe, load_data, load_model, masks, preflight, runner
from course_utils.display import text_table
from course_utils.exercises import check, done
from course_utils.scoring import reference_scores
from course_utils.training import faster_on_cpu, kept_adapter, watch

# Inside the libraries, of no concern here: an argument's old name, notes on the tokenizer.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
logging.getLogger("transformers").setLevel(logging.ERROR)
datasets.disable_progress_bars()

print(describe())

# %% [markdown]
# ## 1. The task
#
# Yoda moves to the front what comes after the verb: *I see a red house* becomes *A red house I
# see*, and *The cook is angry* becomes *Angry the cook is*. After a helper (*have*, *can*, *will*),
# the main verb moves too: *You have become powerful* becomes *Become powerful you have*. Only whole
# words move, so no spelling is needed.

# %%
yoda = load_data("yoda")
text_table(yoda["train"].select(range(4)).to_pandas())

# %% [markdown]
# Ignore the column `yoda_extra` for now. We measure on forty sentences of the split `unseen`: none
# of their content words is in the training data. What does the untuned model make of them, if we
# ask it with two examples? The row *nothing done* scores the plain English.

# %% tags=["value:untuned"]
held_out = yoda["unseen"].select(range(40))
chat = runner("chat")
tokenizer = chat.tokenizer
request = (
    "Say it like Yoda. For example, 'I see a red house.' becomes 'A red house I see.', and "
    "'My sister found two keys.' becomes 'Two keys my sister found.'\n\n"
)
untuned = chat([request + sentence for sentence in held_out["sentence"]], max_new_tokens=40)
results = {"untuned, asked with examples": reference_scores(untuned, held_out["yoda"])}
results["nothing done"] = reference_scores(held_out["sentence"], held_out["yoda"])
pd.DataFrame(results).T.round(2)

# %% tags=["claim"]
assert results["untuned, asked with examples"]["exact match"] < 0.2

# %% [markdown]
# Neither gets a sentence right. But doing nothing has a chrF of 83.50: chrF counts shared runs of
# letters, and moving words keeps most of them. So we go by exact match.
#
# ## 2. Format the data
#
# Write `as_messages(row)`: a dictionary with the columns `prompt` and `completion`, as lists of
# messages. The system says `SYSTEM`, the user the sentence, the assistant the same in Yoda's words
# (column `yoda`).

# %%
SYSTEM = "Say it like Yoda."


# %% tags=["exercise"]
def as_messages(row):
    """A row of the dataset to `prompt` and `completion`."""
    ### BEGIN SOLUTION
    return {
        "prompt": [
            {"role": "system", "content": "Say it like Yoda."},
            {"role": "user", "content": row["sentence"]},
        ],
        "completion": [{"role": "assistant", "content": row["yoda"]}],
    }
    ### END SOLUTION


# %%
check("yoda.format", as_messages)

# %%
if done("yoda.format"):
    columns = yoda["train"].column_names
    train = yoda["train"].map(as_messages, remove_columns=columns)
    validation = yoda["validation"].select(range(32)).map(as_messages, remove_columns=columns)
    print(train[0])

# %% [markdown]
# ## 3. Choose the adapter
#
# Write `adapter()`: a `LoraConfig` with rank, alpha and layers by the rules of notebook 02. Leave
# `use_rslora` off: section 8 mixes two adapters, and peft mixes rsLoRA adapters with a wrong
# factor.

# %%
from peft import LoraConfig


# %% tags=["exercise"]
def adapter():
    """The configuration of a new adapter."""
    ### BEGIN SOLUTION
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    ### END SOLUTION


# %%
check("yoda.adapter", adapter)

# %% [markdown]
# ## 4. Choose the settings
#
# Write `settings(steps, batch)`: a dictionary of arguments for `SFTConfig` (section 3 of notebook
# 03.1). Ask for so many steps of so many sentences, a learning rate that suits LoRA and so few
# steps (the check explains its range), and a loss logged every 5 steps or more often. Machine,
# folder and validation are added below.


# %% tags=["exercise"]
def settings(steps, batch):
    """Arguments for SFTConfig."""
    ### BEGIN SOLUTION
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "logging_steps": 2,
    }
    ### END SOLUTION


# %%
check("yoda.settings", settings)

# %% [markdown]
# ## 5. Train
#
# The next cells build the trainer, run the pre-flight on its real batches, show in colour what is
# trained on, and train for some minutes. To start over, first run the cell that makes the trainer:
# a second `train()` alone goes on with the same adapter.

# %%
from trl import SFTConfig, SFTTrainer

from course_utils.hardware import pick_dtype, tier
from course_utils.models import recipe

machine = tier().value
on_cpu = chat.model.device.type == "cpu"


def make_trainer(model, rows, config, **options):
    """An SFTTrainer with a new adapter on a model."""
    common = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and pick_dtype().value == torch.bfloat16,
        "fp16": not on_cpu and pick_dtype().value == torch.float16,
        "train_sampling_strategy": "group_by_length",
        "seed": 0,
    }
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**common, **options}),
        train_dataset=rows,
        eval_dataset=validation if "eval_steps" in options else None,
        processing_class=tokenizer,
        peft_config=config,
    )
    return faster_on_cpu(watch(trainer))


ready = done("yoda.format", "yoda.adapter", "yoda.settings")
if ready:
    plan = recipe("yoda", machine)
    print(f"{plan['steps']} steps of {plan['batch']} sentences: {plan['why']}")
    chosen = settings(plan["steps"], plan["batch"])
    watching = {"eval_strategy": "steps", "eval_steps": plan["steps"] // 4}
    trainer = make_trainer(load_model("chat", quiet=True), train, adapter(), **chosen, **watching)
    print(preflight(trainer, strict=True))

# %%
if ready:
    display(masks.show(next(iter(trainer.get_train_dataloader())), tokenizer))

# %% tags=["figure:03_2_losses"]
if ready:
    trainer.train()

# %% [markdown]
# In the saved run, both losses end near zero. The spike near step 50 is the loss of only eight
# sentences; we have not looked for its cause. Training took 6.3 minutes: the 3 and the 9.2 above
# are estimates.
#
# ## 6. Ask it
#
# Write `translate(ask, sentences)`: it gets a model to ask, as `runner` returns one, and a list of
# sentences, and returns the list of replies. Ask just as you have trained.


# %% tags=["exercise"]
def translate(ask, sentences):
    """Sentences in Yoda's words, by a tuned model."""
    ### BEGIN SOLUTION
    return ask(sentences, system="Say it like Yoda.", max_new_tokens=40)
    ### END SOLUTION


# %%
check("yoda.translate", translate)

# %% [markdown]
# **Guess first.** How many of the 40 sentences, with content words that are new to the model, will
# be right to the last letter?

# %%
my_guess = 20

# %% tags=["value:tuned"]
from course_utils.models import Runner

trained = ready and done("yoda.translate")
if trained:
    tuned = Runner(trainer.model.eval(), tokenizer)
    replies = translate(tuned, list(held_out["sentence"]))
    results["tuned"] = reference_scores(replies, held_out["yoda"])
    right = round(results["tuned"]["exact match"] * len(held_out))
    print(f"{right} of {len(held_out)} are right; you said {my_guess}.")
    display(pd.DataFrame(results).T.round(2))

# %%
if trained:
    reached = results["tuned"]["exact match"]
    assert reached >= 0.9, f"{reached:.0%}: look at the curves; is the rate too low, or too high?"

# %% tags=["value:replies"]
if trained:
    compared = pd.DataFrame(
        {
            "English": held_out["sentence"],
            "Yoda by rule": held_out["yoda"],
            "untuned": untuned,
            "tuned": replies,
        }
    )
    wrong = compared[compared["tuned"] != compared["Yoda by rule"]]
    some = pd.concat([wrong.head(2), compared.head(4)]).drop_duplicates()
    display(text_table(some))

# %% [markdown]
# In the saved run, 38 of 40 were right (SmolLM2-135M, one seed). People often guess lower, as if
# the model learned words by heart.
#
# The table begins with the two mistakes: *Ruthless*, a word of the training data, in place of
# *Wreck the sleek*, and an added *the*. The untuned model mostly copied its prompt or repeated
# itself.
#
# How does the tuned model find verb and object among new words? We expect that it knows them from
# pre-training. For Pig Latin it lacked the letters, which tokens hide. So we expect, without proof,
# that **fine-tuning brings out what is there** more easily than it adds what is not.
#
# ## 7. Play
#
# Type a sentence, or take a random one. The rules (`course_utils.data`) refuse what they cannot
# parse. The model answers anything. Where is it better, and where worse?

# %%
from course_utils import widgets
from course_utils.data import yoda as rule


def by_rule(sentence):
    """Yoda by rule, or a word of excuse."""
    return rule(sentence) or "(the rules cannot parse this one)"


if trained:
    ways = {"Yoda by rule": by_rule, "Yoda by the model": lambda text: translate(tuned, [text])[0]}
    display(widgets.translator(ways, list(held_out["sentence"])))

# %%
if trained:
    mine = ["You have much to learn.", "Where is my lamp?", "I love you."]
    rows = [{"English": text} | {name: way(text) for name, way in ways.items()} for text in mine]
    display(text_table(pd.DataFrame(rows)))

# %% [markdown]
# *Much to learn you have* is good Yoda, where the rules gave up. *My lamp is* has lost the
# question, and *I love you I love* is wrong. The training data have neither questions nor *you* as
# an object. We expect that this is why.
#
# ## 8. Two adapters on one base
#
# Amira wants Pig Latin too: a second adapter, not a second model. Notebook 03.1 left one in the
# course's cache; if it is missing, a short training makes a worse one. peft calls your Yoda adapter
# `default`.

# %%
from course_utils.data import pig_latin as pig_latin_by_rule
from course_utils.data import spell, unspell

PIG_LATIN = "Translate into Pig Latin."


def spelled(row):
    """A row of Pig Latin as in notebook 03.1."""
    return {
        "prompt": [
            {"role": "system", "content": PIG_LATIN},
            {"role": "user", "content": spell(row["sentence"])},
        ],
        "completion": [{"role": "assistant", "content": spell(row["pig_latin"])}],
    }


def to_pig_latin(ask, sentences):
    """Sentences to Pig Latin, as in notebook 03.1."""
    spelled_out = [spell(text.replace("_", " ")) for text in sentences]
    return [unspell(reply) for reply in ask(spelled_out, system=PIG_LATIN, max_new_tokens=160)]


if trained:
    pair = trainer.model
    saved = kept_adapter(pair.get_base_model(), "pig_latin")
    quick = saved is None
    if quick:
        print("Notebook 03.1 has not been run here: 80 quick steps instead.")
        rows = load_data("pig_latin")["train"]
        rows = rows.map(spelled, remove_columns=rows.column_names)
        few = settings(80, 4)
        other = make_trainer(load_model("chat", quiet=True), rows, adapter(), **few)
        other.train()
        saved = tempfile.mkdtemp()
        other.model.save_pretrained(saved)
    pair.load_adapter(saved, "pig_latin")
    print("adapters:", ", ".join(pair.peft_config))

# %% [markdown]
# `set_adapter` switches by name. So one can follow the other: first Yoda, then Pig Latin.

# %%
if trained:
    english = list(held_out["sentence"][:12])
    pair.set_adapter("default")
    turned = translate(tuned, english)
    pair.set_adapter("pig_latin")
    both = to_pig_latin(tuned, turned)
    wanted = [pig_latin_by_rule(text) for text in held_out["yoda"][:12]]
    in_turn = reference_scores(both, wanted)
    print({name: round(value, 2) for name, value in in_turn.items()})
    display(
        text_table(pd.DataFrame({"English": english, "Yoda": turned, "then Pig Latin": both})[:4])
    )

# %% [markdown]
# 10 of 12 are right after both steps. In the fourth row, the Pig Latin step adds a word
# (*ashierhay*) and misspells two.
#
# `add_weighted_adapter` makes one adapter of two (notebook 02): `"cat"` adds up their updates, each
# times its weight. Five mixtures translate twelve sentences with each task's system prompt, which
# takes a minute or two. **Guess first:** half and half, what share of the words is right?

# %%
my_guess = {"Yoda": 0.5, "Pig Latin": 0.5}

# %% tags=["value:mixture"]
if trained:
    rows = []
    for share in (1.0, 0.8, 0.5, 0.2, 0.0):
        name = f"yoda{round(100 * share)}"
        weights = [share, 1 - share]
        pair.add_weighted_adapter(["default", "pig_latin"], weights, name, combination_type="cat")
        pair.set_adapter(name)
        yoda_score = reference_scores(translate(tuned, english), held_out["yoda"][:12])
        latin_score = reference_scores(
            to_pig_latin(tuned, english), [pig_latin_by_rule(text) for text in english]
        )
        rows.append(
            {
                "share of Yoda": share,
                "Yoda": yoda_score["word accuracy"],
                "Pig Latin": latin_score["word accuracy"],
            }
        )
        pair.set_adapter("default")
        pair.delete_adapter(name)
    mixture = pd.DataFrame(rows).set_index("share of Yoda")
    print("You said:", my_guess)
    display(mixture.round(2))

# %% tags=["figure:03_2_mixture"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, ORANGE, use_style

if trained:
    use_style()
    figure, axis = plt.subplots(figsize=(6, 2.8))
    axis.plot(mixture.index, mixture["Yoda"], "o-", color=BLUE, label="Yoda")
    axis.plot(mixture.index, mixture["Pig Latin"], "s--", color=ORANGE, label="Pig Latin")
    axis.set_xlabel("weight of the Yoda adapter; Pig Latin has the rest")
    axis.set_ylabel("word accuracy")
    axis.set_title("Two skills in one adapter")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(axis="y")
    axis.legend()
    plt.show()

# %%
if trained and not quick:
    half = mixture.loc[0.5]
    assert (half > 0.3).all()
    assert half["Yoda"] < mixture.loc[1.0, "Yoda"]
    assert half["Pig Latin"] < mixture.loc[0.0, "Pig Latin"]

# %% [markdown]
# Half and half, *one* adapter gets 77% of the words right for Yoda and 70% for Pig Latin, against
# 100% and 91% alone (one seed, twelve sentences).
#
# Most people expect skill to shrink in step with weight. But four fifths of the weight kept nearly
# all of it, and one fifth none (2% for Yoda is what doing nothing scored).
#
# ## Take away
#
# - A fine-tuning is four small decisions: format, adapter, settings, and asking as you have trained
#   (sections 2 to 6).
# - Word order took minutes (section 6). For Pig Latin, letters had to be spelled out (notebook
#   03.1).
# - A tuned model also answers what its training data do not cover, and may be wrong (section 7).
# - Adapters on one base can be switched, used in turn, and mixed. Measure a mixture: it is a new
#   model (section 8).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** Yoda was learned from plain words, for any word. Pig Latin had to be spelled. What is our
# explanation?
#
# - **A** Yoda's sentences are shorter and simpler.
# - **B** Pig Latin needs a higher rank and more layers.
# - **C** Yoda's rule can be said in the prompt.
# - **D** The model knew word order already, but not letters.
#
# **b.** You ask the tuned model for Yoda, but leave out the system prompt. Its replies may get
# worse. Why?
#
# - **A** It was trained on another prompt than this one.
# - **B** The system prompt is what switches the adapter on.
# - **C** The system prompt explains the rule to it.
# - **D** A longer prompt gives better replies.
#
# **c.** You mix two adapters half and half. What do you do before you hand the mixture on?
#
# - **A** Nothing: half of each skill is left, by arithmetic.
# - **B** Nothing: each acts on its own requests only.
# - **C** Measure both skills again, as of a new model.
# - **D** Train it further, whatever it does.

# %%
from course_utils.exercises import quiz

quiz("03.2", a="...", b="...", c="...")

# %% [markdown]
# You have done four exercises. Here are two more, without a check:
#
# - Train on `yoda_extra`. Its ending, *Yes, hrrmmm.*, comes at random: what does greedy decoding
#   make of that, and what does sampling?
# - In section 8, take `"linear"` or `"ties"` as the `combination_type`. (For `"linear"` both
#   adapters need the same rank.)
#
# Solutions: `notebooks/solutions/03.2_yoda.py`.

# %% [markdown]
# ## To read
#
# - The peft guide to [model merging](https://huggingface.co/docs/peft/developer_guides/model_merging).
# - Zhou et al., [LIMA](https://arxiv.org/abs/2305.11206): how few examples are enough for a style.
# - The [glossary](../docs/glossary.md): the course's words.
