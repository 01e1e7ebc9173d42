"""PPO takes steps with every objective, and what the rollout adds for some of them is right."""

import dataclasses
from pathlib import Path

import pytest
import torch

from lit_rlhf.callbacks import KLControl
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import ScalarModel, load_trunk
from lit_rlhf.modules import PPOModule, UpdateConfig
from lit_rlhf.objectives import (
    CISPO,
    GAE,
    GRPO,
    GSPO,
    RLOO,
    ConstantLength,
    KLPenalty,
    LengthAdaptiveGAE,
    MissingEOS,
    OverlongPenalty,
    PPOClip,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    SequenceMean,
)
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import Sampling
from tests.models.examples import write_reward_model
from tests.support.phases import largest_difference, weights
from tests.support.rewarded_runs import LENGTH, fit_rewarded


@pytest.fixture
def run(talker, tmp_path):
    """Return a function that trains a module for some iterations of four prompts."""

    def run(num_iterations=2, *, reward=LENGTH, callbacks=(), **settings):
        settings = {"update": UpdateConfig(num_epochs=2), "num_prompts": 16} | settings
        settings["num_iterations"] = num_iterations
        return fit_rewarded(PPOModule, talker, reward, tmp_path, *callbacks, **settings)

    return run


@pytest.fixture
def reward_folder(talker, tmp_path):
    """Write a reward model as its phase does."""
    reward_model = ScalarModel(load_trunk(talker))
    return str(write_reward_model(tmp_path / "reward", reward_model, Path(talker)))


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


@pytest.mark.parametrize(
    "update",
    [
        UpdateConfig(2, policy_loss=PPOClip(clip_range_high=0.28, dual_clip=3.0)),
        UpdateConfig(2, policy_loss=CISPO()),
        UpdateConfig(2, policy_loss=GSPO(), aggregation=SequenceMean()),
        UpdateConfig(2, aggregation=ConstantLength(6)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_every_policy_loss_takes_steps(run, update, micro_batch_size):
    update = dataclasses.replace(update, micro_batch_size=micro_batch_size)
    module = run(advantage=RLOO(2), update=update)
    assert module.recorder.values("train/ppo/optimizer_steps") == [2, 2]
    assert module.recorder.values("train/ppo/first_log_ratio") == [0, 0]
    assert largest_difference(weights(module.policy.model), weights(module.reference.model)) > 1e-3


@pytest.mark.parametrize("aggregation", [SequenceMean(), ConstantLength(6)], ids=repr)
def test_the_size_of_micro_batches_does_not_matter(run, aggregation):
    whole, parts = (
        weights(run(update=UpdateConfig(2, aggregation=aggregation, micro_batch_size=size)).policy)
        for size in (None, 1)
    )
    assert largest_difference(whole, parts) < 1e-5


LOSS = KLPenalty("loss", "k3", importance_weighted=True)


@pytest.mark.parametrize(
    "penalty", [KLPenalty("reward", "k2"), KLPenalty("loss", "k3_straight_through"), LOSS], ids=repr
)
def test_every_penalty_holds_the_policy(run, penalty):
    distances = []
    for coefficient in (0.0, 5.0):
        control = KLControl(target=None, coefficient=max(coefficient, 1e-6))
        module = run(4, kl_penalty=penalty, callbacks=[control], advantage=RLOO(2))
        distances.append(module.recorder.values("train/ppo/kl")[-1])
    assert distances[1] < distances[0] * 0.8


def test_a_penalty_in_the_loss_is_in_no_reward(run, monkeypatch):
    rollout, targets = targets_of(run, monkeypatch, kl_penalty=LOSS, advantage=RLOO(2))
    assert torch.equal(targets.reference_logprobs, rollout.reference_logprobs)
    module = run(2, kl_penalty=LOSS, advantage=RLOO(2))
    logged = module.recorder.batches[-1]
    assert logged["train/ppo/kl_loss"] > 0
    assert "train/ppo/kl" in logged
    assert "train/ppo/penalized_reward" not in logged


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


def test_a_cut_response_can_be_left_out_of_baseline_and_loss(run, monkeypatch):
    reward = Keeping()
    rollout, targets = targets_of(
        run, monkeypatch, reward=reward, advantage=RLOO(3), missing_eos=MissingEOS("filter"),
        whiten_advantages=False,
    )  # fmt: skip
    finished = rollout.samples.finished
    assert 0 < finished.sum() < len(finished)
    assert torch.equal(targets.response_mask.any(1), finished)
    for group in range(4):
        rows = ((rollout.samples.group_ids == group) & finished).nonzero().squeeze(-1)
        scores = rollout.scores[rows]
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            others = (scores.sum().item() - score) / max(1, len(rows) - 1)
            expected = score - others if len(rows) > 1 else 0.0
            assert targets.advantages[row, 0].item() == pytest.approx(expected, abs=1e-5)


def test_a_response_near_the_limit_is_charged(run, monkeypatch):
    penalty = OverlongPenalty(4, weight=2.0)
    settings = {"advantage": RLOO(2), "whiten_advantages": False}
    settings["missing_eos"] = MissingEOS("keep")
    rollout, plain = targets_of(run, monkeypatch, **settings)
    _, charged = targets_of(run, monkeypatch, overlong_penalty=penalty, **settings)
    lengths = rollout.samples.response_mask.sum(1)
    cost = 2.0 * ((lengths - 2) / 4).clamp(0, 1)
    other = cost.view(-1, 2).flip(1).flatten()
    assert (cost != other).any()
    torch.testing.assert_close(
        charged.advantages[:, 0], plain.advantages[:, 0] - (cost - other), atol=1e-5, rtol=0
    )
    with pytest.raises(ConfigError, match=r"more than model\.sampling.max_new_tokens 6"):
        run(1, overlong_penalty=OverlongPenalty(7))


def test_in_its_warmup_the_critic_trains_alone(run, reward_folder):
    settings = {"critic": "separate", "critic_source": reward_folder}
    update = UpdateConfig(2, critic_warmup_iterations=2)
    control = KLControl()
    module = run(2, update=update, callbacks=[control], **settings)
    assert largest_difference(weights(module.policy), weights(module.reference)) == 0
    assert control.state.num_updates == 0
    losses = module.recorder.values("train/ppo/value_loss")
    assert len(losses) == 2
    module = run(3, update=update, callbacks=[control := KLControl()], **settings)
    assert largest_difference(weights(module.policy), weights(module.reference)) > 1e-3
    assert control.state.num_updates == 1
    steps = {int(state["step"]) for state in module.optimizers().state.values()}
    assert steps == {2, 6}  # of the policy and of the critic


@pytest.mark.parametrize("settings", [{}, {"advantage": RLOO(2)}])
def test_a_warmup_without_a_critic_of_its_own_is_refused(talker, settings):
    with pytest.raises(ConfigError, match="critic_warmup_iterations=1 trains the critic alone"):
        PPOModule(talker, LENGTH, update=UpdateConfig(critic_warmup_iterations=1), **settings)


def test_where_every_response_was_cut_and_left_out_the_policy_stays(run):
    settings = {"sampling": Sampling(max_new_tokens=1), "missing_eos": MissingEOS("filter")}
    module = run(1, advantage=RLOO(2), **settings)
    finished = module.recorder.values("train/ppo/finished")[0]
    moved = largest_difference(weights(module.policy.model), weights(module.reference.model))
    assert (moved == 0) == (finished < 0.25)
    assert module.recorder.values("train/ppo/skipped_steps") == [0]
