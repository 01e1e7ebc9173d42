from lit_rlhf.feedback import Comparison, JudgedGroup
from lit_rlhf.feedback.aggregation import JudgedPair, Majority


def test_most_labelers_are_right_and_ties_weigh_nothing():
    ratings = ((1.0, 2.0, 2.0), (1.0, 2.0, 2.0), (3.0, 2.0, 2.0))
    group = JudgedGroup("Q", ("a", "b", "c"), ratings=ratings, weight=2.0)
    assert Majority().pairs(group) == [
        JudgedPair(1, 0, 1.0, 2.0),
        JudgedPair(2, 0, 1.0, 2.0),
        JudgedPair(1, 2, 1.0, 0.0),
    ]


def test_comparisons_lose_their_doubt_as_well():
    assert Majority().pairs(Comparison("Q", "a", "b", 0.3)) == [JudgedPair(1, 0, 1.0, 1.0)]
    assert Majority().pairs(Comparison("Q", "a", "b", 0.5)) == [JudgedPair(0, 1, 1.0, 0.0)]
