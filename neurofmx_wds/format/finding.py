"""Which files are the shards of a dataset: from a directory, a pattern or a list of paths.

Knows the names of shards and the manifest; reads no shard and no index.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import CONVERT_FIRST, MERGE_DATASETS, ManifestError, ShardError, join_some
from ..storage.atomic import ASIDE_SUFFIX
from .index import INDEX_SUFFIX, index_path
from .manifest import MANIFEST_NAME, Manifest, ShardRecord
from .names import SOURCE_SUFFIXES

DEFAULT_SHARD_PATTERN = "shard_*.tar*"
_BELIEVED_SAMPLES = 1 << 32  # of more, a manifest is believed once its shards have the sizes that it gives

ShardDir = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def find_shards(
    shard_dir: ShardDir, shard_pattern: str
) -> tuple[list[Path], list[ShardRecord] | None, Manifest | None]:
    """Find a dataset's shards.

    Args:
        shard_dir: a directory, a shard, a pattern with braces or wildcards, or a list of these. A path that exists is
            taken as it is, whatever it looks like.
        shard_pattern: which files of a directory are shards.

    Returns:
        Their absolute paths; and what the manifest says of each, and the manifest itself, both None without a manifest.

    Raises:
        FileNotFoundError, ShardError, ManifestError: as :func:`neurofmx_wds.format.shards.open_shards`.
    """
    if not isinstance(shard_dir, (str, os.PathLike)) or not os.path.isdir(shard_dir):
        return _listed(shard_dir), None, None
    directory = Path(os.path.abspath(shard_dir))
    if (directory / MANIFEST_NAME).exists():
        return _in_manifest(directory, shard_pattern)
    paths = sorted(path for path in directory.glob(shard_pattern) if is_shard(path))
    if not paths:
        raise _no_shards(directory, shard_pattern)
    return paths, None, None


def is_shard(path: Path) -> bool:
    """Whether a file that matches a pattern is taken for a shard; pipes and broken links are, and cannot be opened."""
    return not path.is_dir() and not path.name.startswith(".") and not path.name.endswith((INDEX_SUFFIX, ASIDE_SUFFIX))


def _in_manifest(directory: Path, shard_pattern: str) -> tuple[list[Path], list[ShardRecord], Manifest]:
    inode = os.stat(directory).st_ino
    manifest = Manifest.load(directory)
    present = set(os.listdir(directory))
    missing = [r.shard_name for r in manifest.shards if r.shard_name not in present]
    if missing and os.stat(directory).st_ino != inode:  # replaced in this very moment: look at the new one
        return _in_manifest(directory, shard_pattern)
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        problem = f"shards that the manifest lists are missing: {names}"
        raise ManifestError(problem, file=directory, remedy="restore them, or convert again")
    records = [r for r in manifest.shards if fnmatch.fnmatch(r.shard_name, shard_pattern)]
    if not records and manifest.shards and shard_pattern == DEFAULT_SHARD_PATTERN:
        records = manifest.shards  # made with a shard_name_pattern of its own
    if not records and manifest.shards:
        raise _no_shards(directory, shard_pattern)
    if manifest.total_samples > _BELIEVED_SAMPLES:
        _compare_sizes(directory, records)
    return [directory / r.shard_name for r in records], records, manifest


def _compare_sizes(directory: Path, records: Iterable[ShardRecord]) -> None:
    for record in records:
        size = os.stat(directory / record.shard_name).st_size
        if size != record.n_bytes:
            problem = f"the manifest gives {record.shard_name} {record.n_bytes} bytes, and it has {size}"
            raise ManifestError(problem, file=directory / MANIFEST_NAME, remedy="restore it, or convert again")


def _no_shards(directory: Path, shard_pattern: str) -> ShardError:
    if (directory.parent / f".{directory.name}.partial").exists():
        problem, remedy = "the dataset is not finished", "wait, or run the conversion again"
    else:
        problem, remedy = f"no file matches {shard_pattern!r}", _perhaps_meant(directory)
    return ShardError(f"No shards found: {problem}", file=directory, remedy=remedy)


def _perhaps_meant(directory: Path) -> str:
    """Advise what to give instead of a directory without shards, by what else is in it."""
    names = sorted(os.listdir(directory))
    tars = [name for name in names if index_path(name).stem != name and is_shard(directory / name)]
    if tars:
        pattern = "*" + tars[0].removeprefix(index_path(tars[0]).stem)
        return f"{tars[0]} is there: give shard_pattern={pattern!r}, or as the directory '{directory / pattern}'"
    datasets = [name for name in names if _has_shards(directory / name)]
    if datasets:
        return f"datasets lie below it: give one of {join_some(datasets)}, or {MERGE_DATASETS}"
    source = next((name for name in names if name.endswith(SOURCE_SUFFIXES)), None)
    return f"{source} is not a shard: {CONVERT_FIRST}" if source else "check directory and shard_pattern"


def _has_shards(directory: Path) -> bool:
    return os.path.exists(directory / MANIFEST_NAME) or any(directory.glob(DEFAULT_SHARD_PATTERN))


def _listed(spec: ShardDir) -> list[Path]:
    """Return the shards that a path, a pattern or a list of both names."""
    given = [spec] if isinstance(spec, (str, os.PathLike)) else spec
    named = [name for item in given for name in _expand(os.fspath(item)) if not name.endswith(INDEX_SUFFIX)]
    if not named:
        raise ShardError(f"No shards found: no file matches {spec!r}", remedy="check the path")
    for name in named:
        if os.path.isdir(name):
            remedy = f"give the directory alone, or {MERGE_DATASETS}"
            raise ShardError("it is a directory, and a list or pattern is of shards", file=name, remedy=remedy)
        if not os.path.lexists(name):
            raise FileNotFoundError(f"{name}: No shards found: there is no such file or directory")
    return [Path(os.path.abspath(name)) for name in named]


def _expand(text: str) -> Iterator[str]:
    """Yield the paths that a string names as webdataset understands it, with wildcards besides.

    Whatever exists is taken as it is: the whole string, or the directories that it begins with.
    """
    if os.path.lexists(text):
        yield text
        return
    directory, rest = _existing_part(text)
    pattern, *others = rest.split("::")
    yield from _expand_one(directory, pattern)
    for other in others:
        yield from _expand(other)


def _expand_one(directory: str, pattern: str) -> Iterator[str]:
    from webdataset.shardlists import expand_urls  # on use: it takes a second, and few need it

    scheme = None if directory else re.match(r"[a-z][a-z0-9+.-]*:", pattern, re.IGNORECASE)
    if scheme and scheme[0].lower() != "file:":
        raise ShardError("only local files can be read", file=pattern, remedy="copy the shards to a local directory")
    if scheme:
        directory, pattern = _existing_part(urlsplit(pattern).path)
    try:
        names = expand_urls(pattern)
    except ValueError as error:
        raise ShardError(f"not a pattern: {error}", file=pattern, remedy="check the braces") from error
    for name in names:
        path = os.path.join(directory, name)
        if glob.has_magic(name) and not os.path.lexists(path):
            yield from sorted(glob.glob(os.path.join(glob.escape(directory), name)))
        else:
            yield path


def _existing_part(path: str) -> tuple[str, str]:
    """Split a path into the directories that exist and the rest.

    Example:
        >>> _existing_part("/tmp/no_such_{a,b}/*.tar")
        ('/tmp', 'no_such_{a,b}/*.tar')
    """
    directory, rest = ("/", path.lstrip("/")) if path.startswith("/") else ("", path)
    while "/" in rest and os.path.isdir(os.path.join(directory, rest.partition("/")[0])):
        first, _, rest = rest.partition("/")
        directory = os.path.join(directory, first)
    return directory, rest
