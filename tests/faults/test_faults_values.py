"""Bad values: every public function's arguments, and every option of the command line.

`bad_values.CASES` says what each argument may be. What it may not be has to be refused by an error
that names it; nothing hangs, nothing takes memory, nothing is accepted in silence. Each argument is
an item here. The trying is done in processes of their own, a few for all.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import bad_values
import pytest
from bad_values import CASES, COMMANDS
from conftest import ROOT

# Arguments that are still taken wrongly: "function argument" and the reason. To be emptied.
KNOWN_OPEN: dict[str, str] = {}

ARGUMENTS = [
    f"{name} {parameter}"
    for name, case in CASES.items()
    for parameter in case.arguments
    if parameter != "self"
]
OPTIONS = [
    f"{command} {option}" for command, (_, options) in COMMANDS.items() for option in options
]


def environment(folder: Path) -> dict[str, str]:
    """Of a process that tries: nothing of this machine's user is within its reach."""
    return {
        **os.environ,
        "COURSE_CACHE": str(folder / "cache"),
        "COURSE_PROGRESS": str(folder / "progress.json"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_CACHE": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@functools.cache
def troubles(group: str) -> tuple[dict[str, list[str]], set[str]]:
    """What was not refused as it should be, by argument; and which arguments were come to."""
    found: dict[str, list[str]] = {}
    begun: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bad-values-") as made:
        folder = Path(made)
        command = [sys.executable, str(ROOT / "tests" / "bad_values.py"), group]
        with (
            (folder / "said").open("w+") as said,
            (folder / "errors").open("w") as errors,
        ):
            process = subprocess.Popen(
                command, cwd=folder, env=environment(folder), stdout=said, stderr=errors
            )
            try:
                status = str(process.wait(timeout=1500))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = "a hang"
            said.seek(0)
            for line in said:
                told = json.loads(line)
                if "begins" in told:
                    begun.append(told["begins"])
                else:
                    found.setdefault(told["key"], []).append(f"{told['value']}: {told['trouble']}")
        if status != "0":
            tail = (folder / "errors").read_text(errors="replace")[-800:]
            found.setdefault(begun[-1] if begun else group, []).append(
                f"ended with {status}: {tail}"
            )
    return found, set(begun)


def check(group: str, key: str) -> None:
    found, begun = troubles(group)
    assert key in begun, f"not come to: {found}"
    wrong = found.get(key, []) + found.get(key.split(" ")[0], [])
    assert not wrong, "\n".join([f"{key}, {len(wrong)} values:", *wrong[:12]])


@pytest.mark.parametrize("key", [key for key in ARGUMENTS if key not in KNOWN_OPEN])
def test_an_argument(key: str) -> None:
    """What does not fit is refused by name; what fits is taken or refused by name."""
    check(bad_values.group_of(key), key)


@pytest.mark.parametrize("key", [key for key in OPTIONS if key not in KNOWN_OPEN])
def test_an_option(key: str) -> None:
    """A line on stderr that names it, and status 1 or 2; no traceback."""
    check("commands", key)


def test_what_is_known_to_be_open_is_open() -> None:
    """What has been mended leaves the list."""
    for key in KNOWN_OPEN:
        assert key in {*ARGUMENTS, *OPTIONS}
        with pytest.raises(AssertionError, match="values:"):
            check(bad_values.group_of(key) if key in ARGUMENTS else "commands", key)


def test_every_public_function_is_tried() -> None:
    """Each has a case with all its arguments, or a reason why it has none."""
    for name, function in bad_values.public():
        wanted = bad_values.parameters(function)
        if name in CASES:
            missing = wanted - set(CASES[name].arguments)
            assert not missing, f"{name}: {missing} have no good value"
        elif wanted:
            assert bad_values.why_without(name), f"{name} has neither a case nor a reason"
    there = {name for name, _ in bad_values.public()}
    assert set(CASES) <= there, f"gone: {set(CASES) - there}"


def test_every_option_is_tried() -> None:
    """Whatever takes a value on the command line has bad values in `COMMANDS`."""
    from argparse import REMAINDER, _SubParsersAction

    from course_utils.__main__ import parser

    def options(current, name: str = "") -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        here = set()
        for action in current._actions:
            if isinstance(action, _SubParsersAction):
                for word, inner in action.choices.items():
                    found |= options(inner, f"{name} {word}".strip())
            elif action.nargs not in (0, REMAINDER):  # a script's own arguments are anything
                here.add(action.option_strings[-1] if action.option_strings else action.dest)
        return found or {name: here}

    assert options(parser(["memory"])) == {name: set(bad) for name, (_, bad) in COMMANDS.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["memory", "fit", "--model=course/pythia-3m", "--gpu=t4", "--lengths", "0"],
        ["memory", "measure", "--model=course/pythia-3m", "--seq-len=8", "--timeout=nan"],
        ["memory", "grid", "opt-350m-8bit", "--out=."],
        ["memory", "predict", "--model=nope"],
    ],
    ids=lambda arguments: " ".join(arguments[1:2] + arguments[-1:]),
)
def test_the_shell_gets_one_line(arguments: list[str], tmp_path: Path) -> None:
    """As a user types it: status 1, a line on stderr, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", *arguments],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
