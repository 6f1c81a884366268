"""Progress bars: on a terminal, or as widgets in a notebook.

Knows tqdm; knows nothing of what is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable[Any] | None, total: int, unit: str, show: bool, **more: Any) -> Any:
    """Return a progress bar, which yields the items.

    Args:
        items: what is counted; None: the bar is updated by hand.
        total: how many there will be.
        unit: what they are called.
        show: show it, if there is a terminal or a notebook; else it is silent.
        **more: other arguments of tqdm.

    Example:
        >>> [*progress_bar("ab", 2, "letter", show=False)]
        ['a', 'b']
    """
    if show and in_notebook():
        from tqdm.auto import tqdm as widget  # it takes longer to import

        return widget(items, total=total, unit=unit, **more)
    return tqdm(items, total=total, unit=unit, disable=None if show else True, **more)  # None: on a terminal only


def in_notebook() -> bool:
    """Return whether this runs in a Jupyter kernel."""
    return "ipykernel" in sys.modules
