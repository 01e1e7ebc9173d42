"""Policies against each other: win rates, scores, best-of-n, and what each one's responses are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from lit_rlhf.evaluation import bootstrap
from lit_rlhf.evaluation.bootstrap import Estimate, Floats
from lit_rlhf.evaluation.diversity import distinct_n, self_bleu
from lit_rlhf.evaluation.figures import Figure
from lit_rlhf.evaluation.length_control import length_controlled_win_rate
from lit_rlhf.evaluation.pairwise import PairJudge, Verdicts
from lit_rlhf.evaluation.responses import Responses, SourcedPrompt
from lit_rlhf.evaluation.scoring import score_texts
from lit_rlhf.overoptimization import best_of_n_kl, best_of_n_scores
from lit_rlhf.rewards import RewardSource

Pair = tuple[int, int]  # positions of two policies

AGAINST = "Against each other"
RESPONSES = "Responses"
SCORES = "Scores"
BEST_OF_N = "Best of n"
BEST_OF_N_AGAINST = "Best of n against the others"
JUDGES = "Judges"


class Judgments(NamedTuple):
    """What the judges said.

    Attributes:
        scores: judge -> policy -> `[P, K]`, of judges that score.
        verdicts: judge -> pair of policies -> verdicts on their first responses, of judges that
            compare.
    """

    scores: Mapping[str, Sequence[Floats]]
    verdicts: Mapping[str, Mapping[Pair, Verdicts]]

    @property
    def judges(self) -> list[str]:
        """The names of all judges, those that score first."""
        return [*self.scores, *self.verdicts]


def judge_policies(
    policies: Sequence[Responses],
    prompts: Sequence[SourcedPrompt],
    rewards: Mapping[str, RewardSource],
    pair_judges: Mapping[str, PairJudge],
) -> Judgments:
    """Ask every judge.

    Args:
        policies: with responses to the same prompts.
        prompts: `P`.
        rewards: judges that score each response, by name.
        pair_judges: judges that compare two, by name; they see each prompt's first response.
    """
    scores = {name: _score_all(name, reward, prompts, policies) for name, reward in rewards.items()}
    verdicts = {
        name: {
            (a, b): judge.compare(
                prompts,
                [texts[0] for texts in policies[a].texts],
                [texts[0] for texts in policies[b].texts],
            )
            for a, b in combinations(range(len(policies)), 2)
        }
        for name, judge in pair_judges.items()
    }
    return Judgments(scores, verdicts)


def policy_figures(
    policies: Sequence[Responses], judgments: Judgments, *, tie_margin: float = 0.0
) -> list[Figure]:
    """Return every figure of the policies, each with interval and sample size.

    Args:
        policies: with responses to the same prompts.
        judgments: on them.
        tie_margin: scores at most this far apart are a tie.
    """
    figures: list[Figure] = []
    for a, b in combinations(range(len(policies)), 2):
        figures += _pair_figures(policies, (a, b), judgments, tie_margin)
    for index, policy in enumerate(policies):
        figures += _response_figures(policy)
        for judge, scores in judgments.scores.items():
            estimate = bootstrap.mean(scores[index].mean(1))
            figures.append(Figure(SCORES, policy.name, "score", estimate, judge=judge))
        if policy.num_samples > 1:
            figures += _best_of_n_figures(policy, index, judgments)
            figures += _best_of_n_against(policies, index, judgments, tie_margin)
    return figures


def outcomes_of(first: Floats, second: Floats, tie_margin: float) -> tuple[Floats, Floats]:
    """Compare all samples of one policy with all of another's, prompt by prompt.

    Args:
        first: `[P, K]` scores.
        second: `[P, K']` scores of the opponent.
        tie_margin: scores at most this far apart are a tie.

    Returns:
        `[P, K]` how often each sample of the first wins, ties counted half, and `[P]` the share
        of ties.
    """
    gaps = first[:, :, None] - second[:, None, :]  # [P, K, K']
    ties = np.abs(gaps) <= tie_margin
    return np.where(ties, 0.5, gaps > 0).mean(2), ties.mean((1, 2))


def _pair_figures(
    policies: Sequence[Responses], pair: Pair, judgments: Judgments, tie_margin: float
) -> Iterator[Figure]:
    first, second = policies[pair[0]], policies[pair[1]]
    outcomes: dict[str, Floats] = {}

    def figure(metric: str, estimate: Estimate, unit: str = "", judge: str = "") -> Figure:
        return Figure(AGAINST, first.name, metric, estimate, unit, second.name, judge)

    for judge, scores in judgments.scores.items():
        one, other = scores[pair[0]], scores[pair[1]]
        wins, ties = outcomes_of(one, other, tie_margin)
        outcomes[judge] = wins.mean(1)
        lengths = first.characters.mean(1), second.characters.mean(1)
        for estimate in _outcome_estimates(outcomes[judge], ties, lengths):
            yield figure(*estimate, judge)
        difference, deviation = one.mean(1) - other.mean(1), other.std()
        yield figure("score_difference", bootstrap.mean(difference), "", judge)
        if deviation > 0:
            in_deviations = bootstrap.mean(difference / deviation)
            yield figure("standardized_difference", in_deviations, "deviations", judge)
    for judge, verdicts in judgments.verdicts.items():
        outcome, consistent, position = verdicts[pair]
        outcomes[judge] = outcome
        known = ~np.isnan(outcome)
        ties = consistent[known] * (outcome[known] == 0.5)
        lengths = first.characters[known, 0], second.characters[known, 0]
        for estimate in _outcome_estimates(outcome[known], ties, lengths):
            yield figure(*estimate, judge)
        yield figure("same_in_both_orders", bootstrap.share(consistent[known]), "%", judge)
        yield figure("first_position_wins", bootstrap.share(position[known]), "%", judge)
        yield figure("answers_readable", bootstrap.share(known.astype(float)), "%", judge)
    for one_judge, other_judge in combinations(outcomes, 2):
        agreement = _agreement(outcomes[one_judge], outcomes[other_judge])
        if agreement is not None:
            name = f"{one_judge} and {other_judge}"
            yield Figure(
                JUDGES, first.name, "judges_agree", agreement, "%", second.name, judge=name
            )


def _outcome_estimates(
    outcome: Floats, ties: Floats, lengths: tuple[Floats, Floats]
) -> Iterator[tuple[str, Estimate, str]]:
    yield "win_rate", bootstrap.share(outcome), "%"
    controlled = length_controlled_win_rate(outcome, *lengths)
    yield "length_controlled_win_rate", controlled.win_rate, "%"
    yield "length_effect", controlled.length_effect, ""
    yield "ties", bootstrap.share(ties), "%"


def _agreement(one: Floats, other: Floats) -> Estimate | None:
    """Return on what share of prompts two judges name the same winner, ties of either left out."""
    sides = np.sign(np.nan_to_num(one, nan=0.5) - 0.5), np.sign(np.nan_to_num(other, nan=0.5) - 0.5)
    decided = sides[0] * sides[1] != 0
    if not decided.any():
        return None
    return bootstrap.share((sides[0] == sides[1])[decided].astype(float))


def _response_figures(policy: Responses) -> Iterator[Figure]:
    def figure(metric: str, estimate: Estimate, unit: str = "") -> Figure:
        return Figure(RESPONSES, policy.name, metric, estimate, unit)

    num_texts = len(policy.texts) * policy.num_samples
    facts = policy.tokens
    if facts is not None:
        if facts.kl is not None:
            yield figure("kl", bootstrap.mean(facts.kl.mean(1)), "nats per response")
        if facts.summed_entropy is not None:
            estimate = bootstrap.ratio(
                facts.summed_entropy.sum(1), facts.lengths.sum(1), n=num_texts
            )
            yield figure("entropy", estimate, "nats per token")
        yield figure("length", bootstrap.mean(facts.lengths.mean(1), n=num_texts), "tokens")
    characters = bootstrap.mean(policy.characters.mean(1), n=num_texts)
    yield figure("length_characters", characters, "characters")
    if policy.finished is not None:
        truncated = bootstrap.share(1 - policy.finished.mean(1), n=num_texts)
        yield figure("truncated", truncated, "%")
    # One response a prompt: several of the same prompt are alike for another reason.
    texts = [row[0] for row in policy.texts]
    for n in (1, 2):
        yield figure(f"distinct_{n}", distinct_n(texts, n))
    yield figure("self_bleu", self_bleu(texts))


def _best_of_n_figures(policy: Responses, index: int, judgments: Judgments) -> Iterator[Figure]:
    """Choose by each judge that scores, and let every one of them say what it thinks of it."""
    sizes = _sizes(policy.num_samples)
    for proxy, proxy_scores in judgments.scores.items():
        for judge, judge_scores in judgments.scores.items():
            by_size = best_of_n_scores(proxy_scores[index], judge_scores[index], sizes)
            for n, values in by_size.items():
                label = judge if judge == proxy else f"{judge}, chosen by {proxy}"
                yield Figure(
                    BEST_OF_N,
                    policy.name,
                    f"best_of_{n}",
                    bootstrap.mean(values),
                    against=f"KL {best_of_n_kl(n):.2f}",
                    judge=label,
                )


def _best_of_n_against(
    policies: Sequence[Responses], index: int, judgments: Judgments, tie_margin: float
) -> Iterator[Figure]:
    """Let the best of n by the first judge meet every policy, by each of the other judges.

    Against its own policy the last sample is the opponent, from which nothing was chosen.
    """
    if not judgments.scores:
        return
    chooser, *others = judgments.scores
    for judge, place in product(others, range(len(policies))):
        proxy, own = judgments.scores[chooser][index], judgments.scores[judge][index]
        opponent = judgments.scores[judge][place]
        if place == index:
            proxy, own, opponent = proxy[:, :-1], own[:, :-1], own[:, -1:]
        wins, _ = outcomes_of(own, opponent, tie_margin)
        for n, outcome in best_of_n_scores(proxy, wins, _sizes(proxy.shape[1])[1:]).items():
            yield Figure(
                BEST_OF_N_AGAINST,
                f"{policies[index].name}, best of {n} by {chooser}",
                "win_rate",
                bootstrap.share(np.clip(outcome, 0, 1)),  # rounding must not leave [0, 1]
                "%",
                policies[place].name,
                judge,
            )


def _sizes(num_samples: int) -> list[int]:
    """Return the powers of two below a number of samples, and the number."""
    return [*(2**power for power in range((num_samples - 1).bit_length())), num_samples]


def _score_all(
    name: str,
    reward: RewardSource,
    prompts: Sequence[SourcedPrompt],
    policies: Sequence[Responses],
) -> list[Floats]:
    """Return the scores of each policy, `[P, K]`; all are asked for at once, to load it once."""
    repeated = [
        prompt for policy in policies for prompt in prompts for _ in range(policy.num_samples)
    ]
    texts = [text for policy in policies for row in policy.texts for text in row]
    scores = score_texts(name, reward, repeated, texts)
    ends = np.cumsum([len(prompts) * policy.num_samples for policy in policies])
    return [part.reshape(len(prompts), -1) for part in np.split(scores, ends[:-1])]
