"""NWB files in Zarr stores give what the same files in HDF5 give, and nothing in a store runs or leads out of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counting import some
from pynwb import NWBHDF5IO, TimeSeries
from pynwb.misc import AnnotationSeries
from recordings import make_recording, read_all

from neurofmx_wds import ShardedDatasetInfo
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.convert.sources.listing import list_files
from neurofmx_wds.errors import NeurofmxError, SourceError, UnsafeDataError
from neurofmx_wds.format.pickles import decode_objects

hdmf_zarr = pytest.importorskip("hdmf_zarr", reason="stores are read with hdmf-zarr")
numcodecs = pytest.importorskip("numcodecs")

Edit = Callable[[dict[str, Any]], object]


def _extra(nwb: Any) -> None:
    nwb.add_acquisition(AnnotationSeries("cues", data=["go", "stop", "go"], timestamps=[1.0, 2.5, 4.0]))
    module = nwb.processing.get("behavior") or nwb.create_processing_module("behavior", "x")
    module.add(TimeSeries("speed", data=np.linspace(0, 1, 600), unit="m/s", rate=100.0))
    module.add(TimeSeries("doubled", data=np.linspace(0, 2, 600), unit="m/s", timestamps=np.arange(600) / 100))


def exported(folder: Path, **options: Any) -> tuple[Path, Path]:
    """Makes a recording as HDF5, and as hdmf-zarr exports it."""
    source, store = folder / "a.nwb", folder / "b.nwb.zarr"
    make_recording(source, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with NWBHDF5IO(str(source), "r") as there, hdmf_zarr.NWBZarrIO(str(store), mode="w") as here:
            here.export(src_io=there, write_args={"link_data": False})
    return source, store


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    options = {"lfp_channels": 3, "behavior_rate": 50.0, "trials": 4, "invalid_times": [(7.0, 7.2)], "seconds": 8.0}
    return exported(tmp_path_factory.mktemp("zarr"), extra=_extra, **options)


@pytest.fixture
def store(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[1], tmp_path / "b.nwb.zarr"))


def refusal(store: Path) -> str:
    """Returns why a store is not converted; or, where the rest of it is, why its units are left out."""
    try:
        description, _ = read_all(store)
    except SourceError as error:
        assert error.file == str(store) and error.remedy
        return str(error)
    assert "spikes" not in description.fields
    return " ".join(each["why"] for each in description.report["not_taken"] if each["path"] == "units")


def same(first: Any, second: Any) -> None:
    """Compares what two sources gave, but for their names."""
    (described, samples), (others, other_samples) = first, second
    assert described.fields == others.fields and described.n_samples == others.n_samples > 0
    for report in (described.report, others.report):
        report.pop("path")
    assert described.report == others.report
    for (fields, metadata), (other_fields, other_metadata) in zip(samples, other_samples, strict=True):
        assert list(fields) == list(other_fields)
        for name, value in fields.items():
            assert np.asarray(value).dtype == np.asarray(other_fields[name]).dtype
            np.testing.assert_array_equal(value, other_fields[name])
        assert {**metadata, "source": ""} == {**other_metadata, "source": ""}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spike_format": "both", "overlap": 0.0},
        {"modalities": ("lfp", "behavior"), "sequence_length": 50},
        {"align": "trials", "before_s": 0.1, "after_s": 0.5},
        {"modalities": ("events", "processing/behavior/speed")},
    ],
)
def test_store_gives_what_the_hdf5_file_gives(pair: tuple[Path, Path], options: dict[str, Any]) -> None:
    same(read_all(pair[0], **options), read_all(pair[1], **options))


def test_links_and_references_within_a_store_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extra(nwb: Any) -> None:
        times = np.arange(500) / 100
        one = TimeSeries(name="one", data=np.arange(500.0), unit="m", timestamps=times)
        nwb.add_acquisition(one)
        nwb.add_acquisition(TimeSeries(name="two", data=np.arange(500.0) * 2, unit="m", timestamps=one))
        nwb.add_trial_column(name="taps", description="x", index=True)
        for i in range(3):
            nwb.add_trial(start_time=float(i), stop_time=i + 0.5, taps=[0.1] * (i + 1), timeseries=[one])

    # numcodecs then writes rows that hold references at all
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    source, store = exported(tmp_path, extra=extra)
    monkeypatch.undo()
    assert "zarr_link" in (store / "acquisition" / "two" / ".zattrs").read_text()
    assert "|O" in (store / "intervals" / "trials" / "timeseries" / ".zarray").read_text()
    for options in (
        {"modalities": ("spikes", "acquisition/one", "acquisition/two")},
        {"align": "trials", "after_s": 0.3},
    ):
        same(read_all(source, **options), read_all(store, **options))

    def trials() -> Any:
        from neurofmx_wds.convert.sources.zarr_store import open_zarr

        return open_zarr(list_files(store, hidden=True)).read().trials

    assert [(row[0], row[1], row[2].name) for row in trials().timeseries.data[:]] == [
        (start, 50, "one") for start in (0, 100, 200)
    ]
    folder = store / "intervals" / "trials" / "timeseries"
    kind = np.dtype([("idx_start", "i4"), ("count", "i4"), ("timeseries", "O")])
    write_objects(folder, pickle.dumps(np.array([(0, 1, Canary(tmp_path / "ran"))] * 3, kind), protocol=5))
    with pytest.raises(NeurofmxError, match="mkdir"):
        trials().timeseries.data[:]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("codec", ["zlib", "gzip", "zstd", "lz4", "blosc", "shuffle", "none"])
def test_every_codec_that_is_read(pair: tuple[Path, Path], store: Path, codec: str) -> None:
    folder = store / "processing" / "behavior" / "doubled" / "data"
    repack(folder, None if codec == "none" else codec)
    same(read_all(pair[0]), read_all(store))


def repack(folder: Path, codec: str | None) -> None:
    """Writes the chunks of an array of floats again with another codec."""
    about = json.loads((folder / ".zarray").read_text())
    made = numcodecs.get_codec({"id": codec, **({"elementsize": 8} if codec == "shuffle" else {})}) if codec else None
    for chunk in folder.glob("[0-9]*"):
        raw = numcodecs.get_codec(about["compressor"]).decode(chunk.read_bytes())
        chunk.write_bytes(bytes(made.encode(np.frombuffer(raw, "<f8"))) if made else bytes(raw))
    about |= {"compressor": None, "filters": None}
    about |= (
        {}
        if made is None
        else {"filters": [made.get_config()]}
        if codec == "shuffle"
        else {"compressor": made.get_config()}
    )
    (folder / ".zarray").write_text(json.dumps(about))


def test_conversion_is_the_same_with_workers_and_finds_stores_in_directories(store: Path, tmp_path: Path) -> None:
    make_recording(store.parent / "c.nwb", seconds=5.0)
    for out, workers in (("one", "1"), ("two", "2")):
        given = ["convert", "-i", str(store.parent), "-o", str(tmp_path / out / "out"), "--workers", workers]
        assert main([*given, "--shard-size", "4", "--modalities", "spikes", "--validate"]) == 0
    files = sorted(path.name for path in (tmp_path / "one" / "out").iterdir())
    for name in some(files):
        assert (tmp_path / "one" / "out" / name).read_bytes() == (tmp_path / "two" / "out" / name).read_bytes(), name
    sources = json.loads((tmp_path / "one" / "out" / "dataset_metadata.json").read_text())["sources"]
    assert [each["path"] for each in sources] == ["b.nwb.zarr", "c.nwb"]
    assert ShardedDatasetInfo(tmp_path / "one" / "out").get_summary()["total_samples"] > 4


def test_change_of_a_store_while_it_is_converted_is_noticed(store: Path) -> None:
    from neurofmx_wds.convert.look import plan_source
    from neurofmx_wds.convert.plan import PlannedSource

    planned = plan_source(str(store), SourceConfig())
    assert isinstance(planned, PlannedSource)
    planned.file.open(SourceConfig()).close()
    os.utime(store / "units" / "spike_times" / ".zarray", ns=(0, 0))
    with pytest.raises(SourceError, match="changed"):
        planned.file.open(SourceConfig())


def test_without_hdmf_zarr_the_remedy_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "neurofmx_wds.convert.sources.zarr_store", raising=False)
    monkeypatch.setitem(sys.modules, "hdmf_zarr", None)
    with pytest.raises(SourceError, match=r"pip install 'neurofmx-wds\[zarr\]'"):
        read_all(store)


# --- what a store may not do ------------------------------------------------------------------------------------------


class Canary:
    """Touches a file where it is unpickled by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def write_objects(folder: Path, values: bytes) -> None:
    """Writes a pickle as the only chunk of an array of objects."""
    about = json.loads((folder / ".zarray").read_text())
    packed = numcodecs.get_codec(about["compressor"]).encode(values) if about["compressor"] else values
    (next(folder.glob("[0-9]*"))).write_bytes(bytes(packed))
    about["filters"] = [{"id": "pickle", "protocol": 5}]
    (folder / ".zarray").write_text(json.dumps(about))


