"""Independent truths the laws are tested against. Nothing here imports the package under test.

Two oracles, both exact where floating point is not:

* `enumerate_alignments` lists every monotone path of a small lattice. Path costs are sums of exact
  rationals, so the only rounding left is that of one exponential a path.
* `recursion` runs the textbook recursion on cumulated costs, but holds them as Python integers
  (fixed point, units of 2**-UNIT_BITS). Sums and differences are exact for costs of any size; only
  the softmin correction, a number between 0 and gamma log 3, is rounded, relative to its own size.
  Over 512 steps this leaves an error below 1e-13 gamma in a value and about 1e-11 in a gradient.
  `recursion_mpmath` is the same with 50 decimal digits throughout; test_oracles compares the three.

The lattice of weak alignment and the local smoothing are written as the specification states them,
element by element.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import mpmath
import numpy as np

UNIT_BITS = (
    200  # unit of the fixed point: 2**-200, exact for every double above 2**-147 in magnitude
)
FORBIDDEN = 1 << (UNIT_BITS + 400)  # cumulated cost of a cell that no allowed path reaches
STEPS = ((1, 1), (1, 0), (0, 1))  # diagonal, up, left: the order that breaks ties


T = TypeVar("T")
REMEMBERED = 2**21  # cells: those of the examples of a test, which both backends are given


def remembered(oracle: Callable[..., T]) -> Callable[..., T]:
    """The last results of an oracle, by the bits of the cost. Nobody may write to them."""
    results: OrderedDict[tuple[object, ...], tuple[T, int]] = OrderedDict()
    cells = 0

    @functools.wraps(oracle)
    def found(cost: np.ndarray, *settings: object) -> T:
        nonlocal cells
        key = (cost.tobytes(), cost.shape, cost.dtype, *settings)
        if key not in results:
            results[key] = oracle(cost, *settings), cost.size
            cells += cost.size
        results.move_to_end(key)
        truth = results[key][0]
        while cells > REMEMBERED:
            cells -= results.popitem(last=False)[1][1]
        return truth

    return found


@dataclass(frozen=True)
class Truth:
    """Value, expected visits of every cell and derivative by gamma of one lattice."""

    value: float
    visits: np.ndarray  # (n, m)
    by_gamma: float


# ------------------------------------------------------------------------------------- brute force


def alignments(n: int, m: int) -> Iterator[list[tuple[int, int]]]:
    """Yield every path from (0, 0) to (n-1, m-1) by steps (1, 1), (1, 0), (0, 1)."""

    def grow(path: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        i, j = path[-1]
        if (i, j) == (n - 1, m - 1):
            yield list(path)
            return
        for di, dj in STEPS:
            if i + di < n and j + dj < m:
                path.append((i + di, j + dj))
                yield from grow(path)
                path.pop()

    yield from grow([(0, 0)])


@functools.cache
def incidence(n: int, m: int) -> np.ndarray:
    """Matrix (paths, n * m) of zeros and ones: which path visits which cell."""
    rows = []
    for path in alignments(n, m):
        row = np.zeros(n * m)
        row[[i * m + j for i, j in path]] = 1.0
        rows.append(row)
    return np.array(rows)


def _exact(x: float) -> int:
    """Return a double as an integer number of units (exact above the unit, else truncated)."""
    numerator, denominator = float(x).as_integer_ratio()
    return (numerator << UNIT_BITS) // denominator


def _all_exact(values: np.ndarray) -> list[int]:
    """`_exact` of every finite element."""
    fraction, exponent = np.frexp(values)
    digits, shift = np.ldexp(fraction, 53).astype(np.int64), exponent + (UNIT_BITS - 53)
    pairs = zip(digits.tolist(), shift.tolist(), strict=True)
    return [d << k if k >= 0 else d >> -k for d, k in pairs]


def _to_float(units: int) -> float:
    """Round an integer number of units to the nearest double."""
    return units / (1 << UNIT_BITS)  # true division of integers is correctly rounded


@dataclass(frozen=True)
class Enumeration:
    """Distribution over all alignments of a small lattice."""

    value: float
    visits: np.ndarray  # (n, m)
    by_gamma: float
    probability: np.ndarray  # (paths,)
    paths: np.ndarray  # (paths, n * m), the incidence matrix


@remembered
def enumerate_alignments(cost: np.ndarray, gamma: float) -> Enumeration:
    """-gamma log sum exp(-<A, cost> / gamma) over all alignments A, and what follows from it."""
    n, m = cost.shape
    paths = incidence(n, m)
    flat = [None if math.isinf(c) else _exact(c) for c in cost.ravel().tolist()]
    totals: list[int | None] = []
    for row in paths:
        cells = [flat[k] for k in np.flatnonzero(row)]
        totals.append(None if None in cells else sum(c for c in cells if c is not None))
    allowed = [t for t in totals if t is not None]
    probability = np.zeros(len(paths))
    if not allowed:
        return Enumeration(math.inf, np.zeros((n, m)), 0.0, probability, paths)
    least = min(allowed)
    if gamma == 0:
        probability[totals.index(least)] = (
            1.0  # callers compare visits only where the optimum is unique
        )
        return Enumeration(
            _to_float(least), (probability @ paths).reshape(n, m), 0.0, probability, paths
        )
    excess = np.array([math.inf if t is None else _to_float(t - least) for t in totals])
    with np.errstate(over="ignore"):
        weight = np.exp(-excess / gamma)
    mass = math.fsum(weight)
    probability = weight / mass
    # The sum beside the 1 of the least: near 1 the logarithm of a rounded mass has lost its digits.
    others = math.fsum([*weight, -1.0])
    value = _to_float(least + _exact(-gamma * math.log1p(others)))
    visits = np.array([math.fsum(probability * column) for column in paths.T]).reshape(n, m)
    positive = probability[probability > 0]
    entropy = -math.fsum(positive * np.log(positive))
    return Enumeration(value, visits, -entropy, probability, paths)


# ------------------------------------------------------------------------ high-precision recursion


@remembered
def recursion(cost: np.ndarray, gamma: float) -> Truth:
    """Soft-DTW of one lattice in fixed point: value, expected visits, derivative by gamma.

    Works along anti-diagonals on arrays of Python integers; 65,000 cells take 0.2 s. At gamma = 0
    the weights choose one predecessor (diagonal, then up, then left).
    """
    n, m = cost.shape
    forbidden = np.isposinf(cost)
    exact = np.full((n, m), FORBIDDEN, dtype=object)
    finite = np.isfinite(cost)
    exact[finite] = _all_exact(cost[finite])
    total = np.full((n + 1, m + 1), FORBIDDEN, dtype=object)
    total[0, 0] = 0
    weights = np.zeros(
        (3, n + 2, m + 2)
    )  # of cell (i, j), one-based, towards its three predecessors
    with np.errstate(over="ignore"):
        for k in range(2, n + m + 1):
            i = np.arange(max(1, k - m), min(n, k - 1) + 1)
            j = k - i
            before = np.array([total[i - di, j - dj] for di, dj in STEPS])  # (3, cells), objects
            least = before.min(axis=0)
            excess = (before - least).astype(float) * 2.0**-UNIT_BITS
            reached = before < FORBIDDEN // 2
            if gamma == 0:
                first = np.argmax((before == least) & reached, axis=0)
                part = np.zeros(excess.shape)
                part[first, np.arange(len(i))] = 1.0
                correction = np.zeros(len(i))
            else:
                part = np.exp(-excess / gamma)
                rest = np.sort(part, axis=0)[:2].sum(axis=0)  # the largest weight is exactly 1
                correction = -gamma * np.log1p(rest)
            open_cell = reached.any(axis=0) & ~forbidden[i - 1, j - 1]
            part = np.where(reached & open_cell, part, 0.0)
            share = part.sum(axis=0)
            weights[:, i, j] = part / np.where(share > 0, share, 1.0)
            sums = exact[i - 1, j - 1] + least + np.array(_all_exact(correction), dtype=object)
            total[i, j] = np.where(open_cell, sums, FORBIDDEN)
    if total[n, m] >= FORBIDDEN // 2:
        return Truth(math.inf, np.zeros((n, m)), 0.0)
    visits = np.zeros((n + 2, m + 2))
    visits[n, m] = 1.0
    for k in range(n + m - 1, 1, -1):
        i = np.arange(max(1, k - m), min(n, k - 1) + 1)
        j = k - i
        visits[i, j] = sum(
            visits[i + di, j + dj] * weights[q, i + di, j + dj] for q, (di, dj) in enumerate(STEPS)
        )
    weights[:, 1, 1] = 0.0  # the virtual predecessor of the first cell carries no choice
    entropy = -_xlogx(weights).sum(axis=0)
    return Truth(
        _to_float(total[n, m]),
        visits[1 : n + 1, 1 : m + 1].copy(),
        -math.fsum((visits * entropy).ravel().tolist()) if gamma > 0 else 0.0,
    )


def _xlogx(p: np.ndarray) -> np.ndarray:
    return p * np.log(np.where(p > 0, p, 1.0))


def recursion_mpmath(cost: np.ndarray, gamma: float, digits: int = 50) -> Truth:
    """Soft-DTW with `digits` decimal digits throughout; slow, for checking `recursion`."""
    n, m = cost.shape
    with mpmath.workdps(digits):
        g, inf = mpmath.mpf(gamma), mpmath.inf
        total = {(-1, -1): mpmath.mpf(0)}
        weight: dict[tuple[int, int], list[mpmath.mpf]] = {}
        for i, j in itertools.product(range(n), range(m)):
            before = [total.get((i - di, j - dj), inf) for di, dj in STEPS]
            least = min(before)
            if least == inf or math.isinf(cost[i, j]):
                total[i, j], weight[i, j] = inf, [mpmath.mpf(0)] * 3
                continue
            part = [mpmath.exp(-(b - least) / g) if b != inf else mpmath.mpf(0) for b in before]
            share = mpmath.fsum(part)
            weight[i, j] = [p / share for p in part]
            total[i, j] = mpmath.mpf(float(cost[i, j])) + least - g * mpmath.log(share)
        visits = {cell: mpmath.mpf(0) for cell in weight}
        if total[n - 1, m - 1] == inf:
            return Truth(math.inf, np.zeros((n, m)), 0.0)
        visits[n - 1, m - 1] = mpmath.mpf(1)
        by_gamma = mpmath.mpf(0)
        for i, j in itertools.product(range(n - 1, -1, -1), range(m - 1, -1, -1)):
            for (di, dj), p in zip(STEPS, weight[i, j], strict=True):
                if (i - di, j - dj) in visits:
                    visits[i - di, j - dj] += visits[i, j] * p
                if p > 0:
                    by_gamma += visits[i, j] * p * mpmath.log(p)
        table = np.array([[float(visits[i, j]) for j in range(m)] for i in range(n)])
        return Truth(float(total[n - 1, m - 1]), table, float(by_gamma))


# ----------------------------------------------------------------------- bands, lattice, smoothing


def band(n: int, m: int, bandwidth: int | None) -> np.ndarray:
    """Boolean (n, m): the cells with min(0, m - n) - w <= j - i <= max(0, m - n) + w."""
    if bandwidth is None:
        return np.ones((n, m), dtype=bool)
    offset = np.arange(m)[None, :] - np.arange(n)[:, None]
    return (offset >= min(0, m - n) - bandwidth) & (offset <= max(0, m - n) + bandwidth)


def restrict(cost: np.ndarray, n: int, m: int, bandwidth: int | None = None) -> np.ndarray:
    """The cost that counts: cut to the lengths, +inf outside the band."""
    return np.where(band(n, m, bandwidth), cost[:n, :m], np.inf)


def weak_lattice(cost: np.ndarray, dummy: float) -> np.ndarray:
    """(2n+1, 2m+1): real pairs at odd-odd cells, `dummy` everywhere else."""
    n, m = cost.shape
    lattice = np.full((2 * n + 1, 2 * m + 1), float(dummy))
    lattice[1::2, 1::2] = cost
    return lattice


def softmin(values: list[float], gamma: float) -> float:
    """-gamma log sum exp(-v/gamma); +inf of nothing."""
    least = min(values, default=math.inf)
    if math.isinf(least) or gamma == 0:
        return least
    weights = [math.exp(-(v - least) / gamma) for v in values]
    return least - gamma * math.log1p(math.fsum([*weights, -1.0]))


def _neighbors(cost: np.ndarray, i: int, j: int) -> list[float]:
    cells = ((i, j - 1), (i - 1, j), (i - 1, j - 1))
    return [float(cost[k, q]) for k, q in cells if k >= 0 and q >= 0]


@remembered
def smooth(cost: np.ndarray, gamma: float, origin_count: float = 1) -> np.ndarray:
    """Local smoothing, literally: each raw cost plus the softmin of its raw predecessors."""
    out = np.empty_like(cost, dtype=float)
    for i, j in np.ndindex(*cost.shape):
        if i == 0 and j == 0:
            out[i, j] = cost[i, j] - gamma * math.log(origin_count)
        else:
            out[i, j] = cost[i, j] + softmin(_neighbors(cost, i, j), gamma)
    return out


def smooth_vjp(cost: np.ndarray, gamma: float, visits: np.ndarray) -> np.ndarray:
    """Gradient by the raw costs, given the gradient `visits` by the smoothed ones (gamma > 0)."""
    n, m = cost.shape
    out = np.where(np.isinf(cost), 0.0, visits)
    for k, q in np.ndindex(n, m):
        if (k, q) == (0, 0) or visits[k, q] == 0:
            continue
        # Each against the least: in softmin itself, beside 1e30, gamma log 3 would be lost.
        least = min(_neighbors(cost, k, q))
        part = {}
        for i, j in ((k, q - 1), (k - 1, q), (k - 1, q - 1)):
            if i >= 0 and j >= 0 and not math.isinf(cost[i, j]):
                part[i, j] = math.exp(-(cost[i, j] - least) / gamma)
        for cell, weight in part.items():
            out[cell] += visits[k, q] * weight / math.fsum(part.values())
    return out


@dataclass(frozen=True)
class WeakTruth:
    """S2DTW of one cost: value, visits of the real pairs, gradients by cost and dummy cost."""

    value: float
    visits: np.ndarray  # (n, m), dV/ds
    by_cost: np.ndarray  # (n, m), through the smoothing
    by_dummy: float
    by_gamma: float  # of the lattice alone, not through the smoothing


def s2dtw(
    cost: np.ndarray,
    gamma: float,
    smoothing: bool = True,
    dummy: float | None = 0.5,
    origin_count: float = 1,
    brute: bool = False,
) -> WeakTruth:
    """S2DTW by its definition: smooth, build the lattice, align (by enumeration when `brute`)."""
    smoothed = smooth(cost, gamma, origin_count) if smoothing else cost
    lattice = smoothed if dummy is None else weak_lattice(smoothed, dummy)
    truth = enumerate_alignments(lattice, gamma) if brute else recursion(lattice, gamma)
    visits = truth.visits if dummy is None else truth.visits[1::2, 1::2]
    by_dummy = 0.0 if dummy is None else float(truth.visits.sum() - visits.sum())
    by_cost = smooth_vjp(cost, gamma, visits) if smoothing else visits
    return WeakTruth(truth.value, visits, by_cost, by_dummy, truth.by_gamma)


# -------------------------------------------------------------------------- costs between features


def pairwise_cost(x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
    """Cost matrix (n, m) of two sequences in double precision, differences first."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    difference = x[:, None, :] - y[None, :, :]
    if name == "sqeuclidean":
        return (difference**2).sum(-1)
    if name == "euclidean":
        return np.sqrt((difference**2).sum(-1))
    if name == "manhattan":
        return np.abs(difference).sum(-1)
    dot = x @ y.T
    if name == "negative_dot":
        return -dot
    cosine = dot / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1)[None, :])
    return 1.0 - cosine if name == "cosine" else -cosine


