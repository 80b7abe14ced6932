# %% [markdown]
# # 05 · Mixin'Matching: GPU memory
#
# **You will learn** which of the many settings of a training decide how much GPU memory it needs,
# and how to predict the peak before you run it. You will see what each technique saves, what fits
# on your GPU, and why published figures and yours can differ.
#
# **You need** notebooks 02 (LoRA), 04 (where memory goes) and 04.1 (quantization).
#
# **It takes** about 30 minutes of reading and trying. The cells themselves run in about three
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Samir fine-tunes a small model on long letters, on a GPU of about 24 GB. The training stops: out
# of memory. On the web he reads about LoRA, 8-bit optimizers, checkpointing and other kinds of
# attention. Which of them will help him? Here you will learn to choose before you run anything.
#
# You need no GPU: without one, our memory figures are predictions for the GPU named below.

# %%
import warnings

import pandas as pd
import transformers

from course_utils import describe
from course_utils.memory import GPUS, this_gpu

# Inside the libraries, of no concern here: an argument's old name; remarks on casts to float16.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
transformers.utils.logging.set_verbosity_error()

print(describe())

here = this_gpu()
GPU = here or GPUS["rtx4090"]
print("Predicted for:", GPU.name, "(this machine's own)" if here else "(no GPU here)")

# %% [markdown]
# ## 1. One training, many switches
#
# OPT-350M is a small model with 331 million weights. We fine-tune it on one example of 2,000 tokens
# at a time. We can switch:
#
# - **attention**, in which a token looks at the earlier ones. It can be computed in three ways.
#   *Eager* attention stores a number for every pair of tokens. PyTorch's *SDPA* and the library
#   *FlashAttention 2* work piece by piece and do not store all these numbers;
# - **gradient checkpointing** (notebook 04): on or off;
# - **LoRA**: on or off;
# - **optimizer**: Adam, or Adam with 8-bit states;
# - **gradient accumulation**: on or off. If it is on, a batch is cut into *micro-batches*, which go
#   through the model one after the other. Their gradients are added up, and then the optimizer
#   takes one step.
#
# That makes 3 × 2 × 2 × 2 × 2 = 48 combinations. The memory of all 48 has been published, in the
# slides of the workshop "Fine-tuning Language Models" by Daniel Voigt Godoy (Data Science Retreat,
# 2024), which this course follows. Such a table helps a person like Samir, who must choose settings
# for a GPU.
#
# **Guess first.** How many times the smallest of the 48 peaks is the largest? And which setting
# matters most? (In this notebook a MB is 10⁶ bytes.)

# %%
my_guess = None  # e.g. {"largest / smallest": 3, "matters most": "8-bit Adam"}

# %% [markdown]
# ### One prediction
#
# First we look at one training, so that you can read a prediction. A `Setup` says how a model is
# trained, and `predict` returns the memory that this training needs.
#
# The workshop trained without TRL. So up to section 4 we predict transformers' `Trainer`
# (`trainer="trainer"`), and for the published tables a loop written by hand. Section 5 is about
# `SFTTrainer`, which is the default.

# %%
from course_utils.memory import Setup, predict
from course_utils.models import known_model

OPT = "facebook/opt-350m"
first = Setup(
    OPT,
    trainer="trainer",
    seq_len=2000,
    dtype="float16",
    attention="eager",
    optimizer="adamw_torch",
)
told = predict(first, GPU)

print(f"peak: {told.peak_allocated_mb:,.0f} MB allocated, {told.peak_reserved_mb:,.0f} reserved")
print(f"at:   {told.peak_op}")
pd.DataFrame(
    {"peak in each phase": pd.Series(told.phases), "held at the peak": pd.Series(told.at_peak)}
).map(lambda size: "" if pd.isna(size) else f"{size:,.0f}")

# %% tags=["claim"]
assert round(known_model(OPT).parameters / 1e6) == 331

# %% [markdown]
# The right column says what is in memory at the highest moment of all. Its figures add up to the
# peak. Weights and optimizer states are a small part. Most of the peak is *activations*: what the
# forward pass keeps for the backward pass. The left column says how high memory rises in each phase
# (*weights* is the loading).
#
# Above the table, *allocated* is what the tensors fill. *Reserved* is what PyTorch has taken from
# the GPU for them, gaps included. The reserved memory has to fit. After "at" stands PyTorch's name
# for the operation at the peak. Here the backward pass of the loss has just begun, so there are no
# gradients yet.
#
# How can `predict` know this without a GPU or the weights? It runs the installed libraries' own
# code on PyTorch's *meta device*, where tensors have a shape and no values. It reports each new or
# freed tensor to a simulation of PyTorch's GPU allocator, which rounds sizes and reuses freed
# blocks. What a GPU's kernels do differently, such as attention, is put in by hand.
# `told.assumptions` and `told.versions` say what a prediction takes for granted.
#
# Three things are left out:
#
# - the **CUDA context**: some hundred MB that the driver and its libraries take outside the
#   allocator;
# - what **loading** the weights needs for a moment;
# - **outliers**: 8-bit layers treat large activations separately. Without values we cannot count
#   them.
#
# ## 2. What the table says
#
# If there is a GPU, the next cell measures all 48 combinations. If not, it predicts them, which
# takes half a minute.

