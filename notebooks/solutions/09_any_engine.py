# %% [markdown]
# # 09 · One training, any engine
#
# **You will learn** how several processes train one model together, and how to prove that they
# train the *same* model as one process would. You will see what sharding saves on each GPU, which
# file starts which engine, and what a training looks like when it breaks.
#
# **You need** notebooks 00 (the training that we run), 04 (where memory goes) and 05 (predicting
# it).
#
# **It takes** about 28 minutes of reading and trying. The cells themselves run in about seven
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Ines has tuned a small model on her laptop, with notebook 00. Now her company wants an adapter for
# a large model, and gives her a machine with eight GPUs for a night. She is worried. Will eight
# GPUs learn the same as one? What if one of them fails at four in the morning? And what if the file
# that she finds in the morning is empty? You will answer each question by trying it, with two
# processes on a CPU. They use the same code as eight GPUs do.

# %%
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import psutil
from safetensors.torch import load_file

from course_utils import describe
from course_utils.data import folder
from course_utils.display import BLUE, GREY, MEMORY_COLOURS, ORANGE, RED, text_table, use_style

warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
use_style()
print(describe())
root = folder().parent  # the course's folder
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. Data parallel by hand
#
# **Data parallel** training is the simplest way to use several GPUs. Each GPU has a copy of the
# whole model and reads other examples. Then all of them exchange their gradients and take the mean.
# So each makes the same optimizer step, and the copies stay equal.
#
# Each GPU has a process of its own. A process is called a **rank**, numbered from 0, and the number
# of all processes is the **world size**. The exchange is an **all-reduce**: each rank gives a
# tensor, and each gets the sum. On GPUs the library NCCL does this; on CPUs, *gloo* does.
#
# The next cell has all of it. The function does not run in this notebook: each of two processes
# will run it. It compares the mean of the two ranks' gradients with the gradient of the whole
# batch.


# %%
def averaged():
    """Each rank takes one half of a batch. Is the mean of the gradients that of the whole?"""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same model and the same data on each rank
    model = torch.nn.Linear(8, 1)
    inputs, targets = torch.randn(4, 8), torch.randn(4, 1)

    def gradient(rows):
        model.zero_grad()
        torch.nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        return model.weight.grad.clone()

    whole = gradient(slice(0, 4))
    mine = gradient(slice(2 * rank, 2 * rank + 2))  # rank 0: rows 0 and 1; rank 1: rows 2 and 3
    print(f"one of {world}, alone: off by {(mine - whole).abs().max():.7f}")
    dist.all_reduce(mine)  # now the sum over all ranks
    print(f"all {world} together: off by {(mine / world - whole).abs().max():.7f}")
    dist.destroy_process_group()


# %% [markdown]
# `torchrun` starts a script in several processes and tells each its rank. It comes with PyTorch.
# Our function becomes a script, and torchrun starts it twice:


