"""Captions become integers as specified; word vectors survive their file formats."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins.words import (
    Vocabulary,
    WordFileError,
    load_word_vectors,
    tokenize,
)

WORDS = st.lists(st.from_regex(r"[\w']+", fullmatch=True), min_size=1, max_size=20, unique=True)


def test_tokens_keep_case_and_apostrophes() -> None:
    assert tokenize("Don't STIR, it's 30-40 °C!") == ["Don't", "STIR", "it's", "30", "40", "C"]


@given(words=WORDS, text=st.text(max_size=60), size=st.integers(1, 8))
def test_encoding_keeps_known_words_in_order(words: list[str], text: str, size: int) -> None:
    vocabulary = Vocabulary(words)
    ids = vocabulary.encode(text + " " + " ".join(words), size)
    assert ids.shape == (size,) and ids.dtype == torch.int64
    known = [w for w in tokenize(text + " " + " ".join(words)) if w in words][:size]
    assert [words[i - 1] for i in ids.tolist() if i] == known
    assert not ids[len(known) :].any()


def test_a_caption_without_known_words_is_all_pads() -> None:
    assert Vocabulary(["red"]).encode("Red roses", 4).tolist() == [0, 0, 0, 0]


def test_vocabulary_of_captions_and_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_captions(["a red ring", "a blue ring", "a"])
    assert vocabulary.words == ["a", "ring", "blue", "red"] and len(vocabulary) == 5
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json").words == vocabulary.words


def write_word2vec(path: Path, words: list[str], vectors: np.ndarray, style: str) -> None:
    count, dim = vectors.shape
    if style.startswith("binary"):
        end = b"\n" if style == "binary with newlines" else b""
        rows = [
            w.encode() + b" " + v.astype("<f4").tobytes() + end
            for w, v in zip(words, vectors, strict=True)
        ]
        path.write_bytes(f"{count} {dim}\n".encode() + b"".join(rows))
    else:
        head = "" if style == "text without header" else f"{count} {dim}\n"
        rows_ = [
            f"{w} {' '.join(map(repr, map(float, v)))}\n"
            for w, v in zip(words, vectors, strict=True)
        ]
        path.write_text(head + "".join(rows_), encoding="utf-8")


@pytest.mark.parametrize(
    ("style", "suffix"),
    [
        ("binary", ".bin"),
        ("binary with newlines", ".bin"),
        ("text", ".txt"),
        ("text without header", ".vec"),
    ],
)
@given(words=WORDS, dim=st.integers(2, 9), seed=st.integers(0, 99))
def test_word2vec_formats_round_trip(
    style: str, suffix: str, words: list[str], dim: int, seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("words") / f"vectors{suffix}"
    vectors = np.random.default_rng(seed).normal(size=(len(words), dim)).astype(np.float32)
    write_word2vec(path, words, vectors, style)
    vocabulary, table = load_word_vectors(path)
    assert vocabulary.words == words
    assert not table[0].any()
    assert torch.equal(table[1:], torch.from_numpy(vectors))
    assert load_word_vectors(path, limit=1)[0].words == words[:1]


@pytest.mark.parametrize("cut", [3, 12, 30, -1])
def test_a_cut_binary_file_is_an_error(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "v.bin"
    write_word2vec(path, ["one", "two"], np.ones((2, 4)), "binary")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WordFileError, match="v.bin"):
        load_word_vectors(path)


def test_a_cut_text_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    write_word2vec(path, ["one", "two"], np.ones((2, 4)), "text")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]), encoding="utf-8")
    with pytest.raises(WordFileError, match="ends after 1 of 2 words"):
        load_word_vectors(path)
    assert load_word_vectors(path, limit=1)[0].words == ["one"]


@pytest.mark.parametrize("content", [b"", b"not a zip", pickle.dumps({"a": print}, 2)])
def test_a_pth_file_of_something_else_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "word2vec.pth").write_bytes(content)
    with pytest.raises(WordFileError, match="refused"):
        load_word_vectors(tmp_path / "word2vec.pth")


def test_the_released_pair_loads_and_must_agree(tmp_path: Path) -> None:
    table = torch.rand(4, 300)
    torch.save(table, tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(["a", "b", "c"]))
    vocabulary, loaded = load_word_vectors(tmp_path / "word2vec.pth")
    assert vocabulary.words == ["a", "b", "c"] and torch.equal(loaded, table)
    assert vocabulary.encode("c a", 3).tolist() == [3, 1, 0]
    np.save(tmp_path / "dict.npy", np.array(["a", "b"]))
    with pytest.raises(WordFileError, match="4 rows .* needs 3"):
        load_word_vectors(tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(["a", "b", "c"], dtype=object), allow_pickle=True)
    with pytest.raises(WordFileError, match="unpickling"):
        load_word_vectors(tmp_path / "word2vec.pth")
