"""Alignments: the value, the expected alignment as a differentiable matrix, the cheapest path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._checks import (
    Backend,
    Lengths,
    Number,
    check_bandwidth,
    check_flag,
    check_origin_count,
)
from ._inputs import Costs, costs_of_matrix, operators_of, operators_of_patterns, sequences
from ._modes import is_recorded
from ._operators.function import is_transformed
from ._pattern import Sides, check_pattern
from ._problem import PatternProblem, Problem
from .costs import Cost

Paths: TypeAlias = "Tensor | list[Paths]"


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """What :func:`soft_dtw_alignment` and the other alignment functions return.

    Attributes:
        value: (*), the soft-DTW or S2DTW value.
        expected: (*, N, M), the expected number of visits of each pair (i, j) under the Gibbs
            distribution of the alignments, exp(-cost / gamma) / Z: the gradient of the value in the
            costs of the lattice. In [0, 1] at every pair up to rounding, exactly 0 beyond the
            lengths, outside the band and at forbidden pairs, NaN for an item whose value is NaN.
            Differentiable once more.
    """

    value: Tensor
    expected: Tensor
    _backend: str
    _problem: Problem | PatternProblem
    _versions: tuple[int, ...] = ()
    _differentiable: Problem | PatternProblem | None = None  # the same problem, with its graph
    # Not functools.cached_property, whose lock before Python 3.12 torch.compile cannot trace.
    _kept: dict[str, Tensor] = field(default_factory=dict)

    # Tensors of a copy, or of another process, count what is written to them from their own begin.
    def __getstate__(self) -> dict[str, Any]:
        changed = [a != b for a, b in zip(_versions(self._problem), self._versions, strict=False)]
        return self.__dict__ | {"_versions": tuple(changed)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = _own_parts(state["_problem"])
        kept = zip(_versions(own), state["_versions"], strict=False)
        versions = tuple(version - changed for version, changed in kept)
        self.__dict__.update(state, _problem=own, _versions=versions)

    def __repr__(self) -> str:
        shapes = tuple(self.value.shape), tuple(self.expected.shape)
        return "Alignment(value of shape {}, expected of shape {})".format(*shapes)

    def path(self) -> Paths:
        """The cheapest alignment (gamma = 0): an int64 tensor (L, 2) of its pairs in order.

        Of equally cheap predecessors the diagonal one is taken, then the one above. With dummy
        costs, the pairs that the path visits; S2DTW paths are cheapest for the smoothed costs. No
        allowed path, or a NaN, gives (0, 2). A batch gives a list of such tensors, a batch of
        several leading dimensions a list of lists.

        Costs O(N M) time and memory, one item at a time. Not differentiable. A RuntimeError tells
        that costs, lengths or dummy cost were changed in place since: they are not copied.
        """
        self._check_versions("path", "path()", 1)
        with torch.no_grad():
            if isinstance(self._problem, PatternProblem):
                paths = operators_of_patterns(self._backend).path(self._problem)
            else:
                paths = operators_of(self._backend).path(self._problem)
        return _nested(paths, self._problem.cost.shape[:-2])

    @property
    def entropy(self) -> Tensor:
        """The entropy of the distribution of the alignments, in nats (*).

            H = -sum over A of p(A) log p(A) = -dV / dgamma,  p(A) = exp(-<A, C> / gamma) / Z

        0 for a single allowed alignment and at gamma = 0, at most the log of their number; NaN
        where the value is not finite. Under S2DTW the alignments are the paths of the weak lattice.
        The expected total cost is `value + gamma * entropy`. Differentiable once, in the costs,
        gamma and the dummy cost.

        Computed at its first use, at the cost of the backward pass. A RuntimeError tells that
        gamma, costs, lengths or dummy cost were changed in place since.
        """
        if "entropy" in self._kept:
            return self._kept["entropy"]
        entropy = self._computed_entropy()
        if not torch.compiler.is_compiling() and self._may_be_kept(entropy):
            self._kept["entropy"] = entropy
        return entropy

    def _may_be_kept(self, entropy: Tensor) -> bool:
        """What was asked for without gradients may be asked for with them."""
        due = self._differentiable is not None
        return entropy.requires_grad or not (due or torch.is_inference_mode_enabled())

    def _computed_entropy(self) -> Tensor:
        problem = self._problem if self._differentiable is None else self._differentiable
        self._check_versions("entropy", "entropy", 0)
        ones = torch.ones_like(self.value.detach())
        by_gamma = _gradient(self._backend, problem, ones, True)[1]
        entropy = (0.0 - by_gamma).to(self.value.device, self.value.dtype)
        return torch.where(self.value.detach().isfinite(), entropy, math.nan)

    @property
    def _settings(self) -> str:
        of_pattern = isinstance(self._problem, PatternProblem)
        return "warp and skip cost" if of_pattern else "dummy cost"

    def _check_versions(self, what: str, call: str, first: int) -> None:
        if torch.compiler.is_compiling():
            return
        if _versions(self._problem)[first:] != self._versions[first:]:
            used = f"{'' if first else 'gamma, '}costs, lengths or {self._settings}"
            raise RuntimeError(
                f"the {used} of this alignment were changed in place after it was computed, so its "
                f"{what} can no longer be told; call {call} before, or give a clone() of what will "
                "change"
            )


def _nested(paths: list[Tensor], batch: tuple[int, ...]) -> Paths:
    if not batch:
        return paths[0]
    size = math.prod(batch[1:])
    return [_nested(paths[k * size : (k + 1) * size], batch[1:]) for k in range(batch[0])]


def soft_dtw_alignment(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    warp_cost: Number = 0.0,
    repeat: Sides = "xy",
    open_begin: Sides = "",
    open_end: Sides = "",
    skip_cost: Number = 0.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    pairwise: bool = False,
    backend: Backend | None = None,
) -> Alignment:
    """The expected alignment of sequences under soft-DTW, their value, and the cheapest path.

        E[i, j] = dV / dC[i, j] = expectation of A[i, j] under p(A) ~ exp(-<A, C> / gamma)

    Args:
        x, y, gamma, cost, warp_cost, repeat: as in :func:`soft_dtw`.
        open_begin, open_end, skip_cost: likewise. Frames that are left out at open ends have rows
            or columns of E that sum to less than 1, or to 0.
        x_lengths, y_lengths, bandwidth, pairwise, backend: likewise.

    Returns:
        An :class:`Alignment` with `value` (*), `expected` (*, N, M), itself differentiable, and
        the method `path`.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs what :func:`soft_dtw` and its backward pass cost.

    >>> import torch
    >>> x, y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [2.0]])
    >>> alignment = soft_dtw_alignment(x, y, gamma=0.1)
    >>> alignment.path()
    tensor([[0, 0],
            [1, 1],
            [2, 2]])
    >>> bool((alignment.expected.sum(-1) > 0.999).all())  # every frame is visited
    True

    Source: Cuturi and Blondel 2017, Proposition 1 and Algorithm 2; Mensch and Blondel,
    "Differentiable Dynamic Programming for Structured Prediction and Attention", ICML 2018, for
    its derivative.
    """
    bandwidth = check_bandwidth(bandwidth)
    pattern = check_pattern(warp_cost, repeat, open_begin, open_end, skip_cost, bandwidth)
    costs = sequences(x, y, cost, x_lengths, y_lengths, pairwise, backend).costs(cost)
    return _align(costs, costs.of_pattern(gamma, pattern, bandwidth))


def soft_dtw_alignment_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 1.0,
    warp_cost: Number = 0.0,
    repeat: Sides = "xy",
    open_begin: Sides = "",
    open_end: Sides = "",
    skip_cost: Number = 0.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    backend: Backend | None = None,
) -> Alignment:
    """The expected alignment of cost matrices: :func:`soft_dtw_alignment` for a cost of your own.

    Args:
        cost: (*, N, M), as in :func:`soft_dtw_from_cost`.
        gamma, warp_cost, repeat, open_begin, open_end, skip_cost: as in :func:`soft_dtw_alignment`.
        x_lengths, y_lengths, bandwidth, backend: as in :func:`soft_dtw_from_cost`.

    Returns:
        An :class:`Alignment`.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs what :func:`soft_dtw_from_cost` and its backward pass cost.

    >>> import torch
    >>> soft_dtw_alignment_from_cost(torch.zeros(2, 2)).expected  # three paths, all alike
    tensor([[1.0000, 0.3333],
            [0.3333, 1.0000]])

    Source: Cuturi and Blondel 2017, Algorithm 2.
    """
    bandwidth = check_bandwidth(bandwidth)
    pattern = check_pattern(warp_cost, repeat, open_begin, open_end, skip_cost, bandwidth)
    costs = costs_of_matrix(cost, x_lengths, y_lengths, backend)
    return _align(costs, costs.of_pattern(gamma, pattern, bandwidth))


def s2dtw_alignment(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 0.1,
    cost: Cost = "shifted_cosine",
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    pairwise: bool = False,
    backend: Backend | None = None,
) -> Alignment:
    """The expected alignment of sequences under S2DTW, their value, and the cheapest path.

        E[i, j] = dV / ds[i, j] = expected visits of the pair (i, j) on the weak lattice

    s are the smoothed costs: E is the distribution of the paths, not the gradient of the value in
    the raw costs, which would also pass through the smoothing. Dummy cells are not part of it.

    Args:
        x, y, gamma, cost, smoothing, dummy_cost, origin_count, x_lengths, y_lengths, pairwise,
            backend: as in :func:`s2dtw`.

    Returns:
        An :class:`Alignment`; its path holds the pairs that the cheapest path visits, in order,
        which may be none.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs what :func:`s2dtw` and its backward pass cost.

    >>> import torch
    >>> x, y = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    >>> s2dtw_alignment(x, y, smoothing=False).path()  # the second frame of x matches nothing
    tensor([[0, 0]])

    Source: Ko et al. 2022, Section 3; Mensch and Blondel 2018 for the derivative.
    """
    origin_count, smoothing = check_origin_count(origin_count), check_flag(smoothing, "smoothing")
    costs = sequences(x, y, cost, x_lengths, y_lengths, pairwise, backend).costs(cost)
    return _align_smoothed(costs, gamma, smoothing, dummy_cost, origin_count)


def s2dtw_alignment_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 0.1,
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    backend: Backend | None = None,
) -> Alignment:
    """The expected alignment of cost matrices: :func:`s2dtw_alignment` for a cost of your own.

    Args:
        cost: (*, N, M), as in :func:`soft_dtw_from_cost`.
        gamma, smoothing, dummy_cost, origin_count, x_lengths, y_lengths, backend: as in
            :func:`s2dtw_from_cost`.

    Returns:
        An :class:`Alignment`.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs what :func:`s2dtw_from_cost` and its backward pass cost.

    >>> import torch
    >>> s2dtw_alignment_from_cost(torch.full((2, 3), 50.0)).expected.max() < 1e-6  # all avoided
    tensor(True)

    Source: Ko et al. 2022, Section 3.
    """
    origin_count, smoothing = check_origin_count(origin_count), check_flag(smoothing, "smoothing")
    costs = costs_of_matrix(cost, x_lengths, y_lengths, backend)
    return _align_smoothed(costs, gamma, smoothing, dummy_cost, origin_count)


def _align_smoothed(
    costs: Costs,
    gamma: Number,
    smoothing: bool,
    dummy_cost: Number | None,
    origin_count: float,
) -> Alignment:
    """The alignment at the smoothed costs: not the derivative through the smoothing."""
    problem = costs.problem(gamma, dummy_cost)
    if smoothing:
        smoothed = operators_of(costs.backend).smooth(costs.smoothing(gamma, origin_count))
        problem = problem._replace(cost=smoothed)
    return _align(costs, problem)


def _align(costs: Costs, problem: Problem | PatternProblem) -> Alignment:
    cost = problem.cost
    ones = torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
    expected = _gradient(costs.backend, problem, ones, False)[0]
    if isinstance(problem, PatternProblem):
        value = operators_of_patterns(costs.backend).value(problem)
    else:
        value = operators_of(costs.backend).value(problem)
    if torch.compiler.is_compiling():  # what was traced has no version that its path could check
        return Alignment(value, expected, costs.backend, problem)
    own = _own_parts(problem)
    due = value.requires_grad or is_transformed() or is_recorded()
    tracked = problem if due else None
    return Alignment(value, expected, costs.backend, own, _versions(own), tracked)


def _gradient(
    backend: str, problem: Problem | PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, ...]:
    """By the cost first, and by gamma."""
    if isinstance(problem, PatternProblem):
        return operators_of_patterns(backend).gradient(problem, grad_value, with_parameters)
    return operators_of(backend).gradient(problem, grad_value, with_parameters)


def _own_parts(problem: Problem | PatternProblem) -> Any:
    return type(problem)(*[_own(part) for part in problem])


def _own(part: Any) -> Any:
    """A tensor without its graph; copied only if of inference mode, whose tensors count no
    versions.
    """
    if not isinstance(part, Tensor):
        return part
    if not part.is_inference():
        return part.detach()
    with torch.inference_mode(False):
        return part.clone()


def _versions(problem: Problem | PatternProblem) -> tuple[int, ...]:
    """How often what an alignment is computed from has been written to; gamma comes first."""
    used = problem.gamma, problem.cost, *problem[2:]
    return tuple(part._version for part in used if isinstance(part, Tensor))
