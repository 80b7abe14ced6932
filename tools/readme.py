"""The README's pictures, its table of notebooks and its count of faults, from what was saved.

readme.py build     write docs/pictures/*.svg and the README's figures anew
readme.py check     say which of them is not what it would be; status 1 if any
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from course_utils.display import BLUE
from tools import site
from tools.saved_notebooks import NotFound, notebook
from tools.slide_pictures import INK, LINE, PALE, WIDTH, Drawing

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURES_DIR = ROOT / "docs" / "pictures"
FAULTS = ROOT / "benchmarks" / "results" / "faults.json"
_TABLE = re.compile(r"(<!-- notebooks -->\n).*?(<!-- end of notebooks -->)", re.S)
_FAULTS = re.compile(r"(<!-- faults -->).*?(<!-- end of faults -->)", re.S)
_LETTER = 11.0  # of the width of a letter
_LINE = 27


# --- pictures ------------------------------------------------------------------------------------


def framed(drawing: Drawing) -> str:
    """A drawing on a ground of its own, so that it can be read on a dark page too."""
    head, rest = drawing.svg().split("\n", 1)
    head = head.replace("<svg ", '<svg font-family="Helvetica, Arial, sans-serif" ')
    ground = f'<rect width="{WIDTH}" height="{drawing.height}" rx="8" fill="white"/>'
    return f"{head}\n{ground}\n{rest}\n"


def letters(d: Drawing, x: float, y: float, text: str, fill: str | None, ink: str = INK) -> float:
    """Letters of one width in a row, on a ground if one is given; the place after them."""
    width = len(text) * _LETTER
    if fill:
        d.box(x, y - _LINE / 2 + 1, width, _LINE - 2, fill, round_=3)
    d.fixed(x, y, text, width, 18, ink)
    return x + width


def pieces(said: str) -> Iterator[tuple[str, str]]:
    """A drawn batch in its plain form, in parts: what becomes of it, and the text."""
    for part in re.findall(r"\[[^\]]*\]|~[^~]*~|[^\[\]~]+", said):
        if part.startswith("["):
            yield "trained", part[1:-1]
        elif not part.startswith("~"):
            yield "masked", part


def mask() -> str:
    """Two examples of notebook 03: what a training is about, beside what it only reads."""
    ways = {
        "Texts: every token is learned": "mask-texts",
        "Prompt and completion: only the answer is": "mask-completions",
    }
    d = Drawing(380)
    y = 34.0
    for title, cell in ways.items():
        said = notebook("03").said(cell)
        found = re.search(r"^Example 1:[^\n]*\n(.*?)\n*(?=^Example 2:)", said, re.M | re.S)
        if not found:
            raise NotFound(f"{cell}: no first example")
        d.text(30, y, title, 22, anchor="start", bold=True)
        y += 34
        for kind, text in pieces(found[1].rstrip().removesuffix("\n]")):
            fill, ink = (BLUE, "white") if kind == "trained" else (PALE, "#555555")
            for number, line in enumerate(text.split("\n")):
                if number:
                    x, y = 30.0, y + _LINE
                elif kind == "masked" or y == 68:
                    x = 30.0
                for row, part in enumerate(textwrap.wrap(line, 98) if len(line) > 98 else [line]):
                    if row:
                        x, y = 30.0, y + _LINE
                    if part:
                        x = letters(d, x, y, part, fill, ink)
        y += 44
    for number, (name, fill, ink) in enumerate(
        (("trained on", BLUE, "white"), ("masked, only read", PALE, "#555555"))
    ):
        d.label(930, 18 + 42 * number, 200, 34, name, fill, ink, 18, LINE)
    d.height = y - 24
    return framed(d)


def before_after() -> str:
    """Sentences of notebook 03.2 that no training has seen, before and after it."""
    found = notebook("03.2").table("replies")
    rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
    right = [row for row in rows if row["after"] == row["wanted"]]
    wrong = [row for row in rows if row not in right]
    columns = {"Yoda": ("Yoda's line", 0), "before": ("Before", 345), "after": ("After", 755)}
    d = Drawing(0)
    for title, x in columns.values():
        d.text(x + 30, 34, title, 22, anchor="start", bold=True)
    y = 78.0
    for row in [*right[:3], *wrong[-1:]]:
        lines = {
            name: textwrap.wrap(textwrap.shorten(row[name], 92, placeholder=" …"), width)
            for name, width in zip(columns, (36, 46, 36), strict=True)
        }
        d.grid((30, y - 20), (WIDTH - 30, y - 20))
        for name, (_, x) in columns.items():
            missed = name == "after" and row["after"] != row["wanted"]
            for number, line in enumerate(lines[name]):
                ink = "#666666" if name == "before" else INK
                mark = "✗ " if missed and not number else ""
                d.text(x + 30, y + 25 * number, mark + line, 19, ink, anchor="start")
        y += 25 * max(map(len, lines.values())) + 25
    d.height = y - 10
    return framed(d)


PICTURES: dict[str, Callable[[], str]] = {"mask": mask, "before_after": before_after}


# --- the table of notebooks ----------------------------------------------------------------------


def minutes(run: dict[str, float] | None) -> str:
    """A run's minutes, as a table says them."""
    if not run:
        return site.UNMEASURED
    return f"{run['minutes']:.0f}" if run["minutes"] >= 2.95 else f"{run['minutes']:.1f}"


