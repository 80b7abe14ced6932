# %% [markdown]
# # 03 · Pig Latin and data collators
#
# **You will learn** which tokens a model is trained on, and how to see this before a training
# starts. You will make a common mistake, find it, and mend it.
#
# **You need** notebook 00, and an idea of what LoRA is (notebook 02).
#
# **It takes** about 30 minutes of reading and trying. The cells themselves run in about three
# minutes on two CPU cores; on GPUs, not yet measured.

# %% [markdown]
# ## The machine at hand
#
# In notebook 00 you trained a bot that says a sentence the way Yoda would. Amina wants the same
# bot, and finds another recipe on the web. Her training runs without an error, and the loss falls.
# But the bot never stops: it writes line after line until it is cut off. You will follow the same
# recipe, and find out why. (All results in the text: SmolLM2-135M-Instruct, one seed.)

# %%
from course_utils import describe

print(describe())

# %% [markdown]
# ## 1. A recipe from the web
#
# The next cell loads the tokenizer and hides most messages of the libraries. Section 5 shows one
# that you should see.

# %%
import logging
import sys
import tempfile
import warnings

import datasets
import pandas as pd
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils.data import load_data
from course_utils.display import text_table
from course_utils.hardware import pick_dtype
from course_utils.models import resolve

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_default_handler()
logging.getLogger("transformers").addHandler(logging.NullHandler())
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*|.*pin_memory.*")

MODEL = resolve("chat").folder  # a folder; a model's name on the hub would do as well
dtype = pick_dtype().value
tokenizer = AutoTokenizer.from_pretrained(MODEL)
EOS = tokenizer.eos_token
print("The EOS token is", EOS, "and its id is", tokenizer.eos_token_id)

# %% [markdown]
# In this recipe each example is one text: the sentence, the sentence in Yoda's word order, and the
# **EOS token**. (EOS means *end of sequence*: when a model writes this token, generation stops.)
# The model is trained to continue these texts, token by token. This is **self-supervised** tuning,
# or *continued pre-training*: a model's first training, continued on your texts. Notebook 01
# compares it with others.

# %%
yoda = load_data("yoda")


def as_text(row):
    return {"text": f"English: {row['sentence']}\nYoda: {row['yoda']}{EOS}"}


texts = yoda["train"].select(range(160)).map(as_text)
tokens = texts.map(lambda row: tokenizer(row["text"]), remove_columns=texts.column_names)
print(texts[0]["text"])

# %% [markdown]
# The recipe has two more parts, found in many guides. It sets
# `tokenizer.pad_token = tokenizer.eos_token`, because many tokenizers come without a padding token.
# And it uses `DataCollatorForLanguageModeling`. Section 2 explains both. The next cell trains.

# %%
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments


def with_adapter():
    """A new copy of the chat model, with a new LoRA adapter."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, device_map="auto")
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


def train(pad_token):
    """Follow the recipe with a padding token; return the model and its losses."""
    torch.manual_seed(0)
    tokenizer.pad_token = pad_token
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=2,
        fp16=dtype == torch.float16,
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(
        model=with_adapter(),
        args=settings,
        train_dataset=tokens,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    return trainer.model, pd.DataFrame(trainer.state.log_history).dropna(subset="loss")


tuned, losses_eos = train(EOS)

# %% [markdown]
# The loss falls. Now we give the model 12 sentences that it has not seen. A reply that has not
# ended after 60 tokens is cut off.
#
# **Guess first.** How many of the 12 replies will end with an EOS token?

# %%
my_guess = None  # a whole number from 0 to 12

# %%
prompts = [f"English: {s}\nYoda:" for s in yoda["validation"].select(range(12))["sentence"]]


def ask(model):
    """The model's replies to the prompts, and how many of them ended by themselves."""
    tokenizer.padding_side = "left"  # so that each reply follows its prompt
    inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    tokenizer.padding_side = "right"  # as it should be for training
    outputs = model.eval().generate(**inputs, max_new_tokens=60, do_sample=False)
    new = outputs[:, inputs["input_ids"].shape[1] :]
    ended = (new == tokenizer.eos_token_id).any(dim=1).sum().item()
    return tokenizer.batch_decode(new, skip_special_tokens=True), ended


with tuned.disable_adapter():
    untuned_replies, untuned_ended = ask(tuned)
