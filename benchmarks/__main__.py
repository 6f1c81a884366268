"""``python -m benchmarks``: run groups of measurements, print a table for each, write JSON and a figure.

Knows the command line; knows nothing of what is measured. A module with groups has ``GROUPS``: name → function of a
Setting.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import anywhere, conversion, files, reading, stimulus, windows, writing
from .harness import Result, Setting, measure, number, table, to_json, verdict_line

_MODULES = (reading, writing, conversion, files, stimulus, windows, anywhere)
GROUPS = {name: build for module in _MODULES for name, build in module.GROUPS.items()}
_LIBRARIES = (
    "neurofmx-wds", "webdataset", "torch", "numpy", "h5py", "pynwb", "litdata", "torchdata", "mosaicml-streaming",
    "megatron-energon", "nvidia-dali-cuda120", "ffcv",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the groups that the command line names; return 1 if a measurement failed."""
    options = _parse(arguments)
    machine = about_machine()
    print("  ".join(f"{name}: {value}" for name, value in machine.items() if name != "versions"))
    print("  ".join(f"{name} {version}" for name, version in machine["versions"].items()))
    date = dt.datetime.now(dt.timezone.utc)
    results = []
    with _directory(options.data) as root:
        setting = Setting(root, 2000 if options.quick else 10_000, options.quick)
        for name in options.groups or GROUPS:
            results.append(measure(name, GROUPS[name], setting, options.repeats))
            print("", *table(results[-1]), sep="\n", flush=True)
    _conclude(results)
    if options.json:
        content = {
            "date": date.isoformat(timespec="seconds"),
            "machine": machine,
            "repeats": options.repeats,
            "quick": options.quick,
            "groups": [to_json(result) for result in results],
        }
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if options.png:
        caption = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {date:%d %B %Y}"
        draw(results, caption, options.png)
    return int(any(row.broken for result in results for row in result.rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Measure reading and writing against other libraries."
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the figures into this file (needs matplotlib)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="keep the data in this directory, for later runs")
    parser.add_argument(
        "--quick", action="store_true", help="use little data: checks that everything runs, not how fast"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.groups if name not in GROUPS]
    if unknown:
        parser.error(f"unknown group {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    if options.repeats < 1:
        parser.error("--repeats must be positive")
    return options


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="neurofmx-benchmarks-", ignore_cleanup_errors=True) as name:
            yield Path(name)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


def about_machine() -> dict[str, Any]:
    """Return processor, memory, system and versions."""
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total = [line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(total[0].split()[1]) / 1e6) if total else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _conclude(results: Sequence[Result]) -> None:
    verdicts = [(result.name, verdict) for result in results for verdict in result.verdicts]
    asked = [(name, v) for name, v in verdicts if v.target.at_least is not None or v.target.at_most is not None]
    met = sum(v.met is True for _, v in asked)
    print(f"\n{met} of {len(asked)} targets met; not met or not measured:" if met < len(asked) else "\nall targets met")
    for name, verdict in asked:
        if not verdict.met:
            print(f"  {name}: {verdict_line(verdict)}")


def draw(results: Sequence[Result], caption: str, path: Path) -> None:
    """Draw a panel of bars for each group that compares speeds: medians on a logarithmic scale, with their range."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    measured = [(result.group, [row for row in result.rows if row.values]) for result in results]
    shown = [(group, rows) for group, rows in measured if group.per_second and rows]
    if not shown:
        return
    heights = [len(rows) + 1.5 for _, rows in shown]
    figure = Figure(figsize=(9, 0.3 * sum(heights) + 0.5), layout="constrained")
    figure.suptitle(caption, fontsize=8)
    panels: Any = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (group, rows) in zip(panels, shown, strict=True):
        medians = [row.median for row in rows]
        spread = [[row.median - min(row.values) for row in rows], [max(row.values) - row.median for row in rows]]
        colours = ["tab:blue" if row.ours else "tab:gray" for row in rows]
        bars = panel.barh([row.name for row in rows], medians, xerr=spread, color=colours, ecolor="black", capsize=2)
        panel.bar_label(bars, [number(x) for x in medians], padding=6, fontsize=8)
        panel.set_xscale("log")
        low, high = math.floor(math.log10(min(medians)) - 0.3), math.ceil(math.log10(max(medians)) + 0.1)
        panel.set_xlim(10**low, 10**high)
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.invert_yaxis()
        panel.set_title(f"{group.title} ({group.unit})", fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
