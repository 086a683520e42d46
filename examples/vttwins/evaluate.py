r"""Evaluate a checkpoint: on the paper's benchmarks, or a run on its own test videos.

A run on the test videos of its data folder:
    python -m examples.vttwins.evaluate build/vttwins/run

The paper's benchmarks, with the released lists or the data sets' own files as --annotation:
    python -m examples.vttwins.evaluate hmdb51 --weights s3d.pth \
        --annotation testTrainMulti_7030_splits --videos hmdb51
    python -m examples.vttwins.evaluate ucf101 --weights s3d.pth \
        --annotation ucfTrainTestlist --videos UCF-101
    python -m examples.vttwins.evaluate youcook2 --weights s3d.pth --word-vectors word2vec.pth \
        --annotation youcookii_annotations_trainval.json --videos youcook2
    python -m examples.vttwins.evaluate msrvtt --weights s3d.pth --word-vectors word2vec.pth \
        --annotation msrvtt_test.csv --videos msrvtt
    python -m examples.vttwins.evaluate crosstask --weights s3d.pth --word-vectors word2vec.pth \
        --annotation crosstask_release --videos crosstask

In place of --weights and --word-vectors, --checkpoint names a training run or a checkpoint in it.
crosstask takes the downloaded folder (tasks_primary.txt, videos.csv, videos_val.csv, annotations/)
for all three kinds of CTR, or the released list of trimmed segments for (c) alone.

What a model saw of the videos is kept under --cache, by the content of the weights and the
settings: the same line again decodes nothing. Several GPUs share the videos:
    torchrun --nproc-per-node 8 -m examples.vttwins.evaluate youcook2 ...

A segment is seen through several windows, evenly spread over it; their embeddings are averaged, and
texts and segments compared by their dot product, and by the cosine. A video that cannot be used is
counted, with the reason, and is never a hit.

Requirements: torch, av, NumPy, tqdm; scikit-learn for hmdb51 and ucf101; safetensors for files of
that kind.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from examples.vttwins import checkpoint, distributed, weights
from examples.vttwins.benchmarks import (
    Segment,
    read_crosstask,
    read_crosstask_tasks,
    read_hmdb51,
    read_msrvtt,
    read_segments,
    read_ucf101,
    read_video_list,
    read_youcook2,
    report,
)
from examples.vttwins.benchmarks.crosstask import TASKS, CrossTask, from_segments
from examples.vttwins.benchmarks.measure import (
    Viewer,
    ordered_steps,
    probe,
    retrieval,
    set_apart,
    trimmed_steps,
)
from examples.vttwins.benchmarks.table import BENCHMARKS
from examples.vttwins.data import ClipShape
from examples.vttwins.loading import LoadingError
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary, load_word_vectors

WINDOWS = 10  # of a segment of a run's own test videos


def evaluate(
    model: VideoTextModel,
    vocabulary: Vocabulary,
    segments: list[Segment],
    folder: Path,
    shape: ClipShape,
    windows: int = WINDOWS,
    cosine: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """Retrieval among annotated segments, in one process and without a cache.

    Returns:
        {"pairs", "chance_R@10", "unusable": {reason: count}, "text_to_video", "video_to_text": what
        retrieval_metrics returns, "CTR (c)": what trimmed_step_accuracy returns, ...}.
    """
    name = "cosine" if cosine else "dot"
    viewer = Viewer(model, Path(folder), shape, workers)
    result = retrieval(viewer, vocabulary, segments, windows, (name,), steps=True)
    assert result is not None  # the only process is the first
    return {**result, **result.pop(name)}


def checkpoint_of_run(folder: Path) -> Path:
    """The file of weights in the folder of a run: the last written, as a run may go on."""
    paths = [folder / name for name in ("last.pt", "model.safetensors")]
    paths = [path for path in paths if path.exists()]
    if not paths:
        raise SystemExit(f"{folder}: no model.safetensors and no last.pt; train first")
    return max(reversed(paths), key=lambda path: path.stat().st_mtime_ns)


def load_run(folder: Path) -> tuple[VideoTextModel, Vocabulary, ClipShape, dict[str, Any]]:
    """Model, vocabulary, clip shape and settings of a training run.

    Raises:
        SystemExit, ValueError, OSError: a file is missing, or not that of the others.
    """
    path = checkpoint_of_run(folder)
    settings = checkpoint.clip_settings(folder)
    shape = ClipShape(
        settings["frames"], settings["fps"], settings["size"], settings["resize"] or None
    )
    source = folder / "vocabulary.json"
    vocabulary, model = Vocabulary.load(source), weights.load_model(path)
    weights.check_words(vocabulary, source, model, path)
    return model, vocabulary, shape, settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", metavar="BENCHMARK|RUN", help=f"{', '.join(BENCHMARKS)}, or the folder of a run"
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="folder of a run, or a file of weights in one")
    add("--weights", type=Path, help="file of weights of any origin")
    add("--word-vectors", type=Path, help="the word vectors of --weights, for their vocabulary")
    add("--dictionary", type=Path, help="words of a .pth file; default dict.npy beside it")
    add("--annotation", type=Path, help="list, file or folder; of a run: test.csv of its data")
    add("--videos", type=Path, help="folder of videos; of a run: videos/ of its data")
    add("--split", type=Path, help="msrvtt: CSV file with a column video_id, of the ids to keep")
    add("--subset", choices=("validation", "training"), help="youcook2: part of a JSON file")
    add("--segments", type=Path, help="crosstask: list of trimmed segments for CTR (c)")
    add("--test-list", type=Path, help="crosstask: lines task,video, exactly the test videos")
    add("--training-list", type=Path, help="crosstask: lines task,video, not to be tested")
    add("--windows", type=int, help="windows of a segment; not for crosstask, which has one")
    add("--frames", type=int, help="frames of a window; default: the protocol's, the run's")
    add("--fps", type=float, help="frames a second; default likewise; not for hmdb51 and ucf101")
    add("--size", type=int, help="side of a picture; default 224, the run's")
    add("--similarity", choices=("dot", "cosine"), help="of a run; default dot")
    add("--cache", type=Path, help="folder of features; default build/vttwins/features")
    add("--out", type=Path, help="folder of results; default that of the run, else build/vttwins")
    add("--workers", type=int, default=1, help="processes that decode, per process (1)")
    add("--device", help="cpu or cuda; default: a GPU if there is one")
    return parser


# Options that act in some forms only; the others refuse them.
ALL = frozenset({"annotation", "videos", "frames", "size", "cache", "out", "workers", "device"})
SOURCE = ALL | {"checkpoint", "weights"}
TEXTS = SOURCE | {"word_vectors", "dictionary", "fps"}
ACTS = {
    "hmdb51": SOURCE | {"windows"},
    "ucf101": SOURCE | {"windows"},
    "youcook2": TEXTS | {"windows", "subset"},
    "msrvtt": TEXTS | {"windows", "split"},
    "crosstask": TEXTS | {"segments", "test_list", "training_list"},
    "run": ALL | {"windows", "fps", "similarity"},
}


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse, with a sentence, options that would not act or that are missing or out of range."""
    benchmark = options.what if options.what in BENCHMARKS else "run"
    for name, value in vars(options).items():
        if isinstance(value, Path) and name not in ("cache", "out") and not value.exists():
            parser.error(f"--{name.replace('_', '-')} {value} does not exist")
    given = {name for name, value in vars(options).items() if value is not None} - {"what"}
    idle = sorted(given - ACTS[benchmark])
    if idle:
        form = "the evaluation of a run" if benchmark == "run" else benchmark
        parser.error(f"--{idle[0].replace('_', '-')} does not act in {form}")
    for name in ("windows", "frames", "size", "fps"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name} must be more than 0, got {value}")
    if options.workers < 0:
        parser.error(f"--workers must be at least 0, got {options.workers}")
    probes = benchmark != "run" and BENCHMARKS[benchmark].kind == "probe"
    if probes and importlib.util.find_spec("sklearn") is None:  # said before the videos are seen
        parser.error(f"{benchmark} needs scikit-learn, which is not installed")
    if benchmark == "run":
        if not Path(options.what).is_dir():
            names = ", ".join(BENCHMARKS)
            parser.error(f"{options.what} is neither the folder of a run nor one of {names}")
        return
    if (options.checkpoint is None) == (options.weights is None):
        parser.error("give either --checkpoint or --weights")
    if options.annotation is None or options.videos is None:
        parser.error(f"{benchmark} needs --annotation and --videos")
    if options.weights and options.word_vectors is None and "word_vectors" in ACTS[benchmark]:
        parser.error(f"{benchmark} compares with texts: --weights needs --word-vectors")
    if options.dictionary and not options.word_vectors:
        parser.error("--dictionary holds the words of --word-vectors, which is missing")
    if options.test_list and options.training_list:
        parser.error("give --test-list or --training-list, not both")


