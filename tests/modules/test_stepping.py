from types import SimpleNamespace

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lit_rlhf.modules.stepping import SteppingModule
from tests.support.two_processes import run_in_two_processes

NUM_BACKWARDS = 3


def step():
    """Run the backward passes of a step; return how often the processes talked, and a gradient."""
    rank, reductions = distributed.get_rank(), []

    def reduce(_, bucket):
        reductions.append(bucket.index())
        mean = bucket.buffer() / 2
        return (
            distributed.all_reduce(mean, async_op=True)
            .get_future()
            .then(lambda one: one.value()[0])
        )

    model = DistributedDataParallel(nn.Linear(1, 1, bias=False))
    model.register_comm_hook(None, reduce)
    module = SimpleNamespace(trainer=SimpleNamespace(strategy=SimpleNamespace(model=model)))
    for number in range(NUM_BACKWARDS):
        with SteppingModule.reduces_gradients(module, is_last=number == NUM_BACKWARDS - 1):
            model(torch.tensor([[10.0 ** (number + NUM_BACKWARDS * rank)]])).sum().backward()
    return len(reductions), model.module.weight.grad.item()


def test_processes_talk_once_a_step_and_have_the_mean_of_all_gradients():
    (first, second) = run_in_two_processes(step)
    assert first == second == (1, 111_111 / 2)
