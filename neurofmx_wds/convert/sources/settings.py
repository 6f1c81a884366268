"""How arrays, files and images are read: one value for each kind, which refuses bad settings when it is made.

Each setting is stated here and nowhere else. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..options import Option, check_options, decimal, names, option, refused
from .kinds import ARRAYS, LABELLED, SUBSETS, TIMED


def _is_choice(chosen: tuple[str, ...] | None) -> bool:
    return chosen is None or 0 < len(chosen) == len(set(chosen))


_MODALITIES = Option(
    "What to convert: spikes, behavior, lfp, ophys, events, video, or paths of series in the file. Windows are cut "
    "where the first one has data. icephys (intracellular sweeps) stands alone. Of arrays: their names. Of files: the "
    "extensions that a sample must have.",
    parse=names,
    metavar="A,B",
    check=_is_choice,
    rule="must name at least one, each once",
    kinds=("nwb", *ARRAYS, TIMED, "files"),
    unset="all but video",
)
_ALLOW_MISSING = Option(
    "Skip and count incomplete samples (files), or files that are not images (imagefolder).",
    parse=bool,
    kinds=("files", "imagefolder"),
    rare=True,
)


@dataclass(frozen=True)
class Chosen:
    """Settings of an input of which some modalities, arrays or extensions can be chosen."""

    modalities: tuple[str, ...] | None = option(None, _MODALITIES)

    def __post_init__(self) -> None:
        asked: Any = self.modalities
        if asked is not None:
            object.__setattr__(self, "modalities", (asked,) if isinstance(asked, str) else tuple(asked))
        check_options(self)


@dataclass(frozen=True)
class ArrayConfig(Chosen):
    """How the arrays of .npz and .npy files are read: their first dimension counts samples, or is time.

    Raises:
        ValueError: a setting is out of range; the message begins with its name.
    """

    field: str = option(
        "data",
        Option("Name of the field that an npy file becomes.", metavar="NAME", check=bool, rule="must not be empty",
               kinds=("npy",), rare=True),
    )  # fmt: skip
    rate: float | None = option(
        None,
        Option(
            "The first dimension is time, in rows per second from 0 s on: cut it into windows.",
            parse=decimal,
            metavar="HZ",
            check=lambda value: value is None or 0 < value < float("inf"),
            rule="must be a positive number of samples per second",
            kinds=ARRAYS,
            unset="rows are samples",
        ),
    )
    timestamps: str | None = option(
        None,
        Option(
            "The same, with the time of each row in seconds in the npz's array of this name.",
            metavar="NAME",
            kinds=ARRAYS,
            unset="off",
            rare=True,
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and self.timestamps is not None:
            raise refused(self, "timestamps", "give these or a rate, not both")

    @property
    def along_time(self) -> bool:
        """Whether the first dimension is time."""
        return self.rate is not None or self.timestamps is not None


@dataclass(frozen=True)
class FilesConfig(Chosen):
    """How a directory of files that belong together is read."""

    allow_missing: bool = option(False, _ALLOW_MISSING)


@dataclass(frozen=True)
class ImageConfig:
    """How a set of labelled images is read."""

    allow_missing: bool = option(False, _ALLOW_MISSING)
    keep_encoded: bool = option(
        False, Option("Store image files as they are, not their pixels.", parse=bool, kinds=("imagefolder",), rare=True)
    )
    subset: str = option("all", Option("Which part of the set to convert.", choices=SUBSETS, kinds=LABELLED, rare=True))

    def __post_init__(self) -> None:
        check_options(self)
