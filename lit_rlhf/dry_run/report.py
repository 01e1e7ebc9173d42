"""A plan as text."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lit_rlhf.dry_run.plan import LIBRARIES, Plan, levers

_GB = 1e9
_NUM_LEVERS = 3
_MOMENTS = {
    "update": "forward, backward and optimizer step",
    "rollout": "the policy responds to prompts",
    "scoring": "reference and reward models read the responses",
}


def memory_of(device: str, num_processes: int) -> int:
    """Return the bytes that a process may use: its GPU's, or its share of the machine's."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // num_processes


def render(plan: Plan, available: int) -> str:
    """Return a page that says what a run needs, and what would help where it does not fit.

    Args:
        plan: of the run.
        available: bytes that each process has.
    """
    setup = plan.setup
    libraries = LIBRARIES.get(setup.device, 0.0)
    peak = plan.peak + libraries
    lines = ["parameters in millions, weights in GB (1e9 bytes)"]
    for role, size in plan.sizes.items():
        lines.append(
            f"  {role:26}{size.num_parameters / 1e6:10,.1f}, of which "
            f"{size.num_trained / 1e6:,.1f} train; {(size.trained + size.frozen) / _GB:.2f} GB"
        )
    processes = "the only process"
    if setup.num_processes > 1:
        processes = f"each of {setup.num_processes} processes ({setup.strategy})"
    lines.append(f"memory of {processes} in GB, {setup.device}, at the most during")
    names = list(dict.fromkeys(name for parts in plan.moments.values() for name in parts))
    lines.append("  " + " " * 26 + "".join(f"{moment:>10}" for moment in plan.moments))
    for name in names:
        values = [parts.get(name, 0) for parts in plan.moments.values()]
        lines.append(f"  {name:26}" + "".join(f"{value / _GB:10.2f}" for value in values))
    sums = [sum(parts.values()) for parts in plan.moments.values()]
    lines.append(f"  {'sum':26}" + "".join(f"{value / _GB:10.2f}" for value in sums))
    steps = "without end" if setup.num_steps is None else f"{setup.num_steps:,}"
    longest = max(plan.moments, key=lambda moment: sum(plan.moments[moment].values()))
    lines += [f"  {moment}: {_MOMENTS[moment]}" for moment in plan.moments]
    lines += [
        f"optimizer steps: {steps}, each of about {setup.step_tokens:,} tokens; "
        f"{setup.num_micro_batches} micro-batch(es) a process, the largest of "
        f"{setup.rows.num_tokens:,} tokens with padding",
        f"peak: {peak / _GB:.1f} GB (during {longest}; libraries take {libraries / _GB:.1f} GB of "
        f"it), of {available / _GB:.1f} GB: {'fits' if peak <= available else 'does NOT fit'}",
    ]
    if peak > available:
        found = levers(plan)[:_NUM_LEVERS]
        if found:
            lines.append("what saves most, each alone:")
        else:
            lines.append("no setting saves more: take a smaller model, or --trainer.strategy fsdp2")
        for lever in found:
            fits = "then it fits" if lever.peak + libraries <= available else "not enough alone"
            lines.append(f"  {lever.flag}  saves {lever.saved / _GB:.1f} GB, {fits}")
    return "\n".join(lines) + "\n"
