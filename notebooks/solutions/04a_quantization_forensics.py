# %% [markdown]
# # 04a · A closer look at quantization
#
# **You will learn** why a layer's inputs are harder to round than its weights, and which trace an
# earlier rounding leaves. You will check whether the gradients of QLoRA are right, and meet two
# traps in which a training learns nothing.
#
# **You need** notebook 04.1. This is an appendix: no later notebook needs it.
#
# **It takes** about 11 minutes of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Mei has trained an adapter beside a 4-bit model, and the loss fell. But she has read that 8 bits
# can be worse than 4, and that 4-bit training can fail silently. So she looks inside. You will do
# the same, on the chat model and a text that a program of the course writes.

# %%
import logging
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import pandas as pd
import torch
import transformers
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear8bitLt
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from course_utils import describe
from course_utils.data import Corpus, load_data
from course_utils.hardware import detect
from course_utils.models import keep_weights_trainable, resolve

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
print(describe())
origin = resolve("chat")
origin.announce("chat")
device = detect().device
tokenizer = AutoTokenizer.from_pretrained(origin.folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def load(dtype=torch.float32, config=None):
    """A fresh copy of the chat model, quantized if a configuration is given."""
    return AutoModelForCausalLM.from_pretrained(
        origin.folder, dtype=dtype, quantization_config=config, device_map={"": device}
    ).eval()


def off(found, wanted):
    """The relative error: root mean square of the difference over that of the wanted."""
    return ((found - wanted).norm() / wanted.norm()).item()


model = load()

# %% [markdown]
# ## 1. Inputs are harder to round than weights
#
# nf4 rounds the weights only. `LLM.int8()`, the 8-bit layer of bitsandbytes, rounds the layer's
# *inputs* too, so that it can multiply integers. What do these inputs look like? The model reads
# 512 tokens. A *hook*, a function that PyTorch calls at each forward pass of a layer, keeps what
# goes into the layer.
#
# **Guess first.** Take all inputs of all linear layers. How many times as large as the typical
# input of its layer (the root mean square) is the largest?

# %%
my_guess = None  # e.g. 20

# %%
corpus = Corpus(seed=2024)
text = "\n\n".join(getattr(corpus, kind)() for _ in range(12) for kind in ("entry", "travel"))
ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :512].to(device)
layers = {
    name.removeprefix("model.layers."): module
    for name, module in model.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"
}
inputs = {}


def keep(name):
    """A hook that notes the inputs of a layer: a tensor (tokens, features)."""

    def hook(module, args):
        inputs[name] = args[0][0].float().cpu()

    return hook


hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
with torch.inference_mode():
    model(ids)
for hook in hooks:
    hook.remove()
spread = pd.DataFrame(
    {
        name: {
            "typical": x.square().mean().sqrt().item(),
            "largest": x.abs().max().item(),
            "features above 6": int((x.abs() > 6).any(dim=0).sum()),
        }
        for name, x in inputs.items()
    }
).T
spread["ratio"] = spread["largest"] / spread["typical"]
spread = spread.sort_values("ratio", ascending=False)
print(f"You said {my_guess}.")
spread.head(4).map("{:,.1f}".format)

# %% tags=["claim"]
assert spread["ratio"].max() > 50

# %% [markdown]
# In one layer the largest input is more than 800 times the typical one (SmolLM2-135M, 512 tokens).
# Most people guess less, because the largest *weight* of this model is at about 51 standard
# deviations (notebook 04.1). Again a few huge numbers stretch the scale for all the others.
#
# LLM.int8() was written for such **outlier features**. A feature with a value above a threshold
# (`llm_int8_threshold`, 6 by default) is computed in 16 bits, and only the others become integers.
# The next cell computes the four layers above, without the threshold and with it.

# %%
rows = {}
for name in spread.index[:4]:
    x, weight = inputs[name], layers[name].weight.detach().float().cpu()
    row = {"of features": x.shape[1], "in 16 bits": int(spread.loc[name, "features above 6"])}
    for threshold in (0.0, 6.0):  # 0 switches the threshold off
        layer = Linear8bitLt(
            *reversed(weight.shape), bias=False, has_fp16_weights=False, threshold=threshold
        )
        layer.load_state_dict({"weight": weight.clone()})
        layer = layer.to("cpu").eval()  # it quantizes when it is moved
        with torch.inference_mode():
            error = off(layer(x), x @ weight.T)
        row["with the threshold, off by" if threshold else "all in int8, off by"] = error
    rows[name] = row
