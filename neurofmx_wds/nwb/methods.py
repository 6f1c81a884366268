"""The ways in which series are brought into bins, by name. Light to import, for command lines."""

from __future__ import annotations

BEHAVIOR_METHODS = ("auto", "bin_mean", "linear", "previous", "count")
LFP_METHODS = ("auto", "native", "bin_mean", "linear")
