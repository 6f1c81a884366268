"""Groups of labels: which samples they choose, how their labels count, what is read for it; and datasets of links."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import webdataset as wds
from counting import some
from hypothesis import HealthCheck, given, settings
from loading import flip, ranks, resumed, steps

from neurofmx_wds import (
    ShardedDatasetInfo,
    WebDatasetLoader,
    WebDatasetWriter,
    create_shards_from_arrays,
    create_webdataset_dataloader,
)
from neurofmx_wds.cli.main import main
from neurofmx_wds.convert.append import append
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.link import link_group
from neurofmx_wds.convert.merge import merge
from neurofmx_wds.errors import GroupError, ManifestError, NeurofmxError, OutputError, ShardError, StateError
from neurofmx_wds.format.export import export
from neurofmx_wds.format.groups import Group
from neurofmx_wds.format.index import ShardIndex, index_path
from neurofmx_wds.format.index_files import write_indexes
from neurofmx_wds.format.manifest import config_hash
from neurofmx_wds.format.shards import ShardSet
from neurofmx_wds.format.verify import verify

N = 43
NAMES = ["bee", "crab", "dog", "owl", "snail", "worm"]
LABELS = [(7 * i + i // 4) % 6 for i in range(N)]
GROUPS = {"animals": {"invertebrates": [5, 0, 4], "vertebrates": ["owl", "dog"], "one": [1]}}
BY_NAME = {"invertebrates": ["worm", "bee", "snail"], "vertebrates": ["owl", "dog"], "one": ["crab"]}
WANTED = {"invertebrates": [5, 0, 4], "vertebrates": [3, 2], "one": [1]}

make = functools.partial(
    create_webdataset_dataloader, num_workers=0, batch_size=4, buffer_size=7, block_size=3, groups=GROUPS
)


def payload(i: int) -> np.ndarray:
    return np.arange(1000, dtype=np.float32) + i


def by_hand(directory: Path, members: Callable[[int], dict[str, Any]], compression: str = "") -> Path:
    """Tars of plain webdataset."""
    directory.mkdir()
    for shard, first in enumerate(range(0, N, 10)):
        with wds.TarWriter(str(directory / f"shard_{shard:06d}.tar{compression}")) as tar:
            for i in range(first, min(N, first + 10)):
                tar.write({"__key__": f"sample_{i:09d}", "x.npy": payload(i), **members(i)})
    return directory


def by_writer(
    directory: Path, members: Callable[[int], dict[str, Any]], about: Callable[[int], dict[str, Any]]
) -> Path:
    with WebDatasetWriter(directory, shard_size=10) as writer:
        for i in range(N):
            writer.write_sample({"x": payload(i), **members(i)}, metadata={"i": i, **about(i)})
    return directory


KINDS: dict[str, Callable[[Path], Path]] = {
    "metadata": lambda to: by_writer(to, lambda i: {}, lambda i: {"label": LABELS[i], "label_name": NAMES[LABELS[i]]}),
    "both": lambda to: by_writer(
        to, lambda i: {"label": np.uint8(LABELS[i])}, lambda i: {"label": LABELS[i], "label_name": NAMES[LABELS[i]]}
    ),
    "field": lambda to: by_writer(
        to, lambda i: {"label": np.int16(LABELS[i])}, lambda i: {"label_name": NAMES[LABELS[i]]} if i % 10 < 9 else {}
    ),
    "text": lambda to: by_hand(to, lambda i: {"label.txt": NAMES[LABELS[i]]}),
    "gz": lambda to: by_hand(
        to, lambda i: {"label.npy": np.array(LABELS[i]), "metadata.json": {"label_name": NAMES[LABELS[i]]}}, ".gz"
    ),
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def made(kind: str) -> Path:
        return KINDS[kind](tmp_path_factory.mktemp("data") / kind)

    return made


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


Row = tuple[int, int, bytes]


def wanted(group: str) -> dict[int, Row]:
    """What belongs to a group: number of the sample, its label and its payload."""
    labels = WANTED[group]
    return {i: (i, labels.index(LABELS[i]), payload(i).tobytes()) for i in range(N) if LABELS[i] in labels}


def rows(batches: Any) -> list[Row]:
    found = []
    for batch in batches:
        assert batch["label"].dtype.is_signed and batch["label"].element_size() == 8
        for key, label, x in zip(batch["__key__"], batch["label"].tolist(), batch["x"], strict=True):
            found.append((int(key[-9:]), label, x.numpy().tobytes()))
    return found


@pytest.mark.parametrize(
    ("kind", "group"),  # some samples of the vertebrates have no name in the field
    [(kind, group) for kind in KINDS for group in WANTED if (kind, group) != ("field", "vertebrates")],
)
def test_a_group_is_what_belongs_to_it(labelled: Callable[[str], Path], kind: str, group: str) -> None:
    directory, groups = labelled(kind), BY_NAME if kind == "text" else GROUPS
    loader = make(directory, group=group, groups=groups, shuffle=False)
    assert rows(loader) == [*wanted(group).values()] and len(loader) == -(-len(wanted(group)) // 4)
    shuffled = make(directory, group=group, groups=groups)
    assert sorted(rows(shuffled)) == [*wanted(group).values()]
    samples = WebDatasetLoader(directory, group=group, groups=groups, shuffle=False)
    assert [(int(s["__key__"][-9:]), int(s["label"]), s["x"].tobytes()) for s in samples] == [*wanted(group).values()]
    assert len(samples) == len(wanted(group))


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_order_len_and_resume_are_those_of_the_same_selection(
    labelled: Callable[[str], Path], shuffle: Any, num_workers: int
) -> None:
    directory, labels = labelled("both"), wanted("invertebrates")
    selected = make(directory, select=lambda about: about["i"] in labels, shuffle=shuffle, groups=None)
    order = [about["i"] for batch in selected for about in batch["metadata"]]
    assert sorted(order) == [*labels]
    options: dict[str, Any] = {"group": "invertebrates", "shuffle": shuffle, "num_workers": num_workers, "make": make}
    for world_size in (1, 2, 3):
        loaders = ranks(directory, world_size, **options)
        first = [*itertools.islice(steps(loaders), 1)]
        again = resumed(directory, loaders[0].state_dict(), 4 - world_size, batch_size=3, **options)
        rest = [batch for step in steps(again) for batch in step]
        found = rows([batch for step in first for batch in step] + [b for b in rest if "__mask__" not in b])
        found += [row for b in rest if "__mask__" in b for row in rows([b]) if b["__mask__"].item()]
        assert found == [labels[i] for i in order]


def test_group_and_select_choose_what_is_in_both(labelled: Callable[[str], Path]) -> None:
    loader = make(labelled("field"), group="invertebrates", select=lambda about: about["i"] % 2, shuffle=False)
    assert rows(loader) == [row for row in wanted("invertebrates").values() if row[0] % 2]
    with pytest.raises(ValueError, match="matches none of the 7 samples of the group 'one'"):
        make(labelled("both"), group="one", select={"label": 2})


def test_labels_are_mapped_before_anything_of_the_users(labelled: Callable[[str], Path]) -> None:
    options: dict[str, Any] = {"group": "invertebrates", "modalities": ["x"]}
    for more in ({}, {"transform": lambda sample: {**sample, "twice": 2 * sample["label"]}}):
        loader = make(labelled("both"), target_transform=lambda label: label + 10, shuffle=False, **options, **more)
        found = [label for batch in loader for label in batch["label"].tolist()]
        assert found == [10 + label for _, label, _ in wanted("invertebrates").values()]
    last = make(labelled("both"), batch_transform=lambda batch: {**batch, "twice": 2 * batch["label"]}, **options)
    assert all((batch["twice"] == 2 * batch["label"]).all() for batch in last)
    for batch in last:
        assert [about["label"] for about in batch["metadata"]] == [[5, 0, 4][label] for label in batch["label"]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.lists(st.integers(0, 5), min_size=1, unique=True), names=st.booleans(), kind=st.sampled_from([*KINDS]))
def test_any_group(labelled: Callable[[str], Path], labels: list[int], names: bool, kind: str) -> None:
    names = kind == "text" or (names and kind != "field")
    group = [NAMES[label] for label in labels] if names else labels
    loader = make(labelled(kind), group="g", groups={"g": group}, shuffle=False)
    reference = np.flatnonzero(np.isin(LABELS, labels))
    assert [row[:2] for row in rows(loader)] == [(i, labels.index(LABELS[i])) for i in reference.tolist()]


# --- what is read


def test_metadata_suffice(labelled: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = labelled("both")

    def refuse(*_: Any) -> None:
        raise AssertionError("a shard was opened")

    with monkeypatch.context() as patch:
        patch.setattr(ShardSet, "open", refuse)
        loader = make(directory, group="one")
    assert sorted(rows(loader)) == [*wanted("one").values()]


@pytest.mark.parametrize("kind", ["field", "text"])
def test_only_the_label_is_read_where_it_is_a_field(
    labelled: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    read: list[tuple[int, int]] = []
    real = os.pread

    def noting(file: int, size: int, offset: int) -> bytes:
        read.append((offset, size))
        return real(file, size, offset)

    class NoFile(mmap.mmap):
        def __new__(cls, file: int, *arguments: Any, **options: Any) -> NoFile:
            assert file == -1
            return super().__new__(cls, file, *arguments, **options)

    directory = labelled(kind)
    make(directory, groups=None)  # plain webdataset's tars get their indexes
    with monkeypatch.context() as patch:
        patch.setattr("os.pread", noting)
        patch.setattr("mmap.mmap", NoFile)  # nor is any file mapped
        loader = make(directory, group="one", groups=BY_NAME if kind == "text" else GROUPS)
    indexes = [ShardIndex.load(path) for path in sorted(directory.glob("*.index"))]
    labels = [(at, size) for index in indexes for at, size in index_entries(index, "label")]
    headers = [each for each in read if each not in labels]  # of two members, by which a shard is known
    assert len(headers) <= 2 * len(indexes) and all(size < 8192 for _, size in headers)
    assert [each for each in read if each in labels] == labels and len(labels) == N
    assert sorted(rows(loader)) == [*wanted("one").values()]


def index_entries(index: ShardIndex, field: str) -> list[tuple[int, int]]:
    """Where the field's members lie."""
    column = index.columns[field]
    return list(zip(column.offset.tolist(), column.size.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["field", "text"])
def test_a_changed_label_puts_no_sample_into_another_group(
    labelled: Callable[[str], Path], kind: str, tmp_path: Path
) -> None:
    changed = tmp_path / "d"
    shutil.copytree(labelled(kind), changed)
    groups = BY_NAME if kind == "text" else GROUPS
    write_indexes(changed)
    path = changed / "shard_000002.tar"
    index = ShardIndex.load(index_path(path))
    at, size = index_entries(index, "label")[3]
    flip(path, at + size - 1)
    with pytest.raises(ShardError, match="checksum differs") as caught:
        make(changed, group="one", groups=groups)
    where = caught.value.file, caught.value.sample, caught.value.member
    assert where == (str(path), index.sample_keys[3], index.suffixes[index.columns["label"].suffix_id[3]])
    make(changed, group="one", groups=groups, checksums=False)


def test_a_label_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    by_hand(tmp_path / "d", lambda i: {"label.npy": b"none" if i == 13 else np.array(1)})
    with pytest.raises(ShardError, match="magic") as caught:
        make(tmp_path / "d", group="one", groups={"one": [1]})
    assert (caught.value.sample, caught.value.member) == ("sample_000000013", "label.npy")


# --- states


def test_a_state_belongs_to_its_group(labelled: Callable[[str], Path]) -> None:
    state = make(labelled("both"), group="invertebrates").state_dict()
    make(labelled("both"), group="again", groups={"again": ["worm", 0, 4]}).load_state_dict(state)
    same = {"order": [0, 5, 4], "labels": [5, 0, 3], "fewer": [5, 0]}
    for group in same:
        with pytest.raises(StateError, match="another dataset or selection"):
            make(labelled("both"), group=group, groups=same).load_state_dict(state)
    chosen = make(labelled("both"), select={"label": [5, 0, 4]}, groups=None)
    with pytest.raises(StateError, match="another dataset or selection"):
        chosen.load_state_dict(state)


# --- definitions

YAML = """
animals:   # a comment
  invertebrates: [5, 0, 4]
  38: [owl, dog]
plants: {trees: [1]}
"""


def test_where_groups_are_defined(labelled: Callable[[str], Path], tmp_path: Path) -> None:
    given = {"g.yaml": YAML, "g.yml": "data_groups:\n  cifar: {38: [3, 2], invertebrates: [5, 0, 4]}\nother: 3\n"}
    given |= {"g.json": json.dumps({"38": [3, 2], "invertebrates": [5, 0, 4]})}
    for name, text in given.items():
        (tmp_path / name).write_text(text)
        for path in (tmp_path / name, str(tmp_path / name)):
            assert rows(make(labelled("both"), group="invertebrates", groups=path, shuffle=False)) == [
                *wanted("invertebrates").values()
            ]
            assert rows(make(labelled("both"), group="38", groups=path, shuffle=False)) == [
                *wanted("vertebrates").values()
            ]


@pytest.mark.parametrize("name", ["groups.yaml", "groups.yml", "groups.json"])
def test_a_dataset_may_define_its_own(tmp_path: Path, name: str) -> None:
    directory = KINDS["metadata"](tmp_path / "data")
    (directory / name).write_text(json.dumps(GROUPS))
    assert rows(make(directory, group="one", groups=None, shuffle=False)) == [*wanted("one").values()]
    (directory / name).unlink()
    with pytest.raises(GroupError, match=r"data: the dataset defines no groups \(give groups=, or put them into"):
        make(directory, group="one", groups=None)


def test_which_dataset_is_meant(tmp_path: Path) -> None:
    groups = {"train": {"g": [1]}, "cifar": {"g": [2], "cifar_only": [3]}, "birds": {"g": [4]}}
    for directory, labels in (("cifar/train", (1,)), ("train/cifar", (2,)), ("cifar/other", (2,))):
        assert Group.of("g", groups, tmp_path / directory).labels == labels
    assert Group.of("birds/g", groups, tmp_path / "cifar").labels == (4,)
    assert Group.of("cifar_only", groups, tmp_path).labels == (3,)
    with pytest.raises(GroupError, match=r"several datasets: train, cifar, birds \(choose one by group=\"train/g\""):
        Group.of("g", groups, tmp_path)
    with pytest.raises(GroupError, match=r"no group 'cifar_only'; there are train/g, cifar/g, cifar/cifar_only, bir"):
        Group.of("cifar_only", groups, tmp_path / "train")


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"other": [1]}, "there is no group 'g'; there are other$"),
        ({}, "there is no group 'g'; there are none$"),
        ({"g": []}, "'g' has no labels"),
        ({"g": [1, 2, 1]}, "'g' has the label 1 twice"),
        ({"g": [1, True]}, "'g' has True among its labels .*quotation marks"),
        ({"g": [1, None]}, "'g' has None among its labels"),
        ({"g": [[1]]}, r"'g' has \[1\] among its labels"),
        ({"g": 3}, "'g' is 3, not a list of labels"),
        ({"d": {"g": "abc"}}, "'g' is 'abc', not a list of labels"),
        ({"d": {"g": [1]}, "e": [2]}, "'e' is no dataset with groups, but 'd' is"),
    ],
)
def test_ill_defined_groups(labelled: Callable[[str], Path], tmp_path: Path, definition: Any, message: str) -> None:
    with pytest.raises(GroupError, match=message):
        make(labelled("both"), group="g", groups=definition)
    (tmp_path / "groups.json").write_text(json.dumps(definition))
    with pytest.raises(GroupError, match=rf"groups\.json: .*{message}"):
        make(labelled("both"), group="g", groups=tmp_path / "groups.json")


