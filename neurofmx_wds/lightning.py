"""PyTorch Lightning data modules; see :mod:`neurofmx_wds.integrations.lightning`."""

from .integrations.lightning import NeuroDataModule, PickledDataWDS, Split, WebDataModule

__all__ = ["NeuroDataModule", "PickledDataWDS", "Split", "WebDataModule"]
