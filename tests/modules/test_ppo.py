import json
import logging
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from lit_rlhf.batches import TokenRows
from lit_rlhf.callbacks import KLControl, OveroptimizationMonitor
from lit_rlhf.errors import ConfigError, TrainingError
from lit_rlhf.models import LoRAConfig, ScalarModel, load_causal_lm, load_reward_model, load_trunk
from lit_rlhf.models.backbone import apply_lora
from lit_rlhf.models.freezing import freeze
from lit_rlhf.models.lineage import describe_origin
from lit_rlhf.modules import OptimizerConfig, PPOModule, UpdateConfig
from lit_rlhf.modules.building import build_reference
from lit_rlhf.modules.ppo_metrics import repetition
from lit_rlhf.modules.ppo_update import FirstForward
from lit_rlhf.objectives import GAE, RLOO, AdaptiveKL, AdvantageEstimator, Advantages, MissingEOS
from lit_rlhf.rewards import EnsembleReward, FunctionReward, LearnedReward, RewardSource
from lit_rlhf.rollout import TorchGenerator, UpdatePlan
from tests.models.examples import (
    plain_model,
    random_rows,
    save_policy,
    shake,
    write_reward_model,
)
from tests.support.phases import largest_difference, prompts, weights
from tests.support.rewarded_runs import LENGTH, fit_rewarded

LORA = LoRAConfig(rank=2)
precisions = pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])


@pytest.fixture
def run(talker, tmp_path):
    """Return a function that trains a module for some iterations of four prompts."""

    def run(num_iterations=3, *, trainer=None, reward=LENGTH, module_class=PPOModule, **settings):
        trainer = dict(trainer or {})
        settings |= {"num_iterations": num_iterations, "trainer": trainer}
        own = trainer.pop("callbacks", [])
        return fit_rewarded(module_class, talker, reward, tmp_path, *own, **settings)

    return run


@precisions
@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_first_ratio_of_every_iteration_is_one_to_the_last_bit(
    run, precision, micro_batch_size, lora
):
    module = run(
        trainer={"precision": precision},
        update=UpdateConfig(2, num_minibatches=2, micro_batch_size=micro_batch_size),
        lora=lora,
    )
    assert module.recorder.values("train/ppo/first_log_ratio") == [0, 0, 0]
    # Later minibatches see weights that have moved.
    assert all(kl > 0 for kl in module.recorder.values("train/ppo/approximate_kl"))


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_kl_is_to_the_reference_that_is_named(run, lora, tmp_path):
    other = str(save_policy(tmp_path / "other", seed=7))
    own, named = run(1, lora=lora), run(1, lora=lora, reference=other)
    assert own.recorder.values("train/ppo/kl")[0] == pytest.approx(0, abs=1e-6)
    assert named.recorder.values("train/ppo/kl")[0] > 0.1
    assert named.origins["reference"] == other
    start = build_reference(other, frozen_dtype=None, packing_width=None)
    assert largest_difference(weights(named.reference), weights(start)) == 0


def test_every_minibatch_of_every_epoch_is_an_optimizer_step(run):
    module = run(update=UpdateConfig(num_epochs=3, num_minibatches=2, micro_batch_size=1))
    assert module.recorder.values("train/ppo/optimizer_steps") == [6, 6, 6]
    assert module.trainer.global_step == 18
    steps = {int(state["step"]) for state in module.optimizers().state.values()}
    assert steps == {18}


def test_minibatches_that_no_batch_can_fill_are_refused_before_the_first(run):
    with pytest.raises(ConfigError, match=r"num_minibatches=5 is more than the 4 responses"):
        run(update=UpdateConfig(num_minibatches=5))
    run(1, update=UpdateConfig(num_minibatches=5), advantage=RLOO(k=2))  # eight responses


class CachingPrecision(MixedPrecision):
    """Lets autocast keep the weights that it has cast, which Lightning's own plugin forbids."""

    def autocast_context_manager(self):
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=True)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_under_autocast_every_step_uses_the_weights_of_the_last(run, lora, micro_batch_size):
    settings = {
        "update": UpdateConfig(2, num_minibatches=2, micro_batch_size=micro_batch_size),
        "lora": lora,
    }
    module = run(trainer={"precision": "bf16-mixed"}, **settings)
    caching = run(trainer={"plugins": [CachingPrecision("bf16-mixed", "cpu")]}, **settings)
    assert largest_difference(weights(module), weights(caching)) == 0
    assert module.recorder.batches == caching.recorder.batches


