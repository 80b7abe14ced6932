"""Notebooks: what a reader opens is what the sources say, run once, clean; and Colab's cell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from tools import notebooks, settings

SOURCES = notebooks.sources()
NAMES = [source.stem for source in SOURCES]
each_source = pytest.mark.parametrize("source", SOURCES, ids=NAMES)
# The first one is plain: it does without the course's package, and so without its exercises.
FIRST = SOURCES[0]
each_lesson = pytest.mark.parametrize("source", SOURCES[1:], ids=NAMES[1:])


def read(source: Path) -> nbformat.NotebookNode:
    """The committed notebook of a source."""
    return nbformat.read(notebooks.target(source), as_version=4)


@each_source
def test_notebook_is_what_its_source_says(source: Path) -> None:
    """Script and notebook are held together; mend with `make notebooks`."""
    assert not notebooks.stale(source)


def test_every_notebook_has_a_source() -> None:
    """No orphan is left when a source is renamed."""
    assert sorted(path.stem for path in notebooks.NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)


def test_a_changed_source_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word in a cell makes a notebook stale; building it anew keeps the other outputs."""
    monkeypatch.setattr(notebooks.settings, "repository", lambda: "")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    source = tmp_path / "99_trial.py"
    text = "# %% [markdown]\n# # Trial\n\n# %%\n1 + 1\n\n# %%\n2 + 2\n"
    source.write_text(text)
    notebooks.save(source)
    assert not notebooks.stale(source)
    source.write_text(text.replace("2 + 2", "2 + 3"))
    assert notebooks.stale(source)
    notebooks.rebuild(source)
    assert not notebooks.stale(source)
    outputs = [cell.outputs for cell in read(source).cells if cell.cell_type == "code"]
    assert outputs[0][0]["data"]["text/plain"] == "2"
    assert outputs[1] == []


def test_an_exercise_is_saved_with_solved_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tagged as an exercise, it is run with its solutions; what is written has none of them."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    source = tmp_path / "99_trial.py"
    exercise = "### BEGIN SOLUTION\nx = 42\n### END SOLUTION"
    for tag, said in ((' tags=["exercise-notebook"]', "42\n"), ("", "0\n")):
        text = f"# %% [markdown]{tag}\n# # Trial\n\n# %%\nx = 0\n{exercise}\n\n# %%\nprint(x)\n"
        source.write_text(text)
        notebooks.save(source)
        assert not notebooks.stale(source)
        *_, cut, shown = read(source).cells
        assert cut.source == "x = 0\n...  # your code here"
        assert shown.outputs[0].text == said


def test_a_saved_notebook_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minutes and memory of the kernel and of what it starts; kept when the text is built anew."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "COURSE", tmp_path / "course")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "RUNS", tmp_path / "runs.jsonl")
    source = tmp_path / "99_trial.py"
    hold = "import time; held = bytearray(200_000_000); time.sleep(1)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}])"
    source.write_text(f"# %% [markdown]\n# # Trial\n\n# %%\n{code}\n")
    notebooks.save(source)
    course = read(source).metadata["course"]
    assert 0.01 < course["minutes"] < 1
    assert 200 < course["peak_ram_mb"] < 2000
    assert course["tier"] == "cpu"
    assert course["cores"] >= 1
    assert not {"/", "\\"} & set(course["machine"])
    source.write_text(source.read_text() + "\n# %%\n1 + 1\n")
    notebooks.rebuild(source)
    assert read(source).metadata["course"] == course
    assert notebooks.run([source], record=True) == 0
    (row,) = [json.loads(line) for line in notebooks.RUNS.read_text().splitlines()]
    assert row["notebook"] == "99_trial"
    assert set(course) <= set(row)


