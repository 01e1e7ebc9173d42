"""Rows as people publish and export them: one small file a shape, found by its keys."""

from lit_rlhf.feedback.formats.parts import OurRow
from lit_rlhf.feedback.formats.reading import (
    FORMATS,
    OUR_NAMES,
    ReadRow,
    check_format,
    find_format,
    read_rows,
)

__all__ = [
    "FORMATS",
    "OUR_NAMES",
    "OurRow",
    "ReadRow",
    "check_format",
    "find_format",
    "read_rows",
]
