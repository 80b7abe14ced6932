"""Data that would steer a terminal, or that nobody would see: it is shown, not sent."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata

import pandas as pd
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from course_utils import masks
from course_utils._core.printable import visible
from course_utils.display import text_table
from course_utils.models._loading import load_tokenizer

# What a hostile dataset or model may write, and how it is shown.
HOSTILE = {
    "clear the screen": ("\x1b[2J", "␛[2J"),
    "colour": ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
    "window title": ("\x1b]0;owned\x07", "␛]0;owned␇"),
    "clipboard": ("\x1b]52;c;cm0gLXJm\x07", "␛]52;c;cm0gLXJm␇"),
    "link": ("\x1b]8;;http://x\x1b\\here", "␛]8;;http://x␛\\here"),
    "device control": ("\x1bP+q544e\x1b\\", "␛P+q544e␛\\"),
    "C1 control sequence": ("\x9b2J", "\\x9b2J"),
    "C1 string": ("\x90x\x9c", "\\x90x\\x9c"),
    "next line": ("a\x85b", "a\\x85b"),
    "bell": ("\x07", "␇"),
    "backspace": ("good\x08\x08\x08\x08evil", "good␈␈␈␈evil"),
    "carriage return": ("good\revil", "good␍evil"),
    "delete": ("a\x7fb", "a␡b"),
    "null": ("a\0b", "a␀b"),
    "form feed": ("a\x0cb", "a␌b"),
    "vertical tab": ("a\x0bb", "a␋b"),
    "shift out": ("\x0eqqq", "␎qqq"),
    "right to left": ("user\u202enimda", "user\\u202enimda"),
    "left to right": ("a\u202db\u202c", "a\\u202db\\u202c"),
    "embedding": ("\u202aa\u202bb", "\\u202aa\\u202bb"),
    "isolate": ("\u2066a\u2067b\u2068c\u2069", "\\u2066a\\u2067b\\u2068c\\u2069"),
    "marks of direction": ("a\u200eb\u200fc\u061cd", "a\\u200eb\\u200fc\\u061cd"),
    "space without width": ("pass\u200bword", "pass\\u200bword"),
    "joiners": ("a\u200cb\u200dc", "a\\u200cb\\u200dc"),
    "word joiner": ("a\u2060b\ufeffc", "a\\u2060b\\ufeffc"),
    "soft hyphen": ("pass\xadword", "pass\\xadword"),
    "line separators": ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
    "tags": ("a\U000e0041b", "a\\U000e0041b"),
    "variation selectors": ("a\U000e0100b", "a\\U000e0100b"),
    "fillers": ("a\u3164b\uffa0c", "a\\u3164b\\uffa0c"),
    "half a character": ("a\ud83db", "a\\ud83db"),
}
KEPT = [
    "é ß 中 🙂",
    "👩\u200d💻",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "a\tb",
    "(☞ﾟ∀ﾟ)☞",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer that can write every byte."""
    return load_tokenizer("course/pythia-3m")


def unseen(text: str) -> list[str]:
    """The characters of a text that a terminal obeys or nobody sees."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [c for c in text if unicodedata.category(c) in kinds and c not in "\n\t"]


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_text_table(fault: str) -> None:
    """In cells, in heads, in lists in cells; as text and as HTML."""
    text, shown = HOSTILE[fault]
    cells = pd.Series([text, f"x{text}y", [text], {"a": text}], dtype=object)
    frame = pd.DataFrame({"cells": cells})
    frame.columns = pd.Index([f"head {text}"], dtype=object)
    table = text_table(frame)
    bundle = table._repr_mimebundle_()
    for told in (str(table), repr(table), bundle["text/plain"], bundle["text/html"]):
        assert not unseen(told)
    assert f"x{shown}y" in str(table)
    str(table).encode()


@pytest.mark.parametrize("fault", [name for name in HOSTILE if name != "half a character"])
def test_a_drawing_of_masks(tokenizer: PreTrainedTokenizerBase, fault: str) -> None:
    """Printed, as a cell's result, and as HTML."""
    text, shown = HOSTILE[fault]
    ids = tokenizer(f"x{text}y", return_tensors="pt")["input_ids"]
    drawing = masks.show({"input_ids": ids, "labels": ids}, tokenizer)
    bundle = drawing._repr_mimebundle_()
    for told in (str(drawing), bundle["text/plain"], bundle["text/html"]):
        assert not unseen(told)
    # A character of several tokens is a question mark in each.
    assert not text.isascii() or f"[x{shown}y" in str(drawing)


@pytest.mark.parametrize("fault", HOSTILE)
def test_what_is_hidden_becomes_a_sign(fault: str) -> None:
    """Each as it is shown."""
    assert visible(HOSTILE[fault][0]) == HOSTILE[fault][1]


