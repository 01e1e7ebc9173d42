"""PPO takes steps with every objective, and what the rollout adds for some of them is right."""

import pytest
import torch

from lit_rlhf.data import PPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import OptimizerConfig, PPOModule, UpdateConfig
from lit_rlhf.objectives import (
    GAE,
    GRPO,
    RLOO,
    LengthAdaptiveGAE,
    MissingEOS,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)
from lit_rlhf.rewards import FunctionReward, RewardSource
from lit_rlhf.rollout import Sampling
from tests.support.phases import (
    Recorder,
    largest_difference,
    phase_trainer,
    prompts,
    weights,
    write_rows,
)

LENGTH = FunctionReward("tests.support.toy_rewards.length")
FAST = OptimizerConfig(learning_rate=1e-2, eps=1e-3, schedule="constant", warmup_fraction=0.0)


@pytest.fixture
def run(talker, tmp_path):
    """Return a function that trains a module for some iterations of four prompts."""
    path = write_rows(tmp_path / "prompts.jsonl", prompts(12))

    def run(num_iterations=2, *, reward=LENGTH, module_class=PPOModule, **settings):
        torch.manual_seed(0)
        settings = {
            "optimizer": FAST,
            "sampling": Sampling(max_new_tokens=6),
            "update": UpdateConfig(num_epochs=2),
        } | settings
        module = module_class(talker, reward, **settings)
        module.recorder = Recorder()
        options = {"limit_train_batches": num_iterations, "limit_val_batches": 0}
        trainer = phase_trainer(tmp_path, callbacks=[module.recorder], **options)
        trainer.fit(module, PPODataModule(talker, train=path, batch_size=4))
        return module

    return run


@pytest.mark.parametrize(
    "advantage",
    [
        GAE(critic_lambda=1.0),
        LengthAdaptiveGAE(),
        RLOO(3),
        GRPO(2, "group"),
        GRPO(2, "none"),
        ReinforcePlusPlus(),
        ReinforcePlusPlus(0.9, k=2),
        ReinforcePlusPlusBaseline(2),
        ReMax(),
        ReMax(2),
    ],
    ids=repr,
)
def test_every_estimator_takes_steps(run, advantage):
    module = run(advantage=advantage)
    assert module.recorder.values("train/ppo/optimizer_steps") == [2, 2]
    assert module.recorder.values("train/ppo/first_log_ratio") == [0, 0]
    assert largest_difference(weights(module.policy.model), weights(module.reference.model)) > 1e-3
    assert (module.policy.value_head is not None) == advantage.requires_values


class Keeping(RewardSource):
    """Scores by length, and keeps what it was asked about."""

    def __init__(self):
        self.batches, self.scores = [], []

    def __call__(self, prompts, responses, batch):
        self.batches.append(batch)
        self.scores.append(torch.tensor([len(response) / 10 for response in responses]))
        return self.scores[-1]


def targets_of(run, monkeypatch, **settings):
    """Return rollout and targets of the first iteration."""
    seen = []
    compute = PPOModule._targets
    monkeypatch.setattr(
        PPOModule,
        "_targets",
        lambda self, rollout: seen.append((rollout, compute(self, rollout))) or seen[-1][1],
    )
    run(1, **settings)
    return seen[0]


@pytest.mark.parametrize("k", [1, 3])
def test_remax_compares_with_the_greedy_response_to_the_same_prompt(run, monkeypatch, k):
    reward, rule = Keeping(), MissingEOS("subtract", 0.25)
    _, targets = targets_of(
        run, monkeypatch, reward=reward, advantage=ReMax(k), missing_eos=rule,
        whiten_advantages=False,
    )  # fmt: skip
    sampled, greedy = reward.batches
    assert greedy.group_ids.tolist() == [0, 1, 2, 3]
    assert not greedy.sampler_logprobs.any()
    scores, of_greedy = reward.scores
    scores = rule.apply(scores, sampled.finished)
    of_greedy = rule.apply(of_greedy, greedy.finished).repeat_interleave(k)
    mask = sampled.response_mask
    # The KL of the first iteration is zero, so all tokens of a response have its advantage.
    expected = (scores - of_greedy)[:, None] * mask
    torch.testing.assert_close(targets.advantages, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 0.1


def test_without_a_greedy_score_a_response_does_not_count(run, monkeypatch):
    """The reward cannot score the greedy responses of two prompts: theirs are left out."""

    def reward(prompts, responses):
        reward.calls += 1
        if reward.calls == 1:
            return [1.0] * len(responses)
        return [float("nan"), 0.5, float("nan"), 0.5]

    reward.calls = 0
    rollout, targets = targets_of(
        run, monkeypatch, reward=reward, advantage=ReMax(2), missing_eos=MissingEOS("keep"),
        whiten_advantages=False,
    )  # fmt: skip
    assert rollout.is_scored.tolist() == [False, False, True, True] * 2
    assert not targets.advantages[~rollout.is_scored].any()
    assert targets.advantages[rollout.is_scored].abs().max() > 0.4


def test_the_deviation_of_the_batch_is_not_divided_by_twice(talker):
    with pytest.raises(ConfigError, match=r"no effect with .*whiten_advantages true"):
        PPOModule(talker, LENGTH, advantage=GRPO(2, "batch"))
    PPOModule(talker, LENGTH, advantage=GRPO(2, "batch"), whiten_advantages=False)
