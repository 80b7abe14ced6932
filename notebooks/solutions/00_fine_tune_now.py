# %% [markdown]
# # 00 · Fine-tune a model, now
#
# **You will learn** to fine-tune a language model from start to finish with the libraries that
# everybody uses: datasets, transformers, peft and trl.
#
# **You need** Python. You do not need a GPU, an account or any earlier notebook.
#
# **It takes** about 15 minutes of reading and trying. The cells themselves run in about two minutes
# on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## A model that talks like Yoda
#
# Imagine that you plan a film night, and you want a small bot for it. Somebody types a sentence,
# and the bot says it the way Yoda would: *"She washed the buttons."* becomes *"The buttons she
# washed."* You have a small chat model: a language model that was trained to answer messages, and
# that runs on your laptop. You ask it to speak like Yoda, and it fails, as you will see in a
# minute. So you show it examples until it has learned the job. Training an already trained model
# further, on your own examples, is called **fine-tuning**.
#
# You will fine-tune the model with the public libraries only, so you can copy every line into your
# own project. The data, the model and the training take about forty lines (sections 1, 2 and 4). Do
# not worry if a line stays unclear: the other notebooks of this course explain these lines one by
# one, and the table at the end tells you where.
#
# The next cell hides messages that the libraries print while they work. The cell after it imports
# the libraries. Each has its own job: **PyTorch** computes, on a CPU or a GPU; **transformers**
# loads models and tokenizers; **peft** adds adapters to a model; **datasets** reads data; **trl**
# trains.

# %%
import logging
import warnings

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")

# %%
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import torch
import transformers
from datasets import load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()

# %% [markdown]
# ## 1. The data
#
# The dataset is in the course's folder. It is a JSONL file: each line holds one example. An example
# has a sentence and the same sentence in Yoda's word order. (Its third field, `yoda_extra`, is for
# a later notebook.) There are 3,000 examples to train on.
#
# A second file holds 200 examples that we keep for the test. Their nouns, verbs and adjectives
# never occur in the training examples; only words such as *the*, *my* or *has* occur in both. So a
# right answer on the test shows that the model has learned Yoda's word order. It cannot have
# memorised the sentence.

# %%
files = {"train": "../datasets/yoda/train.jsonl", "test": "../datasets/yoda/unseen.jsonl"}
data = load_dataset("json", data_files=files)
data["train"][0]

# %% [markdown]
# A chat model reads conversations, so we turn each example into a conversation. The `prompt` is
# what the model is given: a *system prompt*, which names the job, and the user's message. The
# `completion` is what the model should answer. `SFTTrainer`, which we use in section 4, knows these
# two names and trains the model on the completion only.


# %%
def as_chat(row):
    """Turn an example of the dataset into a conversation."""
    system = {"role": "system", "content": "Say it as Yoda would."}
    user = {"role": "user", "content": row["sentence"]}
    return {
        "prompt": [system, user],
        "completion": [{"role": "assistant", "content": row["yoda"]}],
    }


chats = data.map(as_chat, remove_columns=data["train"].column_names)
chats["train"][0]

# %% [markdown]
# ## 2. The model
#
# `from_pretrained` loads a model from a folder or from the Hugging Face hub. We call it twice: once
# for the model, and once for its *tokenizer*, which turns text into numbers (tokens) and back. The
# set-up of the course has put a small chat model into the folder `models/`: SmolLM2-135M-Instruct,
# with 135 million parameters. Where this folder is missing, as on Colab, the same model comes from
# the hub.
#
# To use a larger model on a GPU, write its name into the line that begins with `MODEL`, such
# as `MODEL = "Qwen/Qwen2.5-0.5B-Instruct"`. We have not measured other models in this notebook.
#
# `float32` stores each parameter in 32 bits, and `device_map="auto"` puts the model on the GPU if
# there is one. `padding_side = "left"` lets us ask several prompts at once: shorter prompts are
# filled up on the left, so that each reply starts right after its prompt.

# %%
LOCAL = Path("models/SmolLM2-135M-Instruct")
MODEL = str(LOCAL) if LOCAL.exists() else "HuggingFaceTB/SmolLM2-135M-Instruct"

tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.padding_side = "left"
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, device_map="auto")
print(f"{model.num_parameters() / 1e6:.0f} million parameters, on {model.device}")

# %% [markdown]
# ## 3. Before
#
# How well does the model do the job without any training? We ask it about 16 test sentences and
# keep its replies, to compare them later.
#
# The function `ask` does what every chat program does. `apply_chat_template` writes each
# conversation in the format that the model was trained on, and turns this text into tokens.
# `generate` lets the model continue, for at most 32 tokens, so long replies are cut short.
# `generate` returns prompt and reply together, so we cut the prompt off. `batch_decode`
# turns the new tokens back into text.


