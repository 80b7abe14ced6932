# %% [markdown]
# # 04 · Where memory goes
#
# **You will learn** what fills a GPU during a training step, moment by moment, and what gradient
# checkpointing trades for memory. You will count on paper, see what each memory-saving change does
# to the peak, and learn what to try first when a training is out of memory.
#
# **You need** notebook 02 (LoRA).
#
# **It takes** about 25 minutes of reading and trying. The cells themselves run in about three
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Jonas wants to fine-tune a model with 1.7 billion parameters on a T4, a GPU with 16 GB of memory.
# The weights take about 7 GB in 32 bits, but the training stops at once: out of memory. Where did
# the memory go, and what can he do?
#
# You need no GPU. `predict` runs the code of the installed trainer, but on tensors that have a
# shape and no values. `predict` reports each of these tensors to a copy of PyTorch's *allocator*,
# the part of PyTorch that hands out a GPU's memory. (Notebook 05 checks the prediction.) A MB is
# 10⁶ bytes.

# %%
import functools
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch
import transformers
from transformers import AutoModelForCausalLM

from course_utils import describe
from course_utils.display import MEMORY_COLOURS, RED, use_style
from course_utils.memory import Setup, predict
from course_utils.models import known_model, resolve

# Inside the libraries, of no concern here: an argument's old name, and progress bars.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
use_style()
print(describe())

# %% [markdown]
# ## 1. Four things fill the memory
#
# - The **weights** of the model.
# - The **gradients**: one number for each *trained* weight (notebook 02).
# - The **optimizer states**: AdamW keeps two running means for each trained weight.
# - The **activations**: what the forward pass keeps until the backward pass needs it.
#
# The first three depend on the model alone, so we can count them. In float32 a number takes 4
# bytes.

# %%
parameters = known_model("HuggingFaceTB/SmolLM2-1.7B").parameters
numbers = {"weights": 1, "gradients": 1, "optimizer states": 2}
on_paper = pd.Series({name: n * parameters * 4 / 1e9 for name, n in numbers.items()})
on_paper["in all"] = on_paper.sum()
on_paper.map("{:.1f} GB".format).to_frame("Jonas's model")

# %% tags=["claim"]
assert round(on_paper["weights"]) == 7
assert round(on_paper["in all"]) == 27

# %% [markdown]
# That is 27 GB before the first activation. The activations come on top. They grow with the batch
# and with the length of the texts, and can be the largest part of all. So we look at them first.
#
# ## 2. Gradient checkpointing: time for memory
#
# To compute gradients, the backward pass needs many tensors from inside each layer. Normally they
# all wait in memory until the backward pass arrives.
#
# **Gradient checkpointing** keeps only the *input* of each layer. When the backward pass arrives at
# a layer, it runs this layer forward again, uses the tensors, and throws them away. (It has nothing
# to do with the checkpoints that a training saves on the disk.)
#
# We try it on the course's smallest model. A *hook* is a function that PyTorch calls each time a
# module runs. We put one on the MLP in each layer, and count.
#
# **Guess first.** With checkpointing, how often does each layer run in one training step? And do
# the gradients change?

# %%
my_guess = None  # e.g. {"runs of each layer": 3, "the same gradients": False}

# %%
model = AutoModelForCausalLM.from_pretrained(resolve("course/pythia-3m").folder).train()
layers = model.gpt_neox.layers
torch.manual_seed(0)
ids = torch.randint(0, model.config.vocab_size, (4, 256))


def gradients_and_runs():
    """All gradients of one training step, and how often each layer's MLP ran for them."""
    runs = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda *_: runs.append(1)) for layer in layers]
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    for hook in hooks:
        hook.remove()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), len(runs) // len(layers)


model.gradient_checkpointing_disable()
plain, runs_plain = gradients_and_runs()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
checkpointed, runs_checkpointed = gradients_and_runs()
print("You said:", my_guess)
print(f"runs of each layer: {runs_plain} without checkpointing, {runs_checkpointed} with it")
print("largest difference of a gradient:", (plain - checkpointed).abs().max().item())

# %% tags=["claim"]
assert (runs_plain, runs_checkpointed) == (1, 2)
assert torch.allclose(plain, checkpointed, atol=1e-6)