eos_replies, eos_ended = ask(tuned)
print(f"{eos_ended} of 12 replies end; you guessed {my_guess}\n")
print(prompts[0] + eos_replies[0])

# %% tags=["claim"]
assert eos_ended <= 3
assert untuned_ended <= 3
first_last = losses_eos["loss"].astype(float).iloc[[0, -1]].tolist()
assert first_last[1] < 0.7 * first_last[0]

# %% [markdown]
# None of the 12 replies ends. The second line above is right, and then the model writes more lines
# of the same kind. You may have expected some to end, as a chat model has learned to stop. But it
# has learned this in its own chat template. After these plain prompts it does not stop without the
# adapter either (0 of 12; section 3), and our training has not taught it to.
#
# ## 2. Look at what the model is trained on
#
# Every text ended with an EOS token. Why did the model not learn to write it? The **data collator**
# comes between the texts and the model: it makes a **batch** of several examples.
#
# Examples differ in length, but a tensor needs rows of one length. So the collator fills the
# shorter rows with **padding**, tokens without meaning. It adds the `attention_mask`, which says
# which tokens are read, and the **labels**, which say what the model should learn to write. With
# `mlm=False` (no *masked* language modelling), the labels are a copy of the tokens. The loss leaves
# out each token with the label -100. (The default is `mlm=True`. Then the collator picks 15% of the
# tokens at random and hides most of them, and the model learns to fill the gaps. Models such as
# BERT are trained in this way; for a model that writes from left to right, set it to `False`.)
#
# Here are three examples in the recipe's collator. The cell prints the shape of each tensor and
# the end of its first row:

# %%
three = [tokenizer(as_text(row)["text"]) for row in yoda["train"].select([4, 1, 2])]
tokenizer.pad_token = EOS
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
batch = collate([dict(example) for example in three])
for name, tensor in batch.items():
    print(f"{name:<15} {tuple(tensor.shape)}  …{tensor[0, -9:].tolist()}")

# %% [markdown]
# Numbers are hard to read, so draw the batch. Blue tokens are trained on, grey tokens are only
# read, and struck-through tokens are padding. A dashed frame marks special tokens, and ↵ is a line
# break.

# %%
from course_utils import masks

masks.show(batch, tokenizer)

# %% [markdown]
# Look at the end of each Yoda sentence: **the EOS token is grey.** Its label is -100, so the model
# never learns to write it. This collator puts -100 on every token that *is* the padding token, and
# in the recipe the EOS token is that token. (SmolLM2's tokenizer even comes with this setting.)
#
# A **mask** says which tokens count. A wrong mask raises no error, so draw it.
#
# ## 3. Mend it
#
# Give the padding a token of its own, one that does not occur in your texts:

# %% tags=["value:mask-texts"]
PAD = tokenizer.unk_token or "<|endoftext|>"
tokenizer.pad_token = PAD
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
mended = collate([dict(example) for example in three])
masks.show(mended, tokenizer)

# %% tags=["claim"]
end_id = tokenizer.eos_token_id
assert (batch["labels"] == end_id).sum() == 0
assert (mended["labels"] == end_id).sum() == len(three)

# %% [markdown]
# Now the EOS token is blue. We train again, with the same texts and the same seed:

# %% tags=["value:stops"]
tuned, losses_pad = train(PAD)
pad_replies, pad_ended = ask(tuned)
stops = pd.DataFrame(
    {
        "training": ["none", "pad = eos", "pad ≠ eos"],
        "ended of 12": [untuned_ended, eos_ended, pad_ended],
        "a reply": [replies[0][:70] for replies in (untuned_replies, eos_replies, pad_replies)],
    }
)
text_table(stops)

# %% tags=["claim"]
assert pad_ended >= 9

# %% [markdown]
# All 12 replies end. Could Amina have seen her mistake in the loss?

# %% tags=["figure:03_loss_does_not_tell"]
import matplotlib.pyplot as plt

from course_utils.display import BLUE, ORANGE, use_style

use_style()
figure, axis = plt.subplots(figsize=(6, 2.8))
for name, losses, ended, colour, style in (
    ("pad = eos", losses_eos, eos_ended, ORANGE, "--"),
    ("pad ≠ eos", losses_pad, pad_ended, BLUE, "-"),
):
    label = f"{name}: {ended} of 12 end"
    axis.plot(losses["step"], losses["loss"].astype(float), style, color=colour, label=label)
