import dataclasses
import math

import pytest
import torch
from torch import nn

from lit_rlhf.batches import TokenRows
from lit_rlhf.callbacks import KLControl
from lit_rlhf.models import TokenScores
from lit_rlhf.modules import PPOModule, UpdateConfig
from lit_rlhf.modules.ppo_update import (
    UpdateStatistics,
    UpdateTargets,
    minibatch_loss,
)
from lit_rlhf.objectives import GAE, KLPenalty, PPOClip, SequenceMean
from lit_rlhf.rollout import Sampling
from tests.models.examples import plain_model
from tests.oracles.advantages import gae
from tests.oracles.kl import k3
from tests.oracles.policy_gradient import approximate_kl, policy_loss, value_loss
from tests.support.phases import weights
from tests.support.rewarded_runs import LENGTH, fit_rewarded


def random_targets(with_critic=True):
    """Return three rows of 2, 3 and 4 prompt tokens with 3, 0 and 2 response tokens."""
    prompt_lengths, sizes = torch.tensor([2, 3, 4]), torch.tensor([3, 0, 2])
    columns = torch.arange(6)
    in_row = columns < (prompt_lengths + sizes)[:, None]
    rows = TokenRows(
        torch.zeros(3, 6, dtype=torch.long),
        prompt_lengths + sizes,
        in_row & (columns >= prompt_lengths[:, None]),
    )
    mask = torch.arange(3) < sizes[:, None]
    old, advantages = -torch.rand(3, 3), torch.randn(3, 3)
    old_values, returns = torch.randn(3, 3), torch.randn(3, 3)
    if not with_critic:
        old_values = returns = None
    return UpdateTargets(rows, prompt_lengths, mask, old, old_values, advantages, returns)


SETTINGS = UpdateConfig(
    policy_loss=PPOClip(0.3),
    value_clip_range=0.4,
    value_coef=0.7,
    entropy_coef=0.05,
    max_grad_norm=None,
)


def test_the_loss_and_the_counts_equal_the_oracle_token_by_token():
    targets = random_targets()
    logprobs, values, entropy = -torch.rand(3, 6), torch.randn(3, 6), torch.rand(3, 6)
    entropy = entropy * targets.rows.response_mask  # as the policy returns it
    statistics = UpdateStatistics()
    loss = minibatch_loss(targets, TokenScores(logprobs, entropy, values), SETTINGS, statistics)
    expected, sums, largest = 0.0, [0.0] * 6, 0.0
    for row, column in targets.response_mask.nonzero().tolist():
        place = int(targets.prompt_lengths[row]) + column
        new, old = float(logprobs[row, place]), float(targets.old_logprobs[row, column])
        policy, is_clipped = policy_loss(new, old, float(targets.advantages[row, column]), 0.3)
        value, value_is_clipped = value_loss(
            float(values[row, place]),
            float(targets.old_values[row, column]),
            float(targets.returns[row, column]),
            0.4,
        )
        expected += policy + 0.7 * value - 0.05 * float(entropy[row, place])
        counted = (1, policy, value, approximate_kl(new, old), is_clipped, value_is_clipped)
        sums = [total + float(part) for total, part in zip(sums, counted, strict=True)]
        largest = max(largest, abs(new - old))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert float(statistics.largest_log_ratio) == pytest.approx(largest, abs=1e-6)
    names = ("policy_loss", "value_loss", "approximate_kl", "clip_fraction", "value_clip_fraction")
    means = {name: total / sums[0] for name, total in zip(names, sums[1:], strict=True)}
    report = statistics.report()
    assert {name: report[name] for name in names} == pytest.approx(means, abs=1e-5)


def test_without_a_critic_and_a_bonus_only_the_policy_counts():
    targets = random_targets(with_critic=False)
    logprobs = -torch.rand(3, 6)
    statistics = UpdateStatistics()
    loss = minibatch_loss(targets, TokenScores(logprobs, None, None), SETTINGS, statistics)
    report = statistics.report()
    assert loss.item() == pytest.approx(5 * report["policy_loss"], abs=1e-5)
    assert "value_loss" not in report


