"""Numbers as users give them."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from bld.errors import SettingError


def finite_number(name: str, value: Any) -> float:
    """A finite number of Python, numpy or torch (of one value); `SettingError` for anything else."""
    try:
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise SettingError(f"{name} is a finite number, not {value!r}.")
    return number


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of Python, numpy or torch; `SettingError` for anything else, and for less than `least`."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise SettingError(f"{name} is a whole number, not {value!r}.") from None
    if least is not None and number < least:
        raise SettingError(f"{name} is at least {least}, not {number}.")
    return number
