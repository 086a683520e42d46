"""Inputs that may be a cliff, each beside the plain case of its size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from softdtw_kernels import s2dtw_from_cost, soft_dtw, soft_dtw_divergence, soft_dtw_from_cost

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Two calls, forward and backward, and the number of cells that each has to visit."""

    name: str
    make: Callable[[torch.dtype], tuple[Call, int]]
    plain: Callable[[torch.dtype], tuple[Call, int]]


def gradient(function: Callable[..., Tensor], *leaves: Tensor) -> Call:
    """Forward and backward of the sum of what the function returns."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    return lambda: torch.autograd.grad(function(*leaves).sum(), leaves)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_cost(
    *shape: int, gamma: float = 1.0, change: Callable[[Tensor], object] | None = None
) -> Callable[[torch.dtype], tuple[Call, int]]:
    """Uniform costs, changed in place."""

    def make(dtype: torch.dtype) -> tuple[Call, int]:
        cost = uniform(*shape)
        if change is not None:
            change(cost)
        return gradient(partial(soft_dtw_from_cost, gamma=gamma), cost.to(dtype)), math.prod(shape)

    return make


def from_features(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], pairwise: bool = False
) -> Callable[[torch.dtype], tuple[Call, int]]:
    def make(dtype: torch.dtype) -> tuple[Call, int]:
        x, y = uniform(*x_shape).to(dtype), uniform(*y_shape, seed=1).to(dtype)
        pairs = x_shape[0] * (y_shape[0] if pairwise else 1)
        call = gradient(partial(soft_dtw, pairwise=pairwise), x, y)
        return call, pairs * x_shape[-2] * y_shape[-2]

    return make


def by_hand(batch: int, n: int, m: int, d: int) -> Callable[[torch.dtype], tuple[Call, int]]:
    """From features by one matrix product of torch, and from costs."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        squares = x.square().sum(-1)[..., None] + y.square().sum(-1)[..., None, :]
        return soft_dtw_from_cost(squares - 2 * x @ y.mT)

    def make(dtype: torch.dtype) -> tuple[Call, int]:
        x, y = uniform(batch, n, d).to(dtype), uniform(batch, m, d, seed=1).to(dtype)
        return gradient(function, x, y), batch * n * m

    return make


def normal(
    function: Callable[..., Tensor],
    *shape: int,
    gamma: float,
    equal: bool = False,
    backward: bool = True,
) -> Callable[[torch.dtype], tuple[Call, int]]:
    """From features, x a batch and y another one, or a copy of x; gradients of x."""

    def make(dtype: torch.dtype) -> tuple[Call, int]:
        generator = torch.Generator().manual_seed(3)
        x, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)
        loss = partial(function, y=x.clone() if equal else y, gamma=gamma)
        call = gradient(loss, x) if backward else partial(loss, x)
        return call, math.prod(shape[:-1]) * shape[-2]

    return make


def divergences(*shape: int) -> list[Case]:
    """The divergence, and its value alone, next to plain soft-DTW."""
    return [
        Case(
            f"divergence{kind}, {' x '.join(map(str, shape))}, gamma {gamma:g}",
            normal(soft_dtw_divergence, *shape, gamma=gamma, backward=backward),
            normal(soft_dtw, *shape, gamma=gamma, backward=backward),
        )
        for kind, backward in (("", True), (", value alone", False))
        for gamma in (1.0, 0.1, 0.01)
    ]


def with_itself(*shape: int) -> list[Case]:
    """Values next to 0, which are exact too."""
    return [
        Case(
            f"x with x, {' x '.join(map(str, shape))}, gamma {gamma:g}",
            normal(soft_dtw, *shape, gamma=gamma, equal=True),
            normal(soft_dtw, *shape, gamma=gamma),
        )
        for gamma in (1.0, 0.1, 0.01)
    ]


def smoothed(*shape: int) -> Callable[[torch.dtype], tuple[Call, int]]:
    """S2DTW from costs; the cells are those of its lattices."""

    def make(dtype: torch.dtype) -> tuple[Call, int]:
        cost = uniform(*shape).to(dtype)
        return gradient(s2dtw_from_cost, cost), shape[0] * (2 * shape[1] + 1) * (2 * shape[2] + 1)

    return make


