# %% [markdown]
# # 06 · Instruction-tuning Pythia
#
# **You will learn** how to prepare instruction data, what happens when a chat template does not
# fit, and how a base model becomes an assistant. You will also test the claim that *instruction
# tuning* (fine-tuning on requests with good responses) only brings out what *pre-training* (the
# first, long training on plain text) has put in.
#
# **You need** notebooks 02 (LoRA) and 03 (masks and chat templates).
#
# **It takes** about 35 minutes of reading and trying. The cells themselves run in about five
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Amir works for a publisher of school books. His base model has read short texts about countries,
# animals, books and more. But when he asks it for the capital of Mexico, it writes more questions.
# He can write example answers about some things only. Will the tuned model answer about the
# *others*? And what will it say about a country that it has never read about?

# %%
import copy
import logging
import os
import random
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
# Pythia is a family of base models that EleutherAI trained for research. The course has a very
# small model of the same architecture. A program (`benchmarks/pretraining`) wrote all of its
# training texts, such as these three:

# %%
from course_utils import load_model, load_tokenizer
from course_utils.data import Corpus

OWN = "course/pythia-3m"
base = load_model(OWN, dtype=torch.float32)
tokenizer = load_tokenizer(OWN)
print(f"{base.config.model_type}: {base.num_parameters():,} parameters, {len(tokenizer)} tokens")

corpus = Corpus(seed=1)
for kind in ("entry", "homework", "reading"):
    print(f"\n── {kind}\n{getattr(corpus, kind)()}")

# %% [markdown]
# Entries state facts. Homework asks for facts, and no answers follow. A reading test has answers,
# but only about countries that do not exist, from the text above. So the model has never seen
# anybody *ask* about a real country and *get an answer*.
#
# What does it know? If it completes an unfinished sentence correctly, it knows the fact.

# %% tags=["value:base-ends"]
from course_utils.data import right
from course_utils.models import Runner

countries = load_data("countries")
held_out = countries["held_out"]  # of 50 countries; section 2 says what they are held out from
ask_base = Runner(base, tokenizer, template=False, max_new_tokens=12)

for cue in ("The capital of Kenya is", "The currency of Mexico is the"):
    print(cue, "…", ask_base(cue).split(".")[0])

ended = ask_base(held_out["cue"])
knows = sum(right(ended, held_out["answer"])) / len(ended)
print(f"\nOf {len(ended)} such sentences, it ends {knows:.0%} rightly.")

# %% tags=["claim"]
assert knows >= 0.95

# %% [markdown]
# The model knows nearly all of these facts.
#
# **Guess first.** What if you *ask* for them? The next cell asks in three forms: the question
# alone, `Question:` and `Answer:`, and seven answered questions in front. What is the highest share
# of right answers?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %% tags=["value:untuned"]
QA = "Question: {prompt}\nAnswer:"


def share_right(model, rows, template=QA):
    """The share of questions that a model answers rightly, greedily."""
    ask = Runner(model, tokenizer, template=template, max_new_tokens=12)
    return sum(right(ask(rows["question"]), rows["answer"])) / len(rows)


shown = countries["train"].shuffle(seed=0).select(range(7))
examples = "".join(
    f"{QA.replace('{prompt}', row['question'])} {row['answer']}\n\n" for row in shown
)
forms = {"question alone": "{prompt}", "question and answer": QA, "with examples": examples + QA}
untuned = pd.DataFrame(
    {
        name: {
            "answered rightly": share_right(base, held_out, form),
            "it says, for example": ask_base(held_out["question"][0], template=form).strip(),
        }
        for name, form in forms.items()
    }
).T
print("You guessed:", my_guess)
untuned

# %% tags=["claim"]
assert untuned["answered rightly"].max() <= 0.05

# %% [markdown]
# None of the 250 questions is answered in any form (2.6 million parameters, one seed). Most people
# guess more, because the model knows the facts. But it has never seen a question answered from
# memory, so it writes more homework, or `I see.`, which ends many dialogues in its texts.
#
# It does answer questions about a text above them. Here are 100 new reading tests:

# %% tags=["value:reading"]
tests = [corpus.reading().partition("\nQuestions on the text\n") for _ in range(100)]
prompts, wanted = [], []
for text, mark, questions in tests:
    first, _, told = questions.split("\n")[0].partition("? ")
    prompts.append(f"{text}{mark}{first}?")
    wanted.append(told.rstrip("."))
reads = sum(right(ask_base(prompts), wanted)) / len(prompts)
print(f"Of {len(prompts)} such questions, it answers {reads:.0%} rightly.")

# %% tags=["claim"]
assert reads > 0.5

# %% [markdown]
# So it can answer from a text. It lacks the *behaviour* of answering from what it knows.
# Instruction data can teach a behaviour. Training on such data turned GPT-3 into ChatGPT: a tool of
# some thousands of researchers became one that millions of people can use, because you can simply
# ask it.
#
# ## 2. Instruction data
#
# An instruction dataset is a list of pairs: a request and a good response. Many pairs exist
# already: on help pages (*FAQ*), in support chats, in a company's messages (Slack and the like),
# forum threads and emails. People wrote the 15,011 of `databricks-dolly-15k` on the hub; a model
# wrote the 52,002 of `alpaca`, which may not be used commercially.
#
# ### How a pair is written
#
# A model reads one text, so a pair has to become one. There are several styles. Alpaca's has a
# second form, for a request that comes with a text: it stands below `### Input:`. The cell prints
# this form, and then compares the styles.