def test_rotations_that_change_within_a_response_are_told(run, monkeypatch):
    name = "lit_rlhf.modules.ppo_requirements.first_context_length"
    monkeypatch.setattr(name, lambda source: 5)
    with pytest.warns(UserWarning, match="once a row has more than 5 .dynamic RoPE"):
        run(1)
    monkeypatch.setattr(name, lambda source: 1000)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dynamic RoPE")
        run(1)


def test_the_size_of_micro_batches_does_not_matter(run):
    sizes = ({}, {"micro_batch_size": 2}, {"micro_batch_size": 1}, {"micro_batch_tokens": 25})
    whole, *others = (weights(run(2, update=UpdateConfig(2, **size))) for size in sizes)
    for other in others:
        assert largest_difference(whole, other) < 1e-5


@precisions
def test_the_reference_never_moves(run, talker, precision):
    module = run(trainer={"precision": precision})
    start = plain_model(talker)
    kept = weights(module.reference.model)
    for name, weight in weights(start).items():
        torch.testing.assert_close(kept[name], weight.to(kept[name].dtype), atol=0, rtol=0)
    assert largest_difference(weights(module.policy.model), weights(start)) > 1e-2


def saved_state(module, folder):
    module.trainer.save_checkpoint(folder / "policy.ckpt")
    return torch.load(folder / "policy.ckpt", weights_only=True)["state_dict"]


def test_a_shared_critic_is_a_head_on_the_policy(run, tmp_path):
    module = run()
    assert module.critic is None
    assert module.policy.value_head.linear.weight.abs().max() > 0  # it started at zero
    state = saved_state(module, tmp_path)
    assert "policy.value_head.linear.weight" in state
    assert not any(name.startswith(("reference.", "critic.")) for name in state)
    module.save_pretrained(tmp_path / "model")
    loaded = load_causal_lm(str(tmp_path / "model"))
    assert largest_difference(weights(loaded), weights(module.policy.model)) == 0


@pytest.fixture
def reward_folder(talker, tmp_path):
    """Write a reward model as its phase does."""
    reward_model = ScalarModel(load_trunk(talker))
    reward_model.set_normalizer(0.5, 2.0)
    return str(write_reward_model(tmp_path / "reward", reward_model, Path(talker)))


def test_a_separate_critic_trains_and_is_saved(run, tmp_path, reward_folder):
    module = run(critic="separate", critic_source=reward_folder)
    assert module.policy.value_head is None
    state = saved_state(module, tmp_path)
    assert "critic.head.linear.weight" in state
    before = load_reward_model(reward_folder).state_dict()
    name = "backbone.layers.0.mlp.up_proj.weight"
    assert (state[f"critic.{name}"] - before[name]).abs().max() > 1e-3
    assert module.recorder.values("train/ppo/first_log_ratio") == [0, 0, 0]
    assert all(loss > 0 for loss in module.recorder.values("train/ppo/value_loss"))


class Counting(RewardSource):
    """Scores by length, and keeps what it was asked about."""

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, responses, batch):
        self.batches.append(batch)
        return torch.tensor([len(response) / 10 for response in responses])


def test_rloo_needs_no_critic_and_draws_groups(run, tmp_path):
    reward = Counting()
    module = run(2, reward=reward, advantage=RLOO(k=3))
    assert module.policy.value_head is None
    assert module.critic is None
    assert "train/ppo/returns" not in module.recorder.batches[0]
    for batch in reward.batches:
        assert batch.group_ids.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert len(set(batch.responses)) > 4
    assert set(saved_state(module, tmp_path)) == {
        "num_iterations",
        *(f"policy.model.{name}" for name in module.policy.model.state_dict()),
    }


