"""Words: how a caption becomes integers, and where word vectors come from.

Requirements: NumPy and torch. Files of word vectors are untrusted input: nothing here unpickles.

A caption is split by the pattern [\\w']+, its case kept; words outside the vocabulary are dropped;
the id of a word is its index in the dictionary + 1; 0 is the pad, and a caption without a known
word is all pads.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from examples.vttwins.checkpoint import write_text

PATTERN = re.compile(r"[\w']+")
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
    return [] if says_nothing(text) else PATTERN.findall(str(text))


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
        words = json.loads(path.read_text(encoding="utf-8"))
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
    format, with or without the header line.

    Args:
        path: file of vectors.
        dictionary: file of words, only for a tensor; default ``dict.npy`` in the same folder.
        limit: read only this many words (word2vec files are sorted by frequency).

    Returns:
        the vocabulary and the table (len(vocabulary), D), whose row 0 is the pad.

    Raises:
        WordFileError: the file is cut, malformed, or does not fit its dictionary.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        return _read_tensor(path, Path(dictionary) if dictionary else path.parent / "dict.npy")
    if path.suffix == ".bin":
        return _read_binary(path, limit)
    return _read_text(path, limit)


def _with_pad(vectors: np.ndarray) -> Tensor:
    table = torch.zeros(vectors.shape[0] + 1, vectors.shape[1])
    table[1:] = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    return table


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


def _read_tensor(path: Path, dictionary: Path) -> tuple[Vocabulary, Tensor]:
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged zip, other pickles: a dozen types by version
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise WordFileError(
            f"{path}: torch.load(weights_only=True) refused this file: {reason}"
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
    return vocabulary, table.float()


def _read_header(line: bytes, path: Path) -> tuple[int, int]:
    try:
        count, dim = (int(field) for field in line.split())
    except ValueError:
        raise WordFileError(
            f"{path}: expected a header 'words dimension', got {line[:80]!r}"
        ) from None
    if count < 0 or dim < 1:
        raise WordFileError(f"{path}: impossible header {line[:80]!r}")
    return count, dim


def _read_word(file: BinaryIO) -> bytes:
    word = bytearray()
    while (byte := file.read(1)) not in (b" ", b""):
        if byte != b"\n" or word:  # some writers end each vector with a newline
            word += byte
        if len(word) > 10_000:
            raise EOFError
    if byte == b"":
        raise EOFError
    return bytes(word)


def _read_binary(path: Path, limit: int | None) -> tuple[Vocabulary, Tensor]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    with path.open("rb") as file:
        count, dim = _read_header(file.readline(200), path)
        wanted = count if limit is None else min(count, limit)
        for _ in range(wanted):
            try:
                word = _read_word(file)
            except EOFError:
                raise WordFileError(f"{path}: ends after {len(words)} of {count} words") from None
            data = file.read(4 * dim)
            if len(data) != 4 * dim:
                raise WordFileError(f"{path}: the vector of word {len(words)} is cut short")
            words.append(word.decode("utf-8", errors="replace"))
            rows.append(np.frombuffer(data, dtype="<f4"))
    return Vocabulary(words), _with_pad(np.stack(rows) if rows else np.zeros((0, dim)))


def _read_text(path: Path, limit: int | None) -> tuple[Vocabulary, Tensor]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    count: int | None = None
    dim: int | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            fields = line.rstrip().split(" ")
            if number == 0 and len(fields) == 2:  # the header of word2vec; GloVe has none
                count, dim = _read_header(line.encode(), path)
                continue
            if limit is not None and len(words) == limit:
                break
            dim = dim if dim is not None else len(fields) - 1
            if len(fields) <= dim or dim < 1:
                raise WordFileError(f"{path}, line {number + 1}: expected a word and {dim} numbers")
            try:  # a word may itself hold spaces, so the numbers are counted from the end
                rows.append(np.array(fields[-dim:], dtype=np.float32))
            except ValueError as error:
                raise WordFileError(f"{path}, line {number + 1}: {error}") from None
            words.append(" ".join(fields[:-dim]))
    if not rows:
        raise WordFileError(f"{path}: no word vectors in this file")
    if count is not None and limit is None and len(words) < count:
        raise WordFileError(f"{path}: ends after {len(words)} of {count} words")
    return Vocabulary(words), _with_pad(np.stack(rows))
