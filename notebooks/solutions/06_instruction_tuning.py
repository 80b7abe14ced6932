# %% [markdown]
# # 06 · Instruction-tuning Pythia
#
# **You will learn** where instruction data comes from and how to prepare it, what a chat template
# is and what happens when it does not fit, and how a base model becomes one that answers. You will
# also test the claim that *instruction tuning* (fine-tuning on requests with good responses) only
# brings out what *pre-training* (the first, long training on plain text) has put in.
#
# **You need** notebooks 02 (LoRA) and 03 (masks and collators).
#
# **It takes** about 50 minutes of reading and trying. The cells themselves run in about four minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Amir works for a publisher of school atlases. His base model has read texts about every country.
# But when he asks it for the capital of Mexico, it writes more questions. So he wants to tune the
# model on questions with answers about some countries. Will it then answer about the *other*
# countries? And what will it say about a country that it has never read about?

# %%
import logging
import os
import re
import tempfile
import warnings

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
# ## 1. A model that knows, and does not answer
#
# Pythia is a family of base models that EleutherAI trained for research: everything about their
# training is known. The course has a very small model of the same architecture. A program that you
# can read (`benchmarks/pretraining`) wrote all of its training texts. The model is too small for
# anything but this experiment.

# %%
from course_utils import load_model, load_tokenizer

OWN = "course/pythia-3m"
# So few weights that 32 bits each cost nothing.
base = load_model(OWN, dtype=torch.float32)
tokenizer = load_tokenizer(OWN)

print(f"{base.config.model_type}: {base.num_parameters():,} parameters, {len(tokenizer)} tokens")

# %% [markdown]
# It was trained on texts like these:

# %%
from course_utils.data import Corpus

corpus = Corpus(seed=1)
for kind in ("entry", "travel", "homework", "reading"):
    print(f"── {kind}\n{getattr(corpus, kind)()}\n")

# %% [markdown]
# Entries and travel stories state facts. Homework asks for facts, and no answers follow. A reading
# test has answers, but only about countries that do not exist, and each answer stands in the text
# above. So the model has often read what the capital of Kenya is. But it has never seen anybody
# *ask* about a real country and *get an answer*.
#
# What does it know? We give it unfinished sentences: first three, then 250 about 50 countries. If
# it completes one correctly, it knows the fact.

# %% tags=["value:base-ends"]
from course_utils.data import right
from course_utils.models import Runner

countries = load_data("countries")
held_out = countries["held_out"]  # of 50 countries; section 2 says what they are held out from
ask_base = Runner(base, tokenizer, template=False, max_new_tokens=12)

for cue in (
    "The capital of Kenya is",
    "The currency of Mexico is the",
    "The continent of Poland is",
):
    print(cue, "…", ask_base(cue).split(".")[0])

ended = ask_base(held_out["cue"])
knows = sum(right(ended, held_out["answer"])) / len(ended)
print(f"\nOf {len(ended)} such sentences, it ends {knows:.0%} rightly.")

# %% tags=["claim"]
assert knows >= 0.95

# %% [markdown]
# The model knows nearly all of these facts. **Guess first:** what if you *ask* for them? Write down
# the share of right answers, from 0 to 1.

# %%
my_guess = 0.5

# %%
print(ask_base("What is the capital of Mexico?", max_new_tokens=40))

# %% [markdown]
# The model continues as its homework texts do. Perhaps the form is wrong? The next cell tries forms
# that often help with large models: `Question:` and `Answer:`, chat marks, and seven answered
# questions in front. It counts how often the reply *is* the right answer, and how often the answer
# is *anywhere* in its first line.

# %%
QA = "Question: {prompt}\nAnswer:"
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def share_right(model, rows, template=QA):
    """The share of questions that a model answers rightly, greedily."""
    ask = Runner(model, tokenizer, template=template, max_new_tokens=12)
    return sum(right(ask(rows["question"]), rows["answer"])) / len(rows)


# %% tags=["value:untuned"]
shown = countries["train"].shuffle(seed=0).select(range(7))
examples = "".join(
    f"{QA.replace('{prompt}', row['question'])} {row['answer']}\n\n" for row in shown
)
forms = {
    "question alone": "{prompt}",
    "question and answer": QA,
    "chat marks": CHATML,
    "seven examples first": examples + QA,
}
rows = []
for name, form in forms.items():
    replies = Runner(base, tokenizer, template=form, max_new_tokens=24)(held_out["question"])
    lines = [reply.strip().split("\n")[0] for reply in replies]
    rows.append(
        {
            "form": name,
            "answered rightly": share_right(base, held_out, form),
            "answer anywhere in the line": sum(
                answer in line for answer, line in zip(held_out["answer"], lines, strict=True)
            )
            / len(lines),
            "it says, for example": lines[0],
        }
    )
untuned = pd.DataFrame(rows).set_index("form")
print("You said:", my_guess)
untuned

# %% tags=["claim"]
assert untuned["answered rightly"].max() <= 0.05
assert untuned["answer anywhere in the line"].max() <= 0.1

# %% [markdown]
# No form helps: none of the 250 questions is answered (2.6 million parameters, one seed). Most
# people guess more, because the model knows the facts. But it has never seen a question answered
# from memory, so it writes more questions, or `I see.`, a phrase from its training texts. (The 0.02
# are a few lines that contain the right word, most likely by chance.)
#
# The model does answer questions about a text above them. Here are 100 new reading tests:

# %% tags=["value:reading"]
tests = [corpus.reading().partition("\nQuestions on the text\n") for _ in range(100)]
prompts, wanted = [], []
for text, mark, questions in tests:
    first, _, told = questions.split("\n")[0].partition("? ")
    prompts.append(f"{text}{mark}{first}?")
    wanted.append(told.rstrip("."))
reads = sum(right(ask_base(prompts), wanted)) / len(prompts)
print(prompts[0], "…", ask_base(prompts[0]).split(".")[0])
print(f"\nOf {len(prompts)} such questions, it answers {reads:.0%} rightly.")

# %% tags=["claim"]
assert reads > 0.5

