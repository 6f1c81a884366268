"""The commands that show what is in a dataset: ``info`` and ``read``."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any

from ..convert.options import positive
from ..convert.sources.kinds import format_by_name
from ..errors import CONVERT_FIRST, INSPECT, SourceError
from .options import typed
from .output import show, terminal_width

if TYPE_CHECKING:
    from ..loading.windows import Windows


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add_info(commands)
    _add_read(commands)
    _add_stats(commands)


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
    command.add_argument("--stats", action="store_true", help="statistics of each field (with --all, of each column)")
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
    elif options.stats:
        _show_statistics(options, info.get_summary())
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


def _show_statistics(options: argparse.Namespace, summary: dict[str, Any]) -> None:
    import json

    from ..format.info import statistics_lines

    if options.json:
        found = {
            source.get("path", ""): source["statistics"] for source in summary["sources"] if "statistics" in source
        }
        show(json.dumps(found, indent=1))
    else:
        show(statistics_lines(summary, options.every, terminal_width()))


def _add_stats(commands: Any) -> None:
    command = commands.add_parser(
        "stats",
        help="count, mean, standard deviation, … of each field",
        description="Count the samples of a dataset that was made before conversions did so, write the statistics into "
        "its manifest, and show them.",
        epilog="example:\n  python -m neurofmx_wds stats shards",
    )
    command.set_defaults(run=_stats)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of the dataset")
    add("--json", action="store_true", help="as JSON, for programs")
    add("--all", dest="every", action="store_true", help="of each column of each source")


def _stats(options: argparse.Namespace) -> int:
    from ..format.info import ShardedDatasetInfo
    from ..loading.statistics import count_dataset

    count_dataset(options.dir)
    _show_statistics(options, ShardedDatasetInfo(options.dir).get_summary())
    return 0


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
        epilog="examples:\n  python -m neurofmx_wds read shards -n 3\n"
        "  python -m neurofmx_wds read segments --window-s 1 --bin-ms 20",
    )
    command.set_defaults(run=_read, usage_error=command.error)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    add("-n", dest="most", type=typed(positive), default=10, metavar="N", help="how many samples (10)")
    add("--all", dest="most", action="store_const", const=None, help="all samples of all shards")
    cut = command.add_argument_group("windows cut from segments (a dataset made with --layout segments)")
    for flag, name, metavar, text in _OF_WINDOWS:
        cut.add_argument(flag, dest=f"windows_{name}", metavar=metavar, help=text)


#: Of `read`: flag, setting of :class:`~neurofmx_wds.Windows`, metavar and help.
_OF_WINDOWS = (
    ("--window-s", "length_s", "S", "seconds in a window"),
    ("--stride-s", "stride_s", "S", "seconds from the start of a window to the next (those in a window)"),
    ("--bin-ms", "bin_ms", "MS", "width of a bin (10)"),
    ("--spikes", "spikes", "FORM", "dense (default), ragged or events"),
    ("--align", "align", "TABLE", "one window around each row of a table of intervals or events, such as trials"),
    ("--event", "event", "COLUMN", "the column of that table with the time of the event (start_time)"),
    ("--before", "before_s", "S", "seconds from the start of a window to its event (0)"),
    ("--after", "after_s", "S", "seconds from the event to the end of its window (1)"),
    ("--within", "within", "TABLE", "only windows inside the rows of a table of intervals"),
)


def _read(options: argparse.Namespace) -> int:
    from .show import sample_lines

    _refuse_recording(options.dir)
    for line in sample_lines(options.dir, options.most, terminal_width(), _windows(options)):
        show(line)
    return 0


def _windows(options: argparse.Namespace) -> Windows | None:
    """Return how windows are cut, None if nothing was said; wrong usage exits."""
    from ..loading.windows import Windows

    given = {name: getattr(options, f"windows_{name}") for _, name, _, _ in _OF_WINDOWS}
    given = {name: value for name, value in given.items() if value is not None}
    if "align" in given:
        given.setdefault("after_s", "1")
    try:
        return Windows(**given) if given else None
    except ValueError as error:
        flags = {name: flag for flag, name, _, _ in _OF_WINDOWS}
        options.usage_error(re.sub(r"^\w+", lambda found: flags.get(found[0], found[0]), str(error)))
        raise
