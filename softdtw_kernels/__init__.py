"""Soft-DTW and S2DTW for PyTorch: exact values, gradients and second derivatives, fast on the CPU
and on CUDA.
"""

from ._version import __version__
from .autograd import S2DTWFunction, SoftDTWFunction
from .costs import cost_matrix
from .functional import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

__all__ = [
    "S2DTWFunction",
    "SoftDTWFunction",
    "__version__",
    "cost_matrix",
    "s2dtw",
    "s2dtw_from_cost",
    "soft_dtw",
    "soft_dtw_divergence",
    "soft_dtw_from_cost",
]
