"""Several GPUs: the wrappers without values against two real processes, and bad input."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from test_memory_predict import LLAMA, ON_CPU, booked, placed
from torch import distributed

from course_utils.errors import ImpossibleSetup, NotPredictable, UnknownName
from course_utils.memory import Setup, _meta_patches, _ranks, _step, _trainers, measure, predict
from course_utils.memory import _build as build

TWO = {**ON_CPU, "devices": 2}
UNEVEN = {**LLAMA, "vocab_size": 501, "intermediate_size": 161}
ADAPTER = {"lora": True, "lora_dropout": 0.0}
TRAININGS = {
    "fsdp2": Setup(LLAMA, **TWO, trainer="loop", strategy="fsdp2"),
    "fsdp2, uneven shards": Setup(UNEVEN, **TWO, trainer="loop", strategy="fsdp2"),
    "fsdp2, tied embeddings": Setup(
        {**LLAMA, "tie_word_embeddings": True}, **TWO, trainer="loop", strategy="fsdp2"
    ),
    "fsdp2, LoRA": Setup(LLAMA, **TWO, **ADAPTER, trainer="loop", strategy="fsdp2"),
    "fsdp2, LoRA on bfloat16": Setup(
        LLAMA, **{**TWO, "dtype": "bfloat16"}, **ADAPTER, trainer="loop", strategy="fsdp2"
    ),
    "fsdp2, mixed precision": Setup(
        LLAMA, **{**TWO, "mixed_precision": "bf16"}, trainer="loop", strategy="fsdp2"
    ),
    "fsdp2, checkpointing": Setup(
        LLAMA, **TWO, trainer="loop", strategy="fsdp2", checkpointing="non-reentrant"
    ),
    "fsdp2, accumulation": Setup(LLAMA, **TWO, trainer="loop", strategy="fsdp2", accumulation=2),
    "fsdp2, Trainer": Setup(LLAMA, **TWO, trainer="trainer", strategy="fsdp2"),
    "fsdp2, SFTTrainer": Setup(LLAMA, **TWO, trainer="sft", strategy="fsdp2"),
    "ddp": Setup(LLAMA, **TWO, trainer="loop", strategy="ddp"),
    "ddp, LoRA": Setup(LLAMA, **TWO, **ADAPTER, trainer="loop", strategy="ddp"),
    "ddp, accumulation": Setup(LLAMA, **TWO, trainer="loop", strategy="ddp", accumulation=2),
    "ddp, Trainer": Setup(LLAMA, **TWO, trainer="trainer", strategy="ddp"),
}


def trained(setup: Setup, device: str, wrapped) -> tuple[dict[str, int], int]:
    """The peaks of a training, by phase, and how many parameters it has to train.

    Args:
        setup: what is trained.
        device: "cpu", or "meta" for a training without values.
        wrapped: a context with the wrapped model, from the setup, the model and the tracker.
    """
    _, tracker = booked(device)
    trainer = None
    with _trainers.undisturbed():
        model = build.model(setup, device)
        if setup.trainer == "loop":
            model = build.prepared_by_hand(setup, model, device)
            example = build.batch(setup, setup.vocabulary)
        else:
            with _meta_patches.devices_on_meta() if device == "meta" else contextlib.nullcontext():
                trainer = _trainers.make(setup, model, device)
            model, example = trainer.model, _trainers.batch(setup, trainer)

        def phase(name: str) -> None:
            tracker.phase = name

        def batch() -> dict:
            return placed(tracker, example, device)

        with wrapped(setup, model, tracker) as wrapper:
            if trainer is None:
                optimizer = _trainers.optimizer_by_hand(setup, model)
            else:
                _trainers.new_optimizer(trainer)
                trainer.model_wrapped = wrapper
                for name in ("gather", "gather_for_metrics"):
                    setattr(trainer.accelerator, name, lambda value: value)
            for tensor in (*model.parameters(), *model.buffers()):
                tracker.hold(getattr(tensor, "_local_tensor", tensor))
            with tracker:
                if trainer is None:
                    _step.by_hand(setup, wrapper, optimizer, batch, phase, contextlib.nullcontext)
                else:
                    count = setup.accumulation
                    _step.with_trainer(trainer, batch, phase, setup.runs, count)
    return tracker.peaks, len(build.trained(model))


@contextlib.contextmanager
def without_values(setup, model, tracker):
    """As in a prediction."""
    with _meta_patches.devices_on_meta(), _ranks.wrapped(setup, model, tracker, {}) as wrapper:
        yield wrapper


def unrecorded(tracker, function):
    """A function whose requests are not recorded: gloo copies what NCCL does not."""

    def called(*args, **kwargs):
        with tracker.paused():
            return function(*args, **kwargs)

    return called


@contextlib.contextmanager
def really(setup, model, tracker, rank: int, place: str):
    """Wrapped as a rank of two processes that send their tensors by gloo."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as collectives
    from torch.nn.parallel import DistributedDataParallel
    from torch.nn.parallel import distributed as ddp

    distributed.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=setup.devices
    )
    changes = [
        (kind, "__call__")
        for kind in (collectives.DefaultAllGather, collectives.DefaultReduceScatter)
    ]
    changes += [(ddp, "_verify_param_shape_across_processes"), (ddp, "_sync_module_states")]
    changes += [(DistributedDataParallel, "_sync_buffers")]
    with contextlib.ExitStack() as patched:
        for target, name in changes:
            quiet = unrecorded(tracker, getattr(target, name))
            patched.enter_context(mock.patch.object(target, name, quiet))
        patched.enter_context(_ranks.sharded_tensors(tracker))
        if setup.strategy == "ddp":
            with tracker:
                wrapper = DistributedDataParallel(model)
        else:
            patched.enter_context(_ranks.storages_recorded(tracker))
            wrapper = _ranks.sharded(setup, model)
        yield wrapper
    distributed.destroy_process_group()


