"""What the slides say in numbers, tables and code: read from notebooks and result files, not typed.

`resolve("base.barred")` is the value of the placeholder `{{ base.barred }}` in `slides/deck.md`.
What stands before the first dot is a source, what follows is a name in it. `slides/values.toml`
looks values up in saved notebooks; what takes more than a look-up is made here, and so are values
from `benchmarks/results/` and `course_utils`: the catalogue, the formulas, the rules, the published
tables.
"""

from __future__ import annotations

import ast
import csv
import functools
import html
import json
import re
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from course_utils.results import whole_rows
from tools import notebooks, settings
from tools.saved_notebooks import ROOT, NotFound, Saved, Table, notebook

RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "course_utils" / "memory" / "published.csv"
BENCHMARKS = ROOT / "course_utils" / "scoring" / "benchmarks.toml"

LOOKED_UP = tomllib.loads((ROOT / "slides" / "values.toml").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------- markup


def fenced(text: str, language: str = "") -> str:
    """A code block."""
    return f"```{language}\n{text.strip(chr(10))}\n```"


def plain(text: object) -> str:
    """A text that Markdown and HTML leave as it is, on one line."""
    shown = html.escape(str(text), quote=False).replace("\n", "↵")
    return re.sub(r"[*_`|\\\[\]]", lambda sign: f"&#{ord(sign[0])};", shown)


def code(text: object) -> str:
    """The same in code type."""
    return f"<code>{plain(text)}</code>"


def powers(text: str) -> str:
    """A text with `3.4e+38` written as 3.4·10³⁸."""
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def written(found: re.Match[str]) -> str:
        factor, exponent = found[1], str(int(found[2])).translate(digits)
        return f"10{exponent}" if factor == "1" else f"{factor}·10{exponent}"

    return re.sub(r"([\d.]+)e([+-]\d+)", written, text)


def table(heads: Sequence[object], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """A Markdown table; `align` has l, r or c for each column, else the first is left."""
    bars = {"l": ":--", "r": "--:", "c": ":-:"}
    rule = [bars[letter] for letter in align or "l" + "r" * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, rule, *rows))


def tinted(
    heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: int, form: str = ",.0f"
) -> str:
    """An HTML table whose last `numbers` columns are coloured by size, larger is darker.

    A text among them, such as OOM, stays as it is.
    """
    first = len(heads) - numbers
    found = [value for row in rows for value in row[first:] if isinstance(value, (int, float))]
    low, high = min(found), max(found)

    def colour(value: float) -> str:
        share = ((value - low) / (high - low)) ** 0.5
        # From white to a light blue, on which dark text is still easy to read.
        mixed = (round(255 + (end - 255) * share) for end in (126, 186, 226))
        return "#" + "".join(f"{part:02x}" for part in mixed)

    def cell(value: object) -> str:
        if isinstance(value, (int, float)):
            return f'<td class="number" style="background:{colour(value)}">{value:{form}}</td>'
        return f'<td class="number">{html.escape(str(value))}</td>'

    lines = ["<table>", "<thead><tr>"]
    lines += [f"<th>{head}</th>" for head in heads[:first]]
    lines += [f'<th class="number">{head}</th>' for head in heads[first:]]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        said = [{"yes": "✓", "no": "–"}.get(str(value), str(value)) for value in row[:first]]
        names = "".join(f"<td>{html.escape(value)}</td>" for value in said)
        lines.append(f"<tr>{names}{''.join(map(cell, row[first:]))}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def shortened(text: str, length: int) -> str:
    """A text on one line, cut behind a word where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0].rstrip(".,;:") + " …"


# ------------------------------------------------------------------------ look-ups of values.toml


def _pattern(text: str) -> str:
    """A text without the question and the answer that stand in it; a name in one piece."""
    for told in ("What is the capital of Mexico?", "Mexico City"):
        text = text.replace(told, "…")
    return text.replace("Llama 2", "Llama\u00a02")


CHANGES: dict[str, Callable[[str], str]] = {"none": str, "powers": powers, "pattern": _pattern}


def columns(found: Table, wanted: Mapping[str, Any]) -> str:
    """Some columns of a saved table, renamed; see `values.toml`."""
    change = CHANGES[wanted.get("change", "none")]
    in_code = wanted.get("as_code", [])
    places = [(found.place(name), code if name in in_code else plain) for name in wanted["columns"]]
    kept = found.rows[: wanted.get("rows")]
    shown = [[show(change(row[place])) for place, show in places] for row in kept]
    align = "".join(
        "r" if all(re.match(r"[+−-]?[\d.,]+\W*$", row[place]) for row in kept) else "l"
        for place, _ in places
    )
    return table(list(wanted["columns"].values()), shown, align)


def look_up(saved: Saved, wanted: Mapping[str, Any]) -> str:
    """What a line of `values.toml` asks for.

    Raises:
        NotFound: the notebook does not have it, or the line asks for nothing.
    """
    cell = wanted["cell"]
    if "find" in wanted:
        return CHANGES[wanted.get("change", "none")](saved.find(cell, wanted["find"]))
    if "at" in wanted:
        return saved.table(cell).at(*wanted["at"])
    if "columns" in wanted:
        return columns(saved.table(cell), wanted)
    if "code" in wanted:
        return saved.find_code(cell, wanted["code"])
    if wanted.get("block"):
        return fenced(saved.said(cell))
    raise NotFound(f"{saved.where(cell)}: {dict(wanted)} does not say what to take")


def tables_before(saved: Saved, tag: str) -> list[Table]:
    """The tables that the cells before the one with a tag ended with: the numbers of a figure.

    Raises:
        NotFound: there is no such cell, or no table before it.
    """
    found: list[Table] = []
    for cell in saved.cells:
        if tag in cell["metadata"].get("tags", []) and found:
            return found
        for output in cell.get("outputs", []):
            markup = "".join(output.get("data", {}).get("text/html", ""))
            if "<table" in markup:
                found.append(Table(markup, f"{saved.path.name}, before {tag}"))
    raise NotFound(f"{saved.path.name}: no table before a cell with the tag {tag!r}")


class Notebook(Mapping[str, object]):
    """Values from one saved notebook, each made when it is asked for: one that is missing harms no
    other."""

    def __init__(self, source: str) -> None:
        self._wanted = dict(LOOKED_UP.get(source, {}))
        self._number = self._wanted.pop("notebook")
        self._made = MADE.get(source, {})

    def __getitem__(self, key: str) -> object:
        saved = notebook(self._number)
        return self._made[key](saved) if key in self._made else look_up(saved, self._wanted[key])

    def __iter__(self) -> Iterator[str]:
        return iter([*self._wanted, *self._made])

    def __len__(self) -> int:
        return len(self._wanted) + len(self._made)


# ---------------------------------------------------- values from notebooks that take more work

_DOG = r"▶ Tell me how to train my dog to sit\n?(.+?)(?:\n+▶|\Z)"


def _target_boxes(saved: Saved) -> str:
    """One example under two ways to tune, a box for each token, the targets filled."""
    found = saved.table("targets")
    tokens = [ast.literal_eval(head) for head in found.columns[1:]]
    lines = []
    for name, *losses in found.rows:
        boxes = [
            f'<span class="{"other" if loss == "–" else "target"}">'
            + html.escape(token.replace("\n", "↵")).replace(" ", "␣")
            + "</span>"
            for token, loss in zip(tokens, losses, strict=True)
        ]
        lines.append(f"<div><b>{name}</b>{''.join(boxes)}</div>")
    return '<div class="tokens">\n' + "\n".join(lines) + "\n</div>"


def _checks(saved: Saved) -> list[str]:
    """The names of preflight's checks."""
    names = re.findall(r"^\S pass (.+?)  ", saved.said("preflight"), flags=re.M)
    if len(names) != int(saved.find("preflight", r"^(\d+) checks")):
        raise NotFound(f"{saved.where('preflight')}: not all checks have a name")
    return names


def _jinja(saved: Saved) -> str:
    """The chat template of notebook 03, without what makes it a Python text."""
    lines = saved.lines("chatml", 'chatml = """', 'endif %}"""').splitlines()[1:]
    return fenced("\n".join(line.removesuffix("\\").removesuffix('"""') for line in lines), "jinja")


def _purposes(saved: Saved) -> str:
    """The arguments of SFTConfig, a row for each purpose."""
    found = saved.table("arguments")
    purpose, argument = found.place("purpose"), found.place("argument")
    grouped: dict[str, list[str]] = {}
    for row in found.rows:
        grouped.setdefault(row[purpose], []).append(code(row[argument]))
    return table(
        ("what for", "arguments of <code>SFTConfig</code>"),
        [(name, ", ".join(all_)) for name, all_ in grouped.items()],
        "ll",
    )


def _defaults(saved: Saved) -> str:
    """The defaults that are TRL's own, in a line."""
    found = saved.table("arguments")
    name, default, chosen = (found.place(head) for head in ("argument", "default", "chosen by"))
    pairs = [(row[name], row[default]) for row in found.rows if row[chosen] == "TRL"]
    return ", ".join(
        code(f"{name}={float(d):g}" if "e" in d and d[0].isdigit() else f"{name}={d}")
        for name, d in pairs
    )


def _renamed(saved: Saved) -> str:
    """Old names of arguments and what they are called now."""
    pairs = re.findall(r"^\s*(\S.*?) → (.+)$", saved.said("renamed"), flags=re.M)
    return table(
        ("in 2024", "now"),
        [(code(old), plain(new) if " " in new else code(new)) for old, new in pairs],
        "ll",
    )


def _t4(saved: Saved) -> str:
    """The largest batch on a T4 for each way to train."""
    rows = saved.table("largest-batch").rows
    return table(
        ("way to train", "largest batch"), [(plain(row[0]), f"**{row[1]}**") for row in rows]
    )


def _fits(saved: Saved) -> str:
    """How well each tuned model answers in each style."""
    found = saved.table("fits")
    heads = ["tuned in ↓ asked in →", *map(plain, found.columns[1:])]
    rows = [(row[0], *(int(share.rstrip("%")) / 100 for share in row[1:])) for row in found.rows]
    return tinted(heads, rows, len(heads) - 1, ".0%")


MADE: dict[str, dict[str, Callable[[Saved], object]]] = {
    "base": {
        "dog": lambda saved: plain(shortened(saved.find("base-reply", _DOG), 80)),
        "chat_dog": lambda saved: plain(shortened(saved.find("chat-reply", _DOG), 80)),
        "targets": _target_boxes,
    },
    "lora": {"by_hand": lambda saved: fenced(saved.definition("HandmadeLoRA"), "python")},
    "collators": {
        "chatml": _jinja,
        "checks": lambda saved: len(_checks(saved)),
    },
    "pig_latin": {
        "spelled": lambda saved: fenced("\n".join(saved.said("spelled").split("\n")[:2])),
        "purposes": _purposes,
        "defaults": _defaults,
        "renamed": _renamed,
    },
    "mixing": {
        "t4": _t4,
        "t4_tokens": lambda saved: f"{int(saved.table('largest-batch').columns[-1]):,}",
    },
    "instructions": {
        "written": lambda saved: sum(int(row[1]) for row in saved.table("fate").rows),
        "fits": _fits,
    },
    "pythia": {
        "countries": lambda saved: sum(
            map(int, re.findall(r"(\d+) countries", saved.said("splits")))
        )
    },
}


# ------------------------------------------------------------- values from files and from the code


def _hands_on() -> Mapping[str, object]:
    """Of each notebook: link, what it teaches, how long it takes to read and to run."""
    values: dict[str, object] = {}
    numbers = []
    for source in notebooks.sources():
        path = notebooks.target(source)
        opening = "".join(Saved(path).cells[0]["source"])
        found = re.match(
            r"# (?P<number>[\d.]+[a-z]?) · (?P<title>.+?)\n"
            r".*\*\*You will learn\*\* (?P<learn>.+?\.)\s"
            r".*\*\*It takes\*\* about (?P<reading>an hour|\d+ minutes)\b",
            opening,
            flags=re.S,
        )
        if not found:
            raise NotFound(f"{path.name} does not begin as all notebooks do")
        number_, reading = found["number"], found["reading"]
        minutes = 60 if reading == "an hour" else int(reading.split()[0])
        learn = " ".join(found["learn"].split())
        # As the README and the site's page of timings: what `make save` measured.
        run = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("course")
        values |= {
            f"{number_}.link": f"[{number_} · {found['title']}](../notebooks/{path.name})",
            f"{number_}.learn": learn[0].upper() + learn[1:],
            f"{number_}.minutes": minutes,
        }
        if run:
            runs = run["minutes"]
            values[f"{number_}.runs"] = f"{runs:.0f}" if runs >= 2.95 else f"{runs:.1f}"
        if not notebooks.is_appendix(source):
            numbers.append(number_)
    return values | {"numbers": " ".join(numbers), "count": len(numbers)}


def _models() -> Mapping[str, object]:
    """The course's models and datasets, and what their architectures are."""
    from course_utils.memory.formulas import Shape
    from course_utils.models._catalog import catalog

    chat = catalog().models["HuggingFaceTB/SmolLM2-135M"]
    config = chat.config()
    opt = Shape.of(catalog().models["facebook/opt-350m"].config())
    tokens = 2000
    return {
        "own_parameters": f"{catalog().bundled['course/pythia-3m'].parameters / 1e6:.1f} million",
        "chat_parameters": f"{chat.parameters / 1e6:.0f} million",
        "chat_layers": config.num_hidden_layers,
        "chat_hidden": config.hidden_size,
        "chat_mlp": config.intermediate_size,
        "chat_heads": config.num_attention_heads,
        "chat_vocabulary": config.vocab_size,
        "opt_heads": opt.heads,
        "opt_layers": opt.layers,
        "opt_matrices_gb": opt.heads * opt.layers * tokens**2 * 2 / 1e9,
        "dolly": f"{catalog().datasets['databricks/databricks-dolly-15k'].rows:,}",
        "alpaca": f"{catalog().datasets['tatsu-lab/alpaca'].rows:,}",
    }


def _rules() -> Mapping[str, object]:
    """What the course's rules for Pig Latin and Yoda make of some examples."""
    from course_utils.data._pig_latin import pig_latin_word
    from course_utils.data._yoda import yoda

    words = "pig latin banana", "friends smile string", "eat omelet are"
    sentences = (
        "You have become powerful, I sense the dark side in you.",
        "The cook is angry.",
        "My sister found two keys.",
    )
    heads = [head for kind in ("consonant", "cluster", "vowel") for head in (kind, "becomes")]
    lines = [
        [cell for word in row for cell in (word, f"**{pig_latin_word(word)}**")]
        for row in zip(*(kind.split() for kind in words), strict=True)
    ]
    return {
        "pig_latin": table(heads, lines, "llllll"),
        "yoda": table(("English", "Yoda"), [(s, f"**{yoda(s)}**") for s in sentences], "ll"),
    }


def _formulas() -> Mapping[str, object]:
    """The memory formulas, computed for seven models."""
    from course_utils.memory import formulas

    seven = formulas.seven_models()
    ratios = [
        (name.split("/")[1], row["s"], row["ratio, eager"], row["ratio, flash"])
        for name, row in seven.iterrows()
    ]
    llama = seven.loc["meta-llama/Llama-2-7b-hf"]
    return {
        "ratios": ratios,  # for the picture
        "llama_length": f"{llama['s']:,.0f}",
        "llama_eager": f"{llama['ratio, eager']:.1f}",
        "llama_flash": f"{llama['ratio, flash']:.1f}",
        "longest": f"{seven['s'].max():,.0f}",
    }


_ATTENTIONS = {"eager": "eager", "sdpa": "SDPA", "flash_attention_2": "FA2"}


def _published() -> Mapping[str, object]:
    """The three memory tables that the workshop published in November 2024, in MB."""
    with PUBLISHED.open(newline="") as file:
        cells = list(csv.DictReader(file))
    sixteen = [cell for cell in cells if cell["weights"] == "16-bit"]
    peaks = [int(cell["peak_mb"]) for cell in sixteen]

    def peak(**wanted: str) -> float | str:
        found = [c["peak_mb"] for c in cells if wanted.items() <= c.items()]
        if len(set(found)) != 1:
            raise NotFound(f"{len(found)} published cells are {wanted}")
        return int(found[0]) if found[0].isdigit() else found[0]

    def row(attentions: Sequence[str] = tuple(_ATTENTIONS), **wanted: str) -> list[float | str]:
        return [peak(attention=attention, **wanted) for attention in attentions]

    opt = {"model": "facebook/opt-350m", "weights": "16-bit"}
    plain_adam = {**opt, "optimizer": "adam", "grad_accumulation": "no"}
    in_16_bits = [
        (checkpointing, lora, *row(**plain_adam, grad_checkpointing=checkpointing, lora=lora))
        for checkpointing in ("no", "yes")
        for lora in ("no", "yes")
    ]
    odd = [
        (name, accumulation, *row(**opt, grad_checkpointing="yes", lora="no",
                                  optimizer=optimizer, grad_accumulation=accumulation))
        for optimizer, name in (("adam", "Adam"), ("adam_8bit", "8-bit Adam"))
        for accumulation in ("no", "yes")
    ]  # fmt: skip
    in_8_bits = []
    for tokens in ("2000", "500"):
        for checkpointing in ("no", "yes"):
            for mixed in ("no", "yes"):
                how = {
                    "weights": "8-bit",
                    "seq_len": tokens,
                    "grad_checkpointing": checkpointing,
                    "mixed_precision": mixed,
                }
                in_8_bits.append(
                    (
                        f"{int(tokens):,}",
                        checkpointing,
                        mixed,
                        *row(model="facebook/opt-350m", **how),
                        *row(("sdpa", "flash_attention_2"), model="tiiuae/falcon-7b", **how),
                    )
                )
    names = list(_ATTENTIONS.values())
    falcon = [f"Falcon {name}" for name in names[1:]]
    return {
        "cells": len(sixteen),
        "tokens": f"{int(sixteen[0]['seq_len']):,}",
        "largest": f"{max(peaks):,}",
        "smallest": f"{min(peaks):,}",
        "opt_16bit": tinted(("checkpointing", "LoRA", *names), in_16_bits, 3),
        "odd_rows": tinted(("optimizer", "accumulation", *names), odd, 3),
        "eight_bit": tinted(
            ("tokens", "checkpointing", "mixed", *(f"OPT {n}" for n in names), *falcon),
            in_8_bits,
            5,
        ),
    }


def _replication() -> Mapping[str, object]:
    """How near the predictions with the libraries of the time come to the published peaks."""
    with (RESULTS / "published_tables.csv").open(newline="") as file:
        cells = [cell for cell in csv.DictReader(file) if cell["published_mb"].isdigit()]
    errors = [abs(float(c["error_percent"])) for c in cells if c["weights"] == "16-bit"]
    return {
        "worst": f"{max(errors):.2f}%",
        "mean": f"{statistics.mean(errors):.2f}%",
        "remarks": sum(cell["remark"] != "" for cell in cells),
    }


def _benchmarks() -> Mapping[str, object]:
    """What the course knows of well-known benchmarks."""
    known = tomllib.loads(BENCHMARKS.read_text(encoding="utf-8"))
    mmlu = known["MMLU"]
    return {"mmlu_items": f"{mmlu['items']:,}", "mmlu_parts": mmlu["parts"]}


def _tried() -> Mapping[str, object]:
    """The formats that were tried with Pig Latin; `shares` is for the picture."""
    rows = [row for row in whole_rows(RESULTS / "pig_latin.jsonl") if row["examples"]]
    budgets = {(row["tokens"], row["examples"]) for row in rows}
    if len(budgets) != 1:
        raise NotFound(f"pig_latin.jsonl: trainings or tests of different lengths, {budgets}")
    ((tokens, examples),) = budgets
    shares: dict[str, list[float]] = {}
    for row in rows:
        shares.setdefault(row["variant"], []).append(row["new_words"])
    return {"tokens": f"{tokens:,}", "examples": examples, "shares": shares}


def _seeds() -> Mapping[str, object]:
    """The experiment of notebook 06 with three seeds: means, and from the lowest to the highest."""
    rows = whole_rows(RESULTS / "pythia.jsonl")
    values: dict[str, object] = {}
    for name, condition, part in (
        ("tuned", "LoRA", "held out"),
        ("hidden", "control, LoRA", "hidden from control"),
        ("random", "random weights, all tuned", "held out"),
    ):
        shares = [row[part]["all"] for row in rows if row["condition"] == condition]
        if len(shares) != 3:
            raise NotFound(f"pythia.jsonl: {len(shares)} seeds of {condition!r}, not three")
        values[name] = f"{statistics.mean(shares):.1%}"
        values[f"{name}_range"] = f"{min(shares):.1%} to {max(shares):.1%}"
    return values


def _course() -> Mapping[str, object]:
    """Where the course is, or nothing while no address is set."""
    return {"address": settings.repository()}


SOURCES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "course": _course,
    **{name: functools.partial(Notebook, name) for name in LOOKED_UP},
    "nb": _hands_on,
    "seeds": _seeds,
    "models": _models,
    "rules": _rules,
    "formulas": _formulas,
    "published": _published,
    "replication": _replication,
    "tried": _tried,
    "benchmarks": _benchmarks,
}


def keys(source: str) -> list[str]:
    """The names of a source's values."""
    return list(_source(source))


@functools.cache
def _source(name: str) -> Mapping[str, Any]:
    return SOURCES[name]()


def resolve(name: str) -> object:
    """The value of a placeholder.

    Raises:
        NotFound: there is no such name, or its source lacks it; the message names both.
    """
    head, _, rest = name.partition(".")
    if head not in SOURCES:
        raise NotFound(f"{name}: no source {head!r}; there are {', '.join(sorted(SOURCES))}")
    try:
        values = _source(head)
        if rest not in values:
            raise NotFound(f"no value {rest!r}; there are {', '.join(sorted(values))}")
        return values[rest]
    except (NotFound, OSError, LookupError, ValueError) as error:
        raise NotFound(f"{name}: {error}") from error
