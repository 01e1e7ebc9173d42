"""What a run's validations said, prompt by prompt."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_rlhf.errors import DataError, TrainingError

Floats = npt.NDArray[np.float64]


class Look(NamedTuple):
    """One validation.

    Attributes:
        step: optimizer steps before it.
        values: name -> `[n]`, one value a prompt, in the order of the prompts' ids; NaN where a
            judge could not score the response.
    """

    step: int
    values: dict[str, Floats]


@dataclass
class History:
    """All validations of a run, on the same prompts.

    Attributes:
        prompt_ids: `[n]` ascending; empty before the first validation.
        looks: the validations, in their order.
    """

    prompt_ids: list[int] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    def add(
        self,
        step: int,
        prompt_ids: Sequence[int],
        values: Mapping[str, npt.ArrayLike],
        abstaining: Collection[str] = (),
    ) -> bool:
        """Add a validation, or put it in the place of the last one where that was at the same step.

        Args:
            step: optimizer steps so far.
            prompt_ids: `[n]` in any order, each once.
            values: name -> `[n]` in the same order.
            abstaining: names of which a NaN says that a response cannot be scored.

        Returns:
            Whether the validation is a new one.

        Raises:
            DataError: the prompts or the names are not those of the validations before.
            TrainingError: a value is not finite, or all of a name's responses cannot be scored.
        """
        order = np.argsort(prompt_ids)
        ids = [int(prompt_ids[place]) for place in order]
        if self.looks and (ids != self.prompt_ids or values.keys() != self.looks[0].values.keys()):
            raise DataError(
                f"validation at step {step}: {len(ids)} prompts with {sorted(values)}, but those "
                f"before had {len(self.prompt_ids)} with {sorted(self.looks[0].values)}; a run is "
                "watched on the same prompts by the same judges all the time, also after a resume"
            )
        ordered = {name: np.asarray(value, np.float64)[order] for name, value in values.items()}
        for name, value in ordered.items():
            is_bad = ~np.isfinite(value)
            if name in abstaining and not is_bad.all():
                is_bad = np.isinf(value)
            if bad := int(is_bad.sum()):
                raise TrainingError(
                    f"validation at step {step}: `{name}` is not finite for {bad} of "
                    f"{len(ids)} prompts, so that the run cannot be watched: let it return a "
                    "number, or train unwatched (--monitor.action off)"
                )
        self.prompt_ids = ids
        is_new = not self.looks or self.looks[-1].step != step
        if not is_new:
            self.looks.pop()
        self.looks.append(Look(step, ordered))
        return is_new

    @property
    def names(self) -> list[str]:
        """Names of the values."""
        return list(self.looks[0].values) if self.looks else []

    def values(self, name: str) -> Floats:
        """Return `[K, n]`: a value at each validation for each prompt."""
        return np.stack([look.values[name] for look in self.looks])

    def means(self, name: str) -> Floats:
        """Return `[K]`: the curve of a value, over the prompts that have one."""
        means: Floats = np.nanmean(self.values(name), axis=1)
        return means

    def distances(self) -> Floats:
        """Return `[K]`: `sqrt(KL)` of each validation; an estimate below 0 counts as 0."""
        distances: Floats = np.sqrt(np.maximum(self.means("kl"), 0.0))
        return distances

    def write(self, path: Path) -> None:
        """Write one validation a line: step, prompt ids, and each value for each prompt."""
        with path.open("w", encoding="utf-8") as file:
            for look in self.looks:
                rounded = {
                    name: [None if isnan(value) else round(float(value), 6) for value in values]
                    for name, values in look.values.items()
                }
                row = {"step": look.step, "prompt_ids": self.prompt_ids, **rounded}
                file.write(json.dumps(row) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain types, as checkpoints need it."""
        looks = [
            {"step": look.step, "values": {name: v.tolist() for name, v in look.values.items()}}
            for look in self.looks
        ]
        return {"prompt_ids": list(self.prompt_ids), "looks": looks}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """Rebuild a history."""
        looks = [
            Look(
                look["step"],
                {name: np.array(values, np.float64) for name, values in look["values"].items()},
            )
            for look in state["looks"]
        ]
        return cls(list(state["prompt_ids"]), looks)
