import logging

import pytest
import wandb

from lit_rlhf.callbacks import SampleTableCallback, WandbAutoLogger
from lit_rlhf.callbacks.wandb_logger import run_mode
from tests.support import wandb_files
from tests.support.reporting import ReportingModule, quiet_trainer


@pytest.fixture(autouse=True)
def forget_settings():
    """Let wandb read the environment of each test anew."""
    wandb.teardown()
    yield
    wandb.teardown()


def test_an_offline_run_holds_the_metrics_and_the_sample_table(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        logger = WandbAutoLogger(save_dir=str(tmp_path), project="tests")
    assert caplog.text.count("Weights & Biases: offline") == 1
    callback = SampleTableCallback(num_samples=2)
    fit = quiet_trainer(tmp_path, logger=logger, callbacks=[callback], max_epochs=2)
    fit.fit(ReportingModule())
    wandb.finish()

    rows = wandb_files.history(tmp_path)
    losses = {row["trainer/global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    # weight <- weight * (1 - 0.2 x^2) from 1, for x = 1 and 2, twice
    weights = [1.0, 0.8, 0.16, 0.128]
    expected = [(weight * x) ** 2 for weight, x in zip(weights, [1, 2, 1, 2], strict=True)]
    assert list(losses.values()) == pytest.approx(expected, rel=1e-6)
    tables = [row for row in rows if "val/samples/_type" in row]
    assert [row["trainer/global_step"] for row in tables] == [1, 3]
    assert wandb_files.table(tmp_path, "val/samples") == [
        {"step": 4, "prompt": f"prompt {n}", "response": "bien sûr\n", "score": n / 2}
        for n in (0, 1)
    ]


def test_records_that_cross_blocks_are_read_back(tmp_path):
    logger = WandbAutoLogger(save_dir=str(tmp_path))
    long = "x" * 50_000  # more than a block of the file
    for step in range(3):
        logger.log_metrics({"number": step, "text": long}, step=step)
    wandb.finish()
    rows = wandb_files.history(tmp_path)
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert all(row["text"] == long for row in rows)


def test_offline_without_a_key():
    assert run_mode() == "offline"


def test_online_with_a_key_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert run_mode() == "online"


def test_online_with_a_key_in_netrc(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert run_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://other.example")
    assert run_mode() == "offline"


def test_online_with_a_key_in_the_settings(monkeypatch, tmp_path):
    (tmp_path / "settings").write_text(f"[default]\napi_key = {'k' * 40}\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    assert run_mode() == "online"


def test_the_mode_decides_when_it_is_set(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    assert run_mode() == "online"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    for mode, expected in [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")]:
        monkeypatch.setenv("WANDB_MODE", mode)
        assert run_mode() == expected
