import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from lit_rlhf.callbacks import SelfChecks
from lit_rlhf.models import load_causal_lm, load_reward_model
from tests.models.examples import plain_model, random_rows
from tests.support.comparing_runs import assert_close, largest_differences, norm_of
from tests.support.phase_cases import (
    CASES,
    NUM_BATCHES,
    go_on,
    kill_before_the_last,
    last_batch,
    run_all,
    within_tolerance,
    without_validation,
)
from tests.support.phase_runs import NUM_EPOCHS, run
from tests.support.two_processes import run_in_two_processes

KILLED = ("ppo", "ppo-lora")
RESUMED_BY_MORE = ("sft", "ppo", "ppo-lora")
MEMORY = ("ppo-memory", "reward-memory")
STRATEGIES = ("ddp", "fsdp2")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


def run_killed(case, folder, strategy, max_batches=NUM_BATCHES):
    """Kill a run before its last batch, and go on in a new module and Trainer."""
    saved = folder / strategy / case
    kill_before_the_last(case, folder, saved, strategy, 2, max_batches)
    return go_on(case, folder, saved, strategy, 2, max_batches)


def run_checked(folder, strategy):
    options = {"strategy": strategy, "devices": 2, "callbacks": [SelfChecks()]}
    return run("ppo", folder, max_batches=NUM_BATCHES, **options)


def run_with_each_strategy(folder):
    return {
        strategy: {
            **{
                f"{case} from one": go_on(case, folder, folder / "one" / case, strategy, 2)
                for case in RESUMED_BY_MORE
            },
            **run_all(folder, strategy, devices=2),
            **{f"{case} resumed": run_killed(case, folder, strategy) for case in KILLED},
            **{
                case: run(case, folder, max_batches=2, strategy=strategy, devices=2)
                for case in MEMORY
            },
            "ppo-memory resumed": run_killed("ppo-memory", folder, strategy, max_batches=2),
            "ppo-bf16": run("ppo-bf16", folder, max_batches=2, strategy=strategy, devices=2),
            "ppo checked": run_checked(folder, strategy),
        }
        for strategy in STRATEGIES
    }


@pytest.fixture(scope="module")
def alone(folder):
    """The runs in one process, which also make the reward model that a critic starts from."""
    runs = run_all(folder, "auto", devices=1)
    for case in RESUMED_BY_MORE:
        kill_before_the_last(case, folder, folder / "one" / case, "auto", 1)
    return runs


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
    shares = [runs[case] for runs in together]
    steps_a_batch = NUM_EPOCHS if case.startswith("ppo") else 1
    assert len(alone[case].metrics) == NUM_BATCHES
    assert len(alone[case].gradients) == NUM_BATCHES * steps_a_batch
    assert max(map(norm_of, alone[case].gradients)) > 0.01
    differences = largest_differences(shares, alone[case])
    assert within_tolerance(differences), differences


@pytest.mark.parametrize("case", ["ppo", "ppo-lora", "ppo-separate"])
def test_the_processes_decode_for_different_numbers_of_steps(together, case):
    lengths = [runs[case].lengths for runs in together]
    # None waits for the other, and the samples are those of one process (above).
    assert any(max(one) != max(other) for one, other in zip(*lengths, strict=True))


def test_the_folder_of_two_processes_is_the_model_of_one(folder, by_rank, strategy):
    rows = random_rows([3, 4], [5, 2])
    suffixes = ("", f"-{strategy}")
    for case in ("sft", "ppo", "ppo-lora"):
        auto_class = AutoPeftModelForCausalLM if case == "ppo-lora" else AutoModelForCausalLM
        models = [plain_model(folder / f"{case}{suffix}", auto_class) for suffix in suffixes]
        models.append(load_causal_lm(str(folder / f"{case}-{strategy}")))
        with torch.no_grad():
            alone, together, ours = [model(input_ids=rows.input_ids).logits for model in models]
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours, together, atol=1e-5, rtol=0)
    rewards = [load_reward_model(str(folder / f"reward{suffix}")) for suffix in suffixes]
    with torch.no_grad():
        scores = [model.normalize(model(rows)) for model in rewards]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_self_checks_find_nothing_and_change_nothing(together):
    # A forward leaves a sharded reference gathered in part: that is not a change.
    for runs in together:
        assert len(runs["ppo checked"].held_out) == len(runs["ppo"].held_out) > 0
        assert runs["ppo checked"].metrics == runs["ppo"].metrics
        assert_close(runs["ppo checked"].weights, runs["ppo"].weights, 0)


@pytest.mark.parametrize("case", [*KILLED, "ppo-memory"])
def test_a_killed_run_goes_on_exactly_in_two_processes(together, case):
    for runs in together:
        expected, resumed = runs[case], runs[f"{case} resumed"]
        assert resumed.heard == [expected.heard[-1]]
        assert_close(resumed.metrics[-1], expected.metrics[-1], 0)
        assert_close(resumed.weights, expected.weights, 0)


def test_a_run_goes_on_with_fewer_processes(folder, alone, by_rank, strategy):
    resumed = go_on("ppo", folder, folder / strategy / "ppo", "auto", 1)
    assert resumed.heard == [alone["ppo"].heard[-1]]
    differences = largest_differences([without_validation(resumed)], last_batch(alone["ppo"]))
    assert within_tolerance(differences), differences


@pytest.mark.parametrize("case", RESUMED_BY_MORE)
def test_a_run_goes_on_with_more_processes(alone, together, case):
    resumed = [without_validation(runs[f"{case} from one"]) for runs in together]
    differences = largest_differences(resumed, last_batch(alone[case]))
    assert within_tolerance(differences), differences


def test_under_autocast_the_forwards_of_a_sharded_run_agree(by_rank):
    # Layers are gathered in bf16, norms as well, which ddp leaves in float32.
    for runs in by_rank:
        fsdp2 = runs["fsdp2"]["ppo-bf16"]
        for one in (fsdp2, runs["ddp"]["ppo-memory"], runs["fsdp2"]["ppo-memory"]):
            assert [metrics["train/ppo/first_log_ratio"] for metrics in one.metrics] == [0, 0]


@pytest.mark.parametrize("case", MEMORY)
def test_weights_in_bf16_stay_equal_on_all_processes(together, case):
    """Each process rounds by the same random numbers; sharded weights are gathered to compare."""
    one, other = (runs[case] for runs in together)
    assert_close(one.weights, other.weights, 0)
    # Embeddings, layers and norms; what is left is a head, a counter and a normaliser.
    wide = [name for name, value in one.weights.items() if value.dtype == torch.float32]
    assert all("head" in name or name.startswith("reward_model.") for name in wide), wide
    assert any("layers" in name for name in one.weights.keys() - set(wide))
