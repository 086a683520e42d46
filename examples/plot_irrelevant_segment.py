"""
A segment that matches nothing
==============================

The second series is a walk with a pause in it, which the first walk does not have. Soft-DTW has to
give every standing frame a partner; weak soft-DTW, which is S2DTW without its smoothing, passes by
these frames, at the price of dummy cells.

    python -m examples.plot_irrelevant_segment

The recordings are those of a sensor at the wrist, from the UEA archive (BasicMotions) in the wheel
of aeon. The pause is a part of a recording of standing, put into the walk, which gets some noise.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from examples import ucr
from softdtw_kernels import s2dtw_alignment, soft_dtw_alignment
from softdtw_kernels.plot import plot_alignment

PAUSE = slice(50, 90)

# %%
# Both series hold the same walk; the second has noise of a tenth of the deviation. A frame stays
# alone where its pairs cost more than the dummy cells do. The grey stripe is the pause.


def main(output: Path = Path("build/plot_irrelevant_segment.png")) -> dict[str, float]:
    series, labels = ucr.load("BasicMotions")
    walk = series[labels.index("Walking")].double()
    stand = series[labels.index("Standing")].double()
    scale = walk.std(0)
    noise = 0.1 * torch.randn(walk.shape, generator=torch.Generator().manual_seed(0)).double()
    x, again, stand = walk / scale, walk / scale + noise, stand / scale
    y = torch.cat([again[: PAUSE.start], stand[: PAUSE.stop - PAUSE.start], again[PAUSE.start :]])
    alignments = {
        "Soft-DTW": soft_dtw_alignment(x, y, gamma=0.1),
        "Weak soft-DTW": s2dtw_alignment(
            x, y, gamma=0.1, cost="sqeuclidean", smoothing=False, dummy_cost=0.5
        ),
    }

    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2))
    visits = {}
    for (name, alignment), ax in zip(alignments.items(), axes, strict=True):
        visits[name] = float(alignment.expected[:, PAUSE].sum())
        plot_alignment(alignment, x=x[:, 2], y=y[:, 2], ax=ax, vmax=1)
        ax.axvspan(PAUSE.start - 0.5, PAUSE.stop - 0.5, color="0.5", alpha=0.25, linewidth=0)
        ax.set_title(f"{name}: {visits[name]:.0f} pairs in the pause", y=1.24)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120, bbox_inches="tight")
    return visits


if __name__ == "__main__":
    for name, visits in main().items():
        print(
            f"{name} aligns {visits:.2f} pairs with the {PAUSE.stop - PAUSE.start} standing frames"
        )
