"""Votes: kept through a kill, counted, ranked, and compared between voters."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from course_utils.results import append_row, whole_rows
from course_utils.scoring import (
    Verdict,
    Vote,
    Votes,
    answers_fingerprint,
    krippendorff_alpha,
    voter_agreement,
    votes_from_verdicts,
    win_rates,
)
from course_utils.scoring._ratings import _interval

FORKS = """
import os, random, signal, sys, time
from course_utils.scoring import Votes

votes = Votes(sys.argv[1])
chance = random.Random(int(sys.argv[2]))
stored = 0
for _ in range(8):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            votes.add(f"{len(votes)} " + "?" * 20_000, "base", "tuned", "left")
            os.write(tell, b".")
    os.close(tell)
    os.read(told, 1)
    time.sleep(chance.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    stored += 1
    while said := os.read(told, 4096):
        stored += len(said)
    found = [int(vote.question.split()[0]) for vote in votes]
    assert found == list(range(len(found))), found
    # What was told to be stored is there; of the vote under way, all or nothing.
    assert stored <= len(found) <= stored + 1, (stored, len(found))
    stored = len(found)
print(stored)
"""


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    """A file of votes in a folder that is not there yet."""
    return Votes(tmp_path / "deep" / "votes.jsonl")


def many(counts: dict[tuple[str, str, str], int]) -> list[Vote]:
    """Votes by the two systems and the winner's side, each on a question of its own."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    return [Vote(f"question {number}", *kind) for number, kind in enumerate(kinds)]


def swapped(vote: Vote) -> Vote:
    """The same verdict with the systems on the other sides."""
    winner = {"left": "right", "right": "left", "tie": "tie"}[vote.winner]
    return Vote(vote.question, vote.right, vote.left, winner, vote.voter, vote.answers, vote.time)


def test_votes_are_kept(votes: Votes) -> None:
    """Each is in the file at once, and read by another reader; whoever has voted is known."""
    assert list(votes) == []
    assert votes.frame().empty
    first = votes.add("Who?", "base", "tuned", "right")
    votes.add("Who?", "base", "tuned", "tie", voter="you")
    again = Votes(votes.path)
    assert list(again) == list(votes)
    assert len(again) == 2
    assert again.by("me") == [first]
    assert (first.preferred, first.pair) == ("tuned", ("base", "tuned"))
    assert list(again.frame()["winner"]) == ["right", "tie"]
    assert again.voted("Who?", "tuned", "base")  # swapped, the pair is the same
    assert not again.voted("Who?", "tuned", "base", voter="nobody")
    assert not again.voted("Where?", "tuned", "base")
    with pytest.raises(ValueError, match="already"):
        again.add("Who?", "tuned", "base", "left")


def test_a_vote_on_other_answers_is_another_vote(votes: Votes) -> None:
    """A model trained anew has to be judged anew; sides don't matter."""
    votes.add("Who?", "base", "tuned", "right", left_text="I.", right_text="You.")
    assert votes.voted("Who?", "tuned", "base", left_text="You.", right_text="I.")
    assert not votes.voted("Who?", "base", "tuned", left_text="You.", right_text="I.")
    assert not votes.voted("Who?", "base", "tuned")
    votes.add("Who?", "base", "tuned", "left", left_text="I.", right_text="They.")
    assert len(votes) == 2
    with pytest.raises(ValueError, match="both answers"):
        votes.add("Who?", "base", "tuned", "left", left_text="I.")


def test_a_vote_is_taken_back(votes: Votes) -> None:
    """The file only grows; the vote may be given again, and is then the latest."""
    vote = votes.add("Who?", "base", "tuned", "right")
    other = votes.add("Where?", "base", "tuned", "right")
    votes.withdraw(swapped(vote))
    assert list(votes) == [other]
    assert len(votes.path.read_text().splitlines()) == 3
    with pytest.raises(ValueError, match="no vote of me"):
        votes.withdraw(vote)
    again = votes.add("Who?", "tuned", "base", "tie")
    assert list(votes) == [other, again]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"winner": "both"}, "left, right, tie are possible"),
        ({"right": "base"}, "Both sides are 'base'"),
        ({"question": " "}, "question of a vote is ' '"),
        ({"voter": ""}, "voter of a vote is ''"),
        ({"left": 3}, "left of a vote is 3"),
    ],
)
def test_bad_votes(votes: Votes, change: dict[str, object], said: str) -> None:
    """Nothing is stored of what is no vote."""
    wanted = {"question": "Who?", "left": "base", "right": "tuned", "winner": "left", **change}
    with pytest.raises(ValueError, match=said):
        votes.add(**wanted)
    assert not votes.path.exists()


