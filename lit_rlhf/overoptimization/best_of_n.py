"""Best-of-n without drawing n samples again for every n."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def best_of_n_kl(n: int) -> float:
    """Return the KL of best-of-n to the policy it draws from: `log n - (n - 1) / n` nats.

    An upper bound that is exact where no two samples have equal rewards and probabilities are
    small. Source: Stiennon et al., Learning to summarize from human feedback, 2020, appendix G.3.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_scores(
    proxy: npt.ArrayLike, judged: npt.ArrayLike, sizes: Sequence[int]
) -> dict[int, Floats]:
    """Estimate what a judge says of the response that a proxy picks out of `n`.

    Without bias from all `N` samples of a prompt: the mean over all subsets of `n`,
    `sum_r C(r - 1, n - 1) / C(N, n) * judged_(r)` with the samples ordered by the proxy. Equal
    proxies share their weights. Source: Nakano et al., WebGPT, 2021, appendix I.

    Args:
        proxy: `[P, N]` scores by which the best is chosen.
        judged: `[P, N]` scores of the same responses by the judge.
        sizes: the `n`, each from 1 to `N`.

    Returns:
        `n` -> `[P]` expected judged score, one a prompt.
    """
    by, value = np.asarray(proxy, np.float64), np.asarray(judged, np.float64)
    num_samples = by.shape[1]
    # P(the best of n random samples is among the r lowest) = C(r, n) / C(N, n).
    lower = (by[:, None, :] < by[:, :, None]).sum(axis=-1)  # [P, N] samples below each
    upper = (by[:, None, :] <= by[:, :, None]).sum(axis=-1)
    num_equal = upper - lower
    results = {}
    for n in sizes:
        share = np.array(
            [math.comb(r, n) / math.comb(num_samples, n) for r in range(num_samples + 1)]
        )
        weights = (share[upper] - share[lower]) / num_equal
        results[n] = (weights * value).sum(axis=1)
    return results
