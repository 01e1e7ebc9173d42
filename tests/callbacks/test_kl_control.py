import csv
import math
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lit_rlhf.callbacks import KLControl
from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.kl_control import AdaptiveKL, FixedKL, KLController
from tests.support.reporting import quiet_trainer

CONTROLLER = AdaptiveKL(initial=0.1, target=6.0, horizon=1000.0)
NUM_EPISODES = 50


class Penalised(pl.LightningModule):
    """Takes its KLs from a list and remembers the coefficient that each batch saw."""

    def __init__(self, kls):
        super().__init__()
        self.kls = kls
        self.layer = torch.nn.Linear(1, 1)
        self.kl_penalty, self.kl_coef = True, 0.0
        self.seen = []
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.seen.append(self.kl_coef)
        self.optimizers().step()  # global_step, and with it the logger, moves on
        return {"kl": torch.tensor(self.kls[batch_idx]), "num_episodes": NUM_EPISODES}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(range(len(self.kls)))


class Silent(Penalised):
    def training_step(self, batch, batch_idx):
        return None


def trainer(tmp_path, callback, **changes):
    return quiet_trainer(tmp_path, callbacks=[callback], **changes)


def test_the_coefficient_rises_above_the_target_and_falls_below(tmp_path):
    module = Penalised([60.0, 60.0, 0.0, 6.6])
    trainer(tmp_path, KLControl(controller=CONTROLLER)).fit(module)
    up = 1 + 0.2 * NUM_EPISODES / 1000
    down = 1 - 0.2 * NUM_EPISODES / 1000
    assert module.seen == pytest.approx([0.1, 0.1 * up, 0.1 * up**2, 0.1 * up**2 * down])
    assert module.kl_coef == pytest.approx(0.1 * up**2 * down * (1 + 0.1 * NUM_EPISODES / 1000))


def test_a_kl_that_is_no_number_leaves_the_coefficient(tmp_path):
    module = Penalised([math.nan, 60.0, math.inf])
    trainer(tmp_path, callback := KLControl(controller=CONTROLLER)).fit(module)
    up = 1 + 0.2 * NUM_EPISODES / 1000
    assert module.seen == pytest.approx([0.1, 0.1, 0.1 * up])
    assert module.kl_coef == pytest.approx(0.1 * up)
    assert callback.state.num_updates == 1


def test_the_defaults_are_those_of_ziegler_et_al():
    assert KLControl().controller == AdaptiveKL(initial=0.15, target=6.0, horizon=10000.0)


def test_without_a_target_the_coefficient_stays(tmp_path):
    module = Penalised([60.0, 0.0])
    trainer(tmp_path, KLControl(target=None, coefficient=0.3)).fit(module)
    assert [*module.seen, module.kl_coef] == [0.3, 0.3, 0.3]
    assert KLControl(controller=FixedKL(0.3)).controller == KLControl(None, 0.3).controller


def test_a_module_without_a_penalty_is_left_alone(tmp_path):
    module = Silent([60.0, 60.0])
    module.kl_penalty = False
    trainer(tmp_path, callback := KLControl()).fit(module)
    assert callback.state.num_updates == 0


def test_the_logged_coefficient_is_the_one_that_the_batch_saw(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    module = Penalised([60.0, 60.0, 60.0])
    fit = trainer(tmp_path, KLControl(controller=CONTROLLER), logger=logger)
    fit.fit(module)
    with open(logger.experiment.metrics_file_path) as file:
        logged = [float(row["train/ppo/kl_coef"]) for row in csv.DictReader(file)]
    assert logged == pytest.approx(module.seen)


def test_a_resumed_run_continues_with_the_coefficient(tmp_path):
    kls = [60.0, 60.0, 0.0, 60.0]
    whole = Penalised(kls)
    trainer(tmp_path, KLControl(controller=CONTROLLER), max_epochs=2).fit(whole)

    first = trainer(tmp_path, KLControl(controller=CONTROLLER), max_epochs=1)
    first.fit(Penalised(kls))
    first.save_checkpoint(tmp_path / "middle.ckpt")
    callback, resumed = KLControl(controller=CONTROLLER), Penalised(kls)
    trainer(tmp_path, callback, max_epochs=2).fit(resumed, ckpt_path=tmp_path / "middle.ckpt")

    assert resumed.seen == whole.seen[len(kls) :]
    assert resumed.kl_coef == whole.kl_coef
    assert callback.state.num_updates == 2 * len(kls)


class Sums(NamedTuple):
    coefficient: float
    num_updates: int
    total: float


class Integral(KLController):
    """Remembers the sum of all KLs."""

    def initial_state(self):
        return Sums(0.1, 0, 0.0)

    def update(self, state, kl, num_episodes):
        return Sums(0.1 + state.total / 1000, state.num_updates + 1, state.total + kl)


def test_a_controllers_own_state_goes_on(tmp_path):
    callback = KLControl(controller=Integral())
    first = trainer(tmp_path, callback, max_epochs=1)
    first.fit(Penalised([60.0, 6.0]))
    assert callback.state == Sums(0.16, 2, 66.0)
    first.save_checkpoint(tmp_path / "middle.ckpt")
    resumed = KLControl(controller=Integral())
    trainer(tmp_path, resumed, max_epochs=2).fit(
        Penalised([0.0, 0.0]), ckpt_path=tmp_path / "middle.ckpt"
    )
    assert resumed.state == pytest.approx(Sums(0.166, 4, 66.0))


def test_a_module_without_the_coefficient_is_refused(tmp_path):
    module = Penalised([1.0])
    del module.kl_coef
    with pytest.raises(ConfigError, match="Penalised has none"):
        trainer(tmp_path, KLControl()).fit(module)


def test_a_step_without_kl_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"`kl` and `num_episodes`.*Silent.training_step"):
        trainer(tmp_path, KLControl()).fit(Silent([1.0]))
