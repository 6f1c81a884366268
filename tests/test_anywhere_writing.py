"""Datasets written into buckets: uploaded whole, the manifest last, by one run at a time; a kill does no harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversions import make_npz
from loading import rows, sample_of

from neurofmx_wds import ShardedDatasetInfo, WebDatasetWriter, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.convert.run import convert
from neurofmx_wds.errors import OutputError
from neurofmx_wds.storage.objects import ObjectPath, Objects
from neurofmx_wds.storage.uploading import LOCK_NAME

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of an S3 server."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket's URL; credentials are in the environment."""
    name = f"lab-{os.getpid()}-{abs(hash(tmp_path))}"
    values = {"ENDPOINT": moto, "REGION": "us-east-1", "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for key, value in values.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    boto3 = pytest.importorskip("boto3")
    boto3.client("s3", endpoint_url=moto, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


def content(url: str) -> dict[str, bytes]:
    objects = Objects()
    return {name: objects.read(ObjectPath(url) / name)[0] for name in objects.sizes(ObjectPath(url))}


def on_disk(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write(output: Any) -> None:
    with WebDatasetWriter(output, shard_size=7) as writer:
        for i in range(20):
            writer.write_sample(sample_of(i))


def test_the_writer_writes_the_same_objects_as_files(bucket: str, tmp_path: Path, own_cache: Path) -> None:
    write(f"{bucket}/data")
    write(tmp_path / "data")
    assert content(f"{bucket}/data") == on_disk(tmp_path / "data")
    assert not list((own_cache / "uploads").iterdir())
    loaders = [create_webdataset_dataloader(each) for each in (f"{bucket}/data", tmp_path / "data")]
    there, here = ([row for batch in loader for row in rows(batch)] for loader in loaders)
    assert there == here
    assert ShardedDatasetInfo(f"{bucket}/data").get_summary()["shard_dir"] == f"{bucket}/data"
    with pytest.raises(OutputError, match="/data: a finished dataset is there already"):
        WebDatasetWriter(f"{bucket}/data")
    with pytest.raises(OutputError, match="cannot be replaced in one step"):
        WebDatasetWriter(f"{bucket}/data", overwrite=True)
    with pytest.raises(OutputError, match="a URL cannot be written to"):
        WebDatasetWriter("https://localhost/data")


def test_convert_and_again(bucket: str, inputs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in inputs]
    assert main(["convert", "-i", *files, "-o", f"{bucket}/data", "--shard-size", "6"]) == 0
    convert(files, Output(tmp_path / "data", shard_size=6))
    assert content(f"{bucket}/data") == on_disk(tmp_path / "data")
    assert f"{bucket}/data" in capsys.readouterr().out
    assert main(["convert", "-i", *files, "-o", f"{bucket}/data", "--shard-size", "6"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["convert", "-i", *files, "-o", f"{bucket}/data", "--shard-size", "7"]) == 1
    assert "a finished dataset is there already, and differs" in capsys.readouterr().err


RUN = """
import sys
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.storage import objects
put, left = objects.Objects.put, int(sys.argv[2])
def put_and_die(self, path, content, create=False):
    global left
    if left == 0:
        print("here", flush=True)
        sys.stdin.read()
    left -= 1
    return put(self, path, content, create)
objects.Objects.put = put_and_die
convert(sys.argv[3:], Output(sys.argv[1], shard_size=3))
"""


@pytest.mark.parametrize("n_puts", [0, 3, 9])
def test_a_killed_run_goes_on_with_what_is_missing(
    bucket: str, inputs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_puts: int
) -> None:
    """Nothing is visible before; nobody else can write there meanwhile; nothing is uploaded twice."""
    files, url = [str(path) for path in inputs], f"{bucket}/data"
    command = [sys.executable, "-c", RUN, url, str(n_puts), *files]
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin is not None and run.stdout is not None and run.stdout.readline() == b"here\n"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdin.close()
    run.stdout.close()
    assert "dataset_metadata.json" not in content(url)
    if n_puts:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("NEUROFMX_CACHE", str(tmp_path / "another machine"))
            with pytest.raises(OutputError, match="another run is writing here, process"):
                write(url)
    done = set(content(url))
    uploaded: list[str] = []
    put = Objects.put

    def put_noted(self: Objects, path: ObjectPath, *rest: Any, **more: Any) -> str:
        uploaded.append(path.name)
        return put(self, path, *rest, **more)

    monkeypatch.setattr(Objects, "put", put_noted)
    convert(files, Output(url, shard_size=3))
    convert(files, Output(tmp_path / "data", shard_size=3))
    assert content(url) == on_disk(tmp_path / "data")
    assert not done & set(uploaded) - {LOCK_NAME}


def test_what_cannot_be_done_in_buckets_is_refused_by_name(bucket: str, inputs: list[Path], tmp_path: Path) -> None:
    file = str(inputs[0])
    for refused in (
        lambda: append([file], Output(f"{bucket}/data")),
        lambda: main(["convert", "-i", file, "-o", f"{bucket}/sets", "--split", "a=0.5,b=0.5"]),
        lambda: main(["convert", "-i", file, "-o", f"{bucket}/data", "--validate"]),
    ):
        try:
            assert refused() == 1
        except OutputError as error:
            assert bucket.partition("//")[2] in str(error) and error.remedy


def test_merge(bucket: str, inputs: list[Path], tmp_path: Path) -> None:
    for path in inputs[:2]:
        convert([str(path)], Output(tmp_path / path.stem, shard_size=3))
    datasets = [tmp_path / path.stem for path in inputs[:2]]
    merge(datasets, f"{bucket}/both", repeat_keys=True)
    merge(datasets, tmp_path / "both", repeat_keys=True)
    assert content(f"{bucket}/both") == on_disk(tmp_path / "both")


def test_arrays_that_differ(bucket: str, tmp_path: Path) -> None:
    """An array file that has changed since a killed run is converted anew."""
    make_npz(tmp_path / "a.npz", 4, 0)
    convert([str(tmp_path / "a.npz")], Output(f"{bucket}/a"))
    make_npz(tmp_path / "a.npz", 4, 1)
    with pytest.raises(OutputError, match="differs"):
        convert([str(tmp_path / "a.npz")], Output(f"{bucket}/a"))
    assert np.all([name.startswith(("shard", "dataset")) for name in content(f"{bucket}/a")])