outliers = pd.DataFrame(rows.values(), index=list(rows))
outliers.round(4)

# %% tags=["claim"]
assert (outliers["with the threshold, off by"] < outliers["all in int8, off by"]).all()

# %% [markdown]
# In all four layers the threshold makes the error smaller. Some error remains, because the inputs
# below the threshold are still rounded.
#
# ## 2. A trace in the weights
#
# Among 32 numbers from a normal distribution, hardly any two are equal. How many *different*
# numbers are there among 32 neighbouring weights of a layer?

# %%
weight = layers[f"{len(model.model.layers) // 2}.mlp.up_proj"].weight.detach().cpu()
torch.manual_seed(0)
bell = torch.randn_like(weight.float()).bfloat16()
different = {}
for what, matrix in (("normal numbers in bfloat16", bell), ("the layer", weight)):
    counts = [len(row.unique()) for row in matrix.reshape(-1, 32)[:2000]]
    different[what] = (min(counts), max(counts))
    print(f"{what}: {min(counts)} to {max(counts)} different numbers in 32")

# %% tags=["claim"]
if origin.where == "embedded":
    assert different["the layer"][1] <= 16
assert different["normal numbers in bfloat16"][0] > 20

# %% [markdown]
# In the embedded model there are never more than sixteen. So its weights have been through four
# bits before, as the line below the set-up cell says: *Q4_1, expanded*. (Q4_1 stores blocks of 32
# with sixteen evenly spaced levels each. Exercise 04.1.2 makes such levels.) A model from the hub
# has no such past. So "float32" is not the model as it was trained. What nf4 costs here is the cost
# of rounding a *second* time, and we cannot say what four bits cost the original model.
#
# ## 3. Are the gradients right?
#
# The gradient of QLoRA passes through 4-bit weights. To check it, we build the same model without
# quantization: `dequantize` turns each 4-bit layer into a plain layer that holds exactly the
# numbers which the codes stand for. With the same adapter and sentences, all in float32, its
# gradients are the reference.
#
# We compare the 4-bit model computing in float32, and in bfloat16, prepared by
# `prepare_model_for_kbit_training` and not. To know what a large error is, we add the correct
# gradients of four *other* sentences.
#
# **Guess first.** By how many per cent are the first three off?

# %%
my_guess = None  # e.g. {"float32": 10, "bfloat16, prepared": 10, "bfloat16": 10}


# %%
def batch(rows):
    """Sentences and what Yoda makes of them, as padded tensors."""
    texts = [f"{row['sentence']} → {row['yoda']}" for row in rows]
    tensors = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right").to(device)
    labels = tensors["input_ids"].masked_fill(tensors["attention_mask"] == 0, -100)
    return {**tensors, "labels": labels}


def load_nf4(compute, trainable=True):
    """The chat model in nf4."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )
    model = load(compute, config)
    if trainable:
        keep_weights_trainable(model)  # section 4
    return model


def with_adapter(base):
    """A model with an adapter, the same each time; B is not zero, so that A has a gradient too."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    tuned = get_peft_model(base, config).train()
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(0.1)  # a small change, as after a few steps
    return tuned


def gradients(tuned, rows):
    """The loss on some sentences, and all gradients of the adapter, in one row."""
    tuned.zero_grad()
    loss = tuned(**rows).loss
    loss.backward()
    found = [p.grad.float().flatten() for p in tuned.parameters() if p.requires_grad]
    return loss.item(), torch.cat(found)


model = None  # frees its memory
sentences = list(load_data("yoda")["train"].select(range(8)))
these, others = batch(sentences[:4]), batch(sentences[4:])
plain = with_adapter(load_nf4(torch.float32).dequantize(dtype=torch.float32).requires_grad_(False))
_, right = gradients(plain, these)
cases = {"float32, four other sentences": gradients(plain, others)}
plain = None
cases["4 bits, computing in float32"] = gradients(with_adapter(load_nf4(torch.float32)), these)
prepared = prepare_model_for_kbit_training(load_nf4(torch.bfloat16))
cases["4 bits, computing in bfloat16, prepared"] = gradients(with_adapter(prepared), these)
prepared = None
cases["4 bits, all the rest in bfloat16"] = gradients(with_adapter(load_nf4(torch.bfloat16)), these)
print("You said:", my_guess)
gradient_off = pd.Series({name: off(found, right) for name, (_, found) in cases.items()})
gradient_off.map("{:.1%}".format).to_frame("gradients off by")

