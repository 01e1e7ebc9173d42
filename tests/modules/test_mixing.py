import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.data import PPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import PPOModule, UpdateConfig
from lit_rlhf.objectives import RLOO
from tests.models.examples import plain_model
from tests.support.phases import (
    Kill,
    Killed,
    Recorder,
    demonstrations,
    largest_difference,
    phase_trainer,
    prompts,
    weights,
    write_rows,
)
from tests.support.rewarded_runs import FAST, LENGTH, SHORT


def train(
    talker, folder, coef, *, mixes=True, num_iterations=3, refills=0, callbacks=(), ckpt_path=None,
    **update,
):  # fmt: skip
    torch.manual_seed(0)
    files = {"train": write_rows(folder / "prompts.jsonl", prompts(12))}
    if mixes:
        files["pretraining"] = write_rows(folder / "texts.jsonl", demonstrations())
    module = PPOModule(
        talker,
        LENGTH,
        max_refills=refills,
        optimizer=FAST,
        sampling=SHORT,
        update=UpdateConfig(num_epochs=2, pretraining_coef=coef, **update),
        advantage=RLOO(2),
    )
    data = PPODataModule(talker, batch_size=4, pretraining_batch_size=2 if mixes else None, **files)
    module.recorder = Recorder()
    trainer = phase_trainer(
        folder,
        callbacks=[*callbacks, module.recorder],
        limit_train_batches=num_iterations,
        limit_val_batches=0,
        enable_checkpointing=bool(callbacks),
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, data


def nll(model, rows):
    """Return the mean over tokens that count, by transformers' plain forward, row by row."""
    total = 0.0
    for ids, length, mask in zip(*rows, strict=True):
        tokens = ids[:length]
        logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        found = logprobs.gather(1, tokens[1:, None])[:, 0]
        total = total - (found * mask[1:length]).sum()
    return total / rows.response_mask.sum()


def test_the_gradient_of_a_step_is_that_of_both(talker, tmp_path, monkeypatch):
    """One step with a coefficient less one without is the gradient of the texts' likelihood."""
    gradients = []
    keep = PPOModule._step

    def step(self, statistics, **options):
        gradients.append({name: p.grad.clone() for name, p in self.policy.model.named_parameters()})
        keep(self, statistics, **options)

    monkeypatch.setattr(PPOModule, "_step", step)
    _, data = train(talker, tmp_path, 0.7, num_iterations=1, micro_batch_size=3)
    of_both = gradients[0]
    gradients.clear()
    train(talker, tmp_path, 0.0, mixes=False, num_iterations=1, micro_batch_size=3)
    model = plain_model(talker)
    loss = nll(model, data.pretraining_rows(0, 0, 1))
    loss.backward()
    for name, parameter in model.named_parameters():
        mixed = of_both[name] - gradients[0][name]
        torch.testing.assert_close(mixed, 0.7 * parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_texts_become_likelier_and_every_step_has_others(talker, tmp_path):
    module, data = train(talker, tmp_path, 20.0)
    logged = module.recorder.values("train/ppo/pretraining_loss")
    assert logged[-1] < logged[0] - 0.2
    plain, _ = train(talker, tmp_path, 0.0, mixes=False)
    rows = data.pretraining_rows(0, 0, 1)
    with torch.no_grad():
        learned, other = (-one.policy(rows).logprobs.sum() for one in (module, plain))
    assert learned < other
    assert "train/ppo/pretraining_loss" not in plain.recorder.batches[0]
    again, _ = train(talker, tmp_path, 20.0)
    assert largest_difference(weights(module), weights(again)) == 0


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_draws_the_same_texts_and_refills(talker, tmp_path):
    """Rows and prompts are named by the iteration: a run that was killed ends alike."""
    settings = {"refills": 2, "num_iterations": 3}
    whole, _ = train(talker, tmp_path, 1.0, **settings)

    def saving():
        folder = tmp_path / "saved"
        return ModelCheckpoint(folder, "last", every_n_train_steps=4, enable_version_counter=False)

    with pytest.raises(Killed):
        train(talker, tmp_path, 1.0, callbacks=[saving(), Kill(2)], **settings)
    path = tmp_path / "saved" / "last.ckpt"
    resumed, _ = train(talker, tmp_path, 1.0, callbacks=[saving()], ckpt_path=path, **settings)
    assert len(resumed.recorder.batches) == 1
    assert largest_difference(weights(whole.policy), weights(resumed.policy)) == 0
    # KLControl logs its coefficient behind the recorder: in the batch that follows.
    assert resumed.recorder.batches[-1].items() <= whole.recorder.batches[-1].items()
    assert sum(whole.recorder.values("train/ppo/refilled_groups")) > 0


@pytest.mark.parametrize(
    ("coef", "mixes", "message"),
    [
        (0.0, True, "data.pretraining has no effect with .*pretraining_coef 0"),
        (1.0, False, "pretraining_coef=1.0 weighs the rows of data.pretraining"),
    ],
)
def test_one_without_the_other_is_refused(talker, tmp_path, coef, mixes, message):
    with pytest.raises(ConfigError, match=message):
        train(talker, tmp_path, coef, mixes=mixes)
