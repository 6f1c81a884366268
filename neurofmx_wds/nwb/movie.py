"""Frames of video files that lie beside a recording, decoded on request, by number.

Opens plain files below the recording's directory, only as video containers; never a URL.
"""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError
from .clock import Int64

#: A frame of more pixels than this is refused.
MOST_PIXELS = 2**26
#: The container formats that are opened. Playlists and scripts, which refer to other files or URLs, are not.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,m4v,mjpeg,gif"
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}


class Movie:
    """The frames of video files, one after the other, as a sliceable dataset: uint8 (frames, height, width, 3), RGB.

    Args:
        recording: path of the file that names them.
        names: the files, as the recording names them: relative to its directory, and below it.
        first_frames: number of each file's first frame.
        n: total number of frames.

    Raises:
        ValueError: a file is a URL, lies elsewhere, does not exist or is not a video, or the sizes of frames differ.
        SourceError: the decoder is not installed.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, recording: str, names: Sequence[str], first_frames: Int64, n: int) -> None:
        self._first = first_frames.tolist()
        self._files = [_MovieFile(_beside(recording, name), name, recording) for name in names]
        sizes = {file.size for file in self._files}
        if len(sizes) != 1:
            raise ValueError(f"its files have pictures of different sizes: {sorted(sizes)}")
        self.shape: tuple[int, ...] = (n, *sizes.pop(), 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: Int64) -> npt.NDArray[np.uint8]:
        """Decode frames by ascending number: uint8 (len(numbers), height, width, 3).

        Raises:
            OSError: a file is damaged, or has no such frame.
        """
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for row, number in enumerate(numbers.tolist()):
            which = bisect.bisect_right(self._first, number) - 1
            out[row] = self._files[which].frame(number - self._first[which])
        return out

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _beside(recording: str, name: str) -> str:
    """Return the path of a named file. Links there were made by the user, and are followed."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        raise ValueError(f"{name} is a URL, and never fetched")
    directory = os.path.dirname(os.path.abspath(recording))
    path = os.path.normpath(os.path.join(directory, name))
    if os.path.commonpath([directory, path]) != directory:
        raise ValueError(f"{name} is not below the recording's directory")
    if not os.path.isfile(path):
        raise ValueError(f"{name} is not there")
    return path


class _MovieFile:
    """One video file; frames are found by their times, which are read from all packets on first use."""

    def __init__(self, path: str, name: str, recording: str) -> None:
        try:
            import av
        except ImportError:
            remedy = "pip install 'neurofmx-wds[video]', or convert without decode_video"
            raise SourceError("PyAV, which decodes video, is not installed", file=recording, remedy=remedy) from None
        self._path, self._name = path, name
        self._open: Any = av.open
        self._fails: tuple[type[Exception], ...] = (av.FFmpegError, OSError, ValueError, IndexError)
        self._times: list[int] = []
        self._key_times: list[int] = []
        self._frames: Iterator[Any] = iter(())
        self._at: int | None = None
        self._picture: Any = None
        self._file = open(path, "rb")
        try:
            self._container: Any = av.open(self._file, options=_OPTIONS)
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1  # see _decoded
            self.size = (int(self._stream.height), int(self._stream.width))
        except self._fails as error:
            self._file.close()
            raise ValueError(f"{name} cannot be opened as video: {error}") from error
        if not 0 < self.size[0] * self.size[1] <= MOST_PIXELS:
            self.close()
            raise ValueError(f"{name} has pictures of {self.size[1]} × {self.size[0]}")

    def frame(self, number: int) -> npt.NDArray[np.uint8]:
        try:
            return self._decoded(number)
        except self._fails as error:
            raise OSError(f"frame {number} of {self._name}: {error}") from error

    def _decoded(self, number: int) -> npt.NDArray[np.uint8]:
        if not self._times:
            self._read_times()
        if number >= len(self._times):
            raise IndexError(f"it has {len(self._times)}")
        time = self._times[number]
        if self._at != time:
            self._go_to(time)
        # One thread: threads of the decoder would keep it from being freed in a process that is forked later.
        rgb: npt.NDArray[np.uint8] = self._picture.reformat(format="rgb24", threads=1).to_ndarray()
        if rgb.shape[:2] != self.size:
            raise ValueError("its size changes on the way")
        return rgb

    def _read_times(self) -> None:
        with open(self._path, "rb") as file, self._open(file, options=_OPTIONS) as container:
            packets = [(p.pts, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.pts is not None]
        self._times = sorted(pts for pts, _ in packets)
        self._key_times = sorted(pts for pts, key in packets if key)
        if len(set(self._times)) < len(self._times):
            raise ValueError("two frames have the same time")

    def _go_to(self, time: int) -> None:
        keys = self._key_times
        on = self._at is not None and self._at < time
        if not on or bisect.bisect_right(keys, time) > bisect.bisect_right(keys, self._at or 0):
            self._seek(time)
        if not self._forward(time):
            self._seek(min(0, self._times[0]))  # the key frame before it was not the one to begin with
            if not self._forward(time):
                raise ValueError("it cannot be decoded")

    def _seek(self, time: int) -> None:
        self._container.seek(time, stream=self._stream, backward=True)
        self._frames, self._at = self._container.decode(self._stream), None

    def _forward(self, time: int) -> bool:
        """Decode up to a time; return whether a frame has exactly that time."""
        for picture in self._frames:
            if picture.pts is not None and picture.pts >= time:
                self._picture, self._at = picture, picture.pts
                return bool(picture.pts == time)
        return False

    def close(self) -> None:
        self._container.close()
        self._file.close()
