"""Intracellular recordings: sweeps, each a response and its stimulus, on a clock of its own.

Knows how NWB pairs the two; knows nothing of windows or of other series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pynwb import NWBFile, TimeSeries
from pynwb.icephys import CurrentClampSeries, PatchClampSeries, VoltageClampSeries

from .series import Series


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        response: the recorded series.
        stimulus: the stimulus series; None if the file has none for this sweep.
        span: start and stop (ns) of this sweep in the response; None: all of it.
        metadata: plain JSON values: number, clamp, electrode, protocol, and the paths of the two series.
    """

    response: Series
    stimulus: Series | None
    span: tuple[int, int] | None
    metadata: dict[str, Any]


#: (path, pynwb series) → our series; None if its data cannot be used.
Maker = Callable[[str, TimeSeries], Series | None]


def read_sweeps(nwb: NWBFile, make: Maker) -> tuple[Sweep, ...]:
    """Return the sweeps: the rows of the table of intracellular recordings, and the responses that are in no row.

    The latter are paired with the stimulus of the same sweep number and electrode.
    """
    places = {
        "acquisition": nwb.acquisition,
        "stimulus/presentation": nwb.stimulus,
        "stimulus/templates": nwb.stimulus_template,
    }
    paths = {id(each): f"{place}/{name}" for place, found in places.items() for name, each in (found or {}).items()}
    pairs = list(_in_table(nwb))
    in_table = {id(response.timeseries) for response, _ in pairs}
    made: dict[int, Series | None] = {}

    def series_of(each: TimeSeries | None) -> Series | None:
        if each is None or id(each) not in paths:
            return None
        if id(each) not in made:
            known = make(paths[id(each)], each)
            made[id(each)] = None if known is None else replace(known, kind="voltage")
        return made[id(each)]

    sweeps = []
    for response, stimulus in pairs:
        sweeps.append(_sweep(response.timeseries, stimulus, series_of, (int(response.idx_start), int(response.count))))
    stimuli = {
        _number_and_electrode(each): each for each in nwb.stimulus.values() if isinstance(each, PatchClampSeries)
    }
    for each in nwb.acquisition.values():
        if isinstance(each, PatchClampSeries) and id(each) not in in_table:
            number = _number_and_electrode(each)
            sweeps.append(_sweep(each, stimuli.get(number) if number else None, series_of, None))
    return tuple(sweep for sweep in sweeps if sweep is not None)


def _in_table(nwb: NWBFile) -> Iterator[tuple[Any, TimeSeries | None]]:
    """Yield each row's reference to its response, and its stimulus."""
    table = nwb.intracellular_recordings
    if table is None:
        return
    responses, stimuli = table["responses"]["response"], table["stimuli"]["stimulus"]
    for row in range(len(table)):
        response, stimulus = responses[row], stimuli[row]
        if isinstance(response.timeseries, TimeSeries):
            yield response, stimulus.timeseries if isinstance(stimulus.timeseries, TimeSeries) else None


def _number_and_electrode(series: PatchClampSeries) -> tuple[int, int] | None:
    return None if series.sweep_number is None else (int(series.sweep_number), id(series.electrode))


def _sweep(
    response: TimeSeries,
    stimulus: TimeSeries | None,
    series_of: Callable[[TimeSeries | None], Series | None],
    rows: tuple[int, int] | None,
) -> Sweep | None:
    recorded, given = series_of(response), series_of(stimulus)
    if recorded is None:
        return None
    number = getattr(response, "sweep_number", None)
    electrode = getattr(response, "electrode", None)
    about = {
        "sweep_number": None if number is None else int(number),
        "clamp": _clamp(response),
        "electrode": None if electrode is None else electrode.name,
        "stimulus_description": getattr(response, "stimulus_description", None),
        "response_series": recorded.path,
        "response_unit": recorded.unit,
        "stimulus_series": None if given is None else given.path,
        "stimulus_unit": None if given is None else given.unit,
    }
    return Sweep(recorded, given, _span(recorded, rows), about)


def _span(response: Series, rows: tuple[int, int] | None) -> tuple[int, int] | None:
    timeline = response.timeline
    if rows is None or rows == (0, timeline.n) or not 0 <= rows[0] < rows[0] + rows[1] <= timeline.n:
        return None
    first, last = (int(timeline.between(i, i + 1)[0]) for i in (rows[0], rows[0] + rows[1] - 1))
    return first, last + max(1, round(timeline.period))


def _clamp(response: TimeSeries) -> str | None:
    clamps = ((VoltageClampSeries, "voltage"), (CurrentClampSeries, "current"))
    return next((name for kind, name in clamps if isinstance(response, kind)), None)