def test_with_lora_no_second_model_is_held(run, talker, tmp_path):
    module = run(lora=LORA)
    assert module.reference is None
    kl = module.recorder.values("train/ppo/kl")
    assert kl[0] == 0  # the adapter starts at zero
    assert abs(kl[-1]) > 1e-3
    assert all(
        "lora_" in name or name.startswith("policy.value_head.") or name == "num_iterations"
        for name in saved_state(module, tmp_path)
    )
    rows = random_rows([3, 4], [5, 2])
    fresh = PPOModule(talker, LENGTH)
    fresh.configure_model()
    with torch.no_grad():
        torch.testing.assert_close(
            module.reference_logprobs(rows), fresh.policy(rows).logprobs, atol=1e-5, rtol=0
        )
        assert (module.policy(rows).logprobs - fresh.policy(rows).logprobs).abs().max() > 1e-2


def test_with_lora_the_reward_model_stands_on_the_policys_trunk(run, talker, tmp_path):
    reward_model = ScalarModel(apply_lora(freeze(load_trunk(talker)), LORA))
    shake(reward_model.head, seed=3)
    path = str(write_reward_model(tmp_path / "reward", reward_model, Path(talker)))
    reward = LearnedReward(path)
    module = run(lora=LORA, reward=reward)
    frozen = {p.data_ptr() for p in module.policy.model.parameters() if not p.requires_grad}
    own = {p.data_ptr() for p in reward._loaded.model.backbone.parameters()}
    adapters = [name for name, _ in reward_model.named_parameters() if "lora_" in name]
    assert len(own - frozen) == len(adapters)
    alone = run(lora=LORA, reward=LearnedReward(path, batch_size=3))
    shared, separate = (m.recorder.values("train/ppo/reward") for m in (module, alone))
    assert shared == pytest.approx(separate, abs=1e-5)


def test_the_coefficient_follows_the_controller(run):
    """The logged KL, fed to a controller of its own, gives every logged coefficient."""
    controller = AdaptiveKL(initial=0.2, target=0.05, horizon=20.0)
    module = run(4, trainer={"max_epochs": 2, "callbacks": [KLControl(controller=controller)]})
    state = controller.initial_state()
    for kl, coefficient in zip(
        module.recorder.values("train/ppo/kl"),
        module.recorder.values("train/ppo/kl_coef"),
        strict=True,
    ):
        assert coefficient == pytest.approx(state.coefficient, rel=1e-6)
        state = controller.update(state, kl, 4)
    assert module.kl_coef == pytest.approx(state.coefficient, rel=1e-5)
    assert module.kl_coef != controller.initial


class Forwards(PPOModule):
    """Counts how often the policy looks at rows."""

    count = 0

    def score(self, rows):
        self.count += 1
        return super().score(rows)


class Never(FirstForward):
    """Saves no forward."""

    def __init__(self, plan, *, is_read_before):
        super().__init__(UpdatePlan([plan.epochs[0] * 2]), is_read_before=is_read_before)


@pytest.mark.parametrize("settings", [{}, {"advantage": RLOO(k=2)}, {"lora": LORA}])
def test_the_first_forward_is_not_computed_twice(run, monkeypatch, settings):
    once = run(module_class=Forwards, **settings)
    monkeypatch.setattr("lit_rlhf.modules.ppo.FirstForward", Never)
    twice = run(module_class=Forwards, **settings)
    assert (once.count, twice.count) == (3 * 4, 3 * 5)  # iterations; epochs, and the rollout
    assert largest_difference(weights(once), weights(twice)) == 0


def test_one_step_without_reference_is_one_forward(run):
    settings = {"module_class": Forwards, "advantage": RLOO(k=2)}
    none = run(2, update=UpdateConfig(num_epochs=1), kl_penalty=None, **settings)
    assert none.count == 2
    assert none.reference is None
    settings["trainer"] = {"callbacks": [KLControl(target=None, coefficient=0.0)]}
    zero = run(2, update=UpdateConfig(num_epochs=1), **settings)
    assert largest_difference(weights(none.policy), weights(zero.policy)) == 0
    assert "train/ppo/kl" in zero.recorder.batches[0]
    assert not {"train/ppo/kl", "train/ppo/penalized_reward"} & none.recorder.batches[0].keys()


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_micro_batches_are_looked_at_once_where_nothing_needs_a_look_before(
    run, monkeypatch, num_epochs
):
    update = UpdateConfig(num_epochs=num_epochs, micro_batch_size=3)
    settings = {"module_class": Forwards, "advantage": RLOO(k=2), "kl_penalty": None}
    once = run(2, update=update, **settings)
    monkeypatch.setattr("lit_rlhf.modules.ppo.FirstForward", Never)
    twice = run(2, update=update, **settings)
    per_epoch = once.count // num_epochs
    assert per_epoch > 2
    assert twice.count == once.count + per_epoch
    assert largest_difference(weights(once), weights(twice)) == 0
    for name in ("sampler_difference", "clip_fraction", "approximate_kl", "first_log_ratio"):
        logged = [module.recorder.values(f"train/ppo/{name}") for module in (once, twice)]
        assert logged[0] == logged[1]


