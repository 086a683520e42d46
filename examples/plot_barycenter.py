"""
Barycenters beside means
========================

Some of these gestures begin early and some late, so their mean rises in two steps, which hardly one
of them does. A soft-DTW barycenter rises once. A small gamma brings it nearer to the members, but
lets it follow their different heights with a spike.

    python -m examples.plot_barycenter

The gestures are those of pointing in the UCR set GunPoint, from the wheel of aeon.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from examples import ucr
from softdtw_kernels import soft_dtw, soft_dtw_barycenter
from softdtw_kernels.plot import X_COLOR, plot_barycenter

GAMMAS = 1.0, 0.1

# %%
# The centers are judged by hard DTW (gamma = 0), which none of them minimizes.


def main(output: Path = Path("build/plot_barycenter.png")) -> list[str]:
    series, labels = ucr.load("GunPoint")
    members = torch.stack([s for s, kind in zip(series, labels, strict=True) if kind == "2"])
    centers = {"the mean": members.mean(0)}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for gamma, ax in zip(GAMMAS, axes, strict=True):
        center = soft_dtw_barycenter(members, gamma=gamma, max_iter=50)
        centers[f"the barycenter of gamma {gamma:g}"] = center
        title = f"gamma = {gamma:g}"
        plot_barycenter(center, members, ax=ax, title=title, label="soft-DTW barycenter")
        time, mean = torch.linspace(0, 1, members.shape[1]), centers["the mean"][:, 0]
        ax.plot(time, mean, "--", color=X_COLOR, linewidth=1.8, label="mean")
        ax.set_xlabel("relative time")
    axes[0].set_ylabel("position of the hand, standardized")
    axes[0].legend(frameon=False, loc="lower center")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    far = {
        name: soft_dtw(center.expand_as(members), members, gamma=0.0).mean()
        for name, center in centers.items()
    }
    return [f"DTW of {name} to the members: {value:.2f}" for name, value in far.items()]


if __name__ == "__main__":
    print("\n".join(main()))
