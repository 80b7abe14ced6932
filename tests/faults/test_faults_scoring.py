"""Scores of what is no text, no number or no model: refused, with the name and what is possible."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import pandas as pd
import pytest
from conftest import ROOT

from course_utils.data import _answers as answers
from course_utils.data import _folder, load_data, rows
from course_utils.data import _load as data
from course_utils.data import _pig_latin as pig_latin
from course_utils.data import _sentences as sentences
from course_utils.data import _spelling as spelling
from course_utils.data import _yoda as yoda
from course_utils.errors import CourseError, DamagedFile, UnknownName
from course_utils.scoring import (
    Judge,
    add_filler,
    bootstrap_interval,
    chrf,
    comparison_prompt,
    contamination_report,
    contamination_summary,
    exact_match,
    follows_instructions,
    is_refusal,
    items_needed,
    kl_divergence,
    paired_test,
    parse_verdict,
    position_bias,
    reference_scores,
    self_agreement,
    with_prefill,
    word_accuracy,
)

NAN, INF = math.nan, math.inf
BAD_LISTS = {
    "a missing reply": (([None], ["None"]), r"replies\[0\] is None"),
    "a missing reference": ((["None"], [None]), r"references\[0\] is None"),
    "not a number": (([NAN], ["nan"]), r"replies\[0\] is nan"),
    "a number": ((["a", 3], ["a", "3"]), r"replies\[1\] is 3"),
    "bytes": ((["a"], [b"a"]), r"references\[0\] is b'a'"),
    "a gap in a column": ((pd.Series(["a", None]), ["a", "b"]), r"replies\[1\] is"),
    "one text": (("a", ["a"]), "replies is one text"),
    "none": ((None, None), "replies is None"),
    "a dictionary": (({"a": 1}, ["a"]), "replies is"),
    "a nested list": (([["a"]], [["a"]]), r"replies\[0\] is"),
    "empty": (([], []), "0 replies"),
    "one too few": ((["a"], ["a", "b"]), "1 replies and 2 references"),
}


@pytest.mark.parametrize("score", [exact_match, word_accuracy, chrf, reference_scores])
@pytest.mark.parametrize("fault", BAD_LISTS)
def test_what_cannot_be_scored(fault: str, score: Callable) -> None:
    """A missing reply is not the word "None"."""
    arguments, said = BAD_LISTS[fault]
    with pytest.raises(ValueError, match=said):
        score(*arguments)


def judge(reply: object = "[[A]]") -> Judge:
    return Judge(lambda prompts, **_: [reply] * len(prompts))


Q, A, B = ["Why?"], ["a"], ["b"]
CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "verdict of None": (lambda: parse_verdict(None), "text is None"),
    "verdict of NaN": (lambda: parse_verdict(NAN), "text is nan"),
    "verdict of bytes": (lambda: parse_verdict(b"[[A]]"), "text is b"),
    "prompt of None": (lambda: comparison_prompt(None, "a", "b"), "question is None"),
    "prompt with no answer": (lambda: comparison_prompt("q", "a", None), "second is None"),
    "prompt with a bad reference": (lambda: comparison_prompt("q", "a", "b", 3), "reference is 3"),
    "a judge that cannot be asked": (lambda: Judge("gpt"), "ask is 'gpt'"),
    "a judge of None": (lambda: Judge(None), "ask is None"),
    "a prefill without a runner": (lambda: with_prefill(len), "ask is"),
    "a judge that says None": (lambda: judge(None).compare(Q, A, B), r"ask's answer\[0\] is None"),
    "a judge that says 7": (lambda: judge(7).compare(Q, A, B), r"ask's answer\[0\] is 7"),
    "a judge that gives nothing": (
        lambda: Judge(lambda prompts: None).compare(Q, A, B),
        "ask's answer is None",
    ),
    "no questions": (lambda: judge().compare(None, A, B), "questions is None"),
    "an answer that is missing": (lambda: judge().compare(Q, [None], B), r"firsts\[0\] is None"),
    "bias of no judge": (lambda: position_bias(print, Q, A, B), "judge is"),
    "one seed": (lambda: self_agreement(judge(), Q, A, B, seeds=(1,)), "seeds is"),
    "a seed of NaN": (lambda: self_agreement(judge(), Q, A, B, seeds=(0, NAN)), "seeds is nan"),
    "temperature of NaN": (
        lambda: self_agreement(judge(), Q, A, B, temperature=NAN),
        "temperature is nan",
    ),
    "padding of None": (lambda: add_filler(None), "answer is None"),
    "padding by NaN": (lambda: add_filler("a", NAN), "sentences is nan"),
    "padding by half": (lambda: add_filler("a", 1.5), "sentences is 1.5"),
    "padding without end": (lambda: add_filler("a", 10**12), "sentences is 1000000000000"),
    "follows of None": (lambda: follows_instructions(None, "capitals"), "reply is None"),
    "follows by None": (lambda: follows_instructions("a", None), "checks is None"),
    "follows nothing": (lambda: follows_instructions("a", ""), "checks is ''"),
    "an unknown check": (lambda: follows_instructions("a", "nope 3"), "'nope'"),
    "a check of words": (lambda: follows_instructions("a", "sentences two"), "sentences is 'two'"),
    "a check of a half": (lambda: follows_instructions("a", "lines 2.5"), "lines is '2.5'"),
    "a check of less than nothing": (
        lambda: follows_instructions("a", "at_least_words -3"),
        "is '-3'",
    ),
    "a check of nothing": (lambda: follows_instructions("a", "list_items 0"), "list_items is '0'"),
    "a check of NaN": (lambda: follows_instructions("a", "json_list nan"), "json_list is 'nan'"),
    "a check that allocates": (
        lambda: follows_instructions("1. a", "numbered_list 1000000000000"),
        "numbered_list is",
    ),
    "refuses None": (lambda: is_refusal(None), "reply is None"),
    "an interval of None": (lambda: bootstrap_interval(None), "values is None"),
    "an interval of texts": (lambda: bootstrap_interval(["1", "0"]), "values holds something"),
    "an interval of gaps": (lambda: bootstrap_interval([1, None]), "values holds something"),
    "an interval of NaN": (lambda: bootstrap_interval([1, NAN]), "values holds nan"),
    "an interval of infinity": (lambda: bootstrap_interval([1, INF]), "values holds inf"),
    "an interval of huge ones": (lambda: bootstrap_interval([1, 10**400]), "values holds"),
    "an interval of a table": (lambda: bootstrap_interval([[1], [1, 2]]), "values holds"),
    "a confidence of NaN": (
        lambda: bootstrap_interval([1, 0], confidence=NAN),
        "confidence is nan",
    ),
    "a confidence of 95": (lambda: bootstrap_interval([1, 0], confidence=95), "confidence is 95"),
    "a confidence of text": (
        lambda: bootstrap_interval([1, 0], confidence="0.95"),
        "confidence is '0.95'",
    ),
    "an unknown statistic": (lambda: bootstrap_interval([1, 0], "mode"), "'mode'.*'median'"),
    "no statistic": (lambda: bootstrap_interval([1, 0], None), "statistic is None"),
    "a statistic without axis": (lambda: bootstrap_interval([1, 0], len), "statistic is"),
    "a seed of None": (lambda: bootstrap_interval([1, 0], seed=None), "seed is None"),
    "a negative seed": (lambda: paired_test([1, 0], [0, 1], seed=-1), "seed is -1"),
    "pairs of None": (lambda: paired_test([1, 0], None), "b is None"),
    "a difference of None": (lambda: items_needed(None, 0.5), "difference is None"),
    "a difference of NaN": (lambda: items_needed(NAN, 0.5), "difference is nan"),
    "a difference of nothing": (lambda: items_needed(1e-300, 0.5), "difference is 1e-300"),
    "a share of NaN": (lambda: items_needed(0.1, NAN), "share is nan"),
    "a share in percent": (lambda: items_needed(5, 60), "share of 60"),
    "a power of infinity": (lambda: items_needed(0.1, 0.5, power=INF), "power is inf"),
    "a disagreement of NaN": (
        lambda: items_needed(0.1, 0.5, disagreement=NAN),
        "disagreement is nan",
    ),
    "n-grams of half a word": (lambda: contamination_report(["a"], ["a"], 0.5), "n is 0.5"),
    "n-grams without end": (lambda: contamination_report(["a"], ["a"], 10**9), "n is 1000000000"),
    "n-grams of True": (lambda: contamination_report(["a"], ["a"], True), "n is True"),
    "a test item of None": (lambda: contamination_report([None], ["a"]), "test holds a NoneType"),
    "training of bytes": (lambda: contamination_report(["a"], b"a"), "train is one text"),
    "a tokenizer by name": (
        lambda: contamination_report(["a"], ["a"], 1, "gpt2"),
        "tokenizer is a str",
    ),
    "a tokenizer that is none": (
        lambda: contamination_report(["a"], ["a"], 1, int),
        "tokenizer is a type",
    ),
    "a summary of None": (lambda: contamination_summary(None), "table has no column"),
    "divergence of None": (lambda: kl_divergence(None, []), "before is None"),
    "divergence of texts": (lambda: kl_divergence(["a"], ["b"]), "before is 'a'"),
    "unknown rows": (lambda: rows("nope"), "'nope'.*Known: sentences"),
    "rows by hand": (lambda: rows("instructions"), "'instructions'"),
    "rows of None": (lambda: rows(None), "None"),
    "unknown data": (lambda: load_data("piglatin"), "pig_latin"),
    "data of None": (lambda: load_data(None), "None.*Known: sentences"),
    "data of a list": (lambda: load_data(["yoda"]), r"\['yoda'\]"),
    "data by path": (lambda: load_data("../datasets/yoda"), "yoda"),
    "yoda of None": (lambda: yoda.yoda(None), "sentence is None"),
    "yoda of bytes": (lambda: yoda.yoda(b"x"), "sentence is b'x'"),
    "yoda with a bad ending": (lambda: yoda.yoda("He is old.", ending="no"), "ending is 'no'"),
    "a clause of None": (lambda: yoda.parse_clause(None), "clause is None"),
    "pig latin of None": (lambda: pig_latin.pig_latin(None), "text is None"),
    "pig latin of a number": (lambda: pig_latin.pig_latin_word(3), "word is 3"),
    "originals of NaN": (lambda: pig_latin.originals(NAN), "word is nan"),
    "originals of a book": (lambda: pig_latin.originals("b" * 10**6 + "ay"), "word is 'bbb"),
    "spelling None": (lambda: spelling.spell(None), "text is None"),
    "unspelling a list": (lambda: spelling.unspell(["a"]), "text is"),
    "style of None": (lambda: answers.in_style(None), "reply is None"),
    "telling None": (lambda: answers.tells("a", None), "answer is None"),
    "an answer to no row": (lambda: answers.yoda_answer({}), "cue.*is None"),
    "an answer to an empty row": (
        lambda: answers.yoda_answer({"cue": "", "answer": "x"}),
        "cue.*is ''",
    ),
    "a plural of nothing": (lambda: sentences.plural(""), "noun is ''"),
    "an article for nothing": (lambda: sentences.article(""), "word is ''"),
    "a grammar without words": (lambda: sentences.Grammar(None, 1), "lexicon is None"),
    "sentences of two words": (
        lambda: next(sentences.Grammar(_folder.lexicon(), 1).sentences(2)),
        "longest is 2",
    ),
}


@pytest.mark.parametrize("fault", CALLS)
def test_a_bad_value_is_named(fault: str) -> None:
    """The error has the value, or its name, and is one of the course's."""
    call, said = CALLS[fault]
    with pytest.raises((ValueError, UnknownName), match=said):
        call()


