import math
from dataclasses import dataclass

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.rewards import EnsembleReward, FunctionReward, RewardMixture, RewardSource
from tests.oracles.group_scores import standardized
from tests.rewards.samples import sample_batch

PROMPTS, RESPONSES = ["a", "a", "b", "b"], ["oo", "longer o", "x", ""]
SAMPLES = sample_batch(PROMPTS, RESPONSES)._replace(group_ids=torch.tensor([0, 0, 1, 1]))
LENGTHS = [2.0, 8.0, 1.0, 0.0]
CODE = [None, 1.0, 0.0, None]


def lengths(prompts, responses):
    return [len(response) for response in responses]


def code(prompts, responses):
    return [CODE[RESPONSES.index(response)] for response in responses]


PARTS = {"length": FunctionReward(lengths), "code": FunctionReward(code)}


def same(scores, expected):
    torch.testing.assert_close(scores, torch.tensor(expected), equal_nan=True)


def test_parts_are_added_by_weight_and_told_apart():
    mixture = RewardMixture(PARTS, {"length": -0.5})
    scores, details = mixture.score_in_detail(PROMPTS, RESPONSES, SAMPLES)
    same(scores, [math.nan, -4.0 + 1.0, -0.5, math.nan])
    assert details.keys() == set(mixture.details) == {"length", "code"}
    same(details["length"], LENGTHS)  # before its weight
    same(details["code"], [math.nan, 1.0, 0.0, math.nan])
    assert mixture.abstains


def test_a_part_that_cannot_score_may_add_nothing():
    mixture = RewardMixture(PARTS, {"code": 10.0}, requires_all=False)
    same(mixture(PROMPTS, RESPONSES, SAMPLES), [2.0, 18.0, 1.0, 0.0])
    alone = RewardMixture({"code": PARTS["code"]}, requires_all=False)
    same(alone(PROMPTS, RESPONSES), [math.nan, 1.0, 0.0, math.nan])  # nobody scores them


@dataclass(frozen=True)
class Broken(RewardSource):
    def __call__(self, prompts, responses, batch=None):
        return torch.full((len(responses),), torch.nan)


def test_what_is_broken_is_not_passed_over():
    mixture = RewardMixture({**PARTS, "broken": Broken()}, requires_all=False)
    assert mixture(PROMPTS, RESPONSES).isnan().all()


def test_normalised_parts_compare_the_samples_of_a_prompt():
    mixture = RewardMixture(PARTS, {"length": 2.0}, normalize=True, requires_all=False)
    scores, details = mixture.score_in_detail(PROMPTS, RESPONSES, SAMPLES)
    by_length = standardized(LENGTHS, [0, 0, 1, 1])
    same(scores, [2 * score for score in by_length])  # of `code`, each is alone in its group
    same(details["length"], LENGTHS)
    same(mixture(PROMPTS, RESPONSES), scores.tolist())  # of texts alone, by equal neighbours
    assert mixture.compares_samples
    assert not RewardMixture(PARTS).compares_samples


def test_one_sample_a_prompt_is_added_as_it_is():
    normalized = RewardMixture(PARTS, normalize=True)
    others = [*"abcd"]
    same(normalized(others, RESPONSES), RewardMixture(PARTS)(others, RESPONSES).tolist())


def test_details_state_and_time_are_those_of_the_parts():
    class Counter:
        calls = 0

        def __call__(self, prompts, responses):
            self.calls += 1
            return [self.calls] * len(responses)

        def state_dict(self):
            return {"calls": self.calls}

        def load_state_dict(self, state):
            self.calls = state["calls"]

    counter = FunctionReward(Counter(), timeout_s=3.0)
    both = EnsembleReward([FunctionReward(lengths, timeout_s=1.0), counter])
    mixture = RewardMixture({"both": both, "counter": counter})
    assert mixture.details == ("both", "counter", "both_disagreement")
    scores, details = mixture.score_in_detail(PROMPTS, RESPONSES)
    assert details.keys() == set(mixture.details)
    same(details["both"], [(length + 1) / 2 for length in LENGTHS])
    same(scores, [(length + 1) / 2 + 2 for length in LENGTHS])
    assert mixture.state_dict() == {"both": {"1": {"calls": 2}}, "counter": {"calls": 2}}
    mixture.load_state_dict({"counter": {"calls": 7}})
    assert counter.state_dict() == {"calls": 7}
    assert mixture.timeout_s == 7.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": {}}, "parts is empty"),
        ({"parts": PARTS, "weights": {"lenght": 1.0}}, r"weights\.lenght: .*length, code"),
        ({"parts": PARTS, "weights": {"code": math.inf}}, r"weights\.code is inf"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        RewardMixture(**settings)
