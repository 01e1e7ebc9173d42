import functools
import math

import pytest
import torch

from lit_rlhf.models import load_causal_lm, load_scalar_model
from tests.models.examples import random_rows
from tests.support.phase_runs import checkpoints_after, run, write_inputs
from tests.support.phases import Kill, Killed
from tests.support.two_processes import run_in_two_processes

CASES = ("sft", "reward", "dpo", "ppo", "ppo-lora", "ppo-separate")
TOLERANCES = {"ddp": 1e-5, "fsdp2": 1e-4}
NUM_BATCHES = 3

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


def run_all(folder, strategy, devices):
    """Run every case; validation is in the middle, so that training goes on after it."""
    options = {"strategy": strategy, "devices": devices, "val_check_interval": 2}
    return {
        case: run(
            case,
            folder,
            max_batches=NUM_BATCHES,
            save_as=folder / f"{case}{'' if devices == 1 else f'-{strategy}'}.ckpt",
            **options,
        )
        for case in CASES
    }


def run_all_and_resume(folder, strategy):
    runs = run_all(folder, strategy, devices=2)
    saved = folder / strategy
    run_ppo = functools.partial(
        run, "ppo", folder, max_batches=NUM_BATCHES, strategy=strategy, devices=2
    )
    with pytest.raises(Killed):
        run_ppo(callbacks=[checkpoints_after(saved, "ppo", 2), Kill(2)])
    runs["resumed"] = run_ppo(
        callbacks=[checkpoints_after(saved, "ppo", 2)], ckpt_path=saved / "last.ckpt", seed=999
    )
    return runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The runs in one process, which also make the reward model that a critic starts from."""
    return run_all(folder, "auto", devices=1)


@pytest.fixture(scope="module", params=TOLERANCES)
def strategy(request):
    return request.param


@pytest.fixture(scope="module")
def together(folder, alone, strategy):
    """The runs in two processes, by rank; started once, because their imports take the time."""
    return run_in_two_processes(run_all_and_resume, folder, strategy, init_process_group=False)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(alone, together, strategy, case):
    expected = alone[case]
    for runs in together:
        assert_close(runs[case].weights, expected.weights, TOLERANCES[strategy])
        assert len(runs[case].metrics) == NUM_BATCHES
        for metrics, others in zip(runs[case].metrics, expected.metrics, strict=True):
            assert_close(metrics, others, 10 * TOLERANCES[strategy])
        assert_close(runs[case].held_out, expected.held_out, 10 * TOLERANCES[strategy])


@pytest.mark.parametrize("case", ["ppo", "ppo-lora", "ppo-separate"])
def test_samples_do_not_depend_on_the_number_of_processes(alone, together, case):
    lengths = [runs[case].lengths for runs in together]
    # The processes did not decode for the same number of steps.
    assert any(max(one) != max(other) for one, other in zip(*lengths, strict=True))
    for *parts, whole in zip(
        *(runs[case].heard for runs in together), alone[case].heard, strict=True
    ):
        assert sorted(sum(parts, [])) == sorted(whole)


def test_the_checkpoint_of_two_processes_is_the_model_of_one(folder, together, strategy):
    rows = random_rows([3, 4], [5, 2])
    for case in ("sft", "ppo", "ppo-lora"):
        one, other = (
            load_causal_lm(str(folder / f"{case}{suffix}.ckpt")) for suffix in ("", f"-{strategy}")
        )
        with torch.no_grad():
            logits = [model(input_ids=rows.input_ids).logits for model in (one, other)]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    one, other = (
        load_scalar_model(str(folder / f"reward{suffix}.ckpt")) for suffix in ("", f"-{strategy}")
    )
    with torch.no_grad():
        scores = [model.normalize(model(rows)) for model in (one, other)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_a_killed_run_goes_on_exactly_in_two_processes(together):
    for runs in together:
        expected, resumed = runs["ppo"], runs["resumed"]
        assert resumed.heard == [expected.heard[-1]]
        for name, weight in expected.weights.items():
            assert torch.equal(resumed.weights[name], weight), name
        assert same(resumed.metrics[-1], expected.metrics[-1])


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(
            torch.as_tensor(one[name]),
            torch.as_tensor(value),
            atol=tolerance,
            rtol=tolerance,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name] == value or (math.isnan(value) and math.isnan(one[name]))
        for name, value in other.items()
    )
