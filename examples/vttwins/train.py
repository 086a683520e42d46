r"""Train VT-TWINS. From the root of the checkout:

A newcomer's run, minutes on two CPU cores (the set is written by synthetic.py):
    python -m examples.vttwins.synthetic --out build/vttwins/data
    python -m examples.vttwins.train demo

The same on two processes, with the gradient of one (without --cross-rank-bn each process has the
BatchNorm statistics of its own clips, as released):
    torchrun --nproc-per-node 2 -m examples.vttwins.train demo --cross-rank-bn --workers 1 \
        --threads 1 --out build/vttwins/run2

The paper's hyperparameters on eight GPUs of one machine:
    torchrun --nproc-per-node 8 -m examples.vttwins.train paper --data /data/howto100m \
        --word-vectors /data/word2vec.pth --bf16

On four such machines: this line on each of them, "head" being the name of one; --data and --out are
folders that all of them see:
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint head:29500 \
        -m examples.vttwins.train paper --data /data/howto100m --word-vectors /data/word2vec.pth \
        --out /data/runs/vttwins --bf16

A row of the paper's ablation (plain cosine; --no-contrastive and --gamma make the others):
    torchrun --nproc-per-node 8 -m examples.vttwins.train ablation --cost cosine \
        --data /data/howto100m --train-csv tenth.csv --word-vectors /data/word2vec.pth

The same line again goes on where the last checkpoint was written, whatever ended the run. Ctrl-C
and SIGTERM finish the step and save; a second one saves the step before. More --steps or --epochs
extend a run, with the learning rate of a run of the new length from then on. --restart deletes the
files that the run wrote and begins anew. All options: --help.

In --out: last.pt and previous.pt, step-<n>.pt with --keep-every, log.jsonl, TensorBoard, and with
--eval-every evaluations.jsonl. The exit code is 0 at the end, 128 + the number of a signal that
stopped the run, otherwise 1 or 2.

Requirements: torch, softdtw_kernels, av, NumPy, tqdm, safetensors; tensorboard unless
--no-tensorboard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vttwins import build, checkpoint, config, data, distributed, evaluate, tda
from examples.vttwins.benchmarks.segments import read_segments
from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import VideoTextModel
from examples.vttwins.run import Run, run_task
from examples.vttwins.words import Vocabulary


def batch_loss(
    model: nn.Module,
    loss: SequenceLoss,
    video: Tensor,
    words: Tensor,
    place: Place,
    uniform: Tensor | None = None,
    tau: float = tda.TAU,
) -> Tensor:
    """Loss of this rank's part of the global batch; its mean over ranks is the loss of the batch.

    Args:
        video: (b, n, 3, T, H, W) in [0, 1], this rank's sequences.
        words: (b, m, W).
        uniform: (2, b * ranks) numbers in [0, 1), the same on all ranks, for the temporal data
            augmentation of videos and of texts; None: none.
    """
    b, n, m = video.shape[0], video.shape[1], words.shape[1]
    flat = video.flatten(0, 1).contiguous(memory_format=torch.channels_last_3d)
    v, t = model(flat, words.flatten(0, 1))
    wide = torch.promote_types(v.dtype, torch.float32)  # out of autocast: the loss is not for bf16
    v = F.normalize(v.to(wide), dim=-1).unflatten(0, (b, n))
    t = F.normalize(t.to(wide), dim=-1).unflatten(0, (b, m))
    v, t = distributed.gather(v), distributed.gather(t)
    if uniform is not None:
        v = tda.permute(v, tda.draw_permutations(v, uniform[0], tau=tau))
        t = tda.permute(t, tda.draw_permutations(t, uniform[1], tau=tau))
    return loss(v, t, rows=slice(place.rank * b, (place.rank + 1) * b))


class Narration:
    """Learning from narrated videos: the samples of data.py, the loss of loss.py."""

    def __init__(self, settings: Settings) -> None:
        config.check_files(settings)
        self.settings, self.clips = settings, settings.clips
        root = Path(settings.data)
        self.videos = data.read_column(root / settings.train_csv, "video_path")
        self.items = len(self.videos)
        self.segments = read_segments(root / "test.csv") if settings.eval_every else []
        self.sequence_loss = build.build_loss(settings)

    def digests(self) -> dict[str, str]:
        found = build.digests(self.settings)
        found["train_csv"] = checkpoint.digest_of_lines(self.videos)
        return found

    def vocabulary(self) -> Vocabulary | None:
        return build.vocabulary_of(self.dataset(Vocabulary([])))

    def model(self, vocabulary: Vocabulary | None) -> tuple[VideoTextModel, Vocabulary]:
        return build.build_model(self.settings, vocabulary)

    def dataset(self, vocabulary: Vocabulary) -> data.NarratedVideos:
        return build.build_dataset(self.settings, self.videos, vocabulary)

    def groups(self, model: VideoTextModel) -> list[dict[str, Any]]:
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def train_mode(self, network: nn.Module) -> None:
        network.train()

    def loss(self, network: nn.Module, batch: dict[str, Any], number: int, place: Place) -> Tensor:
        video, words = build.to_device(batch, place.device)
        return batch_loss(
            network, self.sequence_loss, video, words, place, self.uniform(number),
            self.settings.tda_tau,
        )  # fmt: skip

    def uniform(self, number: int) -> Tensor | None:
        """Numbers for the temporal augmentation, by seed and batch number, alike on all ranks."""
        if not self.settings.tda:
            return None
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        return torch.rand(2, self.settings.batch, generator=generator, dtype=torch.float64)

    def going_on(self, out: Path, step: int) -> None:
        pass

    def started(self, run: Run) -> None:
        pass

    def finished(self, run: Run) -> None:
        pass

    def evaluate(self, model: VideoTextModel, vocabulary: Vocabulary) -> dict[str, Any]:
        settings = self.settings
        return evaluate.evaluate(
            model, vocabulary, self.segments, Path(settings.data) / "videos",
            build.clip_shape(settings), settings.eval_windows, workers=settings.workers,
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    settings, options = config.parse(arguments, __doc__, Settings, config.PRESETS)
    run_task(Narration, settings, options.restart)


if __name__ == "__main__":
    main()
