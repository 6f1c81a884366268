"""The demo: a recording is converted and trained on; the training is killed, resumed, and compared with one left alone.

It uses the package as any user would and is used by nothing else in it.
"""

from __future__ import annotations

from .story import check_arguments, run

__all__ = ["check_arguments", "run"]