axis.set_xlabel("step")
axis.set_ylabel("training loss")
axis.set_title("Two trainings; one model never stops")
axis.grid(axis="y")
axis.legend()
plt.show()

# %% [markdown]
# No: both curves fall in much the same way. The dashed curve is a little higher. We expect that
# this is because the EOS token is easy to predict, and only the other training counts it.
#
# There is a second fix: a collator that finds padding by its *position* in the row, as TRL's does.
#
# ## 4. Train on the answers only
#
# In the last drawing the English sentence is blue too, so the model also learns to write prompts.
# How much of the training goes into them? We look at **Pig Latin**, the task of notebook 03.1. The
# consonants at the beginning of a word move to its end, and *ay* follows: *string* → *ingstray*. A
# word that begins with a vowel gets *way*: *eat* → *eatway*. (Some people add *hay*, *nay* or *yay*
# there, so *eat* can also become *eathay*, *eatnay* or *eatyay*. Any of the four will do, but a
# dataset should keep to one. If it mixed them, no rule could tell the model which ending comes
# next.)
#
# **Guess first.** With Pig Latin in the same kind of text, which share of the tokens is prompt,
# from `English:` to `Pig Latin:`?

# %%
my_guess = None  # a number between 0 and 1, such as 0.5

# %% tags=["value:prompt-share"]
pig_latin = load_data("pig_latin")
prompt_tokens = all_tokens = 0
for row in pig_latin["train"].select(range(200)):
    prompt = f"English: {row['sentence']}\nPig Latin:"
    prompt_tokens += len(tokenizer(prompt)["input_ids"])
    all_tokens += len(tokenizer(f"{prompt} {row['pig_latin']}{EOS}")["input_ids"])
share = prompt_tokens / all_tokens
print(f"{share:.0%} of what is trained on is prompt; you guessed {my_guess}")

# %% tags=["claim"]
assert 0.25 < share < 0.5

# %% [markdown]
# The answer is 42% (200 examples). The prompt looks longer, but the strange words of Pig Latin are
# cut into more tokens.
#
# `SFTTrainer` of the library **TRL** leaves the prompt out if the dataset has two columns: the
# `prompt`, and the **completion**, the part that the model should learn to write. We set pad = eos
# again, to see whether TRL's collator keeps the EOS token.

# %% tags=["value:mask-completions"]
from trl import SFTConfig, SFTTrainer

tokenizer.pad_token = EOS
model = with_adapter()


def make_trainer(rows, formatting_func=None, **options):
    """An SFTTrainer on some rows; options go to SFTConfig."""
    usual = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-3,
        "max_length": 256,
        "bf16": dtype == torch.bfloat16 and torch.cuda.is_available(),
        "fp16": dtype == torch.float16,
        "report_to": "none",
    }
    return SFTTrainer(
        model=model,
        args=SFTConfig(**{**usual, **options}),
        train_dataset=rows,
        processing_class=tokenizer,
        formatting_func=formatting_func,
    )


def first_batch(trainer):
    """The first batch, as the model will get it."""
    return next(iter(trainer.get_train_dataloader()))


def as_messages(row):
    """A row of the dataset as prompt and completion."""
    question = f"Translate into Pig Latin: {row['sentence']}"
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["pig_latin"]}],
    }


some = pig_latin["train"].select(range(40))
chats = some.map(as_messages, remove_columns=some.column_names)
completions = first_batch(make_trainer(chats))
masks.show(completions, tokenizer)

# %% tags=["claim"]
assert (completions["labels"] == tokenizer.eos_token_id).sum() == len(completions["labels"])

# %% [markdown]
# The prompt is grey, together with the system prompt that SmolLM2's template adds. The answer is
# blue, and so is the `<|im_end|>` that ends it, but not the same token as padding. (The blue line
# break does no harm, because generation stops before it.)
#
# In other code you will meet four more names:
#
# - `DataCollatorForCompletionOnlyLM` looked for a `response_template` in each text, such as
#   `### Answer:`, and masked what stands before it. TRL 0.20 removed it. The two columns replace
#   it: they switch on `completion_only_loss`.
# - `dataset_text_field` names the column that holds the text, for a dataset of plain texts (the
#   default is `text`).
# - `formatting_func` makes each row one text, for a dataset with other columns. One text has no
#   prompt, so all of it is trained on.
# - `pad_to_multiple_of` rounds the length of the rows up, because GPUs prefer sizes that are
#   multiples of 8 or 64 (not measured here).
#
# Here are the last two at work:

