"""Show in colour which tokens a model is trained on.

`show(batch, tokenizer)` draws each example of a collated batch. Introduced in notebook 03.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from course_utils._core import checks
from course_utils._core.documents import IGNORED, split_documents
from course_utils._core.printable import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("trained", "masked", "padding")

# Colour, and a second sign for whoever does not see it: underline, strike-through, frame.
_STYLES = {
    "trained": "background:#56B4E9;color:#000;border-bottom:2px solid #0072B2",
    "masked": "background:#E8E8E8;color:#555",
    "special": "outline:1px dashed #D55E00",
    "padding": "color:#AAA;text-decoration:line-through",
    "other": "background:#D55E00;color:#FFF;border-bottom:2px solid #000",
}
_LEGEND = {
    "trained": "trained on",
    "masked": "masked",
    "special": "special",
    "padding": "padding",
    "other": "read → learned, where they differ",
}
_MARKS = {"trained": ("[", "]"), "masked": ("", ""), "padding": ("~", "~")}
_SHOWN_PADDING = 3


@dataclass(frozen=True)
class Token:
    """A token of an example.

    Attributes:
        id: its id in the vocabulary.
        text: its decoded text.
        kind: "trained" (its position has a label), "masked" (in the input, but without a label) or
            "padding" (hidden by the attention mask).
        special: whether it is one of the tokenizer's special tokens.
        learned: the decoded label at its position; the same as `text`, unless labels were shifted
            or replaced. None if there is no label.
    """

    id: int
    text: str
    kind: str
    special: bool
    learned: str | None = None

    @property
    def shown(self) -> str:
        """The token as drawn: its text, followed by the label's text if that differs."""
        if self.learned is None or self.learned == self.text:
            return self.text
        return f"{self.text}→{self.learned} "


@dataclass(frozen=True)
class Example:
    """An example of a batch, token by token."""

    tokens: list[Token]

    def counts(self) -> dict[str, int]:
        """Count the tokens of each kind: trained, masked and padding."""
        kinds = Counter(token.kind for token in self.tokens)
        return {kind: kinds[kind] for kind in KINDS}

    @property
    def special(self) -> int:
        """The number of special tokens, whatever their kind."""
        return sum(token.special for token in self.tokens)

    def trained_text(self) -> str:
        """Return the text to be learned, as given by the labels."""
        return "".join(token.learned or "" for token in self.tokens if token.kind == "trained")


def _rows(name: str, value: Any) -> list[list[int]]:
    """Turn a tensor of shape (examples, tokens), or lists of unequal length, into lists."""
    import torch

    if isinstance(value, torch.Tensor):
        value = value.tolist()
    rows = []
    for row in checks.items(name, value, "examples"):
        row = row.tolist() if isinstance(row, torch.Tensor) else row
        rows.append([checks.whole(name, entry) for entry in checks.items(name, row, "numbers")])
    return rows


