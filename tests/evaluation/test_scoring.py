"""Rewards asked about texts alone, as `lit-rlhf evaluate` asks them."""

import pytest
import torch

from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.responses import SourcedPrompt
from lit_rlhf.evaluation.scoring import score_texts
from lit_rlhf.models import ScalarModel, load_trunk
from lit_rlhf.rewards import EnsembleReward, FunctionReward, LearnedReward
from tests.models.examples import save_policy, write_reward_model

PROMPTS = [SourcedPrompt(f"tell me {index}", f"rows:{index}") for index in range(5)]
TEXTS = ["yes", "no", "", "perhaps", "well"]
HERE = "tests.evaluation.test_scoring"


def nothing(prompts, responses):
    return [float("nan")] * len(responses)


def test_every_kind_of_reward_serves(tmp_path):
    source = str(save_policy(tmp_path / "policy"))
    scorer = ScalarModel(load_trunk(source))
    scorer.set_normalizer(0.5, 2.0)
    learned = LearnedReward(str(write_reward_model(tmp_path / "r", scorer, source)))
    length = FunctionReward("tests.support.toy_rewards.length")
    scores = score_texts("rm", learned, PROMPTS, TEXTS)
    assert learned._loaded.model is None  # memory for the next judge
    assert torch.equal(torch.tensor(scores).float(), learned([p for p, _ in PROMPTS], TEXTS))
    lengths = score_texts("f", length, PROMPTS, TEXTS)
    assert lengths == pytest.approx([0.3, 0.2, 0, 0.7, 0.4])
    both = score_texts("both", EnsembleReward([learned, length]), PROMPTS, TEXTS)
    assert both == pytest.approx((scores + lengths) / 2, abs=1e-6)


def test_a_number_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match=r"judge f: .* no finite number"):
        score_texts("f", FunctionReward(f"{HERE}.nothing"), PROMPTS, TEXTS)
