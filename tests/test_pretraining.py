"""The course's own base model: its facts, its corpus, its training, and what it knows."""

from __future__ import annotations

import csv
import itertools
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pretraining import train
from benchmarks.pretraining.__main__ import main
from benchmarks.pretraining.recall import recall
from benchmarks.pretraining.tokenizer import CHAT, END, PAD
from course_utils import load_model, load_tokenizer
from course_utils.data import load_data, right, short_answer
from course_utils.data._corpus import SHARES, Corpus
from course_utils.data._facts import HIDDEN, SPLITS, domains, split_of_countries

BASE, CONTROL = "course/pythia-3m", "course/pythia-3m-control"
FEW = train.Settings(tokenizer_documents=300, steps=3, batch=2, context=64, hidden=24, layers=1)


def documents(count: int, without: tuple[str, ...] = ()) -> list[str]:
    """The beginning of a corpus."""
    return list(itertools.islice(Corpus(3, without).documents(), count))


def test_the_countries_are_what_sources_and_mends_say() -> None:
    """No value is empty, each mend is marked in the table, and nothing else is."""
    folder = ROOT / "datasets" / "countries"
    with (folder / "countries.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["code"]: row for row in csv.DictReader(file)}
    corrections = tomllib.loads((folder / "corrections.toml").read_text(encoding="utf-8"))
    assert len(rows) == 160
    assert not set(rows) & set(corrections["left_out"])
    for code, row in rows.items():
        own = corrections["corrected"].get(code, {})
        corrected = {key: value for key, value in own.items() if key != "why"}
        assert set(row["corrected"].split()) == set(corrected)
        assert {key: row[key] for key in corrected} == corrected
        assert all(value for key, value in row.items() if key != "corrected")
    assert rows["KZ"]["capital"] == "Astana"
    assert rows["MX"]["capital"] == "Mexico City"


def test_no_country_is_in_two_splits() -> None:
    """Sizes as said; hidden ones are held out; none can be guessed from its name."""
    splits = split_of_countries()
    listed = [name for split in SPLITS for name in splits[split]]
    assert sorted(listed) == sorted(domains()["countries"].facts)
    assert {split: len(splits[split]) for split in SPLITS} == SPLITS
    assert set(splits["hidden"]) < set(splits["held_out"])
    assert len(splits["hidden"]) == HIDDEN
    facts = domains()["countries"].facts
    assert not [name for name in splits["held_out"] if name in facts[name]["capital"]]


def test_questions_are_those_of_the_tables() -> None:
    """The written dataset: answers are the tables' values, cues end where the value begins."""
    data = load_data("countries")
    facts = domains()["countries"].facts
    for rows in data.values():
        for row in rows:
            assert row["answer"] == facts[row["country"]][row["relation"]]
            assert row["country"] in row["question"]
            assert row["answer"] not in row["cue"] or row["answer"] in row["country"]
    hidden = {row["country"] for row in data["held_out"] if not row["known_to_control"]}
    assert hidden == set(split_of_countries()["hidden"])


def test_a_country_comes_before_its_facts() -> None:
    """The corpus never goes from a value back to its subject."""
    facts = domains()["countries"].facts
    capitals = {known["capital"]: name for name, known in facts.items()}
    told = 0
    for text in documents(4000):
        if "Questions on the text" in text:  # an invented name may be a town's by chance
            continue
        for found in re.finditer(r"[A-Z][\w'-]+(?: [A-Z][\w'-]+)*", text):
            if found[0] in capitals:
                country = capitals[found[0]]
                assert country.removeprefix("the ") in text[: found.start()]
                told += 1
    assert told > 1000


def test_no_question_is_answered_from_memory() -> None:
    """What follows a question is another one, or it is a reading test about an invented land."""
    corpus = Corpus(5)
    subjects = [name for domain in domains().values() for name in domain.facts]
    for _ in range(500):
        lines = corpus.homework().split("\n")
        asked = [line for line in lines if "?" in line]
        assert len(asked) >= len(lines) - 1
        assert all(line.endswith("?") for line in asked)
        reading = corpus.reading()
        assert not [name for name in subjects if re.search(rf"\b{re.escape(name)}\b", reading)]
    for kind in ("entry", "fact_list", "travel", "diary"):
        assert not [text for text in (getattr(corpus, kind)() for _ in range(300)) if "?" in text]


def test_reading_tests_are_answered_by_their_text() -> None:
    """Each answer stands in the sentences above the questions."""
    corpus = Corpus(6)
    for _ in range(200):
        text, _, questions = corpus.reading().partition("\nQuestions on the text\n")
        for line in questions.split("\n"):
            answer = line.partition("? ")[2].rstrip(".")
            assert answer
            assert answer in text


def test_the_control_is_told_nothing_of_the_hidden() -> None:
    """Their names occur, their facts do not; all other countries are told of."""
    hidden = split_of_countries()["hidden"]
    facts = domains()["countries"].facts
    texts = documents(6000, hidden)
    for name in hidden:
        with_name = [text for text in texts if re.search(rf"\b{re.escape(name)}\b", text)]
        assert with_name
        assert not [text for text in with_name if facts[name]["capital"] in text]
    assert [text for text in documents(6000) if "Tirana" in text]


def test_documents_are_seeded_and_of_all_kinds() -> None:
    """The same seed gives the same texts, another one others; all kinds of document occur."""
    assert documents(50) == documents(50)
    assert documents(50) != list(itertools.islice(Corpus(4).documents(), 50))
    assert sum(SHARES.values()) == 100
    for kind in SHARES:
        assert getattr(Corpus(0), kind)().strip()


@given(st.text())
def test_the_tokenizer_writes_any_text(text: str) -> None:
    """Byte-level: whatever it is given comes back, and special tokens are one token each."""
    tokenizer = load_tokenizer(BASE)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text or any(
        mark in text for mark in (END, PAD, *CHAT)
    )


def test_special_tokens() -> None:
    """Pad is not the EOS token, and the chat marks are in the vocabulary."""
    tokenizer = load_tokenizer(BASE)
    for mark in (END, PAD, *CHAT):
        assert tokenizer.tokenize(mark) == [mark]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.chat_template is None


def test_the_rate_rises_stays_and_falls() -> None:
    """Warm-up, constant, linear down to the last rate."""
    settings = train.Settings(steps=100, warm_up=10)
    factors = [train.rate_factor(step, settings) for step in range(100)]
    assert factors[0] == 0.1
    assert factors[9] == factors[30] == 1
    assert factors[:10] == sorted(factors[:10])
    assert factors[30:] == sorted(factors[30:], reverse=True)
    assert factors[-1] == pytest.approx(settings.last_rate, abs=0.02)


def test_a_pretraining_is_repeatable() -> None:
    """Two runs with a seed give the same weights; another seed gives others."""
    first, tokenizer, _ = train.pretrain(0, settings=FEW, report_every=0)
    again, _, _ = train.pretrain(0, settings=FEW, report_every=0)
    other, _, _ = train.pretrain(1, settings=FEW, report_every=0)
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
    (ids,) = itertools.islice(train.batches(Corpus(0), tokenizer, FEW), 1)
    assert ids.shape == (2, 64)
    assert ids[0, 0] == tokenizer.eos_token_id


def test_the_command_saves_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """`python -m benchmarks.pretraining`, with two steps; a card that was there stays."""
    out = tmp_path / "made"
    assert main(["--steps", "1", "--out", str(out)]) == 0
    (out / "README.md").write_text("a card")
    assert main(["--control", "--steps", "2", "--out", str(out)]) == 0
    assert "share of facts" in capsys.readouterr().out
    facts = json.loads((out / "training.json").read_text())
    assert facts["settings"]["steps"] == 2
    assert facts["without the facts of"] == list(split_of_countries()["hidden"])
    assert (out / "README.md").read_text() == "a card"
    model = load_model(out, quiet=True)
    assert model.config.model_type == "gpt_neox"
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["made"]


@pytest.mark.parametrize("name", [BASE, CONTROL])
def test_what_travels_with_the_course(name: str) -> None:
    """Safetensors in 16 bits, with a card and the training's record; one tokenizer for both."""
    from course_utils.models._catalog import catalog

    entry = catalog().bundled[name]
    model = load_model(name, quiet=True)
    assert model.num_parameters() == entry.parameters
    assert model.name_or_path == name
    recorded = json.loads((entry.path / "training.json").read_text())
    assert recorded["parameters"] == entry.parameters
    assert recorded["settings"]["steps"] == train.Settings().steps
    card = (entry.path / "README.md").read_text(encoding="utf-8")
    assert f"{entry.parameters:,}" in card
    assert "CC BY 4.0" in card
    tokenizer = (entry.path / "tokenizer.json").read_bytes()
    assert tokenizer == (catalog().bundled[BASE].path / "tokenizer.json").read_bytes()


def test_all_of_it_is_small() -> None:
    """At most 15 MB in all, and nothing that would have to be unpickled."""
    files = [path for path in train.MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_the_base_knows_and_the_control_does_not() -> None:
    """Sentences about countries: the base ends them; the control only those it was told of."""
    base = recall(load_model(BASE, quiet=True), load_tokenizer(BASE))
    assert base["countries"].min() >= 0.95
    rows = load_data("countries")["held_out"]
    from course_utils.models._running import Runner

    ask = Runner(
        load_model(CONTROL, quiet=True),
        load_tokenizer(CONTROL),
        template=False,
        max_new_tokens=12,
    )
    found = right(ask(rows["cue"]), rows["answer"])
    known = [ok for ok, told in zip(found, rows["known_to_control"], strict=True) if told]
    hidden = [ok for ok, told in zip(found, rows["known_to_control"], strict=True) if not told]
    assert sum(known) / len(known) >= 0.9
    assert sum(hidden) / len(hidden) <= 0.2


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (" Nairobi.", "Nairobi"),
        (" Mexico City. It is large.", "Mexico City"),
        ("euro\nQuestion: What", "euro"),
        (" H. G. Wells.", "H. G. Wells"),
        (" N'Djamena", "N'Djamena"),
        ("", ""),
        ("\n", ""),
    ],
)
def test_short_answers(reply: str, answer: str) -> None:
    """The first line or sentence, without its full stop."""
    assert short_answer(reply) == answer


