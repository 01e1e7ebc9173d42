"""The pieces of the proof: each leaves a file, and is skipped where that file is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import yaml

from benchmarks.overoptimization.scale import PPORun, Scale
from lit_rlhf.batches import PromptBatch
from lit_rlhf.data import PPODataModule
from lit_rlhf.demo.loop import configs_folder
from lit_rlhf.demo.processes import CleanProcesses
from lit_rlhf.models import PolicyModel, freeze, load_causal_lm, load_tokenizer
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.phase_cli import run_phase
from lit_rlhf.rewards import LearnedReward
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples

Floats = npt.NDArray[np.float64]
GROUP_SIZE = 32  # texts of a judged group, as `lit_rlhf.demo.datasets` writes them


@dataclass
class Proof:
    """One run of the proof.

    Attributes:
        scale: the grid.
        folder: of the run; what is there is not made again.
        base: Hugging Face folder of the model that everything starts from.
        data: folder of the data files, see `lit_rlhf.demo.datasets`, and `gold/train.jsonl`.
    """

    scale: Scale
    folder: Path
    base: Path
    data: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._processes = CleanProcesses(["benchmarks.overoptimization.pieces"])

    # Models ----------------------------------------------------------------------------------

    def train_models(self) -> None:
        """Train policy, proxies, gold and the two validation reward models."""
        self._fit(
            "sft", "sft", {"model.policy": self.base, "data.limit_train": self.scale.sft_texts}
        )
        for size, member in self.scale.models():
            self._fit_reward(proxy_name(size, member), "reward", size / GROUP_SIZE, member)
        self._fit_reward("gold", "gold", self.scale.gold_groups, 1, raters=1.0)
        for member in (1, 2):
            self._fit_reward(f"judge-{member}", "judge", self.scale.judge_groups, member)

    def checkpoint(self, name: str) -> Path:
        """Return where a model is."""
        kind = "policy" if name == "sft" or name.startswith("ppo") else "reward"
        return self.folder / name / "checkpoints" / f"{kind}.ckpt"

    def _fit_reward(
        self, name: str, task: str, num_groups: float | None, member: int, *, raters: float = 0.5
    ) -> None:
        """Train a reward model on so many groups; members differ in texts, raters and seed."""
        train = self.data / task / "train.jsonl"
        total = len(train.read_text(encoding="utf-8").splitlines())
        share = 1.0 if num_groups is None else min(1.0, num_groups / total)
        prompts = self.data / "ppo" / "validation.jsonl"
        options = {
            "model.policy": self.checkpoint("sft"),
            "model.normalizer.prompts": prompts,
            "model.normalizer.max_new_tokens": self.scale.max_new_tokens,
            "model.normalizer.num_samples": min(128, 4 * self.scale.num_prompts),
            "data.train": train,
            "data.limit_train": "null",
            "data.limit_validation": 2,
            "data.subset.rows": share,
            "data.subset.raters": raters,
            "data.subset.seed": member,
        }
        self._fit("reward", name, options, seed=member)

    def _fit(self, phase: str, name: str, options: dict[str, object], *, seed: int = 1) -> None:
        task = {"sft": "sft", "reward": "reward", "ppo": "ppo"}[phase]
        paths = {f"data.{split}": self.data / task / f"{split}.jsonl" for split in _SPLITS}
        settings = {
            "seed_everything": seed,
            "data.seed": seed,
            "trainer.precision": choose_precision(),
            "trainer.enable_progress_bar": False,
            "trainer.logger.init_args.save_dir": self.folder,
            "trainer.logger.init_args.name": name,
            **paths,
            **options,
        }
        words = [f"--{key}={value}" for key, value in settings.items()]
        config = configs_folder() / f"{phase}.yaml"
        files = [f"--config={config}", *(f"--config={file}" for file in self._extra(name))]
        self._once(self.checkpoint(name), name, _run, phase, ["fit", *files, *words])

    def _extra(self, name: str) -> list[Path]:
        file = self.folder / f"{name}.yaml"
        return [file] if file.exists() else []

    # Best of n ---------------------------------------------------------------------------------

    def best_of_n(self) -> dict[str, Floats]:
        """Draw samples once, and let every model score them: name -> `[P, N]`."""
        samples = self.folder / "best_of_n" / "samples.json"
        scale = self.scale
        self._once(
            samples,
            "best-of-n samples",
            draw_samples,
            self.checkpoint("sft"),
            self.data / "ppo" / "test.jsonl",
            (scale.bon_prompts, scale.bon_samples, scale.max_new_tokens),
            samples,
        )
        names = [proxy_name(*model) for model in scale.models()] + ["gold", "judge-1", "judge-2"]
        scores = {}
        for name in names:
            file = samples.with_name(f"{name}.npy")
            self._once(
                file, f"best-of-n by {name}", score_samples, self.checkpoint(name), samples, file
            )
            scores[name] = np.load(file)
        return scores

    # PPO ---------------------------------------------------------------------------------------

    def ppo_runs(self) -> list[PPORun]:
        """Run the grid's PPO runs."""
        for run in self.scale.ppo:
            self.run_ppo(run)
        return list(self.scale.ppo)

    def alarm_runs(self) -> dict[str, list[PPORun]]:
        """Run what should diverge and what should not, by seed."""
        seeds = range(1, 1 + self.scale.alarm_runs)
        kinds = {"diverging": self.scale.diverging, "healthy": self.scale.healthy}
        runs = {kind: [replace(run, seed=s) for s in seeds] for kind, run in kinds.items()}
        for run in [*runs["diverging"], *runs["healthy"]]:
            self.run_ppo(run)
        return runs

    def run_ppo(self, run: PPORun) -> None:
        """Run PPO with gold and the validation reward looking on."""
        members = range(1, 1 + (1 if run.combine is None else self.scale.num_members))
        proxies = [self._learned(proxy_name(run.num_texts, member)) for member in members]
        judges = [self._learned(f"judge-{member}") for member in (1, 2)]
        reward = proxies[0] if run.combine is None else _ensemble(proxies, run.combine)
        model = {
            "reward": reward,
            "judges": {"validation": _ensemble(judges, "mean"), "gold": self._learned("gold")},
        }
        (self.folder / f"{run.name}.yaml").write_text(
            yaml.safe_dump({"trainer": {"callbacks": _callbacks(run.kl_coef)}, "model": model}),
            encoding="utf-8",
        )
        scale = self.scale
        options: dict[str, object] = {
            "model.policy": self.checkpoint("sft"),
            "model.seed": run.seed * 1000,
            "model.sampling.max_new_tokens": scale.max_new_tokens,
            "trainer.limit_train_batches": scale.iterations,
            "trainer.val_check_interval": scale.look_every,
            "data.batch_size": scale.batch_size,
            "data.eval_batch_size": scale.num_prompts,
            "data.limit_validation": scale.num_prompts,
        }
        self._fit("ppo", run.name, options, seed=run.seed)

    def values_file(self, run: PPORun) -> Path:
        """Return where a run's validations are, prompt by prompt."""
        return self.folder / run.name / "overoptimization" / "values.jsonl"

    def _learned(self, name: str) -> dict[str, object]:
        path = "lit_rlhf.rewards.LearnedReward"
        return {"class_path": path, "init_args": {"model": str(self.checkpoint(name))}}

    def _once(self, file: Path, name: str, function: Callable[..., None], *args: object) -> None:
        """Call a function in a clean process, unless the file that it leaves is there."""
        if file.exists():
            return
        start = time.monotonic()
        self._processes.run(name, function, *args)
        minutes = (time.monotonic() - start) / 60
        with (self.folder / "minutes.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"piece": name, "minutes": round(minutes, 2)}) + "\n")
        sys.stdout.write(f"{name}: {minutes:.1f} min\n")
        sys.stdout.flush()


_SPLITS = ("train", "validation", "test")


def proxy_name(num_texts: int, member: int) -> str:
    """Return the name of a reward model."""
    return f"reward-{num_texts}-{member}"


def draw_samples(policy: Path, prompts: Path, sizes: tuple[int, int, int], file: Path) -> None:
    """Draw samples of the first prompts and keep them as texts.

    Args:
        policy: checkpoint.
        prompts: data file.
        sizes: prompts, samples a prompt, most tokens of a response.
        file: `{"prompts": [P * N texts], "responses": [P * N], "shape": [P, N]}`.
    """
    num_prompts, num_samples, max_new_tokens = sizes
    data = PPODataModule(str(policy), test=str(prompts), eval_batch_size=num_prompts)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch, PromptBatch)
    model = PolicyModel(freeze(load_causal_lm(str(policy))))
    with torch.no_grad():
        samples = collect_samples(
            model,
            TorchGenerator(),
            batch,
            load_tokenizer(str(policy)),
            Sampling(max_new_tokens=max_new_tokens),
            samples_per_prompt=num_samples,
            seed=1,
        )
    kept = {"prompts": list(samples.prompts), "responses": list(samples.responses)}
    _write(file, json.dumps({**kept, "shape": [num_prompts, num_samples]}).encode())