# %% tags=["value:styles"]
CHATML = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def alpaca(instruction, text=""):
    """A request in Alpaca's style, with the text that it is about, if any."""
    told = "an instruction that describes a task"
    if text:
        told += ", paired with an input that provides further context"
    return (
        f"Below is {told}. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n"
        + (f"### Input:\n{text}\n\n" if text else "")
        + "### Response:\n"
    )


print(alpaca("Sum it up.", "A fox ran over the hill."))
question, answer = "What is the capital of Mexico?", "Mexico City"
chat_tokenizer = load_tokenizer("chat")
styles = {
    "plain": (QA.replace("{prompt}", question), f" {answer}"),
    "Alpaca": (alpaca(question), answer),
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
text_table(pd.DataFrame(rows))

# %% tags=["claim"]
from course_utils.models import datasets_for

published = {entry.id: entry for entry in datasets_for("instructions", "40gb")}
assert published["databricks/databricks-dolly-15k"].rows == 15_011
assert published["tatsu-lab/alpaca"].rows == 52_002
assert "nc" in published["tatsu-lab/alpaca"].licence
costs = [row["tokens of ours"] for row in rows]
assert max(costs) == costs[1]

# %% [markdown]
# Alpaca costs most tokens, because each example pays for its long fixed text. ChatML's marks look
# long, but they are single tokens for SmolLM2 (the course's chat model) and for our model. Phi-3's
# marks are in neither vocabulary, so they are cut into many tokens.
#
# ### From a document, or from another model
#
# Where there are no pairs, there may be documents. Cut each document into pieces, and write a
# question for which the piece is the answer. Here the documents are the *cards* of our datasets,
# pages that describe them. Each paragraph of a card begins with a bold word, such as *Licence*.
# From this word a fixed template makes the question.

# %%
from course_utils.data import folder

openings = {
    "How it was made": "How was the dataset {name} made?",
    "Licence": "Under which licence is the dataset {name}?",
    "Sources": "Where does the dataset {name} come from?",
}
from_cards = [
    {"question": openings[opening].format(name=card.parent.name), "answer": body}
    for card in sorted(folder().glob("*/README.md"))
    for opening, body in re.findall(r"^\*\*([^*]+?)\.\*\* (.+)$", card.read_text("utf-8"), re.M)
    if opening in openings
]
print(len(from_cards), "pairs")
text_table(pd.DataFrame(from_cards[:3]))

# %% tags=["claim"]
assert len(from_cards) >= 10
assert all(pair["question"].endswith("?") and pair["answer"] for pair in from_cards)

# %% [markdown]
# Read such pairs before you use them: "changed as told here" makes sense only on the card.
#
# A language model can also write pairs, from a few examples. Our chat model now does this. Then
# five filters check each pair: its form, its length, its language, its topic, and whether it copies
# another pair. You will see that **the work is not in the writing, but in the checking.**

# %% tags=["value:fate"]
from difflib import SequenceMatcher

import py3langid

from course_utils import runner

topics = "bread rain horses trains salt moon maps bicycles clocks tea snow bridges".split()
wish = """Write one question that a curious person might ask, and a short, true answer to it.

Topic: fire
Question: Why does a fire go out under a blanket?
Answer: Because it gets no air, and without air nothing burns.

Topic: books
Question: What is the spine of a book?
Answer: The narrow side that you see when the book stands on a shelf.

Topic: {topic}"""
writer = runner("chat", max_new_tokens=60)
# We begin its reply with `Question:`, so that it keeps to the form.
prompts = [writer.prompt(wish.format(topic=topic)) + "Question:" for topic in topics]
written = writer(prompts, template=False, temperature=0.8, seed=0)


def reason_against(asked, told, topic, kept):
    """Why a pair is thrown away, or an empty text."""
    if not (asked.endswith("?") and told):
        return "not in the form"
    if not 4 <= len(asked.split()) <= 20 or not 2 <= len(told.split()) <= 40:
        return "too short or too long"
    if py3langid.classify(f"{asked} {told}")[0] != "en":
        return "not English"
    if topic.rstrip("s") not in asked.lower():
        return "off its topic"
    if any(SequenceMatcher(None, asked, other["question"]).ratio() > 0.8 for other in kept):
        return "near-duplicate"
    return ""


generated, fate = [], []
for topic, text in zip(topics, written, strict=True):
    asked, _, told = (part.strip() for part in text.partition("Answer:"))
    told = told.split("\n")[0]
    fate.append(reason_against(asked, told, topic, generated) or "kept")
    if fate[-1] == "kept":
        generated.append({"question": asked, "answer": told})
for pair in generated[:3]:
    print(f"{pair['question']}\n    {pair['answer']}")
pd.Series(fate, name="replies").value_counts().to_frame()

# %% tags=["claim"]
assert 0 < len(generated) < len(written)

# %% [markdown]
# In the saved run, the filters keep 9 of 12 replies (SmolLM2-135M, one seed), and the three above
# are nonsense: no filter knows anything about the world. So generated data should come from a much
# better model, and people should check it, or programs where a program can tell.
#
# ### The steps
#
# Pairs become training data in five steps: **collect** them, **concatenate** prompt and response in
# one style, **tokenize**, **pad or truncate** (the collator, notebook 03), and **split**. A *split*
# is a part of a dataset with its own purpose: training, validation or test. We split *by country*:
# the tuning must see nothing of the countries in the test split, `held_out`. Is that so?

# %% tags=["value:splits"]
by_split = {name: set(rows["country"]) for name, rows in countries.items()}
print(
    {
        name: f"{len(found)} countries, {len(countries[name])} pairs"
        for name, found in by_split.items()
    }
)
names = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in by_split["held_out"]))
found = [row for row in countries["train"] if names.search(f"{row['question']} {row['answer']}")]
print(f"{len(found)} training pairs have a held-out country's name in them, with the answers:")
print({row["answer"] for row in found})