# %%
def launch(function, processes=2):
    """Run a function in several processes by torchrun, and show what each rank writes."""
    script, logs = work / f"{function.__name__}.py", work / function.__name__
    script.write_text(f"{inspect.getsource(function)}\n\n{function.__name__}()\n")
    shutil.rmtree(logs, ignore_errors=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node", str(processes), "--redirects", "3", "--log_dir", str(logs)]
    subprocess.run([*torchrun, str(script)], capture_output=True)
    lines = []
    for rank, log in enumerate(sorted(logs.rglob("stdout.log"))):
        lines += [f"rank {rank}: {line}" for line in log.read_text().splitlines()]
        errors = log.with_name("stderr.log").read_text().splitlines()
        lines += [f"rank {rank}: {line}" for line in errors if "Error: " in line][-1:]
    print(*lines, sep="\n")
    return lines


told = launch(averaged)

# %% tags=["claim"]
off = {line.rpartition(":")[0]: float(line.split()[-1]) for line in told}
assert len(off) == 4
assert all((value < 1e-6) == ("together" in name) for name, value in off.items())

# %% [markdown]
# Alone, each rank has another gradient. Together they have that of the whole batch, up to rounding.
#
# ### The trap: a mean of means
#
# That was a batch in which each row counts the same. In a language model each *token* counts the
# same, and texts have different lengths. Rank 0 has a text with 10 tokens, rank 1 a text with 90.
# Each takes the mean loss over its own tokens, and the ranks take the mean of both.
#
# **Guess first:** what is the share of rank 0's tokens in the result, and what should it be?

# %%
my_guess = None  # e.g. "20% and 20%"


# %%
def weighted():
    """Two ranks with different numbers of tokens: the mean of the means, and the mean."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    short, long = 3 + torch.rand(10), 1 + torch.rand(90)  # the loss of each token
    mine = short if rank == 0 else long

    mean_of_means = mine.mean()
    dist.all_reduce(mean_of_means)
    mean_of_means /= world

    total, count = mine.sum(), torch.tensor(float(len(mine)))
    dist.all_reduce(total)
    dist.all_reduce(count)
    if rank == 0:
        print(f"the mean of all tokens      {torch.cat([short, long]).mean():.4f}")
        print(f"mean of the ranks' means    {mean_of_means:.4f}")
        print(f"all losses / all tokens     {total / count:.4f}")
    dist.destroy_process_group()


print("You said:", my_guess)
told = launch(weighted)

# %% tags=["claim"]
means = {line.rpartition(" ")[0].strip(): float(line.split()[-1]) for line in told}
by_tokens, of_means, all_tokens = (means[name] for name in sorted(means))
assert by_tokens == all_tokens
assert of_means > all_tokens + 0.5

# %% [markdown]
# Rank 0's share is a half, and it should be a tenth. With a mean of means, each of rank 0's 10
# tokens weighs nine times as much as each of rank 1's 90. A mean of means is the mean only if all
# parts have the same size. The same happens with gradient accumulation, where micro-batches take
# the place of ranks. The fix is in the last line of the output: add up the losses of all tokens,
# and divide by the number of all tokens.
#
# ## 2. The same training on one process and on two
#
# `scripts/finetune.py` is notebook 00's training as a program. Its settings are those of TRL's
# `SFTConfig` and `ModelConfig`, and come from a file. This is the whole configuration:

# %%
config = root / "configs" / "finetune" / "yoda.yaml"
print(config.read_text())

# %% [markdown]
# `effective_batch_size` is the number of examples in one update, over all processes. With 8, one
# process accumulates four micro-batches of two examples, and each of two processes accumulates two.
# So the number of processes does not change the training.
#
# The next cell runs six steps three times: on one process, on two, and on two with the mean of
# means (`average_tokens_across_devices: false`). Everything runs on the CPU, also if you have a
# GPU, so that the runs differ in nothing else. This takes about two minutes.


# %%
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # so that processes do not share a core


def finetune(name, processes, *more):
    """The command that trains by the configuration, and its output folder."""
    out = work / name
    python = [sys.executable]
    if processes > 1:
        python += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
        ]
    command = [*python, "scripts/finetune.py", "--config", str(config), "--use_cpu", "true"]
    command += ["--model_name_or_path", str(root / "notebooks/models/SmolLM2-135M-Instruct")]
    command += ["--output_dir", str(out), "--max_steps", "6", "--save_steps", "2"]
    return [*command, "--logging_steps", "1", "--save_total_limit", "9", *more], out


def run(name, processes, *more):
    """Train, and return the loss of each step."""
    command, out = finetune(name, processes, *more)
    done = subprocess.run(command, cwd=root, env=ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return losses_of(out)


def losses_of(out):
    """The losses in the last checkpoint of a training, by step."""
    last = max(out.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


curves = {
    "one process": run("one", 1),
    "two processes": run("two", 2),
    "two, mean of means": run("wrong", 2, "--average_tokens_across_devices", "false"),
}

# %% tags=["value:engines"]
losses = pd.DataFrame(curves).rename_axis("step")
apart = losses.sub(losses["one process"], axis=0).abs().max()
for name in ("two processes", "two, mean of means"):
    print(f"one process against {name}: at most {apart[name]:.1e}")
losses.map("{:.5f}".format)

# %% tags=["claim"]
assert apart["two processes"] < 1e-5
assert apart["two, mean of means"] > 1e-3

# %% [markdown]
# Two processes train as one does: the losses differ by rounding only (SmolLM2-135M, float32, six
# steps). With the mean of means, the losses differ from the first step on. Nothing looks wrong in
# this curve, so you would not notice the mistake. transformers divides by all tokens by default;
# keep it so.
#
# Losses are numbers on a screen. What counts is the adapter. Each run has saved one, in the folder
# `final`. Are the two the same?

# %%
one = load_file(work / "one" / "final" / "adapter_model.safetensors")
two = load_file(work / "two" / "final" / "adapter_model.safetensors")
print(f"{len(one)} tensors and {len(two)}; the same names: {one.keys() == two.keys()}")
print(f"largest number: {max(t.abs().max().item() for t in one.values()):.4f}")
difference = max((one[name] - two[name]).abs().max().item() for name in one)
print(f"largest difference: {difference:.7f}")

# %% tags=["claim"]
assert one.keys() == two.keys()
assert difference < 1e-3
assert all(tensor.numel() for tensor in two.values())

# %% [markdown]
# ## 3. A rank dies at four in the morning
#
# With many GPUs, something fails sooner or later. What happens to the other ranks? And is the work
# lost? We start the training on two processes again. As soon as the checkpoint of step 2 is
# complete, we kill one of them as the system would: with signal 9, which leaves the process no time
# to save anything.
#
# **Guess first:** what does the other rank do, and from which step can the training go on?

# %%
my_guess = None  # e.g. "it finishes alone"

# %%
shutil.rmtree(work / "killed", ignore_errors=True)
command, out = finetune("killed", 2)
with (work / "killed.log").open("w") as log:
    training = subprocess.Popen(command, cwd=root, env=ONE_THREAD, stdout=log, stderr=log)
    while training.poll() is None and not (out / "checkpoint-2/trainer_state.json").exists():
        time.sleep(0.1)
    psutil.Process(training.pid).children()[1].kill()
    training.wait()

print("You said:", my_guess)
print("exit status:", training.returncode)
said = (work / "killed.log").read_text()
print(next(line.split("] ")[-1] for line in said.splitlines() if "SIGKILL" in line).strip())
print("left behind:", sorted(path.name for path in out.iterdir()))

# %% tags=["claim"]
assert training.returncode == 1
assert not (out / "final").exists()

# %% [markdown]
# torchrun notices that one rank has died and ends the others: their next all-reduce would wait for
# it forever. So the other rank cannot finish alone, as you may have guessed. The exit status is not
# 0, so a scheduler knows that something went wrong.
#
# The same command goes on from the last *complete* checkpoint, here with step 3. We start it on one
# process this time, as if only one GPU was left:

# %%
curves["killed, then one process"] = run("killed", 1)
losses = pd.DataFrame(curves).rename_axis("step")
(losses["killed, then one process"] - losses["one process"]).map("{:.6f}".format).to_frame(
    "resumed − undisturbed"
)

# %% tags=["claim"]
gaps = losses.sub(losses["one process"], axis=0).abs().max()
assert gaps["killed, then one process"] < 1e-5
assert gaps["two, mean of means"] > 1e3 * gaps[["two processes", "killed, then one process"]].max()

# %% tags=["figure:09_engines"]
styles = {
    "two, mean of means": (RED, "s-"),
    "two processes": (BLUE, "o-"),
    "killed, then one process": (ORANGE, "x--"),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.plot(losses.index, losses["one process"], color=GREY, marker="o")
left.set_ylabel("training loss of one process")
for name, (colour, line) in styles.items():
    gap = (losses[name] - losses["one process"]).abs().clip(lower=1e-8)
    right.semilogy(losses.index, gap, line, color=colour, label=name)
right.set_ylabel("difference from it")
right.set_ylim(5e-9, 1)
right.legend(fontsize=9)
for axis in (left, right):
    axis.set_xlabel("step")
    axis.set_xticks(losses.index)
plt.show()

# %% [markdown]
# On the left is the training of one process, and on the right how far the others are from it, on a
# logarithmic axis. Two of them differ by rounding (a difference below 1e-8 is drawn at 1e-8). The
# resumed training read the same examples in the same order, with the optimizer's states from the
# checkpoint. It worked on another number of processes because `effective_batch_size` stayed the
# same. The mean of means is thousands of times as far away.
#
# Machines that are rented cheaply (*spot*) are taken away with a warning: SIGTERM, and then some
# seconds. The script saves the step that it is in, and ends with status 143, so that a scheduler
# starts it again.
#
# ## 4. Sharding: a share of the model on each GPU
#
# With data parallel, each GPU holds everything: weights, gradients and optimizer states. If one
# copy does not fit on one GPU, eight copies do not fit on eight. **Sharding** leaves on each rank
# only a share, a *shard*, of these tensors. Before a layer computes, the ranks send each other its
# shards (*all-gather*), and after it they throw the whole layer away. PyTorch's FSDP2 and
# DeepSpeed's ZeRO do this. They cost messages and save memory.
#
# Here FSDP2 shards a small model between two ranks:


# %%
def sharded():
    """What a rank has of a model after FSDP2, and what it would save."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    world = dist.get_world_size()
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
    for part in (*model, model):  # each layer is a unit that is gathered and released
        fully_shard(part, mesh=init_device_mesh("cpu", (world,)))

    def numbers(tensors):
        return sum(getattr(tensor, "to_local", lambda t=tensor: t)().numel() for tensor in tensors)

    whole = sum(weight.numel() for weight in model.parameters())
    print(f"{numbers(model.parameters()):,} of {whole:,} numbers are here")
    print(f"state_dict() has {numbers(model.state_dict().values()):,} of them")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    full = get_model_state_dict(model, options=options)
    print(f"the gathered state has {numbers(full.values()):,}")
    dist.destroy_process_group()


told = launch(sharded)

# %% tags=["claim"]
assert [line.split()[-1] for line in told if "gathered" in line] == ["16,640", "0"]
assert all("8,320 of" in line for line in told if "are here" in line)

# %% [markdown]
# Each rank has half of the numbers, and so does its `state_dict()`. **A rank that saves its own
# `state_dict()` saves half a model.** To save all of it, the ranks gather the weights on rank 0.
# The others then have *nothing*: if the wrong rank writes the file, it is empty. This is the empty
# file that Ines fears. Our script looks into the file before it calls it `final`.
#
# ### What it saves
#
# How much memory does each GPU need? The predictor of notebook 05 runs PyTorch's own DDP and FSDP2
# without GPUs, in a process group that sends nothing. We train *all* weights of Llama-3.1-8B in
# bfloat16, one text of 2,048 tokens on each GPU.
#
# **Guess first:** one GPU alone needs about 80 GB. How many GB does each of eight need with data
# parallel, and how many with sharding?

# %%
my_guess = None  # e.g. {"ddp": 40, "fsdp2": 40}

# %%
from course_utils.memory import Setup, predict, usable_bytes

eight_b = Setup(
    "meta-llama/Llama-3.1-8B",
    dtype="bfloat16",
    mixed_precision="no",
    optimizer="adamw_torch",
    batch_size=1,
    seq_len=2048,
)
engines = {
    "1 GPU": {},
    "8 GPUs, DDP": {"devices": 8, "strategy": "ddp"},
    "2 GPUs, FSDP2": {"devices": 2, "strategy": "fsdp2"},
    "4 GPUs, FSDP2": {"devices": 4, "strategy": "fsdp2"},
    "8 GPUs, FSDP2": {"devices": 8, "strategy": "fsdp2"},
    "8 GPUs, FSDP2, offload": {"devices": 8, "strategy": "fsdp2", "offload": "all"},
}
found = {name: predict(eight_b.replace(**how), "h100") for name, how in engines.items()}
per_rank = pd.DataFrame({name: each.at_peak for name, each in found.items()}).T / 1000

# %% tags=["figure:09_per_rank"]
figure, axis = plt.subplots(figsize=(8, 3.4))
left = pd.Series(0.0, index=per_rank.index)
for kind, colour in MEMORY_COLOURS.items():
    if kind in per_rank:
        axis.barh(per_rank.index, per_rank[kind], left=left, color=colour, label=kind)
        left += per_rank[kind].fillna(0)
for place, total in enumerate(left):
    axis.text(total + 1, place, f"{total:.0f}", va="center")
limit = usable_bytes("h100") / 1e9
axis.axvline(limit, color=RED, linewidth=1, linestyle="--")
axis.text(limit, -0.7, "what an H100 has for it", color=RED, fontsize=9, ha="center")
axis.invert_yaxis()
axis.set_xlim(0, 1.1 * left.max())
axis.set_xlabel("allocated at the peak, on each GPU (GB = 10⁹ bytes)")
axis.grid(axis="x")
axis.legend(fontsize=9)
plt.show()

print("You said:", my_guess)

# %% tags=["value:per-rank"]
table = pd.DataFrame(
    {
        "peak (GB)": {name: each.peak_allocated_mb / 1000 for name, each in found.items()},
        "fits": {name: each.peak_reserved_mb / 1000 < limit for name, each in found.items()},
    }
)
table.round(1)

# %% tags=["claim"]
peak = table["peak (GB)"]
told = {"1 GPU": "80", "8 GPUs, DDP": "96", "2 GPUs, FSDP2": "40", "4 GPUs, FSDP2": "20"}
assert {name: f"{peak[name]:.0f}" for name in told} == told
assert f"{peak['8 GPUs, FSDP2']:.1f}" == "11.5"
assert abs(peak["8 GPUs, DDP"] - peak["1 GPU"] - 16) < 0.2
highest = {name: max(each.phases, key=each.phases.get) for name, each in found.items()}
assert set(list(highest.values())[:4]) == {"optimizer"}
assert highest["8 GPUs, FSDP2"] == "backward"
assert not table.loc["1 GPU", "fits"]

# %% [markdown]
# With DDP each GPU needs *more* than one GPU alone: 96 GB instead of 80. It is tempting to divide
# by eight, but nothing is divided except the examples. And DDP copies the gradients into *buckets*,
# large pieces which are sent while the backward pass still runs. This second copy takes 16 GB.
#
# With FSDP2, two GPUs need half each, and four need a quarter. With eight it is 11.5 GB and not 10,
# because the peak has moved. In the rows above, the peak is in the optimizer's step, where Adam
# makes a temporary copy of all that it updates (drawn with the activations). With eight GPUs it is
# in the backward pass, where the gathered layers and the activations count, and these do not
# shrink. With *offload* the shards wait in the CPU's memory, and each step moves them to the GPU
# and back. This is slow.
#
# On one GPU the training just fails to fit: 80.4 GB would be allocated, and PyTorch has to reserve
# more than that, because of gaps.
#
# Can you trust the prediction? A team at IBM has published measurements of trainings on two A100
# (the repository [fms-acceleration](https://github.com/foundation-model-stack/fms-acceleration)).
# The next cell compares our predictions for the same trainings with these measurements.

# %%
replayed = pd.read_csv(root / "benchmarks" / "results" / "replay_ranks.csv")
how = pd.json_normalize(replayed["settings"].map(json.loads).tolist())
kind = how["quantization"].map(lambda bits: "QLoRA" if isinstance(bits, str) else "LoRA")
replayed = pd.DataFrame(
    {
        "model": replayed["model"].replace({"a granite": "PowerLM-3b"}).str.split("/").str[-1],
        "trained": kind.where(how["lora"], "all weights"),
        "batch of each GPU": how["batch_size"],
        "measured (GB)": replayed["measured_allocated_mb"] / 1000,
        "predicted (GB)": replayed["predicted_allocated_mb"] / 1000,
        "error (%)": replayed["allocated_error_percent"],
    }
)[how["devices"] == 2]
text_table(replayed.round({"measured (GB)": 1, "predicted (GB)": 1, "error (%)": 2}))

# %% tags=["claim"]
error = replayed["error (%)"].abs()
adapters = (replayed["trained"] != "all weights") & replayed["model"].str.startswith("Mistral")
assert len(replayed) == 12
assert error[replayed["trained"] == "all weights"].max() < 0.1
assert error[~adapters].max() < 0.6
assert error[adapters].between(6.9, 9.4).all()

# %% [markdown]
# Where all weights are trained, the prediction is within 0.1%. For PowerLM-3b with an adapter it is
# within 0.6%. For Mistral-7B with an adapter it is 7 to 9% too low, and we have not found out why.
# The measurements are of FSDP's first version, and we predict the second.
#
# ## 5. Which engine, and which file
#
# An *engine* is whatever starts the processes and divides the work. Ours are files in
# `configs/accelerate`. The training's own file stays the same:
#
# ```bash
# accelerate launch --config_file configs/accelerate/fsdp2_full.yaml --num_processes 8 \
#     scripts/finetune.py --config configs/finetune/yoda.yaml
# ```
#
# | engine | each GPU holds | take it if | file |
# |---|---|---|---|
# | one process | everything | it fits, and you can wait | `one.yaml` |
# | DDP | everything | it fits, and you cannot wait | `ddp.yaml` |
# | ZeRO-1, ZeRO-2 | all weights, a share of the states (and gradients) | only the states do not fit | `zero1.yaml`, `zero2.yaml` |
# | FSDP2, ZeRO-3 | a share of everything | the model does not fit on one GPU | `fsdp2_full.yaml`, `zero3.yaml` |
# | FSDP2 and QLoRA | a share of 4-bit weights, an adapter | the model does not fit, and an adapter is enough | `fsdp2_qlora.yaml` |
# | offload | the rest waits in the CPU's memory | nothing else fits, and time does not matter | `zero3_offload.yaml` |
# | context parallel | a part of each text | one text does not fit | `context_parallel.yaml` |
#
# `configs/README.md` says which of these we have run and which are only checked as files: DDP and
# FSDP2 ran on two CPU processes, the others have not run here. Files for Slurm, SkyPilot and
# Kubeflow are beside them.
#
# On a CPU, one launcher has a trap. We ask for two processes:


# %%
def world():
    """How many are we?"""
    from accelerate import PartialState

    state = PartialState(cpu=True)
    print(f"{state.process_index} of {state.num_processes}")


script = work / "world.py"
script.write_text(f"{inspect.getsource(world)}\n\nworld()\n")
accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
done = subprocess.run([*accelerate, str(script)], capture_output=True, text=True)
print("accelerate launch --cpu --num_processes 2:", done.stdout.strip())
print("torchrun --nproc_per_node 2:")
told = launch(world)

# %% tags=["claim"]
assert done.stdout.strip() == "0 of 1"
assert told == ["rank 0: 0 of 2", "rank 1: 1 of 2"]

# %% [markdown]
# `accelerate launch --cpu --num_processes 2` starts *one* process, and does not say so. So print
# the world size in the first line of your log, and compare it with the number of GPUs that you pay
# for. torchrun starts two.
#
# ## 6. What breaks, and how you see it
#
# The most common failure on several GPUs is not an error. It is silence: all ranks wait. It happens
# when the ranks do not call the same operations in the same order. In the next cell, rank 0 has
# three batches and rank 1 only two. We set the time limit to five seconds; NCCL's own is ten
# minutes.


# %%
def uneven():
    """Rank 0 does one step more than rank 1."""
    import time
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=5))
    rank = dist.get_rank()
    for step in range(3 if rank == 0 else 2):
        print(f"step {step + 1}", flush=True)
        dist.all_reduce(torch.ones(1))
    print("done", flush=True)
    time.sleep(7)  # rank 1 evaluates, or writes a file


