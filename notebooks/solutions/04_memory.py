# %% [markdown]
# # 04 · Quantization, and where memory goes
#
# **You will learn** what a number loses in 16, 8 and 4 bits, and how a weight matrix is quantized, by
# hand and by bitsandbytes. You will measure what that costs a real model and what it saves, and make
# a 4-bit model ready for training. Then you will look at what fills a GPU during a training step,
# moment by moment.
#
# **You need** notebook 02 (LoRA).
#
# **It takes** about an hour of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand

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
# A floating-point number is a sign, a fraction and an exponent: $\pm 1.\text{fraction} \times
# 2^{\text{exponent}}$. The bits of the exponent decide how *far* the numbers reach, those of the
# fraction how *close* together they lie. PyTorch knows both of each type:

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
# So there are two kinds of 16 bits. float16 spends its bits on precision, bfloat16 on range: it
# reaches as far as float32, but with seven bits of fraction in place of 23.
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
# float16 ends at 65504, and what is larger is infinite. bfloat16 holds 70000, roughly; but 0.001
# more than 1 is, to it, no more than 1.
#
# That has a consequence for training. Let a weight of 1 be raised by 0.001, a thousand times over.
# **Guess first:** where does it end?

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
# In bfloat16 the weight has not moved at all: each time, 1.001 is rounded back to 1. (float16 gets
# nearly there.) That is why what is *trained* is mostly held in float32, as the adapters of notebook
# 02 are. But a frozen weight is only read. How few bits can it do with?
#
# ### One scale for many
#
# Eight bits are 256 different codes, four bits are sixteen. That is little for a number that has to
# bring its own exponent. So a *block* of numbers shares one factor, its **scale**, and each code
# stands for a *level* between −1 and 1. The scale is the largest absolute value of the block
# (*absmax*), so that the largest number is one of the ends.
#
# Which levels? For **int8**: evenly spaced. For four bits we take three sets: evenly spaced again;
# **fp4**, a floating-point type of one sign, two exponent bits and one of fraction; and **nf4**,
# which comes with QLoRA. The last two we ask of bitsandbytes itself.

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
# And this is all of absmax quantization:


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
# **Guess first.** Our four numbers share a scale now. What is left of 1/3?

# %%
my_guess = "..."

# %%
together = {name: there_and_back(numbers, name, block=4) for name in LEVELS}
print("You said:", my_guess)
shown(together, names)

# %% tags=["claim"]
assert all(values.count_nonzero() == 1 for values in together.values())

# %% [markdown]
# Nothing. Next to 70000, a third is nothing, and 1.001 is nothing either. Without the large
# neighbour it looks better:

# %%
others = torch.tensor([1 / 3, 1e-6, 1.001])
apart = {name: there_and_back(others, name, block=3) for name in LEVELS}
shown(apart, ["1/3", "1e-6", "1 + 0.001"])

# %% tags=["claim"]
assert abs(apart["int8"][0] - 1 / 3) < 0.005
assert abs(apart["nf4"][0] - 1 / 3) < 0.03

# %% [markdown]
# So much for the rule: **a scale is only as good as its block is even.** Are real weights even?
# Here are those of a layer in the middle of the model, each divided by the largest of its block of
# 64, and the levels below them.

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
# (The spikes at both ends are the largest of each block.) The weights lie in a bell, and the bell
# is where nf4 puts its levels: *NormalFloat*, made for numbers that are normally distributed. Even
# spacing spends as many on the thin tails as on the middle. And fp4 leaves wide gaps around zero,
# where most weights are, while four of its codes lie *at* zero or next to it:

# %%
near_zero = {name: int((levels.abs() < 0.01).sum()) for name, levels in LEVELS.items()}
print("levels within 0.01 of zero:", near_zero)

# %% tags=["claim"]
assert near_zero["fp4"] == 4
assert near_zero["nf4"] == near_zero["int4"] == 1

