"""Predictions against what others measured: the committed file, and a sample done again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from benchmarks import replay
from course_utils.memory import Setup


def rows() -> list[dict[str, str]]:
    """Of the committed file."""
    return replay.read(replay.RESULTS)


def errors(kind: str) -> list[float]:
    """Absolute errors on the T4, in percent."""
    name = f"{kind}_error_percent"
    own = [row for row in rows() if row["source"].startswith("fitcheck")]
    return [abs(float(row[name])) for row in own if row[name]]


def test_the_file_has_every_training_that_was_measured() -> None:
    """Once each, with the error that its figures give."""
    wanted = set()
    for name, (as_setup, _) in replay.SOURCES.items():
        for row in replay.rows_of(name):
            source = f"{name} {row['file']}" if "file" in row else name
            setup = as_setup(row)
            wanted.add((source, setup.name, replay.settings(setup)))
    assert {(row["source"], row["model"], row["settings"]) for row in rows()} == wanted
    assert len(rows()) == len(wanted)
    for row in rows():
        for kind in ("allocated", "reserved"):
            if row[f"{kind}_error_percent"]:
                ratio = float(row[f"predicted_{kind}_mb"]) / float(row[f"measured_{kind}_mb"])
                assert float(row[f"{kind}_error_percent"]) == pytest.approx(
                    100 * (ratio - 1), abs=0.03
                )


def test_how_near_the_predictions_are() -> None:
    """What docs/tools.md says of them."""
    assert max(errors("allocated")) < 0.25
    reserved = errors("reserved")
    assert sum(error <= 5 for error in reserved) / len(reserved) > 0.95
    assert max(reserved) < 6
    outcomes = [row for row in rows() if row["measured_outcome"]]
    assert len(outcomes) == 6
    assert all(row["predicted_outcome"] == row["measured_outcome"] for row in outcomes)


def test_sixteen_bits_are_met_to_the_segment() -> None:
    """Reserved memory too: sizes, order, rounding and the gaps that are left."""
    found = [
        float(row["reserved_error_percent"])
        for row in rows()
        if row["source"].startswith("fitcheck_t4 ")
        and json.loads(row["settings"])["quantization"] is None
    ]
    assert len(found) == 16
    assert max(map(abs, found)) <= 0.3
    assert sum(abs(error) <= 0.05 for error in found) == 15


def test_nf4_that_was_loaded_in_order_is_met_to_the_segment() -> None:
    """One of the two days: on the other, what is resident differs between equal loadings."""
    found = [
        float(row["reserved_error_percent"])
        for row in rows()
        if row["source"].endswith("t42026-09-01")
    ]
    assert len(found) == 10
    assert sum(error == 0 for error in found) == 7
    resident = {
        row["resident_mib"]
        for row in replay.rows_of("fitcheck_t4")
        if row["model"].startswith("TinyLlama") and row["weights"] == "nf4" and row["resident_mib"]
    }
    assert len(resident) == 6  # of six trainings, before whose first step all is the same


def test_a_sample_gives_the_same_figures(tmp_path: Path) -> None:
    """The smaller trainings of the file, predicted again by what is installed."""
    known = {(row["source"], row["model"], row["settings"]): row for row in rows()}
    path = tmp_path / "replay.csv"
    again = replay.replay(["fitcheck_t4"], path, limit=9)
    assert len(again) == 9
    for row in again:
        before = known[row["source"], row["model"], row["settings"]]
        assert row["predicted_allocated_mb"] == float(before["predicted_allocated_mb"])
        assert row["predicted_reserved_mb"] == float(before["predicted_reserved_mb"])
    # A second run finds its rows and does nothing.
    assert replay.replay(["fitcheck_t4"], path, limit=9) == []
    with path.open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 9


def test_a_file_that_a_kill_cut_is_mended(tmp_path: Path) -> None:
    """Half a line goes; a file of other columns gets today's."""
    path = tmp_path / "replay.csv"
    path.write_text("source,model,fitcheck_mb\na,b,1\nc,d")
    replay.mend(path)
    assert path.read_text().startswith(",".join(replay.COLUMNS) + "\n")
    assert [(row["source"], row["model"]) for row in replay.read(path)] == [("a", "b")]
    before = path.read_text()
    replay.mend(path)
    assert path.read_text() == before


