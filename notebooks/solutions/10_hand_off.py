# %% [markdown]
# # 10 · The hand-off
#
# **You will learn** to bring a tuned model to a server, and to prove at each step that it is still
# the same model: merged, converted to GGUF, rounded to 8 and 4 bits, and served by llama.cpp. You
# will see what the usual mistakes look like from outside, and how to name them.
#
# **You need** notebooks 00 (the training that we run), 01 (templates) and 02 (merging).
#
# **It takes** about 28 minutes of reading and trying. The cells themselves run in about six
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# Film night is on Friday. Ines has tuned a model to talk like Yoda, with notebook 00, and it works
# in her notebook. Now her friends want to use it, so it must run on a server. She converts it,
# starts the server, and asks for one sentence. The reply is plain English. Has the model forgotten
# what it learned?
#
# Almost never. Between training and serving, a model passes through many hands: it is merged,
# converted, rounded, wrapped in a template, and stopped at some token. Each of these steps can
# change it, and none of them gives an error. So in this notebook you compare: after each step, you
# put the same prompts to the model before the step and to the model after it.
#
# The next cell hides messages that the libraries print while they work.

# %%
import logging
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import openai
import pandas as pd
import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from course_utils import describe, handoff
from course_utils.data import folder
from course_utils.display import BLUE, GREY, text_table, use_style

transformers.utils.logging.disable_progress_bar()
use_style()
print(describe())
root = folder().parent  # the course's folder
LOCAL = root / "notebooks/models/SmolLM2-135M-Instruct"
# The converter needs a folder, so we fetch the model where the set-up has not.
MODEL = str(LOCAL) if LOCAL.exists() else snapshot_download("HuggingFaceTB/SmolLM2-135M-Instruct")
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. Something to hand off
#
# First we need a tuned model. `scripts/finetune.py` of notebook 09 trains it, with notebook 00's
# settings and 20 steps. It also keeps the adapter of step 10, which we will need in section 7.

# %%
config = root / "configs" / "finetune" / "yoda.yaml"
command = [sys.executable, "scripts/finetune.py", "--config", str(config), "--use_cpu", "true"]
command += ["--model_name_or_path", MODEL, "--output_dir", str(work / "yoda")]
command += ["--max_steps", "20", "--per_device_train_batch_size", "8", "--save_steps", "10"]
done = subprocess.run(command, cwd=root, capture_output=True, text=True)
if done.returncode:
    raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
adapter = work / "yoda" / "final"
state = json.loads((work / "yoda" / "checkpoint-20" / "trainer_state.json").read_text())
losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
print("loss:", *[f"{float(loss):.2f}" for loss in losses])

# %% [markdown]
# Now the base model and the adapter, in the precision that they were trained in. From here on, this
# model is our **reference**: the model as it should be.
#
# `handoff.Reference` asks it 16 sentences whose words it has never seen, and records three things:
# the tokens of each prompt, the greedy reply, and the probabilities of the next token at each
# place of the right answer.

# %%
tokenizer = AutoTokenizer.from_pretrained(adapter)
base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
tuned = PeftModel.from_pretrained(base, adapter)

SYSTEM = {"role": "system", "content": "Say it as Yoda would."}
rows = [json.loads(line) for line in (root / "datasets/yoda/unseen.jsonl").open()][:16]
prompts = [[SYSTEM, {"role": "user", "content": row["sentence"]}] for row in rows]
answers = [row["yoda"] for row in rows]

reference = handoff.Reference(tuned, tokenizer, prompts, answers)
right = sum(reply == answer for reply, answer in zip(reference.replies, answers, strict=True))
print(f"{right} of {len(rows)} replies are right.")
print(rows[0]["sentence"], "→", reference.replies[0])

# %% tags=["claim"]
assert right >= 5

