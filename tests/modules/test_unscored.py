"""Responses without a score: in no baseline, loss or mean, and counted."""

import json
import math

import pytest
import torch

from lit_rlhf.callbacks import LastCheckpoint
from lit_rlhf.errors import ConfigError, RewardError
from lit_rlhf.modules import PPOModule, UpdateConfig
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.unscored import scored_columns
from lit_rlhf.objectives import GAE, RLOO, MissingEOS
from lit_rlhf.rewards import FunctionReward, RewardMixture
from lit_rlhf.rollout import Sampling
from tests.support.phases import largest_difference, weights
from tests.support.rewarded_runs import fit_rewarded

# Of an iteration that is skipped before the first step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
KEEP = MissingEOS("keep")


class Scorer:
    """Scores by length, but the rows of some calls not at all."""

    def __init__(self, unscored=(), value=math.nan):
        self.unscored, self.value, self.calls = unscored, value, 0

    def __call__(self, prompts, responses):
        scores = [float(len(response)) for response in responses]
        for row in self.unscored:
            scores[row] = self.value
        self.calls += 1
        return scores

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


@pytest.fixture
def run(talker, tmp_path):
    def run(reward, *callbacks, module_class=PPOModule, **settings):
        settings = {"missing_eos": KEEP, "update": UpdateConfig(2)} | settings
        return fit_rewarded(module_class, talker, reward, tmp_path, *callbacks, **settings)

    return run


@pytest.mark.parametrize("advantage", [GAE(), RLOO(2)], ids=["gae", "rloo"])
def test_a_response_without_a_score_changes_nothing_whatever_it_would_score(run, advantage):
    """A quarter of the batch is unscored; the step is that of a batch in which it has no token."""

    class Without(PPOModule):
        def _targets(self, rollout):
            keep = torch.ones(len(rollout.scores), dtype=torch.bool)
            keep[1] = False
            return super()._targets(rollout._replace(samples=rollout.samples.only(keep)))

    ours = run(Scorer((1,)), advantage=advantage)
    zero = run(Scorer((1,), 0.0), advantage=advantage)
    assert largest_difference(weights(ours), weights(zero)) > 1e-4  # not a zero in disguise
    expected = run(Scorer((1,), 1e3), advantage=advantage, module_class=Without)
    assert largest_difference(weights(ours), weights(expected)) == 0


def test_unscored_responses_are_counted_and_not_in_the_mean(run):
    module = run(Scorer((0, 2)), num_iterations=2)
    scored = run(Scorer(), num_iterations=2)
    assert module.recorder.values("train/ppo/unscored") == [0.5, 0.5]
    assert scored.recorder.values("train/ppo/unscored") == [0, 0]
    assert all(
        math.isfinite(value) for batch in module.recorder.batches for value in batch.values()
    )
    assert (
        module.recorder.values("train/ppo/length")[0]
        == scored.recorder.values("train/ppo/length")[0]
    )


def test_where_nothing_is_scored_the_iteration_is_skipped_and_counted(run):
    module = run(Scorer(range(4)))
    assert module.recorder.values("train/ppo/optimizer_steps") == [0]
    assert module.guard.num_skipped == 1


def test_an_infinite_score_is_broken_and_not_unscored(run):
    module = run(Scorer((1,), math.inf))
    assert module.guard.num_skipped == 1


def test_a_cut_response_needs_no_score_where_the_rule_replaces_it(run):
    ruled = {"missing_eos": MissingEOS("replace", -1.0), "sampling": Sampling(max_new_tokens=1)}
    module = run(Scorer((0, 1, 2)), **ruled)
    whole = run(Scorer((0, 1, 2), 5.0), **ruled)
    finished = module.recorder.values("train/ppo/finished")
    assert finished == [0]
    assert largest_difference(weights(module), weights(whole)) == 0


def test_validation_leaves_unscored_responses_out_of_the_mean_alone(run, tmp_path):
    judges = {"mine": FunctionReward(Scorer((0,)))}
    trainer = {"limit_val_batches": 1, "limit_train_batches": 1}
    module = run(Scorer(), judges=judges, trainer=trainer)
    held_out = module.recorder.held_out
    assert held_out["val/ppo/mine_unscored"] == pytest.approx(0.2)
    assert held_out["val/ppo/reward_unscored"] == 0
    samples = module.validation_samples
    assert samples[0]["mine"] is None
    json.dumps(samples, allow_nan=False)
    scored = [sample["reward"] for sample in samples[1:]]
    assert held_out["val/ppo/mine"] == pytest.approx(sum(scored) / len(scored))


