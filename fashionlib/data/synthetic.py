"""Draws the embedded catalogue: a small synthetic copy of the Kaggle layout, with ground-truth masks.

It stands in for the real download, so that every chapter runs offline, and it knows two things that photographs do not
tell: which pixels are face, hair, garment or item, and where the gender of a product shows (`head_share`).

    from fashionlib.data import synthetic
    folder = synthetic.draw("build/synthetic", products=1200, seed=0)

`<folder>/styles.csv` and `<folder>/images/<id>.jpg` are what Kaggle delivers, defects included; `masks/<id>.png` and
`catalogue.json` (settings and true counts) come on top. What to draw (`describe`: a small record of parameters) is kept
apart from drawing it (`paint`). Measured: 1,200 products take 14 s of processor time, shared by the cores (processes).
"""

import functools
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter, namedtuple
from pathlib import Path

import joblib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fashionlib.catalogue import COLUMNS
from fashionlib.runtime import InputError, progress

VERSION = 1  # raise it with every change of what is drawn: a folder of another version is refused
FACE, HAIR, GARMENT, ITEM = (
    1,
    2,
    3,
    4,
)  # mask values; GARMENT includes the body that wears it, so > 0 is the foreground
CLASS_SHARES = (
    0.11,
    0.13,
    0.28,
    0.21,
    0.16,
    0.11,
)  # class = 2 x (Accessories, Apparel, Other) + (Men, Women)
DATE = 1_500_000_000  # the modification time of every file: the same seed gives the same folder


# --- The tables: colours, garments, heads, items -------------------------------------------------------------------

COLOURS = {
    "Black": (32, 32, 36), "White": (242, 242, 240), "Blue": (52, 98, 176), "Brown": (105, 68, 44),
    "Grey": (132, 134, 138), "Red": (192, 38, 44), "Green": (52, 128, 78), "Pink": (232, 110, 158),
    "Navy Blue": (30, 42, 84), "Purple": (112, 62, 142), "Silver": (186, 190, 196), "Yellow": (240, 200, 70),
    "Beige": (214, 192, 156), "Gold": (206, 164, 76), "Maroon": (116, 28, 46), "Orange": (232, 122, 48),
    "Olive": (106, 108, 58), "Khaki": (168, 152, 112), "Peach": (246, 178, 148), "Lavender": (182, 164, 216),
    "Magenta": (196, 42, 124), "Teal": (26, 122, 128), "Tan": (180, 134, 90), "Turquoise Blue": (64, 184, 196),
}  # fmt: skip
PALETTES = {  # by what they are for and who wears them; "Unisex": the gender is to be told from the head alone
    "Men": "Black Blue Navy_Blue Grey Green White Olive Khaki Brown Maroon Red",
    "Women": "Pink Red Purple Orange Magenta Turquoise_Blue Peach Yellow White Black Lavender Teal",
    "Unisex": "Blue Red Green Grey White Black Yellow Teal Purple Orange Navy_Blue",
    "leather Men": "Black Brown Black Tan Navy_Blue Grey",
    "leather Women": "Red Tan Pink Black Beige Brown Purple",
    "metal": "Silver Gold",
    "lips": "Red Pink Maroon Peach Magenta",
    "beside": "Black Grey Blue Navy_Blue Beige White",  # what is worn with the product
}
SKINS = (
    (246, 214, 186),
    (234, 192, 156),
    (208, 158, 118),
    (164, 114, 80),
    (120, 80, 56),
)
HAIRS = ((28, 22, 20), (52, 36, 28), (86, 56, 36), (128, 82, 44))
BRANDS = "Brookfield Lindenhof Marlowe Tavira Kestrelle Juniper_Lane Solvane Harrowmere Nimbury Ostrella"
LOOKS = {
    "plain": "",
    "side stripe": "",
    "stripes": "Striped ",
    "pinstripes": "Striped ",
    "checks": "Checked ",
}
EXTRAS = (
    "",
    ", Pack of Two",
    ", Gift Box and Card, Pack of Two",
)  # the commas that make a row malformed
USAGES = {
    "Sports Shoes": "Sports",
    "Track Pants": "Sports",
    "Formal Shoes": "Formal",
    "Kurtas": "Ethnic",
}
PAIRS = (
    "Jeans",
    "Trousers",
    "Track Pants",
    "Shorts",
    "Capris",
    "Sunglasses",
    "Socks",
    "Earrings",
)

