"""Parts of an HDF5 file that lie in other files: only those in the recording's directory, or below, are read.

A file can name any other file as the place of its bytes: as an external link, as external raw storage, or as a source
of a virtual dataset. What leads out of the directory is never opened, and the objects that need it are left out.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from typing import Any

import h5py
from pynwb import NWBHDF5IO

#: hdmf's method that reads a group, which has no public name.
_READ_GROUP = "_HDF5IO__read_group"


Place = tuple[str, str]  # a file, by its real path, and a path in it


class Outside:
    """Which links of a file, and of the files that it leads to, lead out of its directory.

    Args:
        file: the open HDF5 file.
        path: where it is.

    Attributes:
        refused: place of a link or dataset → why it is not followed or read.
    """

    def __init__(self, file: h5py.File, path: str) -> None:
        self._directory = os.path.dirname(os.path.abspath(path))
        self._name = os.path.realpath(path)
        self._needs: dict[Place, list[Place]] = {}
        self._seen: set[str] = set()
        self.refused: dict[Place, str] = {}
        self._scan(file)
        while self._pass_on():
            pass

    @property
    def paths(self) -> dict[str, str]:
        """What is refused, by path as in reports, and why; of other files the path comes after their name."""
        return {
            path.strip("/") if name == self._name else f"{name}:{path}": why
            for (name, path), why in self.refused.items()
        }

    def _scan(self, file: h5py.File) -> None:
        name = os.path.realpath(file.filename)
        self._seen.add(name)
        links: list[tuple[str, Any]] = []
        file.visititems_links(lambda path, link: links.append((f"/{path}", link)))
        for path, link in links:
            place = name, path
            if isinstance(link, h5py.SoftLink):
                self._needs[place] = [(name, posixpath.normpath(posixpath.join(posixpath.dirname(path), link.path)))]
            elif isinstance(link, h5py.ExternalLink):
                self._follow(place, "it is a link to", [(link.filename, link.path)])
            elif isinstance(item := file[path], h5py.Dataset):
                self._look_at(place, item)

    def _look_at(self, place: Place, dataset: h5py.Dataset) -> None:
        raw = [os.path.abspath(each[0]) for each in dataset.external or ()]  # HDF5 looks where the process works
        outside = [each for each in raw if not self._is_below(each)]
        if outside:
            self._refuse(place, "its bytes are in", outside)
        elif dataset.is_virtual:
            self._follow(
                place, "it is put together from", [(s.file_name, s.dset_name) for s in dataset.virtual_sources()]
            )

    def _follow(self, place: Place, what: str, targets: list[tuple[str, str]]) -> None:
        """Look into the files that a link or a virtual dataset needs, or refuse it."""
        base = os.path.dirname(place[0])
        files = {name: place[0] if name == "." else os.path.normpath(os.path.join(base, name)) for name, _ in targets}
        lost = [n for n, path in files.items() if not os.path.exists(path) and os.path.exists(n)]  # found elsewhere
        outside = lost + [path for path in files.values() if path != place[0] and not self._is_below(path)]
        if outside:
            self._refuse(place, what, outside)
            return
        self._needs[place] = [(os.path.realpath(files[name]), f"/{path.strip('/')}") for name, path in targets]
        for path in files.values():
            if os.path.isfile(path) and os.path.realpath(path) not in self._seen and h5py.is_hdf5(path):
                with h5py.File(path, "r") as linked:
                    self._scan(linked)

    def _pass_on(self) -> bool:
        """Refuse what needs a place that is refused; return whether there was any."""
        found = {
            place: self.refused[name, inner]
            for place, needs in self._needs.items()
            if place not in self.refused
            for name, path in needs
            for inner in _prefixes(path)
            if (name, inner) in self.refused
        }
        self.refused |= found
        return bool(found)

    def _refuse(self, place: Place, what: str, files: list[str]) -> None:
        told = ", ".join(files[:3])
        self.refused[place] = f"{what} {told}, which is not in the recording's directory and is not opened"

    def _is_below(self, path: str) -> bool:
        return os.path.commonpath([self._directory, path]) == self._directory


def _prefixes(path: str) -> Iterator[str]:
    parts = path.strip("/").split("/")
    yield from ("/" + "/".join(parts[: i + 1]) for i in range(len(parts)))


class _Without(h5py.Group):  # type: ignore[misc]
    """A group without some of its links."""

    hidden: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if name not in self.hidden)


class GuardedIO(NWBHDF5IO):  # type: ignore[misc]
    """pynwb's IO of a file of which some links are not followed."""

    outside: Outside

    def _HDF5IO__read_group(self, h5obj: Any, *args: Any, **options: Any) -> Any:
        group = _Without(h5obj.id)
        name, inside = os.path.realpath(h5obj.file.filename), posixpath.join(h5obj.name, "")
        found = (path for file, path in self.outside.refused if file == name and path.startswith(inside))
        group.hidden = frozenset(path[len(inside) :] for path in found)
        return getattr(super(), _READ_GROUP)(group, *args, **options)


def open_guarded(path: str) -> tuple[NWBHDF5IO, dict[str, str]]:
    """Return pynwb's IO of a file, and what of it is not read because it leads out of the file's directory.

    Raises:
        ValueError: the file cannot be read without it.
    """
    with h5py.File(path, "r") as file:
        outside = Outside(file, path)
        specified = file.attrs.get(".specloc")
        definitions = file[specified].name if isinstance(specified, h5py.Reference) and specified else "/specifications"
    if not outside.refused:
        return NWBHDF5IO(path, "r", load_namespaces=True), {}
    needed = [each for _, each in outside.refused if f"{each}/".startswith(f"{definitions}/")]
    if needed or not hasattr(NWBHDF5IO, _READ_GROUP):
        raise ValueError("; ".join(f"{name}: {why}" for name, why in outside.paths.items()))
    io = GuardedIO(path, "r", load_namespaces=True)
    io.outside = outside
    return io, outside.paths
