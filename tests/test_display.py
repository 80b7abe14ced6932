"""How tables look: the same in each run, legible without HTML, and safe."""

from __future__ import annotations

import pandas as pd

from course_utils.display import text_table


def test_text_table() -> None:
    """Line breaks are kept, markup in a text stays text, and there is a plain form."""
    table = text_table(pd.DataFrame({"reply": ["one\ntwo", "<b>bold</b>"]}))
    bundle = table._repr_mimebundle_()
    assert "pre-wrap" in bundle["text/html"]
    assert "&lt;b&gt;" in bundle["text/html"]
    assert bundle == table._repr_mimebundle_()
    assert "<b>bold</b>" in bundle["text/plain"]
