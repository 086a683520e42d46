"""Words: how a caption becomes integers, and where word vectors come from.

Requirements: NumPy and torch. Files of word vectors are untrusted input: nothing here unpickles.

A caption is split by the pattern [\\w']+, its case kept, accents that are written apart (NFD, as
macOS writes names; not Korean syllables) put on their letters first; words outside the vocabulary
are dropped; the id of a word is its index in the dictionary + 1; 0 is the pad, and a caption
without a known word is all pads.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from examples.vttwins.checkpoint import digest_of_lines, read_tensors, write_text

PATTERN = re.compile(r"[\w']+")
# A letter and its marks: of Latin, Greek, Cyrillic; Arabic; Devanagari; kana. None is in PATTERN,
# so a text of words of the pattern alone stays as it is, whatever NFC would make of it.
_MARKED = re.compile("\\w[\u0300-\u036f\u0653-\u0655\u093c\u3099\u309a]+")
TRAIN_WORDS = 20
EVAL_WORDS = 30


class WordFileError(ValueError):
    """A file of words or word vectors that is not what its format promises."""


def says_nothing(text: object) -> bool:
    """Whether a caption is null or NaN, as JSON and tables write an empty one."""
    return text is None or text != text


def tokenize(text: object) -> list[str]:
    """Words of a caption, in order; none where it is null or NaN.

    Example:
        >>> tokenize("Now, let's whisk 2 eggs")
        ['Now', "let's", 'whisk', '2', 'eggs']
        >>> tokenize(float("nan"))
        []
    """
    if says_nothing(text):
        return []
    composed = _MARKED.sub(lambda found: unicodedata.normalize("NFC", found[0]), str(text))
    return PATTERN.findall(composed)


class Vocabulary:
    """An ordered list of distinct words; the id of ``words[i]`` is i + 1, and 0 is the pad.

    Example:
        >>> vocabulary = Vocabulary(["red", "square"])
        >>> vocabulary.encode("a red square", 4).tolist()
        [1, 2, 0, 0]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [str(word) for word in words]
        # The release's dictionary decides by its last occurrence; so does this one.
        self.ids = {word: i + 1 for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Rows of the table of word vectors, the pad included."""
        return len(self.words) + 1

    @property
    def digest(self) -> str:
        """SHA-256 of the words in their order, which tells them from others as many."""
        return digest_of_lines(self.words)

    def encode(self, text: object, max_words: int = TRAIN_WORDS) -> Tensor:
        """Ids (max_words,) of the known words of a caption, cut or padded with 0."""
        ids = [self.ids[word] for word in tokenize(text) if word in self.ids][:max_words]
        return torch.tensor(ids + [0] * (max_words - len(ids)), dtype=torch.int64)

    def encode_all(self, texts: Iterable[object], max_words: int = TRAIN_WORDS) -> Tensor:
        """Ids (number of captions, max_words)."""
        rows = [self.encode(text, max_words) for text in texts]
        return torch.stack(rows) if rows else torch.zeros(0, max_words, dtype=torch.int64)

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps(self.words, ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what ``save`` wrote (a JSON list), or the release's ``dict.npy``."""
        path = Path(path)
        if path.suffix == ".npy":
            return cls(_read_word_array(path))
        try:
            words = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise WordFileError(f"{path}: expected a JSON list of words: {error}") from None
        if not isinstance(words, list):
            raise WordFileError(
                f"{path}: expected a JSON list of words, got {type(words).__name__}"
            )
        return cls(words)

    @classmethod
    def from_captions(cls, captions: Iterable[object], min_count: int = 1) -> Vocabulary:
        """Every word seen at least ``min_count`` times, the most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls([word for word, count in ordered if count >= min_count])


def load_word_vectors(
    path: str | Path, dictionary: str | Path | None = None, limit: int | None = None
) -> tuple[Vocabulary, Tensor]:
    """Read word vectors; the format follows from the name.

    ``.pth`` or ``.pt``: a tensor whose row 0 is the pad, with its ``dictionary`` (``dict.npy`` or
    JSON) beside it, as released. ``.bin``: the binary format of word2vec. Anything else: its text
    format, with or without the header line. The last two may be compressed: ``.bin.gz``, ``.gz``.

    The table is held in memory once, while it is read, too: 1.2 GB for a million words of 300
    numbers. Only the model holds it: neither the vocabulary nor the workers that decode do.

    Args:
        path: file of vectors.
        dictionary: file of words, only for a tensor; default ``dict.npy`` in the same folder.
        limit: keep only this many words (word2vec files are sorted by frequency); None: all.

    Returns:
        the vocabulary and the table (len(vocabulary), D), whose row 0 is the pad.

    Raises:
        WordFileError: the file is cut, malformed, holds NaN or infinity, or does not fit its
            dictionary.
        ValueError: ``limit`` is less than 1.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 word, or None for all, got {limit}")
    if path.suffix in (".pth", ".pt"):
        words = Path(dictionary) if dictionary else path.parent / "dict.npy"
        vocabulary, vectors = _read_tensor(path, words, limit)
    else:
        uncompressed = path.with_suffix("") if path.suffix == ".gz" else path
        read = _read_binary if uncompressed.suffix == ".bin" else _read_text
        with _opened(path) as file:
            rows = read(file, path, limit)
        vocabulary, vectors = Vocabulary(rows.words), rows.table()
    _check_finite(vectors, vocabulary, path)
    return vocabulary, vectors


class _Rows:
    """Words and their vectors while they are read, in one growing block of memory."""

    def __init__(self, dim: int) -> None:
        self.words: list[str] = []
        self.dim = dim
        self.numbers = array("f", bytes(4 * dim))  # the pad

    def table(self) -> Tensor:
        """Float32 (words + 1, D) on the same memory."""
        return torch.frombuffer(self.numbers, dtype=torch.float32).view(-1, self.dim)


@contextmanager
def _opened(path: Path) -> Any:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise WordFileError(f"{path}: damaged or cut compressed file: {error}") from None


def _check_finite(table: Tensor, vocabulary: Vocabulary, path: Path) -> None:
    for first in range(0, len(table), 1024):  # the check takes memory of its own
        wrong = (~table[first : first + 1024].isfinite()).any(1).nonzero()
        if len(wrong):
            row = first + int(wrong[0])
            word = repr(vocabulary.words[row - 1]) if row else "the pad"
            raise WordFileError(f"{path}: the vector of {word} is not finite")


def _read_word_array(path: Path) -> list[str]:
    try:
        words = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise WordFileError(
            f"{path}: expected a NumPy array of strings (an array of Python objects would need "
            f"unpickling, which is refused): {error}"
        ) from None
    if words.ndim != 1 or words.dtype.kind != "U":
        raise WordFileError(
            f"{path}: expected a 1-d array of strings, got {words.ndim}-d {words.dtype}"
        )
    return [str(word) for word in words]


def _read_tensor(path: Path, dictionary: Path, limit: int | None) -> tuple[Vocabulary, Tensor]:
    try:
        table = read_tensors(path)
    except ValueError as error:
        raise WordFileError(
            f"{path}: torch.load(weights_only=True) refused this file: {error}"
        ) from None
    if isinstance(table, dict) and len(table) == 1:  # the state dict of an Embedding
        table = next(iter(table.values()))
    if not isinstance(table, Tensor) or table.ndim != 2:
        raise WordFileError(
            f"{path}: expected one tensor (words + 1, D), got {type(table).__name__}"
        )
    vocabulary = Vocabulary.load(dictionary)
    if table.shape[0] != len(vocabulary):
        raise WordFileError(
            f"{path} has {table.shape[0]} rows but {dictionary} needs {len(vocabulary)} "
            f"({len(vocabulary) - 1} words and the pad)"
        )
    if limit is not None and limit < len(vocabulary.words):
        return Vocabulary(vocabulary.words[:limit]), table[: limit + 1].float().clone()
    return vocabulary, table.float()


def _read_header(line: bytes, path: Path) -> tuple[int, int]:
    try:
        count, dim = (int(field) for field in line.split())
    except ValueError:
        raise WordFileError(
            f"{path}: expected a header 'words dimension', got {line[:80]!r}"
        ) from None
    if count < 0 or not 1 <= dim <= LARGEST_DIM:
        raise WordFileError(f"{path}: impossible header {line[:80]!r}")
    return count, dim


LARGEST_DIM = 100_000
BLOCK = 1 << 20  # bytes read at a time
LONGEST_WORD = 10_000


def _read_binary(file: IO[bytes], path: Path, limit: int | None) -> _Rows:
    count, dim = _read_header(file.readline(200), path)
    rows, size = _Rows(dim), 4 * dim
    buffer, place = b"", 0
    for _ in range(count if limit is None else min(count, limit)):
        end = buffer.find(b" ", place)
        while end < 0 or len(buffer) < end + 1 + size:
            more = file.read(max(BLOCK, size))
            if not more or (end < 0 and len(buffer) - place > LONGEST_WORD):
                raise WordFileError(
                    f"{path}: ends after {len(rows.words)} of {count} words"
                    if end < 0
                    else f"{path}: the vector of word {len(rows.words)} is cut short"
                )
            buffer, place = buffer[place:] + more, 0
            end = buffer.find(b" ")
        # Some writers end each vector with a newline.
        rows.words.append(buffer[place:end].lstrip(b"\n").decode("utf-8", errors="replace"))
        place = end + 1 + size
        rows.numbers.frombytes(buffer[end + 1 : place])
    if sys.byteorder == "big":
        rows.numbers.byteswap()
    return rows


def _read_text(file: IO[bytes], path: Path, limit: int | None) -> _Rows:
    rows: _Rows | None = None
    count: int | None = None
    for number, raw in enumerate(file):
        if number == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte order mark
        fields = raw.decode("utf-8", errors="replace").rstrip().split(" ")
        if number == 0 and len(fields) == 2:  # the header of word2vec; GloVe has none
            count, dim = _read_header(raw, path)
            rows = _Rows(dim)
            continue
        if fields == [""]:
            continue
        if rows is None:
            rows = _Rows(max(len(fields) - 1, 1))
        if limit is not None and len(rows.words) == limit:
            break
        if len(fields) <= rows.dim:
            raise WordFileError(
                f"{path}, line {number + 1}: expected a word and {rows.dim} numbers"
            )
        try:  # a word may itself hold spaces, so the numbers are counted from the end
            rows.numbers.extend(map(float, fields[-rows.dim :]))
        except ValueError as error:
            raise WordFileError(f"{path}, line {number + 1}: {error}") from None
        rows.words.append(" ".join(fields[: -rows.dim]))
    if rows is None or not rows.words:
        raise WordFileError(f"{path}: no word vectors in this file")
    if count is not None and limit is None and len(rows.words) < count:
        raise WordFileError(f"{path}: ends after {len(rows.words)} of {count} words")
    return rows
