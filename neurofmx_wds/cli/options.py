"""What can be typed after ``convert``: the settings of a conversion as options, and the values made of what was typed.

Each setting is stated where it is used, in `convert`; here it gets its place in the help text. Prints nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..convert.config import Output, Split, Task, Workers
from ..convert.inputs import find_inputs, kinds_of, listed
from ..convert.options import NamedOption, Option, option, options_of
from ..convert.settings_file import read_settings
from ..convert.sources import ArrayConfig, FilesConfig, ImageConfig, SourceConfig, WindowConfig

INPUT_HELP = (
    "NWB, npz or npy files; patterns (also quoted); directories, which are searched for such files; URLs of these, "
    "such as 's3://bucket/*.nwb' or https://… (extra: cloud); directories of the kind that --format names; @FILE for "
    "the lines of a file, - for those of the standard input."
)


@dataclass(frozen=True)
class Actions:
    """What the command line can do beside converting."""

    dry_run: bool = option(
        False, Option("Write nothing; show what would be written: windows, shards, bytes, memory.", parse=bool)
    )
    validate: bool = option(
        False, Option("Afterwards read every byte, and compare samples with their sources.", parse=bool)
    )
    append: bool = option(
        False,
        Option(
            "The same as the command append: add to the dataset in DIR, or with --split to its splits, where sessions "
            "stay in theirs.",
            parse=bool,
            rare=True,
        ),
    )
    repair: bool = option(
        False,
        Option(
            "The same as the command repair: make damaged shards of the dataset in DIR again.", parse=bool, rare=True
        ),
    )
    link_group: str | None = option(
        None,
        Option(
            "The same as the command link-group, of the dataset given with --input.",
            metavar="GROUP",
            unset="off",
            rare=True,
        ),
    )
    groups: str | None = option(
        None,
        Option(
            "For --link-group: a YAML or JSON file with {dataset: {group: [labels]}}.",
            metavar="FILE",
            unset="groups.yaml or groups.json of the dataset",
            rare=True,
        ),
    )
    dask: str | None = option(
        None,
        Option("Work on the workers of this dask scheduler (extra: dask).", metavar="ADDRESS", unset="off", rare=True),
    )
    config: str | None = option(
        None,
        Option(
            "Take the settings in a YAML or JSON file, or those of a dataset, of its dataset_metadata.json; what is "
            "typed counts more.",
            metavar="FILE",
            unset="off",
            rare=True,
        ),
    )
    save_config: str | None = option(
        None,
        Option("Write the settings that were typed to a YAML or JSON file.", metavar="FILE", unset="off", rare=True),
    )


# Heading in the help text → what stands below it, each option once.
_GROUPS: Mapping[str, tuple[Any, ...]] = {
    "output": (Output, Workers),
    "input": (SourceConfig,),
    "windows of recordings, and of arrays along time": (WindowConfig,),
    "arrays": (ArrayConfig,),
    "directories of files and images": (FilesConfig, ImageConfig),
    "several datasets, several machines": (Split, Task),
    "other": (Actions,),
}

# Option → the one that it needs; option → those that it excludes, and why.
_NEEDS = {
    "event": "align", "before_s": "align", "after_s": "align", "by": "shares", "groups": "link_group",
    "task": "tasks", "tasks": "task",
}  # fmt: skip
_EXCLUDES = {
    "shares": (("task", "repair", "link_group"), ""),
    "append": (("overwrite", "repair", "link_group", "task"), ""),
    "repair": (("overwrite", "link_group", "task", "dry_run", "validate"), ""),
    "link_group": (("task", "dry_run", "validate"), ""),
    "task": (("dry_run", "validate"), ""),
    "sequence_length": (("align",), ", which makes one window for each event"),
    "overlap": (("align",), ", which makes one window for each event"),
}


def convert_options() -> Iterator[tuple[str, NamedOption]]:
    """Yield every option of ``convert``, each once, with its heading."""
    seen: set[str] = set()
    for heading, stated in _GROUPS.items():
        for each in (each for config in stated for each in options_of(config)):
            if each.name not in seen and each.typed:
                seen.add(each.name)
                yield heading, each


def add_options(command: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Give a command the options of ``convert``, but for those named; what is not typed is not in the result."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for heading, each in convert_options():
        if each.name not in without:
            group = groups.setdefault(heading, command.add_argument_group(heading))
            group.add_argument(each.typed or "", dest=each.name, default=argparse.SUPPRESS, **_how(each))


def _how(each: NamedOption) -> dict[str, Any]:
    help_text = help_of(each).replace("%", "%%")
    if each.parse is bool:
        return {"action": "store_true", "help": help_text}
    about: dict[str, Any] = {"type": typed(each.parse), "help": help_text}
    if each.choices:
        return {**about, "choices": each.choices}
    words = tuple(each.metavar.split())
    several = {"nargs": len(words), "metavar": words, "action": "append"} if len(words) > 1 else {}
    return {**about, "metavar": each.metavar, **several}


def help_of(each: NamedOption) -> str:
    """Return what the help text says of an option, with its default."""
    default = "" if each.parse is bool else f" Default: {default_of(each)}."
    return f"{each.help}{default}"


def default_of(each: NamedOption) -> str:
    """Return an option's default in words."""
    return each.unset or ("off" if each.parse is bool else f"{each.default:g}" if isinstance(each.default, float) else
                          str(each.default))  # fmt: skip


