"""Runs of the command line that are killed and resumed, and what is compared in the end."""

import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from lit_rlhf.checkpoints import read_verified
from lit_rlhf.models import ScalarModel
from lit_rlhf.models.handover import load_trunk
from tests.models.examples import save_policy, write_reward_model
from tests.support.fork_server import ForkServer, Job, log_of
from tests.support.kill_points import OF_PPO_ALONE, PLACES
from tests.support.phases import demonstrations, judged_groups, prompts, write_rows

# By phase, and PPO by what it estimates advantages with and is rewarded by.
CASES = (
    "sft",
    "sft-lora",
    "sft-accumulate",
    "sft-steps",
    "reward",
    "dpo",
    "dpo-lora",
    "ppo-gae-learned",
    "ppo-gae-function",
    "ppo-rloo-function",
    "ppo-grpo-learned",
    "ppo-gae-learned-lora",
    "ppo-gae-function-ddp",
    "sft-ddp",
    "reward-ddp",
    "dpo-ddp",
    "ppo-gae-function-fsdp2",
)
# How often a run comes to each place, at the least.
VISITS = {
    "decoding": 40,
    "step": 8,
    "batch": 10,
    "row": 10,
    "write": 60,
    "rename": 5,
    "renamed": 5,
    "validation": 8,
    "sample": 4,
}


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    Attributes:
        state: its last checkpoint, without the paths that differ between folders.
        metrics: `metrics.csv`, byte for byte.
        samples: `samples.jsonl`, likewise; empty but for PPO.
    """

    state: dict
    metrics: bytes
    samples: bytes


def write_inputs(folder: Path) -> None:
    """Write a policy, a reward model and the data of all phases."""
    policy = save_policy(folder / "policy", eos_token_id=list(range(1, 24)))
    torch.manual_seed(3)
    reward_model = ScalarModel(load_trunk(str(policy)))
    write_reward_model(folder / "reward", reward_model, policy)
    write_rows(folder / "sft.jsonl", demonstrations(10))
    write_rows(folder / "groups.jsonl", judged_groups(10))
    write_rows(folder / "prompts.jsonl", prompts(20))
    write_rows(folder / "sft-held-out.jsonl", demonstrations(3))
    write_rows(folder / "groups-held-out.jsonl", judged_groups(3))
    write_rows(folder / "prompts-held-out.jsonl", prompts(3))
    for case in CASES:
        (folder / f"{case}.yaml").write_text(yaml.safe_dump(_options(case, folder)))


def job(case: str, inputs: Path, folder: Path, *options: str, **changes) -> Job:
    """Return the run of a case in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    phase = case.partition("-")[0]
    return Job(
        [phase, "fit", "--config", str(inputs / f"{case}.yaml"), *options],
        str(folder),
        num_processes=2 if case.endswith(("-ddp", "-fsdp2")) else 1,
        **changes,
    )


def outcome(folder: Path) -> Outcome:
    """Read what a run left behind."""
    run = folder / "runs" / "run"
    state = read_verified(run / "checkpoints" / "last.ckpt")
    del state["lit_rlhf_run"]["settings"]["last_checkpoint"]  # each kill has its own
    state["callbacks"] = {
        name: value for name, value in state["callbacks"].items() if "ModelCheckpoint" not in name
    }
    # Resumed behind a validation, Lightning adds its batches to those of the one before; the next
    # validation begins from zero again.
    state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"].pop("current")
    samples = run / "samples.jsonl"
    return Outcome(
        state,
        (run / "metrics.csv").read_bytes(),
        samples.read_bytes() if samples.exists() else b"",
    )


def random_kill(case: str, random_choice: random.Random) -> dict:
    """Choose the place or the moment of a kill, early enough for more to come."""
    places = [one for one in PLACES if case.startswith("ppo") or one not in OF_PPO_ALONE]
    if random_choice.random() < 0.4:
        return {"signal_after_s": random_choice.uniform(0.0, 0.4)}
    place = random_choice.choice(places)
    return {"kill_point": f"{place}:{random_choice.randint(1, max(1, VISITS[place] // 4))}"}


def run_with_kills(
    server: ForkServer, case: str, inputs: Path, folder: Path, kills: Sequence[dict]
) -> list[str]:
    """Run a case, killed once for each of `kills` and resumed each time, to its end.

    Returns:
        Where it was killed; fewer than asked for, when it came to its end before a moment.

    Raises:
        RuntimeError: it ended in another way than by a kill or at its end; with what it printed.
    """
    places = []
    for index, kill in enumerate([*kills, {}]):
        # Behind each batch first, between two epochs as well; then behind each second.
        often = f"--last_checkpoint.every_n_batches={1 + index % 2}"
        done = server.run(job(case, inputs, folder, "--ckpt_path", "last", often, **kill))
        if done.statuses[0] == -9:
            places.append(kill.get("kill_point", "time").partition(":")[0])
        elif done.statuses[0] != 0:
            raise RuntimeError(f"{case} {kill}: {done.statuses}\n{log_of(folder)[-3000:]}")
    return places


