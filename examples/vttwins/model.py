"""The video-text model of VT-TWINS: gated separable 3D Inception (S3D) beside a word2vec encoder.

Requirements: torch only. This file imports nothing else from the example, so it can be copied.

The names of the parameters are those of the MIL-NCE S3D module, so that published checkpoints load
(``weights.py``); the attribute names below are therefore part of the file format.

Sources: Xie et al., "Rethinking Spatiotemporal Feature Learning", ECCV 2018 (S3D-G); Miech et al.,
"End-to-End Learning of Visual Representations from Uncurated Instructional Videos", CVPR 2020 (the
space-to-depth front end and the text encoder); Ko et al., CVPR 2022 (VT-TWINS, plain front end).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FRONT_ENDS = ("plain", "space_to_depth")
FEATURE_DIM = 1024

# Output channels of the four branches of each Inception block:
# 1x1x1 | 1x1x1 -> 3x3x3 | 1x1x1 -> 3x3x3 | max pooling -> 1x1x1.
INCEPTION = {
    "mixed_3b": (64, (96, 128), (16, 32), 32),
    "mixed_3c": (128, (128, 192), (32, 96), 64),
    "mixed_4b": (192, (96, 208), (16, 48), 64),
    "mixed_4c": (160, (112, 224), (24, 64), 64),
    "mixed_4d": (128, (128, 256), (24, 64), 64),
    "mixed_4e": (112, (144, 288), (32, 64), 64),
    "mixed_4f": (256, (160, 320), (32, 128), 128),
    "mixed_5b": (256, (160, 320), (32, 128), 128),
    "mixed_5c": (384, (192, 384), (48, 128), 128),
}


class ConvUnit(nn.Module):
    """Convolution, batch normalization, ReLU; twice when a cube is split into space and time.

    Splitting k x k x k into 1 x k x k followed by k x 1 x 1 is what makes S3D "separable".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: int = 1,
        padding: tuple[int, int, int] = (0, 0, 0),
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.separable = separable
        first_kernel, first_padding = kernel, padding
        if separable:
            first_kernel, first_padding = (1, *kernel[1:]), (0, *padding[1:])
        self.conv1 = nn.Conv3d(
            in_channels, out_channels, first_kernel, stride, first_padding, bias=False
        )
        self.bn1 = nn.BatchNorm3d(out_channels)
        if separable:
            self.conv2 = nn.Conv3d(
                out_channels, out_channels, (kernel[0], 1, 1), 1, (padding[0], 0, 0), bias=False
            )
            self.bn2 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.separable:
            x = F.relu(self.bn2(self._temporal(x)), inplace=True)
        return x

    def _temporal(self, x: Tensor) -> Tensor:
        # On a CPU, torch 2.13 returns NaN as the bfloat16 weight gradient of a 3x1x1 convolution
        # over two frames, which every clip here comes down to: float32 for this one.
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            with torch.autocast("cpu", enabled=False):
                weight = self.conv2.weight.float()
                return F.conv3d(x.float(), weight, padding=self.conv2.padding).to(x.dtype)
        return self.conv2(x)


