"""Programs that end with their test, and with all that they started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

WAIT_S = 120
GRACE_S = 10

Answer = TypeVar("Answer")


def until(condition: Callable[[], Answer], what: str, evidence: Callable[[], str]) -> Answer:
    """The first true answer of `condition`; without one in time, a failure with the evidence."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {WAIT_S} s: {what}\n\n{evidence()}")
        time.sleep(0.1)
    return answer


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a log, under its name."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join([f"--- {log.name}, its last lines", *text.splitlines()[-lines:]])


def session(leader: int) -> set[psutil.Process]:
    """The processes of a session, also those whose parent has gone."""
    found = set()
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found.add(process)
    return found


def family(leader: int) -> set[psutil.Process]:
    """A session and its descendants: a Jupyter kernel has a session of its own."""
    found = session(leader)
    for process in list(found):
        with suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; a zombie waits only for its parent to take note."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


def _gone(processes: Callable[[], Iterable[psutil.Process]]) -> bool:
    """Whether the processes end within the grace period."""
    deadline = time.monotonic() + GRACE_S
    while alive(processes()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _end(program: subprocess.Popen) -> None:
    """End a program and all that it started: asked first, then killed."""
    started = family(program.pid)
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGTERM)
    _gone(lambda: session(program.pid))
    started |= family(program.pid)
    for process in alive(started):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    ended = _gone(lambda: started)
    program.wait(GRACE_S)
    assert ended, f"still running: {alive(started)}"


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A program in a session of its own; on leaving, nothing that it started is left."""
    with log.open("wb") as output:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )
    try:
        yield program
    finally:
        _end(program)