# %% [markdown]
# ### One outlier
#
# Now the enemy. Take 65,536 numbers from a perfect bell, and make a single one larger: ten, a
# hundred, a thousand times the spread of the others (their standard deviation).
#
# **Guess first.** How large may this one be until int8 does *worse* on all the others than four
# bits in blocks of 64?

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
# One number ruins eight bits for all the others, because the scale stretches to reach it. In
# blocks, the damage stays in the outlier's own block: that is what blocks are for.
#
# Do real weights have such outliers? **Guess first:** the largest weight of a matrix, in standard
# deviations.

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
# They have: the middle one of the matrices already reaches far beyond the bell, and the last one much
# further still. So blocks it will be.
#
# ## 2. Quantizing a layer by hand
#
# What counts in the end is not the weights but what the layer makes of real inputs. So we need
# some, and for those a text. It has to be one that the model cannot have read: the paragraphs of
# the course's own notebooks 01, 02 and 06, which were written after it.

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
# A *hook* keeps what goes into a layer while the model reads the first window.

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
# Now the schemes: one scale for the whole matrix, one for each row (each output), or one for each
# 64 numbers. A scale is a float32, so blocks of 64 cost half a bit a weight. *Off by* is the relative
# error, of the weights and of the layer's outputs; the last column is for as many numbers from a
# perfect bell.
#
# **Guess first.** By how much are the layer's outputs off with nf4 in blocks of 64? One per cent,
# ten, thirty?

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
# Three things to see.
#
# - Smaller blocks are better, each time, and cost little.
# - At four bits, nf4 wins: on the normal numbers that it was made for, and on the real weights.
#   Even spacing comes next, and fp4 last.
# - About nine per cent is no small noise, and it is in every layer. That a model of so many layers
#   works at all with this is the real surprise; section 3 will look at it.
#
# ### What bitsandbytes does
#
# Now the library. `quantize_4bit` packs two codes into a byte and remembers the rest in a *state*.
# Is it the same as our five lines?

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
# It is. What we have not written is **double quantization**: the scales are float32 numbers too, so
# they are quantized in their turn, to 8 bits in blocks of 256.
#
# And **int8** in bitsandbytes, `LLM.int8()`, has a scale for each row, and then goes a step
# further: it quantizes the layer's *inputs* as well, row by row, and multiplies integers.
#
# Our errors and the library's, side by side, for the same layer: *hand* is ours.

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
# Double quantization takes 0.37 bits off each weight and changes the error in the third digit: as
# good as free.
#
# int8 holds a surprise. Its *weights* are as exact as ours by rows, but its *outputs* are further
# off: the difference is the inputs, which are rounded too. What is so hard about inputs?
#
# **Guess first.** In all inputs of all layers, on these 512 tokens: how many times as large as the
# typical one (the root mean square) is the largest?

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
# A few numbers are hundreds of times as large as the rest, and again it is a scale that suffers.
# Such *outlier features* are what LLM.int8() was written for: features with a value above a
# threshold (`llm_int8_threshold`, 6 by default) are left in 16 bits, and only the others become
# integers. On these four layers, without and with:

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
# (Below the threshold the inputs are rounded as before; that is the error in our first layer.)
#
# nf4 does not have this trouble. It leaves the inputs alone: the 4-bit weights are expanded to 16
# bits each time that they are needed, and the multiplication is one of 16 bits. That saves memory
# and no arithmetic.
#
# ### A trace
#
# One more look at the weights themselves. Among 32 numbers from a bell hardly any two are equal.
# How many *different* ones are there in 32 neighbouring weights?

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
# If yours is the embedded model: never more than sixteen. It has been through four bits before! The
# line that was printed when it was loaded says so, *4-bit weights (Q4_1), expanded*, and the
# weights keep the traces: blocks of 32, sixteen evenly spaced levels each. (Exercise 04.2
# finds them.) A model from the hub has no such past.
#
# Keep that in mind for what follows. Our float32 is not the model as it was trained, and what nf4
# costs here comes on top of what was lost before.
#
# ## 3. The model in each precision
#
# transformers quantizes while it loads. All it takes is a `quantization_config`:

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
# Eight bits go the same way, with `BitsAndBytesConfig(load_in_8bit=True)`.
#
# **Guess first.** In 16 bits the model takes the megabytes that are printed below. How many in
# four?

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
# "A 4-bit model" is a manner of speaking. Only the linear layers are in four bits; the embeddings,
# the output layer and the norms stay as they were. In the embedded model, the embeddings are half
# of what is left, or more.
#
# And `get_memory_footprint` is a little short: it counts parameters and buffers, and the scales are
# neither. In our tables they are in.
#
# For larger models the same can be counted without loading them, on *meta* models as in notebook
# 02:

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
# What stays in 16 bits is a matter of the vocabulary as well as of size: look at the two models of
# seven billion. Count before you trust "a quarter".
#
# ### What does it cost?
#
# Now all precisions, one after the other. `load_model("chat", "nf4")` is the course's short form of
# the cell above. Each model reads the 2,048 tokens of our text, and answers two questions.
#
# **Perplexity** is the exponential of the mean loss: how many equally likely tokens the model would
# have to choose from, to be as unsure as it is. Lower is better. The columns after it: the mean loss
# itself; how much more of it there is than in float32, and how far that difference could be off; and
# at how many places the likeliest next token is the same as in float32.
#
# **Guess first.** Which precision is the first that you would notice?

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
# Down to eight bits there is next to nothing to see. Four bits cost something here, and it matters
# *which* four: nf4 costs clearly less than fp4, in the same space. Double quantization is free, as
# on the single layer.
#
# (The high perplexity is not the four bits' doing; float32 has it too. The model is small, and the
# paragraphs are short, torn out of their notebooks, and in a manner of their own. The *differences*
# are what we look at, and those are taken token by token: that is why their errors are small.)
#
# What does one read of it?

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
# In our run, the four-bit models leave float32's words early, talk more, and one of them goes round
# in a circle. Two answers are an anecdote. The column *same next token* has the same in numbers:
# where the precision changes the likeliest token, a greedy answer takes another turn, and goes its
# own way from then on. (At eight bits that is one token in ten, at next to no cost in perplexity: so
# another answer need not be a worse one.)
#
# ### Is it the size?
#
# One often reads that small models suffer more from four bits than large ones. The course has a
# much smaller one, from notebook 06, which has never been in four bits before: 2.6 million
# parameters, trained on texts that a program writes. The program writes new ones for us.
#
# **Guess first.** Fifty times as small as the embedded chat model: does nf4 cost it more, or less?

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
# It costs it nothing that we could measure. So size *alone* is not it. One study of some 1,500
# quantized models (Ouyang et al., below) finds two things that go together: larger models lose
# less, and models that were trained on *more text for their size* lose more. Seen that way, our two
# are at opposite ends. The chat model has read two trillion tokens (Allal et al., below), 15,000
# for each of its parameters; ours has read six million, hardly more than two for each. One may
# picture it so: a weight that has to carry much has no digits to spare.
#
# Two models that differ in everything prove nothing. They agree with the study, no more.
#
# **What was not measured.** Larger models: on a GPU, these cells will tell you about yours. The
# chat model before its first rounding to four bits: it is not on this machine. Whether what was
# lost matters for a *task*: perplexity says how well a text is predicted, not how well a job is
# done. And speed: four bits save memory; whether they save time depends on the machine.
#
# ## 4. Ready for training: `prepare_model_for_kbit_training`
#
# QLoRA trains an adapter beside a frozen 4-bit model. Two things have to be right: gradients must
# get *through* the quantized layers, and what needs precision should have it. First
# the way through, on one layer: no gradient *of* the weight, but one that passes it.

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
# In both directions the weight is expanded, used, and thrown away again.
#
# Now the second thing. peft has a function for it. **Guess first:** it is to get a model ready for
# training in little memory. Does the model get smaller by it, larger, or neither?

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
# Four things have changed.
#
# - Everything is **frozen**. (The adapter comes later, and is not.)
# - What is not quantized is **float32** now. With the embeddings in float32, so is the stream of
#   hidden states that each layer adds to; the 4-bit layers still compute in 16 bits in between.
# - **Gradient checkpointing** is on, which saves memory of another kind: a later section will say
#   which.
# - The **embeddings' output still asks for a gradient**, though the embeddings are frozen now. That
#   is for the checkpointing in its older form, *reentrant*. Watch what that form does to a
#   trainable layer whose input asks for none:

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
# The first row is an adapter that learns nothing, with no more than a warning. Hence the switch;
# and hence `use_reentrant=False`, the newer form, wherever you can choose.
#
# **The price**: in float32 the embeddings are twice as large, which takes back a good part of what
# quantization had saved. In the embedded model it is more than a third. TRL's trainers no longer
# call this function ([its maintainers on one of
# them](https://github.com/huggingface/trl/issues/2459)): `SFTTrainer` 1.16 leaves the 4-bit model
# as it is, and casts the adapter to bfloat16.
#
# ### A few steps
#
# An adapter on it, and six steps on the sentences of notebook 02. What becomes of the 4-bit
# weights?

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
# ### Are the gradients right?
#
# For that we build the same model without quantization: `dequantize` turns each 4-bit layer into a
# plain one that holds the very numbers which the codes stand for. Same adapter, same sentences, all
# in float32: these are the gradients as they should be.
#
# Against them: the 4-bit model computing in float32; in 16 bits, prepared; in 16 bits, not
# prepared. And to know what is much and what is little: the right gradients of the *next* four
# sentences. **Guess first:** by how much are they off?

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
# In float32 the two agree, but for the last digits: training through 4-bit weights **is** training
# through their expanded values, nothing more mysterious. In 16 bits there is rounding, and
# preparing the model keeps a part of it away: what is added up from layer to layer is then added in
# float32. That is what the megabytes are for. Whether it is worth them is another question, as both
# are little next to what one batch differs from the next.
#
# The last row is of another kind: no rounding in the computation, but another *model*. QLoRA's
# adapter learns on the quantized weights, as they are.
#
# ### A trap on some CPUs
#
# Why `keep_weights_trainable`? On a CPU with bfloat16 instructions (AVX512_BF16), bitsandbytes
# repacks each 4-bit weight at the first forward pass in eval mode, so that it can be multiplied
# faster. The backward pass does not know of it. So: a model that has answered one question, and is
# trained then.

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
# No error, a loss that looks right, and gradients that are mostly noise; at best, once, a warning
# that names neither the model nor the remedy. The function is a loop of one line: it sets
# `support_avx512bf16_for_cpu = False` on each `Linear4bit`. On a GPU nothing is repacked. It is one
# more reason to *check* a gradient now and then instead of trusting it.

