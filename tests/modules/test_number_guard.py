"""A number that is not finite never reaches the weights, in any phase and on any process."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback

from lit_rlhf.errors import TrainingError
from lit_rlhf.modules.number_guard import FILE_NAME
from lit_rlhf.rewards import RewardSource
from tests.support.phase_runs import build
from tests.support.phases import Recorder, largest_difference, phase_trainer, weights
from tests.support.two_processes import run_in_two_processes

PHASES = ("sft", "reward", "dpo", "ppo")
BAD_BATCH = 1  # of three
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


class BreakForward(Callback):
    """In one batch, adds a number to what the model says of the first row, at its last token."""

    def __init__(self, value, batches=(BAD_BATCH,)):
        self.value = value
        self.batches = batches
        self.is_bad = False

    def on_train_start(self, trainer, module):
        model = module.reward_model if hasattr(module, "reward_model") else module.policy
        plain = model.forward

        def forward(rows, **options):
            output = plain(rows, **options)
            if not self.is_bad or not torch.is_grad_enabled():
                return output
            values = output if torch.is_tensor(output) else output.logprobs
            # The place of the first row's last token, or its score.
            place = (0,) if values.dim() == 1 else (0, int(rows.lengths[0]) - 1)
            broken = values.clone()
            broken[place] = broken[place] + self.value
            return broken if torch.is_tensor(output) else output._replace(logprobs=broken)

        model.forward = forward

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.is_bad = batch_idx in self.batches


class BreakGradient(Callback):
    """In one batch, makes a single number of a gradient infinite, the loss being fine."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batch_idx = batch_idx

    def on_after_backward(self, trainer, module):
        if self.batch_idx == BAD_BATCH:
            parameter = next(p for p in module.parameters() if p.grad is not None)
            parameter.grad.view(-1)[0] = math.inf


class WeightsAfterEachBatch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        self.seen.append(weights(module))

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(weights(module))


def fit(folder, tmp_path, case, *callbacks, reward=None, trainer=None, **changes):
    module, data = build(case, folder, **changes)
    if reward is not None:
        module.reward = reward
    recorder, after = Recorder(), WeightsAfterEachBatch()
    options = {"limit_val_batches": 0, "callbacks": [*callbacks, after, recorder]} | (trainer or {})
    phase_trainer(tmp_path, **options).fit(module, data)
    moved = [
        largest_difference(before, now) > 0
        for before, now in zip(after.seen, after.seen[1:], strict=False)
    ]
    return module, recorder, moved


def records(folder):
    return [json.loads(line) for line in (folder / FILE_NAME).read_text().splitlines()]


@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
@pytest.mark.parametrize("phase", PHASES)
def test_a_broken_forward_moves_nothing_and_is_kept(folder, tmp_path, phase, value):
    module, recorder, moved = fit(folder, tmp_path, phase, BreakForward(value))
    assert moved == [True, False, True]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights(module).values())
    num_skipped = 2 if phase == "ppo" else 1  # each optimizer step of PPO's iteration
    assert recorder.values(f"train/{phase}/skipped_steps") == [0, num_skipped, num_skipped]
    assert recorder.values(f"train/{phase}/grad_norm")[2] > 0
    written = records(tmp_path)
    names = {"sft": "logprobs", "reward": "score", "dpo": "logprobs", "ppo": "logprobs"}
    assert {record["number"] for record in written} >= {names[phase]}
    num_rows = len({(record["prompt"], record["response"]) for record in written})
    assert num_rows == (4 if phase == "ppo" else 1)  # PPO's micro-batches have one row each
    (first, *_) = written
    assert first["value"] in {"nan", "inf", "-inf"}
    # PPO takes two optimizer steps an iteration, and its steps that are skipped are none.
    assert (first["step"], first["rank"]) == (2 if phase == "ppo" else 1, 0)
    assert first["prompt"].startswith("tell me" if phase == "ppo" else "say ")
    assert first["response"]


def test_on_a_full_disk_training_goes_on_without_the_rows(folder, tmp_path, caplog):
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    _, recorder, moved = fit(folder, tmp_path, "sft", BreakForward(math.nan))
    assert moved == [True, False, True]
    assert recorder.values("train/sft/skipped_steps") == [0, 1, 1]
    assert "the rows of step 1 are not kept: No space left on device" in caplog.text


@pytest.mark.parametrize("phase", PHASES)
def test_a_broken_gradient_moves_nothing(folder, tmp_path, phase):
    module, _, moved = fit(folder, tmp_path, phase, BreakGradient())
    assert moved == [True, False, True]
    # Every minibatch of PPO's iteration is one.
    assert module.guard.num_skipped == (2 if phase == "ppo" else 1)
    batch = records(tmp_path)
    assert {(record["number"], record["value"]) for record in batch} == {("gradient", None)}
    assert len(batch) >= 2