# %% tags=["claim"]
assert not by_split["held_out"] & (by_split["train"] | by_split["validation"])
assert {row["answer"] for row in found} == {"Port of Spain"}

# %% [markdown]
# All four are false alarms: Spain is held out, and Port of Spain is a town in the Caribbean. Now we
# write the rows as prompts and completions:


# %%
def pairs(rows, template=QA, blank=" "):
    """Rows of `countries` as SFTTrainer wants them, in a style."""
    end = "<|im_end|>" if "<|im_start|>" in template else ""

    def convert(row):
        return {
            "prompt": template.replace("{prompt}", row["question"]),
            "completion": f"{blank}{row['answer']}{end}",
        }

    return rows.map(convert, remove_columns=rows.column_names)


train, validation = pairs(countries["train"]), pairs(countries["validation"])
print(train[0])
for text in ("The capital is Nairobi", "Answer: Nairobi", "Answer:Nairobi"):
    print(tokenizer.tokenize(text)[-4:])

# %% [markdown]
# Do not overlook the leading space, or *blank*, in `' Kabul'`. In the base's texts, a capital
# stands within a sentence, and the space belongs to its first token (`ĠN`). Without it, Nairobi
# begins with another token. Section 4 measures the difference.
#
# ## 3. Chat templates
#
# A chat template writes roles and turns as one text. It is part of the *tokenizer* (notebook 03).
# Our base has none, so we give it ChatML. SmolLM2 has a template of its own:

# %%
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
with_template = copy.deepcopy(tokenizer)
with_template.chat_template = chatml
messages = [{"role": "user", "content": question}]
ours = with_template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
theirs = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
print(f"{ours}\n── SmolLM2's:\n{theirs}")

# %% tags=["claim"]
assert theirs.endswith(ours)
assert ours == CHATML.replace("{prompt}", question)

# %% [markdown]
# The last line opens the assistant's turn (`add_generation_prompt`). Without it, the model might
# write another turn of the user. SmolLM2's template also puts a system prompt in front, which you
# did not write. Always look at the text that a template makes.
#
# The marks `<|im_start|>` and `<|im_end|>` are in our vocabulary, but in no text that the base has
# read. To *read* a mark, the model needs its row of the *embeddings*: the numbers by which the
# token enters the model. To *write* it, the model needs its row of the output layer, which is
# another table here (the two are not *tied*). LoRA on the linear layers changes neither.
# `trainable_token_indices` trains the rows of some tokens, in the tables that you name. Section 4
# tries it.
#
# ## 4. Tune the base
#
# The next cell prepares the training: LoRA with rank 8, on pairs in the plain style. (Notebook 03.1
# introduced `watch` and `faster_on_cpu`. For your own data, find the learning rate with a sweep, as
# in notebook 02.)

# %%
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import preflight
from course_utils.training import faster_on_cpu, watch

on_cpu = base.device.type == "cpu"
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def make_trainer(rows, model=None, adapter=LORA, processing_class=tokenizer, **options):
    """An SFTTrainer on a fresh copy of a model; options go to SFTTrainer and SFTConfig."""
    whole = {name: options.pop(name) for name in ("eval_dataset", "callbacks") if name in options}
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "max_steps": 240,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "warmup_steps": 10,
        "logging_steps": 10,
        "eval_strategy": "steps" if "eval_dataset" in whole else "no",
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
        processing_class=processing_class,
        peft_config=LoraConfig(**adapter),
        **whole,
    )
    return faster_on_cpu(watch(trainer))


def tune(rows, **options):
    """Train, and hand back the model, ready to be asked."""
    trainer = make_trainer(rows, **options)
    preflight(trainer, strict=True)  # raises where a check fails
    trainer.train()
    return trainer.model.eval()


report = preflight(make_trainer(train, eval_dataset=validation))
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
my_guess = None  # a number between 0 and 1, such as 0.5

# %% tags=["figure:06_losses"]
trainer = make_trainer(train, eval_dataset=validation)
_ = trainer.train()
tuned = trainer.model.eval()

# %%
asked = countries["train"].shuffle(seed=0).select(range(250))
results = {
    name: {"train": share_right(model, asked), "held out": share_right(model, held_out)}
    for name, model in (("base", base), ("tuned", tuned))
}
print("You guessed:", my_guess)
pd.DataFrame(results).T.map("{:.1%}".format)

# %% tags=["claim"]
assert results["tuned"]["held out"] >= 0.9

