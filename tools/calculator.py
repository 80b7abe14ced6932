"""The site's page "What can I train on my GPU?": its data and what it shows without JavaScript.

The predictions come from `benchmarks/results/atlas.jsonl` (`make atlas`). `script` writes them as
a file that the page loads, `html` is what stands on the page before `docs/_static/calculator.js`
takes over. Sizes are in MB = 10^6 bytes where nothing else is said.
"""

from __future__ import annotations

import html as escaping
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

MB, MIB = 1e6, 2**20

# From the method that changes the most to the one that needs the least memory: what people call
# it, and what it does.
METHODS = {
    "full-32": (
        "Full fine-tuning, 32-bit weights",
        "All weights are trained. They are stored in 32 bits, and most of the computing is done "
        "in 16 bits (mixed precision).",
    ),
    "full-32-adam-8": (
        "Full fine-tuning, 32-bit weights, 8-bit Adam",
        "All weights are trained in 32 bits. The optimizer's averages are stored in 8 bits.",
    ),
    "full-16": (
        "Full fine-tuning, 16-bit weights",
        "All weights are trained and stored in 16 bits (bfloat16).",
    ),
    "full-16-adam-8": (
        "Full fine-tuning, 16-bit weights, 8-bit Adam",
        "All weights are trained in 16 bits. The optimizer's averages are stored in 8 bits.",
    ),
    "lora": (
        "LoRA",
        "The model's weights stay as they are, in 16 bits. Small adapters of rank 16 are trained "
        "on every linear layer.",
    ),
    "qlora": (
        "QLoRA",
        "As LoRA, but the frozen weights are stored in 4 bits (nf4). The optimizer is the paged "
        "8-bit AdamW. CUDA can move its averages to the computer's own memory, so they are not "
        "counted here.",
    ),
}

# What fills the memory, in the order in which it is stacked.
KINDS = {
    "weights": "the model's parameters, and the adapter's if there is one",
    "optimizer": "two running averages for each trained parameter, which Adam keeps",
    "gradients": "one number for each trained parameter",
    "activations": "what the forward pass keeps for the backward pass, and short-lived results",
    "workspaces": "scratch memory of the routines that multiply matrices",
}

# Warnings of the predictor in the page's words: by what they contain. Others are left out, because
# they are about a choice that the page does not offer.
WARNINGS = {
    "math kernel": "On this GPU, PyTorch has no fast attention for this model. It writes down one "
    "number for every pair of tokens, so the activations grow with the square of the length.",
    "of the weights stay as they are": "Most weights of this model are embeddings, which QLoRA "
    "does not make smaller.",
}

# The GPUs of the table that is shown without JavaScript.
WITHOUT_SCRIPT = ("t4", "rtx3060", "rtx4090", "a100-80gb")


def _atlas() -> Any:
    from benchmarks import atlas

    return atlas


def predicted(path: Path | None = None) -> tuple[dict[str, Any], dict[Any, dict[str, Any]]]:
    """The header of the file of predictions, and the row of every training, by `atlas.key`.

    Args:
        path: the file; the one in the repository if None.
    """
    atlas = _atlas()
    header, listed = atlas.read(path or atlas.RESULTS)
    there = {atlas.key(row): row for row in listed}
    hopper = [{**row, "class": "hopper"} for row in listed if row["class"] == "ampere"]
    rows = {atlas.key(row): atlas.row_of(row, there) for row in [*listed, *hopper]}
    return header, rows


def gpus() -> list[dict[str, Any]]:
    """The GPUs, from the smallest to the largest, with what a training can have of each."""
    from course_utils.memory import GPUS, usable_bytes

    atlas = _atlas()
    narrow = next(model for model in atlas.MODELS if not atlas.wide(model))
    wide = next(model for model in atlas.MODELS if atlas.wide(model))
    return [
        {
            "id": name,
            "name": gpu.name,
            "usable": usable_bytes(gpu) / MB,
            "context": gpu.context_mib * MIB / MB,
            "total": gpu.process_mib * MIB / MB,
            "measured": gpu.total_mib is not None,
            "class": atlas.class_of(gpu, narrow),
            "wide": atlas.class_of(gpu, wide),
        }
        for name, gpu in sorted(GPUS.items(), key=lambda each: usable_bytes(each[1]))
    ]


