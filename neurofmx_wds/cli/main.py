"""The commands: what people type and what they see. Everything is done elsewhere, and imported when it is needed.

Knows only the package's public functions; holds no logic of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from ..convert.sources import SourceConfig
from ..errors import NeurofmxError, hide_secrets, missing_package
from ..storage.processes import block_imports
from ..version import __version__
from .options import EXAMPLES, add_options, check_files, check_ways, files_meant, positive
from .output import show, show_error

_MOST_PROBLEMS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: as on the command line, without the program's name; by default what was typed.

    Returns:
        The exit status: 0 done, 1 the data or a file is at fault, 130 interrupted, 143 terminated. Wrong usage exits
        with 2.
    """
    if arguments is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # it need not know every letter of a file's name
    options = _parser().parse_args(arguments)
    reads_any = getattr(options, "validate", False) and options.format == "files"  # among them torch's own
    if arguments is None and not reads_any:
        block_imports(getattr(options, "without", ()))  # in a process of our own: it starts in half the time
    try:
        with _termination_as_an_exception():
            status: int = options.run(options)
            sys.stdout.flush()
            return status
    except (KeyboardInterrupt, _Terminated) as stop:
        show_error(getattr(options, "interrupted", "interrupted"))
        return 143 if isinstance(stop, _Terminated) else 130
    except BrokenPipeError:  # the reader of our output has gone, as in `info … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        show_error(f"error: {hide_secrets(_told(error))}")
        return 1


class _Terminated(BaseException):
    """SIGTERM has come, as from a batch system: what was begun is cleaned up, as with Ctrl-C."""


