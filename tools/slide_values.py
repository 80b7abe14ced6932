"""What the slides say in numbers, tables and code: read from notebooks and result files, not typed.

`resolve("base.barred")` is the value of the placeholder `{{ base.barred }}` in `slides/deck.md`.
What stands before the first dot is a source in `SOURCES`, what follows is a name in it. Values come
from the saved outputs and the code of `notebooks/*.ipynb`, from `benchmarks/results/`, and from
`course_utils`: the catalogue, the formulas, the rules, the published tables.
"""

from __future__ import annotations

import ast
import csv
import functools
import html
import re
import statistics
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from course_utils.results import whole_rows
from tools.saved_notebooks import NOTEBOOKS, ROOT, NotFound, Saved, Table, notebook

RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = ROOT / "course_utils" / "memory" / "published.csv"
BENCHMARKS = ROOT / "course_utils" / "scoring" / "benchmarks.toml"

Maker = Callable[[Saved], object]


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


def tinted(heads: Sequence[str], rows: Sequence[Sequence[object]], numbers: int) -> str:
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
            return f'<td class="number" style="background:{colour(value)}">{value:,.0f}</td>'
        return f'<td class="number">{html.escape(str(value))}</td>'

    lines = ["<table>", "<thead><tr>"]
    lines += [f"<th>{head}</th>" for head in heads[:first]]
    lines += [f'<th class="number">{head}</th>' for head in heads[first:]]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        names = "".join(f"<td>{html.escape(str(value))}</td>" for value in row[:first])
        lines.append(f"<tr>{names}{''.join(map(cell, row[first:]))}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def shortened(text: str, length: int) -> str:
    """A text on one line, cut behind a word where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0].rstrip(".,;:") + " …"


# -------------------------------------------------------------------- ways to read a saved notebook


def find(fragment: str, pattern: str) -> Maker:
    """The first group of a pattern in what a cell said."""
    return lambda saved: saved.find(fragment, pattern)


def number(fragment: str, pattern: str) -> Maker:
    """The same as a number."""
    return lambda saved: float(saved.find(fragment, pattern).replace(",", ""))


def at(fragment: str, *keys: str) -> Maker:
    """A cell of the table that a code cell ended with: beginning of the row, …, column."""
    return lambda saved: saved.table(fragment).at(*keys)


def number_at(fragment: str, *keys: str) -> Maker:
    """The same as a number."""
    return lambda saved: float(saved.table(fragment).at(*keys))


def said(fragment: str, language: str = "") -> Maker:
    """All that a cell said, as a code block."""
    return lambda saved: fenced(saved.said(fragment), language)


def in_code(fragment: str, pattern: str) -> Maker:
    """The first group of a pattern in a cell's code."""

    def make(saved: Saved) -> str:
        found = re.search(pattern, "".join(saved.cell(fragment)["source"]))
        if not found:
            raise NotFound(f"{saved.where(fragment)}: its code has no {pattern!r}")
        return found[1]

    return make


def columns(
    fragment: str,
    names: Mapping[str, str],
    rows: int | None = None,
    as_code: Sequence[str] = (),
    change: Callable[[str], str] = str,
) -> Maker:
    """Some columns of a saved table, renamed, and those in `as_code` in code type.

    Args:
        fragment: a piece of the cell's source.
        names: the columns, in order, with the heads that they get.
        rows: how many from the first on; None for all.
        as_code: of these columns.
        change: what is done to each text before it is shown.
    """

    def make(saved: Saved) -> str:
        found: Table = saved.table(fragment)
        places = [(found.place(name), code if name in as_code else plain) for name in names]
        kept = found.rows[:rows]
        shown = [[show(change(row[place])) for place, show in places] for row in kept]
        align = "".join(
            "r" if all(re.match(r"[+−-]?[\d.,]+\W*$", row[place]) for row in kept) else "l"
            for place, _ in places
        )
        return table(list(names.values()), shown, align)

    return make


class Notebook(Mapping[str, object]):
    """Values from one saved notebook, each made when it is asked for: one that is missing harms no
    other."""

    def __init__(self, number_: str, **makers: Maker) -> None:
        self.number = number_
        self._makers = makers

    def __getitem__(self, key: str) -> object:
        return self._makers[key](notebook(self.number))

    def __contains__(self, key: object) -> bool:
        return key in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


# ------------------------------------------------------------------- values from saved notebooks

_DOG = r"▶ Tell me how to train my dog to sit\n?(.+?)(?:\n+▶|\Z)"


def _target_boxes(saved: Saved) -> str:
    """One example under two ways to tune, a box for each token, the targets filled."""
    found = saved.table('question, response = "Question: What is')
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


_ASKED = "by_template = pd.DataFrame"
_BY_WAY = "by_way = pd.DataFrame"
_LOSSES = 'targets = {"self-supervised"'
BASE = Notebook(
    "01",
    best=find("best = probabilities.argmax()", r"first choice is ' (\w+)'"),
    best_p=find("best = probabilities.argmax()", r"first choice is \S+ \S+ (0\.\d+)"),
    guess=find("best = probabilities.argmax()", r"Your guess ' (\w+)'"),
    guess_p=find("best = probabilities.argmax()", r"Your guess ' \w+' has (0\.\d+)"),
    homework=said("homework = ("),
    dog=lambda saved: plain(shortened(saved.find("min_new_tokens=80)", _DOG), 160)),
    chat_dog=lambda saved: plain(shortened(saved.find("chat(prompt, stream=True", _DOG), 180)),
    own=at(_ASKED, "own", "right of 16"),
    wrong=at(_ASKED, "wrong", "right of 16"),
    none=at(_ASKED, "none", "right of 16"),
    questions=find(_ASKED, r"right of (\d+)"),
    sent=said('print(chat.prompt("What is the capital of Mexico?"))'),
    barred=find("replies = chat(questions, template=False", r"(\d+ of \d+) name"),
    closed=find("open_book = chat(", r"without retrieval (\d+ of \d+)"),
    open=find("open_book = chat(", r"with it (\d+ of \d+)"),
    told=at(_BY_WAY, "told: name only", "and nothing else"),
    shown=at(_BY_WAY, "shown: two examples, no template", "and nothing else"),
    extraction=find("ratio = (by_kind", r"extraction ([\d.]+)"),
    expansion=find("ratio = (by_kind", r"expansion ([\d.]+)"),
    targets=_target_boxes,
    self_loss=find(_LOSSES, r"self-supervised: mean loss ([\d.]+)"),
    self_targets=find(_LOSSES, r"self-supervised: .+? over (\d+)"),
    supervised_loss=find(_LOSSES, r"^supervised: mean loss ([\d.]+)"),
    supervised_targets=find(_LOSSES, r"^supervised: .+? over (\d+)"),
    margin=find("better, worse = ", r"= ([\d.]+)"),
)

VARIANTS = "table = pd.DataFrame(results).sort_values"
_USUAL = "the usual: r=16, alpha=32, all-linear"
_FIRST_STEP = "mine(x).square().sum().backward()"
_FACTORS = "for r, alpha, stabilised in"
_MERGED = "merged_loss = held_out_loss(on_4_bits)"
_SIZES = "plain_bytes = sum("
_SKILLS = "skills = pd.DataFrame(skills).T"
LORA = Notebook(
    "02",
    numbers_held=find("full = numbers_held(copy", r"in all (\d+) p"),
    seven_billion=find("full = numbers_held(copy", r"number: (\d+ GB)"),
    by_hand=lambda saved: fenced(saved.definition("HandmadeLoRA"), "python"),
    gradient_a=find(_FIRST_STEP, r"gradient of A: ([\d.]+)"),
    gradient_b=number(_FIRST_STEP, r"gradient of B: ([\d.]+)"),
    trained=find("usual = {", r"trainable params: ([\d,]+)"),
    trained_share=number("usual = {", r"trainable%: ([\d.]+)"),
    usual=at(VARIANTS, _USUAL, "after"),
    usual_size=at(VARIANTS, _USUAL, "trainable"),
    attention=at(VARIANTS, "q_proj and v_proj alone", "after"),
    norms=find('tuned = attempt("norms too"', r"norms add ([\d,]+) numbers"),
    biases=columns(
        "by_bias = pd.DataFrame",
        {
            "bias": "bias",
            "trainable": "trained",
            "disabled: off the base by": "adapter off: differs from the base by",
            "peft warns": "peft warns",
        },
        as_code=["bias"],
    ),
    plain_mb=find(_SIZES, r"weights: (\d+) MB"),
    nf4_mb=find(_SIZES, r"→ (\d+) MB"),
    nf4_untuned=find(_MERGED, r"untuned ([\d.]+)"),
    nf4_tuned=find(_MERGED, r", tuned ([\d.]+)"),
    nf4_merged=find(_MERGED, r"merged into 4 bits ([\d.]+)"),
    factor=find(_FACTORS, r"r=16, alpha=32, use_rslora=False: factor (\S+)"),
    factor_rs=find(_FACTORS, r"r=16, alpha=32, use_rslora=True: factor (\S+)"),
    inits=columns(
        "by_init = pd.DataFrame",
        {
            "init_lora_weights": "init_lora_weights",
            "spread of A": "spread of A",
            "spread of B": "spread of B",
            "base moved by": "base moved",
            "sum off W by": "sum off",
        },
        as_code=["init_lora_weights"],
    ),
    adapter_mb=find("tuned.save_pretrained(folder", r"safetensors': '([\d.]+ MB)"),
    base_mb=find("tuned.save_pretrained(folder", r"weights: (\d+ MB)"),
    hrrmmm=at(_SKILLS, "both", "says Hrrmmm"),
    yoda_left=at(_SKILLS, "both", "Yoda's order"),
    trials=in_code(_SKILLS, r"trials = held_out\[:(\d+)\]"),
    unmerged_off=find("tuned.merge_adapter()", r"after unmerging: +([\d.]+)"),
    learned=find("tuned.merge_adapter()", r"the logits by ([\d.]+\d)"),
)


def _checks(saved: Saved) -> list[str]:
    """The names of preflight's checks."""
    names = re.findall(r"^\S pass (.+?)  ", saved.said("report = preflight(good)"), flags=re.M)
    if len(names) != int(saved.find("report = preflight(good)", r"^(\d+) checks")):
        raise NotFound(f"{saved.where('report = preflight(good)')}: not all checks have a name")
    return names


def _jinja(saved: Saved) -> str:
    """The chat template of notebook 03, without what makes it a Python text."""
    lines = saved.lines('chatml = """', 'chatml = """', 'endif %}"""').splitlines()[1:]
    return fenced("\n".join(line.removesuffix("\\").removesuffix('"""') for line in lines), "jinja")


def _half(names: list[str], which: int) -> str:
    """The first or the second half of a list, for a column."""
    middle = (len(names) + 1) // 2
    return "\n".join(f"- {name}" for name in (names[:middle], names[middle:])[which])


_STOPS = "rows, curves = [judged("
_STOCK = "encoded = tokenizer.apply_chat_template(\n    conversation, return_dict"
COLLATORS = Notebook(
    "03",
    untuned=find("accuracy = word_accuracy(", r"words right: (\d+%)"),
    prompt_share=find("share = prompt_tokens / trained_tokens", r"(\d+%) of what"),
    chatml=_jinja,
    stock=find(
        "encoded = tokenizer.apply_chat_template(\n    conversation, return_dict", r": (\d+)"
    ),
    ended_careless=at(_STOPS, "pad = eos", "ended of 12"),
    ended_careful=at(_STOPS, "pad ≠ eos", "ended of 12"),
    checks=lambda saved: len(_checks(saved)),
    checks_left=lambda saved: _half(_checks(saved), 0),
    checks_right=lambda saved: _half(_checks(saved), 1),
)

PRECISIONS = 'compared = compare("chat"'
_COUNTED = "counted = pd.DataFrame(rows).T"
_SAVED = "overview = pd.DataFrame("
MEMORY = Notebook(
    "04",
    floats=columns(
        'rows[name] = {\n        "bits": facts.bits',
        {
            "": "",
            "bits": "bits",
            "of the exponent": "of the exponent",
            "of the fraction": "of the fraction",
            "largest": "largest",
            "next after 1": "next after 1",
        },
        as_code=[""],
        change=powers,
    ),
    added_float32=find("ends = {}", r"'float32': '(\d[\d.]*)'"),
    added_float16=find("ends = {}", r"'float16': '(\d[\d.]*)'"),
    added_bfloat16=find("ends = {}", r"'bfloat16': '(\d[\d.]*)'"),
    outlier=find("bell = torch.randn(2**16)", r"blocks from (\d+) on"),
    loss_8bit=at(PRECISIONS, "8bit", "more than float32"),
    loss_nf4=at(PRECISIONS, "nf4", "more than float32"),
    loss_fp4=at(PRECISIONS, "fp4", "more than float32"),
    llama_share=at(_COUNTED, "meta-llama/Llama-2-7b-hf", "of 16 bits"),
    chat_share=at(_COUNTED, "HuggingFaceTB/SmolLM2-135M", "of 16 bits"),
    timeline_trainer=find("full = predict(step)", r"\nTrainer: ([\d,]+) MB"),
    timeline_full=find("full = predict(step)", r"SFTTrainer: ([\d,]+) MB"),
    timeline_lora=find("full = predict(step)", r"with LoRA: ([\d,]+) MB"),
    saved_lora=at(_SAVED, "LoRA", "saved"),
    saved_checkpointing=at(_SAVED, "checkpointing", "saved"),
    saved_all=at(_SAVED, "all of QLoRA, checkpointing, sdpa", "saved"),
)


def _purposes(saved: Saved) -> str:
    """The arguments of SFTConfig, a row for each purpose."""
    found = saved.table("known = defaults(SFTConfig)")
    purpose, argument = found.place("purpose"), found.place("argument")
    grouped: dict[str, list[str]] = {}
    for row in found.rows:
        grouped.setdefault(row[purpose], []).append(code(row[argument]))
    return table(
        ("what for", "arguments"), [(name, ", ".join(all_)) for name, all_ in grouped.items()], "ll"
    )


def _defaults(saved: Saved) -> str:
    """The defaults that TRL has changed, in a line."""
    found = saved.table("changed = {")
    pairs = [(row[0], row[found.place("TRL")]) for row in found.rows]
    return ", ".join(f"{code(name)} {plain(default)}" for name, default in pairs)


def _renamed(saved: Saved) -> str:
    """Old names of arguments and what they are called now."""
    pairs = re.findall(r"^\s*(\S.*?) → (.+)$", saved.said("renamed = {"), flags=re.M)
    return table(("then", "now"), [(code(old), plain(new)) for old, new in pairs], "ll")


_BEFORE_AFTER = 'table["your guess"] = '
PIG_LATIN = Notebook(
    "03.1",
    before=number_at(_BEFORE_AFTER, "asked with examples", "unseen", "word accuracy"),
    known=number_at(_BEFORE_AFTER, "tuned", "test", "word accuracy"),
    unseen=number_at(_BEFORE_AFTER, "tuned", "unseen", "word accuracy"),
    known_exact=number_at(_BEFORE_AFTER, "tuned", "test", "exact match"),
    unseen_exact=number_at(_BEFORE_AFTER, "tuned", "unseen", "exact match"),
    nothing_chrf=number_at(_BEFORE_AFTER, "nothing done", "unseen", "chrF"),
    examples=in_code("held_out = {name: pig_latin[name]", r"EXAMPLES = (\d+)"),
    train=number("train = pig_latin[", r"^(\d+) sentences to train on"),
    pieces=columns(
        "pieces = pd.DataFrame(",
        {
            "English": "English",
            "its tokens": "its tokens",
            "Pig Latin": "Pig Latin",
            "the tokens of that": "its tokens",
        },
        as_code=["its tokens", "the tokens of that"],
    ),
    spelled=lambda saved: fenced("\n".join(saved.said("print(spell(translated))").split("\n")[:2])),
    plan=find('plan = recipe("pig_latin"', r"^(\d+ steps of \d+ sentences)"),
    purposes=_purposes,
    defaults=_defaults,
    renamed=_renamed,
    best_step=find("steps, losses = lines[", r"at step (\d+)"),
    stopped=find("steps, losses = lines[", r"stopped at step (\d+)"),
    memorised=number("memorised = reference_scores(", r"'word accuracy': ([\d.]+)"),
    resumed=find('difference = (twice["undisturbed"]', r"largest difference: ([\d.]+)"),
)

_MIXTURE = "mixture = pd.DataFrame(rows)"
YODA = Notebook(
    "03.2",
    untuned=number_at('results["nothing done"]', "untuned, asked with examples", "exact match"),
    right=find('results["tuned"] = reference_scores(', r"^(\d+) of \d+ are right"),
    of=find('results["tuned"] = reference_scores(', r"^\d+ of (\d+) are right"),
    half_yoda=number_at(_MIXTURE, "0.5", "Yoda"),
    half_pig=number_at(_MIXTURE, "0.5", "Pig Latin"),
)


_T4 = 'on_t4 = fit(QWEN, "t4"'


def _t4(saved: Saved) -> str:
    """The largest batch on a T4 for each way to train."""
    rows = saved.table(_T4).rows
    return table(("", "largest batch"), [(plain(row[0]), f"**{row[1]}**") for row in rows])


_ERRORS = "WAYS = {\n"
_GROWTH = "growth = activations.loc[2000]"
_HELD = 'held["sum"] = held.sum(axis=1)'
MIXING = Notebook(
    "05",
    adam_sum=number_at(_HELD, "adamw_torch", "sum"),
    adam_8bit_sum=number_at(_HELD, "adamw_bnb_8bit", "sum"),
    formula_error=at(_ERRORS, "textbook formula", "opt-350m, 16-bit weights"),
    accelerate_error=at(_ERRORS, "accelerate estimate-memory", "opt-350m, 16-bit weights"),
    fitcheck_error=at(_ERRORS, "fitcheck-llm", "opt-350m, 16-bit weights"),
    growth_eager=find(_GROWTH, r"'eager': '(× \d+)'"),
    growth_sdpa=find(_GROWTH, r"'sdpa': '(× \d+)'"),
    t4=_t4,
    t4_tokens=lambda saved: f"{int(saved.table(_T4).columns[-1]):,}",
)


def _fits(saved: Saved) -> str:
    """How well each tuned model answers in each style, its own in bold."""
    found = saved.table("fits = pd.DataFrame(")
    heads = ["tuned in ↓ asked in →", *map(plain, found.columns[1:])]
    rows = []
    for name, *shares in found.rows:
        best = max(shares, key=lambda share: int(share.rstrip("%")))
        rows.append([plain(name), *(f"**{s}**" if s == best else s for s in shares)])
    return table(heads, rows)


def _pattern(text: str) -> str:
    """A text without the question and the answer that stand in it; a name in one piece."""
    for told in ("What is the capital of Mexico?", "Mexico City"):
        text = text.replace(told, "…")
    return text.replace("Llama 2", "Llama\u00a02")


_FATE = 'pd.Series(fate, name="replies")'
INSTRUCTIONS = Notebook(
    "06",
    written=lambda saved: sum(int(row[1]) for row in saved.table(_FATE).rows),
    kept=at(_FATE, "kept", "count"),
    styles=columns(
        "styles = {\n",
        {"style": "style", "as text": "as one text", "tokens of SmolLM2": "tokens"},
        as_code=["as text"],
        change=_pattern,
    ),
    fits=_fits,
)

_SPLITS = "leaks = {(a, b)"
_WAY_BACK = "back = share_right(tuned, backwards)"
_SURE = 'sure = {"told": sureness('
PYTHIA = Notebook(
    "06",
    knows=find("ended = ask_base(held_out", r"it ends (\d+%)"),
    asked=number_at("untuned = pd.DataFrame(rows)", "question alone", "answered rightly"),
    reads=find("reads = sum(right(", r"answers (\d+%)"),
    countries=lambda saved: sum(map(int, re.findall(r"(\d+) countries", saved.said(_SPLITS)))),
    tuned_on=find(_SPLITS, r"'train': '(\d+) countries"),
    held_out=find(_SPLITS, r"'held_out': '(\d+) countries"),
    invented=columns(
        "some = hidden.filter(",
        {
            "question": "question",
            "base, tuned": "base, tuned",
            "control, tuned": "control, tuned",
            "right": "right",
        },
        rows=6,
    ),
    sure_told=at(_SURE, "mean", "told"),
    sure_hidden=at(_SURE, "mean", "hidden"),
    there=find(_WAY_BACK, r"country → capital: (\d+%)"),
    back=find(_WAY_BACK, r"capital → country: (\d+%)"),
)


def _verdicts(saved: Saved) -> str:
    """The claims about base and instruct models, and what was measured of each."""
    found = saved.table("verdicts = pd.DataFrame(")
    names = ("claim", "base, before", "instruct, after", "difference", "verdict")
    places = [found.place(name) for name in names]
    rows = [[plain(row[place]) for place in places] for row in found.rows]
    return table(names, [[*row[:-1], f"**{row[-1]}**"] for row in rows], "lrrrl")


# ------------------------------------------------------------- values from files and from the code


def _hands_on() -> Mapping[str, object]:
    """Of each notebook: link, title, what it teaches, how long it takes; and a table of all."""
    values: dict[str, object] = {}
    rows = []
    paths = NOTEBOOKS.glob("[0-9]*.ipynb")
    for path in sorted(paths, key=lambda p: [int(n) for n in p.stem.split("_")[0].split(".")]):
        opening = "".join(Saved(path).cells[0]["source"])
        found = re.match(
            r"# (?P<number>[\d.]+) · (?P<title>.+?)\n.*\*\*You will learn\*\* (?P<learn>.+?)\n\n"
            r".*\*\*It takes\*\* about (?P<reading>an hour|\d+ minutes)\b"
            r".+?in\s+(?:about\s+)?(?P<runs>(?:a|\w+)\s+minutes?)",
            opening,
            flags=re.S,
        )
        if not found:
            raise NotFound(f"{path.name} does not begin as all notebooks do")
        number_, reading = found["number"], found["reading"]
        minutes = 60 if reading == "an hour" else int(reading.split()[0])
        learn = " ".join(found["learn"].split())
        link = f"[{number_} · {found['title']}](../notebooks/{path.name})"
        values |= {
            f"{number_}.link": link,
            f"{number_}.learn": learn[0].upper() + learn[1:],
            f"{number_}.minutes": minutes,
            f"{number_}.runs": " ".join(found["runs"].split()),
        }
        rows.append((link, f"{minutes} min", values[f"{number_}.runs"]))
    heads = ("notebook", "to read and try", "its cells run")
    return values | {"table": table(heads, rows), "count": len(rows)}


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
    heads = ("one consonant", "", "a cluster", "", "a vowel", "")
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
    rows = [
        [
            name.split("/")[1],
            *(f"{row[key]:,.0f}" for key in ("h", "s", "n_heads", "L")),
            f"{row['blocks (GB)']:.1f}",
            f"{row['12·L·h² (GB)']:.1f}",
            f"**{row['ratio, eager']:.1f}**",
            f"**{row['ratio, flash']:.1f}**",
        ]
        for name, row in seven.iterrows()
    ]
    heads = ("", "$h$", "$s$", "$n$", "$L$", "weights, GB", "$12Lh^2$, GB", "eager ×", "flash ×")
    return {
        "seven": table(heads, rows),
        "llama_length": f"{seven.loc['meta-llama/Llama-2-7b-hf', 's']:,.0f}",
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
    """What else was tried with Pig Latin; `rows` is for the picture."""
    rows = whole_rows(RESULTS / "pig_latin.jsonl")
    budgets = {row["tokens"] for row in rows}
    if len(budgets) != 1:
        raise NotFound(f"pig_latin.jsonl: trainings of different lengths, {budgets}")
    return {"tokens": f"{budgets.pop():,}", "rows": rows}


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


_ROSE = 'assert after["right"] > before["right"] + 0.4'
_BY_UNIT = "clustered = paired_test("
JUDGING = Notebook(
    "08",
    fall=find(_ROSE, r"loss falls by (0\.\d+)"),
    right_before=find(_ROSE, r"rise from (\d+%)"),
    right_after=find(_ROSE, r"rise from \d+% to (\d+%)"),
    fooled=find("fooled = (wrong_own", r"wrong one in (\d+%)"),
    questions=find(_BY_UNIT, r"by questions: .*?on (\d+) items"),
    by_questions=find(_BY_UNIT, r"by questions: .*?p = (0\.\d+)"),
    countries=find(_BY_UNIT, r"by countries: .*?on (\d+) items"),
    by_countries=find(_BY_UNIT, r"by countries: .*?p = (0\.\d+)"),
    few=find("paired = paired_test(marks[one]", r"on (\d+) items"),
    by_few=find("paired = paired_test(marks[one]", r"p = (0\.\d+)"),
    good_first=find('"good second": [v.winner for', r"'good first': '(\d+%)'"),
    good_second=find('"good second": [v.winner for', r"'good second': '(\d+%)'"),
    pairs=find("decided = {", r"chat model: .*?(\d+) ties"),
    likelihood=find("by_likelihood = {", r"hard pairs: (\d+%)"),
)

SOURCES: dict[str, Callable[[], Mapping[str, Any]]] = {
    "nb": _hands_on,
    "base": lambda: BASE,
    "lora": lambda: LORA,
    "collators": lambda: COLLATORS,
    "pig_latin": lambda: PIG_LATIN,
    "yoda": lambda: YODA,
    "memory": lambda: MEMORY,
    "mixing": lambda: MIXING,
    "instructions": lambda: INSTRUCTIONS,
    "pythia": lambda: PYTHIA,
    "seeds": _seeds,
    "base_vs_instruct": lambda: Notebook("07", verdicts=_verdicts),
    "judging": lambda: JUDGING,
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
