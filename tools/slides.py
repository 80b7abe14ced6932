"""Build the slides: fill `slides/deck.md` with what was measured, then make a page and a PDF of it.

    slides.py build         build/slides/deck.html and deck.pdf; status 1 if a slide has a fault:
                            too many words, a raw list, too large, a label clipped or overlapped
    slides.py fill          only the filled Markdown, build/slides/deck.md
    slides.py png [N ...]   slides as build/slides/png/NN.png, all or some, to look at

`{{ name }}` in the deck is a value of `slide_values.py`, `{{ name:.0% }}` the same through Python's
`format`. `pictures/NAME.svg` is drawn by `slide_pictures.py`, `figures/NAME.png` was made by a
notebook. A slide with `<!-- when: PATTERN -->` waits until a file of the course matches. The last
comment of a slide is what to say, and begins with how long: `<!-- 3 min. … -->`.

Marp (https://marp.app) makes the page, with node and the packages of `slides/package.json`; for the
PDF it takes a browser, and to measure whether a slide overflows one of Chromium's family.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import settings
from tools.saved_notebooks import NotFound
from tools.slide_pictures import PICTURES, OutsideAxesError
from tools.slide_values import resolve

ROOT = Path(__file__).resolve().parent.parent


SLIDES = ROOT / "slides"
DECK = SLIDES / "deck.md"
FIGURES = SLIDES / "figures"
MODULES = SLIDES / "node_modules"
BUILD = ROOT / "build" / "slides"
OLDEST_NODE = 18
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
PLACES = (  # where browsers are that are not on the path
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
FONTS = (
    ("Source Sans 3", "source-sans-3", 400, "normal"),
    ("Source Sans 3", "source-sans-3", 400, "italic"),
    ("Source Sans 3", "source-sans-3", 600, "normal"),
    ("Source Sans 3", "source-sans-3", 700, "normal"),
    ("Source Code Pro", "source-code-pro", 400, "normal"),
    ("Source Code Pro", "source-code-pro", 600, "normal"),
)

MOST_WORDS = 60  # on a slide, code not counted
PLACEHOLDER = re.compile(r"\{\{ *(?P<name>[\w.]+)(?::(?P<spec>[^{}]*?))? *\}\}")
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)\s]+)\)")
_COMMENT = re.compile(r"<!--(.*?)-->", re.S)
_SETTING = re.compile(r"\s*(_?[a-z]\w*): ?(.*?)\s*")
_RAW = re.compile(  # a Python list or dict of numbers or texts
    r"""[\[(](?:'[^']*'|-?[\d.]+|None|True|False)(?:,\s*(?:'[^']*'|-?[\d.]+|None|True|False))+[\])]"""
    r"""|\[(?:'[^']*'|-?[\d.]+)\](?!\()|\{(?:'[^']*'|\d+):"""
)
_NO_WORDS = re.compile(  # code, comments, formulas, pictures, tags, the addresses of links
    r"^```.*?^```$|<!--.*?-->|<code>.*?</code>|`[^`\n]+`|\$\$.+?\$\$|\$[^$\n]+\$|!\[[^\]]*\]\([^)]*\)"
    r"|(?<=\])\([^)]*\)|</?\w[^>]*>",
    re.S | re.M,
)
_SPEECH = re.compile(r"(?P<minutes>\d+) min(?P<hands_on> hands-on)?\.\s+(?P<words>.+)", re.S)


class SlidesError(Exception):
    """What is wrong with the deck, or missing on this machine, in a line."""


# --------------------------------------------------------------------------------------- the deck


@dataclass(frozen=True)
class Slide:
    """A slide of `deck.md`: its Markdown with Marp's settings, and what is to be said."""

    text: str
    notes: str
    when: str
    part: str
    kind: str

    @property
    def title(self) -> str:
        """Its heading."""
        found = re.search(r"^# (.+)$", self.text, re.M)
        return found[1] if found else self.text.strip()[:40]

    @property
    def waits(self) -> bool:
        """Whether it is about a file that is not there yet."""
        return bool(self.when) and not any(ROOT.glob(self.when))

    def speech(self) -> tuple[int, bool, str]:
        """Its minutes, whether they are spent in a notebook, and what is to be said.

        Raises:
            SlidesError: what is to be said does not begin with the minutes.
        """
        found = _SPEECH.fullmatch(fill(self.notes))
        if not found:
            raise SlidesError(
                f"slide “{self.title}”: its last comment does not begin with “N min.”"
            )
        return int(found["minutes"]), bool(found["hands_on"]), found["words"]


def read_deck(text: str | None = None) -> tuple[str, list[Slide]]:
    """The front matter and the slides of `deck.md`, or of another text, nothing filled in."""
    _, front, body = (text or DECK.read_text(encoding="utf-8")).split("---\n", 2)
    found, part = [], ""
    for markdown in re.split(r"\n---\n", body):
        notes = when = kind = ""
        kept = markdown
        for comment in _COMMENT.finditer(markdown):
            setting = _SETTING.fullmatch(comment[1])
            name, value = setting.groups() if setting else ("", "")
            if not name:
                notes = comment[1].strip()
            elif name == "when":
                when = value
            elif name == "header":
                part = value.strip('"')
            elif name == "_class":
                kind = value
            if name in ("", "when"):
                kept = kept.replace(comment[0], "")
        found.append(Slide(kept.strip(), notes, when, part, kind))
    return front, found


def shown(text: str | None = None) -> list[Slide]:
    """The slides that do not wait."""
    return [slide for slide in read_deck(text)[1] if not slide.waits]


def fill(text: str) -> str:
    """A text with every placeholder replaced by its value.

    Raises:
        SlidesError: a value cannot be found; the message names it and its source.
    """

    def value(match: re.Match[str]) -> str:
        try:
            found, spec = resolve(match["name"]), match["spec"]
            if not isinstance(found, (str, int, float)):
                raise TypeError(f"a {type(found).__name__} is no text for a slide")
            if spec and isinstance(found, str):
                found = float(found.replace(",", ""))
            return format(found, spec or "")
        except (NotFound, TypeError, ValueError) as error:
            raise SlidesError(f"{match[0]} in {DECK.name}: {error}") from error

    return PLACEHOLDER.sub(value, text)


def _drawn(match: re.Match[str]) -> str:
    """A picture of our own as a part of the page, so that it has the page's fonts."""
    alt, path = match["alt"], Path(match["path"])
    if path.parent.name != "pictures":
        return match[0]
    if path.stem not in PICTURES:
        raise SlidesError(f"no picture {path.stem!r}; there are {', '.join(sorted(PICTURES))}")
    try:
        svg = PICTURES[path.stem]()
    except OutsideAxesError as error:
        raise SlidesError(f"picture {path.stem!r}: {error}") from error
    return f'<figure role="img" aria-label="{html.escape(alt)}">\n{svg}\n</figure>'


def filled(slide: Slide) -> str:
    """A slide as Marp takes it."""
    minutes, hands_on, words = slide.speech()
    text = IMAGE.sub(_drawn, fill(slide.text))
    text = text.replace("**Guess:**", '<b class="guess">Guess</b>')
    # In brackets, so that Marp cannot take “3 min. Ask: …” for a setting.
    time = f"[{minutes} min{' hands-on' if hands_on else ''}]"
    return f"{text}\n\n<!--\n{time} {words}\n-->"


def filled_deck(text: str | None = None) -> str:
    """The deck as Marp takes it: values filled in, slides that wait left out.

    Raises:
        SlidesError: a value, a picture or a slide's minutes are missing.
    """
    front, _ = read_deck(text)
    return f"---\n{front}---\n\n" + "\n\n---\n\n".join(map(filled, shown(text))) + "\n"


def words(text: str) -> int:
    """How many words of two letters and more a filled slide has, code and pictures not counted."""
    return len(re.findall(r"[^\W\d_][\w’'-]+", html.unescape(_NO_WORDS.sub(" ", text))))


def faults(text: str | None = None) -> list[str]:
    """Slides with too many words, and values that are raw lists or dicts, each in a line."""
    found = []
    for slide in shown(text):
        seen = fill(slide.text)
        if (count := words(seen)) > MOST_WORDS:
            found.append(f"slide “{fill(slide.title)}” has {count} words, more than {MOST_WORDS}")
        if raw := _RAW.search(html.unescape(_NO_WORDS.sub(" ", seen))):
            found.append(f"slide “{fill(slide.title)}” shows a raw Python value, {raw[0]}")
    return found


def blocks(text: str | None = None) -> list[tuple[str, int, int]]:
    """The slides up to each hands-on: its notebook's number, the minutes of talk, and of work.

    The slides after the last notebook have no number.
    """
    found, talk = [], 0
    for slide in shown(text):
        minutes, hands_on, _ = slide.speech()
        if hands_on:
            number = re.search(r"nb\.([\d.]+)\.link", slide.title)
            found.append((number[1] if number else "", talk, minutes))
            talk = 0
        else:
            talk += minutes
    return [*found, ("", talk, 0)] if talk else found


def timetable(text: str | None = None) -> str:
    """The minutes of each part, of talking and in notebooks, and what waits."""
    parts: dict[str, list[int]] = {}
    for slide in shown(text):
        minutes, hands_on, _ = slide.speech()
        counts = parts.setdefault(slide.part or "Welcome and thanks", [0, 0, 0])
        counts[0] += 1
        counts[2 if hands_on else 1] += minutes
    parts["all, in minutes"] = [sum(counts) for counts in zip(*parts.values(), strict=True)]
    width = max(map(len, parts))
    lines = [f"{'':<{width}}  slides  talk  hands-on"]
    lines += [
        f"{name:<{width}}  {slides:>6}  {talk:>4}  {work or '':>8}".rstrip()
        for name, (slides, talk, work) in parts.items()
    ]
    waiting = Counter(slide.when for slide in read_deck(text)[1] if slide.waits)
    lines += [f"Not shown, as there is no {what}: {n} of the deck" for what, n in waiting.items()]
    return "\n".join(lines)


# --------------------------------------------------------------------------- node, Marp, a browser


def browser() -> str | None:
    """A browser of Chromium's family, or None."""
    wanted = [os.environ.get("CHROME_PATH", ""), *BROWSERS, *PLACES]
    return next((found for name in wanted if name and (found := shutil.which(name))), None)


def need_packages() -> None:
    """Install what `slides/package.json` names where it is missing or of another version.

    Raises:
        SlidesError: node is missing or too old, or npm failed.
    """
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise SlidesError(
                f"{program} was not found. The slides are built by Marp, which needs Node.js "
                f"{OLDEST_NODE} or later: https://nodejs.org"
            )
    version = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        raise SlidesError(
            f"Node.js {version.strip()} is too old: {OLDEST_NODE} or later is needed."
        )
    lock, stamp = SLIDES / "package-lock.json", MODULES / ".course-installed"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return
    print("Installing Marp into slides/node_modules: about 140 MB, once.", flush=True)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"],
        cwd=SLIDES,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SlidesError(f"npm ci in slides/ failed:\n{done.stdout}{done.stderr}".rstrip())
    stamp.write_bytes(lock.read_bytes())


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _theme() -> str:
    """The theme, with its fonts inside."""
    faces = []
    for family, package, weight, style in FONTS:
        file = (
            MODULES / "@fontsource" / package / "files" / f"{package}-latin-{weight}-{style}.woff2"
        )
        faces.append(
            f'@font-face {{ font-family: "{family}"; font-weight: {weight}; font-style: {style}; '
            f'src: url("{_data_uri(file, "font/woff2")}") format("woff2"); }}'
        )
    theme = (SLIDES / "theme.css").read_text(encoding="utf-8")
    return theme.replace('@import "fonts.css";', "\n".join(faces))


def _marp(source: Path, target: Path, *options: str) -> None:
    """Run Marp on filled Markdown."""
    # Emoji as pictures would be fetched from a network, and none is needed.
    settings = {"emoji": {"shortcode": False, "unicode": False}, "html": True, "script": True}
    config = source.with_name("marp.config.json")
    config.write_text(json.dumps({"options": settings, "html": True}))
    environment = dict(os.environ)
    if found := browser():
        environment["CHROME_PATH"] = found
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        environment["CHROME_NO_SANDBOX"] = "1"  # for root, Chromium's sandbox does not start
    done = subprocess.run(
        [
            "node",
            str(MODULES / "@marp-team" / "marp-cli" / "marp-cli.js"),
            str(source),
            "--output",
            str(target),
            "--config-file",
            str(config),
            "--theme-set",
            str(source.with_name("theme.css")),
            "--allow-local-files",
            "--no-stdin",
            *options,
        ],
        cwd=BUILD,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SlidesError(f"Marp failed:\n{done.stderr.strip()}")


def _prepare(links: str) -> Path:
    """Filled Markdown in the build folder, with its theme and figures; returns its path.

    Args:
        links: what the course's folder is called from where the slides are read; if it is empty,
            links into that folder become their words alone.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    deck = filled_deck()
    for _, path in set(IMAGE.findall(deck)):
        deck = deck.replace(f"]({path})", f"]({_data_uri(SLIDES / path, 'image/png')})")
    source = BUILD / "deck.md"
    if links:
        deck = deck.replace("](../", f"]({links}/")
    else:
        deck = re.sub(r"(?<!!)\[([^\[\]]+)\]\(\.\./[^)\s]*\)", r"\1", deck)
    source.write_text(deck, encoding="utf-8")
    (BUILD / "theme.css").write_text(_theme(), encoding="utf-8")
    return source


def build_html(template: str = "bespoke", name: str = "deck.html") -> Path:
    """The page: one file that holds all it needs."""
    need_packages()
    target = BUILD / name
    _marp(_prepare("../.."), target, "--template", template)
    return target


def build_pdf() -> Path:
    """The PDF, with what is to be said as notes. Its links go to the repository, if it is set."""
    need_packages()
    target = BUILD / "deck.pdf"
    address = settings.repository()
    links = f"{address}/blob/main" if address else ""
    _marp(_prepare(links), target, "--pdf", "--pdf-notes", "--pdf-outlines")
    return target


# ---------------------------------------------------------------------------------- does it fit?


@dataclass(frozen=True)
class Measured:
    """A slide in a browser: by how many pixels it overflows, and how large its type is."""

    title: str
    over: float
    what: str
    smallest: float
    figure: float  # by how much a figure from a notebook is enlarged; very large without one
    labels: list[str]  # what is wrong with the labels of its drawn picture


def measure() -> list[Measured]:
    """Every slide as a browser lays it out."""
    return laid_out(build_html("bare", "bare.html"))


def laid_out(page: Path) -> list[Measured]:
    """The slides of a page, which is written anew with the script that measures.

    Raises:
        SlidesError: there is no browser, or it does not answer.
    """
    program = browser()
    if not program:
        raise SlidesError("no Chromium, Chrome or Edge was found")
    script = (SLIDES / "measure.js").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
    page.write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                f"--user-data-dir={profile}",
                "--window-size=1280,720",
                "--virtual-time-budget=10000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
        )
        # A child of the browser may still be writing its profile; then it is removed with the rest.
        with contextlib.suppress(OSError):
            shutil.rmtree(profile)
            Path(profile).mkdir()
    found = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.S)
    if not found:
        raise SlidesError(f"{program} did not lay out the slides:\n{done.stderr[-2000:]}")
    return [Measured(**row) for row in json.loads(html.unescape(found[1]))]


def png(numbers: Sequence[int]) -> None:
    """Slides as pictures."""
    need_packages()
    folder = BUILD / "png"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _marp(_prepare("../.."), folder / "slide.png", "--images", "png")
    for path in sorted(folder.glob("slide.*")):
        number = int(re.findall(r"\d+", path.name)[0])
        if numbers and number not in numbers:
            path.unlink()
        else:
            path.rename(folder / f"{number:02}.png")
    print(f"{folder.relative_to(ROOT)}/*.png")


def build() -> int:
    """Page, PDF, timetable; 1 if a slide has a fault."""
    wrong = faults()
    page = build_html()
    print(f"{page.relative_to(ROOT)}: {page.stat().st_size / 1e6:.1f} MB, press P for the notes")
    if browser() or shutil.which("firefox"):
        pdf = build_pdf()
        print(f"{pdf.relative_to(ROOT)}: {pdf.stat().st_size / 1e6:.1f} MB")
    else:
        print("No Chromium, Chrome, Edge or Firefox was found: no PDF. CHROME_PATH may name one.")
    if browser():
        for i, slide in enumerate(measure(), start=1):
            if slide.over > 1:
                wrong.append(
                    f"slide {i} “{slide.title}” is {slide.over} px too large: {slide.what}"
                )
            wrong += [f"slide {i} “{slide.title}”: {label}" for label in slide.labels]
    else:
        print("Whether a slide overflows was not looked at: that takes a Chromium, Chrome or Edge.")
    print(f"\n{timetable()}")
    print("\n".join(["", *wrong]))
    return bool(wrong)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "fill", "png"))
    parser.add_argument("slides", nargs="*", type=int, metavar="N")
    args = parser.parse_args(argv)
    try:
        if args.command == "build":
            return build()
        if args.command == "png":
            png(args.slides)
        else:
            BUILD.mkdir(parents=True, exist_ok=True)
            (BUILD / "deck.md").write_text(filled_deck(), encoding="utf-8")
            print((BUILD / "deck.md").relative_to(ROOT))
    except SlidesError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
