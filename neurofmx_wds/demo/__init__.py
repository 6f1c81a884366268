"""End-to-end demo on synthetic data: convert a recording, train, kill and resume the training, and compare the result.

Uses the public API only, and is used by nothing else in the package.
"""

from __future__ import annotations

from .story import check_arguments, run

__all__ = ["check_arguments", "run"]
