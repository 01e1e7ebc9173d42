"""Run something in several processes that talk by gloo, in a time limit, on one thread each.

The processes are forked from one that has imported torch and Lightning: seconds, paid once.
"""

import faulthandler
import functools
import multiprocessing
import os
import pickle
import queue
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_PROCESSES = 2
_GRACE_S = 5  # for what further processes have to say once one has failed
_PRELOADED = ["torch.distributed", "lightning.pytorch", "transformers", "peft"]


def run_in_processes(
    num_processes: int,
    function: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = 300,
    init_process_group: bool = True,
) -> list[Any]:
    """Call `function(*arguments)` in fresh processes and return all results, by rank.

    Args:
        num_processes: how many.
        function: at the top level of a test module; arguments and result must be picklable.
        *arguments: handed to each.
        timeout_s: for all together; then they are ended and `TimeoutError` is raised.
        init_process_group: start `torch.distributed`; False where a Trainer does it.

    Raises:
        RuntimeError: with the tracebacks of all processes that failed: the first to tell may only
            have lost its connection to the one that did.
        TimeoutError: when a process hangs, as one does that waits for another in vain.
    """
    answers = _context().Queue()
    crashes = tempfile.TemporaryDirectory()
    processes = start_processes(
        num_processes, _answer, Path(crashes.name), init_process_group, answers, function, arguments
    )
    try:
        return _collect(processes, answers, timeout_s, Path(crashes.name))
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        answers.close()
        answers.join_thread()
        crashes.cleanup()


run_in_two_processes = functools.partial(run_in_processes, NUM_PROCESSES)


def start_processes(
    num_processes: int, function: Callable[..., Any], *arguments: Any
) -> list[multiprocessing.process.BaseProcess]:
    """Start `function(*arguments)` in processes that know their ranks, and return them."""
    port = free_port()
    processes = []
    for rank in range(num_processes):
        environment = dict(os.environ) | rank_environment(rank, port, num_processes)
        arguments_of_process = (environment, function, arguments)
        processes.append(_context().Process(target=_work, args=arguments_of_process, daemon=False))
        processes[-1].start()
    return processes


def rank_environment(rank: int, port: int, num_processes: int = NUM_PROCESSES) -> dict[str, str]:
    """Return the variables by which torch.distributed and Lightning find each other."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """Return a port of this machine that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _collect(processes, answers, timeout_s: float, crashes: Path) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    faults: dict[int, str] = {}
    while missing := set(range(len(processes))) - set(results) - set(faults):
        try:
            rank, result, error = answers.get(timeout=0.5)
        except queue.Empty:
            faults |= _deaths(processes, missing, crashes)
        else:
            if error is None:
                results[rank] = pickle.loads(result)
            else:
                faults[rank] = error
        if faults:
            deadline = min(deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > deadline:
            break
    if faults:
        lines = [f"rank {rank} failed:\n{fault}" for rank, fault in sorted(faults.items())]
        raise RuntimeError("\n".join(lines))
    if missing:
        raise TimeoutError(f"no answer from rank {sorted(missing)} after {timeout_s} s")
    for process in processes:
        process.join(timeout=10)
    return [results[rank] for rank in range(len(processes))]


def _deaths(processes, ranks, crashes: Path) -> dict[int, str]:
    faults = {}
    for rank in ranks:
        if processes[rank].exitcode not in {None, 0}:
            traces = crashes / str(rank)
            said = traces.read_text() if traces.exists() else ""
            faults[rank] = f"it died with exit code {processes[rank].exitcode}\n{said}"
    return faults


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _work(environment, function, arguments) -> None:
    os.environ.clear()
    os.environ.update(environment)
    # A command that ran in the parent left its seed there, from which Lightning would seed anew.
    os.environ.pop("PL_GLOBAL_SEED", None)
    import torch  # noqa: PLC0415  (after the environment is set)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    function(*arguments)


def _answer(crashes: Path, init_process_group, answers, function, arguments) -> None:
    import torch.distributed as dist  # noqa: PLC0415  (after the environment is set)

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    faulthandler.enable((crashes / str(rank)).open("w"))  # what a crash in native code leaves
    try:
        if init_process_group:
            dist.init_process_group("gloo", rank=rank, world_size=world_size)
        # As bytes: tensors would travel as handles of memory that ends with this process.
        answers.put((rank, pickle.dumps(function(*arguments)), None))
    except BaseException:  # whatever it is, the test must show it
        answers.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
