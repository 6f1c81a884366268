"""Arrays along time, cut into windows like a recording; against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import some
from recordings import read_all

from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.info import ShardedDatasetInfo


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_at_a_rate_keep_their_rate_and_their_dimensions(tmp_path: Path, save: Any, order: Any) -> None:
    rng = np.random.default_rng(0)
    eeg = rng.integers(-900, 900, (5000, 8)).astype(">i2")
    volume = np.asarray(rng.standard_normal((5000, 2, 3, 2)), order=order)
    save(tmp_path / "a.npz", eeg=eeg, spikes=volume)  # a name that means something elsewhere
    description, samples = read_all(tmp_path / "a.npz", rate=500.0, overlap=0.5)
    assert {name: f["shape"] for name, f in description.fields.items()} == {"eeg": [250, 8], "spikes": [250, 2, 3, 2]}
    assert len(samples) == description.n_samples == (1000 - 50) // 25 + 1
    for w, (fields, metadata) in some(enumerate(samples)):
        i0 = 125 * w
        assert metadata["t_start_ns"] == i0 * 2_000_000 and metadata["session_id"] == "a"
        np.testing.assert_array_equal(fields["eeg"], eeg[i0 : i0 + 250].astype(np.float32))
        np.testing.assert_array_equal(fields["spikes"], volume[i0 : i0 + 250].astype(np.float32))


def test_slow_arrays_are_interpolated_and_booleans_hold(tmp_path: Path) -> None:
    bold = np.random.default_rng(0).standard_normal((40, 2, 3))
    on = np.arange(40)[:, None] % 8 < 4
    np.savez(tmp_path / "a.npz", bold=bold, on=on)
    description, samples = read_all(
        tmp_path / "a.npz", rate=0.5, bin_size_ms=500, sequence_length=20, overlap=0.0, max_gap_s=3
    )
    assert description.fields["bold_mask"]["shape"] == [20, 2, 3] and description.fields["bold"]["ways"] == ["linear"]
    centres = (np.arange(160) + 0.5) * 0.5
    values = np.concatenate([fields["bold"] for fields, _ in samples]).reshape(160, 6)
    mask = np.concatenate([fields["bold_mask"] for fields, _ in samples]).reshape(160, 6)
    known = centres <= 78
    for column in range(6):
        expected = np.interp(centres, np.arange(40) * 2, bold.reshape(40, 6)[:, column])
        np.testing.assert_allclose(values[known, column], expected[known], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mask, np.repeat(known[:, None], 6, axis=1))
    states = np.concatenate([fields["on"] for fields, _ in samples])[:, 0]
    np.testing.assert_array_equal(states, on[(centres // 2).astype(int), 0])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_timestamps_in_the_file_place_the_rows_and_gaps_cut_windows(tmp_path: Path, save: Any) -> None:
    rng = np.random.default_rng(0)
    times = np.r_[3 + np.cumsum(rng.uniform(0.001, 0.003, 2000)), 12 + np.cumsum(rng.uniform(0.001, 0.003, 2000))]
    values = rng.standard_normal((4000, 3))
    shuffled = rng.permutation(4000)
    save(tmp_path / "a.npz", when=times[shuffled], x=values[shuffled])
    description, samples = read_all(tmp_path / "a.npz", timestamps="when", modalities=("x",))
    assert list(description.fields) == ["x", "x_mask"] and len(description.report["segments"]) == 2
    assert "when:" in description.report["warnings"][0] and "out of order" in description.report["warnings"][0]
    bins = np.rint(times * 1e9).astype(np.int64) // 10**7
    for fields, metadata in some(samples):
        first = metadata["t_start_ns"] // 10**7
        expected = np.array([values[bins == first + k].mean(axis=0) for k in range(50)])
        np.testing.assert_allclose(fields["x"], expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_series_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((100, 2)), words=np.array(["a"] * 100), when=np.full(100, np.nan))
    for options, problem in (
        ({"rate": 10.0}, "field 'words'.*no series of numbers"),
        ({"timestamps": "then"}, "has no then"),
        ({"timestamps": "words"}, "no array of timestamps of this name"),
        ({"timestamps": "when", "modalities": ("x",)}, "field 'x'.*at 0 usable times"),
    ):
        with pytest.raises(SourceError, match=rf"a\.npz.*{problem}.*\(.+\)$"):
            read_all(tmp_path / "a.npz", **({"modalities": ("x",)} | options if "rate" not in options else options))
    np.save(tmp_path / "a.npy", np.ones((100, 2)))
    with pytest.raises(SourceError, match=r"a\.npy.*has no when"):
        read_all(tmp_path / "a.npy", timestamps="when", modalities=("data",))
    for wrong, name in (({"rate": 0.0}, "rate"), ({"rate": 1.0, "timestamps": "t"}, "timestamps")):
        with pytest.raises(ValueError, match=f"^{name}="):
            SourceConfig.of(**wrong)


def test_an_array_is_not_replaced_by_the_mask_of_another(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(100.0), x_mask=np.arange(100) % 2 == 1)
    _, samples = read_all(tmp_path / "a.npz", rate=1000.0, bin_size_ms=2, sequence_length=10)  # x is whole: no mask
    np.testing.assert_array_equal(samples[0][0]["x_mask"], np.ones(10))
    with pytest.raises(SourceError, match="field 'x_mask': has the name of another's mask.*rename the array"):
        read_all(tmp_path / "a.npz", rate=10.0, bin_size_ms=50, sequence_length=10)


def test_the_command_line_cuts_an_npy_into_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.arange(2000.0).reshape(1000, 2))
    told = "data: rows at 10 Hz are interpolated, in float32, for 100 bins/s"
    for options, n in (({}, 1), ({"lfp_method": "native"}, 0), ({"bin_size_ms": 200}, 0)):
        described, _ = read_all(tmp_path / "a.npy", rate=10.0, **options)
        assert sum(told in line for line in described.report["warnings"]) == n
    arguments = ["-i", str(tmp_path / "a.npy"), "-o", str(tmp_path / "out"), "--rate", "100", "--validate"]
    assert main(["convert", *arguments, "--bin-size-ms", "50", "--sequence-length", "20"]) == 0, capsys.readouterr()
    summary = ShardedDatasetInfo(tmp_path / "out").get_summary()
    assert summary["total_samples"] == (200 - 20) // 10 + 1 and summary["modalities"]["data"]["shape"] == [100, 2]


@pytest.mark.parametrize("rate", [0.5, 30.0, 1000 / 3, 24414.0625])
def test_a_bin_of_arrays_with_a_rate_is_a_row_unless_another_is_given(rate: float, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((250, 3)).astype("float32")
    np.save(tmp_path / "x.npy", rows)
    source = open_source(tmp_path / "x.npy", SourceConfig.of(rate=rate, overlap=0))
    samples = [fields["data"] for fields, _ in source.read(0, source.describe().n_samples)]
    source.close()
    np.testing.assert_array_equal(np.concatenate(samples), rows[:200])
    assert SourceConfig.of(rate=rate, bin_size_ms=10).windows.bin_size_ms == 10
    assert SourceConfig.of(rate=rate, layout="segments").windows.bin_size_ms == 10
