"""A plan as text."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lit_rlhf.dry_run.plan import LIBRARIES, Plan, levers

_GB = 1e9
_NUM_LEVERS = 3


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
    lines = ["parameters"]
    for role, size in plan.sizes.items():
        lines.append(
            f"  {role:12} {size.num_parameters / 1e6:10,.1f} M, {size.num_trained / 1e6:,.1f} M "
            f"train; {size.trained / _GB:.2f} GB that train, {size.frozen / _GB:.2f} GB frozen"
        )
    lines.append(
        f"memory of a process, GB ({setup.device}, {setup.strategy}, {setup.num_processes} of them)"
    )
    names = list(dict.fromkeys(name for parts in plan.moments.values() for name in parts))
    lines.append("  " + " " * 26 + "".join(f"{moment:>10}" for moment in plan.moments))
    for name in names:
        values = [parts.get(name, 0) for parts in plan.moments.values()]
        lines.append(f"  {name:26}" + "".join(f"{value / _GB:10.2f}" for value in values))
    sums = [sum(parts.values()) for parts in plan.moments.values()]
    lines.append(f"  {'sum':26}" + "".join(f"{value / _GB:10.2f}" for value in sums))
    steps = "without end" if setup.num_steps is None else f"{setup.num_steps:,}"
    lines += [
        f"a step: {setup.step_tokens:,} tokens, {setup.num_micro_batches} forward(s) a process of "
        f"up to {setup.rows.num_tokens:,} places; steps: {steps}",
        f"peak: {peak / _GB:.1f} GB with {libraries / _GB:.1f} GB of libraries, of "
        f"{available / _GB:.1f} GB: {'fits' if peak <= available else 'does NOT fit'}",
    ]
    if peak > available:
        for lever in levers(plan)[:_NUM_LEVERS]:
            fits = "then it fits" if lever.peak + libraries <= available else "not enough alone"
            lines.append(f"  {lever.flag}  saves {lever.saved / _GB:.1f} GB, {fits}")
    return "\n".join(lines) + "\n"
