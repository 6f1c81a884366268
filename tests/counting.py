"""Counts for tests: how much work a function does, the same on every machine, and whether a loop has any items."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

_Item = TypeVar("_Item")


def lines_run(work: Callable[[], object]) -> int:
    """Return the number of lines of Python that run during `work`."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def some(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items of a loop that makes assertions; fail if there are none, since nothing would be tested."""
    found = False
    for item in items:
        found = True
        yield item
    assert found, "there is nothing to test"
