"""Values and gradients against brute force over all alignments and a high-precision recursion.

The reference backend holds cumulated sums in float64, as the papers write them. A sum beyond 1e9 is
then known to 1e-7 at best, which gamma = 1e-3 sees; so the laws give it the masks that an alignment
avoids, and give the walls that every alignment pays for to the kernels alone.
"""

from __future__ import annotations

import functools

import numpy as np
import oracles
import pytest
import strategies
import torch
from helpers import assert_close, assert_item, assert_value, value_and_gradient
from hypothesis import assume, given
from strategies import GAMMAS, Problem, make_cost, problems

from softdtw_kernels import soft_dtw, soft_dtw_from_cost

LARGE = (257, 255)
SHAPES = [(1, 1), (1, 257), (257, 1), (2, 2), (31, 33), (64, 64), (129, 65), LARGE]


def _check_all(problem: Problem, backend: str, oracle: object) -> None:
    assume(backend != "reference" or not strategies.masked(problem))
    value, visits = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    for index, cost in problem.items():
        truth = oracle(cost, problem.gamma)
        n, m = cost.shape
        assert_item(
            cost,
            problem.gamma,
            truth,
            value[index].item(),
            visits[index][:n, :m].numpy(),
            str(index),
        )
        outside = visits[index].clone()
        outside[:n, :m] = 0
        assert not outside.any(), f"gradient beyond the lengths of item {index}"
        assert not visits[index][:n, :m].numpy()[np.isinf(cost)].any(), (
            f"gradient of forbidden cells {index}"
        )


@given(problem=problems(largest=5, masks=True))
def test_matches_brute_force_over_all_alignments(problem: Problem, backend: str) -> None:
    _check_all(problem, backend, oracles.enumerate_alignments)


@given(problem=problems(largest=40, masks=True))
def test_matches_high_precision_recursion(problem: Problem, backend: str) -> None:
    _check_all(problem, backend, oracles.recursion)


