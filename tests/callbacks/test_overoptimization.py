import json
import logging
import math
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lit_rlhf.callbacks import KLControl, ModelFolder, OveroptimizationMonitor, WandbAutoLogger
from lit_rlhf.errors import ConfigError, DataError, TrainingError
from tests.support import wandb_files
from tests.support.reporting import quiet_trainer
from tests.support.two_processes import run_in_two_processes

NUM_PROMPTS = 61  # uneven over batches and processes
PEAK, NUM_LOOKS = 3, 9

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # A resumed run need not save anything.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def truth(step, healthy=False):
    """The mean validation reward: rises to the peak, then falls if it is not healthy."""
    return step / PEAK if step <= PEAK else 1 if healthy else 1 - 0.5 * (step - PEAK)


class Watched(pl.LightningModule):
    """Its weight counts the steps; its validation rewards follow `truth`, prompt by prompt."""

    def __init__(self, num_prompts=NUM_PROMPTS, *, healthy=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.num_prompts = num_prompts
        self.healthy = healthy
        self.phase, self.computes_kl, self.abstaining_values = "ppo", True, ["validation"]
        self.kl_penalty, self.kl_coef = True, 1.0
        self.judges = {"validation": None, "other": None}
        self.validation_values = []
        self.coefficients = []

    def training_step(self, batch, batch_idx):
        self.coefficients.append(self.kl_coef)
        return {"loss": -self.weight.sum(), "kl": 3.0, "num_episodes": 50}

    def on_validation_epoch_start(self):
        self.validation_values = []

    def validation_step(self, batch, batch_idx):
        step = int(self.weight.detach().round())
        noise = [np.random.default_rng([step, max(0, int(i))]).standard_normal(3) for i in batch]
        noise = torch.tensor(np.array(noise), dtype=torch.float32)
        values = {
            "reward": 0.8 * step + 0.5 * noise[:, 0],
            "validation": truth(step, self.healthy) + 0.5 * noise[:, 1],
            "other": noise[:, 2],
            "kl": torch.full((len(batch),), step**2 / 4),
        }
        self.validation_values.append({"prompt_id": batch, **values})

    def on_validation_epoch_end(self):
        step = int(self.weight.detach().round())
        self.log("val/ppo/validation", truth(step, self.healthy))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader([0.0])

    def val_dataloader(self):
        rank, size = self.trainer.global_rank, self.trainer.world_size
        ids = torch.arange(math.ceil(self.num_prompts / size) * size)
        ids[ids >= self.num_prompts] = -1
        return DataLoader(ids[rank::size], batch_size=32)


class Keeping(Watched):
    """Keeps its weight in folders, as a phase does."""

    source, lora, best_metric, origins = "", None, "val/ppo/validation", {}

    def save_pretrained(self, folder, *, merge=False, facts=None):
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "weight").write_text(str(self.weight.item()))

    def load_saved(self, folder):
        self.weight.data.fill_(float((Path(folder) / "weight").read_text()))