def test_without_a_penalty_validation_logs_no_kl(run):
    module = run(1, kl_penalty=None, trainer={"limit_val_batches": 1})
    assert "kl" not in module.validation_samples[0]


def test_the_lineage_names_the_models_as_they_were_at_the_start(run, talker, tmp_path):
    origin = Path(shutil.copytree(talker, tmp_path / "origin"))

    class FromElsewhere(PPOModule):
        @property
        def origins(self):
            return {"policy": str(origin)}

    class Rewriting(Callback):
        def on_train_start(self, trainer, pl_module):
            (origin / "later.json").write_text("{}")

    before = describe_origin(str(origin))
    module = run(1, module_class=FromElsewhere, trainer={"callbacks": [Rewriting()]})
    assert describe_origin(str(origin)) != before
    assert module.lineage["origins"]["policy"] == before


def test_python_brings_the_callbacks_that_the_trainer_lacks(run):
    own = KLControl(target=None, coefficient=0.3)
    module = run(1, trainer={"callbacks": [own]})
    kinds = (KLControl, OveroptimizationMonitor)
    found = [one for one in module.trainer.callbacks if isinstance(one, kinds)]
    assert [type(one) for one in found] == list(kinds)
    assert found[0] is own
    assert module.kl_coef == 0.3
    assert run(1).trainer.callback_metrics["train/ppo/kl_coef"] == pytest.approx(0.15)
    assert "train/ppo/kl_coef" not in run(1, kl_penalty=None).trainer.callback_metrics


@pytest.mark.parametrize("name", ["reward", "kl", "prompt"])
def test_a_judge_with_a_name_that_is_taken_is_refused(talker, name):
    with pytest.raises(ConfigError, match=rf"model\.judges\.{name}"):
        PPOModule(talker, LENGTH, judges={name: LENGTH})


class Watching(AdvantageEstimator):
    """GAE that keeps the rewards it was given."""

    requires_values = True
    samples_per_prompt = 1

    def __init__(self):
        self.seen = []

    def estimate(self, tokens):
        self.seen.append(tokens.token_rewards)
        return GAE().estimate(tokens)


@pytest.mark.parametrize(
    ("rule", "torn"),
    [
        (MissingEOS("replace", -1.0), -1.0),
        (MissingEOS("subtract", 2.0), 3.0),
        (MissingEOS("keep"), 5.0),
    ],
)
def test_a_response_without_end_is_scored_by_the_rule(run, rule, torn):
    """In the first iteration the KL is zero: a row's rewards are its score, on its last token."""
    watching, reward = Watching(), Counting()
    reward_of_five = FunctionReward("tests.support.toy_rewards.five")
    run(1, reward=reward, advantage=watching, missing_eos=MissingEOS("keep"))
    (samples,) = reward.batches
    watching.seen.clear()
    module = run(1, reward=reward_of_five, advantage=watching, missing_eos=rule)
    (rewards,) = watching.seen
    finished = samples.finished
    assert 0 < finished.sum() < len(finished)
    expected = torch.where(finished, 5.0, torn)
    last = samples.response_mask.sum(1) - 1
    rows = torch.arange(len(last))
    torch.testing.assert_close(rewards[rows, last], expected)
    rewards[rows, last] = 0
    assert rewards.abs().max() < 1e-5
    # What is logged is the score itself.
    assert module.recorder.values("train/ppo/reward") == [5.0]


