"""`--ckpt_path last` finds the run's state with every logger."""

import pytest
import wandb
from lightning.pytorch.callbacks import Timer

from lit_rlhf.errors import CheckpointError, TrainingError

VERSIONS = ["--trainer.logger.version=null"]  # a new folder for each part
LOGGERS = {
    "none": ["--trainer.logger=false"],
    "lightning's": [
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        "--trainer.logger.version=null",
    ],
    "wandb": ["--trainer.logger=WandbAutoLogger", "--trainer.logger.version=null"],
    "ours": ["--trainer.logger=ResumableCSVLogger", "--trainer.logger.name=sft"],
}
# Of the first part, which has nothing to go on from.
pytestmark = pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no")


@pytest.mark.parametrize("logger", LOGGERS)
def test_the_same_command_goes_on(workplace, tmp_path, monkeypatch, logger):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = [f"--trainer.default_root_dir={tmp_path}", *LOGGERS[logger], "--ckpt_path=last"]
    if logger != "none":
        options.append(f"--trainer.logger.save_dir={tmp_path}")
    steps, folders = [], []
    for epochs in (1, 2, 3):
        words = [*options, f"--trainer.max_epochs={epochs}"]
        cli = workplace.fit("sft", options=words)
        wandb.finish()  # as the end of a process would
        steps.append(cli.trainer.global_step)
        folders.append({path.parent for path in tmp_path.rglob("last.ckpt")})
    assert steps == [2, 4, 6]  # one epoch more each time, and not from the beginning
    assert folders[0] == folders[1] == folders[2]
    assert len(list(tmp_path.rglob("model/config.json"))) == 1


def test_a_torn_checkpoint_is_one_error(workplace):
    """Lightning's command line would read it before we have looked whether it is whole."""
    (workplace.folder / "torn.ckpt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"torn\.ckpt: torn"):
        workplace.fit("sft", options=["--ckpt_path=torn.ckpt"])


def test_a_run_without_a_step_is_an_error(workplace):
    with pytest.raises(TrainingError, match=r"without an optimizer step: .*trainer\.max_time"):
        workplace.fit("sft", options=["--trainer.max_time=00:00:00:00"])


def test_a_timer_may_be_named_in_a_file(workplace):
    file = workplace.folder / "timer.yaml"
    timer = "{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: {hours: 1}}}"
    file.write_text(f"trainer: {{callbacks+: [{timer}]}}")
    cli = workplace.fit("sft", options=[f"--config={file}"])
    assert any(isinstance(callback, Timer) for callback in cli.trainer.callbacks)
    assert cli.trainer.global_step == 2
