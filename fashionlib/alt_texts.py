"""Figures in words, made from what is drawn: what a reader hears who does not see them.

    in_words(plots.class_bars({"training": fractions}))
    # "fraction of images: training Men/Accessories 0.11, Women/Accessories 0.28, ..."

The words stand beside the image in an executed notebook, as its text form; `tools.book`
makes the page's alternative text of them.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter


def in_words(figure: Figure) -> str:
    """What a figure shows, in at most 700 characters: its images by their labels, the
    values of bars, points and tables, both ends of lines, clouds by their label.

    Taught in: chapter 1
    """
    sentences = []
    for axes in figure.axes:
        names = " against ".join(filter(None, [axes.get_ylabel(), axes.get_xlabel()]))
        values = "; ".join(_values(axes)).removesuffix(".")
        sentences.append(f"{names}: {values}.".removeprefix(": "))
    text = " ".join(" ".join(sentences).replace("/\n", "/").split())
    if len(text) > 700:
        text = text[:690].rsplit(" ", 1)[0] + " and more."
    return text


class Described(Figure):
    """A figure whose text form is what it shows."""

    __repr__ = in_words


def _values(axes: Axes) -> list[str]:
    """One text for all images, each row of a table, each series and each cloud."""
    texts = [text.get_text() for text in axes.texts if text.get_text()]
    columns, rows = _tick_names(axes.xaxis), _tick_names(axes.yaxis)
    if axes.images:
        return ["Images: " + ", ".join(dict.fromkeys(texts))]
    if columns and rows and len(texts) == len(rows) * len(columns):
        cells = np.reshape(texts, (len(rows), len(columns)))
        return [" ".join([rows[i], *cells[i]]) for i in range(len(rows))]
    found = [_series(drawn, columns, rows) for drawn in axes.containers]
    clouds = [cloud.get_label() for cloud in axes.collections]
    found += [label for label in clouds if not label.startswith("_")]
    return found or texts


def _series(drawn: BarContainer | ErrorbarContainer, columns: list, rows: list) -> str:
    """Bars by their columns, points by their rows where these have names, or a line."""
    if isinstance(drawn, BarContainer):
        names, values = columns or rows, drawn.datavalues
        if len(names) != len(values):  # those of a histogram have only their places
            names = [f"{bar.get_x():.3g}" for bar in drawn]
    elif drawn[0].get_linestyle() != "None":
        known = [y for _, y in drawn[0].get_xydata() if np.isfinite(y)] or [np.nan]
        names, values = ["begins at", "ends at"], [known[0], known[-1]]
    else:
        values, places = drawn[0].get_xydata().T
        names = [rows[int(place)] for place in places] if rows else places
    pairs = [f"{name} {value:.3g}" for name, value in zip(names, values, strict=True)]
    pairs = [pair.replace(" nan", " no number") for pair in pairs]
    return f"{drawn.get_label()} {', '.join(pairs)}"


def _tick_names(axis) -> list[str]:
    """The names along an x or y axis; none where it holds numbers."""
    named = isinstance(axis.get_major_formatter(), FuncFormatter | StrCategoryFormatter)
    return [label.get_text() for label in axis.get_ticklabels()] if named else []
