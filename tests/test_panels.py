"""Panels: the controls draw anew, and the output holds a picture for where there is no kernel."""

import base64
import io

import numpy as np
from PIL import Image

from fashionlib import panels, plots


def solid(value: int):
    return plots.image_grid([np.full((4, 4, 3), value, np.uint8)], columns=1)


def test_a_change_of_a_control_draws_anew():
    asked = []

    def draw(method, picture):
        asked.append((method, picture))
        return solid(picture)

    panel = panels.explorer(
        draw, solid(7), method=["guided", "gradient"], picture=(0, 200)
    )
    still, controls, moving = panel.box.children
    method, picture = controls.children
    before = moving.value
    picture.value = 200
    method.value = "gradient"
    assert asked == [("guided", 0), ("guided", 200), ("gradient", 200)]
    assert moving.value != before
    assert still.value == panel.still


def test_the_output_holds_widgets_and_a_picture():
    panel = panels.explorer(lambda picture: solid(picture), solid(7), picture=(3, 5))
    bundle = panel._repr_mimebundle_()
    assert (
        bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
        == panel.box.model_id
    )
    picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert picture.format == "PNG"
    assert (7, 7, 7) in {
        colour for _, colour in picture.convert("RGB").getcolors(1 << 24)
    }
