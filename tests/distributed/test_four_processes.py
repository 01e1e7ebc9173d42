"""Four processes train as one: one phase among the quick tests, all of them as a proof."""

import pytest

from tests.proofs.table import Claim, write_claims
from tests.support.comparing_runs import largest_differences
from tests.support.phase_cases import (
    CASES,
    TOLERANCE,
    go_on,
    kill_before_the_last,
    last_batch,
    run_all,
    within_tolerance,
    without_validation,
)
from tests.support.two_processes import run_in_processes

# Four processes need a batch that four divide.
FOUR = tuple(case for case in CASES if case.startswith("ppo") or "short" in case)
FOUR += ("sft-short3", "reward-short3", "dpo-short3")
KINDS = {"ddp": (2, CASES), "fsdp2": (2, CASES), "ddp on four": (4, FOUR)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def compare(folder, strategy, num_processes, cases):
    """Return the largest differences to one process by case and kind."""
    # A separate critic starts from the reward model that the first case leaves.
    alone = run_all(folder, "auto", 1, ("reward", *cases))
    by_rank = run_in_processes(
        num_processes,
        run_all,
        folder,
        strategy,
        num_processes,
        cases,
        init_process_group=False,
        timeout_s=900,
    )
    return {
        case: largest_differences([runs[case] for runs in by_rank], alone[case]) for case in cases
    }


def test_four_processes_train_as_one(folder):
    # Three rows for four processes: one of them has none.
    differences = compare(folder, "ddp", 4, ("sft-short3",))["sft-short3"]
    assert within_tolerance(differences), differences


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_phase(folder, kind):
    num_processes, cases = KINDS[kind]
    strategy = kind.split()[0]
    differences = compare(folder, strategy, num_processes, cases)
    claims = []
    for phase in ("sft", "reward", "dpo", "ppo"):
        mine = {case: kinds for case, kinds in differences.items() if case.startswith(phase)}
        held = sum(map(within_tolerance, mine.values()))
        largest = {
            name: max(kinds.get(name, 0.0) for kinds in mine.values())
            for name in next(iter(mine.values()))
        }
        note = ", ".join(f"{name} {value:.1e}" for name, value in largest.items())
        title = f"{phase}: {num_processes} processes ({strategy}) train as one, uneven batches too"
        claims.append(Claim(title, len(mine), held, max(largest.values()), note))
    write_claims(f"distributed_{strategy}_{num_processes}", claims)
    assert all(claim.held == claim.made for claim in claims), (TOLERANCE, differences)


@pytest.mark.slow
def test_a_run_goes_on_with_half_or_twice_the_processes(folder):
    (alone,) = run_all(folder, "auto", 1, ("ppo",)).values()
    differences = {}
    for before, after in ((4, 2), (2, 4)):
        saved = folder / f"from-{before}"
        options = {"init_process_group": False}
        run_in_processes(
            before, kill_before_the_last, "ppo", folder, saved, "ddp", before, **options
        )
        shares = run_in_processes(after, go_on, "ppo", folder, saved, "ddp", after, **options)
        shares = [without_validation(run) for run in shares]
        differences[before, after] = largest_differences(shares, last_batch(alone))
    held = sum(map(within_tolerance, differences.values()))
    largest = max(value for kinds in differences.values() for value in kinds.values())
    claim = "A PPO run killed on 4 (2) processes goes on with 2 (4) as one never stopped on one"
    write_claims("distributed_resumed", [Claim(claim, 2, held, largest, "DDP, one batch more")])
    assert held == len(differences), differences
