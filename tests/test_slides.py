"""Slides: every number has a source, every figure and link is there, every slide fits."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from tools import notebooks, readme, saved_notebooks, settings, slide_pictures, slide_values, slides

DECK = slides.DECK.read_text(encoding="utf-8")
ALL = slides.read_deck()[1]
SHOWN = slides.shown()
each_slide = pytest.mark.parametrize("slide", ALL, ids=[slide.title for slide in ALL])

# The order of the notebooks, which is that of the plans in docs/teaching.md.
PARTS = """
    How this works | Why fine-tune? | Triggering a response | Ways to tune | What is being tuned |
    Many problems | Answer: LoRA | PEFT | Pig Latin | Data collators | Trainer and SFTTrainer |
    Fine-tuning Pig Latin | Yoda | Where memory goes | Answer: quantization | Mixin'Matching |
    Instruction tuning | Chat templates | Pythia | Base or instruct? | Judging | Scaling out |
    The hand-off | On Monday
"""
TEACHING = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
ONE = "---\nmarp: true\n---\n\n# One\n\n{}\n\n<!-- 1 min. Say. -->\n"  # a deck of one slide
# Numbers that are typed into the slides, and why that is right.
TYPED = re.compile(
    r"""
      \b[A-Za-z][\w.-]*\d[\w.-]*          # names: GPT-3, Llama-2-7B, Qwen2.5, nf4
    | \b\d+(-bit|\s+bits?)\b              # widths of number formats
    | \b(19|20)\d\ds?\b                   # years
    | \b[Nn]otebooks?\s\d\d(\.\d)?(\sand\s\d\d)?  # the course's, their sections and exercises
    | \bsection\s\d
    | \bexercise\s\d\d(\.\d)+
    | ^\d\.\s                             # the items of a list
    | \bRule\s\d\b                        # of the five rules
    | \bFlashAttention\s2\b              # a program's name
    | \b24\sGB\b                          # the GPU of the published tables
    """,
    re.X | re.M,
)


def bare(text: str) -> str:
    """What a slide's author typed as text: no values, code, formulas, settings, links."""
    for pattern in (
        slides.PLACEHOLDER,
        re.compile(r"^```.*?^```$", re.S | re.M),
        re.compile(r"<!--.*?-->", re.S),
        re.compile(r"`[^`\n]+`"),
        re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.S),
        re.compile(r"\]\([^)]*\)"),
        re.compile(r"</?\w[^>]*>"),
    ):
        text = pattern.sub(" ", text)
    return text


# ------------------------------------------------------------------------------------- numbers


@pytest.fixture(scope="session")
def filled() -> str:
    """The deck with its values."""
    return slides.filled_deck()


def test_every_placeholder_has_a_value(filled: str) -> None:
    """None is left, and there were many."""
    assert not slides.PLACEHOLDER.search(filled)
    assert len(slides.PLACEHOLDER.findall(DECK)) > 150


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.x", "no source 'nowhere'"),
        ("base.nothing", "no value 'nothing'"),
        ("nb.99.link", "no value '99.link'"),
        ("base.barred:.0%", " of 16"),  # a text, which is no number
    ],
)
def test_a_placeholder_without_a_value_is_named(name: str, said: str) -> None:
    """The message says which, and what was looked for."""
    with pytest.raises(slides.SlidesError, match=re.escape(name.split(":")[0])) as failure:
        slides.fill(f"a {{{{ {name} }}}} b")
    assert said in str(failure.value)


def test_every_value_is_used() -> None:
    """On a slide, or in a picture; none is computed for nothing."""
    drawn = Path(slide_pictures.__file__).read_text(encoding="utf-8")
    used = {match["name"] for match in slides.PLACEHOLDER.finditer(DECK)}
    used |= set(re.findall(r"""resolve\(["']([\w.]+)["']\)""", drawn))
    known = {f"{name}.{key}" for name in slide_values.SOURCES for key in slide_values.keys(name)}
    unused = {name for name in known - used if not name.startswith("nb.")}
    assert not unused


@each_slide
def test_no_number_is_typed(slide: slides.Slide) -> None:
    """A digit in the text of a slide, or of what is said, is a name's or comes from a source."""
    notes = re.sub(r"^(\{\{.*?\}\}|\d+) min", "", slide.notes)
    for text in (bare(slide.text), bare(notes)):
        left = TYPED.sub(" ", text)
        assert not re.search(r"\d", left), re.findall(r".{0,30}\d.{0,10}", left)


