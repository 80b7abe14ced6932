# %% [markdown]
# # 04.1 · Quantization
#
# **You will learn** what a number loses in 16, 8 and 4 bits, and how a weight matrix is quantized,
# by hand and by bitsandbytes. You will load a model in 4 bits, measure what this costs and what it
# saves, and train an adapter beside it (QLoRA).
#
# **You need** notebooks 02 (LoRA) and 04 (where memory goes).
#
# **It takes** about 28 minutes of reading and trying. The cells themselves run in about four
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Jonas now knows what fills his GPU (notebook 04), and his small model trains. Next he wants a
# model with 7 billion parameters. Its weights alone take 15 GB in 16 bits, and his T4 has 16. "Load
# them in 4 bits", says a colleague. "That is a quarter." But what is left of a weight with so few
# bits, and what is left of the model?
#
# The set-up is that of notebook 02: `resolve` finds a chat model's files, and the rest is plain
# transformers.

# %%
import logging
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils import describe
from course_utils.hardware import detect, pick_dtype
from course_utils.models import keep_weights_trainable, resolve

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
print(describe())
origin = resolve("chat")
origin.announce("chat")
device = detect().device
compute = pick_dtype().value  # what this machine computes in
if compute == torch.float16:
    compute = torch.float32  # float16 would need loss scaling (notebook 02)
tokenizer = AutoTokenizer.from_pretrained(origin.folder)

# %% [markdown]
# ## 1. Numbers in fewer bits
#
# **Quantization** writes the numbers of a model with fewer bits. A floating-point number is a sign,
# a fraction and an exponent: $\pm 1.\text{fraction} \times 2^{\text{exponent}}$. The exponent's
# bits decide how *far* the numbers reach, and the fraction's bits how *close* together they are.

# %% tags=["value:number-formats"]
import math

import pandas as pd

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
        "next after 1": f"1 + {facts.eps:.1g}",
    }
pd.DataFrame(rows).T

# %% [markdown]
# With 16 bits, float16 is precise and bfloat16 reaches far.
#
# **Guess first.** Suppose that a weight of 1 is raised by 0.001, a thousand times over. Where does
# it end in each type?

# %%
my_guess = None  # e.g. {"float32": 2, "float16": 1.5, "bfloat16": 1.5}

# %% tags=["value:small-updates"]
ends = {}
for name, dtype in FLOATS.items():
    weight = torch.tensor(1.0, dtype=dtype)
    for _ in range(1000):
        weight += 0.001
    ends[name] = weight.item()
print("You said:", my_guess)
print({name: f"{end:.3f}" for name, end in ends.items()})
print(
    "70000 in each:", {name: torch.tensor(7e4).to(dtype).item() for name, dtype in FLOATS.items()}
)

# %% tags=["claim"]
assert ends["bfloat16"] == 1
assert abs(ends["float32"] - 2) < 1e-3
assert round(ends["float16"], 3) == 1.977

# %% [markdown]
# In bfloat16 the weight has not moved at all. Most people expect something near 2, but each sum,
# 1.001, is rounded back to 1. (float16 has another problem: it ends at 65504, so 70000 becomes
# infinite.) So weights that are *trained* are safest in float32. A frozen weight is only read. How
# few bits are enough for it?
#
# ## 2. One scale for many numbers
#
# Four bits can tell sixteen values apart: too few for an exponent in each number. So a **block** of
# numbers shares one factor, the **scale**. Each number is stored as a *code*, and a code stands for
# a *level* between −1 and 1. To get the number back, multiply its level by the scale. The scale is
# the largest absolute value of the block (*absmax*).
#
# Which levels? For **int8** they are evenly spaced. For four bits we compare three sets: **int4**,
# evenly spaced again; **fp4**, a floating-point type; and **nf4**, which comes with QLoRA. We get
# the last two from bitsandbytes, the library that quantizes models for transformers.

# %%
from bitsandbytes.functional import get_4bit_type

LEVELS = {
    "int8": torch.arange(-127, 128) / 127,
    "int4": torch.arange(-7, 8) / 7,
    "fp4": get_4bit_type("fp4", device="cpu").sort().values,
    "nf4": get_4bit_type("nf4", device="cpu"),
}


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
# This is all of absmax quantization. We try it on four numbers that share a scale, and then on
# three of them, without the largest.
#
# **Guess first.** What is left of 1/3 when it shares a scale with 70000?

