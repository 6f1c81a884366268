"""Sources of samples, one file a kind of input: recordings, arrays, files, images.

`.config` holds their settings, `.contract` what the conversion asks of them; `.opening` finds the one for a file.
"""

from __future__ import annotations

from .config import SourceConfig
from .contract import Source, SourceDescription
from .opening import open_source
from .settings import ArrayConfig, FilesConfig, ImageConfig
from .windows import WindowConfig

__all__ = [
    "ArrayConfig",
    "FilesConfig",
    "ImageConfig",
    "Source",
    "SourceConfig",
    "SourceDescription",
    "WindowConfig",
    "open_source",
]
