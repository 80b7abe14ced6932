# %% [markdown]
# # 02a · A closer look at LoRA
#
# **You will learn** what is inside an adapter: how its size and its rank relate, how its two
# matrices can start, what LoftQ and PiSSA do to the weights, and what training leaves behind in
# biases.
#
# **You need** notebook 02, and some linear algebra. This is an appendix: no later notebook needs
# it.
#
# **It takes** about 20 minutes of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Ines tunes models with the usual settings of notebook 02. Then a colleague asks her: "Should we
# start our adapters with PiSSA? And what does LoftQ do to the base model?" She finds papers and
# forum posts, but no two of them agree. So she opens the adapter and looks. You will do the same,
# and test each statement on the weights of a real model.
#
# The set-up is that of notebook 02. In addition, `layer` is a copy of one linear layer in float32,
# `W` is its weight, and `adapted` puts an adapter of peft beside it.

# %%
import logging
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import copy

import pandas as pd
import torch
import transformers
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from course_utils import describe
from course_utils.hardware import pick_dtype
from course_utils.models import keep_weights_trainable, resolve

transformers.utils.logging.disable_progress_bar()
print(describe())
origin = resolve("chat")
origin.announce("chat")
dtype = pick_dtype().value
if dtype == torch.float16:
    dtype = torch.float32  # training in float16 would need loss scaling


def load(**options):
    """Load a fresh copy of the chat model."""
    options = {"dtype": dtype, "device_map": "auto", **options}
    return AutoModelForCausalLM.from_pretrained(origin.folder, **options).eval()


model = load()
tokenizer = AutoTokenizer.from_pretrained(origin.folder)
layer = copy.deepcopy(model.model.layers[0].mlp.up_proj).float().cpu().requires_grad_(False)
W = layer.weight


def adapted(**settings):
    """A copy of the layer with an adapter of peft beside it."""
    settings = {"r": 16, "lora_alpha": 32, "target_modules": ["up"], **settings}
    holder = torch.nn.ModuleDict({"up": copy.deepcopy(layer)})
    return inject_adapter_in_model(LoraConfig(**settings), holder)["up"]


print(f"W: {W.shape[0]} × {W.shape[1]}")

# %% [markdown]
# ## 1. Does peft compute the formula?
#
# In notebook 02 we wrote LoRA as $W + \frac{\alpha}{r}BA$. Now we train peft's layer for ten steps,
# take its two matrices out, and compute the output by the formula.

# %%
torch.manual_seed(0)
up = adapted(r=8, lora_alpha=16)
x, target = torch.randn(32, layer.in_features), torch.randn(32, layer.out_features)
optimizer = torch.optim.SGD([w for w in up.parameters() if w.requires_grad], lr=1.0)
for _ in range(10):
    optimizer.zero_grad()
    (up(x) - target).square().mean().backward()
    optimizer.step()

with torch.no_grad():
    A, B = up.lora_A["default"].weight, up.lora_B["default"].weight
    change = 16 / 8 * B @ A
    moved = (up(x) - layer(x)).abs().max().item()
    apart = (up(x) - x @ (W + change).T).abs().max().item()
print(f"Training moved the outputs by up to {moved:.2f}.")
print(f"The formula differs from peft's output by at most {apart:.0e}.")
print(f"rank of the change: {torch.linalg.matrix_rank(change)} of {min(change.shape)} possible")

# %% tags=["claim"]
assert moved > 1
assert apart < 1e-4
assert torch.linalg.matrix_rank(change) <= 8

# %% [markdown]
# The two agree up to rounding, so peft computes just this. And however long you train, the rank of
# the change is at most *r*: $BA$ is a sum of *r* patterns.
#
# ## 2. Rank and size
#
# For one layer, $A$ has *r* × in numbers and $B$ has out × *r*. The next cell adds these up over
# all linear layers and compares the sum with peft's own count. It uses the *meta* device, on which
# tensors have a shape but no values. So even a large model would take no memory.

