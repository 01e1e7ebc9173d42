"""What a rollout adds for some objectives does not depend on the number of processes."""

import pytest
import torch

from lit_rlhf.data import PPODataModule
from lit_rlhf.modules import OptimizerConfig, PPOModule, UpdateConfig
from lit_rlhf.objectives import GRPO, GSPO, KLPenalty, MissingEOS, ReMax, SequenceMean
from lit_rlhf.rewards import RewardSource
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy
from tests.support.phases import (
    Recorder,
    demonstrations,
    largest_difference,
    phase_trainer,
    prompts,
    weights,
    write_rows,
)
from tests.support.two_processes import run_in_two_processes

CASES = {
    "batch scale, refills": {
        "advantage": GRPO(2, "batch"),
        "max_refills": 2,
        "whiten_advantages": False,
    },
    "texts mixed in": {"update": UpdateConfig(2, pretraining_coef=2.0, micro_batch_size=1)},
    "greedy": {"advantage": ReMax(), "whiten_advantages": False},
    "by response, KL in the loss": {
        "advantage": GRPO(2),
        "kl_penalty": KLPenalty("loss", "k3", importance_weighted=True),
        "update": UpdateConfig(
            2, policy_loss=GSPO(0.1, 0.1), aggregation=SequenceMean(), micro_batch_size=1
        ),
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


class Vowels(RewardSource):
    """Scores long responses by their vowels, and all short ones alike."""

    def __call__(self, prompts, responses, batch):
        scores = [sum(map(one.count, "aeiou")) if len(one) > 5 else 0.0 for one in responses]
        return torch.tensor(scores, dtype=torch.float32)


def train(folder, devices=1):
    """Train each case; return its weights and metrics by its name."""
    found = {}
    common = {"update": UpdateConfig(2), "missing_eos": MissingEOS("keep")}
    for name, settings in CASES.items():
        module = PPOModule(
            str(folder / "policy"),
            Vowels(),
            optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-2, schedule="constant"),
            sampling=Sampling(max_new_tokens=8),
            **common | settings,
        )
        mixed = {"pretraining": str(folder / "texts.jsonl"), "pretraining_batch_size": 3}
        data = PPODataModule(
            module.source,
            train=str(folder / "prompts.jsonl"),
            batch_size=4,
            **mixed if module.update.pretraining_coef else {},
        )
        options = {"strategy": "ddp", "devices": 2} if devices == 2 else {}
        recorder = Recorder()
        trainer = phase_trainer(
            folder, callbacks=[recorder], limit_train_batches=3, limit_val_batches=0, **options
        )
        trainer.fit(module, data)
        found[name] = weights(module.policy), recorder.batches
    return found


def train_with_another(folder):
    return train(folder, devices=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    save_policy(folder / "policy", seed=1)
    write_rows(folder / "prompts.jsonl", prompts(20))
    write_rows(folder / "texts.jsonl", demonstrations())
    both = run_in_two_processes(train_with_another, folder, init_process_group=False, timeout_s=300)
    return train(folder), both[0]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(runs, case):
    (alone, metrics), (together, shared) = (found[case] for found in runs)
    assert largest_difference(alone, together) < 1e-4
    for own, other in zip(metrics, shared, strict=True):
        names = ("reward", "kl", "length", "refilled_groups", "pretraining_loss")
        for name in names:
            assert own.get(f"train/ppo/{name}") == pytest.approx(
                other.get(f"train/ppo/{name}"), abs=1e-4
            )
    if "refills" in case:
        assert sum(batch["train/ppo/refilled_groups"] for batch in metrics) > 0
