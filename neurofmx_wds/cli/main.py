"""The commands: what people type and what they see. Everything is done elsewhere, and imported when it is needed.

Knows only the package's public functions; holds no logic of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import NeurofmxError, hide_secrets, missing_package
from ..storage.processes import do_without
from ..version import __version__
from . import check, completion, convert, datasets, demo, fetch, inspect, look, view
from .output import logging_to_stderr, show_error


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
    reads_any = "validate" in options and getattr(options, "format", "") == "files"  # among them torch's own
    if arguments is None and not reads_any:
        do_without(*getattr(options, "without", ()))  # in a process of our own: it starts in half the time
    try:
        with _termination_as_an_exception(), logging_to_stderr(options.verbose), _silence(options.quiet):
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


@contextlib.contextmanager
def _silence(quiet: bool) -> Iterator[None]:
    """Print no results: errors go to the other stream."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


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


class _Parser(argparse.ArgumentParser):
    """A parser that answers wrong usage with one line."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where help is, and leave with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    program = "python -m neurofmx_wds" if Path(sys.argv[0]).name == "__main__.py" else None
    parser = _Parser(
        prog=program,
        description="Neural recordings (NWB) and arrays to WebDataset shards, for resumable PyTorch training.",
        epilog="`COMMAND --help` tells more of each, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"neurofmx_wds {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for group in (inspect, convert, datasets, look, view, check, fetch, demo, completion):
        group.add_commands(commands)
    for command in commands.choices.values():
        command.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the examples as they are
        command.description = textwrap.fill(command.description or "", 78)
        command.add_argument("-q", "--quiet", action="store_true", help="print errors only: no results, no progress")
        command.add_argument("-v", "--verbose", action="count", default=0, help="log what is done; -vv: more")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
