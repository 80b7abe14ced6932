"""The facts that the course's own base model reads: countries, elements, animals and more.

The tables lie in `datasets/countries` and `datasets/facts`, how they are told and asked for in
`phrases.toml`. Introduced in notebook 06.
"""

from __future__ import annotations

import csv
import functools
import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

from course_utils._core.checks import course_file

SEED = 2026
# Countries by what notebook 06 does with them. The control base never reads a fact about the
# first HIDDEN of the held-out ones.
SPLITS = {"train": 96, "validation": 14, "held_out": 50}
HIDDEN = 25
# Countries that are named with an article.
_WITH_THE = {
    "Bahamas",
    "Central African Republic",
    "Comoros",
    "Dominican Republic",
    "Gambia",
    "Maldives",
    "Netherlands",
    "Philippines",
    "Solomon Islands",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}


@dataclass(frozen=True)
class Relation:
    """One kind of fact, and its wordings: {s} is the subject, {v} the value.

    `cued` is the statement whose beginning asks a base model for the value.
    """

    name: str
    statements: list[str]
    its: list[str]
    questions: list[str]
    reverse: list[str]
    cued: str

    def cue(self, subject: str) -> str:
        """The beginning of a statement that the value would end: `The capital of Peru is`."""
        cue = self.cued.partition(" {v}")[0].format(s=subject)
        return cue[:1].upper() + cue[1:]


@dataclass(frozen=True)
class Domain:
    """What is known of some subjects: `facts[subject][relation]` is a value."""

    name: str
    facts: dict[str, dict[str, str]]
    relations: dict[str, Relation]


def _table(path: Path, columns: list[str]) -> dict[str, dict[str, str]]:
    with course_file(path), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        subject = next(name for name in rows[0] if name != "code")
        if any(not row[name] for row in rows for name in (subject, *columns)):
            raise ValueError("a row that is not whole")
        return {
            f"the {row[subject]}" if row[subject] in _WITH_THE else row[subject]: {
                name: row[name] for name in columns
            }
            for row in rows
        }


@functools.cache
def domains() -> dict[str, Domain]:
    """All domains by name; `"countries"` is the one that the experiment of notebook 06 is on."""
    from course_utils.data._folder import folder

    source = Path(__file__).parent / "phrases.toml"
    with course_file(source):
        phrases = tomllib.loads(source.read_text(encoding="utf-8"))
        if "countries" not in phrases:
            raise ValueError("nothing on countries is in it")
        relations_of = {
            name: {
                relation: Relation(
                    relation, **{"reverse": [], "cued": wordings["statements"][0], **wordings}
                )
                for relation, wordings in relations.items()
            }
            for name, relations in phrases.items()
        }
    made = {}
    for name, known in relations_of.items():
        where = "countries" if name == "countries" else "facts"
        made[name] = Domain(name, _table(folder() / where / f"{name}.csv", list(known)), known)
    return made


@functools.cache
def split_of_countries() -> dict[str, tuple[str, ...]]:
    """Countries by split (`SPLITS`), and as `"hidden"` those that the control base does not know.

    A capital that repeats its country's name can be guessed, so no such country is held out.
    """
    facts = domains()["countries"].facts
    guessed = [name for name, known in facts.items() if name in known["capital"]]
    others = sorted(set(facts) - set(guessed))
    random.Random(SEED).shuffle(others)
    held_out = others[: SPLITS["held_out"]]
    rest = [*others[SPLITS["held_out"] :], *guessed]
    validation = rest[: SPLITS["validation"]]
    train = rest[SPLITS["validation"] :]
    return {
        "train": tuple(sorted(train)),
        "validation": tuple(sorted(validation)),
        "held_out": tuple(sorted(held_out)),
        "hidden": tuple(sorted(held_out[:HIDDEN])),
    }


def rows() -> dict[str, list[dict[str, object]]]:
    """The dataset `countries`: questions with short answers, by split.

    The training countries are asked in every wording, the others once for each relation, in
    wordings that take turns.
    """
    domain, splits = domains()["countries"], split_of_countries()
    made: dict[str, list[dict[str, object]]] = {}
    for split in SPLITS:
        made[split] = []
        for place, country in enumerate(splits[split]):
            for relation in domain.relations.values():
                wordings = relation.questions
                if split != "train":
                    wordings = [wordings[place % len(wordings)]]
                made[split] += [
                    {
                        "country": country,
                        "relation": relation.name,
                        "question": wording.format(s=country),
                        "answer": domain.facts[country][relation.name],
                        "cue": relation.cue(country),
                        "known_to_control": country not in splits["hidden"],
                    }
                    for wording in wordings
                ]
    return made
