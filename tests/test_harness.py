"""The course's tasks for lm-eval: the same figures by hand; and the facts of known benchmarks."""

from __future__ import annotations

import copy
import re
import tomllib
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model

from course_utils.data import load_data
from course_utils.errors import UnknownName
from course_utils.models._loading import load_model, load_tokenizer
from course_utils.models._running import Runner
from course_utils.scoring import (
    COURSE_TASKS,
    benchmark_cost,
    benchmarks_table,
    course_task_manager,
    exact_match,
)

CHOICE, GENERATE = COURSE_TASKS
QA = "Question: {prompt}\nAnswer:"
BENCHMARKS = tomllib.loads((ROOT / "course_utils/scoring/benchmarks.toml").read_text())


def evaluate(model, tokenizer, tasks, limit=None, **options) -> dict[str, Any]:
    """What lm-eval finds out, as notebook 08 asks it."""
    return simple_evaluate(
        HFLM(model, tokenizer=tokenizer, batch_size=8),
        tasks=list(tasks),
        limit=limit,
        task_manager=course_task_manager(),
        **options,
    )


@pytest.fixture(scope="module")
def tokenizer():
    """The tokenizer of the course's own base model."""
    return load_tokenizer("course/pythia-3m")


@pytest.fixture(scope="module")
def base():
    """The course's own base model, which knows much and answers nothing."""
    return load_model("course/pythia-3m", dtype=torch.float32, quiet=True).to("cpu")


@pytest.fixture(scope="module")
def tuned(base, tokenizer):
    """A LoRA on it, tuned on the training countries for a moment: it answers some questions."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(base), config).train()
    end = tokenizer.eos_token
    rows = load_data("countries")["train"].shuffle(seed=0)
    texts = [
        f"{QA.replace('{prompt}', question)} {answer}{end}"
        for question, answer in zip(rows["question"], rows["answer"], strict=True)
    ]
    optimizer = torch.optim.AdamW(
        (weight for weight in model.parameters() if weight.requires_grad), lr=3e-3
    )
    for step in range(60):
        ids = [tokenizer(text)["input_ids"] for text in texts[step * 16 : step * 16 + 16]]
        width = max(map(len, ids))
        batch = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in ids])
        mask = (labels != -100).long()
        model(input_ids=batch, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def of(results: dict[str, Any], task: str, metric: str) -> float:
    """A task's figure, as lm-eval names it; it is the mean of the items'."""
    figure = results["results"][task][f"{metric},none"]
    scores = [sample[metric] for sample in results["samples"][task]]
    assert figure == pytest.approx(sum(scores) / len(scores))
    return figure


@torch.inference_mode()
def log_likelihood(model, tokenizer, prompt: str, answer: str) -> float:
    """The log probability of an answer behind a prompt, token by token."""
    before = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    logs = model(ids).logits[0].log_softmax(dim=-1)
    return sum(logs[place - 1, ids[0, place]].item() for place in range(before, ids.shape[1]))


def test_multiple_choice_is_what_the_likelihoods_say(base, tokenizer) -> None:
    """The same choices on the same items, by hand in plain torch."""
    results = evaluate(base, tokenizer, [CHOICE], 40)
    likeliest, normed, wanted = [], [], []
    for sample in results["samples"][CHOICE]:
        row = sample["doc"]
        prompt = QA.replace("{prompt}", row["question"])
        logs = {
            choice: log_likelihood(base, tokenizer, prompt, f" {choice}")
            for choice in row["choices"]
        }
        likeliest.append(max(logs, key=logs.get))
        normed.append(max(logs, key=lambda choice: logs[choice] / len(choice)))
        wanted.append(row["answer"])
    assert len(wanted) == 40
    assert of(results, CHOICE, "acc") == pytest.approx(exact_match(likeliest, wanted))
    assert of(results, CHOICE, "acc_norm") == pytest.approx(exact_match(normed, wanted))


def test_a_model_that_cannot_answer_may_still_choose(base, tokenizer) -> None:
    """What the two tasks are side by side for: it finds the right one more often than chance, and
    says it never."""
    results = evaluate(base, tokenizer, COURSE_TASKS)
    assert of(results, CHOICE, "acc") > 0.35
    assert of(results, GENERATE, "exact_match") < 0.05
    assert {len(each) for each in results["samples"].values()} == {250}


def test_generation_is_what_the_runner_says(tuned, tokenizer) -> None:
    """The Runner's greedy replies, cut at the same places, are the same; so are the scores."""
    results = evaluate(tuned, tokenizer, [GENERATE], 60)
    rows = load_data("countries")["held_out"].select(range(60))
    replies = Runner(tuned, tokenizer, template=QA, max_new_tokens=12)(rows["question"])
    cut = [re.split(r"[\n.]", reply)[0] for reply in replies]
    samples = results["samples"][GENERATE]
    assert [each["filtered_resps"][0] for each in samples] == [reply.lstrip() for reply in cut]
    found = of(results, GENERATE, "exact_match")
    assert found == pytest.approx(exact_match(cut, rows["answer"]))
    assert 0.1 < found < 1
    prompts = [each["arguments"][0][0] for each in samples]
    assert prompts == [QA.replace("{prompt}", question) for question in rows["question"]]


