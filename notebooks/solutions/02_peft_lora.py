# %% [markdown]
# # 02 · PEFT and LoRA
#
# **You will learn** why training all weights takes four times a model's memory and more, and how
# LoRA avoids that with two thin matrices. You will try each setting of `LoraConfig` in a real
# training run, and you will save, switch, merge and mix adapters.
#
# **You need** notebook 01, and to have seen a PyTorch training loop.
#
# **It takes** about an hour of reading and trying. The cells themselves run in about three minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Omar's chat model with 7 billion parameters runs well on his GPU. He starts to train it on the
# tone of his company, and the training stops at once: out of memory. How can a model that fits be
# too large to train? You will see where the memory goes, and how to train with far less.
#
# The first cell loads a chat model that fits this machine.

# %%
import warnings

# A note that means nothing here: peft reads a property that transformers has since renamed.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

from course_utils import describe, load_model, load_tokenizer

print(describe())
model = load_model("chat")
tokenizer = load_tokenizer("chat")
small = model.num_parameters() < 1e9

# %% [markdown]
# ## 1. The optimizer problem
#
# A model with *p* weights has to hold *p* numbers to answer a question. Training also computes a
# *gradient* for each trained weight: how strongly, and in which direction, the loss changes with
# this weight. The *optimizer*, usually *AdamW*, uses the gradients to change the weights.
#
# **Guess first.** How many numbers does the model hold while it is trained with AdamW, as a
# multiple of *p*? Leave out the activations, which depend on the data.

# %%
my_guess = 2

# %% [markdown]
# One MLP of the model, with three linear layers, is enough for counting. It gets one training step.

# %% tags=["value:numbers-held"]
import copy

import pandas as pd
import torch

mlp = copy.deepcopy(model.model.layers[0].mlp).float().cpu()
p = sum(weight.numel() for weight in mlp.parameters())


def numbers_held(module):
    """What a module and AdamW hold after a training step: numbers, in multiples of p."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    x = torch.randn(4, model.config.hidden_size)
    (module(x) - x).square().mean().backward()  # any loss will do
    optimizer.step()
    moments = [
        state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")
    ]
    return {
        "weights": sum(weight.numel() for weight in module.parameters()) / p,
        "gradients": sum(weight.grad.numel() for weight in trained) / p,
        "optimizer": sum(moment.numel() for moment in moments) / p,
    }


full = numbers_held(copy.deepcopy(mlp).requires_grad_(True))
print(f"p = {p:,}")
print({what: f"{share:.0f} p" for what, share in full.items()})
print(f"in all {sum(full.values()):.0f} p; you said {my_guess} p")
print(f"For 7 billion weights, at 2 bytes a number: {7 * sum(full.values()) * 2:.0f} GB")

# %% tags=["claim"]
assert full == {"weights": 1, "gradients": 1, "optimizer": 2}

# %% [markdown]
# The answer is 4 *p*: a weight, a gradient and two *moments* each. The moments are running means
# that AdamW keeps: of the gradient and of its square. People often guess 2 *p* and forget the
# moments. The optimizer needs more memory than the model itself: this is the optimizer problem.
#
# For Omar's model the cell prints 56 GB. That is 8 bytes a parameter, as in pure *bfloat16*, a
# 16-bit number format with the range of 32 bits and fewer digits. The usual mixed precision also
# keeps 32-bit numbers. It takes 16 bytes a parameter: 112 GB.
#
# Only weights that are trained have gradients and moments. So what if we *freeze* nearly all
# weights, and train a few new ones beside them? The next cell counts again, with LoRA.

# %% tags=["figure:02_optimizer_problem"]
import matplotlib.pyplot as plt
from peft import LoraConfig, inject_adapter_in_model

from course_utils.display import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, text_table, use_style

use_style()
layers = ["gate_proj", "up_proj", "down_proj"]
with_lora = inject_adapter_in_model(LoraConfig(r=16, target_modules=layers), copy.deepcopy(mlp))
lora = numbers_held(with_lora)

figure, axis = plt.subplots(figsize=(7.5, 2.4))
left = [0, 0]
for what, colour in zip(full, (GREY, SKY, ORANGE), strict=True):
    widths = [full[what], lora[what]]
    axis.barh(["all weights", "LoRA, r = 16"], widths, left=left, color=colour, label=what)
    left = [start + width for start, width in zip(left, widths, strict=True)]
for row, total in enumerate(left):
    axis.text(total + 0.05, row, f"{total:.2f} p", va="center")
axis.invert_yaxis()
axis.grid(axis="x")
axis.set_xlim(0, 4.6)
axis.set_xlabel("numbers held in training, in multiples of the model's p weights")
axis.set_title("The optimizer problem, and its cure")
axis.legend(ncols=3, loc="upper right", bbox_to_anchor=(1, 0.45), fontsize=9)
plt.show()

# %% tags=["claim"]
assert sum(lora.values()) < 1.5 < sum(full.values())

# %% [markdown]
# With LoRA, this MLP needs 1.15 *p*. Most of these numbers are *frozen* weights: training reads
# them and never changes them. So they can even be *quantized*, that is, written with fewer bits
# (section 4).
#
# ## 2. LoRA by hand
#
# Training changes a weight matrix $W$ by some $\Delta W$. LoRA, *low-rank adaptation*, freezes $W$
# and learns only the change. It assumes that a few patterns describe the change. A pattern says:
# "the more the input looks like this row, the more of this column is added to the output." The rows
# form a thin matrix $A$, the columns form a thin matrix $B$, and the change is their product:
#
# $$W + \frac{\alpha}{r}\,BA \qquad B: \text{out} \times r, \quad A: r \times \text{in}$$
#
# The *rank* $r$ is the number of patterns, so it sets how many numbers are trained. You choose α
# too: α/*r* says how strongly the change counts.
#
# Here is LoRA as a small class. `A` starts random, `B` at zero.

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


torch.manual_seed(0)
layer = mlp.up_proj  # a copy, in float32
mine = HandmadeLoRA(copy.deepcopy(layer), r=8, alpha=16)
x = torch.randn(32, layer.in_features)

print("the same as the layer alone:", torch.equal(mine(x), layer(x)))

# %% tags=["claim"]
assert torch.equal(mine(x), layer(x))

# %% [markdown]
# **Why does one of the two start at zero?** With $B = 0$ the product is 0, so training starts from
# the model as it is. Why not both? Each matrix is a factor in the gradient of the other, so both
# gradients would stay zero. Look at the gradients of the first step:

# %% tags=["value:first-step"]
mine(x).square().sum().backward()
print(f"gradient of A: {mine.A.grad.norm():.3f}   gradient of B: {mine.B.grad.norm():.3f}")
print("gradient of W:", mine.layer.weight.grad)

# %% tags=["claim"]
assert mine.A.grad.norm() == 0
assert mine.B.grad.norm() > 0
assert mine.layer.weight.grad is None

# %% [markdown]
# In the first step only `B` has a gradient (a large one, because this toy loss sums over all
# outputs). From the second step on, `A` has one too. $W$ is frozen and has none.
#
# Does the *PEFT* library (parameter-efficient fine-tuning) do more than this? We give our layer and
# peft's the same `A`, train both for ten steps, and compare.

# %%
ours = HandmadeLoRA(copy.deepcopy(layer), r=8, alpha=16)
config = LoraConfig(r=8, lora_alpha=16, target_modules=["up"])
holder = inject_adapter_in_model(config, torch.nn.ModuleDict({"up": copy.deepcopy(layer)}))
theirs = holder["up"]
with torch.no_grad():
    theirs.lora_A["default"].weight.copy_(ours.A)

target = torch.randn(32, layer.out_features)
for adapted in (ours, theirs):
    optimizer = torch.optim.SGD([w for w in adapted.parameters() if w.requires_grad], lr=1.0)
    for _ in range(10):
        optimizer.zero_grad()
        (adapted(x) - target).square().mean().backward()
        optimizer.step()

with torch.no_grad():
    moved = (ours(x) - layer(x)).abs().max().item()
    apart = (ours(x) - theirs(x)).abs().max().item()
print(f"Training moved the outputs by up to {moved:.3f}.")
print("Ours and peft's agree to 1e-6:", apart <= 1e-6)

# %% tags=["claim"]
assert moved > 1e-3
assert apart <= 1e-6

# %% [markdown]
# The outputs moved by up to 9.7, and the two layers still agree. So our dozen lines are right.
#
# The next cell checks two facts. However long you train, the rank of the product is at most *r*.
# And after training you can *merge*: add the product into $W$. Then LoRA costs nothing when the
# model is used.

# %%
with torch.no_grad():
    change = ours.scale * ours.B @ ours.A  # (out, in), as large as W
    merged = copy.deepcopy(layer)
    merged.weight += change
    print(
        f"rank of the change: {torch.linalg.matrix_rank(change)}, of {min(change.shape)} possible"
    )
    assert torch.linalg.matrix_rank(change) <= 8
    assert torch.allclose(merged(x), ours(x), atol=1e-5)

# %% [markdown]
# ### Rank against trainable parameters
#
# For one layer, `A` has *r* × in numbers and `B` has out × *r*. The next cell adds these up over
# all linear layers and compares the sum with peft's count. It uses a *meta* model, which has shapes
# but no weights, and so is fast.

# %%
from peft import get_peft_model
from transformers import AutoModelForCausalLM


def skeleton():
    """The model at hand as shapes only."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model.config)


