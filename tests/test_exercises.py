"""The exercises' checks: right, wrong and empty answers, and no way to pass without one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from benchmarks import pythia
from course_utils import load_tokenizer, runner
from course_utils.data import load_data
from course_utils.errors import UnknownName
from course_utils.exercises import _check as exercises
from course_utils.exercises import _notebook_01, _notebook_03_2
from course_utils.memory import Setup, predict
from course_utils.scoring import contamination_report
from tools import notebooks

ALL = exercises.known()


def solutions() -> dict[str, Callable]:
    """The solved exercise cells of every source, executed: names to functions."""
    found: dict[str, Callable] = {"torch": torch, "LoraConfig": LoraConfig}
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


@pytest.mark.parametrize("name", ALL)
def test_nothing_does_not_pass(name: str, chat_folder: Path) -> None:
    """`pass`, `...` and nothing at all are recognised as not done, not as wrong."""
    for empty in (does_nothing, lambda *args: ..., None, ...):
        verdict = exercises.grade(name, empty, *extra(name))
        assert not verdict.solved
        assert not verdict.tried


@pytest.mark.parametrize("name", ALL)
def test_junk_is_wrong_with_a_reason(name: str, chat_folder: Path) -> None:
    """What can be typed by mistake: the learner gets a sentence and no traceback."""
    for junk in ("a text", lambda *args: 42, lambda *args: 1 / 0, lambda *args: float("nan")):
        verdict = exercises.grade(name, junk, *extra(name))
        assert not verdict.solved
        assert verdict.tried
        assert len(verdict.message) > 20


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
            "line breaks",
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
    cheat = " ".join(_notebook_01._OPPOSITES.values())
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
        (lambda lengths: str(lengths), "a number is expected"),
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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (everything, "prompt is trained on"),
        (no_end, "EOS token is not trained on"),
        (lambda ids, prompt, end: [-100] * prompt + ids[prompt:], "behind the first EOS token"),
        (first_end_anywhere, "EOS token is not trained on"),
        (lambda ids, prompt, end: ids[:-1], "a list of"),
        (lambda ids, prompt, end: [-100] * (len(ids) - 1) + [2], "trained on"),
    ],
)
def test_wrong_labels(wrong: Callable, said: str) -> None:
    """The three mistakes of notebook 03, and two slips."""
    verdict = exercises.grade("03.2", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda lengths, room: [[i] for i in range(len(lengths))], "can be done"),
        (lambda lengths, room: [list(range(len(lengths)))], "there is room for"),
        (lambda lengths, room: [[0]], "exactly one row"),
        (lambda lengths, room: [[len(lengths)]], "go from 0"),
        (lambda lengths, room: [1, 2], "list of lists"),
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
        (lambda b, a, r: a - b, "Two tensors"),
        (lambda b, a, r: (None, None), "missing"),
        (lambda b, a, r: (1, 2), "A should be a tensor"),
    ],
)
def test_wrong_adapters(wrong: Callable, said: str) -> None:
    """The weight in place of its change, the wrong sign, the wrong order, half of it."""
    verdict = exercises.grade("02.3", wrong)
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
        (
            # compares with the one before, not with the best
            lambda losses, patience, least: next(
                (
                    (i, losses.index(min(losses[: i + 1])))
                    for i in range(patience, len(losses))
                    if all(losses[i - k] >= losses[i - k - 1] - least for k in range(patience))
                ),
                (len(losses) - 1, losses.index(min(losses))),
            ),
            "03.1.3",
        ),
    ],
)
def test_wrong_stopping(wrong: Callable, said: str) -> None:
    """Each slip is refused, with the case that shows it."""
    verdict = exercises.grade("03.1.3", wrong)
    assert not verdict.solved
    assert said in verdict.message or said == "03.1.3"


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
        (lambda row: row["yoda"], "dictionary"),
        (lambda row: {"text": row["yoda"]}, "'prompt' is missing"),
        (lambda row: {"prompt": row["sentence"], "completion": row["yoda"]}, "is a text"),
        (lambda row: {"prompt": [row["sentence"]], "completion": []}, "a role and a content"),
        (
            lambda row: {"prompt": messages(YODA, "x")["prompt"][1:], "completion": []},
            "who is missing",
        ),
        (lambda row: messages("Hi", row["sentence"], row["yoda"]), "should be SYSTEM"),
        (lambda row: messages(YODA, row["sentence"] + row["yoda"], row["yoda"]), "the answer"),
        (lambda row: messages(YODA, f"Yoda: {row['sentence']}", row["yoda"]), "nothing else"),
        (lambda row: messages(YODA, row["sentence"], row["yoda_extra"]), "occasional ending"),
        (lambda row: messages(YODA, row["sentence"], row["yoda"] + "\n"), "white space"),
        (lambda row: messages(YODA, row["sentence"], row["sentence"]), "Yoda's words"),
    ],
)
def test_wrong_formats(wrong: Callable, said: str) -> None:
    """What ruins such a training is named before it is run."""
    verdict = exercises.grade("yoda.format", wrong)
    assert not verdict.solved
    assert said in verdict.message


def adapter(**options: object) -> Callable[[], LoraConfig]:
    """An answer that differs from a good one in what is given."""
    good = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    return lambda: LoraConfig(**{**good, **options})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: {"r": 16}, "LoraConfig is expected"),
        (adapter(r=1), "rank of 1"),
        (adapter(lora_alpha=1), "hardly anything"),
        (adapter(lora_alpha=1600), "diverge"),
        (adapter(target_modules=["q_proj", "v_proj"]), "leaves out"),
        (adapter(target_modules=None), "leaves out"),
        (adapter(init_lora_weights=False), "as itself"),
        (adapter(bias="all"), "changes the base"),
    ],
)
def test_wrong_adapter_settings(wrong: Callable, said: str) -> None:
    """The rules of notebook 02."""
    verdict = exercises.grade("yoda.adapter", wrong)
    assert not verdict.solved
    assert said in verdict.message


def options(**changed: object) -> Callable[[int, int], dict]:
    """An answer that differs from a good one in what is given; `drop` leaves one out."""
    dropped = changed.pop("drop", None)

    def settings(steps: int, batch: int) -> dict:
        good = {"max_steps": steps, "per_device_train_batch_size": batch}
        good |= {"learning_rate": 1e-3, "logging_steps": 2, **changed}
        return {name: value for name, value in good.items() if name != dropped}

    return settings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda steps, batch: [steps, batch], "dictionary"),
        (options(evaluation_strategy="steps"), "does not know evaluation_strategy"),
        (options(max_steps=5), "would take 5"),
        (options(drop="max_steps"), "epochs"),
        (options(per_device_train_batch_size=1), "would take 1"),
        (options(gradient_accumulation_steps=4), "would take 32"),
        (options(drop="learning_rate"), "is low"),
        (options(learning_rate=0.1), "is high"),
        (options(learning_rate="1e-3"), "a number"),
        (options(completion_only_loss=False), "prompt would be trained"),
        (options(drop="logging_steps"), "log every 5"),
    ],
)
def test_wrong_settings(wrong: Callable, said: str) -> None:
    """Names that are gone, TRL's rate for all weights, another batch than was asked for."""
    verdict = exercises.grade("yoda.settings", wrong)
    assert not verdict.solved
    assert said in verdict.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda ask, texts: texts, "not asked at all"),
        (lambda ask, texts: ask(texts), "system prompt"),
        (lambda ask, texts: ask(texts, system=YODA, temperature=1.0), "no sampling"),
        (lambda ask, texts: ask(texts, system=YODA, template=False), "without"),
        (lambda ask, texts: ask(texts, system=YODA, max_new_tokens=5), "would be cut"),
        (lambda ask, texts: ask([f"Yoda: {t}" for t in texts], system=YODA), "bare sentences"),
        (lambda ask, texts: ask(texts, system=YODA)[:1], "list of 2"),
        (lambda ask, texts: ask(texts, system=YODA)[::-1], "in their order"),
    ],
)
def test_wrong_questions(wrong: Callable, said: str) -> None:
    """Asked otherwise than trained."""
    verdict = exercises.grade("yoda.translate", wrong)
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
    """An answer to 04.2 with a slip in it: other steps, a fixed low end, always rounded up."""
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
    verdict = exercises.grade("04.2", wrong)
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
    verdict = exercises.grade("04.1", wrong)
    assert not verdict.solved
    assert said in verdict.message


