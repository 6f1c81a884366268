"""What every test shares: calm hypothesis settings, and a cache directory of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=40, **_CALM)
settings.register_profile("deep", max_examples=1000, **_CALM)
if not any(argument.startswith("--hypothesis-profile") for argument in sys.argv):  # as in --hypothesis-profile=deep
    settings.load_profile("quick")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked shards of one test never serve another."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NEUROFMX_CACHE", str(directory))
    return directory
