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


def subplots(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.5), **options
) -> tuple[Figure, np.ndarray]:
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


# --- chapter 1: the data ----------------------------------------------------------------------------------------------


@styled
def picture_row(pixels: Sequence[np.ndarray], titles: Sequence[str], height: float = 2.0) -> Figure:
    """Pictures side by side, each uint8 (H, W, 3) of any shape, drawn to one height (inches at most)."""
    aspects = [array.shape[1] / array.shape[0] for array in pixels]
    size = (7, min(height, 7 / sum(aspects)) + 0.4)
    figure, axes = subplots(1, len(pixels), size=size, gridspec_kw={"width_ratios": aspects})
    for ax, array, title in zip(axes[0], pixels, titles, strict=True):
        picture(ax, array, title)
        outline = {"transform": ax.transAxes, "fill": False, "color": "#999999", "linewidth": 0.6, "clip_on": False}
        ax.add_patch(mpl.patches.Rectangle((0, 0), 1, 1, **outline))  # a white picture has no edge of its own
    return figure


@styled
def picture_sizes(widths: Sequence[int], heights: Sequence[int]) -> Figure:
    """Width against height of the files, in pixels on logarithmic axes: a disc's area is the share of the files."""
    pairs, counts = np.unique(np.stack([widths, heights], axis=1), axis=0, return_counts=True)
    figure, axes = subplots(size=(5.5, 3.6))
    ax = axes[0, 0]
    low, high = pairs.min() / 1.4, pairs.max() * 1.4
    for ratio, name, line in ((1, "1 : 1", "--"), (4 / 3, "3 : 4", ":")):
        ax.plot([low, high], [low * ratio, high * ratio], line, color="#777777", label=f"width : height = {name}")
    ax.scatter(*pairs.T, s=8 + 600 * counts / counts.sum(), color=COLOURS[0], alpha=0.6, edgecolor="black", zorder=3)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel="width (pixels)", ylabel="height (pixels)")
    for axis, values in ((ax.xaxis, pairs[:, 0]), (ax.yaxis, pairs[:, 1])):
        ticks = np.unique(np.quantile(values, [0, 0.5, 1], method="nearest"))
        ticks = [tick for i, tick in enumerate(ticks) if i == len(ticks) - 1 or ticks[i + 1] > 1.1 * tick]
        axis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        axis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axis.set_minor_locator(mpl.ticker.NullLocator())
    ax.legend(frameon=False, loc="upper left")
    return figure


@styled
def twins(pixels: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Products with identical pixels, two neighbours each; says so where there are none."""
    if len(pixels):
        return image_grid(pixels, titles, columns=4)
    figure, axes = subplots(size=(7, 0.6))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, "This catalogue holds no two products with identical pixels.", ha="center", va="center")
    return figure


# --- chapter 2: the classifier ----------------------------------------------------------------------------------------


@styled
def learning_curves(history: Sequence[dict]) -> Figure:
    """Loss and accuracy against the epoch, from the records of `classifier.fit`."""
    figure, axes = subplots(1, 2, size=(7, 2.8))
    epochs = [record["epoch"] for record in history]
    for ax, quantity in zip(axes.flat, ("loss", "accuracy"), strict=True):
        for part, marker, colour in (("train", "o", COLOURS[0]), ("validation", "s", COLOURS[1])):
            values = [record.get(f"{part}_{quantity}", np.nan) for record in history]
            ax.plot(epochs, values, marker=marker, markersize=4, color=colour, label=part)
        ax.set_xlabel("epoch")
        ax.set_ylabel(quantity)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(frameon=False)
    return figure


@styled
def confusion(matrix: Sequence[Sequence[int]]) -> Figure:
    """Counts of (true class, predicted class); the shade is the share of the row, so that small classes count too."""
    matrix = np.asarray(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes = subplots(size=(5.6, 4.6))
    ax = axes[0, 0]
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        ax.text(
            column, row, f"{count}", ha="center", va="center", color="white" if share[row, column] > 0.5 else "black"
        )
    names = [name.replace("/", "/\n") for name in CLASS_NAMES]
    ax.set_xticks(range(6), names, fontsize=7)
    ax.set_yticks(range(6), names, fontsize=7)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.grid(visible=False)
    return figure


@styled
def recall_intervals(recall: Sequence[float], intervals: Sequence[Sequence[float]]) -> Figure:
    """Recall of each class with its interval."""
    figure, axes = subplots(size=(7, 2.8))
    ax = axes[0, 0]
    low, high = np.asarray(intervals).T
    ax.errorbar(recall, range(6), xerr=[recall - low, high - recall], fmt="o", capsize=3, color=COLOURS[0])
    ax.set_yticks(range(6), CLASS_NAMES)
    ax.invert_yaxis()
    ax.set_xlabel("recall (share of the class that is found), 95 % interval")
    return figure
