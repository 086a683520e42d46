"""Brute force over the alignments of every pattern of steps, begins and ends.

Nothing here imports the package under test. Paths are listed one by one, as operators.md defines
them; values and derivatives are sums over them.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import mpmath
import numpy as np

SIDES = ("xy", "x", "y", "")
PATTERNS = tuple(itertools.product(SIDES, repeat=3))  # repeat, open_begin, open_end
DIAGONAL, UP, LEFT = (1, 1), (1, 0), (0, 1)
RANK = {DIAGONAL: 1, UP: 2, LEFT: 3}  # of equal predecessors; to begin comes first


@dataclass(frozen=True)
class Path:
    cells: tuple[tuple[int, int], ...]
    repeats: int
    skipped: int

    @property
    def rank(self) -> tuple[int, ...]:
        """Which of equally cheap paths is the one: decided from its end to its begin."""
        steps = [
            RANK[b[0] - a[0], b[1] - a[1]]
            for a, b in zip(self.cells[:-1], self.cells[1:], strict=True)
        ]
        return (*self.cells[-1], *reversed(steps), 0)


@functools.cache
def paths(n: int, m: int, repeat: str, open_begin: str, open_end: str) -> tuple[Path, ...]:
    steps = [DIAGONAL]
    if "y" in repeat:
        steps.append(UP)
    if "x" in repeat:
        steps.append(LEFT)
    begins = {(0, 0)}
    begins |= {(i, 0) for i in range(n)} if "x" in open_begin else set()
    begins |= {(0, j) for j in range(m)} if "y" in open_begin else set()
    ends = {(n - 1, m - 1)}
    ends |= {(i, m - 1) for i in range(n)} if "x" in open_end else set()
    ends |= {(n - 1, j) for j in range(m)} if "y" in open_end else set()

    def grow(path: list[tuple[int, int]], repeats: int) -> Iterator[Path]:
        i, j = path[-1]
        if (i, j) in ends:
            before, behind = sum(path[0]), n - 1 - i + m - 1 - j
            yield Path(tuple(path), repeats, before + behind)
        for step in steps:
            a, b = i + step[0], j + step[1]
            if a < n and b < m:
                yield from grow([*path, (a, b)], repeats + (step != DIAGONAL))

    return tuple(path for begin in sorted(begins) for path in grow([begin], 0))


@dataclass(frozen=True)
class Truth:
    value: float
    visits: np.ndarray
    by_gamma: float
    by_warp: float
    by_skip: float
    path: np.ndarray  # (L, 2), the cheapest one
    entropy: float


def enumerate_paths(
    cost: np.ndarray, gamma: float, warp: float, skip: float, pattern: tuple[str, str, str]
) -> Truth:
    n, m = cost.shape
    listed = [p for p in paths(n, m, *pattern) if all(cost[cell] < math.inf for cell in p.cells)]
    if not listed:
        return Truth(math.inf, np.zeros((n, m)), 0.0, 0.0, 0.0, np.empty((0, 2), int), 0.0)
    totals = np.array(
        [
            math.fsum([*(cost[cell] for cell in p.cells), warp * p.repeats, skip * p.skipped])
            for p in listed
        ]
    )
    least = totals.min()
    cheapest = min((p for p, t in zip(listed, totals, strict=True) if t == least), key=_rank)
    if gamma == 0:
        weights = np.array([float(p is cheapest) for p in listed])
        value = float(least)
    else:
        powers = np.exp(-(totals - least) / gamma)
        weights = powers / math.fsum(powers)
        value = float(least - gamma * math.log1p(math.fsum([*powers, -1.0])))
    visits = np.zeros((n, m))
    for p, weight in zip(listed, weights, strict=True):
        for cell in p.cells:
            visits[cell] += weight
    positive = weights[weights > 0]
    entropy = -math.fsum(positive * np.log(positive))
    return Truth(
        value,
        visits,
        -entropy,
        math.fsum(weights * [p.repeats for p in listed]),
        math.fsum(weights * [p.skipped for p in listed]),
        np.array(cheapest.cells),
        entropy,
    )


def exact_paths(
    cost: np.ndarray, gamma: float, warp: float, skip: float, pattern: tuple[str, str, str]
) -> Truth:
    """As `enumerate_paths` of costs and prices of any sizes: sums of fractions, and exponentials of
    80 digits.
    """
    n, m = cost.shape
    listed = [p for p in paths(n, m, *pattern) if all(cost[cell] < math.inf for cell in p.cells)]
    if not listed:
        return enumerate_paths(cost, gamma, warp, skip, pattern)
    w, s = Fraction(warp), Fraction(skip)
    costs = {cell: Fraction(float(cost[cell])) for p in listed for cell in p.cells}
    totals = [sum(costs[c] for c in p.cells) + w * p.repeats + s * p.skipped for p in listed]
    least = min(totals)
    cheapest = min((p for p, t in zip(listed, totals, strict=True) if t == least), key=_rank)
    with mpmath.workdps(80):
        if gamma == 0:
            weights = [mpmath.mpf(p is cheapest) for p in listed]
            value = float(least)
        else:
            gaps = [(t - least) / Fraction(gamma) for t in totals]
            powers = [mpmath.exp(-mpmath.mpf(g.numerator) / g.denominator) for g in gaps]
            total = mpmath.fsum(powers)
            weights = [power / total for power in powers]
            value = float(_number(least) - gamma * mpmath.log(total))
        entropy = -mpmath.fsum(x * mpmath.log(x) for x in weights if x > 0)
        repeats = mpmath.fsum(x * p.repeats for x, p in zip(weights, listed, strict=True))
        skipped = mpmath.fsum(x * p.skipped for x, p in zip(weights, listed, strict=True))
        visits = np.zeros((n, m))
        for p, weight in zip(listed, weights, strict=True):
            for cell in p.cells:
                visits[cell] += float(weight)
    by_settings = -float(entropy), float(repeats), float(skipped)
    return Truth(value, visits, *by_settings, np.array(cheapest.cells), float(entropy))


def _number(x: Fraction) -> mpmath.mpf:
    return mpmath.mpf(x.numerator) / x.denominator


def _rank(path: Path) -> tuple[int, ...]:
    return path.rank


def padded(
    cost: np.ndarray, gamma: float, skip: float, open_begin: str, open_end: str
) -> tuple[np.ndarray, float]:
    """A matrix whose plain value, plus a number, is that of a cost with one sequence open at each
    end: a row, or column, of prices and a column, or row, of +inf at every open end. Each path has
    two ways out there, one of which pays one price more.
    """
    more = 0.0
    for end, is_open in (("begin", open_begin), ("end", open_end)):
        if not is_open:
            continue
        n, m = cost.shape
        frame = np.full((n + 1, m + 1), math.inf)
        prices = frame[n, :m] if is_open == "y" else frame[:n, m]
        frame[:n, :m] = cost if end == "end" else cost[::-1, ::-1]
        prices[:] = skip
        frame[n, m] = 0.0
        cost = frame if end == "end" else frame[::-1, ::-1]
        more += gamma * np.logaddexp(0.0, -skip / gamma) if gamma > 0 else max(0.0, -skip)
    return cost, more
