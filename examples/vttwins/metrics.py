"""The numbers of the benchmarks: recalls and ranks, the linear probe, three kinds of CTR.

Requirements: NumPy, torch; scikit-learn for the linear probe.

Arguments are NumPy arrays or tensors, results plain Python. Recalls and accuracies are percent,
ranks start at 1. A constant model cannot cheat: where scores tie, the expectation over a random
order of the ties counts. NaN, the score of a video that cannot be used, is the worst of all and is
never a hit, however small the gallery is.

Source: the definitions of the benchmarks' own papers (CrossTask: Zhukov et al., CVPR 2019) and of
the supplement of Ko et al., CVPR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

NORMALIZATIONS = ("log_softmax", "none")
AVERAGES = ("pooled", "per_video")
UNUSED, TRAIN, TEST = 0, 1, 2  # what a split says of a clip


def _float_array(values: Any, name: str, shape: tuple[str, ...]) -> np.ndarray:
    """Values as float64 with the wanted number of axes."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(shape):
        raise ValueError(f"{name} must be ({', '.join(shape)}), got shape {array.shape}")
    return array


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)


def _integers(values: Any, name: str, length: int, low: int, high: int) -> np.ndarray:
    """Values as int64 (length,), each in [low, high)."""
    array = _array(values)
    if array.shape != (length,) or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {length} integers, got {array.dtype} {array.shape}")
    if array.size and not (low <= array.min() and array.max() < high):
        raise ValueError(f"{name} must lie in [{low}, {high}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def similarity(a: Any, b: Any, cosine: bool = False) -> np.ndarray:
    """Dot products or cosines, float64 (A, B), of the rows of (A, D) and (B, D).

    Equal rows get equal scores to the last bit, so that ties are ties: a matrix product alone may
    round them differently by their place. The cosine of a zero vector is 0.

    Example:
        >>> similarity([[3.0, 4.0]], [[1.0, 0.0], [0.0, 2.0]], cosine=True).tolist()
        [[0.6, 0.8]]
    """
    rows = [_float_array(a, "a", ("A", "D")), _float_array(b, "b", ("B", "D"))]
    if cosine:
        lengths = [np.sqrt(np.einsum("nd,nd->n", x, x))[:, None] for x in rows]
        rows = [x / np.where(n == 0, 1, n) for x, n in zip(rows, lengths, strict=True)]
    (first, to_a), (second, to_b) = (
        np.unique(x, axis=0, return_inverse=True, equal_nan=False) for x in rows
    )
    return (first @ second.T)[np.ix_(to_a.reshape(-1), to_b.reshape(-1))]


def retrieval_metrics(scores: Any, match: Any = None) -> dict[str, float]:
    """Recall at 1, 5 and 10 in percent, and the median and mean rank of the matches.

    rank = 1 + (number greater) + (number equal - 1) / 2, the mean over a random order of the ties;
    recall at k is the share of queries of rank <= k, in expectation over that order. NaN is worse
    than every score. A query whose match is NaN is a miss at every k and has the rank N + 1, behind
    all items: no usable one can do worse. The median of an even number of ranks may end in .5.

    Args:
        scores: (Q, N), query q against item n, larger is better.
        match: (Q,) the column of each query's match; None: the diagonal.

    Returns:
        {"R@1", "R@5", "R@10", "MedR", "MeanR"}.

    Raises:
        ValueError: no query, or Q is not N without ``match``, or a match that is no column.

    Example:
        >>> retrieval_metrics(np.zeros((20, 20)))["R@10"]
        50.0
    """
    s = _float_array(scores, "scores", ("Q", "N"))
    queries, items = s.shape
    if not queries:
        raise ValueError("scores must have at least one query, got none")
    if match is None and queries != items:
        raise ValueError(
            f"scores of {queries} queries and {items} items have no diagonal of matches: pass match"
        )
    column = np.arange(queries) if match is None else _integers(match, "match", queries, 0, items)
    own = s[np.arange(queries), column][:, None]
    lost = np.isnan(own[:, 0])
    # NaN is neither greater than a score nor equal to one: it stands behind all of them.
    greater, equal = (s > own).sum(1), np.where(lost, 1, (s == own).sum(1))
    ranks = np.where(lost, items + 1, 1 + greater + (equal - 1) / 2)
    shares = {k: np.where(lost, 0, np.clip((k - greater) / equal, 0, 1)) for k in (1, 5, 10)}
    result = {f"R@{k}": 100 * math.fsum(share) / queries for k, share in shares.items()}
    return {**result, "MedR": float(np.median(ranks)), "MeanR": float(ranks.mean())}


def segment_windows(
    start: float, end: float, count: int, seconds: float, margin: float = 0.4
) -> np.ndarray:
    """Starts in seconds, float64 (count,), of windows spread evenly over a segment.

    The first begins with the segment; the last ends ``margin`` before its end, or begins with the
    segment if that is shorter than a window.

    Args:
        start, end: of the segment, in seconds.
        count: of windows.
        seconds: length of a window.
        margin: seconds kept free at the end.

    Example:
        >>> segment_windows(10, 17, 3, 3.0).tolist()
        [10.0, 11.8, 13.6]
    """
    if not (0 <= start <= end and math.isfinite(end)):
        raise ValueError(f"a segment needs 0 <= start <= end < inf, got {start} to {end} s")
    if count < 1 or not seconds > 0 or not margin >= 0:
        raise ValueError(
            f"need count >= 1, seconds > 0 and margin >= 0, got {count}, {seconds}, {margin}"
        )
    return np.linspace(start, max(start, end - seconds - margin), count)


def frame_windows(frames: int, count: int = 10, length: int = 32) -> np.ndarray:
    """First frames, int64 (count,), of windows of ``length`` frames spread evenly over a video.

    A video of at most ``length`` frames is seen ``count`` times from its first frame on.

    Example:
        >>> frame_windows(42, count=3).tolist()
        [0, 5, 10]
    """
    if frames < 0 or count < 1 or length < 1:
        raise ValueError(
            f"need frames >= 0, count >= 1 and length >= 1, got {frames}, {count}, {length}"
        )
    return np.floor(np.linspace(0, max(frames, length) - length, count)).astype(np.int64)


def linear_probe(features: Any, labels: Any, splits: Any, C: float = 100.0) -> dict[str, Any]:
    """Accuracy in percent of a linear SVM on frozen features, for each split and on average.

    One against the rest, no scaling; each window of a training video is a sample; the decision
    values of the windows of a test video are summed. The primal problem is solved (dual=False): the
    dual one stops unconverged at C = 100.

    Args:
        features: (N, W, D), W windows of each video; a video with a NaN cannot be used: it is left
            out of the training and is a miss in the test.
        labels: (N,) names or numbers of the classes.
        splits: (N, S), 1 for training, 2 for test, 0 for unused.
        C: of the SVM.

    Returns:
        {"splits": [accuracy of each split], "mean"}.

    Raises:
        ValueError: shapes that do not fit, or a split with fewer than two classes to learn or with
            nothing to test.
    """
    from sklearn.svm import LinearSVC

    x = _float_array(features, "features", ("N", "W", "D"))
    y, parts = _array(labels), _array(splits)
    if y.shape != x.shape[:1] or parts.ndim != 2 or len(parts) != len(x) or not parts.shape[1]:
        raise ValueError(
            f"features of {len(x)} videos need labels ({len(x)},) and splits ({len(x)}, S), got "
            f"{y.shape} and {parts.shape}"
        )
    if not np.isin(parts, (UNUSED, TRAIN, TEST)).all():
        raise ValueError("splits must hold 0 (unused), 1 (training) and 2 (test) only")
    usable = np.isfinite(x).all((1, 2))
    accuracies = []
    for k, part in enumerate(parts.T, start=1):
        train, test = (part == TRAIN) & usable, part == TEST
        if not test.any() or len(np.unique(y[train])) < 2:
            raise ValueError(
                f"split {k} has {test.sum()} test videos and {len(np.unique(y[train]))} classes "
                "among its usable training videos; it needs at least 1 and 2"
            )
        probe = LinearSVC(C=C, dual=False, max_iter=10_000)
        probe.fit(x[train].reshape(-1, x.shape[2]), np.repeat(y[train], x.shape[1]))
        seen = test & usable
        hits = 0
        if seen.any():
            values = probe.decision_function(x[seen].reshape(-1, x.shape[2]))
            if values.ndim == 1:  # two classes: one value, positive for the second
                values = np.stack((-values, values), axis=1)
            summed = values.reshape(seen.sum(), x.shape[1], -1).sum(1)
            hits = (probe.classes_[summed.argmax(1)] == y[seen]).sum()
        accuracies.append(float(100 * hits / test.sum()))
    return {"splits": accuracies, "mean": float(np.mean(accuracies))}


def ordered_assignment(scores: Any, normalize: str = "log_softmax") -> np.ndarray:
    """The best assignment of one second to each step, in order: int64 (K,), strictly increasing.

    Dynamic program over seconds and steps, O(T K) in time and memory. Background seconds are free.
    Of several best assignments it is the earliest. Seconds whose score is not finite (of a video
    that cannot be used) are taken only where too few others are left, and then stand as -1, which
    is no hit. All are -1 if there are fewer seconds than steps.

    Args:
        scores: (T, K), second t against step k.
        normalize: "log_softmax" over the K steps of each second, as CrossTask does, or "none".

    Example:
        >>> ordered_assignment([[0.0, 9.0], [5.0, 0.0], [0.0, 1.0]], normalize="none").tolist()
        [1, 2]
    """
    s = _float_array(scores, "scores", ("T", "K"))
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize must be one of {NORMALIZATIONS}, got {normalize!r}")
    seconds, steps = s.shape
    if seconds < steps or not steps:
        return np.full(steps, -1, dtype=np.int64)
    if normalize == "log_softmax":
        with np.errstate(invalid="ignore"):
            s = s - s.max(1, keepdims=True)
        s = s - np.log(np.exp(s).sum(1, keepdims=True))
    usable = np.isfinite(s)
    # Lexicographic: first as many usable seconds as possible, then the largest total. best[k] is
    # that of the steps 0..k by this second; taken[t, k] says that step k has second t in it.
    value = np.where(usable, s, 0.0)
    count = np.concatenate(([0], np.full(steps, -steps - 1)))
    total = np.concatenate(([0.0], np.full(steps, -np.inf)))
    taken = np.zeros((seconds, steps), dtype=bool)
    for t in range(seconds):
        new_count, new_total = count[:-1] + usable[t], total[:-1] + value[t]
        better = (new_count > count[1:]) | ((new_count == count[1:]) & (new_total > total[1:]))
        better &= np.isfinite(new_total)
        taken[t] = better
        count[1:] = np.where(better, new_count, count[1:])
        total[1:] = np.where(better, new_total, total[1:])
    chosen = np.zeros(steps, dtype=np.int64)
    t = seconds
    for k in range(steps - 1, -1, -1):
        t = int(np.flatnonzero(taken[:t, k])[-1])
        chosen[k] = t if usable[t, k] else -1
    return chosen


def crosstask_recall(
    frames: Mapping[str, Mapping[str, Any]],
    truth: Mapping[str, Mapping[str, Any]],
    average: str = "pooled",
) -> dict[str, Any]:
    """Recall of steps in percent (CTR): a step is found if its assigned second is one of its own.

    A step is present in a video if any of its seconds is. Recall of a task: "pooled", the steps
    found over the steps present in all of its videos (CrossTask's); "per_video", the mean of the
    recalls of its videos that have a step (the HowTo100M family's). The average is over the tasks.

    Args:
        frames: {task: {video: (K,) assigned seconds, -1 for none}}.
        truth: {task: {video: bool (T, K)}}, of the same tasks and videos.
        average: "pooled" or "per_video".

    Returns:
        {"tasks": recall of each task with a step present, "present": number of steps present in
        the videos of each task, "average"}.
    """
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    named = [
        {(task, video) for task in given for video in given[task]} for given in (frames, truth)
    ]
    if named[0] != named[1]:
        odd = sorted(named[0] ^ named[1])
        raise ValueError(f"frames and truth must name the same videos; only one has {odd[:5]}")
    tasks: dict[str, float] = {}
    present: dict[str, int] = {}
    for task, videos in truth.items():
        found: list[tuple[int, int]] = []
        for video, spans in videos.items():
            table = _array(spans).astype(bool)
            if table.ndim != 2:
                raise ValueError(f"truth of {video} must be (T, K), got shape {table.shape}")
            seconds, steps = table.shape
            chosen = _integers(frames[task][video], f"frames of {video}", steps, -1, seconds)
            hits = (chosen >= 0) & table[chosen, np.arange(steps)] if seconds else chosen >= 0
            found.append((int(hits.sum()), int(table.any(0).sum())))
        present[task] = sum(there for _, there in found)
        if not present[task]:
            continue
        if average == "pooled":
            tasks[task] = 100 * sum(hit for hit, _ in found) / present[task]
        else:
            tasks[task] = float(np.mean([100 * hit / there for hit, there in found if there]))
    if not tasks:
        raise ValueError("no step is present in any video: there is nothing to find")
    return {"tasks": tasks, "present": present, "average": float(np.mean(list(tasks.values())))}


def trimmed_step_accuracy(video: Any, text: Any, task: Any, step: Any) -> dict[str, Any]:
    """CTR as the VT-TWINS release computes it: whether a trimmed segment is closest to its step.

    The candidates are the distinct steps of the segment's task among the rows, each with the text
    of its first row. Cosines decide; n tied best ones count 1 / n each.

    Args:
        video: (N, D) embedding of each segment, NaN if it cannot be used, which is a miss.
        text: (N, D) embedding of the text of its step.
        task, step: (N,) names or numbers of its task and of its step.

    Returns:
        {"tasks": percent of each task, "mean": over the tasks}.
    """
    v, t = _float_array(video, "video", ("N", "D")), _float_array(text, "text", ("N", "D"))
    names = [str(value) for value in _array(task).tolist()]
    steps = _array(step).tolist()
    if not len(v) or v.shape != t.shape or len(names) != len(v) or len(steps) != len(v):
        raise ValueError(
            f"need as many videos, texts, tasks and steps, and at least one, got {v.shape}, "
            f"{t.shape}, {len(names)}, {len(steps)}"
        )
    tasks = {}
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        first: dict[Any, int] = {}
        for i in rows:
            first.setdefault(steps[i], i)
        place = {value: k for k, value in enumerate(first)}
        scores = similarity(v[rows], t[list(first.values())], cosine=True)
        scores = np.where(np.isnan(scores), -np.inf, scores)
        own = scores[np.arange(len(rows)), [place[steps[i]] for i in rows]][:, None]
        best = (own == scores.max(1, keepdims=True)) & np.isfinite(own)
        tasks[name] = float(100 * (best[:, 0] / (scores == own).sum(1)).mean())
    return {"tasks": tasks, "mean": float(np.mean(list(tasks.values())))}
