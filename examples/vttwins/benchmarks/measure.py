"""The numbers of a model on annotated videos: linear probe, retrieval, recall of steps.

Requirements: torch, av, NumPy, tqdm; scikit-learn for the linear probe.

Each function returns plain data. With several processes the first returns the numbers and the
others None; all must call it alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.vttwins import metrics
from examples.vttwins.benchmarks.actions import LabelledVideo
from examples.vttwins.benchmarks.cache import FeatureCache, Seen, weights_digest
from examples.vttwins.benchmarks.crosstask import CrossTask, seconds_of
from examples.vttwins.benchmarks.extraction import (
    Encoder,
    EverySecond,
    Item,
    NativeFrames,
    Spread,
    extract,
)
from examples.vttwins.benchmarks.segments import Segment
from examples.vttwins.data import ClipShape
from examples.vttwins.distributed import Place
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import EVAL_WORDS, Vocabulary

CTR_OFFICIAL, CTR_ZERO_SHOT, CTR_RELEASE = "CTR (a)", "CTR (b)", "CTR (c)"
CTR_MEANING = {
    CTR_OFFICIAL: "CrossTask's own: steps in order over whole videos, pooled over videos",
    CTR_ZERO_SHOT: "as the HowTo100M family: raw scores, mean over videos",
    CTR_RELEASE: "as the VT-TWINS release: best step of each trimmed segment",
}


@dataclass
class Viewer:
    """A model that looks at videos under a folder, and where it keeps what it saw.

    Args:
        model: in evaluation mode from now on.
        folder: of the videos.
        shape: of a clip.
        workers: processes that decode.
        cache: folder for features; None keeps nothing, and is for one process.
        place: of this process.
        name: of the benchmark; names the folders in the cache.
    """

    model: VideoTextModel
    folder: Path
    shape: ClipShape
    workers: int = 0
    cache: Path | None = None
    place: Place = field(default_factory=Place)
    name: str = "videos"

    def __post_init__(self) -> None:
        self.model.eval()
        # A third faster on a CPU; values and names stay. torch's types do not know this overload.
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.device = next(self.model.parameters()).device

    @cached_property
    def weights(self) -> str:
        """Digest of the model's weights, which must not change any more."""
        return weights_digest(self.model)

    def look(self, items: list[Item], what: str, encode: Encoder, title: str) -> list[Seen]:
        """What is seen of each item; an empty list on all processes but the first."""
        cache = None
        if self.cache is not None:
            key = {"weights": self.weights, "clip": asdict(self.shape)}
            cache = FeatureCache(self.cache, f"{self.name}-{what}", key)
        return extract(
            items, self.folder, encode, self.shape, self.device, self.workers, cache, self.place,
            title,
        )  # fmt: skip


