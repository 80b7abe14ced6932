"""The overlap of test items with training texts: by hand, against a plain search, on any texts."""

from __future__ import annotations

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.data import load_data
from course_utils.models._loading import load_tokenizer
from course_utils.scoring import contamination_report, contamination_summary
from course_utils.scoring._contamination import _words

TRAIN = [
    "It rained all day.",
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "Foxes are quick; the quick brown fox was red.",
]


def test_words_are_compared_without_capitals_and_punctuation() -> None:
    """Also where a letter is written in two ways."""
    assert _words("The «Café»—don't PANIC_2!") == ["the", "café", "don", "t", "panic", "2"]
    assert _words("cafe\u0301") == _words("CAFÉ")


def test_by_hand() -> None:
    """Six words, four 3-grams, of which two are found; a run of four words."""
    item = "a quick BROWN fox; jumps high"
    found = contamination_report([item], TRAIN, n=3).loc[0]
    assert found["words"] == 6
    assert found["share"] == pytest.approx(2 / 4)
    assert found["covered"] == pytest.approx(4 / 6)
    assert found["longest"] == 4
    assert found["run"] == "quick brown fox jumps"
    assert (found["train_row"], found["example"]) == (1, TRAIN[1])
    assert not found["exact"]
    assert not found["short"]


def test_a_run_ends_where_the_texts_part() -> None:
    """Two runs in one training text do not add up, nor do those of two training texts."""
    item = "one two three four five six"
    apart = contamination_report([item], ["one two three four X three four five six"], n=3).loc[0]
    assert (apart["share"], apart["covered"], apart["longest"]) == (1, 1, 4)
    in_two = contamination_report([item], ["one two three", "four five six"], n=3).loc[0]
    assert (in_two["share"], in_two["covered"], in_two["longest"]) == (0.5, 1, 3)


def test_an_item_that_repeats_itself() -> None:
    """Its n-grams count where they stand, and the run is as long as the training text's."""
    found = contamination_report(["go go go go go"], ["go go go go"], n=2).loc[0]
    assert (found["share"], found["longest"], found["exact"]) == (1, 4, False)


def test_short_items_are_compared_whole_and_marked() -> None:
    """Found only as they are, in one piece."""
    table = contamination_report(["Lazy dog!", "lazy cat", "rained all day"], TRAIN, n=8)
    assert table["short"].all()
    assert table["share"].tolist() == [1, 0, 1]
    assert table["longest"].tolist() == [2, 0, 3]
    assert table["train_row"].tolist() == [1, pd.NA, 0]


def test_exact_duplicates_are_flagged() -> None:
    """But for capitals and punctuation; a part of a training text is none, nor is a larger one."""
    items = [
        "it RAINED, all day",
        "rained all day",
        "It rained all day, they say.",
        "It rained all the day.",
    ]
    assert contamination_report(items, TRAIN, n=3)["exact"].tolist() == [True, False, False, False]


def test_columns_generators_and_long_texts() -> None:
    """A column of a Dataset and a stream give what a list gives; a long example is cut."""
    items = ["the quick brown fox"]
    column = Dataset.from_dict({"text": TRAIN})["text"]
    expected = contamination_report(items, TRAIN, n=3)
    pd.testing.assert_frame_equal(contamination_report(items, column, n=3), expected)
    pd.testing.assert_frame_equal(contamination_report(iter(items), iter(TRAIN), n=3), expected)
    long = contamination_report(items, ["padding " * 100 + items[0]], n=3).loc[0]
    assert len(long["example"]) == 201
    assert long["run"] == items[0]


def test_tokens_instead_of_words() -> None:
    """Token ids of a real tokenizer: n counts tokens, and a run is text again."""
    tokenizer = load_tokenizer("course/pythia-3m")
    text = "The capital of Kenya is Nairobi."
    ids = tokenizer(text)["input_ids"]
    found = contamination_report([text], [f"{text} It is large.", "Nothing."], 4, tokenizer).loc[0]
    assert found["words"] == len(ids) == found["longest"]
    assert (found["share"], found["run"]) == (1, text)
    assert contamination_report([text], [text.upper()], 4, tokenizer).loc[0, "share"] < 1


def test_the_courses_own_split() -> None:
    """No held-out country stands in a training question, and the search agrees: each shares at
    most the wording, never all its words. A question put into the training is found."""
    countries = load_data("countries")
    test = countries["held_out"]["question"][:40]
    table = contamination_report(test, countries["train"]["question"], n=5)
    assert not table["exact"].any()
    assert (table["share"] < 1).all()
    leaked = contamination_report(test, [*countries["train"]["question"], test[7]], n=5)
    assert leaked.index[leaked["exact"]].tolist() == [7]


def test_summary() -> None:
    """Counts by each paper's measure."""
    items = ["it rained all day", "so it rained all", "a b c d e", "lazy dog"]
    summary = contamination_summary(contamination_report(items, TRAIN, n=3))
    assert summary["items"].tolist() == [1, 3, 2, 1, 2, 1]
    assert summary["share"].tolist() == [0.25, 0.75, 0.5, 0.25, 0.5, 0.25]


