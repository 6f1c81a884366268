"""Which object of a training framework is calling: found on the stack by its module's name, never imported.

A framework that iterates a loader tells it nothing but to go on. Some things it does cannot be made right without
knowing who asks: see the modules that use this one. Knows nothing of loaders.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import FrameType
from typing import Any


def calling_object(modules: Collection[str]) -> Any | None:
    """Return the innermost object with a running method that is defined in one of the modules.

    Args:
        modules: names of modules, such as ``"accelerate.data_loader"``.

    Returns:
        The object, or None if no such method is running in this thread.

    Example:
        >>> import json.encoder
        >>> class Asking:
        ...     def __float__(self): return 0.0
        ...     def keys(self): return []
        >>> json.JSONEncoder(default=lambda _: repr(calling_object(["json.encoder"]).sort_keys)).encode(Asking())
        '"False"'
    """
    if not any(name in sys.modules for name in modules):
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") in modules and (found := frame.f_locals.get("self")) is not None:
            return found
        frame = frame.f_back
    return None
