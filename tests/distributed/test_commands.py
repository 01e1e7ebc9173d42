"""The real command in real processes: two nodes of torchrun, and processes that are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from lit_rlhf.models import load_causal_lm
from tests.models.examples import random_rows
from tests.proofs.table import Claim, write_claims
from tests.support.marking import FOLDER
from tests.support.phase_runs import write_inputs
from tests.support.two_processes import free_port

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
START_S = 150
END_S = 60


@pytest.fixture
def folder(tmp_path):
    write_inputs(tmp_path)
    return tmp_path


def ppo(folder, name, *options):
    """Return the words of `lit-rlhf ppo fit`, to stand behind `python` or `torchrun`."""
    return [
        *("-m", "lit_rlhf", "ppo", "fit"),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
        *("--trainer.default_root_dir", str(folder / name), "--trainer.logger", "false"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--model.policy", str(folder), "--model.reward", "FunctionReward"),
        *("--model.reward.function", "tests.support.marking.length_and_mark"),
        *("--model.sampling.max_new_tokens", "8", "--model.optimizer.eps", "1e-3"),
        *("--model.optimizer.learning_rate", "1e-2", "--model.update.num_minibatches", "2"),
        *("--data.train", str(folder / "prompts.jsonl"), "--data.batch_size", "4"),
        *options,
    ]


@contextlib.contextmanager
def started(folder, name, *commands):
    """Run commands side by side; whatever is left of their processes is ended."""
    marks = folder / f"{name}-marks"
    marks.mkdir()
    running = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{name}-{number}.log").open("w") as output:
                running.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | {FOLDER: str(marks), "OMP_NUM_THREADS": "1"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield running, marks
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition, limit_s, folder):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.log")))
            raise TimeoutError(f"not after {limit_s} s:\n{logs}")
        time.sleep(0.1)


def test_two_nodes_of_torchrun_train_as_one_process(folder):
    steps = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    alone = [sys.executable, *ppo(folder, "alone", *steps)]
    port = str(free_port())
    nodes = [
        [
            *TORCHRUN,
            *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank)),
            *("--master-addr", "127.0.0.1", "--master-port", port),
            *ppo(folder, "nodes", *steps),
            *("--trainer.num_nodes", "2", "--trainer.devices", "1", "--trainer.strategy", "ddp"),
        ]
        for rank in range(2)
    ]
    for name, commands in (("alone", [alone]), ("nodes", nodes)):
        with started(folder, name, *commands) as (running, _):
            wait_for(lambda r=running: all(p.poll() is not None for p in r), START_S, folder)
            codes = [process.returncode for process in running]
        logs = [path.read_text() for path in sorted(folder.glob(f"{name}-*.log"))]
        assert codes == [0] * len(commands), logs
    rows = random_rows([3, 4], [5, 2])
    logits = []
    for name in ("alone", "nodes"):
        with torch.no_grad():
            logits.append(
                load_causal_lm(str(folder / name / "model"))(input_ids=rows.input_ids).logits
            )
    difference = float((logits[0] - logits[1]).abs().max())
    held = difference < 1e-4
    claim = "Two nodes of torchrun on one machine train as one process"
    note = "`lit-rlhf ppo fit`, DDP; logits after two iterations"
    write_claims("distributed_nodes", [Claim(claim, 1, int(held), difference, note)])
    assert held, difference


def death(folder, launcher, victim):
    """Kill a rank of a run in mid-training.

    Returns:
        Its process id, how long the rest lived, the launcher's exit code, and what was written.
    """
    name = f"{launcher}-{victim}"
    # Far more batches than there is time for.
    run = ppo(folder, name, "--trainer.max_epochs", "100000", "--trainer.strategy", "ddp")
    if launcher == "torchrun":
        options = ["--nproc-per-node", "2", "--master-port", str(free_port())]
        command = [*TORCHRUN, *options, *run, "--trainer.devices", "2"]
    else:
        command = [sys.executable, *run, "--trainer.devices", "2"]
    with started(folder, name, command) as ((process,), marks):
        paths = [marks / f"rank-{rank}" for rank in range(2)]

        def are_busy():
            assert process.poll() is None, (folder / f"{name}-0.log").read_text()
            return all(path.exists() and path.read_text().count("\n") > 3 for path in paths)

        wait_for(are_busy, START_S, folder)
        pids = [int(path.read_text().split()[0]) for path in paths]
        os.kill(pids[victim], signal.SIGKILL)
        begin = time.monotonic()
        survivor = pids[1 - victim]
        with contextlib.suppress(TimeoutError):  # told by the seconds
            wait_for(lambda: process.poll() is not None and is_gone(survivor), END_S, folder)
        seconds = time.monotonic() - begin
    return pids[victim], seconds, process.returncode, (folder / f"{name}-0.log").read_text()


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as status:
        return status.read().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize("launcher", ["trainer", "torchrun"])
def test_a_rank_that_is_killed_ends_the_run(folder, launcher):
    deaths = [death(folder, launcher, victim) for victim in (1, 0)]
    told = {"trainer": "another process of the run is gone", "torchrun": "(pid: {})"}[launcher]
    held = [
        code != 0 and seconds < END_S and told.format(pid) in log
        for pid, seconds, code, log in deaths
    ]
    slowest = max(seconds for _, seconds, _, _ in deaths)
    claim = f"A rank killed in training ends the run within a minute ({launcher})"
    note = f"rank 1, then rank 0, by SIGKILL; the slowest end took {slowest:.1f} s"
    write_claims(f"distributed_deaths_{launcher}", [Claim(claim, 2, sum(held), None, note)])
    assert held == [True, True], [(*found, log[-3000:]) for *found, log in deaths]