# %%
from course_utils.memory import grid

TABLE = "opt-350m-16bit"
how = "measure" if here else "predict"

setups = [grid.as_setup(cell) for cell in grid.published(TABLE)]
predicted = grid.run(setups, gpu=GPU, progress=False)
measured = grid.run(setups, how="measure", progress=False) if how == "measure" else None
compared = grid.compare(TABLE, predicted, measured)
ours = grid.layout(compared, "measured" if measured else "predicted")
published = grid.layout(compared, "published")

print(f"{len(setups)} cells, {len(set(setups))} of them different")
print("This run's figures are", "measured." if measured else "predicted; none is measured here.")

# %% [markdown]
# Only 18 of the 48 are different, because many published figures are equal. The appendix 05a
# explains this.
#
# The figures that Daniel Voigt Godoy published are on the left, for the libraries of November 2024
# (transformers 4.46). Ours are on the right, for the libraries installed here. Both heat maps share
# one colour scale. Our first cell is lower than the peak of section 1: there we ran two training
# steps, and here we run one, as we think the workshop did.

# %% tags=["figure:05_heat_maps"]
import matplotlib.pyplot as plt
import numpy as np

from course_utils.display import BLUE, GREY, MEMORY_COLOURS, ORANGE, RED, SKY, text_table, use_style

use_style()
numbers = published.astype(float)
scale = (1_500, 16_000)  # MB, for both heat maps
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 6.2), layout="constrained")
grid.heat_map(published, left, scale=scale)
left.set_title("published, November 2024")
colours = grid.heat_map(ours, right, scale=scale)
right.set_yticks([])
right.set_title(f"today's libraries, {'measured' if measured else 'predicted'}")
bar = figure.colorbar(colours, ax=right, label="peak of allocated memory (MB, logarithmic)")
bar.set_ticks(ticks := [2_000, 4_000, 8_000, 16_000], labels=[f"{tick:,}" for tick in ticks])
bar.minorticks_off()
plt.show()

largest, smallest = numbers.max().max(), numbers.min().min()
print("You said:", my_guess)
print(f"published: {largest:,.0f} MB / {smallest:,.0f} MB = {largest / smallest:.1f}")

# %% tags=["claim"]
assert f"{largest / smallest:.1f}" == "9.6"
assert numbers.to_numpy().min() >= scale[0]
assert ours.astype(float).to_numpy().min() >= scale[0]
assert numbers.to_numpy().max() <= scale[1]
assert ours.astype(float).to_numpy().max() <= scale[1]
without, checkpointed = numbers.iloc[:8], numbers.iloc[8:].set_axis(numbers.index[:8])
assert (without["Eager"] > 4 * without["SDPA"]).all()
assert (without["Eager"] > 4 * checkpointed["Eager"]).all()
assert (checkpointed["Eager"] < 1.6 * checkpointed["SDPA"]).all()
assert (without["Eager"].loc["no", "yes"] > without["Eager"].loc["no", "no"]).all()

# %% [markdown]
# The largest published peak is 9.6 times the smallest. **Two settings matter most: the attention
# and checkpointing.** Each of them alone brings the largest published cells down to about a
# quarter. If one of them is in use, the other has much less left to save.
#
# Many people guess LoRA, which is famous for saving memory. But in the cells with the largest peaks
# (eager attention, no checkpointing), LoRA saves *nothing*: these peaks are even a little larger
# with it. Section 3 explains why.
#
# ## 3. What each technique saves
#
# Now we test the techniques. From one common setup, *the base* (the training of section 1: eager
# attention, all weights, Adam, two steps), we change **one thing at a time**. Then we combine the
# changes.
#
# **Guess first.** Which single change saves most, and which saves nothing at all: *fused* Adam (its
# step in one piece, for all weights at once), 8-bit Adam, LoRA, LoRA on weights of 8 or 4 bits,
# SDPA, checkpointing, or accumulation over four micro-batches of one example?

# %%
my_guess = None  # e.g. {"most": "8-bit Adam", "nothing": "SDPA"}