shapes = [
    (module.in_features, module.out_features)
    for name, module in skeleton().named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"  # "all-linear" spares the head
]
rows = []
for r in (1, 4, 16, 64, 256):
    counted = get_peft_model(skeleton(), LoraConfig(r=r, target_modules="all-linear"))
    trainable, everything = counted.get_nb_trainable_parameters()
    by_formula = sum(r * (n_in + n_out) for n_in, n_out in shapes)
    assert trainable == by_formula
    rows.append(
        {
            "r": r,
            "trainable": f"{trainable:,}",
            "share of the model": f"{trainable / (everything - trainable):.2%}",
            "file in MB (float32)": round(trainable * 4 / 1e6, 1),
        }
    )
pd.DataFrame(rows).set_index("r")

# %% [markdown]
# The number of trained parameters is proportional to *r*. At r = 256 it is 58% of SmolLM2-135M,
# which is no longer small. In larger models the share falls, because *p* grows with the square of a
# layer's width, and LoRA only with the width.
#
# ## 3. The job
#
# From here on we use one small job: rewriting a sentence in Yoda's word order. We measure on
# *held-out data*, which no training step has seen. These sentences share no content word with the
# training sentences, so memorising does not help.

# %%
from course_utils.data import load_data

yoda = load_data("yoda")
training = [(row["sentence"], row["yoda"]) for row in yoda["train"].select(range(64))]
held_out = [(row["sentence"], row["yoda"]) for row in yoda["unseen"].select(range(16))]
for sentence, wanted in held_out[:3]:
    print(f"{sentence}  →  {wanted}")

# %% [markdown]
# A sentence becomes an example as in notebook 01: the prompt in the model's own template, then the
# response and the EOS token. Only the response is a target; the label −100 marks all other tokens.
# The system prompt is vague on purpose, so the adapter has to learn what *rewrite* means.
#
# The rows of a batch need the same length. So short rows are filled up with *padding*, which the
# attention mask hides from the model. Notebook 03 explains all this, so skim the code.


