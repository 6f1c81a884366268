"""The commands that draw: ``view`` and ``report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..convert.options import decimal, integer, positive
from ..convert.sources import SourceConfig
from .options import add_options, as_usage, convert_options, typed
from .output import show

if TYPE_CHECKING:
    from ..pictures.figure import Picture

_EXAMPLES = """\
examples:
  python -m neurofmx_wds view session.nwb                   a window
  python -m neurofmx_wds view session.nwb -o session.png --start 120 --seconds 5
  python -m neurofmx_wds view shards -o samples.html -n 12

In a window the arrow keys turn the pages. Without a screen, give --output."""


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add_view(commands)
    _add_report(commands)


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="one page about a dataset, for a wiki (extra: plot)",
        description="Write a self-contained HTML page about a dataset, or the datasets of a split: sources, what was "
        "left out, fields in numbers, distributions, samples drawn, how well shuffling mixes, how to load it.",
        epilog="examples:\n  python -m neurofmx_wds report shards -o report.html\n"
        "  python -m neurofmx_wds report sets/train sets/val sets/test -o report.html",
    )
    command.set_defaults(run=_report, usage_error=command.error)
    add = command.add_argument
    add("dirs", nargs="+", metavar="DIR", help="datasets, or one directory that holds the datasets of a split")
    add("-o", "--output", required=True, metavar="FILE", help="the page, FILE.html")
    add("--samples", type=typed(positive), default=256, metavar="N", help="samples read of each dataset (256)")
    add("--drawn", type=typed(positive), default=3, metavar="N", help="samples drawn of each dataset (3)")
    add("--seconds", type=typed(decimal), default=2.0, metavar="S", help="windows that are cut from segments (2)")
    add("--title", default="", metavar="TEXT", help="title of the page (the datasets' names)")


def _report(options: argparse.Namespace) -> int:
    from ..pictures.report import ReportOptions, report
    from ..storage.atomic import write_atomic

    try:
        chosen = ReportOptions(options.samples, options.drawn, options.seconds, options.title)
        if not options.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"output={options.output!r}: must end in .html")
    except ValueError as error:
        options.usage_error(as_usage(error))
    write_atomic(Path(options.output), report(options.dirs, chosen).encode())
    show(options.output)
    return 0


def _add_view(commands: Any) -> None:
    command = commands.add_parser(
        "view",
        help="a recording or the samples of a dataset, drawn (extra: plot)",
        description="Draw a stretch of a recording, or samples of a dataset: spikes by population, traces, events, "
        "frames, and what was measured when.",
        epilog=_EXAMPLES,
    )
    command.usage = f"{command.prog} PATH [-o FILE] [-n N] [options]"
    command.set_defaults(run=_view, usage_error=command.error)
    add = command.add_argument
    add("path", metavar="PATH", help="a dataset's directory, or an NWB, npz or npy file or its URL")
    add("-o", "--output", metavar="FILE", help="write .png, .svg, .pdf or .html, instead of a window")
    add("-n", type=typed(positive), metavar="N", help="how many pictures (1 in a file; all in a window)")
    add("--sample", type=typed(integer), default=0, metavar="I", help="the first picture, from 0 (0)")
    add("--start", type=typed(decimal), metavar="S", help="where the first picture of a recording begins, in seconds "
        "(the middle of where everything was measured)")  # fmt: skip
    add("--seconds", type=typed(decimal), metavar="S", help="length of a picture of a recording (10), or of a window "
        "that is cut from segments (2)")  # fmt: skip
    own = {each.name for each in SourceConfig.options()}
    add_options(command, [each.name for _, each in convert_options() if each.name not in own])


def _view(options: argparse.Namespace) -> int:
    from ..pictures.figure import check_suffix, save, show_window
    from ..pictures.opening import ViewOptions, open_pictures

    given = {each.name: vars(options)[each.name] for each in SourceConfig.options() if each.name in options}
    try:
        chosen = ViewOptions(options.seconds, options.start, SourceConfig.of(**given))
        if options.output is not None:
            check_suffix(options.output)
    except ValueError as error:
        options.usage_error(as_usage(error))
    with open_pictures(options.path, chosen) as pictures:
        most = options.n or (None if options.output is None else 1)
        pages = _pages(options, pictures, most)
        if options.output is None:
            show_window(pages)
        else:
            for path in save(pages, options.output):
                show(str(path))
    return 0


def _pages(options: argparse.Namespace, pictures: Sequence[Picture], most: int | None) -> Sequence[Picture]:
    first, n = options.sample, len(pictures)
    if not 0 <= first < n:
        options.usage_error(f"--sample {first}: must be from 0 to {n - 1}")
    if first == 0 and most is None:
        return pictures
    return pictures[first : n if most is None else first + most]
