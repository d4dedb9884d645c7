"""Every figure of the course: data in, a matplotlib figure out.

    figure = plots.learning_curves(history)
    plots.show(figure, f"Loss and accuracy; at the end {accuracy:.1%}.")

All figures share one width, one type size and one table of styles, in which series
differ in colour, marker and line, so that they can be told apart in grey, too. The
colours are those of Okabe and Ito (2008), chosen for colour-blind readers. Settings of
the reader's own matplotlib do not matter, and pyplot is not used, so that no figure
shows twice. Text from data is never read as a formula. Where a function takes
estimates, these are `evaluation.Estimate`s: a value and its 95 % interval.
"""

import base64
import contextlib
import inspect
import io
import itertools
import textwrap
from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from IPython.display import Code, Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator

from fashionlib.alt_texts import Described, in_words
from fashionlib.catalogue import CLASS_NAMES

# inches: of a figure, the height and the width of the type; pixels an inch as shown
WIDTH, LINE, CHARACTER, DPI = 7, 0.19, 0.08, 110
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "k", "0.6"]
MARKERS, LINES = list("os^DvPX*<>ph"), ["-", "--", ":", "-."]
NAMES = [name.replace("/", "/\n") for name in CLASS_NAMES]  # in two lines
SERIES = mpl.cycler(color=(2 * COLOURS)[:12], marker=MARKERS, linestyle=3 * LINES)
STYLE = {key: mpl.rcParamsDefault[key] for key in mpl.rcParams if key != "backend"}
STYLE |= {"axes.prop_cycle": SERIES, "text.parse_math": False, "legend.frameon": False}
STYLE |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "0.9"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "errorbar.capsize": 2}


def png(figure: Figure, scale: int = 2) -> bytes:
    """The figure as a PNG file, cropped, with `scale` pixels for each one as shown.

    Taught in: chapter 1
    """
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, dpi=scale * DPI, bbox_inches="tight")
    return stream.getvalue()


def show(figure: Figure, caption: str) -> None:
    """Display a figure, with its words for who cannot see it, and below it the caption.

    caption: plain text, one paragraph.
    Taught in: chapter 1
    """
    _display(png(figure), in_words(figure), caption, scale=2)


def _display(data: bytes, words: str, caption: str, scale: int) -> None:
    from fashionlib.evaluation import escape  # it needs torch, which takes seconds

    width = int.from_bytes(data[16:20]) // scale  # where a PNG file holds its width
    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": words}
    display(bundle, raw=True, metadata={"image/png": {"width": width}})
    display(Markdown(f"*{escape(caption)}*"))


def source(obj: object) -> Code:
    """The source code of a function or class, highlighted.

    Taught in: chapter 1
    """
    return Code(inspect.getsource(obj), language="python")


# --- what the figures share ---------------------------------------------------------


@contextlib.contextmanager
def _figure(rows: int = 1, height: float = 3):
    """A figure, `height` inches high, with axes, to be drawn on in our style."""
    with mpl.rc_context(STYLE):
        figure = Described(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, sharex=True)


def _wrap(text: str, inches: float) -> str:
    """The text in lines that fit into a width; class names break after their slash."""
    fill = textwrap.TextWrapper(inches / CHARACTER, break_long_words=False).fill
    return "\n".join(map(fill, text.replace("/", "/\n").split("\n")))