# %% [markdown]
# The tuned model answers 97.6% of the 250 held-out questions rightly (2.6 million parameters, one
# seed). Most people guess less, because the tuning says nothing about these countries. But the
# pre-training did; section 5 tests this explanation. (A training point is the mean of ten steps, so
# it can lie above the validation loss.)
#
# ### Overfitting, provoked
#
# Now we provoke overfitting, with only 20 pairs and three times the learning rate. *Early stopping*
# ends a training when the validation loss has not fallen for, here, four evaluations.
# `load_best_model_at_end` then loads the best checkpoint.

# %% tags=["figure:06_overfitting"]
from transformers import EarlyStoppingCallback

# Else peft would look for the base on the hub at each checkpoint.
os.environ["HF_HUB_OFFLINE"] = "1"
overfitted = make_trainer(
    train.shuffle(seed=1).select(range(20)),
    eval_dataset=validation,
    learning_rate=1e-2,
    eval_steps=5,
    save_strategy="steps",
    save_steps=5,
    load_best_model_at_end=True,
    metric_for_best_model="eval_loss",
    callbacks=[EarlyStoppingCallback(early_stopping_patience=4)],
)
_ = overfitted.train()
steps, best = overfitted.state.global_step, overfitted.state.best_global_step
loss = overfitted.evaluate()["eval_loss"]
few = share_right(overfitted.model.eval(), held_out)
print(f"stopped at step {steps}, went back to step {best}: validation loss {loss:.2f}")
print(f"held out: {few:.1%} right")

# %% tags=["claim"]
assert best < steps < 240
# What was loaded really is the best one.
assert abs(loss - overfitted.state.best_metric) < 0.01
assert few < 0.5

# %% [markdown]
# The training loss goes to 0: the model soon knows the pairs by heart. The validation loss is
# lowest at step 20. Early stopping ended the training at step 40, and loaded the checkpoint of step
# 20. Still, only 17% of the answers are right (250 questions, one seed): early stopping does not
# replace data. (After tuning *all* weights of a Pythia, transformers 5.23 loads the checkpoint
# without its output layer, [a known
# problem](https://github.com/huggingface/transformers/issues/43701).)
#
# ### The template has to fit
#
# We tune three more models on the same pairs: one in the plain style without the blank, one in
# ChatML with LoRA alone, and one in ChatML that also trains the rows of the two marks. Then we ask
# each model in each style.
#
# **Guess first.** Which of the four does best in its own style, and which does worst?

# %%
my_guess = None  # two of: plain, no blank, ChatML, ChatML with rows

# %%
marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
ROWS = {**LORA, "trainable_token_indices": {"embed_in": marks, "lm_head": marks}}
in_chatml = pairs(countries["train"], CHATML)
tuned_in = {
    "plain": tuned,
    "no blank": tune(pairs(countries["train"], blank=""), run_name="no blank"),
    "ChatML": tune(in_chatml, run_name="ChatML"),
    "ChatML with rows": tune(in_chatml, adapter=ROWS, run_name="ChatML with rows"),
}
for name in ("ChatML", "ChatML with rows"):
    print(f"{name}: {tuned_in[name].get_nb_trainable_parameters()[0]:,} trained parameters")

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
print("You guessed:", my_guess)
fits.map("{:.0%}".format)

# %% tags=["claim"]
assert fits.loc["plain", "plain"] > 0.9
assert fits.loc["ChatML", "ChatML"] > 0.8
assert fits.loc["ChatML with rows", "ChatML"] > 0.9
assert fits.loc["no blank", "plain"] < 0.5
assert fits.loc["plain", "ChatML"] < 0.5
assert fits.loc["ChatML", "plain"] < 0.5
assert fits.loc["ChatML", "nothing"] > 0.5

# %% [markdown]
# *Plain* and *ChatML with rows* do best, with 98%. *No blank* does worst, with 13% (250 questions,
# one seed). Few people expect that one space makes such a difference. **Training and use must
# agree**: asked in another style, the models fail. One exception is ChatML with LoRA alone, which
# answers 81% of the bare questions. (Its marks' embeddings were not trained; we have not tested
# whether this is why.)
#
# Now compare the curves. In ChatML with LoRA alone, the loss stops at about 1, but nearly all
# answers are right. How can that be? After the right answers to 60 held-out questions, we look at
# the mean probability of the end mark, and whether it is the likeliest token. Then we count the
# replies that end, and those that are right, with greedy decoding and with sampling.

# %%
sixty = held_out.select(range(60))
END = marks[1]


@torch.inference_mode()
def end_marks(model):
    """What a model does at the end of its replies in ChatML."""
    probability, likeliest = [], 0
    for row in sixty:
        told = CHATML.replace("{prompt}", row["question"]) + f" {row['answer']}"
        chances = model(**tokenizer(told, return_tensors="pt").to(model.device)).logits[0, -1]
        probability.append(chances.softmax(-1)[END].item())
        likeliest += chances.argmax().item() == END
    found = {"probability": round(sum(probability) / 60, 3), "likeliest": f"{likeliest} of 60"}
    ask = Runner(model, tokenizer, template=CHATML, max_new_tokens=30, eos_token_id=END)
    for name, temperature in (("greedy", 0), ("sampled", 1)):
        replies = ask(sixty["question"], temperature=temperature, seed=0)
        found[f"{name}: ends"] = f"{sum(reply.finished for reply in replies)} of 60"
        found[f"{name}: right"] = f"{sum(right(replies, sixty['answer']))} of 60"
    return found


