import io

import pytest
import torch
from torch import nn

from lit_rlhf.modules import bf16_adamw
from lit_rlhf.modules.bf16_adamw import BF16AdamW, round_to_bf16
from tests.oracles import adamw as oracle

NUMBERS = {"betas": (0.8, 0.9), "eps": 1e-3}
ALL_NOISE = torch.arange(-(2**15), 2**15, dtype=torch.int16)


@pytest.fixture(params=[7 * 4, 2**18], ids=["pieces", "whole"])
def piece_size(request, monkeypatch):
    """Cut tensors into many pieces of an odd number of numbers, or leave them whole."""
    monkeypatch.setattr(bf16_adamw, "_PIECE_CPU", request.param)


def optimizer_of(weights, learning_rate=0.1, weight_decay=0.0, **changes):
    groups = [{"params": weights, "weight_decay": weight_decay}]
    return BF16AdamW(groups, learning_rate=learning_rate, **NUMBERS | changes)


def steps(optimizer, weights, gradients):
    """Step on `[steps, *shape]` gradients of one weight."""
    for gradient in gradients:
        weights[0].grad = gradient.to(weights[0].dtype)
        optimizer.step()


@pytest.mark.parametrize("value", [1.00123, -1.00123, 3e-5, -2.7e20, 1e-39])
def test_rounding_goes_to_the_neighbours_and_is_right_in_the_mean(value):
    """Over every noise there is, the mean is the number itself: exactly, as all are equal."""
    values = torch.full((2**16,), value)
    rounded = round_to_bf16(values.clone(), ALL_NOISE)
    below = (values[:1].view(torch.int32) & -65536).view(torch.float32).item()
    above = ((values[:1].view(torch.int32) & -65536) + 65536).view(torch.float32).item()
    assert set(rounded.double().tolist()) == {below, above}
    assert rounded.double().mean().item() == pytest.approx(values[0].item(), rel=1e-12)


def test_numbers_that_bf16_has_are_kept():
    infinity = float("inf")
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-133, infinity, -infinity])
    for noise in (-(2**15), 0, 2**15 - 1):
        rounded = round_to_bf16(values.clone(), torch.full((7,), noise, dtype=torch.int16))
        torch.testing.assert_close(rounded.float(), values, atol=0, rtol=0)
    not_a_number = round_to_bf16(torch.tensor([float("nan")]), torch.tensor([9], dtype=torch.int16))
    assert not_a_number.isnan().all()


@pytest.mark.usefixtures("piece_size")
def test_in_float32_it_is_adamw():
    gradients = torch.randn(5, 10, 11)
    start = torch.randn(10, 11)
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of([weight], weight_decay=0.3, moment_dtype=torch.float32)
    steps(optimizer, [weight], gradients)
    for row, column in ((0, 0), (3, 7), (9, 10)):
        numbers = gradients[:, row, column].double().tolist()
        expected = oracle.trajectory(
            start[row, column].item(), numbers, 0.1, *NUMBERS["betas"], NUMBERS["eps"], 0.3
        )
        assert weight[row, column].item() == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.usefixtures("piece_size")
def test_moments_and_weights_in_bf16_are_right_in_the_mean():
    """All elements have the same history, so that their mean is that of the rounding."""
    gradients = [0.3, -0.1, 0.25, 0.2]
    # Its noise comes in few pieces or many; either way 20000 numbers differ.
    weight = nn.Parameter(torch.full((20_000,), 0.7, dtype=torch.bfloat16))
    start = weight[0].item()
    optimizer = optimizer_of([weight], learning_rate=0.01)
    for gradient in gradients:
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    used = torch.tensor(gradients).bfloat16().double().tolist()
    expected = oracle.trajectory(start, used, 0.01, *NUMBERS["betas"], NUMBERS["eps"], 0.0)[-1]
    state = optimizer.state[weight]
    assert {value.dtype for value in (weight, state["exp_avg"])} == {torch.bfloat16}
    # A bf16 near 0.7 is 2^-8 from the next: four roundings err by at most 4 * 2^-9 / sqrt(n).
    assert weight.double().mean().item() == pytest.approx(expected, abs=5 * 2**-7 / 20_000**0.5)
    mean = 0.0
    for gradient in used:
        mean = 0.8 * mean + 0.2 * gradient
    average = state["exp_avg"].double().mean().item()
    assert average == pytest.approx(mean, abs=5 * 2**-9 / 20_000**0.5)
    assert len(state["exp_avg"].unique()) > 1


