"""Image sets: pixels and labels as numpy and pillow see them, and files made to do harm."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds

from neurofmx_wds import WebDatasetLoader, create_webdataset_dataloader
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output, Workers
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig, open_source
from neurofmx_wds.convert.validate import compare_with_sources
from neurofmx_wds.errors import SourceError
from neurofmx_wds.format.manifest import Manifest
from neurofmx_wds.format.pixels import decode_image, image_size
from neurofmx_wds.format.verify import verify

Images = pytest.importorskip("PIL.Image")
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def official(directory: Path) -> list[dict[str, Any]]:
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    return list(wds.WebDataset(urls, shardshuffle=False).decode())


def refusal(root: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        source = open_source(root, SourceConfig.of(**settings))
        list(source.read(0, source.describe().n_samples))
    assert str(caught.value).startswith(str(root)) and caught.value.remedy
    return caught.value.problem


# --- MNIST ---


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_mnist(root: Path, packed: bool = False, dot: bool = False, n: int = 25) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    arrays = {}
    root.mkdir()
    for stem, count in (("train", n), ("t10k", 7)):
        arrays[f"{stem}-images"] = rng.integers(0, 256, (count, 28, 20), np.uint8)
        arrays[f"{stem}-labels"] = rng.integers(0, 10, count, np.uint8)
        for what in ("images", "labels"):
            array = arrays[f"{stem}-{what}"]
            name = f"{stem}-{what}{'.' if dot else '-'}idx{array.ndim}-ubyte"
            (root / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


@pytest.mark.parametrize(("packed", "dot"), [(False, False), (True, False), (False, True), (True, True)])
def test_mnist_arrives_as_numpy_sees_it(tmp_path: Path, packed: bool, dot: bool) -> None:
    arrays = make_mnist(tmp_path / "in", packed, dot)
    config = SourceConfig.of(format="mnist")
    conversion = convert([tmp_path / "in"], Output(tmp_path / "out", shard_size=4), config)
    assert compare_with_sources(conversion, tmp_path / "out") == []
    convert([tmp_path / "in"], Output(tmp_path / "two", shard_size=4), config, Workers(2 if packed and dot else 1))
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    samples = official(tmp_path / "out")
    images = np.concatenate([arrays["train-images"], arrays["t10k-images"]])
    labels = np.concatenate([arrays["train-labels"], arrays["t10k-labels"]])
    assert len(samples) == 32
    for i, (sample, image, label) in enumerate(zip(samples, images, labels, strict=True)):
        np.testing.assert_array_equal(sample["image.npy"], image)
        assert sample["image.npy"].dtype == np.uint8 and sample["label.npy"] == label
        subset = "train" if i < 25 else "test"
        known = {"source": "in", "sample_index": i, "subset": subset, "label": label, "label_name": str(label)}
        assert sample["metadata.json"] == known
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.modalities["label"]["names"] == list("0123456789")
    assert manifest.modalities["image"] == {"dtype": "uint8", "shape": [28, 20]}
    [report] = manifest.sources
    assert report["subsets"] == {"train": 25, "test": 7}
    assert report["classes"]["label"] == {str(i): int((labels == i).sum()) for i in range(10)}
    batch = next(iter(create_webdataset_dataloader(tmp_path / "out", batch_size=8, num_workers=0, shuffle=False)))
    np.testing.assert_array_equal(batch["image"].numpy(), images[:8])
    np.testing.assert_array_equal(batch["label"].numpy(), labels[:8])


def test_subsets_and_classes_are_selected(tmp_path: Path) -> None:
    arrays = make_mnist(tmp_path / "in")
    for subset, stem in (("train", "train"), ("test", "t10k")):
        out = tmp_path / subset
        assert (
            main(["convert", "-i", str(tmp_path / "in"), "-o", str(out), "--format", "mnist", "--subset", subset]) == 0
        )
        wanted = ["3", str(arrays[f"{stem}-labels"][0])]
        seen = list(WebDatasetLoader(out, shuffle=False, select={"label_name": wanted}))
        chosen = np.isin(arrays[f"{stem}-labels"], [int(name) for name in wanted])
        np.testing.assert_array_equal([sample["image"] for sample in seen], arrays[f"{stem}-images"][chosen])
        assert {sample["metadata"]["subset"] for sample in seen} == {subset}
    (tmp_path / "in" / "t10k-labels-idx1-ubyte").unlink()
    assert "has no t10k-labels-idx1-ubyte" in refusal(tmp_path / "in", format="mnist")
    assert open_source(tmp_path / "in", SourceConfig.of(format="mnist", subset="train")).describe().n_samples == 25


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_named(tmp_path: Path, packed: bool) -> None:
    arrays = make_mnist(tmp_path / "in", packed)
    images, labels = (f"train-{each}-ubyte{'.gz' if packed else ''}" for each in ("images-idx3", "labels-idx1"))

    def told(name: str, data: bytes, raw: bool = False) -> str:
        path = tmp_path / "in" / name
        good = path.read_bytes()
        path.write_bytes(gzip.compress(data) if packed and not raw else data)
        try:
            problem = refusal(tmp_path / "in", format="mnist", subset="train")
        finally:
            path.write_bytes(good)
        return problem

    whole = idx(arrays["train-images"])
    assert "not as an idx file" in told(images, b"")
    assert "begins with 00 00 08 01, not" in told(images, idx(arrays["train-labels"]))
    assert "begins with 00 00 0d 03, not" in told(images, b"\0\0\x0d\3" + whole[4:])
    assert "not as an idx file" in told(images, whole[:13])
    assert "25 train images have 24 labels" in told(labels, idx(arrays["train-labels"][:24]))
    if packed:
        assert "unpacked" in told(images, whole[:-1])
        assert "more than its header tells" in told(images, whole + b"\0")
        assert "unpacked" in told(images, gzip.compress(whole)[:-30], raw=True)
        assert "unpacked" in told(images, gzip.compress(whole)[:-8] + bytes(8), raw=True)  # the checksum is wrong
        assert "unpacked" in told(images, whole, raw=True)
    else:
        assert "cannot hold" in told(images, whole[:-1]) and "cannot hold" in told(images, whole + b"\0")
    for shape in ((2**32 - 1,) * 3, (25, 2**31, 2**31), (2**31, 1, 1)):
        assert "cannot hold the" in told(images, struct.pack(">HBB3I", 0, 8, 3, *shape) + whole[16:])


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    make_mnist(tmp_path / "in", packed=True)
    packed = gzip.compress(idx(np.zeros((25, 28, 20), np.uint8)) + bytes(1 << 28))  # 260 kB
    (tmp_path / "in" / "train-images-idx3-ubyte.gz").write_bytes(packed)
    tracemalloc.start()
    problem = refusal(tmp_path / "in", format="mnist")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "holds more than its header tells of" in problem and peak < 16 << 20


# --- CIFAR ---


def py2(value: Any) -> bytes:
    """What Python 2's pickle makes of a value at protocol 2, as in CIFAR's files, but for the memo."""
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(py2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(each) for pair in value.items() for each in pair) + b"u"
    array = np.ascontiguousarray(value)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + py2(array.dtype.str[1:]) + b"K\0K\1\x87R"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = py2(array.shape[0]) + py2(array.shape[1]) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + py2(array.tobytes()) + b"tb"


def make_cifar(root: Path, kind: str = "cifar10", n: int = 6) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    names = {"cifar10": [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"], "cifar100": ["train", "test"]}[kind]
    batches: dict[str, dict[str, Any]] = {}
    root.mkdir()
    for name in names:
        batch: dict[str, Any] = {
            "batch_label": f"{name} of {len(names)}",
            "data": rng.integers(0, 256, (n, 3072), np.uint8),
        }
        if kind == "cifar10":
            batch["labels"] = rng.integers(0, 10, n).tolist()
            meta: dict[str, Any] = {"num_cases_per_batch": n, "label_names": CIFAR10, "num_vis": 3072}
        else:
            batch |= {"fine_labels": rng.integers(0, 100, n).tolist(), "coarse_labels": rng.integers(0, 20, n).tolist()}
            meta = {
                "fine_label_names": [f"fine{i}" for i in range(100)],
                "coarse_label_names": [f"c{i}" for i in range(20)],
            }
        batch["filenames"] = [f"img_{i}.png" for i in range(n)]
        batches[name] = batch
        (root / name).write_bytes(b"\x80\x02" + py2(batch) + b".")
        assert pickle.loads((root / name).read_bytes(), encoding="latin1").keys() == batch.keys()
    (root / ("batches.meta" if kind == "cifar10" else "meta")).write_bytes(b"\x80\x02" + py2(meta) + b".")
    (root / "readme.html").write_text("<html>")
    return batches


@pytest.mark.parametrize("subset", ["all", "train", "test"])
@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_arrives_as_its_own_unpickling_gives_it(tmp_path: Path, kind: str, subset: str) -> None:
    batches = make_cifar(tmp_path / "in", kind)
    config = SourceConfig.of(format=kind, subset=subset)
    conversion = convert([tmp_path / "in"], Output(tmp_path / "out", shard_size=4), config)
    assert compare_with_sources(conversion, tmp_path / "out") == []
    chosen = [name for name in batches if subset == "all" or ("test" in name) == (subset == "test")]
    data = np.concatenate([batches[name]["data"] for name in chosen])
    rows = [(name, i) for name in chosen for i in range(6)]
    samples = official(tmp_path / "out")
    for k, (sample, row, (name, i)) in enumerate(zip(samples, data, rows, strict=True)):
        red, green, blue = (row[1024 * c : 1024 * (c + 1)].reshape(32, 32) for c in range(3))
        np.testing.assert_array_equal(sample["image.npy"], np.dstack([red, green, blue]))
        known = {"source": "in", "sample_index": k, "subset": "test" if "test" in name else "train"}
        if kind == "cifar10":
            label = batches[name]["labels"][i]
            known |= {"label": label, "label_name": CIFAR10[label]}
        else:
            label, coarse = batches[name]["fine_labels"][i], batches[name]["coarse_labels"][i]
            known |= {
                "label": label,
                "label_name": f"fine{label}",
                "coarse_label": coarse,
                "coarse_label_name": f"c{coarse}",
            }
            assert sample["coarse_label.npy"] == coarse
        assert sample["metadata.json"] == known and sample["label.npy"] == label
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.modalities["image"] == {"dtype": "uint8", "shape": [32, 32, 3]}
    assert len(manifest.modalities["label"]["names"]) == (10 if kind == "cifar10" else 100)


def test_commands_read_what_needs_torch_and_what_does_not(tmp_path: Path) -> None:
    import torch

    make_cifar(tmp_path / "in")
    (tmp_path / "files").mkdir()
    torch.save({"w": torch.ones(3)}, tmp_path / "files" / "a.pth")
    for kind, root in (("cifar10", "in"), ("files", "files")):
        command = ["convert", "-i", str(tmp_path / root), "-o", str(tmp_path / f"out-{kind}"), "--format", kind]
        done = subprocess.run(
            [sys.executable, "-m", "neurofmx_wds", *command, "--validate"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "") and "validated" in done.stdout


class Harm:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.dumps(Harm()), "asks for posix.system"),
        (pickle.dumps({"data": Harm(), "labels": []}, 2), "asks for posix.system"),
        (b"cbuiltins\neval\n(U\x0eprint('harmed')tR.", "asks for builtins.eval"),
        (b"c__builtin__\nexec\n(U\x01xtR.", "asks for __builtin__.exec"),
        (b"(S'touch harmed'\nios\nsystem\n.", "opcode"),
        (b"\x80\x02T\xff\xff\xff\x7fshort", "readable pickle"),
        (b"\x80\x02}(U\x04data" + py2(np.zeros((2, 3072), np.uint8))[:-100] + b".", "readable pickle"),
        (b"\x80\x02" + py2([1, 2]) + b".", "no dictionary"),
        (b"\x80\x02" + py2({"labels": [1]}) + b".", "holds no images"),
        (b"\x80\x02" + py2({"data": np.zeros((2, 3000), np.uint8), "labels": [1, 2]}) + b".", "holds no images"),
        (b"\x80\x02" + py2({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}) + b".", "no labels for its 2"),
        (b"\x80\x02" + py2({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}) + b".", "no labels for its 1"),
        (
            b"\x80\x02" + py2({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}) + b".",
            "labels 1 to 10, and names",
        ),
        (b"", "readable pickle"),
    ],
)
def test_a_cifar_batch_that_is_none_runs_nothing(
    tmp_path: Path, content: bytes, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cifar(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    for name in ("test_batch", "batches.meta"):
        good = (tmp_path / "in" / name).read_bytes()
        (tmp_path / "in" / name).write_bytes(content)
        problem = refusal(tmp_path / "in", format="cifar10")
        assert name == "batches.meta" or told in problem
        (tmp_path / "in" / name).write_bytes(good)
    assert not (tmp_path / "harmed").exists() and capsys.readouterr().out == ""


def test_what_cifar_lacks_is_named(tmp_path: Path) -> None:
    make_cifar(tmp_path / "in")
    (tmp_path / "in" / "data_batch_4").unlink()
    assert "has no data_batch_4" in refusal(tmp_path / "in", format="cifar10")
    assert "has no meta" in refusal(tmp_path / "in", format="cifar100")
    assert open_source(tmp_path / "in", SourceConfig.of(format="cifar10", subset="test")).describe().n_samples == 6


# --- a folder for each class ---


def encoded(array: np.ndarray, format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Images.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, format, **options)
    return stream.getvalue()


def make_folders(root: Path) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for name in ("dog/1.png", "cat/2.PNG", "cat/1.v2.png", "cat/deeper/3.bmp", "été/1.ppm"):
        shape = (int(rng.integers(3, 9)), 5, 3)
        image = {"png": "PNG", "bmp": "BMP", "ppm": "PPM"}[name.rpartition(".")[2].lower()]
        files[name] = encoded(rng.integers(0, 256, shape, np.uint8), image)
    files["dog/grey.jpg"] = encoded(rng.integers(0, 256, (4, 6), np.uint8), "JPEG")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


def test_folders_become_labels_and_files_become_pixels(tmp_path: Path) -> None:
    files = dict(sorted(make_folders(tmp_path / "in").items()))
    config = SourceConfig.of(format="imagefolder")
    conversion = convert([tmp_path / "in"], Output(tmp_path / "out", shard_size=4), config)
    assert compare_with_sources(conversion, tmp_path / "out") == []
    with ThreadPoolExecutor(3) as threads:
        convert([tmp_path / "in"], Output(tmp_path / "two", shard_size=4), config, Workers(executor=threads))
    assert contents(tmp_path / "out") == contents(tmp_path / "two")
    samples, classes = official(tmp_path / "out"), ["cat", "dog", "été"]
    for i, (sample, (name, data)) in enumerate(zip(samples, files.items(), strict=True)):
        np.testing.assert_array_equal(sample["image.npy"], np.asarray(Images.open(io.BytesIO(data))))
        label = classes.index(name.split("/")[0])
        known = {"source": "in", "sample_index": i, "path": name, "label": label, "label_name": classes[label]}
        assert sample["metadata.json"] == known and sample["label.npy"] == label
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.modalities["label"] == {"dtype": "int64", "shape": [], "names": classes}
    assert manifest.modalities["image"]["shape"] is None  # grey and coloured
    assert manifest.sources[0]["classes"] == {"label": {"cat": 3, "dog": 2, "été": 1}}
    chosen = WebDatasetLoader(tmp_path / "out", shuffle=False, select={"label_name": ["dog", "été"]})
    assert [sample["metadata"]["path"] for sample in chosen] == ["dog/1.png", "dog/grey.jpg", "été/1.ppm"]


def test_encoded_files_are_kept_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict(sorted(make_folders(tmp_path / "in").items()))
    monkeypatch.setitem(sys.modules, "PIL", None)  # it takes no pillow
    command = ["convert", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--format", "imagefolder"]
    assert main([*command, "--keep-encoded", "--validate"]) == 0
    loaded = list(WebDatasetLoader(tmp_path / "out", shuffle=False))
    assert [sample["image"] for sample in loaded] == list(files.values())
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    for sample, (name, data) in zip(wds.WebDataset(urls, shardshuffle=False), files.items(), strict=True):
        assert sample[f"image.{name.rpartition('.')[2].lower()}"] == data
    assert main([*command[:3], "-o", str(tmp_path / "pixels"), *command[5:]]) == 1
    assert verify(tmp_path / "out", deep=True).ok


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    files = make_folders(tmp_path / "in" / "train")
    make_folders(tmp_path / "in" / "val")
    assert "has the folders train, val: subsets" in refusal(tmp_path / "in", format="imagefolder")
    root = tmp_path / "in" / "train"
    (root / "labels.csv").write_text("1")
    (root / "cat" / "notes.txt").write_text("1")
    (root / "1.png").write_bytes(files["dog/1.png"])
    assert "holds 3 files that are no images in a class's folder, such as '1.png'" in refusal(
        root, format="imagefolder"
    )
    described = open_source(root, SourceConfig.of(format="imagefolder", allow_missing=True)).describe()
    assert described.n_samples == len(files)
    assert described.report["warnings"] == ["3 files left out: no images in a class's folder"]
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert "has no images" in refusal(tmp_path / "empty", format="imagefolder")


def test_labels_mean_one_thing_in_a_dataset(tmp_path: Path) -> None:
    for root, folders in (("a", ["cat", "dog"]), ("b", ["bird", "cat"]), ("c", ["cat", "dog"])):
        for folder in folders:
            (tmp_path / root / folder).mkdir(parents=True)
            (tmp_path / root / folder / "1.png").write_bytes(encoded(np.full((2, 2), ord(root), np.uint8)))
    config = SourceConfig.of(format="imagefolder")
    conversion = convert([tmp_path / each for each in "abc"], Output(tmp_path / "out"), config)
    [failure] = conversion.plan.failures
    assert "labels are bird, cat, those of the sources before it cat, dog" in failure.problem
    counts = Counter(sample["metadata"]["source"] for sample in WebDatasetLoader(tmp_path / "out"))
    assert counts == {"a": 2, "c": 2}
    with pytest.raises(SourceError, match="labels are bird, cat"):
        append([tmp_path / "b"], Output(tmp_path / "out"), config)


# --- pixels ---

GREY, COLOUR = np.arange(48, dtype=np.uint8).reshape(6, 8), np.arange(144, dtype=np.uint8).reshape(6, 8, 3)
RGBA = np.dstack([COLOUR, GREY])


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (encoded(GREY), GREY),
        (encoded(COLOUR), COLOUR),
        (encoded(RGBA), RGBA),
        (encoded(RGBA[..., 2:]), RGBA[..., 2:]),
        (encoded(COLOUR, "TIFF"), COLOUR),
        (encoded(COLOUR, "WEBP", lossless=True), COLOUR),
        (encoded(COLOUR[:, :, 0], mode="P"), COLOUR[:, :, [0, 0, 0]]),
        (encoded((GREY % 2 * 255).astype(np.uint8), mode="1"), (GREY % 2 * 255).astype(np.uint8)),
        (encoded(np.zeros((2, 3), np.uint8), "TIFF", mode="CMYK"), np.zeros((2, 3, 3), np.uint8)),
        (encoded(COLOUR, transparency=(0, 1, 2)), np.dstack([COLOUR, np.where(GREY == 0, 0, 255).astype(np.uint8)])),
    ],
)
def test_modes(data: bytes, pixels: np.ndarray) -> None:
    found = decode_image(data)
    assert found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(found, pixels)


def test_an_image_stands_as_its_orientation_says() -> None:
    exif = Images.Exif()
    exif[0x0112] = 6  # turn it clockwise
    np.testing.assert_array_equal(decode_image(encoded(COLOUR, exif=exif)), np.rot90(COLOUR, -1))


def frames(format: str) -> bytes:
    stream = io.BytesIO()
    images = [Images.fromarray(GREY + i) for i in range(3)]
    images[0].save(stream, format, save_all=True, append_images=images[1:])
    return stream.getvalue()


def png_16_bit_rgb() -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(26))) + chunk(b"IEND", b"")


def bomb(format: str) -> bytes:
    stream = io.BytesIO()
    Images.new("1", (12_000, 12_000)).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (encoded(COLOUR)[:50], "cannot be decoded"),
        (encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")[:-900], "cannot be decoded"),
        (encoded(np.zeros((2, 2), np.uint16)), "more than 8 bits"),
        (encoded(np.zeros((2, 2), np.uint16), "TIFF"), "more than 8 bits"),
        (encoded(np.zeros((2, 2), np.float32), "TIFF"), "more than 8 bits"),
        (png_16_bit_rgb(), "more than 8 bits"),
        (b"P6 2 2 65535\n" + bytes(24), "more than 8 bits"),
        (b"P5 2 2 65535\n" + bytes(8), "more than 8 bits"),
        (frames("GIF"), "several frames"),
        (frames("TIFF"), "several frames"),
        (bomb("PNG"), "more than 89,478,485"),
        (b"P5 4000000000 4000000000 255\n", "too many pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_pixels_cannot_be_had_of_are_refused(data: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=told):
        decode_image(data)
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "odd.png").write_bytes(data)
    assert told in refusal(tmp_path / "in", format="imagefolder")


def test_sizes_are_read_from_headers() -> None:
    assert image_size(encoded(COLOUR, "JPEG")) == ("JPEG", 8, 6)
    assert image_size(encoded(COLOUR)[:60]) == ("PNG", 8, 6)
    assert image_size(b"text") is None