# %%
my_guess = None  # e.g. 0.3

# %%
numbers = {"1/3": 1 / 3, "0.02": 0.02, "1.001": 1.001, "70000": 70_000.0}
rows = {}
for shared, names in (("with 70000", list(numbers)), ("without", list(numbers)[:3])):
    block = torch.tensor([numbers[name] for name in names])
    for levels in ("int8", "nf4"):
        found = there_and_back(block, levels, len(block)).tolist()
        rows[levels, shared] = {n: f"{value:.3g}" for n, value in zip(names, found, strict=True)}
print("You said:", my_guess)
pd.DataFrame(rows).T.fillna("")

# %% tags=["claim"]
assert rows["nf4", "with 70000"]["1/3"] == rows["int8", "with 70000"]["1/3"] == "0"
assert abs(float(rows["nf4", "without"]["1/3"]) - 1 / 3) < 0.03

# %% [markdown]
# Nothing is left. Many people expect a small error. But the scale is 70000, so the level next to
# zero is worth hundreds or more, and everything else is rounded to 0. Without the large neighbour,
# 1/3 comes back nearly right. **A scale works well only if the numbers of its block are of similar
# size.**
#
# ### One outlier
#
# An *outlier* is a number that is many times larger than its neighbours. The next cell draws 65,536
# normally distributed numbers and makes one of them larger.
#
# We quantize all of them twice: in int8 with one scale for all, and in nf4 with one scale for each
# block of 64. Then we look at the error of the *other* numbers.
#
# **Guess first.** How large must the outlier be, in standard deviations, before int8 has the larger
# error?

# %%
my_guess = None  # e.g. 500 standard deviations

# %% tags=["figure:04_1_outlier", "value:outliers"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, GREY, ORANGE, RED, SKY, text_table, use_style

use_style()
colours = {"nf4": BLUE, "fp4": RED, "int4": ORANGE, "int8": GREY}
torch.manual_seed(0)
bell = torch.randn(2**16)
sizes = [5, 10, 20, 50, 100, 200, 500, 1000]


