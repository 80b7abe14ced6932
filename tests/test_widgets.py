"""The playground: clicked for real, and readable where widgets are not shown."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from course_utils import runner
from course_utils.scoring import Votes, win_rates
from course_utils.widgets import WithFallback, memory_calculator, playground, rating, translator


@pytest.fixture
def box(chat_folder: Path) -> WithFallback:
    """A playground on the embedded model."""
    models = {"base": runner("base"), "chat": runner("chat")}
    templates = {"own": True, "none": False, "broken": "no place for a question"}
    return playground(models, templates, max_new_tokens=16)


def test_asking(box: WithFallback) -> None:
    """Choose, type, click: the reply arrives and the button can be pressed again."""
    controls = box.controls
    controls["model"].value = "chat"
    controls["template"].value = "own"
    controls["prompt"].value = "What is the capital of France?"
    controls["ask"].click()
    assert "Paris" in controls["reply"].value
    assert "ended by itself" in controls["status"].value
    assert not controls["ask"].disabled


def test_barring_the_end_token(box: WithFallback) -> None:
    """Without a template the model is silent; barred from ending, it goes on to the limit."""
    controls = box.controls
    controls["model"].value = "chat"
    controls["template"].value = "none"
    controls["ask"].click()
    assert controls["reply"].value == ""
    controls["bar_end"].value = True
    controls["ask"].click()
    assert controls["reply"].value != ""
    assert "16 tokens" in controls["status"].value


def test_a_wrong_input_is_shown_not_raised(box: WithFallback) -> None:
    """An error stays inside the widget, as text and not as markup, and the button recovers."""
    controls = box.controls
    controls["template"].value = "broken"
    controls["ask"].click()
    assert "That does not work" in controls["status"].value
    assert not controls["ask"].disabled
    controls["template"].value = "none"
    controls["prompt"].value = ""
    controls["ask"].click()
    assert "empty prompt" in controls["status"].value


def test_fallback(box: WithFallback) -> None:
    """A page without widgets gets a sentence, beside what JupyterLab shows."""
    bundle = box._repr_mimebundle_()
    assert "next cell" in bundle["text/plain"]
    assert "next cell" in bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def refuses(text: str) -> str:
    """A translator that takes no question."""
    if text.endswith("?"):
        raise ValueError("no <questions>")
    return text.upper()


def test_translating() -> None:
    """Typed or drawn, a sentence goes through each translator, and comes out as text, no markup."""
    ways = {"backwards": lambda text: text[::-1], "loud": refuses}
    controls = translator(ways, ["I eat.", "We <b>sleep</b>."], seed=0).controls
    controls["text"].value = "Yes."
    controls["run"].click()
    assert ".seY" in controls["shown"].value
    assert "YES." in controls["shown"].value
    drawn = set()
    for _ in range(20):
        controls["random"].click()
        drawn.add(controls["text"].value)
        assert html.escape(controls["text"].value[::-1]) in controls["shown"].value
        assert "<b>sleep" not in controls["shown"].value
    assert drawn == {"I eat.", "We <b>sleep</b>."}
    controls["text"].value = "Who?"
    controls["run"].click()
    assert "no &lt;questions&gt;" in controls["shown"].value
    assert not controls["run"].disabled


def test_memory_calculator() -> None:
    """Predicted, repaired, and refused with the reason."""
    box = memory_calculator("HuggingFaceTB/SmolLM2-135M", "t4", seq_len=256)
    controls = box.controls
    controls["predict"].click()
    assert "It fits" in controls["shown"].value
    assert "weights" in controls["shown"].value
    controls["repair"].click()
    assert "nothing" in controls["shown"].value
    controls["lora"].value = False
    controls["quantization"].value = "nf4"
    controls["predict"].click()
    assert "lora=True" in controls["shown"].value
    controls["lora"].value = True
    controls["model"].value = "no/model"
    controls["predict"].click()
    assert "Unknown model" in controls["shown"].value
    assert not controls["predict"].disabled
    assert "predict(" in box._repr_mimebundle_()["text/plain"]


PAIRS = [
    (f"Question {number}?", {"untouched": f"old <b>{number}</b>", "tuned": f"new {number}"})
    for number in range(12)
]


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    """A file of votes that is not there yet."""
    return Votes(tmp_path / "votes.jsonl")


def better(controls: dict, word: str) -> str:
    """The button for the side where the answer with this word stands."""
    (side,) = [side for side in ("left", "right") if word in controls[side].value]
    return f"{side}_better"


def test_rating(votes: Votes) -> None:
    """Each click is stored at once, by system, whichever side it stood on; the end tells all."""
    controls = rating(PAIRS, votes, seed=0).controls
    sides = set()
    for number in range(12):
        assert controls["progress"].value == f"{number + 1} of 12"
        assert f"Question {number}?" in controls["question"].value
        button = better(controls, "new")
        sides.add(button)
        controls[button if number < 8 else "equal"].click()
        assert len(votes) == number + 1
    assert sides == {"left_better", "right_better"}
    assert [vote.preferred for vote in votes] == ["tuned"] * 8 + ["tie"] * 4
    assert {vote.left for vote in votes} == {"untouched", "tuned"}
    assert controls["progress"].value == "Done: 12 of 12 judged."
    (row,) = win_rates(votes).to_dict("records")
    assert (row["system"], row["wins"]) == ("tuned", 8)
    for part in ("untouched", "tuned", f"{row['win_rate']:.2f}", f"{row['high']:.2f}"):
        assert part in controls["result"].value
    for name in ("left_better", "equal", "right_better", "skip", "undo"):
        assert controls[name].disabled
        controls[name].click()  # the second half of a double click
    assert len(votes) == 12


def test_rating_is_blind_and_shows_text(votes: Votes) -> None:
    """Nothing that the browser gets names a system before the end; answers are no markup."""
    box = rating(PAIRS, votes, seed=1)
    for _ in range(11):
        sent = str([widget.get_state() for widget in every(box)])
        assert "untouched" not in sent
        assert "tuned" not in sent
        assert "<b>" not in sent.replace("<b>Left</b>", "").replace("<b>Right</b>", "")
        assert "old &lt;b&gt;" in sent
        box.controls["left_better"].click()


def every(box: object) -> list:
    """A widget and all that are in it."""
    return [box] + [found for child in getattr(box, "children", ()) for found in every(child)]


def test_rating_goes_on_where_it_stopped(votes: Votes) -> None:
    """What is voted on is not asked again; another voter, or other answers, begin anew."""
    first = rating(PAIRS, votes, seed=3).controls
    for _ in range(4):
        first["equal"].click()
    again = rating(PAIRS, votes, seed=3).controls
    assert again["progress"].value == "5 of 12"
    assert again["left"].value == first["left"].value
    assert rating(PAIRS, votes, voter="you").controls["progress"].value == "1 of 12"
    # Answers of a model trained anew are judged anew.
    changed = [(question, {**both, "tuned": "newest"}) for question, both in PAIRS]
    assert rating(changed, votes).controls["progress"].value == "1 of 12"
    # Other seeds, other sides.
    shown = {rating(PAIRS, votes, seed=seed).controls["left"].value for seed in range(9)}
    assert len(shown) == 2
    # Whoever is done sees the end at once.
    for _ in range(8):
        again["equal"].click()
    done = rating(PAIRS, votes).controls
    assert "Done: 12 of 12" in done["progress"].value
    assert "0.50" in done["result"].value


def test_skipping_and_taking_back(votes: Votes) -> None:
    """A skipped pair comes again in the next run, and one that is taken back at once."""
    controls = rating(PAIRS[:3], votes).controls
    assert controls["undo"].disabled
    controls["skip"].click()
    assert controls["undo"].disabled
    assert list(votes) == []
    controls[better(controls, "old")].click()
    assert [vote.preferred for vote in votes] == ["untouched"]
    assert "Question 2?" in controls["question"].value
    controls["undo"].click()
    assert list(votes) == []
    assert "Question 1?" in controls["question"].value
    controls[better(controls, "new")].click()
    assert [vote.preferred for vote in votes] == ["tuned"]
    controls["skip"].click()
    assert controls["progress"].value == "Done: 1 of 3 judged."
    assert "Question 0?" in rating(PAIRS[:3], votes).controls["question"].value
    # A vote of an earlier run can be taken back too.
    later = rating(PAIRS[:3], votes).controls
    later["undo"].click()
    assert "Question 1?" in later["question"].value
    assert list(votes) == []


def test_nothing_judged(votes: Votes) -> None:
    """All skipped, there is nothing to count."""
    controls = rating(PAIRS[:1], votes).controls
    controls["skip"].click()
    assert controls["progress"].value == "Done: 0 of 1 judged."
    assert controls["result"].value == ""


def test_a_vote_that_cannot_be_stored(votes: Votes) -> None:
    """The pair stays, the reason is shown, and voting goes on when it is gone."""
    controls = rating(PAIRS, votes).controls
    votes.path.mkdir()  # a folder in the file's place
    controls["equal"].click()
    assert "That does not work" in controls["result"].value
    assert controls["progress"].value == "1 of 12"
    votes.path.rmdir()
    controls["equal"].click()
    assert controls["result"].value == ""
    assert controls["progress"].value == "2 of 12"


def test_rating_refuses(votes: Votes) -> None:
    """No pairs, one twice, or not two answers."""
    with pytest.raises(ValueError, match="0 pairs"):
        rating([], votes)
    with pytest.raises(ValueError, match="2 pairs, 1 of them different"):
        rating([PAIRS[0], PAIRS[0]], votes)
    with pytest.raises(ValueError, match="1 answers to 'Why\\?'"):
        rating([("Why?", {"untouched": "So."})], votes)


def test_rating_has_a_plain_way(votes: Votes) -> None:
    """A page without widgets names the functions that do the same."""
    bundle = rating(PAIRS, votes)._repr_mimebundle_()
    assert "votes.add(question, left, right, winner)" in bundle["text/plain"]
