"""From one score a response to a reward a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_rlhf.errors import ConfigError
from lit_rlhf.objectives.precision import at_least_float32, require_same_shape

MissingEOSAction = Literal["replace", "subtract", "keep", "filter"]


@dataclass(frozen=True)
class MissingEOS:
    """What happens to the score of a response that did not end by itself.

    A reward model was trained on finished responses; its score of a torn one means little,
    and rewarding it teaches the policy to ramble.

    Attributes:
        action: `replace` sets the score to `value` (OpenAI's 2019 code, score -1);
            `subtract` takes `value` off the score (TRL's `missing_eos_penalty`);
            `keep` leaves it; `filter` leaves the response out of baseline and loss (Yu et al.
            2025, DAPO, "overlong filtering"; TRL's `mask_truncated_completions` keeps it in the
            baseline).
        value: the score to set, or, for `subtract`, the penalty, which must be positive.

    Raises:
        ConfigError: if `action` is unknown, `subtract` has a `value` that is not a penalty, or
            there is a `value` that has no effect.
    """

    action: MissingEOSAction = "replace"
    value: float = -1.0

    def __post_init__(self) -> None:
        if self.action not in get_args(MissingEOSAction):
            raise ConfigError(
                f"missing_eos.action is {self.action!r}; choose replace, subtract, keep or filter"
            )
        if self.action == "subtract" and not self.value > 0:
            raise ConfigError(
                f"missing_eos.value is {self.value}, but action 'subtract' takes it off the "
                "score: give a positive penalty, such as 1.0"
            )

        if self.action in {"keep", "filter"} and self.value != MissingEOS.value:
            raise ConfigError(
                f"missing_eos.value {self.value} has no effect with action {self.action!r}: leave "
                "it out, or choose replace or subtract"
            )

    def apply(
        self, scores: Float[Tensor, " B"], finished: Bool[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """Return the scores with the rule applied to unfinished responses.

        Args:
            scores: one a response.
            finished: True where the response ended by a stop token, not by the limit.

        Returns:
            New scores; those of finished responses are unchanged. NaN is one that is left out.

        Raises:
            ValueError: if the shapes differ.
        """
        require_same_shape(scores=scores, finished=finished)
        if self.action == "keep":
            return scores
        if self.action == "subtract":
            return torch.where(finished, scores, scores - self.value)
        value = float("nan") if self.action == "filter" else self.value
        return scores.masked_fill(~finished, value)


def token_rewards(
    scores: Float[Tensor, " B"],
    token_kl: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """Spread score and KL penalty over the tokens of each response.

    `R[b, t] = -kl_coef * token_kl[b, t] + (t is the last response token) * scores[b]`.
    Source: Ziegler et al. 2019, eq. 2, and OpenAI's code for it. The score is on the last
    token that counts (the EOS, as in OpenRLHF and verl), not one behind it as in TRL.

    Args:
        scores: one a response, after the missing-EOS rule.
        token_kl: nats a token (estimator k1 keeps the penalty unbiased).
        response_mask: True at response tokens; gaps are allowed.
        kl_coef: the weight of the penalty, >= 0.

    Returns:
        Reward a token, float32 (float64 for float64), zero where the mask is False. A row
        without response tokens gets nothing, its score included.

    Raises:
        ValueError: if the shapes do not fit.
    """
    require_same_shape(token_kl=token_kl, response_mask=response_mask)
    if scores.shape != token_kl.shape[:1]:
        raise ValueError(
            f"scores must have one entry a row of token_kl {list(token_kl.shape)}, "
            f"got {list(scores.shape)}"
        )
    remaining = response_mask.flip(-1).cumsum(-1).flip(-1)  # [B, T], tokens from here on
    is_last = response_mask & (remaining == 1)
    rewards = -kl_coef * at_least_float32(token_kl)
    rewards = torch.where(is_last, rewards + at_least_float32(scores)[:, None], rewards)
    return rewards.masked_fill(~response_mask, 0.0)
