"""What a window's fields and metadata are called, so that no two things of a recording have one name.

Knows series, videos and tables by their names; reads nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from .intervals import Intervals
from .series import Series
from .video import Video

#: Modalities whose series are columns of one field; those of the others have fields of their own.
JOINED = ("behavior", "events")
#: How the names of fields begin that a series' own name must not be taken for.
RESERVED = ("spikes", "spike_", "metadata", *JOINED)
#: What the metadata of a window say of itself, which no table of the recording may.
OWN_METADATA = ("session_id", "source", "window_index", "t_start_ns", "t_stop_ns", "bin_ns", "event_ns")

OneSeries = TypeVar("OneSeries", Series, Video)


def field_name(name: str) -> str:
    """Return a valid field name: lower-case letters and digits, with single underscores between them.

    Example:
        >>> field_name("Wheel speed (cm/s)")
        'wheel_speed_cm_s'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "series"


def by_field(found: Iterable[tuple[str, OneSeries]], taken: Iterable[str] = ()) -> dict[str, OneSeries]:
    """Return fields by name: the short one; where that, or a mask's, is taken, that of the path, numbered if need be.

    An array, whose path is a slash and its name, keeps it.
    """
    fields: dict[str, OneSeries] = {}
    for short, each in found:
        path, others = field_name(each.path), {*taken, *names_of(fields)}
        names = itertools.chain([short, path], (f"{path}_{k}" for k in itertools.count(2)))
        free = (name for name in names if not name.startswith(RESERVED) and others.isdisjoint(names_of({name: each})))
        fields[short if each.path == f"/{short}" else next(free)] = each
    return fields


def names_of(fields: Mapping[str, Series | Video]) -> set[str]:
    """Return the names of some fields and of what comes with them: masks, and the numbers of frames in files."""
    frames = {f"{name}_frame" for name, each in fields.items() if isinstance(each, Video)}
    return {*fields, *(f"{name}_mask" for name in fields), *frames}


def words_of(tables: Mapping[str, Intervals]) -> dict[str, str]:
    """Return each table the word that its rows' metadata begin with, none of which a window or another table has.

    Trials and epochs come first and have theirs; ``intervals_`` is put before another's where it must be.
    """
    taken, words = set(OWN_METADATA), {}
    for table in tables.values():
        word = table.word
        while not taken.isdisjoint(table.names(word)):
            word = f"intervals_{word}"
        words[table.name] = word
        taken.update(table.names(word))
    return words