def test_a_summary_counts_from_the_thresholds_on() -> None:
    """PaLM's 70% and Llama 2's 80% belong to the dirty items, Llama 2's 20% to the others."""
    table = pd.DataFrame(
        {"share": [0.69, 0.7, 0, 0], "covered": [0.199, 0.2, 0.799, 0.8], "exact": False}
    ).assign(short=False)
    assert contamination_summary(table)["items"].tolist() == [0, 2, 1, 1, 1, 0]


def test_a_long_run() -> None:
    """30 of 40 words in a row: 23 of the 33 8-grams, and 30 words covered."""
    item = [f"word{number}" for number in range(40)]
    found = contamination_report([" ".join(item)], [" ".join(["so", *item[5:35]])]).loc[0]
    assert (found["share"], found["covered"]) == (23 / 33, 30 / 40)
    assert (found["longest"], found["run"]) == (30, " ".join(item[5:35]))


WORD = st.text("abcdeé", min_size=1, max_size=3)
TEXT = st.lists(WORD, min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_piece_of_a_training_text_is_always_found(data: st.DataObject) -> None:
    """Any run of its whole words, with any n, in other capitals and with other punctuation."""
    train = data.draw(st.lists(TEXT, min_size=1, max_size=4))
    row = data.draw(st.integers(0, len(train) - 1))
    start = data.draw(st.integers(0, len(train[row]) - 1))
    end = data.draw(st.integers(start + 1, len(train[row])))
    glue = data.draw(st.sampled_from([" ", ", ", " – ", "\n"]))
    item = glue.join(train[row][start:end]).upper()
    n = data.draw(st.integers(1, 10))
    found = contamination_report([item], [" ".join(text) for text in train], n).loc[0]
    assert found["share"] == found["covered"] == 1
    assert found["longest"] == end - start
    assert found["short"] == (end - start < n)
    assert found["exact"] == any(text == train[row][start:end] for text in train)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(st.lists(st.text("xyz", min_size=1, max_size=3), max_size=9), max_size=4),
    st.integers(1, 5),
)
def test_no_word_in_common_gives_nothing(
    test: list[list[str]], train: list[list[str]], n: int
) -> None:
    """Neither a share nor a run nor an example; no training texts at all give nothing too."""
    table = contamination_report([" ".join(t) for t in test], [" ".join(t) for t in train], n)
    assert (table[["share", "covered", "longest"]] == 0).all(axis=None)
    assert not table["exact"].any()
    assert table[["train_row", "example"]].isna().all(axis=None)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=7), min_size=1, max_size=3),
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=3),
    st.integers(1, 4),
)
def test_it_agrees_with_a_plain_search(
    test: list[list[str]], train: list[list[str]], n: int
) -> None:
    """Every n-gram and every run of every item, looked for in every training text."""

    def has(piece: list[str]) -> bool:
        return any(
            text[i : i + len(piece)] == piece
            for text in train
            for i in range(len(text) - len(piece) + 1)
        )

    table = contamination_report([" ".join(t) for t in test], [" ".join(t) for t in train], n)
    for item, found in zip(test, table.itertuples(), strict=True):
        length = min(n, len(item))
        grams = [item[i : i + length] for i in range(len(item) - length + 1)]
        assert found.share == pytest.approx(sum(map(has, grams)) / len(grams))
        runs = [item[i:j] for i in range(len(item)) for j in range(i + length, len(item) + 1)]
        assert found.longest == max((len(run) for run in runs if has(run)), default=0)
        assert len(found.run.split()) == found.longest


@pytest.mark.parametrize(
    ("test", "train", "n", "tokenizer", "said"),
    [
        ("one text", TRAIN, 8, None, "test is one text"),
        (TRAIN, "one text", 8, None, "train is one text"),
        ([], TRAIN, 8, None, "test is empty"),
        (["fine", " ?! "], TRAIN, 8, None, "item 1 has no words"),
        (TRAIN, ["fine", None], 8, None, "train holds a NoneType at place 1"),
        (TRAIN, {"text": TRAIN}, 8, None, r'columns \[.text.\]; give one column: train\["text"\]'),
        (Dataset.from_dict({"q": TRAIN}), TRAIN, 8, None, r'test\["q"\]'),
        (TRAIN, 3, 8, None, "train is a int"),
        (TRAIN, TRAIN, 0, None, "n is 0"),
        (TRAIN, TRAIN, 2.5, None, r"n is 2\.5"),
        (TRAIN, TRAIN, 8, "gpt2", "tokenizer is a str"),
    ],
)
def test_bad_input(test, train, n, tokenizer, said: str) -> None:
    """The error names what was given and what is possible."""
    with pytest.raises(ValueError, match=said):
        contamination_report(test, train, n, tokenizer)


def test_a_summary_needs_the_right_table() -> None:
    """It says which columns are missing."""
    with pytest.raises(ValueError, match="no column covered, exact"):
        contamination_summary(pd.DataFrame({"share": [1], "short": [True]}))
    with pytest.raises(ValueError, match="empty"):
        contamination_summary(contamination_report(TRAIN, TRAIN).iloc[:0])