start = time.monotonic()
told = launch(uneven)
print(f"after {time.monotonic() - start:.0f} s")

# %% tags=["claim"]
assert "rank 1: done" in told
assert "rank 0: done" not in told

# %% [markdown]
# Rank 0 printed that it begins step 3, and never ended this step. (The time limit is five of the 19
# seconds. We expect that most of the others go into starting the two processes.) The error names a
# time limit, and not the cause, which is on the *other* rank. So look for the first rank whose log
# differs from the others. Trainers avoid this case: they give each rank the same number of batches,
# and repeat or drop examples for it.
#
# | what you see | what it often is | where to look |
# |---|---|---|
# | nothing, for minutes; GPUs at 100% | ranks wait for each other | the last line of *each* rank's log; `TORCH_NCCL_TRACE_BUFFER_SIZE` |
# | another loss curve than on one GPU | a mean of means, or another effective batch size | section 1 |
# | it takes twice as long as planned | fewer processes than you asked for | the world size in the log |
# | out of memory at the end only | the whole model is gathered for saving | save shards, merge them later |
# | an adapter of a few KB | saved by a rank without weights | the number of tensors in the file |
# | `address already in use` | another training on this machine | `torchrun --standalone` takes a free port |
#
# ## 7. On paper: 70 and 405 billion parameters
#
# Before you rent GPUs, compute what the training will need. Three numbers decide.
#
# - **Memory.** With all weights trained by Adam in bfloat16: 2 bytes for the weight, 2 for the
#   gradient, 4 for the states, that is 8 bytes a parameter, divided by the number of GPUs. (With
#   float32 copies of the weights it is 16.) The activations come on top.
# - **Messages.** In each step, FSDP2 gathers the weights twice and scatters the gradients once. So
#   a GPU receives and sends about 3 times the model's bytes; with DDP it is twice the gradients'
#   bytes.
# - **Work.** A step takes about 6 operations for each parameter and token, and 8 with gradient
#   checkpointing.