# %% [markdown]
# Each layer runs twice, and the gradients are the same. Some people expect the training to change,
# but the same numbers are computed again. The price is time. A backward pass is about twice the
# work of a forward pass, so one more forward pass is about a third more computing. (Notebook 05
# measures it.)
#
# What do we get for it? We predict a training of SmolLM2-135M, with four examples of 1,024 tokens
# and TRL's `SFTTrainer`.

# %%
step = Setup("HuggingFaceTB/SmolLM2-135M", trainer="sft", batch_size=4, seq_len=1024)
ways = {"none": predict(step.replace(checkpointing="none")), "checkpointing": predict(step)}
kept = {name: found.timeline()["activations"].max() for name, found in ways.items()}
print({name: f"{size:,.0f} MB of activations" for name, size in kept.items()})

# %% tags=["claim"]
assert kept["checkpointing"] < 0.2 * kept["none"]
assert step.checkpoints == "non-reentrant"  # TRL's default

# %% [markdown]
# The activations shrink from 3,528 MB to 614. `SFTTrainer` uses checkpointing unless you write
# `gradient_checkpointing=False` in its `SFTConfig`. transformers' `Trainer` uses it only if you ask
# for it.
#
# ## 3. The life of a training step
#
# Now we follow this training through two steps, moment by moment.
#
# **Guess first.** The weights of this model take 269 MB in 16 bits. The *peak* is the most memory
# that is held at any moment, so the peak has to fit into the GPU. How high is it when all weights
# are trained? What share of it does LoRA save?

# %%
my_guess = None  # e.g. {"peak (MB)": 500, "LoRA saves": 0.9}

# %% tags=["figure:04_timeline", "value:timeline"]


def draw_timeline(prediction, axis):
    """Allocated memory by kind, at each request and release of two training steps."""
    timeline = prediction.timeline()
    axis.stackplot(
        timeline.index,
        [timeline[kind] for kind in MEMORY_COLOURS],
        labels=list(MEMORY_COLOURS),
        colors=list(MEMORY_COLOURS.values()),
        step="post",
        linewidth=0,
    )
    changes = timeline["phase"].ne(timeline["phase"].shift())
    for place in timeline.index[changes][1:]:
        axis.axvline(place, color="black", linewidth=0.6, alpha=0.25)
    total = timeline[list(MEMORY_COLOURS)].sum(axis=1)
    axis.plot(total.idxmax(), total.max(), "o", color=RED, markersize=5)
    axis.set_xlim(0, len(timeline) - 1)
    axis.set_xticks([])


full = predict(step)
lora = predict(step.replace(lora=True, lora_targets="all-linear"))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
for axis, (name, prediction) in zip(axes, {"all weights": full, "LoRA": lora}.items(), strict=True):
    draw_timeline(prediction, axis)
    axis.set_title(f"{name}: peak {prediction.peak_allocated_mb:,.0f} MB")
axes[0].set_ylabel("allocated (MB)")
figure.supxlabel("requests and releases, in their order; lines where a phase ends", fontsize=10)
figure.legend(*axes[0].get_legend_handles_labels(), ncols=5, loc="outside upper center")
plt.show()

saved = 1 - lora.peak_allocated_mb / full.peak_allocated_mb
print("You said:", my_guess)
print(f"SFTTrainer: {full.peak_allocated_mb:,.0f} MB; with LoRA: {lora.peak_allocated_mb:,.0f} MB,")
print(f"so LoRA saves {saved:.0%}.")

# %%
named = {"all weights": full, "LoRA": lora}
peaks = pd.DataFrame({name: found.at_peak for name, found in named.items()})
peaks.map("{:,.0f} MB".format)

# %% tags=["claim"]
assert 0.4 < saved < 0.5
assert lora.at_peak["optimizer"] < 0.1 * full.at_peak["optimizer"]

