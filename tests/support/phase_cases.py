"""The cases in which several processes must train as one."""

from dataclasses import replace

import pytest

from tests.support.phase_runs import checkpoints_after, run
from tests.support.phases import Kill, Killed

WHOLE_BATCHES = ("sft", "reward", "dpo", "ppo", "ppo-lora", "ppo-separate")
WHOLE_BATCHES += ("ppo-grpo", "ppo-rloo", "ppo-minibatches", "dpo-kto", "online")
# The last batch has one example or three: a process may have none.
SHORT_BATCHES = ("sft-short1", "reward-short1", "dpo-short1", "ppo-short1", "ppo-lora-short3")
SHORT_BATCHES += ("ppo-separate-short1", "ppo-grpo-short1", "ppo-rloo-short3", "dpo-kto-short1")
SHORT_BATCHES += ("online-short1",)
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
            save_as=folder / f"{case}{suffix}",
        )
        for case in cases
    }


def within_tolerance(differences):
    """Tell whether all differences are those of sums in another order."""
    return all(value < TOLERANCE_OF.get(kind, TOLERANCE) for kind, value in differences.items())


def kill_before_the_last(case, folder, saved, strategy, devices, max_batches=NUM_BATCHES):
    """Leave in `saved` the checkpoint of a run that was killed before its last batch."""
    before = max_batches - 1
    callbacks = [checkpoints_after(saved, case, before), Kill(before)]
    with pytest.raises(Killed):
        run(
            case,
            folder,
            max_batches=max_batches,
            callbacks=callbacks,
            strategy=strategy,
            devices=devices,
        )


def go_on(case, folder, saved, strategy, devices, max_batches=NUM_BATCHES, **options):
    """Resume a run from what `kill_before_the_last` has left, for its last batch."""
    return run(
        case,
        folder,
        max_batches=max_batches,
        ckpt_path=saved / "last.ckpt",
        callbacks=[checkpoints_after(saved, case, max_batches - 1)],
        strategy=strategy,
        devices=devices,
        seed=999,
        **options,
    )


def last_batch(whole):
    """Return what a run resumed before its last batch should leave behind."""
    steps_a_batch = len(whole.gradients) // NUM_BATCHES
    return replace(
        without_validation(whole),
        metrics=whole.metrics[-1:],
        heard=whole.heard[-1:],
        gradients=whole.gradients[-steps_a_batch:],
        advantages=whole.advantages[-1:],
    )


def without_validation(run):
    """Leave out what the last validation said: it came before the run was killed."""
    return replace(run, held_out={})