# %%
with torch.device("meta"):
    skeleton = AutoModelForCausalLM.from_config(model.config)
shapes = [
    module.weight.shape
    for name, module in skeleton.named_modules()
    if isinstance(module, torch.nn.Linear) and name != "lm_head"  # "all-linear" leaves it out
]
rows = []
for r in (1, 4, 16, 64, 256):
    counted = get_peft_model(
        copy.deepcopy(skeleton), LoraConfig(r=r, target_modules="all-linear")
    ).get_nb_trainable_parameters()[0]
    by_formula = sum(r * (n_out + n_in) for n_out, n_in in shapes)
    share = counted / skeleton.num_parameters()
    megabytes = counted * 4 / 1e6
    rows.append(
        {
            "r": r,
            "by the formula": f"{by_formula:,}",
            "by peft": f"{counted:,}",
            "share of the model": f"{share:.1%}",
            "MB in float32": round(megabytes, 1),
        }
    )
pd.DataFrame(rows).set_index("r")

# %% tags=["claim"]
assert all(row["by the formula"] == row["by peft"] for row in rows)

# %% [markdown]
# The size is proportional to *r*. At *r* = 256 the adapter has 58% of the parameters of
# SmolLM2-135M, so it is no longer small. In a larger model the share is smaller: the number of
# weights in a layer grows with the square of its width, and LoRA only with the width.
#
# ## 3. Is a real update of low rank?
#
# LoRA assumes that a few patterns describe the change. We can look at a trained adapter: does it
# use all the directions that its rank allows? We train an adapter with *r* = 64 on the task of
# notebook 02, Yoda's word order. For simplicity, the examples are computed one at a time, and the
# gradients of four examples make one step.

# %%
from course_utils.data import load_data

yoda = load_data("yoda")
rows_of = {
    name: list(zip(yoda[name][:32]["sentence"], yoda[name][:32]["yoda"], strict=True))
    for name in ("train", "unseen")
}


def example(sentence, response):
    """A conversation as tensors, with the response and the EOS token as targets."""
    messages = [
        {"role": "system", "content": "Rewrite the sentence."},
        {"role": "user", "content": sentence},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    start, end = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (prompt, response + tokenizer.eos_token)
    )
    made = {"input_ids": [start + end], "labels": [[-100] * len(start) + end]}
    return {name: torch.tensor(ids, device=model.device) for name, ids in made.items()}


held_out = [example(*pair) for pair in rows_of["unseen"][:16]]


@torch.no_grad()
def held_out_loss(tuned):
    """The mean of the losses on 16 held-out sentences."""
    return torch.stack([tuned(**one).loss for one in held_out]).mean().item()


torch.manual_seed(0)
tuned = get_peft_model(load(), LoraConfig(r=64, lora_alpha=128, target_modules="all-linear"))
optimizer = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=1e-3)
print(f"held-out loss before: {held_out_loss(tuned):.2f}")
for start in range(0, 32, 4):
    for pair in rows_of["train"][start : start + 4]:
        (tuned(**example(*pair)).loss / 4).backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"held-out loss after:  {held_out_loss(tuned):.2f}")

# %% [markdown]
# A *singular value decomposition* (SVD) writes the change as a sum of 64 matrices of rank 1
# (*directions*), sorted by size. Their sizes are the *singular values*. The squares of these add up
# to the squared size of the change, so each direction has a share.

# %%
shares = []
for module in tuned.modules():
    if hasattr(module, "lora_A"):
        # Only the largest 64 singular values can differ from zero; svd_lowrank finds them.
        change = module.get_delta_weight("default").detach().float()
        values = torch.svd_lowrank(change, q=64)[1].square()
        shares.append(values.cumsum(0) / values.sum())
shares = torch.stack(shares).cpu()
for k in (1, 4, 16, 32):
    print(f"the first {k:>2} of 64 directions hold {shares[:, k - 1].mean():.0%} of the change")

