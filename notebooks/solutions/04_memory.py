# %% [markdown]
# # 04 · Quantization, and where memory goes
#
# **You will learn** what a number loses in 16, 8 and 4 bits, and how a weight matrix is quantized,
# by hand and by bitsandbytes. You will measure what this costs a real model and what it saves, and
# make a 4-bit model ready for training. Then you will look at what fills a GPU during a training
# step, moment by moment.
#
# **You need** notebook 02 (LoRA).
#
# **It takes** about an hour of reading and trying. The cells themselves run in about two minutes on
# two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Jonas wants to fine-tune a model with 1.7 billion parameters on a T4, a GPU with 16 GB of memory.
# The weights take about 7 GB in 32 bits, but the training stops at once: out of memory. Where did
# the memory go, and what can he do? Sections 1 to 4 make the weights small. Sections 5 to 7 look at
# everything else that a training holds.

# %%
import logging
import warnings

import transformers

# Inside the libraries, of no concern here: an argument's old name; progress bars; and a line at
# each 8-bit multiplication which says that it takes its inputs in float16.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

from course_utils import describe, load_model, load_tokenizer

print(describe())
model = load_model("chat")
tokenizer = load_tokenizer("chat")
small = model.num_parameters() < 1e9
bytes_16 = 2 * model.num_parameters()

# %% [markdown]
# ## 1. Numbers in fewer bits
#
# **Quantization** writes the numbers of a model with fewer bits. What do the bits do? A
# floating-point number is a sign, a fraction and an exponent: $\pm 1.\text{fraction} \times
# 2^{\text{exponent}}$. The bits of the exponent decide how *far* the numbers reach. The bits of the
# fraction decide how *close* together they lie. PyTorch knows both:

# %% tags=["value:number-formats"]
import math

import pandas as pd
import torch

FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
rows = {}
for name, dtype in FLOATS.items():
    facts = torch.finfo(dtype)
    fraction = round(-math.log2(facts.eps))
    rows[name] = {
        "bits": facts.bits,
        "of the exponent": facts.bits - 1 - fraction,
        "of the fraction": fraction,
        "largest": f"{facts.max:.3g}",
        "smallest in full precision": f"{facts.tiny:.1g}",
        "next after 1": f"1 + {facts.eps:.1g}",
    }
pd.DataFrame(rows).T

# %% [markdown]
# Of the two types with 16 bits, float16 spends the bits on precision and bfloat16 on range:
# bfloat16 reaches as far as float32, but its fraction has seven bits instead of 23.
#
# **Guess first.** What becomes of 70000 in float16, and of 1.001 in bfloat16?

# %%
my_guess = {"70000 in float16": "...", "1.001 in bfloat16": "..."}

# %%
numbers = torch.tensor([1 / 3, 70_000.0, 1e-6, 1.001])


def shown(values, names):
    """Some numbers as texts, a row each."""
    return pd.DataFrame(
        {name: [f"{value:.6g}" for value in column.tolist()] for name, column in values.items()},
        index=names,
    )


names = ["1/3", "70000", "1e-6", "1 + 0.001"]
rounded = {name: numbers.to(dtype).float() for name, dtype in FLOATS.items()}
print("You said:", my_guess)
shown(rounded, names)

# %% tags=["claim"]
assert rounded["float16"][1] == math.inf
assert rounded["bfloat16"][1] == 70144
assert rounded["bfloat16"][3] == 1

# %% [markdown]
# float16 ends at 65504, so 70000 becomes infinite. bfloat16 holds 70000 roughly, as 70144, but it
# rounds 1.001 to 1. Many people expect a small error in both cases.
#
# This matters for training. Suppose that a weight of 1 is raised by 0.001, a thousand times over.
# **Guess first:** where does it end in each type?

# %%
my_guess = {"float32": 2, "float16": "...", "bfloat16": "..."}

# %% tags=["value:small-updates"]
ends = {}
for name, dtype in FLOATS.items():
    weight = torch.tensor(1.0, dtype=dtype)
    for _ in range(1000):
        weight += 0.001
    ends[name] = weight.item()
print("You said:", my_guess)
print({name: f"{end:.3f}" for name, end in ends.items()})

# %% tags=["claim"]
assert ends["bfloat16"] == 1
assert abs(ends["float32"] - 2) < 1e-3

# %% [markdown]
# In bfloat16 the weight has not moved at all. Most people expect something near 2, but each sum,
# 1.001, is rounded back to 1. float16 gets to 1.977, because its steps above 1 are close to 0.001.
# For this reason, weights that are *trained* are mostly held in float32, like the adapters of
# notebook 02. A frozen weight is only read. How few bits are enough for it?
#
# ### One scale for many numbers
#
# Eight bits can tell 256 values apart, and four bits sixteen: too few for an exponent in each
# number. So a *block* of numbers shares one factor, the **scale**. Each number is stored as a
# *code*, and a code stands for a *level* between −1 and 1. To get the number back, multiply its
# level by the scale. The scale is the largest absolute value of the block (*absmax*).
#
# Which levels? For **int8** they are evenly spaced. For four bits we compare three sets: **int4**,
# evenly spaced again; **fp4**, a floating-point type with one sign bit, two exponent bits and one
# fraction bit; and **nf4**, which comes with QLoRA. We get the last two from bitsandbytes, the
# library that quantizes models for transformers.

# %%
from bitsandbytes.functional import get_4bit_type

LEVELS = {
    "int8": torch.arange(-127, 128) / 127,
    "int4": torch.arange(-7, 8) / 7,
    "fp4": get_4bit_type("fp4", device="cpu").sort().values,
    "nf4": get_4bit_type("nf4", device="cpu"),
}
for name in ("int4", "fp4", "nf4"):
    print(name, " ".join(f"{level:.2g}" for level in LEVELS[name].tolist()))

# %% [markdown]
# The next cell is all of absmax quantization. `quantize` makes codes and scales. `dequantize` turns
# them back into numbers.


# %%
def quantize(weight, levels, block):
    """Codes, one a number, and scales, one a block."""
    rows = weight.reshape(-1, block)
    scales = rows.abs().amax(dim=1, keepdim=True)
    borders = (levels[1:] + levels[:-1]) / 2  # halfway between two levels
    codes = torch.bucketize(rows / scales, borders)  # which level is the nearest
    return codes, scales


def dequantize(codes, scales, levels, shape):
    """The numbers that codes and scales stand for."""
    return (levels[codes] * scales).reshape(shape)


def there_and_back(weight, name, block):
    """What is left of a weight."""
    return dequantize(*quantize(weight, LEVELS[name], block), LEVELS[name], weight.shape)


# %% [markdown]
# **Guess first.** Now our four numbers are one block, and share a scale. What is left of 1/3?

# %%
my_guess = "..."

# %%
together = {name: there_and_back(numbers, name, block=4) for name in LEVELS}
print("You said:", my_guess)
shown(together, names)

# %% tags=["claim"]
assert all(values.count_nonzero() == 1 for values in together.values())

# %% [markdown]
# Nothing. Many people expect a small relative error, as before. But the scale is 70000, so the
# level next to zero is worth hundreds or more, and 1/3 and 1.001 are rounded to 0. We leave the
# large neighbour out:

# %%
others = torch.tensor([1 / 3, 1e-6, 1.001])
apart = {name: there_and_back(others, name, block=3) for name in LEVELS}
shown(apart, ["1/3", "1e-6", "1 + 0.001"])

# %% tags=["claim"]
assert abs(apart["int8"][0] - 1 / 3) < 0.005
assert abs(apart["nf4"][0] - 1 / 3) < 0.03

# %% [markdown]
# 1/3 comes back nearly right. (fp4 is the closest only because it happens to have a level at 0.33.)
# 0.000001 is still lost beside 1.001. So this is the rule: **a scale works well only if the numbers
# of its block are of similar size.**
#
# Are real weights of similar size? The plot shows the weights of a layer in the middle of the
# model, each divided by the largest of its block of 64, and below them the levels of each set.

# %% tags=["figure:04_levels"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREEN, GREY, ORANGE, RED, SKY, text_table, use_style

use_style()
middle = len(model.model.layers) // 2
weight = model.model.layers[middle].mlp.up_proj.weight.detach().float().cpu()
blocks = weight.reshape(-1, 64)
scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True)).flatten()

figure, (above, below) = plt.subplots(
    2, 1, figsize=(8, 4), sharex=True, height_ratios=[1.4, 1], gridspec_kw={"hspace": 0.02}
)
above.hist(scaled.numpy(), bins=101, density=True, color=SKY)
above.set_yticks([])
above.set_title(f"Weights of layer {middle}, and the levels that they are rounded to")
colours = {"nf4": BLUE, "fp4": RED, "int4": ORANGE, "int8": GREY}
below.eventplot(
    [LEVELS[name].tolist() for name in colours],
    lineoffsets=range(4),
    linelengths=0.7,
    linewidths=[2, 2, 2, 0.8],
    colors=list(colours.values()),
)
below.set_yticks(range(4), list(colours))
below.set_xlabel("weight / largest of its block of 64")
plt.show()

