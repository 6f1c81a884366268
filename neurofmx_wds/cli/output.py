"""How the commands print: text from files cannot act on the terminal, and remedies name their commands.

Knows the wording of remedies; knows nothing of what is printed.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence

from ..errors import (
    CONVERT_FIRST,
    INDEX_SHARDS,
    INSPECT,
    MERGE_DATASETS,
    OVERWRITE,
    REBUILD_INDEX,
    REPAIR_DATASET,
    SHOW_DATASET,
    printable,
)

_MOST_PROBLEMS = 20

#: What remedies advise → the command or option that does it.
COMMANDS = {
    REBUILD_INDEX: "python -m neurofmx_wds index --repair",
    INDEX_SHARDS: "python -m neurofmx_wds index",
    REPAIR_DATASET: "python -m neurofmx_wds repair",
    CONVERT_FIRST: "python -m neurofmx_wds convert",
    MERGE_DATASETS: "python -m neurofmx_wds merge",
    OVERWRITE: "--overwrite",
    INSPECT: "python -m neurofmx_wds inspect",
    SHOW_DATASET: "python -m neurofmx_wds info",
}


def show(text: str) -> None:
    """Print a result to the standard output."""
    print(printable(text, keep="\n"), flush=True)


def show_error(text: str) -> None:
    """Print an error or a note to the standard error stream, after the results so far."""
    for advice, command in COMMANDS.items():
        text = text.replace(advice, f"{advice} with `{command}`")
    sys.stdout.flush()
    print(printable(text, keep="\n"), file=sys.stderr)


class _Printable(logging.Formatter):
    """Log records on one line each, with nothing in them that acts on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return printable(super().format(record), keep="\n")


@contextlib.contextmanager
def logging_to_stderr(verbosity: int) -> Iterator[None]:
    """Print log records while the block runs.

    Args:
        verbosity: 0: warnings of this package, without their time; 1: what it does, too; 2 and more: details.
    """
    logger = logging.getLogger("neurofmx_wds")
    handler, before = logging.StreamHandler(), logger.level
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s" if verbosity else "%(message)s"))
    logger.addHandler(handler)
    if verbosity:
        logger.setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def show_problems(problems: Sequence[object]) -> None:
    """Print the first problems to the standard error stream, and how many more there are."""
    for problem in problems[:_MOST_PROBLEMS]:
        show_error(f"error: {problem}")
    if len(problems) > _MOST_PROBLEMS:
        show_error(f"and {len(problems) - _MOST_PROBLEMS} more")


def terminal_width() -> int | None:
    """Return the columns of the terminal; None where the standard output is not one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