@dataclass(frozen=True)
class BrokenReward(RewardSource):
    """Scores the first response of one iteration by no number."""

    value: float
    asked: list

    def __call__(self, prompts, responses, batch):
        self.asked.append(responses)
        scores = torch.ones(len(responses))
        if len(self.asked) - 1 == BAD_BATCH:
            scores[0] = self.value
        return scores


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_an_iteration_with_a_reward_that_is_no_number_is_left_out(folder, tmp_path, value):
    module, recorder, moved = fit(folder, tmp_path, "ppo", reward=BrokenReward(value, []))
    assert moved == [True, False, True]
    assert recorder.values("train/ppo/optimizer_steps") == [2, 0, 2]
    (record,) = records(tmp_path)
    assert (record["number"], record["value"]) == ("reward", str(value))
    assert module.reward.asked[BAD_BATCH][0] in record["response"]


def test_a_ratio_that_overflows_is_skipped(folder, tmp_path):
    """100 nats: the policy is exp(100) times likelier than when it sampled, beyond float32."""
    _, recorder, moved = fit(folder, tmp_path, "ppo", BreakRatio(100.0))
    assert moved == [True, True, True]  # the first step of each iteration is fine
    assert recorder.values("train/ppo/optimizer_steps") == [2, 1, 2]
    assert {record["number"] for record in records(tmp_path)} == {"ratio"}
    assert {record["value"] for record in records(tmp_path)} == {"inf"}


class BreakRatio(BreakForward):
    """In the second epoch of an iteration alone: the first must have a ratio of one."""

    def on_train_start(self, trainer, module):
        self.looks = 0
        plain = module.policy.forward

        def forward(rows, **options):
            output = plain(rows, **options)
            self.looks += torch.is_grad_enabled()
            # Four micro-batches of one row in the first epoch; the fifth begins the second.
            if not self.is_bad or self.looks != 5 or not torch.is_grad_enabled():
                return output
            broken = output.logprobs.clone()
            broken[0, int(rows.lengths[0]) - 1] += self.value
            return output._replace(logprobs=broken)

        module.policy.forward = forward

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.looks = 0


@pytest.mark.parametrize("phase", PHASES)
def test_past_the_limit_the_run_stops_with_a_report(folder, tmp_path, phase):
    broken = BreakForward(math.nan, batches=range(9))
    with pytest.raises(TrainingError) as caught:
        fit(folder, tmp_path, phase, broken, max_skipped_steps=1)
    message = str(caught.value)
    for word in (
        "2 steps were skipped",
        "max_skipped_steps=1",
        str(tmp_path / FILE_NAME),
        "Likely causes",
        "last checkpoint",
    ):
        assert word in message
    assert "\n" not in message


def test_the_count_goes_on_when_a_run_is_resumed(folder, tmp_path):
    module, data = build("sft", folder)
    trainer = phase_trainer(
        tmp_path, limit_val_batches=0, max_steps=2, callbacks=[BreakForward(math.nan)]
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed, data = build("sft", folder)
    options = {"limit_val_batches": 0, "max_steps": 3}
    phase_trainer(tmp_path, **options).fit(resumed, data, ckpt_path=tmp_path / "last.ckpt")
    assert resumed.guard.num_skipped == 1


def test_accumulated_batches_are_skipped_together(folder, tmp_path):
    """One broken batch of two spoils their common step, and no other one."""
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    module, _, moved = fit(folder, tmp_path, "sft", BreakForward(math.nan), trainer=options)
    assert module.guard.num_skipped == 2  # once an epoch
    assert moved[:3] == [False, False, True]


class OnlyOnRank(BreakForward):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        super().on_train_batch_start(trainer, module, batch, batch_idx)
        self.is_bad = self.is_bad and trainer.global_rank == 1


def broken_on_one_rank(folder, tmp_path):
    """Train both kinds of optimization, automatic and manual, in processes that start once."""
    runs = {}
    for case in ("reward", "ppo"):
        broken, options = OnlyOnRank(math.nan), {"devices": 2, "strategy": "ddp"}
        module, _, moved = fit(folder, tmp_path / case, case, broken, trainer=options)
        runs[case] = moved, module.guard.num_skipped, weights(module)
    return runs


def test_all_processes_skip_what_is_broken_on_one(folder, tmp_path):
    one, other = run_in_two_processes(
        broken_on_one_rank, folder, tmp_path, init_process_group=False
    )
    for case, num_skipped in (("reward", 1), ("ppo", 2)):
        assert one[case][:2] == other[case][:2] == ([True, False, True], num_skipped)
        assert largest_difference(one[case][2], other[case][2]) == 0
        # Only the process that has the row writes it.
        (line, *_) = (tmp_path / case / f"rank1-{FILE_NAME}").read_text().splitlines()
        assert json.loads(line)["rank"] == 1
        written = json.loads((tmp_path / case / FILE_NAME).read_text().splitlines()[0])
        assert written["number"] == "gradient"


def test_the_gradient_norm_is_that_before_clipping(folder, tmp_path):
    squares = []

    class Norms(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            grads = [p.grad for p in module.parameters() if p.grad is not None]
            squares.append(sum(float(grad.double().square().sum()) for grad in grads))

    clipping = {"gradient_clip_val": 1e-3}
    _, recorder, _ = fit(folder, tmp_path, "sft", Norms(), trainer=clipping)
    norms = recorder.values("train/sft/grad_norm")
    assert norms == pytest.approx([math.sqrt(square) for square in squares], rel=1e-5)
