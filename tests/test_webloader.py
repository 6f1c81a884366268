"""webdataset's WebLoader over our samples: resumed after any batch, whoever makes the batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import webdataset as wds

from neurofmx_wds.integrations.webloader import WebLoader, open_members

N = 30


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tars")
    with wds.TarWriter(str(directory / "wdshards-0.tar")) as tar:
        for i in range(N):
            tar.write({"__key__": f"s{i:03d}", "n.cls": i})
    return directory


def value(members: tuple[int]) -> int:
    return members[0]


def as_list(batch: Any) -> Any:
    return list(batch) if isinstance(batch, (list, tuple)) else batch


def flat(batch: Any) -> list[int]:
    """The samples of a batch, or of a batch of batches."""
    return [i for each in batch for i in flat(each)] if isinstance(batch, list) else [batch]


@pytest.mark.filterwarnings("ignore:.*worker processes in total.*")
@pytest.mark.parametrize(
    ("num_workers", "batch_size", "in_dataset", "in_loader"),
    [(0, 4, 0, 0), (0, None, 4, 0), (2, 1, 0, 0), (2, 4, 0, 0), (3, 2, 0, 0), (2, None, 4, 0), (3, 2, 3, 0),
     (2, None, 0, 4), (2, None, 3, 2)],
)  # fmt: skip
def test_resumed_after_any_batch(
    tars: Path, num_workers: int, batch_size: int | None, in_dataset: int, in_loader: int
) -> None:
    """Nothing is lost, nothing comes twice, and the order is that of one process."""

    def made(rank: int = 0, world_size: int = 1) -> WebLoader:
        samples = open_members(tars, "wdshards-*.tar", ["n.cls"], {"rank": rank, "world_size": world_size}).map(value)
        if in_dataset:
            samples = samples.batched(in_dataset, None)
        loader = WebLoader(samples, num_workers=num_workers, batch_size=batch_size, collate_fn=as_list)
        return loader.batched(in_loader, None) if in_loader else loader

    def resumed(state: dict[str, Any], *share: int) -> list[int]:
        again = made(*share)
        again.load_state_dict(json.loads(json.dumps(state)))
        return [i for batch in again for i in flat(batch)]

    for share in ((), (1, 2)):
        wanted = [*range(N)][share[0] :: 2] if share else [*range(N)]
        assert [i for batch in made(*share) for i in flat(batch)] == wanted
        for stop in (1, 2, 3):
            loader = made(*share)
            batches = [*itertools.islice(loader, stop)]
            state = loader.state_dict()
            found = [i for batch in batches for i in flat(batch)]
            if state["samples"]["epoch"] == 0:  # else all are delivered
                found += resumed(state, *share)
            assert found == wanted, (share, stop, state)
