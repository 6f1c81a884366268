"""`select=` on windows that are cut while loading: the windows that it chooses among those that a conversion wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording
from windows import assert_same_batches, convert_both, load, starts

from neurofmx_wds import Windows
from neurofmx_wds.errors import NeurofmxError, StateError


def with_stimuli(nwb: Any) -> None:
    """Add intervals that overlap, one inside another, and a gap between them."""
    from pynwb.epoch import TimeIntervals

    table = TimeIntervals(name="stimuli", description="what was shown")
    table.add_column("contrast", "percent")
    for start, stop, contrast in ((0.2, 3.0, 10), (0.8, 1.4, 50), (2.9, 4.05, 10), (5.0, 5.0005, 100), (6.5, 9.0, 50)):
        table.add_row(start_time=start, stop_time=stop, contrast=contrast)
    nwb.add_time_intervals(table)


CONFIG: dict[str, Any] = {"bin_size_ms": 10, "sequence_length": 20, "overlap": 0.5}
WINDOWS: dict[str, Any] = {"length_s": 0.2, "overlap": 0.5}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three recordings, one without trials, one without stimuli, as windows and as segments."""
    out = tmp_path_factory.mktemp("both")
    for i, trials in enumerate((4, 0, 7)):
        made = {"behavior_rate": 100, "seed": i, "session_id": f"s{i}", "n_units": 3, "trials": trials}
        made["invalid_times"] = [(2.2, 2.3)]
        make_recording(out / f"{i}.nwb", seconds=6 + i, extra=with_stimuli if i < 2 else None, **made)
    return convert_both([out / f"{i}.nwb" for i in range(3)], out, 1.7, **CONFIG)


SELECTIONS: list[Any] = [
    {"session_id": "s1"},
    {"session_id": ["s0", "s2"], "trial": 1},
    {"trial": None},
    {"trial": [0, 2, None], "stimuli_contrast": 50},
    {"stimuli_contrast": [10, 100]},
    {"window_index": [0, 1, 5, 17]},
    {"t_start_ns": [1_000_000_000, 2_300_000_000], "bin_ns": 10_000_000},
    {"source": "2.nwb"},
    lambda about: about.get("trial") is not None and about["window_index"] % 3 != 1,
    lambda about: about["t_start_ns"] > 3e9 and about.get("stimuli_contrast") != 50,
]


@pytest.mark.parametrize("select", SELECTIONS, ids=range(len(SELECTIONS)))
@pytest.mark.parametrize("shuffle", [False, "full"])
def test_the_windows_chosen_are_those_of_a_conversion(both: tuple[Path, Path], select: Any, shuffle: Any) -> None:
    before, now = (
        load(both[0], select=select, shuffle=shuffle),
        load(both[1], select=select, shuffle=shuffle, windows=Windows(**WINDOWS)),
    )
    assert assert_same_batches(before, now)


@pytest.mark.parametrize("select", SELECTIONS[:5], ids=range(5))
def test_jitter_stays_where_the_selection_holds(both: tuple[Path, Path], select: dict[str, Any]) -> None:
    loader = load(both[1], select=select, windows=Windows(jitter=True, **WINDOWS))
    plain = starts(load(both[1], select=select, windows=Windows(**WINDOWS)))
    found = [about for _ in range(3) for batch in loader for about in batch["metadata"]]
    assert len(found) == 3 * len(plain)
    for name, value in select.items():
        assert all(about.get(name) in (value if isinstance(value, list) else [value]) for about in found)
    moved = [about["t_start_ns"] - start for about, (_, start) in zip(found, plain * 3, strict=True)]
    assert min(moved) >= 0 and max(moved) < 100_000_001 and len(set(moved)) > len(plain)


def test_windows_around_trials_are_chosen_by_the_trials(tmp_path: Path) -> None:
    make_recording(tmp_path / "a.nwb", seconds=12, trials=6, behavior_rate=50)
    config: dict[str, Any] = {"align": "trials", "before_s": 0.4, "after_s": 0.6}
    before, now = convert_both([tmp_path / "a.nwb"], tmp_path, 1.5, **config)
    for select in ({"trial": [1, 4]}, {"event_ns": [4_000_000_000]}, lambda about: about["trial"] % 2):
        assert assert_same_batches(load(before, select=select), load(now, select=select, windows=Windows(**config)))


def test_random_numbers_and_jitter_do_not_depend_on_the_selection(both: tuple[Path, Path]) -> None:
    def noisy(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        sample["noise"] = rng.standard_normal(1)
        return sample

    windows = Windows(jitter=True, **WINDOWS)
    every, some = (
        {key: (about["t_start_ns"], noise.item()) for batch in loader
         for key, about, noise in zip(batch["__key__"], batch["metadata"], batch["noise"], strict=True)}
        for loader in (load(both[1], windows=windows, transform=noisy, select=select)
                       for select in (None, {"session_id": "s1"}))
    )  # fmt: skip
    assert len(some) < len(every) and all(every[key] == value for key, value in some.items())


def test_a_state_goes_on_and_belongs_to_its_selection(both: tuple[Path, Path]) -> None:
    options: dict[str, Any] = {"windows": Windows(jitter=True, **WINDOWS), "select": {"trial": [1, 2]}, "shuffle": True}
    whole = starts(load(both[1], **options))
    loader = load(both[1], batch_size=4, **options)
    first = starts([next(iter(loader))])
    state = json.loads(json.dumps(loader.state_dict()))
    rest = load(both[1], batch_size=3, **options)
    rest.load_state_dict(state)
    assert first + starts(rest) == whole
    for select in ({"trial": [1, 3]}, None):
        with pytest.raises(StateError):
            load(both[1], **{**options, "select": select}).load_state_dict(state)


@pytest.mark.parametrize(
    ("select", "told"),
    [
        ({"session_id": "s9"}, "session_id is never 's9'; .*'s0'"),
        ({"trial": 77}, "trial is never 77"),
        ({"trail": 1}, "no sample's metadata have 'trail'; .*trial"),
        ({"spikes": 1}, "spikes is a field"),
        ({"session_id": "s1", "trial": 3}, "no sample meets all conditions at once"),
    ],
)
def test_why_no_window_fits(both: tuple[Path, Path], select: Any, told: str) -> None:
    with pytest.raises(ValueError, match=rf"matches none of the \d+ windows; {told}"):
        load(both[1], select=select, windows=Windows(**WINDOWS))


def test_an_error_of_select_names_recording_and_window(both: tuple[Path, Path]) -> None:
    with pytest.raises(NeurofmxError, match=r"1\.nwb.*window 0.*KeyError.*trial"):
        load(both[1], select=lambda about: about["trial"] is not None, windows=Windows(**WINDOWS))
