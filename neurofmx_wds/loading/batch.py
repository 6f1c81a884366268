"""The type of a batch, for editors and type checkers: which values its usual keys have.

Knows names and types only. A batch is an ordinary dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from torch import Tensor

#: Fields that are tensors, where all samples of a batch are alike.
TensorField = Literal[
    "spikes", "spikes_mask", "behavior", "behavior_mask", "lfp", "lfp_mask", "ophys", "ophys_mask", "events",
    "spike_times", "spike_units", "spike_mask", "spike_offsets", "video", "video_mask", "label",
]  # fmt: skip


class Batch(dict[str, Any]):
    """The type of a batch, for annotations: field → tensor of shape (B, …), or a list of B values where samples differ.

    Loaders deliver plain dictionaries.

    Example:
        >>> import torch
        >>> def n_spikes(batch: Batch) -> float:
        ...     return float(batch["spikes"].sum())
        >>> n_spikes({"spikes": torch.ones(2, 100, 15), "metadata": [{}, {}], "__key__": ["a", "b"]})
        3000.0
    """

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, name: TensorField, /) -> Tensor: ...
        @overload
        def __getitem__(self, name: Literal["metadata"], /) -> Sequence[dict[str, Any]]: ...
        @overload
        def __getitem__(self, name: Literal["__key__", "__dataset__"], /) -> list[str]: ...
        @overload
        def __getitem__(self, name: str, /) -> Any: ...
        def __getitem__(self, name: str, /) -> Any: ...