# %%
def prompt_ids(sentence):
    """The tokens of the prompt, the assistant's turn opened."""
    messages = [{"role": "user", "content": sentence}]
    if "system" in tokenizer.chat_template:
        messages.insert(0, {"role": "system", "content": "Rewrite the sentence."})
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def batch(pairs):
    """Pairs of sentence and response as padded tensors."""
    rows = []
    for sentence, response in pairs:
        prompt = prompt_ids(sentence)
        answer = tokenizer(response + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        rows.append((prompt + answer, [-100] * len(prompt) + answer))
    width = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tensors = {
        "input_ids": [ids + [pad] * (width - len(ids)) for ids, _ in rows],
        "labels": [labels + [-100] * (width - len(labels)) for _, labels in rows],
        "attention_mask": [[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows],
    }
    return {name: torch.tensor(values, device=model.device) for name, values in tensors.items()}


example = batch(held_out[:1])
targets = example["labels"][0]
print(repr(tokenizer.decode(example["input_ids"][0])))
print("of which targets:", repr(tokenizer.decode(targets[targets != -100])))

# %% tags=["claim"]
assert tokenizer.decode(targets[targets != -100]).strip() == held_out[0][1] + tokenizer.eos_token

# %% [markdown]
# Next come a short training loop and two measures: the held-out loss, and the logits at every
# target, which tell whether two models are the same.


# %%
def train(tuned, pairs, steps=8, batch_size=4, learning_rate=1e-3):
    """AdamW on whatever is trainable."""
    tuned.train()
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    for step in range(steps):
        start = step * batch_size % len(pairs)
        loss = tuned(**batch(pairs[start : start + batch_size])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned.eval()


@torch.no_grad()
def logits(tuned):
    """The logits at each target of the held-out sentences: (targets, vocabulary size)."""
    inputs = batch(held_out)
    labels = inputs.pop("labels")
    # position i speaks of token i + 1
    return tuned.eval()(**inputs).logits[:, :-1][labels[:, 1:] != -100].float()


@torch.no_grad()
def held_out_loss(tuned):
    """The mean loss over the targets of the held-out sentences."""
    return tuned.eval()(**batch(held_out)).loss.item()


def rewrite(tuned, sentence):
    """What a model makes of a sentence."""
    ids = torch.tensor([prompt_ids(sentence)], device=model.device)
    output = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


base_logits = logits(model)
base_loss = held_out_loss(model)
untuned = [rewrite(model, sentence) for sentence, _ in held_out[:4]]
print(f"held-out loss of the untuned model: {base_loss:.2f}")

# %% [markdown]
# Now we add an *adapter*: the new weights beside the frozen model. peft takes three steps: a
# configuration, `get_peft_model`, and training. The configuration sets the rank, α, and which
# layers get an adapter: here all linear ones. (The printed share is a little below the table's,
# because peft divides by the size of model *and* adapter.)

# %% tags=["value:usual-adapter"]
usual = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}

torch.manual_seed(0)
tuned = get_peft_model(model, LoraConfig(**usual), adapter_name="yoda")
tuned.print_trainable_parameters()

# %% tags=["claim"]
# The adapter's A and B are float32, whatever the model's weights are: small updates need it.
assert all(w.dtype == torch.float32 for w in tuned.parameters() if w.requires_grad)
assert torch.equal(logits(tuned), base_logits)

# %% [markdown]
# **Guess first.** Sixteen steps with four sentences each are 64 examples, each seen once. Is this
# enough to turn the words around in sentences that the model has never seen?

# %%
model = load_model("chat", quiet=True)  # a fresh start, each time that this cell is run
torch.manual_seed(0)
tuned = get_peft_model(model, LoraConfig(**usual), adapter_name="yoda")
train(tuned, training[:32])
loss_after_8 = held_out_loss(tuned)
train(tuned, training[32:])
loss_after_16 = held_out_loss(tuned)
print(f"held-out loss: {base_loss:.2f} → {loss_after_8:.2f} → {loss_after_16:.2f}")

# %% tags=["claim"]
assert loss_after_16 < 0.6 * base_loss

# %%
after = [rewrite(tuned, sentence) for sentence, _ in held_out[:4]]
text_table(
    pd.DataFrame(
        {"wanted": [wanted for _, wanted in held_out[:4]], "untuned": untuned, "tuned": after}
    )
)

# %% [markdown]
# It is enough for the idea, but not to be reliable. In the saved run (SmolLM2-135M, one run) the
# loss falls from 2.00 to 0.29, and two of four replies are right to the letter. One has an extra
# word, *Her*, and the long sentence is wrong. People often guess no, because 64 examples seem few.
#
# ### Saving
#
# peft saves the adapter without its base model. How large is the file?

# %% tags=["value:saved-adapter"]
import tempfile
from pathlib import Path

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
# save_embedding_layers=False: else peft asks the hub whether the vocabulary was enlarged.
tuned.save_pretrained(folder, save_embedding_layers=False)
saved = folder / "yoda"  # an adapter with a name of its own gets a folder of its own
tuned_logits = logits(tuned)  # to compare with, once it is loaded again
size = tuned.get_nb_trainable_parameters()[0]

files = {path.name: path.stat().st_size / 1e6 for path in sorted(saved.iterdir())}
base_size = sum(w.numel() * w.element_size() for w in model.parameters() if not w.requires_grad)
print({name: f"{size:.2f} MB" for name, size in files.items()})
print(f"the base model's weights: {base_size / 1e6:.0f} MB")

# %% tags=["claim"]
assert sum(files.values()) < 0.1 * base_size / 1e6

# %% [markdown]
# The adapter has 20 MB, less than a tenth of the base model. The small JSON file (0.00 MB after
# rounding) holds the configuration and the base model's name. Section 6 loads both again.
#
# `unload` takes the adapter off. Afterwards the logits are exactly those of the base, as the
# course's tests check.

# %%
model = tuned.unload()

# %% tags=["claim"]
assert torch.equal(logits(model), base_logits)
assert not torch.equal(tuned_logits, base_logits)

# %% [markdown]
# ## 4. Five rules, tried
#
# Five pieces of advice come with LoRA:
#
# 1. keep the adapters small;
# 2. use the PEFT library;
# 3. adapt all linear layers, not attention alone;
# 4. keep biases and norms trainable, as they are tiny;
# 5. quantize the base.
#
# We try each with half of the training above: eight steps, the same sentences in the same order.
# Each trial is a row of a table: how many numbers are `trainable`, and the held-out loss `before`
# and `after`. The first row is the usual adapter, that of section 3.
#
# **One caution.** All trials in sections 4 and 5 use one learning rate and one *seed*, the number
# from which random draws start. With its own learning rate for each row, the order could change:
# this is an expectation, not measured. So watch what each setting does, and pick no winner.

# %%
results = [
    {
        "variant": "the usual: r=16, alpha=32, all-linear",
        "kind": "usual",
        "trainable": size,
        "before": base_loss,
        "after": loss_after_8,
    }
]


def attempt(variant, kind, model, prepare=None, **settings):
    """Put a fresh adapter on a model, train it for eight steps, and note what came of it."""
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(**(usual | settings)))
    if prepare:
        prepare(tuned)
    before = held_out_loss(tuned)
    train(tuned, training[:32])
    # The row of a trial that is run again takes the place of the old one.
    results[:] = [row for row in results if row["variant"] != variant]
    results.append(
        {
            "variant": variant,
            "kind": kind,
            "trainable": tuned.get_nb_trainable_parameters()[0],
            "before": before,
            "after": held_out_loss(tuned),
        }
    )
    return tuned


def show(*variants):
    """Some rows of the results, as a table."""
    table = pd.DataFrame(results).set_index("variant").drop(columns="kind").round(3)
    table["trainable"] = table["trainable"].map("{:,}".format)
    return table.loc[[row["variant"] for row in results[:1]] + list(variants)]


# %% [markdown]
# ### Rule 1: small adapters
#
# **Guess first.** One adapter has a fifth of the usual size, one the usual size, one four times
# that size. Where is each after the same eight steps?

# %%
model = attempt("r=3, alpha=6", "rank", model, r=3, lora_alpha=6).unload()
model = attempt("r=64, alpha=128", "rank", model, r=64, lora_alpha=128).unload()
show("r=3, alpha=6", "r=64, alpha=128")

# %%
losses = {row["variant"]: row["after"] for row in results}
print(f"usual size, eight steps more: {loss_after_16:.2f}")

# %% tags=["claim"]
assert losses["r=3, alpha=6"] < base_loss - 0.2  # even the smallest learns
if small:  # a large model is through with this job before the rank matters
    assert losses["r=64, alpha=128"] < losses["r=3, alpha=6"]
    assert loss_after_16 < losses["r=64, alpha=128"] + 0.15

# %% [markdown]
# All three learn: the losses are 1.04, 0.58 and 0.34. At this learning rate the larger adapter gets
# further in eight steps, as most people guess. But with eight more steps, on new sentences, the
# usual one reaches 0.29, with a file a quarter as large. So first train longer, and raise the rank
# when that no longer helps.
#
# ### Rule 2: use PEFT
#
# We wrote LoRA in a dozen lines, so why use a library? We put our version on a layer in 4 bits (a
# format called NF4), and merge it.

# %%
quantized = load_model("chat", "nf4")
layer = quantized.model.layers[0].mlp.up_proj
shape = (layer.out_features, layer.in_features)
print(f"{type(layer).__name__}: {shape} weights, held as {tuple(layer.weight.shape)} bytes")

ours = HandmadeLoRA(layer, r=8, alpha=16).to(model.device)
try:
    with torch.no_grad():
        layer.weight += ours.scale * ours.B @ ours.A
    failed = False
except RuntimeError as error:
    failed = True
    print("Ours:", str(error).splitlines()[0])

# %% tags=["claim"]
assert failed

# %% [markdown]
# The merge fails: two weights share a byte, so there is no matrix to add to. peft knows this kind
# of layer and many others. It also finds the layers, saves, loads, and switches between adapters
# (section 6).
#
# ### Rule 3: all linear layers
#
# The first LoRA paper adapted only the query and value matrices of the attention. Are all linear
# layers better? We compare at the same rank and at the same size: `r=16` on these two matrices has
# about as many numbers as `r=3` on all layers.

# %%
attention = {"target_modules": ["q_proj", "v_proj"]}
model = attempt("q_proj and v_proj alone", "layers", model, **attention).unload()
show("q_proj and v_proj alone", "r=3, alpha=6")

# %%
losses = {row["variant"]: row["after"] for row in results}
usual_loss, attention_loss = losses[results[0]["variant"]], losses["q_proj and v_proj alone"]
difference = losses["r=3, alpha=6"] - attention_loss
print(f"same rank: all layers {usual_loss:.2f}, attention alone {attention_loss:.2f}")
print(f"same size: all layers {difference:+.2f} against attention alone")

# %% tags=["claim"]
assert usual_loss < attention_loss or not small

# %% [markdown]
# At the same *rank*, all layers end lower (0.58 against 0.98), but with five times as many numbers.
# At the same *size*, they end 0.06 higher. With one seed and one learning rate, this does not
# decide the question. The rule rests on larger jobs, where adapters on all layers were needed to
# match full training (Dettmers et al., see *To read*). If that is too large for you, lower the
# rank.
#
# ### Rule 4: biases and norms
#
# *Norms* (normalisation layers) keep the activations on a common scale. A norm has one weight per
# channel, very few next to a matrix. `modules_to_save` names modules that are trained whole,
# without LoRA, and saved with the adapter.

# %% tags=["value:norms"]
norms = ["input_layernorm", "post_attention_layernorm", "norm"]
tuned = attempt("norms too", "rule 4", model, modules_to_save=norms)
print(f"norms add {results[-1]['trainable'] - size:,} numbers to {size:,}")
show("norms too")

# %% [markdown]
# The norms add less than 1% to the trained numbers. The loss is 0.53 in place of 0.58; with one
# seed, such a small difference may be chance.
#
# peft trains a *copy* of each norm. When the adapter is disabled, the model uses its own norms and
# is the base again. **A trap**: `unload` removes the LoRA matrices but leaves the *trained* norms.
# To get the base back, delete the adapter first.

# %%
with tuned.disable_adapter():
    disabled = logits(tuned)
print("disabled, it is the base:", torch.equal(disabled, base_logits))

kept = copy.deepcopy(tuned).unload()
restored = torch.equal(logits(kept), base_logits)
print("unloaded, it is the base:", restored)
del kept

deleted = copy.deepcopy(tuned)
deleted.delete_adapter("default")
model = deleted.unload()
print("deleted, then unloaded:  ", torch.equal(logits(model), base_logits))

# %% tags=["claim"]
assert not restored
assert torch.equal(disabled, base_logits)
assert torch.equal(logits(model), base_logits)

# %% [markdown]
# A *bias* is a number that a layer adds to each of its outputs. `bias="all"` trains all biases.
# Does the model at hand have any?

# %%
counted = get_peft_model(skeleton(), LoraConfig(**usual, bias="all"))
biases = sum(w.numel() for name, w in skeleton().named_parameters() if name.endswith("bias"))
print(f"biases in {model.config.model_type}: {biases:,}")

# %% tags=["claim"]
assert counted.get_nb_trainable_parameters()[0] - size == biases

# %% [markdown]
# Llama and its relatives have hardly any biases. Older architectures such as OPT have biases in
# each layer, so we try a tiny OPT with random weights.
#
# **Guess first.** Three copies are trained, with `bias` set to `"none"`, `"lora_only"` and `"all"`.
# Then the adapter is *disabled*. Which copies are the base again?

# %% tags=["value:biases"]
from transformers import OPTConfig

tiny_config = OPTConfig(
    vocab_size=64,
    hidden_size=32,
    word_embed_proj_dim=32,
    ffn_dim=64,
    num_hidden_layers=2,
    num_attention_heads=4,
)
torch.manual_seed(0)
tiny = AutoModelForCausalLM.from_config(tiny_config).eval()
with torch.no_grad():
    for name, weight in tiny.named_parameters():
        if name.endswith("bias"):
            weight.normal_(std=0.1)  # a trained model's biases are not zero
ids = torch.arange(5, 25).reshape(2, 10)
before = tiny(ids).logits

rows = []
for bias in ("none", "lora_only", "all"):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias=bias)
    opt = get_peft_model(copy.deepcopy(tiny), config)
    optimizer = torch.optim.AdamW([w for w in opt.parameters() if w.requires_grad], lr=1e-2)
    for _ in range(5):
        opt.eval()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        with opt.disable_adapter():
            off = opt(ids).logits
    said = [str(note.message) for note in notes if "Careful" in str(note.message)]
    rows.append(
        {
            "bias": bias,
            "trainable": opt.get_nb_trainable_parameters()[0],
            "disabled: off the base by": (off - before).abs().max().item(),
            "peft warns": "yes" if said else "no",
        }
    )
