"""lm-eval as the course uses it: the same figures by hand, quietly, without the hub."""

from __future__ import annotations

import copy
import logging
import math
import random
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hub_stand_in import HubStandIn
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from course_utils.data import load_data
from course_utils.errors import CourseError, HubUnreachable, UnknownName, UnsafeTask
from course_utils.models._loading import load_model, load_tokenizer
from course_utils.models._running import Runner
from course_utils.scoring import exact_match
from course_utils.scoring.harness import (
    BENCHMARKS,
    OWN_TASKS,
    TASKS_FOLDER,
    all_tasks,
    benchmarks_table,
    cost,
    evaluate,
    items,
    run_tasks,
    summary,
)

CHOICE, GENERATE = OWN_TASKS
QA = "Question: {prompt}\nAnswer:"


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


def of(table: pd.DataFrame, task: str, metric: str) -> pd.Series:
    """The one row of a task and a metric."""
    return table[(table["task"] == task) & (table["metric"] == metric)].squeeze()


@torch.inference_mode()
def log_likelihood(model, tokenizer, prompt: str, answer: str) -> float:
    """The log probability of an answer behind a prompt, token by token."""
    before = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    logs = model(ids).logits[0].log_softmax(dim=-1)
    return sum(logs[place - 1, ids[0, place]].item() for place in range(before, ids.shape[1]))


