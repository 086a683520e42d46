"""The model is the published one: names, shapes, counts, and the arithmetic of its parts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.vttwins import config
from examples.vttwins.model import (
    FRONT_ENDS,
    ConvUnit,
    SamePool,
    VideoTextModel,
    parameter_counts,
    space_to_depth,
)

COUNTS = {
    "plain": {"video": 9_649_872, "text": 21_540_536, "all": 31_190_408, "trainable": 11_315_408},
    "space_to_depth": {
        "video": 9_670_800,
        "text": 21_540_536,
        "all": 31_211_336,
        "trainable": 11_336_336,
    },
}


def published_shapes(front_end: str) -> dict[str, tuple[int, ...]]:
    lines = Path(__file__).with_name("s3d_state_dict.txt").read_text(encoding="utf-8").splitlines()
    shapes = {}
    for line in lines:
        if not line.startswith("#"):
            name, *sizes = line.split()
            shapes[name] = tuple(int(size) for size in sizes)
    if front_end == "space_to_depth":
        shapes["conv1.conv1.weight"] = (64, 24, 2, 4, 4)
    return shapes


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_names_shapes_and_counts_are_the_published_ones(front_end: str) -> None:
    with torch.device("meta"):
        model = VideoTextModel(front_end)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(shapes) == 537
    assert shapes == published_shapes(front_end)
    assert parameter_counts(model) == COUNTS[front_end]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("shape", [(16, 64, 64), (8, 32, 32), (6, 50, 38)])
def test_any_clip_of_even_size_becomes_one_embedding(
    front_end: str, shape: tuple[int, int, int]
) -> None:
    model = VideoTextModel(front_end, vocabulary_size=5, embedding_dim=6).eval()
    with torch.no_grad():
        assert model.video_features(torch.rand(1, 3, *shape)).shape == (1, 1024)
        assert model.encode_video(torch.rand(2, 3, *shape)).shape == (2, 6)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="front_end must be one of"):
        VideoTextModel("flat")
    model = VideoTextModel("space_to_depth", vocabulary_size=5)
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        model.encode_video(torch.rand(2, 16, 3, 32, 32))
    with pytest.raises(TypeError, match="divide bytes by 255"):
        model.encode_video(torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="with pixels"):
        model.encode_video(torch.rand(2, 3, 4, 0, 32))
    with pytest.raises(TypeError, match="integer ids"):
        model.encode_text(torch.rand(2, 4))
    with pytest.raises(ValueError, match="W of at least 1"):
        model.encode_text(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        VideoTextModel(vocabulary_size=0)
    with pytest.raises(ValueError, match=r"\(5, 300\), got \(5, 7\)"):
        VideoTextModel(vocabulary_size=5, word_vectors=torch.rand(5, 7))
    with pytest.raises(ValueError, match="even"):
        model.encode_video(torch.rand(2, 3, 15, 32, 32))


@pytest.mark.parametrize("odd", [["--size", "33"], ["--frames", "15"]])
def test_an_odd_size_for_space_to_depth_is_refused_before_anything_is_read(
    odd: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["demo", "--front-end", "space_to_depth", *odd]
    with pytest.raises(SystemExit) as caught:
        config.parse(line, None, config.Settings, config.PRESETS)
    assert caught.value.code == 2
    assert "size and frames must be even" in capsys.readouterr().err
    # The plain front end takes any.
    config.parse(["demo", *odd], None, config.Settings, config.PRESETS)


def test_space_to_depth_orders_channels_by_time_row_column_color() -> None:
    video = torch.rand(2, 3, 4, 6, 8)
    blocks = space_to_depth(video)
    assert blocks.shape == (2, 24, 2, 3, 4)
    for t, h, w, c in itertools.product(range(2), range(2), range(2), range(3)):
        channel = ((t * 2 + h) * 2 + w) * 3 + c
        assert torch.equal(blocks[:, channel], video[:, c, t::2, h::2, w::2])


@pytest.mark.parametrize("size", [4, 5, 8, 9])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]
)
def test_same_pool_takes_the_maximum_of_each_window(
    size: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x = torch.rand(1, 2, size, size, size)
    pooled = SamePool(kernel, stride)(x)

    def window(i: int, axis: int) -> slice:
        before = max(kernel[axis] - stride[axis], 0) // 2
        start = i * stride[axis] - before
        return slice(max(start, 0), start + kernel[axis])

    for index in itertools.product(*(range(n) for n in pooled.shape[2:])):
        part = x[(..., *(window(i, axis) for axis, i in enumerate(index)))]
        assert torch.equal(pooled[(..., *index)], part.flatten(2).amax(-1))


def test_text_encoder_is_a_maximum_over_words_and_leaves_word_vectors_frozen() -> None:
    torch.manual_seed(0)
    model = VideoTextModel(vocabulary_size=9, embedding_dim=4, word_dim=7)
    words = torch.tensor([[3, 1, 0, 0], [2, 2, 5, 8]])
    text = model.text_module
    hidden = F.relu(text.fc1(text.word_embd.weight))[words].max(1).values
    torch.testing.assert_close(model.encode_text(words), text.fc2(hidden))
    assert torch.equal(model.encode_text(words), model.encode_text(words.flip(1)))
    model.encode_text(words).sum().backward()
    assert text.word_embd.weight.grad is None and text.fc1.weight.grad is not None
    learned = VideoTextModel(vocabulary_size=9, embedding_dim=4, word_dim=7, train_words=True)
    learned.encode_text(words).sum().backward()
    assert learned.text_module.word_embd.weight.grad is not None


def test_a_given_table_of_word_vectors_is_taken_over_without_a_copy() -> None:
    table = torch.rand(9, 7)
    model = VideoTextModel(vocabulary_size=9, embedding_dim=4, word_dim=7, word_vectors=table)
    assert model.text_module.word_embd.weight.data_ptr() == table.data_ptr()
    assert not model.text_module.word_embd.weight.requires_grad


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_gradients_of_a_block_under_bfloat16_are_those_of_float32(frames: int) -> None:
    torch.manual_seed(0)
    block = ConvUnit(32, 32, (3, 3, 3), padding=(1, 1, 1), separable=True).eval()
    video, weight = torch.randn(2, 32, frames, 6, 6), torch.randn(2, 32, frames, 6, 6)
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = (block(video).float() * weight).sum()
        gradients.append(torch.autograd.grad(value, list(block.parameters())))
    for (name, _), exact, rough in zip(block.named_parameters(), *gradients, strict=True):
        assert F.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.99, name
