"""The judge: what is read of its words, and what the tests for bias find in scripted ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from course_utils import runner
from course_utils.scoring.judge import (
    Judge,
    accuracy,
    comparison_prompt,
    opened,
    pad,
    parse_rating,
    parse_verdict,
    position_bias,
    rating_prompt,
    self_agreement,
    verbosity_bias,
)

QUESTIONS = ["What is the capital of France?", "What is 2 + 3?", "Which animal barks?"]
RIGHT = ["Paris.", "5.", "A dog."]
WRONG = ["Berlin.", "9.", "A fish."]

VERDICTS = {
    "first": [
        "[[A]]",
        "Both try, but A names the source.\n[[A]]",
        "[[a]]",
        "[[ A ]].",
        "**[[A]]**",
        "[[**A**]]",
        "[[Assistant A]]",
        "[[A]] is my verdict, as it is right.",
        "Verdict: [[A]] – thank you for asking!",
        "Answer B is better in style. All in all: [[A]]",
        "[[A]]\n[[A]]",
        "[A]",
        "My verdict is [A].",
        "[[A]] if A is better, [[B]] if B is better, [[C]] for a tie.\n[[A]]",
        "[[A]",
        "Answer: A",
        "answer: a",
        "Final answer: A.",
        "**Answer:** A",
        "Winner: A",
        "winner: a",
        "The winner is A.",
        "The winner is assistant A.",
        "**Winner: Assistant A**",
        "Verdict: A, because it is right.",
        "Verdict: A because it is right.",
        "The better answer is A.",
        "Better answer: Answer A",
        "My choice is (A).",
        "Assistant A is better",
        "Assistant A is better than assistant B.",
        "assistant a is better",
        "Assistant A's answer is better.",
        "Answer A is clearly the better one.",
        "A is better than B.",
        "I think A is better.",
        "Both are good, but answer A is better.",
        "Answer B does not say why, so answer A is better.",
        "Answer B does not say why. Winner: A, as B does not say why.",
        "Answer A wins.",
        "The first answer is better.",
        "I prefer answer A.",
        "I would choose A because it is short.",
        "A",
        "a",
        "A.",
        "(A)",
        "**A**",
        "Answer A",
        "A, because B is wrong.",
        "Paris is right, Berlin is not.\n\nA",
        "A\n\nParis is right.",
        '{"winner": "A"}',
        '{"reason": "Answer B is better in style", "winner": "A"}',
        '```json\n{"Winner": "assistant_a"}\n```',
        'Here you are:\n```\n{"verdict": "[[A]]"}\n```\nAnything else?',
        '{"result": {"winner": "A"}}',
        "{'winner': 'A'}",
        "<think>B is longer, [[B]]? No, A.</think>[[A]]",
        "<thinking>Answer B is better.</thinking>\nWinner: A",
        "it seems [[B]]</think>[[A]]",
        "[[A]]<think>Or answer B is better?</think>",
        "<think>One: [[B]].</think>Well.<think>Two: <think>[[B]]</think>[[A]]",
    ],
    "second": [
        "[[B]]",
        "Answer: B",
        "Answer: b.",
        "Winner: B",
        "Assistant B is better",
        '{"winner": "B"}',
        '```json\n{"winner": "B", "reason": "It is right."}\n```',
        "The second answer is better.",
        "A good answer names the city. Answer B is better.",
        "A good answer would be short.\n[[B]]",
        "[[b]]",
        "`[[B]]`",
    ],
    "tie": [
        "[[C]]",
        "[[Tie]]",
        "[[c]]",
        "Winner: tie",
        "Verdict: C",
        "It is a tie.",
        "It's a draw.",
        "Verdict: a tie",
        "Both answers are equally good.",
        "Tie",
        "C",
        '{"winner": "tie"}',
        '{"winner": "both"}',
    ],
    None: [
        "",
        " \n ",
        "A good answer would name the capital.",
        "A good answer would name the capital. A bad one would not.",
        "Answer: A good answer would name the capital.",
        "Winner: A clear one is not to be seen",
        "The answer is a capital.",
        "A dog barks.",
        "A: Paris.\nB: Berlin.",
        "A. Paris",
        "Answer A: Paris.\n\nAnswer B: Berlin.",
        "[[A]] or [[B]]?",
        "[[A]] if answer A is better",
        "It is [B] if answer B is better.",
        'End with "[[C]]" for a tie.',
        "[[A]] if answer A is better, [[B]] if answer B is better, [[C]] for a tie.",
        "[[A]]\nOn second thoughts, answer B is better.",
        "[[B]]\nWinner: A",
        "[[D]]",
        "[[AB]]",
        "[A](https://example.org)",
        "Winner: A or B",
        "Answer: A, B or C",
        "Answer: A/B",
        "Answer A is better. Answer B is better.",
        "Answer A is better in style, while answer B is better in content.",
        "Answer A is not better than answer B.",
        "Answer A isn't better.",
        "I don't think the winner is A.",
        "If the winner is A, say so.",
        "Verdict: A, but B is close.",
        "I don't think answer A is better.",
        "Neither A nor B is better.",
        "If A is better, say so.",
        "Answer A is better if you like short ones.",
        "Is answer A better than B? Is it that A is better?",
        "Answer A is better, but B is right.",
        "Answer A is more or less what I expected.",
        "Vitamin A is better for the eyes.",
        "A\nParis\nB",
        '{"winner": "A", "verdict": "B"}',
        '{"winner": "none"}',
        '{"winner": ',
        "<think>Answer A is better. [[A]]</think>",
        "<think>Answer A is better. [[A]]",
        "I cannot judge this.",
    ],
}

RATINGS = {
    7: [
        "[[7]]",
        "It is mostly right.\n[[7]]",
        "**[[7]]**",
        "[[ 7 ]] is fair.",
        "[[7/10]]",
        "[[Rating: 7]]",
        "Rating: 7/10",
        "Rating: 7",
        "**Rating:** 7",
        "rating: [[7]]",
        "Rating: [7]",
        "Score: 7 out of 10.",
        "Rating (1-10): 7",
        "I would rate it 7.",
        "I'd rate this answer a 7 out of 10.",
        "The answer gets a score of 7.",
        "7",
        "7.",
        "7/10",
        "I give it 7/10, as it is short.",
        "It is right.\n7",
        "7\n\nIt is right.",
        '{"rating": 7}',
        '```json\n{"rating": "7/10", "why": "a score of 3 would be harsh"}\n```',
        '{"Overall rating": 7}',
        "Style 9/10, content 5/10. [[7]]",
        "<think>Perhaps 3? [[3]]</think>[[7]]",
        "[[7]]\n[[7]]",
        "[[7.0]]",
    ],
    7.5: ["[[7.5]]", "7.5", "7,5", "Rating: 7.5/10.", '{"score": 7.5}'],
    10: ["[[10]]", "10/10", "Rating: 10."],
    1: ["[[1]]", "Rating: 1", "1"],
    None: [
        "",
        "[[0]]",
        "[[11]]",
        "[[-3]]",
        "Rating: -3",
        "Rating: 70/100",
        "Rating: 4/5",
        "Rating: 80%",
        "Rating: 7 or 8",
        "Rating: 7-8",
        "Between 7 and 8/10",
        "7 to 8 out of 10",
        "[[3]] or [[7]]",
        "[[7]]\nNo: rating: 3",
        "Style 9/10, content 5/10.",
        "Rating: seven",
        "A score of 10 means perfect.",
        "On a scale from 1 to 10, it is fine.",
        "2 + 3 = 5",
        "Paris has 2 million people, see [1].",
        "1.\nIt is right.",
        "It was on 3/10/2024.",
        '{"rating": true}',
        '{"rating": NaN}',
        '{"rating": 1e999}',
        f'{{"rating": 1{"0" * 400}}}',
        '{"rating": null}',
        '{"rating": 7, "score": 3}',
        "[[7",
        "Rating: [[7",
        "Rating: [[1] 10]",
        "<think>[[7]]",
    ],
}


def cases(table: dict[object, list[str]]) -> list[tuple[str, object]]:
    """The texts with what they mean."""
    return [(text, meant) for meant, texts in table.items() for text in texts]


@pytest.mark.parametrize(("text", "meant"), cases(VERDICTS))
def test_verdicts_are_read(text: str, meant: str | None) -> None:
    """In the forms that judges use; what is unclear is not guessed."""
    assert parse_verdict(text) == meant


@pytest.mark.parametrize(("text", "meant"), cases(RATINGS))
def test_ratings_are_read(text: str, meant: float | None) -> None:
    """In the forms that judges use; other scales and several scores are not guessed."""
    assert parse_rating(text) == meant


# Texts that look like a judge's, so that the patterns meet what they were made for.
PIECES = st.sampled_from(
    "[|]|[[|]]|A|B|C|a|7|10|/| |\n|.|{|}|{'|:|,|-|*|\\|if|or|not|tie|out of|is better|Answer|"
    'Assistant|Winner: |Rating|<think>|</think>|```json|"winner": |"rating": |1e999|NaN'.split("|")
)
JUDGELIKE = st.lists(PIECES, max_size=30).map("".join) | st.text()


@given(JUDGELIKE)
@settings(max_examples=500, deadline=None)
def test_any_text_can_be_read(text: str) -> None:
    """Nothing raises, and what comes out is one of the few things that can."""
    assert parse_verdict(text) in ("first", "second", "tie", None)
    score = parse_rating(text)
    assert score is None or 1 <= score <= 10


@given(JUDGELIKE, st.sampled_from([("A", "first"), ("B", "second"), ("C", "tie")]))
@settings(max_examples=300, deadline=None)
def test_the_asked_for_verdict_is_always_read(said: str, verdict: tuple[str, str]) -> None:
    """Whatever stands before the last line, unless it is in the asked-for form too, or thought."""
    assume("[[" not in said and "<think" not in said)
    assert parse_verdict(f"{said}\n[[{verdict[0]}]]") == verdict[1]


@given(JUDGELIKE, st.integers(10, 100).map(lambda tenths: tenths / 10))
@settings(max_examples=300, deadline=None)
def test_the_asked_for_rating_is_always_read(said: str, score: float) -> None:
    """As for verdicts."""
    assume("[[" not in said and "<think" not in said)
    assert parse_rating(f"{said}\n[[{score:g}]]") == score


@pytest.mark.parametrize(
    "text",
    [
        "x" * 50_000,
        "<think>" * 9_000,
        "{" * 50_000,
        '{"a":' * 5_000,
        "[[" * 50_000,
        "rating " * 5_000,
    ],
)
def test_long_nonsense_is_read(text: str) -> None:
    """Nothing nests or repeats too deeply for it."""
    assert parse_verdict(text) is None
    assert parse_rating(text) is None


class Scripted:
    """An `ask` that judges by a rule, from a prompt to a reply, and keeps what it was asked."""

    def __init__(self, rule: Callable[..., str]):
        self.rule = rule
        self.asked: list[str] = []
        self.options: list[dict] = []

    def __call__(self, prompts: list[str], **options: object) -> list[str]:
        self.asked += prompts
        self.options.append(options)
        return [self.rule(prompt, **options) for prompt in prompts]


def answers(prompt: str) -> tuple[str, str]:
    """The two answers in a prompt."""
    first = prompt.split("Answer A: ")[1].split("\n\nAnswer B: ")[0]
    return first, prompt.split("Answer B: ")[1].split("\n\nSay in")[0]


def knows(prompt: str, **_: object) -> str:
    """A perfect judge."""
    first, second = [any(good in text for good in RIGHT) for text in answers(prompt)]
    return "It is right.\n" + ("[[C]]" if first == second else "[[A]]" if first else "[[B]]")


def likes_long(prompt: str, **_: object) -> str:
    """A judge who counts letters."""
    first, second = answers(prompt)
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def test_the_prompts_hold_what_is_judged() -> None:
    """In their places, whatever the texts contain; the reference only where there is one."""
    prompt = comparison_prompt("Why {first}?", "{second} %s", "<b>", "{question}")
    for part in ("Question: Why {first}?", "Answer A: {second} %s\n", "Answer B: <b>\n"):
        assert part in prompt
    assert "A correct answer: {question}" in prompt
    assert "correct answer:" not in comparison_prompt("Why?", "a", "b")
    assert "Answer: So." in rating_prompt("Why?", "So.")
    assert "A correct answer: No." in rating_prompt("Why?", "So.", "No.")
    assert parse_verdict(prompt) is None  # a judge that only echoes its task has not judged
    assert parse_rating(rating_prompt("Why?", "So.")) is None
    assert len(comparison_prompt("", "", "")) < 500


def test_compare_and_rate() -> None:
    """One reply for each row, in order; options go on to the model; the words are kept."""
    ask = Scripted(knows)
    judge = Judge(ask, max_new_tokens=9)
    verdicts = judge.compare(QUESTIONS, RIGHT, [WRONG[0], RIGHT[1], WRONG[2]], references=RIGHT)
    assert [verdict.winner for verdict in verdicts] == ["first", "tie", "first"]
    assert verdicts[0].reply == judge.replies[0] == "It is right.\n[[A]]"
    assert ask.options == [{"max_new_tokens": 9}]
    assert "A correct answer: Paris." in ask.asked[0]
    rater = Judge(Scripted(lambda prompt: "[[9]]" if "Paris" in prompt else "Hm."))
    assert rater.rate(QUESTIONS, RIGHT) == [9, None, None]
    assert rater.replies == ["[[9]]", "Hm.", "Hm."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((QUESTIONS, RIGHT, WRONG[:2]), "3 questions, 3 firsts, 2 seconds"),
        ((QUESTIONS, RIGHT, WRONG, ["x"]), "1 references"),
        (([], [], []), "0 questions"),
        (("Why?", RIGHT, WRONG), "questions is one text"),
    ],
)
def test_bad_lists(arguments: tuple, said: str) -> None:
    """The error names the lists; the model is not asked."""
    ask = Scripted(knows)
    for judged in (Judge(ask).compare, lambda *given: position_bias(Judge(ask), *given)):
        with pytest.raises(ValueError, match=said):
            judged(*arguments)
    assert ask.asked == []


def test_an_ask_that_gives_too_little() -> None:
    """A function that takes one prompt, or loses some, is found out."""
    for bad, count in ((lambda prompts: "[[A]]", 1), (lambda prompts: ["[[A]]"] * 2, 2)):
        with pytest.raises(ValueError, match=f"3 prompts and gave {count} replies"):
            Judge(bad).compare(QUESTIONS, RIGHT, WRONG)


def test_position_bias() -> None:
    """A perfect judge has none, one who always says A nothing else, and what is mixed is told."""
    fair = position_bias(Judge(Scripted(knows)), QUESTIONS, RIGHT, WRONG)
    assert (fair.pairs, fair.consistent) == (3, 1)
    assert fair.verdicts == ["first"] * 3
    swapped = position_bias(Judge(Scripted(knows)), QUESTIONS, WRONG, RIGHT, RIGHT)
    assert swapped.verdicts == ["second"] * 3
    for letter, share in (("A", "prefers_first"), ("B", "prefers_second"), ("C", "consistent")):
        judge = Judge(Scripted(lambda _, letter=letter: f"[[{letter}]]"))
        biased = position_bias(judge, QUESTIONS, RIGHT, WRONG)
        assert getattr(biased, share) == 1
        assert biased.verdicts == ["tie"] * 3

    def moody(prompt: str) -> str:
        first, _ = answers(prompt)
        said = {"Paris.": "[[A]]", "Berlin.": "[[C]]", "5.": "[[A]]", "9.": "?", "A dog.": "[[B]]"}
        return said.get(first, "[[A]]")

    found = position_bias(Judge(Scripted(moody)), QUESTIONS, RIGHT, WRONG)
    assert found.mixed == found.unreadable == found.consistent == pytest.approx(1 / 3)
    assert found.prefers_first == found.prefers_second == 0
    assert found.verdicts == ["tie", None, "second"]


def test_verbosity_bias() -> None:
    """Who counts letters prefers the padded answer, even to a right one; who knows does not."""
    fooled = verbosity_bias(Judge(Scripted(likes_long)), QUESTIONS, RIGHT, wrong=WRONG)
    assert (fooled.longer, fooled.shorter, fooled.wrong_longer) == (1, 0, 1)
    wise = verbosity_bias(Judge(Scripted(knows)), QUESTIONS, RIGHT, wrong=WRONG)
    assert (wise.longer, wise.tie, wise.wrong_longer, wise.right_shorter) == (0, 1, 0, 1)
    own = [f"{answer} Well, well, well." for answer in RIGHT]
    given_lists = verbosity_bias(Judge(Scripted(likes_long)), QUESTIONS, RIGHT, own)
    assert given_lists.longer == 1
    assert given_lists.wrong_longer is None
    with pytest.raises(ValueError, match="no longer than"):
        verbosity_bias(Judge(Scripted(knows)), QUESTIONS, RIGHT, RIGHT)


def test_padding() -> None:
    """Longer with each phrase, and the answer stays in it."""
    lengths = [len(pad("Paris.", count)) for count in range(1, 9)]
    assert lengths == sorted(set(lengths))
    assert all("Paris." in pad("Paris.", count) for count in range(1, 9))
    with pytest.raises(ValueError, match="sentences is 0"):
        pad("Paris.", 0)


def test_accuracy() -> None:
    """Both orders have to be right; the interval is Clopper and Pearson's of the pairs."""
    sure = accuracy(Judge(Scripted(knows)), QUESTIONS, RIGHT, WRONG)
    assert (sure.accuracy, sure.each_order, sure.high) == (1, 1, 1)
    assert sure.low == pytest.approx(beta.ppf(0.025, 3, 1))
    columns = [pd.Series(texts) for texts in (QUESTIONS, RIGHT, WRONG, RIGHT)]
    assert accuracy(Judge(Scripted(knows)), *columns) == sure  # a table's columns will do
    one_sided = accuracy(Judge(Scripted(lambda _: "[[B]]")), QUESTIONS, RIGHT, WRONG)
    assert (one_sided.accuracy, one_sided.tie, one_sided.each_order) == (0, 1, 0.5)
    assert one_sided.high == pytest.approx(beta.ppf(0.975, 1, 3))
    wrong = accuracy(Judge(Scripted(knows)), QUESTIONS, WRONG, RIGHT)
    assert (wrong.accuracy, wrong.wrong) == (0, 1)
    silent = accuracy(Judge(Scripted(lambda _: "Hm.")), QUESTIONS, RIGHT, WRONG)
    assert (silent.unreadable, silent.tie) == (1, 0)


