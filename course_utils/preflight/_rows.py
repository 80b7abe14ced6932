"""Scan all rows of a training set in bulk: lengths, ids, labels, last tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from course_utils._core.documents import IGNORED

SECONDS = 3.0
_BATCH = 1000


@dataclass(frozen=True)
class Rows:
    """Statistics of all rows, or of as many as could be scanned in `SECONDS`.

    Attributes:
        total: number of rows in the dataset.
        lengths: int64 of shape (rows scanned,), in tokens.
        supervised: number of labels that count, per row; None if the rows have no labels.
        last: last token of each row; -1 if it is empty.
        least, most: smallest and largest id of each row.
        labels: smallest and largest label that counts, per row; None if there are no labels.
    """

    total: int
    lengths: np.ndarray
    supervised: np.ndarray | None
    last: np.ndarray
    least: np.ndarray
    most: np.ndarray
    labels: tuple[np.ndarray, np.ndarray] | None

    def __len__(self) -> int:
        return len(self.lengths)


def _lists(column: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Flatten a column of lists of integers; return the values and each list's length."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            return None
        if not pa.types.is_integer(kind.value_type):
            return None
        sizes = pc.fill_null(pc.list_value_length(column), 0)
        return (
            column.flatten().to_numpy(zero_copy_only=False).astype(np.int64),
            sizes.to_numpy(zero_copy_only=False).astype(np.int64),
        )
    try:
        rows = [np.asarray(row, dtype=np.int64).reshape(-1) for row in column]
    except (TypeError, ValueError):
        return None
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    return (np.concatenate(rows) if rows else np.zeros(0, np.int64)), sizes


def _tables(data: Any) -> Iterator[dict[str, Any]]:
    """Yield the columns `input_ids` and `labels`, some rows at a time."""
    wanted = ("input_ids", "labels")
    if isinstance(data, datasets.Dataset) and data.format["type"] != "custom":
        names = [name for name in wanted if name in data.column_names]
        if "input_ids" in names:
            arrow = data.select_columns(names).with_format("arrow")
            for table in arrow.iter(_BATCH):
                yield {name: table.column(name) for name in names}
        return
    part: list[Mapping[str, Any]] = []
    for place in range(len(data)):
        row = data[place]
        if not isinstance(row, Mapping) or "input_ids" not in row:
            return
        part.append(row)
        if len(part) == 50 or place == len(data) - 1:
            yield {n: [row[n] for row in part] for n in wanted if all(n in row for row in part)}
            part = []


def _extremes(flat: np.ndarray, sizes: np.ndarray, none: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each list's smallest and largest number; `none` for an empty list."""
    least, most = np.full(len(sizes), none), np.full(len(sizes), none)
    full = sizes > 0
    starts = (np.cumsum(sizes) - sizes)[full]
    if len(starts):
        least[full] = np.minimum.reduceat(flat, starts)
        most[full] = np.maximum.reduceat(flat, starts)
    return least, most


def scan(data: Any, seconds: float = SECONDS) -> Rows | None:
    """Scan all rows, or as many as `seconds` allow; None if they hold no token ids."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return None
    until = time.monotonic() + seconds
    parts: dict[str, list[np.ndarray]] = {}
    labelled = True

    def keep(**arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)

    for columns in _tables(data):
        ids = _lists(columns["input_ids"])
        if ids is None:
            return None
        flat, sizes = ids
        least, most = _extremes(flat, sizes, 0)
        last = np.full(len(sizes), -1)
        last[sizes > 0] = flat[np.cumsum(sizes)[sizes > 0] - 1]
        keep(lengths=sizes, last=last, least=least, most=most)
        labels = _lists(columns["labels"]) if "labels" in columns else None
        labelled = labelled and labels is not None
        if labels is not None:
            values, counts = labels
            counted = values != IGNORED
            rows = np.repeat(np.arange(len(counts)), counts)
            lowest, highest = _extremes(np.where(counted, values, 0), counts, 0)
            # A row's first token is not predicted.
            first = (np.cumsum(counts) - counts)[counts > 0]
            predicted = counted.copy()
            predicted[first] = False
            supervised = np.bincount(rows[predicted], minlength=len(counts))
            keep(supervised=supervised, lowest=lowest, highest=highest)
        if time.monotonic() > until:
            break
    if not parts:
        return None
    whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    return Rows(
        len(data),
        whole["lengths"],
        whole.get("supervised") if labelled else None,
        whole["last"],
        whole["least"],
        whole["most"],
        (whole["lowest"], whole["highest"]) if labelled and "lowest" in whole else None,
    )
