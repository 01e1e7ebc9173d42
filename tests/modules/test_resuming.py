import logging

import pytest

from lit_rlhf.errors import CheckpointError
from lit_rlhf.modules.resuming import changed_inputs, changed_settings
from tests.support.phase_runs import build, write_inputs
from tests.support.phases import demonstrations, phase_trainer, write_rows


def test_each_changed_setting_says_which_value_counts():
    saved = {"model": {"optimizer": {"learning_rate": 1e-3, "schedule": "linear"}, "seed": 1}}
    own = {"model": {"optimizer": {"learning_rate": 1e-4, "schedule": "cosine"}, "seed": 1}}
    saved["trainer"], own["trainer"] = {"logger": "a", "max_epochs": 1}, {"logger": "b"}
    assert changed_settings(saved, own) == [
        "model.optimizer.learning_rate was 0.001, is 0.0001: the checkpoint's counts",
        "model.optimizer.schedule was linear, is cosine: the new one counts",
        "trainer.max_epochs was 1, is None: the new one counts",
    ]
    assert changed_settings(saved, saved) == []


def test_inputs_are_told_by_their_digest_where_both_are_known():
    saved = {"data.train": "a", "model policy": "b", "model reward": None}
    own = {"data.train": "c", "model policy": "b", "model reward": "d"}
    (line,) = changed_inputs(saved, own)
    assert line.startswith("data.train has other contents")


@pytest.fixture
def inputs(tmp_path):
    write_inputs(tmp_path)
    return tmp_path


def run(inputs, case, *, save=False, settings=None, **changes):
    module, data = build(case, inputs, **changes)
    module.run_config = settings
    trainer = phase_trainer(
        inputs, limit_train_batches=1, limit_val_batches=0, max_epochs=1 + (not save)
    )
    trainer.fit(module, data, ckpt_path=None if save else inputs / "last.ckpt")
    if save:
        trainer.save_checkpoint(inputs / "last.ckpt")
    return module


def test_a_resumed_run_tells_what_is_new_and_the_learning_rate_is_the_checkpoints(inputs, caplog):
    settings = {"model": {"optimizer": {"learning_rate": 1e-2}}}
    run(inputs, "sft", save=True, settings=settings)
    with caplog.at_level(logging.WARNING):
        run(inputs, "sft", settings=settings)
    assert "resumed:" not in caplog.text
    write_rows(inputs / "sft.jsonl", demonstrations(8)[1:])  # as many rows, others
    with caplog.at_level(logging.WARNING):
        module = run(inputs, "sft", settings={"model": {"optimizer": {"learning_rate": 1e-5}}})
    assert module.run_config == settings  # so that a third part is told of no 1e-05
    assert "resumed: data.train has other contents" in caplog.text
    assert "learning_rate was 0.01, is 1e-05: the checkpoint's counts" in caplog.text


def test_another_estimator_than_the_checkpoints_is_one_error(inputs):
    run(inputs, "ppo", save=True)
    with pytest.raises(CheckpointError, match=r"weights that this run does not train.*value_head"):
        run(inputs, "ppo-rloo")