# %% [markdown]
# ## 5. The life of a training step
#
# So far a model lay in memory and answered. Training it is another matter: gradients come, and the
# optimizer's states, and everything that the forward pass keeps for the backward pass, the
# *activations*.
#
# We follow one training through its steps and ask at each moment who holds what. That needs no GPU:
# the model is made with shapes and without values, and every tensor's beginning and end is told to a
# copy of PyTorch's *allocator*, the part that hands out a GPU's memory. (Notebook 05 shows that this
# is near the truth.)
#
# We follow the same training twice: with transformers' `Trainer`, and with TRL's `SFTTrainer`, which
# this course uses. The prediction runs the code of the trainer that is installed, so it also shows
# what that trainer does by default.

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
# **Guess first.** The weights of this model take 269 MB. How much is in use at the worst moment of
# such a training, in MB: with transformers' `Trainer`, and with TRL's `SFTTrainer`? And how much does
# LoRA save with the latter, as a share of the peak?

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
# Read the first picture from the left. The weights are there from the beginning. The forward pass
# piles up activations, layer by layer; the backward pass takes them down again and leaves gradients
# in their place. Then the optimizer makes its states, which stay, so the second step starts from a
# higher floor than the first. **A first step that fits says nothing about the second.**
# (*Workspaces* are scratch memory of the matrix multiplications. They are small: you can hardly see
# them here.)
#
# The second picture is the same training with `SFTTrainer`. It needs less than a quarter, because
# TRL changes two defaults:
#
# - *Gradient checkpointing* is on. Each layer keeps only its input, and the backward pass computes
#   the rest of the layer again. This costs about a third more computing.
# - A *fused output head* computes the loss piece by piece, so the logits of all tokens never exist at
#   the same time.
#
# The third picture shows LoRA. Gradients and optimizer states are nearly gone, because only the
# adapter is trained. The weights are still there, and so is most of the activations: the frozen
# layers need theirs to pass the gradient on. So LoRA saves about as much as the states were, and not
# more.
#
# ### The largest single request
#
# What exactly does the fused output head avoid? Look at the largest requests of the first picture.

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
# They are the *logits*: one number for each token and each word of the vocabulary. The `Trainer`
# computes the loss from them in float32, with a copy for the softmax and another one for the
# gradient. For a small model with a large vocabulary they are the largest thing of all, and the
# textbook formulas do not count them.
#
# `SFTTrainer` has no request of that size. Its largest one is a *tile*: the logits of at most 4,096
# tokens and 32,768 words, which it fills and uses again and again. It also skips every token whose
# label is -100, so long prompts with short answers need even less (try `supervised_share=0.25`).
# Liger does the same for other trainers.
#
# ### And in truth?
#
# Where a GPU is at hand, the same training is run on it, for real, and its peaks stand beside the
# predicted ones, one for each phase of the training.

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
# For the back of an envelope there are formulas. Take *p* parameters, *L* layers of width *h*, *n*
# heads, and a batch of *b* examples of *s* tokens. Attention comes in two kinds: *eager* writes down
# a table of all pairs of tokens, for each head; *flash* works piece by piece and never has the whole
# table (notebook 05).
#
# | what | how much | from |
# |---|---|---|
# | weights of the blocks | $L\,\left(2\,h\,d\,(n + n_{kv}) + g\,h\,m\right)$ | counted |
# | the same, for GPT-2's shape | $12\,L\,h^2$ | Kaplan and others, 2020 |
# | activations, eager attention | $L\,(34\,hbs + 5\,n\,b\,s^2)$ bytes in 16 bits | Korthikanti and others, 2022 |
# | activations, flash attention | $L\cdot 34\,hbs$ bytes | the second term is never stored |
# | weights, gradients, Adam's states | $p$, $p$, $2p$ | Rajbhandari and others, 2020 |
#
# The first row counts the matrices of a block. Queries and the output take *h* × *n·d* numbers each,
# with heads of width *d*. Keys and values take *h* × *n_kv·d* each: in most models of today several
# query heads share one key-value head, so *n_kv* is smaller than *n*. The MLP has *g* matrices of
# *h* × *m*: two in GPT-2, three where it has a gate. Put in GPT-2's numbers (*n·d* = *h*,
# *n_kv* = *n*, *g* = 2, *m* = 4*h*), and you get the second row. People use the second row for every
# model. The table below shows where that goes wrong.
#
# The workshop divides activations by weights. For the second row that gives a short formula:
#
# $$\frac{\text{activations}}{\text{weights}} = \left[\frac{34\,bs}{12\,h} +
# \frac{5\,n\,b\,s^2}{12\,h^2}\right] \cdot \frac{p_{comp}}{p_{model}}$$
#
# Here $p_{comp}$ is the size of a number that is computed with, and $p_{model}$ the size of a stored
# weight. The 34 counts bytes at 16 bits, so with 16-bit weights the bracket is divided by two.
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
# For the older models the approximation is good. For Qwen2.5-7B it is not: its MLP is wide and has a
# gate, so its blocks take 13.0 GB and not 8.6.
#
# Eager attention is out of the question for long examples: the activations are a multiple of the
# whole model. With flash attention they are of its size.
#
# Do the formulas hold? The prediction knows every tensor, so we can compare. First weights, gradients
# and states, then the activations, all in MB.

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
# The states: within three per cent, for they are simple. The activations: the order of magnitude is
# right, and no more. The formula counts a GPT of 2022 whose dropout keeps masks; OPT today keeps
# other things, and outside the blocks stand embeddings and logits, of which the formula knows nothing.
#
# An envelope is for deciding what to try. For deciding whether it fits, ask the prediction.
#
# ## 7. Many problems, many solutions
#
# Now the whole toolbox, on one training that is too large: SmolLM2-1.7B, all weights in 32 bits,
# plain Adam, eager attention, two examples of 2,048 tokens, with the `SFTTrainer` and its
# checkpointing and mixed precision switched off.
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
# Here checkpointing is the best single tool, because activations are the largest part *of this
# training*. LoRA removes gradients and states but not activations, so alone it saves little. The bar of
# checkpointing shows gradients, because its peak has moved from the middle of the backward pass to
# the optimizer's step. With 16-bit weights the activations grow instead of halving, because eager
# attention keeps a second copy of its table for the softmax in float32. All changes together save
# most. Mixing and matching them is the subject of notebook 05.
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
# - float16 is precise and short of range, bfloat16 the other way round. A weight that is trained in
#   bfloat16 may not move at all.
# - Quantizing is dividing by a scale and rounding to a level. A scale is only as good as its block
#   is even: one outlier ruins a whole matrix, but only its own block of 64.
# - nf4 puts its levels where normally distributed weights are, and beats fp4 and even spacing.
# - LLM.int8() is about outliers in the *inputs*: it keeps those features in 16 bits.
# - "4 bit" means the linear layers. Embeddings, output layer, norms and scales come on top; in a
#   small model they are half of it.
# - What four bits cost depends on the model, and not only on its size. Measure yours: perplexity,
#   and your own task.
# - Gradients pass *through* a 4-bit weight as through its expanded values. Preparing a model costs
#   memory and makes them more exact.
# - A training's memory is weights, gradients, optimizer's states and activations, and they peak at
#   different moments. The states are there from the second step on.
# - With transformers' `Trainer`, logits count: tokens × vocabulary × 4 bytes, more than once. TRL's
#   `SFTTrainer` computes them in tiles and uses gradient checkpointing by default: for the training
#   above, it needed less than a quarter.
# - Look at which part is largest in your training, then choose what shrinks it.

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
#
# **a.** One weight of a matrix grows a hundredfold. What happens to the others when the matrix is
# quantized with absmax: with one scale for all, and in blocks of 64?
#
# - **A** Only the large weight gets a large error, in both
# - **B** With one scale all suffer; in blocks, its neighbours only
# - **C** All suffer in both, as the matrix is the same
# - **D** None suffers in either: the scale grows with it
#
# **b.** A small model in nf4 takes half of what it took in 16 bits, and not a quarter. What is the
# main reason?
#
# - **A** The scales take as much room as the codes
# - **B** The codes are expanded to 16 bits to be used
# - **C** Room has to be kept for the gradients
# - **D** The embeddings are still in 16 bits
#
# **c.** How can an adapter be trained beside 4-bit weights, which have no gradient?
#
# - **A** The gradient passes through their expanded values
# - **B** They are changed a little and quantized again at each step
# - **C** The gradient ends there; only the last adapter learns
# - **D** A copy in 16 bits is kept for the backward pass
#
# **d.** LoRA training of a small model on long texts: memory runs out in the *forward* pass. What is
# most likely to help?
#
# - **A** An optimizer with states of 8 bits
# - **B** A lower rank for the adapter
# - **C** Shorter texts, or gradient checkpointing
# - **D** To empty the allocator's cache more often

