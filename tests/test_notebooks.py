"""What people see of loaders in notebooks and editors: fields, where a row comes from, tables, types, progress."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording

import neurofmx_wds
from neurofmx_wds import (
    ShardedDatasetInfo,
    WebDatasetLoader,
    Windows,
    create_shards_from_arrays,
    create_webdataset_dataloader,
    mix,
)
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import StateError
from neurofmx_wds.format.verify import verify
from neurofmx_wds.storage.progress import progress_bar

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("recordings")
    made = {}
    for seed, name in enumerate(("a", "b")):
        path = directory / f"{name}.nwb"
        truth = make_recording(path, seed=seed, n_units=3 + seed, behavior_rate=50.0, trials=4, session_id=f"s-{name}")
        made[name] = {"path": path, **truth}
    return made


def assert_located(loader: Any, recordings: dict[str, Any], batches: int = 2) -> set[str]:
    """Counts the spikes of each located bin by itself, and compares."""
    seen = set()
    for _, batch in zip(range(batches), loader, strict=False):
        for row in range(len(batch["__key__"])):
            place = loader.locate(batch, row)
            truth = recordings[place.source.removesuffix(".nwb")]
            assert place.session_id == truth["session_id"] and place.key == batch["__key__"][row]
            spikes = np.asarray(batch["spikes"][row])
            starts = place.bin_starts_ns
            assert len(starts) == len(spikes) and len(place.units["key"]) == len(truth["spike_times"])
            edges = np.append(starts, place.metadata["t_stop_ns"])
            for unit, times in enumerate(truth["spike_times"]):
                ns = np.rint(times * 1e9).astype(np.int64)
                counts = np.diff(np.searchsorted(ns, edges))
                np.testing.assert_array_equal(counts, spikes[:, place.units["column"][unit]])
                assert place.units["id"][unit] == 100 + unit
            seen.add(place.source)
    return seen


CASES: list[tuple[dict[str, Any], Windows | None]] = [
    ({}, None),
    ({"bin_size_ms": "100/3", "sequence_length": 30}, None),
    ({"align": "trials", "before_s": 0.5, "after_s": 1.0, "bin_size_ms": 20}, None),
    ({"layout": "segments", "segment_s": 3}, Windows(length_s=1, bin_ms=20)),
    ({"layout": "segments", "segment_s": 3}, Windows(length_s=1, stride_s=0.5, bin_ms=20, jitter=True)),
    ({"layout": "segments", "segment_s": 3}, Windows(align="trials", before_s=0.5, after_s=0.5, bin_ms=10)),
]


@pytest.mark.parametrize(("config", "windows"), CASES)
def test_every_bin_of_every_row_is_located(
    config: dict[str, Any], windows: Windows | None, recordings: dict[str, Any], tmp_path: Path
) -> None:
    paths = [each["path"] for each in recordings.values()]
    convert(paths, Output(tmp_path), SourceConfig.of(**config))
    loader = create_webdataset_dataloader(tmp_path, batch_size=4, windows=windows)
    assert assert_located(loader, recordings, 4) == {"a.nwb", "b.nwb"}
    place = loader.locate(next(iter(loader)), 0)
    assert (place.event_ns is not None) == ("align" in config or (windows is not None and windows.align is not None))
    assert "<th" in place._repr_html_()


def test_rows_of_a_mixture_are_located(recordings: dict[str, Any], tmp_path: Path) -> None:
    for name in recordings:
        convert([recordings[name]["path"]], Output(tmp_path / name), SourceConfig.of())
    loader = create_webdataset_dataloader(mix({name: tmp_path / name for name in recordings}), batch_size=6)
    assert assert_located(loader, recordings) == {"a.nwb", "b.nwb"}
    batch = next(iter(loader))
    assert {loader.locate(batch, row).dataset for row in range(6)} == {"a", "b"}


def test_what_is_not_known_is_empty_and_what_is_ambiguous_is_refused(
    recordings: dict[str, Any], tmp_path: Path
) -> None:
    create_shards_from_arrays(tmp_path / "arrays", {"x": np.arange(6)})
    loader = create_webdataset_dataloader(tmp_path / "arrays", batch_size=6, shuffle=False)
    place = loader.locate(next(iter(loader)), 2)
    assert (place.key, place.source, place.units, len(place.bin_starts_ns)) == ("sample_000000002", "x" * 0, {}, 0)
    for name, seed in (("one", 5), ("two", 6)):
        (tmp_path / name).mkdir()
        make_recording(tmp_path / name / "same.nwb", seed=seed, n_units=2, session_id="same")
    convert([tmp_path / name / "same.nwb" for name in ("one", "two")], Output(tmp_path / "same"), SourceConfig.of())
    loader = create_webdataset_dataloader(tmp_path / "same", batch_size=2)
    with pytest.raises(StateError, match="stands for several recordings"):
        loader.locate(next(iter(loader)), 0)


def test_fields_have_the_columns_of_their_last_axis(recordings: dict[str, Any], tmp_path: Path) -> None:
    path = recordings["a"]["path"]
    convert([path], Output(tmp_path / "windows"), SourceConfig.of())
    convert([path], Output(tmp_path / "segments"), SourceConfig.of(layout="segments"))
    windows = Windows(length_s=1, bin_ms=10)
    for name, options in (("windows", {}), ("segments", {"windows": windows})):
        for units in (None, "id > 100"):
            loader = create_webdataset_dataloader(tmp_path / name, batch_size=2, units=units, **options)
            batch = next(iter(loader))
            for field in ("spikes", "behavior", "behavior_mask"):
                assert len(loader.fields[field]["columns"]) == batch[field].shape[-1]
                assert loader.fields[field]["shape"] == list(batch[field].shape[1:])
            wanted = ["100", "101", "102"] if units is None else ["101", "102"]
            assert loader.fields["spikes"]["columns"] == wanted
            assert list(loader.units["id"]) == [int(each) for each in wanted]
    assert loader.fields["behavior"]["columns"] == ["Position/xy_x", "Position/xy_y"]


def test_tables_in_notebooks_show_and_escape(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    make_recording(tmp_path / "a.nwb", session_id=evil)
    out = tmp_path / f"{evil.replace('/', '|')}"
    convert([tmp_path / "a.nwb"], Output(out), SourceConfig.of())
    loader = create_webdataset_dataloader(out, batch_size=3)
    place = loader.locate(next(iter(loader)), 0)
    for shown in (loader, WebDatasetLoader(out), ShardedDatasetInfo(out), verify(out, deep=True), place):
        text = shown._repr_html_()
        assert "<script>" not in text and re.search("<d[lt]>", text)
    assert "spikes" in loader._repr_html_() and "batch size" in loader._repr_html_()


def test_the_package_shows_its_public_names_only() -> None:
    names = dir(neurofmx_wds)
    assert set(neurofmx_wds.__all__) <= set(names) and len(names) == len(set(names))
    assert all(hasattr(neurofmx_wds, name) for name in neurofmx_wds.__all__)
    hidden = {"importlib", "annotations", "TYPE_CHECKING", "Any", "cli", "convert", "nwb", "storage"}
    assert not hidden & set(names)
    code = "import neurofmx_wds, sys; dir(neurofmx_wds); print('torch' in sys.modules, 'tqdm' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["False", "False"]


def test_bars_are_widgets_in_notebooks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bar("ab", 2, "letter", show=True).disable  # no terminal here
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    bar = progress_bar(None, 2, "letter", show=True, desc="counting")
    from tqdm.auto import tqdm

    assert isinstance(bar, tqdm) and not bar.disable
    bar.close()
    assert progress_bar("ab", 2, "letter", show=False).disable


@pytest.mark.slow
def test_type_checkers_know_batches(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from neurofmx_wds import create_webdataset_dataloader\n"
        "loader = create_webdataset_dataloader('shards')\n"
        "for batch in loader:\n"
        "    reveal_type(batch['spikes'])\n"
        "    reveal_type(batch['metadata'][0])\n"
        "    reveal_type(batch['__key__'])\n"
        "    batch['my_field'] = batch['eeg'] * 2\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--config-file", str(ROOT / "setup.cfg"), "use.py"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    revealed = re.findall(r'Revealed type is "(.*)"', shown.stdout)
    assert [re.sub(r"builtins\.|torch\._tensor\.|torch\.|typing\.", "", each) for each in revealed] == [
        "Tensor", "dict[str, Any]", "list[str]",
    ]  # fmt: skip
    assert " error: " not in shown.stdout
