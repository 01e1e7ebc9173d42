"""Rows as people publish and export them: one small file a shape, found by its keys.

`read_rows` gives what rows hold, `read_feedback` the same as typed records; a judged task becomes
a row of ours by `row_of`, and what the data modules learn from by `judged_group`.
"""

from lit_rlhf.feedback.formats.ours import FeedbackRecord, judged_group, record_of, row_of
from lit_rlhf.feedback.formats.parts import OurRow, RowFormat
from lit_rlhf.feedback.formats.reading import (
    FORMATS,
    OUR_NAMES,
    ReadRow,
    as_our_row,
    check_format,
    find_format,
    read_feedback,
    read_rows,
)

__all__ = [
    "FORMATS",
    "OUR_NAMES",
    "FeedbackRecord",
    "OurRow",
    "ReadRow",
    "RowFormat",
    "as_our_row",
    "check_format",
    "find_format",
    "judged_group",
    "read_feedback",
    "read_rows",
    "record_of",
    "row_of",
]
