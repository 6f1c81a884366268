"""The commands that make a dataset of recordings and other files: ``convert``, ``append``, ``repair``."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from ..convert.config import Workers
from ..convert.options import options_of
from ..convert.settings_file import save_settings
from ..errors import NeurofmxError, OutputError
from ..storage.objects import is_bucket_url
from .options import INPUT_HELP, Request, add_options, as_usage, savable_options
from .output import show, show_error, show_problems

if TYPE_CHECKING:
    from ..convert.run import Conversion

_CONVERT_EXAMPLES = """\
examples:
  python -m neurofmx_wds convert -i session.nwb -o shards
  python -m neurofmx_wds convert -i data/*.nwb -o shards --bin-size-ms 20 \\
      --workers 4 --validate
  python -m neurofmx_wds convert -i session.nwb -o shards --align trials \\
      --event cue_start_time --before 0.5 --after 2
  python -m neurofmx_wds convert -i arrays.npz -o shards --shard-size 500
  python -m neurofmx_wds convert -i data/*.nwb -o sets \\
      --split train=0.8,val=0.1,test=0.1 --split-by subject
  python -m neurofmx_wds convert -i photos -o shards --format files
  python -m neurofmx_wds convert -i cifar-10-batches-py -o shards \\
      --format cifar10 --subset train

A run that was stopped goes on where it was when the same command is given
again. Exit status: 0 all done; 1 a file or the output is at fault (the other
files are converted); 2 wrong usage."""

_APPEND_EXAMPLES = """\
example:
  python -m neurofmx_wds append -i new.nwb -o shards

Give the settings that the dataset was made with. A recording that the dataset
has already is not added again."""

_REPAIR_EXAMPLES = """\
example:
  python -m neurofmx_wds repair -i data/*.nwb -o shards

Give the settings and the files that the dataset was made with."""

_JOBS = ("append", "repair", "link_group", "groups")


def add_commands(commands: Any) -> None:
    """Add the commands of this group."""
    _add(
        commands,
        "convert",
        help="recordings, arrays, files or images → shards",
        description="Cut recordings into windows, or take rows of arrays, files or images, and write them as shards.",
        epilog=_CONVERT_EXAMPLES,
    )
    command = _add(
        commands,
        "append",
        without=(*_JOBS, "overwrite", "task", "tasks"),
        help="more recordings → a dataset that is there",
        description="Add recordings to a dataset as new shards; those that are there stay as they are.",
        epilog=_APPEND_EXAMPLES,
    )
    command.set_defaults(append=True)
    command = _add(
        commands,
        "repair",
        without=(*_JOBS, "overwrite", "task", "tasks", "shares", "by", "dry_run", "validate"),
        help="make damaged shards of a dataset again",
        description="Read every byte of a dataset, and make its missing and damaged shards again, byte for byte.",
        epilog=_REPAIR_EXAMPLES,
    )
    command.set_defaults(repair=True)


def _add(commands: Any, name: str, without: tuple[str, ...] = (), **texts: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, **texts)
    command.usage = f"{command.prog} -i PATH [PATH ...] -o DIR [options]"
    again = "interrupted: what is finished is kept, and the same command goes on from there"
    command.set_defaults(run=run, usage_error=command.error, interrupted=again, without=("torch",))
    add = command.add_argument
    add("-i", "--input", nargs="+", action="extend", required=True, metavar="PATH", help=INPUT_HELP)
    add("-o", "--output", required=True, metavar="DIR", help="Directory of the dataset.")
    add("--all", dest="every", action="store_true", help="Show all notes on the inputs, not the first ones.")
    add_options(command, without)
    return command


def run(options: argparse.Namespace) -> int:
    """Do what was asked for: convert, append, repair, link a group, make a task's share, or only look."""
    try:
        request = Request.of(options)
    except NeurofmxError:  # a file is at fault, not the usage
        raise
    except ValueError as error:
        options.usage_error(as_usage(error))
    given = request.given
    if "validate" in given and is_bucket_url(os.fspath(request.output.directory)):
        remedy = "leave out --validate, and read the dataset once with checksums=True"
        raise OutputError("a dataset in a bucket cannot be validated yet", file=request.output.directory, remedy=remedy)
    if "save_config" in given:
        save_settings(given["save_config"], given, savable_options())
    if "link_group" in given:
        return _link_group(request)
    with _executor(given) as executor:
        count = {each.name: given[each.name] for each in options_of(Workers) if each.name in given}
        workers = Workers(**count, executor=executor, show_progress=not given["quiet"])
        if "dry_run" in given:
            return _dry_run(request, workers)
        if request.task is not None:
            return _share(request, workers)
        if "repair" in given:
            return _repair(request, workers)
        return _convert(request, workers)


def _executor(given: Mapping[str, Any]) -> contextlib.AbstractContextManager[Executor | None]:
    from ..storage.processes import dask_executor

    return dask_executor(given["dask"]) if "dask" in given else contextlib.nullcontext()


def _convert(request: Request, workers: Workers) -> int:
    from ..format.info import ShardedDatasetInfo

    conversions = _carry_out(request, workers)
    problems = []
    for directory, conversion in conversions.items():
        ShardedDatasetInfo(directory).print_summary(request.given["every"])
        problems += _validate(conversion, directory, workers) if "validate" in request.given else []
    if "validate" in request.given and not problems:
        show("\nvalidated: every byte was read, and samples compared with their sources")
    if all(each.existed for each in conversions.values()):
        show(f"\nnothing to do: {request.output.directory} holds this conversion already")
    failures = [failure for conversion in conversions.values() for failure in conversion.plan.failures]
    if "append" in request.given and not failures and not any(each.plan.n_samples for each in conversions.values()):
        show(f"\nnothing was added: {request.output.directory} has all of it already")
    status = _say_failures(failures, request)
    show_problems(problems)
    return 1 if problems else status


def _carry_out(request: Request, workers: Workers) -> dict[str, Conversion]:
    """Convert or append; the conversions by the directory of each dataset."""
    from ..convert.append import append
    from ..convert.run import convert
    from ..convert.split import append_split, convert_split

    files, output, config = request.files, request.output, request.config
    if request.split is None:
        one = append if "append" in request.given else convert
        return {str(output.directory): one(files, output, config, workers)}
    several = append_split if "append" in request.given else convert_split
    made = several(files, output, request.split, config, workers)
    return {os.path.join(output.directory, name): conversion for name, conversion in made.items()}


def _validate(conversion: Conversion, directory: str, workers: Workers) -> list[Any]:
    from ..convert.validate import compare_with_sources
    from ..format.verify import verify

    report = verify(directory, deep=True, workers=workers.workers)
    return report.problems + compare_with_sources(conversion, directory)


def _dry_run(request: Request, workers: Workers) -> int:
    from ..convert.estimate import preview
    from ..format.info import count, human_size
    from ..format.notes import note_lines

    plan, estimates = preview(request.files, request.output, request.config, workers, request.split)
    for name, found in estimates.items():
        show(f"{os.path.join(request.output.directory, name)}: nothing is written; it would get")
        for path, n_windows, size in found.sources:
            show(f"  {n_windows:>10,} window{'s' * (n_windows != 1):1}  {human_size(size):>10}  {path}")
        packed = " before compression" if request.output.compression != "none" else ""
        whole = f"{human_size(found.n_bytes):>10}{packed} in {count(found.n_shards, 'shard')}"
        show(f"  {found.n_samples:>10,} window{'s' * (found.n_samples != 1):1}  {whole}")
        show(f"  memory: up to about {human_size(found.memory_bytes)} a worker, beside the libraries'")
    read = [report for report in plan.reports() if "error" not in report]
    for line in note_lines(read, request.given["every"]):
        show(line)
    return _say_failures(plan.failures, request)


def _share(request: Request, workers: Workers) -> int:
    from ..convert.run import write_share

    task = request.task
    assert task is not None
    plan = write_share(request.files, request.output, task, request.config, workers)
    show(f"task {task.task} of {task.tasks} is done; when all are, give this command without --task to join them")
    return _say_failures(plan.failures, request)


def _repair(request: Request, workers: Workers) -> int:
    from ..convert.repair import repair

    made = repair(request.files, request.output, request.config, workers)
    show(f"{request.output.directory}: {'made again: ' + ', '.join(made) if made else 'nothing is damaged'}")
    return 0


def _link_group(request: Request) -> int:
    from .datasets import link

    given = request.given
    return link(given["input"][0], given["link_group"], given.get("groups"), request.output)


def _say_failures(failures: Any, request: Request) -> int:
    """Print what is wrong with files, and return the exit status."""
    from ..format.info import count

    if failures:
        show_error(f"\n{len(failures)} of {count(len(request.files), 'file')} could not be converted:")
    for failure in failures:
        show_error(f"error: {failure}")
    return 1 if failures else 0
