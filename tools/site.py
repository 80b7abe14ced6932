"""Build the course's site into `build/site`: notebooks, slides, reference, cards, timings.

Nothing is run: notebooks are shown with the outputs that are saved in them. What the repository
says already is taken from there, so that a new notebook, module or dataset appears by itself:
`docs/` holds only what is written for the site, with marks such as `<!-- generated: timings -->`
where something is put in. The pages are gathered in `build/site-source`; warnings are errors.

    python -m tools.site            gather and build
    python -m tools.site gather     gather only
    python -m tools.site install    install what builds it, where it is missing
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import bootstrap, calculator, settings
from tools import notebooks as course_notebooks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "site-source"
SITE = ROOT / "build" / "site"
DECK = ROOT / "build" / "slides" / "deck.html"
PACKAGE = ROOT / "course_utils"
RUNS = ROOT / "benchmarks" / "results" / "notebooks.jsonl"

TIERS = ("cpu", "16gb", "24gb", "40gb")
UNMEASURED = "not yet measured"
_IMAGES = (".png", ".svg", ".jpg")
_MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.M)
_TARGET = re.compile(r"\]\(([^)\s]+)\)")
_NOWHERE = "nowhere:"
_WITHOUT_TARGET = re.compile(rf"\[([^\[\]]+)\]\({_NOWHERE}[^)\s]*\)")
_UNDESCRIBED = "A picture; the text around it says what it shows."
_WIDGET = "application/vnd.jupyter.widget-view+json"


# --- which file of the repository becomes which page ---------------------------------------------


def cards() -> dict[str, str]:
    """The cards of datasets and models: file in the repository to page."""
    found = sorted(ROOT.glob("datasets/*/README.md")) + sorted(
        PACKAGE.glob("models/bundled/*/README.md")
    )
    return {path.relative_to(ROOT).as_posix(): f"cards/{path.parent.name}.md" for path in found}


def pages() -> dict[str, str]:
    """Each file or folder of the repository that has a page, and that page."""
    found = {"README.md": "start.md", "benchmarks/README.md": "benchmarks.md", **cards()}
    if (ROOT / "CONTRIBUTING.md").exists():
        found["CONTRIBUTING.md"] = "contributing.md"
    for path in DOCS.glob("*.md"):
        found[f"docs/{path.name}"] = path.name
    for source in course_notebooks.sources():
        path = course_notebooks.target(source).relative_to(ROOT).as_posix()
        found[path] = path
    for path, page in list(found.items()):
        folder, _, name = path.rpartition("/")
        if name == "README.md" and folder:
            found[folder] = page
    return found | {"datasets": "cards/index.md", "course_utils": "api/index.md"}


def address(path: str) -> str:
    """Where a file or folder without a page is: in the repository, if that has an address."""
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    repository = settings.repository()
    return f"{repository}/{kind}/main/{path}" if repository else ""


def relink(text: str, origin: str, page: str) -> str:
    """Links of a text, relative to its place in the repository, as the page needs them.

    A link to what has neither a page nor an address becomes its words alone.

    Args:
        text: Markdown.
        origin: the text's file in the repository.
        page: the page that it becomes.

    Raises:
        SystemExit: a link leads to nothing.
    """
    known = pages()

    def mend(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = os.path.normpath(f"{Path(origin).parent.as_posix()}/{target}")
        if path in known:
            there = os.path.relpath(known[path], Path(page).parent)
        elif not (ROOT / path).exists():
            raise SystemExit(f"{origin}: {match[1]} leads to nothing")
        elif path.endswith(_IMAGES):
            copy(ROOT / path, SOURCE / "figures" / Path(path).name)
            there = os.path.relpath(f"figures/{Path(path).name}", Path(page).parent)
        else:
            there = address(path) or _NOWHERE
        return f"]({there}{hash_}{anchor})"

    return _WITHOUT_TARGET.sub(r"\1", _TARGET.sub(mend, text))


def copy(origin: Path, copied: Path) -> None:
    """Copy a file, its folder made where need be."""
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(origin, copied)


def put(page: str, text: str) -> None:
    """Write a page of the site's source."""
    path = SOURCE / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- notebooks -----------------------------------------------------------------------------------


def alt_texts() -> dict[str, str]:
    """What pictures show, in words: by the name of a figure, or by `NOTEBOOK/number`."""
    return tomllib.loads((DOCS / "alt_texts.toml").read_text(encoding="utf-8"))


