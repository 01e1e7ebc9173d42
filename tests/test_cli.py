"""The command line around the phases; what the phases say stands in tests/configs."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_rlhf.cli import PHASES, main
from lit_rlhf.errors import CheckpointError
from lit_rlhf.models import PolicyModel, load_causal_lm
from tests.models.examples import save_policy, write_policy_checkpoint

HELP_PROGRAM = """
import sys, time
from lit_rlhf.cli import main
assert main(["--help"]) == 0
heavy = {"torch", "lightning", "transformers", "numpy"} & sys.modules.keys()
assert not heavy, heavy
assert time.process_time() < 1.0, time.process_time()
"""


def test_help_is_quick_and_imports_nothing_heavy():
    run = subprocess.run(
        [sys.executable, "-c", HELP_PROGRAM], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for name in (*PHASES, "demo", "evaluate", "chat", "lineage", "export"):
        assert f"\n  {name} " in run.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_shown_when_nothing_is_asked(capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: lit-rlhf")


def test_an_unknown_phase_is_named_beside_those_that_there_are(capsys):
    assert main(["pppo", "fit"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for name in ("'pppo'", *PHASES, "demo", "export"):
        assert name in printed.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return the checkpoint of a random policy."""
    folder = tmp_path_factory.mktemp("policy")
    base = save_policy(folder / "base")
    policy = PolicyModel(load_causal_lm(str(base)))
    return write_policy_checkpoint(folder / "policy.ckpt", policy, base)


def test_export_writes_a_folder_and_says_which(capsys, tmp_path, checkpoint):
    folder = tmp_path / "exported"
    assert main(["export", str(checkpoint), str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        ours = load_causal_lm(str(checkpoint))(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(theirs, ours)


def test_export_does_not_write_over_a_folder(capsys, tmp_path, checkpoint):
    assert main(["export", str(checkpoint), str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"lit-rlhf: error: {tmp_path} exists")
    assert error.count("\n") == 1


def test_export_names_a_checkpoint_that_is_not_there(capsys, tmp_path):
    assert main(["export", str(tmp_path / "no.ckpt"), str(tmp_path / "folder")]) == 1
    error = capsys.readouterr().err
    assert "no.ckpt" in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_traceback_is_there_for_who_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("LIT_RLHF_TRACEBACK", "1")
    with pytest.raises(CheckpointError):
        main(["export", str(tmp_path / "no.ckpt"), str(tmp_path / "folder")])
