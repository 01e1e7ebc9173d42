"""The figures of the report: reward model and policies on texts that nothing was trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor

from lit_rlhf.batches import ComparisonBatch, PromptBatch, SampleBatch
from lit_rlhf.data import PPODataModule, RewardDataModule
from lit_rlhf.demo.report_schema import (
    CalibrationBin,
    Curve,
    PPOCurves,
    Sample,
    SampleResponse,
    Standing,
)
from lit_rlhf.demo.standings import Contender, compare
from lit_rlhf.demo.vader import VaderReward
from lit_rlhf.evaluation.comparisons import OrderAccuracy, order_accuracy
from lit_rlhf.evaluation.diversity import distinct_n
from lit_rlhf.evaluation.statistics import Estimate, mean_difference, win_rate
from lit_rlhf.feedback import mean_ratings, parse_judged_group
from lit_rlhf.models import PolicyModel, freeze, load_causal_lm, load_reward_model, load_tokenizer
from lit_rlhf.modules.metrics import BrierScore, CalibrationError
from lit_rlhf.modules.precision import Precision, autocast
from lit_rlhf.objectives import kl_k1, kl_per_response
from lit_rlhf.overoptimization import best_of_n_kl
from lit_rlhf.prompts import prompt_text
from lit_rlhf.rewards import LearnedReward
from lit_rlhf.rollout import Sampling, TorchGenerator, collect_samples

Floats = npt.NDArray[np.float64]
MAX_NEW_TOKENS = 24  # as configs/ppo.yaml
BATCH_ROWS = 64
WIDE_GAP = 1.0  # on the raters' scale from -4 to +4
NUM_SHOWN = 12
BEST_OF = (4, 16)


@dataclass(frozen=True)
class RewardModelFigures:
    """How well a reward model agrees with people on held-out texts."""

    accuracy: OrderAccuracy
    accuracy_wide: OrderAccuracy
    calibration_error: float
    brier_score: float
    calibration: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class PolicyFigures:
    """The samples of each policy on the same held-out prompts, and what the judges say.

    Attributes:
        prompts: as texts.
        responses: of each policy.
        scores: policy -> judge -> `[n]`; judges are "reward", "validation" and "vader".
        kl: of each policy to the SFT policy, mean over prompts, nats per response.
        distinct_2: of each policy's responses.
        finished: share of responses that ended by EOS.
        best_of: `n` -> `[m]` validation reward of the SFT policy's best sample of `n` by the
            reward, on the first `m` prompts.
    """

    prompts: Sequence[str]
    responses: Mapping[str, Sequence[str]]
    scores: Mapping[str, Mapping[str, Floats]]
    kl: Mapping[str, float]
    distinct_2: Mapping[str, float]
    finished: Mapping[str, float]
    best_of: Mapping[int, Floats]

    @property
    def standings(self) -> tuple[Standing, ...]:
        """All policies against each other by the validation reward."""
        contenders = {
            name.upper(): Contender(self.kl[name], scores["validation"])
            for name, scores in self.scores.items()
        }
        for n, scores in self.best_of.items():
            contenders[f"SFT, best of {n}"] = Contender(best_of_n_kl(n), scores)
        return compare(contenders)

    @property
    def validation_gain(self) -> Estimate:
        """PPO minus SFT by the validation reward, in deviations of the SFT policy's scores."""
        before = self.scores["sft"]["validation"]
        deviation = before.std(ddof=1)
        return mean_difference(self.scores["ppo"]["validation"] / deviation, before / deviation)

    @property
    def vader_gain(self) -> Estimate:
        """PPO minus SFT by VADER's compound score."""
        return mean_difference(self.scores["ppo"]["vader"], self.scores["sft"]["vader"])

    @property
    def dpo_win_rate(self) -> Estimate:
        """DPO against SFT by the validation reward."""
        return win_rate(self.scores["dpo"]["validation"], self.scores["sft"]["validation"])

    def notes(self) -> tuple[str, ...]:
        """Return one sentence a policy with what the figures leave out."""
        return tuple(
            f"{name.upper()}: KL to SFT {self.kl[name]:.2f} nats per response; mean scores "
            + ", ".join(f"{judge} {values.mean():.2f}" for judge, values in scores.items())
            + f"; {100 * self.finished[name]:.0f} % of responses ended by EOS; "
            f"distinct-2 {self.distinct_2[name]:.3f}."
            for name, scores in self.scores.items()
        )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def measure_reward_model(
    checkpoint: str, groups_file: str, num_groups: int, precision: Precision
) -> RewardModelFigures:
    """Score held-out judged texts and compare with all of their raters.

    Args:
        checkpoint: of the reward model.
        groups_file: judged groups, one JSON object a line.
        num_groups: groups taken, from the first.
        precision: of the forwards.

    Returns:
        Order accuracy over all pairs of texts, calibration over the pairs inside groups.
    """
    data = RewardDataModule(checkpoint, test=groups_file, batch_size=1)
    data.setup("test")
    model = freeze(load_reward_model(checkpoint)).to(_device())
    calibration, brier = CalibrationError(), BrierScore()
    scores: list[Tensor] = []
    for index, batch in enumerate(data.test_dataloader()):
        if index == num_groups:
            break
        assert isinstance(batch, ComparisonBatch)
        with autocast(precision):
            group_scores = model(batch.rows.to(_device())).cpu()  # [N]
        scores.append(group_scores)
        predicted = (group_scores[batch.chosen] - group_scores[batch.rejected]).sigmoid()
        calibration.update(predicted, batch.probability, batch.weight)
        brier.update(predicted, batch.probability, batch.weight)
    lines = Path(groups_file).read_text(encoding="utf-8").splitlines()[:num_groups]
    ratings = [
        rating
        for number, line in enumerate(lines, 1)
        for rating in mean_ratings(parse_judged_group(json.loads(line), f"{groups_file}:{number}"))
        if rating is not None  # every text of the study was rated
    ]
    table = calibration.reliability_table()
    all_scores = torch.cat(scores).tolist()
    return RewardModelFigures(
        order_accuracy(all_scores, ratings),
        order_accuracy(all_scores, ratings, min_gap=WIDE_GAP),
        float(calibration.compute()),
        float(brier.compute()),
        tuple(
            CalibrationBin(*(float(value) for value in row))
            for row in zip(*table, strict=True)
            if row[2] > 0
        ),
    )


@torch.no_grad()
def measure_policies(
    policies: Mapping[str, str],
    reward_model: str,
    judge: str,
    prompts_file: str,
    num_prompts: int,
    num_best_of: int,
    seed: int,
    precision: Precision,
) -> PolicyFigures:
    """Let each policy respond to the same held-out prompts, each from the same random stream.

    Args:
        policies: name -> checkpoint; "sft" is the reference of the KL.
        reward_model: checkpoint of the reward that was optimised.
        judge: checkpoint of the validation reward model.
        prompts_file: held-out prompts.
        num_prompts: prompts taken, from the first.
        num_best_of: prompts, from the first, to which the SFT policy also responds `BEST_OF`
            times, for the best of them.
        seed: of the samples.
        precision: of the forwards.

    Returns:
        Samples, scores and figures of each policy.
    """
    prompts = _read_prompts(policies["sft"], prompts_file, num_prompts)
    few_prompts = _read_prompts(policies["sft"], prompts_file, num_best_of)
    samples = {name: _sample(path, prompts, seed, precision) for name, path in policies.items()}
    sources = {"reward": LearnedReward(reward_model), "validation": LearnedReward(judge)}
    scores: dict[str, dict[str, Floats]] = {}
    with autocast(precision):
        for name, (batch, _) in samples.items():
            judges = {**sources, "vader": VaderReward()}
            scores[name] = {
                judge_name: source(batch.prompts, batch.responses, batch).double().cpu().numpy()
                for judge_name, source in judges.items()
            }
    return PolicyFigures(
        prompts=[prompt_text(prompt) for prompt in prompts.prompts],
        responses={name: batch.responses for name, (batch, _) in samples.items()},
        scores=scores,
        kl=_kl_to_reference(policies["sft"], samples, precision),
        distinct_2={name: distinct_n(batch.responses) for name, (batch, _) in samples.items()},
        finished={
            name: float(batch.finished.float().mean()) for name, (batch, _) in samples.items()
        },
        best_of=_best_of(policies["sft"], few_prompts, sources, seed, precision),
    )


def _read_prompts(tokenizer: str, prompts_file: str, num_prompts: int) -> PromptBatch:
    data = PPODataModule(tokenizer, test=prompts_file, eval_batch_size=num_prompts)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert isinstance(batch, PromptBatch)
    return batch.to(_device())


def _sample(
    path: str, prompts: PromptBatch, seed: int, precision: Precision
) -> tuple[SampleBatch, Tensor]:
    """Return a policy's samples and their log-probabilities under it, `[B, L]`."""
    policy = _load_policy(path, precision)
    with autocast(precision):
        samples = _collect(policy, path, prompts, seed)
        return samples, _logprobs(policy, samples)