# %% [markdown]
# The peak is 1,441 MB, and LoRA saves 46% of it. Many people guess that LoRA saves nearly
# everything. They forget the weights and the activations, which stay. (With LoRA, the table shows
# 20 MB more weights: this is the adapter.)
#
# Read the left picture from left to right. The weights are there from the beginning. The forward
# pass adds a little for each layer: its input. In the backward pass, each layer is computed again:
# its activations come and go, and leave gradients behind. Then the optimizer makes its states. They
# stay, so the second step starts higher than the first: **a first step that fits does not promise
# that the second one fits.** The thin spike between forward and backward pass is the loss, and its
# top, the dot, is the peak. At that moment there are no gradients: 0 MB in the table. (*Workspaces*
# are the scratch memory of matrix multiplications.)
#
# In the right picture, gradients and states are nearly gone, because only the adapter is trained.
# Most activations stay: the frozen layers need theirs to pass the gradient on.
#
# ### What became of the logits
#
# Many texts say that the largest single tensor of a training is the *logits*: a number for each
# token and each word of the vocabulary. Is that true here? We compare with transformers' `Trainer`,
# which runs without checkpointing here, its default.

# %% tags=["value:largest-requests"]
old = predict(step.replace(trainer="trainer"))
tokens, vocabulary = step.batch_size * step.seq_len, step.config().vocab_size
logits = tokens * vocabulary * 4 / 1e6
print(f"tokens × vocabulary × 4 bytes = {logits:,.0f} MB")
rows = {}
for name, found in {"Trainer": old, "SFTTrainer": full}.items():
    sizes = sorted({size for _, _, size in found.log if size > 0}, reverse=True)[:3]
    requests = ", ".join(f"{size / 1e6:,.0f}" for size in sizes)
    rows[name] = {"peak (MB)": f"{found.peak_allocated_mb:,.0f}", "largest requests (MB)": requests}
pd.DataFrame(rows).T

# %% tags=["claim"]
assert full.peak_allocated_mb < 0.3 * old.peak_allocated_mb
largest = {name: max(size for _, _, size in f.log) / 1e6 for name, f in (("t", old), ("s", full))}
assert abs(largest["t"] / logits - 1) < 0.01
assert largest["s"] < 0.5 * logits

# %% [markdown]
# With transformers' `Trainer` the logits were the peak: it holds them in float32, more than once.
# `SFTTrainer` has no request of that size. It computes the loss in tiles, that is, for a part of
# the logits at a time, and uses the same piece of memory for each tile. (This part of TRL is called
# the *fused output head*. The Liger kernels do the same for other trainers.) The tiles and the
# checkpointing together bring the peak from 6,304 MB to less than a quarter.
#
# On a GPU, the next cell measures the same trainings. Without one, you see predictions.

# %%
by_phase = {f"{name}, predicted": found.phases for name, found in named.items()}
if torch.cuda.is_available():
    from course_utils.memory import measure

    for name, found in named.items():
        by_phase[f"{name}, measured"] = measure(found.setup).get("phases", {})
else:
    print("No GPU here: predicted only. Against a GPU, today's versions are not yet measured.")
pd.DataFrame(by_phase).map("{:,.0f} MB".format)

# %% [markdown]
# ## 4. Formulas, and how far they go
#
# For a rough number on paper, there are formulas. Take *L* layers of width *h*, *n* attention heads
# (notebook 02, section 4), and a batch of *b* examples of *s* tokens.
#
# | what | how much | from |
# |---|---|---|
# | weights of all layers | $L\,\left(2\,h\,d\,(n + n_{kv}) + g\,h\,m\right)$ | counted |
# | the same, for GPT-2's shape | $12\,L\,h^2$ | Kaplan and others, 2020 |
# | activations, eager attention | $L\,(34\,hbs + 5\,n\,b\,s^2)$ bytes in 16 bits | Korthikanti and others, 2022 |
# | activations, flash attention | $L\cdot 34\,hbs$ bytes in 16 bits | the table is never stored |
#
# *Eager* attention stores a table of all pairs of tokens for each head: the term with $s^2$.
# *Flash* attention never holds the whole table (notebook 05). In the first row, *d* is the width of
# a head, *n_kv* the number of key-value heads, and the MLP has *g* matrices of *h* × *m*.
#
# Divide the activations by the weights of the second row, and the layers cancel:
#
# $$\frac{\text{activations}}{\text{weights}} = \left[\frac{34\,bs}{12\,h} +
# \frac{5\,n\,b\,s^2}{12\,h^2}\right] \cdot \frac{p_{comp}}{p_{model}}$$
#
# $p_{comp}$ is the size of a number that is computed with, and $p_{model}$ the size of a stored
# weight. The 34 and the 5 already count *bytes*, for numbers of 16 bits. So divide the bracket by
# two before you multiply by a size. With *b* = 1, flash attention and 16 bits everywhere, the ratio
# is about $1.4\,s/h$. (Some texts give $3\,s/h$. They have not divided by two.)
#
# **Guess first.** Llama-2-7B, one example of 4,096 tokens: how many times its weights do the
# activations take, with eager and with flash attention?

