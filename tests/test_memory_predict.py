"""The predictor: hand-worked cases, real trainings on the CPU, every kind of setup, bad input."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn, Repository

from course_utils.__main__ import main
from course_utils.errors import ImpossibleSetup, NotTrainable, UnknownName
from course_utils.memory import GPUS, Setup, _step, _trainers, gpu, predict
from course_utils.memory import _build as build
from course_utils.memory import _cuda as cuda
from course_utils.memory._allocator import MIB, Allocator, OutOfMemory
from course_utils.memory._setup import ATTENTIONS, CHECKPOINTING, QUANTIZATIONS, SEQUENCES, TRAINERS
from course_utils.memory._tracker import DataDependent, Tracker
from course_utils.models._catalog import catalog

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 256,
}
OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 500,
    "max_position_embeddings": 256,
    "do_layer_norm_before": False,
    "dropout": 0.0,
}
WIDTHS = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "head_dim": 32,
}
SMALL = "course/pythia-3m"


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without values."""
    return torch.empty(shape, dtype=dtype, device="meta")


# ---- the tracker


def test_a_matrix_product_by_hand() -> None:
    """What is made is booked, what ends is released, a view costs nothing."""
    allocator = Allocator()
    tracker = Tracker(allocator)
    weight = meta(1024, 1024)
    tracker.hold(weight)
    assert allocator.allocated == 4 * MIB
    with tracker:
        tracker.phase = "forward"
        x = torch.zeros(512, 1024, device="meta")  # 2 MiB
        y = x @ weight  # 2 MiB
        assert allocator.allocated == 8 * MIB
        z = y.t().reshape(-1)[:7]  # the transposed is copied, the slice is a view of the copy
        assert allocator.allocated == 10 * MIB
        del y
        assert allocator.allocated == 8 * MIB
        del z, x
    assert allocator.allocated == 4 * MIB
    assert tracker.peaks["forward"] == 10 * MIB
    assert tracker.peak_op == "aten.clone.default"
    assert sum(size for _, _, size in tracker.log) == 4 * MIB


def test_what_autograd_keeps_by_hand() -> None:
    """A square keeps its input until the backward pass; a gradient comes and stays."""
    allocator = Allocator()
    tracker = Tracker(allocator)
    weight = meta(MIB // 4).requires_grad_()  # 1 MiB
    tracker.hold(weight)
    with tracker:
        loss = (weight * 2).square().sum()
        assert allocator.allocated == 2 * MIB + 512
        loss.backward()
        assert allocator.allocated == 2 * MIB + 512  # weight, gradient, loss
        del loss
    assert allocator.allocated == 2 * MIB


def test_integers_are_computed_beside_their_shapes() -> None:
    """Masks and positions decide what code does; weights cannot."""
    tracker = Tracker(Allocator())
    mask = meta(2, 4).to(torch.int64)
    tracker.hold(mask, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))
    with tracker:
        assert not (mask == 1).all()
        assert (mask[:1] == 1).all()
        assert int(mask.sum()) == 6
        assert mask.nonzero().shape == (6, 2)
        assert int(torch.arange(5, device="meta").max()) == 4
        changed = mask.clone()
        changed[0] = 0
        assert int(changed.sum()) == 2
        with pytest.raises(DataDependent, match="weights"):
            bool(meta(3).sum() > 0)


def booked(device: str) -> tuple[Allocator, Tracker]:
    """An allocator that is told of what happens on a device."""
    allocator = Allocator()
    return allocator, Tracker(allocator, device=device)


def placed(tracker: Tracker, example: dict, device: str) -> dict:
    """A batch on a device; on meta, its values are known beside it."""
    given = {}
    for name, values in example.items():
        given[name] = values
        if isinstance(values, torch.Tensor):
            given[name] = values.clone() if device == "cpu" else torch.empty_like(values).to(device)
            tracker.hold(given[name], None if device == "cpu" else values)
    return given


