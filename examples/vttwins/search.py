r"""Find the moment of a sentence in a folder of videos.

    python -m examples.vttwins.search build/vttwins/run "the red ring spins" \
        build/vttwins/data/videos

The same in Python:

    from pathlib import Path
    from examples.vttwins.evaluate import load_run
    from examples.vttwins.search import embed_text, embed_videos, search

    model, vocabulary, shape, _ = load_run(Path("build/vttwins/run"))
    videos = embed_videos(model, Path("build/vttwins/data/videos"), shape)
    sentence = embed_text(model, vocabulary, "the red ring spins")
    for moment in search(sentence, videos, top=3):
        print(moment.video, moment.clock, f"{moment.score:.2f}")

Weights of any other origin serve as well: weights.load_model for the model, words.load_word_vectors
for the vocabulary, data.ClipShape(32, 10.0) for clips as in the evaluation on CrossTask.

Each second of a video is seen in the window that evaluation on CrossTask uses, as long as the clips
of training, the second in its middle; a sentence is compared with it by the cosine. What was seen
is kept in --cache under the content of the weights, so that the next sentence decodes nothing.

Requirements: torch, av, NumPy, tqdm.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.vttwins.benchmarks.extraction import EverySecond, Item, see
from examples.vttwins.benchmarks.measure import Viewer, embed_texts
from examples.vttwins.data import ClipShape
from examples.vttwins.distributed import device_of
from examples.vttwins.evaluate import load_run
from examples.vttwins.loading import LoadingError
from examples.vttwins.metrics import similarity
from examples.vttwins.model import VideoTextModel
from examples.vttwins.video import VideoError, videos_in
from examples.vttwins.words import EVAL_WORDS, Vocabulary

CACHE = Path("build/vttwins/features")


@dataclass(frozen=True)
class Moment:
    """A second of a video and its cosine with the sentence."""

    video: str
    second: int
    score: float

    @property
    def clock(self) -> str:
        """The second as players show it.

        Example:
            >>> Moment("a.mp4", 3725, 0.5).clock
            '1:02:05'
        """
        minutes, seconds = divmod(self.second, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@dataclass(frozen=True)
class Videos:
    """Embeddings of all seconds of some videos.

    Row k of ``embeddings`` (N, D) is second ``second[k]`` of ``names[video[k]]``. ``unusable`` has
    (name, "reason: message") of each video that could not be read.
    """

    names: list[str]
    video: np.ndarray
    second: np.ndarray
    embeddings: np.ndarray
    unusable: list[tuple[str, str]]


def embed_video(model: VideoTextModel, path: str | Path, shape: ClipShape) -> np.ndarray:
    """Embeddings float32 (T, D) of the whole seconds of a video, not normalized.

    Row t is of the window of ``shape`` with second t in its middle, or the nearest whole window at
    the ends of the video. NaN where the file holds no picture.

    Raises:
        VideoError: the video cannot be used; the message says why.
    """
    viewer = Viewer(model, Path(path).parent, shape)
    item = Item(Path(path).name, (), EverySecond())
    pairs = [(item, Path(path))]
    ((_, seen),) = see(pairs, model.encode_video, shape, viewer.device, quiet=True)
    if seen.features is None:
        raise VideoError(seen.reason, seen.message)
    return seen.features


def embed_videos(
    model: VideoTextModel,
    folder: str | Path,
    shape: ClipShape,
    workers: int = 0,
    cache: Path | None = None,
) -> Videos:
    """Embeddings of all seconds of all videos under a folder; what cannot be read is reported.

    Args:
        model: put into evaluation mode.
        folder: searched through, with the folders in it.
        shape: of a clip, as in training.
        workers: processes that decode.
        cache: folder that keeps what was seen; None keeps nothing.

    Raises:
        ValueError: there is no video under the folder, or none that can be used.
    """
    names = videos_in(Path(folder))
    if not names:
        raise ValueError(f"no videos under {folder}; it is to be the folder that holds them")
    viewer = Viewer(model, Path(folder), shape, workers, cache)
    items = [Item(name, (), EverySecond()) for name in names]
    seen = viewer.look(items, "seconds", model.encode_video, "videos")
    unusable = [
        (name, f"{s.reason}: {s.message}")
        for name, s in zip(names, seen, strict=True)
        if s.features is None
    ]
    usable = [(k, s.features) for k, s in enumerate(seen) if s.features is not None]
    if not usable:
        raise ValueError(f"none of the {len(names)} videos can be used, such as {unusable[0][1]}")
    video = np.concatenate([np.full(len(features), k) for k, features in usable])
    second = np.concatenate([np.arange(len(features)) for _, features in usable])
    embeddings = np.concatenate([features for _, features in usable])
    shown = ~np.isnan(embeddings).any(1)
    return Videos(names, video[shown], second[shown], embeddings[shown], unusable)


def embed_text(model: VideoTextModel, vocabulary: Vocabulary, sentence: str) -> np.ndarray:
    """Embedding float32 (D,) of a sentence, not normalized.

    Raises:
        ValueError: no word of the sentence is in the vocabulary.
    """
    if not vocabulary.encode(sentence, EVAL_WORDS).any():
        raise ValueError(
            f"no word of {sentence!r} is among the {len(vocabulary.words)} words of the model; "
            "words keep their case"
        )
    return embed_texts(model, [sentence], vocabulary)[0].numpy()


def search(sentence: np.ndarray, videos: Videos, top: int = 5, apart: float = 3.0) -> list[Moment]:
    """The moments that fit a sentence best, the best first.

    Args:
        sentence: (D,), from ``embed_text``.
        videos: from ``embed_videos``.
        top: moments wanted at most.
        apart: seconds that two moments of one video are at least apart, as neighboring windows show
            nearly the same; 0 allows all.

    Raises:
        ValueError: ``top`` is less than 1, ``apart`` negative, or the sizes do not fit.
    """
    if top < 1 or not apart >= 0:
        raise ValueError(f"need top >= 1 and apart >= 0, got {top}, {apart}")
    if sentence.shape != videos.embeddings.shape[1:]:
        raise ValueError(
            f"sentence must be {videos.embeddings.shape[1:]} as the videos, got {sentence.shape}"
        )
    scores = similarity(sentence[None], videos.embeddings, cosine=True)[0]
    moments: list[Moment] = []
    for k in np.argsort(-scores, kind="stable"):
        name, second = videos.names[videos.video[k]], int(videos.second[k])
        if all(m.video != name or abs(m.second - second) >= apart for m in moments):
            moments.append(Moment(name, second, float(scores[k])))
            if len(moments) == top:
                break
    return moments


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("sentence", help="what to look for")
    parser.add_argument("folder", type=Path, help="folder of videos")
    parser.add_argument("--top", type=int, default=5, help="moments to show (5)")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of features ({CACHE})")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode (1)")
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    options = parser.parse_args(arguments)
    if options.top < 1 or options.workers < 0:
        parser.error(f"need --top >= 1, --workers >= 0: got {options.top}, {options.workers}")
    device = device_of(options.device)
    try:
        model, vocabulary, shape, _ = load_run(options.run)
        sentence = embed_text(model.to(device), vocabulary, options.sentence)
        videos = embed_videos(model, options.folder, shape, options.workers, options.cache)
    except (ValueError, OSError, LoadingError) as error:
        raise SystemExit(f"{error}") from error
    except KeyboardInterrupt:
        print("Interrupted. The same line goes on with what was kept.", file=sys.stderr)
        raise SystemExit(130) from None
    for moment in search(sentence, videos, options.top):
        print(f"{moment.score:6.3f}  {moment.clock:>8}  {moment.video}")
    for _, why in videos.unusable:
        print(f"not searched: {why}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
