"""A directory of files that belong together by name, as a source of samples: the bytes are taken as they are.

Knows webdataset's rule for names; knows nothing of what is in the files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from webdataset.tariterators import base_plus_ext

from ...errors import FieldError
from ...format.encoding import Stored
from ...format.names import check_field_name, check_key, field_of
from .contract import SourceDescription
from .listing import Entry, left_out_lines, list_files
from .settings import FilesConfig

_MOST_NAMED = 3
_COMPLETE = (
    "complete them, skip them with allow_missing (--allow-missing), or name the extensions that a sample has with "
    "modalities (--modalities)"
)


class FilesSource:
    """The samples of one directory: ``folder/sample-7.jpg`` and ``folder/sample-7.txt`` make ``folder/sample-7``.

    A key is the path up to the first dot of the file's name, and what follows is the extension, as webdataset has it;
    extensions are lower-cased. A sample is complete when it has every extension that any sample has.

    Args:
        path: the directory.
        config: ``modalities`` names the extensions that a complete sample has; files with others are left out.
            ``allow_missing`` skips incomplete samples.

    Raises:
        SourceError: as :func:`~.listing.list_files`; or a name that no shard can hold, two files that would become one
            field, or incomplete samples.
    """

    def __init__(self, path: str | os.PathLike[str], config: FilesConfig) -> None:
        self.listing = list_files(path)
        self._config = config
        self._asked = {name.lower().removeprefix(".") for name in config.modalities or ()}
        self._left_out: Counter[str] = Counter()
        samples, self._nameless = self._grouped()
        self._extensions = Counter(extension for members in samples.values() for extension in members)
        self._wanted = sorted(self._asked or self._extensions)
        self._check_extensions()
        self._samples = [(key, samples[key]) for key in sorted(samples) if len(samples[key]) == len(self._wanted)]
        lacking = {
            key: [extension for extension in self._wanted if extension not in members]
            for key, members in samples.items()
            if len(members) < len(self._wanted)
        }
        if not config.allow_missing or not self._samples:
            self._refuse_incomplete(lacking)
        self._dropped = Counter(f"lacks .{', .'.join(extensions)}" for _, extensions in sorted(lacking.items()))

    def _grouped(self) -> tuple[dict[str, dict[str, Entry]], list[str]]:
        """Key → extension → file, and the files whose names have no extension."""
        samples: dict[str, dict[str, Entry]] = {}
        nameless = []
        for entry in self.listing.files:
            key, extension = base_plus_ext(entry.path)
            extension = (extension or "").lower()
            if self._asked and extension not in self._asked:
                self._left_out["with other extensions"] += 1
                continue
            if not key or not extension:
                nameless.append(entry.path)
                continue
            self._check_name(entry.path, key, extension)
            members = samples.setdefault(key, {})
            if extension in members:
                problem = f"{members[extension].path!r} and {entry.path!r} differ in capitals of the extension only"
                raise self.listing.refused(problem, "rename one: webdataset lower-cases extensions")
            members[extension] = entry
        return samples, nameless

    def _check_name(self, path: str, key: str, extension: str) -> None:
        try:
            check_key(key)
            check_field_name(extension)
        except FieldError as error:
            raise self.listing.refused(f"{path!r}: {error.problem}", "rename it, or move it away") from error

    def _check_extensions(self) -> None:
        absent = sorted(self._asked - set(self._extensions))
        if absent or not self._extensions:
            told = ", ".join(f".{extension}" for extension in absent) or "extension"
            raise self.listing.refused(f"has no file with {told}", "ask for extensions that it has (--modalities)")
        fields = Counter(field_of(extension) for extension in self._wanted)
        doubled = [each for each in self._wanted if fields[field_of(each)] > 1 or field_of(each) == "metadata"]
        if doubled:
            told = ", ".join(f".{extension}" for extension in doubled)
            problem = f"files with {told} would be read back under one name, or a name with a meaning of its own"
            raise self.listing.refused(problem, "rename them, or choose among them with modalities (--modalities)")

    def _refuse_incomplete(self, lacking: dict[str, list[str]]) -> None:
        told = [f"{name!r} has no extension" for name in self._nameless]
        told += [f"{key!r} lacks .{', .'.join(extensions)}" for key, extensions in lacking.items()]
        if told:
            rest = f"; and {len(told) - _MOST_NAMED:,} more" if len(told) > _MOST_NAMED else ""
            what = "has incomplete samples" if self._samples else "has no complete sample"
            raise self.listing.refused(f"{what}: {'; '.join(told[:_MOST_NAMED])}{rest}", _COMPLETE)

    @property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return [key for key, _ in self._samples]

    def describe(self) -> SourceDescription:
        """Describe how many samples there are, and what is left out."""
        left_out = {**self._left_out, "hidden": self.listing.hidden, "without extension": len(self._nameless)}
        report = {
            "path": self.listing.name,
            "size_bytes": self.listing.size,
            "files": len(self.listing.files),
            "extensions": dict(sorted(self._extensions.items())),
            "windows": {"emitted": len(self._samples), "dropped": dict(self._dropped)},
            "warnings": left_out_lines(left_out),
        }
        return SourceDescription(len(self._samples), {}, report)

    def read(self, start: int, stop: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the samples [start, stop) in the order of their keys, with metadata ``source`` and ``sample_index``.

        Raises:
            IndexError: there are no such samples.
            SourceError: a file is gone or has changed.
        """
        if not 0 <= start <= stop <= len(self._samples):
            raise IndexError(f"samples [{start}, {stop}) of {len(self._samples)} in {self.listing.root}")
        for i, (key, members) in enumerate(self._samples[start:stop], start):
            fields = {extension: Stored(self.listing.read(entry)) for extension, entry in members.items()}
            yield {"__key__": key, **fields}, {"source": self.listing.name, "sample_index": i}

    def close(self) -> None:
        """Do nothing: no file is held open."""
