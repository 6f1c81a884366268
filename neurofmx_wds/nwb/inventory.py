"""What is not taken of a recording: each object that holds data, why, and the option that takes it.

Knows what objects are, and what was taken; reads no data.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence

from .finding import Found, of_modality
from .options import MODALITIES
from .orientation import time_first


def not_taken(
    objects: list[Found], modalities: Sequence[str], paths: Collection[str], left_out: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return the objects that are not taken, as JSON values.

    Args:
        objects: the objects that hold data.
        modalities: the modalities and paths that are converted.
        paths: the objects that became fields, parts of them, or metadata of samples.
        left_out: path → reason of what cannot be used.

    Returns:
        For each object "path", "type", "why", and "take": the option that takes it, "" if there is none.
    """
    home = {each.path: name for name in reversed((*MODALITIES[1:], "video")) for each in of_modality(objects, name)}
    has_sweeps = any(each.kind == "sweep" and each.path.startswith("acquisition/") for each in objects)
    found = []
    for each in objects:
        if each.path in paths or each.path == "intervals/invalid_times" or _describes_columns(each, objects, paths):
            continue
        why, take = left_out.get(each.path, ""), ""
        if not why:
            why, take = _why(each, home.get(each.path, ""), modalities, has_sweeps)
        found.append({"path": each.path, "type": each.type, "why": why, "take": take})
    known = {each.path for each in objects}
    found += [{"path": path, "type": "", "why": why, "take": ""} for path, why in left_out.items() if path not in known]
    return sorted(found, key=lambda each: each["path"])


def reason_of(found: Found) -> str:
    """Return why an object cannot be a field, whatever is asked for; "" if it can."""
    return {"timeless": "nothing says when its values are", "sweep": "sweeps are converted by themselves"}.get(
        found.kind, ""
    )


def _why(found: Found, modality: str, modalities: Sequence[str], has_sweeps: bool) -> tuple[str, str]:
    """Return why an object is not taken, and the option that takes it."""
    if found.kind == "sweep":
        read = found.path.startswith("acquisition/") or (has_sweeps and found.path.startswith("stimulus/presentation/"))
        return reason_of(found) + ("" if read else ", of acquisition only"), "--modalities icephys" if read else ""
    if not found.can_be_field:
        return reason_of(found), ""
    if found.kind == "intervals":
        return "outside acquisition and processing", f"--align {shlex.quote(found.path)}"
    if found.kind == "units" and found.path != "units":
        return _asking("there is another table of units", found.path, modalities)
    if found.kind == "units":
        return _asking("spikes was not asked for", "spikes", modalities)
    if found.kind == "series":
        _, problem = time_first(found, lambda *_: None)
        if problem:
            return problem, ""
    if modality:
        return _asking(f"{modality} was not asked for", modality, modalities)
    if not found.in_recording:
        return _asking(f"in {found.place}", found.path, modalities)
    if found.is_voltage:
        return _asking("there is LFP beside it", found.path, modalities)
    return _asking("of no modality", found.path, modalities)


def _asking(why: str, name: str, modalities: Sequence[str]) -> tuple[str, str]:
    return why, f"--modalities {shlex.quote(','.join((*modalities, name)))}"


def _describes_columns(found: Found, objects: Sequence[Found], paths: Collection[str]) -> bool:
    """Return whether a table describes the ROIs of a series that is taken."""
    regions = (getattr(each.series, "rois", None) for each in objects if each.path in paths)
    return any(region is not None and region.table is found.series for region in regions)
