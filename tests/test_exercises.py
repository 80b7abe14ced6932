"""The exercises' checks: right, wrong and empty answers, and no way to pass without one."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from benchmarks import pythia
from course_utils import load_tokenizer, runner
from course_utils.data import load_data
from course_utils.errors import UnknownName
from course_utils.exercises import _check as exercises
from course_utils.exercises import _notebook_01, _notebook_03_1, _notebook_03_2
from course_utils.memory import Setup, predict
from course_utils.models import recipe
from course_utils.scoring import contamination_report
from tools import notebooks

ALL = exercises.known()


def solutions() -> dict[str, Callable]:
    """The solved exercise cells of every source, executed: names to functions."""
    found: dict[str, Callable] = {"torch": torch, "pd": pd, "LoraConfig": LoraConfig}
    found |= {"SFTConfig": SFTConfig, "SFTTrainer": SFTTrainer}
    for source in notebooks.sources():
        for cell in notebooks.jupytext.read(source).cells:
            if "exercise" in cell.metadata.get("tags", []):
                assert "### BEGIN SOLUTION" in cell.source
                exec(cell.source, found)  # the course's own text
    return found


def checks() -> dict[str, str]:
    """Which function each exercise of the notebooks checks, by the `check` cells."""
    text = "\n".join(path.read_text() for path in notebooks.sources())
    return dict(re.findall(r'^check\("([\w.]+)", (\w+)', text, flags=re.M))


def share_after(rows: Dataset, adapter: dict | None = None) -> float:
    """What notebook 06 hands to its checks: tune the base, ask about held-out countries."""
    folder = pythia.folder(0, "base")
    tokenizer = load_tokenizer(folder)
    pairs = rows.map(pythia.as_pair, remove_columns=rows.column_names)
    model = pythia.tune(pythia.load(0, "base"), tokenizer, pairs, adapter or pythia.LORA)
    return pythia.score(model, tokenizer, load_data("countries")["held_out"])["all"]


def extra(name: str) -> tuple:
    """What else an exercise's check is handed."""
    if name.startswith("06."):
        return (share_after,)
    return (runner("chat"),) if name == "01.3" else ()


def test_each_check_is_used_and_each_used_check_exists() -> None:
    """Notebooks and checks agree on the exercises there are."""
    assert sorted(checks()) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_the_solution_is_accepted(name: str, chat_folder: Path) -> None:
    """The single source of an exercise solves it."""
    verdict = exercises.grade(name, solutions()[checks()[name]], *extra(name))
    assert verdict.solved, verdict.message


def does_nothing(*args: object) -> None:
    """What an exercise holds before it is done."""
    pass


def half_done(*args: object) -> None:
    """Something has been written above the line that was there."""
    print(args)
    ...  # your code here


def forgotten(*args: object) -> None:
    """Computes, and returns nothing."""
    print(args)


@pytest.mark.parametrize("name", ALL)
def test_nothing_does_not_pass(name: str, chat_folder: Path) -> None:
    """`pass`, `...` and nothing at all are recognised as not done, not as wrong."""
    for empty in (does_nothing, half_done, lambda *args: ..., None, ...):
        verdict = exercises.grade(name, empty, *extra(name))
        assert not verdict.solved
        assert not verdict.tried
        assert "Replace the ..." in verdict.message
    verdict = exercises.grade(name, forgotten, *extra(name))
    assert not verdict.solved
    assert not verdict.tried
    assert "gives back None. Is a `return` missing" in verdict.message


@pytest.mark.parametrize("name", ALL)
def test_junk_is_wrong_with_a_reason(name: str, chat_folder: Path) -> None:
    """What can be typed by mistake: the learner gets a sentence and no traceback."""
    for junk in ("a text", lambda *args: 42, lambda *args: 1 / 0, lambda *args: float("nan")):
        verdict = exercises.grade(name, junk, *extra(name))
        assert not verdict.solved
        assert verdict.tried
        assert len(verdict.message) > 20


NUMBERS = ["02.1", "02a.1", "03.1", "03.1.1", "03.1.2", "04.1", "04.1.1", "05.3", "07.1", "08.1"]
NUMBERS += ["10.1"]
LISTS = ["03.2", "03.3", "03.1.3", "08.3"]


@pytest.mark.parametrize("name", NUMBERS + LISTS)
@pytest.mark.parametrize("kind", [np.array, torch.tensor, Fraction, tuple])
def test_other_types_of_the_right_answer(name: str, kind: Callable) -> None:
    """NumPy's and torch's numbers and arrays, fractions and tuples equal what is asked for."""
    right = solutions()[checks()[name]]

    def converted(*args: object) -> object:
        answer = right(*args)
        if isinstance(answer, int | float):
            return Fraction(answer) if kind is tuple else kind(answer)
        if any(isinstance(part, list) for part in answer):  # rows of different lengths
            return [(tuple if kind is Fraction else kind)(row) for row in answer]
        return (tuple if kind is Fraction else kind)(list(answer))

    verdict = exercises.grade(name, converted)
    assert verdict.solved, verdict.message


def smallest_rest(before: torch.Tensor, after: torch.Tensor, r: int, niter: int) -> tuple:
    """The answer to 02a.2 by the approximate SVD."""
    u, s, v = torch.svd_lowrank(after - before, q=r, niter=niter)
    return v.T, u * s


def roots(before: torch.Tensor, after: torch.Tensor, r: int) -> tuple:
    """The answer to 02a.2 with half of the singular values on each side."""
    u, s, v = torch.linalg.svd(after - before)
    return s[:r, None].sqrt() * v[:r], u[:, :r] * s[:r].sqrt()


def eigen(before: torch.Tensor, after: torch.Tensor, r: int) -> tuple:
    """The answer to 02a.2 without an SVD."""
    a = torch.linalg.eigh((after - before).T @ (after - before)).eigenvectors[:, -r:].T
    return a, (after - before) @ a.T


def best_fit(lengths: list[int], room: int) -> list[list[int]]:
    """Each into the fullest row that has room, by NumPy's order."""
    rows: list[list[int]] = []
    for index in np.argsort(lengths)[::-1]:
        fit = [row for row in rows if sum(lengths[i] for i in [*row, index]) <= room]
        if fit:
            max(fit, key=lambda row: sum(lengths[i] for i in row)).append(index)
        else:
            rows.append([index])
    return rows


def token_by_token(ids: list[int], prompt: int, end: int) -> list[int]:
    """The answer to 03.2 in a loop that notes when the end has come."""
    labels, ended = [], False
    for place, token in enumerate(ids):
        labels.append(-100 if place < prompt or ended else token)
        ended |= place >= prompt and token == end
    return labels


def up_to_the_end(ids: list[int], prompt: int, end: int) -> np.ndarray:
    """The answer to 03.2 with NumPy."""
    labels, found = np.full(len(ids), -100), np.flatnonzero(np.array(ids[prompt:]) == end)
    stop = prompt + found[0] + 1 if len(found) else len(ids)
    labels[prompt:stop] = ids[prompt:stop]
    return labels


def by_bits(fits: Callable) -> int:
    """From the largest power of two down."""
    batch = 0
    for bit in range(9, -1, -1):
        if batch + 2**bit <= 1000 and fits(batch + 2**bit):
            batch += 2**bit
    return batch


def by_levels(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """Each number to the nearest of the levels, which are written down."""
    rows = weight.clone().reshape(-1, block)
    for row in rows:
        levels = torch.linspace(row.min().item(), row.max().item(), 2**bits)
        row.copy_(levels[(row[:, None] - levels).abs().argmin(1)])
    return rows.reshape(weight.shape)


def with_zeros(weight: torch.Tensor, bits: int, block: int) -> torch.Tensor:
    """The answer to 04.1.2 that leaves blocks of equal numbers alone."""
    rows = weight.reshape(-1, block).double()
    low = rows.min(1, keepdim=True).values
    step = (rows.max(1, keepdim=True).values - low) / (2**bits - 1)
    found = torch.where(step > 0, low + ((rows - low) / step).round() * step, rows)
    return found.reshape(weight.shape).to(weight.dtype)


def per_256(double: bool) -> int:
    """The bits of 256 scales, for 04.1.1."""
    return 256 * 8 + 32 if double else 256 * 32


def stop(losses: list[float], patience: int, least: float, better: Callable) -> tuple[int, int]:
    """The answer to 03.1.3, but for what counts as better than those before."""
    waited = 0
    for index in range(1, len(losses)):
        waited = 0 if better(losses[index], losses[:index], least) else waited + 1
        if waited == patience:
            break
    else:
        index = len(losses) - 1
    return index, int(np.argmin(losses[: index + 1]))


def consume(
    reply: str, answer: str, others: set[str], escape: Callable[[str], str] = re.escape
) -> np.bool_:
    """The answer to 08.2 that takes each name out, the longest first."""
    found = set()
    for name in sorted({answer, *others}, key=len, reverse=True):
        reply, times = re.subn(rf"(?<!\w){escape(name)}(?!\w)", " ", reply, flags=re.I)
        found |= {name} if times else set()
    return np.bool_(found == {answer})


def by_place(reply: str, answer: str, others: set[str]) -> bool:
    """The answer to 08.2 that compares where names stand: one inside a longer one is left out."""
    spans = {
        (name, match.span())
        for name in {answer, *others}
        for match in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", reply, re.IGNORECASE)
    }
    outer = {
        name
        for name, (start, end) in spans
        if not any(a <= start and end <= b and b - a > end - start for _, (a, b) in spans)
    }
    return outer == {answer}


def words_of(texts: list[str]) -> list[set[str]]:
    """The words of each text, for 08.3."""
    return [set(re.findall(r"\w+", text.lower())) for text in texts]


def rarest_two(test: list[str], train: list[str]) -> np.ndarray:
    """The answer to 08.3 that looks for the two rarest words of each text in one other."""
    tests, trains = words_of(test), words_of(train)
    count = Counter(word for text in [*tests, *trains] for word in text)
    rare = [set(sorted(sorted(text), key=count.__getitem__)[:2]) for text in tests]
    return np.array([max(len(two & other) for other in trains) for two in rare])


def cosines(test: list[str], train: list[str]) -> list[float]:
    """The answer to 08.3 by the angle between texts, whose words weigh 1 / their count."""
    tests, trains = words_of(test), words_of(train)
    count = Counter(word for text in [*tests, *trains] for word in text)

    def size(words: set[str]) -> float:
        return sum(count[word] ** -2 for word in words)

    return [
        max(size(text & other) / (size(text) * size(other)) ** 0.5 for other in trains)
        for text in tests
    ]


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The answer to 07.2, as a list."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
    ]


