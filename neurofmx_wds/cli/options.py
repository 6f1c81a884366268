"""What ``convert`` can be told: its options, which of them go together, and which files are meant.

Knows what can be set, not what it does; prints nothing.
"""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from ..convert.sources import (
    BEHAVIOR_METHODS,
    DIRECTORY_FORMATS,
    FILE_FORMATS,
    FORMATS,
    LFP_METHODS,
    SPIKE_FORMATS,
    SUBSETS,
    SourceConfig,
    format_of,
)
from ..errors import SourceError
from ..storage.location import expand, is_url, is_zarr

EXAMPLES = """\
examples:
  python -m neurofmx_wds convert -i session.nwb -o shards
  python -m neurofmx_wds convert -i data/*.nwb -o shards --bin-size-ms 20 --workers 4 --validate
  python -m neurofmx_wds convert -i session.nwb -o shards --align trials --event cue_start_time --before 0.5 --after 2
  python -m neurofmx_wds convert -i arrays.npz -o shards --shard-size 500 --compression gz
  python -m neurofmx_wds convert -i data/*.nwb -o sets --split train=0.8,val=0.1,test=0.1 --split-by subject
  python -m neurofmx_wds convert -i new.nwb -o shards --append
  python -m neurofmx_wds convert -i photos -o shards --format files --workers 4
  python -m neurofmx_wds convert -i cifar-10-batches-py -o shards --format cifar10 --subset train

A run that was stopped goes on where it was when the same command is given again.
Exit status: 0 all done; 1 a file or the output is at fault (what is good is converted); 2 wrong usage."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    default = SourceConfig()
    add = command.add_argument
    add(
        "-i",
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="NWB, npz or npy files; patterns (also quoted); directories, which are searched for such files; all this "
        "also as URLs, such as 's3://bucket/*.nwb' or https://… (extra: cloud); or the directories that hold what "
        "--format names",
    )
    add("-o", "--output", required=True, metavar="DIR", help="directory of the new dataset")
    add("--overwrite", action="store_true", help="replace what is in DIR, in one step, when all is done")
    add("--dry-run", action="store_true", help="only look, and say what would be written: windows, shards, bytes")
    add("--workers", type=positive, default=1, metavar="N", help="processes to work with; the result is the same (1)")
    add("--validate", action="store_true", help="afterwards read every byte, and compare samples with their sources")
    add("--format", choices=FORMATS, default=default.format, help="what the files are (auto: by name or first bytes)")

    _add_ways(command)
    group = command.add_argument_group("shards")
    add = group.add_argument
    add("--key-prefix", default="sample_", metavar="TEXT", help="what samples' keys begin with (sample_)")
    add("--shard-size", type=int, default=1000, metavar="N", help="samples per shard (1000)")
    add("--compression", choices=("none", "gz", "bz2", "xz"), default="none", help="of whole shards (none: fastest)")

    group = command.add_argument_group("windows of NWB recordings")
    add = group.add_argument
    add(
        "--modalities",
        type=_names,
        metavar="A,B",
        default=default.modalities,
        help="which to take: spikes, behavior, lfp, ophys, events, video, or paths of series in the file (the first "
        "decides where windows are); icephys alone: intracellular sweeps; or an npz's arrays, or the extensions that a "
        "sample of files has (all)",
    )
    add(
        "--bin-size-ms",
        type=_milliseconds,
        default=default.bin_size_ms,
        metavar="MS",
        help="bin width, such as 20 or 100/3 (10)",
    )
    add("--sequence-length", type=int, default=argparse.SUPPRESS, metavar="N", help="bins in a window (100)")
    add(
        "--overlap",
        type=float,
        default=argparse.SUPPRESS,
        metavar="O",
        help="share of neighbouring windows, [0, 1) (0.5)",
    )
    add(
        "--interval",
        dest="intervals",
        nargs=2,
        type=float,
        action="append",
        metavar=("START", "STOP"),
        help="keep windows inside these seconds; may be given several times",
    )
    add("--spike-dtype", default=default.spike_dtype, metavar="DTYPE", help="of spike counts (float32), or e.g. uint8")
    add("--spike-format", choices=SPIKE_FORMATS, default="dense", help="counts in bins, or each spike's time (dense)")
    add("--time-scale", default=default.time_scale, metavar="S", help="seconds per unit of spike times (1), as 1/30000")
    add("--behavior-method", choices=BEHAVIOR_METHODS, default="auto", help="how behavior comes into the bins (auto)")
    add("--lfp-method", choices=LFP_METHODS, default="auto", help="how LFP does; native keeps its own rate (auto)")
    add("--decode-video", action="store_true", help="decode video files beside the recording (extra: video)")
    add(
        "--max-gap-s",
        type=float,
        default=default.max_gap_s,
        metavar="S",
        help="no interpolation over longer gaps (0.25)",
    )

    group = command.add_argument_group("windows around events")
    add = group.add_argument
    add("--align", metavar="TABLE", help="one window for each row of a table of intervals, such as trials")
    add("--event", default=argparse.SUPPRESS, metavar="COLUMN", help="its column of times to align to (start_time)")
    add("--before", dest="before_s", default=argparse.SUPPRESS, metavar="S", help="seconds before the event (0)")
    add("--after", dest="after_s", default=argparse.SUPPRESS, metavar="S", help="seconds after it (1)")

    group = command.add_argument_group("arrays")
    add = group.add_argument
    add("--field", default=default.field, metavar="NAME", help="name of an npy file's field (data)")
    add("--rate", type=float, metavar="HZ", help="rows are samples in time at this rate, to be cut into windows")
    add("--timestamps", metavar="NAME", help="the npz's array with each row's time in seconds, instead of a rate")

    group = command.add_argument_group("directories of files and images")
    add = group.add_argument
    add(
        "--allow-missing",
        action="store_true",
        help="skip and count incomplete samples (files), or what is no image (imagefolder)",
    )
    add("--keep-encoded", action="store_true", help="image files as they are, not their pixels (imagefolder)")
    add("--subset", choices=SUBSETS, default=default.subset, help="of mnist and cifar (all)")


def _add_ways(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("growing, splitting, many machines")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--append", action="store_true", help="add to the dataset in DIR, or to its splits, made with the same settings"
    )
    one.add_argument(
        "--repair",
        action="store_true",
        help="read every byte of the dataset in DIR, made of these files with these settings, and make its damaged "
        "shards again",
    )
    group.add_argument(
        "--split",
        type=_shares,
        metavar="NAME=SHARE,…",
        help="into several datasets, DIR/NAME each, such as train=0.8,val=0.1,test=0.1; no bin is in two",
    )
    one.add_argument(
        "--task",
        type=int,
        metavar="I",
        help="only make the share of task I (from 0) of a job array; the same command without --task, when all tasks "
        "have ended, joins the shares",
    )
    group.add_argument("--tasks", type=positive, metavar="N", help="how many tasks there are")
    group.add_argument(
        "--split-by",
        choices=("session", "subject", "time"),
        help="what stays in one dataset; time: contiguous blocks with a window left out between them (session)",
    )
    one.add_argument(
        "--link-group",
        metavar="GROUP",
        help="of the dataset given with --input, make one that has only the samples of a group of labels: links to its "
        "shards, no copies",
    )
    group.add_argument(
        "--groups",
        metavar="FILE",
        help="YAML or JSON: {dataset: {group: [labels]}} (the dataset's own groups.yaml or groups.json)",
    )
    group.add_argument("--dask", metavar="ADDRESS", help="work on the workers of this dask scheduler (extra: dask)")


def check_ways(options: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: naming one of them.
    """
    for way in ("append", "repair"):
        if vars(options)[way] and options.overwrite:
            raise ValueError(f"{way}: not together with --overwrite")
    if (options.task is None) != (options.tasks is None):
        raise ValueError("task: goes together with --tasks")
    if options.task is not None and not 0 <= options.task < options.tasks:
        raise ValueError(f"task {options.task}: must be at least 0 and less than --tasks {options.tasks}")
    if options.link_group and len(options.input) > 1:
        raise ValueError("link-group: goes together with one --input, a dataset's directory")
    if options.groups and not options.link_group:
        raise ValueError("groups: goes together with --link-group")
    if options.split and (options.task is not None or options.repair or options.link_group):
        raise ValueError("split: not together with --task, --repair or --link-group")
    for way in ("repair", "link_group", "tasks"):
        if vars(options)[way] and (options.dry_run or options.validate):
            raise ValueError(f"{way}: not together with --dry-run or --validate")
    if options.split_by and not options.split:
        raise ValueError("split_by: goes together with --split")
    for name in ("event", "before_s", "after_s"):
        if name in options and not options.align:
            raise ValueError(f"{name}: goes together with --align")
    for name in ("sequence_length", "overlap"):
        if options.align and name in options:
            raise ValueError(f"{name}: not together with --align, which makes one window for each event")
    if options.split:
        from ..convert.split import check_shares

        check_shares(options.split)


