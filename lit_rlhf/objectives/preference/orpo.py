"""Odds ratio preference optimisation: likelihood and preference in one phase."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.objectives.bradley_terry import bradley_terry_loss
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.nll import expected_nll
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class ORPO(PreferenceLoss):
    """Learn the better response, and make its odds a token larger; no SFT before, no reference.

    With `x`, `y` the log-probabilities a token of the first and the other response,
    `odds(x) = exp(x) / (1 - exp(x))`, `m = log(odds(x) / odds(y))` and `nll` as in `ChosenNLL`:

    `loss = nll + beta * (-probability * log sigmoid(m) - (1 - probability) * log sigmoid(-m))`

    Source: Hong et al. 2024, eq. 6 and 7, which is `probability = 1`.

    Peers: TRL's `ORPOTrainer`, whose NLL is one mean over all tokens of a batch, the prompts' too.

    Attributes:
        beta: weight of the odds ratio, > 0; 0.1 by the paper, lambda there.

    Raises:
        ConfigError: if `beta` is out of its range.
    """

    beta: float = 0.1

    requires_reference = False
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = pairs.mean_logprobs
        by_odds = bradley_terry_loss(_log_odds(chosen), _log_odds(rejected), pairs.probability)
        return PreferenceOutput(
            losses=expected_nll(pairs) + self.beta * by_odds,
            chosen_rewards=self.beta * chosen.detach(),
            rejected_rewards=self.beta * rejected.detach(),
        )


def _log_odds(logprob: Tensor) -> Tensor:
    # A response that is certain (or has no token) would have infinite odds and no gradient.
    logprob = logprob.clamp(max=-torch.finfo(logprob.dtype).eps)
    return logprob - torch.log(-torch.expm1(logprob))
