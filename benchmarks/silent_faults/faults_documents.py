"""Faults of packing: documents of one row that see each other, and positions that move."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from benchmarks.silent_faults.common import WORDS, Fault, add, base_tokenizer, plain, sft, tiny
from benchmarks.silent_faults.faults_text import with_labels

KIND = "Documents that see each other"


def texts(count: int = 24) -> list[dict[str, str]]:
    """Short documents, no two alike."""
    words = (WORDS * 2)[:count]
    return [{"text": f"Say {w} twice, number {i}: {w} {w} once more"} for i, w in enumerate(words)]


def last_start(batch: dict[str, Any], end: int) -> int:
    """Where the last document of the batch's first row begins; 0 where there is only one."""
    if "position_ids" in batch:
        return int((batch["position_ids"][0] == 0).nonzero().max())
    ends = (batch["input_ids"][0, :-1] == end).nonzero().flatten()
    return int(ends.max()) + 1 if len(ends) else 0


def leak(trainer: Trainer) -> str:
    """Compares the logits of a row's last document with others in place of those before it."""
    torch.manual_seed(0)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    start = last_start(batch, trainer.processing_class.eos_token_id)
    assert start, "no row has two documents"
    inputs = {
        name: value[:1]
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.ndim > 1 and name != "labels"
    }
    ids = inputs["input_ids"]
    others = ids.clone()
    others[:, :start] = torch.randint(10, 1000, (1, start))
    model = trainer.model.eval()
    with torch.no_grad():
        first, second = (
            model(**{**inputs, "input_ids": x}).logits[:, start:] for x in (ids, others)
        )
    change = (first - second).abs().max().item() / first.abs().max().item()
    assert change > 1e-6, f"the last document is the same after others (change {change:.1e})"
    return (
        f"With other documents before it in the row, the logits of the last of "
        f"{ids.shape[1]} tokens change by up to {change:.1%} of the largest."
    )


def build(name: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A tiny random model of some architecture."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    heads: dict[str, Any] = {"num_attention_heads": 4}
    if name == "opt":
        options = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
        return tf.OPTForCausalLM(tf.OPTConfig(**sizes, **heads, **options))
    if name == "bloom":
        return tf.BloomForCausalLM(tf.BloomConfig(**sizes, n_head=4))
    if name == "falcon-alibi":
        return tf.FalconForCausalLM(tf.FalconConfig(**sizes, **heads, alibi=True))
    if name == "mamba":
        return tf.MambaForCausalLM(tf.MambaConfig(**sizes, state_size=8))
    sizes |= {"intermediate_size": 64, "num_key_value_heads": 2}
    if name == "recurrent-gemma":
        options = {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64}
        return tf.RecurrentGemmaForCausalLM(tf.RecurrentGemmaConfig(**sizes | heads | options))
    assert name == "jamba", name
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
    state = {"use_mamba_kernels": False, "mamba_d_state": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1}
    return tf.JambaForCausalLM(tf.JambaConfig(**sizes, **heads, **layers, **state, **experts))


def packed(name: str, **options: Any) -> SFTTrainer:
    """Packing or not with TRL, all weights of a model of some architecture."""
    tokenizer = base_tokenizer()
    model = tiny(tokenizer) if name == "llama" else build(name, tokenizer)
    return sft(texts(), model, tokenizer, **options)


PACKED: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "opt": (
        ("huggingface/transformers#32937", "huggingface/trl#1230"),
        {"packing": True, "max_length": 64},
        "Documents are packed for OPT. It counts their positions anew, and its attention reads "
        "over their borders all the same.",
    ),
    "bloom": (
        ("huggingface/transformers#32937", "huggingface/trl#1230"),
        {"packing": True, "max_length": 64},
        "Documents are packed for BLOOM. It takes no position ids, from which others tell the "
        "documents apart, and each reads those before it.",
    ),
    "falcon-alibi": (
        ("huggingface/trl#1230", "huggingface/trl#805"),
        {"packing": True, "max_length": 64},
        "Documents are packed for a Falcon with ALiBi, which other Falcons keep apart and this one "
        "does not.",
    ),
    "mamba": (
        ("state-spaces/mamba#478", "huggingface/transformers#46093"),
        {"padding_free": True, "max_length": None},
        "padding_free=True lays the batch's documents end to end for Mamba, whose state runs on "
        "from each into the next.",
    ),
    "jamba": (
        ("huggingface/transformers#46093", "huggingface/transformers#46333"),
        {"packing": True, "max_length": 64},
        "Documents are packed for Jamba. Its attention could keep them apart; the state of its "
        "Mamba layers runs on from each into the next.",
    ),
    "recurrent-gemma": (
        ("huggingface/transformers#46093",),
        {"packing": True, "max_length": 64},
        "Documents are packed for RecurrentGemma, whose attention takes them for one text.",
    ),
}
for architecture, (reports, settings, what) in PACKED.items():
    add(
        Fault(
            name=f"packed-documents-{architecture}",
            kind=KIND,
            issues=reports,
            story=what,
            make=lambda name=architecture, options=settings: packed(name, **options),
            mended=lambda name=architecture: packed(name),
            rows=("documents apart",),
            proof=leak,
        )
    )

