"""The flywheel on the real model and the real ratings: two rounds with simulated raters.

Who judges what, so that no judge marks its own homework: the simulated raters are a gold reward
model of the `train` texts and the first ten raters of each; the gate's judge is of the `judge`
texts and the other raters; the final judge is VADER's rules, which saw neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.child_command import run_command
from lit_rlhf.demo.loop import COMMANDS, SCALES, command_words, model_of
from lit_rlhf.errors import ConfigError
from lit_rlhf.flywheel.report import write_report
from lit_rlhf.flywheel.rounds import run_rounds, with_precision
from lit_rlhf.flywheel.settings import FlywheelSettings, read_settings
from lit_rlhf.flywheel.steps import run_step
from lit_rlhf.markdown import say
from lit_rlhf.shipped import configs_folder

# What the rounds stand on, by place in COMMANDS: the SFT policy, the raters' gold reward model and
# the gate's judge; each with its training data by size: texts, and twice groups of 32 texts. Less
# than in the demonstration of the phases, as the rounds need the time.
MODELS = {
    "sft": (0, {"smoke": 96, "quick": 384}),
    "reward": (1, {"smoke": 4, "quick": 20}),
    "judge": (2, {"smoke": 4, "quick": 20}),
}


def run_flywheel(
    size: str, folder: Path, data: Path, seed: int, models: Path | None = None
) -> Path:
    """Train what the rounds stand on, run them, and leave their report.

    Everything that an earlier run of the same settings finished is skipped.

    Args:
        size: "smoke" or "quick".
        folder: of the run.
        data: of the demonstration's data files.
        seed: of everything.
        models: of a demonstration that ran before; None trains them.

    Returns:
        The path of `report.md`.

    Raises:
        ConfigError: `models` lacks one.
    """
    settings = with_precision(demo_settings(size, folder, data, seed, models=models))
    if models is None:
        prepare_models(size, folder, seed, settings.precision)
    else:
        _check_models(models)
    run_rounds(settings, say, run_command, waits=False)
    return write_report(settings)


def prepare_models(size: str, folder: Path, seed: int, precision: str) -> None:
    """Train SFT policy, gold reward model and the gate's judge, unless they are there."""
    for name, (place, limits) in MODELS.items():
        title, command = COMMANDS[place]
        words = command_words(command, SCALES[size], folder, seed, precision)
        words += [f"--data.limit_train={limits[size]}", "--ckpt_path=last"]
        _run_unfinished(folder, name, title, words)


def demo_settings(
    size: str,
    folder: Path,
    data: Path,
    seed: int,
    options: Sequence[str] = (),
    models: Path | None = None,
) -> FlywheelSettings:
    """Return the settings of the rounds.

    Args:
        size: "smoke" or "quick".
        folder: of the run.
        data: of the demonstration's data files.
        seed: of everything.
        options: further ones of the command line, which win.
        models: where SFT policy and reward models are; None is `folder`, by `prepare_models`.
    """
    models = models or folder
    gold = {"gold": model_of(models, "reward"), "ratings": data / "reward" / "validation.jsonl"}
    words = [
        f"--config={configs_folder() / 'flywheel.yaml'}",
        f"--config={configs_folder() / 'demo' / size / 'flywheel.yaml'}",
        f"--folder={folder}",
        f"--sft={model_of(models, 'sft')}",
        f"--prompts={data / 'ppo' / 'train.jsonl'}",
        f"--held_out={data / 'ppo' / 'test.jsonl'}",
        f"--gate.judge=reward:{model_of(models, 'judge')}",
        f"--gate.perplexity_data={data / 'sft' / 'test.jsonl'}",
        "--labeler=SimulatedRaters",
        *(f"--labeler.{name}={value}" for name, value in gold.items()),
        f"--seed={seed}",
        *options,
    ]
    return read_settings(words, "lit-rlhf demo --flywheel")


def _check_models(folder: Path) -> None:
    missing = [name for name in MODELS if not Path(model_of(folder, name)).is_dir()]
    if missing:
        raise ConfigError(
            f"--models {folder}: no {model_of(folder, missing[0])}; name the folder of a `lit-rlhf "
            "demo` that ran to its end, such as runs/demo"
        )


def _run_unfinished(folder: Path, name: str, title: str, words: list[str]) -> None:
    def make() -> None:
        say(f"{title}: lit-rlhf {' '.join(words)}")
        run_command(title, words)

    run_step(folder / f"{name}.json", Path(model_of(folder, name)), {"command": words}, make)
