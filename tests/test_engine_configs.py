"""The files in `configs/`: read by the programs that they are for, or held against a schema."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import ROOT
from trl import ModelConfig, SFTConfig, TrlParser

CONFIGS = ROOT / "configs"
ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
TRAININGS = sorted((CONFIGS / "finetune").glob("*.yaml"))
SBATCH = sorted((CONFIGS / "slurm").glob("*.sbatch"))
ENGINES = {
    "one": "NO",
    "ddp": "MULTI_GPU",
    "fsdp2_full": "FSDP",
    "fsdp2_qlora": "FSDP",
    "zero1": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "zero3_offload": "DEEPSPEED",
    "context_parallel": "FSDP",
}
# Options of `sbatch` that the files use, each with the form of its value, from its manual page.
SBATCH_OPTIONS = {
    "job-name": r"\S+",
    "nodes": r"\d+(-\d+)?",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"([a-z0-9]+:)?\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]?",
    "time": r"(\d+-)?\d+(:\d\d){0,2}",
    "requeue": "",
    "open-mode": "append|truncate",
    "output": r"\S+",
    "signal": r"(R|B|RB)?:?[A-Z0-9]+(@\d+)?",
}
# What the fields of a SkyPilot task are, from its reference of the YAML; only those in use.
SKYPILOT = {
    "type": "object",
    "required": ["resources", "run"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
        "workdir": {"type": "string"},
        "num_nodes": {"type": "integer", "minimum": 1},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "accelerators": {"type": "string", "pattern": r"^[A-Za-z0-9-]+:\d+$"},
                "use_spot": {"type": "boolean"},
                "disk_size": {"type": "integer", "minimum": 1},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "strategy": {"enum": ["EAGER_NEXT_REGION", "FAILOVER"]},
                        "max_restarts_on_errors": {"type": "integer", "minimum": 0},
                    },
                },
            },
        },
        "file_mounts": {
            "type": "object",
            "patternProperties": {
                "^/": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "mode": {"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
                    },
                }
            },
        },
        "envs": {"type": "object", "additionalProperties": {"type": "string"}},
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
# A TrainJob of Kubeflow Trainer 2, from its reference; only the fields in use.
TRAINJOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "trainer.kubeflow.org/v1alpha1"},
        "kind": {"const": "TrainJob"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["runtimeRef"],
            "additionalProperties": False,
            "properties": {
                "runtimeRef": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "apiGroup": {"const": "trainer.kubeflow.org"},
                        "kind": {"enum": ["ClusterTrainingRuntime", "TrainingRuntime"]},
                        "name": {"type": "string"},
                    },
                },
                "trainer": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "string"},
                        "numNodes": {"type": "integer", "minimum": 1},
                        "numProcPerNode": {"type": "integer", "minimum": 1},
                        "command": {"type": "array", "items": {"type": "string"}},
                        "args": {"type": "array", "items": {"type": "string"}},
                        "env": {"type": "array", "items": STRINGS},
                        "resourcesPerNode": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"requests": STRINGS, "limits": STRINGS},
                        },
                    },
                },
                "runtimePatches": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["manager"],
                        "additionalProperties": False,
                        "properties": {
                            "manager": {"type": "string"},
                            "trainingRuntimeSpec": {"type": "object", "required": ["template"]},
                        },
                    },
                },
            },
        },
    },
}


def read(path: Path) -> Any:
    """A YAML file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_engine_has_a_file() -> None:
    """And every file is an engine's."""
    assert {path.stem for path in ACCELERATE} == {*ENGINES}


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_the_engines(path: Path) -> None:
    """By its own classes, which refuse unknown keys, and by `accelerate launch` on two sizes."""
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == ENGINES[path.stem]
    known = {action.dest for action in launch_command_parser()._actions}
    for part in (config.fsdp_config, config.deepspeed_config, config.parallelism_config):
        assert set(part) <= known, path
    if path.stem.startswith("zero3"):
        assert config.deepspeed_config["zero3_save_16bit_model"] is True
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    if sizes := config.parallelism_config:
        product = 1
        for name in ("dp_replicate", "dp_shard", "tp", "cp"):
            product *= sizes[f"parallelism_config_{name}_size"]
        assert product == config.num_processes
    # As for two nodes of eight GPUs.
    options = ["--config_file", str(path), "--num_machines", "2", "--num_processes", "16"]
    options += ["--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    options += ["--main_process_port", "29500", "scripts/finetune.py"]
    args = launch_command_parser().parse_args(options)
    merged, _, _ = _validate_launch_command(args)
    if path.stem != "one":
        assert (merged.num_machines, merged.num_processes, merged.machine_rank) == (2, 16, 1)
        assert merged.use_fsdp == (ENGINES[path.stem] == "FSDP")
        assert merged.use_deepspeed == (ENGINES[path.stem] == "DEEPSPEED")


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_trainings_have_known_settings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is a setting of the script or of the libraries, and of the right type."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from finetune import Settings

    content = read(path)
    parser = TrlParser((Settings, SFTConfig, ModelConfig))
    assert parser.set_defaults_with_config(**content) == []
    names = {action.dest: action for action in parser._actions}
    for name, value in content.items():
        if names[name].type in (int, float):
            assert isinstance(value, (int, float)), name


def test_the_first_training_is_notebook_00s() -> None:
    """Its model, its data, its settings."""
    source = (ROOT / "notebooks/solutions/00_fine_tune_now.py").read_text(encoding="utf-8")
    config = read(CONFIGS / "finetune/yoda.yaml")
    for line in (
        f'"{config["model_name_or_path"]}"',
        f"max_steps={config['max_steps']}",
        f"per_device_train_batch_size={config['effective_batch_size']}",
        f"r={config['lora_r']}, lora_alpha={config['lora_alpha']}",
        f'"content": "{config["system_prompt"]}"',
        f'row["{config["prompt_column"]}"]',
        f'row["{config["completion_column"]}"]',
        config["data"],
    ):
        assert line in source, line
    assert re.search(r"learning_rate=2e-3", source)
    assert config["learning_rate"] == 2e-3


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.stem)
def test_slurm_files(path: Path) -> None:
    """Options that sbatch knows, all before the first command; a script that bash can read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    found = [line for line in lines if line.startswith("#SBATCH")]
    assert found == [line for line in lines[:first] if line.startswith("#SBATCH")]
    for line in found:
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        assert re.fullmatch(SBATCH_OPTIONS[name], value), line
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)


def test_the_skypilot_file() -> None:
    """Held against the fields of a task; its commands are read by bash."""
    task = read(CONFIGS / "skypilot/spot.yaml")
    jsonschema.validate(task, SKYPILOT)
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True, timeout=30)
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed")
    jsonschema.validate(task, schemas.get_task_schema())


def test_the_kubeflow_file() -> None:
    """Held against the fields of a TrainJob, and against Kubeflow's own classes where installed."""
    job = read(CONFIGS / "kubeflow/trainjob.yaml")
    jsonschema.validate(job, TRAINJOB)
    wrong = {**job, "spec": {**job["spec"], "numNodes": 2}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, TRAINJOB)
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="not installed")
    models.TrainerV1alpha1TrainJob.from_dict(job)


def test_files_name_files_that_exist() -> None:
    """Every path below configs/ or scripts/ in a file there is a file."""
    for path in CONFIGS.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for name in re.findall(r"(?:configs|scripts)/[\w./]*\w", text):
                if "." in Path(name).name:
                    assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_the_readme_names_all_files() -> None:
    """And says of each how it was checked."""
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for path in CONFIGS.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{path.relative_to(CONFIGS)}`" in text, path
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            assert shlex.split(line)
