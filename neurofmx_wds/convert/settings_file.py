"""Settings of a conversion in a file: written by one run, read by others.

Knows settings by name; knows nothing of what they do, nor of the command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SourceError, did_you_mean
from ..format.plain_files import read_plain
from ..storage.atomic import write_atomic
from .options import NamedOption, as_json

_MOST_BYTES = 1 << 24
#: What the settings of a manifest say again: the windows around events follow from others.
_FROM_ALIGN = ("sequence_length", "overlap")


def save_settings(path: str | os.PathLike[str], given: Mapping[str, Any], known: Iterable[NamedOption]) -> None:
    """Write settings to a YAML or JSON file.

    Args:
        path: the file; one that ends in .json is JSON, any other YAML.
        given: their values by name; those that are not known are left out.
        known: the settings that a file can have.
    """
    values = {_name(each): _plain(given[each.name]) for each in known if each.name in given}
    if Path(path).suffix.lower() == ".json":
        text = json.dumps(values, indent=1)
    else:  # JSON values are YAML, too
        text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    write_atomic(Path(path), f"{text or '{}'}\n".encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(tuple(each)) if isinstance(each, (list, tuple)) else as_json(each) for each in value] if isinstance(
        value, (list, tuple)) else as_json(value)  # fmt: skip


def _name(option: NamedOption) -> str:
    return (option.typed or option.name).removeprefix("--")


def read_settings(path: str | os.PathLike[str], known: Iterable[NamedOption]) -> dict[str, Any]:
    """Read settings from a YAML or JSON file, or from the manifest of a dataset, as the command line has them.

    Args:
        path: the file.
        known: the settings that it can have.

    Returns:
        Values by the names of the settings.

    Raises:
        ValueError: an unknown setting, or a value that cannot be; the message begins with ``config``.
        SourceError: the file cannot be read.
    """
    found = read_plain(Path(path), _MOST_BYTES, SourceError)
    if not isinstance(found, dict):
        raise ValueError(f"config={os.fspath(path)!r}: must be a mapping of settings")
    options = {each.name: each for each in known}
    if "total_samples" in found and isinstance(found.get("config"), dict):
        found = _of_manifest(found["config"], options)
    by_name = {name: each for each in options.values() for name in (each.name, _name(each))}
    settings = {}
    for name, value in found.items():
        if name not in by_name:
            hint = did_you_mean(name, map(_name, options.values()))
            raise ValueError(f"config={os.fspath(path)!r}: " + "; ".join(filter(None, [f"no setting {name}", hint])))
        option = by_name[name]
        try:
            settings[option.name] = _value(option, value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"config={os.fspath(path)!r}: {name}: {error}") from None
    return {name: value for name, value in settings.items() if value is not None}


def _of_manifest(config: Mapping[str, Any], options: Mapping[str, NamedOption]) -> dict[str, Any]:
    """Return the settings of a manifest that differ from their defaults and can be typed."""
    aligned = config.get("align") is not None
    return {
        name: value
        for name, value in config.items()
        if name in options and value not in (None, as_json(options[name].default))
        and not (aligned and name in _FROM_ALIGN)
    }  # fmt: skip


def _value(option: NamedOption, value: Any) -> Any:
    """Return a value as the command line would have it, where every value is typed as text."""
    if option.parse is bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {value!r}")
        return True if value else None
    if len(option.metavar.split()) > 1:
        return [[option.parse(str(each)) for each in group] for group in value]
    if isinstance(value, Mapping):
        value = ",".join(f"{name}={each}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    text = str(value)
    if option.choices and text not in option.choices:
        raise ValueError(f"must be one of {', '.join(option.choices)}, not {text!r}")
    return option.parse(text)