# %% [markdown]
# It finds 84% of the answers, although the countries are invented. So it can answer from a text. It
# lacks the behaviour of answering from what it knows. Instruction data can teach a behaviour.
#
# ## 2. Instruction data
#
# An instruction dataset is a list of pairs: a request and a good response. Many pairs exist
# already: on help pages (*FAQ*), in support chats, forum threads and emails. Others were made for
# the purpose, such as these two from the hub.

# %%
from course_utils.models import datasets_for

published = {
    entry.id: entry for tier in ("16gb", "40gb") for entry in datasets_for("instructions", tier)
}
text_table(
    pd.DataFrame(
        {
            "dataset": entry.id,
            "what": entry.about,
            "pairs": f"{entry.rows:,}",
            "licence": entry.licence,
        }
        for entry in published.values()
    )
)

# %% [markdown]
# ### How a pair is written
#
# A model reads one text, so a pair has to become one. There are several styles, and their marks
# cost tokens. **Guess first:** which costs most tokens: plain (`Question: ... Answer:`), Alpaca,
# Llama 2, ChatML or Phi-3?

# %%
my_guess = "..."

# %% tags=["value:styles"]
question, answer = "What is the capital of Mexico?", "Mexico City"
chat_tokenizer = load_tokenizer("chat")
styles = {
    "plain": (QA.replace("{prompt}", question), f" {answer}"),
    "Alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately "
        f"completes the request.\n\n### Instruction:\n{question}\n\n### Response:\n",
        answer,
    ),
    "Llama 2": (f"[INST] {question} [/INST]", f" {answer}"),
    "ChatML": (CHATML.replace("{prompt}", question), f"{answer}<|im_end|>"),
    "Phi-3": (f"<|user|>\n{question}<|end|>\n<|assistant|>\n", f"{answer}<|end|>"),
}
rows = [
    {
        "style": name,
        "as text": prompt + completion,
        "tokens of SmolLM2": len(chat_tokenizer(prompt + completion)["input_ids"]),
        "tokens of ours": len(tokenizer(prompt + completion)["input_ids"]),
    }
    for name, (prompt, completion) in styles.items()
]
print("You said:", my_guess)
text_table(pd.DataFrame(rows))

# %% [markdown]
# Alpaca does: each example pays for its long fixed text. Many people guess ChatML or Phi-3, because
# their marks look long. But ChatML's marks are single tokens for SmolLM2 (the course's chat model)
# and for our model. Phi-3's marks are in neither vocabulary, so they are cut into many tokens.
#
# **Training and use must have the same style**, to the letter (section 4).
#
# ### From a document
#
# Where there are no pairs, there may be documents. Each of the course's datasets has a *card*. The
# bold words that begin a paragraph tell us what to ask, and the paragraph is the answer.

# %%
from course_utils.data import folder

openings = {
    "How it was made": "How was the dataset {name} made?",
    "Licence": "Under which licence is the dataset {name}?",
    "Language": "In which language is the dataset {name}?",
    "Sources": "Where does the dataset {name} come from?",
}


def pairs_from_card(path):
    """Question and answer for each paragraph of a card whose beginning we know."""
    text = path.read_text(encoding="utf-8")
    for opening, body in re.findall(r"^\*\*([^*]+?)\.\*\* (.+)$", text, flags=re.MULTILINE):
        if opening in openings:
            yield {
                "question": openings[opening].format(name=path.parent.name),
                "answer": body.replace("`", "").strip(),
            }


from_cards = [
    pair for card in sorted(folder().glob("*/README.md")) for pair in pairs_from_card(card)
]
print(len(from_cards), "pairs")
text_table(pd.DataFrame(from_cards[:3]))

# %% tags=["claim"]
assert len(from_cards) >= 10
assert all(pair["question"].endswith("?") and pair["answer"] for pair in from_cards)

# %% [markdown]
# Read such pairs before you use them: "changed as told here" makes sense only on the card.
#
# ### From another model
#
# A language model can also write pairs. A larger model wrote Alpaca's 52,000 pairs after it was
# shown a few examples. Our chat model now does the same, with two examples and a topic. We begin
# its reply with `Question:`, so that it keeps to the form. It is far too small for this, so you
# will see that **the work is not in the writing, but in the checking.**

# %%
from course_utils import runner

topics = """
    bread rain horses trains salt moon maps gardens bicycles clocks tea snow bridges honey wool
    ships candles rivers paper cats glass apples mountains letters
""".split()
wish = """Write one question that a curious person might ask, and a short, true answer to it.

Topic: fire
Question: Why does a fire go out under a blanket?
Answer: Because it gets no air, and without air nothing burns.

Topic: books
Question: What is the spine of a book?
Answer: The narrow side that you see when the book stands on a shelf.

Topic: {topic}"""
writer = runner("chat")
written = writer(
    [writer.prompt(wish.format(topic=topic)) + "Question:" for topic in topics],
    template=False,
    max_new_tokens=60,
    temperature=0.8,
    seed=0,
)
print("Question:" + written[0])

# %% [markdown]
# This question imitates our example about the spine of a book, and its answer is nonsense. Can a
# program sort out such pairs? We try five filters: the form, the length, the language, the topic,
# and the share of letters in common with earlier questions.

# %% tags=["value:fate"]
from difflib import SequenceMatcher

import py3langid


def parse(text):
    """The question and the answer in a reply, or None."""
    found = re.match(r"\s*(.+?)\s*Answer:\s*(.+)", text, flags=re.DOTALL)
    if not found:
        return None
    return {"question": found[1].strip(), "answer": found[2].strip().split("\n")[0]}


def reason_against(pair, topic, kept):
    """Why a pair is thrown away, or an empty text."""
    if pair is None or not pair["question"].endswith("?"):
        return "not in the form"
    if not 4 <= len(pair["question"].split()) <= 20 or not 2 <= len(pair["answer"].split()) <= 40:
        return "too short or too long"
    if py3langid.classify(" ".join(pair.values()))[0] != "en":
        return "not English"
    if topic.rstrip("s") not in pair["question"].lower():
        return "off its topic"
    for other in kept:
        if SequenceMatcher(None, pair["question"], other["question"]).ratio() > 0.8:
            return "near-duplicate"
    return ""


generated, fate = [], []
for topic, text in zip(topics, written, strict=True):
    pair = parse(text)
    fate.append(reason_against(pair, topic, generated) or "kept")
    if fate[-1] == "kept":
        generated.append(pair)
