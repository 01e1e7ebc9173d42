"""The memory of a run by part, from its settings and the lengths of its data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

from lit_rlhf.dry_run.hollow import Hollow, Kind, Rows, Sizes
from lit_rlhf.models.backbone import LoRAConfig
from lit_rlhf.rollout.cache_size import CPU_TOKENS, tokens_within

# torch, transformers and Lightning in a process; on a GPU its context and the libraries' own.
LIBRARIES = {"cpu": 0.5e9, "cuda": 0.8e9}

# Bytes of AdamW's two moments a number; 8 bits have a float32 scale for each 256 of them.
_MOMENT_BYTES = {"float32": 8.0, "bf16": 4.0, "8bit": 2.0 + 8 / 256}
# Columns of the cache beyond those that are needed, see `rollout.decoding`.
_SPARE_COLUMNS = 32
# A draw holds the logits of each row, their softmax and two passes over it, in float32.
_DRAW_BYTES = 16
# On a CPU oneDNN compiles a kernel for each shape of a product in 16 bits, and keeps so many. Their
# size is the growth of a process a new kernel (torch 2.13, AVX-512), whatever the model.
_KERNELS = "compiled kernels"
_MOST_KERNELS = 1024
_KERNEL_BYTES = 610_000
# CUDA graphs keep the logits of each row, and memory in which they are computed in 16 bits first.
_GRAPH_BYTES = 10


class Rollout(NamedTuple):
    """What is decoded together.

    Attributes:
        most_rows: sequences, where the cache has room for them.
        samples: of a prompt, which are decoded together however many they are.
        longest_prompt: its tokens.
        longest: tokens of the longest prompt and response.
        vocabulary: logits of a row.
        prefill_tokens: of prompts computed in one forward.
        cached_tokens: that the cache may hold; None is what the engine takes by itself.
    """

    most_rows: int
    samples: int
    longest_prompt: int
    longest: int
    vocabulary: int
    prefill_tokens: int
    cached_tokens: int | None = None

    def num_rows(self, cached_tokens: int) -> int:
        """Return how many sequences a cache of so many tokens has room for."""
        return max(self.samples, min(self.most_rows, cached_tokens // self.longest), 1)

    def prefill(self, num_rows: int, *, has_mask: bool) -> Rows:
        """Return the largest forward of prompts."""
        fitting = self.prefill_tokens // self.longest_prompt
        count = max(1, min(num_rows // self.samples, fitting))
        return Rows(count, self.longest_prompt, count, has_mask)


@dataclass(frozen=True)
class Setup:
    """All that the memory of a run depends on.

    Attributes:
        phase: its name.
        trained: role -> the models that train.
        frozen: role -> the models that do not.
        judges: names of those among them, or of their first parts before a dot, that wait in the
            host's memory until a validation asks them, one after the other.
        states: how moments are stored.
        rows: of the largest micro-batch.
        num_micro_batches: forwards of a process in an optimizer step.
        scored: what a reward model reads in one forward, if there is one.
        rollout: of PPO.
        device: "cpu" or "cuda".
        strategy: "ddp" and "fsdp2" are told apart.
        num_processes: of the run.
        memory: bytes that each process has, None where they are not known: on a GPU the cache
            takes its size from what is left.
        num_steps: optimizer steps, None for no end.
        step_tokens: of an optimizer step, over all processes.
    """

    phase: str
    trained: dict[str, Kind]
    frozen: dict[str, Kind]
    states: Literal["float32", "bf16", "8bit"]
    rows: Rows
    num_micro_batches: int
    scored: Rows | None = None
    rollout: Rollout | None = None
    judges: tuple[str, ...] = ()
    device: str = "cpu"
    strategy: str = "single"
    num_processes: int = 1
    memory: int | None = None
    num_steps: int | None = None
    step_tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run needs.

    Attributes:
        setup: of the run.
        sizes: role -> its weights.
        moments: time of an iteration -> part -> bytes that are in use then, on each process.
    """

    setup: Setup
    sizes: dict[str, Sizes]
    moments: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most bytes at any time."""
        return max(sum(parts.values()) for parts in self.moments.values())


def _hollow(kind: Kind) -> Hollow:
    lora = kind.lora
    if lora is not None and isinstance(lora.target_modules, list):  # which cannot be hashed
        lora = replace(lora, target_modules=tuple(lora.target_modules))  # type: ignore[arg-type]  # peft takes both
    return _made(kind._replace(lora=lora))


_made = lru_cache(maxsize=64)(Hollow)


def plan_of(setup: Setup) -> Plan:
    """Work out the memory of a run."""
    models = {**setup.trained, **setup.frozen}
    sizes = {role: _hollow(kind).sizes for role, kind in models.items()}
    always = _weights_and_moments(setup, sizes)
    plan = Plan(setup, sizes)
    plan.moments["update"] = {**always, **_update(setup, sizes)}
    if (kernels := plan.moments["update"].get(_KERNELS)) is not None:
        always[_KERNELS] = kernels  # which stay
    if setup.rollout is not None:
        left = None if setup.memory is None else setup.memory - sum(always.values())
        plan.moments["rollout"] = {**always, **_rollout(setup, setup.rollout, sizes, left)}
    forwards = []
    for kind in setup.frozen.values():
        rows = setup.rows if kind.role == "policy" else setup.scored
        if rows is not None:
            forwards.append(_hollow(kind).forward_peak(rows))
    if forwards:
        scoring = {**always, **_largest_judge(setup, sizes), "activations": max(forwards)}
        plan.moments["scoring"] = scoring
    return plan


def _judge(setup: Setup, role: str) -> str | None:
    """Return the judge that a model belongs to; of several, a judge's role has parts."""
    name = role.partition(".")[0]
    return name if name in setup.judges else None


