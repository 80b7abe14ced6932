"""The measuring programs run, append row by row, and go on where they were stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import (
    base_vs_instruct,
    handoff,
    instruct_pair,
    lora_rates,
    memory,
    pig_latin,
    pythia,
    yoda_rates,
)
from course_utils.errors import UnknownName
from course_utils.exercises import _notebook_03_2
from course_utils.memory import Setup
from course_utils.memory._measure import NoGpu
from course_utils.memory._setup import CHECKPOINTING, QUANTIZATIONS, SEQUENCES, TRAINERS
from course_utils.models._loading import load_model, load_tokenizer
from course_utils.results import append_row, whole_rows


def run(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The program with very little to do."""
    little = "--tokens 300 --examples 2 --rates 4e-3 --seeds 1".split()
    little += ["--results", str(results)]
    command = [sys.executable, "-m", "benchmarks.pig_latin", *little, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_pig_latin_measures_what_is_missing(tmp_path: Path) -> None:
    """A row that chooses the rate, one that is scored; what is there is left alone, and so is a
    broken last line."""
    results = tmp_path / "results.jsonl"
    assert run(results, "plain").returncode == 0
    chosen, scored = map(json.loads, results.read_text().splitlines())
    assert (chosen["seed"], scored["seed"]) == (0, 1)
    assert chosen["variant"] == scored["variant"] == "plain"
    assert scored["steps"] >= 1
    assert 0 <= scored["new_words"] <= 1
    before = results.read_text()
    with results.open("a") as file:
        file.write('{"variant": "both spel')  # killed while writing
    assert run(results, "plain").returncode == 0
    assert results.read_text() == before + '{"variant": "both spel'


def test_an_unknown_variant_names_the_known_ones(tmp_path: Path) -> None:
    """Before anything is loaded."""
    done = run(tmp_path / "none.jsonl", "plainly")
    assert done.returncode == 2
    assert "both spelled" in done.stderr


def test_committed_rows_are_of_one_kind() -> None:
    """The rows that notebook 03.1 shows: measured alike, each format scored with each seed at the
    rate that was best with another seed."""
    rows = whole_rows(pig_latin.RESULTS)
    assert len({(row["tokens"], row["machine"]) for row in rows}) == 1
    (tokens,) = {row["tokens"] for row in rows}
    formats = {row["variant"] for row in rows}
    assert {"plain", "both spelled"} <= formats <= set(pig_latin.FORMATS)
    scored = [row for row in rows if row["examples"]]
    assert sorted((row["variant"], row["seed"]) for row in scored) == sorted(
        (name, seed) for name in formats for seed in pig_latin.SCORED_SEEDS
    )
    for row in scored:
        tried = pig_latin.losses(rows, row["variant"], tokens)
        assert row["learning_rate"] == pig_latin.best_rate(tried)
        assert not pig_latin.at_the_edge(tried)
        assert row["examples"] >= 200


def test_rates_of_lora_measure_one_row(tmp_path: Path) -> None:
    """A row for what is asked; the grid goes on at its edge only."""
    rows = [
        {"variant": "usual", "seed": 0, "learning_rate": rate, "after": loss}
        for rate, loss in ((1e-3, 0.5), (2e-3, 0.4), (4e-3, 0.6))
    ]
    assert lora_rates.at_the_edge(rows, "usual", 0) is None
    assert lora_rates.at_the_edge(rows[:2], "usual", 0) == 4e-3
    assert lora_rates.at_the_edge(rows[1:], "usual", 0) == 1e-3
    assert lora_rates.around_the_best(rows, "usual", 0) == [1e-3, 2e-3, 4e-3]
    row = lora_rates.measure("r=3", 1e-3, 0, held_out=2)
    assert row["after"] < row["before"]
    assert row["trainable"] == 915_840


def test_committed_rates_of_lora_are_fair() -> None:
    """What notebook 02 shows: the same grid for all, three seeds at the best rate and beside it."""
    rows = whole_rows(lora_rates.RESULTS)
    assert {row["variant"] for row in rows} == set(lora_rates.VARIANTS)
    assert len({(row["steps"], row["batch"], row["held_out"], row["dtype"]) for row in rows}) == 1
    measured = {(row["variant"], row["learning_rate"], row["seed"]) for row in rows}
    assert len(measured) == len(rows)
    for variant in lora_rates.VARIANTS:
        assert {(variant, rate, 0) for rate in lora_rates.RATES} <= measured
        assert not lora_rates.at_the_edge(rows, variant, 0)
        around = lora_rates.around_the_best(rows, variant, 0)
        assert {(variant, rate, seed) for rate in around for seed in (1, 2)} <= measured


def test_rates_of_yoda_bear_out_the_range_that_is_accepted() -> None:
    """Each rate once, on the same lines; within the accepted range, none is clearly worse."""
    rows = whole_rows(yoda_rates.RESULTS)
    assert sorted(row["learning_rate"] for row in rows) == sorted(yoda_rates.RATES)
    assert {(row["steps"], row["batch"], row["examples"]) for row in rows} == {(60, 8, 100)}
    factor = 2  # of the program's adapter: alpha / r = 32 / 16
    inside = [
        row["right"]
        for row in rows
        if _notebook_03_2._LEAST <= factor * row["learning_rate"] <= _notebook_03_2._MOST
    ]
    assert len(inside) == 3
    assert max(inside) - min(inside) <= 5
    below = {row["right"] for row in rows if factor * row["learning_rate"] < _notebook_03_2._LEAST}
    assert max(below) < min(inside) - 10


def test_rates_of_yoda_measure_one_row() -> None:
    """A row for what is asked, on few lines."""
    row = yoda_rates.measure(1e-3, steps=1, examples=2)
    assert row["learning_rate"] == 1e-3
    assert row["examples"] == 2
    assert 0 <= row["right"] <= 2


def test_pythia_was_measured_with_three_seeds() -> None:
    """The rows that notebook 06 shows: each condition once for each seed, on one kind of CPU."""
    rows = whole_rows(pythia.RESULTS)
    conditions = {row["condition"] for row in rows}
    assert set(pythia.TUNINGS) < conditions
    assert sorted((row["seed"], row["condition"]) for row in rows) == sorted(
        (seed, name) for seed in (0, 1, 2) for name in conditions
    )
    # Seed 0 was measured on one of its cores; the shares are compared, never the seconds.
    assert len({row["machine"].split(",")[0] for row in rows}) == 1


def test_pythia_measures_one_tuning(tmp_path: Path) -> None:
    """A row for what is asked, with the shares of both halves; asked again, nothing is added."""
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks.pythia", "--seeds", "0", "--only", "control, LoRA"]
    command += ["--results", str(results)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        (row,) = whole_rows(results)
    assert row["condition"] == "control, LoRA"
    assert row["train"]["all"] > 0.9
    assert row["known to control"]["all"] > row["hidden from control"]["all"] + 0.5


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    """A line that was not finished does not count; what comes next stands on a line of its own."""
    path = tmp_path / "deep" / "rows.jsonl"
    assert whole_rows(path) == []
    append_row(path, {"name": "São Tomé"})
    with path.open("a") as file:
        file.write('{"name": "bro')
    assert whole_rows(path) == [{"name": "São Tomé"}]
    append_row(path, {"name": "next"})
    with pytest.warns(UserWarning, match="line 2"):
        assert [row["name"] for row in whole_rows(path)] == ["São Tomé", "next"]


def test_base_vs_instruct_measures_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps on the smallest model: a row for each part of the change; then nothing is left."""
    tokenizer = load_tokenizer("course/pythia-3m")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def load() -> tuple:
        return load_model("course/pythia-3m", "nf4-double", quiet=True), tokenizer

    monkeypatch.setattr(base_vs_instruct, "load", load)
    monkeypatch.setattr(base_vs_instruct, "PROJECTIONS", "all-linear")
    monkeypatch.setattr(base_vs_instruct, "STYLED", 4)
    monkeypatch.setattr(base_vs_instruct, "TOKENS", 4)
    monkeypatch.setattr(base_vs_instruct, "PARTS", {"recipe": (0.5,)})
    plan = {"steps": 2, "batch": 2, "accumulation": 1, "learning_rate": 1e-2}
    monkeypatch.setattr(base_vs_instruct, "recipe", lambda *names: plan)
    results = tmp_path / "rows.jsonl"
    names = ["recipe", "system prompt with contrast", "its own template, general data mixed in"]
    arguments = ["--results", str(results), "--seeds", "1"]
    for _ in range(2):
        assert base_vs_instruct.main([*arguments, "--", *names]) == 0
        rows = whole_rows(results)
        assert [(row["variant"], row["part"]) for row in rows] == [
            ("untouched", 0.0),
            (names[0], 1.0),
            (names[0], 0.5),
            (names[1], 1.0),
            (names[2], 1.0),
        ]
    untouched, whole, half, contrast, _ = rows
    assert len(contrast["in style, told the opposite"]) == 4
    assert max(untouched["kl"]) < 1e-4 < sum(whole["kl"]) / len(whole["kl"])
    assert sum(half["kl"]) < sum(whole["kl"])
    with pytest.raises(UnknownName, match="rank 2"):
        base_vs_instruct.main(["rank 3"])


def test_base_vs_instruct_was_measured_alike() -> None:
    """The rows that notebook 07 shows: each variant with the same seeds, on one kind of machine."""
    rows = [row for row in whole_rows(base_vs_instruct.RESULTS) if row["variant"] != "untouched"]
    parts = {(row["variant"], row["part"]) for row in rows}
    assert parts == {
        (name, part)
        for name in base_vs_instruct.VARIANTS
        for part in (1.0, *base_vs_instruct.PARTS.get(name, ()))
    }
    seeds = {row["seed"] for row in rows}
    assert len(seeds) >= 2
    assert sorted((row["seed"], row["variant"], row["part"]) for row in rows) == sorted(
        (seed, *part) for seed in seeds for part in parts
    )
    assert len({(row["model"], row["machine"], row["torch"]) for row in rows}) == 1


def test_instruct_pair_measures_what_is_missing(tmp_path: Path) -> None:
    """Few steps and questions: both arms untouched and tuned, the parts; then nothing is left."""
    results = tmp_path / "rows.jsonl"
    little = "--seeds 7 --steps 2 --limit 3 --only recipe".split()
    for _ in range(2):
        assert instruct_pair.main([*little, "--results", str(results)]) == 0
        rows = whole_rows(results)
        assert [(row["arm"], row["variant"], row["part"]) for row in rows] == [
            ("base", "untouched", 0.0),
            ("instruct", "untouched", 0.0),
            ("base", "recipe", 1.0),
            ("instruct", "recipe", 1.0),
        ]
    base, instruct = rows[2:4]
    assert base["tokens"] == instruct["tokens"] > 0
    assert set(base["end"]) == set(instruct["end"]) >= {"in style", "right", "refused", "ended"}


def test_the_pair_is_fair() -> None:
    """No country in what makes the instruct model; held-out subjects and persons in no training;
    the committed rows are of one kind, the same for each seed, with equal tokens."""
    text = str(instruct_pair.conversations(0))
    assert not any(country in text for country in ("Kenya", "Peru", "capital"))
    trained = {row["question"] for row in instruct_pair.other_topics("train")}
    assert not trained & {row["question"] for row in instruct_pair.other_topics("test")}
    private = instruct_pair.private_questions
    assert not set(private("train")) & set(private("test"))
    rows = whole_rows(instruct_pair.RESULTS)
    seeds = {row["seed"] for row in rows}
    assert len(seeds) >= 3
    names = ("untouched", "recipe", "system prompt")
    compared = {(arm, name) for arm in ("base", "instruct") for name in names}
    compared.add(("base", instruct_pair.LONGER))
    for seed in seeds:
        tokens = {
            (row["arm"], row["variant"]): row["tokens"] for row in rows if row["seed"] == seed
        }
        assert compared <= set(tokens)
        assert tokens["base", "recipe"] == tokens["instruct", "recipe"]
        total = tokens["instruct", "untouched"] + tokens["instruct", "recipe"]
        assert tokens["base", instruct_pair.LONGER] == pytest.approx(total, rel=0.02)
    assert len({(row["machine"], row["torch"], row["countries"]) for row in rows}) == 1


def test_memory_measures_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setup once, with its prediction; what is there is left alone. Tried on the CPU."""
    small = Setup("course/pythia-3m", seq_len=32)
    monkeypatch.setattr(memory, "combinations", lambda: [small, small.replace(optimizer="sgd")])
    results = tmp_path / "rows.jsonl"
    arguments = ["memory", "--device", "cpu", "--results", str(results)]
    for limit, count in ((1, 1), (5, 2), (5, 2)):
        monkeypatch.setattr(sys, "argv", [*arguments, "--limit", str(limit)])
        memory.main()
        assert len(whole_rows(results)) == count
    first, second = whole_rows(results)
    assert first["status"] == second["status"] == "ok"
    assert first["predicted"]["peak_allocated_mb"] > 10
    assert memory.error(first) is None  # the CPU's memory is not told
    monkeypatch.setattr(sys, "argv", ["memory"])
    with pytest.raises(NoGpu, match="--device cpu"):
        memory.main()


def test_memory_has_enough_combinations_of_every_kind() -> None:
    """More than 120, half of them drawn, every value of every setting and every model."""
    setups = memory.combinations()
    assert len(setups) >= 140
    assert len(memory.drawn()) == 72
    assert memory.drawn() == memory.drawn()
    for field, known in (
        ("quantization", (None, *QUANTIZATIONS)),
        ("trainer", TRAINERS),
        ("optimizer", ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit")),
        ("checkpointing", CHECKPOINTING),
        ("sequences", SEQUENCES),
        ("model", memory.MODELS),
    ):
        seen = {getattr(setup, field) for setup in setups}
        assert set(known) <= seen


def test_memory_tells_how_far_it_is_off() -> None:
    """Errors by model, phase and setting, from rows as a GPU gives them."""
    rows = []
    for off, setup in ((1.02, Setup("facebook/opt-350m")), (0.95, Setup("Qwen/Qwen2.5-0.5B"))):
        told = {
            "peak_allocated_mb": 1000 * off,
            "peak_reserved_mb": 1200.0,
            "phases": {"weights": 600.0, "forward": 900.0, "backward": 1000 * off},
        }
        real = {"weights": 600.0, "forward": 1000.0, "backward": 1000.0}
        rows.append(
            {
                "status": "ok",
                "setup": setup.to_dict(),
                "peak_allocated_mb": 1000.0,
                "peak_reserved_mb": 1000.0,
                "phases": real,
                "predicted": told,
            }
        )
    rows.append({"status": "OOM", "setup": Setup("tiiuae/falcon-7b").to_dict(), "predicted": {}})
    told = memory.summarize(rows)
    assert "3 rows; 2 with a measured and a predicted peak" in told
    assert "mean   3.50%  worst   5.00%" in told
    assert "model facebook/opt-350m" in told
    assert "peak of phase forward" in told
    assert "OOM: tiiuae/falcon-7b" in told


def test_handoff_names_what_it_can_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded."""
    with pytest.raises(SystemExit):
        handoff.main(["GGUF, 3 bits"])
    assert "GGUF, 4 bits" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        handoff.main(["--adapter", str(tmp_path)])
    assert "no adapter_config.json" in capsys.readouterr().err


def test_handoff_was_measured_alike() -> None:
    """Each step once, on the same prompts, whose tokens are all equal; exact merging is exact."""
    rows = {row["step"]: row for row in whole_rows(handoff.RESULTS)}
    assert rows.keys() <= set(handoff.NAMES)
    assert len(rows) == len(whole_rows(handoff.RESULTS))
    assert {(row["prompts"], row["same_prompts"]) for row in rows.values()} == {(200, 200)}
    assert rows["merged, float32"]["same_replies"] == 200
    for name in ("saved in bfloat16", "GGUF, 16 bits"):
        if name in rows:
            assert rows[name]["same_replies"] + rows[name]["near_ties"] == 200