pd.Series(fate, name="replies").value_counts().to_frame()

# %%
text_table(pd.DataFrame(generated))

# %% tags=["claim"]
assert 0 < len(generated) < len(written)

# %% [markdown]
# The filters keep 17 of 24 replies (SmolLM2-135M, one seed). All have the right form, and most are
# nonsense, because no filter here knows anything about the world. A model tuned on them would, we
# expect, learn to be wrong in good form. So generated data should come from a much better model,
# and people should check it, or programs where a program can tell.
#
# ### The steps
#
# Pairs become training data in five steps: **collect** them, **concatenate** prompt and response in
# one style, **tokenize**, **pad or truncate** (the collator, notebook 03), and **split**. A *split*
# is a part of a dataset with its own purpose: training, validation or test.
#
# We use the course's own questions about countries. We split *by country*, so the tuning sees
# nothing of the countries in the test split, `held_out`. The next cells show some rows, and search
# the training pairs for held-out countries.

# %%
text_table(pd.DataFrame(countries["train"][:4])[["country", "relation", "question", "answer"]])

# %% tags=["value:splits"]
by_split = {name: set(rows["country"]) for name, rows in countries.items()}
print(
    {
        name: f"{len(found)} countries, {len(countries[name])} pairs"
        for name, found in by_split.items()
    }
)

names = list(by_split)
leaks = {(a, b): by_split[a] & by_split[b] for a in names for b in names if a < b}


def mentions(rows, wanted):
    """Rows that have one of some names anywhere in their texts."""
    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in wanted))
    return [row for row in rows if pattern.search(f"{row['question']} {row['answer']}")]


found = mentions(countries["train"], by_split["held_out"])
print(f"{len(found)} training pairs have a held-out country's name in them, with the answers:")
print({row["answer"] for row in found})

# %% tags=["claim"]
assert not any(leaks.values())

# %% [markdown]
# All four are false alarms: Spain is held out, and Port of Spain is a town in the Caribbean. Look
# at what a check finds before you believe it. Now we write the rows as prompts and completions:


# %%
def as_pair(template, blank=" "):
    """A function that gives a row's prompt and completion in a style."""
    end = "<|im_end|>" if "<|im_start|>" in template else ""

    def convert(row):
        return {
            "prompt": template.replace("{prompt}", row["question"]),
            "completion": f"{blank}{row['answer']}{end}",
        }

    return convert


def pairs(rows, template=QA, blank=" "):
    """Rows of `countries` as SFTTrainer wants them."""
    return rows.map(as_pair(template, blank), remove_columns=rows.column_names)


train, validation = pairs(countries["train"]), pairs(countries["validation"])
train[0]

# %% [markdown]
# Do not overlook the leading space, or *blank*, in `' Kabul'`. In the training texts, a capital
# stands in the middle of a sentence, and the space belongs to its first token. (This tokenizer
# writes it as `Ġ`.) Without the space, the same town begins with another token, which the model has
# never had to write there:

# %%
for text in ("The capital is Nairobi", "Answer: Nairobi", "Answer:Nairobi"):
    print(tokenizer.tokenize(text)[-4:])

# %% [markdown]
# The third line begins with `N`, not with `ĠN`. Section 4 measures the difference.
#
# ## 3. Chat templates
#
# A chat has roles and turns, and a chat template writes them as one text. It is a small Jinja
# program, and part of the *tokenizer*. Our base model has none, so we write one for ChatML:

# %%
import copy

chatml = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
with_template = copy.deepcopy(tokenizer)
with_template.chat_template = chatml
messages = [{"role": "user", "content": question}]
print(with_template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

# %% [markdown]
# The last line opens the assistant's turn: `add_generation_prompt` does this. Without it, the model
# might write another turn of the user. Compare with SmolLM2, which has its own template:

# %%
whole = [*messages, {"role": "assistant", "content": answer}]
ours = with_template.apply_chat_template(whole, tokenize=False)
theirs = chat_tokenizer.apply_chat_template(whole, tokenize=False)
print(theirs)

# %% tags=["claim"]
assert theirs.endswith(ours)
assert ours.startswith(CHATML.replace("{prompt}", question))

# %% [markdown]
# The marks are the same, but SmolLM2's template also puts a system prompt in front, which you did
# not write. Always look at the text that a template makes.
#
# ### New tokens
#
# `<|im_start|>` and `<|im_end|>` are in our vocabulary, but in no text that the base model has
# read. For another base model, you may have to add such marks. Then the table of *embeddings* has
# to grow: it has a row of numbers for each token, by which the token enters the model. A new row is
# random. By default, transformers draws it around the mean of the others (not here, to be quick).

# %%
other_tokenizer, other = copy.deepcopy(tokenizer), copy.deepcopy(base)
before = len(other_tokenizer.tokenize("<|note|>"))
other_tokenizer.add_tokens(["<|note|>"], special_tokens=True)
other.resize_token_embeddings(len(other_tokenizer), mean_resizing=False)
print(f"<|note|>: {before} tokens before, {len(other_tokenizer.tokenize('<|note|>'))} after")
print("embeddings:", tuple(other.get_input_embeddings().weight.shape))

# %% tags=["claim"]
assert other.get_input_embeddings().weight.shape[0] == len(tokenizer) + 1

# %% [markdown]
# LoRA on the linear layers does not change the embeddings. Two options of `LoraConfig` do:
# `trainable_token_indices` trains only the rows of some tokens, and `modules_to_save` trains whole
# tables, and saves them with the adapter.
#
# The next cell prepares the training. You know `watch` and `faster_on_cpu` from notebook 03.1.

# %%
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import preflight
from course_utils.training import faster_on_cpu, watch

on_cpu = base.device.type == "cpu"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def make_trainer(rows, model=None, adapter=LORA, validation=None, callbacks=(), **options):
    """An SFTTrainer on a fresh copy of a model; options go to SFTConfig."""
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "max_steps": 240,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3 if adapter else 5e-4,
        "warmup_steps": 10,
        "logging_steps": 10,
        "eval_strategy": "no" if validation is None else "steps",
        "eval_steps": 20,
        "per_device_eval_batch_size": 64,
        "gradient_checkpointing": False,
        "use_cpu": on_cpu,
        "bf16": False,
        "seed": 0,
    }
    set_seed(0)
    trainer = SFTTrainer(
        model=copy.deepcopy(base if model is None else model),
        args=SFTConfig(**{**usual, **options}),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=LoraConfig(**adapter) if adapter else None,
        callbacks=list(callbacks),
    )
    return faster_on_cpu(watch(trainer))