# %%
my_guess = None  # e.g. {"eager": 2, "flash": 0.5}

# %%
from course_utils.memory import formulas

seven = formulas.seven_models()
llama, qwen = seven.loc["meta-llama/Llama-2-7b-hf"], seven.loc["Qwen/Qwen2.5-7B"]
columns = ["h", "s", "n_heads", "n_kv", "m", "L", "blocks (GB)", "12·L·h² (GB)"]
print("You said:", my_guess)
seven[[*columns, "ratio, eager", "ratio, flash"]].round(1)

# %% tags=["claim"]
assert (round(llama["ratio, eager"], 1), round(llama["ratio, flash"], 1)) == (8.0, 1.4)
assert qwen["blocks (GB)"] > 1.5 * qwen["12·L·h² (GB)"]
assert (round(qwen["blocks (GB)"], 1), round(qwen["12·L·h² (GB)"], 1)) == (13.1, 8.6)

# %% [markdown]
# The activations take 8.0 times as much as the weights with eager attention, and 1.4 times as much
# with flash attention. (The column *blocks* has the layers' weights in 16 bits, by the first row of
# the formulas.) People often guess less for eager attention, but its table grows with the *square*
# of the length. For Qwen2.5-7B, $12\,L\,h^2$ is far too low, 8.6 GB instead of 13.1: its MLP is
# wide and has a gate.
#
# The prediction counts every tensor. How far are the formulas from it? They know no checkpointing,
# so we compare them with transformers' `Trainer`.

# %%
opt = Setup("facebook/opt-350m", trainer="trainer", dtype="float16", seq_len=2000)
shape = formulas.Shape.of(opt.config())
rows = {}
for attention in formulas.ATTENTIONS:
    timeline = predict(opt.replace(attention=attention)).timeline()
    found = timeline.query("phase == 'forward'")["activations"].max()
    told = formulas.activation_bytes(shape, opt.batch_size, opt.seq_len, attention) / 1e6
    rows[attention] = {"formula (MB)": told, "predicted (MB)": found, "ratio": told / found}
by_formula = pd.DataFrame(rows).T
by_formula.round(2)

# %% tags=["claim"]
assert [f"{1 - ratio:.0%}" for ratio in by_formula["ratio"]] == ["19%", "28%"]

# %% [markdown]
# The formulas are 19% (eager) and 28% (flash) below the prediction (OPT-350M, 2,000 tokens). They
# leave out what is outside the layers, such as logits. Use a formula to decide what to try, and the
# prediction to decide whether it fits.
#
# ## 5. Many problems, many solutions
#
# Back to Jonas: SmolLM2-1.7B, all weights in 32 bits, plain Adam, eager attention, and two examples
# of 2,048 tokens. He uses an `SFTTrainer`, and has switched off checkpointing and mixed precision.
#
# **Guess first.** Which single change saves most: 16-bit weights, 8-bit Adam, LoRA, QLoRA (LoRA
# beside weights in 4 bits, notebook 04.1), checkpointing or fused attention?

# %%
my_guess = None  # e.g. "8-bit Adam"