def pickled(value: Any, shape: tuple[int, ...] = (1,)) -> bytes:
    array = np.empty(shape, object)
    array.fill(value)
    return pickle.dumps(array, protocol=5)


@pytest.mark.parametrize(
    "place",
    ["identifier", "units/electrode_group", "general/session_id", "specifications/core", "acquisition/cues/data"],
)
@pytest.mark.parametrize("how", ["in the array", "instead of it"])
def test_no_pickle_runs(store: Path, tmp_path: Path, place: str, how: str) -> None:
    folder = next((store / place).rglob(".zarray")).parent
    canary = Canary(tmp_path / "ran")
    n = json.loads((folder / ".zarray").read_text())["chunks"]
    write_objects(folder, pickled(canary, tuple(n)) if how == "in the array" else pickle.dumps(canary))
    if place == "specifications/core":  # of a namespace that pynwb knows they are not read
        read_all(store)
    else:
        with pytest.raises(NeurofmxError, match="mkdir"):
            read_all(store, modalities=("spikes", "events"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileExistsError):  # the canary sings for pickle itself
        for _ in range(2):
            pickle.loads(pickle.dumps(canary))


def edit(path: Path, change: Edit) -> None:
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


LINKS = ["..", "../other.zarr", "/etc", "http://127.0.0.1:9/x.zarr", "s3://bucket/x", None, 3, ["."], "file:///etc"]


@pytest.mark.parametrize("source", LINKS)
@pytest.mark.parametrize("place", ["link", "attribute", "object"])
def test_no_link_leads_out(
    store: Path, tmp_path: Path, source: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "other.zarr")
    opened: list[str] = []
    inside = str(store)
    reference = {"source": source, "path": "/units"}
    if place == "link":
        edit(store / "processing" / "behavior" / ".zattrs", lambda a: a.update(zarr_link=[{"name": "x", **reference}]))
    elif place == "attribute":
        told = {"zarr_dtype": "object", "value": reference}
        edit(store / "units" / "spike_times_index" / ".zattrs", lambda a: a.update(target=told))
    else:
        folder = store / "units" / "electrode_group"
        n = json.loads((folder / ".zarray").read_text())["chunks"]
        write_objects(folder, pickled(reference, tuple(n)))

    def watch(event: str, args: Any) -> None:
        if watching and event == "open" and isinstance(args[0], str) and not args[0].startswith(inside):
            opened.append(args[0])
        if watching and event in ("socket.connect", "socket.getaddrinfo"):
            opened.append(event)

    watching = True
    sys.addaudithook(watch)
    try:
        told = refusal(store)
    finally:
        watching = False
    assert re.search(r"leads to .* which is not looked for", told)
    mine = str(tmp_path)
    assert not [each for each in opened if each.startswith((mine, "/etc", "socket"))]


@pytest.mark.parametrize("kind", ["file", "directory", "nowhere"])
def test_symbolic_links_that_lead_out_are_refused(store: Path, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    target = store / "units" / "spike_times"
    if kind == "directory":
        shutil.move(target, outside)
        target.symlink_to(outside)
    else:
        shutil.move(target / "0", outside)
        (target / "0").symlink_to(outside if kind == "file" else tmp_path / "none")
    with pytest.raises(SourceError, match="is a link that leads to no file in this directory"):
        read_all(store)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: a.update(compressor={"id": "pickle"}), "codec 'pickle', which is not read"),
        (lambda a: a.update(compressor={"id": "lzma"}), "codec 'lzma', which is not read"),
        (lambda a: a.update(filters=[{"id": "neurofmx_wds.objects"}]), "which is not read"),
        (lambda a: a.update(filters=[{"id": "pickle"}]), "codec 'pickle', which is not read"),
        (lambda a: a.update(compressor="blosc"), "is damaged"),
        (lambda a: a.update(shape=[10**15]), "chunks of it are missing"),
        (lambda a: a.update(shape=[10**15], chunks=[10**15]), "are too large"),
        (lambda a: a.update(shape=[2 * a["chunks"][0]]), "1 of its 2 chunks are missing"),
        (lambda a: a.update(chunks=[0]), "is damaged"),
        (lambda a: a.update(chunks=[-1]), "is damaged"),
        (lambda a: a.update(shape=[True]), "is damaged"),
        (lambda a: a.update(dtype="|S0"), "is damaged"),
        (lambda a: a.update(dtype="|V8"), "is damaged"),
        (lambda a: a.update(dtype=[["a", "|O"]]), "is damaged"),
        (lambda a: a.update(dtype=[["a", "|O"]], filters=[{"id": "shuffle"}]), "objects are stored with 'shuffle'"),
        (lambda a: a.update(dtype=[["a", "<f4", [2]]]), "is damaged"),
        (lambda a: a.update(dtype={"names": ["a"], "formats": ["O"]}), "is damaged"),
        (lambda a: a.update(dtype="<f4"), "is damaged"),
        (lambda a: a.pop("chunks"), "is damaged"),
        (lambda a: a.update(order=[]), "is damaged"),
        (lambda a: a.update(dtype="|O", filters=None), "is damaged"),
        (lambda a: a.update(dtype="|O", filters=[{"id": "msgpack2"}]), "objects are stored with 'msgpack2'"),
    ],
)
def test_false_metadata_is_refused(store: Path, change: Edit, told: str) -> None:
    edit(store / "units" / "spike_times" / ".zarray", change)
    assert re.search(told, refusal(store))


