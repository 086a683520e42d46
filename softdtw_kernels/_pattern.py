"""The pattern of an alignment: which steps it may take, where it may begin and end, and what that
costs. The options of the public functions, checked once, here.

    R[i, j] = C[i, j] + softmin(begin[i, j],
                                R[i - 1, j - 1], R[i - 1, j] + warp, R[i, j - 1] + warp)
    V = softmin over the ends of R[i, j] + end[i, j]

begin is 0 at the first cell, and with open begins of x and y skip * i at (i, 0) and skip * j at
(0, j); of ends likewise, from the last cell on. A step (1, 0) matches a frame of y once more, a
step (0, 1) one of x: those that `repeat` does not name are not taken.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor

from ._checks import Number, check_parameter
from ._values import check_finite

Sides = Literal["xy", "x", "y", ""]  # one of the two sequences, both, or none
SIDES: tuple[str, ...] = get_args(Sides)


_STRINGS, _FLOATS = (str, str, str), (float, float)


class Pattern(NamedTuple):
    """What differs from the plain recursion; where nothing does there is None in its place."""

    warp_cost: Number = 0.0
    repeat: Sides = "xy"
    open_begin: Sides = ""
    open_end: Sides = ""
    skip_cost: Number = 0.0


def check_pattern(
    warp_cost: Any,
    repeat: Any = "xy",
    open_begin: Any = "",
    open_end: Any = "",
    skip_cost: Any = 0.0,
    bandwidth: int | None = None,
) -> Pattern | None:
    """The options of a call; None if they are those of the plain recursion."""
    # As nearly always: what all the checks below take longer to find.
    if (
        (type(repeat), type(open_begin), type(open_end)) == _STRINGS
        and (type(warp_cost), type(skip_cost)) == _FLOATS
        and repeat == "xy"
        and not (open_begin or open_end or warp_cost or skip_cost)
    ):
        return None
    check_sides(repeat, open_begin, open_end)
    check_no_band(open_begin, open_end, bandwidth)
    warp_cost = check_parameter(warp_cost, "warp_cost")
    skip_cost = check_parameter(skip_cost, "skip_cost")
    # A tensor gets a gradient, which may be 0.
    prices = isinstance(warp_cost, Tensor) or isinstance(skip_cost, Tensor) or warp_cost != 0
    if not prices and repeat == "xy" and not open_begin and not open_end:
        return None
    return Pattern(warp_cost, repeat, open_begin, open_end, skip_cost)


def check_sides(repeat: Any, open_begin: Any, open_end: Any) -> None:
    for name, value in (("repeat", repeat), ("open_begin", open_begin), ("open_end", open_end)):
        if not isinstance(value, str) or value not in SIDES:
            raise ValueError(f"{name} must be one of {SIDES}, got {value!r}")


def check_no_band(open_begin: str, open_end: str, bandwidth: int | None) -> None:
    """A band is one around the diagonals between the corners, where closed ends are."""
    if bandwidth is not None and (open_begin or open_end):
        name, value = ("open_begin", open_begin) if open_begin else ("open_end", open_end)
        raise ValueError(
            f"bandwidth must be None with open ends, got {bandwidth} with {name}={value!r}: a band "
            "lies around the way from the first pair to the last; leave out one of the two, or "
            "forbid pairs by costs of +inf"
        )


def check_prices(warp: Tensor, skip: Tensor, is_open: bool) -> None:
    """Values that are not finite raise ValueError where they can be read."""
    for name, price in (("warp_cost", warp), *((("skip_cost", skip),) if is_open else ())):
        check_finite(price, name)


def in_range(warp: Tensor, skip: Tensor, is_open: bool) -> Tensor:
    """Which items have prices that every backend takes; a price without use counts for nothing."""
    return warp.isfinite() & skip.isfinite() if is_open else warp.isfinite()