def check_files(options: argparse.Namespace, files: Sequence[str]) -> None:
    """Refuse options that none of the files can heed; a file whose kind cannot be told may be any.

    Raises:
        ValueError: naming one of them.
    """
    kinds = {_kind_of(path) if options.format == "auto" else options.format for path in files}
    for name, heeding, what in (
        ("rate", ("npz", "npy"), "an array file"),
        ("timestamps", ("npz", "npy"), "an array file"),
        ("align", ("nwb",), "an NWB recording"),
    ):
        if vars(options)[name] is not None and not kinds & {"", *heeding}:
            raise ValueError(f"{name}: goes together with {what}, and none is given")


def _kind_of(path: str) -> str:
    if is_zarr(path):
        return "nwb"
    try:
        return format_of(path)
    except SourceError:
        return ""


def files_meant(given: Sequence[str], kind: str) -> list[str]:
    """The files meant, in the order given, each once."""
    files: dict[str, str] = {}
    for path in (path for pattern in given for path in _expand(pattern, kind)):
        files.setdefault(path if is_url(path) else os.path.realpath(path), path)
    return list(files.values())


def _expand(given: str, kind: str) -> Iterator[str]:
    suffixes = [f".{suffix}" for suffix in (FILE_FORMATS if kind == "auto" else [kind])]
    if is_url(given):
        yield from expand(given, suffixes)
        return
    for path in sorted(glob.glob(given, recursive=True)) or [given]:  # what is not there is reported with the others
        if os.path.isdir(path) and kind not in DIRECTORY_FORMATS and not is_zarr(path):
            yield from sorted(_inside(path, suffixes)) or [path]
        else:
            yield path


def _inside(directory: str, suffixes: Sequence[str]) -> Iterator[str]:
    """Finds the files below a directory, and the Zarr stores, which are looked at as a whole."""
    for folder, folders, files in os.walk(directory):
        stores = [name for name in folders if ".nwb" in suffixes and is_zarr(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in stores]
        yield from (os.path.join(folder, name) for name in stores)
        found = (os.path.join(folder, name) for name in files if Path(name).suffix.lower() in suffixes)
        yield from filter(os.path.isfile, found)


def positive(text: str) -> int:
    """A positive whole number that was typed."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text!r}")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _shares(text: str) -> dict[str, float]:
    try:
        pairs = [(name.strip(), float(share)) for name, share in (part.split("=") for part in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be like train=0.8,val=0.1,test=0.1, not {text!r}") from None
    if len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"names a share twice: {text!r}")
    return dict(pairs)


def _milliseconds(text: str) -> float | Fraction:
    try:
        return Fraction(text) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"must be a number or a fraction such as 100/3, not {text!r}") from None