def _largest_judge(setup: Setup, sizes: dict[str, Sizes]) -> dict[str, int]:
    """Return the weights of the largest judge, the only one there while it is asked."""
    judges = dict.fromkeys(setup.judges, 0)
    for role, size in sizes.items():
        if (name := _judge(setup, role)) is not None:
            judges[name] += size.trained + size.frozen
    return {"weights of a judge": max(judges.values())} if any(judges.values()) else {}


def _weights_and_moments(setup: Setup, sizes: dict[str, Sizes]) -> dict[str, int]:
    """Return what is there all the time: each process's share of weights, and moments."""
    parts = {}
    for role, size in sizes.items():
        if _judge(setup, role) is not None:
            continue
        whole = size.trained + size.frozen
        # Reward models are outside of what is sharded.
        is_whole = role in setup.frozen and setup.frozen[role].role == "reward"
        parts[f"weights of the {role}"] = whole if is_whole else _share(setup, whole)
    num_trained = sum(sizes[role].num_trained for role in setup.trained)
    parts["moments"] = _share(setup, int(_MOMENT_BYTES[setup.states] * num_trained))
    return parts


def _update(setup: Setup, sizes: dict[str, Sizes]) -> dict[str, int]:
    """Return gradients, the activations that are most beside them, and what comes with both."""
    gradients = activations = num_products = 0
    for role, kind in setup.trained.items():
        step = _hollow(kind).step(setup.rows, accumulates=setup.num_micro_batches > 1)
        gradients += sizes[role].trained
        activations += step.peak - sizes[role].trained
        num_products += step.num_half_products
    parts = {"gradients": _share(setup, gradients), "activations": activations}
    if setup.device == "cpu" and num_products:
        # Nearly every micro-batch has another length.
        num_micro_batches = (setup.num_steps or _MOST_KERNELS) * setup.num_micro_batches
        num_kernels = min(_MOST_KERNELS, num_products * num_micro_batches)
        parts[_KERNELS] = _KERNEL_BYTES * num_kernels
    if setup.strategy == "ddp" and setup.num_processes > 1:
        parts["buckets of gradients"] = gradients
    if setup.strategy == "fsdp2":
        parts["gathered layers"] = sum(
            _hollow(kind).gathered_bytes for kind in setup.trained.values()
        )
    return parts


