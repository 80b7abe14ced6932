"""The playground: clicked for real, and readable where widgets are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from course_utils import runner
from course_utils.widgets import WithFallback, playground


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
