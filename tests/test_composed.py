"""Pipelines with webdataset's stages after a loader: what their state and their length say."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loading import Row, global_rows, row_of, rows, steps, through_json, write_dataset

from neurofmx_wds import (
    ResumableWebDatasetLoader,
    WebDatasetLoader,
    collate_webdataset,
    create_webdataset_dataloader,
)

plain = functools.partial(create_webdataset_dataloader, num_workers=0, shuffle=False)
ALL: list[Row] = [row_of(i) for i in range(24)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shards", (6, 6, 6, 6))


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
