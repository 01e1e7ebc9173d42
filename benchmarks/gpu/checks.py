"""The checks, the most valuable first: what would train on wrong numbers, then memory and speed.

On a CPU each runs at a tiny size, which proves the check and not the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.dry_run import Case, arguments, write_inputs
from benchmarks.gpu.models import prompt_batch, random_policy, random_rows, shape_for
from lit_rlhf.batches import PromptBatch
from lit_rlhf.models.fast_paths import take_fast_paths
from lit_rlhf.models.policy import PolicyModel
from lit_rlhf.models.sequence_attention import kernel_works
from lit_rlhf.modules.bf16_adamw import BF16AdamW
from lit_rlhf.phase_cli import run_phase
from lit_rlhf.rollout import Sampling, TorchGenerator
from lit_rlhf.rollout import graphs as graphs_module
from lit_rlhf.rollout.cache_size import cached_tokens_for
from lit_rlhf.rollout.graphs import Recorder, recorder_for


@dataclass
class Found:
    """What a check found.

    Attributes:
        holds: what must be so, by a short statement.
        figures: numbers to record.
        skipped: why it could not run.
    """

    holds: dict[str, bool] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""


class Check(NamedTuple):
    """A check.

    Attributes:
        run: device, an empty folder -> what was found.
        limit_s: it is ended after this.
    """

    run: Callable[[str, Path], Found]
    limit_s: float


def masked_attention(device: str, folder: Path) -> Found:
    """Gradients under masks of the widths for which cuDNN has given NaN, with and without it."""
    found = Found()
    for uses_cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(uses_cudnn)
        broken = [width for width in (64, 192, 704) if not _gradients_are_finite(device, width)]
        name = "with" if uses_cudnn else "without"
        found.figures[f"widths broken {name} cuDNN"] = broken
        found.figures[f"growing shapes {name} cuDNN, ms"] = _time_of_growing_shapes(device)
    found.holds["gradients are numbers without cuDNN"] = not broken
    policy = random_policy(shape_for(device, "small"), device)
    rows = random_rows(device, 16)
    with _autocast(device):
        policy(rows).logprobs.sum().backward()
    found.holds["a wrapped model has cuDNN off"] = not torch.backends.cuda.cudnn_sdp_enabled()
    gradients = [one.grad for one in policy.parameters() if one.grad is not None]
    found.holds["the product's gradients are numbers"] = all(
        bool(torch.isfinite(gradient).all()) for gradient in gradients
    )
    return found


def _gradients_are_finite(device: str, width: int) -> bool:
    # Of pytorch#196678: a row whose log-sum-exp is very low, under a mask.
    query = torch.randn(2, 4, width, 64, device=device, dtype=torch.bfloat16)
    query[:, :, -1] *= 60
    inputs = [query, torch.randn_like(query), torch.randn_like(query)]
    inputs = [one.requires_grad_() for one in inputs]
    mask = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    scaled_dot_product_attention(*inputs, attn_mask=mask).float().sum().backward()
    return all(bool(torch.isfinite(one.grad).all()) for one in inputs if one.grad is not None)


def _time_of_growing_shapes(device: str) -> float:
    """Return the ms of a call where each has one key more, as in decoding."""
    query = torch.randn(8, 2, 6, 64, device=device, dtype=torch.bfloat16)
    lengths = range(1000, 1016) if device == "cuda" else range(20, 24)
    start = time.perf_counter()
    for length in lengths:
        key = torch.randn(8, 2, length, 64, device=device, dtype=torch.bfloat16)
        mask = torch.ones(8, 1, 1, length, dtype=torch.bool, device=device)
        scaled_dot_product_attention(query, key, key, attn_mask=mask)
    _wait(device)
    return 1e3 * (time.perf_counter() - start) / len(lengths)


def sequence_kernel(device: str, folder: Path) -> Found:
    """Packed rows by torch's kernel for sequences against padded rows, both ways."""
    found = Found()
    heads = {"Qwen2.5-1.5B": (12, 2, 128), "Llama 3 8B": (32, 8, 128), "Gemma 3 4B": (8, 4, 256)}
    for name, counts in heads.items():
        found.holds[f"the kernel works for {name}"] = kernel_works(torch.device(device), *counts)
    shape = shape_for(device, "small")
    padded = random_policy(shape, device, packing_width=None)
    packed = PolicyModel(padded.model)
    take_fast_paths(packed, torch.device(device))
    rows = random_rows(device, 24)
    outcomes = []
    for policy in (padded, packed):
        start = time.perf_counter()
        for _ in range(2):  # the second one is timed
            _wait(device)
            start = time.perf_counter()
            policy.zero_grad()
            with _autocast(device):
                logprobs = policy(rows).logprobs
            logprobs.sum().backward()
            _wait(device)
        seconds = time.perf_counter() - start
        gradients = [one.grad for one in policy.parameters() if one.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        outcomes.append((logprobs.detach(), float(norm), seconds))
    (plain, plain_norm, plain_s), (ours, our_norm, our_s) = outcomes
    gap = float((plain - ours)[rows.response_mask].abs().mean())
    found.figures |= {"mean gap of log-probabilities": gap}
    found.figures |= {"padded, s": plain_s, "packed, s": our_s}
    found.holds["log-probabilities agree"] = gap < 0.05
    found.holds["gradients agree"] = abs(our_norm - plain_norm) < 0.05 * plain_norm
    return found


def greedy_tokens(device: str, folder: Path) -> Found:
    """The likeliest tokens of the device and of a CPU, in float32."""
    shape = shape_for("cpu", "small")
    torch.manual_seed(0)
    policy = random_policy(shape, "cpu")
    drawn = []
    for where in ("cpu", device):
        policy.to(where)
        prompts = prompt_batch(where, 8, 12, shape.vocabulary)
        greedy = Sampling(16, temperature=0.0)
        drawn.append(TorchGenerator()(policy, prompts, greedy, stop_ids=[shape.vocabulary]))
    same = drawn[0].tokens == drawn[1].tokens.cpu()
    share = float(same.float().mean())
    return Found({"nearly all tokens agree": share > 0.9}, {"share of equal tokens": share})


def ppo(device: str, folder: Path) -> Found:
    """Two iterations of PPO on a model of real size: the first ratio, and memory as planned."""
    shape = shape_for(device, "large")
    shape.save(folder / "large")
    write_inputs(folder)
    is_gpu = device == "cuda"
    prompts = ("--data.batch_size", "64" if is_gpu else "4")
    options = (
        *prompts,
        *("--model.sampling.max_new_tokens", "256" if is_gpu else "6"),
        *("--model.update.micro_batch_tokens", "16384" if is_gpu else "200"),
        *("--model.update.num_epochs", "1", "--trainer.precision", "bf16-mixed"),
        *("--trainer.accelerator", "gpu" if is_gpu else "cpu", "--trainer.devices", "1"),
        *("--trainer.log_every_n_steps", "1"),
    )
    case = Case("ppo", options)
    plan = run_phase("ppo", [*arguments(case, folder, "large"), "--dry-run"]).plan
    assert plan is not None
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    cli = run_phase("ppo", arguments(case, folder, "large"))
    seconds = time.perf_counter() - start
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    ratio = metrics["train/ppo/first_log_ratio"]
    found = Found({"the first ratio is one": ratio < 1e-3}, {"first_log_ratio": ratio})
    found.figures["two iterations, s"] = seconds
    found.holds["no step was skipped"] = metrics["train/ppo/skipped_steps"] == 0
    found.figures["expected peak, GB"] = plan.peak / 1e9
    if is_gpu:
        measured = torch.cuda.max_memory_allocated()
        found.figures["measured peak, GB"] = measured / 1e9
        found.holds["the plan is right within 15 %"] = abs(plan.peak / measured - 1) < 0.15
    return found


def decoding(device: str, folder: Path) -> Found:
    """Tokens a second by the size of the cache; launches and waits of a step."""
    policy = random_policy(shape_for(device, "large"), device).eval()
    is_gpu = device == "cuda"
    num_rows, prompt, response = (512, 512, 64) if is_gpu else (8, 6, 6)
    vocabulary = policy.transformers_config.vocab_size
    prompts = prompt_batch(device, num_rows, prompt, vocabulary)
    found = Found()
    budgets = (65_536, 262_144, None) if is_gpu else (40, None)
    with _autocast(device):
        found.figures["tokens that fit"] = cached_tokens_for(policy, torch.device(device))
        for tokens in budgets:
            generator = TorchGenerator(max_cached_tokens=tokens)
            _wait(device)
            start = time.perf_counter()
            generator(policy, prompts, Sampling(response), stop_ids=[vocabulary])
            _wait(device)
            rate = num_rows * response / (time.perf_counter() - start)
            found.figures[f"tokens/s with a cache of {tokens or 'what fits'}"] = rate
        found.figures |= _profile_of_steps(policy, prompts, vocabulary, device)
    return found


def graphs(device: str, folder: Path) -> Found:
    """Responses by CUDA graphs and by plain steps: the same tokens, and the steps a second."""
    is_gpu = device == "cuda"
    found, recorder = Found(), _Recorder(device)
    for size in ("small", "large"):
        shape = shape_for(device, size)
        policy = random_policy(shape, device).eval()
        num_rows, prompt, response = (64, 256, 256) if is_gpu else (6, 6, 24)
        prompts = prompt_batch(device, num_rows, prompt, shape.vocabulary)
        in_bf16 = nullcontext() if size == "small" else _autocast(device)
        drawn = []
        with mock.patch("lit_rlhf.rollout.generation.recorder_for", recorder.of), in_bf16:
            for uses_graphs in (False, True):
                generator = TorchGenerator(cuda_graphs=uses_graphs)
                for num_tokens in (2, response):  # what a first call makes is not timed
                    _wait(device)
                    start = time.perf_counter()
                    sampling = Sampling(num_tokens)
                    responses = generator(policy, prompts, sampling, stop_ids=[shape.vocabulary])
                    _wait(device)
                drawn.append(responses)
                name = f"{size}, {'graphs' if uses_graphs else 'plain'}"
                found.figures[f"{name}: steps/s"] = response / (time.perf_counter() - start)
        plain, ours = drawn
        found.figures[f"{size}: share of equal tokens"] = float(
            (plain.tokens == ours.tokens).float().mean()
        )
        found.holds[f"{size}: nothing was refused"] = policy not in graphs_module._without_graphs
    share = found.figures["small: share of equal tokens"]
    found.holds["nearly all tokens agree in float32"] = share > 0.9
    found.figures |= {"graphs": recorder.count, "s to record one": recorder.mean_s}
    found.holds["steps were recorded"] = recorder.count > 1
    return found


class _Recorder:
    """Records as the device does, counted and timed; a CPU runs the step again instead."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.count = 0
        self.seconds = 0.0

    @property
    def mean_s(self) -> float:
        return self.seconds / max(1, self.count)

    def of(self, policy: PolicyModel, device: torch.device) -> Recorder | None:
        """Take the place of `recorder_for`."""
        own = recorder_for(policy, device) if self.device == "cuda" else lambda run: run
        if own is None:
            return None

        def record(run: Callable[[], None]) -> Callable[[], None]:
            start = time.perf_counter()
            replay = own(run)
            self.seconds += time.perf_counter() - start
            self.count += 1
            return replay

        return record


def _profile_of_steps(
    policy: PolicyModel, prompts: PromptBatch, vocabulary: int, device: str
) -> dict[str, float]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    few = prompts._replace(
        input_ids=prompts.input_ids[:4],
        lengths=prompts.lengths[:4],
        prompt_ids=prompts.prompt_ids[:4],
        prompts=prompts.prompts[:4],
        fields=prompts.fields[:4],
    )
    found = {}
    # The first steps, which make a graph, are in both runs of it.
    for name, lengths in (("plain", (2, 6)), ("with graphs", (10, 14))):
        generator = TorchGenerator(cuda_graphs=name != "plain")
        counts = []
        for num_tokens in lengths:
            with torch.profiler.profile(activities=activities) as profile:
                generator(policy, few, Sampling(num_tokens), stop_ids=[vocabulary])
            names = [event.name for event in profile.events()]
            launches = sum("LaunchKernel" in name or "GraphLaunch" in name for name in names)
            waits = sum("Synchronize" in name for name in names)
            counts.append((launches, waits))
        (launches, waits), (more_launches, more_waits) = counts
        found[f"{name}: launches a step"] = (more_launches - launches) / 4
        found[f"{name}: waits a step"] = (more_waits - waits) / 4
    return found


def phases(device: str, folder: Path) -> Found:
    """Two steps of every phase by precision and adapters, with a tiny model."""
    write_inputs(folder)
    found = Found()
    is_gpu = device == "cuda"
    precisions = ("bf16-mixed", "32-true", "16-mixed") if is_gpu else ("bf16-mixed",)
    accelerator = "gpu" if is_gpu else "cpu"
    for phase in ("sft", "reward", "dpo", "ppo") if is_gpu else ("sft", "ppo"):
        for precision in precisions:
            for lora in ((), ("--model.lora.rank", "4")):
                options = ("--trainer.precision", precision, "--trainer.accelerator", accelerator)
                options += ("--trainer.devices", "1", *lora)
                if phase == "ppo":
                    options += ("--model.sampling.max_new_tokens", "4")
                name = " ".join((phase, precision, "LoRA" if lora else "full"))
                found.holds[name] = _runs(Case(phase, options), folder)
    return found


def strategies(device: str, folder: Path) -> Found:
    """Strategies with one process, deterministic kernels."""
    write_inputs(folder)
    found = Found()
    accelerator = "gpu" if device == "cuda" else "cpu"
    common = ("--trainer.accelerator", accelerator, "--trainer.devices", "1")
    common += ("--trainer.precision", "bf16-mixed", "--model.sampling.max_new_tokens", "4")
    for option in (("strategy", "ddp"), ("strategy", "fsdp2"), ("deterministic", "true")):
        if device == "cpu" and option[0] == "strategy":
            continue  # needs a port; tests/distributed has these on CPUs
        options = (*common, f"--trainer.{option[0]}", option[1])
        found.holds[" ".join(option)] = _runs(Case("ppo", options), folder)
    return found


def _runs(case: Case, folder: Path) -> bool:
    try:
        cli = run_phase(case.phase, arguments(case, folder, "tiny"))
    except Exception as error:  # what a device raises is the answer
        print(f"{case}: {type(error).__name__}: {error}")  # noqa: T201
        return False
    weights = cli.model.trained_model.parameters()
    return all(bool(torch.isfinite(weight).all()) for weight in weights)


def optimizer(device: str, folder: Path) -> Found:
    """Moments in bf16: the time of a step, and whether its rounding is right on average."""
    size = 50_000_000 if device == "cuda" else 100_000
    weight = torch.nn.Parameter(torch.ones(size, device=device, dtype=torch.bfloat16))
    steps = BF16AdamW([weight], learning_rate=1e-4, betas=(0.9, 0.999), eps=1e-8, seed=0)
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        weight.grad = torch.ones_like(weight)
        steps.step()
        _wait(device)
        seconds = time.perf_counter() - start
    moved = float((1 - weight.float()).mean())
    figures = {"ms for 50 million": 1e3 * seconds * 50_000_000 / size, "mean move": moved}
    return Found({"three steps of 1e-4 on average": abs(moved - 3e-4) < 3e-5}, figures)


def _autocast(device: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


CHECKS = {
    "masked_attention": Check(masked_attention, 90),
    "sequence_kernel": Check(sequence_kernel, 90),
    "greedy_tokens": Check(greedy_tokens, 60),
    "ppo": Check(ppo, 180),
    "decoding": Check(decoding, 120),
    "graphs": Check(graphs, 90),
    "phases": Check(phases, 150),
    "strategies": Check(strategies, 90),
    "optimizer": Check(optimizer, 45),
}
