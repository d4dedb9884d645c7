"""Tiny catalogues that lack something: a class, a gender, a set, a second image.

folder = degenerate.write("men only", tmp_path)
for name, path in degenerate.degenerate_catalogues(tmp_path).items(): ...
"""

from pathlib import Path

import numpy as np
from conftest import csv_line, encode, write_catalogue

CLASSES = [
    (gender, category)
    for category in ("Accessories", "Apparel", "Footwear")
    for gender in ("Men", "Women")
]
EVERY = {
    # name: gender and category of its products, in the order of their ids
    "apparel only": [("Men", "Apparel"), ("Women", "Apparel")] * 20,
    "men only": [pair for pair in CLASSES if pair[0] == "Men"] * 12,
    "women only": [pair for pair in CLASSES if pair[0] == "Women"] * 12,
    "one class": [("Women", "Footwear")] * 30,
    "one of a class": CLASSES,
    "two of a class": CLASSES * 2,
    "clustered": sorted(CLASSES * 8),  # ids that cluster by class
    "five classes": CLASSES[:5] * 10,
    "all images equal": CLASSES * 8,
    "all images equal, one class": [("Men", "Apparel")] * 30,
    "images of one pixel": CLASSES * 4,
    "one unreadable": CLASSES * 4,
    "one readable": CLASSES,
    "a class without a readable image": CLASSES * 8,
    **{f"{count} products": CLASSES[:count] for count in range(1, 6)},
    "7 products": [*CLASSES, CLASSES[0]],
    "no readable image": CLASSES[:1],  # the only one refused by `prepare`
}


def image(product: int, size: tuple[int, int] = (80, 60)) -> bytes:
    """A JPEG like no other: blocks of colour on white. size: (height, width)."""
    pixels = np.full((*size, 3), 255, np.uint8)
    rng = np.random.default_rng(product)
    height, width = size[0] // 10 * 5, size[1] // 10 * 5
    blocks = rng.integers(0, 200, (5, 5, 3), dtype=np.uint8)
    blocks = blocks.repeat(height // 5, axis=0).repeat(width // 5, axis=1)
    top, left = size[0] // 4, size[1] // 4
    pixels[top : top + height, left : left + width] = blocks
    return encode(pixels, "JPEG", quality=90)


def write(name: str, folder: Path, size: tuple[int, int] = (80, 60)) -> Path:
    """The catalogue of that name, as a new folder below `folder`."""
    products = dict(enumerate(EVERY[name], start=1))
    if name == "images of one pixel":
        size = (1, 1)
    files = {product: image(product, size) for product in products}
    if name.startswith("all images equal"):
        files = dict.fromkeys(products, files[1])
    if name == "one unreadable":
        files[2] = b"no image"
    if name == "one readable":
        files |= dict.fromkeys(range(2, 7), files[2][:300])
    if name == "a class without a readable image":
        files |= {i: b"" for i, pair in products.items() if pair == CLASSES[3]}
    if name == "no readable image":
        files[1] = b""
    lines = [
        csv_line(product, *pair, name=f"Product {product}")
        for product, pair in products.items()
    ]
    return write_catalogue(folder / name.replace(" ", "-"), lines, files)


def degenerate_catalogues(folder: Path) -> dict[str, Path]:
    """All of them, by name."""
    return {name: write(name, folder) for name in EVERY}
