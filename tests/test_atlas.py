"""The atlas of predictions, and the page "What can I train on my GPU?" that shows it."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT

from benchmarks import atlas
from course_utils.memory import GPUS, fits, predict
from course_utils.results import whole_rows
from tools import calculator, site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


MOST_BYTES = 2 * 10**6

# The order in which Python frees what refers to itself moves a peak by some MB.
NEARLY = {"rel": 0.01, "abs": 15}
AGAIN = (
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "older", "lora", 1, 2048),
    ("EleutherAI/pythia-410m", "ampere", "full-16-adam-8", 4, 512),
)
# Both outcomes, near the limit and far from it, on GPUs that do not stand for their class.
VERDICTS = (
    (("Qwen/Qwen3-8B", "ampere", "lora", 4, 2048), "rtx3090"),
    (("Qwen/Qwen3-8B", "ampere", "lora", 4, 2048), "l4"),
    (("google/gemma-3-270m", "ada", "full-16", 1, 512), "rtx3060"),
    (("Qwen/Qwen3-0.6B", "hopper", "full-16", 4, 2048), "h200"),
)


@pytest.fixture(scope="module")
def rows() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The row of every training."""
    return calculator.predicted()[1]


# --- the file ------------------------------------------------------------------------------------


def test_the_file_is_whole() -> None:
    """Every line can be read, none is there twice, and sizes make sense."""
    text = atlas.RESULTS.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert len(list(map(json.loads, text.splitlines()))) == len(whole_rows(atlas.RESULTS))
    header, listed = atlas.read()
    assert header == json.loads(json.dumps(atlas.header()))
    assert len({atlas.key(row) for row in listed}) == len(listed)
    for row in listed:
        assert row["model"] in atlas.MODELS
        assert row["method"] in atlas.CLASSES[row["class"]][1]
        assert set(row["at_peak"]) == set(calculator.KINDS)
        held = sum(row["at_peak"].values())
        assert held == pytest.approx(row["allocated_mb"], abs=1)
        assert row["allocated_mb"] <= row["reserved_mb"]


def test_every_training_has_a_row_or_cannot_fit(rows: dict[Any, Any]) -> None:
    """Nothing that could fit on some GPU is missing, for all models and GPUs."""
    listed = {atlas.key(row): row for row in atlas.read()[1]}
    missing = [
        atlas.key(case)
        for case in atlas.cases(list(atlas.MODELS))
        if atlas.key(case) not in rows and not atlas.hopeless(case, listed)
    ]
    if missing:  # the page says so where it is
        pytest.xfail(f"{len(missing)} predictions are missing: make atlas goes on")


@pytest.mark.parametrize("wanted", AGAIN, ids=lambda wanted: wanted[0].split("/")[1])
def test_a_row_predicted_anew_is_the_same(rows: dict[Any, Any], wanted: tuple) -> None:
    """With the versions that the file names."""
    if atlas.read()[0]["versions"] != atlas.header()["versions"]:
        pytest.skip("the file speaks of other versions")
    row = rows[wanted]
    found = predict(atlas.setup_of(row), GPUS[atlas.CLASSES[row["class"]][0]])
    assert found.peak_reserved_mb == pytest.approx(row["reserved_mb"], **NEARLY)
    assert found.peak_allocated_mb == pytest.approx(row["allocated_mb"], **NEARLY)


@pytest.mark.parametrize(("wanted", "gpu"), VERDICTS)
def test_the_verdict_is_that_of_fits(rows: dict[Any, Any], wanted: tuple, gpu: str) -> None:
    """One prediction serves every GPU of its class."""
    row = rows[wanted]
    assert atlas.class_of(GPUS[gpu], row["model"]) == row["class"]
    assert atlas.fits(row, GPUS[gpu]) == (fits(atlas.setup_of(row), gpu) is not None)


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not predicted again; another version's file is refused."""
    made = []

    def quick(case: dict[str, Any]) -> dict[str, Any]:
        made.append(atlas.key(case))
        sizes = {"allocated_mb": 1.0, "reserved_mb": 2.0}
        return {
            **case,
            **sizes,
            "at_peak": dict.fromkeys(calculator.KINDS, 0.2),
            "phase": "backward",
            "warnings": [],
        }

    monkeypatch.setattr(atlas, "predicted", quick)
    path = tmp_path / "atlas.jsonl"
    models = ["facebook/opt-350m"]
    added = atlas.make(models, path)
    assert added == len(made) == len(set(made)) > 30
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])
    assert atlas.make(models, path) == 3
    monkeypatch.setattr(atlas, "versions", lambda: {"torch": "0.1"})
    # Of the half line it is told, now that others follow it.
    with (
        pytest.warns(UserWarning, match="are no rows"),
        pytest.raises(SystemExit, match="Delete the file"),
    ):
        atlas.make(models, path)


