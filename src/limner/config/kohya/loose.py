"""Values as kohya's files have them: numbers and ticks may be texts, and Python's "None" stands for nothing."""

from __future__ import annotations

import math
from typing import Any

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def as_number(value: Any) -> float | int | None:
    """A finite number, a whole one with all its digits; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if isinstance(value, str):
            text = value.strip()
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
        return value if math.isfinite(value) else None
    except (ValueError, OverflowError):  # not a number; more digits than a float or Python takes
        return None


def as_flag(value: Any) -> bool | None:
    """True or false; None where it is neither."""
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    word = value.strip().lower() if isinstance(value, str) else ""
    return word in _TRUE if word in (*_TRUE, *_FALSE) else None


def is_empty(value: Any) -> bool:
    """Whether a value says nothing."""
    if isinstance(value, str):
        return value.strip() in ("", "None")
    return value is None or (isinstance(value, list | tuple | dict) and not value)