# %% tags=["claim"]
assert held_out_loss(tuned) < 1
assert shares[:, 15].mean() > 0.5

# %% [markdown]
# On average over the layers, the first direction alone holds 42% of the change, and the first 16 of
# 64 hold 88%. So most of the change lies in few directions, although 64 were allowed. This fits the
# observation in notebook 02 that a small rank can learn this task. It does not show that the other
# directions are useless. (SmolLM2-135M, eight steps, one seed.)
#
# ## 4. The factor α/r, and rsLoRA
#
# The update is multiplied by α/*r*. According to the paper on *rsLoRA* (rank-stabilised LoRA), this
# makes learning slower as *r* grows. So `use_rslora=True` multiplies by α/√*r* instead.
#
# **Guess first.** With *r* = 16 and α = 32 the factor is 2. What is the factor with `use_rslora`?

# %%
my_guess = None  # a number, such as 3

# %% tags=["value:scaling"]
for r, alpha, stabilised in ((16, 16, False), (16, 32, False), (16, 32, True), (256, 32, True)):
    factor = adapted(r=r, lora_alpha=alpha, use_rslora=stabilised).scaling["default"]
    print(f"r={r}, alpha={alpha}, use_rslora={stabilised}: factor {factor:g}")
print(f"For the third you guessed {my_guess}.")

# %% tags=["claim"]
assert adapted(use_rslora=True).scaling["default"] == 8

# %% [markdown]
# The factor is 32/√16 = 8. The word "stabilised" sounds cautious, but √*r* is less than *r*. A
# larger factor acts much like a larger learning rate, so notebook 02 compares the two only after a
# sweep of the learning rate.
#
# ## 5. Where the adapter starts
#
# `init_lora_weights` says how $A$ and $B$ start:
#
# - `True`, the default: $A$ random (Kaiming-uniform), $B$ zero.
# - `"gaussian"`: $A$ from a normal distribution with standard deviation 1/*r*, $B$ zero.
# - `False`: both random, for debugging. The model does **not** start as itself.
# - `"pissa"` (*PiSSA*): an SVD writes $W$ as a sum of simple matrices. The *r* largest, the
#   *principal* part, move into $BA$. The rest stays in the base, and the sum is still $W$.
# - `"loftq"` (*LoftQ*): for a base that will be quantized. $BA$ starts as an approximation of what
#   quantization loses.
#
# LoftQ works in rounds. The first round quantizes the weight and takes the best approximation of
# rank *r* of what was lost. Each further round quantizes only what the adapter does *not* hold.
# Here it is by hand. The table shows which share of the quantization error is left. (The embedded
# model's weights were rounded to Q4_1 before; "error" means the difference from these weights.)

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


lost = (W - loftq(W, 1)[0]).norm()
rows = []
for r in (4, 16, 64):
    row = {"r": r}
    for rounds in (1, 5):
        rounded, B, A = loftq(W, r, rounds)
        left = (W - rounded - B @ A).norm() / lost
        row[f"{rounds} round{'s' * (rounds > 1)}"] = left.item()
    rows.append(row)
by_rank = pd.DataFrame(rows).set_index("r")
print("What is left of the quantization error:")
by_rank.round(3)

# %% tags=["claim"]
assert (by_rank < 1).all().all()
assert by_rank["1 round"].is_monotonic_decreasing

# %% [markdown]
# LoftQ removes little of the error. With *r* = 16 and one round 95% is left, and with *r* = 64 and
# five rounds still 75%. Rounding errors look much like noise, and a few patterns cannot describe
# noise.
#
# The next cell uses all five on one layer. *Spread* is the standard deviation in `A` and in `B`.
# The last two columns are relative to the size of $W$: how far the base was moved, and how far base
# and adapter *together* are from $W$ before training.

