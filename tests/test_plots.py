"""Figures are looked at by people; what can be counted is tested here."""

import io

import numpy as np
from PIL import Image

from fashionlib import plots


def test_animation_shows_every_moment_and_begins_anew():
    moments = {
        epoch: np.full((16, 8, 8, 3), 10 * epoch, np.uint8) for epoch in (1, 5, 9)
    }
    film = Image.open(io.BytesIO(plots.animation(moments, columns=8).data))
    assert (film.n_frames, film.size, film.info["loop"]) == (3, (64, 16), 0)
    shown = []
    for i in range(3):
        film.seek(i)
        shown.append((film.convert("RGB").getpixel((5, 5)), film.info["duration"]))
    assert shown == [((10,) * 3, 400), ((50,) * 3, 400), ((90,) * 3, 2000)]
