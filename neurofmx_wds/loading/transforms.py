"""Users' functions of samples and batches: how they are called, what is raised where they fail, and random numbers.

Knows nothing of files, order or workers.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any, overload

import numpy as np
import torch

from ..errors import NeurofmxError
from .interfaces import Reader

Transform = Callable[..., Any]
BatchTransform = Callable[..., Any]


def sample_rng(seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """Return the random numbers that a sample's augmentation gets in an epoch, wherever and whenever it is loaded.

    Args:
        seed: the loader's seed. One from -2^64 to -1 gives the numbers of that plus 2^64; all others differ.
        epoch: the epoch.
        sample_id: the sample's place in the whole dataset.

    Example:
        >>> sample_rng(seed=42, epoch=0, sample_id=7).integers(1000, size=3)
        array([242, 752, 876])
    """
    high, low = divmod(seed, 1 << 64)
    words = np.array([low, epoch, sample_id], np.uint64).tobytes()
    if high not in (0, -1):  # so that those of small seeds are what they were before larger ones were told apart
        words += str(high).encode()
    key = np.frombuffer(hashlib.blake2b(words, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class SampleRngs(Sequence[np.random.Generator]):
    """The generators of a batch's samples; each is made when it is first asked for, and goes on from there.

    What one transform has drawn for a sample the next one does not get again, and how the samples are put into batches
    makes no difference to any of them.

    Attributes:
        seed: the loader's seed.
        epoch: the epoch.
        sample_ids: the samples' places in the whole dataset, shape (B,), int64.

    Example:
        >>> batch = SampleRngs(seed=42, epoch=0, sample_ids=np.array([5, 7]))
        >>> len(batch), batch[1].integers(1000, size=3)
        (2, array([242, 752, 876]))
    """

    def __init__(self, seed: int, epoch: int, sample_ids: np.ndarray) -> None:
        self.seed = seed
        self.epoch = epoch
        self.sample_ids = sample_ids
        self._made: dict[int, np.random.Generator] = {}

    @classmethod
    def joined(cls, singles: Sequence[SampleRngs]) -> SampleRngs:
        """Return the generators of single samples as those of a batch."""
        first = singles[0]
        batch = cls(first.seed, first.epoch, np.concatenate([single.sample_ids for single in singles]))
        batch._made = {row: single[0] for row, single in enumerate(singles)}
        return batch

    def __len__(self) -> int:
        return len(self.sample_ids)

    @overload
    def __getitem__(self, row: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, row: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, row: int | slice) -> np.random.Generator | list[np.random.Generator]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        i = range(len(self))[row]
        if i not in self._made:
            self._made[i] = sample_rng(self.seed, self.epoch, int(self.sample_ids[i]))
        return self._made[i]


def takes_rng(transform: Transform) -> bool:
    """Return whether a transform is ``transform(sample, rng)`` or ``transform(batch, rngs)``.

    Example:
        >>> takes_rng(lambda sample: sample), takes_rng(lambda sample, rng: sample)
        (False, True)
    """
    try:
        called = transform.forward if isinstance(transform, torch.nn.Module) else transform
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len([p for p in positional if p.default is p.empty or p.name in ("rng", "rngs")]) >= 2


def as_batch_transforms(given: BatchTransform | Sequence[BatchTransform] | None) -> tuple[BatchTransform, ...]:
    """Return a loader's `batch_transform` as a tuple.

    Raises:
        TypeError: something in it cannot be called.
    """
    several = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if not all(map(callable, several)):
        raise TypeError(f"batch_transform must be a function of a batch, or a list of them, not {given!r}")
    return several


class BatchTransforms:
    """Calls a user's functions of a batch, one after the other.

    Args:
        functions: ``f(batch)`` or ``f(batch, rngs)``.
        reader: names samples in errors.
    """

    def __init__(self, functions: Sequence[BatchTransform], reader: Reader) -> None:
        self._functions = [(function, takes_rng(function)) for function in functions]
        self._reader = reader

    def __call__(self, batch: Any, rngs: SampleRngs, ids: np.ndarray) -> Any:
        """Return what the last function returns.

        Args:
            batch: what the first one gets.
            rngs: the generators of its samples.
            ids: of its samples, shape (B,), int64.

        Raises:
            NeurofmxError: one of them raised, or returned None.
        """
        for function, with_rngs in self._functions:
            try:
                batch = function(batch, rngs) if with_rngs else function(batch)
            except Exception as error:
                raise function_error(self._reader, "batch_transform", error, ids[0]) from error
            if batch is None:
                raise return_error(self._reader, "batch_transform", "batch", None, ids[0])
        return batch


def call_each(reader: Reader, name: str, ids: np.ndarray, results: Generator[Any, None, None]) -> list[Any]:
    """Return what a user's function makes of each sample.

    Args:
        reader: names the sample in an error.
        name: the function's argument name.
        ids: of the samples, shape (B,), int64.
        results: calls it. A generator: in one, StopIteration is an error, not the end.

    Raises:
        NeurofmxError: it raised; the error names the sample.
    """
    done: list[Any] = []
    try:
        for result in results:
            done.append(result)
    except Exception as error:
        raise function_error(reader, name, error, ids[len(done)]) from error
    return done


def function_error(reader: Reader, name: str, error: Exception, sample_id: np.int64) -> NeurofmxError:
    """Return the error for a user's function that raised, with the sample at which it did."""
    file, key = reader.name(int(sample_id))
    return NeurofmxError(f"the {name} raised {type(error).__name__}: {error}", file=file, sample=key)


def return_error(reader: Reader, name: str, wanted: str, returned: Any, sample_id: np.int64) -> NeurofmxError:
    """Return the error for a user's function that returned something else than it was given, mostly nothing."""
    file, key = reader.name(int(sample_id))
    problem = f"the {name} returned {'None' if returned is None else type(returned).__name__}, not a {wanted}"
    remedy = f"let it return the {wanted}, even if changed in place"
    return NeurofmxError(problem, file=file, sample=key, remedy=remedy)
