"""
Gamma: from a cloud to a path
=============================

A large gamma weighs many alignments of two series, a small one only the cheapest. As gamma falls,
the expected alignment contracts to one path, and its entropy to 0.

    python -m examples.plot_gamma

The series are gestures of two people, from the UCR archive (GunPoint) in the wheel of aeon.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from examples import ucr
from softdtw_kernels import soft_dtw_alignment
from softdtw_kernels.plot import plot_alignment

GAMMAS = 1.0, 0.01, 0.001, 0.0001

# %%
# An expected alignment holds, for every pair of frames, how probable it is that an alignment visits
# it. Gamma has the unit of the cost, here of a squared distance: compare it with the median cost.


def main(output: Path = Path("build/plot_gamma.png")) -> list[str]:
    series, labels = ucr.load("GunPoint")
    x, y = [s[::2].double() for s, label in zip(series, labels, strict=True) if label == "1"][:2]
    lines = [f"the median cost is {torch.cdist(x, y).square().median():.2f}"]
    figure, axes = plt.subplots(1, 4, figsize=(13, 4.2))
    for gamma, ax in zip(GAMMAS, axes, strict=True):
        alignment = soft_dtw_alignment(x, y, gamma=gamma)
        path = alignment.path()
        assert isinstance(path, torch.Tensor)  # of a batch it is a list
        on_path = alignment.expected[path[:, 0], path[:, 1]].mean()
        plot_alignment(alignment, path=False, x=x, y=y, ax=ax, title=f"gamma = {gamma:g}", vmax=1)
        lines.append(
            f"gamma {gamma:5g}: entropy {alignment.entropy:6.2f} nats; a pair of the cheapest path "
            f"is visited with probability {on_path:.2f}"
        )
    for ax in axes[1:]:
        ax.set_ylabel("")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120, bbox_inches="tight")
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