def _is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def _own_text(cell: NotebookNode) -> str:
    """What a cell's first picture says of itself, as those that `training.watch` draws do."""
    first = next(filter(_is_picture, cell.outputs))
    own = str(first.data.get("text/plain", ""))
    return "" if own.startswith("<") else own


def pictures(notebook: NotebookNode, name: str) -> Iterator[tuple[NotebookNode, list[str], str]]:
    """The cells with pictures: the cell, the keys of its alt text, what the first picture says."""
    number = 0
    for cell in notebook.cells:
        found = list(filter(_is_picture, cell.get("outputs", [])))
        if found:
            tags = [tag for tag in cell.metadata.get("tags", []) if tag.startswith("figure:")]
            keys = [tag.removeprefix("figure:") for tag in tags] + [f"{name}/{number + 1}"]
            yield cell, keys, _own_text(cell)
            number += len(found)


def _apart(cell: NotebookNode) -> list[NotebookNode]:
    """A cell with its first picture, and a cell that shows outputs only for each further one.

    MyST-NB takes alt texts by the cell, and these pictures have one each.
    """
    parts: list[list[NotebookNode]] = [[]]
    for output in cell.outputs:
        if _is_picture(output) and any(map(_is_picture, parts[-1])):
            parts.append([])
        parts[-1].append(output)
    cell.outputs = parts[0]
    # MyST-NB leaves out cells without a source.
    further = [
        new_code_cell("# continued", metadata={"tags": ["remove-input"]}, outputs=part)
        for part in parts[1:]
    ]
    return [cell, *further]


def shown(notebook: NotebookNode, name: str) -> NotebookNode:
    """A saved notebook as the site shows it.

    The Colab badge and cell go (each page has a button), widgets give way to what is saved in
    their place, and every picture has an alt text. (A test holds that somebody wrote it.)
    """
    known = alt_texts()
    parts = {}
    for cell, keys, _ in pictures(notebook, name):
        written = next((known[key] for key in keys if key in known), "")
        parts[cell.id] = [cell] if written else _apart(cell)
        for part in parts[cell.id]:
            alt = written or _own_text(part) or _UNDESCRIBED
            part.metadata["mystnb"] = {"image": {"alt": alt}}
    cells = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "colab-badge.svg" in cell.source or "colab-setup" in tags:
            continue
        for part in parts.get(cell.id, [cell]):
            for output in part.get("outputs", []):
                output.get("data", {}).pop(_WIDGET, None)
            cells.append(part)
    notebook.cells = cells
    return notebook


def title(notebook: NotebookNode) -> str:
    """A notebook's title, its number first."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def learned(notebook: NotebookNode) -> str:
    """What a notebook says one will learn, from its first cell."""
    text = " ".join(notebook.cells[0].source.split())
    return re.search(r"\*\*You will learn\*\* (.+?\.) \*\*You need\*\*", text)[1]


def saved() -> dict[str, NotebookNode]:
    """Every notebook as it is saved, by its page."""
    return {
        course_notebooks.target(source).relative_to(ROOT).as_posix(): nbformat.read(
            course_notebooks.target(source), as_version=4
        )
        for source in course_notebooks.sources()
    }


# --- what the marks stand for --------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measured() -> dict[str, dict[str, dict[str, Any]]]:
    """What was measured, by notebook and tier: runs in `benchmarks/results`, and each notebook's
    own saved run, which is taken where both are there."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if RUNS.exists():
        for line in RUNS.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(f"notebooks/{row['notebook']}.ipynb", {})[row["tier"]] = row
    for page, notebook in saved().items():
        if run := notebook.metadata.get("course"):
            found.setdefault(page, {})[run["tier"]] = dict(run)
    return found


def cost(run: dict[str, Any] | None) -> str:
    """A run's minutes and memory in a table's cell."""
    if not run:
        return UNMEASURED
    parts = [f"{run['minutes']:.1f} min", f"{run['peak_ram_mb'] / 1000:.1f} GB"]
    if run.get("peak_gpu_mb"):
        parts.append(f"{run['peak_gpu_mb'] / 1000:.1f} GB on the GPU")
    return ", ".join(parts)


