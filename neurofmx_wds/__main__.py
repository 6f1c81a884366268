"""``python -m neurofmx_wds``: the command line."""

from __future__ import annotations

import sys


def run() -> int | str:
    """Run what was typed; the exit status, or what is wrong. While the command is being imported, too, no traceback."""
    try:
        from .cli.main import main
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        from .errors import missing_package

        told = missing_package(error)
        if told is None:
            raise
        return f"error: {told}"
    try:
        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