def a_rank(rank: int, folder: str) -> None:
    """One of two processes: trains everything, the first of them writes its peaks."""
    torch.set_num_threads(1)
    told = {}
    for number, (name, setup) in enumerate(TRAININGS.items()):
        place = f"{folder}/meet-{number}"
        told[name] = trained(
            setup, "cpu", lambda *given, place=place: really(*given, rank=rank, place=place)
        )
    if rank == 0:
        Path(folder, "peaks.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[str, tuple[dict[str, int], int]]:
    """The peaks of all trainings in two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(a_rank, args=(str(folder),), nprocs=2)
    return json.loads((folder / "peaks.json").read_text())


@pytest.mark.parametrize("name", list(TRAININGS))
def test_a_rank_without_values_asks_for_what_a_real_one_does(name, real) -> None:
    """To the byte, in each phase: AdamW's step counters lie elsewhere, as with one GPU."""
    predicted, count = trained(TRAININGS[name], "meta", without_values)
    peaks, real_count = real[name]
    assert count == real_count
    assert predicted["weights"] == peaks["weights"]
    for phase in ("forward", "backward"):
        assert predicted[phase] == peaks[phase] - 512 * count
    assert 0 <= peaks["optimizer"] - predicted["optimizer"] <= 512 * count + 4096


# ---- predictions


WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4}


def wide(**options) -> Setup:
    """Wide enough that weights matter."""
    usual = {"trainer": "loop", "dtype": "bfloat16", "mixed_precision": "no", "seq_len": 32}
    return Setup(WIDE, **{**usual, **options})


def test_shards_by_hand() -> None:
    """Four GPUs have a fourth of the weights each; what is gathered comes on top."""
    whole, shard = predict(wide()), predict(wide(devices=4, strategy="fsdp2"))
    assert shard.phases["weights"] == pytest.approx(whole.phases["weights"] / 4, rel=0.02)
    assert shard.peak_allocated_mb < whole.peak_allocated_mb
    assert any("first of 4 GPUs" in line for line in shard.assumptions)


