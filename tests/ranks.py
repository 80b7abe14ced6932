"""Trainings of `scripts/finetune.py` on several processes, which share one import of the libraries.

A process imports the script once and forks for each training as many ranks as asked for, which find
each other over gloo as torchrun's would. Used by `tests/test_engines.py`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 120


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ran:
    """What became of a training: the exit status and the output of each rank, and its losses."""

    statuses: list[int]
    told: list[str]
    found: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        """The loss of each step, as rank 0 logged it."""
        return self.found[0].get("losses", [])

    @property
    def everything(self) -> str:
        """The output of all ranks."""
        return "\n".join(self.told)


class Ranks:
    """A process that starts trainings."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.count = 0
        environment = {
            **os.environ,
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf")},
        }
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )

    def run(self, processes: int, *arguments: object, **hooks: Any) -> Ran:
        """Train on so many processes.

        Args:
            processes: how many ranks.
            arguments: of the script.
            hooks: see `_hooked`; `env` sets variables, `port` the port on which ranks meet.
        """
        self.count += 1
        out = self.scratch / f"run-{self.count}"
        out.mkdir()
        asked = {"processes": processes, "arguments": [str(each) for each in arguments]}
        asked |= {"port": free_port(), "out": str(out), "hooks": hooks}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        statuses = json.loads(self.process.stdout.readline())
        told = [(out / f"{rank}.log").read_text(errors="replace") for rank in range(processes)]
        files = [out / f"{rank}.json" for rank in range(processes)]
        found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        return Ran(statuses, told, found)

    def close(self) -> None:
        """End the process and all ranks."""
        self.process.stdin.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def _hooked(finetune: Any, rank: int, out: Path, hooks: dict[str, Any]) -> None:
    """Note what a training reads and ends with, and let it be disturbed.

    hooks: `kill` and `terminate` map a rank to the step after which it sends itself SIGKILL or
    SIGTERM; `hang_up` names the step before whose state a checkpoint's writer is killed;
    `preflight` set to false leaves preflight out, which takes longer than these trainings.
    """
    kill = {int(key): value for key, value in hooks.get("kill", {}).items()}
    terminate = {int(key): value for key, value in hooks.get("terminate", {}).items()}
    found: dict[str, Any] = {"losses": [], "examples": []}

    class Noted(finetune.SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *others: Any) -> Any:
            rows = inputs["input_ids"].tolist()
            step = self.state.global_step + 1
            found["examples"] += [[step, *map(int, row)] for row in rows]
            return super().training_step(model, inputs, *others)

        def log(self, logs: Any, *others: Any) -> None:
            if "loss" in logs:
                found["losses"].append(logs["loss"])
                found["norms"] = [*found.get("norms", []), float(logs["grad_norm"])]
            super().log(logs, *others)

        def _save_checkpoint(self, *others: Any) -> None:
            super()._save_checkpoint(*others)
            if hooks.get("hang_up") == self.state.global_step and rank == 0:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                (folder / "trainer_state.json").unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        def train(self, *others: Any, **named: Any) -> Any:
            done = super().train(*others, **named)
            found["weights"] = {
                name: hash(value.detach().float().numpy().tobytes())
                for name, value in self.model.named_parameters()
                if value.requires_grad and not hasattr(value, "full_tensor")
            }
            (out / f"{rank}.json").write_text(json.dumps(found))
            return done

    class Disturbed(finetune.StopOnSigterm):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if terminate.get(rank) == state.global_step:
                os.kill(os.getpid(), signal.SIGTERM)
            if kill.get(rank) == state.global_step:
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_step_end(args, state, control, **named)

    finetune.SFTTrainer, finetune.StopOnSigterm = Noted, Disturbed
    if not hooks.get("preflight"):
        finetune.check_training = lambda trainer: None


def _fsdp_on_cpu() -> None:
    """Let accelerate take FSDP without a GPU: it asks for one, torch does not."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    make = PartialState.__init__

    def init(self: Any, *others: Any, **named: Any) -> None:
        make(self, *others, **named)
        if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def _rank(finetune: Any, rank: int, asked: dict[str, Any]) -> int:
    """Train as one rank; the exit status."""
    out, hooks, processes = Path(asked["out"]), asked["hooks"], asked["processes"]
    log = os.open(out / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1, file=2)
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(asked["port"])
    os.environ |= {"HF_HUB_OFFLINE": "1"} | hooks.get("env", {})
    try:
        _hooked(finetune, rank, out, hooks)
        if hooks.get("env", {}).get("ACCELERATE_USE_FSDP"):
            _fsdp_on_cpu()
        _trainer, status = finetune.main(asked["arguments"])
        # As the script does: gloo can wait forever where the trainer is freed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1


def _serve() -> None:
    """Fork the ranks of each training that is asked for; answer with their exit statuses."""
    import finetune
    import torch
    import trl.trainer.sft_trainer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        children = []
        for rank in range(asked["processes"]):
            child = os.fork()
            if child == 0:
                status = _rank(finetune, rank, asked)
                sys.stdout.flush()
                os._exit(status)
            children.append(child)
        statuses = dict.fromkeys(children)
        deadline = time.monotonic() + WAIT_S
        while None in statuses.values():
            for child in (each for each, status in statuses.items() if status is None):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    statuses[child] = os.waitstatus_to_exitcode(status)
            # Nobody ends the other ranks when one has failed: they have to notice. Those that hang
            # write where into their logs.
            for after, number in ((0, signal.SIGUSR1), (5, signal.SIGKILL)):
                if time.monotonic() > deadline + after:
                    for child in (each for each, status in statuses.items() if status is None):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, number)
            time.sleep(0.02)
        print(json.dumps([statuses[child] for child in children]), flush=True)


if __name__ == "__main__":
    _serve()
