"""Fields whose arrays differ in length: lists, flat values with offsets, and padded ones with a mask, of one truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import make_recording

from neurofmx_wds import WebDatasetWriter, collate_webdataset, create_webdataset_dataloader
from neurofmx_wds.convert.config import Output
from neurofmx_wds.convert.run import convert
from neurofmx_wds.convert.sources import SourceConfig
from neurofmx_wds.errors import FieldError, NeurofmxError

LENGTHS = [3, 0, 9, 4, 4, 4, 4, 1, 17, 2, 5]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of unequal length, with other dimensions too; some samples lack one. Batches of 4 may be of one length."""
    out = tmp_path_factory.mktemp("ragged") / "shards"
    rng = np.random.default_rng(0)
    with WebDatasetWriter(out, shard_size=4) as writer:
        for i, n in enumerate(LENGTHS):
            sample = {"times": np.sort(rng.integers(0, 99, n)), "plain": np.full(3, i, np.float32)}
            if i % 5:
                sample["tracks"] = rng.standard_normal((n, 2, 3)).astype(np.float32)
            writer.write_sample(sample)
    return out


def load(directory: Path, **options: Any) -> Any:
    return create_webdataset_dataloader(directory, **{"num_workers": 0, "batch_size": 4, "shuffle": False, **options})


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "plain": sample["plain"] * 2}


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"transform": doubled}, {"shuffle": "full"}], ids=range(4))
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_flat_and_padded_hold_the_arrays_of_the_list(dataset: Path, batch_size: int, options: dict[str, Any]) -> None:
    options = {**options, "batch_size": batch_size}
    forms = [load(dataset, **options, **form) for form in ({}, {"ragged": "flat"}, {"ragged": "padded", "pad_to": 5})]
    n = 0
    for lists, flat, padded in zip(*forms, strict=True):
        assert lists["__key__"] == flat["__key__"] == padded["__key__"]
        assert torch.equal(lists["plain"], flat["plain"]) and torch.equal(lists["plain"], padded["plain"])
        for name, trailing in (("times", ()), ("tracks", (2, 3))):
            if name not in lists:  # what a transform gets in no sample of a batch is not there
                assert "transform" in options and name not in flat
                continue
            offsets, mask = flat[f"{name}_offsets"], padded[f"{name}_mask"]
            assert padded[name].shape[1] % 5 == 0 and padded[name].shape[2:] == trailing
            assert not padded[name][~mask].any()
            for i, array in enumerate(lists[name]):
                array = torch.empty(0, *trailing) if array is None else array
                assert torch.equal(flat[name][offsets[i] : offsets[i + 1]].to(array), array)
                assert torch.equal(padded[name][i][mask[i]].to(array), array)
        n += len(lists["__key__"])
    assert n == len(LENGTHS)


def test_spikes_share_their_offsets_and_follow_the_vocabulary(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=5, n_units=3)
    convert([tmp_path / "a.nwb"], Output(tmp_path / "out"), SourceConfig.of(spike_format="ragged", sequence_length=30))
    lists = load(tmp_path / "out", vocabulary=True)
    for listed, flat in zip(lists, load(tmp_path / "out", vocabulary=True, ragged="flat"), strict=True):
        assert {"spike_times", "spike_units", "spike_offsets", "unit_index"} <= set(flat)
        assert "spike_times_offsets" not in flat
        for name in ("spike_times", "spike_units", "unit_index"):
            assert torch.equal(torch.cat(list(listed[name])), flat[name])
        assert flat["spike_offsets"].tolist() == [0, *np.cumsum([len(each) for each in listed["spike_times"]])]
    padded = next(iter(load(tmp_path / "out", ragged="padded")))
    assert padded["spike_times"].shape == padded["spike_units"].shape == padded["spike_mask"].shape
    assert padded["spike_mask"].shape[1] % 8 == 0


def test_functions_of_batches_get_the_form_and_a_state_goes_on(dataset: Path) -> None:
    def count(batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "n": batch["times_offsets"].diff()}

    options: dict[str, Any] = {"ragged": "flat", "batch_transform": count, "shuffle": True, "buffer_size": 4}
    whole = torch.cat([batch["n"] for batch in load(dataset, **options)])
    assert sorted(whole.tolist()) == sorted(LENGTHS)
    loader = load(dataset, batch_size=3, **options)
    first = next(iter(loader))["n"]
    rest = load(dataset, **options)
    rest.load_state_dict(loader.state_dict())
    assert torch.equal(torch.cat([first, *(batch["n"] for batch in rest)]), whole)


def test_no_workers_are_started_for_a_form(dataset: Path) -> None:
    assert create_webdataset_dataloader(dataset, ragged="flat").num_workers == 0


def test_what_cannot_be_is_refused(dataset: Path, tmp_path: Path) -> None:
    for wrong, told in (
        ({"ragged": "nested"}, "ragged must be one of list, flat, padded"),
        ({"ragged": "padded", "pad_to": 0}, "pad_to"),
        ({"ragged": "flat", "collate_fn": lambda samples: collate_webdataset(samples)}, "collate_fn"),
        ({"ragged": "flat", "modalities": ["plain"]}, "no field whose arrays differ"),
    ):
        with pytest.raises(ValueError, match=told):
            load(dataset, **wrong)
    with WebDatasetWriter(tmp_path / "out") as writer:
        for dtype in (np.int64, np.float32):
            writer.write_sample({"x": np.zeros(3, dtype)})
        writer.write_sample({"x": np.zeros(4, np.float32)})
    with pytest.raises((FieldError, NeurofmxError, ValueError), match="differ"):
        list(load(tmp_path / "out", ragged="flat"))
