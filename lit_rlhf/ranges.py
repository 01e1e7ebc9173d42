"""Checks that a setting's number is where it makes sense, in one wording."""

from __future__ import annotations

import math

from lit_rlhf.errors import ConfigError


def require(  # one bound of each kind
    key: str,
    value: float | None,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    is_optional: bool = False,
) -> None:
    """Refuse a setting out of its range; NaN is out of every range, infinity as well.

    Args:
        key: its dotted name, as a user writes it.
        value: None passes where `is_optional` says so.
        least: the smallest value.
        most: the largest value.
        above: a value that is already too small.
        below: a value that is already too large.
        is_optional: null is a value, too.

    Raises:
        ConfigError: it is out of range.
    """
    if value is None and is_optional:
        return
    is_inside = (
        value is not None
        and math.isfinite(value)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not is_inside:
        bounds = {"at least": least, "at most": most, "above": above, "below": below}
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        null = ", or null" if is_optional else ""
        raise ConfigError(f"{key} is {value}; it must be {' and '.join(words)}{null}")
