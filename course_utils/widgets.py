"""Widgets for the notebooks; each has a plain cell beside it that does the same.

Introduced in notebook 01.
"""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from course_utils import checks
from course_utils.errors import CourseError
from course_utils.printable import visible
from course_utils.running import PROMPT, Runner

if TYPE_CHECKING:
    import pandas as pd

    from course_utils.scoring.votes import Votes


# What people choose between; `Setup` takes every optimizer that the Trainer has.
_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd")
_LARGEST, _LONGEST = 4096, 10**6  # batch and tokens in a calculator's fields


class WithFallback(widgets.VBox):
    """A box that says something useful where widgets are not shown (GitHub, a printed page)."""

    def __init__(self, children: list[widgets.Widget], fallback: str):
        super().__init__(children)
        self._fallback = fallback

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle["text/plain"] = visible(self._fallback)
        bundle["text/html"] = f"<p><em>{html.escape(visible(self._fallback))}</em></p>"
        return bundle


def _as_html(table: pd.DataFrame) -> str:
    """A table for a widget, which has none of the notebook's own styles: room, numbers right."""
    cells = {"selector": "th, td", "props": [("padding", "2px 10px"), ("text-align", "left")]}
    styler = table.style.hide(axis="index").set_table_styles([cells])
    numbers = list(table.select_dtypes("number"))
    right = [{"selector": "th, td", "props": [("text-align", "right")]}]
    styler = styler.set_table_styles(dict.fromkeys(numbers, right), overwrite=False)
    return styler.format(precision=2, thousands=",", escape="html").to_html()


def _choices(name: str, given: Any, kind: str, one: Callable[[Any], bool]) -> dict[str, Any]:
    """What a list of choices is made of, by the name shown."""
    good = isinstance(given, Mapping) and given
    if not good or not all(isinstance(key, str) and one(value) for key, value in given.items()):
        raise checks.refuse(name, given, f"a dictionary of names and {kind}, with one at least")
    return dict(given)


def playground(
    runners: dict[str, Runner],
    templates: dict[str, bool | str],
    *,
    prompt: str = "What is the capital of Mexico?",
    max_new_tokens: int = 80,
) -> WithFallback:
    """Ask any model with any template at any temperature, streaming.

    Args:
        runners: the models to choose from, by the name shown.
        templates: what to put around the prompt, by the name shown; see `Runner.prompt`.
        prompt: what stands in the field at first.
        max_new_tokens: where a reply is cut.

    Raises:
        ValueError: nothing to choose from, or an argument that cannot be.
    """
    runners = _choices("runners", runners, "models, as runner(…) gives them", callable)
    # A text without a place for the prompt is refused at the click, where the learner reads why.
    kind = f"templates (True, False, or a text with {PROMPT} in it)"
    templates = _choices("templates", templates, kind, lambda value: isinstance(value, bool | str))
    checks.text("prompt", prompt)
    checks.whole("max_new_tokens", max_new_tokens, 1)
    wide = widgets.Layout(width="98%")
    which = widgets.Dropdown(options=list(runners), description="Model")
    around = widgets.Dropdown(options=list(templates), description="Template")
    heat = widgets.FloatSlider(
        value=0,
        min=0,
        max=2,
        step=0.1,
        description="Temperature",
        continuous_update=False,
        style={"description_width": "initial"},
    )
    barred = widgets.Checkbox(value=False, description="Bar the end token", indent=False)
    text = widgets.Textarea(value=prompt, description="Prompt", layout=wide)
    button = widgets.Button(description="Ask", button_style="primary")
    sent = widgets.HTML()
    reply = widgets.Textarea(description="Reply", disabled=True, rows=8, layout=wide)

    def on_click(_: widgets.Button) -> None:
        button.disabled, reply.value = True, ""
        ask = runners[which.value]

        def receive(piece: str) -> None:
            reply.value += piece

        try:
            answer = ask(
                text.value,
                template=templates[around.value],
                temperature=heat.value,
                stream=receive,
                max_new_tokens=max_new_tokens,
                **({"min_new_tokens": max_new_tokens} if barred.value else {}),
            )
            how = "ended by itself" if answer.finished else "was cut"
            sent.value = f"{answer.tokens} tokens, then it {how}."
        except (CourseError, ValueError) as error:
            sent.value = f"That does not work: {html.escape(str(error))}"
        finally:
            button.disabled = False

    button.on_click(on_click)
    box = WithFallback(
        [
            widgets.HBox([which, around]),
            widgets.HBox([heat, barred]),
            text,
            widgets.HBox([button, sent]),
            reply,
        ],
        "Widgets are not shown here. The next cell does the same without one.",
    )
    # Handles for tests and for the curious.
    box.controls = {
        "model": which,
        "template": around,
        "temperature": heat,
        "bar_end": barred,
        "prompt": text,
        "ask": button,
        "status": sent,
        "reply": reply,
    }
    return box


