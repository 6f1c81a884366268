"""What pynwb can make of an NWB file of which it cannot make all: the rest is left out, object by object.

Knows hdmf's builders (what is stored) and containers (what is made of it); nothing of what a recording holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hdmf.build import BuildManager, DatasetBuilder, GroupBuilder
from hdmf.container import Container

#: A file with more objects than this that cannot be made is damaged as a whole.
MOST_LEFT_OUT = 100
#: Without this table nobody knows which data are bad, so that nothing is read without it.
_NEEDED = "intervals/invalid_times"
_TYPED = ("neurodata_type", "namespace", "object_id")


def read_partly(io: Any) -> tuple[Any, dict[str, tuple[str, Exception]]]:
    """Reads what can be read of a file that pynwb has failed to read.

    Args:
        io: pynwb's IO; what it stores of the file is changed, the file is not.

    Returns:
        pynwb's NWBFile, and path → of each object left out, what it needs that is left out too, or "", and the error.

    Raises:
        Exception: pynwb's own, where the file as a whole is at fault.
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
        except Exception as error:  # pynwb and hdmf raise whatever the file's oddity leads to
            at_fault = next((each for each in attempt.failed if _outer(each, without) is None), root)
            needed = next((_path(found) for b in attempt.failed if (found := _outer(b, without))), "")
            if _loosen(at_fault, without, unlinked):
                continue
            needed = needed or unlinked.get(id(at_fault), "")
            _leave_out(at_fault, error, needed, without, left_out)
    io.manager.clear_cache()
    for builder in without:  # object references in tables may still lead to them
        for each in (builder, *_below(builder)):
            io.manager.prebuilt(Container(name=each.name), each)
    return io.read(), left_out


class _Attempt(BuildManager):  # type: ignore[misc]
    """Makes containers and notes the builders of which none could be made, innermost first."""

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
    """Takes a builder out of its group, or raises the error where the file is of no use without it."""
    if isinstance(builder, DatasetBuilder) and "neurodata_type" in builder.parent.attributes:
        builder = builder.parent  # a table without a column, or a series without its electrodes, would be another
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
    """Frees a builder of links that keep it from being made, and says whether there were any; notes where they led.

    A series' data and timestamps may be another object's that cannot be made, or are no series': they become its own.
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
    """Gives a group and the groups in it that are no objects by themselves."""
    if isinstance(builder, GroupBuilder):
        yield builder
        for each in builder.groups.values():
            if "neurodata_type" not in each.attributes:
                yield from _untyped_in(each)


def _of_unknown_type(root: Any, manager: Any) -> Iterator[tuple[Any, Exception]]:
    """Finds the outermost objects whose type no definition tells of, and what hdmf says of each."""
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
    """Gives what of `without` a builder is or is in; None where it is in none."""
    while builder is not None and not any(builder is each for each in without):
        builder = builder.parent
    return builder


def _path(builder: Any) -> str:
    return str(builder.path).removeprefix("root/")