# %%
lora_8bit = {"quantization": "8bit", "lora": True}
lora_4bit = {"quantization": "nf4-double", "lora": True}
SINGLE = {
    "the base": {},
    "fused Adam": {"optimizer": "adamw_torch_fused"},
    "8-bit Adam": {"optimizer": "adamw_bnb_8bit"},
    "LoRA": {"lora": True},
    "LoRA on 8-bit weights": lora_8bit,
    "LoRA on 4-bit weights": lora_4bit,
    "SDPA": {"attention": "sdpa"},
    "checkpointing": {"checkpointing": "non-reentrant"},
    "accumulation": {"accumulation": 4},
}
STACK = {
    "SDPA + checkpointing": {"attention": "sdpa", "checkpointing": "non-reentrant"},
    "… + LoRA": {"lora": True},
    "… + 4-bit weights": {"quantization": "nf4-double"},
    "… + 8-bit Adam": {"optimizer": "adamw_bnb_8bit"},
}
alone = {name: predict(first.replace(**changes), GPU) for name, changes in SINGLE.items()}
together, merged = {}, {}
for name, changes in STACK.items():
    merged |= changes
    together[name] = predict(first.replace(**merged), GPU)
saved = {
    name: alone["the base"].peak_allocated_mb - each.peak_allocated_mb
    for name, each in alone.items()
}
print("You said:", my_guess)
for name, amount in saved.items():
    if name != "the base":
        print(f"{name + ':':24}{round(amount):7,} MB saved")
kept = {name: alone[name].at_peak["activations"] for name in ("the base", "LoRA")}
print(f"activations: {kept['the base']:,.0f} MB in the base, {kept['LoRA']:,.0f} MB with LoRA")

# %% tags=["figure:05_one_at_a_time"]
figure, axes = plt.subplots(2, 1, figsize=(9, 6), height_ratios=[8, 4], sharex=True)
for axis, bars in zip(axes, (alone, together), strict=True):
    start = np.zeros(len(bars))
    for kind, colour in MEMORY_COLOURS.items():
        sizes = np.array([each.at_peak[kind] for each in bars.values()])
        axis.barh(list(bars), sizes, left=start, color=colour, label=kind)
        start += sizes
    for place, total in enumerate(start):
        axis.text(total + 100, place, f"{total:,.0f}", va="center", fontsize=10)
    axis.invert_yaxis()
    axis.grid(axis="x")
axes[0].set_title("OPT-350M, one example of 2,000 tokens: one thing at a time")
axes[0].legend(loc="lower right")
axes[1].set_title("…and together")
axes[1].set_xlim(0, 15_500)
axes[1].xaxis.set_major_formatter("{x:,.0f}")
axes[1].set_xlabel("MB at the peak")
plt.show()

# %% tags=["claim"]
last = together["… + 8-bit Adam"]
assert max(saved, key=saved.get) == "checkpointing"
assert saved["SDPA"] > 0.8 * saved["checkpointing"]
assert abs(saved["fused Adam"]) < 10
assert saved["LoRA"] < 0.15 * saved["SDPA"]
assert kept["LoRA"] > kept["the base"]
assert last.peak_allocated_mb < alone["the base"].peak_allocated_mb / 7
assert last.at_peak["activations"] > 0.75 * last.peak_allocated_mb
assert -700 < saved["accumulation"] < -600

# %% [markdown]
# Checkpointing saves most. Fused Adam saves nothing, and accumulation even costs memory. Many
# people guess LoRA or 4-bit weights. But look at the colours: this peak is mostly activations. **A
# technique only helps with what the peak is made of.** If Samir's training is like this one, SDPA
# or checkpointing will help him most.
#
# In the second chart, SDPA and checkpointing have removed most of the activations. Now LoRA saves a
# much larger share of the peak. After LoRA, 8-bit Adam saves next to nothing, because hardly any
# states are left.
#
# Three of the results need an explanation:
#
# - **LoRA** saves 1,120 MB here, but it cost a little in section 2. There only one step is run, and
#   at its peak there are hardly any gradients and no optimizer states yet to save (appendix 05a).
#   In the second step, which counts here, there are states. In both, an adapter keeps activations
#   of its own: see the line above the chart.
# - **Fused Adam** avoids a temporary copy in the optimizer's step. This peak is in the backward
#   pass, so it saves nothing here.
# - **Accumulation** keeps the gradients between two micro-batches. Without accumulation, the
#   gradients are gone when the next forward pass begins. It helps only if you also make the
#   micro-batch smaller, and one example cannot be made smaller.
#
# At the end of the second chart, most of the peak is activations again. What are they?

# %%
last = together["… + 8-bit Adam"]
logits = 2000 * first.config().vocab_size * 4 / 1e6
print(f"the peak is at {last.peak_op}")
print(f"the logits in float32: {logits:,.0f} MB")
print(f"the activations:       {last.at_peak['activations']:,.0f} MB")