def test_multiple_choice_is_what_the_likelihoods_say(base, tokenizer) -> None:
    """The same choices on the same items, by hand in plain torch; and the standard error."""
    results = run_tasks(base, tokenizer, CHOICE, limit=40)
    table, each = summary(results), items(results)
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
    assert each["said"].tolist() == likeliest
    assert each["wanted"].tolist() == wanted
    acc, acc_norm = of(table, CHOICE, "acc"), of(table, CHOICE, "acc_norm")
    share = exact_match(likeliest, wanted)
    assert acc["value"] == pytest.approx(share) == each["acc"].mean()
    assert acc_norm["value"] == pytest.approx(exact_match(normed, wanted))
    assert acc["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / 39))
    assert acc["n"] == len(each) == 40


def test_a_model_that_cannot_answer_may_still_choose(base, tokenizer) -> None:
    """What the two tasks are side by side for: it finds the right one more often than chance, and
    says it never."""
    table = evaluate(base, tokenizer, OWN_TASKS, batch_size=32)
    assert of(table, CHOICE, "acc")["value"] > 0.3
    assert of(table, GENERATE, "exact_match")["value"] < 0.05
    assert set(table["n"]) == {250}


def test_generation_is_what_the_runner_says(tuned, tokenizer) -> None:
    """The Runner's greedy replies, cut at the same places, are the same; so are the scores."""
    results = run_tasks(tuned, tokenizer, GENERATE, limit=60)
    rows = load_data("countries")["held_out"].select(range(60))
    replies = Runner(tuned, tokenizer, template=QA, max_new_tokens=12)(rows["question"])
    cut = [re.split(r"[\n.]", reply)[0] for reply in replies]
    each = items(results)
    assert each["said"].tolist() == [reply.lstrip() for reply in cut]
    found = of(summary(results), GENERATE, "exact_match")
    assert found["value"] == pytest.approx(exact_match(cut, rows["answer"]))
    assert 0.1 < found["value"] < 1
    assert each["prompt"].tolist() == [QA.replace("{prompt}", q) for q in rows["question"]]


def test_the_figures_are_those_of_simple_evaluate(tuned, tokenizer) -> None:
    """lm-eval's own way in, with an example in front and the seeds that it sets itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    theirs = simple_evaluate(
        HFLM(tuned, tokenizer=copy.deepcopy(tokenizer), batch_size=8),
        tasks=list(OWN_TASKS),
        limit=30,
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False),
    )
    ours = run_tasks(tuned, tokenizer, OWN_TASKS, 30, num_fewshot=1)
    pd.testing.assert_frame_equal(summary(ours), summary(theirs))
    pd.testing.assert_frame_equal(items(ours), items(theirs))


def test_the_choices_are_fair_and_the_same_each_time() -> None:
    """Four different ones of the same relation, the right one once, in no fixed place."""
    results = {}
    for _ in range(2):
        loaded = lm_tasks([CHOICE])[CHOICE]
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


def lm_tasks(names: list[str]):
    """The task objects of lm-eval, as its own command line finds them by --include_path."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False)
    return manager.load(names)["tasks"]


def test_examples_in_front_come_from_the_training_countries(base, tokenizer) -> None:
    """As many as asked for, with their answers, and the same ones each time."""
    twice = [run_tasks(base, tokenizer, GENERATE, 3, num_fewshot=2) for _ in range(2)]
    prompts = [items(results)["prompt"].tolist() for results in twice]
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


def test_nothing_is_printed_and_nothing_is_changed(
    base, tokenizer, capfd, caplog, recwarn, tmp_path, monkeypatch
) -> None:
    """No bars, notes or warnings; model, tokenizer, random states and log levels as they were;
    no file where one stands."""
    monkeypatch.chdir(tmp_path)
    mine = copy.deepcopy(tokenizer)
    mine.pad_token, mine.padding_side = None, "right"
    base.train()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    level = logging.getLogger("lm_eval").level
    try:
        table = evaluate(base, mine, OWN_TASKS, limit=2)
        assert len(table) == 3
        assert base.training
        assert "tie_weights" not in vars(base)
    finally:
        base.eval()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list
    assert (mine.pad_token, mine.padding_side) == (None, "right")
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before
    assert logging.getLogger("lm_eval").level == level
    assert not list(tmp_path.glob("*.*"))


def test_bars_where_they_are_wanted(base, tokenizer, capfd) -> None:
    """For what takes long."""
    evaluate(base, tokenizer, GENERATE, limit=2, progress=True)
    assert "generate_until" in capfd.readouterr().err


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 6]}]
)
def test_adapters_on_tied_weights(tokenizer, options: dict) -> None:
    """lm-eval ties the weights anew, which breaks such adapters: it must not come to that."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    plain = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"], **options)).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn_like(weight)
    ids = torch.tensor([[5, 3, 6, 8]])
    with torch.inference_mode():
        before = model(ids).logits
        assert len(evaluate(model, tokenizer, CHOICE, limit=2)) == 2
        assert torch.equal(model(ids).logits, before)


def test_a_chat_models_template(base, tokenizer) -> None:
    """The question goes into it, with the system prompt; without a template it is refused."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    results = run_tasks(base, chat, GENERATE, limit=1, chat_template=True, system="Be brief.")
    question = load_data("countries")["held_out"]["question"][0]
    assert items(results)["prompt"][0] == (
        f"<system>Be brief.<user>{QA.replace('{prompt}', question)}<assistant>"
    )
    with pytest.raises(ValueError, match="has no chat template"):
        evaluate(base, tokenizer, GENERATE, chat_template=True)
    with pytest.raises(ValueError, match="system prompt needs"):
        evaluate(base, tokenizer, GENERATE, system="Be brief.")


OWN_FILE = """
task: my_cues
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: loglikelihood
doc_to_text: "{{{{cue}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
OWN_GROUP = """
group: my_group
task: [my_cues, course_countries_choice]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


