"""Captions become integers as specified; word vectors survive their file formats."""

from __future__ import annotations

import gzip
import pickle
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Forks
from hypothesis import given
from hypothesis import strategies as st

from examples.vttwins.words import (
    PATTERN,
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


def test_accents_that_are_written_apart_meet_words_that_hold_them() -> None:
    words = ["café", "naïve", "Ünï", "ấm", "食べる", "آب"]
    apart = unicodedata.normalize("NFD", " ".join(words))
    assert not set(words) & set(apart.split())
    assert tokenize(apart) == words and tokenize("cafe\u0301s") == ["cafés"]
    assert Vocabulary(words).encode(apart, 6).tolist() == [1, 2, 3, 4, 5, 6]


@given(words=WORDS)
def test_words_without_marks_are_those_of_the_pattern_alone(words: list[str]) -> None:
    text = " ".join([*words, "\u212b \u2126 \uf900"])  # signs that NFC would replace
    assert tokenize(text) == PATTERN.findall(text)


def test_no_mark_is_a_part_of_a_word_of_the_pattern() -> None:
    assert not PATTERN.search("".join(map(chr, range(0x300, 0x370))) + "\u3099\u309a\u0653\u093c")


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
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes(), 1))


@pytest.mark.parametrize(
    ("style", "suffix"),
    [
        ("binary", ".bin"),
        ("binary", ".bin.gz"),
        ("text", ".txt.gz"),
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


@pytest.mark.parametrize("suffix", [".bin", ".bin.gz", ".txt"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(suffix: str, value: float, tmp_path: Path) -> None:
    vectors = np.ones((3, 4), dtype=np.float32)
    vectors[1, 2] = value
    path = tmp_path / f"v{suffix}"
    write_word2vec(path, ["one", "two", "three"], vectors, suffix.replace(".bin", "binary"))
    with pytest.raises(WordFileError, match="the vector of 'two' is not finite"):
        load_word_vectors(path)
    assert load_word_vectors(path, limit=1)[0].words == ["one"]


def test_a_tensor_with_a_vector_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    torch.save(torch.tensor([[0.0], [torch.nan]]), tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(["a"]))
    with pytest.raises(WordFileError, match="the vector of 'a' is not finite"):
        load_word_vectors(tmp_path / "word2vec.pth")


@pytest.mark.parametrize("cut", [4, 30, -9])
def test_a_cut_compressed_file_is_an_error(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "v.bin.gz"
    write_word2vec(path, ["one", "two"], np.random.default_rng(0).random((2, 40)), "binary")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(WordFileError, match="damaged or cut compressed file"):
        load_word_vectors(path)


def test_text_vectors_may_have_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(b"\xef\xbb\xbfone 1 2\r\n\r\ntwo 3 4\r\n\r\n")
    vocabulary, table = load_word_vectors(tmp_path / "v.txt")
    assert vocabulary.words == ["one", "two"] and table.tolist() == [[0, 0], [1, 2], [3, 4]]


def test_a_flipped_bit_of_a_table_is_found(tmp_path: Path) -> None:
    Vocabulary([f"w{k}" for k in range(500)]).save(tmp_path / "words.json")
    path = tmp_path / "word2vec.pth"
    torch.save(torch.rand(501, 20), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WordFileError, match=r"word2vec\.pth: .*wrong checksum of "):
        load_word_vectors(path, tmp_path / "words.json")


def test_a_vocabulary_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_bytes(b'\xef\xbb\xbf["red"]')
    assert Vocabulary.load(tmp_path / "v.json").words == ["red"]
    (tmp_path / "v.json").write_bytes(b'["red"')
    with pytest.raises(WordFileError, match="v.json"):
        Vocabulary.load(tmp_path / "v.json")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_word_is_refused(limit: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit must be at least 1"):
        load_word_vectors(tmp_path / "v.bin", limit=limit)


def test_a_header_that_promises_too_much_is_an_error_and_costs_no_memory(tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(b"900000000000 300\none " + b"\0" * 1200)
    with pytest.raises(WordFileError, match="ends after 1 of 900000000000 words"):
        load_word_vectors(tmp_path / "v.bin")
    (tmp_path / "v.bin").write_bytes(b"1 900000000000\none " + b"\0" * 1200)
    with pytest.raises(WordFileError, match="impossible header"):
        load_word_vectors(tmp_path / "v.bin")


READING = """
import resource
from pathlib import Path
from examples.vttwins.words import load_word_vectors

lines = Path("/proc/self/status").read_text().splitlines()
has = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
before, most = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (has + {limit}, most))
vocabulary, table = load_word_vectors(Path({path!r}))
resource.setrlimit(resource.RLIMIT_DATA, (before, most))  # what follows makes a mask of the table
assert vocabulary.words == [f"w{{k}}" for k in range(50_000)] and table[1:].eq(1).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.parametrize("suffix", [".bin", ".bin.gz"])
def test_reading_takes_little_more_than_one_table(
    suffix: str, tmp_path: Path, fresh: Forks
) -> None:
    """In a process that may have no more. Pages in memory would tell less: the system moves them
    out and in as it likes.
    """
    words, path = [f"w{k}" for k in range(50_000)], tmp_path / f"v{suffix}"
    vectors = np.ones((50_000, 300), np.float32)
    write_word2vec(path, words, vectors, "binary")
    fresh.run(READING.format(path=str(path), limit=3 * vectors.nbytes // 2))


@pytest.mark.parametrize("limit", [2, 3, 9])
def test_a_limit_keeps_the_first_words_of_the_released_pair_too(limit: int, tmp_path: Path) -> None:
    table = torch.rand(4, 5)
    torch.save(table, tmp_path / "word2vec.pth")
    np.save(tmp_path / "dict.npy", np.array(["a", "b", "c"]))
    vocabulary, kept = load_word_vectors(tmp_path / "word2vec.pth", limit=limit)
    assert vocabulary.words == ["a", "b", "c"][:limit] and torch.equal(kept, table[: limit + 1])


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