def timings() -> str:
    """The table of minutes and memory by tier."""
    runs = measured()
    rows = []
    for page, notebook in saved().items():
        cells = [cost(runs.get(page, {}).get(tier)) for tier in TIERS]
        rows.append([f"[{title(notebook)}]({page})", *cells])
    return table(["notebook", *(f"`{tier}`" for tier in TIERS)], rows)


def timing_machines() -> str:
    """On what machine each measured run was made."""
    rows = [
        [
            f"[{page.split('/')[1].split('_')[0]}]({page})",
            f"`{tier}`",
            f"{run['cores']} cores",
            str(run.get("machine", "")),
            str(run.get("date", "")),
        ]
        for page, by_tier in measured().items()
        for tier, run in by_tier.items()
    ]
    if not rows:
        return "No run is stored yet."
    return table(["notebook", "tier", "CPU", "machine", "on"], rows)


def notebook_table() -> str:
    """What each notebook teaches and how long its cells run on a CPU."""
    runs = measured()
    rows = []
    for page, notebook in saved().items():
        cpu = runs.get(page, {}).get("cpu")
        took = f"{cpu['minutes']:.1f}" if cpu else UNMEASURED
        rows.append([f"[{title(notebook)}]({page})", learned(notebook), took])
    return table(["notebook", "you will learn", "minutes on a CPU"], rows)


def toctrees() -> str:
    """The site's contents, as its side bar shows them."""
    parts = {
        "": ["Start, tools, tiers <start.md>"],
        "Notebooks": list(saved()),
        "For the course": [
            name
            for name in (
                "glossary.md",
                "timings.md",
                "tools.md",
                "predictions.md",
                "architectures.md",
                "silent_faults.md",
                "slides.md",
                "teaching.md",
                "contributing.md",
            )
            if name in pages().values() or name == "slides.md"
        ],
        "Reference": ["cards/index.md", "benchmarks.md", "api/index.md"],
    }
    listed = set(sum(parts.values(), ["index.md"]))
    rest = sorted(path.name for path in DOCS.glob("*.md") if path.name not in listed)
    parts["For the course"] += rest
    lines = []
    for caption, names in parts.items():
        lines += ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), ""]
        lines += [*names, "```", ""]
    return "\n".join(lines)


def megabytes(number: float) -> str:
    """A size in MB = 10^6 bytes, with a comma for thousands."""
    return f"{number:,.0f}"


def role_table() -> str:
    """Which model each role takes, by tier, from the catalogue."""
    roles = catalogue()["roles"]
    rows = []
    for name, role in roles.items():
        cells = ["<br>".join(f"`{model}`" for model in role.get(tier, [])) for tier in TIERS]
        rows.append([f"**{name}**", f"`{role['embedded']}`", *cells])
    return table(["role", "without the hub", *(f"`{tier}`" for tier in TIERS)], rows)


def model_table() -> str:
    """Every model of the catalogue with its licence and size."""
    rows = [
        [
            f"`{name}`",
            f"{entry['parameters'] / 1e6:,.0f}",
            megabytes(entry["download_mb"]),
            entry["licence"],
            "yes" if entry["gated"] else "no",
            f"`{entry['revision'][:8]}`",
        ]
        for name, entry in catalogue()["models"].items()
    ]
    head = ["model", "million parameters", "MB", "licence", "gated", "revision"]
    return table(head, rows)


def dataset_table() -> str:
    """Every dataset of the hub that the course can use."""
    rows = [
        [f"`{name}`", entry["about"], f"{entry['rows']:,}", entry["licence"]]
        for name, entry in catalogue().get("datasets", {}).items()
    ]
    return table(["dataset", "what it is", "rows", "licence"], rows)


def card_list() -> str:
    """The cards, linked by their titles."""
    lines = []
    for origin, page in cards().items():
        name = (ROOT / origin).read_text().splitlines()[0].removeprefix("# ")
        kind = "data" if origin.startswith("datasets/") else "model"
        lines.append(f"- [{name}]({Path(page).name}) ({kind})")
    hidden = "\n".join(Path(page).name for page in cards().values())
    return "\n".join(lines) + f"\n\n```{{toctree}}\n:hidden:\n\n{hidden}\n```"


def catalogue() -> dict[str, Any]:
    """The course's catalogue of models and datasets."""
    return tomllib.loads((PACKAGE / "models" / "catalog.toml").read_text())