# %% [markdown]
# The spikes at both ends are the largest weights of the blocks. The others form a bell. nf4
# (*NormalFloat*) is made for numbers that are normally distributed, so it puts its levels close
# together where the bell is high. Even spacing spends as many levels on the thin tails as on the
# middle. fp4 leaves wide gaps near zero, where most weights are, while four of its codes are *at*
# zero or next to it. We count the levels near zero:

# %%
near_zero = {name: int((levels.abs() < 0.01).sum()) for name, levels in LEVELS.items()}
print("levels within 0.01 of zero:", near_zero)

# %% tags=["claim"]
assert near_zero["fp4"] == 4
assert near_zero["nf4"] == near_zero["int4"] == 1

# %% [markdown]
# ### One outlier
#
# An *outlier* is a number that is many times larger than its neighbours. The next cell draws 65,536
# numbers from a normal distribution and makes one of them larger: up to a thousand times the
# standard deviation of the others.
#
# **Guess first.** How large may the outlier be until int8 with one scale does *worse* on all the
# others than nf4 in blocks of 64?

# %%
my_guess = 1000

# %% tags=["figure:04_outlier", "value:outliers"]
torch.manual_seed(0)
bell = torch.randn(2**16)
sizes = [5, 10, 20, 50, 100, 200, 500, 1000]


def off(found, wanted):
    """The relative error: root mean square of the difference over that of the wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


errors = {}
for name, block in (("int8", len(bell)), ("int8", 64), ("nf4", len(bell)), ("nf4", 64)):
    found = []
    for size in sizes:
        with_outlier = bell.clone()
        with_outlier[0] = size
        found.append(off(there_and_back(with_outlier, name, block)[1:], bell[1:]))
    errors[name, block] = found

figure, axis = plt.subplots(figsize=(7.5, 3.4))
for (name, block), found in errors.items():
    axis.plot(
        sizes,
        found,
        color=colours[name],
        ls="-" if block == 64 else "--",
        marker="o",
        ms=4,
        label=f"{name}, {'blocks of 64' if block == 64 else 'one scale for all'}",
    )
axis.set_xscale("log")
axis.set_yscale("log")
axis.grid()
axis.set_xlabel("size of one outlier, in standard deviations of the others")
axis.set_ylabel("relative error of the others")
axis.set_title("One number among 65,536")
axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
plt.show()

worse = next(
    size
    for size, alone, four in zip(sizes, errors["int8", len(bell)], errors["nf4", 64], strict=True)
    if alone > four
)
print(f"Among the sizes tried, int8 with one scale loses to nf4 in blocks from {worse} on.")
print(f"You said {my_guess}.")

# %% tags=["claim"]
at_100 = {key: found[sizes.index(100)] for key, found in errors.items()}
assert worse <= 100
for name in ("int8", "nf4"):
    assert at_100[name, 64] < 0.2 * at_100[name, len(bell)]
assert max(errors["nf4", 64]) < 1.1 * min(errors["nf4", 64])

# %% [markdown]
# Among the sizes tried, 50 is enough. People often guess more, because eight bits have many more
# levels than four. But the outlier stretches the scale, and the levels become too coarse for every
# other number. Blocks keep the damage in the outlier's own block. (The error of int8 in blocks
# rises a little: these are the outlier's 63 neighbours.)
#
# Do real weights have such outliers? **Guess first:** how large is the largest weight of a matrix,
# in standard deviations?

# %%
my_guess = "..."


# %%
def linear_layers(model):
    """Names and layers, without the output layer."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


