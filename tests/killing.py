"""Processes that are killed at moments nobody chose. Used by `tests/faults`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def kill_group(process: subprocess.Popen) -> None:
    """SIGKILL to a program and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def killed_at_random(
    command: Sequence[str | Path],
    rng: random.Random,
    longest: float,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    ready: str = "",
) -> tuple[bool, str]:
    """Run a program in a session of its own and kill it after 0 to `longest` seconds.

    Args:
        command: the program; it must need nothing from its standard input.
        rng: draws the moment.
        longest: seconds after which it is killed at the latest.
        env, cwd: as for `subprocess`.
        ready: the clock starts when the program has printed a line with this text; at once if "".

    Returns:
        Whether it was killed before its own end, and what it had printed to standard output.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    told = ""
    while ready and ready not in told:
        line = process.stdout.readline()
        if not line:
            break
        told += line
    try:
        told += process.communicate(timeout=rng.uniform(0, longest))[0]
        return False, told
    except subprocess.TimeoutExpired:
        kill_group(process)
        return True, told + process.communicate()[0]
