"""Figures in words, made from what is drawn: what a page tells a reader who does not see the picture.

    repr(plots.class_bars({"training": shares}))  # "share of images: training Men/Accessories 0.11, ..."

Every figure of `plots` is `Described`; its text form stands beside the PNG in the executed notebook, and
`tools.book` adds it to the alt text of the page.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FuncFormatter

LIMIT = 700  # characters; a screen reader reads them all


class Described(Figure):
    """A matplotlib figure whose text form says what it shows."""

    def __repr__(self) -> str:
        return in_words(self)


def in_words(figure: Figure) -> str:
    """What a figure shows: its pictures by their labels, the values of bars and points, the ends of lines."""
    pictures = [axes for axes in figure.axes if axes.images]
    labels = [
        text
        for axes in pictures
        for text in (axes.get_ylabel(), axes.get_title())
        if text
    ]
    parts = [f"Pictures: {_listed(labels)}."] if labels else []
    for axes in figure.axes:
        if axes not in pictures and (values := list(filter(None, _values(axes)))):
            names = " against ".join(
                filter(None, (axes.get_ylabel(), axes.get_xlabel()))
            )
            parts.append(
                f"{': '.join(filter(None, (axes.get_title(), names, '; '.join(values))))}."
            )
    text = " ".join(" ".join(parts).split())
    return text if len(text) <= LIMIT else text[:LIMIT].rsplit(" ", 1)[0] + " and more."


def _listed(labels: list[str]) -> str:
    return ", ".join(dict.fromkeys(" ".join(label.split()) for label in labels))


def _values(axes: Axes) -> list[str]:
    found = [
        _table(axes, part) for part in axes.collections if isinstance(part, QuadMesh)
    ]
    found += [
        _bars(axes, part) for part in axes.containers if isinstance(part, BarContainer)
    ]
    found += [
        _points(axes, part)
        for part in axes.containers
        if isinstance(part, ErrorbarContainer)
    ]
    found += [
        _cloud(part) for part in axes.collections if isinstance(part, PathCollection)
    ]
    found = found or [
        _line(part) for part in axes.lines if not part.get_label().startswith("_")
    ]
    return found or [text.get_text() for text in axes.texts]


def _table(axes: Axes, mesh: QuadMesh) -> str:
    """The numbers written into the fields, a row after the other."""
    rows, columns = mesh.get_array().shape
    texts = np.reshape([text.get_text() for text in axes.texts], (rows, columns))
    return "; ".join(
        f"{name} {' '.join(row)}"
        for name, row in zip(_categories(axes.yaxis), texts, strict=True)
    )


def _bars(axes: Axes, bars: BarContainer) -> str:
    return _named(
        bars.get_label(), _categories(axes.xaxis), [bar.get_height() for bar in bars]
    )


def _points(axes: Axes, points: ErrorbarContainer) -> str:
    """Values along the axis that has no names; a single point is named by the text beside it."""
    x, y = points.lines[0].get_data()
    if rows := _categories(axes.yaxis):
        return _named(points.get_label(), [rows[round(place)] for place in y], x)
    beside = [
        text.get_text()
        for text in axes.texts
        if getattr(text, "xy", None) == (x[0], y[0])
    ]
    return _named(points.get_label(), _categories(axes.xaxis) or beside, y)


def _line(line: Line2D) -> str:
    values = [value for value in line.get_ydata() if np.isfinite(value)]
    return (
        f"{line.get_label()} from {_number(values[0])} to {_number(values[-1])}"
        if values
        else ""
    )


def _cloud(points: PathCollection) -> str:
    offsets = points.get_offsets()
    ranges = (
        f"{_number(low)} to {_number(high)}"
        for low, high in zip(offsets.min(0), offsets.max(0), strict=True)
    )
    return f"{len(offsets)} points, across {next(ranges)}, up {next(ranges)}"


def _named(label: str, names: list[str], values: list[float]) -> str:
    numbers = [_number(value) for value in values]
    shown = [
        f"{name} {number}" for name, number in zip(names, numbers, strict=False)
    ] or numbers
    return ("" if label.startswith("_") else f"{label} ") + ", ".join(shown)


def _categories(axis: Axis) -> list[str]:
    """Names along an axis; none where it holds numbers."""
    named = isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter)
    return (
        [tick.get_text().replace("\n", "") for tick in axis.get_ticklabels()]
        if named
        else []
    )


def _number(value: float) -> str:
    return f"{value:.3g}"