def translator(
    functions: dict[str, Callable[[str], str]],
    texts: list[str],
    *,
    label: str = "English",
    action: str = "Translate",
    another: str = "Random sentence",
    seed: int | None = None,
) -> WithFallback:
    """Type a text or take a random one; see what several functions make of it, one below another.

    Introduced in notebook 03.2.

    Args:
        functions: from a text to a translation, or a reply, by the name shown.
        texts: what the button for a random one draws from.
        label: what stands before the text.
        action, another: what the two buttons say.
        seed: for the draws; None for other ones each time.

    Raises:
        ValueError: no functions, no texts, or an argument that cannot be.
    """
    functions = _choices("functions", functions, "functions", callable)
    texts = checks.texts("texts", texts, empty=False)
    for name, said in (("label", label), ("action", action), ("another", another)):
        checks.text(name, said)
    if seed is not None:
        checks.whole("seed", seed)
    draw = random.Random(seed)
    text = widgets.Text(
        value=texts[0],
        description=label,
        layout=widgets.Layout(width="80%"),
        style={"description_width": "initial"},
    )
    chance = widgets.Button(description=another, icon="random", layout=widgets.Layout(width="auto"))
    button = widgets.Button(description=action, button_style="primary")
    shown = widgets.HTML()

    def run(_: object = None) -> None:
        chance.disabled = button.disabled = True
        rows = [(label, text.value)]
        try:
            for name, function in functions.items():
                rows.append((name, str(function(text.value))))
        except (CourseError, ValueError) as error:
            rows.append(("That does not work", str(error)))
        finally:
            chance.disabled = button.disabled = False
        shown.value = "".join(
            f"<p><b>{html.escape(name)}:</b> {html.escape(answer)}</p>" for name, answer in rows
        )

    def on_random(_: widgets.Button) -> None:
        text.value = draw.choice(texts)
        run()

    button.on_click(run)
    chance.on_click(on_random)
    box = WithFallback(
        [text, widgets.HBox([button, chance]), shown],
        "Widgets are not shown here. The next cell does the same without one.",
    )
    box.controls = {"text": text, "run": button, "random": chance, "shown": shown}
    return box


