"""Runs the command line in processes of their own, forked from one that has imported everything.

A forked process dies by SIGKILL as any other does; only the five seconds of imports are spared.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.support.two_processes import free_port, rank_environment

STARTED = "training-started"  # a file that a run leaves in its folder


@dataclass
class Job:
    """One run of the command line.

    Attributes:
        arguments: of `lit-rlhf`.
        folder: where it runs; `log-RANK.txt` there has what it prints.
        num_processes: 1, or 2 that find each other.
        kill_point: see `kill_points`; in the first process.
        signal_after_s: seconds from the start of training to the signal.
        signal_number: that is sent to the first process, or that it sends itself at `kill_point`.
        file_limit: bytes that a file may have (RLIMIT_FSIZE); longer writes fail.
        patch: `module.function`, called before the run with the folder.
        timeout_s: then all are killed.
    """

    arguments: list[str]
    folder: str
    num_processes: int = 1
    kill_point: str = ""
    signal_after_s: float | None = None
    signal_number: int = int(signal.SIGKILL)
    file_limit: int | None = None
    patch: str = ""
    timeout_s: float = 120.0


@dataclass
class Done:
    """How a run ended.

    Attributes:
        statuses: of each process, by rank; -9 after SIGKILL.
        seconds: from the signal (else from the start) to the end of the first process.
    """

    statuses: list[int]
    seconds: float


class ForkServer:
    """The process that forks; a context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def run(self, job: Job) -> Done:
        """Run a job to its end, by itself or by force."""
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the fork server has died")
        return Done(**json.loads(answer))


def log_of(folder: Path, rank: int = 0) -> str:
    """Return what a run printed."""
    return (folder / f"log-{rank}.txt").read_text(errors="replace")


def _serve() -> None:
    import torch  # noqa: PLC0415

    import lit_rlhf.phase_cli  # noqa: F401, PLC0415 - all that a run imports

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = Job(**json.loads(line))
        sys.stdout.write(json.dumps(asdict(_run(job))) + "\n")
        sys.stdout.flush()


def _run(job: Job) -> Done:
    (Path(job.folder) / STARTED).unlink(missing_ok=True)
    port = free_port()
    children = []
    for rank in range(job.num_processes):
        child = os.fork()
        if child == 0:
            _work(job, rank, port)
        children.append(child)
    return _watch(job, children)


def _watch(job: Job, children: list[int]) -> Done:
    statuses: dict[int, int] = {}
    begun = time.monotonic()
    training_since = None
    signalled_at = None
    ended_at = None
    while len(statuses) < len(children):
        time.sleep(0.002)
        now = time.monotonic()
        for rank, child in enumerate(children):
            if rank not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[rank] = os.waitstatus_to_exitcode(ended[1])
                if rank == 0:
                    ended_at = now
        if training_since is None and (Path(job.folder) / STARTED).exists():
            training_since = now
        if (
            job.signal_after_s is not None
            and training_since is not None
            and signalled_at is None
            and 0 not in statuses
            and now >= training_since + job.signal_after_s
        ):
            os.kill(children[0], job.signal_number)
            signalled_at = now
        # A killed process takes the others with it, as a launcher would.
        is_orphaned = statuses.get(0, 0) < 0
        if is_orphaned or now > begun + job.timeout_s:
            for rank, child in enumerate(children):
                if rank not in statuses:
                    os.kill(child, signal.SIGKILL)
                    statuses[rank] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended_at = ended_at or time.monotonic()
    seconds = ended_at - (signalled_at or begun)
    return Done([statuses[rank] for rank in range(len(children))], seconds)


def _work(job: Job, rank: int, port: int) -> None:
    status = 70
    try:
        os.chdir(job.folder)
        log = os.open(f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if job.num_processes > 1:
            os.environ.update(rank_environment(rank, port))
        _prepare(job, rank)
        from lit_rlhf.cli import main  # noqa: PLC0415

        status = main(job.arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:  # it must be seen in the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _prepare(job: Job, rank: int) -> None:
    import importlib  # noqa: PLC0415
    import resource  # noqa: PLC0415

    from lit_rlhf.callbacks import LastCheckpoint  # noqa: PLC0415
    from tests.support import kill_points  # noqa: PLC0415

    # As in a terminal: who starts the tests in the background may have them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    started = LastCheckpoint.on_train_start

    def on_train_start(self, trainer, pl_module):
        started(self, trainer, pl_module)
        if rank == 0:
            Path(STARTED).touch()
            if job.file_limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (job.file_limit, job.file_limit))

    LastCheckpoint.on_train_start = on_train_start
    if job.kill_point and rank == 0:
        kill_points.install(job.kill_point, job.signal_number)
    if job.patch:
        module, _, name = job.patch.rpartition(".")
        getattr(importlib.import_module(module), name)(Path(job.folder))


if __name__ == "__main__":
    _serve()
