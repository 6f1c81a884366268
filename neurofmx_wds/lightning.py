"""PyTorch Lightning data modules: ours, and those of bionemo-webdatamodule by the same names.

Needs ``pip install 'neurofmx-wds[lightning]'``.
"""

from .integrations.bionemo import PickledDataWDS, WebDataModule
from .integrations.neuro_data_module import NeuroDataModule
from .integrations.splits import Split

__all__ = ["NeuroDataModule", "PickledDataWDS", "Split", "WebDataModule"]
