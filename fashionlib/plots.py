"""Figures in one style: data in, a matplotlib figure out.

    figure = plots.panels({"loss": {"training": (epochs, losses)}}, "epoch")
    plots.show(figure, f"Loss after each epoch; at the end {losses[-1]:.2f}.")

    with plots.axes(height=4) as (figure, ax):  # a figure of one's own, in our style
        ax.scatter(widths, heights)

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
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence

with contextlib.suppress(KeyError):  # one that is none stops matplotlib's import
    BACKEND = os.environ.pop("MPLBACKEND")
import matplotlib as mpl
import numpy as np
from IPython.display import Code, Markdown, display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fashionlib.alt_texts import Described, in_words
from fashionlib.catalogue import CLASS_NAMES

with contextlib.suppress(NameError, ValueError):  # for figures of the reader's own
    mpl.rcParams["backend"] = os.environ["MPLBACKEND"] = BACKEND

# inches: of a figure, the height and the width of the type; pixels an inch as shown
WIDTH, LINE, CHARACTER, DPI = 7, 0.19, 0.08, 110
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "k", "0.6"]
MARKERS, LINES = list("os^DvPX*<>ph"), ["-", "--", ":", "-."]
NAMES = [name.replace("/", "/\n") for name in CLASS_NAMES]  # in two lines
SERIES = mpl.cycler(color=(2 * COLOURS)[:12], marker=MARKERS, linestyle=3 * LINES)
STYLE = {key: mpl.rcParamsDefault[key] for key in mpl.rcParams if key != "backend"}
STYLE |= {"axes.prop_cycle": SERIES, "text.parse_math": False, "legend.frameon": False}
STYLE |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "0.9"}
# image.lut is read when matplotlib is imported: maps of 256 colours whatever it says
MAPS = {name: mpl.colormaps[name].resampled(256) for name in ("Greys", "Blues")}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "errorbar.capsize": 2}


def png(figure: Figure, scale: int = 2) -> bytes:
    """The figure as a PNG file, cropped, with `scale` pixels for each one as shown.

    Taught in: chapter 1
    """
    stream = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # letters that the font lacks
        figure.savefig(stream, dpi=scale * DPI, bbox_inches="tight")
    return stream.getvalue()


def show(figure: Figure, caption: str) -> None:
    """Display a figure, with its words for who cannot see it, and below it the caption.

    caption: plain text, one paragraph.
    Taught in: chapter 1
    """
    show_png(png(figure), in_words(figure), caption, scale=2)


def show_png(data: bytes, words: str, caption: str, scale: int = 1) -> None:
    """Display a PNG file, its words for who cannot see it, and below it the caption.

    scale: its pixels for each one as shown. caption: plain text, one paragraph.
    Taught in: chapter 5
    """
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
def axes(rows: int = 1, height: float = 3):
    """A figure, `height` inches high, with its axes, to be drawn on in our style.

    A context that yields (figure, axes), and an array of axes for several rows.
    Taught in: chapter 1
    """
    with mpl.rc_context(STYLE):
        figure = Described(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, sharex=True)


def _wrap(text: str, inches: float) -> str:
    """The text in lines that fit into a width; class names break after their slash."""
    fill = textwrap.TextWrapper(inches / CHARACTER, break_long_words=False).fill
    return "\n".join(map(fill, text.replace("/", "/\n").split("\n")))


def _intervals(values) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (N,); of estimates the distances (2, N) to the ends of their intervals."""
    if not all(hasattr(each, "ci95") for each in values):
        return np.asarray(values), None
    means = np.array([estimate.value for estimate in values])
    return means, np.abs(np.transpose([each.ci95 for each in values]) - means)


# --- images and maps ----------------------------------------------------------------


def image_grid(images: Sequence, titles: Sequence = (), columns: int = 6) -> Figure:
    """Images, each uint8 (H, W, 3), in rows of `columns`, with a title each, if given.

    Those of a row have one height, and each its own width.
    Taught in: chapter 1
    """
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    return _images(rows, titles)


def image_rows(rows: dict[str, Sequence], titles: Sequence = ()) -> Figure:
    """Rows of images and of maps of them, a label above each, `titles` on top.

    uint8 (H, W, 3): an image. float (3, H, W): a signed map, grey where it is zero,
    lighter channels where positive. float (H, W): a magnitude, darker is more. Each map
    is scaled by its own 99.5th percentile.
    Taught in: chapter 3
    """
    return _images([*rows.values()], titles, [*rows])


