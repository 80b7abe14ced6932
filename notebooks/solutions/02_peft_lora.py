# %% [markdown]
# # 02 · PEFT and LoRA
#
# **You will learn** how LoRA fine-tunes a model that is too large to train as a whole. You will
# find its settings and its learning rate, and you will save, switch and merge adapters.
#
# **You need** notebook 01, and to have seen a PyTorch training loop.
#
# **It takes** about 35 minutes of reading and trying. The cells themselves run in about three
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Omar has a chat model with 7 billion parameters. It answers questions on his GPU without trouble.
# Then he trains it to write in his company's tone, and the training stops at once: out of memory.
# Why is a model that fits too large to train? You will see where the memory goes, and how LoRA
# avoids the problem.
#
# The first cell hides messages of the libraries. The second one loads a chat model: `resolve` finds
# its files, and the rest is plain transformers.

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
from course_utils.hardware import pick_dtype
from course_utils.models import resolve

transformers.utils.logging.disable_progress_bar()
print(describe())
origin = resolve("chat")
origin.announce("chat")
dtype = pick_dtype().value  # the number format that this machine computes in
if dtype == torch.float16:
    dtype = torch.float32


def load(**options):
    """Load a fresh copy of the chat model."""
    options = {"dtype": dtype, "device_map": "auto", **options}
    return AutoModelForCausalLM.from_pretrained(origin.folder, **options).eval()


model = load()
tokenizer = AutoTokenizer.from_pretrained(origin.folder)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

# %% [markdown]
# Older GPUs, such as a T4, compute in float16, where small gradients become zero unless the loss is
# scaled up. So we load the model in float32 there. If the line above says "Q4_1", the weights of
# your model were stored in 4 bits and then written out in 16 bits. So the model that we call
# *unquantized* has already been rounded once.
#
# ## 1. The optimizer problem
#
# A model with *p* weights holds *p* numbers when it answers a question. Training also computes a
# *gradient* for each trained weight: how strongly, and in which direction, the loss changes with
# it. The *optimizer*, usually *AdamW*, uses the gradients to change the weights.
#
# **Guess first.** How many numbers does the model hold while AdamW trains it, as a multiple of *p*?
# Do not count the layers' outputs (*activations*).

# %%
my_guess = None  # a multiple of p, such as 3

# %% [markdown]
# We train one *MLP*, a block of three linear layers, for one step, and count.

# %% tags=["value:numbers-held"]
import copy

mlp = copy.deepcopy(model.model.layers[0].mlp).float().cpu()
p = sum(weight.numel() for weight in mlp.parameters())


def numbers_held(module):
    """Train a module for one step, and count what it and AdamW hold, in multiples of p."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    x = torch.randn(4, model.config.hidden_size)
    (module(x) - x).square().mean().backward()  # any loss will do
    optimizer.step()
    states = optimizer.state.values()
    held = {
        "weights": module.parameters(),
        "gradients": [weight.grad for weight in trained],
        "optimizer": [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")],
    }
    return {what: sum(tensor.numel() for tensor in held[what]) / p for what in held}


full = numbers_held(copy.deepcopy(mlp).requires_grad_(True))
print({what: f"{share:.0f} p" for what, share in full.items()})
print(f"in all {sum(full.values()):.0f} p; you guessed {my_guess}")
for size, how in ((4, "in usual mixed precision"), (2, "with everything in bfloat16")):
    print(f"7 billion parameters, {how}: {7 * sum(full.values()) * size:.0f} GB")

# %% tags=["claim"]
assert full == {"weights": 1, "gradients": 1, "optimizer": 2}

# %% [markdown]
# The answer is 4 *p*: the weight, its gradient and two *moments*. The moments are running means
# that AdamW keeps, one of the gradient and one of its square. The guess 2 *p* forgets the moments.
# This is **the optimizer problem**: the optimizer needs more memory than the model.
#
# Usual *mixed precision* computes in 16 bits but keeps these numbers in 32 bits. That takes 16
# bytes a parameter, or 112 GB for Omar's model. With everything in *bfloat16*, a 16-bit format with
# the range of float32 and fewer digits, it is 8 bytes a parameter, or 56 GB.
#
# Only *trained* weights have gradients and moments. So we *freeze* the model's weights, which means
# that training reads them but does not change them, and train a few new weights beside them.
#
# ## 2. LoRA in a picture
#
# Take one linear layer with the weight matrix $W$. LoRA, *low-rank adaptation*, assumes that a few
# patterns are enough to describe how $W$ should change. A pattern says: "the more the input looks
# like *this row*, the more of *that column* is added to the output." Sixteen patterns are 16 rows
# and 16 columns, far less than a whole matrix.
#
# In the picture, the input takes two paths. The upper one is the layer as it was. On the lower one,
# the rows in $A$ measure how much of each pattern is in the input, and the columns in $B$ turn this
# into a change of the output.

# %%
import matplotlib.pyplot as plt
import numpy as np

from course_utils.display import BLUE, GREY, ORANGE, SKY, text_table, use_style

use_style()
(n_out, n_in), r = mlp.up_proj.weight.shape, 16
few = r * (n_in + n_out)
shapes = (  # colour, text, corners
    (GREY, f"W: {n_out:,} × {n_in:,}\nfrozen", [(3, 3), (3, 5), (7, 5), (7, 3)]),
    (ORANGE, f"A\n{r} × {n_in:,}", [(3, 0), (3, 2), (4.7, 1.4), (4.7, 0.6)]),
    (ORANGE, f"B\n{n_out:,} × {r}", [(5.3, 0.6), (5.3, 1.4), (7, 2), (7, 0)]),
)
paths = [((1.2, 2.5), (3, 4)), ((1.2, 2.5), (3, 1)), ((4.7, 1), (5.3, 1))]
paths += [((7, 4), (8.2, 2.6)), ((7, 1), (8.2, 2.4)), ((8.5, 2.5), (9.1, 2.5))]
texts = [(0.6, 2.5, f"input\n{n_in:,}\nnumbers"), (8.35, 2.5, "+"), (5, -0.35, "A and B: trained")]
texts += [(9.7, 2.5, f"output\n{n_out:,}\nnumbers")]

figure, axis = plt.subplots(figsize=(8.5, 3.6))
for colour, text, corners in shapes:
    axis.add_patch(plt.Polygon(corners, facecolor=colour, edgecolor=colour, alpha=0.4))
    texts.append((*np.mean(corners, axis=0), text))
for x, y, text in texts:
    axis.text(x, y, text, ha="center", va="center")
for start, end in paths:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->"})
axis.set(xlim=(0, 10.3), ylim=(-0.6, 5.1), title="One layer with LoRA")
axis.axis("off")
plt.show()
print(f"frozen: {n_out * n_in:,} numbers; trained: {few:,}, {few / n_out / n_in:.1%} of W")

# %% [markdown]
# As a formula, the layer multiplies its input by
#
# $$W + \frac{\alpha}{r}\,BA \qquad B: \text{out} \times r, \quad A: r \times \text{in}$$
#
# The *rank* $r$ is the number of patterns, and α/*r* says how strongly the change counts. Here is
# LoRA as a class. `A` starts at random and `B` at zero, so the model starts unchanged. The second
# cell checks this, and the gradients.

# %%
from torch.nn.functional import linear


class HandmadeLoRA(torch.nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it."""

    def __init__(self, layer, r, alpha):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A = torch.nn.Parameter(torch.empty(r, layer.in_features))
        self.B = torch.nn.Parameter(torch.zeros(layer.out_features, r))
        torch.nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scale = alpha / r

    def forward(self, x):
        # x: (rows, in) → A → (rows, r) → B → (rows, out); BA itself is never built
        return self.layer(x) + self.scale * linear(linear(x, self.A), self.B)


