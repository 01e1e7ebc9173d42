"""Best-of-n from samples that are there: no n needs samples of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import DataError
from lit_rlhf.evaluation.statistics import Floats


def best_of_n_kl(n: int) -> float:
    """Return how far best-of-n is from the policy it draws from, in nats: `log n - (n - 1) / n`.

    An upper bound, and exact where no two samples are alike. Source: Stiennon et al., Learning to
    summarize from human feedback, 2020, appendix G.3; that it is a bound: Beirami et al. 2024.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_scores(
    proxy: npt.ArrayLike, judged: npt.ArrayLike, sizes: Sequence[int]
) -> dict[int, Floats]:
    """Estimate what a judge gives to the response that a proxy prefers among `n`.

    The mean over all subsets of `n` out of the `N` samples of a prompt, hence without bias: the
    sample of rank `r` by the proxy is the best of `C(r - 1, n - 1)` out of `C(N, n)` subsets.
    Samples of equal proxy share what they win. Source: Nakano et al., WebGPT, 2021, appendix I.

    Args:
        proxy: `[P, N]` scores that choose.
        judged: `[P, N]` scores of the same responses by the judge.
        sizes: the `n`, each from 1 to `N`.

    Returns:
        `n` -> `[P]` expected score, one a prompt.

    Raises:
        DataError: the shapes differ, or an `n` is out of range.
    """
    chooser, score = np.asarray(proxy, np.float64), np.asarray(judged, np.float64)
    if chooser.ndim != 2 or chooser.shape != score.shape:
        raise DataError(f"scores of shapes {chooser.shape} and {score.shape}: expected [P, N] each")
    num_samples = chooser.shape[1]
    if wrong := [n for n in sizes if not 1 <= n <= num_samples]:
        raise DataError(
            f"best of {wrong} out of {num_samples} samples: expected 1 to {num_samples}"
        )
    below = (chooser[:, None, :] < chooser[:, :, None]).sum(-1)  # [P, N] samples that are worse
    not_above = (chooser[:, None, :] <= chooser[:, :, None]).sum(-1)
    scores = {}
    for n in sizes:
        # Chance that all of n samples stand among the r worst.
        chance = np.array([math.comb(r, n) for r in range(num_samples + 1)], np.float64)
        chance /= math.comb(num_samples, n)
        wins = (chance[not_above] - chance[below]) / (not_above - below)
        scores[n] = (wins * score).sum(-1)
    return scores