# %% [markdown]
# After so few steps not every reply is right. That does not matter here. A hand-off must not make
# the model better or worse. It must keep it *the same*, mistakes included.
#
# ## 2. Adapter or merged model?
#
# You can hand off two things: the adapter, which needs its base model beside it, or the merged
# model, which stands alone. Notebook 02 merged in several ways and looked at the loss. Here are four
# ways, with two new questions: does the merged model reply the same, and how far apart are the
# probabilities?
#
# For the distance we use the **Kullback-Leibler divergence** (KL). It compares two sets of
# probabilities for the next token. It is 0 if both are equal, and it grows as the second one moves
# away from the first.
#
# **Guess first:** how many of the 16 replies stay exactly the same if you merge in float32, if you
# save the merged model in bfloat16, if you merge into a base that was in 4 bits and is expanded
# again, and if you merge into the 4 bits themselves?

# %%
my_guess = None  # e.g. [8, 8, 8, 8]


# %%
def merged_into(model):
    """The adapter added into this model's own matrices."""
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


merged = merged_into(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32))
merged.save_pretrained(work / "merged")
tokenizer.save_pretrained(work / "merged")


def in_4_bits():
    """The base model in nf4."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=nf4, dtype=torch.float32)


ways = {
    "merged, float32": merged,
    "saved in bfloat16": AutoModelForCausalLM.from_pretrained(
        work / "merged", dtype=torch.bfloat16
    ),
    "merged into a base from 4 bits": merged_into(in_4_bits().dequantize(dtype=torch.float32)),
    "merged into 4 bits": merged_into(in_4_bits()),
}
compared = {
    name: reference.compare(handoff.Local(model, tokenizer, name)) for name, model in ways.items()
}
print("You said:", my_guess)


# %% tags=["value:merging"]
def as_table(compared):
    """The comparisons, one a row."""
    return pd.DataFrame(
        {
            name: {
                "same replies": f"{found.same_replies} of {found.prompts}",
                "KL (nats a token)": f"{found.kl:.5f}",
                "loss": f"{found.loss + found.loss_change.value:.3f}",
                "change of the loss, 95% interval": f"{found.loss_change.value:+.4f} "
                f"({found.loss_change.low:+.4f} to {found.loss_change.high:+.4f})",
                "verdict": found.verdict,
            }
            for name, found in compared.items()
        }
    ).T


as_table(compared)

# %%
for name in list(ways)[2:]:
    print(f"{name}: {compared[name].cause}")
    for row in compared[name].rows[:2]:
        print("   ", repr(row["other"])[:60])

# %% tags=["claim"]
plain, bf16, expanded, swallowed = (compared[name] for name in ways)
assert plain.same_replies == 16
assert plain.verdict == "the same model"
assert bf16.same_replies >= 13
assert bf16.kl < 0.01
assert expanded.kl > 20 * bf16.kl
assert "nf4" in expanded.cause
assert swallowed.kl > 5 * expanded.kl
assert swallowed.same_replies <= 3

# %% [markdown]
# Merged in float32, it is the same model. In bfloat16 each weight loses some digits, and a reply
# can change where two words were about equally likely.
#
# The third row merges exactly, but into another base: one whose weights were rounded to 4 bits.
# `compare` names this cause. It has tried the same fault on the reference, and found the same
# probabilities. (If you had *trained* beside the 4-bit base, this way would be the right one.)
#
# In the last row the adapter is nearly gone. Every weight of the base stands exactly on one of
# the 16 levels of its block. The adapter moves it a little, and rounding moves it back. So a merge
# into 4 bits gives no error and loses most of what was learned. Most people guess that merging is
# either right or wrong. It is a matter of precision, and the KL measures it.
#
# So **merge in the precision of the training, and round once, at the end**.
#
# What do the two hand-offs weigh?


# %%
def megabytes(path):
    """The size of a file, or of the weights in a folder, in MB."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


print(f"adapter: {megabytes(adapter):.0f} MB   merged: {megabytes(work / 'merged'):.0f} MB")

