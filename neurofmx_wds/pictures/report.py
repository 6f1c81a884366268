"""One page about a dataset, for a lab's wiki: what it holds, what was left out, how it looks, how to load it.

Knows manifests, samples and the order of loading; reads a few hundred samples, whatever the dataset's size.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError, hide_secrets
from ..format import html
from ..format.info import count, human_size
from ..format.manifest import MANIFEST_NAME, Manifest
from ..loading.options import Shuffle
from ..nwb.clock import NS_PER_S
from ..version import __version__
from .distributions import Distributions
from .facts import FieldFacts, Mixing, facts_of, firing_rates, mixing, padding
from .figure import Picture, document, image_tag
from .opening import OpenSamples, open_samples
from .panels import Coverage, Panel, evenly
from .samples import Sample

#: Sources, and lines of what was left out, that are listed.
MOST_SOURCES, MOST_LINES = 200, 100
_MOST_COVERED, _MOST_COLUMNS, _BATCH, _BATCHES = 30, 8, 32, 100
_PACKAGES = ("webdataset", "torch", "numpy", "pynwb", "h5py")


@dataclass(frozen=True)
class ReportOptions:
    """What a report is made of.

    Attributes:
        samples: how many samples of each dataset are read for its statistics.
        drawn: how many of them are drawn.
        seconds: length of the windows that are cut from a dataset of segments.
        title: of the page; by default the datasets' names.

    Raises:
        ValueError: a number that is not positive.
    """

    samples: int = 256
    drawn: int = 3
    seconds: float = 2.0
    title: str = ""

    def __post_init__(self) -> None:
        for name in ("samples", "drawn", "seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")


def report(directories: Sequence[str | os.PathLike[str]], options: ReportOptions | None = None) -> str:
    """Return a self-contained HTML page about one dataset, or about the datasets of a split.

    Args:
        directories: datasets, or one directory that holds the datasets of a split.
        options: what the page is made of.

    Raises:
        FileNotFoundError, ShardError: a dataset cannot be opened, or a sample is damaged.

    Example:
        >>> import tempfile
        >>> from neurofmx_wds import create_shards_from_arrays
        >>> out = tempfile.mkdtemp()
        >>> _ = create_shards_from_arrays(out, {"rates": np.zeros((5, 30, 8), "float32")})
        >>> "5 samples" in report([out])
        True
    """
    options = options or ReportOptions()
    parts = [_Part(name, open_samples(path, options.seconds), options) for name, path in _datasets(directories).items()]
    parts.sort(key=lambda part: -part.data.n)  # the training set first
    title = options.title or ", ".join(part.name for part in parts)
    body = [f"<h1>{html.text(title)}</h1>"]
    for section in (_overview, _loading, _fields, _sources, _left_out, _coverage, _distributions, _padding, _shuffle):
        body += section(parts)
    for part in parts:
        body += _samples(part)
    body += _made_with(parts)
    return document(title, "\n".join(body))


def _datasets(directories: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Return the datasets by name; of a directory that is no dataset but holds some, these."""
    found: dict[str, str] = {}
    for directory in map(Path, directories):
        inside = [] if (directory / MANIFEST_NAME).exists() else sorted(directory.glob(f"*/{MANIFEST_NAME}"))
        for path in [each.parent for each in inside] or [directory]:
            name = path.name or os.fspath(path.resolve())
            found[os.fspath(path) if name in found else name] = os.fspath(path)
    return found


class _Part:
    """One dataset of a report."""

    def __init__(self, name: str, data: OpenSamples, options: ReportOptions) -> None:
        self.name, self.data, self.options = name, data, options
        if not data.n:
            raise ShardError("the dataset has no samples", file=data.path, remedy="convert recordings into it")

    @property
    def manifest(self) -> Manifest | None:
        return self.data.shards.manifest

    @cached_property
    def samples(self) -> list[Sample]:
        """Samples from all over the dataset."""
        return [self.data.sample(int(i)) for i in evenly(self.data.n, self.options.samples)]

    @cached_property
    def facts(self) -> dict[str, FieldFacts]:
        return facts_of(self.samples)

    @property
    def sources(self) -> Sequence[Mapping[str, Any]]:
        return self.data.about.sources

    @property
    def n_bytes(self) -> int:
        return sum(record.n_bytes for record in self.data.shards.records)

    @property
    def is_cut(self) -> bool:
        """Whether its samples are windows that are cut while loading."""
        return self.data.n != self.data.shards.n_samples

    @property
    def said(self) -> str:
        n = len(self.samples)
        return f"all {n:,} samples" if n == self.data.n else f"{n:,} of {self.data.n:,} samples, evenly spaced"