# %% tags=["value:first-step"]
torch.manual_seed(0)
mine = HandmadeLoRA(copy.deepcopy(mlp.up_proj), r=8, alpha=16)
x = torch.randn(32, n_in)
print("the same as the layer alone:", torch.equal(mine(x), mlp.up_proj(x)))
mine(x).square().sum().backward()
print(f"gradient of A: {mine.A.grad.norm():.3f}   gradient of B: {mine.B.grad.norm():.3f}")
print("gradient of W:", mine.layer.weight.grad)

# %% tags=["claim"]
assert torch.equal(mine(x), mlp.up_proj(x))
assert mine.A.grad.norm() == 0
assert mine.B.grad.norm() > 0
assert mine.layer.weight.grad is None

# %% [markdown]
# `W` has no gradient, because it is frozen. In the first step only `B` has one. (It is large
# because this toy loss is a sum.) `A` and `B` are factors in each other's gradients, so `A` gets
# one from the second step on. If both started at zero, neither would ever change.
#
# How much does LoRA save? We count again.

# %% tags=["figure:02_optimizer_problem"]
from peft import LoraConfig, inject_adapter_in_model

layers = ["gate_proj", "up_proj", "down_proj"]
with_lora = inject_adapter_in_model(LoraConfig(r=16, target_modules=layers), copy.deepcopy(mlp))
lora = numbers_held(with_lora)

figure, axis = plt.subplots(figsize=(7.5, 2.4))
left = np.zeros(2)
for what, colour in zip(full, (GREY, SKY, ORANGE), strict=True):
    widths = np.array([full[what], lora[what]])
    axis.barh(["all weights", "LoRA, r = 16"], widths, left=left, color=colour, label=what)
    left += widths
for row, total in enumerate(left):
    axis.text(total + 0.05, row, f"{total:.2f} p", va="center")
axis.invert_yaxis()
axis.grid(axis="x")
axis.set(xlim=(0, 4.6), xlabel="in multiples of the model's p weights")
axis.set_title("Numbers held while one MLP is trained")
axis.legend(ncols=3, loc="upper right", bbox_to_anchor=(1, 0.45), fontsize=9)
plt.show()

# %% tags=["claim"]
assert sum(lora.values()) < 1.5 < sum(full.values())

# %% [markdown]
# This MLP now needs 1.15 *p* instead of 4 *p*, and most of that is frozen weights. Frozen weights
# are only read, so they can even be stored in fewer bits (section 5).
#
# ## 3. A complete fine-tuning
#
# Before we compare settings, we do the whole job once. The task is that of notebook 00: rewrite a
# sentence in Yoda's word order. We train on 128 sentences and measure on *held-out data*: 64
# sentences that share no noun, verb or adjective with them.

# %%
import random

from course_utils.data import load_data

yoda = load_data("yoda")
pairs = list(zip(yoda["train"]["sentence"], yoda["train"]["yoda"], strict=True))
training = random.Random(0).sample(pairs, 128)
unseen = yoda["unseen"][:64]
held_out = list(zip(unseen["sentence"], unseen["yoda"], strict=True))
held_out[:2]

# %% [markdown]
# `batch` turns sentences into tensors. The prompt comes from the model's chat template. Only the
# response and the EOS token are targets; the label −100 marks all other tokens. Notebook 03
# explains this, so skim the code.


# %%
from transformers import DataCollatorForSeq2Seq