# Garments: weights for Men, Women and unisex; the part of the figure they dress; y of the hem (0 shoulders, 0.6 hips,
# 1.35 feet); sleeves (1 = to the wrist); collars; how far the hem flares; patterns.
Garment = namedtuple(
    "Garment", "sub weights dresses hem sleeves collars flare patterns"
)
PLAIN, LINES, PRINTS = (
    ("plain",),
    ("plain", "stripes", "pinstripes"),
    ("plain", "dots", "floral", "stripes"),
)
MOTIFS, CHECKS = ("plain", "star", "disc", "bars"), (*LINES, "checks", "checks")
NECKS, SHORT = ("boat", "v", "round"), (0.0, 0.15, 0.4)
APPAREL = {
    "Tshirts": Garment(
        "Topwear",
        (24, 10, 30),
        "top",
        0.62,
        (0.36, 0.42),
        ("round", "v", "polo"),
        0,
        (*LINES, *MOTIFS),
    ),
    "Shirts": Garment(
        "Topwear", (24, 4, 22), "top", 0.64, (0.4, 1.0), ("shirt",), 0, CHECKS
    ),
    "Sweatshirts": Garment(
        "Topwear", (7, 2, 12), "top", 0.62, (1.0,), ("round", "hood"), 0, MOTIFS
    ),
    "Jackets": Garment("Topwear", (6, 2, 8), "top", 0.62, (1.0,), ("zip",), 0, PLAIN),
    "Kurtas": Garment(
        "Topwear", (5, 20, 0), "long", 1.0, (0.7, 1.0), ("mandarin",), 0.06, PRINTS
    ),
    "Tops": Garment("Topwear", (0, 20, 0), "top", 0.55, SHORT, NECKS, 0.05, PRINTS),
    "Dresses": Garment("Dress", (0, 12, 0), "dress", 0.95, SHORT, NECKS, 0.13, PRINTS),
    "Sarees": Garment(
        "Saree", (0, 7, 0), "saree", 1.34, (0.25,), ("boat",), 0.1, PRINTS
    ),
    "Skirts": Garment(
        "Bottomwear", (0, 6, 0), "skirt", 0.95, (0.38,), ("round",), 0.16, PRINTS
    ),
    "Jeans": Garment(
        "Bottomwear", (9, 7, 14), "legs", 1.3, (0.38,), ("round",), 0, PLAIN
    ),
    "Trousers": Garment(
        "Bottomwear", (9, 2, 8), "legs", 1.32, (0.38,), ("round",), 0, PLAIN
    ),
    "Track Pants": Garment(
        "Bottomwear", (5, 1, 6), "legs", 1.28, (0.38,), ("round",), 0, ("side stripe",)
    ),
    "Shorts": Garment(
        "Bottomwear",
        (7, 1, 0),
        "legs",
        0.95,
        (0.38,),
        ("round",),
        0,
        (*PLAIN, "checks"),
    ),
    "Capris": Garment(
        "Bottomwear", (0, 4, 0), "legs", 1.1, (0.38,), ("round",), 0, PLAIN
    ),
}
CUTS = {  # half widths of the figure and of the trouser hem; the share of the flare that is used
    "Men": {
        "shoulder": 0.225,
        "waist": 0.172,
        "hip": 0.168,
        "ankle": 0.07,
        "flare": 0.3,
    },
    "Women": {
        "shoulder": 0.186,
        "waist": 0.122,
        "hip": 0.172,
        "ankle": 0.047,
        "flare": 1.0,
    },
    "Unisex": {
        "shoulder": 0.205,
        "waist": 0.15,
        "hip": 0.17,
        "ankle": 0.058,
        "flare": 0.6,
    },
}
HEADS = {  # hair, beards, width of the face, redness of the lips; "Unisex" where the head must not tell the gender
    "Men": (
        ("short", "short", "crop", "curly", "bob"),
        ("none", "stubble", "full", "moustache"),
        1.04,
        0.0,
    ),
    "Women": (("long", "long", "wavy", "wavy", "bun", "bob"), ("none",), 0.96, 1.0),
    "Unisex": (("bob", "curly", "short"), ("none",), 1.0, 0.3),
}
ARMS = (
    (8, 3),
    (10, -6),
    (14, -2),
    (24, -16),
    (40, -46),
    (46, -58),
    (30, 24),
    (52, 150),
)  # upper, lower arm in degrees
FRAMES = {  # where the shoulder line lies (in widths of the picture), and the scale
    "upper": ((0.5, 0.44), 1.1), "full": ((0.5, 0.30), 0.69), "no head": ((0.5, 0.1), 1.2),
    "long, no head": ((0.5, 0.05), 0.88), "lower": ((0.5, -0.40), 1.12), "flat": ((0.5, 0.28), 1.22),
}  # fmt: skip

# Items: weights for Men and Women (alike where both wear it), the palette, patterns.
Item = namedtuple("Item", "category sub weights palette patterns")
ITEMS = {
    "Watches": Item("Accessories", "Watches", (30, 16), "leather", PLAIN),
    "Belts": Item("Accessories", "Belts", (12, 6), "leather", PLAIN),
    "Wallets": Item("Accessories", "Wallets", (12, 8), "leather", PLAIN),
    "Sunglasses": Item("Accessories", "Eyewear", (13, 8), "leather", PLAIN),
    "Ties": Item("Accessories", "Ties", (10, 0), "any", ("stripes", "checks", "dots")),
    "Backpacks": Item("Accessories", "Bags", (8, 3), "any", PLAIN),
    "Caps": Item("Accessories", "Headwear", (6, 1), "any", PLAIN),
    "Socks": Item("Accessories", "Socks", (9, 2), "any", LINES),
    "Handbags": Item("Accessories", "Bags", (0, 26), "leather", PLAIN),
    "Clutches": Item("Accessories", "Bags", (0, 7), "any", PRINTS),
    "Earrings": Item("Accessories", "Jewellery", (0, 11), "metal", PLAIN),
    "Necklace and Chains": Item("Accessories", "Jewellery", (1, 8), "metal", PLAIN),
    "Bracelet": Item("Accessories", "Jewellery", (1, 6), "metal", PLAIN),
    "Sports Shoes": Item("Footwear", "Shoes", (28, 12), "any", PLAIN),
    "Casual Shoes": Item("Footwear", "Shoes", (28, 9), "any", PLAIN),
    "Formal Shoes": Item("Footwear", "Shoes", (12, 0), "leather", PLAIN),
    "Sandals": Item("Footwear", "Sandal", (10, 6), "leather", PLAIN),
    "Flip Flops": Item("Footwear", "Flip Flops", (8, 6), "any", PLAIN),
    "Heels": Item("Footwear", "Shoes", (0, 28), "leather", PLAIN),
    "Flats": Item("Footwear", "Shoes", (0, 12), "leather", PLAIN),
    "Perfume and Body Mist": Item("Personal Care", "Fragrance", (6, 6), "any", PLAIN),
    "Deodorant": Item("Personal Care", "Fragrance", (5, 4), "any", PLAIN),
    "Lipstick": Item("Personal Care", "Lips", (0, 8), "lips", PLAIN),
    "Nail Polish": Item("Personal Care", "Nails", (0, 7), "any", PLAIN),
    "Free Gifts": Item("Free Items", "Free Gifts", (1, 1), "any", PLAIN),
    "Water Bottle": Item("Sporting Goods", "Sports Equipment", (1, 1), "any", PLAIN),
    "Cushion Covers": Item("Home", "Home Furnishing", (1, 1), "any", PRINTS),
}

