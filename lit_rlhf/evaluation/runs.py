"""From the options of `lit-rlhf evaluate` to a report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rlhf.cache import digest_file
from lit_rlhf.data.sources import open_records
from lit_rlhf.errors import ConfigError
from lit_rlhf.evaluation.bootstrap import Floats, finite_or_none
from lit_rlhf.evaluation.figures import Figure, PageRow, Report
from lit_rlhf.evaluation.options import (
    Named,
    read_judges,
    read_named,
    read_rewards,
)
from lit_rlhf.evaluation.pictures import draw_best_of_n, draw_reliability, draw_win_rates
from lit_rlhf.evaluation.policies import RESPONSES, Judgments, judge_policies, policy_figures
from lit_rlhf.evaluation.responses import (
    Responses,
    SourcedPrompt,
    read_prompts,
    read_responses,
)
from lit_rlhf.evaluation.reward_models import (
    JudgedResponses,
    read_judged,
    reward_figures,
    score_judged,
)
from lit_rlhf.evaluation.sampling import SamplingConfig, perplexity, sample_responses
from lit_rlhf.evaluation.sampling_options import sampling_config
from lit_rlhf.models.handover import check_kind
from lit_rlhf.models.lineage import Lineage, describe_origin
from lit_rlhf.modules.precision import autocast
from lit_rlhf.prompts import prompt_text, response_text
from lit_rlhf.rewards import LearnedReward, RewardSource, origins_of
from lit_rlhf.row_files import is_row_file

# Options that say where results go, and nothing of what they are.
_NOT_SETTINGS = ("output", "page_samples", "wandb", "config", "policies", "models")


def evaluate_policies(options: argparse.Namespace, folder: Path) -> Report:
    """Sample or read responses, have them judged, and put the report together.

    Args:
        options: of `lit-rlhf evaluate policies`.
        folder: for the pictures.

    Raises:
        ConfigError: an option is wrong, or there are no prompts.
        DataError: a file of responses does not have all prompts.
    """
    named = read_named(options.policies, "policies")
    rewards, pair_judges = read_judges(options.judge, options)
    settings = sampling_config(options)
    samples = _samples_of(options.samples, named)
    for _, source in named:
        if not is_row_file(source):
            check_kind(source, "policy")
    prompts = read_prompts(_prompt_source(named, options.prompts), options.num_prompts)
    policies = []
    for name, source in named:
        if is_row_file(source):
            policies.append(read_responses(name, source, prompts))
        else:
            own = replace(settings, samples=samples[name])
            policies.append(sample_responses(name, source, prompts, own, options.reference))
    with autocast(options.precision):
        judgments = judge_policies(policies, prompts, rewards, pair_judges)
    figures = policy_figures(policies, judgments, tie_margin=options.tie_margin)
    figures += _perplexities(named, options, settings)
    pictures = {}
    if draw_win_rates(figures, folder / "win_rates.png"):
        pictures["Win rates, with 95 % intervals"] = "win_rates.png"
    if draw_best_of_n(figures, folder / "best_of_n.png"):
        pictures["Best of n"] = "best_of_n.png"
    models = {policy.name: policy.source for policy in named}
    models |= origins_of({f"judge {name}": reward for name, reward in rewards.items()})
    origins, lineage = _origins(models)
    return Report(
        title=f"Policies on {len(prompts)} prompts",
        settings={**_settings(options), "models": origins},
        figures=figures,
        sides=[policy.name for policy in policies],
        judges={name: name in judgments.verdicts for name in judgments.judges},
        rows=_policy_rows(policies, prompts, judgments),
        pictures=pictures,
        lineage=lineage,
        notes=_cut_notes(rewards, options.max_length),
    )


def evaluate_rewards(options: argparse.Namespace, folder: Path) -> Report:
    """Score judged texts by each model, and put the report together.

    Args:
        options: of `lit-rlhf evaluate rewards`.
        folder: for the pictures.

    Raises:
        ConfigError: an option is wrong.
        DataError: a row is not as expected.
    """
    rewards = read_rewards(options.models, options)
    records = open_records(options.data, split="test")
    rows = records.read(records.table[: options.num_rows])
    judged = read_judged(rows, options.domain_field)
    with autocast(options.precision):
        scores = score_judged(judged, rewards)
    figures, tables = reward_figures(judged, scores, rating_gap=options.rating_gap)
    pictures = {}
    if draw_reliability(tables, folder / "reliability.png"):
        pictures["Predicted and human preference, with 95 % intervals"] = "reliability.png"
    origins, lineage = _origins(origins_of(rewards))
    data = {"source": options.data, "rows": len(rows), "sha256": records.sha256}
    return Report(
        title=f"Reward models on {len(judged.human)} judged pairs of {judged.num_groups} rows",
        settings={**_settings(options), "models": origins, "data": data},
        figures=figures,
        sides=["preferred", "other"],
        judges=dict.fromkeys(scores, False),
        rows=_pair_rows(judged, scores),
        pictures=pictures,
        lineage=lineage,
        notes=_cut_notes(rewards, options.max_length),
    )


def _samples_of(words: Sequence[str], named: Sequence[Named]) -> dict[str, int]:
    """Read `N` for all policies and `NAME=N` for one; what is named wins."""
    samples = {policy.name: 1 for policy in named}
    parted = [word.rpartition("=") for word in words]
    for name, _, number in sorted(parted, key=lambda parts: bool(parts[0])):
        if not number.isdecimal() or int(number) < 1 or (name and name not in samples):
            raise ConfigError(
                f"--samples {name}={number}: expected N or NAME=N, a number of at least 1 and one "
                f"of the policies {', '.join(samples)}".replace("--samples =", "--samples ")
            )
        samples |= dict.fromkeys([name] if name else samples, int(number))
    return samples


def _prompt_source(named: Sequence[Named], prompts: str | None) -> str:
    files = [source for _, source in named if is_row_file(source)]
    if prompts is None and not files:
        raise ConfigError("no prompts: give --prompts FILE, to which the policies respond")
    return prompts or files[0]


def _perplexities(
    named: Sequence[Named], options: argparse.Namespace, settings: SamplingConfig
) -> Iterator[Figure]:
    data, limits = options.perplexity_data, (options.max_length, options.perplexity_rows)
    for name, source in named:
        if data is not None and not is_row_file(source):
            estimate = perplexity(source, data, settings, *limits)
            yield Figure(RESPONSES, name, "perplexity", estimate, "per token")


def _origins(models: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Lineage | None]]:
    """Return what tells each model or file from another of its name, and lineages apart."""
    origins: dict[str, Any] = {}
    lineage: dict[str, Lineage | None] = {}
    for name, source in models.items():
        if is_row_file(source):
            origins[name] = {"source": source, "sha256": digest_file(Path(source).expanduser())}
            continue
        origin = describe_origin(source)
        lineage[name] = origin.pop("lineage")
        origins[name] = origin
    return origins, lineage


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in _NOT_SETTINGS}


def _cut_notes(rewards: Mapping[str, RewardSource], max_length: int) -> list[str]:
    return [
        f"Judge {name} read {reward.num_cut} texts cut at {max_length} tokens (--max-length) or at "
        "its model's context."
        for name, reward in rewards.items()
        if isinstance(reward, LearnedReward) and reward.num_cut
    ]


def _policy_rows(
    policies: Sequence[Responses], prompts: Sequence[SourcedPrompt], judgments: Judgments
) -> list[PageRow]:
    """Return the first response of each policy to each prompt, and what was said of it."""
    return [
        PageRow(
            prompt_text(prompt.prompt),
            [policy.texts[index][0] for policy in policies],
            [_facts(policy, index) for policy in policies],
            [
                [
                    *(float(scores[place][index, 0]) for scores in judgments.scores.values()),
                    *(None for _ in judgments.verdicts),
                ]
                for place in range(len(policies))
            ],
            {
                number: {
                    f"{a}-{b}": finite_or_none(verdicts.outcomes[index])
                    for (a, b), verdicts in pairs.items()
                }
                for number, pairs in enumerate(
                    judgments.verdicts.values(), start=len(judgments.scores)
                )
            },
        )
        for index, prompt in enumerate(prompts)
    ]


def _facts(policy: Responses, index: int) -> list[str]:
    facts = [f"{len(policy.texts[index][0]):,} characters"]
    if policy.tokens is not None:
        facts.append(f"{policy.tokens.lengths[index, 0]:.0f} tokens")
        if policy.tokens.kl is not None:
            facts.append(f"KL {policy.tokens.kl[index, 0]:.2f}")
    if policy.finished is not None and not policy.finished[index, 0]:
        facts.append("truncated")
    return facts


def _pair_rows(judged: JudgedResponses, scores: Mapping[str, Floats]) -> list[PageRow]:
    rows = []
    for pair, (chosen, rejected) in enumerate(zip(judged.chosen, judged.rejected, strict=True)):
        domain = [judged.domains[pair]] if judged.domains[pair] else []
        share = f"{100 * judged.human[pair]:.0f} % of the people"
        places = (int(chosen), int(rejected))
        rows.append(
            PageRow(
                prompt_text(judged.prompts[places[0]].prompt),
                [response_text(judged.texts[place]) for place in places],
                [[share, *domain], domain],
                [[float(score[place]) for score in scores.values()] for place in places],
                {},
            )
        )
    return rows
