"""``python -m neurofmx_wds``: the command line."""

from __future__ import annotations

import sys


def run() -> int:
    """Run what was typed; the exit status. Ctrl-C is no traceback even while the command is still being imported."""
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
