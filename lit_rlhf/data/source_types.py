"""What data modules take as sources: names on the command line, in Python also the objects.

The config parser reads the annotations of constructors, and offers what it finds. It is to find
text alone, since no object can be given on a command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.data.sources import Source

    RowSource: TypeAlias = Source | Path
    TokenizerSource: TypeAlias = str | Path | PreTrainedTokenizerBase
else:
    RowSource = str | list[str]
    TokenizerSource = str
