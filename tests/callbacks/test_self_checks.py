"""Each check fires on the run that it is for, names likely causes, and is silent on sound runs."""

import math
import warnings

import pytest
import torch
from lightning.pytorch import Callback

from lit_rlhf.callbacks import SelfChecks
from lit_rlhf.callbacks.self_checks import LOWEST_TOTAL_KL, frozen_checksum
from lit_rlhf.errors import TrainingError
from lit_rlhf.rewards import LearnedReward
from tests.models.examples import write_reward_model
from tests.support.phase_runs import build, run
from tests.support.phases import phase_trainer

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


def fit(folder, tmp_path, case, *callbacks, module=None, **options):
    built, data = build(case, folder)
    module = module or built
    settings = {"limit_val_batches": 1, "max_epochs": 1} | options
    trainer = phase_trainer(tmp_path, callbacks=list(callbacks), **settings)
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("case", ["sft", "sft-lora", "reward", "dpo", "ppo", "ppo-lora"])
def test_sound_runs_are_silent_and_the_same_with_and_without(folder, case):
    """Warnings are errors here; the checks draw nothing and move nothing."""
    plain = run(case, folder, max_batches=3)
    checked = run(case, folder, max_batches=3, callbacks=[SelfChecks()])
    assert str(plain.metrics) == str(checked.metrics)  # NaN, where nothing was decided, is NaN
    for name, value in plain.weights.items():
        assert torch.equal(value, checked.weights[name]), name


class MoveFrozen(Callback):
    """Moves one bit of a frozen weight, once."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == 1:
            frozen = [value for value in module.parameters() if not value.requires_grad]
            with torch.no_grad():
                frozen[-1].view(torch.int32).view(-1)[0] ^= 1


@pytest.mark.parametrize("case", ["ppo", "ppo-lora", "sft-lora", "dpo"])
def test_a_frozen_weight_that_moves_stops_the_run(folder, tmp_path, case):
    with pytest.raises(TrainingError, match=r"frozen weight .* has changed .*Likely causes"):
        fit(folder, tmp_path, case, SelfChecks(), MoveFrozen())
    fit(folder, tmp_path, case, SelfChecks(enabled=False), MoveFrozen())


def test_without_validation_the_end_of_training_looks(folder, tmp_path):
    with pytest.raises(TrainingError, match="frozen weight"):
        fit(folder, tmp_path, "ppo", SelfChecks(), MoveFrozen(), limit_val_batches=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_checksum_sees_any_bit(dtype):
    module = torch.nn.Linear(7, 5).to(dtype).requires_grad_(False)
    before = frozen_checksum(module)
    assert torch.equal(before, frozen_checksum(module))
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for bit in (0, 8 * dtype.itemsize - 2):
        module.weight.view(integers)[3, 2] ^= 1 << bit
        assert not torch.equal(before, frozen_checksum(module))
        module.weight.view(integers)[3, 2] ^= 1 << bit
    module.weight.requires_grad_(True)
    assert len(frozen_checksum(module)) == 1


class ReadPadding(Callback):
    """Makes a model's answer depend on how wide its rows are."""

    def __init__(self, name):
        self.name = name

    def on_train_start(self, trainer, module):
        model = getattr(module, self.name)
        plain = model.forward

        def forward(rows, **options):
            output = plain(rows, **options)
            shift = rows.input_ids.shape[1] / 10
            if torch.is_tensor(output):
                return output + shift
            return output._replace(logprobs=output.logprobs - shift)

        model.forward = forward


@pytest.mark.parametrize(
    ("case", "model", "named"),
    [
        ("sft", "policy", "the policy's log-probabilities differs by"),
        ("dpo", "policy", "the policy's log-probabilities differs by"),
        ("reward", "reward_model", "the score differs by"),
        ("ppo", "policy", "the policy's log-probabilities differs by"),
    ],
)
def test_what_depends_on_padding_stops_the_run_before_a_step(folder, tmp_path, case, model, named):
    with pytest.raises(TrainingError, match=rf"{named}.*Likely causes.*packing_width") as caught:
        fit(folder, tmp_path, case, ReadPadding(model), SelfChecks())
    assert "self_checks.enabled" in str(caught.value)


def test_a_learned_reward_that_depends_on_padding_is_named(folder, tmp_path, monkeypatch):
    module, _ = build("reward", folder)
    module.configure_model()
    path = write_reward_model(tmp_path / "reward", module.reward_model, folder)
    ppo, _ = build("ppo", folder)
    ppo.reward = LearnedReward(str(path))
    fit(folder, tmp_path, "ppo", SelfChecks(), module=ppo)
    plain = LearnedReward._of_each

    def reading_padding(self, prompts, responses, device, compute):
        def widened(model, rows):
            return compute(model, rows) + rows.input_ids.shape[1]

        return plain(self, prompts, responses, device, widened)

    monkeypatch.setattr(LearnedReward, "_of_each", reading_padding)
    ppo, _ = build("ppo", folder)
    ppo.reward = LearnedReward(str(path))
    with pytest.raises(TrainingError, match="the score of reward differs by"):
        fit(folder, tmp_path, "ppo", SelfChecks(), module=ppo)


