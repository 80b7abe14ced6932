"""The site: what goes into it, the words that it uses, and the built pages in a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import http.server
import importlib.util
import json
import re
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
import yaml
from conftest import ROOT

from docs import conf
from tools import drift, notebooks, site

if TYPE_CHECKING:
    from playwright.sync_api import Page


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEAST_TERMS = 60

# What the course does not write, and what it writes instead. Quotations and titles of others stand
# in links and in code, which are not looked at.
FORBIDDEN = {
    r"finetun\w*|fine tun(e|ed|ing)\b": "fine-tune",
    r"pretrain\w*|pre train\w*": "pre-train",
    r"behaviors?\b": "behaviour",
    r"colors?\b": "colour",
    r"(favor|honor|flavor|labor|neighbor)\w*": "-our",
    r"(center|fiber|theater)s?\b": "-re",
    r"gray": "grey",
    r"licenses?\b(?! name)": "licence, the noun",
    r"(label|model|travel|cancel|signal)(ed|ing)\b": "-lled, -lling",
    r"catalogs?\b": "catalogue",
    r"analyz\w*": "analyse",
    r"artifacts?": "artefact",
    r"(memori|generali|initiali|organi|recogni|summari|speciali|normali|visuali)z\w*": "-ise",
    r"(quanti|tokeni|optimi)s(e|ed|es|er|ers|ing|ation)\b": "-ize, as the libraries have it",
    r"(check|mid) points?|over fitting|hyper-parameters?": "in one word",
}


def prose(text: str) -> str:
    """Markdown without code, links' texts and targets, and HTML."""
    text = re.sub(r"^(```|~~~).*?^\1", " ", text, flags=re.S | re.M)
    text = re.sub(r"`+[^`]*`+", " ", text)
    text = re.sub(r"!?\[[^\]]*\]\([^)]*\)", " ", text)
    return re.sub(r"https?://\S+|<[^>]+>", " ", text)