# %%
jonas = Setup(
    "HuggingFaceTB/SmolLM2-1.7B",
    dtype="float32",
    mixed_precision="no",
    checkpointing="none",
    attention="eager",
    optimizer="adamw_torch",
    batch_size=2,
    seq_len=2048,
)
LORA = {"lora": True, "lora_targets": "all-linear"}
QLORA = {**LORA, "quantization": "nf4-double"}
CHECKPOINTING, FUSED = {"checkpointing": "non-reentrant"}, {"attention": "sdpa"}
on_t4 = functools.cache(lambda setup: predict(setup, "t4"))
changes = {
    "as it is": {},
    "16-bit weights": {"dtype": "bfloat16"},
    "8-bit Adam": {"optimizer": "adamw_bnb_8bit"},
    "LoRA": LORA,
    "QLoRA (nf4)": QLORA,
    "checkpointing": CHECKPOINTING,
    "fused attention (sdpa)": FUSED,
    "all of QLoRA, checkpointing, sdpa": QLORA | CHECKPOINTING | FUSED,
}
predicted = {name: on_t4(jonas.replace(**change)) for name, change in changes.items()}

# %% tags=["figure:04_solutions"]
figure, axis = plt.subplots(figsize=(8, 3.8))
left = [0.0] * len(predicted)
for kind in MEMORY_COLOURS:
    widths = [prediction.at_peak[kind] / 1000 for prediction in predicted.values()]
    axis.barh(list(predicted), widths, left=left, color=MEMORY_COLOURS[kind], label=kind)
    left = [begin + width for begin, width in zip(left, widths, strict=True)]
for row, total in enumerate(left):
    axis.text(total + 0.5, row, f"{total:.1f}", va="center")
axis.axvline(15.36 * 1.048576, color=RED, linewidth=1, linestyle="--")
axis.text(16.6, -0.75, "a T4", color=RED, fontsize=9)
axis.invert_yaxis()
axis.grid(axis="x")
axis.set_xlim(0, max(left) * 1.12)
axis.set_xlabel("allocated at the peak (GB)")
axis.set_title("One change at a time, and all together", pad=14)
axis.legend(fontsize=9, loc="lower right")
plt.show()
print("You said:", my_guess)

# %% tags=["value:overview"]
base_peak = predicted["as it is"].peak_allocated_mb
overview = pd.DataFrame(
    {
        name: {
            **{kind: f"{found.at_peak[kind] / 1000:.1f}" for kind in list(MEMORY_COLOURS)[:4]},
            "peak (GB)": f"{found.peak_allocated_mb / 1000:.1f}",
            "saved": f"{1 - found.peak_allocated_mb / base_peak:.0%}",
        }
        for name, found in predicted.items()
    }
).T
overview

# %% tags=["claim"]
at = {name: found.at_peak for name, found in predicted.items()}
start = at["as it is"]
assert abs(at["16-bit weights"]["weights"] / start["weights"] - 0.5) < 0.01
assert at["16-bit weights"]["activations"] > start["activations"]
assert start["gradients"] < 300 < 6000 < at["checkpointing"]["gradients"]
assert at["8-bit Adam"]["optimizer"] < start["optimizer"] / 3
assert (
    max(predicted["checkpointing"].phases, key=predicted["checkpointing"].phases.get) == "optimizer"
)
saving = {name: 1 - found.peak_allocated_mb / base_peak for name, found in predicted.items()}
assert f"{saving['checkpointing']:.0%} {saving['fused attention (sdpa)']:.0%}" == "51% 40%"
assert f"{saving['LoRA']:.0%} {saving['QLoRA (nf4)']:.0%}" == "16% 30%"

# %% [markdown]
# Checkpointing saves most here, 51%, and fused attention comes next with 40%. Many people guess
# LoRA or QLoRA, but these save 16% and 30%: in *this* training, most of the memory is activations.
# Now compare the columns with the first row. Hardly any change works on one part alone:
#
# - **16-bit weights** halve weights, gradients and states. The activations do not halve; they grow.
#   Eager attention computes its softmax in 32 bits anyway, and keeps a 16-bit copy beside it.
# - **8-bit Adam** shrinks the states alone, and **fused attention** mainly the activations.
# - **LoRA** removes gradients and states, and adds some activations of its own. **QLoRA** also
#   shrinks the weights. Its activations are a little lower than LoRA's. We expect that this is
#   because TRL keeps the adapter of QLoRA in 16 bits.
# - **Checkpointing** removes most activations, and its bar has *gained* gradients. The gradients
#   exist in every row, but without checkpointing the peak came before most of them were made. Now
#   the highest moment is the optimizer's step, when all gradients exist. (Plain Adam makes a
#   temporary copy there. This copy is the 6.8 GB in the column *activations*.)
#
# ## 6. Out of memory: what to try, in which order
#
# First find out *when* the memory ran out, because this tells you what filled it:
#
# | the training stops | large then | look at |
# |---|---|---|
# | while the model is loaded | weights | fewer bits; other programs on the GPU |
# | in the forward pass, or early in the backward pass | activations | attention, checkpointing, batch, length |
# | in the optimizer's step, or only in the second step | gradients, states | LoRA, 8-bit Adam |
# | during an evaluation | logits | `per_device_eval_batch_size` |
#
# On a GPU, `torch.cuda.max_memory_allocated()` is the peak in bytes, and
# `torch.cuda.memory_summary()` prints a table. In its column *Peak Usage*, *Allocated memory* is
# what the tensors filled, and *GPU reserved memory* is what PyTorch had taken from the GPU, gaps
# included. The reserved memory has to fit. A prediction has the same two figures.