def _vocabulary(options: argparse.Namespace, path: Path, model: VideoTextModel) -> Vocabulary:
    """The words of a model: of --word-vectors, or those beside a run's checkpoint."""
    if options.word_vectors:
        source = options.word_vectors
        vocabulary, _ = load_word_vectors(source, options.dictionary)
    else:
        source = path.parent / "vocabulary.json"
        if not source.exists():
            raise ValueError(f"{source} is missing: give the --word-vectors of the checkpoint")
        vocabulary = Vocabulary.load(source)
    weights.check_words(vocabulary, source, model, path)
    return vocabulary


def _shape(options: argparse.Namespace, default: ClipShape) -> ClipShape:
    """The default, changed by what was given; a new size scales the shorter side to it."""
    given = {n: getattr(options, n) for n in ("frames", "fps", "size")}
    shape = replace(default, **{n: value for n, value in given.items() if value is not None})
    return shape if options.size is None else replace(shape, resize=options.size)


def _evaluate_run(options: argparse.Namespace, place: distributed.Place) -> dict[str, Any] | None:
    """Retrieval and CTR of a run on its own test videos."""
    folder = Path(options.what)
    model, vocabulary, shape, settings = load_run(folder)
    root = Path(settings["data"])
    own = {"annotation": root / "test.csv", "videos": root / "videos"}
    lacking = [n for n, path in own.items() if getattr(options, n) is None and not path.exists()]
    if lacking:  # a relative folder, seen from another one than that of the training
        give = " and ".join(f"--{name}" for name in lacking)
        raise SystemExit(
            f"{own[lacking[0]]} does not exist, where the run had its data: give {give}"
        )
    annotation = options.annotation or root / "test.csv"
    segments = read_segments(annotation)
    shape, similarity = _shape(options, shape), options.similarity or "dot"
    windows, cache = options.windows or WINDOWS, options.cache or folder / "features"
    model.to(place.device)
    videos = options.videos or root / "videos"
    viewer = Viewer(model, videos, shape, options.workers, cache, place, "run")
    result = {
        "benchmark": str(annotation),
        "checkpoint": str(checkpoint_of_run(folder)),
        "weights": viewer.weights,
        "clip": asdict(shape),
        "windows": windows,
    }
    tasks, order, remarks = annotation.parent / TASKS, None, []
    if tasks.exists():
        order = from_segments(segments, read_crosstask_tasks(tasks))
    else:
        remarks = [f"CTR (a) and (b) need the order of the steps; there is no {tasks}."]
    found = retrieval(viewer, vocabulary, segments, windows, (similarity,), steps=True)
    steps = order and ordered_steps(viewer, vocabulary, order, similarity == "cosine")
    if found is None:
        return None
    found |= {"similarity": similarity, **found.pop(similarity)}
    # A video that opens may lose a segment, so the whole videos have an account of their own.
    return {**result, **set_apart(steps or {}, "whole"), **found, "remarks": remarks}


