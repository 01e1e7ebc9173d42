"""The command `lit-rlhf sample`: the best of several responses to each prompt, as data."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.batches import SampleBatch
from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.options import read_reward
from lit_rlhf.evaluation.responses import SourcedPrompt, prompt_key, read_prompts_and_fields
from lit_rlhf.evaluation.sampling import SamplingConfig, sample_in_parts
from lit_rlhf.evaluation.sampling_options import add_sampling_options, sampling_config
from lit_rlhf.growing_rows import GrowingRows
from lit_rlhf.markdown import say
from lit_rlhf.models.handover import check_kind
from lit_rlhf.models.lineage import describe_origin
from lit_rlhf.overoptimization import best_of_n_kl
from lit_rlhf.ranges import require
from lit_rlhf.rewards import RewardSource, ask

_ROWS_AT_ONCE = 256
# What a row says itself; further fields of the prompt's record go along.
_WRITTEN = (
    *("prompt", "response", "completion", "messages", "text", "label", "score"),
    *("chosen", "rejected", "responses", "ratings", "rankings", "probability", "weight"),
)


class Ranked(NamedTuple):
    """The distinct responses to a prompt that have a score, the best first.

    Attributes:
        texts: one or more.
        scores: of each.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]


def sample_command(arguments: list[str]) -> int:
    """Sample, score, and write the best.

    Args:
        arguments: those after `lit-rlhf sample`.

    Returns:
        0.

    Raises:
        LitRLHFError: an option, a model, the prompts or the file is not as it must be.
    """
    options = _parser().parse_args(arguments)
    require("--best-of", options.best_of, least=2)
    check_kind(options.checkpoint, "policy")
    reward = read_reward(options.reward, options)
    settings = sampling_config(options, options.best_of)
    read = read_prompts_and_fields(options.prompts, options.num_prompts)
    if not read:
        raise DataError(f"{options.prompts}: holds no prompts.")
    prompts, fields = zip(*read, strict=True)
    file = GrowingRows(options.output, _what_rows_depend_on(options, settings, reward, read))
    if not file.is_new:
        say(f"{options.output}: goes on behind {file.facts['prompts']} of {len(prompts)} prompts")
    _write(file, prompts, fields, settings, reward, options)
    file.finish()
    say(_summary(file.facts, options))
    return 0


def ranked(texts: Sequence[str], scores: Sequence[float]) -> Ranked | None:
    """Order the responses to one prompt: each text once, without those that have no score.

    Returns:
        None where none has a score.
    """
    known = {
        text: score for text, score in zip(texts, scores, strict=True) if not math.isnan(score)
    }
    if not known:
        return None
    best_first = sorted(known.items(), key=lambda item: -item[1])
    return Ranked(*(tuple(column) for column in zip(*best_first, strict=True)))


def row_of(rows: str, prompt: object, found: Ranked) -> dict[str, Any] | None:
    """Return the row of one prompt, None where there is nothing to write.

    Args:
        rows: "best", "pairs" or "groups".
        prompt: text or chat.
        found: its responses; a pair or group needs two with different scores.
    """
    row = {"prompt": prompt, "response": found.texts[0]}
    best, worst = found.scores[0], found.scores[-1]
    if rows == "best":
        return {**row, "reward": best}
    if best == worst:
        return None
    if rows == "groups":
        return {**row, "responses": list(found.texts), "ratings": [list(found.scores)]}
    pair = {"chosen": found.texts[0], "rejected": found.texts[-1]}
    return {**row, **pair, "reward_chosen": best, "reward_rejected": worst}