# %% [markdown]
# Hand off the adapter if the server holds the base model anyway, for instance for several adapters
# (section 7). Hand off the merged model if it must run alone.
#
# ## 3. GGUF, the file that llama.cpp reads
#
# Laptops and small servers run models with **llama.cpp**, or with programs that are built on it,
# such as Ollama and LM Studio. It reads one file in the format **GGUF**. The file holds everything:
# weights, tokenizer, chat template and the EOS token. llama.cpp brings its own converter,
# `convert_hf_to_gguf.py`; `handoff.to_gguf` fetches it once, runs it, and checks the file:
#
# ```bash
# python convert_hf_to_gguf.py FOLDER --outtype f16 --outfile FILE.gguf
# ```
#
# The converter can write 16 and 8 bits. For 4 bits llama.cpp has a program of its own,
# `llama-quantize`. It is in no Python package, so `handoff.to_4_bits` does the simplest of its
# formats (Q4_0) with the package `gguf`: 32 weights share a scale, and each is rounded to one of
# 16 values.

# %%
files = {
    "GGUF, 16 bits": handoff.to_gguf(work / "merged", work / "yoda-f16.gguf", "f16"),
    "GGUF, 8 bits": handoff.to_gguf(work / "merged", work / "yoda-q8_0.gguf", "q8_0"),
}
files["GGUF, 4 bits"] = handoff.to_4_bits(files["GGUF, 16 bits"], work / "yoda-q4_0.gguf")
reader = handoff.check_gguf(files["GGUF, 16 bits"])
for name in ("general.architecture", "llama.rope.freq_base", "tokenizer.ggml.eos_token_id"):
    print(f"{name:28}", reader.fields[name].contents())
print({name: f"{megabytes(file):.0f} MB" for name, file in files.items()})

# %% tags=["claim"]
sizes = [megabytes(file) for file in files.values()]
assert sizes[0] > 1.8 * sizes[1] > 2.5 * sizes[2]

# %% [markdown]
# Three of the entries decide whether a model works at all, and you can read them before you serve:
# the architecture, the base frequency of the rotary embeddings, and the token that ends a reply.
#
# ## 4. Serve it, and compare
#
# `serve_gguf` starts llama.cpp's server (from the package xllamacpp) at an address that only this
# machine reaches. It speaks the same protocol as OpenAI's service, so any client of that service
# can talk to it. Here is a reply that arrives piece by piece, as in a chat program:

# %%
with handoff.serve_gguf(files["GGUF, 16 bits"]) as url:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="not needed on this machine")
    pieces = handoff.stream(client, model="yoda", messages=prompts[0], max_tokens=32, temperature=0)
    print(*pieces, sep=" | ")

# %% [markdown]
# If the connection breaks in the middle, `handoff.stream` asks again and leaves out what you have
# already got, so that nothing appears twice.
#
# Is it the same model? llama.cpp's server also tells how it cuts a prompt into tokens, and how
# probable it finds the next token. So we can compare as before.
#
# **Guess first:** the 8-bit file has half the size of the 16-bit file, and the 4-bit file a third.
# How many of the 16 replies stay the same with each?

# %%
my_guess = None  # e.g. [8, 8, 8]

# %%
for name, file in files.items():
    with handoff.serve_gguf(file) as url:
        compared[name] = reference.compare(handoff.Server(url, name))
print("You said:", my_guess)
print(compared["GGUF, 16 bits"])

# %% tags=["value:served"]
as_table({name: compared[name] for name in files})

# %% tags=["claim"]
sixteen, eight, four = (compared[name] for name in files)
assert sixteen.same_prompts == eight.same_prompts == four.same_prompts == 16
assert sixteen.same_replies >= 15
assert sixteen.verdict == "the same model"
assert sixteen.kl < eight.kl < four.kl
assert four.same_ends >= 14

# %% [markdown]
# The prompts have the same tokens in all three (16 of 16). That is the first thing to check, because
# a wrong template is the most common mistake. In 16 bits all replies are the reference's, and the KL
# is 0.00001 nats. In 8 bits three replies differ, and the KL is still only 0.0012. In 4 bits it is
# 0.11, and seven replies differ.
#
# Is the model worse for it? In 8 bits we cannot tell: the interval of the loss has zero in it. In 4
# bits the loss is higher by 0.13, and its interval (0.08 to 0.22) is above zero. This is the price
# of Q4_0 for a model of 135 million parameters. Better 4-bit formats and larger models lose less, as
# far as we know; we have not measured them here.
#
# ### A reply that hangs by a thread
#
# The course's chat model itself comes from a GGUF file in 4 bits (Q4_1), whose weights we expanded.
# llama.cpp can run that file as it is. So both run *exactly the same weights*. Ask both for the
# capital of France:

# %%
from course_utils.models import embedded_gguf

question = [[{"role": "user", "content": "What is the capital of France?"}]]
chat = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
asked = handoff.Reference(chat, AutoTokenizer.from_pretrained(MODEL), question, max_tokens=12)
with handoff.serve_gguf(embedded_gguf("smollm2-135m-instruct")) as url:
    server = handoff.Server(url, "llama.cpp")
    tie = asked.compare(server)
    there = server.positions(asked.given[0], asked.reply_ids[0][:1])[0]
print("transformers:", tie.rows[0]["reference"])
print("llama.cpp:   ", tie.rows[0]["other"])
firsts = {"The": None, "L": None}
for name, position in (("transformers", asked.positions[0][0]), ("llama.cpp", there)):
    chances = {
        tokenizer.decode([int(i)]): f"{np.exp(p):.1%}"
        for i, p in zip(position.ids[:3], position.logprobs[:3], strict=True)
    }
    print(f"{name:13} first token: {chances}")

# %% tags=["claim"]
assert tie.rows[0]["reference"].startswith("The capital of France is")
assert not tie.rows[0]["same"]
assert tie.near_ties == 1

# %% [markdown]
# The replies have nothing in common, and it is still the same model. Look at the first token: *The*
# has 15.5% in transformers and *L* 14.0%, and llama.cpp has 13.4% and 15.7%. With weights in 4 bits,
# llama.cpp also rounds the activations to 8 bits, because integers multiply faster. We take this
# small rounding for the reason: the same weights in a 16-bit file gave *The* here as well. Greedy
# decoding takes the likeliest token, and from there on the two replies are on different tracks.
#
# So **one different reply proves nothing**. Compare many prompts, and look at the probabilities.
# `compare` counts replies that part at such a *near tie* separately.

# %% [markdown]
# ## 5. Name the fault
#
# Back to Ines, whose server replied in plain English. We make the usual mistakes on purpose, one at
# a time, and let `compare` find out, with six of the prompts. It looks at the prompt's tokens first, then at where replies
# end. If both are as they should be, it tries known faults on the reference, and looks which of
# them brings about the same probabilities.

# %% tags=["value:faults"]
ALPACA = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}### assistant:\n"
few = handoff.Reference(tuned, tokenizer, prompts[:6], answers[:6])
sixteen_bits = files["GGUF, 16 bits"]
base_file = handoff.to_gguf(MODEL, work / "base-f16.gguf")
lora_file = handoff.lora_to_gguf(adapter, MODEL, work / "yoda-lora.gguf")


def served(file, **how):
    """Compare the reference with what a server makes of this file."""
    with handoff.serve_gguf(file, **how) as url:
        return few.compare(handoff.Server(url))


def ended_by(token):
    """The merged model, if it took another token for the one that ends a reply."""
    kept = merged.generation_config.eos_token_id
    merged.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(token)
    try:
        return few.compare(handoff.Local(merged, tokenizer, "merged"))
    finally:
        merged.generation_config.eos_token_id = kept


faults = {
    "another template": served(sixteen_bits, template=ALPACA),
    "BOS token twice": served(sixteen_bits, template="<|im_start|>" + tokenizer.chat_template),
    "another EOS token": ended_by("<|endoftext|>"),
    "the base without the adapter": served(base_file),
}
with handoff.serve_gguf(base_file, adapters=[lora_file]) as url:
    faults["adapter loaded, not asked for"] = few.compare(handoff.Server(url))
    faults["adapter twice"] = few.compare(handoff.Server(url, adapters={0: 2.0}))
    faults["nothing wrong"] = few.compare(handoff.Server(url, adapters={0: 1.0}))
text_table(
    pd.DataFrame(
        {
            "what we did": name,
            "same replies": f"{found.same_replies} of {found.prompts}",
            "what compare says": f"{found.verdict}: {found.cause}".rstrip(": "),
        }
        for name, found in faults.items()
    )
)