@pytest.mark.parametrize("line", ["run --record 01 02", "run 01 02 --record", "run 01 02"])
def test_the_option_stands_before_or_behind(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the page of timings tells it, and the other way round."""
    asked = []
    monkeypatch.setattr(notebooks, "run", lambda chosen, record: asked.append((chosen, record)))
    notebooks.main(line.split())
    ((chosen, record),) = asked
    assert [source.stem[:2] for source in chosen] == ["01", "02"]
    assert record == ("--record" in line)


def test_a_failing_notebook_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """`save` writes nothing when a cell fails; `run` goes on, makes a page and has status 1."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "COURSE", tmp_path / "course")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    bad, good = tmp_path / "98_bad.py", tmp_path / "99_good.py"
    good.write_text("# %% [markdown]\n# # Good\n\n# %%\nprint('fine')\n")
    bad.write_text("# %% [markdown]\n# # Bad\n\n# %%\nassert 1 > 2, 'as planned'\n")
    with pytest.raises(SystemExit, match="as planned"):
        notebooks.save(bad)
    assert not notebooks.target(bad).exists()
    assert notebooks.run([bad, good]) == 1
    rows = json.loads((tmp_path / "course" / "summary.json").read_text())
    assert [row["outcome"] for row in rows] == ["AssertionError: as planned", "ok"]
    assert "as planned" in (tmp_path / "course" / "98_bad.html").read_text()
    assert "fine" in (tmp_path / "course" / "99_good.html").read_text()
    assert "99_good" in capfd.readouterr().out


@each_source
def test_saved_outputs_are_one_clean_run(source: Path) -> None:
    """Executed once, top to bottom; no errors, no warnings, no machine's path, no key."""
    cells = [cell for cell in read(source).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    text = json.dumps(outputs)
    assert not re.search(r"/(home|root|Users|tmp|content|work)/", text)
    assert not re.search(r"hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9]{20}", text)
    assert "it/s]" not in text  # a progress bar's debris
    assert " at 0x" not in text  # an object that shows its address, another one in each run


def test_figures_outside_are_those_of_the_notebooks() -> None:
    """Slides and README show the very pictures of the saved notebooks, and no others."""
    made = {}
    for source in SOURCES:
        made |= notebooks.figures(read(source))
    kept = {path.stem: path.read_bytes() for path in notebooks.FIGURES.glob("*.png")}
    assert kept == made


def test_the_first_notebook_is_what_a_learner_writes_without_us() -> None:
    """No line of the course's package, and few lines."""
    text = FIRST.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) course_utils", text, flags=re.M)
    cells = [cell for cell in notebooks.jupytext.read(FIRST).cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells if not notebooks.is_claim(cell))
    assert len([line for line in code.splitlines() if line.strip()]) < 120


@pytest.mark.parametrize("source", SOURCES[:2], ids=NAMES[:2])
def test_counts_in_the_text_are_those_of_the_saved_run(source: Path) -> None:
    """`13 of 16` in a sentence stands in an output too: saved anew, the text is looked at again."""
    cells = read(source).cells
    told = {
        count
        for cell in cells
        if cell.cell_type == "markdown"
        for count in re.findall(r"\b\d+ of \d+\b", cell.source)
    }
    shown = json.dumps([cell.outputs for cell in cells if cell.cell_type == "code"])
    assert told
    assert not {count for count in told if not re.search(rf"\b{count}\b", shown)}


def test_a_saved_notebook_holds_nobodys_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever saves it has perhaps voted: neither the widget nor the counts show that."""
    texts = [
        json.dumps(output)
        for cell in read(notebooks.find("08")).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert sum("No votes of yours" in text for text in texts) == 1
    assert not [text for text in texts if re.search(r"of your \d+ pairs|of \d+ judged", text)]
    # Where a run looks for them, there is none of the votes that are kept here.
    monkeypatch.setenv("COURSE_VOTES", str(tmp_path))
    (tmp_path / "08.jsonl").write_text("a vote\n")
    source = tmp_path / "99_votes.py"
    source.write_text(
        "# %%\nimport os\nfrom pathlib import Path\n\n"
        'print((Path(os.environ["COURSE_VOTES"]) / "08.jsonl").exists())\n'
    )
    made, outcome = notebooks.executed(source)
    assert outcome == "ok"
    assert made.cells[-1].outputs[0]["text"] == "False\n"


@each_source
def test_notebook_begins_and_ends_as_all_do(source: Path) -> None:
    """What is learned, needed and how long it takes; at the end the gist, exercises, reading."""
    texts = [cell.source for cell in read(source).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith(f"# {source.stem.split('_')[0]} · ")
    for phrase in ("**You will learn**", "**You need**", "**It takes**"):
        assert phrase in texts[0]
    headings = re.findall(r"^## (.+)$", "\n\n".join(texts), flags=re.M)
    assert (headings[0] == "The machine at hand") == (source != FIRST)
    assert headings[-3:] == ["Take away", "Exercises", "To read"]
    assert "](../docs/glossary.md)" in texts[-1]


@each_source
def test_reading_time_is_by_rule(source: Path) -> None:
    """200 words a minute and half a minute a code cell; an exercise as a whole takes longer."""
    cells = notebooks.build(source).cells
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    rule = words / 200 + sum(cell.cell_type == "code" for cell in cells) / 2
    said = re.search(r"\*\*It takes\*\* about (an hour|\d+ minutes)", cells[0].source)[1]
    minutes = 60 if said == "an hour" else int(said.split()[0])
    assert minutes >= 0.85 * rule
    assert minutes <= 1.15 * rule or notebooks.is_exercise(source)


@each_lesson
def test_claims_are_held_and_not_shown(source: Path) -> None:
    """A learner's notebook has hardly an assert; each claim has its place in the tests' run."""
    learners = [cell.source for cell in read(source).cells if cell.cell_type == "code"]
    assert not any(map(notebooks.is_claim, read(source).cells))
    held = notebooks.claims(source)
    assert held
    assert max(held) < len(learners)
    assert all("assert" in code for codes in held.values() for code in codes)
    assert sum(code.startswith("assert") for code in learners) == 0


def test_a_claim_follows_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the learner's code cells, the stamped one too; a run holds it, and drops it."""
    monkeypatch.setattr(notebooks.settings, "repository", lambda: ADDRESS)
    source = tmp_path / "99_claims.py"
    source.write_text(
        '# %% [markdown]\n# # 99\n\n# %%\nx = 1\n\n# %% tags=["claim"]\nassert x == 1\n\n'
        "# %%\nx = 2\n\n# %% tags=[\"claim\"]\nassert x == 3, 'as planned'\n"
    )
    assert notebooks.claims(source) == {1: ["assert x == 1"], 2: ["assert x == 3, 'as planned'"]}
    assert "assert" not in str(notebooks.build(source))
    made, outcome = notebooks.executed(source)
    assert outcome == "AssertionError: as planned"
    assert [cell.execution_count for cell in made.cells if cell.cell_type == "code"] == [1, 2, 3]


@each_lesson
def test_solutions_are_cut(source: Path) -> None:
    """A learner's notebook holds `...` where the source holds a solution, and valid Python."""
    solved = source.read_text().count("### BEGIN SOLUTION")
    assert solved >= (1 if notebooks.is_appendix(source) else 2)
    code = [cell.source for cell in read(source).cells if cell.cell_type == "code"]
    text = "\n".join(code)
    assert text.count("...  # your code here") == solved
    assert "SOLUTION" not in text
    for cell in code:
        compile(cell, source.stem, "exec")


def test_numbers_find_notebooks() -> None:
    """`NB=01`, `1` or the name's beginning; anything else lists what there is."""
    assert notebooks.find("01").stem == "01_base_vs_chat"
    assert notebooks.find("1").stem == "01_base_vs_chat"
    assert notebooks.find("01_base").stem == "01_base_vs_chat"
    assert notebooks.find("02").stem == "02_peft_lora"
    assert notebooks.is_appendix(notebooks.find("02a"))
    with pytest.raises(SystemExit, match="01_base_vs_chat"):
        notebooks.find("77")


ADDRESS = "https://github.com/somebody/fine-tuning-course"


def colab_cell(monkeypatch: pytest.MonkeyPatch) -> str:
    """The set-up cell that is stamped into a notebook once the repository has an address."""
    monkeypatch.setattr(notebooks.settings, "repository", lambda: ADDRESS)
    _, cell = notebooks.colab_cells(FIRST.stem)
    assert cell.metadata["tags"] == ["colab-setup"]
    return cell.source


@each_source
def test_badge_and_set_up_cell_are_stamped_from_one_place(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where course.toml holds an address, every notebook has both below its title."""
    monkeypatch.setattr(notebooks.settings, "repository", lambda: ADDRESS)
    title, badge, cell, *_ = notebooks.build(source).cells
    assert title.source.startswith("# ")
    assert f"github/somebody/fine-tuning-course/blob/main/notebooks/{source.stem}" in badge.source
    assert f'course = "{ADDRESS}"' in cell.source


@each_source
def test_without_an_address_there_is_neither(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A badge that leads to nobody's repository helps no one."""
    monkeypatch.setattr(notebooks.settings, "repository", lambda: "")
    text = str(notebooks.build(source).cells)
    assert "colab-badge" not in text
    assert "colab-setup" not in text


def test_the_address_is_one_on_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty is allowed; anything else has to be an address, said in one form."""
    monkeypatch.setattr(settings, "FILE", tmp_path / "course.toml")
    for text, address in (
        ("", ""),
        ('repository = ""', ""),
        (f'repository = "{ADDRESS}"', ADDRESS),
        (f'repository = "{ADDRESS}.git"', ADDRESS),
        (f'repository = "{ADDRESS}/"', ADDRESS),
    ):
        settings.FILE.write_text(text)
        assert settings.repository() == address
    for wrong in ('"git@github.com:a/b"', '"https://github.com/a"', "1", '"https://a.b/c d"'):
        settings.FILE.write_text(f"repository = {wrong}")
        with pytest.raises(SystemExit, match="address of a repository"):
            settings.repository()


def test_nobody_is_named_as_the_owner() -> None:
    """No placeholder of an account is left anywhere that a reader looks."""
    command = ["git", "grep", "-l", "YOUR_" + "ACCOUNT"]
    assert not subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_set_up_cell_does_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside Colab no process is started and no file appears."""
    guard = "import subprocess\nsubprocess.run = None\n"
    code = guard + colab_cell(monkeypatch)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_set_up_cell_installs_on_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Colab's module present it clones and installs for real: the clone is of this folder.

    The address is redirected by git's own configuration; pip installs into an environment made
    for this test, which borrows the dependencies of this one. (`PIP_TARGET` will not do: pip hands
    it on to the build's own environment, where pip 23 refuses it.)
    """
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    address = ADDRESS
    work = tmp_path / "work"
    work.mkdir()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "origin")], check=True)
    env = {
        **os.environ,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{tmp_path / 'origin'}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
        "PIP_NO_DEPS": "1",
    }
    venv.create(tmp_path / "colab", with_pip=True)
    site = next((tmp_path / "colab").rglob("site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = str(tmp_path / "colab" / Path(sys.executable).relative_to(sys.prefix))
    code = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
    code += colab_cell(monkeypatch)
    code += "\nif len(sys.argv) > 1:\n    import course_utils.data as d; print(d.folder())"
    for _ in range(2):  # the second time the folder is there, and nothing is fetched
        subprocess.run([python, "-c", code], cwd=work, env=env, check=True)
    shutil.rmtree(work / Path(address).name)
    done = subprocess.run(
        [python, "-c", code, "show"], cwd=work, env=env, check=True, capture_output=True
    )
    assert str(work / Path(address).name / "datasets") in done.stdout.decode()
    catalog = Path("course_utils", "models", "catalog.toml")
    here, there = ROOT / catalog, site / catalog
    assert there.read_text() == here.read_text()
    assert (there.parent / "configs" / "facebook" / "opt-350m.json").exists()