def notebook_table(text: str) -> str:
    """The table with its minutes by tier; tiers that nobody has measured share a column.

    Args:
        text: the table as it is: what is said of each notebook is kept.

    Raises:
        SystemExit: a notebook has no row, or a row no notebook.
    """
    said = dict(re.findall(r"^\| \[[^\]]+\]\((notebooks/[^)]+)\) \| ([^|]+) \|", text, re.M))
    known = site.saved()
    if said.keys() != known.keys():
        odd = ", ".join(sorted(said.keys() ^ known.keys()))
        raise SystemExit(f"{README.name}: the table of notebooks and notebooks/ differ in {odd}")
    runs = site.measured()
    tiers = [t for t in site.TIERS if any(t in by_tier for by_tier in runs.values())]
    rest = [tier for tier in site.TIERS if tier not in tiers]
    rows = []
    for page, saved in known.items():
        by_tier = runs.get(page, {})
        cells = [minutes(by_tier.get(tier)) for tier in tiers]
        cells += [site.UNMEASURED] if rest else []
        rows.append([f"[{site.title(saved).replace(' · ', ' ', 1)}]({page})", said[page], *cells])
    heads = [f"minutes, `{tier}`" for tier in tiers]
    heads += [", ".join(f"`{tier}`" for tier in rest)] if rest else []
    return site.table(["", "you learn", *heads], rows)


def faults() -> str:
    """How many faults were tried and survived, as `make faults` has recorded."""
    parts = json.loads(FAULTS.read_text(encoding="utf-8")).values()
    tried, survived = (sum(part[name] for part in parts) for name in ("tried", "survived"))
    last = max(parts, key=lambda part: part["date"])
    return (
        f"{tried:,} faults tried, {survived:,} survived ({last['date']}, Python {last['python']}, "
        f"{last['system']}, {last['cores']} cores)."
    )


def filled(text: str) -> str:
    """The README with its table and its count of faults as they ought to be."""
    if not _TABLE.search(text) or not _FAULTS.search(text):
        raise SystemExit(f"{README.name}: the marks of its table, or of its faults, are not there")
    text = _TABLE.sub(lambda match: f"{match[1]}{notebook_table(match[0])}\n{match[2]}", text)
    return _FAULTS.sub(lambda match: f"{match[1]}{faults()}{match[2]}", text)


def stale() -> list[str]:
    """The files that are not what they would be."""
    text = README.read_text(encoding="utf-8")
    found = [README.name] if filled(text) != text else []
    for name, draw in PICTURES.items():
        path = PICTURES_DIR / f"{name}.svg"
        if not path.exists() or path.read_text(encoding="utf-8") != draw():
            found.append(path.relative_to(ROOT).as_posix())
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "check"))
    if parser.parse_args(argv).command == "check":
        for name in stale():
            print(f"{name} is not what the saved notebooks say: python -m tools.readme build")
        return int(bool(stale()))
    PICTURES_DIR.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (PICTURES_DIR / f"{name}.svg").write_text(draw(), encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