# %% tags=["claim"]
said = {name: found.cause for name, found in faults.items()}
assert "template" in said["another template"]
assert "BOS" in said["BOS token twice"]
assert "EOS" in said["another EOS token"]
assert "not applied" in said["the base without the adapter"]
assert "not applied" in said["adapter loaded, not asked for"]
assert "twice" in said["adapter twice"]
assert faults["nothing wrong"].verdict == "the same model"

# %% [markdown]
# Every fault gives replies that look like those of a bad model, and each has another cause. The
# most treacherous is the fifth: the adapter was loaded, and the log said so. But the server applies
# it only to requests that ask for it, and nobody asked. This is what happened to Ines.
#
# `compare` knows the faults that can be tried. For others it says "other weights", and you have to
# look for yourself: an adapter of another base model, for instance, or a file that somebody
# converted from another version.
#
# ## 6. Many users at once
#
# On Friday everybody will type at the same time. A server can answer several requests together: it
# computes the next token of all of them in one pass, and so reads the weights only once for eight
# requests. This is called *batching*.
#
# **Guess first:** 32 requests come at once. How many times as fast is a server that takes eight of
# them together, compared with one that takes them one by one?

# %%
my_guess = None  # e.g. 3

# %%
REQUESTS = [prompts[number % len(prompts)] for number in range(32)]


def load_test(parallel):
    """Send all requests at once; return the time of each, and of all, in seconds."""

    def ask(messages):
        start = time.perf_counter()
        reply = client.chat.completions.create(
            model="yoda", messages=messages, max_tokens=16, temperature=0
        )
        return time.perf_counter() - start, reply.usage.completion_tokens

    with handoff.serve_gguf(sixteen_bits, parallel=parallel, context=256) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        start = time.perf_counter()
        with ThreadPoolExecutor(len(REQUESTS)) as pool:
            seconds, tokens = zip(*pool.map(ask, REQUESTS), strict=True)
        return seconds, sum(tokens), time.perf_counter() - start


load = {parallel: load_test(parallel) for parallel in (1, 8)}
print("You said:", my_guess)

# %% tags=["figure:10_load"]
figure, axis = plt.subplots(figsize=(8, 3))
for (parallel, (seconds, _, _)), colour in zip(load.items(), (GREY, BLUE), strict=True):
    axis.step(
        sorted(seconds), range(1, len(seconds) + 1), color=colour, where="post", label=parallel
    )
axis.set_xlabel("seconds after all requests were sent")
axis.set_ylabel("requests answered")
axis.set_ylim(0, 33)
axis.legend(title="answered together", fontsize=9)
plt.show()

# %% tags=["value:load"]
pd.DataFrame(
    {
        f"{parallel} together": {
            "tokens a second": f"{tokens / whole:.0f}",
            "half of them answered after": f"{np.median(seconds):.1f} s",
            "95% of them answered after": f"{np.quantile(seconds, 0.95):.1f} s",
        }
        for parallel, (seconds, tokens, whole) in load.items()
    }
)

# %% tags=["claim"]
assert abs(load[8][1] - load[1][1]) <= 0.1 * load[1][1]

# %% [markdown]
# With eight together, the saved run wrote 96 tokens a second instead of 60: about one and a half
# times as many, on two cores. Most people guess much more. Reading the weights is only a part of
# the work, and on a CPU the arithmetic soon takes the larger one. (On a single core, eight together
# were no faster at all: 62 tokens a second and 63.) On a GPU we expect a far larger gain, because
# there the arithmetic is cheap.
#
# The curves show what a user feels. Together, the first answer comes later, because eight requests
# share the machine. The last one comes sooner: after 3.5 seconds instead of more than five.
#
# ## 7. Several adapters on one server
#
# Ines has trained on, and wants to try the new version on some friends before all of them get it.
# She need not start a second server. One base model in memory can serve many adapters, and each
# request says which of them it wants. Here are the adapter of step 10 and that of step 20:

# %%
early = handoff.lora_to_gguf(work / "yoda" / "checkpoint-10", MODEL, work / "early-lora.gguf")
with handoff.serve_gguf(base_file, adapters=[early, lora_file]) as url:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="not needed on this machine")
    for name, strengths in (
        ("no adapter", [0.0, 0.0]),
        ("step 10", [1.0, 0.0]),
        ("step 20", [0.0, 1.0]),
    ):
        which = [{"id": number, "scale": scale} for number, scale in enumerate(strengths)]
        said = []
        for messages in prompts:
            reply = client.chat.completions.create(
                model="yoda",
                messages=messages,
                max_tokens=32,
                temperature=0,
                extra_body={"lora": which, "cache_prompt": False},
            )
            said.append(reply.choices[0].message.content)
        right = sum(a == b for a, b in zip(said, answers, strict=True))
        print(f"{name:10}  {right:2} of {len(answers)} right; the first: {said[0]!r:.50}")
    last = reference.compare(handoff.Server(url, "step 20", adapters={0: 0.0, 1: 1.0}))
print(last)

# %% tags=["claim"]
assert last.verdict == "the same model"

# %% [markdown]
# Three versions, one server. What is `cache_prompt`? A server keeps the prompts that it has read, so
# that it need not read them again. In the next cell, three sentences are asked without an adapter,
# and then with it. We look at the first token of each reply, first with the kept prompts, and then
# with prompts that are read anew.


# %%
def first_token(messages, strength, keep):
    """The likeliest first tokens of a reply, and how many tokens of the prompt were kept ones."""
    reply = client.chat.completions.create(
        model="yoda",
        messages=messages,
        max_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        extra_body={"lora": [{"id": 0, "scale": strength}], "cache_prompt": keep},
    )
    listed = reply.choices[0].logprobs.content[0].top_logprobs
    chances = {entry.token: f"{np.exp(entry.logprob):.0%}" for entry in listed}
    return chances, reply.usage.prompt_tokens_details.cached_tokens


with handoff.serve_gguf(base_file, adapters=[lora_file]) as url:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="not needed on this machine")
    for messages in prompts[:3]:
        first_token(messages, 0.0, keep=True)
    kept = [first_token(messages, 1.0, keep=True) for messages in prompts[:3]]
    anew = [first_token(messages, 1.0, keep=False) for messages in prompts[:3]]
for (chances, tokens), (right_chances, _) in zip(kept, anew, strict=True):
    print(f"{tokens:2} tokens kept: {chances}   read anew: {right_chances}")

# %% tags=["claim"]
assert any(a != b for (a, _), (b, _) in zip(kept, anew, strict=True))

# %% [markdown]
# Where tokens were kept, the probabilities can be others. The server went on from a prompt that it
# had read *without* the adapter, so a part of the work is the base model's. No message says so. It
# is a known fault of llama.cpp ([issue 26207](https://github.com/ggml-org/llama.cpp/issues/26207)),
# still there in the version that we use. So with several adapters on one server, set `cache_prompt`
# to false, and compare again after each update of the server.
#
# An adapter in 16 bits is a file of 10 MB, and the base model is in memory once. vLLM does the same
# on GPUs: start it with `--enable-lora`, and give the adapter's name as the request's `model`.
#
# ## 8. What goes with the file
#
# A model without papers is hard to trust. A **model card** says what it was trained on, how, how
# well it does, and what you may do with it. Write it from the records of the run, not from memory:

# %%
from huggingface_hub import ModelCard, ModelCardData

from course_utils.scoring import bootstrap_interval