# %%
from course_utils.exercises import check, quiz

quiz("04", a="...", b="...", c="...", d="...")

# %% [markdown]
# **04.1 · Change one number.** Write `bits_a_weight(bits, block, double)`: what a weight takes if it
# is a code of so many bits and each block of weights has a scale, a float32. With double quantization
# the scales have 8 bits, and each 256 of them share one float32. Then look for the block with which
# nf4 takes as little *without* double quantization as it takes with it in blocks of 64, and see what
# the layer's weights lose by it: `off(there_and_back(weight, "nf4", block), weight)`. Which of the
# two would you take, and why?


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
# **04.2 · Two ends.** Absmax wastes levels where the numbers of a block do not lie around zero.
# Write `affine(weight, bits, block)`: in each block, the levels go in even steps from its
# *smallest* number to its *largest*, both included, 2^bits of them; each number becomes the nearest
# level. Give back the numbers that are left (not the codes), in the weight's shape. Then try it on
# a layer of the chat model (`weight` still holds one) with 4 bits and blocks of 32, and again with
# blocks of 64. What do you find?


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
# steps are run instead of one? Two predictions tell. A micro-batch is what goes through the model at
# once: `micro_batches` says how many of them are run, `accumulation` how many make a step. Then try
# eight examples of 256 tokens and
# `course/pythia-3m` with different optimizers. For which of them is the second step free?


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