def conversation(sentence):
    """The messages up to the assistant's turn. Their system prompt is vague on purpose."""
    system = {"role": "system", "content": "Rewrite the sentence."}
    return [system, {"role": "user", "content": sentence}]


pad = DataCollatorForSeq2Seq(tokenizer)


def batch(pairs):
    """Pairs of sentence and response as padded tensors."""
    rows = []
    for sentence, response in pairs:
        messages = conversation(sentence)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        end = tokenizer(response + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": prompt + end, "labels": [-100] * len(prompt) + end})
    return pad(rows).to(model.device)


# %% [markdown]
# Next come the training loop and three ways to look at a model: its loss on the held-out sentences,
# its logits, which tell whether two models are the same, and its replies.


# %%
def train(tuned, pairs, learning_rate, batch_size=4):
    """Train once over the pairs with AdamW; only trainable weights change."""
    tuned.train()
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    for start in range(0, len(pairs), batch_size):
        tuned(**batch(pairs[start : start + batch_size])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned.eval()


@torch.no_grad()
def held_out_loss(tuned):
    """The mean loss over the targets of the held-out sentences."""
    parts = [batch(held_out[start : start + 16]) for start in range(0, len(held_out), 16)]
    targets = torch.tensor([(part["labels"] != -100).sum() for part in parts])
    losses = torch.tensor([tuned(**part).loss for part in parts])
    return ((losses * targets).sum() / targets.sum()).item()


@torch.no_grad()
def logits(tuned):
    """The logits at the targets of eight held-out sentences: (targets, vocabulary size)."""
    inputs = batch(held_out[:8])
    labels = inputs.pop("labels")
    # position i predicts token i + 1
    return tuned(**inputs).logits[:, :-1][labels[:, 1:] != -100].float()


def rewrite(tuned):
    """A model's replies to eight held-out sentences."""
    prompts = [conversation(sentence) for sentence, _ in held_out[:8]]
    options = {"padding": True, "return_tensors": "pt", "return_dict": True}
    options["tokenizer_kwargs"] = {"padding_side": "left"}
    inputs = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, **options)
    outputs = tuned.generate(**inputs.to(model.device), max_new_tokens=25, do_sample=False)
    new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new_tokens, skip_special_tokens=True)


# %% [markdown]
# peft's `LoraConfig` describes the *adapter*, the new weights. Our *usual adapter* has rank 16 and
# α = 32, on all linear layers. `get_peft_model` freezes the model and adds it.

# %% tags=["value:usual-adapter"]
from peft import get_peft_model

usual = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
base_logits, base_loss, untuned = logits(model), held_out_loss(model), rewrite(model)

torch.manual_seed(0)
tuned = get_peft_model(load(), LoraConfig(**usual), adapter_name="yoda")
tuned.print_trainable_parameters()

# %% tags=["claim"]
# The adapter's A and B are float32, whatever the model's weights are: small updates need it.
assert all(w.dtype == torch.float32 for w in tuned.parameters() if w.requires_grad)
assert torch.equal(logits(tuned), base_logits)

# %% [markdown]
# **Guess first.** We train for 32 steps of four sentences. Of eight held-out sentences, how many
# will the model then rewrite without a mistake?

# %%
my_guess = None  # a number from 0 to 8, such as 4

# %% tags=["value:before-after"]
import pandas as pd

torch.manual_seed(0)
tuned = get_peft_model(load(), LoraConfig(**usual), adapter_name="yoda")  # a fresh start
train(tuned, training, learning_rate=2e-3)
tuned_loss, tuned_logits, replies = held_out_loss(tuned), logits(tuned), rewrite(tuned)
wanted = [response for _, response in held_out[:8]]
right = [sum(map(str.__eq__, said, wanted)) for said in (untuned, replies)]
print(f"held-out loss: {base_loss:.2f} before, {tuned_loss:.2f} after")
print(f"right: {right[0]} of 8 before, {right[1]} of 8 after; you guessed {my_guess}")
text_table(pd.DataFrame({"wanted": wanted, "before": untuned, "after": replies})[:6])

# %% tags=["claim"]
assert tuned_loss < 0.4 * base_loss
assert right[0] < right[1]

# %% [markdown]
# Six of eight are right. Of the other two, one is close (*Tradeed* for *Traded*), one is garbled
# (*Obedient rabbits must, ...*). 128 examples seem few, but they are enough for this.
# (SmolLM2-135M, one seed; in eight replies, one more or less can be chance.)
#
# ### Save and load
#
# `save_pretrained` writes the adapter without the base model. To use it later, load a fresh base
# model and put the saved adapter beside it.

# %% tags=["value:saved-adapter"]
import tempfile
from pathlib import Path

from peft import PeftModel

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
tuned.save_pretrained(folder, save_embedding_layers=False)  # the embeddings did not change
for path in sorted((folder / "yoda").iterdir()):
    size = path.stat().st_size
    print(f"{path.name}:", f"{size / 1e6:.1f} MB" if size > 1e6 else f"{size / 1e3:.1f} kB")
base_size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
print(f"the base model's weights: {base_size / 1e6:.0f} MB")

tuned = PeftModel.from_pretrained(load(), folder / "yoda", adapter_name="yoda")
print("loaded, the same model:", torch.equal(logits(tuned), tuned_logits))
with tuned.disable_adapter():
    print("adapter disabled, the base model:", torch.equal(logits(tuned), base_logits))

# %% tags=["claim"]
with tuned.disable_adapter():
    assert torch.equal(logits(tuned), base_logits)
assert torch.allclose(logits(tuned), tuned_logits, atol=1e-3)
assert (folder / "yoda" / "adapter_model.safetensors").stat().st_size < 0.1 * base_size

