"""The operators beside soft-DTW next to what is used for them today, on one thread of the CPU:

    python -m benchmarks.operators

Every result is compared first, then both are timed in turn. Packages that are not installed
(monotonic-alignment-search, tslearn) are left out with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import published
from softdtw_kernels import dilate_loss, forward_sum, monotonic_alignment, soft_dtw_kmeans


class Row(NamedTuple):
    case: str
    other: str
    ours_ms: float
    other_ms: float
    difference: float  # of the results that both must share

    @property
    def text(self) -> str:
        ratio = self.other_ms / self.ours_ms
        return (
            f"| {self.case} | {self.other} | {self.ours_ms:.2f} | {self.other_ms:.2f} "
            f"| {ratio:.1f} | {self.difference:.1e} |"
        )


def in_turn(ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """The best process times of both, in ms."""
    best = [float("inf")] * 2
    for _ in range(rounds):
        for k, call in enumerate((ours, other)):
            start = time.process_time()
            call()
            best[k] = min(best[k], 1e3 * (time.process_time() - start))
    return best[0], best[1]


def trained(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """The gradient of the mean by x."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf).mean(), leaf)
        return gradient

    return run


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def forward_sums(rounds: int) -> Iterator[Row]:
    """The published loss has a blank, and with it other values: compared with an impossible one."""
    logits = torch.randn(32, 800, 120, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((32,), 800), torch.full((32,), 120)

    def ours(z: Tensor) -> Tensor:
        return forward_sum(z.log_softmax(-1))

    def impossible(z: Tensor) -> Tensor:
        return published.ctc_forward_sum(z, *lengths, blank=-1e5)

    def as_published(z: Tensor) -> Tensor:
        return published.ctc_forward_sum(z, *lengths)

    wide = logits.double()
    truth = impossible(wide), trained(impossible, wide)()
    difference = max(
        worst(ours(logits).double(), truth[0]), worst(trained(ours, logits)().double(), truth[1])
    )
    other = "CTC with a blank, item by item, torch"
    log_probs = logits.log_softmax(-1)
    size = "32 x (800 x 120) float32"
    yield Row(
        f"forward_sum, value and gradient, {size}",
        other,
        *in_turn(trained(forward_sum, log_probs), trained(as_published, log_probs), rounds),
        difference,
    )
    yield Row(
        f"log_softmax and forward_sum, value and gradient, {size}",
        other,
        *in_turn(trained(ours, logits), trained(as_published, logits), rounds),
        difference,
    )


def searches(rounds: int) -> Iterator[Row]:
    search = importlib.import_module("monotonic_alignment_search").maximum_path
    x = torch.randn(32, 800, 120, generator=torch.Generator().manual_seed(0))
    turned, mask = x.mT.contiguous(), torch.ones(32, 120, 800)

    def other() -> Tensor:
        found: Tensor = search(turned, mask)
        return found

    yield Row(
        "monotonic_alignment, 32 x (800 x 120) float32",
        "monotonic-alignment-search (Cython)",
        *in_turn(lambda: monotonic_alignment(x), other, rounds),
        float((monotonic_alignment(x) != other().mT).sum()),
    )


def dilates(rounds: int) -> Iterator[Row]:
    t = torch.linspace(0, 6, 100, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    shifts = torch.rand(2, 32, 1, generator=generator, dtype=torch.float64)
    x, y = torch.sin(t - shifts)[..., None]
    x = x + 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for gamma in (0.01, 1.0):

        def ours(z: Tensor, gamma: float = gamma) -> Tensor:
            return dilate_loss(z, y.to(z.dtype), alpha=0.5, gamma=gamma)

        def other(z: Tensor, gamma: float = gamma) -> Tensor:
            return published.dilate(z, y, 0.5, gamma)

        truth = other(x), trained(other, x)()
        for z in (x, x.float()):
            found = ours(z).mean().double(), trained(ours, z)().double()
            yield Row(
                f"dilate_loss, value and gradient, 32 x 100, gamma {gamma}, {z.dtype}",
                "item by item, Numba, float64",
                *in_turn(trained(ours, z), trained(other, x), rounds),
                max(worst(a, b) for a, b in zip(found, truth, strict=True)),
            )


def clusters(rounds: int) -> Iterator[Row]:
    clustering = importlib.import_module("tslearn.clustering")
    datasets = importlib.import_module("tslearn.datasets")
    x, labels, *_ = datasets.CachedDatasets().load_dataset("Trace")
    x = x[labels < 4][:50]
    series = torch.from_numpy(x)[:, ::2]
    init = series[[0, 10, 20]].clone()
    for gamma in (0.01, 0.1, 1.0):

        def ours(gamma: float = gamma) -> Tensor:
            return soft_dtw_kmeans(series, 3, gamma=gamma, init=init).labels

        def other(gamma: float = gamma) -> Tensor:
            model = clustering.TimeSeriesKMeans(
                3, metric="softdtw", metric_params={"gamma": gamma}, init=init.numpy()
            )
            return torch.from_numpy(model.fit(series.numpy()).labels_)

        difference = differing(ours(), other())
        yield Row(
            f"soft_dtw_kmeans, k = 3, gamma {gamma}, {tuple(series.shape)} of Trace, float64",
            "tslearn TimeSeriesKMeans",
            *in_turn(ours, other, 1),
            difference,
        )


def differing(labels: Tensor, others: Tensor) -> float:
    """Pairs of sequences that are together in one clustering and apart in the other."""
    together = labels[:, None] == labels
    return float((together != (others[:, None] == others)).sum())


CASES: dict[str, Callable[[int], Iterator[Row]]] = {
    "forward_sum": forward_sums,
    "monotonic_alignment": searches,
    "dilate": dilates,
    "kmeans": clusters,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | other | ours ms | other ms | ratio | difference |\n|---|---|---|---|---|---|")
    for case in arguments.cases:
        try:
            for row in CASES[case](arguments.rounds):
                print(row.text, flush=True)
        except ImportError as error:
            print(f"| {case} | left out: {error} | | | | |")


if __name__ == "__main__":
    main()
