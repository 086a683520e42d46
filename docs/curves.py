"""The curves of the pages, written to docs/figures: python -m docs.curves [NAME ...] (a minute).

They are committed, so that the pages build without computing or downloading anything. The
utterances are those of `make example-japanese-vowels`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks import accuracy
from benchmarks.charts import GRAY, STYLE
from examples.japanese_vowels import data
from examples.japanese_vowels.pictures import slow_and_fast
from softdtw_kernels import Cost, cost_matrix, soft_dtw, soft_dtw_alignment, soft_dtw_divergence
from softdtw_kernels.plot import PATH_COLOR, X_COLOR, Y_COLOR

FOLDER = Path(__file__).parent / "figures"
LEAST, MOST = 1e-9, 1e3  # of the errors of gradients that are shown


def expected_alignments(x: Tensor, y: Tensor) -> plt.Figure:
    """The expected alignment of one pair at four gammas."""
    median = float(cost_matrix(x, y).median())
    figure, axes = plt.subplots(1, 4, figsize=(9, 3.3), layout="constrained")
    for share, ax in zip((0.001, 0.03, 0.3, 3.0), axes, strict=True):
        alignment = soft_dtw_alignment(x, y, gamma=share * median)
        path = alignment.path()
        assert isinstance(path, Tensor)
        ax.imshow(alignment.expected, origin="lower", cmap="BuPu", vmin=0, vmax=1)
        ax.plot(path[:, 1], path[:, 0], color=PATH_COLOR, linewidth=1.2)
        ax.set_title(f"gamma = {share:g} x median\nentropy {float(alignment.entropy):.2g} nats")
        ax.set_xlabel("frame of y")
        ax.set(xticks=[], yticks=[])
    axes[0].set_ylabel("frame of x")
    return figure


def values(x: Tensor, y: Tensor) -> plt.Figure:
    """Value, bias, divergence and entropy over gamma."""
    x, y = x.double()[None], y.double()[None]
    median = float(cost_matrix(x, y).median())
    shares = torch.logspace(-3, 1.5, 60, dtype=torch.float64)
    gammas = shares * median
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    x, y = x.expand(60, -1, -1), y.expand(60, -1, -1)  # one pair, a gamma an item
    left.plot(shares, soft_dtw(x, y, gamma=gammas), color=X_COLOR, label="V(x, y)")
    left.plot(shares, soft_dtw(x, x, gamma=gammas), color=Y_COLOR, label="V(x, x)")
    divergence = soft_dtw_divergence(x, y, gamma=gammas)
    left.plot(shares, divergence, color=PATH_COLOR, label="D(x, y)")
    left.axhline(0, color=GRAY, linewidth=0.6)
    size = float(soft_dtw(x[0], y[0], gamma=0.0))
    left.set(xscale="log", ylim=(-3 * size, 1.5 * size), title="value: V sinks below 0, D does not")
    left.legend(loc="lower left")
    entropy = soft_dtw_alignment(x, y, gamma=gammas).entropy
    most = soft_dtw_alignment(0 * x[0], 0 * y[0], gamma=1.0).entropy
    right.plot(shares, entropy.exp().clamp(min=1), color=X_COLOR)
    right.axhline(float(most.exp()), color=GRAY, linewidth=0.6, linestyle="--")
    right.text(1e-3, float(most.exp()) / 30, "all alignments there are")
    right.set(xscale="log", yscale="log", title="how many alignments count: exp(entropy)")
    for ax in (left, right):
        ax.set_xlabel("gamma / median cost")
    return figure


def costs(x: Tensor) -> plt.Figure:
    """What each cost says of a sequence that is scaled, and of one with a level added."""
    names: tuple[Cost, ...] = ("sqeuclidean", "euclidean", "manhattan", "cosine")
    x = x.double()
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    factors = torch.linspace(0.5, 2.0, 61, dtype=torch.float64)
    levels = torch.linspace(-1.0, 1.0, 61, dtype=torch.float64)
    outliers = torch.linspace(0.0, 10.0, 61, dtype=torch.float64)
    at = torch.zeros_like(x)
    at[len(x) // 2, 0] = 1.0
    changes = (
        ("x times a factor", factors, factors[:, None, None] * x),
        ("x plus a level", levels, levels[:, None, None] + x),
        ("one number of x off by", outliers, x + outliers[:, None, None] * at),
    )
    for ax, (label, positions, changed) in zip(axes, changes, strict=True):
        for name in names:
            median = float(cost_matrix(x, x, name).median())
            ax.plot(positions, soft_dtw(changed, x, gamma=0.0, cost=name) / median, label=name)
        ax.set_xlabel(label)
    axes[0].set_ylabel("DTW / median cost")
    axes[0].legend(loc="upper center")
    return figure


def numerics() -> plt.Figure:
    """The error of the float32 gradient over the length, ours and with R in float32."""
    walks = accuracy.CASES[0]
    sizes = [2**k for k in range(4, 12)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for gamma, ax in zip((1.0, 0.1), axes, strict=True):
        lines: dict[str, list[float]] = {"R in float32": [], "softdtw-kernels": []}
        for size in sizes:
            truth = accuracy.ours(walks, size, gamma, torch.float64)
            usual = accuracy.usual(accuracy.usual_cost(walks, size), gamma)
            ours = accuracy.ours(walks, size, gamma, torch.float32)
            lines["R in float32"].append(accuracy.errors(usual, truth)[0])
            lines["softdtw-kernels"].append(accuracy.errors(ours, truth)[0])
        for (label, errors), color in zip(lines.items(), (Y_COLOR, X_COLOR), strict=True):
            # Below what the axis shows an error is 0, above it there is none to speak of.
            shown = torch.tensor(errors).clamp(LEAST, MOST)
            ax.loglog(sizes, shown, color=color, marker="o", markersize=3, label=label)
        ax.axhline(1.0, color=GRAY, linewidth=0.6, linestyle="--")
        ax.set(title=f"gamma = {gamma:g}", xlabel="N = M", ylim=(LEAST / 2, MOST * 2))
    axes[0].set_ylabel("largest error of the gradient")
    axes[0].text(sizes[0], 2.0, "as large as the gradient")
    axes[0].legend(loc="center right")
    return figure


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    train, _ = data.load(Path("build/downloads"))
    x, y, _ = slow_and_fast(train)
    figures = {
        "gamma": lambda: expected_alignments(x, y),
        "values": lambda: values(x, y),
        "costs": lambda: costs(x),
        "numerics": numerics,
    }
    with plt.rc_context(STYLE):
        for name in sys.argv[1:] or figures:
            figure = figures[name]()
            figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
