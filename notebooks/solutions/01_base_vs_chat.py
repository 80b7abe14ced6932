# %% [markdown]
# # 01 · Base or chat?
#
# **You will learn** what a language model computes, why a base model continues a question where a
# chat model answers it, what a chat template does, and when fine-tuning is the right tool.
#
# **You need** Python, and a rough idea of what a neural network is. Notebook 00 helps, but you can
# do without it.
#
# **It takes** about 40 minutes of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Maya works at a small library, and she wants a helper that answers the questions of the visitors.
# She downloads a language model and asks it for the capital of Kenya. The model replies with three
# more questions. Is it broken? No. Maya has downloaded a *base model*, and a base model does not
# answer questions. In this notebook you will see why, and what has to happen to a model before it
# answers.
#
# The notebook runs on a laptop and on a large GPU; only the models differ. `describe` prints what
# your machine has, and which settings the course has chosen for it. The *tier* says which models
# fit. The *dtype* is the number format that the models compute in. *Attention* is a part of the
# model that can be computed in several ways, and the line says which of them is used here. You do
# not have to choose anything: notebooks 04 and 05 explain all three.

# %%
from course_utils import describe

print(describe())

# %% [markdown]
# Now we load two models. `runner` picks a model that fits this machine, loads it with
# `from_pretrained`, as you did in notebook 00, and returns a function: call it with a prompt and
# you get the reply. `runner` also prints the model's name, because every result depends on the
# model.
#
# **If the lines below say "embedded"**, you work with two small models that come with the course.
# `chat` is SmolLM2-135M-Instruct; its weights were stored in 4 bits each, to keep the download
# small. `base` is a base model that was trained for this course. It has 2.6 million parameters, and
# it was trained on generated texts about countries, animals, books and the like. In these texts, a
# question about a real country, animal or book is never answered. `base` is fifty times smaller
# than `chat`, and it knows less and writes worse. Do not compare *how well* the two write. Compare
# *what kind of text* they write. At the end of section 2 you will compare two models of the same
# size.
#
# With a GPU and the Hugging Face hub, `base` and `chat` are larger, and of the same size.

# %%
from course_utils import runner

base = runner("base")
chat = runner("chat")

# %% [markdown]
# ## 1. One job: the next token
#
# A language model does a single thing. It reads a text, and it gives every token of its vocabulary
# a probability of coming next. A token is a piece of text: a word, a part of a word, or a comma.
# Base models and chat models do the same here. We take the chat model, and we give it a bare text
# instead of a conversation.
#
# The model first computes the *logits*: one raw score for each token. The *softmax* turns the
# logits into probabilities, which are positive and sum to 1.
#
# **Guess first.** The text is `The capital of France is`. Write into `guess` the token that you
# think is the likeliest, and into `sure` the probability of the model's likeliest token. Keep the
# leading space of your guess: the space is part of the token.

# %%
text = "The capital of France is"

guess = " the"
sure = 0.5

# %% tags=["value:next-token"]
import pandas as pd
import torch

model, tokenizer = chat.model, chat.tokenizer


@torch.inference_mode()
def next_token_probabilities(ids):
    """One probability for each token of the vocabulary, after a list of token ids."""
    logits = model(torch.tensor([ids], device=model.device)).logits
    # logits: (1, tokens so far, vocabulary size); the last position predicts the next token
    return logits[0, -1].float().softmax(dim=-1).cpu()


ids = tokenizer(text)["input_ids"]
probabilities = next_token_probabilities(ids)
best = probabilities.argmax().item()
mine = tokenizer(text + guess)["input_ids"][len(ids)]  # the first token of your guess
print(f"The model's first choice is {tokenizer.decode(best)!r}: {probabilities[best]:.2f}.")
print(f"Your guess {guess!r} has {probabilities[mine]:.2f}; you said {sure:.2f} for the first.")

# %% tags=["claim"]
assert abs(probabilities.sum() - 1) < 1e-3
assert tokenizer.decode(best).strip() == "Paris"

# %% [markdown]
# This is how a fact shows in a language model: after `The capital of France is`, the token ` Paris`
# gets a high probability. You may have expected a probability close to 1. The probability is lower,
# because a text can go on in other ways, such as "The capital of France is a city of ...".
#
# To write a text, the model repeats this step: it computes the probabilities, one token is chosen
# and appended, and the model reads the longer text. The next cell does four steps. In each step it
# takes the likeliest token, which is called *greedy decoding*. After running the cell, put a
# sentence of your own into `sentence`, and run it again.

# %%
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREY, ORANGE, text_table, use_style

use_style()
sentence = "She opened the door and saw"

figure, axes = plt.subplots(1, 4, figsize=(12, 3.1), sharex=True)
grown = tokenizer(sentence)["input_ids"]
for step, axis in enumerate(axes, start=1):
    so_far = tokenizer.decode(grown, skip_special_tokens=True)
    top = next_token_probabilities(grown).topk(6)
    bars = axis.barh([repr(tokenizer.decode(i)) for i in top.indices], top.values, color=GREY)
    bars[0].set_color(BLUE)
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.set_title(f"step {step}: {'…' + so_far[-16:]!r}", fontsize=10)
    axis.set_xlabel("probability")
    grown.append(top.indices[0].item())