furthest = pd.Series(
    {
        name.removeprefix("model.layers."): (
            layer.weight.abs().max() / layer.weight.float().std()
        ).item()
        for name, layer in linear_layers(model).items()
    }
).sort_values()
in_a_bell = torch.randn(weight.numel()).abs().max().item()
print("You said:", my_guess)
print(f"{weight.numel():,} numbers from a perfect bell: {in_a_bell:.1f}")
print(f"{len(furthest)} matrices of the model, lowest, middle and highest:")
furthest.iloc[[0, len(furthest) // 2, -1]].round(1)

# %% tags=["claim"]
assert furthest.median() > 1.5 * in_a_bell

# %% [markdown]
# Yes. In the median matrix (SmolLM2-135M in the saved run), the largest weight is at 11 standard
# deviations, and in the most extreme one at 51. In a normal distribution it is at about 5, which is
# what many people guess. So we need blocks.
#
# ## 2. Quantizing a layer by hand
#
# In the end we care about what a layer makes of real inputs. To get inputs, we need a text that the
# model cannot have read. We take paragraphs of the course's own notebooks 01, 02 and 06, which were
# written after the model was trained.

# %%
import json
import re

from course_utils.data import folder as data_folder


def paragraphs(notebook):
    """The plain paragraphs of a notebook: no headings, lists, code, formulas or links."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for text in "".join(cell["source"]).split("\n\n"):
                if len(text) >= 150 and not re.search(r"^[-#\d]|[`$|<\[]", text):
                    yield " ".join(text.replace("*", "").split())


notebooks = data_folder().parent / "notebooks"
prose = [
    text
    for number in ("01", "02", "06")
    for path in sorted(notebooks.glob(f"{number}_*.ipynb"))
    for text in paragraphs(path)
]
WINDOW = 512
ids = torch.tensor(tokenizer("\n\n".join(prose))["input_ids"])
ids = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)[:4]
print(f"{len(prose)} paragraphs; of these {ids.numel():,} tokens in windows of {WINDOW}\n")
print(tokenizer.decode(ids[0, :70]), "…")

# %% tags=["claim"]
assert ids.shape == (4, WINDOW)

# %% [markdown]
# The model reads the first window of this text. Meanwhile a *hook*, a function that PyTorch calls
# at each forward pass of a layer, keeps what goes into the layer.

# %%
inputs = {}


def keep(name):
    """A hook that notes the inputs of a layer: a tensor (tokens, features)."""

    def hook(module, args):
        inputs[name] = args[0][0].detach().float().cpu()

    return hook


hooks = [
    layer.register_forward_pre_hook(keep(name)) for name, layer in linear_layers(model).items()
]
with torch.inference_mode():
    model(ids[:1].to(model.device))
for hook in hooks:
    hook.remove()

name = f"model.layers.{middle}.mlp.up_proj"
x = inputs[name]
print(f"{name}: weight {tuple(weight.shape)}, inputs {tuple(x.shape)}")

# %% [markdown]
# We compare one scale for the whole matrix, one for each row (each output), and one for each 64
# weights. A scale is a float32, so with blocks of 64 it adds half a bit to each weight. *Off by* is
# the relative error of the weights, and of the layer's outputs. The last column is the error for as
# many numbers from a normal distribution.
#
# **Guess first.** By how much are the layer's outputs off with nf4 in blocks of 64: one per cent,
# ten, or thirty?

# %%
my_guess = 0.3

# %%
torch.manual_seed(0)
normal = torch.randn_like(weight)
out_features, in_features = weight.shape
results = []


def note(levels, scale, bits, rounded, by="hand", **more):
    """A row of the table: how many bits, and how far off."""
    row = {"levels": levels, "a scale for": scale, "by": by, "bits a weight": round(bits, 2)}
    row |= {"weights off by": off(rounded, weight)}
    row |= {"outputs off by": off(x @ rounded.T, x @ weight.T)}
    results.append(row | more)


def show(frame, formats):
    """A table with its numbers written out."""
    texts = {
        column: [formats[column].format(n) if pd.notna(n) else "" for n in frame[column]]
        for column in formats
        if column in frame
    }
    return frame.assign(**texts)


for levels in LEVELS:
    for scale, block in (("matrix", weight.numel()), ("row", in_features), ("64 weights", 64)):
        bits = (8 if levels == "int8" else 4) + 32 / block
        of_normal = off(there_and_back(normal, levels, block), normal)
        rounded = there_and_back(weight, levels, block)
        note(levels, scale, bits, rounded, **{"normal numbers off by": of_normal})

SCHEME_FORMATS = {
    "bits a weight": "{:.2f}",
    "weights off by": "{:.1%}",
    "outputs off by": "{:.1%}",
    "normal numbers off by": "{:.1%}",
}
by_hand = pd.DataFrame(results).set_index(["levels", "a scale for"])
print(f"You said {my_guess}; it is {by_hand.loc[('nf4', '64 weights'), 'outputs off by']:.1%}.")
show(by_hand.drop(columns="by"), SCHEME_FORMATS)

# %%
for column in ("normal numbers off by", "weights off by", "outputs off by"):
    error = by_hand[column]
    for levels in LEVELS:
        blocks, by_row, all_in_one = (error[levels, n] for n in ("64 weights", "row", "matrix"))
        assert blocks < by_row < all_in_one
    int8, nf4, int4, fp4 = (error[n, "64 weights"] for n in ("int8", "nf4", "int4", "fp4"))
    assert int8 < nf4 < int4 < fp4

# %% [markdown]
# The outputs are off by 9.1%. Many people guess less, because 4-bit models still write good text.
# Three things to see:
#
# - Smaller blocks are better each time, and they cost little.
# - At four bits in blocks, nf4 has the smallest error, on normal numbers and on this layer. Even
#   spacing comes next, and fp4 last.
# - Nine per cent is a large error, and we expect one like it in every linear layer. Section 3
#   measures how well the model still works.
#
# ### What bitsandbytes does
#
# `quantize_4bit` packs two codes into a byte, and it keeps the scales and the rest in a *state*.
# Does it compute the same as our few lines?

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
theirs = dequantize_4bit(packed, state)
ours = there_and_back(weight, "nf4", 64)

codes, scales = quantize(weight, LEVELS["nf4"], 64)
pairs = codes.reshape(-1, 2)
print(f"{weight.numel():,} weights in {packed.numel():,} bytes, {state.absmax.numel():,} scales")
print("the same numbers:", torch.allclose(ours, theirs, atol=1e-6))
print("the same bytes:  ", torch.equal(pairs[:, 0] * 16 + pairs[:, 1], packed.flatten().long()))

# %% tags=["claim"]
assert torch.allclose(ours, theirs, atol=1e-6)
assert torch.allclose(scales.flatten(), state.absmax)
assert (pairs[:, 0] * 16 + pairs[:, 1] == packed.flatten()).float().mean() > 0.999

# %% [markdown]
# It does: the numbers and the bytes are the same. We have left out one step, **double
# quantization**. The scales are float32 numbers too, so they can be quantized in their turn: to 8
# bits, in blocks of 256.
#
# **int8** in bitsandbytes, which is called `LLM.int8()`, has a scale for each row. It also
# quantizes the layer's *inputs*, row by row, so that it can multiply integers.
#
# The next table compares our errors (*hand*) with the library's.

# %%
from bitsandbytes.nn import Linear8bitLt


def int8_layer(weight, threshold):
    """A layer as LLM.int8() makes it."""
    layer = Linear8bitLt(
        weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False, threshold=threshold
    )
    layer.load_state_dict({"weight": weight.clone()})
    return layer.to("cpu").eval()  # it quantizes when it is moved


results = [row for row in results if row["by"] == "hand"]  # if this cell is run again
for levels, double in (("fp4", False), ("nf4", False), ("nf4", True)):
    codes, state = quantize_4bit(weight, quant_type=levels, compress_statistics=double)
    bits = 4 + (8 / 64 + 32 / (64 * 256) if double else 32 / 64)
    scale = "64 weights, double" if double else "64 weights"
    note(levels, scale, bits, dequantize_4bit(codes, state), by="bitsandbytes")

layer = int8_layer(weight, threshold=6.0)
rounded = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
with torch.inference_mode():
    outputs_off = off(layer(x), x @ weight.T)
more = {"outputs off by": outputs_off}
note("int8", "row", 8 + 32 / in_features, rounded, by="bitsandbytes", **more)

errors = pd.DataFrame(results).pivot(
    index=["levels", "a scale for", "bits a weight"],
    columns="by",
    values=["weights off by", "outputs off by"],
)
errors = errors[errors["weights off by", "bitsandbytes"].notna()]
errors.map(lambda error: f"{error:.1%}" if pd.notna(error) else "")

# %% tags=["claim"]
of_weights = errors["weights off by"].droplevel("bits a weight")
of_outputs = errors["outputs off by"].droplevel("bits a weight")
apart = (of_weights["hand"] - of_weights["bitsandbytes"]).abs()
double, single = (
    of_weights["bitsandbytes"]["nf4", n] for n in ("64 weights, double", "64 weights")
)
assert apart["nf4", "64 weights"] < 1e-6
assert apart.max() < 1e-3  # fp4, int8: a number halfway between two levels may go either way
assert double < 1.02 * single
assert of_outputs["bitsandbytes"]["int8", "row"] > 1.5 * of_outputs["hand"]["int8", "row"]

# %% [markdown]
# Double quantization saves 0.37 bits for each weight, and the table shows no difference in the
# error.
#
# int8 holds a surprise: its *weights* are as exact as ours by rows, but its *outputs* are off by
# 3.3% and not by 0.9%. The cause is that the inputs are rounded too. Why are inputs harder to
# round?
#
# **Guess first.** Take all inputs of all layers, on these 512 tokens. How many times as large as
# the typical input of its layer (the root mean square) is the largest?

# %%
my_guess = 20

# %%
spread = pd.DataFrame(
    {
        name.removeprefix("model.layers."): {
            "typical": values.square().mean().sqrt().item(),
            "largest": values.abs().max().item(),
            "features above 6": (values.abs() > 6).any(dim=0).sum().item(),
        }
        for name, values in inputs.items()
    }
).T
spread["ratio"] = spread["largest"] / spread["typical"]
spread = spread.sort_values("ratio", ascending=False)
print(f"You said {my_guess}.")
spread.head(4).round(1)

# %% tags=["claim"]
assert spread["ratio"].max() > 50

# %% [markdown]
# More than 800 times, in one layer of the saved run. Most people guess less, because the largest
# weight was at 51 standard deviations. Again a few huge numbers stretch the scale for all the
# others.
#
# LLM.int8() was written for such *outlier features*. A feature with a value above a threshold
# (`llm_int8_threshold`, 6 by default) is computed in 16 bits, and only the other features become
# integers. The next cell computes the four layers with the largest ratio, without the threshold and
# with it:

# %%
rows = {}
for short in spread.index[:4]:
    name = f"model.layers.{short}"
    hard = inputs[name]
    hard_weight = linear_layers(model)[name].weight.detach().float().cpu()
    with torch.inference_mode():
        outputs = {n: int8_layer(hard_weight, threshold=n)(hard) for n in (0.0, 6.0)}
    rows[short] = {
        "features": hard.shape[1],
        "of these in 16 bits": int(spread.loc[short, "features above 6"]),
        "all in int8, off by": off(outputs[0.0], hard @ hard_weight.T),
        "with the threshold, off by": off(outputs[6.0], hard @ hard_weight.T),
    }
outliers = pd.DataFrame(rows).T
show(
    outliers,
    {
        "features": "{:.0f}",
        "of these in 16 bits": "{:.0f}",
        "all in int8, off by": "{:.2%}",
        "with the threshold, off by": "{:.2%}",
    },
)

# %% tags=["claim"]
assert (outliers["with the threshold, off by"] < outliers["all in int8, off by"]).all()

# %% [markdown]
# In all four layers, the threshold makes the error smaller. An error remains, because the inputs
# below the threshold are still rounded. This explains the 3.3% above, too.
#
# nf4 does not have this problem, because it does not round the inputs. Each time the 4-bit weights
# are needed, they are *dequantized*, that is, expanded to 16 bits, and the multiplication is done
# in 16 bits. This saves memory, but no arithmetic.
#
# ### A trace in the weights
#
# Among 32 numbers from a normal distribution, hardly any two are equal. How many *different*
# numbers are there among 32 neighbouring weights of our layer?

# %%
different = {
    what: torch.tensor([len(row.unique()) for row in matrix.reshape(-1, 32)[:2000]])
    for what, matrix in (("bell, in bfloat16", normal.bfloat16()), ("our layer", weight))
}
for what, counts in different.items():
    print(f"{what}: {counts.min()} to {counts.max()} different numbers in 32")

# %%
from course_utils.models import resolve

origin = resolve("chat")

# %% tags=["claim"]
if origin.where == "embedded":
    assert different["our layer"].max() <= 16

# %% [markdown]
# If you have the embedded model, there are never more than sixteen. So its weights have been
# through four bits before. The line that was printed when the model was loaded says so: *4-bit
# weights (Q4_1), expanded*. The weights keep traces of it: blocks of 32, with sixteen evenly spaced
# levels each (exercise 04.2). A model from the hub has no such past.
#
# So in the saved run, "float32" is not the model as it was trained, but the expanded Q4_1 weights.
# What nf4 costs there is the cost of rounding a *second* time. We can compare the precisions on
# these weights, but we cannot say what four bits cost the original model.
#
# ## 3. The model in each precision
#
# transformers quantizes a model while it loads it. All it needs is a `quantization_config`:

# %%
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from course_utils.hardware import detect, pick_dtype

compute = pick_dtype().value  # what this machine computes in
device = detect().device
# With the hub you would write the model's name here: "HuggingFaceTB/SmolLM2-135M-Instruct".
folder = origin.folder
model = None  # frees its memory
inputs.clear()

quantized = AutoModelForCausalLM.from_pretrained(
    folder,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    ),
    dtype=compute,
    device_map={"": device},
)
print(quantized.model.layers[0].mlp)

# %% tags=["claim"]
assert quantized.is_loaded_in_4bit

# %% [markdown]
# For eight bits you would write `BitsAndBytesConfig(load_in_8bit=True)`.
#
# **Guess first.** The next cell prints how many megabytes the model takes in 16 bits. How many does
# it take in four? The guess that is filled in is a quarter.

# %%
my_guess = bytes_16 / 1e6 / 4
print(f"16 bits: {bytes_16 / 1e6:.0f} MB, guess for 4 bits: {my_guess:.0f} MB")

# %%
KINDS = {
    r"embed|lm_head": "embeddings, output layer",
    r"norm": "norms",
    r"absmax|SCB": "linear layers: scales",
    r"quant_map|quant_state|format": "linear layers: lists of levels, notes",
    r"weight$": "linear layers: codes",
    r"": "others",
}


def parts(model):
    """What a model holds, from its state dict: a row for each kind of tensor."""
    rows, seen = [], set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:  # tied weights have two names
            continue
        seen.add(tensor.data_ptr())
        kind = next(kind for pattern, kind in KINDS.items() if re.search(pattern, name))
        rows.append(
            {
                "what": kind,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "MB": tensor.numel() * tensor.element_size() / 1e6,
            }
        )
    frame = pd.DataFrame(rows).groupby("what").agg({"dtype": set, "MB": "sum"})
    frame["dtype"] = frame["dtype"].map(lambda names: ", ".join(sorted(names)))
    frame["share"] = frame["MB"] / frame["MB"].sum()
    return frame.sort_values("MB", ascending=False)


held = parts(quantized)
print(f"in all: {held['MB'].sum():.0f} MB, {held['MB'].sum() / (bytes_16 / 1e6):.0%} of 16 bits")
print(f"get_memory_footprint() says: {quantized.get_memory_footprint() / 1e6:.0f} MB")
show(held, {"MB": "{:.2f}", "share": "{:.1%}"})

# %% tags=["claim"]
missed = held["MB"].sum() - quantized.get_memory_footprint() / 1e6
in_scales = held.loc[held.index.str.contains("scales|levels"), "MB"].sum()
assert held["MB"].sum() > 1.1 * bytes_16 / 1e6 / 4
assert held.loc["embeddings, output layer", "dtype"] == str(compute).removeprefix("torch.")
assert abs(missed - in_scales) < 0.05

# %% [markdown]
# The model takes 112 MB, which is 42% and not a quarter. The reason is that only the linear layers
# are in four bits. The embeddings, the output layer and the norms stay as they were, and in this
# small model the embeddings are half of what is left.
#
# `get_memory_footprint` reports 2 MB less, because it counts parameters and buffers only, and the
# scales are neither. Our tables include them.
#
# How is it with larger models? We can count without loading them, on *meta* models, which have
# shapes but no values (notebook 02):

# %% tags=["value:bits-kept"]
from course_utils.models import catalog

rows = {}
for name in (
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-1.7B",
    "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-2-7b-hf",
):
    config = catalog().models[name].config()
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    inner = sum(layer.weight.numel() for layer in linear_layers(skeleton).values())
    total = skeleton.num_parameters()
    rows[name] = {
        "parameters": f"{total / 1e9:.2f} billion",
        "vocabulary": f"{config.vocab_size:,}",
        "not in linear layers": 1 - inner / total,
        "16 bits, GB": 2 * total / 1e9,
        "nf4-double, GB": (inner * (4 + 0.127) / 8 + (total - inner) * 2) / 1e9,
    }
counted = pd.DataFrame(rows).T
counted["of 16 bits"] = counted["nf4-double, GB"] / counted["16 bits, GB"]
show(
    counted,
    {
        "not in linear layers": "{:.1%}",
        "16 bits, GB": "{:.2f}",
        "nf4-double, GB": "{:.2f}",
        "of 16 bits": "{:.0%}",
    },
)

# %% tags=["claim"]
embedded, *_, llama = counted["of 16 bits"]
assert llama < 0.3 < 0.4 < embedded
if origin.where == "embedded" and compute != torch.float32:
    assert abs(embedded - held["MB"].sum() / (bytes_16 / 1e6)) < 0.01

# %% [markdown]
# How much a model keeps depends on its size and on its vocabulary: of the two models of about seven
# billion parameters, the one with the larger vocabulary keeps 36% of its 16-bit size, the other
# 29%. Count before you trust "a quarter".
#
# ### What does it cost?
#
# `load_model("chat", "nf4")` is the course's short form of the cell above. Each model reads the
# 2,048 tokens of our text, and answers two questions.
#
# **Perplexity** is the exponential of the mean loss. It says among how many equally likely tokens
# the model would have to choose, to be as unsure as it is. Lower is better. The table also has the
# mean loss, how much higher it is than in float32, the standard error of this difference, and at
# how many places the likeliest next token is the same as in float32.
#
# **Guess first.** Which is the first precision that you would notice?

# %%
my_guess = "..."


# %%
@torch.inference_mode()
def read(model, ids):
    """The loss at each token, and which token the model holds to be the likeliest."""
    losses, likeliest = [], []
    for window in ids.to(model.device):
        logits = model(window[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        likeliest.append(logits.argmax(dim=-1))
    return torch.cat(losses).cpu(), torch.cat(likeliest).cpu()


PRECISIONS = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "8bit": {"quantization": "8bit"},
    "nf4": {"quantization": "nf4"},
    "nf4-double": {"quantization": "nf4-double"},
    "fp4": {"quantization": "fp4"},
}


def compare(name, ids, then=lambda model: None):
    """A model in each precision: its size, its loss against float32, and what else is asked."""
    rows = {}
    for precision, options in PRECISIONS.items():
        model = load_model(name, quiet=True, **options)
        size = parts(model)["MB"].sum()
        if precision == "bfloat16" and compute == torch.float32:
            model.float()  # a CPU that cannot compute in bfloat16
        losses, likeliest = read(model, ids)
        if precision == "float32":
            reference, wanted = losses, likeliest
        more = losses - reference
        rows[precision] = {
            "MB": size,
            "perplexity": losses.mean().exp().item(),
            "loss": losses.mean().item(),
            "more than float32": more.mean().item(),
            "standard error": more.std().item() / len(more) ** 0.5,
            "same next token": (likeliest == wanted).float().mean().item(),
            "then": then(model),
        }
        del model
    return pd.DataFrame(rows).T


# %% tags=["value:precisions"]
from course_utils.models import Runner

QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea."]


def answers(model):
    """Greedy answers to our two questions."""
    return Runner(model, tokenizer, max_new_tokens=24)(QUESTIONS)


quantized = None  # frees its memory
compared = compare("chat", ids, then=answers)
FORMATS = {
    "MB": "{:.1f}",
    "perplexity": "{:.1f}",
    "loss": "{:.3f}",
    "more than float32": "{:+.3f}",
    "standard error": "{:.3f}",
    "same next token": "{:.0%}",
}
print("You said:", my_guess)
show(compared.drop(columns="then"), FORMATS)

# %% tags=["claim"]
more, unsure = compared["more than float32"], compared["standard error"]
size = compared["MB"]
assert abs(more["bfloat16"]) < 0.01
assert abs(more["8bit"]) < 0.03
assert more["nf4"] < 0.8 * more["fp4"]
assert abs(more["nf4"] - more["nf4-double"]) < 0.03
assert size["float32"] > size["bfloat16"] > size["8bit"] > size["nf4"] > size["nf4-double"]
if small:
    assert more["nf4"] > 5 * unsure["nf4"]
    assert 0.8 < compared["same next token"]["8bit"] < 0.97

# %% tags=["figure:04_precisions"]
figure, axis = plt.subplots(figsize=(7.5, 3.8))
reference = compared.loc["float32", "loss"]
for precision, row in compared.iterrows():
    low, high = (
        math.exp(reference + row["more than float32"] + sign * 2 * row["standard error"])
        for sign in (-1, 1)
    )
    colour = {"8bit": GREEN, "nf4": BLUE, "nf4-double": SKY, "fp4": RED}.get(precision, GREY)
    axis.plot([row["MB"]] * 2, [low, high], color=colour, lw=2)
    axis.plot(row["MB"], row["perplexity"], "o", color=colour, ms=8)
    beside = {"nf4-double": (-8, -4, "right"), "float32": (-8, 8, "right")}
    dx, dy, align = beside.get(precision, (9, -4, "left"))
    axis.annotate(
        precision, (row["MB"], row["perplexity"]), (dx, dy), textcoords="offset points", ha=align
    )
axis.grid()
axis.set_xlim(0)
axis.set_xlabel("size in MB, scales included")
axis.set_ylabel("perplexity on the course's prose")
axis.set_title("What the bits cost (bars: ± 2 standard errors of the difference)")
plt.show()

# %% [markdown]
# Down to eight bits, the loss hardly changes. In four bits it rises, and it matters *which* four
# bits: nf4 adds 0.175 to the loss and fp4 adds 0.382, in the same space (SmolLM2-135M, 2,048
# tokens). Double quantization adds nothing measurable.
#
# nf4 is not the main cause of the high perplexity: the float32 copy of the same weights has 68.3
# already. Reasons may be the small model, the paragraphs without context, and the earlier rounding
# (Q4_1). We cannot tell the share of the earlier rounding, because the original weights are not on
# this machine. So look at the *differences* between rows. They are computed token by token, which
# makes their standard errors small.
#
# What do these differences mean for a reader?

# %%
replies = compared["then"].tolist()
text_table(
    pd.DataFrame(
        {
            "precision": compared.index,
            **{question: [reply[i] for reply in replies] for i, question in enumerate(QUESTIONS)},
        }
    )
)

# %% [markdown]
# In the saved run, eight bits hardly changed the loss, and yet the 8-bit model answers the first
# question in broken French, and repeats itself. The four-bit models all name Paris, and only talk
# more.
#
# The column *same next token* explains how this can happen. At eight bits, the likeliest token
# changes at about one place in ten. If it changes early in a greedy answer, the rest of the answer
# changes with it. So an equal loss does not promise equal replies. By the loss you would first
# notice nf4, by these replies 8 bits. Most people guess by the loss alone. But two replies are too
# few to judge a precision by.
#
# ### Is it the size?
#
# One often reads that small models suffer more from four bits than large ones. The course has a
# much smaller model, from notebook 06: 2.6 million parameters, trained on texts that a program
# writes, and never in four bits before. The program writes new texts for our test.
#
# **Guess first.** This model is fifty times smaller than the embedded chat model. Does nf4 cost it
# more, or less?

# %%
my_guess = "..."

# %%
from course_utils.data import Corpus

OWN = "course/pythia-3m"
corpus = Corpus(seed=2024)
texts = [
    getattr(corpus, kind)()
    for _ in range(12)
    for kind in ("entry", "travel", "homework", "reading")
]
own_ids = torch.tensor(load_tokenizer(OWN)("\n\n".join(texts))["input_ids"])
own_ids = own_ids[: len(own_ids) // 256 * 256].reshape(-1, 256)
own = compare(OWN, own_ids)
print(f"{own_ids.numel():,} tokens. You said: {my_guess}")
show(own.drop(columns="then"), FORMATS | {"perplexity": "{:.2f}"})

# %% tags=["claim"]
assert own["more than float32"]["nf4"] < 0.02
assert own["more than float32"]["nf4"] < own["more than float32"]["fp4"]
if small:
    assert own["more than float32"]["nf4"] < 0.2 * more["nf4"]

# %% [markdown]
# On this model, nf4 adds 0.001 to the loss, with a standard error of 0.002. We could not measure
# any harm. Most people expect the smaller model to suffer more, but a small model does not always
# suffer.
#
# The two models together show little: they differ in size, training and test text, and only the
# chat model was rounded before. One study of some 1,500 quantized models (Ouyang et al., below)
# finds that larger models lose less, and that models which were trained on *more text for their
# size* lose more. The chat model has read two trillion tokens (Allal et al., below), 15,000 for
# each of its parameters; ours has read six million, hardly more than two for each. Our numbers are
# no evidence for or against the study.
#
# **What was not measured:**
#
# - Larger models. On a GPU, these cells show you the numbers of yours.
# - The chat model before its first rounding to four bits.
# - Whether the loss matters for a *task*. Perplexity says how well a text is predicted, and not how
#   well a job is done.
# - Speed. Whether four bits also save time depends on the machine.
#
# ## 4. Ready for training: `prepare_model_for_kbit_training`
#
# QLoRA trains an adapter beside a frozen 4-bit model. For this, gradients have to get *through* the
# quantized layers, and the parts that need precision should have it.
#
# We begin with the gradients, on one layer. The weight should get no gradient, but the layer's
# input should.

# %%
from course_utils.models import keep_weights_trainable


def load_4bit(compute, trainable=True):
    """The chat model in nf4, with transformers' own means."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        ),
        dtype=compute,
        device_map={"": device},
    )
    if trainable:
        keep_weights_trainable(model)  # explained at the end of this section
    return model


# %%
HALF = torch.float16 if compute == torch.float16 else torch.bfloat16
quantized = load_4bit(torch.float32)
layer = quantized.model.layers[0].mlp.up_proj
x = torch.randn(8, layer.in_features, device=device, requires_grad=True)
layer(x).square().sum().backward()

expanded = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
expected = 2 * (x @ expanded.T) @ expanded
print("gradient of the 4-bit weight:", layer.weight.grad)
print(f"gradient at the input, off the expected one by {off(x.grad, expected):.1e}")

del quantized

# %% tags=["claim"]
assert layer.weight.grad is None
assert off(x.grad, expected) < 1e-4

# %% [markdown]
# The weight has no gradient, and the gradient at the input is exactly the expected one. In both
# directions, the weight is expanded, used, and thrown away again.
#
# For the precision, peft has `prepare_model_for_kbit_training`. **Guess first:** the function
# prepares a model for training in little memory. Does the model get smaller, or larger, or neither?

# %%
my_guess = "..."


# %%
def parameters_of(model):
    """What matters for training, a row for each kind of parameter."""
    rows = {}
    for name, parameter in model.named_parameters():
        kind = next(kind for pattern, kind in KINDS.items() if re.search(pattern, name))
        row = rows.setdefault(kind, {"dtype": set(), "requires grad": set(), "MB": 0.0})
        row["dtype"].add(str(parameter.dtype).removeprefix("torch."))
        row["requires grad"].add(parameter.requires_grad)
        row["MB"] += parameter.numel() * parameter.element_size() / 1e6
    frame = pd.DataFrame(rows).T
    for column in ("dtype", "requires grad"):
        frame[column] = frame[column].map(lambda found: ", ".join(map(str, sorted(found))))
    return frame


def flags(model):
    """The switches that it may have set."""
    ids_in = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    return {
        "gradient checkpointing": model.is_gradient_checkpointing,
        "embeddings' output requires grad": model.get_input_embeddings()(ids_in).requires_grad,
        "MB in parameters": round(model.get_memory_footprint() / 1e6, 1),
    }


from peft import prepare_model_for_kbit_training

quantized = load_4bit(HALF)
before, flags_before = parameters_of(quantized), flags(quantized)
quantized = prepare_model_for_kbit_training(
    quantized, gradient_checkpointing_kwargs={"use_reentrant": False}
)
after, flags_after = parameters_of(quantized), flags(quantized)
print("You said:", my_guess)
both = {"before": show(before, {"MB": "{:.1f}"}), "after": show(after, {"MB": "{:.1f}"})}
pd.concat(both, axis=1)

# %%
pd.DataFrame({"before": flags_before, "after": flags_after}, dtype=object)

# %%
grown = flags_after["MB in parameters"] - flags_before["MB in parameters"]
codes = "linear layers: codes"
print(f"{grown:+.0f} MB")

# %% tags=["claim"]
assert (after["requires grad"] == "False").all()
assert (after["dtype"].drop(codes) == "float32").all()
assert after.loc[codes, "dtype"] == "uint8"
assert flags_after["gradient checkpointing"]
assert not flags_before["gradient checkpointing"]
assert grown > 0.9 * before["MB"].drop(codes).sum()
if origin.where == "embedded":
    assert grown > (bytes_16 / 1e6 - flags_before["MB in parameters"]) / 3

# %% [markdown]
# The model gets larger, by 57 MB in the saved run. Most people expect the function to save memory.
# Four things have changed:
#
# - All parameters are **frozen**. (The adapter comes later, and is trained.)
# - What is not quantized is in **float32** now. So the hidden states, to which each layer adds its
#   result, are in float32 as well. The 4-bit layers still compute in 16 bits.
# - **Gradient checkpointing** is on. It saves memory for activations, and section 5 explains how.
# - The **embeddings' output still requires a gradient**, although the embeddings are frozen now.
#   The older form of gradient checkpointing, called *reentrant*, needs this.
#
# The next cell shows why. It runs a trainable layer under both forms, with an input that requires a
# gradient and with one that does not:

# %%
from torch.utils.checkpoint import checkpoint

adapter = torch.nn.Linear(4, 4)
rows = []
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
    for reentrant in (True, False):
        for asks in (False, True):
            given = torch.randn(2, 4, requires_grad=asks)
            made = checkpoint(adapter, given, use_reentrant=reentrant)
            rows.append(
                {"reentrant": reentrant, "input asks": asks, "layer is trained": made.requires_grad}
            )
asked = pd.DataFrame(rows)
asked

# %% tags=["claim"]
assert asked["layer is trained"].tolist() == [False, True, True, True]

# %% [markdown]
# In the first row, the layer learns nothing, and you get no more than a warning. So the function
# makes the embeddings' output require a gradient. Where you can choose, take the newer form,
# `use_reentrant=False`.
#
# **The price**: in float32 the embeddings are twice as large as in 16 bits. In the embedded model,
# this takes back more than a third of what quantization had saved. TRL's trainers no longer call
# this function ([its maintainers on one of them](https://github.com/huggingface/trl/issues/2459)):
# `SFTTrainer` 1.16 leaves the 4-bit model as it is, and casts the adapter to bfloat16.
#
# ### A few steps
#
# Now we put an adapter on the prepared model, and train it for six steps on the sentences of
# notebook 02. What becomes of the 4-bit weights?

# %%
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from course_utils.data import load_data

LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def batch(rows):
    """Sentences and what Yoda makes of them, as padded tensors."""
    texts = [f"{row['sentence']} → {row['yoda']}" for row in rows]
    tensors = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = tensors["input_ids"].masked_fill(tensors["attention_mask"] == 0, -100)
    return {**tensors.to(device), "labels": labels.to(device)}


sentences = list(load_data("yoda")["train"].select(range(32)))
untouched = [p.clone() for p in quantized.parameters() if not p.is_floating_point()]

torch.manual_seed(0)
tuned = get_peft_model(quantized, LoraConfig(**LORA)).train()
trained = [p for p in tuned.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=2e-3)
losses = []
for step in range(6):
    loss = tuned(**batch(sentences[4 * step : 4 * step + 4])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print("losses:", " ".join(f"{loss:.2f}" for loss in losses))

still = [p for p in tuned.parameters() if not p.is_floating_point()]
same = all(torch.equal(a, b) for a, b in zip(untouched, still, strict=True))
print(f"{len(still)} quantized weights, unchanged: {same}")
learned = {name: w.cpu().clone() for name, w in get_peft_model_state_dict(tuned).items()}

# %% tags=["claim"]
assert losses[-1] < losses[0] - 0.5
assert same
assert {p.dtype for p in trained} == {torch.float32}

# %% [markdown]
# The loss falls from 7.06 to 4.26. (It does not fall in each step, because each step has other
# sentences.) All quantized weights are exactly what they were: only the adapter has learned.
#
# ### Are the gradients right?
#
# To check the gradients, we build the same model without quantization: `dequantize` turns each
# 4-bit layer into a plain layer that holds exactly the numbers which the codes stand for. With the
# same adapter and sentences, all in float32, its gradients are the reference.
#
# We compare the 4-bit model in float32, in 16 bits and prepared, and in 16 bits and not prepared.
# To know what is a large error, we add the correct gradients of the *next* four sentences. The last
# row is the model as it was before nf4. **Guess first:** by how much are the first three off?

# %%
my_guess = "..."

# %%
these, next_ones = batch(sentences[24:28]), batch(sentences[28:])
tuned = quantized = optimizer = trained = still = None  # frees their memory


def with_adapter(base):
    """A model with the adapter that was just trained."""
    tuned = get_peft_model(base, LoraConfig(**LORA))
    set_peft_model_state_dict(tuned, learned)
    return tuned.train()


def gradients(tuned, rows=these):
    """The loss on some sentences, and all gradients of the adapter, in one row."""
    tuned.zero_grad()
    loss = tuned(**rows).loss
    loss.backward()
    found = [p.grad.float().flatten() for p in tuned.parameters() if p.requires_grad]
    return loss.item(), torch.cat(found)


plain = load_4bit(torch.float32).dequantize(dtype=torch.float32).requires_grad_(False)
print("the reference:", type(plain.model.layers[0].mlp.up_proj).__name__, plain.dtype)
plain = with_adapter(plain)
_, right = gradients(plain)
half = str(HALF).removeprefix("torch.")
no_reentrance = {"use_reentrant": False}
cases = {"float32, the next sentences": gradients(plain, next_ones)}
del plain
cases |= {
    "4 bits, computing in float32": gradients(with_adapter(load_4bit(torch.float32))),
    f"4 bits, prepared, computing in {half}": gradients(
        with_adapter(
            prepare_model_for_kbit_training(
                load_4bit(HALF), gradient_checkpointing_kwargs=no_reentrance
            )
        )
    ),
    f"4 bits, all the rest in {half}": gradients(with_adapter(load_4bit(HALF))),
    "float32, weights as before nf4": gradients(
        with_adapter(load_model("chat", dtype=torch.float32, quiet=True).requires_grad_(False))
    ),
}
gradient_off = pd.Series({name: off(found, right) for name, (_, found) in cases.items()})
print("You said:", my_guess)
show(gradient_off.to_frame("gradients off by"), {"gradients off by": "{:.1%}"})

# %% tags=["claim"]
next_batch, exact, prepared, unprepared, before_nf4 = gradient_off
assert exact < 1e-3
assert exact < prepared < unprepared < before_nf4
assert prepared < 0.1 < next_batch

# %% [markdown]
# In float32 the error is 0.0%. So training through 4-bit weights **is** training through their
# expanded values. People often expect noise from the four bits, but the gradients are exact for the
# weights that the model has.
#
# In 16 bits there is rounding: 5.1%, or 2.4% if the model was prepared. Preparing helps because the
# sums from layer to layer are then computed in float32. This is what the 57 MB are for. But both
# errors are small beside the 131% of the next sentences. (Two unrelated gradients of equal size
# differ by 141%.)
#
# The last row, 62%, is no error of computation: it belongs to another *model*, with the weights
# before nf4 (in the saved run, the expanded Q4_1 weights). QLoRA's adapter learns on the quantized
# weights, as they are.
#
# ### A trap on some CPUs
#
# Why did we call `keep_weights_trainable`? On a CPU with bfloat16 instructions (AVX512_BF16),
# bitsandbytes rearranges each 4-bit weight at the first forward pass in eval mode, to multiply
# faster. The backward pass does not know about the new arrangement. The trap is a model that first
# answers, and then is trained:

# %%
from bitsandbytes.functional import has_avx512bf16

repacks = device == "cpu" and has_avx512bf16()
if repacks:
    for safe in (True, False):
        answering = with_adapter(load_4bit(HALF, trainable=safe))
        with torch.inference_mode():
            answering.eval()(**these)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            loss, found = gradients(answering.train())
        print("with keep_weights_trainable:" if safe else "without:")
        print(f"  loss {loss:.2f}, gradients off by {off(found, right):.0%}")
    said = [str(note.message) for note in notes if "autograd kernel" in str(note.message)]
    print("  PyTorch warns:", said[0].split(". ")[0] if said else "no (it does so once)")
    assert off(found, right) > 0.5
    assert abs(loss - cases["4 bits, computing in float32"][0]) < 0.2
else:
    print("This machine does not repack.")

# %% [markdown]
# Without the function, the loss looks right, but in the saved run the gradients are off by 96%.
# There is no error message, only a warning, at most once, which names neither the model nor the
# solution. The function sets `support_avx512bf16_for_cpu = False` on each `Linear4bit`. On a GPU
# nothing is rearranged. So *check* a gradient now and then.

# %% [markdown]
# ## 5. The life of a training step
#
# A training holds more than weights: gradients, the optimizer's states, and the *activations*,
# which is everything that the forward pass keeps for the backward pass.
#
# We follow a training through its steps, and see at each moment what the memory is used for. This
# needs no GPU. The model is made with shapes and without values, and each tensor is reported to a
# copy of PyTorch's *allocator*, the part that hands out a GPU's memory. (Notebook 05 checks the
# prediction.)
#
# We follow the same training twice: with transformers' `Trainer`, and with TRL's `SFTTrainer`,
# which this course uses. The prediction runs the code of the trainer that is installed, so it also
# shows what the trainer does by default.

# %%
from course_utils.display import MEMORY_COLOURS
from course_utils.memory import Setup, predict

step = Setup(
    "HuggingFaceTB/SmolLM2-135M",
    trainer="sft",
    optimizer="adamw_torch_fused",
    batch_size=4,
    seq_len=1024,
)
print(step)

# %% [markdown]
# **Guess first.** The weights of this model take 269 MB. The *peak* is the most memory that is held
# at any moment, so the peak has to fit into the GPU. How high is it, in MB, with transformers'
# `Trainer`, and with TRL's `SFTTrainer`? And what share of the peak does LoRA save with the
# `SFTTrainer`?

# %%
my_guess = {"Trainer (MB)": 1000, "SFTTrainer (MB)": 1000, "LoRA saves": 0.6}

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
    axis.annotate(
        f"{total.max():,.0f} MB",
        (total.idxmax(), total.max()),
        xytext=(12, -8),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "linewidth": 0.8},
    )
    axis.set_xlim(0, len(timeline) - 1)
    axis.set_xticks([])
    axis.set_ylabel("allocated (MB)")


plain = predict(step.replace(trainer="trainer"))
full = predict(step)
lora = predict(step.replace(lora=True, lora_targets="all-linear"))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
draw_timeline(plain, axes[0])
axes[0].set_title("Trainer, all weights")
draw_timeline(full, axes[1])
axes[1].set_title("SFTTrainer, all weights (another scale)")
axes[1].set_ylabel("")
figure.supxlabel("requests and releases, in their order; lines where a phase ends", fontsize=10)
figure.legend(*axes[0].get_legend_handles_labels(), ncols=5, loc="outside upper center")
plt.show()

print("You said:", my_guess)
print(f"Trainer: {plain.peak_allocated_mb:,.0f} MB; SFTTrainer: {full.peak_allocated_mb:,.0f} MB.")
print(f"SFTTrainer with LoRA: {lora.peak_allocated_mb:,.0f} MB.")

# %%
_, axis = plt.subplots(figsize=(8, 2.3))
draw_timeline(lora, axis)
axis.set_ylim(axes[1].get_ylim())
axis.set_title("SFTTrainer, LoRA on all linear layers (the second picture's scale)")
plt.show()

# %%
named = {"Trainer": plain, "SFTTrainer": full, "SFTTrainer, LoRA": lora}
peaks = pd.DataFrame({name: prediction.at_peak for name, prediction in named.items()})
peaks.map("{:,.0f} MB".format)

# %% tags=["claim"]
assert max(plain.at_peak, key=plain.at_peak.get) == "activations"
assert full.peak_allocated_mb < 0.3 * plain.peak_allocated_mb
assert lora.at_peak["optimizer"] < 0.1 * full.at_peak["optimizer"]
assert 0.5 < lora.peak_allocated_mb / full.peak_allocated_mb < 0.6

# %% [markdown]
# The peak is 6,304 MB with the `Trainer` and 1,441 MB with the `SFTTrainer`, and LoRA saves 46% of
# the latter. Most people forget the activations.
#
# Read the first picture from the left. The weights are there from the beginning. The forward pass
# adds activations, layer by layer. The backward pass releases them again, and leaves gradients in
# their place. Then the optimizer makes its states. The states stay, so the second step starts
# higher than the first. **A first step that fits does not promise that the second one fits.** The
# thin spike, where the forward pass ends and the backward pass begins, is the peak. At that moment
# there are no gradients yet: 0 MB in the table. (*Workspaces*, the scratch memory of the matrix
# multiplications, are hardly visible.)
#
# The second picture is the same training with `SFTTrainer`. It needs less than a quarter, because
# TRL changes two defaults:
#
# - *Gradient checkpointing* is on. Each layer keeps only its input, and the backward pass computes
#   the rest of the layer again. By the usual estimate, this costs a third more computing.
# - A *fused output head* computes the loss piece by piece, so the logits of all tokens never exist
#   at the same time.
#
# The third picture shows LoRA. Gradients and optimizer states are nearly gone, because only the
# adapter is trained. The weights are still there, and so are most of the activations, because the
# frozen layers need theirs to pass the gradient on. Of the 657 MB that LoRA saves, about 500 are
# optimizer states; the rest are activations.
#
# ### The largest single request
#
# What is the spike in the first picture? Look at the largest requests for memory.

# %%
print("The operation at the Trainer's peak:", plain.peak_op)
vocabulary = step.config().vocab_size
tokens = step.batch_size * step.seq_len
rows = {}
for name, prediction in named.items():
    sizes = sorted({size for _, _, size in prediction.log if size > 0}, reverse=True)
    rows[name] = [f"{size / 1e6:,.0f} MB" for size in sizes[:3]]
largest = max(size for _, _, size in plain.log)
print(f"tokens × vocabulary × 4 bytes = {tokens * vocabulary * 4 / 1e6:,.0f} MB")
pd.DataFrame(rows, index=["largest request", "second", "third"]).T

# %% tags=["claim"]
assert abs(largest / (tokens * vocabulary * 4) - 1) < 0.01

# %% [markdown]
# The largest request is the *logits*: one number for each token and each word of the vocabulary.
# The `Trainer` computes the loss from them in float32, with a copy for the softmax and another one
# for the gradient. No request is larger here, and the textbook formulas leave it out.
#
# `SFTTrainer` has no request of that size. Its largest one is a *tile*: the logits of at most 4,096
# tokens and 32,768 words, which it fills and uses again and again. It also skips tokens whose label
# is -100, so long prompts with short answers need even less (try `supervised_share=0.25`). Liger
# does the same for other trainers.
#
# ### Is the prediction right?
#
# On a GPU, the next cell runs the same trainings and shows the measured peaks of each phase beside
# the predicted ones. Without a GPU, as in the saved run, you see predictions only.

# %%
if torch.cuda.is_available():
    from course_utils.memory import measure

    measured = {name: measure(prediction.setup) for name, prediction in named.items()}
    by_phase = {f"{name}, measured": row.get("phases", {}) for name, row in measured.items()}
else:
    print("No GPU here: predicted only. Against a GPU, today's versions are not yet measured.")
    by_phase = {}
by_phase |= {f"{name}, predicted": prediction.phases for name, prediction in named.items()}
pd.DataFrame(by_phase).map("{:,.0f} MB".format)

# %% [markdown]
# ## 6. Formulas, and how far they go
#
# For a rough number on paper, there are formulas. Take *p* parameters, *L* layers of width *h*, *n*
# heads, and a batch of *b* examples of *s* tokens. Attention comes in two kinds. *Eager* attention
# stores a table of all pairs of tokens, for each head. *Flash* attention works piece by piece and
# never holds the whole table (notebook 05).
#
# | what | how much | from |
# |---|---|---|
# | weights of the blocks | $L\,\left(2\,h\,d\,(n + n_{kv}) + g\,h\,m\right)$ | counted |
# | the same, for GPT-2's shape | $12\,L\,h^2$ | Kaplan and others, 2020 |
# | activations, eager attention | $L\,(34\,hbs + 5\,n\,b\,s^2)$ bytes in 16 bits | Korthikanti and others, 2022 |
# | activations, flash attention | $L\cdot 34\,hbs$ bytes | the second term is never stored |
# | weights, gradients, Adam's states | $p$, $p$, $2p$ | Rajbhandari and others, 2020 |
#
# Here a *block* is a layer of the model, attention and MLP. The first row counts the matrices of a
# block. Queries and the output take *h* × *n·d* numbers each, with heads of width *d*. Keys and
# values take *h* × *n_kv·d* each: in most models of today several query heads share one key-value
# head, so *n_kv* is smaller than *n*. The MLP has *g* matrices of *h* × *m*: two in GPT-2, three
# where it has a gate. Put in GPT-2's numbers (*n·d* = *h*, *n_kv* = *n*, *g* = 2, *m* = 4*h*), and
# you get the second row. People use the second row for every model; the table below shows where it
# goes wrong.
#
# The workshop divides activations by weights. For the second row this gives a short formula:
#
# $$\frac{\text{activations}}{\text{weights}} = \left[\frac{34\,bs}{12\,h} +
# \frac{5\,n\,b\,s^2}{12\,h^2}\right] \cdot \frac{p_{comp}}{p_{model}}$$
#
# Here $p_{comp}$ is the size of a number that is computed with, and $p_{model}$ the size of a
# stored weight. The 34 counts bytes at 16 bits, so with 16-bit weights the bracket is divided by
# two.
#
# In the table, *blocks* are the weights of all layers in 16 bits, counted by the first row, and
# *12·L·h²* is the approximation. The *ratios* are for one example of *s* tokens.
#
# **Guess first.** Llama-2-7B with one example of 4,096 tokens: how many times its weights do the
# activations take with eager attention? And with flash attention?

# %%
my_guess = {"eager": 3, "flash": 1}

# %%
from course_utils.memory import formulas
from course_utils.models import known_model

seven = formulas.seven_models()
print("You said:", my_guess)
columns = ["h", "s", "n_heads", "n_kv", "m", "L", "blocks (GB)", "12·L·h² (GB)"]
columns += ["ratio, eager", "ratio, flash"]
llama = seven.loc["meta-llama/Llama-2-7b-hf"]
qwen = seven.loc["Qwen/Qwen2.5-7B"]
seven[columns].round(1)

# %% tags=["claim"]
assert llama["ratio, eager"] > 5 > 2 > llama["ratio, flash"] > 1
assert qwen["blocks (GB)"] > 1.5 * qwen["12·L·h² (GB)"]

# %% [markdown]
# By the formulas, 8.0 times with eager and 1.4 times with flash attention. People often guess less
# for eager attention, but its table grows with the *square* of the length: with 32,768 tokens
# (Mistral, Qwen2.5) the ratio is in the hundreds. With flash attention it is between 0.7 and 10.5
# in this table.
#
# For most of the models, the approximation of the weights is good. For Qwen2.5-7B it is not: its
# MLP is wide and has a gate, so its blocks take 13.1 GB and not 8.6.
#
# Do the formulas agree with the prediction, which counts every tensor? We compare weights,
# gradients and states first, then the activations, in MB.

# %%
# The formulas know neither checkpointing nor mixed precision, so compare them with the Trainer.
opt = Setup("facebook/opt-350m", trainer="trainer", dtype="float16", seq_len=2000)
shape = formulas.Shape.of(opt.config())
found = {name: predict(opt.replace(attention=name)) for name in ("eager", "flash_attention_2")}
parameters = known_model(opt.model).parameters
states = formulas.states_bytes(parameters, item_bytes=2)
timeline = found["eager"].timeline()
held = pd.DataFrame(
    {
        "formula": {name: size / 1e6 for name, size in states.items()},
        "predicted": {name: timeline[name].max() for name in states},
    }
)
held.map("{:,.0f} MB".format)

# %% tags=["claim"]
assert (held["predicted"] / held["formula"]).between(0.99, 1.03).all()

# %%
compared = []
for name, prediction in found.items():
    kept = prediction.timeline().query("phase == 'forward'")["activations"].max()
    compared.append(
        {
            "attention": name,
            "formula": formulas.activation_bytes(shape, opt.batch_size, opt.seq_len, name) / 1e6,
            "predicted": kept,
            "of which logits and loss": opt.seq_len * opt.config().vocab_size * (2 + 4 + 4) / 1e6,
        }
    )
activations = pd.DataFrame(compared).set_index("attention")
activations["formula / predicted"] = activations["formula"] / activations["predicted"]
activations.round(2)

# %% [markdown]
# Weights, gradients and states agree within about one per cent. For the activations, the formulas
# are 19% (eager) and 28% (flash) below the prediction. They count a GPT of 2022, whose dropout
# keeps masks, and they leave out what is outside the blocks, such as embeddings and logits.
#
# Use a formula to decide what to try, and the prediction to decide whether it fits.
#
# ## 7. Many problems, many solutions
#
# Back to Jonas and his training: SmolLM2-1.7B, all weights in 32 bits, plain Adam, eager attention,
# two examples of 2,048 tokens, with the `SFTTrainer` and its checkpointing and mixed precision
# switched off.
#
# **Guess first.** Which single change saves most: quantizing, LoRA, 8-bit Adam, checkpointing or
# fused attention?

# %%
my_guess = "LoRA"

# %%
start = Setup(
    "HuggingFaceTB/SmolLM2-1.7B",
    dtype="float32",
    mixed_precision="no",
    checkpointing="none",
    attention="eager",
    optimizer="adamw_torch",
    batch_size=2,
    seq_len=2048,
)
on_all = {"lora": True, "lora_targets": "all-linear"}
solutions = {
    "as it is": ("", {}),
    "16-bit weights": ("weights, gradients, states: half", {"dtype": "bfloat16"}),
    "8-bit Adam": ("states: a quarter", {"optimizer": "adamw_bnb_8bit"}),
    "LoRA": ("gradients and states of an adapter only", on_all),
    "QLoRA (nf4)": ("and the frozen weights in 4 bits", {**on_all, "quantization": "nf4-double"}),
    "checkpointing": ("activations of one layer at a time", {"checkpointing": "non-reentrant"}),
    "fused attention (sdpa)": ("no attention matrices", {"attention": "sdpa"}),
    "all of QLoRA, checkpointing, sdpa": (
        "",
        {
            **on_all,
            "quantization": "nf4-double",
            "checkpointing": "non-reentrant",
            "attention": "sdpa",
            "optimizer": "paged_adamw_8bit",
        },
    ),
}
predicted = {name: predict(start.replace(**change)) for name, (_, change) in solutions.items()}

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
axis.set_xlabel("allocated at the peak (GB = 10⁹ bytes)")
axis.set_title("One change at a time, and all together", pad=14)
axis.legend(fontsize=9, loc="lower right")
plt.show()

print("You said:", my_guess)

# %% tags=["value:overview"]
base_peak = predicted["as it is"].peak_allocated_mb
overview = pd.DataFrame(
    {
        "what it shrinks": {name: what for name, (what, _) in solutions.items()},
        "peak (GB)": {name: p.peak_allocated_mb / 1000 for name, p in predicted.items()},
        "saved": {name: 1 - p.peak_allocated_mb / base_peak for name, p in predicted.items()},
    }
)
overview["saved"] = overview["saved"].map("{:.0%}".format)
together = predicted["all of QLoRA, checkpointing, sdpa"].peak_allocated_mb
overview.round(1)

# %% tags=["claim"]
assert together < 0.2 * base_peak
assert all(p.peak_allocated_mb < base_peak for n, p in predicted.items() if n != "as it is")

# %% [markdown]
# Checkpointing saves most here, 51%, and fused attention comes next with 40%. Many people guess
# LoRA or quantizing, but LoRA saves 16% and QLoRA 30%. In *this training* the activations are the
# largest part, and both leave most of them in place.
#
# A change can touch several parts, and the peak can move:
#
# - With 16-bit weights, weights and optimizer states are halved. But the activations grow, because
#   eager attention keeps a second copy of its table for the softmax in float32.
# - With checkpointing, the bar shows gradients, because the peak has moved from the middle of the
#   backward pass to the optimizer's step.
# - All together, the prediction is 3.3 GB instead of 70.5, so Jonas's training fits. Notebook 05 is
#   about such combinations.
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
# - float16 is precise but its range is short, and bfloat16 is the other way round. A weight that is
#   trained in bfloat16 may not move at all (section 1).
# - To quantize is to divide by a scale and to round to a level. One outlier spoils all that share
#   its scale: a whole matrix, or only its block of 64 (section 1).
# - nf4 puts its levels where normally distributed weights are. In blocks, its error was smaller
#   than that of fp4 and even spacing, on normal numbers and on one layer (section 2).
# - LLM.int8() is made for outliers in the *inputs*: it keeps those features in 16 bits (section 2).
# - "4 bit" means the linear layers. Embeddings, output layer, norms and scales come on top: half of
#   SmolLM2-135M (section 3).
# - Measure what four bits cost your model: perplexity, and your own task. Our smallest model lost
#   nothing measurable. The chat model's weights had been rounded before, so its numbers say nothing
#   about the original (section 3).
# - Gradients pass *through* a 4-bit weight as through its expanded values. Preparing a model costs
#   memory and makes its gradients more exact (section 4).
# - A training's memory is weights, gradients, the optimizer's states and activations, and they peak
#   at different moments. The states are there from the second step on (section 5).
# - With transformers' `Trainer`, logits count: tokens × vocabulary × 4 bytes, more than once. TRL's
#   `SFTTrainer` computes them in tiles and uses gradient checkpointing by default. For our
#   training, the prediction was less than a quarter (section 5).
# - Look at which part is largest in your training, and begin with what makes that part smaller
#   (section 7).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** One weight of a matrix grows a hundredfold. What happens to the others when the matrix is
# quantized with absmax: with one scale for all, and in blocks of 64?
#
# - **A** Only the large weight gets a large error, in both.
# - **B** With one scale all suffer; in blocks, its neighbours only.
# - **C** All suffer in both, as the matrix is the same.
# - **D** None suffers in either: the scale grows with it.
#
# **b.** A small model in nf4 takes half of what it took in 16 bits, and not a quarter. What is the
# main reason?
#
# - **A** The scales take as much room as the codes.
# - **B** The codes are expanded to 16 bits to be used.
# - **C** Room has to be kept for the gradients.
# - **D** The embeddings are still in 16 bits.
#
# **c.** How can an adapter be trained beside 4-bit weights, which have no gradient?
#
# - **A** The gradient passes through their expanded values.
# - **B** They are changed a little and quantized again at each step.
# - **C** The gradient ends there; only the last adapter learns.
# - **D** A copy in 16 bits is kept for the backward pass.
#
# **d.** LoRA training of a small model on long texts: memory runs out in the *forward* pass. What
# is most likely to help?
#
# - **A** An optimizer with states of 8 bits.
# - **B** A lower rank for the adapter.
# - **C** Shorter texts, or gradient checkpointing.
# - **D** To empty the allocator's cache more often.

# %%
from course_utils.exercises import check, quiz

quiz("04", a="...", b="...", c="...", d="...")

# %% [markdown]
# **04.1 · Change one number.** Write `bits_a_weight(bits, block, double)`: how many bits a weight
# takes if its code has so many bits and each block of weights has a scale, a float32. With double
# quantization the scales have 8 bits, and each 256 of them share one float32. Then look for the
# block size with which nf4 takes as little *without* double quantization as it takes with it in
# blocks of 64. What does this block size do to the layer's weights? `off(there_and_back(weight,
# "nf4", block), weight)` tells you. Which of the two would you take, and why?


# %% tags=["exercise"]
def bits_a_weight(bits, block, double=False):
    """Bits for one weight, its share of the scales included."""
    ### BEGIN SOLUTION
    scale = 8 + 32 / 256 if double else 32
    return bits + scale / block
    ### END SOLUTION


# %%
check("04.1", bits_a_weight)

# %% [markdown]
# **04.2 · Two ends.** Absmax wastes levels if the numbers of a block are not centred on zero. Write
# `affine(weight, bits, block)`: in each block, the levels go in even steps from its *smallest*
# number to its *largest*, both included, 2^bits of them; each number becomes the nearest level.
# Return these levels (not the codes), in the weight's shape. Then try it on a layer of the chat
# model (`weight` still holds one) with 4 bits and blocks of 32, and again with blocks of 64. What
# do you find?


# %% tags=["exercise"]
def affine(weight, bits, block):
    """A weight after quantization between the two ends of each block."""
    ### BEGIN SOLUTION
    rows = weight.reshape(-1, block)
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(rows.dtype).tiny)
    return (((rows - low) / step).round() * step + low).reshape(weight.shape)
    ### END SOLUTION