def both_ways(row: dict) -> list[list[dict[str, str]]]:
    """Each row of 07.3 twice, under SYSTEM in style and plainly."""
    return [conversation(row, True, ASKED_FOR), conversation(row, False, "Be plain.")]


SEVEN = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("01.1", lambda x, t: softmax(x / max(t, 1e-8))),
        ("01.1", lambda x, t: softmax(x.double() / t) if t else (x == x.max()).int()),
        ("02.2", lambda w, A, B, a, r: torch.addmm(w, B, A, alpha=a / r)),
        ("02.2", lambda w, A, B, a, r: w + B.mul_(a / r) @ A),
        ("02a.1", lambda shapes, mb: int(mb * 1e6 / 4 / np.array(shapes).sum())),
        ("02a.1", lambda shapes, mb: max(r for r in range(99) if r * size(shapes) <= mb)),
        ("02a.1", lambda shapes, mb: np.floor(mb / size(shapes))),
        ("02a.2", lambda *given: smallest_rest(*given, niter=2)),
        ("02a.2", lambda *given: smallest_rest(*given, niter=4)),
        ("02a.2", roots),
        ("02a.2", eigen),
        ("03.1", lambda lengths: 1 - np.mean(lengths) / np.max(lengths)),
        ("03.1", lambda lengths: (1 - torch.tensor(lengths) / max(lengths)).double().mean()),
        ("03.2", token_by_token),
        ("03.2", up_to_the_end),
        ("03.3", best_fit),
        ("03.3", lambda *given: dict(enumerate(best_fit(*given))).values()),
        ("03.3", lambda *given: [set(row) for row in best_fit(*given)]),
        ("03.3", lambda *given: [np.array(row) for row in best_fit(*given)]),
        ("03.1.1", lambda passes, n, batch, more: passes * np.ceil(n / (batch * more))),
        ("03.1.1", lambda passes, n, batch, more: passes * int(n / batch / more + 1 - 1e-9)),
        ("03.1.3", lambda *g: stop(*g, lambda loss, old, least: min(old) - loss > least)),
        ("04.1", lambda p, bits, a: (p * bits / 8 + 16 * a) * 1e-9),
        ("04.1", lambda p, bits, a: np.float64(p * bits + 128 * a) / 8 / 10**9),
        ("04.1", lambda p, bits, a: Fraction(p * bits // 8 + sum([4 * a] * 4), 10**9)),
        ("04.2", lambda setup: rise(setup, setup.accumulation, 2 * setup.accumulation)),
        ("04.2", lambda setup: rise(setup, setup.accumulation, None)),
        ("04.2", lambda setup: round(rise(setup, setup.accumulation, None), 1)),
        ("04.1.1", lambda bits, block, double: bits + (8.125 if double else 32) / block),
        ("04.1.1", lambda bits, block, d: (bits * block * 256 + per_256(d)) / block / 256),
        ("04.1.1", lambda bits, block, d: torch.tensor(bits + per_256(d) / 256 / block)),
        ("04.1.2", by_levels),
        ("04.1.2", lambda weight, bits, block: with_zeros(weight, bits, block)),
        ("04.1.2", lambda weight, bits, block: affine(weight, bits, block)),
        ("04a.1", lambda x, most: (x.abs() > most).any(0).nonzero()),
        ("04a.1", lambda x, most: {i for i in range(x.shape[1]) if x[:, i].abs().max() > most}),
        ("04a.1", lambda x, most: np.flatnonzero(np.abs(x.numpy()).max(axis=0) > most)),
        ("05.3", by_bits),
        ("05a.1", lambda told, found, share: explained(told, found, share)),
        ("05a.1", lambda told, found, share: tuple(explained(told, pd.Series(found), share))),
        ("05a.1", lambda *given: [name for name in explained(*given) if True]),
        ("05.3", lambda fits: float(by_bits(fits))),
        ("06.1", lambda rows: chosen(19)(rows).shuffle(seed=0)),
        ("06.1", lambda rows: Dataset.from_list(chosen(19)(rows).to_list())),
        ("06.2", lambda: {"r": 2, "target_modules": "all-linear"}),
        ("06.2", lambda: {"r": 4, "use_rslora": True, "target_modules": ["query_key_value"]}),
        ("06.2", lambda: {"r": 1, "lora_alpha": 4, "target_modules": ["dense", "query_key_value"]}),
        ("07.1", lambda p, q: torch.nn.functional.kl_div(q.log(), p, reduction="sum")),
        ("07.1", lambda p, q: terms(p, q).nansum(0, keepdim=True)),
        ("07.2", lambda points: np.array(front(points))),
        ("07.2", lambda points: {name: points[name] for name in front(points)}.keys()),
        ("07.3", lambda rows: [c for row in rows for c in both_ways(row)]),
        ("07.3", lambda rows: [both_ways(row)[place > 79] for place, row in enumerate(rows)]),
        ("07.3", lambda rows: [random.choice(both_ways(row)) for row in rows]),
        ("08.1", lambda width, n, wanted: round(n * (width / wanted) ** 2)),
        ("08.1", lambda width, n, wanted: int(n * width**2 // wanted**2) + 1),
        ("08.2", consume),
        ("08.2", by_place),
        ("08.3", rarest_two),
        ("08.3", cosines),
        ("yoda.format", lambda row: messages(YODA, row["yoda_extra"], row["sentence"])),
        ("yoda.format", lambda row: {**messages(YODA, row.pop("yoda_extra"), row["sentence"])}),
        ("yoda.format", lambda row: {**row, **messages(YODA, row["yoda_extra"], row["sentence"])}),
        ("yoda.baseline", lambda reply, rows: shares(reply, rows)),
        ("yoda.baseline", lambda reply, rows: shares(reply, rows, each_alone)),
        ("yoda.baseline", lambda reply, rows: shares(reply, rows, mean=np.mean, role="system")),
        ("yoda.trainer", lambda *given: made(*given, adapter={"r": 32, "target_modules": SEVEN})),
        ("yoda.trainer", lambda *given: made(*given, lr_scheduler_type="cosine", seed=1)),
        ("yoda.trainer", lambda *given: made(*given, warmup_steps=0.1, logging_steps=0.02)),
        ("yoda.trainer", lambda *given: made(*given, adapter={"use_dora": True})),
        ("yoda.evaluation", lambda *given: compared(*given)),
        ("yoda.evaluation", lambda *given: compared(*given, each_alone)),
        ("yoda.evaluation", lambda *given: pd.DataFrame(compared(*given).to_dict("records"))),
        ("09.1", lambda effective, one, world: whole_batches(effective, one, world)),
        ("09.1", lambda *given: float(whole_batches(*given))),
        ("09.1", lambda effective, one, world: whole_batches(effective, world, one)),
        ("09.2", lambda means, tokens: by_tokens(means, tokens)),
        ("09.2", lambda means, tokens: by_tokens(means, np.array(tokens))),
        ("09.2", lambda means, tokens: by_tokens(means[::-1], tokens[::-1])),
        ("09.3", lambda rows, world: cut(rows, world)),
        ("09.3", lambda rows, world: tuple(cut(rows, world))),
        ("09.3", lambda rows, world: [float(each) for each in cut(rows, world)]),
    ],
)
def test_other_ways_to_the_right_answer(name: str, right: Callable, chat_folder: Path) -> None:
    """What is right is accepted, however it was found."""
    more = ((lambda rows, options=None: 1.0),) if name.startswith("06.") else ()
    verdict = exercises.grade(name, right, *more)
    assert verdict.solved, verdict.message


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Short, for the wrong answers below."""
    return x.softmax(-1)


def one_hot(x: torch.Tensor) -> torch.Tensor:
    """The right answer at temperature 0, so that a wrong one is wrong elsewhere."""
    return torch.nn.functional.one_hot(x.argmax(), len(x)).float()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x, t: x, "sum to"),
        (lambda x, t: softmax(x), "temperature 0.5"),
        (lambda x, t: softmax(x * t) if t else one_hot(x), "too little"),
        (lambda x, t: softmax(x / t), "not finite"),
        (lambda x, t: softmax(x / t) if t else softmax(x), "temperature 0"),
        (lambda x, t: softmax(x)[0], "a tensor of 3"),
    ],
)
def test_wrong_temperatures(wrong: Callable, said: str) -> None:
    """Each usual slip gets its own remark."""
    verdict = exercises.grade("01.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s, q: q, "system's text"),
        (lambda s, q: f"{s} {q}", "does not open"),
        (lambda s, q: f"<|im_start|>system\n{s}<|im_start|>user\n{q}", "does not close"),
        (
            lambda s, q: f"<|im_start|>system\n{s}<|im_end|>\n<|im_start|>user\n{q}<|im_end|>\n",
            "assistant",
        ),
        (
            lambda s, q: (
                f"<|im_start|>system\n{s}<|im_end|><|im_start|>user\n{q}<|im_end|>"
                "<|im_start|>assistant\n"
            ),
            "go on with '<|im_start' as yours does",
        ),
    ],
)
def test_wrong_templates(wrong: Callable, said: str) -> None:
    """From far off to nearly right."""
    verdict = exercises.grade("01.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


def test_wrong_opposites(chat_folder: Path) -> None:
    """A plain question does not do, and neither does giving the answers away."""
    ask = runner("chat")
    plain = exercises.grade("01.3", lambda word: f"What is the opposite of {word}?", ask)
    assert not plain.solved
    assert "of 10 are right" in plain.message
    cheat = ", ".join(_notebook_01._OPPOSITES.values())
    given_away = exercises.grade("01.3", lambda word: f"{cheat} {word}", ask)
    assert "away" in given_away.message


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture) -> None:
    """Each wrong try brings one hint more, until there are no more; an empty one brings none."""
    exercises._attempts.clear()
    counts = []
    for answer in (..., *[lambda x, t: x] * 5):
        exercises.check("01.1", answer)
        counts.append(capsys.readouterr().out.count("Hint:"))
    assert counts == [0, 1, 2, 3, 3, 3]


def test_the_answer_is_never_given() -> None:
    """No line of a solution stands in a hint."""
    text = "\n".join(path.read_text() for path in notebooks.sources())
    blocks = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", text, flags=re.S)
    lines = {line.strip() for block in blocks for line in block.splitlines()}
    lines = {line for line in lines if len(line) > 15}
    assert lines
    hints = " ".join(hint for each in exercises._exercises.values() for hint in each.hints)
    assert not [line for line in lines if line in hints]


def test_unknown_exercise() -> None:
    """The known ones are named."""
    with pytest.raises(UnknownName, match=r"01\.1"):
        exercises.check("1.1.1", None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda lengths: sum(lengths) / (len(lengths) * max(lengths)), "*not* padding"),
        (lambda lengths: 1 - min(lengths) / max(lengths), "one row"),
        (lambda lengths: len(lengths) * max(lengths) - sum(lengths), "between 0 and 1"),
        (lambda lengths: 0.1, "share of all places"),
        (lambda lengths: round(1 - sum(lengths) / len(lengths) / max(lengths), 2), "round"),
        (lambda lengths: str(lengths), "a number is expected"),
        (lambda lengths: sum(max(lengths) - n for n in lengths) / sum(lengths), "of all places"),
        (lambda lengths: float("nan"), "between 0 and 1"),
        (lambda lengths: True, "a number is expected"),
    ],
)
def test_wrong_padding(wrong: Callable, said: str) -> None:
    """The other share, one row's share, places in place of a share."""
    verdict = exercises.grade("03.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said.lower() in verdict.message.lower()


def everything(ids: list[int], prompt: int, end: int) -> list[int]:
    """Trains on the prompt too."""
    return list(ids)


def no_end(ids: list[int], prompt: int, end: int) -> list[int]:
    """Masks the EOS token, as a collator does that goes by id."""
    return [-100] * prompt + [-100 if i == end else i for i in ids[prompt:]]


def first_end_anywhere(ids: list[int], prompt: int, end: int) -> list[int]:
    """Looks for the EOS token from the start, where the prompt may have one."""
    stop = ids.index(end) if end in ids else len(ids)
    return [i if prompt <= n <= stop else -100 for n, i in enumerate(ids)]


def until_end(ids: list[int], prompt: int, end: int) -> list[int]:
    """Takes an EOS token in the prompt for one in the answer."""
    if end not in ids:
        return [-100] * prompt + ids[prompt:]
    behind = ids.index(end, prompt) + 1
    return [-100] * prompt + ids[prompt:behind] + [-100] * (len(ids) - behind)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (everything, "prompt is trained on"),
        (no_end, "EOS token is not trained on"),
        (lambda ids, prompt, end: [-100] * prompt + ids[prompt:], "behind the first EOS token"),
        (first_end_anywhere, "EOS token is not trained on"),
        (until_end, "raised ValueError"),
        (lambda ids, prompt, end: [*until_end(ids, prompt, end)[1:], -100], "prompt is trained on"),
        (lambda ids, prompt, end: ids[:-1], "a list of"),
        (lambda ids, prompt, end: [-100] * (len(ids) - 1) + [2], "trained on"),
    ],
)
def test_wrong_labels(wrong: Callable, said: str) -> None:
    """The three mistakes of notebook 03, and two slips."""
    verdict = exercises.grade("03.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


def in_order(lengths: list[int], room: int) -> list[list[int]]:
    """Fills one row after the other, and never comes back to one."""
    rows: list[list[int]] = [[]]
    for index, length in enumerate(lengths):
        if sum(lengths[i] for i in rows[-1]) + length > room:
            rows.append([])
        rows[-1].append(index)
    return rows


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda lengths, room: [[i] for i in range(len(lengths))], "can be done"),
        (lambda lengths, room: [list(range(len(lengths)))], "there is room for"),
        (lambda lengths, room: [[0]], "exactly one row"),
        (lambda lengths, room: [[len(lengths)]], "go from 0"),
        (lambda lengths, room: [1, 2], "list of lists"),
        (lambda lengths, room: ["0", "1"], "list of lists"),
        (lambda lengths, room: best_fit(lengths, room)[:-1], "exactly one row"),
        (lambda lengths, room: [[i + 1 for i in r] for r in best_fit(lengths, room)], "go from 0"),
        (lambda lengths, room: len(best_fit(lengths, room)), "list of lists"),
        (in_order, "can be done"),
    ],
)
def test_wrong_packing(wrong: Callable, said: str) -> None:
    """Too many rows, rows too full, examples lost or invented."""
    verdict = exercises.grade("03.3", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda r, a, n, s: a, "factor was 2, and with your alpha it is 0.5"),
        (lambda r, a, n, s: a * r / n, "factor was"),
        (lambda r, a, n, s: a * n / r, "use_rslora=True"),
        (lambda r, a, n, s: a * (n / r) ** 0.5, "use_rslora=False"),
        (lambda r, a, n, s: a * n // r, "it is 0.68"),
        (lambda r, a, n, s: "128", "a number is expected"),
        (lambda r, a, n, s: float("nan"), "finite"),
        (lambda r, a, n, s: True, "a number is expected"),
    ],
)
def test_wrong_alphas(wrong: Callable, said: str) -> None:
    """The factor that comes of a wrong alpha is named."""
    verdict = exercises.grade("02.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda w, A, B, a, r: w, "as it was"),
        (lambda w, A, B, a, r: w + B @ A * a, "multiplied by 2"),
        (lambda w, A, B, a, r: a / r * B @ A, "alone"),
        (lambda w, A, B, a, r: w.add_(a / r * B @ A), "go back"),
        (lambda w, A, B, a, r: w + torch.ones_like(w), "not a multiple"),
        (lambda w, A, B, a, r: A @ B, "shape"),
        (lambda w, A, B, a, r: A @ w, "shape"),
        (lambda w, A, B, a, r: w.tolist(), "tensor"),
        (lambda w, A, B, a, r: w * float("nan"), "finite"),
    ],
)
def test_wrong_merges(wrong: Callable, said: str) -> None:
    """Forgotten factor, forgotten weight, changed in place, wrong way round."""
    verdict = exercises.grade("02.2", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def size(shapes: list[tuple[int, int]]) -> float:
    """The MB of an adapter of rank 1, for answers to 02a.1."""
    return 4e-6 * sum(map(sum, shapes))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda shapes, mb: int(mb / size(shapes) * 4), "the file has 0.3971 MB"),
        (lambda shapes, mb: math.ceil(mb / size(shapes)), "the file has 0.1014 MB"),
        (lambda shapes, mb: mb / size(shapes), "a whole number, 0 or more"),
        (lambda shapes, mb: int(mb / size(shapes[:1])), "With 3 layers"),
        (lambda shapes, mb: int(mb * 1e6 / 4 / sum(a * b for a, b in shapes)), "so does a higher"),
        (lambda shapes, mb: max(1, int(mb / size(shapes))), "0.0001 MB"),
        (lambda shapes, mb: math.inf, "a whole number, 0 or more"),
        (lambda shapes, mb: f"r = {int(mb / size(shapes))}", "a whole number is expected"),
    ],
)
def test_wrong_ranks(wrong: Callable, said: str) -> None:
    """No bytes, rounded up, not rounded, one layer, the weight's size, never zero, no number."""
    verdict = exercises.grade("02a.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def low_rank(matrix: torch.Tensor, r: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The right answer for a matrix, for wrong ones made of it."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return v[:r], u[:, :r] * s[:r]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda b, a, r: low_rank(a, r), "no nearer than"),
        (lambda b, a, r: low_rank(b - a, r), "no nearer than"),
        (lambda b, a, r: low_rank(a - b, r)[::-1], "A should have the shape"),
        (lambda b, a, r: low_rank(a - b, r + 1), "A should have the shape"),
        (lambda b, a, r: tuple(0.5 * x for x in low_rank(a - b, r)), "nearer than"),
        (lambda b, a, r: smallest_rest(b, a, r, niter=0), "1% more is accepted"),
        (lambda b, a, r: a - b, "Two tensors"),
        (lambda b, a, r: (None, None), "missing"),
        (lambda b, a, r: (1, 2), "A should be a tensor"),
    ],
)
def test_wrong_adapters(wrong: Callable, said: str) -> None:
    """The weight in place of its change, the wrong sign, the wrong order, half of it."""
    verdict = exercises.grade("02a.2", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def _schedule(step: int, peak: float, warm_up: int, total: int) -> float:
    """Right, for wrong answers that differ in one thing."""
    if step < warm_up:
        return peak * step / warm_up
    return peak * (total - step) / (total - warm_up) if total > warm_up else peak


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda passes, examples, batch, more: examples // batch, "Several passes"),
        (lambda passes, examples, batch, more: passes * examples // batch, "not full"),
        (lambda passes, examples, batch, more: passes * examples / batch / more, "half steps"),
        (lambda passes, examples, batch, more: passes * -(-examples // batch), "to a step"),
        (lambda passes, examples, batch, more: examples * passes, "fewer than"),
        (
            lambda passes, examples, batch, more: math.ceil(passes * examples / batch / more),
            "each with a last batch that is not full: 3 × 10",
        ),
        (
            lambda passes, examples, batch, more: math.ceil(passes * -(-examples // batch) / more),
            "each with a last step of fewer batches",
        ),
        (lambda *given: math.inf, "half steps"),
        (lambda *given: "750", "A number"),
    ],
)
def test_wrong_numbers_of_steps(wrong: Callable, said: str) -> None:
    """Passes, a last batch, accumulation: each forgotten one is shown by a case of its own."""
    verdict = exercises.grade("03.1.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda *given: given[1], "rising"),
        (lambda step, *given: _schedule(step + 1, *given), "smaller"),
        (lambda step, peak, warm, total: peak * (total - step) / total, "rising"),
        (lambda step, peak, warm, total: peak * min(1.0, step / max(1, warm)), "falling"),
        (lambda step, peak, warm, total: peak * step / warm if step < warm else peak, "falling"),
        (lambda *given: str(_schedule(*given)), "A number"),
        (lambda step, peak, warm, total: peak * step / warm, "falling"),
    ],
)
def test_wrong_schedules(wrong: Callable, said: str) -> None:
    """Rising, peak and falling are told apart."""
    verdict = exercises.grade("03.1.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda losses, patience, least: len(losses) - 1, "A pair"),
        (lambda losses, patience, least: (len(losses) - 1, losses.index(min(losses))), "best"),
        (lambda losses, patience, least: (0, 0), "best is not"),
        (lambda *g: stop(*g, lambda x, old, least: x <= min(old) - least), "is too late"),
        (lambda *g: stop(*g, lambda x, old, least: x < min(old)), "not the one at index 5"),
        (lambda *g: stop(*g, lambda x, old, least: x < old[-1] - least), "index 5"),
        (lambda *g: stop(*g, lambda x, old, least: abs(x - min(old)) > least), "not the one at"),
        (lambda losses, patience, least: stop_by_anchor(losses, patience, least), "is too late"),
        (lambda losses, p, least: _notebook_03_1._expected(losses, p + 1, least), "is too late"),
        (lambda losses, p, least: _notebook_03_1._expected(losses, p, least)[::-1], "best is not"),
    ],
)
def test_wrong_stopping(wrong: Callable, said: str) -> None:
    """Each slip is refused, with the case that shows it."""
    verdict = exercises.grade("03.1.3", wrong)
    assert not verdict.solved
    assert said in verdict.message


def stop_by_anchor(losses: list[float], patience: int, least: float) -> tuple[int, int]:
    """Compares with the last loss that counted as better, not with the lowest."""
    best = 0
    for index, loss in enumerate(losses):
        if loss < losses[best] - least:
            best = index
        elif index - best >= patience:
            return index, best
    return len(losses) - 1, best


def test_stopping_is_that_of_transformers() -> None:
    """The check's answer is where the trainer stops, and the checkpoint that it keeps."""
    draw = random.Random(0)
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=False)
    for _ in range(300):
        losses = [draw.randint(0, 12) / 4 for _ in range(draw.randint(1, 9))]
        patience, least = draw.randint(1, 3), draw.choice([0.0, 0.25, 0.5])
        callback = EarlyStoppingCallback(patience, least)
        state, control = SimpleNamespace(best_metric=None), SimpleNamespace()
        for index, loss in enumerate(losses):
            callback.on_evaluate(args, state, control, {"eval_loss": loss})
            if state.best_metric is None or loss < state.best_metric:
                state.best_metric, best = loss, index  # as Trainer does after the callbacks
            if hasattr(control, "should_training_stop"):
                break
        assert _notebook_03_1._expected(losses, patience, least) == (index, best)


def messages(system: str, user: str, *answers: str) -> dict[str, list[dict[str, str]]]:
    """A row as the Yoda exercise wants it."""
    return {
        "prompt": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "completion": [{"role": "assistant", "content": answer} for answer in answers],
    }


YODA = _notebook_03_2.SYSTEM


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda row: row["sentence"], "dictionary"),
        (lambda row: {"text": row["sentence"]}, "'prompt' is missing"),
        (lambda row: {"prompt": row["yoda_extra"], "completion": row["sentence"]}, "is a text"),
        (lambda row: {"prompt": [row["yoda"]], "completion": []}, "a role and a content"),
        (
            lambda row: {"prompt": messages(YODA, "x")["prompt"][1:], "completion": []},
            "who is missing",
        ),
        (lambda row: messages("Hi", row["yoda_extra"], row["sentence"]), "should be SYSTEM"),
        (lambda row: messages(YODA, row["sentence"], row["yoda"]), "the other direction"),
        (lambda row: messages(YODA, row["sentence"], row["sentence"]), "holds the answer"),
        (lambda row: messages(YODA, row["yoda"], row["sentence"]), "never has Yoda's last words"),
        (lambda row: messages(YODA, f"Yoda: {row['yoda_extra']}", row["sentence"]), "nothing else"),
        (lambda row: messages(YODA, row["yoda_extra"], row["sentence"] + "\n"), "white space"),
        (lambda row: messages(YODA, row["yoda_extra"], row["yoda"]), "plain English"),
    ],
)
def test_wrong_formats(wrong: Callable, said: str) -> None:
    """What ruins such a training is named before it is run."""
    verdict = exercises.grade("yoda.format", wrong)
    assert not verdict.solved
    assert said in verdict.message


