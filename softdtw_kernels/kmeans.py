"""k-means of sequences under soft-DTW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    Backend,
    Lengths,
    Number,
    check_bandwidth,
    check_count,
    check_scalar,
    check_tensor,
    check_tolerance,
)
from .barycenter import own_lengths, padded, resampled, soft_dtw_barycenter
from .costs import Cost, check_cost, computing_dtype
from .divergence import soft_dtw_divergence
from .functional import soft_dtw

BLOCK = 1 << 24  # cells whose costs are in memory at a time
DESCENT: dict[str, Any] = {
    "max_iter": 50,
    "tol": 1e-3,
}  # of a center, which goes on from where it was


class KMeans(NamedTuple):
    """What :func:`soft_dtw_kmeans` returns.

    centers: (k, L, D). labels: int64 (B,), the center nearest to each sequence. inertia: 0-d, the
    sum of the soft-DTW values between sequences and their centers.
    """

    centers: Tensor
    labels: Tensor
    inertia: Tensor


def soft_dtw_kmeans(
    sequences: Tensor | Sequence[Tensor],
    k: int,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    lengths: Lengths = None,
    init: Tensor | None = None,
    bandwidth: int | None = None,
    max_iter: int = 50,
    tol: float = 1e-6,
    generator: torch.Generator | None = None,
    callback: Callable[[int, KMeans], Any] | None = None,
    backend: Backend | None = None,
) -> KMeans:
    """Clusters of sequences around k soft-DTW barycenters.

        minimize over centers and labels the sum over b of V(x_b, center[label_b])

    by turns: each sequence goes to the center of the least V, each center becomes the barycenter of
    its sequences, from where it is. A center that no sequence goes to is replaced by the sequence
    that is farthest from its own center.

    Args:
        sequences: (B, N, D), or a list of (N_b, D), float32 or float64; half precision is computed
            in float32.
        k: the number of clusters, 1..B.
        gamma: smoothing, at least 0, a number or a 0-d tensor.
        cost, bandwidth, backend: as in :func:`soft_dtw_barycenter`.
        lengths: None or integers (B,), each 1..N, for sequences padded to N.
        init: centers to start from, (k, L, D); or None: sequences drawn by k-means++, the next one
            with a probability in proportion to its divergence from the nearest one drawn, with
            L = N, to which shorter sequences are resampled linearly.
        max_iter: rounds at most, at least 1.
        tol: the rounds end where the inertia falls by no more than this fraction of its size, or
            where no label changes.
        generator: the source of the draws; None is that of torch.
        callback: called after every round with its number, from 0, and the :class:`KMeans` so far.

    Returns:
        A :class:`KMeans`: the centers of the last update, and the labels and inertia that belong to
        them; in the dtype of the sequences (the inertia of half precision, a sum that may be
        beyond its range, in float32), detached from them.

    Raises:
        TypeError, ValueError: for arguments of another type, dtype, shape or range, and as
            :func:`soft_dtw_barycenter`.
        RuntimeError, ImportError: as :func:`soft_dtw`.

    A round costs B k soft-DTW values, and for each center a descent of at most 50 iterations, each
    of the value and gradient for the sequences of its cluster. Memory is that of the costs of one
    cluster, and of some of the pairs of sequences and centers at a time. Labels are read after
    every round: on CUDA the host waits for them.

    >>> import torch
    >>> t = torch.linspace(0, 6, 30)
    >>> waves = torch.stack([torch.sin(t - 0.1 * s) for s in range(5)])
    >>> ramps = torch.stack([t / 6 + 0.1 * s for s in range(5)])
    >>> result = soft_dtw_kmeans(torch.cat([waves, ramps])[..., None], 2,
    ...                          generator=torch.Generator().manual_seed(0))
    >>> len(set(result.labels[:5].tolist())), len(set(result.labels[5:].tolist()))
    (1, 1)
    >>> result.centers.shape
    torch.Size([2, 30, 1])

    Source: Lloyd 1982; Cuturi and Blondel 2017, Section 5.3; Arthur and Vassilvitskii 2007 for
    k-means++, here with the divergence of Blondel et al. 2021, since V is no distance.
    """
    max_iter, tol = check_count(max_iter, "max_iter"), check_tolerance(tol, "tol")
    if max_iter == 0:
        raise ValueError("max_iter must be at least 1, got 0")
    bandwidth = check_bandwidth(bandwidth)
    check_scalar(gamma, "gamma", "k-means")
    check_cost(cost)
    if not isinstance(sequences, Tensor):
        sequences, lengths = padded(sequences, lengths)
    check_tensor(sequences, "sequences", "(B, N, D)")
    if sequences.dim() != 3 or sequences.shape[0] == 0:
        raise ValueError(f"sequences must have shape (B, N, D), got {tuple(sequences.shape)}")
    lengths = own_lengths(lengths, sequences)
    k = _check_k(k, sequences.shape[0])
    _check_init(init, k, sequences.shape[-1])
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"generator must be None or a torch.Generator, got {type(generator).__name__}; of a "
            "seed pass torch.Generator().manual_seed(seed)"
        )
    if not (callback is None or callable(callback)):
        raise TypeError(
            "callback must be None or a function of the round and a KMeans, "
            f"got {type(callback).__name__}"
        )
    dtype = sequences.dtype
    constant = gamma.detach() if isinstance(gamma, Tensor) else gamma
    settings: dict[str, Any] = {
        "gamma": constant,
        "cost": cost,
        "bandwidth": bandwidth,
        "backend": backend,
    }
    with torch.no_grad():
        x, _ = computing_dtype(sequences.detach(), sequences.detach())
        if init is None:
            centers = _drawn(x, k, lengths, generator, settings)
        else:
            centers = init.detach().to(x)
        values = _values(x, centers, lengths, settings)
        result = _assigned(centers, values)
        for round_ in range(max_iter):
            centers = _updated(result, values, x, lengths, settings)
            values = _values(x, centers, lengths, settings)
            before, result = result, _assigned(centers, values)
            if callback is not None:
                callback(round_, result._replace(centers=centers.to(dtype)))
            fallen = float(before.inertia - result.inertia)
            same = bool((before.labels == result.labels).all())
            if same or fallen <= tol * abs(float(before.inertia)):
                break
    return KMeans(result.centers.to(dtype), result.labels, result.inertia)


def _values(x: Tensor, centers: Tensor, lengths: Tensor | None, settings: dict[str, Any]) -> Tensor:
    """(B, k) of V, some sequences after others."""
    step = max(1, BLOCK // (centers.shape[0] * centers.shape[1] * x.shape[1]))
    own = [None] * len(x.split(step)) if lengths is None else lengths.split(step)
    parts = [
        soft_dtw(part, centers, pairwise=True, x_lengths=n, **settings)
        for part, n in zip(x.split(step), own, strict=True)
    ]
    return torch.cat(parts)


def _assigned(centers: Tensor, values: Tensor) -> KMeans:
    least, labels = values.min(dim=1)
    return KMeans(centers, labels, least.sum(dtype=torch.float64).to(values.dtype))


def _updated(
    found: KMeans,
    values: Tensor,
    x: Tensor,
    lengths: Tensor | None,
    settings: dict[str, Any],
) -> Tensor:
    """The barycenters of the clusters; of those without a sequence, the farthest sequences."""
    centers = found.centers.clone()
    own = values.gather(1, found.labels[:, None])[:, 0]
    farthest = iter(own.argsort(descending=True, stable=True).tolist())
    for c in range(len(centers)):
        members = (found.labels == c).nonzero()[:, 0]
        if len(members) == 0:
            centers[c] = _sequence(x, lengths, next(farthest), centers.shape[1])
            continue
        of_members = None if lengths is None else lengths[members]
        centers[c] = soft_dtw_barycenter(
            x[members], lengths=of_members, init=centers[c], **settings, **DESCENT
        )
    return centers


def _sequence(x: Tensor, lengths: Tensor | None, index: int, size: int) -> Tensor:
    n = x.shape[1] if lengths is None else int(lengths[index])
    return resampled(x[index, :n], size).to(x.dtype)


def _drawn(
    x: Tensor,
    k: int,
    lengths: Tensor | None,
    generator: torch.Generator | None,
    settings: dict[str, Any],
) -> Tensor:
    """k sequences by k-means++, resampled to one length."""
    device = "cpu" if generator is None else generator.device
    weights, drawn = torch.ones(len(x), dtype=torch.float64, device=x.device), []
    nearest = torch.full_like(weights, math.inf)
    for _ in range(k):
        index = int(torch.multinomial(weights.to(device), 1, generator=generator))
        drawn.append(index)
        own = None if lengths is None else lengths[index]
        new = soft_dtw_divergence(x, x[index], x_lengths=lengths, y_lengths=own, **settings)
        nearest = torch.minimum(nearest, new.double().nan_to_num().clamp(min=0))
        nearest[drawn] = 0
        weights = nearest.clone()
        if not bool(weights.sum() > 0):  # all that is left is like what was drawn
            weights = torch.ones_like(weights)
            weights[drawn] = 0
    return torch.stack([_sequence(x, lengths, index, x.shape[1]) for index in drawn])


def _check_k(k: Any, count: int) -> int:
    k = check_count(k, "k")
    if not 1 <= k <= count:
        raise ValueError(f"k must lie in 1..{count}, the number of sequences, got {k}")
    return k


def _check_init(init: Any, k: int, features: int) -> None:
    if init is None:
        return
    if isinstance(init, (list, tuple)):
        raise TypeError(
            f"init must be a torch.Tensor of shape (k, L, D), got {type(init).__name__}; centers "
            "of one length make one by torch.stack(init)"
        )
    check_tensor(init, "init", "(k, L, D)")
    if init.dim() != 3 or init.shape[0] != k or init.shape[2] != features:
        raise ValueError(f"init must have shape ({k}, L, {features}), got {tuple(init.shape)}")
