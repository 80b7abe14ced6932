# %% [markdown]
# # 01 · Base or chat?
#
# **You will learn** what a language model really computes, why a base model rambles where a chat
# model answers, what a chat template does, and when fine-tuning is the right tool.
#
# **You need** Python, and a rough idea of what a neural network is.
#
# **It takes** about 40 minutes of reading and trying. The cells themselves run in about a minute on
# two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# The same notebook runs on a laptop and on a data-centre GPU. What changes is looked up, and
# printed with its reason. There is nothing to do about it: the *tier* decides which models are
# used, the *dtype* is the kind of number they compute in, and attention is a part of the model that
# can be computed in several ways. Later notebooks come back to all three.

# %%
from course_utils import describe

print(describe())

# %% [markdown]
# Now two models. `runner` finds one that suits this machine and hands back something that can be
# asked. It says what it took, because that matters for everything you will see.
#
# **If the lines below say "embedded"**: two small models travel with the course. *chat* is
# SmolLM2-135M-Instruct. *base* is the course's own, and a true base model: it has read nothing but
# generated texts about countries, animals, books and the like, and has never met a chat. It is
# fifty times smaller than the other; that it knows little and writes badly comes from that. That it
# *continues* where the other *answers* does not. With a GPU and the Hugging Face hub you get a pair
# of one size.

# %%
from course_utils import runner

base = runner("base")
chat = runner("chat")

# %% [markdown]
# ## 1. One job: the next token
#
# A language model does a single thing. It reads a text and gives every token of its vocabulary a
# probability of coming next. A token is a piece of text: a word, part of a word, a comma. Base and
# chat models do the same here; we take the chat model, and no chat yet, just a bare text.
#
# What comes out of the model are raw scores, the *logits*: one for each token, of any size and
# sign. The *softmax* makes probabilities of them, which are positive and sum to 1.
#
# **Guess first.** The text is `The capital of France is`. Put what you think is the likeliest
# next token into `guess`, and into `sure` which probability the model gives its first choice. Mind
# the leading blank: it belongs to the token.

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
    # logits: (1, tokens so far, vocabulary size); the last position speaks of the next token
    return logits[0, -1].float().softmax(dim=-1).cpu()


ids = tokenizer(text)["input_ids"]
probabilities = next_token_probabilities(ids)
best = probabilities.argmax().item()
mine = tokenizer(text + guess)["input_ids"][len(ids)]
print(f"The model's first choice is {tokenizer.decode(best)!r}: {probabilities[best]:.2f}.")
print(f"Your guess {guess!r} has {probabilities[mine]:.2f}; you said {sure:.2f} for the first.")

# %% tags=["claim"]
assert abs(probabilities.sum() - 1) < 1e-3
assert tokenizer.decode(best).strip() == "Paris"

# %% [markdown]
# So a fact sits in there, as a number: after these words, *Paris* is likely.
#
# A text grows by repeating this. Take a token, append it, ask again. Here are four steps. At each
# one the likeliest token is taken, which is called *greedy* decoding. Change `sentence` to one of
# your own and run the cell again.

# %%
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREEN, GREY, ORANGE, text_table, use_style

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
# `model.generate` does exactly this loop, only faster, because it keeps what it has computed for
# the earlier tokens.

# %%
inputs = tokenizer(sentence, return_tensors="pt").to(model.device)
generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(tokenizer.decode(generated[0], skip_special_tokens=True))

# %% tags=["claim"]
assert generated[0].tolist() == grown

# %% [markdown]
# ## 2. Why a base model rambles
#
# Before you run the next cell: what does a model that only continues texts do with a list of
# homework questions? Does it answer them?

# %% tags=["value:homework"]
homework = (
    "What is the capital of Kenya?\nWhat is the capital of France?\nWhat is the capital of Peru?\n"
)
reply = base(homework, max_new_tokens=40)
print(homework + reply)

# %% tags=["claim"]
questions_back = reply.count("?")
assert questions_back >= 2

# %% [markdown]
# More questions. That is not a mistake: where such a list stood in what it has read, more questions
# followed. For large base models that is billions of pages, and they continue in their manner. None
# was ever told that a question is a request.
#
# Now one request, `Tell me how to train my dog to sit`, and one question.
#
# A model ends a text with a token of its own, the *EOS token*; once it is chosen, `generate` stops.
# After a request, a text may well end. So the EOS token is barred (`min_new_tokens`), to see what
# else the model has to say.