def at_once(reply: Callable, prompts: list) -> list[str]:
    """Ask for all replies in one call."""
    return reply(prompts)


def each_alone(reply: Callable, prompts: list) -> list[str]:
    """Ask for a reply at a time."""
    return [reply([prompt])[0] for prompt in prompts]


def shares(
    reply: Callable,
    rows: Dataset,
    how: Callable = at_once,
    *,
    mean: Callable = lambda right: sum(right) / len(right),
    role: str = "",
    told: str = "Say in plain English what Yoda says.",
    asked: str = "yoda_extra",
    wanted: str = "sentence",
    more: str = "",
    equal: Callable = str.__eq__,
) -> dict[str, float]:
    """An answer to yoda.baseline that differs from a good one in what is given."""

    def prompt(row: dict[str, str]) -> list[dict[str, str]]:
        last = f"{row[asked]}{row[more] if more else ''}"
        if role:
            return [{"role": role, "content": told}, {"role": "user", "content": last}]
        return [{"role": "user", "content": f"{told} {last}"}]

    replies = how(reply, [prompt(row) for row in rows])
    right = [equal(a, b) for a, b in zip(replies, rows[wanted], strict=True)]
    left = [equal(a, b) for a, b in zip(rows["yoda_extra"], rows["sentence"], strict=True)]
    return {"untuned": mean(right), "nothing done": mean(left)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda reply, rows: {"untuned": 0.0, "nothing done": 0.0}, "not asked at all"),
        (lambda reply, rows: shares(reply, rows)["untuned"], "two shares"),
        (lambda reply, rows: {"untuned": shares(reply, rows)["untuned"]}, "'nothing done' is"),
        (lambda reply, rows: shares(reply, rows, mean=sum), "a share, from 0 to 1"),
        (lambda reply, rows: shares(reply, rows, lambda ask, p: ask(str(p))), "list of conv"),
        (lambda reply, rows: shares(reply, rows, lambda ask, p: ask([str(p)])), "list of messages"),
        (lambda reply, rows: shares(reply, rows, lambda ask, p: ask(p + p)[: len(p)]), "asked 10"),
        (lambda reply, rows: shares(reply, rows, told=""), "not told what to do"),
        (lambda reply, rows: shares(reply, rows, asked="sentence"), "line of one row"),
        (lambda reply, rows: shares(reply, rows, asked="yoda"), "the column `yoda_extra`"),
        (lambda reply, rows: shares(reply, rows, more="sentence"), "holds the answer"),
        (lambda reply, rows: shares(reply, rows, wanted="yoda"), "the column `sentence`"),
        (lambda reply, rows: shares(reply, rows, equal=lambda a, b: b in a), "sign by sign"),
        (
            lambda reply, rows: shares(reply, rows, equal=lambda a, b: a.rstrip(".") in b),
            "sign by sign",
        ),
    ],
)
def test_wrong_baselines(wrong: Callable, said: str) -> None:
    """No fair question, a leak, another column, another measure."""
    verdict = exercises.grade("yoda.baseline", wrong)
    assert not verdict.solved
    assert said in verdict.message