def watch(folder, monitor=None, module=None, *, callbacks=(), ckpt_path=None, **changes):
    """Fit with a monitor; return it and the module."""
    monitor = monitor or OveroptimizationMonitor()
    module = module or Watched()
    options = {"max_epochs": NUM_LOOKS - 1, "num_sanity_val_steps": -1}
    trainer = quiet_trainer(
        folder,
        callbacks=[monitor, *callbacks],
        use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
        **options | changes,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return monitor, module


def test_a_fall_of_the_validation_reward_is_told_with_its_reason(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        monitor, module = watch(tmp_path)
    assert [look.step for look in monitor.history.looks] == list(range(NUM_LOOKS))
    first = monitor.alarms[0]
    assert PEAK < first.step <= PEAK + 4
    assert first.reference_step in {PEAK - 1, PEAK}
    assert module.weight.item() == NUM_LOOKS - 1  # a warning, nothing more
    rows = {row.name: row for row in first.rows}
    assert list(rows)[:2] == ["validation", "reward"]
    values = monitor.history.values("other")[: first.step + 1]
    w, at = first.window, first.reference_step
    change = values[-w:].mean(0) - values[at - w + 1 : at + 1].mean(0)
    half = 1.96 * change.std(ddof=1) / math.sqrt(NUM_PROMPTS)
    interval = (change.mean() - half, change.mean() + half)
    assert (rows["other"].low, rows["other"].high) == pytest.approx(interval)
    assert rows["kl"].now > rows["kl"].before
    (message,) = [one.message for one in caplog.records if f"step {first.step}:" in one.message]
    assert "`validation` fell while the optimised reward `reward` rose" in message
    assert "at most 5% of runs without divergence" in message
    assert "| other" in message

    folder = tmp_path / "overoptimization"
    assert message.strip() in (folder / "report.md").read_text()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (folder / "values.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(NUM_LOOKS))
    assert lines[2]["prompt_ids"] == list(range(NUM_PROMPTS))
    assert lines[2]["validation"] == pytest.approx(
        monitor.history.values("validation")[2], abs=1e-6
    )


def test_a_healthy_run_is_left_alone(tmp_path):
    actions = {"action": "stop"}
    monitor, module = watch(tmp_path, OveroptimizationMonitor(**actions), Watched(healthy=True))
    assert monitor.alarms == []
    assert module.weight.item() == NUM_LOOKS - 1
    assert "No alarm." in (tmp_path / "overoptimization" / "report.md").read_text()


def test_stop_ends_the_run_at_the_alarm(tmp_path):
    monitor, module = watch(tmp_path, OveroptimizationMonitor(action="stop"))
    (alarm,) = monitor.alarms
    assert module.weight.item() == alarm.step < NUM_LOOKS - 1


def test_roll_back_ends_it_with_the_best_weights(tmp_path):
    best, module = ModelFolder(), Keeping()
    action = OveroptimizationMonitor(action="roll_back")
    monitor, _ = watch(tmp_path, action, module, callbacks=[best])
    assert len(monitor.alarms) == 1
    assert module.weight.item() == PEAK
    assert float((tmp_path / "model" / "weight").read_text()) == PEAK


def test_merged_adapters_cannot_be_rolled_back(tmp_path):
    module = Keeping()
    module.lora = object()
    action = OveroptimizationMonitor(action="roll_back")
    with pytest.raises(ConfigError, match="cannot take merged adapters apart"):
        watch(tmp_path, action, module, callbacks=[ModelFolder(merge=True)])


def test_tighten_lowers_the_target_of_the_controller(tmp_path):
    control = KLControl(target=4.0, coefficient=1.0, horizon=100.0)
    monitor = OveroptimizationMonitor(action="tighten", tighten_factor=0.5)
    _, module = watch(tmp_path, monitor, callbacks=[control], max_epochs=6)
    step = monitor.alarms[0].step
    # The KL of 3 is below a target of 4, and above one of 2.
    before = np.diff(module.coefficients[: step + 1])
    assert (before < 0).all()
    assert module.coefficients[step + 1] > module.coefficients[step]
    resumed = KLControl(target=4.0, coefficient=1.0, horizon=100.0)
    resumed.load_state_dict(control.state_dict())
    assert resumed.state_dict() == control.state_dict()
    assert resumed.state_dict()["target_factor"] <= 0.5


def test_a_resumed_run_decides_as_one_that_was_not_killed(tmp_path):
    whole, _ = watch(tmp_path / "whole", OveroptimizationMonitor(action="stop"))
    alarm = whole.alarms[0].step
    for killed_after in (1, PEAK, alarm - 1):
        folder = tmp_path / str(killed_after)
        first = OveroptimizationMonitor(action="stop")
        save = ModelCheckpoint(folder, "last", save_on_train_epoch_end=False)
        watch(folder, first, callbacks=[save], max_epochs=killed_after)
        resumed = OveroptimizationMonitor(action="stop")
        watch(folder, resumed, ckpt_path=folder / "last.ckpt")
        # As texts, in which every digit stands: a NaN, where nothing was tested, equals none.
        assert str(resumed.state_dict()) == str(whole.state_dict())
        for name in ("report.md", "values.jsonl"):
            written = (folder / "overoptimization" / name).read_bytes()
            assert written == (tmp_path / "whole" / "overoptimization" / name).read_bytes()


@pytest.mark.parametrize("action", ["stop", "roll_back"])
def test_a_run_that_an_alarm_ended_does_not_go_on_when_it_is_resumed(tmp_path, caplog, action):
    def again(action, **options):
        callbacks = [
            ModelFolder(),
            ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=False),
        ]
        monitor, module = OveroptimizationMonitor(action=action), Keeping()
        return watch(tmp_path, monitor, module, callbacks=callbacks, **options)

    ended, module = again(action)
    trainer = module.trainer
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    resumed, same = again(action, ckpt_path=tmp_path / "end.ckpt")
    assert same.weight.item() == module.weight.item()
    assert same.trainer.global_step == trainer.global_step
    assert resumed.state_dict()["alarms"] == ended.state_dict()["alarms"]
    assert [look.step for look in resumed.history.looks] == [
        look.step for look in ended.history.looks
    ]
    assert f"alarm at step {ended.alarms[0].step} has ended this run" in caplog.text
    _, on = again("warn", ckpt_path=tmp_path / "end.ckpt")  # asked for
    assert on.trainer.global_step > trainer.global_step


def state_in_ddp(folder):
    monitor = OveroptimizationMonitor(action="stop")
    _, module = watch(folder, monitor, strategy="ddp", devices=2)
    return str(monitor.state_dict()), module.weight.item()


def test_two_processes_decide_as_one(tmp_path):
    monitor, module = watch(tmp_path, OveroptimizationMonitor(action="stop"))
    expected = (str(monitor.state_dict()), module.weight.item())
    assert run_in_two_processes(state_in_ddp, tmp_path, init_process_group=False) == [expected] * 2


def test_weights_and_biases_get_picture_and_table(tmp_path):
    wandb.teardown()
    try:
        logger = WandbAutoLogger(save_dir=str(tmp_path), project="tests")
        monitor, _ = watch(tmp_path, OveroptimizationMonitor(action="stop"), logger=logger)
        wandb.finish()
        rows = wandb_files.table(tmp_path, "val/alarm")
        assert [row["quantity"] for row in rows] == [row.name for row in monitor.alarms[0].rows]
        history = wandb_files.history(tmp_path)
        assert any("val/overoptimization/_type" in row for row in history)
        p_values = [row for row in history if "val/ppo/overoptimization_p" in row]
        assert len(p_values) == monitor.alarms[0].step
        assert list(tmp_path.rglob("media/images/**/*.png"))
    finally:
        wandb.teardown()


def test_validation_alone_is_no_look(tmp_path):
    monitor, module = OveroptimizationMonitor(), Watched()
    quiet_trainer(tmp_path, callbacks=[monitor]).validate(module, verbose=False)
    assert monitor.history.looks == []
    _, module = watch(
        tmp_path, monitor, num_sanity_val_steps=1, max_epochs=2
    )  # only a part of the prompts
    assert [look.step for look in monitor.history.looks] == [1, 2]


def test_too_few_prompts_for_any_alarm_are_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        watch(tmp_path, module=Watched(5), max_epochs=1)
    assert "5 validation prompts are too few for an alarm" in caplog.text


def test_other_prompts_after_a_resume_are_refused(tmp_path):
    save = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=False)
    watch(tmp_path, callbacks=[save], max_epochs=2)
    with pytest.raises(DataError, match=r"60 prompts with .* before had 61"):
        watch(tmp_path, module=Watched(60), ckpt_path=tmp_path / "last.ckpt")


class Silent(Watched):
    """Its judge has no score for another fifth of the prompts at each validation."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        step = int(self.weight.detach().round())
        self.validation_values[-1]["validation"][(batch + step) % 5 == 0] = math.nan


def test_responses_that_a_judge_cannot_score_are_left_out(tmp_path):
    monitor, module = watch(tmp_path, module=Silent())
    assert module.weight.item() == NUM_LOOKS - 1
    first = monitor.alarms[0]
    assert PEAK < first.step <= PEAK + 4
    values = monitor.history.values("validation")[: first.step + 1]
    w, at = first.window, first.reference_step
    change = values[-w:].mean(0) - values[at - w + 1 : at + 1].mean(0)
    change = change[~np.isnan(change)]
    assert 0 < len(change) < NUM_PROMPTS
    half = 1.96 * change.std(ddof=1) / math.sqrt(len(change))
    (row, *_) = first.rows
    assert (row.low, row.high) == pytest.approx((change.mean() - half, change.mean() + half))
    lines = (tmp_path / "overoptimization" / "values.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["validation"][0] is None
    silent = Silent()
    silent.abstaining_values = []  # there a NaN says that something is broken
    with pytest.raises(TrainingError, match="`validation` is not finite for 13 of 61 prompts"):
        watch(tmp_path, module=silent)


def test_a_reward_that_is_no_number_is_refused(tmp_path):
    module = Watched()
    module.healthy = True
    module.validation_step = lambda batch, batch_idx: module.validation_values.append(
        {"prompt_id": batch, "reward": batch / 0, "validation": batch, "kl": batch}
    )
    with pytest.raises(TrainingError, match="`reward` is not finite for 61 of 61 prompts"):
        watch(tmp_path, module=module)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            {"validation": "gold"},
            {},
            "'gold' is not in model.judges, which has validation",
        ),
        (
            {"action": "stop"},
            {"judges": {"gold": None}},
            "'validation' is not in .* has gold",
        ),
        ({"validation": "other"}, {"computes_kl": False}, "model.kl_penalty null"),
        ({"action": "roll_back"}, {}, "does not keep by this metric"),
        ({"action": "tighten"}, {}, "the Trainer has none; add one"),
    ],
)
def test_what_cannot_be_watched_is_refused(tmp_path, settings, change, message):
    module = Watched()
    for name, value in change.items():
        setattr(module, name, value)
    with pytest.raises(ConfigError, match=message):
        watch(tmp_path, OveroptimizationMonitor(**settings), module)


@pytest.mark.parametrize("change", [{"judges": {"gold": None}}, {"computes_kl": False}])
def test_a_run_without_the_default_judge_or_kl_is_not_watched_and_says_so(tmp_path, caplog, change):
    module = Watched()
    for name, value in change.items():
        setattr(module, name, value)
    with caplog.at_level(logging.INFO):
        monitor, _ = watch(tmp_path, module=module, max_epochs=2)
    told = [one.message for one in caplog.records if "is not watched" in one.message]
    assert len(told) == 1
    assert "--monitor.validation" in told[0]
    assert monitor.history.looks == []
    assert not (tmp_path / "overoptimization").exists()


def test_off_watches_nothing(tmp_path):
    monitor, _ = watch(tmp_path, OveroptimizationMonitor(action="off"), max_epochs=2)
    assert monitor.history.looks == []


def test_a_fixed_coefficient_has_no_target_to_tighten(tmp_path):
    with pytest.raises(ConfigError, match="FixedKL has no KL target"):
        watch(
            tmp_path,
            OveroptimizationMonitor(action="tighten"),
            callbacks=[KLControl(target=None)],
        )
