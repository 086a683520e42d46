"""Hypothesis strategies: batches of alignment problems with their per-item truth.

Arrays are drawn as a seed and a kind, not element by element: what matters to an alignment kernel
is the shape, the size of costs against gamma, ties, signs and walls, and these have names here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracles
import torch
from hypothesis import strategies as st

GAMMAS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
COST_KINDS = ("normal", "walk", "near", "integers", "constant", "negative", "large", "tiny")


def make_cost(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Cost matrices (*, n, m) of one kind, float64."""
    random = np.random.default_rng(seed)
    n, m = shape[-2:]
    if kind in ("walk", "near"):
        x = random.normal(size=(*shape[:-2], n, 4)).cumsum(-2)
        y = random.normal(size=(*shape[:-2], m, 4)).cumsum(-2)
        if kind == "near":
            k = min(n, m)
            y[..., :k, :] = x[..., :k, :] + 1e-3 * y[..., :k, :]
        return ((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1)
    if kind == "integers":  # many ties
        return random.integers(-2, 3, size=shape).astype(float)
    if kind == "constant":
        return np.full(shape, random.normal())
    base = random.normal(size=shape)
    scale = {"normal": 1.0, "negative": 1.0, "large": 1e4, "tiny": 1e-6}[kind]
    return scale * (-np.abs(base) if kind == "negative" else base)


def gammas(low: float = 1e-3, high: float = 10.0) -> st.SearchStrategy[float]:
    """Positive gamma, the decades first and everything between."""
    decades = [g for g in GAMMAS if low <= g <= high]
    return st.sampled_from(decades) | st.floats(low, high)


def shapes(largest: int, batch: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    """(*, n, m) with zero to two leading dimensions; 1 x 1, 1 x k and k x 1 come up often."""
    side = st.one_of(st.integers(1, largest), st.just(1))
    lead = st.lists(st.integers(1, batch), max_size=2).map(tuple)
    return st.tuples(lead, side, side).map(lambda t: (*t[0], t[1], t[2]))


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**16)


@dataclass(frozen=True)
class Problem:
    """A batch of problems on given costs, with the arguments that the public functions take."""

    cost: torch.Tensor  # (*, n, m)
    gamma: float
    x_lengths: torch.Tensor | None
    y_lengths: torch.Tensor | None
    bandwidth: int | None

    @property
    def arguments(self) -> dict[str, object]:
        """Return the keyword arguments for soft_dtw_from_cost and its kind."""
        return {
            "gamma": self.gamma,
            "x_lengths": self.x_lengths,
            "y_lengths": self.y_lengths,
            "bandwidth": self.bandwidth,
        }

    @property
    def limits(self) -> dict[str, object]:
        """Return the arguments other than gamma."""
        return {k: v for k, v in self.arguments.items() if k != "gamma"}

    def sizes(self, index: tuple[int, ...]) -> tuple[int, int]:
        """Return the lengths of one item."""
        n, m = self.cost.shape[-2:]
        n = n if self.x_lengths is None else int(self.x_lengths[index])
        m = m if self.y_lengths is None else int(self.y_lengths[index])
        return n, m

    def items(self) -> list[tuple[tuple[int, ...], np.ndarray]]:
        """Return (index, cost that counts) of every item: cut to its lengths, +inf off its band."""
        cost = self.cost.detach().double().numpy()
        return [
            (index, oracles.restrict(cost[index], *self.sizes(index), self.bandwidth))
            for index in np.ndindex(*cost.shape[:-2])
        ]

    def padded(self, index: tuple[int, ...], block: np.ndarray) -> np.ndarray:
        """Return `block` of one item's own size inside zeros of the full (n, m)."""
        full = np.zeros(self.cost.shape[-2:])
        full[: block.shape[0], : block.shape[1]] = block
        return full


def masked(problem: Problem) -> bool:
    """Whether some finite cost is a mask rather than a cost."""
    finite = problem.cost[problem.cost.isfinite()]
    return bool((finite.abs() > 1e8).any())


@st.composite
def problems(
    draw: st.DrawFn,
    largest: int = 9,
    kinds: tuple[str, ...] = COST_KINDS,
    lengths: bool = True,
    bands: bool = True,
    forbidden: bool = True,
    masks: bool = False,
    gamma: st.SearchStrategy[float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Draw a batch of problems; each feature can be left out."""
    shape = draw(shapes(largest))
    seed = draw(seeds())
    cost = make_cost(draw(st.sampled_from(kinds)), shape, seed)
    random = np.random.default_rng(seed + 1)
    if forbidden and draw(st.booleans()):
        cost[random.random(shape) < draw(st.sampled_from([0.05, 0.3]))] = np.inf
    if masks and draw(st.booleans()):
        cost[random.random(shape) < 0.2] += draw(st.sampled_from([1e9, 1e30]))
    x_lengths = y_lengths = None
    if lengths and draw(st.booleans()):
        x_lengths = torch.as_tensor(random.integers(1, shape[-2] + 1, size=shape[:-2]))
    if lengths and draw(st.booleans()):
        y_lengths = torch.as_tensor(random.integers(1, shape[-1] + 1, size=shape[:-2]))
    bandwidth = draw(st.none() | st.integers(0, largest)) if bands else None
    return Problem(
        torch.from_numpy(cost).to(dtype),
        draw(gammas() if gamma is None else gamma),
        x_lengths,
        y_lengths,
        bandwidth,
    )


@st.composite
def features(
    draw: st.DrawFn, largest: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw x (*, n, d) and y (*, m, d) of random-walk features."""
    *lead, n, m = draw(shapes(largest))
    d, seed = draw(st.integers(1, 5)), draw(seeds())
    random = np.random.default_rng(seed)
    x = random.normal(size=(*lead, n, d)).cumsum(-2)
    y = random.normal(size=(*lead, m, d)).cumsum(-2)
    return torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)