# %% tags=["value:base-reply"]
prompts = ["Tell me how to train my dog to sit", "What is the capital of Mexico?"]

for prompt in prompts:
    print(f"▶ {prompt}", end="")
    base(prompt, stream=True, max_new_tokens=80, min_new_tokens=80)
    print()

# %% [markdown]
# It goes somewhere: into another text, or round in circles. Larger base models do the same, only
# in better prose. Now the chat model, streaming as in a chat window:

# %% tags=["value:chat-reply"]
for prompt in prompts:
    print(f"▶ {prompt}")
    chat(prompt, stream=True, max_new_tokens=120)
    print()

# %% [markdown]
# Side by side, with two more prompts. A small model gets things wrong, and each reply is cut after
# some tokens; look at *what kind of text* each writes.

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
# ## 3. What triggers the response
#
# What did `chat` do that `base` did not? It put the prompt into a *chat template* before the model
# saw it. Here is what was really sent:

# %% tags=["value:rendered-prompt"]
print(chat.prompt("What is the capital of Mexico?"))

# %% [markdown]
# The template marks who speaks, and ends with an open turn for the assistant. During its training
# the model saw nearly every answer right after such a mark, so the mark is what triggers one.
# (Where there is a first message that you did not write, it is the *system prompt*: it sets tone
# or task, and some templates put one in by themselves.)
#
# `runner` hides only two calls of transformers. Here they are, in full:

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
# **Guess first.** Take one and the same chat model and sixteen questions about capitals. Ask with
# its *own* template, with a *wrong* one (another model's), and with *none*. How many right answers
# of 16 does each get?
#
# (For `runner`, a template is `True`, the model's own; `False`, none; or a text with `{prompt}` in
# it.)

# %%
my_guess = {"own": 16, "wrong": 8, "none": 4}

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

# Llama 2's template begins with [INST]; where that is the model's own, take a third one.
inst_is_own = "[INST]" in chat.tokenizer.chat_template
wrong = "### Question: {prompt}\n### Answer:" if inst_is_own else "[INST] {prompt} [/INST]"
templates = {"own": True, "wrong": wrong, "none": False}
print("The wrong template:", repr(wrong))


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
            "empty replies": sum(reply.strip() == "" for reply in replies),
            "reply about Kenya": replies[2].strip() or "(empty)",
        }
    )
by_template = pd.DataFrame(rows).set_index("template")
by_template

# %% tags=["claim"]
small = chat.model.num_parameters() < 1e9
right = by_template["right of 16"]
assert right["own"] == right.max()
if small:  # a large model often understands a wrong template too
    assert right["own"] >= right["wrong"] + 5
    assert right["own"] >= right["none"] + 5

# %% [markdown]
# The same weights, the same questions. What happened to the empty replies? Look at the first step:
# how likely is it that the reply *ends* before it has begun?

# %% tags=["figure:01_template_silence"]
end = chat.tokenizer.eos_token_id


@torch.inference_mode()
def first_step(template):
    """The probability of the EOS token as a reply's first token, for each question."""
    result = []
    for question in questions:
        text = chat.prompt(question, template=template)
        # A rendered chat template holds its special tokens already.
        special = template is not True
        inputs = chat.tokenizer(text, return_tensors="pt", add_special_tokens=special)
        logits = chat.model(**inputs.to(chat.model.device)).logits[0, -1].float()
        result.append(logits.softmax(dim=-1)[end].item())
    return result


ends = {name: first_step(template) for name, template in templates.items()}

figure, axis = plt.subplots(figsize=(7, 2.6))
for row, values in enumerate(ends.values()):
    axis.plot(
        values, [row] * len(values), "o", alpha=0.5, markersize=9, color=(BLUE, ORANGE, GREEN)[row]
    )
axis.set_yticks(range(len(ends)), list(ends))
axis.set_ylim(-0.5, 2.5)
axis.invert_yaxis()
axis.set_xlim(-0.02, 1)
axis.grid(axis="x")
axis.set_xlabel("probability that the reply ends at once (a dot for each question)")
axis.set_ylabel("template")
axis.set_title("Without its template, the model is silent")
plt.show()

# %% tags=["claim"]
if small:
    assert max(ends["own"]) < 0.1 < min(ends["none"])

# %% [markdown]
# And is the knowledge gone without the template? Bar the EOS token, and see.

# %% tags=["value:eos-barred"]
replies = chat(questions, template=False, max_new_tokens=30, min_new_tokens=30)
print(f"{count_right(replies)} of 16 name the capital:")
for question, reply in list(zip(questions, replies, strict=True))[:4]:
    print(f"  {question} → {reply.strip()[:70]!r}")