def architecture_table() -> str:
    """How many decoders can be predicted, and which of them are refused and why."""
    with (ROOT / "benchmarks" / "results" / "architectures.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    both = [row for row in rows if row["full"] == row["qlora"] == "predicted"]
    refused = [
        [f"`{row['model_type']}`", row["full"], row["qlora"], row["reason"].replace("|", "\\|")]
        for row in rows
        if row not in both
    ]
    listed = ", ".join(f"`{row['model_type']}`" for row in both)
    return (
        f"Of {len(rows)} model types in transformers {rows[0]['transformers']}, {len(both)} are "
        f"predicted both ways: {listed}.\n\n"
        + table(["model type", "all weights", "QLoRA", "what the libraries said"], refused)
    )


def silent_faults() -> str:
    """Each fault by its kind: what somebody did, the reports, what preflight says, the fix."""
    from benchmarks.silent_faults import others
    from benchmarks.silent_faults.__main__ import cases, read

    faults, _ = cases()
    rows = {row["name"]: row for row in read()}
    told = [row for row in rows.values() if row["kind"] != "healthy"]
    healthy = [row for row in rows.values() if row["kind"] == "healthy"]
    found = [row for row in told if row["found"] == "yes"]
    fixed = [row for row in found if row["fix_works"] == "yes"]
    alarms = [row for row in healthy if row["found"] != "quiet"]
    parts = [
        f"`preflight` finds {len(found)} of {len(told)} faults; for {len(fixed)} of these the fix "
        "was applied, and nothing was left to say. Of "
        f"{len(healthy)} correct set-ups it says something about {len(alarms)}. (transformers "
        f"{told[0]['transformers']}, TRL {told[0]['trl']}, peft {told[0]['peft']}.)",
        _others(others.counts(others.read())),
    ]
    for kind in dict.fromkeys(fault.kind for fault in faults.values()):
        parts.append(f"\n## {kind}\n")
        for fault in faults.values():
            if fault.kind == kind and fault.name in rows:
                parts.append(_fault(fault, rows[fault.name]))
    return "\n".join(parts)


def _others(counts: list[dict[str, Any]]) -> str:
    """What the libraries and other tools say of the same trainings."""
    rows = [
        [
            each["tool"],
            str(each["takes"]),
            str(each["names"]),
            "{wrong} of {correct}".format_map(each),
        ]
        for each in counts
    ]
    head = ["tool", "faults that it can take", "names the fault", "speaks of correct set-ups"]
    return (
        "\nThe libraries warn of some of these faults themselves, and other tools look at data, "
        "templates or a step. Most of them were made for something else, and each can take only "
        "part of the trainings. *Names the fault* is a generous count, by one pattern of words for "
        "each kind of fault.\n\n" + table(head, rows)
    )


def _fault(fault: Any, row: dict[str, str]) -> str:
    """One fault of the page."""
    links = ", ".join(
        f"[{issue}](https://github.com/{issue.replace('#', '/issues/')})" for issue in fault.issues
    )
    title = fault.name.replace("-", " ").capitalize()
    lines = [f"### {title}\n", f"{_plain(fault.story)} Reports: {links}.\n"]
    if row["proof"]:
        lines.append(f"*Measured here:* {_plain(row['proof'])}\n")
    if row["found"] == "yes":
        lines.append(f"*preflight:* {_plain(row['text'])}\n")
        lines.append(f"*Fix:* {_plain(row['fix'])}\n")
    else:
        lines.append("*preflight* does not find it.\n")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text that may hold marks of a template, which Markdown would take for its own."""
    return re.sub(r"([<>|*_\[\]{}#$\\~])", r"\\\1", text)


def _replayed() -> list[dict[str, Any]]:
    """The predictions beside what others measured."""
    with (ROOT / "benchmarks" / "results" / "replay.csv").open(encoding="utf-8") as file:
        return [
            {**row, **json.loads(row["settings"])}
            for row in csv.DictReader(file)
            if row["source"].startswith("fitcheck_t4 ")
        ]


def replay_table() -> str:
    """A row for each measured training."""
    rows = [
        [
            row["source"].split()[1],
            row["model"].split("/")[1],
            row["quantization"] or "16 bits",
            row["attention"],
            f"{row['batch_size']} × {row['seq_len']:,}",
            *(
                cell
                for kind in ("allocated", "reserved")
                for cell in (
                    f"{float(row[f'measured_{kind}_mb']):,.0f}",
                    f"{float(row[f'{kind}_error_percent']):+.1f}%",
                )
            ),
        ]
        for row in _replayed()
    ]
    head = ["file", "model", "weights", "attention", "examples × tokens", "allocated (MB)"]
    return table([*head, "predicted", "reserved (MB)", "predicted"], rows)


def adapters_table() -> str:
    """A row for each PEFT method that was measured on an L40S."""
    with (ROOT / "benchmarks" / "results" / "replay.csv").open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == "peft_metamathqa_l40s"]
    rows = []
    for row in found:
        adapter = json.loads(row["settings"])["peft"]
        rank = f", rank {adapter['r']}" if "r" in adapter else ""
        cells = [adapter["peft_type"] + rank]
        for kind in ("allocated", "reserved"):
            error = row[f"{kind}_error_percent"]
            cells.append(f"{float(row[f'measured_{kind}_mb']):,.0f}")
            cells.append(f"{float(error):+.1f}%" if error else "not predicted")
        rows.append(cells)
    head = ["adapter", "allocated after a step (MB)", "predicted"]
    return table([*head, "reserved, 99th percentile (MB)", "predicted"], rows)


def replay_plot() -> str:
    """Predicted against measured, drawn beside the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2))
    axis = figure.subplots()
    rows = _replayed()
    most = 0.0
    for kind, colour, marker in (("allocated", "#0072B2", "o"), ("reserved", "#D55E00", "x")):
        measured = [float(row[f"measured_{kind}_mb"]) / 1000 for row in rows]
        predicted = [float(row[f"predicted_{kind}_mb"]) / 1000 for row in rows]
        axis.scatter(measured, predicted, color=colour, marker=marker, label=kind, zorder=3)
        most = max(most, *measured, *predicted)
    axis.plot([0, 1.05 * most], [0, 1.05 * most], color="0.6", linewidth=1)
    axis.set_xlabel("measured on a Tesla T4 by fitcheck-llm (GB)")
    axis.set_ylabel("predicted (GB)")
    axis.legend()
    figure.tight_layout()
    SOURCE.mkdir(parents=True, exist_ok=True)
    figure.savefig(SOURCE / "replay.svg")
    alt = f"Predicted against measured peaks of {len(rows)} trainings: the points lie on the line"
    return f"![{alt}](replay.svg)"