plt.show()
print(tokenizer.decode(grown, skip_special_tokens=True))

# %% [markdown]
# In each chart, the blue bar is the token that was taken. Its probability need not be high. Greedy
# decoding takes it because no other token is likelier.
#
# `model.generate` runs exactly this loop. It is only faster, because it keeps what it has computed
# for the earlier tokens.

# %%
inputs = tokenizer(sentence, return_tensors="pt").to(model.device)
generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(tokenizer.decode(generated[0], skip_special_tokens=True))

# %% tags=["claim"]
assert generated[0].tolist() == grown

# %% [markdown]
# ## 2. Why a base model does not answer
#
# A base model has learned one thing from its training texts: which token comes next. Before you run
# the next cell, think of a list of homework questions. What comes after such a list, in the texts
# that you know: the answers, or more questions?

# %% tags=["value:homework"]
homework = (
    "What is the capital of Kenya?\nWhat is the capital of France?\nWhat is the capital of Peru?\n"
)
reply = base(homework, max_new_tokens=40)
print(homework + reply)

# %% tags=["claim"]
assert reply.count("?") >= 2

# %% [markdown]
# The model writes more questions. If you expected answers, you read the list as a request. To the
# model, the list is the beginning of a text, and it continues the list as the lists in its training
# texts continue. The embedded base model has seen many such lists: homework without answers makes
# up 11% of its training texts. In its training, a question about a real country was never followed
# by its answer. We expect that large base models often do the same, because they have read many
# lists of questions, but we have not measured it.
#
# What does the base model do with a request? We try `Tell me how to train my dog to sit`, and one
# question. There is one complication. A model ends a text with a special token, the *EOS token*
# (end of sequence), and `generate` stops when the model chooses it. After so short a prompt, the
# model may choose the EOS token at once. So we forbid this token for 80 tokens
# (`min_new_tokens=80`), to see what else the model would write.

# %% tags=["value:base-reply"]
prompts = ["Tell me how to train my dog to sit", "What is the capital of Mexico?"]

for prompt in prompts:
    print(f"▶ {prompt}", end="")
    base(prompt, stream=True, max_new_tokens=80, min_new_tokens=80)
    print()

# %% [markdown]
# The base model never answers. Since it may not stop, it drifts into another text or repeats
# itself. It also invents words, such as *loadium*, which a larger model would do less often. If its
# text begins with a piece of a word, such as *ces*, the piece continues your last word: nothing in
# the prompt says that the sentence is over.
#
# Now the chat model gets the same two prompts. It streams its replies, as in a chat window. Each
# reply is cut after 120 tokens.

# %% tags=["value:chat-reply"]
for prompt in prompts:
    print(f"▶ {prompt}")
    chat(prompt, stream=True, max_new_tokens=120)
    print()

# %% [markdown]
# The chat model answers. It is a small model, so it gets facts wrong, and the *El Diablo* in its
# reply is invented. Here are both models side by side, with two more prompts; each reply is cut
# after some tokens. Look at the kind of text only.

# %%
more = [*prompts, "Why is the sky blue?", "Translate to French: Good morning"]
side_by_side = pd.DataFrame(
    {
        "prompt": more,
        "base": [reply.strip() for reply in base(more, max_new_tokens=40, min_new_tokens=40)],
        "chat": chat(more, max_new_tokens=60),
    }
)
text_table(side_by_side)

# %% [markdown]
# ### The same model, before and after instruction tuning
#
# Is the difference only a matter of size? To find out, we take the course's own base model and
# train it on questions *with* their answers. This is called *instruction tuning*. The code follows
# notebook 00. Two differences matter: we train all parameters of the model instead of a small
# addition to it, because the model is so small, and an example is a plain text instead of a
# conversation. `Question: ... Answer:` is the prompt, and the answer is the *completion*, the part
# that the model is trained on.
#
# `load_model` and `load_data` read the course's files, and `faster_on_cpu` only saves time. While
# the training runs, you see the *loss*, which section 5 explains. It falls to nearly zero, because
# after two passes the model knows the training answers by heart. So we test it on other countries:
# none of the training questions is about them.

# %%
import warnings

import datasets
from trl import SFTConfig, SFTTrainer

from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.models import Runner
from course_utils.training import faster_on_cpu

# Hide two warnings of the libraries that do not matter here.
warnings.filterwarnings("ignore", message=".*(gradient_checkpointing|pin_memory).*")
datasets.disable_progress_bars()
countries = load_data("countries")
form = "Question: {prompt}\nAnswer:"


def as_pair(row):
    """A question and its answer, as prompt and completion."""
    prompt = form.replace("{prompt}", row["question"])
    return {"prompt": prompt, "completion": f" {row['answer']}"}


train = countries["train"].map(as_pair, remove_columns=countries["train"].column_names)
own, own_tokenizer = load_model("course/pythia-3m", quiet=True), load_tokenizer("course/pythia-3m")
settings = SFTConfig(
    output_dir="models/pythia-checkpoints",
    max_steps=240,
    per_device_train_batch_size=16,
    learning_rate=5e-4,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="no",
    logging_steps=40,
    report_to="none",
    seed=0,
)
trainer = SFTTrainer(
    model=load_model("course/pythia-3m", quiet=True, dtype=torch.float32),
    args=settings,
    train_dataset=train,
    processing_class=own_tokenizer,
)
_ = faster_on_cpu(trainer).train()

