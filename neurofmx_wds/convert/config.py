"""Where and how a conversion writes, how it is split, and who does the work.

Values that refuse bad settings when they are made. How inputs are read stands in `.sources.config`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..errors import FieldError
from ..format.encoding import FIELD_FORMATS, FieldFormat
from ..format.names import check_key
from ..format.shard_settings import COMPRESSIONS, DEFAULT_PATTERN, Compression, check_config
from ..storage.processes import OrderedMap, ordered_map
from .options import Option, check_options, integer, is_whole, option, refused


def _field_format(text: str) -> FieldFormat:
    """Parse what was typed after ``--field-compression``, or is the name of a format in a file of settings."""
    formats: dict[str, FieldFormat] = {"none": "npy", "gz": "npy.gz", **{name: name for name in FIELD_FORMATS}}
    if text not in formats:
        raise ValueError(f"must be none or gz, not {text!r}")
    return formats[text]


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How samples are written to shards.

    Raises:
        ValueError: a setting is out of range, named.
    """

    shard_size: int = option(1000, Option("Samples in a shard.", parse=integer, metavar="N"))
    shard_name_pattern: str = option(
        DEFAULT_PATTERN, Option("File name of a shard, with {shard_idx} in it.", flag=None)
    )
    compression: Compression = option(
        "none",
        Option(
            "Of whole shards: smaller on disk, unpacked once before loading. none loads fastest.",
            choices=tuple(COMPRESSIONS),
        ),
    )
    field_format: FieldFormat = option(
        "npy",
        Option(
            "gz: compress each array by itself, so that single samples are still read at once; sparse counts become 10 "
            'to 20 times smaller, and are read more slowly. In Python: field_format, "npy", "npy.gz", or "pyd" as '
            "older NeuroFMX shards.",
            parse=_field_format,
            metavar="none|gz",
            check=lambda value: value in FIELD_FORMATS,
            rule=f"must be one of {', '.join(FIELD_FORMATS)}",
            flag="field-compression",
            unset="none",
        ),
    )
    key_prefix: str = option(
        "sample_", Option("What the keys of samples begin with; their number follows.", metavar="TEXT", rare=True)
    )

    def __post_init__(self) -> None:
        check_config(self.shard_size, self.shard_name_pattern, self.compression, self.field_format)
        try:
            check_key(f"{self.key_prefix}0")
        except FieldError as error:
            raise refused(self, "key_prefix", error.problem) from error

    def to_json(self) -> dict[str, Any]:
        """Return the settings as the manifest holds them."""
        checked = check_config(self.shard_size, self.shard_name_pattern, self.compression, self.field_format)
        return {**checked, "key_prefix": self.key_prefix}


@dataclass(frozen=True)
class Output(ShardConfig):
    """Where and how a dataset is written.

    Attributes:
        directory: the dataset's directory; new or empty unless `overwrite` is set.

    Example:
        >>> Output("shards", shard_size=500).compression
        'none'
    """

    directory: str | os.PathLike[str]
    overwrite: bool = option(
        False,
        Option(
            "Replace an existing dataset, in one step, when the new one is finished. A directory that holds anything "
            "else is refused.",
            parse=bool,
        ),
    )


SplitBy = Literal["session", "subject", "time"]
SPLIT_BY: tuple[SplitBy, ...] = ("session", "subject", "time")


def parse_shares(text: str) -> dict[str, float]:
    """Parse shares such as ``train=0.8,val=0.1,test=0.1``.

    Raises:
        ValueError: they are written otherwise, or name one twice.
    """
    try:
        pairs = [(name.strip(), float(share)) for name, share in (part.split("=") for part in text.split(","))]
    except ValueError:
        raise ValueError(f"must be like train=0.8,val=0.1,test=0.1, not {text!r}") from None
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"names a share twice: {text!r}")
    return dict(pairs)


@dataclass(frozen=True)
class Split:
    """Into which datasets the inputs are dealt.

    Raises:
        ValueError: fewer than two names, a name that no directory can have, a share that is not positive, or shares
            that do not sum to 1.

    Example:
        >>> Split({"train": 0.8, "val": 0.2}, "time").by
        'time'
    """

    shares: Mapping[str, float] = option(
        None,
        Option(
            "Make several datasets, DIR/NAME each, that have no time bin in common, such as "
            "train=0.8,val=0.1,test=0.1.",
            parse=parse_shares,
            metavar="NAME=SHARE,…",
            flag="split",
            unset="off",
            rare=True,
        ),
    )
    by: SplitBy = option(
        "session",
        Option(
            "What stays in one dataset: a session, a subject, or a contiguous block of time of each recording, with a "
            "window left out between two blocks.",
            choices=SPLIT_BY,
            flag="split-by",
            rare=True,
        ),
    )

    def __post_init__(self) -> None:
        check_options(self)
        shares = dict(self.shares)
        if len(shares) < 2 or any(not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) for name in shares):
            raise refused(self, "shares", "must name two or more, with letters and digits")
        if any(not share > 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
            raise refused(self, "shares", "shares must be positive and their sum 1")


@dataclass(frozen=True)
class Task:
    """Which share of a conversion one of several tasks makes.

    Raises:
        ValueError: there is no such task.
    """

    task: int = option(
        None,
        Option(
            "Make only the share of this task (from 0) of a job array. When all tasks are done, the same command "
            "without --task and --tasks joins their shares.",
            parse=integer,
            metavar="I",
            unset="off",
            rare=True,
        ),
    )
    tasks: int = option(None, Option("How many tasks there are.", parse=integer, metavar="N", unset="off", rare=True))

    def __post_init__(self) -> None:
        if not is_whole(self.tasks, least=1):
            raise refused(self, "tasks", "must be a positive integer")
        if not (is_whole(self.task, least=0) and self.task < self.tasks):
            raise refused(self, "task", f"must be at least 0 and less than tasks ({self.tasks})")

    def of(self, n: int) -> slice:
        """Return which of `n` things, shards or files, are this task's."""
        return slice(n * self.task // self.tasks, n * (self.task + 1) // self.tasks)


class Work(NamedTuple):
    """How work is spread while a conversion runs.

    Attributes:
        apply: called like :func:`map`, see :func:`neurofmx_wds.storage.processes.ordered_map`.
        show_progress: whether to show progress bars, on a terminal.
    """

    apply: OrderedMap = map
    show_progress: bool = False


@dataclass(frozen=True)
class Workers:
    """Who does the work of a conversion; the result does not depend on them.

    Attributes:
        executor: any :class:`concurrent.futures.Executor` to use instead of processes.
        show_progress: show progress bars, on a terminal.

    Raises:
        ValueError: the number of processes is not positive.
    """

    workers: int = option(
        1,
        Option(
            "Processes to work with; the result is the same, byte for byte.",
            parse=integer,
            metavar="N",
            check=lambda value: is_whole(value, least=1),
            rule="must be a positive integer",
        ),
    )
    executor: Executor | None = None
    show_progress: bool = False

    def __post_init__(self) -> None:
        check_options(self)

    @contextlib.contextmanager
    def start(self) -> Iterator[Work]:
        """Start the workers, which end with the block.

        Converting needs no torch, but webdataset imports it where it is installed: starting without takes half the
        time.
        """
        recordings = f"{__package__.partition('.')[0]}.nwb.recording"
        ready = (f"{__package__}.shards", f"{__package__}.sources.nwb", recordings)
        with ordered_map(self.workers, self.executor, ready=ready, without=("torch",)) as apply:
            yield Work(apply, self.show_progress)