def off(found, wanted):
    """The relative error: root mean square of the difference over that of the wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


def error_of_the_others(size, name, block):
    """What one outlier of a size does to all other numbers."""
    with_outlier = bell.clone()
    with_outlier[0] = size
    return off(there_and_back(with_outlier, name, block)[1:], bell[1:])


figure, axis = plt.subplots(figsize=(7.5, 3.4))
errors = {}
for name in ("int8", "nf4"):
    for block, style in ((len(bell), "--"), (64, "-")):
        errors[name, block] = [error_of_the_others(size, name, block) for size in sizes]
        label = f"{name}, {'blocks of 64' if block == 64 else 'one scale for all'}"
        axis.loglog(
            sizes, errors[name, block], style, color=colours[name], marker="o", ms=4, label=label
        )
axis.grid()
axis.set_xlabel("size of one outlier, in standard deviations of the others")
axis.set_ylabel("relative error of the others")
axis.set_title("One number among 65,536")
axis.legend(bbox_to_anchor=(1.01, 1), loc="upper left")
plt.show()

pairs = zip(sizes, errors["int8", len(bell)], errors["nf4", 64], strict=True)
worse = next(size for size, alone, four in pairs if alone > four)
print(f"Among the sizes tried, int8 with one scale loses to nf4 in blocks from {worse} on.")
print(f"You said {my_guess}.")

# %% tags=["claim"]
assert worse == 50
assert errors["nf4", 64][-1] < 1.1 * errors["nf4", 64][0]

# %% [markdown]
# Among the sizes tried, 50 is enough. People often guess more, because eight bits have many more
# levels than four. But the outlier stretches the scale, and the levels become too coarse for every
# other number. Blocks keep the damage in the outlier's own block.
#
# Do real weights have outliers? The next cell takes a layer in the middle of the chat model. It
# divides each weight by the largest of its block of 64, and draws the levels below.

# %% tags=["figure:04_1_levels"]
model = AutoModelForCausalLM.from_pretrained(
    origin.folder, dtype=torch.bfloat16, device_map={"": device}
)
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

matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
furthest = torch.tensor([(p.abs().max() / p.float().std()).item() for p in matrices])
print(f"The largest weight of each of {len(matrices)} matrices, in standard deviations:")
print(f"{furthest.median():.0f} in the middle, {furthest.max():.0f} at most")
print(f"(among {weight.numel():,} normal numbers: {torch.randn(weight.numel()).abs().max():.0f})")

# %% tags=["claim"]
assert furthest.median() > 8
assert furthest.max() > 30

# %% [markdown]
# Real weights do have outliers, so we need blocks. (The spikes at both ends of the picture are the
# largest weights of the blocks.) The other weights form a bell. nf4 (*NormalFloat*) is made for
# normally distributed numbers: it puts its levels close together where the bell is high. int4
# spaces its levels evenly, so it spends as many of them on the thin tails as on the middle. fp4
# leaves wide gaps near zero, where most weights are.
#
# ## 3. A layer, by hand and by bitsandbytes
#
# How large is the error on this layer, relative to its weights? We compare one scale for the whole
# matrix, one for each row, and one for each 64 weights. A scale is a float32, so with blocks of 64
# it adds half a bit to each weight.
#
# **Guess first.** How large is the error of nf4 in blocks of 64: one per cent, ten, or thirty?

# %%
my_guess = None  # e.g. 30

# %%
sharing = {"matrix": weight.numel(), "row": weight.shape[1], "64 weights": 64}
errors = pd.DataFrame(
    {
        f"one scale for a {shared}" if shared != "64 weights" else "for 64 weights": {
            name: off(there_and_back(weight, name, block), weight) for name in LEVELS
        }
        for shared, block in sharing.items()
    }
)
print(f"You said {my_guess} per cent.")
errors.map("{:.1%}".format)

# %% tags=["claim"]
for name in LEVELS:
    assert errors.loc[name].is_monotonic_decreasing
assert errors["for 64 weights"].loc[["int8", "nf4", "int4", "fp4"]].is_monotonic_increasing
assert 0.08 < errors["for 64 weights"]["nf4"] < 0.11

# %% [markdown]
# The error is 9.4% (the up projection in layer 15 of SmolLM2-135M). Many people guess less, because
# 4-bit models still write good text. Smaller blocks are better each time. At four bits in blocks,
# nf4 has the smallest error here, and fp4 the largest.
#
# `quantize_4bit` of bitsandbytes packs two codes into a byte. Does it compute the same as our few
# lines?

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
codes, scales = quantize(weight, LEVELS["nf4"], 64)
pairs = codes.reshape(-1, 2)
ours, theirs = there_and_back(weight, "nf4", 64), dequantize_4bit(packed, state)
print(f"{weight.numel():,} weights in {packed.numel():,} bytes, {state.absmax.numel():,} scales")
print("the same numbers:", torch.allclose(ours, theirs, atol=1e-6))
print("the same bytes:  ", torch.equal(pairs[:, 0] * 16 + pairs[:, 1], packed.flatten().long()))

# %% tags=["claim"]
assert torch.allclose(ours, theirs, atol=1e-6)
assert torch.allclose(scales.flatten(), state.absmax)
assert (pairs[:, 0] * 16 + pairs[:, 1] == packed.flatten()).float().mean() > 0.999

# %% [markdown]
# It does. We have left out one step, **double quantization**: the scales are quantized in their
# turn, to 8 bits, in blocks of 256. This saves 0.37 bits for each weight.
#
# When a layer is used, its weights are **dequantized**, that is, expanded to 16 bits, and the
# multiplication is done in 16 bits. So four bits save memory, but no arithmetic. In 8 bits,
# bitsandbytes (`LLM.int8()`) rounds the layer's *inputs* too. Appendix 04a shows why that is
# harder.
#
# ## 4. A model in 4 bits
#
# transformers quantizes a model while it loads it. All it needs is a `quantization_config`.

# %%
from transformers import BitsAndBytesConfig


def four_bits(kind="nf4", double=False):
    """A configuration for four bits; `double` quantizes the scales too."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,  # the dtype to which weights are expanded
    )


