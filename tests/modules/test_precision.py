"""The precision that the demonstration takes follows the rates that the machine shows."""

import itertools

import pytest
import torch

from lit_rlhf.modules import precision
from lit_rlhf.modules.precision import (
    autocast,
    choose_precision,
    product_rates,
    slowness_of,
)


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        (140e9, 400e9, "bf16-mixed"),
        (300e9, 150e9, "32-true"),
        (110e9, 100e9, "bf16-mixed"),
        (60e9, 2e9, "32-true"),
    ],
)
def test_float32_only_where_it_is_clearly_faster(monkeypatch, float32, bfloat16, chosen):
    rates = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(
        precision, "product_rates", lambda *asked, **_: [rates[dtype] for dtype in asked]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision() == chosen


def test_a_rate_is_that_of_the_fastest_product(monkeypatch):
    # The products seem to take 9 and 8 seconds at first, then 2 and 4.
    seconds = itertools.chain([9, 8], itertools.cycle([2, 4]))
    ticks = itertools.chain.from_iterable((0, taken) for taken in seconds)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    rates = product_rates(torch.float32, torch.bfloat16)
    assert rates == [2 * 1024**3 / 2, 2 * 1024**3 / 4]


def test_autocast_follows_the_precision():
    layer = torch.nn.Linear(2, 2)
    for name, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
        with autocast(name):
            assert layer(torch.ones(1, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("rates", "precision", "device", "warns"),
    [
        ([60e9, 3e9], "bf16-mixed", "cpu", True),
        ([60e9, 30e9], "bf16-mixed", "cpu", False),
        ([60e9, 3e9], "32-true", "cpu", False),
        ([60e9, 3e9], "bf16-mixed", "cuda", False),
    ],
)
def test_a_cpu_that_is_many_times_slower_in_bf16_is_named(
    monkeypatch, rates, precision, device, warns
):
    monkeypatch.setattr("lit_rlhf.modules.precision.product_rates", lambda *_, **__: rates)
    message = slowness_of(precision, device)
    assert (message is not None) == warns
    if message is not None:
        assert "at 3 GFLOP/s" in message
        assert "32-true" in message


def test_measuring_draws_no_random_numbers():
    before = torch.get_rng_state()
    product_rates(torch.float32, size=8)
    assert torch.equal(torch.get_rng_state(), before)
