"""Soft-DTW barycenters: the sequence that minimizes a weighted sum of soft-DTW values."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.nn.utils.rnn import PackedSequence

from ._checks import (
    Backend,
    Lengths,
    Number,
    check_count,
    check_flag,
    check_lengths,
    check_scalar,
    check_tensor,
    check_tolerance,
    tensor_of,
)
from ._remedies import features_first
from ._values import lengths_in_range
from .costs import Cost, computing_dtype, repeat_first_beyond
from .functional import soft_dtw

EVALUATIONS = 25  # of an iteration of L-BFGS at most


def soft_dtw_barycenter(
    sequences: Tensor | Sequence[Tensor],
    *,
    lengths: Lengths = None,
    weights: Tensor | Sequence[float] | None = None,
    init: Tensor | int | None = None,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    bandwidth: int | None = None,
    divergence: bool = False,
    max_iter: int = 100,
    tol: float = 1e-5,
    backend: Backend | None = None,
) -> Tensor:
    """The sequence that minimizes a weighted mean of soft-DTW values to given sequences.

        z = argmin sum over b of w_b V(z, x_b),  or of D(z, x_b) with divergence=True

    Args:
        sequences: (B, N, D), or a list of (N_b, D), float32 or float64; half precision is computed
            in float32.
        lengths: None or integers (B,), each 1..N, for sequences padded to N.
        weights: None (all alike) or B numbers, at least 0 and not all 0; divided by their sum. A
            sequence of weight 0 is left out.
        init: the start of the descent (L, D), which also sets the length of the result; a length
            L; or None, a length that is the rounded weighted mean of the lengths. Without a
            tensor, the start is the weighted mean of the sequences, each resampled linearly to L.
            The problem is not convex: another start may end at another barycenter.
        gamma: smoothing, at least 0, a number or a 0-d tensor. A larger one gives a smoother
            objective and barycenter.
        cost: as in :func:`soft_dtw`; differentiable, and bounded below, as "negative_dot" is only
            with divergence=True.
        bandwidth: as in :func:`soft_dtw`.
        divergence: minimize the divergence, which does not shrink the barycenter. With
            "sqeuclidean" it can be negative: the barycenter of one sequence can be another one.
        max_iter: iterations of L-BFGS at most, each of one or a few evaluations.
        tol: the descent ends where the largest entry of the gradient has fallen to this fraction
            of its first one, or where the objective changes by less than its dtype resolves, also
            along the gradient.
        backend: as in :func:`soft_dtw`.

    Returns:
        (L, D) in the dtype of the sequences, detached from them.

    Raises:
        TypeError, ValueError: for arguments of another type, dtype, shape or range, where the
            start or its value is not finite, and where the descent leaves the finite numbers.
        RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs the time and memory of :func:`soft_dtw` forward and backward for B pairs an evaluation.

    >>> import torch
    >>> t = torch.linspace(0, 6, 20)
    >>> sequences = torch.stack([torch.sin(t), torch.sin(t - 0.5)])[..., None]
    >>> z = soft_dtw_barycenter(sequences, gamma=0.1)
    >>> z.shape, bool(soft_dtw(z, sequences, gamma=0.1).sum()
    ...               < soft_dtw(sequences.mean(0), sequences, gamma=0.1).sum())
    (torch.Size([20, 1]), True)

    Source: Cuturi and Blondel 2017, Section 3.2; Blondel et al. 2021 for the divergence.
    """
    max_iter, tol = check_count(max_iter, "max_iter"), check_tolerance(tol, "tol")
    check_scalar(gamma, "gamma", "barycenters")
    divergence = check_flag(divergence, "divergence")
    if not isinstance(sequences, Tensor):
        sequences, lengths = padded(sequences, lengths)
    check_tensor(sequences, "sequences", "(B, N, D)")
    if sequences.dim() != 3 or sequences.shape[0] == 0:
        raise ValueError(f"sequences must have shape (B, N, D), got {tuple(sequences.shape)}")
    lengths = own_lengths(lengths, sequences)
    dtype = sequences.dtype
    # Leaves inference mode, whose tensors cannot be saved for a backward pass.
    with torch.inference_mode(False), torch.enable_grad():
        sequences = sequences.detach().clone()
        if lengths is not None:
            lengths = lengths.clone()
        sequences, _ = computing_dtype(sequences, sequences)
        shares = _shares(weights, sequences)
        counts = shares > 0
        if not bool(counts.all()):
            sequences, shares = sequences[counts], shares[counts]
            lengths = None if lengths is None else lengths[counts]
        gamma = gamma.detach() if isinstance(gamma, Tensor) else gamma
        start = _start(init, sequences, lengths, shares)

        def objective(z: Tensor) -> Tensor:
            values = soft_dtw(
                z,
                sequences,
                gamma=gamma,
                cost=cost,
                y_lengths=lengths,
                bandwidth=bandwidth,
                backend=backend,
            )
            total = values.double() @ shares
            if divergence:  # the terms of the sequences with themselves are constant
                own = soft_dtw(z, z, gamma=gamma, cost=cost, bandwidth=bandwidth, backend=backend)
                total = total - 0.5 * own.double()
            return total

        spread = _spread(sequences, lengths)
        return _minimize(objective, start, spread, float(gamma), max_iter, tol).to(dtype)


def padded(sequences: Sequence[Tensor], lengths: Lengths) -> tuple[Tensor, Tensor]:
    """Sequences (N_i, D) as one tensor (B, max N, D) and their lengths."""
    # A tuple, but not of sequences; or an array, to be converted as a whole.
    if isinstance(sequences, PackedSequence) or hasattr(sequences, "__array__"):
        check_tensor(sequences, "sequences", "(B, N, D)")
    in_order = hasattr(sequences, "__len__") and hasattr(sequences, "__getitem__")
    if isinstance(sequences, Mapping) or not in_order:
        raise TypeError(
            "sequences must be a torch.Tensor (B, N, D) or a list of tensors (N_b, D), "
            f"got {type(sequences).__name__}"
        )
    if lengths is not None:
        raise ValueError("lengths belong to a padded tensor; a list of sequences has its own")
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one sequence, got an empty list")
    for k, sequence in enumerate(sequences):
        check_tensor(sequence, f"sequences[{k}]", "(N, D)")
        first = sequences[0]
        if sequence.dim() != 2 or sequence.shape[1] != first.shape[1]:
            raise ValueError(
                "sequences must be tensors (N, D) with the same number of features D, "
                f"got shapes {tuple(first.shape)} and {tuple(sequence.shape)}"
                + _transposed(first, sequence)
            )
        if sequence.dtype != first.dtype or sequence.device != first.device:
            raise TypeError(
                "sequences must have one dtype and device, got "
                f"{first.dtype} on {first.device} and {sequence.dtype} on {sequence.device}"
            )
    lengths = torch.tensor([s.shape[0] for s in sequences], device=sequences[0].device)
    longest = int(lengths.max())
    return torch.stack([pad(s, (0, 0, 0, longest - s.shape[0])) for s in sequences]), lengths


def _transposed(first: Tensor, sequence: Tensor) -> str:
    if first.dim() != 2 or sequence.dim() != 2:
        return ""
    return features_first(first, sequence, "[s.mT for s in sequences]", "(D, N)")


def own_lengths(lengths: Lengths, sequences: Tensor) -> Tensor | None:
    """Integers (B,), each 1..N, of sequences (B, N, D); read, for which the host waits."""
    lengths = check_lengths(lengths, "lengths", sequences.shape[:1], sequences.device)
    if lengths is None:
        return None
    wrong = lengths[~lengths_in_range(lengths, sequences.shape[1])].tolist()
    if wrong:
        raise ValueError(
            f"lengths must lie in 1..{sequences.shape[1]}, the size of that dimension, "
            f"got {wrong[0]}"
        )
    return lengths.expand(sequences.shape[:1])


def _shares(weights: Tensor | Sequence[float] | None, sequences: Tensor) -> Tensor:
    """The weights as float64 that sum to 1."""
    count = sequences.shape[0]
    if weights is None:
        weights = [1.0] * count
    try:
        if not isinstance(weights, Tensor):
            given, weights = weights, tensor_of(weights)
            if weights.is_floating_point():  # of a list rounded to the default dtype
                weights = tensor_of(given, torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"weights must be None or {count} numbers, one a sequence, got {type(weights).__name__}"
        ) from None
    if weights.is_complex():
        raise TypeError(f"weights must be real, got {weights.dtype}")
    weights = weights.detach().to(sequences.device, torch.float64)
    if weights.shape != (count,):
        raise ValueError(
            f"weights must have shape ({count},), one a sequence, got {tuple(weights.shape)}"
        )
    if not bool(((weights >= 0) & weights.isfinite()).all() & (weights > 0).any()):
        raise ValueError("weights must be finite, at least 0 and not all 0")
    weights = weights / _power_of_2(float(weights.max()))  # of which a sum is finite, and not 0
    return weights / weights.sum()


def _start(
    init: Tensor | int | None, sequences: Tensor, lengths: Tensor | None, shares: Tensor
) -> Tensor:
    """The initial barycenter as given, or the weighted mean of the resampled sequences."""
    features = sequences.shape[-1]
    if isinstance(init, Tensor):
        check_tensor(init, "init", "(L, D)")
        if init.dim() != 2 or init.shape[-1] != features:
            raise ValueError(f"init must have shape (L, {features}), got {tuple(init.shape)}")
        return init.detach().to(sequences)
    if lengths is None:
        own = torch.full(sequences.shape[:1], sequences.shape[1], device="cpu")
    else:
        own = lengths.cpu()
    if init is None:
        size = max(1, round(float(own.double() @ shares.cpu())))
    else:
        size = _length(init, features)
    total = sequences.new_zeros(size, features, dtype=torch.float64)
    for sequence, n, share in zip(sequences, own.tolist(), shares, strict=True):
        total += share * resampled(sequence[:n], size)
    return total.to(sequences.dtype)


def resampled(sequence: Tensor, size: int) -> Tensor:
    """(n, D) as (size, D) by linear interpolation, in float64."""
    curves = sequence.double().T[None]  # (1, D, n)
    return interpolate(curves, size=size, mode="linear", align_corners=True)[0].T


def _length(init: Any, features: int) -> int:
    try:
        size = 0 if isinstance(init, bool) else operator.index(init)
    except TypeError:
        size = 0
    if size < 1:
        got = repr(init) if isinstance(init, (int, float, str)) else type(init).__name__
        raise ValueError(
            f"init must be None, a positive length L or a tensor (L, {features}), got {got}"
        )
    return size


def _spread(sequences: Tensor, lengths: Tensor | None) -> float:
    """A power of 2 about as large as what frames are away from their mean."""
    frames = repeat_first_beyond(sequences, lengths).double().flatten(0, 1)
    for size in (float((frames - frames.mean(0)).abs().max()), float(frames.abs().max())):
        if 0 < size < math.inf:
            return _power_of_2(size)
    return 1.0


def _power_of_2(size: float) -> float:
    """By which numbers are divided without rounding."""
    return 2.0 ** min(1000, max(-1000, math.frexp(size)[1]))


class _Point(NamedTuple):
    """Where the objective has been evaluated: its value and gradient there."""

    u: Tensor
    value: float
    gradient: Tensor


class _AstrayError(Exception):
    """The optimizer asks for a point that is not finite."""


def _minimize(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    spread: float,
    gamma: float,
    max_iter: int,
    tol: float,
) -> Tensor:
    """L-BFGS with strong Wolfe line search, down to `tol` times the first gradient.

    It has thresholds for steps, changes and curvatures. So that these mean the same in all units,
    it sees sequences in units of their spread, and an objective in units of its own size.

    torch's line search gives NaN where two points have one value and slopes of 0, and a direction
    of rounded gradients may lead nowhere. So an iteration that gains nothing is followed by one
    from the best point so far that knows nothing of curvatures; two of them are the end.
    """
    u, size = (start / spread).requires_grad_(), 1.0

    def at(u: Tensor) -> _Point:
        value = objective(u * spread)
        # Not backward(): parameters of a callable cost keep their own gradients.
        (gradient,) = torch.autograd.grad(value, u)
        return _Point(u.detach().clone(), value.item() / size, gradient / size)

    first = at(u)
    if not math.isfinite(first.value):
        raise ValueError(
            f"the objective at the initial barycenter is {first.value}: "
            "sequences and init must be finite within their lengths"
        )
    if not bool(start.isfinite().all()):  # which a cost of missing values takes no notice of
        raise ValueError(
            "the initial barycenter is not finite, as what it is made from has missing values: "
            "give init, without any"
        )
    steepest = float(first.gradient.abs().max())
    # A value may be near 0 by chance: gamma, and what a step changes, are of its size too.
    largest = max(abs(first.value), steepest, gamma)
    if 0 < largest < math.inf:
        size = _power_of_2(largest)
    # Far below, no digit of the first value is left: nothing bounds the descent but its iterations.
    bottom = -1 / torch.finfo(torch.float64).eps
    enough, least = tol * steepest / size, torch.finfo(u.dtype).eps
    best = first._replace(value=first.value / size, gradient=first.gradient / size)
    begin: _Point | None = best  # where u is, if that is known
    tried = [best]  # in one iteration, which ends at one of them

    def evaluate() -> float:
        nonlocal best, begin
        point, begin = begin or at(u), None
        if point.value == math.inf:  # a slope of NaN makes the line search halve its step
            point.gradient.fill_(math.nan)
        elif not (point.value > bottom and bool(point.gradient.isfinite().all())):
            if not bool(u.isfinite().all()):
                raise _AstrayError
            raise ValueError(
                f"the objective went from {first.value} to {point.value * size}: it must be "
                'bounded below, which a cost like "negative_dot" is not without divergence=True, '
                "and differentiable"
            )
        elif point.value <= best.value:
            best = point
        tried.append(point)
        u.grad = point.gradient.clone()
        return point.value

    optimizer = None
    for _ in range(max_iter):
        if bool(best.gradient.abs().max() <= enough):
            break
        is_new = optimizer is None
        if optimizer is None:
            optimizer = torch.optim.LBFGS(
                [u],
                max_iter=1,
                max_eval=EVALUATIONS,
                tolerance_grad=0.0,
                tolerance_change=least,
                line_search_fn="strong_wolfe",
            )
        before = best.value
        try:
            optimizer.step(evaluate)
            gains = before - best.value > least
        except _AstrayError:
            gains = False
        if gains:
            begin = next((point for point in reversed(tried) if torch.equal(point.u, u)), None)
        elif is_new:
            break
        else:
            optimizer, begin = None, best
            u.data.copy_(best.u)
        tried.clear()
    return best.u * spread
