"""Pipelines with webdataset's stages after a loader: what their state and their length say."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loading import Row, global_rows, row_of, rows, steps, through_json

from neurofmx_wds import ResumableWebDatasetLoader, WebDatasetLoader, collate_webdataset, create_webdataset_dataloader

plain = functools.partial(create_webdataset_dataloader, num_workers=0, shuffle=False)
ALL: list[Row] = [row_of(i) for i in range(24)]


def fail_at_20(item: Any) -> Any:
    """A stage's function with a fault."""
    if any(i == 20 for _, _, i in rows(item)):
        raise RuntimeError("cannot be mapped")
    return item


def test_what_a_failing_stage_took_is_not_counted(directory: Path) -> None:
    """The state is that of the last item that came out of all stages: nothing is lost when it is loaded."""
    made: dict[str, Callable[[Any], Any]] = {
        "map": lambda directory: plain(directory, batch_size=8),
        "batched": lambda directory: WebDatasetLoader(directory, shuffle=False).batched(8, collate_webdataset),
        "in the loader": lambda directory: plain(directory, batch_size=8, batch_transform=fail_at_20),
    }
    for name, make in made.items():
        loader = make(directory) if name == "in the loader" else make(directory).map(fail_at_20)
        with pytest.raises(Exception, match="cannot be mapped"):
            list(loader)
        state = through_json(loader.state_dict())
        assert state["position"] == 16, name
        again = plain(directory, batch_size=8)
        again.load_state_dict(state)
        assert global_rows(steps([again])) == ALL[16:], name


def test_a_stage_that_drops_the_last_samples_ends_the_epoch(directory: Path) -> None:
    loader = WebDatasetLoader(directory, shuffle=False).select(lambda sample: sample["metadata"]["i"] < 9)
    found = []
    for sample in loader:
        found.append(sample["metadata"]["i"])
        assert loader.state_dict()["position"] == len(found)
    assert found == [*range(9)] and (loader.epoch, loader.state_dict()["position"]) == (1, 0)


def test_a_checkpoint_counts_whole_batches(directory: Path, tmp_path: Path) -> None:
    """Samples that wait for their batch to be full come again; at the epoch's end the last batch was delivered."""

    def opened() -> Any:
        loader = ResumableWebDatasetLoader(directory, tmp_path / "at.json", 3, shuffle=False)
        return loader.batched(10, collate_webdataset)

    seen = [*itertools.islice(opened(), 2)]
    assert json.loads((tmp_path / "at.json").read_text())["position"] == 10
    assert [row for batch in [seen[0], *opened()] for row in rows(batch)] == ALL
    assert opened().epoch == 1


def every_other(items: Any) -> Any:
    """A stage of one's own."""
    return itertools.islice(items, 0, None, 2)


@pytest.mark.parametrize("world_size", [1, 5])
def test_the_length_is_the_number_of_items(directory: Path, world_size: int) -> None:
    samples = WebDatasetLoader(directory, rank=0, world_size=world_size)
    batches = plain(directory, 5, rank=0, world_size=world_size)
    pipelines = [
        samples,
        batches,
        samples.map(dict),
        batches.map(dict).map(dict),
        samples.shuffle(10).rename(array="x").to_tuple("array", "metadata").map_tuple(len, dict),
        samples.batched(4, collate_webdataset),
        samples.batched(7, collate_webdataset),
        samples.batched(7, collate_webdataset, partial=False).map(dict),
        samples.batched(3, None).batched(2, None),
        samples.select(bool).with_epoch(100),
        samples.map(dict).repeat(2),
        samples.batched(7, collate_webdataset).repeat(3, 4),
        batches.compose(every_other).with_length(3 if world_size == 1 else 1, silent=True),
    ]
    for pipeline in pipelines:
        n_items = len(pipeline)
        assert sum(1 for _ in pipeline) == n_items, pipeline.pipeline


def test_where_a_stage_may_change_it_there_is_no_length(directory: Path) -> None:
    """As of webdataset's own pipelines; a wrong one would let a trainer stop early, or wait for what never comes."""
    samples = WebDatasetLoader(directory)
    for pipeline in (
        samples.select(bool),
        samples.batched(5, None).unlisted(),
        samples.compose(every_other),
        samples.compose(every_other).batched(5, None),
        samples.map(dict).repeat(),
    ):
        with pytest.raises(TypeError, match="length"):
            len(pipeline)
    assert len(list(samples.compose(every_other))) == 12
    assert [batch["number"][0].item() for batch in plain(directory, 6, num_workers=2).compose(every_other)] == [0, 12]
    with pytest.raises(ValueError, match="batchsize must be positive, not 0"):
        samples.batched(0)