# %% tags=["value:same-size"]
unseen = countries["held_out"]
pair = {
    "before": Runner(own, own_tokenizer, template=form),
    "after": Runner(trainer.model.eval(), own_tokenizer, template=form),
}
said = {name: ask(unseen["question"], max_new_tokens=12) for name, ask in pair.items()}
for name, replies in said.items():
    right = sum(a in r for a, r in zip(unseen["answer"], replies, strict=True))
    print(f"{name}: {right} of {len(replies)} replies hold the answer")
text_table(pd.DataFrame({"question": unseen["question"], **said, "answer": unseen["answer"]})[:6])

# %% tags=["claim"]
held = {
    name: sum(a in r for a, r in zip(unseen["answer"], replies, strict=True)) / len(replies)
    for name, replies in said.items()
}
assert held["before"] < 0.1
assert held["after"] > 0.7

# %% [markdown]
# Both models have the same size. After the tuning, most replies hold the right answer (229 of 250
# in the saved run; 2.6 million parameters, one seed), although no training question was about these
# countries. Some answers, such as *Albanian*, can be guessed from the name of the country. *Tirana*
# cannot. So the model knew the fact from *pre-training*, its first training. The tuning taught it
# the *behaviour* of answering. Notebook 06 tests this with a control model that has never read
# about some of the countries.
#
# Before the tuning, the model replies with "I see." instead of another question. We expect that
# `Answer:` looks to it like the name of a speaker: in the conversations of its training texts,
# people say "I see." quite often.
#
# ## 3. What triggers the response
#
# What did `chat` do that `base` did not? Before the model saw your prompt, `chat` put it into a
# *chat template*. This is the text that the model really got:

# %% tags=["value:rendered-prompt"]
print(chat.prompt("What is the capital of Mexico?"))

# %% [markdown]
# The template marks who speaks, and it ends with an open turn of the assistant. In its instruction
# tuning the model has seen nearly every answer right after such a mark. So this mark triggers an
# answer. If the text begins with a message that you did not write, such as *You are a helpful AI
# assistant ...*, that is the *system prompt*. It sets the tone or the task, and some templates add
# one by themselves.
#
# `runner` makes two calls of transformers for you, `apply_chat_template` and `generate`. Here they
# are in the open:

# %%
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = chat.tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(chat.model.device)
output = chat.model.generate(**inputs, max_new_tokens=30, do_sample=False)
answer = chat.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer)

# %% tags=["claim"]
assert answer == chat("What is the capital of France?", max_new_tokens=30)

# %% [markdown]
# **Guess first.** We ask one and the same chat model sixteen questions about capitals, seven times,
# each time in another form:
#
# - `own`: the model's own template.
# - `USER:`, `Alpaca` and `###`: three other templates, as older models use them. Each of them is
#   plain text, and each ends with a word that opens an answer, such as `ASSISTANT:`.
# - `[INST]`: the template of Llama 2, which puts the question between two marks.
# - `none`: the question alone. `none, then a line break`: the question and a line break.
#
# How many right answers of 16 does the model give in each form?

# %%
my_guess = {
    "own": "...",
    "USER:": "...",
    "Alpaca": "...",
    "###": "...",
    "[INST]": "...",
    "none": "...",
    "none, then a line break": "...",
}

# %% tags=["value:templates"]
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
alpaca = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)
# For `runner`, a template is True (the model's own), False (none) or a text with {prompt} in it.
templates = {
    "own": True,
    "USER:": "USER: {prompt}\nASSISTANT:",
    "Alpaca": alpaca,
    "###": "### Question: {prompt}\n### Answer:",
    "[INST]": "[INST] {prompt} [/INST]",
    "none": False,
    "none, then a line break": "{prompt}\n",
}


def count_right(replies):
    """How many replies name the capital that was asked for."""
    return sum(city in reply for city, reply in zip(capitals.values(), replies, strict=True))


rows = []
for name, template in templates.items():
    replies = chat(questions, template=template, max_new_tokens=30)
    rows.append(
        {
            "template": name,
            "your guess": my_guess[name],
            "right of 16": count_right(replies),
            "empty": sum(reply.strip() == "" for reply in replies),
            "reply about Kenya": replies[2].strip() or "(empty)",
        }
    )
by_template = pd.DataFrame(rows).set_index("template")
text_table(by_template.reset_index())

# %% tags=["claim"]
small = chat.model.num_parameters() < 1e9
right = by_template["right of 16"]
assert right["own"] >= 12
if small:  # a large model often understands other templates too
    for name in ("USER:", "Alpaca", "###"):
        assert right[name] >= 10
    for name in ("[INST]", "none"):
        assert right[name] <= 2
        assert by_template.loc[name, "empty"] >= 14
    assert right["none"] < right["none, then a line break"] < right["###"]

