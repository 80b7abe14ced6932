"""The README: its figures are those of saved notebooks; its first screen answers questions."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from conftest import ROOT

from course_utils import doctor
from tools import readme, site, slide_values

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_SCREEN = 30  # lines


def test_pictures_and_minutes_are_those_of_the_saved_notebooks() -> None:
    """After a notebook is saved: `python -m tools.readme build`, which `make save` does."""
    assert readme.stale() == []


def test_the_first_screen_answers() -> None:
    """Is it for me, what do I need, how do I start: before anything else."""
    first = "\n".join(TEXT.splitlines()[:FIRST_SCREEN])
    places = [first.index(question) for question in ("for me?", "do I need?", "do I start?")]
    assert places == sorted(places)
    assert first.index("make lab") > places[-1]


def test_every_picture_is_there_and_described() -> None:
    """A mask, the memory table, before and after; each with a text in its place."""
    shown = dict(map(reversed, re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", TEXT)))
    assert {"docs/pictures/mask.svg", "docs/pictures/before_after.svg"} <= set(shown)
    assert "slides/figures/05_heat_maps.png" in shown
    for path, alt in shown.items():
        assert (ROOT / path).exists()
        assert len(alt) > 60


@pytest.mark.parametrize("name", readme.PICTURES)
def test_drawn_pictures_are_whole(name: str) -> None:
    """An SVG whose texts stay within its frame, on a ground of its own."""
    root = ET.fromstring(readme.PICTURES[name]())
    space = "{http://www.w3.org/2000/svg}"
    width, height = map(float, root.get("viewBox").split()[2:])
    ground = next(root.iter(f"{space}rect"))
    assert (ground.get("fill"), float(ground.get("height"))) == ("white", height)
    texts = list(root.iter(f"{space}text"))
    assert len(texts) > 8
    for text in texts:
        long = float(text.get("textLength") or 0.5 * float(text.get("font-size")) * len(text.text))
        start = float(text.get("x")) - (long / 2 if text.get("text-anchor") == "middle" else 0)
        assert start >= 0
        assert start + long <= width
        assert 0 < float(text.get("y")) < height


def test_a_masked_and_a_trained_part_are_told_apart() -> None:
    """The plain form of a drawn batch, in parts; padding is left out."""
    said = "<|im_start|>user\nSay eat.<|im_end|>\n[eatway<|im_end|>]~<|endoftext|>~~…~"
    assert list(readme.pieces(said)) == [
        ("masked", "<|im_start|>user\nSay eat.<|im_end|>\n"),
        ("trained", "eatway<|im_end|>"),
    ]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"minutes": 0.612}, "0.6"),
        ({"minutes": 2.96}, "3"),
        ({"minutes": 9.6}, "10"),
        (None, "not yet measured"),
    ],
)
def test_minutes(run: dict | None, said: str) -> None:
    """One decimal where it matters."""
    assert readme.minutes(run) == said


def test_a_notebook_without_a_row_is_named() -> None:
    """Nobody adds a notebook that the README does not tell of."""
    table = TEXT[TEXT.index("<!-- notebooks -->") :]
    cut = re.sub(r"^\| \[04[^\n]+\n", "", table, flags=re.M)
    with pytest.raises(SystemExit, match="04_memory"):
        readme.notebook_table(cut)


def test_the_memory_that_is_asked_for_is_enough() -> None:
    """README, teachers' page and doctor say the same, and no measured run held more."""
    least = doctor._LEAST_RAM_GB
    assert f"{least:.0f} GB of RAM" in TEXT
    teaching = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
    assert f"{least:.0f} GB are needed" in teaching
    runs = site.measured()
    held = {name: by_tier["cpu"]["peak_ram_mb"] for name, by_tier in runs.items()}
    assert len(held) == len(site.saved())
    assert max(held.values()) / 1000 < doctor._SHOWN * least, held


def test_how_near_the_predictor_comes_is_what_the_file_says() -> None:
    """The errors that README and tools page tell, against `benchmarks/results`."""
    found = slide_values._replication()
    tools = " ".join((ROOT / "docs" / "tools.md").read_text(encoding="utf-8").split())
    assert f"within {found['worst']}" in " ".join(TEXT.split())
    assert f"within {found['worst']} (mean {found['mean']})" in tools
