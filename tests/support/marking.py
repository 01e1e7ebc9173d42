"""A reward by which a test sees that the processes of a command are in the midst of training."""

import os
from pathlib import Path

FOLDER = "LIT_RLHF_TEST_MARKS"  # environment variable: where each rank leaves its process id


def length_and_mark(prompts, responses):
    """Score a response by its characters; note that this rank is at work."""
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    with (Path(os.environ[FOLDER]) / f"rank-{rank}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    return [len(response) / 10 for response in responses]