def tune(rows, **options):
    """Train, and hand back the model, ready to be asked."""
    trainer = make_trainer(rows, **options)
    preflight(trainer, strict=True)  # raises where a check fails
    trainer.train()
    return trainer.model.eval()


# %% [markdown]
# ## 4. Tune the base
#
# We train LoRA with rank 8 on pairs in the plain style. The checks come first, to find mistakes
# early.

# %%
report = preflight(make_trainer(train, validation=validation))
print(report)

# %% tags=["claim"]
assert report.ok

# %% [markdown]
# All checks pass. The loss before the tuning, 9.59, is higher than the 7.62 of a guess with all
# tokens equally likely, because the model is sure that something else comes next.
#
# **Guess first.** The model is tuned on 96 countries. What share of the questions about the 50
# others will it answer rightly?

# %%
my_guess = 0.3

# %% tags=["figure:06_losses"]
trainer = make_trainer(train, validation=validation)
_ = trainer.train()
tuned = trainer.model.eval()

# %%
asked = countries["train"].shuffle(seed=0).select(range(250))
results = {
    "base": {"train": share_right(base, asked), "held out": share_right(base, held_out)},
    "tuned, LoRA": {"train": share_right(tuned, asked), "held out": share_right(tuned, held_out)},
}
print("You said:", my_guess)
pd.DataFrame(results).T.map("{:.1%}".format)

# %% tags=["claim"]
assert results["tuned, LoRA"]["held out"] >= 0.9

# %% [markdown]
# The tuned model answers 97.6% of the 250 held-out questions rightly (2.6 million parameters, one
# seed). Most people guess less, because the tuning says nothing about these countries. But the
# pre-training did; section 5 tests this explanation. (A training point is the mean of ten steps, so
# it can lie above the validation loss.)
#
# ### All weights, or LoRA?
#
# LoRA trains 98,304 parameters. We can also tune all weights of this small model, with a sixth of
# LoRA's learning rate. **Guess first**: does it then answer better, or worse?

# %%
my_guess = "..."

# %%
full = tune(train, adapter=None)
results["tuned, all weights"] = {
    "train": share_right(full, asked),
    "held out": share_right(full, held_out),
}
print("You said:", my_guess)
pd.DataFrame(results).T.map("{:.1%}".format)

# %% [markdown]
# Worse: 89.6% of the held-out questions instead of 97.6% (one seed; section 5 has three). It is
# natural to guess *better*, because more weights can learn more. But we expect that training all
# weights also disturbs more of what the model knows. We tried only one learning rate for each.
#
# ### Overfitting, provoked
#
# Now we provoke overfitting, with only 20 pairs and about three times the learning rate. *Early
# stopping* ends a training when the validation loss no longer falls. `EarlyStoppingCallback` stops
# after two evaluations without improvement, and `load_best_model_at_end` returns to the best
# checkpoint. We train without early stopping, then with it.

# %% tags=["figure:06_overfitting"]
from transformers import EarlyStoppingCallback

few = train.shuffle(seed=1).select(range(20))
mean = {"validation": validation, "learning_rate": 1e-2, "max_steps": 120, "eval_steps": 5}
overfitted = make_trainer(few, **mean)
_ = overfitted.train()

# %%
# Else peft would look for the base on the hub at each checkpoint.
os.environ["HF_HUB_OFFLINE"] = "1"
stopped = make_trainer(
    few,
    save_strategy="steps",
    save_steps=5,
    load_best_model_at_end=True,
    metric_for_best_model="eval_loss",
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    **mean,
)
_ = stopped.train()

# %%
rows = {}
for name, done in {"to the end": overfitted, "stopped early": stopped}.items():
    steps = done.state.global_step
    loss = done.evaluate()["eval_loss"]
    rows[name] = {
        "steps": steps,
        "validation loss": round(loss, 2),
        "held out": f"{share_right(done.model.eval(), held_out):.1%}",
    }
pd.DataFrame(rows).T

# %% tags=["claim"]
assert rows["stopped early"]["steps"] < rows["to the end"]["steps"]
assert rows["stopped early"]["validation loss"] < rows["to the end"]["validation loss"]
# What was loaded really is the best one.
assert abs(loss - stopped.state.best_metric) < 0.01

# %% [markdown]
# The training loss goes to 0: the model soon knows the pairs by heart. The validation loss is
# lowest at step 20. (Its rise at step 15 probably comes from the high learning rate.) Early
# stopping ended the second run at step 30. Its loss in the table, 2.12, is the lowest of its curve,
# so the best checkpoint was loaded.
#
# Check this in your own trainings. After tuning *all* weights of a Pythia, transformers 5.23 loads
# the best checkpoint without its output layer ([a known
# problem](https://github.com/huggingface/transformers/issues/43701)), and only a log line says so.
#
# Stopped or not, few answers are right: 18.0% and 17.2% differ by two questions of 250 (one seed).
# Twenty pairs are too few, and early stopping does not replace data.
#
# ### The template has to fit
#
# We tune four more models on the same pairs: one in the plain style without the blank, one in
# ChatML with LoRA alone, one that also trains the embeddings of the two marks, and one that also
# trains the whole output layer. Then we ask each model in each style.
#
# **Guess first.** Which of the five does best in its own style, and which does worst?

# %%
my_guess = {"best": "...", "worst": "..."}

# %%
marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
in_chatml = pairs(countries["train"], CHATML)
variants = {
    "plain, no blank": (pairs(countries["train"], blank=""), LORA),
    "ChatML": (in_chatml, LORA),
    "ChatML, marks trained": (in_chatml, {**LORA, "trainable_token_indices": marks}),
    "ChatML, output trained": (in_chatml, {**LORA, "modules_to_save": ["lm_head"]}),
}
tuned_in = {"plain": tuned}
for name, (rows, adapter) in variants.items():
    tuned_in[name] = tune(rows, adapter=adapter, run_name=name)  # the curve's title

