"""Soft-DTW and S2DTW for PyTorch: exact values, gradients and second derivatives, fast on the CPU
and on CUDA.
"""

from ._checks import Backend, Lengths, Number, Reduction
from ._operators import derivatives  # noqa: F401  # of the torch.library operators
from ._operators.recursion import SoftDTWFunction
from ._operators.smoothing import S2DTWFunction
from ._pattern import Sides
from ._version import __version__
from .alignment import (
    Alignment,
    s2dtw_alignment,
    s2dtw_alignment_from_cost,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
)
from .barycenter import soft_dtw_barycenter
from .costs import Cost, cost_matrix
from .dilate import DILATELoss, dilate_loss
from .divergence import soft_dtw_divergence
from .functional import s2dtw, s2dtw_from_cost, soft_dtw, soft_dtw_from_cost
from .kmeans import KMeans, soft_dtw_kmeans
from .losses import S2DTWLoss, SoftDTWLoss
from .monotonic import ForwardSumLoss, forward_sum, monotonic_alignment

__all__ = [
    "Alignment",
    "Backend",
    "Cost",
    "DILATELoss",
    "ForwardSumLoss",
    "KMeans",
    "Lengths",
    "Number",
    "Reduction",
    "S2DTWFunction",
    "S2DTWLoss",
    "Sides",
    "SoftDTWFunction",
    "SoftDTWLoss",
    "__version__",
    "cost_matrix",
    "dilate_loss",
    "forward_sum",
    "monotonic_alignment",
    "s2dtw",
    "s2dtw_alignment",
    "s2dtw_alignment_from_cost",
    "s2dtw_from_cost",
    "soft_dtw",
    "soft_dtw_alignment",
    "soft_dtw_alignment_from_cost",
    "soft_dtw_barycenter",
    "soft_dtw_divergence",
    "soft_dtw_from_cost",
    "soft_dtw_kmeans",
]