def test_a_row_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is added by `add`, predicted on its GPU, and held against what loading does not touch."""
    from course_utils.errors import UnknownName

    setup = Setup("HuggingFaceTB/SmolLM2-135M", lora=True, quantization="nf4", seq_len=16)
    row = {"status": "ok", "setup": setup.to_dict()}
    row |= {"peak_allocated_mb": 200.0, "peak_reserved_mb": 300.0}
    with pytest.raises(UnknownName):
        replay.add(row, gpu="t5")
    with pytest.raises(ValueError, match="OOM"):
        replay.add(row | {"status": "OOM"}, gpu="rtx3090")
    (tmp_path / "measured").mkdir()
    shutil.copy(replay.HERE / "measured" / "estimates.csv", tmp_path / "measured")
    monkeypatch.setattr(replay, "HERE", tmp_path)
    replay.add(row, gpu="rtx3090")
    (found,) = replay.replay(["own"], tmp_path / "replay.csv")
    assert found["source"] == "own rtx3090"
    assert found["predicted_allocated_mb"] > 100
    assert found["allocated_error_percent"] == pytest.approx(
        100 * (found["predicted_allocated_mb"] / 200 - 1), abs=0.1
    )
    assert replay.replay(["own"], tmp_path / "replay.csv") == []


def test_adapters_on_an_l40s() -> None:
    """The lengths are those of one row; the others follow, but for what peft does beside a step."""
    found = [
        (json.loads(row["settings"])["peft"]["peft_type"], row)
        for row in rows()
        if row["source"] == "peft_metamathqa_l40s"
    ]
    assert len(found) == 27
    refused = {kind for kind, row in found if row["predicted_outcome"]}
    assert refused == {"BOFT", "VBLORA", "WAVEFT"}  # their code reads its own numbers
    far = {"TRAINABLE_TOKENS": 8, "C3A": 6}
    for kind, row in found:
        if kind not in refused:
            # AdaLoRA's scores of its ranks are made outside the step.
            most = 3 if kind == "ADALORA" else 0.25
            assert abs(float(row["allocated_error_percent"])) < most
            assert abs(float(row["reserved_error_percent"])) < far.get(kind, 2)


def test_other_estimators_are_beside_ours() -> None:
    """For each training on the T4, and in the summary."""
    on_t4 = [row for row in rows() if row["source"].startswith("fitcheck")]
    assert all(row["fitcheck_process_mb"] for row in on_t4)
    assert "beside it, canifinetune, reserved: mean" in replay.summary(rows())


def test_the_summary_counts() -> None:
    """By source."""
    said = replay.summary(rows())
    assert "fitcheck_t4 t42026-09-15, allocated: 32 rows" in said
    assert "6 outcomes, 0 of them predicted wrongly" in said


def test_todays_models_are_known_by_name() -> None:
    """Offline, by the architectures that the package brings; others are told how."""
    from course_utils.errors import UnknownName
    from course_utils.memory._setup import architectures

    assert len(architectures()) > 80
    assert Setup("Qwen/Qwen3-8B").config().num_hidden_layers == 36
    assert Setup("Qwen/Qwen2.5-1.5B-Instruct").config() is not None
    with pytest.raises(UnknownName, match=r"config\.json"):
        Setup("nobody/knows-this-8B")


def test_committed_rows_of_several_gpus() -> None:
    """All of `fms_a100.csv` once; what two GPUs need with all weights trained is met closely."""
    rows = replay.read(replay.RESULTS.with_name("replay_ranks.csv"))
    as_setup, _ = replay.BY_NAME["fms_a100"]
    wanted = {
        (row["file"], as_setup(row).name, replay.settings(as_setup(row)))
        for row in replay.rows_of("fms_a100")
    }
    found = [(row["source"].split()[1], row["model"], row["settings"]) for row in rows]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    settings = [json.loads(row["settings"]) for row in rows]
    whole = [
        abs(float(row["allocated_error_percent"]))
        for row, setup in zip(rows, settings, strict=True)
        if not setup["lora"]
    ]
    assert len(whole) == 8
    assert max(whole) < 0.1
