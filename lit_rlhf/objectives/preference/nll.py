"""The negative log-likelihood of the chosen response, a term beside a preference loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.pairs import PreferencePairs


@dataclass(frozen=True)
class ChosenNLL(PreferenceLoss):
    """Keep the better response likely: nats a token, each pair counted alike.

    With `x`, `y` the log-probabilities a token of the first and the other response:

    `loss = -probability * x - (1 - probability) * y`

    Source: Pang et al. 2024 (RPO), eq. 1, which is `probability = 1`: a term of `WeightedSum`. The
    paper also counts the prompt's tokens in the length.

    Peers: TRL `sft` is one mean over all tokens of a batch, so long responses count more.
    """

    requires_reference = False
    takes_soft_labels = True

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = pairs.mean_logprobs
        return PreferenceOutput(expected_nll(pairs), chosen.detach(), rejected.detach())


def expected_nll(pairs: PreferencePairs) -> Tensor:
    """Return the negative log-likelihood a token of the better response, `[M]`, see `ChosenNLL`."""
    chosen, rejected = pairs.mean_logprobs
    return -pairs.probability * chosen - (1.0 - pairs.probability) * rejected