def _walls(kind: str, cost: np.ndarray) -> np.ndarray:
    """Raise some cells of a cost so far that double precision cannot hold a cost beside them.

    mask: scattered cells, as masks are used. wall: a full row and a full column, which every path
    must cross. uneven: walls on two rows, of unequal heights. ends: the two cells on every path.
    all: every cell.
    """
    n, m = cost.shape
    random = np.random.default_rng(7)
    what, _, size = kind.partition("-")
    height = float(size or 0)
    cost = cost.copy()
    if what == "forbidden":
        cost[random.random((n, m)) < 0.1] = np.inf
        np.fill_diagonal(cost, 1.0)
        cost[min(n, m) - 1, min(n, m) - 1 :] = 1.0
        cost[min(n, m) - 1 :, min(n, m) - 1] = 1.0
    elif what == "mask":
        cost[random.random((n, m)) < 0.2] = height
    elif what == "wall":
        cost[n // 2] += height
        cost[:, m // 3] += height
    elif what == "uneven":
        cost[n // 3] += height * (1 + random.random(m))
        cost[n // 2] += height
    elif what == "ends":
        cost[0, 0] += height
        cost[-1, -1] += height
    elif what == "all":
        cost += height
    return cost


@functools.cache
def _truth(
    kind: str, walls: str, shape: tuple[int, int], gamma: float
) -> tuple[np.ndarray, oracles.Truth]:
    cost = _walls(walls, make_cost(kind, shape, seed=11))
    return cost, oracles.recursion(cost, gamma)


def _check_large(kind: str, walls: str, shape: tuple[int, int], gamma: float, backend: str) -> None:
    cost, truth = _truth(kind, walls, shape, gamma)
    value, visits = value_and_gradient(
        soft_dtw_from_cost, torch.from_numpy(cost), gamma=gamma, backend=backend
    )
    assert_item(cost, gamma, truth, value.item(), visits.numpy())


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", ["walk", "near", "normal", "negative", "large"])
def test_matches_high_precision_recursion_at_257_by_255(
    kind: str, gamma: float, backend: str
) -> None:
    _check_large(kind, "", LARGE, gamma, backend)


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
@pytest.mark.parametrize("gamma", [1e-3, 1.0])
def test_matches_high_precision_recursion_over_shapes(
    shape: tuple[int, int], gamma: float, backend: str
) -> None:
    for kind in ("walk", "normal", "constant"):
        _check_large(kind, "", shape, gamma, backend)


def test_a_value_near_zero_that_other_paths_hardly_change(backend: str) -> None:
    """Their share of Z is far below its rounding, and yet a tenth of the value."""
    cost = torch.tensor([[2.5092e-06, 1.3202], [1.3185, 1.8729e-06]], dtype=torch.float64)
    _check_all(Problem(cost, 0.1, None, None, None), backend, oracles.recursion)


@pytest.mark.parametrize("walls", ["forbidden", "mask-1e9", "mask-1e30"])
@pytest.mark.parametrize("gamma", [1e-3, 1.0])
def test_forbidden_and_masked_cells(walls: str, gamma: float, backend: str) -> None:
    _check_large("walk", walls, LARGE, gamma, backend)


PAID = [
    f"{kind}-{height}" for kind in ("wall", "uneven", "ends", "all") for height in ("1e9", "1e30")
]


@pytest.mark.parametrize("walls", PAID)
@pytest.mark.parametrize("gamma", [1e-3, 1.0])
def test_walls_that_every_alignment_pays(walls: str, gamma: float) -> None:
    _check_large("walk", walls, LARGE, gamma, "numba")


@pytest.mark.parametrize("walls", ["forbidden", "mask-1e9", "mask-1e30", *PAID])
def test_forbidden_and_masked_cells_of_small_costs(walls: str) -> None:
    for shape in [(1, 1), (1, 4), (4, 1), (3, 5), (12, 9)]:
        for gamma in (1e-3, 0.1, 10.0):
            _check_large("normal", walls, shape, gamma, "numba")


@given(
    problem=problems(
        largest=24, masks=True, gamma=strategies.gammas(1e-3, 1.0), dtype=torch.float32
    )
)
def test_float32_matches_high_precision_on_the_same_cost(problem: Problem, backend: str) -> None:
    assume(backend != "reference" or not strategies.masked(problem))
    value, visits = value_and_gradient(
        soft_dtw_from_cost, problem.cost, backend=backend, **problem.arguments
    )
    assert value.dtype == visits.dtype == torch.float32
    for index, cost in problem.items():
        truth = oracles.recursion(cost, problem.gamma)
        scale = oracles.value_scale(truth, cost, problem.gamma)
        assert_value(value[index].item(), truth.value, scale, 1e-6, f"value {index}")
        assert_close(visits[index], problem.padded(index, truth.visits), 5e-5, f"gradient {index}")


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize("walls", ["", "forbidden", "band", "mask-1e9", "wall-1e9", "wall-1e30"])
def test_float32_stays_within_the_bar_of_long_walks(walls: str, gamma: float) -> None:
    cost = torch.from_numpy(_walls(walls, make_cost("walk", (700, 640), seed=3))).float()
    bandwidth = 40 if walls == "band" else None
    single = value_and_gradient(soft_dtw_from_cost, cost, gamma=gamma, bandwidth=bandwidth)
    double = value_and_gradient(soft_dtw_from_cost, cost.double(), gamma=gamma, bandwidth=bandwidth)
    assert_close(single[1], double[1], 5e-5, "gradient")
    assert_close(single[0], double[0], 0.0, "value", rtol=1e-6)


@pytest.mark.parametrize(
    "near, gamma", [(True, 1e-3), (True, 1e-2), (True, 0.1), (True, 1.0), (False, 1.0)]
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_float32_stays_within_the_bar_from_features(
    near: bool, gamma: float, offset: float
) -> None:
    """y near x, and far from the origin, where the x^2 + y^2 - 2xy form loses the gradient.

    Independent walks have costs of 1e2 on their path, whose rounding to float32 is 1e-2 gamma at
    gamma = 1e-3 already, so they are tested at gamma 1 only.
    """
    random = np.random.default_rng(5)
    x = random.normal(size=(400, 4)).cumsum(0)
    y = x + 1e-3 * random.normal(size=x.shape) if near else random.normal(size=(380, 4)).cumsum(0)
    x32, y32 = torch.from_numpy(x + offset).float(), torch.from_numpy(y + offset).float()
    single = value_and_gradient(soft_dtw, x32, y32, gamma=gamma)
    double = value_and_gradient(soft_dtw, x32.double(), y32.double(), gamma=gamma)
    for name, got, truth in zip("xy", single[1:], double[1:], strict=True):
        scale = max(1.0, truth.abs().max().item())
        assert_close(got / scale, truth / scale, 5e-5, f"gradient by {name}")
    x, y = x32.double().numpy(), y32.double().numpy()
    cost = oracles.pairwise_cost(x, y, "sqeuclidean")
    scale = oracles.value_scale(oracles.recursion(cost, gamma), cost, gamma)
    assert_value(single[0].item(), double[0].item(), scale, 1e-6)