print(said[0])
by_bias = pd.DataFrame(rows).set_index("bias")
by_bias.round(3)

# %% tags=["claim"]
unloaded = opt.unload()  # the last one: bias="all"
off_by = by_bias["disabled: off the base by"]
assert off_by["none"] == 0
assert off_by["lora_only"] > 1e-3
assert off_by["all"] > 1e-3
assert not torch.allclose(unloaded(ids).logits, before, atol=1e-3)
assert by_bias["peft warns"].tolist() == ["no", "yes", "yes"]

# %% [markdown]
# Only `"none"` is. The outputs of the other two are off by up to 0.02 and 0.28, and peft warns: the
# line above the table is its warning. People often guess all three, because LoRA matrices stand
# *beside* the weights. But biases are trained *in place*: **training biases changes the base
# model.** Unloading does not undo this either (the course's tests check it for `"all"`). The change
# matters when several adapters share one base.
#
# ### Rule 5: a quantized base
#
# Training only reads the frozen weights, so we can keep them in 4 bits and train float32 adapters
# beside them: this is *QLoRA*.
#
# The "unquantized" model here has bfloat16 weights. In the embedded copy, these are expanded from a
# 4-bit format, Q4_1, so NF4 rounds them a second time.

# %% tags=["value:sizes"]
plain_bytes = sum(w.numel() * w.element_size() for w in model.parameters())
quantized_bytes = sum(w.numel() * w.element_size() for w in quantized.parameters())
print(f"weights: {plain_bytes / 1e6:.0f} MB → {quantized_bytes / 1e6:.0f} MB")