ends = pd.DataFrame({name: end_marks(tuned_in[name]) for name in ("ChatML", "ChatML with rows")})
ends.T

# %% tags=["claim"]
alone, with_rows = ends["ChatML"], ends["ChatML with rows"]
assert alone["probability"] < 0.1 < 0.8 < with_rows["probability"]
assert min(int(ends.loc["greedy: ends", n].split()[0]) for n in ends) >= 57
assert int(alone["sampled: right"].split()[0]) < 15
assert int(with_rows["sampled: right"].split()[0]) >= 50

# %% [markdown]
# With LoRA alone, the end mark has a probability of only 0.017. So this one token has a loss of
# about 4, which raises the mean loss. But the rest of the probability is spread over two thousand
# other tokens, so the mark is still the likeliest token in 58 of 60 replies. Greedy decoding takes
# the likeliest token: all 60 replies end, and 57 are right. Sampling takes other tokens after the
# answer: 43 replies end within 30 tokens, and only 4 are right.
#
# With the rows trained, 768 numbers more, the mark has a probability of 0.96, and 54 of the sampled
# replies are right (one seed, one draw). So for new marks, train their rows in both tables, and
# test with the decoding that you will use. (TRL 1.16 cannot compute its own loss with such rows;
# `faster_on_cpu` takes the model's loss then, on a GPU too.)

# %% [markdown]
# ## 5. The experiment
#
# The claim is: *instruction tuning brings out what pre-training has put in; it does not put it in.*
# But the tuned model might also **guess**: many countries pay with the euro. So we need a baseline:
# always the most frequent answer. Or it might know the facts from **somewhere else**. So we need a
# *control*, a model that differs in just one thing. Our *control base* is trained in the same way,
# but its corpus lacks the facts of 25 of the 50 held-out countries.
#
# **Guess first.** The control base is now tuned as the base was. What share of the questions will
# it answer rightly about the 25 countries in its corpus (`told`), and about the 25 others
# (`hidden`)?

# %%
my_guess = None  # two numbers between 0 and 1, for told and hidden

# %%
control = load_model("course/pythia-3m-control", dtype=torch.float32)
known = held_out.filter(lambda row: row["known_to_control"])
hidden = held_out.filter(lambda row: not row["known_to_control"])
tuned_control = tune(train, model=control, run_name="control")
no_currency = countries["train"].filter(lambda row: row["relation"] != "currency")
without_currency = tune(pairs(no_currency), run_name="without currency")

# %%
relations = ["capital", "continent", "currency", "language", "demonym"]
practised = countries["train"].to_pandas()
frequent = practised.groupby("relation")["answer"].agg(lambda answers: answers.mode()[0])


def by_relation(rows, model=None):
    """The share of right answers for each relation, and over all; no model: the most frequent."""
    replies = [frequent[relation] for relation in rows["relation"]]
    if model is not None:
        replies = Runner(model, tokenizer, template=QA, max_new_tokens=12)(rows["question"])
    found = pd.DataFrame({"relation": rows["relation"], "right": right(replies, rows["answer"])})
    return {**found.groupby("relation")["right"].mean(), "all": found["right"].mean()}


experiment = {
    "always the most frequent answer": by_relation(held_out),
    "base, not tuned": by_relation(held_out, base),
    "base, tuned": by_relation(held_out, tuned),
    "base, tuned without currency": by_relation(held_out, without_currency),
    "control, tuned: countries it was told of": by_relation(known, tuned_control),
    "control, tuned: countries hidden from it": by_relation(hidden, tuned_control),
}
table = pd.DataFrame(experiment).T[[*relations, "all"]]
print("You guessed:", my_guess)
table.map("{:.0%}".format)

# %% tags=["figure:06_experiment"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREY, ORANGE, use_style

use_style()
figure, axis = plt.subplots(figsize=(8, 3.2))
shares = table["all"][::-1]
colours = {"control": ORANGE, "base, t": BLUE}
colour = [next((c for s, c in colours.items() if n.startswith(s)), GREY) for n in shares.index]
axis.barh(shares.index, shares, color=colour)
for place, value in enumerate(shares):
    axis.text(value + 0.01, place, f"{value:.0%}", va="center")
axis.set_xlim(0, 1.1)
axis.set_xlabel("right answers about held-out countries")
axis.set_title("Tuning brings out what is there")
plt.show()

# %% tags=["claim"]
told, not_told = table.loc[table.index.str.startswith("control"), "all"]
assert told > 0.85
assert not_told < table.loc["always the most frequent answer", "all"] + 0.1
assert table.loc["base, tuned without currency", "currency"] < 0.2

# %% [markdown]
# The last two rows are *one* model, tuned once: 98% about the countries in its corpus, and 6% about
# the hidden ones, no more than the most frequent answer gets (9%). The difference is what the
# corpus told (one seed; 250 questions a row, 125 for the control). Many people guess more for the
# hidden half, because the tuning has practised such questions. But it told none of these facts. And
# the tuning is narrow: where no pair asked for a currency, no answer about one is right.
#
# What does the control say where it knows nothing?