# %%
if torch.cuda.is_available():
    print(torch.cuda.memory_summary(abbreviated=True))
    print(f"peak: {torch.cuda.max_memory_allocated() / 1e6:,.0f} MB")
else:
    print("No GPU here, so nothing is measured.")
worst = predicted["as it is"]
print(f"Jonas, predicted: {worst.peak_allocated_mb:,.0f} MB allocated at the peak,")
print(f"{worst.peak_reserved_mb:,.0f} MB reserved. The peak in each phase, in GB:")
print({phase: round(size / 1000, 1) for phase, size in worst.phases.items()})

# %% [markdown]
# Jonas's training stops in the forward pass, so activations come first. A good order: first what
# leaves the result as it is (fused attention, checkpointing, smaller micro-batches), then what
# changes what is trained (LoRA), then what changes the weights (4 bits). After each change look
# again at what is largest, and stop when it fits.

# %% tags=["value:triage"]
SMALLER = {"batch_size": 1, "accumulation": 2}  # two micro-batches of one example make a step
order = {
    "as it is": {},
    "+ fused attention": FUSED,
    "+ checkpointing": CHECKPOINTING,
    "+ smaller micro-batches": SMALLER,
    "+ LoRA": LORA,
    "+ 4-bit weights": QLORA,
}
setup, rows = jonas, {}
for name, change in order.items():
    setup = setup.replace(**change)
    found = on_t4(setup)
    rows[name] = {
        "peak (GB)": round(found.peak_allocated_mb / 1000, 1),
        "highest in": max(found.phases, key=found.phases.get),
        "largest part": max(found.at_peak, key=found.at_peak.get),
        "fits a T4": "yes" if found.fits else "no",
    }
triage = pd.DataFrame(rows).T
triage

# %% tags=["claim"]
assert triage["fits a T4"].tolist() == ["no"] * 4 + ["yes"] * 2
assert triage.loc["+ smaller micro-batches", "highest in"] == "optimizer"
assert (
    triage.loc["+ smaller micro-batches", "peak (GB)"] == triage.loc["+ checkpointing", "peak (GB)"]
)
assert triage.loc["+ LoRA", "peak (GB)"] == 8.2
assert worst.phases["forward"] > 16_000

# %% [markdown]
# Each row also has the changes of the rows above it. After checkpointing, the peak is in the
# optimizer's step. Then smaller micro-batches no longer help, because the largest part is not
# activations any more. The largest part is now the optimizer's states. LoRA removes nearly all of
# them, and at 8.2 GB the training fits. Jonas can stop here: this model does not need 4 bits.
# Notebook 05 has a longer list of changes with their prices.
#
# ### Try your own
#
# Choose, and press Predict. "Make it fit" looks for the cheapest changes.

# %%
from course_utils.widgets import memory_calculator

memory_calculator()

# %%
# The same without widgets:
from course_utils.memory import fits

mine = Setup("HuggingFaceTB/SmolLM2-1.7B", dtype="float16", lora=True, seq_len=1024)
print("fits a T4" if fits(mine, "t4") else "does not fit a T4")