class Gate(nn.Module):
    """Channel gate of S3D-G: x times sigmoid(W mean(x) + b), the mean taken over time and space."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.fc(x.mean(dim=(2, 3, 4))))
        return x * weights[:, :, None, None, None]


class SamePool(nn.Module):
    """Max pooling with TensorFlow's "SAME" padding: k - s cells in all, the odd one at the end.

    The padding value is 0, as in the checkpoints' own code; every input here is at least 0.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.padding: list[int] = []
        for size, step in zip(reversed(kernel), reversed(stride), strict=True):
            total = max(size - step, 0)
            self.padding += [total // 2, total - total // 2]

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(F.pad(x, self.padding), self.kernel, self.stride, ceil_mode=True)


class Inception(nn.Module):
    """Four gated branches, concatenated over the channels."""

    def __init__(
        self, in_channels: int, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int
    ) -> None:
        super().__init__()
        cube: dict[str, Any] = {"kernel": (3, 3, 3), "padding": (1, 1, 1), "separable": True}
        self.conv_b0 = ConvUnit(in_channels, b0)
        self.conv_b1_a = ConvUnit(in_channels, b1[0])
        self.conv_b1_b = ConvUnit(b1[0], b1[1], **cube)
        self.conv_b2_a = ConvUnit(in_channels, b2[0])
        self.conv_b2_b = ConvUnit(b2[0], b2[1], **cube)
        self.conv_b3_b = ConvUnit(in_channels, b3)
        self.gating_b0 = Gate(b0)
        self.gating_b1 = Gate(b1[1])
        self.gating_b2 = Gate(b2[1])
        self.gating_b3 = Gate(b3)
        self.out_channels = b0 + b1[1] + b2[1] + b3

    def forward(self, x: Tensor) -> Tensor:
        b0 = self.conv_b0(x)
        b1 = self.conv_b1_b(self.conv_b1_a(x))
        b2 = self.conv_b2_b(self.conv_b2_a(x))
        b3 = self.conv_b3_b(F.max_pool3d(x, 3, 1, 1))
        return torch.cat(
            (self.gating_b0(b0), self.gating_b1(b1), self.gating_b2(b2), self.gating_b3(b3)), dim=1
        )


class TextModule(nn.Module):
    """Words -> vectors -> Linear -> ReLU -> max over the words -> Linear.

    Word vectors are frozen (word2vec) unless ``train_words``; row 0 is the pad and, as in the
    checkpoints' own code, takes part in the maximum.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        word_dim: int = 300,
        hidden_dim: int = 2048,
        train_words: bool = False,
        word_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        # A given table is used as it is: with millions of words, a second one would be gigabytes.
        if word_vectors is None:
            self.word_embd = nn.Embedding(vocabulary_size, word_dim)
        else:
            self.word_embd = nn.Embedding.from_pretrained(word_vectors)
        self.word_embd.weight.requires_grad_(train_words)
        self.fc1 = nn.Linear(word_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embedding_dim)

    def forward(self, words: Tensor) -> Tensor:
        """Embed words (*, W) of integer ids as (*, embedding_dim)."""
        if words.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"words must be integer ids, int64 or int32, got {words.dtype}")
        if words.ndim < 1 or words.shape[-1] < 1:
            raise ValueError(
                f"words must be (*, W) with W of at least 1, got {tuple(words.shape)}; a caption "
                "without known words is all pads, 0"
            )
        return self.fc2(F.relu(self.fc1(self.word_embd(words))).amax(dim=-2))


class VideoTextModel(nn.Module):
    """S3D video encoder and word2vec text encoder with a common embedding space.

    Args:
        front_end: ``"plain"`` (3x7x7 convolution of stride 2, as VT-TWINS was trained) or
            ``"space_to_depth"`` (2x2x2 blocks become 24 channels, as MIL-NCE was trained).
        vocabulary_size: rows of the table of word vectors, the pad (row 0) included.
        embedding_dim: size of the common space.
        word_dim: size of a word vector.
        train_words: learn the word vectors instead of keeping them frozen.
        word_vectors: float32 (vocabulary_size, word_dim), which becomes the table without a copy;
            default random numbers.

    ``model(video, words)`` returns both embeddings, not normalized. Video is (B, 3, T, H, W) in
    [0, 1] (no mean or standard deviation is removed), words are integer ids (B, W), 0 = pad.

    With ``checkpointing`` set to True, training keeps what enters each stage of the encoder and
    computes the rest again in backward: less memory, one more forward, the same gradients.

    ``words_digest`` is the digest of the vocabulary that ids are of, None where it is not known.

    Example:
        >>> import torch
        >>> model = VideoTextModel("plain", vocabulary_size=10, embedding_dim=8).eval()
        >>> with torch.no_grad():
        ...     v, t = model(torch.rand(2, 3, 4, 32, 32), torch.tensor([[1, 2, 0], [3, 0, 0]]))
        >>> tuple(v.shape), tuple(t.shape)
        ((2, 8), (2, 8))
    """

    def __init__(
        self,
        front_end: str = "plain",
        vocabulary_size: int = 66250,
        embedding_dim: int = 512,
        *,
        word_dim: int = 300,
        train_words: bool = False,
        word_vectors: Tensor | None = None,
    ) -> None:
        super().__init__()
        if front_end not in FRONT_ENDS:
            raise ValueError(f"front_end must be one of {FRONT_ENDS}, got {front_end!r}")
        if min(vocabulary_size, embedding_dim, word_dim) < 1:
            raise ValueError(
                "vocabulary_size, embedding_dim and word_dim must be at least 1, got "
                f"{vocabulary_size}, {embedding_dim}, {word_dim}"
            )
        if word_vectors is not None and word_vectors.shape != (vocabulary_size, word_dim):
            raise ValueError(
                f"word_vectors must be (vocabulary_size, word_dim) = ({vocabulary_size}, "
                f"{word_dim}), got {tuple(word_vectors.shape)}"
            )
        self.front_end = front_end
        self.checkpointing = False
        self.words_digest: str | None = None
        if front_end == "plain":
            self.conv1 = ConvUnit(3, 64, (3, 7, 7), stride=2, padding=(1, 3, 3))
        else:
            self.conv1 = ConvUnit(24, 64, (2, 4, 4), stride=1, padding=(1, 2, 2))
        self.conv_2b = ConvUnit(64, 64)
        self.conv_2c = ConvUnit(64, 192, (3, 3, 3), padding=(1, 1, 1), separable=True)
        self.gating = Gate(192)
        self.maxpool_2a = SamePool((1, 3, 3), (1, 2, 2))
        self.maxpool_3a = SamePool((1, 3, 3), (1, 2, 2))
        self.maxpool_4a = SamePool((3, 3, 3), (2, 2, 2))
        self.maxpool_5a = SamePool((2, 2, 2), (2, 2, 2))
        channels = 192
        for name, widths in INCEPTION.items():
            block = Inception(channels, *widths)
            self.add_module(name, block)
            channels = block.out_channels
        self.fc = nn.Linear(channels, embedding_dim)
        self.text_module = TextModule(
            vocabulary_size,
            embedding_dim,
            word_dim=word_dim,
            train_words=train_words,
            word_vectors=word_vectors,
        )

    def video_features(self, video: Tensor) -> Tensor:
        """Features (B, 1024) of video (B, 3, T, H, W): the last block averaged over time and space.

        The space-to-depth front end needs even T, H and W.
        """
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video must be (B, 3, T, H, W), got {tuple(video.shape)}")
        if not video.is_floating_point():
            raise TypeError(
                f"video must be of floats in [0, 1], got {video.dtype}; divide bytes by 255"
            )
        if min(video.shape[2:]) < 1:
            raise ValueError(f"video must have pictures with pixels, got {tuple(video.shape)}")
        x = video
        for stage in self._stages():
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    stage, x, use_reentrant=False, preserve_rng_state=False,
                    context_fn=self._recomputing,
                )  # fmt: skip
            else:
                x = stage(x)
        return x.mean(dim=(2, 3, 4))

    def _stages(self) -> list[Callable[[Tensor], Tensor]]:
        """The encoder up to the last mean, as functions to be applied one after the other."""
        blocks = {name: getattr(self, name) for name in INCEPTION}
        # Pools go with the block after them, so that their results are not kept.
        mixed_4b, mixed_5b = blocks["mixed_4b"], blocks["mixed_5b"]
        blocks["mixed_4b"] = lambda x: mixed_4b(self.maxpool_4a(x))
        blocks["mixed_5b"] = lambda x: mixed_5b(self.maxpool_5a(x))
        return [
            lambda x: self.maxpool_2a(self._front(x)),
            self.conv_2b,
            self.conv_2c,
            lambda x: self.maxpool_3a(self.gating(x)),
            *blocks.values(),
        ]

    def _front(self, video: Tensor) -> Tensor:
        if self.front_end == "plain":
            return self.conv1(video)
        # The kernel is even, so the padding adds one cell too many at the start of each axis.
        return self.conv1(space_to_depth(video))[:, :, 1:, 1:, 1:]

    def _recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The contexts of a stage's first computation and of its repetition."""
        return nullcontext(), _statistics_kept(self)

    def encode_video(self, video: Tensor) -> Tensor:
        """Embeddings (B, embedding_dim) of video (B, 3, T, H, W) in [0, 1]."""
        return self.fc(self.video_features(video))

    def encode_text(self, words: Tensor) -> Tensor:
        """Embeddings (*, embedding_dim) of word ids (*, W)."""
        return self.text_module(words)

    def forward(self, video: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_video(video), self.encode_text(words)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm does not count the same batch twice in its running statistics.

    They are still handed over, with no weight for the new batch: the repetition must save the same
    tensors as the first computation.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count


def space_to_depth(video: Tensor) -> Tensor:
    """Move each 2x2x2 block into the channels: (B, C, T, H, W) -> (B, 8 C, T/2, H/2, W/2).

    The order of the new channels is (time, row, column, color), as the checkpoints expect.
    """
    batch, channels, t, h, w = video.shape
    if t % 2 or h % 2 or w % 2:
        raise ValueError(f"space_to_depth needs even T, H and W, got {(t, h, w)}")
    x = video.reshape(batch, channels, t // 2, 2, h // 2, 2, w // 2, 2)
    x = x.permute(0, 3, 5, 7, 1, 2, 4, 6)
    return x.reshape(batch, 8 * channels, t // 2, h // 2, w // 2)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters by part: video (with its head), text, all, trainable."""
    text = sum(p.numel() for n, p in model.named_parameters() if n.startswith("text_module."))
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"video": total - text, "text": text, "all": total, "trainable": trainable}
