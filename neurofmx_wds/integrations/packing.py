"""Pack files into tars as they are, unread: one sample for each name.

Knows the writer; knows nothing of loading.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import filelock

from ..errors import ManifestError, OutputError, SourceError
from ..format.encoding import Stored
from ..format.manifest import Manifest
from ..format.names import field_of
from ..format.writer import WebDatasetWriter
from ..storage.atomic import refuse_url

logger = logging.getLogger("neurofmx_wds")


def pack_files(
    directory: Path, names: Sequence[str], suffixes: Sequence[str], target: Path, prefix: str, n_tars: int
) -> None:
    """Pack files ``{directory}/{name}.{suffix}``, unread, into tars ``{target}/{prefix}-%06d.tar``, one sample a name.

    Args:
        directory: where the files are.
        names: the samples; a key has ``-`` for every dot of the name.
        suffixes: the files of each sample.
        target: directory for the tars; tars packed there before are replaced in one step, unless they are the same.
        prefix: start of the tars' names.
        n_tars: make at least this many, if there are enough samples.

    Raises:
        SourceError: a file is missing, or two names give one key.
        OutputError: `target` holds something else, or cannot be written.
    """
    refuse_url(target)
    samples = {name.replace(".", "-"): [directory / f"{name}.{suffix}" for suffix in suffixes] for name in names}
    if len(samples) < len(names):
        problem = f"{len(names)} names give only {len(samples)} keys, with '-' for every dot"
        raise SourceError(problem, file=directory, remedy="rename files, and name each once")
    if len(names) < n_tars:
        logger.warning("%s: %d samples cannot fill %d tars; each gets its own", target, len(names), n_tars)
    try:
        stats = [(key, path.stat()) for key, paths in samples.items() for path in paths]
    except OSError as error:
        remedy = "check directory, names and suffix"
        raise SourceError(f"cannot be packed: {error.strerror}", file=error.filename, remedy=remedy) from error
    shard_size = max(1, min(1000, len(names) // n_tars))
    pattern = prefix.replace("{", "{{").replace("}", "}}") + "-{shard_idx:06d}.tar"
    files = [(key, stat.st_size, stat.st_mtime_ns) for key, stat in stats]
    digest = hashlib.sha256(json.dumps([pattern, shard_size, files]).encode()).hexdigest()
    about = {field_of(suffix): {"packed_from": f"*.{suffix}", "packed_files": digest} for suffix in suffixes}
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):  # other processes wait, and find the tars packed
        before = _packed_before(target, about)
        if before == digest:
            return
        with WebDatasetWriter(target, shard_size, pattern, modalities=about, overwrite=before is not None) as writer:
            for key, paths in samples.items():
                payloads = {suffix: Stored(path.read_bytes()) for suffix, path in zip(suffixes, paths, strict=True)}
                writer.write_sample(payloads, key)


def _packed_before(target: Path, about: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the digest of the files packed into `target`: empty if tars are missing, None if nothing was packed.

    Raises:
        OutputError: `target` holds something else.
    """
    if not (target.is_dir() and any(target.iterdir())):
        return None
    try:
        manifest = Manifest.load(target)
        found = [manifest.modalities.get(name, {}) for name in about]
    except (FileNotFoundError, ManifestError):
        found = [{}]
    wanted = [each["packed_from"] for each in about.values()]
    if [each.get("packed_from") for each in found] != wanted:
        problem = f"the directory holds something else than packed {', '.join(wanted)} files"
        raise OutputError(problem, file=target, remedy="choose another directory for the tars, or remove this one")
    complete = all((target / shard.shard_name).is_file() for shard in manifest.shards)
    return str(found[0].get("packed_files")) if complete else ""
