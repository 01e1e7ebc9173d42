import json
import math

import pytest
import torch

from lit_rlhf.callbacks import OveroptimizationMonitor
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules import OnlineDPOModule, OptimizerConfig
from lit_rlhf.modules.online_dpo import pairs_of
from lit_rlhf.objectives import DPO, IPO, KTO, MissingEOS, SimPO
from lit_rlhf.rewards import FunctionReward, RewardMixture
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy
from tests.rewards.samples import sample_batch
from tests.support.phases import largest_difference, weights
from tests.support.rewarded_runs import fit_rewarded


def vowels(prompts, responses):
    return [float(sum(map(response.count, "aeiou"))) for response in responses]


def alike(prompts, responses):
    return [1.0] * len(responses)


@pytest.fixture
def run(talker, tmp_path):
    def run(reward=vowels, num_iterations=2, callbacks=(), **settings):
        settings = {"missing_eos": MissingEOS("keep"), "num_iterations": num_iterations} | settings
        return fit_rewarded(OnlineDPOModule, talker, reward, tmp_path, *callbacks, **settings)

    return run


def test_the_reward_rises(run):
    module = run(
        num_iterations=3,
        trainer={"max_epochs": 16},
        batch_size=12,
        samples_per_prompt=8,
        loss=DPO(beta=0.3),
    )
    rewards = module.recorder.values("train/online_dpo/reward")
    assert len(rewards) == 16
    first, last = sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4
    assert last > first + 0.5, rewards
    assert module.recorder.values("train/online_dpo/kl")[-1] > 0.1


def test_the_best_and_the_worst_of_each_prompt_are_a_pair():
    samples = sample_batch(["p"] * 9, [*"abcdefghi"])
    scores = torch.tensor([1.0, 3.0, 2.0, 4.0, 4.0, 4.0, math.nan, 0.5, math.nan])
    pairs = pairs_of(samples, scores, 3, torch.ones(3, dtype=torch.bool))
    assert pairs.weight.tolist() == [1, 0, 0]  # all alike; one score alone
    first = samples.rows.select(torch.tensor([1, 0]))
    assert torch.equal(pairs.rows.input_ids[[0, 3]], first.input_ids)
    assert (pairs.chosen.tolist(), pairs.rejected.tolist()) == ([0, 1, 2], [3, 4, 5])
    scores[6] = 7.0
    assert pairs_of(samples, scores, 3, torch.ones(3, dtype=torch.bool)).weight.tolist() == [
        1,
        0,
        1,
    ]
    own = torch.tensor([False, True, True])
    assert pairs_of(samples, scores, 3, own).weight.tolist() == [0, 0, 1]


def test_before_the_first_step_policy_and_reference_agree(run):
    module = run(num_iterations=1)
    (batch,) = module.recorder.batches
    assert batch["train/online_dpo/kl"] == pytest.approx(0, abs=1e-6)
    if batch["train/online_dpo/pairs"]:
        assert batch["train/online_dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert batch["train/online_dpo/accuracy"] == 0.5


def test_rewards_that_tell_nothing_apart_change_nothing(run):
    module = run(alike)
    assert module.recorder.values("train/online_dpo/pairs") == [0, 0]
    start = OnlineDPOModule(module.source, alike)
    start.configure_model()
    still = OptimizerConfig(learning_rate=1e-2, weight_decay=0.0)
    module = run(alike, optimizer=still)
    assert largest_difference(weights(module.policy), weights(start.policy)) == 0


def test_accumulated_batches_are_one_step_and_draw_from_streams_of_their_own(run):
    module = run(num_iterations=2, trainer={"accumulate_grad_batches": 2})
    assert module.trainer.global_step == 1
    assert int(module.num_iterations) == 2


def test_unscored_responses_make_no_pair_and_are_counted(run):
    def half(prompts, responses):
        return [None if row % 2 else float(len(text)) for row, text in enumerate(responses)]

    module = run(RewardMixture({"half": FunctionReward(half)}), num_iterations=1)
    (batch,) = module.recorder.batches
    assert batch["train/online_dpo/reward_unscored"] == 0.5
    assert batch["train/online_dpo/reward_half_unscored"] == 0.5
    assert batch["train/online_dpo/pairs"] == 0
    assert batch["train/online_dpo/reward"] > 0


def test_an_infinite_score_skips_the_step(run):
    def broken(prompts, responses):
        return [math.inf, *vowels(prompts, responses)[1:]]

    assert run(broken, num_iterations=1).guard.num_skipped == 1


def test_a_loss_without_reference_needs_none(run):
    module = run(loss=SimPO())
    assert module.reference is None
    assert "train/online_dpo/kl" not in module.recorder.batches[0]
    assert not any(
        one.is_on for one in module.trainer.callbacks if isinstance(one, OveroptimizationMonitor)
    )


def test_an_adapter_needs_no_second_model_and_another_reference_is_one(run, tmp_path):
    lora = LoRAConfig(rank=2)
    assert run(lora=lora).reference is None
    other = str(save_policy(tmp_path / "other", seed=7))
    module = run(num_iterations=1, lora=lora, reference=other)
    assert module.recorder.batches[0]["train/online_dpo/kl"] != pytest.approx(0, abs=1e-3)
    assert module.origins["reference"] == other


def test_validation_samples_ask_judges_and_are_watched(run, tmp_path):
    judges = {"validation": alike}
    module = run(
        num_iterations=1,
        judges=judges,
        loss=IPO(),
        trainer={"limit_val_batches": 1, "num_sanity_val_steps": -1},
    )
    held_out = module.recorder.held_out
    assert held_out["val/online_dpo/validation"] == 1.0
    assert held_out["val/online_dpo/kl"] >= 0
    assert module.best_metric == "val/online_dpo/validation"
    values = (tmp_path / "overoptimization" / "values.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in values] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": KTO()}, "KTO reads responses with labels"),
        ({"samples_per_prompt": 1}, "samples_per_prompt is 1"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature 0 draws the same"),
        ({"loss": SimPO(), "reference": "x"}, r"model\.reference has no effect"),
        ({"judges": {"kl": alike}}, r"model\.judges\.kl"),
    ],
)
def test_settings_that_cannot_be_are_refused(talker, settings, message):
    with pytest.raises(ConfigError, match=message):
        OnlineDPOModule(talker, vowels, **settings)