score = bootstrap_interval([float(a == b) for a, b in zip(reference.replies, answers, strict=True)])
settings = dict(
    line.split(": ", 1) for line in config.read_text().splitlines() if ": " in line[:40]
)
about = ModelCardData(
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
    library_name="peft",
    language="en",
    tags=["lora", "sft"],
)
card = ModelCard(
    f"""---
{about.to_yaml()}
---
# Sentences in Yoda's word order

An adapter for {about.base_model}. Give it the system prompt "{SYSTEM["content"]}" and a sentence.

- **Data**: {len(rows)} held-out sentences for the test, none of their words in the training; the
  training set is the course's own (`datasets/yoda`, made by a program).
- **Training**: 20 steps of 8 examples, LoRA r={settings["lora_r"]}, learning rate
  {float(settings["learning_rate"]):g}, seed {settings["seed"]}, float32.
- **Score**: {score.value:.0%} of the replies exactly right (95% interval {score.low:.0%} to
  {score.high:.0%}, n = {score.n}, one seed).
- **Made with**: transformers {transformers.__version__}, torch {torch.__version__.split("+")[0]}.
- **Limits**: short English statements only.
"""
)
card.save(work / "yoda" / "final" / "README.md")
print(card.text)

# %% tags=["claim"]
assert str(score.n) in card.text
assert ModelCard.load(work / "yoda" / "final" / "README.md").data.base_model == about.base_model

# %% [markdown]
# Then you can upload the folder to the Hugging Face hub. We only print what would go there. Look at
# the list before you upload anything: a folder of a training often holds files that nobody needs,
# such as `training_args.bin`, a *pickle*, which runs code when it is opened.

# %%
NAME = "your-name/yoda-adapter"
LEFT_OUT = ["*.bin", "optimizer.pt", "runs/*"]

for file in sorted(adapter.iterdir()):
    left_out = any(file.match(pattern) for pattern in LEFT_OUT)
    where = "stays here" if left_out else f"→ {NAME}/{file.name}"
    print(f"{file.name:28} {file.stat().st_size / 1e6:6.1f} MB  {where}")

# %% [markdown]
# The upload itself takes two lines. Run them in a terminal after `hf auth login`, and the key stays
# out of your notebook:
#
# ```python
# api = huggingface_hub.HfApi()
# api.create_repo(NAME, private=True, exist_ok=True)
# api.upload_folder(repo_id=NAME, folder_path=adapter, ignore_patterns=LEFT_OUT)
# ```
#
# Friends who use **Ollama** need a *Modelfile* beside the GGUF. It names the file, the template, the
# system prompt and the token that ends a reply. `handoff.modelfile` writes it from the tokenizer's
# own template. Then `ollama create yoda -f Modelfile` and `ollama run yoda` are all they type. We
# could not run Ollama here; a test only checks that the Modelfile's template gives the same prompt.

# %%
print(handoff.modelfile("yoda-q8_0.gguf", tokenizer, SYSTEM["content"]))

# %% [markdown]
# To show the model to a friend beside you, you need no program of your own. llama.cpp's server has a
# chat page: start it with a port that you choose, and open the address in a browser.
#
# ```python
# with handoff.serve_gguf("yoda-q8_0.gguf", port=8080) as url:
#     input(f"Open {url}, and press Enter here to stop.")
# ```
#
# Only your own machine can reach it. Before you open it to others, put a key and a proxy with
# encryption before it.
#
# ## Take away
#
# - Compare after each step of the hand-off: the prompt's tokens, the end of the reply, many greedy
#   replies, and the probabilities (SmolLM2-135M-Instruct with one adapter, 16 prompts, sections 2
#   to 5).
# - Merge in the precision of the training, and round once, at the end (section 2).
# - In 16 bits the served model is the same model. 8 bits moved the probabilities a little, and 4
#   bits many times as much (section 4).
# - One different reply can be a near tie. The probabilities tell (section 4).
# - An adapter that is loaded is not yet applied. Ask the server, not its log (section 5).
#
# ## Exercises
#
# **Quiz.** Four questions about the hand-off. Put a letter in place of each `"..."`, and run the
# cell.
#
# **a.** A served model gives 14 of 16 replies as before, and the KL is 0.0001 nats a token. What is
# likely?
#
# - **A** The adapter is applied with half its strength.
# - **B** The two replies parted at a near tie.
# - **C** The template has a BOS token too many.
# - **D** The model was rounded to 4 bits.
#
# **b.** The replies of the served model are right, and after each comes another question and another
# answer, up to the limit of tokens. What is wrong?
#
# - **A** The system prompt is missing.
# - **B** The adapter is added twice.
# - **C** The server does not know the EOS token that the model was trained with.
# - **D** The limit of tokens is too high.
#
# **c.** You tuned an adapter on a model in nf4. The server runs GGUF in 4 bits. What do you do?
#
# - **A** Dequantize the base, merge in 16 bits or more, convert to 16 bits, round to 4 bits once.
# - **B** Merge into the nf4 model, and convert that.
# - **C** Convert the nf4 model, and merge the adapter into the GGUF.
# - **D** It is impossible; train again without quantization.
#
# **d.** A colleague sends you a GGUF file from the internet. What can it do to you?
#
# - **A** Nothing: it holds numbers only.
# - **B** It is a pickle, and runs code when it is opened.
# - **C** It brings a compiled program, which llama.cpp starts.
# - **D** It brings a chat template, which is a program; it must run in a sandbox.

