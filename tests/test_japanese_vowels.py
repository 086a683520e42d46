"""The example on real recordings, on data made here: nothing is downloaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.japanese_vowels import data, model

pytest.importorskip("matplotlib", reason="the pictures need matplotlib, of the extra plot")

from examples.japanese_vowels.pictures import write_pictures


def text_of(utterances: data.Utterances) -> str:
    lines = ["# a comment: with a colon", "@problemName Made", "@data"]
    for frames, speaker in zip(utterances.frames, utterances.speakers.tolist(), strict=True):
        dimensions = [",".join(map(str, series)) for series in frames.T.tolist()]
        lines.append(":".join([*dimensions, str(speaker + 1)]))
    return "\n".join(lines) + "\n"


def made(each: int, seed: int) -> data.Utterances:
    """Utterances of nine speakers: one curve a speaker, at its own pace in every utterance."""
    generator = torch.Generator().manual_seed(seed)
    frames, speakers = [], []
    for speaker in range(data.SPEAKERS):
        for _ in range(each):
            length = int(torch.randint(10, 20, (), generator=generator))
            pace = torch.rand(length, generator=generator).add(0.1).cumsum(0)
            time = (pace - pace[0]) / (pace[-1] - pace[0]) * 3.0
            curve = torch.stack([torch.sin(time + speaker), torch.cos(speaker * time)], 1)
            frames.append(curve + 0.05 * torch.randn(curve.shape, generator=generator))
            speakers.append(speaker)
    return data.Utterances(frames, torch.tensor(speakers))


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 8)), min_size=1, max_size=4
    )
)
def test_what_is_written_is_read(shapes: list[tuple[int, int, int]]) -> None:
    written = data.Utterances(
        [torch.randn(length, dimensions) for length, dimensions, _ in shapes],
        torch.tensor([speaker for *_, speaker in shapes]),
    )
    read = data.parse(text_of(written))
    assert torch.equal(read.speakers, written.speakers)
    for one, other in zip(read.frames, written.frames, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


def test_a_wheel_with_other_recordings_is_refused(tmp_path: Path) -> None:
    text = text_of(made(1, seed=0))
    with zipfile.ZipFile(tmp_path / "aeon-0.0.0-py3-none-any.whl", "w") as wheel:
        for part in data.SIZES:
            wheel.writestr(data.MEMBER.format(part=part), text)
    with pytest.raises(ValueError, match="9 utterances .* expected 270"):
        data.load(tmp_path)


def test_resampling_keeps_ends_and_straight_lines() -> None:
    line = torch.linspace(-1.0, 3.0, 7)[:, None] * torch.tensor([1.0, -2.0])
    resampled = model.resample(line, 25)
    expected = torch.linspace(-1.0, 3.0, 25)[:, None] * torch.tensor([1.0, -2.0])
    torch.testing.assert_close(resampled, expected)


def test_speakers_who_differ_by_more_than_pace_are_told_apart() -> None:
    train, test = made(4, seed=1), made(3, seed=2)
    length = model.median_length(train)
    calls: list[None] = []
    means = model.soft_dtw_means(train, length, 0.1, lambda: calls.append(None))
    assert means.shape == (data.SPEAKERS, length, 2) and len(calls) == data.SPEAKERS
    assert torch.equal(model.soft_dtw_predictions(means, test.frames, 0.1), test.speakers)


def test_pictures_are_written(tmp_path: Path) -> None:
    train = made(3, seed=3)
    means = model.euclidean_means(train, 12)
    paths = write_pictures(tmp_path / "pictures", train, 0.1, means, means)
    assert len(paths) == 3
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