def test_a_row_that_is_no_vote(votes: Votes) -> None:
    """A file of something else is told; one strange row among votes costs no other vote."""
    append_row(votes.path, {"question": "Who?", "speed": 3})
    with pytest.raises(ValueError, match=r"Line 1 of .*votes.jsonl is no vote: .*speed"):
        list(votes)
    append_row(votes.path, asdict(Vote("Who?", "base", "tuned", "left")))
    before = votes.path.read_bytes()
    with pytest.warns(UserWarning, match=r"Line 1 of .*votes.jsonl is no vote: .*speed"):
        assert [vote.preferred for vote in votes] == ["base"]
    assert votes.path.read_bytes() == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4, unique=True))
def test_any_question_comes_back(tmp_path: Path, texts: list[str]) -> None:
    """Whatever its characters, line separators included."""
    votes = Votes(tmp_path / "any.jsonl")
    votes.path.unlink(missing_ok=True)
    for text in [*texts, "one\u2028two\x85three\nfour"]:
        if not votes.voted(text, "a", "b"):
            votes.add(text, "a", "b", "tie")
    assert [vote.question for vote in votes][: len(texts)] == texts


def test_a_torn_last_line_costs_one_vote(votes: Votes) -> None:
    """Cut at any byte, the rows before are whole, and voting goes on."""
    votes.add("Who?", "base", "tuned", "left")
    kept = votes.path.read_bytes()
    votes.add("Où – ça?", "base", "tuned", "left")
    whole = votes.path.read_bytes()
    for end in range(len(kept), len(whole)):
        votes.path.write_bytes(whole[:end])
        # Only its line break is missing: the row is there.
        there = ["Who?", "Où – ça?"] if end == len(whole) - 1 else ["Who?"]
        assert [vote.question for vote in votes] == there
        assert votes.path.read_bytes() == whole[:end]
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            votes.add("When?", "base", "tuned", "tie")
            assert [vote.question for vote in votes] == [*there, "When?"]
        assert votes.path.read_bytes().startswith(whole[:end])
    assert {path.name for path in votes.path.parent.iterdir()} <= {
        "votes.jsonl",
        ".votes.jsonl.lock",
    }


def test_a_row_after_a_torn_line_stands_alone(tmp_path: Path) -> None:
    """Also where nobody has read the file since: the new row is not lost with the torn one."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": 1}\n{"na')
    append_row(path, {"name": 2})
    with pytest.warns(UserWarning, match="1 of 3 lines"):
        assert whole_rows(path) == [{"name": 1}, {"name": 2}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_votes_survive_a_kill(tmp_path: Path) -> None:
    """Killed eight times at any moment, each vote that was told to be stored is there."""
    path = tmp_path / "votes.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(path), str(random.randrange(10**6))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(Votes(path)) == int(done.stdout) >= 8


def test_win_rates_by_hand() -> None:
    """A tie is half a win, the side does not matter, each pair is a row."""
    votes = many({("tuned", "base", "left"): 5, ("base", "tuned", "right"): 4})
    votes += [Vote("a", "tuned", "base", "right"), Vote("b", "tuned", "base", "tie")]
    votes += [Vote("c", "tuned", "big", "right")]
    table = win_rates(votes)
    assert list(table["system"]) == ["base", "big"]
    assert list(table["against"]) == ["tuned", "tuned"]
    first, second = table.to_dict("records")
    assert [first[name] for name in ("votes", "wins", "ties", "losses")] == [11, 1, 1, 9]
    assert first["win_rate"] == pytest.approx(1.5 / 11)
    assert first["low"] <= first["win_rate"] <= first["high"]
    assert second["win_rate"] == 1
    assert math.isnan(second["low"])  # one question shows nothing of others
    assert math.isnan(win_rates(votes, resamples=0)["high"][0])


def test_the_interval_is_the_bootstraps() -> None:
    """For single votes a sample's wins are binomial; a seed gives the same ends again."""
    votes = many({("a", "b", "left"): 15, ("a", "b", "right"): 5})
    (row,) = win_rates(votes).to_dict("records")
    for end, chance in (("low", 0.025), ("high", 0.975)):
        assert row[end] == pytest.approx(binom.ppf(chance, 20, 0.75) / 20, abs=0.051)
    assert win_rates(votes).equals(win_rates(votes))


def test_the_interval_ends_at_the_percentiles() -> None:
    """At the 2.5th and the 97.5th, rounded outwards; what is not defined is left out."""
    values = np.random.default_rng(0).permutation(1000.0 ** np.linspace(0, 1, 1000))
    expected = (
        np.percentile(values, 2.5, method="lower"),
        np.percentile(values, 97.5, method="higher"),
    )
    assert _interval(values) == expected
    assert _interval(np.array([*values, math.nan])) == expected
    assert _interval(np.array([1.0, math.inf])) == (1, math.inf)


def test_questions_with_more_votes_weigh_more() -> None:
    """In a sample as in all: three wins on one question and a loss on another are 3 of 4."""
    votes = [Vote("often asked", "a", "b", "left", voter) for voter in ("x", "y", "z")]
    (row,) = win_rates([*votes, Vote("once", "a", "b", "right")]).to_dict("records")
    assert (row["win_rate"], row["low"], row["high"]) == (0.75, 0, 1)


