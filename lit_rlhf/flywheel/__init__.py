"""The flywheel: choose what people judge next, train on it, keep what is better, and again.

- `selection`: which pairs of responses are worth a judgment.
- `uncertainty`: how sure a reward model is of its scores, by small heads on its features.
- `choosing`: the two together, from candidate responses to tasks for the feedback store.
- `labelers`: who judges: people, simulated raters, a language model.
- `settings`, `steps`, `rounds`: what a run is, each step written whole, and the loop over them.
- `promotion`: which policy the next round starts from.
- `report`: one page on all rounds.
"""