def by_hand(setup: Setup, device: str) -> tuple[int, dict[str, int], int]:
    """The peak of a real or a shapes-only loop, by the same allocator, and how many are trained."""
    model = build.prepared_by_hand(setup, build.model(setup, device), device)
    optimizer = _trainers.optimizer_by_hand(setup, model)
    example = build.batch(setup, 500)
    allocator, tracker = booked(device)
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.hold(tensor)

    def phase(name: str) -> None:
        tracker.phase = name

    with tracker:
        _step.by_hand(
            setup,
            model,
            optimizer,
            lambda: placed(tracker, example, device),
            phase,
            contextlib.nullcontext,
        )
    return allocator.peak_allocated, tracker.peaks, len(build.trained(model))


class Batches:
    """A dataloader that keeps no batch."""

    def __init__(self, example: dict, count: int):
        self.example, self.count = example, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for _ in range(self.count):
            yield {
                name: values.clone() if isinstance(values, torch.Tensor) else values
                for name, values in self.example.items()
            }


def a_real_training(setup: Setup) -> tuple[int, dict[str, int], int]:
    """`trainer.train()` on the CPU: what is asked for in its steps, by the same allocator."""
    trainer = _trainers.make(setup, build.model(setup, "cpu"), "cpu")
    trainer.optimizer = None  # train() makes its own
    example = _trainers.batch(setup, trainer)
    allocator, tracker = booked("cpu")
    for tensor in (*trainer.model.parameters(), *trainer.model.buffers()):
        tracker.hold(tensor)
    step, clip, backward = (
        trainer.training_step,
        trainer._clip_grad_norm,
        trainer.accelerator.backward,
    )

    def training_step(model, inputs, items) -> torch.Tensor:
        tracker.phase = "forward"
        for values in inputs.values():
            if isinstance(values, torch.Tensor):
                tracker.hold(values)
        tracker.hold(trainer._tr_loss)
        if isinstance(items, torch.Tensor):
            tracker.hold(items)
        with tracker:
            return step(model, inputs, items)

    def noted(loss: torch.Tensor, **options) -> None:
        tracker.phase = "backward"
        backward(loss, **options)

    def clipped(model) -> torch.Tensor:
        tracker.phase = "optimizer"
        update = trainer.optimizer.optimizer.step
        if not hasattr(update, "tracked"):

            def tracked(*args, **kwargs):
                with tracker:
                    return update(*args, **kwargs)

            tracked.tracked = True
            trainer.optimizer.optimizer.step = tracked
        with tracker:
            return clip(model)

    trainer.training_step, trainer._clip_grad_norm = training_step, clipped
    trainer.accelerator.backward = noted
    trainer.args.max_steps = setup.runs // setup.accumulation
    trainer.get_train_dataloader = lambda: Batches(example, setup.runs)
    trainer.train()
    return allocator.peak_allocated, tracker.peaks, len(build.trained(trainer.model))


def as_predicted(setup: Setup) -> tuple[int, dict[str, int]]:
    """What a prediction's training asks for, as on the CPU: no GPU's kernels are put in place."""
    from course_utils.memory import _meta_patches
    from course_utils.memory._gpus import DEFAULT
    from course_utils.memory._predict import Simulation

    simulation = Simulation(DEFAULT, None, None)
    allocator, tracker = booked("meta")
    simulation.tracker = tracker
    with _trainers.undisturbed(), _meta_patches.devices_on_meta():
        trainer = _trainers.make(setup, build.model(setup, "meta"), "meta")
        example = _trainers.batch(setup, trainer)
        for tensor in (*trainer.model.parameters(), *trainer.model.buffers()):
            tracker.hold(tensor)
        simulation.prepare(trainer, as_on_gpu=False)

        def phase(name: str) -> None:
            tracker.phase = name

        with tracker:
            _step.with_trainer(
                trainer,
                lambda: placed(tracker, example, "meta"),
                phase,
                setup.runs,
                setup.accumulation,
            )
    return allocator.peak_allocated, tracker.peaks


