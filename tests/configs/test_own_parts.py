"""Parts of a user's own, named by YAML: losses, an estimator, a reward and a KL controller.

They are defined here alone, run by the command line, and their numbers are in the log. A part
that needed a change elsewhere in the package would fail here.
"""

import csv
import math
import sys

import pytest
import yaml

from tests.configs.conftest import QUIET, SIZES

PARTS = '''
from dataclasses import dataclass

import torch

from lit_rlhf.objectives import (
    AdvantageEstimator, Advantages, ClippedLoss, KLController, LossAggregation, PolicyLoss,
    PreferenceLoss, PreferenceOutput,
)
from lit_rlhf.objectives.kl_control import KLState
from lit_rlhf.rewards import RewardSource


@dataclass(frozen=True)
class Toy(PreferenceLoss):
    """`offset + policy_rejected - policy_chosen`, without its own size; no reference."""

    offset: float = 0.0

    @property
    def requires_reference(self):
        return False

    @property
    def takes_soft_labels(self):
        return True

    def compare(self, pairs):
        assert pairs.reference_chosen is None
        margin = pairs.policy_rejected - pairs.policy_chosen
        rewards = torch.full_like(margin, 7.0).detach()
        return PreferenceOutput(self.offset + (margin - margin.detach()), rewards, rewards - 3)


@dataclass(frozen=True)
class Same(AdvantageEstimator):
    """`size` at each token."""

    size: float = 1.0

    @property
    def requires_values(self):
        return False

    @property
    def samples_per_prompt(self):
        return 1

    def estimate(self, tokens):
        assert tokens.values is None
        return Advantages(torch.full_like(tokens.token_rewards, self.size), None)


@dataclass(frozen=True)
class Level(PolicyLoss):
    """`value` at each token, with the gradient of REINFORCE."""

    value: float = 0.0

    def compare(self, tokens):
        surrogate = -tokens.advantages * tokens.logprobs
        losses = self.value + surrogate - surrogate.detach()
        return ClippedLoss(losses, torch.ones_like(losses, dtype=torch.bool))


@dataclass(frozen=True)
class Nothing(LossAggregation):
    """A sum over tokens, each divided by a number beyond all bounds."""

    def divisors(self, response_mask):
        return torch.full((len(response_mask), 1), torch.inf)

    def size(self, response_mask):
        return response_mask.sum()


@dataclass(frozen=True)
class Alternating(RewardSource):
    """`low` and `high` in turn, and a detail."""

    low: float
    high: float

    @property
    def details(self):
        return ("place",)

    def score_in_detail(self, prompts, responses, batch=None):
        places = torch.arange(len(responses)) % 2
        return self.low + (self.high - self.low) * places, {"place": places.float()}

    def __call__(self, prompts, responses, batch=None):
        return self.score_in_detail(prompts, responses, batch)[0]


@dataclass(frozen=True)
class Climbing(KLController):
    """The coefficient rises by `step` with each batch."""

    step: float

    def initial_state(self):
        return KLState(0.5, 0)

    def update(self, state, kl, num_episodes):
        return KLState(state.coefficient + self.step, state.num_updates + 1)
'''


@pytest.fixture
def fit(workplace, tmp_path, monkeypatch):
    """Return a function that trains two batches by own parts, and returns what was logged."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)

    def fit(phase, *options, kl=None, **model):
        text = yaml.safe_dump({"model": model} | ({"kl": kl} if kl else {}))
        (tmp_path / "own.yaml").write_text(text)
        name = phase.replace("-", "_")
        words = [f"--config=configs/{name}.yaml", "--config=configs/debug/fast.yaml"]
        words += [
            f"--config={tmp_path / 'own.yaml'}",
            f"--trainer.logger.init_args.name=own_{name}",
        ]
        assert workplace.command(phase, "fit", *words, *SIZES[phase], *QUIET, *options) == 0
        file = workplace.folder / "runs" / f"own_{name}" / "metrics.csv"
        with file.open() as lines:
            rows = list(csv.DictReader(lines))
        return lambda metric: [float(row[metric]) for row in rows if row.get(metric)]

    yield fit
    sys.modules.pop("my_parts", None)


def part(name, **settings):
    return {"class_path": f"my_parts.{name}", "init_args": settings}


def test_a_loss_of_your_own(fit):
    logged = fit("dpo", loss=part("Toy", offset=42.0))
    assert logged("train/dpo/loss") == [42.0, 42.0]
    assert logged("val/dpo/loss") == [42.0]
    assert logged("train/dpo/chosen_rewards") == [7.0, 7.0]
    assert logged("train/dpo/margin") == [3.0, 3.0]
    assert all(norm > 0 for norm in logged("train/dpo/grad_norm"))


def test_an_estimator_a_reward_and_a_controller_of_your_own(fit, workplace):
    logged = fit(
        "ppo",
        "--model.update.num_epochs=1",  # so that the ratio is one
        advantage=part("Same", size=2.0),
        reward=part("Alternating", low=1.0, high=4.0),
        judges=None,
        whiten_advantages=False,
        kl={"controller": part("Climbing", step=0.125)},
    )
    assert logged("train/ppo/policy_loss") == pytest.approx([-2.0, -2.0])
    assert logged("train/ppo/reward") == [2.5, 2.5]
    assert logged("train/ppo/reward_place") == logged("val/ppo/reward_place") * 2 == [0.5, 0.5]
    assert logged("train/ppo/kl_coef") == [0.5, 0.625]
    rewards, kls = logged("train/ppo/penalized_reward"), logged("train/ppo/kl")
    assert rewards[1] == pytest.approx(2.5 - 0.625 * kls[1], abs=1e-5)
    assert logged("train/ppo/value_loss") == []  # no critic
    # Without a judge nothing is watched, and no best by it is kept.
    run = workplace.folder / "runs" / "own_ppo"
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoints", "model"]


def test_a_policy_loss_and_an_average_of_your_own(fit):
    update = {"policy_loss": part("Level", value=0.75)}
    same = part("Same", size=2.0)  # whitened it would be zero
    logged = fit("ppo", update=update, advantage=same, whiten_advantages=False)
    assert logged("train/ppo/policy_loss") == [0.75, 0.75]
    assert logged("train/ppo/clip_fraction") == [1.0, 1.0]
    assert all(norm > 0 for norm in logged("train/ppo/grad_norm"))
    logged = fit("ppo", update=update | {"aggregation": part("Nothing")})
    assert logged("train/ppo/policy_loss") == [0.75, 0.75]
    assert logged("train/ppo/grad_norm") == [0.0, 0.0]


def test_a_loss_and_a_reward_of_your_own_online(fit):
    logged = fit(
        "online-dpo",
        loss=part("Toy", offset=42.0),
        reward=part("Alternating", low=1.0, high=4.0),
        judges=None,
    )
    assert logged("train/online_dpo/loss") == [42.0, 42.0]
    assert logged("train/online_dpo/pairs") == [1.0, 1.0]
    assert logged("train/online_dpo/reward") == [2.5, 2.5]
    assert not any(map(math.isnan, logged("train/online_dpo/accuracy")))
