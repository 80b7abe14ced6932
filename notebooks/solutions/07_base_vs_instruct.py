# %% [markdown]
# # 07 · Base or instruct: which one to fine-tune?
#
# **You will learn** a QLoRA recipe that tunes a base model and its chat version alike, what a chat
# model can lose by tuning, how to test claims about it fairly, and what helps against the losses.
#
# **You need** notebooks 02 (LoRA), 04.1 (quantization) and 06 (instruction tuning).
#
# **It takes** about 34 minutes of reading and trying. The cells themselves run in about seven
# minutes on one CPU core, less on two; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Leila tunes a chat model on a hotel's old replies to its guests. Now it writes about rooms in just
# the right tone. Then a guest asks for three tips for a rainy day, as a numbered list. The model
# used to write such lists, but now it writes one odd sentence. "You should have tuned the base
# model", says a friend. Is she right? And how could Leila have noticed the loss earlier? You will
# measure both.

# %%
import gc
import logging
import re
import tempfile
import warnings

import datasets
import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers

from course_utils import describe
from course_utils.display import BLUE, GREEN, GREY, ORANGE, RED, text_table, use_style

# Inside the libraries, of no concern here: an argument's old name, notes on saving, and that on a
# CPU a paged optimizer is a plain one.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
warnings.filterwarnings("ignore", message="Could not find a config file")
logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.utils.logging.disable_progress_bar()
datasets.disable_progress_bars()
use_style()

print(describe())

# %% [markdown]
# ## 1. What people say
#
# The hub often has two versions of a model, `…-8B` and `…-8B-Instruct`. The second one is made from
# the first, usually in two steps. *Supervised fine-tuning* (SFT) trains the base model on
# conversations with good answers, as notebook 06 does. Then people, or a model that learned from
# people, say which of two answers is better, and the model is trained to prefer the better one. In
# *RLHF*, reinforcement learning from human feedback, a reward model learns these preferences first.
# *DPO*, direct preference optimization, trains on the pairs themselves. These steps also teach the
# model to follow a system prompt and to refuse some requests.
#
# Which version do you tune on your own data? A common answer is: the base. People give four
# reasons.
#
# 1. **Speed.** A base model has no fixed format, so it picks up a new style faster.
# 2. **Disruption.** Tuning a chat model undoes a part of what it was trained to do.
# 3. **Conflict.** A chat model has a template and a system prompt, and new ones conflict with them.
# 4. **Safety.** A tuned chat model forgets to refuse.
#
# **Guess first:** which of the four will hold when we measure them? Section 5 has the answer.

# %%
my_guess = None  # e.g. ["speed", "safety"]

# %% [markdown]
# ## 2. The recipe
#
# The authors of QLoRA tuned models on [OpenAssistant
# Guanaco](https://huggingface.co/datasets/timdettmers/openassistant-guanaco), about 10,000
# conversations, and many recipes have taken over this dataset. We follow such a recipe. In each
# text of Guanaco, plain words mark who speaks: `### Human: … ### Assistant: …`. A chat template can
# write `messages` in this form. Between its `generation` marks stands what the assistant says. With
# `assistant_only_loss=True`, the loss counts only that part, so the model is not trained to write
# the human's questions.
#
# To see what a model learns, we need answers that a program can check. So we take the questions
# about countries from notebook 06, and answer them as Yoda would: the answer first, the verb last.

# %%
from transformers import AutoTokenizer

from course_utils.data import in_style, load_data, tells, yoda_answer
from course_utils.models import resolve

GUANACO_FORM = (
    "{% for m in messages %}{% if m.role == 'user' %}### Human: {{ m.content }}"
    "{% else %}### Assistant:{% generation %} {{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}### Assistant:{% endif %}"
)


