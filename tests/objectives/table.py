"""docs/reference/objectives.md, made of the docstrings and the tests' oracles.

`python -m tests.objectives.table` writes the page.
"""

import dataclasses
import inspect
import math
import re
from pathlib import Path

import torch

from lit_rlhf.objectives import OverlongPenalty
from tests.objectives.advantage import cases as advantage_cases
from tests.objectives.agreement import normal
from tests.objectives.policy import cases as policy_cases
from tests.objectives.preference.cases import CASES, golden, make_pairs, random_logprobs
from tests.objectives.reward import cases as reward_cases
from tests.oracles.shaping import soft_overlong

PAGE = Path(__file__).parents[2] / "docs/reference/objectives.md"
ERROR = re.compile(r"1e-\d+")

_HEAD = """\
# Objectives

Every objective of `lit-rlhf dpo`, `lit-rlhf reward` and `lit-rlhf ppo`: formula, source, options \
and what other libraries do. Choose a loss by `--model.loss NAME` or by its file in \
`configs/loss/` and `configs/reward_loss/`, an advantage estimator by `--model.advantage NAME` or \
by its file in `configs/advantage/`, a policy loss by `--model.update.policy_loss NAME` or by its \
file in `configs/policy_loss/`. The pages of [DPO](../methods/dpo.md#which-loss), \
[reward models](../methods/reward.md#which-loss) and [PPO](../methods/ppo.md#without-a-critic) say \
which one to try. This page is written by `python -m tests.objectives.table`, and a test fails \
where it is not up to date.

- `policy_chosen` and the like are log-probabilities, summed over the tokens of a response. \
`x` and `y` are log-ratios to the reference, or as the row says.
- `probability` is the share of judgments for the first response. A loss that takes no soft labels \
refuses pairs of another probability than 1: add `--data.aggregation Majority`.
- The error is the largest difference from a separate float64 calculation by the paper, rounded up \
to a power of ten, in float64 and in float32: absolute, or relative where the loss is above 1.
- `python -m benchmarks.parity` compares loss and gradient with TRL 1.16 on one tiny model, for \
all preference losses. They were equal within 2e-6 in float32, where TRL has the same formula \
(`make .venv-trl/.installed` first). `python -m benchmarks.parity_ppo` does so with TRL's GRPO and \
RLOO, for their scalings, clippings, averages and KL terms: equal within 4e-6.
"""


def paragraphs(kind):
    """Return the paragraphs of a class's docstring, each in one line."""
    text = inspect.getdoc(kind).partition("Attributes:")[0].partition("Raises:")[0]
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def said(kind, beginning):
    """Return the paragraph that begins so."""
    (found,) = [part for part in paragraphs(kind) if part.startswith(beginning)]
    return found


def formula(kind, result="loss"):
    """Return the formula, with what its symbols are in front of it."""
    parts = paragraphs(kind)
    place = parts.index(said(kind, f"`{result}"))
    before = parts[place - 1] if parts[place - 1].startswith("With ") else ""
    return f"{before} {parts[place]}".strip()


def meaning(kind, name):
    """Return what the docstring says of an option."""
    attributes = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n    (?=\w+: )", "\n" + attributes)
    (found,) = [" ".join(e.split()) for e in entries if e.startswith(f"{name}: ")]
    return found.partition(": ")[2]


def preference_errors(case, dtype):
    """Return what differs from the oracle, and what it says."""
    pairs = make_pairs(random_logprobs(64, dtype), case.loss)
    return case.loss(pairs).losses, golden(case, pairs)


def reward_errors(case, dtype):
    """Return what differs from the oracle, and what it says."""
    scored = case.make_scored(normal(reward_cases.NUM_RESPONSES, dtype=dtype))
    return case.loss(scored).losses, case.oracle(scored)[0]


def advantage_errors(case, dtype):
    """Return what differs from the oracle, and what it says: advantages, and returns if any."""
    tokens = advantage_cases.random_tokens(dtype)
    found, golden = case.estimator(tokens), case.golden(tokens)
    pairs = [pair for pair in zip(found, golden, strict=True) if pair[0] is not None]
    return torch.cat([pair[0] for pair in pairs]), [row for _, rows in pairs for row in rows]


def policy_errors(case, dtype):
    """Return what differs from the oracle, and what it says."""
    tokens = policy_cases.random_tokens(dtype)
    golden = [loss for row in case.golden(tokens) for loss, _ in row]
    return case.loss(tokens).losses[tokens.response_mask], golden


def aggregation_errors(case, dtype):
    """Return what differs from the oracle, and what it says."""
    tokens = policy_cases.random_tokens(dtype)
    losses, mask = tokens.advantages, tokens.response_mask
    return case.aggregation(losses, mask), case.golden(losses, mask)


def penalty_errors(case, dtype):
    """Return what differs from the oracle, and what it says."""
    new, old, reference = policy_cases.random_tokens(dtype)[:3]
    columns = [column.flatten() for column in (new, old, reference)]
    golden = [case.oracle(*token) for token in zip(*(c.tolist() for c in columns), strict=True)]
    return case.penalty.loss(*columns), golden