def largest_difference(one: object, other: object) -> float:
    """Return the largest difference between numbers; infinity where anything else differs."""
    return max((size for _, size in differences(one, other)), default=0.0)


def differences(one: object, other: object, place: str = "state") -> list[tuple[str, float]]:
    """Name the leaves of nested containers that differ, and by how much."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{place}.{name}", one[name], other[name]) for name in one]
    elif _are_sequences(one, other) and len(one) == len(other):
        pairs = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        difference = _difference(one, other)
        return [(place, difference)] if difference else []
    return [found for where, *pair in pairs for found in differences(*pair, where)]


def _are_sequences(one: object, other: object) -> bool:
    return isinstance(one, (list, tuple)) and type(one) is type(other)


def _difference(one: object, other: object) -> float:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return math.inf
        equal = torch.equal(one, other)
        return 0.0 if equal else float((one.double() - other.double()).abs().max())
    if isinstance(one, float) and isinstance(other, float):
        if math.isfinite(one) and math.isfinite(other):
            return abs(one - other)
        return 0.0 if str(one) == str(other) else math.inf
    return 0.0 if type(one) is type(other) and one == other else math.inf


def clear(folder: Path) -> None:
    """Remove a run that is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)


def _options(case: str, folder: Path) -> dict:
    phase, *variants = case.split("-")
    data = {"sft": "sft", "reward": "groups", "dpo": "groups", "ppo": "prompts"}[phase]
    callbacks: list[dict] = []
    strategy = next((one for one in ("ddp", "fsdp2") if one in variants), "auto")
    model: dict = {"backbone" if phase == "reward" else "policy": str(folder / "policy")}
    if "lora" in variants:
        model["lora"] = {"rank": 2, "alpha": 4.0}
    if phase == "reward":
        model["normalizer"] = {
            "prompts": str(folder / "prompts.jsonl"),
            "num_samples": 4,
            "max_new_tokens": 4,
        }
    if phase == "ppo":
        callbacks.append({"class_path": "lit_rlhf.callbacks.SampleTableCallback"})
        model |= _ppo_model(variants, folder)
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1 if strategy == "auto" else 2,
            "strategy": strategy,
            "accumulate_grad_batches": 2 if "accumulate" in variants else 1,
            "precision": "32-true",
            "max_epochs": -1 if "steps" in variants else 2,
            "max_steps": 10 if "steps" in variants else -1,  # two epochs of five
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lit_rlhf.callbacks.ResumableCSVLogger",
                "init_args": {"save_dir": "runs", "name": "run", "version": ""},
            },
            "callbacks": callbacks,
        },
        "last_checkpoint": {"every_n_minutes": None, "every_n_batches": 2},
        **({"kl": {"target": 2.0, "coefficient": 0.2, "horizon": 16.0}} if phase == "ppo" else {}),
        "model": model | {"optimizer": {"learning_rate": 0.01}},
        "data": {
            "train": str(folder / f"{data}.jsonl"),
            "validation": str(folder / f"{data}-held-out.jsonl"),
            "batch_size": 4 if phase == "ppo" else 2,
            "eval_batch_size": 2,
        },
    }


def _ppo_model(variants: list[str], folder: Path) -> dict:
    learned = {
        "class_path": "lit_rlhf.rewards.LearnedReward",
        "init_args": {"model": str(folder / "reward")},
    }
    function = {
        "class_path": "lit_rlhf.rewards.FunctionReward",
        "init_args": {"function": "tests.support.toy_rewards.count_o"},
    }
    estimators = {
        "gae": {"class_path": "lit_rlhf.objectives.GAE"},
        "rloo": {"class_path": "lit_rlhf.objectives.RLOO", "init_args": {"k": 2}},
        "grpo": {"class_path": "lit_rlhf.objectives.GRPO", "init_args": {"k": 2}},
    }
    return {
        "advantage": estimators[variants[0]],
        "reward": learned if "learned" in variants else function,
        # With it the monitor of over-optimisation counts validations.
        "judges": {"validation": function} if "learned" in variants else {},
        "update": {"num_epochs": 2, "num_minibatches": 2},
        "sampling": {"max_new_tokens": 8},
    }
