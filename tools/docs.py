"""Write the pages of the API reference: what users import, and nothing else. A warning of pdoc is an error."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pdoc

MODULES = ("neurofmx_wds", "neurofmx_wds.lightning", "neurofmx_wds.stimulus", "neurofmx_wds.errors")


def write_pages(directory: Path) -> None:
    """Write the pages.

    Args:
        directory: where to; made if it is missing.

    Raises:
        UserWarning: a name or a type cannot be found, or a docstring cannot be rendered.
    """
    for name in MODULES:
        module = importlib.import_module(name)
        for each in getattr(module, "__all__", ()):
            getattr(module, each)  # what is imported on use
    pdoc.render.configure(docformat="google", footer_text="neurofmx_wds")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=directory)


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
