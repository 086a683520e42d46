"""float32 values to 1e-6 of themselves where the roundings of all cells have one sign.

Equal costs round alike, so the error grows with the length of a path and not with its root. The
truth is float64 on the same float32 costs, itself tested against exact oracles.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import strategies
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from softdtw_kernels import s2dtw_from_cost, soft_dtw_from_cost

WANTED = 1e-6
SUBNORMAL = 2.0**-149  # of float32: a value of this size has no digits to be right to
GAMMAS = (1e-3, 1e-2, 0.06, 0.1, 0.5, 1.0, 10.0, 100.0)
SHAPES = [(8, 8), (33, 31), (2, 900), (300, 6), (300, 3), (64, 64), (512, 512)]


def _constant(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    """One number in all cells, between where it is lost beside the entropy and far above it."""
    return np.full((n, m), np.exp(random.uniform(-4, 3)))


def _integers(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    return random.integers(0, 4, size=(n, m)).astype(float)


def _two(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    """One number beside forbidden cells."""
    cost = np.full((n, m), np.exp(random.uniform(-2, 2)))
    cost[random.random((n, m)) < 0.1] = np.inf
    cost[np.arange(n), np.arange(n) * m // n] = cost[0, 0] = cost[-1, -1] = 1.0
    return cost


def _near(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    """Sequences of symbols, the second a copy with a few errors: almost all of a path is free."""
    x = random.integers(0, 3, size=n)
    y = x[np.arange(m) * n // m]
    wrong = random.random(m) < 0.05
    y[wrong] = random.integers(0, 3, size=wrong.sum())
    return (x[:, None] != y).astype(float)


def _free(n: int, m: int, random: np.random.Generator) -> np.ndarray:
    """A free path along which all others weigh about half a unit of the last place at gamma .06."""
    cost = np.ones((n, m))
    if min(n, m) * 4 < max(n, m):  # along a side
        cost[:, m // 2 : m // 2 + 1 + n // m] = 0.0
        cost[n // 2, :] = np.minimum(cost[n // 2, :], float(m < n))
    else:
        cost[np.arange(n), np.arange(n) * m // n] = 0.0
    paid = random.random((n, m)) < np.exp(random.uniform(-5, -2))
    return np.where(paid, 1.0, cost)


KINDS = {f.__name__.strip("_"): f for f in (_constant, _integers, _two, _near, _free)}


def _cost(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    random = np.random.default_rng(seed)
    items = [KINDS[kind](*shape[-2:], random) for _ in range(math.prod(shape[:-2]))]
    return torch.from_numpy(np.stack(items).reshape(shape)).float()


def _assert_values(single: torch.Tensor, double: torch.Tensor, name: str) -> None:
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), double, rtol=WANTED, atol=SUBNORMAL, msg=lambda text: f"{name}: {text}"
    )


def _check(cost: torch.Tensor, name: str, weak: bool, **arguments: object) -> None:
    if weak:
        arguments["smoothing"] = False
    function = s2dtw_from_cost if weak else soft_dtw_from_cost
    _assert_values(function(cost, **arguments), function(cost.double(), **arguments), name)


@pytest.mark.parametrize(
    "shape, level", [((64, 64), 1.03632), ((300, 6), 1.03632), ((2, 900), 1.03632)]
)
def test_constant_costs_whose_factor_rounds_up(shape: tuple[int, int], level: float) -> None:
    for cost in (level, *np.linspace(0.8, 1.4, 61)):
        _check(torch.full((1, *shape), cost), f"costs of {cost}", weak=False, gamma=1.0)


@pytest.mark.parametrize("weak", [False, True], ids=["plain", "weak"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lattices_whose_cells_round_alike(shape: tuple[int, int], kind: str, weak: bool) -> None:
    batch = 4 if math.prod(shape) > 1e5 else 24
    cost = _cost(kind, (batch, *shape), seed=1)
    for gamma in GAMMAS:
        if not weak:
            _check(cost, f"gamma {gamma}", weak, gamma=gamma)
            _check(cost, f"gamma {gamma}, band", weak, gamma=gamma, bandwidth=1)
            continue
        for share in (0.0, 0.7, 1.0986, 2.0, 10.0):  # dummies that cost a few gamma dominate
            name = f"gamma {gamma}, dummy {share} gamma"
            _check(cost, name, weak, gamma=gamma, dummy_cost=share * gamma)


@pytest.mark.parametrize("size", [128, 2000])
@pytest.mark.parametrize("paid", [1, 2, 5, 8, 12])
def test_every_sum_of_a_free_path_drops_its_neighbors(size: int, paid: int) -> None:
    """Diagonal, column and row of cost 0 among ones, at the gamma where neighbors weigh just less
    than a rounding.
    """
    places = torch.linspace(1, size // 4 - 2, paid).long()
    square, column = torch.ones(size // 4, size // 4), torch.ones(size, 2)
    square.fill_diagonal_(0.0)
    column[:, 1] = 0.0
    square[places, places] = 1.0
    column[4 * places, 1] = 1.0
    for cost in (square, column, column.T):
        for gamma in (0.055, 0.0595, 0.06, 0.0602, 0.0604, 0.062):
            _check(cost, f"{tuple(cost.shape)}, gamma {gamma}", weak=False, gamma=gamma)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=strategies.shapes(90, batch=3),
    seed=strategies.seeds(),
    gamma=strategies.gammas(1e-3, 100.0),
    bandwidth=st.none() | st.integers(0, 40),
    lengths=st.booleans(),
    dummy=st.none() | st.floats(0.0, 3.0),
)
@example("constant", (3, 300, 3), 1, 10.0, None, True, 1.0)
def test_any_batch(
    kind: str,
    shape: tuple[int, ...],
    seed: int,
    gamma: float,
    bandwidth: int | None,
    lengths: bool,
    dummy: float | None,
) -> None:
    random = np.random.default_rng(seed)
    arguments: dict[str, object] = {"gamma": gamma}
    if lengths:
        for name, size in zip(("x_lengths", "y_lengths"), shape[-2:], strict=True):
            arguments[name] = torch.from_numpy(random.integers(1, size + 1, size=shape[:-2]))
    if dummy is None:
        arguments["bandwidth"] = bandwidth
    else:
        arguments["dummy_cost"] = dummy * gamma
    _check(_cost(kind, shape, seed), kind, dummy is not None, **arguments)