# %% tags=["value:inits"]
rows = []
for init in (True, "gaussian", False, "pissa", "loftq"):
    torch.manual_seed(0)
    if init == "loftq":
        start, B, A = loftq(W, 16)
        product = B @ A
    else:
        up = adapted(init_lora_weights=init)
        A, B = up.lora_A["default"].weight.detach(), up.lora_B["default"].weight.detach()
        start, product = up.base_layer.weight.detach(), up.get_delta_weight("default").detach()
    rows.append(
        {
            "init_lora_weights": str(init),
            "spread of A": A.std().item(),
            "spread of B": B.std().item(),
            "base moved by": ((start - W).norm() / W.norm()).item(),
            "sum off W by": ((start + product - W).norm() / W.norm()).item(),
        }
    )
by_init = pd.DataFrame(rows).set_index("init_lora_weights")
by_init.round(3)

# %% tags=["claim"]
off, moved = by_init["sum off W by"], by_init["base moved by"]
assert off["True"] == off["gaussian"] == 0  # the model starts as itself
assert off["False"] > 1e-2  # it does not
assert moved["pissa"] > 0.05 > 1e-4 > off["pissa"]  # the base gives, the adapter takes
assert off["loftq"] < moved["loftq"]  # nearer to W than the quantized base alone

# %% [markdown]
# Only `False` and LoftQ do not start at $W$. PiSSA moves its base by 0.275, and the adapter makes
# up for it. LoftQ starts a little nearer to $W$ than its quantized base: 0.088 against 0.093.
#
# ### PiSSA on the whole model
#
# We put PiSSA adapters on all linear layers, and measure the loss on 16 held-out sentences before
# any training. `"pissa_niter_4"` is a faster, approximate SVD.

# %%
torch.manual_seed(0)
settings = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
pissa = get_peft_model(load(), LoraConfig(**settings, init_lora_weights="pissa_niter_4"))
print(f"held-out loss: the model as it was                {held_out_loss(model):.2f}")
print(f"               PiSSA's base and adapter together  {held_out_loss(pissa):.2f}")
with pissa.disable_adapter():
    print(f"               PiSSA's base alone                 {held_out_loss(pissa):.2f}")

# %% tags=["claim"]
assert abs(held_out_loss(pissa) - held_out_loss(model)) < 0.2
with pissa.disable_adapter():
    assert held_out_loss(pissa) > held_out_loss(model) + 2

# %% [markdown]
# Base and adapter together are still the model as it was: a loss of 2.02 against 2.01, where we
# expect that the difference comes from rounding. Without its adapter, the base is broken (19.96),
# because the most important part of each weight is now in the adapter. So a PiSSA adapter fits only
# the base that PiSSA has changed. To use it beside the original model, convert it while you save
# it: `save_pretrained(..., path_initial_model_for_weight_conversion=...)` needs the untrained PiSSA
# adapter for this. Without the conversion, the original model would have the principal part twice.
#
# ### LoftQ with `LoftQConfig`
#
# In peft, LoftQ needs a CUDA GPU. You load the model *without* quantization, and `get_peft_model`
# computes the quantized weights and the adapter. Two things are easy to miss. First, the base that
# you get holds the *rounded* weights in 16 bits, so it saves no memory until you save it and load
# it again in 4 bits. Second, peft 0.21 does not divide by α/*r* when it sets $A$ and $B$. Choose α
# = *r*, so that the factor is 1.

# %%
from peft import LoftQConfig

config = LoraConfig(
    r=16,
    lora_alpha=16,
    target_modules="all-linear",
    init_lora_weights="loftq",
    loftq_config=LoftQConfig(loftq_bits=4, loftq_iter=5),
)
print(config.init_lora_weights, config.loftq_config)
if torch.cuda.is_available():
    loftq_model = get_peft_model(load(), config)
    print(f"held-out loss with LoftQ, before training: {held_out_loss(loftq_model):.2f}")
else:
    print("Without a CUDA GPU, peft cannot compute it; the next cell does it by hand.")

