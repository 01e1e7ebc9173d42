"""The whole loop, phase by phase, through the commands and YAML files that a user has."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import lit_rlhf
from lit_rlhf.cache import cache_folder
from lit_rlhf.demo.figures import Measurements, figures
from lit_rlhf.demo.measuring import (
    measure_policies,
    measure_reward_model,
    ppo_curves,
    read_metrics,
    sample_table,
)
from lit_rlhf.demo.processes import CleanProcesses
from lit_rlhf.demo.report_schema import Phase, Report
from lit_rlhf.errors import ConfigError
from lit_rlhf.modules.precision import Precision, choose_precision
from lit_rlhf.phase_cli import run_phase
from lit_rlhf.shipped import configs_folder

R = TypeVar("R")

DEFAULT_CACHE = Path("~/.cache/lit_rlhf").expanduser()
PHASE_FOLDERS = ("sft-before", "sft", "sft-after", "reward", "judge", "ppo", "dpo")
# Stands in every folder that a demonstration made: only such a folder is cleared.
MARKER = ".lit-rlhf-demo"
VERSIONED = ("torch", "lightning", "transformers", "peft", "jsonargparse", "torchmetrics")


@dataclass(frozen=True)
class Scale:
    """How long the loop is.

    Attributes:
        name: "smoke", "quick" or "full". `configs/demo/quick/` holds the demonstration's settings
            beside the phases' own YAML files; the two others say what differs from it.
        folder: of the run, under `runs/`.
        num_prompts: held-out prompts on which the policies are compared.
        num_best_of: prompts on which the SFT policy's best samples are, too.
        num_groups: held-out groups of 32 texts on which the reward model is measured.
        num_perplexity_batches: held-out batches of 64 texts for the perplexity.
    """

    name: str
    folder: str
    num_prompts: int
    num_best_of: int
    num_groups: int
    num_perplexity_batches: int


SCALES = {
    "smoke": Scale("smoke", "demo-smoke", 32, 8, 4, 1),
    "quick": Scale("quick", "demo", 256, 64, 24, 6),
    "full": Scale("full", "demo-full", 256, 256, 38, 19),
}


class _Loop:
    """Runs commands, keeps time and memory of each phase and the commands for the report."""

    def __init__(self, scale: Scale, folder: Path, seed: int, precision: Precision) -> None:
        self.scale = scale
        self.folder = folder
        self.seed = seed
        self.precision = precision
        self.commands: list[str] = []
        self.phases: list[Phase] = []
        self._processes = CleanProcesses(["lit_rlhf.phase_cli", "lit_rlhf.demo.measuring"])

    def measure(self, name: str, function: Callable[..., R], *args: object) -> R:
        """Call a function in a process of its own and add it to the report."""
        start = time.monotonic()
        result, peak_memory_gib = self._processes.run(name, function, *args)
        self.phases.append(Phase(name, round(time.monotonic() - start, 1), peak_memory_gib))
        return result

    def run(
        self, name: str, phase: str, command: str, *options: str, folder: str | None = None
    ) -> dict[str, float]:
        """Run one phase as the command line would, and return its last metrics."""
        arguments = [command, *self._configs(phase), *self._paths(phase)]
        arguments += ["--seed_everything", str(self.seed), "--data.seed", str(self.seed)]
        arguments += [f"--trainer.precision={self.precision}"]
        arguments += [f"--trainer.logger.init_args.save_dir={self.folder}"]
        if folder is not None:
            arguments += [f"--trainer.logger.init_args.name={folder}"]
        arguments += options
        self.commands.append(shlex.join(["lit-rlhf", phase, *arguments]))
        sys.stdout.write(f"\n$ {self.commands[-1]}\n")
        sys.stdout.flush()
        return self.measure(name, _run_phase, phase, arguments)

    def checkpoint(self, phase: str) -> str:
        """Return the checkpoint that a phase leaves."""
        kind = "reward" if phase in ("reward", "judge") else "policy"
        return str(self.folder / phase / "checkpoints" / f"{kind}.ckpt")

    def _configs(self, phase: str) -> list[str]:
        folders = ["", "demo/quick", f"demo/{self.scale.name}"]
        files = [configs_folder() / folder / f"{phase}.yaml" for folder in dict.fromkeys(folders)]
        return [f"--config={_shorten(path)}" for path in files]

    def _paths(self, phase: str) -> list[str]:
        """Point at the cache where it is not where the YAML files look."""
        cache = cache_folder()
        if cache.expanduser() == DEFAULT_CACHE:
            return []
        paths = [
            f"--data.{split}={cache / 'data' / phase.replace('dpo', 'reward') / split}.jsonl"
            for split in ("train", "validation", "test")
        ]
        if phase == "sft":
            paths.append(f"--model.policy={cache / 'SmolLM2-135M-Instruct'}")
        if phase == "reward":
            prompts = cache / "data" / "ppo" / "validation.jsonl"
            paths.append(f"--model.normalizer.prompts={prompts}")
        return paths


def run_loop(scale: Scale, folder: Path, seed: int) -> Report:
    """Run every phase and measure the result.

    Args:
        scale: how long.
        folder: of the run; what an earlier demonstration left in it is replaced.
        seed: of every phase.

    Returns:
        The report.

    Raises:
        ConfigError: the folder holds something that no demonstration made.
    """
    _clear(folder)
    loop = _Loop(scale, folder, seed, choose_precision())
    before, after = _fine_tune(loop)
    _train_reward_models(loop)
    _optimize_policies(loop)
    reward_model = loop.measure(
        "reward model on held-out texts",
        measure_reward_model,
        loop.checkpoint("reward"),
        data_file("reward", "test"),
        scale.num_groups,
        loop.precision,
    )
    policies = loop.measure(
        "policies on held-out prompts",
        measure_policies,
        {name: loop.checkpoint(name) for name in ("sft", "ppo", "dpo")},
        loop.checkpoint("reward"),
        loop.checkpoint("judge"),
        data_file("ppo", "test"),
        scale.num_prompts,
        scale.num_best_of,
        seed,
        loop.precision,
    )
    curves = ppo_curves(read_metrics(folder / "ppo" / "metrics.csv"), folder / "ppo")
    measured = Measurements(
        perplexity_before=before,
        perplexity_after=after,
        accuracy=reward_model.accuracy,
        accuracy_wide=reward_model.accuracy_wide,
        calibration_error=reward_model.calibration_error,
        brier_score=reward_model.brier_score,
        validation_gain=policies.validation_gain,
        vader_gain=policies.vader_gain,
        kl=policies.kl["ppo"],
        kl_target=curves.kl_target or float("nan"),
        kl_coefficients=curves.kl_coefficient.values,
        distinct_2_sft=policies.distinct_2["sft"],
        distinct_2_ppo=policies.distinct_2["ppo"],
        dpo_win_rate=policies.dpo_win_rate,
        largest_log_ratio=max(
            row["train/ppo/first_log_ratio"]
            for row in read_metrics(folder / "ppo" / "metrics.csv")
            if "train/ppo/first_log_ratio" in row
        ),
    )
    return Report(
        title=f"lit_rlhf demo ({scale.name}, seed {seed})",
        figures=figures(measured, full=scale.name == "full"),
        curves=curves,
        calibration=reward_model.calibration,
        samples=sample_table(policies),
        phases=tuple(loop.phases),
        precision=loop.precision,
        seed=seed,
        commands=tuple(loop.commands),
        versions={"lit_rlhf": lit_rlhf.__version__, **{name: version(name) for name in VERSIONED}},
        notes=policies.notes(),
        standings=policies.standings,
    )


def _run_phase(phase: str, arguments: list[str]) -> dict[str, float]:
    metrics = run_phase(phase, arguments).trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def _clear(folder: Path) -> None:
    """Make the folder ready for a run, without ever removing a user's own runs."""
    is_ours = (folder / MARKER).exists()
    if not is_ours and folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} is not empty, and no demonstration made it: name another one with --output"
        )
    for name in PHASE_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _fine_tune(loop: _Loop) -> tuple[float, float]:
    """Run SFT; return the held-out perplexity before and after."""
    before = _perplexity(loop, "before")
    loop.run("SFT", "sft", "fit")
    return before, _perplexity(loop, "after", f"--model.policy={loop.checkpoint('sft')}")


def _perplexity(loop: _Loop, when: str, *options: str) -> float:
    limit = f"--trainer.limit_test_batches={loop.scale.num_perplexity_batches}"
    folder = f"sft-{when}"
    metrics = loop.run(f"perplexity {when}", "sft", "test", limit, *options, folder=folder)
    return metrics["test/sft/perplexity"]


def _train_reward_models(loop: _Loop) -> None:
    """Train the reward model, and the one that only judges: other texts, other raters."""
    backbone = f"--model.backbone={loop.checkpoint('sft')}"
    loop.run("reward model", "reward", "fit", backbone)
    files = [f"--data.{name}={data_file('judge', name)}" for name in ("train", "validation")]
    loop.run("validation reward model", "reward", "fit", backbone, *files, folder="judge")


def _optimize_policies(loop: _Loop) -> None:
    policy = f"--model.policy={loop.checkpoint('sft')}"
    reward_models = [
        f"--model.reward.init_args.model={loop.checkpoint('reward')}",
        f"--model.judges.validation.init_args.model={loop.checkpoint('judge')}",
    ]
    loop.run("PPO", "ppo", "fit", policy, *reward_models)
    loop.run("DPO", "dpo", "fit", policy)


def data_file(task: str, split: str) -> str:
    """Return the path of a data file of the demonstration."""
    return str(cache_folder() / "data" / task / f"{split}.jsonl")


def _shorten(path: Path) -> Path:
    """Name a path from here where it lies below, so that the commands can be read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
