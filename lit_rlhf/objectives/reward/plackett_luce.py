"""Plackett-Luce over the whole ranking of a prompt's responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.reward.scored import RewardLoss, ScoredResponses, WeightedLosses

# All subsets of tied responses are looked at: 256 of 8.
_MOST_TIED = 8


@dataclass(frozen=True)
class PlackettLuceLoss(RewardLoss):
    """The ranking as one choice after another: the best of all, the best of the rest, and so on.

    With `s[1]`, `s[2]`, ... the scores from the best response of a prompt to the worst:

    `loss = -sum over k of (s[k] - log(sum over j >= k of exp(s[j])))`

    Source: Plackett 1975, Luce 1959; with two responses it is Bradley-Terry. Of tied responses the
    mean over all orders is taken. A response's place is its mean share of judgments against the
    others, so of several judges it is the order of their mean ranks. One loss a prompt, with the
    mean weight of its pairs.

    Peers: lm-human-preferences has the first term alone, the best of four.
    """

    needs_whole_rankings = True

    def __call__(self, scored: ScoredResponses) -> WeightedLosses:
        """Compute the loss of each prompt, see the class."""
        masks, shares, owners, weights = [], [], [], []
        losses = scored.scores[:0]
        prompts = scored.group[scored.chosen].unique().tolist()
        for place, prompt in enumerate(prompts):
            pairs = (scored.group[scored.chosen] == prompt).nonzero().squeeze(1)
            members = (scored.group == prompt).nonzero().squeeze(1).tolist()
            weights.append(scored.weight[pairs].mean())
            for left, share in _choices(_ranked(scored, pairs, members)):
                masks.append(_mask(left, len(scored.scores)))
                shares.append(share)
                owners.append(place)
        if not prompts:
            return WeightedLosses(losses, losses)
        mask = torch.stack(masks).to(scored.scores.device)  # [S, N]
        left_over = scored.scores.expand(len(masks), -1).masked_fill(~mask, -torch.inf)
        terms = left_over.logsumexp(1) * scored.scores.new_tensor(shares)  # [S]
        owner = torch.tensor(owners, device=terms.device)
        losses = scored.scores.new_zeros(len(prompts)).index_add(0, owner, terms)
        position = {prompt: place for place, prompt in enumerate(prompts)}
        judged = [i for i, prompt in enumerate(scored.group.tolist()) if prompt in position]
        at = torch.tensor([position[int(scored.group[i])] for i in judged], device=terms.device)
        losses = losses.index_add(0, at, -scored.scores[judged])
        return WeightedLosses(losses, torch.stack(weights))


def _ranked(scored: ScoredResponses, pairs: Tensor, members: list[int]) -> list[list[int]]:
    """Return the responses of a prompt from the best to the worst, tied ones together.

    Raises:
        ConfigError: not all of them were compared with each other, or too many are tied.
    """
    if len(pairs) != comb(len(members), 2):
        raise ConfigError(
            f"model.loss PlackettLuceLoss needs whole rankings: of {len(members)} responses to a "
            f"prompt only {len(pairs)} of {comb(len(members), 2)} pairs were judged; choose "
            "BradleyTerryLoss, which learns from any pairs"
        )
    points = dict.fromkeys(members, 0.0)
    columns = (scored.chosen, scored.rejected, scored.probability)
    for first, other, share in zip(*(c[pairs].tolist() for c in columns), strict=True):
        points[first] += share
        points[other] += 1 - share
    ranked: list[list[int]] = []
    for member in sorted(members, key=lambda member: -points[member]):
        # Sums of float32 shares: what differs by rounding alone is a tie.
        is_tied = ranked and abs(points[ranked[-1][0]] - points[member]) < 1e-5
        ranked[-1].append(member) if is_tied else ranked.append([member])
    if max(map(len, ranked)) > _MOST_TIED:
        raise ConfigError(
            f"model.loss PlackettLuceLoss: {max(map(len, ranked))} responses to a prompt are tied, "
            f"and it takes {_MOST_TIED} at most; choose BradleyTerryLoss"
        )
    return ranked


def _choices(ranked: list[list[int]]) -> Iterator[tuple[list[int], float]]:
    """Yield what is left when a response is chosen, with the share of the orders in which it is."""
    for place, tied in enumerate(ranked):
        rest = [member for worse in ranked[place + 1 :] for member in worse]
        for size in range(1, len(tied) + 1):
            for left in combinations(tied, size):
                yield [*left, *rest], 1 / comb(len(tied), size)


def _mask(members: list[int], count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[members] = True
    return mask