def texts() -> dict[str, str]:
    """Everything that people read: notebooks, README, docs, cards and the like."""
    found = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        found[path.name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    patterns = ("*.md", "docs/*.md", "datasets/*/*.md", "benchmarks/*.md", "slides/*.md")
    for pattern in (*patterns, "course_utils/models/bundled/*/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", texts())
def test_one_spelling_everywhere(name: str) -> None:
    """British spelling, and one form of each of the course's words."""
    text = prose(texts()[name])
    found = {
        match[0]: instead
        for pattern, instead in FORBIDDEN.items()
        for match in re.finditer(rf"\b({pattern})", text, flags=re.I)
    }
    assert not found


def test_the_list_of_words_finds_something() -> None:
    """The patterns match what they are for, and spare code and links."""
    for bad in ("finetuning", "behavior", "the license", "labeled", "quantised"):
        assert any(re.search(rf"\b({p})", prose(bad), re.I) for p in FORBIDDEN), bad
    for good in ("`behavior`", "[Low-bit favors](https://a.b/color)", "fine-tuning", "tokenizer"):
        assert not any(re.search(rf"\b({p})", prose(good), re.I) for p in FORBIDDEN), good


def glossary() -> dict[str, str]:
    """The glossary's terms with what stands below each."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = re.findall(r"^### (.+?)\n\n(.+?)(?=\n## |\n### |\Z)", text, flags=re.M | re.S)
    return dict(found)


def everything_in(notebook: Path) -> str:
    """A notebook's text, code and printed outputs, blanks and marks evened out."""
    parts = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        parts.append(cell.source)
        parts += [str(output.get("text", "")) for output in cell.get("outputs", [])]
    return re.sub(r"[\s*`]+", " ", " ".join(parts))


def test_the_glossary_is_in_order() -> None:
    """Sixty terms or more, in the alphabet's order, each under its letter."""
    terms = list(glossary())
    assert len(terms) >= LEAST_TERMS
    assert terms == sorted(terms, key=str.lower)
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for letter, part in re.findall(r"^## (.)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S):
        assert all(t[0].upper() == letter for t in re.findall(r"^### (.+)", part, re.M)), letter


@pytest.mark.parametrize("term", glossary())
def test_a_term_occurs_where_the_glossary_says(term: str) -> None:
    """Each names one notebook, by its number, and is found there; two sentences or three."""
    body = glossary()[term]
    links = re.findall(r"\[([\d.]+[a-z]?)\]\(\.\./notebooks/([^)]+)\)", body)
    assert len(links) == 1, "one notebook"
    number, file = links[0]
    assert file.startswith(f"{number}_")
    loose = re.escape(term).replace(r"\-", "[- ]?").replace(r"\ ", "[- ]?")
    text = everything_in(ROOT / "notebooks" / file)
    assert re.search(rf"(?<![A-Za-z]){loose}(s|es|d|ed)?(?![a-z])", text, flags=re.I)
    assert len(re.findall(r"[.:?](?:\s|$)", prose(body))) <= 5


def test_each_notebook_introduces_something() -> None:
    """A notebook without a term is one that the glossary has forgotten, but for the exercises."""
    linked = set(re.findall(r"\.\./notebooks/([^)]+)\)", "".join(glossary().values())))
    lessons = {
        notebooks.target(s).name for s in notebooks.sources() if not notebooks.is_exercise(s)
    }
    assert lessons <= linked


# --- the gathered pages --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's source, put together in a folder of its own."""
    before, site.SOURCE = site.SOURCE, tmp_path_factory.mktemp("site")
    try:
        site.gather()
        return site.SOURCE
    finally:
        site.SOURCE = before


def listed(folder: Path) -> set[str]:
    """Every page that some table of contents names."""
    found = {"index.md"}
    for path in folder.rglob("*.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(), flags=re.S):
            for line in tree.splitlines():
                if line and not line.startswith(":"):
                    name = re.sub(r".*<(.+)>$", r"\1", line.strip())
                    found.add((path.parent / name).relative_to(folder).as_posix())
    return found


def test_every_page_can_be_reached(gathered: Path) -> None:
    """Pages and notebooks all stand in the contents, and what stands there exists."""
    there = {
        path.relative_to(gathered).as_posix()
        for pattern in ("*.md", "*.ipynb")
        for path in gathered.rglob(pattern)
    }
    assert there == listed(gathered)
    assert {f"notebooks/{path.name}" for path in NOTEBOOKS} <= there
    cards = (ROOT / "datasets").glob("*/README.md")
    assert {f"cards/{path.parent.name}.md" for path in cards} <= there


def test_every_mark_is_filled(gathered: Path) -> None:
    """Nothing that should have been generated is left out."""
    for path in gathered.rglob("*.md"):
        assert "<!-- generated" not in path.read_text(), path.name
    used = set()
    for path in (ROOT / "docs").glob("*.md"):
        used |= set(re.findall(r"<!-- generated: ([a-z-]+) -->", path.read_text()))
    assert used == set(site.GENERATED)


def test_gathered_links_lead_somewhere(gathered: Path) -> None:
    """Within the site to a page; everything else has an address."""
    for path in gathered.rglob("*.md"):
        for target in re.findall(r"\]\(([^)\s#]+)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_notebooks_are_shown_with_alt_texts_and_without_colab(gathered: Path) -> None:
    """Each picture has one; badge, set-up cell and live widgets are gone; outputs stay."""
    for path in NOTEBOOKS:
        shown = nbformat.read(gathered / "notebooks" / path.name, as_version=4)
        saved = nbformat.read(path, as_version=4)
        further = [cell for cell in shown.cells if "remove-input" in cell.metadata.get("tags", [])]
        stamped = notebooks.colab_cells(path.stem)
        assert len(shown.cells) - len(further) == len(saved.cells) - len(stamped)
        for cell in shown.cells:
            outputs = cell.get("outputs", [])
            assert not any(site._WIDGET in output.get("data", {}) for output in outputs)
            if any("image/png" in output.get("data", {}) for output in outputs):
                assert len(cell.metadata["mystnb"]["image"]["alt"]) > 10
        count = sum(len(cell.get("outputs", [])) for cell in shown.cells)
        assert count == sum(len(cell.get("outputs", [])) for cell in saved.cells)


def test_every_picture_is_described_once() -> None:
    """The file has a text for each picture, none that is not used, and none that says a figure."""
    known, used = site.alt_texts(), set()
    for page, notebook in site.saved().items():
        for _, keys, own in site.pictures(notebook, Path(page).stem):
            here = [key for key in keys if key in known]
            assert here or own, f"docs/alt_texts.toml lacks {keys[0]}"
            used |= set(here)
    assert set(known) == used
    for name, text in known.items():
        assert 40 < len(text) < 260, name
        assert text.endswith("."), name


def test_a_picture_of_which_nobody_has_said_what_it_shows() -> None:
    """Curves that are drawn during a training say what they are; others need a text."""
    cell = nbformat.v4.new_code_cell("plot()", metadata={"tags": ["figure:nobody_told"]})
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": ""})]
    shown = site.shown(nbformat.v4.new_notebook(cells=[cell]), "99_x")
    assert shown.cells[0].metadata.mystnb.image.alt == site._UNDESCRIBED
    cell.outputs[0].data["text/plain"] = "Training loss at step 3"
    shown = site.shown(nbformat.v4.new_notebook(cells=[cell]), "99_x")
    assert shown.cells[0].metadata.mystnb.image.alt == "Training loss at step 3"
    for loss in ("Training loss of LoRA", "Training loss of all weights"):
        drawn = {"image/png": "", "text/plain": loss}
        cell.outputs.append(nbformat.v4.new_output("display_data", drawn))
        cell.outputs.append(nbformat.v4.new_output("stream", text="done"))
    shown = site.shown(nbformat.v4.new_notebook(cells=[cell]), "99_x")
    alts = [each.metadata.mystnb.image.alt for each in shown.cells]
    assert alts == [
        "Training loss at step 3",
        "Training loss of LoRA",
        "Training loss of all weights",
    ]
    assert [len(each.outputs) for each in shown.cells] == [1, 2, 2]
    assert [each.metadata.tags for each in shown.cells[1:]] == [["remove-input"]] * 2


def test_links_are_mended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To a page where there is one, else to the repository; a link to nothing is an error."""
    monkeypatch.setattr(site, "SOURCE", tmp_path)
    monkeypatch.setattr(site.settings, "repository", lambda: "")
    first = NOTEBOOKS[0].name
    assert site.relink(
        "[a](../docs/glossary.md#lora)", f"notebooks/{first}", f"notebooks/{first}"
    ) == ("[a](../glossary.md#lora)")
    assert site.relink("[a](datasets)", "README.md", "start.md") == "[a](cards/index.md)"
    assert site.relink("see [a `b`](LICENSE).", "README.md", "start.md") == "see a `b`."
    repository = "https://github.com/somebody/course"
    monkeypatch.setattr(site.settings, "repository", lambda: repository)
    assert f"]({repository}/blob/main/LICENSE)" in site.relink(
        "[a](LICENSE)", "README.md", "start.md"
    )
    assert f"]({repository}/tree/main/tests)" in site.relink("[a](tests)", "README.md", "start.md")
    assert (
        site.relink("[a](https://b.c) [d](#e)", "README.md", "x.md") == "[a](https://b.c) [d](#e)"
    )
    figure = "slides/figures/01_template_silence.png"
    assert site.relink(f"![a]({figure})", "README.md", "a/b.md") == (
        "![a](../figures/01_template_silence.png)"
    )
    assert (tmp_path / "figures" / "01_template_silence.png").exists()
    with pytest.raises(SystemExit, match="leads to nothing"):
        site.relink("[a](nowhere.md)", "README.md", "start.md")


def test_timings_show_what_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A notebook's own run, a run of another tier from the results, and "not yet measured"."""
    saved = site.saved()
    page, other = list(saved)[:2]
    for notebook in saved.values():
        notebook.metadata.pop("course", None)
    run = {"minutes": 1.25, "peak_ram_mb": 2345, "cores": 2, "tier": "cpu"}
    saved[page].metadata["course"] = run
    runs = tmp_path / "notebooks.jsonl"
    gpu = {**run, "tier": "16gb", "peak_gpu_mb": 9100, "notebook": Path(page).stem}
    runs.write_text(json.dumps(gpu) + "\n")
    monkeypatch.setattr(site, "saved", lambda: saved)
    monkeypatch.setattr(site, "RUNS", runs)
    rows = {line.split("](")[1].split(")")[0]: line for line in site.timings().splitlines()[2:]}
    assert "1.2 min, 2.3 GB | 1.2 min, 2.3 GB, 9.1 GB on the GPU | not yet" in rows[page]
    assert rows[other].count("not yet measured") == len(site.TIERS)
    assert "`16gb`" in site.timing_machines()


# --- settings and files for contributors ---------------------------------------------------------


def test_nothing_is_run_or_fetched() -> None:
    """Notebooks are not executed, and formulas need no script from elsewhere."""
    assert conf.nb_execution_mode == "off"
    assert conf.html_math_renderer == "mathml"
    css = (ROOT / "docs" / "_static" / "course.css").read_text()
    assert "http" not in css
    assert "@import" not in css


def test_docstrings_become_restructured_text() -> None:
    """Names become links where there is something to link to; all else is literal."""
    assert conf.as_rst("`Setup` and `a = b`") == ":py:obj:`Setup` and ``a = b``"
    assert conf.as_rst("2 * 3 | `x * y`") == r"2 \* 3 \| ``x * y``"
    assert conf.as_rst("``kept`` as it is") == "``kept`` as it is"


def test_citation_and_licences() -> None:
    """They name what pyproject.toml names; both licences are there in full."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert project["license"] in citation["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    text = " ".join((ROOT / "LICENSE-text").read_text().split())
    assert "Creative Commons Attribution 4.0 International Public License" in text
    assert "Section 8 – Interpretation" in text


def test_issue_templates_and_workflows_are_whole() -> None:
    """They can be read, ask for what they must, and run what the README tells."""
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for path in forms:
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            ids = [part["id"] for part in form["body"]]
            assert len(ids) == len(set(ids))
    assert {path.stem for path in forms} == {"config", "notebook", "claim", "idea"}
    workflows = {
        p.stem: yaml.safe_load(p.read_text()) for p in (ROOT / ".github/workflows").glob("*.yml")
    }
    assert set(workflows) == {"test", "newest", "drift"}
    test = workflows["test"]["jobs"]["test"]
    assert test["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert {"run": "make test"} in test["steps"]
    assert "schedule" in workflows["newest"][True]  # YAML reads the key `on` so
    versions = workflows["drift"]["jobs"]["drift"]["strategy"]["matrix"]["versions"]
    assert tuple(versions) == drift.WHICH
    bot = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())
    assert {update["package-ecosystem"] for update in bot["updates"]} == {"pip", "github-actions"}


def test_contributing_fits_a_page() -> None:
    """One page, and each of its commands is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(text.split()) < 650
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


# --- the built site ------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture(scope="module")
def built() -> Path:
    """The site, built with warnings as errors."""
    if not importlib.util.find_spec("myst_nb"):
        pytest.skip("the site's tools are not installed: `make site` does that")
    site.gather()
    assert site.build() == 0
    return site.SITE


@pytest.fixture(scope="module")
def address(built: Path) -> Iterator[str]:
    """The built site on loopback."""
    handler = functools.partial(_Quiet, directory=str(built))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def visit(page: Page, url: str, mode: str) -> None:
    """Open an address as a system in light or dark mode does."""
    page.emulate_media(color_scheme=mode)
    page.goto(url)


# The contrast of an element's text with what is behind it, as WCAG defines it.
_CONTRAST = """(selector) => {
    const canvas = document.createElement('canvas').getContext('2d');
    const rgb = (colour) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return canvas.getImageData(0, 0, 1, 1).data;
    };
    const light = (colour) => {
        const [r, g, b] = [...rgb(colour)].map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (rgb(colour)[3] == 255) return colour;
        }
        return 'white';
    };
    const node = document.querySelector(selector);
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""
_READABLE = 4.5


def test_nothing_comes_from_elsewhere(built: Path) -> None:
    """No script, style, font or picture of any page is on another machine."""
    for path in built.rglob("*.html"):
        if path.parts[-2] != "slides":
            text = path.read_text(encoding="utf-8")
            tags = re.findall(r"<(?:script|img|iframe|source)\b[^>]*>", text)
            tags += re.findall(r"<link\b[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*>", text)
            outside = [tag for tag in tags if re.search(r"(?:src|href)=\"(?:https?:)?//", tag)]
            assert not outside, f"{path.name}: {outside}"
    for path in built.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", path.read_text(errors="replace")), (
            path.name
        )


def test_every_saved_picture_is_on_its_page(built: Path) -> None:
    """With the text that was written for it, or else with what it says of itself."""
    known = site.alt_texts()
    for path, notebook in site.saved().items():
        page = (built / path).with_suffix(".html").read_text(encoding="utf-8")
        for cell, keys, _ in site.pictures(notebook, Path(path).stem):
            for data in (output.get("data", {}) for output in cell.outputs):
                if "image/png" not in data:
                    continue
                picture = hashlib.sha256(base64.b64decode(data["image/png"])).hexdigest()
                said = next((known[key] for key in keys if key in known), data["text/plain"])
                shown = re.search(rf'<img alt="([^"]*)" src="[^"]*{picture}', page)
                assert shown, f"{path}: {said}"
                assert html.unescape(shown[1]) == said


def test_the_download_is_the_notebook_itself(built: Path) -> None:
    """With its Colab cell, which the page leaves out."""
    for path in NOTEBOOKS:
        assert (built / "_sources" / "notebooks" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_pages_in_a_browser(page: Page, address: str, mode: str) -> None:
    """Start page and a notebook: all loaded from here, readable, every picture with a text."""
    visit(page, f"{address}/index.html", mode)
    assert page.evaluate("() => document.documentElement.dataset.theme") == mode
    assert page.evaluate(_CONTRAST, "article p") > _READABLE
    assert page.evaluate(_CONTRAST, "article td") > _READABLE
    assert page.locator("article td a").count() >= len(NOTEBOOKS)

    visit(page, f"{address}/notebooks/{NOTEBOOKS[0].stem}.html", mode)
    pictures = "[...document.querySelectorAll('article img')]"
    page.wait_for_function(f"() => {pictures}.every(image => image.naturalWidth)")
    told = page.evaluate(f"() => {pictures}.map(image => image.getAttribute('alt'))")
    assert told
    assert all(alt and len(alt) > 10 for alt in told)
    for part in (".cell_input pre", ".cell_output pre", "table.dataframe td", "article p code"):
        assert page.evaluate(_CONTRAST, part) > _READABLE, part
    hosts = (
        "() => performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)"
    )
    assert set(page.evaluate(hosts)) <= {address}
    wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("perplexity", "04.1_quantization"),
        ("predict", "api/memory"),
        ("merge", "glossary"),
        ("catastrophic forgetting", "glossary"),
        ("DPO", "glossary"),
        ("QLoRA", "glossary"),
        ("out of memory", "glossary"),
    ],
)
def test_the_search_finds(page: Page, address: str, query: str, found: str, mode: str) -> None:
    """A word of a notebook, a name of the package, and a term of the glossary."""
    visit(page, f"{address}/search.html?q={query}", mode)
    page.locator(f"#search-results li a[href*='{found}']").first.wait_for()
    assert page.evaluate(_CONTRAST, "#search-results li a") > _READABLE


def test_all_links_lead_somewhere(built: Path) -> None:
    """Of every page, the API's and the deck's too: the file is there, and the place in it."""
    pages = {path: path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    places = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    dead = []
    for path, text in pages.items():
        for link in set(re.findall(r'<a [^>]*?href="([^"]+)"', text)):
            address, _, place = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:|//", address):
                continue
            target = (path.parent / address).resolve() if address else path
            lost = place and target in places and place not in places[target]
            if lost or not target.exists():
                dead.append(f"{path.name}: {link}")
    assert not dead, dead[:20]


def test_no_page_is_wider_than_a_phone(page: Page, address: str, built: Path) -> None:
    """At 390 pixels, text wraps, and what cannot wrap scrolls inside itself."""
    before = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 844})
    wide = {}
    for path in sorted(built.rglob("*.html")):
        if "_static" in path.parts or path.stem == "deck":
            continue
        visit(page, f"{address}/{path.relative_to(built)}", "light")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 390:
            wide[path.name] = width
    page.set_viewport_size(before)
    assert not wide


def test_clicking_through(page: Page, address: str) -> None:
    """Start page, a notebook by its link, the glossary by the side bar, a term's notebook."""
    visit(page, f"{address}/index.html", "light")
    for selector, path in (
        (f"article a[href*='{NOTEBOOKS[0].stem}']", NOTEBOOKS[0].stem),
        (".bd-sidebar-primary a[href*='glossary']", "glossary"),
        ("article a[href*='02_peft_lora']", "02_peft_lora"),
    ):
        page.locator(selector).first.click()
        page.wait_for_url(f"**/*{path}*")


def test_make_site_is_this(built: Path) -> None:
    """The command that the README tells builds with the same tool."""
    line = (ROOT / "Makefile").read_text()
    assert "$(RUN) -m tools.site" in line
    done = subprocess.run(["git", "check-ignore", "-q", str(built)], cwd=ROOT)
    assert done.returncode == 0
