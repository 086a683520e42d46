"""Shapes and inputs of every benchmark."""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int, int, int]

# (batch, N, M): from thousands of short pairs to one long pair.
SHAPES: tuple[Shape, ...] = (
    (4096, 8, 8),
    (512, 64, 64),
    (64, 256, 256),
    (8, 1024, 1024),
    (1, 4096, 4096),
)
# (batch, length, features): what a call itself takes shows.
SMALL_CALLS: tuple[Shape, ...] = ((1, 8, 4), (16, 32, 8))
S2DTW_SEQUENCES = 128  # all pairs of them: 16,384 lattices
S2DTW_LENGTH = 8
S2DTW_LATTICE_CELLS = S2DTW_SEQUENCES**2 * (2 * S2DTW_LENGTH + 1) ** 2
COORDINATES = 4


def features(batch: int, length: int, dtype: torch.dtype, inputs: str, seed: int) -> Tensor:
    """(batch, length, 4): independent standard normal frames, or a random walk of such steps."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(batch, length, COORDINATES, dtype=torch.float64, generator=generator)
    return (steps.cumsum(1) if inputs == "walk" else steps).to(dtype)


def cost(shape: Shape, dtype: torch.dtype, inputs: str = "normal") -> Tensor:
    """(batch, N, M): squared distances, computed in float64 and contiguous."""
    batch, n, m = shape
    x = features(batch, n, torch.float64, inputs, seed=1)
    y = features(batch, m, torch.float64, inputs, seed=2)
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.square_().to(dtype)


def unit_sequences(seed: int, dimension: int = 512) -> Tensor:
    """(128, 8, dimension): embeddings of norm 1, float32."""
    generator = torch.Generator().manual_seed(seed)
    shape = (S2DTW_SEQUENCES, S2DTW_LENGTH, dimension)
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


def s2dtw_cost(dtype: torch.dtype) -> Tensor:
    """(128, 128, 8, 8): shifted cosine of all pairs."""
    x, y = unit_sequences(1), unit_sequences(2)
    return -torch.einsum("and,bmd->abnm", x, y).contiguous().to(dtype)


def small_features(shape: Shape, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
