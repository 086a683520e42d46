"""
Kinds of heartbeats by k-means
==============================

A recording of blood pressure is cut into heartbeats, which differ in length, and these into three
kinds, each around a soft-DTW barycenter. They follow the breath, about six beats long.

    python -m examples.plot_kmeans

The recording is series 135, InternalBleeding16, of the UCR anomaly archive (Wu and Keogh, IEEE TKDE
2023), from the wheel of aeon.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from examples.japanese_vowels.data import find_wheel
from softdtw_kernels import soft_dtw_kmeans

FOLDER = Path("build/downloads")  # of the wheel
MEMBER = "aeon/datasets/data/KDD-TSAD_135/135_UCR_Anomaly_InternalBleeding16_TEST.csv"
STEP = 3  # samples a frame
COLORS = "tab:blue", "tab:orange", "tab:green"

# %%
# The recording
# -------------
# A beat begins where the pressure is below 60 mmHg, and nowhere nearby lower.


def recording(folder: Path = FOLDER) -> Tensor:
    with zipfile.ZipFile(find_wheel(folder)) as wheel:
        lines = wheel.read(MEMBER).decode().split()
    return torch.tensor([float(line.split(",")[1]) for line in lines[1:]])


def feet(pressure: Tensor, around: int = 60) -> list[int]:
    lowest = -torch.nn.functional.max_pool1d(-pressure[None], 2 * around + 1, 1, around)[0]
    found = ((pressure == lowest) & (pressure < 60)).nonzero()[:, 0].tolist()
    return [k for k, last in zip(found, [-around, *found], strict=False) if k - last > around]


# %%
# Three kinds
# -----------
# Nothing is resampled. The centers take the length of the longest beat.


def main(output: Path = Path("build/plot_kmeans.png")) -> list[int]:
    pressure = recording()
    starts = feet(pressure)
    beats = [pressure[a:b:STEP, None] for a, b in zip(starts, starts[1:], strict=False)]
    result = soft_dtw_kmeans(beats, 3, gamma=1.0, generator=torch.Generator().manual_seed(0))
    order = result.centers.amax((1, 2)).argsort().argsort()  # weak beats come first
    labels = order[result.labels].tolist()

    figure, axes = plt.subplot_mosaic([["all"] * 3, list("012")], figsize=(10, 6), sharey=True)
    for a, b, kind in zip(starts, starts[1:], labels, strict=False):
        axes["all"].plot(range(a, b + 1), pressure[a : b + 1], color=COLORS[kind])
    for kind, center in zip(order.tolist(), result.centers, strict=True):
        own = [beat for beat, label in zip(beats, labels, strict=True) if label == kind]
        for beat in own:
            axes[str(kind)].plot(beat, color=COLORS[kind], alpha=0.25)
        axes[str(kind)].plot(center, color="black")
        axes[str(kind)].set(title=f"{len(own)} beats and their center", xlabel="frame")
    axes["all"].set(title="Blood pressure", xlabel="sample", ylabel="mmHg")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(output, dpi=120)
    return labels


if __name__ == "__main__":
    print(f"the kind of every beat: {''.join(map(str, main()))}")