ON_CPU = {
    "dtype": "float32",
    "attention": "eager",
    "optimizer": "adamw_torch",  # one tensor after the other, as torch does it on a CPU
    "mixed_precision": "no",
    "batch_size": 2,
    "seq_len": 128,
}


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": True, "lora_dropout": 0.0},
        {"checkpointing": "non-reentrant"},
        {"checkpointing": "reentrant"},
        {"sequences": "padded", "batch_size": 3},
        {"sequences": "packed"},
        {"accumulation": 2, "supervised_share": 0.5},
        {"keep_outputs": False},
        {"attention_mask": False},
        {"optimizer": "sgd"},
        {"optimizer": "adafactor"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_a_loop_without_values_asks_for_what_a_real_one_does(config, options) -> None:
    """To the byte: the same loop, once with real tensors on the CPU and once without values.

    AdamW's step counters are the one thing that lies elsewhere: on the CPU, also on a GPU machine.
    """
    setup = Setup(config, **{**ON_CPU, "trainer": "loop", **options})
    predicted, by_phase, count = by_hand(setup, "meta")
    real, real_by_phase, _ = by_hand(setup, "cpu")
    counters = 512 * count if setup.optimizer == "adamw_torch" else 0
    assert predicted == real - counters
    assert by_phase["weights"] == real_by_phase["weights"]
    assert 0 <= real_by_phase["optimizer"] - by_phase["optimizer"] <= counters + 4096


@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
@pytest.mark.parametrize(
    "options",
    [
        {"trainer": "sft"},
        {"trainer": "sft", "checkpointing": "none"},
        {"trainer": "sft", "supervised_share": 0.25, "sequences": "padded", "batch_size": 3},
        {"trainer": "sft", "sequences": "packed"},
        {"trainer": "sft", "lora": True, "lora_dropout": 0.0},
        {"trainer": "sft", "accumulation": 3},
        {"trainer": "trainer"},
        {"trainer": "trainer", "checkpointing": "reentrant", "lora": True, "lora_dropout": 0.0},
        {"trainer": "trainer", "accumulation": 2, "supervised_share": 0.5},
        {"trainer": "trainer", "sequences": "padded", "batch_size": 3},
        {"trainer": "dpo", "lora": True, "lora_dropout": 0.0, "supervised_share": 0.5},
        {"trainer": "dpo", "lora": True, "lora_dropout": 0.0, "checkpointing": "none"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_a_trainer_without_values_asks_for_what_a_real_one_does(config, options) -> None:
    """To the byte: a whole `trainer.train()` on the CPU, and the steps that a prediction runs."""
    setup = Setup(config, **{**ON_CPU, **options})
    predicted, by_phase = as_predicted(setup)
    real, real_by_phase, count = a_real_training(setup)
    assert predicted == real - 512 * count
    assert by_phase["weights"] == real_by_phase["weights"]


# ---- predictions


def test_the_parts_of_a_prediction_by_hand() -> None:
    """Full training in 32 bits: weights, gradients and states are p, p and 2p."""
    setup = Setup(SMALL, dtype="float32", mixed_precision="no", attention="eager", seq_len=64)
    found = predict(setup)
    parameters = catalog().bundled[SMALL].parameters * 4 / 1e6
    assert found.phases["weights"] == pytest.approx(parameters, rel=0.01)
    # At the optimizer's step: p + p + 2p, and what one weight's update takes for a moment.
    largest = 2048 * 192 * 4 / 1e6
    workspaces = 2 * GPUS["rtx4090"].workspace / 1e6
    step = 4 * parameters + workspaces
    assert step <= found.phases["optimizer"] <= step * 1.02 + 3 * largest
    assert found.peak_allocated_mb == max(found.phases.values())
    assert found.peak_reserved_mb >= found.peak_allocated_mb
    assert sum(found.at_peak.values()) == pytest.approx(found.peak_allocated_mb)
    timeline = found.timeline()
    kinds = timeline.drop(columns="phase").sum(axis=1)
    assert kinds.max() == pytest.approx(found.peak_allocated_mb)
    assert timeline["weights"].max() == pytest.approx(parameters, rel=0.01)
    states = timeline["optimizer"].max()
    assert states == pytest.approx(2 * parameters, rel=0.01)
    assert "torch" in found.versions
    assert any("RTX 4090" in line for line in found.assumptions)


@pytest.mark.parametrize(
    ("accumulation", "micro_batches"), [(4, None), (3, 9), (4, 3), (4, 1), (4, 5), (3, 8), (1, 5)]
)
def test_a_shorter_training_has_the_same_peaks(accumulation, micro_batches) -> None:
    """What is not run again would not have needed more, by the whole training's own count."""
    setup = Setup(
        LLAMA,
        dtype="float32",
        attention="eager",
        optimizer="adamw_torch",
        seq_len=64,
        accumulation=accumulation,
        micro_batches=micro_batches,
    )
    whole, by_phase, _ = by_hand(setup, "meta")
    short, by_phase_of_short, _ = by_hand(setup.shortened(), "meta")
    assert setup.shortened().runs <= setup.runs
    assert short == whole
    assert by_phase_of_short == by_phase


def test_it_is_the_same_every_time() -> None:
    """No chance in it."""
    setup = Setup(SMALL, seq_len=64, lora=True)
    first, second = predict(setup), predict(setup)
    assert first.peak_allocated_mb == second.peak_allocated_mb
    assert first.peak_reserved_mb == second.peak_reserved_mb
    assert len(first.log) == len(second.log)


OPTIONS = [
    *({"quantization": name, "lora": True} for name in QUANTIZATIONS),
    *(
        {"trainer": trainer, "quantization": name, "lora": True}
        for trainer in TRAINERS
        for name in (None, "8bit", "nf4")
    ),
    *({"trainer": "loop", "optimizer": optimizer} for optimizer in ("sgd", "paged_adamw_8bit")),
    *(
        {"attention": attention, "sequences": sequences, "checkpointing": checkpointing}
        for attention in ATTENTIONS
        for sequences in SEQUENCES
        for checkpointing in CHECKPOINTING
    ),
    {"dtype": "float32", "mixed_precision": True, "attention": "flash_attention_2"},
    {"dtype": "float32", "mixed_precision": "fp16"},
    {"dtype": "float16", "lora": True},
    {"dtype": "float16", "lora": True, "quantization": "nf4"},
    {"quantization": "nf4-double", "lora": True, "mixed_precision": "no", "attention": "eager"},
    {"quantization": "8bit", "lora": True, "trainer": "trainer", "checkpointing": "reentrant"},
    {"accumulation": 3, "supervised_share": 0.5},
    {"trainer": "loop", "micro_batches": 1},
    {"lora": True, "lora_targets": "query_key_value, dense", "lora_dropout": 0.0},
    {"peft": {"peft_type": "IA3", "task_type": "CAUSAL_LM"}},
]


@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda options: "-".join(f"{value}" for value in options.values())
)
def test_every_kind_of_setup_is_predicted(options) -> None:
    """Each value of each field, on the smallest model."""
    found = predict(Setup(SMALL, **{"seq_len": 48, "batch_size": 2, **options}))
    assert 10 < found.peak_allocated_mb < 200
    assert found.peak_reserved_mb >= found.peak_allocated_mb - 1e-6
    json.dumps(found.to_dict())


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_full_batch_is_the_collators(share: float) -> None:
    """It is made without the collator, which would take long for many examples."""
    setup = Setup(LLAMA, seq_len=40, batch_size=3, supervised_share=share)
    trainer = _trainers.make(setup, build.model(setup, "cpu"), "cpu")
    made = _trainers.batch(setup, trainer)
    collated = trainer.data_collator(build.examples(setup, 500))
    assert made.keys() == collated.keys()
    assert torch.equal(made["attention_mask"], collated["attention_mask"])
    assert torch.equal(made["labels"] == -100, collated["labels"] == -100)


def test_every_optimizer_of_the_trainer_is_predicted_or_refused() -> None:
    """By its name; what is missing is named."""
    from transformers.training_args import OptimizerNames

    predicted, reasons = set(), {}
    for name in OptimizerNames:
        try:
            setup = Setup(SMALL, seq_len=32, optimizer=name.value)
            assert predict(setup).peak_allocated_mb > 10
            predicted.add(name.value)
        except (ImpossibleSetup, NotTrainable) as error:
            reasons[name.value] = str(error)
    why = re.compile("cannot be predicted|nstall|need")
    assert all(why.search(reason) for reason in reasons.values()), reasons
    assert predicted >= {
        *("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop"),
        *("adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "ademamix_8bit"),
        *("paged_ademamix_8bit",),
    }


@pytest.mark.parametrize("name", ["t4", "rtx4090", "h100"])
def test_a_gpu_decides_about_kernels(name: str) -> None:
    """A T4 has no flash kernel, a Hopper larger workspaces."""
    found = predict(Setup(SMALL, seq_len=256, dtype="float16"), gpu(name))
    assert found.at_peak["workspaces"] == pytest.approx(2 * GPUS[name].workspace / 1e6, rel=0.03)


def test_which_attention_kernel() -> None:
    """As PyTorch chooses: by dtype, heads, mask and GPU."""

    def kernel(name: str, dtype=torch.bfloat16, heads=4, mask=None, grouped=False, width=64) -> str:
        query, key = meta(1, 4, 8, width, dtype=dtype), meta(1, heads, 8, width, dtype=dtype)
        return cuda.attention_kernel(GPUS[name], query, key, key, mask, grouped)

    assert kernel("rtx4090") == "flash"
    assert kernel("rtx4090", torch.float32) == "efficient"
    assert kernel("rtx4090", mask=meta(8, 8)) == "efficient"
    assert kernel("rtx4090", heads=1) == "math"
    assert kernel("rtx4090", heads=1, grouped=True) == "flash"
    assert kernel("rtx4090", torch.float32, heads=1, grouped=True) == "math"
    assert kernel("rtx4090", width=224) == "efficient"
    assert kernel("a100-80gb", width=224) == "flash"
    assert kernel("rtx4090", mask=meta(8, 8), width=20) == "math"
    assert kernel("t4") == "math"  # bfloat16 is not for it
    assert kernel("t4", torch.float16) == "efficient"
    assert kernel("h100") == "cudnn"


def test_what_the_libraries_cannot_train_is_refused() -> None:
    """As on a GPU: Falcon adds to the output of an int8 layer in place, which autograd forbids.

    The first half is bitsandbytes' own function on the CPU, which has the same view in it.
    """
    import bitsandbytes as bnb

    layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0).eval()
    weight = bnb.nn.Int8Params(torch.randn(32, 64), requires_grad=False, has_fp16_weights=False)
    layer.weight = weight.to("cpu")
    out = layer(torch.randn(1, 5, 64, requires_grad=True))
    with pytest.raises(RuntimeError, match="modified inplace"):
        out += 1
    falcon = Setup("tiiuae/falcon-7b", quantization="8bit", lora=True, seq_len=64)
    with pytest.raises(NotTrainable, match="view"):
        predict(falcon)
    assert predict(falcon.replace(lora_targets="all-linear")).peak_allocated_mb > 7000
    assert predict(
        falcon.replace(attention="flash_attention_2", quantization="nf4")
    ).peak_allocated_mb


def test_nothing_of_a_prediction_stays() -> None:
    """What transformers found in place of flash_attn and of a GPU is gone afterwards."""
    import sys

    import transformers.modeling_flash_attention_utils as flash

    before = {name: value for name, value in vars(flash).items() if name.startswith("_flash")}
    loaded, autocast = flash._loaded_implementation, torch.autocast
    predict(Setup(SMALL, seq_len=64, attention="flash_attention_2", mixed_precision=True))
    after = {name: value for name, value in vars(flash).items() if name.startswith("_flash")}
    assert after == before
    assert flash._loaded_implementation == loaded
    assert torch.autocast is autocast
    assert getattr(sys.modules.get("flash_attn"), "flash_attn_func", None) is not (
        cuda.flash_attn_func
    )
    with pytest.raises(RuntimeError):
        torch.is_autocast_enabled("meta")


def test_what_makes_a_training_smaller() -> None:
    """The order that notebook 05 teaches."""
    opt = Setup("facebook/opt-350m", seq_len=1024, attention="eager", optimizer="adamw_torch")
    base = opt.replace(trainer="trainer")

    def size(**options) -> float:
        return predict(base.replace(**options)).peak_allocated_mb

    plain = size()
    assert size(attention="sdpa") < plain
    assert size(checkpointing="non-reentrant") < plain
    assert size(lora=True) < plain
    assert size(optimizer="adamw_bnb_8bit") < size(optimizer="adamw_torch_fused") < 1.001 * plain
    assert size(batch_size=2) > 1.3 * plain
    # Ten times the length is more than ten times the activations, unless attention is fused.
    for attention, least, most in (("eager", 25, 100), ("sdpa", 9, 11)):
        short, long = (
            predict(base.replace(lora=True, attention=attention, seq_len=length)).at_peak[
                "activations"
            ]
            for length in (200, 2000)
        )
        assert least < long / short < most


def test_a_full_gpu() -> None:
    """More than there is room for is an error, which says how much."""
    setup = Setup(SMALL, seq_len=64)
    need = predict(setup).peak_reserved_mb
    assert predict(setup, capacity=int(need * 1e6)).peak_reserved_mb <= need
    with pytest.raises(OutOfMemory, match="do not fit"):
        predict(setup, capacity=20 * MIB)
    # What was patched for the prediction is as it was.
    assert not torch.is_autocast_enabled("cuda")
    assert torch.optim.AdamW([torch.zeros(1)]).defaults["fused"] is None
    assert predict(setup).peak_reserved_mb == need


# ---- what an expert would say


MIXTRAL = {"model_type": "mixtral", **WIDTHS}


@pytest.mark.parametrize(
    ("config", "options", "gpu_name", "said"),
    [
        (LLAMA, {"dtype": "float16", "attention": "sdpa"}, "t4", "math kernel on a T4"),
        (LLAMA, {}, "t4", "only emulates bfloat16"),
        (
            MIXTRAL,
            {"quantization": "nf4", "lora_dropout": 0.0, "lora_targets": "all-linear"},
            "a100-80gb",
            "fused experts",
        ),
    ],
)
def test_it_warns(config, options, gpu_name, said) -> None:
    """With the way out; and not where there is nothing to warn of."""
    setup = Setup(config, seq_len=64, **{"lora": True, **options})
    assert any(said in warning for warning in predict(setup, gpu_name).warnings)
    assert predict(Setup(LLAMA, seq_len=64, lora=True), "a100-80gb").warnings == []
    heads = {**LLAMA, "num_key_value_heads": LLAMA["num_attention_heads"]}
    fine = Setup(heads, seq_len=64, lora=True, dtype="float16", attention="sdpa")
    assert predict(fine, "t4").warnings == []


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ({"model_type": "gemma2", **WIDTHS}, {"attention": "sdpa"}, 'attention="auto"'),
        (MIXTRAL, {"lora": True, "lora_targets": "all-linear"}, r"lora_dropout=0\.0"),
    ],
)
def test_a_refusal_names_the_way_out(config, options, said) -> None:
    """What transformers has instead, and what peft asks for."""
    with pytest.raises(NotTrainable, match=said):
        predict(Setup(config, seq_len=64, **options))


def test_the_tile_of_the_fused_head_by_hand() -> None:
    """The largest request is a tile of TRL's own sizes, and only supervised tokens make rows."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    words, tokens = 40_000, 2 * 255
    config = {**LLAMA, "vocab_size": words}
    for share in (1.0, 0.25):
        setup = Setup(config, lora=True, batch_size=2, seq_len=256, supervised_share=share)
        found = predict(setup, "a100-80gb")
        rows = min(chunked_logprob.TOKEN_CHUNK_SIZE, tokens if share == 1 else 2 * 64)
        tile = rows * utils._CHUNKED_LOGPROB_CHUNK_SIZE * 2
        # A block is given whole where less than 1 MiB of it would be left.
        assert any(tile <= size <= tile + MIB for _, _, size in found.log)
        whole = 2 * 256 * words * 4
        assert max(size for phase, _, size in found.log if phase != "weights") < whole


def test_the_kernels_of_the_fused_head_allocate_nothing() -> None:
    """Read in TRL's source: they load and store through `tl`, and call nothing of torch."""
    import ast
    import inspect

    from trl.kernels import chunked_logprob

    tree = ast.parse(inspect.getsource(chunked_logprob))
    kernels = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(getattr(mark, "id", "") == "_jit" for mark in node.decorator_list)
    ]
    assert {node.name for node in kernels} == {"_transform", "_forward_kernel", "_backward_kernel"}
    for node in kernels:
        used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        assert "torch" not in used
        calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
        for call in calls:
            owner = call.value.id if isinstance(getattr(call, "value", None), ast.Name) else None
            assert (
                owner == "tl"
                or isinstance(call, ast.Attribute)
                or call.id
                in {
                    "_transform",
                    "range",
                    "float",
                }
            )
    # What stands for them and for `_addmm_fp32` takes the same arguments.
    assert list(inspect.signature(chunked_logprob._addmm_fp32).parameters) == ["acc", "a", "b"]


