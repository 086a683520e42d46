"""Metrics against brute force; a model with one constant answer stands at chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins import metrics

SCORES = st.integers(1, 5).flatmap(
    lambda q: st.lists(st.lists(st.integers(0, 2), min_size=q, max_size=q), min_size=q, max_size=q)
)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_constant_model_is_at_chance(value: float) -> None:
    result = metrics.retrieval(torch.full((100, 100), value))
    assert result == {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MedR": 50.5, "MeanR": 50.5}
    assert metrics.top1_step_recall(torch.zeros(30, 10), torch.arange(30) % 10) == pytest.approx(
        0.1
    )


@given(SCORES)
def test_ranks_and_recalls_are_means_over_random_orders_of_ties(scores: list[list[int]]) -> None:
    s = torch.tensor(scores, dtype=torch.float64)
    q = s.shape[0]
    ranks, recall = np.zeros(q), np.zeros(q)
    orders = list(itertools.permutations(range(q)))
    for order in orders:
        for i in range(q):
            better = [j for j in range(q) if (s[i, j], -order[j]) > (s[i, i], -order[i])]
            ranks[i] += (1 + len(better)) / len(orders)
            recall[i] += (len(better) < 2) / len(orders)
    np.testing.assert_allclose(metrics.ranks_of_matches(s).numpy(), ranks)
    assert metrics.retrieval(s, at=(2,))["R@2"] == pytest.approx(100 * recall.mean())


def test_an_unusable_video_is_ranked_last_and_harms_no_other() -> None:
    s = torch.eye(4)
    s[:, 2] = torch.nan
    assert metrics.ranks_of_matches(s).tolist() == [1, 1, 4, 1]


@given(frames=st.integers(1, 7), steps=st.integers(1, 4), seed=st.integers(0, 999))
def test_ordered_assignment_is_the_best_of_all(frames: int, steps: int, seed: int) -> None:
    score = torch.from_numpy(np.random.default_rng(seed).normal(size=(frames, steps)))
    if frames < steps:
        with pytest.raises(ValueError, match="at least as many frames"):
            metrics.ordered_assignment(score)
        return
    chosen = metrics.ordered_assignment(score).tolist()
    assert chosen == sorted(set(chosen))
    every = itertools.combinations(range(frames), steps)
    best = max(sum(score[t, k].item() for k, t in enumerate(c)) for c in every)
    assert sum(score[t, k].item() for k, t in enumerate(chosen)) == pytest.approx(best)


def test_assigned_recall_counts_present_steps_only() -> None:
    score = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 0]])
    times = torch.tensor([0.5, 1.5, 2.5, 3.5])
    intervals = [[(0.0, 1.0)], [], [(3.0, 4.0)]]
    assert metrics.ordered_step_recall(score, times, intervals) == (1, 2)


def test_assigned_recall_of_an_unusable_frame_is_no_hit() -> None:
    score = torch.full((3, 2), torch.nan)
    intervals = [[(0.0, 9.0)], [(0.0, 9.0)]]
    times = torch.arange(3.0)
    assert metrics.ordered_step_recall(score, times, intervals) == (0, 2)
    score[2] = 0  # one frame can be used, and one step fits into it
    assert metrics.ordered_step_recall(score, times, intervals) == (1, 2)