with_sft = predict(last.setup.replace(trainer="sft"), GPU)
print(f"the same settings: Trainer {last.peak_allocated_mb:,.0f} MB")
print(f"                SFTTrainer {with_sft.peak_allocated_mb:,.0f} MB, at {with_sft.peak_op}")

# %% tags=["claim"]
assert "softmax" in last.peak_op
assert last.at_peak["activations"] > 2 * logits
assert with_sft.peak_allocated_mb < last.peak_allocated_mb
assert alone["fused Adam"].phases["optimizer"] < alone["the base"].phases["optimizer"] - 500

# %% [markdown]
# This peak is in the computation of the loss. There the trainer holds the **logits**, one number
# for each token of the text and each word of the vocabulary, in more than one copy. No technique in
# our list makes them smaller. Another trainer does: TRL's `SFTTrainer` computes them in tiles, so
# they never all exist at once (notebook 04). It needs much less here. We expect that most of the
# difference is logits, but we did not test it.
#
# One thing in the first chart may surprise you: with quantized *weights*, the *activations* are
# smaller, too. To find out why, we compare with LoRA on weights of 32 bits:

# %%
formats = {}
for name, change in {
    "16-bit": {},
    "nf4-double": {"quantization": "nf4-double"},
    "32-bit": {"dtype": "float32"},
}.items():
    setup = first.replace(lora=True, **change)
    formats[name] = {
        attention: predict(setup.replace(attention=attention), GPU).at_peak["activations"]
        for attention in ("eager", "sdpa")
    }
formats = pd.DataFrame(formats).T.rename_axis("activations (MB) with LoRA on")
formats.round(0).astype(int)

# %% tags=["claim"]
assert (abs(formats.loc["nf4-double"] / formats.loc["32-bit"] - 1) < 0.01).all()
assert formats.loc["nf4-double", "eager"] < formats.loc["16-bit", "eager"]
assert formats.loc["nf4-double", "sdpa"] > 1.2 * formats.loc["16-bit", "sdpa"]

# %% [markdown]
# The activations on 4-bit weights are nearly those of a model in *float32*. peft's preparation for
# quantized training (notebook 04.1) raises norms and embeddings to 32 bits, and the layers pass
# 32-bit numbers on. With SDPA the activations take about a third more. With eager attention they
# take less. Eager attention computes its softmax in float32 anyway, and a model in 16 bits also
# keeps a second, rounded copy of the result.
#
# ### What checkpointing costs
#
# Checkpointing throws activations away and computes them again. How long does that take? Time
# cannot be predicted from shapes, so we train the course's own small model for real: with and
# without checkpointing, four times in turn. We compare the fastest run of each, because other
# programs on the machine can only make a run slower.

# %%
from course_utils.memory import measure

small = Setup(
    "course/pythia-3m",
    trainer="trainer",
    dtype="float32",
    seq_len=256,
    batch_size=4,
    micro_batches=4,
)
device = "cuda" if here else "cpu"
ways = ("none", "non-reentrant")
seconds = {way: [] for way in ways}
for _ in range(4):
    for way in ways:
        run = measure(small.replace(checkpointing=way), device=device)
        seconds[way].append(run["step_seconds"])
fastest = {way: min(found) for way, found in seconds.items()}
memory = {way: predict(small.replace(checkpointing=way), GPU).peak_allocated_mb for way in ways}

print("memory, predicted:", {way: f"{peak:,.0f} MB" for way, peak in memory.items()})
print(f"time, measured on the {device}: × {fastest['non-reentrant'] / fastest['none']:.2f}")

# %% tags=["claim"]
assert memory["non-reentrant"] < memory["none"]

# %% [markdown]
# In the saved run, checkpointing takes 1.40 times as long (one small model, on a CPU). The rule of
# thumb for large models is 1.33 times: a backward pass is twice the work of a forward pass, and
# checkpointing adds one more forward pass. It can be less, because the output layer and the loss
# are not computed again. For a model as small as ours, the rule is only a rough guide.
#
# ## 4. Length
#
# How do activations grow with longer examples? Eager attention stores a number for every *pair* of
# tokens, in each layer and each head. SDPA does not.
#
# **Guess first:** from 200 tokens to 2,000, by which factor do the activations grow with eager
# attention, and by which with SDPA?

# %%
my_guess = None  # e.g. {"eager": 5, "sdpa": 5}

