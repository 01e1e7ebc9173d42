import pytest
import torch

from lit_rlhf.rewards import RewardSource
from tests.rewards.samples import sample_batch


class Brevity(RewardSource):
    """A reward as a user would write it."""

    def __call__(self, prompts, responses, batch):
        return -batch.rows.lengths.float()


def test_a_subclass_is_called_with_texts_and_batch():
    samples = sample_batch(["a", "b"], ["yes", "no"])
    scores = Brevity()(samples.prompts, samples.responses, samples)
    assert torch.equal(scores, -samples.rows.lengths.float())


def test_a_source_must_say_how_it_scores():
    with pytest.raises(TypeError, match="abstract"):
        RewardSource()