def test_files_that_are_no_definition(labelled: Callable[[str], Path], tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    texts = {
        "a.yaml": ("g: [1", "cannot be read"),
        "b.json": ("{", "cannot be read"),
        "no.yaml": ("no: [1]", "False is no name; in YAML a name such as no"),
        "c.yaml": ("- 1\n- 2\n", "no definition of groups"),
        "d.yaml": (f"g: !!python/object/apply:os.mkdir ['{evil}']", "cannot be read"),
        "e.json": ("[" * 100_000, "cannot be read"),
        "f.yaml": ("a: [1]\n" * 3_000_000, "has 21000000 bytes, more than the"),
    }
    for name, (text, message) in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(GroupError, match=rf"{name}: {message}"):
            make(labelled("both"), group="g", groups=tmp_path / name)
    assert not evil.exists()
    with pytest.raises(FileNotFoundError):
        make(labelled("both"), group="g", groups=tmp_path / "absent.yaml")


def test_without_pyyaml_json_is_read(
    labelled: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("g.json", "g.yaml"):
        (tmp_path / name).write_text(json.dumps(GROUPS))
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert len(make(labelled("both"), group="one", groups=tmp_path / "g.json")) == 2
    with pytest.raises(NeurofmxError, match=r"pyyaml \(pip install 'neurofmx-wds\[yaml\]', or write"):
        make(labelled("both"), group="one", groups=tmp_path / "g.yaml")


def test_what_the_dataset_does_not_have_is_named(labelled: Callable[[str], Path], tmp_path: Path) -> None:
    groups = {"typo": [5, 17, "bea"], "name": ["owl", "eel"]}
    with pytest.raises(GroupError, match=r"label 17, bea of the group 'typo'; there are 0 \(bee\), 1 \(crab\), 2"):
        make(labelled("both"), group="typo", groups=groups)
    with pytest.raises(GroupError, match="label eel of the group 'name'; there are 0 "):
        make(labelled("both"), group="name", groups=groups)
    create_shards_from_arrays(tmp_path / "bare", {"x": np.zeros((5, 2), "float32")})
    with pytest.raises(GroupError, match="none of the 5 samples has a label .*groups need a field `label`"):
        make(tmp_path / "bare", group="one")
    create_shards_from_arrays(tmp_path / "vectors", {"label": np.zeros((5, 2), "float32")})
    with pytest.raises(GroupError, match=r"shard_000000\.tar: a label is ndarray, neither a number nor a name"):
        make(tmp_path / "vectors", group="one")
    with pytest.raises(ValueError, match="groups= needs group="):
        make(labelled("both"))


def test_labels_that_the_manifest_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As image sets do: a name needs no metadata, and a known label may be absent from a part of the set."""
    create_shards_from_arrays(tmp_path / "set", {"x": np.zeros((N, 1)), "label": np.array(LABELS)}, shard_size=10)
    manifest = json.loads((tmp_path / "set" / "dataset_metadata.json").read_text())
    manifest["modalities"]["label"]["names"] = [*NAMES, "yak", "zebra", "zebra"]
    (tmp_path / "set" / "dataset_metadata.json").write_text(json.dumps(manifest))

    def found(*labels: int | str) -> list[tuple[int, int]]:
        batches = make(tmp_path / "set", group="g", groups={"g": [*labels]}, shuffle=False)
        pairs = [zip(b["__key__"], b["label"].tolist(), strict=True) for b in batches]
        return [(int(key[-9:]), label) for each in pairs for key, label in each]

    assert found("worm", 0, "snail") == [(i, label) for i, label, _ in wanted("invertebrates").values()]
    assert not caplog.records
    assert found("yak", "worm", 7, 0, 4) == [(i, [1, 3, 4][label]) for i, label, _ in wanted("invertebrates").values()]
    assert "no sample has the label yak, 7 of the group 'g'" in caplog.text
    for labels, message in {
        ("worm", "gnu"): "label gnu .*there are 0, 1, 2, 3, 4, 5$",
        ("worm", 9): "label 9 of",
        ("yak",): "no sample has the label yak of",
        ("worm", 5): "'g' has the label 5 twice, by number and by name",
        (5, "worm"): "'g' has the label 5 twice, by number and by name",
    }.items():
        with pytest.raises(GroupError, match=message):
            found(*labels)


def test_samples_without_a_label_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WebDatasetWriter(tmp_path / "some") as writer:
        for i in range(10):
            writer.write_sample({"x": payload(i)}, metadata={"label": i} if i % 2 else {})
    assert [row[:2] for row in rows(make(tmp_path / "some", group="g", groups={"g": [3, 1]}, shuffle=False))] == [
        (1, 1),
        (3, 0),
    ]
    assert "5 of 10 samples have no label, so they belong to no group" in caplog.text


# --- datasets of links


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A dataset sorted by label, so that a group needs only some of its shards."""
    with WebDatasetWriter(tmp_path / "original", shard_size=10) as writer:
        for i in sorted(range(N), key=LABELS.__getitem__):
            writer.write_sample({"x": payload(i), "label": np.int64(LABELS[i])}, f"sample_{i:09d}", {"i": i})
    return tmp_path / "original"


def linked(original: Path, group: str = "invertebrates", **options: Any) -> Path:
    link_group(original, original.with_name(group), group, GROUPS, **options)
    return original.with_name(group)


plainly = functools.partial(make, groups=None, shuffle=False)


def test_a_linked_group_is_the_group(original: Path) -> None:
    with_group = make(original, group="invertebrates", shuffle=False)
    made = linked(original)
    loader = plainly(made)
    assert rows(loader) == rows(with_group) and len(loader) == len(with_group)
    assert sorted(rows(plainly(made, shuffle=True, num_workers=2))) == [*wanted("invertebrates").values()]
    assert rows(plainly(made, select={"i": [*range(20)]})) == [row for row in rows(with_group) if row[0] < 20]
    with pytest.raises(GroupError, match="the dataset is the group 'invertebrates' already"):
        make(made, group="one")
    with pytest.raises(StateError):
        loader.load_state_dict(plainly(linked(original, "one")).state_dict())


def test_nothing_is_copied_and_only_the_shards_needed_are_there(original: Path) -> None:
    made = linked(original, "one")
    first, last = (sorted(LABELS).index(1), sorted(LABELS).index(2) - 1)
    assert [path.name for path in sorted(made.glob("*.tar"))] == [
        f"shard_{i:06d}.tar" for i in range(first // 10, last // 10 + 1)
    ]
    for path in some(made.glob("*.tar")):
        assert path.samefile(original / path.name)
    assert rows(plainly(made)) == [*wanted("one").values()]
    shutil.rmtree(original)
    assert rows(plainly(made)) == [*wanted("one").values()]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_takes_a_linked_group_as_it_is(
    labelled: Callable[[str], Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made, groups = tmp_path / "made", BY_NAME if kind == "text" else GROUPS
    summary = link_group(labelled(kind), made, "invertebrates", groups)
    assert summary["config"]["group"]["n_samples"] == len(wanted("invertebrates"))
    assert rows(plainly(made)) == [*wanted("invertebrates").values()]
    report = verify(made, deep=True)
    assert report.ok and report.samples == N
    assert write_indexes(made).problems == []  # those that were made in passing get their checksums
    assert write_indexes(made, repair=True).made == []
    info = ShardedDatasetInfo(made)
    assert info.get_summary()["total_samples"] == len(wanted("invertebrates"))
    info.print_summary()
    assert f"{len(wanted('invertebrates'))} samples, 5 shards" in (told := capsys.readouterr().out)
    assert f"the group 'invertebrates', 3 labels, among the 43 samples of linked shards of {labelled(kind)}" in told
    official = wds.WebDataset(sorted(map(str, made.glob("*.tar*"))), shardshuffle=False)
    assert [int(sample["__key__"][-9:]) for sample in official] == [*range(N)]


def test_where_hard_links_cannot_be_they_are_symbolic(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", across)
    made = linked(original)
    assert all(path.is_symlink() for path in made.glob("*.tar"))
    assert sorted(rows(plainly(made))) == [*wanted("invertebrates").values()] and verify(made, deep=True).ok
    moved = original.rename(original.with_name("moved"))
    with pytest.raises(
        ShardError, match=r"invertebrates/shard_000000\.tar: the shard that it links to is missing: .*orig"
    ):
        plainly(made)
    assert not verify(made).ok
    moved.rename(original)
    with open(original / "shard_000000.tar", "ab") as tar:
        tar.write(bytes(512))
    with pytest.raises(
        ShardError, match=r"shard_000000\.tar: the shard that it links to has changed: it has .* bytes, not"
    ):
        plainly(made)


def test_a_shard_changed_under_a_hard_link_is_named(original: Path) -> None:
    made = linked(original)
    os.truncate(original / "shard_000000.tar", 10_000)
    with pytest.raises(ShardError, match=r"shard_000000\.tar: the shard that it links to has changed"):
        plainly(made)


def test_what_cannot_be_linked_is_refused(original: Path, tmp_path: Path) -> None:
    made = linked(original)
    before = {path.name: path.read_bytes() for path in sorted(made.iterdir())}
    with pytest.raises(OutputError, match="not empty|finished dataset"):
        link_group(original, made, "one", GROUPS)
    with pytest.raises(OutputError, match="holds the input"):
        link_group(original, original, "one", GROUPS, overwrite=True)
    with pytest.raises(GroupError, match="the dataset is itself a group"):
        link_group(made, tmp_path / "again", "one", GROUPS)
    with pytest.raises(GroupError, match="no group 'two'"):
        link_group(original, tmp_path / "again", "two", GROUPS)
    with pytest.raises(ManifestError, match="invertebrates: it is a group of another dataset"):
        merge([original, made], tmp_path / "again", repeat_keys=True)
    with pytest.raises(GroupError, match="invertebrates: a group's shards hold other samples too"):
        export(made)
    with pytest.raises(OutputError, match="made with other settings: group was"):
        np.save(tmp_path / "x.npy", np.zeros((3, 2)))
        append([tmp_path / "x.npy"], Output(made))
    assert before == {path.name: path.read_bytes() for path in sorted(made.iterdir())}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["invertebrates", "original", "x.npy"]


def test_all_or_nothing(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = linked(original, "one")
    before = {path.name: path.read_bytes() for path in made.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for what in (
        "neurofmx_wds.format.manifest.Manifest.save",
        "neurofmx_wds.format.index.ShardIndex.save",
        "os.symlink",
    ):
        with monkeypatch.context() as patch:
            patch.setattr("os.link", full)
            patch.setattr(what, full)
            with pytest.raises(OSError, match="No space left"):
                link_group(original, made, "invertebrates", GROUPS, overwrite=True)
        assert {path.name: path.read_bytes() for path in made.iterdir()} == before
        assert sorted(path.name for path in made.parent.iterdir()) == ["one", "original"]
    link_group(original, made, "invertebrates", GROUPS, overwrite=True)
    assert sorted(rows(plainly(made))) == [*wanted("invertebrates").values()]


@pytest.mark.parametrize("damage", [{"labels": 3}, {"labels": [[1]]}, {"labels": []}, {"n_samples": "many"}, {"of": 1}])
def test_a_damaged_group_is_refused(original: Path, damage: dict[str, Any]) -> None:
    manifest = linked(original) / "dataset_metadata.json"
    content = json.loads(manifest.read_text())
    content["config"]["group"] |= damage
    content["config_hash"] = config_hash(content["config"])
    manifest.write_text(json.dumps(content))
    for opened in (plainly, ShardedDatasetInfo(manifest.parent).get_summary):
        with pytest.raises(GroupError, match="the manifest's group is damaged"):
            opened(*[manifest.parent] if opened is plainly else [])


def test_no_changed_bit_makes_another_group(original: Path) -> None:
    manifest = linked(original) / "dataset_metadata.json"
    raw = manifest.read_bytes()
    found = rows(plainly(manifest.parent))
    begin = raw.index(b'"config"')
    for place in range(begin, raw.index(b"}", begin)):
        flip(manifest, place, place % 3)
        with pytest.raises(NeurofmxError):
            rows(plainly(manifest.parent))
        flip(manifest, place, place % 3)
    assert rows(plainly(manifest.parent)) == found


def test_the_command(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "groups.yaml").write_text(YAML)
    command = ["convert", "-i", str(original), "--groups", str(tmp_path / "groups.yaml"), "-o", str(tmp_path / "made")]
    assert main([*command, "--link-group", "invertebrates"]) == 0
    assert f"{len(wanted('invertebrates'))} samples" in capsys.readouterr().out
    assert sorted(rows(plainly(tmp_path / "made"))) == [*wanted("invertebrates").values()]
    assert main([*command, "--link-group", "fish"]) == 1
    assert (
        "groups.yaml: there is no group 'fish'; there are animals/invertebrates, animals/38" in capsys.readouterr().err
    )
    for more in (["--link-group", "38", "--dry-run"], ["--link-group", "38", "--append"], []):
        with pytest.raises(SystemExit, match="2"):
            main([*command, *more])