def test_a_part_that_cannot_score_is_counted_and_told_apart(run):
    parts = {"length": FunctionReward(Scorer()), "rule": FunctionReward(Scorer((1, 3)))}
    trainer = {"limit_val_batches": 1, "limit_train_batches": 1}
    module = run(RewardMixture(parts), trainer=trainer, advantage=RLOO(2))
    (batch,) = module.recorder.batches
    assert batch["train/ppo/unscored"] == batch["train/ppo/reward_rule_unscored"] == 2 / 8
    assert batch["train/ppo/reward_length_unscored"] == 0
    assert 0 < batch["train/ppo/reward_rule"] != batch["train/ppo/reward_length"]
    held_out = module.recorder.held_out
    assert held_out["val/ppo/reward_rule_unscored"] == held_out["val/ppo/reward_unscored"]
    assert held_out["val/ppo/reward"] == pytest.approx(2 * held_out["val/ppo/reward_rule"])


@pytest.mark.parametrize(
    "reward",
    [
        FunctionReward(Scorer(), per_prompt=True),
        RewardMixture({"a": FunctionReward(Scorer())}, normalize=True),
    ],
)
def test_a_reward_that_compares_samples_needs_several(talker, reward):
    PPOModule(talker, reward, advantage=RLOO(2))
    with pytest.raises(ConfigError, match="GAE draws one of each: take an estimator"):
        PPOModule(talker, reward)


def test_columns_of_sources_that_do_not_abstain_stay_as_they_are():
    columns = {"a": torch.tensor([1.0, math.nan]), "b": torch.tensor([math.nan, 3.0])}
    scored, own = scored_columns(columns, ["b"], torch.tensor([1.0, 1.0]))
    assert scored["a"] is columns["a"]
    assert scored["b"].tolist() == [0, 3]
    assert own["b"].tolist() == [0, 1]
    assert scored["b_unscored"].tolist() == [1, 0]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_reward_that_raises_leaves_the_state_and_the_run_goes_on(run, tmp_path):
    """Two iterations, a failure in the third, and two more: as four without a failure."""

    class Fragile(Scorer):
        fails_at = 2

        def __call__(self, prompts, responses):
            if self.calls == self.fails_at:
                raise ConnectionError("no answer")
            return [score + self.calls for score in super().__call__(prompts, responses)]

    class Sound(Fragile):
        fails_at = None

    def options(name):
        checkpoint = LastCheckpoint(None, None, str(tmp_path / name))
        trainer = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "max_epochs": 2}
        return checkpoint, trainer

    checkpoint, trainer = options("broken")
    with pytest.raises(RewardError, match=r"raised ConnectionError: no answer .*test_unscored"):
        run(Fragile(), checkpoint, trainer=trainer, num_iterations=3)
    saved = torch.load(checkpoint.path, weights_only=True)
    assert saved["lit_rlhf_rewards"] == [{"reward": {"calls": 2}}]
    assert int(saved["state_dict"]["num_iterations"]) == 2
    again, trainer = options("broken")
    path = checkpoint.path
    resumed = run(Sound(), again, trainer=trainer, num_iterations=3, ckpt_path=path)
    whole_checkpoint, trainer = options("whole")
    whole = run(Sound(), whole_checkpoint, trainer=trainer, num_iterations=3)
    assert resumed.reward.state_dict() == whole.reward.state_dict() == {"calls": 6}
    assert largest_difference(weights(resumed), weights(whole)) == 0


def test_an_object_of_another_run_is_not_asked_for_a_state_it_has_not(run, tmp_path):
    def plain(prompts, responses):
        return [1.0] * len(responses)

    checkpoint = LastCheckpoint(None, None, str(tmp_path / "plain"))
    trainer = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    run(plain, checkpoint, trainer=trainer)
    assert torch.load(checkpoint.path, weights_only=True)["lit_rlhf_rewards"] == [{}]