# %% [markdown]
# You may have expected that only the model's own template works, or that every template works.
# Neither is true here. With the small chat model, three foreign templates work as well as its own,
# while `[INST]` and the bare question get no answer at all: every reply is empty. (Sixteen
# questions are few: a difference of two or three right answers means nothing. On another processor,
# 16-bit numbers are rounded a little differently, and a count can change by one; notebook 03.1 gets
# one more for the model's own template. And we count a reply if it contains the city, so a reply
# that adds a wrong sentence afterwards still counts.)
#
# What do the two forms without replies (orange in the plot) share? The next cell computes, for each
# question, the probability that the first token is the EOS token. The line break follows below.

# %% tags=["figure:01_template_silence"]
end = chat.tokenizer.eos_token_id


@torch.inference_mode()
def first_step(template):
    """The probability of the EOS token as a reply's first token, for each question."""
    result = []
    for question in questions:
        text = chat.prompt(question, template=template)
        # the model's own template already contains the special tokens
        special = template is not True
        inputs = chat.tokenizer(text, return_tensors="pt", add_special_tokens=special)
        logits = chat.model(**inputs.to(chat.model.device)).logits[0, -1].float()
        result.append(logits.softmax(dim=-1)[end].item())
    return result


ends = {name: first_step(template) for name, template in templates.items()}

figure, axis = plt.subplots(figsize=(7, 2.9))
for row, (name, values) in enumerate(ends.items()):
    silent = by_template.loc[name, "empty"] > 8
    axis.plot(
        values, [row] * len(values), "o", alpha=0.5, markersize=8, color=ORANGE if silent else BLUE
    )
axis.set_yticks(range(len(ends)), list(ends))
axis.invert_yaxis()
axis.set_xlim(-0.02, 1)
axis.grid(axis="x")
axis.set_xlabel("probability that the reply ends at once (a dot for each question)")
axis.set_ylabel("template")
plt.show()
print(f"The EOS token of this model is {chat.tokenizer.eos_token!r}.")
print({name: f"{sum(values) / len(values):.2f}" for name, values in ends.items()})

# %% tags=["claim"]
if small:
    assert max(ends["own"]) < 0.1 < min(ends["none"])
    assert max(ends["USER:"]) < 0.1

# %% [markdown]
# After a bare question or the `[INST]` form, the small chat model gives its highest probability to
# the EOS token, `<|im_end|>`. This token closes *every* turn of a conversation, including the
# user's turns. In the training of the model, a question was the user's turn, and right after it
# came `<|im_end|>`. So the model does what it has learned: it ends the user's turn, because the
# prompt has not opened the assistant's turn.
#
# The three foreign templates that work end with something that opens an answer, such as
# `ASSISTANT:`. We expect that the model has read texts with such words in its pre-training, and
# that an answer followed them. A line break may help a little for the same reason: in many texts,
# an answer stands on the next line. We have not checked the model's training data.
#
# Does the model know the capitals without a template? Forbid the EOS token, and see.

# %% tags=["value:eos-barred"]
replies = chat(questions, template=False, max_new_tokens=30, min_new_tokens=30)
print(f"{count_right(replies)} of 16 name the capital:")
for question, reply in list(zip(questions, replies, strict=True))[:4]:
    print(f"  {question} → {reply.strip()[:70]!r}")

# %% tags=["claim"]
assert count_right(replies) > right["none"] or not small

# %% [markdown]
# The model names some of the capitals (4 of 16 in the saved run), but fewer than with its own
# template. So stopping early is only a part of the problem: without a template, the model also
# writes another kind of text. Where do the missing answers come from? Not from the template: it is
# the same text for all sixteen questions, and it contains no capital. **A template adds no
# knowledge. It triggers the behaviour of answering**, and without one, the model uses its knowledge
# less well.
#
# In your own work, use the model's own template. The model was trained with it, and
# `apply_chat_template` gets it right for every model. Most of this course is about teaching a model
# a behaviour such as answering.
# %% [markdown]
# ### Try it yourself
#
# Choose a model, a template and a temperature. The *temperature* changes how the next token is
# chosen. At 0, the model always takes the likeliest token. At 1, it draws a token with the
# probabilities that it has computed. Above 1, unlikely tokens are drawn more often. A base model
# often has no template of its own, so choose *none* for it.
#
# The second cell does the same without a widget, at a temperature of 0.7. Its reply mixes true and
# invented statements, and with another `seed` you get another reply.

# %%
from course_utils.widgets import playground

playground({"chat": chat, "base": base}, templates)

# %%
# The same without a widget: change anything and run the cell again.
print(
    chat(
        "What is the capital of Mexico?",
        template=templates["own"],
        temperature=0.7,
        seed=1,
        max_new_tokens=80,
    )
)

# %% [markdown]
# ## 4. Behaviour or knowledge? Prompt, retrieve or fine-tune?
#
# Back to Maya's helper. Fine-tuning can change two things in a model: its **behaviour**, such as
# answering, keeping to a format, or taking a tone, and its **knowledge**, such as new facts.
#
# | | what fine-tuning can do | for example |
# |---|---|---|
# | behaviour | make replies consistent | each reply has the same form and tone |
# | behaviour | make the model focus on one job | *moderation*: it reads a comment and writes `allowed` or `blocked`, nothing else |
# | behaviour | bring out what is there | a base model holds a conversation (section 2) |
# | knowledge | add facts | the words and rules of a trade |
# | knowledge | correct facts | a country has a new capital |
#
# But fine-tuning is rarely the first thing to try. Two small experiments show what you can do
# without it.
#
# **Facts.** The helper should know Maya's library, the Marlow Lane Library. We have made this
# library up, so no model can have read about it. What does the chat model say when a visitor asks?