# %%
trainer = make_trainer(
    some,
    formatting_func=lambda row: f"English: {row['sentence']}\nPig Latin: {row['pig_latin']}",
    pad_to_multiple_of=64,
    per_device_train_batch_size=2,
)
formatted = first_batch(trainer)
print("shape:", tuple(formatted["input_ids"].shape))
masks.show(formatted, tokenizer)

# %% tags=["claim"]
assert formatted["input_ids"].shape[1] % 64 == 0
assert masks.examples(formatted, tokenizer)[0].counts()["masked"] == 0

# %% [markdown]
# The prompt is blue again, and both rows are filled up to 64 tokens. (TRL has added the EOS token.)
#
# ## 5. Longer conversations
#
# In a conversation with several turns, every answer of the assistant should be trained on. For
# this, TRL takes a column `messages` and `assistant_only_loss=True`. The chat template then has to
# mark the assistant's words, with `{% generation %}` before them and `{% endgeneration %}` after
# them. The *stock template* that comes with a model often has no such marks. What happens then? The
# next cell shows the messages of transformers:

# %% tags=["value:stock-template"]
conversation = [
    {"role": "system", "content": "Pig Latin only."},
    {"role": "user", "content": "Say eat."},
    {"role": "assistant", "content": "eatway"},
    {"role": "user", "content": "Say string."},
    {"role": "assistant", "content": "ingstray"},
]
log = logging.getLogger("transformers")
to_page = logging.StreamHandler(sys.stdout)
log.addHandler(to_page)
encoded = tokenizer.apply_chat_template(
    conversation, return_dict=True, return_assistant_tokens_mask=True
)
log.removeHandler(to_page)
print("\nassistant tokens according to the stock template:", sum(encoded["assistant_masks"]))

# %% tags=["claim"]
assert "{% generation %}" in tokenizer.chat_template or sum(encoded["assistant_masks"]) == 0

# %% [markdown]
# The mask is all zeros, so nothing would be trained on. There is no error, only one warning, and
# transformers logs it once: run the cell again, and it is gone.
#
# TRL 1.16 is more careful. If the marks are missing, `SFTTrainer` looks for a *training template*,
# the stock template with marks. TRL has one for many models of common families, such as Llama 3,
# Qwen, Gemma and Phi. TRL uses it if your template equals the stock template exactly. One call
# tells you what TRL does with your tokenizer:

# %%
from trl import get_training_chat_template

try:
    print(get_training_chat_template(tokenizer))  # None: the template is fine as it is
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# TRL has none for SmolLM2, so the trainer would stop with this error. Add the marks yourself, and
# set `tokenizer.chat_template` before you make the trainer. Here is ChatML, the format of SmolLM2,
# with marks. They enclose `<|im_end|>` too, so that the model learns to stop.

