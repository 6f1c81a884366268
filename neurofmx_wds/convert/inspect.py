"""A look into a file before it is converted: what it holds, and what ``convert`` would take of it.

Knows sources by their descriptions, and NWB files by their summaries; writes nothing.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import SHOW_DATASET, SourceError, hide_secrets
from ..format.manifest import MANIFEST_NAME
from ..nwb.clock import NS_PER_S
from ..nwb.recording import Recording
from ..nwb.summary import summarize
from ..storage.location import name_of
from .file_state import as_source_error, stamp
from .sources import Source, SourceConfig, open_source
from .sources.kinds import format_of


def inspect_file(path: str | os.PathLike[str], config: SourceConfig = SourceConfig()) -> dict[str, Any]:
    """Return what a file holds, and what a conversion with these settings would take of it, as JSON values.

    Args:
        path: an NWB, npz or npy file, a directory of the kind that the settings name, or the URL of one of these.
        config: how it would be read.

    Returns:
        "path", "name", "kind", "size_bytes"; of NWB files "recording", see `neurofmx_wds.nwb.summary.summarize`;
        and "convert": "samples", "fields", "not_taken", "warnings", "segments_s", and, if there is no sample, why
        ("empty"). If the settings ask for what the file lacks, "convert" has only "error".

    Raises:
        SourceError: the file is missing, damaged, or of an unknown kind.

    Example:
        >>> import numpy as np, tempfile
        >>> path = f"{tempfile.mkdtemp()}/x.npy"
        >>> np.save(path, np.zeros((7, 3), "float32"))
        >>> found = inspect_file(path)
        >>> found["name"], found["convert"]["samples"], found["convert"]["fields"]["data"]["shape"]
        ('x.npy', 7, [3])
    """
    path = os.fspath(path)
    if config.format == "auto" and os.path.exists(os.path.join(path, MANIFEST_NAME)):
        raise SourceError("is a dataset, not a recording", file=path, remedy=SHOW_DATASET)
    try:
        size = stamp(path).size
        kind = format_of(path) if config.format == "auto" else config.format
        source = open_source(path, config)
    except Exception as error:
        raise as_source_error(error, path) from error
    try:
        found: dict[str, Any] = {"path": hide_secrets(path), "name": name_of(path), "kind": kind, "size_bytes": size}
        found["convert"] = _conversion(source)
        recording = getattr(source, "recording", None)
        if isinstance(recording, Recording):
            found["recording"] = summarize(recording, config.windows.max_gap_s * NS_PER_S)
        return found
    except Exception as error:
        raise as_source_error(error, path) from error
    finally:
        source.close()


def _conversion(source: Source) -> dict[str, Any]:
    """Return what a conversion would take, or why there can be none."""
    try:
        described = source.describe()
    except SourceError as error:
        return {"error": str(error)}
    report = described.report
    return {
        "samples": described.n_samples,
        "dropped": report.get("windows", {}).get("dropped", {}),
        "fields": described.fields,
        "not_taken": report.get("not_taken", []),
        "warnings": report.get("warnings", []),
        "support_rule": report.get("support_rule"),
        "segments_s": [[start / NS_PER_S, stop / NS_PER_S] for start, stop in report.get("segments", [])],
        **({"empty": described.empty} if described.empty else {}),
    }
