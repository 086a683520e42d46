"""Figures 1 to 3 of the paper's supplement, and the effect of gamma, as functions of models.

Requirements: matplotlib, torch, softdtw_kernels.

All titles are computed: they say what the numbers of the picture, and their means over all held-out
videos, are. The videos drawn are the first ones, not chosen ones.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.vttwins.figures import draw
from examples.vttwins.figures.draw import DISTANCE, VISITS, Example
from examples.vttwins.figures.examples import Trained, described
from examples.vttwins.figures.lattice import Lattice, align

GAMMAS = (0.01, 0.1, 1.0)
SHOWN = 4  # videos in a matrix of distances


def paths(trained: list[Trained], path: Path) -> list[str]:
    """1a: the alignment of the first held-out video under each model's own cost.

    Returns:
        The panels' titles.
    """
    figure, axes = _panels(1, len(trained), trained[0].examples[0])
    titles = []
    for panel, model in zip(axes[0], trained, strict=True):
        own = model.examples[0]
        lattice = align(own.text, own.video, model.loss)
        draw.draw_alignment(panel, lattice, own)
        many = [align(e.text, e.video, model.loss) for e in model.examples]
        titles.append(
            f"{described(model.loss)}\n{own.name}: {_way(lattice)}\n"
            f"mean of {len(many)} held-out videos: {_way(*many)}"
        )
        draw.title(panel, titles[-1])
    draw.COSINE.bar(figure, list(axes.flat))
    draw.legend(figure, paths=True, dummies=trained[0].loss.dummy_cost is not None)
    return _save(figure, path, titles)


def _way(*lattices: Lattice) -> str:
    pairs = np.mean([lattice.pairs.sum().item() for lattice in lattices])
    on = np.mean([(lattice.pairs.trace() / lattice.pairs.sum()).item() for lattice in lattices])
    return f"a path has {pairs:.1f} pairs, {100 * on:.0f} % on the diagonal"


def distances(trained: list[Trained], path: Path) -> list[str]:
    """1b: distances of all clips and captions of the first videos, on one scale."""
    figure, axes = plt.subplots(
        1, len(trained), figsize=(6.0 * len(trained), 7.2), layout="constrained", squeeze=False
    )
    titles = []
    for panel, model in zip(axes[0], trained, strict=True):
        shown = model.examples[:SHOWN]
        video, text = torch.cat([e.video for e in shown]), torch.cat([e.text for e in shown])
        matrix = _distance(text, video)
        panel.imshow(matrix, cmap=DISTANCE.colors, vmin=-1, vmax=1, interpolation="nearest")
        n, m = (np.cumsum([0, *(len(part) for part in parts)]) for parts in (
            [e.video for e in shown], [e.text for e in shown],
        ))  # fmt: skip
        for edge in n[1:-1]:
            panel.axvline(edge - 0.5, color="black", linewidth=0.8)
        for edge in m[1:-1]:
            panel.axhline(edge - 0.5, color="black", linewidth=0.8)
        panel.set_xticks((n[:-1] + n[1:] - 1) / 2, [e.name for e in shown], fontsize=8)
        panel.set_yticks((m[:-1] + m[1:] - 1) / 2, [e.name for e in shown], fontsize=8, rotation=90,
                         va="center")  # fmt: skip
        panel.tick_params(length=0)
        panel.set(xlabel="clips of", ylabel="captions of")
        rows = np.concatenate([np.full(len(e.text), k) for k, e in enumerate(shown)])
        columns = np.concatenate([np.full(len(e.video), k) for k, e in enumerate(shown)])
        own = rows[:, None] == columns[None, :]
        titles.append(
            f"{described(model.loss)}\ndistances {matrix.mean():.3f} on average, "
            f"standard deviation {matrix.std():.3f}\nwithin videos {matrix[own].mean():.3f}, "
            f"between videos {matrix[~own].mean():.3f}"
        )
        draw.title(panel, titles[-1])
    DISTANCE.bar(figure, list(axes.flat))
    return _save(figure, path, titles)


def _distance(text: Tensor, video: Tensor) -> np.ndarray:
    t, v = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (text, video))
    return (-t @ v.T).numpy()


def positive_and_negative(trained: Trained, index: int, path: Path) -> list[str]:
    """2 and 3: the captions of a held-out video with its own clips, and with the clips of the video
    that the loss finds hardest to tell from it: distances on the left, the alignment on the right.
    """
    examples, loss = trained.examples, trained.loss
    own = examples[index]
    others = [k for k in range(len(examples)) if k != index]
    values = {k: align(own.text, examples[k].video, loss).value for k in range(len(examples))}
    hardest = min(others, key=values.__getitem__)
    least = min(values.values())
    weights = {k: np.exp(-(values[k] - least) / loss.temperature) for k in values}
    share = weights[hardest] / sum(weights[k] for k in others)
    figure, axes = _panels(2, 2, own)
    titles = []
    for row, example in zip(axes, (own, examples[hardest].told_by(own)), strict=True):
        lattice = align(example.text, example.video, loss)
        kind = "positive pair" if example is own else "hard negative"
        told = sum(t is not None for t in example.told)
        common = int(example.matches.any(1).sum())
        titles.append(
            f"{kind}: {loss.operator} = {lattice.value:.2f}\n{example.name}\n"
            f"{common} of {told} captions that tell of a step tell of one that is seen"
        )
        if example is not own:
            titles[-1] += f"\n{100 * share:.0f} % of the weight of {len(others)} negatives"
        draw.draw_matrix(row[0], -lattice.cosine, example, DISTANCE)
        draw.title(row[0], titles[-1])
        draw.draw_matrix(row[1], lattice.pairs, example, VISITS)
        draw.draw_path(row[1], lattice)
        draw.title(row[1], draw.visits_told(lattice, example.matches))
    DISTANCE.bar(figure, list(axes[:, 0]))
    VISITS.bar(figure, list(axes[:, 1]))
    draw.legend(figure, paths=True, dummies=loss.dummy_cost is not None)
    figure.suptitle(f"{described(loss)}; {len(examples)} held-out videos", fontsize=11)
    return _save(figure, path, titles)


def gammas(trained: Trained, path: Path) -> list[str]:
    """The path of the first held-out video under several gammas, all of one trained model."""
    own = trained.examples[0]
    figure, axes = _panels(1, len(GAMMAS), own)
    titles = []
    for panel, gamma in zip(axes[0], GAMMAS, strict=True):
        lattice = align(own.text, own.video, trained.loss, gamma)
        draw.draw_matrix(panel, lattice.pairs, own, VISITS)
        draw.draw_path(panel, lattice)
        many = [align(e.text, e.video, trained.loss, gamma).entropy for e in trained.examples]
        titles.append(
            f"gamma {gamma:g}: {_way(lattice)}\nentropy of the paths {lattice.entropy:.1f} nats; "
            f"mean of {len(many)} held-out videos {np.mean(many):.1f}"
        )
        draw.title(panel, titles[-1])
    VISITS.bar(figure, list(axes.flat))
    draw.legend(figure, paths=True, dummies=trained.loss.dummy_cost is not None)
    figure.suptitle(f"One model ({described(trained.loss)}), {own.name}", fontsize=11)
    return _save(figure, path, titles)


def _panels(rows: int, columns: int, example: Example) -> tuple[Figure, np.ndarray]:
    """A figure of panels that have room for the labels and frames of the example."""
    width = 6.2 + (2.2 if example.frames else 0)
    height = 5.2 + (1.2 if example.frames else 0)
    return plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.8), layout="constrained",
        squeeze=False,
    )  # fmt: skip


def _save(figure: Figure, path: Path, titles: list[str]) -> list[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return titles
