"""Metrics against brute force; a model with one constant answer stands at chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from examples.vttwins import metrics

AT_CHANCE = {"R@1": 1.0, "R@5": 5.0, "R@10": 10.0, "MedR": 50.5, "MeanR": 50.5}


@st.composite
def tied_scores(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (Q, N) of few values with many ties, some NaN, and the matches, or a diagonal."""
    queries, items = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    diagonal = draw(st.booleans())
    items = queries if diagonal else items
    value = st.sampled_from([0.0, 1.0, 2.0, np.nan])
    s = draw(st.lists(value, min_size=queries * items, max_size=queries * items))
    column = st.lists(st.integers(0, items - 1), min_size=queries, max_size=queries)
    match = None if diagonal else np.array(draw(column))
    return np.array(s).reshape(queries, items), match


@given(tied_scores())
def test_ranks_and_recalls_are_expectations_over_random_orders_of_ties(
    drawn: tuple[np.ndarray, np.ndarray | None],
) -> None:
    scores, match = drawn
    result = metrics.retrieval_metrics(scores, match)
    column = np.arange(len(scores)) if match is None else match
    orders = list(itertools.permutations(range(scores.shape[1])))
    ranks = np.zeros((len(scores), len(orders)))
    for o, order in enumerate(orders):
        for q, row in enumerate(np.nan_to_num(scores, nan=-9.0)):
            own = (row[column[q]], -order[column[q]])
            ranks[q, o] = 1 + sum((row[j], -order[j]) > own for j in range(len(row)))
    lost = np.isnan(scores[np.arange(len(scores)), column])
    ranks[lost] = 1 + scores.shape[1]  # behind every item
    for k in (1, 5, 10):
        hits = (ranks <= k) & ~lost[:, None]
        assert result[f"R@{k}"] == pytest.approx(100 * hits.mean())
    assert result["MeanR"] == pytest.approx(ranks.mean())
    assert result["MedR"] == pytest.approx(np.median(ranks.mean(1)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_model_is_at_chance(value: float) -> None:
    assert metrics.retrieval_metrics(torch.full((100, 100), value)) == AT_CHANCE
    steps = torch.arange(30) % 10
    same = metrics.trimmed_step_accuracy(torch.ones(30, 4), torch.ones(30, 4), ["t"] * 30, steps)
    assert same == {"tasks": {"t": pytest.approx(10)}, "mean": pytest.approx(10)}


@given(count=st.integers(1, 40), seed=st.integers(0, 99), cosine=st.booleans())
def test_equal_rows_get_equal_scores_to_the_last_bit(count: int, seed: int, cosine: bool) -> None:
    rng = np.random.default_rng(seed)
    texts = np.repeat(rng.normal(size=(1, 64)).astype(np.float32), count, axis=0)
    videos = rng.normal(size=(count, 64)).astype(np.float32)
    scores = metrics.similarity(torch.from_numpy(texts), videos, cosine)
    assert (scores == scores[:1]).all()  # a plain matrix product fails here for 7 texts
    assert (scores.T == metrics.similarity(videos, texts, cosine)).all()
    expected = videos.astype(float) @ texts[0].astype(float)
    if cosine:
        expected /= np.linalg.norm(videos, axis=1) * np.linalg.norm(texts[0])
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5, atol=1e-5)


def test_an_unusable_video_is_ranked_last_and_harms_no_other() -> None:
    scores = torch.eye(12)
    scores[:, 2] = torch.nan
    result = metrics.retrieval_metrics(scores)
    assert result["R@1"] == result["R@10"] == pytest.approx(100 * 11 / 12)
    assert result["MeanR"] == pytest.approx((11 + 13) / 12) and result["MedR"] == 1


@pytest.mark.parametrize("count", [1, 3, 10, 12, 100])
def test_what_cannot_be_used_is_a_miss_however_small_the_gallery(count: int) -> None:
    nothing = metrics.retrieval_metrics(np.full((count, count), np.nan))
    behind = count + 1.0
    assert nothing == {"R@1": 0, "R@5": 0, "R@10": 0, "MedR": behind, "MeanR": behind}
    lost_item, lost_query = np.eye(count), np.eye(count)
    lost_item[:, 0] = lost_query[0] = np.nan
    for scores in (lost_item, lost_query):
        result = metrics.retrieval_metrics(scores)
        share = pytest.approx(100 * (count - 1) / count)
        assert result["R@1"] == result["R@5"] == result["R@10"] == share
        assert result["MeanR"] == pytest.approx((count - 1 + behind) / count)


def test_what_cannot_be_used_stands_behind_the_worst_score_that_there_is() -> None:
    result = metrics.retrieval_metrics([[-np.inf, np.nan, np.nan]], [0])
    assert result["R@1"] == 100 and result["MeanR"] == 1


@pytest.mark.parametrize(
    ("scores", "match", "message"),
    [
        (np.zeros((2, 3)), None, "2 queries and 3 items have no diagonal"),
        (np.zeros((2, 3)), [0, 3], r"lie in \[0, 3\), got 0 to 3"),
        (np.zeros((2, 3)), [0.0, 1.0], "match must be 2 integers, got float64"),
        (np.zeros((0, 3)), [], "at least one query"),
        (np.zeros(3), None, r"must be \(Q, N\), got shape \(3,\)"),
    ],
)
def test_scores_without_their_matches_are_refused(scores, match, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.retrieval_metrics(scores, match)


def test_windows_span_the_segment_less_a_margin_and_the_whole_video() -> None:
    np.testing.assert_allclose(metrics.segment_windows(10, 20, 3, 3.2), [10, 13.2, 16.4])
    np.testing.assert_allclose(metrics.segment_windows(10, 20, 3, 3.2, margin=0), [10, 13.4, 16.8])
    assert metrics.segment_windows(7, 9, 4, 3.2).tolist() == [7, 7, 7, 7]  # shorter than a window
    assert metrics.segment_windows(7, 19, 1, 3.2).tolist() == [7]
    assert metrics.frame_windows(132).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 100]
    assert metrics.frame_windows(20).tolist() == [0] * 10
    assert metrics.frame_windows(132).dtype == np.int64
    for arguments in ((5, 4, 2, 1.0), (-1, 4, 2, 1.0), (0, np.inf, 2, 1.0), (0, 4, 0, 1.0)):
        with pytest.raises(ValueError, match="need"):
            metrics.segment_windows(*arguments)


@example(seconds=5, steps=2, seed=309, normalize="log_softmax", levels=1000)  # better by 1e-13
@given(
    seconds=st.integers(0, 7),
    steps=st.integers(1, 4),
    seed=st.integers(0, 999),
    normalize=st.sampled_from(metrics.NORMALIZATIONS),
    levels=st.sampled_from([2, 1000]),
)
def test_ordered_assignment_is_the_earliest_of_the_best_of_all(
    seconds: int, steps: int, seed: int, normalize: str, levels: int
) -> None:
    score = np.random.default_rng(seed).integers(levels, size=(seconds, steps)).astype(float)
    chosen = metrics.ordered_assignment(torch.from_numpy(score), normalize).tolist()
    if seconds < steps:
        assert chosen == [-1] * steps
        return
    if normalize == "log_softmax":
        score = torch.from_numpy(score).log_softmax(1).numpy()
    every = list(itertools.combinations(range(seconds), steps))
    totals = {times: sum(score[t, k] for k, t in enumerate(times)) for times in every}
    rounding = 1e-15 * steps * levels
    # Combinations come in lexicographic order, so the first best one is the earliest. One that is
    # better by less than a rounding may be told from it, or not.
    best = next(c for c, total in totals.items() if total >= max(totals.values()) - rounding)
    found = totals[tuple(chosen)]
    assert tuple(chosen) == best or max(totals.values()) - rounding <= found > totals[best]


@given(seconds=st.integers(2, 6), seed=st.integers(0, 99))
def test_seconds_that_cannot_be_used_are_taken_last_and_are_no_hit(seconds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, lost = rng.normal(size=(seconds, 2)), rng.random(seconds) < 0.5
    score[lost] = np.nan
    chosen = metrics.ordered_assignment(score)
    usable = np.flatnonzero(~lost)
    assert (chosen >= 0).sum() == min(len(usable), 2)
    assert set(chosen[chosen >= 0]) <= set(usable)
    if len(usable) >= 2:
        assert chosen.tolist() == usable[metrics.ordered_assignment(score[usable])].tolist()


def test_a_perfect_model_scores_100_where_a_video_skips_a_step() -> None:
    # Three steps of four seconds each; the second video lacks the middle one. Its order is known
    # from the task file, so the missing step takes a second of background and nothing is lost.
    steps = {"whole": [0, 1, 2], "skips": [0, 2]}
    frames, truth = {}, {}
    for video, shown in steps.items():
        table = np.zeros((4 * len(shown), 3), dtype=bool)
        for place, step in enumerate(shown):
            table[4 * place : 4 * place + 4, step] = True
        frames[video] = metrics.ordered_assignment(10.0 * table)
        truth[video] = table
    for average in metrics.AVERAGES:
        result = metrics.crosstask_recall({"t": frames}, {"t": truth}, average)
        assert result == {"tasks": {"t": 100.0}, "present": {"t": 5}, "average": 100.0}


@given(st.data())
def test_recall_of_steps_is_what_counting_by_hand_gives(data: st.DataObject) -> None:
    frames: dict[str, dict[str, np.ndarray]] = {}
    truth: dict[str, dict[str, np.ndarray]] = {}
    found: dict[str, list[tuple[int, int]]] = {}
    for task in data.draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True)):
        steps = data.draw(st.integers(1, 3))
        frames[task], truth[task], found[task] = {}, {}, []
        for video in range(data.draw(st.integers(1, 3))):
            seconds = data.draw(st.integers(1, 4))
            cell = st.lists(st.booleans(), min_size=steps, max_size=steps)
            table = data.draw(st.lists(cell, min_size=seconds, max_size=seconds))
            times = data.draw(
                st.lists(st.integers(-1, seconds - 1), min_size=steps, max_size=steps)
            )
            frames[task][str(video)] = np.array(times)
            truth[task][str(video)] = np.array(table)
            hits = sum(t >= 0 and table[t][k] for k, t in enumerate(times))
            found[task].append((hits, sum(any(row[k] for row in table) for k in range(steps))))
    present = {task: sum(n for _, n in pairs) for task, pairs in found.items()}
    if not any(present.values()):
        with pytest.raises(ValueError, match="no step is present"):
            metrics.crosstask_recall(frames, truth)
        return
    pooled = {t: 100 * sum(h for h, _ in p) / present[t] for t, p in found.items() if present[t]}
    each = {t: np.mean([100 * h / n for h, n in p if n]) for t, p in found.items() if present[t]}
    for average, expected in (("pooled", pooled), ("per_video", each)):
        result = metrics.crosstask_recall(frames, truth, average)
        assert result["tasks"] == pytest.approx(expected) and result["present"] == present
        assert result["average"] == pytest.approx(np.mean(list(expected.values())))