def test_the_samplers_correction_weighs_the_policy_loss_alone():
    targets, logprobs, values = random_targets(), -torch.rand(3, 6), torch.randn(3, 6)
    weighed = targets._replace(sampler_weights=torch.rand(3, 3) * 2)
    plain_counts, counts = UpdateStatistics(), UpdateStatistics()
    plain = minibatch_loss(targets, TokenScores(logprobs, None, values), SETTINGS, plain_counts)
    loss = minibatch_loss(weighed, TokenScores(logprobs, None, values), SETTINGS, counts)
    expected = 0.0
    for row, column in targets.response_mask.nonzero().tolist():
        new = float(logprobs[row, int(targets.prompt_lengths[row]) + column])
        old = float(targets.old_logprobs[row, column])
        token_loss, _ = policy_loss(new, old, float(targets.advantages[row, column]), 0.3)
        expected += token_loss * float(weighed.sampler_weights[row, column])
    report, plain_report = counts.report(), plain_counts.report()
    weighed_loss, plain_loss = (5 * each.pop("policy_loss") for each in (report, plain_report))
    assert weighed_loss == pytest.approx(expected, abs=1e-5)
    assert float(loss - plain) == pytest.approx(expected - plain_loss, abs=1e-5)
    assert report == plain_report
    # Weights travel with their rows.
    chosen = torch.tensor([2, 0])
    assert torch.equal(weighed.select(chosen).sampler_weights, weighed.sampler_weights[chosen])


def test_every_term_is_averaged_as_the_aggregation_says():
    """By responses: rows of 3, 0 and 2 tokens, whose loss is the sum of their means."""
    targets = random_targets()
    logprobs, values, entropy = -torch.rand(3, 6), torch.randn(3, 6), torch.rand(3, 6)
    forward = TokenScores(logprobs, entropy * targets.rows.response_mask, values)
    by_response = dataclasses.replace(SETTINGS, aggregation=SequenceMean())
    whole = minibatch_loss(targets, forward, by_response, UpdateStatistics())
    sums = [
        minibatch_loss(
            targets.select(row),
            TokenScores(*(part[row] for part in forward)),
            SETTINGS,
            UpdateStatistics(),
        )
        for row in torch.arange(3)[:, None]
    ]
    assert whole.item() == pytest.approx((sums[0] / 3 + sums[2] / 2).item(), abs=1e-5)
    assert SequenceMean().size(targets.response_mask) == 2


def test_the_penalty_of_the_loss_is_added_at_each_token():
    targets, logprobs = random_targets(with_critic=False), -torch.rand(3, 6)
    targets = targets._replace(reference_logprobs=-torch.rand(3, 3))
    forward = TokenScores(logprobs, None, None)
    plain = minibatch_loss(targets, forward, SETTINGS, UpdateStatistics())
    statistics = UpdateStatistics()
    penalty = KLPenalty("loss", "k3", importance_weighted=True)
    loss = minibatch_loss(targets, forward, SETTINGS, statistics, (penalty, 0.4))
    expected = 0.0
    for row, column in targets.response_mask.nonzero().tolist():
        new = float(logprobs[row, int(targets.prompt_lengths[row]) + column])
        ratio = math.exp(new - float(targets.old_logprobs[row, column]))
        expected += ratio * k3(new, float(targets.reference_logprobs[row, column]))
    assert float(loss - plain) == pytest.approx(0.4 * expected, abs=1e-5)
    assert statistics.report()["kl_loss"] == pytest.approx(expected / 5, abs=1e-5)


def test_padding_reaches_neither_the_loss_nor_its_gradient():
    targets = random_targets()
    logprobs = (-torch.rand(3, 6)).requires_grad_()
    values = torch.randn(3, 6, requires_grad=True)
    minibatch_loss(
        targets, TokenScores(logprobs, None, values), SETTINGS, UpdateStatistics()
    ).backward()
    outside = ~targets.rows.response_mask
    assert not logprobs.grad[outside].any()
    assert not values.grad[outside].any()
    assert values.grad[targets.rows.response_mask].any()


def test_micro_batches_add_up():
    targets = random_targets()
    logprobs, values = -torch.rand(3, 6), torch.randn(3, 6)
    whole, parts = UpdateStatistics(), UpdateStatistics()
    total = minibatch_loss(targets, TokenScores(logprobs, None, values), SETTINGS, whole)
    pieces = [
        minibatch_loss(
            targets.select(rows),
            TokenScores(logprobs[rows], None, values[rows]),
            SETTINGS,
            parts,
        )
        for rows in (torch.tensor([2, 0]), torch.tensor([1]))
    ]
    torch.testing.assert_close(sum(pieces), total)
    assert parts.report() == pytest.approx(whole.report(), abs=1e-6)
    assert parts.largest_log_ratio == whole.largest_log_ratio