def _intervals(estimates) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) and the distances (2, N) to the ends of their intervals."""
    values = np.array([estimate.value for estimate in estimates])
    return values, np.abs(np.transpose([each.ci95 for each in estimates]) - values)


def _panels(panels: dict[str, dict], xlabel: str, rotation: float = 0) -> Figure:
    """Panels of lines: the label of y to the lines' names to x, y and, where there are
    intervals, the distances to their ends. rotation: of the numbers or names below."""
    with _figure(len(panels), height=0.6 + 2 * len(panels)) as (figure, _):
        for ax, (ylabel, series) in zip(figure.axes, panels.items(), strict=True):
            for name, (x, y, *reach) in series.items():
                step = max(1, len(x) // 12)  # more markers would hide a long line
                ax.errorbar(x, y, *reach, label=name, errorevery=step, markevery=step)
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
            ax.set_ylabel(ylabel)
        ax.set_xlabel(xlabel)
        ax.tick_params(axis="x", rotation=rotation)
    return figure


# --- images and maps ----------------------------------------------------------------


def image_grid(images: Sequence, titles: Sequence = (), columns: int = 6) -> Figure:
    """Images, each uint8 (H, W, 3), in rows of `columns`, with a title each, if given.

    Taught in: chapter 2
    """
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _images(rows, titles)


def image_row(images: Sequence, titles: Sequence = ()) -> Figure:
    """Images side by side, each uint8 (H, W, 3) with its own H and W, at one height.

    Taught in: chapter 1
    """
    return _images([images], titles)


def image_strips(rows: dict[str, Sequence], titles: Sequence = ()) -> Figure:
    """Rows of images, each uint8 (N, H, W, 3), a label above each, `titles` on top.

    Taught in: chapter 5
    """
    return _images([*rows.values()], titles, [*rows])


def map_rows(rows: dict[str, Sequence], titles: Sequence = ()) -> Figure:
    """Rows of images and of maps of them, a label above each, `titles` on top.

    uint8 (H, W, 3): an image. float (3, H, W): a signed map, grey where it is zero,
    lighter channels where positive. float (H, W): a magnitude, darker is more. Each map
    is scaled by its own 99.5th percentile.
    Taught in: chapter 3
    """
    return _images([*rows.values()], titles, [*rows])


def _images(rows: list[Sequence], titles: Sequence, labels=()) -> Figure:
    """Rows of images or maps, `titles` from the first on, `labels` above the rows."""
    rows = [list(map(_imshow, row)) for row in rows]
    widest = max(sum(map(_aspect, row)) + 0.05 * len(row) for row in rows)
    height, y = min(2.2, WIDTH / widest), 0.0  # inches
    with _figure() as (figure, ax):  # one pair of axes, in inches: many are slow
        for row, label in itertools.zip_longest(rows, labels, fillvalue=""):
            widths, x = [height * _aspect(options) for options in row], 0.0
            names = [_wrap(*pair) for pair in zip(titles, widths, strict=False)]
            titles = titles[len(row) :]
            y += (LINE + 0.06) * bool(label)
            ax.text(0, y - 0.05, " ".join(label.split()), weight="bold", va="bottom")
            y += LINE * max((name.count("\n") + 1 for name in names if name), default=0)
            for options, width, name in itertools.zip_longest(row, widths, names):
                ax.imshow(extent=(x, x + width, y + height, y), **options)
                ax.add_patch(Rectangle((x, y), width, height, fill=False, color="0.8"))
                ax.text(x + width / 2, y - 0.05, name, ha="center", va="bottom")
                x += width + 0.05 * height
            y += 1.05 * height
        figure.set(layout_engine="none", size_inches=(widest * height, y))
        ax.set(position=(0, 0, 1, 1), xlim=(0, widest * height), ylim=(y, 0))
        ax.set_axis_off()
    return figure


def _imshow(value: np.ndarray) -> dict:
    """What imshow takes for an image, a signed map or a magnitude, see `map_rows`."""
    value = np.nan_to_num(np.asarray(value))
    if value.dtype == np.uint8:
        return {"X": value}
    limit = float(np.percentile(np.abs(value), 99.5)) or 1.0
    if value.ndim == 3:
        return {"X": np.clip(0.5 + value.transpose(1, 2, 0) / (2 * limit), 0, 1)}
    return {"X": value, "cmap": "Greys", "vmin": 0, "vmax": limit}


def _aspect(options: dict) -> float:
    """Width through height of what imshow takes."""
    height, width = options["X"].shape[:2]
    return width / height


def text_figure(message: str) -> Figure:
    """A figure that holds a sentence: what could not be measured or found, and why.

    Taught in: chapter 1
    """
    with _figure(height=0.8) as (figure, ax):
        ax.set_axis_off()
        ax.text(0.5, 0.5, textwrap.fill(message, 80), ha="center", va="center")
    return figure


# --- counts and estimates -----------------------------------------------------------


def class_bars(fractions: dict[str, Sequence], ylabel="fraction of images") -> Figure:
    """Grouped bars over the six classes: legend entries to six numbers.

    Taught in: chapter 1
    """
    width = 0.8 / len(fractions)
    with _figure() as (figure, ax):
        for i, (name, values) in enumerate(fractions.items()):
            look = {"hatch": i * "/", "edgecolor": "white", "align": "edge"}
            ax.bar(np.arange(6) + i * width, values, width, label=name, **look)
        ax.set(xticks=np.arange(6) + 0.4, xticklabels=NAMES, ylabel=ylabel)
        if len(fractions) > 1:
            figure.legend(loc="outside lower center", ncols=3)
    return figure


def file_sizes(widths: Sequence[int], heights: Sequence[int]) -> Figure:
    """Width and height of files in pixels: a disc's area is the fraction of the files.

    Taught in: chapter 1
    """
    sizes, counts = np.unique([widths, heights], axis=1, return_counts=True)
    label = f"{len(counts)} sizes, {min(widths)} to {max(widths)} pixels wide"
    with _figure(height=4) as (figure, ax):
        ax.scatter(*sizes, 10 + 300 * counts / counts.sum(), label=label, alpha=0.6)
        ax.axline((0, 0), slope=1, color="0.5", linestyle="--", label="square")
        ax.axline((0, 0), slope=4 / 3, color="0.5", linestyle=":", label="3 : 4")
        ax.set(xlabel="width (pixels)", ylabel="height (pixels)")
        ax.legend(loc="upper left")
    return figure


def confusion_matrix(matrix: Sequence[Sequence[int]]) -> Figure:
    """Counts (true class, predicted class), shaded by the fraction of the row.

    Taught in: chapter 2
    """
    import seaborn as sns

    counts = np.asarray(matrix)
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "linewidths": 1}
    with _figure(height=4) as (figure, ax):
        sns.heatmap(fractions, annot=counts, fmt="d", ax=ax, **look)
        ax.set_xticks(np.arange(6) + 0.5, NAMES)
        ax.set_yticks(np.arange(6) + 0.5, NAMES, rotation=0)
        ax.set(xlabel="predicted class", ylabel="true class")
    return figure


def estimates(series: dict, xlabel: str, reference: float | None = 0) -> Figure:
    """Values with their intervals: legend entry to row to estimate; "" for one series.

    reference: where a line stands; None draws none.
    Taught in: chapter 2
    """
    rows = list(dict.fromkeys(itertools.chain(*series.values())))  # each once, in order
    with _figure(height=1 + 0.12 * len(rows) * (len(series) + 2)) as (figure, ax):
        for i, (label, values) in enumerate(series.items()):
            shift = (i + 1.5) / (len(series) + 2)  # within the row, from 0 to 1
            places = [rows.index(name) + shift for name in values]
            means, reach = _intervals(values.values())
            ax.errorbar(means, places, None, reach, label=label or " ", linestyle="")
        if reference is not None:
            ax.axvline(reference, color="black", linewidth=0.8)
        ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
        ax.set(xlabel=xlabel, ylim=(len(rows), 0))
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=2)
    return figure


def cost_and_accuracy(points: dict[str, tuple], xlabel: str) -> Figure:
    """Accuracy over cost (logarithmic): name to cost and the estimate of the accuracy.

    Taught in: chapter 2b
    """
    with _figure(height=3.6) as (figure, ax):
        for name, (cost, accuracy) in points.items():
            value, reach = _intervals([accuracy])
            ax.errorbar([cost], value, reach, label=name, linestyle="")
            ax.text(cost, accuracy.ci95[1], f"{name}\n", ha="center", va="center")
        ax.set(xscale="log", xlabel=xlabel, ylabel="accuracy, 95 % interval")
        ax.minorticks_off()
        ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    return figure


# --- curves -------------------------------------------------------------------------


def lines(x: Sequence, series: dict[str, Sequence], xlabel: str, ylabel: str) -> Figure:
    """One line for each name of `series`, over the same x.

    Taught in: chapter 5
    """
    return _panels({ylabel: {name: (x, series[name]) for name in series}}, xlabel)


def learning_curves(history: Sequence[dict]) -> Figure:
    """Loss and accuracy of both sets after each epoch, from `training.fit`'s records.

    Taught in: chapter 2
    """
    panels = {"loss": {}, "accuracy": {}}
    for quantity, name in itertools.product(panels, ("train", "validation")):
        values = [record.get(f"{name}_{quantity}", np.nan) for record in history]
        if np.isfinite(values).any():
            panels[quantity][name] = [record["epoch"] for record in history], values
    figure = _panels(panels, "epoch")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def reliability(series: dict[str, dict]) -> Figure:
    """Accuracy over confidence, from `evaluation.reliability`, and the bins' counts.

    Taught in: chapter 2
    """
    accuracy, count = {}, {}
    for name, bins in series.items():
        accuracy[name] = bins["confidence"], bins["accuracy"]
        count[name] = bins["confidence"], bins["count"]
    accuracy["as sure as correct"] = [0, 1], [0, 1]
    return _panels({"accuracy": accuracy, "images in the bin": count}, "confidence")


def deletion_insertion(fractions: Sequence, curves: dict[str, tuple]) -> Figure:
    """Probability of the class over the fraction of pixels deleted, then inserted.

    curves: the name of an order of the pixels to its two curves.
    Taught in: chapter 3
    """
    deleted = {name: (fractions, curve) for name, (curve, _) in curves.items()}
    inserted = {name: (fractions, curve) for name, (_, curve) in curves.items()}
    panels = {"probability, deletion": deleted, "probability, insertion": inserted}
    return _panels(panels, "fraction of the pixels")


def cascade(stages: Sequence[str], panels: dict[str, dict]) -> Figure:
    """Similarity to the trained network's map, stage by stage, a panel for a measure.

    panels: measure to method to a list of estimates, one for each stage.
    Taught in: chapter 3b
    """
    drawn = {measure: {} for measure in panels}
    for measure, series in panels.items():
        for name, values in series.items():
            drawn[measure][name] = stages, *_intervals(values)
    return _panels(drawn, "random from the head down to", rotation=45)


def gan_curves(histories: dict[str, Sequence[dict]], smooth: int = 1) -> Figure:
    """Losses (nats) and mean scores D over `dcgan.fit`'s steps, for each history.

    smooth: steps of the running mean that is drawn.
    Taught in: chapter 5
    """
    import pandas as pd

    panels = {}
    for title, history in histories.items():
        means = pd.DataFrame(history).rolling(smooth, min_periods=1).mean()
        for kind in ("loss", "score"):
            keys = [key for key in means if key.endswith(kind)]  # such as real_score
            lines = {key.split("_")[0]: (means.index, means[key]) for key in keys}
            panels[f"{title}\n{kind}"] = lines
    return _panels(panels, "step")


# --- what moves ---------------------------------------------------------------------


def film(snapshots: dict[int, np.ndarray], columns: int = 8) -> bytes:
    """Images uint8 (N, H, W, 3) of each epoch as an endless film (an animated PNG).

    It begins with the last epoch, which stays longer: a page that stands still, as in
    print, shows the result. N must be a multiple of `columns`.
    Taught in: chapter 5
    """
    from PIL import Image

    *earlier, last = snapshots.values()
    pages = []
    for images in (*[last] * 5, *earlier):  # equal ones become one, which stays longer
        rows = images.reshape(-1, columns, *images.shape[1:])  # (R, columns, H, W, 3)
        pages.append(np.hstack(np.hstack(rows)))  # (R * H, columns * W, 3)
    # one palette of 64 colours for all, or the file would hold three bytes a pixel
    palette = Image.fromarray(np.vstack(pages)).quantize(64)
    first, *others = [Image.fromarray(page).quantize(palette=palette) for page in pages]
    stream = io.BytesIO()
    first.save(stream, "PNG", save_all=True, append_images=others, duration=400, loop=0)
    return stream.getvalue()


def show_film(snapshots: dict[int, np.ndarray], caption: str) -> None:
    """Display the `film` of the snapshots, and below it the caption.

    Taught in: chapter 5
    """
    words = f"{len(snapshots)} moments: epochs {', '.join(map(str, snapshots))}."
    _display(film(snapshots), words, caption, scale=1)


def explorer(draw: Callable[..., Figure], **choices: Sequence):
    """Controls over a figure, which need a running notebook: each change draws anew.

    draw: takes a keyword argument for each of the choices and returns a figure.
    choices: a list becomes a menu, a pair of whole numbers a slider between the two.
    Taught in: chapter 3
    """
    import ipywidgets

    image = ipywidgets.Image(format="png")

    def update(**chosen) -> None:
        image.value = png(draw(**chosen), scale=1)

    panel = ipywidgets.interactive(update, **choices)
    for control in panel.children:
        control.continuous_update = False  # a slider draws when it is let go
    return ipywidgets.VBox([panel, image])