def test_the_package_shows_what_it_has_and_costs_nothing_to_import() -> None:
    """Names are imported when they are asked for; torch is not needed to choose a GPU."""
    import subprocess
    import sys

    import course_utils.memory as memory

    assert {"Setup", "predict", "measure", "grid", "fit", "formulas"} <= set(dir(memory))
    assert all(getattr(memory, name) is not None for name in dir(memory))
    program = "import sys, course_utils.memory as m; m.gpu('t4'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        memory.nothing  # noqa: B018


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seq_len": -1}, ImpossibleSetup, "seq_len is -1"),
        ({"seq_len": 0}, ImpossibleSetup, "from 1 to"),
        ({"batch_size": 0}, ImpossibleSetup, "batch_size"),
        ({"batch_size": 1.5}, ImpossibleSetup, "whole number"),
        ({"accumulation": True}, ImpossibleSetup, "whole number"),
        ({"micro_batches": 0}, ImpossibleSetup, "micro_batches"),
        ({"lora_rank": 0}, ImpossibleSetup, "lora_rank"),
        ({"lora_dropout": 1.0}, ImpossibleSetup, "lora_dropout"),
        ({"quantization": "nf4"}, ImpossibleSetup, "lora=True"),
        ({"quantization": "8bit"}, ImpossibleSetup, "lora=True"),
        (
            {
                "dtype": "float32",
                "attention": "flash_attention_2",
                "mixed_precision": "no",
                "seq_len": 64,
            },
            ImpossibleSetup,
            'mixed_precision="bf16"',
        ),
        ({"dtype": "float16", "mixed_precision": True}, ImpossibleSetup, "gradient scaler"),
        (
            {"dtype": "float16", "mixed_precision": True, "lora": True, "quantization": "nf4"},
            ImpossibleSetup,
            "in bfloat16",
        ),
        ({"seq_len": 4096}, ImpossibleSetup, "256 positions"),
        ({"sequences": "packed", "seq_len": 1}, ImpossibleSetup, "two tokens"),
        ({"quantization": "4-bit"}, UnknownName, "quantization"),
        ({"attention": "flash"}, UnknownName, "flash_attention_2"),
        ({"optimizer": "adamw"}, UnknownName, "adamw_torch"),
        ({"checkpointing": "yes"}, UnknownName, "non-reentrant"),
        ({"model": "facebook/opt-350"}, UnknownName, "facebook/opt-350m"),
        ({"model": "nothing"}, UnknownName, "config.json"),
    ],
)
def test_bad_setups_are_refused(options, error, said) -> None:
    """When they are made, with the reason."""
    with pytest.raises(error, match=said):
        Setup(**{"model": SMALL, **options})


