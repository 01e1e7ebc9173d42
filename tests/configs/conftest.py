"""A folder in which the shipped YAML files run as they stand: all their paths lead to tiny things.

Home is the folder, too, so that `~/.cache/lit_rlhf` has the model and the data; `runs/` fills as
phases run. Only sizes are changed. These tests run in a call of their own (see the Makefile): the
config parser does not see through jaxtyping's import hook.
"""

import contextlib
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from lit_rlhf.cli import main
from lit_rlhf.phase_cli import run_phase
from tests.support.phases import demonstrations, judged_groups, prompts, write_rows
from tests.support.tiny_models import save_tiny_policy

# Lightning 2.6 calls what jsonargparse 4.53 will change in its next major version.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = {"sft": demonstrations(), "reward": judged_groups(), "ppo": prompts()}
SIZES = {
    "sft": ["--data.batch_size=2"],
    "reward": ["--model.normalizer.num_samples=4", "--model.normalizer.max_new_tokens=4"],
    "ppo": [
        "--data.batch_size=4",
        "--data.eval_batch_size=4",
        "--model.sampling.max_new_tokens=4",
    ],
    "dpo": [],
}
SIZES["online-dpo"] = [*SIZES["ppo"], "--model.missing_eos.action=keep"]  # all are cut: no pairs
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


class Workplace:
    """Runs phases in a folder."""

    def __init__(self, folder):
        self.folder = folder
        home = folder / ".cache" / "lit_rlhf"
        save_tiny_policy(home / "SmolLM2-135M-Instruct")
        for phase, rows in ROWS.items():
            (home / "data" / phase).mkdir(parents=True)
            for split in ("train", "validation", "test"):
                write_rows(home / "data" / phase / f"{split}.jsonl", rows)

    @contextlib.contextmanager
    def entered(self):
        """Be in the folder, with it as home; afterwards all is as before."""
        with mock.patch.dict(os.environ, HOME=str(self.folder)), contextlib.chdir(self.folder):
            yield

    def fit(self, phase, *files, options=()):
        """Train two batches by the phase's own file and others behind it."""
        for name in ("ppo", "dpo", "online_dpo", "lora"):  # of earlier tests
            shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)
        files = [
            f"--config={CONFIGS / name}" for name in (f"{phase.replace('-', '_')}.yaml", *files)
        ]
        fast = f"--config={CONFIGS / 'debug' / 'fast.yaml'}"
        with self.entered():
            return run_phase(phase, ["fit", *files, fast, *SIZES[phase], *QUIET, *options])

    def command(self, *words):
        """Run a command line; return its exit status."""
        with self.entered():
            return main(list(words))


@pytest.fixture(scope="session")
def empty_workplace(tmp_path_factory):
    """Return a workplace in which nothing has run yet."""
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="session")
def first_runs(empty_workplace):
    """Return the runs that PPO and DPO start from, by phase."""
    runs = {phase: empty_workplace.fit(phase) for phase in ("sft", "reward")}
    folder = empty_workplace.folder / "runs"
    shutil.copytree(folder / "reward", folder / "judge")
    return runs


@pytest.fixture
def workplace(empty_workplace, first_runs):
    """Return a workplace with an SFT policy, a reward model and a judge."""
    return empty_workplace