def test_questions_are_resampled_not_votes() -> None:
    """Three voters of one mind say no more about other questions than one does."""
    votes = many({("a", "b", "left"): 15, ("a", "b", "right"): 5})
    thrice = [
        Vote(vote.question, vote.left, vote.right, vote.winner, voter)
        for voter in ("x", "y", "z")
        for vote in votes
    ]
    ends = ["win_rate", "low", "high"]
    assert win_rates(thrice)[ends].equals(win_rates(votes)[ends])


def test_nothing_to_count(votes: Votes) -> None:
    """No votes are told as such, and so is what is no vote."""
    for none in ([], votes):
        with pytest.raises(ValueError, match="no votes"):
            win_rates(none)
    with pytest.raises(ValueError, match="has to be a Vote"):
        win_rates([{"winner": "left"}])


def test_alpha_by_hand() -> None:
    """1 - observed / expected disagreement, after Krippendorff; without variation there is none."""
    a, b = ["x", "x", "y", "y", None], ["x", "y", "y", "y", "x"]
    assert krippendorff_alpha(a, b) == pytest.approx(1 - (2 / 8) / (2 * 3 * 5 / (8 * 7)))
    assert krippendorff_alpha(a, a) == 1
    assert math.isnan(krippendorff_alpha(["x", "x"], ["x", "x"]))
    assert math.isnan(krippendorff_alpha(["x", None], [None, "y"]))
    with pytest.raises(ValueError, match="2 and 1 verdicts"):
        krippendorff_alpha(["x", "y"], ["x"])


def test_agreement_is_by_system() -> None:
    """The side where an answer stood is no matter; what only one has voted on is left out."""
    mine = many({("a", "b", "left"): 3, ("b", "a", "left"): 2, ("a", "b", "tie"): 1})
    yours = [swapped(vote) for vote in mine]
    found = voter_agreement(mine, [*yours, Vote("another", "a", "b", "left")])
    assert (found.pairs, found.equal, found.alpha) == (6, 1, 1)
    # The same sides, but the other system each time.
    same_side = [Vote(v.question, v.right, v.left, v.winner) for v in mine]
    assert voter_agreement(mine, same_side).equal == 1 / 6
    assert voter_agreement(mine, same_side).alpha < 0
    assert voter_agreement(mine, [Vote("question 0", "b", "a", "right")]).pairs == 1


def test_agreement_needs_common_pairs(votes: Votes) -> None:
    """The same question with other systems, or other answers, is another pair."""
    known = [Vote("q", "a", "b", "left", answers=answers_fingerprint("a", "1", "b", "2"))]
    other = [Vote("q", "a", "b", "left", answers=answers_fingerprint("a", "1", "b", "3"))]
    swap = [Vote("q", "b", "a", "right", answers=answers_fingerprint("b", "2", "a", "1"))]
    assert voter_agreement(known, swap).equal == 1
    assert (
        voter_agreement(known, [Vote("q", "a", "b", "left")]).equal == 1
    )  # one's answers are unknown
    with pytest.raises(ValueError, match=r"no pair in common.*answers"):
        voter_agreement(known, other)
    with pytest.raises(ValueError, match="no pair in common"):
        voter_agreement(known, [Vote("q", "a", "c", "left")])
    with pytest.raises(ValueError, match="two votes on a and b"):
        voter_agreement([*known, *swap], known)


def test_a_judges_verdicts_as_votes() -> None:
    """Readable ones become votes; texts and verdicts both will do."""
    questions = ["one", "two", "three", "four"]
    verdicts = ["first", Verdict("second", "[[B]]"), None, Verdict("tie", "[[C]]")]
    found = votes_from_verdicts(questions, verdicts, "base", "tuned")
    assert [(v.question, v.preferred) for v in found] == [
        ("one", "base"),
        ("two", "tuned"),
        ("four", "tie"),
    ]
    assert {vote.voter for vote in found} == {"judge"}
    texts = (["a"] * 4, ["b"] * 4)
    told = votes_from_verdicts(questions, verdicts, "base", "tuned", texts=texts)
    assert told[0].answers == answers_fingerprint("tuned", "b", "base", "a")
    with pytest.raises(ValueError, match="'A'"):
        votes_from_verdicts(["one"], ["A"], "base", "tuned")
    with pytest.raises(ValueError, match="4 questions, 1 verdicts"):
        votes_from_verdicts(questions, ["first"], "base", "tuned")


def test_rows_are_plain_json(votes: Votes) -> None:
    """A file that any program can read, with the time in UTC."""
    votes.add("Who?", "base", "tuned", "left", left_text="a", right_text="b")
    row = json.loads(votes.path.read_text())
    assert row.pop("time").endswith("+00:00")
    assert row == {
        "question": "Who?",
        "left": "base",
        "right": "tuned",
        "winner": "left",
        "voter": "me",
        "answers": answers_fingerprint("base", "a", "tuned", "b"),
    }