# %% [markdown]
# On a CPU we do the same by hand, one round, on a model that is already in 4 bits. (On a GPU,
# `replace_lora_weights_loftq` of peft does this.) Here we divide by the factor ourselves. How much
# nearer does LoftQ bring the predictions to those of the unquantized model? The *KL divergence*
# measures how far two sets of probabilities are apart; 0 means that they are the same.


# %%
def load_nf4():
    """Load a fresh copy of the chat model with its linear layers in 4 bits."""
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    quantized = load(quantization_config=four_bits)
    keep_weights_trainable(quantized)
    return quantized


@torch.no_grad()
def start_from_loss(tuned):
    """One round of LoftQ: each adapter starts as what the quantization of its layer lost."""
    originals = model.state_dict()
    for name, module in tuned.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        original = originals[f"{name.removeprefix('base_model.model.')}.weight"].float()
        rounded = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        r, factor = module.r["default"], module.scaling["default"]
        U, S, V = torch.svd_lowrank((original - rounded) / factor, q=r, niter=4)
        module.lora_B["default"].weight.copy_(U * S.sqrt())
        module.lora_A["default"].weight.copy_((V * S.sqrt()).T)


@torch.no_grad()
def divergence(tuned):
    """The mean KL divergence of a model's predictions from the unquantized model's."""
    found = []
    for one in held_out:
        before, after = (m(one["input_ids"]).logits[0].float() for m in (model, tuned))
        before, after = before.log_softmax(-1), after.log_softmax(-1)
        found.append((before.exp() * (before - after)).sum(-1))
    return torch.cat(found).mean().item()


on_nf4 = get_peft_model(load_nf4(), LoraConfig(**settings))
rows = {"NF4": (divergence(on_nf4), held_out_loss(on_nf4))}
start_from_loss(on_nf4)
rows["NF4 and LoftQ, one round"] = (divergence(on_nf4), held_out_loss(on_nf4))
columns = ["KL divergence from the unquantized model", "held-out loss"]
loftq_table = pd.DataFrame(rows, index=columns).T
loftq_table.round(3)

# %% tags=["claim"]
assert (loftq_table[columns[0]] > 0).all()

# %% [markdown]
# The KL divergence falls from 0.455 to 0.357. The loss falls from 2.082 to 2.019, close to the 2.01
# of the unquantized model. Notebook 02 compares the two after training.
#
# ## 6. What training leaves in biases
#
# In notebook 02, `bias="all"` changed the bias of the base layer. How much does this change a whole
# model? Llama has no biases, so we take a tiny OPT with random weights, with biases in each layer.
# Three copies are trained, with `bias` set to `"none"`, `"lora_only"` and `"all"`. Then the adapter
# is *disabled*.
#
# **Guess first.** Which copies are the base model again?

# %%
my_guess = None  # a list of settings, such as ["none", "all"]

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
            weight.normal_(std=0.1)  # the biases of a trained model are not zero
ids = torch.arange(5, 25).reshape(2, 10)
before = tiny(ids).logits

rows = []
for bias in ("none", "lora_only", "all"):
    settings_of_opt = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias=bias)
    opt = get_peft_model(copy.deepcopy(tiny), settings_of_opt)
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
print("You guessed:", my_guess)
by_bias = pd.DataFrame(rows).set_index("bias")
by_bias.round(3)

# %% tags=["claim"]
off_by = by_bias["disabled: off the base by"]
assert off_by["none"] == 0
assert off_by["lora_only"] > 1e-3
assert off_by["all"] > 1e-3
assert not torch.allclose(opt.unload()(ids).logits, before, atol=1e-3)
assert by_bias["peft warns"].tolist() == ["no", "yes", "yes"]

