"""What the example shows: an alignment, the role of gamma, and barycenters."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from softdtw_kernels import cost_matrix, soft_dtw_alignment
from softdtw_kernels.plot import (
    X_COLOR,
    plot_alignment,
    plot_barycenter,
    plot_connections,
)

from .data import Utterances

SHOWN_GAMMAS = (0.01, 0.1, 1.0)


def write_pictures(
    folder: Path, train: Utterances, gamma: float, barycenters: Tensor, means: Tensor
) -> list[Path]:
    """Write all pictures into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    x, y, speaker = slow_and_fast(train)
    coefficient = liveliest_coefficient(train)
    with plt.rc_context({"axes.titlesize": 11, "figure.titlesize": 14}):
        figures = {
            "alignment.png": alignment_figure(x, y, speaker, gamma, coefficient),
            "gamma.png": gamma_figure(x, y, speaker, coefficient),
            "barycenters.png": barycenter_figure(train, barycenters, means, gamma, coefficient),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=150, bbox_inches="tight")
            plt.close(figure)
    return [folder / name for name in figures]


def slow_and_fast(utterances: Utterances) -> tuple[Tensor, Tensor, int]:
    """The longest utterance of all, and the shortest one of the same speaker."""
    longest = max(range(len(utterances)), key=lambda k: len(utterances.frames[k]))
    speaker = int(utterances.speakers[longest])
    return utterances.frames[longest], min(utterances.of_speaker(speaker), key=len), speaker


def liveliest_coefficient(utterances: Utterances) -> int:
    """The coefficient that varies the most within an utterance."""
    return int(torch.stack([x.var(0) for x in utterances.frames]).mean(0).argmax())


def alignment_figure(
    x: Tensor, y: Tensor, speaker: int, gamma: float, coefficient: int
) -> plt.Figure:
    alignment = soft_dtw_alignment(x, y, gamma=gamma)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 6), layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    plot_alignment(
        cost_matrix(x, y),
        alignment.path(),
        x=x[:, coefficient],
        y=y[:, coefficient],
        ax=left,
        title="Cost and cheapest path",
        label="squared distance of two frames",
        cmap="Greys",
    )
    plot_alignment(
        alignment.expected,
        alignment.path(),
        x=x[:, coefficient],
        y=y[:, coefficient],
        ax=right,
        title=f"Expected alignment, gamma = {gamma:g}",
        label="expected visits",
    )
    figure.suptitle(
        f"Speaker {speaker + 1} says the same vowels twice: "
        f"x in {len(x)} frames, y in {len(y)} (coefficient {coefficient + 1} shown)"
    )
    return figure


def gamma_figure(x: Tensor, y: Tensor, speaker: int, coefficient: int) -> plt.Figure:
    figure, axes = plt.subplots(
        2, len(SHOWN_GAMMAS), figsize=(13, 7.5), height_ratios=(1, 1.5), layout="constrained"
    )
    for (above, below), gamma in zip(axes.T, SHOWN_GAMMAS, strict=True):
        alignment = soft_dtw_alignment(x, y, gamma=gamma)
        plot_connections(
            x[:, coefficient],
            y[:, coefficient],
            alignment.expected,
            ax=above,
            title=f"gamma = {gamma:g}",
        )
        last = gamma == SHOWN_GAMMAS[-1]
        plot_alignment(
            alignment.expected,
            alignment.path(),
            ax=below,
            vmax=1.0,
            label="expected visits" if last else None,
        )
    figure.suptitle(
        f"The larger gamma, the more alignments share the weight: speaker {speaker + 1}, "
        f"coefficient {coefficient + 1}"
    )
    return figure


def barycenter_figure(
    train: Utterances, barycenters: Tensor, means: Tensor, gamma: float, coefficient: int
) -> plt.Figure:
    """One panel a speaker: the liveliest coefficient of every utterance, of both means."""
    figure, axes = plt.subplots(
        3, 3, figsize=(12, 8.5), sharex=True, sharey=True, layout="constrained"
    )
    for speaker, ax in enumerate(axes.flat):
        members = [sequence[:, coefficient] for sequence in train.of_speaker(speaker)]
        plot_barycenter(
            barycenters[speaker, :, coefficient],
            members,
            ax=ax,
            title=f"Speaker {speaker + 1}",
            label=f"soft-DTW barycenter, gamma = {gamma:g}",
        )
        mean = means[speaker, :, coefficient]
        time = torch.linspace(0.0, 1.0, len(mean))
        ax.plot(
            time, mean, color=X_COLOR, linewidth=1.6, linestyle="--", label="mean after resampling"
        )
        ax.lines[0].set_label(f"the {len(members)} utterances")
    figure.supxlabel("relative time")
    figure.supylabel(f"cepstral coefficient {coefficient + 1}")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure
