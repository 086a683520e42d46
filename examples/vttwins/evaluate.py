"""Evaluate a trained model by retrieval on annotated segments, and by recall of steps (CTR).

    python -m examples.vttwins.evaluate build/vttwins/run
    python -m examples.vttwins.evaluate --weights s3d.pth --word-vectors word2vec.pth \\
        --annotation validation_youcook.csv --videos youcook2 --size 224 --frames 32

The annotation is a CSV file with the columns end, start, task, text, video_id (YouCook2's). A
segment is seen through several windows, evenly spread over it; their embeddings are averaged, and
texts and segments compared by their dot product (or --similarity cosine). Both ways: text to video
and video to text. A segment whose video cannot be used is counted: it is last for its text and, as
a query of its own, which has no answer, at chance.

CTR has two meanings, both reported: "assigned", CrossTask's, for untrimmed videos: one window each
second, one window assigned to each step of the task, in order, a hit if it lies in the step's
interval; "trimmed", the release's: the best of the task's steps for each trimmed segment.

Requirements: torch, av, NumPy, tqdm; safetensors for files of that kind.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from examples.vttwins import metrics, weights
from examples.vttwins.benchmarks import Segment, read_segments
from examples.vttwins.data import ClipShape, crop, prepare_worker, to_clip
from examples.vttwins.model import VideoTextModel
from examples.vttwins.video import VideoError, VideoReader, find_video
from examples.vttwins.words import EVAL_WORDS, Vocabulary, load_word_vectors


class SegmentClips(Dataset[dict[str, Any]]):
    """Items {"video": windows uint8 (W, 3, T, S, S), "problem": why there is none, or ""}."""

    def __init__(
        self, segments: list[Segment], folder: Path, shape: ClipShape, windows: int
    ) -> None:
        self.segments, self.folder, self.shape, self.windows = segments, folder, shape, windows

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> dict[str, Any]:
        segment, shape = self.segments[index], self.shape
        video = torch.zeros(
            self.windows, 3, shape.frames, shape.size, shape.size, dtype=torch.uint8
        )
        problem = ""
        starts = metrics.segment_windows(segment.start, segment.end, self.windows, shape.seconds)
        try:
            with VideoReader(find_video(self.folder, segment.video_id)) as reader:
                for k, start in enumerate(starts):
                    pictures = reader.clip(float(start), shape.frames, shape.fps, shape.resize)
                    video[k] = to_clip(crop(pictures, shape.size), shape.frames)
        except VideoError as error:
            problem = error.reason
        return {"video": video, "problem": problem}


@torch.no_grad()
def embed_segments(
    model: VideoTextModel,
    segments: list[Segment],
    folder: Path,
    shape: ClipShape,
    windows: int = 10,
    workers: int = 0,
    batch: int = 8,
) -> tuple[Tensor, dict[str, int]]:
    """Embeddings (segments, windows, D), NaN for unusable ones, and their count by reason."""
    model.eval()
    device = next(model.parameters()).device
    clips = SegmentClips(segments, folder, shape, windows)
    loader = DataLoader(clips, batch, num_workers=workers, worker_init_fn=prepare_worker)
    rows: list[Tensor] = []
    problems: dict[str, int] = {}
    for item in tqdm(loader, desc="segments", mininterval=1):
        video = item["video"].to(device)
        count = video.shape[0]
        embedded = model.encode_video(video.flatten(0, 1).float().div_(255))
        embedded = embedded.unflatten(0, (count, windows)).cpu()
        for k, problem in enumerate(item["problem"]):
            if problem:
                problems[problem] = problems.get(problem, 0) + 1
                embedded[k] = torch.nan
        rows.append(embedded)
    return torch.cat(rows), problems


@torch.no_grad()
def embed_texts(model: VideoTextModel, texts: list[str], vocabulary: Vocabulary) -> Tensor:
    """Embeddings (texts, D); equal texts have equal ones to the last bit."""
    model.eval()
    device = next(model.parameters()).device
    place = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    words = vocabulary.encode_all(place, EVAL_WORDS)
    parts = [model.encode_text(part.to(device)).cpu() for part in words.split(1024)]
    return torch.cat(parts)[[place[text] for text in texts]]


def evaluate(
    model: VideoTextModel,
    vocabulary: Vocabulary,
    segments: list[Segment],
    folder: Path,
    shape: ClipShape,
    windows: int = 10,
    cosine: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """All numbers: {"pairs", "unusable", "text_to_video", "video_to_text", "trimmed_ctr"}."""
    videos, problems = embed_segments(model, segments, folder, shape, windows, workers)
    texts = embed_texts(model, [s.text for s in segments], vocabulary)
    return {
        "pairs": len(segments),
        "chance_R@10": 100 * min(10 / len(segments), 1.0),
        "unusable": problems,
        **retrieval_both_ways(texts, videos.mean(1), cosine),
        "trimmed_ctr": metrics.trimmed_step_accuracy(
            videos[:, 0], texts, [s.task for s in segments], [s.text for s in segments]
        )["mean"],
    }


def retrieval_both_ways(texts: Tensor, videos: Tensor, cosine: bool) -> dict[str, dict[str, float]]:
    """Text to video and video to text, of N pairs; a video of NaN is last and finds nothing."""
    scores = metrics.similarity(texts, videos, cosine)
    lost = np.isnan(scores).all(0)
    back = scores.T.copy()
    back[lost] = 0.0  # as a query of its own, it ranks its text behind all others
    back[lost, np.flatnonzero(lost)] = np.nan
    return {
        "text_to_video": metrics.retrieval_metrics(scores),
        "video_to_text": metrics.retrieval_metrics(back),
    }


def load_run(folder: Path) -> tuple[VideoTextModel, Vocabulary, ClipShape, dict[str, Any]]:
    """Model, vocabulary, clip shape and settings of a training run."""
    path = next(
        (folder / n for n in ("model.safetensors", "last.pt") if (folder / n).exists()), None
    )
    if path is None:
        raise SystemExit(f"{folder}: no model.safetensors and no last.pt; train first")
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    shape = ClipShape(
        settings["frames"], settings["fps"], settings["size"], settings["resize"] or None
    )
    return weights.load_model(path), Vocabulary.load(folder / "vocabulary.json"), shape, settings


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of a training run")
    parser.add_argument("--weights", type=Path, help="file of weights, without a run")
    parser.add_argument("--word-vectors", type=Path, help="its word vectors, for their vocabulary")
    parser.add_argument("--annotation", type=Path, help="default: test.csv of the run's data")
    parser.add_argument("--videos", type=Path, help="default: videos/ of the run's data")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--similarity", choices=("dot", "cosine"), default="dot")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if not (
        options.run
        or (options.weights and options.word_vectors and options.annotation and options.videos)
    ):
        parser.error("give a run, or --weights, --word-vectors, --annotation and --videos")
    try:
        result = _evaluate_files(options)
    except (ValueError, OSError) as error:  # a file that is missing or not what it should be
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    show(result)
    if options.run:
        (options.run / "evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def _evaluate_files(options: argparse.Namespace) -> dict[str, Any]:
    """The numbers for a run, or for weights and videos, of a command line."""
    if options.run:
        model, vocabulary, shape, settings = load_run(options.run)
        root = Path(settings["data"])
    else:
        model, root = weights.load_model(options.weights), Path()
        vocabulary, _ = load_word_vectors(options.word_vectors)
        rows = model.text_module.word_embd.num_embeddings
        if len(vocabulary) != rows:
            raise ValueError(
                f"{options.word_vectors} has {len(vocabulary)} words with the pad, the model of "
                f"{options.weights} {rows}"
            )
        shape = ClipShape(options.frames, options.fps, options.size, options.size)
    model.to(options.device)
    segments = read_segments(options.annotation or root / "test.csv")
    folder, cosine = options.videos or root / "videos", options.similarity == "cosine"
    result = evaluate(
        model, vocabulary, segments, folder, shape, options.windows, cosine, options.workers
    )
    return result


def show(result: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    print(f"{result['pairs']} pairs; chance R@10 {result['chance_R@10']:.1f} %")
    if result["unusable"]:
        print(f"unusable videos, ranked last: {result['unusable']}")
    print(f"{'':15}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'MedR':>7}")
    for name in ("text_to_video", "video_to_text"):
        row = result[name]
        cells = "".join(f"{row[key]:7.1f}" for key in ("R@1", "R@5", "R@10", "MedR"))
        print(f"{name.replace('_', ' '):15}{cells}")
    print(f"CTR, trimmed segments: {result['trimmed_ctr']:.1f} %")


if __name__ == "__main__":
    main()
