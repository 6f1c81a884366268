"""Arrays that are compressed one by one: the same values, read by everybody, a sample at a time; and their dtypes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conversions import contents, samples_of
from hypothesis import given
from hypothesis import strategies as st
from loading import flip
from recordings import make_recording
from viewing import assert_laws

from neurofmx_wds import WebDatasetWriter, Windows, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import ShardError, UnsafeDataError
from neurofmx_wds.format.decoding import decode
from neurofmx_wds.format.encoding import encode
from neurofmx_wds.format.verify import verify

BINS: dict[str, Any] = {"bin_size_ms": 20, "sequence_length": 25}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("recordings")
    for i, units in enumerate((4, 3)):
        make_recording(directory / f"{i}.nwb", seconds=6, n_units=units, session_id=f"s{i}", seed=i, behavior_rate=50.0,
                       lfp_channels=2, lfp_rate=200.0)  # fmt: skip
    return [directory / f"{i}.nwb" for i in range(2)]


@pytest.fixture(scope="module")
def datasets(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the same samples and segments, plain and compressed."""
    out = tmp_path_factory.mktemp("datasets")
    for form, suffix in (("npy", ""), ("npy.gz", " gz")):
        for layout, options in (("windows", BINS), ("segments", {"layout": "segments", "segment_s": 2.0})):
            output = Output(out / f"{layout}{suffix}", shard_size=6, field_format=form)  # type: ignore[arg-type]
            convert(recordings, output, SourceConfig.of(**options))
    return {path.name: path for path in out.iterdir()}


def test_the_official_library_unpacks_by_itself(datasets: dict[str, Path]) -> None:
    plain, packed = samples_of(datasets["windows"]), samples_of(datasets["windows gz"])
    assert len(plain) == len(packed) > 20
    for a, b in zip(plain, packed, strict=True):
        assert b["metadata.json"] == a["metadata.json"] and a["__key__"] == b["__key__"]
        for name in ("spikes", "behavior", "behavior_mask", "lfp"):
            assert np.array_equal(a[f"{name}.npy"], b[f"{name}.npy.gz"], equal_nan=name != "behavior_mask")
    [first, *_] = wds.WebDataset(str(datasets["windows gz"] / "shard_000000.tar"), shardshuffle=False)
    assert gzip.decompress(first["spikes.npy.gz"]).startswith(b"\x93NUMPY")


