import math

import pytest
import torch

from tests.support.phase_runs import checkpoints_after, run, write_inputs
from tests.support.phases import Kill, Killed

CASES = (
    "sft",
    "sft-lora",
    "reward",
    "reward-lora",
    "dpo",
    "dpo-lora",
    "dpo-precomputed",
    "ppo",
    "ppo-lora",
    "online",
    "online-lora",
    "sft-memory",
    "ppo-memory",
)
NUM_BATCHES = 4  # an epoch has three

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # It saves the weights after the step, and we want just these.
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    return folder


def run_killed(folder, case, saved, *, num_batches):
    """Kill a run once `last.ckpt` was saved, and go on in a new module and Trainer."""
    callbacks = [checkpoints_after(saved, case, num_batches), Kill(num_batches)]
    with pytest.raises(Killed):
        run(case, folder, max_batches=NUM_BATCHES, callbacks=callbacks)
    return run(
        case,
        folder,
        max_batches=NUM_BATCHES,
        callbacks=[checkpoints_after(saved, case, num_batches)],
        ckpt_path=saved / "last.ckpt",
        seed=999,  # of nothing that matters any more
    )


def assert_goes_on(resumed, whole, num_batches):
    assert len(whole.metrics) == NUM_BATCHES
    assert len(resumed.metrics) == NUM_BATCHES - num_batches
    for metrics, others in zip(resumed.metrics, whole.metrics[num_batches:], strict=True):
        assert_equal(metrics, others)
    assert_equal(resumed.weights, whole.weights)
    assert_equal(resumed.optimizer, whole.optimizer)
    assert resumed.heard == whole.heard[num_batches:]


def assert_equal(one, other, place="state"):
    """Compare nested containers of numbers and tensors, bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for name in one:
            assert_equal(one[name], other[name], f"{place}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
        assert one == other or both_nan, place


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_bit_for_bit(folder, tmp_path, case):
    whole = run(case, folder, max_batches=NUM_BATCHES)
    resumed = run_killed(folder, case, tmp_path, num_batches=2)
    assert_goes_on(resumed, whole, 2)
    # What is compared has moved in the meantime.
    assert any(whole.metrics[2][name] != value for name, value in whole.metrics[1].items())
    if case.startswith("ppo"):
        coefficients = [metrics["train/ppo/kl_coef"] for metrics in whole.metrics]
        assert len(set(coefficients)) == NUM_BATCHES


@pytest.mark.parametrize("case", ["sft", "ppo"])
def test_a_run_killed_after_an_epoch_begins_the_next_one(folder, tmp_path, case):
    whole = run(case, folder, max_batches=NUM_BATCHES)
    resumed = run_killed(folder, case, tmp_path, num_batches=3)
    assert_goes_on(resumed, whole, 3)


def test_the_order_of_the_next_epoch_is_another(folder):
    whole = run("ppo", folder, max_batches=6)
    prompts = [[prompt for prompt, _ in batch] for batch in whole.heard]
    assert prompts[:3] != prompts[3:]