# %% tags=["value:growth"]
LENGTHS = [200, 400, 800, 1600, 2000]
ATTENTIONS = ["eager", "sdpa", "flash_attention_2"]
# LoRA, so that no optimizer hides it.
long = Setup(OPT, trainer="trainer", dtype="float16", lora=True, micro_batches=1)
activations = pd.DataFrame(
    {
        attention: {
            length: predict(long.replace(seq_len=length, attention=attention), GPU).at_peak[
                "activations"
            ]
            for length in LENGTHS
        }
        for attention in ATTENTIONS
    }
).rename_axis("tokens")
growth = activations.loc[2000] / activations.loc[200]
print("You said:", my_guess)
print("From 200 to 2,000 tokens:", {name: f"× {by:.0f}" for name, by in growth.items()})
activations.round(0).astype(int)

# %% [markdown]
# With SDPA the factor is 10, as for the tokens. With eager attention it is 32. Many people guess
# 100, because there are 100 times as many pairs. But the pairs are only one part of the
# activations, and the rest grows tenfold.
#
# We plot both parts on log-log axes. There, a power law is a straight line, and its slope is the
# exponent.

# %% tags=["figure:05_length"]
lines = {
    "eager": (activations["eager"], ORANGE, "o"),
    "SDPA": (activations["sdpa"], BLUE, "o"),
    "FlashAttention 2": (activations["flash_attention_2"], SKY, "x"),
    "eager − SDPA": (activations["eager"] - activations["sdpa"], RED, "s"),
}
slopes = {
    name: np.polyfit(np.log(LENGTHS), np.log(values), 1)[0]
    for name, (values, _, _) in lines.items()
}
figure, axis = plt.subplots(figsize=(7.5, 4.2))
for name, (values, colour, marker) in lines.items():
    style = "--" if name in ("eager − SDPA", "FlashAttention 2") else "-"
    label = f"{name}: slope {slopes[name]:.2f}"
    axis.loglog(LENGTHS, values, style, color=colour, marker=marker, label=label)
axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
axis.minorticks_off()
ticks = [100, 300, 1000, 3000, 10000]
axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
axis.grid()
axis.set_xlabel("tokens")
axis.set_ylabel("activations at the peak (MB)")
axis.set_title("OPT-350M with LoRA, one example")
axis.legend()
plt.show()

# %% tags=["claim"]
assert 1.9 < slopes["eager − SDPA"] < 2.1
assert 0.95 < slopes["SDPA"] < 1.05
assert activations["sdpa"].equals(activations["flash_attention_2"]) or here

# %% [markdown]
# The red line is what eager attention stores in addition to SDPA. Its slope is 2: with ten times as
# many tokens, this part takes a hundred times as much. SDPA and FlashAttention 2 do not store it
# here. Their slope is 1, so the memory grows in proportion to the length. There is no difference
# between the two here.
#
# ## 5. What fits on your GPU?
#
# A process never gets all of a GPU's memory. The driver keeps a part, and the CUDA context takes
# another part. For the T4 both are measured: of 15,360 MiB a process gets 14,912, and the context
# takes 141. For the others in `GPUS` we guess cautiously: 3% and 600 MiB.

# %%
from course_utils.memory import METHODS, fit, usable_bytes, ways_to_fit

pd.DataFrame(
    [
        {
            "name": name,
            "GPU": known.name,
            "memory (MiB)": known.memory_mib,
            "room for training (MB)": round(usable_bytes(known) / 1e6),
            "bfloat16": "yes" if known.computes_bfloat16 else "no",
        }
        for name, known in GPUS.items()
    ]
).set_index("name")

# %% [markdown]
# **Guess first.** You train Qwen2.5-7B with `SFTTrainer` on examples of 1,024 tokens, on the T4
# that Colab lends. How many examples fit into a batch with LoRA on 16-bit weights, and how many
# with QLoRA?

# %%
my_guess = None  # e.g. {"LoRA on 16-bit": 2, "QLoRA": 2}

# %% tags=["value:largest-batch"]
QWEN = "Qwen/Qwen2.5-7B"
some = {name: METHODS[name] for name in ("LoRA on 16-bit", "QLoRA")}
on_t4 = fit(QWEN, "t4", lengths=[1024], methods=some, progress=False)
print("You said:", my_guess)
on_t4

# %% tags=["claim"]
assert on_t4.loc["LoRA on 16-bit, checkpointing", 1024] == 0
assert on_t4.loc["QLoRA", 1024] == 0
assert on_t4.loc["QLoRA, checkpointing", 1024] >= 1
assert on_t4.loc["QLoRA, checkpointing", 1024] == 9

# %% [markdown]
# A 0 says that not even one example fits. At 16 bits the weights alone are 15 GB. In 4 bits the
# weights fit, and many people stop counting there. But the activations do not fit, so QLoRA needs
# checkpointing too. Then nine examples fit, by the prediction.
#
# `SFTTrainer` switches checkpointing on by default. The rows without it are what you get with
# `gradient_checkpointing=False`.
#
# Now the other way round: here is a training that does *not* fit on an RTX 4090. What is the least
# to change? `ways_to_fit` tries single changes first, then combinations, the cheapest first. It
# compares the *reserved* peak with the room in the table above.

