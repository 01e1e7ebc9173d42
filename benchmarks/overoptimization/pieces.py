"""The pieces of the proof: each leaves a file, and is skipped where that file is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import nn

from benchmarks.overoptimization.files import write_whole
from benchmarks.overoptimization.looks import LOOKS_FILE, score, score_looks
from benchmarks.overoptimization.processes import CleanProcesses
from benchmarks.overoptimization.scale import PPORun, Scale
from lit_rlhf.batches import PromptBatch
from lit_rlhf.data import PPODataModule
from lit_rlhf.models import PolicyModel, freeze, load_causal_lm, load_tokenizer
from lit_rlhf.modules.precision import choose_precision
from lit_rlhf.objectives.kl_control import AdaptiveKL
from lit_rlhf.phase_cli import run_phase
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples
from lit_rlhf.shipped import configs_folder

Floats = npt.NDArray[np.float64]
GROUP_SIZE = 32  # texts of a judged group, as `lit_rlhf.demo.datasets` writes them


@dataclass
class Proof:
    """One run of the proof.

    Attributes:
        scale: the grid.
        folder: of models and runs; what is there is not made again.
        base: Hugging Face folder of the model that everything starts from.
        data: folder of the data files, see `lit_rlhf.demo.datasets`, and `gold/train.jsonl`.
        results: folder of what was measured, small, from which the page is made. What is there is
            not measured again, and no model is trained for it.
    """

    scale: Scale
    folder: Path
    base: Path
    data: Path
    results: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results.mkdir(parents=True, exist_ok=True)
        self._processes = CleanProcesses(["benchmarks.overoptimization.pieces"])

    # Models ----------------------------------------------------------------------------------

    def model(self, name: str) -> Path:
        """Return the folder of a model, trained now if it is not there.

        Args:
            name: "sft", "gold", "judge-N", or that of `proxy_name`.
        """
        if name == "sft":
            texts = {"data.limit_train": self.scale.sft_texts}
            return self._fit("sft", "sft", {"model.policy": self.base, **texts})
        if name == "gold":
            return self._fit_reward("gold", "gold", self.scale.gold_groups, 1, raters=1.0)
        kind, *numbers = name.split("-")
        if kind == "judge":
            return self._fit_reward(name, "judge", self.scale.judge_groups, int(numbers[0]))
        size, member, *depth = map(int, numbers)
        trunk = self._trunk(*depth) if depth else None
        return self._fit_reward(name, "reward", size / GROUP_SIZE, member, trunk=trunk)

    def _trunk(self, depth: int) -> Path:
        """Return the fine-tuned policy's first layers: what a small reward model starts from."""
        folder = self.folder / f"trunk-{depth}"
        self._once(folder, folder.name, cut_layers, self.model("sft"), depth, folder)
        return folder

    def _fit_reward(
        self,
        name: str,
        task: str,
        num_groups: float | None,
        member: int,
        *,
        raters: float = 0.5,
        trunk: Path | None = None,
    ) -> Path:
        """Train a reward model on so many groups; members differ in texts, raters and seed."""
        train = self.data / task / "train.jsonl"
        total = len(train.read_text(encoding="utf-8").splitlines())
        share = 1.0 if num_groups is None else min(1.0, num_groups / total)
        prompts = self.data / "ppo" / "validation.jsonl"
        options = {
            "model.backbone": trunk or self.model("sft"),
            "model.normalizer.policy": self.model("sft"),
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
        return self._fit("reward", name, options, seed=member)

    def _fit(
        self,
        phase: str,
        name: str,
        options: dict[str, object],
        *,
        seed: int = 1,
        config: Path | None = None,
    ) -> Path:
        """Run a phase, unless its model is there, and return the model's folder."""
        model = self.folder / name / "model"
        paths = {f"data.{split}": self.data / phase / f"{split}.jsonl" for split in _SPLITS}
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
        shipped = [configs_folder() / name / f"{phase}.yaml" for name in ("", "demo/quick")]
        configs = [*shipped, *([] if config is None else [config])]
        words = [f"--config={file}" for file in configs]
        words += [f"--{key}={value}" for key, value in settings.items()]
        self._once(model, name, fit, phase, words)
        return model

    # Best of n ---------------------------------------------------------------------------------

    def best_of_n(self) -> None:
        """Draw samples once, let every model score them, keep the scores."""
        if self.best_of_n_file.exists():
            return
        folder = self.folder / "best_of_n"
        samples, scale = folder / "samples.json", self.scale
        sizes = (scale.bon_prompts, scale.bon_samples, scale.max_new_tokens)
        prompts, policy = self.data / "ppo" / "test.jsonl", self.model("sft")
        self._once(samples, "best-of-n samples", draw_samples, policy, prompts, sizes, samples)
        scores = {}
        for name in [*(proxy_name(*model) for model in scale.models()), "gold"]:
            file, model = folder / f"{name}.npy", self.model(name)
            self._once(file, f"best-of-n by {name}", score_samples, model, samples, file)
            scores[name] = np.load(file).round(5).tolist()
        write_whole(self.best_of_n_file, json.dumps(scores).encode())

    @property
    def best_of_n_file(self) -> Path:
        """Where the scores of the samples are kept: model -> `[P, N]`."""
        return self.results / "best_of_n.json"

    # PPO ---------------------------------------------------------------------------------------

    def run_ppo(self, run: PPORun) -> None:
        """Run PPO, let gold and the judges score its validations, and keep what they say."""
        if self.values_file(run).exists():
            return
        members = [run.seed] if run.combine is None else range(1, 1 + self.scale.num_members)
        proxies = [
            self._learned(proxy_name(run.num_texts, member, run.depth)) for member in members
        ]
        reward = proxies[0] if run.combine is None else _ensemble(proxies, run.combine)
        model = {
            "reward": reward,
            "judges": {"vader": {"class_path": "lit_rlhf.demo.vader.VaderReward"}},
        }
        # Of the demonstration's settings, a horizon would have no effect.
        kl = {"target": None, "coefficient": run.kl_coef, "horizon": AdaptiveKL().horizon}
        config = self.folder / f"{run.name}.yaml"
        config.write_text(
            yaml.safe_dump({"trainer": {"callbacks": _callbacks()}, "kl": kl, "model": model}),
            encoding="utf-8",
        )
        options: dict[str, object] = {
            "model.policy": self.model("sft"),
            "model.seed": run.seed * 1000,
            **self.scale.settings(run),
        }
        self._fit("ppo", run.name, options, seed=run.seed, config=config)
        looks = self.folder / run.name / LOOKS_FILE
        models = {name: self.model(name) for name in ("gold", *self.scale.judges())}
        file = self.values_file(run)
        self._once(file, f"scores of {run.name}", score_looks, looks, models, file)

    def values_file(self, run: PPORun) -> Path:
        """Return where a run's validations are kept, prompt by prompt."""
        return self.results / f"{run.name}.jsonl"

    def _learned(self, name: str) -> dict[str, object]:
        path = "lit_rlhf.rewards.LearnedReward"
        return {"class_path": path, "init_args": {"model": str(self.model(name))}}

    @property
    def minutes_file(self) -> Path:
        """Where the minutes of every step are kept."""
        return self.results / "minutes.jsonl"

    def _once(self, file: Path, name: str, function: Callable[..., None], *args: object) -> None:
        """Call a function in a clean process, unless the file that it leaves is there."""
        if file.exists():
            return
        start = time.monotonic()
        self._processes.run(name, function, *args)
        minutes = (time.monotonic() - start) / 60
        with self.minutes_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"piece": name, "minutes": round(minutes, 2)}) + "\n")
        sys.stdout.write(f"{name}: {minutes:.1f} min\n")
        sys.stdout.flush()