# %% [markdown]
# The adapter takes about 20 MB, and the base model 269 MB. The JSON file of less than 2 kB holds
# the configuration. With the adapter, the logits are those from before saving. With the adapter
# disabled, they are those of the base model.
#
# That is a complete fine-tuning. The rest of this notebook is about doing it well.
#
# ## 4. Which settings? First the learning rate
#
# Is *r* = 64 better than *r* = 16? The obvious test changes *r* and nothing else. But a larger rank
# also moves the weights further in each step, so the same learning rate may be too high for it. The
# test would be unfair. So we first try several learning rates, which is called a *sweep*.
#
# **Guess first.** We train the usual adapter four times for eight steps, with learning rates of
# 0.0005, 0.002, 0.008 and 0.032. Which one ends with the lowest loss?

# %%
my_guess = None  # a learning rate, such as 1e-3

# %%
live = {}
for rate in (5e-4, 2e-3, 8e-3, 3.2e-2):
    torch.manual_seed(0)
    trial = get_peft_model(load(), LoraConfig(**usual))
    live[rate] = held_out_loss(train(trial, training[:32], rate))
    print(f"learning rate {rate:g}: held-out loss {live[rate]:.3f}")
print(f"before training {base_loss:.3f}; you guessed {my_guess}")

# %% tags=["claim"]
assert min(live, key=live.get) not in (5e-4, 3.2e-2)

# %% [markdown]
# In the saved run, 0.002 is best (0.429). With 0.0005 the loss is 0.812, and with 0.008 it is
# 1.376. At 0.032 it is 31, far above the 1.985 before the training. A low rate such as 0.0005
# sounds safe, but in eight steps it does not get far.
#
# ### The matrices of a layer, and multi-head attention
#
# Some of the variants below put adapters on some matrices only, so you need the names of the
# matrices. Each of the model's 30 layers has two parts. The MLP (section 1) works on each token
# alone. **Attention** lets a token look at itself and at the tokens before it. For this, three
# matrices make three lists of numbers for each token: a *query* (what is the token looking for?), a
# *key* (what can it be found by?) and a *value* (what does it pass on?). Where a token's query fits
# another token's key, their product is large. The softmax turns these products into shares, and the
# token receives the values, mixed by these shares:
#
# $$\text{softmax}\left(\frac{QK^T}{\sqrt{d}}\right)V \qquad d: \text{the length of a query}$$
#
# **Multi-head attention** does this several times side by side. Each *head* has its own queries,
# keys and values. So one head could look at the word before while another looks at the subject of
# the sentence; what each head looks at is learned. At the end, one more matrix mixes the results of
# all heads.
#
# | matrix | what it does | out × in in SmolLM2-135M |
# |---|---|---|
# | `q_proj` | makes the queries of 9 heads, 64 numbers each | 576 × 576 |
# | `k_proj`, `v_proj` | make the keys and values of 3 heads | 192 × 576 |
# | `o_proj` | mixes the results of the heads | 576 × 576 |
# | `gate_proj`, `up_proj` | MLP: from 576 numbers to 1,536 | 1,536 × 576 |
# | `down_proj` | MLP: back to 576 | 576 × 1,536 |
#
# Three query heads share one head of keys and values. This is called *grouped-query attention*, and
# it saves memory while the model generates.
#
# ### The sweep
#
# The next cells load and draw a sweep of twelve variants (the embedded SmolLM2-135M-Instruct, eight
# steps of four sentences, 64 held-out sentences; `benchmarks/lora_rates.py`). A *seed* is the
# number from which random draws start. Here it draws the training sentences and the start of $A$.
# The first seed had five rates or more; the two others had the best of these and its neighbours.
# Each variant changes one thing:
#
# - **r=3**, **r=64**: the rank, with the same α/*r*;
# - **q_proj, v_proj**: an adapter on the matrices for queries and values only;
# - **norms too**: the normalisation layers are trained as well (rule 4);
# - **alpha=16**: half the strength; **rsLoRA**: α/√*r* = 8 instead of α/*r* = 2;
# - **gaussian**, **PiSSA**: another start of $A$ and $B$ (appendix
#   [02a](02a_lora_forensics.ipynb));
# - **NF4 base**: frozen weights in 4 bits (rule 5); **LoftQ**: the same, but the adapter starts
#   from what the rounding lost (02a);
# - **DoRA**: the length of each row of $W$ is learned apart from its direction.

# %%
from course_utils.data import folder as data_folder
from course_utils.results import whole_rows

path = data_folder().parent / "benchmarks" / "results" / "lora_rates.jsonl"
rates = pd.DataFrame(whole_rows(path))
columns = ["first", "mean", "min", "max", "count"]  # the first seed, then over all seeds
after = rates.groupby(["variant", "learning_rate"])["after"].agg(columns)
print(f"{len(rates)} trainings of {rates['variant'].nunique()} variants")

# %% tags=["figure:02_rates"]
groups = {
    "rank": ["r=3", "r=64"],
    "which layers": ["q_proj, v_proj", "norms too"],
    "strength of the update": ["alpha=16", "rsLoRA"],
    "start of A and B": ["gaussian", "PiSSA"],
    "4-bit base": ["NF4 base", "LoftQ"],
    "DoRA": ["DoRA"],
}
figure, axes = plt.subplots(2, 3, figsize=(9, 4.8), sharex=True, sharey=True)
for axis, (title, names) in zip(axes.flat, groups.items(), strict=True):
    for name, colour, mark in zip(["usual", *names], (GREY, BLUE, ORANGE), "osD", strict=False):
        line = after.query("variant == @name").droplevel("variant")
        axis.plot(line.index, line["mean"], color=colour, marker=mark, ms=5, label=name)
        axis.fill_between(line.index, line["min"], line["max"], color=colour, alpha=0.2)
    axis.set(title=title, xscale="log", ylim=(0.2, 2.1))
    axis.set_xticks([5e-4, 1e-3, 2e-3, 4e-3, 8e-3], ["0.5", "1", "2", "4", "8"], minor=False)
    axis.minorticks_off()
    axis.grid(True)
    axis.legend(fontsize=8)