# %%
BYTES = {"NVLink (H100)": 450e9, "InfiniBand 400 Gbit/s": 50e9, "Ethernet 100 Gbit/s": 12.5e9}
PEAK, UTILISATION, PRICE = (
    989e12,
    0.4,
    2.5,
)  # H100, dense bfloat16; a good share; $ an hour, assumed
TOKENS = 8192  # of each GPU, in each step


def on_paper(parameters, gpus):
    """What one training step of all weights needs on each of so many H100."""
    compute = 8 * parameters * TOKENS / (PEAK * UTILISATION)
    moved = 3 * 2 * parameters * (gpus - 1) / gpus
    row = {"GPUs": gpus, "GB of weights and states": 8 * parameters / gpus / 1e9}
    row |= {"computing (s)": compute, "GB sent": moved / 1e9}
    row |= {f"sending, {name} (s)": moved / speed for name, speed in BYTES.items()}
    row["$ per million tokens"] = compute * PRICE / 3600 * 1e6 / TOKENS
    return row


sizes = {"8B": 8.03e9, "70B": 70.6e9, "405B": 405.9e9}
plans = [("8B", 8), ("70B", 16), ("70B", 64), ("405B", 64), ("405B", 256)]
paper = pd.DataFrame({f"{name} on {n}": on_paper(sizes[name], n) for name, n in plans}).T
paper.map("{:,.1f}".format)

