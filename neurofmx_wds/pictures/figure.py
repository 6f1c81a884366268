"""Panels below one another as one picture, and pictures as files, windows and pages.

Knows panels; knows nothing of recordings or samples.
"""

from __future__ import annotations

import base64
import html
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import KeyEvent
from matplotlib.figure import Figure

from ..errors import NeurofmxError, printable
from ..storage.atomic import write_atomic
from .panels import INK, MUTED, Panel

#: Suffixes of files that a picture can be saved as.
SUFFIXES = (".png", ".svg", ".pdf", ".html")
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTED, "text.color": INK,
    "axes.titlecolor": INK, "axes.titlepad": 4, "text.usetex": False, "text.parse_math": False,
    "svg.hashsalt": "neurofmx_wds",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Panels that belong together.

    Attributes:
        title: one line above them.
        panels: from the top to the bottom.
        span: from when to when the common axis of time goes, s.
        caption: what else is said of it, for pages.
        event: s, the time of an event, marked on the common axis.
    """

    title: str
    panels: Sequence[Panel]
    span: tuple[float, float]
    caption: str = ""
    event: float | None = None

    def draw(self, width: float = 11.0) -> Figure:
        """Return the picture as a figure of this width (inches).

        Example:
            >>> import numpy as np
            >>> from neurofmx_wds.pictures.panels import Raster
            >>> raster = Raster(np.array([0.1, 0.7]), np.array([0, 2]), 3, ["CA1", "CA1", "CA3"])
            >>> figure = Picture("a window", [raster], (0.0, 1.0)).draw()
            >>> [axes.get_ylabel() for axes in figure.axes]
            ['unit']
        """
        heights = [each.height for each in self.panels]
        with rc_context(_STYLE):
            figure = Figure(figsize=(width, 0.6 + sum(heights) + 0.35 * len(heights)), layout="constrained")
            if not heights:
                figure.text(0.5, 0.3, "nothing to draw", ha="center", color=MUTED)
            grid = figure.add_gridspec(max(1, len(heights)), 1, height_ratios=heights or [1])
            drawn = [self._panel(figure.add_subplot(grid[row]), panel) for row, panel in enumerate(self.panels)]
            timed = [axes for axes, panel in zip(drawn, self.panels, strict=True) if not panel.own_time]
            for axes in timed[:-1]:
                axes.tick_params(labelbottom=False)
            if timed:
                timed[-1].set_xlabel("time (s)")
            figure.suptitle(printable(self.title), fontsize=10, fontweight="bold", ha="left", x=0.01)
        return figure

    def _panel(self, axes: Axes, panel: Panel) -> Axes:
        if panel.own_time:
            panel.draw(axes)
            return axes
        axes.set_xlim(self.span)
        panel.draw(axes)
        axes.set_xlim(self.span)
        if self.event is not None:
            axes.axvline(self.event, color=INK, linestyle="--", linewidth=0.8)
        return axes


def save(pictures: Sequence[Picture], path: str | os.PathLike[str]) -> list[Path]:
    """Write pictures to files: one page of HTML, or one image each.

    Args:
        pictures: what to draw.
        path: its suffix says how: one of `SUFFIXES`. Of several images, a number goes before the suffix.

    Returns:
        The files.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".html":
        write_atomic(path, page(pictures[0].title if len(pictures) == 1 else path.stem, pictures).encode())
        return [path]
    names = [path] if len(pictures) == 1 else [path.with_stem(f"{path.stem}_{i:03d}") for i in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        write_atomic(name, image_of(picture, path.suffix.lower().lstrip(".")))
    return names


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError unless a picture can be saved in a file of this name."""
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise ValueError(f"must end in {', '.join(SUFFIXES)}, not {suffix or 'nothing'}")


def image_of(picture: Picture, kind: str = "png", dpi: int = 110) -> bytes:
    """Return a picture as the bytes of an image file, the same in every run."""
    data = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as a box
        picture.draw().savefig(data, format=kind, dpi=dpi, metadata=dates.get(kind))
    return data.getvalue()


def page(title: str, pictures: Iterable[Picture]) -> str:
    """Return a self-contained HTML page of pictures; nothing in their texts acts in it."""
    parts = [f"<h1>{html.escape(printable(title))}</h1>"]
    for picture in pictures:
        parts.append(f"<figure>{image_tag(picture)}<figcaption>{html.escape(picture.caption)}</figcaption></figure>")
    return document(title, "\n".join(parts))


def image_tag(picture: Picture) -> str:
    """Return a picture as an image tag that holds the image itself."""
    data = base64.b64encode(image_of(picture)).decode("ascii")
    return f'<img alt="{html.escape(picture.title, quote=True)}" src="data:image/png;base64,{data}">'


_CSS = """\
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22272b; background: #fff;
       margin: 0 auto; max-width: 1120px; padding: 1.2rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #d5d9dc; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1rem 0; }
figcaption { color: #4a5359; font-size: .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e7e9; text-align: left; vertical-align: top; }
th { color: #4a5359; font-weight: 600; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { background: #f5f6f7; padding: .7rem; overflow-x: auto; font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { color: #4a5359; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
li { overflow-wrap: anywhere; }
"""


def document(title: str, body: str) -> str:
    """Return a whole HTML page, which loads nothing from elsewhere and runs no scripts."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(printable(title))}</title><style>{_CSS}</style></head><body>\n{body}\n</body></html>\n"
    )


def show_window(pictures: Sequence[Picture]) -> None:
    """Show pictures in a window; the arrow keys turn the pages. Return when it is closed.

    Raises:
        NeurofmxError: no window can be opened here.
    """
    import matplotlib.pyplot as plt

    try:
        plt.switch_backend(plt.get_backend())
        interactive = plt.get_backend().lower() != "agg"
    except ImportError:
        interactive = False
    if not interactive:
        raise NeurofmxError("no window can be opened here", remedy="give a file to write the picture to (output)")
    window = plt.figure(figsize=(11, 7), layout="constrained")
    turned = {"at": 0}

    def turn(step: int) -> None:
        turned["at"] = min(max(turned["at"] + step, 0), len(pictures) - 1)
        window.clear()
        image = plt.imread(io.BytesIO(image_of(pictures[turned["at"]])), format="png")
        axes = window.add_axes((0, 0, 1, 1))
        axes.imshow(image)
        axes.set_axis_off()
        window.canvas.draw_idle()

    steps = {"right": 1, "left": -1, "pagedown": 10, "pageup": -10, " ": 1}

    def pressed(event: KeyEvent) -> None:
        turn(steps.get(str(event.key), 0))

    window.canvas.mpl_connect("key_press_event", pressed)
    turn(0)
    plt.show()