def test_what_cannot_fit_is_told_from_its_weights() -> None:
    """Full fine-tuning of a model whose weights and averages are larger than every GPU."""
    case = {"model": "m", "class": "older", "method": "full-32", "batch": 1, "length": 512}
    lora = {**case, "method": "lora", "reserved_mb": 3000.0, "at_peak": {"weights": 2500.0}}
    assert atlas.hopeless({**case, "model": "facebook/opt-350m"}, {}) is False
    for weights, too_large in ((1500.0, False), (2500.0, True)):
        row = {**lora, "model": "facebook/opt-350m", "at_peak": {"weights": weights}}
        rows = {atlas.key(row): row}
        assert atlas.hopeless({**case, "model": "facebook/opt-350m"}, rows) is too_large


def test_make_atlas_is_this() -> None:
    """The command that the page tells runs this program."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^atlas: ready ## .+\n\t@\$\(RUN\) -m benchmarks\.atlas$", makefile, re.M)


# --- the page ------------------------------------------------------------------------------------


def test_without_javascript_there_is_a_table(rows: dict[Any, Any]) -> None:
    """Every model with what fits on some GPUs, and no blank line, which would end the HTML."""
    text = calculator.html()
    assert "\n\n" not in text
    body = re.findall(r"<tr><td>(.+?)</td><td>(.+?)</td>", text)
    assert {model for model, _ in body} == {row["model"] for row in rows.values()}
    shown = dict(body)["facebook/opt-350m"]
    row = rows["facebook/opt-350m", "older", "full-32", 1, 512]
    needed = (row["reserved_mb"] * 1e6 + GPUS["t4"].context_mib * 2**20) / 1e9
    assert shown == f"{calculator.METHODS['full-32'][0]}: {needed:.1f} GB"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page alone, built as the site's pages are."""
    pytest.importorskip("myst_nb", reason="the site's tools are not installed: `make site` does it")
    source, made = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    text = (site.DOCS / "calculator.md").read_text(encoding="utf-8")
    (source / "calculator.md").write_text(site.filled(text), encoding="utf-8")
    (source / "index.md").write_text("# Start\n\n```{toctree}\ncalculator.md\n```\n")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-Q", "-c", str(site.DOCS)]
    command += ["-D", "html_extra_path=", "-d", str(source / "trees"), str(source), str(made)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    (made / "atlas.js").write_text(calculator.script(), encoding="utf-8")
    return made / "calculator.html"


@pytest.fixture
def failures(page: Page) -> Iterator[list[str]]:
    """What went wrong in the page meanwhile: errors of its script, of the console, of loading."""
    found: list[str] = []
    first_visit = "Got invalid theme mode: . Resetting to auto."  # said by the site's theme
    listeners = {
        "pageerror": lambda error: found.append(str(error)),
        "requestfailed": lambda request: found.append(request.url),
        "console": lambda said: (
            said.type == "error" and said.text != first_visit and found.append(said.text)
        ),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield found
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


_VISITS = itertools.count()


def visit(page: Page, built: Path, choice: str = "") -> None:
    """Open the page afresh, with the choice of a link."""
    # Another hash alone would load nothing.
    page.goto(f"{built.as_uri()}?visit={next(_VISITS)}{choice}")
    page.wait_for_function("() => Boolean(window.gpuCalculator)")


def pick(page: Page, name: str, value: str) -> None:
    """Choose in one of the page's lists, as a person does."""
    page.locator(f"#calculator [name={name}]").select_option(value)


def shown(page: Page) -> list[list[str]]:
    """The cells of the table."""
    return page.evaluate(
        """() => [...document.querySelectorAll('#calculator .calc-rows tbody tr')]
            .map(row => [...row.cells].map(cell => cell.innerText))"""
    )


def chosen(page: Page) -> dict[str, Any]:
    """What the page takes for chosen."""
    return page.evaluate("() => window.gpuCalculator.chosen()")


def test_choosing_changes_the_table_and_the_link(
    page: Page, built: Path, failures: list[str]
) -> None:
    """A larger GPU trains more; a click on a model shows its bars; the link restores it all."""
    visit(page, built)
    assert chosen(page)["gpu"] == "t4"
    assert not page.locator("#calculator-table").is_visible()
    before = shown(page)
    pick(page, "gpu", "rtx4090")
    after = shown(page)
    assert len(before) == len(after) == len(atlas.MODELS)
    assert before != after
    assert "RTX 4090" in page.locator(".calc-summary").inner_text()
    pick(page, "method", "lora")
    pick(page, "length", "2048")
    pick(page, "batch", "4")
    page.locator('[data-model="Qwen/Qwen3-4B"] button').click()
    assert page.evaluate("() => document.activeElement.title") == "Qwen/Qwen3-4B"
    pick(page, "model", "Qwen/Qwen3-8B")
    wanted = {
        **{"gpu": "rtx4090", "model": "Qwen/Qwen3-8B", "method": "lora"},
        **{"length": 2048, "batch": 4},
    }
    assert chosen(page) == wanted
    told, link = shown(page), page.evaluate("() => location.hash")
    assert page.evaluate("() => document.querySelector('.calc-link').hash") == link
    visit(page, built, link)
    assert chosen(page) == wanted
    assert shown(page) == told
    # A link that is pasted into the open page, and back.
    page.evaluate("() => { location.hash = '#gpu=h100&model=facebook/opt-350m'; }")
    page.wait_for_function("() => window.gpuCalculator.chosen().gpu == 'h100'")
    assert chosen(page)["model"] == "facebook/opt-350m"
    assert failures == []


def test_a_link_with_nonsense_is_harmless(page: Page, built: Path, failures: list[str]) -> None:
    """What is not known falls back to the first choice, what is impossible to a batch of one."""
    visit(page, built, "#gpu=abacus&model=<b>&method=toString&length=7&batch=-1")
    first = {"gpu": "t4", "model": "Qwen/Qwen3-0.6B", "method": "auto", "length": 512, "batch": 1}
    assert chosen(page) == first
    visit(page, built, "#gpu=constructor&length=4096&batch=4&method=full-16")
    assert chosen(page) == {**first, "length": 4096}
    assert failures == []


def test_the_page_says_what_the_atlas_says(page: Page, built: Path, rows: dict[Any, Any]) -> None:
    """The verdict of every training on every GPU, in the page's own script."""
    visit(page, built)
    expected = [
        [name, row["model"], row["method"], row["length"], row["batch"], atlas.fits(row, gpu)]
        for name, gpu in GPUS.items()
        for row in rows.values()
        if row["class"] == atlas.class_of(gpu, row["model"])
    ]
    assert {each[-1] for each in expected} == {True, False}
    wrong = page.evaluate(
        """(all) => all.filter(([gpu, model, method, length, batch, fits]) =>
            window.gpuCalculator.fits(gpu, model, method, length, batch) !== fits)""",
        expected,
    )
    assert wrong == []


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_bars_and_narrow_screens(chromium: Browser, built: Path, mode: str) -> None:
    """Bars stop where their numbers say, the limit is drawn, and nothing is wider than a phone."""
    size = {"width": 360, "height": 800}
    phone = chromium.new_context(viewport=size, is_mobile=True, color_scheme=mode)
    with contextlib.closing(phone):
        page = phone.new_page()
        visit(page, built, "#gpu=t4&model=Qwen/Qwen3-0.6B&method=full-32")
        wide = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0
        bars = page.evaluate(
            """() => [...document.querySelectorAll('.calc-bar')].map(bar => {
                const width = bar.querySelector('.calc-track').clientWidth;
                const limit = parseFloat(bar.querySelector('.calc-limit').style.left) / 100;
                const pieces = [...bar.querySelectorAll('i')];
                const end = pieces.reduce((sum, piece) => sum + parseFloat(piece.style.width), 0);
                return [bar.dataset.method, width, end / 100, limit, bar.innerText];
            })"""
        )
    methods = [method for method, *_ in bars]
    assert methods == [m for m in calculator.METHODS if m in atlas.CLASSES["older"][1]]
    for _, width, end, limit, text in bars:
        assert width > 250
        assert (end <= limit) == ("does not fit" not in text)
