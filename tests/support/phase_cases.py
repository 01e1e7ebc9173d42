"""The cases in which several processes must train as one."""

from tests.support.phase_runs import run

WHOLE_BATCHES = ("sft", "reward", "dpo", "ppo", "ppo-lora", "ppo-separate")
WHOLE_BATCHES += ("ppo-grpo", "ppo-rloo", "ppo-minibatches")
# The last batch has one example or three: a process may have none.
SHORT_BATCHES = ("sft-short1", "reward-short1", "dpo-short1", "ppo-short1", "ppo-lora-short3")
SHORT_BATCHES += ("ppo-separate-short1", "ppo-grpo-short1", "ppo-rloo-short3")
CASES = WHOLE_BATCHES + SHORT_BATCHES
TOLERANCE = 1e-5
# Whitening divides by the deviation of the advantages, and the rounding with them.
TOLERANCE_OF = {"advantages": 1e-4}
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
    return all(value < TOLERANCE_OF.get(kind, TOLERANCE) for kind, value in differences.items())
