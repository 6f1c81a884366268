"""The API reference: every page is rendered without a warning, and every public name has an example that runs."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import pytest

import neurofmx_wds

ROOT = Path(__file__).parents[1]


def public(module: str) -> list[tuple[str, object]]:
    found = importlib.import_module(module)
    names = getattr(found, "__all__", ())
    return [(f"{module}.{name}", getattr(found, name)) for name in names if name != "__version__"]


def test_every_public_name_has_an_example() -> None:
    names = [*public("neurofmx_wds"), *public("neurofmx_wds.stimulus")]
    without = [name for name, each in names if ">>> " not in (inspect.getdoc(each) or "")]
    assert len(names) > 20 and without == []


def test_names_are_looked_up_once() -> None:
    assert neurofmx_wds.Windows is vars(neurofmx_wds)["Windows"]
    with pytest.raises(AttributeError, match="Nonsense"):
        neurofmx_wds.Nonsense  # noqa: B018


def test_pages_are_made_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pdoc")
    pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import docs  # type: ignore[import-not-found]

    try:
        docs.write_pages(tmp_path)
    finally:
        sys.modules.pop("docs", None)
    page = (tmp_path / "neurofmx_wds.html").read_text()
    for name in neurofmx_wds.__all__:
        assert f'id="{name}"' in page, name
    for name in ("lightning", "stimulus", "errors"):
        assert (tmp_path / "neurofmx_wds" / f"{name}.html").stat().st_size > 10_000
