"""The ablation: the world's truth, the criteria at their borders, runs that go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.vttwins import checkpoint, config, metrics
from examples.vttwins.ablation import __main__ as ablation
from examples.vttwins.ablation import criteria, features, videos
from examples.vttwins.ablation.rows import BY_NAME, ROWS, Row
from examples.vttwins.ablation.runner import Study, run_jobs
from examples.vttwins.ablation.world import Source, World
from examples.vttwins.figures import __main__ as figures


def fail_at_seed_1(row: Row, seed: int, first: Path) -> dict[str, float]:
    """Work whose process dies at seed 1, once the result of seed 0 is there."""
    while seed == 1:
        if first.exists():
            os._exit(7)
        time.sleep(0.01)
    return {"R@10": float(seed)}


def results(**changes: dict[str, np.ndarray | float]) -> criteria.Table:
    """A table of eight seeds in which every claim is reproduced, but for the changes."""
    noise = np.linspace(-1, 1, 8)
    table: dict[str, dict[str, np.ndarray]] = {
        row.name: {
            "R@10": 70 + noise, "CTR": 40 + noise,
            "delta_mean": np.full(8, -0.1), "delta_sd": np.full(8, 0.3),
        }
        for row in ROWS
    }  # fmt: skip
    table["s2dtw"] |= {"R@10": 80 + noise, "CTR": 50 + noise}
    table["alone"] |= {
        "R@10": np.full(8, 6.0), "delta_mean": np.full(8, -0.99), "delta_sd": np.full(8, 0.005),
    }  # fmt: skip
    for row, numbers in changes.items():
        table[row] |= {name: np.broadcast_to(value, 8) for name, value in numbers.items()}
    return table


def verdicts(table: criteria.Table) -> list[str]:
    return [claim.verdict for claim in criteria.judge(table)]


def test_a_claim_is_reproduced_in_part_or_not_by_its_clauses() -> None:
    assert verdicts(results()) == ["reproduced"] * 4
    # The collapse: each of its clauses at its limit and just beyond.
    at = {"delta_mean": -0.97, "delta_sd": 0.01, "R@10": 12.0}
    assert verdicts(results(alone=at))[0] == "reproduced"
    for name, beyond in (("delta_mean", -0.969), ("delta_sd", 0.011), ("R@10", 12.1)):
        assert verdicts(results(alone=at | {name: beyond}))[0] == "in part"
    none = {"delta_mean": -0.5, "delta_sd": 0.2, "R@10": 12.0}
    assert verdicts(results(alone=none, s2dtw={"R@10": 74.9}))[0] == "not reproduced"
    # Two metrics, both wanted.
    assert verdicts(results(plain={"CTR": 60.0}))[1] == "in part"
    assert verdicts(results(plain={"CTR": 60.0, "R@10": 90.0}))[1] == "not reproduced"
    # Two metrics, one is enough; but both neighbors of gamma must be worse in the same one.
    assert verdicts(results(gamma1={"CTR": 60.0}))[2] == "reproduced"
    crossed = results(gamma1={"CTR": 60.0}, gamma001={"R@10": 90.0})
    assert verdicts(crossed)[2] == "in part"
    above = {"CTR": 60.0, "R@10": 90.0}
    assert verdicts(results(gamma1=above, gamma001=above))[2] == "not reproduced"
    # A claim that compares a row which is not there is not judged; the others are.
    few = {row: numbers for row, numbers in results().items() if row in ("s2dtw", "alone", "plain")}
    assert [claim.verdict for claim in criteria.judge(few)] == ["reproduced"] * 2
    # Three operators.
    assert verdicts(results(weak={"CTR": 60.0}))[3] == "in part"
    better = {"CTR": 60.0}
    assert verdicts(results(weak=better, soft_dtw=better, smoothed=better))[3] == "not reproduced"


def test_a_difference_counts_if_it_is_clear_and_wins_in_seven_of_eight() -> None:
    zero = np.zeros(8)
    assert criteria.counts(np.array([1.0] * 7 + [-0.1]), zero)
    assert not criteria.counts(np.array([1.0] * 6 + [-0.1] * 2), zero)
    # Eight wins, but the mean is within 2 sd / sqrt(8): 1.125 against 2 * 2.82 / 2.83.
    assert not criteria.counts(np.array([0.125] * 7 + [8.125]), zero)
    # The standard deviation is of the differences: a spread that both rows share is no noise.
    shared = np.arange(8) * 100.0
    assert criteria.counts(shared + np.linspace(1, 1.1, 8), shared)
    assert not criteria.counts(zero, zero) and not criteria.counts(zero * math.nan, zero)
    with pytest.raises(ValueError, match="3 seeds at least"):
        criteria.counts(np.ones(2), np.zeros(2))


def test_the_world_tells_what_it_says_of_a_narration() -> None:
    world = World(noise=0.0, nuisance=0)
    source = Source(world)
    batch = source.videos(600, np.random.default_rng(1))
    assert batch.video.shape == batch.text.shape == (600, 8, 40)
    assert (np.diff(batch.clip_step, axis=1) > 0).all()
    chat = batch.caption_step < 0
    assert abs(chat.mean() - 0.6) < 0.03
    # What is told is the caption of a step of the same video, at most 2 + a chain of swaps away.
    k, i = np.argwhere(~chat)[0]
    latent = source.latents[batch.task[k], batch.caption_step[k, i]]
    assert np.allclose(batch.text[k, i], source.observe(latent, "caption", None))
    assert (batch.matches().any(2) == ~chat).all()
    still = Source(World(shift=0, swap=0.0, chatter=0.0)).videos(5, np.random.default_rng(1))
    assert (still.caption_step == still.clip_step).all()
    # The same seed gives the same world and draws, another seed another world.
    again = Source(world).videos(600, np.random.default_rng(1))
    assert again.video.equal(batch.video) and again.text.equal(batch.text)
    assert not np.allclose(Source(World(seed=1)).latents, source.latents)


def test_rows_of_a_seed_start_alike_and_see_the_same_videos() -> None:
    """One step at a rate of 0 leaves two rows with the same weights, and measures the same."""
    settings = features.FeatureSettings(steps=1, learning_rate=0.0, segments_per_step=1)
    one, two = (features.run(BY_NAME[name], 3, settings) for name in ("s2dtw", "mil_nce"))
    assert one == two
    assert one != features.run(BY_NAME["s2dtw"], 4, settings)


def test_segments_of_the_world_are_all_steps_with_their_names() -> None:
    """A model that knows the latents finds every step, a constant one finds one in ten."""
    source = Source(World(noise=0.0))
    clips, names, task, step = source.segments(2, np.random.default_rng(0))
    assert clips.shape == names.shape == (240, 48)
    known = np.tile(source.latents.reshape(-1, 16), (2, 1))
    assert metrics.trimmed_step_accuracy(known, known, task, step)["mean"] == 100
    constant = np.ones((240, 4))
    chance = metrics.trimmed_step_accuracy(constant, constant, task, step)["mean"]
    assert chance == pytest.approx(10)


SMALL = ["--features", "--steps", "2", "--rows", "s2dtw,alone", "--seeds", "0,1"]


def test_the_command_goes_on_with_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path), "--processes", "1"]
    ablation.main([*SMALL, *out])
    first = capsys.readouterr().out
    assert first.count("seed 0: R@10") == 2 and "Not judged" in first
    summary = json.loads((tmp_path / "features.json").read_text())
    assert summary["seeds"] == [0, 1] and set(summary["rows"]) == {"s2dtw", "alone"}
    assert len(summary["rows"]["s2dtw"]["R@10"]["values"]) == 2
    (tmp_path / "features" / "alone-1.json").unlink()
    ablation.main([*SMALL, *out])
    second = capsys.readouterr().out
    assert "3 of 4 results are there" in second and second.count(": R@10") == 1
    assert json.loads((tmp_path / "features.json").read_text())["rows"] == summary["rows"]
    # A result of other settings is neither used nor overwritten; a damaged one is not either.
    with pytest.raises(SystemExit, match="other settings; give another --out"):
        ablation.main([*SMALL, *out, "--steps", "3"])
    (tmp_path / "features" / "alone-1.json").write_text("{")
    with pytest.raises(SystemExit, match="is no result of this command"):
        ablation.main([*SMALL, *out])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "x"],
        ["--seeds", "3-"],
        ["--rows", "s3dtw"],
        ["--processes", "0"],
        ["--seeds", "1,1"],
    ],
)
def test_bad_arguments_leave_with_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        ablation.main(["--features", *arguments])
    assert left.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_a_row_of_the_video_ablation_is_trained_measured_and_kept_for_the_figures(
    narrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--video", "--rows", "plain", "--seeds", "7", "--steps", "1", "--processes", "1"]
    line += ["--data", str(narrated), "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    ablation.main(line)
    result = json.loads((tmp_path / "video" / "plain-7.json").read_text())
    assert result["settings"]["world"]["train_videos"] == 8
    assert 0 <= result["result"]["R@10"] <= 100 and -1 <= result["result"]["delta_mean"] <= 1
    folder = tmp_path / "runs" / "plain-7"
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["cost"] == "cosine" and settings["direction"] == "t2v" and not settings["tda"]
    assert settings["seed"] == 7 and settings["steps"] == 1
    assert figures.role(folder) == "plain"
    assert (folder / "model.safetensors").exists() and not list(folder.glob("*.pt"))
    # What is measured anew needs no training.
    (tmp_path / "video" / "plain-7.json").unlink()
    log = (folder / "log.jsonl").stat().st_mtime_ns
    ablation.main(line)
    torch.set_num_threads(threads)  # only now: with more of them sums are rounded otherwise
    assert (
        json.loads((tmp_path / "video" / "plain-7.json").read_text())["result"]
        == (result["result"])
    )
    assert (folder / "log.jsonl").stat().st_mtime_ns == log
    # A folder with something else in it is no place for the generated set.
    with pytest.raises(SystemExit, match="holds no generated set"):
        ablation.main([*line, "--data", str(tmp_path)])


def test_weights_of_other_settings_are_no_result_of_this_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(arguments: list[str]) -> None:
        asked, _ = config.parse(arguments, None, config.Settings, config.PRESETS)
        out = Path(asked.out)
        checkpoint.write_text(out / "settings.json", json.dumps(dataclasses.asdict(asked)))
        (out / "model.safetensors").touch()

    monkeypatch.setattr(videos.train, "main", train)
    monkeypatch.setattr(videos, "evaluate_run", lambda *_: {"R@10": 1.0})
    data = tmp_path / "data"
    folder = tmp_path / "runs" / "s2dtw-0"
    data.mkdir()
    (data / "world.json").write_text('{"seed": 0}')
    settings = videos.VideoSettings(str(data), str(tmp_path / "runs"), steps=5)
    for _ in range(2):  # the second time there is nothing to train
        assert videos.run(BY_NAME["s2dtw"], 0, settings) == {"R@10": 1.0}
    moved = dataclasses.replace(settings, data=str(data.rename(tmp_path / "moved")))
    assert videos.run(BY_NAME["s2dtw"], 0, moved) == {"R@10": 1.0}
    before = sorted(path.read_bytes() for path in folder.iterdir())
    for row, changes, message in (
        (BY_NAME["s2dtw"], {"steps": 6}, "steps: 5 then, 6 now"),
        (BY_NAME["s2dtw"], {"batch": 4}, "batch: 8 then, 4 now"),
        (dataclasses.replace(BY_NAME["s2dtw"], gamma=0.3), {}, "gamma: 0.1 then, 0.3 now"),
    ):
        other = dataclasses.replace(moved, **changes)
        with pytest.raises(ValueError, match=rf"{message}\).*another --out, or delete"):
            videos.run(row, 0, other)
    (tmp_path / "moved" / "world.json").write_text('{"seed": 1}')
    with pytest.raises(ValueError, match="the generated videos are others"):
        videos.run(BY_NAME["s2dtw"], 0, moved)
    (folder / "settings.json").rename(tmp_path / "kept.json")
    with pytest.raises(ValueError, match="weights without their settings"):
        videos.run(BY_NAME["s2dtw"], 0, moved)
    (tmp_path / "kept.json").rename(folder / "settings.json")
    assert sorted(path.read_bytes() for path in folder.iterdir()) == before


def test_a_process_that_dies_ends_the_command_and_keeps_what_is_done(tmp_path: Path) -> None:
    study = Study(partial(fail_at_seed_1, first=tmp_path / "s2dtw-0.json"), {}, tmp_path)
    jobs = [("s2dtw", seed) for seed in range(4)]  # the second process gets 1 and 3
    with pytest.raises(RuntimeError, match="ended with code 7"):
        run_jobs(study, jobs, processes=2)
    assert study.load("s2dtw", 0) == {"R@10": 0.0}
    assert study.load("s2dtw", 1) is None and study.load("s2dtw", 3) is None
