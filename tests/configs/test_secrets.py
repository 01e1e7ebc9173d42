"""No key and no password is in any file that a run writes, nor in what it prints or logs."""

import sys

import pytest

from tests.configs.conftest import CONFIGS

pytestmark = [
    pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]
PLANTED = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "DATABASE_PASSWORD": "planted-password-1",
    "AWS_SECRET_ACCESS_KEY_TOKEN": "planted/aws+secret",
}
URL_PASSWORD = "planted-password-2"
URL = f"postgresql://ann:{URL_PASSWORD}@db.example/ratings"
# An option that a fit neither reads nor refuses: it only ends in the saved configuration.
OPTION = f"--data.test={URL}"


def files_with(folder, secrets):
    """Return which files below `folder` hold a secret; checkpoints are archives, not packed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            found += [(path.name, secret) for secret in secrets if secret.encode() in content]
    return found


@pytest.mark.parametrize("phase", ["sft", "ppo"])
def test_planted_secrets_are_nowhere(workplace, monkeypatch, capfd, caplog, phase):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    # wandb writes the command line down that started the process.
    monkeypatch.setattr(sys, "argv", ["lit-rlhf", phase, "fit", OPTION])
    cli = workplace.fit(phase, "logger/wandb.yaml", options=[OPTION])
    import wandb  # noqa: PLC0415 - once the environment is set

    wandb.finish()
    assert cli.trainer.global_step > 0
    secrets = [*PLANTED.values(), URL_PASSWORD]
    assert files_with(workplace.folder, secrets) == []
    printed = capfd.readouterr()
    for text in (printed.out, printed.err, caplog.text):
        assert [secret for secret in secrets if secret in text] == []


def test_the_saved_configuration_says_where_a_password_stood(workplace):
    workplace.fit("sft", options=[OPTION])
    saved = (workplace.folder / "runs/sft/config.yaml").read_text()
    assert "postgresql://ann:***@db.example/ratings" in saved


def test_an_error_does_not_repeat_a_password(workplace, capsys):
    words = ["sft", "fit", f"--config={CONFIGS / 'sft.yaml'}", f"--data.train={URL}/x/y"]
    assert workplace.command(*words, "--trainer.precision=32-true") == 1
    printed = capsys.readouterr()
    assert "db.example" in printed.err
    assert URL_PASSWORD not in printed.err + printed.out
