"""Widgets for the notebooks; each has a plain cell beside it that does the same.

Introduced in notebook 01.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from course_utils.running import Runner


class WithFallback(widgets.VBox):
    """A box that says something useful where widgets are not shown (GitHub, a printed page)."""

    def __init__(self, children: list[widgets.Widget], fallback: str):
        super().__init__(children)
        self._fallback = fallback

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle["text/plain"] = self._fallback
        bundle["text/html"] = f"<p><em>{self._fallback}</em></p>"
        return bundle


def playground(
    runners: dict[str, Runner],
    templates: dict[str, bool | str],
    *,
    prompt: str = "What is the capital of Mexico?",
    max_new_tokens: int = 80,
) -> WithFallback:
    """Ask any model with any template at any temperature, streaming.

    Args:
        runners: the models to choose from, by the name shown.
        templates: what to put around the prompt, by the name shown; see `Runner.prompt`.
        prompt: what stands in the field at first.
        max_new_tokens: where a reply is cut.
    """
    wide = widgets.Layout(width="98%")
    which = widgets.Dropdown(options=list(runners), description="Model")
    around = widgets.Dropdown(options=list(templates), description="Template")
    heat = widgets.FloatSlider(
        value=0, min=0, max=2, step=0.1, description="Temperature", continuous_update=False
    )
    barred = widgets.Checkbox(value=False, description="Bar the end token", indent=False)
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
        except ValueError as error:
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


def translator(
    functions: dict[str, Callable[[str], str]],
    texts: list[str],
    *,
    label: str = "English",
    action: str = "Translate",
    another: str = "Random sentence",
    seed: int | None = None,
) -> WithFallback:
    """Type a text or take a random one; see what several functions make of it, one below another.

    Introduced in notebook 03.2.

    Args:
        functions: from a text to a translation, or a reply, by the name shown.
        texts: what the button for a random one draws from.
        label: what stands before the text.
        action, another: what the two buttons say.
        seed: for the draws; None for other ones each time.
    """
    draw = random.Random(seed)
    text = widgets.Text(value=texts[0], description=label, layout=widgets.Layout(width="80%"))
    chance = widgets.Button(description=another, icon="random")
    button = widgets.Button(description=action, button_style="primary")
    shown = widgets.HTML()

    def run(_: object = None) -> None:
        chance.disabled = button.disabled = True
        rows = [(label, text.value)]
        try:
            for name, function in functions.items():
                rows.append((name, function(text.value)))
        except ValueError as error:
            rows.append(("That does not work", str(error)))
        finally:
            chance.disabled = button.disabled = False
        shown.value = "".join(
            f"<p><b>{html.escape(name)}:</b> {html.escape(answer)}</p>" for name, answer in rows
        )

    def on_random(_: widgets.Button) -> None:
        text.value = draw.choice(texts)
        run()

    button.on_click(run)
    chance.on_click(on_random)
    box = WithFallback(
        [text, widgets.HBox([button, chance]), shown],
        "Widgets are not shown here. The next cell does the same without one.",
    )
    box.controls = {"text": text, "run": button, "random": chance, "shown": shown}
    return box