def test_the_rule_about_numbers_finds_some() -> None:
    """It is no empty rule."""
    for text in ("97% are right", "in 269 MB", "12 of 16", "a loss of 0.53", "2,000 tokens"):
        assert re.search(r"\d", TYPED.sub(" ", bare(text))), text
    for text in ("GPT-3 in 4 bits", "notebook 03.1", "`r=16`", "$12 L h^2$", "{{ a.b }}%"):
        assert not re.search(r"\d", TYPED.sub(" ", bare(text))), text


def test_typed_code_is_what_the_notebooks_use() -> None:
    """Python on a slide is valid, and a notebook, which runs, knows each of its arguments."""
    sources = "".join(path.read_text() for path in (ROOT / "notebooks/solutions").glob("*.py"))
    typed = re.findall(r"^```python\n(.*?)^```$", DECK, re.S | re.M)
    assert typed
    for code in typed:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.keyword):
                assert re.search(rf'\b{node.arg}\s*=|"{node.arg}":', sources), node.arg


def test_what_was_not_measured_is_said() -> None:
    """As long as it is so."""
    results = {path.name for path in (ROOT / "benchmarks/results").glob("memory_*.jsonl")}
    measured = results - {"memory_speed.jsonl"}
    said = "On a GPU we have measured nothing yet" in DECK
    assert said == (not measured), "What the slides say of GPUs is out of date: see `benchmarks/`."


def test_published_tables_are_those_of_the_file() -> None:
    """A cell of each table on a slide, looked up by hand in the file."""
    values = {
        name: slide_values.resolve(f"published.{name}") for name in ("opt_16bit", "eight_bit")
    }
    assert "<tr><td>–</td><td>–</td>" in values["opt_16bit"]
    assert ">15,071<" in values["opt_16bit"]
    assert values["eight_bit"].count(">OOM<") == 4
    assert values["eight_bit"].count(">10,369<") == 4


# --------------------------------------------------------------- what can be read without the notes


def test_no_slide_has_a_fault() -> None:
    """Neither too many words nor a raw Python value."""
    assert slides.faults() == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("word " * 60, "61 words"),
        ("`code` " * 60 + "$x$ <b></b>", ""),
        ("```\n" + "code " * 90 + "\n```", ""),
        ("steps &#91;20, 20, 20&#93;", "[20, 20, 20]"),
        ("it said ['yes', 'no']", "['yes', 'no']"),
        ("scores {'right': 0.5}", "{'right':"),
        ("a [link](there), an interval (0.1 to 0.2), `[1, 2]`", ""),
    ],
)
def test_too_many_words_and_raw_values_are_found(text: str, fault: str) -> None:
    """And code may be as long as it has to be, and show lists."""
    found = slides.faults(ONE.format(text))
    assert len(found) == bool(fault)
    assert fault in "".join(found)


def test_a_value_that_is_a_list_stops_the_build() -> None:
    """`formulas.ratios` is for a picture."""
    with pytest.raises(slides.SlidesError, match="list"):
        slides.fill("{{ formulas.ratios }}")


def test_every_column_of_a_table_is_told(filled: str) -> None:
    """No head of a table is empty."""
    heads = re.findall(r"^(\|.+\|)\n\| ?:?--", filled, re.M)
    assert len(heads) > 15
    assert not [head for head in heads if "|  |" in head or "| |" in head]


def test_pictures_are_never_far() -> None:
    """No more than five slides in a row without a picture, a heat map or a drawn mask."""
    row = longest = 0
    for slide in SHOWN:
        if slide.kind in ("guess", "hands-on"):
            continue
        text = slides.fill(slide.text)
        seen = slides.IMAGE.search(text) or "background:" in text or 'class="tokens"' in text
        row = 0 if seen else row + 1
        longest = max(longest, row)
    assert 0 < longest <= 5


