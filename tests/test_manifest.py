"""A manifest is believed only where its parts are of the right types and of a size that its shards can have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurofmx_wds import create_shards_from_arrays
from neurofmx_wds.errors import GroupError, ManifestError, ShardIndexError
from neurofmx_wds.format.groups import Group
from neurofmx_wds.format.index import ShardIndex
from neurofmx_wds.format.manifest import MANIFEST_NAME, Manifest

WRONG: list[dict[str, Any]] = [
    {"shard_size": float("nan")},
    {"shard_size": "10"},
    {"compression": ["gz"]},
    {"modalities": []},
    {"modalities": {"x": 1}},
    {"modalities": {"x": {"dtype": 5}}},
    {"modalities": {"x": {"shape": "abc"}}},
    {"modalities": {"x": {"columns": 7}}},
    {"modalities": {"x": {"format": None}}},
    {"sources": [1]},
    {"sources": [{"windows": None}]},
    {"sources": [{"windows": {"dropped": {"a": "b"}}}]},
    {"sources": [{"spikes": [1]}]},
    {"sources": [{"warnings": "a"}]},
    {"sources": {}},
    {"created_by": 5},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_parts_of_another_type_are_refused_by_name(tmp_path: Path, wrong: dict[str, Any]) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(4)})
    path = tmp_path / "d" / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(ManifestError, match=next(iter(wrong))) as caught:
        Manifest.load(tmp_path / "d")
    assert caught.value.file == str(path) and caught.value.remedy


@pytest.mark.parametrize("count", [1 << 40, 1 << 33, 1000])
def test_more_samples_than_a_shard_has_room_for_are_refused(tmp_path: Path, count: int) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(4)})
    path = tmp_path / "d" / MANIFEST_NAME
    about = json.loads(path.read_text())
    about["shards"][0]["n_samples"] = about["total_samples"] = count
    path.write_text(json.dumps(about))
    with pytest.raises(ManifestError, match="impossible size"):
        Manifest.load(tmp_path / "d")


def test_aliases_in_a_groups_file_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml", reason="needs pyyaml (extra: yaml)")
    lines = ["a: &a [1, 2]", *(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(20))]
    (tmp_path / "groups.yaml").write_text("\n".join(lines))
    with pytest.raises(GroupError, match="aliases"):
        Group.of("u", None, tmp_path)


def test_an_index_with_a_sample_that_has_no_members_is_refused(tmp_path: Path) -> None:
    create_shards_from_arrays(tmp_path / "d", {"x": np.arange(3)})
    index = ShardIndex.load(tmp_path / "d" / "shard_000000.index")
    start = index.sample_start.copy()
    start[1] = start[2]  # still from 0 to the number of members, and never falling
    with pytest.raises(ShardIndexError, match="sample_start"):
        dataclasses.replace(index, sample_start=start).check()
