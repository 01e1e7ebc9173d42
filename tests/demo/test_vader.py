import pytest
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lit_rlhf.demo.vader import VaderReward, vader_scores
from lit_rlhf.rewards.source import RewardSource


def test_scores_the_whole_text_without_the_instruction():
    reward = VaderReward()
    prompts = ["Movie review: A great", "Movie review: An awful", "Movie review: It", "No"]
    responses = [" and funny film!", " film.", " is a film.", " good"]
    texts = ["A great and funny film!", "An awful film.", "It is a film.", "No good"]
    analyzer = SentimentIntensityAnalyzer()
    expected = [analyzer.polarity_scores(text)["compound"] for text in texts]
    scores = reward(prompts, responses, None)
    assert isinstance(reward, RewardSource)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected))
    assert scores[0] > 0.5
    assert scores[1] < 0
    assert scores[2] == 0


def test_instruction_is_an_option_and_only_cut_at_the_start():
    prompt = "Terrible: a Terrible: day"
    kept = VaderReward(instruction="")([prompt], [""])
    cut = VaderReward(instruction="Terrible:")([prompt], [""])
    assert kept < cut < 0


def test_number_of_responses_must_fit():
    with pytest.raises(ValueError, match="shorter"):
        VaderReward()(["a", "b"], ["c"])


def test_no_responses():
    assert VaderReward()([], []).shape == (0,)


def test_as_a_plain_function():
    prompts, responses = ["Movie review: this is", "x"], [" wonderful", " dull"]
    expected = VaderReward()(prompts, responses).tolist()
    assert list(vader_scores(prompts, responses)) == expected
    assert expected[0] > 0.5
