"""Contrastive preference optimisation: DPO with a uniform reference, and likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from lit_rlhf.objectives.bradley_terry import bradley_terry_loss
from lit_rlhf.objectives.preference.loss import PreferenceLoss, PreferenceOutput
from lit_rlhf.objectives.preference.nll import expected_nll
from lit_rlhf.objectives.preference.pairs import PreferencePairs
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class CPO(PreferenceLoss):
    """Compare log-probabilities themselves, and keep the better response likely; no reference.

    With `m = beta * (policy_chosen - policy_rejected)` and `nll` as in `ChosenNLL`:

    `loss = -probability * log sigmoid(m) - (1 - probability) * log sigmoid(-m) + nll_coef * nll`

    Source: Xu et al. 2024, which is `probability = 1`.

    Peers: TRL's `CPOTrainer`, whose NLL is one mean over all response tokens of a batch.

    Attributes:
        beta: score of a nat, > 0.
        nll_coef: weight of the negative log-likelihood, >= 0; TRL's `cpo_alpha`.

    Raises:
        ConfigError: if a value is out of its range.
    """

    beta: float = 0.1
    nll_coef: float = 1.0

    requires_reference = False
    takes_soft_labels = True

    def __post_init__(self) -> None:
        require("model.loss.beta", self.beta, above=0)
        require("model.loss.nll_coef", self.nll_coef, least=0)

    def compare(self, pairs: PreferencePairs) -> PreferenceOutput:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = self.beta * pairs.policy_chosen, self.beta * pairs.policy_rejected
        losses = bradley_terry_loss(chosen, rejected, pairs.probability)
        losses = losses + self.nll_coef * expected_nll(pairs)
        return PreferenceOutput(losses, chosen.detach(), rejected.detach())
