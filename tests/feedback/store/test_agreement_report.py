"""Agreement read from a store, and its alpha against the oracle's."""

import numpy as np
import pytest

from lit_rlhf.demo.fetching import RATINGS_ARCHIVE, fetch
from lit_rlhf.demo.ratings import read_ratings
from lit_rlhf.feedback.agreement import Estimate, Undefined
from lit_rlhf.feedback.agreement_report import read_agreement
from lit_rlhf.feedback.judgments import JudgedTask, Judgment
from lit_rlhf.feedback.store import FeedbackStore


def test_counts_come_from_one_query_on_both_databases(store):
    alike = (Judgment("judged", (1, 2), labeler="ana"), Judgment("judged", (1, 2), labeler="ben"))
    apart = (alike[0], Judgment("both_bad", labeler="ben"))
    rated = (Judgment("judged", ratings=(3.0, None), labeler="ana"),)
    tasks = [("p", alike), ("q", apart), ("r", rated), ("s", (Judgment("skip", labeler="ana"),))]
    store.add_tasks(JudgedTask(prompt, ("a", "b"), said, None, {}) for prompt, said in tasks)
    with store.database.reading() as connection:
        found = {(one.judged, one.measure): one for one in read_agreement(connection)}
    percent = found["pairs", "percent agreement"]
    assert isinstance(percent.value, Estimate)
    assert (percent.value.value, percent.num_units) == (0.5, 2)
    unjudged = found["ratings", "percent agreement"]
    assert isinstance(unjudged.value, Undefined)
    assert unjudged.num_units == 0


def test_alpha_of_imported_ratings_is_that_of_the_oracle(store):
    draw = np.random.default_rng(0)
    texts = draw.integers(-4, 5, (200, 1)) + draw.integers(-1, 2, (200, 9))
    ratings = [row[: draw.integers(1, 10)].tolist() for row in texts]
    assert_alpha_is_that_of_the_oracle(store, ratings)


@pytest.mark.slow
def test_alpha_of_the_real_ratings_is_that_of_the_oracle(tmp_path):
    archive = fetch(RATINGS_ARCHIVE, tmp_path)  # 2.4 MB, from PyPI
    with FeedbackStore.open(str(tmp_path / "feedback.db")) as store:
        assert_alpha_is_that_of_the_oracle(store, [one.ratings for one in read_ratings(archive)])


def assert_alpha_is_that_of_the_oracle(store, ratings):
    """Import each text as a task and each rating as a judgment, and compare two levels."""
    oracle = pytest.importorskip("krippendorff", reason="a GPL package: an oracle of tests alone")
    store.add_tasks(
        JudgedTask(
            "Rate it", (f"text {number}",),
            tuple(Judgment("judged", ratings=(float(rating),)) for rating in given), None, {},
        )
        for number, given in enumerate(ratings)
    )  # fmt: skip
    most = max(map(len, ratings))
    table = np.full((most, len(ratings)), np.nan)
    for number, given in enumerate(ratings):
        table[: len(given), number] = given
    with store.database.reading() as connection:
        found = {one.measure: one.value for one in read_agreement(connection)}
    for level in ("ordinal", "interval"):
        expected = oracle.alpha(table, level_of_measurement=level)
        assert found[f"Krippendorff's alpha, {level}"].value == pytest.approx(expected, abs=1e-6)