def test_the_sources_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the title page with the course's name, then one by one, then on each published table."""
    name = re.search(r"^title: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    workshop = ("Fine-tuning Language Models", "Daniel Voigt Godoy", "Data Science Retreat")
    assert SHOWN[0].title == name
    assert all(part in SHOWN[0].text for part in workshop)
    for source in ("Sharon Zhou", "HackTricks", "Fine-tuning Base LLMs vs Instruct Version"):
        assert source in SHOWN[1].text
    tables = [s for s in SHOWN if re.search(r"published\.(opt_16bit|odd_rows|eight_bit)", s.text)]
    assert len(tables) == 3
    assert all("Daniel Voigt Godoy" in slide.text for slide in tables)
    # The address stands there as soon as there is one.
    slide_values._source.cache_clear()
    monkeypatch.setattr(settings, "repository", lambda: "https://github.com/a/b")
    assert "https://github.com/a/b" in slides.fill(SHOWN[0].text)
    slide_values._source.cache_clear()


# --------------------------------------------------------------------------- saved notebooks, read


def trial_notebook(folder: Path, source: str, **output: object) -> saved_notebooks.Saved:
    """A saved notebook with one cell."""
    tags = {"tags": ["value:it"]}
    cell = {"cell_type": "code", "source": source, "outputs": [output], "metadata": tags}
    path = folder / "99_trial.ipynb"
    path.write_text(json.dumps({"cells": [cell]}))
    return saved_notebooks.Saved(path)


def test_a_saved_table_is_read_as_pandas_writes_it(tmp_path: Path) -> None:
    """Two indices with spans, a name above the columns, and one of their own."""
    import pandas as pd

    frame = pd.DataFrame(
        {"x": [1, 2, 3], "y": ["a < b", "c", "d"]},
        index=pd.MultiIndex.from_tuples([("p", "q"), ("p", "r"), ("s", "q")], names=["one", "two"]),
    ).rename_axis(columns="what")
    html = {"data": {"text/html": frame._repr_html_(), "text/plain": ""}}
    table = trial_notebook(tmp_path, "frame", **html).table("it")
    assert table.columns == ["one", "two", "x", "y"]
    assert table.rows[1] == ["p", "r", "2", "c"]
    assert table.at("p", "q", "y") == "a < b"
    assert table.at("s", "q", "x") == "3"
    with pytest.raises(saved_notebooks.NotFound, match="no column 'z'"):
        table.at("s", "q", "z")
    with pytest.raises(saved_notebooks.NotFound, match="2 rows begin with"):
        table.row("p")


def test_what_a_notebook_does_not_say_is_named(tmp_path: Path) -> None:
    """Cell, pattern, line, definition: the message has the notebook and what was wanted."""
    saved = trial_notebook(tmp_path, "x = 1\nprint(x)", text="1\n")
    assert saved.find("it", r"^(\d)") == "1"
    assert saved.find_code("it", r"x = (\d)") == "1"
    for wanted in (
        lambda: saved.find("another", "1"),
        lambda: saved.find("it", "two"),
        lambda: saved.find_code("it", "two"),
        lambda: saved.table("it"),
        lambda: saved.lines("it", "x = 1", "return"),
        lambda: saved.definition("nothing"),
    ):
        with pytest.raises(saved_notebooks.NotFound, match="99_trial"):
            wanted()


def test_a_definition_comes_without_its_docstring(tmp_path: Path) -> None:
    """And with its body, at the margin."""
    source = 'y = 1\n\n\ndef twice(x):\n    """Double."""\n    return 2 * x\n'
    assert trial_notebook(tmp_path, source).definition("twice") == "def twice(x):\n    return 2 * x"


def test_a_line_that_asks_for_nothing_is_named(tmp_path: Path) -> None:
    """So that a misspelt `fnd` is no empty slide."""
    saved = trial_notebook(tmp_path, "x = 1\nprint(x)", text="1\n")
    assert slide_values.look_up(saved, {"cell": "it", "find": r"(\d)"}) == "1"
    assert slide_values.look_up(saved, {"cell": "it", "block": True}) == "```\n1\n```"
    with pytest.raises(saved_notebooks.NotFound, match="fnd"):
        slide_values.look_up(saved, {"cell": "it", "fnd": r"(\d)"})


# ------------------------------------------------------------------------------- figures and links


@each_slide
def test_figures_are_there_and_told_in_words(slide: slides.Slide) -> None:
    """A figure of a notebook, or a picture that is drawn; each with a text in its place."""
    for image in slides.IMAGE.finditer(slide.text):
        assert len(image["alt"]) > 40, image["path"]
        path = Path(image["path"])
        if path.parent.name == "pictures":
            assert path.stem in slide_pictures.PICTURES
        else:
            assert (slides.SLIDES / path).exists() or slide.waits


def test_a_point_outside_its_axes_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with its picture."""
    axis = slide_pictures.Axis(70, 300, 0, 100)
    assert axis(70) == 0
    monkeypatch.setitem(slides.PICTURES, "lora", lambda: str(axis(34)))
    with pytest.raises(slides.SlidesError, match=r"'lora'.*34 lies outside 70 to 300"):
        slides.filled(slides.shown(ONE.format("![A picture](pictures/lora.svg)"))[0])


def test_every_picture_is_shown() -> None:
    """Of those that are drawn for the slides."""
    paths = {image["path"] for slide in ALL for image in slides.IMAGE.finditer(slide.text)}
    assert {f"pictures/{name}.svg" for name in slide_pictures.PICTURES} <= paths


def test_links_lead_somewhere(filled: str) -> None:
    """To files of the course, as seen from `slides/`."""
    links = re.findall(r"(?<!!)\[[^\]]+\]\((?!https:)([^)\s]+)\)", filled)
    assert links
    for link in links:
        assert (slides.SLIDES / link).resolve().exists(), link


def test_each_notebook_has_its_hands_on_slide() -> None:
    """One, which names it, but for appendices; a slide for a notebook to come waits for it."""
    named = []
    for slide in ALL:
        if slide.kind == "hands-on":
            number = re.fullmatch(r"\{\{ nb\.([\d.]+)\.link \}\}", slide.title)[1]
            assert slide.when in ("", f"notebooks/{number}_*.ipynb")
            if not slide.waits:
                named.append(number)
    there = [s.stem.split("_")[0] for s in notebooks.sources() if not notebooks.is_appendix(s)]
    assert Counter(named) == Counter(there)


def test_a_slide_waits_for_its_file() -> None:
    """It is left out until the file is there."""
    deck = "---\nmarp: true\n---\n\n# One\n\n<!-- 1 min. Say. -->\n\n---\n\n<!-- when: {} -->\n\n"
    deck += "# Two\n\n<!-- 2 min. Say. -->\n"
    assert "# Two" not in slides.filled_deck(deck.format("nothing/*.here"))
    assert "# Two" in slides.filled_deck(deck.format("slides/deck.md"))
    assert "Not shown, as there is no nothing/*.here: 1" in slides.timetable(
        deck.format("nothing/*.here")
    )


# ------------------------------------------------------------------------------ speaking and order


def test_every_slide_says_what_to_say_and_how_long() -> None:
    """Each has minutes; the sum is that of the parts."""
    speeches = [slide.speech() for slide in SHOWN]
    assert all(0 < minutes <= 6 for minutes, hands_on, _ in speeches if not hands_on)
    assert all(len(words) > 50 for _, _, words in speeches)
    talk, work = (
        sum(m for m, hands_on, _ in speeches if hands_on is which) for which in (False, True)
    )
    assert re.search(rf"all, in minutes +{len(SHOWN)} +{talk} +{work}\n", slides.timetable() + "\n")


def test_slides_that_wait_have_minutes_too() -> None:
    """So that they can be shown on the day their notebook is there."""
    for slide in ALL:
        minutes = r"(\d+|\{\{ nb\.[\d.]+\.minutes \}\}) min( hands-on)?\. .{50}"
        assert re.match(minutes, slide.notes), slide.title


def test_missing_minutes_are_named() -> None:
    """With the slide's title."""
    deck = "---\nmarp: true\n---\n\n# A title\n\n<!-- Say something. -->\n"
    with pytest.raises(slides.SlidesError, match="A title"):
        slides.timetable(deck)


def test_parts_come_in_the_order_of_the_notebooks() -> None:
    """All of them, each once; and so do the notebooks."""
    wanted = [part.strip() for part in PARTS.split("|")]
    found = list(dict.fromkeys(slide.part for slide in ALL if slide.part))
    assert found == wanted
    numbers = [number for number, *_ in slides.blocks() if number]
    assert numbers == str(slide_values.resolve("nb.numbers")).split()


def plan(heading: str) -> list[tuple[str, str, str]]:
    """The rows of a plan in docs/teaching.md: when, the notebook or what else, its minutes."""
    part = TEACHING.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+:\d\d) \| (.+?) \| (\d+(?: \+ \d+)?) \|", part, re.M)
    return [
        (when, (re.findall(r"\[([\d.]+)\]", what) or [""])[0], took) for when, what, took in rows
    ]


