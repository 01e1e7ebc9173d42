"""The precision that the demonstration takes follows the rates that the machine shows."""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from torch.optim.optimizer import register_optimizer_step_post_hook

from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import precision
from lit_rlhf.modules.precision import (
    autocast,
    choose_precision,
    product_rates,
    slowness_of,
)
from tests.support.phase_runs import build, write_inputs
from tests.support.phases import phase_trainer, weights


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


class Scaled(MixedPrecision):
    """Lightning's own 16-mixed with its scaler, on a CPU."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


class Start(pl.Callback):
    """Keeps the weights that training starts from."""

    def on_train_start(self, trainer, pl_module):
        self.weights = weights(pl_module)


@pytest.mark.parametrize("phase", ["sft", "reward", "dpo", "ppo"])
def test_a_phase_learns_under_16_mixed_as_in_float32(tmp_path, inputs, phase):
    """A gradient that is clipped before the scale is off would move the weights by next to nothing.

    AdamW divides the scale out again, but for its eps: one as large as the gradients shows it.
    """
    changes = []
    for plugins in ([], [Scaled()]):
        torch.manual_seed(0)
        module, data = build(phase, inputs)
        start = Start()
        limits = {"limit_train_batches": 2, "limit_val_batches": 0}
        phase_trainer(tmp_path, callbacks=[start], plugins=plugins, **limits).fit(module, data)
        end = weights(module)
        moved = [(end[name] - start.weights[name]).abs().flatten() for name in end]
        changes.append((float(torch.cat(moved).mean()), module.gradient_norm))
    assert changes[1] == pytest.approx(changes[0], rel=0.2)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("phase", ["sft", "reward", "dpo", "ppo"])
def test_weights_in_16_bits_alone_are_refused_in_one_line(tmp_path, inputs, phase, precision):
    plugin = HalfPrecision(precision)
    module, data = build(phase, inputs)
    with pytest.raises(ConfigError, match=f"trainer.precision {precision} .*take bf16-mixed"):
        phase_trainer(tmp_path, limit_val_batches=0, plugins=[plugin]).fit(module, data)


@pytest.mark.parametrize("phase", ["sft", "reward", "dpo", "ppo"])
def test_float64_is_refused_in_one_line(tmp_path, inputs, phase):
    module, data = build(phase, inputs)
    with pytest.raises(ConfigError, match=r"trainer\.precision 64-true: .* take 32-true"):
        phase_trainer(tmp_path, limit_val_batches=0, precision="64-true").fit(module, data)


@pytest.mark.parametrize(("phase", "most"), [("sft", 1e-3), ("ppo", 1.0)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_step_takes_clipped_gradients(tmp_path, inputs, phase, most, precision):
    """Lightning's mixed precision refuses to clip before one, for the scaler that bf16 lacks."""
    module, data = build(phase, inputs)
    limits = {"limit_train_batches": 1, "limit_val_batches": 0, "precision": precision}
    if phase == "sft":
        limits["gradient_clip_val"] = most
    norms = []

    def look(optimizer, args, kwargs):
        assert optimizer.defaults["fused"]
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        gradients = [one.grad for one in parameters if one.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_post_hook(look)
    try:
        phase_trainer(tmp_path, **limits).fit(module, data)
    finally:
        hook.remove()
    assert 0 < max(norms) < 1.01 * most
