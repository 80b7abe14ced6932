"""The course's datasets: rules that hold for any text, splits without a leak, files up to date."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from course_utils.data import MADE, NAMES, _load, lexicon, load_data, rows
from course_utils.data import _folder as data
from course_utils.data._answers import yoda_answer
from course_utils.data._pig_latin import originals, pig_latin, pig_latin_word
from course_utils.data._sentences import SPLITS, Grammar, article, divide, plural
from course_utils.data._spelling import spell, unspell
from course_utils.data._yoda import ENDING, parse_clause, yoda
from course_utils.errors import HubUnreachable, UnknownName


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("friends", "iendsfray"),
        ("smile", "ilesmay"),
        ("string", "ingstray"),
        ("eat", "eatway"),
        ("omelet", "omeletway"),
        ("are", "areway"),
        ("pig", "igpay"),
        ("latin", "atinlay"),
        ("banana", "ananabay"),
        ("quick", "ickquay"),
        ("squid", "idsquay"),
        ("yellow", "ellowyay"),
        ("my", "ymay"),
        ("style", "ylestay"),
        ("rhythm", "ythmrhay"),
        ("hmm", "hmmay"),
        ("Friends", "Iendsfray"),
        ("NASA", "ASANAY"),
        ("I", "Iway"),
        ("don't", "on'tday"),
        ("42", "42"),
        ("3rd", "3rd"),
        ("émigré", "émigréway"),
    ],
)
def test_pig_latin_words(word: str, expected: str) -> None:
    """The sources' own examples, and each case that the rules had to decide."""
    assert pig_latin_word(word) == expected


def test_pig_latin_text() -> None:
    """Punctuation, spaces and hyphens stay where they are."""
    text = "It's a well-kept secret:  42 quails!"
    assert pig_latin(text) == "It'sway away ellway-eptkay ecretsay:  42 ailsquay!"


@given(st.text())
def test_pig_latin_takes_any_text(text: str) -> None:
    """It never fails, and leaves all that is not a word, in order."""
    turned = pig_latin(text)
    outside = r"[^\w'’]+"
    assert re.findall(outside, turned) == re.findall(outside, text)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=12))
def test_pig_latin_keeps_the_letters(word: str) -> None:
    """A word's letters are all there, and "ay" or "way" besides."""
    turned = pig_latin(word)
    for part in re.findall(r"[a-z]+(?:'[a-z]+)*", word):
        one = pig_latin_word(part)
        ending = "way" if part[0] in "aeiou" else "ay"
        assert one.endswith(ending)
        assert sorted(one) == sorted(part + ending)
        assert one in turned


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=10), st.integers(0, 2))
def test_pig_latin_can_be_undone(word: str, case: int) -> None:
    """Every word is among the originals of its Pig Latin, in small letters and in capitals."""
    word = (word, word.capitalize(), word.upper())[case]
    assert word in originals(pig_latin_word(word))


def test_some_pig_latin_is_ambiguous() -> None:
    """So undoing gives candidates: `eatway` may be eat, or a word beginning with w."""
    assert originals("eatway") >= {"eat", "weat"}
    assert originals("hello") == set()


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "You have become powerful, I sense the dark side in you.",
            "Become powerful you have, the dark side in you I sense.",
        ),
        ("The soup is hot.", "Hot the soup is."),
        ("I do not know the way.", "Know the way I do not."),
        ("Peter sold the old boat.", "The old boat Peter sold."),
        ("The worried man watched the sea.", "The sea the worried man watched."),
        (
            "My aunt carried the lamp, but the cook was angry!",
            "The lamp my aunt carried, but angry the cook was!",
        ),
        ("We must leave the town", "Leave the town we must."),
    ],
)
def test_yoda_sentences(sentence: str, expected: str) -> None:
    """The sources' example and one for each rule."""
    assert yoda(sentence) == expected
    assert yoda(sentence, ending=True) == f"{expected} {ENDING}"


@pytest.mark.parametrize(
    "sentence",
    ["Is he here?", "Open the door.", "The baby laughed.", "Hm.", "", "...", "Zork blipped the."],
)
def test_yoda_refuses_what_it_cannot_turn(sentence: str) -> None:
    """Better no sentence than a wrong one."""
    assert yoda(sentence) is None


@given(st.text())
def test_yoda_takes_any_text(text: str) -> None:
    """It never fails: a text, or None."""
    turned = yoda(text)
    assert turned is None or turned


def test_yoda_keeps_the_words() -> None:
    """Turning a sentence of the corpus moves its words, and changes none but for capitals."""
    for row in rows("yoda")["test"]:
        before, after = (
            sorted(re.findall(r"[\w'-]+", row[column].lower())) for column in ("sentence", "yoda")
        )
        assert before == after


def test_parser_finds_what_the_grammar_made() -> None:
    """On 2,000 new clauses the rule engine takes apart what the grammar had put together."""
    grammar = Grammar(lexicon(), seed=99)
    wrong = []
    for _ in range(2000):
        subject, group, rest = grammar.clause()
        found = parse_clause(f"{subject} {group} {rest}")
        if found is None or (
            found.subject,
            f"{found.auxiliary} {found.verb}".strip(),
            found.rest,
        ) != (subject, group, rest):
            wrong.append(f"{subject} | {group} | {rest}")
    assert not wrong[:10]