# %%
too_large = Setup(QWEN, lora=True, lora_targets="all-linear", batch_size=16, seq_len=1024)
answers = ways_to_fit(too_large, "rtx4090", wanted=2, progress=False)
text_table(answers.drop(columns="setup").astype(str))

# %% tags=["claim"]
assert len(answers) == 2
assert list(answers["change"]) == ["smaller micro-batches", "4-bit weights"]
assert (answers["peak reserved (MB)"] <= usable_bytes("rtx4090") / 1e6).all()

# %% [markdown]
# Each change is enough alone. In the shell, you get a similar table by:
#
# `python -m course_utils memory fit --model Qwen/Qwen2.5-7B --gpu t4`.
#
# Is your own training out of memory? Try the changes in this order: first those that change nothing
# in the result.
#
# | try | it shrinks | its price |
# |---|---|---|
# | `attn_implementation="sdpa"` | activations | none known here |
# | `SFTTrainer`, or another loss that works in tiles | logits | none known here |
# | smaller micro-batches, more accumulation | activations | fewer tokens a second |
# | gradient checkpointing | activations | a forward pass more |
# | shorter examples | activations | texts are cut or split |
# | an 8-bit optimizer | optimizer states | rounded states |
# | LoRA | gradients, optimizer states | fewer weights are trained |
# | QLoRA | frozen weights | rounded weights, slower layers |
#
# ## 6. Before you trust a table
#
# The two heat maps of section 2 look alike, but compare the figures. Most of our eager cells are
# lower, and many of the others are higher. In the heat maps, the four rows with the same
# checkpointing and the same LoRA form a block. They differ in optimizer and accumulation. Here is
# the last row of each block, in MB:

# %%
both = pd.DataFrame({"published": published.stack(), "today": grid.layout(compared).stack()})
both = both.astype(float).groupby(level=["grad_checkpointing", "lora", "attention"], sort=False)
both.last().assign(difference=lambda t: t["today"] - t["published"]).round(0).astype(int)

# %% [markdown]
# It is natural to blame the prediction, but the libraries have changed since 2024. A program of the
# repository predicts the same cells with the versions *of that time* (`make replicate-memory`; only
# PyTorch is today's). Nothing is fitted to the published figures. The file of its results also has
# the workshop's other two tables: OPT-350M and Falcon-7B, both with weights in 8 bits.

# %%
from course_utils.data import folder

file = folder().parent / "benchmarks" / "results" / "published_tables.csv"
replicated = pd.read_csv(file, keep_default_na=False)
replicated["table"] = (
    replicated["model"].str.split("/").str[1] + ", " + replicated["weights"] + " weights"
)
figures = replicated[replicated["published_mb"].str.isdigit()].copy()
figures["error"] = figures["error_percent"].astype(float)
sixteen = figures[figures["weights"] == "16-bit"]

print(f"{len(figures)} published figures; of the {len(sixteen)} at 16 bits:")
print(f"mean error {sixteen['error'].abs().mean():.2f}%, worst {sixteen['error'].abs().max():.2f}%")

# %% tags=["claim"]
assert len(sixteen) == 48
assert sixteen["error"].abs().max() < 1

# %% tags=["figure:05_replication"]
strips = {"16-bit OPT, today's libraries": (compared["error (%)"], None)}
if measured:  # then `compare` holds predictions against measurements
    today = grid.compare(TABLE, predicted)
    strips = {"16-bit OPT, today's libraries": (today["error (%)"], None)}
for name, rows in figures.groupby("table", sort=False):
    strips[f"{name.split(',')[1].split()[0]} {name.split('-')[0].title()}, of the time"] = (
        rows["error"],
        rows["remark"] != "",
    )

figure, axis = plt.subplots(figsize=(9, 3.4))
spread = np.random.default_rng(0)
for place, (errors, odd) in enumerate(strips.values()):
    y = place + spread.uniform(-0.2, 0.2, len(errors))
    odd = np.zeros(len(errors), bool) if odd is None else odd.to_numpy()
    colour = ORANGE if place == 0 else BLUE
    axis.scatter(errors[~odd], y[~odd], s=28, color=colour, alpha=0.6, linewidths=0)
    axis.scatter(errors[odd], y[odd], s=34, marker="x", color=RED)
axis.axvline(0, color=GREY, linewidth=1, zorder=0)
axis.set_yticks(range(len(strips)), [name.replace("Opt", "OPT") for name in strips])
axis.invert_yaxis()
axis.grid(axis="x")
axis.set_xlabel("predicted against published, in % (×: a figure with a remark)")
axis.set_title("The same predictor, two sets of libraries")
plt.show()

