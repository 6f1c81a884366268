"""Stimulus loaders: any dataset, the names that users know, and the same rest after any interruption."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import ranks, steps, through_json

from neurofmx_wds import (
    ResumableWebDatasetLoader,
    WebDatasetLoader,
    WebDatasetWriter,
    create_shards_from_arrays,
    create_webdataset_dataloader,
)
from neurofmx_wds.errors import NeurofmxError, StateError
from neurofmx_wds.stimulus import (
    StandardDataLoader,
    StimulusContrastDataLoader,
    StimulusDuration,
    StimulusDurationDataLoader,
    StimulusIntervalDataLoader,
    StimulusNoiseDataLoader,
    StimulusRepetitionDataLoader,
    get_data_loader,
    get_data_transform,
    get_target_transform,
)
from neurofmx_wds.stimulus.presets import LABEL_GROUPS

N = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 3, 6, 6), "uint8")
LABELS = np.arange(N) * 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Indexed(torch.utils.data.Dataset):
    """A map-style dataset of (data, label, path)."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(IMAGES[index]), int(LABELS[index]), f"path {index}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "shards"
    create_shards_from_arrays(out, {"image": IMAGES, "label": LABELS}, shard_size=5)
    return out


Source = Any
SOURCES = pytest.mark.parametrize("source", ["shards", "map-style"])


def dataset_of(source: str, shards: Path) -> Any:
    return {"shards": str(shards), "map-style": Indexed()}[source]


Row = tuple[bytes, tuple[float, ...]]


def rows(data: torch.Tensor, labels: torch.Tensor, *_: Any) -> list[Row]:
    """What a batch holds, sample by sample, but for what another rank has too."""
    pairs = zip(data, labels, strict=True)
    return [(image.numpy().tobytes(), tuple(label.tolist())) for image, label in pairs if set(label.tolist()) != {-1}]


def global_rows(delivered: Sequence[tuple[Any, ...]]) -> list[Row]:
    """The rows of many steps of all ranks, in global order; everything is held before anything is looked at."""
    return [row for step in list(delivered) for batch in step for row in rows(*batch)]