def test_the_reward_rises_on_a_toy_task(run):
    module = run(
        reward=FunctionReward("tests.support.toy_rewards.count_o"),
        trainer={
            "limit_train_batches": 1.0,
            "max_epochs": 20,
            "callbacks": [KLControl(target=None, coefficient=0.0)],
        },
        batch_size=12,
        update=UpdateConfig(num_epochs=3),
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-5, schedule="constant"),
        missing_eos=MissingEOS("keep"),
    )
    rewards = module.recorder.values("train/ppo/reward")
    assert len(rewards) == 20
    assert sum(rewards[:5]) / 5 < 0.5
    assert sum(rewards[-5:]) / 5 > 2


class AnotherEngine(TorchGenerator):
    """Draws as ours does, and says that every token was less likely by a factor of four."""

    def __call__(self, *args, **kwargs):
        generation = super().__call__(*args, **kwargs)
        return generation._replace(logprobs=generation.logprobs - math.log(4))


def test_our_engine_and_the_training_forward_agree(run):
    module = run(2, update=UpdateConfig(1, sampler_correction_cap=2.0))
    logged = module.recorder.batches[-1]
    assert logged["train/ppo/sampler_difference_max"] < 1e-5
    assert logged["train/ppo/sampler_kl"] < 1e-9
    assert logged["train/ppo/sampler_weight"] == pytest.approx(1, abs=1e-5)
    assert logged["train/ppo/sampler_truncated"] == 0


def test_what_another_engine_drew_is_weighed(run):
    settings = {"critic": "shared", "generator": AnotherEngine()}
    plain = run(1, update=UpdateConfig(1))
    unweighed = run(1, update=UpdateConfig(1), **settings)
    weighed = run(1, update=UpdateConfig(1, sampler_correction_cap=3.0), **settings)
    logged = weighed.recorder.batches[0]
    assert logged["train/ppo/sampler_difference"] == pytest.approx(math.log(4), abs=1e-5)
    assert logged["train/ppo/sampler_weight"] == 3
    assert logged["train/ppo/sampler_truncated"] == 1
    assert logged["train/ppo/policy_loss"] == pytest.approx(
        3 * plain.recorder.batches[0]["train/ppo/policy_loss"], abs=1e-6
    )
    # Off, the sampler's numbers are looked at and change nothing, to the last bit.
    assert largest_difference(weights(plain), weights(unweighed)) == 0
    assert "train/ppo/sampler_weight" not in unweighed.recorder.batches[0]
    assert largest_difference(weights(plain), weights(weighed)) > 0


class Meddling(PPOModule):
    """Moves the weights between the rollout's evaluation and the update."""

    @torch.no_grad()
    def _targets(self, rollout):
        for parameter in self.policy.parameters():
            parameter.mul_(1.01)
        return super()._targets(rollout)


def test_a_training_forward_that_disagrees_with_itself_stops_the_run(run):
    with pytest.raises(TrainingError, match=r"largest \|log ratio\| is .*dropout"):
        run(1, module_class=Meddling, update=UpdateConfig(micro_batch_size=2))
    lenient = UpdateConfig(micro_batch_size=2, max_first_log_ratio=100.0)
    module = run(1, module_class=Meddling, update=lenient)
    assert module.recorder.values("train/ppo/first_log_ratio")[0] > 1e-3


def test_an_entropy_bonus_keeps_the_policy_diverse(run):
    entropies = []
    for coefficient in (0.0, 5.0):
        module = run(3, update=UpdateConfig(num_epochs=4, entropy_coef=coefficient))
        entropies.append(module.recorder.values("train/ppo/surprisal")[-1])
    assert entropies[1] > entropies[0]


def validation(run, **changes):
    judges = {"judge": FunctionReward("tests.support.toy_rewards.count_o")}
    trainer = {"limit_val_batches": 1.0}
    return run(1, judges=judges, trainer=trainer, **changes)


def test_validation_asks_reward_and_judges_about_every_held_out_prompt(run):
    reward = Counting()
    module = validation(run, reward=reward, update=UpdateConfig(1))
    held_out = module.recorder.held_out
    assert set(held_out) == {
        f"val/ppo/{name}"
        for name in (
            *("reward", "judge", "judge_unscored"),
            *("kl", "surprisal", "length", "finished", "repetition"),
        )
    }
    samples = module.validation_samples
    assert [sample["prompt"] for sample in samples] == [row["prompt"] for row in prompts(12)]
    assert len(reward.batches) == 1 + 3  # of 5, 5 and 2 prompts
    for name in ("reward", "judge", "length", "finished"):
        mean = sum(sample[name] for sample in samples) / 12
        assert held_out[f"val/ppo/{name}"] == pytest.approx(mean, abs=1e-3)
    assert samples[3]["judge"] == samples[3]["response"].count("o")
    json.dumps(samples)  # plain types
    ids = torch.cat([values["prompt_id"] for values in module.validation_values])
    assert ids.tolist() == list(range(12))
    lengths = torch.cat([values["length"] for values in module.validation_values])
    assert lengths.tolist() == [sample["length"] for sample in samples]
    # The policy's own surprise at what it said: at least that of the likeliest tokens.
    assert all(sample["surprisal"] > 0 for sample in samples)


