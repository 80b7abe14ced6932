"""The playground: clicked for real, and readable where widgets are not shown."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from course_utils import runner
from course_utils.widgets import WithFallback, memory_calculator, playground, translator


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
    controls["weights"].value = "nf4"
    controls["predict"].click()
    assert "lora=True" in controls["shown"].value
    controls["lora"].value = True
    controls["model"].value = "no/model"
    controls["predict"].click()
    assert "Unknown model" in controls["shown"].value
    assert not controls["predict"].disabled
    assert "predict(" in box._repr_mimebundle_()["text/plain"]
