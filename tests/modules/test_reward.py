import math
import shutil

import pytest
import torch
from lightning.pytorch import Callback
from transformers import AutoModel

from lit_rlhf.data import RewardDataModule
from lit_rlhf.errors import CheckpointError, ConfigError
from lit_rlhf.feedback.aggregation import BetaMean
from lit_rlhf.models import LoRAConfig, load_reward_model, load_tokenizer
from lit_rlhf.modules import NormalizerConfig, OptimizerConfig, RewardModule
from lit_rlhf.modules.normalizing import draw_reference_samples
from lit_rlhf.objectives import BradleyTerryLoss, PlackettLuceLoss, RatingRegression, StepLoss
from tests.models.examples import plain_model
from tests.oracles import reward_losses as oracle
from tests.support.phases import (
    Recorder,
    judged_groups,
    pair_shares,
    phase_trainer,
    prompts,
    write_rows,
)
from tests.support.tokenizer import tiny_tokenizer

FAST = OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_fraction=0.0)


@pytest.fixture
def data(tmp_path, policy):
    path = write_rows(tmp_path / "groups.jsonl", judged_groups(6))

    def make(**settings):
        # The oracle's shares are of the labelers there are, with no imagined ones beside them.
        shares = BetaMean(prior=0.0)
        files = {"train": path, "validation": path, "test": path}
        return RewardDataModule(policy, **files, aggregation=shares, **settings)

    return make


@pytest.fixture
def normalizer(tmp_path):
    path = write_rows(tmp_path / "prompts.jsonl", prompts(6))
    return NormalizerConfig(path, num_samples=6, max_new_tokens=4)


def plain_scores(policy, head, group):
    """Score the responses of a group by transformers' trunk and the last token's state."""
    tokenizer = load_tokenizer(policy)
    trunk = plain_model(policy, AutoModel)
    prompt = tokenizer(group["prompt"])["input_ids"]
    scores = []
    for response in group["responses"]:
        tokens = [*prompt, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            hidden = trunk(torch.tensor([tokens])).last_hidden_state[0, -1]
        scores.append(float(hidden @ head))
    return scores


def expected_pairs(policy, head, groups):
    """Return the predicted and the human probability of all pairs."""
    pairs = []
    for group in groups:
        scores = plain_scores(policy, head, group)
        for a, b, probability in pair_shares(group):
            predicted = 1 / (1 + math.exp(scores[b] - scores[a]))
            pairs.append((predicted, probability, scores[a], scores[b]))
    return pairs


def started(policy, **settings):
    module = RewardModule(policy, **settings)
    module.configure_model()  # so that the head's first weights can be looked at
    return module, module.reward_model.head.linear.weight.detach()[0].clone()


@pytest.mark.parametrize(("packing_width", "centering"), [(None, 0.0), (64, 0.1)])
def test_the_loss_is_soft_bradley_terry_over_all_pairs(
    policy, data, tmp_path, packing_width, centering
):
    loss = BradleyTerryLoss(centering=centering)
    module, head = started(policy, packing_width=packing_width, loss=loss)
    recorder = Recorder()
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[recorder])
    trainer.fit(module, data(batch_size=6))
    losses = [
        -p * math.log(q) - (1 - p) * math.log(1 - q) + centering * (one + other) ** 2
        for q, p, one, other in expected_pairs(policy, head, judged_groups(6))
    ]
    assert recorder.values("train/reward/loss") == pytest.approx(
        [sum(losses) / len(losses)], abs=1e-5
    )


def test_margins_of_rows_count_where_they_are_asked_for(policy, tmp_path):
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.7},
        {"prompt": "a", "chosen": "b", "rejected": "d", "margin": 1.5, "probability": 0.2},
    ]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    groups = [{"prompt": "a", "responses": [row["chosen"], row["rejected"]]} for row in rows]
    for margin in (True, False):
        module, head = started(policy)
        recorder = Recorder()
        data = RewardDataModule(policy, train=path, batch_size=2, margin=margin)
        trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[recorder])
        trainer.fit(module, data)
        losses = []
        for row, group in zip(rows, groups, strict=True):
            one, other = plain_scores(policy, head, group)
            first = 1 / (1 + math.exp(other - one + margin * row["margin"]))
            share = row.get("probability", 1)
            losses.append(-share * math.log(first) - (1 - share) * math.log(1 - first))
        assert recorder.values("train/reward/loss") == pytest.approx([sum(losses) / 2], abs=1e-5)
    data = RewardDataModule(policy, train=path, batch_size=2, margin=True)
    with pytest.raises(ConfigError, match="PlackettLuceLoss reads no margins"):
        phase_trainer(tmp_path).fit(RewardModule(policy, loss=PlackettLuceLoss()), data)


