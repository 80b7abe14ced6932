"""Run a notebook as on a GPU, on a machine without one: does any cell raise?

    rehearse.py NB [TIER ...]   TIER is 16gb, 24gb or 40gb; all three without one
        --access                as somebody who has access to the gated models

The GPU is pretended (`tools.pretend_gpu`), and a stand-in for the hub serves tiny random models
under the real names: the same architecture, the tokenizer's form, the chat template. So a rehearsal
runs each tier's branches, with trainings of two steps. It says nothing of results, speed or memory:
`tests/test_rehearse.py` holds what the predictor says of memory.

Printed are the cells that raised, each training's settings, rules that were broken (as float16
without loss scaling), and lines that no tier has run. Status 1 where a cell raised or a rule was
broken. What was seen is kept in `build/rehearse`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools import notebooks

ROOT = notebooks.ROOT
KEPT = ROOT / "build" / "rehearse"
TIERS = ("16gb", "24gb", "40gb")
SPARE_MB = 300  # what a reply takes, and memory that is not returned
TOKEN = "hf_of_the_rehearsal"
CELL_TIMEOUT_S = 600

sys.path.append(str(ROOT / "tests"))
from hub_stand_in import HubStandIn, Repository  # noqa: E402

_CHATML = (
    "{%% if messages[0]['role'] != 'system' %%}{{ '<|im_start|>system\\n%s<|im_end|>\\n' }}"
    "{%% endif %%}{%% for message in messages %%}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>\\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}"
)
_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\\n' + messages[0]['content'] "
    "+ '\\n<</SYS>>\\n\\n' %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}"
    "{% set rest = messages %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "(system if loop.first else '') + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024\\n\\n' }}"
    "{{ '<|eot_id|>' }}"
    "{% endif %}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
_PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + "
    "'<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A family's tokenizer, as far as programs can tell families apart.

    Attributes:
        pieces: whether words begin with ▁, as SentencePiece writes them, or text is split as bytes.
        base, chat: the special tokens' names and texts, of the base model and of the chat model.
        extra: further special tokens in the vocabulary.
        template: the chat model's.
        base_template: the base model's.
        starts: whether a text gets a BOS token.
    """

    base: dict[str, str]
    chat: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    template: str | None = None
    base_template: str | None = None
    pieces: bool = False
    starts: bool = False


def _same(text: str, *names: str) -> dict[str, str]:
    return {f"{name}_token": text for name in names}


