"""One number from a hidden state: the head of reward models and critics."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.batches import TokenRows
from lit_rlhf.errors import ConfigError
from lit_rlhf.models.backbone import hidden_states, without_adapter_wrapper
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.models.paths import trunk_paths_of


class ScalarHead(nn.Module):
    """A linear map to one scalar, computed in float32.

    Weights start as N(0, deviation^2), by default with `deviation = 1 / sqrt(H + 1)`. Source:
    lm-human-preference-details, reward head (Stiennon et al. 2020 and its reproduction agree;
    1 / (H + 1), as one peer has it, starts the scores sqrt(H + 1) times too small).

    Args:
        width: `H`.
        deviation: of the initial weights; None for 1 / sqrt(H + 1).
        bias: add a bias, starting at zero. A reward model has none: Bradley-Terry cannot see it,
            and the normaliser sets the mean.
    """

    def __init__(self, width: int, *, deviation: float | None = None, bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, bias=bias)
        deviation = (width + 1) ** -0.5 if deviation is None else deviation
        nn.init.normal_(self.linear.weight, std=deviation)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[..., H]` to `[...]` float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            scalar: Tensor = self.linear(hidden.float()).squeeze(-1)
        return scalar


class ScalarModel(nn.Module):
    """A trunk and a scalar head: a reward model (one score a row) or a critic (one a token).

    Args:
        backbone: a transformers base model without a head (or a peft model around one).
        packing_width: tokens in a packed row of the trunk; None keeps the padded layout, as do
            architectures whose packed rows are not what each row is alone.
        bias: give the head a bias (a critic has one).

    Attributes:
        mean, deviation: buffers, the raw score's moments on the reference policy's samples
            (0 and 1 until `set_normalizer`); saved with the model.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        packing_width: int | None = DEFAULT_WIDTH,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        paths = trunk_paths_of(backbone)
        self.packing_width = packing_width if paths.packs else None
        self.head = ScalarHead(paths.width, bias=bias)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, rows: TokenRows) -> Tensor:
        """Score whole rows by the hidden state of their last real token.

        Args:
            rows: `B` rows; `lengths` tells where each ends, never a pad id.

        Returns:
            `[B]` float32 raw scores: a difference of two is the log-odds of a preference.
        """
        scores: Tensor = self.head(self.features(rows))
        return scores

    def features(self, rows: TokenRows) -> Tensor:
        """Return what the head reads of each row: `[B, H]`, the hidden state of its last token."""
        hidden, places = hidden_states(self.backbone, rows, self.packing_width)
        last = places.gather(1, rows.lengths[:, None] - 1).squeeze(1)  # [B]
        features: Tensor = hidden[last]
        return features

    def step_scores(self, rows: TokenRows) -> Tensor:
        """Score the tokens that count, at which steps end, by their own hidden states.

        Args:
            rows: `B` rows, `S` tokens of which count.

        Returns:
            `[S]` float32 raw scores, row by row: log-odds that the step is right.
        """
        hidden, places = hidden_states(self.backbone, rows, self.packing_width)
        scores: Tensor = self.head(hidden[places[rows.response_mask]])
        return scores

    def token_values(self, rows: TokenRows) -> Tensor:
        """Estimate the value before each response token: the state that predicts it.

        Args:
            rows: `B` rows of up to `L` tokens.

        Returns:
            `[B, L]` float32, zero where `response_mask` is False.
        """
        hidden, places = hidden_states(self.backbone, rows, self.packing_width)
        row, column = rows.response_mask.nonzero(as_tuple=True)
        values = self.head(hidden[places[row, column - 1]])
        full = torch.zeros(rows.input_ids.shape, device=values.device)
        return full.index_put((row, column), values)

    def normalize(self, raw_scores: Tensor) -> Tensor:
        """Return `(raw - mean) / deviation`: mean 0, deviation 1 on the reference's samples."""
        return (raw_scores - self.mean) / self.deviation

    def set_normalizer(self, mean: float, deviation: float) -> None:
        """Fix the moments of the raw score; saved and exported with the model.

        Raises:
            ConfigError: the deviation is not positive (every sample had the same score), or a
                moment is not finite.
        """
        if not deviation > 0:
            raise ConfigError(
                f"the reward normaliser needs scores that differ; their deviation is {deviation}"
            )
        if not (math.isfinite(mean) and math.isfinite(deviation)):
            raise ConfigError(
                f"the reward normaliser needs finite moments, got mean {mean} and "
                f"deviation {deviation}: the reward model gives scores that are no numbers"
            )
        self.mean.fill_(mean)
        self.deviation.fill_(deviation)

    @property
    def transformers_config(self) -> Any:  # noqa: ANN401  (its fields differ by architecture)
        """The architecture's configuration."""
        return without_adapter_wrapper(self.backbone).config
