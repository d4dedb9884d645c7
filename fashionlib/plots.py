"""Every figure of the course: a function takes data and returns a matplotlib Figure; it loads and shows nothing.

    plots.image_grid(pixels, titles)      # the last line of a cell shows the figure it returns

`source(obj)` shows live library code in a chapter, so that a lesson never holds a copy of it.
Colours are Okabe and Ito's (2008), for colour-blind readers; in grey, markers, dashes and hatches tell apart.
"""

from __future__ import annotations

import functools
import inspect
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt

from fashionlib.catalogue import CLASS_NAMES
from fashionlib.descriptions import Described

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)  # one per class, blue first
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
    options |= {
        "figsize": size,
        "squeeze": False,
        "layout": "constrained",
        "FigureClass": Described,
    }
    figure, axes = plt.subplots(rows, columns, **options)
    plt.close(figure)
    return figure, axes


def picture(axes: Axes, pixels: np.ndarray, title: str = "", **options) -> None:
    """One picture without ticks: uint8 (H, W, 3), or (H, W) with a colour map in `options`."""
    axes.imshow(pixels, **options)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


@styled
def image_grid(
    pixels: Sequence[np.ndarray], titles: Sequence[str] = (), columns: int = 6
) -> Figure:
    """Pictures, each uint8 (H, W, 3), in rows of `columns`, with a title each where given.

    Taught in: chapter 2.
    """
    rows = -(-len(pixels) // columns)
    height, width = pixels[0].shape[:2]
    figure, axes = subplots(
        rows,
        columns,
        size=(7, rows * (7 / columns * height / width + 0.25 * bool(titles))),
    )
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(pixels):
            picture(ax, pixels[i], titles[i] if titles else "")
    return figure


@styled
def class_bars(
    shares: dict[str, Sequence[float]], ylabel: str = "share of images"
) -> Figure:
    """Grouped bars over the six classes: `shares` maps a legend entry to six numbers.

    Taught in: chapter 1.
    """
    figure, axes = subplots(size=(7, 3.2))
    ax = axes[0, 0]
    width = 0.8 / len(shares)
    for i, (name, values) in enumerate(shares.items()):
        places = np.arange(6) + (i - (len(shares) - 1) / 2) * width
        ax.bar(
            places,
            values,
            width,
            label=name,
            color=COLOURS[i],
            hatch=("", "//", "..")[i % 3],
            edgecolor="white",
        )
    ax.set_xticks(range(6), [name.replace("/", "/\n") for name in CLASS_NAMES])
    ax.set_ylabel(ylabel)
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False)
    return figure


def source(obj: object) -> object:
    """The source code of a function or class, highlighted in JupyterLab and in the published page."""
    from IPython.display import Code

    return Code(inspect.getsource(obj), language="python")


# --- the landing page -------------------------------------------------------------------------------------------------


@styled
def story(
    *, catalogue: np.ndarray, chosen: np.ndarray, answer: str, guided: np.ndarray, average: np.ndarray,
    generated: np.ndarray, accuracies: dict[str, Sequence[float]],
) -> Figure:  # fmt: skip
    """The course in six panels, one a chapter: nine pictures, one of them and the answer, its map, the average map of
    its class, nine generated pictures (each uint8 (9, H, W, 3)), and accuracies as (value, low, high) from 0 to 1.
    """
    figure, axes = subplots(2, 3, size=(7, 5))
    panels = {
        "1 the catalogue": _mosaic(catalogue),
        f"2 {answer}": chosen,
        "3 where it looks": np.asarray(guided),
        "4 on average": np.asarray(average),
        "5 new products": _mosaic(generated),
    }
    for ax, (title, value) in zip(axes.flat, panels.items(), strict=False):
        ax.imshow(**_shown(value))
        ax.set_title(title, fontsize=11)
        ax.set_axis_off()
    ax = axes[1, 2]
    for row, (name, values) in enumerate(reversed(accuracies.items())):
        value, low, high = (100 * each for each in values)
        colour = COLOURS[len(accuracies) - 1 - row]
        ax.errorbar(
            value,
            row,
            xerr=[[value - low], [high - value]],
            fmt="o",
            color=colour,
            capsize=4,
        )
        ax.text(101, row + 0.16, f"{name} {value:.2f}", ha="right", fontsize=9)
    least = 100 * min(low for _, low, _ in accuracies.values())
    ax.set(
        ylim=(-0.5, len(accuracies) - 0.3),
        yticks=[],
        xlim=(min(least, 85) - 3, 102),
        xlabel="right on the test part, %",
    )
    ax.set_title("6 the study and ours", fontsize=11)
    return figure