axes[0, 0].plot(live.keys(), live.values(), "k+", ms=9, label="your sweep")
axes[0, 0].legend(fontsize=8)
axes[0, 0].set_xlim(2e-4, 1e-2)
figure.supxlabel("learning rate, in thousandths")
figure.supylabel("loss on held-out sentences after eight steps")
plt.show()

# %% [markdown]
# A line is the mean over the seeds. Where there are three, a band goes from the lowest to the
# highest. The grey line is the usual adapter, and the crosses are your own sweep.
#
# Every line is a valley: with a low rate the adapter has learned too little after eight steps, and
# with a high one the training goes wrong. **The valleys lie at different rates.** For PiSSA, r=64
# and rsLoRA they lie at lower rates than for the usual adapter, and for r=3 and q_proj, v_proj at
# higher ones. Near the edge of a valley, chance plays a part: at 0.004, one of the three seeds of
# *gaussian* ends at 1.50, and the other two below 0.5.
#
# The table compares the variants at their own best rates. First the rule: *a variant counts as
# different from the usual adapter only if their ranges over the three seeds do not overlap.* Three
# seeds are few, so a small difference may stay hidden. The column "1e-3, one seed" is what we would
# have compared without a sweep.

# %% tags=["value:variants"]
rows = []
for name, line in after.groupby("variant", sort=False):
    line = line.droplevel("variant")
    often = line[line["count"] == line["count"].max()]  # the rates with three seeds
    best = often["mean"].idxmin()
    trained = rates.loc[rates["variant"] == name, "trainable"].iloc[0]
    rows.append({"variant": name, "trainable": f"{trained:,}"})
    rows[-1] |= {"1e-3, one seed": line.loc[1e-3, "first"], "own rate": f"{best:g}"}
    rows[-1] |= often.loc[best, ["mean", "min", "max"]]
variants = pd.DataFrame(rows).set_index("variant").sort_values("mean")
reference = variants.loc["usual"]
variants["against usual"] = np.select(
    [variants["max"] < reference["min"], variants["min"] > reference["max"]],
    ["lower", "higher"],
    "not shown to differ",
)
variants.round(3)

# %% tags=["claim"]
assert after.loc["usual"]["mean"].idxmin() not in (5e-4, 8e-3)
assert len(variants) == 12
ends = sorted(rates.query("variant == 'gaussian' and learning_rate == 4e-3")["after"])
assert [f"{end:.2f}" for end in ends[2:]] == ["1.50"]
assert ends[1] < 0.5
assert set(sum(groups.values(), ["usual"])) == set(variants.index)
assert variants["own rate"].nunique() > 2

# %% [markdown]
# By this rule, no variant counts as different from the usual adapter (0.429 to 0.499). r=64 and
# rsLoRA come closest: their ranges just reach 0.429, so more seeds may tell them apart. Without the
# sweep we would have reported large differences. At 0.001 and with one seed, r=3 (1.005) and
# q_proj, v_proj (0.926) look twice as bad as the usual adapter (0.466). They only needed a higher
# rate. The ranges of some other pairs do not overlap, such as r=64 (0.363 to 0.430) and r=3 (0.473
# to 0.501). Each best rate was chosen on the same held-out sentences, so all losses look slightly
# too good.
#
# This holds for a small model, eight steps and one easy task. What carries over is the method:
# sweep the learning rate of each candidate, with several seeds.
#
# ## 5. Five rules
#
# ### Rule 1: keep adapters small
#
# With a fifth of the numbers, r=3 ends at 0.484 in the mean and the usual adapter at 0.467, and
# their ranges overlap. With four times the numbers, r=64 ends at 0.395, for a file of 78 MB. So
# start with a moderate rank, and first try another learning rate, more steps or more data.
#
# ### Rule 2: use peft
#
# Our class has a dozen lines, so why use a library? We put it on a layer in 4 bits (a format called
# NF4), and add its change to the weights.

# %%
from transformers import BitsAndBytesConfig

from course_utils.models import keep_weights_trainable

four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
)


def load_nf4():
    """Load a fresh copy of the chat model with its linear layers in 4 bits."""
    quantized = load(quantization_config=four_bits)
    keep_weights_trainable(quantized)  # some CPUs would repack the weights for generating only
    return quantized


quantized = load_nf4()
layer = quantized.model.layers[0].mlp.up_proj
print(f"{layer.out_features} × {layer.in_features} weights, held as {tuple(layer.weight.shape)}")
ours = HandmadeLoRA(layer, r=8, alpha=16).to(model.device)
try:
    layer.weight.data += ours.scale * (ours.B @ ours.A).detach()
except RuntimeError as error:
    print("Merging by hand:", str(error).splitlines()[0])

# %% tags=["claim"]
assert layer.weight.shape != (layer.out_features, layer.in_features)

