"""Interleaved measurements of cases that do the same work, and target ratios between them.

Knows how to measure and report; knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Work = Callable[[], float]


class Unavailable(Exception):
    """A case cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Setting:
    """Settings of all groups.

    Attributes:
        root: directory for data.
        n_samples: samples in a dataset of ordinary samples.
        quick: whether to use little data, which checks that everything runs, not how fast.
    """

    root: Path
    n_samples: int = 10_000
    quick: bool = False


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: name of the row in the table.
        make: prepares the case (not measured) and returns the work, a function that returns how much it has done.
            Raises ImportError or :class:`Unavailable` if the case cannot be measured.
        before: called before each repeat (not measured).
        ours: whether the case measures this package.
    """

    name: str
    make: Callable[[], Work]
    before: Callable[[], None] | None = None
    ours: bool = False


@dataclass(frozen=True)
class Target:
    """A bound on the median of a case, relative to that of another case or, without `under`, by itself.

    Attributes:
        over: name of the case; of several, the slowest counts.
        under: name of the case to divide by; of several, the slowest counts.
        at_least: lower bound; with neither bound, the ratio is only reported.
        at_most: upper bound.
    """

    over: str | tuple[str, ...]
    under: str | tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Group:
    """Cases that are compared with each other.

    Attributes:
        title: what the cases do.
        cases: the cases.
        targets: bounds on their ratios.
        unit: unit of the figures.
        scale: amount of work in one `unit`.
        per_second: whether a figure is work per second, or else the value that the work returns.
        once: whether to measure only once, in a fresh process.
    """

    title: str
    cases: Sequence[Case]
    targets: Sequence[Target] = ()
    unit: str = "thousand samples/s"
    scale: float = 1e3
    per_second: bool = True
    once: bool = False


Build = Callable[[Setting], Group]


@dataclass
class Row:
    """The figures of a case, one for each repeat, or the reason why there are none."""

    name: str
    ours: bool
    values: list[float] = field(default_factory=list)
    missing: str = ""
    broken: bool = False

    @property
    def median(self) -> float:
        """Median of the figures; 0 if there are none."""
        return statistics.median(self.values) if self.values else 0.0


@dataclass(frozen=True)
class Verdict:
    """A target and the measured ratio; `ratio` and `met` are None if they are unknown."""

    target: Target
    ratio: float | None
    met: bool | None


@dataclass(frozen=True)
class Result:
    """The figures of a group."""

    name: str
    group: Group
    rows: list[Row]

    @property
    def verdicts(self) -> list[Verdict]:
        """The targets of the group with their ratios."""
        return [judge(target, self.rows) for target in self.group.targets]


def measure(name: str, build: Build, setting: Setting, repeats: int) -> Result:
    """Run all cases in turn, A, B, C, A, B, C, …, after one round of warm-up.

    Each case runs in its own process, so that threads left behind by one library do not slow down another.

    Args:
        name: short name of the group.
        build: makes the group; called in each process.
        setting: its argument.
        repeats: number of measured rounds.
    """
    group = build(setting)
    rows = [Row(case.name, case.ours) for case in group.cases]
    with contextlib.ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        processes = [stack.enter_context(ProcessPoolExecutor(1, spawn)) for _ in rows]
        for i, (row, process) in enumerate(zip(rows, processes, strict=True)):
            _ask(row, process, _prepare, build, setting, i)
        for number_of_round in range(1 if group.once else 1 + repeats):
            for row, process in zip(rows, processes, strict=True):
                if not row.missing:
                    figure = _ask(row, process, _figure)
                    if figure is not None and (number_of_round > 0 or group.once):
                        row.values.append(figure)
        for row, process in zip(rows, processes, strict=True):
            _ask(row, process, _forget)
    return Result(name, group, rows)


def _ask(row: Row, process: Executor, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in the process of a case; if it fails, record that in the row, so that the other cases go on."""
    try:
        return process.submit(function, *arguments).result()
    except (ImportError, Unavailable) as error:
        row.missing = str(error)
    except Exception as error:
        row.missing, row.broken = f"failed: {type(error).__name__}: {error}", True
    row.values = []
    return None


_prepared: list[tuple[Group, Case, Work]] = []  # in the process of a case


def _prepare(build: Build, setting: Setting, i: int) -> None:
    group = build(setting)
    case = group.cases[i]
    _prepared.append((group, case, case.make()))


def _forget() -> None:
    _prepared.clear()
    gc.collect()  # else the exit would wait forever for worker processes that a case started


def _figure() -> float:
    [(group, case, work)] = _prepared
    gc.collect()  # first: a file that is still mapped cannot be dropped from the page cache
    if case.before is not None:
        case.before()
    begin = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - begin
    return done / (seconds * group.scale if group.per_second else group.scale)


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Compare a target with the figures; the verdict is open if one of its cases was not measured."""
    medians = {row.name: row.median for row in rows if row.values}
    over, under = (_names(target.over), _names(target.under))
    if not medians.keys() >= {*over, *under}:
        return Verdict(target, None, None)
    ratio = min(medians[name] for name in over) / min((medians[name] for name in under), default=1.0)
    if target.at_least is None and target.at_most is None:
        return Verdict(target, ratio, None)
    good = (target.at_least is None or ratio >= target.at_least) and (target.at_most is None or ratio <= target.at_most)
    return Verdict(target, ratio, good)


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def table(result: Result) -> Iterator[str]:
    """Yield the lines of a table: the figures, then the ratios and their targets."""
    width = max(map(len, (row.name for row in result.rows)), default=0) + 2
    yield f"{result.name}: {result.group.title}"
    yield f"  {result.group.unit:{width}} {'min':>10} {'median':>10} {'max':>10}"
    for row in result.rows:
        if row.missing:
            yield f"  {row.name:{width}} {row.missing.splitlines()[0][:100]}"
        else:
            figures = " ".join(f"{number(x):>10}" for x in (min(row.values), row.median, max(row.values)))
            yield f"  {row.name:{width}} {figures}"
    for verdict in result.verdicts:
        yield f"    {verdict_line(verdict)}"


def number(x: float) -> str:
    """Format a number with three significant digits and no exponent."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def verdict_line(verdict: Verdict) -> str:
    """Format a ratio and its target."""
    target = verdict.target
    what = " ÷ ".join(
        f"slower of ({', '.join(names)})" if len(names) > 1 else names[0]
        for names in (_names(target.over), _names(target.under))
        if names
    )
    ratio = "not measured" if verdict.ratio is None else f"= {number(verdict.ratio)}"
    bounds = (("≥", target.at_least), ("≤", target.at_most))
    asked = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
    met = {True: "met", False: "MISSED", None: ""}[verdict.met]
    return " ".join(filter(None, [what, ratio, f"(target {', '.join(asked)})" if asked else "", met]))


def to_json(result: Result) -> dict[str, Any]:
    """Return the figures of a group in the form of the JSON file."""
    return {
        "name": result.name,
        "title": result.group.title,
        "unit": result.group.unit,
        "rows": [
            {"name": row.name, "ours": row.ours, "missing": row.missing}
            if row.missing
            else {
                "name": row.name,
                "ours": row.ours,
                "min": min(row.values),
                "median": row.median,
                "max": max(row.values),
                "values": row.values,
            }
            for row in result.rows
        ],
        "targets": [
            {
                "over": verdict.target.over,
                "under": verdict.target.under or None,
                "at_least": verdict.target.at_least,
                "at_most": verdict.target.at_most,
                "ratio": verdict.ratio,
                "met": verdict.met,
            }
            for verdict in result.verdicts
        ],
    }