def _mosaic(pictures: np.ndarray) -> np.ndarray:
    """Nine pictures (9, H, W, 3) as one of three rows."""
    return np.concatenate(
        [
            np.concatenate(row, axis=1)
            for row in np.reshape(pictures, (3, 3, *pictures.shape[1:]))
        ]
    )


# --- chapter 1: the data ----------------------------------------------------------------------------------------------


@styled
def picture_row(
    pixels: Sequence[np.ndarray], titles: Sequence[str], height: float = 2.0
) -> Figure:
    """Pictures side by side, each uint8 (H, W, 3) of any shape, drawn to one height (inches at most).

    Taught in: chapter 1.
    """
    aspects = [array.shape[1] / array.shape[0] for array in pixels]
    size = (7, min(height, 7 / sum(aspects)) + 0.4)
    figure, axes = subplots(
        1, len(pixels), size=size, gridspec_kw={"width_ratios": aspects}
    )
    for ax, array, title in zip(axes[0], pixels, titles, strict=True):
        picture(ax, array, title)
        outline = {
            "transform": ax.transAxes,
            "fill": False,
            "color": "#999999",
            "linewidth": 0.6,
            "clip_on": False,
        }
        ax.add_patch(
            mpl.patches.Rectangle((0, 0), 1, 1, **outline)
        )  # a white picture has no edge of its own
    return figure


@styled
def picture_sizes(widths: Sequence[int], heights: Sequence[int]) -> Figure:
    """Width against height of the files, in pixels on logarithmic axes: a disc's area is the share of the files.

    Taught in: chapter 1.
    """
    pairs, counts = np.unique(
        np.stack([widths, heights], axis=1), axis=0, return_counts=True
    )
    figure, axes = subplots(size=(5.5, 3.6))
    ax = axes[0, 0]
    low, high = pairs.min() / 1.4, pairs.max() * 1.4
    for ratio, name, line in ((1, "1 : 1", "--"), (4 / 3, "3 : 4", ":")):
        ax.plot(
            [low, high],
            [low * ratio, high * ratio],
            line,
            color="#777777",
            label=f"width : height = {name}",
        )
    ax.scatter(
        *pairs.T,
        s=8 + 600 * counts / counts.sum(),
        color=COLOURS[0],
        alpha=0.6,
        edgecolor="black",
        zorder=3,
    )
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set(xlabel="width (pixels)", ylabel="height (pixels)")
    for axis, values in ((ax.xaxis, pairs[:, 0]), (ax.yaxis, pairs[:, 1])):
        ticks = np.unique(np.quantile(values, [0, 0.5, 1], method="nearest"))
        ticks = [
            tick
            for i, tick in enumerate(ticks)
            if i == len(ticks) - 1 or ticks[i + 1] > 1.1 * tick
        ]
        axis.set_major_locator(mpl.ticker.FixedLocator(ticks))
        axis.set_major_formatter(mpl.ticker.ScalarFormatter())
        axis.set_minor_locator(mpl.ticker.NullLocator())
    ax.legend(frameon=False, loc="upper left")
    return figure