class PlainPPO:
    """PPO on given samples with transformers' model, one row at a time, written from the paper."""

    KL_COEF = 0.3
    GAMMA, LAMBDA = 0.95, 0.9

    def __init__(self, policy):
        self.model, self.reference = plain_model(policy), plain_model(policy)
        self.head = nn.Linear(32, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-2, betas=(0.9, 0.95), eps=1e-3, weight_decay=0
        )

    def score_row(self, model, samples, row):
        """Return log-probabilities and values of the response tokens of a row."""
        start, length = int(samples.prompt_lengths[row]), int(samples.rows.lengths[row])
        tokens = samples.rows.input_ids[row, :length]
        output = model(tokens[None], output_hidden_states=True)
        logprobs = (output.logits[0, start - 1 : length - 1] / 0.8).log_softmax(-1)
        values = self.head(output.hidden_states[-1][0, start - 1 : length - 1])[:, 0]
        return logprobs.gather(1, tokens[start:length, None])[:, 0], values

    @torch.no_grad()
    def targets(self, samples, scores):
        rows = []
        for row, score in enumerate(scores.tolist()):
            old, values = self.score_row(self.model, samples, row)
            reference, _ = self.score_row(self.reference, samples, row)
            rewards = [-self.KL_COEF * float(kl) for kl in old - reference]
            rewards[-1] += score if samples.finished[row] else -1.0
            mask = [[True] * len(rewards)]
            (advantages,), (returns,) = gae(
                [rewards], [values.tolist()], mask, self.GAMMA, self.LAMBDA
            )
            rows.append((old, values, torch.tensor(advantages), torch.tensor(returns)))
        everything = torch.cat([row[2] for row in rows])
        scale = 1 / math.sqrt(float(everything.var(unbiased=False)) + 1e-8)
        mean = float(everything.mean())
        return [(old, v, (a - mean) * scale, returns) for old, v, a, returns in rows]

    def iterate(self, samples, scores):
        targets = self.targets(samples, scores)
        num_tokens = sum(len(row[0]) for row in targets)
        for _ in range(2):
            total = 0.0
            for row, (old, old_values, advantages, returns) in enumerate(targets):
                new, values = self.score_row(self.model, samples, row)
                ratio = (new - old).exp()
                clipped = ratio.clamp(0.8, 1.2)
                near = old_values + (values - old_values).clamp(-0.2, 0.2)
                policy = torch.maximum(-advantages * ratio, -advantages * clipped)
                value = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
                total = total + (policy + 0.5 * value).sum()
            (total / num_tokens).backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


def test_iterations_equal_ppo_written_from_the_paper(talker, tmp_path, monkeypatch):
    """Three iterations on the same samples: the weights of policy and value head agree."""
    rollouts = []
    keep = PPOModule._targets
    monkeypatch.setattr(
        PPOModule, "_targets", lambda self, rollout: rollouts.append(rollout) or keep(self, rollout)
    )
    module = fit_rewarded(
        PPOModule,
        talker,
        LENGTH,
        tmp_path,
        KLControl(target=None, coefficient=PlainPPO.KL_COEF),
        num_iterations=2,
        num_prompts=8,
        trainer={"max_epochs": 2},
        advantage=GAE(gamma=PlainPPO.GAMMA, gae_lambda=PlainPPO.LAMBDA),
        update=UpdateConfig(num_epochs=2, micro_batch_size=3, value_coef=0.5),
        sampling=Sampling(max_new_tokens=6, temperature=0.8),
    )
    plain = PlainPPO(talker)
    for rollout in rollouts:
        plain.iterate(rollout.samples, rollout.scores)
    assert len(rollouts) == 4
    assert abs(module.recorder.values("train/ppo/kl")[-1]) > 0.05
    trained = weights(module.policy)
    for name, weight in plain.model.named_parameters():
        torch.testing.assert_close(trained[f"model.{name}"], weight, atol=2e-5, rtol=0, msg=name)
    for name, weight in plain.head.named_parameters():
        torch.testing.assert_close(trained[f"value_head.linear.{name}"], weight, atol=2e-5, rtol=0)
    moved = weights(module.reference)
    assert max((trained[name] - moved[name]).abs().max() for name in moved) > 0.02
