"""Data for direct preference optimisation: judged groups and comparisons."""

from __future__ import annotations

from lit_rlhf.data.comparisons import ComparisonDataModule


class DPODataModule(ComparisonDataModule):
    """Judged groups and comparisons as `ComparisonBatch`; `batch_size` counts groups."""
