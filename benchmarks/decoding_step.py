"""What a step of decoding asks of a device: kernels, and waits of the host for their results.

Counted, not timed, on a CPU that takes the path of a GPU: every operation that is not a view is one
launch there, and every number that Python reads is one wait. A CUDA graph is one launch, whatever
is in it: here its step is computed again, uncounted. Bytes are those that operations read and
write, each tensor once: at best the weights and the cache.

    python -m benchmarks.decoding_step
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from lit_rlhf.batches import PromptBatch
from lit_rlhf.models import LoRAConfig, PolicyModel, apply_lora
from lit_rlhf.models.kv_cache import RowCache
from lit_rlhf.rollout import Sampling, TorchGenerator
from lit_rlhf.rollout.graphs import Recorder

_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique_consecutive"}
_VIEWS = {"detach", "alias", "_unsafe_view", "lift_fresh"}


class Operations(TorchDispatchMode):
    """Counts launches and waits.

    Attributes:
        launches: operations by name that compute something.
        waits: operations by name whose result the host reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.in_graph = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        if self.in_graph:
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 else ()
        by_mask = isinstance(indices, (list, tuple)) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in indices
        )
        if name in _WAITS or by_mask:
            self.waits[name] += 1
        elif not func.is_view and name not in _VIEWS:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


class Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write.

    Attributes:
        by_name: operation -> bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        # An embedding reads a few rows of its table.
        if not func.is_view and name not in _VIEWS and name != "embedding":
            tensors = [
                one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)
            ]
            sizes = {(one.data_ptr(), size): size for one in tensors for size in [_read_bytes(one)]}
            self.by_name[name] += sum(sizes.values())
        return result


def _read_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: what is expanded is there once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return tensor.element_size() * math.prod(sizes)


class _Reads(TorchFunctionMode):
    """Counts `tolist`, which reads a CPU's memory without an operation of its own."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        if func is Tensor.tolist:
            self.waits["tolist"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting() -> Iterator[Operations]:
    """Count what is launched and waited for inside, by the path of a GPU."""
    operations = Operations()
    names = ("lit_rlhf.models.backbone", "lit_rlhf.models.kv_cache")
    one, other = (mock.patch(f"{name}.waits_for_gpu", return_value=True) for name in names)
    with one, other, operations, _Reads(operations.waits):
        yield operations


def graphs_counted_by(operations: Operations) -> Recorder:
    """Return what takes the place of CUDA's graphs: each launch counts as one."""

    def record(run: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            operations.launches["graph"] += 1
            operations.in_graph = True
            run()
            operations.in_graph = False

        return replay

    return record


def count_steps(
    policy: PolicyModel, num_rows: int = 4, *, graphs: bool = False
) -> tuple[float, float, Counter[str]]:
    """Return launches and waits of a step, and the waits by name.

    Two runs that differ in their steps alone are compared, so that prompts do not count, nor the
    first steps, which make a graph.
    """
    lengths = torch.arange(3, 3 + num_rows)
    prompts = PromptBatch(
        torch.full((num_rows, int(lengths.max())), 5),
        lengths,
        lengths,
        [""] * num_rows,
        [{}] * num_rows,
    )
    counted = []
    for num_tokens in (8, 16):
        with (
            counting() as operations,
            _recording(graphs_counted_by(operations) if graphs else None),
        ):
            TorchGenerator()(policy, prompts, Sampling(num_tokens), stop_ids=[10**6])
        counted.append(operations)
    short, long = counted
    waits = {name: (long.waits[name] - short.waits[name]) / 8 for name in long.waits}
    launches = (long.launches.total() - short.launches.total()) / 8
    return launches, sum(waits.values()), Counter({k: v for k, v in waits.items() if v})  # type: ignore[arg-type]  # shares of steps


def _recording(recorder: Recorder | None) -> Any:  # noqa: ANN401 - of mock
    return mock.patch("lit_rlhf.rollout.generation.recorder_for", return_value=recorder)


def count_move(policy: PolicyModel) -> int:
    """Return the launches for a row that ends: the last one takes its place in all layers."""
    token = torch.zeros(2, 1, dtype=torch.long)
    cache, prompts = RowCache(2, 2), RowCache(2, 1, size=2)
    policy.next_logits(token, token, token == 0, prompts)
    prompts.advance(1)
    cache.admit(prompts, torch.arange(2))
    with counting() as operations:
        cache.keep([1])
    return operations.launches.total()


def traffic_of_step(policy: PolicyModel, num_rows: int, num_columns: int) -> tuple[Traffic, int]:
    """Return what a step of so many full rows moves, and the bytes of the cache that it reads."""
    cache = RowCache(num_rows, num_columns + 1, size=num_rows)
    token = torch.ones(num_rows, 1, dtype=torch.long)
    policy.next_logits(token, 0 * token, token == 1, cache)
    cache.window.end = num_columns - 1  # zeros are read as any numbers
    lengths = torch.full((num_rows,), num_columns - 1)
    with counting(), Traffic() as traffic:
        policy.next_logits(token, lengths[:, None], cache.readable(lengths), cache)
    return traffic, cache.nbytes * num_columns // (num_columns + 1)


def traffic_ratio(name: str, num_rows: int = 32, num_columns: int = 1024) -> float:
    """Return the bytes that a step of a real width moves over those of weights and cache.

    One and two layers are computed, in bf16, and all others taken to be like the second. The
    vocabulary is left out.
    """
    model_type, num_layers = SHAPES[name]
    found = []
    for layers in (1, 2):
        config = AutoConfig.for_model(
            model_type, vocab_size=256, num_hidden_layers=layers, **WIDTHS[name]
        )
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        weights = sum(one.nbytes for one in model.parameters())
        traffic, cached = traffic_of_step(PolicyModel(model).eval(), num_rows, num_columns)
        found.append((traffic.by_name.total(), weights + cached))
    (moved, least), (moved_by_two, least_of_two) = found
    others = num_layers - 1
    return (moved + others * (moved_by_two - moved)) / (least + others * (least_of_two - least))


SHAPES = {
    "Qwen2.5-1.5B": ("qwen2", 28),
    "Qwen3-1.7B": ("qwen3", 28),
    "Llama-3-8B": ("llama", 32),
}


WIDTHS: dict[str, dict[str, int]] = {
    "Qwen2.5-1.5B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def narrow_policy(model_type: str, num_layers: int, *, lora: bool = False) -> PolicyModel:
    """Return a random policy with the layers of a real one and few numbers in them."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=256,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )
    return PolicyModel(apply_lora(model, LoRAConfig()) if lora else model).eval()


def main() -> None:
    """Print a table."""
    print("| model | launches a step | with graphs | a row that ends | waits a step | which |")  # noqa: T201
    print("| --- " * 6 + "|")  # noqa: T201
    for name, (model_type, num_layers) in SHAPES.items():
        for lora in (False, True):
            policy = narrow_policy(model_type, num_layers, lora=lora)
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
                launches, waits, which = count_steps(policy)
                by_graphs, _, _ = count_steps(policy, graphs=True)
                move = count_move(policy)
            label = f"{name}, LoRA" if lora else name
            counts = f"{launches:.0f} | {by_graphs:.0f} | {move} | {waits:.1f}"
            print(f"| {label} | {counts} | {dict(which)} |")  # noqa: T201
    for name in WIDTHS:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            print(f"{name}: {traffic_ratio(name):.2f} times the bytes of weights and cache")  # noqa: T201


if __name__ == "__main__":
    main()
