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

A row of the paper's ablation (plain cosine; --no-contrastive and --gamma make the others). A tenth
of HowTo100M for 100 epochs is barely as long as the paper's warm-up, so give a shorter one:
    torchrun --nproc-per-node 8 -m examples.vttwins.train ablation --cost cosine \
        --data /data/howto100m --train-csv tenth.csv --word-vectors /data/word2vec.pth \
        --warmup 10000

The same line again goes on where the last checkpoint was written, whatever ended the run; SIGTERM
saves first. --restart begins anew. All options: --help. Logs: log.jsonl and TensorBoard in --out.

Requirements: torch, softdtw_kernels, av, NumPy, tqdm; tensorboard unless --no-tensorboard.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples.vttwins import checkpoint, config, data, distributed, tda, weights
from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary, load_word_vectors

BOARD = ("loss", "gradient_norm", "learning_rate", "clips_per_second", "skipped")


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up from ``warmup_from``, then cosine annealing to 0 at the last step."""
    if step < settings.warmup:
        share = step / settings.warmup
        return settings.warmup_from + share * (settings.learning_rate - settings.warmup_from)
    share = (step - settings.warmup) / max(steps - settings.warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def build_model(settings: Settings, vocabulary_file: Path) -> tuple[VideoTextModel, Vocabulary]:
    """Model and vocabulary; the latter from word vectors, from the run's file, or from captions."""
    table = None
    if settings.word_vectors:
        vocabulary, table = load_word_vectors(settings.word_vectors, settings.dictionary or None)
    else:
        vocabulary = Vocabulary.load(vocabulary_file)
    torch.manual_seed(settings.seed)
    model = VideoTextModel(
        settings.front_end,
        vocabulary_size=len(vocabulary),
        embedding_dim=settings.embedding_dim,
        word_dim=300 if table is None else table.shape[1],
        train_words=table is None,
        word_vectors=table,
    )
    if settings.weights:
        weights.load_into(model, settings.weights)
    if settings.cross_rank_bn:
        distributed.use_cross_rank_batch_norm(model)
    return model, vocabulary


def build_dataset(
    settings: Settings, videos: list[str], vocabulary: Vocabulary
) -> data.NarratedVideos:
    """Training samples of the settings' data folder."""
    root = Path(settings.data)
    shape = data.ClipShape(settings.frames, settings.fps, settings.size, settings.resize or None)
    return data.NarratedVideos(
        videos, root / "videos", root / "captions", vocabulary, shape,
        settings.captions, settings.clips, seed=settings.seed, batch=settings.batch,
    )  # fmt: skip


def build_loss(settings: Settings) -> SequenceLoss:
    return SequenceLoss(
        settings.operator,
        cost=settings.cost,
        contrastive=settings.contrastive,
        gamma=settings.gamma,
        dummy_cost=settings.dummy_cost,
        origin_count=settings.origin_count,
        direction=settings.direction,
        temperature=settings.temperature,
    )


def write_vocabulary(videos: list[str], captions: Path, path: Path) -> None:
    """Vocabulary of all training captions, for a model that learns its words from scratch."""
    texts: list[str] = []
    for video in videos:
        try:
            texts += data.Captions.load(data.caption_path(captions, video)).text
        except data.VideoError:
            continue  # counted when a batch meets it
    Vocabulary.from_captions(texts).save(path)


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