def test_members_of_an_ensemble_disagree_on_each_response(run):
    toys = "tests.support.toy_rewards"
    members = [FunctionReward(f"{toys}.count_o"), FunctionReward(f"{toys}.length")]
    module = validation(run, reward=EnsembleReward(members), update=UpdateConfig(1))
    for sample in module.validation_samples:
        apart = abs(sample["response"].count("o") - len(sample["response"]) / 10) / 2
        assert sample["reward_disagreement"] == pytest.approx(apart, abs=1e-3)
    mean = sum(sample["reward_disagreement"] for sample in module.validation_samples) / 12
    logged = module.recorder.held_out["val/ppo/reward_disagreement"]
    assert logged == pytest.approx(mean, abs=1e-3)


def test_repetition_is_the_share_of_pairs_that_were_there_before():
    ids = torch.tensor([[9, 1, 2, 1, 2, 1], [9, 9, 9, 1, 0, 0], [5, 6, 5, 6, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
    rows = TokenRows(ids, torch.tensor([6, 4, 6]), mask)
    # 12 21 12 21: two of four; one token; 65 56: none
    assert repetition(rows).tolist() == [0.5, 0.0, 0.0]


def test_validation_samples_keep_their_random_streams(run):
    """An untrained policy answers alike whatever the seed of training."""
    frozen = OptimizerConfig(learning_rate=1e-12, schedule="constant", warmup_fraction=0.0)
    one, other = (validation(run, optimizer=frozen, seed=seed) for seed in (0, 5))
    assert one.validation_samples == other.validation_samples
    assert one.recorder.values("train/ppo/surprisal") != other.recorder.values(
        "train/ppo/surprisal"
    )


def test_the_schedule_counts_iterations(run, caplog):
    linear = OptimizerConfig(learning_rate=1e-3, schedule="linear", warmup_fraction=0.0)
    settings = {"optimizer": linear, "update": UpdateConfig(2, num_minibatches=2)}
    module = run(3, trainer={"max_epochs": 2}, **settings)
    assert module.num_scheduler_steps == 6
    assert module.lr_schedulers().get_last_lr() == [0.0, 0.0]
    with caplog.at_level(logging.INFO):
        module = run(3, trainer={"max_epochs": 2, "max_steps": 8}, **settings)
    assert "trainer.max_steps=8 counts optimizer steps: the run ends after 2 iter" in caplog.text
    assert module.trainer.global_step == 8
    assert module.num_scheduler_steps == 2
    assert module.lr_schedulers().get_last_lr() == [0.0, 0.0]


def test_advantages_are_whitened_over_the_whole_batch(run, monkeypatch):
    seen = []
    compute = PPOModule._targets

    def keep(self, rollout):
        seen.append(compute(self, rollout))
        return seen[-1]

    monkeypatch.setattr(PPOModule, "_targets", keep)
    run(1)
    run(1, whiten_advantages=False)
    whitened, plain = [t.advantages[t.response_mask] for t in seen]
    assert whitened.mean().item() == pytest.approx(0, abs=1e-5)
    assert whitened.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(
        whitened, (plain - plain.mean()) / plain.std(unbiased=False), atol=1e-4, rtol=0
    )


def test_any_estimator_of_ones_own_is_used(run):
    class Nothing(AdvantageEstimator):
        requires_values = False
        samples_per_prompt = 2

        def estimate(self, tokens):
            assert tokens.values is None
            return Advantages(torch.zeros_like(tokens.token_rewards), None)

    before = run(1, advantage=Nothing())
    assert largest_difference(weights(before.policy), weights(before.reference)) == 0