def test_a_copy_of_all_gradients_with_ddp() -> None:
    """DDP's buckets hold each gradient once more, and no fewer with more GPUs."""
    whole, two, eight = (
        predict(wide()),
        predict(wide(devices=2, strategy="ddp")),
        predict(wide(devices=8, strategy="ddp")),
    )
    buckets = two.phases["weights"] - whole.phases["weights"]
    assert buckets == pytest.approx(whole.phases["weights"], rel=0.02)
    assert two.peak_allocated_mb == eight.peak_allocated_mb


def test_gradients_stay_whole_while_they_accumulate() -> None:
    """FSDP2 reduces only those of a step's last micro-batch: until then each GPU has all."""
    one, two = (predict(wide(devices=8, strategy="fsdp2", accumulation=count)) for count in (1, 2))
    whole = predict(wide()).phases["weights"]
    assert two.peak_allocated_mb - one.peak_allocated_mb > 0.5 * whole


def test_offloaded_shards_leave_the_gpu() -> None:
    """Between the steps nothing of the model is there; layers come and go."""
    options = {"devices": 4, "strategy": "fsdp2"}
    here, away = predict(wide(**options)), predict(wide(**options, offload="all"))
    assert away.phases["weights"] < 0.01 < here.phases["weights"]
    assert away.phases["optimizer"] == 0
    assert away.peak_allocated_mb < here.peak_allocated_mb


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_nf4_with_an_adapter(strategy) -> None:
    """FSDP2 shards the codes; each GPU keeps the scales."""
    options = {"quantization": "nf4", "lora": True, "devices": 4}
    one = predict(wide(**{**options, "devices": 1}))
    found = predict(wide(**options, strategy=strategy))
    assert (found.phases["weights"] < 0.6 * one.phases["weights"]) == (strategy == "fsdp2")


def test_nothing_is_left_behind() -> None:
    """No process group, and one GPU is predicted as before."""
    before = predict(wide()).to_dict()
    predict(wide(devices=2, strategy="fsdp2"))
    assert not distributed.is_initialized()
    after = predict(wide()).to_dict()
    assert before | {"seconds": 0} == after | {"seconds": 0}


# ---- bad input


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"devices": 0}, ImpossibleSetup, "devices"),
        ({"devices": -8, "strategy": "ddp"}, ImpossibleSetup, "devices"),
        ({"devices": 2.5, "strategy": "ddp"}, ImpossibleSetup, "devices"),
        ({"devices": 8}, ImpossibleSetup, "8 devices need a strategy: one of ddp, fsdp2"),
        ({"devices": 8, "strategy": "fsdp"}, UnknownName, "fsdp2"),
        ({"offload": "all"}, ImpossibleSetup, "without a strategy"),
        ({"devices": 2, "strategy": "ddp", "offload": "all"}, ImpossibleSetup, "ddp offloads"),
        ({"devices": 2, "strategy": "fsdp2", "offload": "cpu"}, UnknownName, "all"),
        (
            {"devices": 2, "strategy": "fsdp2", "quantization": "8bit", "lora": True},
            ImpossibleSetup,
            "8 bits",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(options, error, said) -> None:
    """On creation, with what to do."""
    with pytest.raises(error, match=said):
        Setup(LLAMA, **options)


def test_one_gpu_is_stored_as_before() -> None:
    """Stored setups of one GPU have no fields about several."""
    one = Setup(LLAMA, seq_len=16)
    assert not {"devices", "strategy", "offload"} & set(one.to_dict())
    several = Setup(LLAMA, seq_len=16, devices=2, strategy="fsdp2", offload="all")
    assert Setup(**several.to_dict()) == several
    assert Setup(**one.to_dict()) == one


def test_a_real_group_is_not_replaced(tmp_path) -> None:
    """A process that belongs to one already says so."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        with pytest.raises(NotPredictable, match="group of processes already"):
            predict(wide(devices=2, strategy="ddp"))
    finally:
        distributed.destroy_process_group()


def test_measuring_is_for_one_gpu() -> None:
    """Before it looks for a GPU."""
    with pytest.raises(ImpossibleSetup, match="one GPU"):
        measure(Setup(LLAMA, seq_len=16, devices=2, strategy="ddp"))
