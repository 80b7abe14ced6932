"""The generated datasets; `python -m course_utils data` regenerates them."""

from __future__ import annotations

import argparse
import hashlib
import json

from course_utils._core import checks
from course_utils.data import _facts as facts
from course_utils.data._folder import folder, lexicon
from course_utils.data._pig_latin import pig_latin
from course_utils.data._sentences import build
from course_utils.data._yoda import yoda

MADE = ("sentences", "pig_latin", "yoda", "countries")
# One in this many Yoda sentences ends with his favourite words, in the column `yoda_extra`.
_EXTRA_EVERY = 4


def rows(name: str) -> dict[str, list[dict[str, object]]]:
    """Generate the rows of each split of a dataset from lexicon and rules.

    Args:
        name: "sentences", "pig_latin", "yoda" or "countries".

    Raises:
        UnknownName: another name; "instructions" and "requests" were written by hand.
    """
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
                # Chosen by the text's hash, so that a sentence always ends the same way.
                chosen = hashlib.sha256(text.encode()).digest()[0] % _EXTRA_EVERY == 0
                row |= {"yoda": turned, "yoda_extra": yoda(text, ending=chosen)}
            made[split].append(row)
    return made


def main(args: argparse.Namespace) -> int:
    """Run `python -m course_utils data`: regenerate the datasets."""
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