on_4_bits = attempt("on an NF4 base", "quantized", quantized)
show("on an NF4 base")

# %% tags=["claim"]
losses = {row["variant"]: row["after"] for row in results}
assert quantized_bytes < 0.75 * plain_bytes
assert losses["on an NF4 base"] < 1.2 * usual_loss + 0.1

# %% [markdown]
# The weights shrink from 269 to 110 MB. In so small a model the embeddings, which are not
# quantized, are a large part. With seven billion weights we expect to save close to three quarters.
#
# The loss starts higher, at 2.09, and ends at 0.53, near the usual adapter's 0.58. With one seed
# this does not mean that 4 bits are better.
#
# **Guess first.** Merge this adapter into its 4-bit base. What happens to the loss?

# %% tags=["value:merging"]
tuned_loss = held_out_loss(on_4_bits)
with warnings.catch_warnings():
    # peft says that rounding may change what is generated. By how much is what we measure.
    warnings.filterwarnings("ignore", message=".*4-bit linear may get different generations.*")
    on_4_bits.merge_adapter()
    merged_loss = held_out_loss(on_4_bits)
    on_4_bits.unmerge_adapter()
started = results[-1]["before"]
print(f"untuned {started:.2f}, tuned {tuned_loss:.2f}, merged into 4 bits {merged_loss:.2f}")

# %% tags=["claim"]
assert merged_loss > tuned_loss

# %% [markdown]
# The loss goes back to 2.00, nearly as high as before training. (The bfloat16 model starts at 2.00
# too, by coincidence.) People often expect 0.53, because merging only adds. But then each weight is
# rounded again to one of sixteen levels. Most changes are probably too small to reach another
# level.
#
# **Never merge into 4 bits.** Leave the adapter beside the base, or merge into the full-precision
# model and measure the loss: the adapter was trained beside slightly different weights.

# %%
on_4_bits = tuned = deleted = None  # frees their memory
quantized = load_model("chat", "nf4", quiet=True)  # fresh: merging has touched its weights

# %% [markdown]
# ## 5. Each setting, each initialisation
#
# Two questions remain about `LoraConfig`: how strongly does the update count, and where does it
# start?
#
# ### `lora_alpha` and `use_rslora`
#
# The update is multiplied by α/*r*. In the *rsLoRA* paper (rank-stabilised LoRA), this makes
# learning slower as *r* grows. So `use_rslora=True` uses α/√*r* instead.
#
# **Guess first.** With *r* = 16 and α = 32 the factor is 2. What is the factor with `use_rslora`?

# %%
my_guess = 2

# %% tags=["value:scaling"]
for r, alpha, stabilised in ((16, 16, False), (16, 32, False), (16, 32, True), (256, 32, True)):
    config = LoraConfig(r=r, lora_alpha=alpha, use_rslora=stabilised, target_modules=["up"])
    holder = inject_adapter_in_model(config, torch.nn.ModuleDict({"up": copy.deepcopy(mine.layer)}))
    factor = holder["up"].scaling["default"]
    print(f"r={r}, alpha={alpha}, use_rslora={stabilised}: factor {factor:g}")
    assert factor == alpha / (r**0.5 if stabilised else r)
print(f"You said {my_guess} for the third.")

# %%
model = attempt("alpha=16", "strength", model, lora_alpha=16).unload()
model = attempt("use_rslora", "strength", model, use_rslora=True).unload()
show("alpha=16", "use_rslora")

# %% tags=["claim"]
losses = {row["variant"]: row["after"] for row in results}
assert losses["alpha=16"] > usual_loss or not small  # half the factor, less far in eight steps

# %% [markdown]
# The factor is 32/√16 = 8. People often guess 2 or less, because "stabilised" sounds cautious.
#
# After eight steps, factor 1 (`alpha=16`) is at 0.78, the usual factor 2 at 0.58, and factor 8 at
# 0.42. A larger factor acts much like a larger learning rate, so these losses are no ranking.
# Change α or the learning rate, but not both at once.
#
# ### `init_lora_weights`
#
# This setting says how `A` and `B` start. The default is usually a good choice. If you only want to
# use LoRA, run the cells up to section 6, and read just the last table and plot.
#
# We begin with one layer:
#
# - `True`, the default: $A$ random (Kaiming-uniform), $B$ zero, as in our own class.
# - `"gaussian"`: $A$ from a normal distribution of width 1/*r*, $B$ zero.
# - `False`: both random, for debugging. The model does **not** start as itself.
# - `"pissa"` (*PiSSA*): a *singular value decomposition* (SVD) writes $W$ as a sum of simple
#   matrices, the most important first. The first *r* of them, the *principal* part, move into $BA$;
#   the rest stays in the base. The sum is still $W$.
# - `"loftq"`: for a base that will be quantized. $BA$ starts as what quantization loses.
#
# In peft, LoftQ needs CUDA, so here it is by hand: quantize, and take the best rank-*r*
# approximation of what is lost. Further rounds quantize what the adapter does *not* hold. The table
# shows which share of the quantization error is left after one round and after five.

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit


def best_low_rank(matrix, r):
    """The two thin matrices whose product is as near to a matrix as rank r allows."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    root = S[:r].sqrt()
    return U[:, :r] * root, root[:, None] * Vh[:r]  # B, A


def loftq(weight, r, rounds=1):
    """LoftQ: the quantized weight, and B and A for what it lost."""
    update = torch.zeros_like(weight)
    for _ in range(rounds):
        codes, state = quantize_4bit(weight - update, quant_type="nf4")
        rounded = dequantize_4bit(codes, state)
        B, A = best_low_rank(weight - rounded, r)
        update = B @ A
    return rounded, B, A


weight = model.model.layers[0].mlp.up_proj.weight.detach().float()
lost = (weight - loftq(weight, 1)[0]).norm()
rows = []
for r in (4, 16, 64):
    row = {"r": r}
    for rounds in (1, 5):
        rounded, B, A = loftq(weight, r, rounds)
        row[f"{rounds} round{'s' * (rounds > 1)}"] = (
            (weight - rounded - B @ A).norm() / lost
        ).item()
    rows.append(row)
by_rank = pd.DataFrame(rows).set_index("r")
print("What is left of the quantization error:")
by_rank.round(3)

# %% tags=["claim"]
assert (by_rank < 1).all().all()
assert by_rank["1 round"].is_monotonic_decreasing

# %% [markdown]
# LoftQ removes little of the error: with *r* = 16 and one round 95% is left, with *r* = 64 and five
# rounds still 75%. Rounding errors look much like noise, and a few patterns cannot describe noise.
#
# Now all five on one layer. *Spread* is the standard deviation of the numbers in `A` and in `B`.
# The last two columns are relative to $W$: how far the base was moved, and how far base and adapter
# *together* are from $W$ before training.

# %% tags=["value:inits"]
rows = []
weight = mine.layer.weight.detach()
for init in (True, "gaussian", False, "pissa", "loftq"):
    torch.manual_seed(0)
    holder = torch.nn.ModuleDict({"up": copy.deepcopy(mine.layer)})
    if init == "loftq":
        rounded, B, A = loftq(weight, 16)
        start, product = rounded, B @ A
    else:
        config = LoraConfig(r=16, lora_alpha=32, target_modules=["up"], init_lora_weights=init)
        up = inject_adapter_in_model(config, holder)["up"]
        A, B = up.lora_A["default"].weight.detach(), up.lora_B["default"].weight.detach()
        start, product = up.base_layer.weight.detach(), up.get_delta_weight("default").detach()
    rows.append(
        {
            "init_lora_weights": str(init),
            "spread of A": A.std().item(),
            "spread of B": B.std().item(),
            "base moved by": ((start - weight).norm() / weight.norm()).item(),
            "sum off W by": ((start + product - weight).norm() / weight.norm()).item(),
        }
    )
by_init = pd.DataFrame(rows).set_index("init_lora_weights")
by_init.round(3)

# %%
off, moved = by_init["sum off W by"], by_init["base moved by"]

# %% tags=["claim"]
assert off["True"] == off["gaussian"] == 0  # the model starts as itself
assert off["False"] > 1e-2  # it does not
assert moved["pissa"] > 0.05 > 1e-4 > off["pissa"]  # the base gives, the adapter takes
assert off["loftq"] < moved["loftq"]  # nearer to W than the quantized base alone

# %% [markdown]
# Only `False` and LoftQ do not start at $W$. PiSSA moves its base by 0.275, and the adapter makes
# up for it. LoftQ starts a little nearer to $W$ than its quantized base (0.088 against 0.093).
#
# Next, each of them gets the Yoda job. LoftQ has the 4-bit base, so compare it with the plain
# adapter on that base. For both we also measure the *KL divergence* from the unquantized model
# before training: 0 means the same probabilities everywhere.
#
# PiSSA comes last, because it rewrites the base. (`"pissa_niter_4"` is a faster, approximate SVD.)


# %%
@torch.no_grad()
def start_from_loss(tuned):
    """LoftQ on a whole 4-bit model, one round: each adapter starts as what its layer lost."""
    originals = model.state_dict()
    for name, layer in tuned.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        original = originals[f"{name.removeprefix('base_model.model.')}.weight"].float()
        rounded = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        r, factor = layer.r["default"], layer.scaling["default"]
        # svd_lowrank: only the largest singular values, and much faster
        U, S, V = torch.svd_lowrank((original - rounded) / factor, q=r, niter=4)
        layer.lora_B["default"].weight.copy_(U * S.sqrt())
        layer.lora_A["default"].weight.copy_((V * S.sqrt()).T)


def off_the_original(tuned):
    """How far a model's predictions are from the unquantized model's: mean KL divergence."""
    theirs = logits(tuned).log_softmax(-1)
    ours = base_logits.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1).mean().item()


rounded_off = off_the_original(quantized)
with_loftq = attempt("LoftQ on an NF4 base", "quantized", quantized, prepare=start_from_loss)
before_training = results[-1]["before"]
print(f"untrained loss: unquantized {base_loss:.3f}, NF4 {started:.3f}, ", end="")
print(f"NF4 with LoftQ {before_training:.3f}")
with_loftq.unload()
start_from = get_peft_model(quantized, LoraConfig(**usual))
start_from_loss(start_from)
mended_off = off_the_original(start_from)
print(f"off the unquantized model's predictions: NF4 {rounded_off:.3f}, LoftQ {mended_off:.3f}")
quantized = start_from.unload()

# %%
model = load_model("chat", quiet=True)  # if this cell is run again, PiSSA has rewritten the base
model = attempt("gaussian", "init", model, init_lora_weights="gaussian").unload()
model = attempt("False", "init", model, init_lora_weights=False).unload()

# %% tags=["claim"]
assert torch.equal(logits(model), base_logits)

# %%
model = attempt("PiSSA", "init", model, init_lora_weights="pissa_niter_4").unload()
print(f"held-out loss of what PiSSA leaves of the base: {held_out_loss(model):.1f}")

# %% tags=["claim"]
assert not torch.allclose(logits(model), base_logits, atol=1)

# %% [markdown]
# LoftQ brings the untrained 4-bit model a little closer to the unquantized one: the KL divergence
# falls from 0.362 to 0.310.
#
# Without its adapter, a PiSSA base is broken (loss 19.7), because its most important part is now in
# the adapter. The file of such an adapter fits the original model only if you convert it while
# saving (`path_initial_model_for_weight_conversion`). We load the model afresh.

# %%
model = load_model("chat", quiet=True)

# %% tags=["claim"]
assert torch.equal(logits(model), base_logits)

# %% [markdown]
# Here are all trials, sorted by the loss after eight steps:

# %% tags=["value:variants"]
table = pd.DataFrame(results).sort_values("after").set_index("variant")
shown = table.drop(columns="kind").round(3)
shown["trainable"] = shown["trainable"].map("{:,}".format)
shown

# %% tags=["figure:02_variants"]
colours = {
    "usual": BLUE,
    "rank": SKY,
    "layers": PINK,
    "rule 4": GREEN,
    "quantized": GREY,
    "strength": ORANGE,
    "init": RED,
}
figure, axis = plt.subplots(figsize=(8, 4.4))
for row, entry in enumerate(table.to_dict("records")):
    axis.plot([entry["before"], entry["after"]], [row, row], color=colours[entry["kind"]], lw=2)
    axis.plot(entry["before"], row, "o", mfc="white", mec=colours[entry["kind"]], ms=7)
    axis.plot(entry["after"], row, "o", color=colours[entry["kind"]], ms=8)
axis.axvline(base_loss, color="black", lw=1, ls=":")
axis.text(base_loss + 0.05, -0.8, "untuned model", fontsize=9, va="center")
axis.set_yticks(range(len(table)), table.index)
axis.set_ylim(len(table) - 0.5, -1.2)
axis.grid(axis="x")
axis.set_xlim(0)
axis.set_xlabel("loss on held-out sentences: before ○, after eight steps ●")
axis.set_title("One job, one seed, twelve adapters")
plt.show()

# %% tags=["claim"]
before, after = table["before"], table["after"]
assert (after < before).all()  # each of them learns
assert before["False"] > base_loss + 0.1  # the only one that starts well away from the model
assert abs(before["PiSSA"] - base_loss) < 0.1

# %% [markdown]
# Each line is one adapter, from the loss before training (○) to the loss after eight steps (●). The
# colour shows what was varied. All learn, and all start near the untuned model, except `False`,
# which first has to unlearn its own noise. The NF4 rows start higher because of quantization, and
# PiSSA at 2.02, probably because of rounding.
#
# Do not read the plot as a ranking. With only eight steps, any setting that moves the weights
# further looks better: rsLoRA's factor, a higher rank, the wider $A$ of `"gaussian"`. With longer
# training, or a learning rate for each row, we expect another order. Start with the defaults, and
# compare on your own held-out data.
#
# ## 6. The life of an adapter
#
# We load the file from section 3 onto a fresh base. Is it the model that we had?

# %%
from peft import PeftModel

tuned = PeftModel.from_pretrained(model, saved, adapter_name="yoda")
reloaded = logits(tuned)
print("as before saving:", torch.allclose(reloaded, tuned_logits, atol=1e-3))

# %% tags=["claim"]
assert torch.allclose(reloaded, tuned_logits, atol=1e-3)

# %% [markdown]
# It is: the logits agree to 0.001.
#
# ### Several on one base
#
# `add_adapter` puts a second adapter on the same base. This one should say *Hrrmmm* before the
# sentence, and leave the sentence as it is.

# %%
if "hrrmmm" in tuned.peft_config:  # this cell is run again: start anew
    tuned.set_adapter("yoda")
    tuned.delete_adapter("hrrmmm")
torch.manual_seed(1)  # not the seed of the first: else both begin with the same A
tuned.add_adapter("hrrmmm", LoraConfig(**usual))
tuned.set_adapter("hrrmmm")
train(tuned, [(sentence, f"Hrrmmm. {sentence}") for sentence, _ in training])

sentence = held_out[2][0]
told = {}
for name in ("yoda", "hrrmmm"):
    tuned.set_adapter(name)
    told[name] = logits(tuned)
    print(f"{name:>9}: {rewrite(tuned, sentence)}")
with tuned.disable_adapter():
    told["base"] = logits(tuned)
    print(f"{'base':>9}: {rewrite(tuned, sentence)}")

# %% [markdown]
# Each adapter does its own job, and the base repeats the sentence. Switching loads nothing, so one
# server can offer many tuned models at once. Training the second changed neither the first nor the
# base; the course's tests check their logits.

# %% tags=["claim"]
assert torch.allclose(told["yoda"], tuned_logits, atol=1e-3)
assert torch.equal(told["base"], base_logits)
assert not torch.allclose(told["hrrmmm"], told["yoda"], atol=1)

# %% [markdown]
# ### Merging and unmerging
#
# `merge_adapter` adds the update into the weights and keeps the adapter; `unmerge_adapter`
# subtracts the update again. In exact arithmetic, neither changes the outputs. What happens in 16
# bits?


# %% tags=["value:unmerging"]
def distance(one, other):
    """The mean difference between two models' logits."""
    return (one - other).abs().mean().item()


