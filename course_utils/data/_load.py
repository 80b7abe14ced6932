"""The course's datasets: `load_data(name)` gives one with its splits.

They lie under `datasets/`, each with a card; `python -m course_utils data` makes those anew that a
program made.
Introduced in notebook 03.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from course_utils._core import checks
from course_utils.data._sentences import Lexicon, build, read_lexicon
from course_utils.errors import CourseError, HubUnreachable
from course_utils.models import _hub as hub
from course_utils.models._catalog import catalog

if TYPE_CHECKING:
    from datasets import DatasetDict

# Made by a program, and written by hand.
MADE = ("sentences", "pig_latin", "yoda", "countries")
NAMES = (*MADE, "instructions", "requests")
_SPLITS = ("train", "validation", "test", "unseen", "held_out")
# One in so many Yoda sentences ends in his favourite words, in the column `yoda_extra`.
_EXTRA_EVERY = 4


def folder() -> Path:
    """The course's `datasets/`: beside the package in a clone, inside it where it was installed.

    Raises:
        CourseError: it is at neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / "datasets", package / "datasets")
    for place in places:
        if (place / "sentences").is_dir():
            return place
    raise CourseError(
        f"The course's datasets are neither at {places[0]} nor at {places[1]}. Install the package "
        "again, or use it from a clone of the course."
    )


@functools.cache
def lexicon() -> Lexicon:
    """The words that the course's sentences are made of."""
    path = folder() / "sentences" / "lexicon.toml"
    with checks.course_file(path):
        return read_lexicon(path)


def rows(name: str) -> dict[str, list[dict[str, object]]]:
    """The rows of each split of one of the course's datasets, made anew from lexicon and rules.

    Args:
        name: "sentences", "pig_latin", "yoda" or "countries".

    Raises:
        UnknownName: another name; instructions and requests were written by hand.
    """
    from course_utils.data import _facts as facts
    from course_utils.data._pig_latin import pig_latin
    from course_utils.data._yoda import yoda

    checks.one_of("dataset that a program makes", name, MADE)
    if name == "countries":
        return facts.rows()
    made: dict[str, list[dict[str, object]]] = {}
    for split, sentences in build(lexicon()).items():
        made[split] = []
        for text in sentences:
            row: dict[str, object] = {"sentence": text}
            if name == "pig_latin":
                row["pig_latin"] = pig_latin(text)
            elif name == "yoda":
                turned = yoda(text)
                if turned is None:
                    continue
                # By the text's own hash: the same sentence always ends the same way.
                chosen = hashlib.sha256(text.encode()).digest()[0] % _EXTRA_EVERY == 0
                row |= {"yoda": turned, "yoda_extra": yoda(text, ending=chosen)}
            made[split].append(row)
    return made


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


def main(args: argparse.Namespace) -> int:
    """`python -m course_utils data`: write the datasets anew that a program makes."""
    for name in MADE:
        for split, listed in rows(name).items():
            path = folder() / name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
            print(f"{path.relative_to(folder().parent)}: {len(listed)} rows")
    return 0