# %% tags=["value:fits"]
asked_in = {
    "plain": QA,
    "ChatML": CHATML,
    "Llama 2": "[INST] {prompt} [/INST]",
    "nothing": "{prompt}",
}
fits = pd.DataFrame(
    {
        name: {style: share_right(model, held_out, form) for style, form in asked_in.items()}
        for name, model in tuned_in.items()
    }
).T.rename_axis(index="tuned in", columns="asked in")
print("You said:", my_guess)
fits.map("{:.0%}".format)

# %% tags=["claim"]
assert fits.loc["plain", "plain"] > 0.9
assert fits.loc["ChatML", "ChatML"] > 0.8
assert fits.loc["plain, no blank", "plain"] < 0.5
assert fits.loc["plain", "ChatML"] < 0.5
assert fits.loc["ChatML", "plain"] < 0.5
assert fits.loc["ChatML, output trained", "ChatML"] < fits.loc["ChatML", "ChatML"]

# %% [markdown]
# *Plain* does best in its own style, with 98%, and ChatML about as well, with 96%. *Plain, no
# blank* does worst, with 13% (250 questions, one seed). Few people expect so much of one space. But
# without it, each answer begins with a token that the model has never written there.
#
# Training and use must also **agree**: a model that answers nearly all in its own style fails in
# others. There is one exception: the model tuned in ChatML with LoRA alone also answers 81% of the
# bare questions. It probably uses the question more than the marks, whose embeddings were not
# trained.
#
# Now compare the curves. Without the blank, the loss stays above 1, and few answers are right. In
# ChatML it stops at about 1, but nearly all answers are right. Why? Look at the loss of each token
# of one right reply:

# %%
reply = CHATML.replace("{prompt}", question) + f" {answer}<|im_end|><|endoftext|>"
ids = tokenizer(reply, return_tensors="pt")["input_ids"]
costs = {}
for name in ("ChatML", "ChatML, marks trained", "ChatML, output trained"):
    with torch.inference_mode():
        surprise = -tuned_in[name](ids).logits[0].log_softmax(dim=-1)
    costs[name] = {
        tokenizer.decode(ids[0, place]): surprise[place - 1, ids[0, place]].item()
        for place in range(ids.shape[1] - 5, ids.shape[1])
    }
pd.DataFrame(costs).round(2)

# %% tags=["claim"]
assert costs["ChatML"]["<|im_end|>"] > 2
assert costs["ChatML, marks trained"]["<|im_end|>"] > 2
assert costs["ChatML, output trained"]["<|im_end|>"] < 0.5

# %% [markdown]
# The end mark `<|im_end|>` has a loss of about 4, and it alone raises the mean.
#
# To *read* a new mark, the model needs its row of the embeddings. To *write* the mark, it needs its
# row of the output layer, which is another table here (they are not *tied*). Neither LoRA nor
# `trainable_token_indices` has changed that table. The replies still end, most likely with the EOS
# token, which the model can already write.
#
# Training the output layer brings the loss of the mark to 0, but only 56% of the answers are right
# then. We have not tested why. So for a base model, choose a style whose marks it can already
# write.

# %% [markdown]
# ## 5. The experiment
#
# The claim is: *instruction tuning brings out what pre-training has put in; it does not put it in.*
# We have to rule out three other explanations.
#
# - The tuned model might **guess**: many countries pay with the euro. So we need baselines: always
#   the most frequent answer, and a model with random weights, tuned on the same pairs.
# - It might have learned the held-out facts **from the tuning**. The split forbids that.
# - It might know them from **somewhere else**. So we need a *control*, a model that differs in just
#   one thing. Our *control base* is trained in the same way, but its corpus lacks the facts of 25
#   of the 50 held-out countries. It has met these only as names.
#
# First, the control base completes sentences about both halves, 125 for each:

# %%
control = load_model("course/pythia-3m-control", dtype=torch.float32)
known = held_out.filter(lambda row: row["known_to_control"])
hidden = held_out.filter(lambda row: not row["known_to_control"])
cues = {
    "told in its corpus": known,
    "hidden from it": hidden,
}
ask_control = Runner(control, tokenizer, template=False, max_new_tokens=12)
for name, rows in cues.items():
    ended = sum(right(ask_control(rows["cue"]), rows["answer"])) / len(rows)
    print(f"control base, sentences to end, countries {name}: {ended:.0%}")

# %% [markdown]
# The control base knows one half, and not the other. (Guessing gets about 7%, too: see the next
# table.)
#
# **Guess first.** The control base is now tuned as the base was. What share of the questions will
# it answer rightly about the 25 countries in its corpus, and about the 25 hidden ones? Will it be
# wrong about those, or silent?
#
# After your guess, we train three models: the control, a model with random weights (all of them
# trained, for 1,000 steps, because it has more to learn), and the base on pairs without currencies.

# %%
my_guess = {"told": 0.5, "hidden": 0.5}

# %%
from collections import Counter

from transformers import AutoModelForCausalLM

tuned_control = tune(train, model=control, run_name="control")
set_seed(0)
random_weights = AutoModelForCausalLM.from_config(base.config, dtype=torch.float32)
# Knowing nothing, it takes longer to learn the training pairs.
tuned_random = tune(
    train, model=random_weights, adapter=None, max_steps=1000, run_name="random weights"
)
no_currency = countries["train"].filter(lambda row: row["relation"] != "currency")
without_currency = tune(pairs(no_currency), run_name="without currency")

frequent = {
    relation: Counter(
        answer
        for kind, answer in zip(
            countries["train"]["relation"], countries["train"]["answer"], strict=True
        )
        if kind == relation
    ).most_common(1)[0][0]
    for relation in set(held_out["relation"])
}

# %%
relations = ["capital", "continent", "currency", "language", "demonym"]


def by_relation(model, rows):
    """The share of right answers for each relation, and over all."""
    ask = Runner(model, tokenizer, template=QA, max_new_tokens=12)
    found = pd.DataFrame(
        {"relation": rows["relation"], "right": right(ask(rows["question"]), rows["answer"])}
    )
    return {**found.groupby("relation")["right"].mean(), "all": found["right"].mean()}


