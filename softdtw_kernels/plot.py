"""Pictures of alignments and barycenters.

Requirements: matplotlib (`pip install softdtw-kernels[plot]`). Nothing else in the package imports
this module. Every function draws into the axes it is given, or the current ones, and returns them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

try:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator
except ImportError as _error:
    raise ImportError(
        "softdtw_kernels.plot needs matplotlib: pip install 'softdtw-kernels[plot]'"
    ) from _error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

    from .alignment import Paths

X_COLOR = "#1f5fa8"
Y_COLOR = "#c2571a"
PATH_COLOR = "#f4a300"
MARGIN = 0.22  # size of a series drawn beside a matrix, as a part of the matrix


def plot_alignment(
    matrix: Tensor,
    path: Paths | None = None,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
    cmap: str = "BuPu",
    vmax: float | None = None,
) -> Axes:
    """Draw an alignment matrix as a heat map, its path over it and the two sequences beside it.

    Args:
        matrix: (N, M), for instance the expected alignment or the cost.
        path: (L, 2) indices, as `Alignment.path()` gives them; default none.
        x: (N,) or (N, D), drawn along the rows; default none.
        y: (M,) or (M, D), drawn along the columns; default none.
        ax: where to draw; default the current axes.
        title: above everything.
        label: of the color bar; without one there is no color bar.
        cmap: name of a matplotlib color map.
        vmax: the value of the last color; default the largest finite one.

    Returns:
        The axes.

    Raises:
        ValueError: the matrix is not of two dimensions, or a sequence is not as long as its side.
        TypeError: the path is a list, that of a batch.

    Example:
        >>> import torch
        >>> import matplotlib.pyplot as plt
        >>> from softdtw_kernels.plot import plot_alignment
        >>> figure, ax = plt.subplots()
        >>> ax = plot_alignment(torch.eye(4), torch.arange(4)[:, None].expand(4, 2), ax=ax)
        >>> ax.get_xlabel()
        'frame of y'
    """
    if matrix.dim() != 2:
        raise ValueError(f"expected a matrix of shape (N, M), got shape {tuple(matrix.shape)}")
    n, m = matrix.shape
    ax = plt.gca() if ax is None else ax
    image = ax.imshow(
        shown(matrix).numpy(),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=cmap,
        vmin=min(0.0, float(matrix.detach().min())),
        vmax=vmax,
    )
    if path is not None:
        if not isinstance(path, Tensor):
            raise TypeError(
                "path must be the tensor (L, 2) of one pair, got the list of a batch; "
                "draw one of its items"
            )
        rows, columns = path.cpu().unbind(-1)
        ax.plot(columns, rows, color="white", linewidth=3.5, solid_joinstyle="round")
        ax.plot(columns, rows, color=PATH_COLOR, linewidth=2.0, marker="o", markersize=3.0)
    ax.set(xlim=(-0.5, m - 0.5), ylim=(-0.5, n - 0.5))
    ax.set_xlabel("frame of y", color=Y_COLOR)
    ax.set_ylabel("frame of x", color=X_COLOR)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    above = ax
    if y is not None:
        above = ax.inset_axes((0.0, 1.02, 1.0, MARGIN), sharex=ax)
        above.plot(range(m), series(y, m, "y"), color=Y_COLOR, linewidth=1.3)
        above.axis("off")
    if x is not None:
        beside = ax.inset_axes((1.02, 0.0, MARGIN, 1.0), sharey=ax)
        beside.plot(series(x, n, "x"), range(n), color=X_COLOR, linewidth=1.3)
        beside.axis("off")
    if title:
        above.set_title(title)
    if label:
        left = 1.04 if x is None else 1.06 + MARGIN
        ax.figure.colorbar(image, cax=ax.inset_axes((left, 0.0, 0.04, 1.0)), label=label)
    return ax


def plot_connections(
    x: Tensor,
    y: Tensor,
    expected: Tensor,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    gap: float | None = None,
) -> Axes:
    """Draw two sequences, one above the other, with a line between frames as firm as they align.

    Args:
        x: (N,) or (N, D), drawn above.
        y: (M,) or (M, D), drawn below.
        expected: (N, M), the expected alignment; pairs below 0.02 are not drawn.
        ax: where to draw; default the current axes.
        title: above the axes.
        gap: empty height between the two; default 0.6 of their common range.

    Returns:
        The axes.

    Raises:
        ValueError: the matrix is not of two dimensions, or a sequence is not as long as its side.

    Example:
        >>> import torch
        >>> import matplotlib.pyplot as plt
        >>> from softdtw_kernels.plot import plot_connections
        >>> figure, ax = plt.subplots()
        >>> ax = plot_connections(torch.arange(3.0), torch.arange(3.0), torch.eye(3), ax=ax)
    """
    if expected.dim() != 2:
        raise ValueError(f"expected a matrix of shape (N, M), got shape {tuple(expected.shape)}")
    n, m = expected.shape
    upper, lower = series(x, n, "x"), series(y, m, "y")
    ax = plt.gca() if ax is None else ax
    if gap is None:
        gap = 0.6 * float(max(upper.max(), lower.max()) - min(upper.min(), lower.min()))
    upper = upper - upper.min() + lower.max() + gap
    weight = shown(expected)
    # A connection leaves from the curve that faces the other sequence.
    start, end = upper.min(-1).values, lower.max(-1).values
    for i, j in torch.nonzero(weight > 0.02).tolist():
        ax.plot(
            (i / max(n - 1, 1), j / max(m - 1, 1)),
            (start[i], end[j]),
            color="black",
            alpha=min(float(weight[i, j]), 1.0) * 0.6,
            linewidth=0.9,
            zorder=1,
        )
    for values, length, color in ((upper, n, X_COLOR), (lower, m, Y_COLOR)):
        time = torch.linspace(0.0, 1.0, length)
        ax.plot(time, values, color=color, linewidth=1.6, zorder=2)
        ax.plot(time, values, color=color, marker="o", markersize=2.5, linestyle="none", zorder=2)
    ax.axis("off")
    if title:
        ax.set_title(title)
    return ax


def plot_barycenter(
    barycenter: Tensor,
    sequences: list[Tensor],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    color: ColorType = Y_COLOR,
    label: str = "barycenter",
) -> Axes:
    """Draw a barycenter over its members, every sequence over its own relative time.

    Args:
        barycenter: (L,), one coordinate of the barycenter.
        sequences: the members, each (N_k,), the same coordinate.
        ax: where to draw; default the current axes.
        title: above the axes.
        color: of the barycenter.
        label: of the barycenter in a legend.

    Returns:
        The axes.

    Raises:
        ValueError: the barycenter or a member is not of one dimension.

    Example:
        >>> import torch
        >>> import matplotlib.pyplot as plt
        >>> from softdtw_kernels.plot import plot_barycenter
        >>> figure, ax = plt.subplots()
        >>> ax = plot_barycenter(torch.ones(3), [torch.zeros(4), torch.ones(5)], ax=ax)
        >>> len(ax.lines)
        3
    """
    ax = plt.gca() if ax is None else ax
    for index, member in enumerate([*sequences, barycenter]):
        if member.dim() != 1:
            raise ValueError(f"expected one coordinate of shape (N,), got {tuple(member.shape)}")
        time = torch.linspace(0.0, 1.0, len(member))
        if index < len(sequences):
            ax.plot(time, shown(member), color="0.45", alpha=0.35, linewidth=0.8)
        else:
            ax.plot(time, shown(member), color=color, linewidth=2.4, label=label)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def series(values: Tensor, length: int, name: str) -> Tensor:
    """A sequence as (length, D), on the CPU and without its graph."""
    if values.dim() not in (1, 2) or len(values) != length:
        raise ValueError(
            f"expected {name} of shape ({length},) or ({length}, D), got {tuple(values.shape)}"
        )
    return shown(values).reshape(length, -1)


def shown(values: Tensor) -> Tensor:
    """The values on the CPU, without their graph and in a dtype that NumPy has."""
    values = values.detach().cpu()
    return values.float() if values.dtype == torch.bfloat16 else values