# %% [markdown]
# ## Take away
#
# - A training's memory is weights, gradients, the optimizer's states and activations. They peak at
#   different moments, and the states are there from the second step on (section 3).
# - Gradient checkpointing runs each layer twice and keeps only its input. The gradients are the
#   same (section 2). TRL's `SFTTrainer` does it by default, and computes the logits in tiles
#   (section 3).
# - LoRA removes gradients and states, and leaves weights and activations (sections 3 and 5).
# - Formulas count the layers only: with OPT-350M they were 19% to 28% below the prediction (section
#   4).
# - A change can move the peak to another moment. So look at what is largest, change that, and look
#   again (sections 5 and 6). All figures are predictions; none is measured on a GPU yet.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** All batches of a training are equally large. The first step fits, and the second one runs
# out of memory. Why?
#
# - **A** The activations of the first step are kept for the second.
# - **B** Only now are the optimizer's states there from the start.
# - **C** The gradients of the two steps are added up.
# - **D** The weights are copied before the optimizer changes them.
#
# **b.** What does gradient checkpointing change?
#
# - **A** The gradients: they are rounded, and take half the memory.
# - **B** The trained weights: only some of the layers are trained.
# - **C** The disk: activations are written to it, and read again.
# - **D** Memory and time: most layers' tensors are computed twice.
#
# **c.** LoRA training of a small model on long texts: memory runs out in the *forward* pass. What
# is most likely to help?
#
# - **A** An optimizer with states of 8 bits.
# - **B** A lower rank for the adapter.
# - **C** Shorter texts, or smaller micro-batches.
# - **D** To empty the allocator's cache more often.
#
# **d.** You switch checkpointing on. The peak falls, and now gradients are a part of it, which were
# none before. What has happened?
#
# - **A** The peak is now at a later moment, when gradients exist.
# - **B** Checkpointing has made more gradients than were there before.
# - **C** The frozen layers have become trainable by checkpointing.
# - **D** The prediction is wrong: gradients do not depend on it.

# %%
from course_utils.exercises import check, quiz

quiz("04", a="...", b="...", c="...", d="...")

# %% [markdown]
# **04.1 · On paper.** Write `held_gb(parameters, bits, adapter)`: how many GB (10⁹ bytes) a LoRA
# training holds apart from its activations. The frozen weights take `bits` bits each. The adapter
# has `adapter` numbers and is trained by AdamW; its weights, gradients and states are in float32.
# Then compare 16 and 4 bits for 7 billion weights and an adapter of 40 million.


# %% tags=["exercise"]
def held_gb(parameters, bits, adapter):
    """GB of weights, gradients and optimizer states in a LoRA training."""
    ### BEGIN SOLUTION
    frozen = parameters * bits / 8
    trained = adapter * 4 * (1 + 1 + 2)  # weight, gradient, two moments
    return (frozen + trained) / 1e9
    ### END SOLUTION


# %%
check("04.1", held_gb)

# %% [markdown]
# **04.2 · Alone: the second step.** A training ran for one step and then was out of memory. Write
# `second_step_costs(setup)`: by how many MB does the peak of allocated memory rise if two optimizer
# steps are run instead of one? Compare two predictions. `micro_batches` says how many micro-batches
# are run, and `accumulation` how many of them make a step. Then try `course/pythia-3m` with
# different optimizers. For which of them is the second step free?


# %% tags=["exercise"]
def second_step_costs(setup):
    """MB by which the peak of two optimizer steps lies above that of one."""
    ### BEGIN SOLUTION
    from course_utils.memory import predict

    one, two = (
        predict(setup.replace(micro_batches=steps * setup.accumulation)).peak_allocated_mb
        for steps in (1, 2)
    )
    return two - one
    ### END SOLUTION


# %%
check("04.2", second_step_costs)

# %% [markdown]
# Solutions: `notebooks/solutions/04_memory.py`.
#
# ## To read
#
# - Chen et al., [Training deep nets with sublinear memory
#   cost](https://arxiv.org/abs/1604.06174): gradient checkpointing.
# - Korthikanti et al., [Reducing activation recomputation](https://arxiv.org/abs/2205.05198): the
#   formula for activations.
# - Hsu et al., [Liger Kernel](https://arxiv.org/abs/2410.10989): the loss without all logits.
# - The [glossary](../docs/glossary.md): the course's words.
