"""What every test shares: how many examples hypothesis tries, a cache directory of its own, and small datasets."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conversions import make_npz
from hypothesis import HealthCheck, settings

collect_ignore = ["fuzz_bytes.py"]  # a program that test_fuzz.py runs

_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("same", max_examples=25, derandomize=True, **_CALM)
settings.register_profile("random", max_examples=40, **_CALM)
settings.register_profile("deep", max_examples=1000, **_CALM)


@pytest.hookimpl(tryfirst=True)  # before hypothesis loads the profile that --hypothesis-profile names
def pytest_configure(config: pytest.Config) -> None:
    """Try the same examples in every default run; random ones with -m slow, soak or fuzz, or NEUROFMX_RANDOM=1."""
    long = re.search(r"(?<!not )\b(slow|soak|fuzz)\b", config.option.markexpr)
    settings.load_profile("random" if long or os.environ.get("NEUROFMX_RANDOM") else "same")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked shards of one test never serve another."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEUROFMX_CACHE", str(directory))
    return directory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return ``dataset(layout, compression)``, which makes a dataset of `LAYOUTS` once and returns its directory."""

    from loading import LAYOUTS, write_dataset  # needs torch, which most tests of recordings do without

    @functools.cache
    def made(layout: str = "equal", compression: str = "none") -> Path:
        return write_dataset(tmp_path_factory.mktemp("data") / "shards", LAYOUTS[layout], compression)

    return made


@pytest.fixture(scope="module")
def directory(dataset: Callable[..., Path]) -> Path:
    """Return the directory of a dataset of 24 samples in unequal shards, to be read only."""
    return dataset("unequal")


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    """Return three inputs of a conversion, `a.npz` to `c.npz`, with 7, 1 and 12 samples; the last is compressed."""
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for seed, (path, n) in enumerate(zip(paths, [7, 1, 12], strict=True)):
        make_npz(path, n, seed, packed=seed == 2)
    return paths