def numbers(loader: Any) -> list[int]:
    """Which samples come, by their labels."""
    return [int(label.max()) // 3 for _, labels in loader for label in labels]


@SOURCES
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("layout", [{}, {"channels_last": True, "dtype": torch.float16}])
def test_whole_batches_are_what_single_samples_give(
    source: str, num_workers: int, layout: dict[str, Any], shards: Path
) -> None:
    """Every loader against a loop over samples and steps, in float64."""
    scaled = (IMAGES / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    for kind, times, shown in (
        (StandardDataLoader, {"n_timesteps": 4}, "1111"),
        (StimulusRepetitionDataLoader, {"repeat": 3}, "111"),
        (StimulusDurationDataLoader, {"n_timesteps": 6, "stimulus_duration": 3, "intro_duration": 1}, "011100"),
        (StimulusIntervalDataLoader, {"dsteps": 7, "stim": 2, "intro": 1, "interval": 1}, "0110110"),
        (StimulusContrastDataLoader, {"tsteps": 4, "stim": 2, "intro": 1, "contrast": 0.5}, "0110"),
    ):
        loader: Any = kind(
            dataset_of(source, shards), batch_size=5, num_workers=num_workers, normalize=(MEAN, STD), **times, **layout
        )
        assert len(loader) == 5 and loader.n_timesteps == len(shown)
        batches = list(loader)
        assert [len(data) for data, _ in batches] == [5, 5, 5, 5, 3]
        data, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        on = np.array([step == "1" for step in shown])
        reference = scaled[:, None] * on.reshape(1, -1, 1, 1, 1) * (0.5 if kind is StimulusContrastDataLoader else 1)
        assert data.dtype == layout.get("dtype", torch.float32) and data.shape == reference.shape
        tolerance = 2e-3 if layout else 1e-5
        np.testing.assert_allclose(data.double().numpy(), reference, rtol=tolerance, atol=tolerance)
        assert np.array_equal(labels.numpy(), np.where(on, LABELS[:, None], -1)) and labels.dtype == torch.int64
        if layout:
            assert {batch[0].stride()[-3:] for batch in batches} == {(1, 18, 3)}


@SOURCES
def test_noise_is_the_same_in_any_batch_worker_and_rank_and_another_in_the_next_epoch(
    source: str, shards: Path
) -> None:
    make = functools.partial(
        StimulusNoiseDataLoader, n_timesteps=4, stim=2, noisetype="gaussian", noiselevel=0.5, tempmode="dynamic",
        order="random", data_transform="train_cifar", channels_last=True,
    )  # fmt: skip
    dataset = dataset_of(source, shards)
    loader = make(dataset, 5)
    epochs = [global_rows([(batch,) for batch in loader]) for _ in range(2)]
    assert len(set(epochs[0])) == N and not set(epochs[0]) & set(epochs[1])
    staying = make(dataset, 5, num_workers=2, persistent_workers=True)
    assert [global_rows([(batch,) for batch in staying]) for _ in range(2)] == epochs
    for batch_size, num_workers, world_size in ((3, 0, 1), (4, 2, 1), (3, 0, 3), (2, 1, 2)):
        loaders = ranks(dataset, world_size, make=make, batch_size=batch_size, num_workers=num_workers)
        assert global_rows(list(steps(loaders))) == epochs[0]
    assert global_rows([(batch,) for batch in make(dataset, 5, seed=1)]) != epochs[0]


@pytest.mark.parametrize("order", ["sequential", "random", "quasi_random"])
@pytest.mark.parametrize("kind", [StandardDataLoader, StimulusIntervalDataLoader, StimulusNoiseDataLoader])
@SOURCES
def test_the_rest_after_any_interruption_is_the_rest(source: str, kind: Any, order: str, shards: Path) -> None:
    """Stopped after any step, gone on with other ranks, workers and batch sizes, and again."""
    dataset = dataset_of(source, shards)
    make = functools.partial(kind, dataset, n_timesteps=7, order=order, seed=3)
    if kind is not StandardDataLoader:
        make = functools.partial(make, stim=2, intro=1)
    if kind is StimulusNoiseDataLoader:
        make = functools.partial(make, ssnr=0.3, noise_type="poisson")

    def job(world_size: int, batch_size: int, num_workers: int, state: Any = None) -> list[Any]:
        loaders = [
            make(rank=rank, world_size=world_size, batch_size=batch_size, num_workers=num_workers)
            for rank in range(world_size)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(through_json(state))
        return loaders

    whole = [global_rows([(batch,) for batch in make(batch_size=4)])]
    again = make(batch_size=4)
    again.set_epoch(1)
    whole.append(global_rows([(batch,) for batch in again]))
    shapes = itertools.cycle([(1, 4, 0), (2, 3, 0), (1, 5, 2), (3, 2, 0), (2, 2, 1)])
    for stop in (0, 1, 2, 3):
        world_size, batch_size, _ = shape = next(shapes)
        loaders = job(*shape)
        seen = global_rows(list(itertools.islice(steps(loaders), stop))) if stop else []
        state = loaders[-1].state_dict()
        assert state == loaders[0].state_dict()
        assert state["position"] == len(seen) == min(N, stop * world_size * batch_size)
        loaders = job(*next(shapes), state)
        seen += global_rows(list(itertools.islice(steps(loaders), 1)))
        loaders = job(*next(shapes), loaders[0].state_dict())
        seen += global_rows(list(steps(loaders)))
        assert seen == whole[0]
        assert loaders[0].epoch == 1 and global_rows(list(steps(loaders))) == whole[1]


def test_a_sample_that_two_ranks_get_counts_once(shards: Path) -> None:
    """7 samples are left for 3 ranks: in the last step two rows come again, and are no sample's."""
    loaders = ranks(shards, 3, make=StandardDataLoader, batch_size=2, select=lambda about: True, n_timesteps=2)
    state = loaders[0].state_dict() | {"position": 16, "shard_idx": 3, "sample_offset": 1}
    for loader in loaders:
        loader.load_state_dict(state)
    delivered = list(steps(loaders))
    assert [[len(data) for data, _ in step] for step in delivered] == [[2, 2, 2], [1, 1, 1]]
    assert [labels.tolist() for _, labels in delivered[1]] == [[[66, 66]], [[-1, -1]], [[-1, -1]]]


def test_order_has_the_names_of_ffcv(shards: Path) -> None:
    class OrderOption:  # FFCV's is an enumeration
        name = "QUASI_RANDOM"

    assert numbers(StandardDataLoader(shards)) == list(range(N))
    plain = {"num_workers": 0, "batch_size": 4}
    for order, shuffle in (("random", "full"), ("RANDOM", "full"), (OrderOption(), True), ("sequential", False)):
        batches = create_webdataset_dataloader(shards, shuffle=shuffle, **plain)
        expected = [label // 3 for batch in batches for label in batch["label"].tolist()]
        assert numbers(StandardDataLoader(shards, 4, order=order)) == expected
        assert numbers(StandardDataLoader(shards, 4, shuffle=shuffle)) == expected
    mixed = numbers(StandardDataLoader(Indexed(), 4, shuffle=True))
    assert sorted(mixed) == list(range(N)) != mixed
    with pytest.raises(ValueError, match="order must be one of random, quasi_random, sequential, not 'shuffled'"):
        StandardDataLoader(shards, order="shuffled")
    with pytest.raises(TypeError, match="order or shuffle"):
        StandardDataLoader(shards, order="random", shuffle=True)


def test_get_data_loader_knows_the_names(shards: Path) -> None:
    assert type(get_data_loader(shards)) is StandardDataLoader
    for name, kind in (
        ("StimulusDuration", StimulusDurationDataLoader),
        ("StimulusIntervalDataLoader", StimulusIntervalDataLoader),
        (StimulusContrastDataLoader, StimulusContrastDataLoader),
    ):
        assert type(get_data_loader(Indexed(), dataloader=name)) is kind
    with pytest.raises(ValueError, match="unknown loader 'Stimulus'; choose one of StandardDataLoader, StimulusR"):
        get_data_loader(shards, "Stimulus")
    with pytest.raises(TypeError, match="the name or class"):
        get_data_loader(shards, torch.utils.data.DataLoader)  # type: ignore[arg-type]
    loader = get_data_loader(shards, "StimulusDuration", tsteps=9, stim=4, intro=2, voidinput=7, voidid=-5)
    data, labels = next(iter(loader))
    assert loader.outro_duration == 3 and loader.stimulus_duration == 4
    assert (data[:, 0] == 7).all() and labels[0].tolist() == [-5, -5, 0, 0, 0, 0, -5, -5, -5]
    assert next(iter(get_data_loader(shards)))[0].shape == (N, 1, 3, 6, 6)


def test_a_loader_keeps_its_order_and_place(shards: Path) -> None:
    """Around a loader of samples or batches: what either has delivered counts for both."""
    options: dict[str, Any] = {"shuffle": True, "buffer_size": 4, "seed": 9}
    expected = [int(sample["label"]) // 3 for sample in WebDatasetLoader(shards, **options)]
    samples = WebDatasetLoader(shards, **options)
    loader = StimulusDurationDataLoader(samples, batch_size=4, num_workers=2)
    seen = [int(labels.max()) // 3 for _, labels in itertools.islice(loader, 2) for labels in labels]
    assert samples.state_dict() == loader.state_dict() and loader.state_dict()["position"] == 8
    samples.load_state_dict(json.loads(json.dumps(samples.state_dict())))
    assert seen + numbers(loader) == expected and len(loader) == 6
    batches = create_webdataset_dataloader(shards, batch_size=4, num_workers=0, batch_transform=doubled, **options)
    loader = get_data_loader(batches, "StimulusDuration", stimulus_duration=3, n_timesteps=5)
    assert [number // 2 for number in numbers(loader)] == expected
    assert batches.epoch == 1
    assert next(iter(batches))["image"].shape == (4, 3, 6, 6)


def doubled(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "label": batch["label"] * 2}


def fractions(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"] / np.float32(255)}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter([])


def test_what_a_loader_cannot_keep_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"further stages.*loader.map\(StimulusDuration"):
        StandardDataLoader(WebDatasetLoader(shards).map(fractions))
    with pytest.raises(TypeError, match="no longer write its checkpoints"):
        StandardDataLoader(ResumableWebDatasetLoader(shards, tmp_path / "state.json"))
    with pytest.raises(TypeError, match="batch_size: set this when making the loader"):
        StandardDataLoader(create_webdataset_dataloader(shards, num_workers=0), batch_size=4)
    for dataset in (iter([]), 5, Stream()):
        with pytest.raises(TypeError, match="map-style dataset, not"):
            StandardDataLoader(dataset)


@pytest.mark.parametrize("kind", [StandardDataLoader, StimulusNoiseDataLoader])
def test_arguments_that_nobody_takes_are_refused(kind: Any, shards: Path) -> None:
    for dataset in (shards, Indexed(), WebDatasetLoader(shards)):
        with pytest.raises(TypeError, match="no argument stimulus_colour"):
            kind(dataset, stimulus_colour=3)
        with pytest.raises(ValueError, match="batch_size must be a positive integer, not 0"):
            kind(dataset, batch_size=0)
    for options, message in (
        ({"tsteps": 3, "dsteps": 4}, "short name of n_timesteps; give only one of them"),
        ({"tsteps": 3, "n_timesteps": 4}, "short name of n_timesteps; give only one of them"),
    ):
        with pytest.raises(TypeError, match=message):
            kind(shards, **options)
    for more, message in (
        ({"dtype": torch.int32}, "dtype must be a floating-point type"),
        ({"normalize": ((0.5,), (0.5, 0.5))}, "does not fit"),
        ({"normalize": ((0.5,), (0,))}, "std > 0"),
        ({"normalize": 0.5}, r"normalize must be \(mean, std\), not 0.5"),
        ({"normalize": (MEAN, STD), "data_transform": "cifar10"}, "already normalises"),
        ({"fields": "image"}, "must name the data and the labels"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(shards, **more)


def test_errors_name_what_is_wrong_with_a_batch(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(NeurofmxError, match=r"no field 'data'; it has image, label.*fields="):
        next(iter(StandardDataLoader(shards, fields=("data", "label"))))
    with pytest.raises(NeurofmxError, match=r"no field 'cls'"):
        next(iter(StandardDataLoader(shards, fields=("image", "cls"))))
    with pytest.raises(NeurofmxError, match="a batch is a list, not a dict"):
        next(iter(StandardDataLoader(shards, collate_fn=list)))
    with pytest.raises(NeurofmxError, match=r"normalize=.* does not fit images \(5, 3, 6, 6\)"):
        next(iter(StandardDataLoader(shards, 5, normalize=((0.5,), (0.5,)))))
    with pytest.raises(NeurofmxError, match="item 2 of the dataset raised ZeroDivisionError") as caught:
        next(iter(StandardDataLoader(Broken())))
    assert caught.value.sample == "2"
    with WebDatasetWriter(tmp_path / "uneven") as writer:
        for size in (3, 4):
            writer.write_sample({"image": np.ones((3, size, size), "uint8"), "label": size})
    with pytest.raises(NeurofmxError, match=r"'image' is a list of Tensor, not a tensor.*resizes"):
        next(iter(StandardDataLoader(tmp_path / "uneven")))
    data, labels = next(iter(StandardDataLoader(tmp_path / "uneven", data_transform=["imagenet"], n_timesteps=2)))
    assert data.shape == (2, 2, 3, 224, 224) and labels.tolist() == [[3, 3], [4, 4]]


class Broken:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        return np.zeros(2), 1 // (2 - index)


def test_items_of_all_kinds_and_more_fields(shards: Path) -> None:
    more = StandardDataLoader(Indexed(), 2, fields=("image", "label", "path"), n_timesteps=2)
    data, labels, paths = next(iter(more))
    assert paths == ["path 0", "path 1"] and data.shape == (2, 2, 3, 6, 6) and labels.shape == (2, 2)
    _, _, keys, about = next(iter(StandardDataLoader(shards, 2, fields=("image", "label", "__key__", "metadata"))))
    assert keys == ["sample_000000000", "sample_000000001"] and len(about) == 2
    dicts = [{"x": np.full((2, 2), i, "float32"), "y": i, "more": "text"} for i in range(3)]
    data, labels = next(iter(StandardDataLoader(dicts, fields=("x", "y"))))
    assert data[:, 0, 0, 0].tolist() == [0, 1, 2] and labels.tolist() == [[0], [1], [2]]
    image = pytest.importorskip("PIL.Image")
    pictures = [(image.fromarray(np.moveaxis(pixels, 0, -1)), i) for i, pixels in enumerate(IMAGES[:4])]
    assert np.array_equal(next(iter(StandardDataLoader(pictures)))[0][:, 0], IMAGES[:4])
    gray = [(image.fromarray(pixels[0]), 0) for pixels in IMAGES[:4]]
    assert np.array_equal(next(iter(StandardDataLoader(gray)))[0][:, 0, 0], IMAGES[:4, 0])


def test_transforms_and_labels_of_a_group(shards: Path, tmp_path: Path) -> None:
    loader = StandardDataLoader(
        shards, 4, transform=fractions, batch_transform=doubled, target_transform={i * 6: -i for i in range(N)}
    )
    data, labels = next(iter(loader))
    assert labels.tolist() == [[0], [-1], [-2], [-3]]
    np.testing.assert_array_equal(data[:, 0].numpy(), IMAGES[:4] / np.float32(255))
    mapped = StandardDataLoader([(np.zeros(2), 14), (np.ones(2), 99)], target_transform="cifar100_invertebrates")
    assert next(iter(mapped))[1].tolist() == [[2], [9]]
    named = [{"image": np.zeros(2), "cls": 14}]
    loader = StandardDataLoader(named, fields=("image", "cls"), target_transform="cifar100_invertebrates")
    assert next(iter(loader))[1].tolist() == [[2]]
    every = np.random.default_rng(3).permutation(100)
    create_shards_from_arrays(tmp_path / "hundred", {"image": np.zeros((100, 2)), "label": every})
    alone = StandardDataLoader(tmp_path / "hundred", group="cifar100/invertebrates", groups=LABEL_GROUPS)
    group = get_target_transform("cifar100_invertebrates")
    assert group is not None
    assert next(iter(alone))[1][:, 0].tolist() == [group(label) for label in every if label in group.labels]
    flip = StandardDataLoader(shards, 4, data_transform=lambda images: images.flip(-1))
    assert np.array_equal(next(iter(flip))[0][:, 0], IMAGES[:4, ..., ::-1])
    with pytest.raises(NeurofmxError, match="label 0 is not in cifar100_invertebrates"):
        next(iter(StandardDataLoader(shards, target_transform="cifar100_invertebrates")))


@pytest.mark.parametrize("kind", [StandardDataLoader, StimulusDurationDataLoader, StimulusNoiseDataLoader])
def test_a_device_changes_nothing_but_the_place(kind: Any, shards: Path) -> None:
    options: dict[str, Any] = {"normalize": (MEAN, STD), "dtype": torch.float16, "channels_last": True, "tsteps": 22}
    here, there = kind(shards, 5, **options), kind(shards, 5, device="cpu", **options)
    for (data, labels), (moved, moved_labels) in zip(here, there, strict=True):
        assert torch.equal(data, moved) and torch.equal(labels, moved_labels)
        assert data.stride() == moved.stride()


def test_page_locked_memory_is_asked_for_where_batches_are_made(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in workers, which must not touch the device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for kind, num_workers, expected in (
        (StimulusDurationDataLoader, 0, (True, True)),
        (StimulusDurationDataLoader, 2, (False, True)),
        (StimulusNoiseDataLoader, 0, (True, True)),
        (StimulusNoiseDataLoader, 2, (False, False)),
    ):
        for pin_memory in (True, False):
            loader: Any = kind(shards, num_workers=num_workers, pin_memory=pin_memory)
            assert loader.batches.pin_memory == pin_memory
            pinned = (loader._reading.layout.memory.pinned, loader.presentation.memory.pinned)
            assert pinned == (expected if pin_memory else (False, False))


def test_a_state_of_something_else_is_refused(shards: Path) -> None:
    state = StandardDataLoader(Indexed(), 4).state_dict()
    for other in (StandardDataLoader(shards), StandardDataLoader(Indexed(), order="random"), Few()):
        loader = other if isinstance(other, StandardDataLoader) else StandardDataLoader(other)
        with pytest.raises(StateError, match="the state is of another"):
            loader.load_state_dict(state)


class Few(Indexed):
    def __len__(self) -> int:
        return 5


def test_a_loader_travels_and_a_presentation_goes_behind_any_pipeline(shards: Path) -> None:
    loader = StimulusNoiseDataLoader(shards, 4, normalize=(MEAN, STD), data_transform=get_data_transform("train_cifar"))
    travelled = pickle.loads(pickle.dumps(loader))
    assert global_rows([(batch,) for batch in loader]) == global_rows([(batch,) for batch in travelled])
    with pytest.raises(AttributeError, match="no_such"):
        _ = loader.no_such
    pipeline = create_webdataset_dataloader(shards, batch_size=4, num_workers=2, shuffle=False)
    staged = pipeline.map(StimulusDuration(6, 3, 1))
    seen = [batch["label"][:, 1].tolist() for batch in itertools.islice(staged, 2)]
    assert pipeline.state_dict()["position"] == 8
    pipeline.load_state_dict(pipeline.state_dict())
    seen += [batch["label"][:, 1].tolist() for batch in staged]
    assert sum(seen, []) == LABELS.tolist()