def score_samples(model: Path, samples: Path, file: Path) -> None:
    """Let a reward model score the samples: `[P, N]` in an `.npy` file."""
    kept = json.loads(samples.read_text(encoding="utf-8"))
    source = LearnedReward(str(model))
    scores = source.score_texts(kept["prompts"], kept["responses"], torch.device("cpu"))
    partial = file.with_suffix(".partial.npy")
    np.save(partial, scores.double().numpy().reshape(kept["shape"]))
    partial.replace(file)


def _write(file: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)


def _run(phase: str, arguments: list[str]) -> None:
    run_phase(phase, arguments)


def _ensemble(members: list[dict[str, object]], combine: str) -> dict[str, object]:
    arguments = {"combine": combine, "members": members}
    return {"class_path": "lit_rlhf.rewards.EnsembleReward", "init_args": arguments}


def _callbacks(kl_coef: float) -> list[dict[str, object]]:
    fixed = {
        "class_path": "lit_rlhf.objectives.FixedKL",
        "init_args": {"coefficient": kl_coef},
    }
    checkpoint = {
        "filename": "policy",
        "enable_version_counter": False,
        "save_on_train_epoch_end": True,
        "save_weights_only": True,
    }
    return [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": checkpoint,
        },
        {
            "class_path": "lit_rlhf.callbacks.AdaptiveKLCallback",
            "init_args": {"controller": fixed},
        },
        {"class_path": "lit_rlhf.callbacks.OveroptimizationMonitor"},
        {"class_path": "lit_rlhf.callbacks.SampleTableCallback"},
    ]