tuned.set_adapter("yoda")
tuned.merge_adapter()
merged = logits(tuned)
tuned.unmerge_adapter()
with tuned.disable_adapter():
    unmerged_base = logits(tuned)

learned = distance(told["yoda"], base_logits)
print(f"What was learned moved the logits by {learned:.3f}, on average.")
print(f"merged, against beside the weights: {distance(merged, told['yoda']):.3f}")
print(f"the base after unmerging:           {distance(unmerged_base, base_logits):.3f}")

# %% tags=["claim"]
assert distance(merged, told["yoda"]) < 0.2 * learned
assert distance(unmerged_base, base_logits) < 0.2 * learned

# %% [markdown]
# Very little: merging changes the logits by 0.162, and unmerging leaves the base off by 0.136,
# where training moved the logits by 5.980. Each addition is rounded in bfloat16. If you need the
# exact base, load it anew.
#
# ### Mixing
#
# `add_weighted_adapter` makes a new adapter from others. `"cat"` puts the matrices side by side:
# the ranks add up, and so do the updates. `"linear"` adds the As and adds the Bs. The product then
# also contains each B times the *other* adapter's A, and these terms were never trained.
#
# **Guess first.** We mix Yoda and *Hrrmmm*. Do we get both in one sentence?
#
# The first cell prints the rank of each mix, and how far its update is from the sum of the two. The
# second counts, in eight replies, how many begin with *Hrrmmm*, and how many have Yoda's order to
# the letter.

# %%
parts = ["yoda", "hrrmmm"]
tuned.add_weighted_adapter(parts, [1.0, 1.0], "both", combination_type="cat")
tuned.add_weighted_adapter(parts, [1.0, 1.0], "blend", combination_type="linear")

