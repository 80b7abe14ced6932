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
# Imagine that you plan a film night, and you want a small bot for it. Somebody types a sentence, and
# the bot says it the way Yoda would: *"She washed the buttons."* becomes *"The buttons she washed."*
# You have a small chat model that runs on your laptop. You ask it to speak like Yoda, and it fails,
# as you will see in a minute. So you show it examples until it has learned the job. Showing a
# trained model more examples, and training it on them, is called **fine-tuning**.
#
# You will fine-tune the model in about forty lines of code. Each line is plain `datasets`,
# `transformers`, `peft` or `trl`, so you can copy it into your own project. Do not worry if a line
# stays unclear: the other notebooks of this course take the lines one by one and explain why each of
# them is there. The table at the end tells you where.
#
# The first cell only keeps the screen tidy: it hides remarks that the libraries print while they work.
# The second one imports the libraries.

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
# The dataset lies in the course's folder, as a JSONL file: one example a line. Each example holds a
# sentence and the same sentence in Yoda's words. There are 3,000 examples to train on. A second file
# holds 200 examples that we keep for the test, and no word of their sentences except the most common
# ones occurs in the training examples. So the test shows whether the model has learned Yoda's word
# order, or has only memorised sentences.

# %%
files = {"train": "../datasets/yoda/train.jsonl", "test": "../datasets/yoda/unseen.jsonl"}
data = load_dataset("json", data_files=files)
data["train"][0]

# %% [markdown]
# A chat model reads conversations, so we turn each example into a conversation. What the model is
# given goes into the `prompt`: a system prompt that names the job, and a message of the user. What
# the model should answer goes into the `completion`. The trainer knows these two names, and it trains
# the model on the completion only.


# %%
def as_chat(row):
    """Turn an example of the dataset into a conversation."""
    system = {"role": "system", "content": "Say it as Yoda would."}
    user = {"role": "user", "content": row["sentence"]}
    return {
        "prompt": [system, user],
        "completion": [{"role": "assistant", "content": row["yoda"]}],
    }


data = data.map(as_chat, remove_columns=data["train"].column_names)
data["train"][0]

# %% [markdown]
# ## 2. The model
#
# `from_pretrained` loads a model and its tokenizer from a folder, or from the Hugging Face hub. The
# line `MODEL = ...` chooses which one. The set-up of the course has put a small chat model into the
# folder `models/`: SmolLM2 with 135 million parameters, which a laptop can train. Where that folder
# is missing, as on Colab, the same model comes from the hub. If you have a GPU, you can put a larger
# model there, such as `"Qwen/Qwen2.5-0.5B-Instruct"`. No other line has to change.

# %%
MODEL = "models/SmolLM2-135M-Instruct"
MODEL = MODEL if Path(MODEL).exists() else "HuggingFaceTB/SmolLM2-135M-Instruct"

tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, device_map="auto")
print(f"{model.num_parameters() / 1e6:.0f} million parameters, on {model.device}")

# %% [markdown]
# ## 3. Before
#
# How well does the model do the job without any training? We ask it about 16 test sentences and keep
# its replies, to compare them later. The function `ask` does what every chat program does.
# `apply_chat_template` writes each conversation as the text that the model knows from its training,
# and turns the text into numbers, the tokens. `generate` lets the model continue. `batch_decode`
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


test = data["test"][:16]
answers = [completion[0]["content"] for completion in test["completion"]]
before = ask(model, test["prompt"])
for prompt, reply in list(zip(test["prompt"], before, strict=True))[:4]:
    print(f"{prompt[-1]['content']}\n    {reply}\n")

# %% [markdown]
# The model writes whole sentences, and it has heard of Yoda. But it repeats the sentence, comments on
# it, or makes something up. It does not turn the words around.
#
# ## 4. Train
#
# We do not train the model's own 135 million parameters. Instead we add **LoRA**: small matrices
# beside the model's matrices, and only these are trained. That needs far less memory, and the result
# is a file of a few megabytes, an *adapter*. `LoraConfig` says how large the small matrices are (`r`)
# and where they go.
#
# `SFTConfig` holds the settings of the training. In every step the model sees 8 examples, compares
# its answers with ours, and moves the adapter a little in the direction that would have been better;
# `learning_rate` says how far. `SFTTrainer` puts model, data and settings together, and `train`
# starts it. You will see the *loss* fall: the loss says how surprised the model is by the right
# answer, so lower is better. The first line loads the model anew, so that you can run the cell again
# with other settings.

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
    train_dataset=data["train"],
    processing_class=tokenizer,
    peft_config=lora,
)
result = trainer.train()