# %% tags=["value:chatml"]
chatml = """\
{% for message in messages %}\
<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}\
{% else %}\
{{ message['content'] }}<|im_end|>
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

encoded = tokenizer.apply_chat_template(
    conversation, chat_template=chatml, return_dict=True, return_assistant_tokens_mask=True
)
ids = torch.tensor([encoded["input_ids"]])
labels = ids.masked_fill(torch.tensor([encoded["assistant_masks"]]) == 0, -100)
masks.show({"input_ids": ids, "labels": labels}, tokenizer)

# %% tags=["claim"]
drawn = masks.examples({"input_ids": ids, "labels": labels}, tokenizer)[0]
if "<|im_end|>" in tokenizer.get_vocab():
    assert drawn.trained_text() == "eatway<|im_end|>ingstray<|im_end|>"
    stock, marked = (
        tokenizer.apply_chat_template(conversation, tokenize=False, chat_template=template)
        for template in (None, chatml)
    )
    assert marked == stock  # the mark changes what is trained on, and not the text
transformers.utils.logging.warning_once.cache_clear()
heard = []
listener = logging.Handler()
listener.emit = lambda record: heard.append(record.getMessage())
log.addHandler(listener)
tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
log.removeHandler(listener)
assert "{% generation %}" in tokenizer.chat_template or any("generation" in h for h in heard)

# %% [markdown]
# Both answers are blue, each with its `<|im_end|>`. The text itself is that of the stock template.
#
# ## 6. A collator of your own
#
# The next cell pads the rows, and puts -100 on the prompt and on the padding, but not on the EOS
# token. It also **shifts by one**: at each token the model predicts the *next* one, so the inputs
# lose their last token and the labels their first.

# %%


def own_collator(examples, pad_id):
    """Examples with `input_ids` and `prompt_length` to inputs and shifted labels."""
    longest = max(len(example["input_ids"]) for example in examples)
    inputs, targets = [], []
    for example in examples:
        ids, prompt_length = example["input_ids"], example["prompt_length"]
        padding = longest - len(ids)
        labels = [-100] * prompt_length + ids[prompt_length:]
        inputs.append((ids + [pad_id] * padding)[:-1])
        targets.append((labels + [-100] * padding)[1:])
    return torch.tensor(inputs), torch.tensor(targets)


# %% [markdown]
# Does TRL do the same? We compare six examples. (TRL's collator does not shift, because the model
# does.)

# %%
trainer = make_trainer(chats)
six = [trainer.train_dataset[i] for i in range(6)]
theirs = trainer.data_collator([dict(row) for row in six])
mine = [{**row, "prompt_length": row["labels"].count(-100)} for row in six]
inputs, targets = own_collator(mine, tokenizer.pad_token_id)
print("inputs equal:", torch.equal(inputs, theirs["input_ids"][:, :-1]))
print("labels equal:", torch.equal(targets, theirs["labels"][:, 1:]))
print(f"{(targets != -100).sum()} of {targets.numel()} labels are trained on")

# %% tags=["claim"]
assert torch.equal(inputs, theirs["input_ids"][:, :-1])
assert torch.equal(targets, theirs["labels"][:, 1:])

# %% [markdown]
# They are the same.
#
# ## 7. Packing, and a leak
#
# Padding costs time and memory, and teaches nothing. **Packing** puts several examples into one row
# instead. A **padding-free** batch puts all its examples into one row, end to end. Both need
# `position_ids`: the place of each token in its own example, counted from 0. Here is one batch in
# each layout:

# %%
kinds = {
    "padded": {},
    "packed": {"packing": True},
    "padding-free": {"padding_free": True, "max_length": None},
}
rows = []
for kind, options in kinds.items():
    part = first_batch(make_trainer(chats, per_device_train_batch_size=8, **options))
    attended = part.get("attention_mask", torch.ones_like(part["input_ids"]))
    rows.append(
        {
            "batch": kind,
            "shape": str(tuple(part["input_ids"].shape)),
            "tokens": part["input_ids"].numel(),
            "padding": (attended == 0).sum().item(),
            "trained on": (part["labels"] != -100).sum().item(),
        }
    )
layouts = pd.DataFrame(rows).set_index("batch")
layouts

# %% tags=["claim"]
assert layouts.loc["padded", "padding"] > 0
assert layouts.loc["packed", "padding"] == 0
assert layouts.loc["padding-free", "padding"] == 0

# %% [markdown]
# The padded batch has 52 tokens of padding among 600, and the others have none. (Eight packed rows
# hold more examples, so there are more tokens; here they lie end to end.)
#
# In one row, an example must not read those before it (a *leak*). If the model keeps them apart,
# six examples have the same loss padded and padding-free. To see a leak, we need a **control** that
# leaks for certain: the same row without its `position_ids`.

# %%
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as TRLCollator

ids_only = [{"input_ids": row["input_ids"]} for row in six]
padded = TRLCollator(pad_token_id=tokenizer.pad_token_id)(ids_only)
free = TRLCollator(pad_token_id=tokenizer.pad_token_id, padding_free=True)(ids_only)
control = {"input_ids": free["input_ids"], "labels": free["labels"]}
ones = {"position_ids": free["position_ids"], "attention_mask": torch.ones_like(free["labels"])}
losses = {}
for name, part in {
    "padded": padded,
    "padding-free": free,
    "control: without position_ids": control,
    "control: with an attention mask": {**control, **ones},
}.items():
    part = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in part.items()}
    with torch.inference_mode():
        losses[name] = model.eval()(**part).loss.item()
    print(f"{name:<32} loss {losses[name]:.2f}")

# %% tags=["claim"]
gap = abs(losses["padded"] - losses["padding-free"])
assert gap < 0.02 * losses["padded"]
assert losses["control: without position_ids"] < 0.8 * losses["padded"]
assert losses["control: with an attention mask"] < 0.9 * losses["padded"]

# %% [markdown]
# The first two losses are the same, so the model keeps the examples apart. In the control the loss
# falls from 5.96 to 3.64, probably because each example can copy those before it. So a leak does
# not look like a mistake: it looks like a better model.
#
# The last line shows an accidental leak. If there is an attention mask, even one of only ones,
# transformers 5.23 does not use `position_ids` to tell examples apart. So compare the losses in
# your own set-up.
#
# ## 8. Messy data
#
# A right mask does not help if the data is bad. Real datasets have duplicates, empty answers and
# very long rows. We add some of each to 60 good rows, and then look for them:

# %%
from datasets import Dataset

good = pig_latin["train"].select(range(60)).to_pandas()
long = {name: " ".join(good[name][:10]) for name in good}
empty = {"sentence": good["sentence"][5], "pig_latin": ""}
spaced = {name: good[name][9] + " " for name in good}
messy = pd.concat([good, good.head(6), pd.DataFrame([long, empty, spaced])], ignore_index=True)

texts = "English: " + messy["sentence"] + "\nPig Latin: " + messy["pig_latin"]
messy["tokens"] = [len(ids) for ids in tokenizer(texts.tolist())["input_ids"]]
stripped = messy[["sentence", "pig_latin"]].apply(lambda column: column.str.strip())
print("rows:", len(messy))
print("empty answers:", (stripped["pig_latin"] == "").sum())
print("duplicates:", messy.duplicated().sum())
print("duplicates, spaces at the ends removed:", stripped.duplicated().sum())
axis = messy["tokens"].plot.hist(bins=50, figsize=(6, 2.4))
axis.set_xlabel("tokens in a row")
axis.set_ylabel("rows")
plt.show()

# %% tags=["claim"]
assert stripped.duplicated().sum() == messy.duplicated(["sentence", "pig_latin"]).sum() + 1

# %% [markdown]
# One duplicate is found only when spaces at the ends are removed. The histogram shows one row far
# to the right. What does a trainer do with it? We try three values of `max_length`, and draw the
# empty and the long row:


# %%
def as_pair(row):
    return {
        "prompt": f"English: {row['sentence']}\nPig Latin:",
        "completion": f" {row['pig_latin']}",
    }


pairs = Dataset.from_pandas(messy).map(as_pair, remove_columns=list(messy.columns))
for max_length in (1024, 160, 96):
    kept = make_trainer(pairs, max_length=max_length).train_dataset
    ends = sum(row["input_ids"][-1] == tokenizer.eos_token_id for row in kept)
    print(f"max_length={max_length}: {len(kept)} of {len(pairs)} rows, {ends} end with EOS")

cut = make_trainer(pairs, max_length=160)
places = [messy["pig_latin"].eq("").argmax(), messy["tokens"].argmax()]
two = [cut.train_dataset[int(place)] for place in places]
masks.show(cut.data_collator(two), tokenizer)

# %% tags=["claim"]
assert tokenizer.eos_token_id not in two[1]["input_ids"]
assert any(label != -100 for label in two[1]["labels"])
assert len(kept) == len(pairs) - 1

# %% [markdown]
# No message says that a row was cut. With 160 tokens, the long row loses most of its answer, and
# the EOS token with it. With 96 tokens, its prompt alone fills the row, and TRL drops it. The empty
# row teaches the model to answer with nothing. So clean the data, and set `max_length` above the
# longest row that you keep:

# %%
clean = messy[(stripped["pig_latin"] != "") & ~stripped.duplicated() & (messy["tokens"] <= 100)]
print(len(messy), "rows before,", len(clean), "after; the longest has", clean["tokens"].max())

# %% tags=["claim"]
assert len(clean) == len(good)

# %% [markdown]
# ## 9. Check before you train
#
# `preflight` looks for such mistakes in the trainer's own batches, and tries one step. First, a
# trainer without a mistake:

# %% tags=["value:preflight"]
from course_utils import preflight

report = preflight(make_trainer(chats))
print(report)

# %% tags=["claim"]
assert report.ok
assert "3 × the 40 examples" in {row.name: row.found for row in report.rows}["batch and steps"]

# %% [markdown]
# All checks pass. Each line names a check and says what it found. Three lines need an explanation
# (a number such as `5.8e-03` means 0.0058; the numbers are those of the saved run):
#
# - *documents apart*: `preflight` computes the losses of one text twice, in its padded row and
#   without the padding. They should be the same. Here they differ by 0.0058 of their mean, or 0.6%,
#   because this machine computes in 16 bits and rounds. A real leak changes them far more: in
#   section 7 the loss fell by more than a third.
# - *loss and gradients*: the loss before the training is 7.37. The *uniform guess* is what a model
#   would get that finds all 49,152 tokens equally likely: log 49,152 = 10.8. A loss far above that
#   is a warning that tokenizer and model may not belong together. The *gradient norm* is the size
#   of all gradients taken together. With a norm of 0, nothing would be learned.
# - *batch and steps*: `3 × 1 accumulated` means three examples in a batch, and one batch for each
#   step. An *update* is such a step: one change of the weights.
#
# Now three trainings with one mistake each. They differ only in the collator.

# %%
from transformers import DataCollatorForSeq2Seq

rows = [dict(tokenizer(f"{row['sentence']}\n{row['pig_latin']}{EOS}")) for row in some]
rows = [{**row, "labels": row["input_ids"]} for row in rows]


def collator_a(rows):
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)(ids)


def collator_b(rows):
    batch = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in rows])
    batch["labels"] = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    return batch


def collator_c(rows):
    batch = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
    return {**batch, "labels": batch["input_ids"].clone()}


def plain_trainer(collator):
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        fp16=dtype == torch.float16,
        remove_unused_columns=False,
        report_to="none",
    )
    return Trainer(
        model=model,
        args=settings,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
    )


trainers = {
    "A": plain_trainer(collator_a),
    "B": plain_trainer(collator_b),
    "C": plain_trainer(collator_c),
}

# %% [markdown]
# Look at one batch of each. Where a token and its label differ, both are drawn: `read→learned`.
# There are three drawings, of A, B and C in this order. (In a saved copy of this notebook, all
# three letters may stand above the first drawing: the first drawing belongs to A, the second to B,
# the third to C.)

# %%
from IPython.display import display

for name, each in trainers.items():
    print(name)
    display(masks.show(first_batch(each), tokenizer))

# %% [markdown]
# **Guess first.** What is wrong with each? Write `end` where no EOS token is learned, `padding`
# where padding is learned, and `shift` where each place learns the wrong token. (Leave aside that
# all three train on the prompt.)

# %%
my_guess = None  # three words, for A, B and C, such as "padding end shift"

# %%
print("you guessed:", my_guess)
for name, each in trainers.items():
    for row in preflight(each).rows:
        if row.status == "fail":
            print(f"{name} ✗ {row.name}: {row.found}\n    → {row.fix}")

# %% [markdown]
# **A is `end`.** This is Amina's collator. The mistake is easy to overlook, because only one token
# of each example is wrong.
#
# **B is `shift`.** The collator shifts the labels, and the model shifts them again. So each place
# learns the token after the next. B looks right, because the drawing pairs each token with the next
# one.
#
# **C is `padding`.** The labels are a copy of the tokens, padding included. C looks tidy, because
# nothing is struck through.
#
# Later notebooks run this **pre-flight** check before they train. The page [Silent
# faults](../docs/silent_faults.md) lists more such mistakes, from public reports.

# %% [markdown]
# ## Take away
#
# - The collator makes the batch, and its labels decide what is learned (section 2).
# - The EOS token has to be a label. With pad = eos, and a collator that masks by token, none of 12
#   replies ended; with another padding token, all 12 did (section 3; SmolLM2-135M, one seed).
# - In TRL, the columns `prompt` and `completion` train on the answers only (section 4).
#   `assistant_only_loss` needs a template with `{% generation %}` (section 5).
# - Packed examples must not read each other; a leak lowers the loss (section 7).
# - Look for long rows, duplicates, empty answers. `max_length` cuts silently (section 8).
# - Wrong masks raise no error. Draw the mask, and run `preflight` (section 9).

# %% [markdown]
# ## Exercises
#
# **Quiz.** Fill in the letters, and run the cell below.
#
# **a.** A fine-tuned model gives the right answer, and then writes on and on. Where do you look
# first?
#
# - **A** At the learning rate: after too large a step, a model forgets how to stop.
# - **B** At the number of steps: stopping is learned last.
# - **C** At the labels: is there an EOS token among them?
# - **D** At the loss: its curve shows where things went wrong.
#
# **b.** The labels of the prompt's tokens are -100. What does this do?
#
# - **A** The model reads them, and is not trained to write them.
# - **B** The model cannot look at them while it is being trained.
# - **C** They are cut from the batch, which saves time and memory.
# - **D** The model is trained *not* to write them.
#
# **c.** Two examples share one row. What must you make sure of?
#
# - **A** That there is padding between them.
# - **B** That the first has no EOS token, so that the row goes on.
# - **C** That both have prompts of the same length.
# - **D** That the second does not look back into the first.
#
# **d.** The training loss falls from the first step on. What does this say about the mask?
#
# - **A** That it is right: a wrong one would keep the loss up.
# - **B** Nothing: the loss can fall with wrong labels too.
# - **C** That the prompt is masked: otherwise the loss would rise.
# - **D** That the EOS token is a label: otherwise the loss would stay higher.

# %%
from course_utils.exercises import check, quiz

quiz("03", a="...", b="...", c="...", d="...")

# %% [markdown]
# **03.1 · Change one number.** Write `padding_share(lengths)`: which share of a padded batch is
# padding, if its examples have these lengths? Then change the 30 in the check's cell to 200. What
# does one long example do to a batch?


# %% tags=["exercise"]
def padding_share(lengths):
    """Lengths of a batch's examples to a number from 0 to 1."""
    ### BEGIN SOLUTION
    places = len(lengths) * max(lengths)
    return (places - sum(lengths)) / places
    ### END SOLUTION


