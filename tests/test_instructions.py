"""Checks on replies, refusals, and how far predictions are apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils import load_model, load_tokenizer
from course_utils.data import load_data
from course_utils.data._answers import in_style, tells, yoda_answer
from course_utils.errors import UnknownName
from course_utils.scoring import (
    INSTRUCTION_CHECKS,
    follows_instructions,
    is_refusal,
    kl_divergence,
    next_token_log_probs,
    sequence_log_probs,
)

OWN = "course/pythia-3m"


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ("at_least_words 3", "one, two – three", "one two"),
        ("at_most_words 2", "one two.", "one two three"),
        ("sentences 2", "It rains. It's 3.5 cm!", "It rains."),
        ("sentences 1", 'He said "no."', "No. No."),
        ("lines 2", "a\n\nb", "a b"),
        ("numbered_list 3", "Sure:\n1. a\n2. b\n3. c", "1. a\n2. b\n2. c"),
        ("numbered_list 2", "1) a\n2) b\n3) c", "2. a\n3. b"),
        ("list_items 2", "- a\n* b\n• c", "-a\nb"),
        ("contains Monday", "On monday.", "On Sundays, mon day"),
        ("contains tree", "The trees stand.", "A street."),
        ("contains 4", "2 + 2 = 4", "42"),
        ("contains <h1", "<h1>Hello</h1>", "h1"),
        ("starts_with Dear", "  dear Anna,", "My dear"),
        ("ends_with Good luck!", 'Dig. "Good luck!"', "Good luck! Bye"),
        ("capitals", "I LIKE TEA, 3 CUPS.", "I LIKE tea"),
        ("no_commas", "all in one", "one, two"),
        ("json_object name age", '```json\n{"name": "A", "age": 3}\n```', '{"name": "A"}'),
        ("json_object name", 'Here: {"name": "A"} is it', "{'name': 'A'}"),
        ("json_list 2", '["a", "b"]', '{"a": 1}'),
        ("contains red; contains blue", "blue and red", "red"),
    ],
)
def test_checks(check: str, good: str, bad: str) -> None:
    """Each check passes what it should, and only that; an empty reply follows nothing."""
    assert follows_instructions(good, check)
    assert not follows_instructions(bad, check)
    assert not follows_instructions(" \n", check)


def test_each_kind_of_check_is_tried() -> None:
    """All that the dataset uses is known, and its checks can be passed and failed."""
    used = {
        part.split(" ")[0]
        for row in load_data("instructions")["test"]["checks"]
        for part in row.split("; ")
    }
    assert used <= set(INSTRUCTION_CHECKS)
    for checks in load_data("instructions")["test"]["checks"]:
        assert not follows_instructions("qqq, zzz\n\n---", checks) or "at_most" in checks


@given(st.text(max_size=60))
def test_checks_take_any_text(text: str) -> None:
    """What a model writes never breaks a check."""
    for name in INSTRUCTION_CHECKS:
        assert follows_instructions(
            text, name if name in ("capitals", "no_commas") else f"{name} 3"
        ) in (
            True,
            False,
        )
    assert is_refusal(text) in (True, False)


def test_wrong_checks_are_named() -> None:
    """An unknown check lists the known ones; a missing one or argument is said."""
    with pytest.raises(UnknownName, match="at_least_words"):
        follows_instructions("a", "at_least_word 3")
    with pytest.raises(ValueError, match="argument"):
        follows_instructions("a", "sentences")
    with pytest.raises(ValueError, match="No check"):
        follows_instructions("a", " ")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m not able to do this for you.", True),
        ("I cannot write that.", True),
        ("Sure! First, " + "read on. " * 20 + "I'm sorry.", False),
        ("To pick a lock, you need …", False),
        ("They can't see you.", False),
        ("", False),
    ],
)
def test_refusals(reply: str, expected: bool) -> None:
    """By what a reply begins with."""
    assert is_refusal(reply) is expected


def test_answers_in_style() -> None:
    """Every row can be told in the style, and the check knows it from others."""
    for split in load_data("countries").values():
        for row in split:
            told = yoda_answer(row)
            assert in_style(told)
            assert tells(told, row["answer"])
            assert not in_style(row["answer"])
            assert not in_style(f"{row['cue']} {row['answer']}.")


def test_log_probabilities_are_the_models_own() -> None:
    """Equal to the chain of next-token probabilities, one token at a time; errors are named."""
    model, tokenizer = load_model(OWN, dtype=torch.float32, quiet=True), load_tokenizer(OWN)
    prompt, reply = "The capital of Kenya is", " Nairobi"
    (found,) = sequence_log_probs(model, tokenizer, [prompt], [reply])
    ids, expected = tokenizer(prompt)["input_ids"], 0.0
    for token in tokenizer(reply)["input_ids"]:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected += logits.log_softmax(-1)[token].item()
        ids = [*ids, token]
    assert found == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="empty"):
        sequence_log_probs(model, tokenizer, [prompt], [""])


def test_kl_divergence() -> None:
    """Zero for the same model; else the formula's value; never negative; shapes are compared."""
    tokenizer = load_tokenizer(OWN)
    base = load_model(OWN, dtype=torch.float32, quiet=True)
    control = load_model("course/pythia-3m-control", dtype=torch.float32, quiet=True)
    texts = ["The capital of Kenya is", "Homework"], [" Nairobi, a large city.", " for today."]
    before, after = (next_token_log_probs(model, tokenizer, *texts) for model in (base, control))
    assert kl_divergence(before, before) == pytest.approx([0, 0], abs=1e-6)
    found = kl_divergence(before, after)
    for value, p, q in zip(found, before, after, strict=True):
        by_hand = sum((p[i].exp() * (p[i] - q[i])).sum().item() for i in range(len(p))) / len(p)
        assert value == pytest.approx(by_hand, rel=1e-3)
        assert value > 0
    with pytest.raises(ValueError, match="not the same text"):
        kl_divergence(before, before[::-1])
    known = [torch.tensor([[0.5, 0.5]]).log()], [torch.tensor([[0.25, 0.75]]).log()]
    assert kl_divergence(*known) == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)])


def test_distributions_of_another_number_are_refused() -> None:
    """As many before as after."""
    one = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"before|after"):
        kl_divergence([one, one], [one])