def load(folder, config=None, dtype=torch.bfloat16):
    """A model with its linear layers quantized as `config` says, and all the rest in `dtype`."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map={"": device}
    )
    keep_weights_trainable(model)  # some CPUs would rearrange the weights (appendix 04a)
    return model.eval()


model = None  # frees its memory
quantized = load(origin.folder, four_bits(double=True))
print(quantized.model.layers[0].mlp)

# %% [markdown]
# **Guess first.** The next cell prints what share of its 16-bit size the model has left. Is it a
# quarter?

# %%
my_guess = None  # e.g. 0.25

# %%
KINDS = {"embed": "embeddings", "lm_head": "output layer", "norm": "norms"}


def parts(model):
    """MB of each kind of tensor in a model's state dict, scales included."""
    sizes, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights have two names
            seen.add(tensor.data_ptr())
            kind = next((kind for part, kind in KINDS.items() if part in name), "linear layers")
            sizes[kind] = sizes.get(kind, 0) + tensor.numel() * tensor.element_size() / 1e6
    return pd.Series(sizes)


in_16_bits = 2 * quantized.num_parameters() / 1e6
held = parts(quantized)
print("You said:", my_guess)
print(f"{held.sum():.0f} MB of {in_16_bits:.0f} MB: {held.sum() / in_16_bits:.0%}")
held.map("{:.1f} MB".format).to_frame("size")

# %% tags=["claim"]
assert held.sum() > 1.1 * in_16_bits / 4
if origin.where == "embedded":
    assert round(held.sum()) == 112
    assert f"{held.sum() / in_16_bits:.0%}" == "42%"

# %% [markdown]
# SmolLM2-135M has 112 MB left, which is 42%. Many people expect a quarter. But only the linear
# layers are in four bits. Embeddings, output layer and norms stay as they were, and in this small
# model the embeddings are half of what is left. What about larger models? We count without loading
# them, on *meta* models, which have shapes but no values.

# %% tags=["value:bits-kept"]
from course_utils.models import catalog

rows = {}
for name in (
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-1.7B",
    "Qwen/Qwen2.5-7B",
    "meta-llama/Llama-2-7b-hf",
):
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(catalog().models[name].config())
    total = skeleton.num_parameters()
    inner = sum(p.numel() for n, p in skeleton.named_parameters() if n.endswith("proj.weight"))
    nf4 = (inner * (4 + 0.127) / 8 + (total - inner) * 2) / 1e9
    rows[name] = {
        "parameters": f"{total / 1e9:.2f} billion",
        "16 bits, GB": f"{2 * total / 1e9:.2f}",
        "nf4-double, GB": f"{nf4:.2f}",
        "of 16 bits": f"{nf4 / (2 * total / 1e9):.0%}",
    }
counted = pd.DataFrame(rows).T
counted

# %% tags=["claim"]
assert counted["of 16 bits"].iloc[0] == "41%"
assert counted["of 16 bits"].tolist()[2:] == ["36%", "29%"]
assert counted.loc["Qwen/Qwen2.5-7B", "nf4-double, GB"] == "5.55"
assert counted.loc["Qwen/Qwen2.5-7B", "16 bits, GB"] == "15.23"

# %% [markdown]
# (The first row is a little low: the sum leaves out the list of levels that each layer has.) In
# larger models the embeddings are a smaller share, but a large vocabulary works against this:
# Qwen2.5-7B keeps 36%, and Llama-2-7B, with a smaller vocabulary, 29%. If Jonas takes Qwen2.5-7B,
# its weights need 5.55 GB instead of 15.23, and fit on his T4.
#
# ## 5. What does it cost?
#
# Each model reads 2,048 tokens of two texts that programs of this course write, so the chat model
# has not read them before. Then it answers two questions.
#
# **Perplexity** is the exponential of the mean loss: among how many equally likely tokens the model
# would have to choose, to be as unsure as it is. Lower is better. The table has three more columns:
#
# - *more than 16 bits*: how much higher the loss is than in 16 bits;
# - *standard error*: how far chance typically moves this difference;
# - *same next token*: at what share of the places the likeliest next token is the same as in 16
#   bits.
#
# **Guess first.** The table goes from 16 bits down to 4. At which precision would you first notice
# a difference?

# %%
my_guess = None  # e.g. "8bit"


# %%
from course_utils.data import Corpus, load_data

corpus = Corpus(seed=2024)
KINDS_OF_TEXT = ("entry", "travel", "homework", "reading")
TEXTS = {
    "stories": "\n\n".join(getattr(corpus, kind)() for _ in range(12) for kind in KINDS_OF_TEXT),
    "sentences": " ".join(load_data("sentences")["test"]["sentence"]),
}
for name, text in TEXTS.items():
    print(f"{name}: {text[:160]} …\n")