# %%
def ask(model, prompts):
    """Return the model's reply to each prompt."""
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    outputs = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new_tokens, skip_special_tokens=True)


test = chats["test"][:16]
answers = [completion[0]["content"] for completion in test["completion"]]
before = ask(model, test["prompt"])
for prompt, reply in list(zip(test["prompt"], before, strict=True))[:4]:
    print(f"{prompt[-1]['content']}\n    {reply}\n")

# %% [markdown]
# The model writes English, but it does not do the job. In these four replies it repeats the
# sentence, comments on it, or makes something up.
#
# ## 4. Train
#
# We do not train the model's own 135 million parameters. Instead we add **LoRA**: small matrices
# beside the model's matrices. Training only these small matrices needs far less memory, as notebook
# 04 shows. These matrices form the *adapter*. Here it is a file of 20 MB; the whole model takes 538
# MB. `LoraConfig` says how large the small matrices are (`r`), how strongly they count
# (`lora_alpha`), and where they are added.
#
# `SFTConfig` holds the settings of the training. In every step the model reads 8 examples. At each
# token of the completion, the trainer looks at the probability that the model gave to the right
# token. Then it changes the adapter a little, so that these probabilities rise. `learning_rate`
# says how much. The lines from `bf16` to `report_to` switch off things that we do not need here;
# later notebooks explain them.
#
# `SFTTrainer` puts model, data and settings together, and `train` starts the training. You will see
# the *loss* fall: the loss says how surprised the model is by the right tokens, so lower is better.
# The first line of the cell loads a fresh copy of the model, so you can run the cell again with
# other settings.

# %%
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, device_map="auto")
lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
settings = SFTConfig(
    output_dir="models/yoda-checkpoints",
    max_steps=30,
    per_device_train_batch_size=8,
    learning_rate=2e-3,
    logging_steps=3,
    bf16=False,
    gradient_checkpointing=False,
    save_strategy="no",
    report_to="none",
    seed=0,
)
trainer = SFTTrainer(
    model=model,
    args=settings,
    train_dataset=chats["train"],
    processing_class=tokenizer,
    peft_config=lora,
)
result = trainer.train()

# %% [markdown]
# The next picture shows the loss. Each point is the mean of three steps. The curve is not smooth,
# because each point comes from only 24 examples, and each time from other ones. Look at the trend:
# in the saved run, the loss falls from 1.7 to about 0.1.

# %%
history = pd.DataFrame(trainer.state.log_history).dropna(subset="loss")
_ = history.astype({"loss": float}).plot(x="step", y="loss", ylim=0, figsize=(6, 3))

# %% [markdown]
# ## 5. After
#
# We ask the trained model about the same 16 sentences. A reply counts as right if it is exactly the
# expected sentence. The table shows the wrong replies first, and then some right ones.

# %%
after = ask(trainer.model, test["prompt"])
table = pd.DataFrame({"before": before, "after": after, "expected": answers})
table["right"] = table["after"] == table["expected"]
pd.set_option("display.max_colwidth", 90)
print(f"Right before: {(table['before'] == table['expected']).sum()} of 16")
print(f"Right after:  {table['right'].sum()} of 16")
table.sort_values("right").head(8)

# %% tags=["claim"]
assert (table["before"] == table["expected"]).sum() <= 2
assert table["right"].sum() >= 8

# %% [markdown]
# No reply was right before the training, and 13 of 16 are right after it. The other three are
# partly right: reply 4 reorders only the first half and then repeats *every rabbit must*, reply 9
# has the right sentence in it with extra words in front, and reply 12 has lost the verb *Enjoyed*.
# (On another machine, other replies may be wrong.) We expect that more steps would help; notebook
# 03.1 shows how to find out. Sixteen sentences are few, so another sixteen could give a somewhat
# different score. But the difference between 0 and 13 of 16 is too large to be chance.
#
# ## 6. Save it, and load it in another program
#
# `save_pretrained` writes the adapter into a folder. The folder does not hold the original model,
# only its name. The libraries call the original model the adapter's *base model*, even if it is a
# chat model, as here.
#
# Is the folder enough? To check, we start a new Python program that knows nothing of this notebook.
# It loads the original model and the adapter together and asks for one sentence.

# %%
trainer.model.save_pretrained("models/yoda-adapter")
tokenizer.save_pretrained("models/yoda-adapter")