def _collect(
    policy: PolicyModel, path: str, prompts: PromptBatch, seed: int, samples_per_prompt: int = 1
) -> SampleBatch:
    return collect_samples(
        policy,
        TorchGenerator(max_rows=BATCH_ROWS),
        prompts,
        load_tokenizer(path),
        Sampling(max_new_tokens=MAX_NEW_TOKENS),
        samples_per_prompt=samples_per_prompt,
        seed=seed,
    )


def _load_policy(path: str, precision: Precision) -> PolicyModel:
    frozen_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
    policy = PolicyModel(freeze(load_causal_lm(path), frozen_dtype))
    return policy.to(_device())


def _logprobs(policy: PolicyModel, samples: SampleBatch) -> Tensor:
    rows = torch.arange(len(samples.finished), device=samples.finished.device)
    parts = [policy(samples.rows.select(places)).logprobs for places in rows.split(BATCH_ROWS)]
    return torch.cat(parts)


def _best_of(
    path: str,
    prompts: PromptBatch,
    sources: Mapping[str, LearnedReward],
    seed: int,
    precision: Precision,
) -> dict[int, Floats]:
    """Let the reward choose among a policy's samples; return what the validation reward says."""
    policy, most = _load_policy(path, precision), max(BEST_OF)
    with autocast(precision):
        # Another seed: none of them is the sample that it is compared with.
        samples = _collect(policy, path, prompts, seed + 1, most)
        proxy, validation = (
            sources[name](samples.prompts, samples.responses, samples)
            .double()
            .cpu()
            .numpy()
            .reshape(-1, most)
            for name in ("reward", "validation")
        )
    rows = np.arange(len(proxy))
    return {n: validation[rows, proxy[:, :n].argmax(1)] for n in BEST_OF}


def _kl_to_reference(
    reference: str, samples: Mapping[str, tuple[SampleBatch, Tensor]], precision: Precision
) -> dict[str, float]:
    """Estimate `KL(policy | reference)` by the mean log ratio over the policy's own samples."""
    model = _load_policy(reference, precision)
    kl = {"sft": 0.0}  # it is the reference
    for name in samples.keys() - kl.keys():
        batch, logprobs = samples[name]
        with autocast(precision):
            token_kl = kl_k1(logprobs, _logprobs(model, batch))
        kl[name] = float(kl_per_response(token_kl, batch.rows.response_mask).mean())
    return kl


def sample_table(policies: PolicyFigures) -> tuple[Sample, ...]:
    """Return the first prompts with each policy's response and scores."""
    return tuple(
        Sample(
            prompt,
            tuple(
                SampleResponse(
                    name.upper(),
                    policies.responses[name][index],
                    {judge: float(values[index]) for judge, values in judges.items()},
                )
                for name, judges in policies.scores.items()
            ),
        )
        for index, prompt in enumerate(policies.prompts[:NUM_SHOWN])
    )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a CSVLogger's file: one dictionary a row, without the empty cells."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(stream)
        ]


def ppo_curves(rows: Sequence[Mapping[str, float]], folder: Path) -> PPOCurves:
    """Order PPO's metrics by iteration, counted from 1.

    Args:
        rows: of `metrics.csv`, logged at every iteration.
        folder: of the run, whose `config.yaml` names the KL target.
    """
    training = [row for row in rows if "train/ppo/kl" in row]
    iterations = {row["step"]: number for number, row in enumerate(training, 1)}

    def curve(name: str) -> Curve:
        points = [(row["step"], row[name]) for row in rows if name in row]
        return Curve(
            tuple(iterations[step] for step, _ in points), tuple(value for _, value in points)
        )

    return PPOCurves(
        reward=curve("train/ppo/reward"),
        validation_reward=curve("val/ppo/validation"),
        vader=curve("val/ppo/vader"),
        kl=curve("train/ppo/kl"),
        kl_coefficient=curve("train/ppo/kl_coef"),
        kl_target=_kl_target(folder / "config.yaml"),
    )


def _kl_target(config_file: Path) -> float | None:
    """Find the controller's target in the configuration that the run saved."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    for callback in config["trainer"]["callbacks"]:
        controller = callback.get("init_args", {}).get("controller")
        if controller is not None:
            target = controller["init_args"].get("target")
            return None if target is None else float(target)
    return None