# %%
import re

facts = {
    "The Marlow Lane Library closes at 14:15 on Saturday.": "14:15",
    "Visitors of the Marlow Lane Library may borrow 7 books at a time.": "7",
    "The librarian of the Marlow Lane Library is Ines Okafor.": "Okafor",
    "The reading room of the Marlow Lane Library has 42 seats.": "42",
    "The cat of the Marlow Lane Library is called Biscuit.": "Biscuit",
    "The Marlow Lane Library was designed by the architect Clara Voss.": "Voss",
    "A lost card of the Marlow Lane Library costs 3 euros.": "3",
    "The garden of the Marlow Lane Library is famous for its plum trees.": "plum",
}
asked = [
    "When does the Marlow Lane Library close on Saturday?",
    "How many books may visitors of the Marlow Lane Library borrow at a time?",
    "Who is the librarian of the Marlow Lane Library?",
    "How many seats does the reading room of the Marlow Lane Library have?",
    "What is the name of the cat of the Marlow Lane Library?",
    "Which architect designed the Marlow Lane Library?",
    "How much does a lost card of the Marlow Lane Library cost?",
    "What trees is the garden of the Marlow Lane Library famous for?",
]

closed_book = chat(asked, max_new_tokens=40)
for question, reply in list(zip(asked, closed_book, strict=True))[3:6]:
    print(f"{question}\n  → {reply}\n")

# %% [markdown]
# The model answers in good English, and it invents the facts. This is called a *hallucination*. A
# language model writes what is likely after your question, and it has no way to check whether it is
# true.
#
# *Retrieval* helps: you look the fact up, and you put it into the prompt. Real systems search
# millions of passages by their meaning. They turn each passage into a list of numbers, an
# *embedding*, so that texts with a similar meaning get similar numbers. We have eight sentences, so
# it is enough to count shared words. We count a reply as right if it contains the fact.