def _overview(parts: Sequence[_Part]) -> Iterator[str]:
    rows = []
    for part in parts:
        sessions = {source.get("session_id") for source in part.sources if source.get("session_id")}
        subjects = {(source.get("subject") or {}).get("subject_id") for source in part.sources} - {None}
        seconds = sum(_seconds(source) for source in part.sources)
        rows.append(
            [part.name, part.data.n, len(part.data.shards.paths), human_size(part.n_bytes), len(part.sources),
             len(sessions), len(subjects), round(seconds / 60, 2) if seconds else None]
        )  # fmt: skip
    header = ["dataset", "samples", "shards", "size", "sources", "sessions", "subjects", "minutes"]
    yield html.paragraph("; ".join(f"{part.name}: {count(part.data.n, 'sample')}" for part in parts))
    yield html.table(header, rows)
    for part in parts:
        if part.is_cut:
            yield html.paragraph(
                f"{part.name} holds segments; the samples here are windows of {part.options.seconds:g} s, cut from them"
            )


def _seconds(source: Mapping[str, Any]) -> float:
    return sum(stop - start for start, stop in source.get("segments", [])) / NS_PER_S


def _loading(parts: Sequence[_Part]) -> Iterator[str]:
    part = parts[0]
    directory = hide_secrets(part.data.path)
    windows, imported = "", "create_webdataset_dataloader"
    if part.is_cut:
        windows = f", windows=Windows(length_s={part.options.seconds:g}, bin_ms=10)"
        imported = "Windows, create_webdataset_dataloader"
    shapes = [
        f'    batch["{name}"]  # {_batch_shape(about)}'
        for name, about in part.data.about.fields.items()
        if not name.endswith("_mask")
    ]
    yield html.heading("How to load it")
    yield html.code(
        f"from neurofmx_wds import {imported}\n\n"
        f"loader = create_webdataset_dataloader({directory!r}, batch_size=32{windows})\n"
        f"for batch in loader:\n" + "\n".join(shapes[:12] or ["    ..."])
    )


def _batch_shape(about: Mapping[str, Any]) -> str:
    shape = about.get("shape")
    if shape is None or None in shape:
        return f"{about.get('dtype') or 'values'} of unequal shapes"
    return f"({', '.join(map(str, (32, *shape)))}) {about.get('dtype', '')}".strip()


def _fields(parts: Sequence[_Part]) -> Iterator[str]:
    yield html.heading("Fields")
    header = ["field", "dtype", "shape", "unit", "columns", "measured", "mean", "deviation", "lowest", "highest"]
    for part in parts:
        rows = [
            [name, about.get("dtype") or "", _shape(about.get("shape")), about.get("unit") or "",
             _columns(about.get("columns") or ()),
             *_statistics(part.facts.get(name))]
            for name, about in part.data.about.fields.items()
            if not name.endswith("_mask")
        ]  # fmt: skip
        yield html.paragraph(f"{part.name}: statistics of {part.said}.")
        yield html.table(header, rows)


def _columns(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:6])) + (f", … ({len(names)})" if len(names) > 6 else "")


def _statistics(facts: FieldFacts | None) -> list[Any]:
    if facts is None or not facts.values:
        return [None if facts is None else "0%", None, None, None, None]
    return [f"{facts.measured:.1%}", facts.mean, facts.deviation, facts.low, facts.high]


def _shape(shape: Sequence[int | None] | None) -> str:
    return "various" if shape is None else "×".join("?" if n is None else str(n) for n in shape) or "1"


