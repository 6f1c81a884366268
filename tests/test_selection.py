"""Samples chosen by their metadata; what is said where none fits or the user's function fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import flip

from neurofmx_wds import WebDatasetLoader, WebDatasetWriter
from neurofmx_wds.errors import NeurofmxError, ShardError
from neurofmx_wds.format.groups import Group
from neurofmx_wds.format.manifest import MANIFEST_NAME
from neurofmx_wds.format.shards import open_shards
from neurofmx_wds.loading.selection import group_samples, values_of


@pytest.fixture(params=[True, False], ids=["manifest", "no manifest"])
def described(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """30 samples in 4 shards; only some have a subject."""
    with WebDatasetWriter(tmp_path / "d", shard_size=8) as writer:
        for i in range(30):
            about = {"column": i % 3, "session": "ab"[i % 2], "number": i} | ({"subject": [1]} if i % 5 else {})
            writer.write_sample({"label": i % 4, "spikes": np.zeros(2)}, metadata=about)
    if not request.param:
        (tmp_path / "d" / MANIFEST_NAME).unlink()
    return tmp_path / "d"


@pytest.mark.parametrize(
    ("select", "told"),
    [
        (
            {"colunm": 1},
            r"metadata have 'colunm'; did you mean column\? there are column, number, session, ",
        ),
        ({"xyz": 1}, r"have 'xyz'; there are column, number, session, subject$"),
        ({"column": 3}, r"column is never 3; there are 0, 1, 2$"),
        ({"column": "1"}, r"column is never '1'; (did you mean 1\? )?there are 0, 1, 2$"),
        ({"session": ["c", "d"]}, r"session is never 'c', 'd'; there are 'a', 'b'$"),
        ({"session": []}, r"session is never none; there are 'a', 'b'$"),
        ({"subject": 1}, r"subject is never 1; (did you mean \[1\]\? )?there are \[1\]$"),
        ({"number": 99, "colunm": 1}, r"number is never 99.* and 10 more; .*'colunm'; did you mean column\?"),
        ({"label": 1}, r"label is a field, and samples are chosen by their metadata, labels by group= and groups=$"),
        ({"spikes": 0, "column": 1}, r"spikes is a field, and samples are chosen by their metadata$"),
        ({"number": [1, 2], "column": 0}, r"no sample meets all conditions at once$"),
        (lambda about: False, r"matches none of the 30 samples$"),
    ],
)
def test_why_no_sample_fits(described: Path, select: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        WebDatasetLoader(described, select=select)


def test_a_selection_that_fails_is_named(described: Path) -> None:
    wanted = (
        r"shard_000001\.tar, sample 'sample_000000010': select raised KeyError: 'subject' "
        r"\(this sample's metadata have column, session, number\)"
    )
    with pytest.raises(NeurofmxError, match=wanted) as caught:
        WebDatasetLoader(described, select=lambda about: about["number"] < 10 or about["subject"] == 1)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("label", ["cat", "dog"])
def test_a_name_of_two_classes_stands_for_neither_number(tmp_path: Path, label: str) -> None:
    names = {"label": {"names": ["cat", "dog", "cat"]}}
    with WebDatasetWriter(tmp_path / "d", modalities=names) as writer:
        for i in range(6):
            writer.write_sample({"label": i % 3})
    if label == "dog":
        assert len(list(WebDatasetLoader(tmp_path / "d", group="g", groups={"g": [label]}))) == 2
    else:
        with pytest.raises(NeurofmxError, match="no sample has the label cat of the group 'g'"):
            WebDatasetLoader(tmp_path / "d", group="g", groups={"g": [label]})


def test_values_are_names_of_labels_where_they_have_names(tmp_path: Path) -> None:
    with WebDatasetWriter(tmp_path / "d", shard_size=2) as writer:
        for about in ({"label": 3, "label_name": "left"}, {"label": 4}, {"label_name": "right"}, {"side": 1}):
            writer.write_sample({"spikes": np.zeros(2)}, metadata=about)
    shards = open_shards(tmp_path / "d")
    assert values_of(shards, "label") == ["left", 4, "right", None]
    assert values_of(shards, "side") == [None, None, None, 1]


def test_stored_labels_are_compared_with_their_checksums_by_default(described: Path) -> None:
    shards = open_shards(described)
    group = Group("some", (1, 2))
    assert group_samples(shards, group)[1][:4].tolist() == [0, 1, 0, 1]
    column = shards.index(0).columns["label"]
    flip(described / "shard_000000.tar", int(column.offset[1]) + int(column.size[1]) - 8)
    with pytest.raises(ShardError, match="sample_000000001.*bytes have changed"):
        group_samples(open_shards(described), group)
    assert len(group_samples(open_shards(described), group, checksums=False)[0]) < 15
