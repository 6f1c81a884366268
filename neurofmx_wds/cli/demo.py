"""The command ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .options import as_usage
from .output import show


def add_commands(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "demo",
        help="see it all work, from recording to resumed training",
        description="Make a recording, convert it, train a decoder, kill it in mid-epoch, resume it, and compare the "
        "batches it saw\nwith those of an uninterrupted run.",
        epilog="example:\n  python -m neurofmx_wds demo --output neurofmx_demo",
    )
    command.set_defaults(run=_demo, usage_error=command.error)
    add = command.add_argument
    add("--output", type=Path, default=Path("neurofmx_demo"), metavar="DIR", help="for all it makes (neurofmx_demo)")
    add("--seconds", type=float, default=240, metavar="S", help="length of the recording (240)")
    add("--epochs", type=int, default=12, metavar="N", help="passes over the recording (12)")
    add("--seed", type=int, default=0, metavar="N", help="of the recording, the model and the order (0)")


def _demo(options: argparse.Namespace) -> int:
    from ..demo import check_arguments, run

    try:
        check_arguments(options.seconds, options.epochs, options.seed)
    except ValueError as error:
        options.usage_error(as_usage(error))
    found = run(options.output, seconds=options.seconds, epochs=options.epochs, seed=options.seed, report=show)
    return 0 if found["identical"] else 1
