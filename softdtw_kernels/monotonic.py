"""Monotonic alignments of frames and tokens: the total probability of all, and the best one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _backends as backends
from . import _monotonic_rows as rows
from ._checks import (
    Backend,
    Lengths,
    Reduction,
    check_backend,
    check_lengths,
    check_reduction,
    check_tensor,
)
from ._inputs import expand, reduce
from ._operators import monotonic as by_kernels
from ._problem import Monotonic
from .losses import renamed


def forward_sum(
    log_probs: Tensor,
    *,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """Minus the log of the total probability of all monotonic alignments of frames with tokens.

        V = -log sum over j of exp(sum over t of log_probs[t, j_t])

    The sum is over all alignments j in which each frame t emits one token, the first frame the
    first token, the last frame the last one, and j_t is j_(t-1) or j_(t-1) + 1: no token is
    skipped. It is soft-DTW at gamma = 1 of the costs -log_probs without the step (0, 1). There is
    no blank, as there is in losses that are built on CTC, and nothing is divided by a length.

    Args:
        log_probs: (*, N, M), frames by tokens, float32 or float64 of any strides; float16 and
            bfloat16 are computed in float32. -inf forbids a pair; a mask of a huge number does too,
            but where every alignment has to cross some, it takes the digits of what else is in
            those frames. They need not be normalized.
        x_lengths: None (all N) or integers of shape (*), each 1..N: the frames that count. What
            lies beyond, NaN included, changes nothing and gets gradient 0. So do pairs that no
            alignment can visit, with too few frames before or after them.
        y_lengths: likewise for the tokens.
        reduction: "none", "mean" or "sum" over all values.
        backend: None chooses by device; "numba" (CPU), "cuda", or "reference" (plain torch).

    Returns:
        The values (*), or a 0-d tensor if reduced; float32 for half precision. +inf with gradient
        0 where no alignment is possible, as with fewer frames than tokens: a mean is +inf then.
        NaN where a log-probability is NaN or +inf. The gradient is minus the expected alignment,
        whose rows sum to 1.

    Raises:
        TypeError, ValueError: for arguments of another type, dtype, shape or range. Lengths in
            CUDA tensors are not read; out of range they give NaN.
        RuntimeError: for a third derivative, which backend="reference" has.

    Costs O(N M) time, and the memory of one matrix if a gradient is due, which is computed with the
    value; the sums are in float64. On CUDA it is plain torch, one frame after the other: a dozen
    launches a frame, and the memory of some dozen matrices. Differentiable twice, in forward mode
    too.

    >>> import torch
    >>> log_probs = torch.full((3, 2), 0.5).log()
    >>> forward_sum(log_probs).exp()  # two alignments of probability 1/8
    tensor(4.)
    >>> forward_sum(log_probs.T)  # two frames for three tokens
    tensor(inf)

    Source: Shih et al., "RAD-TTS: Parallel Flow-Based TTS with Robust Alignment Learning and
    Diverse Synthesis", 2021; Badlani et al., "One TTS Alignment To Rule Them All", ICASSP 2022,
    Section 2.1, whose losses are this with a blank.
    """
    check_reduction(reduction)
    name, monotonic = _checked(log_probs, "log_probs", x_lengths, y_lengths, backend)
    value = rows.value if name == "reference" else by_kernels.value
    return reduce(value(monotonic), reduction)


def monotonic_alignment(
    scores: Tensor,
    *,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    backend: Backend | None = None,
) -> Tensor:
    """The monotonic alignment of frames with tokens whose scores have the largest sum.

        argmax over j of sum over t of scores[t, j_t]

    over the alignments of :func:`forward_sum`, as a matrix of 0 and 1 ("monotonic alignment
    search"). Its sum over the frames is the duration of every token.

    Args:
        scores: (*, N, M), frames by tokens: the transpose of what `maximum_path` of Glow-TTS takes.
            Of any floating dtype and strides; -inf forbids a pair.
        x_lengths, y_lengths, backend: as in :func:`forward_sum`.

    Returns:
        (*, N, M) in the dtype of the scores, without a gradient. Of two steps that are equally
        good the diagonal one is taken. All 0 for an item that has no alignment, as with fewer
        frames than tokens, or that holds a NaN at a pair that an alignment can visit.

    Raises:
        TypeError, ValueError: as :func:`forward_sum`.

    Costs O(N M) time, and a byte of memory a pair for one item at a time beside the result; sums
    are in float64. On CUDA it is plain torch, one frame after the other, some launches each, and
    never waits for the device.

    >>> import torch
    >>> scores = torch.tensor([[3.0, 0.0], [2.0, 1.0], [0.0, 4.0]])
    >>> monotonic_alignment(scores)
    tensor([[1., 0.],
            [1., 0.],
            [0., 1.]])
    >>> monotonic_alignment(scores).sum(-2)  # durations
    tensor([2., 1.])

    Source: Kim et al., "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment
    Search", NeurIPS 2020, Algorithm 1.
    """
    name, monotonic = _checked(scores, "scores", x_lengths, y_lengths, backend)
    monotonic = monotonic._replace(log_probs=monotonic.log_probs.detach())
    path = rows.monotonic_path if name == "reference" else by_kernels.path
    return path(monotonic).to(scores.dtype)


def _checked(
    x: Tensor, name: str, x_lengths: Lengths, y_lengths: Lengths, backend: Backend | None
) -> tuple[str, Monotonic]:
    """The backend, and the arguments in the forms that the operators take."""
    check_tensor(x, name, "(*, N, M)")
    batch = x.shape[:-2]
    return backends.select(backend, x), Monotonic(
        x.float() if x.dtype in (torch.float16, torch.bfloat16) else x,
        expand(check_lengths(x_lengths, "x_lengths", batch, x.device), batch),
        expand(check_lengths(y_lengths, "y_lengths", batch, x.device), batch),
    )


class ForwardSumLoss(nn.Module):
    """Minus the log of the total probability of all monotonic alignments as a loss.

        loss = mean over the batch of V(log_probs)

    Args:
        reduction: "mean", "sum" or "none".
        backend: as in :func:`forward_sum`.

    Shape:
        log_probs (*, N, M), frames by tokens, input_lengths (of frames) and target_lengths (of
        tokens) None or (*); returns a 0-d tensor, or (*) for reduction="none".

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`forward_sum`; of settings, at construction.

    Costs as :func:`forward_sum`.

    >>> import torch
    >>> log_probs = torch.randn(8, 50, 12).log_softmax(-1).requires_grad_()
    >>> loss = ForwardSumLoss()(log_probs, target_lengths=[12] * 4 + [9] * 4)
    >>> loss.backward()
    >>> bool((log_probs.grad.sum(-1) * -8 - 1).abs().max() < 1e-5)  # a frame emits one token
    True

    Source: as :func:`forward_sum`.
    """

    def __init__(self, reduction: Reduction = "mean", *, backend: Backend | None = None) -> None:
        super().__init__()
        check_reduction(reduction)
        check_backend(backend)
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        log_probs: Tensor,
        input_lengths: Lengths = None,
        target_lengths: Lengths = None,
    ) -> Tensor:
        return renamed(
            forward_sum,
            log_probs,
            x_lengths=input_lengths,
            y_lengths=target_lengths,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return f"reduction={self.reduction!r}{backend}"