def memory_calculator(
    model: str = "HuggingFaceTB/SmolLM2-1.7B",
    gpu: str = "t4",
    *,
    seq_len: int = 1024,
    batch_size: int = 1,
) -> WithFallback:
    """What a training needs of a GPU's memory, predicted, and what would make it fit.

    Introduced in notebook 04.

    Args:
        model: the model that is chosen at first; any id of the catalogue can be.
        gpu: the GPU that is chosen at first.
        seq_len, batch_size: what stands in the fields at first.

    Raises:
        UnknownName: a model or GPU that is not known.
        ValueError: a number that cannot stand in its field.
    """
    from course_utils.catalog import catalog
    from course_utils.display import MEMORY_COLOURS, PINK
    from course_utils.memory import GPUS, predict, ways_to_fit
    from course_utils.memory import _setup as setups
    from course_utils.memory import gpu as gpu_by_name
    from course_utils.memory._allocator import OutOfMemory
    from course_utils.memory._gpus import MIB

    setups.config_of(model)
    chosen_gpu = next(key for key, entry in GPUS.items() if entry == gpu_by_name(gpu))
    checks.whole("seq_len", seq_len, 1, _LONGEST)
    checks.whole("batch_size", batch_size, 1, _LARGEST)

    def choice(label: str, options: Any, value: Any) -> widgets.Dropdown:
        # In full, however long; the usual width cuts "Checkpointing".
        return widgets.Dropdown(
            options=options,
            value=value,
            description=label,
            style={"description_width": "initial"},
        )

    colours = {**MEMORY_COLOURS, "CUDA context": PINK}
    names = [*catalog().own, *catalog().models]
    fields: dict[str, Any] = {
        "model": widgets.Combobox(options=names, value=model, description="Model"),
        "quantization": choice(
            "Quantization", [("none", None), *((name, name) for name in setups.QUANTIZATIONS)], None
        ),
        "trainer": choice("Trainer", list(setups.TRAINERS), "sft"),
        "lora": widgets.Checkbox(value=True, description="LoRA", indent=False),
        "optimizer": choice("Optimizer", _OPTIMIZERS, _OPTIMIZERS[0]),
        "attention": choice("Attention", setups.ATTENTIONS, "auto"),
        "checkpointing": choice(
            "Checkpointing",
            [("the trainer's default", None), *((name, name) for name in setups.CHECKPOINTING)],
            None,
        ),
        "mixed_precision": choice(
            "Mixed precision",
            [("the trainer's default", None), *((name, name) for name in setups.MIXED_PRECISION)],
            None,
        ),
        "batch_size": widgets.BoundedIntText(batch_size, 1, _LARGEST, description="Batch"),
        "seq_len": widgets.BoundedIntText(seq_len, 1, _LONGEST, description="Tokens"),
    }
    which = choice("GPU", [(entry.name, key) for key, entry in GPUS.items()], chosen_gpu)
    button = widgets.Button(description="Predict", button_style="primary")
    help_button = widgets.Button(description="Make it fit")
    shown = widgets.HTML()

    def setup() -> setups.Setup:
        dtype = "bfloat16" if GPUS[which.value].computes_bfloat16 else "float16"
        given = {name: field.value for name, field in fields.items()}
        targets = {"lora_targets": "all-linear"} if given["lora"] else {}
        return setups.Setup(**given, **targets, dtype=dtype)

    def tell(text: str) -> None:
        shown.value = text

    def busy(work: Callable[[], str]) -> None:
        button.disabled = help_button.disabled = True
        tell("…")
        try:
            tell(work())
        except (CourseError, OutOfMemory, ValueError) as error:
            tell(f"<p>That does not work: {html.escape(str(error))}</p>")
        finally:
            button.disabled = help_button.disabled = False

    def run() -> str:
        chosen = GPUS[which.value]
        found = predict(setup(), chosen)
        context = chosen.context_mib * MIB / 1e6
        parts = {**found.at_peak, "CUDA context": context}
        whole = chosen.process_mib * MIB / 1e6
        need = found.peak_reserved_mb
        fits = found.fits
        scale = 100 / max(whole, sum(parts.values()))
        bars = "".join(
            f'<div title="{kind}: {size:,.0f} MB" style="width:{size * scale:.2f}%;'
            f'background:{colours[kind]};height:22px"></div>'
            for kind, size in parts.items()
        )
        legend = " ".join(
            f'<span style="color:{colours[kind]}">■</span> {kind} {size:,.0f}'
            for kind, size in parts.items()
        )
        verdict = "It fits" if fits else "It does not fit"
        return (
            f"<p><b>{verdict}</b>: the allocator would reserve {need:,.0f} MB. Of a {chosen.name} "
            f"a process gets about {whole:,.0f} MB, and its CUDA context takes {context:,.0f} "
            f"({'measured' if chosen.measured_context_mib else 'a cautious guess'}).</p>"
            f'<div style="display:flex;width:100%;border:1px solid #888">{bars}</div>'
            f"<p>At the peak ({html.escape(found.peak_op)}), MB: {legend}</p>"
        )

    def repair() -> str:
        answers = ways_to_fit(setup(), which.value, progress=False)
        if answers.empty:
            return "<p>No combination of the known changes is enough.</p>"
        return _as_html(answers.drop(columns="setup"))

    button.on_click(lambda _: busy(run))
    help_button.on_click(lambda _: busy(repair))
    box = WithFallback(
        [
            widgets.HBox([fields["model"], which]),
            widgets.HBox([fields["trainer"], fields["lora"]]),
            widgets.HBox([fields["quantization"], fields["optimizer"]]),
            widgets.HBox([fields["attention"], fields["checkpointing"]]),
            widgets.HBox([fields["batch_size"], fields["seq_len"]]),
            fields["mixed_precision"],
            widgets.HBox([button, help_button]),
            shown,
        ],
        "Widgets are not shown here. `predict(Setup(…))` and `ways_to_fit` do the same.",
    )
    box.controls = {**fields, "gpu": which, "predict": button, "repair": help_button}
    box.controls["shown"] = shown
    return box