@pytest.mark.parametrize("day", ["The first day", "The second day"])
def test_each_day_of_the_plan_adds_up(day: str) -> None:
    """Each row begins when the one before it ends."""
    rows = plan(day)
    now = 0
    for when, what, took in rows:
        assert when == f"{now // 60}:{now % 60:02}", (day, what)
        now += sum(map(int, took.split(" + ")))
    assert 300 < now < 510


def test_the_plan_is_the_deck() -> None:
    """The same notebooks in the same order, with the minutes of slides and of notebooks."""
    planned = [
        (number, took)
        for day in ("The first day", "The second day")
        for _, number, took in plan(day)
        if number
    ]
    assert planned == [
        (number, f"{talk} + {work}") for number, talk, work in slides.blocks() if number
    ]


def test_times_are_those_of_the_readme() -> None:
    """What a notebook's cells take is said once: by `make save`, in the notebook."""
    table = readme.README.read_text(encoding="utf-8")
    for source in notebooks.sources():
        name = notebooks.target(source).name
        minutes = re.search(rf"\({re.escape(f'notebooks/{name}')}\) \|.*?\| ([\d.]+) \|", table)[1]
        assert slide_values.resolve(f"nb.{name.split('_')[0]}.runs") == minutes, name


def test_the_room_is_asked_before_it_is_told() -> None:
    """Guesses are spread over the deck."""
    guesses = [s for s in ALL if s.kind == "guess" or "**Guess:**" in s.text]
    assert len(guesses) >= 10
    assert len({slide.part for slide in guesses}) >= 7


