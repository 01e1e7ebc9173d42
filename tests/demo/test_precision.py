"""The precision that the demonstration takes follows the rates that the machine shows."""

import pytest
import torch

from lit_rlhf.demo import precision
from lit_rlhf.demo.precision import autocast, choose_precision, product_rate


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(140e9, 400e9, "bf16-mixed"), (300e9, 150e9, "32-true"), (110e9, 100e9, "bf16-mixed")],
)
def test_float32_only_where_it_is_clearly_faster(monkeypatch, float32, bfloat16, chosen):
    rates = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "product_rate", rates.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision() == chosen


def test_rate_counts_the_operations_of_a_product(monkeypatch):
    ticks = iter(range(0, 100, 2))  # every product seems to take two seconds
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert product_rate(torch.float32) == 2 * 1024**3 / 2


def test_autocast_follows_the_precision():
    layer = torch.nn.Linear(2, 2)
    for name, dtype in (("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)):
        with autocast(name):
            assert layer(torch.ones(1, 2)).dtype == dtype
