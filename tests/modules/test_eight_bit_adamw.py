import io

import pytest
import torch
from torch import nn

from lit_rlhf.modules import OptimizerConfig
from tests.oracles import adamw as oracle

NUMBERS = {"learning_rate": 0.05, "beta1": 0.8, "beta2": 0.9, "eps": 1e-2, "warmup_fraction": 0.0}


@pytest.fixture(autouse=True)
def not_compiled():
    """To compile a step takes a C++ compiler and half a minute; the arithmetic is the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def build(weight, seed=0):
    config = OptimizerConfig(states="8bit", schedule="constant", rounding_seed=seed, **NUMBERS)
    optimizer, _ = config.build([weight], num_steps=9)
    return optimizer


def steps(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()


def test_it_is_adamw_but_for_the_moments_digits():
    start, gradients = torch.randn(64, 64), torch.randn(4, 64, 64)
    weight = nn.Parameter(start.clone())
    optimizer = build(weight)
    steps(optimizer, weight, gradients)
    assert type(optimizer.state[weight]["exp_avg"]).__name__ == "OptimState8bit"
    expected = torch.tensor(
        [
            oracle.trajectory(one, history, 0.05, 0.8, 0.9, 1e-2, 0.0)[-1]
            for one, history in zip(
                start.flatten().tolist(), gradients.flatten(1).T.tolist(), strict=True
            )
        ]
    ).view(64, 64)
    moved = (expected - start).norm()
    assert (weight.detach() - expected).norm() < 0.05 * moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_is_plain_and_goes_on_bit_for_bit(dtype):
    start, gradients = torch.randn(64, 64).to(dtype), torch.randn(4, 64, 64)
    whole = nn.Parameter(start.clone())
    steps(build(whole), whole, gradients)

    first = nn.Parameter(start.clone())
    optimizer = build(first)
    steps(optimizer, first, gradients[:2])
    state = optimizer.state_dict()
    assert {type(value) for value in state["state"][0].values()} == {torch.Tensor}
    assert state["state"][0]["exp_avg.codes"].dtype == torch.uint8
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    second = nn.Parameter(first.detach().clone())
    resumed = build(second)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    torch.rand(5)  # the process's own stream is not asked
    steps(resumed, second, gradients[2:])
    assert torch.equal(second, whole)


def test_weights_in_bf16_are_rounded_at_random_and_by_their_seed():
    def moved(seed):
        weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        optimizer = build(weight, seed)
        for group in optimizer.param_groups:
            group["lr"].fill_(1e-4)  # a fortieth of the distance to the next number
        steps(optimizer, weight, torch.ones(20, 64, 64))
        return 1 - weight.detach().double()

    one, other = moved(0), moved(1)
    assert not torch.equal(one, other)
    assert torch.equal(one, moved(0))
    # With equal gradients Adam moves by rate / (1 + eps).
    assert one.mean().item() == pytest.approx(20 * 1e-4 / 1.01, rel=0.15)