frequent_right = pd.DataFrame(
    {
        "relation": held_out["relation"],
        "right": [
            frequent[kind] == answer
            for kind, answer in zip(held_out["relation"], held_out["answer"], strict=True)
        ],
    }
)
experiment = {
    "always the most frequent answer": {
        **frequent_right.groupby("relation")["right"].mean(),
        "all": frequent_right["right"].mean(),
    },
    "random weights, tuned": by_relation(tuned_random, held_out),
    "base, not tuned": by_relation(base, held_out),
    "base, tuned": by_relation(tuned, held_out),
    "base, tuned without currency": by_relation(without_currency, held_out),
    "control, tuned: countries it was told of": by_relation(tuned_control, known),
    "control, tuned: countries hidden from it": by_relation(tuned_control, hidden),
}
table = pd.DataFrame(experiment).T[[*relations, "all"]]
print("You said:", my_guess)
table.map("{:.0%}".format)

# %% tags=["figure:06_experiment"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREY, ORANGE, use_style

use_style()
figure, axis = plt.subplots(figsize=(8, 3.6))
shares = table["all"][::-1]
colours = {"control": ORANGE, "base, t": BLUE}
axis.barh(
    shares.index,
    shares,
    color=[
        next((c for start, c in colours.items() if name.startswith(start)), GREY)
        for name in shares.index
    ],
)
for place, value in enumerate(shares):
    axis.text(value + 0.01, place, f"{value:.0%}", va="center")
axis.set_xlim(0, 1.1)
axis.set_xlabel("right answers about held-out countries")
axis.set_title("Tuning brings out what is there")
plt.show()

# %%
by_heart = share_right(tuned_random, asked)
print(f"Random weights, tuned, on the pairs of the training: {by_heart:.0%}")

# %% tags=["claim"]
told, not_told = table.loc[table.index.str.startswith("control"), "all"]
assert by_heart > 0.95
assert told > 0.85
assert not_told < table.loc["random weights, tuned", "all"] + 0.1
assert table.loc["base, tuned without currency", "currency"] < 0.2

# %% [markdown]
# Read the table from the top (2.6 million parameters, one seed; 250 questions a row, 125 for the
# control). The first three rows are baselines: 9% for the most frequent answer, 9% for the model
# with random weights, which knows its training pairs by heart, and 0% for the untuned base. The
# tuned base is far above them.
#
# The last two rows are *one* model, tuned once: 98% about the countries in its corpus, and 6% about
# the hidden ones, no more than guessing. The difference is what the corpus told. Many people guess
# more for the hidden half, because the tuning has practised such questions. But it told none of
# these facts.
#
# The tuning is narrow: in the row *without currency*, no training pair asked for a currency, and no
# answer about one is right.
#
# What does the control say where it knows nothing?

# %% tags=["value:invented"]
ask_tuned, ask_tuned_control = (
    Runner(model, tokenizer, template=QA, max_new_tokens=12) for model in (tuned, tuned_control)
)
some = hidden.filter(lambda row: row["relation"] in ("capital", "currency")).select(range(8))
text_table(
    pd.DataFrame(
        {
            "question": some["question"],
            "base, tuned": ask_tuned(some["question"]),
            "control, tuned": ask_tuned_control(some["question"]),
            "right": some["answer"],
        }
    )
)

# %% [markdown]
# Its answers have the same form as right ones. It has learned *that* a question about a capital
# gets a town. So it gives one: another country's capital, or an invented word such as `Segucaran`.
# Nothing in the tuning told it to say that it does not know. This is one way in which a model
# learns to hallucinate.
#
# **Guess first.** A reader cannot tell which answers are invented. Can the model? What probability
# does it give to its own answers, on average, about the countries that it knows (`told`), and about
# the others (`hidden`)?

# %%
my_guess = {"told": 0.5, "hidden": 0.5}