# %% tags=["value:retrieval"]
def words(text):
    """The set of words in a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def retrieve(question):
    """The fact that shares the most words with a question."""
    return max(facts, key=lambda fact: len(words(fact) & words(question)))


open_book = chat([f"{retrieve(q)}\n\n{q}" for q in asked], max_new_tokens=40)


def with_fact(replies):
    """How many replies contain the fact asked for."""
    pairs = zip(facts.values(), replies, strict=True)
    return sum(re.search(rf"\b{re.escape(fact)}\b", reply) is not None for fact, reply in pairs)


print(f"fact in the reply: without retrieval {with_fact(closed_book)} of 8, ", end="")
print(f"with it {with_fact(open_book)} of 8")
text_table(pd.DataFrame({"question": asked, "without": closed_book, "with": open_book}))

# %% tags=["claim"]
assert with_fact(closed_book) <= 2
assert with_fact(open_book) >= with_fact(closed_book) + 4

# %% [markdown]
# With the fact in the prompt, the reply contains it (8 of 8 in the saved run, against 0 of 8
# without; SmolLM2-135M-Instruct). Our rule is generous: the reply about the books contains the 7,
# and yet it does not answer the question. The prompt does not teach the facts: the next question
# about the library needs the passage again.
#
# **Format.** Now suppose that a program reads the replies. It needs the name of the city and
# nothing else. Is it enough to say so in the prompt? Or is it better to show two examples? And does
# the chat template help or hurt? For each prompt, the table counts how many of 16 replies name the
# city, and how many have a first line that is the name of the city *and nothing else*.

# %% tags=["value:prompting"]
examples = (
    "Question: What is the capital of Austria?\nAnswer: Vienna\n\n"
    "Question: What is the capital of Chile?\nAnswer: Santiago\n\n"
)
told = [f"{q} Answer with the name of the city only." for q in questions]
with_examples = [f"{examples}Question: {q}\nAnswer:" for q in questions]
formats = {
    "question alone": (questions, True),
    "told: name only": (told, True),
    "told: name only, no template": (told, False),
    "shown: two examples": (with_examples, True),
    "shown: two examples, no template": (with_examples, False),
}


def first_line(reply):
    """What a program would read: the first line, without a full stop."""
    return reply.strip().split("\n")[0].removesuffix(".")


rows = []
for name, (texts, template) in formats.items():
    replies = chat(texts, template=template, max_new_tokens=25)
    exact = sum(first_line(r) == city for r, city in zip(replies, capitals.values(), strict=True))
    rows.append(
        {
            "prompt": name,
            "names the city": count_right(replies),
            "and nothing else": exact,
            "first reply": first_line(replies[0]),
        }
    )
by_prompt = pd.DataFrame(rows).set_index("prompt")
by_prompt

# %% tags=["claim"]
exact = by_prompt["and nothing else"]
assert exact["shown: two examples, no template"] > exact["question alone"]

# %% [markdown]
# With this small model, only one of the five prompts works for a program: two examples, without the
# template. Without the template, the prompt is a text that breaks off, and the examples show how it
# goes on. With the template, the model rarely gives the name alone (once in sixteen, after two
# examples). We
# expect that larger chat models do what they are told more often. Examples also cost tokens in
# every call, and guarantee no format.
#
# So this is the order in which to try things. If the model lacks facts, use retrieval. If it lacks
# a format or a tone, try a prompt with examples. If that is not reliable, or if the prompt has
# become several pages long, fine-tune: put the behaviour into the weights. You can combine all
# three.
#
# | | prompting | retrieval | fine-tuning |
# |---|---|---|---|
# | good for | trying things, general tasks | facts that are many, new or private | a behaviour, format or tone that must hold each time |
# | data needed | none, or a few examples | documents | hundreds of examples and up |
# | cost in advance | minutes | building a search index | a training run |
# | cost per call | the prompt's tokens | the passages' tokens | no extra tokens |
# | when facts change | edit the prompt | edit the documents | train again |
# | typical failure | ignored instructions, invented facts | the wrong passage found | forgetting other skills, overfitting (memorising the examples), invented facts |
#
# ### Why have a model of your own?
#
# So far, any model would do, also one that you rent from a company. A model that you fine-tune and
# run yourself has four advantages. Each has its price:
#
# | | a model of your own | what you have to do for it |
# |---|---|---|
# | **privacy** | prompts and training data stay on your machines | protect these machines |
# | **latency** | a small model nearby can answer quickly, and nobody else's failure stops it | keep a server running |
# | **control** | it changes only when you change it, and you decide what it refuses | test it after each change |
# | **cost** | a small tuned model may replace a large one, so that a call costs less | pay for the training, and for the machine when it is idle |
#
# We have measured none of this here. Notebook 08 computes what replies cost on your machine, and
# notebook 10 serves a tuned model.
#
# ### What do people fine-tune for?
#
# It helps to tell two kinds of tasks apart. **Extraction** reads much and writes little: keywords,
# a category, a summary, or the verdict of a moderator. **Expansion** reads little and writes much:
# an email, a story, code. Two well-known products began with fine-tuning. Training GPT-3 to follow
# instructions led to ChatGPT. Training it further on public code gave Codex, the first model behind
# GitHub Copilot, which completes the code that you have begun (Chen et al., see *To read*).
#
# For moderation, two training pairs could look like this:
#
# ```
# {"prompt": "Comment: Only fools read this!\nVerdict:", "completion": " blocked"}
# {"prompt": "Comment: When do you open on Sunday?\nVerdict:", "completion": " allowed"}
# ```
#
# On held-out comments, count both mistakes: what was allowed and should not be, and what was
# blocked for nothing.
#
# Here are both kinds side by side. A model reads all tokens of a prompt at once, but it writes one
# token at a time, so we expect that expansion takes longer. The next cell counts the tokens of one
# example each, and the one after it divides them. (The email is cut at 160 tokens.)

# %%
paragraph = (
    "The old mill by the river was turned into a small museum last spring. It shows tools, letters "
    "and photographs from two centuries, and on Sundays a baker lights the oven. Visitors praise "
    "the bread, the kind guides and the quiet garden, and most of them say they will come back."
)
tasks = {
    "extraction": f"{paragraph}\n\nGive this text a title.",
    "expansion": "Write an email that invites a friend to a picnic on Sunday.",
}
rows = []
for kind, prompt in tasks.items():
    reply = chat(prompt, max_new_tokens=160)
    tokens_in = len(chat.tokenizer(prompt)["input_ids"])
    rows.append({"kind": kind, "tokens in": tokens_in, "tokens out": reply.tokens, "reply": reply})
by_kind = pd.DataFrame(rows)
text_table(by_kind)

# %% tags=["value:task-lengths"]
ratio = (by_kind["tokens out"] / by_kind["tokens in"]).tolist()
print(f"tokens out per token in: extraction {ratio[0]:.1f}, expansion {ratio[1]:.1f}")

# %% tags=["claim"]
assert ratio[0] < 1 < ratio[1]

# %% [markdown]
# The title is short beside its text, and the email is many times as long as its request. Each
# written token costs a run of the model of its own. So for expansion, expect to wait for the reply,
# and check where it ends. (We counted tokens here and did not measure times.)
#
# ## 5. Three methods of tuning
#
# All training makes one number small, the *loss*. The loss tells how surprised the model is by the
# tokens that it should predict, its *targets*. If the model gave a target the probability *p*, the
# loss of this target is −log *p*. A probability of 0.99 costs 0.01, a probability of 0.5 costs 0.7,
# and a probability of 0.01 costs 4.6. The loss of an example is the mean over its targets.
#
# There are three methods of tuning. They differ in what an example looks like, and in which tokens
# are targets.
#
# - **Self-supervised tuning** takes plain texts. Every token but the first is a target; the first
#   has nothing before it. This method adapts a model to a language, a style or a subject.
# - **Supervised tuning** takes prompts and the responses that you want. Only the response is a
#   target. This method teaches a model how to respond. You did this in section 2, and most of this
#   course is about it.
# - **Reinforcement-based tuning** takes responses that are *compared*, by people or by a reward
#   model. The model is moved towards the better ones. RLHF (reinforcement learning from human
#   feedback) trains a reward model on such comparisons and uses it with an algorithm called PPO.
#   DPO (direct preference optimization) needs no reward model: it learns from pairs of a better and
#   a worse response. This method suits tasks where a good response is easier to recognise than to
#   write.
#
# Here is one example under the first two methods. Each column is one token, and each row shows its
# loss, or a dash for no target. The EOS token is a target, too: this is how a model learns to stop.
# The second cell takes the means.


# %% tags=["value:targets"]
@torch.inference_mode()
def token_losses(text):
    """The tokens of a text and the loss of each; the first has none, as nothing precedes it."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    logits = model(ids.to(model.device)).logits[0].float().cpu()
    losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return [tokenizer.decode(token) for token in ids[0]], [None, *losses.tolist()]


