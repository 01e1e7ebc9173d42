"""Reward functions that a test can predict, named by their dotted path."""


def count_o(prompts, responses):
    """Score a response by how often it has the letter o."""
    return [float(response.count("o")) for response in responses]


def length(prompts, responses):
    """Score a response by its characters."""
    return [len(response) / 10 for response in responses]


def five(prompts, responses):
    """Score every response alike."""
    return [5.0] * len(responses)