# %% [markdown]
# The picture shows the loss of every third step. It goes up and down a little, because every step sees
# other examples, and some are harder than others. What counts is where it goes.

# %%
history = pd.DataFrame(trainer.state.log_history).dropna(subset="loss")
_ = history.astype({"loss": float}).plot(x="step", y="loss", ylim=0, figsize=(6, 3))

# %% [markdown]
# ## 5. After
#
# We ask the trained model about the same 16 sentences. A reply counts as right if it is the expected
# sentence to the letter.

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
# The table begins with the wrong replies. In the saved run there are three, and they are close: the
# words are the right ones, but one sentence is turned only in its first half, and in the others a word
# is lost or doubled. More steps or more data would help, and notebook 03.1 shows how to find out which.
# Sixteen sentences are few, so do not take 13 of 16 for an exact score. But nobody needs statistics to
# tell it from 0 of 16.
#
# ## 6. Save it, and load it in another program
#
# `save_pretrained` writes the adapter into a folder. The base model is not in that folder: the
# adapter only remembers its name. To check that the folder is enough, we start a new Python program
# that knows nothing of this notebook. It loads base and adapter together and asks for one sentence.

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
# ## 7. Merge
#
# The adapter can also be added into the model's own matrices. The result is an ordinary model that
# needs neither peft nor an adapter, and any program that runs language models can load it. We load
# base and adapter once more, merge them, save the merged model, and check that it replies as before.

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
# On a GPU, memory is what you run out of first. The answer is to store the model's parameters in 4
# bits each instead of 32. `BitsAndBytesConfig` does this while the model is loaded. To train such a
# model, give it to the trainer in section 4 instead of `model`; nothing else changes. Training an
# adapter on a model in 4 bits is called **QLoRA**. Here we only look at the size.

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
# ## Take away
#
# - Fine-tuning takes five things: data in the right form, a model, an adapter, settings, and a
#   comparison of before and after on examples that the model has never seen.
# - Thirty steps of eight examples were enough to teach a model of 135 million parameters a new word
#   order: 0 of 16 sentences were right before, and 13 after (one seed, section 5).
# - An adapter is a small file. You can load it beside its base model, or merge it into the base model.
#
# Why is each of these lines there? The other notebooks answer that question, one line after the other:
#
# | line | question | notebook |
# |---|---|---|
# | `from_pretrained(MODEL)` | Why a chat model and not a base model? | [01](01_base_vs_chat.ipynb) |
# | `apply_chat_template` | What does the model really read? | [01](01_base_vs_chat.ipynb), [03](03_data_collators.ipynb) |
# | `LoraConfig(...)` | What is trained, and which rank and rate are good? | [02](02_peft_lora.ipynb) |
# | `prompt`, `completion` | Which tokens is the model trained on? | [03](03_data_collators.ipynb) |
# | `SFTConfig(...)` | What do the settings do, and when do you stop? | [03.1](03.1_pig_latin.ipynb) |
# | all of them | Can you do it alone? | [03.2](03.2_yoda.ipynb) |
# | `BitsAndBytesConfig` | Where does the memory go, and what do 4 bits cost? | [04](04_memory.ipynb), [05](05_mixin_matching.ipynb) |
# | `data` | What does a model learn from instructions? | [06](06_instruction_tuning.ipynb), [07](07_base_vs_instruct.ipynb) |
# | `right` | How do you judge replies that can be right in many ways? | [08](08_response_quality.ipynb) |

# %% [markdown]
# ## Exercises
#
# Change something, run the notebook again from section 4 on, and compare.
#
# 1. Set `max_steps` to 10. How many replies are right?
# 2. In section 1, read `../datasets/pig_latin/` instead. Its second column is called `pig_latin`, and
#    the system prompt should say so. Is this as easy to learn as Yoda's word order?
# 3. Write 20 sentences of your own into a JSONL file, each with the answer that you would like, and
#    train on them.

# %% [markdown]
# ## To read
#
# - The documentation of [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer) and of
#   [LoRA in peft](https://huggingface.co/docs/peft/main/en/developer_guides/lora).
# - The [glossary](../docs/glossary.md): the course's words.
