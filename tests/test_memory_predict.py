"""The predictor: hand-worked cases, real trainings on the CPU, every kind of setup, bad input."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hub_stand_in import HubStandIn, Repository

from course_utils.__main__ import main
from course_utils.catalog import catalog
from course_utils.errors import ImpossibleSetup, NotTrainable, UnknownName
from course_utils.memory import build, cuda
from course_utils.memory.allocator import MIB, Allocator, OutOfMemory
from course_utils.memory.gpus import GPUS, gpu
from course_utils.memory.predict import predict
from course_utils.memory.setup import (
    ATTENTIONS,
    CHECKPOINTING,
    OPTIMIZERS,
    SEQUENCES,
    WEIGHTS,
    Setup,
)
from course_utils.memory.step import train
from course_utils.memory.tracker import DataDependent, Tracker

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


def peaks(setup: Setup, device: str) -> tuple[int, dict[str, int], list[int]]:
    """The peak of a real or a shapes-only training, by the same allocator."""
    model = build.model(setup, device)
    parameters = build.trained(model)
    optimizer = build.optimizer(setup, parameters, device)
    example = build.batch(setup, 500)
    allocator = Allocator()
    tracker = Tracker(allocator, device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        tracker.hold(tensor)

    def batch() -> dict[str, torch.Tensor]:
        given = {}
        for name, values in example.items():
            given[name] = values.clone() if device == "cpu" else torch.empty_like(values).to(device)
            tracker.hold(given[name], None if device == "cpu" else values)
        return given

    def phase(name: str) -> None:
        tracker.phase = name

    with tracker:
        train(setup, model, optimizer, parameters, batch, phase, contextlib.nullcontext)
    return allocator.peak_allocated, tracker.peaks, [p.numel() for p in parameters]


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
        {"accumulation": 2, "prompt_masked": True},
        {"loop": "handwritten"},
        {"optimizer": "sgd"},
        {"optimizer": "adafactor"},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)
def test_a_training_without_values_asks_for_what_a_real_one_does(config, options) -> None:
    """To the byte: the same loop, once with real tensors on the CPU and once without values.

    AdamW's step counters are the one thing that lies elsewhere: on the CPU, also on a GPU machine.
    """
    setup = Setup(
        config,
        **{
            "weights": "32-bit",
            "attention": "eager",
            "optimizer": "adam_loop",
            "batch_size": 2,
            "seq_len": 128,
            **options,
        },
    )
    predicted, by_phase, sizes = peaks(setup, "meta")
    real, real_by_phase, _ = peaks(setup, "cpu")
    counters = 512 * len(sizes) if setup.optimizer == "adam_loop" else 0
    assert predicted == real - counters
    assert by_phase["weights"] == real_by_phase["weights"]
    assert 0 <= real_by_phase["optimizer"] - by_phase["optimizer"] <= counters + 4096


# ---- predictions


def test_the_parts_of_a_prediction_by_hand() -> None:
    """Full training in 32 bits: weights, gradients and states are p, p and 2p."""
    setup = Setup(SMALL, weights="32-bit", optimizer="adam_loop", attention="eager", seq_len=64)
    found = predict(setup)
    parameters = catalog().own[SMALL].parameters * 4 / 1e6
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
        weights="32-bit",
        attention="eager",
        optimizer="adam_loop",
        seq_len=64,
        accumulation=accumulation,
        micro_batches=micro_batches,
    )
    whole, by_phase, _ = peaks(setup, "meta")
    short, by_phase_of_short, _ = peaks(setup.shortened(), "meta")
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
    *({"weights": weights, "lora": True} for weights in WEIGHTS),
    *({"optimizer": optimizer} for optimizer in OPTIMIZERS),
    *(
        {"attention": attention, "sequences": sequences, "checkpointing": checkpointing}
        for attention in ATTENTIONS
        for sequences in SEQUENCES
        for checkpointing in CHECKPOINTING
    ),
    {"weights": "32-bit", "mixed_precision": True, "attention": "flash_attention_2"},
    {"weights": "32-bit", "mixed_precision": True, "dtype": "float16"},
    {"weights": "nf4-double", "lora": True, "mixed_precision": True, "attention": "eager"},
    {"weights": "8-bit", "lora": True, "mixed_precision": True, "checkpointing": "reentrant"},
    {"accumulation": 3, "prompt_masked": True},
    {"loop": "handwritten", "micro_batches": 1},
    {"lora": True, "lora_targets": "query_key_value, dense", "lora_dropout": 0.0},
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
    falcon = Setup("tiiuae/falcon-7b", weights="8-bit", lora=True, seq_len=64)
    with pytest.raises(NotTrainable, match="view"):
        predict(falcon)
    assert predict(falcon.but(lora_targets="all-linear")).peak_allocated_mb > 7000
    assert predict(falcon.but(attention="flash_attention_2", weights="nf4")).peak_allocated_mb


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
    base = Setup("facebook/opt-350m", seq_len=1024, attention="eager", optimizer="adam")

    def size(**options) -> float:
        return predict(base.but(**options)).peak_allocated_mb

    plain = size()
    assert size(attention="sdpa") < plain
    assert size(checkpointing="non-reentrant") < plain
    assert size(lora=True) < plain
    assert size(optimizer="adam_8bit") < size(optimizer="adam_fused") < 1.001 * plain
    assert size(batch_size=2) > 1.3 * plain
    # Ten times the length is more than ten times the activations, unless attention is fused.
    for attention, least, most in (("eager", 25, 100), ("sdpa", 9, 11)):
        short, long = (
            predict(base.but(lora=True, attention=attention, seq_len=length)).at_peak["activations"]
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
        ({"weights": "nf4"}, ImpossibleSetup, "lora=True"),
        ({"weights": "8-bit"}, ImpossibleSetup, "lora=True"),
        (
            {"weights": "32-bit", "attention": "flash_attention_2"},
            ImpossibleSetup,
            "mixed_precision=True",
        ),
        ({"dtype": "float16", "mixed_precision": True}, ImpossibleSetup, "gradient scaler"),
        ({"seq_len": 4096}, ImpossibleSetup, "256 positions"),
        ({"sequences": "packed", "seq_len": 1}, ImpossibleSetup, "two tokens"),
        ({"weights": "4-bit"}, UnknownName, "16-bit"),
        ({"attention": "flash"}, UnknownName, "flash_attention_2"),
        ({"optimizer": "adamw"}, UnknownName, "adam"),
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
        tuned = setup.but(weights="nf4", lora=True, lora_targets="all-linear")
        assert 20 < predict(tuned.but(checkpointing="non-reentrant")).peak_allocated_mb < 100


def test_a_model_without_an_attention_is_refused() -> None:
    """With what transformers says of it."""
    bloom = {"model_type": "bloom", "hidden_size": 128, "n_layer": 2, "n_head": 4}
    with pytest.raises(NotTrainable, match="scaled_dot_product_attention"):
        predict(Setup(bloom, seq_len=64))
    assert predict(Setup(bloom, seq_len=64, attention="eager")).peak_allocated_mb > 20
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
    assert main([*command, "--lora-rank", "4", "--checkpointing", "--optimizer", "adam_8bit"]) == 0
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