add(
    Fault(
        name="wrapped-packing",
        kind=KIND,
        issues=(
            "huggingface/trl#1230",
            "huggingface/trl#3067",
            "huggingface/alignment-handbook#204",
        ),
        story="packing_strategy='wrapped' cuts one long text of all documents into rows: each "
        "document reads those before it, and those at a row's end are cut.",
        make=lambda: packed("llama", packing=True, packing_strategy="wrapped", max_length=64),
        mended=lambda: packed("llama", packing=True, packing_strategy="bfd", max_length=64),
        rows=("documents apart", "truncated"),
        proof=leak,
    )
)


def blocks(apart: bool) -> Trainer:
    """Documents joined and cut into blocks by oneself, or left as they are."""
    tokenizer = base_tokenizer()
    ids = [tokenizer(row["text"] + tokenizer.eos_token)["input_ids"] for row in texts()]
    if not apart:
        joined = [token for row in ids for token in row]
        ids = [joined[start : start + 64] for start in range(0, len(joined) - 63, 64)]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    return with_labels(rows, tokenizer)


add(
    Fault(
        name="own-blocks-of-many-documents",
        kind=KIND,
        issues=("hiyouga/LlamaFactory#2289", "huggingface/trl#805"),
        story="Questions with answers were joined and cut into blocks, as one does with books: "
        "each answer is learned from the other questions before it, and many are cut.",
        make=lambda: blocks(apart=False),
        mended=lambda: blocks(apart=True),
        rows=("documents apart",),
        proof=leak,
    )
)


def positions(side: str) -> Trainer:
    """GPT-2 on texts of uneven lengths, padded on some side."""
    tokenizer = base_tokenizer()
    tokenizer.padding_side = side
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    rows = [
        dict(tokenizer(f"Say {word}{' again' * (row % 6)}: {word}{tokenizer.eos_token}"))
        for row, word in enumerate(WORDS)
    ]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return plain(rows, tf.GPT2LMHeadModel(config), tokenizer, data_collator=collator)


def moved(trainer: Trainer) -> str:
    """Compares the logits of rows in their batch with those of the rows by themselves."""
    torch.manual_seed(0)
    model = trainer.model.eval()
    changed = rows = 0
    for batch in trainer.get_train_dataloader():
        with torch.no_grad():
            together = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            for row, mask in enumerate(batch["attention_mask"].bool()):
                alone = model(input_ids=batch["input_ids"][row, mask][None]).logits[0]
                changed += not torch.allclose(together[row, mask], alone, atol=1e-4)
                rows += 1
    assert changed, "every row is the same in its batch"
    return f"{changed} of {rows} rows give other logits in their batch than by themselves."


add(
    Fault(
        name="padded-left-with-absolute-positions",
        kind=KIND,
        issues=("huggingface/transformers#9173",),
        story="GPT-2 is trained with padding on the left, as for generation. Its learned positions "
        "count the padding: the shorter a row, the later it seems to begin.",
        make=lambda: positions("left"),
        mended=lambda: positions("right"),
        rows=("documents apart", "batches", "pad vs eos"),
        proof=moved,
    )
)