def made(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    steps: int,
    batch: int,
    machine: dict,
    adapter: dict | None = None,
    drop: str = "",
    **changed: object,
) -> SFTTrainer:
    """An answer to yoda.trainer that differs from a good one in what is given."""
    good = {"max_steps": steps, "per_device_train_batch_size": batch, "learning_rate": 2e-3}
    good |= {"logging_steps": 2, **machine, **changed}
    lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", **(adapter or {})}
    return SFTTrainer(
        model=model,
        args=SFTConfig(**{name: value for name, value in good.items() if name != drop}),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=None if adapter == {} else LoraConfig(**lora),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {}}, "all weights"),
        ({"adapter": {"r": 1}}, "rank of 1"),
        ({"adapter": {"lora_alpha": 1}}, "hardly anything"),
        ({"adapter": {"lora_alpha": 1600}}, "diverge"),
        ({"adapter": {"use_rslora": True}}, "factor of 8"),
        ({"adapter": {"target_modules": ["q_proj", "v_proj"]}}, "leaves out"),
        ({"adapter": {"target_modules": None}}, "leaves out"),
        ({"adapter": {"target_modules": ["nope"]}}, "{'nope'} not found"),
        ({"adapter": {"exclude_modules": ["down_proj"]}}, "leaves out some linear layers, down"),
        ({"adapter": {"init_lora_weights": False}}, "as itself"),
        ({"adapter": {"init_lora_weights": "pissa"}}, "changes the base"),
        ({"adapter": {"modules_to_save": ["lm_head"]}}, "keeps"),
        ({"max_steps": 5}, "would take 5"),
        ({"drop": "max_steps"}, "epochs"),
        ({"per_device_train_batch_size": 1}, "would take 1"),
        ({"gradient_accumulation_steps": 4}, "would take 32"),
        ({"evaluation_strategy": "steps"}, "raised TypeError"),
        ({"eval_strategy": "steps"}, "raised ValueError"),
        ({"save_strategy": "steps"}, "as `**machine`"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "training itself fails"),
        ({"packing": True}, "several sentences"),
        ({"optim": "sgd"}, "leave Adam"),
        ({"warmup_steps": 0.9}, "over half of the steps"),
        ({"max_length": 32}, "may cut sentences"),
        ({"logging_strategy": "epoch"}, "log every 5"),
        ({"drop": "logging_steps"}, "log every 5"),
        ({"completion_only_loss": False}, "prompt would be trained"),
        ({"output_dir": "elsewhere"}, "as `**machine`"),
        ({"drop": "learning_rate"}, "is low"),
        ({"learning_rate": 1e-5}, "is low"),
        ({"learning_rate": 5e-3}, "is high"),
    ],
)
def test_wrong_trainers(changes: dict, said: str, chat_folder: Path) -> None:
    """The rules of notebook 02, names that are gone, what would fail only while it trains."""
    verdict = exercises.grade("yoda.trainer", lambda *given: made(*given, **changes))
    assert not verdict.solved
    assert said in verdict.message


