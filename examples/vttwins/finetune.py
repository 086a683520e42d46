r"""Fine-tune a model for retrieval, on training lists in the style of YouCook2 or MSR-VTT.

On the generated set, from the run of the demo, a few minutes on two CPU cores:
    python -m examples.vttwins.finetune youcook2 --start build/vttwins/run \
        --data build/vttwins/data/videos --train-csv build/vttwins/data/train_segments.csv \
        --test-csv build/vttwins/data/test.csv --out build/vttwins/finetuned \
        --frames 8 --fps 5 --size 32 --resize 36 --batch 32 --epochs 3

YouCook2 and MSR-VTT, from a file of weights with its word vectors, on eight GPUs:
    torchrun --nproc-per-node 8 -m examples.vttwins.finetune youcook2 --start s3d.pth \
        --word-vectors word2vec.pth --data /data/youcook2 --out runs/youcook2 --bf16 \
        --train-csv youcookii_annotations_trainval.json --test-csv validation_youcook.csv
    torchrun --nproc-per-node 8 -m examples.vttwins.finetune msrvtt --start s3d.pth \
        --word-vectors word2vec.pth --data /data/msrvtt --out runs/msrvtt --bf16 \
        --train-csv MSRVTT_data.json --train-ids MSRVTT_train.9k.csv --test-csv msrvtt_test.csv

The lists are those that evaluate.py reads. A sample is a clip of a segment and one of its
sentences, both drawn anew in each epoch. The loss is the symmetric InfoNCE on cosines. The
statistics of BatchNorm and the word vectors stay as they are. The test set is evaluated before the
first step and after the last, and never in between: --test-csv, its videos, --eval-windows and the
clips may not change on the way. --holdout keeps a share of the training videos for --eval-every.
Interrupting, going on and extending are as in train.py.

The paper gives results of fine-tuning and no settings: the defaults here are ours.

Requirements: as train.py.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vttwins import build, checkpoint, config, distributed, evaluate, weights
from examples.vttwins.benchmarks import measure
from examples.vttwins.benchmarks.segments import Segment
from examples.vttwins.benchmarks.videos import locate
from examples.vttwins.captioned import SegmentSamples, captioned, held_out, read_list
from examples.vttwins.config import Settings, opt
from examples.vttwins.distributed import Place
from examples.vttwins.model import VideoTextModel
from examples.vttwins.run import Run, run_task
from examples.vttwins.words import Vocabulary, load_word_vectors

RESULT = checkpoint.FINETUNING
# What the numbers before and after have in common, and how a message calls it.
MEASURED = {
    "segments": "the segments of --test-csv", "videos": "the test videos in --data",
    "windows": "--eval-windows", "clip": "the shape of a clip", "start": "the weights of --start",
}  # fmt: skip
REMEDY = (
    "Give what was given then; or leave out --test-csv, to go on without a comparison; or "
    "--restart to begin anew."
)
HEADS = ("fc.", "text_module.")


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """Settings of a fine-tuning; those of ``Settings`` that have no part in it are hidden."""

    HIDDEN: ClassVar[tuple[str, ...]] = (
        "benchmark", "front_end", "embedding_dim", "weights", "clips", "captions", "operator",
        "cost", "contrastive", "gamma", "dummy_cost", "origin_count", "direction", "tda", "tda_tau",
        "warmup_from", "warmup", "cross_rank_bn",
    )  # fmt: skip

    data: str = opt("data/youcook2", "folder of the videos, in folders by task or not")
    train_csv: str = opt("train.csv", "list of training segments, CSV or the data set's JSON")
    train_ids: str = opt("", "CSV file with a column video_id: train on these videos alone")
    test_csv: str = opt("", "list of test segments, to evaluate before and after; empty: none")
    start: str = opt("", "folder of a run, or file of weights, to begin with")
    word_vectors: str = opt("", "word vectors of a file of weights; a run has its words")
    frames: int = opt(32, "frames in a clip", least=1)
    fps: float = opt(10.0, "frames per second of a clip", least=0.01)
    temperature: float = opt(0.05, "temperature of the contrast", least=1e-6)
    epochs: int = opt(20, "passes over the segments; more than before extend a run", least=1)
    learning_rate: float = opt(1e-5, "peak learning rate of the video encoder", least=1e-12)
    head_rate: float = opt(1e-4, "peak learning rate of the heads", least=0)
    warmup_from: float = opt(0.0, "learning rate at step 0", least=0)
    warmup_share: float = opt(0.1, "share of the steps for linear warm-up", least=0)
    clip_norm: float = opt(1.0, "largest norm of the gradient; 0: no limit", least=0)
    holdout: float = opt(0.0, "share of the training videos kept for --eval-every", least=0)
    eval_every: int = opt(0, "steps between evaluations on the videos of --holdout", least=0)
    eval_windows: int = opt(10, "windows of a segment in evaluations", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.start:
            raise ValueError("start must name a run or a file of weights to begin with")
        if self.holdout >= 1 or self.warmup_share > 1:
            raise ValueError(
                f"holdout must be below 1 and warmup_share at most 1, got {self.holdout} and "
                f"{self.warmup_share}"
            )
        if self.eval_every and not self.holdout:
            raise ValueError(
                "eval_every evaluates on training videos that are held out; give holdout, such as "
                "0.05"
            )

    def warmup_of(self, steps: int) -> int:
        return round(self.warmup_share * steps)


PRESETS: dict[str, dict[str, Any]] = {
    "youcook2": {"benchmark": "youcook2", "out": "runs/youcook2"},
    "msrvtt": {
        "benchmark": "msrvtt", "data": "data/msrvtt", "out": "runs/msrvtt", "fps": 20.0,
        "eval_windows": 8,
    },
}  # fmt: skip


def info_nce(video: Tensor, text: Tensor, rows: slice, temperature: float) -> Tensor:
    """Symmetric InfoNCE on cosines, the mean over the anchors ``rows`` of the global batch.

    Args:
        video, text: (B, D) normalized; row k of one belongs to row k of the other.

    Example:
        >>> import torch
        >>> x = torch.eye(2)
        >>> float(info_nce(x, x, slice(None), 1.0))  # log(1 + 1/e)
        0.3132...
    """
    target = torch.arange(video.shape[0], device=video.device)[rows]
    by_text = F.cross_entropy(text[rows] @ video.T / temperature, target)
    by_video = F.cross_entropy(video[rows] @ text.T / temperature, target)
    return (by_text + by_video) / 2


class Retrieval:
    """Learning to find segments by sentences: see the docstring of this file."""

    clips = 1

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings = settings
        for path, name in (
            (settings.start, "start"), (settings.data, "data"), (settings.train_csv, "train-csv"),
            (settings.train_ids, "train-ids"), (settings.test_csv, "test-csv"),
            (settings.word_vectors, "word-vectors"),
        ):  # fmt: skip
            if path and not Path(path).exists():
                raise SystemExit(f"{path} does not exist; --{name} names it")
        self.shape = build.clip_shape(settings)
        listed = read_list(settings.benchmark, settings.train_csv, settings.train_ids, True)
        every = captioned(listed)
        out = held_out(every, settings.holdout, settings.seed) if settings.holdout else set()
        self.spans = [item for item in every if item.video_id not in out]
        self.held_out = [s for s in listed if s.video_id in out]
        self.items = len(self.spans)
        self.test: list[Segment] = []
        if settings.test_csv:
            self.test = read_list(settings.benchmark, settings.test_csv, "", False)
        both = {item.video_id for item in every} & {s.video_id for s in self.test}
        if both:
            raise ValueError(
                f"{len(both)} videos are in the training list and in the test list, such as "
                f"{min(both)}; --train-ids chooses the training videos"
            )
        # A file of weights does not hold the words of its vectors.
        self.start_run = Path(settings.start) if Path(settings.start).is_dir() else None
        if (self.start_run is None) != bool(settings.word_vectors):
            raise SystemExit(
                f"--start {settings.start} is a run, which has its words: leave out --word-vectors"
                if self.start_run
                else f"--start {settings.start} is a file: give its --word-vectors"
            )

    @property
    def weights_file(self) -> Path:
        return (
            evaluate.checkpoint_of_run(self.start_run)
            if self.start_run
            else Path(self.settings.start)
        )

    def digests(self) -> dict[str, str]:
        lines = (str(dataclasses.astuple(span)) for span in self.spans)
        found = build.digests(self.settings)
        self.start_digest = checkpoint.digest(self.weights_file)
        found |= {
            "start": self.start_digest,
            "train_csv": checkpoint.digest_of_lines(lines),
        }
        return found

    @property
    def _words_file(self) -> Path:
        name = self.settings.word_vectors
        return self.start_run / "vocabulary.json" if self.start_run else Path(name)

    def vocabulary(self) -> Vocabulary | None:
        return Vocabulary.load(self._words_file) if self.start_run else None

    def model(self, vocabulary: Vocabulary | None) -> tuple[VideoTextModel, Vocabulary]:
        settings = self.settings
        model = weights.load_model(self.weights_file)
        if vocabulary is None:
            vocabulary, _ = load_word_vectors(
                settings.word_vectors, settings.dictionary or None, settings.word_limit or None
            )
        weights.check_words(vocabulary, self._words_file, model, self.weights_file)
        config.check_front_end(model.front_end, settings.size, settings.frames)
        model.text_module.word_embd.weight.requires_grad_(False)
        model.checkpointing = settings.checkpointing
        return model, vocabulary

    def dataset(self, vocabulary: Vocabulary) -> SegmentSamples:
        settings = self.settings
        return SegmentSamples(
            self.spans, settings.data, vocabulary, self.shape, settings.seed, settings.batch
        )

    def groups(self, model: VideoTextModel) -> list[dict[str, Any]]:
        heads: list[nn.Parameter] = []
        encoder: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (heads if name.startswith(HEADS) else encoder).append(parameter)
        scale = self.settings.head_rate / self.settings.learning_rate
        return [{"params": encoder, "scale": 1.0}, {"params": heads, "scale": scale}]

    def train_mode(self, network: nn.Module) -> None:
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eval()  # its statistics stay as they are

    def loss(self, network: nn.Module, batch: dict[str, Any], number: int, place: Place) -> Tensor:
        video, words = build.to_device(batch, place.device)
        flat = video.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
        v, t = network(flat, words.flatten(0, 1))
        with torch.autocast(place.device.type, enabled=False):  # no bfloat16 for what is compared
            wide = torch.promote_types(v.dtype, torch.float32)
            v, t = (distributed.gather(F.normalize(x.to(wide), dim=-1)) for x in (v, t))
            count = len(video)
            rows = slice(place.rank * count, (place.rank + 1) * count)
            return info_nce(v, t, rows, self.settings.temperature)

    def evaluate(self, model: VideoTextModel, vocabulary: Vocabulary) -> dict[str, Any]:
        """Retrieval by cosine among the videos that are held out of training."""
        result = self._retrieval(self.held_out, model, vocabulary)
        return {**result, **result["cosine"]}

    def _retrieval(
        self, items: list[Segment], model: VideoTextModel, vocabulary: Vocabulary
    ) -> dict[str, Any]:
        settings = self.settings
        viewer = measure.Viewer(model, Path(settings.data), self.shape, settings.workers)
        result = measure.retrieval(viewer, vocabulary, items, settings.eval_windows)
        assert result is not None  # the only process is the first
        return result

    def _measured(self) -> dict[str, Any]:
        """What an evaluation on the test set measures; another one is not comparable."""
        videos = sorted({(s.video_id, s.task) for s in self.test})
        files = [locate(self.settings.data, video, (task,)) for video, task in videos]
        # Sizes, as to read all videos for a digest would take as long as to evaluate them.
        sizes = [path.stat().st_size if path.is_file() else None for path in files]
        segments = (str(dataclasses.astuple(s)) for s in self.test)
        return {
            "segments": checkpoint.digest_of_lines(segments),
            "videos": checkpoint.digest_of_lines(map(str, zip(videos, sizes, strict=True))),
            "windows": self.settings.eval_windows,
            "clip": dataclasses.asdict(self.shape),
            "start": self.start_digest,
        }

    def going_on(self, out: Path, step: int) -> None:
        """Refuse a test that is not the one before the first step."""
        if not self.test or not step:
            return
        path = out / RESULT
        if not path.exists():
            raise SystemExit("--test-csv: too late to evaluate before the first step; leave it out")
        then, now = read_result(path)["measured"], self._measured()
        changed = []
        for name, text in MEASURED.items():
            if then.get(name) != now[name]:
                digest = name in ("segments", "videos", "start")
                other = " are others" if digest else f": {then.get(name)} then, {now[name]} now"
                changed.append(text + other)
        if changed:
            raise SystemExit(
                f"The test before the first step, in {path}, was another one than is asked for now "
                f"({'; '.join(changed)}), so before and after would not compare. {REMEDY}"
            )

    def started(self, run: Run) -> None:
        """Evaluate on the test set before the first step."""
        if self.test and run.step == 0:
            before = self._retrieval(self.test, run.model, run.vocabulary)
            result = {"measured": self._measured(), "before": before}
            checkpoint.write_text(run.out / RESULT, json.dumps(result, indent=1))

    def finished(self, run: Run) -> None:
        """Evaluate on the test set after the last step, and say by how much it is better."""
        if not self.test:
            return
        result = read_result(run.out / RESULT)
        result["after"] = self._retrieval(self.test, run.model, run.vocabulary)
        result["steps"] = run.steps
        checkpoint.write_text(run.out / RESULT, json.dumps(result, indent=1))
        print(table(result))


def read_result(path: Path) -> dict[str, Any]:
    """The test before the first step, and what it was measured on.

    Raises:
        SystemExit: the file is damaged, or does not say it.
    """
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise SystemExit(f"{path} is damaged: {error}. {REMEDY}") from None
    parts = result if isinstance(result, dict) else {}
    if not all(isinstance(parts.get(name), dict) for name in ("measured", "before")):
        raise SystemExit(f"{path} does not say what it was measured on. {REMEDY}")
    return parts


def table(result: dict[str, Any]) -> str:
    """Numbers before and after as Markdown, and their difference."""
    columns = ("R@1", "R@5", "R@10", "MedR")
    after = result["after"]
    lines = [
        f"{after['pairs']} sentences, {result['steps']} steps; chance R@10 is "
        f"{after['chance_R@10']:.1f} %",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---:|" * len(columns),
    ]
    for similarity in ("dot", "cosine"):
        for way in ("text_to_video", "video_to_text"):
            before, now = (result[when][similarity][way] for when in ("before", "after"))
            cells = " | ".join(
                f"{before[c]:.1f} -> {now[c]:.1f} ({now[c] - before[c]:+.1f})" for c in columns
            )
            lines.append(f"| {way.replace('_', ' ')}, {similarity} | {cells} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    settings, options = config.parse(arguments, __doc__, FinetuneSettings, PRESETS)
    run_task(Retrieval, settings, options.restart)


if __name__ == "__main__":
    main()