def _evaluate_benchmark(
    options: argparse.Namespace, place: distributed.Place
) -> dict[str, Any] | None:
    """The numbers of a benchmark of the paper."""
    name, benchmark = options.what, BENCHMARKS[options.what]
    path = options.weights or options.checkpoint
    default = ClipShape(benchmark.frames, benchmark.fps)
    if path.is_dir():
        path = checkpoint_of_run(path)
    if options.checkpoint and (path.parent / "settings.json").exists():
        settings = checkpoint.clip_settings(path.parent)
        default = replace(default, size=settings["size"], resize=settings["resize"] or None)
    shape, windows = _shape(options, default), options.windows or benchmark.windows
    data = _read(options)  # before the model and its words, which take longer
    model = weights.load_model(path)
    model.to(place.device)
    cache = options.cache or Path("build/vttwins/features")
    viewer = Viewer(model, options.videos, shape, options.workers, cache, place, name)
    found: dict[str, Any] | None
    if benchmark.kind == "probe":
        found = probe(viewer, data, windows)
    elif benchmark.kind == "retrieval":
        found = retrieval(viewer, _vocabulary(options, path, model), data, windows)
    else:
        found = _crosstask(viewer, _vocabulary(options, path, model), *data)
    if found is None:
        return None
    return {
        "benchmark": name,
        "checkpoint": str(path),
        "weights": viewer.weights,
        "clip": asdict(shape),
        "windows": windows,
        **found,
    }