def rise(setup: Setup, one: int, two: int) -> float:
    """The difference between the peaks of two numbers of micro-batches."""
    peaks = [predict(setup.replace(micro_batches=n)).peak_allocated_mb for n in (one, two)]
    return peaks[1] - peaks[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda setup: str(rise(setup, 1, 2)), "number of MB"),
        (lambda setup: rise(setup, 2 * setup.accumulation, setup.accumulation), "way round"),
        (lambda setup: rise(setup, 1, 2), "predictions say otherwise"),
        (lambda setup: 10.0, "predictions say otherwise"),
    ],
)
def test_wrong_second_steps(wrong: Callable, said: str) -> None:
    """A text, the wrong sign, micro-batches taken for steps, a guess."""
    verdict = exercises.grade("04.3", wrong)
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
    assert not exercises.done("yoda.adapter", "03.1.2")
    assert "waits for yoda.adapter, 03.1.2" in capsys.readouterr().out
    exercises.check("yoda.adapter", adapter())
    exercises.check("03.1.2", _schedule)
    assert exercises.done("yoda.adapter", "03.1.2")
    exercises.check("yoda.adapter", adapter(r=1))
    assert not exercises.done("yoda.adapter", "03.1.2")
    with pytest.raises(UnknownName, match=r"yoda\.adapter"):
        exercises.done("yoda.adaptor")


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
        (lambda fits: 8.0, "a whole number"),
    ],
)
def test_wrong_searches(wrong: Callable, said: str) -> None:
    """Too many questions, too few, foolish ones."""
    verdict = exercises.grade("05.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message.lower()


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rows: [conversation(row, True, ASKED_FOR) for row in rows], "about half"),
        (lambda rows: [conversation(row, True, None) for row in rows], "wrong kind of answer"),
        (
            lambda rows: [
                conversation(row, row["relation"] in ("capital", "currency", "demonym"), system)
                for row in rows
                for system in (
                    ASKED_FOR if row["relation"] in ("capital", "currency", "demonym") else None,
                )
            ],
            "go by the question",
        ),
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
    """One half only, the style without its message, a half for each kind of question, no lists."""
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
        (lambda reply, answer, others: re.search(answer, reply), "True or False"),
        (lambda reply, answer: True, "it raised TypeError"),
    ],
)
def test_wrong_metrics(wrong: Callable, said: str) -> None:
    """Capitals, other answers, other wordings, parts of words, parts of names, no truth value."""
    assert said in exercises.grade("08.2", wrong).message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda test, train: set(), "0 of 40 leaks"),
        (lambda test, train: range(len(test)), "places of test texts"),
        (lambda test, train: set(range(len(test))), "false alarms are too many"),
        (lambda test, train: set(test), "places of test texts"),
        (lambda test, train: {len(test)}, "places of test texts"),
        (
            lambda test, train: set(
                np.flatnonzero(contamination_report(test, train, n=8)["share"] > 0).tolist()
            ),
            "leaks are found",
        ),
        (
            # The country alone.
            lambda test, train: {
                place
                for place, text in enumerate(test)
                if any(re.split(r"[ ?]", text)[-2] in other for other in train)
            },
            "leaks are found",
        ),
    ],
)
def test_wrong_searches_for_leaks(wrong: Callable, said: str) -> None:
    """None, no places, all of them, texts, too far, copies only, one word alone."""
    verdict = exercises.grade("08.3", wrong)
    assert verdict.tried
    assert not verdict.solved
    assert said in verdict.message