def _images(rows: list[Sequence], titles: Sequence, labels=()) -> Figure:
    """Rows of images or maps, `titles` from the first on, `labels` above the rows."""
    rows = [list(map(_imshow, row)) for row in rows if len(row)]
    if not rows:
        return text_figure("There is no image to show.")
    widest = max(sum(map(_aspect, row)) + 0.05 * len(row) for row in rows)
    height, y = min(2.2, WIDTH / widest), 0.0  # inches
    with axes() as (figure, ax):  # one pair of axes, in inches: many are slow
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
    """What imshow takes for an image, a signed map or a magnitude, see `image_rows`."""
    value = np.nan_to_num(np.asarray(value))
    if value.dtype == np.uint8:
        return {"X": value}
    size = np.abs(value)  # of a map that is zero nearly everywhere the largest counts
    limit = float(np.percentile(size, 99.5)) or float(size.max()) or 1.0
    if value.ndim == 3:
        return {"X": np.clip(0.5 + value.transpose(1, 2, 0) / (2 * limit), 0, 1)}
    return {"X": value, "cmap": MAPS["Greys"], "vmin": 0, "vmax": limit}


def _aspect(options: dict) -> float:
    """Width through height of what imshow takes."""
    height, width = options["X"].shape[:2]
    return width / height


def text_figure(message: str) -> Figure:
    """A figure that holds a sentence: what could not be measured or found, and why.

    Taught in: chapter 1
    """
    with axes(height=0.8) as (figure, ax):
        ax.set_axis_off()
        ax.text(0.5, 0.5, textwrap.fill(message, 80), ha="center", va="center")
    return figure


# --- counts, estimates, curves ------------------------------------------------------


def class_bars(fractions: dict[str, Sequence], ylabel="fraction of images") -> Figure:
    """Grouped bars over the six classes: legend entries to six numbers.

    Taught in: chapter 1
    """
    width = 0.8 / len(fractions)
    with axes() as (figure, ax):
        for i, (name, values) in enumerate(fractions.items()):
            look = {"hatch": i * "/", "edgecolor": "white", "align": "edge"}
            ax.bar(np.arange(6) + i * width, values, width, label=name, **look)
        ax.set(xticks=np.arange(6) + 0.4, xticklabels=NAMES, ylabel=ylabel)
        if len(fractions) > 1:
            figure.legend(loc="outside lower center", ncols=3)
    return figure


def estimates(series: dict, xlabel: str, reference: float | None = 0) -> Figure:
    """Values with their intervals: legend entry to row to estimate; "" for one series.

    reference: where a line stands; None draws none.
    Taught in: chapter 2
    """
    rows = list(dict.fromkeys(itertools.chain(*series.values())))  # each once, in order
    if not rows:
        return text_figure("There is no number to show.")
    with axes(height=1 + 0.12 * len(rows) * (len(series) + 2)) as (figure, ax):
        for i, (label, values) in enumerate(series.items()):
            shift = (i + 1.5) / (len(series) + 2)  # within the row, from 0 to 1
            places = [rows.index(name) + shift for name in values]
            means, reach = _intervals([*values.values()])
            ax.errorbar(means, places, None, reach, label=label or " ", linestyle="")
        if reference is not None:
            ax.axvline(reference, color="black", linewidth=0.8)
        ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
        ax.set(xlabel=xlabel, ylim=(len(rows), 0))
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=2)
    return figure


def panels(series: dict[str, dict], xlabel: str, rotation: float = 0) -> Figure:
    """Panels of lines, one below the other, over a common x axis.

    series: the label of each y axis to the lines in it: {name: (x, y)}, where y holds
    numbers or estimates. rotation: of the numbers or names along x, degrees.
    Taught in: chapter 2
    """
    with axes(len(series), height=0.6 + 2 * len(series)) as (figure, _):
        for ax, (ylabel, lines) in zip(figure.axes, series.items(), strict=True):
            for name, (x, y) in lines.items():
                step = max(1, len(x) // 12)  # more markers would hide a long line
                look = {"label": name, "errorevery": step, "markevery": step}
                ax.errorbar(x, *_intervals(y), **look)
            ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
            ax.set_ylabel(ylabel)
        ax.set_xlabel(xlabel)
        ax.tick_params(axis="x", rotation=rotation)
    return figure


# --- what moves ---------------------------------------------------------------------


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