# %% tags=["value:invented"]
ask_tuned, ask_tuned_control = (
    Runner(model, tokenizer, template=QA, max_new_tokens=12) for model in (tuned, tuned_control)
)
some = hidden.filter(lambda row: row["relation"] in ("capital", "currency")).select(range(6))
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
# The control has learned *that* a question about a capital gets a town as its answer. So it gives
# the capital of another country, in the same form as a right answer. Nothing in the tuning told it
# to say that it does not know. This is one way in which a model learns to hallucinate.
#
# A reader cannot tell which answers are invented. Can the model? We compute the probability that it
# gives to the whole of its own answer.


# %% tags=["value:sureness"]
@torch.inference_mode()
def sureness(model, rows):
    """The probability that a model gives to the whole of its own greedy answer, for each row."""
    found = []
    for asked in rows["question"]:
        prompt = tokenizer(QA.replace("{prompt}", asked), return_tensors="pt").to(model.device)
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
# A quarter of the answers are below the row "25%", half of them below "50%".
pd.DataFrame(sure).describe().loc[["mean", "25%", "50%", "75%", "max"]].round(2)

# %% tags=["claim"]
assert sure["told"].mean() > sure["hidden"].mean() + 0.3

# %% [markdown]
# On average, the model is surer of an answer that its corpus told: 0.93 against 0.35 (125 answers
# each, one seed). But a quarter of the answers about hidden countries are above 0.54, and only 6%
# are right. So the probability is a hint, and no proof.
#
# ### Backwards
#
# In the corpus, the country always comes before its capital. Now we give the tuned model the
# capital. For how many of the 50 held-out countries does it find the country?

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
print(f"country → capital: {there:.0%}   capital → country: {back:.0%}")
print(backwards[0]["question"], "→", ask_tuned(backwards[0]["question"]))

# %% tags=["claim"]
assert back < there / 2

# %% [markdown]
# For none of them. This is known as the *reversal curse*: a model that was told "A is B" has not
# been told "B is A". Large models show it as well (Berglund and others, below).
#
# ### Is it luck?
#
# All results above come from one seed. So we ran the experiment with three seeds
# (`benchmarks/pythia.py`), each from the pre-training on. A row without a colon is about all 50
# held-out countries; `told` and `hidden` are the two halves.

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
assert means["random weights, all tuned"] <= 0.12
assert round(seeds.loc["all weights", "max"], 3) < round(seeds.loc["LoRA", "min"], 3)

# %% [markdown]
# The seeds agree. Tuned with LoRA, the base is right in 97.2% to 98.0%. The control is right in
# 97.6% to 100% where its corpus told the facts, and in 4.0% to 10.4% where it did not. A model with
# random weights, tuned on the same pairs, reaches 8.0% to 10.8%. Tuning all weights of the base
# reaches 89.6% to 92.8%, less than LoRA (one learning rate each).
#
# So for this model and its generated texts, the *facts* come from pre-training and the *answering*
# from tuning. This does not show that tuning *cannot* teach facts: nobody here tried. That large
# models behave in the same way is an expectation. The makers of InstructGPT (Ouyang and others,
# below) report something similar: after instruction tuning, their model also answered questions
# about code and followed instructions in other languages, although such examples were very rare in
# its tuning data.

# %% [markdown]
# ## 6. From base model to assistant
#
# So far the answers were single words about countries. Amir wants an assistant that answers in
# sentences, on several topics. The base has read about five topics: countries, chemical elements,
# animals, books and inventions. So he writes one sentence for each kind of question, such as *The
# symbol of … is ….* He fills it in for three quarters of the elements, animals, books and
# inventions, and for all countries but the 50 of the test split. The rest is held out.

