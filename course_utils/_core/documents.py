"""Split a collated batch into the documents that it contains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from course_utils._core import checks
from course_utils.errors import BadValue

IGNORED = -100  # the label that the losses of transformers and torch ignore


@dataclass(frozen=True)
class Document:
    """One text in a batch, with the padding next to it.

    Attributes:
        row, start: where it begins in the batch.
        ids: its token ids.
        labels: the label of each token; the loss ignores -100.
        read: whether the model attends to the token; False for padding.
    """

    row: int
    start: int
    ids: list[int]
    labels: list[int]
    read: list[bool]


def _starts(positions: list[int], read: list[bool]) -> Iterator[int]:
    """Yield where the documents of a row begin: where the positions restart."""
    yield 0
    begun = False
    for place, position in enumerate(positions):
        if begun and read[place] and position == 0:
            yield place
        begun = begun or read[place]


def split_documents(batch: Mapping[str, Any]) -> list[Document]:
    """Split a batch into its documents, in order.

    A row contains several documents if its `position_ids` restart, as in packed and padding-free
    batches. Joined texts without position ids are one document, as the model sees them so.

    Args:
        batch: `input_ids` and `labels`, int64 of shape (rows, tokens); optionally `attention_mask`
            and `position_ids` of the same shape. Masks and positions of another shape (a mask with
            four dimensions, positions in three axes) are ignored.

    Returns:
        One document per text. Padding belongs to the document next to it, with `read` False; so do
        the single tokens that pad a padding-free row to a multiple.

    Raises:
        ValueError: not a batch, or one without `input_ids`.
    """
    import torch

    checks.a("batch", batch, Mapping, "a batch, as a collator gives it: a dictionary")
    if batch.get("input_ids") is None:
        has = ", ".join(map(str, batch)) or "nothing"
        raise BadValue(f"The batch has no 'input_ids'; it has {has}.")
    columns: dict[str, list[list[int]]] = {}
    shape = torch.as_tensor(batch["input_ids"]).shape
    for name in ("input_ids", "labels", "attention_mask", "position_ids"):
        value = batch.get(name)
        if value is not None and torch.as_tensor(value).shape == shape:
            columns[name] = torch.as_tensor(value).tolist()
    found = []
    for row, ids in enumerate(columns["input_ids"]):
        labels = columns["labels"][row] if "labels" in columns else [IGNORED] * len(ids)
        mask = columns["attention_mask"][row] if "attention_mask" in columns else [1] * len(ids)
        read = [bool(bit) for bit in mask]
        starts = [0]
        if "position_ids" in columns:
            positions = columns["position_ids"][row]
            # The tokens that pad a padding-free row to a multiple all have position 0.
            end = len(ids)
            while end > 1 and positions[end - 1] == 0 and labels[end - 1] == IGNORED:
                end -= 1
            read[end:] = [False] * (len(ids) - end)
            starts = [*_starts(positions, read)]
        for start, stop in pairwise([*starts, len(ids)]):
            part = slice(start, stop)
            found.append(Document(row, start, ids[part], labels[part], read[part]))
    return found
