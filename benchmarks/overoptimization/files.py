"""Files that are whole or not there: what a killed run leaves is not taken for a result."""

from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file beside its place, then put it there; folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(content)
    partial.replace(file)
