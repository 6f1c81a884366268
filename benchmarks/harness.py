"""Interleaved measurements of cases that do the same work, and the ratios that are asked of them.

Knows how to measure and tell; knows nothing of what is measured.
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
    """Why a case cannot be measured on this machine."""


@dataclass(frozen=True)
class Setting:
    """What all groups are told.

    Attributes:
        root: directory for data.
        n_samples: samples in a dataset of ordinary samples.
        quick: make everything small: shows that it works, not how fast it is.
    """

    root: Path
    n_samples: int = 10_000
    quick: bool = False


@dataclass(frozen=True)
class Case:
    """Something to measure.

    Attributes:
        name: what it is.
        make: prepares it, unmeasured, and returns the work, which returns how much it did; raises ImportError or
            :class:`Unavailable` where there is nothing to measure.
        before: called before each repeat, unmeasured.
        ours: whether it is this package.
    """

    name: str
    make: Callable[[], Work]
    before: Callable[[], None] | None = None
    ours: bool = False


@dataclass(frozen=True)
class Target:
    """What is asked of one case's median, as a ratio to another's or, with no `under`, by itself.

    Attributes:
        over, under: names of cases; of several, the slowest counts.
        at_least, at_most: what it must be; with neither the ratio is only shown.
    """

    over: str | tuple[str, ...]
    under: str | tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Group:
    """Cases that are compared with each other.

    Attributes:
        title: what they do.
        unit: of the figures.
        per_second: whether a figure is work by second or what the work returns.
        scale: work in one `unit`.
        once: one figure, of a fresh process, is all.
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
    """What was measured of a case: a figure for each repeat, or why there is none."""

    name: str
    ours: bool
    values: list[float] = field(default_factory=list)
    missing: str = ""
    broken: bool = False

    @property
    def median(self) -> float:
        """Of the figures; 0 where there are none."""
        return statistics.median(self.values) if self.values else 0.0


@dataclass(frozen=True)
class Verdict:
    """A target beside what was found; `ratio` and `met` are None where they cannot be told."""

    target: Target
    ratio: float | None
    met: bool | None


@dataclass(frozen=True)
class Result:
    """A group's figures."""

    name: str
    group: Group
    rows: list[Row]

    @property
    def verdicts(self) -> list[Verdict]:
        """The group's targets, judged."""
        return [judge(target, self.rows) for target in self.group.targets]


def measure(name: str, build: Build, setting: Setting, repeats: int) -> Result:
    """Run all cases in turn, A, B, C, A, B, C, …, after one round that does not count.

    Each case has a process of its own, so that none is slowed down by the threads that another library leaves.

    Args:
        name: the group's short name.
        build: makes the group; called in each process.
        setting: its argument.
        repeats: rounds that count.
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
    """What the case's process answers; where it fails, the row says so and the other cases go on."""
    try:
        return process.submit(function, *arguments).result()
    except (ImportError, Unavailable) as error:
        row.missing = str(error)
    except Exception as error:
        row.missing, row.broken = f"failed: {type(error).__name__}: {error}", True
    row.values = []
    return None


_prepared: list[tuple[Group, Case, Work]] = []  # of a case's own process


def _prepare(build: Build, setting: Setting, i: int) -> None:
    group = build(setting)
    case = group.cases[i]
    _prepared.append((group, case, case.make()))


def _forget() -> None:
    _prepared.clear()
    gc.collect()  # worker processes that a case started would otherwise be waited for at exit, and never end


def _figure() -> float:
    [(group, case, work)] = _prepared
    gc.collect()  # first: a file that something still maps cannot be dropped from the page cache
    if case.before is not None:
        case.before()
    begin = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - begin
    return done / (seconds * group.scale if group.per_second else group.scale)


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Whether a target is met; None where one of its cases was not measured."""
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
    """Lines to print: the figures, then the ratios beside their targets."""
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
    """Three figures, with no exponent."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def verdict_line(verdict: Verdict) -> str:
    """One ratio beside its target."""
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
    """A group's figures, as they go into the JSON file."""
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
