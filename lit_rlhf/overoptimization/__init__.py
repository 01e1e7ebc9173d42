"""When a reward is optimised too far: the test for it, the curves, what is shown of them.

Pure: arrays in, numbers and files out. `callbacks.overoptimization` watches a run with it.
"""

from lit_rlhf.overoptimization.best_of_n import best_of_n_kl, best_of_n_scores
from lit_rlhf.overoptimization.history import History, Look
from lit_rlhf.overoptimization.sequential_test import Contrast, DivergenceTest

__all__ = [
    "Contrast",
    "DivergenceTest",
    "History",
    "Look",
    "best_of_n_kl",
    "best_of_n_scores",
]
