"""The cases in which several processes must train as one."""

from tests.support.phase_runs import run

CASES = (
    ("sft", "reward", "dpo", "ppo", "ppo-lora", "ppo-separate")
    + ("ppo-grpo", "ppo-rloo", "ppo-minibatches")
    # The last batch has one example or three: a process may have none.
    + ("sft-short1", "reward-short1", "dpo-short1", "ppo-short1", "ppo-lora-short3")
    + ("ppo-separate-short1", "ppo-grpo-short1", "ppo-rloo-short3")
)
TOLERANCE = 1e-5
NUM_BATCHES = 3


def run_all(folder, strategy, devices, cases=CASES):
    """Run cases; validation is in the middle, so that training goes on after it."""
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
        for case in cases
    }


def within_tolerance(differences):
    """Tell whether all differences are those of sums in another order."""
    return max(differences.values()) < TOLERANCE
