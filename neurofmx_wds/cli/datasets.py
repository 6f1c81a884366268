"""The commands that make a dataset of other datasets: ``merge`` and ``link-group``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..convert.config import Output


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add_merge(commands)
    _add_link_group(commands)


def _add_merge(commands: Any) -> None:
    command = commands.add_parser(
        "merge",
        help="several datasets → one",
        description="Join datasets into a new one that holds their shards, without writing a tar again.",
        epilog="example:\n  python -m neurofmx_wds merge monday tuesday -o both --repeat-keys",
    )
    command.set_defaults(run=_merge, without=("torch",))
    add = command.add_argument
    add("datasets", nargs="+", metavar="DATASET", help="directories of shards, in the order wanted")
    _add_output(command)
    ways = command.add_mutually_exclusive_group()
    ways.add_argument("--link", dest="how", action="store_const", const="link", help="hard links: no space (default)")
    ways.add_argument("--copy", dest="how", action="store_const", const="copy", help="copies, also across file systems")
    command.set_defaults(how="link")
    add("--repeat-keys", action="store_true", help="let the datasets have keys in common, instead of refusing it")


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="directory of the new dataset")
    command.add_argument("--overwrite", action="store_true", help="replace an existing dataset in DIR, in one step")


def _merge(options: argparse.Namespace) -> int:
    from ..convert.merge import merge
    from ..format.info import ShardedDatasetInfo

    given = {name: vars(options)[name] for name in ("how", "overwrite", "repeat_keys")}
    merge(options.datasets, options.output, **given)
    ShardedDatasetInfo(options.output).print_summary()
    return 0


def _add_link_group(commands: Any) -> None:
    command = commands.add_parser(
        "link-group",
        help="a few labels of a dataset → one of links",
        description="Make a dataset that has only the samples of a group of labels: links to the shards, no copies.",
        epilog="example:\n  python -m neurofmx_wds link-group shards rest -o rest --groups groups.yaml",
    )
    command.set_defaults(run=lambda options: link(options.dataset, options.group, options.groups, _output(options)))
    command.add_argument("dataset", metavar="DATASET", help="directory of the dataset")
    command.add_argument("group", metavar="GROUP", help="name of the group")
    _add_output(command)
    command.add_argument(
        "--groups",
        metavar="FILE",
        help="YAML or JSON: {dataset: {group: [labels]}} (default: groups.yaml or groups.json in DATASET)",
    )


def _output(options: argparse.Namespace) -> Output:
    return Output(options.output, options.overwrite)


def link(dataset: str | os.PathLike[str], group: str, groups: Any, output: Output) -> int:
    """Make the dataset of a group, and show what it holds."""
    from ..convert.link import link_group
    from ..format.info import ShardedDatasetInfo

    link_group(dataset, output.directory, group, groups, overwrite=output.overwrite)
    ShardedDatasetInfo(output.directory).print_summary()
    return 0
