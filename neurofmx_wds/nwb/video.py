"""Video: which frame is shown in which bin, and the frames themselves where the NWB file holds them.

Frames are read few at a time. A file that a video names is opened on request only (see `.movie`), else its frames are
numbered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import Grid, Int64
from .series import Timeline


@dataclass(frozen=True)
class Video:
    """One image series.

    Attributes:
        path: where it is in the file; file: the file, for errors.
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
        """Gives the frame shown at the centre of bins [first, stop): the last one at or before it.

        Args:
            grid: the bins.
            first, stop: which.
            max_gap: ns; nothing is shown after a longer time without a frame, nor a period after the last one.

        Returns:
            int64 (stop − first,), numbers of frames as they lie in the file; −1 where there is none.
        """
        timeline, start = self.timeline, grid.start_of(first)
        low = max(0, timeline.search(start) - 1)
        high = min(timeline.n, timeline.search(grid.start_of(stop)))
        if low >= high:
            return np.full(stop - first, -1, dtype=np.int64)
        times, centres = timeline.between(low, high) - start, grid.centres_of(first, stop)
        left = np.searchsorted(times, centres, side="right") - 1
        age = centres - times[left]
        over = (left < 0) | (age > timeline.longest_step(max_gap))
        over |= (low + left == timeline.n - 1) & (age > timeline.period)
        rows = np.arange(low, high) if timeline.order is None else timeline.order[low:high]
        return np.where(over, -1, rows[left])

    def in_files(self, frames: Int64) -> Int64:
        """Gives, for numbers of frames, the number of the file that holds each and its number there, −1 where none."""
        which = np.searchsorted(self.first_frames, frames, side="right") - 1
        there = np.stack([which, frames - self.first_frames[np.maximum(which, 0)]], axis=1)
        return np.where(frames[:, None] < 0, -1, there)

    def frames(self, numbers: Int64) -> npt.NDArray[Any]:
        """Reads frames by number, in the dtype stored: (len(numbers), …); zeros for −1.

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
