"""The commands that draw: ``view``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