_SPLITS = ("train", "validation", "test")


def proxy_name(num_texts: int, member: int, depth: int | None = None) -> str:
    """Return the name of a reward model; `depth` is of its trunk in layers, None for all."""
    return f"reward-{num_texts}-{member}" + ("" if depth is None else f"-{depth}")


def fit(phase: str, options: list[str]) -> None:
    """Run a phase; what its command line returns is of no use outside its process."""
    run_phase(phase, ["fit", *options])


def cut_layers(policy: Path, depth: int, folder: Path) -> None:
    """Write a policy's first layers, its embedding and its last norm as a Hugging Face folder.

    Args:
        policy: its folder.
        depth: number of layers kept.
        folder: to write.
    """
    model = load_causal_lm(str(policy))
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    model.set_submodule("model.layers", layers[:depth])
    model.config.num_hidden_layers = depth
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    load_tokenizer(str(policy)).save_pretrained(partial)
    partial.replace(folder)


def draw_samples(policy: Path, prompts: Path, sizes: tuple[int, int, int], file: Path) -> None:
    """Draw samples of the first prompts and keep them as texts.

    Args:
        policy: its folder.
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
    write_whole(file, json.dumps({**kept, "shape": [num_prompts, num_samples]}).encode())


def score_samples(model: Path, samples: Path, file: Path) -> None:
    """Let a reward model score the samples: `[P, N]` in an `.npy` file."""
    kept = json.loads(samples.read_text(encoding="utf-8"))
    scores = score(model, kept["prompts"], kept["responses"], choose_precision())
    partial = file.with_suffix(".partial.npy")
    np.save(partial, scores.double().numpy().reshape(kept["shape"]))
    partial.replace(file)


def _ensemble(members: list[dict[str, object]], combine: str) -> dict[str, object]:
    arguments = {"combine": combine, "members": members}
    return {"class_path": "lit_rlhf.rewards.EnsembleReward", "init_args": arguments}


def _callbacks() -> list[dict[str, object]]:
    return [{"class_path": "benchmarks.overoptimization.looks.KeepLooks"}]
