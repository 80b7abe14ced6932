"""A language model as a judge of answers, and what tells whether it can be trusted.

The way of asking, with a verdict in double brackets, and the tests for bias follow Zheng et al.,
"Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685. The prompts are our own,
short enough for a small model. Introduced in notebook 08.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from course_utils._core import checks
from course_utils.models._running import Runner
from course_utils.scoring.votes import alpha

LOWEST, HIGHEST = 1, 10
_PADDING = (
    "This is an important question, and it deserves a careful and complete answer.",
    "There are many things that one could say about it, and each of them matters.",
    "All in all, the points above give a full picture of the matter at hand.",
    "I hope that this detailed explanation is helpful to you.",
)

# Patterns for what judges write. A reply that none of them fits is unreadable, and so is one that
# fits several with different verdicts: a wrong verdict would be worse than none.
#
# Reading takes time in proportion to the reply's length, whatever is in it: white space is squeezed
# first, so that `\s*` never runs far, and no pattern looks for something far away.

_THOUGHT_TAG = re.compile(r"<(?P<ends>/?)think(?:ing)?>", re.I)
_MARKUP = re.compile(r"\*+|`+|__")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s|\n")
# Stands for what was read already: no white space, no letter; a statement may end there.
_READ = "\0"
_OBJECT = re.compile(r"\{\s?\"")

_KIND = r"(?:assistant|answer|response|reply|model|option|candidate)"
_TIE = r"(?:a\ tie|tied?|a\ draw|draw|both|equal|equally\ good)"
_LETTER = rf"(?:{_KIND}[\s_-]+)?(?P<letter>[ABC])"
# A letter is no choice where another one follows: "A or B".
_NO_LIST = rf"(?!\s*(?:,|/|\||&|or\b|and\b|vs\b)\s*(?:{_KIND}\s+)?[\[(\"']*[ABC]\b)"
# After the letter the sentence ends, or gives its reason, so that "Answer: A good one would …" is
# not taken for a verdict.
_THEN = r"(?=[\"')\]}]*\s*(?:[.,;!(\n\0]|[–—-]\s|$|(?:because|since|as)\b))"

# "[[A]] if …" is the task repeated, no verdict.
_NO_TASK = r"(?![\"'.]*\s+(?:if|for\s+a\s+tie)\b)"
_ASKED_VERDICT = re.compile(rf"\[\[\s*(?:{_LETTER}|(?P<tie>{_TIE}))\s*\]\]{_NO_TASK}", re.I)
_BRACKET_VERDICT = re.compile(rf"\[\s*(?P<letter>[ABC])\s*\](?![\](]){_NO_TASK}", re.I)
_LABELLED_VERDICT = re.compile(
    rf"""(?: ^\s*(?:my\s+|the\s+)?(?:final\s+)?answer\s*[:=]
    |   \b(?:winner|verdict|choice|decision|preference|judge?ment|result
        |(?:better|best|preferred)(?:\s+(?:one|{_KIND}))?)[\"']?\s*(?::|=|\bis\b\s*:?) )
    \s*[\"'(\[]*(?:{_LETTER}\b{_NO_LIST}|(?P<tie>{_TIE})\b)(?:['’]s\s+{_KIND})?{_THEN}""",
    re.I | re.X,
)
_ALONE_VERDICT = re.compile(
    rf"[\"'(\[]*(?:{_LETTER}|(?P<tie>a\ tie|tie|a\ draw|draw))[\"')\]]*[.!]?", re.I
)
_OPENING_VERDICT = re.compile(r"\A\s*(?P<letter>[AB])\s*,?\s+(?:because|since)\b")
_BETTER = rf"""(?: wins\b | won\b | (?:is|was|seems)\s+
    (?:(?:clearly|much|slightly|far|definitely|indeed|overall|also|simply|a\ (?:bit|little))\s+)*
    (?:the\s+)? (?:better|best|superior|preferable|preferred|winner) (?:\s+(?:one|choice|{_KIND}))?
    (?=\s*(?:[.,;:!)\"'\n\0]|$|(?:than|overall|because|since|as|here)\b)) )"""
_STATED_VERDICT = re.compile(
    rf"""(?: (?i:\b{_KIND})\s+(?P<letter>[ABab])\b
    |   (?:^|[,:]|(?i:\b(?:that|so|say|think|believe|therefore|thus|hence|overall)\b))\s*
        (?P<bare>[AB])\b
    |   \b(?i:the\s+(?P<place>first|second)\s+(?:one|{_KIND}))\b )
    (?:['’]s\s+(?i:{_KIND})\b)? \s+ (?i:{_BETTER})""",
    re.X,
)
_PREFERRED_VERDICT = re.compile(
    rf"""\bI(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:choose|prefer|pick|select|go\ with|vote\ for)\s+
    (?:(?i:{_KIND})\s+(?P<letter>[ABab])|(?P<bare>[AB]))\b{_NO_LIST}
    (?=\s*(?:[.,;:!\0]|$|(?:because|since|as|over)\b))""",
    re.X,
)
_STATED_TIE = re.compile(
    rf"""\b(?:it\s+is|it['’]s|this\s+is)\s+(?P<tie>a\s+tie|a\s+draw)\b
    |   \b(?:they|both|both\s+{_KIND}s|the\s+(?:two\s+)?{_KIND}s)\s+are\s+(?:both\s+)?
        (?:equally\s+good|tied)\b""",
    re.I | re.X,
)
_IF = re.compile(r"\b(?:if|unless|whether)\b|\?", re.I)
_NOT = re.compile(
    r"\b(?:neither|nor|either|not|no|never|hardly|cannot|un(?:clear|sure)|could|might|may)\b|n['’]t\b",
    re.I,
)
_CLAUSE = re.compile(r"[,:]|\b(?:so|therefore|thus|hence|but)\b", re.I)
# A turn, and behind it one of the two answers.
_TURN = re.compile(r"\b(?:but|however|although|though|while|whereas)\b")
_SIDE = re.compile(r"\b(?:[AB]|first|second|other)\b")
_VERDICT_KEYS = {
    *("winner", "verdict", "answer", "choice", "decision", "preference", "preferred", "better"),
    *("best", "judgement", "judgment", "result", "better_answer", "final_verdict", "final_answer"),
}
_VERDICT_VALUE = re.compile(rf"\s*\[*\s*(?:{_LETTER}|(?P<tie>{_TIE}))\s*\]*\s*", re.I)

# No sign and no digit may touch a number, and no unit but "/10" or "out of 10".
_NUMBER = r"(?<![\w.,])(?P<number>-?[0-9]+(?:[.,][0-9]+)?)(?![\w%]|[.,][0-9])"
_MOST = r"(?:\s*(?:/|\bout\ of\b)\s*(?P<most>[0-9]+(?:\.[0-9]+)?)(?![\w%/]|\.[0-9]))"
_RANGE = r"(?P<range>\s*(?:-|–|to\b|or\b)\s*[0-9])"
_ASKED_RATING = re.compile(
    rf"\[\[\s*(?:(?:rating|score)\s*:?\s*)?{_NUMBER}{_MOST}?\s*\]\]", re.I | re.X
)
_LABELLED_RATING = re.compile(
    rf"""\b(?:rat(?:e|ed|ing)|scored?|grade|mark)[\"']?(?:\s*\([^()\n]{{0,40}}\))?
    (?:\s+(?:of|for|it|this|that|the|answer|response|reply|assistant|would|be|get|gets|as|at|with
        |a|an|is|was)\b){{0,6}}
    \s*[:=]?\s*[\"'(]*(?P<open>\[+)?{_NUMBER}{_MOST}?{_RANGE}?(?(open)\s*\](?!\s*[0-9]))
    (?!\s*(?:=|(?:means?|is|being|for)\b))""",
    re.I | re.X,
)
_OF_TEN_RATING = re.compile(
    rf"(?:[0-9](?P<range>\s*(?:-|–|to\b|or\b|and\b)\s*))?{_NUMBER}{_MOST}", re.I | re.X
)
_ALONE_RATING = re.compile(
    rf"[\"'(]*(?P<open>\[+)?{_NUMBER}{_MOST}?(?(open)\]+)[\"')]*[.!]?", re.I | re.X
)
_RATING_KEYS = {"rating", "score", "grade", "mark", "points", "overall", "overall_rating"}


def _plain(text: str) -> str:
    """A reply without its thoughts, its markup and its white space in excess."""
    said: list[str] = []
    place, thinking = 0, False
    for tag in _THOUGHT_TAG.finditer(text):
        if not thinking:
            said.append(text[place : tag.start()])
        if tag["ends"] and not thinking:  # some templates open the thoughts in the prompt
            said.clear()
        place, thinking = tag.end(), not tag["ends"]
    text = _MARKUP.sub("", " ".join(said if thinking else [*said, text[place:]]))
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def _decide(strong: list[tuple[int, Any]], weak: list[tuple[int, Any]]) -> Any:
    """The one value of all that was found, by its place; None where they contradict each other.

    What is in the asked-for form overrules what stands before it, but not what comes after.
    """
    found = [value for _, value in strong or weak]
    if strong:
        last = max(place for place, _ in strong)
        found += [value for place, value in weak if place > last]
    return found[0] if found and all(value == found[0] for value in found) else None


def _without_objects(text: str, keys: set[str]) -> tuple[str, list[tuple[int, Any]]]:
    """A text without the JSON objects that have one of these keys, and those keys' values."""
    found: list[tuple[int, Any]] = []
    said: list[str] = []
    start = kept = 0

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Called for each object that is whole, also where the one around it turns out not to be.
        for key, value in pairs:
            if key.strip().lower().replace(" ", "_") in keys and not isinstance(value, dict):
                found.append((start, value))
        return dict(pairs)

    # As a number may have thousands of digits.
    decoder = json.JSONDecoder(object_pairs_hook=collect, parse_int=float)
    while opening := _OBJECT.search(text, start):
        start = opening.start()
        before, size = len(found), 1000
        while True:
            # A piece at a time, as an error takes time in proportion to the text that it is about.
            piece = text[start : start + size]
            try:
                length = decoder.raw_decode(piece)[1]
            except RecursionError:
                length = len(piece)  # nobody nests so deeply
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > size - 10
                if cut and start + size < len(text):
                    del found[before:]
                    size *= 2
                    continue
                length = max(error.pos, 1)
            break
        if len(found) > before:
            said += [text[kept:start], _READ * length]
            kept = start + length
        start += length
    return "".join([*said, text[kept:]]), found


def _ends(text: str) -> list[tuple[int, str]]:
    """The first and the last line, with their places."""
    first = text.split("\n", 1)[0]
    last = text.rsplit("\n", 1)[-1]
    return [(0, first), (len(text) - len(last), last)] if text else []


def _winner(match: re.Match) -> str:
    groups = match.groupdict()
    letter = (groups.get("letter") or groups.get("bare") or "").upper()
    place = (groups.get("place") or "").lower()
    return {"A": "first", "B": "second"}.get(letter) or place or "tie"


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences with their places."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield start, text[start : end.start()]
        start = end.end()
    yield start, text[start:]


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Verdicts in words, such as "Answer A is better", unless they are denied or doubted."""
    patterns = (_LABELLED_VERDICT, _STATED_VERDICT, _PREFERRED_VERDICT, _STATED_TIE)
    for place, sentence in _sentences(text):
        said = sentence.strip()
        matches = [match for pattern in patterns for match in pattern.finditer(said)]
        if not matches:
            continue
        # Each looked for once in the sentence, however many verdicts it has.
        ifs, nots, clauses, turns, sides = (
            [(found.start(), found.end()) for found in pattern.finditer(said)]
            for pattern in (_IF, _NOT, _CLAUSE, _TURN, _SIDE)
        )
        clause_ends = [end for _, end in clauses]
        last_side = sides[-1][0] if sides else -1
        for match in matches:
            start, end = match.span()
            conditional = ifs and (ifs[0][1] <= start or ifs[-1][0] >= end)
            # Denied in the clause that the verdict ends.
            clause = bisect_right(clause_ends, start)
            begin = clause_ends[clause - 1] if clause else 0
            denial = bisect_left(nots, (begin, 0))
            denied = denial < len(nots) and nots[denial][1] <= start
            turn = bisect_left(turns, (end, 0))
            turned = turn < len(turns) and turns[turn][1] <= last_side
            if not (conditional or denied or turned):
                yield place, _winner(match)


def parse_verdict(text: str) -> str | None:
    """Which answer a judge's reply prefers.

    Read are `[[A]]`, `[A]`, "Winner: A", "Answer: B", "Assistant A is better", a letter alone,
    `{"winner": "B"}` and the like, in upper or lower case, with or without markup. Thoughts between
    `<think>` and `</think>` don't count. Introduced in notebook 08.

    Args:
        text: the reply.

    Returns:
        "first" for A, "second" for B, "tie" for C or a word for it; None where there is no verdict,
        or where there are several: what is in double brackets overrules only what stands before it.

    Raises:
        BadValue: no text.
    """
    text = _plain(checks.a("text", text, str, "a text"))
    strong = [(match.start(), _winner(match)) for match in _ASKED_VERDICT.finditer(text)]
    text = _ASKED_VERDICT.sub(lambda match: _READ * len(match[0]), text)
    text, values = _without_objects(text, _VERDICT_KEYS)
    weak = [
        (place, _winner(match))
        for place, value in values
        if isinstance(value, str) and (match := _VERDICT_VALUE.fullmatch(" ".join(value.split())))
    ]
    for pattern in (_BRACKET_VERDICT, _OPENING_VERDICT):
        weak += [(match.start(), _winner(match)) for match in pattern.finditer(text)]
    weak += [
        (place, _winner(match))
        for place, line in _ends(text)
        if (match := _ALONE_VERDICT.fullmatch(line.strip(f" {_READ}")))
    ]
    weak += _statements(text)
    return _decide(strong, weak)


def _score(match: re.Match) -> float | None:
    groups = match.groupdict()
    if groups.get("range") or float(groups.get("most") or HIGHEST) != HIGHEST:
        return None
    return float(groups["number"].replace(",", "."))


def parse_rating(text: str) -> float | None:
    """The score that a judge's reply gives.

    Read are `[[7]]`, "Rating: 7/10", "8 out of 10", a number alone, `{"rating": 8}` and the like.
    Thoughts between `<think>` and `</think>` don't count. Introduced in notebook 08.

    Args:
        text: the reply.

    Returns:
        The score, 1 to 10. None where there is none, where it is out of this range or of another
        scale, or where there are several: what is in double brackets overrules only what stands
        before it.

    Raises:
        BadValue: no text.
    """
    text = _plain(checks.a("text", text, str, "a text"))
    strong = [(match.start(), _score(match)) for match in _ASKED_RATING.finditer(text)]
    text = _ASKED_RATING.sub(lambda match: _READ * len(match[0]), text)
    text, values = _without_objects(text, _RATING_KEYS)
    weak: list[tuple[int, float | None]] = []
    for place, value in values:
        while isinstance(value, list) and len(value) == 1:
            (value,) = value
        text_of_it = str(value).strip() if isinstance(value, str | float) else ""
        match = _ALONE_RATING.fullmatch(text_of_it)
        weak.append((place, _score(match) if match else None))
    weak += [(match.start(), _score(match)) for match in _LABELLED_RATING.finditer(text)]
    weak += [
        (match.start(), _score(match))
        for match in _OF_TEN_RATING.finditer(text)
        if float(match["most"]) == HIGHEST
    ]
    lines = _ends(text)
    for place, line in lines:
        # "1." at the beginning opens a list.
        opens_list = place < lines[-1][0] and line.rstrip().endswith(".")
        if (match := _ALONE_RATING.fullmatch(line.strip(f" {_READ}"))) and not opens_list:
            weak.append((place, _score(match)))
    score = _decide(strong, weak)
    return score if score is not None and LOWEST <= score <= HIGHEST else None


@dataclass(frozen=True)
class Verdict:
    """What a judge said of two answers. Introduced in notebook 08.

    Attributes:
        winner: "first", "second", "tie", or None where the reply could not be read.
        reply: the judge's own words.
    """

    winner: str | None
    reply: str


_MAY_LACK = ("references", "padded", "wrong")


def _columns(**columns: Sequence[str] | None) -> int:
    """How many rows there are; refuses what are no lists of one length."""
    given = {
        name: column
        for name, column in columns.items()
        if column is not None or name not in _MAY_LACK
    }
    for name, column in given.items():
        if isinstance(column, str):
            raise ValueError(f"{name} is one text; give a list of texts.")
        checks.texts(name, column)
    sizes = {name: len(column) for name, column in given.items()}
    if len(set(sizes.values())) > 1 or not all(sizes.values()):
        told = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"There are {told}; it takes one of each, and one at least.")
    return next(iter(sizes.values()))


def _known(reference: str | None) -> str:
    if reference is not None:
        checks.text("reference", reference)
    return f"\n\nA correct answer: {reference}" if reference is not None else ""


def comparison_prompt(question: str, first: str, second: str, reference: str | None = None) -> str:
    """What a judge is asked about two answers: which is better, A, B or C for neither.

    Introduced in notebook 08.

    Args:
        question: what was asked.
        first, second: the answers, shown as A and B.
        reference: a correct answer, which helps where the judge does not know one itself.

    Raises:
        BadValue: something else than a text.
    """
    for name, given in (("question", question), ("first", first), ("second", second)):
        checks.text(name, given)
    return (
        "Compare two answers to a question. Do not answer the question yourself. Neither the order "
        "nor the length of the answers matters.\n\n"
        f"Question: {question}{_known(reference)}\n\n"
        f"Answer A: {first}\n\n"
        f"Answer B: {second}\n\n"
        "Say in one sentence which answer is more correct and helpful. Then end with one line that "
        "is only your verdict: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] for "
        "a tie."
    )


def rating_prompt(question: str, answer: str, reference: str | None = None) -> str:
    """What a judge is asked about one answer: how good it is, from 1 to 10.

    Introduced in notebook 08.

    Args:
        question: what was asked.
        answer: the answer.
        reference: a correct answer, which helps where the judge does not know one itself.

    Raises:
        BadValue: something else than a text.
    """
    checks.text("question", question)
    checks.text("answer", answer)
    return (
        "Rate an answer to a question. Do not answer the question yourself. The length of the "
        "answer does not matter.\n\n"
        f"Question: {question}{_known(reference)}\n\n"
        f"Answer: {answer}\n\n"
        "Say in one sentence how correct and helpful the answer is. Then end with one line that is "
        f"only your rating in double brackets: [[N]], where N is a number from {LOWEST} (useless) "
        f"to {HIGHEST} (perfect)."
    )


def opened(ask: Runner, opening: str = "Verdict: [[", closing: str = "]]") -> Callable[..., list]:
    """A runner whose replies have one form, for a judge that is too small to keep to it by itself.

    Its reply is begun for it, and cut after the closing, so that only a letter or a number is left
    to it. It cannot say why any more; and that a reply can be read does not make it right.
    Introduced in notebook 08.

    Args:
        ask: a model with a chat template.
        opening: how each reply begins; "Rating: [[" for `Judge.rate`.
        closing: where it ends, if the model gets there.

    Returns:
        What `Judge` takes as `ask`; the replies hold the opening and the closing.

    Raises:
        BadValue: no runner, or no text to begin or to end with.
    """
    checks.a("ask", ask, Runner, "a Runner, as runner() gives it")
    checks.text("opening", opening, empty=False)
    checks.text("closing", closing, empty=False)
    tokenizer = ask.tokenizer
    # Bare texts get the token for the beginning from the tokenizer, which the template wrote too.
    begin = tokenizer.bos_token or ""
    begin = begin if begin and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""

    def begun(prompts: list[str], *, system: str | None = None, **options: Any) -> list[str]:
        texts = [ask.prompt(text, template=True, system=system) for text in prompts]
        texts = [text.removeprefix(begin) + opening for text in texts]
        parts = [reply.partition(closing) for reply in ask(texts, template=False, **options)]
        return [f"{opening}{said}{closed}" for said, closed, _ in parts]

    return begun


class Judge:
    """A model that is asked which of two answers is better, or how good one is.

    Introduced in notebook 08.

    Args:
        ask: from a list of prompts to a list of replies: a `Runner`, an `Endpoint`, any function.
        options: what `ask` gets with each list, such as `max_new_tokens=200`.

    Attributes:
        replies: the judge's own words in the latest call, to see why a verdict was unreadable.

    Raises:
        BadValue: `ask` cannot be called.
    """

    def __init__(self, ask: Callable[..., list[str]], **options: Any):
        self.ask = checks.function("ask", ask)
        self.options = options
        self.replies: list[str] = []

    def but(self, **options: Any) -> Judge:
        """The same judge with other options, such as a seed."""
        return Judge(self.ask, **{**self.options, **options})

    def _replies(self, prompts: list[str]) -> list[str]:
        replies = self.ask(prompts, **self.options)
        replies = [replies] if isinstance(replies, str) else checks.items("ask's answer", replies)
        if len(replies) != len(prompts):
            told = f"{len(prompts)} prompts and gave {len(replies)} replies"
            raise ValueError(f"ask got a list of {told}.")
        self.replies = checks.texts("ask's answer", replies)
        return self.replies

    def compare(
        self,
        questions: Sequence[str],
        firsts: Sequence[str],
        seconds: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> list[Verdict]:
        """Which of two answers is better, each pair asked once, in the order given.

        Judges prefer a side, so see `position_bias`, which asks in both orders.

        Args:
            questions: what was asked.
            firsts, seconds: the answers of two systems.
            references: correct answers, where there are any.

        Raises:
            ValueError: texts instead of lists, lists of different lengths, or empty ones; `ask` did
                not give a reply to each prompt.
        """
        count = _columns(questions=questions, firsts=firsts, seconds=seconds, references=references)
        known = [None] * count if references is None else references
        rows = zip(questions, firsts, seconds, known, strict=True)
        replies = self._replies([comparison_prompt(*row) for row in rows])
        return [Verdict(parse_verdict(reply), reply) for reply in replies]

    def rate(
        self,
        questions: Sequence[str],
        answers: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> list[float | None]:
        """How good each answer is, from 1 to 10; None where the reply could not be read.

        Args:
            questions: what was asked.
            answers: what was answered.
            references: correct answers, where there are any.

        Raises:
            ValueError: see `compare`.
        """
        count = _columns(questions=questions, answers=answers, references=references)
        known = [None] * count if references is None else references
        rows = zip(questions, answers, known, strict=True)
        return [parse_rating(r) for r in self._replies([rating_prompt(*row) for row in rows])]


_SWAPPED = {"first": "second", "second": "first", "tie": "tie", None: None}


def _can(judge: Any, *methods: str) -> None:
    """Refuse what lacks a judge's methods; whose class it is does not matter."""
    for name in methods:
        if not callable(getattr(judge, name, None)):
            raise checks.refuse("judge", judge, f"a Judge, or anything else that has {name}(…)")


def _both_orders(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None,
) -> list[tuple[str | None, str | None]]:
    """For each pair the verdicts as given and as swapped, both on the pair as given."""
    _can(judge, "compare")
    _columns(questions=questions, firsts=firsts, seconds=seconds, references=references)
    verdicts = judge.compare(
        [*questions, *questions],
        [*firsts, *seconds],
        [*seconds, *firsts],
        None if references is None else [*references, *references],
    )
    count = len(questions)
    return [
        (one.winner, _SWAPPED[other.winner])
        for one, other in zip(verdicts[:count], verdicts[count:], strict=True)
    ]


def _agreed(one: str | None, other: str | None) -> str | None:
    """A win that both orders give; else a tie; None where one could not be read."""
    if one is None or other is None:
        return None
    return one if one == other else "tie"


@dataclass(frozen=True)
class PositionBias:
    """What a judge makes of the order; see `position_bias`. The five shares add up to 1.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        consistent: the share with the same verdict in both orders; 1 is best.
        prefers_first: the share where the answer shown first won both times.
        prefers_second: the share where the answer shown second won both times.
        mixed: the share with a tie in one order only.
        unreadable: the share without a readable verdict in one order at least.
        verdicts: for each pair "first" or "second" where both orders agree on it, else "tie"; None
            where one could not be read.
    """

    pairs: int
    consistent: float
    prefers_first: float
    prefers_second: float
    mixed: float
    unreadable: float
    verdicts: list[str | None]


def position_bias(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None = None,
) -> PositionBias:
    """Each pair judged in both orders: how often the order decides, and the verdicts without it.

    Source: Zheng et al. 2023, arXiv 2306.05685, section 3.4 and table 2; a win counts only where
    both orders give it. Introduced in notebook 08.

    Args:
        judge, questions, firsts, seconds, references: see `Judge.compare`.

    Raises:
        ValueError: see `Judge.compare`.
    """
    both = _both_orders(judge, questions, firsts, seconds, references)
    kinds: Counter[str] = Counter()
    for one, other in both:
        if one is None or other is None:
            kinds["unreadable"] += 1
        elif one == other:
            kinds["consistent"] += 1
        elif "tie" in (one, other):
            kinds["mixed"] += 1
        else:  # the second time "first" stood second
            kinds["prefers_first" if one == "first" else "prefers_second"] += 1
    names = ("consistent", "prefers_first", "prefers_second", "mixed", "unreadable")
    shares = {name: kinds[name] / len(both) for name in names}
    return PositionBias(len(both), **shares, verdicts=[_agreed(*pair) for pair in both])


def pad(answer: str, sentences: int = 4) -> str:
    """An answer made longer without content: empty phrases before and behind it.

    Introduced in notebook 08.

    Args:
        answer: the answer, which stays in it word for word.
        sentences: how many phrases, 1 to 10,000.

    Raises:
        BadValue: no text, fewer than 1, or more than 10,000.
    """
    checks.text("answer", answer)
    checks.whole("sentences", sentences, least=1, most=10_000)
    phrases = [_PADDING[number % len(_PADDING)] for number in range(sentences)]
    half = sentences // 2
    return " ".join([*phrases[:half], answer, *phrases[half:]])


@dataclass(frozen=True)
class VerbosityBias:
    """What a judge makes of length; see `verbosity_bias`. Each pair is judged in both orders.

    Attributes:
        pairs: how many pairs of a short and a padded answer.
        longer: the share where the padded answer won in both orders; 0 is best.
        shorter: the share where the short one did.
        tie: the share of ties, and of pairs where the orders disagree.
        unreadable: the share without a readable verdict in one order at least.
        wrong_longer: of long wrong answers against short right ones, the share where the wrong one
            won in both orders; None where no wrong answers were given.
        right_shorter: the share where the right one did; None likewise.
    """

    pairs: int
    longer: float
    shorter: float
    tie: float
    unreadable: float
    wrong_longer: float | None = None
    right_shorter: float | None = None


def verbosity_bias(
    judge: Judge,
    questions: Sequence[str],
    good: Sequence[str],
    padded: Sequence[str] | None = None,
    *,
    wrong: Sequence[str] | None = None,
    references: Sequence[str] | None = None,
) -> VerbosityBias:
    """Good short answers against the same made longer, and against long wrong ones.

    After the repetitive-list attack of Zheng et al. 2023, arXiv 2306.05685, section 3.3. Introduced
    in notebook 08.

    Args:
        judge, questions, references: see `Judge.compare`.
        good: right and short answers.
        padded: the same made longer without content; by default `pad` of each.
        wrong: wrong answers, which are padded too; without them there is no second test.

    Raises:
        ValueError: see `Judge.compare`; a padded answer that is not longer.
    """
    _columns(questions=questions, good=good, padded=padded, wrong=wrong, references=references)
    padded = [pad(answer) for answer in good] if padded is None else padded
    for short, long in zip(good, padded, strict=True):
        if len(long) <= len(short):
            raise ValueError(f"The padded answer {long!r} is no longer than {short!r}.")
    verdicts = [_agreed(*two) for two in _both_orders(judge, questions, good, padded, references)]
    kinds = Counter(verdicts)
    count = len(verdicts)
    second: dict[str, float] = {}
    if wrong is not None:
        long_wrong = [pad(answer) for answer in wrong]
        both = _both_orders(judge, questions, good, long_wrong, references)
        against = Counter(_agreed(*pair) for pair in both)
        second = {
            "wrong_longer": against["second"] / count,
            "right_shorter": against["first"] / count,
        }
    return VerbosityBias(
        pairs=count,
        longer=kinds["second"] / count,
        shorter=kinds["first"] / count,
        tie=kinds["tie"] / count,
        unreadable=kinds[None] / count,
        **second,
    )


@dataclass(frozen=True)
class Accuracy:
    """How often a judge prefers the right answer; see `accuracy`.

    Attributes:
        pairs: how many pairs were judged, each in both orders.
        accuracy: the share where the right answer won in both orders; 1/4 by throwing a coin.
        low, high: the ends of its 95 % interval (Clopper-Pearson).
        wrong: the share where the wrong answer won in both orders.
        tie: the share of ties, and of pairs where the orders disagree.
        unreadable: the share without a readable verdict in one order at least.
        each_order: the share of single judgements, two a pair, that prefer the right answer; 1/2 by
            throwing a coin, or by always choosing one side.
    """

    pairs: int
    accuracy: float
    low: float
    high: float
    wrong: float
    tie: float
    unreadable: float
    each_order: float


def accuracy(
    judge: Judge,
    questions: Sequence[str],
    right: Sequence[str],
    wrong: Sequence[str],
    references: Sequence[str] | None = None,
) -> Accuracy:
    """Whether a judge prefers right answers to wrong ones, which are known. Both orders are asked.

    The interval is of the pairs, as the two orders of a pair are not independent. Source: Clopper
    and Pearson, Biometrika 26 (1934), 404, through `scipy.stats.binomtest`. Introduced in
    notebook 08.

    Args:
        judge, questions, references: see `Judge.compare`.
        right, wrong: answers known to be right and wrong.

    Raises:
        ValueError: see `Judge.compare`.
    """
    checks.texts("wrong", wrong)
    _columns(questions=questions, right=right, wrong=wrong, references=references)
    both = _both_orders(judge, questions, right, wrong, references)
    kinds = Counter(_agreed(*pair) for pair in both)
    count = len(both)
    ends = binomtest(kinds["first"], count).proportion_ci(0.95)
    return Accuracy(
        pairs=count,
        accuracy=kinds["first"] / count,
        low=float(ends.low),
        high=float(ends.high),
        wrong=kinds["second"] / count,
        tie=kinds["tie"] / count,
        unreadable=kinds[None] / count,
        each_order=sum(pair.count("first") for pair in both) / (2 * count),
    )


@dataclass(frozen=True)
class SelfAgreement:
    """How far a judge agrees with itself; see `self_agreement`.

    Attributes:
        pairs: how many pairs were judged twice.
        equal: of those with two readable verdicts, the share with equal ones; NaN if there is none.
        alpha: Krippendorff's alpha of the two runs; see `votes.alpha`.
        unreadable: the share without a readable verdict in one run at least.
    """

    pairs: int
    equal: float
    alpha: float
    unreadable: float


def self_agreement(
    judge: Judge,
    questions: Sequence[str],
    firsts: Sequence[str],
    seconds: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    seeds: tuple[int, int] = (0, 1),
    temperature: float = 0.7,
) -> SelfAgreement:
    """The same comparisons asked twice, in the same order, with two seeds.

    Introduced in notebook 08.

    Args:
        judge, questions, firsts, seconds, references: see `Judge.compare`; the judge's `ask` has to
            take `seed` and `temperature`.
        seeds: the two seeds.
        temperature: how freely the judge's words are drawn; at 0 a seed changes nothing.

    Raises:
        ValueError: see `Judge.compare`.
    """
    _can(judge, "compare", "but")
    for seed in (seeds := checks.items("seeds", seeds, "two seeds")):
        checks.whole("seeds", seed, least=0, most=2**32 - 1)
    if len(seeds) != 2:
        raise checks.refuse("seeds", seeds, "two whole numbers")
    checks.number("temperature", temperature, least=0)
    runs = []
    for seed in seeds:
        asked = judge.but(seed=seed, temperature=temperature)
        verdicts = asked.compare(questions, firsts, seconds, references)
        runs.append([verdict.winner for verdict in verdicts])
    readable = [pair for pair in zip(*runs, strict=True) if None not in pair]
    equal = sum(one == other for one, other in readable)
    return SelfAgreement(
        pairs=len(runs[0]),
        equal=equal / len(readable) if readable else float("nan"),
        alpha=alpha(*runs),
        unreadable=1 - len(readable) / len(runs[0]),
    )
