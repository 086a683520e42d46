"""Drawing an alignment on its lattice: pairs as squares, dummies as dots between them.

Requirements: matplotlib, torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from examples.vttwins.figures.lattice import Lattice
from softdtw_kernels import cost_matrix

TRUE_COLOR = "#0b7a3e"
PATH_COLOR = "black"
DUMMY_COLOR = "0.55"
FULL_DISK = 190.0  # area in square points of a cell that every path visits
LEAST_SHOWN = 0.03  # expected visits
HALF = 0.36  # of a pair's square; the rest of the way to the next one is the dummies'


@dataclass(frozen=True)
class Example:
    """Embedded clips and captions of one video, or of a video and another's captions.

    Attributes:
        name: of the video.
        video, text: (n, D), (m, D).
        clip_labels, caption_labels: what stands at the axes.
        seen, told: what each clip shows and each caption tells of; None: nothing that is known.
        frames: a picture of each clip, or none.
        clip_axis, caption_axis: what the labels are.
    """

    name: str
    video: Tensor
    text: Tensor
    clip_labels: list[str]
    caption_labels: list[str]
    seen: list[Hashable]
    told: list[Hashable]
    frames: tuple[np.ndarray, ...] = ()
    clip_axis: str = "clips"
    caption_axis: str = "captions"

    def told_by(self, other: Example) -> Example:
        """This video with the captions of another."""
        return replace(
            self, name=f"{self.name} with the captions of {other.name}", text=other.text,
            caption_labels=other.caption_labels, told=other.told,
        )  # fmt: skip

    @property
    def matches(self) -> np.ndarray:
        """The true pairs, which caption tells of which clip: bool (m, n)."""
        return np.array([[t is not None and t == s for s in self.seen] for t in self.told])

    @property
    def cosines(self) -> Tensor:
        """(m, n)."""
        return -cost_matrix(self.text, self.video, cost="shifted_cosine")


@dataclass(frozen=True)
class Scale:
    """Colors of numbers, the same in all panels that are compared."""

    label: str
    low: float
    high: float
    colors: str

    def mappable(self) -> ScalarMappable:
        return ScalarMappable(Normalize(self.low, self.high), self.colors)

    def bar(self, figure: Figure, axes: list[Axes]) -> None:
        """The color bar of these axes."""
        figure.colorbar(
            self.mappable(), ax=axes, label=self.label, location="bottom", shrink=0.5, aspect=40,
            pad=0.02,
        )  # fmt: skip


COSINE = Scale("cosine of clip and caption", -1, 1, "PuOr_r")
DISTANCE = Scale("distance of clip and caption: -cosine", -1, 1, "PuOr")
VISITS = Scale("expected visits of a pair", 0, 1, "Blues")


def draw_matrix(axes: Axes, values: Tensor, example: Example, scale: Scale = COSINE) -> None:
    """Cosines or visits (m, n) as squares, the true pairs outlined, labels at both axes."""
    colors = scale.mappable().to_rgba(values.numpy())
    for (i, j), _ in np.ndenumerate(values.numpy()):
        corner = (j - HALF, i - HALF)
        square = Rectangle(corner, 2 * HALF, 2 * HALF, facecolor=colors[i, j], linewidth=0)
        axes.add_patch(square)
    for i, j in np.argwhere(example.matches):
        axes.add_patch(
            Rectangle((j - HALF, i - HALF), 2 * HALF, 2 * HALF, fill=False,
                      edgecolor=TRUE_COLOR, linewidth=2.5, zorder=2.5)
        )  # fmt: skip
    set_axes(axes, example)


def set_axes(axes: Axes, example: Example) -> None:
    """Labels, and the clips' frames below their columns."""
    m, n = len(example.text), len(example.video)
    axes.set_yticks(range(m), example.caption_labels, fontsize=8)
    axes.set_xlim(-0.75, n - 0.25)
    axes.set_ylim(m - 0.25, -0.75)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(n), example.clip_labels, fontsize=8)
    axes.set_xlabel(example.clip_axis, fontsize=9)
    axes.set_ylabel(example.caption_axis, fontsize=9)
    if example.frames:
        axes.tick_params(axis="x", pad=3)
        axes.set_ylim(m + 0.6, -0.75)
        for k, picture in enumerate(example.frames):
            place = (k - 0.42, m - 0.3, 0.84, 0.84)
            inset = axes.inset_axes(place, transform=axes.transData)
            inset.imshow(picture)
            inset.axis("off")