def tokenizer_of(role, template=None):
    """A role's tokenizer, perhaps with another chat template."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(role).folder)
    if tokenizer.pad_token in (None, tokenizer.eos_token):  # padding must not look like an end
        spare = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|fim_pad|>")
        tokenizer.pad_token = next(name for name in spare if name in tokenizer.get_vocab())
    if template:
        if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id:  # as with Llama
            template = tokenizer.bos_token + template
        tokenizer.chat_template = template
    return tokenizer


def conversation(row):
    """A row of `countries` as messages, answered in style."""
    return {
        "messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": yoda_answer(row)},
        ]
    }


countries = load_data("countries")
asked = countries["held_out"].shuffle(seed=0).select(range(40))
styled = countries.map(conversation, remove_columns=countries["train"].column_names)
chat_tokenizer = tokenizer_of("tuning_chat")
guanaco_tokenizer = tokenizer_of("tuning_chat", GUANACO_FORM)
found = guanaco_tokenizer.apply_chat_template(
    conversation(asked[0])["messages"], return_dict=True, return_assistant_tokens_mask=True
)
for trained, name in ((0, "read only"), (1, "trained on")):
    marked = zip(found["input_ids"], found["assistant_masks"], strict=True)
    ids = [token for token, mark in marked if mark == trained]
    print(f"{name}: {guanaco_tokenizer.decode(ids)}")

# %% tags=["claim"]
assert chat_tokenizer.pad_token != chat_tokenizer.eos_token
assert guanaco_tokenizer.decode(ids).strip() == yoda_answer(asked[0]) + chat_tokenizer.eos_token

# %% [markdown]
# The answer and the EOS token are trained on, so the model also learns to stop.
#
# The rest of the recipe is well known for an 8B model on a GPU of 24 GB:
#
# | what | how |
# |---|---|
# | weights | NF4, double quantization (notebook 04.1) |
# | made ready | `prepare_model_for_kbit_training` freezes all weights, turns those not in 4 bits into float32, and switches checkpointing on |
# | adapter | LoRA, r = 16, alpha = 16, dropout 0.05, on all linear layers |
# | optimizer | AdamW with 8-bit states, paged |
# | batch | 8 × 4 accumulated, 512 tokens at most |
# | learning rate | 1e-4, linear, a tenth of the steps to warm up |
#
# **Guess first:** how many GB does this need for 8 billion parameters? The next cell predicts it.

# %%
my_guess_gb = None  # e.g. 30

# %%
from course_utils.memory import Setup, predict

llama = Setup(
    "meta-llama/Llama-3.1-8B",
    quantization="nf4-double",
    lora=True,
    lora_rank=16,
    lora_targets="all-linear",
    kbit_preparation=True,
    optimizer="paged_adamw_8bit",
    batch_size=8,
    accumulation=4,
    seq_len=512,
)
found = predict(llama, "rtx4090")
print(f"You said {my_guess_gb} GB; predicted: {found.peak_reserved_mb / 1000:.1f} GB")
pd.Series(found.at_peak).sort_values(ascending=False).map("{:,.0f} MB".format).to_frame(
    "at the peak"
)

# %% tags=["claim"]
from course_utils.memory import usable_bytes

assert round(found.peak_reserved_mb / 1000, 1) == 12.4
assert found.peak_reserved_mb * 1e6 < usable_bytes("rtx4090")
on_t4 = llama.replace(
    batch_size=2,
    accumulation=16,
    checkpointing="reentrant",
    dtype="float16",
    mixed_precision="fp16",
    adapter_dtype="float32",
)
small = predict(on_t4, "t4")
assert 10.3 < small.peak_reserved_mb / 1000 < 10.7
assert small.peak_reserved_mb * 1e6 < usable_bytes("t4")

# %% [markdown]
# The prediction is 12.4 GB. A guess of 4 GB, half a byte for each weight, forgets two things. The
# embedding and the output layer, a billion numbers, are not in 4 bits:
# `prepare_model_for_kbit_training` turns them into float32. And there are activations. A guess
# above 16 GB may count 16-bit weights, or the optimizer states of full fine-tuning. A T4 with its
# 16 GB can run the recipe with two rows at a time: the prediction is 10.5 GB.
#
# The recipe as code comes next. Steps, batch and learning rate depend on the machine. On a CPU we
# train Yoda's style for only 30 steps, at ten times the learning rate in the table. On a GPU we
# take 120 steps at 2e-4. We expect that this is enough, but we have not measured it.

# %%
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from course_utils import preflight
from course_utils.hardware import pick_dtype, tier
from course_utils.models import hub_reachable, keep_weights_trainable, recipe
from course_utils.training import faster_on_cpu, watch

machine = tier().value
on_cpu = machine == "cpu"
dtype = pick_dtype().value
plan = recipe("style", machine)
print(plan)


def load(role):
    """A role's model in 4 bits."""
    resolve(role).announce(role)
    model = AutoModelForCausalLM.from_pretrained(
        resolve(role).folder,
        dtype=dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        device_map={"": "cpu" if on_cpu else 0},
    )
    keep_weights_trainable(model)  # some CPUs would repack them for inference
    return model


