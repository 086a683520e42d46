"""Figures: the drawn lattice is the operator's, true pairs are true, titles follow the numbers."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.vttwins import config, pictures, weights
from examples.vttwins.ablation.features import Encoders
from examples.vttwins.ablation.world import Source, World
from examples.vttwins.checkpoint import write_text
from examples.vttwins.figures import __main__ as figures
from examples.vttwins.figures import draw, examples, paper
from examples.vttwins.figures.lattice import ALIGNING, align
from examples.vttwins.loss import COSTS, SequenceLoss
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary
from softdtw_kernels import s2dtw_alignment


def sequences(m: int = 4, n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(k, 3, generator=generator, dtype=torch.float64) for k in (m, n))


@pytest.mark.parametrize(
    ("operator", "cost", "origin_count"),
    [*itertools.product(ALIGNING, COSTS, (1,)), ("s2dtw", "cosine", 3)],
)
def test_the_lattice_that_is_drawn_is_the_operators(
    operator: str, cost: str, origin_count: int
) -> None:
    """Its value and the visits of its pairs are those that softdtw_kernels gives."""
    text, video = sequences()
    for gamma in (0.1, 1.0):
        loss = SequenceLoss(operator, cost=cost, gamma=gamma, origin_count=origin_count)
        lattice = align(text, video, loss)
        expected = s2dtw_alignment(
            text, video, gamma=gamma, cost=loss.cost, smoothing=loss.smoothing,
            dummy_cost=loss.dummy_cost, origin_count=origin_count,
        )  # fmt: skip
        assert lattice.value == pytest.approx(expected.value.item(), abs=1e-9)
        assert lattice.pairs.numpy() == pytest.approx(expected.expected.numpy(), abs=1e-9)
        pairs = lattice.path[(lattice.path % 2 == 1).all(1)] // 2 if lattice.dummies else None
        path = expected.path()
        assert isinstance(path, Tensor)
        assert (lattice.path if pairs is None else pairs).equal(path)
        # A path begins and ends at the corners.
        assert lattice.visits[0, 0].item() == pytest.approx(1, abs=1e-9)
        assert lattice.visits[-1, -1].item() == pytest.approx(1, abs=1e-9)


def test_entropy_is_that_of_the_paths() -> None:
    """All 13 paths through 3 x 3 equal costs weigh exp(-length c / gamma)."""
    same = torch.ones(3, 2, dtype=torch.float64)
    lattice = align(same, same, SequenceLoss("soft_dtw", cost="cosine", gamma=0.5))
    assert lattice.entropy == pytest.approx(np.log(13))  # cost 0: all alike
    with pytest.raises(ValueError, match="mil_nce aligns nothing"):
        align(same, same, SequenceLoss("mil_nce"))


def example(
    told: list[int | None], seen: list[int], embedded: Tensor | None = None
) -> draw.Example:
    m, n = len(told), len(seen)
    return draw.Example(
        "a video", torch.ones(n, 2) if embedded is None else embedded, torch.ones(m, 2),
        [str(s) for s in seen], [str(t) for t in told], list(seen), list(told),
    )  # fmt: skip


def test_true_pairs_are_those_that_are_seen_and_told() -> None:
    own = example([1, None, 0, 7], [0, 1, 1])
    expected = [[False, True, True], [False] * 3, [True, False, False], [False] * 3]
    assert own.matches.tolist() == expected
    other = own.told_by(example([7, 1], [0]))
    assert other.matches.tolist() == [[False] * 3, [False, True, True]]
    assert other.video is own.video and len(other.text) == 2


def test_what_is_said_of_visits_is_what_they_are() -> None:
    """Two captions, one true pair: the numbers in the sentence are sums of the drawn ones."""
    own = example([1, None], [0, 1])
    lattice = align(own.text, own.video, SequenceLoss("s2dtw"))
    pairs = lattice.pairs
    told = draw.visits_told(lattice, own.matches)
    assert f"a true pair {pairs[0, 1]:.2f}" in told
    assert f"another pair of these captions {pairs[0, 0]:.2f}" in told
    assert f"all pairs of a chatter caption {pairs[1].sum():.2f}" in told
    everything = lattice.visits.sum() - pairs.sum()
    assert f"all dummies {everything:.1f}" in told and everything > 1
    nothing = draw.visits_told(lattice, np.zeros((2, 2), dtype=bool))
    assert nothing.startswith(f"visits on average: all pairs of a caption {pairs.sum() / 2:.2f}")


def test_a_path_of_dummies_alone_has_no_share_on_the_diagonal() -> None:
    """Embeddings that point away from each other: every pair costs more than a dummy."""
    text, apart = torch.tensor([[1.0, 0.0]]).expand(3, 2), torch.tensor([[-1.0, 0.0]]).expand(3, 2)
    loss = SequenceLoss("s2dtw", cost="cosine")
    away, near = align(text, apart, loss), align(text, text, loss)
    assert paper._way(away) == "a path has 0.00 pairs, otherwise dummies"
    share = 100 * near.pairs.trace() / near.pairs.sum()
    expected = f"a path has {near.pairs.sum():.1f} pairs, {share:.0f} % on the diagonal"
    assert paper._way(near) == expected


@pytest.fixture(scope="module")
def run(narrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of the demo's kind, untrained."""
    folder = tmp_path_factory.mktemp("run")
    vocabulary = Vocabulary(["the", "red", "ring", "spins"])
    vocabulary.save(folder / "vocabulary.json")
    torch.manual_seed(0)
    model = VideoTextModel("plain", len(vocabulary), 8, word_dim=8)
    weights.export_safetensors(model, folder / "model.safetensors")
    settings = config.preset("demo", data=str(narrated), frames=4, size=32, resize=32, clips=3)
    write_text(folder / "settings.json", json.dumps(settings.__dict__))
    log = "".join(f'{{"step": {step}, "loss": {2 - step / 10}}}\n' for step in range(10))
    write_text(folder / "log.jsonl", log)
    return folder


