"""What the fields of a dataset are: their dtypes and shapes over all shards.

Knows indexes; knows nothing of tars or manifests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .index import METADATA_SUFFIX, ShardIndex
from .names import field_of


def modalities_of(indexes: Iterable[ShardIndex]) -> dict[str, dict[str, Any]]:
    """Each field's dtype and shape over all shards.

    Returns:
        field → ``{"dtype": …, "shape": […]}`` for arrays, with None where samples differ (a shape of None: they differ
        in rank), and ``{"format": extension}`` for everything else. ``metadata`` is left out.
    """
    seen: dict[str, set[tuple[str, tuple[int, ...]] | str]] = {}
    for index in indexes:
        pairs = np.unique(np.stack([index.member_suffix, index.member_layout]), axis=1).T.tolist()
        for suffix_id, layout_id in pairs:
            suffix = index.suffixes[suffix_id]
            if suffix == METADATA_SUFFIX:
                continue
            layout = index.layouts[layout_id] if layout_id >= 0 else None
            kind = suffix.rpartition(".")[2] if layout is None else (np.dtype(layout.dtype).name, layout.shape)
            seen.setdefault(field_of(suffix), set()).add(kind)
    return {name: _describe(kinds) for name, kinds in sorted(seen.items())}


def _describe(kinds: set[tuple[str, tuple[int, ...]] | str]) -> dict[str, Any]:
    arrays = [kind for kind in kinds if isinstance(kind, tuple)]
    formats = sorted(kind for kind in kinds if isinstance(kind, str))
    description: dict[str, Any] = {"format": formats[0] if len(formats) == 1 else formats} if formats else {}
    if arrays:
        dtypes = {dtype for dtype, _ in arrays}
        ranks = {len(shape) for _, shape in arrays}
        shapes = [shape for _, shape in arrays]
        description["dtype"] = dtypes.pop() if len(dtypes) == 1 else None
        description["shape"] = (
            [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
            if len(ranks) == 1
            else None
        )
    return description
