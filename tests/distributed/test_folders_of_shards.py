"""Folders to which each process wrote its part are read as the one file would be."""

import pytest

from lit_rlhf.checkpoints import read_verified
from lit_rlhf.modules.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.modules.sharding import FSDP2Strategy
from tests.support.comparing_runs import assert_close, largest_differences
from tests.support.phase_cases import (
    NUM_BATCHES,
    go_on,
    kill_before_the_last,
    last_batch,
    within_tolerance,
    without_validation,
)
from tests.support.phase_runs import run
from tests.support.two_processes import run_in_two_processes

CASES = ("ppo", "ppo-lora", "reward", "dpo-sync")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found .* in eval mode"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


def in_shards():
    return FSDP2Strategy(save_distributed_checkpoint=True)


def run_and_resume(folder):
    """Return by case the whole run, and one that went on from a folder before its last batch."""
    runs = {}
    for case in CASES:
        run(
            case,
            folder,
            max_batches=NUM_BATCHES - 1,
            strategy="fsdp2",
            devices=2,
            save_as=folder / f"{case}-file.ckpt",
        )
        saved = folder / "shards" / case
        kill_before_the_last(case, folder, saved, in_shards(), 2)
        whole = run(case, folder, max_batches=NUM_BATCHES, strategy=in_shards(), devices=2)
        runs[case] = whole, go_on(case, folder, saved, in_shards(), 2)
    return runs


@pytest.fixture(scope="module")
def by_rank(folder):
    return run_in_two_processes(run_and_resume, folder, init_process_group=False, timeout_s=600)


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def shards_of(folder, case):
    return folder / "shards" / case / "last.ckpt"


def test_a_run_goes_on_from_a_folder_exactly(by_rank, case):
    for runs in by_rank:
        whole, resumed = runs[case]
        assert_close(resumed.weights, whole.weights, 0)
        assert_close(resumed.metrics[-1], whole.metrics[-1], 0)


def test_a_run_goes_on_from_a_folder_in_one_process(folder, by_rank, case):
    alone = run(case, folder, max_batches=NUM_BATCHES)
    resumed = go_on(case, folder, folder / "shards" / case, "auto", 1, plugins=AtomicCheckpointIO())
    expected = last_batch(alone)
    differences = largest_differences([without_validation(resumed)], expected)
    assert within_tolerance(differences), differences


def test_a_folder_holds_what_the_file_does(folder, by_rank, case):
    assert shards_of(folder, case).is_dir()
    shards, file = (
        read_verified(path, map_location="cpu")
        for path in (shards_of(folder, case), folder / f"{case}-file.ckpt")
    )
    assert shards.keys() == file.keys()
    has_reference = any(name.startswith("reference.") for name in shards["state_dict"])
    assert has_reference == (case == "dpo-sync")
    assert_close(shards["state_dict"], file["state_dict"], 0)
    # Numbers name parameters by their places in the groups, in either.
    moments, of_file = (
        [states["state"][number] for group in states["param_groups"] for number in group["params"]]
        for states in (shards["optimizer_states"][0], file["optimizer_states"][0])
    )
    for one, other in zip(moments, of_file, strict=True):
        assert_close(one, other, 0)