PRECISIONS = {
    "16 bits": None,
    "8bit": BitsAndBytesConfig(load_in_8bit=True),
    "nf4": four_bits("nf4"),
    "nf4-double": four_bits("nf4", double=True),
    "fp4": four_bits("fp4"),
}


@torch.inference_mode()
def read(model, tokenizer, text):
    """The loss at each of 2,040 tokens, and which token the model holds to be the likeliest."""
    ids = torch.tensor(tokenizer(text)["input_ids"][: 8 * 256]).reshape(8, 256)
    losses, likeliest = [], []
    for window in ids.to(model.device):
        logits = model(window[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        likeliest.append(logits.argmax(dim=-1))
    return torch.cat(losses).cpu(), torch.cat(likeliest).cpu()


def compare(folder, then=lambda model: None):
    """A model in each precision, on each text: its size, its loss against 16 bits, and more."""
    reader = AutoTokenizer.from_pretrained(folder)
    rows, reference, answers = {text: {} for text in TEXTS}, {}, {}
    for precision, config in PRECISIONS.items():
        model = load(folder, config)
        size = parts(model).sum()
        for parameter in model.parameters():
            if parameter.is_floating_point() and compute == torch.float32:
                parameter.data = parameter.data.float()  # this machine computes in float32
        for name, text in TEXTS.items():
            losses, likeliest = read(model, reader, text)
            wanted_losses, wanted = reference.setdefault(name, (losses, likeliest))
            more = losses - wanted_losses
            rows[name][precision] = {
                "MB": f"{size:.1f}",
                "perplexity": f"{losses.mean().exp():.1f}",
                "loss": f"{losses.mean():.3f}",
                "more than 16 bits": f"{more.mean():+.3f}",
                "standard error": f"{more.std() / len(more) ** 0.5:.3f}",
                "same next token": f"{(likeliest == wanted).float().mean():.0%}",
            }
        answers[precision] = then(model)
    return {name: pd.DataFrame(found).T for name, found in rows.items()}, answers


# %% tags=["value:precisions"]
from course_utils.models import Runner

QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea."]
quantized = None  # frees its memory
compared, answers = compare(
    origin.folder, then=lambda model: Runner(model, tokenizer, max_new_tokens=24)(QUESTIONS)
)
print("You said:", my_guess)
compared["stories"]

# %%
compared["sentences"].drop(columns="MB")

# %% tags=["claim"]
chat = {name: found["more than 16 bits"].astype(float) for name, found in compared.items()}
agreed = {
    name: found["same next token"].str.rstrip("%").astype(int) for name, found in compared.items()
}
size = compared["stories"]["MB"].astype(float)
assert size.drop("fp4").is_monotonic_decreasing
for name in TEXTS:
    assert abs(chat[name]["8bit"]) < 0.04
    assert abs(chat[name]["nf4"] - chat[name]["nf4-double"]) < 0.03
    if origin.where == "embedded":
        assert 0.15 < chat[name]["nf4"] < 0.35
        assert 0.15 < chat[name]["fp4"] < 0.4
        assert agreed[name]["fp4"] < agreed[name]["nf4"] < agreed[name]["8bit"] < 97
if origin.where == "embedded":
    assert chat["stories"]["nf4"] < chat["stories"]["fp4"]

# %% [markdown]
# In 8 bits the loss hardly changes. In four bits it rises. On the stories, nf4 adds 0.219 to the
# loss and fp4 adds 0.302; on the sentences it is 0.264 and 0.227, so there fp4 is ahead
# (SmolLM2-135M, 2,040 tokens of each text, the saved run). So one text is not enough to compare
# precisions. On both texts, nf4 keeps the likeliest token more often than fp4, and double
# quantization costs nothing measurable.
#
# One warning: the embedded chat model was stored in 4 bits and expanded (the line "Q4_1" above). So
# we measure the cost of a *second* rounding. We cannot tell what four bits would cost the original
# model. (The perplexity on the sentences is high in 16 bits already: they are grammatical, but
# absurd.)
#
# What do these differences mean for a reader?

# %%
replies = pd.DataFrame(answers, index=QUESTIONS).T
text_table(replies.rename_axis("precision").reset_index())

# %% [markdown]
# In the saved run, the replies of all precisions name Paris, but they differ in other words, in 8
# bits too. In 8 bits the likeliest token changes at about one place in ten, with nearly the same
# loss, and one changed token changes the rest of a reply. So equal losses do not promise equal
# replies. Many people say that they would notice 4 bits first, and by the loss that is right. (Two
# replies are too few to judge a precision by.)
#
# ### Is it the size?
#
# One often reads that small models suffer more. The course's own model (notebook 06) has only 2.6
# million parameters, and was never in four bits before.
#
# **Guess first.** Does nf4 cost this model more than the chat model, or less?

# %%
my_guess = None  # e.g. "more"

# %%
own, _ = compare(resolve("course/pythia-3m").folder)
print("You said:", my_guess)
pd.DataFrame({name: found["more than 16 bits"] for name, found in own.items()})

# %% tags=["claim"]
for name, found in own.items():
    more = found["more than 16 bits"].astype(float)
    assert abs(more["nf4"]) < 0.02
    if origin.where == "embedded":
        assert more["nf4"] < 0.2 * chat[name]["nf4"]

# %% [markdown]
# We could not measure any loss from nf4 on this model. Most people expect the smaller model to
# suffer more. But the two models differ in more than size: the small one was trained on texts like
# these, and only the chat model was rounded before. One study of some 1,500 quantized models
# (Ouyang et al., below) finds that larger models lose less, and that models which were trained on
# *more text for their size* lose more. Our numbers are no evidence for or against it. Measure your
# own model on your own task.
#
# ## 6. QLoRA: an adapter beside four bits
#
# **QLoRA** trains an adapter beside a frozen model in 4 bits. The gradient passes *through* the
# 4-bit weights: in the backward pass they are expanded, used and thrown away again, as in the
# forward pass. (Appendix 04a checks that these gradients are right.)
#
# Many recipes call peft's `prepare_model_for_kbit_training` first. **Guess first:** it prepares a
# model for training in little memory. Does the model get smaller or larger?

# %%
my_guess = None  # e.g. "smaller"

# %%
from peft import LoraConfig, prepare_model_for_kbit_training


def looks(model):
    """What matters for training: sizes, dtypes, what is trained, checkpointing."""
    others = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
    return {
        "MB": f"{parts(model).sum():.0f}",
        "what is not in 4 bits": ", ".join(sorted(others)).replace("torch.", ""),
        "trainable tensors": sum(p.requires_grad for p in model.parameters()),
        "gradient checkpointing": model.is_gradient_checkpointing,
    }


quantized = load(origin.folder, four_bits())
before = looks(quantized)
quantized = prepare_model_for_kbit_training(
    quantized, gradient_checkpointing_kwargs={"use_reentrant": False}
)
print("You said:", my_guess)
pd.DataFrame({"before": before, "after": looks(quantized)}, dtype=object)

# %% tags=["claim"]
after = looks(quantized)
assert after["what is not in 4 bits"] == "float32"
assert after["trainable tensors"] == 0
assert after["gradient checkpointing"]
assert not before["gradient checkpointing"]
if origin.where == "embedded":
    assert int(after["MB"]) - int(before["MB"]) == 57

# %% [markdown]
# It gets larger, by 57 MB (SmolLM2-135M). Most people expect the function to save memory. It
# freezes all weights, switches gradient checkpointing on, and casts everything that is not
# quantized to float32. So the sums between the layers are more exact, and the embeddings take twice
# as much.
#
# TRL no longer calls it. `SFTTrainer` 1.16 leaves the 4-bit model as it is, switches checkpointing
# on itself, and casts the *adapter* to bfloat16, following the paper on QLoRA. So here, what is
# trained is **not** in float32. We build such a trainer, look at the adapter, and ask `preflight`
# (notebook 03).

# %%
import tempfile

import datasets
from trl import SFTConfig, SFTTrainer

from course_utils import preflight

datasets.disable_progress_bars()
yoda = load_data("yoda")["train"].select(range(32))
train = yoda.map(
    lambda row: {
        "prompt": [{"role": "user", "content": f"Say it as Yoda does: {row['sentence']}"}],
        "completion": [{"role": "assistant", "content": row["yoda"]}],
    },
    remove_columns=yoda.column_names,
)
trainer = SFTTrainer(
    model=load(origin.folder, four_bits(), dtype=compute),
    args=SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=2e-3,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=compute == torch.bfloat16 and device != "cpu",
    ),
    train_dataset=train,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]),  # quick
)
trainer.remove_callback(transformers.PrinterCallback)
adapter = [p for p in trainer.model.parameters() if p.requires_grad]
print("the adapter is in", {p.dtype for p in adapter})
report = preflight(trainer)
print(report.verdict)
for row in report.rows:
    if row.name in ("trainable", "dtype", "4-bit weights on a CPU", "loss and gradients"):
        print(f"{row.status}  {row.name}: {row.found}")