def test_tasks_of_the_learners_own(base, tokenizer, tmp_path) -> None:
    """A file of one's own, a group of it and the course's, and settings without a file."""
    from course_utils.data import folder

    (tmp_path / "my_cues.yaml").write_text(
        OWN_FILE.format(file=folder() / "countries" / "held_out.jsonl")
    )
    (tmp_path / "my_group.yaml").write_text(OWN_GROUP)
    table = evaluate(base, tokenizer, "my_group", limit=20, include_path=tmp_path)
    cues, choice = of(table, "my_cues", "acc"), of(table, CHOICE, "acc")
    group = of(table, "my_group", "acc")
    assert cues["value"] >= 0.9  # asked in its own way, it knows
    assert group["value"] == pytest.approx((cues["value"] + choice["value"]) / 2)
    assert group["n"] == 40
    settings = {
        "task": "my_settings",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(folder() / "countries" / "held_out.jsonl")},
        "test_split": "train",
        "output_type": "loglikelihood",
        "doc_to_text": "{{cue}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "mixed.yaml").write_text("group: mixed\ntask: [my_cues, hellaswag]\n")
    with pytest.raises(UnknownName, match=r"'hellaswag'.*group of your own"):
        evaluate(base, tokenizer, "mixed", include_path=tmp_path)
    same = evaluate(base, tokenizer, settings, limit=20)
    assert of(same, "my_settings", "acc")["value"] == cues["value"]
    online = {**settings, "dataset_path": "someone/something"}
    with pytest.raises(HubUnreachable, match="my_settings"):
        evaluate(base, tokenizer, online)


def test_settings_that_change_a_known_task(base, tokenizer, tmp_path) -> None:
    """They keep its data and all else, in company as well; a group they cannot change."""
    as_cue = {"task": CHOICE, "doc_to_text": "{{cue}}"}
    asked, ended = (
        of(evaluate(base, tokenizer, task, limit=40), CHOICE, "acc") for task in (CHOICE, as_cue)
    )
    assert asked["n"] == ended["n"] == 40
    assert ended["value"] >= 0.9 > asked["value"] + 0.2
    both = evaluate(base, tokenizer, [as_cue, GENERATE], limit=40)
    assert of(both, CHOICE, "acc")["value"] == ended["value"]
    assert of(both, GENERATE, "exact_match")["n"] == 40
    (tmp_path / "two.yaml").write_text(f"group: two\ntask: [{CHOICE}, {GENERATE}]\n")
    with pytest.raises(ValueError, match="two is more than one task"):
        run_tasks(base, tokenizer, {"task": "two", "num_fewshot": 1}, include_path=tmp_path)
    with pytest.raises(HubUnreachable, match="hellaswag"):
        run_tasks(base, tokenizer, {"task": "hellaswag", "num_fewshot": 1})
    with pytest.raises(UnknownName, match=rf"mean {CHOICE}"):
        run_tasks(base, tokenizer, {"task": "course_countries_choise", "num_fewshot": 1})


def test_a_share_of_the_items(base, tokenizer) -> None:
    """Two in a hundred of 250 are five."""
    assert set(evaluate(base, tokenizer, CHOICE, limit=0.02)["n"]) == {5}


def test_without_the_hub_it_says_what_works(base, tokenizer, monkeypatch) -> None:
    """At once, without lm-eval's long list and without asking for any file."""
    monkeypatch.setattr("course_utils.scoring.harness.all_tasks", None)
    with pytest.raises(HubUnreachable, match=r"hellaswag: .*course_countries_choice") as error:
        evaluate(base, tokenizer, ["hellaswag", CHOICE])
    assert "HF_HUB_OFFLINE" in str(error.value)
    with pytest.raises(UnknownName, match=r"mean course_countries_choice.*out of reach"):
        evaluate(base, tokenizer, "course_countries_choise")


