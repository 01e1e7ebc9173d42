import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW

from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import OptimizerConfig
from lit_rlhf.modules.bf16_adamw import BF16AdamW


def factors(num_steps, **settings):
    config = OptimizerConfig(**settings)
    return [config.rate_factor(step, num_steps) for step in range(num_steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear", "warmup_fraction": 0.0}, [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "constant", "warmup_fraction": 0.0}, [1, 1, 1, 1, 1]),
        # By hand: (1 + cos(0, pi/4, pi/2, 3 pi/4, pi)) / 2.
        ({"schedule": "cosine", "warmup_fraction": 0.0}, [1, 0.853553, 0.5, 0.146447, 0]),
        # Two of four steps rise, by thirds, to the peak; then down.
        ({"schedule": "linear", "warmup_fraction": 0.5}, [1 / 3, 2 / 3, 1, 0.5, 0]),
        ({"schedule": "constant", "warmup_fraction": 0.5}, [1 / 3, 2 / 3, 1, 1, 1]),
    ],
)
def test_schedules_by_hand(settings, expected):
    assert factors(4, **settings) == pytest.approx(expected, abs=1e-6)


@given(st.sampled_from(["linear", "cosine", "constant"]), st.floats(0, 0.99), st.integers(1, 40))
def test_every_step_of_a_run_moves_the_weights_and_none_beyond_the_peak(schedule, share, num_steps):
    rates = factors(num_steps, schedule=schedule, warmup_fraction=share)
    assert all(0 < rate <= 1 for rate in rates[:-1])


def test_the_optimizer_has_what_the_configuration_says():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    config = OptimizerConfig(
        learning_rate=0.5,
        weight_decay=0.1,
        beta1=0.8,
        beta2=0.7,
        eps=1e-3,
        schedule="linear",
        warmup_fraction=0.0,
    )
    optimizer, scheduler = config.build(model.parameters(), num_steps=2)
    decayed, others = optimizer.param_groups
    assert [parameter.shape for parameter in decayed["params"]] == [(2, 3)]
    assert [parameter.shape for parameter in others["params"]] == [(2,), (2,), (2,)]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.8, 0.7), 1e-3)
    rates = []
    for _ in range(2):
        rates.append(decayed["lr"])
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == [0.5, 0.25]
    assert decayed["lr"] == 0


def test_weight_decay_is_decoupled():
    weight = nn.Parameter(torch.full((1, 1), 2.0))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0.0)
    optimizer, _ = config.build([weight], num_steps=1)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate is 0\.0; it must be above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate is nan; it must be above 0"),
        ({"warmup_fraction": 1.0}, r"optimizer\.warmup_fraction is 1\.0; it must be .* below 1"),
        ({"warmup_fraction": -0.1}, r"warmup_fraction is -0\.1; it must be at least 0"),
        ({"states": "4bit"}, r"optimizer\.states must be one of float32, bf16, 8bit, got '4bit'"),
        ({"weights": "8bit"}, r"optimizer\.weights must be one of float32, bf16, got '8bit'"),
    ],
)
def test_values_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**settings)


@pytest.mark.parametrize(
    ("states", "weights", "kind", "moments"),
    [
        ("float32", "float32", AdamW, None),
        ("bf16", "float32", BF16AdamW, torch.bfloat16),
        ("float32", "bf16", BF16AdamW, torch.float32),
        ("bf16", "bf16", BF16AdamW, torch.bfloat16),
        # Adapters on weights in bf16 are float32 themselves.
        ("float32", "adapters", AdamW, None),
    ],
)
def test_only_what_is_rounded_leaves_torchs_own_optimizer(states, weights, kind, moments):
    config = OptimizerConfig(
        learning_rate=0.5,
        beta1=0.8,
        eps=1e-3,
        states=states,
        weights="float32" if weights == "float32" else "bf16",
        rounding_seed=7,
    )
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    optimizer, _ = config.build([nn.Parameter(torch.ones(2, 2, dtype=dtype))], num_steps=1)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["initial_lr"]) == ((0.8, 0.95), 1e-3, 0.5)
    if moments is not None:
        assert (optimizer.moment_dtype, optimizer.seed) == (moments, 7)


def test_8_bit_states_say_what_they_need(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.delitem(sys.modules, "lit_rlhf.modules.eight_bit_adamw", raising=False)
    with pytest.raises(ConfigError, match=r"states 8bit needs torchao: pip install .*torchao"):
        OptimizerConfig(states="8bit").build([nn.Parameter(torch.ones(2))], num_steps=1)


@pytest.mark.parametrize("has_scaler", [False, True])
def test_a_scaler_and_a_fused_step_do_not_meet(has_scaler):
    """Lightning does not clip what a fused optimizer takes the scale off."""
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer, _ = OptimizerConfig().build([weight], num_steps=1, has_scaler=has_scaler)
    assert optimizer.defaults["fused"] is not has_scaler