def rating(
    pairs: Sequence[tuple[str, Mapping[str, str]]],
    votes: Votes,
    *,
    voter: str = "me",
    seed: int | None = None,
) -> WithFallback:
    """Judge answers side by side without knowing whose they are; at the end see who won.

    Each click is stored at once. Run again with the same `votes`, it goes on where it stopped. A
    pair that is skipped comes again in the next run. Introduced in notebook 08.

    Args:
        pairs: for each question the question and the two systems' answers, by the system's name:
            `[("What is …?", {"base": "It …", "tuned": "That …"}), …]`.
        votes: where the votes are kept.
        voter: who votes.
        seed: for which answer stands left; None for other sides each time.

    Raises:
        ValueError: no pairs, not two answers to a question, or one pair twice; or an argument that
            cannot be.
    """
    from course_utils.scoring.votes import Vote, Votes, fingerprint, win_rates

    pairs = checks.items("pairs", pairs, "pairs")
    for pair in pairs:
        good = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Mapping)
        if not (good and all(isinstance(part, str) for part in (pair[0], *pair[1].values()))):
            possible = 'a question and its answers by system: ("Why?", {"a": "…", "b": "…"})'
            raise checks.refuse("each of pairs", pair, possible)
    checks.a("votes", votes, Votes, "Votes, such as Votes('votes.jsonl')")
    checks.text("voter", voter, empty=False)
    if seed is not None:
        checks.whole("seed", seed)
    draw = random.Random(seed)
    blanks: list[Vote] = []  # what is voted on; their winners mean nothing
    texts: list[tuple[str, str]] = []
    for question, answers in pairs:
        if len(answers) != 2:
            raise ValueError(
                f"There are {len(answers)} answers to {question!r}; it takes those of two systems."
            )
        left, right = draw.sample(sorted(answers), 2)
        texts.append((answers[left], answers[right]))
        answer = fingerprint(left, answers[left], right, answers[right])
        blanks.append(Vote(question, left, right, "tie", voter, answer))
    keys = [blank.key for blank in blanks]
    if not keys or len(set(keys)) < len(keys):
        raise ValueError(
            f"There are {len(keys)} pairs, {len(set(keys))} of them different; it takes one pair "
            "at least, and each once."
        )
    given = [keys.index(vote.key) for vote in votes if vote.key in keys]
    waiting = [number for number in range(len(keys)) if number not in given]

    def button(label: str) -> widgets.Button:
        return widgets.Button(description=label)

    progress, asked, left_answer, right_answer, result = (widgets.HTML() for _ in range(5))
    for side in (left_answer, right_answer):
        side.layout = widgets.Layout(width="49%")
    labels = {"left": "Left is better", "tie": "Equally good", "right": "Right is better"}
    choices = {winner: button(label) for winner, label in labels.items()}
    skip, undo = button("Skip"), button("Undo last")

    def as_text(text: str) -> str:
        return f'<div style="white-space:pre-wrap;line-height:1.4">{html.escape(text)}</div>'

    def show(trouble: str = "") -> None:
        for each in (*choices.values(), skip):
            each.disabled = not waiting
        # Not at the end: whoever knows the names is no longer blind.
        undo.disabled = not (waiting and given)
        result.value = f"<p>That does not work: {html.escape(trouble)}</p>" if trouble else ""
        if waiting:
            left_text, right_text = texts[waiting[0]]
            progress.value = f"{len(keys) - len(waiting) + 1} of {len(keys)}"
            asked.value = as_text(blanks[waiting[0]].question)
            left_answer.value = f"<b>Left</b>{as_text(left_text)}"
            right_answer.value = f"<b>Right</b>{as_text(right_text)}"
            return
        asked.value = left_answer.value = right_answer.value = ""
        progress.value = f"Done: {len(given)} of {len(keys)} judged."
        if given:
            table = win_rates([vote for vote in votes if vote.key in keys])
            result.value = (
                f"{_as_html(table)}"
                "<p>A tie is half a win; low and high are the ends of a 95% interval.</p>"
            )

    def attempt(action: Callable[[], object]) -> None:
        if not waiting:  # the second half of a double click
            return
        try:
            action()
        except (OSError, ValueError) as error:
            show(str(error))
        else:
            show()

    def choose(winner: str) -> None:
        blank, (left_text, right_text) = blanks[waiting[0]], texts[waiting[0]]
        names = (blank.question, blank.left, blank.right)
        votes.add(*names, winner, voter, left_text=left_text, right_text=right_text)
        given.append(waiting.pop(0))

    def take_back() -> None:
        votes.withdraw(blanks[given[-1]])
        waiting.insert(0, given.pop())

    for winner, each in choices.items():
        each.on_click(lambda _, winner=winner: attempt(lambda: choose(winner)))
    skip.on_click(lambda _: attempt(lambda: waiting.pop(0)))
    undo.on_click(lambda _: attempt(take_back))
    show()
    box = WithFallback(
        [
            progress,
            asked,
            widgets.HBox([left_answer, right_answer]),
            widgets.HBox([*choices.values(), skip, undo]),
            result,
        ],
        "Widgets are not shown here. `votes.add(question, left, right, winner)` stores a vote, and "
        "`win_rates(votes)` counts them.",
    )
    box.controls = {
        "left_better": choices["left"],
        "equal": choices["tie"],
        "right_better": choices["right"],
        "skip": skip,
        "undo": undo,
        "progress": progress,
        "question": asked,
        "left": left_answer,
        "right": right_answer,
        "result": result,
    }
    return box
