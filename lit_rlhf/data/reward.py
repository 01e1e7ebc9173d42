"""Data for reward modelling: judged groups and comparisons."""

from __future__ import annotations

from lit_rlhf.data.comparisons import ComparisonDataModule


class RewardDataModule(ComparisonDataModule):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups."""

    is_for_reward = True
