"""What a preference loss says of a batch of pairs, and what is logged of it."""

from __future__ import annotations

from torch import Tensor

from lit_rlhf.batches import ComparisonBatch
from lit_rlhf.modules.metrics import NamedMeans, agreement, decided_weight
from lit_rlhf.objectives.preference import PreferenceLoss, PreferencePairs


def preference_losses(
    loss: PreferenceLoss,
    pairs: PreferencePairs,
    batch: ComparisonBatch,
    logprobs: Tensor,
    means: NamedMeans,
) -> Tensor:
    """Return the loss of each pair, `[M]`, and add what is logged of them to some means.

    Args:
        loss: compares the pairs.
        pairs: `M` of them, of the batch.
        batch: `N` responses.
        logprobs: `[N]` of the responses under the policy.
        means: loss, accuracy, implicit rewards and log-probabilities, by weight.
    """
    output = loss(pairs)
    margin = output.chosen_rewards - output.rejected_rewards
    values = {
        "loss": output.losses,
        "accuracy": agreement(margin, batch.probability),
        "chosen_rewards": output.chosen_rewards,
        "rejected_rewards": output.rejected_rewards,
        "margin": margin,
        "chosen_logprobs": logprobs[batch.chosen],
        "rejected_logprobs": logprobs[batch.rejected],
    }
    decided = decided_weight(batch.weight, batch.probability)
    means.update(values, batch.weight, accuracy=decided, loss=pairs.weight)
    return output.losses