GENERATED: dict[str, Callable[[], str]] = {
    "notebooks": notebook_table,
    "contents": toctrees,
    "timings": timings,
    "timing-machines": timing_machines,
    "replay": replay_table,
    "architectures": architecture_table,
    "silent-faults": silent_faults,
    "replay-adapters": adapters_table,
    "replay-plot": replay_plot,
    "calculator": calculator.html,
}


def filled(text: str) -> str:
    """A text with what its marks stand for put in."""
    return _MARK.sub(lambda match: GENERATED[match[1]](), text)


# --- pages that are generated as a whole ---------------------------------------------------------


def card_pages() -> None:
    """The cards of the course's own data and models, and the catalogue of all others."""
    for origin, page in cards().items():
        put(page, relink((ROOT / origin).read_text(), origin, page))
    put(
        "cards/index.md",
        f"""# Data and models

The course's own datasets and base models have a card each. They come with the repository.

{card_list()}

## Which model a notebook takes

A notebook asks for a *role*; the machine's *tier* says which model plays it. Of several models, the
first that is within reach is taken. From `course_utils/models/catalog.toml`, which
`python -m course_utils catalog` prints.

{role_table()}

## Models from the hub

{model_table()}

## Datasets from the hub

{dataset_table()}
""",
    )


def modules() -> dict[str, list[str]]:
    """The package's public modules, by the page that they share."""
    groups: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",) or parts == ("__main__",):
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            groups.setdefault(parts[0], []).append(".".join(("course_utils", *parts)))
    return groups


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z`])", first)[0].replace("|", "\\|")


def api_pages() -> None:
    """A page for each module or subpackage of `course_utils`, from the docstrings."""
    rows = []
    for group, names in modules().items():
        lines = [f"# {group}", ""]
        for name in names:
            if len(names) > 1:
                lines += [f"## `{name}`", ""]
            # The names of packages lie in private modules.
            package = ROOT.joinpath(*name.split(".")).is_dir()
            own = "   :imported-members:" if package else ""
            lines += ["```{eval-rst}", f".. automodule:: {name}", own, "```", ""]
        put(f"api/{group}.md", "\n".join(lines))
        rows.append([f"[{group}]({group}.md)", summary(names[0])])
    listed = "\n".join(f"{group}.md" for group in modules())
    put(
        "api/index.md",
        f"""# `course_utils`

{summary("course_utils")} The notebooks show the libraries' own interfaces; this package holds what
would distract from them.

{table(["module", "what it is for"], rows)}

`from course_utils import` gives the names that notebooks use most: {top_names()}.

```{{toctree}}
:hidden:

