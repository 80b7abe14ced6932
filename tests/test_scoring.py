"""The measures: by hand on small cases, and what they refuse."""

from __future__ import annotations

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from course_utils.scoring import chrf, exact_match, reference_scores, word_accuracy

WANTED = ["Ethay ingstray isway edray.", "Iway eatway."]


def test_exact_match_forgives_only_the_ends() -> None:
    """White space around a reply is not its fault; anything else is."""
    assert exact_match([f" {WANTED[0]}\n", "Iway eatway"], WANTED) == 0.5


@pytest.mark.parametrize(
    ("replies", "share"),
    [
        (WANTED, 1.0),
        (["", ""], 0.0),
        (["Ethay ringstay isway edray.", "Iway eatway."], 5 / 6),
        (["Ethay isway edray.", "Iway eatway."], 3 / 6),  # one left out shifts the others
        ([WANTED[0] + " Yes, yes.", WANTED[1]], 1.0),
        (["ethay ingstray isway edray.", "Iway eatway."], 5 / 6),
    ],
)
def test_word_accuracy(replies: list[str], share: float) -> None:
    """Words count in their own place."""
    assert word_accuracy(replies, WANTED) == pytest.approx(share)


def test_chrf_rewards_what_is_nearly_right() -> None:
    """0 for nothing in common, 100 for all, and in between in the right order."""
    near = chrf(["Ethay ringstay isway edray.", "Iway eatway."], WANTED)
    far = chrf(["The string is red.", "I eat."], WANTED)
    assert chrf(["xx", "xx"], WANTED) == 0
    assert 0 < far < near < chrf(WANTED, WANTED) == pytest.approx(100)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_a_text_scores_full_marks_against_itself(texts: list[str]) -> None:
    """On any text, and nothing crashes."""
    found = reference_scores(texts, texts)
    assert found["exact match"] == found["word accuracy"] == 1
    assert 0 <= found["chrF"] <= 100.001


OTHERS = [
    (["Ethay ringstay isway edray.", "Iway eatway."], WANTED),
    (["The string is red.", "", "Naïve café"], [*WANTED, "Naive café!"]),
    ([WANTED[1]], [WANTED[1]]),
]


@pytest.mark.parametrize(("replies", "references"), OTHERS)
def test_chrf_is_sacrebleus_and_lm_evals(replies: list[str], references: list[str]) -> None:
    """The same figure by sacrebleu's own function and by the benchmark harness's aggregation."""
    from lm_eval.api.metrics import chrf as lm_eval_chrf

    found = chrf(replies, references)
    assert found == pytest.approx(sacrebleu.corpus_chrf(replies, [references]).score)
    assert found == pytest.approx(lm_eval_chrf(list(zip(references, replies, strict=True))))


@pytest.mark.parametrize(("replies", "references"), OTHERS)
def test_exact_match_is_lm_evals(replies: list[str], references: list[str]) -> None:
    """Its own metric, which works without the hub, once the ends are stripped: it forgives none."""
    from lm_eval.api.registry import get_metric

    metric = get_metric("exact_match")
    found = metric(predictions=replies, references=references)["exact_match"]
    assert exact_match(replies, references) == pytest.approx(found)
    padded = [f" {reply}" for reply in replies]
    assert exact_match(padded, references) == pytest.approx(found)
    assert metric(predictions=padded, references=references)["exact_match"] == 0


@pytest.mark.parametrize(
    ("replies", "references", "said"),
    [
        (["a"], ["a", "b"], "1 replies and 2 references"),
        ([], [], "0 replies"),
        ("a", "a", "lists of texts"),
        (["a"], [" "], "no words"),
    ],
)
def test_bad_input(replies: list[str], references: list[str], said: str) -> None:
    """The error says what was given."""
    with pytest.raises(ValueError, match=said):
        word_accuracy(replies, references)