def test_no_trainer(chat_folder: Path) -> None:
    """Some of the rows, a number of steps of one's own, what a training returns."""
    for wrong, said in (
        (lambda m, t, rows, *rest: made(m, t, rows.select(range(9)), *rest), "give it all"),
        (lambda m, t, rows, s, b, machine: made(m, t, rows, 60, b, machine), "Asked for"),
        (lambda *given: made(*given[:3], 1, 1, given[5]).train(), "before any training"),
        (lambda *given: LoraConfig(), "SFTTrainer is expected; this is LoraConfig"),
    ):
        verdict = exercises.grade("yoda.trainer", wrong)
        assert not verdict.solved
        assert said in verdict.message


def test_rates_go_with_factor_and_machine(
    chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usual rate is accepted with a warning where the steps are few; on GPUs without one."""
    judge = _notebook_03_2._rate
    least, most = _notebook_03_2._LEAST, _notebook_03_2._MOST
    for factor in (1, 2, 4):
        assert judge(least / factor, factor, 60, "cpu") is None
        assert judge(most / factor, factor, 60, "cpu") is None
        for usual in (1e-4, 2e-4):
            assert "usual for LoRA, and needs more steps" in judge(usual, factor, 60, "cpu")
            assert judge(usual, factor, 200, "16gb") is None
        for rate, machine in ((1.1 * most / factor, "cpu"), (1.1 * 2e-3 / factor, "16gb")):
            with pytest.raises(exercises.Wrong, match="is high"):
                judge(rate, factor, 60, machine)
    verdict = exercises.grade("yoda.trainer", lambda *given: made(*given, learning_rate=2e-4))
    assert verdict.solved
    assert "solved. But note: a learning rate of 0.0002" in verdict.message


def test_each_tier_has_a_rate_that_its_check_accepts() -> None:
    """The recipe's rate needs no warning with the usual factor, on any machine."""
    for machine in ("cpu", "16gb", "24gb", "40gb"):
        plan = recipe("yoda", machine)
        assert _notebook_03_2._rate(plan["learning_rate"], 2, plan["steps"], machine) is None


def compared(
    before: Callable,
    after: Callable,
    rows: Dataset,
    how: Callable = at_once,
    *,
    system: str = YODA,
    asked: str = "yoda_extra",
    form: str = "{}",
    wanted: str = "sentence",
    equal: Callable = str.__eq__,
) -> pd.DataFrame:
    """An answer to yoda.evaluation that differs from a good one in what is given."""
    prompts = [messages(system, form.format(row[asked]))["prompt"] for row in rows]
    table = pd.DataFrame({"Yoda": list(rows["yoda_extra"]), "wanted": list(rows[wanted])})
    for name, ask in (("before", before), ("after", after)):
        table[name] = how(ask, prompts)
        table[f"right {name}"] = list(map(equal, table[name], table["wanted"]))
    return table


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda *given: compared(*given)["right after"].mean(), "DataFrame is expected"),
        (lambda *given: compared(*given).to_dict("list"), "DataFrame is expected"),
        (lambda b, a, rows: pd.DataFrame({"Yoda": rows["yoda"]}), "not asked at all"),
        (lambda *given: compared(*given).drop(columns="right before"), "no column 'right before'"),
        (lambda b, a, rows: compared(a, b, rows), "column 'before'"),
        (lambda b, a, rows: compared(a, a, rows), "not asked at all"),
        (lambda *given: compared(*given)[:2], "2 rows for 5"),
        (lambda *given: compared(*given, system="Hi"), "It was trained with the system prompt"),
        (lambda *given: compared(*given, asked="yoda"), "the column `yoda_extra`"),
        (lambda *given: compared(*given, form="Yoda: {}"), "on bare lines"),
        (
            lambda *given: compared(*given, lambda ask, p: ask([x[1] for x in p])),
            "list of messages",
        ),
        (lambda *given: compared(*given, wanted="yoda"), "column 'wanted'"),
        (lambda *given: compared(*given, equal=lambda a, b: b in a), "is wrong, and"),
        (
            lambda *given: compared(*given, equal=lambda a, b: a.lower() == b.lower()),
            "is wrong, and",
        ),
        (lambda *given: compared(*given, equal=lambda a, b: 100 * (a == b)), "True or False"),
    ],
)
def test_wrong_evaluations(wrong: Callable, said: str) -> None:
    """Asked otherwise than trained, the wrong column, too lenient a measure."""
    verdict = exercises.grade("yoda.evaluation", wrong)
    assert not verdict.solved
    assert said in verdict.message


