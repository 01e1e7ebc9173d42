import math

import pytest
import torch

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.data import DPODataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.models import LoRAConfig, load_causal_lm, load_tokenizer
from lit_rlhf.modules import DPOModule, OptimizerConfig
from lit_rlhf.modules.metrics import NamedMeans
from lit_rlhf.objectives import DPO, KTO, Hinge, SimPO
from tests.models.examples import plain_model, random_rows, response_logprobs
from tests.objectives.preference.cases import KINDS
from tests.support.phases import (
    Recorder,
    judged_groups,
    largest_difference,
    pair_shares,
    phase_trainer,
    weights,
    write_rows,
)

FAST = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_fraction=0.0)
NAMES = {
    "loss",
    "accuracy",
    "chosen_rewards",
    "rejected_rewards",
    "margin",
    "chosen_logprobs",
    "rejected_logprobs",
}


@pytest.fixture
def data(tmp_path, policy):
    path = write_rows(tmp_path / "groups.jsonl", judged_groups(6))

    def make(**settings):
        return DPODataModule(policy, train=path, validation=path, test=path, **settings)

    return make


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_first_loss_is_log_two_whatever_people_said(policy, data, tmp_path, lora, precision):
    """Policy and reference agree, so every margin is zero: -p log .5 - (1 - p) log .5.

    Exactly so where both compute the same batch.
    """
    recorder = Recorder()
    trainer = phase_trainer(
        tmp_path, max_steps=1, limit_val_batches=0, callbacks=[recorder], precision=precision
    )
    module = DPOModule(policy, lora=lora, reference_logprobs="on_the_fly")
    trainer.fit(module, data(batch_size=6))
    (first,) = recorder.batches
    assert first["train/dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["train/dpo/accuracy"] == 0.5  # all ties
    assert {name.removeprefix("train/dpo/") for name in first} == NAMES | {
        "grad_norm",
        "skipped_steps",
    }


@pytest.fixture(scope="module")
def trained(policy, tmp_path_factory):
    """Return a module after some steps, the weights before, and its metrics on held-out pairs."""
    folder = tmp_path_factory.mktemp("dpo")
    path = write_rows(folder / "groups.jsonl", judged_groups(6))
    data = DPODataModule(policy, train=path, validation=path, batch_size=3, eval_batch_size=4)
    module = DPOModule(policy, optimizer=FAST, reference_logprobs="on_the_fly")
    recorder = Recorder()
    module.configure_model()
    before = weights(module)
    phase_trainer(folder, max_epochs=4, callbacks=[recorder]).fit(module, data)
    return module, before, recorder


def test_only_the_policy_moves(trained):
    module, before, _ = trained
    for name, weight in weights(module).items():
        is_same = torch.equal(weight, before[name])
        assert is_same == name.startswith("reference."), name
    assert all(parameter.grad is None for parameter in module.reference.parameters())


def test_held_out_metrics_equal_those_of_transformers(trained, policy):
    """Every pair of every group, by logits of plain models before and after."""
    module, _, recorder = trained
    tokenizer = load_tokenizer(policy)
    before, after = plain_model(policy), module.policy.model.eval()
    rows = []
    for group in judged_groups(6):
        policy_logprobs, rewards = [], []
        for response in group["responses"]:
            own, other = (
                sum(response_logprobs(model, tokenizer, group["prompt"], response))
                for model in (after, before)
            )
            policy_logprobs.append(own)
            rewards.append(0.1 * (own - other))
        for a, b, probability in pair_shares(group):
            margin = rewards[a] - rewards[b]
            nats = probability * math.log1p(math.exp(-margin))
            nats += (1 - probability) * math.log1p(math.exp(margin))
            is_right = None if probability == 0.5 else margin > 0
            rows.append((nats, is_right, rewards[a], rewards[b], policy_logprobs[a], margin))
    expected = [sum(column) / len(rows) for column in zip(*rows, strict=True) if None not in column]
    decided = [row[1] for row in rows if row[1] is not None]
    held_out = recorder.held_out
    assert held_out["val/dpo/loss"] == pytest.approx(expected[0], abs=1e-5)
    assert held_out["val/dpo/accuracy"] == pytest.approx(sum(decided) / len(decided), abs=1e-6)
    assert held_out["val/dpo/margin"] == pytest.approx(expected[-1], abs=1e-5)


def test_it_learns_what_people_prefer(trained):
    *_, recorder = trained
    losses = recorder.values("train/dpo/loss")
    assert losses[-1] < losses[0]
    assert recorder.held_out["val/dpo/accuracy"] > 0.7
    assert recorder.held_out["val/dpo/margin"] > 0


def test_with_lora_the_reference_is_the_adapter_switched_off(policy, data, tmp_path):
    mode = {"reference_logprobs": "on_the_fly"}
    module = DPOModule(policy, lora=LoRAConfig(rank=2), optimizer=FAST, **mode)
    trainer = phase_trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    trainer.fit(module, data(batch_size=3))
    assert module.reference is None
    batch = next(iter(trainer.train_dataloader))
    reference = module._reference_logprobs(batch)
    copy = DPOModule(policy, **mode)
    copy.configure_model()
    torch.testing.assert_close(reference, copy._reference_logprobs(batch), atol=1e-5, rtol=1e-5)
    logprobs = module.policy(batch.rows).logprobs.sum(1)
    assert (logprobs - reference).abs().max() > 0.1
    trainer.save_checkpoint(tmp_path / "policy.ckpt")
    state = torch.load(tmp_path / "policy.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in state)


def test_a_checkpoint_holds_the_policy_without_the_reference(trained, tmp_path):
    module, *_ = trained
    module.trainer.save_checkpoint(tmp_path / "policy.ckpt")
    state = torch.load(tmp_path / "policy.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("policy.") for name in state)
    module.save_pretrained(tmp_path / "model")
    loaded = load_causal_lm(str(tmp_path / "model"))
    assert largest_difference(weights(loaded), weights(module.policy.model)) == 0


def pair_batch(probability, weight):
    count = len(probability)
    rows = random_rows([2] * (2 * count), [3] * (2 * count))
    indices = torch.arange(2 * count)
    return ComparisonBatch(
        rows=rows,
        chosen=indices[:count],
        rejected=indices[count:],
        probability=torch.tensor(probability),
        weight=torch.tensor(weight),
        group=torch.zeros(2 * count, dtype=torch.long),
        ratings=torch.full((2 * count,), math.nan),
    )


def test_accuracy_leaves_even_splits_out_and_halves_ties(policy, tmp_path, monkeypatch):
    module = DPOModule(policy)
    module.configure_model()
    logprobs = module.policy(pair_batch([0.5] * 4, [1.0] * 4).rows).logprobs.sum(1).detach()
    shift = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # margins: three up, one tie
    monkeypatch.setattr(module, "_reference_logprobs", lambda batch: logprobs - shift)
    batch = pair_batch([1.0, 0.5, 0.2, 0.9], [2.0, 5.0, 1.0, 1.0])
    module.validation_step(batch, 0)
    # Right with weight 2, left out, wrong with 1, half of 1: of 4.
    assert module.validation_means.compute()["accuracy"] == pytest.approx(2.5 / 4)


@pytest.fixture(scope="module")
def untrained(policy):
    """Return a module that has its policy and its reference."""
    module = DPOModule(policy, reference_logprobs="on_the_fly")
    module.configure_model()
    return module


@pytest.mark.parametrize(
    "loss", [case.loss for case in KINDS], ids=lambda loss: type(loss).__name__
)
def test_every_loss_moves_the_policy(untrained, loss):
    untrained.loss = loss
    untrained.zero_grad()
    means = NamedMeans()
    losses = untrained._compare(pair_batch([1.0, 1.0], [1.0, 2.0]), means)
    losses.sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in untrained.policy.parameters())
    assert means.compute().keys() == NAMES


@pytest.mark.parametrize("loss", [Hinge(), SimPO()], ids=lambda loss: type(loss).__name__)
def test_held_out_shares_are_certain_labels_to_a_loss_without_soft_ones(untrained, loss):
    untrained.loss = loss
    batch = pair_batch([0.9, 0.5], [1.0, 5.0])
    with torch.no_grad():
        losses = untrained._compare(batch, means := NamedMeans())
        certain = untrained._compare(pair_batch([1.0, 1.0], [1.0, 5.0]), NamedMeans())
    if loss.takes_soft_labels:
        assert not torch.equal(losses, certain)
        return
    assert torch.equal(losses, certain)
    assert means.compute()["loss"] == pytest.approx(losses[0].item())  # the tie is left out
    with pytest.raises(ConfigError, match="Hinge has no probability"):
        untrained._compare(batch, NamedMeans())


def test_soft_labels_are_refused_before_the_reference_computes(policy, data, tmp_path, monkeypatch):
    module = DPOModule(policy, loss=Hinge(), reference_logprobs="precomputed")
    monkeypatch.setattr(module, "_compute", None)  # would not be called
    with pytest.raises(ConfigError, match=r"Hinge has no probability.* pairs of data\.train"):
        phase_trainer(tmp_path, max_epochs=1).fit(module, data(batch_size=6))


def test_a_loss_without_a_reference_loads_and_computes_none(policy, data, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="SimPO reads no reference"):
        DPOModule(policy, loss=SimPO(), reference_logprobs="on_the_fly")
    slow = OptimizerConfig(learning_rate=3e-4, schedule="constant", warmup_fraction=0.0)
    module = DPOModule(policy, loss=SimPO(), optimizer=slow)
    monkeypatch.setattr(module, "_load_reference", None)  # would not be called
    recorder = Recorder()
    phase_trainer(tmp_path, max_epochs=2, callbacks=[recorder]).fit(module, data(batch_size=6))
    assert module.reference is None
    losses = recorder.values("train/dpo/loss")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("reference", ["on_the_fly", "precomputed"])
def test_kto_learns_from_labels(policy, tmp_path, reference):
    rows = [
        {"prompt": f"say {i}: ", "response": "yes" if i % 2 else "no no", "label": i % 2}
        for i in range(8)
    ]
    path = write_rows(tmp_path / "labels.jsonl", rows)
    data = DPODataModule(policy, train=path, validation=path, batch_size=8)
    recorder = Recorder()
    module = DPOModule(policy, loss=KTO(), optimizer=FAST, reference_logprobs=reference)
    phase_trainer(tmp_path, max_epochs=4, callbacks=[recorder]).fit(module, data)
    losses = recorder.values("train/dpo/loss")
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert losses[-1] < 0.5
    assert recorder.held_out["val/dpo/accuracy"] > 0.7


def test_a_loss_of_pairs_refuses_labels(policy, tmp_path):
    rows = [{"prompt": "q", "response": text, "label": True} for text in ("yes", "no")]
    path = write_rows(tmp_path / "labels.jsonl", rows)
    data = DPODataModule(policy, train=path, batch_size=2)
    with pytest.raises(ConfigError, match="DPO reads comparisons"):
        phase_trainer(tmp_path, max_epochs=1).fit(DPOModule(policy), data)


def test_the_reference_point_is_the_mean_over_unrelated_responses(untrained):
    untrained.loss = KTO()
    batch = pair_batch([1.0, 0.0], [1.0, 3.0])
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -5.0])
    pairs = untrained._pairs(batch, logprobs, torch.tensor([-1.0, -2.0, -4.0, -8.0]))
    assert pairs.reference_point.item() == pytest.approx((1 + 3) / 2)


def test_the_loss_is_pluggable(policy, data, tmp_path):
    """Label smoothing makes the first step's loss no other, later ones do not pass it by."""
    runs = []
    for loss in (DPO(beta=0.5), DPO(beta=0.5, label_smoothing=0.3)):
        recorder = Recorder()
        trainer = phase_trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[recorder])
        trainer.fit(DPOModule(policy, loss=loss, optimizer=FAST), data(batch_size=6))
        runs.append(recorder.values("train/dpo/loss"))
    assert runs[0][0] == pytest.approx(runs[1][0])
    assert runs[0][1] != pytest.approx(runs[1][1])
