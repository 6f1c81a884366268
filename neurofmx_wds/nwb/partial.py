"""Read an NWB file without the objects that pynwb cannot read, which are left out one by one.

Knows hdmf's builders (what is stored) and containers (the objects made from it); knows nothing of recordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hdmf.build import BuildManager, DatasetBuilder, GroupBuilder
from hdmf.container import Container

#: A file with more objects than this that cannot be read is damaged as a whole.
MOST_LEFT_OUT = 100
#: Without this table nobody knows which data are bad: if it cannot be read, nothing is.
_NEEDED = "intervals/invalid_times"
_TYPED = ("neurodata_type", "namespace", "object_id")


def read_partly(io: Any) -> tuple[Any, dict[str, tuple[str, Exception]]]:
    """Read the readable objects of a file that pynwb fails to read.

    Args:
        io: pynwb's IO; its builders are changed, the file is not.

    Returns:
        pynwb's NWBFile, and for the path of each object left out: the path of the left-out object that it needs, or "",
        and the error.

    Raises:
        Exception: pynwb's own, if the file as a whole is at fault.
    """
    root, attempt = io.read_builder(), _Attempt(io.manager.type_map)
    without: list[Any] = []
    unlinked: dict[int, str] = {}
    left_out: dict[str, tuple[str, Exception]] = {}
    for builder, error in list(_of_unknown_type(root, io.manager)):
        _leave_out(builder, error, "", without, left_out)
    for _ in range(2 * MOST_LEFT_OUT):
        attempt.failed.clear()
        try:
            attempt.construct(root)
            break
        except Exception as error:  # pynwb and hdmf raise errors of any type for odd files
            at_fault = next((each for each in attempt.failed if _outer(each, without) is None), root)
            needed = next((_path(found) for b in attempt.failed if (found := _outer(b, without))), "")
            if _loosen(at_fault, without, unlinked):
                continue
            needed = needed or unlinked.get(id(at_fault), "")
            _leave_out(at_fault, error, needed, without, left_out)
    io.manager.clear_cache()
    for builder in without:  # tables may still refer to them
        for each in (builder, *_below(builder)):
            io.manager.prebuilt(Container(name=each.name), each)
    return io.read(), left_out


class _Attempt(BuildManager):  # type: ignore[misc]
    """Constructs containers and keeps the builders for which that failed, innermost first."""

    def __init__(self, type_map: Any) -> None:
        super().__init__(type_map)
        self.failed: list[Any] = []

    def construct(self, builder: Any, **options: Any) -> Any:
        try:
            return super().construct(builder, **options)
        except Exception:
            self.failed.append(getattr(builder, "builder", builder))  # a link's target
            raise


def _leave_out(
    builder: Any, error: Exception, needed: str, without: list[Any], left_out: dict[str, tuple[str, Exception]]
) -> None:
    """Remove a builder from its group, or raise the error if the file is of no use without it."""
    if isinstance(builder, DatasetBuilder) and "neurodata_type" in builder.parent.attributes:
        builder = builder.parent  # a table without a column, or a series without its electrodes, is incomplete
    path = _path(builder)
    if _outer(builder, without) is not None:
        return
    if builder.parent is None or path.startswith(_NEEDED) or len(without) == MOST_LEFT_OUT:
        raise error
    _remove(builder.parent, builder.name)
    without.append(builder)
    left_out[path] = needed, error


def _remove(group: Any, name: str) -> None:
    for kind in (group.groups, group.datasets, group.links):
        kind.pop(name, None)
    group.obj_type.pop(name, None)


def _loosen(builder: Any, without: list[Any], unlinked: dict[int, str]) -> bool:
    """Remove links that keep a builder from being constructed, note their targets, and return whether there were any.

    Data and timestamps that are links to an object that cannot be read, or to a plain dataset, become the series' own.
    """
    freed = False
    for group in _untyped_in(builder):
        for name, link in list(group.links.items()):
            target = link.builder
            if name in ("data", "timestamps") and isinstance(target, DatasetBuilder):
                about = {key: value for key, value in target.attributes.items() if key not in _TYPED}
                _remove(group, name)
                group.set_dataset(DatasetBuilder(name=name, data=target.data, attributes=about))
            elif (gone := _outer(target, without)) is not None:
                unlinked[id(builder)] = _path(gone)
                _remove(group, name)
            else:
                continue
            freed = True
    return freed


def _untyped_in(builder: Any) -> Iterator[Any]:
    """Yield a group and the groups in it that have no type of their own."""
    if isinstance(builder, GroupBuilder):
        yield builder
        for each in builder.groups.values():
            if "neurodata_type" not in each.attributes:
                yield from _untyped_in(each)


def _of_unknown_type(root: Any, manager: Any) -> Iterator[tuple[Any, Exception]]:
    """Yield the outermost objects whose type has no definition, and hdmf's error for each."""
    for each in (*root.groups.values(), *root.datasets.values()):
        try:
            kind, space = manager.get_builder_dt(each), manager.get_builder_ns(each)
            if kind is not None and space is not None:
                manager.namespace_catalog.get_hierarchy(space, kind)
        except Exception as error:
            yield each, error
        else:
            if isinstance(each, GroupBuilder):
                yield from _of_unknown_type(each, manager)


def _below(builder: Any) -> Iterator[Any]:
    if isinstance(builder, GroupBuilder):
        for each in (*builder.groups.values(), *builder.datasets.values()):
            yield each
            yield from _below(each)


def _outer(builder: Any, without: list[Any]) -> Any:
    """Return the builder of `without` that a builder is or is in; None if there is none."""
    while builder is not None and not any(builder is each for each in without):
        builder = builder.parent
    return builder


def _path(builder: Any) -> str:
    return str(builder.path).removeprefix("root/")
