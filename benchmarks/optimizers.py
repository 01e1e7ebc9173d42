"""Time and memory of an optimizer step on the shapes of SmolLM2-135M, by how numbers are stored.

python -m benchmarks.optimizers [--threads N]

Each variant in a process of its own; ratios are against torch's fused AdamW in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from resource import RUSAGE_SELF, getrusage

import torch
from torch import nn

from lit_rlhf.modules import OptimizerConfig

VARIANTS = (
    ("float32", "float32"),
    ("bf16", "float32"),
    ("8bit", "float32"),
    ("float32", "bf16"),
    ("bf16", "bf16"),
    ("8bit", "bf16"),
)
NUM_WARM, NUM_TIMED = 2, 7
_WIDTH, _INNER, _KEYS, _LAYERS, _TOKENS = 576, 1536, 192, 30, 49_152
_LAYER = [(_WIDTH, _WIDTH)] * 2 + [(_KEYS, _WIDTH)] * 2 + [(_INNER, _WIDTH)] * 2
SHAPES = [(_TOKENS, _WIDTH), (_WIDTH,)]
SHAPES += [*_LAYER, (_WIDTH, _INNER), (_WIDTH,), (_WIDTH,)] * _LAYERS


def measure(states: str, weights: str, threads: int) -> dict[str, float]:
    """Step some times on random gradients; return seconds a step and MiB at the peak."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype).normal_()) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter).normal_()
    config = OptimizerConfig(states=states, weights=weights, schedule="constant")  # type: ignore[arg-type]
    optimizer, _ = config.build(parameters, NUM_WARM + NUM_TIMED)
    seconds = []
    for _ in range(NUM_WARM + NUM_TIMED):
        begin = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return {
        "first_s": seconds[0],
        "step_s": min(seconds[NUM_WARM:]),  # the others were disturbed
        "peak_mib": getrusage(RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure every variant, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=2, metavar=("STATES", "WEIGHTS"))
    options = parser.parse_args()
    if options.only:
        sys.stdout.write(json.dumps(measure(*options.only, options.threads)) + "\n")
        return
    base = None
    for states, weights in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.optimizers", "--only", states, weights]
        command += ["--threads", str(options.threads)]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        # Libraries print, too.
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("{")]
        figures = json.loads(line)
        base = base or figures
        sys.stdout.write(
            f"states {states:8} weights {weights:8} step {figures['step_s']:.3f} s "
            f"({figures['step_s'] / base['step_s']:.2f}), first {figures['first_s']:.1f} s, "
            f"peak {figures['peak_mib']:.0f} MiB ({figures['peak_mib'] / base['peak_mib']:.2f})\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
