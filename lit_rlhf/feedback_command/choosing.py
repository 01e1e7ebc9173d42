"""`lit-rlhf feedback choose`: tasks from the pairs that are most worth a judgment."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator

from lit_rlhf.errors import ConfigError


def add_choose_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `choose`."""
    parser.add_argument("file", help="JSON lines of prompts, each with two 'responses' or more")
    parser.add_argument("store")
    parser.add_argument("--reward", help="reward model that the bounds of the scores come from")
    parser.add_argument("--acquisition", default="InfoMax", help="class of lit_rlhf.flywheel")
    parser.add_argument("--num-tasks", type=int, default=200, help="pairs to ask about")
    parser.add_argument("--slots", type=int, default=3, help="labelers to ask about each pair")
    parser.add_argument("--random-share", type=float, default=0.2, help="drawn at random")
    parser.add_argument("--max-length-gap", type=float, help="share of the longer response")
    parser.add_argument("--policy", help="name of the policy that wrote the responses")
    parser.add_argument("--seed", type=int, default=0)


def add_chosen(options: argparse.Namespace) -> Iterator[str]:
    """Choose pairs, add them to the store, and say by what they were chosen.

    Raises:
        ConfigError: an option is wrong.
        CheckpointError: there is no such reward model.
        DataError: the responses cannot be read, or the store cannot be opened.
    """
    if options.slots < 1:
        raise ConfigError(f"--slots {options.slots}: must be at least 1, or nobody is asked.")
    from lit_rlhf.feedback.adding import Origin  # noqa: PLC0415
    from lit_rlhf.feedback.store import FeedbackStore  # noqa: PLC0415
    from lit_rlhf.flywheel.choosing import Choice, choose_tasks, read_sampled  # noqa: PLC0415
    from lit_rlhf.flywheel.models import features_of  # noqa: PLC0415 - seconds of imports
    from lit_rlhf.flywheel.settings import read_acquisition  # noqa: PLC0415

    choice = Choice(
        read_acquisition(options.acquisition),
        options.num_tasks,
        options.random_share,
        options.max_length_gap,
    )
    sampled = read_sampled(options.file)
    features = None if options.reward is None else features_of(options.reward)
    with FeedbackStore.filling(options.store) as store:
        judged = list(store.judged_tasks(question=""))  # what is asked here, too
        tasks = choose_tasks(sampled, judged, features, choice, options.seed)
        added = store.add_tasks(tasks, slots=options.slots, origin=Origin(options.policy))
    shares = Counter(task.metadata["chosen_by"] for task in tasks)
    said = ", ".join(f"{number} by {name}" for name, number in shares.items())
    known = len(tasks) - added.tasks
    yield f"{added.tasks} new tasks, {said}" + f"; {known} were there before" * (known > 0)