def _write(
    file: GrowingRows,
    prompts: Sequence[SourcedPrompt],
    fields: Sequence[dict[str, Any]],
    settings: SamplingConfig,
    reward: RewardSource,
    options: argparse.Namespace,
) -> None:
    facts = file.facts or dict.fromkeys(("prompts", "rows", "unscored", "alike", "best", "all"), 0)
    first, size = facts["prompts"], max(1, _ROWS_AT_ONCE // settings.samples)
    if first == len(prompts):  # killed between the last part and the file's name
        return
    for samples in sample_in_parts(
        options.checkpoint, prompts, settings, size, first=first, fields=fields
    ):
        scores, _ = ask("--reward", reward, samples)
        rows = []
        for found, given in _by_prompt(samples, scores.tolist(), settings.samples):
            place = facts["prompts"]
            facts["prompts"] += 1
            if found is None:
                facts["unscored"] += 1
                continue
            row = row_of(options.rows, prompts[place].prompt, found)
            if row is None:
                facts["alike"] += 1
                continue
            further = {name: fields[place][name] for name in fields[place] if name not in _WRITTEN}
            rows.append(further | row)
            facts["rows"] += 1
            facts["best"] += found.scores[0]
            facts["all"] += sum(given) / len(given)
        file.add(rows, facts)


def _by_prompt(
    samples: SampleBatch, scores: Sequence[float], num_samples: int
) -> Iterator[tuple[Ranked | None, list[float]]]:
    """Yield each prompt's responses in order, and all scores that were given."""
    for start in range(0, len(scores), num_samples):
        own = scores[start : start + num_samples]
        texts = samples.responses[start : start + num_samples]
        yield ranked(texts, own), [score for score in own if not math.isnan(score)]


def _what_rows_depend_on(
    options: argparse.Namespace,
    settings: SamplingConfig,
    reward: RewardSource,
    read: Sequence[tuple[SourcedPrompt, Mapping[str, Any]]],
) -> dict[str, Any]:
    model = describe_origin(options.checkpoint)
    of_reward = {name: describe_origin(source) for name, source in reward.origins.items()}
    texts = [[prompt_key(prompt.prompt), own] for prompt, own in read]
    names = ("samples", "max_new_tokens", "temperature", "seed", "template", "template_options")
    return {
        "checkpoint": model.get("sha256") or model,
        "prompts": hashlib.sha256(json.dumps(texts, default=str).encode()).hexdigest(),
        "reward": [repr(reward), {name: one.get("sha256") for name, one in of_reward.items()}],
        "rows": options.rows,
        "precision": settings.precision,
        **{name: getattr(settings, name) for name in names},
    }


def _summary(facts: Mapping[str, Any], options: argparse.Namespace) -> str:
    num_rows, n = facts["rows"], options.best_of
    text = f"{num_rows} rows in {options.output}"
    if num_rows:
        best, mean = facts["best"] / num_rows, facts["all"] / num_rows
        kl = best_of_n_kl(n)
        text += f"; best of {n}: {best:.4g} (all: {mean:.4g}), KL to the policy at most {kl:.2f}"
    if facts["unscored"]:
        text += f"; {facts['unscored']} prompts left out: the reward could score no response"
    if facts["alike"]:
        text += f"; {facts['alike']} prompts left out: all responses score alike"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-rlhf sample",
        description="Draw several responses to each prompt, score them, and write the best as rows "
        "to train on. A run that was killed goes on when it is started again.",
    )
    parser.add_argument("checkpoint", help="a policy: Hugging Face folder or hub name")
    parser.add_argument("--prompts", required=True, help="data with prompts")
    parser.add_argument("--num-prompts", type=int, help="take the first so many")
    parser.add_argument("--best-of", type=int, default=16, help="responses a prompt (default: 16)")
    parser.add_argument(
        "--reward",
        required=True,
        help="a reward model, function:WHERE, or a YAML file with a reward as PPO takes it",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .jsonl file to write")
    parser.add_argument(
        "--rows",
        choices=("pairs", "best", "groups"),
        default="pairs",
        help="the best and the worst (read by sft, dpo and feedback import), the best alone (sft), "
        "or all with their scores (sft, reward, dpo, feedback import) (default: pairs)",
    )
    add_sampling_options(parser)
    parser.add_argument("--max-length", type=int, help="tokens that a reward model reads")
    return parser