def test_self_agreement() -> None:
    """Two runs with two seeds at one temperature, compared verdict by verdict."""
    ask = Scripted(
        lambda prompt, seed, temperature: "[[A]]" if seed or "2 + 3" in prompt else "[[B]]"
    )
    found = self_agreement(Judge(ask, seed=5), QUESTIONS, RIGHT, WRONG)
    assert ask.options == [{"seed": seed, "temperature": 0.7} for seed in (0, 1)]
    assert (found.pairs, found.unreadable) == (3, 0)
    assert found.equal == pytest.approx(1 / 3)
    assert found.alpha == pytest.approx(1 - (4 / 6) / (2 * 4 * 2 / (6 * 5)))
    silent = self_agreement(Judge(Scripted(lambda *_, **__: "Hm.")), QUESTIONS, RIGHT, WRONG)
    assert silent.unreadable == 1
    assert math.isnan(silent.equal)
    assert math.isnan(silent.alpha)


def test_a_small_model_as_a_judge(chat_folder: Path) -> None:
    """The embedded model takes the prompts; with its replies begun for it, they can be read."""
    chat = runner("chat", max_new_tokens=12)
    plain = Judge(chat)
    verdicts = plain.compare(QUESTIONS[:2], RIGHT[:2], WRONG[:2])
    assert [verdict.reply for verdict in verdicts] == plain.replies
    assert all(plain.replies)
    judge = Judge(opened(chat), max_new_tokens=6, system="You are a judge.")
    found = position_bias(judge, QUESTIONS[:2], RIGHT[:2], WRONG[:2])
    assert all(re.fullmatch(r"Verdict: \[\[.*\]\]", reply) for reply in judge.replies)
    assert found.unreadable == 0
    assert found.prefers_first == 1  # whatever the answers are