program = """
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/yoda-adapter")
model = AutoPeftModelForCausalLM.from_pretrained("models/yoda-adapter", device_map="auto")
conversation = [
    {"role": "system", "content": "Say it as Yoda would."},
    {"role": "user", "content": "My friend found the old book."},
]
inputs = tokenizer.apply_chat_template(
    conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
print(done.stdout or done.stderr)

# %% tags=["claim"]
assert done.stdout.strip() == "The old book my friend found."

# %% [markdown]
# The reply is right, so the folder is enough.
#
# ## 7. Merge
#
# The adapter can also be added into the model's own matrices. The result is an ordinary model that
# needs neither peft nor an adapter, and any program that runs language models can load it. We load
# the original model and the adapter once more, merge them, and save the result. Then we check that
# the merged model gives the same replies.

# %%
merged = AutoPeftModelForCausalLM.from_pretrained(
    "models/yoda-adapter", dtype=torch.float32, device_map="auto"
).merge_and_unload()
merged.save_pretrained("models/yoda-merged")
tokenizer.save_pretrained("models/yoda-merged")
again = ask(merged, test["prompt"])
same = sum(one == other for one, other in zip(again, after, strict=True))
print(f"{same} of 16 replies are the same as before the merge.")

# %% tags=["claim"]
assert same >= 14

# %% [markdown]
# ## 8. Optional: a model in 4 bits
#
# On a GPU you usually run out of memory first. To save memory, you can store most of the model's
# parameters in 4 bits each instead of 32. `BitsAndBytesConfig` does this while the model is loaded.
# To train such a model, give it to the trainer in section 4 instead of `model`. Training an adapter
# on a model in 4 bits is called **QLoRA**; notebooks 02 and 07 train this way. Here we only look at
# the size.

# %%
four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
small = AutoModelForCausalLM.from_pretrained(
    MODEL, quantization_config=four_bits, dtype=torch.bfloat16, device_map="auto"
)
for name, loaded in (("32 bits", merged), ("4 bits", small)):
    print(f"{name}: {loaded.get_memory_footprint() / 1e6:.0f} MB")

# %% tags=["claim"]
assert small.get_memory_footprint() < 0.3 * merged.get_memory_footprint()

# %% [markdown]
# The model is five times smaller, not eight times, because only the matrices in its layers are
# stored in 4 bits. The *embeddings*, lists of numbers for the tokens, stay in 16 bits; in this
# small model they are half of the 110 MB.
#
# ## Take away
#
# - Fine-tuning takes five things: data in the right form, a model, an adapter, settings, and a
#   comparison of before and after on examples that the model has never seen.
# - Thirty steps of eight examples were enough to teach a small model a new word order: 0 of 16
#   sentences were right before, and 13 after (SmolLM2-135M-Instruct, one seed, section 5).
# - An adapter is a small file. You can load it beside its base model, or merge it into the base
#   model.
#
# Why is each of these lines there? The other notebooks answer that question, line by line:
#
# | line | question | notebook |
# |---|---|---|
# | `from_pretrained(MODEL)` | Why a chat model and not a base model? | [01](01_base_vs_chat.ipynb) |
# | `apply_chat_template` | What does the model really read? | [01](01_base_vs_chat.ipynb), [03](03_data_collators.ipynb) |
# | `LoraConfig(...)` | What is trained, and how large should `r` and the learning rate be? | [02](02_peft_lora.ipynb) |
# | `prompt`, `completion` | Which tokens is the model trained on? | [03](03_data_collators.ipynb) |
# | `SFTConfig(...)` | What do the settings do, and when do you stop? | [03.1](03.1_pig_latin.ipynb) |
# | all of them | Can you do it alone? | [03.2](03.2_yoda.ipynb) |
# | `BitsAndBytesConfig` | Where does the memory go, and what do 4 bits cost? | [04](04_memory.ipynb), [04.1](04.1_quantization.ipynb), [05](05_mixin_matching.ipynb) |
# | `data` | What does a model learn from instructions? | [06](06_instruction_tuning.ipynb), [07](07_base_vs_instruct.ipynb) |
# | `right` | How do you judge replies that can be right in many ways? | [08](08_response_quality.ipynb) |

# %% [markdown]
# ## Exercises
#
# Change something, and compare. For exercise 1, run the notebook again from section 4 on; for the
# other two, run it again from section 1 on.
#
# 1. Set `max_steps` to 10. How many replies are right?
# 2. In section 1, read `../datasets/pig_latin/` instead. Its second field is called `pig_latin`, so
#    change `row["yoda"]` as well, and let the system prompt ask for Pig Latin. Is Pig Latin as easy
#    to learn as Yoda's word order?
# 3. Write 20 sentences of your own into a JSONL file, with the fields `sentence` and `yoda`, where
#    `yoda` is whatever you would like to get as an answer. Keep five of them for the test, and
#    train on the others.

# %% [markdown]
# ## To read
#
# - The documentation of [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer) and of
#   [LoRA in peft](https://huggingface.co/docs/peft/main/en/developer_guides/lora).
# - The [glossary](../docs/glossary.md): the terms that this course uses.