# %% [markdown]
# This fails, because two weights share a byte. peft knows such layers and many others.
#
# ### Rule 3: adapt all linear layers
#
# Adapting only `q_proj` and `v_proj` gave 0.564 in the mean (0.479 to 0.655). All layers with about
# as many numbers, r=3, gave 0.484 (0.473 to 0.501). The ranges overlap, so our small task does not
# decide this rule. In larger tasks, adapters on all layers were needed to match full fine-tuning
# (Dettmers et al., see *To read*).
#
# ### Rule 4: norms and biases are cheap, with a trap
#
# *Norms* (normalisation layers) keep the activations on a common scale. They have few weights.
# `modules_to_save` trains them whole, in a copy, and saves them with the adapter. They add 35,136
# numbers to 4,884,480, and our three seeds show no difference. (A new *head* needs
# `modules_to_save` even more. If you turn the model into a classifier, its last layer starts at
# random, so it has to be trained whole. With `task_type="SEQ_CLS"`, peft adds that layer by
# itself.) The trap: which of three ways brings the base model back?

# %%
norms = ["input_layernorm", "post_attention_layernorm", "norm"]
trial = get_peft_model(load(), LoraConfig(**usual, modules_to_save=norms))
train(trial, training[:16], learning_rate=2e-3)
with trial.disable_adapter():
    print("disabled, the base model:             ", torch.equal(logits(trial), base_logits))
unloaded = logits(copy.deepcopy(trial).unload())
print("unloaded, the base model:             ", torch.equal(unloaded, base_logits))
trial.delete_adapter("default")
deleted = logits(trial.unload())
print("deleted and unloaded, the base model: ", torch.equal(deleted, base_logits))

# %% tags=["claim"]
assert not torch.equal(unloaded, base_logits)
assert torch.equal(deleted, base_logits)

# %% [markdown]
# Disabling brings the base back, because the trained norms are copies. But `unload` removes only
# the LoRA matrices and leaves the *trained* norms. Delete the adapter first.
#
# A *bias* is a number that a layer adds to each output. `bias="all"` trains all biases. Llama and
# its relatives have hardly any, so we test one layer of our own.

# %%
layer = torch.nn.Linear(8, 8)
weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
config = LoraConfig(r=2, target_modules=["up"], bias="all")
holder = inject_adapter_in_model(config, torch.nn.ModuleDict({"up": layer}))
optimizer = torch.optim.AdamW([w for w in holder.parameters() if w.requires_grad], lr=1e-2)
holder["up"](torch.randn(4, 8)).square().mean().backward()
optimizer.step()
print("The layer's own weight is as before:", torch.equal(layer.weight, weight))
print("The layer's own bias is as before:  ", torch.equal(layer.bias, bias))

# %% tags=["claim"]
assert torch.equal(layer.weight, weight)
assert not torch.equal(layer.bias, bias)

# %% [markdown]
# Biases are trained *in place*, in the base model's own layer, and peft keeps no copy. **Training
# biases changes the base model**, and neither disabling nor unloading undoes it. This matters if
# several adapters share one base. (02a measures by how much.)
#
# ### Rule 5: quantize the frozen base
#
# Training only reads the frozen weights, so they can be stored in 4 bits, with a float32 adapter
# beside them. This is *QLoRA*. (The embedded model was rounded to Q4_1 before, so here NF4 rounds
# it a second time.)

# %% tags=["value:sizes"]
quantized = load_nf4()
sizes = [sum(w.numel() * w.element_size() for w in m.parameters()) for m in (model, quantized)]
print(f"weights: {sizes[0] / 1e6:.0f} MB → {sizes[1] / 1e6:.0f} MB")
started = held_out_loss(quantized)
torch.manual_seed(0)
beside = train(get_peft_model(quantized, LoraConfig(**usual)), training[:32], learning_rate=2e-3)
print(f"held-out loss on the 4-bit base: {started:.2f} before, {held_out_loss(beside):.2f} after")

# %% tags=["claim"]
assert sizes[1] < 0.75 * sizes[0]

# %% [markdown]
# The weights shrink from 269 to 110 MB. The embeddings stay in 16 bits, and in this small model
# they are a large part of the 110 MB. With 7 billion weights we expect to save close to three
# quarters. The loss falls from 2.06 to 0.46 in this run, and section 4 shows no difference from the
# usual adapter.
#
# ## 6. Merging
#
# *Merging* adds $\frac{\alpha}{r}BA$ into the weights. The result is a plain model that needs no
# peft. Our last adapter, that of rule 5, was trained beside 4-bit weights. For such an adapter you
# have a choice:
#
# - **A** Do not merge.
# - **B** Merge into the model as it was before quantization.
# - **C** Turn the 4-bit weights back into 16 bits (*dequantize* them), and merge into these.
# - **D** Merge into the 4-bit weights.
#
# **Guess first.** A is the model that we trained. Which of the merged models, B, C or D, is nearest
# to it? Write this one letter. (The `"A"` in the next cell only shows how to write it.) We compare
# the losses and the logits.

# %%
my_guess = None  # a letter from A to D, such as "A"

# %% tags=["value:merging"]
beside.save_pretrained(folder / "beside", save_embedding_layers=False)


def merged_into(base):
    """A plain model: the base model with the saved adapter added to its weights."""
    return PeftModel.from_pretrained(base, folder / "beside").merge_and_unload()


def distance(one, other):
    """The mean difference between two models' logits."""
    return (one - other).abs().mean().item()


lossless = merged_into(load_nf4().dequantize())
made = {
    "A: not merged, beside the 4-bit weights": beside,
    "B: merged into the unquantized weights": merged_into(load()),
    "C: merged into the dequantized 4-bit weights": lossless,
    "D: merged into the 4-bit weights": merged_into(load_nf4()),
}
rows = [
    (name, held_out_loss(one), distance(logits(one), logits(beside))) for name, one in made.items()
]
merging = pd.DataFrame(rows, columns=["model", "held-out loss", "logits off A by"])
print(f"4-bit base before training: {started:.3f}; you guessed {my_guess}")
merging.set_index("model").round(3)

