"""Where the distance to the reference is charged, and by which estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.kl import kl_k1, kl_k2, kl_k3, kl_k3_straight_through
from lit_rlhf.objectives.policy.loss import bounded_exp
from lit_rlhf.objectives.precision import at_least_float32

KLPlace = Literal["reward", "loss"]
KLEstimate = Literal["k1", "k2", "k3", "k3_straight_through"]
_ESTIMATES = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
    "k3_straight_through": kl_k3_straight_through,
}


@dataclass(frozen=True)
class KLPenalty:
    """The KL to the reference, in the rewards of a rollout or in the loss of each update.

    With `kl` the estimate at each token:

    `token_rewards = -kl_coef * kl` before the score is added, or `loss = policy loss + kl_coef *
    kl`, weighted by `ratio = exp(logprobs - old_logprobs)` if so asked

    Source: in the reward Ziegler et al. 2019, eq. 2, by k1; in the loss Shao et al. 2024 (GRPO),
    eq. 4, by k3; with the ratio, which makes value and gradient those of the KL for tokens that an
    older policy sampled, DeepSeek-V3.2 2025.

    Peers: TRL's GRPO has k3 in the loss with the ratio (`use_bias_correction_kl`), its RLOO k1 in
    the reward; verl offers all of them.

    Attributes:
        place: "reward" or "loss".
        estimate: "k1", "k2", "k3", or "k3_straight_through", the value of k3 with k2's gradient.
        importance_weighted: multiply the term of the loss by the ratio.

    Raises:
        ConfigError: if a choice is none of these, or has no effect beside the others.
    """

    place: KLPlace = "reward"
    estimate: KLEstimate = "k1"
    importance_weighted: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("place", KLPlace), ("estimate", KLEstimate)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"model.kl_penalty.{name} is {getattr(self, name)!r}; choose one of "
                    f"{', '.join(get_args(choices))}"
                )
        if self.place == "reward" and self.estimate == "k3_straight_through":
            raise ConfigError(
                "model.kl_penalty.estimate k3_straight_through differs from k3 by its gradient, "
                "and rewards have none: choose k3, or model.kl_penalty.place loss"
            )
        if self.place == "reward" and self.importance_weighted:
            raise ConfigError(
                "model.kl_penalty.importance_weighted has no effect on rewards, whose tokens are "
                "the policy's own: leave it out, or choose model.kl_penalty.place loss"
            )
        if self.place == "loss" and self.estimate == "k1" and not self.importance_weighted:
            raise ConfigError(
                "model.kl_penalty.estimate k1 has no effect in the loss: the mean of its gradient "
                "is zero. Choose k2, k3 or k3_straight_through, or importance_weighted true"
            )

    def of_tokens(self, logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
        """Estimate the KL at each token: nats, same shape, float32 (float64 for float64)."""
        return _ESTIMATES[self.estimate](logprobs, reference_logprobs)

    def loss(self, logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
        """Return the term of the loss at each token, before the coefficient.

        Args:
            logprobs: under the policy that is trained.
            old_logprobs: under the policy that sampled.
            reference_logprobs: under the reference.
        """
        kl = self.of_tokens(logprobs, reference_logprobs)
        if not self.importance_weighted:
            return kl
        return kl * bounded_exp(at_least_float32(logprobs) - at_least_float32(old_logprobs))
