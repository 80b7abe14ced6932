"""Loss curves, during and after training. Introduced in notebook 03.1."""

from __future__ import annotations

import base64
import io
import sys
import time
from collections.abc import Mapping
from typing import Any

import transformers
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.notebook import NotebookProgressCallback

from course_utils._core import checks
from course_utils.display import BLUE, ORANGE, use_style

_REDRAW_SECONDS = 5.0


def curves(history: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Extract the training and validation losses from a `trainer.state.log_history`.

    Returns:
        Steps and losses, under the keys `training` and `validation`.

    Raises:
        BadValue: not such a history.
    """
    for row in checks.items("history", history, "dictionaries, a trainer.state.log_history"):
        if not isinstance(row, Mapping):
            raise checks.refuse("history", history, "a list of dictionaries with a step each")
    found: dict[str, tuple[list[int], list[float]]] = {}
    for name, key in (("training", "loss"), ("validation", "eval_loss")):
        try:
            rows = [(row["step"], float(row[key])) for row in history if key in row]
        except (KeyError, TypeError, ValueError):
            raise checks.refuse(
                "history", history, f"a list of dictionaries with step and {key}"
            ) from None
        found[name] = ([step for step, _ in rows], [loss for _, loss in rows])
    return found


def plot_losses(history: list[dict[str, Any]], axis: Axes) -> None:
    """Plot training and validation loss against the step.

    Args:
        history: a `trainer.state.log_history`.
        axis: the axes to draw on.
    """
    checks.a("axis", axis, Axes, "Axes of matplotlib")
    styles = {"training": (BLUE, "-", ""), "validation": (ORANGE, "--", "o")}
    for name, (steps, losses) in curves(history).items():
        if steps:
            colour, line, marker = styles[name]
            axis.plot(steps, losses, line, marker=marker, color=colour, label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.grid(axis="y")
    if axis.has_data():
        axis.set_ylim(bottom=0)
        axis.legend()


class LiveLosses(TrainerCallback):
    """Show the losses and the time left during training; outside a notebook, print them.

    If the training arguments have a `run_name`, the plot's title begins with it.
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self.name = ""
        self.drawn = 0.0
        self.over = True

    def _status(self, state: Any) -> str:
        seconds = time.perf_counter() - self.start
        done = state.global_step - self.first_step
        text = f"step {state.global_step} of {state.max_steps}, {seconds / 60:.1f} min"
        if not self.over and done > 0 and state.global_step < state.max_steps:
            text += f" of about {seconds / done * (state.max_steps - self.first_step) / 60:.1f}"
        return text

    def _draw(self, state: Any) -> None:
        use_style()
        figure = Figure(figsize=(6.5, 3.0), layout="constrained")
        axis = figure.add_subplot()
        plot_losses(state.log_history, axis)
        axis.set_title(f"{self.name}: {self._status(state)}" if self.name else self._status(state))
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=100)
        validated = any("eval_loss" in entry for entry in state.log_history)
        said = "Training and validation loss" if validated else "Training loss"
        said += f" of {self.name}" if self.name else ""
        picture = {
            "image/png": base64.b64encode(stream.getvalue()).decode(),
            "text/plain": f"{said} at {self._status(state)}",
        }
        if self.handle is None:
            self.handle = display(picture, raw=True, display_id=True)
        else:
            self.handle.update(picture, raw=True)
        self.drawn = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reset the clock and the plot."""
        self.name = args.run_name or ""
        self.start, self.first_step, self.handle = time.perf_counter(), state.global_step, None
        self.over = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Redraw at most every few seconds; an evaluation outside training draws nothing."""
        if self.over:
            return
        if not transformers.utils.is_in_notebook():
            last = state.log_history[-1]
            shown = [f"{key} {last[key]:.3f}" for key in ("loss", "eval_loss") if key in last]
            if shown:
                print(f"{self._status(state)}: {', '.join(shown)}", file=sys.stderr)
        elif time.perf_counter() - self.drawn > _REDRAW_SECONDS:
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the final plot."""
        self.over = True
        if transformers.utils.is_in_notebook():
            self._draw(state)


def watch(trainer: transformers.Trainer) -> transformers.Trainer:
    """Show live loss curves instead of a trainer's own progress bar or printed dictionaries.

    The `run_name` in its arguments, if any, is in the plot's title, to tell several runs apart.

    Returns:
        The same trainer.
    """
    checks.a("trainer", trainer, transformers.Trainer, "a Trainer of transformers or TRL")
    for callback in (ProgressCallback, PrinterCallback, NotebookProgressCallback, LiveLosses):
        trainer.remove_callback(callback)
    trainer.add_callback(LiveLosses())
    return trainer
