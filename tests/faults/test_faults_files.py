"""Results, votes and progress: nothing is lost, whatever file is named and whoever else writes."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from course_utils._core.files import new_folder, replace_file, user_path
from course_utils.errors import CannotWrite, NotRows
from course_utils.exercises import _progress as progress
from course_utils.exercises import show_progress
from course_utils.results import append_row, whole_rows
from course_utils.scoring import Votes

ROW = {"name": "São Tomé", "n": 1}
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x10" + bytes(range(256)) * 4
NO_ROWS = {
    "a text": b"Dear diary,\ntoday I trained a model.\n",
    "a picture": PNG,
    "a text without line break": b"Dear diary",
    "Latin-1": "Größe\nä\n".encode("latin-1"),
    "UTF-16": '{"name": 1}\n'.encode("utf-16"),
    "a notebook": json.dumps({"cells": [], "metadata": {}}, indent=1).encode(),
    "a list": b"[1, 2, 3]\n",
    "CSV": b"name,n\nx,1\n",
    "zeros": bytes(5000),
    "deep": b"[" * 100_000,
}
GOOD = (json.dumps(ROW, ensure_ascii=False) + "\n").encode()
DAMAGED = {
    "no line break at the end": (GOOD + GOOD[:-1], 2),
    "a half row at the end": (GOOD + GOOD[:-5], 1),
    "a row in Latin-1": (GOOD + '{"name": "Größe"}\n'.encode("latin-1") + GOOD, 2),
    "a row that is nested too deeply": (GOOD + b"[" * 100_000 + b"\n" + GOOD, 2),
    "an object that is nested too deeply": (GOOD + b'{"a":' * 100_000 + b"\n" + GOOD, 2),
    "NUL bytes of a crash": (GOOD + bytes(4096) + b"\n" + GOOD, 2),
    "a list among rows": (GOOD + b"[1, 2]\n" + GOOD, 2),
    "a merge conflict": (b"<<<<<<< HEAD\n" + GOOD + b"=======\n" + GOOD + b">>>>>>> x\n", 2),
    "Windows' line ends": (GOOD.replace(b"\n", b"\r\n") * 2, 2),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD * 2, 2),
    "empty lines": (b"\n\n" + GOOD + b"\n" + GOOD + b"\n\n", 2),
}


def quietly(path: Path) -> list[dict]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return whole_rows(path)


@pytest.mark.parametrize("kind", NO_ROWS)
def test_what_holds_no_rows_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    """Named by mistake, read and written to: told, and not changed by a byte."""
    path = tmp_path / "diary"
    path.write_bytes(NO_ROWS[kind])
    for attempt in (lambda: whole_rows(path), lambda: append_row(path, ROW)):
        with pytest.raises(NotRows, match="diary"):
            attempt()
    with pytest.raises(NotRows, match="diary"):
        Votes(path).add("Who?", "a", "b", "left")
    assert path.read_bytes() == NO_ROWS[kind]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_read_without_being_changed(tmp_path: Path, kind: str) -> None:
    """Good rows are used, also a last one without line break; and writing goes on behind them."""
    content, rows = DAMAGED[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert quietly(path) == [ROW] * rows
    assert path.read_bytes() == content
    append_row(path, {"name": "next"})
    assert path.read_bytes().startswith(content)
    assert quietly(path) == [*[ROW] * rows, {"name": "next"}]


def test_a_bad_row_is_reported_by_its_line(tmp_path: Path) -> None:
    """Which line of which file, and that it was left there."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"nonsense\n" + GOOD)
    with pytest.warns(UserWarning, match=r"rows\.jsonl: 1 of 3 .*line 2"):
        whole_rows(path)


def test_one_strange_row_costs_no_vote(tmp_path: Path) -> None:
    """A row that is no vote among votes: reported, left there, the others stand."""
    votes = Votes(tmp_path / "votes.jsonl")
    votes.add("Who?", "a", "b", "left")
    append_row(votes.path, {"question": "When?", "winner": "lefft"})
    votes_before = votes.path.read_bytes()
    with pytest.warns(UserWarning, match="Line 2"):
        assert len(votes) == 1
    assert votes.path.read_bytes() == votes_before