# %% tags=["claim"]
(a, b, c, d), (_, off_b, off_c, off_d) = merging["held-out loss"], merging["logits off A by"]
assert abs(c - a) < 0.05
assert d > a + 0.3
assert off_c < off_b < off_d

# %% [markdown]
# The answer is C. Its loss is 0.466 against 0.463, and its logits move by only 0.158. The rounding
# of each sum to 16 bits is all that is lost. With B, the adapter stands beside other weights than
# in its training. The loss is only a little higher here (0.475), but the logits move by 1.748: this
# is another model. D loses nearly all that was learned (1.852, and 2.063 before the training). Each
# sum is rounded again to one of sixteen levels, and we expect that most changes are too small to
# reach another level. B is tempting, because its weights are the most exact. (SmolLM2-135M, one
# seed.)
#
# So **dequantize, merge, and save in 16 bits**. If the 16 bits are too large for you, leave the
# adapter beside the 4-bit base.

# %%
lossless.save_pretrained(folder / "merged")
again = AutoModelForCausalLM.from_pretrained(folder / "merged", device_map="auto")
print(type(again).__name__, again.dtype, f"held-out loss {held_out_loss(again):.3f}")

# %% tags=["claim"]
assert abs(held_out_loss(again) - held_out_loss(lossless)) < 1e-3

# %% [markdown]
# ## 7. The life of an adapter
#
# `add_adapter` puts a second adapter on the same base. This one learns to say *Hrrmmm* and to leave
# the sentence as it is. `set_adapter` switches between the two.

# %%
if "hrrmmm" in tuned.peft_config:  # this cell is run again: start anew
    tuned.set_adapter("yoda")
    tuned.delete_adapter("hrrmmm")
torch.manual_seed(1)  # another seed, so that the two do not start with the same A
tuned.add_adapter("hrrmmm", LoraConfig(**usual))
tuned.set_adapter("hrrmmm")
grunts = [(sentence, f"Hrrmmm. {sentence}") for sentence, _ in training[:64]]
train(tuned, grunts, learning_rate=2e-3)

said, told = {"sentence": [sentence for sentence, _ in held_out[:8]]}, {}
for name in ("yoda", "hrrmmm"):
    tuned.set_adapter(name)
    said[name], told[name] = rewrite(tuned), logits(tuned)
text_table(pd.DataFrame(said)[:3])

# %% tags=["claim"]
assert torch.allclose(told["yoda"], tuned_logits, atol=1e-3)
with tuned.disable_adapter():
    assert torch.equal(logits(tuned), base_logits)
assert sum(reply.startswith("Hrrmmm.") for reply in said["hrrmmm"]) >= 4

# %% [markdown]
# Each adapter does its own job. Switching loads nothing, so one server can offer many fine-tuned
# models.
#
# `merge_adapter` adds the active adapter into the weights but keeps it, and `unmerge_adapter`
# subtracts it again. Do we get the exact base back?

# %% tags=["value:unmerging"]
tuned.set_adapter("yoda")
tuned.merge_adapter()
merged = logits(tuned)
tuned.unmerge_adapter()
with tuned.disable_adapter():
    unmerged = logits(tuned)
learned = distance(told["yoda"], base_logits)
print(f"What was learned moved the logits by {learned:.3f}, on average.")
print(f"merged, against beside the weights: {distance(merged, told['yoda']):.3f}")
print(f"the base after unmerging:           {distance(unmerged, base_logits):.3f}")

# %% tags=["claim"]
assert distance(merged, told["yoda"]) < 0.2 * learned
assert distance(unmerged, base_logits) < 0.2 * learned

# %% [markdown]
# Not exactly, because each addition is rounded to 16 bits. The base is off by 0.128, where training
# moved the logits by 7.668. If you need the exact base, load it again.
#
# `add_weighted_adapter` mixes adapters. With `"cat"`, the update of the mix is the sum of the two
# updates. Does the mix have both skills?

# %% tags=["value:skills"]
names = ["yoda", "hrrmmm"]
tuned.add_weighted_adapter(names, [1.0, 1.0], "both", combination_type="cat")
skills = {}
for name in (*names, "both"):
    tuned.set_adapter(name)
    replies = rewrite(tuned)
    yodas = [reply.removeprefix("Hrrmmm.").strip() for reply in replies]
    skills[name] = {
        "says Hrrmmm": sum(reply.startswith("Hrrmmm.") for reply in replies),
        "Yoda's order": sum(map(str.__eq__, yodas, wanted)),
    }
skills = pd.DataFrame(skills).T
skills

# %% tags=["claim"]
assert skills.loc["both", "Yoda's order"] < 8 or skills.loc["both", "says Hrrmmm"] < 8
assert skills.loc["hrrmmm", "says Hrrmmm"] > skills.loc["yoda", "says Hrrmmm"]

# %% [markdown]
# It does not: the mix says *Hrrmmm* in 6 of 8 replies and has Yoda's order in none, where the Yoda
# adapter alone had it in 6. Adding updates did not add the skills. Our explanation, not tested: the
# second adapter has also learned to keep the order of the words. If you need both skills, train on
# both.
#
# At the end, `delete_adapter` removes an adapter, `unload` returns the base model, and
# `merge_and_unload` returns a plain model with the update in its weights.

# %%
tuned.set_adapter("yoda")
for name in set(tuned.peft_config) - {"yoda"}:
    tuned.delete_adapter(name)
print("left:", list(tuned.peft_config))
plain = copy.deepcopy(tuned).merge_and_unload()
print("merged and unloaded:", type(plain).__name__)
temporary.cleanup()