# %% [markdown]
# Each dot is one figure. At 0 the prediction is exact. (The crosses mark odd figures. The appendix
# 05a looks at them.) With the libraries of that time, all 48 cells of the first table are predicted
# to within one per cent. With today's libraries and the same settings, most cells are further off.
# **So a figure depends on the versions as well as on the settings.**
#
# How close do other ways to estimate come? Each method was given the settings that it knows. The
# next table shows how far each method is from the published figures, up or down, in the mean.

# %% tags=["value:other-estimates"]
ESTIMATES = {
    "predicted_mb": "the prediction, libraries of the time",
    "formula_mb": "textbook formula",
    "accelerate_mb": "accelerate estimate-memory",
    "fitcheck_mb": "fitcheck-llm",
}
errors = {
    table: {
        name: (rows[column].astype(float) / rows["published_mb"].astype(float) - 1).abs().mean()
        for column, name in ESTIMATES.items()
    }
    for table, rows in figures.groupby("table", sort=False)
}
errors = pd.DataFrame(errors)
errors.map("{:.1%}".format).rename_axis("mean error")

# %% tags=["claim"]
first_table = errors.iloc[:, 0]
assert first_table.iloc[0] < 0.002
assert (first_table.iloc[1:] > 0.3).all()

# %% [markdown]
# Be fair to the other three: each was made for something else.
#
# - The **formula** counts only the transformer's blocks: no embeddings and no logits.
# - **accelerate** estimates loading, and training all weights with Adam. It is not told the
#   attention, LoRA or the length. So it is far off for Falcon-7B with LoRA.
# - **fitcheck** is made for models like Llama with LoRA, and was checked on a T4.
#
# Our predictor is off by 6.4% for Falcon-7B. Seven of its twelve published figures are odd: four of
# them, for example, are equal, whatever the attention and the precision (appendix 05a).
# `docs/tools.md` lists more checks.

# %% [markdown]
# ## Take away
#
# - Ask first what the peak is made of. A technique only helps with what is there (section 3;
#   OPT-350M, predicted).
# - With long examples, most of the peak is activations (section 1). What eager attention stores
#   grows with the square of the length, and the rest in proportion. SDPA avoids the square (section
#   4).
# - Checkpointing saves activations and costs time (section 3; time measured on one small model).
#   LoRA saves gradients and optimizer states. With 8 and 4 bits, frozen weights take less (section
#   3).
# - Accumulation alone saves nothing (section 3). Smaller micro-batches do (section 5).
# - A figure belongs to its versions: the same 48 settings, with other libraries, gave other figures
#   (section 6). A prediction leaves things out (section 1). So predict before you run, and then
#   measure.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** A training with eager attention and long examples is far too large for your GPU. Somebody
# proposes LoRA: "It trains less than one per cent of the weights." How much memory will LoRA save
# here?
#
# - **A** nearly all of it, since so few weights are trained.
# - **B** about half of it, since frozen layers need no backward pass.
# - **C** nothing: it makes smaller files, not smaller trainings.
# - **D** only a little, since the peak is made of something else.
#
# **b.** A batch of eight examples does not fit. You set `accumulation=8` and leave `batch_size=8`.
#
# - **A** It fits: the eight examples now go through the model one by one.
# - **B** It does not fit: as many examples as before are in the model at once.
# - **C** It fits: only the gradients are kept from one example to the next.
# - **D** It does not fit: the activations of eight batches wait for the step.
#
# **c.** Your examples become twice as long. How do the activations grow with eager attention?
#
# - **A** They double: each token takes as much as before.
# - **B** They become four times as many: attention is quadratic.
# - **C** By a factor between two and four, nearer to four the longer they are.
# - **D** By a factor of more than four: each layer adds to the one before.
#
# **d.** Somebody publishes 12.3 GB for a training. With the same settings yours takes 14.1. What do
# you do first?
#
# - **A** ask for the versions, and for how many steps were measured.
# - **B** distrust the figure: memory can be counted, so it must agree.
# - **C** train longer: over many steps the peak settles to the true one.
# - **D** blame the card: the same training takes more on a larger GPU.

# %%
from course_utils.exercises import check, quiz

quiz("05", a="...", b="...", c="...", d="...")

# %% [markdown]
# **05.1 · One number.** The training of section 1 does not fit on an RTX 3060. The check says by
# how much. Change its length, and nothing else, until it just fits. Lengths in steps of 100 tokens
# are fine enough. **Guess first:** the reserved memory has to shrink by about a sixth. Do you also
# need a sixth fewer tokens?
#
# `just_fits(setup)` gets that training and returns the shorter one: `setup.replace(seq_len=...)`.
# Then explain what you see.


