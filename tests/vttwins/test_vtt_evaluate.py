"""Evaluation of annotated videos: what cannot be used is counted and never scores a hit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.vttwins import data, evaluate, synthetic, weights
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary

SHAPE = data.ClipShape(frames=4, fps=5.0, size=32, resize=32)
WORDS = Vocabulary(["the", *synthetic.COLORS, *synthetic.SHAPES, *synthetic.MOTIONS])


@pytest.fixture(scope="module")
def model() -> VideoTextModel:
    torch.manual_seed(0)
    return VideoTextModel(vocabulary_size=len(WORDS), embedding_dim=8, word_dim=6).eval()


def test_an_unusable_video_is_counted_and_finds_no_step(
    model: VideoTextModel, narrated: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(narrated / "videos", folder)
    (folder / "test_00001.mp4").write_bytes(b"damaged")
    segments = evaluate.read_segments(narrated / "test.csv")
    result = evaluate.evaluate(model, WORDS, segments, folder, SHAPE, windows=2)
    assert result["pairs"] == 16 and result["unusable"] == {"broken": 8}
    assert all(np.isfinite(list(result["text_to_video"].values())))
    assert result["text_to_video"]["R@5"] <= 50  # the texts of the other half stand last
    assert result["video_to_text"]["R@10"] <= 50 and result["trimmed_ctr"] <= 50


def test_a_file_of_weights_is_evaluated_with_its_word_vectors(
    model: VideoTextModel, narrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.export_safetensors(model, tmp_path / "model.safetensors")
    torch.save(model.text_module.word_embd.weight.detach(), tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(WORDS.words))
    line = [
        "--weights", str(tmp_path / "model.safetensors"), "--annotation",
        str(narrated / "test.csv"), "--videos", str(narrated / "videos"), "--windows", "1",
        "--size", "32", "--frames", "4", "--workers", "0", "--device", "cpu", "--word-vectors",
    ]  # fmt: skip
    evaluate.main([*line, str(tmp_path / "word2vec.pth")])
    assert "16 pairs" in capsys.readouterr().out
    other = tmp_path / "other.txt"
    other.write_text("the 1 0 0 0 0 0\nred 0 1 0 0 0 0\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=f"has 3 words .* {len(WORDS)}"):
        evaluate.main([*line, str(other)])
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="not a safetensors file"):
        evaluate.main([*line, str(tmp_path / "word2vec.pth")])
