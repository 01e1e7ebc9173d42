"""Loss and gradient of PPO's objectives that TRL's GRPO and RLOO have, too: equal on one rollout?

python -m benchmarks.parity_ppo

One rollout of given tokens and rewards, three tiny random models in float32: the policy, the one
that it was when the tokens were drawn, and the reference. Prints the relative differences, and ends
with 1 where one is above 1e-5. `make .venv-trl/.installed` makes TRL's environment.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parity import differences, gradient_of, report
from lit_rlhf.batches import RolloutBatch, SampleBatch, TokenRows, response_window
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.modules import UpdateConfig
from lit_rlhf.modules.ppo_update import (
    UpdateStatistics,
    make_targets,
    minibatch_loss,
    rewarded_tokens,
)
from lit_rlhf.objectives import (
    CISPO,
    GRPO,
    GSPO,
    RLOO,
    AdvantageEstimator,
    ConstantLength,
    KLPenalty,
    LossAggregation,
    PolicyLoss,
    PPOClip,
    SequenceMean,
    TokenMean,
)
from tests.models.examples import save_policy

NUM_PROMPTS, K, LONGEST = 3, 4, 8
BETA = 0.1
BY_GROUP, BY_RESPONSE = GRPO(K), SequenceMean()


@dataclass(frozen=True)
class Case:
    """Settings of one objective."""

    advantage: AdvantageEstimator = BY_GROUP
    policy_loss: PolicyLoss = PPOClip()
    aggregation: LossAggregation = BY_RESPONSE
    penalty: KLPenalty | None = None


# By the names of `parity_ppo_theirs`, which has TRL's settings.
CASES = {
    "GRPO": Case(),
    "GRPO, batch scale": Case(GRPO(K, "batch")),
    "Dr. GRPO": Case(GRPO(K, "none"), aggregation=ConstantLength(LONGEST)),
    "clip-higher, token mean": Case(
        policy_loss=PPOClip(0.05, clip_range_high=0.1), aggregation=TokenMean()
    ),
    "dual clip": Case(policy_loss=PPOClip(0.05, dual_clip=1.1)),
    "CISPO": Case(policy_loss=CISPO(1.05), aggregation=TokenMean()),
    "GSPO": Case(policy_loss=GSPO(0.01, 0.02)),
    "k3 in the loss": Case(penalty=KLPenalty("loss", "k3")),
    "k3 in the loss, weighted": Case(penalty=KLPenalty("loss", "k3", importance_weighted=True)),
    "RLOO, k1 in the reward": Case(
        RLOO(K), GSPO(0.2, 0.2, per_token=False), penalty=KLPenalty("reward", "k1")
    ),
}


def write_inputs(folder: Path) -> None:
    """Write three models and a rollout."""
    for seed, role in ((0, "old"), (0, "policy"), (1, "reference")):
        save_policy(folder / role, seed=seed)
    model = load_causal_lm(str(folder / "policy"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "policy")

    def draw(length: int) -> list[int]:
        tokens: list[int] = torch.randint(5, 90, (length,), generator=generator).tolist()
        return tokens

    prompts = [draw(2 + number) for number in range(NUM_PROMPTS)]
    rollout = {
        "prompts": [prompt for prompt in prompts for _ in range(K)],
        "responses": [draw(1 + row * 5 % LONGEST) for row in range(NUM_PROMPTS * K)],
        "rewards": torch.randn(NUM_PROMPTS * K, generator=generator).tolist(),
    }
    (folder / "rollout.json").write_text(json.dumps(rollout), encoding="utf-8")


def read_samples(folder: Path) -> tuple[SampleBatch, Tensor]:
    """Return the rollout's samples and scores."""
    rollout = json.loads((folder / "rollout.json").read_text(encoding="utf-8"))
    prompts, responses = rollout["prompts"], rollout["responses"]
    whole = [torch.tensor(p + r) for p, r in zip(prompts, responses, strict=True)]
    starts, sizes = (torch.tensor([len(one) for one in part]) for part in (prompts, responses))
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
    columns = torch.arange(ids.shape[1])
    in_response = (columns >= starts[:, None]) & (columns < (starts + sizes)[:, None])
    mask = torch.arange(int(sizes.max())) < sizes[:, None]
    samples = SampleBatch(
        rows=TokenRows(ids, starts + sizes, in_response),
        prompt_lengths=starts,
        response_mask=mask,
        sampler_logprobs=torch.zeros(mask.shape),
        finished=torch.ones(len(whole), dtype=torch.bool),
        group_ids=torch.arange(NUM_PROMPTS).repeat_interleave(K),
        prompts=[""] * len(whole),
        responses=[""] * len(whole),
        fields=[{}] * len(whole),
    )
    return samples, torch.tensor(rollout["rewards"])


def ours(folder: Path) -> dict[str, tuple[float, Tensor]]:
    """Return our loss and gradient of each case."""
    samples, scores = read_samples(folder)
    models = {
        role: PolicyModel(load_causal_lm(str(folder / role)))
        for role in ("policy", "old", "reference")
    }
    width = samples.response_mask.shape[1]
    with torch.no_grad():
        old, reference = (
            response_window(models[role](samples.rows).logprobs, samples.prompt_lengths, width)
            for role in ("old", "reference")
        )
    rollout = RolloutBatch(samples, old, reference, None, scores)
    return {name: _measure(models["policy"], rollout, case) for name, case in CASES.items()}


def _measure(policy: PolicyModel, rollout: RolloutBatch, case: Case) -> tuple[float, Tensor]:
    policy.zero_grad()
    advantages, _ = case.advantage(rewarded_tokens(rollout, rollout.scores, case.penalty, BETA))
    targets = make_targets(
        rollout, advantages, None, sampler_correction_cap=None, penalty=case.penalty
    )
    update = UpdateConfig(policy_loss=case.policy_loss, aggregation=case.aggregation)
    kl = None if case.penalty is None else (case.penalty, BETA)
    total = minibatch_loss(targets, policy(targets.rows), update, UpdateStatistics(), kl)
    loss = total / case.aggregation.size(targets.response_mask)
    loss.backward()
    return float(loss.detach()), gradient_of(policy)


def compare(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Run both sides; return of each case the loss, and what differs of loss and gradient."""
    write_inputs(folder)
    return differences(ours(folder), "benchmarks.parity_ppo_theirs", folder)


if __name__ == "__main__":
    sys.exit(report(compare))