# %% tags=["claim"]
assert list(tuned.peft_config) == ["yoda"]
assert not any("lora" in name for name, _ in plain.named_parameters())
assert distance(logits(plain), told["yoda"]) < 0.2 * learned

# %% [markdown]
# ### peft in other libraries
#
# peft is used in three other libraries of Hugging Face:
#
# - **transformers** can put an adapter on a plain model. `model.add_adapter(LoraConfig(...))` makes
#   one, and `model.load_adapter(folder)` loads one.
# - **Diffusers**, the library for models that make images, loads LoRA adapters with peft.
#   `pipeline.load_lora_weights(folder)` adds a style, and `pipeline.unload_lora_weights()` brings
#   the plain image model back, as `unload` does here. Diffusers starts its adapters as
#   `init_lora_weights="gaussian"` does.
# - **Accelerate** places large models on several devices (`device_map="auto"` in our `load`) and
#   starts trainings on several GPUs (notebook 09). A model with an adapter goes through the same
#   calls as a plain one.
#
# (The course does not install Diffusers, so we have not run its two lines.)
#
# ### Related tools
#
# | tool | when to use it | treated in |
# |---|---|---|
# | DoRA, `use_dora=True` | if a sweep on your task shows a gain that is worth slower steps | section 4 |
# | Liger: fused GPU kernels | one GPU, and the logits fill its memory | notebook 04, briefly |
# | Unsloth: its own kernels for common models | one GPU, and it supports your model | not in this course |
# | FSDP: splits model and optimizer over GPUs | the model does not fit on one GPU, even with QLoRA | `configs/README.md` |
#
# ## Take away
#
# - AdamW holds four numbers for each trained weight, and LoRA trains few weights (sections 1 and
#   2).
# - LoRA is $W + \frac{\alpha}{r}BA$, and it starts with no change (section 2).
# - Compare settings only at their own learning rates, with several seeds. A usual start: all linear
#   layers, a moderate rank, α of once or twice *r* (sections 4 and 5).
# - Trained biases change the base. Trained norms stay after `unload` (section 5).
# - Never merge into 4 bits. Dequantize, merge, save in 16 bits (section 6; SmolLM2-135M, one seed).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** Why does training with LoRA need so much less memory?
#
# - **A** The frozen weights need not be held while the adapter is trained.
# - **B** Only the few trained weights have gradients and moments.
# - **C** The thin matrices take the place of the large one.
# - **D** The forward pass leaves out the frozen layers.
#
# **b.** What if `A` *and* `B` both started at zero?
#
# - **A** The model would no longer start as itself.
# - **B** The training would work, only one step later.
# - **C** Nothing would be learned: neither would get a gradient.
# - **D** The training would work as usual, with half of the rank.
#
# **c.** You have trained an adapter beside a 4-bit base, and you want one plain model. What do you
# do?
#
# - **A** Dequantize the 4-bit base, merge into it, and save in 16 bits.
# - **B** Merge into the 4-bit base with a larger α, against the rounding.
# - **C** Train again: an adapter of a 4-bit base cannot be merged well.
# - **D** Merge into the original 16-bit weights, which are more exact.
#
# **d.** You have trained with `bias="all"`, and you disable the adapter. What model do you have?
#
# - **A** The tuned model, with nothing lost.
# - **B** The base as it was before the training.
# - **C** The base without any biases.
# - **D** The base with other biases than before.

# %%
from course_utils.exercises import check, quiz

quiz("02", a="...", b="...", c="...", d="...")

# %% [markdown]
# **02.1 · Change one number.** A colleague trains with *r* = 16 and α = 32. She wants to try *r* =
# 64, with an update of the same strength. Write `new_alpha(r, alpha, new_r, use_rslora)`: the α
# that leaves the factor before $BA$ as it was. The factor is α/*r*, and with rsLoRA α/√*r*.


# %% tags=["exercise"]
def new_alpha(r, alpha, new_r, use_rslora=False):
    """The alpha with which rank new_r has the same factor as r had with alpha."""
    ### BEGIN SOLUTION
    ratio = new_r / r
    return alpha * (ratio**0.5 if use_rslora else ratio)
    ### END SOLUTION


# %%
check("02.1", new_alpha)

# %% [markdown]
# **02.2 · Merge by hand.** Write `merge(weight, A, B, alpha, r)`: the weight of one plain layer
# that does what weight and adapter do together. `weight` is (out, in), `A` is (r, in), `B` is (out,
# r). Leave `weight` itself as it is.


# %% tags=["exercise"]
def merge(weight, A, B, alpha, r):
    """A new tensor of the weight's shape."""
    ### BEGIN SOLUTION
    return weight + (alpha / r) * (B @ A)
    ### END SOLUTION


# %%
check("02.2", merge)

# %% [markdown]
# Solutions: `notebooks/solutions/02_peft_lora.py`.
#
# ## To read
#
# - Hu et al., [LoRA](https://arxiv.org/abs/2106.09685); Dettmers et al.,
#   [QLoRA](https://arxiv.org/abs/2305.14314): a 4-bit base, and why all linear layers.
# - Kalajdzievski, [rsLoRA](https://arxiv.org/abs/2312.03732); Liu et al.,
#   [DoRA](https://arxiv.org/abs/2402.09353).
# - The peft guide to [LoRA](https://huggingface.co/docs/peft/developer_guides/lora).
# - Appendix [02a](02a_lora_forensics.ipynb): PiSSA, LoftQ and the inside of an adapter.
# - The course's terms, with the notebook that introduces each: [glossary](../docs/glossary.md).