def test_every_response_is_scored_once_a_batch(policy, data, tmp_path):
    module, _ = started(policy, packing_width=None)
    rows = []
    trunk = module.reward_model.backbone
    trunk.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    phase_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data(batch_size=6))
    assert rows == [sum(len(group["responses"]) for group in judged_groups(6))]


def test_held_out_agreement_with_people(policy, data, tmp_path):
    module, head = started(policy)
    recorder = Recorder()
    trainer = phase_trainer(tmp_path, callbacks=[recorder])
    trainer.test(module, data(eval_batch_size=4), verbose=False)
    pairs = expected_pairs(policy, head, judged_groups(6))
    decided = [(q - 0.5) * (p - 0.5) > 0 for q, p, *_ in pairs if p != 0.5]
    assert recorder.held_out["test/reward/accuracy"] == pytest.approx(sum(decided) / len(decided))
    brier = sum((q - p) ** 2 for q, p, *_ in pairs) / len(pairs)
    assert recorder.held_out["test/reward/brier"] == pytest.approx(brier, abs=1e-5)
    assert "test/reward/calibration_error" in recorder.held_out


def test_a_few_steps_learn_the_judgments(policy, data, tmp_path):
    module, _ = started(policy, optimizer=FAST)
    recorder = Recorder()
    phase_trainer(tmp_path, max_epochs=15, callbacks=[recorder]).fit(module, data(batch_size=6))
    losses = recorder.values("train/reward/loss")
    assert losses[-1] < 0.9 * losses[0]
    assert recorder.held_out["val/reward/accuracy"] > 0.8


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_the_saved_model_is_normalised_on_the_reference_samples(
    policy, data, tmp_path, normalizer, lora
):
    module = RewardModule(policy, lora=lora, optimizer=FAST, normalizer=normalizer)
    trainer = phase_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data(batch_size=2))
    module.save_pretrained(tmp_path / "model")
    loaded = load_reward_model(str(tmp_path / "model"))
    samples = draw_reference_samples(
        normalizer, policy, load_tokenizer(policy), torch.device("cpu")
    )
    with torch.no_grad():
        raw, kept = loaded(samples), module.reward_model(samples)
        scores = loaded.normalize(raw)
    torch.testing.assert_close(raw, kept, atol=1e-5, rtol=1e-5)
    assert raw.std() > 1e-3
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


class SavesEachStep(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.save_pretrained(f"{trainer.default_root_dir}/{trainer.global_step}")


def test_each_folder_is_normalised_by_its_own_weights(policy, data, tmp_path, normalizer):
    module = RewardModule(policy, optimizer=FAST, normalizer=normalizer)
    trainer = phase_trainer(tmp_path, limit_val_batches=0, max_steps=2, callbacks=[SavesEachStep()])
    trainer.fit(module, data(batch_size=2))
    samples = draw_reference_samples(
        normalizer, policy, load_tokenizer(policy), torch.device("cpu")
    )
    moments = set()
    for step in (1, 2):
        loaded = load_reward_model(str(tmp_path / str(step)))
        with torch.no_grad():
            scores = loaded.normalize(loaded(samples))
        assert scores.mean().item() == pytest.approx(0, abs=1e-4)
        assert scores.std().item() == pytest.approx(1, abs=1e-4)
        moments.add(float(loaded.mean))
    assert len(moments) == 2


def test_what_cannot_be_saved_is_not_trained(policy, data, tmp_path):
    folder = shutil.copytree(policy, tmp_path / "policy")
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    with pytest.raises(CheckpointError, match="no special token besides EOS"):
        trainer.fit(RewardModule(str(folder)), data(batch_size=2))
    assert trainer.global_step == 0


def test_without_a_normaliser_scores_stay_raw(policy, data, tmp_path):
    module = RewardModule(policy)
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data(batch_size=2))
    module.save_pretrained(tmp_path / "model")
    loaded = load_reward_model(str(tmp_path / "model"))
    assert (float(loaded.mean), float(loaded.deviation)) == (0, 1)


def test_a_lora_checkpoint_holds_adapters_and_head(policy, data, tmp_path):
    module = RewardModule(policy, lora=LoRAConfig(rank=2))
    trainer = phase_trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, data(batch_size=2))
    trainer.save_checkpoint(tmp_path / "reward.ckpt")
    state = torch.load(tmp_path / "reward.ckpt", weights_only=True)["state_dict"]
    others = {name for name in state if "lora_" not in name}
    assert others == {"reward_model.head.linear.weight"}


