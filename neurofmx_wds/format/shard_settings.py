"""How shards are named and stored: the settings that writers share, and what good ones are.

Light to import: knows nothing of tars.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Any, Literal

import numpy as np

from .encoding import FIELD_FORMATS, FieldFormat

Compression = Literal["none", "gz", "bz2", "xz"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "gz", "bz2", "xz")
DEFAULT_PATTERN = "shard_{shard_idx:06d}.tar"


def shard_name(pattern: str, shard_idx: int, compression: Compression) -> str:
    """Return a shard's file name."""
    name = pattern.format(shard_idx=shard_idx)
    return name if compression == "none" else f"{name}.{compression}"


def check_config(shard_size: int, pattern: str, compression: Compression, field_format: FieldFormat) -> dict[str, Any]:
    """Refuse impossible writer settings, and return them as the manifest holds them.

    Raises:
        ValueError: naming the setting and its value.
    """
    if not isinstance(shard_size, (int, np.integer)) or isinstance(shard_size, bool) or shard_size < 1:
        raise ValueError(f"shard_size must be a positive integer, not {shard_size!r}")
    if compression not in COMPRESSIONS:
        raise ValueError(f"compression must be one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    if field_format not in FIELD_FORMATS:
        raise ValueError(f"field_format must be one of {', '.join(FIELD_FORMATS)}, not {field_format!r}")
    try:
        names = {pattern.format(shard_idx=i) for i in (0, 1)}
        rounded = any(spec and not re.fullmatch(r"0?\d*[dxX]?", spec) for _, _, spec, _ in Formatter().parse(pattern))
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"shard_name_pattern {pattern!r} may only use {{shard_idx}}: {error!r}") from error
    odd = any("/" in name or name.startswith(".") or not name.endswith(".tar") for name in names)
    if odd or rounded or len(names) < 2:
        raise ValueError(f"shard_name_pattern must give distinct file names ending in .tar, not {pattern!r}")
    return {
        "shard_size": int(shard_size),
        "shard_name_pattern": pattern,
        "compression": compression,
        "field_format": field_format,
    }