def _rollout(
    setup: Setup, rollout: Rollout, sizes: dict[str, Sizes], left: int | None
) -> dict[str, int]:
    """Return what decoding needs beside what leaves `left` bytes: cache, cast weights, logits."""
    policy = sizes["policy"]
    tokens = rollout.cached_tokens or CPU_TOKENS
    if rollout.cached_tokens is None and setup.device == "cuda" and left is not None:
        free = left - int(LIBRARIES["cuda"])
        tokens = tokens_within(free, policy.cached_token)
    num_rows = rollout.num_rows(tokens)
    columns = rollout.longest + (_SPARE_COLUMNS if setup.device == "cuda" else 0)
    prefill = _hollow(setup.trained["policy"]).forward_peak(
        rollout.prefill(num_rows, has_mask=setup.device == "cpu")
    )
    parts = {
        "cache": num_rows * columns * policy.cached_token,
        # Gathered layers are in the type of autocast already.
        "cast weights": 0 if setup.strategy == "fsdp2" else policy.cast,
        "activations": max(prefill, _DRAW_BYTES * num_rows * rollout.vocabulary),
    }
    if setup.device == "cuda" and setup.strategy != "fsdp2":
        parts["activations"] += _GRAPH_BYTES * num_rows * rollout.vocabulary
    if setup.strategy == "fsdp2":
        parts["gathered weights"] = policy.gathered
    return parts


def _share(setup: Setup, size: int) -> int:
    return size // setup.num_processes if setup.strategy == "fsdp2" else size


class Lever(NamedTuple):
    """A setting that saves memory.

    Attributes:
        flag: as on the command line.
        saved: bytes of the peak.
        peak: with it.
    """

    flag: str
    saved: int
    peak: int


def levers(plan: Plan) -> list[Lever]:
    """Return the settings that would lower the peak, the one that saves most first."""
    found = []
    for flag, setup in _changed(plan.setup).items():
        peak = plan_of(setup).peak
        if peak < plan.peak:
            found.append(Lever(flag, plan.peak - peak, peak))
    return sorted(found, key=lambda lever: -lever.saved)


def _changed(setup: Setup) -> dict[str, Setup]:
    """Return the run with each of the settings that save memory."""
    kinds = setup.trained
    changed = {
        "--model.activation_checkpointing true": replace(
            setup, trained={role: kind._replace(checkpointing=True) for role, kind in kinds.items()}
        ),
        "--model.optimizer.states bf16": replace(setup, states="bf16"),
    }
    if any(kind.precision == "bf16-mixed" for kind in kinds.values()):
        bf16 = {role: kind._replace(weights="bf16") for role, kind in kinds.items()}
        flag = "--config configs/memory/bf16.yaml"
        changed[flag] = replace(setup, trained=bf16, states="bf16")
    if all(kind.lora is None for kind in kinds.values()):
        lora = {role: kind._replace(lora=LoRAConfig()) for role, kind in kinds.items()}
        frozen = {role: kind for role, kind in setup.frozen.items() if role != "reference"}
        changed["--config configs/lora/lora.yaml"] = replace(setup, trained=lora, frozen=frozen)
    if (rollout := setup.rollout) is not None:
        tokens = max(1, rollout.prefill_tokens // 4)
        flag = f"--model.generator.prefill_tokens {tokens}"
        changed[flag] = replace(setup, rollout=rollout._replace(prefill_tokens=tokens))
    half = setup.rows._replace(
        num_rows=max(1, setup.rows.num_rows // 2), num_scored=max(1, setup.rows.num_scored // 2)
    )
    if setup.rows.num_rows > 1:
        flag = (
            f"--model.update.micro_batch_tokens {half.num_tokens}"
            if setup.phase == "ppo"
            else "half of --data.batch_size, twice --trainer.accumulate_grad_batches"
        )
        number = 2 * setup.num_micro_batches
        changed[flag] = replace(setup, rows=half, num_micro_batches=number)
    return changed