def typed(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser whose ValueError says what is wrong, as argparse wants it."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


@dataclass(frozen=True)
class Request:
    """What was asked for: the values made of what was typed.

    Attributes:
        given: what was typed, by name.
        files: the files meant.
        config: how they are read.
        output: where and how to write.
        split: into which datasets, if several.
        task: which share, if not all.
    """

    given: Mapping[str, Any]
    files: list[str]
    config: SourceConfig
    output: Output
    split: Split | None
    task: Task | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Request:
        """Make the values.

        Raises:
            ValueError: wrong usage: a value that cannot be, options that do not go together, or one that none of the
                files heeds. The message begins with the option's name.
        """
        given = vars(options)
        if "config" in given:
            given = {**read_settings(given["config"], savable_options()), **given}
        _check_together(given)
        config = SourceConfig.of(**_own(given, SourceConfig.options()))
        output = Output(options.output, **_own(given, options_of(Output)))
        split = Split(**_own(given, options_of(Split))) if "shares" in given else None
        task = Task(**_own(given, options_of(Task))) if "task" in given else None
        Workers(**_own(given, options_of(Workers)))
        if "link_group" in given:
            if len(options.input) > 1:
                raise ValueError("link_group: takes one --input, the directory of a dataset")
            return cls(given, [], config, output, split, task)
        files = find_inputs(inputs_of(options), config.format)
        kinds = kinds_of(files, config.format)
        if kinds is not None:
            config.refuse_unheeded(kinds)
        return cls(given, files, config, output, split, task)


def inputs_of(options: argparse.Namespace) -> list[str]:
    """Return the inputs that were typed, with what lists of them name."""
    return listed(options.input, os.fsdecode(sys.stdin.buffer.read()) if "-" in options.input else "")


def savable_options() -> list[NamedOption]:
    """Return the options that a file of settings can have: those that decide what is made, and of which size."""
    left_out = {each.name for config in (Actions, Task) for each in options_of(config)} | {"overwrite"}
    return [each for _, each in convert_options() if each.name not in left_out]


def _own(given: Mapping[str, Any], stated: Any) -> dict[str, Any]:
    return {each.name: given[each.name] for each in stated if each.name in given}


def _check_together(given: Mapping[str, Any]) -> None:
    for name, needed in _NEEDS.items():
        if name in given and needed not in given:
            raise ValueError(f"{name}: goes together with {flag_of(needed)}")
    for name, (others, why) in _EXCLUDES.items():
        for other in others:
            if name in given and other in given:
                raise ValueError(f"{name}: not together with {flag_of(other)}{why}")


def flag_of(name: str) -> str:
    """Return what a setting is called on the command line."""
    flags = {each.name: each.typed for _, each in convert_options()}
    return flags.get(name) or f"--{name.replace('_', '-')}"


def as_usage(error: ValueError) -> str:
    """Return the message of an error about a setting, which begins with its name, with that of the option."""
    return re.sub(r"^\w+", lambda found: flag_of(found[0]), str(error))


def option_table() -> str:
    """Return the options of ``convert`` as a Markdown table, as README has it: all but the rare ones."""
    rows = ["| `convert` option | default | means |", "|---|---|---|"]
    for each in (each for _, each in convert_options() if not each.rare):
        kinds = f" For {', '.join(each.kinds)}." if each.kinds else ""
        rows.append(f"| `{each.typed}` | {default_of(each)} | {each.help}{kinds} |")
    return "\n".join(rows)
