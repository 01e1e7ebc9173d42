import pytest
import torch
from lightning.pytorch import Callback

from lit_rlhf.callbacks import ReferenceSync, SelfChecks
from lit_rlhf.callbacks.self_checks import frozen_checksum
from lit_rlhf.data import DPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig
from lit_rlhf.modules import DPOModule, OptimizerConfig
from lit_rlhf.objectives import SimPO
from tests.models.examples import save_policy
from tests.support.phases import judged_groups, largest_difference, phase_trainer, write_rows

FAST = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_fraction=0.0)


class Weights(Callback):
    """Keeps the weights of policy and reference after each batch."""

    def __init__(self):
        self.policy, self.reference = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        for kept, model in ((self.policy, pl_module.policy), (self.reference, pl_module.reference)):
            kept.append({name: w.detach().clone() for name, w in model.named_parameters()})


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return str(save_policy(tmp_path_factory.mktemp("policy")))


@pytest.fixture
def fit(policy, tmp_path):
    path = write_rows(tmp_path / "groups.jsonl", judged_groups(6))

    def run(sync, *callbacks, ckpt_path=None, settings=None, **options):
        options = {"max_steps": 4, "max_epochs": 9, "limit_val_batches": 0} | options
        trainer = phase_trainer(tmp_path, callbacks=[sync, *callbacks], **options)
        settings = {"reference_logprobs": "on_the_fly"} | (settings or {})
        module = DPOModule(policy, optimizer=FAST, **settings)
        data = DPODataModule(policy, train=path, batch_size=2)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return trainer, module

    return run


def moved(before, towards, mix):
    return {name: (1 - mix) * w + mix * towards[name] for name, w in before.items()}


@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_the_reference_moves_every_second_step(fit, mix):
    seen = Weights()
    fit(ReferenceSync(2, mix), seen)
    first, second, third, fourth = seen.reference
    assert largest_difference(first, third) > 0
    assert largest_difference(second, third) == 0
    assert largest_difference(second, moved(first, seen.policy[1], mix)) < 1e-6
    assert largest_difference(fourth, moved(third, seen.policy[3], mix)) < 1e-6


def test_the_self_checks_let_the_reference_move_and_nothing_else(fit):
    checked = SelfChecks()
    trainer, module = fit(ReferenceSync(1, 0.5), checked, limit_val_batches=0)
    assert trainer.global_step == 4
    before = frozen_checksum(module)
    with torch.no_grad():
        next(module.reference.parameters()).add_(1)
    assert torch.equal(frozen_checksum(module), before)
    module.reference_moves = False
    assert len(frozen_checksum(module)) > len(before)


def test_an_optimizer_step_of_several_batches_moves_it_once(fit):
    seen = Weights()
    fit(ReferenceSync(1, 0.5), seen, max_steps=2, accumulate_grad_batches=2)
    # 3 batches an epoch: the second and the last one of it end a step
    assert largest_difference(seen.reference[1], moved(seen.reference[0], seen.policy[1], 0.5)) < (
        1e-6
    )
    assert largest_difference(seen.reference[0], seen.reference[1]) > 0


def test_a_resumed_run_goes_on_with_the_moved_reference(fit, tmp_path):
    whole, part, rest = Weights(), Weights(), Weights()
    fit(ReferenceSync(2, 0.5), whole)
    trainer, _ = fit(ReferenceSync(2, 0.5), part, max_steps=3)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    fit(ReferenceSync(2, 0.5), rest, ckpt_path=tmp_path / "run.ckpt")
    assert len(rest.policy) == 1
    for name in ("policy", "reference"):
        assert largest_difference(getattr(rest, name)[-1], getattr(whole, name)[-1]) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"reference_logprobs": "precomputed"},
        {"lora": LoRAConfig(rank=2)},
        {"reference_logprobs": "precomputed", "loss": SimPO()},
    ],
    ids=["precomputed", "lora", "no reference"],
)
def test_a_run_without_a_reference_to_move_is_refused(fit, settings):
    with pytest.raises(ConfigError, match="ReferenceSync moves the reference"):
        fit(ReferenceSync(), settings=settings)


def test_numbers_out_of_range_are_refused():
    for arguments in ((0, 0.5), (2, 0.0), (2, 1.5)):
        with pytest.raises(ConfigError, match="ReferenceSync"):
            ReferenceSync(*arguments)


def test_a_reference_in_bfloat16_moves_as_well():
    class Trainer:
        global_step = 1

    module = torch.nn.ModuleDict(
        {"policy": torch.nn.Linear(2, 2), "reference": torch.nn.Linear(2, 2).bfloat16()}
    )
    module.reference_moves = True
    ReferenceSync(1, 1.0).on_train_batch_end(Trainer(), module, None, None, 0)
    assert torch.equal(module["reference"].weight, module["policy"].weight.bfloat16())