# %%
print("padding:", padding_share([20, 22, 25, 30]))
check("03.1", padding_share)

# %% [markdown]
# **03.2 · Labels.** Write `labels_for(ids, prompt_length, end_id)`: the labels of one padded
# example, as a list. Put -100 on the prompt, and on everything after the first EOS token that
# follows the prompt. This EOS token itself is a label.


# %% tags=["exercise"]
def labels_for(ids, prompt_length, end_id):
    """Token ids of a padded example to labels, a list of the same length."""
    ### BEGIN SOLUTION
    labels = [-100] * prompt_length + list(ids[prompt_length:])
    if end_id in ids[prompt_length:]:
        behind = ids.index(end_id, prompt_length) + 1
        labels[behind:] = [-100] * (len(ids) - behind)
    return labels
    ### END SOLUTION


# %%
check("03.2", labels_for)

# %% [markdown]
# **03.3 · Packing, on your own.** Write `pack(lengths, room)`: which examples go into which row, if
# a row has room for `room` tokens and no example may be cut? Return a list of rows, each a list of
# indices. One row more than the minimum is allowed.


# %% tags=["exercise"]
def pack(lengths, room):
    """Lengths of the examples and the room in a row to rows of indices."""
    ### BEGIN SOLUTION
    rows, free = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row, left in enumerate(free):
            if lengths[index] <= left:
                rows[row].append(index)
                free[row] -= lengths[index]
                break
        else:
            rows.append([index])
            free.append(room - lengths[index])
    return rows
    ### END SOLUTION


# %%
check("03.3", pack)

# %% [markdown]
# Solutions: `notebooks/solutions/03_data_collators.py`.
#
# ## To read
#
# - The guides to TRL's [SFTTrainer](https://huggingface.co/docs/trl/sft_trainer) and to
#   [data collators](https://huggingface.co/docs/transformers/main_classes/data_collator).
# - Raschka, [Build a large language model (from
#   scratch)](https://www.manning.com/books/build-a-large-language-model-from-scratch): chapter 7
#   writes a collator with masks by hand; the
#   [code](https://github.com/rasbt/LLMs-from-scratch/tree/main/ch07) is free.
# - Krell et al., [Efficient sequence packing without
#   cross-contamination](https://arxiv.org/abs/2107.02027).
# - Our sentences are made by a program. Many other courses use the *Harvard sentences* (IEEE
#   Recommended Practice for Speech Quality Measurements, 1969), here [with Yoda
#   translations](https://huggingface.co/datasets/dvgodoy/yoda_sentences).
# - The course's terms, with the notebook that introduces each: [glossary](../docs/glossary.md).
