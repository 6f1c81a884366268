"""What samples, fields and tar members may be called, and how webdataset takes their names apart.

Knows nothing of values or bytes.
"""

from __future__ import annotations

import functools
import re

from ..errors import FieldError

SOURCE_SUFFIXES = (".nwb", ".npz", ".npy")  # of files that people take for shards
_META_NAME = re.compile(r"__[^/]*__($|/)")  # webdataset skips these members


@functools.lru_cache(maxsize=1024)
def check_field_name(name: object) -> None:
    """Reject a field name that webdataset would change, cut or drop.

    Raises:
        FieldError: the name is not a string, is empty, starts with ``_``, or holds a capital, a slash or a control
            character.
    """
    if not isinstance(name, str) or not name:
        raise FieldError(f"a field name must be a non-empty string, not {name!r}", remedy="rename the field")
    reasons = [
        ("starts with '_', which webdataset reserves", name.startswith("_")),
        ("starts or ends with a dot, or holds two in a row", "" in name.split(".")),
        ("holds a '/', which would make it part of the key", "/" in name),
        ("holds a capital, and webdataset lower-cases field names", name != name.lower()),
        ("holds a character that cannot be printed", not name.isprintable()),
    ]
    for reason, found in reasons:
        if found:
            raise FieldError(f"the field name {reason}", member=name, remedy="rename the field")


def check_key(key: object) -> None:
    """Reject a sample key that webdataset would cut, skip or mix up.

    Raises:
        FieldError: the key is not a string, is empty, or holds a dot, a control character or an odd slash.
    """
    if isinstance(key, str) and key.isidentifier() and not key.startswith("__"):
        return  # quickly: most keys
    if not isinstance(key, str) or not key:
        raise FieldError(f"a sample's key must be a non-empty string, not {key!r}", remedy="name the sample")
    reasons = [
        ("holds a dot, and webdataset cuts a name at its first dot", "." in key),
        ("starts with '__', which webdataset skips", key.startswith("__")),
        ("has an empty part between slashes", "" in key.split("/")),
        ("holds a character that cannot be printed", not key.isprintable()),
    ]
    for reason, found in reasons:
        if found:
            raise FieldError(f"the sample's key {reason}", sample=key, remedy="rename the sample")


@functools.lru_cache(maxsize=1024)
def field_of(suffix: str) -> str:
    """Return the field that a member's suffix stands for: the suffix without its last extension.

    Example:
        >>> field_of("spikes.npy"), field_of("metadata.json.gz"), field_of("txt")
        ('spikes', 'metadata', 'txt')
    """
    if suffix.endswith(".gz"):
        suffix = suffix[: -len(".gz")]
    return suffix.rpartition(".")[0] or suffix


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into its sample's key and its suffix, as webdataset does.

    Returns:
        Key and suffix; None if webdataset takes the member for no sample's.

    Example:
        >>> split_name("mouse1/trial7.spikes.npy"), split_name("README"), split_name("__about__/x.json")
        (('mouse1/trial7', 'spikes.npy'), None, None)
    """
    from webdataset.tariterators import base_plus_ext  # on use: it takes a second, and few need it

    key, suffix = base_plus_ext(name)
    return None if key is None or suffix is None or _META_NAME.match(name) else (key, suffix)