def _read(options: argparse.Namespace) -> Any:
    """What the annotation of a benchmark holds."""
    path = options.annotation
    if options.what == "hmdb51":
        return read_hmdb51(path)
    if options.what == "ucf101":
        return read_ucf101(path)
    if options.what == "youcook2":
        return read_youcook2(path, options.subset)
    if options.what == "msrvtt":
        return read_msrvtt(path, read_video_list(options.split) if options.split else None)
    if path.is_dir():
        data = read_crosstask(path, options.test_list, options.training_list)
        return data, read_segments(options.segments) if options.segments else data.segments()
    for name in ("segments", "test_list", "training_list"):
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} goes with a folder as --annotation, {path} is a list "
                "of segments"
            )
    return None, read_segments(path)


def _crosstask(
    viewer: Viewer, vocabulary: Vocabulary, data: CrossTask | None, segments: list[Segment]
) -> dict[str, Any] | None:
    """The three kinds of CTR, or (c) alone where the order of the steps is not known."""
    trimmed = trimmed_steps(viewer, vocabulary, segments)
    steps = None if data is None else ordered_steps(viewer, vocabulary, data)
    if trimmed is None:
        return None
    if steps is None:
        remark = f"CTR (a) and (b) need the folder of CrossTask with {TASKS} as --annotation."
        return {**trimmed, "remarks": [remark]}
    return {**set_apart(trimmed, "trimmed"), **steps}


def _refuse_nothing(result: dict[str, Any]) -> None:
    """Leave with a sentence where no video could be used: a wrong folder, most likely."""
    if sum(result["unusable"].values()) == result["looked_at"]:
        video, _, message = result["unusable_videos"][0]
        raise SystemExit(f"no video can be used; the first, {video}: {message}")


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(options, parser)
    place = distributed.start(options.device)
    is_run = options.what not in BENCHMARKS
    folder = options.out or (Path(options.what) if is_run else Path("build/vttwins"))
    path = folder / ("evaluation" if is_run else options.what)
    try:
        try:  # an evaluation may take hours, so this is said before it
            if place.first:
                report.try_to_write(path)
        except OSError as error:
            raise SystemExit(f"--out {folder} cannot be written: {error}") from None
        try:
            result = (_evaluate_run if is_run else _evaluate_benchmark)(options, place)
        except (ValueError, OSError, LoadingError) as error:  # mostly a file that does not fit
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        except KeyboardInterrupt:
            print("Interrupted. The same line goes on with what was kept.", file=sys.stderr)
            raise SystemExit(130) from None
        if result is not None:
            _refuse_nothing(result)
            try:
                print(report.write(result, path))
            except OSError as error:
                print(report.markdown(result))  # what was found is not lost
                raise SystemExit(f"{path}.json and .md are not written: {error}") from None
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()
