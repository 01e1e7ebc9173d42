"""What a user gets wrong ends a command with one message that names it, not with a traceback.

A few through the command as it stands; the tables are in test_bad_settings and in tests/data.
"""

from importlib.util import find_spec

import pytest

from tests.configs.conftest import CONFIGS, SIZES

pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists")
SFT = ("sft", "fit", f"--config={CONFIGS / 'sft.yaml'}")
PPO = ("ppo", "fit", f"--config={CONFIGS / 'ppo.yaml'}")
CPU = ("--trainer.accelerator=cpu", "--trainer.precision=32-true")


def failing(workplace, capsys, *words):
    """Run a command that must fail; return its one message."""
    status = workplace.command(*words)
    printed = capsys.readouterr()
    assert status == 1
    assert "Traceback" not in printed.err
    assert "usage:" not in printed.out + printed.err
    messages = [line for line in printed.err.splitlines() if "error:" in line]
    assert printed.err.endswith("\n")
    assert messages == printed.err.splitlines()[-1:]
    assert messages[0].startswith("lit-rlhf: error: ")
    assert len(messages[0]) < 400
    return messages[0]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*SFT, "--model.optimizer.lerning_rate=1"), ["lerning_rate", "did you mean"]),
        (("sft",), ["fit,validate,test,predict"]),
        (("sft", "fit", "--data.train=rows.jsonl"), ["policy"]),
        (("ppo", "fit", "--model.policy=somewhere"), ["reward"]),
        ((*SFT, "--ckpt_path=nowhere.ckpt"), ["ckpt_path", "nowhere.ckpt"]),
        pytest.param(
            (*SFT, *CPU, "--trainer.strategy=deepspeed_stage_2"),
            ["trainer", "DeepSpeed", "pip install -U deepspeed"],
            marks=pytest.mark.skipif(
                find_spec("deepspeed") is not None, reason="DeepSpeed is installed"
            ),
        ),
    ],
    ids=lambda value: " ".join(value[2:])[-40:] if isinstance(value, tuple) else "",
)
def test_a_wrong_setting_is_named(empty_workplace, capsys, words, named):
    message = failing(empty_workplace, capsys, *words)
    assert [word for word in named if word not in message] == []


def test_a_wrong_file_is_told_by_its_key(empty_workplace, capsys, tmp_path):
    controller = "{class_path: lit_rlhf.objectives.AdaptiveKL, init_args: {target: 0.0}}"
    (tmp_path / "wrong.yaml").write_text(f"kl: {{controller: {controller}}}")
    message = failing(empty_workplace, capsys, *PPO, f"--config={tmp_path / 'wrong.yaml'}", *CPU)
    assert [word for word in ["kl.target is 0.0", "above 0"] if word not in message] == []


def test_a_bad_row_is_named_by_file_and_line(empty_workplace, capsys, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    message = failing(empty_workplace, capsys, *SFT, *CPU, f"--data.train={file}")
    assert [word for word in [f"{file}:2", "response"] if word not in message] == []


def test_a_policy_is_no_reward_model(workplace, capsys):
    policy = "--model.reward.init_args.model=runs/sft/model"
    fast = f"--config={CONFIGS / 'debug' / 'fast.yaml'}"
    message = failing(workplace, capsys, *PPO, fast, *SIZES["ppo"], policy)
    assert "runs/sft/model" in message


def test_a_run_that_would_replace_its_own_origin_leaves_all_as_it_was(workplace, capsys):
    saved = workplace.folder / "runs/sft/config.yaml"
    before = saved.read_text()
    own = ("--model.policy=runs/sft/model", *SIZES["sft"])
    message = failing(workplace, capsys, *SFT, *CPU, *own)
    assert "is in the folder of this run" in message
    assert saved.read_text() == before
