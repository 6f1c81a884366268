"""Servers that fail while shards are read: the run goes on, or ends with an error that names object and cause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds
from loading import rows, through_json, write_dataset
from loopback import Loopback

from neurofmx_wds import create_webdataset_dataloader
from neurofmx_wds.errors import NeurofmxError, ShardError
from neurofmx_wds.storage import objects

pytest.importorskip("obstore")

FAULTS = (500, 503, 429, 408, "drop", "short", "other", "trickle", "hang")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PAUSES", (0.001, 0.01))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("local") / "data", (10,) * 6)


@pytest.fixture
def server(local: Path) -> Iterator[Loopback]:
    with Loopback({f"data/{path.name}": path.read_bytes() for path in local.iterdir()}) as server:
        yield server


def all_rows(loader: Any) -> list[Any]:
    return [row for batch in loader for row in rows(batch)]


def remote(server: Loopback, timeout: float = 20.0, **options: Any) -> Any:
    """A loader whose requests are small, and are given up after half a second."""
    storage = {"timeout": timeout, "client_options": {"timeout": "500ms", "read_timeout": "200ms"}}
    return create_webdataset_dataloader(
        f"{server.url}/data", batch_size=4, prefetch_bytes=8192, storage_options=storage, **options
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shuffle", [True, "full"])
def test_what_passes_by_itself_does_not_end_the_run(server: Loopback, local: Path, fault: Any, shuffle: Any) -> None:
    """Some requests fail, also of the manifest and the indexes."""
    every = 11 if fault in ("trickle", "hang") else 3
    server.fault = lambda path, number, wanted: fault if number % every == 0 else None
    found = all_rows(remote(server, shuffle=shuffle))
    assert found == all_rows(create_webdataset_dataloader(local, batch_size=4, shuffle=shuffle))


def test_workers_go_on_too(server: Loopback, local: Path) -> None:
    server.fault = lambda path, number, wanted: FAULTS[number % 7] if number % 2 == 0 else None
    found = all_rows(remote(server, num_workers=2))
    assert found == all_rows(create_webdataset_dataloader(local, batch_size=4))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (500, "could not be read for 0.3 s.*(500|no answer in time)"),
        (429, "could not be read for 0.3 s.*(429|no answer in time)"),
        ("drop", "could not be read for 0.3 s.*(body|no answer in time)"),  # the latter on a busy machine
        ("short", "could not be read for 0.3 s.*(bytes came of|no answer in time)"),
        ("trickle", "could not be read for 0.3 s"),
        ("hang", "could not be read for 0.3 s"),
        (403, "access is denied.*403"),
        (404, "there is no such object"),
        (412, "changed while it was in use"),
        (400, "cannot be read.*400"),
    ],
)
def test_what_does_not_pass_is_an_error_naming_object_and_cause(server: Loopback, fault: Any, cause: str) -> None:
    """And the state goes on from there once the server is well again."""
    loader = remote(server, timeout=0.3, shuffle=False)
    batches = iter(loader)
    done = [row for _ in range(3) for row in rows(next(batches))]
    server.fault = lambda path, number, wanted: fault if path.endswith(".tar") else None
    with pytest.raises((NeurofmxError, FileNotFoundError), match=rf"data/shard_00000\d\.tar.*{cause}"):
        done += [row for batch in batches for row in rows(batch)]
    server.fault = None
    other = remote(server, shuffle=False)
    other.load_state_dict(through_json(loader.state_dict()))
    assert len(done) % 4 == 0 and done + all_rows(other) == all_rows(remote(server, shuffle=False))


def test_a_server_that_is_away_for_a_while(server: Loopback, local: Path) -> None:
    """It refuses all connections, then comes back."""
    loader = remote(server)
    batches = iter(loader)
    found = rows(next(batches))
    back = threading.Event()
    server.fault = lambda path, number, wanted: None if back.is_set() else "drop"
    threading.Timer(0.5, back.set).start()
    found += [row for batch in batches for row in rows(batch)]
    assert found == all_rows(create_webdataset_dataloader(local, batch_size=4))


def test_a_server_that_is_gone(server: Loopback) -> None:
    loader = remote(server, timeout=0.3)
    next(iter(loader))
    server.close()
    with pytest.raises(ShardError, match=r"data/shard_00000\d\.(tar|index).*could not be read for 0.3 s"):
        list(loader)


def test_damage_on_the_way_is_fetched_again(server: Loopback, local: Path) -> None:
    flipped: set[str] = set()

    def once(path: str, number: int, wanted: int) -> str | None:
        if not path.endswith(".tar") or path in flipped:
            return None
        flipped.add(path)
        return "flip"

    server.fault = once
    loader = remote(server, select={"group": [0, 1, 2]}, modalities=["x"])
    expected = create_webdataset_dataloader(local, batch_size=4, select={"group": [0, 1, 2]}, modalities=["x"])
    for mine, theirs in zip(loader, expected, strict=True):
        assert mine["__key__"] == theirs["__key__"] and mine["x"].numpy().tobytes() == theirs["x"].numpy().tobytes()
    assert len(flipped) == 6


def test_damage_in_the_bucket_is_an_error_or_skipped(server: Loopback, local: Path) -> None:
    """Of one sample: the others come."""
    path = "data/shard_000002.tar"
    whole = server.files[path]
    at = whole.index(b"\x93NUMPY", len(whole) // 2)
    server.files[path] = whole[: at + 130] + bytes([whole[at + 130] ^ 4]) + whole[at + 131 :]
    with pytest.raises(ShardError, match=r"shard_000002\.tar, sample 'sample_0000000\d\d', .*checksum"):
        all_rows(remote(server))
    loader = remote(server, handler=wds.ignore_and_continue)
    expected = all_rows(create_webdataset_dataloader(local, batch_size=4))
    found = all_rows(loader)
    assert len(found) == 59 and loader.skipped == 1 and [row for row in expected if row in found] == found
