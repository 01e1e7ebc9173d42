"""From several labelers' judgments to pairs with a probability, and to mean ratings.

`judged_pairs` is what people said: shares of the labelers. The classes are what the data modules
learn from (`data.aggregation`): shares shrunk by how few labelers there are, or models of the
responses' strengths or of the labelers' accuracies.
"""

from lit_rlhf.feedback.aggregation.choice_models import BradleyTerry, PlackettLuce
from lit_rlhf.feedback.aggregation.dawid_skene import OneCoinDawidSkene
from lit_rlhf.feedback.aggregation.method import (
    Aggregation,
    BetaMean,
    JudgedPair,
    Majority,
    judged_pairs,
    mean_ratings,
)

__all__ = [
    "Aggregation",
    "BetaMean",
    "BradleyTerry",
    "JudgedPair",
    "Majority",
    "OneCoinDawidSkene",
    "PlackettLuce",
    "judged_pairs",
    "mean_ratings",
]