# %% tags=["claim"]
assert count_right(replies) > right["none"] or not small

# %% [markdown]
# Part of it was there all along. **A template adds no knowledge; it brings out the behaviour of
# answering.** Keep this picture: most of this course is about putting such behaviour into a model.

# %% [markdown]
# ### Try it yourself
#
# Any model, any template, any temperature. Temperature scales the probabilities: at 0 the likeliest
# token is always taken, at 1 tokens are drawn as likely as the model says, above 1 the unlikely
# ones get a chance. (A base model often has no template of its own: choose *none* for it.)

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
# Fine-tuning can change two things in a model: its **behaviour** (answer consistently, keep to a
# format, take a tone) and its **knowledge** (new concepts, corrected facts). But it is not the only
# way, and rarely the first to try. Two small experiments.
#
# **Facts.** Here is a library that does not exist. What does the model say about it?

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
# Fluent, confident, invented: a *hallucination*. A model says what is likely, and knows of no
# difference between likely and true.
#
# *Retrieval* helps: look the fact up, and put it into the prompt. Real systems search millions of
# passages by their meaning (with *embeddings*, lists of numbers that are close for texts that say
# the same); for eight sentences, counting shared words will do.


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
# **Format.** Suppose that a program reads the replies, and needs the city's name and nothing else.
# Will asking for it do? And what if we show examples instead, without the template, as a text to be
# continued? The table counts, of 16 replies, how many name the city, and in how many the first line
# is the city's name *and nothing else*.

# %% tags=["value:prompting"]
examples = (
    "Question: What is the capital of Austria?\nAnswer: Vienna\n\n"
    "Question: What is the capital of Chile?\nAnswer: Santiago\n\n"
)
ways = {
    "question alone": (questions, True),
    "told: name only": ([f"{q} Answer with the name of the city only." for q in questions], True),
    "shown: two examples, no template": (
        [f"{examples}Question: {q}\nAnswer:" for q in questions],
        False,
    ),
}


def first_line(reply):
    """What a program would read: the first line, without a full stop."""
    return reply.strip().split("\n")[0].removesuffix(".")


rows = []
for way, (texts, template) in ways.items():
    replies = chat(texts, template=template, max_new_tokens=25)
    exact = sum(first_line(r) == city for r, city in zip(replies, capitals.values(), strict=True))
    rows.append(
        {
            "way": way,
            "names the city": count_right(replies),
            "and nothing else": exact,
            "first reply": first_line(replies[0]),
        }
    )
by_way = pd.DataFrame(rows).set_index("way")
by_way

# %% tags=["claim"]
exact = by_way["and nothing else"]
assert exact["shown: two examples, no template"] > exact["question alone"]