def test_told_to_be_offline_it_looks_into_the_cache(base, tokenizer, monkeypatch) -> None:
    """And says so when the data are not there."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable, match="hellaswag: not all data are in this machine's cache"):
        evaluate(base, tokenizer, "hellaswag")


def test_unknown_names(base, tokenizer, hub_server: HubStandIn) -> None:
    """Names alike of lm-eval's thousands, of the course's, or else the well-known ones."""
    with pytest.raises(UnknownName, match=r"'helaswag'. Did you mean hellaswag"):
        evaluate(base, tokenizer, "helaswag")
    with pytest.raises(UnknownName, match=r"Did you mean course_countries_choice"):
        evaluate(base, tokenizer, "countries_choice")
    with pytest.raises(UnknownName, match=r"Known: course_countries_choice.*mmlu") as error:
        evaluate(base, tokenizer, "zzzzqqqq")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("task", ["humaneval", "mbpp", {"task": "humaneval", "unsafe_code": False}])
def test_code_is_run_only_with_a_confirmation(
    base, tokenizer, hub_server: HubStandIn, task: str | dict
) -> None:
    """And without one nothing is downloaded; a CourseError, to be read."""
    with pytest.raises(UnsafeTask, match="confirm_run_unsafe_code") as error:
        evaluate(base, tokenizer, task)
    assert isinstance(error.value, CourseError)
    assert set(hub_server.requests) == {"/api/models"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [3]}, "holds a int"),
        ({"tasks": {"dataset_path": "json"}}, "without a name"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": 1.5}, r"limit is 1\.5"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"include_path": "/nowhere/at/all"}, "/nowhere/at/all; a folder"),
    ],
)
def test_bad_input(base, tokenizer, options: dict, said: str) -> None:
    """Refused before anything is loaded: to lm-eval a limit of 0 means all items."""
    with pytest.raises(ValueError, match=said):
        evaluate(base, tokenizer, **{"tasks": CHOICE, **options})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_table_fits_the_installed_lm_eval(name: str) -> None:
    """The name exists, the form is that of its tasks, and so are the marks in the notes."""
    benchmark = BENCHMARKS[name]
    manager = all_tasks()
    assert benchmark.task in manager.all_tasks
    assert benchmark.passes <= benchmark.requests
    assert (benchmark.written > 0) == (benchmark.form != "choice")
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}", benchmark.paper)
    leaves = list(leaf_settings(manager, benchmark.task))
    if name == "SQuAD 2.0":  # a Python class, which has no settings to look into
        assert "class" in leaves[0]
        return
    forms = {leaf["output_type"] for leaf in leaves}
    assert forms == {"multiple_choice" if benchmark.form == "choice" else "generate_until"}
    runs_code = any(leaf.get("unsafe_code") for leaf in leaves)
    assert runs_code == ("confirm_run_unsafe_code" in benchmark.note)


@pytest.mark.parametrize(
    ("name", "tasks"),
    [("MMLU", 57), ("GLUE", 9), ("SuperGLUE", 8), ("BIG-bench", 118), ("BIG-bench Hard", 27)],
)
def test_the_parts_are_as_many_as_the_table_says(name: str, tasks: int) -> None:
    """Counted in lm-eval; the same number stands in the table's words."""
    assert len(list(leaf_settings(all_tasks(), BENCHMARKS[name].task))) == tasks
    assert str(tasks) in BENCHMARKS[name].parts


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
    found = cost("HellaSwag", 7e9)
    assert (found.items, found.tokens) == (10_042, 4_016_800)
    assert found.flops == pytest.approx(2 * 7e9 * 4_016_800)
    assert found.hours(1e13) == pytest.approx(found.flops / 1e13 / 3600)
    assert cost("hellaswag", 7e9) == found
    # What is written costs too; and one pass serves MMLU's four answers.
    assert cost("TriviaQA", 1, 100).tokens == 100 * (25 + 10)
    assert cost("MMLU", 1).tokens == 14_042 * BENCHMARKS["MMLU"].tokens
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
    assert table.loc["IFEval", "FLOPs (rough)"] == cost("IFEval", 1e9).flops


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: cost("HelaSwag", 1e9), UnknownName, "Did you mean HellaSwag"),
        (lambda: cost("MMLU", 0), ValueError, "parameters is 0"),
        (lambda: cost("MMLU", 1e9, 0), ValueError, "items is 0"),
        (lambda: cost("BIG-bench", 1e9), ValueError, "not been counted"),
        (lambda: cost("MMLU", 1e9).hours(0), ValueError, "flops_per_second is 0"),
        (lambda: benchmarks_table(flops_per_second=1e12), ValueError, "needs the parameters"),
        (lambda: benchmarks_table(-1), ValueError, "parameters is -1"),
    ],
)
def test_costs_of_nothing(call, error: type[Exception], said: str) -> None:
    """The error names what was given."""
    with pytest.raises(error, match=said):
        call()
