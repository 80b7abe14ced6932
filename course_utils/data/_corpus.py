"""The generated, seeded corpus on which the course's own base model is trained.

Entries, lists, stories, dialogues and diaries state facts; homework asks for them without answers;
reading tests about invented countries are answered from their own text. So the model can know a
country's capital without ever having seen the question answered. Introduced in notebook 06.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from course_utils._core import checks
from course_utils.data._facts import Domain, domains

Entry = TypeVar("Entry")

PEOPLE = """
    Ada Amir Ana Ben Bram Carla Chen Dara Elif Emil Eva Farid Finn Gita Hana Hugo Ines Ivan Jana
    Jonas Kofi Lena Leo Lucia Mara Marek Mei Milo Nadia Nils Nora Omar Oskar Paula Priya Rafael
    Rosa Sam Sara Tariq Theo Tilda Uma Vera Viktor Yara Yusuf Zoe
""".split()
# The frequency of each kind, in documents per hundred.
SHARES = {
    "entry": 34,
    "fact_list": 9,
    "travel": 11,
    "talk": 7,
    "homework": 11,
    "reading": 22,
    "diary": 6,
}


def invented_word(rng: random.Random) -> str:
    """Invent a name of two or three syllables; about one in 15,000 happens to be a real one."""
    onsets = "b br d dr f fl g gr h k kl l m n p pr r s st t tr v z".split()
    vowels = "a e i o u ai ei ou".split()
    ends = "l m n r s t nd rk".split()
    count = rng.choice((2, 2, 3))
    syllables = [rng.choice(onsets) + rng.choice(vowels) for _ in range(count)]
    return ("".join(syllables) + rng.choice(["", *ends])).capitalize()


def upper_first(text: str) -> str:
    """Capitalize the first letter of a text, and leave the rest unchanged."""
    return text[:1].upper() + text[1:]


class Corpus:
    """Generator of documents for pretraining.

    Args:
        seed: the random seed.
        without: countries about which no document states a fact. They still occur in homework and
            stories, so that the model knows their names.

    Raises:
        UnknownName: a country is not in the dataset.
        ValueError: the seed is not an integer, or `without` is not a list.
    """

    def __init__(self, seed: int, without: Collection[str] = ()):
        from course_utils.data import load_data

        self.rng = random.Random(checks.whole("seed", seed))
        countries = domains()["countries"].facts
        listed = checks.items("without", without, "countries")
        self.without = frozenset(checks.one_of("country", name, countries) for name in listed)
        self.sentences: list[str] = load_data("sentences")["train"]["sentence"]
        self.domains = domains()
        self.subjects = [
            (domain, subject) for domain in self.domains.values() for subject in domain.facts
        ]
        self.told = [
            (domain, subject) for domain, subject in self.subjects if subject not in self.without
        ]
        self.countries = self.domains["countries"]
        self.known_countries = [name for name in self.countries.facts if name not in self.without]
        self._left: dict[str, list] = {}

    def _next(self, name: str, entries: list[Entry]) -> Entry:
        """Draw an entry of a list; each is drawn once before any is repeated."""
        left = self._left.setdefault(name, [])
        if not left:
            left.extend(entries)
            self.rng.shuffle(left)
        return left.pop()

    def documents(self) -> Iterator[str]:
        """Yield documents endlessly."""
        kinds: list[Callable[[], str]] = [getattr(self, kind) for kind in SHARES]
        while True:
            (draw,) = self.rng.choices(kinds, weights=list(SHARES.values()))
            yield draw()

    def _tell(
        self, domain: Domain, subject: str, facts: dict[str, str], pronouns: bool = True
    ) -> list[str]:
        """Return sentences that state all facts about a subject, in random order."""
        sentences = []
        order = list(domain.relations.values())
        self.rng.shuffle(order)
        for place, relation in enumerate(order):
            again = pronouns and place > 0 and self.rng.random() < 0.3
            wording = self.rng.choice(relation.its if again else relation.statements)
            sentences.append(upper_first(wording.format(s=subject, v=facts[relation.name])))
        return sentences

    def entry(self) -> str:
        """Write an encyclopaedia entry on one subject; half of all entries are on countries."""
        if self.rng.random() < 0.5:
            domain, subject = self.countries, self._next("entry", self.known_countries)
        else:
            domain, subject = self._next(
                "other entry", [pair for pair in self.told if pair[0] is not self.countries]
            )
        return " ".join(self._tell(domain, subject, domain.facts[subject]))

    def fact_list(self) -> str:
        """Write a list of one relation for several subjects, in the same wording, one per line."""
        domain = (
            self.countries
            if self.rng.random() < 0.4
            else self.rng.choice(list(self.domains.values()))
        )
        relation = self.rng.choice(list(domain.relations.values()))
        known = [subject for subject in domain.facts if subject not in self.without]
        chosen = self.rng.sample(known, self.rng.randint(5, 9))
        wording = self.rng.choice(relation.statements)
        return "\n".join(
            upper_first(wording.format(s=subject, v=domain.facts[subject][relation.name]))
            for subject in chosen
        )

    def travel(self) -> str:
        """Write a story of a journey; it states facts only about known countries."""
        rng = self.rng
        country = self._next("travel", list(self.countries.facts))
        person, friend = rng.sample(PEOPLE, 2)
        start = rng.choice(
            [
                f"Last year {person} travelled to {country}.",
                f"{person} had always wanted to see {country}.",
                f"In spring {person} and {friend} took a train to {country}.",
                f"{person} wrote to {friend} from {country}.",
                f"For a long time {person} worked in {country}.",
            ]
        )
        middle = []
        if country not in self.without:
            facts = self.countries.facts[country]
            middle = [
                f"The days in {facts['capital']}, the capital, went by quickly.",
                f"Everything was paid for with the {facts['currency']}.",
                f"At breakfast all tables spoke {facts['language']}.",
                f"A {facts['demonym']} neighbour showed the way.",
                f"Of all places in {facts['continent']} it was the loveliest.",
            ]
        plain = [
            "It rained for three days, and nobody minded.",
            "The bread was warm and the streets were narrow.",
            f"{friend} asked for a postcard and got two.",
            "The bus broke down, so they walked the rest of the way.",
            "A dog followed them to the harbour and back.",
            "They bought cheese, a map and a blue umbrella.",
            str(rng.choice(self.sentences)),
        ]
        told = rng.sample(middle, min(len(middle), rng.randint(2, 3)))
        told += rng.sample(plain, rng.randint(1, 3))
        rng.shuffle(told)
        end = rng.choice(
            [
                f"When {person} came home, the garden had grown wild.",
                f"{person} still tells of it.",
                "They want to go again.",
                f"{friend} keeps the photographs in a box.",
            ]
        )
        return " ".join([start, *told, end])

    def talk(self) -> str:
        """Write a dialogue of two people who tell each other facts, without asking for any."""
        rng = self.rng
        first, second = rng.sample(PEOPLE, 2)
        lines = [
            rng.choice(
                ["What are you reading?", "You look busy.", "Good morning!", "What a long day."]
            )
        ]
        lines.append(
            rng.choice(
                [
                    "I am learning something new.",
                    "I found an old book in the attic.",
                    "My sister sent me a letter.",
                    "There was a programme on the radio.",
                ]
            )
        )
        domain, subject = self._next("talk", self.told)
        chosen = self._tell(domain, subject, domain.facts[subject])
        for sentence in chosen[: rng.randint(1, 3)]:
            if not sentence.startswith(("It", "The ", "People", "Its", "A ", "That")):
                lines.append(rng.choice(["Really?", "Go on.", "I did not know that.", "Oh!"]))
            lines.append(rng.choice(["", "", "Listen. "]) + sentence)
        lines.append(rng.choice(["Tell me more tomorrow.", "I see.", "How nice.", "Thank you."]))
        return "\n".join(
            f"{first if place % 2 == 0 else second}: {line}" for place, line in enumerate(lines)
        )

    def homework(self) -> str:
        """Write one or more questions without answers; some are set as exercises."""
        rng = self.rng
        lines = []
        for _ in range(rng.randint(3, 7)):
            if rng.random() < 0.65:
                domain, subject = (
                    self.countries,
                    self._next("asked", list(self.countries.facts)),
                )
            else:
                domain, subject = self._next("asked else", self.subjects)
            relation = rng.choice(list(domain.relations.values()))
            lines.append(upper_first(rng.choice(relation.questions).format(s=subject)))
        style = rng.choice(("plain", "plain", "numbered", "question"))
        if style == "numbered":
            lines = [f"{place}. {line}" for place, line in enumerate(lines, start=1)]
        elif style == "question":
            lines = [f"Question: {line}" for line in lines]
        head = rng.choice(["", "", "Homework for Monday\n", "Find out at home.\n", "Test\n"])
        return head + "\n".join(lines)

    def reading(self) -> str:
        """Write a reading test on invented countries, answered from the text above it."""
        rng = self.rng
        lands = {}
        for _ in range(rng.choice((1, 1, 1, 2))):
            name = invented_word(rng)
            lands[name] = {
                "capital": invented_word(rng),
                "continent": invented_word(rng),
                "currency": invented_word(rng).lower(),
                "language": invented_word(rng),
                "demonym": invented_word(rng),
            }
        text = [
            sentence
            for name, facts in lands.items()
            for sentence in self._tell(self.countries, name, facts, pronouns=False)
        ]
        rng.shuffle(text)
        asked = [
            (name, relation) for name in lands for relation in self.countries.relations.values()
        ]
        rng.shuffle(asked)
        lines = [
            f"{rng.choice(relation.questions).format(s=name)} {lands[name][relation.name]}."
            for name, relation in asked[:5]
        ]
        return f"{' '.join(text)}\nQuestions on the text\n" + "\n".join(lines)

    def diary(self) -> str:
        """Write a diary from a few of the course's own sentences, for vocabulary and grammar."""
        return " ".join(self.rng.sample(self.sentences, self.rng.randint(4, 7)))
