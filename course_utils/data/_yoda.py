"""Translate English to Yoda's English, by rule: what follows the verb goes first.

Introduced in notebook 03.2. For each clause:

- with an auxiliary, verb and rest come first, then subject and auxiliary: `You have become
  powerful` → `Become powerful you have`;
- with a form of `be`, the complement comes first: `The cook is angry` → `Angry the cook is`;
- otherwise the rest comes first, then subject and verb: `I sense the dark side` → `The dark side I
  sense`.

What the rules cannot handle is refused (`yoda` returns None) rather than translated badly:
questions, commands, sentences with an unknown verb, and clauses with nothing after the verb.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from course_utils._core import checks
from course_utils.data._folder import lexicon

ENDING = "Yes, hrrmmm."

_BE = set("am is are was were".split())
_AUXILIARIES = set(
    "have has had will would can could must should shall may might do does did".split()
)
_OPENS_NO_CLAUSE = _BE | _AUXILIARIES | {"who", "what", "why", "how"}
_PRONOUNS = set("i you we they he she it".split())
_DETERMINERS = set(
    """the a an this that these those my your our their his her its every each some many two three
    no any all both""".split()
)
_AFTER_A_VERB = _DETERMINERS | set(
    """me him them us it you in on at to near behind beside beyond inside outside by with for of
    from into under over""".split()
)
# Common verbs that are not in the lexicon.
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
    """The parts of a clause; `auxiliary` may be empty, `negation` is "not" or empty."""

    subject: str
    auxiliary: str
    negation: str
    verb: str
    rest: str


@functools.cache
def _written_small() -> frozenset[str]:
    return frozenset(_PRONOUNS | _DETERMINERS | lexicon().forms())


@functools.cache
def _verbs() -> frozenset[str]:
    forms = {form for verbs in lexicon().verbs.values() for verb in verbs for form in verb}
    return frozenset(forms | _COMMON_VERBS)


def parse_clause(clause: str) -> Clause | None:
    """Parse a clause, or return None.

    The verb is the first auxiliary or form of `be`; else the first known verb that is followed by a
    noun phrase, a pronoun or a preposition, which tells `the worried man` from `worried the man`.

    Raises:
        BadValue: not a string.
    """
    words = checks.a("clause", clause, str, "a text").split()
    low = [word.lower() for word in words]
    if len(words) < 3 or low[0] in _OPENS_NO_CLAUSE:
        return None
    determined = low[0] in _DETERMINERS
    orders = low[0] in _verbs() and low[1] in _DETERMINERS
    if orders and not determined and low[0] not in _PRONOUNS:
        return None  # `Open the door`
    for index in range(2 if determined else 1, len(words) - 1):
        after = index + 1
        negation = words[after] if low[after] == "not" else ""
        after += bool(negation)
        auxiliary, verb = words[index], ""
        if low[index] in _BE:
            pass
        elif low[index] in _AUXILIARIES and after < len(words) and low[after] in _verbs():
            verb = words[after]
            after += 1
        elif low[index] in _verbs() and low[index + 1] in _AFTER_A_VERB:
            auxiliary, negation, verb, after = "", "", words[index], index + 1
        else:
            continue
        rest = " ".join(words[after:])
        subject = " ".join(words[:index])
        return Clause(subject, auxiliary, negation, verb, rest) if rest else None
    return None


def _lower_first(text: str) -> str:
    """Write a sentence's first word as inside a sentence: names and I keep their capital."""
    first, blank, others = text.partition(" ")
    if first.lower() in _written_small() and first != "I":
        first = first.lower()
    return f"{first}{blank}{others}"


def _turn(clause: Clause) -> str:
    subject = _lower_first(clause.subject)
    if clause.auxiliary:
        lead = f"{clause.verb} {clause.rest}".strip()
        return f"{lead} {subject} {clause.auxiliary} {clause.negation}".strip()
    return f"{clause.rest} {subject} {clause.verb}"


def yoda(sentence: str, *, ending: bool = False) -> str | None:
    """Translate a sentence to Yoda's English; None if the rules do not cover it.

    Args:
        sentence: a sentence of one or more clauses joined by commas.
        ending: whether to add "Yes, hrrmmm."

    Raises:
        BadValue: not a string, or `ending` is neither True nor False.
    """
    checks.flag("ending", ending)
    told = checks.a("sentence", sentence, str, "a text").strip()
    text = told.rstrip(".!")
    stop = told[len(text) :] or "."
    text = text.rstrip()
    if not text or "?" in told:
        return None
    pieces = _JOINTS.split(text)
    turned = []
    for index, piece in enumerate(pieces):
        if index % 2:  # what joins two clauses
            turned.append(piece)
            continue
        clause = parse_clause(piece)
        if clause is None:
            return None
        turned.append(_turn(clause))
    said = "".join(turned)
    said = said[0].upper() + said[1:] + stop
    return f"{said} {ENDING}" if ending else said
