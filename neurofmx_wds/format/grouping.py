"""The members of a tar → samples, as webdataset groups them; what it would lose in silence is an error or counted.

Knows tars and names; knows nothing of values or indexes.
"""

from __future__ import annotations

import logging
import mmap
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..errors import CONVERT_FIRST, RESTORE, ShardError
from .limits import most_unpacked
from .names import SOURCE_SUFFIXES, split_name
from .tar import DIRECTORY, FILES, LINK, SPARSE, SYMLINK, Member, read_members

logger = logging.getLogger("neurofmx_wds")

Sample = tuple[str, list[tuple[str, Member]]]  # its key, and each member's suffix and place
_JUNK_NAMES = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini"})
_JUNK_FOLDERS = re.compile(r"(^|/)(__MACOSX|PaxHeaders(\.[^/]*)?)/")
_SORT = "pack its files again, sorted by name (tar --sort=name), so that those of one sample are side by side"
_FOLLOW = "pack its files again with what links point to (tar --dereference --hard-dereference)"
_MAX_HOPS = 40  # as Linux follows links
_MAX_PATH = 4096


def read_samples(tar: mmap.mmap | bytes, path: Path) -> list[Sample]:
    """Return the samples of a tar: each key, with the suffix and payload of each member, links followed.

    Args:
        tar: the tar's bytes, unpacked.
        path: the shard, to name it.

    Raises:
        ShardError: not a tar, damaged, or with samples that webdataset would read in part.
    """
    try:
        members = list(read_members(tar))
        skipped: Counter[str] = Counter()
        entries = [entry for member in members if (entry := _entry(member, skipped)) is not None]
        if any(member.kind in (LINK, SYMLINK) for _, _, member in entries):
            entries = _follow_links(entries, members)
        samples = _group(entries)
        _check_growth(entries, len(tar))
    except ShardError as error:
        remedy = error.remedy or (CONVERT_FIRST if path.suffix in SOURCE_SUFFIXES else RESTORE)
        raise type(error)(error.problem, file=path, sample=error.sample, member=error.member, remedy=remedy) from error
    if skipped:
        counts = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
        logger.warning("%s: skipped members that belong to no sample: %s", path, counts)
    return samples


Entry = tuple[str, str, Member]


def _entry(member: Member, skipped: Counter[str]) -> Entry | None:
    """Return key, suffix and member, or None if it belongs to no sample."""
    base = member.name.rpartition("/")[2]
    if member.kind == DIRECTORY:
        return None
    if base.startswith(".") or base in _JUNK_NAMES or _JUNK_FOLDERS.search(member.name):
        skipped["hidden files or files of an operating system"] += 1
        return None
    found = split_name(member.name)
    if found is None:
        if not member.name.startswith("__"):  # which webdataset reserves
            skipped["files without an extension"] += 1
        return None
    key, suffix = found
    if member.kind not in (*FILES, SPARSE, LINK, SYMLINK):
        problem = "it is a device, a pipe, or part of a larger archive, not a file"
        raise ShardError(problem, sample=key, member=suffix, remedy="pack plain files only")
    return key, suffix.lower(), member


def _group(entries: Iterable[Entry]) -> list[Sample]:
    samples: list[Sample] = []
    seen: set[str] = set()
    suffixes: set[str] = set()
    current: str | None = None
    for key, suffix, member in entries:
        if key != current:
            plain = posixpath.normpath(key) if "./" in key or "//" in key else key
            if plain in seen:
                problem = "the sample's members are not side by side, or two samples have this key"
                raise ShardError(problem, sample=key, member=suffix, remedy=_SORT)
            seen.add(plain)
            suffixes = set()
            samples.append((key, []))
            current = key
        if suffix in suffixes:
            raise ShardError("the sample has this member twice", sample=key, member=suffix, remedy=RESTORE)
        suffixes.add(suffix)
        samples[-1][1].append((suffix, member))
    return samples


def _follow_links(entries: list[Entry], members: list[Member]) -> list[Entry]:
    """Replace each link by the file in the tar that it points to."""
    files: dict[str, Member] = {}
    links: dict[str, str] = {}
    for member in members:
        name = posixpath.normpath(member.name)
        if member.kind in (LINK, SYMLINK):
            folder = posixpath.dirname(name) if member.kind == SYMLINK else ""
            links[name] = posixpath.normpath(posixpath.join(folder, member.link))
        elif member.kind in (*FILES, SPARSE):
            files[name] = member
    followed = []
    for key, suffix, member in entries:
        if member.kind in (LINK, SYMLINK):
            target = _resolve(posixpath.normpath(member.name), files, links)
            if target is None:
                problem = f"it is a link to {member.link[:200]!r}, which is no file in the tar"
                raise ShardError(problem, sample=key, member=suffix, remedy=_FOLLOW)
            member = target._replace(name=member.name, link=member.link)
        followed.append((key, suffix, member))
    return followed


def _resolve(name: str, files: dict[str, Member], links: dict[str, str]) -> Member | None:
    """Return the file that a link's name leads to, also through links of folders; None if it leads out of the tar."""
    for _ in range(_MAX_HOPS):
        if name in files and name not in links:
            return files[name]
        if len(name) > _MAX_PATH:
            return None
        head, rest = name, ""
        while head not in links:
            head, _, last = head.rpartition("/")
            rest = f"{last}/{rest}" if rest else last
            if not head:
                return None
        name = posixpath.normpath(posixpath.join(links[head], rest)) if rest else links[head]
    return None


def _check_growth(entries: Iterable[Entry], n_bytes: int) -> None:
    """Refuse links and sparse files that make far more of a tar than there is."""
    total = sum(member.size for _, _, member in entries)
    if total > most_unpacked(n_bytes):
        raise ShardError(f"its links and sparse files stand for {total:,} bytes, from {n_bytes:,}", remedy=_FOLLOW)