@pytest.mark.parametrize("layout", ["windows", "segments"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_deliver_the_same(datasets: dict[str, Path], layout: str, num_workers: int) -> None:
    options: dict[str, Any] = {"num_workers": num_workers, "batch_size": 7, "normalize": {"behavior": "zscore"}}
    if layout == "segments":
        options["windows"] = Windows(length_s=0.5, bin_ms=20, jitter=True)
    plain, packed = (create_webdataset_dataloader(datasets[f"{layout}{end}"], **options) for end in ("", " gz"))
    for a, b in zip(plain, packed, strict=True):
        assert a.keys() == b.keys() and a["__key__"] == b["__key__"] and a["metadata"] == b["metadata"]
        for name in a.keys() - {"__key__", "metadata"}:
            for x, y in zip(a[name], b[name], strict=True):
                assert np.array_equal(x, y, equal_nan=x.dtype.is_floating_point) and x.dtype == y.dtype
    about = [load.opened.reader for load in (plain, packed)]
    assert about[0].fields == about[1].fields


def test_manifests_say_the_same_of_fields(datasets: dict[str, Path]) -> None:
    from neurofmx_wds.format.manifest import Manifest

    for layout in ("windows", "segments"):
        plain, packed = (Manifest.load(datasets[f"{layout}{end}"]) for end in ("", " gz"))
        for name, about in plain.modalities.items():
            assert {k: packed.modalities[name].get(k) for k in ("unit", "columns")} == {
                k: about.get(k) for k in ("unit", "columns")
            }
            if layout == "windows":
                assert packed.modalities[name]["shape"] == about["shape"]
            assert packed.modalities[name]["dtype"] == about["dtype"]
        assert [s["statistics"] for s in plain.sources] == [s["statistics"] for s in packed.sources]


def test_laws(datasets: dict[str, Path]) -> None:
    assert_laws(datasets["windows gz"], pad_units=True, as_dtype={"lfp": "float64"})


def test_the_same_bytes_for_any_workers(recordings: list[Path], datasets: dict[str, Path], tmp_path: Path) -> None:
    output = Output(tmp_path / "two", shard_size=6, field_format="npy.gz")
    convert(recordings, output, SourceConfig.of(**BINS), Workers(2))
    assert contents(tmp_path / "two") == contents(datasets["windows gz"])
    assert verify(tmp_path / "two", deep=True).ok


def test_a_changed_byte_is_an_error_naming_sample_and_member(recordings: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(recordings[:1], Output(out, field_format="npy.gz"), SourceConfig.of(**BINS))
    data = (out / "shard_000000.tar").read_bytes()
    flip(out / "shard_000000.tar", data.index(b"\x1f\x8b", data.index(b"sample_000000003.spikes")) + 30)
    for checksums, why in ((True, "checksum differs"), (False, "cannot be decoded")):
        loader = create_webdataset_dataloader(out, shuffle=False, num_workers=0, checksums=checksums)
        with pytest.raises(ShardError if checksums else UnsafeDataError, match=rf"sample_000000003.*{why}|{why}"):
            list(loader)


@given(st.binary(max_size=300), st.integers(1, 3), st.booleans())
def test_what_is_unpacked_is_what_python_unpacks(data: bytes, streams: int, padded: bool) -> None:
    packed = b"".join(gzip.compress(data) for _ in range(streams)) + bytes(8 * padded)
    assert decode("x.bin.gz", packed) == data * streams
    with pytest.raises(UnsafeDataError):
        decode("x.bin.gz", packed[: len(gzip.compress(data)) - 5])


def test_a_bomb_is_stopped() -> None:
    with pytest.raises(UnsafeDataError, match="unpacks to more than"):
        decode("x.bin.gz", gzip.compress(bytes(200 << 20)))


def test_only_arrays_are_compressed_and_sparse_ones_shrink() -> None:
    counts = np.random.default_rng(0).poisson(0.1, (100, 96)).astype(np.float32)
    suffix, [payload], layout = encode("spikes", counts, "npy.gz")
    assert suffix == "spikes.npy.gz" and layout is None and len(payload) * 10 < counts.nbytes
    assert np.array_equal(decode(suffix, payload), counts)
    assert encode("label", 3, "npy.gz")[0] == "label.npy" and encode("text", "a", "npy.gz")[0] == "text.txt"
    assert encode("spikes", torch.from_numpy(counts), "npy.gz")[1] == [payload]


def test_the_writer_compresses_too(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "out", shard_size=4, field_format="npy.gz") as writer:
        for i in range(9):
            writer.write_sample({"x": np.full((5, 2), i, np.float32), "label": i})
    batches = list(create_webdataset_dataloader(tmp_path / "out", batch_size=3, shuffle=False, num_workers=0))
    assert [batch["x"][:, 0, 0].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ValueError, match="field_format must be one of"):
        WebDatasetWriter(tmp_path / "no", field_format="zip")  # type: ignore[arg-type]


@pytest.mark.parametrize("as_dtype", ["float32", torch.float32, np.float32, {"spikes": "float32"}])
def test_counts_stored_as_uint8_arrive_as_float32(recordings: list[Path], datasets: dict[str, Path], tmp_path: Path,
                                                  as_dtype: Any) -> None:  # fmt: skip
    out = str(tmp_path / "out")
    given = [*map(str, recordings)]
    assert main(["convert", "-i", *given, "-o", out, "--bin-size-ms", "20", "--sequence-length", "25", "--spike-dtype",
                 "uint8", "--field-compression", "gz", "--validate"]) == 0  # fmt: skip
    load: dict[str, Any] = {"num_workers": 0, "seed": 3, "select": {"session_id": "s0"}}
    wanted = create_webdataset_dataloader(datasets["windows"], **load)
    for a, b, stored in zip(
        wanted,
        create_webdataset_dataloader(out, as_dtype=as_dtype, **load),
        create_webdataset_dataloader(out, **load),
        strict=True,
    ):
        assert a["spikes"].equal(b["spikes"]) and stored["spikes"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("as_dtype", "why"),
    [("floaty", "no dtype of numbers"), ({"spikes": bool}, "no dtype"), ({"nothing": "float32"}, "no field 'nothing'")],
)
def test_bad_dtypes_are_refused_by_name(datasets: dict[str, Path], as_dtype: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"as_dtype.*{why}"):
        create_webdataset_dataloader(datasets["windows"], as_dtype=as_dtype)
