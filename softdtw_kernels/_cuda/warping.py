"""A cost of warping alone: the kernels of plain problems, given costs with 2 w in them.

Requirements: torch only. As `_operators.compositions` has it: the value is that of costs C + 2 w,
less (n + m) w. The fast arithmetic takes both, in float64. What these roundings would change, and
gamma = 0, is left to the wide one, which is given C and w as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._operators.compositions import by_all, check_warps_alone, products_by_all
from .._pattern import check_prices
from .._problem import PatternProblem
from . import lattice, tiny
from .fields import Raw, with_warps
from .recipe import Launcher
from .sweeps import no_state

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _parts(problem: PatternProblem) -> tuple[Tensor, Raw]:
    check_warps_alone(problem)
    check_prices(problem.warp, problem.skip, False)
    warped, _, raw = with_warps(problem)
    return warped, raw


def value(launcher: Launcher, problem: PatternProblem) -> Tensor:
    warped, raw = _parts(problem)
    kernels = tiny if tiny.applies(warped, launcher.multiprocessors) else lattice
    return kernels.value(launcher, problem.of(warped), raw=raw).to(problem.cost.dtype)


def value_and_state(launcher: Launcher, problem: PatternProblem) -> tuple[Tensor, Tensor]:
    """As `lattice.value_and_state`; the tiny kernels keep nothing."""
    warped, raw = _parts(problem)
    if tiny.applies(warped, launcher.multiprocessors):
        return value(launcher, problem), no_state(warped)
    found, state = lattice.value_and_state(launcher, problem.of(warped), raw)
    return found.to(problem.cost.dtype), state


def gradient(
    launcher: Launcher,
    problem: PatternProblem,
    grad_value: Tensor,
    with_parameters: bool,
    state: Tensor | None = None,
) -> Four:
    warped, raw = _parts(problem)
    plain, wide = problem.of(warped), grad_value.double()
    if not with_parameters and tiny.applies(warped, launcher.multiprocessors):
        by_cost, by_gamma = tiny.gradient(launcher, plain, wide, raw=raw), None
    else:
        rest = wide, with_parameters, state, raw
        by_cost, by_gamma, _ = lattice.gradient(launcher, plain, *rest)
    if by_gamma is None:
        by_gamma = torch.empty_like(wide)
    return by_all(by_cost, by_gamma, problem, wide, with_parameters)


def hessian_product(
    launcher: Launcher,
    problem: PatternProblem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_warp: Tensor,
) -> tuple[Tensor, ...]:
    warped, raw = _parts(problem)
    plain, along = problem.of(warped), tangent_cost.double() + 2 * tangent_warp[..., None, None]
    directions = along, tangent_gamma, None
    found = lattice.hessian_product(launcher, plain, grad_value.double(), *directions, raw)
    slope, by_cost, by_gamma, _ = found
    has_path = lattice.value(launcher, plain, raw) != math.inf
    return products_by_all(slope, by_cost, by_gamma, has_path, problem, tangent_warp)


def path(launcher: Launcher, problem: PatternProblem) -> list[Tensor]:
    warped, raw = _parts(problem)
    return lattice.path(launcher, problem.of(warped), raw)
