"""How a round calls its phases: the words behind `lit-rlhf` of each."""

from __future__ import annotations

from pathlib import Path

from lit_rlhf.flywheel.settings import FlywheelSettings


def phase_words(
    settings: FlywheelSettings, folder: Path, policy: str, seed: int
) -> dict[str, list[str]]:
    """Return the words that make each phase leave `NAME/model`, by its name in the settings.

    Args:
        settings: of the run.
        folder: of the round.
        policy: the last promoted one.
        seed: of the round.
    """
    words = {"reward": _reward(settings, folder), "policy": _policy(settings, folder, policy, seed)}
    if settings.refresh is not None:
        words["refresh"] = [
            *("sft", "fit", *settings.refresh.words()),
            f"--model.policy={settings.refresh.base}",
            f"--data.train={demonstrations(folder)}",
        ]
    return {
        name: [
            *own,
            "--data.validation=null",
            f"--trainer.logger.init_args.save_dir={folder}",
            f"--trainer.logger.init_args.name={name}",
            f"--seed_everything={seed}",
            f"--data.seed={seed}",
            f"--trainer.precision={settings.precision}",
            "--ckpt_path=last",  # of a run that was killed; at first there is none
        ]
        for name, own in words.items()
    }


def policy_start(settings: FlywheelSettings, folder: Path, policy: str) -> str:
    """Return the model that a round's policy starts from; arguments as of `phase_words`."""
    if settings.policy.start == "continue":
        return policy
    return settings.sft if settings.refresh is None else str(folder / "refresh" / "model")


def training_data(folder: Path) -> Path:
    """Return where a round keeps the judgments that it trains on."""
    return folder / "judged" / "training.jsonl"


def reward_model(folder: Path) -> Path:
    """Return where a round leaves its reward model."""
    return folder / "reward" / "model"


def demonstrations(folder: Path) -> Path:
    """Return what a round fine-tunes again on, where `refresh` is set."""
    return folder / "demonstrations.jsonl"


def _reward(settings: FlywheelSettings, folder: Path) -> list[str]:
    return [
        *("reward", "fit", *settings.reward.words()),
        f"--model.backbone={settings.sft}",
        f"--data.train={training_data(folder)}",
        "--data.empty_responses=keep",  # a policy may end at once, and people judge that, too
        f"--model.normalizer.prompts={settings.prompts}",
        f"--model.normalizer.max_new_tokens={settings.samples.max_new_tokens}",
    ]


def _policy(settings: FlywheelSettings, folder: Path, policy: str, seed: int) -> list[str]:
    config, source = settings.policy, policy_start(settings, folder, policy)
    words = [config.phase, "fit", *config.words(), f"--model.policy={source}"]
    if config.phase != "ppo":
        return [*words, f"--data.train={training_data(folder)}", "--data.empty_responses=keep"]
    return [
        *words,
        f"--model.reward.init_args.model={reward_model(folder)}",
        f"--data.train={settings.prompts}",
        f"--model.seed={seed}",
        *([f"--model.reference={settings.sft}"] if source != settings.sft else []),
    ]
