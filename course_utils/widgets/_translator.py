"""Compare the outputs of several functions for a text. Introduced in notebook 03.2."""

from __future__ import annotations

import html
import random
from collections.abc import Callable

import ipywidgets as widgets

from course_utils._core import checks
from course_utils.errors import CourseError
from course_utils.widgets._base import WithFallback, choices


def translator(
    functions: dict[str, Callable[[str], str]],
    texts: list[str],
    *,
    label: str = "English",
    action: str = "Translate",
    another: str = "Random sentence",
    seed: int | None = None,
) -> WithFallback:
    """Compare the outputs of several functions for a text that is typed or chosen at random.

    Args:
        functions: functions from a text to a translation or a reply, by the name shown.
        texts: the texts from which the random button draws.
        label: the label of the text field.
        action, another: the labels of the two buttons.
        seed: the seed for the draws; None for different ones each time.

    Raises:
        ValueError: there are no functions or texts, or an argument is invalid.
    """
    functions = choices("functions", functions, "functions", callable)
    texts = checks.texts("texts", texts, empty=False)
    for name, said in (("label", label), ("action", action), ("another", another)):
        checks.text(name, said)
    if seed is not None:
        checks.whole("seed", seed)
    draw = random.Random(seed)
    text = widgets.Text(
        value=texts[0],
        description=label,
        layout=widgets.Layout(width="80%"),
        style={"description_width": "initial"},
    )
    chance = widgets.Button(description=another, icon="random", layout=widgets.Layout(width="auto"))
    button = widgets.Button(description=action, button_style="primary")
    shown = widgets.HTML()

    def run(_: object = None) -> None:
        chance.disabled = button.disabled = True
        rows = [(label, text.value)]
        try:
            for name, function in functions.items():
                rows.append((name, str(function(text.value))))
        except (CourseError, ValueError) as error:
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
