"""Retrieval and step-localization metrics that a constant model cannot cheat.

Requirements: torch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks_of_matches(similarity: Tensor) -> Tensor:
    """Rank of the matching column of each row, 1 = best, ties shared: float64 (Q,).

    rank = 1 + (number greater) + (number of others equal) / 2: the mean rank over a random order of
    the ties, so that a model with one constant answer stands at chance. NaN counts as the worst.

    Args:
        similarity: (Q, Q), the match of query q in column q.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, got {tuple(similarity.shape)}")
    s = similarity.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    own = s.diagonal()[:, None]
    return 1 + (s > own).sum(1).double() + ((s == own).sum(1).double() - 1) / 2


def retrieval(similarity: Tensor, at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each k in percent, and the median and mean rank.

    Where ties straddle k, the expected recall over a random order of the ties is counted, so a
    constant similarity scores exactly k / Q.

    Example:
        >>> retrieval(torch.zeros(20, 20))["R@10"]
        50.0
    """
    s = similarity.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranks = ranks_of_matches(similarity)
    own = s.diagonal()[:, None]
    greater, equal = (s > own).sum(1).double(), (s == own).sum(1).double()
    result = {f"R@{k}": 100 * ((k - greater) / equal).clamp(0, 1).mean().item() for k in at}
    result["MedR"] = ranks.quantile(0.5).item()
    result["MeanR"] = ranks.mean().item()
    return result


def top1_step_recall(similarity: Tensor, step: Tensor) -> float:
    """CTR as the release computes it: share of trimmed segments whose best step is the right one.

    Ties count 1 / (number of best steps).

    Args:
        similarity: (segments, steps of the task).
        step: the right step of each segment, integers (segments,).
    """
    best = similarity == similarity.amax(1, keepdim=True)
    hit = best.gather(1, step[:, None]).squeeze(1).double() / best.sum(1)
    return hit.mean().item()


def ordered_assignment(score: Tensor) -> Tensor:
    """Best strictly increasing assignment of one frame to each step: int64 (K,) frames.

    Dynamic program over (frame, step), O(T K): keep the best total of steps 0..k by frame t.

    Args:
        score: (T, K) with T >= K.
    """
    frames, steps = score.shape
    if frames < steps:
        raise ValueError(f"{steps} ordered steps need at least as many frames, got {frames}")
    score = score.double().cpu()
    best = torch.full((frames + 1, steps + 1), -torch.inf, dtype=torch.float64)
    best[:, 0] = 0
    for t in range(1, frames + 1):
        best[t, 1:] = torch.maximum(best[t - 1, 1:], best[t - 1, :-1] + score[t - 1])
    chosen = torch.zeros(steps, dtype=torch.int64)
    t = frames
    for k in range(steps, 0, -1):
        while t > k and best[t - 1, k] >= best[t, k]:
            t -= 1
        chosen[k - 1] = t - 1
        t -= 1
    return chosen


def ordered_step_recall(
    score: Tensor, times: Tensor, intervals: list[list[tuple[float, float]]]
) -> tuple[int, int]:
    """CTR as CrossTask defines it, for one video: (steps found, steps present).

    One frame is assigned to each step, in the order of the steps; a step that occurs in the video
    is found if its frame lies in one of its intervals. Sum both numbers over the videos of a task,
    divide, and average over tasks.

    Args:
        score: (T, K) similarity of frames and steps; NaN where a frame cannot be used: such a frame
            is taken only where no other is left, and never finds its step.
        times: (T,) time of each frame in seconds.
        intervals: for each step, its intervals [start, end) in seconds; empty if it does not occur.
    """
    # Large, not infinite: assignments are to differ by the usable frames in them.
    chosen = ordered_assignment(score.double().nan_to_num(nan=-1e9))
    found = present = 0
    for k, spans in enumerate(intervals):
        if spans:
            present += 1
            frame = chosen[k]
            hit = any(start <= float(times[frame]) < end for start, end in spans)
            found += hit and not bool(score[frame, k].isnan())
    return found, present
