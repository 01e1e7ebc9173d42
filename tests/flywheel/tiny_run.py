"""A run of the flywheel on tiny models, with real phases or with stand-ins for them."""

import json
import shutil
from pathlib import Path

import torch
import yaml

from lit_rlhf.evaluation.bootstrap import Estimate
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.flywheel.settings import read_settings
from lit_rlhf.models import ScalarModel
from lit_rlhf.models.handover import load_trunk
from lit_rlhf.rewards import LearnedReward
from tests.models.examples import save_policy, write_reward_model
from tests.support.phases import RESPONSES, prompts, write_rows

PHASE = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lit_rlhf.callbacks.ResumableCSVLogger",
            "init_args": {"save_dir": "runs", "name": "run", "version": ""},
        },
    },
    "last_checkpoint": {"every_n_minutes": None, "every_n_batches": 2},
}
REWARD = {
    "model": {
        "optimizer": {"learning_rate": 0.01},
        "normalizer": {"prompts": "prompts.jsonl", "num_samples": 8, "max_new_tokens": 4},
    },
    "data": {"batch_size": 2},
}
PPO = {
    "kl": {"target": 2.0, "coefficient": 0.2, "horizon": 16.0},
    "model": {
        "reward": {"class_path": "lit_rlhf.rewards.LearnedReward", "init_args": {"model": "."}},
        "optimizer": {"learning_rate": 0.01},
        "update": {"num_epochs": 1, "num_minibatches": 2},
        "sampling": {"max_new_tokens": 6},
    },
    "data": {"batch_size": 4},
}


def rated_by(gold: Path) -> list[dict]:
    """Return texts that three raters rate as a model scores them, one point off either way."""
    scores = LearnedReward(str(gold), normalize=False)(["say it"] * len(RESPONSES), RESPONSES)
    means = (1.5 * (scores - scores.mean()) / scores.std()).tolist()
    ratings = [[mean + off for mean in means] for off in (-1, 0, 1)]
    return [{"prompt": "say it", "responses": RESPONSES, "ratings": ratings}]


def write_inputs(folder: Path, **changes) -> list[str]:
    """Write models, data and YAML files; return the words of the command."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = save_policy(folder / "sft", eos_token_id=list(range(1, 24)))
    for seed, name in ((3, "gold"), (4, "gate")):
        torch.manual_seed(seed)
        write_reward_model(folder / name, ScalarModel(load_trunk(str(policy))), policy)
    write_rows(folder / "prompts.jsonl", prompts(12))
    write_rows(folder / "held-out.jsonl", [{"prompt": f"say {n}"} for n in range(6)])
    write_rows(folder / "ratings.jsonl", rated_by(folder / "gold"))
    for name, own in (("reward", REWARD), ("ppo", PPO)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**PHASE, **own}))
    settings = {
        "sft": "sft",
        "prompts": "prompts.jsonl",
        "held_out": "held-out.jsonl",
        "folder": "run",
        "rounds": 2,
        "precision": "32-true",
        "samples": {"num_prompts": 6, "num_responses": 3, "max_new_tokens": 6},
        "choice": {
            "num_tasks": 8,
            "random_share": 0.25,
            "heads": {"num_heads": 3, "width": 8, "num_steps": 5},
        },
        "labeler": {
            "class_path": "SimulatedRaters",
            "init_args": {"gold": "gold", "ratings": "ratings.jsonl"},
        },
        "reward": {"phase": "reward", "configs": ["reward.yaml"]},
        "policy": {"phase": "ppo", "configs": ["ppo.yaml"]},
        "gate": {"judge": "reward:gate", "num_prompts": 6, "max_length_ratio": 50},
    }
    (folder / "flywheel.yaml").write_text(yaml.safe_dump({**settings, **changes}))
    return ["--config", "flywheel.yaml"]


def tiny_settings(folder: Path, monkeypatch, **changes):
    """Return the settings of a run in a folder, which becomes the working one."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return read_settings(write_inputs(folder, **changes), "test")


class StandIns:
    """Does what the phases would, at once: copies models, and writes the figures it is told.

    Attributes:
        gain: of the new policy, low end of its interval.
        commands: what was asked for, each with its title.
    """

    def __init__(self, gain: float = 0.1):
        self.gain = gain
        self.commands = []

    def __call__(self, title, words):
        self.commands.append((title, list(words)))
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        if words[0] == "evaluate":
            self._write_figures(Path(options["output"]), words)
            return
        folder = Path(options["trainer.logger.init_args.save_dir"])
        folder = folder / options["trainer.logger.init_args.name"] / "model"
        shutil.copytree("gold" if words[0] == "reward" else "sft", folder)
        (folder.parent / "checkpoints").mkdir()
        # Another model in every round, and the same again in a repeated one.
        (folder / "about.json").write_text(json.dumps(options["seed_everything"]))

    def _write_figures(self, folder, words):
        opponents = [name for name in ("sft", "promoted") if f"{name}=" in " ".join(words)]
        judges = [word.split("=")[1] for word in words if word.startswith("--judge")]
        gain = Estimate(self.gain + 0.1, self.gain, self.gain + 0.2, 6)
        figures = [
            Figure("", "new", "score_difference", gain, "", opponent, judge)
            for opponent in opponents
            for judge in judges
        ]
        figures += [Figure("", "new", "score", gain, judge=judge) for judge in judges]
        figures.append(Figure("", "new", "kl", Estimate(1.5, 1, 2, 6)))
        for name in ("new", "sft"):
            figures.append(Figure("", name, "length", Estimate(5, 4, 6, 6)))
        folder.mkdir(parents=True, exist_ok=True)
        content = {"figures": [figure.as_json() for figure in figures]}
        (folder / "report.json").write_text(json.dumps(content))
