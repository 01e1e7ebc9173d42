import numpy as np
import pytest
import torch

from lit_rlhf.evaluation.calibration import (
    JudgedPredictions,
    brier_score,
    calibration_error,
    reliability,
)
from lit_rlhf.modules.metrics import CalibrationError, both_orders
from tests.oracles import calibration as oracle

RANDOM = np.random.default_rng(2)


def random_pairs(num_pairs=60, num_prompts=20):
    prompts = np.sort(RANDOM.integers(num_prompts, size=num_pairs))
    predicted = RANDOM.random(num_pairs)
    human = RANDOM.integers(0, 6, size=num_pairs) / 5
    return JudgedPredictions(predicted, human, RANDOM.random(num_pairs), prompts, num_prompts)


def test_values_against_plain_loops_and_against_the_metrics_of_training():
    pairs = random_pairs()
    rows = list(zip(*pairs[:3], strict=True))
    assert calibration_error(pairs).value == pytest.approx(oracle.error(rows))
    squares = sum(w * (p - h) ** 2 for p, h, w in rows)
    assert brier_score(pairs).value == pytest.approx(squares / sum(pairs.weight))
    metric = CalibrationError()
    metric.update(*(torch.tensor(column) for column in pairs[:3]))
    assert calibration_error(pairs).value == pytest.approx(float(metric.compute()), abs=1e-5)
    filled = [row for row in oracle.bins(rows) if row[0]]
    for (weight, predicted, human), row in zip(filled, reliability(pairs), strict=True):
        assert row.predicted == pytest.approx(predicted / weight)
        assert row.human.value == pytest.approx(human / weight)
        assert row.low <= row.predicted <= row.high


def test_on_the_edges_of_bins_training_and_evaluation_agree():
    """On each edge and within the rounding of float32 around it."""
    edges = np.arange(11) / 10
    predicted = np.concatenate([edges, np.nextafter(edges, 0), np.float32(edges)]).clip(0, 1)
    human = np.where(np.arange(33) % 2, 0.9, 0.2)
    pairs = JudgedPredictions(predicted, human, np.ones(33), np.arange(33), 33)
    metric = CalibrationError()
    metric.update(*(torch.tensor(column, dtype=torch.float32) for column in pairs[:3]))
    assert calibration_error(pairs).value == pytest.approx(float(metric.compute()), abs=1e-6)
    columns = (torch.tensor(column, dtype=torch.float32) for column in pairs[:3])
    counts = both_orders(*columns, 10).bins.bincount(minlength=10).tolist()
    found = {round(row.low * 10): row.human.n for row in reliability(pairs)}
    assert found == {place: count for place, count in enumerate(counts) if count > 0}


def test_which_response_stands_first_does_not_matter():
    pairs = random_pairs()
    turned = pairs._replace(predicted=1 - pairs.predicted, human=1 - pairs.human)
    assert calibration_error(turned).value == pytest.approx(calibration_error(pairs).value)
    assert brier_score(turned).value == pytest.approx(brier_score(pairs).value)


def test_a_calibrated_model_is_told_from_one_that_is_too_sure():
    truth = RANDOM.random(4000)
    human = (RANDOM.random(4000) < truth).astype(float)
    ones, prompts = np.ones(4000), np.arange(4000)
    calibrated = calibration_error(JudgedPredictions(truth, human, ones, prompts, 4000))
    sure = np.where(truth > 0.5, 0.98, 0.02)
    too_sure = calibration_error(JudgedPredictions(sure, human, ones, prompts, 4000))
    assert calibrated.high < 0.05
    assert too_sure.low > 0.15


def test_pairs_of_one_prompt_count_together():
    """Ten copies of every pair are no new evidence: the interval stays as wide."""
    pairs = random_pairs(40, 40)._replace(prompts=np.arange(40))
    copies = JudgedPredictions(*(np.repeat(column, 10) for column in pairs[:4]), 40)
    for function in (brier_score, calibration_error):
        once, often = function(pairs), function(copies)
        assert often[:3] == pytest.approx(once[:3])
        assert (once.n, often.n) == (40, 400)


def test_the_brier_interval_holds_the_truth_at_the_nominal_rate():
    hits = 0
    for _ in range(300):
        predicted = RANDOM.random(50)
        human = (RANDOM.random(50) < predicted).astype(float)
        pairs = JudgedPredictions(predicted, human, np.ones(50), np.arange(50), 50)
        estimate = brier_score(pairs)
        hits += estimate.low <= 1 / 6 <= estimate.high  # E p(1 - p), p uniform
    assert 273 <= hits <= 297
