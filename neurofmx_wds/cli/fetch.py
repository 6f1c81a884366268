"""The command ``fetch``: bring a dataset behind a URL into this machine's cache, before jobs need it."""

from __future__ import annotations

import argparse
from typing import Any

from ..convert.options import positive
from ..storage.cache import DEFAULT_CACHE_SIZE
from .options import typed
from .output import show


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    command = commands.add_parser(
        "fetch",
        help="a dataset behind a URL → the cache",
        description="Bring a dataset behind a URL into this machine's cache, so that jobs find it there.",
        epilog="example:\n  python -m neurofmx_wds fetch s3://bucket/shards",
    )
    again = "interrupted: what was fetched is kept, and the same command goes on from there"
    command.set_defaults(run=_fetch, interrupted=again, without=("torch",))
    add = command.add_argument
    add("url", metavar="URL", help="the dataset: s3://, gs://, az:// or https://")
    add("--cache-dir", metavar="DIR", help="the cache (default: that of the loaders, ~/.cache/neurofmx_wds)")
    add(
        "--cache-size",
        metavar="BYTES",
        type=typed(positive),
        default=DEFAULT_CACHE_SIZE,
        help=f"bytes that it may take (default: {DEFAULT_CACHE_SIZE})",
    )


def _fetch(options: argparse.Namespace) -> int:
    from ..format.info import count, human_size
    from ..format.remote_shards import fetch_dataset

    n_shards, n_bytes = fetch_dataset(options.url, options.cache_dir, options.cache_size)
    show(f"{options.url}: {count(n_shards, 'shard')}, {human_size(n_bytes)}, are in the cache")
    return 0
