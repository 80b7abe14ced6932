"""The doctor: finds what is missing, says how to get it, and its exit status is the verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_stand_in import HubStandIn, Repository
from packaging.requirements import Requirement

from course_utils import doctor
from course_utils.__main__ import main
from course_utils.hardware import Hardware
from course_utils.models._catalog import catalog

LLAMA = "meta-llama/Llama-3.1-8B"


def test_it_runs_here(chat_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """On a machine that is set up the status is 0, and the report holds what it promises."""
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    for word in ("Python", "RAM", "disk", "GPU", "tier", "dtype", "attention", "transformers"):
        assert word in report
    assert "out of reach" in report
    assert report.strip().endswith("The course can run here.")


def test_json(chat_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """The same for programs."""
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"part", "item", "value", "status", "fix"} == set(rows[0])


def test_a_machine_too_small_cannot_run(chat_folder: Path) -> None:
    """2 GB of RAM and a full disk: both are named, with what is needed."""
    findings = doctor.examine(Hardware(ram_gb=2.0, ram_free_gb=1.0, disk_free_gb=0.5))
    assert not doctor.can_run(findings)
    missing = {f.item: f.fix for f in findings if f.status == doctor.MISSING}
    assert set(missing) == {"RAM", "disk"}
    assert "HF_HOME" in missing["disk"]
    assert "cannot run here yet: RAM, disk" in doctor.report(findings)


def test_packages() -> None:
    """Missing and outdated packages are told apart, each with the command that mends it."""
    found = doctor._packages(
        [Requirement("no-such-package-here>=1"), Requirement("torch<1"), Requirement("pandas>=1")]
    )
    assert [f.status for f in found] == [doctor.MISSING, doctor.MISSING, doctor.OK]
    assert found[0].fix == found[1].fix == doctor.mend()
    assert "not <1" in found[1].value


def test_without_its_packages_the_report_still_comes(tmp_path: Path) -> None:
    """With torch and psutil out of sight, the doctor says so and leaves with status 1."""
    blocker = (
        "import sys, importlib.metadata as m\n"
        "old = m.version\n"
        "def version(name):\n"
        "    if name in ('torch', 'psutil'): raise m.PackageNotFoundError(name)\n"
        "    return old(name)\n"
        "m.version = version\n"
        "sys.modules['torch'] = sys.modules['psutil'] = None\n"
        "from course_utils.__main__ import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", blocker], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "cannot run here yet: psutil, torch" in done.stdout


def test_an_embedded_model_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the set-up has fetched it, the doctor names the command."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    findings = doctor.examine()
    assert not doctor.can_run(findings)
    assert any("prepare" in f.fix for f in findings if f.status == doctor.MISSING)


def test_gated_licences(
    hub_server: HubStandIn,
    tiny_folder: Path,
    chat_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Accepted and not accepted licences are told apart; the token is never printed."""
    token = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    hub_server.accepted_tokens.add(token)
    hub_server.repositories[LLAMA] = Repository(tiny_folder, gated=True)
    other = "meta-llama/Llama-2-7b-hf"
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert "reachable; a token is set" in report
    assert token not in report
    status = {f.item: f for f in doctor._hub()}
    assert status[LLAMA].value == "licence accepted"
    assert status[other].status == doctor.NOTE
    assert f"https://huggingface.co/{other}" in status[other].fix
    gated = {m.id for m in catalog().models.values() if m.gated}
    assert gated <= set(status)


def test_a_learners_mistake_is_one_line(capsys: pytest.CaptureFixture) -> None:
    """An unknown command names the known ones; no traceback."""
    with pytest.raises(SystemExit):
        main(["docter"])
    assert "doctor" in capsys.readouterr().err
    assert main(["catalog"]) == 0
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in capsys.readouterr().out
