"""What a program gives: batches that a phase can read, and the same rows and models everywhere."""

import os

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lit_rlhf.data import SFTDataModule
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules import SFTModule
from tests.support.phase_runs import build
from tests.support.phases import demonstrations, phase_trainer
from tests.support.tiny_models import tiny_model
from tests.support.tokenizer import tiny_tokenizer
from tests.support.two_processes import run_in_two_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:.* does not have many workers"),
]
NAMES = {"sft": "SFT", "reward": "Reward", "dpo": "DPO", "ppo": "PPO", "online": "PPO"}


class Plain(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(demonstrations(4), batch_size=2)

    val_dataloader = train_dataloader


def of_another_phase(phase, folder):
    _, data = build("sft" if phase in ("ppo", "online") else "ppo", folder)
    return data


@pytest.mark.parametrize("phase", NAMES)
@pytest.mark.parametrize(
    "given",
    [
        lambda *_: DataLoader(demonstrations(4), batch_size=2),
        lambda *_: demonstrations(4),
        lambda *_: Plain(),
        of_another_phase,
    ],
    ids=["a loader", "rows", "a plain data module", "another phase's"],
)
def test_batches_of_another_kind_are_refused(tmp_path, folder, phase, given):
    module, _ = build(phase, folder)
    trainer = phase_trainer(tmp_path, max_steps=2)
    with pytest.raises(ConfigError, match=f"{NAMES[phase]}DataModule"):
        trainer.fit(module, given(phase, folder))
    data = given(phase, folder)
    if not isinstance(data, list) and given is not of_another_phase:  # a list is several loaders
        with pytest.raises(ConfigError, match=f"{NAMES[phase]}DataModule"):
            trainer.validate(module, data)


@pytest.mark.parametrize("phase", NAMES)
def test_loaders_of_a_data_module_work_by_themselves(tmp_path, folder, phase):
    module, data = build(phase, folder)
    data.setup("fit")
    trainer = phase_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data.train_dataloader(), data.val_dataloader())
    assert trainer.global_step > 0


def test_a_step_of_ones_own_reads_what_it_likes(tmp_path, policy):
    class Own(SFTModule):
        def training_step(self, batch, batch_idx):
            return sum(p.sum() for p in self.trained_model.parameters()) * len(batch["prompt"])

    trainer = phase_trainer(tmp_path, max_steps=1)
    trainer.fit(Own(policy), DataLoader(demonstrations(4), batch_size=2))
    assert trainer.global_step == 1


def refusals(folder, policy):
    """Return what two processes are told whose rows or models differ, and what all is well with."""
    rank = int(os.environ["RANK"])
    rows = demonstrations(8)
    data = {
        "same rows": SFTDataModule(policy, train=rows, batch_size=2),
        "other rows": SFTDataModule(policy, train=rows[rank : rank + 4], batch_size=2),
        "same order": SFTDataModule(policy, train=rows, validation=rows[:2], batch_size=2),
        "other order": SFTDataModule(
            policy, train=rows, validation=rows[:: 1 - 2 * rank], batch_size=2
        ),
    }
    cases = {name: (SFTModule(policy), own) for name, own in data.items()}
    tokenizer = tiny_tokenizer()
    for name, seed in (("same models", 0), ("other models", rank)):
        own = SFTDataModule(tokenizer, train=rows, batch_size=2)
        cases[name] = SFTModule(tiny_model(seed=seed)), own
    told = {}
    for name, (module, own) in cases.items():
        trainer = phase_trainer(folder / name, max_steps=1, strategy="ddp", devices=2)
        try:
            trainer.fit(module, own)
            told[name] = trainer.global_step
        except ConfigError as error:
            told[name] = str(error)
    return told


def test_rows_and_models_that_differ_between_processes_are_refused(tmp_path, policy):
    answers = run_in_two_processes(refusals, tmp_path, policy, init_process_group=False)
    assert answers[0] == answers[1]
    told = answers[0]
    assert [told[name] for name in told if name.startswith("same")] == [1, 1, 1]
    assert told["other rows"].startswith("data.train: the processes have different rows")
    assert told["other order"].startswith("data.validation: the processes have different rows")
    assert told["other models"].startswith("model.policy: the processes were given models with")
