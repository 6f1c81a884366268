"""The demo: its recording is what it says, its comparison can fail, and the whole of it runs."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pynapple as nap
import pytest
import torch

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.demo import run, story
from neurofmx_wds.demo.recording import ARENA_M, N_DIRECTION, N_PLACE, POSITION_HZ, Recording, simulate, write_nwb
from neurofmx_wds.demo.train import Job, checksum, train, windows_within
from neurofmx_wds.errors import NeurofmxError, OutputError
from neurofmx_wds.format.writer import create_shards_from_arrays


@pytest.fixture(scope="module")
def session() -> Recording:
    return simulate(120, seed=3)


def test_a_seed_fixes_the_session(session: Recording) -> None:
    again, other = simulate(120, seed=3), simulate(120, seed=4)
    assert np.array_equal(session.position, again.position) and np.array_equal(session.lfp, again.lfp)
    assert all(np.array_equal(a, b) for a, b in zip(session.spike_times, again.spike_times, strict=True))
    assert not np.array_equal(session.position, other.position)


def test_the_animal_stays_in_the_arena_and_moves_like_one(session: Recording) -> None:
    assert session.position.shape == (120 * POSITION_HZ, 2)
    assert session.position.min() >= 0 and session.position.max() <= ARENA_M
    speed = np.linalg.norm(np.diff(session.position, axis=0), axis=1) * POSITION_HZ
    assert 0.1 < speed.mean() < 0.5
    visited, *_ = np.histogram2d(*session.position.T, bins=4, range=[[0, ARENA_M]] * 2)
    assert np.mean(visited > 0) > 0.8


def test_units_are_tuned(session: Recording) -> None:
    """Mutual information between place and spikes, by pynapple, is far above that of shifted spikes."""
    time = np.arange(len(session.position)) / POSITION_HZ
    place = nap.TsdFrame(time, session.position, columns=["x", "y"])
    shifted = [(times + 60) % 120 for times in session.spike_times]
    information = []
    for trains in (session.spike_times, shifted):
        group = nap.TsGroup({unit: nap.Ts(np.sort(times)) for unit, times in enumerate(trains[:N_PLACE])})
        curves = nap.compute_tuning_curves(group, place, bins=6)
        information.append(np.nanmedian(nap.compute_mutual_information(curves)["bits/spike"]))
    assert information[0] > 1.5 * information[1]


def test_direction_cells_follow_the_heading(session: Recording) -> None:
    velocity = np.gradient(session.position, axis=0)
    heading = np.arctan2(velocity[:, 1], velocity[:, 0])
    preferred = np.linspace(-np.pi, np.pi, N_DIRECTION, endpoint=False)
    for times, wanted in zip(session.spike_times[N_PLACE : N_PLACE + N_DIRECTION], preferred, strict=True):
        at = heading[np.minimum((times * POSITION_HZ).astype(int), len(heading) - 1)]
        mean = np.angle(np.exp(1j * at).mean())
        assert abs(np.angle(np.exp(1j * (mean - wanted)))) < 0.5


def test_lfp_has_theta(session: Recording) -> None:
    power = nap.compute_power_spectral_density(
        nap.Tsd(np.arange(len(session.lfp)) / 1250, session.lfp[:, 0].astype(float))
    )
    smooth = power.iloc[:, 0].abs().rolling(25, center=True).mean()
    band = smooth[(smooth.index > 2) & (smooth.index < 40)]
    assert 6 < band.idxmax() < 10


@pytest.mark.filterwarnings("error")
def test_the_file_holds_the_session(session: Recording, tmp_path: Path) -> None:
    write_nwb(session, tmp_path / "a.nwb")
    file = nap.load_file(str(tmp_path / "a.nwb"))
    assert all(np.allclose(file["units"][unit].t, times, atol=1e-9) for unit, times in enumerate(session.spike_times))
    assert list(file["units"]["cell_type"]).count("place") == N_PLACE
    assert np.array_equal(file["position"].values, session.position)
    assert len(file["trials"]) == 12
    assert file["lfp"].shape == session.lfp.shape


@pytest.mark.parametrize("bad", [{"seconds": 10}, {"seconds": math.nan}, {"epochs": 1}, {"seed": -1}])
def test_what_it_cannot_do_is_refused(tmp_path: Path, bad: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"^{name}={value}: "):
        run(tmp_path / "new", **bad)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--output", str(tmp_path / "new"), f"--{name}", str(value)])
    assert left.value.code == 2 and f"--{name}={value}: " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_too_short_a_session_is_refused() -> None:
    with pytest.raises(ValueError, match="one trial"):
        simulate(5, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    output, told = tmp_path_factory.mktemp("demo"), []
    return output, run(output, seconds=60, epochs=4, report=told.append), told


def test_the_whole_demo(demo: tuple[Path, dict[str, Any], list[str]]) -> None:
    output, found, told = demo
    assert found["identical"] and found["resumed_after"] < found["killed_after"] < found["batches"]
    assert 0 < found["state"]["position"] < found["windows"], "it was to be resumed in mid-epoch"
    assert found["error_cm"] < found["baseline_cm"]
    assert found["picture"] and Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert [line[:2] for line in told if line[0].isdigit()] == [f"{n}." for n in range(1, 8)]
    assert max(map(len, told)) <= max(100, len(str(output)) + 30)


@pytest.mark.slow
def test_as_users_run_it_it_decodes_well(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found["error_cm"] < 8 < 30 < found["baseline_cm"]


def test_without_matplotlib_it_says_how_to_get_the_picture(
    demo: tuple[Path, dict[str, Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "neurofmx_wds.demo.picture", None)
    told: list[str] = []
    training, held_out = story.parts_of(60)
    job = Job("", str(demo[0] / "runs/interrupted"), 60, 4, 0, within=training)
    assert story._evaluate(demo[0], job, held_out, 1, told.append)["picture"] is None
    assert "neurofmx-wds[plot]" in told[-1]


def test_every_window_once_an_epoch(demo: tuple[Path, dict[str, Any], list[str]]) -> None:
    """Counted from the log alone, as a user would: what the weights have learnt from is each window once an epoch."""
    output, found, _ = demo
    lines = [json.loads(line) for line in (output / "runs/interrupted/batches.jsonl").read_text().splitlines()]
    learnt = lines[: found["resumed_after"]] + lines[found["killed_after"] :]
    assert [line["step"] for line in learnt] == list(range(1, found["batches"] + 1))
    for epoch in range(4):
        keys = [key for line in learnt if line["epoch"] == epoch for key in line["keys"]]
        assert len(keys) == len(set(keys)) == found["windows"]


def test_no_bin_is_both_trained_on_and_tested_with(demo: tuple[Path, dict[str, Any], list[str]]) -> None:
    def metadata(part: tuple[float, float], jitter: bool) -> list[dict[str, Any]]:
        windows = windows_within(part, jitter)
        loader = create_webdataset_dataloader(demo[0] / "segments", num_workers=0, windows=windows)
        return [about for _ in range(3) for batch in loader for about in batch["metadata"]]

    training, held_out = story.parts_of(60)
    trained_until = max(each["t_stop_ns"] for each in metadata(training, jitter=True))
    assert 0 < trained_until <= 48 * 10**9
    assert min(each["t_start_ns"] for each in metadata(held_out, jitter=False)) >= trained_until + 10**9


@pytest.mark.parametrize("damage", ["key", "sha256", "loss", "missing", "again"])
def test_a_difference_is_found(demo: tuple[Path, dict[str, Any], list[str]], tmp_path: Path, damage: str) -> None:
    output, found, _ = demo
    lines = (output / "runs/interrupted/batches.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    if damage == "key":
        last["keys"][0], last["keys"][1] = last["keys"][1], last["keys"][0]
    elif damage in last:
        last[damage] = 0
    lines[-1:] = {"missing": [], "again": [lines[-1]] * 2}.get(damage, [json.dumps(last)])
    (tmp_path / "batches.jsonl").write_text("\n".join(lines))
    (tmp_path / "checkpoint.pt").write_bytes((output / "runs/interrupted/checkpoint.pt").read_bytes())
    job = Job("", str(tmp_path), 60, 4, 0)
    undisturbed = replace(job, directory=str(output / "runs/uninterrupted"))
    with pytest.raises(NeurofmxError, match="differ"):
        story._compare(job, undisturbed, found, lambda line: None)


def test_other_weights_are_found(demo: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> None:
    output, found, _ = demo
    (tmp_path / "batches.jsonl").write_bytes((output / "runs/interrupted/batches.jsonl").read_bytes())
    saved = torch.load(output / "runs/interrupted/checkpoint.pt", weights_only=True)
    next(iter(saved["decoder"].values())).view(-1)[0] += 1e-6
    torch.save(saved, tmp_path / "checkpoint.pt")
    job = Job("", str(tmp_path), 60, 4, 0)
    undisturbed = replace(job, directory=str(output / "runs/uninterrupted"))
    with pytest.raises(NeurofmxError, match="weights differ"):
        story._compare(job, undisturbed, found, lambda line: None)


def test_someone_elses_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").touch()
    with pytest.raises(OutputError, match="--output"):
        run(tmp_path)
    assert (tmp_path / "runs" / "precious").exists()


def test_a_failing_training_is_reported(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "nothing here"), str(tmp_path / "run"), 60, 3, 0)
    with pytest.raises(NeurofmxError, match="status 1"):
        story._train(job)


def test_killed_means_killed(tmp_path: Path) -> None:
    """Before its first checkpoint too; started again it begins from the start and ends alike."""
    rng = np.random.default_rng(0)
    arrays = {
        "spikes": rng.poisson(0.1, (40, 20, 6)).astype(np.float32),
        "behavior": rng.random((40, 20, 2), dtype=np.float32),
        "behavior_mask": np.ones((40, 20, 2), bool),
    }
    create_shards_from_arrays(tmp_path / "shards", arrays, shard_size=16)
    job = Job(str(tmp_path / "shards"), str(tmp_path / "run"), 6, 2, 0, batch_size=8, kill_at=3)
    command = [sys.executable, "-m", "neurofmx_wds.demo", json.dumps(vars(job))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["batches.jsonl"]
    story._train(replace(job, kill_at=None))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/batches.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, *range(1, 11)]


def test_checksum_sees_every_bit() -> None:
    batch = {"spikes": torch.zeros(2, 3), "__key__": ["a", "b"]}
    changed = {"spikes": torch.zeros(2, 3).index_fill(0, torch.tensor([1]), -0.0), "__key__": ["a", "b"]}
    assert len({checksum(batch), checksum(changed), checksum({"spikes": torch.zeros(3, 2)})}) == 3
    assert checksum(batch) == checksum({**batch, "spikes": torch.zeros(3, 2).T.contiguous()})


def test_training_is_a_function_users_can_call(demo: tuple[Path, dict[str, Any], list[str]]) -> None:
    """A finished run, started again, has nothing left to do."""
    output, found, _ = demo
    before = (output / "runs/uninterrupted/batches.jsonl").read_bytes()
    threads = torch.get_num_threads()
    try:
        train(Job(str(output / "segments"), str(output / "runs/uninterrupted"), 60, 4, 0, within=story.parts_of(60)[0]))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert (output / "runs/uninterrupted/batches.jsonl").read_bytes() == before