def test_recall_of_steps_refuses_videos_that_do_not_fit() -> None:
    one = {"t": {"a": np.array([0])}}
    with pytest.raises(ValueError, match=r"only one has \[\('t', 'b'\)\]"):
        metrics.crosstask_recall(one, {"t": {"a": np.ones((1, 1)), "b": np.ones((1, 1))}})
    with pytest.raises(ValueError, match=r"frames of a must lie in \[-1, 0\)"):
        metrics.crosstask_recall(one, {"t": {"a": np.ones((0, 1))}})
    with pytest.raises(ValueError, match="average must be one of"):
        metrics.crosstask_recall(one, {"t": {"a": np.ones((1, 1))}}, "mean")


def test_trimmed_segments_are_compared_with_the_steps_of_their_task_only() -> None:
    axes = np.eye(4)
    text = {"cut": 3 * axes[0], "fry": axes[1], "mix": axes[2]}
    rows = [("t", "cut"), ("t", "fry"), ("t", "cut"), ("u", "cut"), ("u", "mix")]
    seen = ["cut", "fry", "fry", "mix", "mix"]
    video = np.array([7 * text[name] for name in seen])
    texts = np.array([text[step] for _, step in rows])
    task, step = zip(*rows, strict=True)
    result = metrics.trimmed_step_accuracy(video, texts, task, step)
    assert result["tasks"] == {"t": pytest.approx(200 / 3), "u": 50.0}
    assert result["mean"] == pytest.approx((200 / 3 + 50) / 2)
    video[0] = np.nan  # it cannot be used
    result = metrics.trimmed_step_accuracy(torch.from_numpy(video), texts, task, step)
    assert result["tasks"]["t"] == pytest.approx(100 / 3)
    video[1] = axes[3]  # equally far from both steps
    result = metrics.trimmed_step_accuracy(video, texts, task, step)
    assert result["tasks"]["t"] == pytest.approx(50 / 3)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_linear_probe_sums_the_windows_of_a_video(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([f"class {k}" for k in range(classes)], 20)
    center = 3 * np.eye(classes, 8)[np.repeat(np.arange(classes), 20)]
    features = center[:, None] + rng.normal(size=(len(labels), 5, 8)) * 2
    splits = np.tile([[1, 2], [2, 1]], (len(labels) // 2, 1))
    result = metrics.linear_probe(torch.from_numpy(features), labels, splits)
    assert result["mean"] == pytest.approx(np.mean(result["splits"])) and len(result["splits"]) == 2
    one = metrics.linear_probe(features[:, :1], labels, splits)
    assert result["mean"] >= 90 and result["mean"] > one["mean"]  # one window is not enough
    clear = metrics.linear_probe(center[:, None], labels, splits)
    assert clear["splits"] == [100.0, 100.0]
    same = metrics.linear_probe(np.ones((len(labels), 5, 8)), labels, splits)
    assert same["splits"] == pytest.approx([100 / classes] * 2)


def test_the_linear_probe_misses_what_cannot_be_used_and_leaves_out_the_unused() -> None:
    labels = np.array([0, 1] * 5)
    features = np.array([[-1.0], [1.0]] * 5)[:, None].repeat(2, axis=1)
    splits = np.array([1, 1, 1, 1, 2, 2, 2, 2, 0, 0])[:, None]
    features[8:] *= -1e3  # unused, and wrong
    assert metrics.linear_probe(features, labels, splits)["mean"] == 100
    features[0] = features[4] = np.nan
    assert metrics.linear_probe(features, labels, splits)["mean"] == 75
    with pytest.raises(ValueError, match="split 1 has 0 test videos and 2 classes"):
        metrics.linear_probe(features, labels, np.where(splits == 2, 0, splits))
    with pytest.raises(ValueError, match="1 classes"):
        metrics.linear_probe(features, np.zeros(10), splits)
    with pytest.raises(ValueError, match="must hold 0"):
        metrics.linear_probe(features, labels, splits + 1)