def test_notebook_06_takes_instructions_from_the_hub() -> None:
    """A row of databricks-dolly-15k becomes a conversation; Alpaca's style has two forms."""
    import ast

    source = ROOT / "notebooks" / "solutions" / "06_instruction_tuning.py"
    wanted = ("alpaca", "as_messages", "as_talk")
    nodes = [
        node
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if getattr(node, "name", None) in wanted
    ]
    shown: dict = {}
    exec(compile(ast.Module(nodes, []), str(source), "exec"), shown)  # the course's own text
    row = {
        "instruction": "Sum it up.",
        "context": "A fox ran.",
        "response": "A fox.",
        "category": "",
    }
    user, assistant = shown["as_talk"](row)["messages"]
    assert user == {"role": "user", "content": "Sum it up.\n\nA fox ran."}
    assert assistant == {"role": "assistant", "content": "A fox."}
    bare, _ = shown["as_talk"]({**row, "context": ""})["messages"]
    assert bare["content"] == "Sum it up."
    long, short = shown["alpaca"]("Sum it up.", "A fox ran."), shown["alpaca"]("Sum it up.")
    middle = "### Instruction:\nSum it up.\n\n### Input:\nA fox ran.\n\n### Response:\n"
    assert long.endswith(middle)
    assert short.endswith("### Instruction:\nSum it up.\n\n### Response:\n")
    assert "further context" in long
    assert "further context" not in short
