"""How far two runs of a phase are from each other."""

import itertools
import math

import pytest
import torch


def largest_differences(shares, alone) -> dict[str, float]:
    """Compare the runs of several processes with the run of one.

    Args:
        shares: a `Run` of each process.
        alone: the `Run` of one process.

    Returns:
        The largest difference by kind: of weights, gradients, gradient norms, metrics, held-out
        metrics and advantages. Numbers above 1 are compared relative to their size.

    Raises:
        AssertionError: something is there on one side only, or the samples differ.
    """
    _same_samples([run.heard for run in shares], alone.heard)
    differences = {
        kind: max(
            _of_values(one, other)
            for run in shares
            for one, other in zip(getattr(run, name), getattr(alone, name), strict=True)
        )
        for kind, name in [("metrics", "metrics"), ("gradients", "gradients")]
    }
    for name in ("weights", "held_out"):
        differences[name] = max(
            _of_values(getattr(run, name), getattr(alone, name)) for run in shares
        )
    differences["gradient norms"] = max(
        _of_numbers(norm_of(one), norm_of(other))
        for run in shares
        for one, other in zip(run.gradients, alone.gradients, strict=True)
    )
    if alone.advantages:
        differences["advantages"] = _of_advantages([run.advantages for run in shares], alone)
    return differences


def norm_of(gradients) -> float:
    """Return the norm of all gradients of a step together."""
    return math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))


def assert_close(one, other, tolerance) -> None:
    """Compare numbers or tensors by name, with an absolute tolerance; NaN equals NaN."""
    assert one.keys() == other.keys()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                one[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: name + text
            )
        elif not (math.isnan(value) and math.isnan(one[name])):
            assert one[name] == pytest.approx(value, abs=tolerance, rel=tolerance), name


def _same_samples(shares, whole):
    everything = sorted(itertools.chain(*itertools.chain(*shares)))
    assert everything == sorted(itertools.chain(*whole))


def _of_advantages(shares, alone):
    largest = 0.0
    rollouts = zip(*shares, strict=True)
    for parts, whole in zip(rollouts, alone.advantages, strict=True):
        mine, expected = sorted(itertools.chain(*parts)), sorted(whole)
        assert [row[:2] for row in mine] == [row[:2] for row in expected]
        for (*_, one), (*_, other) in zip(mine, expected, strict=True):
            pairs = zip(one, other, strict=True)
            largest = max(largest, *(_of_numbers(a, b) for a, b in pairs))
    return largest


def _of_values(one, other) -> float:
    assert one.keys() == other.keys()
    return max((_of_numbers(one[name], value) for name, value in other.items()), default=0.0)


def _of_numbers(one, other) -> float:
    one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    assert torch.equal(one.isnan(), other.isnan())
    difference = (one - other).abs() / other.abs().clamp(min=1)
    return float(difference.nan_to_num(nan=0.0).max()) if difference.numel() else 0.0
