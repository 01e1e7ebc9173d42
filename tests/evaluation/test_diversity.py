import pytest

from lit_rlhf.evaluation.diversity import distinct_n


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        (["a b c d"], 2, 1.0),
        (["a b a b"], 2, 2 / 3),  # ab ba ab
        (["a b", "a b", "a b", "A  B"], 2, 1 / 4),
        (["a b", "c d"], 2, 1.0),  # "b c" is no bigram
        (["a a b"], 1, 2 / 3),
        (["a b c", "a b d"], 3, 1.0),
        (["a", "", "b"], 2, 0.0),
        ([], 2, 0.0),
    ],
)
def test_by_hand(texts, n, expected):
    assert distinct_n(texts, n) == pytest.approx(expected)


def test_one_answer_for_all_is_less_varied():
    varied = [f"word{number} end" for number in range(20)]
    assert distinct_n(["the same answer"] * 20) < distinct_n(varied) == 1