def _checked(batch: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    """Return the batch's columns as lists, checking that their shapes match."""
    columns = {
        name: _rows(name, batch[name])
        for name in ("input_ids", "labels", "attention_mask", "position_ids")
        if batch.get(name) is not None
    }
    ids = columns["input_ids"]
    for name, rows in columns.items():
        told = name.replace("_", " ")
        if len(rows) != len(ids):
            raise ValueError(f"{len(ids)} rows of input ids, but {len(rows)} of {told}.")
        for row, own in zip(rows, ids, strict=True):
            if len(row) != len(own):
                raise ValueError(f"{len(own)} input ids, but {len(row)} {told}.")
    return columns


def examples(batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Split a collated batch into its examples.

    Args:
        batch: the collator's output: `input_ids` and `labels` of shape (examples, tokens), dtype
            int64, with -100 for tokens that are not trained on; `attention_mask` if there is
            padding; `position_ids` if several examples are packed into one row.
        tokenizer: the tokenizer that produced the ids.

    Raises:
        ValueError: `input_ids` or `labels` are missing, shapes differ, or an id is not in the
            tokenizer's vocabulary.
    """
    checks.a("batch", batch, Mapping, "a batch, as a collator gives it: a dictionary")
    from transformers import PreTrainedTokenizerBase as Tokenizer

    checks.a("tokenizer", tokenizer, Tokenizer, "a tokenizer of transformers")
    for name in ("input_ids", "labels"):
        if batch.get(name) is None:
            has = ", ".join(map(str, batch)) or "nothing"
            raise ValueError(f"The batch has no {name!r}; it has {has}.")
    special = set(tokenizer.all_special_ids)
    found = []
    columns = _checked(batch)
    for number in range(len(columns["input_ids"])):
        # Row by row, as lists need not be of one length.
        row = {name: [rows[number]] for name, rows in columns.items()}
        for document in split_documents(row):
            places = zip(document.ids, document.labels, document.read, strict=True)
            found.append(Example([_token(tokenizer, *place, special) for place in places]))
    return found


def _token(
    tokenizer: PreTrainedTokenizerBase, token: int, label: int, read: bool, special: set[int]
) -> Token:
    checks.whole("an input id", token, least=0, most=len(tokenizer) - 1)
    # A label on padding counts as trained on: that would be a mistake worth seeing.
    kind = "trained" if label != IGNORED else "masked" if read else "padding"
    text = tokenizer.decode([token])
    learned = None
    if kind == "trained":
        learned = text if label == token else _decoded(tokenizer, label)
    return Token(token, text, kind, token in special, learned)


def _decoded(tokenizer: PreTrainedTokenizerBase, label: int) -> str:
    """Decode a label; return it as a number if the tokenizer does not have it."""
    return tokenizer.decode([label]) if 0 <= label < len(tokenizer) else f"<{label}>"


class Drawing:
    """Examples drawn token by token: HTML in a notebook, plain text elsewhere."""

    def __init__(self, drawn: list[Example]):
        self.examples = drawn

    @staticmethod
    def _count_line(example: Example) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in example.counts().items())
        return f"{len(example.tokens)} tokens: {counts} ({example.special} of them special)"

    def __str__(self) -> str:
        lines = ["[trained on] masked ~padding~"]
        for number, example in enumerate(self.examples, start=1):
            parts = []
            for kind, tokens in groupby(_shortened(example.tokens), lambda token: token.kind):
                before, after = _MARKS[kind]
                # Padding is marked token by token, as it has no text that would be read on.
                glue = f"{after}{before}" if kind == "padding" else ""
                parts.append(f"{before}{glue.join(token.shown for token in tokens)}{after}")
            told = visible("".join(parts))
            lines += [f"\nExample {number}: {self._count_line(example)}", told]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        differ = any(t.shown != t.text for example in self.examples for t in example.tokens)
        legend = " ".join(
            f'<span style="{_STYLES[kind]};padding:1px 4px">{label}</span>'
            for kind, label in _LEGEND.items()
            if kind != "other" or differ
        )
        parts = [f'<div style="font-family:monospace;line-height:1.9">{legend}']
        for number, example in enumerate(self.examples, start=1):
            parts.append(f"<p><b>Example {number}</b>: {self._count_line(example)}<br>")
            for token in _shortened(example.tokens):
                style = _STYLES["other" if token.shown != token.text else token.kind]
                if token.special:
                    style += f";{_STYLES['special']}"
                # A line break is shown as a sign, and made.
                text = (
                    html.escape(visible(token.shown)).replace("\n", "↵<br>").replace(" ", "&nbsp;")
                )
                parts.append(f'<span style="{style}" title="id {token.id}">{text}</span><wbr>')
            parts.append("</p>")
        parts.append("</div>")
        return {"text/html": "".join(parts), "text/plain": str(self)}


def _shortened(tokens: list[Token]) -> list[Token]:
    """Return the tokens, with long runs of padding cut short."""
    shown: list[Token] = []
    run = 0
    for token in tokens:
        run = run + 1 if token.kind == "padding" else 0
        if run <= _SHOWN_PADDING:
            shown.append(token)
        elif run == _SHOWN_PADDING + 1:
            shown.append(Token(token.id, "…", "padding", False))
    return shown


def show(batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Drawing:
    """Draw a collated batch: trained and masked tokens, special tokens and padding.

    A token whose label differs is drawn as `read→learned`: in a causal model, the label at a
    position must be the token at that position, as the model shifts the labels itself.

    Arguments and errors are those of `examples`. The result displays itself at the end of a
    notebook cell, and prints as text with `[` and `]` around what is trained on.
    """
    return Drawing(examples(batch, tokenizer))
