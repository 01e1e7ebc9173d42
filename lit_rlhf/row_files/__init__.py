"""Files of rows, whatever they are written in: JSON lines, a JSON array, CSV or Parquet.

`find_files` says which files a name means, `read_rows` yields each row as JSON text with its place
in the file, so that whatever is wrong with it later can be found and mended.
"""

from lit_rlhf.row_files.json_rows import read_object
from lit_rlhf.row_files.opening import find_files, is_row_file, readable
from lit_rlhf.row_files.reading import TEXT_FIELDS, read_rows

__all__ = [
    "TEXT_FIELDS",
    "find_files",
    "is_row_file",
    "read_object",
    "read_rows",
    "readable",
]
