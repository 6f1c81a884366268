"""Shards behind URLs: the same order, bytes and state as from disk, whatever the settings, processes and servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import LAYOUTS, global_rows, jitter, ranks, resumed, rows, steps, write_dataset
from loopback import Loopback
from recordings import make_recording

from neurofmx_wds import WebDatasetLoader, Windows, create_webdataset_dataloader
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import ShardError
from neurofmx_wds.loading.cutting import Events
from neurofmx_wds.storage.objects import ObjectPath

pytest.importorskip("obstore")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback() as server:
        yield server


def publish(server: Loopback, directory: Path, name: str = "data", only: str = "*") -> str:
    """Serve a directory; return its URL."""
    server.files |= {f"{name}/{path.name}": path.read_bytes() for path in directory.glob(only)}
    return f"{server.url}/{name}"


def remote_bytes(server: Loopback) -> int:
    return sum(last - first + 1 for first, last in server.gets)


ORDERS: list[dict[str, Any]] = [{"shuffle": False}, {"block_size": 2, "buffer_size": 5}, {"shuffle": "full"}]


@pytest.mark.parametrize("order", ORDERS, ids=["in order", "blocks", "full"])
@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("compression", ["none", "gz"])
def test_same_order_bytes_and_state(
    server: Loopback, dataset: Callable[..., Path], compression: str, n_ranks: int, order: dict[str, Any]
) -> None:
    """Also from states that were saved on the other side, at every step."""
    local = dataset("equal", compression)
    url = publish(server, local)
    options = {"batch_size": 3, **order}
    here, there = ranks(local, n_ranks, **options), ranks(url, n_ranks, **options)
    expected = list(steps(here))
    found, states = [], []
    for step in steps(there):
        found.append(step)
        states.append(there[0].state_dict())
    assert [global_rows([step]) for step in found] == [global_rows([step]) for step in expected]
    assert there[0].state_dict() == here[0].state_dict()
    whole = global_rows(expected)
    for done, state in enumerate(states[:-1], 1):
        rest = whole[3 * n_ranks * done :]
        assert global_rows(steps(resumed(local, state, 2, batch_size=2, **order))) == rest
        assert global_rows(steps(resumed(url, state, 1, batch_size=5, **order))) == rest


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_shards_without_a_manifest_given_by_urls(
    server: Loopback, dataset: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    """Indexes are read where there are any, else made from the whole shard."""
    local = tmp_path / "local"
    shutil.copytree(dataset(layout), local)
    names = sorted(path.name for path in local.glob("*.tar"))
    tars_only = publish(server, local, "tars", only="*.tar")
    expected = [row for batch in create_webdataset_dataloader(local) for row in rows(batch)]
    last = len(names) - 1
    for given in ([f"{tars_only}/{name}" for name in names], f"{tars_only}/shard_{{000000..{last:06d}}}.tar"):
        loader = create_webdataset_dataloader(given)
        assert [row for batch in loader for row in rows(batch)] == expected
        by_list = create_webdataset_dataloader([local / name for name in names])
        assert loader.state_dict()["fingerprint"][-32:] == by_list.state_dict()["fingerprint"][-32:]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_after_the_parent_has_read(server: Loopback, directory: Path, method: str) -> None:
    url = publish(server, directory)
    options: dict[str, Any] = {"batch_size": 4, "shard_pattern": "*.tar", "transform": jitter}
    names = [f"{url}/{path.name}" for path in sorted(directory.glob("*.tar"))]
    here = create_webdataset_dataloader(directory, **options)
    alone = create_webdataset_dataloader(names, **options)
    expected = [row for batch in here for row in rows(batch)]
    assert [row for batch in alone for row in rows(batch)] == expected
    several = create_webdataset_dataloader(names, num_workers=2, multiprocessing_context=method, **options)
    assert [row for batch in several for row in rows(batch)] == expected
    assert [row for batch in alone for row in rows(batch)] != expected  # the next epoch, in this process again


def test_selections_groups_and_single_fields(server: Loopback, tmp_path: Path) -> None:
    local = write_dataset(tmp_path / "local", LAYOUTS["equal"])
    url = publish(server, local)
    for options in (
        {"select": {"group": [0, 2]}},
        {"select": lambda about: about["i"] % 5 == 1},
        {"modalities": ["number"]},
        {"modalities": "x", "drop_last": True},
    ):
        here = list(create_webdataset_dataloader(local, batch_size=4, **options))
        loader = create_webdataset_dataloader(url, batch_size=4, **options)
        for mine, theirs in zip(list(loader), here, strict=True):
            assert list(mine) == list(theirs) and mine["__key__"] == theirs["__key__"]
            assert list(mine["metadata"]) == list(theirs["metadata"])
            for name in set(mine) - {"metadata", "__key__"}:
                assert mine[name].numpy().tobytes() == theirs[name].numpy().tobytes()


def test_single_samples(server: Loopback, tmp_path: Path) -> None:
    local = write_dataset(tmp_path / "local", LAYOUTS["equal"])
    url = publish(server, local)
    assert [rows(each) for each in WebDatasetLoader(url)] == [rows(each) for each in WebDatasetLoader(local)]


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("segments")
    make_recording(place / "a.nwb", seconds=20, behavior_rate=40.0, lfp_channels=2, trials=4)
    convert(
        [str(place / "a.nwb")], Output(place / "data", shard_size=3), SourceConfig.of(layout="segments", segment_s=2)
    )
    return place / "data"


@pytest.mark.parametrize("spikes", ["dense", "ragged", "events"])
def test_windows_cut_from_segments(server: Loopback, segments: Path, spikes: Any) -> None:
    url = publish(server, segments)
    windows = Windows(length_s=0.5, stride_s=0.2, bin_ms=10, jitter=True, spikes=spikes)
    here = create_webdataset_dataloader(segments, batch_size=7, windows=windows)
    there = create_webdataset_dataloader(url, batch_size=7, windows=windows)
    for mine, theirs in zip(there, here, strict=True):
        assert mine["__key__"] == theirs["__key__"] and list(mine["metadata"]) == list(theirs["metadata"])
        for name in set(theirs) - {"metadata", "__key__"}:
            assert _bytes_of(mine[name]) == _bytes_of(theirs[name])
    assert there.state_dict() == here.state_dict()


def _bytes_of(field: Any) -> Any:
    if isinstance(field, (list, Events)):
        return [None if each is None else np.asarray(each).tobytes() for each in field]
    return field.numpy().tobytes()


def test_opening_costs_the_manifest_and_later_epochs_nothing(server: Loopback, tmp_path: Path) -> None:
    local = write_dataset(tmp_path / "local", (20,) * 8)
    url = publish(server, local)
    loader = create_webdataset_dataloader(url)
    assert [path for _, path, *_ in server.requests] == ["data/dataset_metadata.json"]
    list(loader)
    fetched = remote_bytes(server)
    # What lies between two parts is fetched with them, and may be on its way with others already.
    assert fetched <= 1.25 * sum(path.stat().st_size for path in local.glob("*.tar"))
    list(loader)
    list(create_webdataset_dataloader(url, shuffle="full"))
    assert remote_bytes(server) == fetched
    assert sum(path.endswith(".index") for _, path, *_ in server.requests) == 8


@pytest.mark.parametrize("how", ["another ETag", "another size"])
def test_an_object_that_changes_in_use_is_a_named_error(server: Loopback, tmp_path: Path, how: str) -> None:
    local = write_dataset(tmp_path / "local", (60,))
    url = publish(server, local)
    loader = create_webdataset_dataloader(url, batch_size=2, shuffle=False, prefetch_bytes=1)
    batches = iter(loader)
    next(batches)
    whole = server.files["data/shard_000000.tar"]
    server.files["data/shard_000000.tar"] = whole[:-1] + b"\1" if how == "another ETag" else whole + bytes(512)
    with pytest.raises(ShardError, match=r"data/shard_000000\.tar.*changed while it was in use"):
        list(batches)


def test_bad_addresses(server: Loopback, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"/none: No shards found.*cannot be listed"):
        create_webdataset_dataloader(f"{server.url}/none")
    with pytest.raises(ShardError, match="URLs or of files, not of both"):
        create_webdataset_dataloader([f"{server.url}/a.tar", str(tmp_path / "b.tar")])
    with pytest.raises(ShardError, match="with a query"):
        create_webdataset_dataloader(f"{server.url}/a.tar?secret=1")
    with pytest.raises(ShardError, match=r"x/data/.*could not be read for 0\.3 s"):
        create_webdataset_dataloader("http://127.0.0.1:9/x/data", storage_options={"timeout": 0.3})
    with pytest.raises(ValueError, match="timeout must be a positive"):
        create_webdataset_dataloader(server.url, storage_options={"timeout": 0})
    server.files["data/dataset_metadata.json"] = json.dumps({"shards": 1}).encode()
    with pytest.raises(ShardError, match="data/dataset_metadata.json: the manifest is damaged"):
        create_webdataset_dataloader(f"{server.url}/data")


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """An S3 bucket named ``lab``; yields its storage options."""
    moto_server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    moto = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    options = {"endpoint": f"http://{host}:{port}", "region": "us-east-1"}
    options |= {"access_key_id": "key", "secret_access_key": "secret"}
    s3 = boto3.client(
        "s3", endpoint_url=options["endpoint"], region_name="us-east-1", aws_access_key_id="key",
        aws_secret_access_key="secret",
    )  # fmt: skip
    s3.create_bucket(Bucket="lab")
    yield options
    moto.stop()


def upload(options: dict[str, str], directory: Path, prefix: str, only: str = "*") -> str:
    import obstore

    store = obstore.store.S3Store("lab", client_options={"allow_http": True}, **options)
    for path in directory.glob(only):
        obstore.put(store, f"{prefix}/{path.name}", path.read_bytes())
    return f"s3://lab/{prefix}"


def test_buckets(bucket: dict[str, str], dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a manifest, or else by listing the bucket; credentials as options, or from the environment."""
    local = dataset("equal")
    expected = [row for batch in create_webdataset_dataloader(local) for row in rows(batch)]
    url = upload(bucket, local, "some data")
    loader = create_webdataset_dataloader(url, storage_options=bucket)
    assert [row for batch in loader for row in rows(batch)] == expected
    listed = upload(bucket, local, "listed", only="shard*")
    for name, value in bucket.items():
        monkeypatch.setenv(f"AWS_{name.upper()}", value)
    loader = create_webdataset_dataloader(listed, num_workers=2)
    assert [row for batch in loader for row in rows(batch)] == expected


WRONG_OPTIONS = [{"nonsense": 1}, {"aws_allow_http": "true"}, {"region": object()}, {"proxy_url": "no address"}]


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=lambda options: next(iter(options)))
def test_options_that_the_store_does_not_take_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ShardError, match="s3://lab/data.*the object store cannot be opened"):
        create_webdataset_dataloader("s3://lab/data", storage_options={"timeout": 1, **options})


def test_addresses() -> None:
    path = ObjectPath("s3://bucket/some data/") / "shard_000000.tar.gz"
    assert (path.root, path.key, path.suffix) == ("s3://bucket", "some data/shard_000000.tar.gz", ".gz")
    assert str(path.with_name("x")) == "s3://bucket/some data/x"
    assert ObjectPath("https://host:8/a%20b/c").key == "a b/c"