@styled
def twins(pixels: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Pairs of products, two neighbours each; says so where there are none.

    Taught in: chapter 1.
    """
    if len(pixels):
        return image_grid(pixels, titles, columns=4)
    figure, axes = subplots(size=(7, 0.6))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(
        0.5, 0.5, "This catalogue holds no such pair.", ha="center", va="center"
    )
    return figure


# --- chapter 2: the classifier ----------------------------------------------------------------------------------------


@styled
def learning_curves(history: Sequence[dict]) -> Figure:
    """Loss and accuracy against the epoch, from the records of `models.fit`.

    Taught in: chapter 2.
    """
    figure, axes = subplots(1, 2, size=(7, 2.8))
    epochs = [record["epoch"] for record in history]
    for ax, quantity in zip(axes.flat, ("loss", "accuracy"), strict=True):
        for part, marker, colour in (
            ("train", "o", COLOURS[0]),
            ("validation", "s", COLOURS[1]),
        ):
            values = [record.get(f"{part}_{quantity}", np.nan) for record in history]
            ax.plot(
                epochs, values, marker=marker, markersize=4, color=colour, label=part
            )
        ax.set_xlabel("epoch")
        ax.set_ylabel(quantity)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(frameon=False)
    return figure


@styled
def confusion(matrix: Sequence[Sequence[int]]) -> Figure:
    """Counts of (true class, predicted class); the shade is the share of the row, so that small classes count too.

    Taught in: chapter 2.
    """
    matrix = np.asarray(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure, axes = subplots(size=(5.6, 4.6))
    ax = axes[0, 0]
    names = [name.replace("/", "/\n") for name in CLASS_NAMES]
    labels = {"xticklabels": names, "yticklabels": names}
    sns.heatmap(
        share,
        annot=matrix,
        fmt="d",
        cmap="Blues",
        vmin=0,
        vmax=1,
        cbar=False,
        square=True,
        ax=ax,
        **labels,
    )
    ax.tick_params(labelsize=7, rotation=0)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    return figure


@styled
def recall_intervals(
    recall: Sequence[float], intervals: Sequence[Sequence[float]]
) -> Figure:
    """Recall of each class with its interval.

    Taught in: chapter 2.
    """
    figure, axes = subplots(size=(7, 2.8))
    ax = axes[0, 0]
    low, high = np.asarray(intervals).T
    ax.errorbar(
        recall,
        range(6),
        xerr=[recall - low, high - recall],
        fmt="o",
        capsize=3,
        color=COLOURS[0],
    )
    ax.set_yticks(range(6), CLASS_NAMES)
    ax.invert_yaxis()
    ax.set_xlabel("recall (share of the class that is found), 95 % interval")
    return figure


@styled
def reliability(series: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """Accuracy against confidence, a line for each entry of `evaluation.reliability`, over the counts of its bins.

    Taught in: chapter 2.
    """
    figure, axes = subplots(
        2, 1, size=(5.6, 4.6), sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    top, bottom = axes[:, 0]
    top.plot([0, 1], [0, 1], linestyle=":", color="#666666", label="as sure as right")
    for (name, bins), colour, marker in zip(
        series.items(), COLOURS, "os^", strict=False
    ):
        top.plot(
            bins["confidence"],
            bins["accuracy"],
            marker=marker,
            markersize=4,
            color=colour,
            label=name,
        )
        bottom.step(bins["confidence"], bins["count"], where="mid", color=colour)
    top.set_ylabel("accuracy in the bin")
    top.legend(frameon=False)
    bottom.set_ylabel("pictures")
    bottom.set_yscale("log")
    bottom.set_xlabel("confidence")
    return figure


@styled
def cost_and_accuracy(points: dict[str, dict[str, float]], xlabel: str) -> Figure:
    """One named point each: `cost` (logarithmic), `accuracy` and its interval `low` to `high`, shares.

    Taught in: chapter 2b.
    """
    figure, axes = subplots(size=(7, 3.2))
    ax = axes[0, 0]
    for i, (name, point) in enumerate(points.items()):
        reach = [
            [point["accuracy"] - point["low"]],
            [point["high"] - point["accuracy"]],
        ]
        ax.errorbar(
            point["cost"],
            point["accuracy"],
            yerr=reach,
            fmt="os^Dv"[i % 5],
            capsize=3,
            color=COLOURS[i % len(COLOURS)],
        )
        ax.annotate(
            name,
            (point["cost"], point["accuracy"]),
            xytext=(6, 3),
            textcoords="offset points",
            fontsize=8,
        )
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(
        mpl.ticker.LogLocator(subs=(2, 3, 5, 7))
    )  # all nine would run into each other
    for formatter in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
    ax.margins(x=0.2)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("accuracy, 95 % interval")
    return figure


# --- chapters 3 and 4: saliency ---------------------------------------------------------------------------------------


@styled
def map_rows(
    rows: dict[str, Sequence[np.ndarray]], titles: Sequence[str] = ()
) -> Figure:
    """Rows of pictures and maps of them, a label before each row and a title over each column.

    uint8 (H, W, 3): a picture. float (3, H, W): a signed map, grey where it is zero, lighter channels where positive.
    float (H, W): a magnitude, darker is more; or with negative values, blue to red around zero. Magnitudes and
    signed maps are scaled each by its own 99.5th percentile; None stays empty. Taught in: chapter 3.
    """
    columns = max(len(row) for row in rows.values())
    shape = next(
        value.shape
        for row in rows.values()
        for value in row
        if value is not None and value.dtype == np.uint8
    )
    cell = 6.4 / columns
    figure, axes = subplots(
        len(rows), columns, size=(7, len(rows) * cell * shape[0] / shape[1] + 0.35)
    )
    for i, (label, row) in enumerate(rows.items()):
        for ax, value in zip(axes[i], row, strict=False):
            ax.set_xticks([]), ax.set_yticks([])
            if value is not None:
                ax.imshow(**_shown(np.asarray(value)))
        axes[i, 0].set_ylabel(label, fontsize=8)
    for ax in axes.flat:
        ax.spines[:].set_visible(False)
        ax.grid(False)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=7)
    return figure


def _shown(value: np.ndarray) -> dict:
    """What imshow needs for a picture, a signed map of three channels, a magnitude or a difference."""
    if value.dtype == np.uint8:
        return {"X": value}
    limit = (
        float(np.nanpercentile(np.abs(value), 99.5))
        if np.isfinite(value).any()
        else 1.0
    )
    limit = limit or 1.0
    if value.ndim == 3:
        return {
            "X": np.clip(
                0.5 + np.nan_to_num(value).transpose(1, 2, 0) / (2 * limit), 0, 1
            )
        }
    if np.nanmin(value, initial=0) < 0:
        return {"X": value, "cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    return {"X": value, "cmap": "Greys", "vmin": 0, "vmax": limit}


@styled
def scores(
    series: dict[str, dict[str, tuple]], xlabel: str, reference: float | None = None
) -> Figure:
    """Means with 95 % intervals: `series` maps a legend entry to {row: (mean, [low, high])}; one marker a series.

    Taught in: chapter 3.
    """
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    figure, axes = subplots(size=(7, 0.7 + 0.15 * len(names) * (len(series) + 1)))
    ax = axes[0, 0]
    for i, (label, values) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * 0.8 / len(series)
        heights = [names.index(name) + shift for name in values]
        means = np.array([value[0] for value in values.values()])
        reach = np.abs(np.array([value[1] for value in values.values()]).T - means)
        ax.errorbar(
            means,
            heights,
            xerr=reach,
            fmt="osD^vP"[i],
            color=COLOURS[i],
            label=label,
            capsize=2,
            markersize=5,
        )
    ax.axvline(reference if reference is not None else 0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(xlabel)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def faithfulness_curves(
    fractions: Sequence[float], curves: dict[str, tuple[Sequence, Sequence]]
) -> Figure:
    """Deletion (left) and insertion (right): probability of the target over the share of pixels, one line an order.

    Taught in: chapter 3.
    """
    figure, axes = subplots(1, 2, size=(7, 3.4), sharey=True)
    titles = ("deletion: pixels taken away", "insertion: pixels put in")
    for side, (ax, title) in enumerate(zip(axes[0], titles, strict=True)):
        for i, (name, pair) in enumerate(curves.items()):
            style = {
                "color": COLOURS[i % 6],
                "marker": "osD^vP"[i % 6],
                "linestyle": ("-", "--", ":")[i % 3],
            }
            ax.plot(
                fractions, pair[side], label=name, markersize=4, linewidth=1.2, **style
            )
        ax.set_xlabel("share of the pixels")
        ax.set_title(title, fontsize=9)
    axes[0, 0].set_ylabel("mean probability of the class")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


@styled
def cascade(
    stages: Sequence[str], panels: dict[str, dict[str, Sequence[tuple]]]
) -> Figure:
    """A panel for each measure: its mean, with 95 % interval, after each stage, one line a method.

    panels: measure to {method: [(mean, [low, high]), ...]}, one entry a stage. Taught in: chapter 3b.
    """
    figure, axes = subplots(1, len(panels), size=(7, 3.8), sharey=True)
    for ax, (measure, series) in zip(axes[0], panels.items(), strict=True):
        for i, (name, values) in enumerate(series.items()):
            means = np.array([value[0] for value in values])
            reach = np.abs(np.array([value[1] for value in values]).T - means)
            places = np.arange(len(stages)) + (i - (len(series) - 1) / 2) * 0.06
            style = {
                "color": (*COLOURS, "black")[i % 7],
                "marker": "osD^vPX"[i % 7],
                "linestyle": ("-", "--", ":")[i % 3],
            }
            ax.errorbar(
                places,
                means,
                yerr=reach,
                label=name,
                markersize=4,
                linewidth=1,
                elinewidth=0.7,
                **style,
            )
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(stages)), stages, rotation=45)
        ax.set_title(measure, fontsize=9)
        ax.set_xlabel("random from the head down to")
    axes[0, 0].set_ylabel("similarity to the trained map")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


# --- chapter 5: DCGAN -------------------------------------------------------------------------------------------------


def animation(snapshots: dict[int, np.ndarray], columns: int = 8) -> Film:
    """Pictures uint8 (N, H, W, 3) of each epoch as an endless film (animated PNG); the last moment stays longer.

    Taught in: chapter 5.
    """
    from PIL import Image

    moments = [
        np.concatenate(
            [
                np.concatenate(pixels[i : i + columns], axis=1)
                for i in range(0, len(pixels), columns)
            ]
        )
        for pixels in snapshots.values()
    ]
    palette = Image.fromarray(np.concatenate(moments)).quantize(
        64
    )  # one for all: with others the file holds RGB
    frames = [
        Image.fromarray(moment).quantize(palette=palette, dither=Image.Dither.NONE)
        for moment in moments
    ]
    durations = [400] * (len(frames) - 1) + [2000]  # milliseconds
    stream = io.BytesIO()
    frames[0].save(
        stream,
        "PNG",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
    )
    return Film(
        stream.getvalue(),
        f"{len(frames)} moments: epochs {', '.join(map(str, snapshots))}.",
    )


class Film:
    """What a cell shows of the bytes of an animated PNG, with what it shows in words."""

    def __init__(self, data: bytes, words: str):
        self.data, self.words = data, words

    def __repr__(self) -> str:
        return self.words

    def _repr_png_(self) -> bytes:
        return self.data


@styled
def picture_strips(rows: dict[str, np.ndarray], titles: Sequence[str] = ()) -> Figure:
    """Rows of pictures, each uint8 (N, H, W, 3), a label before each row; titles over the columns where given.

    Taught in: chapter 5.
    """
    count, height, width = (
        max(len(row) for row in rows.values()),
        *next(iter(rows.values())).shape[1:3],
    )
    gap = max(1, width // 24)
    inches = 6 / (count * (width + gap))  # of one pixel
    figure, axes = subplots(
        len(rows),
        1,
        size=(7, len(rows) * (height * inches + 0.06) + 0.3 * bool(titles)),
    )
    for ax, (label, row) in zip(axes[:, 0], rows.items(), strict=True):
        strip = np.full((height, count * (width + gap) - gap, 3), 255, np.uint8)
        for i, pixels in enumerate(row):
            strip[:, i * (width + gap) : i * (width + gap) + width] = pixels
        ax.imshow(strip)  # one picture a row: a hundred axes would take seconds
        ax.set_xticks([]), ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.grid(False)  # the titles' ticks would draw lines over the pictures
        ax.set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    if titles:
        places = [i * (width + gap) + width / 2 for i in range(len(titles))]
        axes[0, 0].set_xticks(places, titles, fontsize=7)
        axes[0, 0].tick_params(length=0, labeltop=True, labelbottom=False)
    return figure


@styled
def gan_curves(histories: dict[str, Sequence[dict]], smooth: int = 1) -> Figure:
    """A row per class: losses (left) and mean scores D(x), D(G(z)) (right) over the steps of `dcgan.fit`.

    smooth: length of a running mean in steps, drawn over the pale raw values. Taught in: chapter 5.
    """
    figure, axes = subplots(
        len(histories), 2, size=(7, 0.5 + 2.1 * len(histories)), sharex="col"
    )
    pairs = (("discriminator_loss", "generator_loss"), ("real_score", "fake_score"))
    names = (("discriminator", "generator"), ("D(x), real", "D(G(z)), generated"))
    for row, (title, history) in zip(axes, histories.items(), strict=True):
        for ax, keys, labels in zip(row, pairs, names, strict=True):
            for key, label, colour, line in zip(
                keys, labels, COLOURS, ("-", "--"), strict=False
            ):
                values = np.array([record[key] for record in history])
                window = min(smooth, len(values))
                ax.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    color=colour,
                    alpha=0.25,
                    linewidth=0.6,
                )
                mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
                ax.plot(
                    np.arange(window, len(values) + 1),
                    mean,
                    line,
                    color=colour,
                    label=label,
                )
        row[0].set(title=title, ylabel="loss (nats)")
        if (
            row[0].dataLim.ymin >= 0
        ):  # the hinge loss of a generator that wins is negative
            row[0].set_ylim(bottom=0)
        row[1].set(title=title, ylabel="mean score", ylim=(0, 1))
        row[1].axhline(0.5, color="black", linewidth=0.6)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    lines = [line for ax in axes[0] for line in ax.get_legend_handles_labels()[0]]
    figure.legend(
        handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    return figure


@styled
def generator_slopes(
    score: Sequence[float], slopes: dict[str, Sequence[float]]
) -> Figure:
    """Size of the slope of each generator loss in the logit, over the score D(G(z)).

    Taught in: chapter 5.
    """
    figure, axes = subplots(size=(5.5, 2.8))
    ax = axes[0, 0]
    for (name, values), line in zip(slopes.items(), ("-", "--"), strict=False):
        ax.plot(score, values, line, label=name)
    ax.set(
        xlabel="score D(G(z)) of a generated picture",
        ylabel="size of the slope",
        xlim=(0, 1),
        ylim=(0, None),
    )
    ax.legend(frameon=False)
    return figure


@styled
def not_measured(reason: str) -> Figure:
    """A figure that says why there is none: its place and number in the book stay."""
    figure, axes = subplots(size=(7, 0.8))
    axes[0, 0].text(
        0.5,
        0.5,
        f"not measured here: {reason}",
        ha="center",
        va="center",
        fontsize=9,
        wrap=True,
    )
    axes[0, 0].set_axis_off()
    return figure