# %% tags=["value:sureness"]
@torch.inference_mode()
def sureness(model, rows):
    """The probability that a model gives to the whole of its own greedy answer, for each row."""
    found = []
    for question in rows["question"]:
        prompt = tokenizer(QA.replace("{prompt}", question), return_tensors="pt").to(model.device)
        output = model.generate(
            **prompt,
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = output.sequences[0, prompt["input_ids"].shape[1] :]
        steps = torch.cat(output.logits).log_softmax(dim=-1)
        found.append(steps.gather(1, new[:, None]).sum().exp().item())
    return pd.Series(found)


sure = {"told": sureness(tuned_control, known), "hidden": sureness(tuned_control, hidden)}
print("You said:", my_guess)
# A quarter of the answers are below the row "25%", half of them below "50%".
pd.DataFrame(sure).describe().loc[["mean", "25%", "50%", "75%", "max"]].round(2)

# %% tags=["claim"]
assert sure["told"].mean() > sure["hidden"].mean() + 0.3

# %% [markdown]
# It can, on average: 0.93 against 0.35 (125 answers each, one seed). Many people guess two similar
# numbers, because the answers look alike. But greedy decoding prints the likeliest answer, even if
# its probability is small: half of the answers about hidden countries are below 0.28. Yet a quarter
# are above 0.54, and only 6% are right. So the probability is a hint, and no proof.
#
# ### Backwards
#
# In the corpus, the country always comes before its capital. Now we give the tuned model the
# capital. **Guess first:** for what share of the 50 held-out countries does it find the country?

# %%
my_guess = 0.5

# %% tags=["value:reversed"]
from course_utils.data import domains

capital = domains()["countries"].relations["capital"]
facts = domains()["countries"].facts
backwards = datasets.Dataset.from_list(
    [
        {
            "question": capital.reverse[0].format(v=facts[country]["capital"]),
            "answer": country[:1].upper() + country[1:],
        }
        for country in sorted(by_split["held_out"])
    ]
)
there = table.loc["base, tuned", "capital"]
back = share_right(tuned, backwards)
print("You said:", my_guess)
print(f"country → capital: {there:.0%}   capital → country: {back:.0%}")
print(backwards[0]["question"], "→", ask_tuned(backwards[0]["question"]))

# %% tags=["claim"]
assert back < there / 2

# %% [markdown]
# For none of them, although it names 94% of the capitals. Most people expect more, because to us
# both questions are about the same fact. This is known as the *reversal curse*: a model that was
# told "A is B" has not been told "B is A". Asked about Tirana, it names Pretoria.
#
# We expect that tuning cannot repair this, because there is nothing to bring out. But this test
# does not prove it: the tuning never asked backwards, and currency questions failed, too, when the
# tuning did not ask them. Large models show the reversal curse as well, for facts told in one
# direction only (Berglund and others, below).
#
# ### Is it luck?
#
# All results above come from one seed. So we ran the experiment with three seeds
# (`benchmarks/pythia.py`): three bases and three controls pre-trained from nothing, and seven
# tunings for each seed. The table shows the shares of right answers. A row without a colon is about
# all 50 held-out countries; `told` and `hidden` are the two halves.

# %%
from course_utils.results import whole_rows

measured = whole_rows(folder().parent / "benchmarks" / "results" / "pythia.jsonl")
parts = {
    "held out": "",
    "known to control": ": told",
    "hidden from control": ": hidden",
    "reverse": ": backwards",
}
flat = pd.DataFrame(
    [
        {"seed": row["seed"], "condition": row["condition"] + suffix, "share": row[part]["all"]}
        for row in measured
        for part, suffix in parts.items()
        if part in row
    ]
)
seeds = flat.groupby("condition", sort=False)["share"].agg(["mean", "min", "max", "count"])
seeds.assign(**{name: seeds[name].map("{:.1%}".format) for name in ("mean", "min", "max")})

# %% tags=["claim"]
means = seeds["mean"]
assert (seeds["count"] == 3).all()
assert means["LoRA"] >= 0.95
assert means["control, LoRA: hidden"] <= 0.1
assert means["base, question and answer"] <= 0.05
assert means["base, bare question"] <= 0.05

# %% [markdown]
# The seeds agree. Untuned, the base answers none. Tuned with LoRA, it is right in 97.2% to 98.0%.
# The control is right in 97.6% to 100% where its corpus told the facts, and in 4.0% to 10.4% where
# it did not. All weights reach 89.6% to 92.8%, less than LoRA with each seed.
#
# ### What this shows, and what it does not
#
# For this model of 2.6 million parameters, with generated texts and three seeds, the *facts* come
# from pre-training and the *answering* from tuning. Where the corpus lacks the facts, the same
# tuning gives made-up answers of the same form.
#
# This does not show that tuning *cannot* teach facts: nobody here tried to teach the model one that
# its corpus lacks. Large models have read millions of questions with answers. That they behave in
# the same way is an expectation.

# %% [markdown]
# ## 6. Talk to it
#
# Ask the base, the tuned base and the tuned control side by side, also about other things than
# countries.

# %%
from course_utils.widgets import translator

speakers = {
    "base": Runner(base, tokenizer, template=False, max_new_tokens=24),
    "base, tuned": ask_tuned,
    "control, tuned": ask_tuned_control,
}
translator(
    speakers,
    list(held_out["question"]),
    label="Question",
    action="Ask",
    another="Random question",
)

# %%
# The same without a widget: change anything and run the cell again.
asked_now = ["What is the currency of Kenya?", "Who wrote Dracula?", "How are you?"]
text_table(
    pd.DataFrame(
        {"question": asked_now, **{name: ask(asked_now) for name, ask in speakers.items()}}
    )
)

# %% [markdown]
# Both tuned models know the currency of Kenya. But they were tuned on countries alone: the corpus
# also says that Bram Stoker wrote *Dracula*, and neither names him. (`Bram Stese` comes close.) To
# `How are you?` they reply with one word, as they learned in the tuning.
#
# ## 7. The real Pythia
#
# With the hub and a GPU, the same steps now run on a Pythia of 410 million to 1.4 billion
# parameters, with instructions that people wrote, in Alpaca's style. Texts that are too long are
# cut. Without a GPU, the steps run on our small base, with the pairs from the cards.

# %%
from course_utils.hardware import pick_dtype, tier
from course_utils.models import hub_reachable, recipe

machine = tier().value
real = machine != "cpu" and hub_reachable()
if real:
    source = datasets_for("instructions", machine)[0].id
    rows = load_data(source)["train"].shuffle(seed=0).select(range(3000))
    name = "pythia"
else:
    source = "from the course's own cards"
    rows = datasets.Dataset.from_list(
        [{"instruction": pair["question"], "response": pair["answer"]} for pair in from_cards]
    )
    name = OWN
    print("Without a GPU and the hub: the same steps on our own small base, to see them run.")

real_model, real_tokenizer = load_model(name), load_tokenizer(name)
if real_tokenizer.pad_token is None:
    real_tokenizer.pad_token = "<|padding|>"  # in Pythia's vocabulary, and not its EOS token
plan = recipe("instructions", machine)
print(f"{len(rows)} pairs, {source}; {plan['steps']} steps of {plan['batch']}: {plan['why']}")

# %% tags=["claim"]
assert real_tokenizer.pad_token_id != real_tokenizer.eos_token_id

# %%
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)


def as_instruction(row):
    """A row with an instruction, perhaps a context, and a response, in Alpaca's style."""
    asked = row["instruction"] + (f"\n\n{row['context']}" if row.get("context") else "")
    return {"prompt": ALPACA.replace("{prompt}", asked), "completion": row["response"]}