@pytest.mark.parametrize("fault", ["clear the screen", "window title", "half a character"])
def test_a_terminal_gets_none_of_it(fault: str) -> None:
    """A real program that prints both, its output taken byte by byte."""
    program = (
        "import sys, pandas as pd\nfrom course_utils.display import text_table\n"
        "from course_utils._core.printable import visible\n"
        f"text = {HOSTILE[fault][0]!a}\n"
        "print(text_table(pd.DataFrame({'reply': pd.Series([text], dtype=object)})))\n"
        "print(visible(text))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert HOSTILE[fault][1].encode() in done.stdout
    assert not set(done.stdout) & {0x1B, 0x07}
    assert not unseen(done.stdout.decode())


@pytest.mark.parametrize("text", KEPT)
def test_what_people_write_stays(text: str) -> None:
    """Letters of all scripts, emoji of several parts, tabs and line breaks."""
    assert visible(text) == text
    assert visible(f"{text}\r\n{text}\n") == f"{text}\n{text}\n"


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_whatever_is_shown_can_be_printed(text: str) -> None:
    """No control character is left, and every character can be encoded."""
    told = visible(text)
    told.encode()
    assert not {c for c in unseen(told) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}


@pytest.mark.parametrize(
    "cell",
    [["<b>x</b>"], {"<i>": "<script>"}, ("<img src=x>",), "<b>", Exception("<b>x</b>"), b"<b>"],
    ids=lambda cell: type(cell).__name__,
)
def test_markup_in_any_cell_stays_text(cell: object) -> None:
    """Also in a list or any other object in a cell, and in a head."""
    frame = pd.DataFrame({"<u>head</u>": pd.Series([cell], dtype=object)})
    frame.columns.name = "<s>name</s>"
    html = text_table(frame)._repr_mimebundle_()["text/html"]
    assert not [tag for tag in ("<b>", "<i>", "<img", "<script", "<u>", "<s>") if tag in html]


def test_signs_of_the_drawing_in_the_data_stay(tokenizer: PreTrainedTokenizerBase) -> None:
    """`][` in a text is part of it."""
    ids = tokenizer("a][b", return_tensors="pt")["input_ids"]
    assert "[a][b]" in str(masks.show({"input_ids": ids, "labels": ids}, tokenizer))


IDS = torch.tensor([[5, 6, 7]])
BATCHES = [
    (None, "batch is None"),
    ([1], "batch is"),
    ("nope", "batch is 'nope'"),
    ({}, "no 'input_ids'; it has nothing"),
    ({"input_ids": IDS}, "no 'labels'"),
    ({"input_ids": None, "labels": IDS}, "no 'input_ids'"),
    ({"input_ids": IDS, "labels": IDS[:, :2]}, "3 input ids, but 2 labels"),
    ({"input_ids": IDS, "labels": [[5, 6, 7], [1]]}, "1 rows of input ids, but 2 of labels"),
    ({"input_ids": IDS, "labels": IDS, "attention_mask": IDS[:, :1]}, "but 1 attention mask"),
    ({"input_ids": IDS, "labels": "nope"}, "labels is 'nope'"),
    ({"input_ids": 3, "labels": IDS}, "input_ids is 3"),
    ({"input_ids": [5, 6], "labels": [5, 6]}, "input_ids is 5"),
    ({"input_ids": [[-1]], "labels": [[1]]}, "an input id is -1"),
    ({"input_ids": [[10**9]], "labels": [[1]]}, "an input id is 1000000000"),
    ({"input_ids": [[1.5]], "labels": [[1]]}, "input_ids is 1.5"),
    ({"input_ids": [[float("nan")]], "labels": [[1]]}, "input_ids is nan"),
    ({"input_ids": [[None]], "labels": [[1]]}, "input_ids is None"),
]


@pytest.mark.parametrize(("batch", "said"), BATCHES, ids=[said for _, said in BATCHES])
def test_a_bad_batch_is_named(tokenizer: PreTrainedTokenizerBase, batch: object, said: str) -> None:
    """With what is wrong with it."""
    with pytest.raises(ValueError, match=said):
        masks.show(batch, tokenizer)


@pytest.mark.parametrize("value", [None, 3, [], "nope", {"a": [1]}, pd.Series(["a"])])
def test_no_table_is_made_of_anything_else(value: object) -> None:
    """A data frame is asked for."""
    with pytest.raises(ValueError, match="frame is"):
        text_table(value)


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"]])
def test_only_a_text_is_shown(value: object) -> None:
    """By name."""
    with pytest.raises(ValueError, match="text is"):
        visible(value)