# --------------------------------------------------------------------------------------- building


def test_node_packages_are_pinned() -> None:
    """To exact versions, the same in both files; and the lock has a hash for each package."""
    wanted = json.loads((slides.SLIDES / "package.json").read_text())["devDependencies"]
    lock = json.loads((slides.SLIDES / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert lock.pop("")["devDependencies"] == wanted
    assert all("integrity" in package for package in lock.values())


def test_without_node_it_says_where_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line, and status 1."""
    monkeypatch.setattr(slides.shutil, "which", lambda name: None)
    assert slides.main(["build"]) == 1
    assert "needs Node.js" in capsys.readouterr().err


def test_without_a_browser_the_page_is_built_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It is told why there is no PDF."""
    monkeypatch.setattr(slides.shutil, "which", lambda name: None)
    monkeypatch.setattr(slides, "build_html", lambda: slides.DECK)
    assert slides.main(["build"]) == 0
    told = capsys.readouterr().out
    assert "no PDF" in told
    assert "all, in minutes" in told


@pytest.fixture(scope="session")
def measured() -> list[slides.Measured]:
    """The slides in a browser."""
    if not slides.browser():
        pytest.skip("no Chromium, Chrome or Edge")
    if not slides.shutil.which("npm"):
        pytest.skip("no Node.js with npm")
    try:
        slides.need_packages()
    except slides.SlidesError as error:
        pytest.skip(f"Marp is not installed and cannot be: {error}")
    return slides.measure()


def test_no_slide_overflows(measured: list[slides.Measured]) -> None:
    """Nor are any lost."""
    assert len(measured) == len(SHOWN)
    assert not [slide for slide in measured if slide.over > 1]


def test_every_label_can_be_read(measured: list[slides.Measured]) -> None:
    """None is clipped, none overlaps another."""
    assert not [label for slide in measured for label in slide.labels]


def test_bad_labels_are_found(measured: list[slides.Measured], tmp_path: Path) -> None:
    """One beyond the picture's edge, and two in one place; neighbours are no fault."""
    drawing = slide_pictures.Drawing(100)
    for x, y, text in ((1150, 50, "beyond"), (200, 50, "8bit"), (215, 55, "nf4"), (200, 80, "fp4")):
        drawing.text(x, y, text)
    page = tmp_path / "page.html"
    page.write_text(f"<body><section><figure>{drawing.svg()}</figure></section></body>")
    assert slides.laid_out(page)[0].labels == [
        "the label “beyond” is clipped",
        "the labels “8bit” and “nf4” overlap",
    ]


def test_the_last_row_can_read_it(measured: list[slides.Measured]) -> None:
    """On a slide of 1280 × 720: no type below 20 pixels, figures enlarged."""
    assert not [slide for slide in measured if slide.smallest < 20]
    assert not [slide for slide in measured if slide.figure < 1.05]


def test_the_page_needs_nothing_from_a_network(measured: list[slides.Measured]) -> None:
    """Fonts and figures are inside; no script, style or picture is fetched."""
    page = (slides.BUILD / "bare.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:\bsrc|<link[^>]+href)\s*=\s*["'](?!data:)""", page)
    assert not re.search(r"url\(\s*[\"']?(?!data:|#|[\"']?data:)\w", page)
    assert not re.search(r"/(home|root|Users|tmp|content|work)/", page)