# %% tags=["claim"]
sent = {name: f"sending, {name} (s)" for name in BYTES}
row = paper.loc["70B on 16"]
columns = ["GB of weights and states", "computing (s)", *sent.values()]
assert [f"{row[name]:.1f}" for name in columns] == ["35.3", "11.7", "0.9", "7.9", "31.8"]
assert round(paper.loc["405B on 64", "GB of weights and states"]) == 51
assert paper.loc["70B on 16"].iloc[-1] == paper.loc["70B on 64"].iloc[-1]

# %% [markdown]
# Read one row from left to right. On 16 GPUs, 70 billion parameters take 35 GB of each GPU, so
# there is room for activations. A step computes for 11.7 seconds. Its messages take 0.9 seconds
# over NVLink, but 31.8 over the slowest network, where the GPUs would wait most of the time. For
# this reason machines with eight GPUs on NVLink are joined by InfiniBand, with a connection for
# each GPU. 405 billion parameters need about 64 GPUs: 51 GB on each.
#
# The price does not depend on the number of GPUs here, because we assumed that all of them are
# equally busy. Waiting makes it higher.
#
# Nothing in this table is measured. The speeds are those of NVIDIA's data sheet for the H100 SXM.
# The report on Llama 3 gives 38 to 43% of the peak, so we took 40%. The price of an hour is an
# assumption. Put in your own.
#
# An adapter needs far fewer messages with DDP, because only the adapter's gradients are averaged.
# With FSDP2, the frozen weights still have to be gathered.
#
# ## Take away
#
# - Data parallel training is an all-reduce of gradients. Weighted by tokens, it equals one process
#   (section 1). With a mean of means it is another training, and nothing warns you.
# - Prove it before you scale: six steps on one process and on two, at the same effective batch
#   size, gave the same losses to 1e-5 and the same adapter (section 2; SmolLM2-135M, float32, CPU).
# - A killed training went on from its last complete checkpoint, on another number of processes
#   (section 3).
# - Sharding leaves each rank a share. So a file saved by one rank alone holds only a part of the
#   model, or nothing (section 4). Look into the file.
# - Print the world size (section 5). When all is silent, compare the ranks' logs (section 6).
#
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** You move a training from one GPU to four, and change nothing in its settings:
# `per_device_train_batch_size=4`, `gradient_accumulation_steps=8`. What changes?
#
# - **A** Nothing: a batch is divided among the GPUs.
# - **B** An update sees 128 examples instead of 32.
# - **C** An update sees 8 examples instead of 32.
# - **D** The learning rate is divided by four.
#
# **b.** A model needs 84 GB for its training. You have eight GPUs with 80 GB each, and use DDP.
#
# - **A** It fits easily: each GPU holds about 11 GB.
# - **B** It fits if the batch is divided by eight.
# - **C** It does not fit: each GPU holds all of the model.
# - **D** It does not fit, because gradients are kept eight times.
#
# **c.** The loss curve on two GPUs differs a little from that on one GPU, from the first step on.
# The effective batch size is the same. What do you check first?
#
# - **A** Whether the loss is divided by the tokens of all ranks.
# - **B** Whether one of the GPUs is slower than the other.
# - **C** Whether the learning rate has to be doubled.
# - **D** Nothing: rounding explains it.
#
# **d.** After a sharded training, the adapter's file has the right names and shapes of zero. Why?
#
# - **A** The learning rate was 0, so nothing was learned.
# - **B** Adapters cannot be sharded.
# - **C** The file was read before it was complete.
# - **D** A rank without the gathered weights has written it.