# The drawings stand in drawings.txt, in a small language: `name: shape; shape; ...` (a name given again adds a
# variant). Shapes are: area (a smooth outline; a point given twice is a corner), plate (a straight one), line (with
# its radius), oval (centre, half axes), arc (radius; centre, half axes, from and to degrees), beads and dots (radius,
# count; on an arc, on a line), use (another drawing). `*` completes the right half of an outline, `&` adds the mirror
# image. Then comes the paint (-30: 30 % black, +30: 30 % white), and the points x,y: in widths of the picture, y
# down, from the middle of an item or of a figure's shoulders.
DRAWINGS = Path(__file__).with_name("drawings.txt").read_text()


# --- What to draw: parameter records -------------------------------------------------------------------------------


def describe(seed, product_id, *, head_share, gender=None, category=None):
    """Return the parameter record (a dict of plain values) of one product; it depends on the arguments alone.

    `gender` ("Men" or "Women") and `category` (0 Accessories, 1 Apparel, 2 Other) are drawn unless given. Each part of
    the record has its own random stream, so that two records that differ in `gender` only are equal wherever the
    gender must not show: `record["cue"]` names the one part ("head", "garment" or "item") that may tell it.
    Taught in: chapter 1.
    """
    stream = [np.random.default_rng([seed, product_id, part]) for part in range(5)]
    drawn = int(stream[0].choice(6, p=CLASS_SHARES))
    category, gender = (
        drawn // 2 if category is None else category,
        gender or ("Men", "Women")[drawn % 2],
    )
    record = {
        "id": product_id,
        "gender": gender,
        "category": category,
        "scene": _scene(stream[1]),
    }
    if category != 1:
        return record | {"cue": "item", "item": _item(stream[2], gender, category)}
    cue = "head" if stream[0].random() < head_share else "garment"
    garment = _garment(stream[2], "Unisex" if cue == "head" else gender)
    head = _head(stream[3], gender if cue == "head" else "Unisex")
    return record | {
        "cue": cue,
        "garment": garment,
        "head": head,
        "figure": _figure(stream[4], garment["dresses"], cue),
    }


def _pick(random, options, weights=None):
    shares = None if weights is None else np.array(weights) / sum(weights)
    return options[int(random.choice(len(options), p=shares))]


def _colour(random, palette):
    return _pick(random, PALETTES[palette].split()).replace("_", " ")


def _scene(random):
    return {
        "width": _pick(random, (150, 180, 240, 300, 384), (44, 30, 18, 6, 2)),
        "background": _pick(
            random,
            ("white", "near white", "gradient", "colour", "room"),
            (60, 16, 12, 7, 5),
        ),
        "tint": random.integers(150, 236, 3).tolist(),
        "turn": float(random.normal(0, 2)),
        "scale": float(random.uniform(0.9, 1.06)),
        "shift": random.uniform(-0.03, 0.03, 2).tolist(),
        "noise": float(random.uniform(0.6, 2.2)),
        "quality": int(random.integers(78, 95)),
    }


def _garment(random, style):
    column = ("Men", "Women", "Unisex").index(style)
    article = _pick(
        random, list(APPAREL), [kind.weights[column] for kind in APPAREL.values()]
    )
    kind, cut = (
        APPAREL[article],
        {
            name: size * float(random.normal(1, 0.04))
            for name, size in CUTS[style].items()
        },
    )
    return cut | {
        "article": article,
        "dresses": kind.dresses,
        "colour": "Blue" if article == "Jeans" else _colour(random, style),
        "second": _colour(random, style),
        "beside": _colour(random, "beside"),
        "pattern": _pick(random, kind.patterns),
        "period": float(random.uniform(0.03, 0.08)),
        "hem": kind.hem + float(random.uniform(-0.03, 0.03)),
        "sleeve": _pick(random, kind.sleeves),
        "collar": _pick(random, kind.collars),
        "flare": kind.flare * cut["flare"] * float(random.uniform(0.7, 1.3)),
    }


def _head(random, style):
    hair, beards, width, lips = HEADS[style]
    return {
        "style": style,
        "hair": _pick(random, hair),
        "hair_colour": _pick(random, HAIRS),
        "beard": _pick(random, beards),
        "width": width * float(random.normal(1, 0.02)),
        "lips": lips,
    }


def _figure(random, dresses, cue):
    frames = {
        "top": ("upper", "full", "no head", "flat"),
        "legs": ("full", "full", "long, no head", "lower"),
    }
    frames = frames.get(dresses, ("full", "full", "long, no head", "full"))
    frame = _pick(random, frames, (65, 12, 13, 10))
    if cue == "head" and frame not in ("upper", "full"):
        frame = frames[0]  # the only thing that tells the gender must be in the picture
    return {
        "frame": frame,
        "arms": [_pick(random, ARMS, (5, 4, 4, 3, 2, 2, 1, 1)) for _ in "lr"],
        "stance": float(random.uniform(0.0, 0.09)),
        "skin": _pick(random, SKINS, (3, 4, 4, 2, 1)),
    }