def watch(outputs, *, checks=None, norm=1.0):
    """Hand a sequence of outputs to the checks; return the warnings."""
    checks = checks or SelfChecks()

    class Module(torch.nn.Linear):
        gradient_norm = 1.0

    module = Module(1, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index, output in enumerate(outputs):
            module.gradient_norm = norm[index] if isinstance(norm, list) else norm
            checks.on_train_batch_end(None, module, output, None, index)
    return [str(warning.message) for warning in caught]


def test_a_kl_below_what_chance_allows_is_an_error():
    assert watch([{"kl": LOWEST_TOTAL_KL / 64 * 0.99, "num_episodes": 64}]) == []
    with pytest.raises(TrainingError, match=r"KL .* over 64 responses.*Likely causes.*temperature"):
        watch([{"kl": LOWEST_TOTAL_KL / 64 * 1.01, "num_episodes": 64}])
    assert watch([{"kl": None, "num_episodes": 64}, {"kl": math.nan, "num_episodes": 64}]) == []
    off = SelfChecks(enabled=False)
    assert watch([{"kl": -100.0, "num_episodes": 64}], checks=off) == []


def test_the_bound_on_the_kl_holds_for_samples_of_the_policy():
    """Policy and reference far apart: sums as low as the bound do not come up by chance."""
    torch.manual_seed(0)
    policy, reference = (torch.randn(40, 9) * 2).log_softmax(-1), torch.randn(40, 9).log_softmax(-1)
    tokens = torch.distributions.Categorical(logits=policy).sample((200_000,))  # [n, T]
    gap = (policy - reference)[torch.arange(40), tokens].sum(1)
    assert (gap < 0).sum() == 0  # a KL of tens of nats
    near = (policy + 0.05 * torch.randn_like(policy)).log_softmax(-1)
    sums = (policy - near)[torch.arange(40), tokens].sum(1)
    assert (sums < 0).float().mean() > 0.3  # single responses below zero are usual
    assert sums.view(-1, 64).sum(1).min() > LOWEST_TOTAL_KL


def test_samples_of_another_model_are_noticed(folder, tmp_path):
    """The reference speaks instead of the policy: the KL of its own samples is negative."""
    module, data = build("ppo", folder)

    class ReferenceSpeaks(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            with torch.no_grad():  # a policy that has gone far away
                for weight in module.policy.parameters():
                    weight.add_(0.3 * torch.randn_like(weight))

    plain = module._roll_out

    def roll_out(batch):
        module.policy, module.reference = module.reference, module.policy
        try:
            return plain(batch)
        finally:
            module.policy, module.reference = module.reference, module.policy

    module._roll_out = roll_out
    trainer = phase_trainer(
        tmp_path, callbacks=[ReferenceSpeaks(), SelfChecks()], limit_val_batches=0
    )
    with pytest.raises(TrainingError, match="a KL is never negative"):
        trainer.fit(module, data)


def test_truncated_responses_are_a_warning_once_they_are_the_rule():
    assert watch([{"truncated": 1.0}] * 4) == []
    (message,) = watch([{"truncated": 0.95}] * 9)
    for word in ("95%", "max_new_tokens", "append_eos", "stop tokens"):
        assert word in message
    assert watch([{"truncated": 0.85}] * 9) == []
    assert len(watch([{"truncated": 0.6}] * 9, checks=SelfChecks(max_truncated_share=0.5))) == 1


def test_gradient_norms_that_explode_or_vanish_are_warnings():
    steady = [1.0 + index % 3 for index in range(40)]
    assert watch([None] * 40, norm=steady) == []
    (message,) = watch([None] * 41, norm=[*steady, 201.0])
    for word in ("201", "was 2", "learning rate", "clip"):
        assert word in message
    assert watch([None] * 41, norm=[*steady, math.nan]) == []  # the guard's matter
    (message,) = watch([None] * 12, norm=[0.0] * 12)
    assert "zero" in message
    assert "scores alike" in message
    assert watch([None] * 12, norm=[0.0] * 5 + [1.0] * 7) == []


def test_the_ratio_check_has_the_same_switch(folder, tmp_path):
    class Move(Callback):
        def on_train_start(self, trainer, module):
            plain = module._targets

            def targets(rollout):
                with torch.no_grad():
                    for weight in module.policy.parameters():
                        weight.mul_(1.01)
                return plain(rollout)

            module._targets = targets

    with pytest.raises(TrainingError, match="log ratio"):
        fit(folder, tmp_path, "ppo", SelfChecks(), Move())
    fit(folder, tmp_path, "ppo", SelfChecks(enabled=False), Move())
