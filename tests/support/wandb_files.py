"""Read back what an offline run of Weights & Biases left on disk."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER_BYTES = 7
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_BLOCK_BYTES = 32 * 1024
_FULL, _LAST = 1, 4  # kinds of chunk that end a record; others are continued in the next


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows of the one offline run below `folder`, in order.

    A value with parts (a table's description) stands as `key/part`.
    """
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in _finished_run(file)
        if record.WhichOneof("record_type") == "history"
    ]


def table(folder: Path, key: str) -> list[dict[str, Any]]:
    """Return the rows of the newest table of that key below `folder`."""
    files = list(folder.glob(f"wandb/offline-run-*/files/media/table/{key}_*.table.json"))
    newest = max(files, key=lambda file: int(file.name.split("_")[-2]))
    content = json.loads(newest.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def _finished_run(file: Path) -> list[wandb_internal_pb2.Record]:
    """Wait for the record that ends a run: its writer is another process, and may be behind."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = list(_records(file.read_bytes()))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{file}: the run was not finished within a minute")


def _records(content: bytes) -> Iterator[wandb_internal_pb2.Record]:
    # The log format of LevelDB: chunks that do not cross a block, padded where a header would.
    if not content.startswith(b":W&B"):  # not begun
        return
    position, parts = _FILE_HEADER_BYTES, b""
    while position + _CHUNK_HEADER.size <= len(content):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _CHUNK_HEADER.size:
            position += left_in_block
            continue
        _, length, kind = _CHUNK_HEADER.unpack_from(content, position)
        start = position + _CHUNK_HEADER.size
        if start + length > len(content):  # still being written
            return
        parts += content[start : start + length]
        position = start + length
        if kind in {_FULL, _LAST}:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
