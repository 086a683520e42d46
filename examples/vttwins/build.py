"""What a run is made of, from its settings: model, vocabulary, samples, loss.

Requirements: torch, softdtw_kernels, NumPy, av.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.vttwins import checkpoint, data, distributed, weights
from examples.vttwins.config import Settings
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary, load_word_vectors


def build_model(
    settings: Settings, vocabulary: Vocabulary | None = None
) -> tuple[VideoTextModel, Vocabulary]:
    """Model and vocabulary; without a given one, that of the settings' word vectors."""
    table = None
    if vocabulary is None:
        vocabulary, table = load_word_vectors(
            settings.word_vectors, settings.dictionary or None, settings.word_limit or None
        )
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
        source = settings.word_vectors or "the vocabulary of the captions"
        weights.load_into(model, settings.weights, vocabulary, source)
    if settings.cross_rank_bn:
        distributed.use_cross_rank_batch_norm(model)
    model.checkpointing = settings.checkpointing
    return model, vocabulary


def clip_shape(settings: Settings) -> data.ClipShape:
    return data.ClipShape(settings.frames, settings.fps, settings.size, settings.resize or None)


def build_dataset(
    settings: Settings, videos: list[str], vocabulary: Vocabulary
) -> data.NarratedVideos:
    """Training samples of the settings' data folder."""
    root = Path(settings.data)
    return data.NarratedVideos(
        videos, root / "videos", root / "captions", vocabulary, clip_shape(settings),
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


def digests(settings: Settings) -> dict[str, str]:
    """Digests of the files that settings name: another path to the same content is no change."""
    found = {"word_vectors": "", "dictionary": "", "weights": ""}
    if settings.word_vectors:
        found["word_vectors"] = checkpoint.digest(settings.word_vectors)
        vectors = Path(settings.word_vectors)
        if vectors.suffix in (".pth", ".pt"):  # the only format with its words in another file
            words = settings.dictionary or vectors.with_name("dict.npy")
            found["dictionary"] = checkpoint.digest(words)
    if settings.weights:
        found["weights"] = checkpoint.digest(settings.weights)
    return found


def to_device(batch: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Video in [0, 1] in the default dtype, and words, of a batch on the CPU."""
    video = batch["video"].to(device, non_blocking=True).to(torch.get_default_dtype()).div_(255)
    return video, batch["words"].to(device, non_blocking=True)


def vocabulary_of(narrated: data.NarratedVideos) -> Vocabulary:
    """Vocabulary of all training captions, for a model that learns its words from scratch."""
    texts: list[str] = []
    for video in narrated.videos:
        try:
            texts += data.Captions.load(narrated.caption_path(video)).text
        except data.VideoError:
            continue  # counted when a batch meets it
    return Vocabulary.from_captions(texts)