def affine(
    weight: torch.Tensor,
    bits: int,
    block: int,
    steps: int = -1,
    low: float | None = None,
    up: bool = False,
    constant: bool = True,
) -> torch.Tensor:
    """An answer to 04.1.2 with a slip in it: other steps, a fixed low end, always rounded up."""
    rows = weight.reshape(-1, block)
    start = rows.amin(1, keepdim=True) if low is None else torch.tensor(low)
    step = (rows.amax(1, keepdim=True) - start) / (2**bits + steps)
    if constant:
        step = step.clamp(min=1e-9)
    count = (rows - start) / step
    return (((count - 1e-3).ceil() if up else count.round()) * step + start).reshape(weight.shape)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda w, bits, block: affine(w, bits, block).flatten(), "the shape is"),
        (lambda w, bits, block: affine(w, bits, block).long(), "codes"),
        (lambda w, bits, block: w.copy_(affine(w, bits, block)), "has changed"),
        (lambda w, bits, block: affine(w, bits, block, low=0.0), "smallest number of a block"),
        (lambda w, bits, block: affine(w, bits, w.numel()), "smallest number of a block"),
        (lambda w, bits, block: w.clone(), "different numbers"),
        (lambda w, bits, block: affine(w, bits, block, steps=0), "lie between"),
        (lambda w, bits, block: affine(w, bits, block, steps=-2), "lie between"),
        (lambda w, bits, block: affine(w, bits, block, up=True), "nearer level"),
        (lambda w, bits, block: affine(w, bits, block, constant=False), "divided by zero"),
    ],
)
def test_wrong_quantizers(wrong: Callable, said: str) -> None:
    """From a wrong shape to the block whose numbers are all the same."""
    verdict = exercises.grade("04.1.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda bits, block, double: bits, "it is more"),
        (lambda bits, block, double: bits + 32, "it is less"),
        (lambda bits, block, double: bits + 32 / block, "with double quantization"),
        (lambda bits, block, double: bits + (8 if double else 32) / block, "it is more"),
        (lambda bits, block, double: f"{bits} bits", "A number of bits"),
    ],
)
def test_wrong_bits(wrong: Callable, said: str) -> None:
    """The scale forgotten, not shared, never quantized, and its own scale forgotten."""
    verdict = exercises.grade("04.1.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p, bits, a: (p * bits / 8 + 16 * a) / 2**30, "divided by 2³⁰"),
        (lambda p, bits, a: p * bits / 8e9, "the adapter is missing"),
        (lambda p, bits, a: (p * bits + 16 * a) / 1e9, "it is less"),
        (lambda p, bits, a: (p * bits / 8 + 12 * a) / 1e9, "it is more"),
        (lambda p, bits, a: (p * bits / 8 + 4 * a) / 1e9, "it is more"),
        (lambda p, bits, a: p * bits / 8 + 16 * a, "it is less"),
        (lambda p, bits, a: f"{p * bits / 8e9} GB", "A number of GB"),
    ],
)
def test_wrong_sums_on_paper(wrong: Callable, said: str) -> None:
    """GiB, no adapter, bits taken for bytes, one number too few, its weights alone, bytes."""
    verdict = exercises.grade("04.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x, most: (x > most).any(0).nonzero(), "is missing"),
        (lambda x, most: (x.abs() > most).all(0).nonzero(), "is missing"),
        (lambda x, most: (x.abs() > most).any(1).nonzero(), "is missing"),
        (lambda x, most: (x.abs() >= 0).any(0).nonzero(), "is named"),
        (lambda x, most: (x.abs() > most).any(0), "truth values"),
        (lambda x, most: (x.abs() > most).nonzero()[:, 1].tolist() * 2, "more than once"),
        (lambda x, most: [i + 1 for i in (x.abs() > most).any(0).nonzero().flatten()], "feature 5"),
        (lambda x, most: ["1", "3.5"], "whole numbers"),
    ],
)
def test_wrong_outlier_features(wrong: Callable, said: str) -> None:
    """Negative ones missed, all tokens asked for, tokens for features, all, a mask, from 1 on."""
    verdict = exercises.grade("04a.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


def rise(setup: Setup, one: int, two: int | None, peak: str = "peak_allocated_mb") -> float:
    """The difference between the peaks of two numbers of micro-batches."""
    peaks = [getattr(predict(setup.replace(micro_batches=n)), peak) for n in (one, two)]
    return peaks[1] - peaks[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda setup: str(rise(setup, 1, 2)), "number of MB"),
        (lambda setup: rise(setup, 2 * setup.accumulation, setup.accumulation), "way round"),
        (lambda setup: rise(setup, 1, 2), "predictions say otherwise"),
        (lambda setup: 10.0, "predictions say otherwise"),
        (
            lambda setup: rise(
                setup, setup.accumulation, 2 * setup.accumulation, "peak_reserved_mb"
            ),
            "*reserved* memory",
        ),
    ],
)
def test_wrong_second_steps(wrong: Callable, said: str) -> None:
    """A text, the wrong sign, micro-batches taken for steps, a guess."""
    verdict = exercises.grade("04.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


def chosen(number: int, column: str = "country") -> Callable[[Dataset], Dataset]:
    """An answer to 06.1: the rows of the first so many countries, or relations."""

    def answer(rows: Dataset) -> Dataset:
        some = sorted(set(rows[column]))[:number]
        return rows.filter(lambda row: row[column] in some)

    return answer


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rows: rows["country"], "with all their columns"),
        (lambda rows: load_data("countries")["held_out"], "Held out"),
        (chosen(18), "these are 18"),
        (lambda rows: chosen(19)(chosen(2, "relation")(rows)), "about the currency, demonym"),
        (chosen(19), "answers 10%"),
    ],
)
def test_wrong_countries(wrong: Callable, said: str) -> None:
    """Leaks, wrong numbers, missing relations, and a model that learned too little."""
    verdict = exercises.grade("06.1", wrong, lambda rows, adapter=None: 0.1)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: {"r": 8, "target_modules": "all-linear"}, "98,304 parameters, more than"),
        (lambda: {"r": 24, "target_modules": ["query_key_value"]}, "parameters, more than"),
        (lambda: LoraConfig(r=4, target_modules=["query_key_value"]), "A dictionary of"),
        (lambda: {"rank": 4}, "does not take it"),
        (lambda: {"r": 4, "target_modules": ["q_proj"]}, "does not take it"),
        (lambda: {"r": 1, "target_modules": ["query_key_value"]}, "answers 10%"),
    ],
)
def test_wrong_adapters_for_the_base(wrong: Callable, said: str) -> None:
    """Too large, unknown names, too weak."""
    verdict = exercises.grade("06.2", wrong, lambda rows, adapter=None: 0.1)
    assert not verdict.solved
    assert said in verdict.message


def test_done_knows_what_was_checked(capsys: pytest.CaptureFixture) -> None:
    """A cell waits for what is missing, and for what was solved and then broken again."""
    exercises._solved.clear()
    assert not exercises.done("yoda.format", "03.1.2")
    assert "waits for yoda.format, 03.1.2" in capsys.readouterr().out
    exercises.check("yoda.format", lambda row: messages(YODA, row["yoda_extra"], row["sentence"]))
    exercises.check("03.1.2", _schedule)
    assert exercises.done("yoda.format", "03.1.2")
    exercises.check("yoda.format", lambda row: messages(YODA, row["yoda"], row["sentence"]))
    assert not exercises.done("yoda.format", "03.1.2")
    with pytest.raises(UnknownName, match=r"yoda\.format"):
        exercises.done("yoda.formats")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "there is room for"),
        ({"seq_len": 1900}, "with 1,900 tokens it reserves"),
        ({"seq_len": 1000}, "100 more would fit"),
        ({"seq_len": 1800, "attention": "sdpa"}, "besides the length"),
        ({"optimizer": "adamw_bnb_8bit"}, "besides the length"),
    ],
)
def test_wrong_lengths(changes: dict, said: str) -> None:
    """Too long, too short, and by another way."""
    verdict = exercises.grade("05.1", lambda setup: setup.replace(**changes))
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message.lower()


def qwen_on_t4(**changes: object) -> Setup:
    """An answer to 05.2 that keeps all its wishes, but for what is changed."""
    given = {"quantization": "nf4-double", "dtype": "float16", "lora": True, "seq_len": 1024}
    given |= {"lora_targets": "all-linear", "checkpointing": "non-reentrant", "accumulation": 8}
    return Setup(**{"model": "Qwen/Qwen2.5-7B", **given, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "facebook/opt-350m"}, "the model should be Qwen"),
        ({"seq_len": 512}, "these have 512"),
        ({"sequences": "padded"}, "should be full"),
        ({"supervised_share": 0.5}, "should be full"),
        ({"lora_rank": 8}, "rank 16 or more"),
        ({"lora_targets": "default"}, "all-linear"),
        ({"accumulation": 4}, "1 × 4"),
        ({"dtype": "bfloat16"}, "does not compute in bfloat16"),
        ({"attention": "flash_attention_2"}, "capability 8.0"),
        ({"quantization": None}, "does not fit"),
        ({"checkpointing": "none"}, "does not fit"),
        ({"batch_size": 8, "accumulation": 1, "seq_len": 4096}, "does not fit"),
        # Measuring less does not help.
        ({"checkpointing": "none", "micro_batches": 1}, "does not fit"),
    ],
)
def test_wrong_setups(changes: dict, said: str) -> None:
    """Each wish is checked, and the predictor has the last word."""
    verdict = exercises.grade("05.2", lambda: qwen_on_t4(**changes))
    assert verdict.tried
    assert not verdict.solved
    assert said.lower() in verdict.message.lower()


def one_by_one(fits: Callable) -> int:
    """Right, with up to a thousand questions."""
    batch = 0
    while batch < 1000 and fits(batch + 1):
        batch += 1
    return batch