up = tuned.base_model.model.model.layers[0].mlp.up_proj
change = {name: up.get_delta_weight(name) for name in (*parts, "both", "blend")}
wanted = change["yoda"] + change["hrrmmm"]
for name in ("both", "blend"):
    off = (change[name] - wanted).norm() / wanted.norm()
    print(f"{name}: rank {up.r[name]}, off the sum by {off:.2f}")

# %% tags=["claim"]
assert (change["both"] - wanted).norm() < 1e-2 * wanted.norm()
assert (change["blend"] - wanted).norm() > 0.1 * wanted.norm()

# %% tags=["value:skills"]
trials = held_out[:8]
skills = {}
for name in (*parts, "both", "blend"):
    tuned.set_adapter(name)
    replies = [rewrite(tuned, sentence) for sentence, _ in trials]
    skills[name] = {
        "says Hrrmmm": sum(reply.startswith("Hrrmmm.") for reply in replies),
        "Yoda's order": sum(
            reply.removeprefix("Hrrmmm.").strip() == wanted
            for reply, (_, wanted) in zip(replies, trials, strict=True)
        ),
        "the first reply": replies[0],
    }
skills = pd.DataFrame(skills).T
skills

# %% tags=["claim"]
for name in ("both", "blend"):
    lost = skills.loc["yoda", "Yoda's order"] - skills.loc[name, "Yoda's order"]
    assert lost > 0 or skills.loc[name, "says Hrrmmm"] < len(trials) or not small

assert skills.loc["hrrmmm", "says Hrrmmm"] > skills.loc["yoda", "says Hrrmmm"]
assert skills.loc["yoda", "Yoda's order"] > skills.loc["hrrmmm", "Yoda's order"]

# %% [markdown]
# No: both mixes say *Hrrmmm* in 7 of 8 replies, and none has Yoda's order. With Yoda's adapter
# alone, 2 of 8 had it. People often expect both skills, because the update of `both` is the sum of
# the two. But a sum of updates is not a sum of skills. Our explanation: the second adapter also
# learned to keep the words in order, which works against the first.
#
# The extra terms put `blend` far from the sum (off by 0.97), yet it scores like `both`. Eight
# replies are too few to tell them apart.
#
# ### Deleting, and going back
#
# `delete_adapter` removes one of several adapters. `unload` removes all and returns the base.
# `merge_and_unload` returns a plain model with the update in its weights, which works without peft.

# %%
tuned.set_adapter("yoda")
for name in list(tuned.peft_config):
    if name != "yoda":
        tuned.delete_adapter(name)
print("left:", list(tuned.peft_config))

# %% tags=["claim"]
assert list(tuned.peft_config) == ["yoda"]
assert distance(logits(tuned), told["yoda"]) < 0.2 * learned

# %%
plain = copy.deepcopy(tuned).merge_and_unload()
back = copy.deepcopy(tuned).unload()
print("merge_and_unload:", type(plain).__name__, "| unload:", type(back).__name__)

# %% tags=["claim"]
assert not any("lora" in name for name, _ in plain.named_parameters())
assert distance(logits(plain), told["yoda"]) < 0.2 * learned
assert distance(logits(back), base_logits) < 0.2 * learned

# %%
temporary.cleanup()

# %% [markdown]
# ## Take away
#
# - AdamW holds 4 *p* numbers for *p* trained weights. With LoRA (r = 16), one MLP needed 1.15 *p*
#   (section 1).
# - LoRA is $W + \frac{\alpha}{r} BA$. $B$ starts at zero, so the model starts as itself (section
#   2).
# - A usual start: all linear layers, a moderate rank, α of once or twice *r*, the default
#   initialisation. Our trials, at one learning rate, do not rank the settings (sections 4 and 5).
# - Norms cost little. Biases are trained in place, so they change the base (section 4, rule 4).
# - A 4-bit base trained about as well (SmolLM2-135M, one seed). Merging into it lost nearly all
#   that was learned (section 4, rule 5).
# - An adapter is a small file beside a base (section 3). You can switch, mix, merge or delete it.
#   Mixing did not give both skills (section 6).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Put a letter for each, and run the cell below.
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
# - **A** Merge into the 4-bit base, because the adapter was trained beside it.
# - **B** Merge into the 4-bit base with a larger α, against the rounding.
# - **C** Train again: an adapter of a 4-bit base cannot be merged.
# - **D** Merge into the same base in full precision, and measure the loss.
#
# **d.** You have trained with `bias="all"`, and you disable the adapter. What model do you have?
#
# - **A** The base with other biases than before.
# - **B** The base as it was before the training.
# - **C** The tuned model, with nothing lost.
# - **D** The base without any biases.

# %%
from course_utils.exercises import check, quiz

quiz("02", a="...", b="...", c="...", d="...")

# %% [markdown]
# **02.1 · Change one number.** A colleague trains with *r* = 16 and α = 32. She wants to try *r* =
# 64, with an update that counts as strongly. Write `new_alpha(r, alpha, new_r, use_rslora)`: the α
# that leaves the factor before $BA$ as it was. Then explain in a sentence why α changes less with
# rsLoRA.


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
# r). Leave `weight` itself as it is, so that you can go back.


# %% tags=["exercise"]
def merge(weight, A, B, alpha, r):
    """A new tensor of the weight's shape."""
    ### BEGIN SOLUTION
    return weight + (alpha / r) * (B @ A)
    ### END SOLUTION


# %%
check("02.2", merge)

# %% [markdown]
# **02.3 · Alone.** Somebody has trained *all* weights, and sends you one layer before and after.
# Turn the difference into an adapter: write `extract(before, after, r)`, which returns `(A, B)`,
# such that `before + B @ A` is as near to `after` as rank *r* allows. Section 5 used the right
# tool, for LoftQ.


# %% tags=["exercise"]
def extract(before, after, r):
    """A of shape (r, in) and B of shape (out, r)."""
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(after - before, full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]
    ### END SOLUTION


# %%
check("02.3", extract)

# %% [markdown]
# Solutions: `notebooks/solutions/02_peft_lora.py`.
#
# ## To read
#
# - Hu et al., [LoRA](https://arxiv.org/abs/2106.09685): the idea, and why a low rank may be enough.
# - Dettmers et al., [QLoRA](https://arxiv.org/abs/2305.14314): a 4-bit base, and why all linear
#   layers.
# - Kalajdzievski, [rsLoRA](https://arxiv.org/abs/2312.03732); Meng et al.,
#   [PiSSA](https://arxiv.org/abs/2404.02948); Li et al., [LoftQ](https://arxiv.org/abs/2310.08659).
# - peft's guide to [LoRA](https://huggingface.co/docs/peft/developer_guides/lora).
# - The course's words, with the notebook that introduces each: [glossary](../docs/glossary.md).
