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
from course_utils.scoring import (
    Judge,
    add_filler,
    comparison_prompt,
    judge_accuracy,
    parse_verdict,
    position_bias,
    self_agreement,
    verbosity_bias,
    with_prefill,
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
        "Verdict: [[A]]",
        "Verdict: [[A] 'The",
        "Answer B is better in style. All in all: [[A]]",
        "[[A]]\n[[A]]",
        "A",
        "a",
        "A.",
        "(A)",
        "[A]",
        "[[A]",
        "**A**",
        '{"verdict": "A"}',
        '{"reason": "Answer B is better in style", "winner": "A"}',
        '```json\n{"verdict": "[[A]]"}\n```\nAnything else?',
        "<think>B is longer, [[B]]? No, A.</think>[[A]]",
        "it seems [[B]]</think>[[A]]",
        "[[A]]<think>Or [[B]]?",
    ],
    "second": ["[[B]]", "B", '{"winner": "b"}', "A good answer would be short.\n[[B]]"],
    "tie": ["[[C]]", "c", '{"verdict": "C"}'],
    None: [
        "",
        " \n ",
        "A good answer would name the capital.",
        "Answer A is better.",
        "A: Paris.\nB: Berlin.",
        "[[A]] or [[B]]?",
        "[[A]] if answer A is better, [[B]] if answer B is better, [[C]] for a tie.",
        "[[A]]\nOn second thoughts: [[B]]",
        "[[D]]",
        "[[AB]]",
        "AB",
        '{"winner": "none"}',
        '{"winner": null}',
        '{"rating": 7}',
        '{"winner": ',
        "<think>[[A]]</think>",
        "<think>Answer A is better. [[A]]",
    ],
}


@pytest.mark.parametrize(
    ("text", "winner"), [(text, winner) for winner, texts in VERDICTS.items() for text in texts]
)
def test_verdicts_are_read(text: str, winner: str | None) -> None:
    """In the forms that are asked for; what is unclear is not guessed."""
    assert parse_verdict(text) == winner


# Texts that look like a judge's.
PIECES = st.sampled_from(
    '[|]|[[|]]|A|B|C|a| |\n|.|{|}|{\'|:|,|*|\\|if|Answer|<think>|</think>|"winner": |NaN'.split("|")
)
JUDGELIKE = st.lists(PIECES, max_size=30).map("".join) | st.text()


@given(JUDGELIKE)
@settings(max_examples=500, deadline=None)
def test_any_text_can_be_read(text: str) -> None:
    """Nothing raises, and what comes out is one of the few things that can."""
    assert parse_verdict(text) in ("first", "second", "tie", None)


@given(JUDGELIKE, st.sampled_from([("A", "first"), ("B", "second"), ("C", "tie")]))
@settings(max_examples=300, deadline=None)
def test_the_asked_for_verdict_is_always_read(said: str, verdict: tuple[str, str]) -> None:
    """Whatever stands before the last line, unless it is in the asked-for form too, or thought."""
    assume("[[" not in said and "<think" not in said)
    assert parse_verdict(f"{said}\n[[{verdict[0]}]]") == verdict[1]


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
    assert parse_verdict(prompt) is None  # a judge that only echoes its task has not judged
    assert len(comparison_prompt("", "", "")) < 500


def test_comparing() -> None:
    """One reply for each row, in order; options go on to the model; the words are kept."""
    ask = Scripted(knows)
    judge = Judge(ask, max_new_tokens=9)
    verdicts = judge.compare(QUESTIONS, RIGHT, [WRONG[0], RIGHT[1], WRONG[2]], references=RIGHT)
    assert [verdict.winner for verdict in verdicts] == ["first", "tie", "first"]
    assert verdicts[0].reply == judge.replies[0] == "It is right.\n[[A]]"
    assert ask.options == [{"max_new_tokens": 9}]
    assert "A correct answer: Paris." in ask.asked[0]
    assert judge.replace(seed=1).options == {"max_new_tokens": 9, "seed": 1}
    assert judge.options == {"max_new_tokens": 9}


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
    lengths = [len(add_filler("Paris.", count)) for count in range(1, 9)]
    assert lengths == sorted(set(lengths))
    assert all("Paris." in add_filler("Paris.", count) for count in range(1, 9))
    with pytest.raises(ValueError, match="sentences is 0"):
        add_filler("Paris.", 0)


def test_accuracy() -> None:
    """Both orders have to be right; the interval is Clopper and Pearson's of the pairs."""
    sure = judge_accuracy(Judge(Scripted(knows)), QUESTIONS, RIGHT, WRONG)
    assert (sure.accuracy, sure.each_order, sure.high) == (1, 1, 1)
    assert sure.low == pytest.approx(beta.ppf(0.025, 3, 1))
    columns = [pd.Series(texts) for texts in (QUESTIONS, RIGHT, WRONG, RIGHT)]
    assert judge_accuracy(Judge(Scripted(knows)), *columns) == sure  # a table's columns will do
    one_sided = judge_accuracy(Judge(Scripted(lambda _: "[[B]]")), QUESTIONS, RIGHT, WRONG)
    assert (one_sided.accuracy, one_sided.tie, one_sided.each_order) == (0, 1, 0.5)
    assert one_sided.high == pytest.approx(beta.ppf(0.975, 1, 3))
    wrong = judge_accuracy(Judge(Scripted(knows)), QUESTIONS, WRONG, RIGHT)
    assert (wrong.accuracy, wrong.wrong) == (0, 1)
    silent = judge_accuracy(Judge(Scripted(lambda _: "Hm.")), QUESTIONS, RIGHT, WRONG)
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
    judge = Judge(with_prefill(chat), max_new_tokens=6, system="You are a judge.")
    found = position_bias(judge, QUESTIONS[:2], RIGHT[:2], WRONG[:2])
    assert all(re.fullmatch(r"Verdict: \[\[.*\]\]", reply) for reply in judge.replies)
    assert found.unreadable == 0
    assert found.prefers_first == 1  # whatever the answers are