def overlong_errors(penalty, dtype):
    """Return what differs from the oracle, and what it says."""
    scores, lengths, limit = normal(41, dtype=dtype), torch.arange(41), 40
    golden = [
        score + penalty.weight * soft_overlong(length, limit, penalty.buffer)
        for score, length in zip(scores.tolist(), lengths.tolist(), strict=True)
    ]
    return penalty.apply(scores, lengths, limit), golden


def errors(cases, compute):
    """Return the largest errors against the oracles, in float64 and float32."""
    found = []
    for dtype in (torch.float64, torch.float32):
        largest = 0.0
        for case in cases:
            losses, expected = compute(case, dtype)
            expected = torch.tensor(expected, dtype=torch.float64)
            off = (losses.double() - expected).abs() / expected.abs().clamp(min=1.0)
            largest = max(largest, float(off.max()))
        found.append(f"1e-{-math.ceil(math.log10(max(largest, 1e-17)))}")
    return ", ".join(found)


def reads(loss, what):
    """Say whether a preference loss reads soft labels or a reference."""
    return "as its losses" if hasattr(loss, "losses") else "yes" if getattr(loss, what) else "no"


def of_kinds(cases, part="loss"):
    """Return the classes of the cases' objectives with their cases, by name."""
    kinds = {}
    for case in cases:
        kinds.setdefault(type(getattr(case, part)), []).append(case)
    return sorted(kinds.items(), key=lambda item: item[0].__name__.lower())


def table(head, rows):
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def options(kind):
    """Yield a row for each option of a class."""
    for field in dataclasses.fields(kind):
        default = f"`{field.default}`"
        if isinstance(field.default, bool):
            default = default.lower()
        elif field.default is None:
            default = "`null`"
        elif field.default is dataclasses.MISSING:
            default = "required"
        yield f"`{kind.__name__}.{field.name}`", default, meaning(kind, field.name)


def page():
    """Return the page."""
    torch.manual_seed(0)
    preference, reward = of_kinds(CASES), of_kinds(reward_cases.CASES)
    advantages = of_kinds(advantage_cases.CASES, "estimator")
    policies = of_kinds(policy_cases.CASES)
    aggregations = of_kinds(policy_cases.AGGREGATIONS, "aggregation")
    penalties = of_kinds(policy_cases.PENALTIES, "penalty")
    of_ppo = advantages + policies + aggregations + penalties
    kinds = [kind for kind, _ in preference + reward + of_ppo]

    def row(kind, *more, result="loss"):
        source = said(kind, "Source:").removeprefix("Source: ")
        what = f"{paragraphs(kind)[0]} {formula(kind, result)}"
        return f"`{kind.__name__}`", what, source, *more

    losses = [
        row(
            kind,
            reads(cases[0].loss, "takes_soft_labels"),
            reads(cases[0].loss, "requires_reference"),
            errors(cases, preference_errors),
        )
        for kind, cases in preference
    ]
    rewards = [row(kind, errors(cases, reward_errors)) for kind, cases in reward]
    estimators = [
        row(
            kind,
            "yes" if cases[0].estimator.requires_values else "no",
            "1" if kind().samples_per_prompt == 1 else "several",
            errors(cases, advantage_errors),
            result="advantages",
        )
        for kind, cases in advantages
    ]
    policy_losses = [row(kind, errors(cases, policy_errors)) for kind, cases in policies]
    means = [row(kind, errors(cases, aggregation_errors)) for kind, cases in aggregations]
    terms = [
        row(kind, errors(cases, penalty_errors), result="token_rewards")
        for kind, cases in penalties
    ]
    costs = [OverlongPenalty(8), OverlongPenalty(7, 0.3)]
    kinds.append(OverlongPenalty)
    rules = [row(OverlongPenalty, errors(costs, overlong_errors), result="scores")]
    elsewhere = [(f"`{kind.__name__}`", said(kind, "Peers:")[len("Peers: ") :]) for kind in kinds]
    head = ["objective", "what it does", "source"]
    parts = [
        _HEAD,
        "## Preference losses\n",
        table([*head, "soft labels", "reference", "largest error"], losses),
        "\n## Losses of a reward model\n",
        table([*head, "largest error"], rewards),
        "\n## Advantage estimators\n",
        table([*head, "critic", "samples a prompt", "largest error"], estimators),
        "\n## Policy losses\n",
        table([*head, "largest error"], policy_losses),
        "\n## How the losses of tokens become one\n",
        table([*head, "largest error"], means),
        "\n## The KL penalty\n",
        table([*head, "largest error"], terms),
        "\n## Overlong responses\n",
        table([*head, "largest error"], rules),
        "\n## Options\n",
        table(["option", "default", "meaning"], [row for kind in kinds for row in options(kind)]),
        "\n## What other libraries do\n",
        table(["objective", "elsewhere"], elsewhere),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
