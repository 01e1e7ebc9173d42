"""Attention over short rows against torch's fused kernel, forward and backward: a Markdown table.

python -m benchmarks.attention [--precision bf16-mixed|32-true]

The heads of SmolLM2-135M, some 1,000 tokens in rows of each width, a shared prompt's kind of mask.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lit_rlhf.cpu.attention import short_attention
from lit_rlhf.modules.precision import choose_precision

HEADS, KV_HEADS, WIDTH, TOKENS, SEGMENT = 9, 3, 64, 1024, 32
LENGTHS = (32, 64, 96, 128, 160, 192, 256, 384)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attend with torch's kernel, as `short_attention`."""
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return attended.transpose(1, 2)


def milliseconds(
    attend: Callable[..., Tensor], length: int, dtype: torch.dtype, at_least: float = 0.5
) -> float:
    """Time a forward and backward: the median."""
    batch = TOKENS // length
    shapes = [(batch, length, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]
    segment = torch.arange(length) // SEGMENT
    mask = (segment[:, None] == segment).tril().expand(batch, 1, -1, -1)
    grad = torch.randn(batch, length, HEADS, WIDTH, dtype=dtype)
    seconds: list[float] = []
    while sum(seconds) < at_least:
        start = time.perf_counter()
        torch.autograd.grad(attend(*inputs, mask, WIDTH**-0.5), inputs, grad)
        seconds.append(time.perf_counter() - start)
    return 1000 * sorted(seconds)[len(seconds) // 2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", default=choose_precision())
    dtype = torch.float32 if parser.parse_args().precision == "32-true" else torch.bfloat16
    sys.stdout.write("| tokens in a row | fused kernel, ms | batched products, ms | ratio |\n")
    sys.stdout.write("| --- " * 4 + "|\n")
    for length in LENGTHS:
        theirs, ours = (milliseconds(one, length, dtype) for one in (fused, short_attention))
        sys.stdout.write(f"| {length} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f}x |\n")


if __name__ == "__main__":
    main()
