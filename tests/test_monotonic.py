"""Monotonic alignments: every alignment enumerated, derivatives, lengths, what is forbidden, and
the systems that they are special cases of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers import assert_close, derivative
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor

from softdtw_kernels import forward_sum, monotonic_alignment, soft_dtw_from_cost

SHAPES = [(1, 1), (4, 1), (3, 3), (5, 3), (6, 4), (2, 3), (1, 2)]


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def alignments(n: int, m: int) -> Iterator[list[int]]:
    """The token of every frame, of all alignments."""
    for steps in itertools.combinations(range(1, n), m - 1):
        yield [sum(t >= k for k in steps) for t in range(n)]


def enumerated(x: Tensor) -> tuple[float, np.ndarray, list[tuple[float, list[int]]]]:
    """The value, the expected alignment, and the sum of every alignment."""
    n, m = x.shape
    scores = x.numpy()
    sums = [(sum(scores[t, j] for t, j in enumerate(a)), a) for a in alignments(n, m)]
    expected = np.zeros((n, m))
    if not sums or max(s for s, _ in sums) == -math.inf:
        return math.inf, expected, sums
    value = -np.logaddexp.reduce([s for s, _ in sums])
    for s, a in sums:
        expected[range(n), a] += math.exp(s + value)
    return value, expected, sums


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("walls", [0, 3])
def test_the_value_and_gradient_are_those_of_all_alignments(
    shape: tuple[int, int], walls: int, backend: str
) -> None:
    for seed in range(4):
        x = draw(*shape, seed=seed)
        x.view(-1)[
            torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed))[:walls]
        ] = -math.inf
        truth, expected, sums = enumerated(x)
        leaf = x.requires_grad_()
        value = forward_sum(leaf, backend=backend)
        (gradient,) = derivative(value, leaf)
        if math.isinf(truth):
            assert value == math.inf
        else:
            assert_close(value.detach(), truth, 1e-12, "value", rtol=1e-13)
        assert_close(-gradient, expected, 1e-12, "expected alignment")
        best = monotonic_alignment(x, backend=backend)
        assert not best.requires_grad
        if math.isinf(truth):
            assert not best.any()
        else:
            assert_close(
                (best * x.detach().clamp(min=-1e9)).sum(), max(s for s, _ in sums), 1e-12, "sum"
            )
            assert (best.sum(-1) == 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (5, 3)])
def test_first_and_second_derivatives(shape: tuple[int, int], backend: str) -> None:
    x = draw(2, *shape)
    x[0, -1, 0] = -math.inf if shape[1] > 1 else 0.0

    def call(y: Tensor) -> Tensor:
        return forward_sum(torch.where(x == -math.inf, x, y), backend=backend)

    y = x.nan_to_num(neginf=0.0).requires_grad_()
    assert torch.autograd.gradcheck(call, y)
    assert torch.autograd.gradgradcheck(call, y)


@settings(max_examples=12)
@given(
    seed=seeds(),
    n=st.integers(1, 40),
    m=st.integers(1, 30),
    scale=st.sampled_from([0.1, 5.0, 300.0]),
)
def test_kernels_and_reference_agree(seed: int, n: int, m: int, scale: float) -> None:
    x, direction = draw(2, n, m, seed=seed, scale=scale), draw(2, n, m, seed=seed + 1)
    x[direction > 2.5] = -math.inf
    results = []
    for backend in ("numba", "reference"):
        leaf = x.clone().requires_grad_()
        value = forward_sum(leaf, backend=backend)
        (gradient,) = derivative(value.sum(), leaf, again=True)
        (product,) = derivative((gradient * direction).sum(), leaf)
        results.append((value.detach(), gradient.detach(), product))
        assert torch.equal(monotonic_alignment(x), monotonic_alignment(x, backend="reference"))
    size = 1 + float(x[x.isfinite()].abs().max()) * n
    assert_close(results[0][0], results[1][0], 1e-13 * size, "value")
    assert_close(results[0][1], results[1][1], 1e-11 * size, "gradient")
    assert_close(results[0][2], results[1][2], 1e-10 * size, "Hessian product")


def test_it_is_soft_dtw_with_a_wall_on_the_step_along_the_tokens(backend: str) -> None:
    """Interleaved with frames that only the next token may enter, the plain lattice has no step
    (0, 1) left to take.
    """
    x = draw(5, 3)
    # Each frame twice as many columns: odd ones are gates. A step to the next token goes through
    # two diagonal steps, a repetition through two up.
    n, m = x.shape
    cost = torch.full((2 * n - 1, 2 * m - 1), math.inf, dtype=x.dtype)
    cost[::2, ::2] = -x
    cost[1::2, ::2] = 0.0  # stay
    cost[1::2, 1::2] = 0.0  # move
    # The step (0, 1) from stay to move within a row would count twice: forbid by a limit.
    value = soft_dtw_from_cost(cost, backend=backend)
    assert value <= forward_sum(x, backend=backend) + 1e-12