@pytest.mark.parametrize("name", MADE)
def test_files_are_what_the_rules_make(name: str) -> None:
    """The files under datasets/ are the builder's, row by row."""
    for split, expected in rows(name).items():
        path = ROOT / "datasets" / name / f"{split}.jsonl"
        written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert written == expected


def content_words(split: str) -> set[str]:
    """The content words of a split."""
    text = " ".join(row["sentence"].lower() for row in rows("sentences")[split])
    return set(re.findall(r"[a-z-]+", text)) & lexicon().forms()


def test_unseen_words_are_unseen() -> None:
    """No content word of the unseen split stands in another one."""
    unseen = content_words("unseen")
    assert len(unseen) > 250
    for split in ("train", "validation", "test"):
        assert not unseen & content_words(split)


def test_no_sentence_twice() -> None:
    """Neither within a split nor across."""
    everything = [row["sentence"] for split in rows("sentences").values() for row in split]
    assert len(everything) == len(set(everything)) == sum(SPLITS.values())


def test_the_corpus_is_wide() -> None:
    """At least 1,500 sentences, 3,000 words, and every common way to begin one."""
    texts = [row["sentence"] for split in rows("sentences").values() for row in split]
    words = set(re.findall(r"[a-z-]+", " ".join(texts).lower()))
    assert len(texts) >= 1500
    assert len(words) >= 3000
    heads = {re.match(r"[^aeiou]*", word)[0] for word in words}
    wanted = "b bl br c ch cl cr d dr f fl fr g gl gr h j k kn l m n p ph pl pr q r s sc scr sh sk"
    wanted += " sl sm sn sp spl spr sq st str sw t th thr tr tw v w wh wr y z"
    assert not set(wanted.split()) - heads
    assert all(len(text.split()) <= 14 for text in texts)


def test_lexicons_halves_share_nothing() -> None:
    """The division is of words, before any sentence is made."""
    seen, unseen = divide(lexicon())
    assert not seen.forms() & unseen.forms()
    assert seen.forms() | unseen.forms() == lexicon().forms()


def test_grammar_details() -> None:
    """Plurals and articles."""
    assert [plural(w) for w in ("box", "baby", "boy", "church", "cat")] == [
        "boxes",
        "babies",
        "boys",
        "churches",
        "cats",
    ]
    assert [article(w) for w in ("apple", "useful", "honest", "unicycle", "umbrella", "cat")] == [
        "an",
        "a",
        "an",
        "a",
        "an",
        "a",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_load_data(name: str) -> None:
    """As `datasets` gives it, the splits in order."""
    loaded = load_data(name)
    files = {path.stem: path for path in (ROOT / "datasets" / name).glob("*.jsonl")}
    assert set(loaded) == set(files)
    assert list(loaded) == sorted(loaded, key=_load._SPLITS.index)
    for split, path in files.items():
        assert list(loaded[split]) == [json.loads(line) for line in path.read_text().splitlines()]


def test_yodas_ending_is_occasional() -> None:
    """About one in four, the same one each time, and the plain column has none."""
    train = rows("yoda")["train"]
    share = sum(row["yoda_extra"].endswith(ENDING) for row in train) / len(train)
    assert 0.2 < share < 0.3
    assert not any(row["yoda"].endswith(ENDING) for row in train)


def test_unknown_and_unreachable_data() -> None:
    """The known names are listed; one on the hub says that it is there."""
    with pytest.raises(UnknownName, match="pig_latin"):
        load_data("piglatin")
    with pytest.raises(HubUnreachable, match="sentences, pig_latin, yoda, countries, instructions"):
        load_data("dvgodoy/yoda_sentences")


@pytest.mark.parametrize("name", NAMES)
def test_cards(name: str) -> None:
    """Each dataset's card states licence, columns, and the true size of each split."""
    card = (ROOT / "datasets" / name / "README.md").read_text(encoding="utf-8")
    assert "CC BY 4.0" in card
    for split, listed in load_data(name).items():
        assert re.search(rf"\| {split} \| {len(listed):,} \|", card), (split, len(listed))
        for column in listed.column_names:
            assert f"`{column}`" in card


def test_the_data_folder_is_named_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without the course around it says what to do."""
    monkeypatch.setattr(data, "__file__", "/nowhere/course_utils/data/__init__.py")
    with pytest.raises(data.CourseError, match="clone"):
        data.folder()


@given(st.text().filter(lambda text: "_" not in text))
def test_spelling_is_undone(text: str) -> None:
    """Letter by letter and back, for any text without the separator."""
    assert unspell(spell(text)) == " ".join(text.split())


@given(st.text())
def test_unspell_takes_whatever_a_model_writes(text: str) -> None:
    """It never raises, and leaves no separator."""
    assert "_" not in unspell(text)


def test_spell() -> None:
    """The form that the docstring shows, and the one text that is refused."""
    assert spell("My smile.") == "M y _ s m i l e ."
    assert unspell("i l e s m a y  _ _ e a t w a y") == "ilesmay eatway"
    with pytest.raises(ValueError, match="'_'"):
        spell("snake_case")


@pytest.mark.parametrize("row", [{"cue": "", "answer": "Kabul"}, {"cue": "a", "answer": ""}, {}])
def test_an_answer_in_style_needs_a_fact(row: dict[str, str]) -> None:
    """An empty text is named, with the column that it stands in."""
    with pytest.raises(ValueError, match=r"cue|answer"):
        yoda_answer(row)
