"""Processes that are killed at moments nobody chose. Used by `tests/faults`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
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


_FORKS = """
import json, os, select, signal, sys, time, traceback
exec(sys.argv[1])
print("imported", flush=True)
for line in sys.stdin:
    seconds, given = json.loads(line)
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        os.dup2(sink, 1)
        os.close(sink)
        sys.argv[1:] = given
        try:
            exec(BODY)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    os.close(sink)
    told, ended, end = b"", False, None
    while not ended:
        if end is None and b"ready\\n" in told:
            end = time.monotonic() + seconds
        wait = None if end is None else end - time.monotonic()
        if wait is not None and wait <= 0:
            break
        if select.select([source], [], [], wait)[0]:
            part = os.read(source, 65536)
            told, ended = told + part, not part
    if not ended:
        os.kill(child, signal.SIGKILL)
        while part := os.read(source, 65536):
            told += part
    os.close(source)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([status, told.decode()]), flush=True)
"""


class Forks:
    """A program whose imports are done once, and whose body is then run and killed many times.

    Args:
        imports: code that is run once, and starts no thread.
        body: code that is run in a fork each time; it prints "ready" when the clock is to start.
        env: as for `subprocess`.
    """

    def __init__(self, imports: str, body: str, env: dict[str, str] | None = None):
        program = _FORKS.replace("exec(BODY)", f"exec({body!r})")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, imports],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )

    def __enter__(self) -> Forks:
        line = self.process.stdout.readline()
        while line and line != "imported\n":
            line = self.process.stdout.readline()
        return self

    def __exit__(self, *reason: object) -> None:
        kill_group(self.process)
        self.process.stdin.close()
        self.process.stdout.close()

    def killed(self, seconds: float, *arguments: object) -> tuple[bool, str]:
        """Run the body with `sys.argv[1:]`, and kill it so many seconds after it was ready.

        Returns:
            Whether it was killed before its own end, and what it had printed.

        Raises:
            AssertionError: it ended by itself, and not well.
        """
        self.process.stdin.write(json.dumps([seconds, [str(part) for part in arguments]]) + "\n")
        self.process.stdin.flush()
        status, told = json.loads(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL), told
        return status == signal.SIGKILL, told

    def finished(self, *arguments: object) -> str:
        """Run the body to its end; what it has printed."""
        killed, told = self.killed(3600, *arguments)
        assert not killed
        return told