@pytest.mark.parametrize(
    "loss", [BradleyTerryLoss(per_prompt=True), PlackettLuceLoss(), RatingRegression(2.0, 1.0)]
)
def test_every_loss_learns(policy, tmp_path, loss):
    """Groups in which everybody rated everything; the first loss is the oracle's."""
    groups = [
        group | {"ratings": [ratings for ratings in group["ratings"] if None not in ratings]}
        for group in judged_groups(6)
    ]
    path = write_rows(tmp_path / "rated.jsonl", groups)
    data = RewardDataModule(policy, train=path, validation=path, batch_size=6)
    recorder = Recorder()
    module, head = started(policy, loss=loss, optimizer=FAST)
    phase_trainer(tmp_path, max_epochs=6, callbacks=[recorder]).fit(module, data)
    losses = recorder.values("train/reward/loss")
    assert losses[-1] < losses[0]
    assert losses[0] == pytest.approx(expected_first_loss(loss, policy, head, groups), abs=1e-4)


def expected_first_loss(loss, policy, head, groups):
    losses, weights = [], []
    for group in groups:
        scores = plain_scores(policy, head, group)
        rated = [sum(column) / len(column) for column in zip(*group["ratings"], strict=True)]
        if isinstance(loss, RatingRegression):
            losses += [oracle.rating(*both, 2.0) for both in zip(scores, rated, strict=True)]
            continue
        shares = [
            (a, b, (2 * share + 0.5) / 3)  # two labelers and the default prior of 0.5
            for a, b, share in pair_shares(group)
        ]
        if isinstance(loss, BradleyTerryLoss):
            losses += [oracle.soft_pair(scores[a], scores[b], share) for a, b, share in shares]
            weights += [1 / len(shares)] * len(shares)
            continue
        points = dict.fromkeys(range(len(scores)), 0.0)
        for a, b, share in shares:
            points[a] += share
            points[b] += 1 - share
        places = [-round(points[i], 9) for i in range(len(scores))]
        losses.append(oracle.plackett_luce(scores, places))
    weights = weights or [1.0] * len(losses)
    return sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)


def test_a_process_reward_model_learns_which_steps_are_right(policy, tmp_path):
    rows = [
        {"prompt": f"say {i}: ", "completions": ["yes", "no", "yes"][: 1 + i % 3], "labels": labels}
        for i in range(8)
        for labels in [[True, False, True][: 1 + i % 3]]
    ]
    path = write_rows(tmp_path / "steps.jsonl", rows)
    data = RewardDataModule(policy, train=path, validation=path, batch_size=8)
    recorder = Recorder()
    module, _ = started(policy, loss=StepLoss(), optimizer=FAST)
    phase_trainer(tmp_path, max_epochs=8, callbacks=[recorder]).fit(module, data)
    losses = recorder.values("train/reward/loss")
    assert losses[-1] < losses[0]
    assert recorder.held_out["val/reward/accuracy"] > 0.8
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        steps, whole = module.reward_model.step_scores(batch.rows), module.reward_model(batch.rows)
    last = batch.rows.response_mask.sum(1).cumsum(0) - 1
    torch.testing.assert_close(steps[last], whole)  # the last step's score is the answer's


def test_rankings_that_are_not_whole_are_refused_before_training(policy, tmp_path):
    groups = [
        {"prompt": "q ", "responses": ["a", "b", "c"], "ratings": [[1, 2, None], [None, 2, 3]]},
        {"prompt": "r ", "responses": ["a", "b", "c"], "ratings": [[1, 2, 3]]},
    ]
    path = write_rows(tmp_path / "partial.jsonl", groups)
    data = RewardDataModule(policy, train=path, batch_size=2)
    module = RewardModule(policy, loss=PlackettLuceLoss())
    with pytest.raises(ConfigError, match=r"whole rankings, but of 1 of 2 prompts of data\.train"):
        phase_trainer(tmp_path, max_epochs=1).fit(module, data)


def test_a_loss_of_pairs_refuses_steps(policy, tmp_path):
    rows = [{"prompt": "q", "completions": ["yes", "no"], "labels": [True, False]}] * 2
    path = write_rows(tmp_path / "steps.jsonl", rows)
    data = RewardDataModule(policy, train=path, batch_size=2)
    with pytest.raises(ConfigError, match="BradleyTerryLoss reads comparisons"):
        phase_trainer(tmp_path, max_epochs=1).fit(RewardModule(policy), data)