def test_a_runs_examples_are_held_out_and_know_their_truth(run: Path, narrated: Path) -> None:
    trained = examples.of_run(run)
    assert [e.name for e in trained.examples] == ["test_00000", "test_00001"]
    for shown in trained.examples:
        truth = json.loads((narrated / "narrations" / f"{shown.name}.json").read_text())
        assert len(shown.frames) == len(shown.video) == len(shown.text) == 3
        for i, place in enumerate(truth["shown"][:3]):
            expected = [place == j for j in range(3)]
            assert shown.matches[i].tolist() == expected
    assert trained.loss.operator == "s2dtw" and trained.loss.direction == "symmetric"


def test_an_annotation_without_narrations_is_its_own_truth(
    run: Path, narrated: Path, tmp_path: Path
) -> None:
    shutil.copytree(narrated, tmp_path / "data", ignore=shutil.ignore_patterns("narrations"))
    trained = examples.of_run(run, tmp_path / "data")
    assert all(e.matches.tolist() == np.eye(3, dtype=bool).tolist() for e in trained.examples)
    (tmp_path / "data" / "videos" / "test_00001.mp4").unlink()
    with pytest.raises(ValueError, match="two held-out videos are needed, .* has 1"):
        examples.of_run(run, tmp_path / "data")


def test_pictures_of_a_run_are_drawn_for_every_operator(run: Path, tmp_path: Path) -> None:
    for operator in ("s2dtw", "mil_nce"):
        folder = tmp_path / operator
        shutil.copytree(run, folder)
        settings = json.loads((folder / "settings.json").read_text()) | {"operator": operator}
        write_text(folder / "settings.json", json.dumps(settings))
        if operator == "mil_nce":
            recall = {name: {"R@10": 30.0} for name in ("text_to_video", "video_to_text")}
            write_text(folder / "evaluations.jsonl", json.dumps({"step": 5, **recall}) + "\n")
        pictures.main([str(folder)])
        assert (folder / "alignment.png").read_bytes().startswith(b"\x89PNG")
    heights = [image_height(tmp_path / name / "loss.png") for name in ("s2dtw", "mil_nce")]
    assert heights[1] > 1.5 * heights[0]  # the panel of the evaluations


def test_pictures_of_a_run_whose_data_lie_elsewhere_name_the_option(
    run: Path, narrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    settings = json.loads((run / "settings.json").read_text()) | {"data": narrated.name}
    write_text(tmp_path / "run" / "settings.json", json.dumps(settings))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=rf"{narrated.name}/test\.csv does not exist.* give --data"
    ):
        pictures.main(["run"])
    pictures.main(["run", "--data", str(narrated)])


def image_height(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[20:24], "big")


def test_figures_of_given_runs_leave_out_what_was_not_given(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures.main([str(run), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "figure1a.png: left out, no run of plain was given" in printed
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figure2.png", "figure3.png", "gamma.png"}
    with pytest.raises(SystemExit, match="are both of the row s2dtw"):
        figures.main([str(run), str(run), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is no folder of a training run"):
        figures.main([str(tmp_path), "--out", str(tmp_path)])


def test_figures_of_the_feature_world_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # of this process
    figures.main(["--steps", "1", "--out", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"figure1a.png", "figure1b.png", "figure2.png", "figure3.png", "gamma.png"}
    assert "mean of 24 held-out videos" in capsys.readouterr().out


def test_the_worlds_examples_are_the_same_for_every_model() -> None:
    source = Source(World(seed=3))
    torch.manual_seed(0)
    two = [examples.of_world("a", Encoders(48, 4, 4), source, SequenceLoss(), 3) for _ in range(2)]
    for one, other in zip(two[0].examples, two[1].examples, strict=True):
        assert one.told == other.told and one.seen == other.seen and one.name == other.name
        assert not one.video.equal(other.video)
        assert (one.matches.any(1) == np.array([t is not None for t in one.told])).all()