# %% tags=["exercise"]
def just_fits(setup):
    """The training of section 1, with the longest examples that fit on an RTX 3060."""
    ### BEGIN SOLUTION
    return setup.replace(seq_len=1700)
    ### END SOLUTION


# %%
check("05.1", just_fits)

# %% [markdown]
# **05.2 · Onto the T4.** A colleague wants to tune Qwen2.5-7B on Colab's T4. The wishes: examples
# of 1,024 tokens or more, all of them full; LoRA of rank 16 or more on all linear layers; and eight
# examples for each step of the optimizer. Write `fits_t4()`, which returns a `Setup` that fits.
# (Remember which number formats a T4 can compute in. `help(Setup)` lists the fields. The check may
# take a minute.)


# %% tags=["exercise"]
def fits_t4():
    """A Setup for Qwen2.5-7B that fits on a T4."""
    from course_utils.memory import Setup

    model = "Qwen/Qwen2.5-7B"
    ### BEGIN SOLUTION
    return Setup(
        model,
        quantization="nf4-double",
        dtype="float16",
        lora=True,
        lora_targets="all-linear",
        optimizer="adamw_bnb_8bit",
        checkpointing="non-reentrant",
        batch_size=1,
        accumulation=8,
        seq_len=1024,
    )
    ### END SOLUTION


# %%
check("05.2", fits_t4)

# %% [markdown]
# **05.3 · Alone: ten questions.** A prediction takes a second or more, so do not ask for every
# batch size. You get a function: `fits(batch)` is true if a batch of that size fits on a GPU. If a
# batch fits, every smaller one fits, too. Write `largest_batch(fits)`, which returns the largest
# batch size that fits, from 1 to 1,000, or 0 if none does. You may call `fits` ten times at most.


# %% tags=["exercise"]
def largest_batch(fits):
    """The largest batch from 1 to 1,000 with fits(batch), else 0; at most ten calls."""
    ### BEGIN SOLUTION
    good, bad = 0, 1001
    while bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good
    ### END SOLUTION


# %%
check("05.3", largest_batch)

# %% [markdown]
# Then try your function on a real training. (`course_utils.memory.largest_batch` needs even fewer
# predictions: it draws a straight line through two of them. Why is that a good idea?)

# %%
from course_utils.exercises import done

if done("05.3"):
    from course_utils.memory import fits

    asked = []
    modest = Setup("course/pythia-3m", trainer="trainer", dtype="float32", seq_len=256)

    def fits_here(batch):
        """Ask the predictor, and note that it was asked."""
        asked.append(batch)
        return fits(modest.replace(batch_size=batch), "rtx3060") is not None

    print(largest_batch(fits_here), "examples; asked for", asked)

# %% [markdown]
# **If you have a GPU: add your own row.** There is no solution here: nobody else has your machine.
# The next cell measures five trainings and writes each to `my_gpu.jsonl`, with its prediction.
# Where do the two differ most, and what does that training have that the others have not?

# %%
from pathlib import Path

own = {
    "eager": first,
    "SDPA": first.replace(attention="sdpa"),
    "SDPA, checkpointing": first.replace(attention="sdpa", checkpointing="non-reentrant"),
    "LoRA": first.replace(attention="sdpa", lora=True),
    "QLoRA": first.replace(attention="sdpa", **lora_4bit),
}
if here:
    rows = grid.run(own.values(), how="measure", out=Path("my_gpu.jsonl"), progress=False)
    rehearsed = grid.run(own.values(), out=Path("my_gpu.jsonl"), progress=False)
    beside = pd.DataFrame(
        {"measured": map(grid.peak, rows), "predicted": map(grid.peak, rehearsed)}, index=list(own)
    )
    print(beside)
else:
    print("No GPU here. It would measure:", *own.values(), sep="\n- ")

# %% [markdown]
# Solutions: `notebooks/solutions/05_mixin_matching.py`.
#
# ## To read
#
# - Godoy, *Fine-tuning Language Models*, slides of a workshop at Data Science Retreat, 2024: the
#   published memory tables of this notebook and of appendix 05a are his.
# - Korthikanti and others, [Reducing Activation Recomputation](https://arxiv.org/abs/2205.05198):
#   what a forward pass keeps, counted.
# - Chen and others, [Training Deep Nets with Sublinear Memory
#   Cost](https://arxiv.org/abs/1604.06174): checkpointing.
# - Dao and others, [FlashAttention](https://arxiv.org/abs/2205.14135).
# - PyTorch on [its CUDA allocator](https://docs.pytorch.org/docs/stable/notes/cuda.html).
# - `benchmarks/README.md`: how the published tables were predicted again.
# - The course's own words are in the [glossary](../docs/glossary.md).
