"""A calculator for the GPU memory of a training run. Introduced in notebook 04."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from course_utils._core import checks
from course_utils.errors import CourseError
from course_utils.widgets._base import WithFallback, as_html

# The most common choices; `Setup` accepts all of the Trainer's optimizers.
_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd")
_LARGEST, _LONGEST = 4096, 10**6  # largest batch size and sequence length


def memory_calculator(
    model: str = "HuggingFaceTB/SmolLM2-1.7B",
    gpu: str = "t4",
    *,
    seq_len: int = 1024,
    batch_size: int = 1,
) -> WithFallback:
    """Predict the GPU memory of a training run interactively, and suggest what would make it fit.

    Args:
        model: the model selected at first; any id in the catalogue.
        gpu: the GPU selected at first.
        seq_len, batch_size: the initial values of the fields.

    Raises:
        UnknownName: the model or GPU is unknown.
        ValueError: a number is out of range for its field.
    """
    from course_utils.display import MEMORY_COLOURS, PINK
    from course_utils.memory import GPUS, predict, ways_to_fit
    from course_utils.memory import _setup as setups
    from course_utils.memory import gpu as gpu_by_name
    from course_utils.memory._allocator import OutOfMemory
    from course_utils.memory._gpus import MIB
    from course_utils.models._catalog import catalog

    setups.config_of(model)
    chosen_gpu = next(key for key, entry in GPUS.items() if entry == gpu_by_name(gpu))
    checks.whole("seq_len", seq_len, 1, _LONGEST)
    checks.whole("batch_size", batch_size, 1, _LARGEST)

    def choice(label: str, options: Any, value: Any) -> widgets.Dropdown:
        # Descriptions in full: the default width cuts off "Checkpointing".
        return widgets.Dropdown(
            options=options,
            value=value,
            description=label,
            style={"description_width": "initial"},
        )

    colours = {**MEMORY_COLOURS, "CUDA context": PINK}
    names = [*catalog().bundled, *catalog().models]
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
        return as_html(answers.drop(columns="setup"))

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