def _item(random, gender, category):
    kinds = {
        name: kind
        for name, kind in ITEMS.items()
        if (kind.category == "Accessories") == (category == 0)
    }
    article = _pick(
        random,
        list(kinds),
        [kind.weights[gender == "Women"] for kind in kinds.values()],
    )
    style = (
        gender if random.random() < 0.88 else ("Women", "Men")[gender == "Women"]
    )  # some look like the other's
    palette = {"leather": f"leather {style}", "any": style}.get(
        kinds[article].palette, kinds[article].palette
    )
    return {
        "article": article,
        "style": style,
        "colour": _colour(random, palette),
        "second": _colour(random, style),
        "metal": _colour(random, "metal"),
        "pattern": _pick(random, kinds[article].patterns),
        "period": float(random.uniform(0.04, 0.09)),
        "size": (1.0 if style == "Men" else 0.88) * float(random.normal(1, 0.06)),
        "variant": int(random.integers(12)),
        "mirrored": bool(random.random() < 0.3)
        and kinds[article].category == "Footwear",
    }


# --- The canvas ----------------------------------------------------------------------------------------------------


class Canvas:
    """A picture drawn at twice its size (smooth edges when halved), beside the mask of its parts at its own size."""

    def __init__(self, scene, centre, scale):
        self.width, self.height = scene["width"], scene["width"] * 4 // 3
        self.factor = (
            2 if self.width < 1000 else 1
        )  # a very large picture is smooth enough once it is resized
        self.picture = _background(
            scene, self.width * self.factor, self.height * self.factor
        )
        self.mask = Image.new("L", (self.width, self.height))
        self.pen, self.mask_pen = (
            ImageDraw.Draw(self.picture),
            ImageDraw.Draw(self.mask),
        )
        turn, self.scale = math.radians(scene["turn"]), scale * scene["scale"]
        self.matrix = self.scale * np.array(
            [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        )
        self.centre = np.array(centre) + scene["shift"]

    def fill(self, outlines, paint, part):
        """Fill polygons (each N x 2) with an RGB colour or a texture, and mark them in the mask as `part`."""
        stencil = (
            Image.new("1", self.picture.size)
            if isinstance(paint, Image.Image)
            else None
        )
        pen = ImageDraw.Draw(stencil) if stencil else self.pen
        for outline in outlines:
            pixels = (np.asarray(outline) @ self.matrix + self.centre) * self.width
            pen.polygon(
                (pixels * self.factor).ravel().tolist(), fill=1 if stencil else paint
            )
            self.mask_pen.polygon(pixels.ravel().tolist(), fill=part)
        if stencil:
            self.picture.paste(paint, mask=stencil)

    def stroke(self, points, radius, paint, part):
        """Draw a line with round ends through `points` (N x 2); `radius` is one number or one per point."""
        points = np.asarray(points, float)
        radii = np.broadcast_to(np.asarray(radius, float), len(points))
        along = np.diff(points, axis=0)
        normal = (
            np.stack([-along[:, 1], along[:, 0]], 1)
            / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        )
        start, end = normal * radii[:-1, None], normal * radii[1:, None]
        sides = np.stack(
            [
                points[:-1] + start,
                points[1:] + end,
                points[1:] - end,
                points[:-1] - start,
            ],
            1,
        )
        joints = points[:, None] + radii[:, None, None] * _unit_circle(0, 360, 12)
        self.fill([*sides, *joints], paint, part)

    def texture(self, pattern, colour, second, period):
        """Return the plain colour, or a picture of the pattern as large as the canvas; `period` in widths."""
        if pattern not in PATTERNS:
            return colour
        step = period * self.scale * self.width * self.factor
        x, y = (
            np.arange(self.picture.width)[None] / step,
            np.arange(self.picture.height)[:, None] / step,
        )
        level = np.broadcast_to(
            PATTERNS[pattern](x, y), (self.picture.height, self.picture.width)
        )
        palette = np.array([colour, second, _blend(colour, second, 0.5)], np.uint8)
        return Image.fromarray(palette[level.astype(np.uint8)])

    def sketch(self, name, paints, part, *, variant=0, stretch=(1, 1)):
        """Draw one of the DRAWINGS; `paints` gives its names of colours an RGB or a texture."""
        variants = _drawings()[name]
        for shape, extra, paint, numbers, points in variants[variant % len(variants)]:
            if shape == "use":
                self.sketch(paint, paints, part, stretch=stretch)
                continue
            for side in (1, -1) if extra == "&" else (1,):
                outlines, radius = _outlines(
                    shape,
                    numbers,
                    _mirrored(points) if extra == "*" else np.array(points),
                )
                outlines = [outline * stretch * (side, 1) for outline in outlines]
                if radius is None:
                    self.fill(outlines, _shade(paint, paints), part)
                else:
                    self.stroke(outlines[0], radius, _shade(paint, paints), part)


PATTERNS = {  # (x, y) in periods -> 0 first colour, 1 second colour, 2 between
    "stripes": lambda x, y: y % 1 > 0.6,
    "pinstripes": lambda x, y: (1.6 * x) % 1 > 0.75,
    "checks": lambda x, y: np.array([0, 2, 1])[
        (x % 1 > 0.6).astype(int) + (y % 1 > 0.6)
    ],
    "dots": lambda x, y: (
        (x % 1 - 0.5) ** 2 + ((y + 0.5 * (x // 1 % 2)) % 1 - 0.5) ** 2 < 0.08
    ),
    "floral": lambda x, y: (
        np.cos(5 * x + 2 * np.sin(3 * y)) * np.cos(5 * y + 2 * np.sin(3 * x)) > 0.35
    ),
}


@functools.cache
def _drawings():
    """Parse DRAWINGS: name -> variants, each a list of (shape, extra, paint, numbers, points)."""
    drawings = {}
    for block in re.split(r"\n(?! )", DRAWINGS.strip()):
        name, shapes = block.split(":")
        parsed = []
        for text in shapes.split(";"):
            shape, extra, paint, values = re.fullmatch(
                r"(\w+)([*&]?) (.+?)((?: [-.,\d]+)*)", " ".join(text.split())
            ).groups()
            points = [
                tuple(map(float, value.split(",")))
                for value in values.split()
                if "," in value
            ]
            parsed.append(
                (
                    shape,
                    extra,
                    paint,
                    [float(value) for value in values.split() if "," not in value],
                    points,
                )
            )
        drawings.setdefault(name, []).append(parsed)
    return drawings


@functools.cache
def _unit_circle(start, end, count):
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _outlines(shape, numbers, points):
    """Return the outlines of a shape (or the one line of a stroke), and the radius of the stroke, else None."""
    if shape in ("area", "plate"):
        return [_curve(points) if shape == "area" else points], None
    if shape == "oval":
        return [points[0] + points[1] * _unit_circle(0, 360, 28)], None
    if shape == "line":
        return [points], numbers[0]
    count = int(numbers[1]) if len(numbers) > 1 else 40
    if shape == "dots":
        spots = np.linspace(points[0], points[1], count)
    else:  # arc, beads
        spots = points[0] + points[1] * _unit_circle(*points[2], count)
    return (
        ([spots], numbers[0])
        if shape == "arc"
        else (list(spots[:, None] + numbers[0] * _unit_circle(0, 360, 16)), None)
    )


def _curve(points, steps=6):
    """Return a closed smooth curve (cubic Hermite) through `points` (N x 2); a point given twice is a corner."""
    end, before = np.roll(points, -1, 0), np.roll(points, 1, 0)
    slope = (end - before) / 2
    reach = np.minimum(np.hypot(*(end - points).T), np.hypot(*(points - before).T))
    slope *= np.minimum(1, reach / np.maximum(np.hypot(*slope.T), 1e-9))[
        :, None
    ]  # no loops beside short edges
    t = (np.arange(steps) / steps)[None, :, None]
    along = t * t * (3 - 2 * t)
    between = points[:, None] * (1 - along) + end[:, None] * along
    return (
        between
        + slope[:, None] * t * (1 - t) ** 2
        - np.roll(slope, -1, 0)[:, None] * t**2 * (1 - t)
    ).reshape(-1, 2)


def _mirrored(points):
    return np.array([*points, *((-x, y) for x, y in reversed(points))])


def _blend(colour, other, share):
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def _shade(paint, paints):
    """Return the paint of a drawing: "metal-30" is the colour `paints["metal"]` with 30 % black."""
    name, sign, percent = re.fullmatch(r"(\w+)(?:([-+])(\d+))?", paint).groups()
    return (
        _blend(
            paints[name],
            (255, 255, 255) if sign == "+" else (0, 0, 0),
            int(percent) / 100,
        )
        if sign
        else paints[name]
    )


def _background(scene, width, height):
    tint, kind = tuple(scene["tint"]), scene["background"]
    if kind == "gradient":
        ramp = Image.linear_gradient("L").resize((width, height))
        return Image.merge(
            "RGB", [ramp.point([round(246 - 0.27 * level) for level in range(256)])] * 3
        )
    pale = _blend(tint, (255, 255, 255), 0.35)
    plain = {"white": (255, 255, 255), "near white": (max(tint) // 5 + 204,) * 3}.get(
        kind, pale
    )
    picture = Image.new("RGB", (width, height), plain)
    if kind == "room":
        pen, floor = ImageDraw.Draw(picture), round(height * (0.76 + scene["shift"][0]))
        pen.rectangle((0, floor, width, height), fill=_blend(tint, (0, 0, 0), 0.25))
        pen.rectangle(
            (0, floor - height // 50, width, floor),
            fill=_blend(tint, (255, 255, 255), 0.8),
        )
        left = round(width * (0.1 if scene["shift"][1] > 0 else 0.62))
        pen.rectangle(
            (left, height // 9, left + width // 4, height // 3),
            fill=_blend(tint, (255, 255, 255), 0.7),
        )
    return picture


# --- Drawing it ----------------------------------------------------------------------------------------------------

BASICS = {"ink": (36, 34, 40), "chalk": (248, 248, 246), "iris": (48, 34, 28)}
BASICS |= {"tan": COLOURS["Tan"], "gold": COLOURS["Gold"]}


def paint(record, seed):
    """Draw one record; return the picture (RGB) and its mask (L, values 0 to 4), both width x 4/3 width.

    Taught in: chapter 1.
    """
    canvas = _paint_item(record) if "item" in record else _paint_figure(record)
    random = np.random.default_rng([seed, record["id"], 5])
    picture = (
        canvas.picture if canvas.factor == 1 else canvas.picture.reduce(canvas.factor)
    )
    return _light(picture, canvas.mask, record["scene"]["noise"], random), canvas.mask


def _paint_item(record):
    item, scene = record["item"], record["scene"]
    canvas = Canvas(scene | {"turn": scene["turn"] * 3}, (0.5, 2 / 3), item["size"])
    colour, second, metal = (
        COLOURS[item[name]] for name in ("colour", "second", "metal")
    )
    paints = BASICS | {
        "colour": colour,
        "second": _blend(second, (255, 255, 255), 0.25) if second == colour else second,
        "metal": metal,
        "fabric": canvas.texture(item["pattern"], colour, second, item["period"]),
        "lens": _blend(BASICS["ink"], second, 0.3),
        "laces": (40, 40, 44) if min(colour) > 180 else BASICS["chalk"],
    }
    names = (item["article"], f"{item['article']} {item['style']}")
    name = names[names[1] in _drawings()]
    canvas.sketch(
        name,
        paints,
        ITEM,
        variant=item["variant"],
        stretch=(-1 if item["mirrored"] else 1, 1),
    )
    return canvas


def _paint_figure(record):
    garment, figure, head = record["garment"], record["figure"], record["head"]
    canvas = Canvas(record["scene"], *FRAMES[figure["frame"]])
    colour, second, beside = (
        COLOURS[garment[name]] for name in ("colour", "second", "beside")
    )
    second = _blend(second, (255, 255, 255), 0.5) if second == colour else second
    fabric = canvas.texture(garment["pattern"], colour, second, garment["period"])
    product = BASICS | {
        "colour": colour,
        "second": second,
        "fabric": fabric,
        "skin": figure["skin"],
    }
    other = product | {"colour": beside, "fabric": beside}
    top, legs = {
        "legs": (other, product),
        "skirt": (other, product),
        "saree": (product, product),
    }.get(garment["dresses"], (product, other))
    if (
        figure["frame"] == "flat"
    ):  # nobody wears it: what shows at the neck is its inside
        _paint_top(canvas, garment, figure, top | {"skin": _shade("colour-50", top)})
        return canvas
    hair = BASICS | {"hair": tuple(head["hair_colour"])}
    if f"behind {head['hair']}" in _drawings():
        canvas.sketch(f"behind {head['hair']}", hair, HAIR)
    _paint_legs(canvas, garment, figure, legs)
    canvas.stroke(
        [(0, -0.12), (0, 0.03)], (0.045, 0.06), _shade("skin-10", product), GARMENT
    )
    _paint_top(canvas, garment, figure, top)
    _paint_head(canvas, head, figure["skin"], hair)
    return canvas


def _paint_legs(canvas, garment, figure, paints):
    """Draw legs and shoes, and over them trousers or a skirt in the paint "fabric"."""
    dresses, hip, waist, hem = (
        garment[name] for name in ("dresses", "hip", "waist", "hem")
    )
    for side in (-1, 1):
        foot = side * (0.085 + figure["stance"])
        leg = np.array(
            [
                (side * hip * 0.52, 0.62),
                (side * (0.09 + figure["stance"] * 0.6), 0.97),
                (foot, 1.36),
            ]
        )
        canvas.stroke(leg, (0.075, 0.055, 0.035), paints["skin"], GARMENT)
        canvas.stroke(
            [(foot - 0.02, 1.375), (foot + 0.02, 1.375)], 0.03, (60, 50, 48), GARMENT
        )
        if dresses not in ("dress", "skirt"):
            _paint_trouser_leg(canvas, garment, paints, side, leg)
    seat = [(waist * 0.98, 0.4), (waist, 0.42), (hip, 0.58)]
    if dresses in ("skirt", "saree"):
        low = hip + garment["flare"]
        canvas.fill(
            [_curve(_mirrored([*seat, (low, hem), (low, hem)]))],
            paints["fabric"],
            GARMENT,
        )
        for fold in (-0.6, -0.2, 0.2, 0.6):
            canvas.stroke(
                [(fold * hip, 0.6), (fold * low, hem)],
                0.003,
                _shade("colour-25", paints),
                GARMENT,
            )
    elif dresses != "dress":
        canvas.fill(
            [_curve(_mirrored([*seat, (hip * 1.02, 0.66), (0.03, 0.72)]))],
            paints["fabric"],
            GARMENT,
        )


def _paint_trouser_leg(canvas, garment, paints, side, leg):
    """Draw one trouser leg along `leg` (hip, knee, foot) down to the hem."""
    hem = garment["hem"] if garment["dresses"] == "legs" else 1.3
    end = np.array([np.interp(hem, leg[:, 1], leg[:, 0]), hem])
    nodes, radii = [*leg[:2], end], (garment["hip"] * 0.53, 0.072, garment["ankle"])
    if hem < 1:  # shorts end above the knee
        nodes, radii = [leg[0], end], (garment["hip"] * 0.53, 0.085)
    canvas.stroke(nodes, radii, paints["fabric"], GARMENT)
    if garment["pattern"] == "side stripe":
        edge = [
            (x + side * radius * 0.8, y)
            for (x, y), radius in zip(nodes, radii, strict=True)
        ]
        canvas.stroke(edge, 0.009, BASICS["chalk"], GARMENT)
    seam = [(side * 0.012, 0.68), (side * 0.03, min(hem, 0.95))]
    canvas.stroke(seam, 0.003, _shade("colour-35", paints), GARMENT)


def _paint_top(canvas, garment, figure, paints):
    """Draw torso and arms, then the details that tell a shirt from a T-shirt or a kurta."""
    dresses, shoulder, waist, hip = (
        garment[name] for name in ("dresses", "shoulder", "waist", "hip")
    )
    alone = dresses in (
        "top",
        "long",
        "dress",
    )  # else it ends at the waist of what is below
    hem, flare = (garment["hem"], garment["flare"]) if alone else (0.45, 0)
    low = np.interp(hem, (0.42, 0.6), (waist, hip)) + flare + 0.006
    side = [
        (0.065, -0.015),
        (0.07, -0.01),
        (shoulder * 0.9, 0.045),
        (shoulder * 0.82, 0.17),
        (waist + 0.008, 0.40),
    ]
    hips = [(hip + 0.01 + flare * 0.3, 0.6)] if hem > 0.66 else []
    canvas.fill(
        [_curve(_mirrored([*side, *hips, (low, hem), (low, hem)]))],
        paints["fabric"],
        GARMENT,
    )
    canvas.stroke(
        [(-low * 0.97, hem - 0.015), (low * 0.97, hem - 0.015)],
        0.0025,
        _shade("colour-25", paints),
        GARMENT,
    )
    if dresses == "saree":
        canvas.sketch("drape", paints, GARMENT)
    poses = figure["arms"] if figure["frame"] != "flat" else [(24, 20)] * 2
    for sign, pose in zip((-1, 1), poses, strict=True):
        _paint_arm(canvas, garment, figure, paints, sign, np.radians(pose))
    canvas.sketch(f"collar {garment['collar']}", paints, GARMENT)
    if garment["pattern"] in MOTIFS[1:]:
        canvas.sketch(f"motif {garment['pattern']}", paints, GARMENT)


def _paint_arm(canvas, garment, figure, paints, side, pose):
    """Draw one arm and its sleeve; `pose`: upper and lower arm in radians from straight down, outwards."""
    reach = np.stack([side * np.sin(pose), np.cos(pose)], 1) * [[0.27], [0.24]]
    joint = np.array([side * (garment["shoulder"] - 0.05), 0.09])
    elbow, wrist = joint + reach[0], joint + reach[0] + reach[1]
    if figure["frame"] != "flat":
        hand = wrist + reach[1] * 0.13
        canvas.stroke(
            [joint, elbow, wrist, hand],
            (0.045, 0.038, 0.026, 0.032),
            paints["skin"],
            GARMENT,
        )
    upper, lower = min(garment["sleeve"] * 2, 1), max(garment["sleeve"] * 2 - 1, 0)
    if upper:
        nodes = [
            joint,
            joint + reach[0] * upper,
            *([elbow + reach[1] * lower] if lower else []),
        ]
        canvas.stroke(
            nodes, (0.055, 0.05, 0.04)[: len(nodes)], paints["fabric"], GARMENT
        )
        last = reach[1] if lower else reach[0]
        cuff = last[::-1] * (1, -1) / np.hypot(*last) * (0.04 if lower else 0.048)
        canvas.stroke(
            [nodes[-1] - cuff, nodes[-1] + cuff],
            0.005,
            _shade("colour-30", paints),
            GARMENT,
        )
    crease = np.array([(side * -0.034, 0.1), (side * -0.03, 0.04)]) + joint
    canvas.stroke(crease, 0.0025, _shade("colour-20", paints), GARMENT)


def _paint_head(canvas, head, skin, paints):
    """Draw face, beard and hair."""
    paints = paints | {
        "skin": skin,
        "cheek": _blend(skin, (226, 90, 90), 0.12 + 0.15 * head["lips"]),
        "lips": _blend(_blend(skin, (0, 0, 0), 0.3), (196, 24, 52), head["lips"]),
        "beard": _blend(skin, paints["hair"], 0.3),
    }
    canvas.sketch("face", paints, FACE, stretch=(head["width"], 1))
    if head["beard"] != "none":
        canvas.sketch(
            f"beard {head['beard']}", paints, FACE, stretch=(head["width"], 1)
        )
    canvas.sketch(f"face {head['style']}", paints, FACE)
    canvas.sketch(f"hair {head['hair']}", paints, HAIR)


def _light(picture, mask, noise, random):
    """Give the drawing volume: light from the upper left, a soft shadow, folds in the cloth, the camera's noise."""
    width, height = picture.size
    shape = mask.point([0] + [255] * 255)
    soft = shape.filter(ImageFilter.BoxBlur(width / 40)).filter(
        ImageFilter.BoxBlur(width / 40)
    )
    reach = round(width / 50)
    relief = _moved(soft, reach, reach) - _moved(soft, -reach, -reach)
    folds = Image.fromarray(random.normal(0, 1, (7, 9)).astype(np.float32))
    folds = folds.resize(picture.size, Image.Resampling.BICUBIC)
    lit = 0.88 + 0.28 * relief + 0.035 * np.asarray(folds) + 0.12 * _moved(soft, 0, 0)
    gain = np.where(
        np.asarray(shape), lit, 1 - 0.22 * _moved(soft, -reach, round(-1.6 * reach))
    )
    grain = noise * random.standard_normal((height, width), dtype=np.float32)
    pixels = np.asarray(picture) * gain[..., None] + grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _moved(picture, right, down):
    """Return the grey picture as float32 in 0..1, seen (right, down) pixels further on, 0 beyond the edge."""
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down)
    )
    return np.asarray(moved, np.float32) / 255


# --- The catalogue -------------------------------------------------------------------------------------------------


SOUND = {
    "gender": None,
    "image": True,
    "row": True,
    "copy_of": None,
    "commas": 0,
    "mode": "RGB",
    "width": None,
}
SOUND |= {
    "other_label": False,
    "truncated": False,
}  # other_label: a copy that contradicts its original


def draw(folder, *, products=1200, seed=0, head_share=0.4):
    """Draw a catalogue of `products` Men/Women rows with a readable image into `folder` and return its path.

    On top come rows of other genders (5 %), rows without an image, an image without a row and one truncated file (its
    row counts as no product). A finished catalogue with the same settings is left as it is. `head_share` of the apparel
    shows its gender in the head only, the rest in the garment only. Raises InputError for settings that cannot be drawn
    and for a folder that holds anything else: nothing is ever deleted. Taught in: chapter 1.
    """
    if not (60 <= products <= 50_000 and 0 <= head_share <= 1 and seed >= 0):
        raise InputError(
            "the synthetic catalogue needs 60 <= products <= 50000, seed >= 0 and 0 <= head_share <= 1; "
            f"found products={products}, seed={seed}, head_share={head_share}."
        )
    folder = Path(folder)
    settings = {
        "version": VERSION,
        "products": products,
        "seed": seed,
        "head_share": float(head_share),
    }
    if _finished(folder, settings):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{folder.name}-", dir=folder.parent
    ) as scratch:
        unfinished = Path(scratch, "catalogue")
        _draw_all(unfinished, settings)
        try:
            unfinished.rename(
                folder
            )  # replaces an empty folder, never one with content
        except OSError:
            if not _finished(folder, settings):  # another process may have been faster
                raise
    return folder


def _finished(folder, settings):
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "catalogue.json").read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} holds something that synthetic.draw did not make: name another folder."
        ) from None
    if found != settings:
        raise InputError(
            f"{folder} was drawn with {found}, asked for is {settings}: delete it or name another folder."
        )
    return True


def _draw_all(folder, settings):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    plan = _plan(settings["products"], settings["seed"])
    records = [_record(entry, settings) for entry in plan]
    jobs = [
        joblib.delayed(_save)(folder, record, entry, settings["seed"])
        for entry, record in zip(plan, records, strict=True)
        if entry["image"] and not entry["copy_of"]
    ]
    jobs.sort(
        key=lambda job: -job[1][1]["scene"]["width"]
    )  # the few large ones first, so that none is left at the end
    drawn = joblib.Parallel(n_jobs=-1, batch_size=8, return_as="generator")(jobs)
    for _ in progress(drawn, "drawing the synthetic catalogue", total=len(jobs)):
        pass
    for entry in plan:
        for name in ("images/{}.jpg", "masks/{}.png") if entry["copy_of"] else ():
            shutil.copyfile(
                folder / name.format(entry["copy_of"]),
                folder / name.format(entry["id"]),
            )
    rows = [
        _row(record, entry, settings["seed"])
        for entry, record in zip(plan, records, strict=True)
        if entry["row"]
    ]
    (folder / "styles.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    facts = {"settings": settings, **_truth(plan, records)}
    (folder / "catalogue.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in folder.rglob("*"):
        os.utime(path, (DATE, DATE))


def _plan(products, seed):
    """Return one entry per product: its id, and which of the real catalogue's defects it shows (scaled to the size)."""

    def scaled(count, least=1):
        return max(least, round(count * products / 1200))

    lost, others = scaled(4), scaled(63, 3)
    defects = [
        {"gender": ("Unisex", "Boys", "Girls", "Unisex", "Unisex")[number % 5]}
        for number in range(others)
    ]
    defects += [{"image": False}] * lost + [
        {"row": False},
        {"truncated": True},
        {"mode": "CMYK"},
        {"commas": 2},
    ]
    defects += (
        [{"commas": 1}] * scaled(5)
        + [{"mode": "L"}] * scaled(12)
        + [{"width": 1800}] * scaled(3)
    )
    count = (
        products + 2 + lost + others
    )  # 2: the truncated file, and the image without a row
    ids = (
        np.random.default_rng([seed])
        .permutation(np.arange(1163, 60000))[:count]
        .tolist()
    )
    places = iter(np.random.default_rng([seed, products]).permutation(count).tolist())
    plan = [{"id": number, **SOUND} for number in ids]
    for defect in defects:
        plan[next(places)].update(defect)
    for group in range(scaled(12, 3)):
        original, copies = plan[next(places)]["id"], 2 if group == 1 else 1
        for _ in range(copies):
            plan[next(places)].update(copy_of=original, other_label=group == 0)
    return plan


def _record(entry, settings):
    shown = {"Boys": "Men", "Girls": "Women"}.get(entry["gender"])
    source = entry["copy_of"] or entry["id"]
    record = describe(
        settings["seed"], source, head_share=settings["head_share"], gender=shown
    )
    if entry["width"]:
        record["scene"]["width"] = entry["width"]
    if entry["other_label"]:
        record["gender"] = {"Men": "Women", "Women": "Men"}[record["gender"]]
    return record


def _save(folder, record, entry, seed):
    picture, mask = paint(record, seed)
    stream = io.BytesIO()
    picture.convert(entry["mode"]).save(
        stream, "JPEG", quality=record["scene"]["quality"]
    )
    data = stream.getvalue()
    (folder / "images" / f"{entry['id']}.jpg").write_bytes(
        data[: len(data) // 2] if entry["truncated"] else data
    )
    mask.save(folder / "masks" / f"{entry['id']}.png")


def _row(record, entry, seed):
    """Return one line of styles.csv; a malformed one has commas inside its last field."""
    random = np.random.default_rng([seed, entry["id"], 6])
    part, gender = (
        record.get("item") or record["garment"],
        entry["gender"] or record["gender"],
    )
    article, colour = part["article"], part["colour"]
    kind = ITEMS.get(article) or APPAREL[article]
    category = getattr(kind, "category", "Apparel")
    noun = (
        article
        if article in PAIRS or category == "Footwear"
        else re.sub("(?<=ch|ss)es$|s$", "", article)
    )
    brand, look = (
        _pick(random, BRANDS.split()).replace("_", " "),
        LOOKS.get(part["pattern"], "Printed "),
    )
    name = f"{brand} {gender} {colour} {look}{noun}" + EXTRAS[entry["commas"]]
    usage = USAGES.get(article, "Casual")
    season, year = (
        _pick(random, ("Summer", "Fall", "Winter", "Spring"), (48, 26, 19, 7)),
        random.integers(2011, 2019),
    )
    return f"{entry['id']},{gender},{category},{kind.sub},{article},{colour},{season},{year},{usage},{name}"


def _truth(plan, records):
    """Return the counts that a correct reader of the finished folder finds."""
    classes = Counter(
        2 * record["category"] + (record["gender"] == "Women")
        for entry, record in zip(plan, records, strict=True)
        if entry["row"]
        and entry["image"]
        and not entry["truncated"]
        and not entry["gender"]
    )
    return {
        "rows": sum(entry["row"] for entry in plan),
        "malformed_rows": sum(entry["commas"] > 0 for entry in plan),
        "images": sum(entry["image"] for entry in plan),
        "rows_without_image": sum(not entry["image"] for entry in plan),
        "images_without_row": sum(not entry["row"] for entry in plan),
        "unreadable_images": sum(entry["truncated"] for entry in plan),
        "duplicate_groups": len({entry["copy_of"] for entry in plan} - {None}),
        "duplicate_label_conflicts": len(
            {entry["copy_of"] for entry in plan if entry["other_label"]}
        ),
        "products": classes.total(),
        "class_counts": [classes[label] for label in range(6)],
    }