def special(kind: str, folder: Path) -> Path:
    """Something that is no regular file."""
    path = folder / "special"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "a device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            return Path("/dev/null")
    elif kind == "a link to a device":
        path.symlink_to("/dev/null")
    elif kind == "a link in a circle":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["a folder", "a pipe", "a socket", "a device", "a link to a device", "a link in a circle"],
)
@pytest.mark.parametrize("use", ["replace", "append", "read", "progress", "reset", "votes"])
def test_what_is_no_regular_file_stays(
    tmp_path: Path, kind: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device, a folder, a socket, a pipe: refused in words, and there as before."""
    path = special(kind, tmp_path)
    before = path.lstat().st_mode, path.lstat().st_ino
    monkeypatch.setenv(progress.VARIABLE, str(path))
    uses = {
        "replace": lambda: replace_file(path, "x"),
        "append": lambda: append_row(path, ROW),
        "read": lambda: whole_rows(path),
        "votes": lambda: Votes(path).add("Who?", "a", "b", "left"),
        "progress": lambda: progress.add(["01.1"]),
        "reset": progress.reset,
    }
    if use == "progress":  # an exercise is solved all the same
        uses[use]()
    else:
        with pytest.raises(CannotWrite, match=str(tmp_path.name) + "|/dev/null"):
            uses[use]()
    assert (path.lstat().st_mode, path.lstat().st_ino) == before


@pytest.mark.parametrize("use", ["replace", "append", "progress"])
def test_a_link_stays_a_link(tmp_path: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a file that lies on a mounted drive: what the link leads to is written."""
    (tmp_path / "drive").mkdir()
    real, link = tmp_path / "drive" / "real", tmp_path / "link"
    link.symlink_to(real)
    monkeypatch.setenv(progress.VARIABLE, str(link))
    for _ in range(2):
        {
            "replace": lambda: replace_file(link, "text"),
            "append": lambda: append_row(link, ROW),
            "progress": lambda: progress.add(["01.1"]),
        }[use]()
    assert link.is_symlink()
    assert real.is_file()
    assert real.stat().st_size


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"done": 3}', bytes(100), b"[" * 100_000, "Größe".encode("latin-1"), PNG],
)
def test_damaged_progress_is_kept_aside(
    tmp_path: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Reading leaves it alone; the next answer puts it aside and says where."""
    file = tmp_path / "progress.json"
    file.write_bytes(content)
    monkeypatch.setenv(progress.VARIABLE, str(file))
    assert progress.read() == {}
    show_progress()
    assert file.read_bytes() == content
    assert "cannot be read" in capsys.readouterr().out
    progress.add(["01.1"])
    assert "progress.json.damaged-1" in capsys.readouterr().out
    assert (tmp_path / "progress.json.damaged-1").read_bytes() == content
    assert list(progress.read()) == ["01.1"]
    file.write_bytes(content)
    progress.reset()
    assert (tmp_path / "progress.json.damaged-2").read_bytes() == content


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
from course_utils import errors, results
from course_utils._core import files
path = Path(sys.argv[2])
try:
    if sys.argv[1] == "append":
        results.append_row(path, {"name": "x" * 4000})
    elif sys.argv[1] == "replace":
        files.replace_file(path, "x" * 8000)
    else:
        with files.new_folder(path) as scratch, files.saying_why("A model", path):
            (scratch / "new").mkdir()
            (scratch / "new" / "model").write_bytes(bytes(8000))
except errors.NotEnoughDisk as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.parametrize("use", ["append", "replace", "folder"])
def test_a_full_disk_costs_nothing(tmp_path: Path, use: str) -> None:
    """The write is refused in the middle: the error says so, what was there is there, no scraps."""
    path = tmp_path / "thing"
    if use == "folder":
        path.mkdir()
        (path / "model").write_bytes(b"old")
    else:
        path.write_text(json.dumps({"name": "y" * 3000}) + "\n")
    before = path.read_bytes() if path.is_file() else (path / "model").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, use, str(path)], capture_output=True, text=True
    )
    assert "refused" in done.stderr
    assert "full" in done.stderr
    assert "thing" in done.stderr
    assert (path.read_bytes() if path.is_file() else (path / "model").read_bytes()) == before
    assert {p.name for p in tmp_path.iterdir()} <= {"thing", ".thing.lock"}


def test_a_full_disk_for_real() -> None:
    """`/dev/full` is not replaced, and what it says is told."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(CannotWrite, match="device"):
        replace_file(Path("/dev/full"), "x")


READ_ONLY = """
import os, sys
from pathlib import Path
os.setuid(65534)
from course_utils.results import append_row, whole_rows
from course_utils.errors import CannotWrite
path = Path(sys.argv[1])
assert len(whole_rows(path)) == 1
try:
    append_row(path, {"name": 2})
except CannotWrite as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to leave it"
)
def test_a_file_of_somebody_else_can_be_read(tmp_path: Path) -> None:
    """Reading needs no right to write; writing is refused in words."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + GOOD[:-9])
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True
    )
    if "ModuleNotFoundError" in done.stderr or "Permission denied: '/" in done.stderr:
        pytest.skip("another user cannot read the course here")
    assert "refused" in done.stderr, done.stderr
    assert path.read_bytes() == GOOD + GOOD[:-9]


