"""Pre-trains the course's own base model: the next token of generated texts, and nothing else.

`make pretrain` gives the models that travel with the course, under `course_utils/models/bundled`.
Seeded: the same versions on the same kind of machine give the same weights. Introduced in
notebook 06.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

import course_utils
from benchmarks.pretraining.tokenizer import train_tokenizer
from course_utils._core import checks
from course_utils._core.files import make_folder, new_folder, saying_why
from course_utils._core.undisturbed import quiet_libraries
from course_utils.data._corpus import Corpus
from course_utils.errors import CannotWrite

MODELS = Path(course_utils.__file__).parent / "models" / "bundled"


@dataclass(frozen=True)
class Settings:
    """Architecture and training. The architecture is Pythia's, which is GPT-NeoX, in small."""

    vocabulary: int = 2048
    context: int = 256
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    tokenizer_documents: int = 20_000
    steps: int = 3000
    batch: int = 8  # of `context` tokens each
    learning_rate: float = 3e-3
    warm_up: int = 60
    constant_until: float = 0.3  # of the steps; then linear down to `last_rate`
    last_rate: float = 0.02  # of the learning rate
    weight_decay: float = 0.1
    clip: float = 1.0
    threads: int = 2  # another number gives other last digits, and in the end another model

    def __post_init__(self) -> None:
        """Refuse what no training can have.

        Raises:
            BadValue: a value that is not possible.
        """
        for name in ("vocabulary", "context", "hidden", "layers", "heads", "tokenizer_documents"):
            checks.whole(name, getattr(self, name), least=1)
        for name in ("steps", "batch", "threads"):
            checks.whole(name, getattr(self, name), least=1, most=10**7)
        checks.whole("warm_up", self.warm_up, least=0)
        for name in ("learning_rate", "clip"):
            checks.number(name, getattr(self, name), above=0)
        for name in ("constant_until", "last_rate"):
            checks.number(name, getattr(self, name), least=0, most=1)
        checks.number("weight_decay", self.weight_decay, least=0)
        if self.hidden % self.heads:
            raise checks.refuse("hidden", self.hidden, f"a multiple of heads, {self.heads}")


def new_model(
    tokenizer: PreTrainedTokenizerFast, settings: Settings, seed: int
) -> GPTNeoXForCausalLM:
    """The model before its training: random weights, float32."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.hidden,
        max_position_embeddings=settings.context,
        rotary_pct=0.25,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPTNeoXForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def the_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """The tokenizer, from documents with all facts: all seeds and the control share it."""
    documents = itertools.islice(Corpus(0).documents(), settings.tokenizer_documents)
    return train_tokenizer(documents, settings.vocabulary, settings.context)


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> Iterator[torch.Tensor]:
    """Packed documents, an EOS token before each: int64 tensors (batch, context)."""
    stream: list[int] = []
    documents = corpus.documents()
    need = settings.batch * settings.context
    while True:
        while len(stream) < need:
            texts = list(itertools.islice(documents, 64))
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
                stream += [tokenizer.eos_token_id, *ids]
        yield torch.tensor(stream[:need]).view(settings.batch, settings.context)
        del stream[:need]


def rate_factor(step: int, settings: Settings) -> float:
    """What the learning rate is multiplied with at a step, counted from 0."""
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    start = settings.constant_until * settings.steps
    fallen = max(0.0, (step - start) / (settings.steps - start))
    return 1 - (1 - settings.last_rate) * fallen


def pretrain(
    seed: int = 0,
    without: Collection[str] = (),
    settings: Settings = Settings(),
    report_every: int = 100,
) -> tuple[GPTNeoXForCausalLM, PreTrainedTokenizerFast, list[dict[str, float]]]:
    """Train a base model from nothing.

    Args:
        seed: of the weights and of the corpus.
        without: countries whose facts no document tells.
        settings: architecture and training.
        report_every: print the mean loss of so many steps; 0 for never.

    Returns:
        The model in eval mode, its tokenizer, and the mean losses on the way: step, loss, seconds.

    Raises:
        BadValue: a seed or a number that is not possible.
    """
    checks.whole("seed", seed, least=0, most=2**32 - 1)
    checks.whole("report_every", report_every, least=0)
    checks.a("settings", settings, Settings, "Settings")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    tokenizer = the_tokenizer(settings)
    model = new_model(tokenizer, settings, seed).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    # Another part of the corpus than the one that the tokenizer learned from.
    texts = batches(Corpus(1000 + seed, without), tokenizer, settings)
    losses: list[float] = []
    log: list[dict[str, float]] = []
    start = time.perf_counter()
    for step, ids in enumerate(itertools.islice(texts, settings.steps)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_factor(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if report_every and (step + 1) % report_every == 0:
            mean = sum(losses[-report_every:]) / report_every
            seconds = time.perf_counter() - start
            log.append({"step": step + 1, "loss": round(mean, 4), "seconds": round(seconds, 1)})
            print(f"step {step + 1}/{settings.steps}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
    torch.set_num_threads(threads)
    return model.eval(), tokenizer, log


# What `save` writes; a folder with anything else is somebody's own.
_WRITTEN = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}


def check_replaceable(folder: Path) -> None:
    """Refuse to replace what was not written by `save`.

    Args:
        folder: one that is not there, is empty, or holds a model that `save` has written may be
            replaced.

    Raises:
        CannotWrite: it holds anything else, or cannot be written.
    """
    make_folder(folder.parent)
    if not os.access(folder.parent, os.W_OK):
        raise CannotWrite(f"{folder.parent} cannot be written. Name another folder.")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise CannotWrite(f"{folder} is no folder. Name an empty one, or one that is not there.")
    found = {path.name for path in folder.iterdir()}
    strange = sorted(found - _WRITTEN)
    if found and (strange or "training.json" not in found):
        raise CannotWrite(
            f"{folder} holds {', '.join(strange[:3]) or 'no training.json'}, so it was not written "
            "by this command and is not replaced. Name an empty folder, or one that is not there."
        )


def save(
    folder: Path,
    model: GPTNeoXForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    facts: dict[str, object],
) -> None:
    """Write a model in bfloat16 with its tokenizer and `training.json`, all at once or not at all.

    Args:
        folder: replaced where `save` has written it, but for its model card.
        facts: what `training.json` tells of the training.

    Raises:
        CannotWrite: see `check_replaceable`.
        NotEnoughDisk: the disk is full; the folder is as it was.
    """
    check_replaceable(folder)
    with new_folder(folder) as scratch, saying_why("The model", folder):
        made = scratch / "new"
        with quiet_libraries():
            model.to(torch.bfloat16).save_pretrained(made)
            tokenizer.save_pretrained(made)
        (made / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
        if (folder / "README.md").exists():
            shutil.copy(folder / "README.md", made)
