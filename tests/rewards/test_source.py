import pytest

from lit_rlhf.rewards import RewardSource


def test_a_source_must_say_how_it_scores():
    with pytest.raises(TypeError, match="abstract"):
        RewardSource()