@pytest.mark.parametrize("bad", [[1], "text", None, {1, 2}, {"a": object()}])
def test_what_json_cannot_hold_changes_nothing(tmp_path: Path, bad: object) -> None:
    """The row is refused before anything is written."""
    path = tmp_path / "rows.jsonl"
    append_row(path, ROW)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        append_row(path, bad)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["\ud800", "a\u2028b\x85c\nd", "\x00", "🜁" * 1000])
def test_any_text_comes_back(tmp_path: Path, text: str) -> None:
    """Half a surrogate pair, as a cut reply has it, too."""
    path = tmp_path / "rows.jsonl"
    for _ in range(2):
        append_row(path, {"reply": text})
    assert whole_rows(path) == [{"reply": text}] * 2


WRITER = """
import sys, time
from pathlib import Path
from course_utils.results import append_row
path, who, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
end, number = time.monotonic() + seconds, 0
while time.monotonic() < end:
    append_row(path, {"who": who, "number": number, "text": "x" * (number * 37 % 3000)})
    number += 1
print(number)
"""
READER = """
import sys, time, warnings
from pathlib import Path
from course_utils.results import whole_rows
warnings.simplefilter("error")
path, seconds = Path(sys.argv[1]), float(sys.argv[2])
end, most, reads = time.monotonic() + seconds, 0, 0
while time.monotonic() < end:
    rows = whole_rows(path)
    assert len(rows) >= most, (len(rows), most)
    most, reads = len(rows), reads + 1
print(reads)
"""


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_reader_beside_two_writers(tmp_path: Path, seconds: int) -> None:
    """No row is lost, none is torn, and the reader never sees fewer than before."""
    path = tmp_path / "rows.jsonl"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), who, str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in "ab"
    ]
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    written = [int(writer.communicate()[0]) for writer in writers]
    assert int(reader.communicate()[0]) > 0
    assert reader.returncode == 0
    rows = whole_rows(path)
    for who, count in zip("ab", written, strict=True):
        assert [row["number"] for row in rows if row["who"] == who] == list(range(count))
    assert len(rows) == sum(written) > 10


VOTER = """
import sys
from course_utils.scoring import Votes
votes, counted = Votes(sys.argv[1]), 0
for number in range(25):
    try:
        votes.add(f"Question {number}?", "a", "b", "left")
        counted += 1
    except ValueError:
        pass
print(counted)
"""


def test_two_labs_count_a_vote_once(tmp_path: Path) -> None:
    """The same voter in two windows: each pair has one vote, whoever was first."""
    path = tmp_path / "votes.jsonl"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", VOTER, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert sum(int(voter.communicate()[0]) for voter in both) == 25
    assert len(Votes(path)) == 25
    assert len(whole_rows(path)) == 25


