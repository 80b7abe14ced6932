"""How tables look: the same in each run, legible without HTML, and safe."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from course_utils import display
from course_utils.display import text_table
from course_utils.errors import UnknownName


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, from 1 to 21."""
    lights = []
    for colour in (one, other):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_can_be_read_on_both_grounds(theme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text against its ground as WCAG asks of small text; on the dark one, every colour as well."""
    with mpl.rc_context():
        display.use_style(theme)
        ground = mpl.rcParams["figure.facecolor"]
        assert mpl.rcParams["axes.facecolor"] == mpl.rcParams["savefig.facecolor"] == ground
        for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"):
            assert contrast(mpl.rcParams[name], ground) > 7
        if theme == "dark":
            colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
            assert min(contrast(colour, ground) for colour in [*colours, display.GREY]) > 3
        monkeypatch.setenv("COURSE_THEME", theme)
        display.use_style()
        assert mpl.rcParams["figure.facecolor"] == ground


def test_an_unknown_theme_lists_the_known() -> None:
    """Light and dark."""
    with pytest.raises(UnknownName, match="light"):
        display.use_style("pink")


def test_text_table() -> None:
    """Line breaks are kept, markup in a text stays text, and there is a plain form."""
    table = text_table(pd.DataFrame({"reply": ["one\ntwo", "<b>bold</b>"]}))
    bundle = table._repr_mimebundle_()
    assert "pre-wrap" in bundle["text/html"]
    assert "&lt;b&gt;" in bundle["text/html"]
    assert bundle == table._repr_mimebundle_()
    assert "<b>bold</b>" in bundle["text/plain"]


def test_a_table_put_together_from_parts() -> None:
    """Row numbers that occur twice do not matter: they are not shown."""
    part = pd.DataFrame({"reply": ["one", "two"]})
    assert "one" in text_table(pd.concat([part, part]))._repr_mimebundle_()["text/html"]