def doubling(fits: Callable) -> int:
    """Powers of two only."""
    batch = 1
    while batch <= 1000 and fits(batch):
        batch *= 2
    return batch // 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (one_by_one, "times"),
        (doubling, "the answer was"),
        (lambda fits: fits(5000), "a whole number"),
        (lambda fits: 8 + 0 * fits(0), "a batch of 0"),
        (lambda fits: [fits(1) for _ in range(11)] and 8, "11 times"),
        (lambda fits: [fits(1) for _ in range(9999)], "this goes on"),
        (lambda fits: 8.5, "a whole number"),
        (lambda fits: 8 + 0 * fits(500.5), "a batch of 500.5"),
    ],
)
def test_wrong_searches(wrong: Callable, said: str) -> None:
    """Too many questions, too few, foolish ones."""
    verdict = exercises.grade("05.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message.lower()


def explained(
    published: float,
    candidates: dict,
    tolerance: float,
    base: Callable = lambda published, mb: published,
    order: int = 1,
) -> list[str]:
    """An answer to 05a.1: share of what, and the nearest first or last."""
    near = [
        (abs(mb - published) / base(published, mb), name)
        for name, mb in candidates.items()
        if abs(mb - published) <= tolerance * base(published, mb)
    ]
    return [name for _, name in sorted(near)[::order]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda *given: explained(*given, base=lambda told, mb: mb), "within the tolerance"),
        (lambda *given: explained(*given, base=lambda told, mb: 1e3), "within the tolerance"),
        (lambda *given: explained(*given, order=-1), "the nearest comes first"),
        (lambda *given: explained(*given)[:1], "within the tolerance"),
        (lambda *given: (explained(*given) or ["?"])[0], "a list of names"),
        (lambda told, found, share: [mb for mb in found.values() if mb == told], "not the name"),
        (lambda *given: {}, "a list of names"),
    ],
)
def test_wrong_explanations(wrong: Callable, said: str) -> None:
    """Shares of something else, the order, one name only, and what is no list of names."""
    verdict = exercises.grade("05a.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def terms(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The terms of a KL divergence; not a number where p is zero."""
    return p * (p.log() - q.log())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p, q: terms(p, q), "one number"),
        (lambda p, q: terms(p, q).sum(), "a zero in p"),
        (lambda p, q: terms(q, p).sum(), "other direction"),
        (lambda p, q: -terms(p, q).nansum(), "never below zero"),
        (lambda p, q: terms(p, q).nansum() / np.log(2), "in bits"),
        (lambda p, q: terms(p, q).nanmean(), "a mean"),
        (lambda p, q: (p - q).abs().sum(), "is not the KL"),
        (lambda p, q: "0.368", "one number"),
    ],
)
def test_wrong_divergences(wrong: Callable, said: str) -> None:
    """No sum, zeros, the other direction, the other sign, bits, a mean, another measure."""
    assert said in exercises.grade("07.1", wrong).message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (set, "is dominated"),
        (lambda points: {max(points, key=lambda name: points[name])}, "is missing"),
        (
            lambda points: {
                name
                for name, mine in points.items()
                if all(
                    mine[0] > other[0] or mine[1] > other[1]
                    for key, other in points.items()
                    if key != name
                )
            },
            "is missing",
        ),
        (lambda points: list(points.values()), "names is expected"),
        (lambda points: "".join(front(points)), "names is expected"),
    ],
)
def test_wrong_fronts(wrong: Callable, said: str) -> None:
    """All points, the best in one measure, no ties, points for names."""
    assert said in exercises.grade("07.2", wrong).message


def conversation(row: dict, styled: bool, system: str | None) -> list[dict[str, str]]:
    """One conversation for the wrong answers below."""
    from course_utils.data._answers import yoda_answer

    reply = yoda_answer(row) if styled else f"{row['cue']} {row['answer']}."
    messages = [{"role": "system", "content": system}] if system else []
    return [
        *messages,
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": reply},
    ]


ASKED_FOR = "Answer as Yoda would."


def split_by(rows: list[dict], styled: Callable) -> list[list[dict[str, str]]]:
    """Conversations whose style something in the row decides."""
    return [
        conversation(row, bool(styled(row)), ASKED_FOR if styled(row) else None) for row in rows
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rows: [conversation(row, True, ASKED_FOR) for row in rows], "about half"),
        (lambda rows: [conversation(row, True, None) for row in rows], "wrong kind of answer"),
        (
            lambda rows: split_by(
                rows, lambda row: row["relation"] in ("capital", "currency", "demonym")
            ),
            "about the same relation",
        ),
        (lambda rows: split_by(rows, lambda row: row["country"] < "Liberia"), "same country"),
        (lambda rows: split_by(rows, lambda row: ord(row["country"][0]) % 2), "same country"),
        (lambda rows: split_by(rows, lambda row: ord(row["answer"][0]) % 2), "answers begin"),
        (lambda rows: split_by(rows, lambda row: len(row["question"]) % 2), "same length"),
        (lambda rows: [row["question"] for row in rows], "no list of messages"),
        (
            lambda rows: [conversation({**row, "question": "Who?"}, False, None) for row in rows],
            "none of the rows'",
        ),
        (
            lambda rows: [conversation({**row, "answer": "Rome"}, False, None) for row in rows],
            "does not give the answer",
        ),
        (
            lambda rows: [conversation({**row, "cue": ""}, False, None) for row in rows],
            "is no sentence",
        ),
        (lambda rows: [conversation(row, False, None)[::-1] for row in rows], "roles are"),
        (lambda rows: "text", "is expected"),
    ],
)
def test_wrong_contrasts(wrong: Callable, said: str) -> None:
    """One half only, the style without its message, halves that a relation, the alphabet or a
    length decides, no lists."""
    assert said in exercises.grade("07.3", wrong).message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda width, n, wanted: n * width / wanted, "look at the width"),
        (lambda width, n, wanted: n * (wanted / width) ** 2, "too few"),
        (lambda width, n, wanted: n * (width / wanted) ** 4, "too many"),
        (lambda width, n, wanted: n * (width / wanted) ** 2 + 0.5, "whole number"),
        (lambda width, n, wanted: float("nan"), "you say nan"),
        (lambda width, n, wanted: "320", "a number"),
    ],
)
def test_wrong_numbers_of_questions(wrong: Callable, said: str) -> None:
    """In proportion, upside down, too many, half a question, no number."""
    verdict = exercises.grade("08.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda reply, answer, others: answer in reply, "NAIROBI' wrong"),
        (lambda reply, answer, others: answer.lower() in reply.lower(), "or Kampala.' right"),
        (lambda reply, answer, others: reply == f"The capital of Kenya is {answer}.", "wrong;"),
        (lambda reply, answer, others: True, "right;"),
        (
            lambda reply, answer, others: (
                answer.lower() in reply.lower()
                and not any(other.lower() in reply.lower() for other in others)
            ),
            "romania.' right",
        ),
        (
            lambda reply, answer, others: (
                bool(re.search(rf"\b{re.escape(answer)}\b", reply, re.I))
                and not any(re.search(rf"\b{re.escape(o)}\b", reply, re.I) for o in others)
            ),
            "Bissau-Guinean.' wrong",
        ),
        (lambda *given: consume(*given, escape=str), """Stx John's." right"""),
        (lambda reply, answer, others: re.search(answer, reply), "True or False"),
        (lambda reply, answer: True, "it raised TypeError"),
    ],
)
def test_wrong_metrics(wrong: Callable, said: str) -> None:
    """Capitals, other answers, other wordings, parts of words, parts of names, no truth value."""
    assert said in exercises.grade("08.2", wrong).message


def shared(test: list[str], train: list[str], part: Callable = words_of) -> list[float]:
    """Which share of each text's words, all alike, one other text has."""
    tests, trains = part(test), part(train)
    return [max(len(text & other) / max(1, len(text)) for other in trains) for text in tests]


