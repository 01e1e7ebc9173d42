import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.two_processes import (
    run_in_processes,
    run_in_two_processes,
)


def add_over_ranks(number):
    total = torch.tensor(float(number * (dist.get_rank() + 1)))
    dist.all_reduce(total)
    return dist.get_rank(), total


def fail_on_rank_one():
    if dist.get_rank() == 1:
        raise KeyError("only here")


def test_results_come_back_by_rank():
    assert run_in_two_processes(add_over_ranks, 10) == [(0, torch.tensor(30.0)), (1, 30.0)]


def test_any_number_of_processes():
    results = run_in_processes(4, add_over_ranks, 10)
    assert results == [(rank, torch.tensor(100.0)) for rank in range(4)]


def environment(name):
    return os.environ.get(name)


def test_the_processes_have_the_environment_of_now(monkeypatch):
    for value in ("first", "second"):  # the server that forks them started before
        monkeypatch.setenv("LIT_RLHF_TEST", value)
        results = run_in_two_processes(environment, "LIT_RLHF_TEST", init_process_group=False)
        assert results == [value, value]


def test_the_traceback_of_the_process_that_failed_is_shown():
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 failed.*KeyError: 'only here'"):
        run_in_two_processes(fail_on_rank_one)


def crash_on_rank_zero():
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    dist.barrier()


def test_a_crash_is_shown_beside_what_it_did_to_the_other_process():
    crashed = r"rank 0 failed:\nit died with exit code -11\nFatal Python error.*crash_on_rank_zero"
    with pytest.raises(RuntimeError, match=rf"(?s){crashed}.*rank 1 failed:.*barrier"):
        run_in_two_processes(crash_on_rank_zero)


def test_a_hanging_process_is_ended():
    with pytest.raises(TimeoutError, match="after 2 s"):
        run_in_two_processes(time.sleep, 600, timeout_s=2, init_process_group=False)
