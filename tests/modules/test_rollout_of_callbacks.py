"""What a callback may read of PPO's iteration: the rollout and what the update was made with."""

import lightning.pytorch as pl
import pytest
import torch

from tests.support.phase_runs import build
from tests.support.phases import Recorder, phase_trainer


class Reader(pl.Callback):
    """Keeps what the module shows after each iteration, and before the next forward."""

    def __init__(self):
        self.seen = []
        self.during = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.during.append(pl_module.rollout)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((batch, pl_module.rollout, pl_module.targets))


@pytest.mark.parametrize(("case", "per_prompt"), [("ppo", 1), ("ppo-rloo", 2)])
def test_a_callback_reads_responses_scores_and_advantages(tmp_path, folder, case, per_prompt):
    module, data = build(case, folder)
    assert module.rollout is None
    reader, recorder = Reader(), Recorder()
    callbacks = [reader, recorder]
    options = {"limit_train_batches": 2, "limit_val_batches": 0, "max_epochs": 1}
    phase_trainer(tmp_path, callbacks=callbacks, **options).fit(module, data)
    assert len(reader.seen) == 2
    assert set(reader.during) == {None}  # the memory of the last one is free by then
    for (batch, rollout, targets), logged in zip(reader.seen, recorder.batches, strict=True):
        samples = rollout.samples
        size, width = samples.response_mask.shape
        assert size == len(batch.prompts) * per_prompt == len(samples.responses)
        assert list(samples.prompts) == [one for one in batch.prompts for _ in range(per_prompt)]
        assert rollout.scores.shape == (size,)
        assert float(rollout.scores.mean()) == pytest.approx(logged["train/ppo/reward"], abs=1e-5)
        for values in (targets.old_logprobs, targets.advantages, rollout.reference_logprobs):
            assert values.shape == (size, width)
        assert (targets.returns is None) == (rollout.values is None) == (case == "ppo-rloo")
        counted = targets.old_logprobs[samples.response_mask]
        assert bool((counted < 0).all())
        assert targets.advantages[samples.response_mask].mean() == pytest.approx(0, abs=1e-5)
        vowels = [float(sum(map(text.count, "aeiou"))) for text in samples.responses]
        assert torch.equal(rollout.scores.cpu(), torch.tensor(vowels))
