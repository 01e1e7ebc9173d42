"""What people said about responses: the records, and how several judgments become one.

Pure Python: a labeler's server or a notebook can use it without torch.
"""

from lit_rlhf.feedback.aggregation import JudgedPair, judged_pairs, mean_ratings
from lit_rlhf.feedback.records import (
    Comparison,
    Demonstration,
    JudgedGroup,
    PromptRecord,
    Unpaired,
    parse_any_prompt,
    parse_comparison,
    parse_demonstration,
    parse_judged_group,
    parse_judgment,
    parse_prompt,
    parse_responses,
    parse_unpaired,
)
from lit_rlhf.prompts import Conversation, Message, Prompt

__all__ = [
    "Comparison",
    "Conversation",
    "Demonstration",
    "JudgedGroup",
    "JudgedPair",
    "Message",
    "Prompt",
    "PromptRecord",
    "Unpaired",
    "judged_pairs",
    "mean_ratings",
    "parse_any_prompt",
    "parse_comparison",
    "parse_demonstration",
    "parse_judged_group",
    "parse_judgment",
    "parse_prompt",
    "parse_responses",
    "parse_unpaired",
]
