"""Panels: controls over a figure in JupyterLab; in the published page a figure that stands still.

    panels.explorer(draw, still, method=["guided", "gradient"], picture=(0, 9))

A cell's output may hold the same thing in several forms. This one holds widgets, which need a kernel, and a picture:
JupyterLab shows the first, and the page, which has no kernel behind it, the second.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ipywidgets
    from matplotlib.figure import Figure


class Panel:
    """What a cell shows: the widgets `box`, or where there are none the picture `still` (a PNG), or its `words`."""

    def __init__(self, box: ipywidgets.Widget, still: bytes, words: str):
        self.box, self.still, self.words = box, still, words

    def _repr_mimebundle_(self, **_options) -> dict[str, str]:
        still = {
            "image/png": base64.b64encode(self.still).decode(),
            "text/plain": self.words,
        }
        return self.box._repr_mimebundle_() | still


def explorer(draw: Callable[..., Figure], still: Figure, **choices: Sequence) -> Panel:
    """The figure `still`, and below it controls that call `draw` anew.

    draw: takes one keyword argument a control. choices: a list is a menu of its entries, a pair of whole numbers a
    slider from the first to the second. Taught in: chapter 3.
    """
    import ipywidgets

    controls = {name: _control(name, values) for name, values in choices.items()}
    moving = ipywidgets.Image(format="png")

    def update(_change: object = None) -> None:
        moving.value = _png(
            draw(**{name: control.value for name, control in controls.items()})
        )

    for control in controls.values():
        control.observe(update, names="value")
    update()
    standing = ipywidgets.Image(value=_png(still), format="png")
    return Panel(
        ipywidgets.VBox([standing, ipywidgets.HBox([*controls.values()]), moving]),
        standing.value,
        repr(still),
    )


def _control(name: str, values: Sequence) -> ipywidgets.Widget:
    """A slider for a pair of whole numbers, a menu for everything else; drawn anew when a slider is let go."""
    import ipywidgets

    if isinstance(values, tuple):
        least, most = values
        return ipywidgets.IntSlider(
            least, least, most, description=name, continuous_update=False
        )
    return ipywidgets.Dropdown(options=list(values), description=name)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight")
    return stream.getvalue()