def draw_alignment(axes: Axes, lattice: Lattice, example: Example) -> None:
    """The cosines, with expected visits of pairs and dummies as disks and the cheapest path."""
    draw_matrix(axes, lattice.cosine, example)
    draw_path(axes, lattice)


def draw_path(axes: Axes, lattice: Lattice) -> None:
    """Expected visits of pairs and dummies as disks, and the cheapest path, over a matrix."""
    rows, columns = (lattice.place(part) for part in lattice.path.unbind(-1))
    axes.plot(columns, rows, color=PATH_COLOR, linewidth=1.6, zorder=3)
    p, q = torch.nonzero(lattice.visits > LEAST_SHOWN).unbind(-1)
    visits = lattice.visits[p, q].clamp(max=1)
    dummy = ((p % 2 == 0) | (q % 2 == 0)) & lattice.dummies
    for chosen, color, edge in ((dummy, DUMMY_COLOR, DUMMY_COLOR), (~dummy, "white", "black")):
        size = FULL_DISK * visits[chosen] * (0.45 if edge == DUMMY_COLOR else 1.0)
        axes.scatter(
            lattice.place(q[chosen]), lattice.place(p[chosen]), s=size, facecolor=color,
            edgecolor=edge, linewidth=1.1, zorder=4,
        )  # fmt: skip


def title(axes: Axes, text: str, width: int = 62) -> None:
    """A title of several lines, each broken at ``width`` characters."""
    lines = [textwrap.fill(line, width) for line in text.split("\n")]
    axes.set_title("\n".join(lines), fontsize=9.5)


def legend(figure: Figure, paths: bool, dummies: bool) -> None:
    """What the marks of ``draw_alignment`` are, below the figure."""
    size = FULL_DISK**0.5
    marks = []
    if paths:
        marks.append(
            Line2D([], [], linestyle="", marker="o", markersize=size, markerfacecolor="white",
                   markeredgecolor="black", label="expected visits of a pair (full disk: 1)")
        )  # fmt: skip
    if paths and dummies:
        marks.append(
            Line2D([], [], linestyle="", marker="o", markersize=size * 0.45**0.5,
                   color=DUMMY_COLOR, label="of a dummy (full disk: 1)")
        )  # fmt: skip
    if paths:
        marks.append(Line2D([], [], color=PATH_COLOR, linewidth=1.6, label="cheapest path"))
    marks.append(
        Line2D([], [], linestyle="", marker="s", markersize=size, markerfacecolor="none",
               markeredgecolor=TRUE_COLOR, markeredgewidth=2.5,
               label="true pair: the caption tells of the clip")
    )  # fmt: skip
    figure.legend(
        handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9
    )


def visits_told(lattice: Lattice, matches: np.ndarray) -> str:
    """What the numbers say of a path: how often true pairs and others are visited.

    Chatter is a caption that tells of no clip in the picture.
    """
    pairs, true = lattice.pairs.numpy(), matches
    parts = []
    if true.any():
        parts.append(f"a true pair {pairs[true].mean():.2f}")
        told = true.any(1)
        if (~true[told]).any():
            parts.append(f"another pair of these captions {pairs[told][~true[told]].mean():.2f}")
    chatter = ~true.any(1)
    if chatter.any():
        what = "all pairs of a chatter caption" if true.any() else "all pairs of a caption"
        parts.append(f"{what} {pairs[chatter].sum(1).mean():.2f}")
    if lattice.dummies:
        parts.append(f"all dummies {lattice.dummy_visits:.1f}")
    return "visits on average: " + ", ".join(parts)
