"""Pictures of alignments and barycenters.

Requirements: matplotlib (`pip install softdtw-kernels[plot]`). Nothing else in the package imports
this module. Every function draws into the axes it is given, or the current ones, and returns them.
Sequences and matrices are tensors, of any device and with or without a graph, or NumPy arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .alignment import Alignment

try:
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator
except ImportError as _error:
    raise ImportError(
        "softdtw_kernels.plot needs matplotlib: pip install 'softdtw-kernels[plot]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    from matplotlib.axes import Axes
    from matplotlib.typing import ColorType

    from .alignment import Paths

    Array: TypeAlias = Tensor | np.ndarray[Any, Any]

X_COLOR = "#1f5fa8"
Y_COLOR = "#c2571a"
PATH_COLOR = "#f4a300"
MARGIN = 0.22  # size of a series drawn beside a matrix, as a part of the matrix
LEAST_SHOWN = 0.02  # of an expected alignment, as a connection
FEW = 50  # frames, whose connections are as dark as they align; of more, they are lighter


def plot_alignment(
    matrix: Alignment | Array,
    path: Paths | Array | bool | None = None,
    *,
    x: Array | None = None,
    y: Array | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    label: str | None = None,
    cmap: str = "BuPu",
    vmax: float | None = None,
) -> Axes:
    """Draw an alignment matrix as a heat map, its path over it and the two sequences beside it.

    Args:
        matrix: (N, M), for instance the expected alignment or the cost; or an :class:`Alignment`,
            of which its expected alignment is drawn.
        path: (L, 2) indices, as `Alignment.path()` gives them, or False for none; default the
            cheapest path of an :class:`Alignment`, and none over a matrix. It is drawn so thin that
            the cells below it are seen, for the size that the figure has now. The line breaks where
            S2DTW passes by frames.
        x: (N,) or (N, D), drawn along the rows; default none.
        y: (M,) or (M, D), drawn along the columns; default none.
        ax: where to draw; default the current axes.
        title: above everything.
        label: of the color bar; without one there is no color bar.
        cmap: name of a matplotlib color map.
        vmax: the value of the last color; default the largest finite one. The first color is 0, or
            the least finite value if that is below; cells that are not finite have none.

    Returns:
        The axes.

    Raises:
        ValueError: the matrix is not of two dimensions, or a sequence is not as long as its side.
        TypeError: the path is a list, that of a batch.

    Example:
        >>> import torch
        >>> import matplotlib.pyplot as plt
        >>> from softdtw_kernels.plot import plot_alignment
        >>> from softdtw_kernels import soft_dtw_alignment
        >>> figure, ax = plt.subplots()
        >>> x, y = torch.randn(5, 2), torch.randn(4, 2)
        >>> ax = plot_alignment(soft_dtw_alignment(x, y, gamma=0.1), x=x, y=y, ax=ax)
        >>> ax.get_xlabel()
        'frame of y'
    """
    cells = one_matrix(matrix)
    n, m = cells.shape
    if isinstance(matrix, Alignment) and (path is None or path is True):
        path = matrix.path()
    if path is True:
        raise TypeError("path=True asks for the path of an Alignment, got a matrix; pass the path")
    ax = plt.gca() if ax is None else ax
    image = ax.imshow(
        cells.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="antialiased",  # no cell gets lost where there are more than pixels
        cmap=cmap,
        vmin=min(0.0, float(torch.where(cells.isfinite(), cells, 0).min())),
        vmax=vmax,
    )
    if path is not None and path is not False:
        if isinstance(path, (list, tuple)):
            raise TypeError(
                "path must be the tensor (L, 2) of one pair, got the list of a batch; "
                "draw one of its items"
            )
        rows, columns = without_jumps(shown(path)).unbind(-1)
        ax.plot(columns, rows, color=PATH_COLOR, linewidth=thin(ax, n, m))
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
    x: Array,
    y: Array,
    expected: Alignment | Array,
    *,
    ax: Axes | None = None,
    title: str | None = None,
    gap: float | None = None,
) -> Axes:
    """Draw two sequences, one above the other, with a line between frames as firm as they align.

    Args:
        x: (N,) or (N, D), drawn above.
        y: (M,) or (M, D), drawn below.
        expected: (N, M), the expected alignment, or an :class:`Alignment`; pairs below 0.02 are not
            drawn.
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
    weight = one_matrix(expected)
    n, m = weight.shape
    upper, lower = series(x, n, "x"), series(y, m, "y")
    ax = plt.gca() if ax is None else ax
    if gap is None:
        gap = 0.6 * float(max(upper.max(), lower.max()) - min(upper.min(), lower.min()))
    upper = upper - upper.min() + lower.max() + gap
    # A connection leaves from the curve that faces the other sequence.
    start, end = upper.min(-1).values, lower.max(-1).values
    i, j = torch.nonzero(weight > LEAST_SHOWN, as_tuple=True)
    ends = [i / max(n - 1, 1), start[i]], [j / max(m - 1, 1), end[j]]
    # Of many frames, connections lie so close that their darkness adds up.
    ink = 0.6 * min(1.0, FEW / max(n, m))
    black = torch.zeros(len(i), 4, dtype=torch.float64)
    black[:, 3] = weight[i, j].clamp(max=1.0) * ink
    lines = torch.stack([torch.stack(point, -1) for point in ends], 1)
    ax.add_collection(LineCollection(list(lines.numpy()), colors=black.numpy(), linewidths=0.9))
    for values, length, color in ((upper, n, X_COLOR), (lower, m, Y_COLOR)):
        time = torch.linspace(0.0, 1.0, length)
        ax.plot(time, values, color=color, linewidth=1.6, zorder=2)
        if length <= 2 * FEW:
            ax.plot(time, values, "o", color=color, markersize=2.5, zorder=2)
    ax.axis("off")
    if title:
        ax.set_title(title)
    return ax


