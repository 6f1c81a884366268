"""Video: which frame is shown in which bin, and the frames themselves where the NWB file holds them.

Frames are read few at a time. A file that a video names is opened on request only (see `.movie`); else its frames are
only numbered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import Grid, Int64
from .gridding import Centres, previous
from .timeline import Timeline

if TYPE_CHECKING:
    from .finding import Found

#: The number of frames that a video of unknown length is taken to have.
MOST_FRAMES = 2**31

#: Opens a video's files: (path in the recording, file names, first frames, number of frames) → dataset of frames.
MovieOpener = Callable[[str, tuple[str, ...], Int64, int], Any]


@dataclass(frozen=True)
class Video:
    """One image series.

    Attributes:
        path: where it is in the file.
        file: the file, for errors.
        unit: unit of the pixels.
        timeline: when the frames are.
        endless: the file does not say how many frames there are.
        data: sliceable dataset (frames, …); None where the frames are in `files` and are not decoded.
        files: the paths of the video files, as they are written in the file.
        first_frames: int64, the number in the whole series of each file's first frame.
    """

    path: str
    file: str
    unit: str
    timeline: Timeline
    endless: bool
    data: Any | None
    files: tuple[str, ...]
    first_frames: Int64

    def shown(self, grid: Grid, first: int, stop: int, max_gap: float) -> Int64:
        """Return the frame shown at the centre of bins [first, stop): the last one at or before it.

        Args:
            grid: the bins.
            first: the first bin.
            stop: the bin after the last.
            max_gap: ns; nothing is shown after a longer time without a frame, nor a period after the last one.

        Returns:
            int64 (stop − first,), numbers of frames as they lie in the file; −1 where there is none.
        """
        timeline, since = self.timeline, grid.start_of(first)
        low = max(0, timeline.search(since) - 1)
        high = min(timeline.n, timeline.search(grid.start_of(stop)))
        starts, lead = grid.starts_of(np.arange(first, stop)[None])
        centres = Centres(starts - since, lead, timeline.between(low, high) - since, np.array([high - low]))
        numbers = np.arange(low, high) if timeline.order is None else timeline.order[low:high]
        return self.shown_at(centres, numbers, np.array([high == timeline.n]), max_gap)

    def shown_at(self, centres: Centres, numbers: Int64, complete: npt.NDArray[np.bool_], max_gap: float) -> Int64:
        """Return the frame shown at each centre, as :meth:`shown` does: int64 (n_windows · n_bins,).

        Args:
            centres: the bins, and when the frames are.
            numbers: int64 (n_frames,), the number of each frame in the file.
            complete: bool (n_windows,): whether the last frame of each window is the video's last.
            max_gap: ns.
        """
        stale_after = self.timeline.longest_step(max_gap)
        places = np.arange(len(numbers), dtype=np.float64)[:, None]
        place = previous(centres, places, stale_after, complete, self.timeline.period)[:, 0]
        shown = np.full(len(place), -1, dtype=np.int64)
        found = ~np.isnan(place)
        shown[found] = numbers[place[found].astype(np.int64)]
        return shown

    def in_files(self, frames: Int64) -> Int64:
        """Return, for each frame number, the number of its file and its number there: int64 (n, 2), −1 for none."""
        which = np.searchsorted(self.first_frames, frames, side="right") - 1
        there = np.stack([which, frames - self.first_frames[np.maximum(which, 0)]], axis=1)
        return np.where(frames[:, None] < 0, -1, there)

    def frames(self, numbers: Int64) -> npt.NDArray[Any]:
        """Read frames by number, in the dtype stored: (len(numbers), …); zeros for −1.

        Raises:
            SourceError: the file is damaged.
        """
        if self.data is None:
            raise ValueError(f"the frames of {self.path} are not in the file")
        found = numbers >= 0
        out = np.zeros((len(numbers), *self.data.shape[1:]), dtype=self.data.dtype.newbyteorder("="))
        distinct, where = np.unique(numbers[found], return_inverse=True)
        if len(distinct):
            try:
                out[found] = np.asarray(self.data[distinct])[where]
            except (OSError, RuntimeError) as error:
                raise SourceError(
                    f"the frames of {self.path} cannot be read: {error}",
                    file=self.file,
                    remedy="the file is damaged or cut short; copy it again, or leave this video out",
                ) from error
        return out


def video_length(source: Any) -> int:
    """Return the number of frames of a pynwb ImageSeries; `MOST_FRAMES` if the file does not say."""
    if source.external_file is None:
        return len(source.data)
    numbered = MOST_FRAMES if source.timestamps is None else len(source.timestamps)
    return int(getattr(source, "num_samples", None) or numbered)


def read_video(
    found: Found, file: str, timeline: Timeline, warn: Callable[..., None], open_movie: MovieOpener | None
) -> Video | None:
    """Return the video of a pynwb ImageSeries; None, with a warning, if it has no frames of numbers.

    Args:
        found: the image series.
        file: the NWB file's path, for errors.
        timeline: of its `video_length` frames.
        warn: called with a line for what is doubtful.
        open_movie: opens the video files that it names; None: their frames are only numbered.
    """
    source = found.series
    files = tuple(map(str, source.external_file[:])) if source.external_file is not None else ()
    data: Any = None if files else source.data
    if data is not None and (0 in data.shape or data.dtype.kind not in "biuf"):
        warn(f"{found.path} left out: it has no frames of numbers")
        return None
    n = video_length(source)
    endless = n == MOST_FRAMES
    if endless:
        warn(f"{found.path}: the file does not say how many frames there are; their numbers go on to the end")
    firsts = np.zeros(max(1, len(files)), np.int64) if source.starting_frame is None else source.starting_frame[:]
    firsts = np.asarray(firsts, np.int64)
    if files and open_movie is not None:
        data = open_movie(found.path, files, firsts, n)
    return Video(found.path, file, source.unit or "", timeline, endless, data, files, firsts)