# %% tags=["claim"]
assert {p.dtype for p in adapter} == {torch.bfloat16}
assert report.ok

# %%
codes = [p.clone() for p in trainer.model.parameters() if p.dtype == torch.uint8]
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("losses:", " ".join(f"{float(loss):.2f}" for loss in losses))
still = [p for p in trainer.model.parameters() if p.dtype == torch.uint8]
same = all(torch.equal(a, b) for a, b in zip(codes, still, strict=True))
print(f"{len(still)} quantized weights, unchanged: {same}")

# %% tags=["claim"]
assert same
assert float(losses[-1]) < float(losses[0])

# %% [markdown]
# The loss falls (each step has other sentences), and all codes are exactly what they were: only the
# adapter has learned.
#
# Why does it learn in bfloat16? An adapter's numbers are small, and near small numbers the steps of
# bfloat16 are small, too. The line *dtype* of `preflight` speaks of the base model's other weights.
# But `preflight` looks at the adapter as well: it warns if your learning rate is too small to move
# most of its numbers. And with `fp16=True`, which is common on a T4, it fails, because the gradient
# scaler cannot take gradients in bfloat16. Then set `p.data = p.data.float()` for each trained
# parameter, after building the trainer.
#
# ## Take away
#
# - A weight in bfloat16 may not move at all, if its updates are small (section 1).
# - To quantize is to divide by a scale and to round to a level. One outlier spoils all that share
#   its scale (section 2).
# - nf4 puts its levels where normally distributed weights are. On our layer, its error was the
#   smallest of the 4-bit formats (section 3).
# - "4 bit" means the linear layers. Embeddings, output layer and norms come on top (section 4).
# - Measure what four bits cost *your* model. The order of nf4 and fp4 depended on the text, and
#   equal losses do not promise equal replies (section 5).
# - QLoRA trains an adapter through 4-bit weights, which stay as they are. TRL keeps this adapter in
#   bfloat16 (section 6).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
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

