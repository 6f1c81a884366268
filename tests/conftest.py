"""What every test shares: how many examples hypothesis tries, and a cache directory of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = ["fuzz_bytes.py"]  # a program that test_fuzz.py runs

_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("same", max_examples=40, derandomize=True, **_CALM)
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
