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
from tools.saved_notebooks import NotFound, notebook
from tools.slide_values import resolve

INK, LINE, PALE = "#1b1b1b", "#8c8c8c", "#ececec"
WIDTH = 1160


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


def _scale(d: Drawing, x0: float, x1: float, y0: float, y1: float, top: float, step: float) -> None:
    """A grid from 0 to `top`."""
    for i in range(round(top / step) + 1):
        x = x0 + (x1 - x0) * i * step / top
        d.grid((x, y0), (x, y1))
        d.text(x, y1 + 20, f"{i * step:g}", 22)


def variants() -> str:
    """The loss after eight steps of each adapter of notebook 02, at its own learning rate."""
    found = notebook("02").table("variants")
    low, mean, high = (found.place(name) for name in ("min", "mean", "max"))
    d = Drawing(500)
    each = 426 / len(found.rows)
    top = math.ceil(10 * max(float(row[high]) for row in found.rows)) / 10
    x0, x1 = 400, 1130
    _scale(d, x0, x1, 6, 440, top, 0.1 if top < 1 else 0.5)
    for i, row in enumerate(found.rows):
        y = 24 + i * each
        least, middle, most = (
            x0 + (x1 - x0) * float(row[place]) / top for place in (low, mean, high)
        )
        usual = row[0] == "usual"
        colour = BLUE if usual else GREY
        d.text(x0 - 16, y, row[0], 24, anchor="end", bold=usual)
        d.path((least, y), (most, y), arrow=False, colour=colour, width=6)
        d.circle(middle, y, 8, colour, colour)
    d.text((x0 + x1) / 2, 488, "loss on held-out sentences: mean and range of three seeds", 24)
    return d.svg()


def tried() -> str:
    """The share of new words that is right for each format, a point for each seed."""
    shares = {name: sorted(found) for name, found in resolve("tried.shares").items()}
    d = Drawing(500)
    x0, x1, each = 330, 1050, 380 / len(shares)
    _scale(d, x0, x1, 6, 440, 1, 0.25)
    for i, name in enumerate(sorted(shares, key=lambda name: -statistics.mean(shares[name]))):
        y = 40 + (i + 0.5) * each
        colour = BLUE if name == "both spelled" else GREY
        found = shares[name]
        d.text(x0 - 16, y, name, 25, anchor="end", bold=name == "both spelled")
        d.path(
            (x0 + (x1 - x0) * found[0], y), (x0 + (x1 - x0) * found[-1], y),
            arrow=False, colour=colour, width=6,
        )  # fmt: skip
        for share in found:
            d.circle(x0 + (x1 - x0) * share, y, 10, colour, colour)
        d.text(
            x0 + (x1 - x0) * statistics.mean(found), y - 34,
            f"{found[0]:.0%} to {found[-1]:.0%}", 25,
        )  # fmt: skip
    d.text((x0 + x1) / 2, 488, "words right, of words that no training sentence has", 24)
    return d.svg()


def precisions() -> str:
    """Size and perplexity of the chat model in each precision."""
    found = notebook("04.1").table("precisions")
    d = Drawing(426)
    x0, x1, y0, y1 = 70, 1120, 44, 350
    size, low, high = 300, 34, 56

    def place(mb: float, perplexity: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * mb / size, y1 - (y1 - y0) * (perplexity - low) / (high - low)

    for mb in range(0, size + 1, 50):
        x, _ = place(mb, low)
        d.grid((x, y0), (x, y1))
        d.text(x, y1 + 22, str(mb), 24)
    for perplexity in range(low + 1, high, 5):
        _, y = place(0, perplexity)
        d.grid((x0, y), (x1, y))
        d.text(x0 - 14, y, str(perplexity), 24, anchor="end")
    d.text((x0 + x1) / 2, 408, "size in MB, scales included", 26)
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
            place(mb, math.exp(reference + more + 2 * sign * error)) for sign in (0, -1, 1)
        )
        colour = colours.get(name, GREY)
        d.path(least, most, arrow=False, colour=colour)
        d.circle(*middle, 9, colour, colour)
        left = name == "nf4-double"
        d.text(
            middle[0] + (-20 if left else 20),
            middle[1],
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
    x0, x1, y0, y1, low, high = 130, 790, 30, 420, 60, 16000

    def place(tokens: float, mb: float) -> tuple[float, float]:
        right = math.log(tokens / lengths[0]) / math.log(lengths[-1] / lengths[0])
        up = math.log(mb / low) / math.log(high / low)
        return x0 + (x1 - x0) * (0.04 + 0.92 * right), y1 - (y1 - y0) * up

    for mb in (100, 300, 1000, 3000, 10000):
        _, y = place(lengths[0], mb)
        d.grid((x0, y), (x1, y))
        d.text(x0 - 14, y, f"{mb:,}", 24, anchor="end")
    for tokens in lengths[:3] + lengths[-1:]:
        x, _ = place(tokens, low)
        d.grid((x, y0), (x, y1))
        d.text(x, y1 + 24, f"{tokens:,.0f}", 24)
    d.text((x0 + x1) / 2, 484, "tokens", 26)
    d.text(x0, 10, "activations at the peak, MB", 26, anchor="start")
    both = "SDPA = FlashAttention 2" if sdpa == flash else "SDPA"
    for name, values, colour in (
        ("eager", eager, ORANGE),
        (both, sdpa, BLUE),
        ("eager − SDPA", on_top, RED),
    ):
        points = [place(*pair) for pair in zip(lengths, values, strict=True)]
        d.path(*points, arrow=False, colour=colour)
        for point in points:
            d.circle(*point, 7, colour, colour)
        slope = statistics.linear_regression(
            [math.log(tokens) for tokens in lengths], [math.log(mb) for mb in values]
        ).slope
        y = points[-1][1] + {"eager": -14, "eager − SDPA": 34}.get(name, 16)
        d.circle(x1 + 34, y - 14, 9, colour, colour)
        d.text(x1 + 56, y, f"{name}\nslope {slope:.2f}", 26, anchor="start")
    return d.svg()


PICTURES: dict[str, Callable[[], str]] = {
    "transformer": transformer,
    "attention": attention,
    "lora": lora,
    "batch": batch,
    "variants": variants,
    "tried": tried,
    "precisions": precisions,
    "length": length,
}
