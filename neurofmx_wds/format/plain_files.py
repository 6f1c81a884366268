"""Small JSON and YAML files that people write: read without anything that could run, or grow without bound.

Knows files; knows nothing of what they say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import NeurofmxError
from ..storage.regular import read_regular


def read_plain(path: Path, most_bytes: int, error_type: type[NeurofmxError]) -> Any:
    """Return what a JSON or YAML file holds.

    Args:
        path: the file; one that ends in .json is JSON, any other YAML (needs pyyaml).
        most_bytes: a larger file is refused.
        error_type: of the errors about its content.

    Raises:
        NeurofmxError: of `error_type`, if it cannot be read; or if pyyaml is not installed.
    """
    text = read_regular(path, most_bytes, error_type)
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text)
        try:
            import yaml
        except ImportError as error:
            remedy = "pip install 'neurofmx-wds[yaml]', or write it as a .json file"
            raise NeurofmxError("reading YAML needs pyyaml", file=path, remedy=remedy) from error
        try:
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                problem = "YAML aliases (*name) are refused: a few lines of them can stand for billions of values"
                raise error_type(problem, file=path)
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, NeurofmxError):
            raise
        raise error_type(f"cannot be read: {error}", file=path) from error
