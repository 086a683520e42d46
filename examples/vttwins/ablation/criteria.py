"""The paper's claims, and what counts as reproducing them: fixed before the runs were made.

Requirements: NumPy.

A paired difference of two rows counts if its mean over the seeds is above 2 sd / sqrt(seeds), sd
being the standard deviation of the paired differences (ddof = 1), and if it is positive in at least
7 of 8 seeds (rounded up). Levels are means over the seeds.

A claim is a list of clauses. It is reproduced if all of them hold, not reproduced if none does, and
in part otherwise. Where a claim names alternatives ("in R@10 or CTR"), it is reproduced if all
clauses of one of them hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SEEDS = tuple(range(100, 108))  # of the feature world; never used in trials before
LEAST_SEEDS = 3  # with fewer, a standard deviation means too little to judge by

Table = dict[str, dict[str, np.ndarray]]  # row -> metric -> (seeds,), in the same order of seeds


@dataclass(frozen=True)
class Clause:
    """One checked statement: what it says with its numbers, and whether it holds."""

    text: str
    holds: bool


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; ``alternatives`` are lists of clauses, one of which must hold whole."""

    name: str
    alternatives: tuple[tuple[Clause, ...], ...]

    @property
    def verdict(self) -> str:
        clauses = [clause for part in self.alternatives for clause in part]
        if any(all(clause.holds for clause in part) for part in self.alternatives):
            return "reproduced"
        return "in part" if any(clause.holds for clause in clauses) else "not reproduced"


@dataclass(frozen=True)
class Levels:
    """Limits of "collapse without contrast" in percent of R@10, for a world and its test set."""

    collapsed: float
    trained: float


FEATURE_LEVELS = Levels(collapsed=12, trained=75)  # chance is 5
VIDEO_LEVELS = Levels(collapsed=12.5, trained=33)  # ours: 1.5 and 4 times the chance of 8.3

# Claims that S2DTW is better than other rows: in all metrics of one of the alternatives.
COMPARISONS = (
    (
        "shifted cosine is better than plain cosine, in R@10 and in CTR",
        ("plain",),
        (("R@10", "CTR"),),
    ),
    (
        "gamma .1 is better than both .01 and 1, in R@10 or CTR",
        ("gamma001", "gamma1"),
        (("R@10",), ("CTR",)),
    ),
    (
        "S2DTW is better than soft-DTW, local smoothing only and weak alignment only, in CTR",
        ("soft_dtw", "smoothed", "weak"),
        (("CTR",),),
    ),
)


def counts(better: np.ndarray, worse: np.ndarray) -> bool:
    """Whether a paired difference over seeds counts.

    Example:
        >>> counts(np.arange(8) + 1.0, np.arange(8) * 1.0)
        True
        >>> counts(np.array([9.0, 9, 9, 9, 9, 9, 0, 0]), np.full(8, 8.0))  # wins only 6 of 8
        False
    """
    difference = np.asarray(better) - np.asarray(worse)
    seeds = len(difference)
    if seeds < LEAST_SEEDS:
        raise ValueError(f"{LEAST_SEEDS} seeds at least are needed to judge, got {seeds}")
    wins = int((difference > 0).sum())
    clear = difference.mean() > 2 * difference.std(ddof=1) / math.sqrt(seeds)
    return bool(clear) and wins >= math.ceil(7 * seeds / 8)


def judge(table: Table, levels: Levels = FEATURE_LEVELS) -> list[Claim]:
    """The four claims, less those that compare rows which the table lacks.

    All rows of the table have the same seeds, in the same order.
    """

    def above(better: str, worse: str, metric: str) -> Clause:
        a, b = table[better][metric], table[worse][metric]
        difference = a - b
        text = (
            f"{metric} of {better} above {worse}: {difference.mean():+.1f} "
            f"(sd {difference.std(ddof=1):.1f}), {int((difference > 0).sum())} of {len(a)} seeds"
        )
        return Clause(text, counts(a, b))

    def mean(row: str, metric: str) -> float:
        return float(table[row][metric].mean())

    claims = []
    if {"s2dtw", "alone"} <= set(table):
        delta, sd = mean("alone", "delta_mean"), mean("alone", "delta_sd")
        collapsed, trained = mean("alone", "R@10"), mean("s2dtw", "R@10")
        collapse = (
            Clause(f"mean delta of alone {delta:.3f}, at most -.97", delta <= -0.97),
            Clause(f"sd of delta of alone {sd:.4f}, at most .01", sd <= 0.01),
            Clause(
                f"R@10 of alone {collapsed:.1f}, at most {levels.collapsed:g}, while s2dtw has "
                f"{trained:.1f}, at least {levels.trained:g}",
                collapsed <= levels.collapsed and trained >= levels.trained,
            ),
        )
        claims.append(Claim("without contrast the embeddings collapse", (collapse,)))
    for name, others, alternatives in COMPARISONS:
        if {"s2dtw", *others} <= set(table):
            parts = [
                tuple(above("s2dtw", other, metric) for metric in metrics for other in others)
                for metrics in alternatives
            ]
            claims.append(Claim(name, tuple(parts)))
    return claims