def test_models_from_a_folder_or_a_configuration(tmp_path: Path) -> None:
    """Any decoder that transformers has; nothing that brings code of its own."""
    from transformers import LlamaConfig

    (tmp_path / "config.json").write_text(
        json.dumps({**LLAMA, "quantization_config": {"bits": 4}, "torch_dtype": "float16"})
    )
    by_folder = predict(Setup(str(tmp_path), seq_len=32))
    by_dictionary = predict(Setup(LLAMA, seq_len=32))
    by_config = predict(Setup(LlamaConfig(**LLAMA), seq_len=32))
    assert by_folder.peak_allocated_mb == by_dictionary.peak_allocated_mb
    assert by_folder.peak_allocated_mb == by_config.peak_allocated_mb
    setup = Setup(LlamaConfig(**LLAMA), seq_len=32)
    assert Setup(**json.loads(json.dumps(setup.to_dict()))) == setup
    assert "a llama" in str(setup)
    with pytest.raises(ImpossibleSetup, match="auto_map"):
        Setup({**LLAMA, "auto_map": {"AutoConfig": "evil.Evil"}})
    with pytest.raises(ImpossibleSetup, match="no decoder"):
        Setup({"model_type": "vit"})
    with pytest.raises(ImpossibleSetup, match="does not have"):
        Setup({"model_type": "from-the-future"})
    with pytest.raises(ImpossibleSetup, match="model_type"):
        Setup({"hidden_size": 4})


@pytest.mark.parametrize(
    "kind",
    ["gpt2", "gemma3_text", "mistral", "qwen3", "phi", "olmo2", "granite", "starcoder2", "mixtral"],
)
def test_decoders_of_other_kinds(kind: str) -> None:
    """No formula a model: whatever transformers can build is followed, experts too."""
    config = {"model_type": kind, **WIDTHS}
    if kind == "gpt2":
        config = {"model_type": kind, "n_embd": 128, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
    setup = Setup(config, seq_len=128, batch_size=2)
    assert 20 < predict(setup).peak_allocated_mb < 100
    if kind != "mixtral":  # peft has no 4-bit experts
        tuned = setup.replace(quantization="nf4", lora=True, lora_targets="all-linear")
        assert 20 < predict(tuned.replace(checkpointing="non-reentrant")).peak_allocated_mb < 100


def test_a_model_without_an_attention_is_refused() -> None:
    """With what transformers says of it."""
    bloom = {"model_type": "bloom", "hidden_size": 128, "n_layer": 2, "n_head": 4}
    with pytest.raises(NotTrainable, match="scaled_dot_product_attention"):
        predict(Setup(bloom, seq_len=64, attention="sdpa"))
    assert predict(Setup(bloom, seq_len=64)).peak_allocated_mb > 20
    with pytest.raises(ImpossibleSetup, match="no FlashAttention"):
        predict(Setup(bloom, seq_len=64, attention="flash_attention_2"))


def test_a_configuration_from_the_hub(tiny_folder: Path, hub_server: HubStandIn) -> None:
    """A decoder that the catalogue does not know: its config is fetched, its weights are not."""
    hub_server.repositories["someone/tiny"] = Repository(tiny_folder)
    setup = Setup("someone/tiny", seq_len=64)
    assert setup.config().num_hidden_layers == 2
    assert predict(setup).peak_allocated_mb > 1
    asked = hub_server.requests
    assert any("config.json" in path for path in asked)
    assert not any("/model.safetensors" in path for path in asked)
    with pytest.raises(UnknownName, match="someone/else"):
        Setup("someone/else")


def test_unknown_gpu() -> None:
    """Named, with those that are known."""
    assert gpu("RTX 4090").memory_mib == 24564
    with pytest.raises(UnknownName, match="t4"):
        gpu("t5")


# ---- the shell


def test_predict_from_the_shell(capsys: pytest.CaptureFixture) -> None:
    """The JSON keys that other programs read."""
    command = ["memory", "predict", "--model", SMALL, "--seq-len", "64", "--json", "--lora"]
    assert main([*command, "--lora-rank", "4", "--checkpointing", "--optimizer", "sgd"]) == 0
    told = json.loads(capsys.readouterr().out)
    keys = {"peak_allocated_mb", "peak_reserved_mb", "phases", "peak_op", "assumptions", "versions"}
    assert keys <= set(told)
    assert told["setup"]["checkpointing"] == "non-reentrant"
    assert told["setup"]["lora_rank"] == 4
    assert main(["memory", "predict", "--model", SMALL, "--seq-len", "64"]) == 0
    shown = capsys.readouterr().out
    assert "peak allocated" in shown
    assert "at the peak" in shown
    assert main(["memory", "predict", "--model", SMALL, "--seq-len", "-3"]) == 1
    assert "seq_len is -3" in capsys.readouterr().err


def test_a_gpu_without_bfloat16_gets_float16(capsys: pytest.CaptureFixture) -> None:
    """Unless one asks for the other."""
    command = ["memory", "predict", "--model", SMALL, "--seq-len", "64", "--gpu", "t4", "--json"]
    main(command)
    assert json.loads(capsys.readouterr().out)["setup"]["dtype"] == "float16"
    main([*command, "--dtype", "bfloat16"])
    assert json.loads(capsys.readouterr().out)["setup"]["dtype"] == "bfloat16"