def data(path: Path | None = None) -> dict[str, Any]:
    """Everything that the page's script needs.

    Args:
        path: the file of predictions; the one in the repository if None.
    """
    from course_utils.display import MEMORY_COLOURS

    atlas = _atlas()
    header, by_key = predicted(path)
    rows = list(by_key.values())
    phases = sorted({row["phase"] for row in rows})
    there = {row["model"] for row in rows}
    models = sorted((m for m in atlas.MODELS if m in there), key=atlas.MODELS.__getitem__)
    table: dict[str, list[Any]] = {}
    for row in rows:
        name = "|".join(
            (row["class"], row["model"], row["method"], str(row["batch"]), str(row["length"]))
        )
        table[name] = [
            row["reserved_mb"],
            row["allocated_mb"],
            *(row["at_peak"][kind] for kind in KINDS),
            phases.index(row["phase"]),
            [
                at
                for at, mark in enumerate(WARNINGS)
                if any(mark in said for said in row["warnings"])
            ],
        ]
    return {
        "versions": header.get("versions", {}),
        "gpus": gpus(),
        "models": [
            {"id": model, "size": atlas.MODELS[model], "wide": atlas.wide(model)}
            for model in models
        ],
        "methods": [
            {"id": name, "name": told, "about": about, "options": atlas.METHODS_HERE[name]}
            for name, (told, about) in METHODS.items()
        ],
        "classes": {name: methods for name, (_, methods) in atlas.CLASSES.items()},
        "shapes": sorted(atlas.SHAPES),
        "kinds": KINDS,
        "colours": MEMORY_COLOURS,
        "phases": phases,
        "warnings": list(WARNINGS.values()),
        "rows": table,
    }


def script(path: Path | None = None) -> str:
    """The data as a script that a page can load from a folder, without a server."""
    return f"window.ATLAS = {json.dumps(data(path), separators=(',', ':'))};\n"


def _fullest(atlas: Any, rows: dict[Any, Any], model: str, gpu: Any) -> str:
    """The method of one cell: the one that changes the most of those that fit."""
    for method in METHODS:
        batch, length = atlas.SHAPES[0]
        row = rows.get((model, atlas.class_of(gpu, model), method, batch, length))
        if row and atlas.fits(row, gpu):
            needed = row["reserved_mb"] + gpu.context_mib * MIB / MB
            return f"{METHODS[method][0]}: {needed / 1000:.1f} GB"
    return "does not fit"


def html(path: Path | None = None) -> str:
    """What stands on the page: a table for some GPUs, until the script takes over."""
    from course_utils.memory import GPUS

    atlas = _atlas()
    _, rows = predicted(path)
    there = {row["model"] for row in rows.values()}
    models = sorted((m for m in atlas.MODELS if m in there), key=atlas.MODELS.__getitem__)
    batch, length = atlas.SHAPES[0]
    lines = [
        '<link rel="stylesheet" href="_static/calculator.css">',
        '<div id="calculator"></div>',
        '<div id="calculator-table">',
        f"<p>This table is for {length} tokens an example and a batch of {batch}. For each model "
        "and GPU, it names the method that trains the most and fits. With JavaScript switched on, "
        "you can choose among more GPUs and settings here.</p>",
        '<div class="calc-scroll"><table class="table"><thead><tr><th>model</th>',
        *(f"<th>{escaping.escape(GPUS[name].name)}</th>" for name in WITHOUT_SCRIPT),
        "</tr></thead><tbody>",
    ]
    for model in models:
        cells = [_fullest(atlas, rows, model, GPUS[name]) for name in WITHOUT_SCRIPT]
        row = "".join(f"<td>{escaping.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escaping.escape(model)}</td>{row}</tr>")
    lines += [
        "</tbody></table></div></div>",
        '<script src="atlas.js"></script>',
        '<script src="_static/calculator.js"></script>',
    ]
    return "\n".join(lines)
