import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.modules.metrics import CalibrationError, NamedMeans, agreement, decided_weight
from tests.oracles import calibration as oracle
from tests.support.two_processes import run_in_two_processes


class PairMeans(NamedMeans):
    """Measures the one of a reward model's validation."""

    name = ""

    def update(self, predicted, human, weight):
        values = {
            "accuracy": agreement(predicted - 0.5, human),
            "brier": (predicted - human).square(),
        }
        super().update(values, weight, accuracy=decided_weight(weight, human))

    def compute(self):
        return super().compute()[self.name]


class Accuracy(PairMeans):
    name = "accuracy"


class Brier(PairMeans):
    name = "brier"


METRICS = [Accuracy, Brier, CalibrationError]

probabilities = st.floats(0, 1, width=32)
pairs = st.lists(
    st.tuples(probabilities, probabilities, st.floats(0.125, 4, width=32)), min_size=1, max_size=20
)


def tensors(rows):
    return [torch.tensor(column, dtype=torch.float32) for column in zip(*rows, strict=True)]


def measured(metric, rows):
    metric.update(*tensors(rows))
    return float(metric.compute())


def accuracy_loop(rows):
    correct = total = 0.0
    for predicted, human, weight in rows:
        if human == 0.5:
            continue
        total += weight
        if predicted == 0.5:
            correct += weight / 2
        elif (predicted > 0.5) == (human > 0.5):
            correct += weight
    return correct / total if total else math.nan


def brier_loop(rows):
    return sum(w * (p - h) ** 2 for p, h, w in rows) / sum(w for _, _, w in rows)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # By hand: right (1), wrong (2), half right (4), left out; of 7 counted.
        (Accuracy, (1 + 2) / 7),
        # 1 * .04 + 2 * .04 + 4 * .25 + 1 * .09, over 8.
        (Brier, (0.04 + 0.08 + 1.0 + 0.09) / 8),
    ],
)
def test_by_hand(metric, expected):
    rows = [(0.8, 0.6, 1.0), (0.6, 0.4, 2.0), (0.5, 1.0, 4.0), (0.8, 0.5, 1.0)]
    assert measured(metric(), rows) == pytest.approx(expected, abs=1e-6)


def test_calibration_by_hand():
    rows = [(0.85, 0.75, 1.0), (0.65, 0.75, 3.0)]
    metric = CalibrationError()
    # Bins of 0.85 and 0.15 are off by 0.1 with weight 1/2 each, those of 0.65 and 0.35 with 3/2.
    assert measured(metric, rows) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(("metric", "loop"), [(Accuracy, accuracy_loop), (Brier, brier_loop)])
@given(rows=pairs)
def test_accuracy_and_brier_score_equal_their_loops(metric, loop, rows):
    assert measured(metric(), rows) == pytest.approx(loop(rows), abs=1e-5, nan_ok=True)


@given(pairs)
def test_calibration_equals_the_loop(rows):
    # Away from the edges of the bins: there rounding alone decides between two bins.
    inside = [
        (p, h, w) for p, h, w in rows if all(abs(p * 10 - edge) > 1e-3 for edge in range(1, 10))
    ]
    if inside:
        assert measured(CalibrationError(), inside) == pytest.approx(oracle.error(inside), abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@given(rows=pairs)
def test_who_stands_first_does_not_matter(metric, rows):
    # Multiples of 1/64 off the bins' edges, so that 1 - p is exact.
    rows = [((round(p * 63) + 0.5) / 64, round(h * 64) / 64, w) for p, h, w in rows]
    swapped = [(1 - p, 1 - h, w) for p, h, w in rows]
    assert measured(metric(), rows) == pytest.approx(
        measured(metric(), swapped), abs=1e-5, nan_ok=True
    )


def test_calibrated_predictions_have_no_error():
    rows = [(p / 20, p / 20, 1.0) for p in range(21)]
    assert measured(CalibrationError(), rows) == pytest.approx(0, abs=1e-6)
    assert measured(Brier(), rows) == pytest.approx(0, abs=1e-6)


def test_order_of_the_pair_by_people_is_no_calibration_error():
    """Calibrated coin tosses, written down with the winner first, stay calibrated."""
    rows = [(0.3, 1.0, 1.0)] * 3 + [(0.7, 1.0, 1.0)] * 7
    assert measured(CalibrationError(), rows) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_do_not_matter_and_weight_zero_counts_nothing(metric):
    rows = [(0.9, 0.7, 1.0), (0.35, 0.2, 2.0), (0.55, 0.1, 0.5)]
    whole = measured(metric(), [*rows, (0.75, 0.1, 0.0)])
    parts = metric()
    for row in rows:
        parts.update(*tensors([row]))
    assert float(parts.compute()) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_counted_is_nan(metric):
    empty = metric()
    empty.update(*(torch.zeros(0) for _ in range(3)))
    assert math.isnan(empty.compute())


@pytest.mark.parametrize("metric", METRICS)
def test_a_nan_prediction_is_not_hidden(metric):
    assert math.isnan(measured(metric(), [(math.nan, 0.9, 1.0), (0.8, 0.9, 1.0)]))


def test_many_small_values_are_not_lost_beside_a_large_sum():
    means, many = NamedMeans(), torch.full((1 << 20,), 2.0**-20)
    means.update({"x": torch.tensor([2.0**20])}, torch.tensor([1.0]))
    for _ in range(2):
        means.update({"x": many}, torch.ones(len(many)))
    assert means.compute()["x"] == (2**20 + 2) / (1 + 2 * len(many))


def test_a_report_begins_again():
    means = NamedMeans()
    for value in (1.0, 5.0):
        means.update({"x": torch.tensor(value)}, torch.tensor(1.0))
        assert means.compute() == {"x": value}
    assert means.compute() == {}


ROWS = [(0.9, 0.7, 1.0), (0.35, 0.2, 2.0), (0.55, 0.1, 0.5), (0.5, 0.9, 1.0), (0.45, 0.6, 3.0)]


def measure_own_share(rows):
    rank = torch.distributed.get_rank()
    own = rows[:4] if rank == 0 else rows[4:]  # unequal shares
    return [measured(metric(), own) for metric in METRICS]


def test_two_processes_equal_one():
    whole = [measured(metric(), ROWS) for metric in METRICS]
    for values in run_in_two_processes(measure_own_share, ROWS):
        assert values == pytest.approx(whole, abs=1e-6)