# %%
check("04.2", affine)

# %% [markdown]
# **04.3 · Alone: the second step.** A training ran for one step and then was out of memory. Write
# `second_step_costs(setup)`: by how many MB does the peak of allocated memory rise if two optimizer
# steps are run instead of one? Compare two predictions. A micro-batch is what goes through the
# model at once: `micro_batches` says how many of them are run, `accumulation` how many make a step.
# Then try eight examples of 256 tokens and `course/pythia-3m` with different optimizers. For which
# of them is the second step free?


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
check("04.3", second_step_costs)

# %% [markdown]
# Solutions: `notebooks/solutions/04_memory.py`.
#
# ## To read
#
# - Dettmers et al., [LLM.int8()](https://arxiv.org/abs/2208.07339): outlier features, and what to
#   do about them.
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314): nf4, double quantization, and
#   training through frozen 4-bit weights.
# - Dettmers and Zettlemoyer, [The case for 4-bit precision](https://arxiv.org/abs/2212.09720):
#   given so many bits, a large model in few or a small one in many?
# - Ouyang et al., [Low-Bit Quantization Favors Undertrained
#   LLMs](https://arxiv.org/abs/2411.17691): what a model loses, by its size and by what it has
#   read.
# - Allal et al., [SmolLM2](https://arxiv.org/abs/2502.02737): the chat model on a CPU.
# - The manuals: [bitsandbytes](https://huggingface.co/docs/bitsandbytes), [quantization in
#   transformers](https://huggingface.co/docs/transformers/quantization/bitsandbytes), [in
#   peft](https://huggingface.co/docs/peft/developer_guides/quantization).
# - The [glossary](../docs/glossary.md): the course's words.