def ragged(batch: int, longest: int) -> Callable[[torch.dtype], tuple[Call, int]]:
    def make(dtype: torch.dtype) -> tuple[Call, int]:
        generator = torch.Generator().manual_seed(1)
        n, m = (torch.randint(1, longest + 1, (batch,), generator=generator) for _ in range(2))
        function = partial(soft_dtw_from_cost, x_lengths=n, y_lengths=m)
        return gradient(function, uniform(batch, longest, longest).to(dtype)), int((n * m).sum())

    return make


def holes(cost: Tensor, value: float) -> None:
    generator = torch.Generator().manual_seed(2)
    cost[torch.rand(cost.shape, generator=generator) < 0.1] = value


def wall(cost: Tensor, value: float = math.inf) -> None:
    cost[..., cost.shape[-2] // 2, :] = value


def spot(cost: Tensor) -> None:
    cost[..., cost.shape[-2] // 2, cost.shape[-1] // 2] = math.nan


def fill(cost: Tensor, value: float) -> None:
    cost.fill_(value)


def scale(cost: Tensor, factor: float) -> None:
    cost.mul_(factor)


def thin(short: int, batch: int) -> list[Case]:
    """A few rows, or columns, beside 4096; the plain case has as many cells in squares."""
    pairs, side = (1, round(math.sqrt(4096 * short))) if batch == 1 else (short * batch, 64)
    plain = from_cost(pairs, side, side)
    return [
        Case(f"{batch} x {n} x {m}", from_cost(batch, n, m), plain)
        for n, m in ((short, 4096), (4096, short))
    ]


SMALL_AND_LONG = ((64, 64, 64), (2, 512, 512))
WITH_ITSELF = ((8, 256, 8), (32, 64, 8), (256, 32, 4))  # batch, frames and features


def changed(
    name: str,
    change: Callable[[Tensor], object],
    gamma: float = 1.0,
    shapes: tuple[tuple[int, ...], ...] = SMALL_AND_LONG,
) -> list[Case]:
    """The same costs and a change of them, for small pairs and for long ones."""
    return [
        Case(
            f"{name}, {' x '.join(map(str, shape))}",
            from_cost(*shape, gamma=gamma, change=change),
            from_cost(*shape),
        )
        for shape in shapes
    ]


CASES: tuple[Case, ...] = (
    *(case for batch in (1, 64) for short in (1, 2, 8) for case in thin(short, batch)),
    Case("batch (512, 1)", from_cost(512, 1, 8, 8), from_cost(1, 512, 8, 8)),
    Case("batch (512, 1), pairs 64 x 64", from_cost(512, 1, 64, 64), from_cost(1, 512, 64, 64)),
    Case(
        "pairwise, 512 against one",
        from_features((512, 32, 4), (1, 32, 4), True),
        from_features((512, 32, 4), (512, 32, 4)),
    ),
    Case(
        "pairwise, one against 512",
        from_features((1, 32, 4), (512, 32, 4), True),
        from_features((512, 32, 4), (512, 32, 4)),
    ),
    Case(
        "S2DTW of one pair, smoothed",
        smoothed(1, 512, 512),
        smoothed(64, 64, 64),
    ),
    *changed("10 % +inf", partial(holes, value=math.inf)),
    *changed("10 % 1e30", partial(holes, value=1e30)),
    *changed("a row of +inf", wall),
    *changed("all costs 1e30", partial(fill, value=1e30)),
    *changed("10 % 1e30", partial(holes, value=1e30), shapes=((2, 1024, 1024),)),
    *changed("a row of 1e30", partial(wall, value=1e30), shapes=(*SMALL_AND_LONG, (2, 1024, 1024))),
    *changed("all costs 1e30", partial(fill, value=1e30), shapes=((2, 1024, 1024),)),
    *changed(
        "costs of up to 1e30",
        partial(scale, factor=1e30),
        shapes=((4096, 8, 8), *SMALL_AND_LONG, (2, 1024, 1024)),
    ),
    *changed("subnormal costs", partial(scale, factor=1e-40)),
    *changed("NaN in every item", spot),
    *changed("|cost| / gamma of 1e9", partial(scale, factor=1e9)),
    *changed("gamma 1e-6", partial(scale, factor=1.0), gamma=1e-6),
    Case("lengths 1 to 64 in a batch of 512", ragged(512, 64), from_cost(512, 64, 64)),
    *(case for shape in WITH_ITSELF for case in divergences(*shape)),
    *(case for shape in WITH_ITSELF for case in with_itself(*shape)),
    Case("D = 512", from_features((16, 128, 512), (16, 128, 512)), by_hand(16, 128, 128, 512)),
)