def plot_barycenter(
    barycenter: Array,
    sequences: Iterable[Array],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    color: ColorType = Y_COLOR,
    label: str = "barycenter",
) -> Axes:
    """Draw a barycenter over its members, every sequence over its own relative time.

    Args:
        barycenter: (L,) or (L, 1), one coordinate of the barycenter.
        sequences: the members, each (N_k,) or (N_k, 1), the same coordinate.
        ax: where to draw; default the current axes.
        title: above the axes.
        color: of the barycenter.
        label: of the barycenter in a legend.

    Returns:
        The axes.

    Raises:
        ValueError: the barycenter or a member has several coordinates.

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
    for member in sequences:
        values = coordinate(member)
        time = torch.linspace(0.0, 1.0, len(values))
        ax.plot(time, values, color="0.45", alpha=0.35, linewidth=0.8)
    values = coordinate(barycenter)
    ax.plot(torch.linspace(0.0, 1.0, len(values)), values, color=color, linewidth=2.4, label=label)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title)
    return ax


def one_matrix(values: Alignment | Array) -> Tensor:
    """The (N, M) of a matrix, or the expected alignment of one pair."""
    cells = shown(values.expected if isinstance(values, Alignment) else values)
    if cells.dim() != 2:
        raise ValueError(f"expected a matrix of shape (N, M), got shape {tuple(cells.shape)}")
    return cells


def series(values: Array, length: int, name: str) -> Tensor:
    """A sequence as (length, D), on the CPU and without its graph."""
    values = shown(values)
    if values.dim() not in (1, 2) or len(values) != length:
        raise ValueError(
            f"expected {name} of shape ({length},) or ({length}, D), got {tuple(values.shape)}"
        )
    return values.reshape(length, -1)


def coordinate(values: Array) -> Tensor:
    """A sequence of one coordinate as (N,)."""
    values = shown(values)
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dim() != 1:
        raise ValueError(
            f"expected one coordinate of shape (N,), got {tuple(values.shape)}; "
            "draw one of them, as sequence[:, 0]"
        )
    return values


def without_jumps(path: Tensor) -> Tensor:
    """A path as points of a line that breaks, at a NaN, where S2DTW passes by frames."""
    points = path.double()
    jumps = torch.nonzero((points.diff(dim=0) > 1).any(1)).flatten().tolist()
    nan = points.new_full((1, 2), torch.nan)
    pieces = points.tensor_split([k + 1 for k in jumps])
    return torch.cat([part for piece in pieces for part in (piece, nan)][:-1])


def thin(ax: Axes, n: int, m: int) -> float:
    """The width of a path over n x m cells that leaves most of each cell to be seen, in points."""
    box = ax.get_window_extent()
    cell = min(box.width / m, box.height / n) * 72.0 / ax.figure.dpi
    return min(2.0, max(0.5, 0.3 * cell))


def shown(values: Array) -> Tensor:
    """The values on the CPU, without their graph and in a dtype that NumPy has."""
    if isinstance(values, np.ndarray):  # a copy, whose strides and bytes torch takes
        values = np.array(values, dtype=values.dtype.newbyteorder("="), order="C")
    values = torch.as_tensor(values).detach().cpu()
    return values.float() if values.dtype == torch.bfloat16 else values
