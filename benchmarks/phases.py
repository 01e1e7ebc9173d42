"""Where the time of a training step goes, on the plain path and on ours: a Markdown table.

python -m benchmarks.phases
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.workloads import MODEL, ROWS
from lit_rlhf.batches import TokenRows
from lit_rlhf.data import SFTDataModule
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.models.lean_layers import lighten

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::", "aten::mkldnn")
_KINDS = ("matrix products", "attention", "all else")


def step(policy: PolicyModel, rows: TokenRows, *, is_plain: bool) -> None:
    """Make one forward and backward; the plain path multiplies all positions by the vocabulary."""
    policy.zero_grad()
    if not is_plain:
        (policy(rows).logprobs.sum() / rows.response_mask.sum()).neg().backward()
        return
    columns = torch.arange(rows.input_ids.shape[1])
    real = (columns < rows.lengths[:, None]).long()
    logits = policy.model(input_ids=rows.input_ids, attention_mask=real, use_cache=False).logits
    labels = torch.where(rows.response_mask, rows.input_ids, -100)[:, 1:].flatten()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels).backward()


def shares(events: Any) -> dict[str, float]:  # noqa: ANN401 - torch's event list is untyped
    """Add up the seconds spent in each kind of operation."""
    seconds = dict.fromkeys(_KINDS, 0.0)
    for event in events:
        kind = "all else"
        if "attention" in event.key or "flash" in event.key:
            kind = "attention"
        elif event.key.startswith(_PRODUCTS):
            kind = "matrix products"
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def main() -> None:
    """Print the table for the batch of the SFT workload, in float32."""
    source = str(ROWS / "sft.jsonl")
    data = SFTDataModule(MODEL, train=source, batch_size=32, columns={"response": "completion"})
    data.setup("fit")
    rows = next(iter(data.train_dataloader()))
    sys.stdout.write(f"| path | step | {' | '.join(_KINDS)} |\n| --- | --- | --- | --- | --- |\n")
    for name, is_plain in (("padded, all logits, transformers' layers", True), ("ours", False)):
        policy = PolicyModel(load_causal_lm(MODEL)).train()
        if not is_plain:
            lighten(policy)
        step(policy, rows, is_plain=is_plain)
        start = time.perf_counter()
        step(policy, rows, is_plain=is_plain)
        seconds = time.perf_counter() - start
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step(policy, rows, is_plain=is_plain)
        kinds = shares(profiler.key_averages())
        cells = [f"{kinds[kind]:.2f} s" for kind in _KINDS]
        sys.stdout.write(f"| {name} | {seconds:.2f} s | {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
