"""English to Pig Latin, by rule. Introduced in notebook 03.

The rules: a word that begins with a vowel gets "way" (`eat` → `eatway`); otherwise all consonants
before the first vowel move to the end, followed by "ay" (`string` → `ingstray`). What those two
leave open is decided so:

- `qu` moves as one, also behind an s: `quick` → `ickquay`, `squid` → `idsquay`.
- `y` is a consonant at the beginning of a word and a vowel elsewhere: `yellow` → `ellowyay`,
  `my` → `ymay`, `style` → `ylestay`.
- A word without a vowel gets "ay": `hmm` → `hmmay`.
- A capital stays first (`Friends` → `Iendsfray`); a word in capitals stays in capitals
  (`NASA` → `ASANAY`).
- An apostrophe belongs to its word (`don't` → `on'tday`); a hyphen parts two words.
- Numbers, words with a digit in them, punctuation and spaces stay as they are.

Source of the two rules: the article "Pig Latin" of Wikipedia.
"""

from __future__ import annotations

import re
import unicodedata

from course_utils._core import checks

# A run of letters and digits, including apostrophes inside it.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_LONGEST_WORD = 100


def _is_vowel(character: str, first: bool) -> bool:
    """Whether a letter is a vowel in its position, ignoring accents."""
    plain = unicodedata.normalize("NFD", character)[0].lower()
    return plain in "aeiou" or (plain == "y" and not first)


def _head_length(word: str) -> int:
    """Return how many letters move to the end."""
    for index, character in enumerate(word):
        if _is_vowel(character, index == 0):
            after_q = index > 0 and word[index - 1] in "qQ" and character in "uU"
            # The u of qu is not a vowel, unless nothing follows it.
            if not (after_q and index + 1 < len(word)):
                return index
    return len(word)


def pig_latin_word(word: str) -> str:
    """Translate a word to Pig Latin; a word with other than letters and apostrophes is unchanged.

    Raises:
        BadValue: not a string.
    """
    checks.a("word", word, str, "a text")
    if not word or not all(c.isalpha() or c in "'’" for c in word) or not word[0].isalpha():
        return word
    head = _head_length(word)
    if head == 0:
        moved, ending = word, "way"
    else:
        moved, ending = word[head:] + word[:head], "ay"
    if len(word) > 1 and word.isupper():
        return moved + ending.upper()
    if word[0].isupper():
        moved = moved.lower()
        return moved[:1].upper() + moved[1:] + ending
    return moved + ending


def pig_latin(text: str) -> str:
    """Translate a text to Pig Latin, word by word; everything between the words is unchanged.

    Raises:
        BadValue: not a string.
    """
    checks.a("text", text, str, "a text")
    return _WORD.sub(lambda match: pig_latin_word(match[0]), text)


def originals(word: str) -> set[str]:
    """Find all words that give `word` in Pig Latin: often several (`eatway`: eat, or "weat").

    Raises:
        BadValue: not a string, or longer than 100 letters, which no word is.
    """
    checks.a("word", word, str, "a text")
    if len(word) > _LONGEST_WORD:
        raise checks.refuse("word", word, f"one word, of {_LONGEST_WORD} letters at most")
    found = set()
    for ending in ("way", "ay"):
        if not word.lower().endswith(ending):
            continue
        stem = word[: -len(ending)]
        for cut in range(len(stem) + 1):
            turned = stem[cut:] + stem[:cut]
            for candidate in (turned, turned.lower(), turned.lower().capitalize(), turned.upper()):
                if pig_latin_word(candidate) == word:
                    found.add(candidate)
    return found