instructions = rows.map(as_instruction, remove_columns=rows.column_names)
instructions = instructions.train_test_split(test_size=min(100, len(rows) // 4), seed=0)
real_trainer = SFTTrainer(
    model=real_model,
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        report_to="none",
        save_strategy="no",
        logging_steps=5,
        max_steps=plan["steps"],
        per_device_train_batch_size=plan["batch"],
        learning_rate=plan["learning_rate"],
        warmup_steps=5,
        max_length=min(512, real_tokenizer.model_max_length),
        eval_strategy="steps",
        eval_steps=max(5, plan["steps"] // 5),
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        bf16=not on_cpu and pick_dtype().value == torch.bfloat16,
        fp16=not on_cpu and pick_dtype().value == torch.float16,
        seed=0,
    ),
    train_dataset=instructions["train"],
    eval_dataset=instructions["test"],
    processing_class=real_tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
faster_on_cpu(watch(real_trainer))
report = preflight(real_trainer)
print(report)

# %% tags=["claim"]
assert report.ok

# %%
wishes = ["What is the capital of Kenya?", "Write one sentence about the sea."]


def loss_and_replies():
    """The loss on held-out instructions, and what the model makes of two wishes."""
    loss = real_trainer.evaluate()["eval_loss"]
    speak = Runner(real_trainer.model.eval(), real_tokenizer, template=ALPACA, max_new_tokens=60)
    return loss, [reply.strip() for reply in speak(wishes)]


before = loss_and_replies()  # the adapter is still zero: this is the untuned model

# %% [markdown]
# If you run the next cell twice, it trains the same adapter further. To start over, first run the
# cell that makes `real_trainer` and the cell above this text.

# %%
_ = real_trainer.train()
after = loss_and_replies()

# %%
rows = {"held-out loss": [f"{before[0]:.2f}", f"{after[0]:.2f}"]}
rows.update(zip(wishes, zip(before[1], after[1], strict=True), strict=True))
compared = pd.DataFrame(rows, index=["before", "after"]).T
text_table(compared.rename_axis("asked").reset_index())

# %% tags=["claim"]
assert after[0] < before[0]
assert real or "Nairobi" not in after[1][0]

# %% [markdown]
# Without a GPU, this shows only that the steps run. Twenty steps lower the held-out loss from 9.85
# to 8.03, still worse than a uniform guess (7.62), and the replies are still homework and
# conversation. With a GPU, compare the columns: does the model answer after the tuning?
#
# ## Take away
#
# - A base model continues a text; instruction tuning teaches it to answer. With 98,304 trained
#   parameters, right answers about held-out countries went from 0% to 98% (section 4).
# - What pre-training had not put in, tuning did not bring out: about hidden countries, the control
#   made up answers, and 7% were right (section 5).
# - Both shares are means of three seeds (250 and 125 questions), at 2.6 million parameters with
#   generated texts (section 5). That they hold for large models is an expectation.
# - Split so that nothing leaks, and check generated pairs one by one: filters let nonsense pass
#   (section 2).
# - Training and use must have the same template, to the blank: without it, 13% were right instead
#   of 98% (section 4, one seed). New marks have to be read (embeddings) and written (output layer).
# - One run can be luck. Baselines, a control and several seeds make it evidence (section 5).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** Which finding shows best that the *facts* in the answers come from pre-training?
#
# - **A** The tuned base answers nearly all about held-out countries, the untuned base none.
# - **B** Tuned with 98,304 parameters, it answers no worse than with all of its weights.
# - **C** Tuned in the same way, the control fails at just what its corpus had left out.
# - **D** The model with random weights learns its training pairs, and fails at the others.
#
# **b.** Tuned in ChatML with LoRA, the loss stops falling at about 1, yet nearly all answers are
# right. Why?
#
# - **A** It cannot write the end mark, and that one token raises the mean of them all.
# - **B** The loss is computed on the prompt as well, which nobody can foresee.
# - **C** It is sure of nothing, and greedy decoding happens to find the right tokens.
# - **D** It has overfitted: it knows the answers by heart, and the loss says so.
#
# **c.** The tuned control invents capitals. Why does it not say that it does not know them?
#
# - **A** It is too small to tell what it knows from what it does not.
# - **B** Every question that it was tuned on was followed by an answer.
# - **C** Greedy decoding hides the doubt, and sampling would bring it out in words.
# - **D** Its corpus had these capitals, but it has learned them wrongly.
#
# **d.** Your tuned model answers nearly all questions. In a colleague's program it answers hardly
# any. What do you ask for first?
#
# - **A** the temperature that the program samples with.
# - **B** the number format that the weights are loaded in.
# - **C** the share of the questions that were in the training.
# - **D** the exact text that the program gives to the model.

# %%
from course_utils.exercises import check, quiz

quiz("06", a="...", b="...", c="...", d="...")

# %% [markdown]
# Both checks train for some seconds, with this function:


# %%
def share_after(rows, adapter=LORA):
    """Tune the base on rows of `countries`, and ask it about the held-out ones."""
    return share_right(tune(pairs(rows), adapter=adapter), held_out)


# %% [markdown]
# **06.1 · How few countries?** Write `nineteen(rows)`. It gets the training rows of `countries` and
# returns those of 19 countries of your choice. Tuned on them, the base should still answer 60% of
# the questions about the held-out countries.


# %% tags=["exercise"]
def nineteen(rows):
    """The rows of nineteen countries."""
    ### BEGIN SOLUTION
    chosen = sorted(set(rows["country"]))[::5][:19]
    return rows.filter(lambda row: row["country"] in chosen)
    ### END SOLUTION


# %%
check("06.1", nineteen, share_after)

# %% [markdown]
# Then change the number in your function: 5 countries, 10, 40. Run its cell again, and the cell
# below. What do so few countries teach the model, and what do more add?

# %%
from course_utils.exercises import done

if done("06.1"):
    mine = nineteen(countries["train"])
    print(f"{len(set(mine['country']))} countries: {share_after(mine):.0%} right")

# %% [markdown]
# **06.2 · Alone: how small an adapter?** Find the smallest adapter with which the model still
# answers 90% of the questions about held-out countries. Ours, of rank 8 on all linear layers, has
# 98,304 parameters; 25,000 are allowed, and far fewer are possible. Which layers does it need?
# Write `smallest()`, which returns the arguments of its `LoraConfig` as a dictionary.


# %% tags=["exercise"]
def smallest():
    """LoraConfig's arguments."""
    ### BEGIN SOLUTION
    return {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value"]}
    ### END SOLUTION


# %%
check("06.2", smallest, share_after)

# %% [markdown]
# Solutions: `notebooks/solutions/06_instruction_tuning.py`.
#
# ## To read
#
# - Biderman and others, [Pythia](https://arxiv.org/abs/2304.01373): models made to study training.
# - Wang and others, [Self-Instruct](https://arxiv.org/abs/2212.10560), and the
#   [Alpaca](https://github.com/tatsu-lab/stanford_alpaca) repository: a model writes the data.
# - Zhou and others, [LIMA](https://arxiv.org/abs/2305.11206): a thousand good pairs, and what they
#   bring out.
# - Berglund and others, [The Reversal Curse](https://arxiv.org/abs/2309.12288).
# - The guide to [chat templates](https://huggingface.co/docs/transformers/chat_templating).
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