# %% tags=["claim"]
other, exact, with_preparation, without = gradient_off
assert exact < 1e-3
assert exact < with_preparation < without < 0.3 < other

# %% [markdown]
# In float32 the error is 0.0%: training through 4-bit weights **is** training through their
# expanded values. People often expect noise from the four bits, but the gradients are exact for the
# weights that the model has. In bfloat16 there is rounding: 3.9%, or 2.0% if the model was
# prepared, because the sums from layer to layer are then computed in float32. Both are small beside
# the 102.8% of four other sentences. (SmolLM2-135M, one batch of four sentences, the saved run.)
#
# ## 4. Two traps
#
# ### Answered first, trained later
#
# On a CPU with bfloat16 instructions (AVX512_BF16), bitsandbytes rearranges each 4-bit weight at
# the first forward pass in eval mode, to multiply faster. The backward pass does not know about the
# new arrangement. So a model that first answers, and then is trained, gets wrong gradients. There
# is no error message. `keep_weights_trainable` switches the rearranging off.

# %%
if device == "cpu" and has_avx512bf16():
    for safe in (True, False):
        answering = with_adapter(load_nf4(torch.bfloat16, trainable=safe))
        with torch.inference_mode():
            answering.eval()(**these)
        loss, found = gradients(answering.train(), these)
        print("with keep_weights_trainable:" if safe else "without:")
        print(f"  loss {loss:.2f}, gradients off by {off(found, right):.0%}")
    trapped = off(found, right)
else:
    trapped = None
    print("This machine does not rearrange the weights, so there is nothing to see here.")

# %% tags=["claim"]
assert trapped is None or trapped > 0.5

# %% [markdown]
# On such a CPU the loss looks right and the gradients are far off. `preflight` finds it. On a GPU,
# and on CPUs without these instructions, nothing is rearranged.
#
# ### Checkpointing beside frozen embeddings
#
# The older form of gradient checkpointing, called *reentrant*, trains a layer only if its *input*
# requires a gradient. The embeddings are frozen in QLoRA, so the first layer's input requires none.
# The next cell runs a trainable layer under both forms.

# %%
layer = torch.nn.Linear(4, 4)
rows = []
for reentrant in (True, False):
    for asks in (False, True):
        given = torch.randn(2, 4, requires_grad=asks)
        made = checkpoint(layer, given, use_reentrant=reentrant)
        rows.append(
            {
                "reentrant": reentrant,
                "input requires a gradient": asks,
                "layer is trained": made.requires_grad,
            }
        )
asked = pd.DataFrame(rows)
asked

# %% tags=["claim"]
assert asked["layer is trained"].tolist() == [False, True, True, True]

# %% [markdown]
# In the first row the layer learns nothing, and you get no more than a warning. This is why
# `prepare_model_for_kbit_training` and TRL make the embeddings' output require a gradient. Where
# you can choose, take the newer form: `use_reentrant=False`.
#
# ## Take away
#
# - Inputs have outlier features, far larger than a typical input. LLM.int8() keeps them in 16 bits,
#   which made the error smaller in all four layers (section 1).
# - The embedded chat model was rounded to four bits before: at most sixteen different numbers in a
#   block of 32 (section 2).
# - Training through 4-bit weights is training through their expanded values. In bfloat16 there is
#   rounding, small beside the difference between two batches (section 3).
# - Two traps give no error: rearranged weights on some CPUs, and reentrant checkpointing (section
#   4).

# %% [markdown]
# ## Exercises
#
# **04a.1 · Outlier features.** Write `outlier_features(inputs, threshold)`: the numbers of the
# features (columns) in which any token has a value that is further from zero than the threshold.
# `inputs` has a row for each token. Then count them for a layer of `inputs`, with thresholds of 3,
# 6 and 20. What would a lower threshold cost?


# %% tags=["exercise"]
def outlier_features(inputs, threshold):
    """The numbers of the columns with a value beyond the threshold."""
    ### BEGIN SOLUTION
    return (inputs.abs() > threshold).any(dim=0).nonzero().flatten().tolist()
    ### END SOLUTION


# %%
from course_utils.exercises import check

check("04a.1", outlier_features)

# %% [markdown]
# Solutions: `notebooks/solutions/04a_quantization_forensics.py`.
#
# ## To read
#
# - Dettmers et al., [LLM.int8()](https://arxiv.org/abs/2208.07339): outlier features, and what to
#   do about them.
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314): training through frozen 4-bit
#   weights.
# - The [glossary](../docs/glossary.md): the course's words.
