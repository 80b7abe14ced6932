"""The checks of notebook 06, which train for some seconds with the notebook's own function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from course_utils.exercises._check import Wrong, call, exercise

COUNTRIES, SHARE = 19, 0.6
PARAMETERS, SMALL_SHARE = 25_000, 0.9
_RELATIONS = {"capital", "continent", "currency", "language", "demonym"}


@exercise(
    "06.1",
    "The dataset has a column `country`, and `filter` keeps the rows for which a function is true.",
    "Choose the countries first: `sorted(set(rows['country']))` lists the names of all.",
    "If too few answers are right: do your countries come from all over the world?",
)
def _few(function: Callable[[Any], Any], share_after: Callable[..., float]) -> None:
    from course_utils.data import load_data

    data = load_data("countries")
    rows = call(function, data["train"])
    names = getattr(rows, "column_names", None)
    if not isinstance(names, list) or not {"country", "relation", "question"} <= set(names):
        raise Wrong("Rows of the dataset are expected, with all their columns.")
    chosen = set(rows["country"])
    if forbidden := sorted(chosen & set(data["held_out"]["country"])):
        raise Wrong(f"Held out, and so not to be trained on: {', '.join(forbidden)}.")
    if len(chosen) != COUNTRIES:
        raise Wrong(f"{COUNTRIES} countries are asked for; these are {len(chosen)}.")
    if missing := sorted(_RELATIONS - set(rows["relation"])):
        raise Wrong(f"No question is about the {', '.join(missing)}.")
    share = share_after(rows)
    if share < SHARE:
        raise Wrong(
            f"Tuned on these, the model answers {share:.0%} about the held-out countries; "
            f"{SHARE:.0%} are asked for."
        )


@exercise(
    "06.2",
    "The size of an adapter is its rank times the widths of its layers. Begin with all linear "
    "layers, and lower the rank.",
    "If too few answers are right: `lora_alpha / r` scales what the adapter adds, and a lower rank "
    "may need a higher ratio.",
    "Then leave out layers: `target_modules` takes a list of names. Print the model to see them.",
)
def _small(function: Callable[[], dict[str, Any]], share_after: Callable[..., float]) -> None:
    from peft import LoraConfig, get_peft_model

    from course_utils.data import load_data
    from course_utils.models._loading import load_model

    options = call(function)
    if not isinstance(options, dict):
        raise Wrong(f"A dictionary of LoraConfig's arguments is expected; this is {options!r}.")
    try:
        model = get_peft_model(load_model("course/pythia-3m", quiet=True), LoraConfig(**options))
    except (TypeError, ValueError) as error:
        raise Wrong(f"peft does not take it: {error}") from error
    parameters, _ = model.get_nb_trainable_parameters()
    if parameters > PARAMETERS:
        raise Wrong(f"It has {parameters:,} parameters, more than {PARAMETERS:,}.")
    share = share_after(load_data("countries")["train"], options)
    if share < SMALL_SHARE:
        raise Wrong(
            f"With its {parameters:,} parameters the model answers {share:.0%} about the held-out "
            f"countries; {SMALL_SHARE:.0%} are asked for."
        )