def test_a_writer_that_hangs_is_named(tmp_path: Path) -> None:
    """Another program keeps the lock: progress is not kept, and nobody waits for ever."""
    file = tmp_path / "progress.json"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from course_utils._core.files import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)",
            str(file),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from course_utils.exercises._progress import add; add(['01.1'])",
            ],
            env={**os.environ, progress.VARIABLE: str(file)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Another program" in done.stdout
    finally:
        holder.kill()
        holder.wait()
    # A killed program's lock is free.
    start = time.monotonic()
    append_row(file.with_name("rows.jsonl"), ROW)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("moment", ["before the first rename", "between the renames", "after"])
def test_a_folder_survives_a_kill_at_each_rename(tmp_path: Path, moment: str) -> None:
    """What a kill leaves at each moment is set right by the next look."""
    from course_utils._core.files import recover_folder

    target, old = tmp_path / "adapter", tmp_path / "adapter.old"
    scratch = tmp_path / "adapter.partial-killed"
    (scratch / "new").mkdir(parents=True)
    (old if moment == "between the renames" else target).mkdir()
    (old if moment == "between the renames" else target).joinpath("weights").write_text("old")
    if moment == "after":
        old.mkdir()
        (target / "weights").write_text("new")
    recover_folder(target)
    assert (target / "weights").read_text() == ("new" if moment == "after" else "old")
    with new_folder(target) as fresh:
        (fresh / "new").mkdir()
        (fresh / "new" / "weights").write_text("newest")
    assert (target / "weights").read_text() == "newest"
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", ".adapter.lock"}


def test_a_failure_in_the_middle_leaves_a_folder_as_it_was(tmp_path: Path) -> None:
    """Whatever goes wrong while the new one is made."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(FileNotFoundError), new_folder(target) as scratch:  # noqa: PT012
        (scratch / "new").mkdir()
        (scratch / "not there").rename(target)
    assert (target / "weights").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.lock"}


def test_new_folders_can_be_read_by_others(tmp_path: Path) -> None:
    """safetensors writes files for their owner only; the user's umask decides."""
    with new_folder(tmp_path / "model") as scratch:
        (scratch / "new").mkdir()
        (scratch / "new" / "weights").write_text("x")
        (scratch / "new" / "weights").chmod(0o600)
        (scratch / "new" / "plain").write_text("x")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes["weights"] == modes["plain"] & 0o666


@pytest.mark.parametrize("home", ["", None])
def test_no_home(home: str | None) -> None:
    """`~` with no home known: an error names both; without `~` all goes on."""
    program = (
        "import os, pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "from course_utils.exercises import _progress as progress\n"
        "from course_utils._core.cache import cache_dir\n"
        "from course_utils.errors import CannotWrite\n"
        "for ask in (cache_dir, progress.path):\n"
        "    try: print('place', ask())\n"
        "    except CannotWrite as error: print('refused', error)\n"
    )
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HOME", "COURSE_CACHE", progress.VARIABLE) and not key.startswith("XDG")
    }
    if home is not None:
        environment["HOME"] = home
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert line.startswith("refused"), line
        assert "HOME" in line


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `COURSE_CACHE` and `COURSE_PROGRESS`, as people write them into a settings file."""
    from course_utils._core.cache import cache_dir

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COURSE_CACHE", "~/my cache")
    monkeypatch.setenv(progress.VARIABLE, "~/done.json")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "my cache"
    progress.add(["01.1"])
    assert (tmp_path / "done.json").is_file()
    assert not (tmp_path / "~").exists()
    assert user_path("here").is_absolute()


@pytest.mark.parametrize("kind", ["a file", "below a file", "a dangling link", "read-only"])
@pytest.mark.parametrize("command", ["prepare", "adapter"])
def test_a_cache_that_cannot_be(
    tmp_path: Path, kind: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in its place, a dangling link, a disk that is read-only: said in words."""
    place = tmp_path / "cache"
    if kind == "a file":
        place.write_text("mine")
    elif kind == "below a file":
        place.write_text("mine")
        place = place / "deeper"
    elif kind == "a dangling link":
        place.symlink_to(tmp_path / "nowhere" / "at all")
        (tmp_path / "nowhere").write_text("a file")
    else:
        place = Path("/proc/course")  # root may write anywhere else
        if not Path("/proc").is_dir():
            pytest.skip("needs /proc")
    program = (
        "import sys\n"
        "from course_utils.__main__ import main\n"
        "from course_utils._core.files import new_folder\n"
        "from course_utils._core.cache import cache_dir\n"
        "from course_utils.errors import CourseError\n"
        "if sys.argv[1] == 'prepare': sys.exit(main(['prepare']))\n"
        "try:\n"
        "    with new_folder(cache_dir() / 'adapters' / 'x'): pass\n"
        "except CourseError as error: sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command],
        env={**os.environ, "COURSE_CACHE": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "CannotWrite" in done.stderr
    assert str(tmp_path if kind == "a dangling link" else place) in done.stderr
    if kind in ("a file", "below a file"):
        assert (tmp_path / "cache").read_text() == "mine"