# %%
from course_utils.exercises import check, quiz

quiz("09", a="...", b="...", c="...", d="...")

# %% [markdown]
# **09.1 · The same training.** Write `accumulation(effective, per_device, processes)`: how many
# micro-batches each process has to accumulate, so that an update sees `effective` examples. If that
# is not possible with whole batches, raise a `ValueError` that names a possible effective batch
# size. In section 2, what does it return for one process and for two?


# %% tags=["exercise"]
def accumulation(effective, per_device, processes):
    """Micro-batches of each process in one update."""
    ### BEGIN SOLUTION
    together = per_device * processes
    if effective < together or effective % together:
        possible = max(1, effective // together) * together
        raise ValueError(f"{effective} examples cannot be divided; {possible} can be.")
    return effective // together
    ### END SOLUTION


# %%
check("09.1", accumulation)

# %% [markdown]
# **09.2 · Right means.** Each rank has the gradient of the *mean* loss over its own tokens. Write
# `combined(gradients, tokens)`: `gradients` is a list of tensors, one of each rank, and `tokens`
# says over how many tokens each was taken. Return the gradient of the mean loss over all tokens. A
# rank may have no token at all; its gradient is then not a number.


# %% tags=["exercise"]
def combined(gradients, tokens):
    """The gradient of the mean over the tokens of all ranks."""
    ### BEGIN SOLUTION
    pairs = [(gradient, count) for gradient, count in zip(gradients, tokens, strict=True) if count]
    return sum(gradient * count for gradient, count in pairs) / sum(tokens)
    ### END SOLUTION


# %%
check("09.2", combined)

# %% [markdown]
# **09.3 · Alone: who holds what?** FSDP2 shards each tensor along its first dimension. It cuts the
# rows into pieces of equal size, rounded up; the last ranks may get fewer rows, or none. Write
# `shards(rows, world)`: a list with the number of rows of each rank. Then explain: for a tensor of
# 9 rows on 8 GPUs, how much memory is used in vain, if each rank reserves room for the largest
# shard?


# %% tags=["exercise"]
def shards(rows, world):
    """How many rows of a tensor each rank holds."""
    ### BEGIN SOLUTION
    each = -(-rows // world)  # rounded up
    return [max(0, min(each, rows - rank * each)) for rank in range(world)]
    ### END SOLUTION


# %%
check("09.3", shards)

# %% [markdown]
# Solutions: `notebooks/solutions/09_any_engine.py`.
#
# ## To read
#
# - Li and others, [PyTorch Distributed](https://arxiv.org/abs/2006.15704): how DDP hides its
#   messages.
# - Rajbhandari and others, [ZeRO](https://arxiv.org/abs/1910.02054), and Zhao and others, [PyTorch
#   FSDP](https://arxiv.org/abs/2304.11277): sharding.
# - Grattafiori and others, [The Llama 3 Herd of Models](https://arxiv.org/abs/2407.21783): section
#   3.3 on training with 16,384 GPUs, and on what failed.
# - accelerate's [guide to FSDP](https://huggingface.co/docs/accelerate/usage_guides/fsdp) and
#   torchrun's [manual](https://docs.pytorch.org/docs/stable/elastic/run.html).
# - `configs/README.md`: all engines of the course, and what was checked of each.
# - The course's words: [glossary](../docs/glossary.md).