def pairwise_cost_vjp(
    x: np.ndarray, y: np.ndarray, grad: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients by x and y of <grad, cost>, for the costs made of differences."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    difference = x[:, None, :] - y[None, :, :]
    if name == "sqeuclidean":
        pull = 2.0 * grad[..., None] * difference
    elif name == "manhattan":
        pull = grad[..., None] * np.sign(difference)
    else:
        distance = np.sqrt((difference**2).sum(-1, keepdims=True))
        pull = grad[..., None] * np.divide(
            difference, distance, out=np.zeros_like(difference), where=distance > 0
        )
    return pull.sum(1), -pull.sum(0)


# ---------------------------------------------------------------------- second order of the oracle


def hessian_product(cost: np.ndarray, gamma: float, direction: np.ndarray) -> np.ndarray:
    """Second derivative of the value along `direction`: the covariance of visits."""
    truth = enumerate_alignments(cost, gamma)
    along = truth.paths @ direction.ravel()
    mean = truth.probability @ along
    return -((truth.probability * (along - mean)) @ truth.paths).reshape(cost.shape) / gamma


def hessian_product_by_differences(
    cost: np.ndarray, gamma: float, direction: np.ndarray, step: float = 1e-3
) -> np.ndarray:
    """The same from two central differences of `recursion`, with Richardson extrapolation."""

    def central(h: float) -> np.ndarray:
        ahead, behind = (
            recursion(cost + h * direction, gamma),
            recursion(cost - h * direction, gamma),
        )
        return (ahead.visits - behind.visits) / (2 * h)

    return (4 * central(step / 2) - central(step)) / 3


def hard_path(cost: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """Cheapest alignment by dynamic programming; ties: diagonal, then up, then left."""
    truth = recursion(cost, 0.0)
    cells = [(int(i), int(j)) for i, j in zip(*np.nonzero(truth.visits), strict=True)]
    return truth.value, sorted(cells)


# ----------------------------------------------------------------------- how close is close enough


def value_scale(truth: Truth | Enumeration | WeakTruth, cost: np.ndarray, gamma: float) -> float:
    """Size that a relative error of a value refers to.

    It is |value| itself unless costs of opposite sign, or costs and the entropy term, cancel: then
    no algorithm in this precision can do better than the largest term of their sum.
    """
    terms = np.abs(cost[truth.visits > 1e-3])
    return max(abs(truth.value), float(terms.max(initial=0.0)), -gamma * truth.by_gamma)


def gradient_tolerance(cost: np.ndarray, gamma: float) -> float:
    """1e-9, and 1e-6 where |cost| / gamma passes 1e5 (issue, point 1)."""
    finite = np.abs(cost[np.isfinite(cost)])
    return 1e-6 if finite.max(initial=0.0) > 1e5 * gamma else 1e-9
