"""Soft-DTW and S2DTW as loss modules."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    check_backend,
    check_bandwidth,
    check_flag,
    check_origin_count,
    check_parameter,
    check_reduction,
)
from ._pattern import Sides, check_pattern
from .costs import Cost, check_cost
from .divergence import soft_dtw_divergence
from .functional import s2dtw, soft_dtw

T = TypeVar("T")

# What the functions call the arguments of `forward`.
_OWN_NAMES = {
    "x": "input",
    "y": "target",
    "x_lengths": "input_lengths",
    "y_lengths": "target_lengths",
}
# Arguments of other libraries' losses, and what to do here.
_ELSEWHERE = {
    "use_cuda": "the device follows input and target, so leave it out and move them",
    "dist_func": "pass cost=dist_func, a name or a function of (..., N, D) and (..., M, D)",
    "cost_function": "pass cost=cost_function, of (..., N, D) and (..., M, D)",
    "normalization": "no value is divided by lengths here: divide the result",
}
_OF_SOFT_DTW = {
    "normalize": "pass divergence=normalize, which takes sequences of any two lengths",
    "sakoe_chiba_radius": "pass bandwidth=sakoe_chiba_radius",
    "global_constraint": "pass bandwidth for a Sakoe-Chiba band; for any other constraint forbid "
    "pairs by costs of +inf, for soft_dtw_from_cost",
    "itakura_max_slope": "forbid the pairs outside by costs of +inf, for soft_dtw_from_cost",
    "warp": "pass warp_cost=warp",
}


def renamed(function: Callable[..., T], *args: Any, **settings: Any) -> T:
    """A function whose errors name the arguments of `forward`."""
    if torch.compiler.is_compiling():
        return function(*args, **settings)
    try:
        return function(*args, **settings)
    except (TypeError, ValueError) as error:
        message = re.sub(r"\b[xy](_lengths)?\b", lambda m: _OWN_NAMES[m.group()], str(error))
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(message).with_traceback(error.__traceback__) from None


def refuse(unknown: dict[str, Any], loss: type, advice: dict[str, str]) -> None:
    """Arguments that a loss does not have."""
    for name in unknown:
        remedy = advice.get(name, f"those that there are, are in help({loss.__name__})")
        raise TypeError(f"{loss.__name__} has no argument {name!r}: {remedy}")


def priced(price: Number) -> bool:
    """Whether a price is one: a tensor, or a number other than 0."""
    return isinstance(price, Tensor) or price != 0


class _AlignmentLoss(nn.Module):
    gamma: Number

    def __init__(
        self, gamma: Number, cost: Cost, reduction: Reduction, backend: Backend | None
    ) -> None:
        super().__init__()
        if isinstance(gamma, bool):
            raise TypeError(
                f"gamma must be a number or a tensor, got {gamma}: it comes first, and there "
                f"is no use_cuda ({_ELSEWHERE['use_cuda']})"
            )
        check_cost(cost)
        check_reduction(reduction)
        check_backend(backend)
        self._keep("gamma", gamma)
        self.cost = cost
        self.reduction = reduction
        self.backend = backend

    def _keep(self, name: str, value: Number) -> None:
        """A number or parameter as it is; another tensor as a buffer, which moves with the module
        and is saved with it.
        """
        check_parameter(value, name)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        else:
            setattr(self, name, value)

    def _settings(self) -> dict[str, object]:
        raise NotImplementedError

    def extra_repr(self) -> str:
        settings = {"gamma": self.gamma, "cost": self.cost, **self._settings()}
        settings |= {"reduction": self.reduction}
        if self.backend is not None:
            settings["backend"] = self.backend
        return ", ".join(f"{name}={short(value)}" for name, value in settings.items())


def short(value: object) -> str:
    """A value on one line: the repr of a parameter has two."""
    return repr(value.detach() if isinstance(value, Tensor) else value)


class SoftDTWLoss(_AlignmentLoss):
    """Soft-DTW, or its divergence, between predicted and target sequences as a loss.

        loss = mean over the batch of V(input, target),  or of D(input, target)

    Args:
        gamma: smoothing, a number at least 0, or a tensor, 0-d or one that broadcasts to (*). An
            nn.Parameter is learned; another tensor is a buffer, which `.to` moves and
            `state_dict` holds. It is computed in float64, whatever dtype it has or `.half()` gives
            it.
        cost: as in :func:`soft_dtw`; a function must be picklable for the module to be.
        warp_cost, skip_cost: as in :func:`soft_dtw`; tensors are parameters or buffers, as gamma.
        repeat, open_begin, open_end: as in :func:`soft_dtw`, where x is the input, y the target.
            An item without a path is +inf, and so is a mean or a sum with it.
        bandwidth: as in :func:`soft_dtw`.
        divergence: use :func:`soft_dtw_divergence`, which is 0 at input = target. It has a
            warp_cost, but none of the other options of a path.
        reduction: "mean", "sum" or "none".
        backend: as in :func:`soft_dtw`.

    Shape:
        input (*, N, D), target (*, M, D), input_lengths and target_lengths None or (*); returns a
        0-d tensor, or (*) for reduction="none". The batch comes first, as with
        `batch_first=True`. Forecasts (B, T) of one number a step are B sequences as
        input[..., None], (B, T, 1); as they are, they would be one sequence of B frames.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`; of settings, at
            construction.

    Costs as :func:`soft_dtw`.

    >>> import torch
    >>> loss = SoftDTWLoss(gamma=0.1, divergence=True)
    >>> loss
    SoftDTWLoss(gamma=0.1, cost='sqeuclidean', bandwidth=None, divergence=True, reduction='mean')
    >>> prediction = torch.randn(8, 20, 3, requires_grad=True)
    >>> loss(prediction, torch.randn(8, 25, 3)).backward()

    Source: Cuturi and Blondel 2017; Blondel et al. 2021 for the divergence.
    """

    warp_cost: Number
    skip_cost: Number
    bandwidth: int | None

    def __init__(
        self,
        gamma: Number = 1.0,
        cost: Cost = "sqeuclidean",
        *,
        warp_cost: Number = 0.0,
        repeat: Sides = "xy",
        open_begin: Sides = "",
        open_end: Sides = "",
        skip_cost: Number = 0.0,
        bandwidth: int | None = None,
        divergence: bool = False,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse(unknown, SoftDTWLoss, _ELSEWHERE | _OF_SOFT_DTW)
        super().__init__(gamma, cost, reduction, backend)
        self.bandwidth = check_bandwidth(bandwidth)
        self.divergence = check_flag(divergence, "divergence")
        check_pattern(warp_cost, repeat, open_begin, open_end, skip_cost, self.bandwidth)
        self._keep("warp_cost", warp_cost)
        self._keep("skip_cost", skip_cost)
        self.repeat, self.open_begin, self.open_end = repeat, open_begin, open_end
        if self.divergence and (priced(skip_cost) or self._path):
            names = *self._path, *(["skip_cost"] if priced(skip_cost) else [])
            raise ValueError(
                f"divergence=True has no {', '.join(names)}: the divergence is defined for all "
                "steps, from the first pair of frames to the last; leave out one of the two"
            )

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        input_lengths: Lengths = None,
        target_lengths: Lengths = None,
    ) -> Tensor:
        function, path = soft_dtw_divergence, {}
        if not self.divergence:
            function, path = soft_dtw, {**self._path, "skip_cost": self.skip_cost}
        return renamed(
            function,
            input,
            target,
            gamma=self.gamma,
            cost=self.cost,
            warp_cost=self.warp_cost,
            **path,
            x_lengths=input_lengths,
            y_lengths=target_lengths,
            bandwidth=self.bandwidth,
            reduction=self.reduction,
            backend=self.backend,
        )

    @property
    def _path(self) -> dict[str, Sides]:
        """The options of a path that are not those of the plain recursion."""
        options = {"repeat": self.repeat, "open_begin": self.open_begin, "open_end": self.open_end}
        plain = {"repeat": "xy", "open_begin": "", "open_end": ""}
        return {name: value for name, value in options.items() if value != plain[name]}

    def _settings(self) -> dict[str, object]:
        prices = {"warp_cost": self.warp_cost, "skip_cost": self.skip_cost}
        path = {name: price for name, price in prices.items() if priced(price)} | self._path
        return {**path, "bandwidth": self.bandwidth, "divergence": self.divergence}


class S2DTWLoss(_AlignmentLoss):
    """S2DTW between sequences as a loss.

        loss = mean over the batch of V(input, target)

    Args:
        gamma: smoothing, a number at least 0, or a tensor, 0-d or one that broadcasts to (*). An
            nn.Parameter is learned; another tensor is a buffer, which `.to` moves and
            `state_dict` holds. It is computed in float64, whatever dtype it has or `.half()` gives
            it.
        cost, smoothing, dummy_cost, origin_count: as in :func:`s2dtw`. A dummy cost that is a
            tensor is a parameter or a buffer, as gamma.
        reduction: "mean", "sum" or "none".
        backend: as in :func:`soft_dtw`.

    Shape:
        input (*, N, D), target (*, M, D), input_lengths and target_lengths None or (*); returns a
        0-d tensor, or (*) for reduction="none". The batch comes first, as with
        `batch_first=True`. Forecasts (B, T) of one number a step are B sequences as
        input[..., None], (B, T, 1); as they are, they would be one sequence of B frames.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`; of settings, at
            construction.

    Costs as :func:`s2dtw`.

    >>> import torch
    >>> loss = S2DTWLoss(reduction="none")
    >>> loss(torch.randn(8, 10, 16), torch.randn(8, 12, 16)).shape
    torch.Size([8])

    Source: Ko et al. 2022, Section 3.
    """

    dummy_cost: Number | None

    def __init__(
        self,
        gamma: Number = 0.1,
        cost: Cost = "shifted_cosine",
        *,
        smoothing: bool = True,
        dummy_cost: Number | None = 0.5,
        origin_count: float = 1,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse(unknown, S2DTWLoss, _ELSEWHERE)
        super().__init__(gamma, cost, reduction, backend)
        if dummy_cost is None:
            self.dummy_cost = None
        else:
            self._keep("dummy_cost", dummy_cost)
        check_origin_count(origin_count)
        self.smoothing = check_flag(smoothing, "smoothing")
        self.origin_count = origin_count

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        input_lengths: Lengths = None,
        target_lengths: Lengths = None,
    ) -> Tensor:
        return renamed(
            s2dtw,
            input,
            target,
            gamma=self.gamma,
            cost=self.cost,
            smoothing=self.smoothing,
            dummy_cost=self.dummy_cost,
            origin_count=self.origin_count,
            x_lengths=input_lengths,
            y_lengths=target_lengths,
            reduction=self.reduction,
            backend=self.backend,
        )

    def _settings(self) -> dict[str, object]:
        return {
            "smoothing": self.smoothing,
            "dummy_cost": self.dummy_cost,
            "origin_count": self.origin_count,
        }
