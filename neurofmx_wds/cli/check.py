"""The commands that check shards and write what readers need: ``verify``, ``index`` and ``export``."""

from __future__ import annotations

import argparse
from typing import Any

from ..convert.options import positive
from .options import typed
from .output import show, show_problems


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add_verify(commands)
    _add_index(commands)
    _add_export(commands)


def _add_verify(commands: Any) -> None:
    command = commands.add_parser(
        "verify",
        help="whether a dataset is whole",
        description="Check a dataset's manifest, shards and indexes against each other.",
        epilog="example:\n  python -m neurofmx_wds verify shards --deep --workers 4\n\n"
        "Exit status: 0 all is well; 1 a problem was found.",
    )
    command.set_defaults(run=_verify)
    command.add_argument("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    command.add_argument("--deep", action="store_true", help="read every byte: checksums, every member, every key")
    command.add_argument("--workers", type=typed(positive), default=1, metavar="N", help="number of processes (1)")


def _verify(options: argparse.Namespace) -> int:
    from ..format.info import count, human_size
    from ..format.verify import verify

    report = verify(options.dir, options.deep, options.workers, show_progress=not options.quiet)
    checked = f"{count(report.shards, 'shard')}, {count(report.samples, 'sample')}, {human_size(report.n_bytes)}"
    how = f"every byte read, {count(report.members, 'member')} decoded" if report.deep else "sizes and indexes compared"
    show(f"{options.dir}: {checked}; {how}: {'all is well' if report.ok else count(len(report.problems), 'problem')}")
    show_problems(report.problems)
    return 0 if report.ok else 1


def _add_index(commands: Any) -> None:
    command = commands.add_parser(
        "index",
        help="write the indexes that shards lack",
        description="Write the sidecar index of every shard that has none, also of shards made by plain webdataset.",
        epilog="examples:\n  python -m neurofmx_wds index shards\n  python -m neurofmx_wds index shards --repair",
    )
    command.set_defaults(run=_index)
    command.add_argument("dir", metavar="DIR", help="directory of tars")
    command.add_argument("--repair", action="store_true", help="also replace damaged and wrong indexes")
    command.add_argument("--workers", type=typed(positive), default=1, metavar="N", help="number of processes (1)")


def _index(options: argparse.Namespace) -> int:
    from ..format.index_files import write_indexes
    from ..format.info import count

    report = write_indexes(options.dir, options.repair, options.workers)
    written = f"{len(report.made)} {'index' if len(report.made) == 1 else 'indexes'} written"
    show(f"{options.dir}: {written}, {count(report.kept, 'shard')} had one already")
    show_problems(report.problems)
    return 1 if report.problems else 0


def _add_export(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="index files for wids and NVIDIA DALI",
        description="Write what wids (shardindex.json) and NVIDIA DALI (an .idx for each shard) need to read the\n"
        "shards, or one of the two. Give it again when the dataset has grown.",
        epilog="example:\n  python -m neurofmx_wds export shards --dali",
    )
    command.set_defaults(run=_export)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of uncompressed shards, with a manifest or without")
    add("--wids", action="store_true", help="for wids.ShardListDataset")
    add("--dali", action="store_true", help="for DALI's fn.readers.webdataset, in the format of its wds2idx")
    add("-o", "--output", metavar="DIR", help="where to write them (beside the shards)")


def _export(options: argparse.Namespace) -> int:
    from ..format.export import export
    from ..format.info import count

    both = options.wids == options.dali
    written = export(options.dir, options.wids or both, options.dali or both, options.output)
    show(f"{written[0].parent if written else options.dir}: {count(len(written), 'index file')} written")
    return 0