# %%
SENTENCES = {
    "capital": "The capital of {s} is {v}.",
    "continent": "The continent of {s} is {v}.",
    "currency": "The currency of {s} is the {v}.",
    "language": "The official language of {s} is {v}.",
    "demonym": "People from {s} are known as {v}.",
    "symbol": "The symbol of {s} is {v}.",
    "number": "The atomic number of {s} is {v}.",
    "kind": "The element {s} is a {v}.",
    "young": "The young of the {s} is called a {v}.",
    "group": "The word for a group of the {s} is {v}.",
    "home": "The home of the {s} is the {v}.",
    "author": "The author of {s} is {v}.",
    "century": "Readers first had {s} in the {v} century.",
    "inventor": "The inventor of the {s} was {v}.",
    "year": "The first {s} was seen in {v}.",
}
rng = random.Random(0)
lessons, exam = [], []
for topic, domain in domains().items():
    subjects = sorted(domain.facts)
    rng.shuffle(subjects)
    apart = by_split["held_out"] if topic == "countries" else subjects[: len(subjects) // 4]
    for subject in subjects:
        for name, relation in domain.relations.items():
            answer = SENTENCES[name].format(s=subject, v=domain.facts[subject][name])
            for asked in rng.sample(relation.questions, 1 if subject in apart else 2):
                pair = {"topic": topic, "question": asked.format(s=subject), "answer": answer}
                (exam if subject in apart else lessons).append(pair)
hello = {"question": "Hello!", "answer": "Hello! What would you like to know?"}
lessons += 60 * [hello, {"question": "Thank you.", "answer": "You are welcome."}]
rng.shuffle(lessons)


def as_messages(pairs):
    """Pairs as the turns of one conversation."""
    turns = []
    for pair in pairs:
        turns.append({"role": "user", "content": pair["question"]})
        turns.append({"role": "assistant", "content": pair["answer"]})
    return {"messages": turns}


left, talks = list(lessons), []
while left:
    turns = rng.randint(1, 3)
    talks.append(as_messages(left[:turns]))
    left = left[turns:]
talks = datasets.Dataset.from_list(talks)
print(len(lessons), "pairs in", len(talks), "conversations;", len(exam), "questions held out")
talks[0]["messages"]

# %% tags=["claim"]
assert len(exam) == 434
assert not {pair["answer"] for pair in exam} & {pair["answer"] for pair in lessons}

# %% [markdown]
# `assistant_only_loss=True` trains on the words between the generation marks, and `eos_token` makes
# `<|im_end|>` end a reply (notebook 03). The rows of the marks are trained too.
#
# What share of a padded batch is padding, and what if we *pack* several conversations into a row of
# 256 tokens?

# %%
CHAT = {"assistant_only_loss": True, "eos_token": "<|im_end|>", "adapter": ROWS}
CHAT |= {"include_num_input_tokens_seen": "non_padding"}  # to count tokens per second
PACKED = {"per_device_train_batch_size": 3, "packing": True, "max_length": 256}
for name, options in {"padded": {"per_device_train_batch_size": 16}, "packed": PACKED}.items():
    trainer = make_trainer(talks, processing_class=with_template, **CHAT, **options)
    tokens = places = 0
    for batch in trainer.get_train_dataloader():
        places += batch["input_ids"].numel()
        tokens += (batch["input_ids"] != tokenizer.pad_token_id).sum().item()
    print(f"{name}: {1 - tokens / places:.0%} of {places:,} places are padding")

# %% tags=["claim"]
assert tokens >= 0.995 * places

# %% [markdown]
# 40% of the places in padded batches would be computed for nothing, so we pack. (The pre-flight
# check makes sure that no conversation reads the one before it.)
#
# **Guess first.** After 120 steps, for what share of the held-out questions will the assistant say
# *exactly* the right sentence?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %%
trainer = make_trainer(
    talks, processing_class=with_template, max_steps=120, run_name="assistant", **CHAT, **PACKED
)
preflight(trainer, strict=True)
done = trainer.train()
assistant = trainer.model.eval()
seconds = done.metrics["train_runtime"]
print(f"{trainer.state.num_input_tokens_seen / seconds:,.0f} tokens per second")

# %%
from scipy.stats import binomtest


def marked(model, pairs):
    """The topic of each pair, and whether a model says exactly the right sentence."""
    ask = Runner(model, with_template, max_new_tokens=40)
    replies = ask([pair["question"] for pair in pairs])
    exact = [reply == pair["answer"] for reply, pair in zip(replies, pairs, strict=True)]
    return pd.DataFrame({"topic": [pair["topic"] for pair in pairs], "right": exact})


scores = marked(assistant, exam).groupby("topic")["right"].agg(["sum", "count"])
scores.loc["all"] = scores.sum()
for topic, (count, n) in scores.iterrows():
    low, high = binomtest(count, n).proportion_ci(method="wilson")
    scores.loc[topic, "share"] = f"{count / n:.0%}"
    scores.loc[topic, "95% interval"] = f"{low:.0%} to {high:.0%}"
before = marked(base, rng.sample(exam, 100))["right"].sum()
print(f"Untuned, in the same template: {before} of 100 right. You guessed: {my_guess}")
scores

# %% tags=["claim"]
assert before == 0
assert scores.loc["all", "sum"] / scores.loc["all", "count"] > 0.85
assert scores.loc["countries", "sum"] >= 240

# %% [markdown]
# 408 of 434 sentences are exactly right (2.6 million parameters, one seed; the interval takes the
# questions as independent). Most people guess less, because a whole sentence has to be right. But
# the base has completed such sentences in its pre-training. Books are the worst topic. The tuning
# had only 47 titles, and we expect that more would help.
#
# Now chat with it. The function keeps the messages, applies the template to all of them, and
# generates the next turn, as every chat program does. Apart from the greeting and the thanks, none
# of this was asked in the tuning.


# %%
def chat(model, processing_class, *asked):
    """Ask one thing after the other in one conversation, and print it."""
    messages = []
    for text in asked:
        messages.append({"role": "user", "content": text})
        inputs = processing_class.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        reply = processing_class.decode(new, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": reply})
        print(f"{text}\n    {reply}")


chat(
    assistant,
    with_template,
    "Hello!",
    "What is the capital of Norway?",
    "With what do people pay in Norway?",
    "What is a young lion called?",
    "What is the symbol of tungsten?",
    "Who wrote Dracula?",
    "Thank you.",
)

# %% [markdown]
# A base model that only wrote homework now holds a conversation. What happens outside of what it
# has practised? Change the questions and run the cell again.

# %%
for text in ("What is the capital of Atlantis?", "Who are you?", "Write a poem about the sea."):
    chat(assistant, with_template, text)

# %% [markdown]
# The assistant says sentences of the kinds that it has practised. None of its texts has told it of
# Atlantis, so it answers about Namibia, and it gives a sentence about a porcupine where you asked
# for a poem.
#
# This is the gap to a large model. Pythia's base models have read about 300 billion tokens, where
# ours has read six million, and large instruction datasets have far more than fifteen kinds of
# questions. The steps are the same. That the result is more general is what we expect, and have not
# measured here.
#
# ### The real Pythia
#
# With the hub and a GPU, the same function trains a Pythia of 410 million to 1.4 billion parameters
# on instructions that people wrote, cut at 512 tokens.

# %%
from course_utils.hardware import pick_dtype, tier
from course_utils.models import hub_reachable, recipe


def as_talk(row):
    """A row of Dolly, with an instruction and perhaps a text, as a conversation."""
    asked = row["instruction"] + (f"\n\n{row['context']}" if row["context"] else "")
    return as_messages([{"question": asked, "answer": row["response"]}])


machine = tier().value
if machine == "cpu" or not hub_reachable():
    print("There is no GPU here, or no hub, so there is nothing to run.")
else:
    os.environ.pop("HF_HUB_OFFLINE", None)  # section 4 has set it
    rows = load_data("databricks/databricks-dolly-15k")["train"].shuffle(seed=0)
    rows = rows.select(range(min(3000, len(rows))))
    pythia, its_tokenizer = load_model("pythia"), load_tokenizer("pythia")
    its_tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    if len(its_tokenizer) > pythia.get_input_embeddings().num_embeddings:
        pythia.resize_token_embeddings(len(its_tokenizer))
    its_tokenizer.pad_token = its_tokenizer.pad_token or "<|padding|>"
    its_tokenizer.chat_template = chatml
    its_marks = its_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    its_rows = {"embed_in": its_marks, "lm_head": its_marks}
    adapter = {**ROWS, "r": 16, "lora_alpha": 32, "trainable_token_indices": its_rows}
    plan = recipe("instructions", machine)
    print(f"{len(rows)} conversations; {plan['steps']} steps of {plan['batch']}: {plan['why']}")
    trainer = make_trainer(
        rows.map(as_talk, remove_columns=rows.column_names),
        model=pythia,
        processing_class=its_tokenizer,
        max_steps=plan["steps"],
        per_device_train_batch_size=plan["batch"],
        learning_rate=plan["learning_rate"],
        max_length=512,
        bf16=pick_dtype().value == torch.bfloat16,
        fp16=pick_dtype().value == torch.float16,
        **{**CHAT, "adapter": adapter},
    )
    preflight(trainer, strict=True)
    trainer.train()
    wishes = ("What is the capital of Kenya?", "Write one sentence about the sea.")
    for name, model in {"before": pythia, "after": trainer.model.eval()}.items():
        print(f"\n── {name}")
        for wish in wishes:
            chat(model, its_tokenizer, wish)

# %% [markdown]
# ## Take away
#
# - A base model continues a text; instruction tuning teaches it to answer. With 98,304 trained
#   parameters, right answers about held-out countries went from 0% to 98% (sections 4 and 5).
# - What pre-training had not put in, tuning did not bring out: about hidden countries, the control
#   made up answers, and 7% were right (section 5; both means of three seeds, 2.6 million
#   parameters).
# - Split so that nothing leaks, and check generated pairs one by one (section 2).
# - Training and use must have the same template, down to a single space. New marks have to be read
#   and written: train their rows in both tables, and test with the decoding of use (section 4).
# - With sentences as answers, the same base became a small assistant: 408 of 434 held-out questions
#   (section 6, one seed).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** Which finding shows best that the *facts* in the answers come from pre-training?
#
# - **A** The tuned base answers nearly all about held-out countries, the untuned base none.
# - **B** Tuned with 98,304 parameters, it answers no worse than with all of its weights.
# - **C** Tuned in the same way, the control fails at just what its corpus had left out.
# - **D** The model with random weights learns its training pairs, and fails at the others.
#
# **b.** Tuned in ChatML with LoRA alone, the loss stops falling at about 1. Yet with greedy
# decoding nearly all answers are right, and all replies end. Why?
#
# - **A** The end mark stays improbable and costs much, but no other token is likelier.
# - **B** The loss is computed on the prompt as well, which nobody can foresee.
# - **C** It is unsure of the answers, and greedy decoding happens to find the right tokens.
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
# the questions about the held-out countries. Then try 5, 10 and 40 with
# `share_after(nineteen(countries["train"]))`. What do more countries add?


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
# - Ouyang and others, [Training language models to follow instructions with human
#   feedback](https://arxiv.org/abs/2203.02155): InstructGPT.
# - Raschka, [Build a large language model (from
#   scratch)](https://www.manning.com/books/build-a-large-language-model-from-scratch), chapter 7:
#   instruction tuning in plain PyTorch, with its
#   [code](https://github.com/rasbt/LLMs-from-scratch/tree/main/ch07).
# - Wang and others, [Self-Instruct](https://arxiv.org/abs/2212.10560), and the
#   [Alpaca](https://github.com/tatsu-lab/stanford_alpaca) repository: a model writes the data.
# - Zhou and others, [LIMA](https://arxiv.org/abs/2305.11206): a thousand good pairs.
# - Berglund and others, [The Reversal Curse](https://arxiv.org/abs/2309.12288).
# - The guide to [chat templates](https://huggingface.co/docs/transformers/chat_templating).
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