question, response = "Question: What is the capital of Norway?\nAnswer:", " Oslo"
tokens, losses = token_losses(question + response + tokenizer.eos_token)
prompt_length = len(tokenizer(question, add_special_tokens=False)["input_ids"])


def shown(loss, target=True):
    """A loss as text, or a dash for a token that is no target."""
    return f"{loss:.2f}" if loss is not None and target else "–"


pd.DataFrame(
    {
        "self-supervised": [shown(loss) for loss in losses],
        "supervised": [shown(loss, i >= prompt_length) for i, loss in enumerate(losses)],
    },
    index=[repr(token) for token in tokens],
).T

# %% tags=["value:losses"]
targets = {"self-supervised": losses[1:], "supervised": losses[prompt_length:]}
for way, counted in targets.items():
    print(f"{way}: mean loss {sum(counted) / len(counted):.2f} over {len(counted)} targets")

# %% tags=["claim"]
assert len(targets["supervised"]) < len(targets["self-supervised"])

# %% [markdown]
# Most targets of the self-supervised method lie in the question, but we do not want to train the
# model to write questions. The supervised method looks at the response alone. (The two mean losses
# cannot be compared, because they are means over different tokens.)
#
# The loss of ` Oslo` may surprise you: 8.66, a probability of 0.0002. Does the model not know the
# capital of Norway? The next cell asks for the same fact in another form.

# %% tags=["value:forms"]
for start in (question, "The capital of Norway is"):
    after = next_token_probabilities(tokenizer(start)["input_ids"])
    top = ", ".join(f"{tokenizer.decode(i)!r} {p:.2f}" for p, i in zip(*after.topk(3), strict=True))
    oslo = after[tokenizer(" Oslo")["input_ids"][-1]].item()
    print(f"{start!r}: ' Oslo' has {oslo:.4f}; the likeliest are {top}")

# %% tags=["claim"]
assert oslo > 0.05 or not small

# %% [markdown]
# After *The capital of Norway is*, the token ` Oslo` is the likeliest of all. So the model knows
# the fact. After the first prompt, it prefers to stop, or to begin its answer with a line break or
# with *The*. (In section 3, `### Answer:` rarely made it stop. Small differences in the form
# matter, and we cannot predict them.) So a high loss does not always mean that a fact is missing.
# It can mean that the model expected another form, and fine-tuning changes the form quickly.
#
# For the third method, one number is computed for each *pair* of responses: how much likelier is
# the better response than the worse one? The probability of a response is the product of the
# probabilities of its tokens, so we add up their logarithms. The difference between the two sums is
# the *margin*. A margin above zero says that the better response is already the likelier one. The
# third method raises the margin.


# %% tags=["value:preference"]
def log_probability(prompt, response):
    """The log-probability of a response after a prompt: minus the sum of its tokens' losses."""
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return -sum(token_losses(prompt + response)[1][start:])


better, worse = " Oslo", " Bergen"
margin = log_probability(question, better) - log_probability(question, worse)
print(f"log p({better!r}) − log p({worse!r}) = {margin:.2f}")

# %% tags=["claim"]
assert margin > 0

# %% [markdown]
# The margin is above zero: the model already prefers *Oslo*. A margin of 1 would mean that the
# better response is *e*, about 2.7 times, as likely as the worse one.

# %% [markdown]
# ## 6. The steps of a project
#
# 1. **Say what you want.** Pick one task. Try it with the best large model that you can use: if
#    that model cannot do it with a good prompt, a small one will hardly learn it.
# 2. **Collect data**: real inputs, and good responses. The inputs should be as different from each
#    other as those of your users, and real ones are better than generated ones. We expect a few
#    hundred correct examples to help more than thousands of careless ones. Set a test split aside
#    *now*.
# 3. **Measure the untuned model** on the test split. Without this number you cannot say later what
#    the tuning has changed.
# 4. **Tune a small model first.** It shows you in minutes whether the data and the template are
#    right.
# 5. **Evaluate.** Read replies. Do not look at the loss alone.
# 6. **Go back to step 2.** What the model gets wrong tells you which data are missing.
# 7. **Deploy and watch.** Keep what your users really ask: it is your next dataset.
#
# Projects differ most in step 2, the data. Training and evaluation look much the same each time.

