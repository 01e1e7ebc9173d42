"""Bradley-Terry over judged pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_rlhf.objectives.bradley_terry import bradley_terry_loss, centering_penalty
from lit_rlhf.objectives.reward.scored import RewardLoss, ScoredResponses, WeightedLosses
from lit_rlhf.ranges import require


@dataclass(frozen=True)
class BradleyTerryLoss(RewardLoss):
    """A difference of scores is the log-odds of a preference; one loss a pair.

    With `d = chosen_scores - rejected_scores - margin`:

    `loss = -probability * log sigmoid(d) - (1 - probability) * log sigmoid(-d)
    + centering * (chosen_scores + rejected_scores)^2`

    Source: Bradley and Terry 1952 with shares of judges in place of outcomes; the penalty is
    Eisenstein et al. 2023; the margin Touvron et al. 2023, eq. 2; `per_prompt` is Ouyang et al.
    2022 (InstructGPT), eq. 1.

    Peers: TRL's `RewardTrainer` has certain labels, and `center_rewards_coefficient`.

    Attributes:
        per_prompt: a prompt's pairs weigh as one together, `1 / C(K, 2)` each where all pairs of
            K responses are judged; false lets each pair count, so larger groups count more.
        centering: weight of the penalty that keeps scores around zero, >= 0; 0.01 by the paper.

    Raises:
        ConfigError: if `centering` is out of its range.
    """

    per_prompt: bool = False
    centering: float = 0.0

    def __post_init__(self) -> None:
        require("model.loss.centering", self.centering, least=0)

    @property
    def reads_margins(self) -> bool:
        """Whether the margin of a pair is taken off the difference of its scores: yes."""
        return True

    def __call__(self, scored: ScoredResponses) -> WeightedLosses:
        """Compute the loss of each pair, see the class."""
        chosen, rejected = scored.scores[scored.chosen], scored.scores[scored.rejected]
        losses = bradley_terry_loss(chosen, rejected, scored.probability, scored.margin)
        if self.centering:
            losses = losses + self.centering * centering_penalty(chosen, rejected)
        weight = scored.weight
        if self.per_prompt:
            prompt = scored.group[scored.chosen]  # [M]
            num_pairs = torch.bincount(prompt, minlength=len(scored.group))
            weight = weight / num_pairs[prompt]
        return WeightedLosses(losses, weight)
