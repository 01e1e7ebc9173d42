"""A PPO run of 2,000 iterations: memory, open files and the time of an iteration stay as they are.

`make proofs` runs it; alone: `python -m pytest -m slow tests/proofs/test_soak.py`. What it measured
is left in `runs/proofs`, from which docs/robustness.md is written.
"""

import os
import statistics
import time
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.callbacks import KLControl, SampleTableCallback, SelfChecks
from lit_rlhf.data import PPODataModule
from lit_rlhf.modules import OptimizerConfig, PPOModule, UpdateConfig
from lit_rlhf.rewards import FunctionReward
from lit_rlhf.rollout import Sampling
from tests.models.examples import save_policy
from tests.proofs.table import Claim, write_claims
from tests.support.phases import phase_trainer, prompts, write_rows

NUM_ITERATIONS = 2_000
FIRST = 200  # from here on nothing may grow
WINDOW = 200  # iterations whose median time is compared
MOST_GROWTH = 0.05
# Another process on the machine moves the median of a window; a leak of time grows without end.
MOST_SLOWDOWN = 1.25


class Watch(Callback):
    """Looks at the process after every iteration."""

    def __init__(self):
        self.resident, self.open_files, self.seconds = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.begin = time.perf_counter()

    def on_train_batch_end(self, *_):
        self.seconds.append(time.perf_counter() - self.begin)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
        self.open_files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.filterwarnings("ignore:self-check")  # a random policy may never end by itself
def test_2000_iterations_leave_no_trace(tmp_path):
    policy = str(save_policy(tmp_path / "policy", num_hidden_layers=1, eos_token_id=[2, 3, 4]))
    rows = write_rows(tmp_path / "prompts.jsonl", prompts(100))
    held_out = write_rows(tmp_path / "held_out.jsonl", prompts(4))
    watch = Watch()
    trainer = phase_trainer(
        tmp_path,
        max_epochs=NUM_ITERATIONS // 50,
        check_val_every_n_epoch=8,
        enable_checkpointing=True,
        logger=CSVLogger(tmp_path, name="soak", version=""),
        callbacks=[
            watch,
            SelfChecks(),
            SampleTableCallback(),
            KLControl(horizon=1000.0),
            ModelCheckpoint(tmp_path / "saved", every_n_epochs=8, save_on_train_epoch_end=True),
        ],
    )
    module = PPOModule(
        policy,
        FunctionReward("tests.support.toy_rewards.length"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        update=UpdateConfig(num_epochs=1),
        sampling=Sampling(max_new_tokens=4),
    )
    data = PPODataModule(policy, train=rows, validation=held_out, batch_size=2)
    trainer.fit(module, data)

    assert len(watch.seconds) == NUM_ITERATIONS
    assert module.guard.num_skipped == 0
    early, late = watch.resident[FIRST - 1], watch.resident[-1]
    growth = late / early - 1
    files = watch.open_files[FIRST - 1 :]
    first = statistics.median(watch.seconds[FIRST : FIRST + WINDOW])
    last = statistics.median(watch.seconds[-WINDOW:])
    note = (
        f"{NUM_ITERATIONS} iterations of PPO; iteration {FIRST} to the last: resident memory "
        f"{early / 2**20:.0f} to {late / 2**20:.0f} MiB ({growth:+.1%}), open files {files[0]} to "
        f"{files[-1]}, median time {first * 1e3:.0f} to {last * 1e3:.0f} ms"
    )
    checks = [growth <= MOST_GROWTH, files[-1] <= files[0], last <= MOST_SLOWDOWN * first]
    claim = "2,000 iterations leave memory, open files and the time of a step as they were"
    write_claims("soak", [Claim(claim, len(checks), sum(checks), None, note)])
    assert checks == [True] * 3, note
