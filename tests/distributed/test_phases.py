import functools
import itertools
import math

import pytest
import torch

from lit_rlhf.models import load_causal_lm, load_scalar_model
from tests.models.examples import random_rows
from tests.support.phase_runs import checkpoints_after, run, write_inputs
from tests.support.phases import Kill, Killed
from tests.support.two_processes import run_in_two_processes

CASES = ("sft", "reward", "dpo", "ppo", "ppo-lora", "ppo-separate")
KILLED = ("ppo", "ppo-lora")
MEMORY = ("ppo-memory", "reward-memory")
STRATEGIES = ("ddp", "fsdp2")
TOLERANCE = 1e-5
NUM_BATCHES = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def run_all(folder, strategy, devices):
    """Run every case; validation is in the middle, so that training goes on after it."""
    suffix = "" if devices == 1 else f"-{strategy}"
    return {
        case: run(
            case,
            folder,
            max_batches=NUM_BATCHES,
            strategy=strategy,
            devices=devices,
            val_check_interval=2,
            save_as=folder / f"{case}{suffix}.ckpt",
        )
        for case in CASES
    }


def run_killed(case, folder, strategy, max_batches=NUM_BATCHES):
    """Kill a run before its last batch, and go on in a new module and Trainer."""
    saved, before = folder / strategy / case, max_batches - 1
    go = functools.partial(run, case, folder, max_batches=max_batches, strategy=strategy, devices=2)
    with pytest.raises(Killed):
        go(callbacks=[checkpoints_after(saved, case, before), Kill(before)])
    callbacks = [checkpoints_after(saved, case, before)]
    return go(callbacks=callbacks, ckpt_path=saved / "last.ckpt", seed=999)


def run_with_each_strategy(folder):
    return {
        strategy: {
            **run_all(folder, strategy, devices=2),
            **{f"{case} resumed": run_killed(case, folder, strategy) for case in KILLED},
            **{
                case: run(case, folder, max_batches=2, strategy=strategy, devices=2)
                for case in MEMORY
            },
            "ppo-memory resumed": run_killed("ppo-memory", folder, strategy, max_batches=2),
            "ppo-bf16": run("ppo-bf16", folder, max_batches=2, strategy=strategy, devices=2),
        }
        for strategy in STRATEGIES
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The runs in one process, which also make the reward model that a critic starts from."""
    return run_all(folder, "auto", devices=1)


@pytest.fixture(scope="module")
def by_rank(folder, alone):
    """The runs in two processes, started once, because their imports take the time."""
    return run_in_two_processes(
        run_with_each_strategy, folder, init_process_group=False, timeout_s=600
    )


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return request.param


@pytest.fixture
def together(by_rank, strategy):
    """The runs of each rank with a strategy, by case."""
    return [runs[strategy] for runs in by_rank]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(alone, together, case):
    expected = alone[case]
    for runs in together:
        assert_close(runs[case].weights, expected.weights, TOLERANCE)
        assert len(runs[case].metrics) == NUM_BATCHES
        for metrics, others in zip(runs[case].metrics, expected.metrics, strict=True):
            assert_close(metrics, others, TOLERANCE)
        assert_close(runs[case].held_out, expected.held_out, TOLERANCE)


@pytest.mark.parametrize("case", ["ppo", "ppo-lora", "ppo-separate"])
def test_samples_do_not_depend_on_the_number_of_processes(alone, together, case):
    lengths = [runs[case].lengths for runs in together]
    # The processes did not decode for the same number of steps.
    assert any(max(one) != max(other) for one, other in zip(*lengths, strict=True))
    rollouts = zip(*(runs[case].heard for runs in together), strict=True)
    for shares, whole in zip(rollouts, alone[case].heard, strict=True):
        assert sorted(itertools.chain(*shares)) == sorted(whole)


def test_the_checkpoint_of_two_processes_is_the_model_of_one(folder, by_rank, strategy):
    rows = random_rows([3, 4], [5, 2])
    suffixes = ("", f"-{strategy}")
    for case in ("sft", "ppo", "ppo-lora"):
        models = [load_causal_lm(str(folder / f"{case}{suffix}.ckpt")) for suffix in suffixes]
        with torch.no_grad():
            logits = [model(input_ids=rows.input_ids).logits for model in models]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
    scorers = [load_scalar_model(str(folder / f"reward{suffix}.ckpt")) for suffix in suffixes]
    with torch.no_grad():
        scores = [scorer.normalize(scorer(rows)) for scorer in scorers]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_goes_on_exactly_in_two_processes(together, case):
    for runs in together:
        expected, resumed = runs[case], runs[f"{case} resumed"]
        assert resumed.heard == [expected.heard[-1]]
        assert_close(resumed.metrics[-1], expected.metrics[-1], 0)
        assert_close(resumed.weights, expected.weights, 0)


def test_a_run_goes_on_with_another_number_of_processes(folder, alone, by_rank, strategy):
    saved = folder / strategy / "ppo"
    callbacks = [checkpoints_after(saved, "ppo", 2)]
    resumed = run(
        "ppo",
        folder,
        max_batches=NUM_BATCHES,
        callbacks=callbacks,
        ckpt_path=saved / "last.ckpt",
        seed=999,
    )
    assert resumed.heard == [alone["ppo"].heard[-1]]
    assert_close(resumed.metrics[-1], alone["ppo"].metrics[-1], TOLERANCE)
    assert_close(resumed.weights, alone["ppo"].weights, TOLERANCE)


def test_sharding_changes_nothing_under_autocast(by_rank):
    # The reference's layers are stored in bf16 beside norms in float32.
    for runs in by_rank:
        ddp, fsdp2 = runs["ddp"]["ppo-bf16"], runs["fsdp2"]["ppo-bf16"]
        assert ddp.heard == fsdp2.heard
        assert_close(ddp.weights, fsdp2.weights, 1e-5)
        assert [metrics["train/ppo/first_log_ratio"] for metrics in fsdp2.metrics] == [0, 0]


@pytest.mark.parametrize("case", MEMORY)
def test_weights_in_bf16_stay_equal_on_all_processes(together, case):
    """Each process rounds by the same random numbers; sharded weights are gathered to compare."""
    one, other = (runs[case] for runs in together)
    assert_close(one.weights, other.weights, 0)
    # Embeddings, layers and norms; what is left is a head, a counter and a normaliser.
    wide = [name for name, value in one.weights.items() if value.dtype == torch.float32]
    assert all("head" in name or name.startswith("scorer.") for name in wide), wide
    assert any("layers" in name for name in one.weights.keys() - set(wide))


def test_a_run_in_bf16_goes_on_exactly_in_two_processes(together):
    for runs in together:
        expected, resumed = runs["ppo-memory"], runs["ppo-memory resumed"]
        assert_close(resumed.metrics[-1], expected.metrics[-1], 0)
        assert_close(resumed.weights, expected.weights, 0)
        assert [metrics["train/ppo/first_log_ratio"] for metrics in expected.metrics] == [0, 0]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, value in other.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                one[name], value, atol=tolerance, rtol=0, msg=lambda text, name=name: name + text
            )
        elif not (math.isnan(value) and math.isnan(one[name])):
            assert one[name] == pytest.approx(value, abs=tolerance, rel=tolerance), name