@contextlib.contextmanager
def _termination_as_an_exception() -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; SIGKILL still ends it
        for worker in multiprocessing.active_children():  # Ctrl-C reaches them by itself
            worker.terminate()
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(error: Exception) -> str:
    error = missing_package(error) or error
    if isinstance(error, NeurofmxError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    return f"unexpected {type(error).__name__}: {error} (run again with --debug to see where, and report it)"


def _width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _parser() -> argparse.ArgumentParser:
    program = "python -m neurofmx_wds" if Path(sys.argv[0]).name == "__main__.py" else None
    parser = argparse.ArgumentParser(
        prog=program,
        description="Neural recordings (NWB) and arrays to WebDataset shards, for resumable PyTorch training.",
        epilog="`COMMAND --help` tells more of each, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"neurofmx_wds {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add in (_add_convert, _add_merge, _add_info, _add_read, _add_verify, _add_index, _add_export, _add_demo):
        command = add(commands)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_convert(commands: Any) -> argparse.ArgumentParser:
    text = "Cut recordings into windows, or take rows of arrays, files or images, and write them as shards."
    command: argparse.ArgumentParser = commands.add_parser(
        "convert", help="recordings, arrays, files or images → shards", description=text, epilog=EXAMPLES
    )
    again = "interrupted: what is finished is kept, and the same command goes on from there"
    command.set_defaults(run=_convert, usage_error=command.error, interrupted=again, without=("torch",))
    add_options(command)
    return command


def _convert(options: argparse.Namespace) -> int:
    from ..convert.plan import ConversionPlan
    from ..format.info import ShardedDatasetInfo
    from ..storage.processes import dask_executor

    given = vars(options)
    storage = {name: given[name] for name in ("shard_size", "compression", "key_prefix")}
    try:
        check_ways(options)
        config = SourceConfig(**{f.name: given[f.name] for f in fields(SourceConfig) if f.name in given})
        ConversionPlan((), config, **storage)
    except ValueError as error:
        _refuse(options, error)
    if options.link_group:
        return _link_group(options)
    files = files_meant(options.input, options.format)
    try:
        check_files(options, files)
    except ValueError as error:
        _refuse(options, error)
    with dask_executor(options.dask) if options.dask else contextlib.nullcontext() as executor:
        pool = {"workers": options.workers, "executor": executor}
        if options.dry_run:
            return _dry_run(options, files, config, storage, pool)
        if options.task is not None:
            return _share(options, files, config, storage, pool)
        if options.repair:
            return _repair(options, files, config, {**storage, **pool})
        conversions = _carry_out(options, files, config, storage, pool)
    problems = []
    for directory, conversion in conversions.items():
        ShardedDatasetInfo(directory).print_summary()
        problems += _validate(conversion, directory, options.workers) if options.validate else []
    if options.validate and not problems:
        show("\nvalidated: every byte was read, and samples compared with their sources")
    failures = [failure for conversion in conversions.values() for failure in conversion.plan.failures]
    if options.append and not failures and not any(each.plan.n_samples for each in conversions.values()):
        show(f"\nnothing was added: {options.output} has all of it already")
    _show_failures(failures, len(files))
    _show_problems(problems)
    return 1 if failures or problems else 0


def _link_group(options: argparse.Namespace) -> int:
    from ..convert.link import link_group
    from ..format.info import ShardedDatasetInfo

    link_group(options.input[0], options.output, options.link_group, options.groups, overwrite=options.overwrite)
    ShardedDatasetInfo(options.output).print_summary()
    return 0


def _carry_out(options: argparse.Namespace, files: Any, config: Any, storage: Any, pool: Any) -> dict[str, Any]:
    """The conversion asked for, by the directory of each dataset that it made."""
    from ..convert.merge import append
    from ..convert.run import convert
    from ..convert.split import append_split, convert_split

    how = {**pool, **storage, "show_progress": True}
    if options.append and not options.split:
        return {options.output: append(files, options.output, config, **how)}
    how |= {} if options.append else {"overwrite": options.overwrite}
    if options.split:
        grow = append_split if options.append else convert_split
        made = grow(files, options.output, options.split, options.split_by or "session", config, **how)
        return {os.path.join(options.output, name): conversion for name, conversion in made.items()}
    return {options.output: convert(files, options.output, config, **how)}


def _validate(conversion: Any, directory: str, workers: int) -> list[Any]:
    from ..convert.run import compare_with_sources
    from ..format.verify import verify

    return verify(directory, deep=True, workers=workers).problems + compare_with_sources(conversion, directory)


def _dry_run(options: argparse.Namespace, files: Any, config: Any, storage: Any, pool: Any) -> int:
    from ..convert.estimate import estimate
    from ..convert.plan import ConversionPlan
    from ..convert.run import look_at, working
    from ..convert.split import split
    from ..format.info import human_size
    from ..storage.atomic import refuse_url

    refuse_url(options.output)
    with working(**pool) as apply:
        plan = ConversionPlan(look_at(files, config, apply, True), config, **storage)
        plans = split(plan, options.split, options.split_by or "session", apply) if options.split else {"": plan}
        for name, part in plans.items():
            found = estimate(part, apply)
            show(f"{os.path.join(options.output, name)}: nothing is written; it would get")
            for path, count, size in found.sources:
                show(f"  {count:>10,} windows  {human_size(size):>10}  {path}")
            packed = " before compression" if options.compression != "none" else ""
            whole = f"{human_size(found.n_bytes):>10}{packed} in {found.n_shards:,} shards"
            show(f"  {found.n_samples:>10,} windows  {whole}")
            show(f"  memory: up to about {human_size(found.memory_bytes)} a worker, beside the libraries'")
    _show_failures(plan.failures, len(files))
    return 1 if plan.failures else 0


def _share(options: argparse.Namespace, files: Any, config: Any, storage: Any, pool: Any) -> int:
    from ..convert.run import write_share

    numbers = {"task": options.task, "tasks": options.tasks, "overwrite": options.overwrite}
    plan = write_share(files, options.output, config, **numbers, **pool, **storage, show_progress=True)
    show(f"task {options.task} of {options.tasks} is done; when all are, give this command without --task to join them")
    _show_failures(plan.failures, len(files))
    return 1 if plan.failures else 0


def _repair(options: argparse.Namespace, files: Any, config: Any, how: Any) -> int:
    from ..convert.repair import repair

    made = repair(files, options.output, config, show_progress=True, **how)
    show(f"{options.output}: {'made again: ' + ', '.join(made) if made else 'nothing is damaged'}")
    return 0


def _show_failures(failures: Sequence[Exception], total: int) -> None:
    if failures:
        show_error(f"\n{len(failures)} of {total} files could not be converted:")
    for failure in failures:
        show_error(f"error: {failure}")


def _refuse(options: argparse.Namespace, error: ValueError) -> NoReturn:
    """Wrong usage: the message begins with the setting's name, which is the option's."""
    name = re.sub(r"^\w+", lambda found: "--" + found[0].replace("_", "-"), str(error))
    options.usage_error(re.sub(r"^--(interval|before|after)(s|-s)\b", r"--\1", name))
    raise AssertionError  # argparse has left


def _add_merge(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "merge",
        help="several datasets → one",
        description="Join datasets into a new one that holds their shards, without writing a tar again.",
        epilog="example:\n  python -m neurofmx_wds merge monday tuesday -o both --repeat-keys",
    )
    command.set_defaults(run=_merge, without=("torch",))
    add = command.add_argument
    add("datasets", nargs="+", metavar="DATASET", help="directories of shards, in the order wanted")
    add("-o", "--output", required=True, metavar="DIR", help="directory of the new dataset")
    add("--overwrite", action="store_true", help="replace what is in DIR, in one step")
    ways = command.add_mutually_exclusive_group()
    ways.add_argument("--link", dest="how", action="store_const", const="link", help="hard links: no space (default)")
    ways.add_argument("--copy", dest="how", action="store_const", const="copy", help="copies, also across file systems")
    command.set_defaults(how="link")
    add("--repeat-keys", action="store_true", help="let the datasets have keys in common, instead of refusing it")
    return command


def _merge(options: argparse.Namespace) -> int:
    from ..convert.merge import merge
    from ..format.info import ShardedDatasetInfo

    given = {name: vars(options)[name] for name in ("how", "overwrite", "repeat_keys")}
    merge(options.datasets, options.output, **given)
    ShardedDatasetInfo(options.output).print_summary()
    return 0


def _add_info(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="what a dataset holds",
        description="Show what a dataset holds: modalities, samples, shards, sizes, sources.",
        epilog="example:\n  python -m neurofmx_wds info shards",
    )
    command.set_defaults(run=_info)
    command.add_argument("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    command.add_argument("--json", action="store_true", help="as JSON, for programs")
    return command


def _info(options: argparse.Namespace) -> int:
    import json

    from ..format.info import ShardedDatasetInfo

    info = ShardedDatasetInfo(options.dir)
    if options.json:
        show(json.dumps(info.get_summary(), indent=1))
    else:
        info.print_summary()
    return 0


def _add_read(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "read",
        help="what single samples hold, for a look by eye",
        description="Show samples in the order in which they are stored: key, texts, image sizes, shapes of arrays.",
        epilog="example:\n  python -m neurofmx_wds read shards -n 3",
    )
    command.set_defaults(run=_read)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    add("-n", dest="most", type=positive, default=10, metavar="N", help="how many samples (10)")
    add("--all", dest="most", action="store_const", const=None, help="all samples of all shards")
    return command


def _read(options: argparse.Namespace) -> int:
    from .show import sample_lines

    for line in sample_lines(options.dir, options.most, _width()):
        show(line)
    return 0


def _add_verify(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "verify",
        help="whether a dataset is whole",
        description="Check a dataset's manifest, shards and indexes against each other.",
        epilog="example:\n  python -m neurofmx_wds verify shards --deep --workers 4\n\n"
        "Exit status: 0 all is well; 1 it is not.",
    )
    command.set_defaults(run=_verify)
    command.add_argument("dir", metavar="DIR", help="directory of the dataset, with a manifest or without")
    command.add_argument("--deep", action="store_true", help="read every byte: checksums, every member, every key")
    command.add_argument("--workers", type=positive, default=1, metavar="N", help="processes to check with (1)")
    return command


def _verify(options: argparse.Namespace) -> int:
    from ..format.info import count, human_size
    from ..format.verify import verify

    report = verify(options.dir, options.deep, options.workers, show_progress=True)
    looked_at = f"{count(report.shards, 'shard')}, {count(report.samples, 'sample')}, {human_size(report.n_bytes)}"
    how = f"every byte read, {count(report.members, 'member')} decoded" if report.deep else "sizes and indexes compared"
    show(f"{options.dir}: {looked_at}; {how}: {'all is well' if report.ok else count(len(report.problems), 'problem')}")
    _show_problems(report.problems)
    return 0 if report.ok else 1


def _show_problems(problems: Sequence[object]) -> None:
    for problem in problems[:_MOST_PROBLEMS]:
        show_error(f"error: {problem}")
    if len(problems) > _MOST_PROBLEMS:
        show_error(f"and {len(problems) - _MOST_PROBLEMS} more")


def _add_index(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "index",
        help="write the indexes that shards lack",
        description="Write the sidecar index of every shard that has none, also of shards made by plain webdataset.",
        epilog="examples:\n  python -m neurofmx_wds index shards\n  python -m neurofmx_wds index shards --repair",
    )
    command.set_defaults(run=_index)
    command.add_argument("dir", metavar="DIR", help="directory of tars")
    command.add_argument("--repair", action="store_true", help="also make damaged and wrong indexes anew")
    command.add_argument("--workers", type=positive, default=1, metavar="N", help="processes to work with (1)")
    return command


def _index(options: argparse.Namespace) -> int:
    from ..format.info import count
    from ..format.verify import write_indexes

    report = write_indexes(options.dir, options.repair, options.workers)
    written = f"{len(report.made)} {'index' if len(report.made) == 1 else 'indexes'} written"
    show(f"{options.dir}: {written}, {count(report.kept, 'shard')} had a good one")
    _show_problems(report.problems)
    return 1 if report.problems else 0


def _add_export(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="index files for wids and NVIDIA DALI",
        description="Write what wids (shardindex.json) and NVIDIA DALI (an .idx for each shard) need to read the\n"
        "shards, or one of the two. Give it again when the dataset has grown.",
        epilog="example:\n  python -m neurofmx_wds export shards --dali",
    )
    command.set_defaults(run=_export)
    add = command.add_argument
    add("dir", metavar="DIR", help="directory of uncompressed shards, with a manifest or without")
    add("--wids", action="store_true", help="for wids.ShardListDataset")
    add("--dali", action="store_true", help="for DALI's fn.readers.webdataset, in the format of its wds2idx")
    add("-o", "--output", metavar="DIR", help="where to write them (beside the shards)")
    return command


def _export(options: argparse.Namespace) -> int:
    from ..format.export import export
    from ..format.info import count

    both = options.wids == options.dali
    written = export(options.dir, options.wids or both, options.dali or both, options.output)
    show(f"{written[0].parent if written else options.dir}: {count(len(written), 'index file')} written")
    return 0


def _add_demo(commands: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
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
    return command


def _demo(options: argparse.Namespace) -> int:
    from ..demo import check_arguments, run

    try:
        check_arguments(options.seconds, options.epochs, options.seed)
    except ValueError as error:
        _refuse(options, error)
    found = run(options.output, seconds=options.seconds, epochs=options.epochs, seed=options.seed, report=show)
    return 0 if found["identical"] else 1