def test_nothing_is_believed_of_consolidated_metadata(store: Path, pair: tuple[Path, Path]) -> None:
    (store / ".zmetadata").write_text('{"metadata": {"units/.zarray": {"filters": [{"id": "pickle"}]}}}')
    same(read_all(pair[0]), read_all(store))


@pytest.mark.parametrize("codec", ["zlib", "gzip", "zstd", "lz4", "blosc", "none"])
@pytest.mark.parametrize("harm", ["more", "less", "cut", "noise", "claim"])
def test_chunks_of_another_size_are_refused(store: Path, codec: str, harm: str) -> None:
    folder = store / "processing" / "behavior" / "doubled" / "data"
    repack(folder, None if codec == "none" else codec)
    about = json.loads((folder / ".zarray").read_text())
    n = 8 * about["chunks"][0]
    made = numcodecs.get_codec(about["compressor"]) if about["compressor"] else None
    chunk = folder / "0"
    if harm in ("more", "less"):
        raw = b"\0" * (n * 2000 if harm == "more" else n - 8)
        chunk.write_bytes(bytes(made.encode(raw)) if made else raw)
    elif harm == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-5])
    elif harm == "noise":
        chunk.write_bytes(np.random.default_rng(1).bytes(chunk.stat().st_size - 1))
    else:
        data = bytearray(chunk.read_bytes())
        data[:16] = b"\xff" * 16
        chunk.write_bytes(data + b"\xff")
    with pytest.raises(SourceError, match="is damaged"):
        read_all(store)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_ends_in_an_error_or_in_numbers(store: Path, seed: int) -> None:
    """Only our own errors come, and no chunk takes more than its size, whatever is changed."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in store.rglob("*") if path.is_file() and "specifications" not in path.parts)
    for path in rng.choice(np.array(files, object), 3, replace=False):
        data = bytearray(path.read_bytes())
        for _ in range(3):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
    try:
        read_all(store)
    except NeurofmxError as error:
        assert "b.nwb.zarr" in str(error)


def test_what_is_no_nwb_store_is_said(store: Path, tmp_path: Path) -> None:
    def refused(told: str, **options: Any) -> None:
        with pytest.raises(SourceError, match=told):
            read_all(store, **options)

    with pytest.raises(SourceError, match="leave out the format"):
        open_source(store, SourceConfig.of(format="files"))
    (store / ".zattrs").write_text('{"nwb_version": 1}')
    refused("not NWB 2: its nwb_version is 1")
    (store / ".zattrs").write_text("[" * 100_000)
    refused("is no JSON")
    (store / ".zattrs").write_text("[]")
    refused("is no JSON object")
    (store / ".zattrs").unlink()
    refused("nwb_version is None")
    (store / "zarr.json").write_text("{}")
    refused("of format 3")


# --- pickles of objects -----------------------------------------------------------------------------------------------


def test_objects_come_back_as_they_were() -> None:
    reference = hdmf_zarr.utils.ZarrReference(source=".", path="/units", object_id="x", source_object_id="y")
    values = ["a", b"b", 3, 1.5, None, True, dict(reference), [1, "x"], (1, 2), np.float32(2), np.int64(3), "ü"]
    for shape in ((12,), (3, 4), (2, 6)):
        for order in ("C", "F"):
            array = np.empty(12, object)
            for i, value in enumerate(values):
                array[i] = reference if i == 6 else value
            array = array.reshape(shape, order=order)
            for protocol in range(2, 6):
                found = decode_objects(pickle.dumps(array, protocol=protocol))
                assert found.shape == shape
                assert [(type(v), v) for v in found.flat] == [
                    (dict if type(v) is type(reference) else type(v), v) for v in array.flat
                ]


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _laughs() -> list[Any]:
    found: list[Any] = ["ha"]
    for _ in range(40):
        found = [found, found]
    return found


@pytest.mark.parametrize("value", [_cycle(), _laughs(), {1}, np.zeros(2), len, io.BytesIO, ["x"] * 1001, np.dtype("O")])
def test_other_objects_are_refused(value: Any) -> None:
    with pytest.raises(UnsafeDataError):
        decode_objects(pickled(value))


@pytest.mark.parametrize("value", [1, "x", np.zeros(3), [1], zlib.compress])
def test_what_is_no_array_of_objects_is_refused(value: Any) -> None:
    with pytest.raises(UnsafeDataError):
        decode_objects(pickle.dumps(value))
    assert isinstance(decode_objects(pickled("x")), np.ndarray)


def test_objects_of_an_impossible_shape_are_refused() -> None:
    data = pickled("x", (77,)).replace(bytes([pickle.BININT1[0], 77]), bytes([pickle.BININT1[0], 78]))
    with pytest.raises(UnsafeDataError, match=r"shape \(78,\)"):
        decode_objects(data)
