"""`lit-rlhf feedback sample`: tasks from what a policy says to prompts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from lit_rlhf.errors import ConfigError, DataError
from lit_rlhf.evaluation.sampling_options import add_sampling_options, sampling_config
from lit_rlhf.feedback.judgments import JudgedTask
from lit_rlhf.prompts import Prompt

if TYPE_CHECKING:
    from lit_rlhf.evaluation.responses import SourcedPrompt
    from lit_rlhf.feedback.adding import Added
    from lit_rlhf.feedback.store import FeedbackStore

# After so many prompts their tasks are in the store, whatever happens to the rest.
_PROMPTS_AT_ONCE = 32


def add_sample_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sample`."""
    parser.add_argument("checkpoint", help="a policy: Hugging Face folder or hub name")
    parser.add_argument("store")
    parser.add_argument("--prompts", required=True, help="data with prompts")
    parser.add_argument("--num-prompts", type=int, help="take the first so many")
    parser.add_argument("--k", type=int, default=4, help="responses to each prompt (default: 4)")
    parser.add_argument(
        "--ask",
        choices=("comparison", "ranking", "rating", "edit"),
        default="ranking",
        help="each pair, all responses in order, or each response (default: ranking)",
    )
    parser.add_argument("--question", help="what is asked about the responses, such as 'harmless'")
    parser.add_argument("--slots", type=int, default=1, help="labelers to ask about each task")
    parser.add_argument("--name", help="of the policy, which labelers do not see")
    add_sampling_options(parser)


def add_samples(options: argparse.Namespace) -> Iterator[str]:
    """Sample a policy, add the tasks to the store, and say how many there are.

    Raises:
        ConfigError: an option is wrong.
        CheckpointError: there is no such policy.
        DataError: the prompts cannot be read, or the store cannot be opened.
    """
    _check_options(options)
    from lit_rlhf.evaluation.responses import read_prompts  # noqa: PLC0415 - seconds of imports
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415
    from lit_rlhf.models.handover import check_kind  # noqa: PLC0415

    check_kind(options.checkpoint, "policy")
    prompts = read_prompts(options.prompts, options.num_prompts)
    if not prompts:
        raise DataError(f"{options.prompts}: holds no prompts.")
    with FeedbackStore.filling(options.store) as store:
        added, num_alike = _add(store, prompts, options)
    text = f"{added.tasks} new tasks for {len(prompts)} prompts"
    yield text + (f"; {num_alike} prompts had one response alone" if num_alike else "")


def _check_options(options: argparse.Namespace) -> None:
    """Raise a ConfigError where no tasks could come of the options."""
    from lit_rlhf.feedback.adding import MOST_RANKED  # noqa: PLC0415 - an optional package

    least = 1 if options.ask in ("rating", "edit") else 2
    most = MOST_RANKED if options.ask == "ranking" else None
    if options.k < least or (most is not None and options.k > most):
        expected = f"{least} to {most}" if most else f"{least} or more"
        raise ConfigError(f"--k {options.k}: a {options.ask} takes {expected} responses.")
    if options.slots < 1:
        raise ConfigError(f"--slots {options.slots}: must be at least 1, or nobody is asked.")


def tasks_of(
    prompt: Prompt, responses: Sequence[str], ask: str, question: str | None = None
) -> Iterator[JudgedTask]:
    """Yield the tasks of one prompt, none with the same response twice.

    Args:
        prompt: text or chat.
        responses: as they were sampled; later copies are left out.
        ask: "comparison" for each pair, "ranking" for one task with all, "rating" or "edit" for
            one task each.
        question: what is asked.
    """
    distinct = list(dict.fromkeys(responses))
    sizes = {"comparison": 2, "ranking": len(distinct), "rating": 1, "edit": 1}
    if ask in ("comparison", "ranking") and len(distinct) < 2:
        return
    for chosen in combinations(distinct, sizes[ask]):
        yield JudgedTask(prompt, chosen, (), None, {}, question)


def _add(
    store: FeedbackStore, prompts: Sequence[SourcedPrompt], options: argparse.Namespace
) -> tuple[Added, int]:
    """Add the tasks part by part; return what is new, and prompts without a task."""
    from lit_rlhf.evaluation.sampling import sample_in_parts  # noqa: PLC0415
    from lit_rlhf.feedback.adding import Added, Origin  # noqa: PLC0415
    from lit_rlhf.models.lineage import describe_origin  # noqa: PLC0415

    settings = sampling_config(options, options.k)
    model = describe_origin(options.checkpoint)
    names = ("temperature", "max_new_tokens", "seed", "template", "template_options")
    sampling = {name: getattr(settings, name) for name in names}
    sampling |= {name: model[name] for name in ("sha256", "revision") if name in model}
    origin = Origin(options.name or Path(options.checkpoint).name, options.checkpoint, sampling)
    total, num_alike, done = Added(), 0, 0
    for samples in sample_in_parts(options.checkpoint, prompts, settings, _PROMPTS_AT_ONCE):
        texts = [
            samples.responses[first : first + options.k]
            for first in range(0, len(samples.responses), options.k)
        ]
        part = [
            list(tasks_of(prompts[done + place].prompt, responses, options.ask, options.question))
            for place, responses in enumerate(texts)
        ]
        done += len(part)
        num_alike += sum(not made for made in part)
        added = store.add_tasks(
            (task for made in part for task in made),
            slots=options.slots,
            kind=None if options.ask == "ranking" else options.ask,
            origin=origin,
        )
        total = Added(*(a + b for a, b in zip(total, added, strict=True)))
    return total, num_alike
