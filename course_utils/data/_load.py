"""The course's datasets: `load_data(name)` gives one with its splits.

They lie under `datasets/`, each with a card. Introduced in notebook 03.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils._core import checks
from course_utils.data._folder import folder
from course_utils.errors import HubUnreachable
from course_utils.models import _hub as hub
from course_utils.models._catalog import catalog

if TYPE_CHECKING:
    from datasets import DatasetDict

# Made by a program, and written by hand.
NAMES = ("sentences", "pig_latin", "yoda", "countries", "instructions", "requests")
_SPLITS = ("train", "validation", "test", "unseen", "held_out")


def _check_rows(path: Path) -> None:
    """Refuse a damaged file of the course's; the library's errors say neither place nor fix."""
    with checks.course_file(path):
        lines = path.read_text(encoding="utf-8").split("\n")
        columns = {tuple(json.loads(line).keys()) for line in lines if line.strip()}
        if len(columns) != 1:
            raise ValueError("it has no rows, or rows of different columns")


def load_data(name: str) -> DatasetDict:
    """A dataset with its splits, as `datasets` gives it.

    Args:
        name: "sentences", "pig_latin" or "yoda" of the course's own (splits train, validation,
            test, and unseen: no content word of it stands in another split), "countries" (splits
            train, validation and held_out: no country stands in two), "instructions" (train,
            test), "requests" (test), or the id of one on the hub that the catalogue has, such as
            "dvgodoy/yoda_sentences".

    Raises:
        UnknownName: another name; the known ones are listed.
        DamagedFile: a file of the course's own data is missing or damaged.
        HubUnreachable: one on the hub, while it is out of reach and not in this machine's cache.
        GatedModel, NotEnoughDisk, CannotWrite: see `hub.download`.
    """
    from datasets import load_dataset

    published = catalog().datasets
    checks.one_of("dataset", name, [*NAMES, *published])
    if name in NAMES:
        files = {path.stem: path for path in (folder() / name).glob("*.jsonl")}
        order = {split: str(files[split]) for split in _SPLITS if split in files}
        with checks.course_file(folder() / name):
            if not order:
                raise ValueError("there is no .jsonl file in it")
        for path in order.values():
            _check_rows(Path(path))
        return load_dataset("json", data_files=order)
    revision = published[name].revision
    where = hub.cached(name, revision, kind="dataset")
    if where is None:
        if not hub.reachable():
            raise HubUnreachable(
                f"{name} is on the hub, which is out of reach. Of the course's own there are: "
                f"{', '.join(NAMES)}."
            )
        where = hub.download(name, revision, kind="dataset")
    return load_dataset(str(where))
