"""Run something in several processes that talk by gloo, in a time limit, on one thread each.

The processes are forked from one that has imported torch and Lightning: seconds, paid once.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

NUM_PROCESSES = 2
_PRELOADED = ["torch.distributed", "lightning.pytorch", "transformers", "peft"]


def run_in_two_processes(
    function: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = 300,
    init_process_group: bool = True,
) -> list[Any]:
    """Call `function(*arguments)` in two fresh processes, see `run_in_processes`."""
    return run_in_processes(
        NUM_PROCESSES,
        function,
        *arguments,
        timeout_s=timeout_s,
        init_process_group=init_process_group,
    )


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
        RuntimeError: with the traceback of the first process that failed.
        TimeoutError: when a process hangs, as one does that waits for another in vain.
    """
    answers = _context().Queue()
    processes = start_processes(
        num_processes, _answer, init_process_group, answers, function, arguments
    )
    try:
        return _collect(processes, answers, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        answers.close()
        answers.join_thread()


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


def run_command_in_two_processes(
    command: Sequence[str], *, timeout_s: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Run a command twice with the environment of rank 0 and 1 (as a cluster would), and wait.

    Raises:
        RuntimeError: with the output of the first command that failed.
        TimeoutError: when a command is not done in time; both are ended.
    """
    port = free_port()
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        # Files rather than pipes: a full pipe would stop the process that nobody reads from yet.
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(NUM_PROCESSES)]
        running = [
            subprocess.Popen(
                command,
                env=os.environ | rank_environment(rank, port),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            for process in running:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"not done after {timeout_s} s: {command}") from error
        finally:
            for process in running:
                process.kill()
                process.wait()
        for output in outputs:
            output.seek(0)
        done = [
            subprocess.CompletedProcess(command, process.returncode, output.read())
            for process, output in zip(running, outputs, strict=True)
        ]
    for rank, result in enumerate(done):
        if result.returncode != 0:
            raise RuntimeError(f"rank {rank} ended with {result.returncode}:\n{result.stdout}")
    return done


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


def _collect(processes, answers, timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    while len(results) < len(processes):
        try:
            rank, result, error = answers.get(timeout=0.5)
        except queue.Empty:
            _raise_when_dead(processes, results)
            if time.monotonic() > deadline:
                missing = sorted(set(range(len(processes))) - set(results))
                raise TimeoutError(f"no answer from rank {missing} after {timeout_s} s") from None
            continue
        if error is not None:
            raise RuntimeError(f"rank {rank} failed:\n{error}")
        results[rank] = pickle.loads(result)
    for process in processes:
        process.join(timeout=10)
    return [results[rank] for rank in range(len(processes))]


def _raise_when_dead(processes, results) -> None:
    for rank, process in enumerate(processes):
        if rank not in results and process.exitcode not in {None, 0}:
            raise RuntimeError(f"rank {rank} died with exit code {process.exitcode}, no traceback")


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


def _answer(init_process_group, answers, function, arguments) -> None:
    import torch.distributed as dist  # noqa: PLC0415  (after the environment is set)

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
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