# %%
from course_utils.exercises import check, quiz

quiz("10", a="...", b="...", c="...", d="...")

# %% [markdown]
# **10.1 · How large will the file be?** In GGUF, a format stores blocks of 32 weights: f16 takes 64
# bytes a block, q8_0 takes 34 (a scale of 2 bytes, and a byte for each weight), q4_0 takes 18.
# Write `gguf_mb(matrices, embeddings, others, fmt)`: the MB (10⁶ bytes) of so many weights in
# matrices, in embeddings and in other tensors. `fmt` is `"f16"`, `"q8_0"` or `"q4_0"`. The other
# tensors always take 4 bytes a weight. With q4_0, the embeddings are in q8_0.


# %% tags=["exercise"]
def gguf_mb(matrices, embeddings, others, fmt):
    """The size of the weights in a GGUF file, in MB."""
    ### BEGIN SOLUTION
    block = {"f16": 64, "q8_0": 34, "q4_0": 18}
    for_embeddings = "q8_0" if fmt == "q4_0" else fmt
    size = matrices / 32 * block[fmt] + embeddings / 32 * block[for_embeddings] + 4 * others
    return size / 1e6
    ### END SOLUTION


# %%
check("10.1", gguf_mb)

# %% [markdown]
# **10.2 · Which fault is it?** Write `what_differs(mine, its, bos)`. `mine` and `its` are the tokens
# of the same conversation, in the reference and at the server. Return `"same"`, `"bos twice"` (the
# server puts one `bos` too many in front), `"bos missing"` (the reference begins with `bos`, and the
# server leaves it out), or `"other"`.


# %% tags=["exercise"]
def what_differs(mine, its, bos):
    """Name the difference between two lists of tokens."""
    ### BEGIN SOLUTION
    if its == mine:
        return "same"
    if its == [bos, *mine]:
        return "bos twice" if mine[:1] == [bos] else "other"
    if mine == [bos, *its]:
        return "bos missing"
    return "other"
    ### END SOLUTION


# %%
check("10.2", what_differs)

# %% [markdown]
# **10.3 · Alone: how far apart?** Write `divergence(p, q)` for two lists of probabilities of the same tokens:
# the sum of `p * log(p / q)`, in nats. Where `p` is 0, the term is 0. Where `q` is 0 and `p` is not,
# the result is infinite. Then find the mistake in the sentence "The KL from the server to the
# reference is the same as the other way round".


# %% tags=["exercise"]
def divergence(p, q):
    """The Kullback-Leibler divergence of q from p, in nats."""
    ### BEGIN SOLUTION
    import math

    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            if b == 0:
                return math.inf
            total += a * math.log(a / b)
    return total
    ### END SOLUTION


# %%
check("10.3", divergence)

# %% [markdown]
# Solutions: `notebooks/solutions/10_hand_off.py`.
#
# ## To read
#
# - [llama.cpp](https://github.com/ggml-org/llama.cpp): its server, its converters, `llama-quantize`.
# - [GGUF](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), the format.
# - [vLLM on serving LoRA adapters](https://docs.vllm.ai/en/latest/features/lora.html).
# - Mitchell and others, [Model cards for model reporting](https://arxiv.org/abs/1810.03993).
# - The course's words: [glossary](../docs/glossary.md).