def test_a_rate_that_rounding_to_the_nearest_would_lose_moves_weights_by_the_right_mean():
    num_steps, rate = 50, 1e-4  # near 1, bf16 numbers are 2^-8 apart below it, 2^-7 above
    nearest = torch.ones(20_000, dtype=torch.bfloat16)
    weight = nn.Parameter(nearest.clone())
    optimizer = optimizer_of([weight], learning_rate=rate, eps=0.0, moment_dtype=torch.float32)
    for _ in range(num_steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()  # with equal gradients Adam moves by the rate
        nearest = (nearest.float() - rate).bfloat16()
    assert (nearest == 1).all()
    moved = 1 - weight.double().mean().item()
    assert moved == pytest.approx(num_steps * rate, rel=0.05)


def test_any_two_numbers_of_the_noise_are_uniform_and_independent(monkeypatch):
    """Over the names of streams: of weight and moments, of pieces, and of places in a piece."""
    monkeypatch.setattr(bf16_adamw, "_PIECE_CPU", 4)
    num_streams, device = 4000, torch.device("cpu")
    streams = [bf16_adamw._Noise(f"stream {number}", device) for number in range(num_streams)]
    numbers = torch.stack(
        [torch.cat([noise.draw(3, 4), noise.draw(3, 4)]).flatten() for noise in streams]
    )  # [streams, pieces x rows x places]
    scaled = numbers.double() / 2**15
    five_deviations = 5 / num_streams**0.5
    assert scaled.mean(0).abs().max() < five_deviations * 3**-0.5
    # The lower bits decide as much as the upper ones.
    for values in (scaled, (numbers & 0xFF).double(), scaled.abs()):
        correlations = torch.corrcoef(values.T) - torch.eye(24)
        assert correlations.abs().max() < five_deviations


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("piece_size")
def test_a_saved_state_goes_on_bit_for_bit(weights, moments):
    gradients = torch.randn(6, 9, 10)
    start = torch.randn(9, 10).to(weights)
    whole = nn.Parameter(start.clone())
    steps(optimizer_of([whole], moment_dtype=moments), [whole], gradients)

    first = nn.Parameter(start.clone())
    optimizer = optimizer_of([first], moment_dtype=moments)
    steps(optimizer, [first], gradients[:3])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = nn.Parameter(first.detach().clone())
    resumed = optimizer_of([second], moment_dtype=moments)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.state[second]["exp_avg"].dtype == moments
    steps(resumed, [second], gradients[3:])
    assert torch.equal(second, whole)


def test_the_rounding_follows_its_seed_alone():
    def after_two_steps(seed):
        weight = nn.Parameter(torch.linspace(0.1, 0.9, 99).bfloat16())
        torch.rand(seed + 1)  # the process's own stream is not asked
        steps(optimizer_of([weight], seed=seed), [weight], torch.ones(2, 99))
        return weight.detach()

    before = torch.get_rng_state()
    assert torch.equal(after_two_steps(3), after_two_steps(3))
    torch.set_rng_state(before)
    assert not torch.equal(after_two_steps(3), after_two_steps(4))


def test_weights_without_a_gradient_stay():
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    steps(optimizer_of(weights), weights, torch.ones(1, 3))
    assert (weights[0] < 1).all()
    assert (weights[1] == 1).all()