{listed}
```
""",
    )


def top_names() -> str:
    """The functions that the package itself gives."""
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    found = [
        alias.name
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    ]
    return ", ".join(f"`{name}`" for name in sorted(found))


def slides_page() -> None:
    """The deck, where it has been built; else how to build it."""
    pdf = DECK.with_suffix(".pdf").exists()
    if DECK.exists():
        for path in (DECK, DECK.with_suffix(".pdf")):
            if path.exists():
                copy(path, SOURCE / "_extra" / "slides" / path.name)
        # In the deck the notebooks are beside the course's folder; here they are pages.
        deck = SOURCE / "_extra" / "slides" / DECK.name
        pages = re.sub(
            r'href="\.\./\.\./notebooks/([^"]+)\.ipynb"',
            r'href="../notebooks/\1.html"',
            deck.read_text(encoding="utf-8"),
        )
        deck.write_text(pages, encoding="utf-8")
        text = (
            "The slides follow the notebooks, and their figures are the notebooks' own.\n\n"
            '<p><a href="slides/deck.html">Open the slides</a></p>'
            + ('<p><a href="slides/deck.pdf">The same as a PDF</a></p>' if pdf else "")
        )
    else:
        text = (
            "The slides were not built when this site was. From the repository's folder:\n\n"
            "```console\n$ make slides\n$ make site\n```\n\n"
            "Their figures are those of the notebooks, which are all on this site."
        )
    put("slides.md", f"# Slides\n\n{text}\n")


def gather() -> None:
    """Put the site's source together, from scratch."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / "_extra").mkdir(parents=True)
    for origin, page in pages().items():
        if origin.endswith(".md") and origin not in cards():
            put(page, filled(relink((ROOT / origin).read_text(), origin, page)))
    for page, notebook in saved().items():
        made = shown(notebook, Path(page).stem)
        for cell in made.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(cell.source, page, page)
        put(page, nbformat.writes(made))
    (SOURCE / "_extra" / "atlas.js").write_text(calculator.script(), encoding="utf-8")
    card_pages()
    api_pages()
    slides_page()


# --- building ------------------------------------------------------------------------------------


def requirements() -> list[str]:
    """What it takes to build the site, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]["site"]


def missing() -> list[str]:
    """The requirements that this environment does not have as they are pinned."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    found = []
    for line in requirements():
        name = Requirement(line).name
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version != pinned[canonicalize_name(name)]:
            found.append(line)
    return found


def build() -> int:
    """Build the gathered pages; returns Sphinx's status, 1 where there was a warning."""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-c", str(DOCS), "-q"]
    # All pages anew (-E): what an interrupted build leaves behind brings false warnings, and using
    # it saves no time.
    command += ["-W", "--keep-going", "-E", "-d", str(ROOT / "build" / "site-doctrees")]
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    status = subprocess.run(
        [*command, str(SOURCE), str(SITE)], cwd=ROOT, env={**os.environ, **quiet}
    ).returncode
    for page in saved():  # what the download button gives is the notebook itself
        copy(ROOT / page, SITE / "_sources" / page)
    return status


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = ("build", "gather", "install")
    parser.add_argument("command", nargs="?", default="build", choices=commands)
    command = parser.parse_args(argv).command
    if command != "gather" and (lacking := missing()):
        print(f"Installing what builds the site: {', '.join(lacking)}", flush=True)
        bootstrap.install(Path(sys.executable), "--constraint", "constraints.txt", *lacking)
    if command == "install":
        return 0
    gather()
    if command == "gather":
        return 0
    status = build()
    if status == 0:
        print(f"The site: {(SITE / 'index.html').relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
