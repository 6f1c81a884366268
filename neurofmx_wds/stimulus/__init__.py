"""Images over time for stimulus experiments; see :mod:`neurofmx_wds.stimulus.loaders`.

Knows loaders and batches; knows nothing of recordings or shards.
"""

from .loaders import (
    StandardDataLoader,
    StimulusContrast,
    StimulusContrastDataLoader,
    StimulusDuration,
    StimulusDurationDataLoader,
    StimulusInterval,
    StimulusIntervalDataLoader,
    StimulusNoise,
    StimulusNoiseDataLoader,
    StimulusRepetition,
    StimulusRepetitionDataLoader,
    get_data_loader,
    get_data_transform,
    get_target_transform,
)

__all__ = [
    "StandardDataLoader",
    "StimulusContrast",
    "StimulusContrastDataLoader",
    "StimulusDuration",
    "StimulusDurationDataLoader",
    "StimulusInterval",
    "StimulusIntervalDataLoader",
    "StimulusNoise",
    "StimulusNoiseDataLoader",
    "StimulusRepetition",
    "StimulusRepetitionDataLoader",
    "get_data_loader",
    "get_data_transform",
    "get_target_transform",
]
