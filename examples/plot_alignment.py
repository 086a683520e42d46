"""
A short series found in a long one
==================================

The pressure of the blood rises and falls with the breath. One breath of a recording, six
heartbeats, is looked for in a later part of it. The alignment may begin and end anywhere in that
part, but has to match the whole breath: ``open_begin="y", open_end="y"``.

    python -m examples.plot_alignment
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from torch import Tensor

from examples.plot_kmeans import feet, recording
from softdtw_kernels import soft_dtw_alignment

STEP = 6  # samples a frame
PART = slice(2500, 5200)  # one whole breath, and parts of others on both sides

# %%
# The value is the price of the best place, softly: a larger gamma would weigh others too. The path
# is the cheapest alignment, whose ends are where the breath was found.


def main(output: Path = Path("build/plot_alignment.png")) -> tuple[int, int]:
    pressure = recording().double()
    begin, *_, end = feet(pressure)[:7]
    query, series = pressure[begin:end:STEP], pressure[PART][::STEP]
    alignment = soft_dtw_alignment(
        query[:, None], series[:, None], gamma=20.0, open_begin="y", open_end="y"
    )
    path = alignment.path()
    assert isinstance(path, Tensor)  # of a batch it is a list
    first, last = int(path[0, 1]), int(path[-1, 1])

    grid = {"height_ratios": (1, 2), "width_ratios": (1, 4)}
    figure, axes = plt.subplot_mosaic(".s;qv", figsize=(10, 6), gridspec_kw=grid)
    axes["s"].plot(series, color="tab:blue")
    axes["s"].axvspan(first, last, color="tab:orange", alpha=0.3)
    axes["s"].plot(path[:, 1], query[path[:, 0]], color="black", linewidth=0.8)
    axes["s"].set(title="The breath, warped, where it was found", ylabel="mmHg")
    axes["q"].plot(query, range(len(query)), color="black")
    axes["q"].set(ylim=(len(query), 0), xlabel="mmHg", ylabel="frame of the breath")
    visits = alignment.expected.clamp(min=1e-4)
    axes["v"].imshow(visits, aspect="auto", cmap="Blues", norm=LogNorm(1e-4, 1))
    axes["v"].plot(path[:, 1], path[:, 0], color="tab:orange", linewidth=0.8)
    axes["v"].set(xlabel="frame of the recording", yticks=[])
    for name in "sv":
        axes[name].set_xlim(0, len(series))
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return PART.start + STEP * first, PART.start + STEP * last


if __name__ == "__main__":
    print("found at the samples {} to {}".format(*main()))
