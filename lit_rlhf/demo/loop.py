"""The whole loop by the commands and YAML files that a user has, each in a process of its own."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.cache import cache_folder
from lit_rlhf.child_command import run_command
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.shipped import configs_folder

# Title and words of each command; those of the phases get the options of `_phase_options`, too.
# The reward model "judge" has other texts and other raters, and PPO never trains against it.
COMMANDS = (
    ("SFT", "sft fit"),
    ("reward model", "reward fit --model.backbone={sft}"),
    (
        "reward model that judges",
        "reward fit --model.backbone={sft} --trainer.logger.init_args.name=judge"
        " --data.train={data}/judge/train.jsonl --data.validation={data}/judge/validation.jsonl",
    ),
    (
        "PPO",
        "ppo fit --model.policy={sft} --model.reward.init_args.model={reward}"
        " --model.judges.validation.init_args.model={judge}",
    ),
    ("DPO", "dpo fit --model.policy={sft}"),
    (
        "reward model on held-out texts",
        "evaluate rewards reward={reward} --data={data}/reward/test.jsonl --num-rows={num_groups}"
        " --rating-gap=1 --precision={precision} --output={run}/evaluate/rewards",
    ),
    (
        "policies on held-out prompts",
        "evaluate policies ppo={ppo} dpo={dpo} sft={sft} base={base}"
        " --judge=reward={reward} --judge=validation={judge}"
        " --judge=vader=function:lit_rlhf.demo.vader.vader_scores --reference={sft}"
        " --prompts={data}/ppo/test.jsonl --num-prompts={num_prompts} --max-new-tokens=24"
        " --samples=sft={num_samples} --perplexity-data={data}/sft/test.jsonl"
        " --perplexity-rows={num_texts} --seed={seed} --precision={precision}"
        " --output={run}/evaluate/policies",
    ),
)
FOLDERS = ("sft", "reward", "judge", "ppo", "dpo", "evaluate")
# In every folder that a demonstration made: only such a folder is cleared.
MARKER = ".lit-rlhf-demo"


class Scale(NamedTuple):
    """How long the loop is.

    Attributes:
        name: "smoke", "quick" or "full". `configs/demo/quick/` holds the demonstration's settings
            beside the phases' own YAML files; the two others say what differs from it.
        folder: of the run, under `runs/`.
        num_prompts: held-out prompts on which the policies are compared.
        num_groups: held-out groups of 32 texts on which the reward model is measured.
        num_texts: held-out texts for the perplexity.
        num_samples: the SFT policy's responses to each prompt, for its best of n. One more than
            the largest n: against SFT itself the last one is the opponent.
    """

    name: str
    folder: str
    num_prompts: int
    num_groups: int
    num_texts: int
    num_samples: int = 17


SCALES = {
    "smoke": Scale("smoke", "demo-smoke", num_prompts=12, num_groups=4, num_texts=64),
    "quick": Scale("quick", "demo", num_prompts=128, num_groups=24, num_texts=384),
    "full": Scale("full", "demo-full", num_prompts=256, num_groups=38, num_texts=1216),
}


def run_loop(scale: Scale, folder: Path, seed: int) -> dict[str, Any]:
    """Run every phase and evaluate the result.

    Args:
        scale: how long.
        folder: of the run; what an earlier demonstration left in it is replaced.
        seed: of every phase.

    Returns:
        What ran: `scale`, `seed`, `precision`, the `commands` as a user would type them, and
        `phases` with the `name`, `seconds` and `peak_memory_gib` of each.

    Raises:
        ConfigError: the folder holds something that no demonstration made.
        TrainingError: a command failed.
    """
    _clear(folder)
    precision = choose_precision()
    commands, phases = [], []
    for title, command in COMMANDS:
        words = command_words(command, scale, folder, seed, precision)
        commands.append(shlex.join(["lit-rlhf", *words]))
        sys.stdout.write(f"\n$ {commands[-1]}\n")
        sys.stdout.flush()
        phases.append({"name": title, **run_command(title, words)._asdict()})
    about = {"scale": scale.name, "seed": seed, "precision": precision}
    return {**about, "commands": commands, "phases": phases}


def command_words(command: str, scale: Scale, folder: Path, seed: int, precision: str) -> list[str]:
    """Return the words of one of `COMMANDS`, with the options that all phases have.

    Args:
        command: with names in braces.
        scale: how long.
        folder: of the run.
        seed: of the phase.
        precision: of its forwards.
    """
    names = {
        **scale._asdict(),
        **{name: model_of(folder, name) for name in FOLDERS[:-1]},
        "base": cache_folder() / "SmolLM2-135M-Instruct",
        "data": cache_folder() / "data",
        "run": folder,
        "seed": seed,
        "precision": precision,
    }
    # Split before the names are filled in: a path may have a space.
    phase, verb, *rest = (word.format(**names) for word in shlex.split(command))
    shared = [] if phase == "evaluate" else _phase_options(phase, names)
    return [phase, verb, *shared, *rest]


def model_of(folder: Path, name: str) -> str:
    """Return the model folder that a phase of the run leaves."""
    return str(folder / name / "model")


def _phase_options(phase: str, names: dict[str, Any]) -> list[str]:
    folders = dict.fromkeys(("", "demo/quick", f"demo/{names['name']}"))
    files = [configs_folder() / folder / f"{phase}.yaml" for folder in folders]
    options = [f"--config={_shorten(file)}" for file in files]
    if cache_folder() != Path("~/.cache/lit_rlhf").expanduser():  # where the YAML files look
        data = names["data"] / ("reward" if phase == "dpo" else phase)
        options += [f"--data.{split}={data / split}.jsonl" for split in ("train", "validation")]
        options += [f"--model.policy={names['base']}"] * (phase == "sft")
        prompts = names["data"] / "ppo" / "validation.jsonl"
        options += [f"--model.normalizer.prompts={prompts}"] * (phase == "reward")
    options += [f"--seed_everything={names['seed']}", f"--data.seed={names['seed']}"]
    options += [f"--trainer.precision={names['precision']}"]
    return [*options, f"--trainer.logger.init_args.save_dir={names['run']}"]


def _clear(folder: Path) -> None:
    """Make the folder ready for a run, without ever removing a user's own runs."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ConfigError(
            f"{folder} is not empty, and no demonstration made it: name another one with --output"
        )
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _shorten(path: Path) -> Path:
    """Name a path from here where it lies below, so that the commands can be read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
