"""The command that shows what is in recordings and arrays before they are converted: ``inspect``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ..convert.inputs import find_inputs
from ..convert.sources import SourceConfig
from ..errors import SourceError
from .options import INPUT_HELP, add_options, as_usage, convert_options, flag_of, inputs_of
from .output import show, show_error, terminal_width

_EXAMPLES = """\
examples:
  python -m neurofmx_wds inspect session.nwb
  python -m neurofmx_wds inspect data/ --json
  python -m neurofmx_wds inspect session.nwb --align trials --before 0.5

With options of convert it shows what convert would take with them. Nothing is
written. Exit status: 0 all files were read; 1 one of them is at fault."""


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    command = commands.add_parser(
        "inspect",
        help="what is in recordings, before they are converted",
        description="Show what is in recordings and arrays: units, series, tables, events, and what convert takes.",
        epilog=_EXAMPLES,
    )
    command.usage = f"{command.prog} PATH [PATH ...] [--json] [--all] [options of convert]"
    command.set_defaults(run=_inspect, usage_error=command.error, without=("torch",))
    add = command.add_argument
    add("input", nargs="+", metavar="PATH", help=INPUT_HELP)
    add("--json", action="store_true", help="as JSON, for programs: one object a file, in a list")
    add("--all", action="store_true", help="every row of the tables")
    own = {each.name for each in SourceConfig.options()}
    add_options(command, [each.name for _, each in convert_options() if each.name not in own])


def _inspect(options: argparse.Namespace) -> int:
    given = {each.name: vars(options)[each.name] for each in SourceConfig.options() if each.name in options}
    try:
        config = SourceConfig.of(**given)
    except ValueError as error:
        options.usage_error(as_usage(error))
    return _show_json(options, config) if options.json else _show_text(options, config, given)


def _each(options: argparse.Namespace, config: SourceConfig, failures: list[SourceError]) -> Iterator[dict[str, Any]]:
    """Yield what each file holds; errors are collected."""
    from ..convert.inspect import inspect_file

    for path in find_inputs(inputs_of(options), config.format):
        try:
            yield inspect_file(path, config)
        except SourceError as error:
            failures.append(error)


def _show_json(options: argparse.Namespace, config: SourceConfig) -> int:
    import json

    failures: list[SourceError] = []
    found = [*_each(options, config, failures)]
    found += [{"path": each.file, "error": str(each)} for each in failures]
    show(json.dumps(found, indent=1))
    return _show_failures(failures)


def _show_text(options: argparse.Namespace, config: SourceConfig, given: Mapping[str, Any]) -> int:
    from .recording_text import MOST_ROWS, inspection_lines, overview

    failures: list[SourceError] = []
    seen: list[dict[str, Any]] = []
    width, most = terminal_width(), None if options.all else MOST_ROWS
    for found in _each(options, config, failures):
        if seen:
            show("")
        for line in inspection_lines(found, _command(found["path"], given), width, most):
            show(line)
        seen.append(found)
    if len(seen) > 1:
        show(f"\n{overview(seen, width)}")
    return _show_failures(failures)


def _show_failures(failures: list[SourceError]) -> int:
    for each in failures:
        show_error(f"error: {each}")
    return 1 if failures else 0


def _command(path: str, given: Mapping[str, Any]) -> str:
    """Return the command line that converts a file with the options that were typed."""
    words = ["python", "-m", "neurofmx_wds", "convert", "-i", path, "-o", "shards"]
    for name, value in given.items():
        words += _typed(name, value)
    return shlex.join(words)


def _typed(name: str, value: Any) -> list[str]:
    """Return an option as it is typed."""
    if value is True:
        return [flag_of(name)]
    if name == "intervals":
        return [word for pair in value for word in (flag_of(name), *map(_plain, pair))]
    return [flag_of(name), ",".join(value) if isinstance(value, tuple) else _plain(value)]


def _plain(value: Any) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)
