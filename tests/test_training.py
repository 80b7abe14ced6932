"""The trainings' helpers: the loss is the same, the curves are true, adapters are found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from course_utils import load_model, load_tokenizer, training
from course_utils.errors import UnknownName
from course_utils.models._catalog import catalog, recipe
from course_utils.training import _curves

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Say {word}."}],
        "completion": [{"role": "assistant", "content": word}],
    }
    for word in ("eat", "string", "a much longer word than those", "yes")
]


def make_trainer(folder: Path, tmp_path: Path, **options: Any) -> SFTTrainer:
    """A trainer on a tiny model."""
    config = SFTConfig(
        output_dir=str(tmp_path / "run"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=3,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        **options,
    )
    return SFTTrainer(
        model=load_model(str(folder), quiet=True),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=load_tokenizer(str(folder), quiet=True),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )


def test_the_faster_loss_is_the_same(chat_folder: Path, tmp_path: Path) -> None:
    """Value and gradients, with and without the number of tokens that accumulation hands over."""
    trainer = make_trainer(chat_folder, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    for items in (None, torch.tensor(17)):
        losses, gradients = [], []
        for change in (lambda trainer: trainer, training.faster_on_cpu):
            change(trainer)
            trainer.model.zero_grad()
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
            loss.backward()
            losses.append(loss.item())
            gradients.append(
                torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])
            )
        del trainer.compute_loss
        assert losses[0] == pytest.approx(losses[1], rel=0.01)
        cosine = torch.nn.functional.cosine_similarity(*(g.float() for g in gradients), dim=0)
        assert cosine > 0.999


def test_rows_of_the_output_layer_take_the_models_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU too: TRL's own loss knows nothing of them, and fails."""
    name = "course/pythia-3m"
    tokens = {"embed_in": [2], "lm_head": [2]}
    rows = [{"prompt": "Question: one?\nAnswer:", "completion": " Two"}] * 4
    trainer = SFTTrainer(
        model=load_model(name, quiet=True),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(name, quiet=True),
        peft_config=LoraConfig(r=4, trainable_token_indices=tokens),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with pytest.raises(AttributeError, match="bias"):
        trainer.compute_loss(trainer.model, dict(batch))
    with monkeypatch.context() as pretended:
        pretended.setattr(SFTConfig, "device", torch.device("cuda"))
        training.faster_on_cpu(trainer)
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    trained = [p for n, p in trainer.model.named_parameters() if "trainable_tokens_delta" in n]
    assert len(trained) == 2
    assert trained[1].grad.abs().sum() > 0


def test_curves_are_those_of_the_history(
    chat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A watched trainer prints each loss, to the error stream; and keeps none of its old bars."""
    trainer = training.watch(
        make_trainer(chat_folder, tmp_path, eval_strategy="steps", eval_steps=3)
    )
    training.watch(trainer)  # twice does no harm
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert names.count("LiveLosses") == 1
    assert not {"ProgressCallback", "PrinterCallback", "NotebookProgressCallback"} & set(names)
    trainer.evaluate()  # outside a training, nothing is drawn
    assert "step" not in capsys.readouterr().err
    trainer.train()
    said = capsys.readouterr().err
    assert said.count("eval_loss") == 1
    assert "step 3 of 3" in said
    assert "eval_loss" in said
    lines = training.curves(trainer.state.log_history)
    assert lines["training"][0] == [1, 2, 3]
    assert lines["validation"][0] == [3]
    assert all(loss > 0 for loss in lines["training"][1])


def test_in_a_notebook_one_picture_is_redrawn(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same display is updated; its last state shows the whole."""
    shown: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, bundle: dict[str, str], raw: bool) -> None:
            shown.append(("update", bundle))

    def display(bundle: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(("new", bundle))
        return Handle()

    monkeypatch.setattr(_curves, "display", display)
    monkeypatch.setattr(_curves, "_REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(_curves.transformers.utils, "is_in_notebook", lambda: True)
    trainer = training.watch(make_trainer(chat_folder, tmp_path))
    trainer.train()
    assert [kind for kind, _ in shown] == ["new"] + ["update"] * (len(shown) - 1)
    assert len(shown) == 5  # three steps, transformers' summary of the run, and the whole
    assert "step 3 of 3" in shown[-1][1]["text/plain"]
    assert shown[-1][1]["image/png"].startswith("iVBOR")
    assert "loss at step 3" in shown[-1][1]["text/plain"]
    named = training.watch(make_trainer(chat_folder, tmp_path, run_name="ChatML"))
    named.train()
    assert "loss of ChatML at step 3" in shown[-1][1]["text/plain"]


def test_recipes_know_every_tier() -> None:
    """Steps, batch and the reason, for each tier; a wrong name is told the right ones."""
    for name, tiers in catalog().recipes.items():
        assert set(tiers) == {"cpu", "16gb", "24gb", "40gb"}
        for tier in tiers:
            found = recipe(name, tier)
            assert found["steps"] > 0
            assert found["batch"] > 0
            assert 1e-5 < found.get("learning_rate", 1e-3) < 1e-2
            assert found["why"]
    with pytest.raises(UnknownName, match="pig_latin"):
        recipe("pig_latn", "cpu")
    with pytest.raises(UnknownName, match="16gb"):
        recipe("pig_latin", "17gb")