def _sources(parts: Sequence[_Part]) -> Iterator[str]:
    rows = [
        [part.name, source.get("path", ""), source.get("session_id") or "",
         (source.get("subject") or {}).get("subject_id") or "", len((source.get("units") or {}).get("id", [])) or None,
         (source.get("spikes") or {}).get("total"), source.get("windows", {}).get("emitted", 0),
         sum(source.get("windows", {}).get("dropped", {}).values()), source.get("support_rule") or ""]
        for part in parts
        for source in part.sources
        if "error" not in source
    ]  # fmt: skip
    if not rows:
        return
    yield html.heading("Sources")
    header = ["dataset", "file", "session", "subject", "units", "spikes", "samples", "dropped", "windows lie"]
    yield html.table(header, rows[:MOST_SOURCES])
    if len(rows) > MOST_SOURCES:
        yield html.paragraph(f"and {len(rows) - MOST_SOURCES:,} more sources")


def _left_out(parts: Sequence[_Part]) -> Iterator[str]:
    lines, objects = Counter[str](), Counter[tuple[str, ...]]()
    for part in parts:
        for source in part.sources:
            name = ": ".join(filter(None, [part.name if len(parts) > 1 else "", source.get("path", "")]))
            dropped = source.get("windows", {}).get("dropped", {})
            lines.update({f"{name}: {count(n, 'window')} dropped: {why}": 1 for why, n in dropped.items()})
            lines.update(f"{name}: {warning}" for warning in source.get("warnings", []))
            if "error" in source:
                lines[f"{name}: left out: {source['error']}"] += 1
            spikes = source.get("spikes") or {}
            for kind in ("outside", "invalid"):
                if spikes.get(kind):
                    where = "of no window" if kind == "outside" else "with times that cannot be used"
                    lines[f"{name}: {count(spikes[kind], 'spike')} {where}"] += 1
            objects.update((o["path"], o["type"], o["why"], o["take"]) for o in source.get("not_taken", []))
    yield html.heading("What was left out")
    if not lines and not objects:
        yield html.paragraph("nothing that is known of")
    yield html.items([*lines][:MOST_LINES]) if lines else ""
    if objects:
        rows = [[*each, n] for each, n in objects.most_common(MOST_LINES)]
        yield html.table(["object of a recording", "type", "why", "taken with", "files"], rows)
    rest = max(0, len(lines) - MOST_LINES) + max(0, len(objects) - MOST_LINES)
    yield html.paragraph(f"and {rest:,} more; {MANIFEST_NAME} has all") if rest else ""


def _coverage(parts: Sequence[_Part]) -> Iterator[str]:
    rows = [
        (f"{part.name}: {source.get('path', '')}" if len(parts) > 1 else str(source.get("path", "")),
         np.array(source["segments"], float).reshape(-1, 2) / NS_PER_S)
        for part in parts
        for source in part.sources
        if source.get("segments")
    ]  # fmt: skip
    rows.sort(key=lambda each: each[0].rpartition(": ")[2])
    if not rows:
        return
    shown = rows[:_MOST_COVERED]
    span = (float(min(each[0, 0] for _, each in shown)), float(max(each[-1, 1] for _, each in shown)))
    yield html.heading("Where windows lie in the recordings")
    title = f"{len(shown)} of {count(len(rows), 'recording')}" if len(shown) < len(rows) else ""
    yield _figure([Coverage(shown, span, title=title)], "where windows lie")


def _figure(panels: Sequence[Panel], title: str) -> str:
    return f"<figure>{image_tag(Picture('', panels, (0.0, 1.0), title))}</figure>"


def _distributions(parts: Sequence[_Part]) -> Iterator[str]:
    yield html.heading("Distributions")
    for part in parts:
        items: list[tuple[str, str, Mapping[str, Any]]] = []
        rates = firing_rates(part.samples, part.data.about)
        if rates:
            items.append(("firing rates of units", "spikes/s", rates))
        for name, facts in part.facts.items():
            about = part.data.about.fields.get(name, {})
            columns = about.get("columns") or ()
            if name not in ("spikes", "events") and facts.columns and len(columns) == facts.columns[0].shape[1]:
                values = np.concatenate(facts.columns)
                units = about.get("units") or [about.get("unit") or ""] * len(columns)
                chosen = evenly(len(columns), _MOST_COLUMNS)
                items += [(f"{name}: {columns[i]}", units[i], {"": values[:, i]}) for i in chosen]
        if items:
            yield html.paragraph(f"{part.name}: of {part.said}.")
            yield _figure([Distributions(items)], f"{part.name}: distributions")


