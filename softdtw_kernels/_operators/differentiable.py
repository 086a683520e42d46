"""The operators that the public functions call: those of `_backends.Differentiable`, by kernels."""

from .recursion import gradient, path, value
from .smoothing import smooth, smoothed_value

__all__ = ["gradient", "path", "smooth", "smoothed_value", "value"]