def test_the_choices_are_fair_and_the_same_each_time() -> None:
    """Four different ones of the same relation, the right one once, in no fixed place."""
    results = {}
    for _ in range(2):
        loaded = course_task_manager().load([CHOICE])["tasks"][CHOICE]
        rows = loaded.dataset["held_out"].to_list()
        results[len(results)] = [row["choices"] for row in rows]
    assert results[0] == results[1]
    answers: dict[str, set[str]] = {}
    for row in rows:
        answers.setdefault(row["relation"], set()).add(row["answer"])
    for row in rows:
        assert len(set(row["choices"])) == 4
        assert set(row["choices"]) <= answers[row["relation"]]
        assert row["choices"][row["right_choice"]] == row["answer"]
    places = pd.Series([row["right_choice"] for row in rows]).value_counts(normalize=True)
    assert places.between(0.15, 0.35).all()
    assert len(places) == 4


def test_examples_in_front_come_from_the_training_countries(base, tokenizer) -> None:
    """As many as asked for, with their answers, and the same ones each time."""
    prompts = []
    for _ in range(2):
        results = evaluate(base, tokenizer, [GENERATE], 3, num_fewshot=2)
        prompts.append([each["arguments"][0][0] for each in results["samples"][GENERATE]])
    assert prompts[0] == prompts[1]
    splits = load_data("countries")
    known = {
        f"{QA.replace('{prompt}', row['question'])} {row['answer']}" for row in splits["train"]
    }
    for prompt, question in zip(prompts[0], splits["held_out"]["question"][:3], strict=True):
        *examples, asked = prompt.split("\n\n")
        assert len(examples) == 2
        assert set(examples) <= known
        assert asked == QA.replace("{prompt}", question)


@pytest.fixture(scope="module")
def all_tasks() -> TaskManager:
    """lm-eval's own tasks."""
    return TaskManager()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_facts_fit_the_installed_lm_eval(name: str, all_tasks: TaskManager) -> None:
    """The name exists, the form is that of its tasks, and so are the marks in the notes."""
    facts = BENCHMARKS[name]
    assert facts["task"] in all_tasks.all_tasks
    assert facts.get("passes", 0) <= facts["requests"]
    assert ("written" in facts) == (facts["form"] != "choice")
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", facts["paper"])
    leaves = list(leaf_settings(all_tasks, facts["task"]))
    if name == "SQuAD 2.0":  # a Python class, which has no settings to look into
        assert "class" in leaves[0]
        return
    forms = {leaf["output_type"] for leaf in leaves}
    assert forms == {"multiple_choice" if facts["form"] == "choice" else "generate_until"}
    runs_code = any(leaf.get("unsafe_code") for leaf in leaves)
    assert runs_code == ("confirm_run_unsafe_code" in facts.get("note", ""))


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("MMLU", 57), ("GLUE", 9), ("SuperGLUE", 8), ("BIG-bench", 118), ("BIG-bench Hard", 27)],
)
def test_the_parts_are_as_many_as_the_file_says(
    name: str, tasks: int, all_tasks: TaskManager
) -> None:
    """Counted in lm-eval; the same number stands in the file's words."""
    assert len(list(leaf_settings(all_tasks, BENCHMARKS[name]["task"]))) == tasks
    assert str(tasks) in BENCHMARKS[name]["parts"]


def leaf_settings(manager, name: str):
    """The settings of the tasks behind a name, looked up here anew."""
    settings = manager.task_index[name].cfg or {}
    if name in manager.all_tags:
        children = manager.task_index[name].tags
    else:
        children = settings.get("task") if isinstance(settings.get("task"), list) else ()
    if not children:
        yield settings
    for child in children:
        yield from leaf_settings(manager, child if isinstance(child, str) else child["task"])


def test_costs() -> None:
    """By hand: HellaSwag asks 4 times 100 tokens 10,042 times, at 2 operations a parameter."""
    found = benchmark_cost("HellaSwag", 7e9)
    assert (found.items, found.tokens) == (10_042, 4_016_800)
    assert found.flops == pytest.approx(2 * 7e9 * 4_016_800)
    assert benchmark_cost("hellaswag", 7e9) == found
    # What is written costs too; and one pass serves MMLU's four answers.
    assert benchmark_cost("TriviaQA", 1, 100).tokens == 100 * (25 + 10)
    assert benchmark_cost("MMLU", 1).tokens == 14_042 * BENCHMARKS["MMLU"]["tokens"]
    assert "10,042 items" in str(found)


def test_the_table_of_costs() -> None:
    """Without a model what they ask; with one what they take; unknown where not counted."""
    assert list(benchmarks_table().columns[:4]) == ["measures", "items", "form", "requests"]
    table = benchmarks_table(1e9, 1e13)
    assert list(table.index) == list(BENCHMARKS)
    counted = table["items"].notna()
    assert counted.sum() == len(BENCHMARKS) - 1
    costs = table[["tokens (rough)", "FLOPs (rough)", "hours (rough)"]]
    assert (costs[counted] > 0).all(axis=None)
    assert costs[~counted].isna().all(axis=None)
    flops = benchmark_cost("IFEval", 1e9).flops
    assert table.loc["IFEval", "FLOPs (rough)"] == flops
    assert table.loc["IFEval", "hours (rough)"] == pytest.approx(flops / 1e13 / 3600)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: benchmark_cost("HelaSwag", 1e9), UnknownName, "Did you mean HellaSwag"),
        (lambda: benchmark_cost("MMLU", 0), ValueError, "parameters is 0"),
        (lambda: benchmark_cost("MMLU", 1e9, 0), ValueError, "items is 0"),
        (lambda: benchmark_cost("BIG-bench", 1e9), ValueError, "not been counted"),
        (lambda: benchmarks_table(flops_per_second=1e12), ValueError, "needs the parameters"),
        (lambda: benchmarks_table(-1), ValueError, "parameters is -1"),
    ],
)
def test_costs_of_nothing(call, error: type[Exception], said: str) -> None:
    """The error names what was given."""
    with pytest.raises(error, match=said):
        call()