_END = "<|endoftext|>"
_SMOL = _CHATML % "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_QWEN = _CHATML % "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_SPM = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# By the beginning of a model's id; the first that fits.
FAMILIES = {
    "HuggingFaceTB/SmolLM2": Family(
        base=_same(_END, "bos", "eos", "unk"),
        chat={
            **_same("<|im_start|>", "bos"),
            **_same("<|im_end|>", "eos", "pad"),
            **_same(_END, "unk"),
        },
        extra=(_END, "<|im_start|>", "<|im_end|>"),
        template=_SMOL,
    ),
    "Qwen/": Family(
        base=_same(_END, "eos", "pad"),
        chat={**_same("<|im_end|>", "eos"), **_same(_END, "pad")},
        extra=(_END, "<|im_start|>", "<|im_end|>"),
        template=_QWEN,
        base_template=_QWEN,
    ),
    "meta-llama/Llama-2": Family(base=_SPM, template=_LLAMA_2, pieces=True, starts=True),
    "meta-llama/Llama-3": Family(
        base={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        chat={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        extra=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        template=_LLAMA_3,
        starts=True,
    ),
    "microsoft/Phi-3": Family(
        base={**_SPM, **_same(_END, "eos", "pad")},
        extra=("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        template=_PHI,
        pieces=True,
    ),
    "mistralai/": Family(
        base=_SPM, extra=("[INST]", "[/INST]"), template=_LLAMA_2, pieces=True, starts=True
    ),
    "facebook/opt": Family(
        base={**_same("</s>", "bos", "eos", "unk"), "pad_token": "<pad>"}, starts=True
    ),
    "": Family(
        base=_same(_END, "bos", "eos", "unk"), extra=("<|padding|>",)
    ),  # GPT-NeoX and others
}
# Sizes of a tiny model; what a configuration does not have stays away.
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 128,
    "head_dim": 32,
}


def _texts() -> Iterator[str]:
    """Texts of the course, to train a tokenizer on."""
    for file in sorted((ROOT / "datasets").glob("*/train.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:400]:
            yield from (value for value in json.loads(line).values() if isinstance(value, str))


@functools.cache
def _sentence_pieces() -> str:
    """A tokenizer of SentencePiece's form: words begin with ▁, and unknown letters are bytes."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers

    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        max_token_length=16,
        show_progress=False,
    )
    words = (word for text in _texts() for word in text.split())
    made.train_from_iterator(words, trainer)
    data = json.loads(made.to_str())
    # The bytes are ordinary tokens.
    data["added_tokens"] = [
        token for token in data["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return json.dumps(data)


def family_of(model_id: str) -> Family:
    """The family of a model, by the beginning of its id."""
    return next(made for name, made in FAMILIES.items() if model_id.startswith(name))


def tokenizer(model_id: str, chat: bool) -> Any:
    """A tokenizer of a model's kind, with the course's vocabulary."""
    import tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from course_utils.models import catalog

    family = family_of(model_id)
    special = {**family.base, **(family.chat if chat else {})}
    if family.pieces:
        inner = tokenizers.Tokenizer.from_str(_sentence_pieces())
    else:
        bundled = catalog().bundled["course/pythia-3m"].path / "tokenizer.json"
        inner = tokenizers.Tokenizer.from_file(str(bundled))
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, **special, additional_special_tokens=list(family.extra)
    )
    if family.starts:
        bos = special["bos_token"]
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, made.convert_tokens_to_ids(bos))],
        )
    made.chat_template = family.template if chat else family.base_template
    return made


def write_model(model_id: str, folder: Path) -> Path:
    """Write a tiny random model in place of a catalogue's model; returns its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    from course_utils.models import catalog

    logging.disable_progress_bar()
    entry = catalog().models[model_id]
    made = tokenizer(model_id, entry.kind == "chat")
    data = json.loads(entry.config_path.read_text(encoding="utf-8"))
    heads = data["num_attention_heads"]
    for name in ("num_key_value_heads", "num_kv_heads"):
        if name in data:
            data[name] = 4 if data[name] == heads else min(2, data[name])
    data.update({name: size for name, size in TINY.items() if name in data})
    data["vocab_size"] = -(-(len(made) + 1) // 64) * 64  # larger than the tokenizer, as real ones
    ends = {name: getattr(made, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(**{**data, **ends})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, entry.dtype))
    if entry.kind == "chat":  # as on the hub: chat models sample
        ends.update(do_sample=True, temperature=0.6, top_p=0.9)
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)
    made.model_max_length = config.max_position_embeddings
    made.save_pretrained(folder)
    return folder


def _rows(dataset_id: str) -> dict[str, list[dict[str, str]]]:
    """Rows with a dataset's columns, by split; their texts are the course's."""
    texts = list(_texts())

    def text(number: int) -> str:
        return texts[number % len(texts)]

    if "guanaco" in dataset_id:
        rows = [{"text": f"### Human: {text(i)}### Assistant: {text(i + 1)}"} for i in range(900)]
        return {"train": rows[:600], "test": rows[600:]}
    from course_utils.models import catalog

    columns = catalog().datasets[dataset_id].columns
    return {"train": [{name: text(i + k) for k, name in enumerate(columns)} for i in range(3200)]}


class Shelf(dict):
    """The stand-in's repositories, each made when it is first asked for."""

    def __init__(self, folder: Path, beside: dict[str, bytes]):
        super().__init__()
        self.folder, self.beside, self.lock = folder, beside, threading.Lock()

    def get(self, name: str, default: Any = None) -> Any:
        """A repository by its id; None for one that the catalogue does not have."""
        from course_utils.models import catalog

        entry = catalog().models.get(name) or catalog().datasets.get(name)
        if entry is None:
            return default
        with self.lock:
            if name not in self:
                folder = self.folder / name.replace("/", "--")
                folder.mkdir(parents=True)
                if name in catalog().models:
                    write_model(name, folder)
                else:
                    for split, rows in _rows(name).items():
                        lines = "".join(json.dumps(row) + "\n" for row in rows)
                        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
                beside = {"README.md": self.beside["README.md"]}
                self[name] = Repository(folder, entry.revision, entry.gated, beside=beside)
        return self[name]


def hub(folder: Path) -> HubStandIn:
    """Start a hub that has whatever the catalogue has, tiny and random."""
    from hub_stand_in import BESIDE

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = HubStandIn(port)
    server.repositories = Shelf(folder, BESIDE)
    server.accepted_tokens = {TOKEN}
    server.port = port  # type: ignore[attr-defined]
    return server


def workplace(folder: Path) -> Path:
    """A copy of the course in links, in which a notebook may write; returns its notebooks."""
    own = folder / "course"
    (own / "notebooks").mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name not in ("notebooks", "build"):
            (own / path.name).symlink_to(path)
    for path in notebooks.NOTEBOOKS.iterdir():
        if path.name != "models":
            (own / "notebooks" / path.name).symlink_to(path)
    return own / "notebooks"


def environment(folder: Path, port: int, access: bool) -> dict[str, str]:
    """The kernel's environment: the stand-in, caches of its own, and no real GPU."""
    from course_utils.models import ensure

    models = ensure("smollm2-135m-instruct").parent
    cache = folder / "cache"
    if not cache.exists():
        cache.mkdir()
        (cache / "models").symlink_to(models)
    without = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_XET_CACHE")
    kept = {name: text for name, text in os.environ.items() if name not in without}
    return {
        **kept,
        **({"HF_TOKEN": TOKEN} if access else {}),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "COURSE_CACHE": str(cache),
        "COURSE_PROGRESS": str(folder / "progress.json"),
        "COURSE_VOTES": str(folder / "votes"),
        "COURSE_THEME": "light",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",  # of tiny models, threads make more wait than work
    }


@dataclass
class Failure:
    """A cell that raised.

    Attributes:
        cell: its number among the code cells.
        line: of the notebook's source, or of the cell where it is not found there.
        error: the error's type and text.
        follows: whether an earlier failure explains it, a name that is missing.
    """

    cell: int
    line: int
    error: str
    follows: bool = False


@dataclass
class Rehearsal:
    """What happened in a rehearsal."""

    notebook: str
    tier: str
    seconds: float
    cells: int
    failures: list[Failure]
    rules: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    ran: list[tuple[str, list[int]]] = field(default_factory=list)
    died: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing raised, and no rule was broken."""
        return not (self.failures or self.rules or self.died)


def place(source: Path, cell: str) -> int:
    """The line of a source before a cell's first line."""
    lines = source.read_text(encoding="utf-8").split("\n")
    wanted = cell.strip("\n").split("\n")
    for start in range(len(lines)):
        if lines[start : start + len(wanted)] == wanted:
            return start
    return 0


def statements(cell: str) -> set[int]:
    """The first lines of a cell's statements, docstrings left out."""
    try:
        tree = ast.parse(cell)
    except SyntaxError:
        return set()  # a magic
    return {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    }


def _assigned(cell: str) -> set[str]:
    """The names that a cell would have made."""
    try:
        tree = ast.parse(cell)
    except SyntaxError:
        return set()
    found = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


def failures(cells: list[NotebookNode], source: Path) -> list[Failure]:
    """The failures in a notebook that has been run."""
    found: list[Failure] = []
    missing: set[str] = set()
    for number, cell in enumerate(cells, start=1):
        for output in cell.outputs:
            if output.output_type != "error":
                continue
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
            inside = re.findall(r"Cell In\[\d+\], line (\d+)", trace)
            line = place(source, cell.source) + int(inside[-1] if inside else 1)
            text = re.sub(r"\s+", " ", output.evalue)[:400]
            name = re.search(r"name '(\w+)' is not defined", text)
            follows = bool(name and name[1] in missing)
            missing |= _assigned(cell.source)
            found.append(Failure(number, line, f"{output.ename}: {text}", follows))
    return found


def rehearse(source: Path, tier: str, folder: Path, port: int, access: bool = False) -> Rehearsal:
    """Run a notebook as on a tier's GPU.

    Args:
        source: the notebook's source; it is run with its solutions.
        tier: one of `TIERS`.
        folder: for caches and what the notebook writes; one that is used again keeps adapters.
        port: where the stand-in for the hub listens.
        access: whether the gated models may be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / f"{source.stem}.json"
    report.unlink(missing_ok=True)
    notebook = notebooks.build(source, solved=True)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = new_code_cell(
        f"import sys\nsys.path.append({str(ROOT)!r})\nfrom tools import pretend_gpu\n"
        f"pretend_gpu.start({tier!r}, {str(report)!r})"
    )
    notebook.cells = [first, *code]
    where = folder / "course" / "notebooks"
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        allow_errors=True,
        resources={"metadata": {"path": str(where if where.exists() else workplace(folder))}},
        store_widget_state=False,
        record_timing=False,
        extra_arguments=["--log-level=40"],
    )
    died, begun = "", time.monotonic()
    try:
        client.execute(env=environment(folder, port, access))
    except CellTimeoutError:
        died = f"a cell ran longer than {CELL_TIMEOUT_S // 60} minutes"
    except DeadKernelError:
        died = "the kernel died"
    if any(output.output_type == "error" for output in first.outputs):
        raise SystemExit("\n".join(first.outputs[-1].traceback))
    seen = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    done = sum(bool(cell.execution_count) for cell in code)
    seconds = round(time.monotonic() - begun, 1)
    found = failures(code, source)
    return Rehearsal(source.stem, tier, seconds, done, found, died=died, **seen)


def never_run(source: Path, ran: list[list[tuple[str, list[int]]]]) -> list[int]:
    """The lines of a source's statements that none of several runs has come to."""
    reached: dict[str, set[int]] = {}
    for run in ran:
        for cell, lines in run:
            reached.setdefault(cell, set()).update(lines)
    found = []
    for cell in notebooks.build(source, solved=True).cells:
        text = cell.source.strip("\n")
        if cell.cell_type != "code" or "colab-setup" in cell.metadata.get("tags", []):
            continue
        start = place(source, text)
        found += [start + line for line in sorted(statements(text) - reached.get(text, set()))]
    return found


def told(result: Rehearsal) -> str:
    """What happened, for people."""
    lines = [f"{result.notebook}, {result.tier}: {result.cells} cells in {result.seconds:.0f} s"]
    if result.died:
        lines.append(f"  stopped: {result.died}")
    for failure in result.failures:
        why = " (follows from an earlier one)" if failure.follows else ""
        lines.append(f"  cell {failure.cell}, line {failure.line}{why}: {failure.error}")
    lines += [f"  rule: {text}" for text in result.rules]
    lines += [f"  note: {text}" for text in result.notes]
    different = {(setting(each), each.get("memory")): each for each in result.trainings}
    for training in different.values():
        lines.append(f"  training: {setting(training)}")
        if training.get("memory"):
            lines.append(f"    memory: {training['memory']}")
    return "\n".join(lines)


def setting(training: dict[str, Any]) -> str:
    """A training's settings in a line."""
    weights = training["quantization"] or training["dtype"]
    adapter = f"LoRA of rank {training['lora_rank']}" if training["lora"] else "all weights"
    return (
        f"{training['model']} in {weights}, {adapter}, {training['batch_size']} × "
        f"{training['accumulation']} examples of up to {training['seq_len']} tokens, rate "
        f"{training['learning_rate']:g}, mixed precision {training['mixed_precision']}, "
        f"checkpointing {training['checkpointing']}, {training['optimizer']}"
    )


def weights_mb(held: dict[str, Any]) -> float:
    """What a model's weights take, in MB: embeddings in their dtype, the rest quantized."""
    from course_utils.models import catalog
    from course_utils.models._quantization import BYTES_PER_PARAMETER

    entry = catalog().models[held["model"]]
    each = {"float32": 4, "float16": 2, "bfloat16": 2}[held["dtype"]]
    if not held["quantization"]:
        return entry.parameters * each / 1e6
    config = entry.config()
    tables = 1 if config.tie_word_embeddings else 2
    whole = tables * config.vocab_size * config.hidden_size
    inner = (entry.parameters - whole) * BYTES_PER_PARAMETER[held["quantization"]]
    return (whole * each + inner) / 1e6


CARDS = {"16gb": "t4", "24gb": "l4", "40gb": "a100-40gb"}
_FIELDS = (
    *("model", "quantization", "lora", "lora_rank", "lora_targets", "lora_dropout"),
    *("adapter_dtype", "trainer"),
    *("batch_size", "accumulation", "mixed_precision", "checkpointing", "optimizer", "seq_len"),
)


def memory(training: dict[str, Any], tier: str) -> str:
    """What the predictor says of a training and of the models beside it, in a line.

    It begins with "too much" where they do not fit; it is empty for a model that the predictor
    cannot know, such as one of the notebook's own.
    """
    from course_utils.errors import CourseError
    from course_utils.memory import Setup, predict, usable_bytes
    from course_utils.models import catalog

    if training["model"] not in catalog().models:
        return ""
    given = {name: training[name] for name in _FIELDS if name in training}
    prepared = bool(training["quantization"]) and training["dtype"] == "float32"
    dtype = training["compute"] if prepared else training["dtype"]
    card = CARDS[tier.split()[0]]
    try:
        setup = Setup(
            **given, dtype=dtype or "float32", kbit_preparation=prepared, sequences="padded"
        )
        found = predict(setup, card)
    except CourseError as error:
        return f"not predicted: {error}"
    beside = sum(map(weights_mb, training["beside"]))
    room = usable_bytes(card) / 1e6
    fits = found.peak_reserved_mb + beside + SPARE_MB <= room
    names = ", ".join(held["model"] for held in training["beside"]) or "nothing"
    return (
        f"{'fits' if fits else 'too much'}: {found.peak_reserved_mb / 1000:.1f} GB predicted, "
        f"{beside / 1000:.1f} GB of weights beside it ({names}), of {room / 1000:.1f} GB"
    )


def look_at_memory(result: Rehearsal) -> None:
    """Predict each kind of training once; one that does not fit breaks a rule."""
    known: dict[str, str] = {}
    for training in result.trainings:
        if not training["on_gpu"]:
            continue
        beside = sorted(str(held) for held in training["beside"])
        key = f"{setting(training)} {beside}"
        if key not in known:
            known[key] = memory(training, result.tier)
            if known[key].startswith("too much"):
                result.rules.append(f"{training['model']}: {known[key]}")
        training["memory"] = known[key]


def _kept(source: Path, name: str) -> Path:
    return KEPT / f"{source.stem}.{urllib.parse.quote(name)}.json"


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", metavar="NB", help="its number, such as 03.1")
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=", ".join(TIERS))
    parser.add_argument("--access", action="store_true", help="to the gated models")
    args = parser.parse_intermixed_args(argv)
    chosen = [tier for tier in args.tiers if tier.strip()] or list(TIERS)
    for tier in chosen:
        if tier not in TIERS:
            raise SystemExit(
                f"There is no tier {tier!r} to rehearse. There are: {', '.join(TIERS)}, such as "
                "TIER=16gb. (On a CPU, `make notebook` runs the notebook as it is.)"
            )
    source = notebooks.find(args.notebook)
    KEPT.mkdir(parents=True, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        server = hub(Path(scratch, "hub"))
        try:
            for tier in chosen:
                name = f"{tier}{' with access' if args.access else ''}"
                result = rehearse(source, tier, Path(scratch, tier), server.port, args.access)
                look_at_memory(result)
                result.tier = name
                print(told(result), flush=True)
                _kept(source, name).write_text(json.dumps(asdict(result)), encoding="utf-8")
                results.append(result)
        finally:
            server.close()
    seen = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(KEPT.glob(f"{source.stem}.*.json"))
    ]
    tiers = ", ".join(run["tier"] for run in seen)
    missed = never_run(source, [run["ran"] for run in seen])
    text = source.read_text(encoding="utf-8").split("\n")
    print(f"Lines that none of these has run ({tiers}): {len(missed)}")
    for line in missed:
        print(f"  {source.relative_to(ROOT)}:{line}: {text[line - 1].strip()[:80]}")
    return int(not all(result.ok for result in results))


if __name__ == "__main__":
    sys.exit(main())
