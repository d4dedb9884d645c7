"""Every figure of the course: a function takes data and returns a matplotlib Figure; it loads and shows nothing.

    plots.image_grid(pixels, titles)      # the last line of a cell shows the figure it returns

`source(obj)` shows live library code in a chapter, so that a lesson never holds a copy of it.
Colours are Okabe and Ito's (2008): they stay apart for colour-blind readers and in greyscale.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from fashionlib.catalogue import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # one per class, blue first
STYLE = {
    "figure.dpi": 130,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "image.interpolation": "nearest",
}


def styled(draw: Callable) -> Callable:
    """Draw with the course's style, whatever the reader's own settings are, and leave those as they were."""

    @functools.wraps(draw)
    def wrapper(*arguments, **options):
        with mpl.rc_context(STYLE):
            return draw(*arguments, **options)

    return wrapper


def subplots(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.5), **options) -> tuple[Figure, np.ndarray]:
    """A figure (size in inches) and its axes as an array (rows, columns), closed in pyplot: a cell shows it once."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def picture(axes: Axes, pixels: np.ndarray, title: str = "", **options) -> None:
    """One picture without ticks: uint8 (H, W, 3), or (H, W) with a colour map in `options`."""
    axes.imshow(pixels, **options)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


@styled
def image_grid(pixels: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 6) -> Figure:
    """Pictures, each uint8 (H, W, 3), in rows of `columns`, with a title each where given."""
    rows = -(-len(pixels) // columns)
    height, width = pixels[0].shape[:2]
    figure, axes = subplots(rows, columns, size=(7, rows * (7 / columns * height / width + 0.25 * bool(titles))))
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(pixels):
            picture(ax, pixels[i], titles[i] if titles else "")
    return figure


@styled
def class_bars(shares: dict[str, Sequence[float]], ylabel: str = "share of images") -> Figure:
    """Grouped bars over the six classes: `shares` maps a legend entry to six numbers."""
    figure, axes = subplots(size=(7, 3.2))
    ax = axes[0, 0]
    width = 0.8 / len(shares)
    for i, (name, values) in enumerate(shares.items()):
        ax.bar(np.arange(6) + (i - (len(shares) - 1) / 2) * width, values, width, label=name, color=COLOURS[i])
    ax.set_xticks(range(6), [name.replace("/", "/\n") for name in CLASS_NAMES])
    ax.set_ylabel(ylabel)
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False)
    return figure


def source(obj: object) -> object:
    """The source code of a function or class, highlighted in JupyterLab and in the published page."""
    from IPython.display import Code

    return Code(inspect.getsource(obj), language="python")
