"""Where the time of a training step goes, on the plain path, on ours and between: a Markdown table.

python -m benchmarks.phases [PATH ...]

Each path in a process of its own, for its peak memory; weights and gradients, no optimizer; in
bf16-mixed where the CPU multiplies bf16 faster.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.workloads import MODEL, ROWS
from lit_rlhf.batches import TokenRows
from lit_rlhf.cpu import install
from lit_rlhf.data import SFTDataModule
from lit_rlhf.models import PolicyModel, load_causal_lm
from lit_rlhf.models.packing import DEFAULT_WIDTH
from lit_rlhf.modules.activation_checkpointing import checkpoint_activations
from lit_rlhf.modules.precision import choose_precision

_PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::", "aten::mkldnn")
_ATTENTION = ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax")
_KINDS = ("matrix products", "attention", "all else")


class Variant(NamedTuple):
    """One way to compute the same step.

    Attributes:
        title: in the table.
        width: tokens of a packed row at most; None for padded rows with all logits.
        has_cpu_paths: layers and attention made for CPUs.
        is_compiled: the layers, by torch.compile.
        recomputes: activation checkpointing.
    """

    title: str
    width: int | None = DEFAULT_WIDTH
    has_cpu_paths: bool = True
    is_compiled: bool = False
    recomputes: bool = False


PATHS = {
    "plain": Variant("padded rows, all logits, transformers' layers", None, has_cpu_paths=False),
    "packed": Variant("packed rows, response logits, transformers' layers", has_cpu_paths=False),
    "ours": Variant("the same with the paths for CPUs: the default"),
    "checkpointed": Variant("the default, activation checkpointing", recomputes=True),
    "compiled": Variant(
        "packed, torch.compile of each layer", has_cpu_paths=False, is_compiled=True
    ),
}


def step(policy: PolicyModel, rows: TokenRows, *, is_plain: bool) -> None:
    """Make one forward and backward."""
    policy.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision() == "bf16-mixed"):
        loss = _loss(policy, rows, is_plain=is_plain)
    loss.backward()


def _loss(policy: PolicyModel, rows: TokenRows, *, is_plain: bool) -> Tensor:
    """Return the mean over response tokens; the plain path multiplies all by the vocabulary."""
    if not is_plain:
        return -policy(rows).logprobs.sum() / rows.response_mask.sum()
    columns = torch.arange(rows.input_ids.shape[1])
    real = (columns < rows.lengths[:, None]).long()
    logits = policy.model(input_ids=rows.input_ids, attention_mask=real, use_cache=False).logits
    labels = torch.where(rows.response_mask, rows.input_ids, -100)[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels)


def shares(events: Any) -> dict[str, float]:  # noqa: ANN401 - torch's event list is untyped
    """Add up the seconds spent in each kind of operation."""
    seconds = dict.fromkeys(_KINDS, 0.0)
    for event in events:
        kind = "all else"
        if event.key.startswith(_ATTENTION):
            kind = "attention"
        elif event.key.startswith(_PRODUCTS):
            kind = "matrix products"
        seconds[kind] += event.self_cpu_time_total / 1e6
    return seconds


def measure(path: Variant) -> dict[str, float]:
    """Take the path in this process, for the batch of the SFT workload.

    Returns:
        Seconds of the first step, of the best of two more, and of each kind of operation in one
        that is profiled; the peak in GiB before that one.
    """
    source = str(ROWS / "sft.jsonl")
    data = SFTDataModule(MODEL, train=source, batch_size=32, columns={"response": "completion"})
    data.setup("fit")
    rows = next(iter(data.train_dataloader()))
    policy = PolicyModel(load_causal_lm(MODEL), packing_width=path.width or DEFAULT_WIDTH).train()
    if path.has_cpu_paths:
        install(policy)
    if path.is_compiled:
        layers: Any = policy.trunk.layers
        for layer in layers:
            layer.compile(dynamic=True)
    if path.recomputes:
        checkpoint_activations(policy)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        step(policy, rows, is_plain=path.width is None)
        seconds.append(time.perf_counter() - start)
    peak = getrusage(RUSAGE_SELF).ru_maxrss / 2**20
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(policy, rows, is_plain=path.width is None)
    kinds = shares(profiler.key_averages())
    return {"first": seconds[0], "step": min(seconds[1:]), **kinds, "gib": peak}


def main() -> None:
    """Print a line for each path that is named, or for all."""
    if sys.argv[1:2] == ["--only"]:
        sys.stdout.write(json.dumps(measure(PATHS[sys.argv[2]])) + "\n")
        return
    sys.stdout.write(f"| seconds | first step | step | {' | '.join(_KINDS)} | peak, GiB |\n")
    sys.stdout.write("| --- " * 7 + "|\n")
    for name in sys.argv[1:] or PATHS:
        command = [sys.executable, "-m", "benchmarks.phases", "--only", name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(run.stdout.splitlines()[-1])
        cells = [f"{figures[key]:.2f}" for key in ("first", "step", *_KINDS)]
        sys.stdout.write(f"| {PATHS[name].title} | {' | '.join(cells)} | {figures['gib']:.2f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
