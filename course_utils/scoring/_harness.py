"""The course's tasks for EleutherAI's lm-eval.

The two tasks, in the folder `tasks`, ask the held-out questions about countries and do not need a
network. Introduced in notebook 08.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

COURSE_TASKS = ("course_countries_choice", "course_countries_generate")


def course_task_manager() -> TaskManager:
    """Create an lm-eval `TaskManager` for the tasks in `COURSE_TASKS` and for your own tasks.

    It omits lm-eval's own tasks, of which there are over ten thousand: listing them takes some
    seconds. For tasks on the hub, call `simple_evaluate` without a task manager.
    """
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=Path(__file__).parent / "tasks", include_defaults=False)
