"""A playground for models, templates and temperatures. Introduced in notebook 01."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import ipywidgets as widgets

from course_utils._core import checks
from course_utils.errors import CourseError
from course_utils.widgets._base import WithFallback, choices

if TYPE_CHECKING:
    from course_utils.models import Runner

PROMPT = "{prompt}"  # its placeholder in a template, as in `Runner`


def playground(
    runners: dict[str, Runner],
    templates: dict[str, bool | str],
    *,
    prompt: str = "What is the capital of Mexico?",
    max_new_tokens: int = 80,
) -> WithFallback:
    """Prompt any model with any template at any temperature, with streaming.

    Args:
        runners: the models to choose from, by the name shown.
        templates: the templates to choose from, by the name shown; see `Runner.prompt`.
        prompt: the initial prompt.
        max_new_tokens: the maximum length of a reply, in tokens.

    Raises:
        ValueError: there is nothing to choose from, or an argument is invalid.
    """
    runners = choices("runners", runners, "models, as runner(…) gives them", callable)
    # A template without a placeholder is refused at the click, where the learner reads why.
    kind = f"templates (True, False, or a text with {PROMPT} in it)"
    templates = choices("templates", templates, kind, lambda value: isinstance(value, bool | str))
    checks.text("prompt", prompt)
    checks.whole("max_new_tokens", max_new_tokens, 1)
    wide = widgets.Layout(width="98%")
    which = widgets.Dropdown(options=list(runners), description="Model")
    around = widgets.Dropdown(options=list(templates), description="Template")
    heat = widgets.FloatSlider(
        value=0,
        min=0,
        max=2,
        step=0.1,
        description="Temperature",
        continuous_update=False,
        style={"description_width": "initial"},
    )
    barred = widgets.Checkbox(value=False, description="Bar the EOS token", indent=False)
    text = widgets.Textarea(value=prompt, description="Prompt", layout=wide)
    button = widgets.Button(description="Ask", button_style="primary")
    sent = widgets.HTML()
    reply = widgets.Textarea(description="Reply", disabled=True, rows=8, layout=wide)

    def on_click(_: widgets.Button) -> None:
        button.disabled, reply.value = True, ""
        ask = runners[which.value]

        def receive(piece: str) -> None:
            reply.value += piece

        try:
            answer = ask(
                text.value,
                template=templates[around.value],
                temperature=heat.value,
                stream=receive,
                max_new_tokens=max_new_tokens,
                **({"min_new_tokens": max_new_tokens} if barred.value else {}),
            )
            how = "ended by itself" if answer.finished else "was cut"
            sent.value = f"{answer.tokens} tokens, then it {how}."
        except (CourseError, ValueError) as error:
            sent.value = f"That does not work: {html.escape(str(error))}"
        finally:
            button.disabled = False

    button.on_click(on_click)
    box = WithFallback(
        [
            widgets.HBox([which, around]),
            widgets.HBox([heat, barred]),
            text,
            widgets.HBox([button, sent]),
            reply,
        ],
        "Widgets are not shown here. The next cell does the same without one.",
    )
    # Handles for tests and for the curious.
    box.controls = {
        "model": which,
        "template": around,
        "temperature": heat,
        "bar_end": barred,
        "prompt": text,
        "ask": button,
        "status": sent,
        "reply": reply,
    }
    return box