def test_sentences_come_to_an_end() -> None:
    """Where there are few that are short enough, the search for another does not go on for ever."""
    few = sentences.Grammar(sentences.divide(_folder.lexicon())[1], 1).sentences(3)
    with pytest.raises(CourseError, match=r"no more than [\d,]+ sentences of up to 3 words"):
        deque(few, maxlen=0)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda was: was[: len(was) // 2 - 3],
    "a page instead": lambda was: b"<html>Sign in</html>",
    "zeroes": lambda was: bytes(len(was)),
    "another shape": lambda was: was + b'{"other": 1}\n[]\n',
    "pointers": lambda was: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_damaged_course_data_is_named(
    fault: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its place, and how to get it back."""
    folder = tmp_path / "datasets"
    (folder / "requests").mkdir(parents=True)
    was = (ROOT / "datasets" / "requests" / "test.jsonl").read_bytes()
    (folder / "requests" / "test.jsonl").write_bytes(DAMAGE[fault](was))
    monkeypatch.setattr(data, "folder", lambda: folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DamagedFile, match=r"requests.*git checkout"):
        load_data("requests")


def test_missing_course_data_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without its files."""
    (tmp_path / "yoda").mkdir()
    monkeypatch.setattr(data, "folder", lambda: tmp_path)
    with pytest.raises(DamagedFile, match="yoda"):
        load_data("yoda")


@pytest.mark.parametrize("damage", ["[nouns", "\x00", "x = 1"])
def test_a_damaged_lexicon_is_named(damage: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No TOML, or one without the words."""
    (tmp_path / "sentences").mkdir()
    (tmp_path / "sentences" / "lexicon.toml").write_text(damage)
    monkeypatch.setattr(_folder, "folder", lambda: tmp_path)
    with pytest.raises(DamagedFile, match=r"lexicon\.toml"):
        _folder.lexicon.__wrapped__()


@pytest.mark.parametrize("depth", [500, 5_000, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"winner":'])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_json_is_read_or_refused(opening: str, depth: int, closed: bool) -> None:
    """Never a RecursionError, in none of the parsers."""
    depth //= len(opening)
    text = opening * depth
    if closed:
        closing = {"[": "]", "{": "}"}
        text += "1" + "".join(closing[c] for c in opening if c in closing)[::-1] * depth
    assert follows_instructions(text, "json_list 3") is False
    assert follows_instructions(f"```json\n{text}\n```", "json_object name") is False
    assert parse_verdict(text) is None