class Run:
    """A training run: what is saved, and the loop."""

    def __init__(self, settings: Settings, place: Place) -> None:
        self.settings, self.place = settings, place
        self.out, root = Path(settings.out), Path(settings.data)
        config.check_files(settings)
        videos = data.read_column(root / settings.train_csv, "video_path")
        saved = self._saved()  # refuses before anything in --out is overwritten
        vocabulary_file = self.out / "vocabulary.json"
        if place.first:
            self.out.mkdir(parents=True, exist_ok=True)
            checkpoint.remove_leftovers(self.out)
            if not settings.word_vectors and saved is None:
                write_vocabulary(videos, root / "captions", vocabulary_file)
            settings_text = json.dumps(dataclasses.asdict(settings), indent=1)
            checkpoint.write_text(self.out / "settings.json", settings_text)
        if place.world > 1:
            torch.distributed.barrier()
        if not (self.out / "settings.json").exists():
            raise SystemExit(f"--out {self.out} must be a folder that all nodes share")
        self.model, vocabulary = build_model(settings, vocabulary_file)
        if settings.word_vectors and place.first:
            vocabulary.save(vocabulary_file)
        self.model.to(place.device)
        self.dtype = self.model.fc.weight.dtype
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            [p for p in self.model.parameters() if p.requires_grad], lr=settings.learning_rate
        )
        per_epoch = len(videos) // (settings.batch * settings.accumulate)
        self.steps = settings.steps or settings.epochs * max(per_epoch, 1)
        self.step = self.skipped = 0
        if saved is not None:
            self.model.load_state_dict(saved["state_dict"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.skipped = saved["step"], saved["skipped"]
        self.loss = build_loss(settings)
        dataset = build_dataset(settings, videos, vocabulary)
        batches = data.StepBatches(
            len(videos), settings.batch, self.steps * settings.accumulate,
            self.step * settings.accumulate, settings.seed, place.rank, place.world,
        )  # fmt: skip
        self.loader = data.loader(
            dataset, batches, settings.workers, pin=place.device.type == "cuda"
        )
        self.network: nn.Module = self.model
        if settings.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        if place.world > 1:
            devices = [place.device.index] if place.device.type == "cuda" else None
            # Buffers are per-rank statistics, as released; rank 0's are the ones saved.
            with warnings.catch_warnings():  # torch 2.13 wants another name, which 2.6 lacks
                warnings.simplefilter("ignore", FutureWarning)
                self.network = DistributedDataParallel(
                    self.network, device_ids=devices, broadcast_buffers=False
                )

    def _saved(self) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one."""
        saved = checkpoint.load_checkpoint(self.out)
        changed = config.differences(saved["settings"], self.settings) if saved else []
        if changed:
            raise SystemExit(
                f"{self.out} holds a run with other settings ({'; '.join(changed)}). "
                "Give another --out, or --restart to begin anew."
            )
        return saved

    def announce(self) -> None:
        """Say where the run stands, and what its owner may not expect."""
        if self.step:
            done = " (finished; --restart begins anew)" if self.step == self.steps else ""
            print(f"{self.out}: going on from step {self.step} of {self.steps}{done}")
        if self.settings.warmup >= self.steps:
            print(
                f"The warm-up of {self.settings.warmup} steps is not over at the end, step "
                f"{self.steps}: --learning-rate is never reached. See --warmup."
            )

    def save(self) -> None:
        if not self.place.first:
            return
        content = {
            "step": self.step,
            "skipped": self.skipped,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": dataclasses.asdict(self.settings),
        }
        checkpoint.save_checkpoint(self.out, content)

    def uniform(self, batch: int) -> Tensor | None:
        """Numbers for the temporal augmentation, by seed and batch number, alike on all ranks."""
        if not self.settings.tda:
            return None
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch)
        return torch.rand(2, self.settings.batch, generator=generator, dtype=torch.float64)

    def optimize(self, batches: list[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step over ``accumulate`` batches; returns what to log."""
        settings, place = self.settings, self.place
        self.network.train()
        rate = learning_rate(self.step, self.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=place.device)
        for k, batch in enumerate(batches):
            video = batch["video"].to(place.device, non_blocking=True).to(self.dtype).div_(255)
            words = batch["words"].to(place.device, non_blocking=True)
            last = k == len(batches) - 1
            alone = isinstance(self.network, DistributedDataParallel) and not last
            with self.network.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with torch.autocast(place.device.type, torch.bfloat16, enabled=settings.bf16):
                    value = batch_loss(
                        self.network, self.loss, video, words, place,
                        self.uniform(self.step * len(batches) + k), settings.tda_tau,
                    ) / len(batches)  # fmt: skip
                value.backward()
            total += value.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {self.step}: the gradient is not finite")
        self.optimizer.step()
        self.step += 1
        skipped = torch.tensor(float(sum(len(b["skipped"]) for b in batches)), device=place.device)
        means = distributed.mean_over_ranks(torch.stack((total, skipped)))
        self.skipped += round(float(means[1]) * place.world)
        return {"loss": float(means[0]), "gradient_norm": float(norm), "learning_rate": rate}

    def train(self) -> bool:
        """Train to the end, or until a SIGTERM; returns whether the end was reached."""
        with _StopRequest() as stop:
            stopped = self._train_until(stop)
        if not stopped and self.place.first:
            weights.export_safetensors(self.model, self.out / "model.safetensors")
        return not stopped

    def _train_until(self, stop: _StopRequest) -> bool:
        settings, first = self.settings, self.place.first
        log = checkpoint.Log(self.out / checkpoint.LOG, self.step) if first else None
        skips = checkpoint.Log(self.out / f"skipped-{self.place.rank}.jsonl", self.step)
        board = _tensorboard(self.out, self.step) if first and settings.tensorboard else None
        bar = tqdm(
            total=self.steps, initial=self.step, disable=not first, mininterval=1, unit="step"
        )
        clips = settings.batch * settings.accumulate * settings.clips
        stream = iter(self.loader)
        stopped = False
        while self.step < self.steps and not stopped:
            began = time.perf_counter()
            batches = [next(stream) for _ in range(settings.accumulate)]
            waited = time.perf_counter() - began
            entry = {"step": self.step, **self.optimize(batches)}
            seconds = time.perf_counter() - began
            for video, reason in (pair for batch in batches for pair in batch["skipped"]):
                skips.write({"step": entry["step"], "video": video, "reason": reason})
            entry |= {
                "seconds": seconds,
                "wait_seconds": waited,
                "decode_seconds": sum(b["decode_seconds"] for b in batches),
                "clips_per_second": clips / seconds,
                "skipped": self.skipped,
            }
            if log is not None:
                log.write(entry)
            if board is not None:
                for name in BOARD:
                    board.add_scalar(name, entry[name], self.step - 1)
            bar.update()
            bar.set_postfix(loss=f"{entry['loss']:.3f}", skipped=self.skipped, refresh=False)
            stopped = distributed.any_rank(stop.requested, self.place.device)
            if stopped or self.step == self.steps or self.step % settings.save_every == 0:
                self.save()
        bar.close()
        for writer in (log, skips, board):
            if writer is not None:
                writer.close()
        return stopped


class _StopRequest:
    """Notes a SIGTERM, so that the step under way is finished and saved."""

    def __init__(self) -> None:
        self.requested = False
        self._former: Any = None

    def __enter__(self) -> _StopRequest:
        self._former = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def _tensorboard(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed: logging to log.jsonl only")
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step)


def main(arguments: list[str] | None = None) -> None:
    settings, options = config.parse(arguments, __doc__)
    place = distributed.start(settings.device or None)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        if options.restart and place.first:
            shutil.rmtree(settings.out, ignore_errors=True)
        if options.restart and place.world > 1:
            torch.distributed.barrier()
        try:
            run = Run(settings, place)
        except (ValueError, OSError) as error:  # a file or a number that does not fit
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        if place.first:
            run.announce()
        if not run.train() and place.first:
            print(f"SIGTERM: saved at step {run.step} of {run.steps} in {settings.out}")
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()