@torch.no_grad()
def embed_texts(model: VideoTextModel, texts: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Embeddings (texts, D); equal texts have equal ones to the last bit."""
    model.eval()
    device = next(model.parameters()).device
    place = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    words = vocabulary.encode_all(place, EVAL_WORDS)
    parts = [model.encode_text(part.to(device)).float().cpu() for part in words.split(1024)]
    return torch.cat(parts)[[place[text] for text in texts]]


def without_known_words(texts: Sequence[str], vocabulary: Vocabulary) -> int:
    """How many texts have no word of the vocabulary, so that all of them look the same."""
    return int((vocabulary.encode_all(texts, EVAL_WORDS) == 0).all(1).sum())


def _account(total: int, lost: list[tuple[str, str, str]]) -> dict[str, Any]:
    """What could not be used: how much by reason, and which videos, of (id, reason, message)."""
    return {
        "looked_at": total,
        "unusable": dict(Counter(reason for _, reason, _ in lost).most_common()),
        "unusable_videos": [list(entry) for entry in dict.fromkeys(lost)],
    }


def set_apart(result: dict[str, Any], kind: str) -> dict[str, Any]:
    """The result with ``kind`` behind the names of its account, to stand beside another one's.

    Example:
        >>> set_apart({"videos": 3, "looked_at": 3, "unusable": {"broken": 1}}, "whole")
        {'videos': 3, 'looked_at_whole': 3, 'unusable_whole': {'broken': 1}}
    """
    names = _account(0, [])
    return {f"{name}_{kind}" if name in names else name: v for name, v in result.items()}


def _lost(seen: Sequence[Seen], items: Sequence[Item]) -> list[tuple[str, str, str]]:
    pairs = zip(items, seen, strict=True)
    return [(item.video_id, s.reason, s.message) for item, s in pairs if s.features is None]


def probe(viewer: Viewer, videos: list[LabelledVideo], windows: int) -> dict[str, Any] | None:
    """Accuracy of a linear probe of the features before the head, a split each and their mean."""
    items = [Item(v.video_id, v.folders, NativeFrames(windows)) for v in videos]
    seen = viewer.look(items, "frames", viewer.model.video_features, "videos")
    if not viewer.place.first:
        return None
    usable = [s.features for s in seen if s.features is not None]
    if not usable:
        raise ValueError(
            f"no video can be used; the first, {videos[0].video_id}: {seen[0].message}"
        )
    shape = len(videos), windows, usable[0].shape[1]
    features = np.full(shape, np.nan, dtype=np.float32)
    features[[k for k, s in enumerate(seen) if s.features is not None]] = usable
    splits = np.array([video.splits for video in videos])
    labels = np.array([video.label for video in videos])
    counts = {"videos": len(videos), "classes": len(set(labels.tolist()))}
    result = metrics.linear_probe(features, labels, splits)
    return {**counts, **result, **_account(len(items), _lost(seen, items))}


def segment_features(
    viewer: Viewer, segments: list[Segment], windows: int, title: str
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]] | None:
    """Embeddings of the windows of segments; each video is opened once.

    Returns:
        features (N, W, D) of the distinct spans of video, NaN for one that cannot be used (D is 1
        if none can); the row of each segment; and the account of what cannot be used, in spans.
    """
    spans: dict[tuple[str, str], dict[tuple[float, float], int]] = {}
    for s in segments:
        spans.setdefault((s.video_id, s.task), {}).setdefault((s.start, s.end), 0)
    items = [Item(v, (task,), Spread(tuple(own), windows)) for (v, task), own in spans.items()]
    seen = viewer.look(items, "segments", viewer.model.encode_video, title)
    if not viewer.place.first:
        return None
    count = 0
    for own in spans.values():
        for span in own:
            own[span] = count
            count += 1
    width = next((s.features.shape[1] for s in seen if s.features is not None), 1)
    features = np.full((count, windows, width), np.nan, dtype=np.float32)
    lost = []
    for item, found, own in zip(items, seen, spans.values(), strict=True):
        rows = list(own.values())
        if found.features is not None:
            assert isinstance(item.windows, Spread)
            # A video whose end is to be found out has one span, in order whatever its length.
            order = item.windows.order(viewer.shape.seconds, 0.0)
            flat = np.empty_like(found.features)
            flat[order] = found.features
            features[rows] = flat.reshape(len(rows), windows, -1)
        for row, (start, _) in zip(rows, own, strict=True):
            if found.features is None:
                lost.append((item.video_id, found.reason, found.message))
            elif np.isnan(features[row]).any():
                reason, message = found.reason or "short", f"ends before {start:.2f} s"
                lost.append((item.video_id, reason, found.message or message))
    index = np.array([spans[s.video_id, s.task][s.start, s.end] for s in segments])
    return features, index, _account(count, lost)


def retrieval(
    viewer: Viewer,
    vocabulary: Vocabulary,
    segments: list[Segment],
    windows: int,
    similarities: Sequence[str] = ("dot", "cosine"),
    steps: bool = False,
) -> dict[str, Any] | None:
    """Segments by their sentences and the reverse, by each similarity; with ``steps``, CTR (c) too.

    Equal spans of a video are one segment, which may have several sentences: as a query it looks
    for the one that it ranks best, its others set aside.
    """
    texts = [s.text for s in segments]
    embedded = embed_texts(viewer.model, texts, vocabulary)
    found = segment_features(viewer, segments, windows, "videos")
    if found is None:
        return None
    features, match, account = found
    features = _as_wide_as(features, embedded)
    result: dict[str, Any] = {
        "pairs": len(segments),
        "segments": len(features),
        "chance_R@10": 100 * min(10 / len(features), 1.0),
        "texts_without_known_words": without_known_words(texts, vocabulary),
    }
    for name in similarities:
        # The mean of embeddings that are not normalized, whatever the similarity.
        scores = metrics.similarity(embedded, features.mean(1), cosine=name == "cosine")
        result[name] = {
            "text_to_video": metrics.retrieval_metrics(scores, match),
            "video_to_text": video_to_text(scores, match),
        }
    if steps:  # a segment's first window begins with it
        tasks = [s.task for s in segments]
        first = features[match, 0]
        result[CTR_RELEASE] = metrics.trimmed_step_accuracy(first, embedded, tasks, texts)
    return {**result, **account}


def _as_wide_as(features: np.ndarray, texts: Tensor) -> np.ndarray:
    """Features that texts can be compared with, although no video could be used."""
    lost = features.shape[2] == 1 and np.isnan(features).all()
    return features.repeat(texts.shape[1], axis=2) if lost else features


def video_to_text(scores: np.ndarray, match: np.ndarray) -> dict[str, float]:
    """Ranks of the best own text of each video; a video that cannot be used finds nothing.

    Args:
        scores: (Q, N), texts in rows, NaN for a video that cannot be used.
        match: (Q,) the video of each text.
    """
    back = scores.T.copy()
    best = np.zeros(len(back), dtype=np.int64)
    for n, row in enumerate(back):
        own = np.flatnonzero(match == n)
        best[n] = own[row[own].argmax()]
        row[own[own != best[n]]] = -np.inf  # set aside
    return metrics.retrieval_metrics(back, best)


def ordered_steps(
    viewer: Viewer, vocabulary: Vocabulary, data: CrossTask, cosine: bool = False
) -> dict[str, Any] | None:
    """CTR (a) and (b): one second assigned to each step, in the order of the task, in whole videos.

    A video that cannot be used misses all of its steps.
    """
    items = [Item(v.video_id, (v.task,), EverySecond()) for v in data.spans]
    seen = viewer.look(items, "seconds", viewer.model.encode_video, "whole videos")
    if not viewer.place.first:
        return None
    texts = {task: embed_texts(viewer.model, s, vocabulary) for task, s in data.tasks.items()}
    truth: dict[str, dict[str, np.ndarray]] = {}
    frames: dict[str, dict[str, dict[str, np.ndarray]]] = {n: {} for n in metrics.NORMALIZATIONS}
    for (video, spans), item in zip(data.spans.items(), seen, strict=True):
        steps = len(data.tasks[video.task])
        if item.features is None:
            seconds = math.ceil(max((end for _, _, end in spans), default=0.0))
            scores = np.full((seconds, steps), np.nan)
        else:
            scores = metrics.similarity(item.features, texts[video.task], cosine)
        truth.setdefault(video.task, {})[video.video_id] = seconds_of(spans, len(scores), steps)
        for normalize, chosen in frames.items():
            assigned = metrics.ordered_assignment(scores, normalize)
            chosen.setdefault(video.task, {})[video.video_id] = assigned
    return {
        "videos": len(items),
        "unannotated": len(data.unannotated),
        "partly_unusable": sum(s.features is not None and s.reason != "" for s in seen),
        CTR_OFFICIAL: metrics.crosstask_recall(frames["log_softmax"], truth, "pooled"),
        CTR_ZERO_SHOT: metrics.crosstask_recall(frames["none"], truth, "per_video"),
        **_account(len(items), _lost(seen, items)),
    }


def trimmed_steps(
    viewer: Viewer, vocabulary: Vocabulary, segments: list[Segment]
) -> dict[str, Any] | None:
    """CTR (c): one window at the start of each trimmed segment, compared with its task's steps."""
    texts, tasks = [s.text for s in segments], [s.task for s in segments]
    embedded = embed_texts(viewer.model, texts, vocabulary)
    found = segment_features(viewer, segments, 1, "trimmed segments")
    if found is None:
        return None
    features, row, account = found
    features = _as_wide_as(features, embedded)
    return {
        "segments": len(segments),
        "texts_without_known_words": without_known_words(texts, vocabulary),
        CTR_RELEASE: metrics.trimmed_step_accuracy(features[row, 0], embedded, tasks, texts),
        **account,
    }