# %% [markdown]
# ## Take away
#
# - A language model gives each token a probability of coming next. Everything else is built on
#   this.
# - A base model continues texts. The course's base model answered 0 of 250 questions about held-out
#   countries before instruction tuning, and 229 after it (section 2; 2.6 million parameters, one
#   seed).
# - A chat model answers when the prompt opens an answer, as its own template does. Given the bare
#   question, SmolLM2-135M-Instruct ended the user's turn and wrote nothing, all sixteen times
#   (section 3).
# - A template adds no knowledge. It triggers behaviour that tuning has put in.
# - If a model lacks facts, try retrieval. If it lacks a format or a behaviour, try a prompt with
#   examples first, and then fine-tune.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** How does the model write a sentence?
#
# - **A** It has stored it, and looks it up by the prompt.
# - **B** It chooses one token after another, each time reading the whole text so far.
# - **C** It plans the sentence as a whole, and writes it down token by token.
# - **D** It works out all of its words in one go, each from the prompt.
#
# **b.** You send a chat model a bare question, and the reply is empty. Why?
#
# - **A** The knowledge was in the template, and is missing now.
# - **B** The model cannot read a question without the marks of its template.
# - **C** The model's weights are damaged, and have to be tuned again.
# - **D** Nothing in the prompt opens an answer, so the model closes the user's turn.
#
# **c.** A shop's assistant must know today's prices. What do you try first?
#
# - **A** Look the prices up at each question, and put them into the prompt.
# - **B** Fine-tune each night on questions and answers about the prices.
# - **C** Train on the price list as plain text, with every token a target.
# - **D** Lower the temperature, so that the model invents no prices.
#
# **d.** Why is the loss of supervised tuning computed on the response alone?
#
# - **A** The model cannot read the prompt while it is being trained.
# - **B** The prompt's tokens would have a loss of zero anyway.
# - **C** The model should learn to write responses, and not prompts.
# - **D** The prompt's tokens would make the loss too large to train with.

# %%
from course_utils.exercises import check, quiz

quiz("01", a="...", b="...", c="...", d="...")

# %% [markdown]
# **01.1 · Change one formula.** `logits.softmax(dim=-1)` gives the probabilities at temperature 1.
# Add the temperature: write `with_temperature(logits, temperature)`, which returns the
# probabilities from which a token is drawn. At temperature 0, the likeliest token gets probability
# 1. Then explain in a sentence why a high temperature leads to odd words.


# %% tags=["exercise"]
def with_temperature(logits, temperature):
    """Logits of shape (vocabulary size,) to probabilities of the same shape."""
    ### BEGIN SOLUTION
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
    return (logits / temperature).softmax(dim=-1)
    ### END SOLUTION


# %%
check("01.1", with_temperature)

# %% [markdown]
# **01.2 · Write a template by hand.** In ChatML, a message is `<|im_start|>`, the role, a line
# break, the text, `<|im_end|>` and a line break; the roles are `system`, `user` and `assistant`.
# Write `chatml(system, question)`: a system prompt, the user's question, and the opening of the
# assistant's turn. You have seen such a text at the beginning of section 3, if your model is
# SmolLM2.


# %% tags=["exercise"]
def chatml(system, question):
    """The prompt, as one text."""
    ### BEGIN SOLUTION
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ### END SOLUTION


# %%
check("01.2", chatml)

# %% [markdown]
# **01.3 · On your own.** Without any template, get the model to answer a word with its opposite,
# and nothing else: `fast` → `slow`. Write `opposite_prompt(word)`. You pass with five of ten right.


# %% tags=["exercise"]
def opposite_prompt(word):
    """A raw text that the model continues with the opposite of a word."""
    ### BEGIN SOLUTION
    pairs = {"big": "small", "wet": "dry", "happy": "sad"}
    lines = [f"The opposite of {one} is {other}." for one, other in pairs.items()]
    return "\n".join([*lines, f"The opposite of {word} is"])
    ### END SOLUTION


# %%
check("01.3", opposite_prompt, chat)

# %% [markdown]
# What you have done so far is kept in one file on this machine, and nowhere else. The table shows
# all notebooks. To start again, call `reset_progress()` from `course_utils.exercises`.

# %%
from course_utils.exercises import show_progress

show_progress()

# %% [markdown]
# Solutions: `notebooks/solutions/01_base_vs_chat.py`.
#
# ## To read
#
# - Ouyang et al., [Training language models to follow instructions with human
#   feedback](https://arxiv.org/abs/2203.02155): how GPT-3, a base model, became an assistant.
# - Chen et al., [Evaluating large language models trained on
#   code](https://arxiv.org/abs/2107.03374): Codex, from GPT-3 to Copilot.
# - Zhou and Ng, [Finetuning large language
#   models](https://www.deeplearning.ai/short-courses/finetuning-large-language-models/), a short
#   course: sections 2, 4 and 6 take up its questions.
# - The transformers guide to [chat
#   templates](https://huggingface.co/docs/transformers/chat_templating).
# - Allal et al., [SmolLM2](https://arxiv.org/abs/2502.02737): how the small model of this notebook
#   was made.
# - The terms of the course, with the notebook that introduces each:
#   [glossary](../docs/glossary.md).