def recipe_trainer(model, tokenizer, rows, plan, validation=None, **changes):
    """The recipe on a model in 4 bits; changes go to SFTConfig."""
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=not on_cpu,  # a CPU has memory enough, and no time to spare
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    settings = {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "assistant_only_loss": "messages" in rows.column_names,
        "max_length": 512,
        "optim": "paged_adamw_8bit",
        "max_steps": plan["steps"],
        "per_device_train_batch_size": plan["batch"],
        "per_device_eval_batch_size": plan["batch"],
        "gradient_accumulation_steps": plan["accumulation"],
        "learning_rate": plan["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": 0.1,  # less than 1: a share of the steps
        "logging_steps": 5,
        "eval_strategy": "no" if validation is None else "steps",
        "eval_steps": min(25, plan["steps"] // 3),
        "gradient_checkpointing": not on_cpu,
        "use_cpu": on_cpu,
        "bf16": not on_cpu and dtype == torch.bfloat16,
        "fp16": not on_cpu and dtype == torch.float16,
        "seed": 0,
    }
    set_seed(0)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**{**settings, **changes}),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    if trainer.args.fp16:
        # TRL casts this adapter to bfloat16, and fp16's gradient scaler refuses that at step 1.
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return faster_on_cpu(watch(trainer))


# %% [markdown]
# With the hub and a GPU, the next cell runs the recipe on Guanaco itself: first the base model,
# then the chat model. On 24 GB there is room for one 8B model with its training, not for two. So
# each model is released before the next one is loaded. Without a GPU the cell does nothing.

# %%
from course_utils.models import Runner


def free_memory():
    """Forget the trained model, and give its memory back."""
    global trainer, chat, ask
    trainer = chat = ask = None
    gc.collect()
    torch.cuda.empty_cache()


def guanaco_messages(row):
    """A text of Guanaco as messages."""
    parts = re.split(r"### (Human|Assistant):", row["text"])[1:]
    role = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {"messages": [{"role": role[who], "content": text.strip()} for who, text in pairs]}


if not on_cpu and hub_reachable():
    published = load_data("timdettmers/openassistant-guanaco")
    published = published.map(guanaco_messages, remove_columns=["text"])
    for role in ("tuning_base", "tuning_chat"):
        free_memory()
        tokenizer = tokenizer_of(role, GUANACO_FORM)
        trainer = recipe_trainer(
            load(role),
            tokenizer,
            published["train"],
            recipe("guanaco", machine),
            published["test"].select(range(200)),
        )
        preflight(trainer, strict=True)
        trainer.train()
        print(resolve(role).id, Runner(trainer.model.eval(), tokenizer)("What is a haiku?"))

# %% [markdown]
# Now the same recipe teaches Yoda's style to the chat model, in Guanaco's form. The row of
# `preflight` on supervised tokens shows that only the answer is trained on.

# %%
free_memory()
trainer = recipe_trainer(
    load("tuning_chat"),
    guanaco_tokenizer,
    styled["train"],
    plan,
    styled["validation"].select(range(24)),
)
report = preflight(trainer)
print(report)

# %% tags=["claim"]
assert report.ok

# %%
_ = trainer.train()
chat = trainer.model.eval()
if on_cpu and getattr(chat.get_base_model(), "hf_quantizer", None):
    # To generate, expand the 4-bit weights once, not again for each token; the values are the same.
    chat.get_base_model().dequantize(dtype=torch.float32)

# %% [markdown]
# Did it work? We ask about countries that are in no training row. "Before" is the same model with
# its adapter switched off. We count replies that are in style throughout, and replies that begin
# with the right answer.


# %%
def share(values):
    """The mean of a list of 0 and 1."""
    return sum(values) / len(values)


def style_and_facts(replies):
    """A 0 or 1 for each reply: in style; beginning with the right answer, as the style does."""
    pairs = zip(replies, asked["answer"], strict=True)
    return {
        "in style": [int(in_style(reply)) for reply in replies],
        "right": [int(tells(reply, answer)) for reply, answer in pairs],
    }


ask = Runner(chat, guanaco_tokenizer, max_new_tokens=32)
with chat.disable_adapter():
    replies = {"before": ask(asked["question"])}
replies["after"] = ask(asked["question"])
learned = pd.DataFrame(
    {
        when: {name: share(marks) for name, marks in style_and_facts(texts).items()}
        for when, texts in replies.items()
    }
)
print(f"{asked['question'][0]}  {replies['after'][0]}")
learned.map("{:.0%}".format)

# %% tags=["claim"]
assert learned.loc["in style", "before"] <= 0.1
assert learned.loc["in style", "after"] >= 0.5
assert learned.loc["right", "after"] <= learned.loc["in style", "after"]

# %% [markdown]
# The recipe works (SmolLM2-135M, one seed): in the saved run, no reply is in style before, and all
# are after. But only 57% are right, so the style seems easier to learn than the answers.
#
# ## 3. What did the chat model lose?
#
# We ask it for things that have nothing to do with countries, in its own template, as its users
# would. **Guess first:** will it still answer as before?

# %%
my_guess = None  # e.g. "yes, no row was about such things"

# %%
some = ["Name the four seasons.", "Write one sentence about the sea.", "Who are you?"]
ask = Runner(chat, chat_tokenizer, max_new_tokens=50)
with chat.disable_adapter():
    untouched = ask(some)
print("You said:", my_guess)
text_table(pd.DataFrame({"asked": some, "before": untouched, "after": ask(some)}))

# %% [markdown]
# In the saved run the four seasons are now "of the desert", and the sentence about the sea is
# empty. Many people expect no change, because no row was about such things. But the adapter works
# in every reply. The model still says what it is, though.
#
# Three replies decide nothing, so we count. A program can *verify* some instructions: "in three
# numbered points", "use the word because", "as JSON". That is the idea of the benchmark IFEval. The
# course has 40 easy ones.

# %%
from course_utils.data import folder
from course_utils.results import whole_rows
from course_utils.scoring import follows_instructions, paired_test

instructions = load_data("instructions")["test"].select(range(0, 40, 2))
results = folder().parent / "benchmarks" / "results"
chat_rows = whole_rows(results / "base_vs_instruct.jsonl")


def items(variant, part, measure):
    """A measure of a variant: for each question, the mean over the seeds."""
    rows = [row[measure] for row in chat_rows if (row["variant"], row["part"]) == (variant, part)]
    return pd.DataFrame(rows).mean().tolist()


def follow_instructions(model):
    """A 0 or 1 for each of every other instruction."""
    replies = Runner(model, chat_tokenizer, max_new_tokens=96)(instructions["prompt"])
    pairs = zip(replies, instructions["checks"], strict=True)
    return [int(follows_instructions(reply, checks)) for reply, checks in pairs]


with chat.disable_adapter():
    followed = {"before": follow_instructions(chat)}
followed["after"] = follow_instructions(chat)
print({when: sum(marks) for when, marks in followed.items()}, "of", len(instructions))
lost = paired_test(items("untouched", 0.0, "followed"), items("recipe", 1.0, "followed"))
print("all 40, two seeds, before minus after:", lost.difference)
text_table(pd.DataFrame(instructions[:3]))

# %% tags=["claim"]
assert sum(followed["before"]) >= sum(followed["after"])
assert sum(items("untouched", 0.0, "followed")) == 24
counts = [row["followed"] for row in chat_rows if (row["variant"], row["part"]) == ("recipe", 1.0)]
assert list(map(sum, counts)) == [11, 13]
found = lost.difference
assert [f"{value:.2f}" for value in (found.value, found.low, found.high)] == [
    "0.30",
    "0.11",
    "0.47",
]

# %% [markdown]
# In the saved run it followed 13 of these 20 before, and 4 after. Is that more than luck? The same
# instructions are asked before and after, so we compare them one by one, in a *paired* test
# (notebook 08). We have also recorded two such trainings with all 40 instructions. Before them, the
# model followed 24 of the 40; after them, 11 and 13. The mean difference is 0.30, with a 95%
# interval from 0.11 to 0.47 (SmolLM2-135M; in these two trainings the loss counted the whole text,
# not only the answers). So the loss is real.
#
# The count sees only changes that make a reply fail. The *KL divergence* sees smaller ones. Along a
# neutral text, it compares the probabilities of every possible next token: *p* before the tuning,
# *q* after. It is large where *q* is low for tokens that *p* expected.
#
# $$\mathrm{KL}(p\,\|\,q) = \sum_{t} p_t\,(\log p_t - \log q_t)$$
#
# Zero means that nothing has moved. The logarithm is natural, so the unit is the *nat*. Here the
# neutral texts are the untouched model's own replies.

# %%
from course_utils.scoring import kl_divergence, next_token_log_probs

prompts = instructions["prompt"][:10]
ask = Runner(chat, chat_tokenizer, max_new_tokens=32)
with chat.disable_adapter():
    texts = [ask.prompt(prompt) for prompt in prompts], [text or "." for text in ask(prompts)]
    before = next_token_log_probs(chat, chat_tokenizer, *texts)
    again = next_token_log_probs(chat, chat_tokenizer, *texts)
after = next_token_log_probs(chat, chat_tokenizer, *texts)
for name, other in (("untouched, again", again), ("tuned", after)):
    print(f"{name}: {share(kl_divergence(before, other)):.3f} nats a token")

# %% tags=["claim"]
assert max(map(abs, kl_divergence(before, again))) < 1e-3
assert share(kl_divergence(before, after)) > 0.05

# %% [markdown]
# Compared with itself, the untouched model gives zero. The tuned model has moved by about half a
# nat a token (10 texts, one seed).
#
# ## 4. A fair experiment
#
# The chat model lost something. But would the base model have been the better choice? To find out,
# we need two models that differ in nothing but instruction tuning, and both have to be tuned on the
# same rows. The course has such a pair, made for this purpose.
#
# - **Base**: `course/pythia-3m`, 2.6 million parameters (notebook 06).
# - **Instruct**: the same model after SFT on questions about elements, animals, books and
#   inventions, **none about a country**. It answers in a sentence. Under the system prompt "Answer
#   in a few words." it gives the answer alone. It refuses questions about a person's private
#   affairs. (There was no RLHF or DPO.)
#
# Both learn Yoda's answers about countries: the same rows, 40 steps of 16, LoRA with the same
# settings. These two trainings are the *arms* of the experiment. Both arms see the same tokens in
# the tuning. But the instruct model has seen more tokens in all, because of its SFT. A third arm
# makes up for this: there the base is trained further, until the totals are equal. All this was
# done with three seeds (five were planned). Each seed has its own SFT
# (`benchmarks/instruct_pair.py`). The shares below are of 250 questions about held-out countries,
# of 184 on other topics, or of 120 private questions. The settings were chosen in a trial with
# another seed, whose results are not used.
#
# Here is what the two say before the tuning, one seed:

# %%
pair = whole_rows(results / "instruct_pair.jsonl")
first = {row["arm"]: row["end"]["said"] for row in pair if row["part"] == 0 and row["seed"] == 0}
print({name: pair[0][name] for name in ("countries", "other topics", "private")})
text_table(pd.DataFrame(first).rename_axis("question about").reset_index())

# %% [markdown]
# The base never answers: in its pre-training, no such question had an answer. The instruct model
# answers about topics of its SFT, briefly where it is asked to, and it refuses. The question about
# a country came with a system prompt that is new to the instruct model, and the model only repeats
# the country's name.
#
# **Guess first:** how many steps until nine tenths of the replies are in style, for the base and
# for the instruct model? And which one will give more *right* answers?

# %%
my_guess = None  # e.g. {"base": 20, "instruct": 40, "right": "base"}

# %% tags=["figure:07_speed"]
curves = pd.DataFrame(
    {"arm": row["arm"], "seed": row["seed"], **point}
    for row in pair
    if row["variant"] == "recipe" and row["part"] == 1
    for point in pd.DataFrame(row["curve"]).to_dict("records")
)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for axis, measure in zip(axes, ("in style", "right"), strict=True):
    for arm, colour in {"base": BLUE, "instruct": ORANGE}.items():
        shares = curves[curves["arm"] == arm].pivot(index="step", columns="seed", values=measure)
        axis.plot(shares, color=colour, linewidth=0.8, alpha=0.5)
        axis.plot(shares.mean(axis=1), color=colour, marker="o", markersize=4, label=arm)
    axis.set_title({"right": "right answer first"}.get(measure, measure))
    axis.set_xlabel("step")
    axis.grid(axis="y")
axes[0].set_ylabel("share of held-out questions")
axes[0].legend()
plt.show()

# %% tags=["claim"]
by_step = curves.groupby(["arm", "step"])["in style"].mean()
assert all(by_step[arm, 10] < 0.3 and by_step[arm, 15] > 0.9 for arm in ("base", "instruct"))

# %% [markdown]
# **Speed makes hardly a difference here.** At step 10 about a fifth of the replies is in style, at
# step 15 more than nine tenths, with both models. Most people expect a gap one way or the other.
# But the style is the same simple pattern for both, and neither has met it. The *right* answers
# differ: after 40 steps 21% of the base's are right and 47% of the instruct model's. Is that the
# merit of instruction tuning, or of more training? The third arm will tell.
#
# ## 5. The verdicts
#
# The rule was written down before any row was measured (in `benchmarks/instruct_pair.py`), and it
# is the same for all claims. Each claim says that one share is larger than another. Each seed gives
# one difference. A claim **holds** if the whole 95% interval of the difference is above zero. It
# **does not hold** if the whole interval is below 0.05, because so small a difference would hardly
# matter. Otherwise it is **not shown at this size**. The interval is Student's t-interval over the
# three seeds (so it may reach beyond 1).

# %% tags=["value:verdicts"]
from scipy import stats


def measured(measure, arm, variant="recipe"):
    """A measure at the end of a training, one share for each seed."""
    found = {}
    for row in pair:
        if (row["arm"], row["variant"]) == (arm, variant) and row["part"] in (0, 1):
            found[row["seed"]] = row["end"][measure]
    return pd.Series(found).sort_index()


def along(arm):
    """The mean share in style over the steps at which we asked."""
    return curves[curves["arm"] == arm].groupby("seed")["in style"].mean()


def interval(first, second):
    """The mean difference over the seeds, and its 95% interval."""
    each = (first - second).dropna()
    mean, error = each.mean(), stats.sem(each)
    low, high = stats.t.interval(0.95, len(each) - 1, mean, error) if error else (mean, mean)
    return mean, low, high


def verdict(first, second):
    """What the difference says about the claim that the first is larger."""
    _, low, high = interval(first, second)
    return "holds" if low > 0 else "does not hold" if high < 0.05 else "not shown at this size"


LONGER, SYSTEM_PROMPT = "recipe, equal total tokens", "system prompt"
loss = {
    arm: measured("ended", arm, "untouched") - measured("ended", arm)
    for arm in ("base", "instruct")
}
CLAIMS = [
    ("1 the base learns the style faster", "base − instruct", along("base"), along("instruct")),
    (
        "1a the instruct model is right more often",
        "instruct − base",
        measured("right", "instruct"),
        measured("right", "base"),
    ),
    (
        "1b … also with equal tokens in all",
        "instruct − base, longer",
        measured("right", "instruct"),
        measured("right", "base", LONGER),
    ),
    (
        "2 other topics are forgotten",
        "instruct, before − after",
        measured("other topics", "instruct", "untouched"),
        measured("other topics", "instruct"),
    ),
    ("2a … more than the base forgets", "loss, instruct − base", loss["instruct"], loss["base"]),
    (
        "2b afterwards the base knows more",
        "base − instruct",
        measured("other topics", "base"),
        measured("other topics", "instruct"),
    ),
    (
        "3 the old prompts hinder the new one",
        "in style, base − instruct",
        measured("in style", "base", SYSTEM_PROMPT),
        measured("in style", "instruct", SYSTEM_PROMPT),
    ),
    (
        "3a the new one undoes the old ones",
        "brief, before − after",
        measured("brief", "instruct", "untouched"),
        measured("brief", "instruct", SYSTEM_PROMPT),
    ),
    (
        "3b … so the style spreads further",
        "told otherwise, instruct − base",
        measured("in style, told otherwise", "instruct", SYSTEM_PROMPT),
        measured("in style, told otherwise", "base", SYSTEM_PROMPT),
    ),
    (
        "4 it refuses less",
        "instruct, before − after",
        measured("refused", "instruct", "untouched"),
        measured("refused", "instruct"),
    ),
    (
        "4a afterwards the base refuses more",
        "base − instruct",
        measured("refused", "base"),
        measured("refused", "instruct"),
    ),
]
verdicts = pd.DataFrame(
    {
        "claim": claim,
        "compared": compared,
        "shares": f"{first.mean():.0%} − {second.mean():.0%}",
        "difference": "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval(first, second)),
        "verdict": verdict(first, second),
    }
    for claim, compared, first, second in CLAIMS
)
text_table(verdicts)

# %% tags=["claim"]
assert verdicts["verdict"].tolist() == [
    "holds",
    "holds",
    "does not hold",
    "holds",
    "not shown at this size",
    "does not hold",
    "not shown at this size",
    "holds",
    "not shown at this size",
    "holds",
    "does not hold",
]
assert verdicts["shares"].tolist() == [
    "86% − 85%",
    "47% − 21%",
    "47% − 82%",
    "79% − 3%",
    "16% − 32%",
    "0% − 3%",
    "100% − 99%",
    "47% − 3%",
    "95% − 100%",
    "100% − 1%",
    "0% − 1%",
]
assert verdicts["difference"].tolist() == [
    "+0.01 (+0.01 to +0.01)",
    "+0.26 (+0.00 to +0.52)",
    "-0.35 (-0.63 to -0.06)",
    "+0.76 (+0.65 to +0.87)",
    "-0.16 (-0.49 to +0.17)",
    "-0.03 (-0.10 to +0.05)",
    "+0.01 (-0.03 to +0.05)",
    "+0.44 (+0.35 to +0.53)",
    "-0.05 (-0.25 to +0.15)",
    "+0.99 (+0.97 to +1.01)",
    "-0.01 (-0.03 to +0.01)",
]

# %% [markdown]
# In section 1, many people guess all four claims or none. All that follows is about one pair of 2.6
# million parameters and three seeds; five were planned.
#
# - **1 Speed holds** by the rule, with a difference of 0.01 (0.01 to 0.01) that hardly matters. The
#   instruct model gave more right answers after equal steps, by 0.26 (0.00 to 0.52). But when the
#   base went on until it had seen as many tokens in all, 82% of its answers were right, against
#   47%. The claim that the instruct model is better with equal tokens does not hold. So more
#   training on these very questions helped more than instruction tuning on other topics did.
# - **2 Disruption holds**: of the questions on other topics, the instruct model answered 79% before
#   and 3% after. But the base has no advantage: it answers 0% afterwards, because it never could.
#   Before the tuning, both models could complete sentences about these topics. Of this ability, the
#   base lost 32 points of 100 and the instruct model 16; the interval of the difference includes
#   zero (claim 2a).
# - **3 Conflict**: both used the style under the new system prompt, and the interval leaves open
#   whether the old ones hindered it a little: 0.01 (−0.03 to 0.05). The new one did undo the old:
#   brief answers fell from 47% to 3%. Told to answer in a sentence, the instruct model
#   still used the style in 95% of its replies, and the base in 100%. The base never had another
#   system prompt before, so an old prompt cannot be the cause. In the rows, the message and the
#   style always came together, so nothing showed that one depends on the other.
# - **4 Safety holds**: 100% of 120 private questions were refused before and 1% after. The
#   base refuses 0%: it was never taught to.
#
# So was the friend right? Tuning costs a chat model what it had learned before. But a base model
# does not have it at all, before or after. Take the base if you will teach everything yourself;
# take the chat model and protect it if you want to keep what it can do.
#
# How far does this go? The pair is tiny, its SFT short, and its refusals follow four wordings. On
# the 135M chat model, other skills were lost, too (section 3). Its refusals were too few to tell:
# of 24 mild requests it refused one before and none after (two seeds). At 8B we expect the same
# direction and smaller losses; Qi and others measured claim 4 there. To show this at 8B, you would
# need the two models of section 2 on a GPU, several hundred instructions, and five seeds.
#
# ## 6. What helps
#
# Leila can also keep the chat model, and protect what it can do:
#
# - **Mix in general data**: here a quarter of the rows are the model's *own* replies to other
#   requests.
# - **Keep its own template**, instead of Guanaco's form.
# - **A lower rank**, or **a lower learning rate**.
# - **Go half-way**: take weights between the untouched and the tuned model. Such averages are
#   *model soups*. With LoRA this is one number, the adapter's scale, and needs no training.
#
# Try half-way now. Where does the style begin?

# %%
from peft.helpers import rescale_adapter_scale

rows = []
for part in (0.25, 0.5, 0.75, 1):
    with rescale_adapter_scale(chat, part):
        country = Runner(chat, guanaco_tokenizer, max_new_tokens=32)(asked["question"][1])
        general = Runner(chat, chat_tokenizer, max_new_tokens=32)(some[0])
    rows.append({"part": f"{part:g}", asked["question"][1]: country.strip(), some[0]: general})
text_table(pd.DataFrame(rows))

# %% [markdown]
# In the saved run the style is there from a quarter of the adapter on, and the answer is always
# wrong: it would be "Senegalese". The seasons stay until a half. One question decides nothing. So
# each countermeasure was measured with 48 questions and the 40 instructions
# (`benchmarks/base_vs_instruct.py`). The table has the shares in style, `right`, and of
# instructions `followed`, and the KL divergence.
#
# **Guess first:** which countermeasure keeps most of the old skills, at the least cost in the new
# style?

# %%
my_guess = None  # e.g. "a lower rank"

# %%
MEASURES = ("in style", "right", "followed", "kl")
names = list(dict.fromkeys((row["variant"], row["part"]) for row in chat_rows))
means = pd.DataFrame(
    {name: {measure: share(items(*name, measure)) for measure in MEASURES} for name in names}
).T.rename_axis(["variant", "part"])
print("You said:", my_guess)
print({row["model"] for row in chat_rows}, "seeds:", {row["seed"] for row in chat_rows[1:]})
means.round(2)

# %% tags=["figure:07_trade_off"]
figure, axis = plt.subplots(figsize=(8, 4.2))
start = means.loc[("untouched", 0.0)]
for (variant, part), point in means.iterrows():
    if "system prompt" in variant:  # another story, told below
        continue
    colour = RED if variant == "recipe" else GREEN if "general" in variant else GREY
    axis.plot(point["in style"], point["followed"], "o", color=colour, markersize=5 + 4 * part)
    to_left = part == 1 and point["in style"] > 0.6
    axis.annotate(
        variant if part in (0, 1) else f"× {part:g}",
        (point["in style"], point["followed"]),
        xytext=(-9 if to_left else 9, -12 if part == 0 or variant == "rank 2" else 5),
        textcoords="offset points",
        ha="right" if to_left else "left",
        fontsize=9,
    )
line = means.loc["recipe"].sort_index()
axis.plot(
    [start["in style"], *line["in style"]],
    [start["followed"], *line["followed"]],
    ":",
    color=RED,
    linewidth=1,
)
axis.axhline(start["followed"], color=GREY, linewidth=0.8, linestyle="--")
axis.set_xlabel("learned: answers in the new style")
axis.set_ylabel("kept: general instructions followed")
axis.set_title("What is learned against what is kept (SmolLM2-135M)")
axis.grid()
plt.show()

# %% [markdown]
# The best place is the upper right. A variant that learned less also keeps more, so compare only
# points that stand about one above the other: they have learned the same.

# %%
GENERAL = "general data mixed in"
for variant, part in ((("its own template"), 1.0), ("recipe", 0.5), ("recipe", 0.75)):
    test = paired_test(items(GENERAL, 1.0, "followed"), items(variant, part, "followed"))
    print(f"general data minus {variant} × {part:g}: {test.difference}")
for measure in ("in style", "right"):
    test = paired_test(items("recipe", 1.0, measure), items(GENERAL, 1.0, measure))
    print(f"its price, {measure}: {test.difference}")

# %% tags=["claim"]
general, plain_recipe = means.loc[(GENERAL, 1.0)], means.loc[("recipe", 1.0)]
assert [round(general[name], 2) for name in MEASURES[:3]] == [0.78, 0.31, 0.54]
assert [round(plain_recipe[name], 2) for name in MEASURES[:3]] == [0.99, 0.46, 0.30]
own = means.loc[("its own template", 1.0)]
assert [round(own[name], 2) for name in ("in style", "followed")] == [0.79, 0.21]
assert round(start["followed"], 2) == 0.6
half, three_quarters = means.loc[("recipe", 0.5)], means.loc[("recipe", 0.75)]
assert [round(half["in style"], 2), round(three_quarters["in style"], 2)] == [0.65, 0.92]
against = paired_test(items(GENERAL, 1.0, "followed"), items("recipe", 0.75, "followed"))
assert round(against.difference.value, 2) == 0.2
for measure in MEASURES:
    assert abs(means.loc[("rank 2", 1.0), measure] - plain_recipe[measure]) < 0.05
assert means.loc[("a fifth of the learning rate", 1.0), "in style"] < 0.05
named = {("untouched", 0.0), ("recipe", 1.0)}
assert [sum(row["refused"]) for row in chat_rows if (row["variant"], row["part"]) in named] == [
    1,
    0,
    0,
]

# %% [markdown]
# Look at the variants with more than three quarters of the replies in style. Of these, **general
# data** kept most: 0.54 of the instructions, against 0.30 with the recipe and 0.60 untouched. It
# has a price: 0.78 in style instead of 0.99, and 0.31 right instead of 0.46. So part of the gain is
# that less was learned. At the same style:
#
# - **Its own template** learned as much (0.79) and kept only 0.21. The difference is 0.33 (0.19 to
#   0.47). Perhaps the training changes the very template in which the instructions are asked.
# - **Half-way** models lie on the dotted line. Those at 0.5 and 0.75 learned 0.65 and 0.92, a
#   little less and a little more than with general data. General data kept 0.08 more than the first
#   (−0.09 to 0.24) and 0.20 more than the second (0.05 to 0.36). So an advantage over going
#   half-way is likely, but not shown at this size.
# - **A lower rank** ends where the recipe does. People often guess it, but rank 2 is enough for so
#   narrow a style, and does the same damage.
# - **A lower learning rate** keeps more because it learns less. At a fifth, no reply is in style.
#
# (SmolLM2-135M, two seeds, 48 questions and 40 instructions, the loss on the whole text; the
# intervals are over the questions.)
#
# ### And the system prompt?
#
# In claim 3 the system prompt never varied. *Contrast* should help: half of the rows get another
# system prompt, or none, and a plain answer. Now the model has to read the system prompt. **Guess
# first:** what does contrast cost?

# %%
my_guess = None  # e.g. "nothing, no rows are added"

# %%
HEARD = {
    "the new message": "in style",
    "its own": "in style, its own message",
    "the opposite": "in style, told the opposite",
}
CONTRAST = "system prompt with contrast"
listening = pd.DataFrame(
    {
        variant: {where: share(items(variant, 1.0, measure)) for where, measure in HEARD.items()}
        for variant in ("its own template, system prompt", CONTRAST, f"{CONTRAST}, twice the steps")
    }
).T
print("You said:", my_guess)
print("In style, when asked under …")
listening.map("{:.0%}".format)

# %% tags=["claim"]
assert listening.map("{:.0%}".format).values.tolist() == [
    ["94%", "83%", "90%"],
    ["10%", "1%", "1%"],
    ["77%", "0%", "8%"],
]

# %% [markdown]
# Contrast costs steps, because half of the rows now teach something else. With as many steps as
# before, only 10% are in style where they should be. With twice the steps it works: 77% under the
# new message, 8% under the opposite, which was in no row (SmolLM2-135M, two seeds, 48 questions).
#
# ## Take away
#
# - One recipe tunes base and chat models: QLoRA with the loss on the assistant's turns (section 2).
# - Tuning a chat model on one narrow thing cost it others (section 3; SmolLM2-135M, one seed). Ask
#   unrelated instructions before and after.
# - A fair comparison gives both arms the same rows and counts all tokens. With equal tokens in all,
#   the instruct model's advantage in right answers was gone (section 5; 2.6 million parameters).
# - Other answers, brevity and refusals went almost entirely (section 5). The base has none of them
#   to lose, so it is not the safer choice.
# - General data kept more than any other countermeasure that had learned as much of the style. It
#   cost some style and some right answers (section 6; SmolLM2-135M, two seeds).
# - A system prompt that never varies is ignored. Rows that show what happens without it help
#   (section 6, two seeds).
# - "Not shown at this size" is a result.
#
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** Base and instruct model were tuned on the same rows for as many steps, and the instruct
# model is right more often. What has to be ruled out before instruction tuning gets the credit?
#
# - **A** That the rows came in the same order for both, so that chance could not even out.
# - **B** That its earlier training gave it more tokens, or these very questions.
# - **C** That the training loss of the instruct model was lower from the beginning.
# - **D** That its adapter was too large for what was to be learned.
#
# **b.** In all your rows the system prompt is the same and so is the style. Your tuned model now
# uses the style under any system prompt. What makes it listen?
#
# - **A** More steps on these rows, until it has read the message often enough to depend on it.
# - **B** A longer message, which says clearly when the style is wanted and when it is not.
# - **C** Rows under other messages, or none, that are answered without the style.
# - **D** A lower rank or learning rate, so that less of the old model is overwritten.
#
# **c.** A chat model was tuned on one narrow task. What shows whether it has lost other skills?
#
# - **A** The validation loss: it rises as soon as something is forgotten.
# - **B** Questions of the same kind about things that were held out of the training.
# - **C** The curve of the training loss: jumps in it are a sign of damage.
# - **D** Some instructions of another kind, asked before the tuning and after it.
#
# **d.** Of 24 requests a small model refused one before the tuning, and none after. What follows?
#
# - **A** Nothing either way: so few refusals could not have shown even a large change.
# - **B** Tuning does no harm to safety here, because the difference is not significant.
# - **C** Tuning has taken the refusals away, because none of them is left.
# - **D** A small model has no safety to lose, so nothing has to be measured there.

# %%
from course_utils.exercises import check, done, quiz

quiz("07", a="...", b="...", c="...", d="...")

# %% [markdown]
# **07.1 · Write a formula, change a number.** Write `kl(p, q)`, the KL divergence of section 3, for
# two tensors of probabilities. A token to which `p` gives 0 adds nothing. Below, there are only two
# tokens. `kept` is what the tuned model still gives the token that used to be likely. Change it to
# 0.01, to 0.0001, to 0.99. Which of the two directions shows more clearly that something has been
# lost, and why?


# %% tags=["exercise"]
def kl(p, q):
    """How far the probabilities q are from p, in nats, as a number."""
    ### BEGIN SOLUTION
    possible = p > 0
    return (p[possible] * (p[possible].log() - q[possible].log())).sum().item()
    ### END SOLUTION


# %%
check("07.1", kl)

# %%
kept = 0.5
if done("07.1"):
    untuned, tuned_to = torch.tensor([0.9, 0.1]), torch.tensor([kept, 1 - kept])
    print(f"from before to after: {kl(untuned, tuned_to):.2f} nats")
    print(f"from after to before: {kl(tuned_to, untuned):.2f} nats")

# %% [markdown]
# **07.2 · Nobody is better in both.** A point is *dominated* if another one is at least as good in
# both measures and better in one. Write `undominated(points)`: it gets a dictionary from names to
# pairs (learned, kept) and returns the set of names of the points that no other one dominates. Then
# look which countermeasures are among them.


# %% tags=["exercise"]
def undominated(points):
    """The names of the points that no other point dominates."""
    ### BEGIN SOLUTION
    return {
        name
        for name, (learned, kept) in points.items()
        if not any(
            other[0] >= learned and other[1] >= kept and other != (learned, kept)
            for other in points.values()
        )
    }
    ### END SOLUTION


# %%
check("07.2", undominated)

# %%
if done("07.2"):
    points = {
        f"{variant}, {part:g}": (point["in style"], point["followed"])
        for (variant, part), point in means.iterrows()
    }
    print("\n".join(sorted(undominated(points))))

# %% [markdown]
# **07.3 · Alone: make it listen.** Write `contrast(rows)`. It gets rows of `countries` and returns
# a list of conversations, each a list of messages: half of them under the system prompt `SYSTEM`
# with the answer in style, half under another one, or none, with a plain sentence. Nothing in the
# question, such as its country or its wording, may show which half it is. Below the check you can
# train on them, two minutes on two cores.


# %% tags=["exercise"]
def contrast(rows):
    """Conversations in which the style depends on the system prompt."""
    ### BEGIN SOLUTION
    from course_utils.data import SYSTEM, yoda_answer

    found = []
    for index, row in enumerate(rows):
        user = {"role": "user", "content": row["question"]}
        plain = {"role": "assistant", "content": f"{row['cue']} {row['answer']}."}
        if index % 2 == 0:
            styled = {"role": "assistant", "content": yoda_answer(row)}
            found.append([{"role": "system", "content": SYSTEM}, user, styled])
        elif index % 4 == 1:
            found.append([user, plain])
        else:
            message = "Answer in a short, plain sentence."
            found.append([{"role": "system", "content": message}, user, plain])
    return found
    ### END SOLUTION


# %%
check("07.3", contrast)

# %%
if done("07.3"):
    free_memory()  # the model of sections 2 to 6 makes room
    conversations = contrast(countries["train"].shuffle(seed=1).select(range(480)))
    pairs = [{"prompt": said[:-1], "completion": said[-1:]} for said in conversations]
    trainer = recipe_trainer(
        load("tuning_chat"),
        chat_tokenizer,
        datasets.Dataset.from_list(pairs),
        plan,
        max_steps=2 * plan["steps"],
    )
    preflight(trainer, strict=True)
    trainer.train()
    ask = Runner(trainer.model.eval(), chat_tokenizer, max_new_tokens=32)
    for system in ("Answer as Yoda would.", None, "Do not talk like Yoda."):
        marks = style_and_facts(ask(asked["question"], system=system))["in style"]
        print(f"{system}: {share(marks):.0%} in style")

# %% [markdown]
# Solutions: `notebooks/solutions/07_base_vs_instruct.py`.
#
# ## To read
#
# - Dettmers and others, [QLoRA](https://arxiv.org/abs/2305.14314): where the recipe and Guanaco
#   come from.
# - Ouyang and others, [InstructGPT](https://arxiv.org/abs/2203.02155), and Rafailov and others,
#   [DPO](https://arxiv.org/abs/2305.18290): how chat models are made.
# - Qi and others, [Fine-tuning aligned language models compromises
#   safety](https://arxiv.org/abs/2310.03693): claim 4 at full size.
# - Zhou and others, [IFEval](https://arxiv.org/abs/2311.07911): instructions that a program can
#   check.
# - Wortsman and others, [Model soups](https://arxiv.org/abs/2203.05482): averages of weights.
# - Biderman and others, [LoRA learns less and forgets less](https://arxiv.org/abs/2405.09673): the
#   trade-off, measured on large models.
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
