"""Quantities as a budgets file writes them: a number and its unit, `3 echoes`, `0.1 %`, `50 ms`."""

from __future__ import annotations

import math
import re

QUANTITY = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?) ?([a-z%/]*)")
ECHOES, PERCENT, MS, ARRIVALS, USERS = "echoes", "%", "ms", "arrivals/s", "users"


def quantity(text: object, *units: str) -> tuple[float, str]:
    """A number above or at 0, and which of `units` it is in. Raises ValueError that says what is allowed."""
    allowed = " or ".join(f"'{unit}'" for unit in units)
    match = QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or not math.isfinite(float(match[1])):
        raise ValueError(f"{text!r} is no quantity: write a number and {allowed}")
    if match[2] not in units:
        raise ValueError(f"{text!r} is in {match[2] or 'no unit'!r}: the unit must be {allowed}")
    if float(match[1]) < 0:
        raise ValueError(f"{text!r} is negative")
    return float(match[1]), match[2]


def share(text: object) -> float:
    """`0.1 %` → 0.001; at most 1."""
    percent, _ = quantity(text, PERCENT)
    if percent > 100:
        raise ValueError(f"{text!r} is more than all")
    return percent / 100