def names_in(texts: list[str]) -> list[set[str]]:
    """The words with a capital letter."""
    return [set(re.findall(r"\b[A-Z]\w+", text)) for text in texts]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda test, train: [], "for each of the 150 test texts"),
        (lambda test, train: set(test), "for each of the 150 test texts"),
        (lambda test, train: test, "for each of the 150 test texts"),
        (lambda test, train: [float("nan")] * len(test), "NaN"),
        (lambda test, train: [0] * len(test), "In 50% of all pairs"),
        (shared, "90% are wanted"),
        (lambda test, train: shared(test, train, names_in), "90% are wanted"),
        (lambda test, train: [-score for score in rarest_two(test, train)], "90% are wanted"),
        (
            lambda test, train: contamination_report(test, train, n=8)["share"].tolist(),
            "90% are wanted",
        ),
        (
            # The country alone.
            lambda test, train: [
                sum(re.split(r"[ ?]", text)[-2] in other for other in train) for text in test
            ],
            "90% are wanted",
        ),
    ],
)
def test_wrong_scores_of_leaks(wrong: Callable, said: str) -> None:
    """None, a set, texts, NaN, all alike, all words alike, names, upside down, copies, one word."""
    verdict = exercises.grade("08.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def whole_batches(effective: int, per_device: int, processes: int, told: str = "{0} is") -> int:
    """An answer to 09.1 with another message."""
    steps, rest = divmod(effective, per_device * processes)
    if rest or not steps:
        possible = per_device * processes * max(steps, 1)
        raise ValueError(told.format(possible))
    return steps


def by_tokens(means: list, tokens: list, fill: float = 0.0) -> torch.Tensor:
    """An answer to 09.2: sums, with something in place of what is not a number."""
    sums = [mean.nan_to_num(fill) * int(count) for mean, count in zip(means, tokens, strict=True)]
    return torch.stack(sums).sum(0) / int(sum(tokens))


def cut(rows: int, world: int) -> list[int]:
    """An answer to 09.3, rank by rank."""
    left, each, found = rows, math.ceil(rows / world), []
    for _ in range(world):
        found.append(min(each, left))
        left -= found[-1]
    return found


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda effective, one, world: effective // one, "an update sees"),
        (lambda effective, one, world: effective // (one * world), "is not possible"),
        (lambda effective, one, world: effective / (one * world), "is not possible"),
        (lambda *given: whole_batches(*given, told="impossible"), "names no effective batch"),
        (
            lambda effective, one, world: whole_batches(effective, one, world, f"{effective}"),
            "names",
        ),
        (lambda effective, one, world: 4, "an update sees"),
        (lambda effective, one, world: [8, 2, 3][effective], "list index"),
    ],
)
def test_wrong_accumulations(wrong: Callable, said: str) -> None:
    """Processes forgotten, no error, an error that does not help."""
    verdict = exercises.grade("09.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda means, tokens: torch.stack(means).mean(0), "mean of the means"),
        (lambda means, tokens: by_tokens(means, tokens) * sum(tokens), "not the mean over all"),
        (lambda means, tokens: by_tokens(means, tokens, math.nan), "not finite"),
        (lambda means, tokens: means[0], "not the mean over all"),
        (lambda means, tokens: by_tokens(means, tokens).mean(), "a tensor of shape"),
        (lambda means, tokens: means[0].mul_(2), "changes the gradients"),
    ],
)
def test_wrong_means(wrong: Callable, said: str) -> None:
    """Unweighted, not divided, an empty rank that spoils all, changed in place."""
    verdict = exercises.grade("09.2", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rows, world: [rows // world] * world, "rows together"),
        (lambda rows, world: [math.ceil(rows / world)] * world, "rows together"),
        (
            lambda rows, world: [rows // world + (rank < rows % world) for rank in range(world)],
            "is not how FSDP2 cuts",
        ),
        (lambda rows, world: [c for c in cut(rows, world) if c], "a list of"),
        (lambda rows, world: cut(rows, world)[::-1], "is not how FSDP2 cuts"),
        (lambda rows, world: sum(cut(rows, world)), "a list of"),
    ],
)
def test_wrong_shards(wrong: Callable, said: str) -> None:
    """Rounded down, padded, evened out, without the empty ranks, from the end."""
    verdict = exercises.grade("09.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def gguf_mb(matrices: int, embeddings: int, others: int, fmt: str, **changed: object) -> float:
    """An answer to 10.1 that can be spoiled: bytes a block, what embeddings take, the divisor."""
    block = {"f16": 64, "q8_0": 34, "q4_0": 18} | changed.get("block", {})
    of_embeddings = changed.get("large", "q8_0") if fmt == "q4_0" else fmt
    size = (matrices * block[fmt] + embeddings * block[of_embeddings]) / 32
    return (size + changed.get("each", 4) * others) / changed.get("unit", 1e6)


def size_by_bits(matrices: int, embeddings: int, others: int, fmt: str) -> float:
    """10.1 by bits a weight."""
    bits = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}
    large = 8.5 if fmt == "q4_0" else bits[fmt]
    return float(np.dot([matrices, embeddings, others], [bits[fmt], large, 32])) / 8 / 10**6


def by_table(matrices: int, embeddings: int, others: int, fmt: str) -> Fraction:
    """10.1 in exact fractions."""
    each = {"f16": (64, 64), "q8_0": (34, 34), "q4_0": (18, 34)}[fmt]
    whole = Fraction(matrices * each[0] + embeddings * each[1], 32) + 4 * others
    return whole / 1_000_000


@pytest.mark.parametrize("right", [gguf_mb, size_by_bits, by_table])
def test_right_sizes(right: Callable) -> None:
    """By blocks, by bits, in fractions."""
    verdict = exercises.grade("10.1", right)
    assert verdict.solved, verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda *given: gguf_mb(*given, unit=2**20), "MiB"),
        (lambda *given: gguf_mb(*given, unit=1), "these are bytes"),
        (lambda *given: gguf_mb(*given, large="q4_0"), "the embeddings are in q8_0"),
        (lambda *given: gguf_mb(*given, each=2), "is not what the file takes"),
        (lambda *given: gguf_mb(*given, block={"q4_0": 16}), "is not what the file takes"),
        (lambda *given: gguf_mb(*given) / 8, "is not what the file takes"),
        (lambda *given: f"{gguf_mb(*given)} MB", "a number is expected"),
    ],
)
def test_wrong_sizes(wrong: Callable, said: str) -> None:
    """MiB, bytes, embeddings like the rest, others in 16 bits, no scale, bits, a text."""
    verdict = exercises.grade("10.1", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def by_length(mine: list[int], its: list[int], bos: int) -> str:
    """10.2 by the lengths."""
    names = {0: "same", 1: "bos twice", -1: "bos missing"}
    longer, shorter = (its, mine) if len(its) > len(mine) else (mine, its)
    if longer is not shorter and len(longer) == len(shorter) + 1 and longer[0] == bos:
        alike = longer[1:] == shorter and (longer is mine or shorter[:1] == [bos])
        return names[len(its) - len(mine)] if alike else "other"
    return "same" if mine == its else "other"


def by_cutting(mine: list[int], its: list[int], bos: int) -> str:
    """10.2 by cutting the first token off."""
    if mine == its:
        return "same"
    if mine and its and mine[0] == its[0] == bos and its[1:] == mine:
        return "bos twice"
    return "bos missing" if mine and mine[0] == bos and mine[1:] == its else "other"


def by_text(mine: list[int], its: list[int], bos: int) -> str:
    """10.2 with the tokens as one text each."""
    a, b, start = "".join(map(chr, mine)), "".join(map(chr, its)), chr(bos)
    found = {a: "same", start + a: "bos twice" if a.startswith(start) else "other"}
    if a.startswith(start):
        found.setdefault(a[1:], "bos missing")
    return found.get(b, "other")


@pytest.mark.parametrize("right", [by_length, by_cutting, by_text])
def test_right_names_of_faults(right: Callable) -> None:
    """By lengths, by cutting, as texts."""
    verdict = exercises.grade("10.2", right)
    assert verdict.solved, verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda mine, its, bos: "same" if len(mine) == len(its) else "other", "is not what"),
        (
            lambda mine, its, bos: by_cutting(mine, its, bos) if its[:1] == [bos] else "other",
            "'other' is not what differs",
        ),
        (
            lambda mine, its, bos: "bos twice" if its == [bos, *mine] else by_cutting(mine, its, 1),
            "'bos twice' is not what differs",
        ),
        (
            lambda mine, its, bos: (
                "bos twice" if its[:2] == [bos, bos] else by_cutting(mine, its, 1)
            ),
            "'bos twice' is not what differs",
        ),
        (lambda mine, its, bos: by_cutting(its, mine, bos), "is not what differs"),
        (
            lambda mine, its, bos: "bos missing" if mine[1:] == its else by_cutting(mine, its, bos),
            "'bos missing' is not what differs",
        ),
        (lambda mine, its, bos: mine == its, "one of"),
        (lambda mine, its, bos: "BOS twice", "one of"),
    ],
)
def test_wrong_names_of_faults(wrong: Callable, said: str) -> None:
    """By length alone, half of it, two BOS anywhere, the wrong way round, True, other words."""
    verdict = exercises.grade("10.2", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message


def kl(p: list[float], q: list[float]) -> float:
    """10.3 with NumPy."""
    a, b = np.array(p), np.array(q)
    if ((b == 0) & (a > 0)).any():
        return math.inf
    return float((a[a > 0] * np.log(a[a > 0] / b[a > 0])).sum())


def kl_of_torch(p: list[float], q: list[float]) -> float:
    """10.3 by torch's function, which takes the logarithms of q."""
    told = torch.tensor(q, dtype=torch.float64).log()
    there = torch.tensor(p, dtype=torch.float64)
    keep = there > 0
    return torch.nn.functional.kl_div(told[keep], there[keep], reduction="sum").item()


def kl_of_entropies(p: list[float], q: list[float]) -> float:
    """10.3 as the cross-entropy less the entropy."""
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a]
    if not all(b for _, b in pairs):
        return float("inf")
    return sum(-a * math.log(b) for a, b in pairs) - sum(-a * math.log(a) for a, _ in pairs)


@pytest.mark.parametrize("right", [kl, kl_of_torch, kl_of_entropies])
def test_right_distances(right: Callable) -> None:
    """With NumPy, by torch's own, as a difference of entropies."""
    verdict = exercises.grade("10.3", right)
    assert verdict.solved, verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda p, q: kl(q, p), "the other way round"),
        (lambda p, q: kl(p, q) / math.log(2), "in bits"),
        (lambda p, q: sum(abs(a - b) for a, b in zip(p, q, strict=True)), "not the divergence"),
        (lambda p, q: kl(p, q) / len(p), "not the divergence"),
        (lambda p, q: -kl(p, q), "not the divergence"),
        (lambda p, q: min(kl(p, q), 1e9), "infinite is expected"),
        (lambda p, q: kl(p, [b + 1e-6 for b in q]), "not the divergence"),
        (
            lambda p, q: sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)),
            "math domain error",
        ),
    ],
)
def test_wrong_distances(wrong: Callable, said: str) -> None:
    """Turned round, bits, another distance, a mean, the sign, never infinite, log of 0."""
    verdict = exercises.grade("10.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message
