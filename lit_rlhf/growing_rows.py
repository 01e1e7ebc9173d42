"""A file of JSON lines that grows part by part: a kill loses none, and the next run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.errors import DataError
from lit_rlhf.whole_files import partial_of, put_in_place, write_text_whole


class GrowingRows:
    """Rows on their way into a file, which has its name once it is complete.

    Until then they are in `FILE.partial`, and `FILE.partial.json` says how far they go and by which
    settings. The same settings again go on behind the last part.

    Args:
        path: of the file; it must not be there yet.
        settings: what the rows depend on, in plain types.

    Attributes:
        facts: what was said of the rows so far, see `add`.

    Raises:
        DataError: the file is there, or a part of it by other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = json.loads(json.dumps(settings))
        self._rows = partial_of(path)
        self._progress = self._rows.with_name(f"{self._rows.name}.json")
        self.facts: dict[str, Any] = {}
        if path.exists():
            raise DataError(f"{path}: is there already; name a file that is not, or remove it")
        if self._progress.exists():
            self._go_on()

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written yet."""
        return not self.facts

    def add(self, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Write a part; when this returns, a kill does not lose it.

        Args:
            rows: of the part.
            facts: what to know when the run goes on: one thing or more, in plain types.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._rows.open("wb" if self.is_new else "ab") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self.facts = dict(facts)
        state = {"settings": self._settings, "size": size, "facts": self.facts}
        write_text_whole(self._progress, json.dumps(state))

    def finish(self) -> None:
        """Give the file its name."""
        put_in_place(self.path)
        self._progress.unlink(missing_ok=True)

    def _go_on(self) -> None:
        state = json.loads(self._progress.read_text(encoding="utf-8"))
        names = {*state["settings"], *self._settings}
        changed = [n for n in sorted(names) if state["settings"].get(n) != self._settings.get(n)]
        if changed:
            raise DataError(
                f"{self._rows}: was begun with another {' and '.join(changed)}; go on with the "
                f"same, or remove {self._rows.name} and {self._progress.name}"
            )
        self.facts = state["facts"]
        os.truncate(self._rows, state["size"])  # a part that was not told of is written again