# %%
from course_utils.exercises import check, quiz

quiz("04.1", a="...", b="...", c="...")

# %% [markdown]
# **04.1.1 · Change one number.** Write `bits_a_weight(bits, block, double)`: how many bits a weight
# takes, its share of the scale included. A code has `bits` bits, and each block of `block` weights
# has a scale, a float32. With double quantization the scales have 8 bits, and each 256 of them
# share one float32. Then look for the block size with which nf4 *without* double quantization takes
# as little as nf4 *with* it in blocks of 64. What error does nf4 have at this block size?
# `off(there_and_back(weight, "nf4", block), weight)` tells you.


# %% tags=["exercise"]
def bits_a_weight(bits, block, double=False):
    """Bits for one weight, its share of the scales included."""
    ### BEGIN SOLUTION
    scale = 8 + 32 / 256 if double else 32
    return bits + scale / block
    ### END SOLUTION


# %%
check("04.1.1", bits_a_weight)

# %% [markdown]
# **04.1.2 · Alone: two ends.** Absmax wastes levels if the numbers of a block are not centred on
# zero. Write `affine(weight, bits, block)`: in each block, the levels go in even steps from its
# *smallest* number to its *largest*, both included, 2^bits of them; each number becomes the nearest
# level. Return these levels (not the codes), in the weight's shape. If all numbers of a block are
# equal, they stay as they are. Then try it on `weight` with 4 bits and blocks of 32, and again with
# blocks of 64. What do you find? (Appendix 04a explains it.)


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
check("04.1.2", affine)

# %% [markdown]
# Solutions: `notebooks/solutions/04.1_quantization.py`.
#
# ## To read
#
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314): nf4, double quantization, and
#   training through frozen 4-bit weights.
# - Ouyang et al., [Low-Bit Quantization Favors Undertrained
#   LLMs](https://arxiv.org/abs/2411.17691): what a model loses, by its size and by what it has
#   read.
# - The manual of [bitsandbytes](https://huggingface.co/docs/bitsandbytes).
# - The [glossary](../docs/glossary.md): the course's words.
