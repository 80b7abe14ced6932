"""English to Yoda's English, by rule: what comes after the verb goes first.

Introduced in notebook 03.2. For each clause:

- with an auxiliary, verb and rest lead, subject and auxiliary follow: `You have become powerful` →
  `Become powerful you have`;
- with a form of `be`, the complement leads: `The cook is angry` → `Angry the cook is`;
- otherwise the rest leads, then subject and verb: `I sense the dark side` → `The dark side I
  sense`.

What the rules cannot handle is refused (`yoda` returns None) rather than turned badly: questions,
orders, sentences whose verb is not known, and clauses with nothing behind the verb.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from course_utils.data import lexicon

ENDING = "Yes, hrrmmm."

_BE = set("am is are was were".split())
_AUXILIARIES = set(
    "have has had will would can could must should shall may might do does did".split()
)
_PRONOUNS = set("i you we they he she it".split())
_DETERMINERS = set(
    """the a an this that these those my your our their his her its every each some many two three
    no any all both""".split()
)
_AFTER_A_VERB = _DETERMINERS | set(
    """me him them us it you in on at to near behind beside beyond inside outside by with for of
    from into under over""".split()
)
# Verbs of everyday sentences that the lexicon does not have.
_COMMON_VERBS = set(
    """become became sense senses seek seeks sought feel feels felt think thinks thought want wants
    wanted get gets got give gives gave given go goes went gone make makes made say says said take
    takes took taken tell tells told come comes came run runs ran walk walks walked live lives lived
    love loves like likes need needs know knows knew known see sees saw seen find finds have has had
    read reads write writes wrote written speak speaks spoke spoken sing sings sang sung""".split()
)
_JOINTS = re.compile(r"(, (?:and|but|so|or|yet) |, )")


@dataclass(frozen=True)
class Clause:
    """A clause taken apart; `auxiliary` may be empty, `negation` is "not" or empty."""

    subject: str
    auxiliary: str
    negation: str
    verb: str
    rest: str


@functools.cache
def _verbs() -> frozenset[str]:
    forms = {form for verbs in lexicon().verbs.values() for verb in verbs for form in verb}
    return frozenset(forms | _COMMON_VERBS)


def parse(clause: str) -> Clause | None:
    """Take a clause apart, or give up.

    The verb is the first auxiliary or form of `be`; else the first known verb behind which a noun
    phrase, a pronoun or a preposition begins, which tells `the worried man` from `worried the man`.
    """
    words = clause.split()
    low = [word.lower() for word in words]
    if len(words) < 3 or low[0] in _BE | _AUXILIARIES or low[0] in ("who", "what", "why", "how"):
        return None
    if low[0] not in _PRONOUNS | _DETERMINERS and low[0] in _verbs() and low[1] in _DETERMINERS:
        return None  # an order: `Open the door`
    least = 1 if low[0] in _PRONOUNS or low[0] not in _DETERMINERS else 2
    for index in range(least, len(words) - 1):
        after = index + 1
        negation = words[after] if low[after] == "not" else ""
        after += bool(negation)
        subject = " ".join(words[:index])
        if low[index] in _BE:
            if after >= len(words):
                return None
            return Clause(subject, words[index], negation, "", " ".join(words[after:]))
        if low[index] in _AUXILIARIES and after < len(words) and low[after] in _verbs():
            rest = " ".join(words[after + 1 :])
            return Clause(subject, words[index], negation, words[after], rest) if rest else None
        if low[index] in _verbs() and low[index + 1] in _AFTER_A_VERB:
            return Clause(subject, "", "", words[index], " ".join(words[index + 1 :]))
    return None


def _lower_first(text: str) -> str:
    """A sentence's first word as it is written inside one: names and I keep their capital."""
    first, *others = text.split(" ")
    known = first.lower() in _PRONOUNS | _DETERMINERS or first.lower() in lexicon().forms()
    if known and first != "I":
        first = first.lower()
    return " ".join([first, *others])


def _turn(clause: Clause) -> str:
    subject = _lower_first(clause.subject)
    if clause.auxiliary:
        lead = f"{clause.verb} {clause.rest}".strip()
        return f"{lead} {subject} {clause.auxiliary} {clause.negation}".strip()
    return f"{clause.rest} {subject} {clause.verb}"


def yoda(sentence: str, *, ending: bool = False) -> str | None:
    """A sentence as Yoda would say it, or None where the rules do not reach.

    Args:
        sentence: one sentence of one or more clauses joined by commas.
        ending: whether to add "Yes, hrrmmm."
    """
    match = re.fullmatch(r"\s*(.+?)\s*([.!]*)\s*", sentence, re.S)
    if not match or "?" in sentence:
        return None
    text, stop = match[1], match[2] or "."
    pieces = _JOINTS.split(text)
    turned = []
    for index, piece in enumerate(pieces):
        if index % 2:  # what joins two clauses
            turned.append(piece)
            continue
        clause = parse(piece)
        if clause is None:
            return None
        turned.append(_turn(clause))
    said = "".join(turned)
    said = said[0].upper() + said[1:] + stop
    return f"{said} {ENDING}" if ending else said
