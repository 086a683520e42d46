"""Every layout of checkpoint found in the wild loads; everything else is a clear, safe error."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.vttwins import weights
from examples.vttwins.model import FRONT_ENDS, VideoTextModel
from examples.vttwins.words import Vocabulary


@pytest.fixture(scope="module", params=FRONT_ENDS)
def model(request: pytest.FixtureRequest) -> VideoTextModel:
    torch.manual_seed(1)
    return VideoTextModel(request.param, vocabulary_size=11, embedding_dim=6, word_dim=5)


LAYOUTS = {
    "flat": lambda state: state,
    "prefixed": lambda state: {f"module.{k}": v for k, v in state.items()},
    "nested": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}, "scheduler": {}},
    "nested and prefixed": lambda state: {
        "epoch": 3,
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "nested by another name": lambda state: {"epoch": 3, "model_state_dict": state},
    "of a trainer": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
}


def assert_same(a: VideoTextModel, b: VideoTextModel) -> None:
    assert a.front_end == b.front_end
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_state_dict(layout: str, tmp_path: Path) -> None:
    state = {"conv1.conv1.weight": torch.rand(2, 3), "fc.bias": torch.rand(2)}
    torch.save(LAYOUTS[layout](state), tmp_path / "weights.pth")
    found = weights.read_state_dict(tmp_path / "weights.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], v) for k, v in state.items())


def test_a_model_is_built_as_its_file_needs(model: VideoTextModel, tmp_path: Path) -> None:
    torch.save(LAYOUTS["nested and prefixed"](model.state_dict()), tmp_path / "weights.pth")
    assert_same(weights.load_model(tmp_path / "weights.pth"), model)


def test_a_file_from_before_batches_were_counted_loads(tmp_path: Path) -> None:
    model = VideoTextModel(vocabulary_size=11, embedding_dim=6, word_dim=5)
    old = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    weights.load_into(model, tmp_path / "old.pth")
    assert_same(weights.load_model(tmp_path / "old.pth"), model)


def test_safetensors_round_trip(model: VideoTextModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights.export_safetensors(model, path)
    assert_same(weights.load_model(path), model)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_file_says_of_which_words_it_is_if_it_knows(
    model: VideoTextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = Vocabulary([f"w{k}" for k in range(10)])
    others = Vocabulary(words.words[::-1])
    path = tmp_path / "model.safetensors"
    for digest in (None, words.digest):
        notes = {} if digest is None else {"files": {"vocabulary": digest}}
        torch.save({"state_dict": model.state_dict(), **notes}, tmp_path / "last.pt")
        monkeypatch.setattr(model, "words_digest", digest)
        weights.export_safetensors(model, path)
        for file in (tmp_path / "last.pt", path):
            loaded = weights.load_model(file)
            assert_same(loaded, model)
            assert loaded.words_digest == digest
            weights.check_words(words, "words", loaded, file)
            weights.load_into(loaded, file, words)
            if digest is None:  # an older file: nothing tells as many other words
                weights.check_words(others, "others", loaded, file)
                continue
            with pytest.raises(weights.WeightsError, match="others has as many words as the model"):
                weights.check_words(others, "others", loaded, file)
            with pytest.raises(weights.WeightsError, match="the vocabulary has as many words"):
                weights.load_into(loaded, file, others)
            with pytest.raises(weights.WeightsError, match=r"has 4 words with the pad, .* 11$"):
                weights.check_words(Vocabulary(["a", "b", "c"]), "few", loaded, file)


def test_the_video_part_alone_loads_and_leaves_the_text_part_as_it_is(
    model: VideoTextModel, tmp_path: Path
) -> None:
    video = {k: v for k, v in model.state_dict().items() if not k.startswith("text_module.")}
    torch.save({"module." + k: v for k, v in video.items()}, tmp_path / "video.pth")
    with pytest.warns(UserWarning, match="the video part alone; texts cannot be embedded"):
        alone = weights.load_model(tmp_path / "video.pth")
    assert alone.front_end == model.front_end and alone.text_module.word_embd.num_embeddings == 1
    other = VideoTextModel(model.front_end, vocabulary_size=7, embedding_dim=6, word_dim=3)
    before = {k: v.clone() for k, v in other.text_module.state_dict().items()}
    with pytest.warns(UserWarning, match="the text part keeps its values"):
        weights.load_into(other, tmp_path / "video.pth")
    for loaded in (alone.state_dict(), other.state_dict()):
        assert all(torch.equal(loaded[k], v) for k, v in video.items())
    assert all(torch.equal(other.text_module.state_dict()[k], v) for k, v in before.items())
    del video["conv1.conv1.weight"]
    torch.save(video, tmp_path / "video.pth")
    with pytest.warns(UserWarning), pytest.raises(weights.WeightsError, match="1 missing"):
        weights.load_into(other, tmp_path / "video.pth")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    model = VideoTextModel(vocabulary_size=3, embedding_dim=2, word_dim=2)
    path = tmp_path / "last.pt"
    torch.save({"state_dict": model.state_dict()}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for load in (weights.load_model, lambda file: weights.load_into(model, file)):
        with pytest.raises(weights.WeightsError, match="damaged .*wrong checksum of "):
            load(path)


def test_a_file_that_does_not_fit_lists_what_and_changes_nothing(tmp_path: Path) -> None:
    model = VideoTextModel(vocabulary_size=11, embedding_dim=6, word_dim=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state: dict[str, Any] = dict(model.state_dict())
    del state["mixed_3b.gating_b0.fc.bias"]
    state["mixed_9z.weight"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(weights.WeightsError) as caught:
        weights.load_into(model, tmp_path / "wrong.pth")
    for part in ("mixed_3b.gating_b0.fc.bias", "mixed_9z.weight", "fc.bias is (7,), expected (6,)"):
        assert part in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(2)},
        {},
        [torch.zeros(2)],
        {"state_dict": {"conv1.conv1.weight": 3}},
        {"conv1.conv1.weight": torch.zeros(64, 5, 3, 7, 7)},
    ],
    ids=["other names", "empty", "a list", "no tensors", "five channels"],
)
def test_files_of_something_else_are_refused_in_words(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(weights.WeightsError, match="other.pth"):
        weights.load_model(tmp_path / "other.pth")


class _RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_a_file_that_would_run_code_runs_none(name: str, tmp_path: Path) -> None:
    evidence = tmp_path / "code has run"
    torch.save({"state_dict": _RunsCode(evidence)}, tmp_path / "evil.pth")
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(_RunsCode(evidence)))
    with pytest.raises(weights.WeightsError):
        weights.load_model(tmp_path / name)
    assert not evidence.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    model = VideoTextModel(vocabulary_size=3, embedding_dim=2, word_dim=2)
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        weights.export_safetensors(model, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(weights.WeightsError, match="cut"):
        weights.load_model(path)