# %% [markdown]
# Showing works where asking fails, at least at this size: a larger chat model does what it is told
# more often. But examples cost tokens in every single call, and nothing *guarantees* the format.
#
# When the facts are the problem, retrieve. When a prompt with examples does the job, be glad. When
# neither is reliable, or the prompt has grown to pages, fine-tune: put the behaviour into the
# weights. They also combine.
#
# | | prompting | retrieval | fine-tuning |
# |---|---|---|---|
# | good for | trying things, general tasks | facts that are many, new or private | a behaviour, format or tone that must hold each time |
# | data needed | none, or a few examples | documents | hundreds of examples and up |
# | cost before | minutes | an index | a training run |
# | cost per call | the prompt's tokens | the passages' tokens | none on top |
# | when facts change | edit the prompt | edit the documents | train again |
# | goes wrong by | ignored instructions, invention | the wrong passage found | forgetting, overfitting, invention all the same |
#
# ### What do people tune for? Reading or writing
#
# Nearly all tasks are text in, text out. It helps to tell two kinds apart. **Extraction** reads
# much and writes little: keywords, a category, a summary. **Expansion** reads little and writes
# much: an email, a story, code. Count the tokens.

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
# ## 5. Three ways to tune
#
# They differ in what an example looks like, and in what the *loss* is computed on: the number that
# training makes small. A *target* is a token that the model is to learn to predict, and the loss of
# a target is −log of the probability that the model gave it. Sure and right costs nearly nothing;
# 0.5 costs 0.7, and 0.01 costs 4.6. The loss of an example is the mean over its targets.
#
# - **Self-supervised**: a text, nothing else. Every token is a target. For taking on a style, a
#   language, a field.
# - **Supervised**: a prompt and the response wanted. Only the response is a target. For teaching a
#   model to respond; most of this course.
# - **Reinforcement-based**: responses are *compared*, by people or by a reward model, and the model
#   is moved towards the better ones. (The names you will meet are PPO, with a reward model, and
#   DPO, straight from the pairs.) For what is easier to judge than to write.
#
# Here is one example under the first two: a column for each token, the loss in it, and a dash where
# the token is no target. The EOS token is a target too: this is how a model learns to stop.


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
# The self-supervised mean spends most of its targets on the question, which nobody wants from the
# model. The supervised one is about the response alone, and a high loss there is what tuning brings
# down.
#
# For the third way, one number per *pair*: how much likelier is the better response than the worse?
# A response is as likely as all of its tokens together, so the logarithms are summed; their
# difference is the *margin*. Above zero, the better one is likelier already. Preference tuning
# raises it.


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
# ## 6. The steps of a project
#
# 1. **Say what is wanted.** Pick one task; find, by prompting a large model, whether it is feasible
#    at all.
# 2. **Collect data.** Real inputs, good responses; a few hundred that are right beat thousands that
#    are so-so. Set a test split aside *now*.
# 3. **Measure the untuned model** on that split. Without this number nothing that follows means
#    anything.
# 4. **Tune a small model first.** It shows in minutes whether data and template are right.
# 5. **Evaluate**: look at replies, not only at the loss.
# 6. **Go back to 2.** What it gets wrong tells which data are missing. Then more data, or a larger
#    model.
# 7. **Deploy and watch**, and keep what users really ask: that is the next dataset.
#
# Data preparation is where projects differ. Training and evaluation look much the same each time.

# %% [markdown]
# ## Take away
#
# - A language model gives each token a probability of coming next. All else is built on that.
# - A base model continues texts; it does not answer. Questions are continued by questions.
# - The chat template is part of the model: the wrong one can silence it.
# - A template brings out behaviour that tuning put in. It adds no knowledge.
# - Facts: retrieve. Format and behaviour: try a prompt, then fine-tune.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** Where does a sentence come from that the model writes?
#
# - **A** It has stored it, and looks it up by the prompt.
# - **B** It chooses one token after another, each time reading all that is there so far.
# - **C** It plans the sentence as a whole, and writes it down token by token.
# - **D** It works out all of its words in one go, each from the prompt.
#
# **b.** A chat model stays silent under another model's template. What follows?
#
# - **A** What it knew stood in its template, and is missing now.
# - **B** It does not understand the question without the right marks.
# - **C** Its weights are damaged, and have to be tuned again.
# - **D** The marks which it was trained to answer after are missing.
#
# **c.** A shop's assistant is to know today's prices. What do you try first?
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
# - **C** The model is to learn to write responses, and not prompts.
# - **D** The prompt's tokens would make the loss too large to train with.

# %%
from course_utils.exercises import check, quiz

quiz("01", a="...", b="...", c="...", d="...")

# %% [markdown]
# **01.1 · Change one formula.** `logits.softmax(dim=-1)` gives the probabilities at temperature 1.
# Put the temperature in: write `with_temperature(logits, temperature)`, the probabilities from
# which a token is drawn. At temperature 0 all of it goes to the likeliest token. Then explain in a
# sentence why a high temperature brings odd words.


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
# Write `chatml(system, question)`: a system prompt, the user's question, and the assistant's turn
# opened. You have seen such a text at the beginning of section 3, if your model is SmolLM2.


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
# **01.3 · Alone.** Without any template, get the model to answer a word with its opposite, and
# nothing else: `fast` → `slow`. Write `opposite_prompt(word)`. Five right of ten will do.


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
# What you have done so far is kept in one file on this machine, and nowhere else. The table covers
# all notebooks, and you can show it in each of them. To start again from nothing, call
# `reset_progress()` of the same package.

# %%
from course_utils.exercises import show_progress

show_progress()

# %% [markdown]
# Solutions: `notebooks/solutions/01_base_vs_chat.py`.
#
# ## To read
#
# - Ouyang et al., [Training language models to follow instructions with human
#   feedback](https://arxiv.org/abs/2203.02155): how a base model became an assistant.
# - The transformers guide to [chat
#   templates](https://huggingface.co/docs/transformers/chat_templating).
# - Allal et al., [SmolLM2](https://arxiv.org/abs/2502.02737): how the small model of this notebook
#   was made.
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
