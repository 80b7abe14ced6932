"""A megabyte of anything, for everything of ours that reads a model's words: done in seconds.

Each is read in a process of its own, which is ended where it does not come to an end.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

MEGABYTE = 1_000_000
GENEROUS = 90  # seconds, on a machine that has other things to do


def _readers() -> dict[str, Callable[[str], Any]]:
    from course_utils import scoring
    from course_utils._core.printable import visible
    from course_utils.data import _answers as answers
    from course_utils.data import _pig_latin as pig_latin
    from course_utils.data import _spelling as spelling
    from course_utils.data import _yoda as yoda
    from course_utils.scoring import contamination_report, follows_instructions
    from course_utils.scoring._contamination import _words

    arguments = {"json_object": "name age", "ends_with": "Bye!", "starts_with": "Dear"}

    def check(name: str) -> Callable[[str], bool]:
        told = f"{name} {arguments.get(name, 3)}"
        return lambda text: follows_instructions(text, told)

    return {
        **{name: check(name) for name in scoring.INSTRUCTION_CHECKS if name != "no_commas"},
        "capitals": lambda text: follows_instructions(text, "capitals; no_commas"),
        "contains much": lambda text: follows_instructions(text, f"contains {'a' * 50}b"),
        "contains signs": lambda text: follows_instructions(text, "contains -a-a-a-a-b"),
        "refuses": scoring.is_refusal,
        "verdict": scoring.parse_verdict,
        "yoda": yoda.yoda,
        "clause": yoda.parse_clause,
        "pig latin": pig_latin.pig_latin,
        "pig latin word": pig_latin.pig_latin_word,
        "spell": lambda text: spelling.spell(text.replace("_", "")),
        "unspell": spelling.unspell,
        "in style": answers.in_style,
        "tells": lambda text: answers.tells(text, "Lima"),
        "visible": visible,
        "words": _words,
        "contamination": lambda text: contamination_report([f"{text} x"], [f"{text} y"]),
        "contamination, short": lambda text: contamination_report(["a b c"], [text], 50),
        "exact match": lambda text: scoring.exact_match([text], [f"{text}x"]),
        "word accuracy": lambda text: scoring.word_accuracy([text], [f"{text} x"]),
        "chrF": lambda text: scoring.chrf([text[: MEGABYTE // 4]], ["reference " * 1000]),
    }


READERS = (
    *("at_least_words", "at_most_words", "sentences", "lines", "numbered_list", "list_items"),
    *("contains", "starts_with", "ends_with", "json_object", "json_list", "capitals"),
    *("contains much", "contains signs", "refuses", "verdict", "yoda", "clause"),
    *("pig latin", "pig latin word", "spell", "unspell", "in style", "tells", "visible"),
    *("words", "contamination", "contamination, short", "exact match"),
    *("word accuracy", "chrF"),
)

# What is repeated until it is a megabyte: what a pattern of ours looks for, or could trip over.
BASIC = {
    "spaces": " ",
    "line breaks": "\n",
    "blank lines": " \n",
    "dashes": "-",
    "dots": ".",
    "commas": ", ",
    "quotes": "\"'",
    "brackets": "[",
    "braces": "{",
    "parentheses": "(",
    "backticks": "`",
    "digits": "1",
    "letters": "a",
    "accents": "\u0301\u0316",
    "nulls": "\0",
    "words": "the if ",
    "and": "and ",
}
JUDGE = {
    "verdicts": "[[A]]",
    "verdicts with blanks": "[[A]] ",
    "other verdicts": "[[B]][[A]]",
    "double brackets": "[[",
    "brackets with blanks": "[[ ",
    "thoughts": "<think>",
    "ends of thoughts": "</think>",
    "markup": "**",
    "objects": '{"winner":"A"}',
    "objects without end": '{"a":',
    "texts without end": '{"',
    "objects in lists": "[{",
    "escapes": '{"\\',
    "fences": "```json\n{",
}
OTHERS = {
    "verdict": JUDGE,
    "yoda": {
        "clauses": "I see the sea, ",
        "joints": "I see the sea, and ",
        "ends": ".! ",
        "ends and letters": "...x",
        "articles": "the ",
    },
    "clause": {"auxiliaries": "the man can ", "beings": "x is ", "negations": "x not "},
    "at_least_words": {"dashes and apostrophes": "-'", "one letter": "- a"},
    "sentences": {"ends": ".!?", "ends in quotes": '."', "ends in brackets": ".)", "x": "...x"},
    "numbered_list": {"numbers": "1. x\n", "indents": "    \n", "nested": "1.1.", "digits": "1\n"},
    "list_items": {"bullets": "- \n", "stars": "* * ", "tabs": "\t\n", "numbers": "12"},
    "json_object": {"fences": "```\n", "openings": "```json\n{", "objects": '{"name":{"age":'},
    "json_list": {"lists": "[[", "items": "[1,", "texts": '["'},
    "in style": {"parts": "A, the x is ", "commas": "A, B", "ends": " is."},
    "pig latin": {"apostrophes": "a'", "consonants": "q", "qu": "qu"},
    "contains much": {"nearly": "a" * 49 + "c"},
    "contains signs": {"nearly": "-a"},
    "contamination": {"one word": "go ", "numbers": "1 2 3 "},
    "visible": {"escapes": "\x1b[", "joiners": "\u200d"},
}
QUICK = [
    *(
        (reader, name, unit)
        for reader in READERS
        for name, unit in BASIC.items()
        if name in {"verdict": BASIC, "yoda": BASIC}.get(reader, ("spaces", "dashes", "words"))
    ),
    *((reader, name, unit) for reader, units in OTHERS.items() for name, unit in units.items()),
]


def serve(line: Any) -> None:
    """Read texts and tell how long each took, until there are no more."""
    readers = _readers()
    line.send(sorted(readers))
    while job := line.recv():
        reader, text = job
        started = time.process_time()
        readers[reader](text)
        line.send(time.process_time() - started)


class Reader:
    """A process that reads; a new one is started where it had to be ended."""

    def __init__(self) -> None:
        self.process = None

    def start(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        assert self.line.recv() == sorted(READERS)

    def seconds(self, reader: str, text: str) -> float:
        """How long reading takes; fails where it takes too long, or raises."""
        if self.process is None:
            self.start()
        self.line.send((reader, text))
        if not self.line.poll(GENEROUS):
            self.stop()
            pytest.fail(f"{reader} has not read {len(text):,} characters in {GENEROUS} s")
        try:
            return self.line.recv()
        except EOFError:
            self.stop()
            pytest.fail(f"{reader} raised an error")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


@pytest.fixture(scope="module")
def process() -> Iterator[Reader]:
    """A process that reads."""
    reader = Reader()
    yield reader
    reader.stop()


def repeated(unit: str, size: int = MEGABYTE) -> str:
    return unit * (size // len(unit))


@pytest.mark.parametrize(
    ("reader", "unit"),
    [pytest.param(reader, unit, id=f"{reader}-{name}") for reader, name, unit in QUICK],
)
def test_a_megabyte_of_it(process: Reader, reader: str, unit: str) -> None:
    """With another letter behind it, so that no pattern that runs over all of it fits."""
    process.seconds(reader, f"{repeated(unit)}x")


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_time_grows_with_the_text(process: Reader, reader: str) -> None:
    """Four times the text takes less than ten times as long, whatever is repeated in it."""
    units = {**BASIC, **JUDGE, **{name: u for some in OTHERS.values() for name, u in some.items()}}
    slow = []
    for name, unit in units.items():
        short, long = (f"{repeated(unit, size)}x" for size in (MEGABYTE // 4, MEGABYTE))
        took = process.seconds(reader, long)
        if took > 1 and took > 10 * min(process.seconds(reader, short) for _ in range(2)):
            slow.append((name, took))
    assert not slow


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_a_megabyte_of_mixtures(process: Reader, reader: str) -> None:
    """Pieces of all of them, drawn and put together, and then repeated."""
    rng = random.Random(reader)
    units = [*BASIC.values(), *JUDGE.values(), *(u for s in OTHERS.values() for u in s.values())]
    for pieces in (2, 2, 3, 3, 5, 8, 20, 50):
        unit = "".join(rng.choices(units, k=pieces))
        process.seconds(reader, repeated(unit) + rng.choice(("", "x", "}", "]]", ". ")))
    process.seconds(reader, "".join(rng.choices(units, k=MEGABYTE // 6))[:MEGABYTE])
