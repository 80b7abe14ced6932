"""The slides' own pictures, drawn as SVG from what the course's code and results say.

`PICTURES["lora"]()` is the SVG that stands for `pictures/lora.svg` in `slides/deck.md`. The type is
large and the colours are those of `course_utils.display`.
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Callable, Sequence

from course_utils.display import BLUE, GREEN, GREY, ORANGE, RED, SKY
from course_utils.results import whole_rows
from course_utils.scoring import Interval, bootstrap_interval
from tools.saved_notebooks import NotFound, Saved, notebook
from tools.slide_values import RESULTS, resolve, tables_before

INK, LINE, PALE = "#1b1b1b", "#8c8c8c", "#ececec"
WIDTH = 1160


class OutsideAxesError(ValueError):
    """A value that a picture's axis does not reach."""


class Axis:
    """Places along one side of a plot. A value that the side does not reach is an error."""

    def __init__(
        self, low: float, high: float, start: float, end: float, log: bool = False
    ) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        """The place of a value.

        Raises:
            OutsideAxesError: it lies outside the axis.
        """
        if not self.low <= value <= self.high:
            raise OutsideAxesError(f"{value:g} lies outside {self.low:g} to {self.high:g}")
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share


class Drawing:
    """Shapes and texts, with the middle of a text where one asks for it."""

    def __init__(self, height: float) -> None:
        self.height = height
        self._parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str,
        line: str = "none",
        round_: float = 6,
    ) -> None:
        """A rectangle from its upper left corner."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{round_}" '
            f'fill="{fill}" stroke="{line}" stroke-width="2"/>'
        )

    def circle(self, x: float, y: float, r: float, fill: str, line: str) -> None:
        """A circle around its middle."""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{fill}" stroke="{line}" '
            'stroke-width="3"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 24,
        fill: str = INK,
        anchor: str = "middle",
        bold: bool = False,
    ) -> None:
        """Lines of text; `y` is the middle of all of them."""
        lines = text.split("\n")
        for i, line in enumerate(lines):
            base = y + size * 0.35 + (i - (len(lines) - 1) / 2) * size * 1.15
            weight = ' font-weight="700"' if bold else ""
            self._parts.append(
                f'<text x="{x:.1f}" y="{base:.1f}" font-size="{size}" fill="{fill}" '
                f'text-anchor="{anchor}"{weight}>{html.escape(line)}</text>'
            )

    def fixed(self, x: float, y: float, text: str, width: float, size: float, fill: str) -> None:
        """Letters of one width, as in code, that take a given width whatever font there is."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y + size * 0.35:.1f}" font-size="{size}" fill="{fill}" '
            f'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" textLength="{width:.1f}" '
            f'xml:space="preserve" lengthAdjust="spacingAndGlyphs">{html.escape(text)}</text>'
        )

    def label(
        self, x: float, y: float, w: float, h: float, text: str, fill: str, ink: str = INK,
        size: float = 24, line: str = "none",
    ) -> None:  # fmt: skip
        """A box with a text in its middle."""
        self.box(x, y, w, h, fill, line)
        self.text(x + w / 2, y + h / 2, text, size, ink)

    def grid(self, *points: tuple[float, float]) -> None:
        """A thin pale line."""
        self.path(*points, arrow=False, colour="#d4d4d4", width=1.5)

    def path(
        self,
        *points: tuple[float, float],
        arrow: bool = True,
        colour: str = INK,
        width: float = 3,
    ) -> None:
        """A line through points, with a head at its end."""
        way = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        head = ' marker-end="url(#head)"' if arrow else ""
        self._parts.append(
            f'<path d="M {way}" fill="none" stroke="{colour}" stroke-width="{width}"{head}/>'
        )

    def dashed(self, *points: tuple[float, float], colour: str = LINE) -> None:
        """A dashed line through points."""
        way = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(
            f'<path d="M {way}" fill="none" stroke="{colour}" stroke-width="2" '
            'stroke-dasharray="6 6"/>'
        )

    def across(
        self, axis: Axis, ticks: Sequence[float], y0: float, y1: float, form: str = "g"
    ) -> None:
        """Upright grid lines at some values, which stand below them."""
        for value in ticks:
            self.grid((axis(value), y0), (axis(value), y1))
            self.text(
                axis(value),
                y1 + 22,
                f"{value:{form}}" if value else f"{value:{form}}".lstrip("+"),
                24,
            )

    def upwards(
        self, axis: Axis, ticks: Sequence[float], x0: float, x1: float, form: str = "g"
    ) -> None:
        """Level grid lines at some values, which stand left of them."""
        for value in ticks:
            self.grid((x0, axis(value)), (x1, axis(value)))
            self.text(x0 - 14, axis(value), f"{value:{form}}", 24, anchor="end")

    def legend(
        self, x: float, y: float, names: Sequence[tuple[str, str]], step: float = 38
    ) -> None:
        """What the colours mean, one below the other."""
        for i, (name, colour) in enumerate(names):
            self.box(x, y + i * step - 12, 26, 24, colour, LINE, 3)
            self.text(x + 38, y + i * step, name, 24, anchor="start")

    def bars(
        self,
        axis: Axis,
        rows: Sequence[tuple[str, Sequence[tuple[float, str]], str]],
        y0: float,
        each: float,
        bold: str = "",
    ) -> None:
        """Bars from the left, each of parts with their colours, and a text behind it."""
        for i, (name, parts, text) in enumerate(rows):
            y, sum_ = y0 + (i + 0.5) * each, 0.0
            self.text(axis.start - 16, y, name, 25, anchor="end", bold=name == bold)
            for value, colour in parts:
                left, right = axis(sum_), axis(sum_ + value)
                self.box(left, y - each * 0.34, right - left, each * 0.68, colour, round_=0)
                sum_ += value
            self.text(axis(sum_) + 12, y, text, 25, anchor="start", bold=name == bold)

    def interval(
        self, axis: Axis, y: float, low: float, middle: float, high: float, colour: str
    ) -> None:
        """A bar from low to high with a dot."""
        self.path((axis(low), y), (axis(high), y), arrow=False, colour=colour, width=6)
        self.circle(axis(middle), y, 8, colour, colour)

    def svg(self) -> str:
        """The whole as one element."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}">',
                '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="5" '
                f'markerHeight="5" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{INK}"/>'
                "</marker></defs>",
                *self._parts,
                "</svg>",
            ]
        )


def transformer() -> str:
    """Tokens, embedding, blocks, output layer, probabilities; and one block from inside."""
    d = Drawing(500)
    hidden, vocabulary = resolve("models.chat_hidden"), resolve("models.chat_vocabulary")
    y, h = 12, 92
    d.label(2, y, 168, h, "The capital of\nFrance is", "white", line=LINE)
    d.label(222, y, 190, h, f"embedding\n{vocabulary:,} × {hidden}", PALE)
    for shift in (16, 8, 0):
        d.box(466 + shift, y - shift / 2, 190, h, "white", INK)
    d.text(561, y + h / 2, f"{resolve('models.chat_layers')} equal\nblocks", bold=True)
    d.label(726, y, 190, h, f"output layer\n{hidden} × {vocabulary:,}", PALE)
    for left, right in ((170, 222), (412, 466), (672, 726), (916, 966)):
        d.path((left, y + h / 2), (right, y + h / 2))
    for i, (word, share) in enumerate(
        (
            (resolve("base.best"), resolve("base.best_p")),
            (resolve("base.guess"), resolve("base.guess_p")),
        )
    ):
        d.box(974, y + 8 + 42 * i, 110 * float(share), 32, SKY, round_=3)
        d.text(982 + 110 * float(share), y + 24 + 42 * i, word, 24, anchor="start")

    top, floor = 168, 488
    d.dashed((466, y + h), (4, top))
    d.dashed((656, y + h), (WIDTH - 4, top))
    d.box(4, top, WIDTH - 8, floor - top, "#fafafa", LINE, 14)
    stream = top + 52
    d.path((20, stream), (WIDTH - 20, stream))
    d.text(36, stream - 26, "each token's vector, to which every branch adds", 22, anchor="start")
    d.text(1040, stream - 26, "blue: linear layers, where LoRA goes", 22, BLUE, "end", True)

    def branch(start: float, steps: Sequence[tuple[str, float, str, str]], name: str) -> None:
        level, tall, x = top + 122, 108, start + 34
        first = x
        d.path((start, stream), (start, level + tall / 2), (x, level + tall / 2))
        for i, (text, width, fill, ink) in enumerate(steps):
            d.label(x, level, width, tall, text, fill, ink)
            if i < len(steps) - 1:
                d.path((x + width, level + tall / 2), (x + width + 26, level + tall / 2))
            x += width + 26
        end = x - 26
        d.path((end, level + tall / 2), (end + 34, level + tall / 2), (end + 34, stream + 18))
        d.circle(end + 34, stream, 17, "white", INK)
        d.text(end + 34, stream, "+", 28, bold=True)
        d.text((first + end) / 2, level + tall + 32, name, 26, bold=True)

    branch(
        44,
        [
            ("norm", 84, PALE, INK),
            ("q\nk\nv", 56, BLUE, "white"),
            ("who looks\nat whom", 128, ORANGE, INK),
            ("o", 56, BLUE, "white"),
        ],
        f"attention, {resolve('models.chat_heads')} heads",
    )
    branch(
        600,
        [
            ("norm", 84, PALE, INK),
            ("gate\nup", 82, BLUE, "white"),
            ("non-\nlinear", 82, ORANGE, INK),
            ("down", 90, BLUE, "white"),
        ],
        f"MLP, {resolve('models.chat_mlp'):,} wide",
    )
    return d.svg()


def attention() -> str:
    """Who may look at whom, and what twice the length does to it."""
    d = Drawing(500)

    def triangle(x: float, y: float, side: float, n: int) -> None:
        for row in range(n):
            for column in range(n):
                fill = BLUE if column <= row else PALE
                d.box(x + column * side, y + row * side, side - 3, side - 3, fill, round_=2)

    words = ["The", "cook", "said", "that", "she", "knew"]
    side = 56
    x0, y0 = 130, 84
    triangle(x0, y0, side, len(words))
    for i, word in enumerate(words):
        d.text(x0 - 14, y0 + side * (i + 0.5), word, 24, anchor="end")
        d.text(x0 + side * (i + 0.5) - 2, y0 - 20, word, 22)
    d.text(0, y0 + side * 6 + 40, "each row: one token, looking back", 24, anchor="start")
    d.text(x0 + side * 6 + 48, 250, "→", 60)
    small = 27.5
    x1 = x0 + side * 6 + 110
    triangle(x1, y0, small, 12)
    d.text(x1 + 6 * small, y0 - 30, "twice the tokens", 24, bold=True)
    d.text(x1 + 6 * small, y0 + side * 6 + 40, "four times the squares", 24, bold=True)
    x2 = x1 + 12 * small + 52
    for shift in (42, 28, 14, 0):
        d.box(x2 + shift, 190 - shift, 88, 88, "white" if shift else SKY, INK, 3)
    d.text(x2 + 66, 330, "one such sheet\nfor each head\nin each layer", 24)
    return d.svg()


def lora() -> str:
    """A frozen matrix, and the two thin ones beside it."""
    d = Drawing(330)
    wide, tall = int(resolve("models.chat_hidden")), int(resolve("models.chat_mlp"))
    rank, w, h, thin = 8, 260, 310, 54
    few = rank * (wide + tall)
    x, y = 4, 10
    frozen = f"W\n{tall:,} × {wide}\n\n{tall * wide:,}\nnumbers, frozen"
    d.label(x, y, w, h, frozen, PALE, size=30, line=LINE)
    x += w + 50
    d.text(x, y + h / 2, "+", 60)
    x += 50
    d.label(x, y, thin, h, "B", ORANGE, size=34)
    x += thin + 28
    d.text(x, y + h / 2, "·", 60)
    x += 28
    d.label(x, y + (h - thin) / 2, w, thin, "A", ORANGE, size=34)
    x += w + 36
    d.text(x, y + 70, f"rank {rank}: {tall:,} × {rank}\nand {rank} × {wide}", 30, anchor="start")
    d.text(x, y + 160, f"{few:,} numbers,\ntrained", 30, anchor="start")
    d.text(x, y + 246, f"{few / (tall * wide):.1%} of W", 44, BLUE, "start", True)
    return d.svg()


def batch() -> str:
    """What three examples become in two collators: trained on, masked, padding."""
    d = Drawing(470)
    saved = notebook("03")
    left, scale = 40, 11.6
    colours = {"masked": PALE, "trained": BLUE, "padding": "white"}
    y = 0.0
    for title, cell in (
        ("texts: every token is a target", "mask-texts"),
        ("prompt and completion: the completion is", "mask-completions"),
    ):
        said = saved.said(cell)
        found = re.findall(r"(\d+) trained, (\d+) masked, (\d+) padding", said)
        if len(found) != 3:
            raise NotFound(f"{saved.path.name}: {len(found)} examples in a drawn batch, not three")
        d.text(left, y + 18, title, 28, anchor="start", bold=True)
        for row, numbers in enumerate(found):
            trained, masked, padding = map(int, numbers)
            x, top = left, y + 48 + row * 54
            for kind, tokens in (("masked", masked), ("trained", trained), ("padding", padding)):
                if tokens:
                    d.box(x, top, tokens * scale, 42, colours[kind], LINE, 2)
                    ink = "white" if kind == "trained" else INK
                    d.text(x + tokens * scale / 2, top + 21, str(tokens), 24, ink)
                x += tokens * scale
        y += 250
    for i, (kind, name) in enumerate(
        (("trained", "trained on"), ("masked", "masked"), ("padding", "padding"))
    ):
        d.box(900, 62 + 46 * i, 34, 30, colours[kind], LINE, 2)
        d.text(946, 77 + 46 * i, name, 26, anchor="start")
    return d.svg()


def variants() -> str:
    """The loss after eight steps of each adapter of notebook 02, at its own learning rate."""
    found = notebook("02").table("variants")
    low, mean, high = (found.place(name) for name in ("min", "mean", "max"))
    d = Drawing(506)
    each = 426 / len(found.rows)
    top = math.ceil(10 * max(float(row[high]) for row in found.rows)) / 10
    axis = Axis(0, top, 400, 1130)
    d.across(axis, [i / 10 for i in range(round(10 * top) + 1)], 6, 440)
    for i, row in enumerate(found.rows):
        y = 24 + i * each
        usual = row[0] == "usual"
        d.text(384, y, row[0], 24, anchor="end", bold=usual)
        d.interval(
            axis, y, *(float(row[place]) for place in (low, mean, high)), BLUE if usual else GREY
        )
    d.text(765, 488, "loss on held-out sentences: mean and range of three seeds", 24)
    return d.svg()


def tried() -> str:
    """The share of new words that is right for each format, a point for each seed."""
    shares = {name: sorted(found) for name, found in resolve("tried.shares").items()}
    d = Drawing(400)
    axis, each = Axis(0, 1, 330, 1050), 300 / len(shares)
    d.across(axis, [0, 0.25, 0.5, 0.75, 1], 6, 330, ".0%")
    for i, name in enumerate(sorted(shares, key=lambda name: -statistics.mean(shares[name]))):
        y = 34 + (i + 0.5) * each
        colour = BLUE if name == "both spelled" else GREY
        found = shares[name]
        d.text(314, y, name, 25, anchor="end", bold=name == "both spelled")
        d.interval(axis, y, found[0], found[1], found[-1], colour)
        for share in found:
            d.circle(axis(share), y, 10, colour, colour)
        d.text(axis(statistics.mean(found)), y - 34, f"{found[0]:.0%} to {found[-1]:.0%}", 25)
    d.text(690, 386, "words right, of words that no training sentence has", 24)
    return d.svg()


def precisions() -> str:
    """Size and perplexity of the chat model in each precision."""
    found = notebook("04.1").table("precisions")
    d = Drawing(426)
    wide, tall = Axis(0, 300, 70, 1120), Axis(34, 56, 350, 44)
    d.across(wide, range(0, 301, 50), 44, 350)
    d.upwards(tall, range(35, 56, 5), 70, 1120)
    d.text(595, 408, "size in MB, scales included", 26)
    d.text(
        0,
        14,
        "perplexity on text that it cannot have read (bars: ± 2 standard errors)",
        26,
        anchor="start",
    )
    reference = float(found.at("16 bits", "loss"))
    colours = {"8bit": GREEN, "nf4": BLUE, "nf4-double": SKY, "fp4": RED}
    for row in found.rows:
        name = row[0]
        mb, more, error = (
            float(row[found.place(column)])
            for column in ("MB", "more than 16 bits", "standard error")
        )
        middle, least, most = (
            tall(math.exp(reference + more + 2 * sign * error)) for sign in (0, -1, 1)
        )
        colour = colours.get(name, GREY)
        d.path((wide(mb), least), (wide(mb), most), arrow=False, colour=colour)
        d.circle(wide(mb), middle, 9, colour, colour)
        left = name == "nf4-double"
        d.text(
            wide(mb) + (-20 if left else 20),
            middle,
            name,
            26,
            anchor="end" if left else "start",
        )
    return d.svg()


def length() -> str:
    """Activations against the length of an example, both axes logarithmic."""
    found = notebook("05").table("growth")
    lengths = [float(row[0]) for row in found.rows]
    eager, sdpa, flash = (
        [float(row[found.place(name)]) for row in found.rows]
        for name in ("eager", "sdpa", "flash_attention_2")
    )
    on_top = [one - other for one, other in zip(eager, sdpa, strict=True)]
    d = Drawing(500)
    wide = Axis(lengths[0] * 0.9, lengths[-1] * 1.1, 130, 790, log=True)
    tall = Axis(60, 16000, 420, 30, log=True)
    d.upwards(tall, (100, 300, 1000, 3000, 10000), 130, 790, ",.0f")
    d.across(wide, lengths[:3] + lengths[-1:], 30, 420, ",.0f")
    d.text(460, 484, "tokens (both axes logarithmic)", 26)
    d.text(0, 12, "activations at the peak, MB", 26, anchor="start")
    both = "SDPA = FlashAttention 2" if sdpa == flash else "SDPA"
    for name, values, colour in (
        ("eager", eager, ORANGE),
        (both, sdpa, BLUE),
        ("eager − SDPA", on_top, RED),
    ):
        points = [(wide(x), tall(mb)) for x, mb in zip(lengths, values, strict=True)]
        d.path(*points, arrow=False, colour=colour)
        for point in points:
            d.circle(*point, 7, colour, colour)
        slope = statistics.linear_regression(
            [math.log(tokens) for tokens in lengths], [math.log(mb) for mb in values]
        ).slope
        y = points[-1][1] + {"eager": -14, "eager − SDPA": 34}.get(name, 16)
        d.circle(824, y - 14, 9, colour, colour)
        d.text(846, y, f"{name}\nslope {slope:.2f}", 26, anchor="start")
    return d.svg()


def agenda() -> str:
    """The notebooks in the order of the day, with the minutes of the slides and of the notebook."""
    from tools.slides import blocks  # which draws this picture

    found = blocks()
    names = notebook_titles()
    second = next(i for i, (number, *_) in enumerate(found) if number >= "04")
    each = 46
    d = Drawing(max(second, len(found) - second) * each + 116)
    longest = max(talk + work for _, talk, work in found)
    d.text(4, 18, "first day", 26, anchor="start", bold=True)
    d.text(590, 18, "second day", 26, anchor="start", bold=True)
    for i, (number, talk, work) in enumerate(found):
        x, y = (590, 66 + each * (i - second)) if i >= second else (4, 66 + each * i)
        axis = Axis(0, longest, x + 340, x + 500)
        d.text(x, y, f"{number} {names.get(number, 'On Monday')}", 24, anchor="start")
        d.box(axis(0), y - 15, axis(talk) - axis(0), 30, SKY, round_=0)
        d.box(axis(talk), y - 15, axis(talk + work) - axis(talk), 30, GREEN, round_=0)
        d.text(axis(talk + work) + 10, y, str(talk + work), 22, anchor="start")
    d.legend(304, d.height - 24, [("minutes with the slides", SKY)])
    d.legend(660, d.height - 24, [("minutes in the notebook", GREEN)])
    return d.svg()


def notebook_titles() -> dict[str, str]:
    """Short titles of the notebooks: what stands before a colon, or up to a question mark."""
    links = {n: str(resolve(f"nb.{n}.link")) for n in resolve("nb.numbers").split()}
    return {
        number: re.sub(r"(:|(?<=\?)) .*", "", re.sub(r"^\[[\d.]+ · (.*?)\]\(.*", r"\1", link))
        for number, link in links.items()
    }


def silence() -> str:
    """For each template the right answers, and how probable it is that the reply ends at once."""
    found = notebook("01").table("templates")
    right = found.place("right of 16")
    said = re.findall(r"'([^']+)': '([\d.]+)'", tagged_text(notebook("01"), "01_template_silence"))
    ends = {name: float(share) for name, share in said}
    d = Drawing(392)
    rightly, silent = Axis(0, 16, 340, 640), Axis(0, 1, 740, 1080)
    d.across(rightly, (0, 4, 8, 12, 16), 40, 346)
    d.across(silent, (0, 0.25, 0.5, 0.75, 1), 40, 346, ".0%")
    d.text(490, 16, "right answers, of sixteen", 25, bold=True)
    d.text(910, 16, "the reply ends at once, mean probability", 25, bold=True)
    each = 306 / len(found.rows)
    for i, row in enumerate(found.rows):
        y, name = 40 + (i + 0.5) * each, row[0]
        d.text(324, y, name, 25, anchor="end", bold=name == "own")
        for axis, value, colour, text in (
            (rightly, float(row[right]), BLUE, row[right]),
            (silent, ends[name], ORANGE, f"{ends[name]:.0%}"),
        ):
            d.box(axis(0), y - 15, axis(value) - axis(0), 30, colour, round_=0)
            d.text(axis(value) + 10, y, text, 24, anchor="start")
    return d.svg()


def optimizer() -> str:
    """What is held for one MLP: all of it trained, and with LoRA."""
    wide, tall = int(resolve("models.chat_hidden")), int(resolve("models.chat_mlp"))
    adapter = 16 * (wide + tall) / (wide * tall)  # rank 16 on each of three equal matrices
    rows = []
    for name, held, trained in (("all weights", 1.0, 1.0), ("LoRA, r = 16", 1 + adapter, adapter)):
        parts = [(held, GREY), (trained, SKY), (2 * trained, ORANGE)]
        rows.append((name, parts, f"{held + 3 * trained:.2f} p"))
    d = Drawing(300)
    axis = Axis(0, 4.4, 220, 1060)
    d.across(axis, range(5), 4, 200)
    d.bars(axis, rows, 4, 98)
    d.text(640, 262, "numbers held, in multiples of the model's p weights", 24)
    names = (("weights", GREY), ("gradients", SKY), ("optimizer's states", ORANGE))
    d.legend(790, 116, names, 32)
    return d.svg()


def rates() -> str:
    """Held-out loss against the learning rate, for the usual adapter and three others."""
    rows = whole_rows(RESULTS / "lora_rates.jsonl")
    d = Drawing(440)
    wide, tall = Axis(0.2, 9, 90, 820, log=True), Axis(0.3, 20, 370, 20, log=True)
    d.upwards(tall, (0.5, 1, 2, 5, 10), 90, 820)
    d.across(wide, (0.25, 0.5, 1, 2, 4, 8), 20, 370)
    d.text(455, 424, "learning rate in thousandths (both axes logarithmic)", 25)
    names = (("usual", GREY), ("r=3", BLUE), ("PiSSA", ORANGE), ("alpha=16", GREEN))
    for name, colour in names:
        after: dict[float, list[float]] = {}
        for row in rows:
            if row["variant"] == name:
                after.setdefault(row["learning_rate"] * 1000, []).append(row["after"])
        seen = [(wide(rate), tall(statistics.mean(found))) for rate, found in sorted(after.items())]
        d.path(*seen, arrow=False, colour=colour, width=4)
        for x, y in seen:
            d.circle(x, y, 7, colour, colour)
    told = "loss on held-out\nsentences after eight\nsteps, mean of the seeds"
    d.text(860, 60, told, 25, anchor="start")
    d.legend(860, 160, names, 44)
    return d.svg()


def merges() -> str:
    """The loss of an adapter beside a 4-bit base, merged in three ways, and before training."""
    values = [
        ("not merged", resolve("lora.nf4_tuned"), BLUE),
        ("merged into the dequantized base", resolve("lora.merged_dequantized"), BLUE),
        ("merged into the original weights", resolve("lora.merged_original"), BLUE),
        ("merged into 4 bits", resolve("lora.merged_nf4"), RED),
        ("before the training", resolve("lora.nf4_untuned"), GREY),
    ]
    d = Drawing(350)
    axis = Axis(0, 2.4, 410, 1120)
    d.across(axis, (0, 0.5, 1, 1.5, 2), 4, 276)
    d.bars(axis, [(name, [(float(v), colour)], str(v)) for name, v, colour in values], 4, 54)
    d.text(765, 334, "loss on held-out sentences (one seed)", 24)
    return d.svg()


def adapter_life() -> str:
    """The states of a model with an adapter, and the calls that lead from one to another."""
    d = Drawing(430)
    for x, text, fill in (
        (10, "base", PALE),
        (430, "base\n+ adapter beside it", SKY),
        (850, "adapter merged\ninto the weights", ORANGE),
    ):
        d.label(x, 150, 300, 110, text, fill, size=28, line=LINE)
    for x, above, below in (
        (310, "get_peft_model", "unload"),
        (730, "merge_adapter", "unmerge_adapter"),
    ):
        d.path((x + 6, 185), (x + 114, 185))
        d.path((x + 114, 225), (x + 6, 225))
        d.text(x + 60, 116, above, 25, BLUE, bold=True)
        d.text(x + 60, 296, below, 25, BLUE, bold=True)
    d.text(1000, 366, "merge_and_unload", 25, BLUE, bold=True)
    d.text(1000, 400, "the same, for good", 24)
    d.path((1000, 262), (1000, 344))
    d.text(580, 366, "set_adapter, disable_adapter", 25, BLUE, bold=True)
    d.text(580, 400, "switch between several; nothing is loaded", 24)
    d.path((580, 262), (580, 344))
    d.text(580, 40, "add_weighted_adapter", 25, BLUE, bold=True)
    d.text(580, 74, "mix several into a new one", 24)
    d.path((580, 148), (580, 96))
    return d.svg()


def activations() -> str:
    """How many times the weights the activations of one long example are, for seven models."""
    rows = resolve("formulas.ratios")
    d = Drawing(444)
    axis = Axis(0.5, 600, 470, 1120, log=True)
    d.across(axis, (1, 10, 100), 40, 380)
    d.text(axis(1), 20, "as large as the weights", 24)
    each = 340 / len(rows)
    for i, (name, tokens, eager, flash) in enumerate(rows):
        y = 40 + (i + 0.5) * each
        d.text(454, y, f"{name}, {tokens:,.0f} tokens", 25, anchor="end")
        d.path((axis(flash), y), (axis(eager), y), arrow=False, colour="#d4d4d4", width=6)
        d.circle(axis(flash), y, 10, BLUE, BLUE)
        d.circle(axis(eager), y, 10, ORANGE, ORANGE)
    d.text(795, 428, "activations, as a multiple of the weights (logarithmic)", 24)
    d.legend(900, 334, [("flash attention", BLUE), ("eager attention", ORANGE)], 32)
    return d.svg()


def trainers() -> str:
    """The predicted peak of one training under two trainers, and with LoRA."""
    rows = [
        ("Trainer, all weights", resolve("memory.timeline_trainer"), GREY),
        ("SFTTrainer, all weights", resolve("memory.timeline_full"), BLUE),
        ("SFTTrainer, LoRA", resolve("memory.timeline_lora"), BLUE),
    ]
    d = Drawing(290)
    axis = Axis(0, 7000, 310, 1060)
    d.across(axis, range(0, 7000, 2000), 4, 214, ",.0f")
    bars = [(n, [(float(v.replace(",", "")), colour)], f"{v} MB") for n, v, colour in rows]
    d.bars(axis, bars, 4, 70)
    d.text(685, 274, "peak of allocated memory in MB, predicted", 24)
    return d.svg()


PARTS = (
    ("weights", GREY), ("optimizer", ORANGE), ("gradients", SKY), ("activations", BLUE),
)  # fmt: skip


def solutions() -> str:
    """What each change leaves at the peak of one training, and all together."""
    found = notebook("04").table("overview")
    peak = found.place("peak (GB)")
    d = Drawing(444)
    axis = Axis(0, 80, 420, 1080)
    d.across(axis, range(0, 80, 10), 30, 382)
    rows = []
    for row in found.rows:
        parts = [(float(row[found.place(name)]), colour) for name, colour in PARTS]
        rows.append((row[0].replace("all of ", ""), parts, f"{row[peak]} GB"))
    d.bars(axis, rows, 30, 44)
    d.dashed((axis(16), 30), (axis(16), 382), colour=RED)
    d.text(axis(16), 14, "a T4 has 16 GB", 24, RED)
    d.text(750, 430, "allocated at the peak in GB, predicted", 24)
    d.legend(980, 226, PARTS)
    return d.svg()


def next_token() -> str:
    """The probabilities of two tokens, and of all others."""
    best, guess = (float(resolve(f"base.{name}")) for name in ("best_p", "guess_p"))
    d = Drawing(230)
    axis = Axis(0, 1, 420, 1060)
    d.text(0, 24, "The capital of France is …", 34, anchor="start", bold=True)
    rows = [
        (str(resolve("base.best")), [(best, BLUE)], f"{best:.2f}"),
        (str(resolve("base.guess")), [(guess, BLUE)], f"{guess:.2f}"),
        ("all other tokens together", [(1 - best - guess, GREY)], f"{1 - best - guess:.2f}"),
    ]
    d.bars(axis, rows, 54, 56)
    return d.svg()


def stops() -> str:
    """The training loss with pad = eos, and with another padding token."""
    heads = ["Step", "Training Loss"]
    tables = tables_before(notebook("03"), "figure:03_loss_does_not_tell")
    eos, pad = [found for found in tables if found.columns == heads][-2:]
    d = Drawing(400)
    wide, tall = Axis(0, 21, 90, 800), Axis(2, 5, 330, 20)
    d.across(wide, range(0, 21, 5), 20, 330)
    d.upwards(tall, range(2, 6), 90, 800)
    d.text(445, 386, "step", 25)
    d.text(860, 40, "training loss", 25, anchor="start", bold=True)
    for found, colour in ((eos, ORANGE), (pad, BLUE)):
        points = [(wide(float(step)), tall(float(loss))) for step, loss in found.rows]
        d.path(*points, arrow=False, colour=colour)
        for x, y in points:
            d.circle(x, y, 6, colour, colour)
    ended = [resolve(f"collators.ended_{name}") for name in ("careless", "careful")]
    names = (f"pad = eos: {ended[0]} of 12 end", f"pad ≠ eos: {ended[1]} of 12 end")
    d.legend(860, 90, list(zip(names, (ORANGE, BLUE), strict=True)), 44)
    return d.svg()


def rule() -> str:
    """The share of words right: untuned, and tuned on known and on unseen words."""
    d = Drawing(260)
    axis = Axis(0, 1, 420, 1060)
    d.across(axis, (0, 0.25, 0.5, 0.75, 1), 4, 180, ".0%")
    shares = (
        ("untuned, shown two examples", resolve("pig_latin.before"), GREY),
        ("tuned, known words", resolve("pig_latin.known"), BLUE),
        ("tuned, words never seen", resolve("pig_latin.unseen"), BLUE),
    )
    rows = [
        (name, [(float(share), colour)], f"{float(share):.0%}") for name, share, colour in shares
    ]
    d.bars(axis, rows, 4, 58)
    d.text(740, 244, "words translated rightly", 24)
    return d.svg()


def experiment() -> str:
    """Right answers about held-out countries: the base, the tuned base, and a control."""
    found = tables_before(notebook("06"), "figure:06_experiment")[-1]
    place = found.place("all")
    colours = {"control": ORANGE, "base, t": BLUE}
    rows = []
    for row in found.rows:
        colour = next((c for start, c in colours.items() if row[0].startswith(start)), GREY)
        rows.append((row[0], [(int(row[place].rstrip("%")) / 100, colour)], row[place]))
    d = Drawing(404)
    axis = Axis(0, 1.1, 490, 1130)
    d.across(axis, (0, 0.25, 0.5, 0.75, 1), 4, 334, ".0%")
    d.bars(axis, rows, 4, 330 / len(rows))
    d.text(781, 388, "right answers about held-out countries (one seed)", 24)
    return d.svg()


def speed() -> str:
    """Style and right answers over the steps, for base and instruct model; a line for each seed."""
    rows = whole_rows(RESULTS / "instruct_pair.jsonl")
    d = Drawing(446)
    for left, measure, title in (
        (70, "in style", "in style"),
        (640, "right", "right answer first"),
    ):
        wide, tall = Axis(8, 37, left, left + 480), Axis(0, 1, 370, 50)
        d.upwards(tall, (0, 0.25, 0.5, 0.75, 1), left, left + 480, ".0%")
        d.across(wide, (10, 20, 30), 50, 370)
        d.text(left + 240, 18, title, 26, bold=True)
        d.text(left + 240, 428, "step", 24)
        for arm, colour in (("base", BLUE), ("instruct", ORANGE)):
            for row in rows:
                if (row["arm"], row["variant"], row["part"]) != (arm, "recipe", 1):
                    continue
                curve = row["curve"]
                steps = zip(curve["step"], curve[measure], strict=True)
                points = [(wide(step), tall(share)) for step, share in steps]
                d.path(*points, arrow=False, colour=colour)
    d.legend(340, 280, [("base", BLUE), ("instruct", ORANGE)])
    return d.svg()


def verdicts() -> str:
    """The difference that each claim is about, with its interval, and the verdict."""
    found = notebook("07").table("verdicts")
    places = [found.place(name) for name in ("claim", "difference", "verdict")]
    d = Drawing(34 + 31 * len(found.rows) + 80)
    axis = Axis(-1.05, 1.05, 480, 900)
    bottom = 34 + 31 * len(found.rows)
    d.across(axis, (-1, -0.5, 0, 0.5, 1), 30, bottom, "+g")
    colours = {"holds": BLUE, "does not hold": RED}
    for i, row in enumerate(found.rows):
        claim, difference, verdict = (row[place] for place in places)
        middle, low, high = map(float, re.findall(r"[+-]\d\.\d+", difference))
        y, colour = 34 + 31 * (i + 0.5), colours.get(verdict, GREY)
        d.text(0, y, claim.replace("… ", ""), 23, anchor="start", bold=claim[1] == " ")
        d.interval(axis, y, low, middle, high, colour)
        d.text(920, y, verdict.replace(" at this size", ""), 23, colour, "start", True)
    d.text(690, bottom + 62, "difference of two shares, 95% interval over three seeds", 24)
    return d.svg()


def trade_off() -> str:
    """What a chat model learned against what it kept, for each way to spare it."""
    rows = whole_rows(RESULTS / "base_vs_instruct.jsonl")

    def share(variant: str, part: float, measure: str) -> Interval:
        """Over the questions, each of which is the mean over the seeds."""
        found = [r[measure] for r in rows if (r["variant"], r["part"]) == (variant, part)]
        return bootstrap_interval([statistics.mean(each) for each in zip(*found, strict=True)])

    d = Drawing(444)
    wide, tall = Axis(-0.05, 1.05, 80, 1060), Axis(0, 0.8, 372, 40)
    d.across(wide, (0, 0.25, 0.5, 0.75, 1), 40, 372, ".0%")
    d.upwards(tall, (0, 0.2, 0.4, 0.6, 0.8), 80, 1060, ".0%")
    d.text(570, 428, "learned: answers in the new style", 25)
    told = "kept: general instructions that are still followed (bars: 95% intervals)"
    d.text(0, 14, told, 25, anchor="start")
    names = {  # label, and where it stands: beside, over or under its point
        ("untouched", 0.0): ("untouched", "right", 0),
        ("recipe", 1.0): ("the recipe", "right", -8),
        ("recipe", 0.75): ("¾ way", "left", 8),
        ("recipe", 0.5): ("half-way", "right", 4),
        ("general data mixed in", 1.0): ("its own replies mixed in", "right", 0),
        ("its own template", 1.0): ("its own template", "left", 0),
        ("its own template, general data mixed in", 1.0): ("both", "left", 0),
        ("half of the learning rate", 1.0): ("half the rate", "right", 24),
        ("rank 2", 1.0): ("rank 2", "right", 20),
    }
    for key, (label, side, shift) in names.items():
        kept = share(*key, "followed")
        x, y = wide(share(*key, "in style").value), tall(kept.value)
        colour = GREEN if "general" in key[0] else RED if key[0] == "recipe" else GREY
        ends = (x, tall(kept.low)), (x, tall(kept.high))
        d.path(*ends, arrow=False, colour=colour, width=1.5)
        d.circle(x, y, 9, colour, colour)
        anchor = "start" if side == "right" else "end"
        d.text(x + (20 if side == "right" else -20), y + shift, label, 24, anchor=anchor)
    return d.svg()


def intervals() -> str:
    """The same comparison with few questions, with many, and counted by countries."""
    saved = notebook("08")
    rows = []
    number = r"([+-][\d.]+)"
    for name, cell, start in (
        (f"{resolve('judging.few')} questions", "few-questions", ""),
        (f"{resolve('judging.questions')} questions", "by-country", "by questions: "),
        (f"the same by {resolve('judging.countries')} countries", "by-country", "by countries: "),
    ):
        pattern = rf"({start}difference {number}, 95% interval {number} to {number}; p = [\d.]+\d)"
        line = saved.find(cell, pattern)
        middle, low, high = map(float, re.findall(r"[+-]\d?\.?\d+(?=[, ;])", line))
        rows.append((name, low, middle, high, line.rsplit("p = ", 1)[1]))
    d = Drawing(330)
    axis = Axis(-0.2, 0.35, 360, 980)
    d.across(axis, (-0.2, -0.1, 0, 0.1, 0.2, 0.3), 30, 250, "+g")
    d.path((axis(0), 30), (axis(0), 250), arrow=False, colour=INK, width=2)
    for i, (name, low, middle, high, p) in enumerate(rows):
        y, colour = 30 + 220 * (i + 0.5) / 3, (GREY, BLUE, GREEN)[i]
        d.text(344, y, name, 25, anchor="end")
        d.interval(axis, y, low, middle, high, colour)
        d.text(1010, y, f"p = {p}", 25, anchor="start", bold=True)
    d.text(670, 312, "difference in the share of right answers, 95% interval", 24)
    return d.svg()


def parallel() -> str:
    """Three ways to use two GPUs: what each of them holds of the model, and reads of the texts."""
    d = Drawing(400)
    for i, (name, shares, texts) in enumerate(
        (
            ("DDP", ((0, 1), (0, 1)), ("texts 1, 2", "texts 3, 4")),
            ("FSDP, ZeRO", ((0, 0.5), (0.5, 1)), ("texts 1, 2", "texts 3, 4")),
            ("context parallel", ((0, 1), (0, 1)), ("text 1, first half", "text 1, second half")),
        )
    ):
        x = 10 + 394 * i
        d.text(x + 176, 20, name, 28, bold=True)
        for j, ((start, end), text) in enumerate(zip(shares, texts, strict=True)):
            y = 50 + 178 * j
            d.box(x, y, 352, 156, "white", LINE, 10)
            d.text(x + 14, y + 24, f"GPU {j + 1}", 22, anchor="start")
            d.box(x + 14, y + 46, 324, 44, PALE, LINE, 3)
            d.box(x + 14 + 324 * start, y + 46, 324 * (end - start), 44, BLUE, round_=3)
            d.box(x + 14, y + 102, 324, 40, ORANGE, round_=3)
            d.text(x + 176, y + 122, text, 23)
            kept = "whole model" if end - start == 1 else "half of it"
            d.text(x + 14 + 324 * (start + end) / 2, y + 68, kept, 23, "white")
    return d.svg()


def per_rank() -> str:
    """The predicted peak on each GPU."""
    found = notebook("09").table("per-rank")
    place = found.place("peak (GB)")
    d = Drawing(404)
    axis = Axis(0, 110, 330, 1060)
    d.across(axis, range(0, 110, 20), 30, 334)
    rows = [
        (row[0], [(float(row[place]), ORANGE if "DDP" in row[0] else BLUE)], f"{row[place]} GB")
        for row in found.rows
    ]
    d.bars(axis, rows, 30, 304 / len(rows))
    d.text(695, 388, "allocated at the peak on each GPU in GB, predicted", 24)
    return d.svg()


def tagged_text(saved: Saved, name: str) -> str:
    """What a cell with the tag `figure:NAME` printed."""
    for cell in saved.cells:
        if f"figure:{name}" in cell["metadata"].get("tags", []):
            return "".join("".join(output.get("text", "")) for output in cell["outputs"])
    raise NotFound(f"{saved.path.name}: no cell with the tag figure:{name}")


PICTURES: dict[str, Callable[[], str]] = {
    picture.__name__: picture
    for picture in (
        activations, adapter_life, agenda, attention, batch, experiment, intervals, length, lora,
        merges, next_token, optimizer, parallel, per_rank, precisions, rates, rule, silence,
        solutions, speed, stops, trade_off, trainers, transformer, tried, variants, verdicts,
    )
}  # fmt: skip
