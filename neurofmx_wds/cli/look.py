"""The commands that show what is in a dataset: ``info`` and ``read``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..convert.options import positive
from ..convert.sources.kinds import format_by_name
from ..errors import CONVERT_FIRST, INSPECT, SourceError
from .options import typed
from .output import show, terminal_width


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add_info(commands)
    _add_read(commands)


def _add_info(commands: Any) -> None:
    command = commands.add_parser(
        "info",
        help="what a dataset holds",
        description="Show what a dataset holds: modalities, samples, shards, sizes, sources.",
        epilog="example:\n  python -m neurofmx_wds info shards",
    )
    command.set_defaults(run=_info)
    command.add_argument("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    command.add_argument("--json", action="store_true", help="as JSON, for programs")
    command.add_argument(
        "--all", dest="every", action="store_true", help="all notes on the sources, not the first ones"
    )
    command.add_argument(
        "--units",
        nargs="?",
        const="",
        metavar="EXPR",
        help="the table of units; or only those for which this is true, such as 'quality == \"good\"'",
    )


def _info(options: argparse.Namespace) -> int:
    import json

    from ..format.info import ShardedDatasetInfo

    _refuse_recording(options.dir)
    info = ShardedDatasetInfo(options.dir)
    if options.units is not None:
        _show_units(options, info.get_summary()["sources"])
    elif options.json:
        show(json.dumps(info.get_summary(), indent=1))
    else:
        info.print_summary(options.every)
    return 0


def _refuse_recording(path: str) -> None:
    """Raise a SourceError if this is the name of a file that can be converted, not of a dataset."""
    kind = format_by_name(path)
    if kind and os.path.exists(path):
        problem = f"is an {kind} file, not a dataset of shards"
        raise SourceError(problem, file=path, remedy=f"{INSPECT}, or {CONVERT_FIRST}")


def _show_units(options: argparse.Namespace, sources: list[dict[str, Any]]) -> None:
    import json

    from ..format.info import unit_lines
    from ..loading.sessions import Sessions

    sessions = Sessions(sources, options.dir)
    units = (sessions.choose(options.units) if options.units else sessions).table
    show(json.dumps(units, indent=1) if options.json else unit_lines(units, terminal_width()))


def _add_read(commands: Any) -> None:
    command = commands.add_parser(
        "read",
        help="what single samples hold, for a look by eye",
        description="Show samples in the order in which they are stored: key, texts, image sizes, shapes of arrays.",
        epilog="example:\n  python -m neurofmx_wds read shards -n 3",
    )
    command.set_defaults(run=_read)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    add("-n", dest="most", type=typed(positive), default=10, metavar="N", help="how many samples (10)")
    add("--all", dest="most", action="store_const", const=None, help="all samples of all shards")


def _read(options: argparse.Namespace) -> int:
    from .show import sample_lines

    _refuse_recording(options.dir)
    for line in sample_lines(options.dir, options.most, terminal_width()):
        show(line)
    return 0
