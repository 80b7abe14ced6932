"""Predictions asked for too much, or of a model whose configuration is damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from course_utils.errors import CourseError, ImpossibleSetup
from course_utils.memory import _build as build
from course_utils.memory import predict
from course_utils.memory._setup import MOST, Setup

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
    "max_position_embeddings": 40_000,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 500,
    "max_position_embeddings": 40_000,
}
# What a prediction may take beyond what the libraries take, in MB.
MOST_MB = 700
MEASURED = """
import json, resource, sys
from course_utils.memory import predict
from course_utils.memory import Setup
def taken():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
options = json.loads(sys.argv[1])
predict(Setup(**{**options, "batch_size": 1, "seq_len": 64}))
before = taken()
found = predict(Setup(**options))
print(json.dumps([taken() - before, found.peak_allocated_mb]))
"""


@pytest.mark.parametrize("model", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_large_batch_is_not_built(model: dict, attention: str) -> None:
    """4,096 examples of 32,768 tokens, a gigabyte for each of their tensors, are only outlined."""
    large = {"trainer": "trainer", "batch_size": 4096, "seq_len": 32768}
    options = {"model": model, "attention": attention, **large}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken, peak = json.loads(done.stdout)
    assert taken < MOST_MB
    # 3 · 2^27 integers, and far more of activations.
    assert peak > 3 * 2**27 * 8 / 1e6


@pytest.mark.parametrize("sequences", ["padded", "packed"])
def test_what_has_to_be_built_is_refused_when_large(sequences: str) -> None:
    """How long each example is decides what runs, so those have a limit, which is said."""
    with pytest.raises(ImpossibleSetup, match=r"batch_size is 4,096.*smaller batch"):
        predict(Setup(LLAMA, batch_size=4096, seq_len=32768, sequences=sequences))


@pytest.mark.parametrize(
    "options",
    [
        {"trainer": "trainer"},
        {"trainer": "trainer", "attention": "flash_attention_2"},
        {"trainer": "loop"},
        {"trainer": "loop", "attention_mask": False},
    ],
)
def test_an_outline_gives_the_same_figures(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte: nothing goes by the values that an outline leaves out."""
    setup = Setup(OPT, batch_size=3, seq_len=48, **options)
    whole = predict(setup)
    monkeypatch.setattr(build, "MOST_TOKENS", 1)
    assert build.outline(setup)["input_ids"].device.type == "meta"
    outlined = predict(setup)
    assert outlined.log == whole.log
    assert outlined.peak_op == whole.peak_op


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_padding_as_before(rows: int, length: int) -> None:
    """The first example is whole, the others go down to half of it."""
    mask = build.batch(Setup(OPT, batch_size=rows, seq_len=length, sequences="padded"), 500)[
        "attention_mask"
    ]
    wanted = [length - row * (length // 2) // max(1, rows - 1) for row in range(rows)]
    assert mask.sum(1).tolist() == (wanted if rows > 1 else [length])
    assert torch.equal(mask.cummin(1).values, mask)


@pytest.mark.parametrize(
    "name", ["batch_size", "seq_len", "lora_rank", "accumulation", "micro_batches"]
)
@pytest.mark.parametrize("value", [MOST, MOST + 1, 10**18, 10**30])
def test_huge_numbers(name: str, value: int) -> None:
    """Answered, or refused by name; nothing runs as often as is asked for."""
    free = {key: size for key, size in LLAMA.items() if key != "max_position_embeddings"}
    model = {**free, "max_position_embeddings": 10**40}
    options = {"seq_len": 8, name: value}
    if value > MOST:
        with pytest.raises(ImpossibleSetup, match=rf"{name} is .* from 1 to 1,000,000"):
            Setup(model, lora=True, **options)
    else:
        assert predict(Setup(model, lora=True, **options)).peak_allocated_mb > 0


DAMAGED = {
    "empty": "",
    "cut": '{"model_type": "llama", "hid',
    "a list": "[1, 2]",
    "a number": "7",
    "a binary": "\x00\x01\x02",
    "nested": "[" * 100_000,
    "no type": "{}",
    "a type that is none": '{"model_type": 5}',
    "an unknown type": '{"model_type": "nope"}',
    "no layers": json.dumps({**LLAMA, "num_hidden_layers": 0}),
    "a billion layers": json.dumps({**LLAMA, "num_hidden_layers": 10**9}),
    "layers in words": json.dumps({**LLAMA, "num_hidden_layers": "two"}),
    "a negative width": json.dumps({**LLAMA, "hidden_size": -64}),
    "a width in words": json.dumps({**LLAMA, "hidden_size": "wide"}),
    "heads that do not fit": json.dumps({**LLAMA, "num_attention_heads": 7}),
    "no heads": json.dumps({**LLAMA, "num_attention_heads": 0}),
    "positions in words": json.dumps({**LLAMA, "max_position_embeddings": "many"}),
}


@pytest.mark.parametrize("said", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_configuration(said: str, tmp_path: Path) -> None:
    """An error of the course's that names the folder, and no other."""
    (tmp_path / "config.json").write_text(said)
    with pytest.raises(CourseError) as caught:
        predict(Setup(str(tmp_path), seq_len=8))
    assert str(tmp_path) in str(caught.value)


def test_a_configuration_in_another_encoding(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are damage too."""
    (tmp_path / "config.json").write_bytes(b'{"model_type": "ll\xe4ma"}')
    with pytest.raises(ImpossibleSetup, match="cannot be read"):
        Setup(str(tmp_path))