def _padding(parts: Sequence[_Part]) -> Iterator[str]:
    rows = [
        [part.name, name, min(part.facts[name].lengths), float(np.median(part.facts[name].lengths)),
         max(part.facts[name].lengths), f"{share:.1%}"]
        for part in parts
        for name, share in padding(part.facts, _BATCH).items()
    ]  # fmt: skip
    if rows:
        yield html.heading("Fields of unequal length")
        yield html.paragraph(f"Padding: the share of a batch of {_BATCH} that padding to its longest sample would be.")
        yield html.table(["dataset", "field", "shortest", "median", "longest", "padding"], rows)


def _shuffle(parts: Sequence[_Part]) -> Iterator[str]:
    yield html.heading("How well shuffling mixes")
    orders: tuple[Shuffle, ...] = (False, True, "full")
    rows = []
    for part in parts:
        for shuffle in orders:
            found = _mixing(part, shuffle)
            rows.append(
                [part.name, f"shuffle={shuffle!r}", found.shards, found.sources, f"{found.neighbors:.1%}",
                 found.correlation]
            )  # fmt: skip
    header = ["dataset", "order", "shards in a batch", "recordings in a batch", "with their next", "correlation"]
    yield html.table(header, rows)
    yield html.paragraph(
        f"Of up to {_BATCHES} batches of {_BATCH} in epoch 0, with the default settings. With their next: "
        "samples whose following sample, as stored, is in the same batch (windows may overlap). Correlation: of the "
        "place in the epoch with the place in the dataset; 1 in order, about 0 when mixed."
    )


def _mixing(part: _Part, shuffle: Shuffle) -> Mixing:
    order = open_samples(part.data.path, part.options.seconds, shuffle).opened.order
    n, size = part.data.n, min(_BATCH, part.data.n)
    firsts = evenly(n // size, _BATCHES) * size
    ids = np.stack([order.sample_ids(int(first), int(first) + size) for first in firsts])
    shards = np.array([part.data.n] if part.is_cut else np.cumsum(part.data.shards.counts), float)
    emitted = np.cumsum([source.get("windows", {}).get("emitted", 0) for source in part.sources])
    known = len(emitted) > 0 and emitted[-1] == n
    return mixing(ids, shards, emitted.astype(float) if known else None, firsts[:, None] + np.arange(size, dtype=float))


def _samples(part: _Part) -> Iterator[str]:
    yield html.heading(f"Samples of {part.name}")
    pictures = part.data.pictures
    for i in evenly(part.data.n, part.options.drawn + 2)[1:-1][: part.options.drawn] if part.data.n > 2 else [0]:
        picture = pictures[int(i)]
        caption = picture.caption.replace("\n", " · ")
        yield f"<figure>{image_tag(picture)}<figcaption>{html.text(caption)}</figcaption></figure>"


def _made_with(parts: Sequence[_Part]) -> Iterator[str]:
    yield html.heading("Settings and versions")
    for part in parts:
        if part.manifest is not None:
            summary = part.manifest.summary()
            about = {"dataset": part.name, "made with": summary["created_by"], "layout": _layout(part)}
            about |= {"compression": summary["compression"], "hash of the settings": summary["config_hash"]}
            yield html.facts(about)
            yield html.table(["setting", "value"], [[name, str(value)] for name, value in summary["config"].items()])
    versions = {name: _version(name) for name in _PACKAGES}
    yield html.facts({"this page": f"neurofmx_wds {__version__}", "Python": platform.python_version(), **versions})


def _layout(part: _Part) -> str:
    return str(part.manifest.config.get("layout", "windows")) if part.manifest is not None else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