# %% [markdown]
# Only the copy with `"none"` is the base model again. The outputs of the other two are off by up to
# 0.02 and 0.28, and peft warns: the line above the table is its warning. LoRA matrices stand
# *beside* the weights, but a bias is trained in place, with `"lora_only"` in the layers that have
# an adapter, and with `"all"` in every layer. Unloading does not undo this either.
#
# ## Take away
#
# - peft computes $W + \frac{\alpha}{r}BA$, and the rank of the change is at most *r* (section 1).
# - The size of an adapter is proportional to *r* (section 2). In an update trained with *r* = 64,
#   the first 16 directions held 88% of the change (section 3; one seed).
# - rsLoRA with *r* = 16 makes the factor four times as large (section 4).
# - PiSSA changes the base, so its adapter does not fit the original model without conversion
#   (section 5).
# - LoftQ repairs only a small part of the quantization error (section 5).
# - `bias="lora_only"` and `"all"` change the base model (section 6).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** You double both *r* and α, without rsLoRA. What changes?
#
# - **A** The factor before the update doubles.
# - **B** The adapter gets half as large.
# - **C** The size of the adapter and the factor both double.
# - **D** The adapter doubles in size, and the factor stays.
#
# **b.** A PiSSA adapter was saved without conversion. Somebody loads it beside the original model.
# What is wrong?
#
# - **A** Nothing: an adapter fits every copy of its base model.
# - **B** The principal part of each weight is there twice.
# - **C** The adapter is ignored, because its shapes do not fit.
# - **D** The principal part of each weight is missing.
#
# **c.** Why does LoftQ with *r* = 16 remove so little of the quantization error?
#
# - **A** It starts from weights that are already in 4 bits.
# - **B** The singular value decomposition finds only an approximate solution.
# - **C** The error is like noise, and few directions cannot describe it.
# - **D** The adapter's own numbers are stored in 4 bits as well.

# %%
from course_utils.exercises import check, quiz

quiz("02a", a="...", b="...", c="...")

# %% [markdown]
# **02a.1 · Use the formula.** You may send an adapter by mail if its file is small enough. Write
# `largest_rank(shapes, megabytes)`: the largest rank whose adapter, in float32, takes at most so
# many MB (1 MB is a million bytes). `shapes` is a list of pairs (out, in), one for each adapted
# layer. Section 2 has the formula.


# %% tags=["exercise"]
def largest_rank(shapes, megabytes):
    """A whole number; 0 if not even rank 1 fits."""
    ### BEGIN SOLUTION
    numbers_a_rank = sum(n_out + n_in for n_out, n_in in shapes)
    return int(megabytes * 1_000_000 // (4 * numbers_a_rank))
    ### END SOLUTION


# %%
check("02a.1", largest_rank)

# %% [markdown]
# **02a.2 · On your own.** Somebody has trained *all* weights, and sends you one layer before and
# after. Turn the difference into an adapter: write `extract(before, after, r)`, which returns
# `(A, B)`, such that `before + B @ A` is as near to `after` as rank *r* allows. Section 5 used the
# right tool, for LoftQ. An approximate SVD is accepted if it comes within 1% of the best possible.


# %% tags=["exercise"]
def extract(before, after, r):
    """A of shape (r, in) and B of shape (out, r)."""
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(after - before, full_matrices=False)
    return Vh[:r], U[:, :r] * S[:r]
    ### END SOLUTION


# %%
check("02a.2", extract)

# %% [markdown]
# Solutions: `notebooks/solutions/02a_lora_forensics.py`.
#
# ## To read
#
# - Meng et al., [PiSSA](https://arxiv.org/abs/2404.02948); Li et al.,
#   [LoftQ](https://arxiv.org/abs/2310.08659); Kalajdzievski,
#   [rsLoRA](https://arxiv.org/abs/2312.03732).
# - Biderman et al., [LoRA learns less and forgets less](https://arxiv.org/abs/2405.09673): among
#   other things, the rank of what full fine-tuning changes.
# - The peft guide to
#   [quantization](https://huggingface.co/docs/peft/developer_guides/quantization), with LoftQ.
# - The course's terms, with the notebook that introduces each: [glossary](../docs/glossary.md).
